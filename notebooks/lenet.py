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
# # LeNet-5
#
# Why a network for images looks through small windows: trained on few digits beside a
# network that does not, then built as its paper of 1998 describes it, down to each
# connection. The text to it is the [chapter](../chapters/lenet.rst), the paper is
# [LeCun et al. 1998](http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf).

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, drawing, images, plots, tracing

# %% [markdown]
# ## Data
#
# Handwritten digits of 28x28 pixels, from 0 (paper) to 1 (ink). We train on the first
# 1,000.

# %% tags=["data"]
data = images.digits(size=28)
x_train, y_train = (t[:1000].to(device) for t in data.train)
x_validation, y_validation = (t.to(device) for t in data.validation)
x_test, y_test = (t.to(device) for t in data.test)
parts = {"train": x_train, "validation": x_validation, "test": x_test}
for name, x in parts.items():
    record(f"data.{name}", len(x))
table([(name, *x.shape) for name, x in parts.items()], ("part", "N", "C", "H", "W"))

# %% [markdown]
# ## A window that moves
#
# A unit of a feature map multiplies the pixels of its window by the weights of the map
# and adds up. The next unit does the same one pixel further on.


# %% tags=["convolve"]
def convolve(image: Tensor, weights: Tensor, bias: float) -> Tensor:
    """A feature map: one sum for each place of the window (section II-A).

    (H, W), weights (h, w) -> (H - h + 1, W - w + 1)
    """
    H, W = image.shape
    h, w = weights.shape
    sums = image.new_empty(H - h + 1, W - w + 1)
    for i in range(H - h + 1):
        for j in range(W - w + 1):
            window = image[i : i + h, j : j + w]
            sums[i, j] = (weights * window).sum() + bias
    return sums


# %% tags=["convolve-run"] alt="A handwritten digit in white on black; beside it its map, grey where nothing changes, with light lines at the left edges of the strokes and dark lines at the right edges."
edge = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])
digit = x_train[0, 0].cpu()
digit_map = convolve(digit, edge, 0.0)
claim(digit_map.shape == (27, 27), "the map has a side of 27")
_, (left, right) = plt.subplots(1, 2, figsize=(4, 2))
left.imshow(digit)
right.imshow(digit_map, vmin=-2, vmax=2)
for axes in (left, right):
    axes.axis("off")

# %% tags=["row"]
row = torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]])
moved_row = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0]])
pair = torch.tensor([[-1.0, 1.0]])
row_map = convolve(row, pair, 0.0)
moved_row_map = convolve(moved_row, pair, 0.0)
claim(
    (row_map[:, :5] == moved_row_map[:, 2:]).all(), "the map moves along by two units"
)
claim(
    row_map[0].tolist() == [0, 1, 0, 0, -1, 0, 0],
    "1 where a stroke begins, -1 where it ends",
)
two_maps = torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]])
two_kernels = torch.tensor([[[-1.0, 1.0]], [[2.0, 1.0]]])
claim((two_maps * two_kernels).sum() == (0 + 1) + (2 + 1), "two maps by hand")
# What the restrictions save in the first layer of LeNet-5, 6 maps over 32x32 pixels
units = 6 * 28 * 28
record("c1.full", units * (32 * 32 + 1))
record("c1.local", units * (5 * 5 + 1))
record("c1.shared", 6 * (5 * 5 + 1))


# %% tags=["draw-grid"]
def draw_grid(axes, left: float, top: float, values: Tensor, side: float) -> None:
    """Numbers in boxes, from (rows, columns); left, top and side in inches."""
    for i, line in enumerate(values.tolist()):
        for j, value in enumerate(line):
            x = left + j * side
            y = top + i * side
            box = plt.Rectangle((x, y), side, side, fill=False, edgecolor=plots.QUIET)
            axes.add_patch(box)
            style = {"weight": "bold"} if value else {"color": plots.QUIET}
            text = f"{value:g}".replace("-", "−").replace("0.25", "¼")
            axes.text(
                x + side / 2, y + side / 2, text, ha="center", va="center", **style
            )


# %% tags=["row-figure"] alt="Two rows of eight pixels, each with its map of seven units below. In the first row three pixels of ink stand in the middle; the map is 1 where they begin, minus 1 where they end and 0 elsewhere. In the second row the ink stands two pixels further right, and so do the 1 and the minus 1. A frame around two pixels and a line to the unit below them show one window."
axes = diagrams.sheet(3.0)
for top, pixels, units in ((0.1, row, row_map), (1.7, moved_row, moved_row_map)):
    axes.text(0.05, top + 0.23, "pixels", va="center")
    axes.text(0.05, top + 1.03, "map", va="center")
    draw_grid(axes, 0.9, top, pixels, 0.45)
    draw_grid(axes, 1.125, top + 0.8, units, 0.45)
    begin = 0.9 + 0.45 * units[0].argmax().item()
    frame = plt.Rectangle((begin, top), 0.9, 0.45, fill=False, linewidth=2.5)
    frame.set_edgecolor(plots.COLOURS[1])
    axes.add_patch(frame)
    middle = [begin + 0.45, begin + 0.45]
    axes.plot(middle, [top + 0.45, top + 0.8], color=plots.COLOURS[1])

