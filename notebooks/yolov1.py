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
# # YOLOv1
#
# One network looks at the whole image once and fills a grid: each cell tells boxes and a
# class. Here are the network, its loss term by term, what its numbers mean, and what a cell
# cannot say when two objects share it.
# The text to it is the [chapter](../chapters/yolov1.rst), the paper is
# [Redmon et al. 2015](https://arxiv.org/abs/1506.02640).

# %%
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import claim, device, evaluating, record, record_spread, seed
from workbench import spread, table
from workbench import boxes, comparison, counting, drawing, plots, scenes, training

SEEDS = (0, 1, 2)

# %% [markdown]
# ## The network
#
# Figure 3 of the paper as rows: kernel, channels, stride. The first 20 convolutions are
# pre-trained on ImageNet, the other four are added for detection.

# %% tags=["rows"]
POOL = None
BACKBONE = (
    *((7, 64, 2), POOL),
    *((3, 192, 1), POOL),
    *((1, 128, 1), (3, 256, 1), (1, 256, 1), (3, 512, 1), POOL),
    *(4 * ((1, 256, 1), (3, 512, 1))),
    *((1, 512, 1), (3, 1024, 1), POOL),
    *(2 * ((1, 512, 1), (3, 1024, 1))),
)
ADDED = ((3, 1024, 1), (3, 1024, 2), (3, 1024, 1), (3, 1024, 1))


# %% tags=["features"]
def features(c_in: int, rows, *, norm=nn.Identity) -> nn.Sequential:
    """Convolutions, each followed by a leaky ReLU of slope 0.1, and maxima of 2x2.

    Redmon et al. 2015, figure 3 and equation 2. norm: made for a number of channels;
    the paper has none.
    """
    layers = []
    for row in rows:
        if row is POOL:
            layers.append(nn.MaxPool2d(2))
            continue
        kernel, c_out, stride = row
        bias = norm is nn.Identity
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=bias)
        layers += [conv, norm(c_out), nn.LeakyReLU(0.1)]
        c_in = c_out
    return nn.Sequential(*layers)


# %% tags=["head"]
class Connected(nn.Module):
    """Two linear layers see the whole map: (B, C, side, side) -> (B, S, S, outputs)."""

    def __init__(self, c_in: int, side: int, *, S: int, outputs: int, hidden=4096):
        super().__init__()
        self.S = S
        self.hidden = nn.Linear(c_in * side * side, hidden)
        self.dropout = nn.Dropout(0.5)
        self.grid = nn.Linear(hidden, S * S * outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.hidden(x.flatten(1)), 0.1)
        x = self.grid(self.dropout(x))
        return x.unflatten(1, (self.S, self.S, -1))  # (B, S, S, outputs)


