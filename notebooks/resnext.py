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
# Residual blocks whose branch is a sum of many small paths: three forms of it that are
# one function, what more paths buy at equal weights and what they give up, and the
# published networks compared with torchvision. The text to it is the
# [chapter](../chapters/resnext.rst), the paper is
# [Xie et al. 2016](https://arxiv.org/abs/1611.05431).

# %%
import copy
import math

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
# Drawn first: 32 paths of 4 channels between an input and an output of 256 channels.


# %% tags=["drawing"]
def draw_form(axes, middle: float, title: str, *, places, each, last, widths) -> None:
    """Draw x, one column of boxes at each place, and what they end in."""
    nodes = {
        "title": diagrams.Node(middle, 0.15, title, weight="bold"),
        "x": diagrams.Node(middle, 0.45, "$x$"),
    }
    end = 1.05 + 0.72 * len(each)
    colour = plots.INK if widths[1] else plots.COLOURS[1]
    nodes["last"] = diagrams.Node(middle, end, last, width=widths[1], colour=colour)
    arrows = []
    for place in places:
        above = "x"
        for row, text in enumerate(each):
            name = f"{place} {row}"
            y = 1.05 + 0.72 * row
            nodes[name] = diagrams.Node(middle + place, y, text, width=widths[0])
            arrows.append((above, name))
            above = name
        arrows.append((above, "last"))
    if len(places) > 1:
        for row in range(len(each)):
            nodes[f"dots {row}"] = diagrams.Node(middle, 1.05 + 0.72 * row, "…")
    diagrams.draw(axes, nodes, arrows)


# %% tags=["forms-figure"] alt="Three columns of boxes under an x each. Form a: two of 32 paths side by side with dots between, each a 1x1 to 4, a 3x3 to 4 and a 1x1 to 256 channels, with arrows meeting in the word sum. Form b: the same two paths without the last box; their arrows meet in one box, 1x1 to 256. Form c: a single column, 1x1 to 128, 3x3 to 128 in 32 groups, 1x1 to 256."
axes = diagrams.sheet(3.4)
path = ["1×1, 4", "3×3, 4"]
whole_path = [*path, "1×1, 256"]
grouped = ["1×1, 128", "3×3, 128,\n32 groups"]
two = (-0.57, 0.57)
draw_form(axes, 1.03, "a", places=two, each=whole_path, last="sum", widths=(0.86, 0))
two = (-0.48, 0.48)
draw_form(axes, 3.0, "b", places=two, each=path, last="1×1, 256", widths=(0.68, 0.95))
draw_form(axes, 4.45, "c", places=(0,), each=grouped, last="1×1, 256", widths=(1, 1))
plt.show()

# %% [markdown]
# In code. The helper is that of the ResNet chapter with one more argument, the groups.
# A path begins with a 1x1 and a 3x3 convolution; only the 3x3 is ever grouped.


