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
# # ShuffleNet
#
# Groups in the 1x1 convolutions, which then hear only their own group, and the shuffle that
# lets them meet: the connections read off, a task that needs them, both versions of the
# network counted and compared, and what a layer costs besides multiplications.
# The text to it is the [chapter](../chapters/shufflenet.rst), the papers are
# [Zhang et al. 2017](https://arxiv.org/abs/1707.01083) and
# [Ma et al. 2018](https://arxiv.org/abs/1807.11164).

# %%
import copy
import math
import time

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workbench import PROFILE, claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, drawing, images, plots, training

# %% [markdown]
# ## What groups leave
#
# In ResNeXt-50 only the 3x3 convolutions have groups. What is left are the 1x1 ones.

# %% tags=["problem"]
with torch.device("meta"):
    block = torchvision.models.resnext50_32x4d().layer1[1]
    wide = torch.empty(1, 256, 56, 56)
    narrow = torch.empty(1, 128, 56, 56)
mixing = counting.macs(block.conv1, wide) + counting.macs(block.conv3, narrow)
record("resnext.mixing", mixing / counting.macs(block, wide))

# %% [markdown]
# ## The shuffle
#
# The channels are written into a table, one row for each group, and read column by column.


# %% tags=["shuffle"]
class Shuffle(nn.Module):
    """Read a table of groups by columns: the first channel of each, then the second.

    Zhang et al. 2017, section 3.1. No weights; (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (self.groups, -1))  # (B, g, C / g, H, W)
        return x.transpose(1, 2).flatten(1, 2)  # (B, C, H, W)


# %% tags=["shuffle-run"]
Shuffle(3)(torch.arange(6).view(1, 6, 1, 1)).flatten()

# %% tags=["shuffle-transpose"]
x = torch.arange(12).view(1, 12, 1, 1)
by_columns = x.view(3, 4).T.flatten()
claim((Shuffle(3)(x).flatten() == by_columns).all(), "a shuffle is a table transposed")
claim((Shuffle(4)(Shuffle(3)(x)) == x).all(), "4 groups undo what 3 groups of 4 did")
claim((Shuffle(3)(Shuffle(3)(x)) != x).any(), "a second shuffle is not the way back")
square = torch.arange(9).view(1, 9, 1, 1)
claim((Shuffle(3)(Shuffle(3)(square)) == square).all(), "with g = n it is")

# %% tags=["deal-figure"] alt="Six channels in a row, 0 to 5, in three colours for the groups 0 1, 2 3 and 4 5. An arrow, written by rows, leads to a table of three rows and two columns, one row for each colour. An arrow, read by columns, leads to the row 0 2 4 1 3 5, in which the colours alternate."
axes = diagrams.sheet(2.9)
place = {k: (1.9 + 0.6 * (k % 2), 0.95 + 0.4 * (k // 2)) for k in range(6)}
nodes = {}
for k in range(6):
    colour = plots.COLOURS[k // 2]
    nodes[f"in{k}"] = diagrams.Node(0.95 + 0.5 * k, 0.25, str(k), 0.4, colour, "bold")
    nodes[f"at{k}"] = diagrams.Node(*place[k], str(k), 0.5, colour, "bold")
for spot, k in enumerate((0, 2, 4, 1, 3, 5)):
    colour = plots.COLOURS[k // 2]
    nodes[f"out{k}"] = diagrams.Node(
        0.95 + 0.5 * spot, 2.6, str(k), 0.4, colour, "bold"
    )
nodes["write"] = diagrams.Node(3.05, 0.6, "written by rows", colour=plots.QUIET)
nodes["read"] = diagrams.Node(3.05, 2.18, "read by columns", colour=plots.QUIET)
diagrams.draw(axes, nodes, [((2.2, 0.46), (2.2, 0.72)), ((2.2, 2.0), (2.2, 2.38))])

# %% [markdown]
# ## The unit
#
# ResNet's bottleneck with a depthwise 3x3 and groups in both 1x1 convolutions. What mixes
# the groups is an argument, so that `nn.Identity` builds the unit without the shuffle.


# %% tags=["branch"]
def conv_norm(c_in: int, c_out: int, size: int, *, stride: int = 1, groups: int = 1):
    """Convolution without bias, then batch norm."""
    conv = nn.Conv2d(
        c_in, c_out, size, stride, padding=size // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


def branch(
    c_in: int, c_out: int, *, width: int, first: int, second: int, stride=1, mix=Shuffle
) -> nn.Sequential:
    """1x1 in `first` groups, shuffle, depthwise 3x3, 1x1 in `second` (figure 2)."""
    return nn.Sequential(
        conv_norm(c_in, width, 1, groups=first),
        nn.ReLU(),
        mix(second),  # the groups that read it; nn.Identity takes any argument
        conv_norm(width, width, 3, stride=stride, groups=width),
        conv_norm(width, c_out, 1, groups=second),
    )


# %% tags=["unit"]
class Unit(nn.Module):
    """relu(x + branch(x)): the unit of stride 1 (figure 2b)."""

    def __init__(self, c: int, *, groups: int, mix=Shuffle):
        super().__init__()
        self.branch = branch(c, c, width=c // 4, first=groups, second=groups, mix=mix)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.branch(x))  # (B, c, H, W) -> (B, c, H, W)


# %% tags=["halving-unit"]
class HalvingUnit(nn.Module):
    """Half the side, more channels: mean of the input beside a branch (figure 2c)."""

    def __init__(self, c_in: int, c_out: int, *, first: int, second: int, mix=Shuffle):
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=2, padding=1)
        groups = {"first": first, "second": second}
        self.branch = branch(
            c_in, c_out - c_in, width=c_out // 4, **groups, stride=2, mix=mix
        )

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / 2, W / 2)
        return torch.relu(torch.cat((self.pool(x), self.branch(x)), dim=1))


# %% tags=["unit-shape"]
HalvingUnit(240, 480, first=3, second=3)(torch.randn(2, 240, 28, 28)).shape


# %% tags=["drawing"]
def drawn_chain(name: str, x: float, top: float, words: tuple[str, ...]) -> dict:
    """Nodes below each other, named name0, name1 ...; a layer, "1×1 ...", has a box."""
    nodes = {}
    y = top
    for k, word in enumerate(words):
        width = 1.3 if word[:1].isdigit() else 0
        colour = plots.COLOURS[1] if word == "shuffle" else plots.INK
        extra = 0.09 * word.count("\n")  # room for a second line
        y += extra
        nodes[f"{name}{k}"] = diagrams.Node(x, y, word, width, colour)
        y += 0.48 + extra
    return nodes


def drawn_arrows(*chains: dict) -> list[tuple[str, str]]:
    """From each node of a chain to the next."""
    return [pair for nodes in chains for pair in zip(list(nodes), list(nodes)[1:])]


# %% tags=["units-figure"] alt="Two columns. Stride 1: x, a 1x1 convolution in groups, ReLU, shuffle, a depthwise 3x3 convolution, a 1x1 convolution in groups, a plus sign and ReLU; an arrow, named identity, leads from x past all of it to the plus sign. Stride 2: the same, where the 3x3 depthwise has stride 2; beside it a mean over 3x3 with stride 2; both end in a concatenation and ReLU."
axes = diagrams.sheet(4.75)
begin = ("$x$", "1×1, groups", "ReLU", "shuffle")
words = (*begin, "3×3 depthwise", "1×1, groups", "+", "ReLU", "")
left = drawn_chain("a", 0.85, 0.55, words)
end = ("3×3 depthwise\nstride 2", "1×1, groups", "concatenate", "ReLU", "")
right = drawn_chain("b", 2.85, 0.55, (*begin, *end))
side = {"pool": diagrams.Node(4.3, 2.0, "3×3 mean\nstride 2", 1.1)}
side["one"] = diagrams.Node(0.85, 0.2, "stride 1", weight="bold")
side["two"] = diagrams.Node(2.85, 0.2, "stride 2", weight="bold")
side["identity"] = diagrams.Node(1.7, 0.6, "identity", colour=plots.COLOURS[1])
past = [((0.85, 0.75), (1.68, 0.75), (1.68, 3.43), "a6")]
past += [((2.85, 0.75), (4.3, 0.75), "pool"), ("pool", (4.3, 3.61), "b6")]
diagrams.draw(axes, left | right | side, drawn_arrows(left, right), past)

# %% [markdown]
# ## Who reaches whom
#
# Let each convolution take the mean of what it reads. All weights are then positive, no
# ReLU cuts anything off, and the network is linear: what comes out when a single channel
# holds ones is the derivative by that channel.


# %% tags=["connections"]
@torch.no_grad()
def averaging(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose convolutions take the mean of what they read."""
    network = copy.deepcopy(network).eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.fill_(1 / layer.weight[0].numel())
    return network


