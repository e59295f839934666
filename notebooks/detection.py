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
# # Object detection
#
# Boxes and how far they agree, four losses that pull one to another, what is done with
# too many boxes, how detectors are scored, and the line from R-CNN to Faster R-CNN.
# The text to it is the [chapter](../chapters/detection.rst).

# %%
import contextlib
import io
import math
from collections import Counter
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torchvision
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops
from torchvision.models.detection import anchor_utils, faster_rcnn, rpn
from torchvision.models.detection import _utils as detection_utils

from workbench import claim, device, record, record_spread, seed, spread
from workbench import checks, counting, diagrams, plots, table

# %% [markdown]
# ## How far do two boxes agree?
#
# A box is x1, y1, x2, y2, with y downwards. All functions work on the last axis, so that
# they compare box by box or, with an axis more, each with each.


# %% tags=["iou"]
def size(box: Tensor) -> Tensor:
    return box[..., 2:] - box[..., :2]  # (..., 2): width, height


def centre(box: Tensor) -> Tensor:
    return (box[..., :2] + box[..., 2:]) / 2


def area(box: Tensor) -> Tensor:
    return size(box).prod(-1)


def shared(a: Tensor, b: Tensor) -> Tensor:
    """Area of the intersection, 0 where the boxes do not touch."""
    first = torch.maximum(a[..., :2], b[..., :2])
    last = torch.minimum(a[..., 2:], b[..., 2:])
    return (last - first).clamp(min=0).prod(-1)


def union(a: Tensor, b: Tensor) -> Tensor:
    return area(a) + area(b) - shared(a, b)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4) and (..., 4)."""
    return shared(a, b) / union(a, b)


# %% tags=["giou"]
def around(a: Tensor, b: Tensor) -> Tensor:
    """Width and height (..., 2) of the smallest box that holds both."""
    first = torch.minimum(a[..., :2], b[..., :2])
    last = torch.maximum(a[..., 2:], b[..., 2:])
    return last - first


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Rezatofighi et al. 2019, algorithm 1."""
    whole = around(a, b).prod(-1)
    return iou(a, b) - (whole - union(a, b)) / whole


# %% tags=["diou"]
def diou(a: Tensor, b: Tensor) -> Tensor:
    """Zheng et al. 2019, equation 7."""
    distance = (centre(a) - centre(b)).square().sum(-1)
    diagonal = around(a, b).square().sum(-1)
    return iou(a, b) - distance / diagonal


# %% tags=["ciou"]
def ciou(a: Tensor, b: Tensor) -> Tensor:
    """Zheng et al. 2019, equations 8 to 11."""
    angle_a = torch.atan(size(a)[..., 0] / size(a)[..., 1])
    angle_b = torch.atan(size(b)[..., 0] / size(b)[..., 1])
    v = 4 / math.pi**2 * (angle_a - angle_b).square()
    alpha = v / (1 - iou(a, b) + v + 1e-7)  # 0 / 0 where both boxes are the same
    return diou(a, b) - alpha.detach() * v


# %% [markdown]
# Worked by hand: a square of 4 by 4, and a box of 4 by 2 that overlaps it in a square of
# 2 by 2.

# %% tags=["two-boxes"]
a = torch.tensor([0.0, 0, 4, 4])
b = torch.tensor([2.0, 1, 6, 3])
[round(measure(a, b).item(), 3) for measure in (iou, giou, diou, ciou)]

# %% tags=["each-with-each"]
three = torch.stack((a, b, (a + b) / 2))
iou(three[:, None], torch.stack((a, b))).shape

# %% tags=["two-boxes-claims"]
v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
by_hand = {"iou": 4 / 20, "giou": 4 / 20 - 4 / 24, "diou": 4 / 20 - 4 / 52}
by_hand["ciou"] = by_hand["diou"] - v / (1 - 0.2 + v) * v
MEASURES = {"IoU": iou, "GIoU": giou, "DIoU": diou, "CIoU": ciou}
for name, measure in MEASURES.items():
    found = measure(a, b).item()
    record(f"by_hand.{name}", found)
    claim(abs(found - by_hand[name.lower()]) < 1e-6, f"{name} of the two boxes by hand")
record("by_hand.v", v)
record("by_hand.alpha", v / (1 - 0.2 + v))


# %% tags=["drawing"]
def draw_box(axes, box, colour, *, fill=0.0, line="-", width=2.0, alpha=1.0) -> None:
    """The outline of a box, and a tint inside it."""
    x1, y1, x2, y2 = (float(value) for value in box)
    frame = {"edgecolor": (colour, alpha), "linestyle": line, "linewidth": width}
    patch = plt.Rectangle((x1, y1), x2 - x1, y2 - y1, facecolor=(colour, fill), **frame)
    axes.add_patch(patch)


def draw_area(axes, x: tuple, y: tuple, **style) -> None:
    """A plane with y downwards and no frame."""
    axes.set(xlim=x, ylim=(y[1], y[0]), aspect="equal")
    if "title" in style:
        axes.set_title(style["title"], fontsize=11)
    axes.axis("off")


# %% tags=["measures-figure"] alt="Four drawings of the same two boxes, a blue square of 4 by 4 and an orange box of 4 by 2 that reaches out of it at the right. IoU: the shared square of 2 by 2 is filled; 4 of 20, 0.200. GIoU: a dotted box around both, of which the two corners at the right that neither covers are filled; 0.2 minus 4 of 24, 0.033. DIoU: a line of length 2 joins the centres, a dotted one is the diagonal of the box around both; 0.2 minus 4 of 52, 0.123. CIoU: the diagonals of both boxes, whose angles differ; 0.121."
BLUE, ORANGE, GREEN = plots.COLOURS[:3]
_, grid = plt.subplots(2, 2, figsize=(5, 4.4))
sums = ("4 / 20", "0.2 − 4 / 24", "0.2 − 4 / 52", "DIoU − α v")
for axes, (name, measure), text in zip(grid.flat, MEASURES.items(), sums):
    draw_box(axes, a, BLUE)
    draw_box(axes, b, ORANGE)
    title = f"{name} = {text} = {measure(a, b):.3f}"
    draw_area(axes, (-0.3, 6.3), (-0.3, 4.3), title=title)
draw_box(grid[0, 0], (2, 1, 4, 3), GREEN, fill=0.5, width=0)
for axes in (grid[0, 1], grid[1, 0]):
    draw_box(axes, (-0.08, -0.08, 6.08, 4.08), plots.QUIET, line=":", width=1.5)
for corner in ((4, 0, 6, 1), (4, 3, 6, 4)):
    draw_box(grid[0, 1], corner, GREEN, fill=0.5, width=0)
grid[1, 0].plot((2, 4), (2, 2), "o-", color=GREEN)
grid[1, 0].plot((0, 6), (0, 4), ":", color=GREEN)
grid[1, 1].plot((0, 4), (0, 4), color=BLUE, linewidth=1)
grid[1, 1].plot((2, 6), (1, 3), color=ORANGE, linewidth=1)
plt.show()

# %% [markdown]
# ## What a loss still sees
#
# The loss is one minus the measure. Its derivative by the box says where gradient descent
# goes: three places of a box, and the part of the derivative that would help there.


# %% tags=["corners"]
def corners(p: Tensor) -> Tensor:
    """Boxes (..., 4) given as centre, width and height, as x1, y1, x2, y2."""
    return torch.cat((p[..., :2] - p[..., 2:] / 2, p[..., :2] + p[..., 2:] / 2), -1)


# %% tags=["slopes"]
def slopes(measure, p: Tensor, target: Tensor) -> tuple[float, float]:
    """How fast the loss changes as the centre moves, and as width is traded for height.

    The area stays the same while width grows by a share and height shrinks by it.
    """
    p = p.clone().requires_grad_()
    (1 - measure(corners(p), target)).backward()
    trade = p.grad[2] * p[2] - p.grad[3] * p[3]
    return p.grad[:2].norm().item(), trade.abs().item()


# %% tags=["sees"]
target = torch.tensor([0.0, 0, 2, 2])
apart = torch.tensor([-1.5, -0.5, 1, 1])
inside = torch.tensor([0.7, 0.8, 1, 1])
centred = torch.tensor([1.0, 1, 1, 0.5])
seen = {}
for name, measure in MEASURES.items():
    far, _ = slopes(measure, apart, target)
    near, _ = slopes(measure, inside, target)
    _, shape = slopes(measure, centred, target)
    seen[name] = (far, near, shape)