# %% tags=["conv-norm"]
def conv_norm(
    c_in: int, c_out: int, size: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution without bias, then batch norm, whose shift is the bias."""
    conv = nn.Conv2d(
        c_in, c_out, size, stride, padding=size // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


# %% tags=["path"]
class Path(nn.Module):
    """1x1 down to the width, 3x3 at the width, each with batch norm and ReLU."""

    def __init__(self, c_in: int, width: int, *, stride: int = 1, groups: int = 1):
        super().__init__()
        self.reduce = conv_norm(c_in, width, 1)
        self.conv = conv_norm(width, width, 3, stride=stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, width, H / stride, W / stride)
        x = torch.relu(self.reduce(x))
        return torch.relu(self.conv(x))


# %% tags=["summed"]
class SummedPaths(nn.Module):
    """Form a: the outputs of all paths added (equation 2 and figure 3a).

    The last batch norm stands behind the sum (footnote 6).
    """

    def __init__(
        self, c_in: int, c_out: int, *, cardinality: int, width: int, stride: int = 1
    ):
        super().__init__()
        self.paths = nn.ModuleList()
        self.expands = nn.ModuleList()
        for _ in range(cardinality):
            self.paths.append(Path(c_in, width, stride=stride))
            self.expands.append(nn.Conv2d(width, c_out, 1, bias=False))
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)
        terms = [expand(path(x)) for path, expand in zip(self.paths, self.expands)]
        return self.norm(sum(terms))


# %% tags=["concatenated"]
class ConcatenatedPaths(nn.Module):
    """Form b: the paths side by side, then one 1x1 (figure 3b)."""

    def __init__(
        self, c_in: int, c_out: int, *, cardinality: int, width: int, stride: int = 1
    ):
        super().__init__()
        self.paths = nn.ModuleList()
        for _ in range(cardinality):
            self.paths.append(Path(c_in, width, stride=stride))
        self.expand = conv_norm(cardinality * width, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)
        middle = torch.cat([path(x) for path in self.paths], dim=1)
        return self.expand(middle)


# %% tags=["grouped"]
class GroupedPaths(nn.Module):
    """Form c: one path of all the channels whose 3x3 is grouped (figure 3c)."""

    def __init__(
        self, c_in: int, c_out: int, *, cardinality: int, width: int, stride: int = 1
    ):
        super().__init__()
        channels = cardinality * width
        self.path = Path(c_in, channels, stride=stride, groups=cardinality)
        self.expand = conv_norm(channels, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)
        return self.expand(self.path(x))


# %% tags=["grouped-shape"]
GroupedPaths(256, 256, cardinality=32, width=4)(torch.randn(2, 256, 14, 14)).shape

# %% [markdown]
# ## One function
#
# Forms a and b take their weights from form c: path i gets the i-th slice of channels,
# and of the last 1x1 the i-th slice of input channels.


# %% tags=["share"]
@torch.no_grad()
def copy_channels(wide: Path, narrow: Path, channels: slice) -> None:
    """Give a narrow path some of the channels of a wide one."""
    for source, target in ((wide.reduce, narrow.reduce), (wide.conv, narrow.conv)):
        target[0].weight.copy_(source[0].weight[channels])
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(target[1], name).copy_(getattr(source[1], name)[channels])


@torch.no_grad()
def copy_weights(c: GroupedPaths, a: SummedPaths, b: ConcatenatedPaths) -> None:
    """Give forms a and b the weights of form c."""
    width = a.expands[0].in_channels
    for i in range(len(a.paths)):
        channels = slice(i * width, (i + 1) * width)
        copy_channels(c.path, a.paths[i], channels)
        copy_channels(c.path, b.paths[i], channels)
        a.expands[i].weight.copy_(c.expand[0].weight[:, channels])
    a.norm.load_state_dict(c.expand[1].state_dict())
    b.expand.load_state_dict(c.expand.state_dict())


# %% tags=["forms"]
seed(0)
sizes = {"cardinality": 32, "width": 4}
c = checks.randomise_norms(GroupedPaths(256, 256, **sizes))
a = SummedPaths(256, 256, **sizes)
b = ConcatenatedPaths(256, 256, **sizes)
copy_weights(c, a, b)

# %% tags=["forms-equal"]
x = torch.randn(4, 256, 14, 14)
equalities = []
for mode in ("evaluation", "training"):
    for name, form in (("form a", a), ("form b", b)):
        expected = c.train(mode == "training")(x)
        found = form.train(mode == "training")(x)
        equalities.append((name, "form c", mode, checks.deviation(found, expected)))

# %% tags=["forms-claims"]
largest = max(difference for *_, difference in equalities)
claim(largest < 1e-5, "the three forms are one function but for rounding")
record("forms.deviation", largest)

# %% [markdown]
# ## Who hears whom
#
# A grouped convolution asked what it is: one channel at a time is set to 1.


# %% tags=["heard"]
@torch.no_grad()
def heard(conv: nn.Conv2d) -> Tensor:
    """What each output channel gives for a 1 in each input channel: (c_in, c_out)."""
    c_in = conv.in_channels
    x = torch.eye(c_in, device=conv.weight.device).view(c_in, c_in, 1, 1)
    return conv(x).abs().flatten(1)


# %% tags=["heard-figure"] alt="Three square tables, 16 input channels down, 16 output channels across, a cell dark where the output hears the input. One group: the whole square is dark. Four groups: four dark blocks of 4 by 4 along the diagonal. Eight groups: eight dark blocks of 2 by 2 along the diagonal."
_, row = plt.subplots(1, 3, figsize=(5, 2))
for axes, groups in zip(row, (1, 4, 8)):
    answers = heard(nn.Conv2d(16, 16, 3, padding=1, groups=groups, bias=False))
    share = (answers > 0).double().mean().item()
    record(f"heard{groups}", share)
    claim(abs(share - 1 / groups) < 1e-9, f"{groups} groups: one pair in {groups}")
    axes.imshow((answers > 0).cpu(), cmap="Blues", vmin=0, vmax=1.3)
    axes.set_title("1 group" if groups == 1 else f"{groups} groups")
    axes.set(xlabel="to", xticks=(), yticks=())
row[0].set_ylabel("from")
plt.show()

# %% tags=["grouped-weights"]
full = nn.Conv2d(128, 128, 3, padding=1, bias=False)
in_groups = nn.Conv2d(128, 128, 3, padding=1, groups=32, bias=False)
record("grouped.full", counting.parameters(full))
record("grouped.cut", counting.parameters(in_groups))
claim(
    32 * in_groups.weight.numel() == full.weight.numel(), "32 groups, 1/32 of weights"
)

# %% [markdown]
# ## Cardinality against width
#
# A path costs 256 d + 9 d^2 + 256 d weights. Which d gives C paths the weights of
# ResNet's bottleneck, one path of 64 channels?


# %% tags=["equal-width"]
def branch_weights(cardinality: int, width: int, *, c_out: int = 256) -> int:
    """Weights of the convolutions of a branch with c_out channels in and out.

    Equation 4 of the paper.
    """
    return cardinality * (c_out * width + 3 * 3 * width * width + width * c_out)


def equal_width(cardinality: int, *, c_out: int = 256) -> float:
    """The width that gives the weights of one path of c_out / 4 channels.

    The positive root d of 9 d^2 + 2 c_out d = budget / cardinality.
    """
    budget = branch_weights(1, c_out // 4, c_out=c_out)
    root = math.sqrt(c_out**2 + 9 * budget / cardinality)
    return (root - c_out) / 9


# %% tags=["directions"]
@torch.no_grad()
def directions(branch: nn.Module, x: Tensor) -> int:
    """How many directions the outputs span: their rank, all pixels taken together."""
    y = branch(x).transpose(0, 1).flatten(1)  # (C, B H W)
    y = y - y.mean(1, keepdim=True)
    return torch.linalg.matrix_rank(y.cpu(), rtol=1e-4).item()


# %% tags=["pairs"]
PAIRS = ((1, 64), (2, 40), (4, 24), (8, 14), (32, 4))  # table 2 of the paper
seed(0)
x = torch.randn(8, 256, 8, 8)
rows = []
for cardinality, width in PAIRS:
    root = equal_width(cardinality)
    weights = branch_weights(cardinality, width)
    branch = GroupedPaths(256, 256, cardinality=cardinality, width=width)
    found = directions(branch, x)
    record(f"pair{cardinality}.weights", weights)
    record(f"pair{cardinality}.directions", found)
    rows.append((cardinality, f"{root:.2f}", width, weights, found))
table(rows, ("C", "d by equation", "d", "weights", "directions"))

# %% tags=["pairs-claims"]
for cardinality, root, width, weights, found in rows:
    claim(found == cardinality * width, f"{cardinality} paths write to C d directions")
    claim(width == math.ceil(float(root)), "the paper rounds up")
    claim(weights >= branch_weights(1, 64), "no fewer weights than ResNet's")
    claim(weights < 1.03 * branch_weights(1, 64), "and less than 3% more")

# %% [markdown]
# ## Each learns its own kind
#
# A branch with random weights is the teacher, another branch learns to give what it
# gives, from noise. One wide path and 11 narrow ones of nearly the same weights, each
# as teacher and as student.

# %% tags=["kinds"]
CHANNELS = 48
KINDS = {"one path": (1, 12), "11 paths": (11, 2)}


def branch_of(kind: str) -> GroupedPaths:
    """A branch with 48 channels in and out and random weights."""
    cardinality, width = KINDS[kind]
    branch = GroupedPaths(CHANNELS, CHANNELS, cardinality=cardinality, width=width)
    he_init(branch)
    return branch.to(device)


# %% tags=["he-init"]
def he_init(network: nn.Module) -> None:
    """Normal weights of variance 2 / fan-out, as in the libraries (He et al. 2015)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


# %% tags=["imitate"]
STEPS = 400


def noise(number: int) -> Tensor:
    return torch.randn(number, CHANNELS, 4, 4, device=device)


def imitate(teacher: nn.Module, student: nn.Module) -> None:
    """Train the student to give what the teacher gives."""
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        x = noise(16)
        loss = F.mse_loss(student(x), teacher(x).detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


# %% tags=["unexplained"]
@torch.no_grad()
def unexplained(teacher: nn.Module, student: nn.Module, x: Tensor) -> float:
    """Mean squared difference over the variance of what the teacher gives."""
    y = teacher(x)
    return (F.mse_loss(student(x), y) / y.var(correction=0)).item()


# %% tags=["floor"]
@torch.no_grad()
def floor(teacher: nn.Module, count: int, x: Tensor) -> float:
    """The least that any student of so many directions leaves unexplained.

    The share of variance outside of the teacher's first `count` principal directions.
    """
    y = teacher(x).transpose(0, 1).flatten(1)  # (C, B H W)
    y = (y - y.mean(1, keepdim=True)).cpu()
    variances = torch.linalg.svdvals(y).square()
    return (variances[count:].sum() / variances.sum()).item()


# %% tags=["headline"]
SEEDS = (0, 1, 2)
left = {}
floors = {}
for taught in KINDS:
    for learning in KINDS:
        for number in SEEDS:
            seed(number)
            teacher = branch_of(taught)
            student = branch_of(learning)
            imitate(teacher, student)
            x = noise(100)
            left[taught, learning, number] = unexplained(teacher, student, x)
            count = math.prod(KINDS[learning])
            floors[taught, learning, number] = floor(teacher, count, x)

# %% tags=["headline-figure"] alt="Share of the teacher's output that students leave unexplained, three dots for each pair. Under a teacher of one path the students of one path lie below those of 11 paths; under a teacher of 11 paths it is the other way round. A dotted line above zero, under the second group, marks the least that a student of one path can leave."
_, axes = plt.subplots()
for group, taught in enumerate(KINDS):
    for side, (learning, colour) in enumerate(zip(KINDS, plots.COLOURS)):
        values = [left[taught, learning, number] for number in SEEDS]
        x = group + 0.35 * side - 0.3
        axes.plot([x] * len(values), values, "o", color=colour, alpha=0.7)
        middle = sum(values) / len(values)
        axes.text(x + 0.05, middle, learning, color=colour, va="center")
lowest = min(floors["11 paths", "one path", number] for number in SEEDS)
axes.plot([0.6, 1.35], [lowest, lowest], ":", color=plots.COLOURS[0])
axes.text(0.6, lowest - 0.02, "least for one path", color=plots.COLOURS[0], va="top")
axes.set(xticks=(0, 1), xticklabels=[f"teacher:\n{kind}" for kind in KINDS])
axes.set(xlim=(-0.5, 1.5), ylim=(0, 0.6), ylabel="left unexplained")
plt.show()

# %% tags=["headline-claims"]
for taught in KINDS:
    for learning in KINDS:
        values = [left[taught, learning, number] for number in SEEDS]
        record_spread(f"left.{taught}.{learning}".replace(" ", ""), values)
        if learning != taught:
            own = [left[taught, taught, number] for number in SEEDS]
            apart = 1.3 * max(own) < min(values)
            claim(apart, f"{taught}: learnt better by its own kind, well apart")

# %% tags=["left"]
rows = []
for taught in KINDS:
    row = [taught]
    for learning in KINDS:
        values = [left[taught, learning, number] for number in SEEDS]
        row.append(spread(values, ".0%"))
    rows.append(row)
table(rows, ("teacher", *[f"student: {kind}" for kind in KINDS]))

# %% tags=["floor-claims"]
barred = [floors["11 paths", "one path", number] for number in SEEDS]
claim(min(barred) > 0.1, "one path has to leave a part of 11 paths unexplained")
claim(max(floors["one path", "one path", n] for n in SEEDS) < 1e-6, "of one path none")
record_spread("floor", barred)
for kind, (cardinality, width) in KINDS.items():
    weights = branch_weights(cardinality, width, c_out=CHANNELS)
    record(f"weights.{kind}".replace(" ", ""), weights)
record("imitate.steps", STEPS)
budgets = [branch_weights(*kind, c_out=CHANNELS) for kind in KINDS.values()]
claim(max(budgets) < 1.03 * min(budgets), "the weights differ by less than 3%")

# %% [markdown]
# ## From the branch to the network
#
# Against ResNet's bottleneck only the branch is new. When the side of the map is
# halved, the channels double, and so do those of a path; the number of paths stays.


# %% tags=["block"]
def projection(c_in: int, c_out: int, *, stride: int) -> nn.Module:
    """The identity where the shapes allow, else a 1x1 convolution (option B)."""
    same = stride == 1 and c_in == c_out
    return nn.Identity() if same else conv_norm(c_in, c_out, 1, stride=stride)


class ResNeXtBlock(nn.Module):
    """relu(branch(x) + shortcut(x)) with a branch of many paths (equation 3)."""

    def __init__(
        self, c_in: int, c_out: int, *, cardinality: int, width: int, stride: int = 1
    ):
        super().__init__()
        self.branch = GroupedPaths(
            c_in, c_out, cardinality=cardinality, width=width, stride=stride
        )
        self.shortcut = projection(c_in, c_out, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)
        return torch.relu(self.branch(x) + self.shortcut(x))


# %% tags=["block-shape"]
block = ResNeXtBlock(256, 512, cardinality=32, width=8, stride=2)
block(torch.randn(2, 256, 56, 56)).shape


# %% tags=["stage"]
def stage(
    n: int, c_in: int, *, c_out: int, cardinality: int, width: int, stride: int = 2
) -> nn.Sequential:
    """n blocks; the first takes the stride and changes the number of channels."""
    sizes = {"cardinality": cardinality, "width": width}
    first = ResNeXtBlock(c_in, c_out, stride=stride, **sizes)
    later = [ResNeXtBlock(c_out, c_out, **sizes) for _ in range(n - 1)]
    return nn.Sequential(first, *later)


# %% tags=["stem"]
class Stem(nn.Module):
    """7x7 convolution and maximum: a quarter of the side (table 1)."""

    def __init__(self, c_out: int):
        super().__init__()
        self.conv = conv_norm(3, c_out, 7, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # (B, 3, H, W) -> (B, c_out, H / 4, W / 4)
        return self.pool(torch.relu(self.conv(x)))


# %% tags=["network"]
class ResNeXt(nn.Module):
    """Stem, four stages, mean over the map, linear layer (table 1).

    (B, 3, H, W) -> (B, 1000).
    """

    def __init__(self, depths, *, cardinality: int, width: int):
        super().__init__()
        C = cardinality
        d = width
        self.stem = Stem(64)
        self.stage1 = stage(depths[0], 64, c_out=256, cardinality=C, width=d, stride=1)
        self.stage2 = stage(depths[1], 256, c_out=512, cardinality=C, width=2 * d)
        self.stage3 = stage(depths[2], 512, c_out=1024, cardinality=C, width=4 * d)
        self.stage4 = stage(depths[3], 1024, c_out=2048, cardinality=C, width=8 * d)
        self.classifier = nn.Linear(2048, 1000)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, 64, H / 4, W / 4)
        x = self.stage1(x)  # (B, 256, H / 4, W / 4)
        x = self.stage2(x)  # (B, 512, H / 8, W / 8)
        x = self.stage3(x)  # (B, 1024, H / 16, W / 16)
        x = self.stage4(x)  # (B, 2048, H / 32, W / 32)
        return self.classifier(x.mean((2, 3)))  # (B, 1000)


# %% tags=["sizes"]
def resnext50() -> ResNeXt:
    return ResNeXt((3, 4, 6, 3), cardinality=32, width=4)


def resnext101() -> ResNeXt:
    return ResNeXt((3, 4, 23, 3), cardinality=32, width=8)


def resnext101_64x4d() -> ResNeXt:
    return ResNeXt((3, 4, 23, 3), cardinality=64, width=4)


# %% [markdown]
# ## Counted
#
# On torch's meta device a tensor has a shape and no values: a network can be counted
# without computing anything.


# %% tags=["one-path"]
def one_path_resnet50() -> ResNeXt:
    return ResNeXt((3, 4, 6, 3), cardinality=1, width=64)


# %% tags=["count"]
rows = []
for build in (one_path_resnet50, resnext50, resnext101, resnext101_64x4d):
    with torch.device("meta"):
        network = build()
        image = torch.empty(1, 3, 224, 224)
    parameters = counting.parameters(network)
    macs = counting.macs(network, image)
    record(f"{build.__name__}.parameters", parameters)
    record(f"{build.__name__}.macs", macs)
    record(f"{build.__name__}.gmacs", macs / 1e9)
    rows.append((build.__name__, parameters, f"{macs / 1e9:.3f}"))
table(rows, ("network", "parameters", "G MACs"))

# %% tags=["drawn"] alt="ResNeXt-50 from top to bottom, with output shape and parameters at the right: an input of 3x224x224, the stem, then four stages with a loop past each and the number of its blocks, 3, 4, 6 and 3, whose maps shrink from 56 to 7 pixels a side while the channels grow from 256 to 2048, and the linear layer to 1000."
with torch.device("meta"):
    network = resnext50()
    image = torch.empty(1, 3, 224, 224)
drawing.draw(network, image)

# %% [markdown]
# ## Equal to torchvision
#
# Fresh batch norms would hide a wrong epsilon or two layers that changed places: the
# reference gets random ones before its weights are copied.

# %% tags=["equal"]
REFERENCES = (
    (resnext50, torchvision.models.resnext50_32x4d),
    (resnext101, torchvision.models.resnext101_32x8d),
)
deviations = []
for build, reference in REFERENCES:
    seed(0)
    theirs = checks.randomise_norms(reference())
    ours = build()
    checks.transplant(theirs, ours)
    deviations.append(checks.same_outputs(ours, theirs, torch.randn(2, 3, 40, 40)))
    names = (build.__name__, reference.__name__)
    equalities.append((*names, "evaluation", deviations[-1]))
record("deviation", max(deviations))

# %% tags=["equalities"]
rows = [(*row, f"{difference:.1e}") for *row, difference in equalities]
table(rows, ("here", "compared with", "mode", "largest difference"))

# %% [markdown]
# ## A mistake the shapes do not show
#
# Grouping the first 1x1 convolution too runs without an error and gives the same
# shapes.


# %% tags=["mistake"]
def group_first(network: nn.Module) -> nn.Module:
    """The mistake: each path reads its own share of the input channels only."""
    for block in network.modules():
        if isinstance(block, ResNeXtBlock):
            path = block.branch.path
            conv = path.reduce[0]
            groups = path.conv[0].groups
            wrong = conv_norm(conv.in_channels, conv.out_channels, 1, groups=groups)
            path.reduce = wrong.to(conv.weight.device)
    return network


# %% tags=["mistake-count"]
with torch.device("meta"):
    right = resnext50()
    wrong = group_first(resnext50())
record("mistake.parameters", counting.parameters(wrong))
fewer = counting.parameters(wrong) < counting.parameters(right)
claim(fewer, "with the mistake the network has fewer parameters")
with torch.device("meta"):
    one = one_path_resnet50()
fewer = counting.parameters(right) < counting.parameters(one)
claim(fewer, "ResNeXt-50 has fewer parameters than ResNet-50")

# %% [markdown]
# ## Digits
#
# Two stages of two blocks at a quarter of the channels, on digits shrunk to 16x16: one
# path against four of nearly the same weights.


# %% tags=["digit-network"]
class DigitNetwork(nn.Module):
    """Two stages of two blocks for small grey images: (B, 1, H, W) -> (B, 10)."""

    def __init__(self, *, cardinality: int, width: int):
        super().__init__()
        C = cardinality
        d = width
        self.stem = conv_norm(1, 16, 3, stride=2)
        self.stage1 = stage(2, 16, c_out=64, cardinality=C, width=d)
        self.stage2 = stage(2, 64, c_out=128, cardinality=C, width=2 * d)
        self.classifier = nn.Linear(128, 10)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))  # (B, 16, H / 2, W / 2)
        x = self.stage1(x)  # (B, 64, H / 4, W / 4)
        x = self.stage2(x)  # (B, 128, H / 8, W / 8)
        return self.classifier(x.mean((2, 3)))  # (B, 10)


