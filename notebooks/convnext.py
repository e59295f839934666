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
# # ConvNeXt
#
# From ResNet-50 to ConvNeXt in the steps of the paper: each step built, counted, and asked
# how far one value of its third stage sees. The text to it is the
# [chapter](../chapters/convnext.rst), the paper is
# [Liu et al. 2022](https://arxiv.org/abs/2201.03545).

# %%
import copy
import math
from functools import partial

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import PROFILE, claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, drawing, images, plots, training

# %% [markdown]
# ## Layer norm over channels, by hand
#
# Batch norm takes the mean and the variance of one channel over all pixels of the batch.
# Layer norm takes those of one pixel over all of its channels.


# %% tags=["channel-norm"]
class ChannelNorm(nn.Module):
    """Layer norm of each pixel over its channels (Ba et al. 2016): (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)  # (B, 1, H, W)
        variance = x.var(1, correction=0, keepdim=True)
        normed = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.scale[:, None, None] * normed + self.shift[:, None, None]


# %% tags=["norm-run"]
dim = torch.tensor([2.0, 4.0, 4.0, 6.0])
pixels = torch.stack([dim, 10 * dim], dim=1)  # (4, 2): channels, pixels
x = pixels.view(1, 4, 1, 2)  # (B, C, H, W)
by_layer = ChannelNorm(4)(x)
by_batch = nn.BatchNorm2d(4)(x)

# %% tags=["norm-by-hand"]
rows = []
for name, maps in (("input", x), ("layer norm", by_layer), ("batch norm", by_batch)):
    for place, words in enumerate(("dim pixel", "bright pixel")):
        values = maps[0, :, 0, place].tolist()
        rows.append((name, words, *(f"{value:.3f}" for value in values)))
table(rows, ("values", "pixel", "channel 1", "2", "3", "4"))

# %% tags=["norm-checked"]
library = nn.LayerNorm(4, eps=1e-6)(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
claim(checks.deviation(by_layer, library) < 1e-6, "the layer norm by hand is torch's")
difference = checks.deviation(by_layer[..., 0], by_layer[..., 1])
claim(
    difference < 1e-4, "layer norm gives the dim and the bright pixel the same values"
)
signs = by_batch[0, :, 0].sign()
claim(
    (signs[:, 0] == -1).all(), "batch norm leaves the dim pixel below zero throughout"
)
claim(
    (signs[:, 1] == 1).all(), "batch norm leaves the bright one above zero throughout"
)


# %% tags=["drawing"]
def draw_values(axes, title: str, chosen) -> None:
    """Six pixels of two images by four channels; `chosen` ones share their mean."""
    for row in range(6):
        for column in range(4):
            y = row + 0.4 * (row > 2)  # a gap between the images
            colour = plots.COLOURS[1] if chosen(row, column) else plots.GRID
            axes.add_patch(plt.Rectangle((column, y), 0.86, 0.86, color=colour))
    axes.set(xlim=(-1.9, 4), ylim=(6.4, -0.9), aspect="equal")
    axes.text(-0.2, 1.43, "image 1", ha="right", va="center")
    axes.text(-0.2, 4.83, "image 2", ha="right", va="center")
    axes.text(1.93, -0.45, "channels", ha="center", va="center")
    axes.set_title(title)
    axes.axis("off")


# %% tags=["norms-figure"] alt="Two grids of six rows, three pixels of each of two images, and four columns, the channels. Batch norm: one column is coloured through both images. Layer norm: one row is coloured, all four channels of a single pixel."
_, (left, right) = plt.subplots(1, 2, figsize=(5, 2.9))
draw_values(left, "batch norm", lambda row, column: column == 1)
draw_values(right, "layer norm", lambda row, column: row == 1)
plt.show()

# %% [markdown]
# ## The block


# %% tags=["stochastic-depth"]
class StochasticDepth(nn.Module):
    """Leave out the branch of an image by chance while training (Huang et al. 2016).

    What is kept is divided by the probability of being kept, so that the mean stays.
    """

    def __init__(self, dropped: float):
        super().__init__()
        self.kept = 1 - dropped

    def forward(self, branch: Tensor) -> Tensor:
        # (B, C, H, W) -> (B, C, H, W)
        if not self.training:
            return branch
        B = len(branch)
        chosen = branch.new_empty(B, 1, 1, 1).bernoulli_(self.kept)
        return branch * chosen / self.kept


# %% tags=["block"]
class Block(nn.Module):
    """Look around in each channel, normalise, widen four times, narrow (figure 4)."""

    def __init__(
        self, width: int, *, kernel: int = 7, scale: float = 1e-6, dropped: float = 0.0
    ):
        super().__init__()
        padding = kernel // 2
        self.depthwise = nn.Conv2d(width, width, kernel, padding=padding, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width, 1, 1), scale))
        self.drop = StochasticDepth(dropped) if dropped else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x)  # (B, C, H, W)
        y = y.permute(0, 2, 3, 1)  # (B, H, W, C)
        y = F.gelu(self.expand(self.norm(y)))  # (B, H, W, 4 C)
        y = self.project(y).permute(0, 3, 1, 2)  # (B, C, H, W)
        return x + self.drop(self.scale * y)


# %% tags=["block-shape"]
Block(96)(torch.randn(2, 96, 28, 20)).shape

# %% [markdown]
# ## The network


# %% tags=["convnext"]
def small_weights(network: nn.Module) -> None:
    """Normal weights of deviation 0.02, biases zero (the authors' code)."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)


def halve(width: int) -> nn.Sequential:
    """Separate downsampling: layer norm, then 2x2 patches to twice the channels."""
    return nn.Sequential(ChannelNorm(width), nn.Conv2d(width, 2 * width, 2, stride=2))


class ConvNeXt(nn.Module):
    """Patches, four stages with downsampling between, mean, norm, linear (table 9).

    (B, 3, H, W) -> (B, num_classes). The share of dropped branches rises from 0 at the
    first block to `dropped` at the last.
    """

    def __init__(
        self, depths, *, width: int, dropped=0.0, num_classes=1000, **of_blocks
    ):
        super().__init__()
        shares = torch.linspace(0, dropped, sum(depths), device="cpu")
        stages = []
        for index, drops in enumerate(torch.split(shares, depths)):
            make = partial(Block, width * 2**index, **of_blocks)
            blocks = [make(dropped=drop) for drop in drops.tolist()]
            stages.append(nn.Sequential(*blocks))
        patches = nn.Conv2d(3, width, 4, stride=4)
        self.stem = nn.Sequential(patches, ChannelNorm(width))
        self.stage1 = stages[0]
        self.halve1 = halve(width)
        self.stage2 = stages[1]
        self.halve2 = halve(2 * width)
        self.stage3 = stages[2]
        self.halve3 = halve(4 * width)
        self.stage4 = stages[3]
        self.norm = nn.LayerNorm(8 * width, eps=1e-6)
        self.classifier = nn.Linear(8 * width, num_classes)
        small_weights(self)

    def features(self, x: Tensor) -> Tensor:
        """Three stages, whose field is measured: (B, 4 width, H / 16, W / 16)."""
        x = self.stage1(self.stem(x))  # (B, width, H / 4, W / 4)
        x = self.stage2(self.halve1(x))  # (B, 2 width, H / 8, W / 8)
        return self.stage3(self.halve2(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = self.stage4(self.halve3(x))  # (B, 8 width, H / 32, W / 32)
        return self.classifier(self.norm(x.mean((2, 3))))  # (B, num_classes)


# %% tags=["sizes"]
RATIO = (3, 3, 9, 3)  # blocks in the four stages
DEEP = (3, 3, 27, 3)


def convnext_tiny() -> ConvNeXt:
    return ConvNeXt(RATIO, width=96, dropped=0.1)


def convnext_small() -> ConvNeXt:
    return ConvNeXt(DEEP, width=96, dropped=0.4)


def convnext_base() -> ConvNeXt:
    return ConvNeXt(DEEP, width=128, dropped=0.5)


def convnext_large() -> ConvNeXt:
    return ConvNeXt(DEEP, width=192, dropped=0.5)


# %% [markdown]
# ## The steps
#
# Section 2 of the paper starts from ResNet-50. Each class below is a block of one step and
# says what it changes in the block before.


# %% tags=["resnet-block"]
def conv_norm(
    c_in: int, c_out: int, size: int, *, stride=1, groups=1, norm=nn.BatchNorm2d
) -> nn.Sequential:
    """Convolution without bias, then a norm, whose shift is the bias."""
    conv = nn.Conv2d(
        c_in, c_out, size, stride, padding=size // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, norm(c_out))


class Bottleneck(nn.Module):
    """ResNet-50: 1x1 down to the width, 3x3, 1x1 up to four times the width."""

    expansion = 4  # output channels divided by the width
    norm = nn.BatchNorm2d
    last = nn.ReLU  # behind the sum

    def __init__(self, c_in: int, width: int, *, stride: int = 1):
        super().__init__()
        c_out = self.expansion * width
        self.branch = self.layers(c_in, width, stride)
        same = stride == 1 and c_in == c_out
        project = conv_norm(c_in, c_out, 1, stride=stride, norm=self.norm)
        self.shortcut = nn.Identity() if same else project
        self.activation = self.last()

    def layers(self, c_in: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            conv_norm(c_in, width, 1),
            nn.ReLU(),
            conv_norm(width, width, 3, stride=stride),
            nn.ReLU(),
            conv_norm(width, 4 * width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, expansion * width, H / stride, W / stride)
        return self.activation(self.branch(x) + self.shortcut(x))


# %% tags=["depthwise-block"]
class DepthwiseBottleneck(Bottleneck):
    """One group for each channel in the 3x3 (section 2.3)."""

    def layers(self, c_in: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            conv_norm(c_in, width, 1),
            nn.ReLU(),
            conv_norm(width, width, 3, stride=stride, groups=width),
            nn.ReLU(),
            conv_norm(width, 4 * width, 1),
        )


# %% tags=["inverted-block"]
class InvertedBottleneck(Bottleneck):
    """Narrow outside, four times as wide inside (section 2.4, figure 3 b)."""

    expansion = 1

    def layers(self, c_in: int, width: int, stride: int) -> nn.Sequential:
        inner = 4 * width
        return nn.Sequential(
            conv_norm(c_in, inner, 1),
            nn.ReLU(),
            conv_norm(inner, inner, 3, stride=stride, groups=inner),
            nn.ReLU(),
            conv_norm(inner, width, 1),
        )


# %% tags=["depthwise-first"]
class DepthwiseFirst(InvertedBottleneck):
    """The depthwise convolution moves up, to the narrow side (figure 3 c)."""

    kernel = 3
    between = nn.ReLU

    def layers(self, c_in: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            conv_norm(c_in, c_in, self.kernel, stride=stride, groups=c_in),
            self.between(),
            conv_norm(c_in, 4 * width, 1),
            self.between(),
            conv_norm(4 * width, width, 1),
        )


class LargeKernel(DepthwiseFirst):
    """7x7 in place of 3x3 (section 2.5)."""

    kernel = 7


class WithGelu(LargeKernel):
    """GELU in place of ReLU (section 2.6)."""

    between = nn.GELU
    last = nn.GELU


# %% tags=["fewer"]
class FewerActivations(WithGelu):
    """Only one GELU, between the two 1x1; none behind the sum (section 2.6)."""

    last = nn.Identity

    def layers(self, c_in: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            conv_norm(c_in, c_in, self.kernel, stride=stride, groups=c_in),
            conv_norm(c_in, 4 * width, 1),
            nn.GELU(),
            conv_norm(4 * width, width, 1),
        )


class FewerNorms(FewerActivations):
    """Only one norm, in front of the first 1x1 (section 2.6)."""

    def layers(self, c_in: int, width: int, stride: int) -> nn.Sequential:
        around = {"stride": stride, "groups": c_in, "norm": self.norm}
        return nn.Sequential(
            conv_norm(c_in, c_in, self.kernel, **around),
            nn.Conv2d(c_in, 4 * width, 1),
            nn.GELU(),
            nn.Conv2d(4 * width, width, 1),
        )


# %% tags=["with-layer-norm"]
class WithLayerNorm(FewerNorms):
    """Layer norm in place of batch norm (section 2.6)."""

    norm = ChannelNorm


# %% tags=["stems"]
class Stem(nn.Module):
    """ResNet: 7x7 convolution and maximum, a quarter of the side."""

    def __init__(self, c_out: int):
        super().__init__()
        self.conv = conv_norm(3, c_out, 7, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # (B, 3, H, W) -> (B, c_out, H / 4, W / 4)
        return self.pool(torch.relu(self.conv(x)))


class Patchify(nn.Module):
    """Patches of 4x4 pixels that do not overlap, each through one linear map."""

    def __init__(self, c_out: int):
        super().__init__()
        self.patches = nn.Conv2d(3, c_out, 4, stride=4, bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        # (B, 3, H, W) -> (B, c_out, H / 4, W / 4)
        return torch.relu(self.norm(self.patches(x)))


# %% tags=["step-network"]
def stage(block, n: int, *, c_in: int, width: int, stride: int) -> nn.Sequential:
    """n blocks; the first takes the stride and changes the number of channels."""
    first = block(c_in, width, stride=stride)
    later = [block(block.expansion * width, width) for _ in range(n - 1)]
    return nn.Sequential(first, *later)


class StepNetwork(nn.Module):
    """Stem, four stages of one kind of block, mean, linear layer.

    (B, 3, H, W) -> (B, num_classes).
    """

    def __init__(self, block, depths, *, width, stem, num_classes: int = 1000):
        super().__init__()
        w = width
        e = block.expansion
        self.stem = stem(w)
        self.stage1 = stage(block, depths[0], c_in=w, width=w, stride=1)
        self.stage2 = stage(block, depths[1], c_in=e * w, width=2 * w, stride=2)
        self.stage3 = stage(block, depths[2], c_in=2 * e * w, width=4 * w, stride=2)
        self.stage4 = stage(block, depths[3], c_in=4 * e * w, width=8 * w, stride=2)
        self.classifier = nn.Linear(8 * e * w, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Three stages: (B, 3, H, W) -> (B, 4 e width, H / 16, W / 16)."""
        x = self.stem(x)  # (B, width, H / 4, W / 4)
        x = self.stage1(x)  # (B, e width, H / 4, W / 4)
        x = self.stage2(x)  # (B, 2 e width, H / 8, W / 8)
        return self.stage3(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage4(self.features(x))  # (B, 8 e width, H / 32, W / 32)
        return self.classifier(x.mean((2, 3)))  # (B, num_classes)


# %% tags=["steps"]
def steps(*, shrink: int = 1) -> dict:
    """What builds the network after each step, with channels divided by `shrink`."""
    narrow = 64 // shrink
    wide = 96 // shrink
    resnet = partial(StepNetwork, width=narrow, stem=Stem)
    patchified = partial(StepNetwork, depths=RATIO, width=narrow, stem=Patchify)
    widened = partial(StepNetwork, depths=RATIO, width=wide, stem=Patchify)
    return {
        "ResNet-50": partial(resnet, Bottleneck, (3, 4, 6, 3)),
        "stage ratio": partial(resnet, Bottleneck, RATIO),
        "patchify stem": partial(patchified, Bottleneck),
        "depthwise": partial(patchified, DepthwiseBottleneck),
        "wider": partial(widened, DepthwiseBottleneck),
        "inverted": partial(widened, InvertedBottleneck),
        "depthwise first": partial(widened, DepthwiseFirst),
        "7×7 kernels": partial(widened, LargeKernel),
        "GELU": partial(widened, WithGelu),
        "fewer activations": partial(widened, FewerActivations),
        "fewer norms": partial(widened, FewerNorms),
        "layer norm": partial(widened, WithLayerNorm),
        "separate downsampling": partial(ConvNeXt, RATIO, width=wide, scale=1.0),
    }


# %% tags=["drawing-blocks"]
def draw_branch(axes, x: float, title: str, rows, *, behind: str = "") -> None:
    """One column: what a branch does from top to bottom, words between the boxes."""
    nodes = {"title": diagrams.Node(x, 0.2, title, weight="bold")}
    nodes["in"] = diagrams.Node(x, 0.58, rows[0])
    for number, (box, words) in enumerate(rows[1:]):
        y = 1.1 + 0.78 * number
        nodes[f"box{number}"] = diagrams.Node(x, y, box, width=1.4)
        nodes[f"words{number}"] = diagrams.Node(x, y + 0.39, words, colour=plots.QUIET)
    nodes["sum"] = diagrams.Node(x, 3.42, "+")
    if behind:
        nodes["behind"] = diagrams.Node(x, 3.82, behind, colour=plots.QUIET)
    names = list(nodes)[1:]
    right = x + 0.76
    loop = ((x, 0.78), (right, 0.78), (right, 3.42), "sum")
    diagrams.draw(axes, nodes, list(zip(names, names[1:])), [loop])


# %% tags=["blocks-figure"] alt="Three columns of three boxes with an arrow past them that meets a plus sign. Wider: 384 channels in; 1x1, 384 to 96; depthwise 3x3, 96; 1x1, 96 to 384; batch norm behind each, ReLU behind the first two, and one more behind the plus. Inverted, with the same norms and ReLUs: 96 in; 1x1, 96 to 384; depthwise 3x3, 384; 1x1, 384 to 96. ConvNeXt: 96 in; depthwise 7x7, 96; layer norm; 1x1, 96 to 384; GELU; 1x1, 384 to 96; layer scale."
axes = diagrams.sheet(4)
usual = "norm, ReLU"
bottleneck = (
    "384",
    ("1×1, 384→96", usual),
    ("d3×3, 96", usual),
    ("1×1, 96→384", "norm"),
)
inverted = ("96", ("1×1, 96→384", usual), ("d3×3, 384", usual), ("1×1, 384→96", "norm"))
final = (
    "96",
    ("d7×7, 96", "layer norm"),
    ("1×1, 96→384", "GELU"),
    ("1×1, 384→96", "layer scale"),
)
draw_branch(axes, 0.8, "wider", bottleneck, behind="ReLU")
draw_branch(axes, 2.45, "inverted", inverted, behind="ReLU")
draw_branch(axes, 4.1, "ConvNeXt", final)

# %% [markdown]
# ## Counted
#
# On torch's meta device, at 224x224. The paper's own numbers stand beside ours.

# %% tags=["count-steps"]
PAPER = {  # Liu et al. 2022, table 10: top-1 accuracy in percent, GFLOPs
    "ResNet-50": (78.82, 4.09),
    "stage ratio": (79.36, 4.53),
    "patchify stem": (79.51, 4.42),
    "depthwise": (78.28, 2.35),
    "wider": (80.50, 5.27),
    "inverted": (80.64, 4.64),
    "depthwise first": (79.92, 4.07),
    "7×7 kernels": (80.57, 4.15),
    "GELU": (80.62, 4.15),
    "fewer activations": (81.27, 4.15),
    "fewer norms": (81.41, 4.15),
    "layer norm": (81.47, 4.46),
    "separate downsampling": (81.97, 4.49),
}


def counted(build) -> tuple[int, int]:
    """Parameters and MACs at 224x224, on the meta device."""
    with torch.device("meta"):
        network = build()
        x = torch.empty(1, 3, 224, 224)
    return counting.parameters(network), counting.macs(network, x)


giga = {}
rows = []
for name, build in steps().items():
    parameters, macs = counted(build)
    giga[name] = macs / 1e9
    top1, flops = PAPER[name]
    rows.append((name, parameters, f"{giga[name]:.3f}", f"{flops:.2f}", f"{top1:.2f}"))
table(rows, ("step", "parameters", "G MACs", "table 10", "its top-1, %"))

# %% tags=["count-steps-claims"]
for name in list(PAPER)[:-2]:
    words = f"{name}: the MACs of table 10, within its rounding"
    claim(abs(giga[name] - PAPER[name][1]) < 0.0055, words)
claim(giga["layer norm"] == giga["fewer norms"], "a norm has no MACs that are counted")
for place, name in enumerate(PAPER):
    record(f"giga.{place}", giga[name])

# %% tags=["stride-claims"]
saved = 0
for c_in, side in ((96, 56), (192, 28), (384, 14)):  # first blocks of stages 2 to 4
    with torch.device("meta"):
        x = torch.empty(1, c_in, side, side)
        late = counting.macs(InvertedBottleneck(c_in, 2 * c_in, stride=2), x)
        early = counting.macs(DepthwiseFirst(c_in, 2 * c_in, stride=2), x)
    saved += late - early
share = saved / 1e9 / (giga["inverted"] - giga["depthwise first"])
record("stride", share)
claim(0.85 < share < 1, "most of what moving up saves is in the blocks with a stride")

# %% tags=["count"]
rows = []
for build in (convnext_tiny, convnext_small, convnext_base, convnext_large):
    parameters, macs = counted(build)
    record(f"{build.__name__}.parameters", parameters)
    record(f"{build.__name__}.macs", macs)
    rows.append((build.__name__, parameters, f"{macs / 1e9:.3f}"))
table(rows, ("network", "parameters", "G MACs"))

# %% tags=["drawn"] alt="ConvNeXt-T from top to bottom, with output shape and parameters at the right: an input of 3x224x224, the stem, then four stages with a loop past each and the number of its blocks, 3, 3, 9 and 3, between them the layers that halve the map, 96 channels of 56 pixels a side at first, 768 of 7 at the end, and the linear layer to 1000."
with torch.device("meta"):
    network = convnext_tiny()
    x = torch.empty(1, 3, 224, 224)
drawing.draw(network, x)

# %% [markdown]
# ## Equal to the library at both ends
#
# A layer scale of one millionth hides the whole branch from a comparison, and a fresh norm
# hides its epsilon. We give the reference random ones before its weights are copied.


# %% tags=["wake"]
@torch.no_grad()
def wake(network: nn.Module) -> nn.Module:
    """Random scales and shifts in place of 1, 0 and 1e-6; return the network."""
    checks.randomise_norms(network)
    for name, p in network.named_parameters():
        if name.endswith("layer_scale"):
            p.uniform_(0.5, 1.5)
    for layer in network.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.normal_(0, 0.1)
    return network


# %% tags=["equal"]
published = torchvision.models
pairs = (
    ("first step, ResNet-50", steps()["ResNet-50"], published.resnet50),
    ("last step, ConvNeXt-T", convnext_tiny, published.convnext_tiny),
)
rows = []
deviations = []
for name, build, reference in pairs:
    seed(0)
    theirs = wake(reference())
    ours = build()
    checks.transplant(theirs, ours)
    deviations.append(checks.same_outputs(ours, theirs, torch.randn(2, 3, 64, 64)))
    rows.append((name, "torchvision", f"{deviations[-1]:.1e}"))
record("deviation", max(deviations))
table(rows, ("network", "reference", "largest difference"))

# %% [markdown]
# ## How far does one value see?
#
# The gradient of one value in the middle of a map with respect to the image says which
# pixels move it. The side of the smallest square that holds half of the gradient is our
# size of the effective receptive field (Luo et al. 2016).


# %% tags=["gradient"]
def middle_gradient(network: nn.Module, x: Tensor) -> Tensor:
    """Gradient of the middle of the feature maps, in a random direction of channels.

    x (1, C, H, W) -> the same shape.
    """
    x = x.clone().requires_grad_()
    maps = network.features(x)
    B, C, H, W = maps.shape
    middle = maps[:, :, H // 2, W // 2]  # (B, C)
    direction = torch.randn_like(middle)
    (gradient,) = torch.autograd.grad((direction * middle).sum(), x)
    return gradient


# %% tags=["side"]
def centre_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean row and column of a map of weights (H, W)."""
    H, W = weight.shape
    row = torch.arange(H, device=weight.device)
    column = torch.arange(W, device=weight.device)
    total = weight.sum()
    return (weight.sum(1) * row).sum() / total, (weight.sum(0) * column).sum() / total


def side_of_field(gradient: Tensor, *, share: float = 0.5) -> float:
    """Side in pixels of the square around its mean place that holds a share of it."""
    weight = gradient.abs().sum((0, 1))  # (H, W)
    weight = weight / weight.sum()
    H, W = weight.shape
    centre_row, centre_column = centre_of(weight)
    down = torch.arange(H, device=weight.device) - centre_row
    across = torch.arange(W, device=weight.device) - centre_column
    distance = torch.maximum(down.abs()[:, None], across.abs()[None]).flatten()
    order = distance.argsort()
    held = weight.flatten()[order].cumsum(0)
    inside = int((held < share).sum())
    return 2 * distance[order][inside].item() + 1


# %% tags=["side-run"]
once = torch.full((1, 1, 3, 3), 1 / 9)  # the mean of nine neighbours
twice = F.conv2d(F.pad(once, [2] * 4), once)  # the same, twice: (1, 1, 5, 5)
(81 * twice[0, 0]).round().int()

# %% tags=["side-checked"]
claim(abs(side_of_field(twice) - 3) < 1e-3, "3x3 of the 5x5 pixels hold half")
record("twice.inner", twice[..., 1:4, 1:4].sum())
shares = [twice[..., 2, 2].item(), twice[..., 1:4, 1:4].sum().item()]
claim(shares[0] < 0.5 < shares[1], "the middle pixel alone holds less than half")


# %% tags=["prepare"]
def he_init(network: nn.Module) -> None:
    """Normal weights of variance 2 / fan-in, so that all steps start alike."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


@torch.no_grad()
def settle(network: nn.Module, x: Tensor) -> None:
    """Let each batch norm, if any, remember the statistics of x, then use them."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    network.train()
    if norms:
        network.features(x)
    network.eval()


def untrained_gradient(network: nn.Module, *, size: int) -> Tensor:
    """The gradient in a network with fresh weights, on an image of noise."""
    he_init(network)
    network.to(memory_format=torch.channels_last)  # the same, and faster
    where = network.classifier.weight.device
    x = torch.randn(1, 3, size, size).to(where)
    settle(network, x)
    return middle_gradient(network, x)


# %% tags=["fields"]
SEEDS = (0, 1, 2)
SIZE = 320
fields = {}
gradients = {}
for name, build in steps(shrink=4).items():
    for number in SEEDS:
        seed(number)
        gradient = untrained_gradient(build().to(device), size=SIZE)
        gradients[name, number] = gradient
        fields[name, number] = side_of_field(gradient)

# %% tags=["fields-figure"] alt="Side of the effective receptive field in pixels for the network after each of thirteen steps, from top to bottom, three dots a step. ResNet-50 is the lowest, at about 80. The next six steps lie at about 85. At 7x7 kernels the dots leap to about 175. GELU is a little below, the last four steps lie between 135 and 150."
_, axes = plt.subplots(figsize=(5, 4.2))
names = list(steps())
for place, name in enumerate(names):
    values = [fields[name, number] for number in SEEDS]
    colour = plots.COLOURS[1] if name == "7×7 kernels" else plots.COLOURS[0]
    axes.plot(values, [place] * 3, "o", color=colour, alpha=0.6, markersize=6)
axes.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 220))
axes.set(xlabel="side of the field, pixels", ylim=(len(names) - 0.5, -0.5))
axes.grid(axis="x")
plt.show()

# %% tags=["fields-claims"]
least = {name: min(fields[name, n] for n in SEEDS) for name in names}
most = {name: max(fields[name, n] for n in SEEDS) for name in names}
for name in names:
    values = [fields[name, number] for number in SEEDS]
    record_spread(f"field.{names.index(name)}", values)
early = names[:7]
ratio = names[1]
for name in names[2:7]:
    touch = least[name] <= most[ratio] and least[ratio] <= most[name]
    claim(touch, f"{name}: not told apart from the stage ratio")
claim(most["ResNet-50"] < min(least[n] for n in early[1:]), "more blocks see farther")
claim(least["ResNet-50"] > 70 and most["ResNet-50"] < 82, "ResNet-50 lies at about 80")
claim(max(most[n] for n in early[1:]) < 100, "the next six steps see about as far")
claim(min(least[n] for n in early[1:]) > 75, "the next six steps see about as far")
claim(
    least["7×7 kernels"] > 1.9 * max(most[n] for n in early),
    "with 7x7 kernels the field is about twice as wide as in all steps before",
)
others = [name for name in names if name != "7×7 kernels"]
widest = max(most[name] for name in others)
claim(least["7×7 kernels"] > widest, "7x7 kernels see farthest, seeds apart")
claim(most["GELU"] < least["7×7 kernels"], "GELU: a smaller field than before")
claim(most["fewer activations"] < least["GELU"], "fewer activations: a smaller field")
more = least["GELU"] - most["fewer activations"]
less = most["7×7 kernels"] - least["GELU"]
claim(more > less, "fewer activations take more of the field than GELU")
late = [value for name in names[9:] for value in (least[name], most[name])]
claim(
    min(late) > 1.4 * max(most[n] for n in early), "the end stays far above the start"
)
claim(min(late) > 135 and max(late) < 150, "where the last four steps lie")
claim(least["7×7 kernels"] > 165, "where the widest step lies")

# %% tags=["maps-figure"] alt="Four square pictures of where the gradient lies, dark where there is most, each with the square that holds half of it. ResNet-50 and depthwise first: a small blob in the middle. 7x7 kernels: a wide cloud that fills most of the picture. Separate downsampling: a cloud between the two in size, densest in the middle."
SHOWN = ("ResNet-50", "depthwise first", "7×7 kernels", "separate downsampling")
_, grid = plt.subplots(1, 4, figsize=(5, 1.75))
for axes, name in zip(grid, SHOWN):
    weight = gradients[name, 0].abs().sum((0, 1))  # (H, W)
    blurred = F.avg_pool2d(weight[None], 8)[0].cpu()
    axes.imshow(
        (blurred / blurred.max()) ** 0.5, cmap="Blues", extent=(0, SIZE, SIZE, 0)
    )
    side = fields[name, 0]
    row, column = (place.item() + 0.5 for place in centre_of(weight))
    corner = (column - side / 2, row - side / 2)
    frame = plt.Rectangle(corner, side, side, fill=False, edgecolor=plots.COLOURS[1])
    axes.add_patch(frame)
    axes.set_title(name.replace(" ", "\n"), fontsize=10)
    axes.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## How strong is the branch?
#
# The paper multiplies each branch by one number a channel, which starts at one millionth.

# %% tags=["scales"]
SCALES = (1e-6, 0.1, 1.0)
by_scale = {}
for kernel in (3, 7):
    for scale in SCALES:
        for number in SEEDS:
            seed(number)
            network = ConvNeXt(RATIO, width=24, kernel=kernel, scale=scale)
            gradient = untrained_gradient(network.to(device), size=SIZE)
            by_scale[kernel, scale, number] = side_of_field(gradient)

# %% tags=["scales-figure"] alt="Side of the field against layer scale, at one millionth, 0.1 and 1, for kernels of 3x3 and 7x7, mean of three seeds in a band. Both lines start at about 12 pixels; then they rise and part: at 1 the line of 7x7 lies at about 150, that of 3x3 at about 64."
_, axes = plt.subplots()
places = range(len(SCALES))
ends = {}
colours = {7: plots.COLOURS[0], 3: plots.COLOURS[1]}
for kernel, colour in colours.items():
    runs = [[by_scale[kernel, scale, n] for scale in SCALES] for n in SEEDS]
    ends[f"{kernel}×{kernel}"] = plots.seed_band(
        axes, places, torch.tensor(runs), colour
    )
axes.set(xticks=places, xticklabels=["$10^{-6}$", "0.1", "1"], ylim=(0, None))
axes.set(xlabel="layer scale", ylabel="side of the field, pixels")
plots.label_ends(axes, ends, list(colours.values()))

# %% tags=["scales-claims"]
asleep = [by_scale[kernel, 1e-6, n] for kernel in (3, 7) for n in SEEDS]
record_spread("asleep", asleep)
claim(max(asleep) < 16, "at 1e-6 the field lies within one patch of 16 pixels")
for scale in SCALES[1:]:
    wide = [by_scale[7, scale, n] for n in SEEDS]
    thin = [by_scale[3, scale, n] for n in SEEDS]
    claim(min(wide) > 2 * max(thin), f"at {scale} 7x7 sees twice as far as 3x3 or more")
    place = SCALES.index(scale)
    record_spread(f"scale{place}.7", wide)
    record_spread(f"scale{place}.3", thin)
for kernel in (3, 7):
    for a, b in zip(SCALES, SCALES[1:]):
        weak = max(by_scale[kernel, a, n] for n in SEEDS)
        strong = min(by_scale[kernel, b, n] for n in SEEDS)
        claim(weak < strong, f"{kernel}: the field grows from a scale of {a} to {b}")

# %% tags=["confounds"]
own = {}
for kernel in (3, 7):
    seed(0)
    network = ConvNeXt(RATIO, width=24, kernel=kernel, scale=1.0).to(device)
    x = torch.randn(1, 3, SIZE, SIZE).to(device)
    own[kernel] = side_of_field(middle_gradient(network, x))
full = {}
for name in ("ResNet-50", "depthwise first", "7×7 kernels"):
    seed(0)
    gradient = untrained_gradient(steps()[name]().to(device), size=224)
    full[name] = side_of_field(gradient)

# %% tags=["confounds-claims"]
for kernel in (3, 7):
    record(f"own{kernel}", own[kernel])
for name, value in full.items():
    record(f"full.{names.index(name)}", value)
claim(own[7] > 2 * own[3], "with weights of deviation 0.02 the order is the same")
claim(
    full["ResNet-50"] < full["depthwise first"], "at full width the order is the same"
)
claim(full["depthwise first"] < full["7×7 kernels"], "and 7x7 sees farthest there")
squares = {n: [side_of_field(gradients[n, k] ** 2) for k in SEEDS] for n in names}
last = max(value for name in early for value in squares[name])
claim(min(squares["7×7 kernels"]) > 1.9 * last, "with squares the leap is the same")

# %% [markdown]
# ## Digits, and kernels of three sizes
#
# The isotropic form of section 3.3: patches, then blocks at one width and one size of map,
# as in a vision transformer. Only the depthwise convolutions look beyond a patch.


# %% tags=["isotropic"]
class Isotropic(nn.Module):
    """Patches, n blocks on one size of map, mean, norm, linear layer (section 3.3).

    (B, c_in, H, W) -> (B, num_classes).
    """

    def __init__(
        self, n: int, width: int, *, patch=16, c_in=3, num_classes=1000, **of_blocks
    ):
        super().__init__()
        self.stem = nn.Conv2d(c_in, width, patch, stride=patch)
        self.blocks = nn.Sequential(*[Block(width, **of_blocks) for _ in range(n)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.classifier = nn.Linear(width, num_classes)
        small_weights(self)

    def features(self, x: Tensor) -> Tensor:
        """All blocks: (B, c_in, H, W) -> (B, width, H / patch, W / patch)."""
        return self.blocks(self.stem(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).mean((2, 3))  # (B, width)
        return self.classifier(self.norm(x))  # (B, num_classes)


# %% tags=["settings"]
IMAGES = 900 if PROFILE == "sample" else 20_000

# %% tags=["data"]
train_part, _, test = images.standardised(images.digits(), first=IMAGES)

# %% tags=["data-table"]
record("images", len(train_part[1]))
record("held", len(test[1]))
parts = {"train": train_part, "test": test}
table(
    [(name, *x.shape) for name, (x, _) in parts.items()], ("part", "N", "C", "H", "W")
)

# %% tags=["train"]
EPOCHS = 13
BATCH = 50
KERNELS = (3, 7)


def digit_network(kernel: int, *, width: int = 16) -> Isotropic:
    """Two blocks on 7x7 patches of four pixels a side, with a layer scale of 1."""
    how = {"kernel": kernel, "scale": 1.0}
    network = Isotropic(2, width, patch=4, c_in=1, num_classes=10, **how)
    return network.to(memory_format=torch.channels_last)  # the same, and faster


def train(network: nn.Module, part) -> list[float]:
    """AdamW, one cycle of the rate; returns the loss of each epoch."""
    length = EPOCHS * math.ceil(len(part[1]) / BATCH)
    how = {"lr": 0.03, "weight_decay": 0.05}
    optimizer = torch.optim.AdamW(network.parameters(), **how, fused=True)
    schedule = training.one_cycle(optimizer, length)
    history = training.fit(
        network, part, EPOCHS, optimizer, batch=BATCH, schedule=schedule
    )
    return history["loss"]


# %% tags=["runs"]
networks = {}
losses = {}
for kernel in KERNELS:
    for number in SEEDS:
        seed(number)
        network = digit_network(kernel).to(device)
        losses[kernel, number] = train(network, train_part)[-1]
        networks[kernel, number] = network

# %% tags=["result"]
rows = []
scores = {}
trained = {}
noise = torch.randn(1, 1, 112, 112, generator=torch.Generator().manual_seed(0))
for kernel in KERNELS:
    runs = [networks[kernel, number] for number in SEEDS]
    scores[kernel] = [training.evaluate(network, test) for network in runs]
    trained[kernel] = []
    for number, network in zip(SEEDS, runs):
        seed(number)
        gradient = middle_gradient(network, noise.to(device))
        trained[kernel].append(side_of_field(gradient))
    record_spread(f"test{kernel}", scores[kernel])
    record_spread(f"trained{kernel}", trained[kernel])
    parameters = counting.parameters(runs[0])
    last = [losses[kernel, number] for number in SEEDS]
    record_spread(f"loss{kernel}", last)
    found = [spread(last, ".2f"), spread(scores[kernel], ".1%")]
    found.append(spread(trained[kernel], ".1f"))
    rows.append((f"{kernel}×{kernel}", parameters, *found))
table(rows, ("kernel", "parameters", "training loss", "test accuracy", "field"))

# %% tags=["result-claims"]
words = "7x7 is right more often than 3x3, seeds apart"
claim(min(scores[7]) > max(scores[3]), words)
words = "trained, 7x7 sees farther than 3x3, seeds apart"
claim(min(trained[7]) > max(trained[3]), words)
words = "7x7 fits the training images better, seeds apart"
claim(max(losses[7, n] for n in SEEDS) < min(losses[3, n] for n in SEEDS), words)
record("steps", EPOCHS * math.ceil(IMAGES / BATCH))
record("parameters3", counting.parameters(networks[3, 0]))
record("parameters7", counting.parameters(networks[7, 0]))

# %% [markdown]
# ## Look inside
#
# Does a trained network need the part of its 7x7 kernels outside the middle 3x3?


# %% tags=["masked"]
@torch.no_grad()
def masked(network: Isotropic, mask: Tensor) -> Isotropic:
    """A copy whose kernels (C, 1, 7, 7) are multiplied by a mask (7, 7)."""
    network = copy.deepcopy(network)
    for block in network.blocks:
        block.depthwise.weight.mul_(mask)
    return network


# %% tags=["masked-runs"]
middle = torch.zeros(7, 7, device=device)
middle[2:5, 2:5] = 1
masks = {"all": torch.ones_like(middle), "middle": middle, "outside": 1 - middle}
kept = {}
for name, mask in masks.items():
    copies = [masked(networks[7, number], mask) for number in SEEDS]
    kept[name] = [training.evaluate(network, test) for network in copies]

# %% tags=["masked-result"]
rows = []
for name, mask in masks.items():
    record_spread(f"kept.{name}", kept[name])
    rows.append((name, int(mask.sum()), spread(kept[name], ".1%")))
table(rows, ("what is left", "weights of 49", "test accuracy"))

# %% tags=["masked-claims"]
claim(kept["all"] == scores[7], "a mask of ones changes nothing")
words = "without the outside fewer digits are right than with trained 3x3, seeds apart"
claim(max(kept["middle"]) < min(scores[3]), words)
words = "the outside alone is right more often than the middle alone, seeds apart"
claim(min(kept["outside"]) > max(kept["middle"]), words)
words = "without the middle fewer digits are right than with all, seeds apart"
claim(max(kept["outside"]) < min(scores[7]), words)

# %% tags=["kernels-figure"] alt="Sixteen depthwise kernels of seven by seven weights from the first block of a trained network, violet and brown. Strong weights of both colours lie anywhere in the squares, up to the edges."
kernels = networks[7, 0].blocks[0].depthwise.weight.detach()
limit = kernels.abs().max().item()
plots.image_grid(kernels[:, 0], scale=0.62, cmap="PuOr", vmin=-limit, vmax=limit)

# %% tags=["kernels-claims"]
strong = kernels[:, 0] / limit  # (16, 7, 7)
for colour, maps in (("violet", strong), ("brown", -strong)):
    for edge, line in (("upper", 0), ("lower", 6)):
        words = f"a strong {colour} weight lies at the {edge} edge of some kernel"
        claim((maps[:, line] > 0.4).any(), words)

# %% [markdown]
# ## What we saw
#
# - The paper's steps cost what its table says, but for one line, and both ends are the
#   library's networks.
# - One step widens the field of an untrained network to twice the side: the 7x7 kernels.
# - With a layer scale of one millionth the field is one patch; kernels count once the
#   branch does. Trained on digits, 7x7 kernels see farther than 3x3 and are right
#   more often.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
width = 384
pixels = 14 * 14
at_wide_side = 9 * 4 * width * pixels  # d3x3 on 1536 channels
at_narrow_side = 9 * width * pixels
seven = 49 * width * pixels
pointwise = 2 * width * 4 * width * pixels

# %% tags=["solution-1-result"]
rows = []
for name, macs in (
    ("d3×3 inside", at_wide_side),
    ("d3×3 first", at_narrow_side),
    ("d7×7 first", seven),
    ("the two 1×1", pointwise),
):
    rows.append((name, macs, f"{macs / pointwise:.2%}"))
for block, expected in (
    (InvertedBottleneck, at_wide_side),
    (DepthwiseFirst, at_narrow_side),
    (LargeKernel, seven),
):
    with torch.device("meta"):
        found = counting.macs(block(width, width), torch.empty(1, width, 14, 14))
    claim(found == expected + pointwise, f"{block.__name__}: by hand and counted")
record("megas.inside", at_wide_side / 1e6)
record("megas.first", at_narrow_side / 1e6)
record("megas.seven", seven / 1e6)
record("megas.seven.inside", 4 * seven / 1e6)
claim(4 * seven < 0.1 * pointwise, "7x7 would be small inside too")
record("megas.pointwise", pointwise / 1e6)
claim(at_wide_side < seven < 2 * at_wide_side, "7x7 first costs more than 3x3 inside")
table(rows, ("layer", "MACs", "of the two 1×1"))


# %% tags=["solution-2"]
class Kernel5(DepthwiseFirst):
    kernel = 5


class Kernel9(DepthwiseFirst):
    kernel = 9


class Kernel11(DepthwiseFirst):
    kernel = 11


def of_kernel(block, size: int) -> list[float]:
    """Side of the field of a network of such blocks, for each seed."""
    sides = []
    for number in SEEDS:
        seed(number)
        network = StepNetwork(block, RATIO, width=24, stem=Patchify)
        gradient = untrained_gradient(network.to(device), size=size)
        sides.append(side_of_field(gradient))
    return sides


# %% tags=["solution-2-run"]
sides = {3: [fields["depthwise first", n] for n in SEEDS]}
sides[7] = [fields["7×7 kernels", n] for n in SEEDS]
for block in (Kernel5, Kernel9, Kernel11):
    sides[block.kernel] = of_kernel(block, SIZE)
within = {7: of_kernel(LargeKernel, 224), 11: of_kernel(Kernel11, 224)}

# %% tags=["solution-2-result"]
LADDER = (DepthwiseFirst, Kernel5, LargeKernel, Kernel9, Kernel11)
rows = []
for block in LADDER:
    k = block.kernel
    network = partial(StepNetwork, block, RATIO, width=96, stem=Patchify)
    macs = counted(network)[1]
    small = spread(within[k], ".0f") if k in within else ""
    rows.append((f"{k}×{k}", f"{macs / 1e9:.2f}", spread(sides[k], ".0f"), small))
table(rows, ("kernel", "G MACs", f"field in {SIZE} pixels", "in 224 pixels"))

# %% tags=["solution-2-claims"]
for small, large in ((3, 5), (5, 7), (7, 9), (9, 11)):
    words = f"{large} sees farther than {small} in {SIZE} pixels, seeds apart"
    claim(min(sides[large]) > max(sides[small]), words)
for small, middle, large in ((3, 5, 7), (5, 7, 9), (7, 9, 11)):
    before = min(sides[middle]) - max(sides[small])
    after = max(sides[large]) - min(sides[middle])
    claim(before > after, f"to {large} less is gained than to {middle}, seeds apart")

# %% tags=["solution-3"]
seed(0)
network = digit_network(3, width=19).to(device)
train(network, train_part)
wider = training.evaluate(network, test)

# %% tags=["solution-3-result"]
record("wider", wider)
record("wider.parameters", counting.parameters(network))
more = counting.parameters(network) > counting.parameters(networks[7, 0])
claim(more, "3x3 with 19 channels has more parameters than 7x7 with 16")
claim(wider < min(scores[7]), "and fewer digits are right than with 7x7, any seed")
rows = []
for name, model, right in (
    ("3×3, 16 channels", networks[3, 0], scores[3][0]),
    ("3×3, 19 channels", network, wider),
    ("7×7, 16 channels", networks[7, 0], scores[7][0]),
):
    rows.append((name, counting.parameters(model), f"{right:.1%}"))
table(rows, ("network", "parameters", "test accuracy, seed 0"))
