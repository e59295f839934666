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
# # VGG
#
# How far stacks of 3x3 convolutions see, shown on a task that nothing with a smaller
# view can solve; then the networks of the paper, counted and compared with torchvision.
# The text to it is the [chapter](../chapters/vgg.rst), the paper is
# [Simonyan and Zisserman 2014](https://arxiv.org/abs/1409.1556).

# %%
import copy
import math

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn

from workbench import PROFILE, claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, drawing, images, plots, training

# %% [markdown]
# ## One layer, and what a stack of it sees
#
# A convolution keeps the side of its map and a ReLU stands behind it. To see which
# pixels an output depends on we set all weights to one: its gradient is then the number
# of paths that lead from a pixel to it, and zero where there is none.


# %% tags=["layer"]
class ConvRelu(nn.Module):
    """Convolution that keeps the side of the map, then ReLU (section 2.1)."""

    def __init__(self, c_in: int, c_out: int, *, size: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H, W)
        return torch.relu(self.conv(x))


# %% tags=["paths"]
def only_paths(network: nn.Module) -> nn.Module:
    """All weights one, so that a gradient is a number of paths; in double precision."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)
    return network.double()


def paths(network: nn.Module, side: int) -> Tensor:
    """Paths from each pixel of one channel to the middle output: (side, side)."""
    x = torch.ones(1, 1, side, side, dtype=torch.double, requires_grad=True)
    y = only_paths(network)(x)
    middle = y.shape[-1] // 2
    y[0, 0, middle, middle].backward()
    return x.grad[0, 0]


def stack(sizes, *, width: int = 1) -> nn.Sequential:
    """Layers of these kernel sizes in a row, all of one width."""
    return nn.Sequential(*[ConvRelu(width, width, size=size) for size in sizes])


# %% tags=["drawing"]
def draw_stack(axes, middle: float, title: str, sizes) -> None:
    """Draw the units that one output depends on, layer by layer, in one dimension."""
    rows = len(sizes)
    axes.text(middle, 0.15, title, ha="center", va="center", weight="bold", fontsize=11)
    above = []
    for row in range(rows + 1):
        y = 0.55 + 1.75 * row / rows
        found = paths(stack(sizes[rows - row :]), 7)
        counts = found.diagonal().sqrt().round().int()  # rows times columns
        counts = counts[counts > 0].tolist()
        units = [middle + 0.3 * (k - len(counts) // 2) for k in range(len(counts))]
        for x in above:
            for below in units:
                if abs(below - x) < 0.3 * (sizes[-row] // 2 + 0.5):
                    axes.plot((x, below), (y - 1.75 / rows, y), color=plots.QUIET, lw=1)
        disc = {"ms": 16, "mec": plots.COLOURS[0], "mfc": plots.GRID, "zorder": 3}
        axes.plot(units, [y] * len(units), "o", **disc)
        for x, count in zip(units, counts):
            axes.text(x, y, str(count), ha="center", va="center", zorder=4)
        above = units


# %% tags=["paths-figure"] alt="Two drawings in one dimension, each circle with its number of paths. Left, three layers of size 3: one unit at the top with a 1 is joined to three with 1, 1, 1, these to five with 1, 2, 3, 2, 1, these to the seven pixels at the bottom with 1, 3, 6, 7, 6, 3, 1. Right, one layer of size 7: one unit is joined to seven pixels with a 1 each."
axes = diagrams.sheet(2.6)
draw_stack(axes, 1.25, "three of 3", (3, 3, 3))
draw_stack(axes, 3.75, "one of 7", (7,))

# %% tags=["paths-claims"]
DRAWN = {
    (): (0, 0, 0, 1, 0, 0, 0),
    (3,): (0, 0, 1, 1, 1, 0, 0),
    (3, 3): (0, 1, 2, 3, 2, 1, 0),
    (3, 3, 3): (1, 3, 6, 7, 6, 3, 1),
    (7,): (1, 1, 1, 1, 1, 1, 1),
}
for sizes, counts in DRAWN.items():
    expected = torch.tensor(counts, dtype=torch.double)
    words = f"{sizes}: the paths of the drawing, along rows and columns"
    claim(torch.equal(paths(stack(sizes), 7), torch.outer(expected, expected)), words)

# %% tags=["weights"]
rows = []
for n in (1, 2, 3):
    side = 1 + 2 * n
    seen = (paths(stack((3,) * n), 15) != 0).any(0).sum().item()
    claim(seen == side, f"{n} layers of 3x3 see {side} pixels a side")
    stacked = n * nn.Conv2d(64, 64, 3, bias=False).weight.numel()
    single = nn.Conv2d(64, 64, side, bias=False).weight.numel()
    record(f"stacked{n}", stacked)
    record(f"single{side}", single)
    rows.append((n, f"{side}×{side}", stacked, single, f"{single / stacked:.2f}"))
heads = ("3×3 layers", "field", "their weights", "weights of one kernel", "ratio")
table(rows, heads)

# %% tags=["composed-claims"]
seed(0)
layers = [nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(3)]
three = nn.Sequential(*layers)
one = nn.Conv2d(1, 1, 7, padding=3, bias=False)
point = torch.zeros(1, 1, 7, 7)
point[..., 3, 3] = 1
x = torch.randn(1, 1, 15, 15)
with torch.no_grad():
    one.weight.copy_(three(point).flip(2, 3))  # what one pixel gives, turned about
    off = (one(x) - three(x)).abs() / three(x).abs().max()
claim(off[..., 2:-2, 2:-2].max() < 1e-5, "without ReLUs three 3x3 are one 7x7 inside")
claim(off.max() > 1e-3, "at the border, with zeros around each map, they are not")

# %% [markdown]
# ## Two dots
#
# A task for which a network has to see two places at once: maps of zeros with two dots
# of +1 or -1 in one row. Have they the same sign? Four networks with a stack between a
# 1x1 layer and a sum over the map are trained, and asked at each distance of the dots.


# %% tags=["dots"]
def dots(n: int, *, farthest: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Two dots of +1 or -1, 1 to `farthest` columns apart, in one row of zeros.

    Returns maps (n, 1, 5, 16), labels (n,) that are 1 where the signs are the same, and
    distances (n,).
    """
    distance = torch.randint(1, farthest + 1, (n,))
    row = torch.randint(0, 5, (n,))
    left = (torch.rand(n) * (16 - distance)).long()
    first = torch.randint(0, 2, (n,)) * 2.0 - 1
    second = torch.randint(0, 2, (n,)) * 2.0 - 1
    x = torch.zeros(n, 1, 5, 16)
    number = torch.arange(n)
    x[number, 0, row, left] = first  # one pixel in each map
    x[number, 0, row, left + distance] = second
    return x, (first == second).long(), distance