# %% [markdown]
# ## Subsampling
#
# Four neighbours become one unit: here their mean.

# %% tags=["mean-figure"] alt="Three maps of two rows and six columns with a single 1, in the third, the fourth and the fifth column, and below each the three means of two by two units. The first two maps give the same means, 0, a quarter and 0; the third gives 0, 0 and a quarter."
axes = diagrams.sheet(1.55)
for place, column in enumerate((2, 3, 4)):
    found = torch.zeros(2, 6)
    found[0, column] = 1
    means = F.avg_pool2d(found[None, None], 2)[0, 0]
    draw_grid(axes, 0.1 + 1.7 * place, 0.1, found, 0.23)
    draw_grid(axes, 0.1 + 1.7 * place, 0.95, means, 0.46)

# %% [markdown]
# ## Two networks
#
# A perceptron, which connects each unit to every pixel, and a common simplified form of
# LeNet-5. They have about the same number of parameters.


# %% tags=["perceptron"]
class Perceptron(nn.Module):
    """A hidden layer whose units see all pixels: (B, 1, 28, 28) -> (B, 10)."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(28 * 28, 75)
        self.output = nn.Linear(75, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.hidden(x.flatten(1)))  # (B, 75)
        return self.output(x)  # (B, 10)


# %% tags=["simplified"]
class SimplifiedLeNet5(nn.Module):
    """LeNet-5 with the layers of today: (B, 1, 28, 28) -> (B, 10)."""

    def __init__(self):
        super().__init__()
        self.C1 = nn.Conv2d(1, 6, 5, padding=2)
        self.S2 = nn.AvgPool2d(2)
        self.C3 = nn.Conv2d(6, 16, 5)
        self.S4 = nn.AvgPool2d(2)
        self.C5 = nn.Linear(16 * 5 * 5, 120)
        self.F6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.S2(torch.tanh(self.C1(x)))  # (B, 6, 14, 14)
        x = self.S4(torch.tanh(self.C3(x)))  # (B, 16, 5, 5)
        x = torch.tanh(self.C5(x.flatten(1)))  # (B, 120)
        x = torch.tanh(self.F6(x))  # (B, 84)
        return self.output(x)  # (B, 10)


# %% tags=["simplified-run"]
SimplifiedLeNet5()(torch.rand(7, 1, 28, 28)).shape

# %% tags=["two-counts"]
lenet = SimplifiedLeNet5()
perceptron = Perceptron()
record("simplified.parameters", counting.parameters(lenet))
record("simplified.macs", counting.macs(lenet, torch.zeros(1, 1, 28, 28)))
record("perceptron.parameters", counting.parameters(perceptron))
ratio = counting.parameters(lenet) / counting.parameters(perceptron)
claim(0.95 < ratio < 1.05, "their parameters differ by less than a twentieth")

# %% [markdown]
# ## Training
#
# The loop of this book, and how the answers are judged.


# %% tags=["fit"]
def fit(model, x, y, *, epochs, optimizer, schedule, loss=F.cross_entropy, batch=50):
    """Train on images x with labels y; return the mean loss of each epoch."""
    losses = []
    model.train()
    for _ in range(epochs):
        total = 0.0
        order = torch.randperm(len(y)).to(y.device)
        for chosen in order.split(batch):
            value = loss(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            total += value.item() * len(chosen)
        losses.append(total / len(y))
    return losses


# %% tags=["train"]
STEPS = 150


def train(model, x, y, *, steps=STEPS, rate=0.1):
    """Take so many steps of 20 images; the rate falls to zero on a straight line."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    epochs = 20 * steps // len(y)
    return fit(
        model, x, y, epochs=epochs, optimizer=optimizer, schedule=schedule, batch=20
    )


# %% tags=["error"]
@torch.no_grad()
def error(model, x: Tensor, y: Tensor) -> float:
    """Share of the images whose highest score is not that of their label."""
    answers = model.eval()(x).argmax(1)
    return (answers != y).float().mean().item()


# %% tags=["loop-figure"] alt="Boxes in a ring: a batch of images goes into the network, the network gives scores, scores and labels, by an arrow of their own, give the loss, the loss gives the gradients, a step changes the parameters, and an arrow leads back to the next batch."
axes = diagrams.sheet(1.75)
nodes = {
    "batch": diagrams.Node(0.5, 0.35, "batch", width=0.8),
    "network": diagrams.Node(1.85, 0.35, "network", width=0.9),
    "loss": diagrams.Node(3.5, 0.35, "loss", width=0.8),
    "gradients": diagrams.Node(3.5, 1.35, "gradients", width=1.1),
    "step": diagrams.Node(1.85, 1.35, "step", width=0.9),
    "scores": diagrams.Node(2.68, 0.16, "scores", colour=plots.QUIET),
    "labels": diagrams.Node(4.6, 0.35, "labels", colour=plots.QUIET),
    "backward": diagrams.Node(4.0, 0.85, "backward", colour=plots.QUIET),
    "changes": diagrams.Node(2.37, 0.85, "changes it", colour=plots.QUIET),
    "next": diagrams.Node(0.96, 1.16, "next batch", colour=plots.QUIET),
}
ring = [("batch", "network"), ("network", "loss"), ("loss", "gradients")]
ring += [("gradients", "step"), ("step", "network"), ("step", (0.5, 1.35), "batch")]
ring += [("labels", "loss")]
diagrams.draw(axes, nodes, ring)