# %% tags=["sees-result"]
columns = ("apart: centre", "inside: centre", "same centre: shape")
rows = []
for name, values in seen.items():
    rows.append((name, *[f"{value:.3f}" if value > 1e-6 else "0" for value in values]))
table(rows, ("derivative of the loss", *columns))

# %% tags=["sees-claims"]
for number, (name, values) in enumerate(seen.items()):
    found = [value > 0.005 for value in values]
    words = f"{name}: the first {number} of three derivatives are not zero"
    claim(found == [True] * number + [False] * (3 - number), words)
    claim(max([0.0, *values[number:]]) < 1e-6, f"{name}: the others are zero")

# %% [markdown]
# ## Pull a box to a target that it does not touch
#
# Plain gradient descent on centre, width and height; the rate falls to zero along a
# line. So few boxes are moved faster by a CPU than by a GPU.


# %% tags=["starts"]
STARTS = 200
SEEDS = (0, 1, 2)


def random_sizes(n: int) -> Tensor:
    """Widths and heights (n, 2): areas and ratios of sides between 1/2 and 2."""
    area, ratio = 2 ** (2 * torch.rand(2, n) - 1)
    return torch.stack(((area * ratio).sqrt(), (area / ratio).sqrt()), 1)


def random_starts(n: int) -> tuple[Tensor, Tensor]:
    """Boxes and targets (n, 4) as centre, width, height, with a gap of 0.1 to 2."""
    sizes = random_sizes(n)
    wanted = random_sizes(n)
    turn = 2 * math.pi * torch.rand(n, 1)
    way = torch.cat((turn.cos(), turn.sin()), 1)
    touch = ((sizes + wanted) / 2 / way.abs()).amin(1, keepdim=True)
    gap = 0.1 + 1.9 * torch.rand(n, 1)
    boxes = torch.cat(((touch + gap) * way, sizes), 1)
    return boxes, torch.cat((torch.zeros(n, 2), wanted), 1)


