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
# The Inception module, four branches side by side behind 1x1 reductions: counted, built
# at the published size and compared with torchvision, and asked what each of nine modules
# and two heads in the middle can know of a digit.
# The text to it is the [chapter](../chapters/googlenet.rst), the paper is
# [Szegedy et al. 2014](https://arxiv.org/abs/1409.4842).

# %%
import copy
import math
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import PROFILE, claim, device, evaluating, record, record_spread
from workbench import seed, spread, table
from workbench import checks, counting, diagrams, drawing, images, plots, training

# %% [markdown]
# ## Windows
#
# A square of ones and a kernel of equal weights, 1/k each, so that the squared weights of
# every kernel sum to 1 and noise of one variance comes out of each with that variance.
# The largest answer says how well a window fits a square.


# %% tags=["windows"]
def largest_answer(square: int, window: int) -> float:
    """Of a window of equal weights 1 / window, sliding over a square of ones."""
    ones = torch.ones(1, square, square)  # (C, H, W)
    kernel = torch.full((window, window), 1 / window)
    return F.conv2d(ones, kernel[None, None], padding=2).max().item()


# %% tags=["windows-table"]
WINDOWS = (1, 3, 5)
rows = []
for square in WINDOWS:
    answers = [largest_answer(square, window) for window in WINDOWS]
    best = WINDOWS[answers.index(max(answers))]
    claim(best == square, f"of three windows {square}×{square} answers its square most")
    rows.append((f"{square}×{square}", *(f"{answer:.2f}" for answer in answers)))
table(rows, ("square", "window 1×1", "3×3", "5×5"))

# %% [markdown]
# ## The module
#
# One row of table 1 describes a module: the channels that come in and the outputs of its
# six convolutions. Four branches see the same input; their outputs are laid side by side
# along the channels.


# %% tags=["rows"]
class Row(NamedTuple):
    """Channels into a module and out of its six convolutions (table 1)."""

    c_in: int
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
    "3a": Row(192, 64, 96, 128, 16, 32, 32),
    "3b": Row(256, 128, 128, 192, 32, 96, 64),
    "4a": Row(480, 192, 96, 208, 16, 48, 64),
    "4b": Row(512, 160, 112, 224, 24, 64, 64),
    "4c": Row(512, 128, 128, 256, 24, 64, 64),
    "4d": Row(512, 112, 144, 288, 32, 64, 64),
    "4e": Row(528, 256, 160, 320, 32, 128, 128),
    "5a": Row(832, 256, 160, 320, 32, 128, 128),
    "5b": Row(832, 384, 192, 384, 48, 128, 128),
}


