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
# Stacks of convolutions that get worse with depth, and the sum that slows this: trained on
# digits at four depths, then built at the published sizes and compared with two libraries.
# The text to it is the [chapter](../chapters/resnet.rst), the paper is
# [He et al. 2015](https://arxiv.org/abs/1512.03385).

# %%
import copy
import math

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from timm.models.resnet import resnet50d as timm_resnet50d

from workbench import PROFILE, claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, drawing, images, plots, training

# %% [markdown]
# ## Batch norm, by hand
#
# All networks of this page put batch norm behind each convolution. For each channel it
# subtracts the mean and divides by the standard deviation, then scales and shifts by two
# learnt numbers, which start at 1 and 0. In training the mean and the deviation are those
# of the batch, in evaluation those remembered from training.


# %% tags=["norm"]
class OneChannelNorm(nn.Module):
    """Batch norm of one channel (Ioffe and Szegedy 2015, algorithm 1): (N,) -> (N,)."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.shift = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("variance", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean
        variance = self.variance
        if self.training:
            mean = x.mean()
            variance = x.var(correction=0)
            self.mean += 0.1 * (mean.detach() - self.mean)
            unbiased = x.detach().var()  # divided by N - 1, only for the memory
            self.variance += 0.1 * (unbiased - self.variance)
        normed = (x - mean) / torch.sqrt(variance + 1e-5)
        return self.scale * normed + self.shift


# %% tags=["norm-run"]
x = torch.tensor([2.0, 4.0, 4.0, 6.0])
norm = OneChannelNorm()
in_training = norm(x)
in_evaluation = norm.eval()(x)

# %% tags=["norm-by-hand"]
by_mode = {"training": in_training, "evaluation": in_evaluation}
rows = [("input", *x.tolist())]
for mode, y in by_mode.items():
    rows.append((mode, *(f"{value:.3f}" for value in y.tolist())))
record("norm.mean", norm.mean)
record("norm.variance", norm.variance)
table(rows, ("example", "1", "2", "3", "4"))

# %% tags=["norm-checked"]
library = nn.BatchNorm2d(1)
pixels = x.view(4, 1, 1, 1)  # (B, C, H, W)
for mode, y in by_mode.items():
    expected = library.train(mode == "training")(pixels).flatten()
    claim(
        checks.deviation(y, expected) < 1e-6, f"batch norm by hand is torch's in {mode}"
    )

# %% [markdown]
# ## A plain block and a residual block
#
# Both have the same branch of two convolutions. The plain block returns what the branch
# returns; the residual block adds its input.


# %% tags=["conv-norm"]
def conv_norm(c_in: int, c_out: int, size: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, then batch norm, whose shift is the bias."""
    conv = nn.Conv2d(c_in, c_out, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


def two_convolutions(c_in: int, c_out: int, *, stride: int = 1) -> nn.Sequential:
    """3x3, ReLU, 3x3: the branch of the shallower networks (figure 5, left)."""
    first = conv_norm(c_in, c_out, 3, stride=stride)
    return nn.Sequential(first, nn.ReLU(), conv_norm(c_out, c_out, 3))


# %% tags=["plain-block"]
class PlainBlock(nn.Module):
    """relu(branch(x)): two layers of the plain networks (section 3.3)."""

    expansion = 1  # output channels divided by the width

    def __init__(self, c_in: int, c_out: int, *, stride: int = 1):
        super().__init__()
        self.branch = two_convolutions(c_in, c_out, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)
        return torch.relu(self.branch(x))


# %% [markdown]
# Where a block halves the map and doubles the channels its input no longer fits the sum.
# Option A of the paper takes every second pixel and fills the new channels with zeros. It
# has no parameters, so that plain and residual networks of one depth have the same ones.


# %% tags=["zero-pad"]
class ZeroPad(nn.Module):
    """Option A: every stride-th pixel, new channels of zeros (section 3.3)."""

    def __init__(self, c_in: int, c_out: int, *, stride: int = 1):
        super().__init__()
        self.stride = stride
        self.new_channels = c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels))  # pairs for W, H, C


