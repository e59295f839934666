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
# # Vision transformer (ViT)
#
# An image as a row of patches, and layers in which every patch reads every other: trained
# on digits beside a convolutional network, then built at the published sizes and compared
# with torchvision. The text to it is the [chapter](../chapters/vit.rst), the paper is
# [Dosovitskiy et al. 2020](https://arxiv.org/abs/2010.11929).

# %%
import copy
import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import vision_transformer as library

from workbench import PROFILE, claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, drawing, images, plots, training

# %% [markdown]
# ## Patches become tokens
#
# A convolution whose stride is the size of its kernel cuts the image into patches and maps
# each to D numbers, a token.


# %% tags=["patches"]
class Patches(nn.Module):
    """One token for each patch: a convolution with stride = size (equation 1, E)."""

    def __init__(self, c_in: int, d_model: int, *, size: int):
        super().__init__()
        self.conv = nn.Conv2d(c_in, d_model, size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)  # (B, D, H / size, W / size)
        return x.flatten(2).mT  # (B, T, D)


# %% tags=["patches-shape"]
Patches(1, 32, size=7)(torch.randn(5, 1, 28, 28)).shape

# %% tags=["patches-by-hand"]
patches = Patches(3, 32, size=7)
x = torch.randn(2, 3, 28, 28)
columns = F.unfold(x, 7, stride=7)  # (B, 3 * 49, 16): the pixels of a patch in a column
by_hand = columns.mT @ patches.conv.weight.flatten(1).T + patches.conv.bias
claim(
    checks.deviation(patches(x), by_hand) < 1e-5,
    "the convolution multiplies each patch by one matrix",
)


# %% tags=["positions"]
class Positions(nn.Module):
    """Add a learnt row to each token (equation 1, E_pos): (B, T, D) -> (B, T, D)."""

    def __init__(self, n_tokens: int, d_model: int, *, std: float = 0.02):
        super().__init__()
        self.rows = nn.Parameter(std * torch.randn(1, n_tokens, d_model))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.rows


# %% [markdown]
# ## Attention
#
# Each token asks all tokens: the products of its query with their keys, divided by the
# root of their length, go through a softmax, and the result is the mean of their values
# with these weights.


# %% tags=["weights"]
def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)), rows add up to 1: (..., T, d) twice -> (..., T, T)."""
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)


# %% tags=["weights-run"]
q = torch.tensor([[2.0, 0, 0, 0]])  # one query of length 4
k = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0]])  # three keys
v = torch.tensor([[10.0], [20], [30]])  # a value behind each key
weights = attention_weights(q, k)
answer = weights @ v

# %% tags=["weights-result"]
products = (q @ k.mT)[0].tolist()
rows = []
for number in range(3):
    product = products[number]
    row = (product, product / 2, f"{weights[0, number]:.3f}", v[number].item())
    rows.append((number + 1, *row))
record("answer", answer)
table(rows, ("token", "q · k", "divided by √4", "weight", "value"))


# %% tags=["attention"]
class Attention(nn.Module):
    """Every token reads all tokens, in several heads side by side (appendix A)."""

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        assert d_model % n_heads == 0, "n_heads must divide d_model"
        self.n_heads = n_heads
        self.to_qkv = nn.Linear(d_model, 3 * d_model)
        self.to_out = nn.Linear(d_model, d_model)

    def heads(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values, each (B, h, T, d)."""
        parts = self.to_qkv(x).chunk(3, dim=-1)  # three of (B, T, D)
        return [
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in parts
        ]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        x = attention_weights(q, k) @ v  # (B, h, T, d)
        return self.to_out(x.transpose(1, 2).flatten(2))  # (B, T, D)


# %% tags=["attention-shape"]
Attention(32, 4)(torch.randn(5, 17, 32)).shape

# %% [markdown]
# ## The block
#
# Layer norm takes mean and variance of the numbers of one token. So nothing depends on the
# batch, and training and evaluation do the same.

# %% tags=["norm-run"]
token = torch.tensor([2.0, 4.0, 4.0, 6.0])
mean = token.mean()
variance = token.var(correction=0)
by_hand = (token - mean) / torch.sqrt(variance + 1e-6)
normed = nn.LayerNorm(4, eps=1e-6)(token)

# %% tags=["norm-checked"]
claim(checks.deviation(normed, by_hand) < 1e-6, "layer norm by hand is torch's")
record("norm.last", by_hand[3])


# %% tags=["block"]
class Block(nn.Module):
    """Tokens read each other, then each is changed alone (figure 1, equations 2, 3)."""

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model, eps=1e-6)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model, eps=1e-6)
        wide = nn.Linear(d_model, 4 * d_model)
        self.mlp = nn.Sequential(wide, nn.GELU(), nn.Linear(4 * d_model, d_model))

    def forward(self, x: Tensor) -> Tensor:
        # (B, T, D) -> (B, T, D)
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% tags=["block-shape"]
Block(32, 4)(torch.randn(5, 17, 32)).shape