# %% tags=["headline"]
SIZES = (100, 300, 1000)
SEEDS = (0, 1, 2)
NETWORKS = {"LeNet": SimplifiedLeNet5, "perceptron": Perceptron}
errors = {}
trained = {}
histories = {}
for name, build in NETWORKS.items():
    for size in SIZES:
        for number in SEEDS:
            seed(number)
            model = build().to(device)
            histories[name, size, number] = train(model, x_train[:size], y_train[:size])
            errors[name, size, number] = error(model, x_test, y_test)
            trained[name, size, number] = model

# %% tags=["curve"] alt="Error on the held-out digits against the number of training digits, 100, 300 and 1,000 on a logarithmic axis, mean of three seeds in a band from the smallest to the largest. Both lines fall; the line of LeNet lies below that of the perceptron at each number, and the bands do not touch."
_, axes = plt.subplots()
ends = {}
for name, colour in (("perceptron", plots.COLOURS[1]), ("LeNet", plots.COLOURS[0])):
    runs = torch.tensor([[100 * errors[name, n, s] for n in SIZES] for s in SEEDS])
    ends[name] = plots.seed_band(axes, SIZES, runs, colour)
axes.set(xscale="log", xlabel="training digits", ylabel="error in %", ylim=(0, None))
axes.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
axes.minorticks_off()
plots.label_ends(axes, ends, [plots.COLOURS[1], plots.COLOURS[0]])

# %% tags=["result"]
rows = []
found = {}
for size in SIZES:
    for name in NETWORKS:
        found[name, size] = [errors[name, size, number] for number in SEEDS]
        record_spread(f"{name}.{size}", found[name, size])
    texts = [spread(found[name, size], ".1%") for name in NETWORKS]
    rows.append((f"{size:,}", *texts))
table(rows, ("training digits", "error of LeNet", "error of the perceptron"))

# %% tags=["headline-claims"]
for size in SIZES:
    words = f"with {size} digits LeNet errs less, seeds apart"
    claim(max(found["LeNet", size]) < min(found["perceptron", size]), words)
for name in NETWORKS:
    for few, more in zip(SIZES, SIZES[1:]):
        words = f"the error of the {name} is lower with {more} digits, seeds apart"
        claim(max(found[name, more]) < min(found[name, few]), words)
epochs = histories["LeNet", 1000, 0]
for epoch, value in enumerate(epochs, start=1):
    record(f"loss.epoch{epoch}", value)
record("steps", STEPS)

# %% [markdown]
# ## Pixels in another order
#
# One fixed permutation of the 784 pixels, the same for all digits. It takes no
# information away, but neighbours are neighbours no longer.


# %% tags=["permute"]
def permute(x: Tensor) -> Tensor:
    """Put the pixels of each image into one fixed random order: (N, 1, H, W)."""
    N, C, H, W = x.shape
    order = torch.randperm(H * W, generator=torch.Generator().manual_seed(1998))
    return x.flatten(2)[:, :, order.to(x.device)].view(N, C, H, W)


# %% tags=["permuted-figure"] alt="Six handwritten digits above; below them the same pixels in another order, grey and white specks without any shape."
plots.image_grid([*x_train[:6, 0], *permute(x_train[:6])[:, 0]], columns=6)

# %% tags=["permuted"]
for name, build in NETWORKS.items():
    for number in SEEDS:
        seed(number)
        model = build().to(device)
        train(model, permute(x_train[:300]), y_train[:300])
        errors[name, "permuted", number] = error(model, permute(x_test), y_test)

# %% tags=["permuted-result"]
rows = []
for name in NETWORKS:
    found[name, "permuted"] = [errors[name, "permuted", number] for number in SEEDS]
    record_spread(f"{name}.permuted", found[name, "permuted"])
    texts = [spread(found[name, key], ".1%") for key in (300, "permuted")]
    rows.append((name, *texts))
table(rows, ("network", "pixels in order", "permuted"))

# %% tags=["permuted-claims"]
worse = found["LeNet", "permuted"]
same = found["perceptron", "permuted"]
ordered = found["perceptron", 300]
claim(min(worse) > max(found["LeNet", 300]), "permuting harms LeNet, seeds apart")
claim(min(worse) > max(same), "permuted, the perceptron errs less, seeds apart")
touch = min(same) <= max(ordered) and min(ordered) <= max(same)
claim(touch, "the perceptron in order and permuted are not told apart")