# %% tags=["data"]
IMAGES = 600 if PROFILE == "sample" else 20_000
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


def train(network: nn.Module, part) -> None:
    """SGD; the rate rises for a fifth of the steps, then falls to 0."""
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4
    )
    steps = EPOCHS * math.ceil(len(part[1]) / BATCH)
    schedule = training.one_cycle(optimizer, steps)
    training.fit(network, part, EPOCHS, optimizer, batch=BATCH, schedule=schedule)


# %% tags=["runs"]
DIGIT_SIZES = {"1x16d": (1, 16), "4x6d": (4, 6)}
networks = {}
for name, (cardinality, width) in DIGIT_SIZES.items():
    for number in SEEDS:
        seed(number)
        network = DigitNetwork(cardinality=cardinality, width=width).to(device)
        train(network, train_part)
        networks[name, number] = network

# %% tags=["result"]
rows = []
scores = {}
for name in DIGIT_SIZES:
    scores[name] = [training.evaluate(networks[name, n], test) for n in SEEDS]
    record_spread(f"digits.{name}", scores[name])
    parameters = counting.parameters(networks[name, 0])
    rows.append((name, parameters, spread(scores[name], ".1%")))
table(rows, ("network", "parameters", "test accuracy"))

# %% tags=["result-claims"]
one = scores["1x16d"]
four = scores["4x6d"]
touching = max(min(one), min(four)) <= min(max(one), max(four))
claim(touching, "the accuracies of the two networks touch")
record("epochs", EPOCHS)
record("steps", EPOCHS * math.ceil(len(train_part[1]) / BATCH))