# %% tags=["task-figure"] alt="Two maps of 5 rows and 16 columns, empty but for a white and a black dot 4 columns apart. On the upper map a frame of 3 by 3 pixels around the white dot leaves the black one outside; on the lower one a frame of 5 by 5 pixels holds both."
x = torch.zeros(5, 16)
x[2, 4] = 1
x[2, 8] = -1
plots.image_grid([x, x], columns=1, scale=2, vmin=-1.3, vmax=1.3)
figure = plt.gcf()
figure.set_size_inches(5, 3.7)
for cell, side, middle in zip(figure.axes, (3, 5), (4, 6)):
    corner = (middle - side / 2, 2 - side / 2)
    frame = {"fill": False, "edgecolor": plots.COLOURS[1], "lw": 2, "clip_on": False}
    cell.add_patch(plt.Rectangle(corner, side, side, **frame))
    cell.set_title(f"what a unit sees: {side}×{side}", fontsize=11)


# %% tags=["start"]
def he_init(network: nn.Module) -> None:
    """Normal weights of variance 2 / fan (He et al. 2015), biases zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):  # for gradients of one scale, as torchvision
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        if isinstance(layer, nn.Linear):  # for outputs of one scale
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(layer.bias)


# %% tags=["dot-network"]
class DotNetwork(nn.Module):
    """1x1 layer, a stack, sum over the map, linear layer: (B, 1, H, W) -> (B, 2)."""

    def __init__(self, sizes, *, width: int = 16):
        super().__init__()
        self.point = ConvRelu(1, width, size=1)
        self.stack = stack(sizes, width=width)
        self.classifier = nn.Linear(width, 2)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(x)  # (B, width, H, W)
        x = self.stack(x)  # (B, width, H, W)
        return self.classifier(x.sum((2, 3)))  # (B, 2)


# %% tags=["train"]
def train(network: nn.Module, part, *, epochs: int, batch: int, rate: float):
    """Adam; the rate rises for a fifth of the steps, then falls. Loss per epoch."""
    steps = epochs * math.ceil(len(part[1]) / batch)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = training.one_cycle(optimizer, steps)
    history = training.fit(
        network, part, epochs, optimizer, batch=batch, schedule=schedule
    )
    return history["loss"]


def train_on_dots(sizes, number: int) -> nn.Module:
    """A network of this stack and seed, trained on 8,000 maps, each seen once."""
    seed(number)
    network = DotNetwork(sizes).to(device)
    x, same, _ = dots(8_000)
    train(network, (x, same), epochs=1, batch=32, rate=0.01)
    return network


# %% tags=["headline"]
STACKS = {
    "one 3×3": (3,),
    "two 3×3": (3, 3),
    "three 3×3": (3, 3, 3),
    "one 7×7": (7,),
}
SEEDS = (0, 1, 2)
networks = {}
for name, sizes in STACKS.items():
    for number in SEEDS:
        networks[name, number] = train_on_dots(sizes, number)


# %% tags=["by-distance"]
DISTANCES = range(1, 9)


def every_dots() -> tuple[Tensor, Tensor, Tensor]:
    """All that `dots` can give, 1 to 8 columns apart: at each place ++, --, +-, -+."""
    first = torch.tensor([1.0, -1.0, 1.0, -1.0])
    second = torch.tensor([1.0, -1.0, -1.0, 1.0])
    maps = []
    distances = []
    for distance in DISTANCES:
        for row in range(5):
            for left in range(16 - distance):
                x = torch.zeros(4, 1, 5, 16)
                x[:, 0, row, left] = first
                x[:, 0, row, left + distance] = second
                maps.append(x)
                distances += [distance] * 4
    same = (first == second).long().repeat(len(maps))
    return torch.cat(maps), same, torch.tensor(distances)


def by_distance(network: nn.Module, maps: Tensor, same: Tensor, distance: Tensor):
    """Fraction of right answers for each distance of the dots."""
    right = training.predict(network, maps).argmax(1) == same
    return [right[distance == d].double().mean().item() for d in DISTANCES]


test_dots = every_dots()
record("dot.tests", len(test_dots[0]))
found = {case: by_distance(network, *test_dots) for case, network in networks.items()}

# %% tags=["steps-figure"] alt="Share of right answers against the distance of the dots, 1 to 8 columns, in bands over three seeds. Each line runs along the top, above 0.85, and falls in one step to between 0.25 and 0.75: one 3x3 behind 2, two 3x3 behind 4, three 3x3 and one 7x7 behind 6."
_, axes = plt.subplots()
dashed = {"one 7×7": "--"}
for colour, name in zip(plots.COLOURS, STACKS):
    runs = torch.tensor([found[name, number] for number in SEEDS])
    plots.seed_band(axes, DISTANCES, runs, colour, dashed.get(name, "-"))
axes.axhline(0.5, color=plots.QUIET, linestyle=":", linewidth=1)
axes.set(xlabel="distance of the dots", ylabel="right answers", ylim=(0.2, 1.12))
places = ((2.1, 1.03), (4.1, 1.03), (6.1, 1.03), (6.45, 0.92))
for name, place, colour in zip(STACKS, places, plots.COLOURS):
    axes.text(*place, name, color=colour)

# %% tags=["steps-result"]
rows = []
within_all = []
beyond_all = []
for name, sizes in STACKS.items():
    far = sum(size - 1 for size in sizes)  # the largest distance within the field
    within = [value for n in SEEDS for value in found[name, n][:far]]
    beyond = [value for n in SEEDS for value in found[name, n][far:]]
    claim(min(within) > 0.85, f"{name}: the dots are told up to {far} columns apart")
    claim(min(beyond) >= 0.25, f"{name}: at least a quarter from {far + 1} on")
    claim(max(beyond) <= 0.75, f"{name}: at most three quarters from {far + 1} on")
    weights = sum(p.numel() for p in networks[name, 0].stack.parameters() if p.ndim > 1)
    shown = (spread(within, ".1%"), spread(beyond, ".1%"))
    rows.append((name, weights, f"1 to {far}", *shown))
    within_all += within
    beyond_all += beyond
    record(f"weights.{name.split()[0]}.{name[-1]}", weights)
record("within.least", min(within_all))
record("beyond.least", min(beyond_all))
record("beyond.most", max(beyond_all))
record("dot.steps", 8_000 // 32)
heads = ("stack", "weights", "distances in the field", "right there", "right beyond")
table(rows, heads)


# %% tags=["joint"]
@torch.no_grad()
def joint_effect(network: nn.Module, d: int) -> float:
    """S(++) + S(--) - S(+-) - S(-+) for dots d columns apart, over the largest S.

    S is the score of "same" less that of "different", here in double precision.
    """
    x = torch.zeros(4, 1, 5, 16).double()
    x[:, 0, 2, 4] = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    x[:, 0, 2, 4 + d] = torch.tensor([1.0, -1.0, -1.0, 1.0]).double()
    scores = copy.deepcopy(network).cpu().double()(x)
    s = scores[:, 1] - scores[:, 0]
    return ((s[0] + s[1] - s[2] - s[3]).abs() / s.abs().max()).item()


# %% tags=["joint-claims"]
inside = []
outside = []
for (name, _), network in networks.items():
    far = sum(size - 1 for size in STACKS[name])
    effects = [joint_effect(network, d) for d in DISTANCES]
    inside += effects[:far]
    outside += effects[far:]
claim(max(outside) < 1e-12, "beyond its field a network adds up what each dot gives")
claim(min(inside) > 0.1, "within its field a network does not add up the dots")
record("joint.outside", max(outside))
record("joint.inside", min(inside))

# %% [markdown]
# ## The field of any unit
#
# Behind a pool neighbouring units are two pixels apart, and a layer adds twice as much.


# %% tags=["fields"]
def fields(layers) -> list[int]:
    """Side of the receptive field behind each layer, given as (kernel, stride)."""
    field = 1
    step = 1  # pixels of the image between neighbouring units
    found = []
    for kernel, stride in layers:
        field += (kernel - 1) * step
        step *= stride
        found.append(field)
    return found


# %% tags=["first-fields"]
layers = [(3, 1), (3, 1), (2, 2), (3, 1), (3, 1), (2, 2)]
names = ["3×3", "3×3", "pool", "3×3", "3×3", "pool"]
steps = [1, 1, 1, 2, 2, 2]  # of the layer's input
rows = []
before = 1
for name, (kernel, _), step, field in zip(names, layers, steps, fields(layers)):
    rows.append((name, f"({kernel} − 1) · {step}", field))
    claim(field == before + (kernel - 1) * step, "a layer adds what the table says")
    before = field
claim(fields(layers) == [3, 5, 6, 10, 14, 16], "the fields of the first two stages")
table(rows, ("layer", "adds", "field"))

# %% [markdown]
# ## The networks
#
# Five stages of layers of one width, each with a maximum over 2x2 behind it, and three
# linear layers. What differs between the configurations is one row of a table.


# %% tags=["stage"]
class Stage(nn.Module):
    """Layers of one width, then a maximum over 2x2 (table 1)."""

    def __init__(self, c_in: int, c_out: int, *, sizes, layer=ConvRelu):
        super().__init__()
        first = layer(c_in, c_out, size=sizes[0])
        later = [layer(c_out, c_out, size=size) for size in sizes[1:]]
        self.layers = nn.Sequential(first, *later)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / 2, W / 2)
        return self.pool(self.layers(x))


# %% tags=["stage-shape"]
Stage(64, 128, sizes=(3, 3))(torch.randn(2, 64, 112, 112)).shape


# %% tags=["classifier"]
class Classifier(nn.Module):
    """Three linear layers; training drops half of the hidden values (section 3.1)."""

    def __init__(self, c_in: int, num_classes: int, *, hidden: int):
        super().__init__()
        self.hidden1 = nn.Linear(c_in, hidden)
        self.hidden2 = nn.Linear(hidden, hidden)
        self.scores = nn.Linear(hidden, num_classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)  # (B, C, H, W) -> (B, C H W)
        x = self.dropout(torch.relu(self.hidden1(x)))  # (B, hidden)
        x = self.dropout(torch.relu(self.hidden2(x)))  # (B, hidden)
        return self.scores(x)  # (B, num_classes)


# %% tags=["network"]
class VGG(nn.Module):
    """Five stages and the classifier (table 1): (B, 3, H, W) -> (B, num_classes).

    The mean pool does nothing at 224x224; it lets other sizes in, as in torchvision.
    """

    def __init__(
        self, sizes, *, layer=ConvRelu, width=64, hidden=4096, num_classes=1000
    ):
        super().__init__()
        w = width
        self.stage1 = Stage(3, w, sizes=sizes[0], layer=layer)
        self.stage2 = Stage(w, 2 * w, sizes=sizes[1], layer=layer)
        self.stage3 = Stage(2 * w, 4 * w, sizes=sizes[2], layer=layer)
        self.stage4 = Stage(4 * w, 8 * w, sizes=sizes[3], layer=layer)
        self.stage5 = Stage(8 * w, 8 * w, sizes=sizes[4], layer=layer)
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.classifier = Classifier(8 * w * 7 * 7, num_classes, hidden=hidden)
        he_init(self)

    def maps(self, x: Tensor) -> Tensor:
        x = self.stage1(x)  # (B, 64, H / 2, W / 2)
        x = self.stage2(x)  # (B, 128, H / 4, W / 4)
        x = self.stage3(x)  # (B, 256, H / 8, W / 8)
        x = self.stage4(x)  # (B, 512, H / 16, W / 16)
        return self.stage5(x)  # (B, 512, H / 32, W / 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.maps(x)))


# %% tags=["table"]
SIZES = {  # kernel sizes of the five stages (table 1)
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}


def vgg16(layer=ConvRelu) -> VGG:
    return VGG(SIZES["D"], layer=layer)


# %% tags=["norm-layer"]
class ConvNormRelu(nn.Module):
    """Batch norm before the ReLU, as in torchvision, which keeps the bias too."""

    def __init__(self, c_in: int, c_out: int, *, size: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, size, padding=size // 2)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H, W)
        return torch.relu(self.norm(self.conv(x)))


# %% [markdown]
# ## Counted
#
# On torch's meta device a tensor has a shape and no values: a network can be counted
# without computing anything.

# %% tags=["drawn"] alt="VGG-16 from top to bottom, with output shape and parameters at the right: an input of 3x224x224, five stages whose maps shrink from 112 to 7 pixels a side while the channels grow from 64 to 512, and a classifier with by far the most parameters."
with torch.device("meta"):
    network = vgg16()
    image = torch.empty(1, 3, 224, 224)
drawing.draw(network, image)


# %% tags=["values"]
def values(part: nn.Module, x: Tensor) -> int:
    """How many numbers the convolutions and linear layers of a part give."""
    counts = []

    def note(layer, inputs, output):
        counts.append(output.numel())

    layers = [m for m in part.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    part(x)
    for handle in handles:
        handle.remove()
    return sum(counts)


# %% tags=["stages"]
shares = {}
x = image
for name, part in network.named_children():
    if name != "pool":
        costs = (counting.parameters(part), values(part, x), counting.macs(part, x))
        shares[name] = torch.tensor(costs, dtype=torch.double)
        x = part(x)
total = sum(shares.values())
shares = {name: costs / total for name, costs in shares.items()}
early = shares["stage1"] + shares["stage2"]
middle = shares["stage3"] + shares["stage4"]
record("middle.macs", middle[2])
record("values.mebibytes", total[1] * 4 / 2**20)
for k, kind in enumerate(("parameters", "values", "macs")):
    record(f"classifier.{kind}", shares["classifier"][k])
    record(f"early.{kind}", early[k])

# %% tags=["shares-claims"]
parameters, numbers, macs = torch.stack(list(shares.values())).T
claim((numbers[:-1] > numbers[1:]).all(), "each part gives fewer values than the last")
claim(0.4 < numbers[0] < 0.5, "nearly half of the values are in stage 1")
claim(0.55 < macs[2:4].sum() < 0.65, "about 60% of the work are in stages 3 and 4")
claim(0.85 < parameters[5] < 0.9, "the classifier has nearly nine tenths")
claim(numbers[5] < 0.01 and macs[5] < 0.01, "it has few values and little work")

# %% tags=["shares-figure"] alt="Six groups of three horizontal bars, the five stages and the classifier of VGG-16. The output values shrink from group to group, and nearly half of them are in stage 1. About 60% of the MACs are in stages 3 and 4. The classifier has nearly nine tenths of the parameters, close to no values and almost no MACs."
_, axes = plt.subplots(figsize=(5, 4))
rows = torch.arange(6)
for k in range(3):
    percent = [100 * costs[k] for costs in shares.values()]
    axes.barh(rows + 0.27 * (k - 1), percent, 0.25, color=plots.COLOURS[k])
axes.text(62, 4.4, "parameters", va="center", color=plots.COLOURS[0])
axes.text(
    100 * shares["stage1"][1] + 1,
    0,
    "output values",
    va="center",
    color=plots.COLOURS[1],
)
axes.text(
    100 * shares["stage3"][2] + 1, 2.27, "MACs", va="center", color=plots.COLOURS[2]
)
axes.set(yticks=rows, yticklabels=list(shares), xlabel="share in %", xlim=(0, 100))
axes.invert_yaxis()


# %% tags=["field-check"]
def windows(sizes) -> list[tuple[int, int]]:
    """Kernel and stride of each layer of a configuration, the pools too."""
    found = []
    for stage in sizes:
        found += [(size, 1) for size in stage]
        found.append((2, 2))
    return found


def one_channel(sizes) -> nn.Sequential:
    """The stages with one channel, and means for maxima, which pick one of four."""
    stages = [Stage(1, 1, sizes=sizes_of_stage) for sizes_of_stage in sizes]
    for stage in stages:
        stage.pool = nn.AvgPool2d(2)
    return nn.Sequential(*stages)


# %% tags=["count"]
rows = []
last_field = {}
found_parameters = {}
for name, sizes in SIZES.items():
    with torch.device("meta"):
        network = VGG(sizes)
    last_field[name] = fields(windows(sizes))[-1]
    depth = sum(len(stage) for stage in sizes) + 3
    parameters = counting.parameters(network)
    found_parameters[name] = parameters
    giga = counting.macs(network, image) / 1e9
    record(f"{name}.parameters", parameters)
    record(f"{name}.gmacs", giga)
    record(f"{name}.field", last_field[name])
    rows.append((name, depth, parameters, f"{giga:.3f}", last_field[name]))
heads = ("configuration", "layers", "parameters", "G MACs", "field")
table(rows, heads)

# %% tags=["count-claims"]
network = vgg16().to("meta")
record("vgg16.parameters", counting.parameters(network))
record("vgg16.macs", counting.macs(network, image))
claim(found_parameters["D"] > found_parameters["C"], "D has more parameters than C")
claim(last_field["C"] == last_field["B"], "C sees as far as B")
claim(last_field["D"] > last_field["C"], "D sees further than C")
for name, sizes in SIZES.items():
    seen = (paths(one_channel(sizes), 301) != 0).any(0).sum().item()
    words = f"{name}: as many pixels a side have a gradient as the formula gives"
    claim(seen == last_field[name], words)

# %% [markdown]
# ## Equal to torchvision
#
# Drawing 138 million weights takes seconds, so a network is made without values first
# and filled once. Scales, statistics and biases are random in the references: zeros and
# ones would hide a mistake.


# %% tags=["without-values"]
def without_values(build, *arguments, **how) -> nn.Module:
    """A network on the CPU whose tensors hold nothing in particular yet."""
    with torch.device("meta"):
        network = build(*arguments, **how)
    return network.to_empty(device="cpu")


# %% tags=["equal"]
CASES = (
    ("D", ConvRelu, torchvision.models.vgg16),
    ("D with batch norm", ConvNormRelu, torchvision.models.vgg16_bn),
)
rows = []
deviations = []
for name, layer, reference in CASES:
    seed(0)
    theirs = without_values(reference)
    ours = without_values(vgg16, layer)
    he_init(theirs)
    checks.randomise_norms(theirs)
    for part in theirs.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.normal_(part.bias, 0, 0.1)
    checks.transplant(theirs, ours)
    deviations.append(checks.same_outputs(ours, theirs, torch.randn(2, 3, 40, 75)))
    rows.append((name, "torchvision", f"{deviations[-1]:.1e}"))
record("deviation", max(deviations))
table(rows, ("network", "reference", "largest difference"))

# %% [markdown]
# ## Pairs of 3x3 against single 5x5
#
# Section 4.1 of the paper replaces each pair of 3x3 layers of configuration B by one
# 5x5 layer. We do it with a narrow network of three stages on digits of 24x24.


# %% tags=["digit-network"]
class DigitNetwork(nn.Module):
    """A narrow VGG of three equal stages: (B, 1, 24, 24) -> (B, 10)."""

    def __init__(self, sizes, *, width: int = 8):
        super().__init__()
        self.stage1 = Stage(1, width, sizes=sizes)
        self.stage2 = Stage(width, 2 * width, sizes=sizes)
        self.stage3 = Stage(2 * width, 4 * width, sizes=sizes)
        self.classifier = Classifier(4 * width * 3 * 3, 10, hidden=128)
        he_init(self)

    def maps(self, x: Tensor) -> Tensor:
        x = self.stage1(x)  # (B, 8, H / 2, W / 2)
        x = self.stage2(x)  # (B, 16, H / 4, W / 4)
        return self.stage3(x)  # (B, 32, H / 8, W / 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.maps(x))


# %% tags=["data"]
IMAGES = 900 if PROFILE == "sample" else 20_000
data = images.digits(size=24)
train_part, validation, test = images.standardised(data, first=IMAGES)
record("images", len(train_part[1]))
parts = {"train": train_part, "validation": validation, "test": test}
table(
    [(name, *x.shape) for name, (x, _) in parts.items()], ("part", "N", "C", "H", "W")
)

# %% tags=["digits-run"]
EPOCHS = 6
BATCH = 50
DIGIT_STAGES = {"two 3×3": (3, 3), "one 5×5": (5,)}
readers = {}
losses = {}
for name, sizes in DIGIT_STAGES.items():
    for number in SEEDS:
        seed(number)
        network = DigitNetwork(sizes).to(device)
        losses[name, number] = train(
            network, train_part, epochs=EPOCHS, batch=BATCH, rate=0.003
        )
        readers[name, number] = network

# %% tags=["digits-result"]
rows = []
scores = {}
for name in DIGIT_STAGES:
    last = [losses[name, number][-1] for number in SEEDS]
    scores[name] = [training.evaluate(readers[name, n], test) for n in SEEDS]
    record_spread(f"digits.{name[-1]}", scores[name])
    parameters = counting.parameters(readers[name, 0])
    rows.append((name, parameters, spread(last, ".2f"), spread(scores[name], ".1%")))
pair, single = scores.values()
claim(max(min(pair), min(single)) <= min(max(pair), max(single)), "the ranges touch")
claim(rows[0][1] > rows[1][1], "here the pairs have more parameters")
ends = [loss[-1] for loss in losses.values()]
claim(min(ends) > 0.5, "the training losses have not come down yet")
record("digits.loss.least", min(ends))
record("digits.loss.most", max(ends))
record("digit.steps", EPOCHS * math.ceil(IMAGES / BATCH))
table(rows, ("each stage", "parameters", "training loss", "test accuracy"))

# %% [markdown]
# ## The scale of the signal
#
# The paper draws first weights of variance 0.01. We follow the size of what the
# convolutions give through the sixteen of configuration E.


# %% tags=["scales"]
def normal_init(network: nn.Module, deviation: float) -> None:
    """Normal weights of one deviation everywhere, biases zero (section 3.1)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, 0, deviation)
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def scales(network: VGG, x: Tensor) -> Tensor:
    """Root mean square of what each layer of the five stages gives, in order."""
    found = []
    stages = (network.stage1, network.stage2, network.stage3, network.stage4)
    for stage in (*stages, network.stage5):
        for layer in stage.layers:
            x = layer(x)
            found.append(x.square().mean().sqrt())
        x = stage.pool(x)
    return torch.stack(found).cpu()


