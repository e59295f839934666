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
# # Quantization
#
# Integers of few bits in the place of floats: scales, zero points, a network that computes
# with integers only, calibration, training that knows of the rounding, and four bits for a
# transformer.
# The text to it is the [chapter](../chapters/quantization.rst).

# %%
import copy
import logging
import math
from importlib import metadata
from itertools import product
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from onnxruntime.quantization.calibrate import HistogramCollector
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

for name in ("torch.utils._pytree", "torch.utils.cpp_extension"):
    logging.getLogger(name).setLevel(logging.ERROR)  # torchao's import logs there
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
from torchao.quantization import quantize_
from torchao.quantization.granularity import PerGroup
from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig
from transformers import BertConfig, BertModel  # imports torchao, too

from workbench import claim, device, record, record_spread, seed, spread, table
from workbench import checks, images, plots, pretrained, text, training

# %%
SEEDS = (0, 1, 2)
BITS = (8, 7, 6, 5, 4, 3, 2)
WAYS = ("tensor", "channel", 16)  # what shares a scale; a number is a group of so many

# %% [markdown]
# ## A scale and a zero point


# %% tags=["levels-figure"] alt="Two number lines. On the upper one, affine, the levels 0 to 7 are spread evenly from -1.0 to 2.5 with the zero point 2 at the number 0. On the lower one, symmetric, the levels -3 to 3 are spread evenly from -2.5 to 2.5, and the two leftmost ones lie below the least number of the data. Grey dots between -1.0 and 2.5 are joined to their nearest levels."
_, axes = plt.subplots(figsize=(5, 2.6))
numbers = torch.tensor([-1.0, -0.35, 0.3, 0.9, 1.7, 2.5])
for y, step, levels in ((1.2, 0.5, range(-2, 6)), (0, 2.5 / 3, range(-3, 4))):
    shift = 2 if y else 0
    axes.plot([levels[0] * step, levels[-1] * step], [y, y], color=plots.QUIET, lw=1)
    for k in levels:
        colour = plots.COLOURS[0] if k else plots.COLOURS[1]
        axes.plot(k * step, y, "|", color=colour, markersize=14, markeredgewidth=2)
        axes.text(k * step, y - 0.38, f"{k + shift}", ha="center", color=colour)
    for x in numbers.tolist():
        axes.plot([x, round(x / step) * step], [y + 0.5, y + 0.1], color=plots.GRID)
        axes.plot(x, y + 0.5, "o", color=plots.QUIET, markersize=4)
axes.set(ylim=(-0.6, 1.9), yticks=(0, 1.2), yticklabels=("symmetric", "affine"))
axes.set_xlabel("number")
axes.set_axisbelow(True)


# %% tags=["quantise"]
def quantise(x: Tensor, scale, zero, low: int, high: int) -> Tensor:
    """Numbers to integers low..high: round to steps of `scale`, add `zero`, cut."""
    q = torch.round(x * (1 / scale)) + zero  # as torchao; x / scale may round otherwise
    return q.clamp(low, high)


def dequantise(q: Tensor, scale, zero) -> Tensor:
    """The way back, to the middle of each step."""
    return (q - zero) * scale


def affine(least, most, low: int, high: int):
    """Scale and zero point with which least..most, and 0, lie within low..high."""
    least = torch.clamp(torch.as_tensor(least), max=0)
    most = torch.clamp(torch.as_tensor(most), min=0)
    scale = ((most - least) / (high - low)).clamp_min(1e-12)
    zero = low - torch.round(least / scale)  # so that the number 0 is an integer
    return scale, zero.clamp(low, high)


def symmetric(widest: Tensor, low: int, high: int) -> Tensor:
    """The scale with which -widest..widest fits low..high; the zero point is 0."""
    return (widest / ((high - low) / 2)).clamp_min(1e-12)


# %% tags=["hand-table"]
scale, zero = affine(-1.0, 2.5, 0, 7)
q = quantise(numbers, scale, zero, 0, 7)
back = dequantise(q, scale, zero)
rows = []
for x, k, y in zip(numbers.tolist(), q.int().tolist(), back.tolist()):
    rows.append((f"{x:.2f}", k, f"{y:.2f}", f"{abs(x - y):.2f}"))
claim(scale == 0.5 and zero == 2, "levels 0.5 apart, and 2 stands for 0")
claim((back - numbers).abs().max() <= scale / 2, "no error above half a step")
table(rows, ("number", "integer", "back", "error"))

# %% [markdown]
# ## Who shares a scale


# %% tags=["weights"]
def signed(bits: int, full: bool = False) -> tuple[int, int]:
    """-127..127 for 8 bits; full: with the one more below, -128..127."""
    top = 2 ** (bits - 1) - 1
    return -top - full, top


class Quantised(NamedTuple):
    """Integers in blocks (blocks, n), one scale a block, and the shape they had."""

    integers: Tensor
    scale: Tensor
    shape: torch.Size

    def floats(self) -> Tensor:
        rows = (self.integers * self.scale).reshape(self.shape[0], -1)
        return rows[:, : self.shape[1:].numel()].reshape(self.shape)


def blocks(w: Tensor, way) -> Tensor:
    """Weights (O, ...) as (blocks, n): all, each output channel, or groups of `way`."""
    if way == "tensor":
        return w.reshape(1, -1)
    rows = w.flatten(1)
    if way == "channel":
        return rows
    padded = F.pad(rows, (0, -rows.shape[1] % way))
    return padded.reshape(-1, way)


def quantise_weight(w: Tensor, bits: int, way, *, full: bool = False) -> Quantised:
    """Symmetric integers of the weights of a layer."""
    low, high = signed(bits, full)
    parts = blocks(w.detach(), way)
    scale = symmetric(parts.abs().amax(1, keepdim=True), low, high)
    q = quantise(parts, scale, 0, low, high)
    return Quantised(q.to(torch.int8), scale, w.shape)


# %% tags=["two-table"]
two = torch.tensor([[6.0, -3.0, 1.5], [0.30, 0.12, -0.24]])
together = quantise_weight(two, 4, "tensor")
apart = quantise_weight(two, 4, "channel")
claim((together.integers[0, 3:] == 0).all(), "per tensor: the small channel is lost")
claim((apart.integers[1] != 0).all(), "per channel: it is kept")
rows = []
for channels in zip(two, together.integers.view(2, 3), apart.integers):
    rows.append([", ".join(f"{x:g}" for x in part.tolist()) for part in channels])