# %% [markdown]
# ## Look inside
#
# A sum goes on without one of its terms. What is left of the accuracy without one path,
# and without the whole branch?


# %% tags=["without"]
@torch.no_grad()
def without_paths(network: DigitNetwork, name: str, paths) -> DigitNetwork:
    """A copy that lacks these paths in the last block of a stage."""
    network = copy.deepcopy(network)
    branch = getattr(network, name)[-1].branch
    width = branch.path.conv[0].weight.shape[1]  # input channels of one group
    for path in paths:
        branch.expand[0].weight[:, path * width : (path + 1) * width] = 0
    return network


# %% tags=["left-out"]
STAGES = ("stage1", "stage2")
PATHS = range(4)
cut = {}
none = {}
whole = {}
for number in SEEDS:
    network = networks["4x6d", number]
    whole[number] = training.evaluate(network, validation)
    for name in STAGES:
        singles = [without_paths(network, name, [path]) for path in PATHS]
        cut[name, number] = [training.evaluate(one, validation) for one in singles]
        bare = without_paths(network, name, PATHS)
        none[name, number] = training.evaluate(bare, validation)

# %% tags=["left-out-figure"] alt="Validation accuracy after paths were taken out of the last block of stage 1 and of stage 2, three seeds side by side in each. Dots for one path less lie close to the short lines of the whole networks; the crosses for no path left lie lower on average."
_, axes = plt.subplots()
blue, orange = plots.COLOURS[:2]
for place, name in enumerate(STAGES):
    for number in SEEDS:
        x = place + 0.15 * (number - 1)
        axes.plot([x] * 4, cut[name, number], "o", color=blue, alpha=0.6)
        axes.plot(x, none[name, number], "x", color=orange, markersize=8)
        ends = [x - 0.06, x + 0.06]
        axes.plot(ends, [whole[number]] * 2, color=plots.INK, linewidth=1)