# %% tags=["scales-run"]
STARTS = {
    "variance 0.01": lambda network: normal_init(network, 0.1),
    "deviation 0.01": lambda network: normal_init(network, 0.01),
    "variance 2 / fan-out": he_init,
}
photograph = images.photograph()
x = (photograph - photograph.mean()) / photograph.std()
x = x[..., ::4, ::4]
record("scale.side", x.shape[-1])
followed = {}
for name, start in STARTS.items():
    for depth in ("A", "E"):
        for number in SEEDS:
            seed(number)
            network = without_values(VGG, SIZES[depth], hidden=8)
            start(network)
            followed[name, depth, number] = scales(network, x)

# %% tags=["scales-figure"] alt="Size of the signal behind each of sixteen layers, on a logarithmic axis, for three ways to draw the first weights; the bands over three seeds are hardly wider than the lines. With variance 0.01 the line rises to above ten million, with a standard deviation of 0.01 it falls below 1e-8, with variance 2 / fan-out it stays between 0.04 and 0.3."
_, axes = plt.subplots()
ends = {}
places = range(1, 17)
for name, colour in zip(STARTS, plots.COLOURS):
    runs = torch.stack([followed[name, "E", number] for number in SEEDS])
    ends[name] = plots.seed_band(axes, places, runs, colour)
