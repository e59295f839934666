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
# # GoogLeNet
#
# The Inception module and the network of nine of them, as published and as in torchvision: counted, checked,
# and trained small on digits with and without the two auxiliary heads.
# The text to it is the [chapter](../chapters/googlenet.rst), the paper is
# [Szegedy et al. 2015](https://arxiv.org/abs/1409.4842).

# %%
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import PROFILE, claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, drawing, images, plots, training

# %% [markdown]
# ## One row of table 1
#
# Six widths describe a module: the outputs of its six convolutions.


# %% tags=["rows"]
class Row(NamedTuple):
    """Output channels of the convolutions of one module; columns of table 1 of the paper."""

    one: int  # 1x1
    reduce3: int  # 1x1 in front of the 3x3
    three: int
    reduce5: int  # 1x1 in front of the 5x5
    five: int
    pool: int  # 1x1 behind the pooling

    @property
    def c_out(self) -> int:
        return self.one + self.three + self.five + self.pool


TABLE_1 = {
    "3a": Row(64, 96, 128, 16, 32, 32),
    "3b": Row(128, 128, 192, 32, 96, 64),
    "4a": Row(192, 96, 208, 16, 48, 64),
    "4b": Row(160, 112, 224, 24, 64, 64),
    "4c": Row(128, 128, 256, 24, 64, 64),
    "4d": Row(112, 144, 288, 32, 64, 64),
    "4e": Row(256, 160, 320, 32, 128, 128),
    "5a": Row(256, 160, 320, 32, 128, 128),
    "5b": Row(384, 192, 384, 48, 128, 128),
}

# %% [markdown]
# ## Two forms
#
# What the published network and torchvision's differ in is passed in, so that one set of classes builds both.


# %% tags=["forms"]
@dataclass(frozen=True)
class Form:
    """What differs between the published network and its descendants."""

    conv: Callable  # (c_in, c_out, size, stride) -> convolution and what follows it
    large: int  # kernel of the third branch
    norm: Callable  # normalisation in the stem
    last_pool: int  # window of the max pooling behind 4e
    head_pool: Callable  # to 4x4 in front of an auxiliary head
    dropout: float  # in front of the classifier


def conv_relu(c_in: int, c_out: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution with bias, then ReLU: as published."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, size, stride, size // 2), nn.ReLU())


def conv_norm(c_in: int, c_out: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU; torchvision's epsilon."""
    conv = nn.Conv2d(c_in, c_out, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out, eps=1e-3), nn.ReLU())


def response_norm() -> nn.Module:
    """Over five neighbouring channels; constants of Caffe's replication, the paper gives none."""
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)


PUBLISHED = Form(conv_relu, 5, response_norm, 3, lambda: nn.AvgPool2d(5, 3), 0.4)
TORCHVISION = Form(conv_norm, 3, nn.Identity, 2, lambda: nn.AdaptiveAvgPool2d(4), 0.2)


# %% [markdown]
# ## The module
#
# Four branches see the same input; their outputs are laid side by side along the channels.


# %% tags=["inception"]
class Inception(nn.Module):
    """Four branches on one input, concatenated: Szegedy et al. 2015, figure 2b."""

    def __init__(self, c_in: int, row: Row, form: Form = PUBLISHED):
        super().__init__()
        self.branches = nn.ModuleList(self.build(c_in, row, form.conv, form.large))

    def build(self, c_in: int, row: Row, conv: Callable, large: int) -> list[nn.Module]:
        return [
            conv(c_in, row.one, 1),
            nn.Sequential(conv(c_in, row.reduce3, 1), conv(row.reduce3, row.three, 3)),
            nn.Sequential(
                conv(c_in, row.reduce5, 1), conv(row.reduce5, row.five, large)
            ),
            nn.Sequential(nn.MaxPool2d(3, 1, padding=1), conv(c_in, row.pool, 1)),
        ]

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, one + three + five + pool, H, W)
        return torch.cat([branch(x) for branch in self.branches], dim=1)


# %% tags=["inception-shape"]
Inception(192, TABLE_1["3a"])(torch.randn(2, 192, 28, 28)).shape


