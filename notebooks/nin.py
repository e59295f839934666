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
# # Network in Network
#
# The mlpconv layer and global average pooling: the sizes for ImageNet and CIFAR-10 counted and compared with
# multilayer perceptrons on patches; then pooling against a fully connected layer, and class maps, on digits.
# The text to it is the [chapter](../chapters/nin.rst), the paper is
# [Lin, Chen and Yan 2014](https://arxiv.org/abs/1312.4400).

# %%
from collections import OrderedDict

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import PROFILE, claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, drawing, images, plots, tracing, training

# %% [markdown]
# ## The idea
#
# A convolution puts each window through one linear filter and a ReLU per output channel; an mlpconv layer puts it
# through a small multilayer perceptron. In both, the same weights are used at each place.


# %% tags=["drawing"]
def draw_window(axes, title: str, layers: tuple[int, ...]) -> None:
    """Draw a window of 3x3 pixels at the left and layers of units after it, all connected."""
    left = [(0, 4 - i) for i in range(9)]
    for x, y in left:
        corner = (x - 0.35, y - 0.35)
        axes.add_patch(
            plt.Rectangle(corner, 0.7, 0.7, fill=False, edgecolor=plots.QUIET)
        )
    for depth, units in enumerate(layers, start=1):
        u, last = 9 * depth / len(layers), depth == len(layers)
        right = [(u, 1.6 * ((units - 1) / 2 - i)) for i in range(units)]
        for x, y in left:
            for u, v in right:
                axes.plot([x + 0.4, u - 0.45], [y, v], color=plots.QUIET, linewidth=0.5)
        colour = plots.COLOURS[1 if last else 0]
        for u, v in right:
            axes.add_patch(
                plt.Circle((u, v), 0.45, facecolor=(colour, 0.25), edgecolor=colour)
            )
        left = right
    axes.text(-0.4, -5.7, "window", fontsize=11)
    axes.text(9.5, -5.7, "one pixel", ha="right", fontsize=11)
    axes.set(xlim=(-1, 10.1), ylim=(-6.1, 4.6), aspect="equal", title=title)
    axes.axis("off")


# %% tags=["idea-figure"] alt="Two drawings of a window of nine pixels that gives three output channels of one pixel. At the left each pixel of the window is connected to each of the three outputs: a convolution. At the right it is connected to four units, these to four others, and these to the three outputs: an mlpconv layer."
_, (first, second) = plt.subplots(1, 2, figsize=(5, 2.8))
draw_window(first, "convolution", (3,))
draw_window(second, "mlpconv", (4, 4, 3))

# %% [markdown]
# ## The layer
#
# Behind the first convolution, each further layer of the perceptron reads the channels of one pixel: a 1x1
# convolution.


# %% tags=["mlpconv"]
class MlpConv(nn.Module):
    """Slide a perceptron over the map: a convolution, then 1x1 convolutions, a ReLU behind each.

    Lin et al. 2014, section 3.1 and equation 2. widths: units of each layer, the last are c_out.
    """

    def __init__(
        self,
        c_in: int,
        widths: tuple[int, ...],
        size: int,
        stride: int = 1,
        padding: int = 0,
    ):
        super().__init__()
        layers = [nn.Conv2d(c_in, widths[0], size, stride, padding), nn.ReLU()]
        for before, after in zip(widths, widths[1:]):
            layers += [nn.Conv2d(before, after, 1), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, widths[-1], H', W')
        return self.layers(x)


# %% tags=["mlpconv-shape"]
MlpConv(3, (192, 160, 96), size=5, padding=2)(torch.randn(2, 3, 32, 32)).shape


