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
# # CSPNet
#
# Half of the channels go past a stage: how often a channel is read and what that costs,
# how much of the gradient two halves of the channels share, and three published backbones.
# The text to it is the [chapter](../chapters/cspnet.rst), the paper is
# [Wang et al. 2019](https://arxiv.org/abs/1911.11929).

# %%
import copy
import math

import matplotlib.pyplot as plt
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import PROFILE, claim, device, evaluating, record, record_spread, seed
from workbench import spread, table
from workbench import checks, counting, diagrams, drawing, images, plots, training

# %% [markdown]
# ## A stage of a DenseNet
#
# As in the chapter on DenseNet: batch norm, ReLU and convolution in this order, layers
# that append, and a transition.


# %% tags=["block"]
def norm_conv(c_in: int, c_out: int, size: int) -> nn.Sequential:
    """Batch norm, ReLU, convolution, in this order."""
    conv = nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU(), conv)


class DenseBlock(nn.Sequential):
    """Layers that append: each reads the input and the output of all before it."""

    def __init__(self, c_in: int, growth: int, *, depth: int):
        super().__init__()
        for number in range(depth):
            self.append(norm_conv(c_in + number * growth, growth, 3))

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_in + depth * growth, H, W)
        for layer in self:
            x = torch.cat((x, layer(x)), dim=1)
        return x


