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
# # Evolution of CNNs
#
# The ways to split a convolution: what each costs, which dense kernel it equals, who can hear whom; MobileNet
# built from them; nine networks of torchvision compared by where their cost lies; then one small network with
# each kind of convolution, trained on colour patches and on digits.
# The text to it is the [chapter](../chapters/cnn_evolution.rst).

# %%
from collections import Counter, OrderedDict
from statistics import median
from time import perf_counter

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn
from timm.models.efficientnet import mobilenetv1_100 as timm_mobilenet

from workbench import claim, device, evaluating, record, record_spread, seed, table
from workbench import checks, counting, drawing, images, plots, training

# %% [markdown]
# ## The kinds
#
# One helper makes every convolution of this page: no bias, and padding that keeps the map.


# %% tags=["conv"]
def conv(c_in: int, c_out: int, size=3, groups: int = 1, stride: int = 1) -> nn.Conv2d:
    """A convolution of size k or (rows, columns), both odd, without bias."""
    rows, columns = (size, size) if isinstance(size, int) else size
    padding = rows // 2, columns // 2
    return nn.Conv2d(
        c_in, c_out, (rows, columns), stride, padding, groups=groups, bias=False
    )


# %% tags=["shuffle"]
class Shuffle(nn.Module):
    """Deal the channels out like cards: first ones of all groups, then second ones, and so on.

    Zhang et al. 2018, section 3.1. No weights; (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        assert C % self.groups == 0, "groups must divide the number of channels"
        x = x.view(B, self.groups, C // self.groups, H, W)  # (B, g, C / g, H, W)
        return x.transpose(1, 2).reshape(B, C, H, W)  # (B, C, H, W)


# %% tags=["kinds"]
def standard(c_in: int, c_out: int) -> nn.Module:
    return conv(c_in, c_out)


def spatially_separable(c_in: int, c_out: int) -> nn.Module:
    return nn.Sequential(conv(c_in, c_out, (3, 1)), conv(c_out, c_out, (1, 3)))


def grouped(c_in: int, c_out: int, groups: int = 4) -> nn.Module:
    return conv(c_in, c_out, groups=groups)


def shuffled(c_in: int, c_out: int, groups: int = 4) -> nn.Module:
    return nn.Sequential(grouped(c_in, c_out, groups), Shuffle(groups))


def depthwise(c_in: int, c_out: int) -> nn.Module:
    return conv(c_in, c_out, groups=c_in)


def pointwise(c_in: int, c_out: int) -> nn.Module:
    return conv(c_in, c_out, 1)


def depthwise_separable(c_in: int, c_out: int) -> nn.Module:
    return nn.Sequential(depthwise(c_in, c_in), pointwise(c_in, c_out))


KINDS = {
    "standard": standard,
    "spatially separable": spatially_separable,
    "grouped": grouped,
    "shuffled": shuffled,
    "depthwise separable": depthwise_separable,
    "pointwise": pointwise,
    "depthwise": depthwise,
}


# %% [markdown]
# ## The dense kernel behind a layer
#
# All of them are linear and treat every pixel alike, so each is some convolution with a dense kernel. To see
# which one, we ask the layer: a single one in one input channel comes out as that channel's kernels.


# %% tags=["dense-kernel"]
@torch.no_grad()
def dense_kernel(layers: nn.Module, c_in: int, size: int = 3) -> Tensor:
    """Kernel (c_out, c_in, size, size) of the one convolution that linear layers amount to.

    Convolutions of torch are cross-correlations: the answer to a single one is the kernel turned round.
    """
    ones = torch.zeros(c_in, c_in, size, size)
    ones[range(c_in), range(c_in), size // 2, size // 2] = 1
    return layers(ones).flip(-2, -1).transpose(0, 1)


# %% tags=["drawing-kernels"]
def draw_kernel(axes, kernel: Tensor, title: str) -> None:
    """Draw a tile per pair of channels; in it a box over the places where the kernel is not zero."""
    c_out, c_in, size, _ = kernel.shape
    colour = plots.COLOURS[0]
    for n in range(c_out):
        for m in range(c_in):
            frame = plt.Rectangle(
                (m + 0.06, n + 0.06), 0.88, 0.88, fill=False, ec=plots.GRID
            )
            axes.add_patch(frame)
            if not kernel[n, m].any():
                continue
            rows, columns = ((kernel[n, m] != 0).any(axis).nonzero() for axis in (1, 0))
            left, top = (0.06 + 0.88 * int(t.min()) / size for t in (columns, rows))
            spans = [
                0.88 * (int(t.max() - t.min()) + 1) / size for t in (columns, rows)
            ]
            axes.add_patch(
                plt.Rectangle((m + left, n + top), *spans, color=colour, linewidth=0)
            )
    axes.set(xlim=(0, c_in), ylim=(c_out, 0), aspect="equal", title=title)
    axes.title.set_fontsize(11)
    axes.axis("off")


# %% tags=["kinds-figure"] alt="Eight grids of six by six tiles, one tile for each pair of output channel, a row, and input channel, a column. Standard 3x3: all tiles filled, 324 weights. 3x1: a standing bar in each tile, 108. 1x3: a lying bar in each tile, 108. 1x1: a dot in each tile, 36. Grouped 3x3: three full blocks of two by two tiles on the diagonal, 108. Depthwise 3x3: the diagonal only, 54. Shuffle: one dot in each row and column, off the diagonal, no weights. Grouped and shuffled: the rows of the blocks dealt out, 108."
seed(0)
shown = {"3×3": conv(6, 6), "3×1": conv(6, 6, (3, 1)), "1×3": conv(6, 6, (1, 3))}
shown |= {
    "1×1": conv(6, 6, 1),
    "grouped": grouped(6, 6, 3),
    "depthwise": depthwise(6, 6),
}
shown |= {"shuffle": Shuffle(3), "shuffled": shuffled(6, 6, 3)}
_, grid = plt.subplots(2, 4, figsize=(5, 3.3))
for axes, (name, layer) in zip(grid.flat, shown.items()):
    draw_kernel(
        axes, dense_kernel(layer, 6), f"{name}\n{counting.parameters(layer)} weights"
    )

# %% [markdown]
# ## Cost
#
# A layer of 64 channels on a map of 56×56 pixels, with four groups. "Per value" is MACs per value moved: input,
# output and weights of each convolution, counted once.


# %% tags=["cost"]
def cost(
    c_in: int, c_out: int, size: tuple[int, int], groups: int, H: int, W: int
) -> int:
    """MACs of one convolution with an output map of H x W, by the formula."""
    return size[0] * size[1] * (c_in // groups) * c_out * H * W


def values_moved(layers: nn.Module, x: Tensor) -> int:
    """Values that the convolutions read and write, weights included, each once."""
    moved, convolutions = [], [m for m in layers.modules() if isinstance(m, nn.Conv2d)]

    def note(layer, inputs, output):
        moved.append(inputs[0].numel() + layer.weight.numel() + output.numel())

    handles = [layer.register_forward_hook(note) for layer in convolutions]
    layers(x)
    for handle in handles:
        handle.remove()
    return sum(moved)


# %% tags=["cost-table"]
x, rows, macs = torch.empty(1, 64, 56, 56, device="meta"), [], {}
for name, kind in KINDS.items():
    with torch.device("meta"):
        layer = kind(64, 64)
    macs[name], ratio = (
        counting.macs(layer, x),
        counting.macs(layer, x) / values_moved(layer, x),
    )
    record(f"cost.{name.replace(' ', '-')}.share", macs[name] / macs["standard"])
    record(f"cost.{name.replace(' ', '-')}.intensity", ratio)
    row = name, counting.parameters(layer), f"{macs[name] / 1e6:.1f}", f"{ratio:.0f}"
    rows.append((*row, f"{macs[name] / macs['standard']:.3f}"))
claim(
    macs["standard"] == cost(64, 64, (3, 3), 1, 56, 56),
    "the formula gives the standard cost",
)
quarter = cost(64, 64, (3, 3), 4, 56, 56)
claim(
    macs["grouped"] == macs["shuffled"] == quarter,
    "the formula gives the cost of four groups",
)
table(rows, ("kind", "weights", "M MACs", "per value", "of standard"))

# %% [markdown]
# Time is another matter than MACs, and differs from machine to machine. To see yours, run for each kind
# `seconds(KINDS["depthwise"](64, 64), torch.randn(1, 64, 56, 56))`.


# %% tags=["seconds"]
@torch.no_grad()
def seconds(layers: nn.Module, x: Tensor, times: int = 20) -> float:
    """Median time of a forward pass, after one that is not counted; on an accelerator, wait for it."""
    wait = torch.accelerator.synchronize if x.device.type != "cpu" else lambda: None
    measured = []
    for _ in range(times + 1):
        wait()
        start = perf_counter()
        layers(x)
        wait()
        measured.append(perf_counter() - start)
    return median(measured[1:])


# %% [markdown]
# ## Equal to dense kernels
#
# The same kernels, now written down from the weights.


# %% tags=["as-dense"]
def block_diagonal(weight: Tensor, groups: int) -> Tensor:
    """Kernel of a grouped convolution, (c_out, c_in / groups, k, k) -> (c_out, c_in, k, k)."""
    c_out, share, *size = weight.shape
    dense = weight.new_zeros(c_out, groups, share, *size)
    group = torch.arange(c_out) // (c_out // groups)  # of each output channel
    dense[torch.arange(c_out), group] = weight
    return dense.flatten(1, 2)


def separable_product(depthwise: Tensor, pointwise: Tensor) -> Tensor:
    """One pattern per input (c_in, 1, k, k), scaled per output (c_out, c_in, 1, 1)."""
    return torch.einsum("nm,mhw->nmhw", pointwise[:, :, 0, 0], depthwise[:, 0])


def spatial_product(column: Tensor, row: Tensor) -> Tensor:
    """Outer products of (R, c_in, k, 1) and (c_out, R, 1, k), summed over R."""
    return torch.einsum("rmh,nrw->nmhw", column[..., 0], row[:, :, 0])


def shuffle_order(C: int, groups: int) -> Tensor:
    """Which input channel each output channel of `Shuffle` is."""
    return torch.arange(C).view(groups, -1).T.flatten()


# %% tags=["with-kernel"]
@torch.no_grad()
def with_kernel(weight: Tensor) -> nn.Conv2d:
    """The standard convolution that has this kernel (c_out, c_in, k, k)."""
    layer = conv(weight.shape[1], weight.shape[0], weight.shape[-1])
    layer.weight.copy_(weight)
    return layer


# %% tags=["dense-forms"]
seed(0)
layers = {name: kind(24, 48) for name, kind in KINDS.items()} | {
    "shuffle alone": Shuffle(4)
}
column, row = layers["spatially separable"]
space, channels = layers["depthwise separable"]
written = {
    "spatially separable": spatial_product(column.weight, row.weight),
    "grouped": block_diagonal(layers["grouped"].weight, 4),
    "shuffled": block_diagonal(layers["shuffled"][0].weight, 4)[shuffle_order(48, 4)],
    "depthwise separable": separable_product(space.weight, channels.weight),
    "depthwise": block_diagonal(layers["depthwise"].weight, 24),
    "shuffle alone": torch.eye(24)[shuffle_order(24, 4)].view(24, 24, 1, 1),
}

# %% tags=["equal"]
x, rows, deviations = torch.randn(2, 24, 13, 10), [], []
for name, kernel in written.items():
    found = dense_kernel(layers[name], 24, kernel.shape[-1])
    claim(
        (found - kernel).abs().max() <= 1e-6,
        f"{name}: the kernel read off is the one written out",
    )
    deviations.append(checks.same_outputs(layers[name], with_kernel(kernel), x))
    share = (kernel != 0).double().mean().item()
    rows.append((name, f"{share:.1%}", f"{deviations[-1]:.1e}"))
record("dense.deviation", max(deviations))
table(rows, ("kind", "dense kernel not zero", "largest relative deviation"))

# %% [markdown]
# A kernel that has a name: Sobel's, which is a column times a row.

# %% tags=["sobel"]
column, row = (
    torch.tensor([1.0, 2, 1]).view(1, 1, 3, 1),
    torch.tensor([1.0, 0, -1]).view(1, 1, 1, 3),
)
kernel, picture = spatial_product(column, row), images.photograph(64, 64)[:, :1]
pair = nn.Sequential(conv(1, 1, (3, 1)), conv(1, 1, (1, 3)))
with torch.no_grad():
    pair[0].weight.copy_(column), pair[1].weight.copy_(row)
record("sobel.deviation", checks.same_outputs(pair, with_kernel(kernel), picture))
record("sobel.rank", int(torch.linalg.matrix_rank(kernel[0, 0])))
kernel[0, 0]

# %% [markdown]
# ## Who hears whom


# %% tags=["reach"]
def reach(layers: nn.Module, c_in: int) -> Tensor:
    """Boolean (c_out, c_in): which input channels an output channel depends on, at any pixel.

    For linear layers with random weights, where nothing cancels.
    """
    return dense_kernel(layers, c_in).abs().amax((2, 3)) > 0


# %% tags=["reach-table"]
seed(0)
rows = []
for groups in (2, 4, 8):
    for name, kind in (("grouped", grouped), ("shuffled", shuffled)):
        stack, heard = nn.Sequential(), []
        for _ in range(3):
            stack.append(kind(64, 64, groups))
            heard.append(int(reach(stack, 64)[0].sum()))
        record(f"reach.{name}{groups}", heard[1])
        expected = 64 if name == "shuffled" else 64 // groups
        claim(
            heard[1] == expected,
            f"{name}, {groups} groups: two layers hear {expected} channels",
        )
        rows.append((f"{name}, {groups} groups", *heard))
table(rows, ("of 64 channels, one output hears", "1 layer", "2 layers", "3 layers"))


# %% tags=["drawing-flow"]
def draw_flow(axes, layers: list[nn.Module], C: int, title: str) -> None:
    """Draw the channels as columns of dots, layers between; in colour what the top output depends on."""
    needed = torch.zeros(C, dtype=bool)
    needed[0] = True
    for i in reversed(range(len(layers) + 1)):
        colours = [plots.COLOURS[1] if on else plots.QUIET for on in needed]
        axes.scatter([i] * C, range(C), color=colours, s=30, zorder=3)
        if i == 0:
            break
        connected = reach(layers[i - 1], C)
        for n, m in connected.nonzero().tolist():
            colour, width = (plots.COLOURS[1], 1.5) if needed[n] else (plots.GRID, 1)
            axes.plot(
                [i - 1, i],
                [m, n],
                color=colour,
                linewidth=width,
                zorder=2 if needed[n] else 1,
            )
        needed = connected[needed].any(0)
    names = ["shuffle" if isinstance(layer, Shuffle) else "grouped" for layer in layers]
    for i, name in enumerate(names):
        axes.text(i + 0.5, C - 0.1, name, ha="center", va="top", fontsize=11)
    axes.set(ylim=(C + 0.5, -0.6), title=title)
    axes.axis("off")


# %% tags=["flow-figure"] alt="Two diagrams of nine channels in three groups, as columns of dots joined by lines. Left, two grouped layers: what reaches the top output comes from the three channels of the top group only. Right, a shuffle between the two layers: the lines to the top output fan out over three groups and reach all nine inputs."
seed(0)
first, second = conv(9, 9, 1, groups=3), conv(9, 9, 1, groups=3)
_, axes = plt.subplots(1, 2, figsize=(5, 3.2), gridspec_kw={"width_ratios": (2, 3)})
draw_flow(axes[0], [first, second], 9, "without")
draw_flow(axes[1], [first, Shuffle(3), second], 9, "with a shuffle")

# %% [markdown]
# ## A network of one kind: MobileNet
#
# Depthwise separable convolutions everywhere but in the first layer. Unlike our pair, the block of the paper has
# batch norm and ReLU behind both halves.


# %% tags=["blocks"]
def norm_act(*layers: nn.Module, channels: int) -> list[nn.Module]:
    """Layers, then batch norm and the clipped ReLU of the authors' code."""
    return [*layers, nn.BatchNorm2d(channels), nn.ReLU6()]


