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
# # EfficientDet
#
# A pyramid that weighs what it adds, and one number that makes a whole detector larger:
# built, counted, trained on scenes with digits and on aerial photographs of trees. The text
# to it is the [chapter](../chapters/efficientdet.rst), the paper is
# [Tan et al. 2019](https://arxiv.org/abs/1911.09070).

# %%
import math
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import matplotlib.pyplot as plt
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision import ops

from workbench import claim, device, evaluating, record, record_spread, seed, sources
from workbench import spread, table
from workbench import archives, boxes, checks, comparison, counting, detectors
from workbench import diagrams, images, plots, pretrained, scenes, training

# %% [markdown]
# ## Weights for a sum
#
# Each input of a sum has a learnt number. Softmax makes shares of such numbers; fast
# normalised fusion divides them by their sum.


# %% tags=["shares"]
def softmax(w: Tensor) -> Tensor:
    """Numbers (n,) -> positive shares (n,) with the sum 1."""
    return w.softmax(0)


def fast_normalised(w: Tensor) -> Tensor:
    """Numbers (n,) -> shares (n,) of about the sum 1, none below 0 (section 3.3)."""
    w = w.relu()
    return w / (w.sum() + 1e-4)


# %% tags=["shares-run"]
w = torch.tensor([1.2, 0.4])
rows = []
for normalise in (softmax, fast_normalised):
    share = normalise(w)
    fused = share @ torch.tensor([10.0, 20.0])
    numbers = [f"{value:.3f}" for value in (*share.tolist(), fused)]
    rows.append((normalise.__name__, *numbers))
table(rows, ("shares by", "of 1.2", "of 0.4", "10 and 20 become"))

# %% tags=["tangent"]
at_one = {}
for n in (2, 3):
    for normalise in (softmax, fast_normalised):
        jacobian = torch.autograd.functional.jacobian(normalise, torch.ones(n).double())
        at_one[n, normalise] = jacobian
    pair = [at_one[n, kind] for kind in (fast_normalised, softmax)]
    close = checks.deviation(*pair) < 1e-3
    claim(close, f"{n} inputs: both have the same derivatives at ones")

# %% tags=["tangent-figure"] alt="Two curves over w from minus 1 to 3. The exponential of w minus 1 bends upwards; the line named relu of w is zero up to 0 and then straight. They touch at w = 1, where both are 1 and a dot lies, and stay near each other around it. To the left of 0 the exponential is still above zero."
_, axes = plt.subplots(figsize=(5, 2.8))
w = torch.linspace(-1, 2.2, 200)
axes.plot(w, (w - 1).exp(), color=plots.COLOURS[1])
axes.plot(w, w.relu(), color=plots.COLOURS[0])
axes.plot(1, 1, "o", color=plots.INK)
axes.set(xlabel="w", ylabel="before the division", xlim=(-1, 3.4), ylim=(-0.1, 3.6))
ends = {"exp(w − 1)": (2.2, math.exp(1.2)), "relu(w)": (2.2, 2.2)}
plots.label_ends(axes, ends, [plots.COLOURS[1], plots.COLOURS[0]])
axes.set_axisbelow(True)

# %% [markdown]
# ## A node of the pyramid
#
# Maps of one shape are added by their shares. Then come swish, a depthwise 3x3 and a 1x1
# convolution, and batch norm.


# %% tags=["parts"]
def batch_norm(d: int) -> nn.BatchNorm2d:
    """Batch norm with the constants of the authors (section 5.1)."""
    return nn.BatchNorm2d(d, eps=1e-3, momentum=0.01)


@dataclass(frozen=True)
class Parts:
    """What pyramid and heads are made of."""

    normalise: Callable = fast_normalised
    norm: Callable = batch_norm
    bias: bool = True  # in front of batch norm, as in the authors' code


def separable(c_in: int, c_out: int, *, bias: bool) -> nn.Sequential:
    """Each channel by itself with a 3x3 kernel, then 1x1 across the channels."""
    depthwise = nn.Conv2d(c_in, c_in, 3, padding=1, groups=c_in, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(c_in, c_out, 1, bias=bias))


# %% tags=["fusion"]
def weighted_sum(maps, shares: Tensor) -> Tensor:
    """Maps of one shape, each times its share, added."""
    total = shares[0] * maps[0]
    for share, x in zip(shares[1:], maps[1:]):
        total = total + share * x
    return total


class Fusion(nn.Module):
    """A node: n maps of one shape -> one map of that shape (section 3.3)."""

    def __init__(self, d: int, n: int, *, parts: Parts = Parts()):
        super().__init__()
        self.normalise = parts.normalise
        self.weights = nn.Parameter(torch.ones(n))
        self.conv = separable(d, d, bias=parts.bias)
        self.norm = parts.norm(d)

    def forward(self, *maps: Tensor) -> Tensor:
        fused = weighted_sum(maps, self.normalise(self.weights))
        return self.norm(self.conv(F.silu(fused)))  # (B, d, H, W)


# %% [markdown]
# ## Down and up
#
# A layer of the pyramid goes from the coarsest map down to the finest and back up. A node of
# the way up also reads the input of its level.


