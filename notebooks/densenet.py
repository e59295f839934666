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
# Networks that concatenate where ResNet adds: the published sizes, counted and compared with torchvision; what they
# keep in memory, with and without checkpointing; then a small one beside a residual network of the same cost, and
# which earlier layers its weights read.
# The text to it is the [chapter](../chapters/densenet.rst), the paper is
# [Huang et al. 2017](https://arxiv.org/abs/1608.06993).

# %%
import math
from collections import OrderedDict
from weakref import WeakSet

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock

from workbench import (
    PROFILE,
    claim,
    device,
    finite,
    record,
    record_spread,
    seed,
    spread,
    table,
)
from workbench import checks, counting, drawing, images, plots, training

# %% [markdown]
# ## A layer that reads all earlier ones
#
# Batch norm and ReLU come before the convolution here, because each layer has its own norm for what it reads.


# %% tags=["norm-conv"]
def norm_conv(c_in: int, c_out: int, size: int) -> nn.Sequential:
    """Batch norm, ReLU, convolution, in this order (Huang et al. 2017, section 3)."""
    conv = nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU(), conv)


# %% tags=["layer"]
class DenseLayer(nn.Module):
    """Read all feature maps there are, narrow them to 4k by a 1x1, add k by a 3x3.

    The H of equation 2 with bottleneck, DenseNet-B in section 3 of the paper.
    """

    def __init__(self, c_in: int, growth: int):
        super().__init__()
        self.narrow = norm_conv(c_in, 4 * growth, 1)
        self.grow = norm_conv(4 * growth, growth, 3)

    def read(self, *features: Tensor) -> Tensor:
        return self.narrow(torch.cat(features, dim=1))

    def forward(self, *features: Tensor) -> Tensor:
        # (B, k_0, H, W), (B, k, H, W), ... -> (B, k, H, W)
        return self.grow(self.read(*features))


class BasicLayer(DenseLayer):
    """The H without bottleneck: one 3x3 convolution on all feature maps."""

    def __init__(self, c_in: int, growth: int):
        nn.Module.__init__(self)
        self.narrow = nn.Identity()
        self.grow = norm_conv(c_in, growth, 3)


