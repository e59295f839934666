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
# # NFNet
#
# Residual networks without any normalisation of the signal: the variance of each block
# predicted and measured, gradients clipped by the size of the weights, and the published
# networks counted and compared with a library. The text to it is the
# [chapter](../chapters/nfnet.rst), the paper is
# [Brock et al. 2021](https://arxiv.org/abs/2102.06171).

# %%
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import matplotlib.pyplot as plt
import timm
import torch
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import PROFILE, claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, drawing, images, plots

# %% [markdown]
# ## Scaled weights
#
# The weights of each output channel are shifted to mean 0 and divided so that their squares
# sum to 1, each time the layer is used.


# %% tags=["standardised"]
def standardised(weight: Tensor, gain: Tensor) -> Tensor:
    """Weights of each output channel with mean 0 and squares that sum to gain squared.

    Brock et al. 2021, equation 1, with timm's epsilon. (c_out, c_in, h, w) stays so.
    """
    shape = weight.shape[1:]
    unit = F.layer_norm(weight, shape, eps=1e-5)  # mean 0, variance 1
    return unit * (gain / math.sqrt(shape.numel()))


# %% tags=["standardised-run"]
weight = torch.tensor([1.0, 3.0, 5.0, 7.0]).view(1, 4, 1, 1)  # mean 4, variance 5
scaled = standardised(weight, torch.tensor(1.0)).flatten()

# %% tags=["standardised-by-hand"]
raw = weight.flatten()
rows = []
for name, values in (("raw", raw), ("scaled", scaled)):
    texts = [f"{value:.3f}" for value in (*values, abs(values.sum()))]
    rows.append((name, *texts, f"{values.square().sum():.3f}"))
claim(abs(scaled.sum().item()) < 1e-6, "scaled weights sum to zero")
claim(abs(scaled.square().sum().item() - 1) < 1e-5, "their squares sum to one")
table(rows, ("weights", "1", "2", "3", "4", "sum", "sum of squares"))


