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
# # AlexNet
#
# What dropout and random crops do for a network that is too large for its data, then the
# network of 2012, its two towers, and the variant of 2014 that torchvision has.
# The text to it is the [chapter](../chapters/alexnet.rst), the paper is
# [Krizhevsky et al. 2012](https://papers.nips.cc/paper/2012/hash/c399862d3b9d6b76c8436e924a68c45b-Abstract.html).

# %%
import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import PROFILE, claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, drawing, images, plots, training

# %% [markdown]
# ## Dropout, by hand
#
# Each output is kept with probability one half and doubled, or set to zero. We write all
# masks for four outputs down and take the mean over them.

# %% tags=["dropout-by-hand"]
x = torch.tensor([2.0, 4.0, 0.0, 6.0])
masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)  # (16, 4), all there are
dropped = masks * x / 0.5
claim(torch.equal(dropped.mean(0), x), "the mean over all masks is the output")
rows = [("output", x), ("one mask", masks[11]), ("training, this mask", dropped[11])]
rows += [
    ("training, mean of all 16", dropped.mean(0)),
    ("test", nn.Dropout(0.5).eval()(x)),
]
table([(name, *(f"{v:g}" for v in values)) for name, values in rows], ("unit", *"1234"))


# %% tags=["dropout-drawing"]
def draw_layers(axes, left: float, title: str, gone: set) -> None:
    """Three layers of units from left to right; dropped ones have no connections."""
    layers = [[(left + 0.9 * i, 0.75 + 0.42 * j) for j in range(4)] for i in range(3)]
    for before, after in zip(layers, layers[1:]):
        for start in before:
            for end in after:
                if not {start, end} & {layers[i][j] for i, j in gone}:
                    axes.plot(*zip(start, end), color=plots.QUIET, linewidth=0.8)
    for i, layer in enumerate(layers):
        for j, (x, y) in enumerate(layer):
            missing = (i, j) in gone
            colour = plots.COLOURS[1] if missing else plots.COLOURS[0]
            marker = "x" if missing else "o"
            axes.plot(x, y, marker, color=colour, markersize=9)
    axes.text(left + 0.9, 0.25, title, ha="center", weight="bold", fontsize=11)


# %% tags=["dropout-figure"] alt="Three layers of four units, twice. At the left, named test, each unit is joined to all units of the next layer. At the right, named one image in training, two units of the middle layer and two of the last are crossed out and have no lines."
axes = diagrams.sheet(2.35)
draw_layers(axes, 0.4, "test", set())
draw_layers(axes, 2.9, "one image in training", {(1, 0), (1, 2), (2, 1), (2, 3)})


# %% [markdown]
# ## Crops
#
# The middle of an image, or in training a window from anywhere in it.


# %% tags=["crops"]
class MiddleCrop(nn.Module):
    """The window in the middle: (B, C, H, W) -> (B, C, size, size)."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        top = (x.shape[2] - self.size) // 2
        left = (x.shape[3] - self.size) // 2
        return x[:, :, top : top + self.size, left : left + self.size]


class RandomCrop(MiddleCrop):
    """Training: a random window of each image; else the middle one (section 4.1)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        B, C, H, W = x.shape
        tops = torch.randint(H - self.size + 1, (B,)).tolist()
        lefts = torch.randint(W - self.size + 1, (B,)).tolist()
        windows = [
            image[:, top : top + self.size, left : left + self.size]
            for image, top, left in zip(x, tops, lefts)
        ]
        return torch.stack(windows)  # (B, C, size, size)


# %% [markdown]
# ## A hundred digits
#
# A small network with the parts of the large one learns from ten images of each digit.


# %% tags=["small-network"]
class SmallNetwork(nn.Module):
    """Two convolutions and three linear layers: (B, 1, 20, 20) -> (B, 10)."""

    def __init__(self, dropout: float):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 5)
        self.conv2 = nn.Conv2d(8, 16, 3)
        self.pool = nn.MaxPool2d(2)
        self.fc3 = nn.Linear(16 * 3 * 3, 256)
        self.fc4 = nn.Linear(256, 256)
        self.fc5 = nn.Linear(256, 10)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x).relu())  # (B, 8, 8, 8)
        x = self.pool(self.conv2(x).relu()).flatten(1)  # (B, 144)
        x = self.dropout(self.fc3(x).relu())  # (B, 256)
        x = self.dropout(self.fc4(x).relu())  # (B, 256)
        return self.fc5(x)


# %% tags=["few"]
def first_of_each(part, n: int):
    """The first n images of each class."""
    x, y = part
    chosen = torch.cat([(y == label).nonzero()[:n, 0] for label in y.unique()])
    return x[chosen], y[chosen]