# %% tags=["inception"]
def conv_relu(c_in: int, c_out: int, size: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution with bias, then ReLU: as published."""
    conv = nn.Conv2d(c_in, c_out, size, stride, padding=size // 2)
    return nn.Sequential(conv, nn.ReLU())


class Inception(nn.Module):
    """Four branches on one input, concatenated (figure 2b)."""

    def __init__(self, row: Row, *, conv=conv_relu, large: int = 5):
        super().__init__()
        self.branch1 = conv(row.c_in, row.one, 1)
        self.branch3 = nn.Sequential(
            conv(row.c_in, row.reduce3, 1), conv(row.reduce3, row.three, 3)
        )
        self.branch5 = nn.Sequential(
            conv(row.c_in, row.reduce5, 1), conv(row.reduce5, row.five, large)
        )
        self.branch_pool = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), conv(row.c_in, row.pool, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, one + three + five + pool, H, W)
        branches = (self.branch1, self.branch3, self.branch5, self.branch_pool)
        return torch.cat([branch(x) for branch in branches], dim=1)


# %% tags=["inception-shape"]
Inception(TABLE_1["3a"])(torch.randn(2, 192, 28, 28)).shape


# %% tags=["unreduced"]
class Unreduced(Inception):
    """The same outputs, but 3x3 and 5x5 read all channels of the input."""

    def __init__(self, row: Row):
        super().__init__(row)
        self.branch3 = conv_relu(row.c_in, row.three, 3)
        self.branch5 = conv_relu(row.c_in, row.five, 5)


# %% tags=["drawing"]
def draw_module(axes, top: float, title: str, branch3: list, branch5: list) -> None:
    """Draw four branches from an input above to a concatenation below."""
    columns = [["1×1, 64"], branch3, branch5, ["max 3×3", "1×1, 32"]]
    nodes = {
        "title": diagrams.Node(2.5, top, title, weight="bold"),
        "x": diagrams.Node(2.5, top + 0.3, "$x$, 192 channels"),
        "join": diagrams.Node(2.5, top + 2.1, "joined: 64 + 128 + 32 + 32", width=4.8),
    }
    arrows = []
    for i, layers in enumerate(columns):
        path = ["x"]
        for j, text in enumerate(layers):
            y = top + 0.9 + 0.6 * j
            colour = plots.COLOURS[1] if text.startswith("reduce") else plots.INK
            path.append(text)
            nodes[text] = diagrams.Node(
                0.65 + 1.23 * i, y, text, width=1.13, colour=colour
            )
        path.append("join")
        arrows.extend(zip(path, path[1:]))
    diagrams.draw(axes, nodes, arrows)


# %% tags=["module-figure"] alt="Two modules, each with four columns between an input x of 192 channels above and a bar below, where 64, 128, 32 and 32 channels are joined. In the upper one the columns are a 1x1 convolution with 64 outputs, a 3x3 with 128, a 5x5 with 32, and a maximum over 3x3 followed by a 1x1 with 32. In the lower one a box named reduce stands before the 3x3, to 96 channels, and before the 5x5, to 16."
axes = diagrams.sheet(5)
draw_module(axes, 0.15, "without reductions", ["3×3, 128"], ["5×5, 32"])
with3 = ["reduce to 96", "3×3, 128"]
with5 = ["reduce to 16", "5×5, 32"]
draw_module(axes, 2.65, "Inception 3a", with3, with5)

# %% tags=["weights"]
row = TABLE_1["3a"]
cases = {"three": (9, row.reduce3, row.three), "five": (25, row.reduce5, row.five)}
for name, (pixels, reduced, outputs) in cases.items():
    all_channels = pixels * row.c_in * outputs
    behind = row.c_in * reduced + pixels * reduced * outputs
    record(f"{name}.all", all_channels)
    record(f"{name}.reduce", row.c_in * reduced)
    record(f"{name}.window", pixels * reduced * outputs)
    record(f"{name}.reduced", behind)
    record(f"{name}.ratio", all_channels / behind)

# %% [markdown]
# What one pixel reaches: set the pixel in the middle of a map to another value and see
# which outputs of each branch change.


# %% tags=["reached"]
@torch.no_grad()
def reached(branch: nn.Module, c_in: int) -> Tensor:
    """The outputs (11, 11) that change with the pixel in the middle of a map."""
    x = torch.rand(c_in, 11, 11)
    changed = x.clone()
    changed[:, 5, 5] += 10
    with evaluating(branch):
        difference = (branch(changed) - branch(x)).abs()
    return difference.amax(0) > 1e-4


# %% tags=["reached-figure"] alt="Four black maps of 11 by 11 cells, one for each branch of a module. The white cells that change with the pixel in the middle are one cell for 1x1, a square of 3x3 for 3x3, of 5x5 for 5x5, and of 3x3 for the branch with the maximum."
seed(0)
module = Inception(TABLE_1["3a"])
parts = {"1×1": module.branch1, "3×3": module.branch3, "5×5": module.branch5}
parts["maximum"] = module.branch_pool
maps = {name: reached(branch, 192) for name, branch in parts.items()}
plots.image_grid([m.float() for m in maps.values()], list(maps), columns=4, scale=1.25)
counts = [m.sum().item() for m in maps.values()]
claim(counts == [1, 9, 25, 9], "a pixel reaches 1, 3x3, 5x5 and 3x3 outputs")

# %% [markdown]
# ## The network
#
# A stem narrows the image to an eighth of its side, nine modules follow, and the mean
# over the map goes into one linear layer.


# %% tags=["halve"]
def halve(window: int = 3) -> nn.Module:
    """Maximum at stride 2; the last window may reach over the edge."""
    return nn.MaxPool2d(window, stride=2, ceil_mode=True)


# %% tags=["network"]
class GoogLeNet(nn.Module):
    """Stem, nine modules, mean over the map, linear layer (table 1)."""

    def __init__(self, stem, rows, *, module, last_pool=3, dropout=0.4, num_classes):
        super().__init__()
        self.stem = stem
        self.inception3a = module(rows["3a"])
        self.inception3b = module(rows["3b"])
        self.pool3 = halve()
        self.inception4a = module(rows["4a"])
        self.inception4b = module(rows["4b"])
        self.inception4c = module(rows["4c"])
        self.inception4d = module(rows["4d"])
        self.inception4e = module(rows["4e"])
        self.pool4 = halve(last_pool)
        self.inception5a = module(rows["5a"])
        self.inception5b = module(rows["5b"])
        linear = nn.Linear(rows["5b"].c_out, num_classes)
        self.classifier = nn.Sequential(nn.Dropout(dropout), linear)

    def to_4a(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, 192, H / 8, W / 8)
        x = self.inception3b(self.inception3a(x))  # (B, 480, H / 8, W / 8)
        return self.inception4a(self.pool3(x))  # (B, 512, H / 16, W / 16)

    def to_4d(self, x: Tensor) -> Tensor:
        return self.inception4d(self.inception4c(self.inception4b(x)))

    def to_end(self, x: Tensor) -> Tensor:
        x = self.pool4(self.inception4e(x))  # (B, 832, H / 32, W / 32)
        x = self.inception5b(self.inception5a(x))  # (B, 1024, H / 32, W / 32)
        return self.classifier(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        # (B, 3, H, W) -> (B, num_classes)
        return self.to_end(self.to_4d(self.to_4a(x)))


# %% tags=["head"]
class Head(nn.Module):
    """A classifier in the middle (section 5): (B, c_in, 14, 14) -> (B, K)."""

    def __init__(
        self,
        c_in: int,
        *,
        conv=conv_relu,
        narrow=128,
        hidden=1024,
        dropout=0.7,
        num_classes,
    ):
        super().__init__()
        self.pool = nn.AvgPool2d(5, stride=3)
        self.conv = conv(c_in, narrow, 1)
        self.linear = nn.Linear(4 * 4 * narrow, hidden)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pool(x))  # (B, narrow, 4, 4)
        x = torch.relu(self.linear(x.flatten(1)))  # (B, hidden)
        return self.classifier(self.dropout(x))


# %% tags=["with-heads"]
class WithHeads(GoogLeNet):
    """GoogLeNet as trained: three outputs in training, the main one afterwards."""

    def __init__(self, stem, rows, *, head, **how):
        super().__init__(stem, rows, **how)
        self.head4a = head(rows["4a"].c_out)
        self.head4d = head(rows["4d"].c_out)

    def forward(self, x: Tensor):
        at4a = self.to_4a(x)
        at4d = self.to_4d(at4a)
        y = self.to_end(at4d)
        if not self.training:
            return y
        return y, self.head4a(at4a), self.head4d(at4d)


# %% tags=["loss"]
def total_loss(outputs, y: Tensor) -> Tensor:
    """Cross entropy of the main output plus 0.3 of that of each head (section 5)."""
    main, at4a, at4d = [F.cross_entropy(output, y) for output in outputs]
    return main + 0.3 * (at4a + at4d)


# %% tags=["heads-figure"] alt="A column of four boxes joined by arrows: stem, 3a, 3b, 4a; then 4b, 4c, 4d; then 4e, 5a, 5b; then mean and linear layer, which leads to the main loss. A coloured arrow leaves behind 4a to the right to a box, head: pool, 1x1, two linear layers, and on to 0.3 times the loss at 4a; another leaves behind 4d to a second such box and 0.3 times the loss at 4d."
axes = diagrams.sheet(3.6)
words = "head: 5×5 mean, 1×1,\ntwo linear layers"
nodes = {
    "image": diagrams.Node(0.95, 0.15, "image"),
    "4a": diagrams.Node(0.95, 0.7, "stem, 3a, 3b, 4a", width=1.5),
    "4d": diagrams.Node(0.95, 1.6, "4b, 4c, 4d", width=1.5),
    "5b": diagrams.Node(0.95, 2.5, "4e, 5a, 5b", width=1.5),
    "end": diagrams.Node(0.95, 3.25, "mean, linear", width=1.5),
    "head4a": diagrams.Node(3.05, 1.15, words, width=1.85),
    "head4d": diagrams.Node(3.05, 2.05, words, width=1.85),
    "loss4a": diagrams.Node(4.6, 1.15, r"$0.3\,L_{4a}$", colour=plots.COLOURS[1]),
    "loss4d": diagrams.Node(4.6, 2.05, r"$0.3\,L_{4d}$", colour=plots.COLOURS[1]),
    "main": diagrams.Node(4.6, 3.25, r"$L_{\mathrm{main}}$"),
}
arrows = [("image", "4a"), ("4a", "4d"), ("4d", "5b"), ("5b", "end")]
arrows.append(("end", (4.2, 3.25)))
training_only = [((0.95, 1.15), "head4a"), ("head4a", (4.2, 1.15))]
training_only += [((0.95, 2.05), "head4d"), ("head4d", (4.2, 2.05))]
diagrams.draw(axes, nodes, arrows, training_only)

# %% tags=["head-numbers"]
guesses = [torch.zeros(1, 10) for _ in range(3)]  # three outputs that know nothing
guessing = total_loss(guesses, torch.tensor([7]))
claim(abs(guessing - 1.6 * math.log(10)) < 1e-5, "three guesses cost 1.6 times ln 10")
record("guess", math.log(10))
record("guessing", guessing)
with torch.device("meta"):
    head = Head(512, num_classes=1000)
whole = counting.parameters(head)
linear = counting.parameters(head.linear)
record("head.parameters", whole)
record("head.linear", linear)
claim(linear > whole / 2, "most parameters of a head are in its first linear layer")

# %% [markdown]
# ## Two published forms
#
# The paper has no batch norm, which did not exist yet. Torchvision's form has it, and a
# 3x3 convolution where a 5x5 should be.


# %% tags=["stem"]
def response_norm() -> nn.Module:
    """Over five channels; torch's constants are those of Caffe's replication."""
    return nn.LocalResponseNorm(5)


class Stem(nn.Module):
    """From the image to 192 channels at an eighth of the side (figure 3)."""

    def __init__(self, *, conv=conv_relu, norm=response_norm):
        super().__init__()
        self.conv1 = conv(3, 64, 7, stride=2)
        self.norm1 = norm()
        self.conv2 = conv(64, 64, 1)
        self.conv3 = conv(64, 192, 3)
        self.norm2 = norm()
        self.pool = halve()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.pool(self.conv1(x)))  # (B, 64, H / 4, W / 4)
        x = self.norm2(self.conv3(self.conv2(x)))  # (B, 192, H / 4, W / 4)
        return self.pool(x)  # (B, 192, H / 8, W / 8)


# %% tags=["sizes"]
def thousand_classes(c_in: int) -> Head:
    return Head(c_in, num_classes=1000)


def googlenet(*, module=Inception) -> GoogLeNet:
    return GoogLeNet(Stem(), TABLE_1, module=module, num_classes=1000)


def googlenet_with_heads() -> WithHeads:
    return WithHeads(
        Stem(), TABLE_1, module=Inception, head=thousand_classes, num_classes=1000
    )


# %% tags=["torchvision-form"]
def conv_norm(c_in: int, c_out: int, size: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU; torchvision's epsilon."""
    conv = nn.Conv2d(c_in, c_out, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out, eps=1e-3), nn.ReLU())