# %% tags=["per-cell"]
class PerCell(nn.Module):
    """One linear map for every cell: (B, C, S, S) -> (B, S, S, outputs).

    Not in the paper: YOLOv2 predicts so (Redmon and Farhadi 2016, section 2).
    """

    def __init__(self, c_in: int, *, outputs: int):
        super().__init__()
        self.grid = nn.Conv2d(c_in, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.grid(x).permute(0, 2, 3, 1)  # (B, S, S, outputs)


# %% tags=["network"]
class YOLOv1(nn.Module):
    """Convolutions, then one vector for each cell of an S x S grid.

    Redmon et al. 2015, section 2. Images (B, 3, size, size) ->
    (B, S, S, 5 n_boxes + n_classes): of each box x, y, the roots of its width and
    height, and its confidence; then the classes.
    """

    def __init__(self, backbone: nn.Module, added: nn.Module, *, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.added = added
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone(x)  # (B, 1024, size / 32, size / 32)
        x = self.added(x)  # (B, 1024, size / 64, size / 64)
        return self.head(x)  # (B, S, S, 5 n_boxes + n_classes)


def yolov1(*, S: int = 7, n_boxes: int = 2, n_classes: int = 20) -> YOLOv1:
    """The network of figure 3, for images of 448 pixels."""
    outputs = 5 * n_boxes + n_classes
    return YOLOv1(
        features(3, BACKBONE),
        features(1024, ADDED),
        head=Connected(1024, 7, S=S, outputs=outputs),
    )


# %% [markdown]
# ## Counted
#
# On torch's meta device a tensor has a shape and no values.

# %% tags=["shape"]
with torch.device("meta"):
    network = yolov1()
    image = torch.empty(1, 3, 448, 448)
network(image).shape

# %% tags=["by-hand"]
weights = 0
products = 0
c_in = 3
side = 448
for row in (*BACKBONE, *ADDED):
    if row is POOL:
        side //= 2
        continue
    kernel, c_out, stride = row
    side //= stride
    weights += (kernel**2 * c_in + 1) * c_out  # one bias for each channel
    products += kernel**2 * c_in * c_out * side**2
    c_in = c_out
for n_in, n_out in ((7 * 7 * 1024, 4096), (4096, 7 * 7 * 30)):
    weights += (n_in + 1) * n_out
    products += n_in * n_out

# %% tags=["count"]
parts = [("backbone", network.backbone, image)]
parts.append(("added", network.added, torch.empty(1, 1024, 14, 14, device="meta")))
parts.append(("head", network.head, torch.empty(1, 1024, 7, 7, device="meta")))
rows = []
for name, part, x in parts:
    shape = "×".join(map(str, part(x).shape[1:]))
    convs = sum(isinstance(m, nn.Conv2d) for m in part.modules())
    cost = counting.macs(part, x)
    rows.append((name, convs, shape, counting.parameters(part), f"{cost / 1e9:.3f}"))
total = counting.parameters(network)
macs = counting.macs(network, image)
rows.append(("all", 24, "7×7×30", total, f"{macs / 1e9:.3f}"))
rows.append(("sum by hand", 24, "", weights, f"{products / 1e9:.3f}"))
claim(weights == total == 271_703_550, "the sum over the layers is what torch counts")
claim(products == macs, "so it is for the multiply-accumulates")
claim(sum(row[1] for row in rows[:3]) == 24, "there are 24 convolutions")
record("yolov1.parameters", total)
record("yolov1.macs", macs)
record("yolov1.gflops", 2 * macs / 1e9)
record("head.share", counting.parameters(network.head) / total)
record("head.macs", counting.macs(network.head, parts[2][2]) / macs)
table(rows, ("part", "convolutions", "output", "parameters", "G MACs"))

# %% tags=["drawn"] alt="YOLOv1 from top to bottom, with output shape and parameters at the right: an input of 3x448x448, then the convolutions and maxima of the backbone, whose maps shrink to 14 pixels a side while the channels grow to 1024. One block stands for the four added convolutions, with maps of 7 pixels a side, and one for the head, which has most of the parameters and gives a grid of 7x7x30."
drawing.draw(network, image)

# %% [markdown]
# ## From boxes to a grid
#
# The cell that holds an object's centre has to tell of it, and has room for one.


# %% tags=["assign"]
class Target(NamedTuple):
    """What the cells should say: centre in the cell and sides in the image, the class.

    boxes (B, S, S, 4), each value in 0..1. labels (B, S, S), -1 for no object.
    """

    boxes: Tensor
    labels: Tensor


def assign(found: boxes.Scenes, S: int) -> Target:
    """Give each object to the cell of its centre; of several the first has it."""
    B, M, _ = found.boxes.shape
    size = found.images.shape[-1]
    low = found.boxes[..., :2]
    high = found.boxes[..., 2:]
    centre = (low + high) / 2 * S / size  # (B, M, 2), in cells
    cell = centre.long().clamp(max=S - 1)
    values = torch.cat((centre - cell, (high - low) / size), dim=-1)  # (B, M, 4)
    target = Target(values.new_zeros(B, S, S, 4), found.labels.new_full((B, S, S), -1))
    for m in reversed(range(M)):  # the first one is written last
        b = (found.labels[:, m] >= 0).nonzero().flatten()
        column, row = cell[b, m].T
        target.boxes[b, row, column] = values[b, m]
        target.labels[b, row, column] = found.labels[b, m]
    return target


# %% tags=["prediction"]
class Prediction(NamedTuple):
    """The output by meaning, for n boxes in each cell.

    centre (B, S, S, n, 2), root (B, S, S, n, 2), confidence (B, S, S, n),
    classes (B, S, S, K).
    """

    centre: Tensor
    root: Tensor
    confidence: Tensor
    classes: Tensor


def read(output: Tensor, n_boxes: int = 2) -> Prediction:
    per_box = output[..., : 5 * n_boxes].unflatten(-1, (n_boxes, 5))
    classes = output[..., 5 * n_boxes :]
    return Prediction(per_box[..., 0:2], per_box[..., 2:4], per_box[..., 4], classes)


def corners(centre: Tensor, sides: Tensor) -> Tensor:
    """Centres in their cells, sides in the image (B, S, S, n, 2) -> (B, S, S, n, 4).

    Left, top, right and bottom, as shares of the image.
    """
    S = centre.shape[1]
    column = torch.arange(S, device=centre.device).expand(S, S)
    cell = torch.stack((column, column.T), dim=-1).unsqueeze(2)  # (S, S, 1, 2)
    middle = (centre + cell) / S
    return torch.cat((middle - sides / 2, middle + sides / 2), dim=-1)


# %% tags=["iou"]
def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4), pair by pair; 0 for an empty union."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-9)


# %% tags=["scenes"]
source = scenes.source(64)
validation = source.fixed("validation", 200)
test = source.fixed("test", 200)
n_classes = len(source.classes)

# %% tags=["grid-figure"] alt="A scene with digits under a grid of four by four cells. White boxes surround the digits, a yellow dot marks the centre of each, and the cell that holds a dot is outlined in yellow."
shown = source.fixed("validation", 50)
pick = int((shown.labels >= 0).sum(1).argmax())
_, axes = plt.subplots(figsize=(3.2, 3.2))
axes.imshow(shown.images[pick].permute(1, 2, 0), extent=(0, 64, 64, 0))
for line in (16, 32, 48):
    axes.axhline(line, color="#9aa4b2", linewidth=1)
    axes.axvline(line, color="#9aa4b2", linewidth=1)
for box, label in zip(shown.boxes[pick], shown.labels[pick].tolist()):
    if label >= 0:
        low = box[:2]
        sides = box[2:] - low
        centre = low + sides / 2
        corner = centre // 16 * 16
        axes.add_patch(plt.Rectangle(low, *sides, fill=False, color="white"))
        axes.add_patch(
            plt.Rectangle(corner, 16, 16, fill=False, color=boxes.FOUND, lw=2)
        )
        axes.plot(*centre, "o", color=boxes.FOUND, markersize=5)
axes.axis("off")
plt.show()

# %% [markdown]
# ## The loss
#
# Equation 3: five sums of squares.


# %% tags=["loss"]
class Terms(NamedTuple):
    """The five sums of equation 3, each with its factor, for an average image."""

    centre: Tensor
    sides: Tensor
    object: Tensor
    empty: Tensor
    classes: Tensor


def overlaps(guess: Prediction, target: Target) -> Tensor:
    """IoU of each box with its cell's object, without gradient: (B, S, S, n)."""
    place = target.boxes.unsqueeze(3)  # (B, S, S, 1, 4)
    true = corners(place[..., :2], place[..., 2:])
    return iou(corners(guess.centre, guess.root**2), true).detach()


def loss_terms(
    output: Tensor,
    target: Target,
    n_boxes: int = 2,
    *,
    coord: float = 5.0,
    noobj: float = 0.5,
) -> Terms:
    """Redmon et al. 2015, equation 3. output (B, S, S, 5 n_boxes + n_classes)."""
    guess = read(output, n_boxes)
    there = target.labels >= 0  # (B, S, S)
    overlap = overlaps(guess, target)
    best = F.one_hot(overlap.argmax(-1), n_boxes).bool() & there.unsqueeze(-1)
    place = target.boxes[there]  # (objects, 4)
    classes = F.one_hot(target.labels[there], guess.classes.shape[-1])
    centre = (guess.centre[best] - place[:, :2]).square().sum()
    sides = (guess.root[best] - place[:, 2:].sqrt()).square().sum()
    sure = (guess.confidence[best] - overlap[best]).square().sum()
    empty = guess.confidence[~best].square().sum()
    kind = (guess.classes[there] - classes).square().sum()
    sums = (coord * centre, coord * sides, sure, noobj * empty, kind)
    return Terms(*[value / len(output) for value in sums])


# %% [markdown]
# ## A case by hand
#
# Four cells, one object in the first one, two classes. Box 1 is 0.2 of a cell too far to
# the right and too flat; box 2 stands right and is far too narrow.

# %% tags=["hand"]
one = boxes.Scenes(
    images=torch.zeros(1, 3, 64, 64),
    boxes=torch.tensor([[[8.0, 8.0, 24.0, 24.0]]]),
    labels=torch.tensor([[0]]),
    ignored=torch.zeros(1, 1),
)
output = torch.zeros(1, 2, 2, 12)
output[..., 4] = 0.2  # confidences of the empty cells
output[..., 9] = 0.2
output[0, 0, 0] = torch.tensor(
    [0.7, 0.5, 0.5, 0.4, 0.5, 0.5, 0.5, 0.2, 0.5, 0.4, 0.7, 0.1]
)
terms = loss_terms(output, assign(one, 2))

# %% tags=["hand-result"]
first = 0.15 * 0.16 / (0.25**2 + 0.25 * 0.16 - 0.15 * 0.16)
second = 0.04 / 0.25
found = overlaps(read(output), assign(one, 2))[0, 0, 0]
by_hand = (5 * 0.2**2, 5 * 0.1**2, (0.5 - first) ** 2)
by_hand = (*by_hand, 0.5 * (0.4**2 + 6 * 0.2**2), 0.3**2 + 0.1**2)
words = (
    "5 · (0.7 − 0.5)²",
    "5 · (0.4 − 0.5)²",
    f"(0.5 − {first:.3f})²",
    "0.5 · (0.4² + 6 · 0.2²)",
    "(0.7 − 1)² + (0.1 − 0)²",
)
near = torch.tensor([first, second])
claim((found - near).abs().max() < 1e-6, "the overlaps are those by hand")
differences = torch.stack(terms) - torch.tensor(by_hand)
claim(differences.abs().max() < 1e-6, "the five terms are those by hand")
record("hand.first", first)
record("hand.second", second)
rows = [
    (name, how, f"{value:.4f}") for name, how, value in zip(Terms._fields, words, terms)
]
rows.append(("all", "", f"{sum(terms):.4f}"))
table(rows, ("term", "by hand", "loss_terms"))


rooted = []
for side in (8, 32):
    rooted.append((((side + 4) / 64) ** 0.5 - (side / 64) ** 0.5) ** 2)
record("root.small", 5 * rooted[0])
record("root.large", 5 * rooted[1])
record("root.ratio", rooted[0] / rooted[1])
claim(rooted[0] > 2 * rooted[1], "the same pixels cost a small box more")

# %% [markdown]
# ## Decoding
#
# A box's score for a class: Pr(class | object) times the confidence (equation 1).


# %% tags=["decode"]
def decode(output: Tensor, size: int, n_boxes: int = 2) -> tuple[Tensor, Tensor]:
    """Boxes (B, S S n, 4) in pixels and their scores for each class (B, S S n, K).

    Redmon et al. 2015, equation 1: Pr(class | object) Pr(object) IoU. Row by row of the
    grid, all boxes of a cell in a row.
    """
    guess = read(output, n_boxes)
    place = corners(guess.centre, guess.root**2).clamp(0, 1) * size
    scores = guess.confidence.unsqueeze(-1) * guess.classes.unsqueeze(3)
    return place.flatten(1, 3), scores.flatten(1, 3)


# %% tags=["decode-run"]
place, scores = decode(output, 64)
found = boxes.select(place[0], scores[0], least=0.15)
found.boxes.shape

# %% tags=["decode-result"]
rows = []
for n, (box, score) in enumerate(zip(place[0, :2].tolist(), scores[0, :2].tolist())):
    side = ", ".join(f"{value:.1f}" for value in box)
    rows.append((f"box {n + 1}", side, *[f"{value:.2f}" for value in score]))
pair_overlap = iou(place[0, 0], place[0, 1])
record("hand.pair", pair_overlap)
claim(len(found.boxes) == 2, "both boxes of the cell stay at an overlap of 0.5")
strict = boxes.select(place[0], scores[0], least=0.15, overlap=0.1)
claim(len(strict.boxes) == 1, "with 0.1 allowed only the better box stays")
table(rows, ("box", "left, top, right, bottom", "score, class 0", "score, class 1"))

# %% [markdown]
# ## What a perfect network could say
#
# Write the truth into the output, decode it, and see what is lost.


# %% tags=["perfect"]
def perfect(target: Target, n_classes: int) -> Tensor:
    """The output of two boxes a cell without any error: the second box is not used."""
    there = target.labels >= 0
    box = torch.cat((target.boxes[..., :2], target.boxes[..., 2:].sqrt()), dim=-1)
    sure = there.unsqueeze(-1).to(box.dtype)
    classes = F.one_hot(target.labels.clamp(min=0), n_classes) * sure
    unused = torch.zeros_like(box)
    return torch.cat((box, sure, unused, 0 * sure, classes), dim=-1)


def without_cell(found: boxes.Scenes, S: int) -> float:
    """Share of the objects whose cell belongs to another one."""
    given = (assign(found, S).labels >= 0).sum()
    return 1 - (given / (found.labels >= 0).sum()).item()


# %% tags=["ceiling-table"]
crowded = scenes.DigitScenes(64, sides=(10, 14), most=6).fixed("test", 200)
rows = []
lost = {}
for name, found in (("12 to 28 px", test), ("10 to 14 px", crowded)):
    for S in (3, 4, 7):
        target = assign(found, S)
        place, scores = decode(perfect(target, n_classes), 64)
        best = [boxes.select(*pair) for pair in zip(place, scores)]
        ceiling = boxes.average_precision(best, found, classes=n_classes)
        lost[name, S] = without_cell(found, S)
        values = (f"{lost[name, S]:.1%}", f"{ceiling['mAP@0.5']:.3f}")
        rows.append((name, S, f"{64 / S:.1f}", *values))
record("lost.test.4", lost["12 to 28 px", 4])
record("lost.crowded.4", lost["10 to 14 px", 4])
record("lost.test.7", lost["12 to 28 px", 7])
for name in ("12 to 28 px", "10 to 14 px"):
    values = [lost[name, S] for S in (3, 4, 7)]
    claim(values == sorted(values, reverse=True), "a finer grid loses no more")
columns = ("digits", "S", "cell, px", "without a cell", "mAP@0.5 without an error")
table(rows, columns)

# %% [markdown]
# ## Two digits in one cell
#
# Pictures of 48 pixels, a grid of 3x3 cells, zeros and ones 12 pixels high, one or two of
# them side by side, at random places.

# %% tags=["pairs"]
HEIGHT = 12.0


def shapes_of(digits: Tensor) -> Tensor:
    """Width and height (n, 2, 2) of pairs of digits, the longer side HEIGHT pixels."""
    ink = scenes.ink_box(digits)
    shape = ink[..., 2:] - ink[..., :2]
    return shape * (HEIGHT / shape.amax(-1, keepdim=True))


def side_by_side(shapes: Tensor, gap: Tensor, middle: Tensor, row: Tensor) -> Tensor:
    """Boxes (n, 2, 4) of pairs with these gaps, around these middles."""
    width = shapes[..., 0]
    start = middle - (width.sum(1) + gap) / 2
    left = torch.stack((start, start + width[:, 0] + gap), dim=1)  # (n, 2)
    top = row.unsqueeze(1) - shapes[..., 1] / 2
    low = torch.stack((left, top), dim=-1)
    return torch.cat((low, low + shapes), dim=-1)


def painted(source, digits: Tensor, place: Tensor, there, picture: Tensor) -> Tensor:
    """White digits in these boxes, where `there` (n, 2), on the pictures."""
    ink = source.draw(digits, place) * there[..., None, None]
    for i in (0, 1):
        alpha = ink[:, i, None]
        picture = picture * (1 - alpha) + alpha
    return picture


def pairs(source: scenes.DigitScenes, n: int) -> boxes.Scenes:
    """Training scenes: two digits in any order 1 to 8 px apart, or one of the two."""
    x, y = zeros_and_ones(source, "train")
    chosen = torch.randint(len(x), (n, 2))
    shapes = shapes_of(x[chosen])
    gap = 1 + 7 * torch.rand(n)
    width = shapes[..., 0].sum(1) + gap
    middle = width / 2 + (48 - width) * torch.rand(n)
    row = HEIGHT / 2 + (48 - HEIGHT) * torch.rand(n)
    place = side_by_side(shapes, gap, middle, row)
    there = torch.ones(n, 2, dtype=torch.bool)
    alone = torch.arange(n) % 3 == 0
    there[alone, torch.randint(2, (int(alone.sum()),))] = False
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    picture = source.background("train", n, generator)
    picture = painted(source, x[chosen], place, there, picture)
    labels = y[chosen].where(there, torch.tensor(-1))
    order = torch.rand(n, 2).argsort(1)  # which one is listed first
    place = place.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
    return boxes.Scenes(picture, place, labels.gather(1, order), 0 * labels)


def zeros_and_ones(source, part: str) -> tuple[Tensor, Tensor]:
    x, y = source.digits[part]
    return x[y < 2], y[y < 2]


# %% [markdown]
# A small configuration of the same classes, with batch norm, and the training of both
# experiments.

# %% tags=["small"]
SMALL = (
    *((7, 16, 2), POOL),
    *((3, 32, 1), (1, 16, 1), (3, 48, 1), POOL),
    *((3, 64, 1), (1, 32, 1), (3, 64, 1)),
)
SMALL_ADDED = ((3, 96, 2), (3, 96, 1))


def small_yolo(size: int, *, n_classes: int, hidden: int = 256) -> YOLOv1:
    """The paper's parts, narrow: cells of 16 pixels with two boxes; no dropout."""
    S = size // 16
    head = Connected(96, S, S=S, outputs=10 + n_classes, hidden=hidden)
    head.dropout = nn.Identity()
    return YOLOv1(
        features(3, SMALL, norm=nn.BatchNorm2d),
        features(64, SMALL_ADDED, norm=nn.BatchNorm2d),
        head=head,
    ).to(device, memory_format=torch.channels_last)


# %% tags=["train"]
def train(
    layers, inputs: Tensor, target: Target, *, steps: int, rate: float, batch: int
) -> Tensor:
    """Minimise the loss of layers(inputs) on random batches; its terms by step."""
    optimizer = torch.optim.AdamW(
        layers.parameters(), lr=rate, weight_decay=1e-2, fused=True
    )
    schedule = training.one_cycle(optimizer, steps, rising=0.25)
    layers.train()
    history = []
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (batch,)).to(device)
        part = Target(target.boxes[chosen], target.labels[chosen])
        terms = torch.stack(loss_terms(layers(inputs[chosen]), part))
        optimizer.zero_grad()
        terms.sum().backward()
        optimizer.step()
        schedule.step()
        history.append(terms.detach())
    return torch.stack(history)