@torch.no_grad()
def connections(network: nn.Module, c_in: int, *, side: int = 1) -> Tensor:
    """Which outputs (rows) hear which input channels (columns), at any pixel."""
    ones = torch.eye(c_in).view(c_in, c_in, 1, 1).expand(-1, -1, side, side)
    answers = averaging(network)(ones)  # (c_in, c_out, H, W): image m, a 1 in channel m
    return (answers.sum((2, 3)) > 0).T


# %% tags=["matrix"]
heard = {}
for name, mix in (("without", nn.Identity), ("with", Shuffle)):
    for units in (1, 2):
        row = nn.Sequential(*[Unit(36, groups=3, mix=mix) for _ in range(units)])
        heard[name, units] = connections(row, 36)

# %% tags=["matrix-figure"] alt="Two squares of 36 rows, the outputs, and 36 columns, the inputs, after two units. Without the shuffle three blocks of 12 by 12 on the diagonal are filled and all else is empty. With the shuffle the whole square is filled."
figure, axes = plt.subplots(1, 2, figsize=(5, 2.9), sharey=True)
figure.get_layout_engine().set(h_pad=0.16)  # a reader's font may be taller
for part, name in zip(axes, ("without", "with")):
    blocks = heard[name, 2].view(3, 12, 3, 12).all(3).all(1)  # whole groups
    for i, j in blocks.nonzero().tolist():
        part.add_patch(plt.Rectangle((12 * j, 12 * i), 12, 12, color=plots.COLOURS[0]))
    part.set(aspect="equal", xlim=(0, 36), ylim=(36, 0), title=f"{name} shuffle")
    part.set(xticks=(0, 12, 24, 36), yticks=(0, 12, 24, 36), xlabel="input channel")
    part.grid(visible=True)
axes[0].set(ylabel="output channel")
plt.show()

# %% tags=["matrix-claims"]
groups = torch.arange(36) // 12
own = groups[:, None] == groups
for units in (1, 2):
    words = f"without a shuffle an output hears its group, after {units} units"
    claim((heard["without", units] == own).all(), words)
    claim(heard["with", units].all(), f"with it all channels, after {units} units")

# %% [markdown]
# ## A task that needs both groups
#
# Two digits, each a 0 or a 1, each with a group of its own. Are they the same or not?