axes.set(xlabel="layer", ylabel="size of the signal", yscale="log", xticks=(1, 8, 16))
plots.label_ends(axes, ends)

# %% tags=["scales-claims"]
last = {}
for name, key in zip(STARTS, ("variance", "deviation", "he")):
    for depth in ("A", "E"):
        runs = torch.stack([followed[name, depth, number] for number in SEEDS])
        last[key, depth] = runs[:, -1]
        record(f"scale.{key}.{depth}", runs[:, -1].mean())
        words = f"{name}, {depth}: seeds differ by less than a factor of 2.5"
        claim((runs.amax(0) < 2.5 * runs.amin(0)).all(), words)
        grows = (runs.diff() > 0).all()
        falls = (runs.diff() < 0).all()
        claim(grows or key != "variance", "with variance 0.01 each layer gives more")
        claim(falls or key != "deviation", "with deviation 0.01 each layer gives less")
        within = runs.min() > 0.04 and runs.max() < 0.3
        claim(within or key != "he", "with He's weights the signal is 0.04 to 0.3")
        record(f"scale.{key}.{depth}.least", runs.min())
        record(f"scale.{key}.{depth}.most", runs.max())
claim(last["variance", "E"].min() > 1e7, "variance 0.01: above ten million behind E")
claim(last["deviation", "E"].max() < 1e-8, "deviation 0.01: below 1e-8 behind E")
claim(last["variance", "A"].max() < 4000, "variance 0.01: some thousand behind A")

