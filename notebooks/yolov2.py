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
# # YOLOv2 and YOLO9000
#
# Boxes that start from typical shapes, centres that cannot leave their cell, a finer map
# passed through to a coarser one, and a tree of classes.
# The text to it is the [chapter](../chapters/yolov2.rst), the paper is
# [Redmon and Farhadi 2016](https://arxiv.org/abs/1612.08242).

# %%
import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import claim, device, evaluating, record, record_spread, seed
from workbench import spread, table
from workbench import boxes, checks, comparison, counting, darknet, detectors
from workbench import diagrams, plots, scenes, training

SEEDS = (0, 1, 2)

# %% [markdown]
# ## Darknet-19
#
# Rows of table 6: kernel and channels of a convolution, or a halving of the map.

# %% tags=["layers"]
POOL = None


def conv_norm(c_in: int, c_out: int, size: int) -> nn.Sequential:
    """Convolution without bias, batch norm, leaky ReLU: a layer of Darknet."""
    conv = nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.LeakyReLU(0.1))


def layers(c_in: int, rows) -> nn.Sequential:
    """A layer for each row (kernel, channels), the maxima of 2x2 for each POOL."""
    parts = []
    for row in rows:
        if row is POOL:
            parts.append(nn.MaxPool2d(2))
            continue
        size, c_out = row
        parts.append(conv_norm(c_in, c_out, size))
        c_in = c_out
    return nn.Sequential(*parts)


# %% tags=["rows"]
FINE = (
    *((3, 32), POOL, (3, 64), POOL),
    *((3, 128), (1, 64), (3, 128), POOL),
    *((3, 256), (1, 128), (3, 256), POOL),
    *((3, 512), (1, 256), (3, 512), (1, 256), (3, 512)),
)
COARSE = (POOL, (3, 1024), (1, 512), (3, 1024), (1, 512), (3, 1024))


# %% tags=["backbone"]
class Darknet(nn.Module):
    """Convolutions of Darknet-19 (table 6): its last two maps.

    (B, 3, H, W) -> (B, 512, H / 16, W / 16), (B, 1024, H / 32, W / 32).
    """

    def __init__(self, fine=FINE, coarse=COARSE):
        super().__init__()
        self.widths = (fine[-1][1], coarse[-1][1])
        self.fine = layers(3, fine)
        self.coarse = layers(self.widths[0], coarse)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(x)
        return fine, self.coarse(fine)