# %% [markdown]
# ## Digits that are moved
#
# The networks of 1,000 digits read held-out digits that are moved to the left and to
# the right.


# %% tags=["move"]
def move(x: Tensor, columns: int, background: float = 0.0) -> Tensor:
    """Move images to the right, by negative columns to the left."""
    return F.pad(x, (columns, -columns), value=background)


# %% tags=["moved"]
MOVES = (0, 1, 2, 3, 4)
moved = {}
for name in NETWORKS:
    for columns in MOVES:
        for number in SEEDS:
            model = trained[name, 1000, number]
            left = error(model, move(x_test, -columns), y_test)
            right = error(model, move(x_test, columns), y_test)
            moved[name, columns, number] = (left + right) / 2

# %% tags=["moved-figure"] alt="Error on the held-out digits against the number of pixels by which they are moved, 0 to 4, mean of three seeds in a band. Both lines rise at each pixel; the line of LeNet starts lower and stays below that of the perceptron."
_, axes = plt.subplots()
ends = {}
for name, colour in (("perceptron", plots.COLOURS[1]), ("LeNet", plots.COLOURS[0])):
    runs = torch.tensor([[100 * moved[name, k, s] for k in MOVES] for s in SEEDS])
    ends[name] = plots.seed_band(axes, MOVES, runs, colour)
axes.set(xlabel="pixels moved", ylabel="error in %", ylim=(0, 100), xticks=MOVES)
plots.label_ends(axes, ends, [plots.COLOURS[1], plots.COLOURS[0]])

# %% tags=["moved-claims"]
for columns in MOVES:
    one = [moved["LeNet", columns, number] for number in SEEDS]
    other = [moved["perceptron", columns, number] for number in SEEDS]
    record_spread(f"LeNet.moved{columns}", one)
    record_spread(f"perceptron.moved{columns}", other)
    claim(max(one) < min(other), f"moved by {columns}, LeNet errs less, seeds apart")
for name, columns, number in moved:
    if columns > 0:
        rises = moved[name, columns, number] > moved[name, columns - 1, number]
        claim(rises, f"the error of the {name} rises at {columns} pixels")

# %% [markdown]
# ## The layers of 1998
#
# The squashing function bounds what a unit gives. The initial weights of a unit shrink
# with the number of its inputs, so that its weighted sum does not grow with it.


# %% tags=["squash"]
def squash(a: Tensor) -> Tensor:
    """f(a) = A tanh(S a) with f(1) = 1 and f(-1) = -1 (equation 6, appendix A)."""
    return 1.7159 * torch.tanh(2 / 3 * a)


# %% tags=["init"]
def as_in_1998(layer: nn.Module) -> nn.Module:
    """Draw weights from within 2.4 / inputs of a unit (appendix A), and biases, too."""
    inputs = layer.weight[0].numel()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -2.4 / inputs, 2.4 / inputs)
    return layer


# %% tags=["subsample"]
class Subsample(nn.Module):
    """Sum of four neighbours, times a coefficient, plus a bias (section II-B)."""

    def __init__(self, channels: int):
        super().__init__()
        self.coefficient = nn.Parameter(torch.empty(channels, 1, 1))
        self.bias = nn.Parameter(torch.empty(channels, 1, 1))
        nn.init.uniform_(self.coefficient, -2.4 / 4, 2.4 / 4)
        nn.init.uniform_(self.bias, -2.4 / 4, 2.4 / 4)

    def forward(self, x: Tensor) -> Tensor:
        # (B, C, H, W) -> (B, C, H / 2, W / 2)
        rows = x[:, :, ::2] + x[:, :, 1::2]
        total = rows[..., ::2] + rows[..., 1::2]
        return self.coefficient * total + self.bias


# %% tags=["subsample-run"]
Subsample(6)(torch.rand(2, 6, 28, 28)).shape

# %% [markdown]
# A map of C3 does not read all six maps of S2: table I of the paper says which.

# %% tags=["table-conv"]
# Table I: the maps of S2, 0 to 5, that each of the 16 maps of C3 reads
C3_TABLE = (
    [0, 1, 2],
    [1, 2, 3],
    [2, 3, 4],
    [3, 4, 5],
    [0, 4, 5],
    [0, 1, 5],
    [0, 1, 2, 3],
    [1, 2, 3, 4],
    [2, 3, 4, 5],
    [0, 3, 4, 5],
    [0, 1, 4, 5],
    [0, 1, 2, 5],
    [0, 1, 3, 4],
    [1, 2, 4, 5],
    [0, 2, 3, 5],
    [0, 1, 2, 3, 4, 5],
)


