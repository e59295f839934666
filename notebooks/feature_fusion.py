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
# # Feature fusion
#
# Eight ways to make one feature map out of two: written in a few lines each, compared with
# libraries and loops, and some of them tried on maps of which a part is noise. The text
# to it is the [chapter](../chapters/feature_fusion.rst).

# %%
import math

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn
from timm.layers.cbam import CbamModule
from timm.models.resnet import resnet50, seresnet50
from torch.nn import functional as F

from workbench import PROFILE, claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, images, plots, training

# %% [markdown]
# ## Weights of a map
#
# How many different weights a fusion gives to the values of a map of three channels.


# %% tags=["drawing"]
def draw_weights(axes, top: float, text: str, weights: Tensor) -> None:
    """Draw weights (3, n, n) in 0..1 as three squares of cells, fuller if larger."""
    for channel, square in enumerate(weights):
        size = 1 / len(square)
        left = 1.4 * channel
        for place in (square > -1).nonzero().tolist():
            face = (plots.COLOURS[0], 0.05 + 0.85 * square[*place].item())
            corner = (left + size * place[1], top + size * place[0])
            axes.add_patch(plt.Rectangle(corner, size, size, facecolor=face, lw=0))
        axes.add_patch(plt.Rectangle((left, top), 1, 1, fill=False, ec=plots.QUIET))
    axes.text(4.2, top + 0.5, text, va="center", fontsize=11)


# %% tags=["weights-figure"] alt="Four rows of three squares, one square for each channel; a fuller colour means a larger weight. First row, sum: all squares in the fullest colour. Second, SE: each square evenly filled, each differently. Third, ASFF and attention gate: all three squares show the same blob. Fourth, CBAM: the blob in each square, in each differently strong."
across = torch.tensor([0.2, 0.7, 1.0, 0.4, 0.1])
blob = torch.tensor([0.1, 0.5, 1.0, 0.8, 0.3]).outer(across)
levels = torch.tensor([0.3, 1.0, 0.6]).view(3, 1, 1)
_, axes = plt.subplots(figsize=(5, 3.6))
axes.set(xlim=(-0.05, 7.3), ylim=(5, -0.1), aspect="equal")
axes.axis("off")
draw_weights(axes, 0.0, "sum:\none weight", torch.full((3, 1, 1), 1.0))
draw_weights(axes, 1.3, "SE: one per channel", levels)
draw_weights(axes, 2.6, "ASFF, attention gate:\none per pixel", blob.repeat(3, 1, 1))
draw_weights(axes, 3.9, "CBAM: one per channel\ntimes one per pixel", levels * blob)

# %% [markdown]
# ## Sum and concatenation
#
# A concatenation leaves the choice of what to add to the layer that reads it, here a 1x1
# convolution.


# %% tags=["sum-concat"]
class Sum(nn.Module):
    """a + b, as at the end of a residual block (He et al. 2015, equation 1)."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b  # (B, C, H, W)


class Concat(nn.Module):
    """Both side by side (Huang et al. 2016, equation 2), then a 1x1 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, channels, 1, bias=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        both = torch.cat((a, b), dim=1)  # (B, 2 C, H, W)
        return self.mix(both)  # (B, C, H, W)


# %% tags=["concat-shape"]
Concat(16)(torch.randn(5, 16, 8, 8), torch.randn(5, 16, 8, 8)).shape


# %% tags=["as-sum"]
@torch.no_grad()
def as_sum(fusion: Concat) -> Concat:
    """Set the 1x1 convolution to two identity matrices side by side."""
    eye = torch.eye(fusion.mix.out_channels)
    fusion.mix.weight.copy_(torch.cat((eye, eye), dim=1)[..., None, None])
    return fusion


# %% [markdown]
# ## Squeeze-and-excitation
#
# The weights come from the map itself: its mean over the pixels, then two layers.