# %% tags=["pairs"]
def pairs(part, n: int, *, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """n images of two digits, 0 or 1, one a channel, with the labels of both."""
    x, y = part
    chosen = y < 2
    x = x[chosen]
    y = y[chosen]
    generator = torch.Generator().manual_seed(number)
    first = torch.randint(len(y), (n,), generator=generator)
    second = torch.randint(len(y), (n,), generator=generator)
    return torch.cat((x[first], x[second]), dim=1), y[first], y[second]


class PairNetwork(nn.Module):
    """A group for each digit, two units, a linear layer: (B, 2, H, W) -> (B, 2)."""

    def __init__(self, mix, *, channels: int = 16):
        super().__init__()
        self.stem = conv_norm(2, channels, 3, stride=2, groups=2)
        self.unit1 = Unit(channels, groups=2, mix=mix)
        self.unit2 = Unit(channels, groups=2, mix=mix)
        self.classifier = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.stem(x)), 2)  # (B, channels, H / 4, W / 4)
        x = self.unit2(self.unit1(x))  # (B, channels, H / 4, W / 4)
        return self.classifier(x.mean((2, 3)))  # (B, 2)


# %% tags=["data"]
PAIRS = 1000 if PROFILE == "sample" else 20_000
train_digits, _, test_digits = images.standardised(images.digits(size=16), first=None)
train_x, *train_labels = pairs(train_digits, PAIRS, number=0)
test_x, *test_labels = pairs(test_digits, 500, number=1)

# %% tags=["data-shape"]
record("pairs", len(train_x))
table(
    [("train", *train_x.shape), ("test", *test_x.shape)], ("part", "N", "C", "H", "W")
)

# %% tags=["train"]
EPOCHS = 6
BATCH = 50
SEEDS = (0, 1, 2)
MIXES = {"without": nn.Identity, "with": Shuffle}
TASKS = {
    "which is the first?": lambda first, second: first,
    "same or different?": lambda first, second: (first != second).long(),
}


def train(network: nn.Module, part, *, epochs: int = EPOCHS) -> float:
    """SGD; the rate rises to 0.1 and falls to 0. The loss of the last epoch."""
    steps = epochs * math.ceil(len(part[1]) / BATCH)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4
    )
    schedule = training.one_cycle(optimizer, steps)
    history = training.fit(
        network, part, epochs, optimizer, batch=BATCH, schedule=schedule
    )
    return history["loss"][-1]


# %% tags=["headline"]
networks = {}
losses = {}
scores = {}
for task, label in TASKS.items():
    for name, mix in MIXES.items():
        for number in SEEDS:
            seed(number)
            network = PairNetwork(mix).to(device)
            case = (task, name, number)
            losses[case] = train(network, (train_x, label(*train_labels)))
            scores[case] = training.evaluate(network, (test_x, label(*test_labels)))
            networks[case] = network

# %% tags=["result"]
rows = []
for task in TASKS:
    for name in MIXES:
        loss = [losses[task, name, number] for number in SEEDS]
        right = [scores[task, name, number] for number in SEEDS]
        short = task.split()[0]
        record_spread(f"{short}.{name}.loss", loss)
        record_spread(f"{short}.{name}", right)
        rows.append((task, name, spread(loss, ".2f"), spread(right, ".1%")))
table(rows, ("question", "shuffle", "training loss", "test accuracy"))

# %% tags=["pair-bound"]
first, second = test_labels
cases = torch.bincount(2 * first + second, minlength=4)  # 0 0, 0 1, 1 0 and 1 1
bound = 1 - (cases.min() / cases.sum()).item()  # three of the four cases right
record("pairs.bound", bound)
claim(0.75 < bound < 0.8, "a sum gets little more than 75% of the test pairs")

# %% tags=["pairs-figure"] alt="Test accuracy, a dot for each of three seeds. On the question which the first digit is, networks without and with the shuffle are both above 0.95. On the question same or different, networks without it lie near 0.5, below a dotted line a little above 0.75, the most a sum can do, and networks with it above 0.95."
_, axes = plt.subplots(figsize=(5, 2.6))
for place, task in enumerate(TASKS):
    for shift, name in ((-0.15, "without"), (0.15, "with")):
        colour = plots.COLOURS[1] if name == "without" else plots.COLOURS[0]
        right = [scores[task, name, number] for number in SEEDS]
        spots = [place + shift + 0.04 * (k - 1) for k in range(len(SEEDS))]
        axes.plot(spots, right, "o", color=colour, markersize=5)
        axes.annotate(
            name, (place + shift, min(right) - 0.1), color=colour, ha="center"
        )
axes.plot((0.55, 1.45), (bound, bound), ":", color=plots.QUIET)
axes.annotate("the most a sum can do", (0.55, 0.68), color=plots.QUIET)
axes.set(xticks=range(2), xticklabels=TASKS, xlim=(-0.45, 1.5), ylim=(0, 1.05))
axes.set(ylabel="test accuracy")
plt.show()

# %% tags=["headline-claims"]
easy, hard = TASKS
without = [scores[hard, "without", number] for number in SEEDS]
claim(max(without) < 0.6, "without the shuffle same or different stays near guessing")
claim(
    min(losses[hard, "without", n] for n in SEEDS) > 0.6, "also on the training pairs"
)
claim(
    min(scores[hard, "with", n] for n in SEEDS) > 0.95, "with it nearly all are right"
)
lowest = min(scores[easy, name, n] for name in MIXES for n in SEEDS)
claim(lowest > 0.95, "what one digit tells is learnt without a shuffle, too")
sizes = [counting.parameters(networks[hard, name, 0]) for name in MIXES]
claim(sizes[0] == sizes[1], "the shuffle has no parameters")
record("pair.parameters", sizes[0])
starts = []
for mix in MIXES.values():
    seed(0)
    starts.append(nn.utils.parameters_to_vector(PairNetwork(mix).parameters()))
