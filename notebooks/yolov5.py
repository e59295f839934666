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
# # YOLOv5
#
# One detector in five sizes, made from two multiples: built from the description of its
# architecture, counted, and trained on scenes with digits. The text to it is the
# [chapter](../chapters/yolov5.rst); there is no paper, the source is the
# [project's page](https://github.com/ultralytics/yolov5).

# %%
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops

from workbench import PROFILE, claim, device, evaluating, record, record_spread
from workbench import seed, spread, table
from workbench import boxes, checks, comparison, counting, detectors, diagrams
from workbench import plots, scenes, training

# %% [markdown]
# ## C3
#
# A cross-stage block with three convolutions. Two 1x1 convolutions make two halves, one half
# passes a row of bottlenecks, and a 1x1 convolution over both follows.


# %% tags=["conv"]
def conv_norm(c_in: int, c_out: int, size: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, SiLU: a layer of YOLOv5."""
    padding = (size - 1) // 2
    conv = nn.Conv2d(c_in, c_out, size, stride, padding, bias=False)
    norm = nn.BatchNorm2d(c_out, eps=1e-3)
    return nn.Sequential(conv, norm, nn.SiLU())


# %% tags=["c3"]
class Bottleneck(nn.Module):
    """1x1, then 3x3, with the same number of channels throughout."""

    def __init__(self, width: int):
        super().__init__()
        self.mix = conv_norm(width, width, 1)
        self.spread = conv_norm(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.spread(self.mix(x))  # (B, width, H, W)


class Residual(Bottleneck):
    """x + bottleneck(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class C3(nn.Module):
    """A row of `depth` blocks on one half of the channels, three 1x1 convolutions."""

    def __init__(self, c_in: int, c_out: int, depth: int, *, block=Bottleneck):
        super().__init__()
        half = c_out // 2
        self.first = conv_norm(c_in, half, 1)
        self.blocks = nn.Sequential(*(block(half) for _ in range(depth)))
        self.second = conv_norm(c_in, half, 1)
        self.fuse = conv_norm(2 * half, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        worked = self.blocks(self.first(x))
        return self.fuse(torch.cat((worked, self.second(x)), dim=1))  # (B, c_out, H, W)


# %% tags=["c3-run"]
with torch.device("meta"):
    block = C3(256, 256, 3, block=Residual)
    row = nn.Sequential(*(Residual(256) for _ in range(3)))
[counting.parameters(part) for part in (block, row)]

# %% tags=["c3-checked"]
x = torch.empty(1, 256, 80, 80, device="meta")
costs = [counting.macs(part, x) for part in (block, row)]
counts = [counting.parameters(part) for part in (block, row)]
record("c3.parameters", counts[0])
record("row.parameters", counts[1])
record("c3.share", costs[0] / costs[1])
claim(costs[0] < costs[1] / 2, "a C3 block costs less than half of the plain row")


# %% tags=["c3-figure"] alt="A diagram from left to right. From the map x two arrows: the upper one to a 1x1 convolution of c/2 channels, then three bottlenecks in a row, each a 1x1 above a 3x3, with an arrow around each from before to behind; the lower one to another 1x1 convolution of c/2 channels. Both end in a box named concat, from which an arrow leads to a 1x1 convolution of c channels."
nodes = {
    "x": diagrams.Node(0.2, 1.0, "x"),
    "first": diagrams.Node(1.0, 0.5, "1×1\nc/2", width=0.6),
    "second": diagrams.Node(1.0, 1.5, "1×1\nc/2", width=0.6),
    "join": diagrams.Node(3.45, 1.0, "concat", width=0.75),
    "fuse": diagrams.Node(4.5, 1.0, "1×1\nc", width=0.6),
}
places = (1.75, 2.3, 2.85)
for number, place in enumerate(places):
    nodes[f"b{number}"] = diagrams.Node(place, 0.5, "1×1\n3×3", width=0.4)
nodes["name"] = diagrams.Node(2.3, 1.0, "bottlenecks", colour=plots.QUIET)
arrows = [("x", (0.5, 1.0), (0.5, 0.5), "first"), ("first", "b0"), ("b0", "b1")]
arrows += [("x", (0.5, 1.0), (0.5, 1.5), "second"), ("b1", "b2"), ("join", "fuse")]
arrows += [("b2", (3.45, 0.5), "join"), ("second", (3.45, 1.5), "join")]
around = []
for place in places:
    before = place - 0.24
    behind = place + 0.26
    around.append(((before, 0.5), (before, 0.18), (behind, 0.18), (behind, 0.48)))
diagrams.draw(diagrams.sheet(2.0), nodes, arrows, around)

# %% [markdown]
# ## SPPF
#
# A spatial pyramid takes the largest value around each cell, over squares of 5, 9 and 13.
# The largest over 5 of the largest over 5 is the largest over 9: one pooling three times in a
# row gives all three.


# %% tags=["spp"]
class SPP(nn.Module):
    """1x1 to half of the channels, the largest over 5, 9 and 13 cells, 1x1 over all."""

    def __init__(self, width: int):
        super().__init__()
        self.narrow = conv_norm(width, width // 2, 1)
        self.fuse = conv_norm(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(x)
        pooled = [F.max_pool2d(x, size, 1, size // 2) for size in (5, 9, 13)]
        return self.fuse(torch.cat((x, *pooled), dim=1))  # (B, width, H, W)


class SPPF(SPP):
    """The same, each pooling over 5 cells of the one before."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(x)
        five = F.max_pool2d(x, 5, 1, 2)
        nine = F.max_pool2d(five, 5, 1, 2)
        thirteen = F.max_pool2d(nine, 5, 1, 2)
        return self.fuse(torch.cat((x, five, nine, thirteen), dim=1))


# %% tags=["spp-row"]
row = torch.tensor([[3.0, 0, 7, 1, 0, 0, 0, 2, 0, 5, 0, 0, 4]])
once = F.max_pool1d(row, 5, 1, 2)
twice = F.max_pool1d(once, 5, 1, 2)
[values.int().tolist()[0] for values in (row, once, twice)]

# %% tags=["spp-checked"]
nine = F.max_pool1d(row, 9, 1, 4)
claim(torch.equal(twice, nine), "five twice is nine")
record("spp.reads", 5**2 + 9**2 + 13**2)
record("sppf.reads", 3 * 5**2)

# %% tags=["spp-figure"] alt="Three rows of thirteen cells with numbers. First row: 3 0 7 1 0 0 0 2 0 5 0 0 4, the nine in the middle shaded. Second row, named largest of 5: each number is the largest of the five cells around its place in the first row; the five in the middle are shaded. Third row, named again, of 9: only the middle cell is shaded; it is 7, the largest of the nine shaded cells of the first row."
_, axes = plt.subplots(figsize=(5, 1.9))
names = ("map", "largest of 5", "again: of 9")
for height, values in enumerate((row, once, twice)):
    for place, value in enumerate(values[0].int().tolist()):
        centre = (place, -1.3 * height)
        square = (place - 0.5, -1.3 * height - 0.5)
        seen = abs(place - 6) <= (4, 2, 0)[height]
        shade = plots.COLOURS[0] if seen else "none"
        axes.add_patch(plt.Rectangle(square, 1, 1, fc=shade, alpha=0.2, ec="none"))
        axes.add_patch(plt.Rectangle(square, 1, 1, fill=False, ec=plots.GRID))
        axes.text(*centre, value, ha="center", va="center")
    axes.text(-0.8, -1.3 * height, names[height], ha="right", va="center")
axes.set(xlim=(-5, 12.6), ylim=(-3.3, 0.7), aspect="equal")
axes.axis("off")
axes.set_axisbelow(True)

# %% [markdown]
# ## Focus, or a 6x6 kernel
#
# The first versions cut the image into four of half its side and stacked them, with a 3x3
# convolution behind. A 6x6 convolution of stride 2 computes the same.


# %% tags=["focus"]
class Focus(nn.Module):
    """Four images, one of each corner of 2x2 pixels, and a convolution."""

    def __init__(self, c_out: int):
        super().__init__()
        self.conv = conv_norm(4 * 3, c_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        # (B, 3, H, W) -> (B, 12, H / 2, W / 2) -> (B, c_out, H / 2, W / 2)
        return self.conv(F.pixel_unshuffle(x, 2))


def as_six(weight: Tensor) -> Tensor:
    """The kernel (c, 12, 3, 3) behind a focus as one of 6x6 pixels (c, 3, 6, 6)."""
    return F.pixel_shuffle(weight, 2)


# %% tags=["focus-run"]
seed(0)
focus = checks.randomise_norms(Focus(64))
six = conv_norm(3, 64, 6, stride=2)
six.load_state_dict(
    {name.removeprefix("conv."): value for name, value in focus.state_dict().items()}
    | {"0.weight": as_six(focus.conv[0].weight)}
)
x = torch.randn(1, 3, 64, 96)
focus_difference = checks.same_outputs(six, focus, x)

# %% tags=["focus-checked"]
counts = [counting.parameters(part) for part in (focus, six)]
costs = [counting.macs(part, x) for part in (focus, six)]
claim(counts[0] == counts[1], "both stems have equally many parameters")
claim(costs[0] == costs[1], "both stems cost equally many MACs")
record("stem.parameters", counts[0])

# %% tags=["focus-figure"] alt="Left, a square of 6 by 6 cells, each with a letter a, b, c or d: in each 2 by 2 square a and b above c and d. Right, four squares of 3 by 3 cells: one with a only, one with b, one with c, one with d. An arrow named the same weights joins the two."
_, axes = plt.subplots(figsize=(5, 2.2))
letters = "abcd"
for row in range(6):
    for column in range(6):
        kind = 2 * (row % 2) + column % 2
        own = (9.2 + 3.4 * (kind % 2), 3.4 * (kind // 2))
        there = (own[0] + column // 2, own[1] + row // 2 - 0.2)
        for x, y in ((column, row), there):
            paint = {"fc": plots.COLOURS[kind], "ec": "none", "alpha": 0.2}
            axes.add_patch(plt.Rectangle((x, y), 0.95, 0.95, **paint))
            axes.text(x + 0.48, y + 0.5, letters[kind], ha="center", va="center")
axes.annotate("", (8.9, 3), (6.3, 3), arrowprops={"arrowstyle": "<->"})
axes.text(3, 6.4, "6×6, stride 2", ha="center", va="top")
axes.text(12.3, 6.7, "four 3×3 behind the focus", ha="center", va="top")
axes.set(xlim=(-1.4, 17), ylim=(7.6, -0.4), aspect="equal")
axes.axis("off")
axes.set_axisbelow(True)

# %% [markdown]
# ## The network
#
# A stem and stages of a halving convolution and a C3 block; a top-down and a bottom-up path
# with C3 blocks; a 1x1 convolution as a head on each of the maps.


# %% tags=["backbone"]
@dataclass(frozen=True)
class Size:
    """What the two multiples change: channels of stem and stages, blocks of each C3."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    neck: int


def stage(c_in: int, c_out: int, depth: int) -> nn.Sequential:
    """Halve the map, then a C3 block with residual bottlenecks."""
    halving = conv_norm(c_in, c_out, 3, stride=2)
    return nn.Sequential(halving, C3(c_out, c_out, depth, block=Residual))


class Backbone(nn.Module):
    """Stem, stages and SPPF: the maps of the last `levels` stages, the finest first."""

    def __init__(self, size: Size, levels: int):
        super().__init__()
        self.levels = levels
        self.stem = conv_norm(3, size.widths[0], 6, stride=2)
        pairs = zip(size.widths, size.widths[1:], size.depths)
        self.stages = nn.ModuleList(stage(*pair) for pair in pairs)
        self.pyramid = SPPF(size.widths[-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)  # (B, 64, H / 2, W / 2) in size l
        maps = []
        for part in self.stages:
            x = part(x)
            maps.append(x)
        maps[-1] = self.pyramid(x)  # (B, 1024, H / 32, W / 32) in size l
        return maps[-self.levels :]


# %% tags=["network"]
class YOLOv5(nn.Module):
    """Backbone, a path down and a path up, and a head on each level.

    (B, 3, H, W) -> maps (B, 3 (5 + K), H / stride, W / stride), the finest first.
    """

    def __init__(self, size: Size, num_classes: int = 80, *, levels: int = 3):
        super().__init__()
        widths = size.widths[-levels:]
        rising = list(zip(widths, widths[1:]))  # channels (fine, coarse) of a step
        falling = rising[::-1]
        outputs = 3 * (5 + num_classes)
        self.backbone = Backbone(size, levels)
        self.narrow = nn.ModuleList(conv_norm(c, f, 1) for f, c in falling)
        self.down = nn.ModuleList(C3(2 * f, f, size.neck) for f, _ in falling)
        self.halve = nn.ModuleList(conv_norm(f, f, 3, stride=2) for f, _ in rising)
        self.up = nn.ModuleList(C3(2 * f, c, size.neck) for f, c in rising)
        self.heads = nn.ModuleList(nn.Conv2d(width, outputs, 1) for width in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        *fine, top = self.backbone(x)
        narrowed = []
        for narrow, block, same in zip(self.narrow, self.down, fine[::-1]):
            narrowed.append(narrow(top))  # stride 32, then 16
            enlarged = F.interpolate(narrowed[-1], scale_factor=2)  # repeats pixels
            top = block(torch.cat((enlarged, same), dim=1))  # 16, then 8
        maps = [top]
        for halve, block, same in zip(self.halve, self.up, narrowed[::-1]):
            maps.append(block(torch.cat((halve(maps[-1]), same), dim=1)))  # 16, then 32
        return [head(level) for head, level in zip(self.heads, maps)]


# %% [markdown]
# ## Two multiples
#
# The largest but one has the multiples 1 and 1; all others are made from it.


# %% tags=["multiples"]
BASE = Size((64, 128, 256, 512, 1024), depths=(3, 6, 9, 3), neck=3)
MULTIPLES = {  # of depth, of width
    "n": (1 / 3, 0.25),
    "s": (1 / 3, 0.50),
    "m": (2 / 3, 0.75),
    "l": (1.0, 1.00),
    "x": (4 / 3, 1.25),
}


def scaled(base: Size, depth: float, width: float, *, multiple: int = 8) -> Size:
    """Blocks times depth, rounded, at least one; channels times width, rounded up."""
    widths = [multiple * math.ceil(c * width / multiple) for c in base.widths]
    depths = [max(1, round(blocks * depth)) for blocks in (*base.depths, base.neck)]
    return Size(tuple(widths), tuple(depths[:-1]), depths[-1])


# %% tags=["network-shape"]
with torch.device("meta"):
    outputs = YOLOv5(scaled(BASE, *MULTIPLES["s"]))(torch.empty(1, 3, 640, 640))
[tuple(raw.shape) for raw in outputs]

# %% tags=["predictions"]
record("predictions", sum(3 * raw[0, 0].numel() for raw in outputs))

# %% tags=["stages-table"]
with torch.device("meta"):
    network = YOLOv5(scaled(BASE, *MULTIPLES["l"]))
    x = torch.empty(1, 3, 640, 640)
    rows = []
    backbone = network.backbone
    names = [f"/2, C3 of {depth} bottlenecks" for depth in BASE.depths]
    parts = zip(("6×6 of stride 2", *names), (backbone.stem, *backbone.stages))
    for name, part in (*parts, ("SPPF", backbone.pyramid)):
        x = part(x)
        rows.append((name, "×".join(map(str, x[0].shape)), counting.parameters(part)))
table(rows, ("backbone of size l", "output", "parameters"))

# %% tags=["count-table"]
PUBLISHED = {  # parameters: logs in the project's issues; GFLOPs: its page, 6.0
    "n": (1_872_157, 4.5),
    "s": (7_235_389, 16.5),
    "m": (21_190_557, 49.0),
    "l": (46_563_709, 109.1),
    "x": (86_749_405, 205.7),
}
rows = []
for name, (depth, width) in MULTIPLES.items():
    size = scaled(BASE, depth, width)
    with torch.device("meta"):
        network = YOLOv5(size)
        macs = counting.macs(network, torch.empty(1, 3, 640, 640))
    counted = counting.parameters(network)
    parameters, billions = PUBLISHED[name]
    claim(counted == parameters, f"{name} has the published number of parameters")
    near = abs(2 * macs / 1e9 / billions - 1) < 0.01
    claim(near, f"{name} costs what is published, within 1 %")
    if name == "s":
        record("s.parameters", counted)
        record("s.macs", macs)
    each = f"{depth:.2f}", f"{width:.2f}", sum(size.depths) + 4 * size.neck
    rows.append((name, *each, counted, f"{2 * macs / 1e9:.1f}", billions))
names = ("size", "depth", "width", "bottlenecks", "parameters", "GFLOPs", "published")
table(rows, names)

# %% [markdown]
# ## Equal
#
# The pyramid both ways, and both stems, with the same weights.

# %% tags=["equal-table"]
slow = checks.randomise_norms(SPP(64))
fast = SPPF(64)
checks.transplant(slow, fast)
spp_difference = checks.same_outputs(fast, slow, torch.randn(2, 64, 20, 20))
claim(spp_difference == 0, "SPPF equals SPP to the last bit")
rows = [("SPPF", "SPP of 5, 9 and 13", f"{spp_difference:.0f}")]
rows.append(("6×6 of stride 2", "focus", f"{focus_difference:.2g}"))
table(rows, ("here", "reference", "largest difference"))

# %% tags=["network-figure"] alt="Three columns between an image at the bottom left and heads at the right. Left, the backbone upwards: stem and stages of stride 2, 4, 8, 16 and 32, then SPPF. Middle: from SPPF a path leads down, twice a x2 and a C3 block, which also receives the stage of the same stride. Right: from the lowest block a path leads up, twice a halving and a C3 block, which also receives the map of the middle column. On each of the three levels a head."
nodes = {"image": diagrams.Node(0.65, 3.75, "image")}
column = (("stem", "stem, 2", 3.2), ("c4", "C3, 4", 2.6), ("c8", "C3, 8", 2.0))
column += (("c16", "C3, 16", 1.3), ("c32", "C3, 32", 0.6))
for key, words, y in column:
    nodes[key] = diagrams.Node(0.65, y, words, width=0.85)
nodes["spp"] = diagrams.Node(1.65, 0.6, "SPPF", width=0.65)
nodes["n32"] = diagrams.Node(2.5, 0.6, "1×1", width=0.5)
nodes["d16"] = diagrams.Node(2.5, 1.3, "C3, 1×1", width=0.85)
for key, y, words in (("u32", 0.6, "C3"), ("u16", 1.3, "C3"), ("u8", 2.0, "C3")):
    nodes[key] = diagrams.Node(3.6, y, words, width=0.5)
    nodes[f"h{key}"] = diagrams.Node(4.45, y, "head", width=0.6)
nodes["x2"] = diagrams.Node(2.68, 0.95, "×2", colour=plots.COLOURS[1])
nodes["x2b"] = diagrams.Node(2.9, 1.72, "×2", colour=plots.COLOURS[1])
nodes["half"] = diagrams.Node(3.8, 1.65, "/2", colour=plots.COLOURS[1])
nodes["half2"] = diagrams.Node(3.8, 0.95, "/2", colour=plots.COLOURS[1])
arrows = [("image", "stem"), ("stem", "c4"), ("c4", "c8"), ("c8", "c16")]
arrows += [("c16", "c32"), ("c32", "spp"), ("spp", "n32"), ("c16", "d16")]
arrows += [("c8", "u8"), ("d16", "u16"), ("n32", "u32")]
for key in ("u32", "u16", "u8"):
    arrows.append((key, f"h{key}"))
paths = [("n32", "d16"), ("d16", (2.5, 1.85), (3.35, 1.85)), ("u8", "u16")]
paths.append(("u16", "u32"))
diagrams.draw(diagrams.sheet(4.0), nodes, arrows, paths)

# %% [markdown]
# ## From numbers to boxes
#
# The centre may leave its cell by half a cell to each side, and a box is at most four times
# as long as its anchor.


# %% tags=["decode"]
class Scale(NamedTuple):
    """One output map: stride and anchors (width, height), both in pixels."""

    stride: int
    anchors: Sequence[Sequence[float]]


def by_anchor(raw: Tensor, scale: Scale) -> Tensor:
    """(B, A (5 + K), H, W) -> (B, H, W, A, 5 + K)."""
    return raw.unflatten(1, (len(scale.anchors), -1)).permute(0, 3, 4, 1, 2)


def decode(t: Tensor, scale: Scale) -> Tensor:
    """Boxes (B, H, W, A, 4) in pixels, corners, of numbers t (B, H, W, A, 5 + K)."""
    B, H, W, A, _ = t.shape
    row = torch.arange(H, device=t.device).view(H, 1, 1)
    column = torch.arange(W, device=t.device).view(1, W, 1)
    twice = 2 * t[..., :4].sigmoid()  # 0..2
    x = (twice[..., 0] - 0.5 + column) * scale.stride  # (B, H, W, A)
    y = (twice[..., 1] - 0.5 + row) * scale.stride
    centre = torch.stack((x, y), dim=-1)
    size = twice[..., 2:4].square() * t.new_tensor(scale.anchors)  # (B, H, W, A, 2)
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


# %% tags=["decode-run"]
scale = Scale(stride=32, anchors=((116, 90),))
t = torch.zeros(1, 13, 13, 1, 5)
t[0, 4, 6, 0, :4] = torch.tensor([0.4, -2.0, 0.2, 0.7])  # row 4, column 6
box = decode(t, scale)[0, 4, 6, 0]
box

# %% tags=["decode-checked"]
halves = [1 / (1 + math.exp(-number)) for number in (0.4, -2.0, 0.2, 0.7)]
x = 32 * (6 + 2 * halves[0] - 0.5)
y = 32 * (4 + 2 * halves[1] - 0.5)
width = 116 * (2 * halves[2]) ** 2
height = 90 * (2 * halves[3]) ** 2
by_hand = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
claim(checks.deviation(box, torch.tensor(by_hand)) < 1e-6, "the box by hand is the box")
claim(32 * 6 < x < 32 * 7, "the centre lies in its column")
claim(32 * 3 < y < 32 * 4, "the centre lies in the row above")
for name, value in (("x", x), ("y", y), ("width", width), ("height", height)):
    record(f"case.{name}", value)

# %% tags=["decode-figure"] alt="Two panels over t from -5 to 5. Left, offset of the centre in its cell: YOLOv3's curve rises from 0 to 1, YOLOv5's from -0.5 to 1.5; both pass 0.5 at t = 0. Right, factor on the anchor: YOLOv3's exponential leaves the picture at 5 near t = 1.6, YOLOv5's curve rises from 0 to 4; both are 1 at t = 0."
t = torch.linspace(-5, 5, 201)
pairs = (
    ("offset in cells", t.sigmoid(), 2 * t.sigmoid() - 0.5, (-0.7, 1.7)),
    ("factor on the anchor", t.exp(), (2 * t.sigmoid()).square(), (-0.2, 5)),
)
_, axes = plt.subplots(1, 2, figsize=(5, 2.6))
for cell, (words, third, fifth, limits) in zip(axes, pairs):
    cell.plot(t, third, color=plots.COLOURS[1])
    cell.plot(t, fifth, color=plots.COLOURS[0])
    cell.set(title=words, xlabel="t", ylim=limits, xticks=(-4, 0, 4))
axes[0].text(1.2, 0.52, "YOLOv3", color=plots.COLOURS[1])
axes[0].text(-4.8, 1.45, "YOLOv5", color=plots.COLOURS[0])
axes[1].text(-4.4, 4.3, "YOLOv3", color=plots.COLOURS[1])
axes[1].text(1.9, 2.2, "YOLOv5", color=plots.COLOURS[0])
axes[0].set_axisbelow(True)


# %% [markdown]
# As in [YOLOv3](../chapters/yolov3.rst), a score is the objectness times that of a class.


# %% tags=["detect"]
def every_box(outputs, scales) -> tuple[Tensor, Tensor]:
    """All P boxes of all scales (B, P, 4), and their numbers (B, P, 5 + K)."""
    t = [by_anchor(raw, scale) for raw, scale in zip(outputs, scales)]
    places = [decode(*pair).flatten(1, 3) for pair in zip(t, scales)]
    numbers = [part.flatten(1, 3) for part in t]
    return torch.cat(places, dim=1), torch.cat(numbers, dim=1)


@torch.no_grad()
def detect(network, x: Tensor, scales, *, least=0.25, overlap=0.45):
    """What a network finds on images (B, 3, H, W), one `boxes.Detections` for each."""
    with evaluating(network):
        places, t = every_box(network(x), scales)
    probability = t[..., 4:].sigmoid()
    scores = probability[..., :1] * probability[..., 1:]  # an object, and of this class
    how = {"least": least, "overlap": overlap}
    return [boxes.select(*image, **how) for image in zip(places, scores)]


# %% [markdown]
# ## Anchors from the data
#
# What counts is the side ratio: how many times longer a side of the object is than that of
# the anchor, or the other way round, the larger of width and height.


# %% tags=["ratio"]
def side_ratio(size: Tensor, anchors: Tensor) -> Tensor:
    """Of sizes (N, 2) and anchors (A, 2) the larger ratio of two sides, at least 1."""
    ratio = size[:, None] / anchors
    return torch.maximum(ratio, 1 / ratio).amax(-1)  # (N, A)


def within_reach(size: Tensor, anchors: Tensor, *, limit: float = 4.0) -> float:
    """Share of objects whose ratio to the best anchor is below the limit."""
    best = side_ratio(size, anchors).amin(1)
    return (best < limit).double().mean().item()


# %% tags=["k-means"]
def k_means(size: Tensor, k: int, *, rounds: int = 30) -> Tensor:
    """k anchors (k, 2), the smallest first: k-means on the logarithm of both sides.

    Starts with k sizes spread over all, sorted by area.
    """
    points = size[size.prod(1).argsort()].log()  # (N, 2)
    places = (torch.arange(k, device=size.device) + 0.5) / k * len(points)
    centres = points[places.long()]
    for _ in range(rounds):
        nearest = torch.cdist(points, centres).argmin(1)
        groups = [points[nearest == number] for number in range(k)]
        centres = torch.stack([group.mean(0) for group in groups])
    anchors = centres.exp()
    return anchors[anchors.prod(1).argsort()]


# %% tags=["anchors-run"]
def sizes_of(part: boxes.Scenes) -> Tensor:
    """Width and height (N, 2) of all objects."""
    corners = part.boxes[(part.labels >= 0) & ~part.ignored]
    return corners[:, 2:] - corners[:, :2]


source = scenes.source(64)
sizes = sizes_of(source.fixed("train", 400))
anchors = k_means(sizes, 6)
[[round(side) for side in anchor] for anchor in anchors.tolist()]

# %% tags=["scales"]
maps = ((8, 8), (4, 4))  # of an image of 64 pixels, strides 8 and 16
digit_scales = (Scale(8, anchors[:3].tolist()), Scale(16, anchors[3:].tolist()))

# %% tags=["anchors-table"]
COCO = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119))
COCO += ((116, 90), (156, 198), (373, 326))  # Redmon and Farhadi 2018, section 2.3
held_out = sizes_of(source.fixed("validation", 300))
rows = []
reach = {}
sets = {"COCO, nine": torch.tensor(COCO).float(), "k-means, six": anchors}
for name, kind in sets.items():
    for limit in (4.0, 2.0, 1.5):
        reach[name, limit] = within_reach(held_out, kind, limit=limit)
    shares = [f"{reach[name, limit]:.1%}" for limit in (4.0, 2.0, 1.5)]
    rows.append((name, *shares))
table(rows, ("anchors", "below 4", "below 2", "below 1.5"))

# %% tags=["anchors-claims"]
claim(
    min(reach[name, 4.0] for name in sets) > 0.98,
    "below 4, either set reaches 98 % of all",
)
for limit in (2.0, 1.5):
    both = [reach[name, limit] for name in sets]
    claim(both[1] > both[0], f"six from k-means reach more than COCO's nine: {limit}")
for name, kind in (("coco", "COCO, nine"), ("means", "k-means, six")):
    for limit in (4, 2):
        record(f"reach.{name}.{limit}", reach[kind, float(limit)])

# %% [markdown]
# ## Which boxes answer for an object
#
# On each map, each anchor whose side ratio to the object is below a limit, and for each of
# them three cells: that of the centre, and the two neighbours that the centre is nearest to.


# %% tags=["match"]
OWN = ((0, 0),)
# its own, the nearer one beside, the nearer one above or below
THREE = ((0, 0), (1, 0), (0, 1))


class Positives(NamedTuple):
    """The N boxes that answer for an object, and what should come out."""

    image: Tensor  # (N,)
    index: Tensor  # (N,) of the box among the P of its image
    box: Tensor  # (N, 4) the object's corners
    label: Tensor  # (N,)


def anchor_rows(scales, maps) -> list[tuple]:
    """Of each anchor: its sides, stride, rows, columns, first box, boxes of a cell."""
    rows = []
    start = 0
    for scale, (H, W) in zip(scales, maps):
        A = len(scale.anchors)
        for number, anchor in enumerate(scale.anchors):
            rows.append((*anchor, scale.stride, H, W, start + number, A))
        start += H * W * A
    return rows


# %% tags=["positives"]
def positives(
    truth: boxes.Scenes, scales, maps, *, limit=4.0, cells=THREE
) -> Positives:
    """For each object all boxes that answer for it, on all maps.

    maps: height and width of each map. Boxes are numbered as `every_box` does.
    """
    image, number = ((truth.labels >= 0) & ~truth.ignored).nonzero(as_tuple=True)
    box = truth.boxes[image, number]
    label = truth.labels[image, number]
    per_anchor = box.new_tensor(anchor_rows(scales, maps))
    fits = side_ratio(box[:, 2:] - box[:, :2], per_anchor[:, :2]) < limit
    which, anchor = fits.nonzero(as_tuple=True)  # M pairs of an object and an anchor
    stride, H, W, first, A = per_anchor[anchor, 2:].unbind(1)  # (M,) each

    centre = (box[which, :2] + box[which, 2:]) / 2 / stride[:, None]  # in cells
    nearer = 2 * (centre.frac() >= 0.5).to(centre.dtype) - 1  # -1: left, above
    moved = centre.floor() + box.new_tensor(cells)[:, None] * nearer  # (cells, M, 2)
    column, row = moved.unbind(2)
    inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)
    index = (first + (row * W + column) * A).long()
    pair = inside.nonzero(as_tuple=True)[1]
    which = which[pair]
    return Positives(image[which], index[inside], box[which], label[which])


# %% tags=["match-figure"] alt="A grid of cells. A rectangle, an object, with a dot, its centre, in the upper left quarter of a cell. That cell is shaded, and more lightly the cell to its left and the one above. A plus sign marks the middle of each of the three."
_, axes = plt.subplots(figsize=(5, 2.7))
for line in range(8):
    axes.axvline(line, color=plots.GRID, linewidth=1)
    axes.axhline(line, color=plots.GRID, linewidth=1)
centre = torch.tensor([3.3, 2.2])
for column, row, alpha in ((3, 2, 0.35), (2, 2, 0.15), (3, 1, 0.15)):
    blue = {"color": plots.COLOURS[0], "alpha": alpha, "linewidth": 0}
    axes.add_patch(plt.Rectangle((column, row), 1, 1, **blue))
    axes.plot(column + 0.5, row + 0.5, "+", color=plots.COLOURS[0])
axes.add_patch(
    plt.Rectangle((2.1, 0.6), 2.4, 3.2, fill=False, ec=plots.COLOURS[1], lw=2)
)
axes.plot(*centre, "o", color=plots.COLOURS[1])
axes.text(4.6, 0.9, "object", color=plots.COLOURS[1], va="center")
axes.text(0.05, 2.5, "neighbour", color=plots.COLOURS[0], va="center")
axes.text(4.6, 2.5, "its cell", color=plots.COLOURS[0], va="center")
axes.set(xlim=(0, 7), ylim=(4, 0.4), aspect="equal", xticks=(), yticks=())
axes.spines[["left", "bottom"]].set_visible(False)
axes.set_axisbelow(True)

# %% tags=["positives-table"]
truth = source.fixed("validation", 300)
objects = len(sizes_of(truth))
rows = []
answers = {}
for limit in (4.0, 2.0):
    for words, cells in (("one", OWN), ("three", THREE)):
        found = positives(truth, digit_scales, maps, limit=limit, cells=cells)
        answers[limit, words] = len(found.index) / objects
    each = [f"{answers[limit, words]:.2f}" for words in ("one", "three")]
    rows.append((f"{limit:.0f}", *each))
record("objects", objects)
table(rows, ("side ratio below", "positives, one cell", "positives, three cells"))

# %% tags=["positives-claims"]
for limit in (4.0, 2.0):
    factor = answers[limit, "three"] / answers[limit, "one"]
    claim(2 < factor < 3, "less than three times as many: some neighbours lie outside")
record("factor", answers[2.0, "three"] / answers[2.0, "one"])
record("positives.one", answers[2.0, "one"])
record("positives.three", answers[2.0, "three"])

# %% [markdown]
# ## The loss
#
# CIoU for the boxes, cross-entropy for objectness and classes. A positive's objectness should
# be the CIoU that its box has with the object, and that of all other boxes 0.


# %% tags=["loss"]
BALANCE = (4.0, 1.0, 0.4)  # of the levels' objectness, the finest first


def detection_loss(outputs, truth, scales, *, limit=4.0, cells=THREE) -> Tensor:
    """Losses of box, objectness and classes (3,).

    Means over the positives, of the classes their sum; over the boxes of each level.
    """
    places, t = every_box(outputs, scales)
    maps = [raw.shape[2:] for raw in outputs]
    found = positives(truth, scales, maps, limit=limit, cells=cells)
    box = ops.complete_box_iou_loss(places[found.image, found.index], found.box)
    quality = (1 - box.detach()).clamp(min=0)  # CIoU, 0 where it is negative

    B, P, _ = t.shape
    index = found.image * P + found.index
    wanted = t.new_zeros(B * P).scatter_reduce(0, index, quality, "amax").view(B, P)
    numbers = [len(scale.anchors) * H * W for scale, (H, W) in zip(scales, maps)]
    shares = [t.new_full((n,), b / n) for n, b in zip(numbers, BALANCE)]
    cross_entropy = F.binary_cross_entropy_with_logits
    each = cross_entropy(t[..., 4], wanted, reduction="none") * torch.cat(shares)

    mine = t[found.image, found.index, 5:]  # (N, K)
    labels = F.one_hot(found.label, mine.shape[1]).to(t.dtype)
    classes = cross_entropy(mine, labels, reduction="none").sum(1)
    N = max(1, len(mine))
    return torch.stack((box.sum() / N, each.sum(1).mean(), classes.sum() / N))


# %% tags=["loss-run"]
scales = (Scale(16, ((16, 16),)),)
truth = boxes.Scenes(
    images=torch.zeros(1, 3, 32, 32),
    boxes=torch.tensor([[[0.0, 0.0, 16.0, 16.0]]]),
    labels=torch.tensor([[2]]),
    ignored=torch.tensor([[False]]),
)
raw = torch.zeros(1, 5 + 3, 2, 2)  # one anchor, three classes, 2x2 cells
raw[0, 4, 0, 1] = -1.0  # objectness of the neighbour to the right
detection_loss([raw], truth, scales)

# %% tags=["loss-checked"]
found = detection_loss([raw], truth, scales)
beside = 16**2 / (32**2 + 16**2)  # squared distance of centres over squared diagonal
sure = math.log(1 + math.exp(-1))  # cross-entropy of -1 where 0 is wanted
objectness = 4 * (3 * math.log(2) + sure) / 4  # the weight, and a mean over four
by_hand = torch.tensor([2 * (1 + beside) / 3, objectness, 3 * math.log(2)])
claim(checks.deviation(found, by_hand) < 1e-6, "the loss by hand is the loss")
record("case.beside", 1 + beside)
for name, value in zip(("box", "objectness", "classes"), found):
    record(f"case.{name}", value)

# %% [markdown]
# ## Five sizes on one curve
#
# Two levels are enough for 64 pixels. The depths are a third of the published ones, the
# widths a fraction; the multiples are the same. All digits are of one class here.


# %% tags=["small"]
SMALL = Size((8, 16, 32, 64), depths=(1, 2, 3), neck=1)


def small_yolov5(depth: float, width: float, num_classes: int) -> YOLOv5:
    """For scenes of 64 pixels: the same classes, strides 8 and 16."""
    size = scaled(SMALL, depth, width, multiple=4)
    network = YOLOv5(size, num_classes, levels=2)
    for head in network.heads:
        with torch.no_grad():
            head.bias.view(3, -1)[:, 4] = -4.0  # an object at 2 % of the boxes
    return network.to(memory_format=torch.channels_last)


# %% tags=["train"]
LIMIT = 2.0  # of the side ratio: digits differ less in size than what COCO has


def train(network, batches, scales, *, rate: float = 1e-2) -> list[float]:
    """Train on a list of batches of scenes, a step for each; the loss of each step."""
    optimizer = torch.optim.AdamW(network.parameters(), rate, fused=True)
    schedule = training.one_cycle(optimizer, len(batches), rising=0.25)
    network.train()
    losses = []
    for batch in training.progress(batches, "steps"):
        x = batch.images.contiguous(memory_format=torch.channels_last)
        loss = detection_loss(network(x), batch, scales, limit=LIMIT).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


# %% tags=["evaluate"]
def find_all(network, part: boxes.Scenes, scales) -> list[boxes.Detections]:
    """Detections of all scenes, weak ones too, as average precision wants them."""
    found = []
    for x in part.images.split(50):
        found += detect(network, x.to(device), scales, least=0.05)
    return found


def of_one_class(part: boxes.Scenes) -> boxes.Scenes:
    """The same scenes as if all objects were of one class."""
    return part._replace(labels=part.labels.clamp(max=0))


# %% tags=["headline"]
STEPS = 45
SEEDS = (0, 1)
both = source.fixed("test", 600)
test = boxes.Scenes(*(part[300:] for part in both))  # not the ones of trials
half = of_one_class(boxes.Scenes(*(part[:100] for part in test)))
reached = {name: {} for name in MULTIPLES}
for number in SEEDS:
    seed(number)
    batches = [of_one_class(batch) for batch in source.batches(STEPS, 16)]
    for name in MULTIPLES:
        seed(number)
        network = small_yolov5(*MULTIPLES[name], 1).to(device)
        train(network, batches, digit_scales)
        found = find_all(network, half, digit_scales)
        reached[name][number] = boxes.average_precision(found, half, classes=1)

# %% tags=["headline-table"]
rows = []
costs = {}
for name in MULTIPLES:
    network = small_yolov5(*MULTIPLES[name], 1).to(device)
    costs[name] = counting.macs(network, torch.zeros(1, 3, 64, 64, device=device)) / 1e6
    values = [scored["mAP@0.5"] for scored in reached[name].values()]
    strict = [scored["mAP@0.5:0.95"] for scored in reached[name].values()]
    each = f"{costs[name]:.1f}", spread(values, ".2f"), spread(strict, ".2f")
    rows.append((name, counting.parameters(network), *each))
    record_spread(f"half.{name}", values)
names = ("size", "parameters", "M MACs", "AP at 0.5", "AP from 0.5 to 0.95")
table(rows, names)

# %% tags=["headline-claims"]
halves = {}
for name, scored in reached.items():
    halves[name] = [one["mAP@0.5"] for one in scored.values()]
for name, larger in ("ns", "sm", "ml", "mx"):
    ahead = min(halves[larger]) > max(halves[name])
    claim(ahead, f"{larger} is ahead of {name}, whichever seed")
gains = {name: sum(values) / len(SEEDS) for name, values in halves.items()}
first = gains["s"] - gains["n"]
last = gains["x"] - gains["m"]
record("gain.first", first)
record("gain.last", last)
claim(first > last, "in the mean from n to s more than from m to x")

# %% tags=["headline-figure"] alt="Average precision at 0.5 against millions of MACs on a logarithmic axis, a dot for each seed and a line through the means, at the five sizes n, s, m, l, x. The line rises steeply from n and flattens towards x."
_, axes = plt.subplots()
means = []
for name, scored in reached.items():
    values = [one["mAP@0.5"] for one in scored.values()]
    axes.plot([costs[name]] * len(values), values, "o", color=plots.COLOURS[0])
    means.append(sum(values) / len(values))
    axes.annotate(
        name, (costs[name], max(values)), (-10, 6), textcoords="offset points"
    )
axes.plot(list(costs.values()), means, color=plots.COLOURS[0], alpha=0.5)
axes.set(xscale="log", xlabel="million MACs for an image", ylabel="average precision")
axes.set(
    ylim=(0, 0.6), xticks=(0.5, 1, 2, 4, 8), xticklabels=("0.5", "1", "2", "4", "8")
)
axes.minorticks_off()
axes.set_axisbelow(True)

# %% [markdown]
# ## Training longer, with ten classes


# %% tags=["longer"]
RATE = 3e-2
seed(0)
crowded = scenes.source(64, most=8)  # up to eight digits to learn from
once = list(crowded.batches(225, 32))
order = torch.cat([torch.randperm(len(once)) for _ in range(2)])
batches = [once[index] for index in order.tolist()]
network = small_yolov5(1 / 3, 1.5, len(crowded.classes)).to(device)
losses = train(network, batches, digit_scales, rate=RATE)

# %% tags=["result"]
kinds = len(crowded.classes)
found = find_all(network, test, digit_scales)
scored = boxes.average_precision(found, test, classes=kinds, sides=(16, 22))
rows = [
    (name if "@" in name else f"{name}, mAP@0.5", f"{value:.2f}")
    for name, value in scored.items()
]
table(rows, ("measure", f"{len(test.images)} test scenes"))

# %% tags=["result-records"]
record("steps", len(batches))
record("scenes", sum(len(batch.images) for batch in once))
record("rate", RATE)
record("headline.steps", STEPS)
record("small.parameters", counting.parameters(network))
record("digits.half", scored["mAP@0.5"])
claim(scored["small"] < scored["large"], "large digits reach more than small ones")

# %% tags=["curve"] alt="Loss against steps. The curve falls steeply over the first thirty steps or so and slowly afterwards."
_, axes = plt.subplots(figsize=(5, 2.4))
smooth = [part.mean().item() for part in torch.tensor(losses).split(10)]
steps = [10 * number + 5 for number in range(len(smooth))]
axes.plot(steps, smooth, color=plots.COLOURS[0])
axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
axes.set_axisbelow(True)
claim(sum(losses[-50:]) < sum(losses[:50]), "the loss falls")

# %% tags=["comparison"]
comparison.compare(
    network, lambda x: find_all(network, test._replace(images=x), digit_scales)
)

# %% [markdown]
# ## What it finds and what it misses
#
# The first four of these scenes, and of the first hundred the four with the most mistakes.


# %% tags=["mistakes-run"]
hundred = boxes.Scenes(*(part[:100] for part in test))
shown = detect(network, hundred.images.to(device), digit_scales, least=0.4)
counts = detectors.mistakes(shown, hundred)
record("flawless", counts.count(0))
worst = sorted(range(100), key=counts.__getitem__)[-4:]
claim(counts.count(0) > 0 and min(counts[i] for i in worst) > 0, "both kinds are there")

# %% tags=["scenes-figure"] alt="Eight small scenes of coloured digits on dim photographs. White boxes outline the digits, yellow boxes with a class and a score the detections. In the lower four there are digits without a yellow box, with one of another class, or with one that lies badly."
chosen = [0, 1, 2, 3, *worst]
part = boxes.Scenes(*(values[chosen] for values in hundred))
boxes.show(part, [shown[i] for i in chosen], crowded.classes, columns=4)


# %% [markdown]
# ## What the objectness says
#
# Of each positive on the test scenes: the objectness, and the CIoU of its box and the object.


# %% tags=["quality"]
@torch.no_grad()
def objectness_and_ciou(network, part: boxes.Scenes, scales) -> tuple[Tensor, Tensor]:
    """Of every positive of the scenes: its objectness, and its box's CIoU (N,) both."""
    with evaluating(network):
        outputs = network(part.images.to(device))
    places, t = every_box(outputs, scales)
    maps = [raw.shape[2:] for raw in outputs]
    found = positives(part.to(t.device), scales, maps, limit=LIMIT)
    mine = places[found.image, found.index]
    ciou = 1 - ops.complete_box_iou_loss(mine, found.box)
    objectness = t[found.image, found.index, 4].sigmoid()
    return objectness.cpu(), ciou.cpu()


# %% tags=["quality-table"]
objectness, ciou = objectness_and_ciou(network, test, digit_scales)
rows = []
means = []
for low, high in ((0.0, 0.4), (0.4, 0.6), (0.6, 1.0)):
    inside = (objectness >= low) & (objectness < high)
    means.append(ciou[inside].mean().item())
    rows.append((f"{low} to {high}", int(inside.sum()), f"{means[-1]:.2f}"))
claim(means == sorted(means), "the mean CIoU rises with the objectness")
table(rows, ("objectness", "positives", "mean CIoU with the object"))

# %% [markdown]
# ## The published weights
#
# The list's example fetches code and weights by torch.hub. Both are licensed under the AGPL
# and are no part of this book; the sample profile asks no server.


# %% tags=["hub"]
def from_hub(name: str = "yolov5s") -> nn.Module:
    """The published network with its weights, brought by torch.hub."""
    if PROFILE != "full":
        raise RuntimeError(f"{name} is fetched from a server: set PROFILE=full")
    return torch.hub.load("ultralytics/yolov5", name, trust_repo=True)


def example(picture: str) -> str:
    """What YOLOv5s says of a picture, or in words why it cannot be asked.

    The project turns what goes wrong while it loads into a plain Exception.
    """
    try:
        model = from_hub()
        return str(model([picture]))  # fetches the picture, too
    except Exception as error:
        return f"YOLOv5s cannot be asked: {error}"


# %% tags=["hub-run"]
print(example("https://ultralytics.com/images/zidane.jpg"))

# %% [markdown]
# ## Solutions


# %% tags=["solution-1"]
def folded(layer: nn.Sequential) -> nn.Sequential:
    """A trained layer with its batch norm inside the convolution."""
    conv, norm, activation = layer
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()  # (c_out,)
    weight = conv.weight * factor.view(-1, 1, 1, 1)
    bias = norm.bias - norm.running_mean * factor
    how = {"stride": conv.stride, "padding": conv.padding}
    one = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, **how)
    one.to(weight.device)
    one.load_state_dict({"weight": weight, "bias": bias})
    return nn.Sequential(one, activation)


# %% tags=["solution-1-result"]
seed(0)
layer = checks.randomise_norms(conv_norm(16, 32, 3, stride=2))
difference = checks.same_outputs(folded(layer), layer, torch.randn(2, 16, 20, 24))
with torch.device("meta"):
    network_s = YOLOv5(scaled(BASE, *MULTIPLES["s"]))
norms = [part for part in network_s.modules() if isinstance(part, nn.BatchNorm2d)]
saved = sum(part.num_features for part in norms)
claim(difference < 1e-5, "a folded layer gives the same")
after = counting.parameters(network_s) - saved
table([(f"{difference:.1g}", saved, after)], ("difference", "fewer", "left in s"))

# %% tags=["solution-2"]
validation = source.fixed("validation", 300)
rows = []
for limit in (1.25, 1.5, 2.0, 3.0, 4.0):
    found = positives(validation, digit_scales, maps, limit=limit)
    reached_by = within_reach(sizes_of(validation), anchors, limit=limit)
    each = len(found.index) / len(sizes_of(validation))
    rows.append((f"{limit}", f"{each:.1f}", f"{1 - reached_by:.1%}"))

# %% tags=["solution-2-result"]
table(rows, ("side ratio below", "positives an object", "objects without one"))

# %% tags=["solution-3"]
larger = scenes.source(96).fixed("test", 60)
found = find_all(network, larger, digit_scales)
at_96 = boxes.average_precision(found, larger, classes=len(crowded.classes))

# %% tags=["solution-3-result"]
table(
    [(len(larger.images), f"{at_96['mAP@0.5']:.2f}")],
    ("scenes of 96 pixels", "mAP@0.5"),
)


# %% tags=["solution-4"]
class AlwaysThere(nn.Module):
    """A detector whose objectness is 1 everywhere."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for raw in self.network(x):
            t = raw.unflatten(1, (3, -1)).clone()  # (B, 3, 5 + K, H, W)
            t[:, :, 4] = 20.0  # its sigmoid is 1
            outputs.append(t.flatten(1, 2))
        return outputs


# %% tags=["solution-4-result"]
part = boxes.Scenes(*(values[:100] for values in test))
found = find_all(AlwaysThere(network), part, digit_scales)
without = boxes.average_precision(found, part, classes=kinds)
found = find_all(network, part, digit_scales)
with_it = boxes.average_precision(found, part, classes=kinds)
values = [scored["mAP@0.5"] for scored in (with_it, without)]
claim(values[0] > values[1], "without the objectness the average precision is lower")
row = len(part.images), *(f"{value:.2f}" for value in values)
table([row], ("test scenes", "with objectness", "without"))
