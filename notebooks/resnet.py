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

import workbench
from timm.models.resnet import resnet50d as timm_resnet50d
from workbench import count_macs, count_parameters, device, record, table

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
def draw_block(axes, title: str, layers: list[str], shortcut: str) -> None:
    """Draw a branch from top to bottom, its shortcut to the right, and the sum."""
    edge, height = workbench.COLOURS[0], len(layers)
    arrow = {"arrowstyle": "->", "color": "#9aa7b0"}
    for i, text in enumerate(layers):
        y = height - i
        axes.annotate("", (0, y + 0.3), (0, y + 0.7), arrowprops=arrow)
        axes.add_patch(plt.Rectangle((-0.9, y - 0.3), 1.8, 0.6, fill=False, edgecolor=edge))
        axes.text(0, y, text, ha="center", va="center", fontsize=8)
    axes.annotate("", (0, 0.15), (0, 0.7), arrowprops=arrow)
    line = {"color": workbench.COLOURS[1], "linewidth": 1.5}
    axes.plot([0, 1.3, 1.3, 0.2], [height + 0.55, height + 0.55, 0, 0], **line)
    axes.text(1.4, (height + 0.5) / 2, shortcut, color=line["color"], fontsize=8, va="center")
    axes.text(0, 0, "+", ha="center", va="center", fontsize=13)
    axes.text(0, -0.45, "ReLU", ha="center", va="center", fontsize=8)
    axes.text(0, height + 0.85, "$x$", ha="center", fontsize=9)
    axes.set(xlim=(-1, 2.7), ylim=(-0.7, 4.6), title=title)
    axes.title.set_fontsize(9)
    axes.axis("off")


# %% tags=["blocks-figure"] alt="Three blocks side by side. Each has a column of convolutions and a line that leaves above it, runs past it and meets it at a plus sign before a ReLU. The basic block has two 3x3 convolutions and an identity, the bottleneck has 1x1, 3x3 and 1x1, the block of ResNet-D has an average pool and a 1x1 convolution in the shortcut."
_, (left, middle, right) = plt.subplots(1, 3, figsize=(6.4, 3.2))
draw_block(left, "basic", ["3×3, 64", "3×3, 64"], "identity")
draw_block(middle, "bottleneck", ["1×1, 64", "3×3, 64", "1×1, 256"], "identity")
draw_block(
    right, "ResNet-D, stride 2", ["1×1, 128", "3×3, 128, /2", "1×1, 512"], "pool 2×2\n1×1, 512"
)

# %% [markdown]
# ## Why add the input
#
# The paper suspects that a few layers with nonlinearities find it hard to learn the identity (section 3.1).
# We let stacks of one and of four blocks, each two linear layers of 16 units, learn to copy their input:
# once with the input added, once without, same sizes, same seed, same optimiser.