# %% tags=["digits"]
digits = images.digits(size=24)
mean = digits.train[0].mean()
std = digits.train[0].std()
parts = [((x - mean) / std, y) for x, y in digits[:3]]
few = first_of_each(parts[0], 10 if PROFILE == "sample" else 100)
test = parts[2]
record("few", len(few[1]))
record("digit.parameters", counting.parameters(SmallNetwork(0.5)))
rows = (("train", few), ("test", test))
table([(name, *x.shape) for name, (x, _) in rows], ("part", "N", "C", "H", "W"))

# %% tags=["fit"]
EPOCHS = 60
CASES = {
    "nothing": (MiddleCrop, 0.0),
    "dropout": (MiddleCrop, 0.5),
    "crops": (RandomCrop, 0.0),
    "both": (RandomCrop, 0.5),
}


def held_out_loss(network: nn.Module, part) -> float:
    """Mean cross entropy on images that the network is not trained on."""
    return F.cross_entropy(training.predict(network, part[0]), part[1]).item()


def fit(network: nn.Module, part, held_out, *, epochs=EPOCHS, rate=0.03):
    """SGD as in section 5, rate up and down. Held-out loss after each 15 epochs."""
    optimizer = torch.optim.SGD(
        network.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4
    )
    steps = epochs * len(part[1].split(25))
    schedule = training.one_cycle(optimizer, steps)
    losses = []
    for _ in range(epochs // 15):
        training.fit(network, part, 15, optimizer, batch=25, schedule=schedule)
        losses.append(held_out_loss(network, held_out))
    return losses


# %% tags=["headline"]
SEEDS = (0, 1, 2)
networks = {}
curves = {}
for case, (crop, dropout) in CASES.items():
    for number in SEEDS:
        seed(number)
        network = nn.Sequential(crop(20), SmallNetwork(dropout)).to(device)
        curves[case, number] = fit(network, few, test)
        networks[case, number] = network

# %% tags=["curve"] alt="Loss on held-out digits against epochs of training, mean of three seeds in a band from the smallest to the largest. The line named nothing ends highest; below it end dropout, then crops, and both lowest, below one half."
_, axes = plt.subplots(figsize=(5, 3.4))
epochs = range(15, EPOCHS + 1, 15)
ends = {}
for case, colour in zip(CASES, plots.COLOURS):
    runs = torch.tensor([curves[case, number] for number in SEEDS])
    ends[case] = plots.seed_band(axes, epochs, runs, colour)
axes.set(xlabel="epochs", ylabel="loss on held-out digits")
axes.set(xticks=epochs, ylim=(0, None))
plots.label_ends(axes, ends)

# %% tags=["result"]
rows = []
scores = {}
losses = {}
fitted = {}
for case in CASES:
    group = [networks[case, number] for number in SEEDS]
    fitted[case] = [training.evaluate(network, few) for network in group]
    losses[case] = [held_out_loss(network, test) for network in group]
    scores[case] = [training.evaluate(network, test) for network in group]
    record_spread(f"{case}.loss", losses[case])
    record_spread(f"{case}.test", scores[case])
    texts = [spread(losses[case], ".2f"), spread(scores[case], ".1%")]
    rows.append((case, spread(fitted[case], ".0%"), *texts))
table(
    rows, ("trained with", "right on its 100", "loss on 1,000 others", "right on these")
)

# %% tags=["headline-claims"]
ORDER = ("nothing", "dropout", "crops", "both")
for worse, better in zip(ORDER, ORDER[1:]):
    words = f"{better} has a lower held-out loss than {worse}, seeds apart"
    claim(max(losses[better]) < min(losses[worse]), words)
claim(max(losses["both"]) < 0.5, "with both it ends below one half")
for case in ORDER[1:]:
    words = f"with {case} more held-out digits are right than with nothing, seeds apart"
    claim(min(scores[case]) > max(scores["nothing"]), words)
touch = max(scores["crops"]) > min(scores["both"]) > min(scores["crops"])
claim(touch, "in accuracy crops and both are not told apart")
for case in ORDER[:3]:
    claim(min(fitted[case]) == 1, f"with {case} all training digits are right")
record("both.fitted", min(fitted["both"]))
early = {case: [curves[case, n][0] for n in SEEDS] for case in CASES}
for case in CASES:
    record_spread(f"{case}.early", early[case])
words = "after 15 epochs the loss with both is above that with dropout, seeds apart"
claim(min(early["both"]) > max(early["dropout"]), words)

# %% [markdown]
# ## Overlapping windows

# %% tags=["pool-figure"] alt="The row 1, 5, 2, 0, 3, 1, 4 twice. Left, windows of 2: lines lead from 1 and 5 to 5, from 2 and 0 to 2, from 3 and 1 to 3; the 4 is read by none. Right, windows of 3: lines lead from 1, 5 and 2 to 5, from 2, 0 and 3 to 3, from 3, 1 and 4 to 4; the 2 and the 3 of the row are read twice."
axes = diagrams.sheet(1.6)
row = torch.tensor([[1.0, 5, 2, 0, 3, 1, 4]])
for left, size in ((0.3, 2), (2.8, 3)):
    places = [left + 0.3 * i for i in range(7)]
    nodes = {i: diagrams.Node(places[i], 0.6, f"{row[0, i]:.0f}") for i in range(7)}
    title = f"windows of {size}, step 2"
    nodes["title"] = diagrams.Node(left + 0.9, 0.18, title, weight="bold")
    for i, value in enumerate(F.max_pool1d(row, size, stride=2)[0].tolist()):
        middle = sum(places[2 * i : 2 * i + size]) / size
        nodes[f"out{i}"] = diagrams.Node(middle, 1.35, f"{value:.0f}", weight="bold")
        for j in range(2 * i, 2 * i + size):
            axes.plot(
                [places[j], middle], [0.75, 1.2], color=plots.COLOURS[0], linewidth=1
            )
    diagrams.draw(axes, nodes)

# %% tags=["pool-claim"]
for side in (55, 27, 13):
    with torch.device("meta"):
        x = torch.empty(1, 1, side, side)
    words = f"from {side} pixels both windows give maps of one size"
    claim(F.max_pool2d(x, 3, 2).shape == F.max_pool2d(x, 2).shape, words)

# %% [markdown]
# ## Local response normalisation
#
# Each value is divided by a power of the squares at the same place in the maps next to it.


# %% tags=["response-norm"]
def response_norm(a: Tensor, *, n=5, k=2.0, alpha=1e-4, beta=0.75) -> Tensor:
    """b_i = a_i / (k + alpha * sum of a_j^2, n maps around i)^beta (section 3.3).

    (B, C, H, W) -> the same; n is odd; beyond the outermost maps is nothing.
    """
    C = a.shape[1]
    squares = F.pad(a.square(), (0, 0, 0, 0, n // 2, n // 2))  # (B, C + n - 1, H, W)
    around = sum(squares[:, j : j + C] for j in range(n))  # (B, C, H, W)
    return a / (k + alpha * around) ** beta


class ResponseNorm(nn.Module):
    """Response normalisation inside each tower: the other's maps are not at hand."""

    def __init__(self, towers: int):
        super().__init__()
        self.towers = towers

    def forward(self, x: Tensor) -> Tensor:
        # (B, C, H, W) -> the same
        parts = x.chunk(self.towers, dim=1)
        return torch.cat([response_norm(part) for part in parts], dim=1)


# %% tags=["norm-by-hand"]
a = torch.tensor([20.0, 200.0, 20.0, 20.0, 20.0])
b = response_norm(a.view(1, 5, 1, 1)).flatten()
beside = 20 / (2 + 1e-4 * (20**2 + 200**2 + 20**2)) ** 0.75
apart = 20 / (2 + 1e-4 * 3 * 20**2) ** 0.75
claim(abs(b[0] - beside) < 1e-4, "the first map by hand")
claim(abs(b[4] - apart) < 1e-4, "the last map by hand")
for name, value in zip(("beside", "strong", "", "", "apart"), b):
    if name:
        record(f"norm.{name}", value)
rows = [("before", *(f"{v:.0f}" for v in a)), ("after", *(f"{v:.1f}" for v in b))]
table(rows, ("map", "1", "2", "3", "4", "5"))

# %% tags=["norm-bars"] alt="Two rows of bars for the same 24 maps at one place of a photograph. Before the normalisation the tallest bar is map 18, with a tall neighbour, map 19. After it both are below map 11, which stands alone and was less than half as tall as either."
seed(0)
conv = nn.Conv2d(3, 48, 11, stride=4)
nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
picture = 255 * images.photograph(227, 227)
with torch.no_grad():
    maps = conv(picture - picture.mean((2, 3), keepdim=True)).relu()  # (1, 48, 55, 55)
    before = maps[0, :, 20, 27]
    after = response_norm(maps)[0, :, 20, 27]
_, grid = plt.subplots(2, 1, figsize=(5, 3.6), sharex=True)
grid[1].set(xlabel="map", xticks=(1, 6, 12, 18, 24))
for axes, values, title in zip(grid, (before, after), ("before", "after")):
    axes.set(title=title)
    axes.bar(range(1, 25), values[:24], color=plots.COLOURS[0])

# %% tags=["norm-effect"]
positive = before > 0
factors = (before / after)[positive]
order = before[:24].argsort(descending=True) + 1
claim(order[:2].tolist() == [18, 19], "before, maps 18 and 19 are the strongest")
claim(after[:24].argmax() + 1 == 11, "after, map 11 is the strongest")
claim(2 * before[10] < before[18], "map 11 was less than half as strong as either")
alone = before[8:13].count_nonzero() == 1
claim(alone, "the two maps on each side of map 11 are zero")
for key, number in (("strong", 18), ("neighbour", 19), ("lonely", 11)):
    record(f"norm.{key}.before", before[number - 1])
    record(f"norm.{key}.after", after[number - 1])
record("norm.least", factors.min())
record("norm.most", factors.max())
claim(
    factors.max() > 2 * factors.min(), "some maps are divided by twice what others are"
)
with torch.no_grad():
    small = (conv(picture - picture.mean((2, 3), keepdim=True)) / picture.std()).relu()
    small = (small / response_norm(small))[small > 0]
claim(
    small.max() / small.min() < 1.05, "on pixels of deviation 1 all are divided alike"
)

# %% [markdown]
# ## The network of 2012
#
# A convolution with `groups=2` is two side by side: the first half of the outputs reads the
# first half of the inputs, the second the second.


# %% tags=["alexnet"]
class AlexNet(nn.Module):
    """Five convolutions and three linear layers (section 3.5 and figure 2).

    The halves of the maps are the two towers; `side` is that of the last maps.
    (B, 3, 227, 227) -> (B, num_classes).
    """

    def __init__(self, *, towers: int = 2, side: int = 6, num_classes: int = 1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=towers)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=towers)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=towers)
        self.norm = ResponseNorm(towers)
        self.pool = nn.MaxPool2d(3, stride=2)
        self.fc6 = nn.Linear(256 * side * side, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norm(self.conv1(x).relu()))  # (B, 96, 27, 27)
        x = self.pool(self.norm(self.conv2(x).relu()))  # (B, 256, 13, 13)
        x = self.conv3(x).relu()  # (B, 384, 13, 13)
        x = self.conv4(x).relu()  # (B, 384, 13, 13)
        x = self.pool(self.conv5(x).relu()).flatten(1)  # (B, 256 * 6 * 6)
        x = self.dropout(self.fc6(x).relu())  # (B, 4096)
        x = self.dropout(self.fc7(x).relu())  # (B, 4096)
        return self.fc8(x)  # (B, num_classes)


# %% tags=["alexnet-shape"]
with torch.device("meta"):
    output = AlexNet()(torch.empty(2, 3, 227, 227))
output.shape

# %% tags=["drawn"] alt="The network of 2012 from top to bottom, with output shape and parameters at the right: the input of 3x227x227, five convolutions with a pooling behind the first, the second and the fifth, whose maps shrink from 55 over 27 and 13 to 6 pixels a side, then fc6, fc7 and fc8 with 4096, 4096 and 1000 values. Most parameters stand beside fc6 and fc7."
with torch.device("meta"):
    network = AlexNet()
    x = torch.empty(1, 3, 227, 227)
drawing.draw(network, x)

# %% tags=["drawn-claim"]
most = counting.parameters(network.fc6) + counting.parameters(network.fc7)
claim(most > 0.8 * counting.parameters(network), "fc6 and fc7 hold most parameters")
record("hidden.share", most / counting.parameters(network))

# %% [markdown]
# ### Two towers
#
# The same network as it ran: two networks of half the width with no group anywhere, and
# the places where each receives what the other has.


# %% tags=["tower"]
class Tower(nn.Module):
    """Half of the maps of each layer: what one GPU holds."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 48, 11, stride=4)
        self.conv2 = nn.Conv2d(48, 128, 5, padding=2)
        self.conv3 = nn.Conv2d(256, 192, 3, padding=1)  # reads the maps of both
        self.conv4 = nn.Conv2d(192, 192, 3, padding=1)
        self.conv5 = nn.Conv2d(192, 128, 3, padding=1)
        self.norm = nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)
        self.pool = nn.MaxPool2d(3, stride=2)
        self.fc6 = nn.Linear(256 * 6 * 6, 2048)
        self.fc7 = nn.Linear(4096, 2048)
        self.fc8 = nn.Linear(4096, 500)
        self.dropout = nn.Dropout(0.5)

    def first_maps(self, image: Tensor) -> Tensor:
        # (B, 3, 227, 227) -> (B, 128, 13, 13)
        x = self.pool(self.norm(self.conv1(image).relu()))
        return self.pool(self.norm(self.conv2(x).relu()))

    def last_maps(self, x: Tensor) -> Tensor:
        # (B, 256, 13, 13) -> (B, 128 * 6 * 6)
        x = self.conv4(self.conv3(x).relu()).relu()
        return self.pool(self.conv5(x).relu()).flatten(1)

    def hidden6(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc6(x).relu())  # (B, 256 * 6 * 6) -> (B, 2048)

    def hidden7(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc7(x).relu())  # (B, 4096) -> (B, 2048)


class TwoTowers(nn.Module):
    """Each line runs on both GPUs, then they exchange: (B, 3, 227, 227) -> (B, K)."""

    def __init__(self):
        super().__init__()
        self.one = Tower()
        self.two = Tower()

    def forward(self, image: Tensor) -> Tensor:
        one = self.one
        two = self.two
        x = torch.cat((one.first_maps(image), two.first_maps(image)), 1)
        x = torch.cat((one.last_maps(x), two.last_maps(x)), 1)
        x = torch.cat((one.hidden6(x), two.hidden6(x)), 1)
        x = torch.cat((one.hidden7(x), two.hidden7(x)), 1)
        return torch.cat((one.fc8(x), two.fc8(x)), 1)


def split_weights(network: AlexNet, pair: TwoTowers) -> None:
    """Give half of each layer's outputs to one tower, the rest to the other."""
    halves = [tensor.chunk(2) for tensor in network.state_dict().values()]
    for number, tower in enumerate((pair.one, pair.two)):
        mine = [both[number] for both in halves]
        tower.load_state_dict(dict(zip(tower.state_dict(), mine, strict=True)))


# %% tags=["layout-figure"] alt="Two columns of boxes under one image, GPU 1 and GPU 2, eight rows from conv1 to fc8. Straight arrows lead down each column. Orange arrows cross between the columns in front of conv3, fc6, fc7 and fc8 only."
SHAPES = {"conv1": "48×27×27", "conv2": "128×13×13", "conv3": "192×13×13"}
SHAPES |= {"conv4": "192×13×13", "conv5": "128×6×6", "fc6": "2048", "fc7": "2048"}
SHAPES |= {"fc8": "500"}
axes = diagrams.sheet(5.75)
nodes = {"image": diagrams.Node(2.75, 0.25, "image, 3×227×227", width=3.4)}
arrows = []
crossing = []
for row, (name, shape) in enumerate(SHAPES.items(), start=1):
    y = 0.25 + 0.65 * row
    nodes[name] = diagrams.Node(0.45, y, name, weight="bold")
    for number, x in enumerate((1.75, 3.75)):
        nodes[name, number] = diagrams.Node(x, y, shape, width=1.4)
        above = list(SHAPES)[row - 2]
        arrows.append(((x, y - 0.46), (x, y - 0.19)))
        if name in ("conv3", "fc6", "fc7", "fc8"):
            other = 3.75 if number == 0 else 1.75
            crossing.append(((x, y - 0.46), (other + (x - other) * 0.2, y - 0.19)))
diagrams.draw(axes, nodes, arrows, crossing)

# %% [markdown]
# ### The variant of 2014
#
# One tower and fewer maps in the first two layers. torchvision's form has fewer in conv4
# too, leaves the normalisation out and has dropout in front of the linear layers.


# %% tags=["one-tower"]
class AlexNet2014(nn.Module):
    """The single column of Krizhevsky 2014 as in torchvision: (B, 3, H, W) -> (B, K).

    A mean over cells brings maps of any size from one pixel up to 6x6.
    """

    def __init__(self, *, conv4_maps: int = 256, num_classes: int = 1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(64, 192, 5, padding=2)
        self.conv3 = nn.Conv2d(192, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, conv4_maps, 3, padding=1)
        self.conv5 = nn.Conv2d(conv4_maps, 256, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2)
        self.mean = nn.AdaptiveAvgPool2d(6)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x).relu())  # (B, 64, 27, 27) from 224 pixels
        x = self.pool(self.conv2(x).relu())  # (B, 192, 13, 13)
        x = self.conv3(x).relu()  # (B, 384, 13, 13)
        x = self.conv4(x).relu()  # (B, 256, 13, 13)
        x = self.pool(self.conv5(x).relu())  # (B, 256, 6, 6)
        x = self.mean(x).flatten(1)  # (B, 256 * 6 * 6)
        x = self.fc6(self.dropout(x)).relu()  # (B, 4096)
        x = self.fc7(self.dropout(x)).relu()  # (B, 4096)
        return self.fc8(x)  # (B, num_classes)


