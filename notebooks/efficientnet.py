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
# # EfficientNet
#
# One small network and a rule that makes it larger along three axes at once: built, counted
# and compared with two libraries, then run with weights that were trained on ImageNet. The
# text to it is the [chapter](../chapters/efficientnet.rst), the paper is
# [Tan and Le 2019](https://arxiv.org/abs/1905.11946).

# %%
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import claim, device, record, record_spread, seed, sources, spread, table
from workbench import checks, counting, diagrams, drawing, images, plots, pretrained
from workbench import training

# %% [markdown]
# ## Swish
#
# Where ReLU cuts everything below zero to zero, swish lets a little through. torch calls it
# SiLU.


# %% tags=["swish"]
def swish(x: Tensor) -> Tensor:
    """x times the sigmoid of x."""
    return x * x.sigmoid()


# %% tags=["swish-values"]
x = torch.tensor([-4.0, -1.0, 0.0, 1.0, 4.0])
rows = []
for name, activation in (("ReLU", torch.relu), ("swish", swish)):
    rows.append((name, *(f"{value:.2f}" for value in activation(x).tolist())))
claim(checks.deviation(swish(x), F.silu(x)) < 1e-6, "swish is torch's SiLU")
table(rows, ("x", *(f"{value:.0f}" for value in x.tolist())))

# %% [markdown]
# ## Parts that a variant exchanges
#
# All layers are made from a few parts: which convolution, which batch norm, which
# activation, and whether there is squeeze-and-excitation.


# %% tags=["gate"]
class SqueezeExcitation(nn.Module):
    """Scale each channel by a number in 0..1 computed from the means of all channels.

    Hu et al. 2017, with swish between the two layers.
    """

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.narrow = nn.Conv2d(channels, inner, 1)
        self.widen = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        inner = F.silu(self.narrow(means))  # (B, inner, 1, 1)
        return x * self.widen(inner).sigmoid()  # (B, C, H, W)


# %% tags=["parts"]
@dataclass(frozen=True)
class Parts:
    """What the layers of a network are made of."""

    conv: Callable = nn.Conv2d
    norm: Callable = nn.BatchNorm2d
    activation: Callable = nn.SiLU
    gate: Callable = SqueezeExcitation


def conv_norm(
    c_in: int, c_out: int, size: int, *, stride: int = 1, groups: int = 1, parts: Parts
) -> nn.Sequential:
    """Convolution without bias, then batch norm."""
    how = {"padding": size // 2, "groups": groups, "bias": False}
    return nn.Sequential(
        parts.conv(c_in, c_out, size, stride, **how), parts.norm(c_out)
    )


# %% [markdown]
# ## Stochastic depth
#
# In training the branch of a block is left out for some images, drawn anew in each step.


# %% tags=["stochastic-depth"]
class StochasticDepth(nn.Module):
    """Set whole images to zero with probability p, in training.

    Huang et al. 2016 leave a block out for a whole batch and multiply by 1 - p in
    evaluation; here as in torchvision: for each image, what is kept divided by 1 - p.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - self.p)
        return x * kept / (1 - self.p)  # (B, C, H, W)


# %% tags=["stochastic-depth-run"]
seed(0)
ones = torch.ones(8, 1, 1, 1)
StochasticDepth(0.2)(ones).flatten()

# %% tags=["stochastic-depth-mean"]
mean = StochasticDepth(0.2)(torch.ones(100_000, 1, 1, 1)).mean().item()
claim(abs(mean - 1) < 0.01, "stochastic depth keeps the mean")

# %% [markdown]
# ## MBConv
#
# Widen by a 1x1 convolution, look around channel by channel, weigh the channels, narrow by
# a 1x1 convolution. Where the shapes allow, the input is added.


# %% tags=["row"]
@dataclass(frozen=True)
class Row:
    """One row of table 1: blocks of one kind and width."""

    expansion: int  # channels inside a block / channels of its input
    size: int  # of the depthwise kernel
    stride: int  # of the first block
    c_out: int
    blocks: int


# %% tags=["mbconv"]
class MBConv(nn.Module):
    """Widen, look around, weigh, narrow; no shortcut."""

    def __init__(self, c_in: int, row: Row, *, stride: int = 1, parts: Parts = Parts()):
        super().__init__()
        c_mid = row.expansion * c_in
        self.expand = nn.Identity()
        if row.expansion > 1:
            widen = conv_norm(c_in, c_mid, 1, parts=parts)
            self.expand = nn.Sequential(widen, parts.activation())
        around = conv_norm(
            c_mid, c_mid, row.size, stride=stride, groups=c_mid, parts=parts
        )
        self.depthwise = nn.Sequential(around, parts.activation())
        self.gate = parts.gate(c_mid, c_in // 4)
        self.project = conv_norm(c_mid, row.c_out, 1, parts=parts)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)  # (B, expansion c_in, H, W)
        x = self.depthwise(x)  # (B, expansion c_in, H / stride, W / stride)
        x = self.gate(x)
        return self.project(x)  # (B, c_out, H / stride, W / stride)


class ResidualMBConv(MBConv):
    """x + what the block makes of it, which is sometimes left out in training."""

    def __init__(self, c_in: int, row: Row, *, drop: float = 0, parts: Parts = Parts()):
        super().__init__(c_in, row, parts=parts)
        self.drop = StochasticDepth(drop)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(super().forward(x))  # (B, c_in, H, W)


# %% tags=["mbconv-shape"]
row = Row(expansion=6, size=3, stride=2, c_out=24, blocks=2)
MBConv(16, row, stride=2)(torch.randn(2, 16, 112, 112)).shape


# %% tags=["drawing"]
def draw_block(axes, x: float, title: str, boxes) -> None:
    """Draw (width, text) as boxes below each other, the sum, and the identity."""
    nodes = {"title": diagrams.Node(x, 0.15, title, weight="bold")}
    for number, (width, text) in enumerate(boxes):
        y = 0.55 + 0.57 * number
        nodes[f"box{number}"] = diagrams.Node(x, y, text, width=width)
    nodes["sum"] = diagrams.Node(x, 0.6 + 0.57 * len(boxes), "+")
    names = list(nodes)[1:]
    words = {"text": "identity", "colour": plots.COLOURS[1]}
    nodes["name"] = diagrams.Node(x + 0.6, nodes["sum"].y + 0.2, **words)
    edge = x + nodes["box0"].width / 2
    corners = ((x + 1.1, nodes["box0"].y), (x + 1.1, nodes["sum"].y))
    shortcut = ((edge, nodes["box0"].y), *corners, "sum")
    diagrams.draw(axes, nodes, list(zip(names, names[1:])), [shortcut])


# %% tags=["block-figure"] alt="Two columns of boxes joined by arrows; a wider box has more channels. Left, bottleneck of ResNet: 256 channels, 1x1 to 64, 3x3 at 64, 1x1 to 256, plus. Right, MBConv: 40 channels, 1x1 to 240, depthwise 5x5 at 240, squeeze-and-excitation, 1x1 to 40, plus. In each an arrow named identity runs past the boxes from the input to the plus: it joins the wide ends at the left, the narrow ends at the right."
axes = diagrams.sheet(3.9)
bottleneck = ((1.5, "256"), (0.85, "1×1, 64"), (0.85, "3×3, 64"), (1.5, "1×1, 256"))
wide = ((1.8, "1×1, 240"), (1.8, "depthwise 5×5"), (1.8, "SE"))
draw_block(axes, 0.95, "bottleneck", bottleneck)
draw_block(axes, 3.35, "MBConv", ((0.85, "40"), *wide, (0.85, "1×1, 40")))

# %% [markdown]
# ## The network
#
# Table 1 of the paper: a 3x3 convolution, seven rows of blocks, a 1x1 convolution, the mean
# over the map and a linear layer.


# %% tags=["stage"]
def stage(c_in: int, row: Row, *, drops: list[float], parts: Parts) -> nn.Sequential:
    """The blocks of a row, each with its own probability of being left out."""
    blocks = []
    for number, drop in enumerate(drops):
        stride = row.stride if number == 0 else 1
        if stride == 1 and c_in == row.c_out:
            blocks.append(ResidualMBConv(c_in, row, drop=drop, parts=parts))
        else:
            blocks.append(MBConv(c_in, row, stride=stride, parts=parts))
        c_in = row.c_out
    return nn.Sequential(*blocks)


def stages(c_in: int, rows, *, drop: float = 0.2, parts: Parts) -> nn.Sequential:
    """All rows; blocks are left out with p growing evenly from 0 to almost `drop`."""
    total = sum(row.blocks for row in rows)
    drops = [drop * number / total for number in range(total)]
    made = nn.Sequential()
    for number, row in enumerate(rows, start=1):
        mine = drops[: row.blocks]
        drops = drops[row.blocks :]
        made.add_module(f"stage{number}", stage(c_in, row, drops=mine, parts=parts))
        c_in = row.c_out
    return made


def initialise(network: nn.Module) -> None:
    """Weights of convolutions with variance 2 / fan-out, as in torchvision."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")