def separable_block(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    """Depthwise 3x3, then pointwise (Howard et al. 2017, figure 3, right)."""
    first = norm_act(conv(c_in, c_in, 3, c_in, stride), channels=c_in)
    return nn.Sequential(*first, *norm_act(conv(c_in, c_out, 1), channels=c_out))


def full_block(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    """The standard convolution it replaces (figure 3, left)."""
    return nn.Sequential(*norm_act(conv(c_in, c_out, 3, 1, stride), channels=c_out))


# %% tags=["mobilenet"]
def mobilenet(block=separable_block, num_classes: int = 1000) -> nn.Sequential:
    """MobileNet: (B, 3, H, W) -> (B, num_classes); Howard et al. 2017, table 1.

    Stages are the blocks of one map size. Table 1 prints stride 2 in the last depthwise layer,
    but a map of 7x7 before and behind it: the stride is 1, as in timm.
    """
    parts = OrderedDict(
        stem=nn.Sequential(*norm_act(conv(3, 32, 3, 1, 2), channels=32))
    )
    c_in, plan = 32, ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2))
    for i, (c_out, depth) in enumerate(plan, start=1):
        blocks = [block(c_in, c_out, 1 if i == 1 else 2)]
        blocks += [block(c_out, c_out, 1) for _ in range(depth - 1)]
        parts[f"stage{i}"], c_in = nn.Sequential(*blocks), c_out
    parts["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts["fc"] = nn.Linear(c_in, num_classes)
    return nn.Sequential(parts)


# %% tags=["mobilenet-count"]
rows, x = [], torch.empty(1, 3, 224, 224, device="meta")
for name, block in (("separable", separable_block), ("full", full_block)):
    with torch.device("meta"):
        network = mobilenet(block)
    record(f"mobilenet.{name}.parameters", counting.parameters(network))
    record(f"mobilenet.{name}.mmacs", counting.macs(network, x) / 1e6)
    rows.append(
        (name, counting.parameters(network), f"{counting.macs(network, x) / 1e6:,.1f}")
    )
table(rows, ("MobileNet with blocks", "parameters", "M MACs"))

# %% tags=["drawn"] alt="MobileNet from top to bottom, with output shape and parameters at the right: an input of 3x224x224, the stem of 32 channels, five stages of 1, 2, 2, 6 and 2 blocks whose maps shrink from 112 to 7 pixels a side while the channels grow from 64 to 1024, the pool and the linear layer to 1000."
with torch.device("meta"):
    network = mobilenet()
drawing.draw(network, x)


# %% tags=["mobilenet-equal"]
seed(0)
reference, network = checks.randomise_norms(timm_mobilenet()), mobilenet()
checks.transplant(reference, network)
deviation = checks.same_outputs(network, reference, torch.randn(2, 3, 75, 97))
record("mobilenet.deviation", deviation)
f"{deviation:.1e}"

# %% [markdown]
# ## Where the cost lies
#
# Nine networks of torchvision and MobileNet, each convolution and linear layer by its kind.


# %% tags=["by-kind"]
ORDER = ("linear", "5×5+", "3×3", "1×n", "1×1", "grouped", "depthwise")


def kind_of(layer: nn.Module) -> str:
    if isinstance(layer, nn.Linear):
        return "linear"
    if layer.groups > 1:
        return "depthwise" if layer.groups == layer.in_channels else "grouped"
    rows, columns = layer.kernel_size
    if rows != columns:
        return "1×n"
    return {1: "1×1", 3: "3×3"}.get(rows, "5×5+")


def costs_by_kind(network: nn.Module, x: Tensor) -> tuple[Counter, Counter]:
    """Weights and MACs of one forward pass, by kind of layer; biases and batch norm are in neither."""
    weights, macs = Counter(), Counter()

    def note(layer, inputs, output):
        weights[kind_of(layer)] += layer.weight.numel()
        macs[kind_of(layer)] += layer.weight[0].numel() * output.numel() // len(output)

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad(), evaluating(network):
        network(x)
    for handle in handles:
        handle.remove()
    return weights, macs


# %% tags=["nine"]
NO_HEADS = {"aux_logits": False, "init_weights": False}
NINE = {  # name of the builder in torchvision: name, arguments
    "alexnet": ("AlexNet", {}),
    "vgg16": ("VGG-16", {}),
    "googlenet": ("GoogLeNet", NO_HEADS),
    "inception_v3": ("Inception-v3", NO_HEADS),
    "resnet50": ("ResNet-50", {}),
    "densenet121": ("DenseNet-121", {}),
    "resnext50_32x4d": ("ResNeXt-50", {}),
    "mobilenet_v2": ("MobileNetV2", {}),
    "shufflenet_v2_x1_0": ("ShuffleNetV2", {}),
}


def built(builder: str) -> tuple[nn.Module, Tensor]:
    """One of the nine and an input of the size its paper uses, on the meta device."""
    side = 299 if builder == "inception_v3" else 224
    with torch.device("meta"):
        network = torchvision.models.get_model(builder, **NINE[builder][1])
        return network, torch.empty(1, 3, side, side)


# %% tags=["nine-count"]
rows, shares = [], {}
for builder, (name, _) in NINE.items():
    network, x = built(builder)
    parameters, total = counting.parameters(network), counting.macs(network, x)
    macs = costs_by_kind(network, x)[1]
    claim(
        sum(macs.values()) == total, f"{name}: the MACs of all kinds make up the whole"
    )
    shares[name] = [macs[kind] / total for kind in ORDER]
    record(f"{builder}.parameters", parameters)
    record(f"{builder}.gmacs", total / 1e9)
    rows.append((name, parameters, f"{total / 1e9:.3f}"))
table(rows, ("network", "parameters", "G MACs"))

# %% tags=["mobilenet-shares"]
with torch.device("meta"):
    network, x = mobilenet(), torch.empty(1, 3, 224, 224)
weights, macs = costs_by_kind(network, x)
for kind, key in (("1×1", "pointwise"), ("depthwise", "depthwise"), ("3×3", "stem")):
    record(f"mobilenet.macs.{key}", macs[kind] / macs.total())
    record(f"mobilenet.weights.{key}", weights[kind] / weights.total())
rows = [
    (kind, f"{macs[kind] / macs.total():.2%}", f"{weights[kind] / weights.total():.2%}")
    for kind in ("1×1", "depthwise", "3×3", "linear")
]
table(rows, ("kind", "of MACs", "of weights"))

# %% tags=["shares-figure"] alt="A table of ten networks in rows, from AlexNet to ShuffleNetV2, and seven kinds of layer in columns; each cell shows its percentage of the network's multiply-accumulates, the larger the darker. The dark cells move from the left to the right: kernels of 5x5 and more and 3x3 in AlexNet, 3x3 in VGG-16, 3x3 and 1x1 in GoogLeNet, ResNet-50 and DenseNet-121, asymmetric kernels in Inception-v3, 1x1 with a small share of grouped or depthwise kernels in the last four."
names = [*list(shares)[:7], "MobileNet", *list(shares)[7:]]
shares["MobileNet"] = [macs[kind] / macs.total() for kind in ORDER]
_, axes = plt.subplots(figsize=(5, 4.1))
for y, name in enumerate(names):
    axes.text(-0.1, y + 0.5, name, ha="right", va="center", fontsize=11)
    for i, share in enumerate(shares[name]):
        colour = (plots.COLOURS[0], 0.55 * share + 0.03 * (share > 0))
        axes.add_patch(
            plt.Rectangle((i + 0.04, y + 0.06), 0.92, 0.88, color=colour, linewidth=0)
        )
        text = f"{share:.0%}" if share >= 0.005 else "<1%" if share else ""
        axes.text(i + 0.5, y + 0.5, text, ha="center", va="center", fontsize=11)
for i, kind in enumerate(ORDER):
    name = {"depthwise": "depth-\nwise", "grouped": "groups"}.get(kind, kind)
    axes.text(
        i + 0.5, -0.1, name, ha="center", va="bottom", fontsize=11, color=plots.QUIET
    )
axes.set(xlim=(-2.3, 7), ylim=(10, -1.1))
_ = axes.axis("off")

# %% tags=["shares-checked"]
mixing = [shares[name][ORDER.index("1×1")] for name in names]
later = names.index("ResNeXt-50")
claim(
    min(mixing[later:]) > 0.85,
    "from ResNeXt-50 on, 1x1 kernels do more than 85 % of the MACs",
)
claim(max(mixing[:later]) < 0.85, "before it they do less than that in every network")
record("shares.mixing", min(mixing[later:]))

# %% [markdown]
# ## Ideas and years
#
# The year is that of the first public version.

# %% tags=["map"]
LANES = ("kernel", "1×1", "groups", "paths")
MAP = {  # year: lane, network, idea
    1998: [(0, "LeNet-5", "5×5, shared")],
    2012: [(0, "AlexNet", "11×11 to 3×3"), (2, "(AlexNet)", "2 groups")],
    2013: [(1, "NiN", "1×1, mean")],
    2014: [
        (0, "VGG", "3×3, deep"),
        (1, "GoogLeNet", "1×1 first"),
        (3, "(GoogLeNet)", "parallel"),
    ],
    2015: [
        (0, "Inception-v3", "1×n, n×1"),
        (1, "(ResNet)", "bottleneck"),
        (3, "ResNet", "add"),
    ],
    2016: [
        (2, "Xception", "one each"),
        (2, "ResNeXt", "32 groups"),
        (3, "DenseNet", "concatenate"),
    ],
    2017: [
        (2, "MobileNet", "one each"),
        (2, "ShuffleNet", "+ shuffle"),
        (3, "SENet", "weigh"),
    ],
    2018: [(2, "MobileNetV2", "wide inside"), (2, "ShuffleNetV2", "split, shuffle")],
}

# %% tags=["map-figure"] alt="A map with time downwards, 1998 to 2018, and four columns, in each of which the networks stand at their years. Kernel: LeNet-5, AlexNet, VGG, Inception-v3. 1x1: NiN, GoogLeNet, ResNet's bottleneck. Groups: AlexNet's two, Xception, ResNeXt, MobileNet, ShuffleNet, MobileNetV2, ShuffleNetV2. Paths: GoogLeNet's parallel ones, ResNet adds, DenseNet concatenates, SENet weighs channels. Until 2015 the new names stand in the kernel and 1x1 columns, later in groups and paths."
_, axes = plt.subplots(figsize=(5, 6.2))
y, middle = 0.0, {"ha": "center", "va": "center"}
for i, lane in enumerate(LANES):
    axes.text(i + 0.5, -0.7, lane, weight="bold", **middle)
for year, entries in MAP.items():
    axes.axhline(y - 0.35, color=plots.GRID, linewidth=1)
    axes.text(-0.52, y + 0.15, str(year), va="center", color=plots.QUIET)
    used = Counter()
    for lane, name, idea in entries:
        at = lane + 0.5, y + used[lane]
        axes.text(*at, name, fontsize=10.5, **middle)
        axes.text(
            at[0], at[1] + 0.36, idea, fontsize=10, color=plots.COLOURS[0], **middle
        )
        used[lane] += 0.85
    y += max(used.values()) + 0.25
axes.set(xlim=(-0.55, 4.05), ylim=(y - 0.3, -1))
_ = axes.axis("off")

# %% [markdown]
# ## One small network with each kind
#
# Four layers of the kind on maps of 8×8 and 4×4 pixels. The stem reads 2×2 pixels at a time, so that what lies
# farther apart has to be combined by the layers compared.


# %% tags=["small"]
WIDTHS = (8, 16, 32)


def small(kind, widths=WIDTHS, num_classes: int = 10) -> nn.Sequential:
    """Stem, four layers of one kind with batch norm and ReLU, mean, linear: (B, 3, 16, 16) -> (B, 10)."""
    a, b, c = widths
    stem = nn.Conv2d(3, a, 2, stride=2, bias=False)
    parts = [stem, nn.BatchNorm2d(a), nn.ReLU()]
    for c_in, c_out, pool in (
        (a, b, False),
        (b, b, False),
        (b, c, True),
        (c, c, False),
    ):
        parts += [nn.MaxPool2d(2)] if pool else []
        parts += [kind(c_in, c_out), nn.BatchNorm2d(c_out), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, num_classes)]
    return nn.Sequential(*parts, *head)