# %% tags=["pull"]
def pull(measure, start: Tensor, target: Tensor, *, rate: float, box_of=corners):
    """The boxes (301, N, 4) on the way of 300 steps of gradient descent."""
    p = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([p], lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=300)
    path = [box_of(p).detach()]
    for _ in range(300):
        loss = (1 - measure(box_of(p), target)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        path.append(box_of(p).detach())
    return torch.stack(path)


# %% tags=["steps"]
def steps_until(overlaps: Tensor, least: float) -> Tensor:
    """The first step (N,) at which overlaps (steps, N) are so large, or inf."""
    reached = overlaps >= least
    first = reached.int().argmax(0).float()
    return torch.where(reached.any(0), first, math.inf)


# %% tags=["headline"]
pairs = []
for number in SEEDS:
    seed(number)
    pairs.append(random_starts(STARTS))
boxes, wanted = (torch.cat(parts) for parts in zip(*pairs))
goal = corners(wanted)
overlaps = {}
still = []
for name, measure in MEASURES.items():
    for rate in (0.1, 0.2, 0.4):
        path = pull(measure, boxes, goal, rate=rate)
        overlaps[name, rate] = iou(path, goal)
        if name == "IoU":
            still.append(torch.equal(path[0], path[-1]))


# %% tags=["medians"]
def medians(overlaps: Tensor, least: float) -> list[float]:
    """For each seed, the median over its starts of the steps until this IoU."""
    first = steps_until(overlaps, least)
    return [part.median().item() for part in first.split(STARTS)]


# %% tags=["result"]
RATES = (0.1, 0.2, 0.4)
PULLERS = ("GIoU", "DIoU", "CIoU")
rows = []
steps = {}
for until, least in (("contact", 1e-6), ("IoU 0.9", 0.9)):
    for rate in RATES:
        for name in PULLERS:
            steps[until, rate, name] = medians(overlaps[name, rate], least)
        texts = [spread(steps[until, rate, name], ".0f") for name in PULLERS]
        rows.append((until, rate, *texts))
table(rows, ("steps until", "rate", *PULLERS))

# %% tags=["result-claims"]
record("starts", STARTS)
claim(all(still), "by IoU no box moves at all, at any of the rates")
reached = {}
for rate in RATES:
    for name in PULLERS:
        parts = (overlaps[name, rate].amax(0) >= 0.9).float().split(STARTS)
        reached[rate, name] = [part.mean().item() for part in parts]
    values = [value for name in PULLERS for value in reached[rate, name]]
    record(f"reached.{rate}.least", min(values))
    record(f"reached.{rate}.most", max(values))
    lowest, highest = {0.1: (0.7, 0.95), 0.2: (0.98, 1), 0.4: (0.98, 1)}[rate]
    claim(lowest < min(values), f"rate {rate}: so many starts come to 0.9")
    claim(max(values) <= highest, f"rate {rate}: and not more")

# %% tags=["order-claims"]
for i, rate in enumerate(RATES):
    giou_steps = steps["IoU 0.9", rate, "GIoU"]
    diou_steps = steps["IoU 0.9", rate, "DIoU"]
    ciou_steps = steps["IoU 0.9", rate, "CIoU"]
    others = diou_steps + ciou_steps
    apart_first = max(giou_steps) < min(others)
    apart_last = min(giou_steps) > max(others)
    order = (apart_first, not (apart_first or apart_last), apart_last)
    claim(order[i], f"rate {rate}: GIoU is first, not told apart, last")
    same = min(diou_steps) <= max(ciou_steps) and min(ciou_steps) <= max(diou_steps)
    claim(same, f"rate {rate}: DIoU and CIoU are not told apart")
    later = steps["contact", rate, "DIoU"] + steps["contact", rate, "CIoU"]
    sooner = max(steps["contact", rate, "GIoU"]) < min(later)
    claim(sooner, f"rate {rate}: GIoU touches its target sooner, seeds apart")

# %% [markdown]
# One start and its four ways.

# %% tags=["paths-figure"] alt="Four drawings of a box that starts above and left of a target and does not touch it. IoU: the box stays at its start. GIoU: the centre runs down more than across at first and goes on in zigzags. DIoU and CIoU: the centre takes a shorter way. These three end on the target."
one = torch.tensor([[-2.6, -1.2, 0.8, 0.8]])
aim = corners(torch.tensor([[0.0, 0, 1.6, 0.9]]))
ways = {name: pull(m, one, aim, rate=0.2)[:, 0] for name, m in MEASURES.items()}
_, grid = plt.subplots(2, 2, figsize=(5, 3.9))
for axes, (name, way) in zip(grid.flat, ways.items()):
    draw_box(axes, aim[0], ORANGE, fill=0.25, width=0)
    for box in way[10:90:8]:
        draw_box(axes, box, BLUE, width=0.6)
    draw_box(axes, way[0], BLUE, line="--", width=1.5)
    draw_box(axes, way[-1], BLUE)
    axes.plot(*centre(way).T, color=plots.COLOURS[3], linewidth=1.5)
    draw_area(axes, (-3.5, 1.3), (-2, 1), title=name)
plt.show()

# %% tags=["paths-claims"]
claim(torch.equal(ways["IoU"][0], ways["IoU"][-1]), "IoU leaves the box at its start")
length = {}
arrived = {}
moves = {}
for name in PULLERS:
    arrived[name] = int(steps_until(iou(ways[name], aim[0])[:, None], 0.9))
    moves[name] = centre(ways[name][: arrived[name] + 1]).diff(dim=0)
    length[name] = moves[name].norm(dim=1).sum().item()
    record(f"arrived.{name}", arrived[name])
longest = max(length["DIoU"], length["CIoU"])
claim(length["GIoU"] > 2 * longest, "in the figure GIoU takes twice as long a way")
soonest = min(arrived["DIoU"], arrived["CIoU"])
claim(arrived["GIoU"] < soonest, "and needs fewer steps for it")
claim(abs(arrived["DIoU"] - arrived["CIoU"]) < 4, "DIoU and CIoU take about as many")
turned = {}
for name in PULLERS:
    side = moves[name].sign()
    turned[name] = (side[1:] * side[:-1] < 0).sum(0).max()
claim(turned["GIoU"] > 8, "GIoU goes in zigzags")
claim(max(turned["DIoU"], turned["CIoU"]) < 3, "DIoU and CIoU do not")
across, down = moves["GIoU"][:12].sum(0)
claim(down > across > 0, "GIoU: down more than across at first")
for name in PULLERS:
    end = iou(ways[name][-1], aim[0])
    claim(end > 0.97, f"{name}: the box of the figure ends on the target")
    largest = area(ways[name]).max() / area(ways[name][0])
    claim(largest > 2, f"{name}: the box more than doubles its area on the way")


# %% tags=["direction"]
def first_push(measure, start: Tensor, target: Tensor) -> Tensor:
    """How the loss pushes the centres (N, 2) of boxes at their start."""
    p = start.clone().requires_grad_()
    (1 - measure(corners(p), target)).sum().backward()
    return -p.grad[:, :2]


# %% tags=["direction-result"]
turns = {}
pulls = {}
rows = []
for name in PULLERS:
    push = first_push(MEASURES[name], boxes, goal)
    angle = F.cosine_similarity(push, -boxes[:, :2]).acos().rad2deg()
    turns[name] = [part.median().item() for part in angle.split(STARTS)]
    pulls[name] = [part.median().item() for part in push.norm(dim=1).split(STARTS)]
    rows.append((name, spread(turns[name], ".0f"), spread(pulls[name], ".3f")))
table(rows, ("loss", "degrees off", "size of the gradient"))

# %% tags=["direction-claims"]
for name in PULLERS:
    record_spread(f"turn.{name}", turns[name])
    record_spread(f"push.{name}", pulls[name])
aside = max(turns["DIoU"] + turns["CIoU"])
claim(min(turns["GIoU"]) > 1.5 * aside, "GIoU's first step points farther aside")
strong = max(pulls["DIoU"] + pulls["CIoU"])
claim(min(pulls["GIoU"]) > 1.3 * strong, "GIoU's first gradient is larger")

# %% tags=["curve"] alt="Two panels with the share of boxes that have come to an IoU of 0.9, against the step, at a rate of 0.1 and of 0.4. In both the line of IoU stays at 0, and the lines of DIoU and CIoU lie close together. The lines of the three rise: at 0.1 GIoU is first and they end at 0.8 to 0.9, at 0.4 GIoU is last and they end near 1."
_, row = plt.subplots(1, 2, figsize=(5, 2.8), sharey=True)
for axes, rate in zip(row, (0.1, 0.4)):
    names = {}
    for name, colour in zip(MEASURES, plots.COLOURS):
        best = overlaps[name, rate].cummax(0).values >= 0.9
        runs = torch.stack([part.float().mean(1) for part in best.split(STARTS, 1)])
        names[name] = plots.seed_band(axes, range(301), runs, colour)
    axes.set(xlabel="step", xlim=(0, 300), ylim=(-0.05, 1.05), title=f"rate {rate}")
    plots.label_ends(axes, names)
row[0].set_ylabel("boxes with IoU 0.9")
plt.show()

# %% [markdown]
# ## From sliding windows to one pass

# %% tags=["timeline"]
LANES = ("windows, regions", "one pass", "parts, measures")
TIMELINE = {  # year: lane, name, idea
    2001: [(0, "Viola–Jones", "cascade of sums")],
    2005: [(0, "HOG", "gradients, SVM")],
    2008: [(0, "DPM", "parts that move")],
    2013: [(0, "R-CNN", "CNN per region")],
    2014: [(0, "SPP-net", "one map for all"), (2, "COCO", "photographs")],
    2015: [
        (0, "Fast R-CNN", "RoI pooling"),
        (0, "Faster R-CNN", "learnt regions"),
        (1, "YOLO", "one grid"),
        (1, "SSD", "several maps"),
    ],
    2016: [(1, "YOLOv2", "k-means anchors"), (2, "FPN", "top-down path")],
    2017: [
        (0, "Mask R-CNN", "RoIAlign"),
        (1, "RetinaNet", "focal loss"),
        (2, "Soft-NMS", "scores fade"),
    ],
    2018: [(1, "YOLOv3", "three scales"), (2, "PANet", "path back up")],
    2019: [
        (1, "EfficientDet", "BiFPN, scaling"),
        (2, "GIoU, DIoU", "losses on boxes"),
        (2, "CSPNet", "half the channels"),
    ],
    2020: [
        (1, "YOLOv4", "mosaic, CIoU"),
        (1, "YOLOv5", "four sizes"),
        (1, "DETR", "no NMS"),
    ],
}

# %% tags=["timeline-figure"] alt="A time line downwards from 2001 to 2020 in three columns. Windows and regions: Viola-Jones, HOG, DPM, R-CNN, SPP-net, Fast R-CNN, Faster R-CNN, Mask R-CNN in 2017. One pass: YOLO and SSD in 2015, YOLOv2, RetinaNet, YOLOv3, EfficientDet, YOLOv4, YOLOv5 and DETR in 2020. Parts and measures: COCO, FPN, Soft-NMS, PANet, GIoU and DIoU, CSPNet."
_, axes = plt.subplots(figsize=(5, 7.2))
y = 0.0
middle = {"ha": "center", "va": "center"}
for i, lane in enumerate(LANES):
    axes.text(i + 0.5, -0.75, lane, weight="bold", fontsize=11, **middle)
for year, entries in TIMELINE.items():
    axes.axhline(y - 0.38, color=plots.GRID, linewidth=1)
    axes.text(-0.32, y + 0.12, str(year), va="center", color=plots.QUIET)
    used = Counter()
    for lane, name, idea in entries:
        below = y + used[lane]
        axes.text(lane + 0.5, below, name, fontsize=11, **middle)
        axes.text(lane + 0.5, below + 0.38, idea, fontsize=10, color=BLUE, **middle)
        used[lane] += 0.9
    y += max(used.values()) + 0.22
axes.set(xlim=(-0.35, 3.05), ylim=(y - 0.3, -1.05))
axes.axis("off")
late = {lane for year in (2018, 2019, 2020) for lane, _, _ in TIMELINE[year]}
claim(late == {1, 2}, "after 2017 the time line has no network of the first column")
plt.show()

# %% [markdown]
# ## R-CNN, Fast R-CNN, Faster R-CNN

# %% tags=["family-figure"] alt="Three columns of boxes joined by arrows. R-CNN: image, 2,000 regions by selective search, each warped to one size, the CNN 2,000 times, SVMs and box regression. Fast R-CNN: image, the CNN once, RoI pooling of 2,000 regions from selective search, linear layers, classes and boxes. Faster R-CNN: image, the CNN once, 300 regions from a network on its map, RoI pooling, linear layers, classes and boxes."
FAMILY = {
    "R-CNN": (
        "image",
        "2,000 regions\n(selective search)",
        "warp each",
        "CNN,\n2,000 times",
        "SVMs, boxes",
    ),
    "Fast R-CNN": (
        "image",
        "CNN, once",
        "RoI pooling of\n2,000 regions\n(selective search)",
        "linear layers",
        "classes, boxes",
    ),
    "Faster R-CNN": (
        "image",
        "CNN, once",
        "300 regions\n(RPN)",
        "RoI pooling,\nlinear layers",
        "classes, boxes",
    ),
}
axes = diagrams.sheet(4.3)
for i, (name, texts) in enumerate(FAMILY.items()):
    x = 0.87 + 1.63 * i
    nodes = {"name": diagrams.Node(x, 0.2, name, weight="bold")}
    for j, text in enumerate(texts):
        nodes[str(j)] = diagrams.Node(x, 0.65 + 0.85 * j, text, width=1.5)
    steps = [(str(j), str(j + 1)) for j in range(len(texts) - 1)]
    diagrams.draw(axes, nodes, steps)
plt.show()


# %% tags=["heads"]
class RegionProposal(nn.Module):
    """The RPN: for each of A anchors at each place, is it an object, and where exactly?

    Ren et al. 2015, section 3.1; one number for objectness as in torchvision.
    """

    def __init__(self, channels: int = 512, A: int = 9):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, A, 1)
        self.offsets = nn.Conv2d(channels, 4 * A, 1)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        # (B, C, H, W) -> (B, A, H, W), (B, 4 A, H, W)
        x = torch.relu(self.conv(maps))
        return self.objectness(x), self.offsets(x)


class RoIHead(nn.Module):
    """Two linear layers on the pooled map of a region, then its class and its box.

    Girshick 2015, section 2.1: K classes and background, four offsets for each.
    """

    def __init__(
        self, channels: int = 512, *, side: int = 7, d: int = 4096, K: int = 20
    ):
        super().__init__()
        self.fc6 = nn.Linear(channels * side * side, d)
        self.fc7 = nn.Linear(d, d)
        self.classes = nn.Linear(d, K + 1)
        self.offsets = nn.Linear(d, 4 * (K + 1))

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        # (N, C, side, side) -> (N, K + 1), (N, 4 (K + 1))
        x = torch.relu(self.fc6(pooled.flatten(1)))
        x = torch.relu(self.fc7(x))
        return self.classes(x), self.offsets(x)