# %% [markdown]
# ## Look inside
#
# What one unit behind the last stage of a configuration sees of a photograph: the more
# paths lead from a pixel, the brighter it is.


# %% tags=["core"]
def core(found: Tensor) -> int:
    """Side of the middle square from which half of the paths come."""
    share = found.sum(0).cumsum(0) / found.sum()
    edge = (1 - math.sqrt(0.5)) / 2  # left out at each side
    return ((share > edge) & (share < 1 - edge)).sum().item()


# %% tags=["photograph"] alt="Three times the portrait of a woman in uniform as one unit in the middle sees it: bright at her face in the middle, fading to the edge of the field, black outside. The lit part is larger for D than for A and C."
grey = photograph[0].mean(0)
lit = []
titles = []
for name in ("A", "C", "D"):
    found = paths(one_channel(SIZES[name]), 224).float()
    field = last_field[name]
    claim(
        (found > 0).any(0).sum() == field,
        f"{name} sees {field} columns of the photograph",
    )
    lit.append(grey * (found / found.max()) ** 0.25)
    titles.append(f"{name}: {last_field[name]} pixels")
    record(f"core.{name}", core(found))
sides = [last_field[name] for name in ("A", "C", "D")]
claim(sides[2] > max(sides[:2]), "the field of D is the largest of the three")
plots.image_grid(lit, titles, columns=3, scale=1.65)