# %% tags=["headline"]
seed(0)
close = pairs(scenes.DigitScenes(48), 4000)
close_target = Target(*(t.to(device) for t in assign(close, 3)))
close_images = close.images.to(device, memory_format=torch.channels_last)
pair_networks = []
for number in SEEDS:
    seed(number)
    network = small_yolo(48, n_classes=2)
    train(network, close_images, close_target, steps=250, rate=2e-3, batch=16)
    pair_networks.append(network)


# %% tags=["slide"]
MIDDLES = range(14, 35, 2)


def sliding(source, n: int, part: str) -> dict[str, Tensor]:
    """n pairs of held-out digits, 1 px apart, each at all MIDDLES on one background.

    "both", "first", "second": pictures (middles, n, 3, 48, 48) of the pair or one
    of it; "boxes" (middles, n, 2, 4); "labels" (n, 2).
    """
    generator = torch.Generator().manual_seed(0)
    x, y = zeros_and_ones(source, part)
    chosen = torch.randint(len(x), (n, 2), generator=generator)
    background = source.background(part, n, generator)
    shapes = shapes_of(x[chosen])
    found = {"both": [], "first": [], "second": [], "boxes": []}
    shown = {"both": [True, True], "first": [True, False], "second": [False, True]}
    for middle in MIDDLES:
        where = torch.full((n,), float(middle))
        place = side_by_side(shapes, torch.ones(n), where, torch.full((n,), 24.0))
        found["boxes"].append(place)
        for name, there in shown.items():
            there = torch.tensor(there).expand(n, 2)
            picture = painted(source, x[chosen], place, there, background)
            found[name].append(picture)
    return {name: torch.stack(v) for name, v in found.items()} | {"labels": y[chosen]}