# %% tags=["no-shortcut"]
class NoShortcut(nn.Module):
    """Add nothing: with it, a residual block is two plain layers. x -> 0, of no dimension."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


# %% tags=["copy"]
WIDTH = 16
STEPS = 250


def learn_to_copy(blocks: int, residual: bool) -> list[float]:
    """Train fully connected blocks to return their input, uniform in 0..1: mean squared errors."""
    workbench.seed(0)
    stack = nn.Sequential()
    for _ in range(blocks):
        branch = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        shortcut = nn.Identity() if residual else NoShortcut(WIDTH, WIDTH, 1)
        stack.append(ResidualBlock(branch, shortcut))
    optimizer = torch.optim.Adam(stack.to(device).parameters(), lr=3e-3)
    errors = []
    for _ in range(STEPS):
        x = torch.rand(128, WIDTH, device=device)
        error = F.mse_loss(stack(x), x)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    return errors


# %% tags=["copy-figure"] alt="Mean squared error of copying over 250 steps, on a log scale. The two stacks with the input added fall by three orders of magnitude. The two without stay above one hundredth, and the one of four blocks stays above that of one block."
copying = {}
for blocks in (1, 4):
    for residual in (False, True):
        kind = "with shortcut" if residual else "without"
        copying[f"{blocks} × {kind}"] = learn_to_copy(blocks, residual)
        record(
            f"copy.{'residual' if residual else 'plain'}{blocks}", copying[f"{blocks} × {kind}"][-1]
        )
workbench.curves(copying, "step", "mean squared error", log=True)

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
    strided = 1  # which of the three convolutions takes the stride
    widen = 1  # inner channels per width

    def __init__(self, c_in: int, width: int, stride: int = 1, shortcut=projection):
        strides = [1, 1, 1]
        strides[self.strided] = stride
        inner, c_out = self.widen * width, self.expansion * width
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

    strided = 0


class WideBottleneck(Bottleneck):
    """Wide ResNet-50-2 and 101-2: the inner convolutions have twice the channels."""

    widen = 2


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
    block, depths, stem=stem, widths=(64, 128, 256, 512), shortcut=projection, K=1000
) -> nn.Sequential:
    """Stem, one stage per depth, mean over the map, linear layer: (B, c_in, H, W) -> (B, K).

    He et al. 2015, table 1 (or section 4.2 with other widths). Convolutions start from a normal
    distribution of variance 2 / fan_out, as in torchvision.
    """
    parts, c_in = OrderedDict(stem=stem(widths[0])), widths[0]
    for i, (depth, width) in enumerate(zip(depths, widths), start=1):
        stride = 1 if i == 1 else 2
        parts[f"stage{i}"] = stage(block, c_in, width, depth, stride, shortcut)
        c_in = block.expansion * width
    parts["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts["fc"] = nn.Linear(c_in, K)
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


def resnet152() -> nn.Sequential:
    return resnet(Bottleneck, (3, 8, 36, 3))


def original_resnet50() -> nn.Sequential:
    return resnet50(OriginalBottleneck)


def wide_resnet50() -> nn.Sequential:
    return resnet50(WideBottleneck)


def wide_resnet101() -> nn.Sequential:
    return resnet101(WideBottleneck)


def resnet50d() -> nn.Sequential:
    return resnet(Bottleneck, (3, 4, 6, 3), stem=deep_stem, shortcut=pooled_projection)


# %% [markdown]
# ## Counting
#
# On the meta device a network has shapes but no memory, so even the largest is built in a moment.
# MACs are multiply-accumulates of convolutions and the linear layer for one 224x224 image; biases and batch
# norm are not in them.

# %% tags=["count"]
rows = []
sizes = (resnet18, resnet34, resnet50, resnet101, resnet152)
for build in (*sizes, original_resnet50, wide_resnet50, wide_resnet101, resnet50d):
    with torch.device("meta"):
        network, x = build(), torch.empty(1, 3, 224, 224)
    name, parameters, macs = build.__name__, count_parameters(network), count_macs(network, x)
    rows.append((name, parameters, f"{macs / 1e9:.3f}"))
    for key, value in (("parameters", parameters), ("macs", macs), ("gmacs", macs / 1e9)):
        record(f"{name}.{key}", value)
table(rows, ("network", "parameters", "G MACs"))

# %% tags=["stages"]
with torch.device("meta"):
    network, x = resnet50(), torch.empty(1, 3, 224, 224)
rows = [(name, "×".join(map(str, shape)), n) for name, shape, n in workbench.stages(network, x)]
table(rows, ("stage", "output", "parameters"))

# %% tags=["drawn"] alt="ResNet-50 as a row of blocks: an input of 3x224x224, a stem, four stages whose maps shrink from 56 to 7 pixels while their channels grow from 256 to 2048, a pool to 2048 numbers and a linear layer to 1000; output shape and parameters stand below each."
workbench.draw(network, x)

# %% [markdown]
# ## Equal to the libraries
#
# A fresh batch norm has mean 0, variance 1, scale 1 and shift 0: it would hide a wrong epsilon or two layers
# that changed places. We give the references random ones before their weights are copied into ours.


# %% tags=["randomise"]
@torch.no_grad()
def randomise_norms(network: nn.Module) -> nn.Module:
    """Give every batch norm random statistics, scale and shift."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.normal_(0, 0.1)
    return network


# %% tags=["equal"]
references = {resnet18: torchvision.models.resnet18, resnet50: torchvision.models.resnet50}
references[resnet50d] = timm_resnet50d
rows = []
for ours, theirs in references.items():
    workbench.seed(0)
    reference, network = randomise_norms(theirs()), ours()
    workbench.transplant(reference, network)
    deviation = workbench.same_outputs(network, reference, torch.randn(2, 3, 64, 64))
    record(f"{ours.__name__}.deviation", deviation)
    rows.append((ours.__name__, theirs.__module__.partition(".")[0], f"{deviation:.1e}"))
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
workbench.seed(0)
x = torch.randn(2, 256, 14, 14)
limit = (zero_last_gamma(Bottleneck(256, 64))(x) - torch.relu(x)).abs().max().item()
record("limit", limit)
limit

# %% [markdown]
# ## Plain against residual
#
# The networks of section 4.2 of the paper, made narrow: 6n + 2 layers, three stages of n basic blocks, option A.
# Padding with zeros has no parameters, so the plain and the residual network of one depth have the same ones.

