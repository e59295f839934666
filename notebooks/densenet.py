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
# # DenseNet
#
# Layers that append to what they have read: how evenly gradients reach them, the
# published sizes, a small network beside residual ones, and what a trained one reads.
# The text to it is the [chapter](../chapters/densenet.rst), the paper is
# [Huang et al. 2016](https://arxiv.org/abs/1608.06993).

# %%
import math

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import PROFILE, claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, drawing, images, plots, training

# %% [markdown]
# ## To add and to join
#
# A layer is batch norm, ReLU and convolution, in this order. A residual row adds what a
# layer computes to what it has read, a dense block appends it.


# %% tags=["norm-conv"]
def norm_conv(c_in: int, c_out: int, size: int) -> nn.Sequential:
    """Batch norm, ReLU, convolution, in this order (Huang et al. 2016, section 3)."""
    conv = nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU(), conv)


# %% tags=["residual-row"]
class ResidualRow(nn.Sequential):
    """Layers that add: x = x + layer(x), equation 1."""

    def forward(self, x: Tensor) -> Tensor:
        # (B, C, H, W) -> (B, C, H, W)
        for layer in self:
            x = x + layer(x)
        return x


# %% tags=["block"]
class DenseBlock(nn.Sequential):
    """Layers that append: each reads the input and the output of all before it.

    Huang et al. 2016, equation 2. (B, c_in, H, W) -> (B, c_in + depth * growth, H, W).
    """

    def __init__(self, c_in: int, growth: int, *, depth: int, layer):
        super().__init__()
        for number in range(depth):
            self.append(layer(c_in + number * growth, growth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = torch.cat((x, layer(x)), dim=1)
        return x


# %% tags=["basic-layer"]
def basic_layer(c_in: int, growth: int) -> nn.Sequential:
    """The layer without a bottleneck: one 3x3 convolution of all that it reads."""
    return norm_conv(c_in, growth, 3)


# %% tags=["block-shape"]
block = DenseBlock(64, 32, depth=6, layer=basic_layer)
block(torch.randn(2, 64, 56, 56)).shape


# %% tags=["drawing"]
def draw_row(axes, left: float, title: str, meetings: tuple[str, str]) -> None:
    """Draw two layers from top to bottom, and the paths that go round them."""
    x = left + 0.9
    nodes = {
        "title": diagrams.Node(x, 0.15, title, weight="bold"),
        "x": diagrams.Node(x, 0.5, "$x_0$"),
        "first": diagrams.Node(x, 1.05, "$H_1$", width=1.0),
        "once": diagrams.Node(x, 1.6, meetings[0]),
        "second": diagrams.Node(x, 2.2, "$H_2$", width=1.0),
        "twice": diagrams.Node(x, 2.75, meetings[1]),
    }
    names = list(nodes)[1:]
    right = left + 2.05
    around = [
        ((x, 0.72), (right, 0.72), (right, 1.6), "once"),
        ((x, 1.85), (right, 1.85), (right, 2.75), "twice"),
    ]
    diagrams.draw(axes, nodes, list(zip(names, names[1:])), around)


# %% tags=["joins-figure"] alt="Two columns from top to bottom. Residual: x0, a box H1, a plus sign, a box H2, a plus sign; an arrow leaves above each box, runs past it and meets the plus sign below it. Dense: the same boxes and arrows; in place of the plus signs stand the lists x0, x1 and x0, x1, x2."
axes = diagrams.sheet(3.0)
draw_row(axes, 0.1, "residual", ("+", "+"))
draw_row(axes, 2.5, "dense", ("$[x_0, x_1]$", "$[x_0, x_1, x_2]$"))

# %% [markdown]
# ## How evenly gradients reach the layers
#
# Forty layers in three ways, on patches of ten photographs: which photograph is a patch
# cut from? The gradient of the loss is taken at the initial weights, nothing is trained.

# %% tags=["data"]
IMAGES = 900 if PROFILE == "sample" else 20_000
data = images.patches(size=16)
train_part, validation, test = images.standardised(data, first=IMAGES)
record("images", len(train_part[1]))
parts = {"train": train_part, "validation": validation, "test": test}
table(
    [(name, *x.shape) for name, (x, _) in parts.items()], ("part", "N", "C", "H", "W")
)


# %% tags=["network"]
def he_init(network: nn.Module) -> None:
    """Normal weights of variance 2 / fan-in, as in torchvision; the last bias zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    nn.init.zeros_(network.classifier.bias)


class Network(nn.Module):
    """Stem, body, norm, mean over the map, linear layer: (B, 3, H, W) -> (B, K)."""

    def __init__(self, stem, body, *, c_out: int, num_classes: int):
        super().__init__()
        self.stem = stem
        self.body = body
        self.norm = nn.BatchNorm2d(c_out)
        self.classifier = nn.Linear(c_out, num_classes)
        he_init(self)

    def head(self, x: Tensor) -> Tensor:
        # (B, c_out, h, w) -> (B, K)
        x = torch.relu(self.norm(x))
        return self.classifier(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))


# %% tags=["towers"]
def patch_stem(c_out: int) -> nn.Conv2d:
    """One 3x3 convolution that halves the side, which saves time."""
    return nn.Conv2d(3, c_out, 3, stride=2, padding=1, bias=False)


def plain_tower(depth: int) -> Network:
    """Layers of 12 channels, each reads the output of the last."""
    row = nn.Sequential(*(norm_conv(12, 12, 3) for _ in range(depth)))
    return Network(patch_stem(12), row, c_out=12, num_classes=10)


def residual_tower(depth: int) -> Network:
    """Layers of 12 channels, each adds its output."""
    row = ResidualRow(*(norm_conv(12, 12, 3) for _ in range(depth)))
    return Network(patch_stem(12), row, c_out=12, num_classes=10)


def dense_tower(depth: int) -> Network:
    """Layers that append 6 channels each."""
    row = DenseBlock(12, 6, depth=depth, layer=basic_layer)
    return Network(patch_stem(12), row, c_out=12 + 6 * depth, num_classes=10)


# %% tags=["gradients"]
def kernel_gradients(network: Network, x: Tensor, y: Tensor) -> list[float]:
    """Gradient norm by weight norm at the kernel of each layer, input to output."""
    F.cross_entropy(network(x), y).backward()
    kernels = [layer[2].weight for layer in network.body]  # norm, ReLU, convolution
    return [(kernel.grad.norm() / kernel.norm()).item() for kernel in kernels]


# %% tags=["headline"]
SEEDS = (0, 1, 2)
DEPTHS = (10, 20, 40)
TOWERS = {"plain": plain_tower, "residual": residual_tower, "dense": dense_tower}
CASES = [(kind, depth) for kind in TOWERS for depth in DEPTHS]
x = train_part[0][:100].to(device)
y = train_part[1][:100].to(device)
norms = {}
for kind, depth in CASES:
    for number in SEEDS:
        seed(number)
        network = TOWERS[kind](depth).to(device)
        norms[kind, depth, number] = kernel_gradients(network, x, y)

# %% tags=["gradients-figure"] alt="Gradient norm divided by weight norm at the kernels of 40 layers on a logarithmic axis, from the input at the left to the output at the right, mean of three seeds in a band. The plain line falls by more than two powers of ten from left to right. The residual line falls by less than one power of ten. The dense line stays within a factor of three."
_, axes = plt.subplots()
layers = range(1, 41)
ends = {}
for kind, colour in zip(TOWERS, plots.COLOURS):
    runs = torch.tensor([norms[kind, 40, number] for number in SEEDS])
    ends[kind] = plots.seed_band(axes, layers, runs, colour)
axes.set(xlabel="layer", ylabel="gradient norm / weight norm", yscale="log")
axes.set(xticks=(1, 10, 20, 30, 40))
plots.label_ends(axes, ends)

# %% tags=["gradients-result"]
ratios = {}
for case, values in norms.items():
    ratios[case] = max(values) / min(values)
rows = []
for depth in DEPTHS:
    row = [depth]
    for kind in TOWERS:
        found = [ratios[kind, depth, number] for number in SEEDS]
        record_spread(f"{kind}{depth}.ratio", found)
        row.append(spread(found, ".1f"))
    rows.append(row)
table(rows, ("layers", *TOWERS))

# %% tags=["gradients-claims"]
least = {case: min(ratios[(*case, n)] for n in SEEDS) for case in CASES}
most = {case: max(ratios[(*case, n)] for n in SEEDS) for case in CASES}
for shallow, deep in ((10, 20), (20, 40)):
    words = f"plain, {deep} layers: less even than {shallow}, seeds apart"
    claim(least["plain", deep] > most["plain", shallow], words)
for kind in TOWERS:
    claim(most[kind, 10] < 5, f"10 {kind} layers differ by less than five")
claim(least["plain", 40] > 100, "40 plain layers differ by more than a hundred")
claim(most["residual", 40] < 20, "40 residual layers differ by less than twenty")
claim(most["dense", 40] < 5, "40 dense layers differ by less than five")
words = "at 40 layers dense kernels differ less than residual ones, seeds apart"
claim(most["dense", 40] < least["residual", 40], words)

# %% tags=["gradients-lines"]
lines = {}
steps = []
for kind in TOWERS:
    lines[kind] = torch.tensor([norms[kind, 40, n] for n in SEEDS]).mean(0)
for number in SEEDS:
    values = norms["plain", 40, number]
    claim(values[0] == max(values), "plain gradients are largest at the first layer")
    steps.append((values[0] / values[-1]) ** (1 / 39))
record_spread("plain.step", steps)
claim(lines["plain"][0] > 100 * lines["plain"][-1], "the plain line falls that far")
claim(lines["residual"].max() < 10 * lines["residual"].min(), "the residual line less")
claim(lines["dense"].max() < 3 * lines["dense"].min(), "the dense line stays level")

# %% [markdown]
# ## What each layer reads
#
# Each layer of a block reads more than the one before. The bottleneck narrows what is
# read to 4k channels by a 1x1 convolution.


# %% tags=["layer"]
class DenseLayer(nn.Module):
    """Narrow what is read to 4k channels by a 1x1, make k new ones by a 3x3.

    The layer of DenseNet-B (section 3, bottleneck layers).
    """

    def __init__(self, c_in: int, growth: int):
        super().__init__()
        self.narrow = norm_conv(c_in, 4 * growth, 1)
        self.grow = norm_conv(4 * growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, growth, H, W)
        return self.grow(self.narrow(x))


# %% tags=["bottleneck-count"]
rows = []
for c_in in (64, 224, 992):
    basic = counting.parameters(basic_layer(c_in, 32))
    narrowed = counting.parameters(DenseLayer(c_in, 32))
    claim((narrowed < basic) == (c_in > 7.3 * 32), "the bottleneck pays above 7.2 k")
    record(f"basic.{c_in}", basic)
    record(f"narrowed.{c_in}", narrowed)
    rows.append((c_in, basic, narrowed))
table(rows, ("channels read", "3×3", "1×1 and 3×3"))


# %% tags=["transition"]
def transition(c_in: int, c_out: int) -> nn.Sequential:
    """Change the channels by a 1x1 convolution, then halve the side (section 3)."""
    return nn.Sequential(norm_conv(c_in, c_out, 1), nn.AvgPool2d(2))


# %% tags=["transition-shape"]
transition(256, 128)(torch.randn(2, 256, 56, 56)).shape

# %% [markdown]
# ## The network


# %% tags=["densenet"]
class DenseNet(Network):
    """Dense blocks with transitions between them (table 1)."""

    def __init__(
        self,
        growth: int,
        depths,
        *,
        stem,
        c_stem: int,
        layer=DenseLayer,
        compression: float = 0.5,
        num_classes: int = 1000,
    ):
        body = nn.Sequential()
        c = c_stem
        for number, depth in enumerate(depths, start=1):
            block = DenseBlock(c, growth, depth=depth, layer=layer)
            body.add_module(f"block{number}", block)
            c = c + depth * growth
            if number < len(depths):
                c_next = int(compression * c)
                body.add_module(f"transition{number}", transition(c, c_next))
                c = c_next
        super().__init__(stem(c_stem), body, c_out=c, num_classes=num_classes)


# %% tags=["sizes"]
def imagenet_stem(c_out: int) -> nn.Sequential:
    """7x7 convolution and maximum: a quarter of the side (table 1)."""
    conv = nn.Conv2d(3, c_out, 7, stride=2, padding=3, bias=False)
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU(), pool)


def densenet121(**how) -> DenseNet:
    return DenseNet(32, (6, 12, 24, 16), stem=imagenet_stem, c_stem=64, **how)


def densenet161() -> DenseNet:
    return DenseNet(48, (6, 12, 36, 24), stem=imagenet_stem, c_stem=96)


def densenet169() -> DenseNet:
    return DenseNet(32, (6, 12, 32, 32), stem=imagenet_stem, c_stem=64)


def densenet201() -> DenseNet:
    return DenseNet(32, (6, 12, 48, 32), stem=imagenet_stem, c_stem=64)


# %% tags=["cifar-sizes"]
def cifar_stem(c_out: int) -> nn.Conv2d:
    """One 3x3 convolution at full size (section 3, implementation details)."""
    return nn.Conv2d(3, c_out, 3, padding=1, bias=False)


def cifar_densenet(growth: int, depth: int) -> DenseNet:
    """Without B and C: three blocks of (depth - 4) / 3 layers."""
    n, rest = divmod(depth - 4, 3)
    assert rest == 0, "depth must be 3n + 4"
    return DenseNet(
        growth,
        (n, n, n),
        stem=cifar_stem,
        c_stem=16,
        layer=basic_layer,
        compression=1,
        num_classes=10,
    )


def cifar_densenet_bc(growth: int, depth: int) -> DenseNet:
    """With B and C: two convolutions a layer, so half as many layers; a stem of 2k."""
    n, rest = divmod(depth - 4, 6)
    assert rest == 0, "depth must be 6n + 4"
    c = 2 * growth
    return DenseNet(growth, (n, n, n), stem=cifar_stem, c_stem=c, num_classes=10)


# %% tags=["reads"]
def draw_reads(block: DenseBlock) -> None:
    """A row per layer: what it reads, coloured by who made it; last the output."""
    k = block[0].grow[2].out_channels
    widths = [layer.narrow[2].in_channels for layer in block]
    widths.append(widths[0] + k * len(block))
    colours = (plots.QUIET, *plots.COLOURS)
    _, axes = plt.subplots(figsize=(5, 3.3))
    for row, c in enumerate(widths):
        last = row == len(block)
        axes.barh(-row, widths[0], 0.66, color=colours[0])
        for source in range(row):
            start = widths[0] + k * source
            axes.barh(-row, k, 0.66, start, color=colours[source + 1])
        name = "output" if last else f"$H_{row + 1}$"
        axes.text(-8, -row, name, ha="right", va="center")
        axes.text(c + 8, -row, str(c), va="center", color=plots.QUIET, fontsize=11)
    centres = [widths[0] / 2] + [c + k / 2 for c in widths[:-1]]
    for source, centre in enumerate(centres):
        style = {"color": colours[source], "ha": "center"}
        axes.text(centre, -len(block) - 0.8, f"$x_{source}$", **style)
    axes.set(xlim=(-60, 300), ylim=(-len(block) - 1.1, 0.6))
    axes.axis("off")


# %% tags=["reads-figure"] alt="Seven horizontal bars, one below the other. The first, of layer H1, is one grey piece of 64 channels, x0. Each following bar has the pieces of the one above and one more of 32 channels in a new colour, until the bar of the output has seven pieces, 256 channels. Beside each bar stands the number of its channels."
with torch.device("meta"):
    network = densenet121()
draw_reads(network.body.block1)

# %% tags=["parts-figure"] alt="Two columns from top to bottom. Dense layer: c channels, a box 1x1 with 4k channels, a box 3x3 with k channels, a list of c + k channels; an arrow leaves above the boxes, runs past them and meets the list. Transition: c channels, a box 1x1 with theta c channels, a box mean of 2x2, and theta c channels of half the side."
axes = diagrams.sheet(2.9)
nodes = {
    "title": diagrams.Node(1.1, 0.15, "dense layer", weight="bold"),
    "c": diagrams.Node(1.1, 0.5, "$c$"),
    "narrow": diagrams.Node(1.1, 1.15, "1×1, $4k$", width=1.3),
    "grow": diagrams.Node(1.1, 1.85, "3×3, $k$", width=1.3),
    "joined": diagrams.Node(1.1, 2.55, "[$c$, $k$]"),
    "title2": diagrams.Node(3.6, 0.15, "transition", weight="bold"),
    "c2": diagrams.Node(3.6, 0.5, "$c$"),
    "compress": diagrams.Node(3.6, 1.15, "1×1, $θ\\, c$", width=1.3),
    "pool": diagrams.Node(3.6, 1.85, "mean of 2×2", width=1.3),
    "half": diagrams.Node(3.6, 2.55, "$θ\\, c$, half the side"),
}
chains = [("c", "narrow"), ("narrow", "grow"), ("grow", "joined")]
chains += [("c2", "compress"), ("compress", "pool"), ("pool", "half")]
around = [((1.1, 0.75), (2.1, 0.75), (2.1, 2.55), "joined")]
diagrams.draw(axes, nodes, chains, around)

# %% tags=["drawn"] alt="DenseNet-121 from top to bottom with output shapes and parameters: the stem, then four dense blocks, each with a loop and the number of its layers, 6, 12, 24 and 16; after each of the first three a transition that halves channels and side; then the linear layer to 1000."
with torch.device("meta"):
    drawing.draw(densenet121(), torch.empty(1, 3, 224, 224))

# %% [markdown]
# ## Counted
#
# On torch's meta device a tensor has a shape and no values: a network can be counted
# without computing anything.

# %% tags=["count"]
SIZES = (densenet121, densenet161, densenet169, densenet201)
rows = []
built = {}
for build in SIZES:
    with torch.device("meta"):
        network = build()
        x = torch.empty(1, 3, 224, 224)
    name = build.__name__
    parameters = counting.parameters(network)
    macs = counting.macs(network, x)
    built[name] = network
    stated = torchvision.models.get_model_weights(name).DEFAULT.meta
    claim(parameters == stated["num_params"], f"{name} has torchvision's parameters")
    claim(round(macs / 1e9, 3) == stated["_ops"], f"{name} has torchvision's G MACs")
    record(f"{name}.parameters", parameters)
    record(f"{name}.macs", macs)
    rows.append((name, parameters, f"{macs / 1e9:.3f}"))
table(rows, ("network", "parameters", "G MACs"))

# %% tags=["table-2"]
TABLE_2 = (  # k, L, millions of parameters
    (cifar_densenet, 12, 40, 1.0),
    (cifar_densenet, 12, 100, 7.0),
    (cifar_densenet, 24, 100, 27.2),
    (cifar_densenet_bc, 12, 100, 0.8),
    (cifar_densenet_bc, 24, 250, 15.3),
    (cifar_densenet_bc, 40, 190, 25.6),
)

# %% tags=["cifar-count"]
rows = []
for build, growth, depth, millions in TABLE_2:
    with torch.device("meta"):
        parameters = counting.parameters(build(growth, depth))
    claim(round(parameters / 1e6, 1) == millions, f"k = {growth}, L = {depth}: table 2")
    kind = "DenseNet-BC" if build is cifar_densenet_bc else "DenseNet"
    rows.append((kind, growth, depth, parameters, f"{millions} M"))
table(rows, ("network", "k", "L", "parameters", "table 2"))

# %% [markdown]
# ## Equal to torchvision
#
# A fresh batch norm has mean 0, variance 1, scale 1 and shift 0, which hides mistakes.
# We give the references random ones before their weights are copied into ours.

# %% tags=["equal"]
rows = []
deviations = []
for build in SIZES:
    seed(0)
    reference = checks.randomise_norms(getattr(torchvision.models, build.__name__)())
    network = build()
    checks.transplant(reference, network)
    x = torch.randn(2, 3, 40, 40)
    deviations.append(checks.same_outputs(network, reference, x))
    rows.append((build.__name__, "torchvision", f"{deviations[-1]:.1e}"))
record("deviation", max(deviations))
table(rows, ("network", "reference", "largest difference"))

# %% [markdown]
# ## What is kept for the backward pass
#
# Batch norm keeps its input and the convolution the output of the ReLU, both with all
# channels that a layer reads.


# %% tags=["kept"]
def kept(network: nn.Module, x: Tensor) -> int:
    """Bytes kept for the backward pass, without parameters and buffers."""
    storages = set()

    def note(t: Tensor) -> Tensor:
        storages.add(t.untyped_storage())
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        network(x)
    known = [*network.parameters(), *network.buffers()]
    storages -= {t.untyped_storage() for t in known}
    return sum(storage.nbytes() for storage in storages)


# %% tags=["network-memory"]
MODELS = torchvision.models
with torch.device("meta"):
    batch = torch.empty(32, 3, 224, 224)
    held = {
        "DenseNet-121": kept(densenet121(), batch),
        "checkpointed": kept(MODELS.densenet121(memory_efficient=True), batch),
        "ResNet-50": kept(MODELS.resnet50(), batch),
    }
for name, value in held.items():
    record(f"{name}.kept", value / 2**30)
claim(
    held["DenseNet-121"] > held["ResNet-50"], "DenseNet-121 keeps more than ResNet-50"
)
claim(held["checkpointed"] < held["ResNet-50"], "checkpointed it keeps less")

# %% [markdown]
# ## Beside residual networks
#
# The same kinds of stem, transitions and head around two kinds of body: dense blocks,
# and rows that add. One residual network has about the parameters of the DenseNet, one its MACs.


# %% tags=["small-densenet"]
def small_densenet() -> DenseNet:
    """DenseNet-BC for patches: 27 convolutions and the linear layer."""
    return DenseNet(8, (4, 4, 4), stem=patch_stem, c_stem=16, num_classes=10)


# %% tags=["small-resnet"]
def residual_row(c: int) -> ResidualRow:
    """Two blocks of two 3x3 convolutions, pre-activation (He et al. 2016)."""
    first = nn.Sequential(norm_conv(c, c, 3), norm_conv(c, c, 3))
    second = nn.Sequential(norm_conv(c, c, 3), norm_conv(c, c, 3))
    return ResidualRow(first, second)


def small_resnet(width: int) -> Network:
    """Rows that add, of one, two and four times the width."""
    body = nn.Sequential(
        residual_row(width),
        transition(width, 2 * width),
        residual_row(2 * width),
        transition(2 * width, 4 * width),
        residual_row(4 * width),
    )
    return Network(patch_stem(width), body, c_out=4 * width, num_classes=10)


def slim_resnet() -> Network:
    """About the parameters of the small DenseNet."""
    return small_resnet(8)


def wide_resnet() -> Network:
    """About the multiply-accumulates of the small DenseNet."""
    return small_resnet(13)


# %% tags=["train"]
EPOCHS = 3
BATCH = 50


def train(network: nn.Module, part) -> float:
    """SGD; the rate rises for a fifth of the steps, then falls. Loss, last epoch."""
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    steps = EPOCHS * math.ceil(len(part[1]) / BATCH)
    schedule = training.one_cycle(optimizer, steps)
    history = training.fit(
        network, part, EPOCHS, optimizer, batch=BATCH, schedule=schedule
    )
    return history["loss"][-1]


# %% tags=["small-budget"]
BUILDERS = {"dense": small_densenet, "slim": slim_resnet, "wide": wide_resnet}
NAMES = {
    "dense": "DenseNet-BC, k = 8",
    "slim": "residual, width 8",
    "wide": "residual, width 13",
}
rows = []
parameters = {}
macs = {}
memory = {}
for key, build in BUILDERS.items():
    with torch.device("meta"):
        network = build()
        x = torch.empty(50, 3, 16, 16)
    parameters[key] = counting.parameters(network)
    macs[key] = counting.macs(network, x[:1])
    memory[key] = kept(network, x) / 2**20
    record(f"{key}.kept", memory[key])
    convolutions = sum(isinstance(part, nn.Conv2d) for part in network.modules())
    counts = (parameters[key], f"{macs[key] / 1e6:.2f}", f"{memory[key]:.1f}")
    rows.append((NAMES[key], convolutions, *counts))
table(rows, ("network", "convolutions", "parameters", "M MACs", "MiB kept"))

# %% tags=["small-budget-claims"]
words = "the slim residual network has at least the parameters, at most a tenth more"
claim(1 <= parameters["slim"] / parameters["dense"] < 1.1, words)
words = "the wide one has at least the MACs, at most a twentieth more"
claim(1 <= macs["wide"] / macs["dense"] < 1.05, words)
claim(memory["dense"] > 2 * memory["wide"], "the DenseNet keeps most by far")
record("macs.ratio", macs["dense"] / macs["slim"])
record("parameters.ratio", parameters["wide"] / parameters["dense"])

# %% tags=["runs"]
networks = {}
losses = {}
scores = {}
for key, build in BUILDERS.items():
    for number in SEEDS:
        seed(number)
        network = build().to(device)
        losses[key, number] = train(network, train_part)
        scores[key, number] = training.evaluate(network, test)
        networks[key, number] = network

# %% tags=["result"]
rows = []
loss = {}
score = {}
for key, name in NAMES.items():
    loss[key] = [losses[key, number] for number in SEEDS]
    score[key] = [scores[key, number] for number in SEEDS]
    record_spread(f"{key}.loss", loss[key])
    record_spread(f"{key}.test", score[key])
    rows.append((name, spread(loss[key], ".2f"), spread(score[key], ".1%")))
record("steps", EPOCHS * math.ceil(IMAGES / BATCH))
record("epochs", EPOCHS)
record("held.out", len(test[1]))
table(rows, ("network", "loss, last epoch", "held-out accuracy"))

# %% tags=["result-claims"]
words = "at equal parameters DenseNet-BC ends at the lower training loss, seeds apart"
claim(max(loss["dense"]) < min(loss["slim"]), words)
gap = min(loss["wide"]) - max(loss["dense"])
claim(abs(gap) < 0.15, "at equal MACs the ranges of the losses are close or touch")
for key in ("slim", "wide"):
    words = f"held-out accuracy, {key}: less than 15 points between the ranges"
    claim(min(score["dense"]) - max(score[key]) < 0.15, words)

# %% [markdown]
# ## Look inside
#
# What a trained network reads: a connection is cut by giving the reader the mean of the
# channels, over all patches and pixels, in place of the channels.


# %% tags=["cut"]
def joined(made: list[Tensor], reader: int, cut) -> Tensor:
    """What a reader gets; of a source whose connection is cut only the means."""
    read = []
    for source, x in enumerate(made):
        if (source, reader) in cut:
            x = x.mean((0, 2, 3), keepdim=True).expand_as(x)
        read.append(x)
    return torch.cat(read, dim=1)


def block_without(block: DenseBlock, x: Tensor, cut) -> Tensor:
    """Run a block without some connections, pairs of a source and a reader.

    Source 0 is the block's input; the last reader is what follows the block.
    """
    made = [x]
    for reader, layer in enumerate(block, start=1):
        made.append(layer(joined(made, reader, cut)))
    return joined(made, len(block) + 1, cut)


# %% tags=["loss-without"]
@torch.no_grad()
def loss_without(network: DenseNet, cuts: dict, x: Tensor, y: Tensor) -> float:
    """Loss without some connections; cuts: their pairs by the name of a block."""
    network.eval()
    x = network.stem(x)
    for name, part in network.body.named_children():
        x = block_without(part, x, cuts[name]) if name in cuts else part(x)
    return F.cross_entropy(network.head(x), y).item()


# %% tags=["one-by-one"]
BLOCKS = ("block1", "block2", "block3")
PAIRS = [(source, reader) for reader in range(1, 6) for source in range(reader)]
x = test[0][:200].to(device)
y = test[1][:200].to(device)
whole = {}
rise = {}
for number in SEEDS:
    network = networks["dense", number]
    whole[number] = loss_without(network, {}, x, y)
    for name in BLOCKS:
        for pair in PAIRS:
            found = loss_without(network, {name: [pair]}, x, y)
            rise[name, pair, number] = found - whole[number]


# %% tags=["draw-use"]
def draw_use(shown: dict) -> None:
    """A square for each connection, sources down, readers across."""
    _, grid = plt.subplots(1, 3, figsize=(5, 2.3), sharey=True)
    for name, axes in zip(BLOCKS, grid):
        for source, reader in PAIRS:
            shade = min(max(shown[name, (source, reader)], 0.02), 1)
            place = (reader - 0.5, source - 0.5)
            colour = (plots.COLOURS[0], shade)
            axes.add_patch(plt.Rectangle(place, 1, 1, facecolor=colour))
        after = "fc" if name == "block3" else "tr"
        axes.set(xlim=(0.5, 5.5), ylim=(4.5, -0.5), aspect="equal")
        axes.set_title(f"block {name[-1]}")
        axes.set_xticks(range(1, 6), [*"1234", after])
        axes.set_yticks(range(5), ["input", *"1234"])
        axes.tick_params(length=0)
    grid[1].set_xlabel("read by layer")
    grid[0].set_ylabel("made by layer")


# %% tags=["use-figure"] alt="Three triangles of blue squares, one for each block, who made the channels down, who reads them across. The strong colours stand in the top row, the input of the block: in all three blocks at its last square, which the transition or the classifier reads, and in block 1 at its first, which layer 1 reads. In block 1 the square that layer 2 reads is strong too. All squares below the top row are faint."
average = {}
for name in BLOCKS:
    for pair in PAIRS:
        found = [rise[name, pair, number] for number in SEEDS]
        average[name, pair] = sum(found) / len(found)
draw_use(average)

# %% tags=["old"]
OLD = [(source, reader) for source, reader in PAIRS if 0 < source < reader - 1]
INPUT = (0, 5)  # from the block's input to what follows the block
OF_LAYERS = [(source, reader) for source, reader in OLD if reader < 5]
AFTER = [(source, reader) for source, reader in OLD if reader == 5]
largest = []
inputs = []
for number in SEEDS:
    found = [rise[name, pair, number] for name in BLOCKS for pair in OLD]
    largest.append(max(found))
    inputs.append(min(rise[name, INPUT, number] for name in BLOCKS))

# %% tags=["old-together"]
together = {"all": OLD, "layers": OF_LAYERS, "after": AFTER}
for key, pairs in together.items():
    together[key] = []
    for number in SEEDS:
        cuts = dict.fromkeys(BLOCKS, pairs)
        without = loss_without(networks["dense", number], cuts, x, y)
        together[key].append(without - whole[number])

# %% tags=["old-result"]
record_spread("whole", whole.values())
record_spread("largest", largest)
for key, found in together.items():
    record_spread(f"together.{key}", found)
record_spread("inputs", inputs)
record("old.count", len(BLOCKS) * len(OLD))
record("old.after.count", len(BLOCKS) * len(AFTER))
words = "a block's input cut from transition or classifier (smallest of three)"
rows = [
    ("one old connection (largest)", spread(largest, ".2f")),
    ("all old connections", spread(together["all"], ".2f")),
    ("all old connections to layers", spread(together["layers"], ".2f")),
    ("all old ones to transition or classifier", spread(together["after"], ".2f")),
    (words, spread(inputs, ".2f")),
]
table(rows, ("what is cut", "rise of the loss"))

# %% tags=["use-claims"]
words = "all old connections cost more than twice as much as any single one"
claim(min(together["all"]) > 2 * max(largest), words)
words = "those to transitions and classifier cost more than those to layers"
claim(min(together["after"]) > max(together["layers"]), words)
layers = [average[case] for case in average if case[1][0] > 0]
claim(max(layers) < 0.3, "outside the top row the colours are faint")
strong = [average[name, INPUT] for name in BLOCKS]
strong += [average["block1", (0, reader)] for reader in (1, 2)]
claim(min(strong) > 0.25, "what follows a block misses its input, so do layers 1, 2")
old = [average[name, pair] for name in BLOCKS for pair in OLD]
claim(min(strong) > max(old), "on average more than it misses any old connection")

# %% [markdown]
# ## What we saw
#
# - With 40 plain layers the gradients of the kernels differ by a factor of hundreds;
#   with sums or joined channels they differ by far less.
# - At equal parameters the small DenseNet fits better than a residual network. It computes
#   more and keeps more; beside one of equal MACs the losses are close.
# - Without any one old connection the loss of a trained DenseNet rises little, without
#   all of them it rises a lot, above all by those that transitions and classifier read.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
rows = []
for name, network in built.items():
    depths = [len(part) for part in network.body if isinstance(part, DenseBlock)]
    by_hand = 1 + 2 * sum(depths) + 3 + 1  # stem, layers, transitions, linear layer
    claim(name == f"densenet{by_hand}", f"{name} has the layers of its name")
    rows.append((name, str(depths), by_hand))
table(rows, ("network", "layers of its blocks", "by hand"))

# %% tags=["solution-2"]
moved = {}
for efficient in (False, True):
    seed(0)
    network = torchvision.models.DenseNet(8, (4, 4), 16, memory_efficient=efficient)
    network(torch.randn(4, 3, 64, 64)).sum().backward()
    norm = network.features.denseblock1.denselayer4.norm1
    moved[efficient] = norm.running_mean.norm().item()
ratio = moved[True] / moved[False]
claim(
    abs(ratio - 1.9) < 1e-3, "checkpointed, a mean moves by 1 - 0.9 * 0.9, not by 0.1"
)
table([(f"{ratio:.2f}",)], ("way of a running mean, checkpointed by plain",))

# %% tags=["solution-3"]
FORMS = {
    "DenseNet-BC": {},
    "without compression": {"compression": 1},
    "without bottleneck": {"layer": basic_layer},
    "without both": {"layer": basic_layer, "compression": 1},
}
rows = []
for name, how in FORMS.items():
    with torch.device("meta"):
        network = densenet121(**how)
        x = torch.empty(1, 3, 224, 224)
    millions = counting.parameters(network) / 1e6
    record(f"{name.replace(' ', '.')}.millions", millions)
    rows.append((name, f"{millions:.1f}", f"{counting.macs(network, x) / 1e9:.2f}"))
table(rows, ("form of DenseNet-121", "M parameters", "G MACs"))

# %% tags=["solution-4"]
x = test[0][:200].to(device)
y = test[1][:200].to(device)
rows = []
by_age = {}
for age in (1, 2, 3):
    older = [(source, reader) for source, reader in OLD if reader - source > age]
    by_age[age] = []
    for number in SEEDS:
        cuts = dict.fromkeys(BLOCKS, older)
        without = loss_without(networks["dense", number], cuts, x, y)
        by_age[age].append(without - whole[number])
    record_spread(f"older{age}", by_age[age])
    record(f"older{age}.count", len(BLOCKS) * len(older))
    rows.append((age, len(BLOCKS) * len(older), spread(by_age[age], ".2f")))
table(rows, ("oldest that stays", "connections cut", "rise of the loss"))

# %% tags=["solution-4-claims"]
for every, oldest in zip(by_age[1], by_age[3]):
    claim(every > oldest, "in each network the oldest cost less than all that are old")
for older, oldest in zip(by_age[2], by_age[3]):
    claim(older > oldest, "in each network those over three places cost something")