class TableConv(nn.Module):
    """A 5x5 convolution whose output maps read only the maps that the table names."""

    def __init__(self, table):
        super().__init__()
        self.table = table
        self.convs = nn.ModuleList()
        for maps in table:
            self.convs.append(as_in_1998(nn.Conv2d(len(maps), 1, 5)))

    def forward(self, x: Tensor) -> Tensor:
        # (B, 6, H, W) -> (B, 16, H - 4, W - 4)
        weights = x.new_zeros(16, 6, 5, 5)  # 0 for pairs that the table does not name
        for k, maps in enumerate(self.table):
            weights[k, maps] = self.convs[k].weight[0]
        biases = torch.cat([conv.bias for conv in self.convs])
        return F.conv2d(x, weights, biases)


# %% [markdown]
# The table is read off what the layer does: change one map of S2, see which of C3 move.

# %% tags=["check-table"] alt="A grid of six rows, the maps of S2, and sixteen columns, the maps of C3. Squares mark which map reaches which: three of six in the first six columns, four in the next nine, all six in the last."
seed(0)
layer = TableConv(C3_TABLE)
maps = torch.rand(1, 6, 14, 14)
reached = torch.zeros(6, 16)
for i in range(6):
    changed = maps.clone()
    changed[:, i] += 1
    reached[i] = (layer(changed) != layer(maps)).any(dim=3).any(dim=2)[0]
record("c3.kernels", int(reached.sum()))
named = torch.zeros(6, 16)
for k, maps_read in enumerate(C3_TABLE):
    named[maps_read, k] = 1
claim((reached == named).all(), "the maps that are reached are those of the table")
_, axes = plt.subplots(figsize=(5, 2.1))
inputs, outputs = reached.nonzero(as_tuple=True)
axes.plot(outputs, inputs, "s", markersize=14)
axes.set(xlabel="map of C3", ylabel="map of S2", aspect="equal", ylim=(5.5, -0.5))
_ = axes.set(xticks=range(16), yticks=range(6))

# %% [markdown]
# The ten classes have fixed codes: drawings of 7x12 pixels, read as +1 and -1. The
# drawings are ours.

# %% tags=["codes"]
BITMAPS = """
..###.. ...#... .#####. .#####. ....##. ####### ..####. ####### .#####. ..####.
.##.##. ..##... ##...## ##...## ....##. ##..... .##.... ##...## ##...## .##..##
##...## .###... ##...## .....## ...###. ##..... ##..... .....## ##...## ##...##
##...## ...#... .....## .....## ...#.#. ##..... ##..... ....##. ##...## ##...##
##...## ...#... ....##. .....## ..##.#. ##..... ##..... ....##. .##.##. ##...##
##...## ...#... ....##. ..####. ..#..#. ######. ##.###. ...##.. ..###.. .######
##...## ...#... ...##.. .....## .##..#. .....## ###..## ...##.. .##.##. .....##
##...## ...#... ..##... .....## ####### .....## ##...## ..##... ##...## .....##
##...## ...#... ..##... .....## .....#. .....## ##...## ..##... ##...## .....##
##...## ...#... .##.... .....## .....#. .....## ##...## ..##... ##...## .....##
.##.##. ...#... ##..... ##...## .....#. ##...## .##..## .##.... ##...## ....##.
..###.. .#####. ####### .#####. .....#. .#####. ..####. .##.... .#####. .####..
"""


def digit_codes() -> Tensor:
    """The ten drawings, row by row, as +1 (ink) and -1: (10, 84)."""
    codes = torch.full((10, 12, 7), -1.0)
    for row, line in enumerate(BITMAPS.split("\n")[1:-1]):
        for digit, dots in enumerate(line.split()):
            for column, dot in enumerate(dots):
                if dot == "#":
                    codes[digit, row, column] = 1.0
    return codes.flatten(1)


# %% tags=["distance"]
class CodeDistance(nn.Module):
    """Minus the squared distance to the code of each class (equation 7).

    The minus sign is ours: the highest score is the answer. (B, 84) -> (B, 10)
    """

    def __init__(self, codes: Tensor):
        super().__init__()
        self.register_buffer("codes", codes)  # (10, 84), fixed

    def forward(self, x: Tensor) -> Tensor:
        penalties = (x.unsqueeze(1) - self.codes).square()  # (B, 10, 84)
        return -penalties.sum(dim=2)


# %% tags=["criterion"]
def map_criterion(scores: Tensor, labels: Tensor, j: float) -> Tensor:
    """Mean of y_D + log(exp(-j) + sum_i exp(-y_i)) with y = -scores (equation 9).

    A cross entropy with one class more, whose score is -j. scores (B, K), labels (B,)
    """
    none_of_them = torch.full_like(scores[:, :1], -j)
    return F.cross_entropy(torch.cat((scores, none_of_them), dim=1), labels)