# %% tags=["kernel-figure"] alt="Three squares of 3x3 numbers joined by arrows. The first holds the weights 1 to 9, all blue. The second, minus the mean, holds -4 to 4: the first row and the next number orange, the centre white, the rest blue. The third, divided by the square root of 60, has the same colours and numbers from -0.52 to 0.52."
raw = torch.arange(1.0, 10.0).view(3, 3)
centred = raw - raw.mean()
last = centred / centred.square().sum().sqrt()
_, axes = plt.subplots(figsize=(5, 1.75))
axes.set(xlim=(-0.1, 13.2), ylim=(4.1, -0.1), aspect="equal")
axes.axis("off")
steps = ((raw, "weights", ".0f"), (centred, "minus the mean", ".0f"))
for place, (square, name, form) in enumerate((*steps, (last, "divided by √60", ".2f"))):
    left = 4.9 * place
    for index, value in enumerate(square.flatten().tolist()):
        corner = (left + index % 3, index // 3)
        strength = 0.6 * abs(value) / square.abs().max().item()
        colour = plots.COLOURS[0] if value > 0 else plots.COLOURS[1]
        face = (colour, strength)
        axes.add_patch(plt.Rectangle(corner, 1, 1, facecolor=face, ec=plots.QUIET))
        middle = {"ha": "center", "va": "center", "fontsize": 9}
        axes.text(corner[0] + 0.5, corner[1] + 0.5, f"{value:{form}}", **middle)
    axes.text(left + 1.5, 3.6, name, ha="center", va="center", fontsize=10)
    if place:
        axes.annotate(
            "", (left - 0.3, 1.5), (left - 1.6, 1.5), arrowprops=drawing.ARROW
        )
claim(centred.square().sum().item() == 60, "the squares of -4 to 4 sum to 60")


# %% tags=["scaled-conv"]
class ScaledConv2d(nn.Conv2d):
    """A convolution with standardised weights and a learnt gain for each channel."""

    def __init__(self, c_in: int, c_out: int, size: int, *, stride=1, groups=1):
        super().__init__(c_in, c_out, size, stride, padding=size // 2, groups=groups)
        self.gain = nn.Parameter(torch.ones(c_out, 1, 1, 1))
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)
        weight = standardised(self.weight, self.gain)
        return F.conv2d(
            x, weight, self.bias, self.stride, self.padding, groups=self.groups
        )


# %% tags=["scaled-conv-shape"]
ScaledConv2d(8, 16, 3, stride=2)(torch.randn(5, 8, 12, 12)).shape

# %% [markdown]
# ## Scaled activations
#
# A ReLU takes a part of the variance; a constant gives it back.


# %% tags=["gamma"]
def gamma_of(function: Callable) -> float:
    """1 / deviation of function(z) for a standard normal z, by a sum over a grid."""
    z = torch.linspace(-12, 12, 240_001, dtype=torch.float64)
    weights = torch.exp(-z.square() / 2)
    weights = weights / weights.sum()
    mean = (weights * function(z)).sum()
    variance = (weights * (function(z) - mean).square()).sum()
    return variance.rsqrt().item()


# %% tags=["gamma-run"]
LIBRARY = {"ReLU": 1.7139588594436646, "GELU": 1.7015043497085571}  # nfnets/base.py
exact = {"ReLU": gamma_of(torch.relu), "GELU": gamma_of(F.gelu)}
rows = []
for name, value in exact.items():
    record(f"gamma.{name}", value)
    record(f"gamma.{name}.library", LIBRARY[name])
    rows.append((name, f"{value:.5f}", f"{LIBRARY[name]:.5f}"))
formula = math.sqrt(2 / (1 - 1 / math.pi))
claim(abs(exact["ReLU"] - formula) < 1e-6, "for ReLU the sum gives the paper's formula")
off = max(abs(LIBRARY[name] / value - 1) for name, value in exact.items())
claim(1e-4 < off < 1e-3, "the authors' constants are off by less than a thousandth")
table(rows, ("activation", "exact", "authors' code"))


# %% tags=["scaled-activation"]
class ScaledActivation(nn.Module):
    """gamma * function(x): variance 1 in, variance 1 out."""

    def __init__(self, function: Callable, gamma: float):
        super().__init__()
        self.function = function
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * self.function(x)


def scaled_relu(channels: int) -> nn.Module:
    """gamma as the paper's formula has it; only batch norm asks for the channels."""
    return ScaledActivation(torch.relu, math.sqrt(2 / (1 - 1 / math.pi)))


def scaled_gelu(channels: int) -> nn.Module:
    """gamma as the authors' code has it; the published weights were trained with it."""
    return ScaledActivation(F.gelu, 1.7015043497085571)


# %% [markdown]
# ## Blocks
#
# The input of each branch is divided by the deviation that is expected there.


# %% tags=["blocks"]
ALPHA = 0.2  # of each branch this share is added


@dataclass(frozen=True)
class Recipe:
    """What all blocks of a network have in common."""

    branch: Callable  # (recipe, c_in, c_out, stride=...) -> module
    conv: Callable = ScaledConv2d
    activation: Callable = scaled_relu
    alpha: float = ALPHA
    growth: float = ALPHA**2  # of the variance, expected per block; 0 leaves beta at 1
    gain: float = 0.0  # SkipInit's scalar starts here


class NormFreeBlock(nn.Module):
    """h + alpha * gain * branch(activation(h) / beta), section 3."""

    def __init__(self, recipe: Recipe, channels: int, *, variance: float):
        super().__init__()
        self.alpha = recipe.alpha
        self.beta = variance**0.5
        self.gain = nn.Parameter(torch.tensor(recipe.gain))
        self.activation = recipe.activation(channels)
        self.branch = recipe.branch(recipe, channels, channels, stride=1)

    def forward(self, h: Tensor) -> Tensor:
        x = self.activation(h) / self.beta
        return h + self.alpha * self.gain * self.branch(x)  # (B, C, H, W)


class TransitionBlock(nn.Module):
    """shortcut(x) + alpha * gain * branch(x), x = activation(h) / beta.

    First of a stage: its shortcut starts behind the activation, averages and projects.
    """

    def __init__(self, recipe: Recipe, c_in, c_out, *, stride: int, variance: float):
        super().__init__()
        self.alpha = recipe.alpha
        self.beta = variance**0.5
        self.gain = nn.Parameter(torch.tensor(recipe.gain))
        self.activation = recipe.activation(c_in)
        pool = nn.AvgPool2d(stride, stride, ceil_mode=True)
        self.shortcut = nn.Sequential(pool, recipe.conv(c_in, c_out, 1))
        self.branch = recipe.branch(recipe, c_in, c_out, stride=stride)

    def forward(self, h: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)
        x = self.activation(h) / self.beta
        return self.shortcut(x) + self.alpha * self.gain * self.branch(x)


# %% tags=["stage"]
def stage(
    recipe: Recipe, depth: int, *, c_in, c_out, stride=1, before=1.0
) -> nn.Sequential:
    """A transition and depth - 1 blocks; `before` is the variance expected in front."""
    blocks = [TransitionBlock(recipe, c_in, c_out, stride=stride, variance=before)]
    for n in range(1, depth):
        blocks.append(NormFreeBlock(recipe, c_out, variance=1 + n * recipe.growth))
    return nn.Sequential(*blocks)


def two_convolutions(recipe: Recipe, c_in: int, c_out: int, *, stride: int):
    """3x3, activation, 3x3: the branch of the small networks of this page."""
    first = recipe.conv(c_in, c_out, 3, stride=stride)
    return nn.Sequential(first, recipe.activation(c_out), recipe.conv(c_out, c_out, 3))


# %% tags=["stage-shape"]
small = stage(Recipe(two_convolutions), 3, c_in=8, c_out=16, stride=2)
small(torch.randn(5, 8, 12, 12)).shape


# %% tags=["drawing"]
def draw_block(axes, left: float, title: str, *, transition: bool) -> None:
    """Draw a block top to bottom; the path at the right is the shortcut."""
    x = left + 0.75
    places = ("h", "scaled ReLU", "÷ β", "branch", "· gain · α", "+")
    nodes = {"title": diagrams.Node(x, 0.15, title, weight="bold")}
    for row, text in enumerate(places):
        width = 1.3 if text == "branch" else 0
        nodes[text] = diagrams.Node(x, 0.5 + 0.52 * row, text, width=width)
    nodes["end"] = diagrams.Node(x, 3.5)
    names = list(nodes)[1:]
    arrows = list(zip(names, names[1:]))
    right = left + 1.65
    start = 1.8 if transition else 0.76
    colour = plots.COLOURS[1]
    words = "pool,\n1×1" if transition else "identity"
    middle = 2.3 if transition else 1.8
    nodes["words"] = diagrams.Node(right + 0.42, middle, words, colour=colour)
    shortcuts = [((x, start), (right, start), (right, 3.1), "+")]
    diagrams.draw(axes, nodes, arrows, shortcuts)


# %% tags=["blocks-figure"] alt="Two columns. Both run from h through scaled ReLU, divided by beta, a box named branch, times gain and alpha, to a plus sign. At the left, named block, an arrow named identity leaves above the scaled ReLU and meets the plus sign. At the right, named transition, the arrow leaves only below the division by beta and is named pool, 1x1."
axes = diagrams.sheet(3.65)
draw_block(axes, 0.1, "block", transition=False)
draw_block(axes, 2.55, "transition", transition=True)

# %% [markdown]
# ## Variance by depth
#
# Two stages of six blocks with fresh weights, fed with noise of variance 1. Beside the
# recipe of the page: the same blocks with He's weights and nothing scaled, and with batch
# norm in front of each ReLU.


# %% tags=["others"]
class HeConv2d(nn.Conv2d):
    """A convolution without bias, weights of variance 2 / fan-in (He et al. 2015)."""

    def __init__(self, c_in: int, c_out: int, size: int, *, stride=1):
        super().__init__(c_in, c_out, size, stride, padding=size // 2, bias=False)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")


def relu(channels: int) -> nn.Module:
    return nn.ReLU()


def norm_relu(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


SCALED = Recipe(two_convolutions, gain=1.0)
PLAIN = Recipe(two_convolutions, HeConv2d, relu, alpha=1.0, growth=0.0, gain=1.0)
NORMED = replace(PLAIN, activation=norm_relu)


@torch.no_grad()
def variances(blocks: nn.Module, h: Tensor) -> list[float]:
    """After each block the variance over images and pixels, mean over the channels."""
    found = []
    for block in blocks:
        h = block(h)
        found.append(h.var((0, 2, 3), correction=0).mean().item())
    return found


def two_stages(recipe: Recipe, *, width: int = 64, depth: int = 6) -> nn.Sequential:
    """Two stages on a map of one size, the second of twice the channels."""
    first = stage(recipe, depth, c_in=width, c_out=width)
    before = 1 + depth * recipe.growth
    second = stage(recipe, depth, c_in=width, c_out=2 * width, before=before)
    return nn.Sequential(*first, *second)


# %% tags=["variance-run"]
SEEDS = (0, 1, 2)
RECIPES = {"plain": PLAIN, "batch norm": NORMED, "scaled": SCALED}
predicted = [1 + n * ALPHA**2 for n in (*range(1, 7), *range(1, 7))]
measured = {}
for name, recipe in RECIPES.items():
    for number in SEEDS:
        seed(number)
        h = torch.randn(8, 64, 16, 16)
        measured[name, number] = variances(two_stages(recipe), h)

# %% tags=["variance-figure"] alt="Variance, on a logarithmic axis from 1 to 1000, against the block, 1 to 12. The line named plain rises steadily to several hundred. The line named batch norm rises to about 5 at block 6, falls back to about 1.4 at block 7 and rises again. The line named scaled stays close to 1, on the dots of the prediction, which rise to 1.24, fall back at block 7 and rise again."
_, axes = plt.subplots()
blocks = range(1, 13)
ends = {}
colours = (plots.COLOURS[1], plots.COLOURS[2], plots.COLOURS[0])
for name, colour in zip(RECIPES, colours):
    runs = torch.tensor([measured[name, number] for number in SEEDS])
    ends[name] = plots.seed_band(axes, blocks, runs, colour)
axes.plot(blocks, predicted, "o", color=plots.INK, markersize=4)
axes.set(xlabel="block", ylabel="variance", yscale="log", xticks=(1, 6, 7, 12))
plots.label_ends(axes, ends, colours)

# %% tags=["variance-claims"]
lasts = {}
for name in RECIPES:
    lasts[name] = [measured[name, number][-1] for number in SEEDS]
    record_spread(f"variance.{name}", lasts[name])
    sixth = [measured[name, number][5] for number in SEEDS]
    record_spread(f"sixth.{name}", sixth)
    record_spread(f"seventh.{name}", [measured[name, number][6] for number in SEEDS])
record("predicted", predicted[-1])
worst = 0.0
for number in SEEDS:
    for found, expected in zip(measured["scaled", number], predicted):
        worst = max(worst, abs(found / expected - 1))
    plain = measured["plain", number]
    words = "in each plain block the variance rises"
    claim(all(b > a for a, b in zip(plain, plain[1:])), words)
record("worst", worst)
claim(worst < 0.1, "with scaled weights each block is within a tenth of the prediction")
for number in SEEDS:
    seventh = measured["batch norm", number][6]
    claim(1.3 < seventh < 1.45, "with batch norm it is about 1.4 at block 7")
words = "plain, batch norm and scaled: the last variances lie apart over the seeds"
claim(min(lasts["plain"]) > 20 * max(lasts["batch norm"]), words)
claim(min(lasts["batch norm"]) > 3 * max(lasts["scaled"]), words)
for name in ("batch norm", "scaled"):
    falls = [measured[name, number][5] > measured[name, number][6] for number in SEEDS]
    claim(
        all(falls), f"with {name} the variance falls back where the second stage begins"
    )


# %% tags=["circular"]
class CircularConv2d(ScaledConv2d):
    """Pads with the other side of the map in place of zeros."""

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H, W)
        p = self.padding[0]
        x = F.pad(x, (p, p, p, p), mode="circular")
        return F.conv2d(x, standardised(self.weight, self.gain), self.bias)


# %% tags=["circular-run"]
around = []
zeros = []
for number in SEEDS:
    seed(number)
    h = torch.randn(8, 64, 16, 16)
    found = variances(two_stages(replace(SCALED, conv=CircularConv2d)), h)
    around.append(found[5])
    zeros.append(measured["scaled", number][5])
record_spread("circular", around)
record_spread("zeros", zeros)
for number in SEEDS:
    words = "without zeros at the border more variance is left, seed by seed"
    claim(around[number] > zeros[number], words)
    words = "and it is closer to the prediction, seed by seed"
    claim(abs(around[number] - 1.24) < abs(zeros[number] - 1.24), words)
off = max(abs(value / 1.24 - 1) for value in around)
claim(off < 0.03, "without zeros at the border it is within 3 % of 1.24")

# %% [markdown]
# ## Clip by the size of the weights
#
# For each output channel the gradient may be at most a small share of the weights.


# %% tags=["clip"]
def unit_norms(t: Tensor) -> Tensor:
    """Norm of what belongs to each output channel; of a vector or scalar, of it all."""
    axes = tuple(range(1, t.ndim)) or None
    return torch.linalg.vector_norm(t, dim=axes, keepdim=True)  # (c_out, 1, 1, 1)


@torch.no_grad()
def clip_gradients(parameters, share: float) -> None:
    """Shorten gradients longer than a share of their weights: paper, equation 3."""
    for p in parameters:
        longest = share * unit_norms(p).clamp(min=1e-3)
        norms = unit_norms(p.grad).clamp(min=1e-6)
        p.grad *= (longest / norms).clamp(max=1)


# %% tags=["clip-run"]
p = nn.Parameter(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0003, 0.0004]]))
p.grad = torch.tensor([0.03, 0.04]).repeat(3, 1)  # the same for all three rows
before = unit_norms(p.grad).flatten().tolist()
clip_gradients([p], 0.01)
after = unit_norms(p.grad).flatten().tolist()