# %% [markdown]
# ## Dense evaluation
#
# A linear layer on a map of 7x7 is a convolution with a kernel of 7x7, the next ones
# are convolutions of 1x1 (section 3.2). So rewritten the network takes a larger image
# and gives a map of scores.


# %% tags=["dense"]
@torch.no_grad()
def as_convolution(linear: nn.Linear, side: int) -> nn.Conv2d:
    """A linear layer over a map of side x side as a convolution with such a kernel."""
    c_in = linear.in_features // side**2
    conv = nn.Conv2d(c_in, linear.out_features, side, device=linear.weight.device)
    conv.weight.copy_(linear.weight.unflatten(1, (c_in, side, side)))
    conv.bias.copy_(linear.bias)
    return conv


class DenseClassifier(nn.Module):
    """A classifier at every place of a larger map: (B, C, H, W) -> (B, K, h, w)."""

    def __init__(self, classifier: Classifier, side: int):
        super().__init__()
        self.hidden1 = as_convolution(classifier.hidden1, side)
        self.hidden2 = as_convolution(classifier.hidden2, 1)
        self.scores = as_convolution(classifier.scores, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.hidden1(x))  # (B, hidden, H - side + 1, W - side + 1)
        x = torch.relu(self.hidden2(x))
        return self.scores(x)