# %% tags=["layer"]
def enlarged(coarse: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(coarse, size=like.shape[-2:])  # repeats pixels


def halved(fine: Tensor) -> Tensor:
    return F.max_pool2d(fine, 3, stride=2, padding=1)


class Layer(nn.Module):
    """One time down and up: maps of d channels -> as many, the finest first (figure 3).

    again: the maps that the way up reads; they differ from `maps` in the first layer.
    """

    def __init__(self, d: int, levels: int, *, parts: Parts = Parts()):
        super().__init__()
        inner = range(levels - 2)
        self.down = nn.ModuleList(Fusion(d, 2, parts=parts) for _ in range(levels - 1))
        self.up = nn.ModuleList(Fusion(d, 3, parts=parts) for _ in inner)
        self.top = Fusion(d, 2, parts=parts)

    def forward(self, maps: list[Tensor], again: list[Tensor]) -> list[Tensor]:
        middle = [maps[-1]]
        for node, x in zip(self.down, reversed(maps[:-1])):
            middle.insert(0, node(x, enlarged(middle[0], x)))
        out = [middle[0]]
        for node, x, between in zip(self.up, again[1:-1], middle[1:-1]):
            out.append(node(x, between, halved(out[-1])))
        out.append(self.top(maps[-1], halved(out[-1])))
        return out


# %% tags=["pyramid-figure"] alt="Five rows, the levels P7 at the top to P3 at the bottom, and three columns: in, down, up. Grey arrows run from the inputs P6, P5 and P4 to the node of their level in the middle column and, in a bow above it, to that in the right column; P7 has its only node in the right column, P3 in the middle one. Coloured arrows lead down from P7 to P3 and up the right column from P3 to P7."
axes = diagrams.sheet(4.0)
nodes = {"in": diagrams.Node(0.7, 0.2, "in", weight="bold")}
nodes["way down"] = diagrams.Node(2.5, 0.2, "down", weight="bold")
nodes["way up"] = diagrams.Node(4.2, 0.2, "up", weight="bold")
arrows = []
shortcuts = []
for row, k in enumerate((7, 6, 5, 4, 3)):
    y = 0.65 + 0.75 * row
    nodes[f"in{k}"] = diagrams.Node(0.7, y, f"P{k}", width=0.6)
    up = f"up{k}"
    if 3 < k < 7:
        nodes[f"down{k}"] = diagrams.Node(2.5, y, "2 inputs", width=0.9)
        nodes[up] = diagrams.Node(4.2, y, "3 inputs", width=0.9)
        over = ((1.0, y - 0.12), (1.7, y - 0.3), (3.3, y - 0.3), (3.75, y - 0.1))
        arrows += [(f"in{k}", f"down{k}"), (f"down{k}", up), over]
nodes["up7"] = diagrams.Node(4.2, 0.65, "2 inputs", width=0.9)
nodes["down3"] = diagrams.Node(2.5, 3.65, "2 inputs", width=0.9)
nodes["out3"] = diagrams.Node(4.2, 3.65)
arrows += [("in7", "up7"), ("in3", "down3")]
shortcuts += [((2.5, 0.65), "down6"), ("down6", "down5"), ("down5", "down4")]
shortcuts += [("down4", "down3"), ("down3", (4.2, 3.65), "up4")]
shortcuts += [("up4", "up5"), ("up5", "up6"), ("up6", "up7")]
diagrams.draw(axes, nodes, arrows, shortcuts)


# %% tags=["inputs"]
def project(c_in: int, d: int, *, parts: Parts) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, d, 1, bias=parts.bias), parts.norm(d))


class Inputs(nn.Module):
    """Maps of a backbone -> maps of d channels, and coarser ones by pooling.

    Returned twice: for the way down, and for the way up, which has 1x1 convolutions of
    its own (the authors' code). The finest map is not read on the way up.
    """

    def __init__(self, channels, d: int, *, levels: int, parts: Parts = Parts()):
        super().__init__()
        self.first = nn.ModuleList(project(c, d, parts=parts) for c in channels)
        self.second = nn.ModuleList(project(c, d, parts=parts) for c in channels[1:])
        self.coarser = project(channels[-1], d, parts=parts)
        self.added = levels - len(channels)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        coarser = [halved(self.coarser(maps[-1]))]
        for _ in range(self.added - 1):
            coarser.append(halved(coarser[-1]))
        first = [layer(x) for layer, x in zip(self.first, maps)]
        second = [layer(x) for layer, x in zip(self.second, maps[1:])]
        return first + coarser, first[:1] + second + coarser


class BiFPN(nn.Module):
    """Maps of a backbone -> `levels` maps of d channels, `depth` times down and up."""

    def __init__(self, channels, d: int, depth: int, *, levels: int, parts=Parts()):
        super().__init__()
        self.inputs = Inputs(channels, d, levels=levels, parts=parts)
        layers = [Layer(d, levels, parts=parts) for _ in range(depth)]
        self.layers = nn.ModuleList(layers)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps, again = self.inputs(maps)
        for layer in self.layers:
            maps = again = layer(maps, again)
        return maps


# %% tags=["bifpn-shape"]
c3 = torch.randn(2, 40, 64, 64)
c4 = torch.randn(2, 112, 32, 32)
c5 = torch.randn(2, 320, 16, 16)
bifpn = BiFPN((40, 112, 320), 64, 3, levels=5)
[tuple(p.shape) for p in bifpn([c3, c4, c5])]

# %% [markdown]
# ## Heads and the network
#
# Two heads go over all levels with the same convolutions, but each level has its own batch
# norm.


# %% tags=["head"]
class Head(nn.Module):
    """The same convolutions on each level, with a batch norm for each level."""

    def __init__(self, d: int, depth: int, outputs: int, *, levels: int, parts=Parts()):
        super().__init__()
        convs = [separable(d, d, bias=parts.bias) for _ in range(depth)]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList()
        for _ in range(levels):
            self.norms.append(nn.ModuleList(parts.norm(d) for _ in range(depth)))
        self.last = separable(d, outputs, bias=True)

    def level(self, x: Tensor, norms: nn.ModuleList) -> Tensor:
        for conv, norm in zip(self.convs, norms):
            x = F.silu(norm(conv(x)))
        return self.last(x)  # (B, outputs, H, W)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [self.level(x, norms) for x, norms in zip(maps, self.norms)]


# %% tags=["network"]
@dataclass(frozen=True)
class Size:
    """Channels d, times down and up, inner layers of the heads, and levels."""

    d: int
    depth: int
    head_depth: int
    levels: int = 5


class EfficientDet(nn.Module):
    """Backbone, BiFPN, two heads (figure 3).

    (B, 3, H, W) -> class maps (B, A K, H / s, W / s) and box maps (B, 4 A, H / s,
    W / s) for each stride s, the finest first. A: anchors of a cell.
    """

    def __init__(
        self, backbone, channels, size: Size, *, K: int, A: int, parts=Parts()
    ):
        super().__init__()
        how = {"levels": size.levels, "parts": parts}
        self.backbone = backbone
        self.pyramid = BiFPN(channels, size.d, size.depth, **how)
        self.class_head = Head(size.d, size.head_depth, A * K, **how)
        self.box_head = Head(size.d, size.head_depth, A * 4, **how)
        nn.init.constant_(self.class_head.last[1].bias, -math.log(99))  # a score of 1 %

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        maps = self.pyramid(self.backbone(x))
        return self.class_head(maps), self.box_head(maps)


# %% [markdown]
# ## One number for all sizes
#
# Equations 1 to 3 of the paper give widths, depths and the side of the image.


# %% tags=["scaling"]
def scaled(phi: int) -> tuple[float, int, int, int]:
    """Width and depth of the BiFPN, depth of the heads, side of the image."""
    return 64 * 1.35**phi, 3 + phi, 3 + phi // 3, 512 + 128 * phi


WIDTHS = (64, 88, 112, 160, 224, 288, 384)  # these three: table 1, D0 to D6
DEPTHS = (3, 4, 5, 6, 7, 7, 8)
SIDES = (512, 640, 768, 896, 1024, 1280, 1280)