# %% tags=["family-cost"]
with torch.device("meta"):
    vgg16 = torchvision.models.vgg16()
    trunk = vgg16.features[:-1]  # the convolutions, without the last pooling
    warped = counting.macs(vgg16, torch.empty(1, 3, 224, 224))
    whole = torch.empty(1, 3, 600, 1000)
    once = counting.macs(trunk, whole)
    rpn_macs = counting.macs(RegionProposal(), trunk(whole))
    head = counting.macs(RoIHead(), torch.empty(1, 512, 7, 7))

# %% tags=["family-result"]
giga = {
    "R-CNN": 2000 * warped / 1e9,
    "Fast R-CNN": (once + 2000 * head) / 1e9,
    "Faster R-CNN": (once + rpn_macs + 300 * head) / 1e9,
}
sums = (
    "2,000 × VGG-16 at 224×224",
    "convolutions once, 2,000 × linear layers",
    "convolutions once, RPN, 300 × linear layers",
)
rows = []
for (name, value), text in zip(giga.items(), sums):
    rows.append((name, text, f"{value:,.0f}"))
    record(f"giga.{name}", value)
record("giga.rpn", rpn_macs / 1e9)
record("giga.saved", giga["R-CNN"] / giga["Fast R-CNN"])
table(rows, ("detector", "on an image of 600×1000", "G MACs"))

# %% [markdown]
# ## Too many boxes: non-maximum suppression