claim((starts[0] == starts[1]).all(), "both start from the same weights")


# %% tags=["mixed-difference"]
def mixed_difference(network: nn.Module, x: Tensor) -> float:
    """How far outputs are from a sum of a part for each digit, relative to the largest.

    f(a, b) - f(a, b') - f(a', b) + f(a', b') is zero for every sum; x: (B, 2, H, W).
    """
    other = x.roll(1, dims=0)  # a', b'
    outputs = {}
    for name, a, b in (("ab", x, x), ("ab'", x, other), ("a'b", other, x)):
        outputs[name] = training.predict(
            network, torch.stack((a[:, 0], b[:, 1]), dim=1)
        )
    both = training.predict(network, other)
    difference = outputs["ab"] - outputs["ab'"] - outputs["a'b"] + both
    return (difference.abs().max() / both.abs().max()).item()


# %% tags=["mixed-result"]
mixed = {}
for name in MIXES:
    found = [mixed_difference(networks[hard, name, n], test_x) for n in SEEDS]
    mixed[name] = found
    record(f"mixed.{name}", max(found) if name == "without" else min(found))
claim(max(mixed["without"]) < 1e-4, "without the shuffle the outputs are a sum")
claim(min(mixed["with"]) > 0.1, "with it they are not")

# %% [markdown]
# ## ShuffleNet
#
# A stem, three stages, mean, linear layer. The first 1x1 convolution of stage 2 has 24
# channels in and no groups.