# %% tags=["clip-by-hand"]
rows = []
for weights, long, short in zip(p.detach(), before, after):
    size = torch.linalg.vector_norm(weights).item()
    texts = [f"{value:g}" for value in weights.tolist()]
    rows.append((", ".join(texts), f"{size:g}", f"{long:.2g}", f"{short:.2g}"))
expected = (0.05, 0.005, 0.00001)
claim(
    max(abs(a / b - 1) for a, b in zip(after, expected)) < 1e-5,
    "the three rows are clipped as by hand",
)
table(rows, ("weights", "norm", "norm of gradient", "clipped"))

# %% tags=["clip-figure"] alt="Norm of the gradient against norm of the weights, both axes logarithmic. A line, the longest gradient allowed, is flat at 0.00001 up to a weight norm of 0.001 and rises from there. Three points at a height of 0.05: the one at weight norm 5 lies on the line and stays; arrows lead from the ones at 0.5 and at 0.0005 down to the line."
_, axes = plt.subplots(figsize=(5, 2.6))
sizes = torch.logspace(-4, 1, 60)
axes.plot(sizes, 0.01 * sizes.clamp(min=1e-3), color=plots.COLOURS[0])
for size, long, short in zip((5, 0.5, 0.0005), before, after):
    axes.plot(size, long, "o", color=plots.COLOURS[1])
    if short < 0.9 * long:
        arrow = drawing.ARROW | {"color": plots.COLOURS[1]}
        axes.annotate("", (size, short), (size, 0.8 * long), arrowprops=arrow)