@torch.no_grad()
def hits(network, images: Tensor, place: Tensor, labels: Tensor) -> Tensor:
    """Whether each box (n, 2) is found by each cell: (n, 2, S S), True or False.

    A box of the network counts with its likeliest class, at a score of 0.2 and an IoU
    of 0.5 or more.
    """
    with evaluating(network):
        output = network(images.to(device)).cpu()
    guessed, scores = decode(output, images.shape[-1])  # (n, S S 2, 4)
    score, named = scores.max(-1)
    near = iou(place.unsqueeze(2), guessed.unsqueeze(1)) >= 0.5  # (n, 2, S S 2)
    right = (named.unsqueeze(1) == labels.unsqueeze(2)) & (score >= 0.2).unsqueeze(1)
    return (near & right).unflatten(2, (-1, 2)).any(-1)


# %% tags=["slide-run"]
held_out = sliding(scenes.DigitScenes(48), 100, "test")
place = held_out["boxes"].flatten(0, 1)
labels = held_out["labels"].repeat(len(MIDDLES), 1)
middle = (place[..., 0] + place[..., 2]) / 2
cell = (middle / 16).long()
together = cell[:, 0] == cell[:, 1]  # (middles n,)
alike = labels[:, 0] == labels[:, 1]
own = 3 + cell[:, :1]  # the cell of the first digit, in the middle row
seen = {}
for number, network in zip(SEEDS, pair_networks):
    for name in ("both", "first", "second"):
        images = held_out[name].flatten(0, 1)
        seen[number, name] = hits(network, images, place, labels)