def efficientdet(phi: int, *, parts: Parts = Parts()) -> EfficientDet:
    """D0 to D6 of the paper, with EfficientNet-B0 to B6 and 90 classes."""
    *_, head_depth, _ = scaled(phi)
    how = {"features_only": True, "out_indices": (2, 3, 4)}
    backbone = timm.create_model(f"efficientnet_b{phi}", **how)
    channels = backbone.feature_info.channels()
    size = Size(WIDTHS[phi], DEPTHS[phi], head_depth)
    return EfficientDet(backbone, channels, size, K=90, A=9, parts=parts)


# %% tags=["d0-shape"]
with torch.device("meta"):
    d0 = efficientdet(0)
    classes, places = d0(torch.empty(1, 3, 512, 512))
[(tuple(c.shape), tuple(p.shape)) for c, p in zip(classes, places)]

# %% tags=["scaling-table"]
rows = []
for phi in range(7):
    width, depth, head_depth, side = scaled(phi)
    size = (f"{width:.1f}", WIDTHS[phi], depth, DEPTHS[phi], head_depth)
    rows.append((f"D{phi}", *size, side, SIDES[phi]))
names = ("64 · 1.35^φ", "width", "3 + φ", "depth", "heads", "512 + 128 φ", "side")
table(rows, ("network", *names))

# %% tags=["scaling-claims"]
computed = [scaled(phi) for phi in range(7)]
odd = [phi for phi in range(7) if computed[phi][3] != SIDES[phi]]
claim(odd == [5], "D5 alone has another side than equation 3")
deeper = [phi for phi in range(7) if computed[phi][1] != DEPTHS[phi]]
claim(deeper == [5, 6], "D5 and D6 have another depth than equation 1")
rounded = [8 * round(width / 8) for width, *_ in computed]
others = [phi for phi in range(7) if rounded[phi] != WIDTHS[phi]]
claim(others == [2, 4], "D2 and D4 have another width than the nearest multiple of 8")

# %% tags=["count-table"]
PAPER = {0: (3_880_067, 2.5), 1: (6_625_898, 6.1), 2: (8_097_039, 11)}
rows = []
for phi, (expected, billions) in PAPER.items():
    with torch.device("meta"):
        network = efficientdet(phi)
        macs = counting.macs(network, torch.empty(1, 3, SIDES[phi], SIDES[phi]))
    counted = counting.parameters(network)
    claim(counted == expected, f"D{phi} has the authors' parameters")
    claim(abs(macs / 1e9 / billions - 1) < 0.02, f"D{phi} costs what table 2 says")
    record(f"D{phi}.parameters", counted)
    record(f"D{phi}.macs", macs)
    rows.append((f"D{phi}", SIDES[phi], counted, f"{macs / 1e9:.2f}", f"{billions}"))
table(rows, ("network", "side", "parameters", "G MACs", "G MACs, table 2"))

# %% tags=["parts-table"]
with torch.device("meta"):
    image = torch.empty(1, 3, 512, 512)
    maps = d0.backbone(image)
    levels = d0.pyramid(maps)
named = {
    "EfficientNet-B0": (d0.backbone, image, 3_595_388),
    "BiFPN": (d0.pyramid, maps, 196_281),
    "class head": (d0.class_head, levels, 69_354),
    "box head": (d0.box_head, levels, 19_044),
}
rows = []
costs = {}
for name, (part, x, expected) in named.items():
    counted = counting.parameters(part)
    claim(counted == expected, f"{name} has the authors' parameters")
    costs[name] = counting.macs(part, x)
    rows.append((name, counted, f"{costs[name] / 1e9:.2f}"))
fused = [m for m in d0.modules() if isinstance(m, Fusion)]
separated = d0.box_head.convs[0]
record("separable", sum(conv.weight.numel() for conv in separated))
record("full", 64 * 64 * 9)
claim(costs["class head"] > 2 * costs["BiFPN"], "the class head costs more than BiFPN")
record("D0.weights", sum(len(node.weights) for node in fused))
table(rows, ("part of D0", "parameters", "G MACs at 512×512"))

# %% tags=["bias-claims"]
with torch.device("meta"):
    without = efficientdet(0, parts=Parts(bias=False))
record("D0.without", counting.parameters(without))
claim(counting.parameters(without) == 3_877_763, "D0 without the biases")


# %% [markdown]
# ## The pyramid against its figure
#
# The nodes of five levels, written out one by one from figure 3. They are those of the layer
# itself, so this checks what each node reads; one node is then checked against its formula.


# %% tags=["written-out"]
def written_out(layer: Layer, maps, again) -> list[Tensor]:
    """One time down and up over P3 to P7, node by node as in figure 3."""
    p3, p4, p5, p6, p7 = maps
    _, q4, q5, q6, _ = again
    down6 = layer.down[0](p6, enlarged(p7, p6))
    down5 = layer.down[1](p5, enlarged(down6, p5))
    down4 = layer.down[2](p4, enlarged(down5, p4))
    out3 = layer.down[3](p3, enlarged(down4, p3))
    out4 = layer.up[0](q4, down4, halved(out3))
    out5 = layer.up[1](q5, down5, halved(out4))
    out6 = layer.up[2](q6, down6, halved(out5))
    out7 = layer.top(p7, halved(out6))
    return [out3, out4, out5, out6, out7]


class AsFigure(nn.Module):
    """The BiFPN of five levels and three layers, from its parts."""

    def __init__(self, bifpn: BiFPN):
        super().__init__()
        self.bifpn = bifpn

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps, again = self.bifpn.inputs(maps)
        one, two, three = self.bifpn.layers
        maps = written_out(one, maps, again)
        maps = written_out(two, maps, maps)
        return written_out(three, maps, maps)


# %% tags=["equal"]
seed(0)
bifpn = checks.randomise_norms(bifpn).eval()
for node in (m for m in bifpn.modules() if isinstance(m, Fusion)):
    nn.init.uniform_(node.weights, -0.2, 2.0)
rows = []
with torch.no_grad():
    maps, again = bifpn.inputs([c3, c4, c5])
    for number, layer in enumerate(bifpn.layers, start=1):
        expected = written_out(layer, maps, again)
        found = layer(maps, again)
        pairs = zip(found, expected, strict=True)
        difference = max(checks.deviation(a, b) for a, b in pairs)
        claim(difference < 1e-6, "a layer is what figure 3 says, node by node")
        rows.append((f"layer {number} of D0's BiFPN", "figure 3", f"{difference:.1g}"))
        maps = again = found

