# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # CIFAR-10 and CIFAR-100
#
# The binary and the pickled files, read by hand; two levels of labels; near copies of
# test pictures in the training part, planted, found again, and what they do to an
# accuracy.
# The text to it is the [chapter](../chapters/cifar.rst).

# %%
import hashlib
import math
import os
import pickle
import pickletools
import struct
import tarfile
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder

import workbench
from workbench import claim, device, record, record_spread, seed, spread, table
from workbench import downloads, images, plots, training

SEEDS = (0, 1, 2)

# %% [markdown]
# ## A tiny set in the true format
#
# CIFAR ships in no package. In its place stand tiles of ten photographs, 32x32 pixels
# each: the coarse class is the photograph, the fine class one of its quarters.


# %% tags=["part"]
class Part(NamedTuple):
    """Pictures (N, 3, 32, 32) of bytes, labels (N,) of each level; CIFAR-10 has one."""

    pictures: np.ndarray
    fine: np.ndarray
    coarse: np.ndarray | None = None


# %% tags=["tiles"]
def quarters(picture: Tensor, side: int = 640) -> list[Tensor]:
    """Tiles (n, 3, 32, 32) of the four quarters of a photograph that share no pixel.

    The photograph, colours 0..255 (3, H, W), is first made a square. A tile whose
    colours deviate by less than one level of 256 shows nothing, and is left out.
    """
    square = F.interpolate(
        picture[None].float(), size=(side, side), mode="bilinear", antialias=True
    )
    x = square[0].round().clamp(0, 255).byte()
    grid = x.unfold(1, 32, 32).unfold(2, 32, 32).permute(1, 2, 0, 3, 4)
    half = len(grid) // 2
    found = []
    for rows in (grid[:half], grid[half:]):
        for part in (rows[:, :half], rows[:, half:]):
            cut = part.flatten(0, 1)  # (half * half, 3, 32, 32)
            seen = cut.double().std((2, 3)).mean(1) >= 1
            found.append(cut[seen])
    return found