# %% tags=["nms"]
def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes that stay, best first.

    No box that stays overlaps a better one by more than the threshold.
    """
    waiting = scores.argsort(descending=True, stable=True)
    kept = [waiting[:0]]
    while len(waiting):
        best = waiting[:1]
        kept.append(best)
        rest = waiting[1:]
        waiting = rest[iou(boxes[best], boxes[rest]) <= threshold]
    return torch.cat(kept)


# %% tags=["batched-nms"]
def batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float):
    """NMS in each class alone: each class is moved to a place of its own first."""
    room = boxes.amax() - boxes.amin() + 1
    apart = boxes + (classes * room).unsqueeze(1)
    return nms(apart, scores, threshold)


# %% tags=["soft-nms"]
def soft_nms(boxes: Tensor, scores: Tensor, fade, least: float = 0.001):
    """Indices and new scores, best first: a box that is taken fades those it overlaps.

    Bodla et al. 2017, figure 2. fade: what IoU (N,) leaves of a score.
    """
    scores = scores.clone()
    waiting = scores.argsort(descending=True, stable=True)
    kept = [waiting[:0]]
    while len(waiting):
        best = waiting[:1]
        kept.append(best)
        waiting = waiting[1:]
        scores[waiting] *= fade(iou(boxes[best], boxes[waiting]))
        waiting = waiting[scores[waiting] > least]
        waiting = waiting[scores[waiting].argsort(descending=True, stable=True)]
    kept = torch.cat(kept)
    return kept, scores[kept]


def linear(overlap: Tensor, threshold: float = 0.3) -> Tensor:
    return torch.where(overlap >= threshold, 1 - overlap, 1.0)


def gaussian(overlap: Tensor, sigma: float = 0.5) -> Tensor:
    return torch.exp(-overlap.square() / sigma)


# %% tags=["nms-run"]
four = torch.tensor([[0.0, 0, 8, 8], [1, 1, 9, 9], [2, 2, 10, 10], [11, 11, 17, 17]])
scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
nms(four, scores, threshold=0.5)

# %% tags=["nms-claims"]
between = iou(four[:, None], four[None])
claim(torch.equal(nms(four, scores, 0.5), torch.tensor([0, 2, 3])), "one step by hand")
claim(abs(between[0, 1] - 49 / 79) < 1e-6, "A and B: 7 × 7 of 128 − 49")
claim(abs(between[0, 2] - 36 / 92) < 1e-6, "A and C: 6 × 6 of 128 − 36")
record("nms.ab", between[0, 1])
record("nms.ac", between[0, 2])
order, faded = soft_nms(four, scores, gaussian)
claim(order.tolist() == [0, 3, 2, 1], "soft-NMS: A, D, C, B")
record("soft.b", faded[3])
record("soft.c", faded[2])
two_steps = 0.8 * math.exp(-2 * (49 / 79) ** 2 / 0.5)
claim(abs(faded[3] - two_steps) < 1e-6, "B fades twice: by A and by C")
claim(abs(faded[2] - 0.7 * math.exp(-((36 / 92) ** 2) / 0.5)) < 1e-6, "C fades once")

# %% tags=["nms-figure"] alt="Three drawings of the same boxes: A, B and C, each moved a little to the right and down of the one before, and D apart below. Before: scores 0.90, 0.80, 0.70 and 0.60. NMS: B is gone, A, C and D keep their scores. Soft-NMS: all four stay, C with 0.52 and B with 0.17, drawn pale."
left = {"before": dict(enumerate(scores.tolist()))}
left["NMS"] = {i: scores[i].item() for i in nms(four, scores, 0.5).tolist()}
left["soft-NMS"] = dict(zip(order.tolist(), faded.tolist()))
_, row = plt.subplots(1, 3, figsize=(5, 2.2))
for axes, (name, values) in zip(row, left.items()):
    spots = ((1.8, -1.2), (12.8, 5), (4.5, 11.6), (14, 18.5))
    for i, value in values.items():
        draw_box(axes, four[i], plots.COLOURS[i], alpha=min(1, 1.2 * value))
        letter = {"color": plots.COLOURS[i], "fontsize": 10, **middle}
        axes.text(*spots[i], f"{'ABCD'[i]} {value:.2f}".replace("0.", "."), **letter)
    draw_area(axes, (-1.5, 18.5), (-2.2, 19.5), title=name)
plt.show()

# %% [markdown]
# ## Anchors


# %% tags=["anchors"]
def anchor_shapes(scales, ratios) -> Tensor:
    """Anchors (A, 4) around the origin: each ratio of height to width in each scale."""
    shapes = []
    for ratio in ratios:
        for scale in scales:
            w = scale / math.sqrt(ratio)
            h = scale * math.sqrt(ratio)
            shapes.append((-w / 2, -h / 2, w / 2, h / 2))
    return torch.tensor(shapes)


def anchor_grid(H: int, W: int, *, stride: int, shapes: Tensor) -> Tensor:
    """The shapes at each place of a map, row by row: (H * W * A, 4)."""
    y = stride * torch.arange(H, device=shapes.device)
    x = stride * torch.arange(W, device=shapes.device)
    y, x = torch.meshgrid(y, x, indexing="ij")
    places = torch.stack((x, y, x, y), -1).view(-1, 1, 4)
    return (places + shapes).view(-1, 4)


# %% tags=["assign-anchors"]
def assign_anchors(anchors: Tensor, objects: Tensor, *, low=0.3, high=0.7) -> Tensor:
    """The object of each anchor, -1 for background, -2 for neither; (N,).

    Ren et al. 2015, section 3.1.2: each object also gets the anchors it overlaps most.
    """
    overlaps = iou(objects[:, None], anchors[None])  # (G, N)
    most, which = overlaps.max(0)
    label = torch.where(most < high, -2, which)
    label = torch.where(most < low, -1, label)
    best = overlaps == overlaps.amax(1, keepdim=True)
    return torch.where(best.any(0), which, label)


# %% tags=["encode"]
def encode(box: Tensor, anchor: Tensor) -> Tensor:
    """What a network has to say for this box (..., 4). Ren et al. 2015, equation 2."""
    shift = (centre(box) - centre(anchor)) / size(anchor)
    scale = (size(box) / size(anchor)).log()
    return torch.cat((shift, scale), -1)


def decode(t: Tensor, anchor: Tensor) -> Tensor:
    """The box that it says."""
    middle = centre(anchor) + t[..., :2] * size(anchor)
    return corners(torch.cat((middle, t[..., 2:].exp() * size(anchor)), -1))


# %% tags=["anchors-run"]
shapes = anchor_shapes(scales=(24, 40), ratios=(0.5, 1, 2))
anchors = anchor_grid(4, 7, stride=16, shapes=shapes)
anchors.shape

# %% tags=["labels"]
thing = torch.tensor([[38.0, 14, 60, 52]])
label = assign_anchors(anchors, thing)
Counter(label.tolist())

# %% tags=["anchors-claims"]
found = Counter(label.tolist())
record("anchors.all", len(anchors))
for name, number in (("object", 0), ("background", -1), ("neither", -2)):
    record(f"anchors.{name}", found[number])
cut = torch.minimum(anchors.clamp(min=0), torch.tensor([112.0, 64, 112, 64]))
record("anchors.within", (cut == anchors).all(1).sum())
most = iou(thing, anchors).max()
record("anchors.most", most)
record("anchors.faster", 9 * 37 * 62)
claim(found.total() == len(anchors), "each anchor has a label")
claim(most < 0.7, "no anchor reaches 0.7")
claim(found[0] == 1, "so the object gets only the one it overlaps most")

# %% tags=["anchors-figure"] alt="A map of 4 by 7 places as dots on an image. At the place nearest to an orange object six anchors are drawn in grey: two sizes, each wide, square and tall. The one that overlaps the object most is blue, tall and small; it covers the object in large part."
_, axes = plt.subplots(figsize=(5, 3))
axes.plot(*centre(anchors[:: len(shapes)]).T, "o", color=plots.QUIET, markersize=3)
winner = int(label.argmax())
place = winner // len(shapes) * len(shapes)
for box in anchors[place : place + len(shapes)]:
    draw_box(axes, box, plots.QUIET, width=0.8)
draw_box(axes, thing[0], ORANGE, fill=0.25)
draw_box(axes, anchors[winner], BLUE)
draw_area(axes, (-2, 98), (-2, 66))
plt.show()

# %% [markdown]
# ## Regions of one size: RoI pooling and RoIAlign


# %% tags=["roi-pool"]
def bounds(i: int, side: int, first: int, length: int, limit: int) -> tuple[int, int]:
    """Where part i of the parts begins (rounded down) and ends (up), within the map."""
    begin = first + math.floor(i * length / side)
    end = first + math.ceil((i + 1) * length / side)
    return min(max(begin, 0), limit), min(max(end, 0), limit)


def roi_pool(maps: Tensor, box: Tensor, *, side: int, scale: float) -> Tensor:
    """Maxima (C, side, side) of a region of maps (C, H, W). Girshick 2015, section 2.1.

    box (4,) in pixels of the image; its corners are rounded to cells.
    """
    C, H, W = maps.shape
    x1, y1, x2, y2 = (box * scale + 0.5).floor().int().tolist()
    h = max(y2 - y1 + 1, 1)
    w = max(x2 - x1 + 1, 1)
    pooled = maps.new_zeros(C, side, side)
    for i in range(side):
        top, bottom = bounds(i, side, y1, h, H)
        for j in range(side):
            left, right = bounds(j, side, x1, w, W)
            if bottom > top and right > left:
                pooled[:, i, j] = maps[:, top:bottom, left:right].amax((1, 2))
    return pooled


# %% tags=["roi-align"]
def between_cells(places: Tensor, length: int) -> Tensor:
    """Weights (N, length) of the two cells beside each place; zero if it is outside."""
    inside = (places >= -1) & (places <= length)
    cells = torch.arange(length, device=places.device)
    distance = (places.clamp(0, length - 1)[:, None] - cells).abs()
    return (1 - distance).clamp(min=0) * inside[:, None]


def roi_align(maps: Tensor, box: Tensor, *, side: int, scale: float, points: int = 2):
    """Means (C, side, side) of points by points values in each part of a region.

    He et al. 2017, section 3. Half a cell is taken off: cell 0 has its middle at 0.5.
    """
    C, H, W = maps.shape
    x1, y1, x2, y2 = box * scale - 0.5
    steps = (torch.arange(side * points, device=box.device) + 0.5) / (side * points)
    rows = between_cells(y1 + steps * (y2 - y1), H)  # (side * points, H)
    columns = between_cells(x1 + steps * (x2 - x1), W)  # (side * points, W)
    return F.avg_pool2d(rows @ maps @ columns.T, points)


# %% tags=["roi-run"]
maps = torch.arange(8.0).expand(1, 6, 8)  # each cell holds the number of its column
box = torch.tensor([1.7, 1.4, 5.7, 4.4])
pooled = roi_pool(maps, box, side=2, scale=1.0)
aligned = roi_align(maps, box, side=2, scale=1.0)
rows = [("RoI pooling", *[f"{value:.1f}" for value in pooled[0, 0].tolist()])]
rows.append(("RoIAlign", *[f"{value:.1f}" for value in aligned[0, 0].tolist()]))
table(rows, ("the same region", "left", "right"))

# %% tags=["roi-claims"]
claim(torch.equal(pooled[0], torch.tensor([[4.0, 6.0]] * 2)), "maxima by hand")
wanted = torch.tensor([[2.7 - 0.5, 4.7 - 0.5]] * 2)
claim(torch.allclose(aligned[0], wanted), "RoIAlign: the middle of each half, by hand")

# %% tags=["roi-figure"] alt="Two maps of 6 by 8 cells with the same dashed region, whose corners lie inside cells. RoI pooling: the region becomes the whole cells from column 2 to 6 and row 1 to 4, cut in two by two parts that share a column. RoIAlign: the region stays, cut in four equal parts with four points each."
_, row = plt.subplots(1, 2, figsize=(5, 2.3))
for axes, name in zip(row, ("RoI pooling", "RoIAlign")):
    for i in range(9):
        axes.plot((i, i), (0, 6), color=plots.GRID, linewidth=1)
    for i in range(7):
        axes.plot((0, 8), (i, i), color=plots.GRID, linewidth=1)
    draw_area(axes, (-0.1, 8.1), (-0.1, 6.1), title=name)
for corner in ((2, 1, 5, 3), (4, 1, 7, 3), (2, 3, 5, 5), (4, 3, 7, 5)):
    draw_box(row[0], corner, BLUE, fill=0.12, width=1.5)
for x in (1.7, 3.7):
    for y in (1.4, 2.9):
        draw_box(row[1], (x, y, x + 2, y + 1.5), BLUE, fill=0.12, width=1.5)
x, y = torch.meshgrid(
    2.2 + torch.arange(4), 1.775 + 0.75 * torch.arange(4), indexing="ij"
)
row[1].plot(x.flatten(), y.flatten(), "o", color=BLUE, markersize=3)
for axes in row:
    draw_box(axes, box, ORANGE, line="--")
plt.show()

# %% tags=["shift-figure"] alt="The left value of both, on a map that holds the number of its column, against how far the region is moved, from 0 to 2 cells. RoIAlign is a straight line; RoI pooling a staircase of whole numbers."
shift = torch.linspace(0, 2, 81)
by_shift = {"RoI pooling": [], "RoIAlign": []}
for value in shift:
    moved = box + value * torch.tensor([1.0, 0, 1, 0])
    for name, how in (("RoI pooling", roi_pool), ("RoIAlign", roi_align)):
        by_shift[name].append(how(maps, moved, side=2, scale=1.0)[0, 0, 0].item())
_, axes = plt.subplots(figsize=(5, 2.6))
styles = ((ORANGE, "steps-post"), (BLUE, "default"))
for values, (colour, style) in zip(by_shift.values(), styles):
    axes.plot(shift, values, color=colour, drawstyle=style)
ends_at = {name: (2, values[-1]) for name, values in by_shift.items()}
axes.set(xlabel="region moved by (cells)", ylabel="left value")
plots.label_ends(axes, ends_at, colours=(ORANGE, BLUE))
plt.show()

# %% tags=["shift-claims"]
rise = torch.tensor(by_shift["RoIAlign"]).diff()
claim(
    (rise - 2 / 80).abs().max() < 1e-5, "RoIAlign follows the region in a straight line"
)
claim(set(by_shift["RoI pooling"]) == {4.0, 5.0, 6.0}, "RoI pooling has whole steps")


# %% [markdown]
# The two-stage detector in outline, with torchvision's fast versions of what is written
# out above.


# %% tags=["two-stage"]
def best_regions(boxes: Tensor, objectness: Tensor, *, H: int, W: int, n: int = 300):
    """The n best boxes after NMS, cut off at the border of the image."""
    limits = boxes.new_tensor((W, H, W, H))
    boxes = torch.minimum(boxes.clamp(min=0), limits)
    return boxes[ops.nms(boxes, objectness, 0.7)[:n]]


class TwoStage(nn.Module):
    """Faster R-CNN: trunk, regions from its map, a head on each. (1, 3, H, W)."""

    def __init__(
        self, trunk: nn.Module, channels: int, shapes: Tensor, *, d: int, K: int
    ):
        super().__init__()
        self.trunk = trunk
        self.proposal = RegionProposal(channels, len(shapes))
        self.head = RoIHead(channels, d=d, K=K)
        self.register_buffer("shapes", shapes)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.trunk(image)  # (1, C, H / 16, W / 16)
        H, W = maps.shape[2:]
        objectness, offsets = self.proposal(maps)
        anchors = anchor_grid(H, W, stride=16, shapes=self.shapes)
        t = offsets.permute(0, 2, 3, 1).reshape(-1, 4)  # (H W A, 4)
        found = objectness.permute(0, 2, 3, 1).flatten()  # (H W A)
        H, W = image.shape[2:]
        regions = best_regions(decode(t, anchors).detach(), found, H=H, W=W)
        pooled = ops.roi_align(maps, [regions], 7, 1 / 16, 2, aligned=True)
        return regions, *self.head(pooled)  # (N, 4), (N, K + 1), (N, 4 (K + 1))


# %% tags=["two-stage-shape"]
seed(0)
small = TwoStage(nn.Conv2d(3, 32, 16, 16), 32, shapes, d=64, K=10)
with torch.no_grad():
    found = small(torch.randn(1, 3, 64, 112))
[tuple(t.shape) for t in found]


# %% tags=["detections"]
def detections(regions: Tensor, classes: Tensor, offsets: Tensor, least: float = 0.05):
    """Boxes, scores and classes, best first: NMS in each class; class 0 is background.

    From what TwoStage returns; scores of at most `least` are dropped.
    """
    shares = classes.softmax(1)[:, 1:]  # (N, K)
    t = offsets.unflatten(1, (-1, 4))[:, 1:]  # (N, K, 4)
    region, kind = (shares > least).nonzero(as_tuple=True)
    boxes = decode(t[region, kind], regions[region])
    scores = shares[region, kind]
    kept = ops.batched_nms(boxes, scores, kind, 0.5)
    return boxes[kept], scores[kept], kind[kept] + 1


# %% tags=["detections-shape"]
[tuple(t.shape) for t in detections(*found)]

# %% [markdown]
# ## Average precision


# %% tags=["precision-recall"]
def precision_recall(right: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """After each detection, best first: share of right ones, share of objects found."""
    found = right.double().cumsum(0)
    seen = torch.arange(1, len(right) + 1, dtype=torch.float64)
    return found / seen, found / total


def interpolated(precision: Tensor, recall: Tensor, at: Tensor) -> Tensor:
    """The best precision at this recall or a higher one, 0 where none is so high."""
    reached = recall >= at[:, None]  # (points, D)
    best = torch.where(reached, precision, 0.0)
    return F.pad(best, (0, 1)).amax(1)


# %% tags=["three-averages"]
ELEVEN = torch.arange(11, dtype=torch.float64) / 10
HUNDRED_ONE = (
    torch.arange(101, dtype=torch.float64) * 0.01
)  # as numpy.linspace has them


def at_points(precision: Tensor, recall: Tensor, points: Tensor) -> float:
    """VOC up to 2009 with 11 points, COCO with 101."""
    return interpolated(precision, recall, points).mean().item()


def all_points(precision: Tensor, recall: Tensor) -> float:
    """VOC from 2010 on: the area under the interpolated curve."""
    steps = recall.diff(prepend=recall.new_zeros(1))
    return (steps * interpolated(precision, recall, recall)).sum().item()


# %% tags=["six"]
right = torch.tensor([True, False, True, True, False, False])
precision, recall = precision_recall(right, total=4)
names = ("VOC, 11 points", "VOC, all points", "COCO, 101 points")
values = (
    at_points(precision, recall, ELEVEN),
    all_points(precision, recall),
    at_points(precision, recall, HUNDRED_ONE),
)
table([(n, f"{v:.4f}") for n, v in zip(names, values)], ("six detections", "AP"))

# %% tags=["six-claims"]
hands = ((3 * 1 + 5 * 0.75) / 11, 0.25 * 1 + 0.5 * 0.75, (26 + 50 * 0.75) / 101)
for name, value, hand in zip(names, values, hands):
    claim(abs(value - hand) < 1e-12, f"{name}: the average by hand")
    record(f"six.{name.split()[1]}", value)
claim(precision.tolist()[:4] == [1, 0.5, 2 / 3, 0.75], "the precisions by hand")

# %% tags=["pr-figure"] alt="Precision against recall of six detections for four objects. Dots at recall 0.25 with precision 1 and 0.5, at 0.5 with 0.67, at 0.75 with 0.75, 0.6 and 0.5, joined by a thin line. A blue staircase lies over them: 1 up to recall 0.25, 0.75 up to 0.75, then 0. Eleven small marks stand on it at recall 0, 0.1 and so on."
_, axes = plt.subplots(figsize=(5, 2.8))
axes.plot(recall, precision, "o-", color=plots.QUIET, linewidth=1, markersize=5)
fine = torch.linspace(0, 1, 1001, dtype=torch.float64)
axes.plot(fine, interpolated(precision, recall, fine), color=BLUE)
marks = interpolated(precision, recall, ELEVEN)
axes.plot(ELEVEN, marks, "|", color=ORANGE, markersize=14, markeredgewidth=2)
axes.text(0.28, 0.92, "interpolated", color=BLUE)
axes.text(0.28, 0.47, "measured", color=plots.QUIET)
axes.set(xlabel="recall", ylabel="precision", ylim=(-0.1, 1.1))
plt.show()


# %% tags=["assign"]
def overlaps_of(boxes: Tensor, objects: Tensor, crowd: Tensor) -> Tensor:
    """IoU (D, G); with a crowd, the share of the box that lies inside it."""
    inside = shared(boxes[:, None], objects) / area(boxes)[:, None]
    return torch.where(crowd, inside, iou(boxes[:, None], objects))


def assign(overlaps: Tensor, crowd: Tensor, threshold: float) -> list[int]:
    """The object that each detection finds, or -1; detections come best first.

    COCO: each takes of the free objects the one it overlaps most; without any it may
    take a crowd, which is never used up.
    """
    free = {g for g in range(len(crowd)) if not crowd[g]}
    crowds = {g for g in range(len(crowd)) if crowd[g]}
    found = []
    for row in overlaps.tolist():
        near = [g for g in free if row[g] >= threshold]
        near = near or [g for g in crowds if row[g] >= threshold]
        found.append(max(near, key=lambda g: (row[g], g), default=-1))
        free.discard(found[-1])
    return found


# %% tags=["average-precision"]
class Picture(NamedTuple):
    """What was found in an image and what is there, of one class."""

    boxes: Tensor  # (D, 4)
    scores: Tensor  # (D,)
    objects: Tensor  # (G, 4)
    crowd: Tensor  # (G,) of bool


def judged(pictures: list[Picture], threshold: float) -> tuple[Tensor, int]:
    """Which detections are right, best first over all images; the number of objects."""
    scores = []
    right = []
    for boxes, score, objects, crowd in pictures:
        order = score.argsort(descending=True, stable=True)[:100]
        overlaps = overlaps_of(boxes[order], objects, crowd)
        for i, found in zip(order, assign(overlaps, crowd, threshold)):
            if found < 0 or not crowd[found]:  # what finds a crowd does not count
                scores.append(score[i])
                right.append(found >= 0)
    order = torch.tensor(scores).argsort(descending=True, stable=True)
    total = sum(int((~picture.crowd).sum()) for picture in pictures)
    return torch.tensor(right, dtype=torch.bool)[order], total


# %% tags=["coco"]
IOUS = [0.5 + 0.05 * i for i in range(10)]


def average_precision(pictures: list[Picture], threshold: float) -> float:
    """COCO's AP of one class at one IoU; NaN if there is no object to find."""
    right, total = judged(pictures, threshold)
    if total == 0:
        return math.nan
    return at_points(*precision_recall(right, total), HUNDRED_ONE)