# %% tags=["network"]
class Stem(nn.Module):
    """3x3 convolution and maximum, a quarter of the side (table 1)."""

    def __init__(self, c_out: int):
        super().__init__()
        self.conv = conv_norm(3, c_out, 3, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # (B, 3, H, W) -> (B, c_out, H / 4, W / 4)
        return self.pool(torch.relu(self.conv(x)))


def stage(c_in: int, c: int, n: int, *, groups: int, first: int, mix) -> nn.Sequential:
    """n units; the first halves the map, its first 1x1 layer has `first` groups."""
    halving = HalvingUnit(c_in, c, first=first, second=groups, mix=mix)
    later = [Unit(c, groups=groups, mix=mix) for _ in range(n - 1)]
    return nn.Sequential(halving, *later)


class ShuffleNet(nn.Module):
    """Version 1 (Zhang et al. 2017, table 1): (B, 3, H, W) -> (B, 1000)."""

    def __init__(self, channels, groups: int, *, stem: int = 24, mix=Shuffle):
        super().__init__()
        a, b, c = channels
        self.stem = Stem(stem)
        self.stage2 = stage(stem, a, 4, groups=groups, first=1, mix=mix)
        self.stage3 = stage(a, b, 8, groups=groups, first=groups, mix=mix)
        self.stage4 = stage(b, c, 4, groups=groups, first=groups, mix=mix)
        self.classifier = nn.Linear(c, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, 24, H / 4, W / 4)
        x = self.stage2(x)  # (B, a, H / 8, W / 8)
        x = self.stage3(x)  # (B, b, H / 16, W / 16)
        x = self.stage4(x)  # (B, c, H / 32, W / 32)
        return self.classifier(x.mean((2, 3)))  # (B, 1000)


# %% tags=["sizes"]
CHANNELS = {  # groups: channels of the stages (table 1)
    1: (144, 288, 576),
    2: (200, 400, 800),
    3: (240, 480, 960),
    4: (272, 544, 1088),
    8: (384, 768, 1536),
}


def shufflenet_v1(groups: int = 3, *, mix=Shuffle) -> ShuffleNet:
    return ShuffleNet(CHANNELS[groups], groups, mix=mix)


# %% [markdown]
# How far do the groups mix without a shuffle? Behind the units of stride 2 the borders of
# the groups lie elsewhere, because the concatenation puts two sets of them in a row.

# %% tags=["stages-reach"]
share = {}
for groups in (2, 3, 4, 8):
    a, b, c = CHANNELS[groups]
    for name, mix in MIXES.items():
        how = {"groups": groups, "first": groups, "mix": mix}
        stage3 = stage(a, b, 8, **how)
        both = nn.Sequential(stage3, stage(b, c, 4, **how))
        for stages, part in ((1, stage3), (2, both)):
            found = connections(part, a, side=4)
            share[groups, name, stages] = found.double().mean().item()

# %% tags=["stages-table"]
rows = []
for groups in (2, 3, 4, 8):
    found = [share[groups, "without", k] for k in (1, 2)]
    claim(share[groups, "with", 1] == 1, f"{groups} groups: with a shuffle all")
    claim(found[0] > 1 / groups, f"{groups} groups: the concatenation mixes")
    rows.append((groups, f"{1 / groups:.1%}", *(f"{value:.1%}" for value in found)))
claim(share[8, "without", 2] < 1, "with 8 groups half a network is not heard")
table(rows, ("groups", "one group's share", "after stage 3", "after stage 4"))

# %% [markdown]
# ## Version 2
#
# Half of the channels pass by. The other half goes through a branch without groups, and
# the shuffle stands at the end.


# %% tags=["v2-branch"]
def branch_v2(c_in: int, c_out: int, *, stride: int = 1) -> nn.Sequential:
    """1x1, depthwise 3x3, 1x1, all of one width (Ma et al. 2018, figure 3)."""
    return nn.Sequential(
        conv_norm(c_in, c_out, 1),
        nn.ReLU(),
        conv_norm(c_out, c_out, 3, stride=stride, groups=c_out),
        conv_norm(c_out, c_out, 1),
        nn.ReLU(),
    )


# %% tags=["v2-unit"]
class SplitUnit(nn.Module):
    """Keep one half, work on the other, shuffle both (figure 3c)."""

    def __init__(self, c: int):
        super().__init__()
        self.branch = branch_v2(c // 2, c // 2)
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c, H, W) -> (B, c, H, W)
        kept, worked = x.chunk(2, dim=1)  # (B, c / 2, H, W) each
        return self.shuffle(torch.cat((kept, self.branch(worked)), dim=1))


# %% tags=["v2-halving"]
class HalvingSplitUnit(nn.Module):
    """Both branches work on all channels and halve the map (figure 3d)."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.side = nn.Sequential(
            conv_norm(c_in, c_in, 3, stride=2, groups=c_in),
            conv_norm(c_in, c_out // 2, 1),
            nn.ReLU(),
        )
        self.branch = branch_v2(c_in, c_out // 2, stride=2)
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / 2, W / 2)
        return self.shuffle(torch.cat((self.side(x), self.branch(x)), dim=1))


# %% tags=["v2-shape"]
HalvingSplitUnit(116, 232)(torch.randn(2, 116, 28, 28)).shape


# %% tags=["v2-figure"] alt="Two diagrams. Stride 1: x is split; the left half goes past the layers along an arrow named kept; the right half goes through a 1x1 convolution, ReLU, a depthwise 3x3, a 1x1 convolution and ReLU; both meet in a concatenation, followed by the shuffle. Stride 2: x goes into two branches, at the left a 3x3 depthwise of stride 2, a 1x1 convolution and ReLU, at the right 1x1, ReLU, a 3x3 depthwise of stride 2, 1x1 and ReLU; both meet in a concatenation, followed by the shuffle."
axes = diagrams.sheet(4.75)
end = ("1×1", "ReLU")
halving = "3×3 depthwise\nstride 2"
a = drawn_chain("a", 1.45, 1.05, ("1×1", "ReLU", "3×3 depthwise", *end))
b = drawn_chain("b", 4.25, 1.05, ("1×1", "ReLU", halving, *end))
c = drawn_chain("c", 2.85, 1.53, (halving, *end))
ends = {}
for name, x, start in (("1", 0.95, "split"), ("2", 3.55, "$x$")):
    ends[f"title{name}"] = diagrams.Node(x, 0.2, f"stride {name}", weight="bold")
    ends[f"top{name}"] = diagrams.Node(x, 0.58, start)
    ends |= drawn_chain(f"end{name}", x, 3.65, ("concatenate", "shuffle", ""))
ends["kept"] = diagrams.Node(0.45, 1.9, "kept", colour=plots.COLOURS[1])
arrows = drawn_arrows(a, b, c) + [("top2", "b0"), ("b4", "end20"), ("top2", "c0")]
arrows += [("c2", "end20"), ("top1", "a0"), ("a4", "end10")]
for name in ("1", "2"):
    arrows += [(f"end{name}0", f"end{name}1"), (f"end{name}1", f"end{name}2")]
diagrams.draw(
    axes, a | b | c | ends, arrows, [("top1", (0.15, 0.58), (0.15, 3.65), "end10")]
)


# %% tags=["v2-network"]
def stage_v2(c_in: int, c: int, n: int) -> nn.Sequential:
    """n units; the first halves the map and widens."""
    return nn.Sequential(
        HalvingSplitUnit(c_in, c), *[SplitUnit(c) for _ in range(n - 1)]
    )


class ShuffleNetV2(nn.Module):
    """Ma et al. 2018, table 5: (B, 3, H, W) -> (B, 1000)."""

    def __init__(self, channels):
        super().__init__()
        a, b, c, last = channels
        self.stem = Stem(24)
        self.stage2 = stage_v2(24, a, 4)
        self.stage3 = stage_v2(a, b, 8)
        self.stage4 = stage_v2(b, c, 4)
        self.last = conv_norm(c, last, 1)
        self.classifier = nn.Linear(last, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, 24, H / 4, W / 4)
        x = self.stage2(x)  # (B, a, H / 8, W / 8)
        x = self.stage3(x)  # (B, b, H / 16, W / 16)
        x = self.stage4(x)  # (B, c, H / 32, W / 32)
        x = torch.relu(self.last(x))  # (B, last, H / 32, W / 32)
        return self.classifier(x.mean((2, 3)))  # (B, 1000)


# %% tags=["v2-sizes"]
CHANNELS_V2 = {  # channels of the stages and of the last 1x1 convolution (table 5)
    "x0_5": (48, 96, 192, 1024),
    "x1_0": (116, 232, 464, 1024),
    "x1_5": (176, 352, 704, 1024),
    "x2_0": (244, 488, 976, 2048),
}


def shufflenet_v2(size: str) -> ShuffleNetV2:
    return ShuffleNetV2(CHANNELS_V2[size])


# %% [markdown]
# In the authors' code the side of a unit of stride 2 keeps its number of channels, and the
# branch makes the rest.


# %% tags=["as-authors"]
def as_authors(network: ShuffleNetV2) -> ShuffleNetV2:
    """Replace the layers of other sizes in the authors' code, to count them."""
    for stage in (network.stage2, network.stage3, network.stage4):
        unit = stage[0]
        c_in = unit.side[0][0].out_channels
        width = unit.branch[2][0].out_channels  # half of the unit's outputs
        unit.side[1] = conv_norm(c_in, c_in, 1)
        unit.branch[3] = conv_norm(width, 2 * width - c_in, 1)
    return network


# %% [markdown]
# ## Counted
#
# On the meta device, at 224x224. The complexity of table 1 of the first paper is that of
# the convolutions alone.

# %% tags=["count"]
PRINTED = {"v1g1": 143, "v1g2": 140, "v1g3": 137, "v1g4": 133, "v1g8": 137}
PRINTED |= {"v2x0_5": 41, "v2x1_0": 146, "v2x1_5": 299, "v2x2_0": 591}
rows = []
cost = {}
with torch.device("meta"):
    image = torch.empty(1, 3, 224, 224)
    built = {f"v1g{groups}": shufflenet_v1(groups) for groups in CHANNELS}
    built |= {f"v2{size}": shufflenet_v2(size) for size in CHANNELS_V2}

# %% tags=["count-table"]
for name, network in built.items():
    parameters = counting.parameters(network)
    macs = counting.macs(network, image)
    linear = network.classifier.in_features * 1000
    cost[name] = (macs, macs - linear)
    record(f"{name}.parameters", parameters)
    record(f"{name}.macs", macs)
    words = f"version {name[1]}, " + (
        f"g = {name[3:]}" if name[1] == "1" else f"{name[3:].replace('_', '.')}×"
    )
    millions = [f"{value / 1e6:.1f}" for value in cost[name]]
    rows.append((words, parameters, *millions, PRINTED[name]))
table(rows, ("network", "parameters", "M MACs", "without linear", "paper"))

# %% tags=["count-claims"]
for name, (macs, convolutions) in cost.items():
    if name.startswith("v1"):
        words = f"{name}: the convolutions cost what table 1 prints"
        claim(round(convolutions / 1e6) == PRINTED[name], words)
    else:
        gap = 1 - macs / 1e6 / PRINTED[name]
        claim(0.007 < gap < 0.014, f"{name}: about one percent below table 5")
        with torch.device("meta"):
            theirs = as_authors(shufflenet_v2(name[2:]))
        millions = counting.macs(theirs, image) / 1e6
        record(f"{name}.authors", millions)
        words = f"{name}: the authors' split of channels costs what table 5 prints"
        claim(abs(millions - PRINTED[name]) < 0.6, words)

# %% tags=["drawn"] alt="ShuffleNet with three groups from top to bottom, with output shape and parameters at the right: an input of 3x224x224, the stem, then three stages with a loop past each, whose maps shrink from 28 to 7 pixels a side while the channels grow from 240 to 960, and the linear layer to 1000."
drawing.draw(built["v1g3"], image)

# %% [markdown]
# ## Equal to torchvision
#
# Version 2 takes torchvision's weights. Version 1 is in no library here: with the second
# convolution of a unit written out as one without groups and without a shuffle, the same
# numbers come out.

# %% tags=["equal"]
rows = []
for size in ("x0_5", "x1_0"):
    seed(0)
    theirs = getattr(torchvision.models, f"shufflenet_v2_{size}")()
    theirs = checks.randomise_norms(theirs)
    ours = shufflenet_v2(size)
    checks.transplant(theirs, ours)
    found = checks.same_outputs(ours, theirs, torch.randn(2, 3, 64, 64))
    rows.append((f"version 2, {size.replace('_', '.')[1:]}×", "torchvision", found))


# %% tags=["as-dense"]
@torch.no_grad()
def ungrouped(conv: nn.Conv2d) -> nn.Conv2d:
    """The same 1x1 convolution without groups: zeros between channels of two groups."""
    dense = nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=False)
    blocks = conv.weight.flatten(1).chunk(conv.groups)
    dense.weight.copy_(torch.block_diag(*blocks)[:, :, None, None])
    return dense