# %% tags=["residual-block"]
class ResidualBlock(nn.Module):
    """relu(branch(x) + shortcut(x)): learn what to add to the input.

    Equation 1 and figure 2 of the paper, with the shortcut of option A.
    """

    expansion = 1

    def __init__(self, c_in: int, c_out: int, *, stride: int = 1):
        super().__init__()
        self.branch = two_convolutions(c_in, c_out, stride=stride)
        self.shortcut = ZeroPad(c_in, c_out, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)
        return torch.relu(self.branch(x) + self.shortcut(x))


# %% tags=["block-shape"]
ResidualBlock(8, 16, stride=2)(torch.randn(5, 8, 8, 8)).shape


# %% tags=["drawing"]
def draw_block(axes, left: float, title: str, shortcut: str = "") -> None:
    """Draw two convolutions top to bottom, the shortcut at the right, and the sum."""
    x = left + 0.7
    nodes = {
        "title": diagrams.Node(x, 0.15, title, weight="bold"),
        "x": diagrams.Node(x, 0.5, "$x$"),
        "first": diagrams.Node(x, 1.05, "3×3, 64", width=1.3),
        "between": diagrams.Node(x, 1.6, "ReLU"),
        "second": diagrams.Node(x, 2.15, "3×3, 64", width=1.3),
    }
    if shortcut:
        nodes["sum"] = diagrams.Node(x, 2.7, "+")
    nodes["last"] = diagrams.Node(x, 3.15, "ReLU")
    nodes["end"] = diagrams.Node(x, 3.6, "")
    names = list(nodes)[1:]
    arrows = list(zip(names, names[1:]))
    shortcuts = []  # from each to the next
    if shortcut:
        right = left + 1.58
        shortcuts.append(((x, 0.72), (right, 0.72), (right, 2.7), "sum"))
        words = diagrams.Node(right + 0.44, 1.6, shortcut, colour=plots.COLOURS[1])
        nodes["name"] = words
        nodes["y"] = diagrams.Node(x + 0.2, 2.93, "$y$")
    diagrams.draw(axes, nodes, arrows, shortcuts)


# %% tags=["blocks-figure"] alt="Two columns. Plain: x, a box 3x3 with 64 channels, ReLU, another such box, ReLU. Residual: the same; an arrow leaves above the boxes, runs past them at the right, named identity, and meets them at a plus sign; the sum, y, goes through the last ReLU."
axes = diagrams.sheet(3.75)
draw_block(axes, 0.3, "plain")
draw_block(axes, 2.5, "residual", "identity")

# %% [markdown]
# ## Ten digits, four depths
#
# Section 4.2 of the paper, made narrow: a 3x3 convolution, three stages of n blocks, the
# mean over the map and one linear layer, together 6n + 2 layers. The digits are shrunk to
# 16x16 to save time.


# %% tags=["stage"]
def stage(block, n: int, *, c_in: int, width: int, stride: int) -> nn.Sequential:
    """n blocks; the first takes the stride and changes the number of channels."""
    first = block(c_in, width, stride=stride)
    later = [block(block.expansion * width, width) for _ in range(n - 1)]
    return nn.Sequential(first, *later)