axes.set(xscale="log", yscale="log", xlabel="norm of the weights", ylim=(5e-6, 0.4))
axes.set_ylabel("norm of the gradient")
axes.annotate("longest allowed", (3e-2, 5e-5), color=plots.COLOURS[0])
plt.show()

# %% tags=["clip-equal"]
seed(0)
pair = [ScaledConv2d(4, 6, 3), ScaledConv2d(4, 6, 3)]
checks.transplant(pair[0], pair[1])
x = torch.randn(2, 4, 5, 5)
for layer in pair:
    layer(x).square().mean().backward()
clip_gradients(pair[0].parameters(), 0.01)
adaptive_clip_grad(pair[1].parameters(), clip_factor=0.01)
off = []
for ours, theirs in zip(pair[0].parameters(), pair[1].parameters()):
    off.append(checks.deviation(ours.grad, theirs.grad))
record("clip.deviation", max(off))
claim(max(off) < 1e-6, "gradients are clipped as by timm")

# %% [markdown]
# ## Digits in large batches
#
# Two stages of three blocks, batches of 250 images, three learning rates; with batch norm,
# without, and without but clipped.


# %% tags=["digit-network"]
class DigitNetwork(nn.Module):
    """Stem, two stages of three blocks, mean, linear layer: (B, 1, H, W) -> (B, 10)."""

    def __init__(self, recipe: Recipe, *, width: int = 8, depth: int = 3):
        super().__init__()
        before = 1 + depth * recipe.growth
        self.stem = recipe.conv(1, width, 3, stride=2)
        self.stage1 = stage(recipe, depth, c_in=width, c_out=width)
        self.stage2 = stage(
            recipe, depth, c_in=width, c_out=2 * width, stride=2, before=before
        )
        self.activation = recipe.activation(2 * width)
        self.classifier = nn.Linear(2 * width, 10)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)  # (B, 8, H / 2, W / 2)
        h = self.stage1(h)  # (B, 8, H / 2, W / 2)
        h = self.stage2(h)  # (B, 16, H / 4, W / 4)
        return self.classifier(self.activation(h).mean((2, 3)))  # (B, 10)