# %% tags=["unreduced"]
class Unreduced(Inception):
    """The same outputs without the reductions: 3x3 and 5x5 read all channels of the input."""

    def build(self, c_in: int, row: Row, conv: Callable, large: int) -> list[nn.Module]:
        return [
            conv(c_in, row.one, 1),
            conv(c_in, row.three, 3),
            conv(c_in, row.five, large),
            nn.Sequential(nn.MaxPool2d(3, 1, padding=1), conv(c_in, row.pool, 1)),
        ]


# %% tags=["drawing"]
def draw_module(axes, title: str, columns: list[list[str]]) -> None:
    """Draw branches as columns of boxes between one input above and one concatenation below."""
    grey, height = {"arrowstyle": "->", "color": plots.QUIET}, max(map(len, columns))
    for i, layers in enumerate(columns):
        axes.annotate("", (i, height + 0.3), (1.5, height + 0.9), arrowprops=grey)
        for j, text in enumerate(layers):
            y, first = height - j, text.startswith("reduce")
            colour = plots.COLOURS[1 if first else 0]
            box = plt.Rectangle(
                (i - 0.44, y - 0.28), 0.88, 0.56, fill=False, edgecolor=colour
            )
            axes.add_patch(box)
            axes.text(i, y, text, ha="center", va="center", fontsize=10)
            below = y - 0.72 if j + 1 < len(layers) else 0.25
            axes.annotate("", (i, below), (i, y - 0.28), arrowprops=grey)
    axes.text(1.5, height + 1, "$x$", ha="center", fontsize=12)
    axes.plot([-0.44, 3.44], [0.2, 0.2], color=plots.INK)
    axes.text(1.5, 0.1, "concatenated channels", ha="center", va="top", fontsize=11)
    axes.set(xlim=(-0.5, 3.5), ylim=(-0.3, height + 1.3), title=title)
    axes.axis("off")


# %% tags=["module-figure"] alt="Two modules, each with four columns of boxes between an input x above and a bar of concatenated channels below. In the upper one the columns are a 1x1 convolution with 64 outputs, a 3x3 with 128, a 5x5 with 32, and a pooling followed by a 1x1 with 32. In the lower one a box to reduce stands before the 3x3, with 96 outputs, and before the 5x5, with 16."
_, grid = plt.subplots(2, 1, figsize=(5, 5))
pooling = ["max 3×3", "1×1, 32"]
draw_module(
    grid[0], "without reduction", [["1×1, 64"], ["3×3, 128"], ["5×5, 32"], pooling]
)
reduced = [["reduce, 96", "3×3, 128"], ["reduce, 16", "5×5, 32"]]
draw_module(grid[1], "Inception 3a", [["1×1, 64"], *reduced, pooling])

# %% [markdown]
# ## Heads and network
#
# An auxiliary head is a small classifier on the output of an inner module.


# %% tags=["head"]
def auxiliary_head(
    c_in: int,
    form: Form,
    widths: tuple[int, int] = (128, 1024),
    num_classes: int = 1000,
) -> nn.Sequential:
    """Pool to 4x4, 1x1 convolution, two linear layers: Szegedy et al. 2015, section 5."""
    narrow, hidden = widths
    first = [form.head_pool(), form.conv(c_in, narrow, 1), nn.Flatten()]
    last = [nn.ReLU(), nn.Dropout(0.7), nn.Linear(hidden, num_classes)]
    return nn.Sequential(*first, nn.Linear(16 * narrow, hidden), *last)


# %% tags=["network"]
class GoogLeNet(nn.Module):
    """Stages in a row, a classifier at the end, and a head behind each stage it is named after."""

    def __init__(self, stages: OrderedDict, heads: OrderedDict, classifier: nn.Module):
        super().__init__()
        self.stages = nn.Sequential(stages)
        self.heads = nn.ModuleDict(heads)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        # (B, c_in, H, W) -> (B, K); in training mode a list, the main output first
        outputs = []
        for name, stage in self.stages.named_children():
            x = stage(x)
            if self.training and name in self.heads:
                outputs.append(self.heads[name](x))
        y = self.classifier(x)
        return [y, *outputs] if self.training else y


# %% tags=["build"]
def pool(size: int = 3) -> nn.Module:
    """Halve the map; the last window may reach over the edge."""
    return nn.MaxPool2d(size, 2, ceil_mode=True)


