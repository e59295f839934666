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
# Ways to make one feature map out of two, each in a few lines: checked, counted, and exchanged for one another in one
# small network. The text to it is the [chapter](../chapters/feature_fusion.rst).

# %%
import math

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from timm.layers.cbam import CbamModule
from timm.models.resnet import resnet50, seresnet50

from workbench import PROFILE, claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, drawing, images, plots, training

# %% [markdown]
# ## Weights of a map
#
# Drawn first: how many different weights an operation gives to the values of a map of three channels.


# %% tags=["drawing"]
def draw_weights(axes, top: float, text: str, weights: Tensor) -> None:
    """Draw (C, n, n) weights in 0..1 as C squares of n times n cells, the darker the larger."""
    C, n, _ = weights.shape
    for k in range(C):
        for i in range(n):
            for j in range(n):
                corner = 1.4 * k + j / n, top + i / n
                face = (plots.COLOURS[0], 0.05 + 0.85 * weights[k, i, j].item())
                axes.add_patch(
                    plt.Rectangle(corner, 1 / n, 1 / n, facecolor=face, linewidth=0)
                )
        axes.add_patch(plt.Rectangle((1.4 * k, top), 1, 1, fill=False, ec=plots.QUIET))
    axes.text(1.4 * C, top + 0.5, text, va="center", fontsize=11)


# %% tags=["weights-figure"] alt="Four rows of three squares, one square for each channel; a fuller colour means a larger weight. First row, sum: all squares alike. Second, SE: each square evenly filled, each differently. Third, ASFF and attention gate: all three squares show the same blob. Fourth, CBAM: the blob in each square, in each differently strong."
blob = torch.tensor([0.1, 0.5, 1.0, 0.8, 0.3]).outer(
    torch.tensor([0.2, 0.7, 1.0, 0.4, 0.1])
)
levels = torch.tensor([0.3, 1.0, 0.6]).view(3, 1, 1)
_, axes = plt.subplots(figsize=(5, 3.6))
axes.set(xlim=(-0.05, 7.3), ylim=(5, -0.1), aspect="equal")
axes.axis("off")
draw_weights(axes, 0.0, "sum:\none weight", torch.full((3, 1, 1), 0.6))
draw_weights(axes, 1.3, "SE: one per channel", levels)
draw_weights(axes, 2.6, "ASFF, gate:\none per pixel", blob.repeat(3, 1, 1))
draw_weights(axes, 3.9, "CBAM: one per channel\ntimes one per pixel", levels * blob)

# %% [markdown]
# ## Sum and concatenation
#
# A concatenation leaves the choice of what to add to the layer that reads it, here a 1x1 convolution.


# %% tags=["sum-concat"]
class Sum(nn.Module):
    """a + b, as at the end of a residual block (He et al. 2016, equation 1)."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b  # (B, C, H, W)


class Concat(nn.Module):
    """Both side by side (Huang et al. 2017, equation 2), then a 1x1 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, channels, 1, bias=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.mix(torch.cat((a, b), dim=1))  # (B, 2 C, H, W) -> (B, C, H, W)


# %% tags=["as-sum"]
@torch.no_grad()
def as_sum(fusion: Concat) -> Concat:
    """Set the 1x1 convolution to two identity matrices side by side."""
    eye = torch.eye(fusion.mix.out_channels)
    fusion.mix.weight.copy_(torch.cat((eye, eye), dim=1)[..., None, None])
    return fusion


# %% tags=["sum-is-concat"]
seed(0)
a, b = torch.randn(2, 2, 64, 9, 7)
concat_deviation = (as_sum(Concat(64))(a, b) - Sum()(a, b)).abs().max().item()
claim(concat_deviation < 1e-6, "a concatenation with the identity twice gives the sum")
record("concat.deviation", concat_deviation)
concat_deviation

# %% [markdown]
# ## Squeeze-and-excitation
#
# The weights are computed from the map itself: its mean over the pixels, then two 1x1 convolutions.


# %% tags=["se"]
class SqueezeExcitation(nn.Module):
    """Scale each channel by a number in 0..1 computed from the means of all channels.

    Hu et al. 2018, equations 2 to 4; `reduction` is their r.
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        inner = max(channels // reduction, 1)
        first, second = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.excite = nn.Sequential(first, nn.ReLU(), second)

    def weights(self, x: Tensor) -> Tensor:
        return self.excite(x.mean((2, 3), keepdim=True)).sigmoid()  # (B, C, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights(x)  # (B, C, H, W)


# %% [markdown]
# ## CBAM
#
# One weight for each channel, from the mean and the maximum over the pixels; then one for each pixel, from the mean
# and the maximum over the channels.


# %% tags=["cbam"]
class ChannelAttention(nn.Module):
    """Scale each channel; mean and maximum share two layers (Woo et al. 2018, equation 2)."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        inner = max(channels // reduction, 1)
        first = nn.Conv2d(channels, inner, 1, bias=False)
        second = nn.Conv2d(inner, channels, 1, bias=False)
        self.mlp = nn.Sequential(first, nn.ReLU(), second)

    def forward(self, x: Tensor) -> Tensor:
        mean, largest = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return x * (self.mlp(mean) + self.mlp(largest)).sigmoid()  # (B, C, H, W)