# %% tags=["data"]
IMAGES = 1_000 if workbench.PROFILE == "sample" else 20_000
data = workbench.digits()
mean, std = data.train[0].mean(), data.train[0].std()
train_part, validation, test = [((x - mean) / std, y) for x, y in data[:3]]
train_part = train_part[0][:IMAGES], train_part[1][:IMAGES]
rows = [(n, *p[0].shape) for n, p in zip(data._fields, (train_part, validation, test))]
table(rows, ("part", "N", "C", "H", "W"))


# %% tags=["digit-network"]
def digit_stem(width: int) -> nn.Sequential:
    """One 3x3 convolution; its stride of 2 halves the map and the cost."""
    return nn.Sequential(conv_norm(1, width, 3, 2), nn.ReLU())


def digit_network(depth: int, shortcut) -> nn.Sequential:
    """6n + 2 layers for digits, (B, 1, 28, 28) -> (B, 10); He et al. 2015, section 4.2, half as wide."""
    n, rest = divmod(depth - 2, 6)
    assert rest == 0, "depth must be 6n + 2"
    return resnet(BasicBlock, (n, n, n), digit_stem, (8, 16, 32), shortcut, K=10)


# %% tags=["digit-parameters"]
rows = []
for depth in (14, 32):
    for kind, shortcut in (("plain", NoShortcut), ("residual", ZeroPad)):
        parameters = count_parameters(digit_network(depth, shortcut))
        record(f"{kind}{depth}.parameters", parameters)
        rows.append((f"{kind}-{depth}", parameters))
table(rows, ("network", "parameters"))

# %% [markdown]
# ### Gradients before training
#
# Same weights, same batch, with and without shortcuts: the norm of the loss gradient with respect to the
# first convolution of each block.


# %% tags=["gradients"]
def block_gradients(network: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """Norm of the loss gradient of each block's first kernel, from input to output."""
    network.train()
    network.zero_grad()
    F.cross_entropy(network(x), y).backward()
    blocks = [m for m in network.modules() if isinstance(m, ResidualBlock)]
    return [b.branch[0][0].weight.grad.norm().item() for b in blocks]


# %% tags=["gradient-figure"] alt="Gradient norm of each of the 15 blocks of the two networks of 32 layers before training, on a log scale. Without shortcuts the norm is largest at the first block and falls steeply towards the last; with them it falls far less."
batch = [part[:128].to(device) for part in train_part]
norms = {}
for kind, shortcut in (("plain-32", NoShortcut), ("residual-32", ZeroPad)):
    workbench.seed(0)
    norms[kind] = block_gradients(digit_network(32, shortcut).to(device), *batch)
    record(f"{kind.replace('-', '')}.gradient_ratio", norms[kind][0] / norms[kind][-1])
workbench.curves(norms, "block", "gradient norm of its first kernel", log=True)


# %% [markdown]
# ### Training
#
# Four networks, three seeds each, one recipe for all; the rate is the 0.1 of the paper, nothing was tuned.


# %% tags=["train"]
EPOCHS = 5
BATCH = 50
SEEDS = (0, 1, 2)


def train(network: nn.Module, part, rate: float = 0.1) -> list[float]:
    """SGD with momentum, the rate rising for a fifth of the steps and falling after; loss per epoch."""
    steps = EPOCHS * math.ceil(len(part[1]) / BATCH)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.2, cycle_momentum=False
    )
    return workbench.fit(network, part, EPOCHS, optimizer, batch=BATCH, schedule=schedule)["loss"]


def spread(values: list[float], form: str) -> str:
    """Mean, and the smallest and largest of the seeds."""
    mean = sum(values) / len(values)
    return f"{mean:{form}} ({min(values):{form}} to {max(values):{form}})"


def draw_runs(losses: dict[tuple[str, int], list[float]]) -> None:
    """Mean over the seeds of each network's loss per epoch, a band from the smallest to the largest."""
    _, axes = plt.subplots()
    epochs = range(1, EPOCHS + 1)
    for name in dict.fromkeys(name for name, _ in losses):
        runs = torch.tensor([losses[name, number] for number in SEEDS])
        (line,) = axes.plot(epochs, runs.mean(0), "--" if "14" in name else "-", label=name)
        band = {"color": line.get_color(), "alpha": 0.15, "linewidth": 0}
        axes.fill_between(epochs, runs.amin(0), runs.amax(0), **band)
    axes.set(xlabel="epoch", ylabel="training loss", ylim=(0, None), xticks=epochs)
    axes.legend(frameon=False)


# %% tags=["curve"] alt="Training loss over five epochs for the four networks, mean of three seeds with a band from the smallest to the largest. The two residual networks and the plain one of 14 layers fall close to zero; the plain one of 32 layers stays far above them."
kinds = {f"plain-{depth}": (depth, NoShortcut) for depth in (14, 32)}
kinds |= {f"residual-{depth}": (depth, ZeroPad) for depth in (14, 32)}
networks, losses = {}, {}
for name, (depth, shortcut) in kinds.items():
    for number in SEEDS:
        workbench.seed(number)
        networks[name, number] = digit_network(depth, shortcut).to(device)
        losses[name, number] = train(networks[name, number], train_part)