# %% [markdown]
# ## Counted
#
# On torch's meta device a tensor has a shape and no values: a network can be counted
# without computing anything.

# %% tags=["count"]
BUILDERS = {
    "two": ("AlexNet, two towers", 227, lambda: AlexNet()),
    "joined": ("AlexNet, towers joined", 227, lambda: AlexNet(towers=1)),
    "single": ("AlexNet2014", 224, lambda: AlexNet2014()),
    "footnote": (
        "AlexNet2014, 384 maps in conv4",
        224,
        lambda: AlexNet2014(conv4_maps=384),
    ),
}
rows = []
counts = {}
for key, (name, size, build) in BUILDERS.items():
    with torch.device("meta"):
        network = build()
        x = torch.empty(1, 3, size, size)
    counts[key] = counting.parameters(network), counting.macs(network, x)
    rows.append((name, size, *counts[key]))
table(rows, ("network", "input", "parameters", "MACs"))

# %% tags=["count-records"]
for key, (parameters, macs) in counts.items():
    record(f"{key}.parameters", parameters)
    record(f"{key}.macs", macs)
    record(f"{key}.parameters.more", parameters / counts["two"][0] - 1)
    record(f"{key}.macs.more", macs / counts["two"][1] - 1)
bits = 1.2e6 * torch.tensor(1000.0).log2().item()  # of the labels (section 4)
record("bits", bits / 1e6)
record("parameters.per.bit", counts["two"][0] / bits)
record("sent", 128 * 13 * 13 + 128 * 6 * 6 + 2048 + 2048)