class SpatialAttention(nn.Module):
    """Scale each pixel, by a 7x7 convolution of two planes (Woo et al. 2018, equation 3)."""

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.score = nn.Sequential(conv, nn.BatchNorm2d(1))

    def weights(self, x: Tensor) -> Tensor:
        planes = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), dim=1)
        return self.score(planes).sigmoid()  # (B, 1, H, W)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights(x)  # (B, C, H, W)


def cbam(channels: int, reduction: int = 16) -> nn.Sequential:
    """First channels, then pixels (Woo et al. 2018, equation 1)."""
    return nn.Sequential(ChannelAttention(channels, reduction), SpatialAttention())


# %% [markdown]
# Both change one map. To join two, as SE-ResNet does, the gated one is added to the other.


# %% tags=["gated-sum"]
class GatedSum(nn.Module):
    """a + gate(b): the branch is gated, the shortcut is not (Hu et al. 2018, figure 3)."""

    def __init__(self, gate: nn.Module):
        super().__init__()
        self.gate = gate

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + self.gate(b)  # (B, C, H, W)


# %% [markdown]
# ## ASFF
#
# Levels of a feature pyramid are resized to one size and averaged, with weights of their own at each pixel.


# %% tags=["asff"]
class ASFF(nn.Module):
    """Average maps of one size, weighted at each pixel (Liu et al. 2019, equations 1 and 2)."""

    def __init__(self, channels: int, levels: int = 2):
        super().__init__()
        self.scores = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in range(levels))

    def weights(self, maps: tuple[Tensor, ...]) -> Tensor:
        scores = [score(x) for score, x in zip(self.scores, maps, strict=True)]
        return torch.cat(scores, dim=1).softmax(dim=1)  # (B, levels, H, W)

    def forward(self, *maps: Tensor) -> Tensor:
        weights = self.weights(maps).unsqueeze(2)  # (B, levels, 1, H, W)
        return (weights * torch.stack(maps, dim=1)).sum(dim=1)  # (B, C, H, W)


# %% tags=["one-hot"]
seed(0)
levels, asff = torch.randn(3, 2, 64, 9, 7), ASFF(64, levels=3)
total = asff.weights(levels).sum(1)
nn.init.constant_(asff.scores[1].bias, 100.0)  # a score far above the others
one_hot = (asff(*levels) - levels[1]).abs().max().item()
claim(
    (total - 1).abs().max() < 1e-6, "at each place the weights of the levels sum to 1"
)
claim(one_hot < 1e-6, "a score far above the others passes its level on alone")
rows = [("sum of the weights - 1", f"{(total - 1).abs().max():.1e}")]
rows.append(("one-hot output - level 2", f"{one_hot:.1e}"))
table(rows, ("what should vanish", "largest"))

# %% [markdown]
# ## Attention gate
#
# A skip connection is scaled at each pixel by a weight that is computed from it and from a coarser, deeper map.


# %% tags=["gate"]
class AttentionGate(nn.Module):
    """Scale each pixel of a skip connection x as x and a coarser map g say.

    Oktay et al. 2018, equations 1 and 2.
    x (B, c_x, H, W), g (B, c_g, H / stride, W / stride) -> (B, c_x, H, W)
    """

    def __init__(self, c_x: int, c_g: int, inner: int, stride: int = 1):
        super().__init__()
        self.skip = nn.Conv2d(c_x, inner, stride, stride, bias=False)
        self.signal = nn.Conv2d(c_g, inner, 1)
        self.score = nn.Conv2d(inner, 1, 1)

    def weights(self, x: Tensor, g: Tensor) -> Tensor:
        alpha = self.score(torch.relu(self.skip(x) + self.signal(g))).sigmoid()
        return F.interpolate(alpha, size=x.shape[2:], mode="bilinear")  # (B, 1, H, W)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        return x * self.weights(x, g)