# %% tags=["equal-node"]
node = bifpn.layers[0].up[0]
x = torch.randn(3, 2, 64, 9, 7)  # three inputs
w = node.weights.clamp(min=0)
with torch.no_grad():
    y = (w.view(3, 1, 1, 1, 1) * x).sum(0) / (w.sum() + 1e-4)
    y = F.conv2d(y * y.sigmoid(), node.conv[0].weight, None, 1, 1, groups=64)
    y = F.conv2d(y, node.conv[1].weight, node.conv[1].bias)
    mean, variance = (
        t.view(-1, 1, 1) for t in (node.norm.running_mean, node.norm.running_var)
    )
    scale, shift = (t.view(-1, 1, 1) for t in (node.norm.weight, node.norm.bias))
    y = (y - mean) / (variance + 1e-3).sqrt() * scale + shift
    difference = checks.deviation(node(*x), y)
claim(difference < 1e-5, "a node is its formula")
rows.append(("a node with three inputs", "its formula", f"{difference:.1g}"))

# %% tags=["equal-table"]
table(rows, ("part", "against", "largest difference"))

# %% [markdown]
# ## What the shares cost
#
# The authors' code stacks the maps for softmax; for fast normalised fusion it multiplies each
# map by its number and divides it by the sum of the numbers. Ours divides the numbers first,
# with either kind of shares.


# %% tags=["forms"]
def stacked_sum(maps, shares: Tensor) -> Tensor:
    """The same sum by way of one tensor that holds all maps."""
    return (torch.stack(tuple(maps), dim=-1) * shares).sum(-1)


def divided_sum(maps, w: Tensor) -> Tensor:
    """Each map times its number, then over the sum of the numbers, added."""
    total = maps[0] * w[0] / (w.sum() + 1e-4)
    for number, x in zip(w[1:], maps[1:]):
        total = total + x * number / (w.sum() + 1e-4)
    return total


class Form(nn.Module):
    """A fusion alone: shares and sum."""

    def __init__(self, n: int, normalise: Callable, add: Callable):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(n))
        self.normalise = normalise
        self.add = add

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.add(maps, self.normalise(self.weights))


# %% tags=["measures"]
class Moved(TorchDispatchMode):
    """Counts the values that operators read and write, as in the ShuffleNet chapter."""

    def __init__(self):
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        output = operator(*args, **(kwargs or {}))
        if not (operator.is_view or "view" in operator.name()):
            tensors = [t for t in tree_leaves((args, output)) if torch.is_tensor(t)]
            self.values += sum(t.numel() for t in tensors)
        return output


@torch.no_grad()
def moved(form: nn.Module, maps: list[Tensor]) -> int:
    """Values read and written by a fusion."""
    with Moved() as counter:
        form(maps)
    return counter.values