table(rows, ("a channel", "one scale", "a scale of its own"))

# %% [markdown]
# ## A network to quantise
#
# Depthwise and pointwise convolutions, each with a batch norm, as MobileNet has them.


# %% tags=["network"]
class ConvNorm(nn.Module):
    """Convolution, norm, ReLU: (B, c_in, H, W) -> (B, c_out, H / stride, ...)."""

    def __init__(self, c_in: int, c_out: int, *, kernel: int, stride=1, groups=1):
        super().__init__()
        self.conv = nn.Conv2d(
            c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


def separable(c_in: int, c_out: int, stride: int) -> list[ConvNorm]:
    """A depthwise convolution, then a pointwise one."""
    depthwise = ConvNorm(c_in, c_in, kernel=3, stride=stride, groups=c_in)
    return [depthwise, ConvNorm(c_in, c_out, kernel=1)]


class Network(nn.Module):
    """(B, 1, H, W) -> (B, 10): a convolution, three separable ones, linear layer."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.layers = nn.ModuleList([ConvNorm(1, width, kernel=3, stride=2)])
        for c_in, c_out, stride in ((1, 2, 1), (2, 4, 2), (4, 4, 1)):
            self.layers.extend(separable(c_in * width, c_out * width, stride))
        self.classifier = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x.mean((2, 3)))


# %% tags=["fold"]
@torch.no_grad()
def fold(network: Network) -> Network:
    """A copy whose batch norms are multiplied into the convolutions before them."""
    network = copy.deepcopy(network).eval()
    for layer in network.layers:
        norm = layer.norm
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        layer.conv.weight *= factor[:, None, None, None]
        layer.conv.bias = nn.Parameter(norm.bias - factor * norm.running_mean)
        layer.norm = nn.Identity()
    return network


def weighted(network: Network) -> list[nn.Module]:
    """The layers with weights, in their order."""
    return [layer.conv for layer in network.layers] + [network.classifier]


@torch.no_grad()
def rounded(network: Network, bits: int, way) -> Network:
    """A copy with the weights that integers of so many bits stand for."""
    network = copy.deepcopy(network)
    for layer in weighted(network):
        layer.weight.copy_(quantise_weight(layer.weight, bits, way).floats())
    return network


# %% tags=["train"]
def trained(number: int, train) -> Network:
    """A network for digits, the weights and the order drawn by a seed."""
    seed(number)
    network = Network().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 0.01)
    schedule = training.one_cycle(optimizer, 5 * math.ceil(len(train[1]) / 50))
    training.fit(network, train, 5, optimizer, schedule=schedule)
    return network.eval()


# %% tags=["trained"]
train, _, test = images.standardised(images.digits(size=20), first=2000)
networks = [trained(number, train) for number in SEEDS]
plain = [fold(network) for network in networks]
float_accuracy = [training.evaluate(network, test) for network in networks]
record("float", 100 * sum(float_accuracy) / len(SEEDS))
record("digits.train", len(train[1]))
record("digits.test", len(test[1]))

# %% tags=["folded"]
some = test[0][:100].to(device)
with torch.no_grad():
    folding = [checks.deviation(b(some), a(some)) for a, b in zip(networks, plain)]
ratios = []
for network in plain:
    for layer in network.layers:
        widest = layer.conv.weight.detach().flatten(1).abs().amax(1)
        ratios.append((widest.max() / widest.min()).item())
claim(max(folding) < 1e-4, "folded, the network computes the same")
claim(max(ratios) > 4, "channels of one layer differ in width by more than four")
record("ratio.widest", max(ratios))

# %% [markdown]
# ## Accuracy against bits


# %% tags=["headline-run"]
accuracy = {way: torch.zeros(len(SEEDS), len(BITS)) for way in WAYS}
for way, (i, network), (j, bits) in product(WAYS, enumerate(plain), enumerate(BITS)):
    found = training.evaluate(rounded(network, bits, way), test)
    accuracy[way][i, j] = 100 * found

# %% tags=["headline-claims"]
at = {bits: place for place, bits in enumerate(BITS)}
start = 100 * torch.tensor(float_accuracy)
one = accuracy["tensor"]
for way in ("channel", 16):
    gap = accuracy[way][:, at[3]].min() - one[:, at[3]].max()
    claim(gap > 5, f"3 bits: {way} is ahead of per tensor")
claim(start.min() > 90, "the float networks read nine of ten digits")
for way in WAYS:
    lost = (start - accuracy[way][:, at[8]]).abs().max()
    claim(lost < 1.5, f"8 bits cost or win less than 1.5 points, {way}")
    claim(accuracy[way][:, at[2]].max() < 50, f"2 bits ruin it, {way}")
    name = "groups" if way == 16 else way
    record(f"{name}.3", accuracy[way][:, at[3]].mean())

# %% tags=["headline-figure"] alt="Accuracy in per cent against the bits of a weight, from 8 down to 2. All three lines start near 95. At 3 bits per tensor lies far below per channel and groups of 16; at 2 bits all three are below 50."
_, axes = plt.subplots()
ends = {}
for way, colour, line in zip(WAYS, plots.COLOURS, ("-", "-", "--")):
    plots.seed_band(axes, BITS, accuracy[way], colour, line)
axes.text(4.1, 30, "per tensor", color=plots.COLOURS[0], ha="right")
axes.text(3.05, 96, "per channel", color=plots.COLOURS[1])
axes.text(2.55, 80, "groups of 16", color=plots.COLOURS[2])
axes.axhline(10, color=plots.QUIET, linewidth=1, linestyle=":")
axes.invert_xaxis()
axes.set(xlabel="bits of a weight", ylabel="accuracy, %", ylim=(0, 105))
axes.set_axisbelow(True)


# %% [markdown]
# ## Training that knows of the rounding


# %% tags=["straight"]
class Rounded(nn.Module):
    """A weight as its integers stand for it; the gradient passes unchanged."""

    def __init__(self, bits: int, way, *, full: bool = False):
        super().__init__()
        self.bits = bits
        self.way = way
        self.full = full

    def forward(self, w: Tensor) -> Tensor:
        low = quantise_weight(w, self.bits, self.way, full=self.full).floats()
        return w + (low - w).detach()  # the value of `low`, the gradient of `w`


def aware(network: Network, bits: int, way, train, rate: float = 1e-3) -> Network:
    """A copy trained for one more epoch with rounded weights in each forward pass."""
    network = copy.deepcopy(network)
    for layer in weighted(network):
        parametrize.register_parametrization(layer, "weight", Rounded(bits, way))
    optimizer = torch.optim.Adam(network.parameters(), rate)
    training.fit(network, train, 1, optimizer)
    return network.eval()


# %% tags=["aware-run"]
CASES = (("tensor", 3), ("channel", 3), ("channel", 2))
before = {case: accuracy[case[0]][:, at[case[1]]] for case in CASES}
after = {case: torch.zeros(len(SEEDS)) for case in CASES}
for (way, bits), (i, network) in product(CASES, enumerate(plain)):
    seed(SEEDS[i])
    found = training.evaluate(aware(network, bits, way, train), test)
    after[way, bits][i] = 100 * found

# %% tags=["aware-table"]
rows = []
for way, bits in CASES:
    old = before[way, bits]
    new = after[way, bits]
    gains = bits == 2 or new.min() > old.max() + 5
    claim(gains, f"{bits} bits per {way}: trained on, it gains")
    rows.append((bits, way, spread(old.tolist(), ".1f"), spread(new.tolist(), ".1f")))
gap = after["channel", 3].min() - after["tensor", 3].max()
claim(gap > 3, "3 bits per channel stay ahead after training")
table(rows, ("bits", "one scale per", "rounded, %", "trained on, %"))

# %% [markdown]
# ## Integers only


# %% tags=["fixed-point"]
def fixed_point(real: Tensor) -> tuple[Tensor, Tensor]:
    """Positive factors as m / 2^shift, integers m of 31 bits (Jacob et al., 2.2)."""
    mantissa, exponent = torch.frexp(real.double())  # mantissa in [0.5, 1)
    m = torch.round(mantissa * 2**31).long()
    full = m == 2**31  # rounded up to the next power of two
    m = torch.where(full, m // 2, m)
    return m, 31 - exponent.long() - full.long()


def rescale(total: Tensor, m: Tensor, shift: Tensor) -> Tensor:
    """total * m / 2^shift, rounded, halves upwards, with integers alone."""
    return (total * m + (1 << (shift - 1))) >> shift


# %% tags=["integer-layer"]
class IntegerLayer(NamedTuple):
    """A convolution from uint8 to uint8; all tensors are of integers."""

    weight: Tensor  # -127..127
    bias: Tensor  # int32, the zero point of the input already in it
    m: Tensor
    shift: Tensor
    zero_in: int
    zero_out: int
    stride: int
    groups: int

    def total(self, x: Tensor) -> Tensor:
        """int8 times uint8, added up as int32: exact in float64."""
        pad = self.weight.shape[-1] // 2
        x = F.pad(x.double(), [pad] * 4, value=self.zero_in)  # the integer of 0
        w = self.weight.double()
        y = F.conv2d(x, w, None, self.stride, groups=self.groups).long()
        y = y + self.bias[:, None, None]
        assert y.abs().max() < 2**31, "the total does not fit into 32 bits"
        return y

    def __call__(self, x: Tensor) -> Tensor:
        factor = (self.m[:, None, None], self.shift[:, None, None])
        y = rescale(self.total(x), *factor) + self.zero_out
        return y.clamp(0, 255)  # at zero_out this is the ReLU


# %% tags=["integer-build"]
def integer_layer(layer: nn.Module, came, goes) -> IntegerLayer:
    """From a folded layer and (scale, zero point) of its input and of its output."""
    quantised = quantise_weight(layer.weight.double(), 8, "channel")
    weight = quantised.integers.long().view(layer.weight.shape)
    step = came[0].double() * quantised.scale[:, 0]  # of the total, one each channel
    bias = torch.round(layer.bias.detach().double() / step).long()
    bias = bias - int(came[1]) * weight.flatten(1).sum(1)  # sum w (x - z)
    m, shift = fixed_point(step / goes[0].double())
    if weight.ndim == 2:  # a linear layer is a convolution of one pixel
        weight = weight[:, :, None, None]
    stride = getattr(layer, "stride", (1,))[0]
    groups = getattr(layer, "groups", 1)
    zeros = int(came[1]), int(goes[1])
    return IntegerLayer(weight, bias, m, shift, *zeros, stride, groups)


# %% tags=["calibrate"]
@torch.no_grad()
def ranges(network: Network, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Least and largest number of what each layer reads, and of the last map."""
    found = [(x.min(), x.max())]
    for layer in network.layers:
        x = layer(x)
        found.append((x.min(), x.max()))
    return found


class IntegerNetwork:
    """A folded network in integers; only images and logits are floats."""

    def __init__(self, network: Network, found):
        self.codes = [affine(least, most, 0, 255) for least, most in found]
        pairs = zip(network.layers, self.codes, self.codes[1:])
        self.layers = [integer_layer(layer.conv, *codes) for layer, *codes in pairs]
        last = self.codes[-1]
        self.classifier = integer_layer(network.classifier, last, last)
        scale = quantise_weight(network.classifier.weight, 8, "channel").scale[:, 0]
        self.step = last[0] * scale  # of the totals, one each class

    def __call__(self, x: Tensor) -> Tensor:
        q = quantise(x, *self.codes[0], 0, 255).long()
        for layer in self.layers:
            q = layer(q)
        m, shift = fixed_point(torch.tensor(1 / q[0, 0].numel(), device=q.device))
        mean = rescale(q.sum((2, 3), keepdim=True), m, shift)  # behind a ReLU 0 is 0
        return self.classifier.total(mean).flatten(1) * self.step


# %% tags=["loops"]
def loops(layer: IntegerLayer, x: Tensor) -> Tensor:
    """One image (C, H, W) through a layer, product by product, in Python integers."""
    _, H, W = x.shape
    x, w = x.tolist(), layer.weight.tolist()
    k = len(w[0][0])
    pad = k // 2
    share = len(w) // layer.groups
    out = [range(0, H, layer.stride), range(0, W, layer.stride)]
    y = torch.zeros(len(w), len(out[0]), len(out[1]), dtype=torch.long)
    for o, (i, top), (j, left) in product(range(len(w)), *map(enumerate, out)):
        total = int(layer.bias[o]) + layer.zero_in * int(layer.weight[o].sum())
        for c, a, b in product(range(len(w[o])), range(k), range(k)):
            row = top + a - pad
            column = left + b - pad
            if 0 <= row < H and 0 <= column < W:
                pixel = x[o // share * len(w[o]) + c][row][column]
                total += w[o][c][a][b] * (pixel - layer.zero_in)
        exact = total * int(layer.m[o])
        half = 1 << (int(layer.shift[o]) - 1)
        code = ((exact + half) >> int(layer.shift[o])) + layer.zero_out
        y[o, i, j] = min(max(code, 0), 255)
    return y


# %% tags=["integers"]
def by_layer(ours: IntegerNetwork, network: Network, x: Tensor) -> tuple[int, int, int]:
    """Same integers in, layer by layer: numbers, how many differ, the most."""
    q = quantise(x, *ours.codes[0], 0, 255).long()
    count = 0
    differ = 0
    most = 0
    for i, layer in enumerate(ours.layers):
        with torch.no_grad():
            real = network.layers[i](dequantise(q, *ours.codes[i]))
        q = layer(q)
        apart = (q - quantise(real, *ours.codes[i + 1], 0, 255)).abs()
        count += q.numel()
        differ += int((apart > 0).sum())
        most = max(most, int(apart.max()))
    return count, differ, most


# %% tags=["integers-run"]
calibration = train[0][:100].to(device)
observed = [ranges(network, calibration) for network in plain]
whole = [IntegerNetwork(network, found) for network, found in zip(plain, observed)]
pixels = test[0].to(device)
totals = [network(pixels).cpu() for network in whole]
in_integers = [(y.argmax(1) == test[1]).double().mean().item() for y in totals]
eight = [rounded(network, 8, "channel") for network in plain]

# %% tags=["integers-claims"]
counts = by_layer(whole[0], eight[0], some)
first = quantise(some[:1], *whole[0].codes[0], 0, 255).long()
second = whole[0].layers[0](first)
by_hand = [(whole[0].layers[0], first), (whole[0].layers[1], second)]
same = all(torch.equal(loops(layer, q[0]), layer(q)[0].cpu()) for layer, q in by_hand)
claim(same, "the layers equal loops over Python's integers")
looped = sum(layer(q).numel() for layer, q in by_hand)
claim(counts[2] <= 1, "no integer is farther than one step from the floats'")
lost = [100 * (a - b) for a, b in zip(float_accuracy, in_integers)]
claim(max(map(abs, lost)) < 1.5, "in integers, the accuracy stays within 1.5 points")
record("layer.numbers", counts[0])
record("layer.differ", counts[1])
record_spread("integers", [100 * value for value in in_integers])

# %% [markdown]
# ## Calibration: where to cut


# %% tags=["entropy"]
def smooth(p: Tensor, small: float = 1e-4) -> Tensor:
    """Give empty bins a small count, taken from the others in equal parts."""
    empty = p == 0
    taken = small * empty.sum() / (~empty).sum()
    return torch.where(empty, small, p - taken)


def spread_out(inside: Tensor, filled: Tensor, levels: int) -> Tensor:
    """Merge bins into levels, and share each sum among the level's filled bins."""
    width = len(inside) // levels
    level = (torch.arange(len(inside)) // width).clamp_max(levels - 1)
    zeros = torch.zeros(levels, dtype=torch.double)
    total = zeros.index_add(0, level, inside)
    number = zeros.index_add(0, level, filled.double())
    return (total / number.clamp_min(1))[level] * filled


def divergence(
    counts: Tensor, start: int, stop: int, levels: int, spread_out=spread_out
) -> float:
    """Kullback-Leibler divergence of a histogram from its cut and quantised form."""
    inside = counts[start:stop].double()
    p = inside.clone()
    p[0] += counts[:start].sum()  # what is cut goes to the ends
    p[-1] += counts[stop:].sum()
    q = spread_out(inside, p > 0, levels)
    if not q.any():
        return math.inf
    p, q = smooth(p), smooth(q)
    p, q = p / p.sum(), q / q.sum()
    return (p * torch.log(p / q)).sum().item()


def entropy(x: Tensor, bits: int = 8, *, bins: int = 2048, every: int = 16) -> float:
    """The threshold of |x| whose quantised histogram diverges least."""
    levels = 2 ** (bits - 1)
    counts, edges = np.histogram(x.abs().numpy(), bins)
    counts = torch.from_numpy(counts)
    stops = range(levels, bins + 1, every)
    found = [divergence(counts, 0, stop, levels) for stop in stops]
    return float(edges[stops[int(np.argmin(found))]])


# %% tags=["thresholds"]
def moving_average(x: Tensor, parts: int = 20, keep: float = 0.9) -> float:
    """The largest of each part, averaged, the last parts counting most."""
    most = [part.abs().max().item() for part in x.chunk(parts)]
    average = most[0]
    for value in most[1:]:
        average = keep * average + (1 - keep) * value
    return average


def error(x: Tensor, threshold: float, bits: int) -> float:
    """Mean squared error of x in symmetric integers, relative to its mean square."""
    low, high = signed(bits)
    scale = symmetric(torch.tensor(threshold), low, high)
    y = dequantise(quantise(x, scale, 0, low, high), scale, 0)
    return ((y - x).square().mean() / x.square().mean()).item()


def least_squares(x: Tensor, bits: int) -> float:
    """The threshold of the smallest error among a hundred."""
    grid = (x.abs().max() * torch.arange(1, 101) / 100).tolist()
    return min(grid, key=lambda threshold: error(x, threshold, bits))


def thresholds(x: Tensor, bits: int) -> dict[str, float]:
    """What each way of calibration cuts at."""
    return {
        "largest": x.abs().max().item(),
        "moving average": moving_average(x),
        "99.9 %": x.abs().quantile(0.999).item(),
        "entropy": entropy(x, bits),
        "least squares": least_squares(x, bits),
    }


# %% [markdown]
# ## A transformer: four bits for weights alone


# %% tags=["minilm"]
def minilm() -> tuple[BertModel, BertWordPieceTokenizer]:
    """MiniLM of six layers, with trained weights, and its tokeniser."""
    real = pretrained.minilm()
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
    model = BertModel(BertConfig(vocab_size=len(real.vocabulary), **sizes)).eval()
    model.load_state_dict(real.weights)
    pieces = {piece: i for i, piece in enumerate(real.vocabulary)}
    return model, BertWordPieceTokenizer(pieces, lowercase=True)


def linears(model: BertModel) -> list[nn.Linear]:
    """The linear layers of the encoder."""
    return [m for m in model.encoder.modules() if isinstance(m, nn.Linear)]


def first_words(lines: list[str], tokeniser, n: int = 16) -> Tensor:
    """Of each line that is long enough the first n pieces, (lines, n)."""
    rows = [tokeniser.encode(line).ids[:n] for line in lines]
    return torch.tensor([row for row in rows if len(row) == n])


@torch.no_grad()
def vectors(model: BertModel, x: Tensor) -> Tensor:
    """A vector of length 1 for each row of pieces: the mean over its places."""
    return F.normalize(model(x).last_hidden_state.mean(1), dim=1)


def nearest(x: Tensor) -> Tensor:
    """For each vector the number of the one most alike, itself apart."""
    alike = x @ x.T
    return alike.fill_diagonal_(-2).argmax(1)


@torch.no_grad()
def weights_only(model: BertModel, bits: int, way) -> BertModel:
    """A copy whose encoder has the weights that integers stand for."""
    model = copy.deepcopy(model)
    for layer in linears(model):
        layer.weight.copy_(quantise_weight(layer.weight, bits, way, full=True).floats())
    return model


@torch.no_grad()
def inputs_of(layers: list[nn.Linear], model: BertModel, x: Tensor) -> list[Tensor]:
    """What each of the layers reads while the model runs once, as rows."""
    seen = {}
    handles = []
    for i, layer in enumerate(layers):

        def keep(_, given, i=i):
            seen[i] = given[0].flatten(0, 1)

        handles.append(layer.register_forward_pre_hook(keep))
    model(x)
    for handle in handles:
        handle.remove()
    return [seen[i] for i in range(len(layers))]


# %% tags=["minilm-run"]
model, tokeniser = minilm()
model = model.to(device)
lines = text.english()
sentences = first_words(lines.test.split("\n"), tokeniser)[:100].to(device)
sure = vectors(model, sentences)
KINDS = ((8, "channel"), (4, "channel"), (4, 32))
kept = {}
cosine = {}
coarse = {}
for kind in KINDS:
    found = vectors(weights_only(model, *kind), sentences)
    coarse[kind] = found
    kept[kind] = (nearest(found) == nearest(sure)).double().mean().item()
    cosine[kind] = (found * sure).sum(1).mean().item()


# %% tags=["pack"]
def pack(q: Tensor) -> Tensor:
    """Integers -8..7 (..., n), n even, two to a byte, the first in the low half."""
    if q.shape[-1] % 2 or q.min() < -8 or q.max() > 7:
        raise ValueError("pack: an even number of integers -8..7 is needed")
    low, high = (q.long() + 8).unflatten(-1, (-1, 2)).unbind(-1)
    return (low + 16 * high).to(torch.uint8)


def unpack(packed: Tensor) -> Tensor:
    """The way back."""
    packed = packed.long()
    return torch.stack((packed % 16, packed // 16), -1).flatten(-2).to(torch.int8) - 8


# %% [markdown]
# ## GPTQ: rounding one column after the other


# %% tags=["gptq"]
@torch.no_grad()
def gptq(w: Tensor, x: Tensor, bits: int, damping: float = 0.01) -> Tensor:
    """Weights (O, n) rounded so that w x changes little for the rows x (rows, n).

    Frantar et al. 2022, algorithm 1, in blocks of one column: the columns that are not
    rounded yet make up for the error of this one. One scale a row.
    """
    w = w.detach().clone()
    low, high = signed(bits, full=True)
    scale = symmetric(w.abs().amax(1), low, high)
    hessian = x.T @ x
    hessian += (
        damping * hessian.diag().mean() * torch.eye(len(hessian), device=x.device)
    )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse, upper=True)
    done = torch.zeros_like(w)
    for i in range(w.shape[1]):
        done[:, i] = quantise(w[:, i], scale, 0, low, high) * scale
        missed = (w[:, i] - done[:, i]) / upper[i, i]
        w[:, i:] -= missed[:, None] * upper[i, i:]
    return done


def output_error(w: Tensor, other: Tensor, x: Tensor) -> float:
    """Squared difference of x w' and x other', relative to that of x w' from zero."""
    y = x @ w.T
    return ((x @ other.T - y).square().sum() / y.square().sum()).item()


def in_four_bits(w: Tensor, x: Tensor, fresh: Tensor) -> dict[str, float]:
    """Errors on fresh rows of three ways to round; x are the rows that GPTQ sees."""
    row = quantise_weight(w, 4, "channel", full=True).floats()
    groups = quantise_weight(w, 4, 32, full=True).floats()
    ways = {"nearest": row, "nearest, groups of 32": groups, "GPTQ": gptq(w, x, 4)}
    return {name: output_error(w, low, fresh) for name, low in ways.items()}


# %% tags=["gptq-run"]
read = [model.encoder.layer[depth].intermediate.dense for depth in (0, 5)]
many = first_words(lines.validation.split("\n"), tokeniser).to(device)
far = first_words(lines.test.split("\n"), tokeniser).to(device)
missed = []
for number in SEEDS:
    seed(number)
    given = inputs_of(read, model, many[torch.randperm(len(many))[:64]])
    fresh = inputs_of(read, model, far[torch.randperm(len(far))[:32]])
    for layer, *x in zip(read, given, fresh):
        missed.append(in_four_bits(layer.weight.detach(), *x))

# %% tags=["gptq-table"]
errors = {name: [100 * one[name] for one in missed] for name in missed[0]}
claim(max(errors["GPTQ"]) < 0.6 * min(errors["nearest"]), "GPTQ errs less")
groups = errors["nearest, groups of 32"]
claim(max(errors["GPTQ"]) < min(groups), "and less than groups of 32")
claim(max(groups) < 0.7 * min(errors["nearest"]), "groups err less than rows")
rows = []
for name, found in errors.items():
    bits = 5 if "groups" in name else 4 + 32 / 384
    rows.append((name, f"{bits:.2f}", spread(found, ".2f")))
table(rows, ("rounding", "bits a weight, scales too", "error of the output, %"))

# %% [markdown]
# ## The library: torchao


# %% tags=["torchao"]
theirs = {name: copy.deepcopy(model) for name in ("int8", "int4")}
quantize_(theirs["int8"].encoder, Int8WeightOnlyConfig(set_inductor_config=False))
quantize_(theirs["int4"].encoder, IntxWeightOnlyConfig(torch.int4, PerGroup(32)))


# %% tags=["same-weights"]
def same_weights(model, other, bits: int, way) -> tuple[int, int]:
    """Integers and scales of all layers, and how many of them differ from torchao's."""
    count = 0
    differ = 0
    for ours, layer in zip(linears(model), linears(other)):
        quantised = quantise_weight(ours.weight, bits, way, full=True)
        found = (quantised.integers.flatten(), quantised.scale.flatten())
        wanted = (layer.weight.qdata.flatten(), layer.weight.scale.flatten())
        for a, b in zip(found, wanted):
            count += a.numel()
            differ += int((a != b).sum())
    return count, differ


def same_training(bits: int) -> tuple[float, float, int, int]:
    """torchao's layer for training against ours, one scale a row.

    Largest difference of outputs, and of gradients where the integer is no end of the
    range; the number of weights at the ends, and how many get no gradient there.
    """
    seed(0)
    x = torch.randn(8, 64)
    ours = nn.Linear(64, 32)
    other = nn.Sequential(copy.deepcopy(ours))
    q = quantise_weight(ours.weight, bits, "channel", full=True).integers
    config = IntxFakeQuantizeConfig(getattr(torch, f"int{bits}"), "per_channel")
    quantize_(other, QATConfig(weight_config=config, step="prepare"))
    rule = Rounded(bits, "channel", full=True)
    parametrize.register_parametrization(ours, "weight", rule)
    outputs = ours(x), other(x)
    for y in outputs:
        y.square().sum().backward()
    own = ours.parametrizations.weight.original.grad
    their = other[0].weight.grad
    low, high = signed(bits, full=True)
    ends = (q == low) | (q == high)
    inside = checks.deviation(own[~ends], their[~ends])
    missing = int((their[ends] == 0).sum())
    return checks.deviation(*outputs), inside, int(ends.sum()), missing


# %% tags=["ort"]
def like_ort(inside: Tensor, filled: Tensor, levels: int) -> Tensor:
    """The same as ONNX Runtime has it: shares are rounded down, empty bins filled.

    Bins beyond a whole number to each level count in the last one and stay empty.
    """
    width = len(inside) // levels
    number = filled[: levels * width].view(levels, width).sum(1, keepdim=True)
    total = inside[: levels * width].view(levels, width).sum(1, keepdim=True)
    total[-1] += inside[levels * width :].sum()
    shares = (total / number.clamp_min(1)).floor().expand(-1, width)
    return F.pad(shares.flatten(), (0, len(inside) - levels * width))


def two_sided(x: Tensor, bins: int, levels: int = 128) -> tuple[float, float, float]:
    """ONNX Runtime's entropy threshold on a histogram from -max to max, and ours.

    Between them stands how much its divergence, by its rules, is above the least.
    """
    widest = x.abs().max().item()
    counts, edges = np.histogram(x.numpy(), bins, range=(-widest, widest))
    collector = HistogramCollector("entropy", False, bins, levels, 99.9, "")
    far = np.float64(math.inf)
    chosen = collector.get_entropy_threshold((counts, edges, -far, far), levels)[1]
    middle = bins // 2
    reach = range(levels // 2, middle + 1)
    stops = [min(middle + i + 1, bins) for i in reach]
    counts = torch.from_numpy(counts)
    spans = [(middle - i, stop, levels) for i, stop in zip(reach, stops)]
    theirs = [divergence(counts, *span, like_ort) for span in spans]
    place = stops.index(int(np.searchsorted(edges, chosen)))
    found = [divergence(counts, *span) for span in spans]
    own = float(edges[stops[int(np.argmin(found))]])
    return float(chosen), theirs[place] - min(theirs), own


# %% tags=["calibration-run"]
seed(0)
heavy = torch.distributions.StudentT(3.0).sample((20_000,))
layer = model.encoder.layer[5].output.dense
read_last = inputs_of([layer], model, sentences)[0].cpu()
shown = {"Student": heavy, "MiniLM": read_last.flatten()[:200_000]}
cuts = {(name, b): thresholds(x, b) for name, x in shown.items() for b in (8, 4)}

# %% tags=["calibration-table"]
lost = {}
for way, case in product(cuts["Student", 8], cuts):
    lost[way, case] = 100 * error(shown[case[0]], cuts[case][way], case[1])
rows = []
for way in cuts["Student", 8]:
    row = [f"{lost[way, case]:.2f}" for case in cuts]
    rows.append((way, f"{cuts['Student', 8][way]:.1f}", *row))
table(rows, ("cut at", "Student: cut", "8 bits", "4 bits", "MiniLM: 8 bits", "4 bits"))

# %% tags=["calibration-claims"]
for name in shown:
    best = lost["least squares", (name, 4)]
    claim(lost["largest", (name, 4)] > 3 * best, f"{name}, 4 bits: largest loses")
    for way in ("99.9 %", "entropy"):
        whole_range = lost["largest", (name, 8)]
        claim(lost[way, (name, 8)] > 1.5 * whole_range, f"{name}, 8 bits: {way} loses")
claim(
    lost["entropy", ("MiniLM", 4)] > 5 * lost["least squares", ("MiniLM", 4)], "MiniLM"
)
order = [cuts["Student", 4]["least squares"]]
order += [cuts["Student", 8][way] for way in ("99.9 %", "entropy", "least squares")]
claim(order == sorted(order), "the lines of the figure stand in this order")
claim(order[-1] > 0.8 * cuts["Student", 8]["largest"], "the last close to the largest")
record("entropy.four", lost["entropy", ("MiniLM", 4)])
record("least.four", lost["least squares", ("MiniLM", 4)])
chosen, _, ours = two_sided(heavy, 513)
record("ort.cut", chosen)
record("ours.cut", ours)
record("entropy.cut", cuts["MiniLM", 4]["entropy"])
record("largest.cut", cuts["MiniLM", 4]["largest"])

# %% tags=["cuts-figure"] alt="Histogram of the sizes of 20,000 numbers with heavy tails, counts on a logarithmic scale: a steep peak at 0, single numbers far out. Upright lines mark cuts, from left to right: least squares for 4 bits, 99.9 per cent, entropy for 8 bits, and least squares for 8 bits close to the largest number."
_, axes = plt.subplots(figsize=(5, 2.8))
axes.hist(heavy.abs().numpy(), 120, color=plots.GRID, log=True)
marks = (
    ("least squares, 4 bits", cuts["Student", 4]["least squares"], 0.97),
    ("99.9 %", cuts["Student", 8]["99.9 %"], 0.82),
    ("entropy, 8 bits", cuts["Student", 8]["entropy"], 0.67),
    ("least\nsquares,\n8 bits", cuts["Student", 8]["least squares"], 0.5),
)
for (words, place, height), colour in zip(marks, plots.COLOURS):
    axes.axvline(place, ymax=height, color=colour, linewidth=1.5)
    left = place > 25
    where = {"transform": axes.get_xaxis_transform(), "va": "top"}
    side = "right" if left else "left"
    axes.text(
        place + (-0.4 if left else 0.4), height, words, color=colour, ha=side, **where
    )
axes.set(xlabel="size of a number", ylabel="numbers", ylim=(0.7, 8000))
axes.set_axisbelow(True)

# %% [markdown]
# ## Equal to others


# %% tags=["equalities"]
def against_operators() -> list[tuple[str, int, int]]:
    """Our rounding against PyTorch's operators: what, numbers, how many differ."""
    seed(0)
    x = torch.randn(10_000)
    w = torch.randn(64, 100)
    scale, zero = affine(x.min(), x.max(), 0, 255)
    own = dequantise(quantise(x, scale, zero, 0, 255), scale, zero)
    other = torch.fake_quantize_per_tensor_affine(x, scale, zero.int(), 0, 255)
    rows = [("fake_quantize_per_tensor_affine", len(x), int((own != other).sum()))]
    own = quantise_weight(w, 8, "channel")
    zeros = torch.zeros(64, dtype=torch.int32)
    how = (own.scale[:, 0], zeros, 0, -127, 127)
    other = torch.fake_quantize_per_channel_affine(w, *how)
    differ = int((own.floats() != other).sum())
    return [*rows, ("fake_quantize_per_channel_affine", w.numel(), differ)]


# %% tags=["equalities-table"]
rows = against_operators()
for name, way in (("int8", "channel"), ("int4", 32)):
    found = same_weights(model, theirs[name], int(name[3:]), way)
    rows.append((f"torchao, {name}, integers and scales of MiniLM", *found))
rows.append(("two layers in loops over Python's integers", looped, 0))
excess = [
    two_sided(x, 257)[1] for x in (heavy, heavy.relu(), read_last.flatten()[:9999])
]
claim(max(excess) < 1e-3, "ONNX Runtime chooses what our formula by its rules chooses")
claim(all(row[2] == 0 for row in rows), "no number differs")
rows.append(("ONNX Runtime's entropy, by its rules", 3, sum(e > 1e-3 for e in excess)))
table(rows, ("compared with", "numbers", "differ"))

# %% tags=["torchao-claims"]
for name, kind in (("int8", (8, "channel")), ("int4", (4, 32))):
    same = checks.deviation(coarse[kind], vectors(theirs[name], sentences))
    claim(same < 1e-4, f"{name}: the vectors of the sentences are equal")
output, gradient, ends, missing = same_training(4)
claim(output < 1e-5 and gradient < 1e-5, "torchao's training layer equals ours inside")
record("ends", ends)
record("ends.missing", missing)
record("version.torchao", metadata.version("torchao"))
record("version.torch", torch.__version__.split("+")[0])

# %% [markdown]
# ## Bytes


# %% tags=["bytes"]
def as_float16(network: Network) -> Network:
    """A copy with weights as float16 keeps them."""
    network = copy.deepcopy(network)
    for layer in weighted(network):
        layer.weight.data = layer.weight.detach().half().float()
    return network


def size(layers: list[nn.Module], bits: int, way=None) -> int:
    """Bytes of weights of so many bits, of their scales and biases as float32."""
    total = 0
    for layer in layers:
        scales = len(blocks(layer.weight, way)) if way else 0
        floats = scales + layer.bias.numel()
        total += layer.weight.numel() * bits // 8 + 4 * floats
    return total


# %% tags=["bytes-table"]
layers = weighted(plain[0])
halves = [100 * training.evaluate(as_float16(network), test) for network in plain]
rows = [("float32", size(layers, 32), spread(start.tolist(), ".1f"))]
rows.append(("float16", size(layers, 16), spread(halves, ".1f")))
for bits, way in ((8, "tensor"), (8, "channel"), *((4, way) for way in WAYS)):
    name = f"groups of {way}" if way == 16 else f"per {way}"
    found = accuracy[way][:, at[bits]].tolist()
    rows.append((f"{bits} bits {name}", size(layers, bits, way), spread(found, ".1f")))
table(rows, ("weights", "bytes", "accuracy, %"))

# %% tags=["minilm-table"]
all_layers = linears(model)
claim(len(all_layers) == 36, "36 linear layers")
rows = [("float32", size(all_layers, 32), "1.0000", "100 of 100")]
for bits, way in KINDS:
    name = f"groups of {way}" if way == 32 else f"per {way}"
    near = f"{100 * kept[bits, way]:.0f} of 100"
    shared = f"{cosine[bits, way]:.4f}"
    rows.append((f"{bits} bits, {name}", size(all_layers, bits, way), shared, near))
claim(kept[8, "channel"] > 0.9, "8 bits keep nine of ten neighbours")
claim(cosine[4, 32] > cosine[4, "channel"] + 0.01, "groups are nearer at 4 bits")
table(rows, ("weights", "bytes", "cosine", "same neighbour"))

# %% tags=["pack-run"]
four = quantise_weight(all_layers[0].weight, 4, 32, full=True).integers
packed = pack(four)
claim(torch.equal(unpack(packed), four), "unpacked, the integers are the same")
claim(packed.numel() * 2 == four.numel(), "two to a byte")

# %% [markdown]
# ## Exercises


# %% tags=["solution-1"]
def share_of_twelfth(w: Tensor, bits: int) -> float:
    """Mean squared error of rounding, in twelfths of a squared step."""
    quantised = quantise_weight(w, bits, "channel")
    step = quantised.scale
    missed = blocks(w.detach() - quantised.floats(), "channel")
    return ((missed / step).square().mean() * 12).item()


# %% tags=["solution-1-table"]
w = all_layers[0].weight
shares = {bits: share_of_twelfth(w, bits) for bits in (8, 4, 2)}
claim(abs(shares[8] - 1) < 0.05, "8 bits: a twelfth of a squared step")
claim(abs(shares[4] - 1) < 0.05, "4 bits, too")
claim(shares[2] < 0.9, "2 bits: less than a twelfth")
nothing = quantise_weight(w, 2, "channel").integers == 0
claim(nothing.double().mean() > 0.6, "2 bits: most weights become 0")
table(
    [(b, f"{share:.3f}") for b, share in shares.items()], ("bits", "error, step² / 12")
)


# %% tags=["solution-2"]
@torch.no_grad()
def equalised(network: Network, rounds: int = 20) -> Network:
    """The same function, channels of neighbours equally wide (Nagel et al. 2019)."""
    network = copy.deepcopy(network)
    layers = weighted(network)
    for first, second in list(zip(layers, layers[1:])) * rounds:
        own = getattr(second, "groups", 1) > 1  # depthwise: channel i reads channel i
        there = second.weight if own else second.weight.transpose(0, 1)
        wide = [w.flatten(1).abs().amax(1) for w in (first.weight, there)]
        factor = torch.sqrt(wide[0] / wide[1])
        first.weight /= factor.view(-1, *[1] * (first.weight.ndim - 1))
        first.bias /= factor
        there *= factor.view(-1, *[1] * (there.ndim - 1))
    return network


# %% tags=["solution-2-table"]
even = [equalised(network) for network in plain]
moved = max(checks.deviation(b(some), a(some)) for a, b in zip(plain, even))
claim(moved < 1e-4, "equalised, the network computes the same")
rows = []
for bits in (4, 3):
    found = [100 * training.evaluate(rounded(n, bits, "tensor"), test) for n in even]
    old = one[:, at[bits]].tolist()
    claim(bits == 4 or min(found) > max(old) + 3, "3 bits: equalised, it gains")
    rows.append((bits, *(" ".join(f"{v:.1f}" for v in part) for part in (old, found))))
table(rows, ("bits", "per tensor, three seeds, %", "equalised, %"))


# %% tags=["solution-3"]
def dynamic(w: Tensor, x: Tensor) -> Tensor:
    """x w' from int8 times int8: a scale for each row of x, found when it comes."""
    weight = quantise_weight(w, 8, "channel")
    rows = quantise_weight(x, 8, "channel")
    total = rows.integers.double() @ weight.integers.double().T  # exact, as int32 is
    return (total * rows.scale * weight.scale.T).float()


# %% tags=["solution-3-table"]
w = layer.weight.detach().cpu()
rounded_x = quantise_weight(read_last, 8, "tensor").floats()
static = rounded_x @ quantise_weight(w, 8, "channel").floats().T
y = read_last @ w.T
scores = {"one scale for all rows": static, "one for each row": dynamic(w, read_last)}
rows = []
for name, found in scores.items():
    rows.append((name, ((found - y).square().sum() / y.square().sum()).item()))
claim(rows[0][1] > 2 * rows[1][1], "a scale for each row errs less")
table([(name, f"{1e4 * e:.2f}") for name, e in rows], ("inputs", "error, 1/10,000"))


# %% tags=["solution-4"]
class Learned(nn.Module):
    """Integers of few bits whose scale is learnt, too (Esser et al. 2020)."""

    def __init__(self, w: Tensor, bits: int):
        super().__init__()
        self.low, self.high = signed(bits)
        rows = w.detach().abs().flatten(1).mean(1)
        start = 2 * rows / math.sqrt(self.high)
        self.scale = nn.Parameter(start.view(-1, *[1] * (w.ndim - 1)))

    def forward(self, w: Tensor) -> Tensor:
        weaker = 1 / math.sqrt(w[0].numel() * self.high)  # of the scale's gradient
        scale = self.scale * weaker + (self.scale * (1 - weaker)).detach()
        x = (w / scale).clamp(self.low, self.high)
        return (x + (x.round() - x).detach()) * scale


# %% tags=["solution-4-run"]
learnt = []
for number, network in zip(SEEDS, plain):
    seed(number)
    network = copy.deepcopy(network)
    for part in weighted(network):
        parametrize.register_parametrization(part, "weight", Learned(part.weight, 2))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    training.fit(network, train, 1, optimizer)
    learnt.append(100 * training.evaluate(network, test))

# %% tags=["solution-4-table"]
straight = after["channel", 2].tolist()
claim(sum(learnt) > sum(straight) + 9, "2 bits: the mean with learnt scales is higher")
rows = [("widest weight", spread(straight, ".1f")), ("learnt", spread(learnt, ".1f"))]
table(rows, ("scale, 2 bits", "accuracy, %"))

# %% [markdown]
# ## What we saw
#
# - With 3 bits, a scale for each channel keeps much of what one scale for all loses.
# - A network runs on integers alone, and each layer is within one step of the floats.
# - torchao's integers and scales are ours, number by number.