# %% tags=["slide-result"]
rows = []
missed = {}
for number in SEEDS:
    pair = seen[number, "both"].any(-1)  # (middles n, 2)
    alone = torch.stack(
        (seen[number, "first"].any(-1)[:, 0], seen[number, "second"].any(-1)[:, 1]), 1
    )
    for name, chosen in (("one", together), ("two", ~together)):
        missed[number, name] = 1 - pair[chosen].double().mean().item()
        missed[number, name, "alone"] = 1 - alone[chosen].double().mean().item()
        for kind, same in (("alike", alike), ("unlike", ~alike)):
            every = pair[chosen & same].all(1).double().mean().item()
            missed[number, name, kind] = every
for name in ("one", "two"):
    row = ["one cell" if name == "one" else "two cells"]
    for key in ((), ("alone",), ("unlike",), ("alike",)):
        values = [missed[(number, name, *key)] for number in SEEDS]
        record_spread(".".join((name, *key)), values)
        row.append(spread(values, ".0%"))
    rows.append(row)
columns = ("centres in", "missed", "alone", "both, two classes", "both, one class")
table(rows, columns)

# %% tags=["slide-claims"]
for key in ((), ("unlike",), ("alike",)):
    one = [missed[(number, "one", *key)] for number in SEEDS]
    two = [missed[(number, "two", *key)] for number in SEEDS]
    if key:
        claim(max(one) < min(two), f"both are found less often in one cell {key}")
    else:
        claim(min(one) > max(two), "more are missed in one cell")