axes.text(1.23, cut["stage2", 2][1], "one path less", color=blue, va="center")
axes.text(1.23, none["stage2", 2], "no path left", color=orange, va="center")
axes.set(xticks=(0, 1), xticklabels=["last block,\nstage 1", "last block,\nstage 2"])
axes.set(xlim=(-0.4, 1.9), ylim=(0, 1), ylabel="validation accuracy")
plt.show()

# %% tags=["left-out-claims"]
singles = [value for values in cut.values() for value in values]
bare = sum(none.values()) / len(none)
claim(
    bare < min(singles), "with no path left less is right on average than with one less"
)
for (_, number), values in cut.items():
    close = min(values) > whole[number] - 0.15
    claim(close, "without one path less than 15 points are lost")
record_spread("whole", whole.values())
record_spread("cut", singles)
record_spread("none", none.values())
below = sum(none[key] < min(cut[key]) for key in none)
record("none.below", below)
claim(below >= 4, "in most blocks no path is worse than any one less")

# %% [markdown]
# ## What we saw
#
# - A sum of paths, paths set side by side and a grouped convolution are one function.
# - At nearly equal weights more paths write to more directions. Branches of one path
#   and of 11 each learn their own kind better than the other does.
# - On few digits their accuracies are not told apart.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
seed(0)
x = torch.randn(2, 16, 9, 9)
first = [nn.Conv2d(16, 4, 3, padding=1, bias=False) for _ in range(8)]
second = [nn.Conv2d(4, 16, 3, padding=1, bias=False) for _ in range(8)]
total = sum(after(F.relu(before(x))) for before, after in zip(first, second))