# %% [markdown]
# ## Equal to the references

# %% tags=["equal"]
seed(0)
ours = AlexNet()
theirs = TwoTowers()
split_weights(ours, theirs)
x = 30 * torch.randn(2, 3, 227, 227)  # large, so that the normalisation matters
towers = checks.same_outputs(ours, theirs, x)
ours = AlexNet2014()
theirs = torchvision.models.alexnet()
checks.transplant(theirs, ours)
library = checks.same_outputs(ours, theirs, x[:, :, :131, :97])
record("deviation", max(towers, library))
rows = [("AlexNet", "two towers, torch's normalisation", f"{towers:.1e}")]
rows.append(("AlexNet2014", "torchvision", f"{library:.1e}"))
table(rows, ("network", "reference", "largest difference"))
del ours, theirs

# %% [markdown]
# ## Crops and colours of a photograph
#
# The paper shifts the colours of each image along their principal axes (section 4.1).


# %% tags=["colour"]
def colour_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (3,) and eigenvectors (columns) of the covariance of all colours."""
    return torch.linalg.eigh(torch.cov(x.transpose(0, 1).flatten(1)))


def shift_colour(x: Tensor, values: Tensor, vectors: Tensor, *, sigma=0.1) -> Tensor:
    """Add p_1 a_1 l_1 + p_2 a_2 l_2 + p_3 a_3 l_3 to each pixel; a_i are normal."""
    a = sigma * torch.randn(len(x), 3, device=x.device)
    return x + ((a * values) @ vectors.T)[:, :, None, None]


# %% tags=["colour-by-hand"]
two = torch.tensor([[1.0, -1.0]] * 3).view(1, 3, 1, 2)  # a light grey pixel, a dark one
values, vectors = colour_axes(two)
claim(
    (values - torch.tensor([0.0, 0.0, 6.0])).abs().max() < 1e-4, "one axis varies, by 6"
)
claim((vectors[:, 2].abs() - 3**-0.5).abs().max() < 1e-4, "the axis is grey")
values.round(decimals=3).abs()

# %% tags=["photographs"]
IMAGES = 1000 if PROFILE == "sample" else 20_000
data = images.patches()
colour_mean = data.train[0].mean((0, 2, 3), keepdim=True)
colour_std = data.train[0].std()
photographs = (data.train[0][:IMAGES] - colour_mean) / colour_std
classes = data.train[1][:IMAGES]
record("images", len(classes))
record("classes", len(data.classes))
photographs.shape

# %% tags=["augmentation"] alt="A portrait photograph eight times in two rows. The first row shows the whole picture and three windows of it, in which the person stands at slightly different places. The second row shows the middle window four times in slightly different colours, some lighter and some darker."
seed(3)
picture = (images.photograph(128, 128) - colour_mean) / colour_std
windows = RandomCrop(112)(picture.repeat(3, 1, 1, 1))
middle = MiddleCrop(112)(picture).repeat(4, 1, 1, 1)
shifted = shift_colour(middle, *colour_axes(photographs))
shown = [
    (x * colour_std + colour_mean[0]).clamp(0, 1)
    for x in (*picture, *windows, *shifted)
]
titles = ["128×128", *["112×112"] * 3, *["colour"] * 4]
plots.image_grid(shown, titles, columns=4, scale=1.2)

# %% [markdown]
# ## ReLU against tanh
#
# Figure 1 of the paper: a network of four layers without regularisation, once with each
# unit. The pixels are in 0..255 with the mean colour subtracted.


# %% tags=["units-drawn"] alt="Two curves for inputs from minus 4 to 4. That of tanh rises from minus 1 to 1 and is flat at both ends. That of ReLU is 0 for inputs below 0 and then rises in a straight line, past the upper end of tanh."
_, axes = plt.subplots(figsize=(5, 2.6))
inputs = torch.linspace(-4, 4, 161)
ends = {}
for name, unit in (("ReLU", torch.relu), ("tanh", torch.tanh)):
    axes.plot(inputs, unit(inputs))
    ends[name] = (4, unit(inputs)[-1].item())
axes.set(xlabel="input", ylabel="output", ylim=(-1.2, 4.2))
plots.label_ends(axes, ends)

# %% tags=["slopes"]
at = torch.tensor([2.0, 10.0], dtype=torch.float64, requires_grad=True)
torch.tanh(at).sum().backward()
record("slope.two", at.grad[0])
record("slope.ten", at.grad[1])
below = torch.tensor([-3.0, 3.0], requires_grad=True)
torch.relu(below).sum().backward()
claim(below.grad.tolist() == [0, 1], "the slope of ReLU is 0 below 0 and 1 above")


# %% tags=["four-layers"]
class FourLayers(nn.Module):
    """Three convolutions and a linear layer: (B, 3, 32, 32) -> (B, 10)."""

    def __init__(self, unit):
        super().__init__()
        self.unit = unit
        self.conv1 = nn.Conv2d(3, 16, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2)
        self.classifier = nn.Linear(32 * 3 * 3, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.unit(self.conv1(x)))  # (B, 16, 7, 7)
        x = self.pool(self.unit(self.conv2(x)))  # (B, 32, 3, 3)
        x = self.unit(self.conv3(x)).flatten(1)  # (B, 288)
        return self.classifier(x)


# %% tags=["learn"]
def learn(network: nn.Module, x: Tensor, *, rate: float, epochs: int = 5):
    """Error on the training images after each epoch of SGD with momentum, in a list."""
    network = network.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    part = x, classes
    history = training.fit(network, part, epochs, optimizer, validation=part)
    return [1 - right for right in history["validation"]]


# %% tags=["speed"]
RATES = {"ReLU": 0.001, "tanh": 0.03}  # the best of four and five, tried on other seeds
UNITS = {"ReLU": torch.relu, "tanh": torch.tanh}
pixels = 255 * colour_std * photographs
errors = {}
for name, unit in UNITS.items():
    for number in SEEDS:
        seed(number)
        errors[name, number] = learn(FourLayers(unit), pixels, rate=RATES[name])

# %% tags=["speed-figure"] alt="Training error against epochs 1 to 5, mean of three seeds in a band from the smallest to the largest. The line of ReLU ends at about one quarter; that of tanh lies above it from the second epoch on and ends more than 0.1 higher."
_, axes = plt.subplots()
ends = {}
for name, colour in zip(UNITS, plots.COLOURS):
    runs = torch.tensor([errors[name, number] for number in SEEDS])
    ends[name] = plots.seed_band(axes, range(1, 6), runs, colour)
axes.set(xlabel="epochs", ylabel="training error", ylim=(0, 0.8))
plots.label_ends(axes, ends)

# %% tags=["speed-claims"]
runs = {name: torch.tensor([errors[name, n] for n in SEEDS]) for name in UNITS}
for name in UNITS:
    record_spread(f"{name}.mean", runs[name].mean(1).tolist())
    record_spread(f"{name}.last", runs[name][:, -1].tolist())
words = (
    "the mean error of ReLU over the epochs is smaller than that of tanh, seeds apart"
)
claim(runs["ReLU"].mean(1).max() < runs["tanh"].mean(1).min(), words)
words = "after four epochs ReLU is below what tanh reaches after five, seeds apart"
claim(runs["ReLU"][:, 3].max() < runs["tanh"][:, 4].min(), words)
last = {name: runs[name][:, -1].mean() for name in UNITS}
claim(0.2 < last["ReLU"] < 0.3, "the mean of ReLU ends at about one quarter")
claim(last["tanh"] > last["ReLU"] + 0.1, "the mean of tanh ends more than 0.1 higher")
for epoch in range(1, 5):
    words = f"after epoch {epoch + 1} the error of ReLU is smaller, seeds apart"
    claim(runs["ReLU"][:, epoch].max() < runs["tanh"][:, epoch].min(), words)

# %% tags=["flat"]
for key, x in (("raw", pixels), ("scaled", photographs)):
    seed(0)
    with torch.no_grad():
        entering = FourLayers(torch.tanh).conv1(x)
    share = (entering.abs() > 2).double().mean().item()
    record(f"flat.{key}", share)
    claim(share > 0.8 if key == "raw" else share < 0.05, f"share beyond 2, {key}")

# %% [markdown]
# ## Look inside
#
# Does a network lean on single units? Take a share of the hidden units of both layers away
# and see what is left.


# %% tags=["without-units"]
def take_away(layer: nn.Linear, share: float):
    """From now on drop this share of a layer's outputs and scale the others up."""
    kept = torch.randperm(layer.out_features) >= share * layer.out_features
    mask = kept.to(layer.weight) / (1 - share)
    return layer.register_forward_hook(lambda layer, inputs, output: output * mask)