for name in ("one", "two"):
    alone = [missed[number, name, "alone"] for number in SEEDS]
    pair = [missed[number, name] for number in SEEDS]
    claim(max(alone) < min(pair), f"alone fewer are missed, {name}")
for number in SEEDS:
    gap = missed[number, "one"] - missed[number, "two"]
    place_alone = missed[number, "one", "alone"] - missed[number, "two", "alone"]
    claim(
        gap > 2 * place_alone, "the place in the cell explains a part of the gap only"
    )
for number in SEEDS:
    index = own.unsqueeze(1).expand(-1, 2, 1)
    from_cell = seen[number, "both"].gather(2, index).squeeze(2)  # (middles n, 2)
    both = from_cell[together & ~alike].all(1)
    claim(not both.any(), "one cell never tells two classes")
record("pairs.together", together.double().mean().item())
record("pairs.shown", len(labels))

# %% tags=["slide-figure"] alt="Share of digits found against the place of the pair's middle, from 14 to 34 pixels, with dotted lines at the borders of cells, 16 and 32. The line for a digit alone changes little. The line for pairs lies below it everywhere and sinks where the middle is near 24, the centre of a cell, where both digits are in one cell."
_, axes = plt.subplots()
ends = {}
means = {}
for name, colour in (("alone", plots.COLOURS[0]), ("in a pair", plots.COLOURS[1])):
    runs = []
    for number in SEEDS:
        if name == "alone":
            parts = [seen[number, "first"][:, 0], seen[number, "second"][:, 1]]
            found = torch.stack([part.any(-1) for part in parts], dim=1)
        else:
            found = seen[number, "both"].any(-1)
        runs.append(found.double().view(len(MIDDLES), -1).mean(1))
    means[name] = torch.stack(runs).mean(0)
    ends[name] = plots.seed_band(axes, list(MIDDLES), torch.stack(runs), colour)
single, paired = means.values()
lowest = int(paired.argmin())
claim(22 <= MIDDLES[lowest] <= 26, "pairs are found least near the middle of a cell")
claim((paired < single).all(), "the line for pairs lies below at each place")
claim(2 * (single.max() - single.min()) < paired.max() - paired.min(), "it moves more")
for border in (16, 32):
    axes.axvline(border, color=plots.QUIET, linestyle=":")
axes.set(xlabel="middle of the pair, px", ylabel="share of digits found", ylim=(0, 1))
plots.label_ends(axes, ends)
plt.show()

# %% [markdown]
# ## Ten digits on photographs
#
# As in the paper the backbone first learns to name what it sees, at half the size: single
# digits on pictures of 32 pixels.