# %% tags=["data"]
IMAGES = 3500 if PROFILE == "sample" else 50_000
data = images.digits(size=10)
train_part, validation, test = images.standardised(data, first=IMAGES)
record("images", len(train_part[1]))
record("validation", len(validation[1]))
parts = {"train": train_part, "validation": validation, "test": test}
table(
    [(name, *x.shape) for name, (x, _) in parts.items()], ("part", "N", "C", "H", "W")
)

# %% tags=["train"]
BATCH = 250
STEPS = 24


def train(network: nn.Module, part, *, rate: float, clip: Callable) -> list[float]:
    """SGD with Nesterov momentum; the rate rises for 30 % of the steps, then falls.

    Returns the largest ratio of gradient and weights of each step, before clipping.
    """
    x = part[0].to(device)
    y = part[1].to(device)
    learnt = [p for p in network.parameters() if p.requires_grad]
    last = len(list(network.classifier.parameters()))
    body = learnt[:-last]  # all but the last layer
    optimizer = torch.optim.SGD(learnt, lr=rate, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=STEPS + 1, pct_start=0.3, cycle_momentum=False
    )
    ratios = []
    for _ in range(STEPS):
        chosen = torch.randint(len(y), (BATCH,)).to(device)
        loss = F.cross_entropy(network(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        ratios.append(largest_ratio(body))
        clip(body)
        optimizer.step()
        schedule.step()
    return ratios


def leave(parameters) -> None:
    """Clip nothing."""


@torch.no_grad()
def largest_ratio(parameters) -> float:
    """Norm of gradient over norm of weights, of the output channel most in need."""
    largest = 0.0
    for p in parameters:
        if p.ndim == 4 and p[0].numel() > 1:  # kernels, not gains
            ratios = unit_norms(p.grad) / unit_norms(p).clamp(min=1e-3)
            ratios = ratios.nan_to_num(math.inf, posinf=math.inf)  # NaN, too
            largest = max(largest, ratios.max().item())
    return largest


@torch.no_grad()
def accuracy(network: nn.Module, part) -> float:
    """Fraction right; batch norm uses the statistics of each batch, as in training."""
    right = 0
    for x, y in zip(part[0].split(BATCH), part[1].split(BATCH)):
        right += (network(x.to(device)).argmax(1).cpu() == y).sum().item()
    return right / len(part[1])


# %% tags=["headline"]
RATES = (0.3, 1.0, 3.0)
SHARE = 0.003
SIDES = {
    "not clipped": (SCALED, leave),
    "clipped": (SCALED, partial(clip_gradients, share=SHARE)),
    "batch norm": (NORMED, leave),
}
scores = {}
held_out = {}  # on the validation digits, to choose a rate by
ratios = {}
for side, (recipe, clip) in SIDES.items():
    for rate in RATES:
        for number in SEEDS:
            seed(number)
            network = DigitNetwork(recipe).to(device)
            if recipe is NORMED:  # a pre-activation network has no such scalars
                for block in (*network.stage1, *network.stage2):
                    block.gain.requires_grad_(False)
            found = train(network, train_part, rate=rate, clip=clip)
            ratios[side, rate, number] = found
            held_out[side, rate, number] = accuracy(network, validation)
            scores[side, rate, number] = accuracy(network, test)

# %% tags=["rates-figure"] alt="Accuracy against the learning rate, 0.3, 1 and 3 on a logarithmic axis, mean of three seeds in a band from the smallest to the largest. The line named not clipped falls from about a third to 0.1. The line named clipped rises from below a third to above 0.7. The line named batch norm rises from about a half to about 0.7 at rate 1 and falls to below a half, in a wide band."
_, axes = plt.subplots()
ends = {}
for side, colour in zip(SIDES, (plots.COLOURS[1], plots.COLOURS[0], plots.COLOURS[2])):
    runs = torch.tensor([[scores[side, r, n] for r in RATES] for n in SEEDS])
    ends[side] = plots.seed_band(axes, RATES, runs, colour)
axes.set(xlabel="learning rate", ylabel="accuracy", xscale="log", ylim=(0, 1))
axes.set_xticks(RATES, [str(rate) for rate in RATES])
axes.minorticks_off()
colours = (plots.COLOURS[1], plots.COLOURS[0], plots.COLOURS[2])
plots.label_ends(axes, ends, colours)

# %% tags=["rates-table"]
record("steps", STEPS)
record("batch", BATCH)
record("limit", SHARE)
rows = []
for side in SIDES:
    texts = []
    for rate in RATES:
        values = [scores[side, rate, number] for number in SEEDS]
        record_spread(f"{side}.{rate:g}", values)
        texts.append(spread(values, ".0%"))
    rows.append((side, *texts))
table(rows, ("network", *(f"rate {rate:g}" for rate in RATES)))

# %% tags=["rates-claims"]
for rate, bound in ((1.0, 0.25), (3.0, 0.11)):
    highest = max(scores["not clipped", rate, number] for number in SEEDS)
    claim(highest < bound, f"not clipped, at rate {rate:g} below {bound:.0%}")
lows = [scores["not clipped", 0.3, n] for n in SEEDS]
clipped = [scores["clipped", 0.3, n] for n in SEEDS]
apart = min(lows) > max(clipped) or min(clipped) > max(lows)
claim(not apart, "at rate 0.3 clipped and not clipped are not told apart")
for rate in (1.0, 3.0):
    clipped = [scores["clipped", rate, number] for number in SEEDS]
    bare = [scores["not clipped", rate, number] for number in SEEDS]
    claim(min(clipped) > max(bare), f"clipped is ahead at rate {rate:g}, seeds apart")
best = {}
for side in SIDES:
    means = {r: sum(held_out[side, r, n] for n in SEEDS) / len(SEEDS) for r in RATES}
    best[side] = max(means, key=means.get)
    record(f"best.{side}", best[side])
    tested = {r: sum(scores[side, r, n] for n in SEEDS) for r in RATES}
    words = f"{side}: the test digits would have chosen the same rate"
    claim(max(tested, key=tested.get) == best[side], words)
claim(best["not clipped"] == 0.3, "not clipped, the smallest rate is the best of three")
claim(best["clipped"] == 3.0, "clipped, the largest rate is the best of three")
claim(best["batch norm"] == 1.0, "with batch norm the middle rate is the best of three")
normed = [scores["batch norm", 3.0, number] for number in SEEDS]
clipped = [scores["clipped", 3.0, number] for number in SEEDS]
claim(max(normed) < min(clipped), "at rate 3 batch norm is behind clipped, seeds apart")
top = {side: [scores[side, best[side], n] for n in SEEDS] for side in SIDES}
words = "each at its best rate, clipped is ahead of not clipped, seeds apart"
claim(min(top["clipped"]) > max(top["not clipped"]), words)
words = "each at its best rate, clipped and batch norm are not told apart"
apart = min(top["batch norm"]) > max(top["clipped"])
claim(not apart and min(top["clipped"]) < max(top["batch norm"]), words)

# %% [markdown]
# ## The published networks
#
# F0 to F6 have the same widths and 1 to 7 times the depths; the branch narrows to half the
# channels, has two grouped 3x3 convolutions and ends in squeeze-and-excitation.


# %% tags=["branch"]
def same_pad(x: Tensor, size: int, stride: int) -> Tensor:
    """Zeros so that ceil(H / stride) rows come out; an odd one goes below and right."""
    H, W = x.shape[2:]
    rows = (math.ceil(H / stride) - 1) * stride + size - H
    columns = (math.ceil(W / stride) - 1) * stride + size - W
    left = columns // 2
    top = rows // 2
    return F.pad(x, (left, columns - left, top, rows - top))


class StridedConv2d(ScaledConv2d):
    """A scaled convolution of stride 2 with the padding of the authors' code."""

    def __init__(self, c_in: int, c_out: int, size: int, *, groups=1):
        super().__init__(c_in, c_out, size, stride=2, groups=groups)
        self.padding = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, ceil(H / 2), ceil(W / 2))
        return super().forward(same_pad(x, self.kernel_size[0], 2))


class Gate(nn.Module):
    """Squeeze-and-excitation with half the channels, times 2 for the sigmoid."""

    def __init__(self, channels: int):
        super().__init__()
        self.narrow = nn.Conv2d(channels, channels // 2, 1)
        self.widen = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        weights = self.widen(torch.relu(self.narrow(means))).sigmoid()
        return 2 * weights * x  # (B, C, H, W)


def bottleneck(recipe: Recipe, c_in, c_out, *, stride: int, group=128) -> nn.Sequential:
    """1x1 to half the channels, two 3x3 in groups, 1x1, gate (section 5)."""
    c_mid = c_out // 2
    groups = c_mid // group
    down = StridedConv2d if stride == 2 else ScaledConv2d
    return nn.Sequential(
        recipe.conv(c_in, c_mid, 1),
        recipe.activation(c_mid),
        down(c_mid, c_mid, 3, groups=groups),
        recipe.activation(c_mid),
        recipe.conv(c_mid, c_mid, 3, groups=groups),
        recipe.activation(c_mid),
        recipe.conv(c_mid, c_out, 1),
        Gate(c_out),
    )


FNET = Recipe(bottleneck, activation=scaled_gelu)


# %% tags=["branch-shape"]
bottleneck(FNET, 256, 512, stride=2)(torch.randn(2, 256, 9, 9)).shape


# %% tags=["network"]
class Stem(nn.Module):
    """Four 3x3 convolutions, the first and the last of stride 2 (section 5)."""

    def __init__(self, recipe: Recipe, c_out: int):
        super().__init__()
        self.conv1 = StridedConv2d(3, c_out // 8, 3)
        self.conv2 = recipe.conv(c_out // 8, c_out // 4, 3)
        self.conv3 = recipe.conv(c_out // 4, c_out // 2, 3)
        self.conv4 = StridedConv2d(c_out // 2, c_out, 3)
        self.activation = recipe.activation(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.conv1(x))  # (B, c_out / 8, H / 2, W / 2)
        x = self.activation(self.conv2(x))
        x = self.activation(self.conv3(x))
        return self.conv4(x)  # (B, c_out, H / 4, W / 4)


class NFNet(nn.Module):
    """Stem, four stages, a last 1x1 convolution, mean, linear layer (table 1).

    (B, 3, H, W) -> (B, 1000).
    """

    def __init__(self, depths, *, widths=(256, 512, 1536, 1536), recipe=FNET):
        super().__init__()
        c = (widths[0] // 2, *widths)
        ends = [1 + depth * recipe.growth for depth in depths]  # behind each stage
        self.stem = Stem(recipe, c[0])
        self.stage1 = stage(recipe, depths[0], c_in=c[0], c_out=c[1])
        self.stage2 = stage(
            recipe, depths[1], c_in=c[1], c_out=c[2], stride=2, before=ends[0]
        )
        self.stage3 = stage(
            recipe, depths[2], c_in=c[2], c_out=c[3], stride=2, before=ends[1]
        )
        self.stage4 = stage(
            recipe, depths[3], c_in=c[3], c_out=c[4], stride=2, before=ends[2]
        )
        self.last = recipe.conv(c[4], 2 * c[4], 1)
        self.activation = recipe.activation(2 * c[4])
        self.classifier = nn.Linear(2 * c[4], 1000)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)  # (B, 128, H / 4, W / 4)
        h = self.stage1(h)  # (B, 256, H / 4, W / 4)
        h = self.stage2(h)  # (B, 512, H / 8, W / 8)
        h = self.stage3(h)  # (B, 1536, H / 16, W / 16)
        h = self.stage4(h)  # (B, 1536, H / 32, W / 32)
        h = self.activation(self.last(h))  # (B, 3072, H / 32, W / 32)
        return self.classifier(h.mean((2, 3)))  # (B, 1000)


DEPTHS = (1, 2, 6, 3)
TEST_SIZES = (256, 320, 352, 416, 512, 544, 576)  # of F0 to F6, table 1


def nfnet(number: int) -> NFNet:
    """F0 to F6: number + 1 times the depths of F0 (section 5)."""
    return NFNet([(number + 1) * depth for depth in DEPTHS])


# %% tags=["count"]
PAPER = (  # table 3: parameters in millions, multiply-accumulates in billions
    (71.5, 12.38),
    (132.6, 35.54),
    (193.8, 62.59),
    (254.9, 114.76),
    (316.1, 215.24),
    (377.2, 289.76),
    (438.4, 377.28),
)
rows = []
for number, side in enumerate(TEST_SIZES):
    with torch.device("meta"):
        network = nfnet(number)
        x = torch.empty(1, 3, side, side)
    parameters = counting.parameters(network)
    macs = counting.macs(network, x)
    record(f"F{number}.parameters", parameters)
    record(f"F{number}.macs", macs)
    millions, billions = PAPER[number]
    words = f"F{number} has the parameters of table 3, rounded"
    claim(abs(parameters / 1e6 - millions) < 0.05001, words)
    words = f"F{number} has the multiply-accumulates of table 3, rounded"
    claim(abs(macs / 1e9 - billions) < 0.00501, words)
    here = (f"{side}×{side}", parameters, f"{macs / 1e9:.3f}")
    rows.append((f"F{number}", *here, f"{millions} M", f"{billions} G"))
heads = ("network", "input", "parameters", "G MACs", "paper", "paper")
table(rows, heads)

# %% tags=["drawn"] alt="NFNet-F0 from top to bottom, with output shape and parameters at the right: an input of 3x256x256, the stem with 128 channels at 64 pixels a side, four stages with a loop past each, with 256, 512, 1536 and 1536 channels, the last convolution to 3072 channels at 8 pixels a side, and the linear layer to 1000."
with torch.device("meta"):
    network = nfnet(0)
    x = torch.empty(1, 3, 256, 256)
drawing.draw(network, x)

# %% [markdown]
# ## Equal to the library
#
# SkipInit starts every branch at zero, which would hide all that is in them: gains and
# biases get random values before the weights are copied.


# %% tags=["random-gains"]
@torch.no_grad()
def randomise_gains(model: nn.Module) -> nn.Module:
    """Give gains values around 1, biases values around 0; return the model."""
    for name, p in model.named_parameters():
        if name.endswith("gain"):
            p.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            p.normal_(0, 0.1)
    return model


# %% tags=["equal"]
NARROW = (32, 64, 96, 96)
NARROW_RECIPE = replace(FNET, branch=partial(bottleneck, group=16))
narrow = {"channels": NARROW, "stem_chs": 16, "group_size": 16, "num_features": 192}
rows = []
deviations = []
for name, arguments, how, side in (
    ("F0", {}, {}, 64),
    ("F0, an eighth or less of the channels", narrow, {"widths": NARROW}, 75),
):
    seed(0)
    theirs = randomise_gains(timm.create_model("dm_nfnet_f0", **arguments))
    recipe = NARROW_RECIPE if how else FNET
    with torch.device("meta"):
        ours = NFNet(DEPTHS, recipe=recipe, **how)
    ours.to_empty(device="cpu")
    checks.transplant(theirs, ours)
    deviations.append(checks.same_outputs(ours, theirs, torch.randn(1, 3, side, side)))
    rows.append((name, "timm dm_nfnet_f0", f"{deviations[-1]:.1e}"))
record("deviation", max(deviations))
table(rows, ("network", "reference", "largest difference"))

# %% [markdown]
# ## Look inside
#
# The largest ratio of gradient and weights in each step of the runs above, before it is
# clipped.

# %% tags=["ratio-figure"] alt="Largest ratio of gradient and weights, on a logarithmic axis, against the step, 1 to 24, three lines for each side. The lines named not clipped leave the top of the plot, 1000, before the last step. The lines named clipped stay below 3. A dotted line near the bottom marks the allowed ratio, 0.003."
_, axes = plt.subplots()
ends = {}
for side, colour in (("not clipped", plots.COLOURS[1]), ("clipped", plots.COLOURS[0])):
    for number in SEEDS:
        values = torch.tensor(ratios[side, 3.0, number]).clamp(max=1e4)
        axes.plot(range(1, STEPS + 1), values, color=colour, linewidth=1)
    gone = next((n for n, value in enumerate(values, 1) if value > 600), STEPS)
    ends[side] = (gone, min(values[gone - 1].item(), 600))
axes.axhline(SHARE, color=plots.QUIET, linestyle=":")
axes.set(xlabel="step", ylabel="largest ratio", yscale="log", ylim=(1e-3, 1e3))
plots.label_ends(axes, ends, (plots.COLOURS[1], plots.COLOURS[0]))

# %% tags=["ratio-claims"]
peaks = {}
for side in ("not clipped", "clipped"):
    peaks[side] = [max(ratios[side, 3.0, number]) for number in SEEDS]
record_spread("peak.clipped", peaks["clipped"])
claim(
    min(peaks["not clipped"]) > max(peaks["clipped"]),
    "at rate 3 the largest ratio of all steps is larger without clipping, seeds apart",
)
lost = [ratios["not clipped", 3.0, number].index(math.inf) for number in SEEDS]
record("lost.first", min(lost) + 1)
record("lost.last", max(lost) + 1)
claim(max(lost) < STEPS - 1, "at rate 3 each run that is not clipped overflows")
words = "a clipped gradient can be hundreds of times too long, in each run"
claim(min(peaks["clipped"]) > 200 * SHARE, words)
claim(max(peaks["clipped"]) < 3, "with clipping the largest ratio stays below 3")

# %% [markdown]
# ## What we saw
#
# - With scaled weights, scaled activations and a division by the expected deviation the
#   variance of the signal follows a sum that is known before anything is computed.
# - That holds for the first step. At a rate of 1, which batch norm bears, training without
#   it fails; with gradients clipped by the size of the weights it does not.
# - NFNet-F0 to F6 have the counts of the paper, and F0 does what timm's does.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
gain = nn.Parameter(torch.tensor(0.0))
optimizer = torch.optim.SGD([gain], lr=1.6)
gain.grad = torch.tensor(5.0)
clip_gradients([gain], 0.01)
optimizer.step()

# %% tags=["solution-1-result"]
by_hand = -1.6 * 0.01 * 0.001
claim(abs(gain.item() / by_hand - 1) < 1e-5, "a gain of zero moves as far as by hand")
table([(f"{by_hand:.1e}", f"{gain.item():.1e}")], ("by hand", "moved"))


# %% tags=["solution-2"]
class UnscaledConv2d(nn.Conv2d):
    """The weights of ScaledConv2d as they are drawn, never standardised."""

    def __init__(self, c_in: int, c_out: int, size: int, *, stride=1):
        super().__init__(c_in, c_out, size, stride, padding=size // 2, bias=False)
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)


@torch.no_grad()
def squared_mean(blocks: nn.Module, h: Tensor) -> float:
    """Each channel's mean behind the last block, squared, mean over the channels."""
    return blocks(h).mean((0, 2, 3)).square().mean().item()


WITHOUT = {
    "nothing": SCALED,
    "standardised weights": replace(SCALED, conv=UnscaledConv2d),
    "the constant of the ReLU": replace(SCALED, activation=relu),
    "beta": replace(SCALED, growth=0.0),
    "alpha and beta": replace(SCALED, alpha=1.0, growth=0.0),
}
left = {}
shift = {}
for name, recipe in WITHOUT.items():
    seed(0)
    blocks = two_stages(recipe)
    h = torch.randn(8, 64, 16, 16)
    left[name] = variances(blocks, h)
    shift[name] = squared_mean(blocks, h)

# %% tags=["solution-2-result"]
rows = []
for name, values in left.items():
    texts = [f"{values[index]:.2f}" for index in (5, 6, 11)]
    rows.append((name, *texts, f"{shift[name]:.3f}"))
values = left["alpha and beta"]
words = "without alpha and beta the variance nearly doubles in each block"
claim(all(1.8 < b / a < 2.05 for a, b in zip(values, values[1:])), words)
claim(left["beta"][6] > left["beta"][5], "without beta it is not reset at block 7")
claim(
    0.05 < left["the constant of the ReLU"][-1] < 0.15,
    "without the constant the variance falls to about a tenth",
)
record("shift", shift["standardised weights"])
words = "raw weights shift the means of channels, standardised weights hardly do"
claim(shift["standardised weights"] > 0.3 > 0.01 > shift["nothing"], words)
words = "with raw weights the variance within a channel stays below 2"
claim(max(left["standardised weights"]) < 2, words)
heads = ("left out", "block 6", "block 7", "block 12", "squared mean, block 12")
table(rows, heads)

# %% tags=["solution-3"]
halved = {}
for number in SEEDS:
    seed(number)
    second = stage(SCALED, 6, c_in=64, c_out=128, stride=2)
    halved[number] = variances(second, torch.randn(8, 64, 16, 16))

# %% tags=["solution-3-result"]
found = [values[0] for values in halved.values()]
record_spread("halved", found)
words = "where noise is pooled the variance falls to less than half of the prediction"
claim(max(found) < 0.52, words)
table([(f"{1 + ALPHA**2:.2f}", spread(found, ".2f"))], ("predicted", "measured"))

# %% tags=["solution-4"]
by_norm = {}
for longest in (0.1, 1.0, 10.0):
    seed(0)
    network = DigitNetwork(SCALED).to(device)
    clip = partial(nn.utils.clip_grad_norm_, max_norm=longest)
    train(network, train_part, rate=3.0, clip=clip)
    by_norm[longest] = accuracy(network, test)

# %% tags=["solution-4-result"]
claim(by_norm[0.1] > 0.4, "clipped to a norm of 0.1 the network learns, one seed")
loose = max(by_norm[1.0], by_norm[10.0])
claim(loose < 0.15, "clipped to a norm of 1 or 10 it is left guessing, one seed")
rows = [(f"{longest:g}", f"{right:.0%}") for longest, right in by_norm.items()]
table(rows, ("longest gradient", "accuracy at rate 3"))