# %% tags=["patch-mlp"]
class PatchMlp(nn.Module):
    """The same layer without a convolution: each window goes through linear layers."""

    def __init__(self, block: MlpConv):
        super().__init__()
        self.first = block.layers[0]  # for size, stride and padding
        self.mlp = nn.Sequential()
        for conv in (layer for layer in block.layers if isinstance(layer, nn.Conv2d)):
            linear = nn.Linear(conv.weight[0].numel(), conv.out_channels)
            linear.load_state_dict(
                {"weight": conv.weight.flatten(1), "bias": conv.bias}
            )
            self.mlp.extend([linear, nn.ReLU()])

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        k, s, p = (
            getattr(self.first, n)[0] for n in ("kernel_size", "stride", "padding")
        )
        windows = F.unfold(x, k, stride=s, padding=p).mT  # (B, H' * W', C * k * k)
        y = self.mlp(windows).mT  # (B, c_out, H' * W')
        return y.unflatten(2, ((H + 2 * p - k) // s + 1, (W + 2 * p - k) // s + 1))


# %% [markdown]
# ## What one filter cannot do
#
# The exclusive or of two neighbours: with weights set by hand, an mlpconv layer of two hidden units computes it
# exactly. A filter with a ReLU does not, whatever its weights.


# %% tags=["xor"]
@torch.no_grad()
def exclusive_or() -> MlpConv:
    """relu(relu(a + b) - 2 relu(a + b - 1)) of each pixel a and its right neighbour b."""
    block = MlpConv(1, (2, 1), size=3, padding=1)
    first, second = block.layers[0], block.layers[2]
    first.weight.zero_()
    first.weight[:, 0, 1, 1:] = 1
    first.bias.copy_(torch.tensor([0.0, -1.0]))
    second.weight.copy_(torch.tensor([1.0, -2.0]).view(1, 2, 1, 1))
    second.bias.zero_()
    return block


# %% tags=["xor-limit"]
seed(0)
x = torch.randint(2, (4, 1, 12, 12)).float()
neighbour = F.pad(x, (0, 1))[..., 1:]  # behind the border stand zeros
wrong = (exclusive_or()(x) != (x != neighbour).float()).sum().item()
claim(wrong == 0, "two layers of one pixel give the exclusive or at every place")
record("xor.pixels", x.numel())
wrong

# %% [markdown]
# ## The network
#
# A network is a list of such layers with pooling between them. The last layer has a map per class; the head turns
# each map into one number.


# %% tags=["network"]
def average() -> nn.Sequential:
    """Global average pooling: the mean of each map; Lin et al. 2014, section 3.2."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def nin(c_in: int, blocks, head: nn.Module, dropout: float = 0.5) -> nn.Sequential:
    """mlpconv layers with max pooling and dropout between them, then the head.

    (B, c_in, H, W) -> (B, K). blocks: (widths, size, stride, padding) of each mlpconv layer.
    Weights start with variance 2 / fan_in, biases at 0.
    """
    parts = OrderedDict()
    for i, (widths, *window) in enumerate(blocks, start=1):
        parts[f"mlpconv{i}"] = MlpConv(c_in, widths, *window)
        if i < len(blocks):
            pool = nn.MaxPool2d(
                3, 2, ceil_mode=True
            )  # the last window may hang over the border
            parts[f"pool{i}"] = nn.Sequential(pool, nn.Dropout(dropout))
        c_in = widths[-1]
    network = nn.Sequential(parts | {"head": head})
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return network


# %% tags=["sizes"]
IMAGENET = (
    ((96, 96, 96), 11, 4, 0),
    ((256, 256, 256), 5, 1, 2),
    ((384, 384, 384), 3, 1, 1),
    ((1024, 1024, 1000), 3, 1, 1),
)
CIFAR10 = (
    ((192, 160, 96), 5, 1, 2),
    ((192, 192, 192), 5, 1, 2),
    ((192, 192, 10), 3, 1, 1),
)


def nin_imagenet() -> nn.Sequential:
    return nin(3, IMAGENET, average())


def nin_cifar10() -> nn.Sequential:
    return nin(3, CIFAR10, average())


# %% [markdown]
# ## Counting
#
# On the meta device; MACs of one image of 224x224, or of 32x32 for CIFAR-10, without biases and pooling.

# %% tags=["count"]
rows = []
for build, side in ((nin_imagenet, 224), (nin_imagenet, 227), (nin_cifar10, 32)):
    with torch.device("meta"):
        network, x = build(), torch.empty(1, 3, side, side)
    parameters, macs = counting.parameters(network), counting.macs(network, x)
    rows.append((build.__name__, f"{side}×{side}", parameters, macs))
    if side != 227:
        name = build.__name__.removeprefix("nin_")
        record(f"{name}.parameters", parameters)
        record(f"{name}.macs", macs)
table(rows, ("network", "input", "parameters", "MACs"))

# %% tags=["stages"]
with torch.device("meta"):
    network, x = nin_imagenet(), torch.empty(1, 3, 224, 224)
rows = []
for name, shape, parameters in tracing.stages(network, x):
    rows.append((name, "×".join(map(str, shape)), parameters))
    record(f"{name}.parameters", parameters)
first = [
    counting.parameters(block.layers[0])
    for block in network
    if isinstance(block, MlpConv)
]
record("one_by_one.share", 1 - sum(first) / counting.parameters(network))
maps = 1000 * 6 * 6  # values in the last maps
record("linear.parameters", maps * 1000 + 1000)
record("imagenet.mib", counting.parameters(network) * 4 / 2**20)  # four bytes each
table(rows, ("stage", "output", "parameters"))

# %% tags=["drawn"] alt="Network in Network for ImageNet from top to bottom, with output shape and parameters at the right: an input of 3x224x224, four mlpconv layers with a pooling after each of the first three, maps that shrink from 54 to 6 pixels a side while the channels grow from 96 to 1000, and the mean of each map at the end, without parameters."
drawing.draw(network, x)


# %% [markdown]
# ## Equal to perceptrons on patches, and to a list of layers
#
# Two other forms with the same weights: one without convolutions, in which each window is cut out and goes through
# linear layers, and one that is a list of torch's layers.


# %% tags=["unfolded"]
def unfolded(network: nn.Sequential) -> nn.Sequential:
    """The network with each mlpconv layer as a perceptron on patches."""
    return nn.Sequential(
        *[PatchMlp(m) if isinstance(m, MlpConv) else m for m in network]
    )


# %% tags=["plain"]
def plain_cifar10() -> nn.Sequential:
    """The CIFAR-10 network as a list of layers."""
    return nn.Sequential(
        *(nn.Conv2d(3, 192, 5, padding=2), nn.ReLU()),
        *(nn.Conv2d(192, 160, 1), nn.ReLU(), nn.Conv2d(160, 96, 1), nn.ReLU()),
        *(nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(0.5)),
        *(nn.Conv2d(96, 192, 5, padding=2), nn.ReLU()),
        *(nn.Conv2d(192, 192, 1), nn.ReLU(), nn.Conv2d(192, 192, 1), nn.ReLU()),
        *(nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(0.5)),
        *(nn.Conv2d(192, 192, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(192, 192, 1), nn.ReLU(), nn.Conv2d(192, 10, 1), nn.ReLU()),
        *(nn.AvgPool2d(8), nn.Flatten()),
    )


# %% tags=["randomise"]
@torch.no_grad()
def randomise_biases(network: nn.Module) -> nn.Module:
    """Biases start at 0 and would hide one that is left out or changes place: draw them."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0, 0.1)
    return network


# %% tags=["equal"]
seed(0)
rows, deviations = [], []
for build, side in ((nin_imagenet, 99), (nin_cifar10, 32)):
    network, x = randomise_biases(build()), torch.randn(2, 3, side, side)
    deviations.append(checks.same_outputs(network, unfolded(network), x))
    rows.append((build.__name__, "perceptrons on patches", f"{deviations[-1]:.1e}"))
plain = plain_cifar10()
checks.transplant(network, plain)
deviations.append(checks.same_outputs(network, plain, x))
record("deviation", max(deviations))
rows.append(("nin_cifar10", "list of layers", f"{deviations[-1]:.1e}"))
table(rows, ("network", "reference", "largest relative deviation"))

# %% [markdown]
# ## Pooling is a linear layer with fixed weights
#
# A fully connected layer reads each value of each map. Give it the weight 1 / (H W) where a value belongs to the
# map of the class, 0 elsewhere and no bias: that is global average pooling.


# %% tags=["fixed-linear"]
@torch.no_grad()
def pooling_as_linear(K: int, H: int, W: int) -> nn.Sequential:
    """A fully connected head that equals the mean of each of K maps; Lin et al. 2014, section 4.6."""
    linear = nn.Linear(K * H * W, K)
    linear.weight.copy_(torch.eye(K).repeat_interleave(H * W, dim=1) / (H * W))
    linear.bias.zero_()
    return nn.Sequential(nn.Flatten(), linear)


# %% tags=["fixed-limit"]
seed(0)
maps = torch.randn(4, 10, 5, 5)
deviation = checks.same_outputs(pooling_as_linear(10, 5, 5), average(), maps)
record("pooling.deviation", deviation)
deviation

# %% [markdown]
# ## Three heads on digits
#
# A narrow network of three mlpconv layers ends in ten maps of 5x5. Behind them stands a fully connected layer, the
# same with dropout before it, or global average pooling: the three rows of table 5. All else is the same.


# %% tags=["data"]
IMAGES = 400 if PROFILE == "sample" else 20_000
data = images.digits(size=20)
mean, std = data.train[0].mean(), data.train[0].std()
train_part, validation, test = [((x - mean) / std, y) for x, y in data[:3]]
train_part = train_part[0][:IMAGES], train_part[1][:IMAGES]
record("images", len(train_part[1]))
record("held_out", len(test[1]))
rows = [(n, *p[0].shape) for n, p in zip(data._fields, (train_part, validation, test))]
table(rows, ("part", "N", "C", "H", "W"))


# %% tags=["heads"]
DIGITS = (((16, 12, 8), 5, 1, 2), ((24, 24, 16), 5, 1, 2), ((24, 24, 10), 3, 1, 1))


def connected(dropout: float = 0.0) -> nn.Sequential:
    """A fully connected layer on all values of ten maps of 5x5."""
    return nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(10 * 5 * 5, 10))


def connected_dropout() -> nn.Sequential:
    return connected(0.5)


def digit_network(head, last_relu: bool = False) -> nn.Sequential:
    """Three mlpconv layers for digits of 20x20 and a head, (B, 1, 20, 20) -> (B, 10).

    Without the last ReLU a class map can be negative, and no class is stuck at zero (exercise 3).
    """
    network = nin(1, DIGITS, nn.Identity(), dropout=0.0)
    if not last_relu:
        network.mlpconv3.layers = network.mlpconv3.layers[:-1]
    network.head = head()
    return network


# %% tags=["head-parameters"]
rows = [
    (build.__name__, counting.parameters(build())) for build in (connected, average)
]
record("connected.parameters", rows[0][1])
record("digits.parameters", counting.parameters(digit_network(average)))
table(rows, ("head", "parameters"))


# %% tags=["moved"]
def moved(x: Tensor, pixels: int) -> Tensor:
    """Images (B, C, H, W) moved right and down, or left and up if negative; background comes in."""
    H, W, margin = *x.shape[2:], abs(pixels)
    wide, start = F.pad(x, [margin] * 4, value=x.min().item()), margin - pixels
    return wide[..., start : start + H, start : start + W]


# %% tags=["train"]
EPOCHS = 16 if PROFILE == "sample" else 4
BATCH = 10
SEEDS = (0, 1, 2)
SHIFTS = (-3, -2, -1, 0, 1, 2, 3)
HEADS = {  # and the colour in all figures
    "connected": (connected, plots.COLOURS[1]),
    "with dropout": (connected_dropout, plots.COLOURS[2]),
    "average": (average, plots.COLOURS[0]),
}


def fresh(name: str, number: int, last_relu: bool = False) -> nn.Sequential:
    """The network with one of the heads; for one seed the bodies start from the same weights."""
    seed(number)
    return digit_network(HEADS[name][0], last_relu).to(device)


def train(network: nn.Module, part, epochs: int = EPOCHS) -> list[float]:
    """Adam, its rate on a straight line from 0.004 to 0: mean training loss of each epoch."""
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    steps = epochs * -(-len(part[1]) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    seed(0)  # the same order of images, as long as the head draws no random numbers
    return training.fit(
        network, part, epochs, optimizer, batch=BATCH, schedule=schedule
    )["loss"]


# %% tags=["spread"]
def draw_runs(axes, x, runs: dict[tuple[str, int], list[float]]) -> None:
    """Mean over the seeds for each head, a band from the smallest to the largest."""
    ends = {}
    for name, (_, colour) in HEADS.items():
        values = torch.tensor([runs[name, number] for number in SEEDS])
        ends[name] = plots.seed_band(axes, x, values, colour)
    plots.label_ends(axes, ends, [colour for _, colour in HEADS.values()])


# %% tags=["curve"] alt="Training loss over sixteen epochs for the three heads, mean of three seeds with a band from the smallest to the largest. The connected head falls fastest, the one with dropout a little later, the average starts late and falls last; all three end near zero."
networks, losses = {}, {}
for name in HEADS:
    for number in SEEDS:
        networks[name, number] = fresh(name, number)
        losses[name, number] = train(networks[name, number], train_part)
record("epochs", EPOCHS)
_, axes = plt.subplots()
ticks = range(2, EPOCHS + 1, 2)
axes.set(xlabel="epoch", ylabel="training loss", ylim=(0, 2.5), xticks=ticks)
draw_runs(axes, range(1, EPOCHS + 1), losses)

# %% tags=["result"]
rows, tested = [], {}
for name in HEADS:
    runs = [networks[name, number] for number in SEEDS]
    fitted = [training.evaluate(network, train_part) for network in runs]
    tested[name] = [training.evaluate(network, test) for network in runs]
    record_spread(f"{name.replace(' ', '_')}.train", fitted)
    record_spread(f"{name.replace(' ', '_')}.test", tested[name])
    rows.append((name, spread(fitted, ".1%"), spread(tested[name], ".1%")))
    claim(
        min(fitted) > 0.9,
        f"{name}: every seed fits more than 90 % of the training part",
    )
others = max(sum(tested["connected"]), sum(tested["with dropout"])) / len(SEEDS)
lead = sum(tested["average"]) / len(SEEDS) - others
claim(
    lead < 0.01, "the average leads the better of the other heads by less than a point"
)
table(rows, ("head", "training accuracy", "held-out accuracy"))

# %% tags=["longer"]
area = {name: sum(sum(losses[name, number]) for number in SEEDS) for name in HEADS}
slowest = area["average"] > area["connected"] and area["average"] > area["with dropout"]
claim(
    slowest,
    "over all epochs the average has the largest training loss: it fits slowest",
)
longer = []
for number in SEEDS:
    network = fresh("average", number)
    train(network, train_part, 2 * EPOCHS)
    longer.append(training.evaluate(network, test))
record("longer.epochs", 2 * EPOCHS)
record_spread("longer.test", longer)

# %% tags=["shifted"]
x, y = test[0][:500], test[1][:500]
record("moved.images", len(y))
ink = x - x.min()
record("kept.lost", 1 - min((moved(ink, d).sum() / ink.sum()).item() for d in SHIFTS))
shifted = {
    key: [training.evaluate(network, (moved(x, d), y)) for d in SHIFTS]
    for key, network in networks.items()
}

# %% tags=["shift-result"]
rows, far = [], {}
for name in HEADS:
    far[name] = [(shifted[name, n][0] + shifted[name, n][-1]) / 2 for n in SEEDS]
    record_spread(f"{name.replace(' ', '_')}.moved", far[name])
    rows.append((name, spread(far[name], ".1%")))
others = max(sum(far["connected"]), sum(far["with dropout"])) / len(SEEDS)
lead = sum(far["average"]) / len(SEEDS) - others
claim(lead > 0.1, "moved by 3 pixels the average is 10 points above the other heads")
table(rows, ("head", "accuracy, moved by 3 pixels"))

# %% tags=["shift-figure"] alt="Accuracy against the shift of the digits, from three pixels left and up to three right and down, mean of three seeds with bands. All three heads are near nine tenths without shift and fall to both sides; the two connected heads fall much further than the average."
_, axes = plt.subplots()
axes.set(
    xlabel="pixels to the right and down", ylabel="accuracy", ylim=(0, 1), xticks=SHIFTS
)
draw_runs(axes, SHIFTS, shifted)

# %% [markdown]
# ## Class maps
#
# The last maps are maps of the classes, and their means are the outputs. The network takes any size, so we lay
# two digits side by side, 20x40 pixels, and look where the map of each class is highest. The network has seen
# single digits only.


# %% tags=["pairs"]
def pairs(part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Lay images of different classes side by side: (N, 1, H, 2 W) and labels (N, 2)."""
    x, y = part
    half = len(y) // 2
    different = y[:half] != y[half : 2 * half]
    left, right = x[:half][different], x[half : 2 * half][different]
    labels = torch.stack((y[:half], y[half : 2 * half]), dim=1)[different]
    return torch.cat((left, right), dim=3), labels


# %% tags=["sums"]
x, labels = pairs(test)
network = networks["average", 0]
maps, logits = training.predict(network[:-1], x), training.predict(network, x)
shares = maps / maps[0, 0].numel()  # what each place adds to the output
deviation = checks.deviation(shares.sum((2, 3)), logits)
claim(deviation < 1e-5, "what the places add sums to the outputs")
record("sums.deviation", deviation)
tuple(maps.shape)


# %% tags=["places"]
def on_own_side(maps: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Maps (N, 2, H, W) of the two classes, and how often one is highest on its digit's half."""
    chosen = maps[torch.arange(len(labels))[:, None], labels]
    W = maps.shape[3]
    columns = chosen.flatten(2).argmax(2) % W  # of the highest places
    right = (columns >= W // 2) == torch.tensor([False, True])
    return chosen, right.double().mean().item()


# %% tags=["sides"]
sides = []
for number in SEEDS:
    chosen, share = on_own_side(
        training.predict(networks["average", number][:-1], x), labels
    )
    sides.append(share)
record("pairs", len(labels))
own = sum(sides) / len(sides)
claim(own > 0.7, "more than 70 % of the maps are highest on the side of their digit")
record_spread("pairs.own_side", sides)

# %% tags=["maps"] alt="Four rows of a picture of two digits side by side and the maps of their two classes, light where the map is high. The map of the left digit is light mostly on the left half, that of the right digit mostly on the right half, with spots on the other side."
chosen, _ = on_own_side(maps, labels)
pictures, titles = [], []
for i in range(4):
    pictures += [x[i, 0], *[m.clamp(min=0) / m.max() for m in chosen[i]]]
    titles += ["", *[f"map of {label}" for label in labels[i].tolist()]]
plots.image_grid(pictures, titles, columns=3, scale=1.6)
plt.gcf().set_size_inches(5, 4)

# %% [markdown]
# ## What we saw
#
# - An mlpconv layer equals a perceptron on patches, with the same weights, in both sizes.
# - Global average pooling is a fully connected layer with fixed weights. On centred digits it is not the better
#   head; when digits are moved it loses far less.
# - The last maps add up to the outputs and say where a class is, most of the time.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
by_hand = 54 * 54 * (11 * 11 * 3 * 96 + 2 * 96 * 96)
by_hand += 27 * 27 * (5 * 5 * 96 * 256 + 2 * 256 * 256)
by_hand += 13 * 13 * (3 * 3 * 256 * 384 + 2 * 384 * 384)
by_hand += 6 * 6 * (3 * 3 * 384 * 1024 + 1024 * 1024 + 1024 * 1000)
with torch.device("meta"):
    counted = counting.macs(nin_imagenet(), torch.empty(1, 3, 224, 224))
claim(by_hand == counted, "the MACs by hand are those counted")
table([(by_hand, counted)], ("by hand", "counted"))


# %% tags=["solution-2"]
def spoiled(y: Tensor, share: float) -> Tensor:
    """Replace about `share` of the labels by labels drawn by chance, the same in each call."""
    chance = torch.Generator().manual_seed(7)
    chosen = torch.rand(len(y), generator=chance) < share
    return torch.where(chosen, torch.randint(10, (len(y),), generator=chance), y)


# %% tags=["solution-2-run"]
part, rows, fits = (train_part[0], spoiled(train_part[1], 0.4)), [], []
record("spoiled.wrong", (part[1] != train_part[1]).double().mean())
for name in ("connected", "average"):
    network = fresh(name, 0)
    train(network, part)
    scores = [training.evaluate(network, p) for p in (part, test)]
    for where, score in zip(("train", "test"), scores):
        record(f"spoiled.{name}.{where}", score)
    fits.append(scores[0])
    rows.append((name, *[f"{score:.1%}" for score in scores]))
claim(
    fits[0] > fits[1] + 0.1,
    "the connected head fits 10 points more of the spoiled labels",
)
table(rows, ("head", "fits of the spoiled labels", "held-out accuracy"))

# %% tags=["solution-3"]
rows, scores, dead = [], [], []
for number in SEEDS:
    network = fresh("average", number, last_relu=True)
    train(network, train_part)
    scores.append(training.evaluate(network, train_part))
    dead.append((training.predict(network, train_part[0]).amax(0) == 0).sum().item())
    rows.append((number, f"{scores[-1]:.1%}", dead[-1]))
record_spread("relu.train", scores)
record("relu.dead", sum(dead))
record("relu.classes", 10 * len(SEEDS))
table(rows, ("seed", "training accuracy", "classes that are always 0"))


# %% tags=["zhou"]
def class_activation(features: Tensor, weight: Tensor) -> Tensor:
    """Maps of classes from maps of features: (B, C, H, W), (K, C) -> (B, K, H, W).

    Zhou et al. 2016, section 2: a weighted sum, the weights those of the linear layer.
    """
    return torch.einsum("kc,bchw->bkhw", weight, features)


# %% tags=["solution-4"]
seed(0)
network = torchvision.models.resnet18(num_classes=10).eval()
with torch.no_grad():
    x = torch.randn(2, 3, 96, 96)
    features = nn.Sequential(*list(network.children())[:-2])(x)
    logits = (
        class_activation(features, network.fc.weight).mean((2, 3)) + network.fc.bias
    )
    deviation = checks.deviation(network(x), logits)
claim(
    deviation < 1e-5, "the mean of the class activation map and the bias are the output"
)
record("zhou.deviation", deviation)
deviation