# %% tags=["loss-by-hand"]
y = torch.tensor([[1.0, 4.0]], requires_grad=True)  # penalties; the first is right
loss = map_criterion(-y, torch.tensor([0]), j=2.0)
(slope,) = torch.autograd.grad(loss, y)
by_hand = 1 + math.log(math.exp(-2) + math.exp(-1) + math.exp(-4))
claim(abs(loss.item() - by_hand) < 1e-6, "the loss is equation 9 worked by hand")
claim(slope[0, 0] > 0 and slope[0, 1] < 0, "the right penalty falls, the other rises")
record("hand.loss", loss)
record("hand.right", slope[0, 0])
record("hand.wrong", -slope[0, 1])  # the page writes its sign


# %% tags=["published"]
class LeNet5(nn.Module):
    """The network of 1998 (section II-B, figure 2): (B, 1, 32, 32) -> (B, 10)."""

    def __init__(self):
        super().__init__()
        self.C1 = as_in_1998(nn.Conv2d(1, 6, 5))
        self.S2 = Subsample(6)
        self.C3 = TableConv(C3_TABLE)
        self.S4 = Subsample(16)
        self.C5 = as_in_1998(nn.Conv2d(16, 120, 5))
        self.F6 = as_in_1998(nn.Linear(120, 84))
        self.output = CodeDistance(digit_codes())

    def forward(self, x: Tensor) -> Tensor:
        x = squash(self.C1(x))  # (B, 6, 28, 28)
        x = squash(self.S2(x))  # (B, 6, 14, 14)
        x = squash(self.C3(x))  # (B, 16, 10, 10)
        x = squash(self.S4(x))  # (B, 16, 5, 5)
        x = squash(self.C5(x))  # (B, 120, 1, 1)
        x = squash(self.F6(x.flatten(1)))  # (B, 84)
        return self.output(x)  # (B, 10)


# %% tags=["prepare"]
def as_published(x: Tensor) -> Tensor:
    """Frame of two pixels; paper -0.1, ink 1.175: (N, 1, 28, 28) -> (N, 1, 32, 32)."""
    return F.pad(x, (2, 2, 2, 2)) * 1.275 - 0.1


# %% tags=["published-run"]
published = LeNet5()
published(torch.rand(7, 1, 32, 32)).shape

# %% [markdown]
# ## Counted
#
# A connection is one input of one unit, and a bias counts as one.


# %% tags=["connections"]
def connections_at_one_place(layer: nn.Module) -> int:
    """Connections into the units at one place of the maps, one unit for each map."""
    if isinstance(layer, Subsample):
        return 5 * len(layer.bias)  # four neighbours share a coefficient
    if isinstance(layer, CodeDistance):
        return layer.codes.numel()
    return counting.parameters(layer)  # each parameter works once at each place


def stage_table(model: LeNet5, x: Tensor) -> list[tuple[str, str, int, int]]:
    """Stage, output shape, trainable parameters and connections, from a run on x."""
    rows = []
    for name, shape, parameters in tracing.stages(model, x):
        places = math.prod(shape[1:])
        connections = places * connections_at_one_place(getattr(model, name))
        rows.append((name, "×".join(map(str, shape)), parameters, connections))
    return rows


# %% tags=["counts"]
blank = torch.zeros(1, 1, 32, 32)
rows = stage_table(published, blank)
parameters = {name: number for name, _, number, _ in rows}
connections = {name: number for name, _, _, number in rows}
total = ("all", "", sum(parameters.values()), sum(connections.values()))
table([*rows, total], ("stage", "output", "parameters", "connections"))

# %% tags=["counts-claims"]
record("c3.parameters", parameters["C3"])
claim(parameters["C3"] == 60 * 25 + 16, "C3 has a kernel a pair and a bias a map")
record("published.parameters", counting.parameters(published))
zeros = 36 * 25 * 10 * 10  # products with the weights of C3 that are always 0
record("published.macs", counting.macs(published, blank) - zeros)
record("published.connections", total[3])
claim(total[2:] == (60_000, 340_908), "the totals are those of the paper")
claim(parameters["C5"] > 0.8 * total[2], "C5 has four fifths of the parameters")
most = connections["C1"] + connections["C3"]
claim(most > 0.8 * total[3], "C1 and C3 have four fifths of the connections")

# %% tags=["published-drawing"] alt="Eight blocks from top to bottom, joined by arrows: input, C1, S2, C3, S4, C5, F6, output. The blocks get lower as the maps get smaller and wider as they get more numerous; at the right of each stand its output shape and its parameters."
drawing.draw(published, blank)

# %% [markdown]
# ## The network of 1998, trained
#
# Its penalties are large at the start, and Adam gives each parameter a step of its own.
# The paper's optimiser does that, too.

# %% tags=["published-loss"]
J = 5.0


def published_loss(scores: Tensor, labels: Tensor) -> Tensor:
    return map_criterion(scores, labels, j=J)


# %% tags=["published-train"]
framed = as_published(x_train)
seed(0)
published = LeNet5().to(device)
optimizer = torch.optim.Adam(published.parameters(), lr=0.006)
steps = 300
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
how = {"epochs": 6, "optimizer": optimizer, "schedule": schedule, "batch": 20}
losses = fit(published, framed, y_train, loss=published_loss, **how)