class GatedSkip(nn.Module):
    """gate(a, b) + b: the skip is gated, the deeper map is not. The paper concatenates."""

    def __init__(self, channels: int):
        super().__init__()
        self.gate = AttentionGate(channels, channels, channels // 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.gate(a, b) + b  # (B, C, H, W)


# %% tags=["gate-open"]
seed(0)
gate = AttentionGate(64, 128, 32, stride=2)
x, g = torch.randn(2, 64, 8, 6), torch.randn(2, 128, 4, 3)
nn.init.constant_(gate.score.bias, 100.0)  # open: every weight is 1
opened = (gate(x, g) - x).abs().max().item()
nn.init.constant_(gate.score.bias, -100.0)  # shut: every weight is 0
shut = gate(x, g).abs().max().item()
claim(opened < 1e-6, "an open gate passes the skip on as it is")
claim(shut < 1e-6, "a shut gate passes nothing on")
rows = [("open: output - skip", f"{opened:.1e}"), ("shut: output", f"{shut:.1e}")]
table(rows, ("what should vanish", "largest"))

# %% [markdown]
# ## Bilinear pooling
#
# Every channel of one map times every channel of the other, summed over the pixels.


# %% tags=["bilinear"]
class Bilinear(nn.Module):
    """Sum of the outer products at all pixels (Lin et al. 2015, section 3)."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("bihw,bjhw->bij", a, b).flatten(1)  # (B, C * C)


class SignedRoot(nn.Module):
    """sign(x) sqrt(|x|), scaled to a given length.

    Lin et al. 2015, section 3, where the length is 1. The small number keeps the gradient finite.
    """

    def __init__(self, length: float = 1.0):
        super().__init__()
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        return self.length * F.normalize(x.sign() * (x.abs() + 1e-5).sqrt())  # (B, D)


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
        signed = x * self.sign.view(-1, 1, 1)
        slots = signed.new_zeros(
            B, self.d, H, W
        )  # not of x: autocast may have halved it
        return slots.index_add(1, self.slot, signed)  # (B, d, H, W)


class CompactBilinear(nn.Module):
    """Sketch the summed outer product without forming it, by Fourier transforms.

    Gao et al. 2016, algorithm 2 (tensor sketch).
    """

    def __init__(self, channels: int, d: int):
        super().__init__()
        self.first, self.second = CountSketch(channels, d), CountSketch(channels, d)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        first = torch.fft.rfft(self.first(a), dim=1)
        second = torch.fft.rfft(self.second(b), dim=1)
        return torch.fft.irfft((first * second).sum((2, 3)), n=self.first.d)  # (B, d)


# %% tags=["by-loop"]
def summed_outer_products(a: Tensor, b: Tensor) -> Tensor:
    """(B, C, H, W) twice -> (B, C, C), one pixel after the other."""
    total = a.new_zeros(a.shape[0], a.shape[1], b.shape[1])
    for i in range(a.shape[2]):
        for j in range(a.shape[3]):
            total += a[:, :, i, j].unsqueeze(2) * b[:, :, i, j].unsqueeze(1)
    return total


def sketch_by_hand(products: Tensor, compact: CompactBilinear) -> Tensor:
    """(B, C, C) -> (B, d): product i, j goes to slot (slot i + slot j) mod d, with both signs."""
    first, second, d = compact.first, compact.second, compact.first.d
    slots = (first.slot.unsqueeze(1) + second.slot).flatten() % d
    signs = (first.sign.unsqueeze(1) * second.sign).flatten()
    return products.new_zeros(len(products), d).index_add(
        1, slots, products.flatten(1) * signs
    )


# %% [markdown]
# ## Skip against dense
#
# A chain of residual layers and a densely connected one: what a layer reads is a sum or a concatenation of all
# outputs before it. With its kernel repeated for each of them, the dense layer computes what the residual one does.


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


@torch.no_grad()
def densely(layers: list[nn.Conv2d]) -> list[nn.Conv2d]:
    """Dense layers that do what residual ones do: layer l repeats its kernel l + 1 times."""
    dense = []
    for number, layer in enumerate(layers, start=1):
        c_out, c_in, size, _ = layer.weight.shape
        dense.append(nn.Conv2d(number * c_in, c_out, size, padding=size // 2))
        dense[-1].weight.copy_(layer.weight.repeat(1, number, 1, 1))
        dense[-1].bias.copy_(layer.bias)
    return dense


# %% tags=["skip-is-dense"]
seed(0)
layers, x = (
    [nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)],
    torch.randn(2, 16, 9, 7),
)
with torch.no_grad():
    parts = dense_chain(densely(layers), x).unflatten(1, (5, 16))  # (B, 5, 16, H, W)
    expected = residual_chain(layers, x)
    chain_deviation = checks.deviation(parts.sum(1), expected)
claim(
    chain_deviation < 1e-5,
    "the parts of a dense chain sum to the output of the residual one",
)
record("chain.deviation", chain_deviation)
costs = [sum(p.weight.numel() for p in chain) for chain in (layers, densely(layers))]
record("chain.factor", costs[1] / costs[0])
table(zip(("skip", "dense"), costs), ("four layers of 16 channels", "weights"))

# %% [markdown]
# ## Equal to references
#
# Two libraries have two of the modules; batch norm gets random statistics before the weights are copied. The others
# are compared with loops over pixels.


# %% tags=["equal"]
seed(0)
x, y = torch.randn(2, 3, 64, 9, 7, dtype=torch.float64)
pairs = {
    "torchvision": (SqueezeExcitation(64), torchvision.ops.SqueezeExcitation(64, 4)),
    "timm": (cbam(64), checks.randomise_norms(CbamModule(64))),
}
rows = []
for name, (ours, theirs) in pairs.items():
    checks.transplant(theirs, ours)
    deviation = checks.same_outputs(ours, theirs, x.float())
    record(f"{name}.deviation", deviation)
    rows.append((type(theirs).__name__, name, f"{deviation:.1e}"))

# %% tags=["equal-loops"]
products, compact = summed_outer_products(x, y), CompactBilinear(64, 100)
by_loop = {"Bilinear": (Bilinear()(x, y), products.flatten(1))}
by_loop["CompactBilinear"] = compact(x, y), sketch_by_hand(products, compact)
for name, (found, expected) in by_loop.items():
    deviation = checks.deviation(found, expected)
    claim(deviation < 1e-10, f"{name} gives what a loop gives, in double precision")
    record(f"{name}.deviation", deviation)
    rows.append((name, "a loop", f"{deviation:.1e}"))
table(rows, ("module", "reference", "largest relative deviation"))


# %% [markdown]
# ## One table
#
# Parameters and multiply-accumulates of joining two maps of 64 channels and 28x28 pixels.


# %% tags=["makers"]
FUSIONS = {  # channels -> a module that joins two maps
    "sum": lambda channels: Sum(),
    "concat, 1×1": Concat,
    "SE": lambda channels: GatedSum(SqueezeExcitation(channels)),
    "CBAM": lambda channels: GatedSum(cbam(channels)),
    "ASFF": ASFF,
    "attention gate": GatedSkip,
    "bilinear": lambda channels: Bilinear(),
    "compact bilinear": lambda channels: CompactBilinear(channels, 512),
}


class Pair(nn.Module):
    """Give both halves of the channels to a fusion, so that it can be counted."""

    def __init__(self, fusion: nn.Module):
        super().__init__()
        self.fusion = fusion

    def forward(self, x: Tensor) -> Tensor:
        return self.fusion(*x.chunk(2, dim=1))


# %% tags=["cost"]
rows, x = [], torch.empty(1, 128, 28, 28, device="meta")
for name, make in FUSIONS.items():
    with torch.device("meta"):
        pair = Pair(make(64))
    shape, parameters = "×".join(map(str, pair(x).shape[1:])), counting.parameters(pair)
    macs = counting.macs(pair, x)
    record(f"{name.split(',')[0]}.parameters", parameters)
    record(f"{name.split(',')[0]}.macs", macs)
    rows.append((name, shape, parameters, macs))
table(rows, ("fusion of two 64×28×28", "output", "parameters", "MACs"))

# %% [markdown]
# ## The network of the ablation
#
# Two paths leave one stem: a fine one of 8x8 and a deeper, coarse one of 4x4, enlarged again. The fusion joins them;
# bilinear pooling ends the map, so its head is a linear layer alone.


# %% tags=["network"]
def conv_norm_relu(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())


def map_head(channels: int, num_classes: int) -> nn.Sequential:
    """One more convolution, mean, linear layer: (B, C, H, W) -> (B, num_classes)."""
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    last = conv_norm_relu(channels, 2 * channels, 2)
    return nn.Sequential(last, pool, nn.Linear(2 * channels, num_classes))


def product_head(size: int, num_classes: int = 10) -> nn.Sequential:
    """Linear layer on products of channels, each about 1 in size: (B, size) -> (B, num_classes)."""
    return nn.Sequential(SignedRoot(size**0.5), nn.Linear(size, num_classes))


class TwoPaths(nn.Module):
    """A fine and a coarse path from one stem, joined by a fusion: (B, c_in, H, W) -> (B, K)."""

    def __init__(
        self, fusion: nn.Module, head: nn.Module, channels: int, c_in: int = 3
    ):
        super().__init__()
        self.stem = conv_norm_relu(c_in, channels, 2)
        self.fine = conv_norm_relu(channels, channels, 2)
        down = conv_norm_relu(channels, channels, 2)
        self.coarse = nn.Sequential(down, conv_norm_relu(channels, channels, 2))
        self.fusion, self.head = fusion, head

    def paths(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        fine = self.fine(x)  # (B, C, H / 4, W / 4)
        return fine, F.interpolate(self.coarse(x), size=fine.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fusion(*self.paths(x)))


# %% tags=["variants"]
class First(nn.Module):
    """Keep the fine map, drop the coarse one."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a


class Second(nn.Module):
    """Keep the coarse map, drop the fine one."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return b


WIDTH = 16  # channels of both paths
REDUCTION = 4  # 16 channels are too few for the papers' 16
ABLATION = {
    "fine alone": lambda channels: First(),
    "coarse alone": lambda channels: Second(),
    "sum": FUSIONS["sum"],
    "concat, 1×1": Concat,
    "SE": lambda channels: GatedSum(SqueezeExcitation(channels, REDUCTION)),
    "CBAM": lambda channels: GatedSum(cbam(channels, REDUCTION)),
    "ASFF": ASFF,
    "attention gate": GatedSkip,
    "bilinear": FUSIONS["bilinear"],
}


def network_with(name: str, channels: int = WIDTH) -> TwoPaths:
    """The network with one of the fusions; what follows the map is the same for all but one."""
    head = product_head(channels**2) if name == "bilinear" else map_head(channels, 10)
    return TwoPaths(ABLATION[name](channels), head, channels)


# %% tags=["drawn"] alt="The network from top to bottom with output shapes and parameters at the right: an input of 3x32x32, a stem to 16x16x16, the fine path to 16x8x8, the coarse path to 16x4x4, the fusion to 16x8x8 and the head to 10 numbers."
with torch.device("meta"):
    network, x = network_with("concat, 1×1"), torch.empty(1, 3, 32, 32)
drawing.draw(network, x)

# %% [markdown]
# ## Training
#
# Colour patches from ten photographs; the class is the photograph. As luminance and two differences of colour, so
# that the same data serve for early against late fusion below.


# %% tags=["luminance"]
def luminance_and_colour(x: Tensor) -> Tensor:
    """Red, green, blue -> luminance, blue - luminance, red - luminance: (B, 3, H, W) -> same."""
    red, green, blue = x.unbind(1)
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    return torch.stack((luminance, blue - luminance, red - luminance), dim=1)


# %% tags=["data"]
IMAGES = 800 if PROFILE == "sample" else 20_000
data = [(luminance_and_colour(x), y) for x, y in images.patches()[:3]]
scale = {"dim": (0, 2, 3), "keepdim": True}
mean, std = data[0][0].mean(**scale), data[0][0].std(**scale)
train_part, validation, test = [((x - mean) / std, y) for x, y in data]
train_part = train_part[0][:IMAGES], train_part[1][:IMAGES]
record("images", len(train_part[1]))
parts = zip(("train", "validation", "test"), (train_part, validation, test))
table([(name, *x.shape) for name, (x, _) in parts], ("part", "N", "C", "H", "W"))


# %% tags=["train"]
EPOCHS = 6
BATCH = 50
SEEDS = (0, 1, 2)


def train(network: nn.Module, part, epochs: int = EPOCHS, rate: float = 0.1) -> float:
    """SGD with momentum; the rate rises for a fifth of the steps, then falls; last epoch's loss."""
    steps = epochs * math.ceil(len(part[1]) / BATCH)
    optimizer = torch.optim.SGD(
        network.parameters(), rate, momentum=0.9, weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.2, cycle_momentum=False
    )
    history = training.fit(
        network, part, epochs, optimizer, batch=BATCH, schedule=schedule
    )
    return history["loss"][-1]


def key(name: str) -> str:
    """The first word, under which results are recorded, with "alone" where it matters."""
    return name.replace(" alone", ".alone").partition(",")[0].replace(" ", ".")


def draw_runs(axes, runs: dict[str, list[float]], alone: str) -> None:
    """A row for each name: its seeds as dots, their mean as a line; names with `alone` in grey."""
    for row, (name, values) in enumerate(runs.items()):
        colour = plots.QUIET if alone in name else plots.COLOURS[0]
        axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.5, mew=0)
        axes.plot([sum(values) / len(values)] * 2, [row - 0.3, row + 0.3], color=colour)
    axes.set(yticks=range(len(runs)), yticklabels=runs, ylim=(len(runs) - 0.5, -0.5))
    axes.tick_params("y", length=0)
    axes.grid(axis="x")