# %% tags=["dense-check"]
seed(0)
network = VGG(SIZES["D"], width=8, hidden=64, num_classes=10).eval()
with torch.no_grad():
    maps = network.maps(torch.randn(1, 3, 256, 288))  # 8x9
    dense_scores = DenseClassifier(network.classifier, 7)(maps)
    for i in range(2):
        for j in range(3):
            window = network.classifier(maps[..., i : i + 7, j : j + 7])
            off = checks.deviation(dense_scores[..., i, j], window)
            claim(off < 1e-5, f"the score at {i}, {j} is that of the window there")
dense_scores.shape

# %% [markdown]
# ## What we saw
#
# - Two dots are compared up to the distance that fits in the field, and not beyond:
#   three 3x3 layers see as far as one 7x7 and have fewer weights.
# - The parameters of VGG-16 are in its first linear layer, the numbers to keep in its
#   first stages, the work in between.
# - With weights of one variance in all layers the signal grows or dies out through
#   sixteen layers; with variance 2 / fan-out it stays within a factor of ten.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
parameters = 0
c_in = 3
for c_out, sizes in zip((64, 128, 256, 512, 512), SIZES["C"]):
    for size in sizes:
        parameters += size * size * c_in * c_out + c_out
        c_in = c_out
for c_in, c_out in ((512 * 7 * 7, 4096), (4096, 4096), (4096, 1000)):
    parameters += c_in * c_out + c_out