def tiny_set(pictures: dict[str, Tensor], n_train: int, n_test: int) -> list[Part]:
    """A training and a test part: as many tiles of each quarter, in random order."""
    rng = np.random.default_rng(2009)
    cut = [[], []]
    for picture in pictures.values():
        for quarter in quarters(picture):
            order = rng.permutation(len(quarter))[: n_train + n_test]
            cut[0].append(quarter.numpy()[order[:n_train]])
            cut[1].append(quarter.numpy()[order[n_train:]])
    parts = []
    for tiles in cut:
        fine = np.repeat(np.arange(len(tiles)), [len(one) for one in tiles])
        order = rng.permutation(len(fine))
        fine = fine[order]
        parts.append(Part(np.concatenate(tiles)[order], fine, fine // 4))
    return parts


# %% [markdown]
# ## The format
#
# A record of the binary files: the label, one byte, or two in CIFAR-100, then the
# planes of red, green and blue, each row by row. First by hand, for 2x2 pixels.

# %% tags=["by-hand"]
record_of_four = bytes([7, 255, 0, 0, 250, 0, 255, 0, 250, 0, 0, 255, 20])
label = record_of_four[0]
planes = np.frombuffer(record_of_four, np.uint8)[1:].reshape(3, 2, 2)
planes.transpose(1, 2, 0).tolist()  # rows, columns, (red, green, blue)

# %% tags=["by-hand-result"]
rows = []
for row in (0, 1):
    for column in (0, 1):
        colour = [int(plane[row, column]) for plane in planes]
        places = [1 + plane * 4 + row * 2 + column for plane in range(3)]
        claim(
            colour == [record_of_four[i] for i in places], "the place of a byte by hand"
        )
        rows.append((f"{row}, {column}", *places, str(tuple(colour))))
claim(label == 7, "the label comes first")
table(rows, ("row, column", "red in byte", "green", "blue", "colour"))

# %% tags=["record-figure"] alt="Above: a picture of two by two pixels, red, green, blue and yellow. Below: its record as a row of thirteen boxes with a value in each: the label 7, then four boxes of the red plane 255 0 0 250, four of the green plane 0 255 0 250 and four of the blue plane 0 0 255 20."
figure, axes = plt.subplots(2, 1, figsize=(5, 2.8), height_ratios=(1.5, 1))
axes[0].imshow(planes.transpose(1, 2, 0))
axes[0].set(xticks=[0, 1], yticks=[0, 1], xlabel="column", ylabel="row")
names = ("label", "red plane", "green plane", "blue plane")
PLANES = ("#b3261e", "#2e7d32", "#1a5fb4")
for i, value in enumerate(record_of_four):
    colour = plots.QUIET if i == 0 else PLANES[(i - 1) // 4]
    box = plt.Rectangle((i, 0), 0.92, 0.8, fill=False, edgecolor=colour, linewidth=2)
    axes[1].add_patch(box)
    axes[1].text(i + 0.46, 0.4, value, ha="center", va="center", fontsize=11)
for x, name in zip((0.46, 2.96, 6.96, 10.96), names):
    axes[1].text(x, -0.35, name, ha="center", va="center", fontsize=11)
axes[1].set(xlim=(-0.4, 13.1), ylim=(-0.7, 0.95))
axes[1].axis("off")
axes[0].set_axisbelow(True)


# %% tags=["binary"]
def write_binary(file: Path, pictures: np.ndarray, *labels: np.ndarray) -> None:
    """Records of a byte for each label, then the planes of red, green and blue."""
    columns = [label[:, None].astype(np.uint8) for label in labels]
    columns.append(pictures.reshape(len(pictures), -1))
    file.write_bytes(np.concatenate(columns, axis=1).tobytes())


def read_binary(file: Path, n_labels: int) -> tuple[np.ndarray, ...]:
    """Pictures (N, 3, 32, 32), labels (N,): CIFAR-100 has two, the coarse one first."""
    raw = np.frombuffer(file.read_bytes(), np.uint8)
    length = n_labels + 3 * 32 * 32
    if len(raw) == 0 or len(raw) % length:
        words = f"{len(raw):,} bytes are no whole number of records of {length:,}"
        raise ValueError(f"{file.name}: {words}. Fetch it again, or check n_labels")
    records = raw.reshape(-1, length)
    pictures = records[:, n_labels:].reshape(-1, 3, 32, 32)
    return pictures, *records[:, :n_labels].T


# %% [markdown]
# The Python version holds pickles, and a pickle is a program: `pickletools` lists it.

# %% tags=["opcodes"]
pickletools.dis(pickle.dumps({"labels": [6, 9]}, protocol=2))


# %% tags=["trap"]
class Trap:
    """An object whose pickle calls a function of its writer's choice when loaded."""

    def __init__(self, folder: str):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


# %% tags=["unpickler"]
ALLOWED = {  # all that a batch needs; numpy has moved the first
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
}


class BatchUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings, numbers and arrays, and calls nothing else."""

    def find_class(self, module: str, name: str):
        if f"{module}.{name}" in ALLOWED:
            return super().find_class(module, name)
        words = f"it asks for {module}.{name}, which no batch of CIFAR needs"
        raise pickle.UnpicklingError(f"{words}: do not load this file")


def read_pickle(file: Path) -> dict:
    """The dict in a file; latin1 reads the strings that Python 2 wrote."""
    with file.open("rb") as opened:
        return BatchUnpickler(opened, encoding="latin1").load()


# %% tags=["batches"]
KEYS = (("labels",), ("fine_labels", "coarse_labels"))  # CIFAR-10, CIFAR-100


def read_batches(folder: Path, names: list[str]) -> Part:
    """One part of CIFAR-10 or CIFAR-100 from its pickled batches, in their order."""
    batches = [read_pickle(folder / name) for name in names]
    data = np.concatenate([batch["data"] for batch in batches])
    if data.dtype != np.uint8 or data.shape[1:] != (3 * 32 * 32,):
        words = f"data of {data.dtype} {data.shape}, not bytes (N, 3072)"
        raise ValueError(
            f"{folder.name}: {words}. Is this the Python version of CIFAR?"
        )
    levels = []
    for key in KEYS["fine_labels" in batches[0]]:
        levels.append(np.concatenate([batch[key] for batch in batches]))
        if len(levels[-1]) != len(data):
            words = f"{len(levels[-1]):,} {key} for {len(data):,} pictures"
            raise ValueError(f"{folder.name}: {words}: fetch it again")
    return Part(data.reshape(-1, 3, 32, 32), *levels)


# %% tags=["writers"]
def write_pickle(file: Path, content: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content, protocol=2))


def write_cifar10(root: Path, train: Part, test: Part, names: list[str]) -> None:
    """Five batches, a test batch and the names, in the layout of the Python version.

    The one label is the coarse one of our parts.
    """
    folder = root / CIFAR10.base_folder
    batches = np.array_split(np.arange(len(train.fine)), 5)
    parts = [(f"data_batch_{i}", train, rows) for i, rows in enumerate(batches, 1)]
    parts.append(("test_batch", test, np.arange(len(test.fine))))
    for name, part, rows in parts:
        content = {
            "batch_label": name,
            "labels": part.coarse[rows].tolist(),
            "data": part.pictures[rows].reshape(len(rows), -1),
            "filenames": [f"{name}_{row}.png" for row in rows],
        }
        write_pickle(folder / name, content)
    write_pickle(folder / "batches.meta", {"label_names": names, "num_vis": 3072})


def write_cifar100(root: Path, parts: dict[str, Part], fine, coarse) -> None:
    """The files train, test and meta, in the layout of the Python version."""
    folder = root / CIFAR100.base_folder
    for name, part in parts.items():
        content = {
            "batch_label": name,
            "fine_labels": part.fine.tolist(),
            "coarse_labels": part.coarse.tolist(),
            "data": part.pictures.reshape(len(part.fine), -1),
            "filenames": [f"{name}_{row}.png" for row in range(len(part.fine))],
        }
        write_pickle(folder / name, content)
    write_pickle(
        folder / "meta", {"fine_label_names": fine, "coarse_label_names": coarse}
    )


# %% tags=["complete"]
ARCHIVES = {  # the Python versions and their SHA-256
    "cifar-10-python.tar.gz": (
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    ),
    "cifar-100-python.tar.gz": (
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
    ),
}
CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")


def unpack(name: str, root: Path) -> None:
    """Extract an archive from below DATA_ROOT; it is verified, or fetched first."""
    file = downloads.place(
        name, [f"https://www.cs.toronto.edu/~kriz/{name}"], ARCHIVES[name]
    )
    with tarfile.open(file) as archive:
        archive.extractall(root, filter="data")


def write_tiny(
    root: Path, photographs: dict[str, Tensor], n_train: int, n_test: int
) -> None:
    """Both sets from tiles of photographs, in the layout of the complete ones."""
    train, test = tiny_set(photographs, n_train, n_test)
    coarse = list(photographs)
    fine = [f"{name}_{corner}" for name in coarse for corner in CORNERS]
    write_cifar10(root, train, test, coarse)
    write_cifar100(root, {"train": train, "test": test}, fine, coarse)


# %% tags=["files"]
holder = tempfile.TemporaryDirectory()
root = Path(holder.name)
photographs = images.photographs()
if workbench.PROFILE == "full":
    workbench.sources.append("CIFAR-10 and CIFAR-100, the complete data sets")
    for name in ARCHIVES:
        unpack(name, root)
else:
    workbench.sources.append(
        "tiles of ten photographs from scikit-image and scikit-learn"
    )
    write_tiny(root, photographs, n_train=50, n_test=25)

# %% tags=["read"]
ten = root / "cifar-10-batches-py"
hundred = root / "cifar-100-python"
train10 = read_batches(ten, [f"data_batch_{i}" for i in range(1, 6)])
test10 = read_batches(ten, ["test_batch"])
train100 = read_batches(hundred, ["train"])
test100 = read_batches(hundred, ["test"])
names10 = read_pickle(ten / "batches.meta")["label_names"]
names100 = read_pickle(hundred / "meta")
train100.pictures.shape

# %% tags=["trap-result"]
trap = root / "trap"
trap.write_bytes(pickle.dumps(Trap(str(root / "made by a pickle"))))
try:
    read_pickle(trap)
except pickle.UnpicklingError as error:
    refused = str(error)
claim(not (root / "made by a pickle").exists(), "the restricted reader ran nothing")
with trap.open("rb") as opened:
    pickle.load(opened)
claim((root / "made by a pickle").exists(), "pickle.load ran the function")
print(refused)


# %% [markdown]
# ## Check it


# %% tags=["torchvision"]
def with_checksums(kind: type, root: Path) -> type:
    """torchvision's class for the files below a folder: its reader, their own MD5."""

    def signed(name: str) -> list[str]:
        content = (root / kind.base_folder / name).read_bytes()
        return [name, hashlib.md5(content).hexdigest()]

    own = {}
    for part in ("train_list", "test_list"):
        own[part] = [signed(name) for name, _ in getattr(kind, part)]
    own["meta"] = kind.meta | {"md5": signed(kind.meta["filename"])[1]}
    return type(kind.__name__, (kind,), own)


def colours_at(file: Path, record: int, row: int, column: int) -> tuple[int, ...]:
    """Coarse label, fine label, red, green and blue at a place of binary CIFAR-100."""
    start = record * struct.calcsize("2B3072s")
    coarse, fine, planes = struct.unpack_from("2B3072s", file.read_bytes(), start)
    place = row * 32 + column
    return coarse, fine, planes[place], planes[place + 1024], planes[place + 2048]


# %% tags=["equal"]
pairs = []
for kind, parts in ((CIFAR10, (train10, test10)), (CIFAR100, (train100, test100))):
    library = with_checksums(kind, root)
    for ours, training_part in zip(parts, (True, False)):
        theirs = library(root, train=training_part)
        same = np.array_equal(ours.pictures.transpose(0, 2, 3, 1), theirs.data)
        same = same and np.array_equal(ours.fine, theirs.targets)
        name = f"{kind.__name__}, {'train' if training_part else 'test'}"
        pairs.append((f"{name}: torchvision", len(theirs), same))
    expected = names10 if kind is CIFAR10 else names100["fine_label_names"]
    pairs.append(
        (
            f"{kind.__name__}, names: torchvision",
            len(expected),
            theirs.classes == expected,
        )
    )

# %% tags=["equal-binary"]
write_binary(root / "test.bin", test100.pictures, test100.coarse, test100.fine)
pictures, coarse, fine = read_binary(root / "test.bin", n_labels=2)
same = np.array_equal(pictures, test100.pictures)
same = same and np.array_equal(coarse, test100.coarse)
pairs.append(
    ("binary CIFAR-100: the pickle", len(fine), same and (fine == test100.fine).all())
)
places = [(n, 7 * n % 32, 5 * n % 32) for n in range(100)]
same = True
for n, row, column in places:
    by_hand = colours_at(root / "test.bin", n, row, column)
    same = same and by_hand == (coarse[n], fine[n], *pictures[n, :, row, column])
pairs.append(("binary CIFAR-100, pixels: struct", len(places), same))

# %% tags=["equal-result"]
claim(all(bool(same) for _, _, same in pairs), "our readers give what the others give")
table(
    [(name, n, bool(same)) for name, n, same in pairs],
    ("ours, against", "compared", "equal"),
)

# %% [markdown]
# ## What is in it

# %% tags=["samples"] alt="Four rows of ten small pictures; a column has tiles of one photograph, a row of one quarter. Most show one colour or a texture: from left to right grey wall and orange cloth, fur, wood, stars on black, stained tissue, parts of a motorcycle, a red retina, blue sky with masts, a roof and sky and leaves, dark green."
shown = []
for quarter in range(4):
    for place in range(10):
        of_class = np.flatnonzero(train100.fine == 4 * place + quarter)
        shown.append(train100.pictures[of_class[0]])
plots.image_grid([torch.tensor(one) for one in shown], columns=10, scale=0.5)

# %% tags=["statistics"]
rows = []
for name, part in (("train", train100), ("test", test100)):
    x = part.pictures / 255
    counts = np.bincount(part.fine)
    claim(len(set(counts)) == 1, f"{name}: the fine classes are of one size")
    values = [f"{v:.3f}" for v in (*x.mean((0, 2, 3)), *x.std((0, 2, 3)))]
    rows.append((name, len(x), len(counts), int(counts[0]), *values))
    record(f"{name}.pictures", len(x))
record("classes.fine", len(counts))
record("classes.coarse", int(test100.coarse.max()) + 1)
heads = ("part", "pictures", "classes", "in each", "mean red", "green", "blue")
table(rows, (*heads, "deviation red", "green", "blue"))


# %% tags=["two-levels"]
def coarse_of(part: Part) -> Tensor:
    """The coarse class of each fine class, (fine classes,)."""
    found = np.full(part.fine.max() + 1, -1)
    found[part.fine] = part.coarse
    if (found[part.fine] != part.coarse).any():
        raise ValueError(
            "a fine class lies in two coarse ones: are the labels swapped?"
        )
    return torch.tensor(found)


# %% tags=["superclass-names"]
SUPERCLASSES = {  # Krizhevsky's page, names as in the file meta
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}

# %% tags=["superclasses"]
rows = []
for i, (name, classes) in enumerate(SUPERCLASSES.items()):
    rows.append(
        (str(i), name.replace("_", " "), ", ".join(classes.split()).replace("_", " "))
    )
fine_names = sorted(" ".join(SUPERCLASSES.values()).split())
claim(len(set(fine_names)) == 100 and len(SUPERCLASSES) == 20, "100 in 20 classes")
in_file = set(names100["fine_label_names"])
claim(not in_file & set(fine_names) or in_file == set(fine_names), "as in the file")
table(rows, ("coarse label", "superclass", "classes"))

# %% [markdown]
# ## Near copies of test pictures in the training part


# %% tags=["near-copies"]
KINDS = ("shifted", "paler", "noisy", "mirrored")


def near_copy(x: Tensor, how: str) -> Tensor:
    """Pictures (N, 3, 32, 32) in 0..1, changed a little."""
    if how == "shifted":  # by a pixel, to the right and down
        return F.pad(x, (1, 0, 1, 0), mode="replicate")[:, :, :32, :32]
    if how == "paler":
        return 0.1 + 0.8 * x
    if how == "noisy":
        return (x + 0.03 * torch.randn_like(x)).clamp(0, 1)
    return x.flip(-1)


# %% tags=["plant"]
def plant(train, test, chosen: Tensor, kinds=KINDS) -> tuple[Tensor, Tensor]:
    """The training part, some pictures replaced by copies of chosen test pictures.

    A part is pictures and labels. The kinds of copies take turns.
    """
    x = train[0].clone()
    for turn, index in enumerate(chosen.tolist()):
        of_class = (train[1] == test[1][index]).nonzero()[:, 0]
        before = (
            test[1][chosen[:turn]] == test[1][index]
        ).sum()  # places that are taken
        copy = near_copy(test[0][index : index + 1], kinds[turn % len(kinds)])
        x[of_class[before]] = copy[0]
    return x, train[1]


# %% tags=["copies-figure"] alt="Two rows of four pictures: above four test pictures, below their copies, one moved by a pixel, one with paler colours, one with fine noise, one mirrored. Each pair looks alike."
seed(3)
detail = test100.pictures.std((1, 2, 3))
of_photograph = [np.where(test100.coarse == k, detail, 0) for k in (0, 2, 5, 8)]
x = torch.tensor(test100.pictures[[values.argmax() for values in of_photograph]]) / 255
copies = [near_copy(x[i : i + 1], how)[0] for i, how in enumerate(KINDS)]
titles = ["test"] * 4 + list(KINDS)
plots.image_grid([*x, *copies], titles, columns=4, scale=1.1)


# %% tags=["finder"]
def fingerprint(x: Tensor, side: int = 8) -> Tensor:
    """A small copy (N, 3 * side * side): mean 0 in each colour, deviation 1 in all."""
    small = F.adaptive_avg_pool2d(x, side)
    small = small - small.mean((2, 3), keepdim=True)
    deviation = small.std((1, 2, 3), keepdim=True).clamp(min=1e-3)
    return (small / deviation).flatten(1)


def nearest(test: Tensor, train: Tensor, describe=fingerprint) -> Tensor:
    """From each test picture, as it is or mirrored, the distance to its nearest."""
    known = describe(train)
    found = []
    for part in test.split(500):
        plain = torch.cdist(describe(part), known).amin(1)
        mirrored = torch.cdist(describe(part.flip(-1)), known).amin(1)
        found.append(torch.minimum(plain, mirrored))
    return torch.cat(found)


# %% tags=["precision"]
def precision_at_hits(distance: Tensor, planted: Tensor) -> Tensor:
    """Going from the smallest distance on: the share of copies so far, at each copy."""
    hits = planted[distance.argsort()].double()
    return (hits.cumsum(0) / torch.arange(1, len(hits) + 1))[hits == 1]


# %% tags=["network"]
class SmallNetwork(nn.Module):
    """Three convolutions of stride 2 and a linear layer over all that they leave."""

    def __init__(self, num_classes: int, width: int = 12):
        super().__init__()
        layers = []
        for c_in, c_out in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers.append(nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=False))
            layers += [nn.BatchNorm2d(c_out), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.classifier = nn.Linear(4 * width * 4 * 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        # (B, 3, 32, 32) in 0..1 -> (B, K)
        return self.classifier(self.features(4 * (x - 0.5)))


# %% tags=["train"]
EPOCHS = 10


def train_on(part: tuple[Tensor, Tensor], num_classes: int, number: int) -> nn.Module:
    """A small network, trained from seed `number`."""
    seed(number)
    network = SmallNetwork(num_classes).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    steps = EPOCHS * math.ceil(len(part[1]) / 50)
    schedule = training.one_cycle(optimizer, steps)
    training.fit(network, part, EPOCHS, optimizer, batch=50, schedule=schedule)
    return network


# %% tags=["measure"]
def shares(right: Tensor, planted: Tensor) -> dict[str, float]:
    """The share that is read right: of pictures with a copy, of the rest, of all."""
    right = right.double()
    found = {"with a copy": right[planted], "the rest": right[~planted], "all": right}
    return {name: values.mean().item() for name, values in found.items()}


# %% tags=["parts"]
def tensors(part: Part, first: int) -> tuple[Tensor, Tensor]:
    """The first pictures in 0..1, and their fine labels."""
    x = torch.tensor(part.pictures[:first]).float() / 255
    return x, torch.tensor(part.fine[:first]).long()


train = tensors(train100, 10_000)
test = tensors(test100, 2_000)
num_classes = int(train[1].max()) + 1

# %% tags=["headline"]
chosen = {}
planted = {}
networks = {}
with_copies = {}
for number in SEEDS:
    seed(number)
    chosen[number] = torch.randperm(len(test[1]))[: len(test[1]) // 10]
    planted[number] = torch.zeros(len(test[1]), dtype=torch.bool)
    planted[number][chosen[number]] = True
    with_copies[number] = plant(train, test, chosen[number])

# %% tags=["find"]
found = {}
for number in SEEDS:
    for side in (8, 32):
        distance = nearest(
            test[0], with_copies[number][0], partial(fingerprint, side=side)
        )
        found[number, side] = precision_at_hits(distance, planted[number])

# %% tags=["headline-train"]
answers = {}
for number in SEEDS:
    for name, part in (("clean", train), ("copies", with_copies[number])):
        network = train_on(part, num_classes, number)
        answers[name, number] = training.predict(network, test[0])
    networks[number] = network  # that of the last, with copies

# %% tags=["finder-figure"] alt="Precision against the share of copies found, two bands of three seeds. Both are at 1 up to the first half of the copies. Beyond it the precision of 8 by 8 pictures falls later than that of all 32 by 32 pixels, whose line lies below; for the last copy both are near 0.1."
_, axes = plt.subplots()
ends = {}
n = len(chosen[0])
for name, side, colour in (
    ("8×8", 8, plots.COLOURS[0]),
    ("32×32", 32, plots.COLOURS[1]),
):
    runs = torch.stack([found[number, side] for number in SEEDS])
    share = [(i + 1) / n for i in range(n)]
    ends[name] = plots.seed_band(axes, share, runs, colour)
axes.set(xlabel="share of the copies found", ylabel="precision", ylim=(0, 1.02))
axes.set(xlim=(0, 1.16))
axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
plots.label_ends(axes, ends)
axes.set_axisbelow(True)

# %% tags=["finder-result"]
rows = []
for side, name in ((8, "8x8"), (32, "32x32")):
    runs = torch.stack([found[number, side] for number in SEEDS])
    average = runs.mean(1).tolist()
    fifths = runs[:, 4 * n // 5 - 1].tolist()
    record_spread(f"finder.{side}", average)
    record_spread(f"finder.{side}.fifths", fifths)
    rows.append((name, spread(average, ".2f"), spread(fifths, ".2f")))
table(rows, ("compared as", "average precision", "precision at 4 of 5 copies found"))

# %% tags=["finder-claims"]
half = [found[k, side][n // 2 - 1] for k in SEEDS for side in (8, 32)]
claim(min(half) > 0.95, "the half that is paler or mirrored is found by construction")
small = torch.stack([found[k, 8] for k in SEEDS])
whole = torch.stack([found[k, 32] for k in SEEDS])
ahead = small.mean(1).min() > whole.mean(1).max() + 0.03
claim(ahead, "small pictures find copies better than all pixels")
fifth = 4 * n // 5 - 1
claim(small[:, fifth].min() > whole[:, fifth].max() + 0.05, "at four of five, too")

# %% tags=["headline-result"]
rows = []
runs = {}
for name in ("clean", "copies"):
    for number in SEEDS:
        right = answers[name, number].argmax(1) == test[1]
        runs[name, number] = shares(right, planted[number])
for part in ("with a copy", "the rest", "all"):
    row = [part]
    for name in ("clean", "copies"):
        values = [runs[name, number][part] for number in SEEDS]
        record_spread(f"{name}.{part.split()[-1]}", values)
        row.append(spread(values, ".1%"))
    gains = [100 * (runs["copies", k][part] - runs["clean", k][part]) for k in SEEDS]
    record_spread(f"gain.{part.split()[-1]}", gains)
    rows.append((*row, spread(gains, "+z.1f")))
table(rows, ("test pictures", "copies absent", "copies present", "gain in points"))

# %% tags=["headline-claims"]
with_copy = [runs["copies", k]["with a copy"] for k in SEEDS]
without = [runs["clean", k]["with a copy"] for k in SEEDS]
claim(min(with_copy) > max(without) + 0.05, "a copy raises the accuracy of its picture")
rest = [runs["copies", k]["the rest"] for k in SEEDS]
claim(min(with_copy) > max(rest) + 0.1, "pictures with a copy are ahead of the rest")
gains = [runs["copies", k]["all"] - runs["clean", k]["all"] for k in SEEDS]
claim(sum(gains) / len(SEEDS) > 0.008, "the whole accuracy rises on average")
others = [runs["copies", k]["the rest"] - runs["clean", k]["the rest"] for k in SEEDS]
claim(abs(sum(others)) / len(SEEDS) < 0.03, "the rest moves little on average")

# %% tags=["headline-figure"] alt="Accuracy without and with the copies, two bands of three seeds. For the tenth of the test pictures that gets copies it rises steeply; for the rest the line is nearly level."
_, axes = plt.subplots()
ends = {}
for part, colour in (("with a copy", plots.COLOURS[0]), ("the rest", plots.COLOURS[1])):
    pairs = [[runs[n, k][part] for n in ("clean", "copies")] for k in SEEDS]
    ends[part] = plots.seed_band(axes, [0, 1], torch.tensor(pairs), colour)
    for pair in pairs:
        axes.plot([0, 1], pair, ".", color=colour)
axes.set(xlim=(-0.15, 1.55), ylim=(0.3, 0.9), ylabel="test pictures read right")
axes.set_xticks([0, 1], ["copies absent", "copies present"])
plots.label_ends(axes, ends)
axes.set_axisbelow(True)

# %% tags=["kinds-result"]
rows = []
rise = {}
for turn, how in enumerate(KINDS):
    values = {}
    for name in ("clean", "copies"):
        right = [answers[name, k].argmax(1) == test[1] for k in SEEDS]
        mine = [right[k][chosen[k][turn :: len(KINDS)]].double().mean() for k in SEEDS]
        values[name] = torch.stack(mine)
    rise[how] = (100 * (values["copies"] - values["clean"])).tolist()
    record_spread(f"rise.{how}", rise[how])
    shown = [spread(values[name].tolist(), ".0%") for name in ("clean", "copies")]
    rows.append((how, *shown, spread(rise[how], "+.0f")))
record("kinds.each", len(chosen[0]) // len(KINDS))
claim(min(rise["noisy"]) > max(rise["mirrored"]) + 8, "noisy copies help more")
table(rows, ("copies", "copies absent", "copies present", "gain in points"))

# %% tags=["levels-result"]
to_coarse = coarse_of(train100)
rows = []
for number in SEEDS:
    said = answers["clean", number].argmax(1)
    fine = (said == test[1]).double().mean().item()
    coarse = (to_coarse[said] == to_coarse[test[1]]).double().mean().item()
    claim(coarse >= fine, "a right fine answer is a right coarse answer")
    rows.append((number, fine, coarse))
claim(min(row[2] - row[1] for row in rows) > 0.2, "the coarse one is far ahead here")
record_spread("level.fine", [row[1] for row in rows])
record_spread("level.coarse", [row[2] for row in rows])
rows = [(f"seed {n}", f"{fine:.1%}", f"{coarse:.1%}") for n, fine, coarse in rows]
table(rows, ("run", "fine class right", "coarse class right"))

# %% [markdown]
# ## ImageNet beside it
#
# Folders of JPEG files, named by WordNet ids.


# %% tags=["folders"]
def read_folders(root: Path) -> tuple[list[str], list[int], list[str]]:
    """Paths, labels, WordNet ids: a label is the place of a folder in sorted order."""
    ids = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    paths = []
    labels = []
    for label, name in enumerate(ids):
        for file in sorted((root / name).glob("*.JPEG")):
            paths.append(str(file))
            labels.append(label)
    if not paths:
        raise ValueError(
            f"{root} has no n*/*.JPEG: extract the archive of each class first"
        )
    return paths, labels, ids


# %% tags=["folders-result"]
PHOTOGRAPHS = {"n02123159": "chelsea", "n07920052": "coffee", "n03773504": "rocket"}
for wordnet, name in PHOTOGRAPHS.items():
    (root / "imagenet" / wordnet).mkdir(parents=True)
    photograph = Image.fromarray(photographs[name].permute(1, 2, 0).numpy())
    photograph.save(root / "imagenet" / wordnet / f"{wordnet}_1.JPEG")
paths, labels, ids = read_folders(root / "imagenet")
theirs = ImageFolder(root / "imagenet")
claim(theirs.samples == list(zip(paths, labels)), "ImageFolder gives the same pairs")
claim(theirs.classes == ids, "and the same order")
table(
    [(i, PHOTOGRAPHS[i], k) for k, i in enumerate(ids)],
    ("WordNet id", "photograph", "label"),
)

# %% tags=["resolution"] alt="The photograph of a cup of coffee twice: at 224 by 224 pixels cup, spoon and foam are clear, at 32 by 32 pixels the cup is a bright ring of squares and the spoon a few of them."
_, axes = plt.subplots(1, 2, figsize=(5, 2.5))
square = photographs["coffee"][:, :, 100:500][None].float() / 255
for one, side in zip(axes, (224, 32)):
    small = F.interpolate(square, size=(side, side), mode="bilinear", antialias=True)
    one.imshow(small[0].permute(1, 2, 0).clamp(0, 1))
    one.set_xlabel(f"{side}×{side}")
    one.set(xticks=[], yticks=[])
axes[0].set_axisbelow(True)

# %% [markdown]
# ## What we saw
#
# - A record of the binary files is one or two labels and three planes of 1,024 bytes;
#   the pickles hold the same bytes, and a pickle from elsewhere may run anything.
# - Near copies of test pictures in the training part raise the accuracy on these
#   pictures and leave that on the others about where it was.
# - Small standardised copies of the pictures find most of them.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
in_a_file = {}
for name, n_labels in (("CIFAR-10", 1), ("CIFAR-100", 2)):
    in_a_file[name] = 10_000 * (n_labels + 3 * 32 * 32)

# %% tags=["solution-1-result"]
size = (root / "test.bin").stat().st_size
claim(
    size == len(test100.fine) * (in_a_file["CIFAR-100"] // 10_000),
    "our file has as many",
)
table(in_a_file.items(), ("binary version of", "bytes for 10,000 pictures"))


# %% tags=["solution-2"]
class Mirroring(nn.Module):
    """A network that sees half of its training pictures mirrored."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
            x = torch.where(mirrored, x.flip(-1), x)
        return self.network(x)


# %% tags=["solution-2-run"]
mirrored_copies = plant(train, test, chosen[0], kinds=("mirrored",))
seed(0)
network = Mirroring(SmallNetwork(num_classes)).to(device)
optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
schedule = training.one_cycle(optimizer, EPOCHS * math.ceil(len(train[1]) / 50))
training.fit(network, mirrored_copies, EPOCHS, optimizer, schedule=schedule)
right = training.predict(network, test[0]).argmax(1) == test[1]
mirroring = shares(right, planted[0])

# %% tags=["solution-2-result"]
clean = runs["clean", 0]
gain = 100 * (mirroring["with a copy"] - clean["with a copy"])
record("mirroring.gain", gain)
of_rest = 100 * (mirroring["the rest"] - clean["the rest"])
record("mirroring.rest", of_rest)
claim(gain > of_rest + 5, "with mirroring the mirrored copies help")
rows = [("no copies, no mirroring", clean), ("mirrored copies, mirroring", mirroring)]
parts = ("with a copy", "the rest")
rows = [(name, *(f"{shown[part]:.1%}" for part in parts)) for name, shown in rows]
table(rows, ("training", "the tenth", "the rest"))

# %% tags=["solution-3"]
summed = {}
for number in SEEDS:
    chances = answers["clean", number].softmax(1)
    of_coarse = torch.zeros(len(chances), int(to_coarse.max()) + 1)
    of_coarse.index_add_(1, to_coarse, chances)
    right = of_coarse.argmax(1) == to_coarse[test[1]]
    summed[number] = right.double().mean().item()

# %% tags=["solution-3-result"]
mapped = []
for number in SEEDS:
    said = answers["clean", number].argmax(1)
    mapped.append((to_coarse[said] == to_coarse[test[1]]).double().mean().item())
rows = [("of the best fine class", spread(mapped, ".1%"))]
rows.append(("of the largest sum", spread(list(summed.values()), ".1%")))
table(rows, ("the coarse class", "right"))


# %% tags=["solution-4"]
@torch.no_grad()
def seen_by(network: SmallNetwork, x: Tensor) -> Tensor:
    """What the convolutions of a network make of pictures, each row of length 1."""
    where = network.classifier.weight.device
    with workbench.evaluating(network):
        rows = [network.features(4 * (p.to(where) - 0.5)).cpu() for p in x.split(500)]
    return F.normalize(torch.cat(rows))


# %% tags=["solution-4-run"]
describe = partial(seen_by, networks[0])
distance = nearest(test[0], with_copies[0][0], describe)
by_features = precision_at_hits(distance, planted[0]).mean().item()

# %% tags=["solution-4-result"]
by_picture = found[0, 8].mean().item()
claim(by_features < by_picture - 0.1, "this network's features find fewer copies")
record("finder.features", by_features)
rows = [
    ("8x8 pictures", f"{by_picture:.2f}"),
    ("features of the network", f"{by_features:.2f}"),
]
table(rows, ("compared as", "average precision"))