@torch.no_grad()
def without_shuffle(unit: Unit) -> Unit:
    """The same unit without groups and shuffle: the shuffle moved into the weights."""
    dense = copy.deepcopy(unit)
    first, _, shuffle, depthwise, last = dense.branch
    for part in (first, last):
        part[0] = ungrouped(part[0])
    g = shuffle.groups
    n = len(first[0].weight) // g
    order = [i * n + j for j in range(n) for i in range(g)]  # i n + j goes to j g + i
    for tensor in first.state_dict().values():
        if tensor.ndim:
            tensor.copy_(tensor[order])
    dense.branch[2] = nn.Identity()
    return dense


# %% tags=["equal-result"]
seed(0)
unit = checks.randomise_norms(Unit(240, groups=3))
found = checks.same_outputs(unit, without_shuffle(unit), torch.randn(2, 240, 14, 14))
rows.append(("unit of version 1, g = 3", "no groups, no shuffle", found))
shown = [(name, reference, f"{found:.1e}") for name, reference, found in rows]
table(shown, ("network", "reference", "largest difference"))

# %% [markdown]
# ## Four guidelines
#
# Layers of equal multiply-accumulates on a map of 28x28: the values that they read and
# write, counted, and the time of one pass on one thread of the CPU, the least of 40, as
# a multiple of the first row's, three times over. A time says what this run saw; nothing
# here rests on it.


# %% tags=["guideline-layers"]
def conv(c_in: int, c_out: int, *, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 1, groups=groups, bias=False)


