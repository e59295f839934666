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
# # ResNet
#
# Residual networks from one block: the published sizes, the wide ones and ResNet-D, counted and compared
# with two libraries; then the same network with and without shortcuts, trained on digits.
# The text to it is the [chapter](../chapters/resnet.rst), the paper is
# [He et al. 2015](https://arxiv.org/abs/1512.03385).

# %%
import math
from collections import OrderedDict

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from timm.models.resnet import resnet50d as timm_resnet50d

from workbench import PROFILE, claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, drawing, images, plots, training

# %% [markdown]
# ## The block
#
# A branch $\mathcal F$ computes what to add, a shortcut carries the input past it, and a ReLU follows the sum.
# The order of the two modules is that of the libraries, so that weights can be copied pair by pair.


# %% tags=["block"]
class ResidualBlock(nn.Module):
    """Learn what to add to the input: y = relu(F(x) + shortcut(x)).

    He et al. 2015, equations 1 and 2 and figure 2.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)
        return torch.relu(self.branch(x) + self.shortcut(x))


# %% tags=["drawing"]
def draw_block(axes, left: float, top: float, title: str, layers: list[str], shortcut: str = ""):
    """Draw a branch from top to bottom, its shortcut at the right, and the sum."""
    x, end = left + 0.7, top + 0.85 + 0.56 * len(layers)
    nodes = {"x": diagrams.Node(x, top + 0.3, "$x$")}
    for i, text in enumerate(layers):
        nodes[f"layer {i}"] = diagrams.Node(x, top + 0.85 + 0.56 * i, text, width=1.3)
    last = "+" if shortcut else "ReLU"
    nodes[last] = diagrams.Node(x, end, last)
    arrows, shortcuts = list(zip(nodes, list(nodes)[1:])), []  # from each to the next
    if shortcut:
        fork, right = top + 0.52, left + 1.58
        shortcuts.append(((x, fork), (right, fork), (right, end), "+"))
        beside = right + 0.44, (fork + end) / 2
        nodes["shortcut"] = diagrams.Node(*beside, shortcut, colour=plots.COLOURS[1])
        nodes["ReLU"] = diagrams.Node(x, end + 0.25, "ReLU")
    nodes["title"] = diagrams.Node(x, top, title, weight="bold")
    diagrams.draw(axes, nodes, arrows, shortcuts)


# %% tags=["blocks-figure"] alt="Four blocks in two rows. Each has a column of convolutions. The plain one ends in a ReLU. In the others an arrow leaves above the column, runs past it at the right and meets it at a plus sign before the ReLU: the basic block has two 3x3 convolutions and an identity, the bottleneck 1x1, 3x3 and 1x1 and an identity, the block of ResNet-D an average pool and a 1x1 convolution in the shortcut."
axes = diagrams.sheet(5.7)
draw_block(axes, 0.05, 0.15, "plain", ["3×3, 64", "3×3, 64"])
draw_block(axes, 2.55, 0.15, "basic", ["3×3, 64", "3×3, 64"], "identity")
draw_block(axes, 0.05, 2.8, "bottleneck", ["1×1, 64", "3×3, 64", "1×1, 256"], "identity")
inner = ["1×1, 128", "3×3, 128, /2", "1×1, 512"]
draw_block(axes, 2.55, 2.8, "ResNet-D, stride 2", inner, "pool 2×2\n1×1, 512")

# %% [markdown]
# ## Why add the input
#
# The paper suspects that a few layers with nonlinearities find it hard to learn the identity (section 3.1).
# We let stacks of one and of four branches, each two linear layers of 16 units, learn to copy their input:
# once with the input of each branch added, once without; same sizes, same seed, same optimiser, and no ReLU
# behind the sum, so that no output can be stuck at zero.


# %% tags=["copy"]
WIDTH = 16
STEPS = 250


def learn_to_copy(n: int, residual: bool, he: bool = False, number: int = 0) -> list[float]:
    """Train n branches in a row to return their input, uniform in 0..1: mean squared errors.

    The weights start as torch draws them, or with six times that variance, as in
    "Delving Deep into Rectifiers" (He et al. 2015, section 2.2).
    """
    seed(number)
    stack = nn.ModuleList()
    for _ in range(n):
        stack.append(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)))
        for layer in (stack[-1][0], stack[-1][2]) if he else ():
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    optimizer = torch.optim.Adam(stack.to(device).parameters(), lr=3e-3)
    errors = []
    for _ in range(STEPS):
        x = y = torch.rand(128, WIDTH, device=device)
        for branch in stack:
            y = branch(y) + y if residual else branch(y)
        error = F.mse_loss(y, x)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    return errors


# %% tags=["copy-figure"] alt="Mean squared error of copying over 250 steps, on a log scale, with a dotted line at one twelfth. The two stacks with the input added fall by three to four orders of magnitude, the one of four branches less. The two without stay above one hundredth, the one of four branches close to the dotted line."
constant = 1 / 12  # mean squared error of the best constant, the variance of uniform numbers
copying, ends = {}, {}
_, axes = plt.subplots()
for kind, colour in (("plain", plots.COLOURS[1]), ("residual", plots.COLOURS[0])):
    for n, line in ((1, "--"), (4, "-")):
        copying[kind, n] = learn_to_copy(n, kind == "residual")
        record(f"copy.{kind}{n}", copying[kind, n][-1])
        axes.plot(copying[kind, n], line, color=colour)
        ends[f"{kind}, {n}"] = (len(copying[kind, n]) - 1, copying[kind, n][-1])
axes.axhline(constant, color=plots.QUIET, linestyle=":")
ends["best constant"] = (249, constant)
axes.set(xlabel="step", ylabel="mean squared error", yscale="log", ylim=(1e-5, 10))
colours = [plots.COLOURS[i] for i in (1, 1, 0, 0)]
plots.label_ends(axes, ends, [*colours, plots.QUIET])

# %% tags=["copy-checked"]
for n in (1, 4):
    hundredth = copying["plain", n][-1] / 100
    ahead = copying["residual", n][-1] < hundredth
    claim(
        ahead, f"stack of {n}: with the input added the error is below a hundredth of that without"
    )
record("copy.he.plain4", learn_to_copy(4, residual=False, he=True)[-1])
record("copy.he.residual4", learn_to_copy(4, residual=True, he=True)[-1])

# %% [markdown]
# ## From the block to the network
#
# Helpers first: a convolution is always followed by batch normalisation, so it has no bias of its own.


# %% tags=["conv-norm"]
def conv_norm(c_in: int, c_out: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, then batch norm (its shift is the bias)."""
    conv = nn.Conv2d(c_in, c_out, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


# %% tags=["shortcuts"]
def projection(c_in: int, c_out: int, stride: int) -> nn.Module:
    """Option B: the identity where the shapes allow, else a 1x1 convolution (section 3.3)."""
    same = stride == 1 and c_in == c_out
    return nn.Identity() if same else conv_norm(c_in, c_out, 1, stride)


def pooled_projection(c_in: int, c_out: int, stride: int) -> nn.Module:
    """ResNet-D: average first, so that the 1x1 convolution reads every pixel and not one in four.

    He et al. 2019, section 4.2. At an odd size the last window is smaller, as in timm.
    """
    if stride == 1:
        return projection(c_in, c_out, stride)
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True)
    return nn.Sequential(pool, conv_norm(c_in, c_out, 1))