# %% tags=["published-error"]
record("published.error", error(published, as_published(x_test), y_test))
record("input.mean", framed.mean())
record("input.variance", framed.var())

# %% [markdown]
# ## Checked
#
# Each piece against a second way to compute it.


# %% tags=["sixteen"]
def sixteen_convolutions(layer: TableConv, x: Tensor) -> Tensor:
    """What a TableConv gives, by one convolution over its maps for each output."""
    outputs = []
    for conv, maps in zip(layer.convs, layer.table):
        outputs.append(conv(x[:, maps]))
    return torch.cat(outputs, dim=1)


# %% tags=["equal-maps"]
published = published.cpu().eval().requires_grad_(False)
x = as_published(data.validation[0])
c1 = squash(published.C1(x))
s2 = squash(published.S2(c1))
c3 = squash(published.C3(s2))
moved_x = move(x, 4, background=-0.1)
moved_c1 = squash(published.C1(moved_x))
moved_s2 = squash(published.S2(moved_c1))

# %% tags=["equal-result"]
map_0 = convolve(x[0, 0], published.C1.weight[0, 0], published.C1.bias[0])
four = 4 * published.S2.coefficient * F.avg_pool2d(c1, 2) + published.S2.bias
sixteen = squash(sixteen_convolutions(published.C3, s2))
compared = (
    ("convolve", "torch's convolution", map_0, published.C1(x)[0, 0]),
    ("S2", "four times torch's mean", s2, squash(four)),
    ("C3", "sixteen convolutions", c3, sixteen),
    ("C1 of moved digits", "C1 moved by 4", moved_c1[..., 4:], c1[..., :-4]),
    ("S2 of moved digits", "S2 moved by 2", moved_s2[..., 2:], s2[..., :-2]),
)
rows = []
for what, other, found, expected in compared:
    difference = checks.deviation(found, expected)
    claim(difference < 1e-5, f"{what} is equal to {other}")
    rows.append((what, other, f"{difference:.1e}"))
table(rows, ("part", "against", "largest difference"))

# %% [markdown]
# ## Look inside

# %% tags=["feature-maps"] alt="A digit at the left; beside it six squares of five by five grey cells, the kernels of C1, and below each its map after C1, and below that a coarser map after S2. At the bottom sixteen maps after C3, coarse patterns of light and dark spots."
grid = plt.figure(figsize=(5, 4.6)).add_gridspec(5, 8)
kernels = published.C1.weight.transpose(0, 1)  # (1, 6, 5, 5), as one image of six maps
largest = kernels.abs().max()
pictures = {"kernels": (kernels * 1.72 / largest, 0, 2), "input": (x, 1, 0)}
pictures |= {"C1": (c1, 1, 2), "S2": (s2, 2, 2), "C3": (c3, 3, 0)}
for name, (maps, row, column) in pictures.items():
    for k, picture in enumerate(maps[0]):
        down, right = divmod(k, 8)
        cell = plt.gcf().add_subplot(grid[row + down, column + right])
        cell.imshow(picture, vmin=-1.72, vmax=1.72)
        if k == 0:
            cell.set_title(name, fontsize=11, pad=2)
        cell.axis("off")

# %% tags=["f6"] alt="Three rows of ten pictures: one handwritten digit of each class; the 84 states of F6 for it as a picture of seven by twelve pixels; the code of the class. The pictures of F6 look like the codes below them."
codes = digit_codes()
s4 = squash(published.S4(c3))
f6 = squash(published.F6(squash(published.C5(s4)).flatten(1)))
labels = data.validation[1]
first = [(labels == k).nonzero()[0].item() for k in range(10)]
rows = [x[first].squeeze(1), f6[first].view(10, 12, 7), codes.view(10, 12, 7)]
pictures = [picture for row in rows for picture in row]
plots.image_grid(pictures, columns=10, scale=0.5, vmin=-1.72, vmax=1.72)

# %% tags=["f6-claims"]
agree = (f6.sign() == codes[labels]).float().mean()
record("f6.agree", agree)
same_pixels = (codes.unsqueeze(1) == codes).float().mean(dim=2)  # (10, 10)
between = same_pixels[~torch.eye(10, dtype=torch.bool)]
record("codes.mean", between.mean())
record("codes.most", between.max())
claim(agree > between.max() + 0.05, "closer than any two codes are to each other")

# %% [markdown]
# How much of a move by one pixel is left in each layer of the simplified form? We
# divide the change by the change from one digit to another.


# %% tags=["states"]
def states(model: SimplifiedLeNet5, x: Tensor) -> dict[str, Tensor]:
    """What each layer gives, from the pixels to F6."""
    found = {"pixels": x}
    found["C1"] = torch.tanh(model.C1(x))
    found["S2"] = model.S2(found["C1"])
    found["C3"] = torch.tanh(model.C3(found["S2"]))
    found["S4"] = model.S4(found["C3"])
    found["C5"] = torch.tanh(model.C5(found["S4"].flatten(1)))
    found["F6"] = torch.tanh(model.F6(found["C5"]))
    return found