# %% tags=["runs"]
networks, losses, tested = {}, {}, {}
for name in ABLATION:
    for number in SEEDS:
        seed(number)
        networks[name, number] = network_with(name).to(device)
        losses.setdefault(name, []).append(train(networks[name, number], train_part))
        accuracy = training.evaluate(networks[name, number], test)
        tested.setdefault(name, []).append(accuracy)
record("epochs", EPOCHS)
record("steps", EPOCHS * math.ceil(IMAGES / BATCH))

# %% tags=["result"]
rows = []
for name in ABLATION:
    record_spread(f"{key(name)}.loss", losses[name])
    record_spread(f"{key(name)}.test", tested[name])
    parameters = counting.parameters(networks[name, 0])
    rows.append(
        (name, parameters, spread(losses[name], ".3f"), spread(tested[name], ".1%"))
    )
table(rows, ("fusion", "parameters", "training loss, last epoch", "test accuracy"))

# %% [markdown]
# Three runs and three others of the same network lie apart, without overlap, in one of ten cases (2 of the 20 ways to
# sort them). How many pairs of fusions do, and how far apart are their means and the seeds of one?


# %% tags=["apart"]
def apart(a: list[float], b: list[float]) -> bool:
    """Whether all values of one are above all of the other."""
    return max(a) < min(b) or max(b) < min(a)