def accuracy_without(
    network: nn.Module, part, share: float, *, draws: int = 4
) -> float:
    """Mean accuracy without this share of the hidden units, over draws of the units."""
    seed(0)
    found = []
    for _ in range(draws):
        handles = [
            take_away(layer, share) for layer in (network[1].fc3, network[1].fc4)
        ]
        found.append(training.evaluate(network, part))
        for handle in handles:
            handle.remove()
    return sum(found) / draws


# %% tags=["units-figure"] alt="Accuracy on held-out digits against the share of hidden units taken away, 0 to 75 percent, mean of three seeds in a band. Both lines fall; that of the networks trained with dropout lies above that of the networks trained with nothing all along."
SHARES = (0.0, 0.25, 0.5, 0.75)
_, axes = plt.subplots()
ends = {}
left = {}
for case, colour in (("nothing", plots.COLOURS[0]), ("dropout", plots.COLOURS[1])):
    left[case] = torch.tensor(
        [[accuracy_without(networks[case, n], test, s) for s in SHARES] for n in SEEDS]
    )
    ends[case] = plots.seed_band(axes, SHARES, left[case], colour)
axes.set(xlabel="share of hidden units taken away", ylabel="accuracy", ylim=(0, 1))
axes.set(xticks=SHARES)
plots.label_ends(axes, ends)