def coco_ap(classes: list[list[Picture]]) -> float:
    """Mean over ten IoUs, 0.50 to 0.95, and over all classes that have objects."""
    values = [average_precision(c, threshold) for c in classes for threshold in IOUS]
    return torch.tensor(values, dtype=torch.float64).nanmean().item()


# %% [markdown]
# ## Equal to pycocotools
#
# Random cases with tied scores, crowds, images without objects and without detections.


# %% tags=["random-case"]
def random_boxes(n: int) -> Tensor:
    first = 80 * torch.rand(n, 2, dtype=torch.float64)
    return torch.cat((first, first + 10 + 30 * torch.rand(n, 2)), 1)


def random_picture() -> Picture:
    """Up to four objects, each found up to twice, a little aside, and other boxes."""
    objects = random_boxes(int(torch.randint(5, ())))
    aside = 4 * torch.rand(2 * len(objects), 4) - 2
    lucky = torch.rand(len(aside)) < 0.6
    boxes = (objects.repeat(2, 1) + aside)[lucky]
    boxes = torch.cat((boxes, random_boxes(int(torch.randint(4, ())))))
    scores = torch.randint(1, 10, (len(boxes),)) / 10
    return Picture(boxes, scores, objects, torch.rand(len(objects)) < 0.2)