# %% tags=["train"]
EPOCHS = 3
BATCH = 100
SEEDS = (0, 1, 2)


def train(network: nn.Module, part: tuple[Tensor, Tensor]) -> nn.Module:
    """SGD with momentum; the rate rises for 30 % of the steps and falls to about nothing."""
    network = network.to(device)
    optimizer = torch.optim.SGD(
        network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4
    )
    steps = EPOCHS * -(-len(part[1]) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    training.fit(network, part, EPOCHS, optimizer, batch=BATCH, schedule=schedule)
    return network


def trained(kind, part: tuple[Tensor, Tensor], widths=WIDTHS) -> list[nn.Module]:
    """One network per seed."""
    networks = []
    for number in SEEDS:
        seed(number)
        networks.append(train(small(kind, widths), part))
    return networks


# %% tags=["data"]
tasks = {"patches": images.patches(16), "digits": images.digits(16, channels=3)}
for name, data in tasks.items():
    record(f"{name}.images", len(data.train[1]))
record("batch", BATCH)
record("epochs", EPOCHS)
table(
    [(name, *(len(part[1]) for part in data[:3])) for name, data in tasks.items()],
    ("data", "train", "validation", "test"),
)


# %% [markdown]
# How far does colour alone go? We describe a picture by mean and standard deviation of its three channels, and
# give it the class of the nearest training picture.

# %% tags=["colour"]
colour = {}
for name, data in tasks.items():
    six, known = (
        torch.cat((x.mean((2, 3)), x.std((2, 3))), dim=1)
        for x in (data.test[0], data.train[0])
    )
    nearest = torch.cdist(six, known).argmin(1)
    colour[name] = (data.train[1][nearest] == data.test[1]).double().mean().item()
    record(f"{name}.colour", colour[name])
table(
    [(name, f"{right:.1%}") for name, right in colour.items()],
    ("data", "right by colour alone"),
)


# %% tags=["spread"]
def spread(values: list[float]) -> str:
    least, most = 100 * min(values), 100 * max(values)
    return f"{sum(values) / len(values):.1%} ({least:.1f}–{most:.1f})"


# %% tags=["runs"]
networks, scores = {}, {}
for task, data in tasks.items():
    for name, kind in KINDS.items():
        networks[task, name] = trained(kind, data.train)
        scores[task, name] = [
            training.evaluate(n, data.test) for n in networks[task, name]
        ]
        record_spread(f"{task}.{name.replace(' ', '-')}", scores[task, name])

# %% tags=["result"]
rows, x = [], torch.empty(1, 3, 16, 16, device="meta")
for name, kind in KINDS.items():
    with torch.device("meta"):
        network = small(kind)
    macs = counting.macs(network, x)
    record(f"small.{name.replace(' ', '-')}.kmacs", macs / 1e3)
    found = (spread(scores[task, name]) for task in tasks)
    rows.append((name, counting.parameters(network), f"{macs / 1e3:.0f}", *found))
table(rows, ("kind", "parameters", "k MACs", *tasks))

# %% tags=["result-figure"] alt="Held-out accuracy of seven small networks in rows, from most to fewest multiply-accumulates, three dots per row and data set. On digits, standard and spatially separable lie at the right, then shuffled, grouped, depthwise separable and depthwise, and pointwise far to the left. On patches the dots of most kinds overlap, and pointwise, last on digits, lies furthest to the right."
_, axes = plt.subplots(figsize=(5, 4.2))
for (task, name), values in scores.items():
    y, hue = list(KINDS).index(name), plots.COLOURS[list(tasks).index(task)]
    axes.plot([100 * min(values), 100 * max(values)], [y, y], color=hue, linewidth=1)
    axes.scatter([100 * v for v in values], [y] * len(values), color=hue, s=22)
    if y == 0:
        mean = 100 * sum(values) / len(values)
        axes.text(mean, -0.55, task, color=hue, ha="center", va="center")
axes.set_yticks(
    range(len(KINDS)), [name.replace(" separable", "\nseparable") for name in KINDS]
)
axes.set(xlabel="held-out accuracy, %", ylim=(len(KINDS) - 0.6, -0.95))
axes.grid(axis="y")

# %% tags=["claims"]
means = {key: sum(values) / len(values) for key, values in scores.items()}
digits = {name: means["digits", name] for name in KINDS}
patches = {name: means["patches", name] for name in KINDS}
for name in ("grouped", "shuffled", "depthwise separable", "pointwise", "depthwise"):
    ahead = (
        digits["standard"] > digits[name] + 0.01
    )  # with margins: three seeds are few
    claim(
        ahead, f"digits: the mean of standard is more than a point above that of {name}"
    )
ahead = digits["depthwise"] > digits["pointwise"] + 0.15
claim(
    ahead,
    "digits: the mean of depthwise is more than 15 points above that of pointwise",
)
ahead = digits["depthwise separable"] > digits["depthwise"] - 0.01
claim(
    ahead, "digits: the mean of depthwise separable is at most a point below depthwise"
)
claim(
    digits["shuffled"] > digits["grouped"],
    "digits: shuffling raises the mean of four groups",
)
apart = abs(patches["shuffled"] - patches["grouped"])
claim(apart < 0.08, "patches: with and without shuffling the means are within 8 points")
for name in KINDS:
    ahead = patches["pointwise"] > patches[name] - 0.02
    claim(
        ahead,
        f"patches: the mean of pointwise is at most two points below that of {name}",
    )
claim(colour["digits"] < 0.3, "digits: colour alone is right on less than 30 %")
best = max(patches.values())
claim(
    colour["patches"] > best,
    "patches: colour alone is right more often than any network",
)

# %% tags=["overlap"]
spans = [
    (min(values), max(values))
    for (task, name), values in scores.items()
    if task == "patches" and name != "pointwise"
]
pairs = [(a, b) for i, a in enumerate(spans) for b in spans[:i]]
overlapping = sum(a[0] <= b[1] and b[0] <= a[1] for a, b in pairs)
claim(
    overlapping > len(pairs) / 2,
    "patches: without pointwise, most ranges of two kinds overlap",
)

# %% [markdown]
# ## Solutions to the exercises

# %% tags=["solution-1"]
M, N, side = 32, 64, 112
by_hand = 9 * M * side**2, M * N * side**2
x = torch.empty(1, M, side, side, device="meta")
both = counting.macs(depthwise_separable(M, N).to("meta"), x)
full = counting.macs(standard(M, N).to("meta"), x)
claim(sum(by_hand) == both, "the MACs by hand are those counted")
claim(
    abs(both / full - 1 / N - 1 / 9) < 1e-12, "the share of standard is 1 / N + 1 / 9"
)
record("first.share", both / full)
rows = [
    ("depthwise", by_hand[0]),
    ("pointwise", by_hand[1]),
    ("counted together", both),
]
table([*rows, ("standard", full)], ("first block of MobileNet", "MACs"))

# %% tags=["solution-2"]
seed(0)
turned, x = (
    nn.Sequential(pointwise(24, 48), depthwise(48, 48)),
    torch.randn(2, 24, 9, 8),
)
kernel = torch.einsum(
    "nm,nhw->nmhw", turned[0].weight[:, :, 0, 0], turned[1].weight[:, 0]
)
record("turned.deviation", checks.same_outputs(turned, with_kernel(kernel), x))
orders = {"depthwise first": depthwise_separable(24, 48), "pointwise first": turned}
x = torch.empty(1, 24, 56, 56, device="meta")
rows = [(name, counting.macs(pair.to("meta"), x)) for name, pair in orders.items()]
table(rows, ("24 to 48 channels, 56×56", "MACs"))

# %% tags=["solution-3"]
wide = (22, 44, 88)
with torch.device("meta"):
    network, x = small(depthwise_separable, wide), torch.empty(1, 3, 16, 16)
record("wide.kmacs", counting.macs(network, x) / 1e3)
record("wide.parameters", counting.parameters(network))
found, test = (
    trained(depthwise_separable, tasks["digits"].train, wide),
    tasks["digits"].test,
)
scores["digits", "wide"] = [training.evaluate(n, test) for n in found]
record_spread("wide", scores["digits", "wide"])
names = "depthwise separable", "wide", "standard"
table([(name, spread(scores["digits", name])) for name in names], ("network", "digits"))

# %% tags=["wide-checked"]
mean = sum(scores["digits", "wide"]) / len(SEEDS)
ahead = mean > digits["depthwise separable"] + 0.02
claim(
    ahead,
    "the mean of the wide network is more than two points above that of the narrow one",
)
claim(
    abs(mean - digits["standard"]) < 0.03,
    "it is within three points of that of standard",
)


# %% tags=["terms"]
@torch.no_grad()
def separable_terms(layer: nn.Conv2d, r: int) -> nn.Sequential:
    """The nearest sum of r depthwise separable kernels per input channel, by singular values."""
    N, M = layer.weight.shape[:2]
    U, S, patterns = torch.linalg.svd(
        layer.weight.transpose(0, 1).flatten(2), full_matrices=False
    )
    space, channels = conv(M, M * r, groups=M), conv(M * r, N, 1)
    space.weight.copy_(
        patterns[:, :r].reshape(M * r, 1, 3, 3)
    )  # of (M, 9, 9), one a row
    mixed = (U * S.unsqueeze(1))[..., :r]  # (M, N, r)
    channels.weight.copy_(mixed.transpose(0, 1).reshape(N, M * r, 1, 1))
    return nn.Sequential(space, channels).to(layer.weight.device)


def factorised(network: nn.Sequential, r: int) -> nn.Sequential:
    """The network with each 3x3 convolution replaced by r separable terms; the rest is shared."""
    dense = [isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in network]
    return nn.Sequential(
        *(separable_terms(m, r) if d else m for m, d in zip(network, dense))
    )


# %% tags=["solution-4"]
x, dense, rows = (
    torch.zeros(1, 3, 16, 16, device=device),
    networks["digits", "standard"],
    [],
)
for r in (1, 2, 3, 4, 6, 9):
    split = [factorised(n, r) for n in dense]
    scores["digits", r] = [training.evaluate(n, test) for n in split]
    record_spread(f"terms{r}", scores["digits", r])
    rows.append(
        (r, f"{counting.macs(split[0], x) / 1e3:.0f}", spread(scores["digits", r]))
    )
macs = f"{counting.macs(dense[0], x) / 1e3:.0f}"
rows.append(("dense", macs, spread(scores["digits", "standard"])))
table(rows, ("terms", "k MACs", "digits"))

# %% tags=["terms-checked"]
pairs = zip(scores["digits", 9], scores["digits", "standard"])
same = all(abs(a - b) < 0.005 for a, b in pairs)
claim(
    same,
    "nine terms are right as often as the dense kernels, to half a point, in each seed",
)
one, four = (sum(scores["digits", r]) / len(SEEDS) for r in (1, 4))
claim(one < 0.25, "one term is right on less than a quarter")
claim(four > one + 0.2, "four terms are more than 20 points above one term")
ahead = digits["depthwise separable"] > one + 0.3
claim(
    ahead,
    "trained from the start, one term is more than 30 points above one term cut out",
)

# %% [markdown]
# ## What we saw
#
# - Each way to split a convolution computes some dense kernel: with zeros, with shared patterns, or of low rank.
# - The MACs of ten networks move from large kernels to 3×3, then to 1×1; depthwise kernels take a few percent.
# - On digits each kind lost by what it left out; on colour patches none did better than a network that hardly
#   looks at neighbouring pixels.