wide_first = torch.cat([conv.weight for conv in first], dim=0)  # (32, 16, 3, 3)
wide_second = torch.cat([conv.weight for conv in second], dim=1)  # (16, 32, 3, 3)
middle = F.relu(F.conv2d(x, wide_first, padding=1))
wide = F.conv2d(middle, wide_second, padding=1)

# %% tags=["solution-1-result"]
difference = checks.deviation(total, wide)
claim(difference < 1e-5, "eight paths of two layers are two wider layers")
table(
    [("eight paths against two wider layers", f"{difference:.1e}")],
    ("forms", "difference"),
)


# %% tags=["solution-2"]
@torch.no_grad()
def without_groups(branch: GroupedPaths) -> GroupedPaths:
    """One path that gives what many give: zeros between the groups of the 3x3."""
    kernel = branch.path.conv[0].weight  # (C d, d, 3, 3)
    channels, width = kernel.shape[:2]
    full = kernel.new_zeros(channels, channels, 3, 3)
    for first in range(0, channels, width):
        mine = slice(first, first + width)
        full[mine, mine] = kernel[mine]
    weights = branch.state_dict()
    weights["path.conv.0.weight"] = full
    one = GroupedPaths(CHANNELS, CHANNELS, cardinality=1, width=channels)
    one.to(kernel.device).load_state_dict(weights)
    return one


