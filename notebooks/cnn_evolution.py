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
# # Evolution of CNNs
#
# The ways to split a convolution: which kernel each still has, what it costs and who
# hears whom. Then small networks of standard and of split layers, MobileNet, and where
# nine networks of torchvision spend their cost.
# The text to it is the [chapter](../chapters/cnn_evolution.rst).

# %%
import copy
import math
from collections import Counter

import matplotlib.pyplot as plt
import torch
import torchvision
from timm.models.efficientnet import mobilenetv1_100 as timm_mobilenet
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import claim, device, evaluating, record, record_spread, seed, spread
from workbench import checks, counting, drawing, images, plots, table, training

# %% [markdown]
# ## Ask a layer what it is
#
# One helper makes every convolution of this page: no bias, and padding that keeps the
# map.


# %% tags=["conv"]
def conv(c_in: int, c_out: int, *, size=(3, 3), groups: int = 1, stride: int = 1):
    """A convolution with a kernel of (rows, columns), both odd, without bias."""
    padding = (size[0] // 2, size[1] // 2)
    return nn.Conv2d(c_in, c_out, size, stride, padding, groups=groups, bias=False)


# %% [markdown]
# A picture that holds a single 1 makes a convolution show its kernel.

# %% tags=["single-one"]
layer = conv(1, 1)
with torch.no_grad():
    layer.weight.copy_(torch.arange(1.0, 10.0).view(1, 1, 3, 3))
picture = torch.zeros(1, 1, 5, 5)
picture[0, 0, 2, 2] = 1
layer(picture).detach()[0, 0]

# %% [markdown]
# The kernel comes out turned round, since torch slides it without turning. With a 1 in
# one channel after the other we read off what all outputs do with all inputs.


# %% tags=["dense-kernel"]
@torch.no_grad()
def dense_kernel(layers: nn.Module, c_in: int, *, size: int = 3) -> Tensor:
    """Kernel (c_out, c_in, size, size) of the one convolution that layers are."""
    ones = torch.eye(c_in).view(c_in, c_in, 1, 1)  # picture m: a 1 in channel m
    answers = layers(F.pad(ones, 4 * [size // 2]))  # (c_in, c_out, size, size)
    return answers.flip(2, 3).transpose(0, 1)


# %% [markdown]
# ## The kinds


# %% tags=["spatial"]
class SpatiallySeparable(nn.Module):
    """A column of weights, then a row."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.column = conv(c_in, c_out, size=(3, 1))
        self.row = conv(c_out, c_out, size=(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.row(self.column(x))  # (B, c_in, H, W) -> (B, c_out, H, W)


# %% tags=["separable"]
class DepthwiseSeparable(nn.Module):
    """Look around in each channel alone, then mix the channels of each pixel."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.depthwise = conv(c_in, c_in, groups=c_in)
        self.pointwise = conv(c_in, c_out, size=(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(x)  # (B, c_in, H, W)
        return self.pointwise(x)  # (B, c_out, H, W)


# %% tags=["separable-shape"]
DepthwiseSeparable(24, 48)(torch.randn(2, 24, 13, 10)).shape


# %% tags=["shuffle"]
class Shuffle(nn.Module):
    """Deal the channels out: first the first ones of all groups, then the second ones.

    Zhang et al. 2017, section 3.1. No weights; (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        assert C % self.groups == 0, "groups must divide the number of channels"
        x = x.view(B, self.groups, C // self.groups, H, W)  # (B, g, C / g, H, W)
        return x.transpose(1, 2).reshape(B, C, H, W)  # (B, C, H, W)


# %% tags=["shuffle-run"]
Shuffle(3)(torch.arange(6).view(1, 6, 1, 1)).flatten()


# %% tags=["kinds"]
def pointwise(c_in: int, c_out: int) -> nn.Module:
    return conv(c_in, c_out, size=(1, 1))


def grouped(c_in: int, c_out: int, *, groups: int = 4) -> nn.Module:
    return conv(c_in, c_out, groups=groups)


def depthwise(c_in: int, c_out: int) -> nn.Module:
    return conv(c_in, c_out, groups=c_in)


def shuffled(c_in: int, c_out: int, *, groups: int = 4) -> nn.Module:
    layer = grouped(c_in, c_out, groups=groups)
    return nn.Sequential(layer, Shuffle(groups))


KINDS = {
    "standard": conv,
    "spatially separable": SpatiallySeparable,
    "grouped": grouped,
    "shuffled": shuffled,
    "depthwise separable": DepthwiseSeparable,
    "pointwise": pointwise,
    "depthwise": depthwise,
}


# %% tags=["drawing-kernels"]
def draw_tiles(axes, kernel: Tensor, title: str) -> None:
    """An empty frame for each pair of channels: outputs are rows, inputs columns."""
    c_out, c_in = kernel.shape[:2]
    for n in range(c_out):
        for m in range(c_in):
            corner = (m + 0.06, n + 0.06)
            frame = plt.Rectangle(corner, 0.88, 0.88, fill=False, ec=plots.GRID)
            axes.add_patch(frame)
    axes.set(xlim=(0, c_in), ylim=(c_out, 0), aspect="equal")
    axes.set_title(title, fontsize=11)
    axes.axis("off")


def draw_extent(axes, kernel: Tensor, title: str) -> None:
    """In each tile a box over the places where the kernel is not zero."""
    draw_tiles(axes, kernel, title)
    step = 0.88 / kernel.shape[-1]
    for n, m in kernel.any(3).any(2).nonzero().tolist():
        rows, columns = kernel[n, m].nonzero().T
        top = int(rows.min())
        left = int(columns.min())
        height = int(rows.max()) - top + 1
        width = int(columns.max()) - left + 1
        corner = (m + 0.06 + step * left, n + 0.06 + step * top)
        size = (step * width, step * height)
        box = plt.Rectangle(corner, *size, color=plots.COLOURS[0], linewidth=0)
        axes.add_patch(box)


def draw_values(axes, kernel: Tensor, title: str) -> None:
    """In each tile the weights: blue above zero, orange below; small ones are pale."""
    draw_tiles(axes, kernel, title)
    step = 0.88 / kernel.shape[-1]
    largest = kernel.abs().amax((0, 2, 3))  # of each column
    for n, m, i, j in kernel.nonzero().tolist():
        value = kernel[n, m, i, j]
        colour = plots.COLOURS[0] if value > 0 else plots.COLOURS[1]
        shade = (colour, float(value.abs() / largest[m]))
        corner = (m + 0.06 + step * j, n + 0.06 + step * i)
        axes.add_patch(plt.Rectangle(corner, step, step, color=shade, linewidth=0))


# %% tags=["kinds-figure"] alt="Eight grids of six by six tiles, one tile for each pair of output channel, a row, and input channel, a column. Standard 3x3: all tiles filled, 324 weights. 3x1: a standing bar in each tile, 108. 1x3: a lying bar in each tile, 108. 1x1: a dot in each tile, 36. Grouped: three full blocks of two by two tiles on the diagonal, 108. Depthwise: the diagonal only, 54. Shuffle: one dot in each row and column, no weights. Shuffled: the rows of the blocks dealt out, 108."
seed(0)
shown = {
    "3×3": conv(6, 6),
    "3×1": conv(6, 6, size=(3, 1)),
    "1×3": conv(6, 6, size=(1, 3)),
    "1×1": pointwise(6, 6),
    "grouped": grouped(6, 6, groups=3),
    "depthwise": depthwise(6, 6),
    "shuffle": Shuffle(3),
    "shuffled": shuffled(6, 6, groups=3),
}
_, grid = plt.subplots(2, 4, figsize=(5, 3.3))
for axes, (name, layer) in zip(grid.flat, shown.items()):
    title = f"{name}\n{counting.parameters(layer)} weights"
    draw_extent(axes, dense_kernel(layer, 6), title)
plt.show()

# %% tags=["kinds-claims"]
weights = (324, 108, 108, 36, 108, 54, 0, 108)
for (name, layer), number in zip(shown.items(), weights):
    claim(counting.parameters(layer) == number, f"{name}: {number} weights")

# %% tags=["kinds-shapes"]
found = {name: dense_kernel(layer, 6) != 0 for name, layer in shown.items()}
bar = torch.zeros(3, 3, dtype=torch.bool)
bar[:, 1] = True
dot = bar & bar.T
blocks = torch.block_diag(*[torch.ones(2, 2)] * 3).bool()
diagonal = torch.eye(6).bool()
dealt = [0, 2, 4, 1, 3, 5]

# %% tags=["kinds-shape-claims"]
claim(found["3×3"].all(), "the standard kernel is full")
claim((found["3×1"] == bar).all(), "3×1: a standing bar in each tile")
claim((found["1×3"] == bar.T).all(), "1×3: a lying bar in each tile")
claim((found["1×1"] == dot).all(), "1×1: a dot in each tile")
tiles = {"grouped": blocks, "depthwise": diagonal, "shuffled": blocks[dealt]}
for name, filled in tiles.items():
    expected = filled.view(6, 6, 1, 1).expand(6, 6, 3, 3)
    claim(torch.equal(found[name], expected), f"{name}: full tiles at these places")
expected = diagonal[dealt].view(6, 6, 1, 1) & dot
claim(torch.equal(found["shuffle"], expected), "shuffle: one dot a row and column")

# %% [markdown]
# The weights themselves: in a depthwise separable pair all outputs read an input
# through one pattern. Its pointwise weights are set by hand, so that this is plain.

# %% tags=["patterns-figure"] alt="Two grids of four rows, the outputs, and three columns, the inputs; each tile holds nine weights in blue and orange. Left, standard: twelve different patterns. Right, depthwise separable: in each column one pattern four times, strong in two rows and pale in two, and in two rows with blue and orange exchanged."
seed(1)
pair = {"standard": conv(3, 4), "depthwise separable": DepthwiseSeparable(3, 4)}
mixing = torch.tensor([[1, -0.5, 0.5], [-0.5, 1, -1], [-1, -1, 1], [0.5, 0.5, -0.5]])
with torch.no_grad():
    pair["depthwise separable"].pointwise.weight.copy_(mixing.view(4, 3, 1, 1))
_, grid = plt.subplots(1, 2, figsize=(5, 3))
for axes, (name, layer) in zip(grid, pair.items()):
    draw_values(axes, dense_kernel(layer, 3), name)
plt.show()

# %% tags=["patterns-claims"]
for name, rank in (("standard", 4), ("depthwise separable", 1)):
    by_input = dense_kernel(pair[name], 3).transpose(0, 1).flatten(2)  # (3, 4, 9)
    found = torch.linalg.matrix_rank(by_input)
    claim((found == rank).all(), f"{name}: {rank} independent patterns an input")
claim(((mixing < 0).sum(0) == 2).all(), "in two rows the colours are exchanged")
claim(((mixing.abs() == 1).sum(0) == 2).all(), "two rows are strong, two are pale")
every = dense_kernel(pair["standard"], 3).flatten(0, 1).flatten(1)  # (12, 9)
every = F.normalize(every)
alike = (every @ every.T).abs().fill_diagonal_(0).max()
claim(alike < 0.9, "standard: no two of the twelve patterns are multiples")

# %% [markdown]
# ## Cost
#
# By hand, and counted on torch's meta device, where a tensor has a shape and no values.


# %% tags=["cost"]
def cost(c_in: int, c_out: int, *, size, groups: int = 1, H: int, W: int) -> int:
    """MACs of one convolution with an output map of H x W (equation 1 of the page)."""
    rows, columns = size
    return rows * columns * (c_in // groups) * c_out * H * W


# %% tags=["cost-by-hand"]
sizes = {"c_in": 64, "c_out": 64, "H": 56, "W": 56}
square = cost(**sizes, size=(3, 3))
spatial = cost(**sizes, size=(3, 1)) + cost(**sizes, size=(1, 3))
four = cost(**sizes, size=(3, 3), groups=4)
alone = cost(**sizes, size=(3, 3), groups=64)
mixing = cost(**sizes, size=(1, 1))

# %% tags=["cost-table"]
by_hand = (square, spatial, four, four, alone + mixing, mixing, alone)
rows = []
for (name, kind), expected in zip(KINDS.items(), by_hand):
    with torch.device("meta"):
        layer = kind(64, 64)
        x = torch.empty(1, 64, 56, 56)
    macs = counting.macs(layer, x)
    claim(macs == expected, f"{name}: the formula gives the MACs that are counted")
    share = f"{macs / square:.3f}"
    rows.append((name, counting.parameters(layer), f"{macs / 1e6:.1f}", share))
table(rows, ("kind", "weights", "M MACs", "of standard"))

# %% [markdown]
# ## Who can take whose place?
#
# One layer with random weights is the teacher. A student of each kind learns from its
# answers to pictures of noise. What is left is the part of the teacher that the student
# cannot compute.

# %% tags=["learn-from"]
STEPS = 80
SEEDS = (0, 1, 2)


def left_over(teacher: nn.Module, student: nn.Module, c_in: int) -> Tensor:
    """Mean squared difference on noise, as a share of the variance of the teacher."""
    x = torch.randn(16, c_in, 8, 8, device=next(student.parameters()).device)
    wanted = teacher(x).detach()
    return F.mse_loss(student(x), wanted) / wanted.var()


def learn_from(teacher: nn.Module, student: nn.Module) -> float:
    """Train a student on new noise in each step; what is left in the end."""
    optimizer = torch.optim.Adam(student.parameters(), lr=0.06)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.06, total_steps=STEPS)
    for _ in range(STEPS):
        loss = left_over(teacher, student, 8)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return loss.item()


# %% tags=["headline"]
LEARNT = ("standard", "spatially separable", "grouped", "depthwise separable")
left = {}
for teacher_kind in LEARNT:
    for student_kind in LEARNT:
        for number in SEEDS:
            seed(number)
            teacher = KINDS[teacher_kind](8, 8).to(device)
            student = KINDS[student_kind](8, 8).to(device)
            found = learn_from(teacher, student)
            left.setdefault((teacher_kind, student_kind), []).append(found)

# %% [markdown]
# How little can be left is known without training: the nearest kernel of each form
# comes from singular values, and that of the groups from leaving weights out.


# %% tags=["least-left"]
def cut_off(matrices: Tensor, rank: int) -> float:
    """Share of the squares that the nearest matrices of this rank leave."""
    energy = torch.linalg.svdvals(matrices) ** 2
    return float(energy[..., rank:].sum() / energy.sum())


def least_left(kernel: Tensor, groups: int = 4) -> dict[str, float]:
    """Share of a kernel (N, M, 3, 3) that the nearest one of each form leaves."""
    N, M = kernel.shape[:2]
    by_place = kernel.permute(1, 2, 0, 3).reshape(M * 3, N * 3)
    by_input = kernel.transpose(0, 1).flatten(2)  # (M, N, 9)
    squares = (kernel**2).sum((2, 3))  # (N, M)
    blocks = torch.block_diag(*[torch.ones(N // groups, M // groups)] * groups)
    return {
        "standard": 0.0,
        "spatially separable": cut_off(by_place, N),
        "grouped": float((squares * (1 - blocks)).sum() / squares.sum()),
        "depthwise separable": cut_off(by_input, 1),
    }


# %% tags=["least-claims"]
gaps = {kind: [] for kind in LEARNT}
for (teacher_kind, student_kind), values in left.items():
    for number, found in zip(SEEDS, values):
        seed(number)
        teacher = KINDS[teacher_kind](8, 8)
        least = least_left(dense_kernel(teacher, 8))[student_kind]
        gaps[teacher_kind].append(abs(found - least))
record("left.gap", max(gaps["standard"]))
claim(max(gaps["standard"]) < 0.04, "the standard teacher: students reach the least")
claim(max(map(max, gaps.values())) < 0.08, "the others: all students come near it")

# %% tags=["headline-figure"] alt="A table of four rows, the teachers, and four columns, the students: standard, spatially separable, grouped, depthwise separable, with 576, 384, 144 and 136 weights. On the diagonal and in the first column 0 percent is left. In the row of the standard teacher spatially separable leaves least, then depthwise separable, then grouped. No other cell is below 5 percent."
_, axes = plt.subplots(figsize=(5, 3.2))
for y, kind in enumerate(LEARNT):
    name = kind.replace(" ", "\n")
    weights = counting.parameters(KINDS[kind](8, 8))
    axes.text(-0.1, y + 0.5, name, ha="right", va="center", fontsize=11)
    axes.text(y + 0.5, -0.1, f"{name}\n{weights}", ha="center", fontsize=11)
    for x, student_kind in enumerate(LEARNT):
        share = sum(left[kind, student_kind]) / len(SEEDS)
        shade = (plots.COLOURS[1], 0.6 * share)
        corner = (x + 0.03, y + 0.04)
        axes.add_patch(plt.Rectangle(corner, 0.94, 0.92, color=shade, linewidth=0))
        axes.text(x + 0.5, y + 0.5, f"{share:.0%}", ha="center", va="center")
axes.set(xlim=(-1.1, 4), ylim=(4, -1.2))
axes.axis("off")
plt.show()

# %% tags=["headline-claims"]
for (teacher_kind, student_kind), values in left.items():
    name = f"{teacher_kind.split()[0]}.{student_kind.split()[0]}"
    record_spread(f"left.{name}", values)
    if student_kind in ("standard", teacher_kind):
        words = f"a {student_kind} student learns a {teacher_kind} teacher"
        claim(max(values) < 0.005, words)
    else:
        words = f"a {student_kind} student does not learn a {teacher_kind} teacher"
        claim(min(values) > 0.05, words)
weights = [counting.parameters(KINDS[kind](8, 8)) for kind in LEARNT]
claim(weights == [576, 384, 144, 136], "the weights of the four students")
thin, four, pair = (left["standard", kind] for kind in LEARNT[1:])
claim(max(thin) < min(pair), "a column and a row leave less than a separable pair")
claim(max(pair) < min(four), "a separable pair leaves less than four groups")

# %% [markdown]
# ## Small networks at equal cost
#
# Four layers of one kind on maps of 8x8 and 4x4 pixels, with batch norm and ReLU behind
# each. The stem reads 2x2 pixels at a time, so that what lies farther apart has to be
# combined by the layers compared.


# %% tags=["small"]
def with_norm(layer: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(layer, nn.BatchNorm2d(channels))


class SmallNetwork(nn.Module):
    """Stem, four layers of one kind, mean, linear: (B, 3, H, W) -> (B, 10)."""

    def __init__(self, kind, width: int):
        super().__init__()
        stem = nn.Conv2d(3, width, 2, stride=2, bias=False)
        self.stem = with_norm(stem, width)
        self.layer1 = with_norm(kind(width, 2 * width), 2 * width)
        self.layer2 = with_norm(kind(2 * width, 2 * width), 2 * width)
        self.layer3 = with_norm(kind(2 * width, 4 * width), 4 * width)
        self.layer4 = with_norm(kind(4 * width, 4 * width), 4 * width)
        self.classifier = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))  # (B, w, H / 2, W / 2)
        x = torch.relu(self.layer1(x))  # (B, 2 w, H / 2, W / 2)
        x = torch.relu(self.layer2(x))  # (B, 2 w, H / 2, W / 2)
        x = F.max_pool2d(x, 2)  # (B, 2 w, H / 4, W / 4)
        x = torch.relu(self.layer3(x))  # (B, 4 w, H / 4, W / 4)
        x = torch.relu(self.layer4(x))  # (B, 4 w, H / 4, W / 4)
        return self.classifier(x.mean((2, 3)))  # (B, 10)


# %% tags=["data"]
IMAGES = 2400
data = images.digits(16, channels=3)
train_part = (data.train[0][:IMAGES], data.train[1][:IMAGES])
record("images", len(train_part[1]))
parts = {"train": train_part, "test": data.test}
table(
    [(name, *x.shape) for name, (x, _) in parts.items()], ("part", "N", "C", "H", "W")
)

# %% tags=["train"]
EPOCHS = 3
BATCH = 100
RUNS = (0, 1, 2, 3)
NETWORKS = (("standard", 8), ("depthwise separable", 8), ("standard", 3))


def train(network: nn.Module, part) -> nn.Module:
    """SGD; the rate rises for 30 % of the steps and falls to about nothing."""
    steps = EPOCHS * math.ceil(len(part[1]) / BATCH)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    training.fit(network, part, EPOCHS, optimizer, batch=BATCH, schedule=schedule)
    return network


# %% tags=["runs"]
networks = {}
scores = {}
for kind, width in NETWORKS:
    for number in RUNS:
        seed(number)
        network = train(SmallNetwork(KINDS[kind], width).to(device), train_part)
        networks[kind, width, number] = network
        right = training.evaluate(network, data.test)
        scores.setdefault((kind, width), []).append(right)

# %% tags=["result"]
rows = []
kmacs = {}
x = torch.empty(1, 3, 16, 16, device="meta")
for kind, width in NETWORKS:
    network = SmallNetwork(KINDS[kind], width).to("meta")
    macs = counting.macs(network, x) / 1e3
    kmacs[kind, width] = macs
    name = f"{kind.split()[0]}{width}"
    record(f"{name}.kmacs", macs)
    record_spread(name, scores[kind, width])
    right = spread(scores[kind, width], ".1%")
    rows.append((kind, width, counting.parameters(network), f"{macs:.0f}", right))
table(rows, ("layers", "width", "parameters", "k MACs", "test accuracy"))

# %% tags=["result-claims"]
dear, split, narrow = (scores[network] for network in NETWORKS)
claim(
    min(dear) > max(split), "at equal width standard is right more often, seeds apart"
)
overlap = min(split) <= max(narrow) and min(narrow) <= max(split)
claim(overlap, "at about equal MACs the ranges touch")
record("epochs", EPOCHS)
record("batch", BATCH)
record("saving", kmacs["standard", 8] / kmacs["depthwise separable", 8])

# %% [markdown]
# ## Equal to dense kernels
#
# The kernels that the layers answer with, now written down from their weights.


# %% tags=["as-dense"]
def separable_product(depthwise: Tensor, pointwise: Tensor) -> Tensor:
    """W[n, m] = P[n, m] D[m], of D (c_in, 1, k, k) and P (c_out, c_in, 1, 1)."""
    return pointwise * depthwise.transpose(0, 1)  # (c_out, c_in, k, k)


def spatial_product(column: Tensor, row: Tensor) -> Tensor:
    """W[n, m] = sum_r v[r, m] h[n, r], of (R, c_in, k, 1) and (c_out, R, 1, k)."""
    return torch.einsum("rmi,nrj->nmij", column[..., 0], row[:, :, 0])


# %% tags=["with-kernel"]
@torch.no_grad()
def with_kernel(weight: Tensor) -> nn.Conv2d:
    """The standard convolution that has this kernel (c_out, c_in, k, k)."""
    c_out, c_in = weight.shape[:2]
    layer = conv(c_in, c_out, size=tuple(weight.shape[2:]))
    layer.weight.copy_(weight)
    return layer


# %% [markdown]
# ## Sobel's kernel, a column times a row

# %% tags=["sobel"]
column = torch.tensor([1.0, 2.0, 1.0]).view(1, 1, 3, 1)
row = torch.tensor([1.0, 0.0, -1.0]).view(1, 1, 1, 3)
sobel = spatial_product(column, row)
claim(torch.linalg.matrix_rank(sobel[0, 0]) == 1, "Sobel's kernel has rank one")
steps = nn.Sequential(with_kernel(column), with_kernel(row))
sobel[0, 0]


# %% [markdown]
# ## Who hears whom


# %% tags=["reach"]
def reach(layers: nn.Module, c_in: int) -> Tensor:
    """Boolean (c_out, c_in): which inputs an output depends on, at any pixel.

    For linear layers with random weights, where nothing cancels.
    """
    return (dense_kernel(layers, c_in) != 0).any(3).any(2)


# %% tags=["reach-table"]
seed(0)
rows = []
heard = {}
for groups in (2, 4, 8, 16):
    for name, kind in (("grouped", grouped), ("shuffled", shuffled)):
        layers = [kind(64, 64, groups=groups) for _ in range(3)]
        for depth in (1, 2, 3):
            stack = nn.Sequential(*layers[:depth])
            heard[name, groups, depth] = reach(stack, 64).sum(1)  # of each output
        found = [int(heard[name, groups, depth][0]) for depth in (1, 2, 3)]
        rows.append((f"{name}, {groups} groups", *found))
table(rows, ("of 64 channels, each output hears", "1 layer", "2 layers", "3 layers"))

# %% tags=["reach-claims"]
for (name, groups, depth), channels in heard.items():
    share = 64 // groups
    expected = share if name == "grouped" else min(64, share**depth)
    words = f"{name}, {groups} groups, {depth} layers: each output hears {expected}"
    claim((channels == expected).all(), words)
record("reach.grouped8", int(heard["grouped", 8, 2][0]))
record("reach.shuffled8", int(heard["shuffled", 8, 2][0]))
record("reach.shuffled16", int(heard["shuffled", 16, 2][0]))


# %% tags=["drawing-flow"]
def draw_flow(axes, layers: list[nn.Module], C: int, title: str) -> None:
    """Channels as columns of dots; in colour what the top output hears."""
    needed = torch.arange(C) == 0
    draw_dots(axes, len(layers), needed)
    for i in reversed(range(len(layers))):
        connected = reach(layers[i], C)
        for n, m in connected.nonzero().tolist():
            style = {"color": plots.GRID, "linewidth": 1, "zorder": 1}
            if needed[n]:
                style = {"color": plots.COLOURS[1], "linewidth": 1.5, "zorder": 2}
            axes.plot([i, i + 1], [m, n], **style)
        needed = connected[needed].any(0)
        draw_dots(axes, i, needed)
        name = "shuffle" if isinstance(layers[i], Shuffle) else "grouped"
        axes.text(i + 0.5, C - 0.1, name, ha="center", va="top", fontsize=11)
    axes.set(ylim=(C + 0.5, -0.6), title=title)
    axes.axis("off")


def draw_dots(axes, place: int, needed: Tensor) -> None:
    colours = [plots.COLOURS[1] if on else plots.QUIET for on in needed]
    axes.scatter([place] * len(needed), range(len(needed)), color=colours, s=30)


# %% tags=["flow-figure"] alt="Two diagrams of nine channels in three groups, as columns of dots joined by lines. Left, two grouped layers: what reaches the top output comes from the three channels of the top group only. Right, a shuffle between the two layers: the lines to the top output fan out over three groups and reach all nine inputs."
seed(0)
first = conv(9, 9, size=(1, 1), groups=3)
second = conv(9, 9, size=(1, 1), groups=3)
_, axes = plt.subplots(1, 2, figsize=(5, 3.2), gridspec_kw={"width_ratios": (2, 3)})
draw_flow(axes[0], [first, second], 9, "without")
draw_flow(axes[1], [first, Shuffle(3), second], 9, "with a shuffle")
own_group = reach(nn.Sequential(first, second), 9)[0].nonzero().flatten().tolist()
claim(own_group == [0, 1, 2], "without a shuffle an output hears its own group")
all_heard = reach(nn.Sequential(first, Shuffle(3), second), 9)[0].all()
claim(all_heard, "with a shuffle it hears all nine channels")
plt.show()

# %% [markdown]
# ## A network of one kind: MobileNet
#
# Depthwise separable convolutions everywhere but in the first layer. Unlike our pair,
# the block of the paper has batch norm and ReLU behind both halves.


# %% tags=["blocks"]
def norm_relu(layer: nn.Conv2d) -> nn.Sequential:
    """A convolution, batch norm, and the clipped ReLU of the authors' code."""
    return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU6())


class SeparableBlock(nn.Module):
    """Depthwise 3x3, then pointwise (Howard et al. 2017, figure 3, right)."""

    def __init__(self, c_in: int, c_out: int, *, stride: int = 1):
        super().__init__()
        self.depthwise = norm_relu(conv(c_in, c_in, groups=c_in, stride=stride))
        self.pointwise = norm_relu(conv(c_in, c_out, size=(1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(x)  # (B, c_in, H / stride, W / stride)
        return self.pointwise(x)  # (B, c_out, H / stride, W / stride)


class FullBlock(nn.Module):
    """The standard convolution that it replaces (figure 3, left)."""

    def __init__(self, c_in: int, c_out: int, *, stride: int = 1):
        super().__init__()
        self.conv = norm_relu(conv(c_in, c_out, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)


# %% tags=["mobilenet"]
def stage(block, n: int, *, c_in: int, c_out: int, stride: int) -> nn.Sequential:
    """n blocks; the first takes the stride and changes the number of channels."""
    first = block(c_in, c_out, stride=stride)
    later = [block(c_out, c_out) for _ in range(n - 1)]
    return nn.Sequential(first, *later)


class MobileNet(nn.Module):
    """Stem, five stages, mean, linear: (B, 3, H, W) -> (B, num_classes).

    Howard et al. 2017, table 1. It prints stride 2 in the last depthwise layer, but a
    map of 7x7 before and behind it: the stride is 1, as in timm.
    """

    def __init__(self, block=SeparableBlock, *, num_classes: int = 1000):
        super().__init__()
        self.stem = norm_relu(conv(3, 32, stride=2))
        self.stage1 = stage(block, 1, c_in=32, c_out=64, stride=1)
        self.stage2 = stage(block, 2, c_in=64, c_out=128, stride=2)
        self.stage3 = stage(block, 2, c_in=128, c_out=256, stride=2)
        self.stage4 = stage(block, 6, c_in=256, c_out=512, stride=2)
        self.stage5 = stage(block, 2, c_in=512, c_out=1024, stride=2)
        self.classifier = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, 32, H / 2, W / 2)
        x = self.stage1(x)  # (B, 64, H / 2, W / 2)
        x = self.stage2(x)  # (B, 128, H / 4, W / 4)
        x = self.stage3(x)  # (B, 256, H / 8, W / 8)
        x = self.stage4(x)  # (B, 512, H / 16, W / 16)
        x = self.stage5(x)  # (B, 1024, H / 32, W / 32)
        return self.classifier(x.mean((2, 3)))  # (B, num_classes)


# %% tags=["drawn"] alt="MobileNet from top to bottom, with output shape and parameters at the right: an input of 3x224x224, the stem of 32 channels, five stages of 1, 2, 2, 6 and 2 blocks whose maps shrink from 112 to 7 pixels a side while the channels grow from 64 to 1024, and the linear layer to 1000."
with torch.device("meta"):
    mobilenet = MobileNet()
    full = MobileNet(FullBlock)
    x = torch.empty(1, 3, 224, 224)
drawing.draw(mobilenet, x)

# %% tags=["mobilenet-count"]
rows = []
for name, network in (("separable", mobilenet), ("full", full)):
    parameters = counting.parameters(network)
    macs = counting.macs(network, x)
    record(f"mobilenet.{name}.parameters", parameters)
    record(f"mobilenet.{name}.mmacs", macs / 1e6)
    rows.append((name, parameters, f"{macs / 1e6:,.1f}"))
table(rows, ("MobileNet with blocks", "parameters", "M MACs"))

# %% tags=["pairs"]
seed(0)
thin = SpatiallySeparable(24, 48)
pair = DepthwiseSeparable(24, 48)
written = {
    "spatially separable": spatial_product(thin.column.weight, thin.row.weight),
    "depthwise separable": separable_product(
        pair.depthwise.weight, pair.pointwise.weight
    ),
    "Sobel, column then row": sobel,
}

# %% tags=["equal-pairs"]
rows = []
deviations = []
for (name, kernel), layers in zip(written.items(), (thin, pair, steps)):
    c_in = kernel.shape[1]
    same = checks.deviation(dense_kernel(layers, c_in), kernel.detach()) < 1e-6
    claim(same, f"{name}: the kernel read off is the one written down")
    x = torch.randn(2, c_in, 13, 10)
    deviations.append(checks.same_outputs(layers, with_kernel(kernel), x))
    rows.append((name, "one dense kernel", f"{deviations[-1]:.1e}"))

# %% tags=["equal"]
seed(0)
theirs = checks.randomise_norms(timm_mobilenet())
ours = MobileNet()
checks.transplant(theirs, ours)
deviations.append(checks.same_outputs(ours, theirs, torch.randn(2, 3, 75, 97)))
rows.append(("MobileNet", "timm's mobilenetv1_100", f"{deviations[-1]:.1e}"))
record("deviation", max(deviations))
table(rows, ("layers", "reference", "largest difference"))

# %% [markdown]
# ## Where the cost lies
#
# Nine networks of torchvision and MobileNet, each layer by its kind.

# %% tags=["by-kind"]
ORDER = ("linear", "5×5+", "3×3", "1×n", "1×1", "grouped", "depthwise")


def kind_of(layer: nn.Module) -> str:
    """The column of a convolution or linear layer in the table of shares."""
    if isinstance(layer, nn.Linear):
        return "linear"
    if layer.groups > 1:
        return "depthwise" if layer.groups == layer.in_channels else "grouped"
    rows, columns = layer.kernel_size
    if rows != columns:
        return "1×n"
    return {1: "1×1", 3: "3×3"}.get(rows, "5×5+")


def macs_by_kind(network: nn.Module, x: Tensor) -> Counter:
    """MACs of one forward pass for one image; biases and batch norm do not count."""
    macs = Counter()

    def note(layer, inputs, output):
        for_one_value = layer.weight[0].numel()
        macs[kind_of(layer)] += for_one_value * output[0].numel()

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad(), evaluating(network):
        network(x)
    for handle in handles:
        handle.remove()
    return macs


# %% tags=["nine"]
NINE = {
    "alexnet": "AlexNet",
    "vgg16": "VGG-16",
    "googlenet": "GoogLeNet",
    "inception_v3": "Inception-v3",
    "resnet50": "ResNet-50",
    "densenet121": "DenseNet-121",
    "resnext50_32x4d": "ResNeXt-50",
    "mobilenet_v2": "MobileNetV2",
    "shufflenet_v2_x1_0": "ShuffleNetV2",
}
NO_HEADS = {"aux_logits": False, "init_weights": False}
ARGUMENTS = {"googlenet": NO_HEADS, "inception_v3": NO_HEADS}
SIDES = {"inception_v3": 299}


def built(name: str) -> tuple[nn.Module, Tensor]:
    """One of the nine and an image of the size its paper uses, on the meta device."""
    side = SIDES.get(name, 224)
    with torch.device("meta"):
        network = torchvision.models.get_model(name, **ARGUMENTS.get(name, {}))
        return network, torch.empty(1, 3, side, side)


# %% tags=["nine-count"]
rows = []
by_kind = {}
for builder, name in NINE.items():
    network, x = built(builder)
    parameters = counting.parameters(network)
    macs = counting.macs(network, x)
    by_kind[name] = macs_by_kind(network, x)
    claim(by_kind[name].total() == macs, f"{name}: the kinds make up the whole")
    record(f"{builder}.parameters", parameters)
    record(f"{builder}.gmacs", macs / 1e9)
    rows.append((name, parameters, f"{macs / 1e9:.3f}"))
table(rows, ("network", "parameters", "G MACs"))

# %% tags=["shares"]
by_kind["MobileNet"] = macs_by_kind(mobilenet, torch.empty(1, 3, 224, 224).to("meta"))
names = [*NINE.values()]
names.insert(names.index("MobileNetV2"), "MobileNet")
shares = {}
for name in names:
    whole = by_kind[name].total()
    shares[name] = {kind: by_kind[name][kind] / whole for kind in ORDER}
record("mobilenet.pointwise", shares["MobileNet"]["1×1"])
record("mobilenet.depthwise", shares["MobileNet"]["depthwise"])
record("mobilenet.stem", shares["MobileNet"]["3×3"])

# %% tags=["shares-figure"] alt="A table of ten networks in rows, from AlexNet to ShuffleNetV2, and seven kinds of layer in columns; each cell shows its percentage of the network's multiply-accumulates, the larger the darker. The largest cell of a row moves to the right: 3x3 in AlexNet, VGG-16, GoogLeNet and Inception-v3, 1x1 from ResNet-50 on, with more than 85 percent in the last four rows."
_, axes = plt.subplots(figsize=(5, 4.1))
for y, name in enumerate(names):
    axes.text(-0.1, y + 0.5, name, ha="right", va="center", fontsize=11)
    for i, share in enumerate(shares[name].values()):
        colour = (plots.COLOURS[0], 0.55 * share + 0.03 * (share > 0))
        corner = (i + 0.04, y + 0.06)
        axes.add_patch(plt.Rectangle(corner, 0.92, 0.88, color=colour, linewidth=0))
        text = f"{share:.0%}" if share >= 0.005 else "<1%" if share else ""
        axes.text(i + 0.5, y + 0.5, text, ha="center", va="center", fontsize=11)
for i, kind in enumerate(ORDER):
    head = {"depthwise": "depth-\nwise", "grouped": "groups"}.get(kind, kind)
    axes.text(i + 0.5, -0.1, head, ha="center", va="bottom", fontsize=11)
axes.set(xlim=(-2.3, 7), ylim=(10, -1.1))
axes.axis("off")
plt.show()

# %% tags=["shares-claims"]
largest = [max(shares[name], key=shares[name].get) for name in names]
claim(largest == ["3×3"] * 4 + ["1×1"] * 6, "the largest share of each network")
later = names.index("ResNeXt-50")
mixing = [shares[name]["1×1"] for name in names]
record("shares.mixing", min(mixing[later:]))
claim(min(mixing[later:]) > 0.85, "from ResNeXt-50 on 1x1 has more than 85 percent")
claim(max(mixing[:later]) < 0.85, "before it 1x1 has less than that")

# %% [markdown]
# ## Ideas and years
#
# The year is that of the first public version.

# %% tags=["map"]
LANES = ("kernel", "1×1", "groups", "paths")
MAP = {  # year: lane, network, idea
    1998: [(0, "LeNet-5", "5×5, shared")],
    2012: [(0, "AlexNet", "11×11 to 3×3"), (2, "(AlexNet)", "2 groups")],
    2013: [(1, "NiN", "1×1, mean")],
    2014: [
        (0, "VGG", "3×3, deep"),
        (1, "GoogLeNet", "1×1 first"),
        (3, "(GoogLeNet)", "parallel"),
    ],
    2015: [
        (0, "Inception-v3", "1×n, n×1"),
        (1, "(ResNet)", "bottleneck"),
        (3, "ResNet", "add"),
    ],
    2016: [
        (2, "Xception", "1 channel each"),
        (2, "ResNeXt", "32 groups"),
        (3, "DenseNet", "concatenate"),
    ],
    2017: [
        (2, "MobileNet", "1 channel each"),
        (2, "ShuffleNet", "+ shuffle"),
        (3, "SENet", "multiply"),
    ],
    2018: [(2, "MobileNetV2", "widened block"), (2, "ShuffleNetV2", "split, shuffle")],
}

# %% tags=["map-figure"] alt="A map with time downwards, 1998 to 2018, and four columns, in each of which the networks stand at their years. Kernel: LeNet-5, AlexNet, VGG, Inception-v3. 1x1: NiN, GoogLeNet, ResNet's bottleneck. Groups: AlexNet's two, Xception, ResNeXt, MobileNet, ShuffleNet, MobileNetV2, ShuffleNetV2. Paths: GoogLeNet's parallel ones, ResNet adds, DenseNet concatenates, SENet multiplies. From 2016 on no name is added under kernel and 1x1."
_, axes = plt.subplots(figsize=(5, 6.2))
y = 0.0
middle = {"ha": "center", "va": "center"}
for i, lane in enumerate(LANES):
    axes.text(i + 0.5, -0.7, lane, weight="bold", **middle)
for year, entries in MAP.items():
    axes.axhline(y - 0.35, color=plots.GRID, linewidth=1)
    axes.text(-0.52, y + 0.15, str(year), va="center", color=plots.QUIET)
    used = Counter()
    for lane, name, idea in entries:
        x = lane + 0.5
        below = y + used[lane]
        axes.text(x, below, name, fontsize=10.5, **middle)
        blue = {"fontsize": 10, "color": plots.COLOURS[0]}
        axes.text(x, below + 0.36, idea, **blue, **middle)
        used[lane] += 0.85
    y += max(used.values()) + 0.25
axes.set(xlim=(-0.55, 4.05), ylim=(y - 0.3, -1))
axes.axis("off")
late = {lane for year, entries in MAP.items() if year > 2015 for lane, _, _ in entries}
claim(late == {2, 3}, "from 2016 on the map adds groups and paths only")
plt.show()


# %% [markdown]
# ## Solutions to the exercises

# %% tags=["solution-1"]
M = 32
N = 64
side = 112
depthwise_half = 9 * M * side**2
pointwise_half = M * N * side**2
whole = 9 * M * N * side**2

# %% tags=["solution-1-result"]
x = torch.empty(1, M, side, side, device="meta")
both = counting.macs(DepthwiseSeparable(M, N).to("meta"), x)
claim(depthwise_half + pointwise_half == both, "the MACs by hand are those counted")
claim(abs(both / whole - 1 / N - 1 / 9) < 1e-12, "the share is 1 / N + 1 / 9")
claim(pointwise_half > 0.8 * both, "the pointwise half has most of it")
record("first.share", both / whole)
halves = [("depthwise", depthwise_half), ("pointwise", pointwise_half)]
rows = [*halves, ("together", both), ("standard", whole)]
table(rows, ("first block of MobileNet", "MACs"))


# %% tags=["solution-2"]
class PointwiseFirst(nn.Module):
    """Mix the channels of each pixel, then look around in each channel."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.pointwise = conv(c_in, c_out, size=(1, 1))
        self.depthwise = conv(c_out, c_out, groups=c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.depthwise(self.pointwise(x))  # (B, c_in, H, W) -> (B, c_out, H, W)


# %% tags=["solution-2-result"]
seed(0)
turned = PointwiseFirst(24, 48)
pair = DepthwiseSeparable(24, 48)
kernel = turned.depthwise.weight * turned.pointwise.weight  # D[n] P[n, m]
x = torch.randn(2, 24, 9, 8)
record("turned.deviation", checks.same_outputs(turned, with_kernel(kernel), x))
x = torch.empty(1, 24, 56, 56, device="meta")
rows = [("depthwise first", counting.macs(pair.to("meta"), x))]
rows.append(("pointwise first", counting.macs(turned.to("meta"), x)))
claim(rows[1][1] > rows[0][1], "from 24 to 48 channels pointwise first costs more")
table(rows, ("24 to 48 channels, 56×56", "MACs"))


# %% tags=["terms"]
@torch.no_grad()
def separable_terms(layer: nn.Conv2d, r: int) -> nn.Sequential:
    """The nearest sum of r depthwise separable kernels, by singular values."""
    N, M = layer.weight.shape[:2]
    by_input = layer.weight.transpose(0, 1).flatten(2)  # (M, N, 9)
    U, S, patterns = torch.linalg.svd(by_input, full_matrices=False)
    space = conv(M, M * r, groups=M)
    channels = conv(M * r, N, size=(1, 1))
    mixing = (U * S.unsqueeze(1))[..., :r].transpose(0, 1)  # (N, M, r)
    space.weight.copy_(patterns[:, :r].reshape(M * r, 1, 3, 3))
    channels.weight.copy_(mixing.reshape(N, M * r, 1, 1))
    return nn.Sequential(space, channels).to(layer.weight.device)


def factorised(network: SmallNetwork, r: int) -> SmallNetwork:
    """A copy of a standard network with r separable terms for each 3x3 kernel."""
    split = copy.deepcopy(network)
    for part in (split.layer1, split.layer2, split.layer3, split.layer4):
        part[0] = separable_terms(part[0], r)
    return split


# %% tags=["measured-again"]
@torch.no_grad()
def measured_again(network: nn.Module, x: Tensor) -> nn.Module:
    """A copy whose batch norms have the mean and variance that they see on x."""
    renewed = copy.deepcopy(network).train()
    for norm in renewed.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0  # the old statistics count nothing
    renewed(x)
    return renewed.eval()


# %% tags=["solution-3"]
rows = []
terms = {}
renewed = {}
x = train_part[0][:800].to(device)
for r in (1, 2, 4, 9):
    split = [factorised(networks["standard", 8, n], r) for n in RUNS]
    again = [measured_again(network, x) for network in split]
    terms[r] = [training.evaluate(network, data.test) for network in split]
    renewed[r] = [training.evaluate(network, data.test) for network in again]
    macs = counting.macs(split[0], torch.zeros(1, 3, 16, 16, device=device)) / 1e3
    found = (spread(terms[r], ".1%"), spread(renewed[r], ".1%"))
    rows.append((str(r), f"{macs:.0f}", *found))

# %% tags=["solution-3-result"]
record("renewing", len(x))
dense = scores["standard", 8]
rows.append(("dense", f"{kmacs['standard', 8]:.0f}", spread(dense, ".1%"), ""))
table(rows, ("terms", "k MACs", "norms of the dense", "norms measured again"))

# %% tags=["terms-claims"]
for r in (1, 4):
    record_spread(f"terms{r}", terms[r])
    record_spread(f"renewed{r}", renewed[r])
    words = f"{r} terms: right more often with the norms measured again"
    claim(min(renewed[r]) > max(terms[r]), words)
pairs = zip(terms[9], dense)
same = all(abs(a - b) < 0.005 for a, b in pairs)
claim(same, "nine terms are right as often as the dense kernels, to half a point")

# %% tags=["separable-claims"]
words = "trained as separable is better than one term cut out, seeds apart"
claim(min(scores["depthwise separable", 8]) > max(terms[1] + renewed[1]), words)
claim(min(terms[4]) > max(terms[1]), "four terms are right more often than one")
claim(min(renewed[4]) > max(renewed[1]), "with the norms measured again as well")


# %% [markdown]
# ## What we saw
#
# - Each way to split a convolution computes some dense kernel: with zeros, with shared
#   patterns, or of low rank.
# - A student of one kind cannot learn a teacher of another, unless it is a standard
#   layer.
# - On digits depthwise separable networks of the same width cost a sixth and were right
#   less often.
# - The largest share of the MACs moves from 3x3 to 1x1 in ten networks.