class Pieces(nn.Module):
    """A 1x1 convolution cut into n, each with a share of the outputs."""

    def __init__(self, c: int, n: int):
        super().__init__()
        self.pieces = nn.ModuleList(conv(c, c // n) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        # (B, c, H, W) -> (B, c, H, W)
        return torch.cat([piece(x) for piece in self.pieces], dim=1)


# %% tags=["guideline-cases"]
def without_norms(unit: Unit) -> Unit:
    """A copy without batch norm."""
    unit = copy.deepcopy(unit)
    for part in unit.branch:
        if isinstance(part, nn.Sequential):
            part[1] = nn.Identity()
    return unit


def guideline_cases() -> dict:
    """(guideline, what): layers and channels in, the MACs of a guideline are equal."""
    unit = Unit(240, groups=3)
    unmixed = Unit(240, groups=3, mix=nn.Identity)
    layers = [layer for layer in unit.modules() if isinstance(layer, nn.Conv2d)]
    return {
        ("channels (G1)", "1:1"): (nn.Sequential(conv(128, 128), conv(128, 128)), 128),
        ("channels (G1)", "1:16"): (nn.Sequential(conv(32, 512), conv(512, 32)), 32),
        ("channels (G1)", "1:64"): (nn.Sequential(conv(16, 1024), conv(1024, 16)), 16),
        ("groups (G2)", "1"): (conv(64, 64), 64),
        ("groups (G2)", "4"): (conv(128, 128, groups=4), 128),
        ("groups (G2)", "16"): (conv(256, 256, groups=16), 256),
        ("pieces (G3)", "1"): (Pieces(128, 1), 128),
        ("pieces (G3)", "4"): (Pieces(128, 4), 128),
        ("pieces (G3)", "16"): (Pieces(128, 16), 128),
        ("unit (G4)", "convolutions"): (nn.Sequential(*layers), 240),
        ("unit (G4)", "+ ReLU, sum"): (without_norms(unmixed), 240),
        ("unit (G4)", "+ shuffle"): (without_norms(unit), 240),
        ("unit (G4)", "+ batch norm"): (unit, 240),
    }


# %% tags=["measures"]
class Moved(TorchDispatchMode):
    """Counts the values that the operators run inside it read and write.

    The memory access cost of Ma et al. 2018, guideline 1. Views move nothing.
    """

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
def moved(network: nn.Module, x: Tensor) -> int:
    """Values read and written in a forward pass, weights included."""
    with Moved() as counter:
        network(x)
    return counter.values


@torch.no_grad()
def shortest(passes, *, rounds: int) -> list[float]:
    """Least seconds of one pass for each (network, input), in turn, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = [math.inf] * len(passes)
    for _ in range(rounds):
        for k, (network, x) in enumerate(passes):
            start = time.perf_counter()
            network(x)
            best[k] = min(best[k], time.perf_counter() - start)
    torch.set_num_threads(threads)
    return best


# %% tags=["guidelines"]
REPEATS = 3
seed(0)
cases = guideline_cases()
passes = [(layers.eval(), torch.randn(1, c, 28, 28)) for layers, c in cases.values()]
taken = [dict(zip(cases, shortest(passes, rounds=40))) for _ in range(REPEATS)]
macs = {case: counting.macs(*one) for case, one in zip(cases, passes)}
values = {case: moved(*one) for case, one in zip(cases, passes)}

# %% tags=["guidelines-table", "times"]
rows = []
ratios = {}  # of values and of times to those of the first row of a guideline
first = {}
for guideline, what in cases:
    case = (guideline, what)
    base = first.setdefault(guideline, case)
    claim(macs[case] == macs[base], f"{guideline} {what}: equal multiply-accumulates")
    times = [one[case] / one[base] for one in taken]
    ratios[case] = (values[case] / values[base], times)
    shown = (f"{macs[case] / 1e6:.1f}", f"{ratios[case][0]:.1f}", spread(times, ".2f"))
    rows.append((guideline, what, *shown))
table(rows, ("guideline", "layers", "M MACs", "values moved", "time"))

# %% tags=["guidelines-claims"]
for guideline in first:
    kind = [ratios[case][0] for case in cases if case[0] == guideline]
    claim(kind == sorted(set(kind)), f"{guideline}: each row moves more values")
more, times = ratios["channels (G1)", "1:16"]
record("values.G1", more)
record_spread("time.G1", times)

# %% tags=["pieces-equal"]
whole = cases["pieces (G3)", "1"][0]
cut = cases["pieces (G3)", "16"][0]
for piece, weight in zip(cut.pieces, whole.pieces[0].weight.chunk(16)):
    piece.load_state_dict({"weight": weight})
x = torch.randn(1, 128, 28, 28)
claim(
    checks.deviation(cut(x), whole(x)) < 1e-5, "16 pieces compute what the whole does"
)

# %% tags=["network-times"]
x = torch.randn(1, 3, 224, 224)
rivals = {f"v1g{groups}": shufflenet_v1(groups).eval() for groups in (1, 3, 8)}
rivals["v2x1_0"] = shufflenet_v2("x1_0").eval()
passes = [(network, x) for network in rivals.values()]
taken = [dict(zip(rivals, shortest(passes, rounds=12))) for _ in range(REPEATS)]

# %% tags=["network-times-table", "times"]
rows = []
for name, network in rivals.items():
    times = [one[name] / one["v1g1"] for one in taken]
    version = "version 2, 1×" if name == "v2x1_0" else f"version 1, g = {name[3:]}"
    more = moved(network, x) / moved(rivals["v1g1"], x)
    record(f"values.{name}", more)
    shown = (f"{cost[name][0] / 1e6:.1f}", f"{more:.2f}", spread(times, ".2f"))
    rows.append((version, *shown))
table(rows, ("network", "M MACs", "values moved", "time"))
claim(cost["v1g8"][0] < cost["v1g1"][0] < cost["v2x1_0"][0], "fewest MACs: 8 groups")
many = moved(rivals["v1g8"], x)
few = moved(rivals["v2x1_0"], x)
claim(many > 2 * few, "eight groups move more than twice the values of version 2")
claim(
    few < 1.1 * moved(rivals["v1g1"], x), "version 2 moves about as many as one group"
)

# %% [markdown]
# ## Look inside
#
# What of the channels that enter a stage of version 2 is still there, unchanged, after so
# many units?


# %% tags=["reuse"]
@torch.no_grad()
def unchanged(units: nn.Module, x: Tensor) -> list[int]:
    """After each unit: how many channels of x, (1, C, H, W), are among the outputs."""
    counts = []
    y = x
    for unit in units:
        y = unit(y)
        same = (y[0, :, None] == x[0, None]).all(3).all(2)  # (C, C)
        counts.append(int(same.any(0).sum()))
    return counts


# %% tags=["reuse-run"]
seed(0)
network = shufflenet_v2("x1_0").eval()
kept = unchanged(network.stage3[1:], torch.randn(1, 232, 6, 6))
record("kept.first", kept[0])
record("kept.last", kept[-1])
table(enumerate(kept, start=1), ("units", "of 232 channels unchanged"))

# %% tags=["reuse-figure"] alt="Number of unchanged channels, on a logarithmic scale, against the number of units, 1 to 7: dots fall from 116 to 58 and on to 2, along a dotted line that halves with each unit."
_, axes = plt.subplots(figsize=(5, 2.6))
steps = list(range(1, len(kept) + 1))
axes.plot(steps, kept, "o", color=plots.COLOURS[0])
axes.plot(steps, [232 / 2**k for k in steps], ":", color=plots.QUIET)
axes.annotate("halved by each unit", (3.3, 35), color=plots.QUIET)
axes.set(xlabel="units", ylabel="channels unchanged", yscale="log")
axes.set(xticks=steps, yticks=(1, 10, 100), yticklabels=(1, 10, 100))
plt.show()

# %% tags=["reuse-claims"]
for k, channels in zip(steps, kept):
    words = f"after {k} units 232 / 2^{k} channels, up to rounding, are unchanged"
    claim(abs(channels - 232 / 2**k) < 1, words)

# %% [markdown]
# ## What we saw
#
# - Without a shuffle, units with groups are networks side by side: an output hears its own
#   group, and what needs two groups is not learnt. With it every output hears every input.
# - Groups buy channels: at equal multiply-accumulates version 1 has 144 to 384 of them in
#   its first stage. Groups, unequal widths, pieces and element-wise steps move values that
#   multiply-accumulates do not show.
# - Version 2 drops the groups, and half of its channels pass by each unit.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
c = 240
m = 60
g = 3
pixels = 28 * 28
resnet_unit = pixels * (2 * c * m + 9 * m * m)
resnext_unit = pixels * (2 * c * m + 9 * m * m // g)
shuffle_unit = pixels * (2 * c * m // g + 9 * m)

# %% tags=["solution-1-result"]
counted = counting.macs(Unit(c, groups=g), torch.randn(1, c, 28, 28))
claim(counted == shuffle_unit, "the formula gives the count")
record("unit.ratio", resnet_unit / shuffle_unit)
rows = [
    ("ResNet", resnet_unit),
    ("ResNeXt", resnext_unit),
    ("ShuffleNet", shuffle_unit),
]
table([*rows, ("ShuffleNet, counted", counted)], ("unit", "MACs"))

# %% tags=["solution-2"]
seed(0)
network = PairNetwork(nn.Identity).to(device)
labels = TASKS[hard]
longer = train(network, (train_x, labels(*train_labels)), epochs=3 * EPOCHS)
after = training.evaluate(network, (test_x, labels(*test_labels)))

# %% tags=["solution-2-result"]
record("longer", after)
claim(abs(after - 0.5) < 0.1, "after three times the epochs it still guesses")
before = losses[hard, "without", 0]
claim(longer < before, "the loss on the training pairs falls")
record("longer.loss", longer)
record("longer.before", before)
table([(f"{longer:.2f}", f"{after:.1%}")], ("training loss", "test accuracy"))

# %% tags=["solution-3"]
hears = []
units = [Unit(96, groups=8) for _ in range(3)]
for n in (1, 2, 3):
    found = connections(nn.Sequential(*units[:n]), 96)
    hears.append((n, int(found.sum(1).min()), int(found.sum(1).max())))

# %% tags=["solution-3-result"]
claim(hears[0][2] < 96, "three channels a group reach fewer than eight groups")
claim(hears[1][1] == 96, "after two units everything is heard")
table(hears, ("units", "least heard of 96", "most"))


# %% tags=["solution-4"]
@torch.no_grad()
def shuffled_later(unit: Unit) -> Unit:
    """The same unit with the shuffle behind the depthwise convolution."""
    later = copy.deepcopy(unit)
    first, relu, shuffle, depthwise, last = later.branch
    back = Shuffle(depthwise[0].in_channels // shuffle.groups)  # undoes the shuffle
    for tensor in depthwise.state_dict().values():
        if tensor.ndim:
            tensor.copy_(back(tensor.view(1, len(tensor), -1, 1)).view(tensor.shape))
    later.branch = nn.Sequential(first, relu, depthwise, shuffle, last)
    return later


# %% tags=["solution-4-result"]
x = torch.randn(2, 240, 14, 14)
found = checks.same_outputs(shuffled_later(unit), unit, x)
claim(found < 1e-6, "the shuffle behind the depthwise convolution gives the same")
