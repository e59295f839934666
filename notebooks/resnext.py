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
# # ResNeXt
#
# Residual blocks whose branch is a sum of many small paths: its three forms proven equal, the published sizes
# counted and compared with torchvision; then more paths against wider ones on digits, at equal parameters.
# The text to it is the [chapter](../chapters/resnext.rst), the paper is
# [Xie et al. 2017](https://arxiv.org/abs/1611.05431).

# %%
import copy
import math
from collections import OrderedDict
from itertools import product

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import PROFILE, claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, drawing, images, plots, training

# %% [markdown]
# ## Three forms of one branch
#
# Drawn first: C = 32 paths of d = 4 channels between an input and an output of 256 channels.


# %% tags=["drawing"]
def draw_form(
    axes, middle: float, title: str, rows: list[str], paths: int, wide: float = 0
):
    """Draw one form; its first `paths` rows stand there twice, for all the paths, with dots between."""
    nodes = {"x": diagrams.Node(middle, 0.45, "$x$")}
    above, arrows = ["x"], []
    for i, text in enumerate(rows):
        y, offset = 1.05 + 0.72 * i, (wide + 0.28) / 2
        if i < paths:
            row = {f"left {i}": middle - offset, f"right {i}": middle + offset}
            nodes[f"dots {i}"] = diagrams.Node(middle, y, "…")
        else:
            row = {f"whole {i}": middle}
        for name, x in row.items():
            nodes[name] = diagrams.Node(x, y, text, width=wide if i < paths else 0.95)
        arrows += zip(above, row) if len(above) == len(row) else product(above, row)
        above = list(row)
    nodes["title"] = diagrams.Node(middle, 0.15, title, weight="bold")
    if len(above) > 1:
        y = 1 + 0.72 * len(rows)
        nodes["sum"] = diagrams.Node(middle, y, "sum", colour=plots.COLOURS[1])
        arrows += product(above, ["sum"])
    diagrams.draw(axes, nodes, arrows)


# %% tags=["forms-figure"] alt="Three columns of boxes. An x stands above each. Form a: two of 32 paths side by side with dots between, each a 1x1 to 4, a 3x3 to 4 and a 1x1 to 256 channels, with arrows meeting in the word sum. Form b: the same two paths without the last box; their arrows meet in one box, 1x1 to 256. Form c: a single column, 1x1 to 128, 3x3 to 128 in 32 groups, 1x1 to 256."
axes = diagrams.sheet(3.35)
paths = ["1×1, 4", "3×3, 4", "1×1, 256"]
draw_form(axes, 1.03, "a", paths, 3, 0.86)
draw_form(axes, 3.05, "b", paths, 2, 0.68)
draw_form(axes, 4.5, "c", ["1×1, 128", "3×3, 128,\n32 groups", "1×1, 256"], 0)

# %% [markdown]
# In code. The helper is that of the ResNet chapter with one more argument, the number of groups.