@torch.no_grad()
def shortest(form: nn.Module, maps: list[Tensor], *, rounds: int = 60) -> float:
    """Least seconds of one pass, of 60 in a row after 20, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = math.inf
    for number in range(20 + rounds):
        start = time.perf_counter()
        form(maps)
        if number >= 20:
            best = min(best, time.perf_counter() - start)
    torch.set_num_threads(threads)
    return best


# %% tags=["cost"]
FORMS = {
    "fast normalised, one by one": (fast_normalised, weighted_sum),
    "softmax, one by one": (softmax, weighted_sum),
    "softmax, stacked": (softmax, stacked_sum),
    "fast normalised, maps divided": (torch.relu, divided_sum),
}
REPEATS = 3
seed(0)
values = {}
taken = {}
for n in (2, 3):
    maps = list(torch.randn(n, 1, 64, 32, 32))  # P4 of D0
    forms = [Form(n, *form) for form in FORMS.values()]
    outputs = [form(maps).detach() for form in forms]
    claim(
        max(checks.deviation(y, outputs[-1]) for y in outputs) < 1e-3,
        f"{n} inputs: all forms give the same",
    )
    values[n] = [moved(form, maps) for form in forms]
    taken[n] = []
    for _ in range(REPEATS):
        taken[n].append([shortest(form, maps) for form in forms])

# %% tags=["cost-table", "times"]
rows = []
for k, name in enumerate(FORMS):
    cells = []
    for n in (2, 3):
        cells.append(f"{values[n][k] / values[n][0]:.2f}")
        cells.append(spread([one[k] / one[0] for one in taken[n]], ".2f"))
    rows.append((name, *cells))
heads = ("values, 2 inputs", "time, 2 inputs", "values, 3 inputs", "time, 3 inputs")
table(rows, ("fusion", *heads))

# %% tags=["cost-claims"]
for n in (2, 3):
    fast, same, stacked, divided = values[n]
    claim(abs(same / fast - 1) < 1e-4, f"{n} inputs: softmax itself moves no more")
    claim(stacked > 1.3 * fast, f"{n} inputs: the stacked form moves more values")
    claim(divided > 0.99 * stacked, f"{n} inputs: dividing the maps moves no fewer")
    record(f"values.{n}", stacked / fast)
    record_spread(f"time.softmax.{n}", [one[1] / one[0] for one in taken[n]])
    record_spread(f"time.{n}", [one[2] / one[0] for one in taken[n]])

# %% [markdown]
# ## Anchors
#
# At each cell of each level stand boxes of a few shapes. The box head moves and stretches
# them.


# %% tags=["anchors"]
@dataclass(frozen=True)
class Anchors:
    """Boxes at each cell. The stride of a level is twice that of the next finer one."""

    stride: int  # of the finest level, in pixels
    sides: tuple[float, ...]  # root of the area, in strides of the level
    ratios: tuple[float, ...]  # width over height

    def __len__(self) -> int:
        return len(self.sides) * len(self.ratios)

    def shapes(self) -> list[tuple[float, float]]:
        """Width and height of each, in strides."""
        found = []
        for side in self.sides:
            for ratio in self.ratios:
                found.append((side * ratio**0.5, side / ratio**0.5))
        return found


PUBLISHED = Anchors(8, (4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)), (0.5, 1, 2))


def anchor_boxes(anchors: Anchors, maps: list[Tensor]) -> Tensor:
    """All P boxes (P, 4) in pixels: level, row, column, shape."""
    found = []
    for number, x in enumerate(maps):
        H, W = x.shape[-2:]
        stride = anchors.stride * 2**number
        half = x.new_tensor(anchors.shapes()) * stride / 2  # (A, 2)
        row = (torch.arange(H, device=x.device) + 0.5) * stride
        column = (torch.arange(W, device=x.device) + 0.5) * stride
        across = column.expand(H, W)
        down = row.unsqueeze(1).expand(H, W)
        centre = torch.stack((across, down), dim=-1).unsqueeze(2)  # (H, W, 1, 2)
        found.append(torch.cat((centre - half, centre + half), -1).flatten(0, 2))
    return torch.cat(found)


# %% tags=["anchors-run"]
levels = [torch.empty(1, 810, side, side) for side in (64, 32, 16, 8, 4)]
anchor_boxes(PUBLISHED, levels).shape


# %% tags=["decode"]
def middle_and_size(box: Tensor) -> tuple[Tensor, Tensor]:
    """Corners (..., 4) -> centre (..., 2), width and height (..., 2)."""
    return (box[..., :2] + box[..., 2:]) / 2, box[..., 2:] - box[..., :2]


def encode(box: Tensor, anchor: Tensor) -> Tensor:
    """What moves and stretches an anchor (..., 4) to a box (..., 4)."""
    centre, size = middle_and_size(box)
    start, side = middle_and_size(anchor)
    return torch.cat(((centre - start) / side, (size / side).log()), dim=-1)


def decode(t: Tensor, anchor: Tensor) -> Tensor:
    """Boxes (..., 4) of numbers t (..., 4): the inverse of `encode`."""
    start, side = middle_and_size(anchor)
    centre = start + t[..., :2] * side
    half = t[..., 2:].clamp(max=4).exp() * side / 2
    return torch.cat((centre - half, centre + half), dim=-1)


# %% tags=["detect"]
def by_anchor(outputs: list[Tensor], A: int) -> Tensor:
    """Maps (B, A n, H, W) of all levels -> (B, P, n), ordered as `anchor_boxes` is."""
    found = []
    for raw in outputs:
        t = raw.unflatten(1, (A, -1)).permute(0, 3, 4, 1, 2)  # (B, H, W, A, n)
        found.append(t.flatten(1, 3))
    return torch.cat(found, dim=1)


@torch.no_grad()
def detect(network, x, anchors: Anchors, *, least=0.05) -> list[boxes.Detections]:
    """What a network finds on each image of x; weak ones too by default."""
    with evaluating(network):
        classes, places = network(x)
    corners = decode(by_anchor(places, len(anchors)), anchor_boxes(anchors, places))
    scores = by_anchor(classes, len(anchors)).sigmoid()
    return [boxes.select(*image, least=least) for image in zip(corners, scores)]


# %% [markdown]
# ## The loss
#
# Focal loss for the classes of all anchors, Huber loss for the boxes of those that overlap
# an object by half or more.


# %% tags=["assign"]
def assign(anchor: Tensor, truth: boxes.Scenes, *, least: float = 0.5) -> Tensor:
    """Number of the object that each anchor (P, 4) answers for (B, P), -1 for none.

    That of the largest IoU, from `least` on; and each object has its best anchor,
    unless another object has the same one.
    """
    B, M, _ = truth.boxes.shape
    image, which = ((truth.labels >= 0) & ~truth.ignored).nonzero(as_tuple=True)
    found = ops.box_iou(truth.boxes[image, which], anchor)  # (objects, P)
    overlap = anchor.new_full((B, M, len(anchor)), -1.0)
    overlap[image, which] = found
    best, number = overlap.max(1)
    number = number.masked_fill(best < least, -1)
    number[image, found.argmax(1)] = which
    return number


# %% tags=["focal"]
def focal_loss(t: Tensor, wanted: Tensor, *, alpha=0.25, gamma=1.5) -> Tensor:
    """Cross-entropy, small where the answer is nearly right (section 5.1)."""
    cross_entropy = F.binary_cross_entropy_with_logits(t, wanted, reduction="none")
    missing = (wanted - t.sigmoid()).abs()
    weight = torch.where(wanted == 1, alpha, 1 - alpha)
    return weight * missing**gamma * cross_entropy


# %% tags=["loss"]
def detection_loss(outputs, truth: boxes.Scenes, anchors: Anchors) -> Tensor:
    """Losses of classes and boxes (2,), over the number of positive anchors and one.

    The Huber loss with delta 0.1 and its weight of 50 are those of the authors' code.
    """
    classes, places = outputs
    anchor = anchor_boxes(anchors, classes)
    number = assign(anchor, truth)
    image, place = (number >= 0).nonzero(as_tuple=True)
    mine = number[image, place]  # (N,)

    t = by_anchor(classes, len(anchors))
    wanted = torch.zeros_like(t)
    wanted[image, place, truth.labels[image, mine]] = 1.0
    target = encode(truth.boxes[image, mine], anchor[place])
    moved_by = by_anchor(places, len(anchors))[image, place]
    box = F.huber_loss(moved_by, target, reduction="sum", delta=0.1) / 4
    return torch.stack((focal_loss(t, wanted).sum(), 50 * box)) / (len(image) + 1)


# %% tags=["loss-run"]
truth = boxes.Scenes(
    images=torch.zeros(1, 3, 16, 32),
    boxes=torch.tensor([[[0.0, 0.0, 16.0, 20.0]]]),
    labels=torch.tensor([[1]]),
    ignored=torch.tensor([[False]]),
)
outputs = (
    [torch.zeros(1, 2, 1, 2)],
    [torch.zeros(1, 4, 1, 2)],
)  # two cells, two classes
detection_loss(outputs, truth, Anchors(16, (1,), (1,)))

# %% tags=["loss-checked"]
found = detection_loss(outputs, truth, Anchors(16, (1,), (1,)))
per_class = 0.5**1.5 * math.log(2)
classes = (0.25 + 3 * 0.75) * per_class / 2
box = 50 * 0.1 * (2 / 16 + math.log(20 / 16) - 0.1) / 4 / 2
expected = torch.tensor([classes, box])
claim(checks.deviation(found, expected) < 1e-6, "the loss by hand is the loss")
record("case.classes", found[0])
record("case.box", found[1])
easy = focal_loss(torch.tensor([math.log(9), 0.0]), torch.ones(2))
record("focal.easy", easy[0] / easy[1])
record("focal.easy.plain", math.log(10 / 9) / math.log(2))


# %% [markdown]
# ## Training


# %% tags=["train"]
def fusions_of(network: nn.Module) -> list[Fusion]:
    return [layer for layer in network.modules() if isinstance(layer, Fusion)]


def optimizers_of(network: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """One for all but the weights of the sums; one for those, eight times as fast."""
    mine = [node.weights for node in fusions_of(network)]
    known = {id(w) for w in mine}
    others = [p for p in network.parameters() if id(p) not in known]
    how = {"weight_decay": 0.01, "fused": True}
    sums = torch.optim.Adam(mine, 8 * rate, fused=True)
    return [torch.optim.AdamW(others, rate, **how), sums]


def train(network, pairs, anchors, *, steps: int, rate: float = 0.016) -> list[float]:
    """Train on pairs of an input and its scenes; the loss of each step."""
    optimizers = optimizers_of(network, rate)
    schedules = [training.one_cycle(one, steps, rising=0.25) for one in optimizers]
    network.train()
    losses = []
    for x, truth in training.progress(pairs, "steps"):
        loss = detection_loss(network(x), truth, anchors).sum()
        network.zero_grad()
        loss.backward()
        for one in (*optimizers, *schedules):
            one.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


# %% [markdown]
# ## Trees
#
# Aerial photographs with boxes around the crowns of trees, drawn by hand, that ship inside a
# package. The first is cut: its upper part is for tests, its lower part for training.

# %% tags=["trees"]
NEAR = "2019_YELL_2_528000_4978000_image_crop2"
FAR = "2019_YELL_2_541000_4977000_image_crop"  # 13 km away
FILES = {
    f"{NEAR}.png": "a9bdb0f4447fdd899d22f567e0e20ba8320c5413b2ad0cd0ac8d9f3b6e0f9767",
    f"{NEAR}.xml": "bd431af6a5086d721eb731b22f5ea28cd8a8eab06883efc1c665391acbc68e11",
    f"{FAR}.png": "178e58a23cc2642226a364a30f71bd9258ddc1b012c826f12250914a90c7a131",
    f"{FAR}.xml": "cefe4b96888bacbf8af1674f000082e549aa707aa6590d545effb23e43f26631",
}


def tree_file(name: str):
    return archives.package_file("deepforest", f"data/{name}", FILES[name])


def photograph_of(name: str) -> tuple[Tensor, Tensor]:
    """A photograph (3, H, W) in 0..1 and the boxes of its trees (N, 4)."""
    picture = images.read_picture(tree_file(f"{name}.png")).float().div(255)
    found = []
    for one in ElementTree.parse(tree_file(f"{name}.xml")).iter("bndbox"):
        sides = ("xmin", "ymin", "xmax", "ymax")
        left, top, right, bottom = (float(one.findtext(side)) for side in sides)
        found.append((left - 1, top - 1, right, bottom))  # VOC counts from 1
    sources.append("aerial photographs and boxes from the package deepforest")
    return picture, torch.tensor(found)


# %% tags=["tiles"]
SIDE = 256


def tiles(picture: Tensor, trees: Tensor) -> boxes.Scenes:
    """Square tiles that have a tree; a tree cut by more than half is ignored."""
    M = len(trees)
    found = []
    for top in range(0, picture.shape[1] - SIDE + 1, SIDE):
        for left in range(0, picture.shape[2] - SIDE + 1, SIDE):
            whole = trees - trees.new_tensor([left, top, left, top])
            inside = whole.clamp(0, SIDE)
            share = areas(inside) / areas(whole)
            if (share >= 0.5).any():
                image = picture[:, top : top + SIDE, left : left + SIDE]
                labels = torch.where(share > 0, 0, -1)
                place = inside * (share > 0).unsqueeze(1)
                found.append((image, place, labels, (share > 0) & (share < 0.5)))
    made = [torch.stack(parts) for parts in zip(*found)]
    order = (made[2] < 0).int().argsort(dim=1, stable=True)  # trees before empty places
    most = int((made[2] >= 0).sum(1).max())
    rows = torch.arange(len(order)).unsqueeze(1)
    kept = order[:, : min(most, M)]
    return boxes.Scenes(made[0], *(part[rows, kept] for part in made[1:]))


def areas(box: Tensor) -> Tensor:
    """Areas (...,) of boxes (..., 4)."""
    return (box[..., 2:] - box[..., :2]).prod(-1)


# %% tags=["tiles-run"]
picture, trees = photograph_of(NEAR)
upper = tiles(picture[:, :768], trees)
lower = tiles(picture[:, 936:], trees - torch.tensor([0, 936, 0, 936]))
far = tiles(*photograph_of(FAR))
rows = []
for name, part in (("training", lower), ("test", upper), ("test, 13 km away", far)):
    counted = (part.labels >= 0) & ~part.ignored
    rows.append((name, len(part.images), int(counted.sum())))
record("trees.train", rows[0][2])
record("trees.tiles", len(lower.images))
table(rows, ("part", "tiles of 256×256", "trees"))

# %% [markdown]
# The backbone is EfficientNet-Lite0, trained on ImageNet and left as it is, as in the FPN
# chapter: its maps are computed once.


# %% tags=["trunk"]
def trained_trunk() -> nn.Module:
    """EfficientNet-Lite0, with the weights of an installed package: three maps."""
    weights = pretrained.lite0_weights()
    how = {"features_only": True, "out_indices": (2, 3, 4)}
    trunk = timm.create_model("tf_efficientnet_lite0", **how)
    trunk.load_state_dict(dict(zip(trunk.state_dict(), weights.values())))
    return trunk.eval()


@torch.no_grad()
def maps_of(trunk: nn.Module, x: Tensor) -> list[Tensor]:
    """The trunk's maps of images in 0..1, the finest first."""
    where = next(trunk.parameters()).device
    found = []
    for part in x.split(8):
        part = part.to(where, memory_format=torch.channels_last)
        found.append(trunk(2 * part - 1))
    return [torch.cat(maps) for maps in zip(*found)]