# %% tags=["pycocotools"]
def as_coco(classes: list[list[Picture]], found: bool) -> COCO:
    """The objects or what was found, as pycocotools keeps it; numbers start with 1."""
    notes = []
    for k, pictures in enumerate(classes):
        for i, picture in enumerate(pictures):
            boxes = picture.boxes if found else picture.objects
            for j, box in enumerate(boxes):
                note = {"id": len(notes) + 1, "image_id": i + 1, "category_id": k + 1}
                note["bbox"] = torch.cat((box[:2], size(box))).tolist()
                note["area"] = area(box).item()
                note["iscrowd"] = 0 if found else int(picture.crowd[j])
                note["score"] = picture.scores[j].item() if found else 1.0
                notes.append(note)
    coco = COCO()
    coco.dataset = {"images": [{"id": i + 1} for i in range(len(classes[0]))]}
    coco.dataset["categories"] = [{"id": k + 1} for k in range(len(classes))]
    coco.dataset["annotations"] = notes
    coco.createIndex()
    return coco


def pycocotools_ap(classes: list[list[Picture]]) -> float:
    """The first number of pycocotools' summary; -1 if there is nothing to find."""
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(as_coco(classes, False), as_coco(classes, True), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats[0]


# %% tags=["equal-ap"]
CASES = 12
gaps = []
aps = []
for number in range(CASES):
    seed(number)
    classes = [[random_picture() for _ in range(6)] for _ in range(3)]
    aps.append(coco_ap(classes))
    gaps.append(abs(aps[-1] - pycocotools_ap(classes)))
record("ap.cases", CASES)
record("ap.gap", max(gaps))
record("ap.least", min(aps))
record("ap.most", max(aps))
claim(max(gaps) < 1e-6, "AP is that of pycocotools on random cases")

# %% tags=["limits"]
none = torch.zeros(0, 4, dtype=torch.float64)
empty = Picture(none, torch.zeros(0), none, torch.zeros(0, dtype=torch.bool))
seed(0)
busy = random_picture()
while len(busy.objects) == 0 or busy.crowd.any() or len(busy.boxes) == 0:
    busy = random_picture()
unfound = busy._replace(boxes=none, scores=torch.zeros(0))
mob = busy._replace(crowd=torch.ones(len(busy.objects), dtype=torch.bool))
unasked = busy._replace(objects=none, crowd=torch.zeros(0, dtype=torch.bool))
special = {
    "no detection": unfound,
    "no object": unasked,
    "a crowd only": mob,
    "nothing": empty,
}

# %% tags=["limits-result"]
rows = []
for name, picture in special.items():
    ours = coco_ap([[picture]])
    theirs = pycocotools_ap([[picture]])
    same = theirs == -1 if math.isnan(ours) else abs(ours - theirs) < 1e-6
    claim(same, f"{name}: as pycocotools has it")
    rows.append((name, "none" if math.isnan(ours) else ours, theirs))
table(rows, ("an image with", "AP here", "pycocotools"))

# %% [markdown]
# ## Equal to torchvision

# %% tags=["equal-boxes"]
seed(0)
some = random_boxes(40).float()
more = random_boxes(30).float()
LIBRARY = {
    "IoU": (ops.box_iou, None),
    "GIoU": (ops.generalized_box_iou, ops.generalized_box_iou_loss),
    "DIoU": (ops.distance_box_iou, ops.distance_box_iou_loss),
    "CIoU": (ops.complete_box_iou, ops.complete_box_iou_loss),
}
rows = []
deviations = []
for name, (each, loss) in LIBRARY.items():
    found = checks.deviation(MEASURES[name](some[:, None], more), each(some, more))
    deviations.append(found)
    if loss:
        ours = 1 - MEASURES[name](some[:30], more)
        deviations.append(checks.deviation(ours, loss(some[:30], more)))
    rows.append((name, each.__name__, f"{max(deviations[-2:]):.1e}"))

# %% tags=["equal-nms"]
same = []
for number in range(20):
    seed(number)
    crowded = random_boxes(60).float()
    sure = torch.rand(60)
    kind = torch.randint(3, (60,))
    ours = nms(crowded, sure, 0.3)
    same.append(torch.equal(ours, ops.nms(crowded, sure, 0.3)))
    both = batched_nms(crowded, sure, kind, 0.3)
    same.append(torch.equal(both, ops.batched_nms(crowded, sure, kind, 0.3)))
    hard, _ = soft_nms(crowded, sure, lambda x: (x <= 0.3).float(), least=0)
    same.append(torch.equal(hard, ours))
claim(
    all(same), "NMS and NMS in each class are torchvision's, soft-NMS has NMS as limit"
)
rows.append(("NMS", "nms, batched_nms", "0"))

# %% tags=["equal-roi"]
seed(0)
maps = torch.randn(5, 20, 25)
regions = random_boxes(12).float() * 4 - 10
for name, how, library, more in (
    ("RoI pooling", roi_pool, ops.roi_pool, ()),
    ("RoIAlign", roi_align, ops.roi_align, (2, True)),
):
    ours = torch.stack([how(maps, box, side=7, scale=1 / 16) for box in regions])
    found = checks.deviation(ours, library(maps[None], [regions], 7, 1 / 16, *more))
    deviations.append(found)
    rows.append((name, library.__name__, f"{found:.1e}"))

# %% tags=["equal-anchors"]
generator = anchor_utils.AnchorGenerator(((128, 256, 512),), ((0.5, 1.0, 2.0),))
stride = torch.tensor(16)
theirs = generator.grid_anchors([[5, 7]], [[stride, stride]])[0]
rounded = anchor_shapes((128, 256, 512), (0.5, 1, 2)).round()
ours = anchor_grid(5, 7, stride=16, shapes=rounded)
found = checks.deviation(ours, theirs)
rows.append(("anchors", "AnchorGenerator", f"{found:.1e}"))
matcher = detection_utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)
objects = 3 * random_boxes(4).float()
same = torch.equal(assign_anchors(ours, objects), matcher(ops.box_iou(objects, ours)))
claim(same, "anchors get the objects that torchvision's matcher gives them")

# %% tags=["equal-offsets"]
coder = detection_utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
theirs = coder.encode([regions], [some[:12]])[0]
deviations.append(checks.deviation(encode(regions, some[:12]), theirs))
back = coder.decode(theirs, [some[:12]])[:, 0]
deviations.append(checks.deviation(decode(theirs, some[:12]), back))
rows.append(("offsets", "BoxCoder", f"{max(deviations[-2:]):.1e}"))

# %% tags=["equal-heads"]
predictor = faster_rcnn.FastRCNNPredictor(64, 11)
head = nn.Sequential(faster_rcnn.TwoMLPHead(32 * 7 * 7, 64), predictor)
for name, ours, theirs, x in (
    ("RPN", small.proposal, rpn.RPNHead(32, 6), torch.randn(1, 32, 4, 7)),
    ("head", small.head, head, torch.randn(5, 32, 7, 7)),
):
    checks.transplant(theirs, ours)
    expected = theirs([x]) if name == "RPN" else theirs(x)
    for a, b in zip(ours(x), expected):
        b = b[0] if name == "RPN" else b
        deviations.append(checks.deviation(a.detach(), b.detach()))
    rows.append((name, type(theirs).__name__, f"{max(deviations[-2:]):.1e}"))

# %% tags=["equal"]
rows[-1] = ("head", "TwoMLPHead, FastRCNNPredictor", rows[-1][-1])
record("deviation", max(deviations))
claim(max(deviations) < 1e-5, "losses, RoI pooling, heads are torchvision's")
table(rows, ("here", "torchvision", "largest difference"))