# %% tags=["network"]
class EfficientNet(nn.Module):
    """Stem, rows of MBConv, 1x1 convolution, mean, linear layer (table 1).

    (B, 3, H, W) -> (B, num_classes).
    """

    def __init__(
        self,
        rows,
        *,
        stem: int,
        head: int,
        num_classes: int = 1000,
        dropout: float = 0.2,
        parts: Parts = Parts(),
    ):
        super().__init__()
        first = conv_norm(3, stem, 3, stride=2, parts=parts)
        self.stem = nn.Sequential(first, parts.activation())
        self.stages = stages(stem, rows, parts=parts)
        last = conv_norm(rows[-1].c_out, head, 1, parts=parts)
        self.head = nn.Sequential(last, parts.activation())
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(head, num_classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, stem, H / 2, W / 2)
        x = self.stages(x)  # (B, c_out of the last row, H / 32, W / 32)
        return self.head(x)  # (B, head, H / 32, W / 32)

    def forward(self, x: Tensor) -> Tensor:
        means = self.features(x).mean((2, 3))  # (B, head)
        return self.classifier(self.dropout(means))  # (B, num_classes)


# %% tags=["baseline"]
BASELINE = (
    Row(expansion=1, size=3, stride=1, c_out=16, blocks=1),
    Row(expansion=6, size=3, stride=2, c_out=24, blocks=2),
    Row(expansion=6, size=5, stride=2, c_out=40, blocks=2),
    Row(expansion=6, size=3, stride=2, c_out=80, blocks=3),
    Row(expansion=6, size=5, stride=1, c_out=112, blocks=3),
    Row(expansion=6, size=5, stride=2, c_out=192, blocks=4),
    Row(expansion=6, size=3, stride=1, c_out=320, blocks=1),
)

# %% [markdown]
# ## Scaling
#
# A size is three factors: of the channels, of the blocks, and of the side of the image. The
# paper sets all three by one number phi.


# %% tags=["compound"]
ALPHA = 1.2  # depth
BETA = 1.1  # width
GAMMA = 1.15  # side of the image (all three: section 4)


@dataclass(frozen=True)
class Size:
    """How much wider and deeper than B0 a network is, and the images it is for."""

    width: float = 1.0
    depth: float = 1.0
    side: int = 224
    dropout: float = 0.2


def compound(phi: float) -> Size:
    """All three axes from one number (equation 3)."""
    side = round(224 * GAMMA**phi)
    return Size(width=BETA**phi, depth=ALPHA**phi, side=side)