# %% tags=["digit-network"]
def he_init(network: nn.Module) -> None:
    """Normal weights of variance 2 / fan-out, as in the libraries (He et al. 2015)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class DigitNetwork(nn.Module):
    """6n + 2 layers for small grey images (section 4.2): (B, 1, H, W) -> (B, 10)."""

    def __init__(self, block, depth: int, *, width: int = 8):
        super().__init__()
        n, rest = divmod(depth - 2, 6)
        assert rest == 0, "depth must be 6n + 2"
        self.stem = conv_norm(1, width, 3, stride=2)
        self.stage1 = stage(block, n, c_in=width, width=width, stride=1)
        self.stage2 = stage(block, n, c_in=width, width=2 * width, stride=2)
        self.stage3 = stage(block, n, c_in=2 * width, width=4 * width, stride=2)
        self.classifier = nn.Linear(4 * width, 10)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))  # (B, 8, H / 2, W / 2)
        x = self.stage1(x)  # (B, 8, H / 2, W / 2)
        x = self.stage2(x)  # (B, 16, H / 4, W / 4)
        x = self.stage3(x)  # (B, 32, H / 8, W / 8)
        return self.classifier(x.mean((2, 3)))  # (B, 10)


# %% tags=["data"]
IMAGES = 900 if PROFILE == "sample" else 20_000
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
SEEDS = (0, 1, 2)
DEPTHS = (8, 14, 20, 32)
BLOCKS = {"plain": PlainBlock, "residual": ResidualBlock}


def train(network: nn.Module, part, *, epochs: int = EPOCHS, rate: float = 0.1):
    """SGD; the rate rises for a fifth of the steps, then falls to 0. Loss per epoch."""
    steps = epochs * math.ceil(len(part[1]) / BATCH)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4
    )
    schedule = training.one_cycle(optimizer, steps)
    history = training.fit(
        network, part, epochs, optimizer, batch=BATCH, schedule=schedule
    )
    return history["loss"]


# %% tags=["headline"]
networks = {}
losses = {}
for kind, block in BLOCKS.items():
    for depth in DEPTHS:
        for number in SEEDS:
            seed(number)
            network = DigitNetwork(block, depth).to(device)
            history = train(network, train_part)
            losses[kind, depth, number] = history[-1]
            networks[kind, depth, number] = network

# %% tags=["curve"] alt="Training loss of the last epoch against the number of layers, 8, 14, 20 and 32, mean of three seeds in a band from the smallest to the largest. The plain line rises with each step of depth, from about 0.2 to above 1.5. The residual line rises from about 0.2 to below 0.5."
_, axes = plt.subplots()
ends = {}
for kind, colour in (("plain", plots.COLOURS[1]), ("residual", plots.COLOURS[0])):
    runs = torch.tensor([[losses[kind, d, n] for d in DEPTHS] for n in SEEDS])
    ends[kind] = plots.seed_band(axes, DEPTHS, runs, colour)
axes.set(xlabel="layers", ylabel="training loss", xticks=DEPTHS, ylim=(0, None))
plots.label_ends(axes, ends, [plots.COLOURS[1], plots.COLOURS[0]])

# %% tags=["result"]
rows = []
scores = {}
for kind in BLOCKS:
    for depth in DEPTHS:
        last = [losses[kind, depth, n] for n in SEEDS]
        right = [training.evaluate(networks[kind, depth, n], test) for n in SEEDS]
        record_spread(f"{kind}{depth}.loss", last)
        record_spread(f"{kind}{depth}.test", right)
        scores[kind, depth] = right
        parameters = counting.parameters(networks[kind, depth, 0])
        rows.append(
            (kind, depth, parameters, spread(last, ".2f"), spread(right, ".1%"))
        )
table(rows, ("block", "layers", "parameters", "training loss", "test accuracy"))

# %% tags=["headline-claims"]
least = {(k, d): min(losses[k, d, n] for n in SEEDS) for k in BLOCKS for d in DEPTHS}
most = {(k, d): max(losses[k, d, n] for n in SEEDS) for k in BLOCKS for d in DEPTHS}
for shallow, deep in zip(DEPTHS, DEPTHS[1:]):
    words = f"the plain loss at {deep} layers is above that at {shallow}, seeds apart"
    claim(least["plain", deep] > most["plain", shallow], words)
for depth in DEPTHS[1:]:
    words = f"at {depth} layers the residual loss is below the plain one, seeds apart"
    claim(most["residual", depth] < least["plain", depth], words)
    words = f"at {depth} layers the residual networks are right more often, seeds apart"
    claim(min(scores["residual", depth]) > max(scores["plain", depth]), words)
for depth in DEPTHS:
    pair = [counting.parameters(networks[kind, depth, 0]) for kind in BLOCKS]
    claim(
        pair[0] == pair[1],
        f"plain and residual have the same parameters at {depth} layers",
    )
no_gain = min(scores["residual", 32]) <= max(scores["residual", 20])
claim(no_gain, "32 residual layers are not shown to be right more often than 20")
claim(
    least["plain", 32] > 1.5 and most["residual", 32] < 0.5, "the ends of the two lines"
)
record("steps", EPOCHS * math.ceil(IMAGES / BATCH))

# %% [markdown]
# ## Grow a trained network
#
# A deeper network has a solution as good as that of a shallower one: its other layers pass
# their input on. We build it. Each trained network of 14 layers gets nine blocks more,
# three at the end of each stage, which start in one of several ways.


# %% tags=["grow"]
def grow(network: DigitNetwork, block, start, *, width: int = 8) -> DigitNetwork:
    """A copy with three blocks more at the end of each stage: 18 layers more."""
    deeper = copy.deepcopy(network)
    stages = (deeper.stage1, deeper.stage2, deeper.stage3)
    for blocks, c in zip(stages, (width, 2 * width, 4 * width)):
        for _ in range(3):
            added = block(c, c)
            start(added)
            blocks.append(added.to(network.classifier.weight.device))
    return deeper


# %% tags=["starts"]
def copy_input(block: nn.Module) -> None:
    """Kernels with a single 1 that pass each channel on, where it is not negative."""
    for layer in block.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight)


@torch.no_grad()
def zero_last_scale(block: nn.Module) -> None:
    """A branch of zeros: the scale of its last batch norm (Goyal et al. 2017, 5.1)."""
    last_norm = block.branch[-1][1]
    last_norm.weight.zero_()


# %% tags=["grown"]
GROWN = (
    ("plain", "usual weights", he_init),
    ("plain", "kernels that copy", copy_input),
    ("residual", "usual weights", he_init),
    ("residual", "last scale zero", zero_last_scale),
)
grown = {}
for kind, words, start in GROWN:
    for number in SEEDS:
        seed(number)
        network = networks[kind, 14, number]
        grown[kind, words, number] = grow(network, BLOCKS[kind], start)


# %% tags=["exists"]
x = validation[0].to(device)
for number in SEEDS:
    for kind, words in (
        ("plain", "kernels that copy"),
        ("residual", "last scale zero"),
    ):
        before = training.predict(networks[kind, 14, number], x)
        after = training.predict(grown[kind, words, number], x)
        same = (before.argmax(1) == after.argmax(1)).all()
        claim(same, f"in evaluation the grown {kind} network gives the same answers")
        if kind == "residual":
            claim(
                (before == after).all(),
                "a zero branch changes no output, not in its last bit",
            )


# %% tags=["on-batches"]
@torch.no_grad()
def accuracy_on_batches(network: nn.Module, part) -> float:
    """Fraction right with the statistics of each batch, as in training."""
    right = 0
    network = copy.deepcopy(
        network
    ).train()  # the copy's memory changes, not the network's
    for x, y in zip(part[0].split(100), part[1].split(100)):
        right += (network(x.to(device)).argmax(1).cpu() == y).sum().item()
    return right / len(part[1])


# %% tags=["grown-result"]
rows = []
held = {}
kept = {}
later = {}
for kind, words, _ in GROWN:
    case = [grown[kind, words, number] for number in SEEDS]
    held[kind] = [accuracy_on_batches(networks[kind, 14, n], validation) for n in SEEDS]
    kept[kind, words] = [accuracy_on_batches(network, validation) for network in case]
    later[kind, words] = [
        train(network, train_part, epochs=1, rate=0.05)[0] for network in case
    ]
    record_spread(f"grown.{kind}.{words.split()[0]}", kept[kind, words])
    record_spread(f"later.{kind}.{words.split()[0]}", later[kind, words])
    texts = [spread(values, ".0%") for values in (held[kind], kept[kind, words])]
    rows.append((kind, words, *texts, spread(later[kind, words], ".2f")))
table(
    rows,
    ("block", "start of nine more", "14 layers", "32 layers", "mean loss of one epoch"),
)

# %% tags=["grown-claims"]
usual = "usual weights"
zero = "last scale zero"
claim(
    max(kept["plain", usual]) < 0.2, "usual plain blocks leave a network that guesses"
)
copied = kept["plain", "kernels that copy"]
claim(max(copied) < min(held["plain"]), "on batches the copy is spoilt, seeds apart")
claim(min(copied) > 0.5, "on batches the copy is not spoilt altogether")
claim(kept["residual", zero] == held["residual"], "a zero scale keeps each accuracy")
words = "a shortcut alone keeps a part of what the 14 layers know"
claim(min(kept["residual", usual]) > max(kept["plain", usual]), words)
claim(
    min(kept["residual", zero]) > max(kept["residual", usual]),
    "a zero scale keeps more",
)
words = "from a zero scale training goes on below every other start, seeds apart"
others = [
    value
    for case, values in later.items()
    if case != ("residual", zero)
    for value in values
]
claim(max(later["residual", zero]) < min(others), words)

# %% [markdown]
# ## The published networks
#
# Four stages; each but the first halves the map and doubles the width, the number of
# channels of its 3x3 convolutions. Where the shape changes, option B projects the input by
# a 1x1 convolution. This is what the libraries have.


# %% tags=["projection"]
def projection(c_in: int, c_out: int, *, stride: int = 1) -> nn.Module:
    """Option B: the identity where the shapes allow, else a 1x1 convolution."""
    same = stride == 1 and c_in == c_out
    return nn.Identity() if same else conv_norm(c_in, c_out, 1, stride=stride)


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions, option B: ResNet-18 and 34 (figure 5, left)."""

    def __init__(self, c_in: int, c_out: int, *, stride: int = 1):
        super().__init__(c_in, c_out, stride=stride)
        self.shortcut = projection(c_in, c_out, stride=stride)