# %% tags=["dense-stage"]
class DenseStage(nn.Module):
    """A dense block, and a transition to half of the channels."""

    def __init__(self, c_in: int, growth: int, *, depth: int):
        super().__init__()
        made = growth * depth
        self.c_out = (c_in + made) // 2
        self.block = DenseBlock(c_in, growth, depth=depth)
        self.transition = norm_conv(c_in + made, self.c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.transition(self.block(x))  # (B, c_in, H, W) -> (B, c_out, H, W)


# %% [markdown]
# ## The cross stage
#
# The channels are cut in two. One part goes through the block and a transition T, then
# both meet in a transition U.


# %% tags=["cross-stage"]
class CrossDenseStage(nn.Module):
    """Half of the channels through the block and T, both halves through U.

    Wang et al. 2019, figures 2b and 3b. As many channels leave as leave a DenseStage.
    """

    def __init__(self, c_in: int, growth: int, *, depth: int):
        super().__init__()
        half = c_in // 2
        made = growth * depth
        self.c_out = half + made // 2
        self.block = DenseBlock(half, growth, depth=depth)
        self.transition = norm_conv(half + made, made // 2, 1)  # T
        self.fuse = norm_conv(half + made // 2, self.c_out, 1)  # U

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H, W)
        kept, worked = x.chunk(2, dim=1)  # (B, c_in / 2, H, W) each
        worked = self.transition(self.block(worked))  # (B, made / 2, H, W)
        return self.fuse(torch.cat((kept, worked), dim=1))


# %% tags=["cross-shape"]
CrossDenseStage(64, 32, depth=6)(torch.randn(2, 64, 56, 56)).shape


# %% tags=["fusions"]
class FusionFirst(nn.Module):
    """The halves are joined first; one transition reads both (figure 3c)."""

    def __init__(self, c_in: int, growth: int, *, depth: int):
        super().__init__()
        made = growth * depth
        self.c_out = (c_in + made) // 2
        self.block = DenseBlock(c_in // 2, growth, depth=depth)
        self.fuse = norm_conv(c_in + made, self.c_out, 1)  # U

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H, W)
        kept, worked = x.chunk(2, dim=1)
        return self.fuse(torch.cat((kept, self.block(worked)), dim=1))


class FusionLast(nn.Module):
    """One half through the block and a transition, then joined (figure 3d)."""

    def __init__(self, c_in: int, growth: int, *, depth: int):
        super().__init__()
        half = c_in // 2
        made = growth * depth
        self.c_out = half + made // 2
        self.block = DenseBlock(half, growth, depth=depth)
        self.transition = norm_conv(half + made, made // 2, 1)  # T

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H, W)
        kept, worked = x.chunk(2, dim=1)
        return torch.cat((kept, self.transition(self.block(worked))), dim=1)


# %% tags=["drawing"]
def drawn_stage(x: float, title: str, steps: tuple[str, ...]) -> dict:
    """Nodes below each other: a title, x0, the dense block, and the steps after it."""
    nodes = {
        f"{title} title": diagrams.Node(x, 0.18, title, weight="bold"),
        f"{title} x": diagrams.Node(x, 0.55, "$x_0$"),
        f"{title} block": diagrams.Node(x, 1.5, "dense\nblock", 0.8),
    }
    y = 1.5
    for step in steps:
        y += 0.58
        width = 0.8 if "1×1" in step else 0
        nodes[f"{title} {step}"] = diagrams.Node(x, y, step, width)
    nodes[f"{title} end"] = diagrams.Node(x, y + 0.48)
    return nodes


# %% tags=["stages-labels"]
def arrow_names(x: float, title: str, column: dict) -> dict:
    """Names at the arrows of a cross stage: both halves, and what T makes."""
    past = plots.COLOURS[1]
    nodes = {
        f"{title} worked": diagrams.Node(x - 0.22, 1.0, "$x_0$″"),
        f"{title} kept": diagrams.Node(x + 0.33, 1.0, "$x_0$′", colour=past),
    }
    if f"{title} T, 1×1" in column:
        y = column[f"{title} T, 1×1"].y + 0.31
        nodes[f"{title} made"] = diagrams.Node(x - 0.22, y, "$x_T$")
    return nodes


# %% tags=["stages-figure"] alt="Four columns from top to bottom. Dense: x0, a dense block, a 1x1 transition. Fusion first: x0 parts in two, x0'' goes into a dense block, x0' runs past the block as a coloured line and meets join, then U 1x1. Both: x0'' goes through a dense block and T 1x1, which makes xT; xT and x0' meet in join, then U 1x1. Fusion last: the same as both without U."
axes = diagrams.sheet(3.85)
COLUMNS = {
    "dense": ("1×1",),
    "fusion first": ("join", "U, 1×1"),
    "both": ("T, 1×1", "join", "U, 1×1"),
    "fusion last": ("T, 1×1", "join"),
}
nodes = {}
arrows = []
past = []
for number, (title, steps) in enumerate(COLUMNS.items()):
    x = 0.6 + 1.28 * number
    column = drawn_stage(x, title, steps)
    names = list(column)[1:]
    arrows += zip(names, names[1:])
    nodes |= column
    if "join" in steps:
        y = column[f"{title} join"].y
        past.append(((x, 0.78), (x + 0.52, 0.78), (x + 0.52, y), f"{title} join"))
        nodes |= arrow_names(x, title, column)
diagrams.draw(axes, nodes, arrows, past)

# %% [markdown]
# ## How often a channel is read
#
# The gradient of a convolution's weights is what it reads times the gradient that
# arrives. With all weights at zero nothing in a stage differs from zero but the one
# channel that we fill, so the weight gradients that are not zero are those it is in.


# %% tags=["reads"]
def reads(stage: nn.Module, c_in: int, *, source=None, channel: int = 0) -> int:
    """In how many weight gradients of a stage a channel is a factor.

    The channel is one of the stage's input, or of what its convolution `source` makes.
    """
    stage = copy.deepcopy(stage).eval()
    convs = [m for m in stage.modules() if isinstance(m, nn.Conv2d)]
    outputs = []

    def note(conv, inputs, output):
        if source is not None and conv is convs[source]:
            extra = torch.zeros_like(output)
            extra[0, channel] = 1
            output = output + extra
        outputs.append(output)
        return output

    for conv in convs:
        nn.init.zeros_(conv.weight)
        conv.register_forward_hook(note)
    x = convs[0].weight.new_zeros(1, c_in, 1, 1)
    x[0, channel] = float(source is None)
    stage(x)
    weights = [conv.weight for conv in convs]
    gradients = torch.autograd.grad(sum(y.sum() for y in outputs), weights)
    return sum(bool(g.any()) for g in gradients)


# %% tags=["reads-run"]
STAGES = {"dense": DenseStage, "cross": CrossDenseStage}
counts = {}
for name, kind in STAGES.items():
    stage = kind(64, 32, depth=6)
    found = [reads(stage, 64, channel=channel) for channel in range(64)]
    layers = [reads(stage, 64, source=number) for number in range(6)]
    counts[name] = (found, layers)

# %% tags=["reads-figure"] alt="Two step plots over the channels of a stage, how many convolutions read each. Dense stage: a block of 64 base channels at height 7, then a staircase of six steps of 32 channels from 6 down to 1. Cross stage: 32 base channels at height 1 in another colour, 32 base channels at height 7, then the same staircase from 6 down to 1."
figure, axes = plt.subplots(2, 1, figsize=(5, 3.6), sharex=True, sharey=True)
for part, (name, (base, layers)) in zip(axes, counts.items()):
    made = [count for count in layers for _ in range(32)]
    for start in (0, 32):
        half = base[start : start + 32]
        edges = range(start, start + 33)
        colour = plots.COLOURS[0] if half[0] > 1 else plots.COLOURS[1]
        part.stairs(half, edges, fill=True, color=colour)
    part.stairs(made, range(64, 257), fill=True, color=plots.QUIET, alpha=0.6)
    part.annotate("made by the six layers", (150, 4.4), color=plots.QUIET)
    part.set(ylabel="read by", yticks=(0, 2, 4, 6), title=f"{name} stage", ylim=(0, 8))
axes[0].annotate("base", (68, 6.4), color=plots.COLOURS[0])
axes[1].annotate("base, through the block", (68, 6.4), color=plots.COLOURS[0])
axes[1].annotate("past", (2, 1.5), color=plots.COLOURS[1])
axes[1].set(xlabel="channel", xticks=(0, 32, 64, 128, 192, 256))
plt.show()

# %% tags=["reads-claims"]
base, layers = counts["dense"]
claim(set(base) == {7}, "each base channel is in seven weight gradients")
claim(layers == [6, 5, 4, 3, 2, 1], "what a layer makes is read by those after it")
base, layers = counts["cross"]
claim(set(base[:32]) == {1}, "what passes by is in one weight gradient")
claim(set(base[32:]) == {7}, "the other half is in seven")
claim(layers == [6, 5, 4, 3, 2, 1], "the layers are read as before")
record("reads.dense", counts["dense"][0][0])
record("reads.past", counts["cross"][0][0])

# %% [markdown]
# ## What reading costs
#
# Values that the convolutions read and write per pixel, and multiply-accumulates, for the
# widths and depths of the four blocks of DenseNet-121, with layers of one convolution and
# a transition behind each block.


# %% tags=["traffic"]
def traffic(network: nn.Module, c_in: int) -> int:
    """Values that the convolutions read and write, per pixel: channels in and out."""
    found = []

    def note(conv, inputs, output):
        found.append(inputs[0].shape[1] + output.shape[1])

    network = copy.deepcopy(network).eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(note)
    network(torch.empty(1, c_in, 1, 1, device="meta"))
    return sum(found)


# %% tags=["traffic-run"]
BLOCKS = {64: 6, 128: 12, 256: 24, 512: 16}  # DenseNet-121: channels in, layers
GROWTH = 32
moved = {}
macs = {}
for c, depth in BLOCKS.items():
    with torch.device("meta"):
        stages = {n: kind(c, GROWTH, depth=depth) for n, kind in STAGES.items()}
        x = torch.empty(1, c, 1, 1)
    moved[c, "whole"] = traffic(stages["dense"].block, c)
    moved[c, "partial"] = traffic(stages["cross"].block, c // 2)
    for name, stage in stages.items():
        moved[c, name] = traffic(stage, c)
        macs[c, name] = counting.macs(stage, x)

# %% tags=["traffic-table"]
rows = []
saved = {}
for c, m in BLOCKS.items():
    whole = moved[c, "whole"]
    partial = moved[c, "partial"]
    triangle = m * (m + 1) // 2 * GROWTH
    claim(whole == c * m + triangle, f"{c} channels: the formula gives the count")
    claim(partial == c * m // 2 + triangle, f"{c} channels: of the partial block, too")
    saved[c] = (
        1 - partial / whole,
        1 - moved[c, "cross"] / moved[c, "dense"],
        1 - macs[c, "cross"] / macs[c, "dense"],
    )
    rows.append((c, m, whole, partial, *(f"{value:.0%}" for value in saved[c])))
heads = ("c", "m", "block", "partial", "saved", "whole stage", "MACs of it")
table(rows, heads)

# %% tags=["traffic-claims"]
for k, name in enumerate(("block", "stage", "macs")):
    record(f"saved.{name}.least", min(values[k] for values in saved.values()))
    record(f"saved.{name}.most", max(values[k] for values in saved.values()))
claim(max(v[0] for v in saved.values()) < 0.5, "a block saves less than half")
claim(
    all(v[1] < v[0] for v in saved.values()), "with the second transition it saves less"
)
first = list(BLOCKS.items())[:3]
claim(
    all(m * GROWTH > c for c, m in first), "three blocks make more than they are given"
)
claim(16 * GROWTH == 512, "the fourth makes as many as it is given")
claim(abs(saved[64][1]) < 0.005, "the first stage moves as much as before")
words = "MACs fall by more than the values of the whole stage"
claim(all(values[2] > values[1] for values in saved.values()), words)


# %% [markdown]
# ## How much of the gradient two halves share
#
# Three stages of each kind, trained on patches of ten photographs: which of them is a
# patch cut from?


# %% tags=["network"]
class Network(nn.Module):
    """Stem, three stages of one kind, mean, linear layer: (B, 3, H, W) -> (B, 10)."""

    def __init__(self, kind, *, growth: int = 8, depth: int = 4):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.stage1 = kind(16, growth, depth=depth)
        self.stage2 = kind(self.stage1.c_out, growth, depth=depth)
        self.stage3 = kind(self.stage2.c_out, growth, depth=depth)
        self.norm = nn.BatchNorm2d(self.stage3.c_out)
        self.classifier = nn.Linear(self.stage3.c_out, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, 16, H / 2, W / 2)
        x = F.avg_pool2d(self.stage1(x), 2)  # (B, 24, H / 4, W / 4)
        x = F.avg_pool2d(self.stage2(x), 2)  # (B, 28, H / 8, W / 8)
        x = torch.relu(self.norm(self.stage3(x)))  # (B, 30, H / 8, W / 8)
        return self.classifier(x.mean((2, 3)))  # (B, 10)


# %% tags=["data"]
IMAGES = 900 if PROFILE == "sample" else 20_000
train_part, _, test = images.standardised(images.patches(size=16), first=IMAGES)
record("images", len(train_part[1]))
table(
    [("train", *train_part[0].shape), ("test", *test[0].shape)],
    ("part", "N", "C", "H", "W"),
)

# %% tags=["train"]
SEEDS = (0, 1, 2)
EPOCHS = 3
BATCH = 50
KINDS = {
    "dense": DenseStage,
    "fusion first": FusionFirst,
    "both": CrossDenseStage,
    "fusion last": FusionLast,
}


def train(network: nn.Module, part) -> float:
    """SGD; the rate rises to 0.1 and falls to 0. The loss of the last epoch."""
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    schedule = training.one_cycle(optimizer, EPOCHS * math.ceil(len(part[1]) / BATCH))
    history = training.fit(
        network, part, EPOCHS, optimizer, batch=BATCH, schedule=schedule
    )
    return history["loss"][-1]


# %% tags=["gradients"]
def base_gradients(network: Network, x: Tensor, y: Tensor) -> list[Tensor]:
    """Gradient of the loss at the input of each stage, a row for each pixel."""
    bases = []

    def note(stage, inputs):
        inputs[0].retain_grad()
        bases.append(inputs[0])

    stages = (network.stage1, network.stage2, network.stage3)
    handles = [stage.register_forward_pre_hook(note) for stage in stages]
    with evaluating(network):
        F.cross_entropy(network(x), y, reduction="sum").backward()
    for handle in handles:
        handle.remove()
    return [base.grad.movedim(1, 3).flatten(0, 2) for base in bases]  # (B H W, C)


# %% tags=["shared"]
def explained(a: Tensor, b: Tensor) -> float:
    """Share of the variance of b, (N, n), that a linear map of a, (N, m), gives."""
    a = (a - a.mean(0)).cpu().double()
    b = (b - b.mean(0)).cpu().double()
    rest = b - a @ torch.linalg.lstsq(a, b).solution
    return 1 - (rest.square().sum() / b.square().sum()).item()


def shared(a: Tensor, b: Tensor) -> float:
    """The shared gradient S of two halves: the mean of both directions."""
    return (explained(a, b) + explained(b, a)) / 2


# %% tags=["shared-by-hand"]
seed(0)
a = torch.randn(1000, 4)
b = torch.randn(1000, 4)
record("shared.mixed", shared(a, a @ torch.randn(4, 4)))
record("shared.half", shared(a, a + b))
record("shared.apart", shared(a, b))
claim(shared(a, a @ torch.randn(4, 4)) > 0.999, "a linear map hides nothing")
claim(abs(shared(a, a + b) - 0.5) < 0.05, "half of a sum of two is the other's")
claim(shared(a, b) < 0.02, "what is drawn apart shares nothing")

# %% tags=["headline"]
patches = test[0][:200].to(device)
labels = test[1][:200].to(device)
networks = {}
losses = {}
scores = {}
halves = {}
mixed = {}
for name, kind in KINDS.items():
    for number in SEEDS:
        seed(number)
        network = Network(kind).to(device)
        losses[name, number] = train(network, train_part)
        scores[name, number] = training.evaluate(network, test)
        networks[name, number] = network
        for stage, g in enumerate(base_gradients(network, patches, labels), start=1):
            halves[name, stage, number] = shared(*g.chunk(2, dim=1))
            mixed[name, stage, number] = shared(g[:, ::2], g[:, 1::2])

# %% tags=["shared-figure"] alt="Four groups of dots, dense, fusion first, both and fusion last, each with three columns for the stages 1 to 3 and a dot for each of three seeds: the share of the gradient that the two halves have in common. On average over the stages it is higher for dense than for both and for fusion last. Averaged over the stages, the grey rings, for halves of every second channel, lie above the dots of fusion last for every seed."
_, axes = plt.subplots(figsize=(5, 3.3))
for place, name in enumerate(KINDS):
    for stage in (1, 2, 3):
        spot = place + 0.24 * (stage - 2)
        for marks, shift, style in (
            (halves, -0.04, {"color": plots.COLOURS[0], "marker": "o"}),
            (mixed, 0.05, {"color": plots.QUIET, "marker": "o", "mfc": "none"}),
        ):
            found = [marks[name, stage, number] for number in SEEDS]
            axes.plot([spot + shift] * 3, found, linestyle="", markersize=5, **style)
axes.annotate("the two halves", (-0.4, 0.12), color=plots.COLOURS[0])
axes.annotate("every second channel", (-0.4, 0.03), color=plots.QUIET)
axes.set(xticks=range(4), xticklabels=KINDS, ylim=(0, 1), xlim=(-0.45, 3.45))
axes.set(ylabel="gradient shared")
plt.show()


# %% tags=["shared-table"]
def over_stages(values: dict, name: str) -> list[float]:
    """Mean of the three stages, for each seed."""
    return [sum(values[name, stage, n] for stage in (1, 2, 3)) / 3 for n in SEEDS]


rows = []
for name in KINDS:
    record_spread(f"shared.{name.replace(' ', '.')}", over_stages(halves, name))
    found = (over_stages(halves, name), over_stages(mixed, name))
    record_spread(f"mixed.{name.replace(' ', '.')}", found[1])
    rows.append((name, *(spread(values, ".2f") for values in found)))
table(rows, ("stages", "two halves", "every second channel"))

# %% tags=["result"]
rows = []
cost = {}
for name in KINDS:
    with torch.device("meta"):
        network = Network(KINDS[name])
        cost[name] = counting.macs(network, torch.empty(1, 3, 16, 16))
    key = name.replace(" ", ".")
    loss = [losses[name, number] for number in SEEDS]
    right = [scores[name, number] for number in SEEDS]
    record_spread(f"{key}.loss", loss)
    record_spread(f"{key}.test", right)
    record(f"{key}.saved", 1 - cost[name] / cost["dense"])
    shown = (counting.parameters(network), f"{cost[name] / 1e6:.2f}")
    rows.append((name, *shown, spread(loss, ".2f"), spread(right, ".1%")))
table(rows, ("stages", "parameters", "M MACs", "training loss", "test accuracy"))


# %% tags=["headline-claims"]
means = {name: over_stages(halves, name) for name in KINDS}
lowest = min(means["dense"])
claim(max(means["both"]) < lowest, "both share less than dense, seeds apart")
claim(max(means["fusion last"]) < lowest, "fusion last shares less than dense, too")
words = "fusion last shares less than fusion first, seeds apart"
claim(max(means["fusion last"]) < min(means["fusion first"]), words)
for path, other in zip(means["fusion last"], over_stages(mixed, "fusion last")):
    claim(path < other, "fusion last: mixed halves share more than paths")
others = {name: over_stages(mixed, name) for name in KINDS}
words = "with fusion last mixed halves, too, share less on average than in dense stages"
claim(sum(others["dense"]) - sum(others["fusion last"]) > 0.1, words)
words = "both: the ranges of paths and mixed halves touch or nearly do"
claim(min(others["both"]) < max(means["both"]) + 0.1, words)

# %% tags=["result-claims"]
apart = []
for name in KINDS:
    right = [scores[name, number] for number in SEEDS]
    apart.append(100 * (max(right) - min(right)))
    claim(cost[name] <= cost["dense"], f"{name}: no more MACs than dense")
record("apart.most", max(apart))
claim(max(apart) > 1.5, "seeds of one kind lie up to more than 1.5 points apart")
claim(cost["fusion last"] < cost["fusion first"], "fusion last saves more MACs")
record("steps", EPOCHS * math.ceil(IMAGES / BATCH))

# %% [markdown]
# ## The backbones
#
# The published networks are no DenseNets. Their blocks add, and the leaky ReLU stands
# behind the norm.


# %% tags=["conv-act"]
def conv_norm(c_in: int, c_out: int, size: int, *, stride: int = 1, groups: int = 1):
    """Convolution without bias, then batch norm."""
    conv = nn.Conv2d(
        c_in, c_out, size, stride, padding=size // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


def conv_act(c_in: int, c_out: int, size: int, **how) -> nn.Sequential:
    """Convolution, batch norm, leaky ReLU."""
    return nn.Sequential(*conv_norm(c_in, c_out, size, **how), nn.LeakyReLU(0.01))


# %% tags=["blocks"]
class DarkBlock(nn.Module):
    """x + 3x3(1x1(x)), the block of Darknet-53 (Redmon and Farhadi 2018, table 1)."""

    def __init__(self, c: int, width: int):
        super().__init__()
        self.branch = nn.Sequential(conv_act(c, width, 1), conv_act(width, c, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)  # (B, c, H, W) -> (B, c, H, W)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 as in ResNet, in groups as in ResNeXt, with a leaky ReLU.

    The 1x1 widen twice in CSPResNet-50, not at all in CSPResNeXt-50.
    """

    def __init__(self, c: int, width: int, *, groups: int = 1):
        super().__init__()
        self.branch = nn.Sequential(
            conv_act(c, width, 1),
            conv_act(width, width, 3, groups=groups),
            conv_norm(width, c, 1),
        )
        self.act = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.branch(x))  # (B, c, H, W) -> (B, c, H, W)


# %% tags=["stage"]
class CrossStage(nn.Module):
    """One part of what `split` gives goes past the blocks; T and U as above.

    `half` is the width of each part, in some stages as much as the whole width.
    """

    def __init__(self, down, split, blocks, *, half: int, c_out: int):
        super().__init__()
        self.down = down
        self.split = split
        self.blocks = blocks
        self.transition = conv_act(half, half, 1)  # T
        self.fuse = conv_act(2 * half, c_out, 1)  # U

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / 2, W / 2)
        x = self.split(self.down(x))  # (B, 2 half, H / 2, W / 2)
        kept, worked = x.chunk(2, dim=1)
        worked = self.transition(self.blocks(worked))
        return self.fuse(torch.cat((kept, worked), dim=1))


# %% tags=["two-convs"]
class TwoConvs(nn.Module):
    """The split in common use: two 1x1 convolutions, each reads all channels."""

    def __init__(self, c_in: int, half: int):
        super().__init__()
        self.kept = conv_act(c_in, half, 1)
        self.worked = conv_act(c_in, half, 1)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, 2 half, H, W)
        return torch.cat((self.kept(x), self.worked(x)), dim=1)


def one_conv(c_in: int, half: int) -> nn.Sequential:
    """The same in one: its first half of channels passes by, as in timm."""
    return conv_act(c_in, 2 * half, 1)


def cut(c_in: int, half: int) -> nn.Identity:
    """The split of the paper: the channels as they are."""
    assert c_in == 2 * half, "half must be half of the channels"
    return nn.Identity()


# %% tags=["dark-stage"]
def dark_stage(
    c_in: int, c: int, *, half: int, width: int, depth: int, split=one_conv
) -> CrossStage:
    """A 3x3 convolution that halves the map, then blocks on one half."""
    blocks = nn.Sequential(*[DarkBlock(half, width) for _ in range(depth)])
    down = conv_act(c_in, c, 3, stride=2)
    return CrossStage(down, split(c, half), blocks, half=half, c_out=c)


# %% tags=["network-csp"]
class CSPNet(nn.Module):
    """Stem, cross stages, mean over the map, linear layer: (B, 3, H, W) -> (B, K)."""

    def __init__(self, stem, stages, *, c_out: int, num_classes: int = 1000):
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(c_out, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))  # (B, c_out, H / 32, W / 32)
        return self.classifier(x.mean((2, 3)))  # (B, K)


# %% tags=["darknet"]
def cspdarknet53(*, split=one_conv) -> CSPNet:
    """Stages of 1, 2, 8, 8 and 4 blocks, as Darknet-53; the first has full halves."""
    stages = [dark_stage(32, 64, half=64, width=32, depth=1)]
    for c, depth in ((128, 2), (256, 8), (512, 8), (1024, 4)):
        how = {"half": c // 2, "width": c // 2, "depth": depth, "split": split}
        stages.append(dark_stage(c // 2, c, **how))
    return CSPNet(conv_act(3, 32, 3), stages, c_out=1024)


# %% tags=["resnets"]
def residual_stages(channels, *, halves, groups: int) -> list[CrossStage]:
    """Bottlenecks on halves of so many channels; no activation behind the 1x1 split."""
    stages = []
    c_in = 64
    down = nn.Identity()  # the stem has halved the map
    for c, half, depth in zip(channels, halves, (3, 3, 5, 2)):
        blocks = [Bottleneck(half, c // 2, groups=groups) for _ in range(depth)]
        split = conv_norm(c_in, 2 * half, 1)
        blocks = nn.Sequential(*blocks)
        stages.append(CrossStage(down, split, blocks, half=half, c_out=c))
        c_in = c
        down = conv_act(c, c, 3, stride=2, groups=groups)
    return stages


def residual_stem() -> nn.Sequential:
    """As ResNet: 7x7 convolution and maximum, a quarter of the side."""
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(conv_act(3, 64, 7, stride=2), pool)


def cspresnet50() -> CSPNet:
    channels = (128, 256, 512, 1024)
    stages = residual_stages(channels, halves=channels, groups=1)
    return CSPNet(residual_stem(), stages, c_out=1024)


def cspresnext50() -> CSPNet:
    channels = (256, 512, 1024, 2048)
    stages = residual_stages(channels, halves=(128, 256, 512, 1024), groups=32)
    return CSPNet(residual_stem(), stages, c_out=2048)


# %% tags=["csp-shape"]
dark_stage(64, 128, half=64, width=64, depth=2)(torch.randn(2, 64, 28, 28)).shape

# %% [markdown]
# ## The split and its cost
#
# The channels as they are, or through 1x1 convolutions first.

# %% tags=["two-equal"]
seed(0)
one = checks.randomise_norms(one_conv(64, 32))
two = TwoConvs(64, 32)
state = one.state_dict()
for number, part in enumerate((two.kept, two.worked)):
    own = slice(32 * number, 32 * number + 32)
    part.load_state_dict({n: t[own] if t.ndim else t for n, t in state.items()})
found = checks.same_outputs(one, two, torch.randn(2, 64, 9, 9))
claim(found < 1e-6, "cut outputs of one convolution are those of two")

# %% tags=["split-cost"]
SPLITS = {
    "cut, as in the paper": cut,
    "two 1×1": TwoConvs,
    "one 1×1, then cut": one_conv,
}
rows = []
paid = {}
for name, split in SPLITS.items():
    with torch.device("meta"):
        stage = dark_stage(256, 512, half=256, width=256, depth=8, split=split)
        network = cspdarknet53(split=split)
        x = torch.empty(1, 256, 28, 28)
        image = torch.empty(1, 3, 224, 224)
    moves = traffic(stage.split, 512)
    stage_macs = counting.macs(stage, x) / 1e6
    paid[name] = (counting.parameters(network), counting.macs(network, image))
    shown = (moves, counting.parameters(stage), f"{stage_macs:.1f}")
    rows.append((name, *shown, paid[name][0], f"{paid[name][1] / 1e9:.3f}"))
heads = ("split", "moved", "parameters, stage", "M MACs", "parameters, net", "G MACs")
table(rows, heads)

# %% tags=["split-claims"]
free, *mixers = paid.values()
claim(mixers[0] == mixers[1], "one 1x1 costs what two cost")
claim(free[0] < mixers[0][0] and free[1] < mixers[0][1], "the cut costs less")
claim(reads(TwoConvs(64, 32), 64) == 2, "two 1x1 read each channel of the base twice")
record("split.parameters", mixers[0][0] - free[0])
record("split.share", 1 - free[0] / mixers[0][0])
record("split.macs", mixers[0][1] - free[1])
record("split.macs.share", 1 - free[1] / mixers[0][1])

# %% [markdown]
# ## Counted
#
# On the meta device, at 224x224, beside the networks that the backbones were made from.

# %% tags=["count"]
MODELS = torchvision.models
BACKBONES = {
    "cspresnet50": (cspresnet50, "ResNet-50", MODELS.resnet50),
    "cspresnext50": (cspresnext50, "ResNeXt-50", MODELS.resnext50_32x4d),
    "cspdarknet53": (
        cspdarknet53,
        "Darknet-53",
        lambda: timm.create_model("darknet53"),
    ),
}
NAMES = {
    "cspresnet50": "CSPResNet-50",
    "cspresnext50": "CSPResNeXt-50",
    "cspdarknet53": "CSPDarknet-53",
}
built = {}
originals = {}
sizes = {}
with torch.device("meta"):
    image = torch.empty(1, 3, 224, 224)
    for name, (build, other, library) in BACKBONES.items():
        built[name] = build()
        originals[other] = library()
        for label, network in ((name, built[name]), (other, originals[other])):
            sizes[label] = (
                counting.parameters(network),
                counting.macs(network, image),
            )
    larger = torch.empty(1, 3, 256, 256)
    record("cspdarknet53.256", counting.macs(built["cspdarknet53"], larger) / 1e9)

# %% tags=["count-table"]
rows = []
for name, (_, other, _) in BACKBONES.items():
    for label in (other, name):
        parameters, macs_of = sizes[label]
        record(f"{label}.parameters", parameters)
        record(f"{label}.macs", macs_of)
        rows.append((NAMES.get(label, label), parameters, f"{macs_of / 1e9:.3f}"))
    record(f"{name}.fewer.parameters", 1 - sizes[name][0] / sizes[other][0])
    record(f"{name}.fewer.macs", 1 - sizes[name][1] / sizes[other][1])
    claim(sizes[name][0] < sizes[other][0], f"{name}: fewer parameters than {other}")
    claim(sizes[name][1] < sizes[other][1], f"{name}: fewer MACs than {other}")
table(rows, ("network", "parameters", "G MACs"))

# %% tags=["counts-met"]
PUBLISHED = {  # of timm
    "cspresnet50": 21_616_168,
    "cspresnext50": 20_569_896,
    "cspdarknet53": 27_642_184,
}
for name, count in PUBLISHED.items():
    claim(sizes[name][0] == count, f"{name} has the parameters of timm")
dark = [1 - new / old for new, old in zip(sizes["cspdarknet53"], sizes["Darknet-53"])]
words = "fewer parameters and MACs, as the authors' README has it"
claim([round(100 * part) for part in dark] == [34, 30], words)

# %% tags=["stages-table"]
rows = []
for k in range(5):
    row = [k + 1]
    for name in BACKBONES:
        stages = list(built[name].stages)
        stage = stages[k] if k < len(stages) else None
        half = stage and stage.transition[0].in_channels
        c = stage and stage.fuse[0].out_channels
        row.append(f"{len(stage.blocks)} × {half}, {c}" if stage else "")
    rows.append(row)
table(rows, ("stage", *(NAMES[name] for name in BACKBONES)))

# %% tags=["blocks-claims"]
blocks = {}
for name in BACKBONES:
    blocks[name] = [len(stage.blocks) for stage in built[name].stages]
dark = [len(stage.blocks) for stage in originals["Darknet-53"].stages]
claim(blocks["cspdarknet53"] == dark, "CSPDarknet-53 has the blocks of Darknet-53")
for name in ("ResNet-50", "ResNeXt-50"):
    plain = originals[name]
    stages = (plain.layer1, plain.layer2, plain.layer3, plain.layer4)
    claim([len(stage) for stage in stages] == [3, 4, 6, 3], f"{name}: 3, 4, 6, 3")
    own = blocks[f"csp{name.lower().replace('-', '')}"]
    claim(own == [3, 3, 5, 2], f"with cross stages {name} has 3, 3, 5, 2")

# %% tags=["drawn"] alt="CSPDarknet-53 from top to bottom with output shape and parameters at the right: an input of 3x224x224, a 3x3 convolution to 32 channels, then five cross stages, each with a loop past it, whose maps shrink from 112 to 7 pixels a side while the channels grow from 64 to 1024, and the linear layer to 1000."
drawing.draw(built["cspdarknet53"], image)

# %% [markdown]
# ## Equal to timm

# %% tags=["equal"]
rows = []
deviations = []
for name, (build, _, _) in BACKBONES.items():
    seed(0)
    theirs = checks.randomise_norms(timm.create_model(name))
    ours = build()
    checks.transplant(theirs, ours)
    deviations.append(checks.same_outputs(ours, theirs, torch.randn(2, 3, 64, 64)))
    rows.append((NAMES[name], "timm", f"{deviations[-1]:.1e}"))
record("deviation", max(deviations))
table(rows, ("network", "reference", "largest difference"))

# %% [markdown]
# ## Look inside
#
# Which channels of the base receive the same gradient? Correlations over the pixels of 200
# patches, first stage, one seed.


# %% tags=["correlations"]
def correlations(g: Tensor) -> Tensor:
    """Absolute correlation of each two columns of (N, C)."""
    return torch.corrcoef(g.T).abs().cpu()


# %% tags=["correlations-run"]
shown = {}
between = {}
within = {}
for name in ("dense", "fusion last"):
    first, *_ = base_gradients(networks[name, 0], patches, labels)
    shown[name] = correlations(first)
    square = shown[name]
    inside = square[:8, :8].sum().item() + square[8:, 8:].sum().item() - 16
    between[name] = square[:8, 8:].mean().item()
    within[name] = inside / 112  # pairs of different channels
    record(f"correlation.{name.replace(' ', '.')}.between", between[name])
    record(f"correlation.{name.replace(' ', '.')}.within", within[name])
claim(between["fusion last"] < within["fusion last"], "fusion last: less between")
claim(between["dense"] > 0.8 * within["dense"], "dense: about as much between")

# %% tags=["correlations-figure"] alt="Two squares of 16 by 16 channels, absolute correlations of their gradients in shades of blue, cut into quarters by two lines. Dense: the quarters off the diagonal are about as dark as those on it. Fusion last: the quarters off the diagonal are paler than those on it."
figure, axes = plt.subplots(1, 2, figsize=(5, 3), sharey=True)
figure.get_layout_engine().set(h_pad=0.15)
for part, (name, square) in zip(axes, shown.items()):
    part.imshow(square, cmap="Blues", vmin=0, vmax=1)
    part.axhline(7.5, color=plots.COLOURS[1], linewidth=1)
    part.axvline(7.5, color=plots.COLOURS[1], linewidth=1)
    part.set(title=name, xticks=(0, 8), yticks=(0, 8), xlabel="channel")
axes[0].set(ylabel="channel")
plt.show()

# %% [markdown]
# ## What we saw
#
# - In a dense stage every channel of the base is in as many weight gradients as it has
#   readers; what passes by a cross stage is in one.
# - Trained, the two halves of the base share less of their gradient with both transitions
#   or with fusion last than in a dense stage.
# - The published backbones split behind a 1x1 convolution of all channels, which costs
#   more than a cut; CSPDarknet-53 has a third fewer parameters than Darknet-53.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
c = 64
m = 6
d = 32
whole = c * m + m * (m + 1) // 2 * d
partial = c // 2 * m + m * (m + 1) // 2 * d

# %% tags=["solution-1-result"]
claim(whole == moved[64, "whole"], "by hand as counted, the whole block")
claim(partial == moved[64, "partial"], "by hand as counted, the partial block")
rows = [
    ("whole", whole, moved[64, "whole"]),
    ("partial", partial, moved[64, "partial"]),
]
table(rows, ("block", "by hand", "counted"))


# %% tags=["solution-2"]
@torch.no_grad()
def calibrated(network: nn.Module, x: Tensor) -> nn.Module:
    """The network, its batch norms with mean and variance of these images."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    network.train()(x)
    return network


fresh = {}
for name, kind in KINDS.items():
    for number in SEEDS:
        seed(number)
        network = calibrated(Network(kind).to(device), patches)
        for stage, g in enumerate(base_gradients(network, patches, labels), start=1):
            fresh[name, stage, number] = shared(*g.chunk(2, dim=1))

# %% tags=["solution-2-result"]
rows = []
for name in KINDS:
    before = over_stages(fresh, name)
    words = f"{name}: fresh networks share less than half, seeds apart"
    claim(max(before) < 0.5 * min(means[name]), words)
    rows.append((name, spread(before, ".2f"), spread(means[name], ".2f")))
record_spread("fresh.dense", over_stages(fresh, "dense"))
record("fresh.most", max(max(over_stages(fresh, name)) for name in KINDS))
table(rows, ("stages", "fresh", "trained"))


# %% tags=["solution-3"]
class UnevenStage(nn.Module):
    """A cross stage past which `kept` of the channels go, not half of them."""

    def __init__(self, c_in: int, growth: int, *, depth: int, kept: int):
        super().__init__()
        worked = c_in - kept
        made = growth * depth
        self.sizes = (kept, worked)
        self.block = DenseBlock(worked, growth, depth=depth)
        self.transition = norm_conv(worked + made, made // 2, 1)  # T
        self.fuse = norm_conv(kept + made // 2, (c_in + made) // 2, 1)  # U

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H, W)
        kept, worked = x.split(self.sizes, dim=1)
        worked = self.transition(self.block(worked))
        return self.fuse(torch.cat((kept, worked), dim=1))


# %% tags=["solution-3-result"]
rows = []
falls = []
for kept in (128, 256, 384):
    with torch.device("meta"):
        stage = UnevenStage(512, 32, depth=16, kept=kept)
        base = torch.empty(1, 512, 7, 7)
    falls.append(counting.macs(stage, base))
    rows.append((kept, counting.parameters(stage), f"{falls[-1] / 1e6:.1f}"))
with torch.device("meta"):
    half = CrossDenseStage(512, 32, depth=16)
claim(rows[1][1] == counting.parameters(half), "half of 512 is the cross stage")
claim(falls == sorted(falls, reverse=True), "the more passes by, the fewer MACs")
table(rows, ("channels that pass by, of 512", "parameters", "M MACs"))

# %% tags=["solution-4"]
with torch.device("meta"):
    without = cspdarknet53()
for stage in without.stages:
    stage.transition = nn.Identity()

# %% tags=["solution-4-result"]
fewer = counting.parameters(without)
by_hand = sum(half * half + 2 * half for half in (64, 64, 128, 256, 512))
claim(sizes["cspdarknet53"][0] - fewer == by_hand, "weights and two values a channel")
record("without.share", by_hand / sizes["cspdarknet53"][0])
gmacs = counting.macs(without, image) / 1e9
table([("without T", fewer, f"{gmacs:.3f}")], ("network", "parameters", "G MACs"))