def stem(form: Form) -> OrderedDict:
    """From the image to 192 channels at an eighth of the side: figure 3, lowest layers."""
    return OrderedDict(
        conv1=form.conv(3, 64, 7, 2),
        pool1=pool(),
        norm1=form.norm(),
        conv2=form.conv(64, 64, 1),
        conv3=form.conv(64, 192, 3),
        norm2=form.norm(),
        pool2=pool(),
    )


def assemble(
    stages: OrderedDict,
    c_in: int,
    rows: dict,
    form: Form,
    heads,
    widths,
    num_classes,
    block,
) -> GoogLeNet:
    """Put a module per row behind the given stages, pooling after 3b and 4e, heads where named."""
    extra = OrderedDict()
    for name, row in rows.items():
        stages[f"inception{name}"] = block(c_in, row, form)
        c_in = row.c_out
        if name in heads:
            extra[f"inception{name}"] = auxiliary_head(c_in, form, widths, num_classes)
        if name in ("3b", "4e"):
            stages[f"pool{name[0]}"] = pool(3 if name == "3b" else form.last_pool)
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(form.dropout)]
    return GoogLeNet(stages, extra, nn.Sequential(*last, nn.Linear(c_in, num_classes)))


# %% tags=["sizes"]
HEADS = ("4a", "4d")


def googlenet(form: Form = PUBLISHED, heads=HEADS, block=Inception) -> GoogLeNet:
    """GoogLeNet for 1000 classes: Szegedy et al. 2015, table 1 and figure 3."""
    return assemble(stem(form), 192, TABLE_1, form, heads, (128, 1024), 1000, block)


# %% tags=["auxiliary-loss"]
def total_loss(outputs: list[Tensor], y: Tensor, weight: float = 0.3) -> Tensor:
    """Cross entropy of the main output plus the weighted ones of the heads (section 5)."""
    main, *heads = [F.cross_entropy(output, y) for output in outputs]
    return main + weight * sum(heads)


# %% [markdown]
# ## Counting
#
# On the meta device. MACs are multiply-accumulates of convolutions and linear layers for one 224x224 image in
# evaluation mode, where the heads do not run.

# %% tags=["count"]
kinds = {"published": (PUBLISHED, Inception), "torchvision": (TORCHVISION, Inception)}
kinds["unreduced"] = (PUBLISHED, Unreduced)
rows, built = [], {}
for name, (form, block) in kinds.items():
    with torch.device("meta"):
        network, x = googlenet(form, block=block), torch.empty(1, 3, 224, 224)
    built[name], heads = network, counting.parameters(network.heads)
    main, macs = counting.parameters(network) - heads, counting.macs(network, x)
    rows.append((name, main, main + heads, f"{macs / 1e9:.3f}"))
    for key, value in {"parameters": main, "all": main + heads, "macs": macs}.items():
        record(f"{name}.{key}", value)
    record(f"{name}.gmacs", macs / 1e9)
table(rows, ("form", "main branch", "with both heads", "G MACs"))

# %% tags=["drawn"] alt="GoogLeNet from top to bottom, with output shape and parameters at the right: the input of 3x224x224, convolutions and pools down to 192 maps of 28 pixels a side, then Inception modules 3a and 3b, a pool to 14 pixels, 4a to 4e, a pool to 7 pixels, 5a and 5b, and the classifier. Lines cut the box of each Inception module into four parts, its branches."
drawing.draw(built["published"], torch.empty(1, 3, 224, 224, device="meta"))

# %% tags=["channels"]
rows, x, cost = [], torch.empty(1, 3, 224, 224, device="meta"), {}
for name, stage in built["published"].stages.named_children():
    if isinstance(stage, Inception):
        widths = [m.out_channels for m in stage.modules() if isinstance(m, nn.Conv2d)]
        without = built["unreduced"].stages.get_submodule(name)
        short = name.removeprefix("inception")
        cost[short] = counting.macs(stage, x), counting.macs(without, x)
        counts = sum(Row(*widths)[::2]) + widths[5], counting.parameters(stage)
        rows.append((short, *widths, *counts, f"{cost[short][0] / 1e6:.1f}"))
    x = stage(x)
heads = ("module", "1×1", "3×3 reduce", "3×3", "5×5 reduce", "5×5", "pool proj")
table(rows, (*heads, "output", "parameters", "M MACs"))