# %% tags=["bottleneck"]
def bottleneck_branch(
    c_in: int, width: int, c_out: int, *, strides=(1, 1)
) -> nn.Sequential:
    """1x1 down to the width, 3x3 at the width, 1x1 up; strides of the first two."""
    return nn.Sequential(
        conv_norm(c_in, width, 1, stride=strides[0]),
        nn.ReLU(),
        conv_norm(width, width, 3, stride=strides[1]),
        nn.ReLU(),
        conv_norm(width, c_out, 1),
    )


class Bottleneck(nn.Module):
    """Narrow, work, widen: ResNet-50 and deeper (figure 5, right).

    The 3x3 convolution takes the stride, as in torchvision ("v1.5").
    """

    expansion = 4

    def __init__(self, c_in: int, width: int, *, stride: int = 1):
        super().__init__()
        self.branch = bottleneck_branch(c_in, width, 4 * width, strides=(1, stride))
        self.shortcut = projection(c_in, 4 * width, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, 4 width, H / stride, W / stride)
        return torch.relu(self.branch(x) + self.shortcut(x))


# %% tags=["bottleneck-shape"]
Bottleneck(256, 128, stride=2)(torch.randn(2, 256, 56, 56)).shape


# %% tags=["network"]
class Stem(nn.Module):
    """7x7 convolution and maximum: a quarter of the side (table 1)."""

    def __init__(self, c_out: int):
        super().__init__()
        self.conv = conv_norm(3, c_out, 7, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # (B, 3, H, W) -> (B, c_out, H / 4, W / 4)
        return self.pool(torch.relu(self.conv(x)))


class ResNet(nn.Module):
    """Stem, four stages, mean over the map, linear layer (table 1).

    (B, 3, H, W) -> (B, num_classes).
    """

    def __init__(self, block, depths, *, stem=Stem, num_classes: int = 1000):
        super().__init__()
        e = block.expansion
        self.stem = stem(64)
        self.stage1 = stage(block, depths[0], c_in=64, width=64, stride=1)
        self.stage2 = stage(block, depths[1], c_in=64 * e, width=128, stride=2)
        self.stage3 = stage(block, depths[2], c_in=128 * e, width=256, stride=2)
        self.stage4 = stage(block, depths[3], c_in=256 * e, width=512, stride=2)
        self.classifier = nn.Linear(512 * e, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, 64, H / 4, W / 4)
        x = self.stage1(x)  # (B, 64 e, H / 4, W / 4)
        x = self.stage2(x)  # (B, 128 e, H / 8, W / 8)
        x = self.stage3(x)  # (B, 256 e, H / 16, W / 16)
        x = self.stage4(x)  # (B, 512 e, H / 32, W / 32)
        return self.classifier(x.mean((2, 3)))  # (B, num_classes)


# %% tags=["sizes"]
def resnet18() -> ResNet:
    return ResNet(BasicBlock, (2, 2, 2, 2))


def resnet34() -> ResNet:
    return ResNet(BasicBlock, (3, 4, 6, 3))


def resnet50() -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3))