# %% tags=["se"]
class SqueezeExcitation(nn.Module):
    """Scale each channel by a number in 0..1 computed from the means of all channels.

    Hu et al. 2017, equations 2 to 4; `reduction` is their r.
    """

    def __init__(self, channels: int, *, reduction: int = 16):
        super().__init__()
        self.narrow = nn.Conv2d(channels, channels // reduction, 1)
        self.widen = nn.Conv2d(channels // reduction, channels, 1)

    def weights(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        inner = torch.relu(self.narrow(means))  # (B, C / r, 1, 1)
        return self.widen(inner).sigmoid()  # (B, C, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights(x)  # (B, C, H, W)


# %% tags=["gated-sum"]
class GatedSum(nn.Module):
    """a + gate(b): only the branch is gated (Hu et al. 2017, figure 3)."""

    def __init__(self, gate: nn.Module):
        super().__init__()
        self.gate = gate

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + self.gate(b)  # (B, C, H, W)


# %% tags=["se-by-hand"]
x = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).view(1, 2, 1, 2)  # means 2 and 1
se = SqueezeExcitation(2, reduction=2)
with torch.no_grad():
    se.narrow.weight.copy_(torch.tensor([1.0, -1.0]).view(1, 2, 1, 1))
    se.narrow.bias.zero_()
    se.widen.weight.copy_(torch.tensor([2.0, -2.0]).view(2, 1, 1, 1))
    se.widen.bias.zero_()
    weights = se.weights(x).flatten().tolist()
record("se.first", weights[0])
record("se.second", weights[1])
weights

# %% [markdown]
# ## CBAM
#
# One weight for each channel, from the mean and the maximum over the pixels; then one for
# each pixel, from the mean and the maximum over the channels.


# %% tags=["cbam"]
class ChannelAttention(nn.Module):
    """Scale channels; mean and maximum share two layers (Woo et al. 2018, eq. 2)."""

    def __init__(self, channels: int, *, reduction: int = 16):
        super().__init__()
        self.narrow = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.widen = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        largest = x.amax((2, 3), keepdim=True)  # (B, C, 1, 1)
        scores = self.widen(torch.relu(self.narrow(mean)))
        scores = scores + self.widen(torch.relu(self.narrow(largest)))
        return x * scores.sigmoid()  # (B, C, H, W)


class SpatialAttention(nn.Module):
    """Scale each pixel, by a 7x7 convolution of two planes (Woo et al. 2018, eq. 3)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)  # (B, 1, H, W)
        largest = x.amax(1, keepdim=True)  # (B, 1, H, W)
        planes = torch.cat((mean, largest), dim=1)  # (B, 2, H, W)
        return x * self.norm(self.conv(planes)).sigmoid()  # (B, C, H, W)


class CBAM(nn.Module):
    """First channels, then pixels (Woo et al. 2018, equation 1)."""

    def __init__(self, channels: int, *, reduction: int = 16):
        super().__init__()
        self.channels = ChannelAttention(channels, reduction=reduction)
        self.pixels = SpatialAttention()

    def forward(self, x: Tensor) -> Tensor:
        return self.pixels(self.channels(x))  # (B, C, H, W)


# %% [markdown]
# ## ASFF
#
# Levels of a feature pyramid, resized to one size, are averaged with weights of their own
# at each pixel.


# %% tags=["asff"]
class ASFF(nn.Module):
    """Average maps of one size, weighted by pixel (Liu et al. 2019, eq. 1 and 2)."""

    def __init__(self, channels: int, *, levels: int = 2):
        super().__init__()
        self.scores = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in range(levels))

    def weights(self, *maps: Tensor) -> Tensor:
        scores = [score(x) for score, x in zip(self.scores, maps, strict=True)]
        return torch.cat(scores, dim=1).softmax(dim=1)  # (B, levels, H, W)

    def forward(self, *maps: Tensor) -> Tensor:
        weights = self.weights(*maps).unsqueeze(2)  # (B, levels, 1, H, W)
        return (weights * torch.stack(maps, dim=1)).sum(dim=1)  # (B, C, H, W)


# %% tags=["asff-by-hand"]
scores = torch.tensor([2.0, 0.0])
weights = scores.softmax(0)
joined = (weights * torch.tensor([1.0, 9.0])).sum()
record("asff.first", weights[0])
record("asff.second", weights[1])
record("asff.joined", joined)
joined.item()

# %% [markdown]
# ## Attention gate
#
# A skip connection is scaled at each pixel by a weight that is computed from it and from a
# coarser, deeper map.


# %% tags=["gate"]
class AttentionGate(nn.Module):
    """Scale each pixel of a skip connection x as x and a coarser map g say.

    Oktay et al. 2018, equations 1 and 2.
    x (B, c_x, H, W), g (B, c_g, H / stride, W / stride) -> (B, c_x, H, W)
    """

    def __init__(self, c_x: int, c_g: int, *, inner: int, stride: int = 1):
        super().__init__()
        self.skip = nn.Conv2d(c_x, inner, stride, stride, bias=False)
        self.signal = nn.Conv2d(c_g, inner, 1)
        self.score = nn.Conv2d(inner, 1, 1)

    def weights(self, x: Tensor, g: Tensor) -> Tensor:
        both = torch.relu(self.skip(x) + self.signal(g))  # (B, inner, h, w)
        alpha = self.score(both).sigmoid()  # (B, 1, h, w)
        return F.interpolate(alpha, size=x.shape[2:], mode="bilinear")  # (B, 1, H, W)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        return x * self.weights(x, g)


class GatedSkip(nn.Module):
    """gate(a, b) + b: only the skip is gated. The paper concatenates."""

    def __init__(self, channels: int):
        super().__init__()
        self.gate = AttentionGate(channels, channels, inner=channels // 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.gate(a, b) + b  # (B, C, H, W)


# %% [markdown]
# ## Bilinear pooling
#
# Every channel of one map times every channel of the other, summed over the pixels.


# %% tags=["bilinear"]
class Bilinear(nn.Module):
    """Sum of the outer products at all pixels (Lin et al. 2015, section 3)."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        products = torch.einsum("bihw,bjhw->bij", a, b)  # (B, C, C)
        return products.flatten(1)  # (B, C * C)


# %% [markdown]
# A count sketch adds each channel, with a random sign, to one of d random slots.


# %% tags=["compact"]
class CountSketch(nn.Module):
    """Add each channel, with a random sign, to one of d random slots."""

    def __init__(self, channels: int, d: int):
        super().__init__()
        self.d = d
        self.register_buffer("slot", torch.randint(d, (channels,)))
        self.register_buffer("sign", 2.0 * torch.randint(2, (channels,)) - 1)

    def forward(self, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        signed = x * self.sign.view(-1, 1, 1)  # (B, C, H, W)
        slots = signed.new_zeros(B, self.d, H, W)
        return slots.index_add(1, self.slot, signed)  # (B, d, H, W)


class CompactBilinear(nn.Module):
    """Sketch the sum of outer products without forming one, by Fourier transforms.

    Gao et al. 2015, algorithm 2 (tensor sketch). (B, C, H, W) twice -> (B, d).
    """

    def __init__(self, channels: int, d: int):
        super().__init__()
        self.first = CountSketch(channels, d)
        self.second = CountSketch(channels, d)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        first = torch.fft.rfft(self.first(a), dim=1)
        second = torch.fft.rfft(self.second(b), dim=1)
        total = (first * second).sum((2, 3))  # (B, d / 2 + 1)
        return torch.fft.irfft(total, n=self.first.d)  # (B, d)


# %% tags=["sketch-by-hand"]
compact = CompactBilinear(2, 3)
compact.first.slot = torch.tensor([0, 1])
compact.first.sign = torch.tensor([1.0, -1.0])
compact.second.slot = torch.tensor([1, 2])
compact.second.sign = torch.tensor([1.0, 1])
a = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
b = torch.tensor([3.0, -1.0]).view(1, 2, 1, 1)
rows = [("sketch of a", *compact.first(a).flatten().tolist())]
rows.append(("sketch of b", *compact.second(b).flatten().tolist()))
products = compact(a, b)[0]
rows.append(("circular convolution", *(f"{value:.1f}" for value in products.tolist())))
difference = checks.deviation(products, torch.tensor([2.0, 3.0, -7.0]))
claim(difference < 1e-6, "the sketch of the products by hand is that of the class")
table(rows, ("slot", "0", "1", "2"))


# %% tags=["by-loop"]
def summed_outer_products(a: Tensor, b: Tensor) -> Tensor:
    """(B, C, H, W) twice -> (B, C, C), one pixel after the other."""
    B, C, H, W = a.shape
    total = a.new_zeros(B, C, C)
    for i in range(H):
        for j in range(W):
            total += a[:, :, i, j].unsqueeze(2) * b[:, :, i, j].unsqueeze(1)
    return total


def sketch_by_hand(products: Tensor, compact: CompactBilinear) -> Tensor:
    """(B, C, C) -> (B, d): product i, j, both signs, to (slot i + slot j) mod d."""
    first = compact.first
    second = compact.second
    sketch = products.new_zeros(len(products), first.d)
    for i in range(len(first.slot)):
        for j in range(len(second.slot)):
            slot = (first.slot[i] + second.slot[j]) % first.d
            sketch[:, slot] += first.sign[i] * second.sign[j] * products[:, i, j]
    return sketch


# %% [markdown]
# ## Skip against dense
#
# What a layer reads is the sum of all outputs before it in a chain of residual layers, and
# their concatenation in a dense one. Where each layer is one convolution, the dense layer
# computes what the residual one does if its kernel is repeated for each of them.


# %% tags=["chains"]
def residual_chain(layers: list[nn.Module], x: Tensor) -> Tensor:
    """Each layer adds its output to what it has read: (B, C, H, W) -> (B, C, H, W)."""
    for layer in layers:
        x = x + layer(x)
    return x


def dense_chain(layers: list[nn.Module], x: Tensor) -> Tensor:
    """Each layer appends its output: (B, C, H, W) -> (B, C + layers * growth, H, W)."""
    for layer in layers:
        x = torch.cat((x, layer(x)), dim=1)
    return x


# %% tags=["densely"]
@torch.no_grad()
def densely(layers: list[nn.Conv2d]) -> list[nn.Conv2d]:
    """Dense layers doing what residual ones do: layer l repeats its kernel l times."""
    dense = []
    for number, layer in enumerate(layers, start=1):
        c_out, c_in, size, _ = layer.weight.shape
        wide = nn.Conv2d(number * c_in, c_out, size, padding=size // 2)
        wide.weight.copy_(layer.weight.repeat(1, number, 1, 1))
        wide.bias.copy_(layer.bias)
        dense.append(wide)
    return dense


# %% tags=["chain-weights"]
layers = [nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)]
weights = {}
for name, chain in (("residual", layers), ("dense", densely(layers))):
    weights[name] = sum(layer.weight.numel() for layer in chain)
record("chain.factor", weights["dense"] / weights["residual"])
weights

# %% [markdown]
# ## Boxes and arrows
#
# How data flow through each fusion, in the order of the chapter.


# %% tags=["drawing-join"]
def draw_join(axes, left: float, title: str, boxes: tuple[str, ...]) -> None:
    """Draw two maps that enter the first box; the others follow it."""
    middle = left + 1.2
    nodes = {
        "title": diagrams.Node(middle, 0.15, title, weight="bold"),
        "a": diagrams.Node(middle - 0.6, 0.55, "$a$"),
        "b": diagrams.Node(middle + 0.6, 0.55, "$b$"),
    }
    for place, text in enumerate(boxes):
        width = 1.8 if len(text) > 1 else 0
        nodes[text] = diagrams.Node(middle, 1.2 + 0.7 * place, text, width)
    nodes["y"] = diagrams.Node(middle, 1.2 + 0.7 * len(boxes), "$y$")
    chain = [*boxes, "y"]
    arrows = [("a", boxes[0]), ("b", boxes[0]), *zip(chain, chain[1:])]
    diagrams.draw(axes, nodes, arrows)


# %% tags=["drawing-gates"]
def draw_gated(axes, left: float, title: str, boxes: tuple[str, ...]) -> None:
    """Draw a + gate(b): the boxes compute weights from b, which multiply b."""
    x = left + 1.35
    nodes = {
        "title": diagrams.Node(left + 1.2, 0.15, title, weight="bold"),
        "a": diagrams.Node(left + 0.25, 0.55, "$a$"),
        "b": diagrams.Node(x, 0.55, "$b$"),
    }
    for place, text in enumerate(boxes):
        nodes[text] = diagrams.Node(x, 1.1 + 0.55 * place, text, 1.5)
    nodes["times"] = diagrams.Node(x, 1.1 + 0.55 * len(boxes), "×")
    nodes["sum"] = diagrams.Node(x, 1.6 + 0.55 * len(boxes), "+")
    nodes["y"] = diagrams.Node(x, 2.1 + 0.55 * len(boxes), "$y$")
    chain = ["b", *boxes, "times", "sum", "y"]
    down = nodes["sum"].y
    arrows = [*zip(chain, chain[1:]), ("a", (left + 0.25, down), "sum")]
    right = left + 2.3
    past = ("b", (right, 0.55), (right, nodes["times"].y), "times")
    diagrams.draw(axes, nodes, arrows, [past])


def draw_cbam(axes) -> None:
    """Draw two gates of b one after the other, and the sum with a."""
    nodes = {
        "title": diagrams.Node(3.75, 0.15, "CBAM", weight="bold"),
        "a": diagrams.Node(2.85, 0.55, "$a$"),
        "b": diagrams.Node(3.9, 0.55, "$b$"),
        "channels": diagrams.Node(3.9, 1.15, "weights of\nchannels", 1.4),
        "times": diagrams.Node(3.9, 1.7, "×"),
        "pixels": diagrams.Node(3.9, 2.4, "weights of\npixels", 1.4),
        "again": diagrams.Node(3.9, 2.95, "×"),
        "sum": diagrams.Node(3.9, 3.4, "+"),
        "y": diagrams.Node(3.9, 3.85, "$y$"),
    }
    chain = ("b", "channels", "times", "pixels", "again", "sum", "y")
    arrows = [*zip(chain, chain[1:]), ("a", (2.85, 3.4), "sum")]
    first = ("b", (4.85, 0.55), (4.85, 1.7), "times")
    second = ((3.9, 1.9), (4.85, 1.9), (4.85, 2.95), "again")
    diagrams.draw(axes, nodes, arrows, [first, second])


# %% tags=["join-figure"] alt="Two drawings. Sum: a and b meet at a plus sign, y leaves it. Concatenation: a and b enter a box, side by side with 2C channels, then a box, 1x1 to C channels, then y."
axes = diagrams.sheet(2.9)
draw_join(axes, 0.0, "sum", ("+",))
draw_join(axes, 2.5, "concatenation", ("side by side, 2C", "1×1, to C"))

# %% tags=["gated-figure"] alt="Two drawings in which b is multiplied by weights computed from b and added to a. SE: mean over the pixels, two layers, sigmoid. CBAM: weights of channels, a multiplication, then weights of pixels, a multiplication."
axes = diagrams.sheet(4.1)
draw_gated(axes, 0.0, "SE", ("pixels: mean", "two layers", "sigmoid"))
draw_cbam(axes)


# %% tags=["drawing-pixels"]
def draw_asff(axes) -> None:
    """Draw two scores, one softmax, two products and their sum."""
    nodes = {
        "title": diagrams.Node(1.2, 0.15, "ASFF", weight="bold"),
        "a": diagrams.Node(0.75, 0.55, "$a$"),
        "b": diagrams.Node(1.75, 0.55, "$b$"),
        "score a": diagrams.Node(0.75, 1.1, "1×1", 0.6),
        "score b": diagrams.Node(1.75, 1.1, "1×1", 0.6),
        "softmax": diagrams.Node(1.25, 1.7, "softmax", 1.6),
        "times a": diagrams.Node(0.75, 2.3, "×"),
        "times b": diagrams.Node(1.75, 2.3, "×"),
        "sum": diagrams.Node(1.25, 2.85, "+"),
        "y": diagrams.Node(1.25, 3.35, "$y$"),
    }
    arrows = [("a", "score a"), ("b", "score b"), ("sum", "y")]
    arrows += [("score a", "softmax"), ("score b", "softmax")]
    arrows += [("softmax", "times a"), ("softmax", "times b")]
    arrows += [("times a", "sum"), ("times b", "sum")]
    past_a = ("a", (0.2, 0.55), (0.2, 2.3), "times a")
    past_b = ("b", (2.3, 0.55), (2.3, 2.3), "times b")
    diagrams.draw(axes, nodes, arrows, [past_a, past_b])


def draw_attention_gate(axes) -> None:
    """Draw the weight of the skip a from both maps, and the sum with b."""
    nodes = {
        "title": diagrams.Node(3.75, 0.15, "attention gate", weight="bold"),
        "a": diagrams.Node(3.25, 0.55, "$a$"),
        "b": diagrams.Node(4.25, 0.55, "$b$"),
        "skip": diagrams.Node(3.25, 1.1, "1×1", 0.6),
        "signal": diagrams.Node(4.25, 1.1, "1×1", 0.6),
        "inner": diagrams.Node(3.75, 1.7, "+, ReLU, 1×1,\nsigmoid", 1.5),
        "times": diagrams.Node(3.75, 2.35, "×"),
        "sum": diagrams.Node(3.75, 2.85, "+"),
        "y": diagrams.Node(3.75, 3.35, "$y$"),
    }
    arrows = [("a", "skip"), ("b", "signal"), ("skip", "inner"), ("signal", "inner")]
    arrows += [("inner", "times"), ("times", "sum"), ("sum", "y")]
    past_a = ("a", (2.75, 0.55), (2.75, 2.35), "times")
    past_b = ("b", (4.8, 0.55), (4.8, 2.85), "sum")
    diagrams.draw(axes, nodes, arrows, [past_a, past_b])


# %% tags=["pixels-figure"] alt="Two drawings. ASFF: a and b each pass a 1x1 convolution, one softmax over both scores gives two weights, which multiply a and b; the products are added. Attention gate: a and b each pass a 1x1 convolution, their sum passes a ReLU, a 1x1 convolution and a sigmoid; the weight multiplies a, and b is added."
axes = diagrams.sheet(3.5)
draw_asff(axes)
draw_attention_gate(axes)

# %% tags=["products-figure"] alt="Two drawings. Bilinear: a and b enter a box, C times C products at each pixel, then a sum over the pixels. Compact: a and b enter a box, two sketches with d slots at each pixel, then their circular convolution, then a sum over the pixels."
axes = diagrams.sheet(3.6)
draw_join(axes, 0.0, "bilinear", ("all C · C products", "sum over pixels"))
sketched = ("two sketches of d", "circular convolution", "sum over pixels")
draw_join(axes, 2.5, "compact bilinear", sketched)

# %% [markdown]
# ## Counted
#
# Parameters and multiply-accumulates of joining two maps of 64 channels and 28x28 pixels,
# on torch's meta device, where a tensor has a shape and no values.


# %% tags=["pair"]
class Pair(nn.Module):
    """Give both halves of the channels to a fusion, so that it can be counted."""

    def __init__(self, fusion: nn.Module):
        super().__init__()
        self.fusion = fusion

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return self.fusion(a, b)


# %% tags=["cost"]
with torch.device("meta"):
    x = torch.empty(1, 128, 28, 28)
    fusions = {"sum": Sum(), "concatenation, 1×1": Concat(64)}
    fusions |= {"SE": GatedSum(SqueezeExcitation(64)), "CBAM": GatedSum(CBAM(64))}
    fusions |= {"ASFF": ASFF(64), "attention gate": GatedSkip(64)}
    fusions |= {"bilinear": Bilinear(), "compact bilinear": CompactBilinear(64, 512)}
rows = []
for name, fusion in fusions.items():
    pair = Pair(fusion)
    shape = "×".join(map(str, pair(x).shape[1:]))
    macs = "—" if name == "compact bilinear" else f"{counting.macs(pair, x):,}"
    rows.append((name, shape, counting.parameters(pair), macs))
table(rows, ("fusion of two 64×28×28", "output", "parameters", "MACs"))

# %% [markdown]
# ## Two maps, one of them damaged
#
# One path reads a noisy picture of a digit, the other the clean one. Both are trained with
# a sum, then kept. In half of the images a part of the second map becomes noise.


# %% tags=["network"]
def conv_norm_relu(c_in: int, c_out: int, *, stride: int = 1) -> nn.Sequential:
    """3x3 convolution without bias, batch norm, ReLU."""
    conv = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())


class Paths(nn.Module):
    """A path for each of two images: (B, 2, H, W) -> (B, 2, C, H / 2, W / 2)."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.first1 = conv_norm_relu(1, channels, stride=2)
        self.first2 = conv_norm_relu(channels, channels)
        self.second1 = conv_norm_relu(1, channels, stride=2)
        self.second2 = conv_norm_relu(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first2(self.first1(x[:, :1]))  # (B, C, H / 2, W / 2)
        b = self.second2(self.second1(x[:, 1:]))  # (B, C, H / 2, W / 2)
        return torch.stack((a, b), dim=1)


class FusedNetwork(nn.Module):
    """Join two maps, then convolve, average, classify: (B, 2, C, H, W) -> (B, 10)."""

    def __init__(self, fusion: nn.Module, *, channels: int = 16):
        super().__init__()
        self.fusion = fusion
        self.conv = conv_norm_relu(channels, 2 * channels, stride=2)
        self.classifier = nn.Linear(2 * channels, 10)

    def forward(self, maps: Tensor) -> Tensor:
        a, b = maps.unbind(1)
        x = self.conv(self.fusion(a, b))  # (B, 2 C, H / 2, W / 2)
        return self.classifier(x.mean((2, 3)))  # (B, 10)


# %% tags=["drawing-network"]
def draw_network(axes) -> None:
    """Draw two parallel paths, the damage of one, and what joins them."""
    nodes = {
        "noisy": diagrams.Node(1.2, 0.25, "noisy digit, 1×16×16"),
        "clean": diagrams.Node(3.8, 0.25, "digit, 1×16×16"),
    }
    for side, x in (("noisy", 1.2), ("clean", 3.8)):
        nodes[f"{side} 1"] = diagrams.Node(x, 0.85, "3×3, 16, stride 2", 1.8)
        nodes[f"{side} 2"] = diagrams.Node(x, 1.4, "3×3, 16", 1.8)
    nodes["damage"] = diagrams.Node(3.8, 1.95, "damage", 1.8, plots.COLOURS[1])
    nodes["fusion"] = diagrams.Node(2.5, 2.6, "fusion, 16×8×8", 4.4)
    nodes["conv"] = diagrams.Node(2.5, 3.25, "3×3, 32, stride 2", 1.8)
    nodes["end"] = diagrams.Node(2.5, 3.85, "mean, linear, 10", 1.8)
    chains = (("noisy", "noisy 1", "noisy 2", "fusion", "conv", "end"),)
    chains += (("clean", "clean 1", "clean 2", "damage", "fusion"),)
    arrows = [pair for chain in chains for pair in zip(chain, chain[1:])]
    diagrams.draw(axes, nodes, arrows)


# %% tags=["drawn"] alt="Two parallel paths from top to bottom. At the left a noisy digit of 16x16 passes two boxes, 3x3 convolutions of 16 channels, the first of stride 2; at the right the clean digit passes two such boxes, then a box, damage. Both meet in a wide box, fusion, 16x8x8; a 3x3 convolution of 32 channels, the mean and a linear layer follow."
axes = diagrams.sheet(4.4)
draw_network(axes)


# %% tags=["damage"]
def one_block(b: Tensor, *, side: int = 4) -> Tensor:
    """A square of pixels anywhere in each map: (B, C, H, W) -> bools (B, 1, H, W)."""
    B, _, H, W = b.shape
    top = torch.randint(H - side + 1, (B, 1, 1, 1), device=b.device)
    left = torch.randint(W - side + 1, (B, 1, 1, 1), device=b.device)
    row = torch.arange(H, device=b.device).view(H, 1)
    column = torch.arange(W, device=b.device)
    rows = (row >= top) & (row < top + side)  # (B, 1, H, 1)
    columns = (column >= left) & (column < left + side)  # (B, 1, 1, W)
    return rows & columns


def ten_channels(b: Tensor) -> Tensor:
    """Always the first ten channels: (B, C, H, W) -> bools (1, C, 1, 1)."""
    _, C, _, _ = b.shape
    return (torch.arange(C, device=b.device) < 10).view(1, C, 1, 1)


def damage(maps: Tensor, places) -> tuple[Tensor, Tensor]:
    """Noise from 0 to 8 at these places of the second map, in half of the images.

    maps (B, 2, C, H, W) -> the same, and where the noise is, (B, C, H, W).
    """
    a, b = maps.unbind(1)
    hit = torch.rand(len(b), 1, 1, 1, device=b.device) < 0.5
    where = (hit & places(b)).expand_as(b)
    damaged = torch.where(where, 8 * torch.rand_like(b), b)
    return torch.stack((a, damaged), dim=1), where


# %% tags=["data"]
IMAGES = 2_000 if PROFILE == "sample" else 20_000
data = images.digits(size=16)
train_part, validation, test = images.standardised(data, first=IMAGES)
record("images", len(train_part[1]))
parts = {"train": train_part, "validation": validation, "test": test}
table(
    [(name, *x.shape) for name, (x, _) in parts.items()], ("part", "N", "C", "H", "W")
)

# %% tags=["train"]
EPOCHS = 4
BATCH = 50
SEEDS = (0, 1, 2)
NOISE = 2.0  # standard deviation, in those of the digits


def train(network: nn.Module, part, *, epochs: int = EPOCHS, rate: float = 0.1):
    """SGD; the rate rises for a fifth of the steps, then falls to 0."""
    steps = epochs * math.ceil(len(part[1]) / BATCH)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4
    )
    schedule = training.one_cycle(optimizer, steps)
    training.fit(network, part, epochs, optimizer, batch=BATCH, schedule=schedule)


# %% tags=["paths"]
def with_noise(x: Tensor) -> Tensor:
    """A noisy copy beside the image: (B, 1, H, W) -> (B, 2, H, W)."""
    return torch.cat((x + NOISE * torch.randn_like(x), x), dim=1)


clean = {}  # seed -> maps of the training and of the test images, without damage
for number in SEEDS:
    seed(number)
    pairs = [with_noise(x) for x, _ in (train_part, test)]
    paths = Paths().to(device)
    network = nn.Sequential(paths, FusedNetwork(Sum()).to(device))
    train(network, (pairs[0], train_part[1]))
    clean[number] = [training.predict(paths, x) for x in pairs]

# %% tags=["values"]
b = clean[0][0][:, 1]
record("b.mean", b.mean())
record("b.largest", b.max())
b.max().item()

# %% tags=["fusions"]
DAMAGES = {"block": one_block, "channels": ten_channels}
FUSIONS = {"sum": Sum, "concatenation": lambda: Concat(16)}
FUSIONS["SE"] = lambda: GatedSum(SqueezeExcitation(16, reduction=2))
FUSIONS["ASFF"] = lambda: ASFF(16)
FUSIONS["spatial"] = lambda: GatedSum(SpatialAttention())

# %% tags=["headline"]
networks = {}
tested = {}
for kind, places in DAMAGES.items():
    for number in SEEDS:
        seed(number)
        maps, _ = damage(clean[number][0], places)
        tested[kind, number] = damage(clean[number][1], places)
        for name, fusion in FUSIONS.items():
            network = FusedNetwork(fusion()).to(device)
            train(network, (maps, train_part[1]))
            networks[kind, name, number] = network

# %% tags=["scored"]
scores = {}
for (kind, name, number), network in networks.items():
    right = training.evaluate(network, (tested[kind, number][0], test[1]))
    scores.setdefault((kind, name), []).append(right)

# %% tags=["result"]
VARY = {"sum": "—", "concatenation": "—", "SE": "channels", "ASFF": "pixels"}
VARY["spatial"] = "pixels"
SET_BY = {"sum": "nobody", "concatenation": "training", "SE": "second map"}
SET_BY |= {"ASFF": "both maps", "spatial": "second map"}
rows = []
for name in FUSIONS:
    for kind in DAMAGES:
        record_spread(f"{name}.{kind}", scores[kind, name])
    texts = [spread(scores[kind, name], ".1%") for kind in DAMAGES]
    rows.append((name, SET_BY[name], VARY[name], *texts))
heads = ("fusion", "weights set by", "differ between", "block damaged")
table(rows, (*heads, "ten channels damaged"))

# %% tags=["damage-figure"] alt="Test accuracy of five fusions, a dot for each of three seeds. With a block damaged the dots of ASFF and of spatial attention lie to the right of those of sum, concatenation and SE. With ten channels damaged those of SE lie to the right of all others."
AHEAD = {"block": ("ASFF", "spatial"), "channels": ("SE",)}
_, panels = plt.subplots(2, 1, figsize=(5, 4.6), sharex=True)
titles = ("a block of 4×4 pixels damaged", "ten of 16 channels damaged")
for axes, kind, title in zip(panels, DAMAGES, titles):
    for row, name in enumerate(FUSIONS):
        right = [100 * value for value in scores[kind, name]]
        colour = plots.COLOURS[1] if name in AHEAD[kind] else plots.COLOURS[0]
        axes.plot(right, [row] * 3, "o", color=colour, alpha=0.6, markersize=7)
    axes.set(yticks=range(5), yticklabels=FUSIONS, ylim=(4.5, -0.5))
    axes.set_title(title, loc="left")
    axes.grid(axis="x")
panels[1].set_xlabel("test accuracy, %")
plt.show()

# %% tags=["headline-claims"]
for kind, winners in AHEAD.items():
    for winner in winners:
        for name in FUSIONS:
            if name not in winners:
                ahead = min(scores[kind, winner]) > max(scores[kind, name])
                claim(ahead, f"{kind} damaged: {winner} ahead of {name}, seeds apart")
for name in ("sum", "concatenation"):
    ahead = min(scores["block", "SE"]) > max(scores["block", name])
    claim(not ahead, f"with a block damaged SE is not ahead of {name}")

# %% [markdown]
# ## Early against late
#
# Two inputs, luminance and colour: join them before the first layer, or not before the
# class scores. The widths are chosen for about equal numbers of parameters.


# %% tags=["luminance"]
def luminance_and_colour(x: Tensor) -> Tensor:
    """R, G, B -> luminance, blue - luminance, red - luminance: (B, 3, H, W)."""
    red, green, blue = x.unbind(1)
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    return torch.stack((luminance, blue - luminance, red - luminance), dim=1)


# %% tags=["two-inputs"]
class Classifier(nn.Module):
    """Two convolutions, mean, linear layer: (B, c_in, H, W) -> (B, 10)."""

    def __init__(self, c_in: int, channels: int):
        super().__init__()
        self.conv1 = conv_norm_relu(c_in, channels, stride=2)
        self.conv2 = conv_norm_relu(channels, 2 * channels, stride=2)
        self.linear = nn.Linear(2 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x))  # (B, 2 channels, H / 4, W / 4)
        return self.linear(x.mean((2, 3)))  # (B, 10)


class LateFusion(nn.Module):
    """A network for luminance, one for colour, the mean of their scores: -> (B, 10)."""

    def __init__(self, channels: int):
        super().__init__()
        self.luminance = Classifier(1, channels)
        self.colour = Classifier(2, channels)

    def forward(self, x: Tensor) -> Tensor:
        return (self.luminance(x[:, :1]) + self.colour(x[:, 1:])) / 2  # (B, 10)


# %% [markdown]
# Late fusion is early fusion without connections between the inputs: set every kernel
# between the channels of one network and those of the other to zero, and a single network
# of twice the width gives the mean of the scores.


# %% tags=["merged"]
def side_by_side(joint: nn.Sequential, a: nn.Sequential, b: nn.Sequential) -> None:
    """Kernels of a and b as two blocks, zeros between; batch norms in a row."""
    c_out, c_in, _, _ = a[0].weight.shape
    joint[0].weight.zero_()
    joint[0].weight[:c_out, :c_in] = a[0].weight
    joint[0].weight[c_out:, c_in:] = b[0].weight
    for name in ("weight", "bias", "running_mean", "running_var"):
        both = torch.cat((getattr(a[1], name), getattr(b[1], name)))
        getattr(joint[1], name).copy_(both)


@torch.no_grad()
def merged(late: LateFusion, joint: Classifier) -> Classifier:
    """Fill `joint`, twice as wide, so that it gives the mean of both's scores."""
    a = late.luminance
    b = late.colour
    side_by_side(joint.conv1, a.conv1, b.conv1)
    side_by_side(joint.conv2, a.conv2, b.conv2)
    joint.linear.weight.copy_(torch.cat((a.linear.weight, b.linear.weight), dim=1) / 2)
    joint.linear.bias.copy_((a.linear.bias + b.linear.bias) / 2)
    return joint


# %% tags=["inputs-data"]
PATCHES = 1_000 if PROFILE == "sample" else 20_000
coloured = images.patches(16)
x = luminance_and_colour(coloured.train[0])[:PATCHES]
mean = x.mean((0, 2, 3), keepdim=True)
std = x.std((0, 2, 3), keepdim=True)
patches = (x - mean) / std, coloured.train[1][:PATCHES]
patches_test = (luminance_and_colour(coloured.test[0]) - mean) / std, coloured.test[1]
record("patches", len(patches[1]))
INPUTS = {"luminance alone": (0, 1), "colour alone": (1, 3), "early": (0, 3)}
INPUTS["late"] = (0, 3)  # first and last channel

# %% tags=["inputs-runs"]
by_input = {}
for name, (first, last) in INPUTS.items():
    part = patches[0][:, first:last], patches[1]
    held = patches_test[0][:, first:last], patches_test[1]
    for number in SEEDS:
        seed(number)
        late = name == "late"
        network = LateFusion(11) if late else Classifier(last - first, 16)
        train(network.to(device), part, epochs=6)
        by_input.setdefault(name, []).append(training.evaluate(network, held))
        networks[name, number] = network

# %% tags=["inputs-result"]
rows = []
for name, right in by_input.items():
    record_spread(f"{name.replace(' ', '.')}.test", right)
    parameters = counting.parameters(networks[name, 0])
    rows.append((name, parameters, spread(right, ".1%")))
table(rows, ("inputs joined", "parameters", "test accuracy"))

# %% tags=["inputs-claims"]
for both in ("early", "late"):
    for one in ("luminance alone", "colour alone"):
        ahead = min(by_input[both]) > max(by_input[one])
        claim(ahead, f"every seed of {both} is right more often than any of {one}")
early = by_input["early"]
late = by_input["late"]
claim(sum(early) > sum(late), "the mean of early fusion is above that of late fusion")
between = max(early) - min(late)
gained = min(late) - max(by_input["colour alone"])
claim(between < gained, "a second input matters more than where it is joined")

# %% [markdown]
# ## Equal to references
#
# Two libraries have two of the modules; batch norm gets random statistics before the
# weights are copied. Products of channels are compared with loops, in double precision;
# the rest are special cases of others, or equations written out.

# %% tags=["equal-libraries"]
seed(0)
x = torch.randn(2, 64, 9, 7)
pairs = {
    "SE, torchvision": (
        SqueezeExcitation(64),
        torchvision.ops.SqueezeExcitation(64, 4),
    ),
    "CBAM, timm": (CBAM(64), checks.randomise_norms(CbamModule(64))),
}
equal = {}
for name, (ours, theirs) in pairs.items():
    checks.transplant(theirs, ours)
    equal[name] = checks.same_outputs(ours, theirs, x)

# %% tags=["equal-loops"]
a, b = torch.randn(2, 2, 64, 9, 7, dtype=torch.float64)
products = summed_outer_products(a, b)
compact = CompactBilinear(64, 100)
equal["bilinear, loop"] = checks.deviation(Bilinear()(a, b), products.flatten(1))
equal["compact, loop"] = checks.deviation(
    compact(a, b), sketch_by_hand(products, compact)
)
claim(equal["bilinear, loop"] < 1e-10, "bilinear pooling gives what a loop gives")
claim(equal["compact, loop"] < 1e-10, "the compact form gives what a loop gives")

# %% tags=["equal-cases"]
with torch.no_grad():
    a, b = torch.randn(2, 2, 64, 9, 7)
    identity = checks.deviation(as_sum(Concat(64))(a, b), a + b)
    x = torch.randn(2, 16, 9, 7)
    outputs = dense_chain(densely(layers), x).unflatten(1, (5, 16))
    chain = checks.deviation(outputs.sum(1), residual_chain(layers, x))
two = checks.randomise_norms(LateFusion(11))
late = checks.same_outputs(
    merged(two, Classifier(3, 22)), two, torch.randn(2, 3, 33, 27)
)
equal |= {"sum, concatenation": identity, "residual, dense": chain, "late, early": late}

# %% tags=["equal-pixels"]
asff = ASFF(64)
gate = AttentionGate(64, 64, inner=32)
with torch.no_grad():
    alpha = (asff.scores[0](a) - asff.scores[1](b)).sigmoid()
    average = checks.deviation(asff(a, b), alpha * a + (1 - alpha) * b)
    psi = gate.score.weight.flatten(1)
    inner = F.linear(a.movedim(1, -1), gate.skip.weight.flatten(1))
    inner += F.linear(b.movedim(1, -1), gate.signal.weight.flatten(1), gate.signal.bias)
    alpha = F.linear(inner.relu(), psi, gate.score.bias).sigmoid()  # (B, H, W, 1)
    gated = checks.deviation(gate(a, b), a * alpha.movedim(-1, 1))
equal |= {"ASFF, sigmoid of a difference": average, "attention gate, matrices": gated}

# %% tags=["equal"]
claim(max(equal.values()) < 1e-5, "each fusion gives what its reference gives")
rows = [(*name.split(", "), f"{value:.1e}") for name, value in equal.items()]
table(rows, ("fusion", "reference", "largest difference"))

# %% [markdown]
# ## Look inside
#
# The weights that the trained gates give to the second map, where it is noise and where it
# is not.


# %% tags=["inside"]
@torch.no_grad()
def weights_of_second(network: FusedNetwork, name: str, maps: Tensor) -> Tensor:
    """What SE or ASFF multiplies the second map with, (B, C, 1, 1) or (B, 1, H, W)."""
    a, b = maps.to(device).unbind(1)
    if name == "SE":
        return network.fusion.gate.weights(b).cpu()
    return network.fusion.weights(a, b)[:, 1:].cpu()


# %% tags=["inside-weights"]
noise = {}
rest = {}
shown = {}
for kind, name in (("channels", "SE"), ("block", "ASFF")):
    for number in SEEDS:
        maps, where = tested[kind, number]
        network = networks[kind, name, number].eval()
        shown[name, number] = weights_of_second(network, name, maps)
        weights = shown[name, number].expand_as(where)
        noise.setdefault(name, []).append(weights[where].mean().item())
        rest.setdefault(name, []).append(weights[~where].mean().item())

# %% tags=["inside-result"]
rows = []
for name in noise:
    record_spread(f"{name}.noise", noise[name])
    record_spread(f"{name}.rest", rest[name])
    claim(max(noise[name]) < min(rest[name]), f"{name} weighs noise less than the rest")
    rows.append((name, spread(noise[name], ".2f"), spread(rest[name], ".2f")))
table(rows, ("fusion", "weight of noise", "weight of the rest"))

# %% tags=["inside-maps"] alt="Four damaged maps above, each with a bright square of noise, and below them the weights that ASFF gives to these maps: a dark square at the place of the noise, light elsewhere."
maps, where = tested["block", 0]
hit = where.any(dim=(1, 2, 3)).nonzero().flatten()[:4]
above = [maps[i, 1].mean(0) for i in hit]
below = [shown["ASFF", 0][i, 0] for i in hit]
inside = torch.stack([w[where[i, 0]].mean() for i, w in zip(hit, below)])
outside = torch.stack([w[~where[i, 0]].mean() for i, w in zip(hit, below)])
claim(
    (inside < outside).all(), "ASFF's weights are darker at the noise in each picture"
)
titles = ["map"] * 4 + ["weight"] * 4
plots.image_grid(above + below, titles, columns=4, scale=1.1)

# %% [markdown]
# ## What we saw
#
# - A gate helps against the damage that its weights can single out: ASFF and spatial
#   attention against noise in a block of pixels, SE against noise in certain channels.
# - SE and CBAM equal the libraries, bilinear pooling and its sketch equal loops; sum,
#   a residual chain of convolutions and late fusion are special cases of concatenation.
# - Luminance and colour together are right more often than either; where they are joined
#   matters less, with the mean of early fusion above that of late fusion.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
stages = ((256, 3), (512, 4), (1024, 6), (2048, 3))  # channels and blocks of ResNet-50
weights = sum(n * 2 * channels * channels // 16 for channels, n in stages)
biases = sum(n * (channels + channels // 16) for channels, n in stages)

# %% tags=["solution-1-result"]
with torch.device("meta"):
    found = counting.parameters(seresnet50()) - counting.parameters(resnet50())
claim(found == weights + biases, "the parameters of SE by hand are those in timm")
record("se.weights", weights)
table([(weights, biases, found)], ("weights by hand", "biases by hand", "in timm"))

# %% tags=["solution-2"]
OTHER = {"block": "channels", "channels": "block"}
elsewhere = {}
for (kind, name), _ in scores.items():
    for number in SEEDS:
        maps, _ = tested[OTHER[kind], number]
        right = training.evaluate(networks[kind, name, number], (maps, test[1]))
        elsewhere.setdefault((kind, name), []).append(right)

# %% tags=["solution-2-result"]
rows = []
for (kind, name), right in elsewhere.items():
    at_home = scores[kind, name]
    rows.append((name, kind, spread(at_home, ".0%"), spread(right, ".0%")))
    fallen = max(right) < min(at_home)
    falls = (kind, name) != ("channels", "spatial")
    words = "falls" if falls else "is not told apart"
    claim(fallen == falls, f"{name}, trained on {kind}, {words} on the other damage")
for kind, name in (("block", "ASFF"), ("channels", "SE")):
    record_spread(f"{name}.elsewhere", elsewhere[kind, name])
record_spread("sum.elsewhere", elsewhere["block", "sum"])
record_spread("spatial.elsewhere", elsewhere["channels", "spatial"])
table(rows, ("fusion", "trained on", "tested on the same", "on the other damage"))

# %% tags=["solution-3"]
both_axes = {}
for kind, places in DAMAGES.items():
    seed(0)
    maps, _ = damage(clean[0][0], places)
    network = FusedNetwork(GatedSum(CBAM(16, reduction=2))).to(device)
    train(network, (maps, train_part[1]))
    right = training.evaluate(network, (tested[kind, 0][0], test[1]))
    both_axes[kind] = right

# %% tags=["solution-3-result"]
rows = [("CBAM", *(f"{both_axes[kind]:.1%}" for kind in DAMAGES))]
for name in ("SE", "ASFF"):
    rows.append((name, *(f"{scores[kind, name][0]:.1%}" for kind in DAMAGES)))
for kind, best in (("block", "ASFF"), ("channels", "SE")):
    claim(both_axes[kind] < scores[kind, best][0], f"CBAM is behind {best}, {kind}")
    record(f"CBAM.{kind}", both_axes[kind])
claim(both_axes["block"] > scores["block", "SE"][0], "CBAM is ahead of SE, block")
table(rows, ("fusion, seed 0", "block damaged", "ten channels damaged"))


# %% tags=["solution-4"]
def sketched_product(x: Tensor, y: Tensor, d: int, *, signs: bool) -> float:
    """Inner product of bilinear features of two maps (1, C, H, W), from sketches."""
    compact = CompactBilinear(x.shape[1], d)
    if not signs:
        compact.first.sign.fill_(1.0)
        compact.second.sign.fill_(1.0)
    return (compact(x, x) * compact(y, y)).sum().item()


seed(0)
x, y = torch.rand(2, 1, 16, 8, 8).unbind()  # nowhere negative, as behind a ReLU
exact = (Bilinear()(x, x) * Bilinear()(y, y)).sum().item()
ratios = {}
for d in (32, 128, 512):
    for signs in (True, False):
        drawn = [sketched_product(x, y, d, signs=signs) for _ in range(100)]
        ratios[d, signs] = torch.tensor(drawn) / exact

# %% tags=["solution-4-result"]
rows = []
for d in (32, 128, 512):
    texts = [
        f"{r.mean():.2f} ± {r.std():.2f}" for r in (ratios[d, True], ratios[d, False])
    ]
    rows.append((d, *texts))
    off = (ratios[d, True].mean() - 1).abs() < 0.3 * ratios[d, True].std()
    claim(off, f"with signs and {d} slots the sketch is right on average")
    claim(ratios[d, False].mean() > 1.1, f"without signs {d} slots say too much")
spreads = [ratios[d, True].std().item() for d in (32, 128, 512)]
claim(spreads[0] > spreads[1] > spreads[2], "more slots deviate less")
table(rows, ("slots d", "with signs", "without"))