class AdaptiveHead(Head):
    """A head that averages a map of any size to 4x4, as torchvision's does."""

    def __init__(self, c_in: int, **how):
        super().__init__(c_in, **how)
        self.pool = nn.AdaptiveAvgPool2d(4)


def torchvision_module(row: Row) -> Inception:
    return Inception(row, conv=conv_norm, large=3)


def torchvision_googlenet() -> GoogLeNet:
    return GoogLeNet(
        Stem(conv=conv_norm, norm=nn.Identity),
        TABLE_1,
        module=torchvision_module,
        last_pool=2,
        dropout=0.2,
        num_classes=1000,
    )


def torchvision_head(c_in: int) -> Head:
    return AdaptiveHead(c_in, conv=conv_norm, num_classes=1000)


# %% [markdown]
# ## Counted
#
# On torch's meta device a tensor has a shape and no values: a network can be counted
# without computing anything. MACs are multiply-accumulates of convolutions and linear
# layers for one 224x224 image in evaluation mode.


# %% tags=["count"]
def unreduced_googlenet() -> GoogLeNet:
    return googlenet(module=Unreduced)


FORMS = {
    "published": googlenet,
    "torchvision": torchvision_googlenet,
    "unreduced": unreduced_googlenet,
}
rows = []
built = {}
for name, build in FORMS.items():
    with torch.device("meta"):
        built[name] = build()
        x = torch.empty(1, 3, 224, 224)
    parameters = counting.parameters(built[name])
    macs = counting.macs(built[name], x)
    record(f"{name}.parameters", parameters)
    record(f"{name}.macs", macs)
    record(f"{name}.gmacs", macs / 1e9)
    rows.append((name, parameters, f"{macs / 1e9:.3f}"))