joined = list(ABLATION)[2:]
pairs = [(a, b) for i, a in enumerate(joined) for b in joined[:i]]
record("pairs", len(pairs))
rows = []
for measure, values in (("training loss", losses), ("test accuracy", tested)):
    found = [pair for pair in pairs if apart(*(values[name] for name in pair))]
    record(f"pairs.{measure.split()[0]}", len(found))
    rows.append((measure, len(found), f"{len(pairs) / 10:.1f}"))
table(rows, (f"of {len(pairs)} pairs", "apart", "expected of equal networks"))

# %% tags=["ranges"]
means = {name: 100 * sum(values) / len(values) for name, values in tested.items()}
between = max(means[name] for name in joined) - min(means[name] for name in joined)
within = max(100 * (max(tested[name]) - min(tested[name])) for name in joined)
claim(
    between < 2 * within,
    "the means differ by less than twice the widest range of seeds",
)
gain = abs(means["fine alone"] - means["sum"])
claim(gain < 5, "the fine map alone is within five points of the sum")
record("means.range", between)
record("seeds.range", within)
rows = [
    ("means of the fusions", f"{between:.1f}"),
    ("seeds of one fusion", f"{within:.1f}"),
]
table(rows, ("test accuracy of", "largest difference, points"))

# %% tags=["ablation-figure"] alt="A row of three dots and a short line, their mean, for each of nine networks over test accuracy. The dots of most rows overlap; the next table has the numbers."
_, axes = plt.subplots(figsize=(5, 3.6))
axes.set(xlabel="test accuracy, %")
draw_runs(
    axes, {name: [100 * v for v in tested[name]] for name in ABLATION}, alone="alone"
)