def resnet101() -> ResNet:
    return ResNet(Bottleneck, (3, 4, 23, 3))


def resnet152() -> ResNet:
    return ResNet(Bottleneck, (3, 8, 36, 3))


# %% [markdown]
# ## Three variants
#
# The models that the authors released have the stride in the first 1x1 convolution. The
# wide networks of Zagoruyko and Komodakis 2016 have twice the channels in the 3x3.
# ResNet-D (He et al. 2019) averages before it projects, because a 1x1 convolution of stride
# 2 never reads three of four pixels, and has three 3x3 convolutions for a stem.


# %% tags=["variants"]
class OriginalBottleneck(Bottleneck):
    """The first 1x1 convolution takes the stride: the authors' released models."""

    def __init__(self, c_in: int, width: int, *, stride: int = 1):
        super().__init__(c_in, width, stride=stride)
        self.branch = bottleneck_branch(c_in, width, 4 * width, strides=(stride, 1))


class WideBottleneck(Bottleneck):
    """Twice the inner channels, the same output: Wide ResNet-50-2 and 101-2."""

    def __init__(self, c_in: int, width: int, *, stride: int = 1):
        super().__init__(c_in, width, stride=stride)
        self.branch = bottleneck_branch(c_in, 2 * width, 4 * width, strides=(1, stride))