table(rows, ("form", "parameters", "G MACs"))

# %% tags=["drawn"] alt="GoogLeNet from top to bottom, with output shape and parameters at the right: the input of 3x224x224, the stem to 192 maps of 28 pixels a side, the modules inception3a and inception3b, a pool to 14 pixels, 4a to 4e, a pool to 7 pixels, 5a and 5b, and the classifier to 1000. Lines cut the box of each module into four parts, its branches."
drawing.draw(built["published"], torch.empty(1, 3, 224, 224, device="meta"))

# %% tags=["channels"]
SIDES = {"3": 28, "4": 14, "5": 7}
rows = []
cost = {}
wide = {}
for name, row in TABLE_1.items():
    x = torch.empty(1, row.c_in, SIDES[name[0]], SIDES[name[0]], device="meta")
    module = built["published"].get_submodule(f"inception{name}")
    cost[name] = counting.macs(module, x)
    wide[name] = counting.macs(built["unreduced"].get_submodule(f"inception{name}"), x)
    counts = (row.c_out, counting.parameters(module), f"{cost[name] / 1e6:.1f}")
    rows.append((name, *row, *counts))
heads = ("module", "in", "1×1", "to 3×3", "3×3", "to 5×5", "5×5", "pool")
table(rows, (*heads, "out", "parameters", "M MACs"))

# %% tags=["reduction-figure"] alt="Horizontal bars of million MACs for the nine modules, a pair for each: with the reductions and without them. In each pair the bar without is more than twice as long; the longest pair is 3b."
_, axes = plt.subplots(figsize=(5, 4.2))
for shift, costs, colour in ((-0.2, cost, 0), (0.2, wide, 1)):
    places = [i + shift for i in range(9)]
    lengths = [macs / 1e6 for macs in costs.values()]
    axes.barh(places, lengths, 0.36, color=plots.COLOURS[colour])