# %% [markdown]
# ## Look inside
#
# Where the four losses push the centre of a small box, at each place around a target.

# %% tags=["field"]
places = torch.linspace(-2.5, 2.5, 13)
y, x = torch.meshgrid(places, places, indexing="ij")
spots = torch.stack((x, y), -1).view(-1, 2)
probes = torch.cat((spots, torch.full((len(spots), 2), 0.8)), 1)
aim = corners(torch.tensor([0.0, 0, 2.6, 2], device=device))
pushes = {}
for name, measure in MEASURES.items():
    p = probes.to(device, copy=True).requires_grad_()
    (1 - measure(corners(p), aim)).sum().backward()
    pushes[name] = -p.grad[:, :2].cpu()
aim = aim.cpu()

# %% tags=["field-figure"] alt="Four panels with an orange target in the middle and arrows on a grid, the push on the centre of a small box at each place. IoU: arrows only in a ring where the box lies across the border of the target, dots elsewhere. GIoU: arrows everywhere but at five by three places in the middle, where the box lies inside the target; there are dots. DIoU and CIoU: arrows everywhere but at the centre of the target, and nearly towards it. In the first panel the box is drawn once, dashed."
_, grid = plt.subplots(2, 2, figsize=(5, 5))
for axes, (name, push) in zip(grid.flat, pushes.items()):
    draw_box(axes, aim, ORANGE, fill=0.2, width=1.5)
    strength = push.norm(dim=1, keepdim=True)
    moved = strength[:, 0] > 1e-6
    arrows = 0.32 * F.normalize(push[moved])
    arrow = {"angles": "xy", "scale_units": "xy", "scale": 1, "color": BLUE}
    axes.quiver(*spots[moved].T, *arrows.T, width=0.008, **arrow)
    axes.plot(*spots[~moved].T, "o", color=plots.QUIET, markersize=2)
    draw_area(axes, (-2.9, 2.9), (-2.9, 2.9), title=name)
draw_box(grid[0, 0], (-0.4, -0.4, 0.4, 0.4), BLUE, line="--", width=1.2)
plt.show()

# %% tags=["field-claims"]
overlap = iou(corners(probes), aim)
within = shared(corners(probes), aim) > 0.6399  # all of 0.8 by 0.8
outside = overlap == 0
idle = {name: push.norm(dim=1) < 1e-6 for name, push in pushes.items()}
claim(idle["IoU"][outside | within].all(), "IoU: no push outside and inside")
claim(not idle["IoU"][~(outside | within)].any(), "IoU: a push across the border")
claim(not idle["GIoU"][outside].any(), "GIoU: a push everywhere outside")
claim(torch.equal(idle["GIoU"], within), "GIoU: none inside, and only there")
claim(int(within.sum()) == 5 * 3, "the box lies inside at five by three places")
away = spots.norm(dim=1) > 0.01
for name in ("DIoU", "CIoU"):
    claim(not idle[name][away].any(), f"{name}: a push everywhere but in the middle")
    cosine = F.cosine_similarity(pushes[name][away], -spots[away])
    claim(cosine.min() > math.cos(math.radians(20)), f"{name}: nearly to the middle")

# %% [markdown]
# ## What we saw
#
# - IoU says nothing about a box that does not touch its target; each of the three others
#   sees one thing more in our three cases. GIoU is first to touch the target; which of
#   them is first to fit it depends on the rate.
# - NMS, anchors, RoI pooling and average precision are a few lines each, and equal to the
#   libraries.
# - From R-CNN to Faster R-CNN the work done for each region moves into the map that all
#   regions share.

# %% [markdown]
# ## Solutions to the exercises

# %% tags=["solution-1"]
a = torch.tensor([0.0, 0, 2, 2])
b = torch.tensor([3.0, 0, 5, 2])
whole = 5 * 2
empty_part = whole - (4 + 4)
distance = 3**2
diagonal = 5**2 + 2**2
by_hand = (0, 0 - empty_part / whole, 0 - distance / diagonal, 0 - distance / diagonal)

# %% tags=["solution-1-result"]
rows = []
for (name, measure), value in zip(MEASURES.items(), by_hand):
    found = measure(a, b).item()
    claim(abs(found - value) < 1e-6, f"{name} of two boxes apart, by hand")
    rows.append((name, f"{value:.3f}", f"{found:.3f}"))
table(rows, ("measure", "by hand", "computed"))


# %% tags=["solution-2"]
def assign_voc(overlaps: Tensor, threshold: float) -> list[int]:
    """VOC: each detection asks for the object it overlaps most, taken or not."""
    taken = set()
    found = []
    for row in overlaps.tolist():
        best = max(range(len(row)), key=lambda g: row[g])
        fits = row[best] >= threshold and best not in taken
        found.append(best if fits else -1)
        taken.add(best)
    return found


# %% tags=["solution-2-result"]
overlaps_of_two = torch.tensor([[0.8, 0.5], [0.7, 0.6]])
ours = assign(overlaps_of_two, torch.zeros(2, dtype=torch.bool), 0.5)
theirs = assign_voc(overlaps_of_two, 0.5)
claim(ours == [0, 1], "COCO: the second detection gets the second object")
claim(theirs == [0, -1], "VOC: the second detection counts as wrong")
table([("COCO", *ours), ("VOC", *theirs)], ("rule", "first finds", "second finds"))

# %% tags=["solution-3"]
pair = four[:2].double()
sure = torch.tensor([0.9, 0.8])
no_crowd = torch.zeros(2, dtype=torch.bool)
kept = nms(pair, sure, 0.5)
order, faded = soft_nms(pair, sure, gaussian)
hard = Picture(pair[kept], sure[kept], pair, no_crowd)
soft = Picture(pair[order], faded, pair, no_crowd)
right = Picture(pair[:1], torch.tensor([0.6]), pair[:1], no_crowd[:1])
single = {
    "no suppression": Picture(pair, sure, pair[:1], no_crowd[:1]),
    "NMS": hard._replace(objects=pair[:1], crowd=no_crowd[:1]),
    "soft-NMS": soft._replace(objects=pair[:1], crowd=no_crowd[:1]),
}

# %% tags=["solution-3-result"]
rows = []
for name, picture in (("NMS", hard), ("soft-NMS", soft)):
    value = average_precision([picture], 0.5)
    record(f"pair.{name}", value)
    rows.append((f"both are objects, {name}", f"{value:.3f}"))
alone = {}
for name, picture in single.items():
    alone[name] = average_precision([picture, right], 0.5)
    record(f"single.{name}", alone[name])
    rows.append((f"A alone and a second image, {name}", f"{alone[name]:.3f}"))
claim(average_precision([hard], 0.5) < 0.6, "NMS loses the second object")
claim(average_precision([soft], 0.5) > 0.999, "soft-NMS keeps it")
claim(alone["no suppression"] < 0.9, "a duplicate before a right detection costs")
claim(min(alone["NMS"], alone["soft-NMS"]) > 0.999, "deleted or faded it does not")
table(rows, ("two boxes that overlap", "AP at 0.5"))


# %% tags=["solution-4"]
def from_logs(p: Tensor) -> Tensor:
    """Boxes given as centre and the logarithms of width and height."""
    return corners(torch.cat((p[:, :2], p[:, 2:].exp()), 1))


start = torch.cat((boxes[:, :2], boxes[:, 2:].log()), 1)
for name in ("GIoU", "DIoU"):
    for rate in (0.1, 0.4):
        path = pull(MEASURES[name], start, goal, rate=rate, box_of=from_logs)
        overlaps[f"{name}, logs", rate] = iou(path, goal)

# %% tags=["solution-4-result"]
rows = []
logs = {}
for name in ("GIoU, logs", "DIoU, logs"):
    logs[name] = [medians(overlaps[name, rate], 0.9) for rate in (0.1, 0.4)]
    rows.append((name, *[spread(values, ".0f") for values in logs[name]]))
(slow, fast), (others_slow, others_fast) = logs.values()
touch = min(others_slow) <= max(slow) and min(slow) <= max(others_slow)
claim(touch, "logarithms, rate 0.1: GIoU and DIoU are not told apart")
claim(min(fast) > max(others_fast), "logarithms, rate 0.4: GIoU needs more steps")
table(rows, ("loss", "0.9, rate 0.1", "0.9, rate 0.4"))