def distance(a: Tensor, b: Tensor) -> float:
    """Mean distance of the states for two rows of images."""
    return (a - b).flatten(1).norm(dim=1).mean().item()


def share_left(still: Tensor, moved: Tensor) -> float:
    """Change by a move, as a share of that from each image to the one before it."""
    return distance(still, moved) / distance(still, still.roll(1, dims=0))


# %% tags=["left"]
moved_validation = move(x_validation, 1)
left = {}
picked = []
dense = []
for number in SEEDS:
    hidden = trained["perceptron", 1000, number].hidden
    model = trained["LeNet", 1000, number]
    with torch.no_grad():
        still = states(model, x_validation)
        after = states(model, moved_validation)
        rows = [
            torch.tanh(hidden(v.flatten(1))) for v in (x_validation, moved_validation)
        ]
    left[number] = [share_left(still[name], after[name]) for name in still]
    picked.append(share_left(still["C1"][..., ::2, ::2], after["C1"][..., ::2, ::2]))
    dense.append(share_left(*rows))

# %% tags=["left-figure"] alt="Change by a move of one pixel, as a share of the change from one digit to another, for pixels, C1, S2, C3, S4, C5 and F6; three seeds as dots close together, the mean as a line in a band. It begins at about a half and falls to about a fifth."
_, axes = plt.subplots()
runs = torch.tensor([left[number] for number in SEEDS])
plots.seed_band(axes, range(7), runs, plots.COLOURS[0])
for run in runs:
    axes.plot(range(7), run, "o", color=plots.COLOURS[0], alpha=0.6, markersize=5)
axes.set(xticks=range(7), xticklabels=list(still), ylim=(0, None))
_ = axes.set(ylabel="moved by one pixel /\nanother digit")

# %% tags=["left-claims"]
for k, name in enumerate(still):
    record(f"left.{name}", runs[:, k].mean())
record("left.picked", sum(picked) / 3)
record("left.perceptron", sum(dense) / 3)
pairs = list(zip(runs[:, 2].tolist(), picked))
claim(all(mean < one for mean, one in pairs), "the mean leaves less than picking")
claim(all(one - mean < 0.1 for mean, one in pairs), "the mean takes a small part")
claim(max(dense) < runs[:, 0].min(), "the perceptron's hidden layer takes a part")
claim(min(dense) > runs[:, 6].max(), "F6 leaves less than that layer, seeds apart")
claim((runs.diff(dim=1) < 0).all(), "each layer leaves less of the move than the last")
claim((runs[:, 0] - 0.5).abs().max() < 0.05, "it begins at about a half")
claim((runs[:, 6] - 0.2).abs().max() < 0.05, "it falls to about a fifth")

# %% [markdown]
# ## What we saw
#
# - With few digits a network of small windows with shared weights errs less than a
#   perceptron of as many parameters; with the pixels in another order it errs more.
# - The network of 1998, built layer by layer, has the parameters and connections that
#   its paper states.
# - Its last layer learns to draw: F6 comes close to the code of the digit.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
layer = TableConv(C3_TABLE)
maps = torch.rand(1, 6, 14, 14, requires_grad=True)
read = 0
for unit in layer(maps)[0, :, 4, 4]:  # one unit of each of the 16 maps
    (slopes,) = torch.autograd.grad(unit, maps, retain_graph=True)
    read += int((slopes != 0).sum())
number = 10 * 10 * (read + 16)  # places, and a bias for each unit
claim(number == connections["C3"], "slopes that are not 0 are C3's connections")
number

# %% tags=["solution-2"]
full = LeNet5()
full.C3 = TableConv([[0, 1, 2, 3, 4, 5]] * 16)
more = sum(row[3] for row in stage_table(full, blank))
table([(counting.parameters(full), more)], ("parameters", "connections"))

# %% tags=["solution-3"]
seed(0)
inputs = {
    "digits": x,
    "upside down": x.flip(2, 3),
    "noise": as_published(torch.rand(500, 1, 28, 28)),
}
rows = []
rejected = {}
for name, pictures in inputs.items():
    scores = published(pictures)
    eleven = torch.cat((scores, torch.full((len(scores), 1), -J)), dim=1)
    rejected[name] = (eleven.softmax(dim=1)[:, 10] > 0.5).float().mean().item()
    record(f"rejected.{name}", rejected[name])
    rows.append((name, f"{rejected[name]:.0%}"))
claim(min(rejected["upside down"], rejected["noise"]) > 0.85, "nearly all the unusual")
claim(rejected["digits"] > 0.2, "good digits, too")
table(rows, ("input", "rejected"))

# %% tags=["solution-4"]
wide = torch.cat((x[:1], x[1:2]), dim=3)  # (1, 1, 32, 64)
wide = squash(published.C1(wide))
wide = squash(published.S2(wide))
wide = squash(published.C3(wide))
wide = squash(published.S4(wide))
published.C5(wide).shape