axes.set(xlabel="million MACs", yticks=range(9), yticklabels=list(TABLE_1))
axes.invert_yaxis()
middle = 0.55 * wide["3b"] / 1e6
for name, y, colour in (("with reductions", 2.75, 0), ("without", 3.4, 1)):
    axes.text(middle, y, name, color=plots.COLOURS[colour], va="center")

# %% tags=["count-claims"]
ratios = {name: wide[name] / cost[name] for name in TABLE_1}
record("ratio.least", min(ratios.values()))
record("ratio.most", max(ratios.values()))
claim(
    min(ratios.values()) > 2, "without reductions each module costs over twice as much"
)
claim(max(wide, key=wide.get) == "3b", "3b without reductions is the most expensive")
claim(max(cost, key=cost.get) == "3b", "3b with reductions is the most expensive")

# %% tags=["branch-costs"]
for name, row in TABLE_1.items():
    three = row.c_in * row.reduce3 / row.three + 9 * row.reduce3
    five = row.c_in * row.reduce5 / row.five + 25 * row.reduce5
    claim(three < 9 * row.c_in, f"{name}: behind its reduction the 3×3 is cheaper")
    claim(five < three, f"{name}: an output of 5×5 is cheaper than one of 3×3")
    claim(row.five <= row.c_out / 5, f"{name}: at most a fifth of the outputs are 5×5")

# %% tags=["table-1"]
PAPER_OPS = {"3a": 128, "3b": 304, "4a": 73, "4b": 88, "4c": 100, "4d": 119, "4e": 170}
PAPER_OPS |= {"5a": 54, "5b": 71}  # millions, column "ops" of table 1
far = [name for name, ops in PAPER_OPS.items() if abs(cost[name] / 1e6 - ops) > 1]
claim(far == ["5a"], "all modules but 5a cost what table 1 says, to a million")
record("cost5a", cost["5a"] / 1e6)
record("parameters4c", counting.parameters(built["published"].inception4c))
separable = 7 * 7 * 3 * 8 + 24 * 64  # eight kernels for each colour, then 1x1
record("conv1", 112 * 112 * 7 * 7 * 3 * 64 / 1e6)
record("separable.weights", separable)
record("separable", 112 * 112 * separable / 1e6)
claim(round(112 * 112 * separable / 1e6) == 34, "it has the 34 million of table 1")

# %% [markdown]
# ## Equal to torchvision
#
# A fresh batch norm has mean 0, variance 1, scale 1 and shift 0: it would hide a wrong
# epsilon. We give the reference random ones before its weights are copied into ours.

# %% tags=["equal"]
seed(0)
theirs = torchvision.models.googlenet(init_weights=False, aux_logits=True)
main = torchvision.models.googlenet(init_weights=False, aux_logits=False)
pairs = (
    ("main output", torchvision_googlenet(), main, torch.randn(2, 3, 96, 96)),
    ("head at 4a", torchvision_head(512), theirs.aux1, torch.randn(2, 512, 14, 14)),
    ("head at 4d", torchvision_head(528), theirs.aux2, torch.randn(2, 528, 14, 14)),
)
rows = []
deviations = []
for name, ours, reference, x in pairs:
    checks.transplant(checks.randomise_norms(reference), ours)
    deviations.append(checks.same_outputs(ours, reference, x))
    rows.append((name, f"{deviations[-1]:.1e}"))
table(rows, ("part", "largest difference"))
record("deviation", max(deviations))

# %% [markdown]
# ## Nine modules on digits
#
# The network at an eighth of its width, with batch norm and real 5x5 windows, behind one
# 3x3 convolution of stride 2. Its heads are left out at first.


# %% tags=["data"]
IMAGES = 900 if PROFILE == "sample" else 20_000
data = images.digits(size=16)
train_part, _, test = images.standardised(data, first=IMAGES)
record("images", len(train_part[1]))
parts = {"train": train_part, "test": test}
table([(n, *x.shape) for n, (x, _) in parts.items()], ("part", "N", "C", "H", "W"))