# %% tags=["pretrain"]
def pretrain(backbone: nn.Module, *, steps: int, rate: float = 4e-3) -> list[float]:
    """Teach a backbone to name single digits; its accuracy on each batch of 64."""
    classifier = nn.Linear(64, 10).to(device)
    layers = nn.ModuleList([backbone, classifier]).train()
    optimizer = torch.optim.AdamW(
        layers.parameters(), lr=rate, weight_decay=1e-2, fused=True
    )
    schedule = training.one_cycle(optimizer, steps, rising=0.25)
    accuracy = []
    for batch in scenes.DigitScenes(32, most=1).batches(steps, 64):
        images = batch.images.contiguous(memory_format=torch.channels_last)
        labels = batch.labels[:, 0]
        scores = classifier(backbone(images).mean((2, 3)))
        optimizer.zero_grad()
        F.cross_entropy(scores, labels).backward()
        optimizer.step()
        schedule.step()
        accuracy.append((scores.argmax(1) == labels).double().mean().item())
    return accuracy


# %% tags=["maps"]
@torch.no_grad()
def maps_of(backbone: nn.Module, images: Tensor) -> Tensor:
    """What a trained backbone makes of images, kept so that it runs once for each."""
    with evaluating(backbone):
        found = []
        for part in images.split(100):
            part = part.to(device, memory_format=torch.channels_last)
            found.append(backbone(part))
    return torch.cat(found)


@torch.no_grad()
def detect(layers, maps: Tensor, *, overlap: float = 0.5) -> list[boxes.Detections]:
    """Detections on images of 64 pixels, from the backbone's maps of them."""
    with evaluating(layers):
        place, scores = decode(layers(maps).cpu(), 64)
    return [boxes.select(*pair, overlap=overlap) for pair in zip(place, scores)]


# %% tags=["detectors"]
seed(0)
backbone = small_yolo(64, n_classes=n_classes).backbone
accuracy = pretrain(backbone, steps=200)
maps = []
targets = []
for batch in source.batches(50, 100):
    maps.append(maps_of(backbone, batch.images))
    targets.append(assign(batch, 4))
maps = torch.cat(maps)
target = Target(*[torch.cat(part) for part in zip(*targets)])

RATES = {"connected": 2e-3, "per cell": 8e-3}
RUNS = {"connected": SEEDS[:1], "per cell": SEEDS}
detectors = {}
for kind, rate in RATES.items():
    for number in RUNS[kind]:
        seed(number)
        network = small_yolo(64, n_classes=n_classes)
        if kind == "per cell":
            network.head = PerCell(96, outputs=10 + n_classes).to(device)
        layers = nn.Sequential(network.added, network.head)
        train(layers, maps, target, steps=250, rate=rate, batch=32)
        detectors[kind, number] = layers


# %% tags=["ranged"]
def ranged(values: list[float], form: str) -> str:
    """Mean and ends over several seeds; of one seed its value alone."""
    return spread(values, form) if len(values) > 1 else f"{values[0]:{form}}"


# %% tags=["result"]
record("pretrained", sum(accuracy[-20:]) / 20)
record("objects", int((target.labels >= 0).sum()))
record("small.parameters", counting.parameters(small_yolo(64, n_classes=n_classes)))
test_maps = maps_of(backbone, test.images)
found = {key: detect(layers, test_maps) for key, layers in detectors.items()}
rows = []
reached = {}
for kind in RATES:
    scores = [
        boxes.average_precision(found[kind, number], test, classes=n_classes)
        for number in RUNS[kind]
    ]
    name = kind.replace(" ", "-")
    for measure, short in (("mAP@0.5", "half"), ("mAP@0.5:0.95", "strict")):
        reached[kind, short] = [one[measure] for one in scores]
        record_spread(f"{name}.{short}", reached[kind, short])
    size = counting.parameters(detectors[kind, 0][1])
    values = [ranged(reached[kind, short], ".3f") for short in ("half", "strict")]
    rows.append((kind, len(RUNS[kind]), size, *values))
for short in ("half", "strict"):
    least = min(reached["per cell", short])
    most = max(reached["connected", short])
    claim(least > most, "one linear map for all cells reaches more")
table(rows, ("head", "seeds", "parameters", "mAP@0.5", "mAP@0.5:0.95"))

# %% tags=["comparison"]
for kind, name in (("connected", "comparison"), ("per cell", "comparison-cells")):
    layers = detectors[kind, 0]
    network = nn.Sequential(backbone, layers)
    comparison.compare(
        network, lambda x, layers=layers: detect(layers, maps_of(backbone, x)), name
    )

# %% [markdown]
# What goes wrong, in the manner of figure 4 of the paper: of each scene the best
# detections, as many as it has objects.


# %% tags=["kinds"]
KINDS = ("correct", "localisation", "class", "background")


def kinds(found: list[boxes.Detections], truth: boxes.Scenes) -> list[float]:
    """Shares of KINDS among the best detections, as many as a scene has objects.

    Correct: the class and an IoU of 0.5 or more. Localisation: the class, from 0.1 on.
    Class: another one, 0.1 or more. Background: the rest. (Section 4.2.)
    """
    counts = torch.zeros(len(KINDS))
    for one, place, labels in zip(found, truth.boxes, truth.labels):
        there = labels >= 0
        for box, label in zip(one.boxes[: there.sum()], one.labels):
            near = iou(box, place[there])
            right = near[labels[there] == label]
            if (right >= 0.5).any():
                counts[0] += 1
            elif (right >= 0.1).any():
                counts[1] += 1
            elif (near >= 0.1).any():
                counts[2] += 1
            else:
                counts[3] += 1
    return (counts / counts.sum().clamp(min=1)).tolist()