# %% [markdown]
# ## Early against late
#
# The same question for two inputs, luminance and colour: join them before the first layer, after it, or not before
# the class scores. The widths are chosen for about equal numbers of parameters.


# %% tags=["two-inputs"]
class TwoInputs(nn.Module):
    """One module for luminance, one for colour, one that joins: (B, 3, H, W) -> any."""

    def __init__(self, luminance: nn.Module, colour: nn.Module, join: nn.Module):
        super().__init__()
        self.luminance, self.colour, self.join = luminance, colour, join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.luminance(x[:, :1]), self.colour(x[:, 1:]))


class SideBySide(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat((a, b), dim=1)


class Mean(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a + b) / 2


def classifier(c_in: int, channels: int, num_classes: int = 10) -> nn.Sequential:
    """Three convolutions, mean, linear layer: (B, c_in, H, W) -> (B, num_classes)."""
    second = conv_norm_relu(channels, 2 * channels, 2)
    third = conv_norm_relu(2 * channels, 2 * channels)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    last = nn.Linear(2 * channels, num_classes)
    return nn.Sequential(conv_norm_relu(c_in, channels, 2), second, third, pool, last)


def early(channels: int = WIDTH) -> nn.Sequential:
    """Both inputs side by side into one network."""
    join = TwoInputs(nn.Identity(), nn.Identity(), SideBySide())
    return nn.Sequential(join, classifier(3, channels))


def middle(channels: int = WIDTH) -> nn.Sequential:
    """A first layer for each input, half as wide; the rest reads both."""
    firsts = [conv_norm_relu(c_in, channels // 2, 2) for c_in in (1, 2)]
    rest = classifier(3, channels)[1:]
    return nn.Sequential(TwoInputs(*firsts, SideBySide()), rest)


def late(channels: int = 11) -> TwoInputs:
    """A network for each input and the mean of their scores."""
    return TwoInputs(classifier(1, channels), classifier(2, channels), Mean())


def luminance_alone(channels: int = WIDTH) -> TwoInputs:
    return TwoInputs(classifier(1, channels), nn.Identity(), First())


def colour_alone(channels: int = WIDTH) -> TwoInputs:
    return TwoInputs(nn.Identity(), classifier(2, channels), Second())


# %% [markdown]
# Late fusion is early fusion without connections between the inputs: set every kernel between the channels of one
# network and those of the other to zero, and a single network of twice the width gives the mean of the scores.


# %% tags=["merged"]
def merged(a: nn.Sequential, b: nn.Sequential, joint: nn.Sequential) -> nn.Sequential:
    """Fill `joint`, as wide as both, so that it gives the mean of a's and b's scores."""
    state = {}
    for (name, p), q in zip(
        a.state_dict().items(), b.state_dict().values(), strict=True
    ):
        if p.ndim == 4:  # kernels: two blocks on the diagonal
            p_wide = F.pad(p, (0, 0, 0, 0, 0, q.shape[1]))
            q_wide = F.pad(q, (0, 0, 0, 0, p.shape[1], 0))
            state[name] = torch.cat((p_wide, q_wide))
        elif name.startswith("4."):  # the linear layer: side by side, halved
            state[name] = torch.cat((p, q), dim=1) / 2 if p.ndim == 2 else (p + q) / 2
        else:  # batch norm: one channel after the other
            state[name] = torch.cat((p, q)) if p.ndim else p
    joint.load_state_dict(state)
    return joint


# %% tags=["late-is-early"]
seed(0)
two, x = checks.randomise_norms(late()), torch.randn(2, 3, 33, 27)
one = merged(two.luminance, two.colour, classifier(3, 22))
late_deviation = checks.same_outputs(one, two, x)
record("late.deviation", late_deviation)
late_deviation

# %% tags=["inputs-runs"]
INPUTS = {
    "luminance alone": luminance_alone,
    "colour alone": colour_alone,
    "early": early,
    "after layer 1": middle,
    "late": late,
}
for name, build in INPUTS.items():
    for number in SEEDS:
        seed(number)
        networks[name, number] = build().to(device)
        losses.setdefault(name, []).append(train(networks[name, number], train_part))
        accuracy = training.evaluate(networks[name, number], test)
        tested.setdefault(name, []).append(accuracy)

# %% tags=["inputs-result"]
rows = []
for name in INPUTS:
    record_spread(f"{key(name)}.loss", losses[name])
    record_spread(f"{key(name)}.test", tested[name])
    parameters = counting.parameters(networks[name, 0])
    rows.append(
        (name, parameters, spread(losses[name], ".3f"), spread(tested[name], ".1%"))
    )
for both in ("early", "after layer 1", "late"):
    for one in ("luminance alone", "colour alone"):
        ahead = min(tested[both]) > max(tested[one])
        claim(ahead, f"every seed of {both} is right more often than any of {one}")
mean_loss = [sum(losses[name]) / 3 for name in list(INPUTS)[2:]]
behind = mean_loss[2] > max(mean_loss[:2]) + 0.02
claim(behind, "joined late, the mean training loss is the highest, by 0.02 or more")
right = [sum(tested[name]) / 3 for name in list(INPUTS)[2:]]
claim(
    max(right) - min(right) < 0.06,
    "wherever the inputs are joined, means are within six points",
)
table(
    rows, ("inputs joined", "parameters", "training loss, last epoch", "test accuracy")
)

# %% tags=["inputs-figure"] alt="A row of three dots and a short line, their mean, for each of five networks over test accuracy. The three with both inputs lie close together, to the right of luminance alone and colour alone."
_, axes = plt.subplots(figsize=(5, 2.4))
axes.set(xlabel="test accuracy, %")
draw_runs(
    axes, {name: [100 * v for v in tested[name]] for name in INPUTS}, alone="alone"
)

# %% [markdown]
# ## Look inside
#
# The network takes any size, so a photograph that is none of the ten can go through: the weights at each pixel that
# three of the fusions give.

# %% tags=["pixel-weights"]
PIXEL_WEIGHTS = {  # fusion, fine map, coarse map -> (B, 1, H, W)
    "ASFF": lambda fusion, a, b: fusion.weights((a, b))[:, :1],
    "attention gate": lambda fusion, a, b: fusion.gate.weights(a, b),
    "CBAM": lambda fusion, a, b: fusion.gate[1].weights(fusion.gate[0](b)),
}

# %% tags=["maps"] alt="A portrait in colour and three grey squares. In those of ASFF and the attention gate the portrait is recognisable; that of CBAM is blurred, a dark figure on a light ground."
photograph = images.photograph()
x = ((luminance_and_colour(photograph) - mean) / std).to(device)
maps, titles = [photograph[0].clamp(0, 1)], ["photograph\n"]
for name, weights in PIXEL_WEIGHTS.items():
    network = networks[name, 0].eval()
    with torch.no_grad():
        maps.append(weights(network.fusion, *network.paths(x))[0, 0].cpu())
    titles.append(f"{name}\n{maps[-1].min():.2f} to {maps[-1].max():.2f}")
plots.image_grid(maps, titles, columns=4, scale=1.2, vmin=0, vmax=1)

# %% tags=["se-weights"]
with torch.no_grad():
    network = networks["SE", 0].eval()
    gates = (
        network.fusion.gate.weights(network.paths(test[0].to(device))[1])
        .flatten(1)
        .cpu()
    )
channels, pictures = gates.mean(0).std().item(), gates.std(0).mean().item()
claim(
    pictures < channels, "SE's weights differ more between channels than between images"
)
record("gates.channels", channels)
record("gates.images", pictures)
rows = [("mean", f"{gates.mean():.2f}"), ("between channels", f"{channels:.2f}")]
rows.append(("between images, one channel", f"{pictures:.2f}"))
table(rows, ("weights of SE", "mean or standard deviation"))

# %% [markdown]
# ## What we saw
#
# - Sum, concatenation, skip, dense, early and late are tied by equal outputs: each of the cheaper ones is a special
#   case of the dearer one.
# - SE and CBAM equal the libraries, bilinear pooling and its sketch equal loops, up to rounding.
# - On the test patches the means of the fusions differ about as much as the seeds of one; two inputs are better than
#   one in every seed.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
stages = ((256, 3), (512, 4), (1024, 6), (2048, 3))  # channels and blocks of ResNet-50
weights = sum(n * 2 * channels * channels // 16 for channels, n in stages)
biases = sum(n * (channels + channels // 16) for channels, n in stages)
with torch.device("meta"):
    found = counting.parameters(seresnet50()) - counting.parameters(resnet50())
claim(
    found == weights + biases, "the parameters of SE by hand are those counted in timm"
)
record("se.weights", weights)
record("se.found", found)
table(
    [(weights, biases, found)], ("weights by hand", "biases by hand", "counted in timm")
)


# %% tags=["solution-2"]
def bilinear_runs(
    fusion, root: SignedRoot, size: int
) -> tuple[list[float], list[float]]:
    """Losses of the last epoch and validation accuracies of three seeds."""
    last, right = [], []
    for number in SEEDS:
        seed(number)
        head = nn.Sequential(root, nn.Linear(size, 10))
        network = TwoPaths(fusion(), head, WIDTH).to(device)
        last.append(train(network, train_part))
        right.append(training.evaluate(network, validation))
    return last, right


# %% tags=["solution-2-runs"]
right = [
    training.evaluate(networks["bilinear", number], validation) for number in SEEDS
]
runs = {"each about 1": (losses["bilinear"], right)}
runs["unit length"] = bilinear_runs(Bilinear, SignedRoot(), WIDTH**2)
record_spread("scaled.validation", right)
behind = min(runs["unit length"][0]) > max(losses["bilinear"]) + 0.2
claim(behind, "at unit length every seed's training loss is higher, by 0.2 or more")
record_spread("unit.loss", runs["unit length"][0])
record_spread("unit.validation", runs["unit length"][1])
rows = [(name, spread(a, ".3f"), spread(b, ".1%")) for name, (a, b) in runs.items()]
table(rows, ("bilinear features", "training loss", "validation accuracy"))


# %% tags=["solution-3"]
def without(network: TwoPaths, path: int) -> float:
    """Validation accuracy with zeros in place of the fine (0) or the coarse map (1)."""

    def zero(module, maps):
        return tuple(0 * x if i == path else x for i, x in enumerate(maps))

    handle = network.fusion.register_forward_pre_hook(zero)
    accuracy = training.evaluate(network, validation)
    handle.remove()
    return accuracy


rows = []
for name in list(ABLATION)[2:]:
    each = [
        [without(networks[name, number], path) for number in SEEDS] for path in (0, 1)
    ]
    record_spread(f"{key(name)}.nofine", each[0])
    record_spread(f"{key(name)}.nocoarse", each[1])
    rows.append((name, *(spread(values, ".0%") for values in each)))
    lead = (sum(each[1]) - sum(each[0])) / len(
        SEEDS
    )  # of the fine map, when it is the one left
    if name in ("SE", "CBAM"):
        claim(
            lead > 0.1,
            f"{name}: the map without a gate, the fine one, carries 10 points more",
        )
    if name == "attention gate":
        claim(
            lead < -0.1,
            f"{name}: the map without a gate, the coarse one, carries 10 points more",
        )
table(rows, ("fusion", "fine map zero", "coarse map zero"))

# %% tags=["solution-4"]
d = WIDTH**2 // 4
runs = {f"all {WIDTH**2} products": runs["each about 1"]}
runs[f"sketch of {d}"] = bilinear_runs(
    lambda: CompactBilinear(WIDTH, d), SignedRoot(d**0.5), d
)
record("compact.size", d)
record_spread("compact.loss", runs[f"sketch of {d}"][0])
record_spread("compact.validation", runs[f"sketch of {d}"][1])
rows = [(name, spread(a, ".3f"), spread(b, ".1%")) for name, (a, b) in runs.items()]
table(rows, ("features", "training loss", "validation accuracy"))