class Classifier(nn.Module):
    """Darknet-19 for ImageNet: a 1x1 convolution, then the mean over the map."""

    def __init__(self, backbone: Darknet, num_classes: int = 1000):
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Conv2d(backbone.widths[1], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, coarse = self.backbone(x)
        return self.classifier(coarse).mean((2, 3))  # (B, K)


# %% tags=["backbone-shape"]
with torch.device("meta"):
    shapes = [tuple(c.shape) for c in Darknet()(torch.empty(1, 3, 416, 416))]
shapes

# %% [markdown]
# ## The passthrough layer
#
# Each square of 2x2 pixels becomes one cell with four times the channels. Nothing is added
# and nothing is lost.

# %% tags=["unshuffle"]
x = torch.arange(1, 17).view(1, 1, 4, 4)
F.pixel_unshuffle(x, 2)

# %% tags=["passthrough-figure"] alt="Left, a map of 4 by 4 pixels with the numbers 1 to 16 in rows; each square of 2 by 2 has four colours, the same in each square. An arrow to the right, to four maps of 2 by 2, one colour each: 1 3 9 11, then 2 4 10 12, then 5 7 13 15, then 6 8 14 16."
figure, axes = plt.subplots(figsize=(5, 2.1), layout="none")
axes.set(position=(0, 0, 1, 1), xlim=(0, 10), ylim=(4.4, 0))
axes.axis("off")
corners = {
    (0, 0): (5.4, 0.1),
    (0, 1): (7.8, 0.1),
    (1, 0): (5.4, 2.3),
    (1, 1): (7.8, 2.3),
}
for number in range(16):
    row, column = divmod(number, 4)
    colour = plots.COLOURS[row % 2 * 2 + column % 2]
    left, top = corners[row % 2, column % 2]
    for x, y in ((0.3 + column, 0.2 + row), (left + column // 2, top + row // 2)):
        axes.add_patch(plt.Rectangle((x, y), 1, 1, fill=False, ec=colour, lw=1.5))
        axes.text(x + 0.5, y + 0.5, number + 1, color=colour, ha="center", va="center")
arrow = {"arrowstyle": "->", "color": plots.QUIET}
axes.annotate("", (5.2, 2.2), (4.5, 2.2), arrowprops=arrow)
axes.set_axisbelow(True)

# %% [markdown]
# Darknet's own layer reads the memory of the map as one of a quarter of the channels and of
# twice the side, and takes that apart. The published weights need this one.


# %% tags=["reorg"]
class DarknetReorg(nn.Module):
    """Darknet's layer "reorg" of stride 2: (B, C, H, W) -> (B, 4 C, H / 2, W / 2).

    `reorg_cpu` in blas.c, called with the sizes of the layer's input.
    """

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        pairs = x.reshape(B, C * H // 4, 2, W, 2)  # rows of 2 W, two by two
        split = pairs.permute(0, 2, 4, 1, 3)  # (B, 2, 2, C H / 4, W)
        return split.reshape(B, 4 * C, H // 2, W // 2)


# %% tags=["origin"]
def origins(reorg: nn.Module, C: int, H: int, W: int) -> tuple[Tensor, Tensor]:
    """Row and column that each value of a layer's output comes from.

    Both (4 C, H / 2, W / 2).
    """
    row = torch.arange(H).view(H, 1).expand(1, C, H, W)
    column = torch.arange(W).expand(1, C, H, W)
    return reorg(row)[0], reorg(column)[0]


def rows_off(reorg: nn.Module, C: int, H: int, W: int) -> Tensor:
    """By how many rows each value lies outside of the two rows of its cell."""
    row, _ = origins(reorg, C, H, W)
    first = 2 * torch.arange(H // 2).view(-1, 1)
    return torch.maximum(first - row, row - first - 1).clamp(min=0)


# %% tags=["reorg-table"]
kinds = {"pixel-unshuffle": nn.PixelUnshuffle(2), "Darknet's reorg": DarknetReorg()}
rows = []
for name, layer in kinds.items():
    off = rows_off(layer, 64, 26, 26)
    _, column = origins(layer, 64, 26, 26)
    claim((column // 2 == torch.arange(13)).all(), f"the columns are right: {name}")
    shares = [(off == far).double().mean().item() for far in (0, 1)]
    rows.append((name, *(f"{s:.1%}" for s in (*shares, 1 - sum(shares)))))
record("reorg.own", shares[0])
record("reorg.far", 1 - sum(shares))
claim(shares[0] == 0.5, "half of the values are in their own cell")
claim(off[off > 1].min() == 24, "the others that are far come from the other edge")
table(rows, ("26×26 pixels, 64 channels", "own cell", "one row off", "farther"))

# %% [markdown]
# ## The network
#
# Two 3x3 convolutions on the coarse map; the fine one is narrowed to 64 channels, taken apart
# and put before it; one more 3x3 convolution, then the outputs of each cell.


# %% tags=["network"]
class YOLOv2(nn.Module):
    """One map of boxes from a coarse map and a finer one passed through (section 2).

    (B, 3, H, W) -> (B, outputs, H / 32, W / 32). Modules are registered in the order of
    Darknet's configuration.
    """

    def __init__(self, backbone, outputs: int, *, narrow: int = 64, reorg: nn.Module):
        super().__init__()
        fine, coarse = backbone.widths
        self.backbone = backbone
        first = conv_norm(coarse, coarse, 3)
        self.refine = nn.Sequential(first, conv_norm(coarse, coarse, 3))
        self.narrow = conv_norm(fine, narrow, 1)
        self.reorg = reorg
        self.join = conv_norm(4 * narrow + coarse, coarse, 3)
        self.head = nn.Conv2d(coarse, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.backbone(x)  # strides 16 and 32
        passed = self.reorg(self.narrow(fine))  # (B, 256, H / 32, W / 32)
        x = torch.cat((passed, self.refine(coarse)), dim=1)
        return self.head(self.join(x))  # (B, A (5 + K), H / 32, W / 32)


def yolov2(num_classes: int = 80) -> YOLOv2:
    """The published network with five anchors; Pascal VOC has 20 classes."""
    return YOLOv2(Darknet(), 5 * (5 + num_classes), reorg=DarknetReorg())


# %% tags=["network-shape"]
with torch.device("meta"):
    raw = yolov2()(torch.empty(1, 3, 416, 416))
raw.shape

# %% [markdown]
# Two relatives: a small one for speed, and one of 9,418 classes without a passthrough layer.


# %% tags=["relatives"]
class LastPool(nn.Module):
    """The largest of 2x2 pixels at stride 1, fewer at the right and lower edge."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 2, stride=1)


class Chain(nn.Module):
    """Layers one behind the other, and a 1x1 convolution with bias as the last."""

    def __init__(self, body: nn.Module, width: int, outputs: int):
        super().__init__()
        self.body = body
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # (B, outputs, H / 32, W / 32)


def yolov2_tiny(num_classes: int = 80) -> Chain:
    """YOLOv2-tiny: the authors' yolov2-tiny.cfg."""
    rows = [(3, 16), POOL, (3, 32), POOL, (3, 64), POOL, (3, 128), POOL, (3, 256), POOL]
    last = (conv_norm(512, 1024, 3), conv_norm(1024, 512, 3))
    body = nn.Sequential(*layers(3, [*rows, (3, 512)]), LastPool(), *last)
    return Chain(body, 512, 5 * (5 + num_classes))


def yolo9000(nodes: int = 9418) -> Chain:
    """YOLO9000: Darknet-19 and three anchors, each with a number for every node."""
    return Chain(layers(3, FINE + COARSE), 1024, 3 * (5 + nodes))


# %% tags=["count-table"]
sizes = {
    "Darknet-19": (lambda: Classifier(Darknet()), 224, 20_842_376, 20_856_776, 5.582),
    "YOLOv2, COCO": (yolov2, 416, 50_962_889, 50_983_561, 29.464),
    "YOLOv2, VOC": (lambda: yolov2(20), 416, 50_655_389, 50_676_061, 29.360),
    "YOLOv2-tiny": (yolov2_tiny, 416, 11_232_057, 11_237_145, 5.406),
    "YOLO9000": (yolo9000, 544, 48_793_101, 48_807_501, 49.062),
}
rows = []
for name, (build, side, parameters, floats, billions) in sizes.items():
    with torch.device("meta"):
        network = build()
        macs = counting.macs(network, torch.empty(1, 3, side, side))
    counted = counting.parameters(network)
    in_file = darknet.floats(network)
    claim((counted, in_file) == (parameters, floats), f"{name}: the published counts")
    claim(abs(2 * macs / 1e9 - billions) < 0.001, f"{name} costs what Darknet says")
    if name == "YOLOv2, COCO":
        record("yolov2.parameters", counted)
        record("yolov2.macs", macs)
    rows.append((name, side, counted, in_file, f"{macs / 1e9:.3f}"))
table(rows, ("network", "side", "parameters", "floats in the file", "G MACs"))


# %% [markdown]
# ## Anchors
#
# How well does a set of shapes cover the boxes of a data set? For each box the IoU with the
# closest shape, both on one centre, and the mean over the boxes.


# %% tags=["shape-iou"]
def shape_iou(size: Tensor, anchors: Tensor) -> Tensor:
    """IoU (N, A) of boxes (N, 2) with anchors (A, 2), laid on one centre."""
    size = size.unsqueeze(1)
    common = torch.minimum(size, anchors).prod(-1)
    return common / (size.prod(-1) + anchors.prod(-1) - common)


def average_iou(size: Tensor, anchors: Tensor) -> float:
    """Mean over the boxes of the IoU with the closest anchor (table 1)."""
    return shape_iou(size, anchors).amax(1).mean().item()


# %% tags=["distance-run"]
pairs = torch.tensor([[8.0, 8.0], [28.0, 28.0]])
larger = pairs + 4
near = shape_iou(pairs, larger).diagonal()
1 - near

# %% tags=["distance-checked"]
expected = torch.tensor([64 / 144, 784 / 1024])
claim(checks.deviation(near, expected) < 1e-6, "the two overlaps are those by hand")
record("distance.small", 1 - near[0])
record("distance.large", 1 - near[1])


# %% tags=["k-means"]
def by_iou(size: Tensor, anchors: Tensor) -> Tensor:
    return 1 - shape_iou(size, anchors)


def k_means(size: Tensor, k: int, *, distance=by_iou, steps: int = 30) -> Tensor:
    """k anchors for boxes (N, 2): each the mean of the boxes that are closest to it."""
    anchors = size[torch.randperm(len(size))[:k]]
    for _ in range(steps):
        closest = distance(size, anchors).argmin(1)
        member = F.one_hot(closest, k).to(size.dtype)  # (N, k)
        count = member.sum(0).unsqueeze(1)
        means = member.T @ size / count.clamp(min=1)
        anchors = torch.where(count > 0, means, anchors)
    return anchors[anchors.prod(1).argsort()]


# %% tags=["boxes"]
def sizes_in(part: boxes.Scenes) -> Tensor:
    """Width and height (N, 2) of all objects of some scenes."""
    there = (part.labels >= 0) & ~part.ignored
    corners = part.boxes[there]
    return (corners[:, 2:] - corners[:, :2]).cpu()


def part_of(source, number: int, n: int) -> Tensor:
    """Sizes of the boxes of n training scenes that a seed draws."""
    seed(number)
    return torch.cat([sizes_in(batch) for batch in source.batches(n // 50, 50)])


# %% tags=["anchors-run"]
COUNTS = (1, 2, 3, 4, 5, 7, 9, 12)
source = scenes.source(64)
both = source.fixed("test", 600)
test = boxes.Scenes(*(part[300:] for part in both))  # as in all chapters on detectors
held_out = sizes_in(test)
known = {number: part_of(source, number, 400) for number in SEEDS}
runs = torch.zeros(len(SEEDS), len(COUNTS))
chosen = {}
for row, number in enumerate(SEEDS):
    for column, k in enumerate(COUNTS):
        chosen[number, k] = k_means(known[number], k)
        runs[row, column] = average_iou(held_out, chosen[number, k])


# %% tags=["hand-picked"]
def three_by_three(sides) -> Tensor:
    """Nine anchors: areas of three squares, each at 1:2, 1:1 and 2:1."""
    wide = torch.tensor([(0.5**0.5, 2**0.5), (1.0, 1.0), (2**0.5, 0.5**0.5)])
    return (torch.tensor(sides).view(3, 1, 1) * wide).flatten(0, 1)


V3 = (
    *((12, 24), (18, 25), (24, 26)),
    *((10, 19), (14, 20), (17, 22)),
    *((8, 13), (10, 14), (12, 17)),
)
BY_HAND = {
    "sides 8, 16, 32 in three ratios": three_by_three((8.0, 16.0, 32.0)),
    "sides 12, 18, 28 in three ratios": three_by_three((12.0, 18.0, 28.0)),
    "those of the YOLOv3 chapter": torch.tensor(V3).float(),
}

# %% tags=["anchors-table"]
rows = []
reached = {}
for name, anchors in BY_HAND.items():
    reached[name] = average_iou(held_out, anchors)
    rows.append((f"by hand: {name}", len(anchors), f"{reached[name]:.3f}"))
for k in (5, 9):
    values = runs[:, COUNTS.index(k)].tolist()
    record_spread(f"anchors.{k}", values)
    rows.append((f"k-means, {k}", k, spread(values, ".3f")))
first, second, third = reached.values()
record("hand.third", third)
record("hand.second", second)
five, nine = (runs[:, COUNTS.index(k)] for k in (5, 9))
ahead = five.min() > max(first, second)
claim(ahead, "five by k-means cover better than nine in ratios")
claim(five.max() - five.min() < 0.01, "the seeds differ little")
claim(nine.min() > third, "nine by k-means cover better than nine by hand")
claim(five.max() < third, "nine tuned by hand cover better than five by k-means")
table(rows, ("anchors", "how many", "average IoU, held-out boxes"))

# %% tags=["anchors-figure"] alt="Left: average IoU against the number of anchors from 1 to 12, a line that rises steeply up to 3 and flatter from there; a narrow band of three seeds. Three crosses at nine anchors, chosen by hand, lie below it. Right: five rectangles on one centre, from a narrow upright one to a large, nearly square one."
figure, (left, right) = plt.subplots(1, 2, figsize=(5, 2.9), width_ratios=(3, 2))
plots.seed_band(left, COUNTS, runs, plots.COLOURS[1])
left.plot([9] * 3, list(reached.values()), "x", color=plots.COLOURS[0])
left.text(8.6, 0.68, "by hand", color=plots.COLOURS[0], ha="right")
left.text(11.9, 0.868, "k-means", color=plots.COLOURS[1], ha="right")
left.set(xlabel="anchors", ylabel="average IoU", xticks=(1, 3, 5, 7, 9, 12))
left.set(ylim=(0.61, 0.9))
for width, height in chosen[0, 5].tolist():
    corner = (-width / 2, -height / 2)
    colour = plots.COLOURS[1]
    right.add_patch(plt.Rectangle(corner, width, height, fill=False, ec=colour, lw=1.5))
right.set(xlim=(-16, 16), ylim=(16, -16), aspect="equal", xlabel="pixels")
right.set(xticks=(-12, 0, 12), yticks=(-12, 0, 12))
left.set_axisbelow(True)

# %% [markdown]
# The digits are all of similar size. Here boxes with sides from 6 to 60 pixels.


# %% tags=["squared"]
def by_square(size: Tensor, anchors: Tensor) -> Tensor:
    """Squared difference of width and height, (N, A)."""
    return (size.unsqueeze(1) - anchors).square().sum(-1)


# %% tags=["squared-run"]
wide = scenes.source(64, sides=(6, 60))
unseen = sizes_in(wide.fixed("test", 300))
samples = [part_of(wide, number, 400) for number in SEEDS]
distances = {"IoU": by_iou, "squares": by_square}
measured = {}
for name, distance in distances.items():
    for k in (3, 5):
        measured[name, k] = []
        for number in SEEDS:
            seed(number)
            anchors = k_means(samples[number], k, distance=distance)
            measured[name, k].append(average_iou(unseen, anchors))

# %% tags=["squared-table"]
rows = []
for k in (3, 5):
    values = [measured[name, k] for name in distances]
    rows.append((k, *(spread(value, ".3f") for value in values)))
claim(min(measured["IoU", 3]) > max(measured["squares", 3]), "IoU is ahead with three")
by_seed = torch.tensor(measured["squares", 5])
gap = sum(measured["IoU", 5]) / len(SEEDS) - by_seed.mean()
claim(abs(gap) < by_seed.max() - by_seed.min(), "with five they differ as seeds do")
table(rows, ("anchors", "k-means on IoU", "k-means on squares"))

# %% [markdown]
# ## Direct location prediction
#
# Where is the centre of a box? An offset in anchors' sizes can go anywhere in the image; a
# sigmoid keeps the centre in its cell.


# %% tags=["place"]
def direct(t: Tensor, reach: Tensor) -> Tensor:
    """Centre in its cell, 0..1, of numbers t (..., 2): the paper's way."""
    return t.sigmoid()


def free(t: Tensor, reach: Tensor) -> Tensor:
    """The same without a bound: t in sizes `reach` of the anchor, those in cells."""
    return 0.5 + t * reach


# %% tags=["place-run"]
t = torch.tensor([1.0, 0.0])
reach = torch.tensor([22.0, 24.0]) / 8  # an anchor of 22 x 24 pixels, cells of 8
torch.stack((direct(t, reach), free(t, reach)))

# %% tags=["place-checked"]
inside = 8 / (1 + math.exp(-1.0))
claim(abs(8 * direct(t, reach)[0].item() - inside) < 1e-5, "the sigmoid by hand")
claim(abs(8 * free(t, reach)[0].item() - 26) < 1e-5, "the free centre by hand")
record("place.inside", inside)
record("place.free", 8 * free(t, reach)[0])


# %% tags=["decode"]
class Scale(NamedTuple):
    """The output map: stride and anchors (width, height), both in pixels."""

    stride: int
    anchors: tuple[tuple[float, float], ...]


def by_anchor(raw: Tensor, scale: Scale) -> Tensor:
    """(B, A (5 + K), H, W) -> (B, H, W, A, 5 + K)."""
    return raw.unflatten(1, (len(scale.anchors), -1)).permute(0, 3, 4, 1, 2)


def decode(t: Tensor, scale: Scale, place=direct) -> Tensor:
    """Boxes (B, H, W, A, 4) in pixels, corners, of numbers t (B, H, W, A, 5 + K)."""
    B, H, W, A, _ = t.shape
    anchors = t.new_tensor(scale.anchors)
    offset = place(t[..., 0:2], anchors / scale.stride)  # (B, H, W, A, 2)
    row = torch.arange(H, device=t.device).view(H, 1, 1)
    column = torch.arange(W, device=t.device).view(1, W, 1)
    x = (offset[..., 0] + column) * scale.stride
    y = (offset[..., 1] + row) * scale.stride
    centre = torch.stack((x, y), dim=-1)
    size = t[..., 2:4].exp() * anchors
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


# %% [markdown]
# ## The loss
#
# One anchor is responsible for an object: the one that fits best, in the cell of the
# object's centre. Its objectness shall be the IoU of its box, and the classes share a
# softmax.


# %% tags=["assign"]
class Positives(NamedTuple):
    """The N objects of a batch: which box is responsible, and what should come out."""

    image: Tensor  # (N,)
    index: Tensor  # (N,) of the box among the H W A of its image
    box: Tensor  # (N, 4) in pixels
    offset: Tensor  # (N, 2) of the centre in its cell, 0..1
    anchor: Tensor  # (N, 2) in pixels
    label: Tensor  # (N,)


def positives(truth: boxes.Scenes, scale: Scale) -> Positives:
    """For each object the anchor that fits best, at the cell of the object's centre."""
    anchors = truth.boxes.new_tensor(scale.anchors)
    W = truth.images.shape[3] // scale.stride
    image, number = ((truth.labels >= 0) & ~truth.ignored).nonzero(as_tuple=True)
    box = truth.boxes[image, number]  # (N, 4)
    best = shape_iou(box[:, 2:] - box[:, :2], anchors).argmax(1)
    centre = (box[:, :2] + box[:, 2:]) / 2 / scale.stride  # in cells
    column, row = centre.long().unbind(1)
    index = (row * W + column) * len(anchors) + best
    label = truth.labels[image, number]
    return Positives(image, index, box, centre.frac(), anchors[best], label)


# %% tags=["loss"]
def objectness_wanted(places: Tensor, truth: boxes.Scenes, found: Positives):
    """What each box (B, P) should say of an object, and whether it counts.

    The responsible box its IoU with the object, the others nothing; those of them that
    overlap an object by more than 0.6 are left out.
    """
    mine = places[found.image, found.index].unsqueeze(1)  # (N, 1, 4)
    wanted = torch.zeros_like(places[..., 0])
    wanted[found.image, found.index] = detectors.best_overlap(
        mine, found.box.unsqueeze(1)
    )[:, 0]
    counted = detectors.best_overlap(places, truth.boxes) <= 0.6
    counted[found.image, found.index] = True
    return wanted, counted


def detection_loss(raw, truth: boxes.Scenes, scale: Scale, place=direct) -> Tensor:
    """Losses of centre, size, objectness and classes (4,), mean over the images.

    raw (B, A (5 + K), H, W). Sections 2 and 3, and Darknet's region layer.
    """
    t = by_anchor(raw, scale)
    places = decode(t.detach(), scale, place).flatten(1, 3)
    t = t.flatten(1, 3)  # (B, H W A, 5 + K)
    found = positives(truth, scale)
    wanted, counted = objectness_wanted(places, truth, found)

    mine = t[found.image, found.index]  # (N, 5 + K)
    offset = place(mine[:, 0:2], found.anchor / scale.stride)
    stretch = ((found.box[:, 2:] - found.box[:, :2]) / found.anchor).log()
    centre = (offset - found.offset).square().sum()
    size = (mine[:, 2:4] - stretch).square().sum()
    objectness = F.binary_cross_entropy_with_logits(
        t[..., 4][counted], wanted[counted], reduction="sum"
    )
    classes = F.cross_entropy(mine[:, 5:], found.label, reduction="sum")
    return torch.stack((centre, size / 2, objectness, classes)) / len(t)


# %% tags=["loss-run"]
hand = Scale(16, ((10, 20), (20, 20)))
truth = boxes.Scenes(
    images=torch.zeros(1, 3, 32, 32),
    boxes=torch.tensor([[[0.0, 0.0, 16.0, 20.0]]]),
    labels=torch.tensor([[2]]),
    ignored=torch.tensor([[False]]),
)
raw = torch.zeros(1, 2 * (5 + 3), 2, 2)  # two anchors, three classes, 2x2 cells
detection_loss(raw, truth, hand)

# %% tags=["loss-checked"]
size = math.log(16 / 20) ** 2 / 2
expected = torch.tensor([0.125**2, size, 8 * math.log(2), math.log(3)])
found = detection_loss(raw, truth, hand)
places = decode(by_anchor(raw, hand), hand).flatten(1, 3)
wanted, counted = objectness_wanted(places, truth, positives(truth, hand))
common = 16 * 18
union = 20 * 20 + 16 * 20 - common
claim(abs(wanted[0, 1].item() - common / union) < 1e-6, "the IoU by hand is the aim")
claim(counted.all(), "no box is left out")
claim(checks.deviation(found, expected) < 1e-6, "the loss by hand is the loss")
record("case.iou", wanted[0, 1])
for name, value in zip(("centre", "size", "objectness", "classes"), found):
    record(f"case.{name}", value)

# %% [markdown]
# ## With the sigmoid and without
#
# A small network of the same classes, the paper's optimiser, the same scenes and initial
# weights; what differs is the place of the centre, and for one the unit of its error.


# %% tags=["small"]
SMALL_FINE = (*((3, 8), POOL, (3, 24), POOL), *((3, 48), (1, 24), (3, 48)))
SMALL_COARSE = (POOL, (3, 64), (1, 32), (3, 64))


def small_yolov2(num_classes: int, anchors: int = 5) -> YOLOv2:
    """A small configuration of the same classes, for 64 pixels: strides 4 and 8."""
    backbone = Darknet(SMALL_FINE, SMALL_COARSE)
    outputs = anchors * (5 + num_classes)
    network = YOLOv2(backbone, outputs, narrow=16, reorg=nn.PixelUnshuffle(2))
    with torch.no_grad():
        network.head.bias.view(anchors, -1)[:, 4] = -4.0  # an object in 2 % of them
    return network


# %% tags=["start"]
@torch.no_grad()
def centre_error(raw: Tensor, truth: boxes.Scenes, scale: Scale, place) -> Tensor:
    """Mean distance in pixels of the responsible boxes' centres from the objects'."""
    found = positives(truth, scale)
    mine = by_anchor(raw, scale).flatten(1, 3)[found.image, found.index]
    offset = place(mine[:, 0:2], found.anchor / scale.stride)
    return scale.stride * (offset - found.offset).square().sum(1).sqrt().mean()


def in_anchors(raw, truth: boxes.Scenes, scale: Scale, place) -> Tensor:
    """`detection_loss`, but the centre's error in widths and heights of the anchor.

    So a region proposal network measures it.
    """
    found = positives(truth, scale)
    mine = by_anchor(raw, scale).flatten(1, 3)[found.image, found.index]
    reach = found.anchor / scale.stride
    error = (place(mine[:, 0:2], reach) - found.offset) / reach
    _, *others = detection_loss(raw, truth, scale, place)
    return torch.stack((error.square().sum() / len(raw), *others))


def begin(batches, scale: Scale, place, *, loss_of=detection_loss) -> Tensor:
    """The first steps of a small network: the centre error before each one."""
    network = small_yolov2(len(source.classes), len(scale.anchors)).to(device)
    how = {"momentum": 0.9, "weight_decay": 5e-4}
    optimizer = torch.optim.SGD(network.train().parameters(), 1e-3, **how)
    errors = []
    for batch in batches:
        raw = network(batch.images)
        errors.append(centre_error(raw, batch, scale, place))
        loss = loss_of(raw, batch, scale, place).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.stack(errors).cpu()


# %% tags=["start-run"]
FIRST = 24
digits = Scale(8, tuple(map(tuple, chosen[0, 5].tolist())))
ways = {
    "sigmoid": (direct, detection_loss),
    "free, error in cells": (free, detection_loss),
    "free, error in anchors": (free, in_anchors),
}
starts = {}
for name, (place, loss_of) in ways.items():
    for number in SEEDS:
        seed(number)
        few = source.batches(FIRST, 8)
        starts[name, number] = begin(few, digits, place, loss_of=loss_of)


# %% tags=["start-table"]
def ends(name: str, span: slice) -> list[float]:
    """Mean centre error over some steps, for each seed."""
    return [starts[name, number][span].mean().item() for number in SEEDS]


first = {name: ends(name, slice(0, 8)) for name in ways}
last = {name: ends(name, slice(-8, None)) for name in ways}
rows = []
for name in ways:
    rows.append((name, spread(first[name], ".1f"), spread(last[name], ".1f")))
table(rows, ("centre", "pixels off, first 8 steps", "last 8 steps"))

# %% tags=["start-claims"]
offset = positives(test, digits).offset
guess = 8 * (offset - 0.5).square().sum(1).sqrt().mean().item()
bounded, cells, anchors = ways
far = [abs(value - guess) for value in first[bounded] + last[bounded]]
claim(max(far) < 1, "with the sigmoid they stay beside the middle of the cell")
for name in (cells, anchors):
    ahead = min(first[name]) > 2 * max(*first[bounded], guess)
    claim(ahead, f"{name}: at first twice as far, and than the middle of the cell")
    claim(max(last[name]) < 0.75 * min(first[name]), f"{name}: they come nearer")
record("start.guess", guess)
record("start.steps", FIRST)
record_spread("start.sigmoid", first[bounded])
record_spread("start.free", first[cells])
record_spread("later.free", last[cells])
record_spread("start.anchors", first[anchors])

# %% tags=["start-figure"] alt="Distance of the centres in pixels against the step. Free centres begin far above the line of the sigmoid, with a wide band of three seeds, and fall towards it; the line of the sigmoid stays beside a dotted line, the middle of the cell."
_, axes = plt.subplots(figsize=(5, 2.9))
axes.axhline(guess, color=plots.QUIET, linewidth=1, linestyle=":")
lines = {}
for way, name, colour in zip(ways, ("sigmoid", "free"), plots.COLOURS[1::-1]):
    curves = torch.stack([starts[way, number] for number in SEEDS])
    steps = range(1, curves.shape[1] + 1)
    lines[name] = plots.seed_band(axes, steps, curves, colour)
axes.set(xlim=(0, FIRST + 7), ylim=(0, None), xlabel="step", ylabel="pixels off")
plots.label_ends(axes, lines, plots.COLOURS[1::-1])
axes.set_axisbelow(True)

# %% [markdown]
# ## Detections
#
# A class's score is the objectness times its share of the softmax.


# %% tags=["detect"]
@torch.no_grad()
def detect(network, x: Tensor, scale: Scale, *, least=0.05, overlap=0.45):
    """What a network finds on images (B, 3, H, W), one `boxes.Detections` for each."""
    with evaluating(network):
        t = by_anchor(network(x), scale)
    places = decode(t, scale).flatten(1, 3)
    t = t.flatten(1, 3)  # (B, P, 5 + K)
    scores = t[..., 4:5].sigmoid() * t[..., 5:].softmax(-1)
    how = {"least": least, "overlap": overlap}
    return [boxes.select(*image, **how) for image in zip(places, scores)]


def find_all(network, x: Tensor, scale: Scale) -> list[boxes.Detections]:
    """Detections of many images, fifty at a time."""
    found = []
    for part in x.split(50):
        found += detect(network, part.to(device), scale)
    return found


# %% [markdown]
# ## Multi-scale training
#
# No layer knows the size of the image. So each batch may have another one.


# %% tags=["resized"]
def resized(part: boxes.Scenes, side: int) -> boxes.Scenes:
    """Square scenes at another size: pixels interpolated, boxes multiplied."""
    factor = side / part.images.shape[3]
    how = {"size": (side, side), "mode": "bilinear", "antialias": True}
    images = F.interpolate(part.images, **how)
    return part._replace(images=images, boxes=part.boxes * factor)


# %% tags=["train"]
SIDES = (48, 64, 80)  # 6, 8 and 10 cells a side


def train(network, batches, scale, *, steps: int, rate: float = 8e-3) -> list[float]:
    """Train on `steps` batches, each at a size by chance; the loss of each step."""
    how = {"weight_decay": 0.01, "fused": True}
    optimizer = torch.optim.AdamW(network.train().parameters(), rate, **how)
    schedule = training.one_cycle(optimizer, steps, rising=0.25)
    losses = []
    for batch in training.progress(batches, "steps"):
        side = SIDES[int(torch.randint(len(SIDES), ()))]
        batch = resized(batch, side)
        x = batch.images.contiguous(memory_format=torch.channels_last)
        loss = detection_loss(network(x), batch, scale).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


# %% tags=["headline"]
STEPS = 400
crowded = scenes.source(64, most=8)  # up to eight digits to learn from
seed(0)
network = small_yolov2(len(crowded.classes)).to(device)
network = network.to(memory_format=torch.channels_last)
losses = train(network, crowded.batches(STEPS, 16), digits, steps=STEPS)

# %% tags=["by-side-run"]
kinds = len(source.classes)
by_side = {}
for side in SIDES:
    part = resized(test, side)
    found = find_all(network, part.images, digits)
    scored = boxes.average_precision(found, part, classes=kinds)
    image = torch.zeros(1, 3, side, side, device=device)
    by_side[side] = (counting.macs(network, image), *scored.values())

# %% tags=["by-side"]
rows = []
for side, (macs, half, strict) in by_side.items():
    cells = f"{side // 8}×{side // 8}"
    rows.append((side, cells, f"{macs / 1e6:.1f}", f"{half:.2f}", f"{strict:.2f}"))
    record(f"side{side}.half", half)
    record(f"side{side}.macs", macs / 1e6)
small, middle, large = (by_side[side] for side in SIDES)
claim(small[1] < middle[1], "at 48 pixels less is found than at 64")
claim(small[2] < middle[2], "by the stricter measure, too")
claim(small[0] < 0.6 * middle[0], "at less than 0.6 of the cost")
ahead = middle[1] < large[1] and middle[2] < large[2]
claim(ahead, "at 80 pixels more is found than at 64, on this seed")
record("dear", large[0] / middle[0])
record("steps", STEPS)
record("small.parameters", counting.parameters(network))
record("test.scenes", len(test.images))
table(rows, ("side", "cells", "M MACs", "mAP@0.5", "mAP@0.5:0.95"))

# %% tags=["comparison"]
comparison.compare(network, lambda x: find_all(network, x, digits))

# %% [markdown]
# ## What it finds and what it misses


# %% tags=["mistakes-run"]
hundred = boxes.Scenes(*(part[:100] for part in test))
found = detect(network, hundred.images.to(device), digits, least=0.25)
counts = detectors.mistakes(found, hundred)
record("flawless", counts.count(0))
worst = sorted(range(100), key=counts.__getitem__)[-4:]
claim(counts.count(0) > 0 and min(counts[i] for i in worst) > 0, "both kinds are there")

# %% tags=["scenes-figure"] alt="Eight small scenes of coloured digits on dim photographs. White boxes outline the digits, yellow boxes with a class and a score the detections. Some digits have no yellow box, one of another class, or more than one."
shown = [0, 1, 2, 3, *worst]
picked = boxes.Scenes(*(part[shown] for part in hundred))
boxes.show(picked, [found[i] for i in shown], crowded.classes, columns=4)

# %% [markdown]
# ## WordTree
#
# A tree of words in place of a list of classes. Each node has a number; the children of one
# node share a softmax.


# %% tags=["tree"]
class Tree(NamedTuple):
    """Names of nodes and the index of the parent of each, -1 below the root.

    A parent stands before its children.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]

    def children(self, parent: int) -> list[int]:
        return [node for node, above in enumerate(self.parents) if above == parent]


THINGS = Tree(
    ("animal", "vehicle", "dog", "cat", "car", "boat", "terrier", "husky"),
    (-1, -1, 0, 0, 1, 1, 2, 2),
)


# %% tags=["wordtree"]
def conditional_logs(x: Tensor, tree: Tree) -> Tensor:
    """log Pr(node | parent), both (..., nodes): a softmax over each set of siblings."""
    logs = torch.empty_like(x)
    for parent in set(tree.parents):
        siblings = tree.children(parent)
        logs[..., siblings] = x[..., siblings].log_softmax(-1)
    return logs


def tree_logs(x: Tensor, tree: Tree) -> Tensor:
    """log Pr(node) if there is a thing at all: the sum along the path from the root."""
    found = []
    for step, parent in zip(conditional_logs(x, tree).unbind(-1), tree.parents):
        found.append(step if parent < 0 else found[parent] + step)
    return torch.stack(found, dim=-1)


def tree_loss(x: Tensor, nodes: Tensor, tree: Tree) -> Tensor:
    """Mean of -log Pr of the right nodes (B,), which stand anywhere in the tree."""
    return -tree_logs(x, tree).gather(-1, nodes.unsqueeze(-1)).mean()


# %% tags=["descend"]
def descend(probability: Tensor, tree: Tree, least: float) -> int:
    """The deepest node on the likeliest path with a probability of at least `least`.

    probability (nodes,). -1 where not even the first step is likely enough.
    """
    node = -1
    while children := tree.children(node):
        best = max(children, key=lambda child: probability[child])
        if probability[best] < least:
            break
        node = best
    return node


# %% tags=["tree-run"]
x = torch.tensor([3.0, 1, 4, 1, 1, 1, 1, 1]).log().requires_grad_()
logs = tree_logs(x, THINGS)
tree_loss(x, torch.tensor(2), THINGS).backward()  # the label is dog
probability = logs.detach().exp()
THINGS.names[descend(probability, THINGS, 0.5)]

# %% tags=["tree-table"]
given = conditional_logs(x, THINGS).exp()
rows = []
for number, name in enumerate(THINGS.names):
    slope = x.grad[number].item()
    shown = (f"{given[number]:.2f}", f"{probability[number]:.3f}", f"{slope:+.2f}")
    rows.append((name, *shown))
by_hand = torch.tensor([3 / 4, 1 / 4, 3 / 5, 3 / 20, 1 / 8, 1 / 8, 3 / 10, 3 / 10])
claim(checks.deviation(probability, by_hand) < 1e-6, "the products along paths by hand")
claim((x.grad[4:] == 0).all(), "below dog and beside its path nothing is learnt")
claim((x.grad[:4] != 0).all(), "the sets on the path learn")
leaves = probability[[3, 4, 5, 6, 7]].sum()
claim(abs(leaves.item() - 1) < 1e-6, "the leaves share all of it")
table(rows, ("node", "given its parent", "probability", "gradient for the label dog"))

# %% tags=["tree-figure"] alt="A tree: thing at the top, below it animal 0.75 and vehicle 0.25, below animal dog 0.60 and cat 0.15, below vehicle car 0.12 and boat 0.12, below dog terrier 0.30 and husky 0.30. The arrows from thing to animal and on to dog are coloured."
spots = ((1.6, 0.95), (3.8, 0.95), (1.0, 1.75), (2.2, 1.75), (3.3, 1.75), (4.4, 1.75))
spots += ((0.6, 2.55), (1.7, 2.55))
nodes = {"root": diagrams.Node(2.6, 0.25, "thing", width=0.9)}
for (x_at, y_at), name, value in zip(spots, THINGS.names, probability.tolist()):
    words = f"{name}\n{value:.2f}"
    nodes[name] = diagrams.Node(x_at, y_at, words, width=0.9)
edges = []
for name, parent in zip(THINGS.names, THINGS.parents):
    edges.append((THINGS.names[parent] if parent >= 0 else "root", name))
path = [("root", "animal"), ("animal", "dog")]
rest = [edge for edge in edges if edge not in path]
diagrams.draw(diagrams.sheet(2.95), nodes, rest, path)

# %% [markdown]
# ## Through a file


# %% tags=["file"]
seed(0)
one = checks.randomise_norms(small_yolov2(10))
again = small_yolov2(10)
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "small.weights")
    darknet.save(one, file)
    darknet.load(again, file)
    length = file.stat().st_size

# %% tags=["file-checked"]
claim(length == 20 + 4 * darknet.floats(one), "a header of 20 bytes, and the floats")
x = torch.randn(1, 3, 64, 48)
difference = checks.same_outputs(one, again, x, 0.0)
by_memory = DarknetReorg()(torch.randn(1, 64, 26, 26))
claim(by_memory.shape == (1, 256, 13, 13), "the published file's map of 26x26")
table(
    [("small YOLOv2", "itself, written and read", f"{difference:.0f}")],
    ("network", "reference", "largest difference"),
)

# %% [markdown]
# ## What we saw
#
# - Five anchors by k-means cover unseen boxes better than nine in three sizes and ratios.
# - Without the sigmoid the first centres are far off, whichever the unit of their error.
# - One network answers at three sizes; a tree of classes learns from coarse labels.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
body = 20_842_376 - 1000 * (1024 + 1)  # Darknet-19 without its last layer
outputs = 3 * (5 + 9418)
by_sum = body + outputs * (1024 + 1)

# %% tags=["solution-1-result"]
claim(by_sum == 48_793_101, "the sum is the published count")
share = outputs * 1025 / by_sum
record("head.share", share)
table(
    [(outputs, by_sum, f"{share:.0%}")], ("outputs", "parameters", "in the last layer")
)


# %% tags=["solution-2"]
def k_medians(size: Tensor, k: int, steps: int = 30) -> Tensor:
    """As `k_means`, but each anchor is the median of the boxes closest to it."""
    anchors = size[torch.randperm(len(size))[:k]].clone()
    for _ in range(steps):
        closest = by_iou(size, anchors).argmin(1)
        for number in closest.unique().tolist():
            anchors[number] = size[closest == number].median(0).values
    return anchors


medians = []
for number in SEEDS:
    seed(number)
    medians.append(average_iou(held_out, k_medians(known[number], 5)))

# %% tags=["solution-2-result"]
claim(min(medians) > five.max().item(), "medians cover better than means, seeds apart")
rows = [("means", spread(five.tolist(), ".3f")), ("medians", spread(medians, ".3f"))]
table(rows, ("five anchors", "average IoU"))

# %% tags=["solution-3"]
more = {}
for side in (40, 96):
    part = resized(test, side)
    found = find_all(network, part.images, digits)
    more[side] = boxes.average_precision(found, part, classes=kinds)["mAP@0.5"]

# %% tags=["solution-3-result"]
claim(more[40] < by_side[48][1], "at 40 pixels less is found than at 48")
claim(more[96] < by_side[80][1], "at 96 pixels less is found than at 80")
rows = [(side, f"{value:.2f}") for side, value in more.items()]
table(rows, ("side", "mAP@0.5"))


# %% tags=["solution-4"]
def flat(names: tuple[str, ...]) -> Tree:
    """A tree of depth one."""
    return Tree(names, (-1,) * len(names))


x = torch.randn(3, 10)
labels = torch.tensor([1, 7, 4])
in_tree = tree_loss(x, labels, flat(tuple("0123456789")))
listed = F.cross_entropy(x, labels)

# %% tags=["solution-4-result"]
claim(abs(in_tree.item() - listed.item()) < 1e-6, "a flat tree is a softmax")
table([(f"{in_tree:.5f}", f"{listed:.5f}")], ("flat tree", "softmax"))