# %% tags=["drawing"]
def draw_block(axes, x: float) -> None:
    """The encoder block, from top to bottom around x."""
    names = ("$z$", "layer norm", "attention", "+", "layer norm", "MLP", "+", "")
    nodes = {"title": diagrams.Node(x, 0.15, "block", weight="bold")}
    for number, name in enumerate(names):
        width = 1.25 if len(name) > 3 or name == "MLP" else 0
        nodes[f"b{number}"] = diagrams.Node(x, 0.5 + 0.52 * number, name, width=width)
    shortcuts = []
    for start, end in ((0.73, "b3"), (2.3, "b6")):
        right = (x + 0.85, start)
        shortcuts.append(((x, start), right, (x + 0.85, nodes[end].y), end))
    arrows = [(f"b{k}", f"b{k + 1}") for k in range(7)]
    diagrams.draw(axes, nodes, arrows, shortcuts)


def draw_head(axes, x: float) -> None:
    """One head of attention: three columns that join, around x."""
    nodes = {
        "head": diagrams.Node(x, 0.15, "one head", weight="bold"),
        "x": diagrams.Node(x, 0.5, "normed tokens"),
        "product": diagrams.Node(x - 0.4, 2.15, "q · k / √d", width=1.25),
        "softmax": diagrams.Node(x - 0.4, 2.75, "softmax", width=1.25),
        "times": diagrams.Node(x + 0.2, 3.4, "weights × values", width=1.75),
        "out": diagrams.Node(x + 0.2, 4.05, "(to_out, with other heads)"),
    }
    for place, name in ((-0.8, "q"), (0.0, "k"), (0.8, "v")):
        nodes[name] = diagrams.Node(x + place, 1.3, f"${name}$", width=0.5)
    arrows = [("x", "q"), ("x", "k"), ("x", "v"), ("q", "product"), ("k", "product")]
    arrows += [("product", "softmax"), ("softmax", "times"), ("v", "times")]
    diagrams.draw(axes, nodes, [*arrows, ("times", "out")])


# %% tags=["block-figure"] alt="Left, the block from top to bottom: z, a box layer norm, a box attention, a plus sign, layer norm, MLP, a plus sign. One arrow runs from above the first norm past attention into the first plus, a second from there past the MLP into the second plus. Right, one head: from the normed tokens arrows lead to three boxes q, k and v; q and k meet in a box, q times k over the root of d, followed by softmax; its weights and v meet in a box, weights times values; from there an arrow leads to to_out."
axes = diagrams.sheet(4.35)
draw_block(axes, 0.95)
draw_head(axes, 3.45)