# %% tags=["conv-norm"]
def conv_norm(
    c_in: int, c_out: int, size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution without bias, then batch norm (its shift is the bias)."""
    conv = nn.Conv2d(c_in, c_out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


def narrow(c_in: int, width: int, stride: int, groups: int = 1) -> list[nn.Module]:
    """What the forms begin with: 1x1 down to the width, then 3x3; only the 3x3 is grouped."""
    first = conv_norm(c_in, width, 1)
    return [first, nn.ReLU(), conv_norm(width, width, 3, stride, groups), nn.ReLU()]


# %% tags=["grouped"]
def grouped(
    c_in: int, c_out: int, cardinality: int, width: int, stride: int = 1
) -> nn.Sequential:
    """Form c: one wide path whose 3x3 has `cardinality` groups of `width` channels (figure 3c)."""
    inner = cardinality * width
    return nn.Sequential(
        *narrow(c_in, inner, stride, cardinality), conv_norm(inner, c_out, 1)
    )


# %% tags=["paths"]
class ConcatenatedPaths(nn.Module):
    """Form b: paths of 1x1 and 3x3, their outputs side by side, one 1x1 (Xie et al. 2017, figure 3b)."""

    def __init__(
        self, c_in: int, c_out: int, cardinality: int, width: int, stride: int = 1
    ):
        super().__init__()
        paths = [
            nn.Sequential(*narrow(c_in, width, stride)) for _ in range(cardinality)
        ]
        self.paths = nn.ModuleList(paths)
        self.last = conv_norm(cardinality * width, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)
        return self.last(torch.cat([path(x) for path in self.paths], dim=1))


class SummedPaths(nn.Module):
    """Form a: a sum of paths of 1x1, 3x3 and 1x1 (Xie et al. 2017, equation 2 and figure 3a).

    The last batch norm stands behind the sum: one in each path would not be the same function.
    """

    def __init__(
        self, c_in: int, c_out: int, cardinality: int, width: int, stride: int = 1
    ):
        super().__init__()
        self.paths = nn.ModuleList()
        for _ in range(cardinality):
            last = nn.Conv2d(width, c_out, 1, bias=False)
            self.paths.append(nn.Sequential(*narrow(c_in, width, stride), last))
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)
        return self.norm(torch.stack([path(x) for path in self.paths]).sum(0))


# %% [markdown]
# ## Shared weights
#
# The paths take their weights from the wide layers: path i gets the i-th slice of channels, of the last 1x1 the
# i-th slice of input channels.


# %% tags=["share"]
@torch.no_grad()
def copy_slice(wide: nn.Sequential, path: nn.Sequential, mine: slice) -> None:
    """Give a path's convolution and batch norm the output channels `mine` of the wide ones."""
    for source, target in zip(wide, path):
        tensors = {k: t[mine] if t.ndim else t for k, t in source.state_dict().items()}
        target.load_state_dict(tensors)


@torch.no_grad()
def as_paths(branch: nn.Sequential) -> tuple[SummedPaths, ConcatenatedPaths]:
    """Forms a and b with the weights of form c."""
    first, middle, last = branch[0][0], branch[2][0], branch[4][0]
    cardinality, width = middle.groups, middle.in_channels // middle.groups
    sizes = first.in_channels, last.out_channels, cardinality, width, middle.stride[0]
    a, b = SummedPaths(*sizes), ConcatenatedPaths(*sizes)
    for form in (a, b):
        for i, path in enumerate(form.paths):
            for layer in (0, 2):
                copy_slice(
                    branch[layer], path[layer], slice(i * width, (i + 1) * width)
                )
    for i, path in enumerate(a.paths):
        path[4].weight.copy_(last.weight[:, i * width : (i + 1) * width])
    a.norm.load_state_dict(branch[4][1].state_dict())
    b.last.load_state_dict(branch[4].state_dict())
    return a.to(first.weight.device), b.to(first.weight.device)


# %% tags=["forms-equal"]
seed(0)
c, x = checks.randomise_norms(grouped(256, 256, 32, 4)), torch.randn(4, 256, 14, 14)
rows, worst = [], {}
for dtype in (torch.float32, torch.float64):
    for mode in ("evaluation", "training"):
        forms = [form.to(dtype).train(mode == "training") for form in (*as_paths(c), c)]
        a, b, y = (form(x.to(dtype)) for form in forms)
        found = checks.deviation(a, y), checks.deviation(b, y)
        worst[dtype] = max(worst.get(dtype, 0), *found)
        rows.append((str(dtype)[6:], mode, *(f"{d:.1e}" for d in found)))
    rounding = 20 * torch.finfo(dtype).eps
    claim(
        worst[dtype] < rounding,
        f"the three forms are equal but for the rounding of {dtype}",
    )
record("forms.deviation", worst[torch.float32])
table(rows, ("numbers", "mode", "a against c", "b against c"))

# %% [markdown]
# ## Cardinality against width
#
# A path costs $256 d + 9 d^2 + 256 d$ weights. Which $d$ gives $C$ paths the weights of ResNet's bottleneck of 64?


# %% tags=["equal-width"]
def branch_weights(cardinality: int, width: int, c_out: int = 256) -> int:
    """Weights of the three convolutions of a branch (Xie et al. 2017, equation 4)."""
    return cardinality * (c_out * width + 3 * 3 * width * width + width * c_out)


def equal_width(cardinality: int, c_out: int = 256) -> int:
    """Width whose weights come nearest to those of one path of c_out / 4 channels.

    The positive root of 9 d^2 + 2 c_out d = budget / cardinality, rounded.
    """
    budget = branch_weights(1, c_out // 4, c_out)
    return round((math.sqrt(c_out**2 + 9 * budget / cardinality) - c_out) / 9)


# %% [markdown]
# ## From the branch to the network


# %% tags=["block"]
class ResNeXtBlock(nn.Module):
    """y = relu(branch(x) + shortcut(x)) with a branch of many paths (Xie et al. 2017, equation 3).

    Against the bottleneck of ResNet only the branch is new.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        cardinality: int,
        width: int,
        stride=1,
        form=grouped,
    ):
        super().__init__()
        self.branch = form(c_in, c_out, cardinality, width, stride)
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else conv_norm(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)
        return torch.relu(self.branch(x) + self.shortcut(x))


# %% tags=["block-shape"]
ResNeXtBlock(256, 512, cardinality=32, width=8, stride=2)(
    torch.randn(2, 256, 56, 56)
).shape


# %% tags=["network"]
def stem(channels: int) -> nn.Sequential:
    """7x7 convolution and max pool, a quarter of the side (Xie et al. 2017, table 1)."""
    return nn.Sequential(
        conv_norm(3, channels, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)
    )


def resnext(
    depths,
    cardinality: int,
    width: int,
    make_stem=stem,
    c_out: int = 256,
    num_classes: int = 1000,
    form=grouped,
) -> nn.Sequential:
    """Stem, one stage per depth, mean, linear layer: (B, c_in, H, W) -> (B, num_classes).

    `width` and `c_out` are those of the first stage and double with each further one; the
    cardinality stays. Convolutions start from variance 2 / fan_out, as in torchvision.
    """
    c_in = c_out // 4
    parts = OrderedDict(stem=make_stem(c_in))
    for i, depth in enumerate(depths):
        sizes = c_out << i, cardinality, width << i
        blocks = [ResNeXtBlock(c_in, *sizes, 2 if i else 1, form)]
        blocks += [ResNeXtBlock(c_out << i, *sizes, 1, form) for _ in range(depth - 1)]
        parts[f"stage{i + 1}"], c_in = nn.Sequential(*blocks), c_out << i
    parts["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts["fc"] = nn.Linear(c_in, num_classes)
    network = nn.Sequential(parts)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network


# %% tags=["sizes"]
def resnext50(cardinality: int = 32, width: int = 4, form=grouped) -> nn.Sequential:
    return resnext((3, 4, 6, 3), cardinality, width, form=form)


def resnext101(cardinality: int = 32, width: int = 8) -> nn.Sequential:
    return resnext((3, 4, 23, 3), cardinality, width)


def resnext101_64x4d() -> nn.Sequential:
    return resnext101(64, 4)


# %% [markdown]
# ## Counting
#
# On the meta device: shapes but no memory. MACs are multiply-accumulates for one 224x224 image.

# %% tags=["count"]
builders = {"ResNeXt-50 32x4d": resnext50, "ResNeXt-101 32x8d": resnext101}
builders["ResNeXt-101 64x4d"] = resnext101_64x4d
rows = []
for name, build in builders.items():
    with torch.device("meta"):
        network, x = build(), torch.empty(1, 3, 224, 224)
    parameters, macs = counting.parameters(network), counting.macs(network, x)
    rows.append((name, parameters, f"{macs / 1e9:.3f}"))
    for key, value in (
        ("parameters", parameters),
        ("macs", macs),
        ("gmacs", macs / 1e9),
    ):
        record(f"{build.__name__}.{key}", value)
table(rows, ("network", "parameters", "G MACs"))

# %% tags=["pairs"]
rows, published = [], {1: 64, 2: 40, 4: 24, 8: 14, 32: 4}  # Xie et al. 2017, table 2
for cardinality, width in published.items():
    claim(
        equal_width(cardinality) == width, f"{cardinality} paths: the width of table 2"
    )
    with torch.device("meta"):
        network, x = resnext50(cardinality, width), torch.empty(1, 3, 224, 224)
    row = cardinality, width, cardinality * width, branch_weights(cardinality, width)
    rows.append(
        (*row, counting.parameters(network), f"{counting.macs(network, x) / 1e9:.3f}")
    )
    record(f"pair{cardinality}.weights", row[-1])
record("pairs.least", min(float(row[-1]) for row in rows))
record("pairs.most", max(float(row[-1]) for row in rows))
columns = (
    "C",
    "d",
    "channels of 3×3",
    "weights of branch",
    "parameters, 50 layers",
    "G MACs",
)
table(rows, columns)

# %% tags=["drawn"] alt="ResNeXt-50 from top to bottom, with output shape and parameters at the right: an input of 3x224x224, the stem, then four stages with a loop past each and the number of its blocks, 3, 4, 6 and 3, whose maps shrink from 56 to 7 pixels a side while the channels grow from 256 to 2048, the pool and the linear layer to 1000."
with torch.device("meta"):
    network, x = resnext50(), torch.empty(1, 3, 224, 224)
drawing.draw(network, x)

# %% [markdown]
# ## Equal to torchvision

# %% tags=["equal"]
references = {resnext50: torchvision.models.resnext50_32x4d}
references[resnext101] = torchvision.models.resnext101_32x8d
rows, deviations = [], []
for ours, theirs in references.items():
    seed(0)
    reference, network = checks.randomise_norms(theirs()), ours()
    checks.transplant(reference, network)
    deviations.append(
        checks.same_outputs(network, reference, torch.randn(2, 3, 40, 40))
    )
    rows.append((theirs.__name__, f"{deviations[-1]:.1e}"))
record("deviation", max(deviations))
table(rows, ("torchvision", "largest relative deviation"))

# %% [markdown]
# ## A mistake the shapes do not show
#
# Grouping the first 1x1 convolution too runs without an error and gives the same shapes.


# %% tags=["first-grouped"]
def first_grouped(c_in: int, c_out: int, cardinality: int, width: int, stride: int = 1):
    """Not ResNeXt: the first 1x1 is grouped as well, so that a path reads c_in / cardinality channels."""
    inner, branch = (
        cardinality * width,
        grouped(c_in, c_out, cardinality, width, stride),
    )
    branch[0] = conv_norm(c_in, inner, 1, groups=cardinality)
    return branch


def channels_read(branch: nn.Sequential) -> float:
    """Mean share of the input channels that one channel behind the 3x3 depends on."""
    x = torch.rand(1, branch[0][0].in_channels, 5, 5, requires_grad=True)
    y = branch[2][0](branch[0][0](x))  # the convolutions alone
    gradients = [
        torch.autograd.grad(y[0, i].sum(), x, retain_graph=True)[0] for i in range(8)
    ]
    return (
        torch.stack([g.abs().sum((0, 2, 3)) > 0 for g in gradients])
        .double()
        .mean()
        .item()
    )


# %% tags=["trap"]
rows = []
for form in (grouped, first_grouped):
    with torch.device("meta"):
        parameters = counting.parameters(resnext50(form=form))
    share = channels_read(form(256, 256, 32, 4))
    record(f"{form.__name__}.parameters", parameters)
    record(f"{form.__name__}.read", share)
    rows.append((form.__name__, parameters, f"{share:.1%}"))
table(rows, ("branch", "parameters, 50 layers", "input channels a path reads"))

# %% [markdown]
# ## Training
#
# The template at half the channels, two stages, on digits shrunk to 20x20: cardinality against width.


# %% tags=["data"]
IMAGES = 700 if PROFILE == "sample" else 20_000
data = images.digits(size=20)
mean, std = data.train[0].mean(), data.train[0].std()
train_part, validation, test = [((x - mean) / std, y) for x, y in data[:3]]
train_part = train_part[0][:IMAGES], train_part[1][:IMAGES]
record("images", len(train_part[1]))
rows = [(n, *p[0].shape) for n, p in zip(data._fields, (train_part, validation, test))]
table(rows, ("part", "N", "C", "H", "W"))


# %% tags=["digit-network"]
CARDINALITIES = (1, 4, 8)


def digit_stem(channels: int) -> nn.Sequential:
    """One 3x3 convolution and a max pool: a quarter of the side."""
    return nn.Sequential(
        conv_norm(1, channels, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)
    )


def digit_network(cardinality: int, form=grouped) -> nn.Sequential:
    """Two stages of two blocks at half the paper's channels, (B, 1, H, W) -> (B, 10)."""
    width = equal_width(cardinality, 128)
    return resnext((2, 2), cardinality, width, digit_stem, 128, 10, form)


# %% tags=["digit-parameters"]
rows, names = [], {}
for cardinality in CARDINALITIES:
    network, width = digit_network(cardinality), equal_width(cardinality, 128)
    names[cardinality] = f"{cardinality}x{width}d"
    parameters = counting.parameters(network)
    macs = counting.macs(network, torch.empty(1, 1, 20, 20))
    record(f"digits{cardinality}.parameters", parameters)
    rows.append((names[cardinality], parameters, f"{macs / 1e6:.2f}"))
table(rows, ("network", "parameters", "M MACs"))


# %% tags=["train"]
EPOCHS = 5
BATCH = 50
SEEDS = (0, 1, 2)


def train(
    network: nn.Module, part, epochs: int = EPOCHS, rate: float = 0.1
) -> list[float]:
    """SGD with momentum, the rate up along a cosine for a fifth and down to 0; mean loss per epoch."""
    optimizer = torch.optim.SGD(
        network.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4
    )
    steps = epochs * math.ceil(len(part[1]) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.2, cycle_momentum=False
    )
    return training.fit(
        network, part, epochs, optimizer, batch=BATCH, schedule=schedule
    )["loss"]


def fresh(cardinality: int, number: int, form=grouped) -> nn.Module:
    """A digit network with the weights of one seed."""
    seed(number)
    return digit_network(cardinality, form).to(device)


def draw_runs(losses: dict[tuple[int, int], list[float]]) -> None:
    """Mean over the seeds of each network's loss per epoch, a band from the smallest to the largest."""
    _, axes = plt.subplots()
    epochs, ends = range(1, EPOCHS + 1), {}
    for cardinality, colour in zip(CARDINALITIES, plots.COLOURS):
        runs = torch.tensor([losses[cardinality, number] for number in SEEDS])
        name = f"{cardinality}x{equal_width(cardinality, 128)}d"
        ends[name] = plots.seed_band(axes, epochs, runs, colour)
    axes.set(xlabel="epoch", ylabel="training loss", ylim=(0, None), xticks=epochs)
    plots.label_ends(axes, ends)


# %% tags=["curve"] alt="Training loss over five epochs for the networks 1x32d, 4x12d and 8x7d, mean of three seeds with a band from the smallest to the largest. The three lines fall from about 2.4 to about 0.1, that of 8x7d a little above the others; their bands overlap."
networks, losses = {}, {}
for cardinality in CARDINALITIES:
    for number in SEEDS:
        networks[cardinality, number] = fresh(cardinality, number)
        losses[cardinality, number] = train(networks[cardinality, number], train_part)
record("epochs", EPOCHS)
record("steps", EPOCHS * math.ceil(len(train_part[1]) / BATCH))
draw_runs(losses)

# %% tags=["result"]
rows, tested = [], {}
for cardinality in CARDINALITIES:
    last = [losses[cardinality, number][-1] for number in SEEDS]
    tested[cardinality] = [
        training.evaluate(networks[cardinality, n], test) for n in SEEDS
    ]
    record_spread(f"digits{cardinality}.loss", last)
    record_spread(f"digits{cardinality}.test", tested[cardinality])
    rows.append(
        (names[cardinality], spread(last, ".3f"), spread(tested[cardinality], ".1%"))
    )
table(rows, ("network", "training loss, last epoch", "test accuracy"))

# %% tags=["gap"]
means = [sum(values) / len(values) for values in tested.values()]
gap = max(means) - min(means)
widest = max(max(values) - min(values) for values in tested.values())
record("gap", 100 * gap)
record("widest", 100 * widest)
claim(
    gap < 0.03,
    "the means of the three networks are within three points: no effect is seen",
)
table(
    [(f"{100 * gap:.1f}", f"{100 * widest:.1f}")],
    ("between means, points", "between seeds"),
)

# %% [markdown]
# ## Look inside
#
# A grouped kernel is a full one with zeros outside its blocks. The norm of each 3x3 kernel, output channel by
# input channel, in the first block of the second stage after training.


# %% tags=["connections"]
def connections(conv: nn.Conv2d) -> Tensor:
    """Norm of the kernel between each output and input channel, zero between groups: (c_out, c_in)."""
    return torch.block_diag(*conv.weight.detach().norm(dim=(2, 3)).chunk(conv.groups))


# %% tags=["inside"] alt="Three square grey images. The first is speckled all over; the second has four bright squares along its diagonal and is black elsewhere; the third has eight smaller squares along its diagonal and is black elsewhere."
pictures, titles = [], []
for cardinality in CARDINALITIES:
    conv = networks[cardinality, 0].stage2[0].branch[2][0]
    pictures.append(connections(conv))
    titles.append(f"{conv.groups} × {conv.in_channels // conv.groups}")
    used = (pictures[-1] > 0).double().mean().item()
    record(f"digits{cardinality}.connected", used)
plots.image_grid(pictures, titles, columns=3, scale=1.6, vmin=0)

# %% [markdown]
# ## What we saw
#
# - Sum of paths, concatenation and grouped convolution give the same outputs with shared weights, in evaluation and
#   in training mode, up to rounding.
# - The widths of the paper's table 2 follow from equal weights; with copied weights ResNeXt-50 32x4d and
#   ResNeXt-101 32x8d equal torchvision's.
# - On a few hundred digits, five epochs and three seeds, cardinality makes no difference that we can see.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
seed(0)
first = [nn.Conv2d(64, 4, 3, padding=1) for _ in range(8)]
second = [nn.Conv2d(4, 64, 3, padding=1, bias=False) for _ in range(8)]
x = torch.randn(2, 64, 9, 9)
paths = sum(b(torch.relu(a(x))) for a, b in zip(first, second))
weight, bias = torch.cat([a.weight for a in first]), torch.cat([a.bias for a in first])
middle = torch.relu(F.conv2d(x, weight, bias, padding=1))  # 32 channels, no groups
wide = F.conv2d(middle, torch.cat([b.weight for b in second], dim=1), padding=1)
record("two.deviation", checks.deviation(paths, wide))
claim(
    checks.deviation(paths, wide) < 1e-5,
    "eight paths of two layers are two wide layers",
)
checks.deviation(paths, wide)


# %% tags=["solution-2"]
@torch.no_grad()
def without_path(network: nn.Module, number: int, block: int, path: int) -> nn.Module:
    """A copy without one path of a branch: its columns of the last 1x1 are zero."""
    network = copy.deepcopy(network)
    branch = network.get_submodule(f"stage{number}.{block}.branch")
    width = branch[2][0].in_channels // branch[2][0].groups
    branch[4][0].weight[:, path * width : (path + 1) * width] = 0
    return network


# %% tags=["solution-2-run"]
rows, every = [], []
for number in (1, 2):
    for block in (0, 1):
        cut = [without_path(networks[8, 0], number, block, path) for path in range(8)]
        scores = [training.evaluate(network, validation) for network in cut]
        every += scores
        rows.append((f"stage {number}, block {block + 1}", spread(scores, ".1%")))
whole = training.evaluate(networks[8, 0], validation)
claim(
    min(every) > whole - 0.1, "whichever path is left out, less than 10 points are lost"
)
for name, value in (("whole", whole), ("validated", len(validation[1]))):
    record(name, value)
record_spread("cut", every)
table(
    [("none left out", f"{whole:.1%}"), *rows],
    ("one path left out in", "validation accuracy"),
)

# %% tags=["solution-3"]
mistaken = []
for number in SEEDS:
    mistaken.append(fresh(8, number, first_grouped))
    train(mistaken[-1], train_part)

# %% tags=["solution-3-run"]
rows, means = [], []
correct = [networks[8, number] for number in SEEDS]
for name, group in (("grouped", correct), ("first_grouped", mistaken)):
    right = [training.evaluate(network, validation) for network in group]
    means.append(sum(right) / len(right))
    record_spread(f"digits.{name}", right)
    record(f"digits.{name}.parameters", counting.parameters(group[0]))
    rows.append((name, counting.parameters(group[0]), spread(right, ".1%")))
apart = abs(means[0] - means[1])
claim(apart < 0.03, "the mistaken branch is within three points of the right one")
table(rows, ("branch of 8x7d", "parameters", "validation accuracy"))


# %% tags=["solution-4"]
def cifar_stem(channels: int) -> nn.Sequential:
    """One 3x3 convolution at full size (Xie et al. 2017, section 5.3)."""
    return nn.Sequential(conv_norm(3, channels, 3), nn.ReLU())


def resnext29(cardinality: int, width: int) -> nn.Sequential:
    """Three stages of three blocks for CIFAR-10, (B, 3, 32, 32) -> (B, 10)."""
    return resnext((3, 3, 3), cardinality, width, cifar_stem, 256, 10)


# %% tags=["solution-4-run"]
rows = []
for cardinality in (8, 16):
    with torch.device("meta"):
        parameters = counting.parameters(resnext29(cardinality, 64))
    record(f"resnext29_{cardinality}x64d.millions", parameters / 1e6)
    rows.append((f"ResNeXt-29 {cardinality}x64d", parameters))
table(rows, ("network", "parameters"))