# %% tags=["block"]
class DenseBlock(nn.Sequential):
    """Layers that each read the block's input and the outputs of all layers before (figure 1)."""

    def __init__(self, layer, c_in: int, growth: int, depth: int):
        super().__init__(*(layer(c_in + i * growth, growth) for i in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_in + depth * growth, H, W)
        features = [x]
        for layer in self:
            features.append(layer(*features))
        return torch.cat(features, dim=1)


# %% tags=["block-shape"]
DenseBlock(DenseLayer, 64, growth=32, depth=6)(torch.randn(2, 64, 56, 56)).shape


# %% tags=["transition"]
def transition(c_in: int, c_out: int) -> nn.Sequential:
    """Change the number of channels by a 1x1 convolution, halve the side by averaging (section 3)."""
    return nn.Sequential(norm_conv(c_in, c_out, 1), nn.AvgPool2d(2))


# %% tags=["stems"]
def imagenet_stem(c_out: int) -> nn.Sequential:
    """7x7 convolution and max pool, a quarter of the side: table 1."""
    conv = nn.Conv2d(3, c_out, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(
        conv, nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)
    )


def cifar_stem(c_out: int) -> nn.Sequential:
    """One 3x3 convolution at full size (section 3, implementation details)."""
    return nn.Sequential(nn.Conv2d(3, c_out, 3, padding=1, bias=False))


# %% tags=["initialise"]
def initialise(network: nn.Sequential) -> nn.Sequential:
    """Kernels normal with variance 2 / fan_in, as in torchvision; the last bias zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    nn.init.zeros_(network[-1].bias)
    return network


# %% tags=["network"]
def densenet(
    growth: int,
    depths,
    c_stem: int,
    stem=imagenet_stem,
    layer=DenseLayer,
    compression: float = 0.5,
    num_classes: int = 1000,
) -> nn.Sequential:
    """Stem, a dense block per depth with transitions between, mean, linear layer.

    (B, 3, H, W) -> (B, num_classes); table 1 of the paper.
    """
    parts, c = OrderedDict(stem=stem(c_stem)), c_stem
    for i, depth in enumerate(depths, start=1):
        parts[f"block{i}"] = DenseBlock(layer, c, growth, depth)
        c += depth * growth
        if i < len(depths):
            parts[f"transition{i}"] = transition(c, int(compression * c))
            c = int(compression * c)
    parts["norm"] = nn.Sequential(nn.BatchNorm2d(c), nn.ReLU())
    parts["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts["fc"] = nn.Linear(c, num_classes)
    return initialise(nn.Sequential(parts))


# %% tags=["sizes"]
def densenet121(layer=DenseLayer) -> nn.Sequential:
    return densenet(32, (6, 12, 24, 16), 64, layer=layer)


def densenet161() -> nn.Sequential:
    return densenet(48, (6, 12, 36, 24), 96)


def densenet169() -> nn.Sequential:
    return densenet(32, (6, 12, 32, 32), 64)


def densenet201() -> nn.Sequential:
    return densenet(32, (6, 12, 48, 32), 64)


# %% tags=["cifar-sizes"]
def cifar_densenet(growth: int, depth: int) -> nn.Sequential:
    """DenseNet without B and C: three blocks of (depth - 4) / 3 layers."""
    n, rest = divmod(depth - 4, 3)
    assert rest == 0, "depth must be 3n + 4"
    return densenet(growth, (n, n, n), 16, cifar_stem, BasicLayer, 1, 10)


def cifar_densenet_bc(growth: int, depth: int) -> nn.Sequential:
    """DenseNet-BC: two convolutions per layer, so half as many layers; a stem of 2k."""
    n, rest = divmod(depth - 4, 6)
    assert rest == 0, "depth must be 6n + 4"
    return densenet(growth, (n, n, n), 2 * growth, cifar_stem, DenseLayer, 0.5, 10)


# %% [markdown]
# ## What each layer reads
#
# The first block of DenseNet-121, taken from the network: each layer reads all there is and adds 32 channels.


# %% tags=["reads"]
def draw_reads(block: DenseBlock, c_next: int) -> None:
    """A row per layer: the channels it reads, coloured by who made them, and what it makes."""
    colours, k = (plots.QUIET, *plots.COLOURS), block[0].grow[2].out_channels
    c_in = [layer.narrow[2].in_channels for layer in block] + [
        block[0].narrow[2].in_channels + k * len(block)
    ]
    _, axes = plt.subplots(figsize=(5, 3.3))
    for row, c in enumerate(c_in):
        edges = [0, c_in[0], *range(c_in[0] + k, c + 1, k)]
        for start, stop, colour in zip(edges, edges[1:], colours):
            axes.barh(-row, stop - start, 0.66, start, color=colour, edgecolor="none")
        last = row == len(block)
        name = "transition" if last else f"$H_{row + 1}$"
        made = f"{c} → {c_next}" if last else f"{c} → {4 * k} → {k}"
        axes.text(-8, -row, name, ha="right", va="center")
        axes.text(c + 8, -row, made, va="center", color=plots.QUIET, fontsize=11)
    for i, (start, stop) in enumerate(zip(edges, edges[1:])):
        axes.text(
            (start + stop) / 2, -row - 0.8, f"$x_{i}$", ha="center", color=colours[i]
        )
    axes.set(xlim=(-80, 350), ylim=(-row - 1.1, 0.6))
    axes.axis("off")


# %% tags=["reads-figure"] alt="Seven horizontal bars, one below the other. The first, of layer H1, is one grey piece of 64 channels, x0. Each following bar has the pieces of the one above and one more of 32 channels in a new colour, until the bar of the transition has seven pieces, 256 channels. Beside each bar of a layer stands what becomes of its channels: 128, then 32; beside the transition 128."
with torch.device("meta"):
    network = densenet121()
draw_reads(network.block1, network.transition1[0][2].out_channels)

# %% [markdown]
# ## The published sizes
#
# Built on the meta device, without memory for their weights.

# %% tags=["drawn"] alt="DenseNet-121 drawn from its own forward pass: the stem, then four dense blocks, each with a loop, and after each of the first three a transition that halves channels and side; then the mean over the map and the linear layer."
with torch.device("meta"):
    drawing.draw(densenet121(), torch.empty(1, 3, 224, 224))

# %% tags=["count"]
rows, cost = [], {}
for build in (densenet121, densenet161, densenet169, densenet201):
    with torch.device("meta"):
        network = build()
        parameters = counting.parameters(network)
        cost[build] = counting.macs(network, torch.empty(1, 3, 224, 224))
    theirs = torchvision.models.get_model_weights(build.__name__).DEFAULT.meta
    found = parameters, round(cost[build] / 1e9, 3)
    expected = theirs["num_params"], theirs["_ops"]
    claim(
        found == expected, f"{build.__name__} has torchvision's parameters and G MACs"
    )
    record(f"{build.__name__}.parameters", parameters)
    record(f"{build.__name__}.macs", cost[build])
    rows.append((build.__name__, parameters, f"{cost[build] / 1e9:.3f}"))
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
    claim(
        round(parameters / 1e6, 1) == millions,
        f"k = {growth}, L = {depth}: as in table 2",
    )
    record(f"{build.__name__}.{growth}.{depth}.parameters", parameters)
    kind = "DenseNet-BC" if build is cifar_densenet_bc else "DenseNet"
    rows.append((kind, growth, depth, parameters, f"{millions} M"))
table(rows, ("network", "k", "L", "parameters", "table 2"))

# %% [markdown]
# ## Equal to torchvision
#
# A fresh batch norm hides mistakes, so the references get random statistics, scales and shifts first.


# %% tags=["equal"]
rows, deviations = [], []
for build in cost:
    seed(0)
    reference = checks.randomise_norms(getattr(torchvision.models, build.__name__)())
    network = build()
    checks.transplant(reference, network)
    deviations.append(
        checks.same_outputs(network, reference, torch.randn(2, 3, 40, 40))
    )
    rows.append((build.__name__, f"{deviations[-1]:.1e}"))
record("deviation", max(deviations))
table(rows, ("network", "largest relative deviation"))

# %% [markdown]
# A block hands on what it was given, and no layer changes what an earlier one has made.

# %% tags=["limit"]
seed(0)
block, x = DenseBlock(DenseLayer, 64, 32, 6).eval(), torch.randn(2, 64, 14, 14)
with torch.no_grad():
    before = block(x)
    block[3].grow[2].weight.normal_()  # another fourth layer
    changed = (block(x) - before).abs().amax((0, 2, 3))
claim(torch.equal(before[:, :64], x), "a block hands on what it was given")
claim((changed[:160] == 0).all(), "another fourth layer changes no map made before it")
claim((changed[160:] > 0).all(), "it changes every map made from there on")
rows = [
    ("input, layers 1 to 3", changed[:160].max().item()),
    ("layers 4 to 6", changed[160:].max().item()),
]
table(
    [(name, f"{value:.2f}") for name, value in rows], ("channels of", "largest change")
)

# %% [markdown]
# ## What has to be kept for the backward pass
#
# A concatenation copies all it joins, batch norm keeps its input and the convolution the output of the ReLU.
# A ledger notes the storages that live during one step of training; it works on the meta device too.


# %% tags=["frugal"]
class FrugalLayer(DenseLayer):
    """Keep the feature maps only; make what is between again for the backward pass.

    The aim of Pleiss et al. 2017, by checkpointing, as torchvision's `memory_efficient` does.
    """

    def forward(self, *features: Tensor) -> Tensor:
        # preserve_rng_state: nothing in `read` is random
        how = {"use_reentrant": False, "preserve_rng_state": False}
        return self.grow(checkpoint(self.read, *features, **how))


# %% tags=["ledger"]
class Ledger(TorchDispatchMode):
    """Know which of the storages that were made inside are still alive."""

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self.alive = WeakSet()
        self.known = WeakSet(t.untyped_storage() for t in known)

    def total(self) -> int:
        return sum(storage.nbytes() for storage in self.alive)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        made = {
            t.untyped_storage() for t in tree_leaves(output) if isinstance(t, Tensor)
        }
        self.alive.update(storage for storage in made if storage not in self.known)
        return output


def memory(network: nn.Module, x: Tensor) -> int:
    """Bytes kept for the backward pass; parameters, buffers and input not counted."""
    ledger = Ledger([*network.parameters(), *network.buffers(), x])
    with ledger:
        loss = network(x).sum()
    return ledger.total() - loss.nbytes


def block_memory(layer, B: int, c_in: int, side: int, growth: int, depth: int) -> int:
    """Bytes that one dense block keeps, measured on the meta device."""
    with torch.device("meta"):
        x = torch.empty(B, c_in, side, side, requires_grad=True)
        return memory(DenseBlock(layer, c_in, growth, depth), x)


def macs_of_step(network: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of a forward and a backward pass."""
    with FlopCounterMode(display=False) as counter:
        network(x).sum().backward()
    return counter.get_total_flops() // 2


# %% tags=["by-hand"]
def kept_by_hand(c_in: int, growth: int, depth: int, frugal: bool) -> tuple[int, int]:
    """Numbers a block keeps for each pixel, and numbers it keeps once (mean and scale of each norm)."""
    widths = [c_in + i * growth for i in range(depth)]
    narrow = 8 * growth * depth  # in front of and behind the second batch norm
    if frugal:
        return narrow + growth * (depth - 1), 8 * growth * depth
    return narrow + sum(2 * c for c in widths), 8 * growth * depth + sum(
        2 * c for c in widths
    )


# %% tags=["block-memory"] alt="Memory that a dense block keeps for the backward pass, in MiB, against its number of layers, 6 to 48. The curve of the plain block bends upwards; that of the checkpointed one is straight and far below it at the right end."
B, side, k, depths = 32, 14, 32, range(6, 49, 6)
_, axes = plt.subplots()
ends = {}
for name, layer in (("plain", DenseLayer), ("checkpointed", FrugalLayer)):
    found = [block_memory(layer, B, 256, side, k, depth) for depth in depths]
    for depth, measured in zip(depths, found):
        pixel, once = kept_by_hand(256, k, depth, layer is FrugalLayer)
        by_hand = 4 * (B * side * side * pixel + once)  # bytes of float32
        claim(
            measured == by_hand,
            f"{name}, {depth} layers: the memory is that counted by hand",
        )
    record(f"block24.{name}", found[depths.index(24)] / 2**20)
    axes.plot(depths, [value / 2**20 for value in found])
    ends[name] = (48, found[-1] / 2**20)
axes.set(xlabel="layers in the block", ylabel="MiB kept for backward", ylim=(0, None))
plots.label_ends(axes, ends)

# %% tags=["plans"]
PLANS = {
    "DenseNet-121": densenet121,
    "DenseNet-121, checkpointed": lambda: densenet121(FrugalLayer),
    "ResNet-50": torchvision.models.resnet50,
}

# %% tags=["network-memory"]
kept, step = {}, {}
for name, build in PLANS.items():
    with torch.device("meta"):
        network, x = build(), torch.empty(32, 3, 224, 224)
        kept[name] = memory(network, x) / 2**30
        step[name] = macs_of_step(network, x) / 32e9
    record(f"{name.replace(', ', '.')}.kept", kept[name])
dense, again, residual = PLANS  # plain, checkpointed, ResNet-50
claim(kept[again] < kept[dense] / 2, "checkpointed, DenseNet keeps less than half")
claim(step[again] == step[dense], "checkpointing repeats no multiply-accumulate")
claim(kept[residual] < kept[dense], "ResNet-50 keeps less than the plain DenseNet")
claim(step[residual] > step[dense], "a step of ResNet-50 has more MACs")
rows = [(name, f"{kept[name]:.2f}", f"{step[name]:.2f}") for name in PLANS]
table(rows, ("network, batch 32", "GiB kept", "G MACs of a step, per image"))

# %% [markdown]
# The gradients do not change. The running statistics of batch norm are not: the norms inside the checkpoint run
# twice in a step, and move twice.


# %% tags=["step"]
def twins(number: int = 0) -> tuple[nn.Sequential, nn.Sequential]:
    """A small network, plain and checkpointed, with the same weights, and nothing trained."""
    networks = []
    for layer in (DenseLayer, FrugalLayer):
        seed(number)
        network = densenet(12, (4, 4, 4), 24, cifar_stem, layer, num_classes=10)
        networks.append(network.to(device))
    return tuple(networks)


def gradients(network: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    network.train()
    network.zero_grad()
    F.cross_entropy(network(x), y).backward()
    return [p.grad for p in network.parameters()]


def furthest(ours, theirs) -> float:
    """The largest difference of two lists of tensors, relative to the largest value of each."""
    pairs = zip(ours, theirs, strict=True)
    return max(checks.deviation(a, b) for a, b in pairs)


# %% tags=["same-gradients"]
plain, frugal = twins()
small, labels = (
    torch.randn(16, 3, 16, 16, device=device),
    torch.arange(16, device=device) % 10,
)
difference = furthest(gradients(frugal, small, labels), gradients(plain, small, labels))
means = [network.block1[3].narrow[0].running_mean for network in (plain, frugal)]
moved = (means[1].norm() / means[0].norm()).item()
claim(difference < 1e-5, "checkpointing leaves the gradients as they are")
moves_twice = abs(moved - 1.9) < 1e-3  # 1 - 0.9 ** 2 against 0.1
claim(moves_twice, "checkpointed, running means move 1.9 times as far in a step")
record("gradients.difference", difference)
record("statistics.moved", moved)
rows = [("gradients, largest relative difference", f"{difference:.1e}")]
table(
    [*rows, ("running means, moved", f"{moved:.2f} times as far")],
    ("checkpointed against plain", "found"),
)

# %% [markdown]
# ## Beside a residual network
#
# A small DenseNet-BC and two residual networks of basic blocks (no pre-activation): one with about its parameters,
# one with about its MACs. Ten photographs give the images: which photograph is a patch cut from? Training patches come from the left
# of each photograph, test patches from the right.

# %% tags=["data"]
IMAGES = 900 if PROFILE == "sample" else 20_000
data = images.patches(size=20)
mean, std = data.train[0].mean(), data.train[0].std()
train_part, validation, test = [((x - mean) / std, y) for x, y in data[:3]]
train_part = train_part[0][:IMAGES], train_part[1][:IMAGES]
record("images", len(train_part[1]))
rows = [(n, *p[0].shape) for n, p in zip(data._fields, (train_part, validation, test))]
table(rows, ("part", "N", "C", "H", "W"))


# %% tags=["small-networks"]
def small_stem(c_out: int) -> nn.Sequential:
    """One 3x3 convolution; its stride of 2 halves the side and quarters the cost of all that follows."""
    return nn.Sequential(nn.Conv2d(3, c_out, 3, 2, padding=1, bias=False))


def small_densenet() -> nn.Sequential:
    """DenseNet-BC of 40 layers with k = 6 for patches: (B, 3, H, W) -> (B, 10)."""
    return densenet(6, (6, 6, 6), 12, small_stem, num_classes=10)


def small_resnet(width: int) -> nn.Sequential:
    """Residual network of 14 layers, basic blocks: (B, 3, H, W) -> (B, 10)."""
    layers, c_in = [*small_stem(width), nn.BatchNorm2d(width), nn.ReLU()], width
    for c_out in (width, 2 * width, 4 * width):
        stride = 1 if c_out == width else 2
        conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
        shortcut = None if c_in == c_out else nn.Sequential(conv, nn.BatchNorm2d(c_out))
        layers += [BasicBlock(c_in, c_out, stride, shortcut), BasicBlock(c_out, c_out)]
        c_in = c_out
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return initialise(nn.Sequential(*layers, pool, nn.Linear(c_in, 10)))


# %% tags=["small-count"]
NETWORKS = {
    "DenseNet-BC": small_densenet,
    "residual, width 8": lambda: small_resnet(8),
    "residual, width 12": lambda: small_resnet(12),
}
KEYS = dict(zip(NETWORKS, ("dense", "slim", "wide")))  # names of what is recorded

# %% tags=["small-budget"]
rows, budget = [], {}
for name, build in NETWORKS.items():
    with torch.device("meta"):
        network, x = build(), torch.empty(50, 3, 20, 20)
        kept, macs = memory(network, x) / 2**20, counting.macs(network, x[:1])
    budget[KEYS[name]] = counting.parameters(network), macs
    record(f"{KEYS[name]}.kept", kept)
    rows.append(
        (name, counting.parameters(network), f"{macs / 1e6:.2f}", f"{kept:.1f}")
    )
record("macs.ratio", budget["dense"][1] / budget["slim"][1])  # at equal parameters
record("parameters.ratio", budget["wide"][0] / budget["dense"][0])  # at equal MACs
table(rows, ("network", "parameters", "M MACs", "MiB kept, batch 50"))


# %% tags=["train"]
EPOCHS = 5
BATCH = 50
SEEDS = (0, 1, 2)


def train(
    network: nn.Module, part, epochs: int = EPOCHS, rate: float = 0.1
) -> list[float]:
    """Mean training loss of each epoch; the rate rises to `rate` in a fifth of the steps, then falls."""
    optimizer = torch.optim.SGD(
        network.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        rate,
        total_steps=epochs * math.ceil(len(part[1]) / BATCH),
        pct_start=0.2,
        cycle_momentum=False,
    )
    return training.fit(
        network, part, epochs, optimizer, batch=BATCH, schedule=schedule
    )["loss"]


def draw_runs(losses: dict[tuple[str, int], list[float]]) -> None:
    """Mean over the seeds of each network's loss per epoch, a band from the smallest to the largest."""
    _, axes = plt.subplots()
    epochs, ends = range(1, EPOCHS + 1), {}
    for name, colour in zip(NETWORKS, plots.COLOURS):
        runs = torch.tensor([losses[name, number] for number in SEEDS])
        ends[name] = plots.seed_band(axes, epochs, runs, colour)
    axes.set(xlabel="epoch", ylabel="training loss", ylim=(0, None), xticks=epochs)
    plots.label_ends(axes, ends)


# %% tags=["curve"] alt="Training loss over five epochs, mean of three seeds with a band from the smallest to the largest. The line of the DenseNet-BC is lowest all along. The lines of the two residual networks lie close together above it, and their bands overlap."
networks, losses = {}, {}
for name, build in NETWORKS.items():
    for number in SEEDS:
        seed(number)
        networks[name, number] = build().to(device)
        losses[name, number] = train(networks[name, number], train_part)
record("epochs", EPOCHS)
record("steps", EPOCHS * math.ceil(IMAGES / BATCH))
draw_runs(losses)

# %% tags=["result"]
rows, final, tested = [], {}, {}
for name, key in KEYS.items():
    final[key] = [losses[name, number][-1] for number in SEEDS]
    tested[key] = [training.evaluate(networks[name, number], test) for number in SEEDS]
    record_spread(f"{key}.loss", final[key])
    record_spread(f"{key}.test", tested[key])
    rows.append((name, spread(final[key], ".3f"), spread(tested[key], ".1%")))
table(rows, ("network", "training loss, last epoch", "test accuracy"))

# %% tags=["gaps"]
for other in ("slim", "wide"):
    ahead = sum(tested["dense"]) > sum(tested[other])
    claim(
        ahead,
        f"the mean of DenseNet-BC on the test part is above that of the {other} network",
    )
    overlap = min(tested["dense"]) < max(tested[other])
    claim(
        overlap,
        f"three seeds do not tell DenseNet-BC from the {other} network: ranges overlap",
    )
record("widest", 100 * max(max(values) - min(values) for values in tested.values()))
record("gap.slim", 100 * (sum(tested["dense"]) - sum(tested["slim"])) / 3)
record("gap.wide", 100 * (sum(tested["dense"]) - sum(tested["wide"])) / 3)

# %% [markdown]
# ## Which earlier layers are read
#
# The picture of the paper's section 5: the mean absolute weight between a layer and each one it reads. So few steps
# hardly turn a kernel of ordinary size, as its cosine with its start says, and the picture would show how it was
# drawn. A batch norm follows each of these kernels, so their scale does not matter to the output: we start them at a
# tenth, and the steps outgrow the start.


# %% tags=["reading"]
def readers(network: nn.Sequential) -> list[list[nn.Module]]:
    """Per block, what reads its feature maps: its layers, then the transition or the classifier."""
    found = []
    for i in (1, 2, 3):
        layers = [layer.narrow[2] for layer in getattr(network, f"block{i}")]
        after = network.fc if i == 3 else getattr(network, f"transition{i}")[0][2]
        found.append([*layers, after])
    return found


@torch.no_grad()
def small_start(network: nn.Sequential) -> nn.Sequential:
    """Start the 1x1 kernels, all followed by a batch norm, at a tenth."""
    for conv in (conv for block in readers(network) for conv in block):
        if isinstance(conv, nn.Conv2d):
            conv.weight.mul_(0.1)
    return network


def sources(weight: Tensor, c_block: int, growth: int = 6) -> list[Tensor]:
    """Split a weight (c_out, c_in, ...) by who made the channels it reads: input, layer 1, 2, ..."""
    return [
        weight[:, :c_block],
        *(w for w in weight[:, c_block:].split(growth, 1) if w.numel()),
    ]


def reading(network: nn.Sequential) -> Tensor:
    """Mean absolute weight from source s to reader l, relative to the mean of its sources: (3, 7, 7)."""
    found = torch.full((3, 7, 7), math.nan)
    for i, block in enumerate(readers(network)):
        c_block = block[0].weight.shape[1]
        for j, layer in enumerate(block):
            parts = [
                w.abs().mean().item() for w in sources(layer.weight.detach(), c_block)
            ]
            found[i, : len(parts), j] = torch.tensor(parts) / (sum(parts) / len(parts))
    return found


# %% tags=["draw-reading"]
def draw_reading(found: Tensor) -> None:
    """A square per block: sources down, readers across; full colour for large weights."""
    _, grid = plt.subplots(1, 3, figsize=(5, 2.35), sharey=True)
    for i, (axes, values) in enumerate(zip(grid, found.tolist()), start=1):
        for s, row in enumerate(values):
            for reader, value in enumerate(row):
                shade = (
                    0 if math.isnan(value) else min(max((value - 0.7) / 0.6, 0.03), 1)
                )
                colour = (plots.COLOURS[0], shade)
                axes.add_patch(
                    plt.Rectangle((reader - 0.5, s - 0.5), 1, 1, facecolor=colour)
                )
        last = "fc" if i == 3 else "tr"
        axes.set(xlim=(-0.5, 6.5), ylim=(6.5, -0.5), aspect="equal", title=f"block {i}")
        axes.set_xticks(range(7), [*"123456", last], fontsize=10)
        axes.set_yticks(range(7), ["input", *"123456"], fontsize=10)
        axes.tick_params(length=0)
    grid[1].set_xlabel("read by layer")
    grid[0].set_ylabel("made by layer")


# %% tags=["cosine"]
cosines = []
for number in SEEDS:
    seed(number)  # draws the weights of the trained network once more
    pairs = zip(
        readers(small_densenet()), readers(networks["DenseNet-BC", number]), strict=True
    )
    for before, after in (pair for blocks in pairs for pair in zip(*blocks)):
        if isinstance(before, nn.Conv2d):
            weights = before.weight.flatten(), after.weight.cpu().flatten()
            cosines.append(F.cosine_similarity(*weights, dim=0).item())
smallest = min(finite(cosines))
claim(smallest > 0.85, "each 1x1 kernel keeps a cosine above 0.85 with its start")
record("kernels.cosine", smallest)
table([(f"{smallest:.3f}",)], ("smallest cosine of a 1x1 kernel with its start",))

# %% tags=["reading-run"]
started = []
for number in SEEDS:
    seed(number)
    started.append(small_start(small_densenet()).to(device))
    train(started[-1], train_part)
scores = [training.evaluate(network, test) for network in started]
maps = torch.stack([reading(network) for network in started]).mean(0)
record_spread("started.test", scores)
table([(spread(scores, ".1%"),)], ("test accuracy with the small start",))

# %% tags=["reading-figure"] alt="Three triangles of blue squares, one per block, who made the channels down, who reads them across. In blocks 2 and 3 the top row, the input of the block, has the strongest colour, and in all three its last square, what the transition or the classifier reads, is the strongest. The other squares are fainter and differ little."
draw_reading(maps)

# %% tags=["reading-numbers"]
made, read = torch.triu_indices(5, 5) + 1  # without input, transition and classifier
layers = maps[:, made, read]  # what layers read from layers
record("reading.least", layers.min())
record("reading.most", layers.max())
record(
    "reading.input", maps[1:, 0, 1:6].mean()
)  # from the transition before, in blocks 2 and 3
record("reading.fc.input", maps[2, 0, 6])
record("reading.fc.last", maps[2, 4:, 6].mean())
claim(
    layers.min() > 0.75,
    "no layer is read with less than three quarters of the mean weight",
)
claim(
    layers.max() < 1.25,
    "no layer is read with more than five quarters of the mean weight",
)
claim(
    maps[1:, 0, 1:6].mean() > 1.05,
    "the input of blocks 2 and 3 is read more than the mean",
)
claim(
    maps[2, 0, 6] > 1.15, "the classifier reads the input of block 3 more than the mean"
)
claim(maps[2, 4:, 6].mean() < 1.15, "it reads the last three layers less than that")
table([(f"{layers.min():.2f}", f"{layers.max():.2f}")], ("smallest", "largest"))

# %% [markdown]
# ## What we saw
#
# - One block that appends to a list gives all published sizes; parameters and MACs equal torchvision's, and with
#   copied weights the outputs do too.
# - What a plain block keeps for the backward pass grows with the square of its depth, as counted by hand; with
#   checkpointing it grows linearly. The gradients stay equal, the running statistics do not.
# - On the patches three seeds do not tell the small DenseNet from a residual network of its parameters, which
#   computes less than half, nor from one of its MACs, with twice the parameters; the means of the DenseNet are
#   higher. It keeps several times the memory.
# - Its layers read all earlier ones in nearly equal shares, and the input of a block more; on digits that last part
#   is not so.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
rows = []
for build, depths in zip(
    cost, ((6, 12, 24, 16), (6, 12, 36, 24), (6, 12, 32, 32), (6, 12, 48, 32))
):
    by_hand = (
        1 + 2 * sum(depths) + 3 + 1
    )  # stem, two per layer, transitions, linear layer
    with torch.device("meta"):
        modules = build().modules()
    counted = sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in modules)
    named = int(build.__name__.removeprefix("densenet"))
    claim(
        by_hand == counted == named,
        f"{build.__name__}: the layers are those of its name",
    )
    rows.append((build.__name__, by_hand, counted))
table(rows, ("network", "by hand", "counted"))

# %% tags=["solution-2"]
plain, frugal = twins()
for layer in (m for m in frugal.modules() if isinstance(m, FrugalLayer)):
    layer.narrow[0].momentum = 1 - math.sqrt(0.9)  # two of these are one of 0.1
for network in (plain, frugal):
    gradients(network, small, labels)
statistics = [
    [b for b in network.buffers() if b.dtype.is_floating_point]
    for network in (plain, frugal)
]
difference = furthest(*statistics)
claim(difference < 1e-5, "with the mended momentum the running statistics are equal")
record("mended.difference", difference)
table(
    [(f"{difference:.1e}",)], ("largest relative difference of the running statistics",)
)

# %% tags=["solution-3"]
rows = []
forms = {"DenseNet-BC": (DenseLayer, 0.5), "no compression": (DenseLayer, 1.0)}
forms |= {"no bottleneck": (BasicLayer, 0.5), "neither": (BasicLayer, 1.0)}
for name, (layer, compression) in forms.items():
    with torch.device("meta"):
        network = densenet(
            32, (6, 12, 24, 16), 64, layer=layer, compression=compression
        )
        macs = counting.macs(network, torch.empty(1, 3, 224, 224))
    key = name.replace(" ", ".")
    record(f"form.{key}.millions", counting.parameters(network) / 1e6)
    record(f"form.{key}.gmacs", macs / 1e9)
    rows.append((name, counting.parameters(network), f"{macs / 1e9:.3f}"))
table(rows, ("form of DenseNet-121", "parameters", "G MACs"))


# %% tags=["solution-4"]
other = images.digits(size=20, channels=3)
centre, scale = other.train[0].mean(), other.train[0].std()
part = (other.train[0][:IMAGES] - centre) / scale, other.train[1][:IMAGES]
seed(0)
reader = small_start(small_densenet()).to(device)
record("digits.loss", train(reader, part)[-1])
seen = reading(reader)

# %% tags=["solution-4-table"]
rows = []
for name, values in (
    ("patches, mean of three seeds", maps),
    ("digits, one seed", seen),
):
    found = (
        values[1:, 0, 1:6].mean().item(),
        values[2, 0, 6].item(),
        values[2, 4:, 6].mean().item(),
    )
    rows.append((name, *(f"{value:.2f}" for value in found)))
for key, value in zip(("input", "fc.input", "fc.last"), found):
    record(f"digits.{key}", value)
claim(
    seen[1:, 0, 1:6].mean() < 1.05,
    "digits: the input of blocks 2 and 3 is read like the rest",
)
claim(
    seen[2, 0, 6] < seen[2, 4:, 6].mean(),
    "digits: the classifier reads the last layers more",
)
columns = (
    "network",
    "blocks 2 and 3: input",
    "classifier: input",
    "classifier: last 3",
)
table(rows, columns)