# %% tags=["digit-network"]
def narrowed(rows: dict[str, Row], factor: int) -> dict[str, Row]:
    """The same rows with every number of channels divided by a factor."""
    found = {}
    for name, row in rows.items():
        found[name] = Row(*[channels // factor for channels in row])
    return found


def normed_module(row: Row) -> Inception:
    return Inception(row, conv=conv_norm)


def digit_network() -> GoogLeNet:
    """The nine modules at an eighth of their width: (B, 1, H, W) -> (B, 10)."""
    stem = conv_norm(1, 24, 3, stride=2)
    rows = narrowed(TABLE_1, 8)
    return GoogLeNet(stem, rows, module=normed_module, dropout=0.0, num_classes=10)


# %% tags=["train"]
EPOCHS = 4
BATCH = 50
RATE = 0.1
SEEDS = (0, 1, 2)


def train(network: nn.Module, part) -> None:
    """SGD; the rate rises for a fifth of the steps, then falls to 0."""
    steps = EPOCHS * math.ceil(len(part[1]) / BATCH)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4
    )
    schedule = training.one_cycle(optimizer, steps)
    training.fit(network, part, EPOCHS, optimizer, batch=BATCH, schedule=schedule)


# %% tags=["headline"]
untrained = {}
trained = {}
for number in SEEDS:
    seed(number)
    network = digit_network().to(device)
    untrained[number] = copy.deepcopy(network)
    train(network, train_part)
    trained[number] = network


# %% [markdown]
# A linear probe: the mean over each map, then least squares from the channels to the ten
# classes. It says what a head without hidden layers could know there.


# %% tags=["probe"]
@torch.no_grad()
def pooled(network: GoogLeNet, x: Tensor) -> dict[str, Tensor]:
    """Mean over the map after each part, (B, C); batch norm in training mode."""
    network = copy.deepcopy(network).train()
    x = x.to(next(network.parameters()).device)
    found = {}
    for name, part in network.named_children():  # in the order they are called
        if name == "classifier":
            break
        x = part(x)
        found[name.removeprefix("inception")] = x.mean((2, 3)).cpu().double()
    return found


def probe(x: Tensor, y: Tensor, x_test: Tensor) -> Tensor:
    """Least squares from (N, C) to ten classes, asked on (M, C): (M, 10)."""
    mean = x.mean(0)
    classes = F.one_hot(y, 10).to(x.dtype)
    weight = torch.linalg.pinv(x - mean) @ classes  # the least squares solution
    return (x_test - mean) @ weight + classes.mean(0)


# %% tags=["probes"]
PLACES = ("stem", *TABLE_1)
accuracy = {"trained": [], "before training": []}  # a list of places for each seed
features = {}
for kind, networks in (("trained", trained), ("before training", untrained)):
    for number in SEEDS:
        x, x_test = [pooled(networks[number], part[0]) for part in (train_part, test)]
        answers = [probe(x[p], train_part[1], x_test[p]).argmax(1) for p in PLACES]
        right = [(answer == test[1]).double().mean().item() for answer in answers]
        accuracy[kind].append(right)
        features[kind, number] = x_test

# %% tags=["probe-figure"] alt="Accuracy of a linear probe on held-out digits after the stem and each of nine modules, mean of three seeds in a band from the smallest to the largest. Trained: the line climbs from above a half at the stem to above four fifths at 3b and stays there to 5b. Before training: it climbs to about 0.7 at 3b and then falls at each module to below 0.3 at 5b."
_, axes = plt.subplots()
ends = {}
for kind, colour in zip(accuracy, plots.COLOURS):
    runs = torch.tensor(accuracy[kind])
    ends[kind] = plots.seed_band(axes, range(len(PLACES)), runs, colour)
axes.set(ylabel="accuracy of a linear probe", ylim=(0, 1))
axes.set(xticks=range(len(PLACES)), xticklabels=PLACES)
plots.label_ends(axes, ends)

# %% tags=["probe-table"]
after = dict(zip(PLACES, zip(*accuracy["trained"])))  # place: a value for each seed
before = dict(zip(PLACES, zip(*accuracy["before training"])))
rows = []
for place in PLACES:
    record_spread(f"probe.{place}", after[place])
    record_spread(f"before.{place}", before[place])
    rows.append((place, spread(after[place], ".1%"), spread(before[place], ".1%")))
table(rows, ("behind", "trained", "before training"))
right = [training.evaluate(trained[number], test) for number in SEEDS]
record_spread("digits.test", right)
record("digits.parameters", counting.parameters(digit_network()))
record("steps", EPOCHS * math.ceil(IMAGES / BATCH))

# %% tags=["probe-claims"]
claim(max(after["stem"]) < min(after["3a"]), "3a adds to the stem, seeds apart")
claim(max(after["3a"]) < min(after["3b"]), "3b adds to 3a, seeds apart")
claim(max(before["stem"]) < min(before["3b"]), "3b adds to the stem before training")
claim(max(before["5b"]) < 0.3, "before training 5b is right on under three in ten")
claim(min(after["stem"]) > 0.5, "the trained stem is right on more than half")
for place in PLACES[2:]:
    claim(min(after[place]) > max(before[place]), f"training adds at {place}")
    claim(sum(after[place]) / 3 > 0.8, f"at {place} over four fifths on average")

# %% tags=["depth-claims"]
for early, late in zip(PLACES[2:], PLACES[3:]):
    words = f"before training {late} is less often right than {early}"
    claim(sum(before[late]) < sum(before[early]), words)
gains = [(sum(after[late]) - sum(after["4a"])) / 3 for late in PLACES[4:]]
record("gain.most", 100 * max(gains))
claim(max(gains) < 0.05, "no module behind 4a is five points above it")

# %% [markdown]
# ### What the heads send
#
# The gradient that the losses of the heads send to the first kernel of the stem and of
# each module, divided by what the main loss sends there, before training.


# %% tags=["gradients"]
def caffe_init(network: nn.Module, *, gain: float = 1.0) -> None:
    """Uniform weights of variance gain / inputs, biases 0.2: Caffe's, with gain 1."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = math.sqrt(3 * gain / layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:  # one value for all classes changes no loss
                nn.init.constant_(layer.bias, 0.2)


def digit_network_with_heads(*, conv) -> WithHeads:
    """The digit network with both heads at an eighth of their width, no dropout."""

    def head(c_in: int) -> Head:
        sizes = {"narrow": 16, "hidden": 128, "num_classes": 10}
        return AdaptiveHead(c_in, conv=conv, dropout=0.0, **sizes)

    def module(row: Row) -> Inception:
        return Inception(row, conv=conv)

    stem = conv(1, 24, 3, stride=2)
    rows = narrowed(TABLE_1, 8)
    return WithHeads(stem, rows, module=module, head=head, dropout=0.0, num_classes=10)


def gradient_norms(network: WithHeads, x: Tensor, y: Tensor) -> Tensor:
    """From the heads and the main loss, at seven first kernels, stem to 4d: (2, 7)."""
    outputs = network.train()(x)
    main = F.cross_entropy(outputs[0], y)
    kernels = [network.stem[0].weight]
    for name in ("3a", "3b", "4a", "4b", "4c", "4d"):
        kernels.append(network.get_submodule(f"inception{name}").branch1[0].weight)
    norms = []
    for loss in (total_loss(outputs, y) - main, main):
        found = torch.autograd.grad(loss, kernels, retain_graph=True)
        norms.append(torch.stack([gradient.norm() for gradient in found]))
    return torch.stack(norms).cpu()


# %% tags=["gradient-run"]
def norms_of_seeds(x: Tensor, y: Tensor, *, conv, gain: float = 1.0) -> Tensor:
    """Gradient norms of eight untrained networks: (seeds, 2, kernels)."""
    found = []
    for number in range(8):
        seed(number)
        network = digit_network_with_heads(conv=conv)
        caffe_init(network, gain=gain)
        found.append(gradient_norms(network.to(x.device), x, y))
    return torch.stack(found)


# %% tags=["gradient-runs"]
batch = [t[:128].to(device) for t in train_part]
norms = {"no norm": norms_of_seeds(*batch, conv=conv_relu)}
norms["batch norm"] = norms_of_seeds(*batch, conv=conv_norm)
ratios = {}
for kind, found in norms.items():
    ratios[kind] = found[:, 0] / found[:, 1]  # (seeds, kernels)

# %% tags=["gradient-claims"]
plain = ratios["no norm"]
normed = ratios["batch norm"]
record_spread("gradient.plain", plain[:, 0].tolist())
record_spread("gradient.normed", normed[:, 0].tolist())
record("gradient.seeds", len(plain))
claim(plain[:, :3].min() > 1.1, "without norm the heads send more up to 3b")
claim(plain[:, 3].mean() > 3, "and at 4a on average")
claim(plain[:, :4].mean(0).min() > 3, "on average over three times as much up to 4a")
claim(plain[:, 4:].min(0).values.max() < 0.9, "behind 4a less with some seeds")
claim(plain[:, 4:].max(0).values.min() > 1.1, "and more with others")
claim(plain[:, 4:].mean(0).max() < 1, "and less on average")
claim(normed.max() < 0.5, "with batch norm they send less than half everywhere")

# %% tags=["gradient-figure"] alt="Gradient of the heads over that of the main loss, at the first kernels of the stem and of the modules 3a to 4d, on a log scale with a dotted line at 1; mean of three seeds in a band from the smallest to the largest. Without batch norm the line lies above the dotted line up to 4a and a little below it from 4b on, in a wide band that there lies on both sides; with batch norm the line and its narrow band lie far below."
_, axes = plt.subplots()
places = ("stem", "3a", "3b", "4a", "4b", "4c", "4d")
ends = {}
for kind, colour in zip(ratios, plots.COLOURS):
    ends[kind] = plots.seed_band(axes, range(7), ratios[kind], colour)
axes.axhline(1, color=plots.QUIET, linestyle=":")
axes.set(yscale="log", ylabel="heads / main loss")
axes.set(xticks=range(7), xticklabels=places)
plots.label_ends(axes, ends)

# %% [markdown]
# ## Look inside
#
# The pooled channels of the test digits after three places of a trained network, on their
# two directions of largest variance.


# %% tags=["between"]
def between(x: Tensor, y: Tensor) -> float:
    """Share of the variance of (N, C) that lies between the means of the classes."""
    means = torch.stack([x[y == k].mean(0) for k in range(10)])
    within = (x - means[y]).square().sum()
    return 1 - (within / (x - x.mean(0)).square().sum()).item()


def two_directions(x: Tensor) -> Tensor:
    """(N, C) on the two directions of largest variance: (N, 2)."""
    centred = x - x.mean(0)
    return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T


# %% tags=["classes-figure"] alt="Three clouds of points for held-out digits 0 to 5, a colour for each digit and its number at the mean of its points: after the stem only the colour of 1 stands apart, the others lie over one another; after 4a they part in places; after 5b the colours are gathered in clouds, most of them apart."
_, grid = plt.subplots(1, 3, figsize=(5, 2.1))
for axes, place in zip(grid, ("stem", "4a", "5b")):
    points = two_directions(features["trained", 0][place])
    for digit, colour in enumerate(plots.COLOURS):
        those = points[test[1] == digit]
        axes.plot(*those.T, ".", color=colour, markersize=2, alpha=0.5)
        style = {"weight": "bold", "size": 7, "ha": "center", "va": "center"}
        axes.text(*those.mean(0), str(digit), **style)
    axes.set(title=place, xticks=[], yticks=[])

# %% tags=["shares"]
shares = {}
for place in ("stem", "4a", "5b"):
    shares[place] = [between(features["trained", n][place], test[1]) for n in SEEDS]
    record_spread(f"between.{place}", shares[place])
claim(max(shares["stem"]) < min(shares["4a"]), "4a gathers them more than the stem")
claim(max(shares["4a"]) < min(shares["5b"]), "5b gathers them more than 4a")

# %% [markdown]
# ## What we saw
#
# - Behind 1x1 reductions the same outputs cost a third of the multiply-accumulates, and a
#   pixel still reaches 1x1, 3x3, 5x5 and 3x3 outputs of the four branches.
# - With copied weights torchvision's main output and both heads are equalled.
# - A trained network knows most of what it knows of a digit after its first modules: a
#   head in the middle has something to read. Before training each module loses some.
# - Without batch norm, from Caffe's weights, the heads send the stem and the modules 3
#   more gradient than the main loss does; with batch norm they send less.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
row = TABLE_1["3a"]
weights = row.c_in * (row.one + row.reduce3 + row.reduce5 + row.pool)
weights += 9 * row.reduce3 * row.three + 25 * row.reduce5 * row.five
biases = row.one + row.reduce3 + row.three + row.reduce5 + row.five + row.pool
parameters = weights + biases
macs = 28 * 28 * weights

# %% tags=["solution-1-result"]
counted = counting.parameters(built["published"].inception3a)
claim(parameters == counted, "the parameters by hand are those counted")
claim(macs == cost["3a"], "the MACs by hand are those counted")
rows = [("by hand", parameters, macs), ("counted", counted, cost["3a"])]
table(rows, ("3a", "parameters", "MACs"))


# %% tags=["solution-2"]
class TwoSmall(Inception):
    """Two 3x3 convolutions in a row in place of the 5x5, which they match in window."""

    def __init__(self, row: Row):
        super().__init__(row)
        self.branch5 = nn.Sequential(
            conv_relu(row.c_in, row.reduce5, 1),
            conv_relu(row.reduce5, row.five, 3),
            conv_relu(row.five, row.five, 3),
        )


# %% tags=["solution-2-result"]
with torch.device("meta"):
    changed = googlenet(module=TwoSmall)
    x = torch.empty(1, 3, 224, 224)
parameters = counting.parameters(changed)
macs = counting.macs(changed, x)
cells = reached(TwoSmall(TABLE_1["3a"]).branch5, 192).sum().item()
claim(cells == 25, "two 3×3 layers see 5×5 pixels")
claim(parameters > counting.parameters(built["published"]), "there are more parameters")
record("twosmall.parameters", parameters)
record("twosmall.gmacs", macs / 1e9)
table([(cells, parameters, f"{macs / 1e9:.3f}")], ("pixels", "parameters", "G MACs"))

# %% tags=["solution-3"]
once = norms["no norm"]
twice = norms_of_seeds(*batch, conv=conv_relu, gain=2.0)

# %% tags=["solution-3-result"]
share = twice[:, 0, 0] / twice[:, 1, 0]  # at the stem
grown = twice[:, :, 0] / once[:, :, 0]  # (seeds, heads and main loss)
record_spread("gradient.doubled", share.tolist())
for i, name in enumerate(("heads", "main")):
    record_spread(f"grown.{name}", grown[:, i].tolist())
claim((share < plain[:, 0] / 2).all(), "the share of the heads falls with every seed")
claim(share.min() < 0.8, "with some seeds the heads send less")
claim(share.max() > 1.2, "and with others more")
claim(grown[:, 0].min() > 10, "the gradient of the heads grows with every seed")
claim(grown[:, 1].min() > 2 * grown[:, 0].max(), "that of the main loss grows more")

# %% tags=["solution-3-table"]
rows = []
for name, found in (("1 / inputs", once), ("2 / inputs", twice)):
    heads = found[:, 0, 0]
    main = found[:, 1, 0]
    parts = [spread(v.tolist(), ".2g") for v in (heads, main, heads / main)]
    rows.append((name, *parts))
table(rows, ("variance of the weights", "heads", "main loss", "heads / main loss"))