# %% tags=["reduction-figure"] alt="Horizontal bars of multiply-adds for the nine modules, a pair for each: with the reductions, and without them. The bars without are between two and a half and five times as long; the longest pair is 3b."
_, axes = plt.subplots(figsize=(5, 4.2))
names, colours = list(cost), (plots.COLOURS[0], plots.COLOURS[1])
for k, shift in enumerate((-0.2, 0.2)):
    lengths = [cost[name][k] / 1e6 for name in names]
    axes.barh([i + shift for i in range(9)], lengths, 0.36, color=colours[k])
axes.set(
    xlabel="million multiply-adds", yticks=range(9), yticklabels=names, ylim=(8.6, -0.6)
)
longest = max(without for _, without in cost.values()) / 1e6
axes.text(0.6 * longest, 2.7, "with reductions", color=colours[0], va="center")
axes.text(0.6 * longest, 3.3, "without", color=colours[1], va="center")
ratios = [without / own for own, without in cost.values()]
record("ratio.least", min(ratios))
record("ratio.most", max(ratios))
record("cost3b", cost["3b"][0] / 1e6)
record("cost3b.unreduced", cost["3b"][1] / 1e6)

# %% tags=["table-1"]
PAPER_OPS = {"3a": 128, "3b": 304, "4a": 73, "4b": 88, "4c": 100, "4d": 119, "4e": 170}
PAPER_OPS |= {"5a": 54, "5b": 71}  # millions, column "ops" of table 1
far = [name for name, ops in PAPER_OPS.items() if abs(cost[name][0] / 1e6 - ops) > 1]
claim(far == ["5a"], "all modules but 5a cost what table 1 says, to a million")
record("cost5a", cost["5a"][0] / 1e6)
record("parameters4c", counting.parameters(built["published"].stages.inception4c))
for name, head in built["published"].heads.items():
    record(f"head{name[-2:]}", counting.parameters(head))
table(
    [(name, ops, f"{cost[name][0] / 1e6:.1f}") for name, ops in PAPER_OPS.items()],
    ("module", "table 1, M", "counted, M"),
)

# %% tags=["first-layer"]
whole = counting.macs(built["published"], torch.empty(1, 3, 224, 224, device="meta"))
main = counting.parameters(built["published"]) - counting.parameters(
    built["published"].heads
)
plain = 7 * 7 * 3 * 64  # weights
separable = 7 * 7 * 3 * 8 + 24 * 64  # eight kernels for each colour, then 1x1
macs = [112 * 112 * weights for weights in (plain, separable)]
as_printed = round(separable / 1e3, 1) == 2.7 and round(macs[1] / 1e6) == 34
claim(as_printed, "a separable first layer has the weights and MACs of table 1")
as_printed = round((whole - macs[0] + macs[1]) / 1e9, 1) == 1.5
claim(as_printed, "with it the network has the 1.5 G MACs of section 1")
record("conv1", macs[0] / 1e6)
record("separable", macs[1] / 1e6)
record("separable.weights", separable)
record("fewer", 60e6 / main)  # parameters of AlexNet, by its abstract
rows = [
    ("plain", plain, f"{macs[0] / 1e6:.1f}"),
    ("separable", separable, f"{macs[1] / 1e6:.1f}"),
]
table([*rows, ("table 1", "2.7K", "34")], ("first layer", "weights", "M MACs"))

# %% tags=["branch-costs"]
rows = []
for name, row in TABLE_1.items():
    branches = built["published"].stages.get_submodule(f"inception{name}").branches
    counts = [sum(p.numel() for p in b.parameters() if p.ndim > 1) for b in branches]
    three, five, c_in = (
        counts[1] / row.three,
        counts[2] / row.five,
        branches[0][0].in_channels,
    )
    claim(three < 9 * c_in, f"{name}: behind its reduction the 3×3 branch costs less")
    claim(
        five < three,
        f"{name}: an output of the 5×5 branch costs less than one of the 3×3",
    )
    claim(
        row.five <= row.c_out / 5,
        f"{name}: at most a fifth of the outputs are of 5×5 kernels",
    )
    rows.append((name, 9 * c_in, round(three), 25 * c_in, round(five)))
columns = (
    "module",
    "3×3 on all",
    "3×3 behind reduction",
    "5×5 on all",
    "5×5 behind reduction",
)
table(rows, columns)  # weights for each output channel