class ZeroPad(nn.Module):
    """Option A: take every stride-th pixel, fill new channels with zeros; no parameters (section 3.3)."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.stride, self.extra = stride, c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)
        return F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


# %% tags=["basic"]
class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions (ResNet-18 and 34; He et al. 2015, figure 5, left)."""

    expansion = 1  # output channels per width

    def __init__(self, c_in: int, width: int, stride: int = 1, shortcut=projection):
        branch = nn.Sequential(
            conv_norm(c_in, width, 3, stride), nn.ReLU(), conv_norm(width, width, 3)
        )
        super().__init__(branch, shortcut(c_in, width, stride))


# %% tags=["basic-shape"]
BasicBlock(64, 128, stride=2)(torch.randn(2, 64, 56, 56)).shape


# %% tags=["bottleneck"]
class Bottleneck(ResidualBlock):
    """Narrow by 1x1, work by 3x3, widen by 1x1 (ResNet-50 and deeper; He et al. 2015, figure 5, right).

    Here the 3x3 convolution takes the stride ("v1.5"), as in torchvision.
    """

    expansion = 4  # output channels per width
    stride_at = 1  # which of the three convolutions takes the stride
    width_factor = 1  # channels of the 3x3 per width

    def __init__(self, c_in: int, width: int, stride: int = 1, shortcut=projection):
        strides = [1, 1, 1]
        strides[self.stride_at] = stride
        inner, c_out = self.width_factor * width, self.expansion * width
        branch = nn.Sequential(
            conv_norm(c_in, inner, 1, strides[0]),
            nn.ReLU(),
            conv_norm(inner, inner, 3, strides[1]),
            nn.ReLU(),
            conv_norm(inner, c_out, 1, strides[2]),
        )
        super().__init__(branch, shortcut(c_in, c_out, stride))