# %% tags=["network"]
class ViT(nn.Module):
    """Patches, class token, positions, blocks, norm, linear layer (figure 1).

    (B, C, H, W) -> (B, num_classes). stem: image -> (B, n_patches, D).
    """

    def __init__(
        self,
        stem: nn.Module,
        n_patches: int,
        *,
        depth: int,
        d_model: int,
        n_heads: int,
        num_classes: int = 1000,
        std: float = 0.02,
    ):
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, d_model))
        self.stem = stem
        self.positions = Positions(1 + n_patches, d_model, std=std)
        self.blocks = nn.Sequential(*[Block(d_model, n_heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(d_model, eps=1e-6)
        self.classifier = nn.Linear(d_model, num_classes)

    def tokens(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, T, D)
        first = self.class_token.expand(len(x), -1, -1)  # (B, 1, D)
        return self.positions(torch.cat((first, x), dim=1))  # (B, 1 + T, D)

    def classify(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.blocks(tokens))  # (B, 1 + T, D)
        return self.classifier(x[:, 0])  # (B, num_classes), of the class token

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.tokens(x))


# %% [markdown]
# ## Three networks for digits
#
# A small ViT, the same with convolutions in place of the patches, and a convolutional
# network, with about equal numbers of parameters.


# %% tags=["conv-stem"]
def conv_norm(c_in: int, c_out: int, *, stride: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    conv = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())


class ConvStem(nn.Module):
    """Three 3x3 convolutions of stride 2, then 1x1 (Xiao et al. 2021, section 4)."""

    def __init__(self, c_in: int, d_model: int):
        super().__init__()
        self.conv1 = conv_norm(c_in, d_model // 8, stride=2)
        self.conv2 = conv_norm(d_model // 8, d_model // 4, stride=2)
        self.conv3 = conv_norm(d_model // 4, d_model // 2, stride=2)
        self.last = nn.Conv2d(d_model // 2, d_model, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x))  # (B, D / 4, 7, 7) for 28x28
        x = self.last(self.conv3(x))  # (B, D, 4, 4)
        return x.flatten(2).mT  # (B, 16, D)


# %% tags=["cnn"]
class SmallCNN(nn.Module):
    """Four 3x3 convolutions, mean over the map, linear layer: to (B, 10)."""

    def __init__(self):
        super().__init__()
        self.conv1 = conv_norm(1, 8, stride=2)
        self.conv2 = conv_norm(8, 16, stride=2)
        self.conv3 = conv_norm(16, 32, stride=1)
        self.conv4 = conv_norm(32, 72, stride=1)
        self.classifier = nn.Linear(72, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x))  # (B, 16, H / 4, W / 4)
        x = self.conv4(self.conv3(x))  # (B, 72, H / 4, W / 4)
        return self.classifier(x.mean((2, 3)))  # (B, 10)


# %% tags=["small"]
def digit_vit(stem: nn.Module, *, std: float = 0.5) -> ViT:
    """Two blocks of width 32 on 4x4 patches of a digit."""
    size = {"depth": 2, "d_model": 32, "n_heads": 4, "num_classes": 10}
    return ViT(stem, 16, **size, std=std)


def patch_vit() -> ViT:
    return digit_vit(Patches(1, 32, size=7))


def conv_stem_vit() -> ViT:
    return digit_vit(ConvStem(1, 32))


# %% tags=["data"]
IMAGES = 1000 if PROFILE == "sample" else 20_000
train_part, validation, test = images.standardised(images.digits(), first=IMAGES)
record("images", len(train_part[1]))
parts = {"train": train_part, "validation": validation, "test": test}
table(
    [(name, *x.shape) for name, (x, _) in parts.items()], ("part", "N", "C", "H", "W")
)

# %% tags=["train"]
EPOCHS = 6
BATCH = 50
SEEDS = (0, 1, 2)
KINDS = {
    "ViT": patch_vit,
    "ViT, convolutional stem": conv_stem_vit,
    "CNN": SmallCNN,
}


def train(network: nn.Module, part, *, epochs: int = EPOCHS, rate: float = 5e-3):
    """AdamW; the rate rises for a fifth of the steps, then falls. Loss per epoch."""
    steps = epochs * math.ceil(len(part[1]) / BATCH)
    how = {"lr": rate, "weight_decay": 0.05, "fused": True}
    optimizer = torch.optim.AdamW(network.parameters(), **how)
    schedule = training.one_cycle(optimizer, steps)
    history = training.fit(
        network, part, epochs, optimizer, batch=BATCH, schedule=schedule
    )
    return history["loss"]


# %% tags=["headline"]
networks = {}
histories = {}  # loss per epoch
for kind, build in KINDS.items():
    for number in SEEDS:
        seed(number)
        network = build().to(device)
        histories[kind, number] = train(network, train_part)
        networks[kind, number] = network


# %% tags=["moved"]
def moved(x: Tensor, distance: int) -> Tensor:
    """Move image k down, up, right or left, as k mod 4 says; background comes in."""
    B, C, H, W = x.shape
    wide = F.pad(x, (distance,) * 4, value=x.min().item())
    d = distance
    starts = ((0, d), (2 * d, d), (d, 0), (d, 2 * d))
    y = torch.empty_like(x)
    for k, (top, left) in enumerate(starts):
        y[k::4] = wide[k::4, :, top : top + H, left : left + W]
    return y


# %% tags=["moved-run"]
DISTANCES = (0, 2, 4)
right = {}  # for each distance which test digits are classified rightly
for case, network in networks.items():
    for distance in DISTANCES:
        outputs = training.predict(network, moved(test[0], distance))
        right[*case, distance] = outputs.argmax(1) == test[1]


def accuracies(kind: str, distance: int) -> list[float]:
    return [right[kind, n, distance].double().mean().item() for n in SEEDS]


# %% tags=["moved-figure"] alt="Accuracy on held-out digits against the distance by which they are moved, 0, 2 and 4 pixels, mean of three seeds in a band from the smallest to the largest. All three lines start above 0.7. That of the CNN stays above 0.7 at every distance; those of the ViT and of the ViT with a convolutional stem fall below 0.45, the stem's above the other at 4."
_, axes = plt.subplots()
ends = {}
for kind, colour in zip(KINDS, plots.COLOURS):
    runs = torch.tensor([accuracies(kind, d) for d in DISTANCES]).T
    name = kind.replace(", convolutional stem", "\nwith stem")
    ends[name] = plots.seed_band(axes, DISTANCES, runs, colour)
axes.set(xlabel="pixels moved", ylabel="accuracy", xticks=DISTANCES, ylim=(0, 1))
axes.set_xlim(0, 5)
plots.label_ends(axes, ends, gap=30)


# %% tags=["moved-result"]
def kept(kind: str, distance: int) -> list[float]:
    """Of the digits that are right in place, the share that is right when moved."""
    found = []
    for number in SEEDS:
        before = right[kind, number, 0]
        after = right[kind, number, distance]
        found.append(after[before].double().mean().item())
    return found


rows = []
for kind, short in zip(KINDS, ("vit", "stem", "cnn")):
    record_spread(f"{short}.loss", [histories[kind, n][-1] for n in SEEDS])
    for distance in DISTANCES:
        record_spread(f"{short}.moved{distance}", accuracies(kind, distance))
    record_spread(f"{short}.kept", kept(kind, 4))
    parameters = counting.parameters(networks[kind, 0])
    record(f"{short}.parameters", parameters)
    texts = [spread(accuracies(kind, distance), ".1%") for distance in DISTANCES]
    rows.append((kind, parameters, *texts))
table(rows, ("network", "parameters", "in place", "2 pixels", "4 pixels"))

# %% tags=["moved-claims"]
vit, stem, cnn = KINDS
sizes = [counting.parameters(networks[kind, 0]) for kind in KINDS]
claim(max(sizes) < 1.05 * min(sizes), "the networks have equal parameters, within 5 %")
for kind in (vit, stem):
    apart = min(accuracies(cnn, 4)) > max(accuracies(kind, 4)) + 0.2
    claim(apart, f"4 pixels away the CNN is right far more often than {kind}")
    words = f"of what is right in place the CNN keeps more than {kind}"
    claim(min(kept(cnn, 4)) > max(kept(kind, 4)) + 0.2, words)
    claim(min(accuracies(cnn, 0)) > max(accuracies(kind, 0)), "the CNN leads in place")
apart = min(accuracies(stem, 4)) > max(accuracies(vit, 4))
claim(apart, "4 pixels away the stem helps, seeds apart")
near = min(accuracies(stem, 0)) - max(accuracies(vit, 0)) < 0.03
claim(near, "in place the seeds of the two ViTs lie close")
for kind in KINDS:
    claim(min(accuracies(kind, 0)) > 0.7, f"in place {kind} starts above 0.7")
claim(max(accuracies(vit, 4) + accuracies(stem, 4)) < 0.45, "the lower ends")
for distance in DISTANCES:
    claim(min(accuracies(cnn, distance)) > 0.7, "the CNN stays above 0.7")
record("steps", EPOCHS * math.ceil(IMAGES / BATCH))

# %% tags=["costs"]
costs = {}
for kind, short in zip(KINDS, ("vit", "stem", "cnn")):
    with torch.device("meta"):
        network = KINDS[kind]()
        x = torch.empty(1, 1, 28, 28)
    costs[kind] = counting.macs(network, x)
    record(f"{short}.mmacs", costs[kind] / 1e6)
claim(costs[cnn] > 2 * costs[vit], "the CNN costs more than twice the MACs of the ViT")

# %% [markdown]
# ## Patches in another order
#
# One order of the 16 patches, drawn once, for all pictures. A ViT whose positions are put
# in the same order computes what it computed before.


# %% tags=["reorder"]
def reorder(x: Tensor, order: Tensor, *, size: int = 7) -> Tensor:
    """Put patch order[k] at place k: (B, C, H, W) -> (B, C, H, W)."""
    columns = F.unfold(x, size, stride=size)  # (B, C * size * size, T)
    return F.fold(columns[:, :, order], x.shape[2:], size, stride=size)


def reorder_positions(network: ViT, order: Tensor) -> ViT:
    """A copy whose positions are in this order; that of the class token stays first."""
    same = copy.deepcopy(network)
    rows = network.positions.rows.detach()
    patches = rows[:, 1:][:, order]
    same.positions.rows = nn.Parameter(torch.cat((rows[:, :1], patches), dim=1))
    return same


# %% tags=["reorder-run"]
order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
seed(0)
start = patch_vit()
network = reorder_positions(start, order)
x = test[0][:100]
exact = checks.deviation(network(reorder(x, order)), start(x))

# %% tags=["reorder-figure"] alt="Four digits in the upper row; below each the same digit with its sixteen square patches in another order, in which it can hardly be read."
shown = test[0][:4]
plots.image_grid([*shown, *reorder(shown, order)], columns=4, scale=1)

# %% tags=["reorder-train"]
reordered_train = (reorder(train_part[0], order), train_part[1])
reordered_test = (reorder(test[0], order), test[1])
seed(0)
network = reorder_positions(patch_vit(), order).to(device)
twin_history = train(network, reordered_train)
twin_test = training.evaluate(network, reordered_test)
reordered_cnn = []
for number in SEEDS:
    seed(number)
    network = SmallCNN().to(device)
    train(network, reordered_train)
    reordered_cnn.append(training.evaluate(network, reordered_test))

# %% tags=["reorder-result"]
in_order = accuracies(vit, 0)[0]
record("exact", exact)
record("twin.test", twin_test)
record_spread("cnn.reordered", reordered_cnn)
rows = [
    ("ViT, one seed", f"{in_order:.1%}", f"{twin_test:.1%}"),
    ("CNN", spread(accuracies(cnn, 0), ".1%"), spread(reordered_cnn, ".1%")),
]
table(rows, ("network", "pictures", "patches in another order"))

# %% tags=["reorder-claims"]
claim(exact < 1e-5, "patches and positions in one order: the same outputs")
gap = abs(twin_history[-1] / histories[vit, 0][-1] - 1)
claim(gap < 0.02, "trained on reordered patches a ViT ends at the same loss")
claim(abs(twin_test - in_order) < 0.01, "and at the same accuracy, but for rounding")
record("in_order.test", in_order)
words = "the CNN learns less from reordered patches, seeds apart"
claim(max(reordered_cnn) < min(accuracies(cnn, 0)), words)
lost = sum(accuracies(cnn, 0)) / 3 - sum(reordered_cnn) / 3
record("cnn.lost", 100 * lost)

# %% tags=["tokens-figure"] alt="A digit with lines that cut it into four by four patches. To its right the row of the sixteen patches; below each patch a column of 32 grey squares, its token, with one more column in front for the class token; the columns of empty patches are alike. Below these a row of such columns for the positions, all different."
network = networks[vit, 0]
digit = test[0][:1].to(device)
with torch.no_grad():
    embedded = network.stem(digit)[0].cpu()  # (16, 32)
strips = {
    "tokens": torch.cat((network.class_token.detach()[0].cpu(), embedded)),
    "positions, added": network.positions.rows.detach()[0].cpu(),
}
pieces = F.unfold(digit.cpu(), 7, stride=7)[0].T.view(16, 7, 7)
axes = diagrams.sheet(2.75)


def put(picture: Tensor, left: float, top: float, width: float, height: float, whole):
    """Show a part of `whole`, on the scale of that."""
    box = (left, left + width, top + height, top)
    scale = {"vmin": whole.min().item(), "vmax": whole.max().item()}
    axes.imshow(picture, extent=box, aspect="auto", zorder=0, **scale)


put(digit.cpu()[0, 0], 0.1, 0.3, 1.1, 1.1, pieces)
for step in range(1, 4):
    place = 0.275 * step
    axes.plot([0.1 + place] * 2, [0.3, 1.4], color=plots.COLOURS[1], linewidth=1)
    axes.plot([0.1, 1.2], [0.3 + place] * 2, color=plots.COLOURS[1], linewidth=1)
for number, piece in enumerate(pieces):
    put(piece, 1.62 + 0.2 * number, 0.3, 0.17, 0.17, pieces)
axes.text(1.42, 0.16, "patches, row by row", fontsize=11, va="center")
for top, (name, columns) in zip((0.83, 1.88), strips.items()):
    axes.text(1.42, top - 0.14, name, fontsize=11, va="center")
    for number, column in enumerate(columns):
        put(column[:, None], 1.42 + 0.2 * number, top, 0.17, 0.75, columns)
axes.text(1.36, 1.2, "class", fontsize=11, ha="right", va="center", rotation=90)
axes.set(xlim=(0, 5), ylim=(2.75, 0))
plt.show()

# %% [markdown]
# ## The published sizes
#
# Table 1 of the paper; the number behind the letter is the side of a patch.


# %% tags=["sizes"]
BASE = {"depth": 12, "d_model": 768, "n_heads": 12}
LARGE = {"depth": 24, "d_model": 1024, "n_heads": 16}
HUGE = {"depth": 32, "d_model": 1280, "n_heads": 16}


def published(size: dict, patch: int, image: int) -> ViT:
    """A ViT for colour images of `image` pixels a side."""
    assert image % patch == 0, "patch must divide image"
    return ViT(Patches(3, size["d_model"], size=patch), (image // patch) ** 2, **size)


def vit_b_16(image: int = 224) -> ViT:
    return published(BASE, 16, image)


def vit_b_32(image: int = 224) -> ViT:
    return published(BASE, 32, image)


def vit_l_16(image: int = 224) -> ViT:
    return published(LARGE, 16, image)


def vit_l_32(image: int = 224) -> ViT:
    return published(LARGE, 32, image)


def vit_h_14(image: int = 224) -> ViT:
    return published(HUGE, 14, image)


# %% tags=["count"]
rows = []
for build in (vit_b_16, vit_b_32, vit_l_16, vit_l_32, vit_h_14):
    with torch.device("meta"):
        network = build()
        x = torch.empty(1, 3, 224, 224)
    name = build.__name__
    parameters = counting.parameters(network)
    cost = counting.macs(network, x)
    record(f"{name}.parameters", parameters)
    record(f"{name}.macs", cost)
    record(f"{name}.gmacs", cost / 1e9)
    tokens = network.positions.rows.shape[1]
    rows.append((name, tokens, parameters, f"{cost / 1e9:.3f}"))
table(rows, ("network", "tokens", "parameters", "G MACs"))

# %% tags=["drawn"] alt="ViT-B/16 from top to bottom, with output shape and parameters at the right: an input of 3x224x224, the stem that makes 196 tokens of 768 numbers, the positions with 197 rows, twelve blocks with a loop past them that keep the shape, and the linear layer to 1000."
with torch.device("meta"):
    network = vit_b_16()
    x = torch.empty(1, 3, 224, 224)
drawing.draw(network, x)

# %% [markdown]
# ## What a counter misses
#
# Some counters add up what modules are seen to do, by hooks on convolutions and linear
# layers. torchvision's attention is one module that calls functions.


# %% tags=["hooks"]
def macs_by_hooks(network: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of the modules Conv2d and Linear that a pass calls."""
    found = []

    def note(layer, inputs, output):
        found.append(output.numel() * layer.weight[0].numel())

    handles = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            handles.append(layer.register_forward_hook(note))
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return sum(found)


# %% tags=["hooks-result"]
T = 197
D = 768
by_part = {  # of ViT-B/16; is it seen in torchvision, and here?
    "patches": (196 * 3 * 16 * 16 * D, True, True),
    "queries, keys, values": (12 * T * 3 * D * D, False, True),
    "attention itself": (12 * 2 * T * T * D, False, False),
    "output of attention": (12 * T * D * D, False, True),
    "MLP": (12 * T * 2 * 4 * D * D, True, True),
    "classifier": (1000 * D, True, True),
}
with torch.device("meta"):
    networks_16 = (library.vit_b_16(), vit_b_16())
hooked = [macs_by_hooks(network, x) for network in networks_16]
sums = [sum(row[0] for row in by_part.values())]
rows = [(name, f"{row[0] / 1e9:.3f}", *row[1:]) for name, row in by_part.items()]
for place in (1, 2):
    sums.append(sum(row[0] for row in by_part.values() if row[place]))
rows.append(("sum", *(f"{value / 1e9:.3f}" for value in sums)))
table(rows, ("part of ViT-B/16", "G MACs", "hooks, torchvision", "hooks, here"))

# %% tags=["hooks-claims"]
claim(sums[0] == counting.macs(networks_16[1], x), "the parts add up to the count")
claim(sums[1:] == hooked, "the hooks see these parts and no other")
record("hooks.library", hooked[0] / 1e9)
record("hooks.here", hooked[1] / 1e9)

# %% [markdown]
# ## Equal to torchvision
#
# Its classifier starts with zeros, and so do its class token and its shifts. We add noise
# to all weights first, so that nothing is hidden.


# %% tags=["randomise"]
@torch.no_grad()
def add_noise(network: nn.Module) -> nn.Module:
    """Move every weight a little, so that none is exactly 0 or 1."""
    for weight in network.parameters():
        weight.add_(0.05 * torch.randn_like(weight))
    return network


# %% tags=["equal"]
def shallow(size: dict, patch: int, image: int, depth: int) -> list[nn.Module]:
    """Two networks of the first blocks of a size: torchvision's and ours."""
    names = {"num_heads": size["n_heads"], "hidden_dim": size["d_model"]}
    theirs = library.VisionTransformer(
        image, patch, depth, mlp_dim=4 * size["d_model"], **names
    )
    with torch.device("meta"):  # its weights are copied, so none are drawn
        ours = published(size | {"depth": depth}, patch, image)
    return [theirs, ours.to_empty(device="cpu")]


CASES = (("ViT-B/32", BASE, 32, 224, 12), ("ViT-B/16", BASE, 16, 96, 2))
CASES += (("ViT-L/16", LARGE, 16, 96, 1), ("ViT-H/14", HUGE, 14, 84, 1))
rows = []
deviations = []
for name, size, patch, image, depth in CASES:
    seed(0)
    theirs, ours = shallow(size, patch, image, depth)
    checks.transplant(add_noise(theirs), ours)
    x = torch.randn(1, 3, image, image)
    deviations.append(checks.same_outputs(ours, theirs, x))
    rows.append((name, depth, f"{image}×{image}", f"{deviations[-1]:.1e}"))
record("deviation", max(deviations))
table(rows, ("widths of", "blocks", "image", "largest difference"))

# %% [markdown]
# ## Another resolution
#
# A larger image has more patches than there are positions. The paper interpolates those of
# the trained network in their two-dimensional grid.


# %% tags=["resize"]
def resize_positions(rows: Tensor, side: int) -> Tensor:
    """Interpolate the positions of a square grid (section 3.2).

    (1, 1 + T, D) -> (1, 1 + side * side, D); the class token keeps its row.
    """
    old = math.isqrt(rows.shape[1] - 1)
    grid = rows[:, 1:].mT.unflatten(2, (old, old))  # (1, D, old, old)
    grid = F.interpolate(grid, (side, side), mode="bicubic", align_corners=True)
    return torch.cat((rows[:, :1], grid.flatten(2).mT), dim=1)


def with_positions(network: ViT, rows: Tensor) -> ViT:
    """A copy with other positions."""
    other = copy.deepcopy(network)
    other.positions.rows = nn.Parameter(rows)
    return other


# %% tags=["resize-run"]
FEWER = IMAGES // 2
large_train, large_held, _ = images.standardised(images.digits(size=42), first=FEWER)
record("fewer", len(large_train[1]))
starts = {"interpolated": [], "drawn anew": []}
for number in SEEDS:
    seed(number)
    network = networks[vit, number]
    rows = network.positions.rows.detach()
    resized = resize_positions(rows, 6)
    anew = torch.cat(
        (rows[:, :1], rows.std() * torch.randn_like(resized[:, 1:])), dim=1
    )
    starts["interpolated"].append(with_positions(network, resized))
    starts["drawn anew"].append(with_positions(network, anew))

# %% tags=["resize-result"]
rows = []
tuned = {}
for name, found in starts.items():
    before = [training.evaluate(network, large_held) for network in found]
    for network in found:
        train(network, large_train, epochs=1, rate=1e-3)
    after = [training.evaluate(network, large_held) for network in found]
    tuned[name] = (before, after)
    record_spread(f"large.{name.split()[0]}.before", before)
    record_spread(f"large.{name.split()[0]}.after", after)
    rows.append((name, spread(before, ".1%"), spread(after, ".1%")))
table(rows, ("positions for 6×6 patches", "at once", "after one epoch"))

# %% tags=["resize-claims"]
for place, words in enumerate(("at once", "after one epoch")):
    apart = min(tuned["interpolated"][place]) > max(tuned["drawn anew"][place])
    claim(apart, f"interpolated positions are right more often {words}, seeds apart")
theirs = {"encoder.pos_embedding": torch.randn(1, 1 + 14 * 14, 8)}
ours = resize_positions(theirs["encoder.pos_embedding"], 24)
theirs = library.interpolate_embeddings(384, 16, theirs)["encoder.pos_embedding"]
claim(
    checks.deviation(ours, theirs) < 1e-6, "positions are interpolated as torchvision"
)

# %% [markdown]
# ## Look inside
#
# Attention rollout multiplies the attention of all blocks, half of each with the shortcut
# (Abnar and Zuidema 2020). Do the patches that it names matter? We leave patches out.


# %% tags=["rollout"]
@torch.no_grad()
def attention_maps(network: ViT, x: Tensor) -> list[Tensor]:
    """Weights of attention in each block, (B, h, 1 + T, 1 + T)."""
    maps = []
    tokens = network.tokens(x)
    for block in network.blocks:
        q, k, _ = block.attention.heads(block.norm1(tokens))
        maps.append(attention_weights(q, k))
        tokens = block(tokens)
    return maps


def rollout(maps: list[Tensor]) -> Tensor:
    """How much of each patch reaches the class token: (B, T)."""
    own = torch.eye(maps[0].shape[-1], device=maps[0].device)
    reach = own.expand(len(maps[0]), -1, -1)  # one for each image
    for weights in maps:
        mixed = (weights.mean(1) + own) / 2  # heads averaged, half is the shortcut
        reach = mixed @ reach
    return reach[:, 0, 1:]


# %% tags=["without"]
@torch.no_grad()
def without(network: ViT, x: Tensor, scores: Tensor, *, n: int = 4) -> Tensor:
    """Outputs without the n patches of highest score: (B, T) scores -> (B, K)."""
    tokens = network.tokens(x)
    kept = scores.argsort(dim=1, descending=True)[:, n:]  # (B, T - n)
    index = kept.unsqueeze(2).expand(-1, -1, tokens.shape[2])
    patches = tokens[:, 1:].gather(1, index)
    return network.classify(torch.cat((tokens[:, :1], patches), dim=1))


# %% tags=["without-run"]
x = test[0].to(device)
ink = F.unfold(test[0], 7, stride=7).mean(1)  # (B, 16): how bright a patch is
lefts = {}
reaches = {}
for number in SEEDS:
    seed(number)
    network = networks[vit, number].eval()
    maps = attention_maps(network, x)
    reach = rollout(maps).cpu()
    reaches[number] = reach
    scores = {
        "rollout": reach,
        "last block's attention": maps[-1].mean(1)[:, 0, 1:].cpu(),
        "brightness": ink,
        "chance": torch.rand_like(ink),
        "rollout, the lowest": -reach,
    }
    for name, score in scores.items():
        outputs = without(network, x, score.to(device)).cpu()
        hit = (outputs.argmax(1) == test[1]).double().mean().item()
        lefts.setdefault(name, []).append(hit)

# %% tags=["without-result"]
for short, found in zip(("rollout", "last", "bright", "chance", "low"), lefts.values()):
    record_spread(f"without.{short}", found)
rows = [(name, spread(found, ".1%")) for name, found in lefts.items()]
table(rows, ("four patches left out: the highest by", "accuracy"))

# %% tags=["without-claims"]
highest = lefts["rollout"]
words = "without rollout's patches fewer digits are right than without any four"
claim(max(highest) < min(lefts["chance"]), words)
pairs = zip(highest, lefts["last block's attention"])
words = "in each network fewer than without those that the last block names"
claim(all(by_rollout < by_last for by_rollout, by_last in pairs), words)
bright = lefts["brightness"]
words = "the lowest seed of the brightest patches lies within two points of rollout's"
claim(min(bright) < max(highest) + 0.02, words)
claim(max(bright) > max(highest) + 0.1, "and the highest far above")
claim(
    min(lefts["rollout, the lowest"]) > max(lefts["chance"]),
    "the patches that rollout ranks lowest matter least, seeds apart",
)

# %% tags=["rollout-figure"] alt="Six digits in the upper row; below each a map of four by four squares, brighter where attention rollout finds more. Many bright squares lie on strokes of the digits, some beside them."
shown = reaches[0][:6].view(6, 1, 4, 4)
plots.image_grid([*test[0][:6], *shown], columns=6, scale=0.82)

# %% tags=["rollout-claims"]
brightest = reaches[0].argmax(1, keepdim=True)
most = F.unfold(test[0], 7, stride=7).amax(1)  # (B, 16): the most ink in a patch
bare = (most.gather(1, brightest) == test[0].min()).double().mean().item()
record("bare", bare)
claim(bare > 0.005, "the brightest square of a map may lie on a patch without ink")
claim(bare < 0.25, "most of the brightest squares lie on strokes")

# %% [markdown]
# ## What we saw
#
# - A ViT knows nothing of where its patches lie: with patches and positions in another
#   order it is the same network, and learns as well. This CNN learns less then.
# - With equal parameters and equal data this CNN reads most digits moved by four pixels,
#   the ViT does not; convolutions for a stem help a little.
# - Without the four patches that attention rollout names most digits are wrong.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
block = (D * 3 * D + 3 * D) + (D * D + D)  # attention: qkv and output
block += (D * 4 * D + 4 * D) + (4 * D * D + D)  # MLP
block += 2 * (2 * D)  # two norms
whole = 12 * block
whole += 3 * 16 * 16 * D + D  # patches
whole += D + 197 * D  # class token, positions
whole += 2 * D + 1000 * D + 1000  # last norm, classifier

# %% tags=["solution-1-result"]
with torch.device("meta"):
    counted = counting.parameters(vit_b_16())
claim(whole == counted, "the parameters of ViT-B/16 by hand are those counted")
share = 12 * block / whole
record("block.share", share)
table([(block, whole, counted)], ("one block", "whole, by hand", "counted"))

# %% tags=["solution-2"]
seed(0)
blind = patch_vit().to(device)
nn.init.zeros_(blind.positions.rows).requires_grad_(False)
train(blind, train_part)
blind_right = training.evaluate(blind, test)
shuffled = training.evaluate(blind, reordered_test)
misread = training.evaluate(networks[vit, 0], reordered_test)

# %% tags=["solution-2-result"]
claim(blind_right < min(accuracies(vit, 0)), "without positions fewer digits are right")
claim(abs(shuffled - blind_right) < 0.005, "without positions the order is not seen")
record("blind", blind_right)
claim(misread < in_order - 0.1, "with learnt positions the order is seen")
record("misread", misread)
rows = [("learnt", f"{in_order:.1%}", f"{misread:.1%}")]
rows.append(("none", f"{blind_right:.1%}", f"{shuffled:.1%}"))
table(rows, ("positions", "pictures", "patches in another order, same network"))

# %% tags=["solution-3"]
copies = torch.cat((train_part[0], moved(train_part[0], 4)))
seed(0)
network = patch_vit().to(device)
train(network, (copies, train_part[1].repeat(2)), epochs=EPOCHS // 2)
augmented = training.evaluate(network, (moved(test[0], 4), test[1]))

# %% tags=["solution-3-result"]
plain = accuracies(vit, 4)[0]
claim(augmented > max(accuracies(vit, 4)) + 0.05, "moved digits are learnt from")
claim(augmented < min(accuracies(cnn, 4)) - 0.1, "and less than the CNN reads")
record("augmented", augmented)
record("plain", plain)
rows = [("in place", f"{plain:.1%}"), ("in place, and moved", f"{augmented:.1%}")]
table(rows, ("training digits", "right 4 pixels away"))