# %% [markdown]
# ## Equal to torchvision
#
# Random batch-norm statistics first, then weights are copied pair by pair. The training flag of the outermost
# module alone makes both networks return their heads, with dropout off and batch norm in evaluation mode.


# %% tags=["with-heads"]
class WithHeads(nn.Module):
    """All outputs of a network in one tensor: main, 4a, 4d; everything inside in evaluation mode."""

    def __init__(self, network: nn.Module, order: tuple[int, ...] = (0, 1, 2)):
        super().__init__()
        self.network, self.order = network, order

    def forward(self, x: Tensor) -> Tensor:
        # (B, 3, H, W) -> (3, B, K)
        self.network.eval().training = True  # the flag of the outermost module alone
        outputs = self.network(x)
        self.network.eval()
        return torch.stack([outputs[i] for i in self.order])


# %% tags=["equal"]
seed(0)
reference = torchvision.models.googlenet(init_weights=False, aux_logits=True)
network = googlenet(TORCHVISION)
checks.transplant(checks.randomise_norms(reference), network)
x = torch.randn(2, 3, 96, 96)
pairs = {"main, evaluation": (network, reference)}
pairs["main, 4a, 4d"] = (WithHeads(network), WithHeads(reference, (0, 2, 1)))
deviations = [checks.same_outputs(*pair, x) for pair in pairs.values()]
record("deviation", max(deviations))
table(
    [(n, f"{d:.1e}") for n, d in zip(pairs, deviations)],
    ("outputs", "largest relative deviation"),
)


# %% [markdown]
# ## The published module, branch by branch
#
# No library has the published form. Its module is checked against four branches written with functions,
# and its windows are measured: an input pixel that a unit does not read has derivative zero.


# %% tags=["four-branches"]
def four_branches(block: Inception, x: Tensor) -> Tensor:
    """The published module once more, from its weights and plain functions."""
    convs = [layer for layer in block.modules() if isinstance(layer, nn.Conv2d)]

    def step(number: int, t: Tensor, padding: int = 0) -> Tensor:
        return F.conv2d(
            t, convs[number].weight, convs[number].bias, padding=padding
        ).relu()

    three, five = step(2, step(1, x), 1), step(4, step(3, x), 2)
    pooled = F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-math.inf), 3, 1)
    return torch.cat((step(0, x), three, five, step(5, pooled)), 1)


def window(branch: nn.Module, c_in: int) -> int:
    """Side of the square of input pixels that the unit at the centre of a branch depends on."""
    branch, x = branch.eval().double(), torch.rand(1, c_in, 11, 11).double()
    read, before = 0, branch(x)[0, :, 5, 5]
    for column in range(11):
        moved = x.clone()
        moved[..., column] += 10
        read += not torch.equal(branch(moved)[0, :, 5, 5], before)
    return read


# %% tags=["branches"]
block, x = Inception(192, TABLE_1["3a"]), torch.randn(2, 192, 14, 14)
with torch.no_grad():
    expected = four_branches(block, x)
    deviation = checks.deviation(block(x), expected)
    windows = [
        [window(b, 192) for b in Inception(192, TABLE_1["3a"], form).branches]
        for form in (PUBLISHED, TORCHVISION)
    ]
claim(deviation < 1e-5, "a module gives what four branches written out give")
claim(windows[0] == [1, 3, 5, 3], "the published branches see 1, 3, 5 and 3 pixels")
claim(windows[1] == [1, 3, 3, 3], "those of torchvision see 1, 3, 3 and 3")
record("branches.deviation", deviation)
table(
    [("published", *windows[0]), ("torchvision", *windows[1])],
    ("window of", "1×1", "3×3", "5×5", "pool"),
)

# %% [markdown]
# ## With and without the heads
#
# All nine modules at an eighth of the width, with real 5x5 and batch norm, on digits of 16x16 pixels.


# %% tags=["data"]
IMAGES = 900 if PROFILE == "sample" else 20_000
data = images.digits(size=16)
mean, std = data.train[0].mean(), data.train[0].std()
train_part, validation, test = [((x - mean) / std, y) for x, y in data[:3]]
train_part = train_part[0][:IMAGES], train_part[1][:IMAGES]
record("images", len(train_part[1]))
rows = [(n, *p[0].shape) for n, p in zip(data._fields, (train_part, validation, test))]
table(rows, ("part", "N", "C", "H", "W"))