with torch.device("meta"):
    counted = counting.parameters(VGG(SIZES["C"]))
claim(parameters == counted, "the sum by hand is the number of parameters of C")
table([(parameters, counted)], ("by hand", "counted"))

# %% tags=["solution-2"]
pointwise = by_distance(train_on_dots((3, 1, 1), 0), *test_dots)
claim(
    min(pointwise[:2]) > 0.85, "3x3, 1x1, 1x1: the dots are told up to 2 columns apart"
)
claim(max(pointwise[2:]) <= 0.75, "3x3, 1x1, 1x1: no more than three quarters beyond")
table([[f"{value:.0%}" for value in pointwise]], [str(d) for d in DISTANCES])


# %% tags=["solution-3"]
class PooledVGG(VGG):
    """VGG with the mean over each map and one linear layer for its classifier."""

    def __init__(self, sizes):
        super().__init__(sizes)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(512, 1000))


with torch.device("meta"):
    pooled = PooledVGG(SIZES["D"])
    macs = counting.macs(pooled, torch.empty(1, 3, 224, 224))
record("pooled.parameters", counting.parameters(pooled))
record("pooled.gmacs", macs / 1e9)
table([(counting.parameters(pooled), f"{macs / 1e9:.3f}")], ("parameters", "G MACs"))

# %% tags=["solution-4"]
reader = readers["two 3×3", 0]
x, y = (part[:300] for part in test)
strips = torch.cat(x.unflatten(0, (100, 3)).unbind(1), dim=-1)  # (100, 1, 24, 72)
with torch.no_grad():
    maps = reader.maps(strips.to(device))  # (100, 32, 3, 9)
    strip_scores = DenseClassifier(reader.classifier, 3)(maps).cpu()  # (100, 10, 1, 7)
answers = strip_scores[:, :, 0, ::3].argmax(1).flatten()
in_strips = (answers == y).double().mean()
alone = training.evaluate(reader, (x, y))
record("strip.changed", (answers != training.predict(reader, x).argmax(1)).sum())
record("strip.dense", in_strips)
record("strip.alone", alone)
table([(f"{alone:.1%}", f"{in_strips:.1%}")], ("digits alone", "digits in strips"))