draw_runs(losses)

# %% tags=["result"]
rows = []
for name in kinds:
    last = [losses[name, number][-1] for number in SEEDS]
    right = [workbench.evaluate(networks[name, number], test) for number in SEEDS]
    for key, values in (("loss", last), ("test", right)):
        record(f"{name.replace('-', '')}.{key}", sum(values) / len(values))
        record(f"{name.replace('-', '')}.{key}.least", min(values))
        record(f"{name.replace('-', '')}.{key}.most", max(values))
    rows.append((name, spread(last, ".3f"), spread(right, ".1%")))
table(rows, ("network", "training loss, last epoch", "test accuracy"))


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
    workbench.transplant(torchvision.models.resnet50(weights=weights, progress=False), network)
    return network.to(device), channels(0.485, 0.456, 0.406), channels(0.229, 0.224, 0.225)


# %% tags=["maps"] alt="Three rows of eight feature maps of a portrait photograph. In the first row face, cap and uniform are recognisable, mostly as bright edges on black; in the second row the same edges are coarser; in the third there are blurred patches of light and dark."
photograph = workbench.photograph()
if workbench.PROFILE == "full":
    eye, centre, scale = imagenet_network()
else:
    eye, centre, scale = networks["residual-32", 0], mean, std
    photograph = photograph.mean(1, keepdim=True)
maps, titles = [], []
for i in (1, 2, 3):
    found = workbench.predict(eye[: i + 1], (photograph - centre) / scale)[0]  # stem, stages 1 to i
    lively = found.flatten(1).std(1).argsort(descending=True)[:8]  # maps that vary most
    maps += list(found[lively])
    titles += [f"stage {i}, {found.shape[-1]}²"] + 7 * [""]
workbench.image_grid(maps, titles)

# %% [markdown]
# ## What we saw
#
# - One block class with an exchangeable branch and shortcut gives all published sizes; with copied weights their
#   outputs equal those of torchvision and timm.
# - Without shortcuts the deeper network has the larger *training* loss; with the same layers and shortcuts it has not.
# - Gradients do not vanish in the plain network, batch norm sees to that; they grow towards the input instead.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
saved = 0
for side, c_in, width in ((28, 256, 128), (14, 512, 256), (7, 1024, 512)):
    saved += 3 * side * side * c_in * width  # three of four pixels of the first 1x1 convolution
with torch.device("meta"):
    x = torch.empty(1, 3, 224, 224)
    difference = count_macs(resnet50(), x) - count_macs(original_resnet50(), x)
table([(saved, difference)], ("by hand", "counted"))

# %% tags=["solution-2"]
workbench.seed(0)
network = zero_last_gamma(digit_network(32, ZeroPad)).to(device)
zeroed = train(network, train_part)
runs = {"scale 1": losses["residual-32", 0], "scale 0": zeroed}
rows = [(name, *(f"{value:.3f}" for value in run)) for name, run in runs.items()]
table(rows, ("last batch norm", *(f"epoch {e}" for e in range(1, EPOCHS + 1))))

# %% tags=["solution-3"]
workbench.seed(0)
faster = digit_network(32, NoShortcut).to(device)
loss = train(faster, train_part, rate=0.2)[-1]
rows = [
    (rate, f"{last:.3f}", f"{workbench.evaluate(network, validation):.1%}")
    for rate, last, network in (
        (0.1, losses["plain-32", 0][-1], networks["plain-32", 0]),
        (0.2, loss, faster),
    )
]
table(rows, ("rate of plain-32", "training loss", "validation accuracy"))


# %% tags=["solution-4"]
def without(network: nn.Module, stage: int, index: int) -> nn.Module:
    """The network with one block left out; not the first of a stage, which changes the shape."""
    parts = OrderedDict(network.named_children())
    kept = [block for i, block in enumerate(parts[f"stage{stage}"]) if i != index]
    return nn.Sequential(parts | {f"stage{stage}": nn.Sequential(*kept)})


rows = []
for name in ("plain-14", "residual-14", "residual-32"):
    whole, n = networks[name, 0], (kinds[name][0] - 2) // 6
    choices = [(s, i) for s in (1, 2, 3) for i in range(1, n)]
    scores = [workbench.evaluate(without(whole, s, i), test) for s, i in choices]
    rows.append((name, f"{workbench.evaluate(whole, test):.1%}", spread(scores, ".1%")))
table(rows, ("network", "whole", "one block left out"))