# %% tags=["scaled"]
def channels(wanted: float) -> int:
    """The nearest multiple of 8, or the next if that is less than nine tenths."""
    nearest = max(8, int(wanted + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * wanted else nearest + 8


def efficientnet(size: Size, *, parts: Parts = Parts(), blocks=math.ceil):
    """B0 made wider and deeper; numbers of blocks are rounded up."""
    rows = []
    for row in BASELINE:
        c_out = channels(size.width * row.c_out)
        rows.append(replace(row, c_out=c_out, blocks=blocks(size.depth * row.blocks)))
    stem = channels(size.width * 32)
    head = channels(size.width * 1280)
    return EfficientNet(rows, stem=stem, head=head, dropout=size.dropout, parts=parts)


# %% tags=["sizes"]
PUBLISHED = {  # width, depth, side, dropout: the authors' code
    "B0": Size(1.0, 1.0, 224, 0.2),
    "B1": Size(1.0, 1.1, 240, 0.2),
    "B2": Size(1.1, 1.2, 260, 0.3),
    "B3": Size(1.2, 1.4, 300, 0.3),
    "B4": Size(1.4, 1.8, 380, 0.4),
    "B5": Size(1.6, 2.2, 456, 0.4),
    "B6": Size(1.8, 2.6, 528, 0.5),
    "B7": Size(2.0, 3.1, 600, 0.5),
}


# %% tags=["published"]
def tensorflow_norm(c: int) -> nn.BatchNorm2d:
    """Batch norm with the constants of the authors' code."""
    return nn.BatchNorm2d(c, eps=1e-3, momentum=0.01)


def published(name: str) -> EfficientNet:
    """B0 to B7 as torchvision has them; from B5 on with the authors' batch norm."""
    norm = tensorflow_norm if name in ("B5", "B6", "B7") else nn.BatchNorm2d
    return efficientnet(PUBLISHED[name], parts=Parts(norm=norm))


# %% [markdown]
# ## Counted
#
# On torch's meta device a tensor has a shape and no values: a network can be counted
# without computing anything.


# %% tags=["cost"]
def cost(network_of: Callable, *arguments, side: int, **how) -> tuple[int, int]:
    """Parameters, and MACs of one image of that side."""
    with torch.device("meta"):
        network = network_of(*arguments, **how)
        x = torch.empty(1, 3, side, side)
    return counting.parameters(network), counting.macs(network, x)


# %% tags=["count"]
macs = {}
rows = []
for name, size in PUBLISHED.items():
    parameters, macs[name] = cost(published, name, side=size.side)
    record(f"{name}.parameters", parameters)
    record(f"{name}.macs", macs[name])
    record(f"{name}.gmacs", macs[name] / 1e9)
    ratio = macs[name] / macs["B0"]
    record(f"{name}.ratio", ratio)
    giga = f"{macs[name] / 1e9:.3f}"
    rows.append(
        (name, size.width, size.depth, size.side, parameters, giga, f"{ratio:.1f}")
    )
columns = ("network", "width", "depth", "side", "parameters", "G MACs", "of B0")
table(rows, columns)

# %% tags=["one-axis"]
AXES = {
    "B0": Size(),
    "depth ×2": Size(depth=2.0),
    "width ×2": Size(width=2.0),
    "side ×2": Size(side=448),
}
times = {}
for name, size in AXES.items():
    _, found = cost(efficientnet, size, side=size.side)
    times[name] = found / macs["B0"]
record("double.depth", times["depth ×2"])
record("double.width", times["width ×2"])
record("double.side", times["side ×2"])
claim(1.9 < times["depth ×2"] < 2.1, "twice the depth is about twice the MACs")
for name in ("width ×2", "side ×2"):
    claim(3.7 < times[name] < 4.05, f"{name} is almost four times the MACs")

# %% tags=["axes-figure"] alt="Four towers of bars above squares. B0: three bars above a small square. Depth times 2: six bars of the same width above the same square, about 2 times the MACs. Width times 2: three bars twice as wide above the same square, almost 4 times. Side times 2: three bars above a square of twice the side, 4.0 times."
_, axes = plt.subplots(figsize=(5, 2.6))
axes.set(xlim=(0, 10), ylim=(-2.4, 4.3), aspect="equal")
axes.axis("off")
for place, (name, size) in enumerate(AXES.items()):
    x = 1.2 + 2.55 * place
    half = 0.4 * size.side / 224
    square = plt.Rectangle((x - half, 0.9 - half), 2 * half, 2 * half)
    square.set(facecolor=(plots.QUIET, 0.2), edgecolor=plots.QUIET)
    axes.add_patch(square)
    for level in range(int(3 * size.depth)):
        corner = (x - size.width / 2, 1.9 + 0.36 * level)
        bar = plt.Rectangle(corner, size.width, 0.28, color=plots.COLOURS[0])
        axes.add_patch(bar)
    axes.text(x, -0.75, name, ha="center", va="center")
    words = f"{times[name]:.2f}×"
    axes.text(x, -1.5, words, ha="center", va="center", color=plots.COLOURS[1])
axes.text(5, -2.2, "multiply-accumulates", ha="center", va="center", fontsize=11)
plt.show()

# %% tags=["formula-count"]
PHIS = (1, 3, 5, 7)
base = ALPHA * BETA**2 * GAMMA**2
by_formula = {}
for phi in PHIS:
    size = compound(phi)
    _, found = cost(efficientnet, size, side=size.side)
    by_formula[phi] = found / macs["B0"]
    record(f"formula{phi}", by_formula[phi])
record("base", base)
record("power7", base**7)
record("seven.share", base**7 / 2**7)
for phi in PHIS:
    claim(by_formula[phi] > base**phi, f"counted at phi {phi} is above 1.92^phi")
    above = by_formula[phi] > 2**phi
    claim(above == (phi < 4), f"counted at phi {phi} is on its side of 2^phi")

# %% tags=["crosses"]
for name, size in PUBLISHED.items():
    phi = math.log(size.side / 224) / math.log(GAMMA)
    ratio = macs[name] / macs["B0"]
    record(f"{name}.doubling", 2**phi)
    if name in ("B1", "B2", "B3"):
        claim(ratio > 2**phi, f"{name} costs more than 2^phi")
    elif name != "B0":
        claim(
            0.9 < ratio / base**phi < 1, f"{name} is less than a tenth below 1.92^phi"
        )


# %% tags=["phi-of"]
def phis_of(size: Size) -> list[float]:
    """Each phi, in hundredths, of equation 3 that gives a published size.

    Width and depth rounded to tenths, the side off by ten pixels at most.
    """
    found = []
    for hundredths in range(801):
        made = compound(hundredths / 100)
        same_width = round(made.width, 1) == size.width
        same_depth = round(made.depth, 1) == size.depth
        if same_width and same_depth and abs(made.side - size.side) <= 10:
            found.append(hundredths / 100)
    return found


def log(value: float, base: float) -> float:
    """The power of the base that gives the value, rounded to a tenth."""
    return round(math.log(value) / math.log(base), 1)


# %% tags=["phi-table"]
rows = []
for name, size in PUBLISHED.items():
    single = (
        log(size.depth, ALPHA),
        log(size.width, BETA),
        log(size.side / 224, GAMMA),
    )
    found = phis_of(size)
    words = f"{found[0]:.2f} to {found[-1]:.2f}" if found else "none"
    claim(
        bool(found) == (name in ("B0", "B1", "B2", "B3")), f"{name}: one phi, or none"
    )
    rows.append((name, *single, words))
record("B7.phi.depth", rows[-1][1])
record("B7.phi.width", rows[-1][2])
record("B7.phi.side", rows[-1][3])
table(rows, ("network", "phi of depth", "of width", "of side", "of all three"))

# %% tags=["scaling-figure"] alt="Multiply-accumulates relative to B0, on a scale of powers of two from 1 to 128, against phi from 0 to 7. A dotted line of 2 to the phi ends at 128, a full line of 1.92 to the phi at 96. Dots of counted networks at 1 and 3 lie above both lines, those at 5 and 7 between them. Of the crosses, B0 lies where the lines begin, B1 to B3 above both, B4 to B7 a little below the full line."
_, axes = plt.subplots(figsize=(5, 3.6))
phis = list(range(8))
axes.plot(phis, [2**phi for phi in phis], ":", color=plots.QUIET)
axes.plot(phis, [base**phi for phi in phis], color=plots.COLOURS[0], linewidth=1.5)
axes.plot(PHIS, list(by_formula.values()), "o", color=plots.COLOURS[0], markersize=5)
for name, size in PUBLISHED.items():
    phi = math.log(size.side / 224) / math.log(GAMMA)
    ratio = macs[name] / macs["B0"]
    axes.plot(phi, ratio, "x", color=plots.COLOURS[1], markersize=8)
    place = {"xytext": (7, -12), "textcoords": "offset points"}
    axes.annotate(name, (phi, ratio), color=plots.COLOURS[1], **place)
axes.set_yscale("log", base=2)
ticks = [2**k for k in range(8)]
axes.set(yticks=ticks, yticklabels=ticks, ylim=(0.8, 190), xlim=(-0.2, 7.9))
axes.set(xlabel="$\\phi$", ylabel="MACs, B0 = 1")
axes.text(5.4, 75, "$2^{\\phi}$", color=plots.QUIET)
axes.text(2.5, 2.5, "$1.92^{\\phi}$", color=plots.COLOURS[0])
plt.show()

# %% [markdown]
# Table 7 of the paper trains B0 made larger along one axis, and along all three.

# %% tags=["table-7"]
SCALED = {
    "depth": (Size(depth=4.0), "79.0%"),
    "width": (Size(width=2.0), "78.9%"),
    "side": (Size(side=448), "79.1%"),
    "all three": (Size(1.2, 1.4, 291), "81.1%"),
}
found = {}
parameters, _ = cost(published, "B0", side=224)
rows = [("B0", 1.0, 1.0, "1.0", parameters, f"{macs['B0'] / 1e9:.2f}", "77.3%")]
for name, (size, accuracy) in SCALED.items():
    parameters, found[name] = cost(efficientnet, size, side=size.side)
    record(f"scaled.{name.split()[-1]}", found[name] / 1e9)
    factors = (size.width, size.depth, f"{size.side / 224:.1f}")
    giga = f"{found[name] / 1e9:.2f}"
    rows.append((name, *factors, parameters, giga, accuracy))
within = max(found.values()) / min(found.values())
claim(within < 1.25, "the four networks of table 7 cost the same up to a quarter")
claim(found["all three"] == max(found.values()), "all three axes cost most")
columns = ("scaled", "width", "depth", "side", "parameters", "G MACs", "top-1 (paper)")
table(rows, columns)

# %% tags=["drawn"] alt="EfficientNet-B0 from top to bottom with output shapes and parameters at the right: an input of 3x224x224, the stem, seven stages, some with a loop past them, whose maps shrink from 112 to 7 pixels a side while the channels grow from 16 to 320, the head with 1280 channels, the linear layer to 1000."
with torch.device("meta"):
    network = published("B0")
    x = torch.empty(1, 3, 224, 224)
drawing.draw(network, x)

# %% tags=["dropped-counts"]
probabilities = []
for layer in network.modules():
    if isinstance(layer, StochasticDepth):
        probabilities.append(layer.p)
for name in ("B0", "B7"):
    depth = PUBLISHED[name].depth
    record(f"{name}.blocks", sum(math.ceil(depth * row.blocks) for row in BASELINE))
record("drop.blocks", len(probabilities))
record("drop.expected", sum(probabilities))

# %% [markdown]
# ## Equal to the libraries
#
# A fresh batch norm has mean 0, variance 1, scale 1 and shift 0: it would hide a wrong
# epsilon. We give the references random ones before their weights are copied into ours.

# %% tags=["equal"]
rows = []
deviations = []
for name, side in (("B0", 64), ("B1", 64), ("B4", 64), ("B7", 40)):
    seed(0)
    theirs = getattr(torchvision.models, f"efficientnet_{name.lower()}")()
    theirs = checks.randomise_norms(theirs)
    with torch.device("meta"):
        ours = published(name)
    ours = ours.to_empty(device="cpu")  # its weights come from the reference
    checks.transplant(theirs, ours)
    x = torch.randn(2, 3, side, side)
    deviations.append(checks.same_outputs(ours, theirs, x))
    rows.append((name, "torchvision", f"{deviations[-1]:.1e}"))
# %% [markdown]
# ## Lite0
#
# EfficientNet-Lite0 is B0 for phones: no squeeze-and-excitation, ReLU6 in place of swish.
# Its published weights come from TensorFlow, which pads otherwise than torch: of an odd
# number of zeros the last one goes to the bottom and to the right.


# %% tags=["lite"]
class TensorFlowConv2d(nn.Conv2d):
    """As many zeros as make ceil(side / stride) outputs, the odd one at the end."""

    def forward(self, x: Tensor) -> Tensor:
        size = self.kernel_size[0]
        stride = self.stride[0]
        around = []  # left, right, top, bottom
        for side in (x.shape[3], x.shape[2]):
            reach = (math.ceil(side / stride) - 1) * stride + size
            zeros = max(reach - side, 0)
            around += [zeros // 2, zeros - zeros // 2]
        x = F.pad(x, around)
        return F.conv2d(x, self.weight, stride=self.stride, groups=self.groups)


def no_gate(channels: int, inner: int) -> nn.Module:
    """In the place of squeeze-and-excitation."""
    return nn.Identity()


LITE = Parts(
    conv=TensorFlowConv2d, norm=tensorflow_norm, activation=nn.ReLU6, gate=no_gate
)


def lite0() -> EfficientNet:
    """B0 of other parts; its larger sisters keep stem and head as they are here."""
    return efficientnet(Size(), parts=LITE)


# %% tags=["weights"]
def trained_lite0() -> EfficientNet:
    """Lite0 with the weights of a package, tensor by tensor in their order."""
    network = lite0()
    names = network.state_dict()
    weights = pretrained.lite0_weights()
    network.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    return network.eval()


# %% tags=["lite-run"]
network = trained_lite0()
theirs = timm.create_model("tf_efficientnet_lite0")
checks.transplant(network, theirs)
x = torch.randn(2, 3, 75, 90)
deviations.append(checks.same_outputs(network, theirs, x))
record("deviation", max(deviations))
rows.append(("Lite0", "timm", f"{deviations[-1]:.1e}"))
gates = sum(isinstance(m, SqueezeExcitation) for m in network.modules())
claim(gates == 0, "there are no gates in the published weights")
parameters, lite_macs = cost(lite0, side=224)
record("lite.parameters", parameters)
record("lite.gmacs", lite_macs / 1e9)
network = network.to(device)

# %% tags=["equal-table"]
table(rows, ("network", "reference", "largest difference"))

# %% [markdown]
# ## Photographs
#
# Eight photographs that ship inside packages. What counts as right is written down here, by
# what is to be seen in each and which of the 1,000 classes there are.

# %% tags=["accepted"]
CLASSES = torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
ACCEPTED = {
    "astronaut": ("space shuttle",),  # a model of one stands behind her
    "chelsea": ("tabby", "tiger cat", "Egyptian cat"),
    "china": ("palace",),
    "coffee": ("espresso", "cup"),
    "flower": ("daisy",),  # it is a dahlia; there is none
    "hopper": ("military uniform",),
    "motorcycle_left": ("moped", "motor scooter"),  # there is no motorcycle
    "rocket": ("missile", "projectile", "space shuttle"),  # there is no rocket
}


# %% tags=["photographs"]
def photographs() -> dict[str, Tensor]:
    """The photographs that ACCEPTED names, colours (3, H, W) in 0..1."""
    pictures = {}
    for name, picture in images.photographs().items():
        pictures[name] = picture.float().div(255)
    sources.append("photographs from the packages scikit-image and scikit-learn")
    pictures["hopper"] = images.photograph(512, 512)[0]
    return {name: pictures[name] for name in ACCEPTED}


def square(picture: Tensor, top: int, left: int, side: int, *, size: int) -> Tensor:
    """Cut a square, resize it to (1, 3, size, size), values in -1..1 for Lite0."""
    x = picture[None, :, top : top + side, left : left + side]
    x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True)
    return 2 * x.clamp(0, 1) - 1


def centre(picture: Tensor, *, size: int = 224) -> Tensor:
    """The largest square in the middle of a picture, for Lite0."""
    H, W = picture.shape[1:]
    side = min(H, W)
    return square(picture, (H - side) // 2, (W - side) // 2, side, size=size)


# %% tags=["top-five"]
@torch.no_grad()
def top_five(network: nn.Module, x: Tensor) -> list[tuple[str, float]]:
    """The five likeliest classes of one image (1, 3, H, W)."""
    found = network(x)[0].softmax(0).topk(5)
    names = [CLASSES[index] for index in found.indices.tolist()]
    return list(zip(names, found.values.tolist()))


pictures = photographs()
answers = {}
for name, picture in pictures.items():
    answers[name] = top_five(network, centre(picture).to(device))

# %% tags=["top-five-table"]
rows = []
for name, found in answers.items():
    words = [f"{answer} {probability:.2f}" for answer, probability in found[:3]]
    right = [answer in ACCEPTED[name] for answer, _ in found]
    place = str(right.index(True) + 1) if any(right) else "not in five"
    rows.append((name, *words, place))
right = [name for name, found in answers.items() if found[0][0] in ACCEPTED[name]]
record("right", len(right))
record("pictures", len(pictures))
record("astronaut", answers["astronaut"][0][0])
claim(len(right) == 7 and "astronaut" not in right, "all but the astronaut are right")
table(rows, ("picture", "first", "second", "third", "accepted at"))

# %% [markdown]
# ## Against the size of the image
#
# The weights were trained on images of 224 pixels. The same squares of the photographs,
# resized to other sides, two random ones of each photograph for each seed.

# %% tags=["crops"]
SEEDS = (0, 1, 2)
SIDES = (96, 128, 160, 224)
PER_PICTURE = 2


def random_squares(pictures: dict, number: int) -> list[tuple]:
    """(name, top, left, side): 70 to 100 % of the shorter side, anywhere."""
    generator = torch.Generator().manual_seed(number)
    squares = []
    for name in sorted(PER_PICTURE * list(pictures)):
        H, W = pictures[name].shape[1:]
        a, b, c = torch.rand(3, generator=generator).tolist()
        side = int((0.7 + 0.3 * a) * min(H, W))
        squares.append((name, int(b * (H - side + 1)), int(c * (W - side + 1)), side))
    return squares


# %% tags=["by-side"]
def right_at(network: nn.Module, pictures: dict, squares, *, size: int) -> tuple:
    """Shares of the squares whose first, and any of five, answers are accepted."""
    first = 0
    five = 0
    for name, *place in squares:
        x = square(pictures[name], *place, size=size)
        found = top_five(network, x.to(device))
        right = [answer in ACCEPTED[name] for answer, _ in found]
        first += right[0]
        five += any(right)
    return first / len(squares), five / len(squares)


shares = {}
for number in SEEDS:
    squares = random_squares(pictures, number)
    for size in SIDES:
        shares[size, number] = right_at(network, pictures, squares, size=size)

# %% tags=["by-side-figure"] alt="Share of squares named rightly against the side of the image, 96 to 224 pixels, mean of three seeds in a band. The mean of top five lies above that of top one. Top one rises from about 0.4 at 96 pixels to about 0.75 at 224."
_, axes = plt.subplots()
ends = {}
for index, name in ((1, "top five"), (0, "top one")):
    runs = torch.tensor([[shares[s, n][index] for s in SIDES] for n in SEEDS])
    ends[name] = plots.seed_band(axes, SIDES, runs, plots.COLOURS[1 - index])
axes.set(xlabel="side of the image in pixels", ylabel="share named rightly")
axes.set(ylim=(0, 1), xlim=(90, 262), xticks=SIDES)
plots.label_ends(axes, ends, [plots.COLOURS[0], plots.COLOURS[1]])

# %% tags=["by-side-claims"]
for size in SIDES:
    record_spread(f"first.{size}", [shares[size, n][0] for n in SEEDS])
    record_spread(f"five.{size}", [shares[size, n][1] for n in SEEDS])
most_small = max(shares[96, n][0] for n in SEEDS)
least_trained = min(shares[224, n][0] for n in SEEDS)
claim(most_small < least_trained, "at 224 more is right than at 96, seeds apart")

# %% [markdown]
# ## What the weights are worth elsewhere
#
# Patches of ten photographs, 64 pixels a side after doubling; which photograph is a patch
# from? A linear layer on the means of Lite0's last map, with the trained and with random
# weights, and on the pixels.


# %% tags=["transfer"]
def read(network: EfficientNet, x: Tensor) -> Tensor:
    """Means of the last map for patches (N, 3, 32, 32) in 0..1 -> (N, 1280)."""
    found = []
    for part in x.split(20):
        larger = F.interpolate(part.to(device), scale_factor=2, mode="bilinear")
        with torch.no_grad():
            found.append(network.features(2 * larger - 1).mean((2, 3)))
    return torch.cat(found)


def random_lite0(x: Tensor) -> EfficientNet:
    """Lite0 with random weights; its batch norms remember what x gives."""
    network = lite0().to(device)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean over all batches
    read(network.train(), x)
    return network.eval()


def linear_accuracy(train: tuple, test: tuple, *, decay: float = 0.1) -> float:
    """A linear layer fitted to inputs (N, D) by least squares with weight decay."""
    x, y = train
    mean = x.mean(0)
    scale = x.std(0) + 1e-3
    x = (x - mean) / scale
    targets = F.one_hot(y, 10).float() - 0.1  # of mean 0
    # (N, N) in place of (D, D): the dual form, as there are fewer patches than inputs
    inner = x @ x.T + decay * x.shape[1] * torch.eye(len(x), device=x.device)
    answers = ((test[0] - mean) / scale) @ x.T @ torch.linalg.solve(inner, targets)
    return (answers.argmax(1) == test[1]).double().mean().item()


# %% tags=["few"]
def first_of_each(y: Tensor, count: int) -> Tensor:
    """Indices of the first `count` examples of each of ten classes."""
    chosen = [(y == label).nonzero()[:count, 0] for label in range(10)]
    return torch.cat(chosen)


def of_each(y: Tensor, count: int) -> Tensor:
    """Indices of `count` examples of each class, drawn by chance."""
    order = torch.randperm(len(y))
    return order[first_of_each(y[order], count)]


# %% tags=["transfer-data"]
COUNTS = (1, 2, 5)
patches = images.patches()
pool_x, pool_y = (t[:400] for t in patches.train)
test_x, test_y = (t[:200] for t in patches.test)
by_trained = read(network, test_x)
record("test.patches", len(test_y))

# %% tags=["transfer-run"]
reached = {}
for number in SEEDS:
    seed(number)
    chosen = of_each(pool_y, max(COUNTS))
    x = pool_x[chosen]
    y = pool_y[chosen].to(device)
    untrained = random_lite0(x)
    inputs = {
        "trained": (read(network, x), by_trained),
        "random": (read(untrained, x), read(untrained, test_x)),
        "pixels": (x.flatten(1).to(device), test_x.flatten(1).to(device)),
    }
    for count in COUNTS:
        few = first_of_each(y, count)
        for name, (train, test) in inputs.items():
            score = linear_accuracy((train[few], y[few]), (test, test_y.to(device)))
            reached[name, count, number] = score

# %% tags=["transfer-figure"] alt="Test accuracy against the number of training patches of each photograph, 1, 2 and 5, mean of three seeds in a band. The line of the trained weights rises from about 0.3 to about 0.6; those of the pixels and of the random weights stay below 0.45, and above the dotted line of guessing at 0.1."
_, axes = plt.subplots()
ends = {}
for name, colour in zip(("trained", "random", "pixels"), plots.COLOURS):
    runs = torch.tensor([[reached[name, c, n] for c in COUNTS] for n in SEEDS])
    ends[name] = plots.seed_band(axes, COUNTS, runs, colour)
axes.axhline(0.1, color=plots.QUIET, linestyle=":")
axes.set(xlabel="training patches of each photograph", ylabel="test accuracy")
axes.set(ylim=(0, 0.8), xlim=(0.8, 6), xticks=COUNTS)
plots.label_ends(axes, ends)

# %% tags=["transfer-table"]
rows = []
for name in ("trained", "random", "pixels"):
    row = [name]
    for count in COUNTS:
        scores = [reached[name, count, n] for n in SEEDS]
        record_spread(f"{name}.{count}", scores)
        row.append(spread(scores, ".2f"))
        if name != "trained":
            mean = sum(scores) / len(scores)
            claim(0.1 < mean < 0.45, f"{name} at {count}: above guessing, below 0.45")
    rows.append(row)
for count in COUNTS[1:]:
    least = min(reached["trained", count, n] for n in SEEDS)
    for name in ("random", "pixels"):
        most = max(reached[name, count, n] for n in SEEDS)
        claim(
            least > most, f"trained weights are ahead of {name} at {count}, seeds apart"
        )
one = {name: [reached[name, 1, n] for n in SEEDS] for name in ("trained", "pixels")}
touch = min(one["trained"]) <= max(one["pixels"])
claim(touch and min(one["pixels"]) <= max(one["trained"]), "at one patch they touch")
words = (f"{count} of each" for count in COUNTS)
table(rows, ("linear layer on", *words))

# %% [markdown]
# ## Look inside: Grad-CAM
#
# Which places of the last map raise the score of a class?


# %% tags=["grad-cam"]
def grad_cam(network: EfficientNet, x: Tensor, label: int) -> Tensor:
    """Where an image (1, 3, H, W) speaks for a class: (H / 32, W / 32), none below 0.

    Selvaraju et al. 2016, equations 1 and 2.
    """
    with torch.no_grad():
        maps = network.features(x)  # (1, C, h, w)
    maps.requires_grad_()
    score = network.classifier(maps.mean((2, 3)))[0, label]
    (gradient,) = torch.autograd.grad(score, maps)
    weights = gradient.mean((2, 3), keepdim=True)  # (1, C, 1, 1)
    return torch.relu((weights * maps).sum(1))[0].detach()  # (h, w)


# %% tags=["cam-by-weights"]
x = centre(pictures["chelsea"]).to(device)
label = CLASSES.index(answers["chelsea"][0][0])
with torch.no_grad():
    maps = network.features(x)[0]
    row = network.classifier.weight[label] / maps[0].numel()
    by_weights = torch.relu((row[:, None, None] * maps).sum(0))
difference = checks.deviation(grad_cam(network, x, label), by_weights)
claim(difference < 1e-5, "here Grad-CAM weighs the channels as the linear layer does")

# %% tags=["pairs"]
sides = {}
for names in zip(right, [*right[1:], right[0]]):  # each beside the next
    pair = torch.cat([centre(pictures[name]) for name in names], dim=3)
    pair = pair.to(device)  # (1, 3, 224, 448)
    for number, name in enumerate(names):
        heat = grad_cam(network, pair, CLASSES.index(answers[name][0][0]))
        halves = heat.chunk(2, dim=1)
        sides[names, name] = (halves[number].sum() / heat.sum()).item()
record("pairs", len(sides) // 2)
record("own.least", min(sides.values()))
record("own.mean", sum(sides.values()) / len(sides))
claim(min(sides.values()) > 0.75, "the heat lies on the half of its own object")

# %% tags=["grad-cam-figure"] alt="Three copies of a picture made of two squares: a cat's face at the left, a motorcycle at the right. First without heat; then with the heat of a class of cats, which covers the face and little of the motorcycle; then with that of moped, which covers the motorcycle and little of the cat."
names = ("chelsea", "motorcycle_left")
pair = torch.cat([centre(pictures[name]) for name in names], dim=3)
shown = [(pair[0].permute(1, 2, 0) + 1) / 2]
titles = ["the picture"]
for name in names:
    titles.append(answers[name][0][0])
    heat = grad_cam(network, pair.to(device), CLASSES.index(titles[-1]))[None, None]
    half = heat.chunk(2, dim=3)[names.index(name)]
    share = (half.sum() / heat.sum()).item()
    record(f"shown.{name}", share)
    claim(share > 0.85, f"the heat of {name} lies on its own half")
    heat = F.interpolate(heat.cpu(), size=pair.shape[2:], mode="bilinear")[0, 0]
    heat = (heat / heat.max())[..., None]
    orange = torch.tensor([1.0, 0.45, 0.0])
    shown.append((1 - heat) * 0.35 * shown[0] + heat * (0.4 * shown[0] + 0.6 * orange))
_, frames = plt.subplots(3, 1, figsize=(4, 6.6))
for frame, picture, title in zip(frames, shown, titles):
    frame.imshow(picture.clamp(0, 1))
    frame.set_title(title, fontsize=11)
    frame.axis("off")
plt.show()

# %% [markdown]
# ## What we saw
#
# - Twice the depth doubles the cost, twice the width or side makes it almost fourfold. By
#   the paper's constants a step multiplies it by 1.92, but the small sizes B1 to B3 cost
#   more than 2^phi; B4 to B7 lie a little below 1.92^phi.
# - From B4 on no single phi gives the published sizes.
# - The weights trained on ImageNet name what is to be seen at the size they were trained
#   at, far less at 96 pixels; from two patches a photograph on their last map is worth more than
#   the pixels; and the heat of a class lies on its own half of a double picture.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
row = BASELINE[3]
c_mid = row.expansion * row.c_out  # second block of the row: 80 channels in and out
by_hand = {
    "1×1, 80 to 480": 14 * 14 * row.c_out * c_mid,
    "depthwise 3×3": 14 * 14 * 9 * c_mid,
    "squeeze-and-excitation": 2 * c_mid * (row.c_out // 4),
    "1×1, 480 to 80": 14 * 14 * c_mid * row.c_out,
}

# %% tags=["solution-1-result"]
block = ResidualMBConv(80, row).to("meta")
counted = counting.macs(block, torch.empty(1, 80, 14, 14, device="meta"))
claim(counted == sum(by_hand.values()), "the sum by hand is what is counted")
record("depthwise.share", by_hand["depthwise 3×3"] / counted)
rows = [(name, value, f"{value / counted:.1%}") for name, value in by_hand.items()]
table([*rows, ("counted", counted, "")], ("part", "MACs", "share"))

# %% tags=["solution-2"]
nearest = {}
for phi in PHIS:
    size = compound(phi)
    _, found = cost(efficientnet, size, side=size.side, blocks=round)
    nearest[phi] = found / macs["B0"]

# %% tags=["solution-2-result"]
rows = []
for phi, value in nearest.items():
    powers = f"{base**phi:.1f}"
    rows.append((phi, powers, f"{value:.1f}", f"{by_formula[phi]:.1f}"))
    gap = value - base**phi
    most = (by_formula[phi] - base**phi) / 2
    claim(0 < gap < most, "nearest: still above the line, by less than half as much")
gaps = [abs(nearest[phi] / base**phi - 1) for phi in nearest]
record("nearest.gap", max(gaps))
record("ceil.gap", max(by_formula[phi] / base**phi - 1 for phi in nearest))
table(rows, ("phi", "1.92^phi", "blocks to the nearest", "blocks up"))

# %% tags=["solution-3"]
symmetric = efficientnet(Size(), parts=replace(LITE, conv=nn.Conv2d))
checks.transplant(network, symmetric)
symmetric = symmetric.to(device).eval()

# %% tags=["solution-3-result"]
rows = []
changed = 0
for name, found in answers.items():
    other = top_five(symmetric, centre(pictures[name]).to(device))
    changed += found[0][0] != other[0][0]
    words = [f"{answer} {value:.2f}" for answer, value in (found[0], other[0])]
    rows.append((name, *words))
record("padding.changed", changed)
claim(changed == 1, "with zeros all around one first answer changes")
table(rows, ("picture", "padded as TensorFlow does", "zeros all around"))

# %% tags=["solution-4"]
SMALL = (
    Row(expansion=1, size=3, stride=1, c_out=16, blocks=1),
    Row(expansion=4, size=3, stride=2, c_out=24, blocks=2),
    Row(expansion=4, size=3, stride=2, c_out=40, blocks=2),
)


def small() -> EfficientNet:
    """Three rows of blocks for images of 32 pixels and ten classes."""
    return EfficientNet(SMALL, stem=16, head=128, num_classes=10)


def train_small(part, *, steps: int = 60) -> EfficientNet:
    """The small network from scratch; each step sees all examples."""
    scratch = small().to(device)
    optimizer = torch.optim.Adam(scratch.parameters(), lr=5e-3)
    schedule = training.one_cycle(optimizer, steps)
    batch = len(part[1])
    training.fit(scratch, part, steps, optimizer, batch=batch, schedule=schedule)
    return scratch


# %% tags=["solution-4-run"]
seed(0)
chosen = of_each(pool_y, max(COUNTS))
part = (2 * pool_x[chosen] - 1, pool_y[chosen])
scratch = train_small(part)

# %% tags=["solution-4-result"]
fitted = training.evaluate(scratch, part)
held_out = training.evaluate(scratch, (2 * test_x - 1, test_y))
linear = [reached["trained", max(COUNTS), n] for n in SEEDS]
claim(fitted > 0.95, "the small network fits its training patches")
for name in ("pixels", "random"):
    most = max(reached[name, max(COUNTS), n] for n in SEEDS)
    claim(held_out > most, f"from scratch it is ahead of the linear layer on {name}")
claim(held_out < sum(linear) / 3, "and not ahead of the mean on trained weights")
record("scratch", held_out)
rows = [(f"{fitted:.2f}", f"{held_out:.2f}", spread(linear, ".2f"))]
table(rows, ("its training patches", "test patches", "linear layer, trained weights"))