# %% tags=["units-claims"]
for case in left:
    record_spread(f"half.{case}", left[case][:, 2].tolist())
for i in range(len(SHARES)):
    words = f"with {SHARES[i]} of the units gone dropout keeps more, seeds apart"
    claim(left["dropout"][:, i].min() > left["nothing"][:, i].max(), words)
for case in left:
    falls = left[case].mean(0).diff().max() < 0
    claim(falls, f"with {case} the mean accuracy falls with each share")
lost = {case: left[case][:, 0] - left[case][:, 2] for case in left}
claim(lost["dropout"].max() < lost["nothing"].min(), "dropout loses less, seeds apart")

# %% [markdown]
# ## How large is the input?
#
# The paper says 224x224, kernels of 11x11, a stride of 4. We count what follows from each
# way to read that.


# %% tags=["sides"]
def sides(size: int) -> list[int]:
    """Sides of the maps behind conv1, pool1, pool2 and pool5."""
    found = [(size - 11) // 4 + 1]
    for _ in range(3):
        found.append((found[-1] - 3) // 2 + 1)
    return found


# %% tags=["input-count"]
rows = []
for words, size in (
    ("224", 224),
    ("227, or 224 and 3 zeros", 227),
    ("224, 2 on each side", 228),
):
    found = sides(size)
    with torch.device("meta"):
        network = AlexNet(side=found[-1])
        fits = network(torch.empty(1, 3, size, size)).shape == (1, 1000)
    claim(fits, f"the network takes {size} pixels")
    units = 96 * found[0] ** 2 + 256 * found[1] ** 2 + (384 + 384 + 256) * found[2] ** 2
    rows.append((words, *found, counting.parameters(network), units + 2 * 4096 + 1000))
table(rows, ("input", "conv1", "pool1", "pool2", "pool5", "parameters", "units"))
record("short.parameters", rows[0][5])

# %% [markdown]
# ## What we saw
#
# - The small network knows its hundred digits by heart. With random crops, or with dropout,
#   its loss on other digits is lower, with both it is lowest.
# - A network trained with dropout loses less when hidden units are taken away.
# - Grouped convolutions are two towers that exchange maps in front of conv3 and the linear
#   layers: equal outputs with the same weights.
# - On pixels in 0..255 ReLU learns faster than tanh, most of whose units start flat.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
convolutions = 96 * (3 * 11**2 + 1) + 256 * (48 * 5**2 + 1) + 384 * (256 * 3**2 + 1)
convolutions += 384 * (192 * 3**2 + 1) + 256 * (192 * 3**2 + 1)
linear = 4096 * (256 * 6 * 6 + 1) + 4096 * (4096 + 1) + 1000 * (4096 + 1)
claim(convolutions + linear == counts["two"][0], "the sum by hand is what is counted")
record("linear.share", linear / (convolutions + linear))
table([(convolutions, linear)], ("convolutions", "linear layers"))


# %% tags=["weights-for-relu"]
def weights_for_relu(network: nn.Module) -> nn.Module:
    """Draw initial weights of variance 2 / inputs, biases 0 (He et al. 2015, 2.2)."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return network


# %% tags=["solution-2"]
INITIAL = {"torch's": lambda network: network, "for ReLU": weights_for_relu}
SCALED = {"torch's": {"ReLU": 0.03, "tanh": 0.03}}  # the best of three, on other seeds
SCALED["for ReLU"] = {"ReLU": 0.01, "tanh": 0.03}
rows = []
means = {}
for weights, start in INITIAL.items():
    for name, unit in UNITS.items():
        found = []
        for number in SEEDS:
            seed(number)
            network = start(FourLayers(unit))
            run = learn(network, photographs, rate=SCALED[weights][name], epochs=2)
            found.append(sum(run) / len(run))
        means[weights, name] = found
        rows.append((weights, name, spread(found, ".0%")))
table(rows, ("initial weights", "unit", "training error, mean of two epochs"))

# %% tags=["solution-2-claims"]
tanh = means["torch's", "tanh"]
relu = means["torch's", "ReLU"]
claim(max(tanh) < min(relu), "with torch's initial weights tanh is ahead, seeds apart")
for name in UNITS:
    words = f"weights for ReLU lower the error of {name}, seeds apart"
    claim(max(means["for ReLU", name]) < min(means["torch's", name]), words)
tanh = means["for ReLU", "tanh"]
relu = means["for ReLU", "ReLU"]
claim(max(tanh) > min(relu), "with weights for ReLU the two are not told apart")

# %% tags=["solution-3"]
rows = []
for towers in (1, 2, 4):
    with torch.device("meta"):
        network = AlexNet(towers=towers)
        x = torch.empty(1, 3, 227, 227)
    rows.append((towers, counting.parameters(network), counting.macs(network, x)))
table(rows, ("towers", "parameters", "MACs"))
