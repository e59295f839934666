"""Images in three parts, and how they are changed while a network trains.

CIFAR-100 comes through the book's ``workbench.archives``: verified, from DATA_ROOT (default: ``data``
in the current folder), fetched there from DATA_MIRROR, if set, and the original address. The 5,000
images to choose by are the same in every run. The test part is sealed: it opens once.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
HELD_BACK = 5_000  # images of CIFAR-100's training part to choose by
SPLIT = 2009  # the seed that says which
SETS = {
    "cifar100": "CIFAR-100: 45,000 to train, 5,000 to choose by, 10,000 held out; fetched once, 169 MB",
    "patches": "3,000 patches of ten photographs, in installed packages: no network",
    "digits": "3,500 MNIST digits, in an installed package: no network",
}


class DataError(Exception):
    """A set that is not to be had, in words for whoever typed the command."""


class Sealed:
    """Images and labels that are read once; `readings` counts."""

    def __init__(self, x: Tensor, y: Tensor):
        self._part = x, y
        self.readings = 0

    def open(self, *, again: bool = False) -> tuple[Tensor, Tensor]:
        if self.readings and not again:
            raise RuntimeError("the test part has been read: what is chosen by it is no test")
        self.readings += 1
        return self._part


@dataclass
class Data:
    """Images as bytes (N, 3, 32, 32) with labels (N,); mean and deviation of the training part."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    classes: int
    mean: Tensor  # (3, 1, 1), of values 0..1
    deviation: Tensor

    def seal(self) -> Sealed:
        """The held-out part, for one run."""
        return Sealed(*self.held_out)


def load(name: str, *, first: int | None = None) -> Data:
    """A set by name. first: only as many images to train on, and of each other part at most."""
    from reproduction.networks import quiet_shell

    quiet_shell()
    if str(NOTEBOOKS) not in sys.path:
        sys.path.append(str(NOTEBOOKS))
    try:
        parts, classes = cifar100() if name == "cifar100" else at_hand(name)
    except (RuntimeError, OSError, ValueError, ModuleNotFoundError) as error:
        raise DataError(f"{name}: {error}") from error
    parts = [as_bytes(x[:first], y[:first]) for x, y in parts]
    values = parts[0][0].double().div(255)
    mean, deviation = (f((0, 2, 3)).view(3, 1, 1).float() for f in (values.mean, values.std))
    train, validation, test = parts
    return Data(train, validation, test, classes, mean, deviation)


def as_bytes(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x.mul(255).round().byte(), y


def cifar100() -> tuple[list[tuple[Tensor, Tensor]], int]:
    """Three parts of CIFAR-100 and the number of its classes."""
    from torchvision.datasets import CIFAR100

    from workbench import archives

    try:
        files = archives.verified("CIFAR100", CIFAR100)
    except (OSError, ValueError) as error:
        raise DataError(
            f"CIFAR-100 could not be read or fetched: {error}\nWithout a network: --data patches."
        ) from error
    (x, y), test, classes = archives.read_cifar(files, CIFAR100)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(SPLIT))
    back, train = order[:HELD_BACK], order[HELD_BACK:]
    return [(x[train], y[train]), (x[back], y[back]), test], len(classes)


def at_hand(name: str) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """The same of a small set that ships inside installed packages."""
    from workbench import images

    data = images.patches(32) if name == "patches" else images.digits(32, 3)
    return [data.train, data.validation, data.test], len(data.classes)


# ---- what a batch is made of ---------------------------------------------------------------------


def generator(*numbers: int) -> torch.Generator:
    """Random numbers that depend on these whole numbers only, and on all of them."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


@dataclass
class Changes:
    """How each image of a set is changed in one epoch: by its place in the set, on any machine."""

    shift: Tensor  # (N, 2): rows and columns, 0..8
    flip: Tensor  # (N,): 1 or -1
    angle: Tensor  # (N,): radians


def changes(n: int, seed: int, epoch: int, device: torch.device) -> Changes:
    """Crop of 32x32 out of a margin of 4, horizontal flip, rotation by up to 15 degrees."""
    random = generator(seed, epoch, 1)
    shift = torch.randint(0, 9, (n, 2), generator=random)
    flip = torch.randint(0, 2, (n,), generator=random) * 2.0 - 1
    angle = (torch.rand(n, generator=random) * 2 - 1) * torch.pi * 15 / 180
    return Changes(*(t.to(device) for t in (shift, flip, angle)))


def augment(x: Tensor, how: Changes, chosen: Tensor) -> Tensor:
    """Images (B, 3, H, W) in 0..1, changed as `how` says for the places `chosen`; outside is black."""
    B, _, H, W = x.shape
    shift = how.shift[chosen]
    rows = shift[:, 0, None] + torch.arange(H, device=x.device)  # (B, H)
    columns = shift[:, 1, None] + torch.arange(W, device=x.device)  # (B, W)
    padded = F.pad(x, (4, 4, 4, 4))
    batch = torch.arange(B, device=x.device)[:, None, None]
    x = padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    flip, angle = how.flip[chosen], how.angle[chosen]
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    across = torch.stack((cos * flip, -sin * flip, zero), dim=1)
    down = torch.stack((sin, cos, zero), dim=1)
    grid = F.affine_grid(torch.stack((across, down), dim=1), [B, 3, H, W], align_corners=False)
    return F.grid_sample(x, grid, mode="nearest", align_corners=False)