class OriginalBottleneck(Bottleneck):
    """As in the models the authors released: the first 1x1 convolution takes the stride."""

    stride_at = 0


class WideBottleneck(Bottleneck):
    """Wide ResNet-50-2 and 101-2: the inner convolutions have twice the channels."""

    width_factor = 2


# %% tags=["bottleneck-shape"]
Bottleneck(256, 128, stride=2)(torch.randn(2, 256, 56, 56)).shape


# %% tags=["stem"]
def stem(width: int) -> nn.Sequential:
    """7x7 convolution and max pool, a quarter of the side: He et al. 2015, table 1."""
    return nn.Sequential(conv_norm(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))


def deep_stem(width: int) -> nn.Sequential:
    """Three 3x3 convolutions in place of the 7x7: He et al. 2019, section 4.2 (ResNet-C and D)."""
    first = [conv_norm(3, width // 2, 3, 2), nn.ReLU(), conv_norm(width // 2, width // 2, 3)]
    last = [nn.ReLU(), conv_norm(width // 2, width, 3), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    return nn.Sequential(*first, *last)


# %% tags=["network"]
def stage(block, c_in: int, width: int, depth: int, stride: int, shortcut) -> nn.Sequential:
    """`depth` blocks, the first of which takes the stride and changes the number of channels."""
    c_out = block.expansion * width
    later = [block(c_out, width, 1, shortcut) for _ in range(depth - 1)]
    return nn.Sequential(block(c_in, width, stride, shortcut), *later)


def resnet(
    block,
    depths,
    make_stem=stem,
    widths=(64, 128, 256, 512),
    shortcut=projection,
    num_classes: int = 1000,
) -> nn.Sequential:
    """Stem, one stage per depth, mean, linear layer: (B, c_in, H, W) -> (B, num_classes).

    He et al. 2015, table 1 (or section 4.2 with other widths). Convolutions start from a normal
    distribution of variance 2 / fan_out, as in torchvision.
    """
    parts, c_in = OrderedDict(stem=make_stem(widths[0])), widths[0]
    for i, (depth, width) in enumerate(zip(depths, widths), start=1):
        stride = 1 if i == 1 else 2
        parts[f"stage{i}"] = stage(block, c_in, width, depth, stride, shortcut)
        c_in = block.expansion * width
    parts["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts["fc"] = nn.Linear(c_in, num_classes)
    network = nn.Sequential(parts)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network


# %% tags=["sizes"]
def resnet18() -> nn.Sequential:
    return resnet(BasicBlock, (2, 2, 2, 2))


def resnet34() -> nn.Sequential:
    return resnet(BasicBlock, (3, 4, 6, 3))


def resnet50(block=Bottleneck) -> nn.Sequential:
    return resnet(block, (3, 4, 6, 3))


def resnet101(block=Bottleneck) -> nn.Sequential:
    return resnet(block, (3, 4, 23, 3))


def resnet152(block=Bottleneck) -> nn.Sequential:
    return resnet(block, (3, 8, 36, 3))


def original_resnet50() -> nn.Sequential:
    return resnet50(OriginalBottleneck)


def original_resnet101() -> nn.Sequential:
    return resnet101(OriginalBottleneck)


def original_resnet152() -> nn.Sequential:
    return resnet152(OriginalBottleneck)


def wide_resnet50() -> nn.Sequential:
    return resnet50(WideBottleneck)


def wide_resnet101() -> nn.Sequential:
    return resnet101(WideBottleneck)


def resnet50d() -> nn.Sequential:
    return resnet(Bottleneck, (3, 4, 6, 3), deep_stem, shortcut=pooled_projection)


# %% [markdown]
# ## Counting
#
# On the meta device a network has shapes but no memory, so even the largest is built in a moment.
# MACs are multiply-accumulates of convolutions and the linear layer for one 224x224 image; biases and batch
# norm are not in them.

# %% tags=["count"]
sizes = [resnet18, resnet34, resnet50, resnet101, resnet152]
sizes += [original_resnet50, original_resnet101, original_resnet152]
rows, cost = [], {}
for build in (*sizes, wide_resnet50, wide_resnet101, resnet50d):
    with torch.device("meta"):
        network, x = build(), torch.empty(1, 3, 224, 224)
    name, cost[build] = build.__name__, counting.macs(network, x)
    rows.append((name, counting.parameters(network), f"{cost[build] / 1e9:.3f}"))
    record(f"{name}.parameters", counting.parameters(network))
    record(f"{name}.macs", cost[build])
    record(f"{name}.gmacs", cost[build] / 1e9)
table(rows, ("network", "parameters", "G MACs"))

# %% tags=["drawn"] alt="ResNet-50 from top to bottom, with output shape and parameters at the right: an input of 3x224x224, the stem, then four stages with a loop past each and the number of its blocks, 3, 4, 6 and 3, whose maps shrink from 56 to 7 pixels a side while the channels grow to 2048, the pool and the linear layer to 1000."
with torch.device("meta"):
    network, x = resnet50(), torch.empty(1, 3, 224, 224)
drawing.draw(network, x)

# %% [markdown]
# ## Equal to the libraries
#
# A fresh batch norm has mean 0, variance 1, scale 1 and shift 0: it would hide a wrong epsilon or two layers
# that changed places. We give the references random ones before their weights are copied into ours.


# %% tags=["equal"]
references = {resnet18: torchvision.models.resnet18, resnet50: torchvision.models.resnet50}
references[resnet50d] = timm_resnet50d
rows, deviations = [], []
for ours, theirs in references.items():
    seed(0)
    reference, network = checks.randomise_norms(theirs()), ours()
    checks.transplant(reference, network)
    x = torch.randn(2, 3, 40, 40)
    deviations.append(checks.same_outputs(network, reference, x))
    library = theirs.__module__.partition(".")[0]
    rows.append((ours.__name__, library, f"{deviations[-1]:.1e}"))
record("deviation", max(deviations))
table(rows, ("network", "reference", "largest relative deviation"))


# %% tags=["zero-gamma"]
@torch.no_grad()
def zero_last_gamma(network: nn.Module) -> nn.Module:
    """Start every branch at zero: the scale of its last batch norm (Goyal et al. 2017, section 5.1)."""
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            module.branch[-1][1].weight.zero_()
    return network


# %% tags=["limit"]
seed(0)
x = torch.randn(2, 256, 14, 14)
limit = (zero_last_gamma(Bottleneck(256, 64))(x) - torch.relu(x)).abs().max().item()
claim(limit < 1e-6, "a block whose branch is zero gives relu(x)")
limit

# %% [markdown]
# ## Plain against residual
#
# The networks of section 4.2 of the paper, made narrow: 6n + 2 layers, three stages of n basic blocks, option A.
# Padding with zeros has no parameters, so the plain and the residual network of one depth have the same ones.
# The digits are shrunk to 20x20 to save time.


# %% tags=["no-shortcut"]
class NoShortcut(nn.Module):
    """Give a scalar 0 for any input: with it, a residual block is two plain layers."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


# %% tags=["data"]
IMAGES = 900 if PROFILE == "sample" else 20_000
data = images.digits(size=20)
mean, std = data.train[0].mean(), data.train[0].std()
train_part, validation, test = [((x - mean) / std, y) for x, y in data[:3]]
train_part = train_part[0][:IMAGES], train_part[1][:IMAGES]
record("images", len(train_part[1]))
rows = [(n, *p[0].shape) for n, p in zip(data._fields, (train_part, validation, test))]
table(rows, ("part", "N", "C", "H", "W"))


# %% tags=["digit-network"]
def digit_stem(width: int) -> nn.Sequential:
    """One 3x3 convolution; its stride of 2 halves the map and the cost."""
    return nn.Sequential(conv_norm(1, width, 3, 2), nn.ReLU())


def digit_network(depth: int, shortcut) -> nn.Sequential:
    """6n + 2 layers for digits, (B, 1, H, W) -> (B, 10); He et al. 2015, section 4.2, half as wide."""
    n, rest = divmod(depth - 2, 6)
    assert rest == 0, "depth must be 6n + 2"
    return resnet(BasicBlock, (n, n, n), digit_stem, (8, 16, 32), shortcut, 10)


# %% tags=["digit-parameters"]
rows = []
for depth in (14, 32):
    for kind, shortcut in (("plain", NoShortcut), ("residual", ZeroPad)):
        parameters = counting.parameters(digit_network(depth, shortcut))
        record(f"{kind}{depth}.parameters", parameters)
        rows.append((f"{kind}-{depth}", parameters))
table(rows, ("network", "parameters"))

# %% [markdown]
# ### Training
#
# Four networks, three seeds each, one recipe for all. The rate is the 0.1 of the paper.


# %% tags=["train"]
EPOCHS = 5
BATCH = 50
SEEDS = (0, 1, 2)
NETWORKS = {  # depth, shortcut, colour in all figures
    "plain-14": (14, NoShortcut, plots.COLOURS[4]),
    "plain-32": (32, NoShortcut, plots.COLOURS[1]),
    "residual-14": (14, ZeroPad, plots.COLOURS[5]),
    "residual-32": (32, ZeroPad, plots.COLOURS[0]),
}


def recipe(network: nn.Module, steps: int, rate: float = 0.1):
    """SGD with momentum; the rate rises along a cosine from rate / 25 for a fifth, then falls to 0."""
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.2, cycle_momentum=False
    )
    return optimizer, schedule


def train(network: nn.Module, part, epochs: int = EPOCHS, rate: float = 0.1) -> list[float]:
    """Mean training loss of each epoch."""
    steps = epochs * math.ceil(len(part[1]) / BATCH)
    optimizer, schedule = recipe(network, steps, rate)
    return training.fit(network, part, epochs, optimizer, batch=BATCH, schedule=schedule)["loss"]


def fresh(name: str, number: int) -> nn.Module:
    """One of the four networks with the weights of one seed."""
    depth, shortcut, _ = NETWORKS[name]
    seed(number)
    return digit_network(depth, shortcut).to(device)


def draw_runs(losses: dict[tuple[str, int], list[float]]) -> None:
    """Mean over the seeds of each network's loss per epoch, a band from the smallest to the largest."""
    _, axes = plt.subplots()
    epochs, ends = range(1, EPOCHS + 1), {}
    for name, (depth, _, colour) in NETWORKS.items():
        runs = torch.tensor([losses[name, number] for number in SEEDS])
        line = "--" if depth == 14 else "-"
        ends[name] = plots.seed_band(axes, epochs, runs, colour, line)
    axes.set(xlabel="epoch", ylabel="training loss", ylim=(0, None), xticks=epochs)
    plots.label_ends(axes, ends, [colour for _, _, colour in NETWORKS.values()])


# %% tags=["curve"] alt="Training loss over five epochs for the four networks, mean of three seeds with a band from the smallest to the largest. The two residual networks and the plain one of 14 layers fall far down; the plain one of 32 layers stays far above them."
networks, losses = {}, {}
for name in NETWORKS:
    for number in SEEDS:
        networks[name, number] = fresh(name, number)
        losses[name, number] = train(networks[name, number], train_part)
record("epochs", EPOCHS)
record("steps", EPOCHS * math.ceil(IMAGES / BATCH))
draw_runs(losses)

# %% tags=["result"]
rows, final, tested = [], {}, {}
for name in NETWORKS:
    final[name] = [losses[name, number][-1] for number in SEEDS]
    tested[name] = [training.evaluate(networks[name, number], test) for number in SEEDS]
    record_spread(f"{name.replace('-', '')}.loss", final[name])
    record_spread(f"{name.replace('-', '')}.test", tested[name])
    rows.append((name, spread(final[name], ".3f"), spread(tested[name], ".1%")))
for name in ("plain-14", "residual-32"):
    twice = min(final["plain-32"]) > 2 * max(final[name])
    claim(twice, f"every seed of plain-32 keeps more than twice the loss of any of {name}")
table(rows, ("network", "training loss, last epoch", "test accuracy"))

# %% [markdown]
# ### Gradients
#
# Same weights, same batch, with and without shortcuts, before training and after the first epoch.
# Behind batch norm a kernel $W$ and $2W$ compute the same, but the gradient at $2W$ is half as large;
# $\lVert\partial L / \partial W\rVert \cdot \lVert W\rVert$ does not depend on that scale.


# %% tags=["gradients"]
def block_gradients(network: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """Gradient norm times weight norm of each block's first kernel, from input to output."""
    network.train()
    network.zero_grad()
    F.cross_entropy(network(x), y).backward()
    blocks = [m for m in network.modules() if isinstance(m, ResidualBlock)]
    kernels = [block.branch[0][0].weight for block in blocks]
    return [(kernel.grad.norm() * kernel.norm()).item() for kernel in kernels]


# %% tags=["gradient-runs"]
batch = [part[:128].to(device) for part in train_part]
norms = {}
for name in ("plain-32", "residual-32"):
    for number in SEEDS:
        network = fresh(name, number)
        norms[name, "start", number] = block_gradients(network, *batch)
        optimizer, schedule = recipe(network, EPOCHS * math.ceil(IMAGES / BATCH))
        training.fit(network, train_part, 1, optimizer, batch=BATCH, schedule=schedule)
        norms[name, "epoch", number] = block_gradients(network, *batch)
    for when in ("start", "epoch"):
        ratios = [norms[name, when, number][0] / norms[name, when, number][-1] for number in SEEDS]
        record_spread(f"{name.replace('-', '')}.ratio.{when}", ratios)

# %% tags=["gradient-figure"] alt="Gradient norm times weight norm of each of the 15 blocks of the two networks of 32 layers, on a log scale. Before training the plain network's line falls by more than a factor of ten from the first block to the last, the residual one's is nearly level. After the first epoch neither falls steeply from input to output."
_, axes = plt.subplots()
ends = {}
for name in ("plain-32", "residual-32"):
    for when, line in (("start", "-"), ("epoch", ":")):
        values = norms[name, when, 0]
        axes.plot(range(1, 16), values, line, color=NETWORKS[name][2])
        ends[f"{name}, {when}"] = (15, float(values[-1]))
axes.set(xlabel="block", ylabel="gradient norm × weight norm", yscale="log", ylim=(0.2, 150))
axes.tick_params(which="minor", labelleft=False)
plots.label_ends(axes, ends, [plots.COLOURS[i] for i in (1, 1, 0, 0)])


# %% [markdown]
# ## Look inside
#
# A convolutional network accepts any size. In the sample profile the photograph goes through the residual
# network of 32 layers above, which has seen digits and nothing else; in the full profile through ResNet-50 with
# the weights that torchvision publishes.


# %% tags=["eye"]
def channels(*values: float) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)


def imagenet_network() -> tuple[nn.Module, Tensor, Tensor]:
    """ResNet-50 with the weights that torchvision publishes, and the mean and scale of its input."""
    network = resnet50()
    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    checks.transplant(torchvision.models.resnet50(weights=weights, progress=False), network)
    return network.to(device), channels(0.485, 0.456, 0.406), channels(0.229, 0.224, 0.225)


# %% tags=["maps"] alt="Three rows of six feature maps of a portrait photograph. In the first row face, cap and uniform are recognisable, mostly as bright edges on black; in the second row the same edges are coarser; in the third there are blurred patches of light and dark."
photograph = images.photograph()
if PROFILE == "full":
    eye, centre, scale = imagenet_network()
else:
    eye, centre, scale = networks["residual-32", 0], mean, std
    photograph = photograph.mean(1, keepdim=True)
maps, sides = [], []
for i in (1, 2, 3):
    found = training.predict(eye[: i + 1], (photograph - centre) / scale)[0]  # stem, stages 1 to i
    maps += list(found[found.flatten(1).std(1).argsort(descending=True)[:6]])  # that vary most
    sides.append(found.shape[-1])
plots.image_grid(maps, columns=6)
for i, cell in enumerate(plt.gcf().axes[::6]):
    cell.set_title(f"stage {i + 1}, {sides[i]}×{sides[i]}", loc="left", fontsize=11)

# %% [markdown]
# ## What we saw
#
# - One block class with an exchangeable branch and shortcut gives all published sizes; with copied weights their
#   outputs equal those of torchvision and timm.
# - In this budget the deeper plain network has by far the larger *training* loss; with shortcuts the two depths are
#   close. Trained four times as long the plain one catches up in large part (solution 3): what we see is slower
#   optimisation.
# - At the start the gradients of the plain network do not vanish towards the input, they grow; after the first epoch
#   most of that is gone.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
saved = 0
for side, c_in, width in ((28, 256, 128), (14, 512, 256), (7, 1024, 512)):
    saved += 3 * side * side * c_in * width  # three of four pixels of the first 1x1 convolution
difference = cost[resnet50] - cost[original_resnet50]
claim(saved == difference, "the MACs saved by hand are those counted")
table([(saved, difference)], ("by hand", "counted"))

# %% tags=["solution-2"]
rows = []
for name, rate in (("plain-32", 0.05), ("plain-32", 0.1), ("plain-32", 0.2), ("residual-32", 0.1)):
    last, right = [], []
    for number in SEEDS:
        network, loss = networks[name, number], losses[name, number]  # those of rate 0.1
        if rate != 0.1:
            network = fresh(name, number)
            loss = train(network, train_part, rate=rate)
        last.append(loss[-1])
        right.append(training.evaluate(network, validation))
    if name == "plain-32":
        twice = min(last) > 2 * max(final["residual-32"])
        claim(twice, f"at rate {rate} plain-32 keeps more than twice the loss of residual-32")
    record_spread(f"{name.replace('-', '')}.rate{rate}", last)
    rows.append((name, rate, spread(last, ".2f"), spread(right, ".1%")))
table(rows, ("network", "rate", "training loss", "validation accuracy"))

# %% tags=["solution-3"]
LONG = 4 * EPOCHS
network = fresh("plain-32", 0)
longer = train(network, train_part, epochs=LONG)
claim(longer[-1] < min(final["plain-32"]) / 2, "four times as long, plain-32 halves its loss")
record("long.epochs", LONG)
record("long.loss", longer[-1])
record("long.validation", training.evaluate(network, validation))
rows = [(epoch, f"{longer[epoch - 1]:.3f}") for epoch in range(EPOCHS, LONG + 1, EPOCHS)]
table(rows, ("epoch of plain-32", "training loss"))


# %% tags=["solution-4"]
def without(network: nn.Module, number: int, index: int) -> nn.Module:
    """The network with one block of stage `number` left out; not the first, which changes the shape."""
    parts = OrderedDict(network.named_children())
    kept = [block for i, block in enumerate(parts[f"stage{number}"]) if i != index]
    return nn.Sequential(parts | {f"stage{number}": nn.Sequential(*kept)})


rows = []
for name in ("plain-14", "residual-14", "residual-32"):
    whole, n = networks[name, 0], (NETWORKS[name][0] - 2) // 6
    choices = [(number, i) for number in (1, 2, 3) for i in range(1, n)]
    scores = [training.evaluate(without(whole, *choice), validation) for choice in choices]
    before = training.evaluate(whole, validation)
    record(f"{name.replace('-', '')}.whole", before)
    record_spread(f"{name.replace('-', '')}.without", scores)
    rows.append((name, f"{before:.1%}", spread(scores, ".1%")))
table(rows, ("network", "whole", "one block left out"))