# %% tags=["digit-network"]
DIGITS = Form(conv_norm, 5, nn.Identity, 3, lambda: nn.AdaptiveAvgPool2d(4), 0.4)


def digit_network(heads=HEADS, form: Form = DIGITS) -> GoogLeNet:
    """The nine modules at an eighth of their width: (B, 1, H, W) -> (B, 10)."""
    rows = {name: Row(*(width // 8 for width in row)) for name, row in TABLE_1.items()}
    first = OrderedDict(conv1=form.conv(1, 24, 3, 2))
    return assemble(first, 24, rows, form, heads, (16, 128), 10, Inception)


# %% tags=["train"]
EPOCHS = 5
BATCH = 50
RATE = 0.1
SEEDS = (0, 1, 2)
NETWORKS = {"two heads": HEADS, "no heads": ()}


def train(network: nn.Module, part, epochs: int = EPOCHS, rate: float = RATE) -> dict:
    """SGD with momentum; the rate rises for a fifth of the steps and falls to 0."""
    steps = epochs * math.ceil(len(part[1]) / BATCH)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.2, cycle_momentum=False
    )
    how = {
        "loss": total_loss,
        "batch": BATCH,
        "schedule": schedule,
        "validation": validation,
    }
    return training.fit(network, part, epochs, optimizer, **how)


@torch.no_grad()
def main_loss(network: nn.Module, part) -> float:
    """Cross entropy of the main output alone, in evaluation mode."""
    return F.cross_entropy(training.predict(network, part[0]), part[1]).item()


def draw_runs(runs: dict[tuple[str, int], list[float]]) -> None:
    """Mean over the seeds of each network's accuracy, a band from the smallest to the largest."""
    _, axes = plt.subplots()
    epochs, ends = range(1, EPOCHS + 1), {}
    for name, colour in zip(NETWORKS, plots.COLOURS):
        values = 100 * torch.tensor([runs[name, number] for number in SEEDS])
        ends[name] = plots.seed_band(axes, epochs, values, colour)
    axes.set(
        xlabel="epoch", ylabel="validation accuracy, %", ylim=(0, 100), xticks=epochs
    )
    plots.label_ends(axes, ends)


# %% tags=["curve"] alt="Validation accuracy over five epochs, mean of three seeds with a band from the smallest to the largest, for the network with two auxiliary heads and the one without. The two lines lie close together and their bands overlap all the way, from a tenth to more than four fifths."
networks, runs = {}, {}
for name, heads in NETWORKS.items():
    for number in SEEDS:
        seed(number)
        networks[name, number] = digit_network(heads).to(device)
        runs[name, number] = train(networks[name, number], train_part)["validation"]
draw_runs(runs)

# %% tags=["result"]
rows, tested = [], {}
for name in NETWORKS:
    those = [networks[name, number] for number in SEEDS]
    tested[name] = [training.evaluate(network, test) for network in those]
    losses = [main_loss(network, train_part) for network in those]
    for key, values in {"test": tested[name], "loss": losses}.items():
        record_spread(f"{name.replace(' ', '-')}.{key}", values)
    rows.append((name, spread(losses, ".2f"), spread(tested[name], ".1%")))
means = [sum(values) / len(values) for values in tested.values()]
least = min(max(values) - min(values) for values in tested.values())
claim(
    abs(means[0] - means[1]) < least,
    "the seeds of one network differ more than the two means",
)
columns = ("network", "training loss, main output", "test")
table(rows, columns)

# %% tags=["digit-parameters"]
both, bare = (
    counting.parameters(digit_network()),
    counting.parameters(digit_network(())),
)
steps = EPOCHS * math.ceil(IMAGES / BATCH)
for key, value in {
    "epochs": EPOCHS,
    "steps": steps,
    "batch": BATCH,
    "rate": RATE,
}.items():
    record(key, value)
record("digits.parameters", bare)
record("digits.heads", both - bare)
table([("no heads", bare), ("two heads", both)], ("network", "parameters"))

# %% [markdown]
# ### Gradients
#
# What the main loss and the two weighted losses of the heads send to the first kernel of each stage,
# before training, with batch norm and without; and without it from weights of twice the variance.


# %% tags=["gradients"]
PLAIN = Form(conv_relu, 5, nn.Identity, 3, lambda: nn.AdaptiveAvgPool2d(4), 0.4)


def xavier(network: nn.Module, gain: float = 1.0) -> nn.Module:
    """Uniform weights of variance gain / inputs of a unit; biases 0, in Caffe's replication 0.2."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = math.sqrt(3 * gain / layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


def stage_gradients(network: GoogLeNet, x: Tensor, y: Tensor) -> Tensor:
    """Gradient norms of each stage's first kernel: rows main loss, 0.3 of the heads' losses."""
    outputs = network.train()(x)
    main = F.cross_entropy(outputs[0], y)
    kernels = []
    for stage in network.stages.children():
        kernels += [m.weight for m in stage.modules() if isinstance(m, nn.Conv2d)][:1]
    norms = []
    for loss in (main, total_loss(outputs, y) - main):
        found = torch.autograd.grad(
            loss, kernels, retain_graph=True, materialize_grads=True
        )
        norms.append([gradient.norm() for gradient in found])
    return torch.tensor(norms)  # (2, stages)


# %% tags=["gradient-runs"]
batch, gradients, ratio = [part[:128].to(device) for part in train_part], {}, {}
for kind, how in {
    "plain": (PLAIN, 1),
    "doubled": (PLAIN, 2),
    "normed": (DIGITS, 1),
}.items():
    found, (form, gain) = [], how
    for number in SEEDS:
        seed(number)
        network = xavier(digit_network(form=form), gain).to(device)
        found.append(stage_gradients(network, *batch))
    gradients[kind] = (
        torch.stack(found).log().mean(0).exp()
    )  # geometric mean of the seeds
    ratio[kind] = (gradients[kind][1, 0] / gradients[kind][0, 0]).item()
    record(f"gradient.{kind}", ratio[kind])
claim(
    ratio["plain"] > 3,
    "without norm the heads send over 3 times the gradient of the main loss",
)
claim(
    ratio["doubled"] < 2,
    "with twice the variance they send less than twice that gradient",
)
claim(ratio["normed"] < 1, "with batch norm they send less than the main loss does")

# %% tags=["gradient-figure"] alt="Gradient norm at the first kernel of ten stages, on a log scale. Dotted, with batch norm: both lines fall from the input upwards and the main loss lies above the heads everywhere. Solid, without: the main loss falls towards the input, and the heads lie about ten times above it from 4a down."
_, axes = plt.subplots()
ends = {}
for kind, name, line in (("plain", "no norm", "-"), ("normed", "batch norm", ":")):
    for row, source, last in ((0, "main", 10), (1, "heads", 7)):
        values = gradients[kind][row, :last]
        axes.plot(range(last), values, line, color=plots.COLOURS[1 - row])
        ends[f"{source}, {name}"] = (9, values[-1].item())
axes.set(
    ylabel="gradient norm",
    yscale="log",
    xticks=range(10),
    xticklabels=["conv1", *TABLE_1],
)
axes.tick_params(axis="x", labelrotation=90)
plots.label_ends(axes, ends, [plots.COLOURS[i] for i in (1, 0, 1, 0)])

# %% [markdown]
# ## Look inside
#
# In the sample profile a photograph goes through the first module of a network that has seen digits and nothing
# else; in the full profile through torchvision's network with its published weights.


# %% tags=["eye"]
def imagenet_network() -> GoogLeNet:
    """Torchvision's form with the weights that torchvision publishes, which has no trained heads."""
    weights = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1
    network = googlenet(TORCHVISION, heads=())
    checks.transplant(
        torchvision.models.googlenet(weights=weights, progress=False), network
    )
    return network


# %% tags=["maps"] alt="Four rows of four feature maps of a portrait photograph, a row for each branch of a module: in the 1x1 row the picture is recognisable, partly as a negative; in the 3x3 row outlines stand bright on black; in the 5x5 row outlines and softer patches; in the pool row blocky light and dark patches."
if PROFILE == "full":
    eye, picture = (
        imagenet_network(),
        images.photograph() * 2 - 1,
    )  # as torchvision's is fed
else:
    eye, picture = (
        networks["no heads", 0],
        images.photograph(112, 112).mean(1, keepdim=True),
    )
    picture = (picture - mean) / std
before = list(eye.stages._modules).index("inception3a")
x = training.predict(eye.stages[:before], picture)
maps = []
for branch in eye.stages.inception3a.branches:
    found = training.predict(branch, x)[0]
    maps += list(
        found[found.flatten(1).std(1).argsort(descending=True)[:4]]
    )  # that vary most
plots.image_grid(maps, columns=4, scale=1.1)
third = "5×5" if PROFILE == "sample" else "3×3, the third"
for title, cell in zip(("1×1", "3×3", third, "pool"), plt.gcf().axes[::4]):
    cell.set_title(title, loc="left", fontsize=11)

# %% [markdown]
# ## What we saw
#
# - Six numbers a module and one class give the published network and torchvision's; with copied weights all three
#   outputs equal torchvision's.
# - Without the 1x1 reductions the same outputs cost almost three times the multiply-adds.
# - In this budget, with batch norm, no effect of the auxiliary heads shows on digits: the seeds differ more.
# - Without batch norm the heads send more gradient to the first kernel where the initial weights let the signal fade.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
row, c_in, side = TABLE_1["3a"], 192, 28
weights = c_in * (row.one + row.reduce3 + row.reduce5 + row.pool)
weights += 9 * row.reduce3 * row.three + 25 * row.reduce5 * row.five
by_hand = weights + sum(row), side * side * weights
counted = counting.parameters(built["published"].stages.inception3a), cost["3a"][0]
claim(by_hand == counted, "parameters and MACs by hand are those counted")
table(
    [("by hand", *by_hand), ("counted", *counted)], ("module 3a", "parameters", "MACs")
)


# %% tags=["solution-2"]
class TwoSmall(Inception):
    """Two 3x3 convolutions in a row in place of the 5x5, which they match in window."""

    def build(self, c_in: int, row: Row, conv: Callable, large: int) -> list[nn.Module]:
        branches = super().build(c_in, row, conv, large)
        branches[2][1] = nn.Sequential(
            conv(row.reduce5, row.five, 3), conv(row.five, row.five, 3)
        )
        return branches


with torch.device("meta"):
    changed, x = googlenet(block=TwoSmall, heads=()), torch.empty(1, 3, 224, 224)
size = window(TwoSmall(192, TABLE_1["3a"]).branches[2], 192)
claim(size == 5, "two 3×3 layers see 5×5 pixels")
claim(
    counting.parameters(changed) > main,
    "with two 3×3 layers the network has more parameters",
)
record("twosmall.parameters", counting.parameters(changed))
record("twosmall.gmacs", counting.macs(changed, x) / 1e9)
row = (
    f"{size}×{size}",
    counting.parameters(changed),
    f"{counting.macs(changed, x) / 1e9:.3f}",
)
table([row], ("window", "parameters", "G MACs"))

# %% tags=["solution-3"]
seed(0)
network = xavier(digit_network(form=PLAIN)).to(device)
history = train(network, train_part)
loss, validated = main_loss(network, train_part), history["validation"][-1]
claim(loss > 2, "without norm and heads the training loss stays above 2")
claim(
    validated < 0.3,
    "without norm and heads less than 30 % of the validation part are right",
)
record("plain.loss", loss)
record("plain.validation", validated)
table(
    [(f"{loss:.2f}", f"{validated:.1%}")], ("training loss, main output", "validation")
)


# %% tags=["solution-4"]
class Naive(Inception):
    """Figure 2a: no reductions, and the pooling passes all channels of the input on."""

    def build(self, c_in: int, row: Row, conv: Callable, large: int) -> list[nn.Module]:
        convs = [
            conv(c_in, row.one, 1),
            conv(c_in, row.three, 3),
            conv(c_in, row.five, large),
        ]
        return [*convs, nn.MaxPool2d(3, 1, padding=1)]


rows, macs = [], 0
x = torch.empty(1, 192, 28, 28, device="meta")
for name, row in TABLE_1.items():
    with torch.device("meta"):
        module = Naive(x.shape[1], row)
    macs, x = macs + counting.macs(module, x), module(x)
    rows.append((name, row.c_out, x.shape[1]))
    x = pool()(x) if name in ("3b", "4e") else x
record("naive.gmacs", macs / 1e9)
record("naive.channels", x.shape[1])
record("modules.gmacs", sum(own for own, _ in cost.values()) / 1e9)
table(rows, ("module", "channels with projection", "channels without"))