class PooledBottleneck(Bottleneck):
    """The shortcut of ResNet-D: average, then project (He et al. 2019, section 4.2)."""

    def __init__(self, c_in: int, width: int, *, stride: int = 1):
        super().__init__(c_in, width, stride=stride)
        if stride > 1:  # at an odd side the last window is smaller, as in timm
            pool = nn.AvgPool2d(stride, stride, ceil_mode=True)
            self.shortcut = nn.Sequential(pool, conv_norm(c_in, 4 * width, 1))


class DeepStem(nn.Module):
    """Three 3x3 convolutions in place of the 7x7 (He et al. 2019, section 4.2)."""

    def __init__(self, c_out: int):
        super().__init__()
        self.conv1 = conv_norm(3, c_out // 2, 3, stride=2)
        self.conv2 = conv_norm(c_out // 2, c_out // 2, 3)
        self.conv3 = conv_norm(c_out // 2, c_out, 3)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # (B, 3, H, W) -> (B, c_out, H / 4, W / 4)
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x))
        return self.pool(torch.relu(self.conv3(x)))


# %% tags=["variant-sizes"]
def original_resnet50() -> ResNet:
    return ResNet(OriginalBottleneck, (3, 4, 6, 3))


def original_resnet101() -> ResNet:
    return ResNet(OriginalBottleneck, (3, 4, 23, 3))


def original_resnet152() -> ResNet:
    return ResNet(OriginalBottleneck, (3, 8, 36, 3))


def resnet34_option_a() -> ResNet:
    return ResNet(ResidualBlock, (3, 4, 6, 3))


def wide_resnet50() -> ResNet:
    return ResNet(WideBottleneck, (3, 4, 6, 3))


def wide_resnet101() -> ResNet:
    return ResNet(WideBottleneck, (3, 4, 23, 3))


def resnet50d() -> ResNet:
    return ResNet(PooledBottleneck, (3, 4, 6, 3), stem=DeepStem)


# %% [markdown]
# ## Counted
#
# On torch's meta device a tensor has a shape and no values: a network can be counted
# without computing anything.

# %% tags=["count"]
cost = {}


def count(*builders) -> None:
    """Show and keep parameters and MACs at 224x224 of these networks."""
    rows = []
    for build in builders:
        with torch.device("meta"):
            network = build()
            x = torch.empty(1, 3, 224, 224)
        name = build.__name__
        parameters = counting.parameters(network)
        cost[name] = counting.macs(network, x)
        record(f"{name}.parameters", parameters)
        record(f"{name}.macs", cost[name])
        record(f"{name}.gmacs", cost[name] / 1e9)
        rows.append((name, parameters, f"{cost[name] / 1e9:.3f}"))
    table(rows, ("network", "parameters", "G MACs"))


count(resnet18, resnet34, resnet50, resnet101, resnet152)

# %% tags=["count-variants"]
originals = (original_resnet50, original_resnet101, original_resnet152)
count(resnet34_option_a, *originals, wide_resnet50, wide_resnet101, resnet50d)

# %% tags=["recipes"]
for weights in torchvision.models.ResNet50_Weights:
    top1 = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    record(f"torchvision.{weights.name}", top1)

# %% tags=["bottleneck-weights"]
two = counting.parameters(two_convolutions(256, 256))
three = counting.parameters(bottleneck_branch(256, 64, 256))
record("two.weights", two)
record("three.weights", three)
record("weights.ratio", two / three)

# %% tags=["drawn"] alt="ResNet-50 from top to bottom, with output shape and parameters at the right: an input of 3x224x224, the stem, then four stages with a loop past each and the number of its blocks, 3, 4, 6 and 3, whose maps shrink from 56 to 7 pixels a side while the channels grow to 2048, and the linear layer to 1000."
with torch.device("meta"):
    network = resnet50()
    x = torch.empty(1, 3, 224, 224)
drawing.draw(network, x)

# %% [markdown]
# ## Equal to the libraries
#
# A fresh batch norm has mean 0, variance 1, scale 1 and shift 0: it would hide a wrong
# epsilon or two layers that changed places. We give the references random ones before
# their weights are copied into ours.

# %% tags=["equal"]
REFERENCES = (
    (resnet18, torchvision.models.resnet18, "torchvision"),
    (resnet50, torchvision.models.resnet50, "torchvision"),
    (resnet50d, timm_resnet50d, "timm"),
)
rows = []
deviations = []
for build, reference, library in REFERENCES:
    seed(0)
    theirs = checks.randomise_norms(reference())
    ours = build()
    checks.transplant(theirs, ours)
    deviations.append(checks.same_outputs(ours, theirs, torch.randn(2, 3, 40, 40)))
    rows.append((build.__name__, library, f"{deviations[-1]:.1e}"))
record("deviation", max(deviations))
table(rows, ("network", "reference", "largest difference"))

# %% [markdown]
# ## Look inside
#
# Take one block out of a trained network and see what is left of its accuracy
# (Veit et al. 2016).


# %% tags=["without"]
def without(network: DigitNetwork, name: str, index: int) -> DigitNetwork:
    """A copy without one block of a stage (not the first, which changes the shape)."""
    smaller = copy.deepcopy(network)
    del getattr(smaller, name)[index]
    return smaller


def left_out(network: DigitNetwork, part) -> list[float]:
    """Accuracy without each block in turn, from input to output."""
    found = []
    for name in ("stage1", "stage2", "stage3"):
        for index in range(1, len(getattr(network, name))):
            found.append(training.evaluate(without(network, name, index), part))
    return found


# %% tags=["left-out"]
CASES = (("plain", 14), ("residual", 14), ("residual", 32))
cut = {}
for kind, depth in CASES:
    for number in SEEDS:
        cut[kind, depth, number] = left_out(networks[kind, depth, number], validation)

# %% tags=["left-out-figure"] alt="Accuracy of trained networks with one block left out, three columns of dots for plain 14, residual 14 and residual 32, with short lines at the accuracy of the whole networks. The dots of plain 14 lie near the dotted line of guessing, all below 0.3 and far below their short lines; those of the residual networks all lie above them."
_, axes = plt.subplots()
for place, (kind, depth) in enumerate(CASES):
    colour = plots.COLOURS[1] if kind == "plain" else plots.COLOURS[0]
    for number in SEEDS:
        values = cut[kind, depth, number]
        spots = torch.linspace(-0.25, 0.25, len(values)) + place
        axes.plot(spots, values, "o", color=colour, alpha=0.6, markersize=5)
        whole = training.evaluate(networks[kind, depth, number], validation)
        axes.plot(
            [place - 0.35, place + 0.35], [whole, whole], color=colour, linewidth=1
        )
axes.axhline(0.1, color=plots.QUIET, linestyle=":")
axes.set(
    xticks=range(3), xticklabels=[f"{kind}\n{depth} layers" for kind, depth in CASES]
)
axes.set(ylabel="accuracy, one block left out", ylim=(0, 1))
plt.show()

# %% tags=["left-out-claims"]
for kind, depth in CASES:
    values = [value for number in SEEDS for value in cut[kind, depth, number]]
    whole = [training.evaluate(networks[kind, depth, n], validation) for n in SEEDS]
    record_spread(f"without.{kind}{depth}", values)
    record_spread(f"whole.{kind}{depth}", whole)
    if kind == "plain":
        highest = max(values)
    else:
        words = (
            f"residual {depth} keeps more without any block than plain 14 without any"
        )
        claim(min(values) > highest, words)
        kept = (sum(values) / len(values)) / (sum(whole) / len(whole))
        words = "without one block a residual network keeps most, on average"
        claim(kept > 0.7, words)
claim(highest < 0.3, "without one block a plain network is close to guessing")
for number in SEEDS:
    values = cut["residual", 32, number]
    claim(values.index(min(values)) < 3, "of 32 layers an early block is missed most")

# %% [markdown]
# ## What we saw
#
# - From 8 to 32 layers the training loss of plain networks rises at each step; with the
#   input added it rises far less.
# - The deeper plain network could be as good: kernels that copy change no answer. Training
#   from the usual start does not get there in this budget.
# - A residual block whose last scale is zero changes nothing, and training goes on from
#   there. Without one block a trained residual network keeps most of its accuracy, on
#   average.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
extra = 0
for side, c_in, width in ((28, 256, 128), (14, 512, 256), (7, 1024, 512)):
    extra += 3 * side * side * c_in * width  # three of four pixels of the first 1x1

# %% tags=["solution-1-result"]
difference = cost["resnet50"] - cost["original_resnet50"]
claim(extra == difference, "the strides of v1.5 cost what the sum by hand gives")
table([(extra, difference)], ("by hand", "counted"))

# %% tags=["solution-2"]
at_rate = {}
for rate in (0.05, 0.2):
    seed(0)
    network = DigitNetwork(PlainBlock, 32).to(device)
    at_rate[rate] = train(network, train_part, rate=rate)[-1]

# %% tags=["solution-2-result"]
lowest = min(at_rate.values())
claim(lowest > most["residual", 32], "at other rates plain-32 stays above residual-32")
rows = [("plain", "0.1", losses["plain", 32, 0])]
rows += [("plain", str(rate), loss) for rate, loss in at_rate.items()]
rows.append(("residual", "0.1", losses["residual", 32, 0]))
rows = [(kind, rate, f"{loss:.2f}") for kind, rate, loss in sorted(rows)]
table(rows, ("block", "rate", "training loss at 32 layers"))


# %% tags=["solution-3"]
class HalvedShortcut(ResidualBlock):
    """relu(branch(x) + shortcut(x) / 2): constant scaling (He et al. 2016b, 3.1)."""

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)
        return torch.relu(self.branch(x) + 0.5 * self.shortcut(x))


seed(0)
halved = train(DigitNetwork(HalvedShortcut, 32).to(device), train_part)[-1]

# %% tags=["solution-3-result"]
whole = losses["residual", 32, 0]
claim(halved > most["residual", 32], "with halved shortcuts 32 layers fit less well")
record("halved", halved)
record("residual32.seed0", whole)
rows = [("whole", f"{whole:.2f}"), ("halved", f"{halved:.2f}")]
table(rows, ("shortcut", "training loss at 32 layers"))