# %% tags=["solution-2-run"]
seed(0)
teacher = branch_of("11 paths")
student = GroupedPaths(CHANNELS, CHANNELS, cardinality=1, width=22).to(device)
he_init(student)
imitate(teacher, student)
x = noise(100)
exact = unexplained(teacher, without_groups(teacher), x)
wider = unexplained(teacher, student, x)

# %% tags=["solution-2-result"]
rows = [("1x12d, trained", left["11 paths", "one path", 0])]
rows.append(("11x2d, trained", left["11 paths", "11 paths", 0]))
rows.append(("1x22d, trained", wider))
rows.append(("1x22d, with zeros", exact))
table([(name, f"{value:.3f}") for name, value in rows], ("student", "left unexplained"))

# %% tags=["solution-2-claims"]
claim(exact < 1e-9, "one path with zeros between the groups gives the same")
claim(wider > 0.05, "training for so long does not find these weights")
record("wider", wider)
record("wider.weights", branch_weights(1, 22, c_out=CHANNELS))


# %% tags=["solution-3"]
class ResNeXt29(nn.Module):
    """A 3x3 stem and three stages of three blocks for CIFAR-10 (section 5.3)."""

    def __init__(self, *, cardinality: int, width: int):
        super().__init__()
        sizes = {"cardinality": cardinality}
        self.stem = conv_norm(3, 64, 3)
        self.stage1 = stage(3, 64, c_out=256, width=width, stride=1, **sizes)
        self.stage2 = stage(3, 256, c_out=512, width=2 * width, **sizes)
        self.stage3 = stage(3, 512, c_out=1024, width=4 * width, **sizes)
        self.classifier = nn.Linear(1024, 10)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))  # (B, 64, H, W)
        x = self.stage1(x)  # (B, 256, H, W)
        x = self.stage2(x)  # (B, 512, H / 2, W / 2)
        x = self.stage3(x)  # (B, 1024, H / 4, W / 4)
        return self.classifier(x.mean((2, 3)))  # (B, 10)


# %% tags=["solution-3-result"]
rows = []
for cardinality in (8, 16):
    with torch.device("meta"):
        network = ResNeXt29(cardinality=cardinality, width=64)
    parameters = counting.parameters(network)
    record(f"resnext29.{cardinality}", parameters / 1e6)
    rows.append((f"ResNeXt-29 {cardinality}x64d", parameters))
table(rows, ("network", "parameters"))