# %% tags=["kinds-result"]
rows = []
for kind in RATES:
    shares = [kinds(found[kind, number], test) for number in RUNS[kind]]
    by_kind = list(zip(*shares))
    name = kind.replace(" ", "-")
    for what, values in zip(KINDS, by_kind):
        record_spread(f"{name}.{what}", values)
    if kind == "per cell":
        others = max(by_kind[2]) + max(by_kind[3])
        claim(min(by_kind[1]) > others, "most mistakes are misplaced boxes")
        claim(min(by_kind[2]) > max(by_kind[3]), "more are misnamed than invented")
        claim(max(by_kind[3]) < 0.05, "hardly a box lies on bare background")
    else:
        apart = abs(by_kind[1][0] - by_kind[2][0])
        claim(apart < 0.15, "about as many are misnamed as misplaced")
    rows.append((kind, *[ranged(values, ".0%") for values in by_kind]))
table(rows, ("head", *KINDS))

# %% tags=["chosen"]
sure = []
right = []
for one, place, labels in zip(found["per cell", 0], test.boxes, test.labels):
    keep = one.scores >= 0.2
    one = boxes.Detections(*[part[keep] for part in one])
    sure.append(one)
    there = labels >= 0
    near = iou(place[there].unsqueeze(1), one.boxes.unsqueeze(0)) >= 0.5
    named = labels[there].unsqueeze(1) == one.labels
    right.append((near & named).any(1).double().mean().item())
several = [i for i in range(len(test.images)) if (test.labels[i] >= 0).sum() > 1]
order = sorted(several, key=lambda i: right[i])
chosen = order[::-1][:4] + order[:4]
claim(right[order[-4]] > 0.99, "in the upper row all digits are found")
claim(right[order[3]] < 0.01, "in the lower row none is found")

# %% tags=["pictures"] alt="Eight test scenes in two rows, white boxes around the digits, yellow boxes for what was found, with class and score. In the upper row a yellow box lies on each digit, on some digits more than one. In the lower row yellow boxes are missing, are shifted or too large, or name another digit."
parts = [test.images, test.boxes, test.labels, test.ignored]
shown = boxes.Scenes(*[part[chosen] for part in parts])
boxes.show(shown, [sure[i] for i in chosen], source.classes)

# %% [markdown]
# ## What we saw
#
# - The five terms of the loss are sums of squares over a grid; by hand and by the function
#   they are the same.
# - Of two digits of different classes one cell never tells both; the same pairs are found
#   more often when the border of two cells runs between them.
# - The linear layers hold most of the parameters and have weights of their own for each
#   cell; one map for all cells reaches a higher mAP in as many steps.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
with torch.device("meta"):
    fine = yolov1(S=14)
more = (4096 + 1) * (14**2 - 7**2) * 30

# %% tags=["solution-1-result"]
counted = counting.parameters(fine) - total
claim(counted == more, "a grid of 14 costs what the product by hand gives")
table([(more, counted)], ("by hand", "counted"))

# %% tags=["solution-2"]
by_overlap = {}
for overlap in (0.3, 0.5, 1.0):
    found_so = detect(detectors["per cell", 0], test_maps, overlap=overlap)
    precision = boxes.average_precision(found_so, test, classes=n_classes)
    by_overlap[overlap] = precision["mAP@0.5"]

# %% tags=["solution-2-result"]
change = max(by_overlap.values()) - min(by_overlap.values())
claim(change < 0.1, "on this network the limit changes less than a tenth")
record("nms.change", change)
rows = [(str(overlap), f"{value:.3f}") for overlap, value in by_overlap.items()]
table(rows, ("largest IoU of two boxes of a class", "mAP@0.5"))


# %% tags=["solution-3"]
def beyond(found: boxes.Scenes, S: int, room: int) -> float:
    """Share of the objects that find no room where a cell has room for so many."""
    low = found.boxes[..., :2]
    high = found.boxes[..., 2:]
    cell = ((low + high) / 2 * S / found.images.shape[-1]).long()
    there = found.labels >= 0
    same = (cell.unsqueeze(1) == cell.unsqueeze(2)).all(-1)  # (B, M, M)
    earlier = (same & there.unsqueeze(1)).tril(-1).sum(-1)
    return ((earlier >= room) & there).sum().item() / there.sum().item()


# %% tags=["solution-3-result"]
rows = []
for S in (3, 4, 7):
    one = beyond(crowded, S, 1)
    two = beyond(crowded, S, 2)
    claim(abs(one - lost["10 to 14 px", S]) < 1e-6, "room for one is the grid above")
    claim(two <= one, "room for two loses no more")
    rows.append((S, f"{one:.1%}", f"{two:.1%}"))
table(rows, ("S", "room for one", "room for two, each with its class"))