# %% tags=["trunk-run"]
trunk = trained_trunk().to(device, memory_format=torch.channels_last)
cached = {"train": maps_of(trunk, lower.images)}
cached["test"] = maps_of(trunk, upper.images)
cached["far"] = maps_of(trunk, far.images)
[tuple(c.shape) for c in cached["train"]]


# %% tags=["tree-network"]
TREE_ANCHORS = Anchors(8, (2.5, 4, 5.6), (1,))
TREE_SIZE = Size(d=64, depth=1, head_depth=1, levels=4)


def quick_norm(d: int) -> nn.BatchNorm2d:
    """Batch norm whose running statistics are good after tens of steps."""
    return nn.BatchNorm2d(d, eps=1e-3, momentum=0.1)


def tree_detector(normalise: Callable = fast_normalised) -> EfficientDet:
    """Pyramid and heads for the trunk's maps, one class."""
    parts = Parts(normalise=normalise, norm=quick_norm, bias=False)
    how = {"K": 1, "A": len(TREE_ANCHORS), "parts": parts}
    return EfficientDet(nn.Identity(), (40, 112, 320), TREE_SIZE, **how)


def tree_batches(maps: list[Tensor], part: boxes.Scenes, steps: int) -> Iterator:
    """Four tiles for each step, all once before any comes again: maps and scenes."""
    N = len(part.images)
    order = torch.cat([torch.randperm(N) for _ in range(4 * steps // N + 1)])
    for chosen in order[: 4 * steps].split(4):
        truth = boxes.Scenes(*(values[chosen] for values in part))
        yield [c[chosen.to(c.device)] for c in maps], truth.to(maps[0].device)


def shares_of(network: nn.Module) -> Tensor:
    """The shares of all fusions, one after the other, on the CPU."""
    parts = [node.normalise(node.weights).detach() for node in fusions_of(network)]
    return torch.cat(parts).cpu()


# %% tags=["headline"]
SEEDS = (0, 1, 2)
TREE_STEPS = 34
FUSIONS = {"fast normalised": fast_normalised, "softmax": softmax}
networks = {}
for number in SEEDS:
    for name, normalise in FUSIONS.items():
        seed(number)
        network = tree_detector(normalise)
        network = network.to(device, memory_format=torch.channels_last)
        pairs = tree_batches(cached["train"], lower, TREE_STEPS)
        train(network, pairs, TREE_ANCHORS, steps=TREE_STEPS)
        networks[number, name] = network

# %% tags=["headline-measures"]
even = []  # the shares before training
for node in fusions_of(networks[0, "softmax"]):
    even += [1 / len(node.weights)] * len(node.weights)
even = torch.tensor(even)
shares = {}
precision = {}
for (number, name), network in networks.items():
    shares[number, name] = shares_of(network)
    found = detect(network, cached["test"], TREE_ANCHORS)
    scored = boxes.average_precision(found, upper, classes=1)
    precision[number, name] = scored["mAP@0.5"]

# %% tags=["headline-table"]
rows = []
apart = []
gone = []
other = []
for number in SEEDS:
    fast, soft = (shares[number, name] for name in FUSIONS)
    apart.append((fast - soft).abs().mean().item())
    gone.append((soft - even).abs().mean().item())
    values = [f"{precision[number, name]:.3f}" for name in FUSIONS]
    rows.append((number, f"{gone[-1]:.4f}", f"{apart[-1]:.4f}", *values))
for name in FUSIONS:
    a, b, c = (shares[number, name] for number in SEEDS)
    other += [(x - y).abs().mean().item() for x, y in ((a, b), (b, c), (a, c))]
heads = ("softmax moved them by", "apart by", "AP, fast normalised", "AP, softmax")
table(rows, ("seed", *heads))

# %% tags=["headline-claims"]
claim(max(apart) < min(gone) / 2, "the fusions differ by less than half of the way")
claim(max(apart) < min(other), "seeds differ more than fusions")
record_spread("moved", gone)
record_spread("apart", apart)
record_spread("seeds.apart", other)
for name, key in (("fast normalised", "fast"), ("softmax", "soft")):
    record_spread(f"trees.{key}", [precision[number, name] for number in SEEDS])
widest = max(
    abs(precision[n, "softmax"] - precision[n, "fast normalised"]) for n in SEEDS
)
claim(widest < 0.05, "on each seed both fusions have AP within five hundredths")
ends = [[precision[n, name] for n in SEEDS] for name in FUSIONS]
touch = max(map(min, ends)) < min(map(max, ends))
claim(touch, "the ranges of AP over the seeds touch")
record("trees.pair", widest)
pairs = [tuple(shares[number, name] for name in FUSIONS) for number in SEEDS]
fast, soft = (torch.cat(parts) for parts in zip(*pairs))
furthest = (fast - soft).abs().max()
claim(furthest < 0.15, "all shares lie near the diagonal")
record("shares", len(fast))
record("furthest", furthest)
record("steps.trees", TREE_STEPS)

# %% tags=["headline-figure"] alt="Shares after training with fast normalised fusion, across, against those with softmax, upwards, both from 0 to 1. Dots in three colours, one for each seed, 14 of each, lie along the dashed diagonal or near it. Crosses mark one third and one half, the shares before training."
_, axes = plt.subplots(figsize=(5, 4.4))
axes.plot((0, 1), (0, 1), "--", color=plots.QUIET, linewidth=1)
for number, pair, colour in zip(SEEDS, pairs, plots.COLOURS):
    axes.plot(*pair, "o", color=colour, markersize=5, alpha=0.8)
    axes.text(0.05, 0.92 - 0.08 * number, f"seed {number}", color=colour)
for value, words in ((1 / 3, "1/3"), (1 / 2, "1/2")):
    axes.plot(value, value, "+", color=plots.INK, markersize=16, markeredgewidth=1)
    axes.text(value + 0.03, value - 0.07, words)
axes.set(xlabel="share, fast normalised", ylabel="share, softmax", aspect="equal")
axes.set_axisbelow(True)

# %% [markdown]
# ## What it finds in the photographs

# %% tags=["trees-table"]
network = networks[0, "fast normalised"]
rows = []
for name, key, part in (("upper part", "test", upper), ("13 km away", "far", far)):
    values = []
    for number in SEEDS:
        tree_network = networks[number, "fast normalised"]
        found = detect(tree_network, cached[key], TREE_ANCHORS)
        scored = boxes.average_precision(found, part, classes=1)
        values.append(scored["mAP@0.5"])
    record_spread(f"trees.{key}", values)
    rows.append((name, spread(values, ".2f")))
    if key == "test":
        near = values
claim(max(values) < min(near), "AP is lower at the other place")
table(rows, ("tiles", "AP at 0.5, three seeds"))

# %% tags=["trees-figure"] alt="Four aerial tiles with crowns of trees and their shadows. White boxes outline the trees that were drawn by hand, yellow boxes the detections with a score. Some white boxes have a yellow one near them, some have none; some yellow boxes are alone."
found = detect(network, cached["test"], TREE_ANCHORS, least=0.3)
number_of = [int((labels >= 0).sum()) for labels in upper.labels]
shown = sorted(range(len(number_of)), key=number_of.__getitem__)[-4:]
chosen = boxes.Scenes(*(part[shown] for part in upper))
boxes.show(chosen, [found[i] for i in shown], ["tree"], columns=2, scale=2)

# %% tags=["trees-kinds"]
right = 0
missed = 0
alone = 0
for i in shown:
    near = ops.box_iou(found[i].boxes, upper.boxes[i][upper.labels[i] >= 0]) >= 0.5
    right += int(near.any(0).sum())
    missed += int((~near.any(0)).sum())
    alone += int((~near.any(1)).sum())
claim(min(right, missed, alone) > 2, "some are found, some missed, some boxes alone")
record("trees.right", right)
record("trees.missed", missed)
record("trees.alone", alone)

# %% [markdown]
# ## Digits
#
# A small configuration of the same classes, with a backbone from scratch, on scenes of 64
# pixels.


# %% tags=["small"]
def swish_conv(c_in: int, c_out: int, *, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.SiLU())


class SmallBackbone(nn.Module):
    """Six 3x3 convolutions: maps of strides 4 and 8, of 32 and 64 channels."""

    def __init__(self):
        super().__init__()
        stem = swish_conv(3, 16, stride=2)
        first = swish_conv(16, 32, stride=2)
        self.fine = nn.Sequential(stem, first, swish_conv(32, 32))
        coarse = [swish_conv(64, 64) for _ in range(2)]
        self.coarse = nn.Sequential(swish_conv(32, 64, stride=2), *coarse)

    def forward(self, x: Tensor) -> list[Tensor]:
        c2 = self.fine(x)  # (B, 32, H / 4, W / 4)
        return [c2, self.coarse(c2)]  # and (B, 64, H / 8, W / 8)


DIGIT_ANCHORS = Anchors(4, (2, 2.8), (0.7,))


def small_efficientdet(K: int) -> EfficientDet:
    """Three levels of 64 channels, once down and up."""
    parts = Parts(norm=quick_norm, bias=False)
    how = {"K": K, "A": len(DIGIT_ANCHORS), "parts": parts}
    return EfficientDet(SmallBackbone(), (32, 64), Size(64, 1, 1, levels=3), **how)


# %% tags=["digits"]
def digit_batches(source, steps: int) -> Iterator:
    for truth in source.batches(steps, 16):
        yield truth.images.contiguous(memory_format=torch.channels_last), truth


STEPS = 200
crowded = scenes.source(64, most=8)  # up to eight digits to learn from
kinds = len(crowded.classes)
seed(0)
network = small_efficientdet(kinds).to(device, memory_format=torch.channels_last)
losses = train(network, digit_batches(crowded, STEPS), DIGIT_ANCHORS, steps=STEPS)


# %% tags=["evaluate"]
def find_all(network, x: Tensor, anchors: Anchors) -> list[boxes.Detections]:
    """Detections of all images, fifty at a time."""
    found = []
    for part in x.split(50):
        found += detect(network, part.to(device), anchors)
    return found


# %% tags=["result"]
both = scenes.source(64).fixed("test", 600)
test = boxes.Scenes(*(part[300:] for part in both))
found = find_all(network, test.images, DIGIT_ANCHORS)
scored = boxes.average_precision(found, test, classes=kinds, sides=(16, 22))
record("digits.half", scored["mAP@0.5"])
rows = [(name, f"{value:.2f}") for name, value in scored.items()]
table(rows, ("measure", f"{len(test.images)} test scenes"))

# %% tags=["comparison"]
comparison.compare(network, lambda x: find_all(network, x, DIGIT_ANCHORS), "comparison")
record("steps.digits", STEPS)
record("small.parameters", counting.parameters(network))


# %% tags=["mistakes-run"]
hundred = boxes.Scenes(*(part[:100] for part in test))
found = detect(network, hundred.images.to(device), DIGIT_ANCHORS, least=0.4)
counts = detectors.mistakes(found, hundred)
record("flawless", counts.count(0))
worst = sorted(range(100), key=counts.__getitem__)[-4:]
claim(min(counts[i] for i in worst) > 0, "the four worst have mistakes")

# %% tags=["scenes-figure"] alt="Eight small scenes of coloured digits on dim photographs. White boxes outline the digits, yellow boxes with a class and a score the detections. In the lower four there are digits without a yellow box or with one of another class."
shown = [0, 1, 2, 3, *worst]
chosen = boxes.Scenes(*(part[shown] for part in hundred))
boxes.show(chosen, [found[i] for i in shown], crowded.classes, columns=4)

# %% [markdown]
# ## What we saw
#
# - The counts of D0, D1 and D2 are those of the authors' code, to the last parameter.
# - Softmax and fast normalised fusion train to nearly the same shares. Softmax itself moves
#   no more values; stacking the maps does, and so does dividing them.
# - The same classes find trees in a part of the photograph that they were not trained on, and
#   digits in new scenes.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
per_layer = 4 * 2 + 3 * 3 + 2  # of five levels: down, up, the coarsest
by_hand = 3 * per_layer

# %% tags=["solution-1-result"]
named = [p for name, p in d0.named_parameters() if name.endswith(".weights")]
counted = sum(p.numel() for p in named)
claim(by_hand == counted, "the weights of the sums by hand are those counted")
table([(by_hand, counted)], ("by hand", "counted"))


# %% tags=["solution-2"]
def trained_shares(normalise, noise: Tensor, start, steps: int = 400) -> Tensor:
    """Shares (n,) of noisy copies of a map that bring their sum nearest to it."""
    w = torch.tensor(start).requires_grad_()
    optimizer = torch.optim.Adam([w], lr=0.02)
    for _ in range(steps):
        share = normalise(w)
        loss = (share * noise).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return normalise(w).detach()


noise = torch.tensor([1.0, 2.0, 2.0])  # standard deviations
best = noise**-2 / (noise**-2).sum()
learnt_shares = {}
for name, normalise in FUSIONS.items():
    for start in ((1.0, 1.0, 1.0), (1.0, 1.0, -0.1)):
        learnt_shares[name, start] = trained_shares(normalise, noise, start)

# %% tags=["solution-2-result"]
rows = [("best", "", *(f"{value:.3f}" for value in best.tolist()))]
for (name, start), share in learnt_shares.items():
    words = ", ".join(f"{value:g}" for value in start)
    rows.append((name, words, *(f"{value:.3f}" for value in share.tolist())))
    off = (share - best).abs().max().item()
    dead = name == "fast normalised" and start[2] < 0
    claim((off > 0.1) == dead and (off < 0.02) != dead, f"{name} from {words}")
    if dead:
        claim(share[2] == 0, "a weight below zero stays without a share")
table(rows, ("fusion", "weights at first", "noise 1", "noise 2", "noise 2 again"))

# %% tags=["solution-3"]
levelled = {}
for number in SEEDS:
    plain = tree_detector()
    plain.load_state_dict(networks[number, "fast normalised"].state_dict())
    plain = plain.to(device, memory_format=torch.channels_last)
    for node in fusions_of(plain):
        nn.init.ones_(node.weights)
    found = detect(plain, cached["test"], TREE_ANCHORS)
    levelled[number] = boxes.average_precision(found, upper, classes=1)["mAP@0.5"]

# %% tags=["solution-3-result"]
rows = []
for number in SEEDS:
    learnt_value = precision[number, "fast normalised"]
    rows.append((number, f"{learnt_value:.3f}", f"{levelled[number]:.3f}"))
lost = [precision[n, "fast normalised"] - levelled[n] for n in SEEDS]
claim(min(lost) > -0.01, "AP rises by a hundredth on no seed")
claim(max(lost) > 0.03, "AP falls by more than three hundredths on one")
record("levelled.lost", max(lost))
table(rows, ("seed", "learnt shares", "equal shares"))
