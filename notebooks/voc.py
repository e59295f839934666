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
# # Pascal VOC
#
# The files of Pascal VOC, read by hand: annotations in XML, lists, masks with a palette; and
# what the flags "truncated" and "difficult" do to average precision.
# The text to it is the [chapter](../chapters/voc.rst).

# %%
import contextlib
import csv
import io
import math
import random
import struct
import tempfile
import zlib
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision import datasets, ops

import workbench
from workbench import claim, record, record_spread, seed, spread, table
from workbench import annotated, archives, plots

seed(0)

# %% [markdown]
# ## An annotation
#
# A photograph has one XML file. A box is its first and last column and row, counted from 1,
# both inclusive.

# %% tags=["by-hand"]
WRITTEN = """
<annotation>
  <folder>VOC2007</folder>
  <filename>000001.jpg</filename>
  <size><width>12</width><height>8</height><depth>3</depth></size>
  <segmented>0</segmented>
  <object>
    <name>person</name>
    <pose>Left</pose>
    <truncated>1</truncated>
    <difficult>0</difficult>
    <part>
      <name>head</name>
      <bndbox><xmin>2</xmin><ymin>1</ymin><xmax>3</xmax><ymax>2</ymax></bndbox>
    </part>
    <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>8</ymax></bndbox>
  </object>
</annotation>
"""


# %% tags=["thing"]
class Thing(NamedTuple):
    """One object: its class, first and last pixel as the file has them, and flags."""

    name: str
    box: tuple[float, ...]  # xmin, ymin, xmax, ymax, from 1, inclusive
    truncated: bool = False
    difficult: bool = False
    pose: str = "Unspecified"


# %% tags=["reader"]
SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_annotation(file) -> list[Thing]:
    """The objects of an annotation, given by path or open."""
    try:
        root = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{file} is no whole XML, fetch it again: {error}") from error
    return [thing_of(one) for one in root.findall("object")]


def thing_of(one: ElementTree.Element) -> Thing:
    texts = [one.findtext(path) for path in ("name", *(f"bndbox/{s}" for s in SIDES))]
    if None in texts:
        raise ValueError(
            "an <object> needs <name> and <bndbox> with " + ", ".join(SIDES)
        )
    box = tuple(float(text) for text in texts[1:])
    if box[0] > box[2] or box[1] > box[3]:
        raise ValueError(f"a box ends before it begins, put its sides in order: {box}")
    flags = [one.findtext(flag, "0") == "1" for flag in ("truncated", "difficult")]
    return Thing(texts[0].strip(), box, *flags, one.findtext("pose", "Unspecified"))


# %% tags=["edges"]
def edges(box) -> Tensor:
    """Boxes (..., 4) of VOC as left, top, right and bottom edge, counted from 0."""
    return torch.as_tensor(box, dtype=torch.float32) - torch.tensor([1.0, 1, 0, 0])


def area(box: Tensor) -> Tensor:
    """Areas (...,) of boxes (..., 4) given by their edges."""
    return (box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1)


# %% tags=["by-hand-result"]
(person,) = read_annotation(io.StringIO(WRITTEN))
person, edges(person.box).tolist()

# %% tags=["by-hand-claims"]
claim(edges(person.box).tolist() == [0, 0, 4, 8], "the worked case: 4 columns, 8 rows")
first = next(ElementTree.fromstring(WRITTEN).iter("bndbox"))
wrong = [first.findtext(side) for side in SIDES]
claim(wrong == ["2", "1", "3", "2"], "the first bndbox of the object is the head's")
claim(person.truncated and not person.difficult, "the worked case: its flags")

# %% [markdown]
# ## What a pixel costs
#
# The same box, read as if its numbers were edges, or moved by one pixel.

# %% tags=["shift"]
sides = torch.arange(2, 65)
squares = torch.stack([torch.ones_like(sides)] * 2 + [sides] * 2, 1)
right = edges(squares)
kept = {
    "narrower": squares.float(),
    "moved": right + 1,
}
costs = {
    name: ops.box_iou(right, boxes).diagonal().double() for name, boxes in kept.items()
}

# %% tags=["shift-figure"] alt="IoU with the right box against the side of a square box, from 2 to 64 pixels. Both curves rise steeply and flatten towards 1; the box that is one pixel narrower lies above the one that is moved by a pixel. Dashed lines mark 0.5 and 0.75."
_, axes = plt.subplots()
ends = {}
for (name, values), colour in zip(costs.items(), plots.COLOURS):
    axes.plot(sides, values, color=colour)
    ends[name] = (64, values[-1].item())
for least in (0.5, 0.75):
    axes.axhline(least, color=plots.QUIET, linestyle="--", linewidth=1)
axes.set(xlabel="side of the box in pixels", ylabel="IoU", xlim=(0, 84), ylim=(0, 1))
axes.set_xticks(range(0, 65, 16))
plots.label_ends(axes, ends)
axes.set_axisbelow(True)

# %% tags=["shift-claims"]
s = sides.double()
claim(
    torch.allclose(costs["narrower"], ((s - 1) / s) ** 2), "a column and a row are lost"
)
both = (s - 1) ** 2
claim(torch.allclose(costs["moved"], both / (2 * s**2 - both)), "a move of one pixel")
claim(bool((costs["narrower"] > costs["moved"]).all()), "a move costs more")
for name, values in costs.items():
    record(f"shift.{name}.8", values[sides == 8])
    record(f"shift.{name}.40", values[sides == 40])
    record(f"shift.{name}.half", sides[values >= 0.5][0])
    record(f"shift.{name}.three", sides[values >= 0.75][0])
    rises = values.diff() > 0
    claim(bool(rises.all()), f"{name}: the IoU rises with the side")

# %% [markdown]
# ## A tiny set in the true layout
#
# Aerial photographs with boxes around the crowns of trees ship inside a package. We cut them
# into tiles and write these as VOC does. Cutting makes truncated trees.

# %% tags=["crop"]
UNSEEN = 0.1  # share of an object inside, below which it has no box
CUT = 0.85  # below which it is truncated
HARD = 0.5  # below which it is difficult


def cropped(things: list[Thing], left: int, top: int, side: int) -> list[Thing]:
    """What a square of a photograph shows of its objects, with their flags.

    By VOC's guidelines an object has no box if less than 10 to 20 % of it are
    visible, and is truncated if more than 15 to 20 % lie outside its box. "Difficult"
    is a rule of ours.
    """
    boxes = edges(torch.tensor([thing.box for thing in things]).reshape(-1, 4))
    whole = boxes - torch.tensor([left, top, left, top])
    inside = whole.clamp(0, side)
    shares = (area(inside) / area(whole)).tolist()
    pixels = (inside + torch.tensor([1, 1, 0, 0])).tolist()  # as the file has them
    found = []
    for thing, box, share in zip(things, pixels, shares):
        if share >= UNSEEN:
            truncated = thing.truncated or share < CUT
            difficult = thing.difficult or share < HARD
            flags = {"truncated": truncated, "difficult": difficult}
            found.append(thing._replace(box=tuple(box), **flags))
    return found


# %% tags=["writer"]
SIDE = 200  # of a tile, in pixels


def annotation(name: str, things: list[Thing], segmented: bool) -> str:
    """The XML of a tile."""
    root = ElementTree.Element("annotation")
    add(root, {"folder": "VOC2007", "filename": f"{name}.jpg"})
    size = ElementTree.SubElement(root, "size")
    add(size, {"width": SIDE, "height": SIDE, "depth": 3})
    add(root, {"segmented": int(segmented)})
    for thing in things:
        one = ElementTree.SubElement(root, "object")
        add(one, {"name": thing.name, "pose": thing.pose})
        flags = {"truncated": thing.truncated, "difficult": thing.difficult}
        add(one, {flag: int(value) for flag, value in flags.items()})
        box = ElementTree.SubElement(one, "bndbox")
        add(box, {side: round(value) for side, value in zip(SIDES, thing.box)})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode")


def add(node: ElementTree.Element, values: dict) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(node, tag).text = str(value)


# %% tags=["lists"]
def list_value(things: list[Thing], name: str) -> int:
    """1: such an object is there; 0: only difficult ones; -1: none."""
    difficult = [thing.difficult for thing in things if thing.name == name]
    return -1 if not difficult else int(not all(difficult))


def read_list(file) -> dict[str, int]:
    """Photographs of a list; its second column, or 1 where it has none."""
    found = {}
    for line in Path(file).read_text().splitlines():
        name, *value = line.split()
        found[name] = int(value[0]) if value else 1
    return found


# %% tags=["photographs"]
NEAR = "2019_YELL_2_528000_4978000_image_crop2"
FAR = "2019_YELL_2_541000_4977000_image_crop"
FILES = {
    f"{NEAR}.png": "a9bdb0f4447fdd899d22f567e0e20ba8320c5413b2ad0cd0ac8d9f3b6e0f9767",
    f"{NEAR}.xml": "bd431af6a5086d721eb731b22f5ea28cd8a8eab06883efc1c665391acbc68e11",
    f"{FAR}.png": "178e58a23cc2642226a364a30f71bd9258ddc1b012c826f12250914a90c7a131",
    f"{FAR}.xml": "cefe4b96888bacbf8af1674f000082e549aa707aa6590d545effb23e43f26631",
    "OSBS_029.png": "d9477c6a00e4902c7bee487d4c5582c3b8b9a2f77f3908a29628b816b291e6ee",
    "OSBS_029.xml": "1f68c4011d7b351c29ca755072e77f3d16e6fd1f995bd05a9dd4eb952b55373c",
    "OSBS_029.csv": "83ecd1fb6339eb0997c5a543300295fdd6e0d23c943f50429eb82d149905adba",
    "SOAP_061.png": "256508f1a62149bec4a80879077a865caf50e8cace095e6564c76befa480d424",
    "SOAP_061.xml": "4833280af75fd9c47965a93e38945282835e9e725cac412bdb9469d63480947c",
}


def shipped(name: str) -> Path:
    return archives.package_file("deepforest", f"data/{name}", FILES[name])


# %% tags=["palette"]
VOID = 255


def palette() -> list[tuple[int, ...]]:
    """VOC's 256 colours: the bits of a class go to red, green and blue in turn.

    The lowest three become the highest bits of the three colours, and so on.
    """
    colours = []
    for k in range(256):
        colour = [0, 0, 0]
        for bit in range(8):
            colour[bit % 3] |= (k >> bit & 1) << (7 - bit // 3)
        colours.append(tuple(colour))
    return colours


# %% tags=["masks"]
BORDER = 2.5  # pixels to both sides of an outline that are VOID


def drawn_mask(things: list[Thing], layers=((BORDER, VOID), (-BORDER, None))):
    """An ellipse in each box, smaller ones in front: classes from 1 (SIDE, SIDE).

    layers: by how many pixels its half axes grow, and the value, None for the class.
    """
    mask = np.zeros((SIDE, SIDE), np.uint8)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    for thing in sorted(things, key=lambda one: -area(edges(one.box))):
        left, top, right, bottom = edges(thing.box).tolist()
        for grow, value in layers:
            across = (x - (left + right) / 2) / max((right - left) / 2 + grow, 0.5)
            down = (y - (top + bottom) / 2) / max((bottom - top) / 2 + grow, 0.5)
            inside = across**2 + down**2 <= 1
            mask[inside] = CLASSES.index(thing.name) + 1 if value is None else value
    return mask


def write_mask(file: Path, mask: np.ndarray) -> None:
    picture = Image.fromarray(mask).convert("P")
    picture.putpalette([value for colour in palette() for value in colour])
    picture.save(file)


# %% tags=["png"]
def chunks(data: bytes) -> dict[str, bytes]:
    """The chunks of a PNG: length, kind, content, checksum of kind and content."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError("this is no PNG: VOC's masks are PNG, its photographs JPEG")
    found = {}
    place = 8
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + length]
        checksum = int.from_bytes(data[place + 8 + length : place + 12 + length], "big")
        if zlib.crc32(kind + body) != checksum:
            raise ValueError(
                f"the chunk {kind.decode()} is damaged, fetch the file again"
            )
        found[kind.decode()] = found.get(kind.decode(), b"") + body
        place += 12 + length
    return found


# %% tags=["mean-iou"]
def mean_iou(found: np.ndarray, truth: np.ndarray, n: int) -> float:
    """Mean over classes of IoU in pixels, those left out whose truth is VOID."""
    counted = truth != VOID
    pairs = n * truth[counted].astype(int) + found[counted]
    counts = np.bincount(pairs, minlength=n * n).reshape(n, n)
    hits = counts.diagonal()
    either = counts.sum(0) + counts.sum(1) - hits
    there = either > 0
    return (hits[there] / either[there]).mean().item()


# %% tags=["tiny-set"]
FULL = workbench.PROFILE == "full"
CLASSES = annotated.VOC if FULL else ["Tree", "Dead", "Alive"]


def tiles_of(name: str) -> list[tuple[Image.Image, list[Thing]]]:
    """Square tiles of a photograph with their objects, row by row."""
    picture = Image.open(shipped(f"{name}.png")).convert("RGB")
    things = read_annotation(shipped(f"{name}.xml"))
    found = []
    for top in range(0, picture.height - SIDE + 1, SIDE):
        for left in range(0, picture.width - SIDE + 1, SIDE):
            tile = picture.crop((left, top, left + SIDE, top + SIDE))
            found.append((tile, cropped(things, left, top, SIDE)))
    return found


def tiny_set(folder: Path, segmented: int = 4) -> None:
    """Write the tiles as VOC2007: half of one photograph to train, half to validate."""
    near = tiles_of(NEAR)
    half = len(near) // 2
    parts = {
        "train": near[half:] + tiles_of("SOAP_061"),
        "val": near[:half],
        "test": tiles_of(FAR) + tiles_of("OSBS_029"),
    }
    place = folder / "VOCdevkit" / "VOC2007"
    for part in ("Annotations", "JPEGImages", "SegmentationClass"):
        (place / part).mkdir(parents=True)
    number = 0
    for part, tiles in parts.items():
        members = {}
        masked = []
        for tile, things in tiles:
            number += 1
            name = f"{number:06d}"
            members[name] = things
            if things and len(masked) < segmented:
                masked.append(name)
                mask = place / "SegmentationClass" / f"{name}.png"
                write_mask(mask, drawn_mask(things))
            text = annotation(name, things, name in masked)
            (place / "Annotations" / f"{name}.xml").write_text(text)
            tile.save(place / "JPEGImages" / f"{name}.jpg")
        write_lists(place / "ImageSets", part, members, masked)


def write_lists(folder: Path, part: str, members: dict, masked: list[str]) -> None:
    """The photographs of a part, those with masks, and the list of each class."""
    lists = {f"Main/{part}": [*members], f"Segmentation/{part}": masked}
    for name in CLASSES:
        values = [f"{m} {list_value(members[m], name):2d}" for m in members]
        lists[f"Main/{name}_{part}"] = values
    for path, lines in lists.items():
        file = folder / f"{path}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{line}\n" for line in lines))


# %% tags=["set-run"]
if FULL:
    base = annotated.voc_folder()
    workbench.sources.append("VOC 2007, the complete data set")
else:
    holder = tempfile.TemporaryDirectory()
    base = Path(holder.name)
    tiny_set(base)
    workbench.sources.append("aerial photographs and boxes from the package deepforest")
devkit = base / "VOCdevkit" / "VOC2007"

# %% tags=["read-set"]
PARTS = ("train", "val", "test")
parts = {}
for part in PARTS:
    names = read_list(devkit / "ImageSets" / "Main" / f"{part}.txt")
    files = {name: devkit / "Annotations" / f"{name}.xml" for name in names}
    parts[part] = {name: read_annotation(file) for name, file in files.items()}

# %% tags=["parts-table"]
rows = []
for part, members in parts.items():
    things = [thing for one in members.values() for thing in one]
    flags = [
        sum(getattr(t, flag) for t in things) for flag in ("truncated", "difficult")
    ]
    rows.append((part, len(members), len(things), *flags))
table(rows, ("part", "photographs", "objects", "truncated", "difficult"))


# %% [markdown]
# ## Average precision


# %% tags=["detection"]
class Truth(NamedTuple):
    """The objects of one class on one photograph: edges (N, 4) and flags (N,)."""

    boxes: Tensor
    truncated: Tensor
    difficult: Tensor


class Detection(NamedTuple):
    image: str
    score: float
    box: Tensor  # its edges (4,)


def truth_of(things: list[Thing], name: str) -> Truth:
    chosen = [thing for thing in things if thing.name == name]
    boxes = torch.tensor([thing.box for thing in chosen]).reshape(-1, 4)
    flags = [[t.truncated for t in chosen], [t.difficult for t in chosen]]
    return Truth(
        edges(boxes), *(torch.tensor(flag, dtype=torch.bool) for flag in flags)
    )


# %% tags=["verdicts"]
def verdicts(found: list[Detection], truths: dict[str, Truth]) -> list[bool]:
    """Right or wrong, the best score first, without detections of difficult objects."""
    taken = set()
    right = []
    for one in sorted(found, key=lambda detection: -detection.score):
        boxes, _, difficult = truths[one.image]
        overlaps = ops.box_iou(one.box[None], boxes)[0].tolist()
        best = max(range(len(overlaps)), key=overlaps.__getitem__, default=None)
        if best is None or overlaps[best] < 0.5:
            right.append(False)
        elif not difficult[best]:
            right.append((one.image, best) not in taken)
            taken.add((one.image, best))
    return right


# %% tags=["average-precision"]
def average_precision(right: list[bool], n: int, recalls: list[Fraction]) -> float:
    """Mean over recalls of the best precision at that or a higher one; n objects."""
    hits = torch.tensor(right, dtype=torch.long).cumsum(0)
    precision = hits / torch.arange(1, len(right) + 1, dtype=torch.float64)
    best = precision.flip(0).cummax(0).values.flip(0)  # here or at any later detection
    needed = torch.tensor([math.ceil(recall * n) for recall in recalls])
    first = torch.searchsorted(hits, needed)  # len(right): never reached
    return torch.cat([best, torch.zeros(1)])[first].mean().item()


def eleven() -> list[Fraction]:
    """The recalls of VOC 2007."""
    return [Fraction(k, 10) for k in range(11)]


def every(n: int) -> list[Fraction]:
    """The recalls from VOC 2010 on: one step for each object."""
    return [Fraction(k, n) for k in range(1, n + 1)]


# %% tags=["six"]
six = [True, False, True, True, False, False]
[average_precision(six, 4, eleven()), average_precision(six, 4, every(4))]


# %% tags=["ways"]
def as_flagged(truth: Truth) -> Truth:
    return truth


def counted(truth: Truth) -> Truth:
    """Difficult objects as all others."""
    return truth._replace(difficult=torch.zeros_like(truth.difficult))


def dropped(truth: Truth) -> Truth:
    """Difficult objects taken off the list."""
    return Truth(*(part[~truth.difficult] for part in truth))


def whole(truth: Truth) -> Truth:
    """Truncated objects ignored, too."""
    return truth._replace(difficult=truth.difficult | truth.truncated)


def number_of(truths: dict[str, Truth]) -> int:
    """How many objects there are to find."""
    return int(sum((~truth.difficult).sum() for truth in truths.values()))


# %% tags=["rule"]
NAMES = ("keen", "timid")


def by_rule(truths: dict[str, Truth], number: int) -> dict[str, list[Detection]]:
    """Detections of two detectors that differ on difficult objects only.

    A whole object is found with chance 0.9, a truncated one with 0.6; each edge is off
    by 8 % of the side; small objects score lower. Ten objects have five false alarms.
    The timid detector never finds a difficult object.
    """
    draw = random.Random(number)
    keen = []
    timid = []
    middle = torch.cat([area(truth.boxes) for truth in truths.values()]).median().item()
    for image, truth in truths.items():
        room = truth.boxes.amax() if len(truth.boxes) else 0
        for box, truncated, difficult in zip(*truth):
            side = (box[2:] - box[:2]).repeat(2)
            noise = torch.tensor([draw.gauss(0, 0.08) for _ in range(4)])
            score = draw.gauss(1, 0.7) + 0.3 * math.log2(area(box).item() / middle)
            one = Detection(image, score, box + noise * side)
            if draw.random() < (0.6 if truncated else 0.9):
                keen.append(one)
                timid += [] if difficult else [one]
            corner = torch.tensor([draw.random(), draw.random()]) * room
            alarm = torch.cat([corner, corner + side[:2]])
            if draw.random() < 0.5:
                one = Detection(image, draw.gauss(0, 0.7), alarm)
                keen.append(one)
                timid.append(one)
    return {"keen": keen, "timid": timid}


# %% [markdown]
# ## What the flags do

# %% tags=["headline"]
COUNTED = "person" if FULL else "Tree"
SEEDS = (0, 1, 2)
WAYS = {"dropped": dropped, "ignored": as_flagged, "counted": counted}
scored = {}
for members in parts.values():
    scored |= {name: truth_of(things, COUNTED) for name, things in members.items()}
judged = {}
for number in SEEDS:
    for name, found in by_rule(scored, number).items():
        for way, change in (WAYS | {"whole": whole}).items():
            truths = {image: change(truth) for image, truth in scored.items()}
            judged[name, way, number] = verdicts(found, truths), number_of(truths)

# %% tags=["precision"]
results = {}
for (name, way, _), (right, n) in judged.items():
    results.setdefault((name, way), []).append(average_precision(right, n, every(n)))

# %% tags=["result"]
WORDS = {"dropped": "taken off the list", "ignored": "ignored, as VOC does"}
WORDS |= {"counted": "counted as all others", "whole": "ignored, truncated ones too"}
rows = []
for way, words in WORDS.items():
    rows.append((words, *(spread(results[name, way], ".3f") for name in NAMES)))
table(rows, ("difficult objects", *(f"AP, {name} detector" for name in NAMES)))

# %% tags=["result-claims"]
for key, values in results.items():
    record_spread(".".join(key), values)
keen = {way: results["keen", way] for way in WORDS}
timid = {way: results["timid", way] for way in WORDS}
claim(max(keen["dropped"]) < min(timid["dropped"]), "dropped: the timid one is ahead")
claim(min(keen["counted"]) > max(timid["counted"]), "counted: the keen one is ahead")
touch = min(keen["ignored"]) < max(timid["ignored"])
touch &= min(timid["ignored"]) < max(keen["ignored"])
claim(touch, "ignored: the two are not told apart")
for name in NAMES:
    gains = [b - a for a, b in zip(results[name, "ignored"], results[name, "whole"])]
    record_spread(f"{name}.gain", [100 * gain for gain in gains])
    claim(
        min(gains) > 0.02, f"{name}: without truncated ones AP is higher on each seed"
    )
gaps = [abs(k - t) for k, t in zip(keen["whole"], timid["whole"])]
claim(max(gaps) < 0.001, "without truncated ones: on each seed within a thousandth")
gaps = [abs(k - t) for k, t in zip(keen["ignored"], timid["ignored"])]
claim(max(gaps) < 0.001, "ignored: on each seed within a thousandth")
record("scored", sum(len(truth.boxes) for truth in scored.values()))
record("scored.difficult", int(sum(truth.difficult.sum() for truth in scored.values())))

# %% tags=["ways-figure"] alt="Average precision of two detectors for three ways to treat difficult objects, three seeds each as dots, their range as a band and their mean as a line. Taken off the list: the timid detector lies above. Ignored: both lie at the same height. Counted: the keen detector lies far above the timid one."
_, axes = plt.subplots()
ends = {}
for name, colour in zip(NAMES, plots.COLOURS):
    runs = torch.tensor([results[name, way] for way in WAYS]).T
    ends[name] = plots.seed_band(axes, range(3), runs, colour)
    for run in runs:
        axes.plot(range(3), run, "o", color=colour, markersize=4)
axes.set(ylabel="average precision", xlim=(-0.2, 2.5), xticks=range(3))
axes.set_xticklabels(["dropped", "ignored", "counted"])
plots.label_ends(axes, ends)
axes.set_axisbelow(True)

# %% [markdown]
# ## Against independent readers


# %% tags=["of-torchvision"]
def of_torchvision(one: dict) -> Thing:
    """An object of the dictionary that torchvision makes of an annotation."""
    box = tuple(float(one["bndbox"][side]) for side in SIDES)
    flags = [one[flag] == "1" for flag in ("truncated", "difficult")]
    return Thing(one["name"], box, *flags, one["pose"])


# %% tags=["readers"]
MOST = 200  # photographs of a part that torchvision reads, too
same = Counter()
for part in PARTS:
    theirs = datasets.VOCDetection(str(base), "2007", part)
    for i, name in list(enumerate(parts[part]))[:MOST]:
        target = theirs[i][1]["annotation"]
        same["photographs"] += 1
        same["names"] += target["filename"] == f"{name}.jpg"
        objects = [of_torchvision(one) for one in target.get("object", [])]
        same["objects"] += len(objects)
        same["equal"] += sum(map(Thing.__eq__, parts[part][name], objects))

# %% tags=["csv"]
with open(shipped("OSBS_029.csv"), newline="") as opened:
    rows = list(csv.DictReader(opened))
from_csv = [(row["label"], tuple(float(row[side]) for side in SIDES)) for row in rows]
from_xml = [(t.name, t.box) for t in read_annotation(shipped("OSBS_029.xml"))]

# %% tags=["mask-read"]
masked = read_list(devkit / "ImageSets" / "Segmentation" / "test.txt")
first = devkit / "SegmentationClass" / f"{next(iter(masked))}.png"
png = chunks(first.read_bytes())
width, height, depth, kind = struct.unpack_from(">IIBB", png["IHDR"])
_, theirs = datasets.VOCSegmentation(str(base), "2007", "test")[0]
mask = np.array(theirs)


# %% tags=["coco"]
def indexed(annotations: list[dict], images: list[str]) -> COCO:
    coco = COCO()
    listed = [one | {"id": i} for i, one in enumerate(annotations, start=1)]
    coco.dataset = {
        "images": [{"id": image} for image in images],
        "annotations": listed,
    }
    coco.dataset["categories"] = [{"id": 1}]
    coco.createIndex()
    return coco


def entry(image: str, box: Tensor, **more) -> dict:
    left, top, right, bottom = box.tolist()
    place = {"bbox": [left, top, right - left, bottom - top], "area": 1, "iscrowd": 0}
    return {"image_id": image, "category_id": 1} | place | more


def by_coco(found: list[Detection], truths: dict[str, Truth], recalls) -> float:
    """The same AP by pycocotools: difficult ones have an "area" that does not count."""
    objects = []
    for image, truth in truths.items():
        for box, difficult in zip(truth.boxes, truth.difficult):
            objects.append(entry(image, box, area=9 if difficult else 1))
    detections = [entry(one.image, one.box, score=one.score) for one in found]
    with contextlib.redirect_stdout(io.StringIO()):
        made = (indexed(objects, [*truths]), indexed(detections, [*truths]))
        evaluation = COCOeval(*made, "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.recThrs = np.array([float(recall) for recall in recalls])
        evaluation.params.areaRng = [[0, 2]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][0, :, 0, 0, -1].mean().item()


# %% tags=["random-case"]
def random_case(number: int) -> tuple[list[Detection], dict[str, Truth]]:
    """Objects that do not overlap, at most one detection of each, and strays."""
    draw = random.Random(number)
    found = []
    truths = {}
    for image in ("a", "b", "c"):
        corners = [
            (50.0 * column, 50.0 * row) for column in range(4) for row in range(3)
        ]
        boxes = torch.tensor([(x, y, x + 40, y + 40) for x, y in corners])
        difficult = torch.tensor([draw.random() < 0.3 for _ in corners])
        truths[image] = Truth(boxes, torch.zeros_like(difficult), difficult)
        for box in boxes:
            if draw.random() < 0.7:
                moved = box + torch.tensor([draw.gauss(0, 6) for _ in range(4)])
                found.append(Detection(image, draw.random(), moved))
            if draw.random() < 0.3:
                found.append(Detection(image, draw.random(), box + 1000))
    return found, truths


# %% tags=["coco-run"]
gaps = {"eleven": [], "every": []}
for number in range(50):
    found, truths = random_case(number)
    right = verdicts(found, truths)
    n = number_of(truths)
    for name, recalls in (("eleven", eleven()), ("every", every(n))):
        ours = average_precision(right, n, recalls)
        gaps[name].append(abs(ours - by_coco(found, truths, recalls)))

# %% tags=["equalities"]
counts = f"{same['equal']:,} of {same['objects']:,} objects equal"
theirs = "torchvision's VOCDetection"
of_csv = sum(map(tuple.__eq__, from_csv, from_xml))
ours = bytes(value for colour in palette() for value in colour)
rows = [("annotations", theirs, f"{counts}, {same['photographs']} photographs")]
rows += [("boxes", "deepforest's CSV", f"{of_csv} of {len(from_csv)} objects equal")]
rows += [("palette", "PLTE chunk of a mask", "equal" if png["PLTE"] == ours else "no")]
for name, words in (("eleven", "AP, 11 recalls"), ("every", "AP, every recall")):
    rows.append(
        (words, "pycocotools", f"{len(gaps[name])} cases, {max(gaps[name]):.0e} apart")
    )
table(rows, ("what", "against", "result"))

# %% tags=["equalities-claims"]
claim(same["equal"] == same["objects"], "all objects are those of torchvision")
claim(same["names"] == same["photographs"], "all photographs, in torchvision's order")
claim(from_csv == from_xml, "deepforest's own table has the same boxes")
claim(png["PLTE"] == ours, "the palette of the file follows the rule")
claim((depth, kind) == (8, 3), "8 bits a pixel, colours by palette")
claim(mask.shape == (height, width), "as high and wide as the header says")
claim(max(map(max, gaps.values())) < 1e-12, "AP is that of pycocotools")
record("coco.cases", len(gaps["every"]))

# %% [markdown]
# ## Masks and their border

# %% tags=["wide"]
boxes = {0: (21, 31, 80, 90), 1: (101, 41, 180, 100), 2: (41, 121, 140, 180)}
drawn = [Thing(CLASSES[i], box) for i, box in boxes.items()]
truth = drawn_mask(drawn)
background = np.where(truth == VOID, 0, truth)
rows = []
grown = {}
for grow in (-4, -2, 0, 2, 4):
    found = drawn_mask(drawn, ((grow, None),))
    grown[grow] = [mean_iou(found, t, len(CLASSES) + 1) for t in (truth, background)]
    rows.append(
        (f"{grow:+d}" if grow else "0", *(f"{value:.3f}" for value in grown[grow]))
    )
table(rows, ("outline moved by", "border ignored", "border as background"))

# %% tags=["wide-claims"]
claim(all(grown[grow][0] == 1 for grow in (-2, 0, 2)), "within the border it is free")
claim(max(grown[4][0], grown[-4][0]) < 0.97, "beyond the border it costs")
claim(grown[-2][1] > grown[0][1] + 0.03, "as background, too narrow beats right")
claim(grown[0][1] < 0.95, "as background, a right outline pays")
record("border.right", grown[0][1])
record("border.narrow", grown[-2][1])

# %% tags=["mask-figure"] alt="Left, an aerial photograph: green and dry ground, a bare tree, a road. Right, its mask: three dark red ellipses, each with a pale border, on black; the lowest is flat and cut off by the lower edge."
name = next(iter(masked))
picture = Image.open(devkit / "JPEGImages" / f"{name}.jpg")
colours = np.array(palette(), np.uint8)[mask]
_, panels = plt.subplots(1, 2, figsize=(5, 2.5))
for axes, shown in zip(panels, (picture, colours)):
    axes.imshow(shown)
    axes.axis("off")
axes.set_axisbelow(True)

# %% [markdown]
# ## What is in it

# %% tags=["classes"]
GROUPS = {
    "person": {"person": 2008},
    "animal": {"bird": 330, "cat": 337, "cow": 141}
    | {"dog": 421, "horse": 287, "sheep": 96},
    "vehicle": {"aeroplane": 238, "bicycle": 243, "boat": 181, "bus": 186}
    | {"car": 713, "motorbike": 245, "train": 261},
    "indoor": {"bottle": 244, "chair": 445, "diningtable": 200}
    | {"pottedplant": 245, "sofa": 229, "tvmonitor": 256},
}  # photographs of 2007's trainval with such objects (Everingham et al. 2010, table 2)

# %% tags=["classes-figure"] alt="Bars for 20 classes in four groups. Person is in 2,008 photographs; the next, car, in 713, chair in 445, dog in 421; most others in 180 to 340; sheep in 96."
_, axes = plt.subplots(figsize=(5, 5))
place = 0
for (group, members), colour in zip(GROUPS.items(), plots.COLOURS):
    for n in members.values():
        axes.barh(place, n, color=colour)
        axes.annotate(
            f"{n:,}", (n, place), (4, 0), textcoords="offset points", va="center"
        )
        place += 1
    if len(members) > 1:
        axes.text(1300, place - len(members) / 2 - 0.5, group, color=colour)
names = [name for members in GROUPS.values() for name in members]
axes.set(
    yticks=range(len(names)), yticklabels=names, xlabel="photographs", xlim=(0, 2400)
)
axes.invert_yaxis()
axes.set_axisbelow(True)

# %% tags=["classes-claims"]
counts = {name: n for members in GROUPS.values() for name, n in members.items()}
claim(sorted(counts) == sorted(annotated.VOC), "the twenty classes")
order = sorted(counts, key=counts.get)
claim(order[-4:] == ["dog", "chair", "car", "person"], "the most frequent")
claim(order[0] == "sheep", "the rarest")
record("classes.person", counts["person"] / 5011)
record("classes.ratio", counts["person"] / counts["sheep"])
if FULL:
    for name in CLASSES:
        values = read_list(devkit / f"ImageSets/Main/{name}_trainval.txt").values()
        claim(Counter(values)[1] == counts[name], f"{name}: as in table 2")

# %% tags=["kinds"]
KINDS = ("whole", "truncated", "difficult")


def kind_of(thing: Thing) -> str:
    """The gravest flag of an object."""
    return (
        "difficult" if thing.difficult else "truncated" if thing.truncated else "whole"
    )


# %% tags=["statistics"]
everything = {name: one for members in parts.values() for name, one in members.items()}
things = [thing for one in everything.values() for thing in one]
boxes = edges(torch.tensor([thing.box for thing in things]))
width, height = (boxes[:, 2:] - boxes[:, :2]).T
measures = {
    "shorter side": torch.minimum(width, height),
    "width / height": width / height,
}
kinds = {k: torch.tensor([kind_of(thing) == k for thing in things]) for k in KINDS}
ends = {}
for name, values in measures.items():
    for kind, chosen in kinds.items():
        levels = torch.tensor([0.1, 0.5, 0.9])
        ends[name, kind] = values[chosen].quantile(levels).tolist()

# %% tags=["statistics-table"]
rows = []
for (name, kind), values in ends.items():
    form = ".0f" if name == "shorter side" else ".2f"
    numbers = [f"{value:{form}}" for value in values]
    rows.append((name, kind, int(kinds[kind].sum()), *numbers))
table(rows, ("measure", "objects", "how many", "10 %", "median", "90 %"))

# %% tags=["statistics-claims"]
record("set.objects", len(things))
record("set.photographs", len(everything))
for kind, chosen in kinds.items():
    record(f"set.{kind}", chosen.double().mean())
    record(f"side.{kind}", ends["shorter side", kind][1])
short = [ends["shorter side", kind][1] for kind in KINDS]
claim(
    short[0] > short[1] + 2 > short[2] + 4, "medians fall with the gravity of the flag"
)
spreads = [ends["width / height", k][2] / ends["width / height", k][0] for k in KINDS]
claim(spreads[0] * 1.5 < spreads[1] and spreads[1] * 1.5 < spreads[2], "ratios spread")
counted_names = Counter(thing.name for thing in things)
for name in CLASSES[:3]:
    record(f"set.{name}", counted_names[name])


# %% tags=["centres"]
def centres(file: Path) -> list[tuple[float, float]]:
    """Centres of the boxes of an annotation, as shares of width and height."""
    size = ElementTree.parse(file).getroot().find("size")
    shape = torch.tensor([float(size.findtext(side)) for side in ("width", "height")])
    found = []
    for thing in read_annotation(file):
        box = edges(thing.box)
        found.append(tuple(((box[:2] + box[2:]) / 2 / shape).tolist()))
    return found


# %% tags=["places-figure"] alt="Centres of boxes in a square tile, as dots in three colours. Dots of whole trees fill the inside and leave out a margin; dots of truncated trees lie in a frame further out, mixed with those of difficult ones, which reach the four borders."
files = [devkit / "Annotations" / f"{name}.xml" for name in everything]
places = torch.tensor([place for file in files for place in centres(file)])
figure, axes = plt.subplots(figsize=(5, 4.4))
for (kind, chosen), colour in zip(kinds.items(), plots.COLOURS):
    axes.plot(*places[chosen][:1500].T, "o", color=colour, markersize=3, label=kind)
axes.set(xlim=(0, 1), ylim=(1, 0), aspect="equal", xticks=(0, 1), yticks=(0, 1))
axes.set(xlabel="share of the width", ylabel="share of the height")
style = {"frameon": False, "labelcolor": "linecolor", "handletextpad": 0}
figure.legend(loc="outside upper center", ncols=3, columnspacing=1, **style)
axes.set_axisbelow(True)

# %% tags=["places-claims"]
to_border = torch.minimum(places, 1 - places).amin(1)
away = [to_border[chosen].median().item() for chosen in kinds.values()]
claim(
    away[0] > 1.5 * away[1] > 2 * away[2], "the graver the flag, the nearer the border"
)
for kind, value in zip(KINDS, away):
    record(f"away.{kind}", value)

# %% tags=["lists-table"]
rows = []
for name in CLASSES:
    for part in ("train", "val"):
        file = devkit / "ImageSets" / "Main" / f"{name}_{part}.txt"
        counts = Counter(read_list(file).values())
        rows.append((name, part, *(counts[value] for value in (1, 0, -1))))
columns = ("1: there", "0: difficult ones only", "-1: none")
table(rows, ("class", "part", *columns))

# %% tags=["lists-claims"]
for name, part, *numbers in rows:
    claim(
        sum(numbers) == len(parts[part]), f"{name}, {part}: each photograph has a line"
    )
    members = parts[part].values()
    found = Counter(list_value(things, name) for things in members)
    claim([found[v] for v in (1, 0, -1)] == numbers, f"{name}, {part}: by the rule")


# %% tags=["draw-boxes"]
def draw_boxes(axes, things: list[Thing]) -> None:
    """Outlines in the colour of their flag, on a dim picture."""
    for thing in things:
        left, top, right, bottom = edges(thing.box).tolist()
        colour = FLAGS[kind_of(thing)]
        frame = {"edgecolor": colour, "facecolor": "none", "linewidth": 1.5}
        axes.add_patch(plt.Rectangle((left, top), right - left, bottom - top, **frame))
    axes.axis("off")


FLAGS = {"whole": "#ffffff", "truncated": "#ffd23f", "difficult": "#ff6b6b"}

# %% tags=["crop-figure"] alt="Left, a dimmed aerial photograph of a wood with white boxes around crowns of trees and a dashed square. Right, what is inside the square, larger: trees cut a little at the border have yellow boxes, trees cut by more than half red ones; the others are white."
picture = Image.open(shipped("OSBS_029.png")).convert("RGB")
trees = read_annotation(shipped("OSBS_029.xml"))
window = (110, 100, 310, 300)
inside = cropped(trees, 110, 100, 200)
_, (before, after) = plt.subplots(1, 2, figsize=(5, 2.6))
before.imshow(np.array(picture) // 2)
after.imshow(np.array(picture.crop(window)) // 2)
draw_boxes(before, trees)
draw_boxes(after, inside)
square = {"fill": False, "edgecolor": "#ffd23f", "linestyle": "--", "linewidth": 2.5}
before.add_patch(plt.Rectangle((110, 100), 200, 200, **square))
after.set_axisbelow(True)

# %% tags=["crop-claims"]
kinds_inside = Counter(map(kind_of, inside))
claim(min(kinds_inside[kind] for kind in KINDS) > 2, "all three kinds are inside")
claim(set(map(kind_of, trees)) == {"whole"}, "before the cut all are whole")
for kind in KINDS:
    record(f"crop.{kind}", kinds_inside[kind])
record("crop.before", len(trees))

# %% tags=["border"]
rows = []
for name in (NEAR, FAR, "OSBS_029", "SOAP_061"):
    trees = read_annotation(shipped(f"{name}.xml"))
    with Image.open(shipped(f"{name}.png")) as picture:
        last = torch.tensor(picture.size, dtype=torch.float32)
    boxes = edges(torch.tensor([tree.box for tree in trees]))
    touch = (boxes[:, :2] <= 0).any(1) | (boxes[:, 2:] >= last).any(1)
    flagged = sum(tree.truncated or tree.difficult for tree in trees)
    rows.append((name[:12], len(trees), int(touch.sum()), flagged))

# %% tags=["border-claims"]
record("border.trees", sum(row[1] for row in rows))
record("border.touch", sum(row[2] for row in rows))
claim(sum(row[3] for row in rows) == 0, "no flag is ever set")
claim(min(row[2] for row in rows) > 0, "each photograph has boxes at its border")

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
palette()[15], [f"{value:08b}" for value in (15, *palette()[15])]

# %% tags=["solution-2"]
turned = {}
for (name, way, _), (right, n) in judged.items():
    turned.setdefault((way, name), []).append(average_precision(right, n, eleven()))

# %% tags=["solution-2-result"]
rows = []
for way in WAYS:
    rows.append((WORDS[way], *(spread(turned[way, name], ".3f") for name in NAMES)))
pairs = zip(turned["dropped", "keen"], turned["dropped", "timid"])
claim(
    all(keen < timid for keen, timid in pairs), "11 recalls, dropped: timid, each seed"
)
pairs = zip(turned["counted", "keen"], turned["counted", "timid"])
claim(
    all(keen > timid for keen, timid in pairs), "11 recalls, counted: keen, each seed"
)
table(rows, ("difficult objects", *(f"11 recalls, {name}" for name in NAMES)))

# %% tags=["solution-3"]
boxes = torch.cat([truth.boxes for truth in scored.values()])
rows = []
for least in (0.5, 0.75, 0.9, 0.95):
    shares = []
    for read in (boxes + torch.tensor([1.0, 1, 0, 0]), boxes + 1):
        overlaps = ops.box_iou(boxes, read).diagonal()
        shares.append((overlaps >= least).double().mean().item())
    rows.append((least, *(f"{share:.0%}" for share in shares)))
    if least == 0.5:
        at_half = shares
    if least == 0.9:
        at_nine = shares[1]

# %% tags=["solution-3-result"]
record("strict.moved", at_nine)
claim(min(at_half) > 0.98, "at 0.5 hardly a box is lost")
claim(shares[0] < 0.5, "at 0.95 most boxes no longer fit themselves")
table(rows, ("IoU at least", "one pixel narrower", "moved by one pixel"))


# %% tags=["solution-4"]
TURNED = {"Left": "Right", "Right": "Left"}


def mirrored(things: list[Thing], width: int) -> list[Thing]:
    """The objects of a photograph whose left and right are exchanged."""
    found = []
    for thing in things:
        xmin, ymin, xmax, ymax = thing.box
        box = (width + 1 - xmax, ymin, width + 1 - xmin, ymax)
        pose = TURNED.get(thing.pose, thing.pose)
        found.append(thing._replace(box=box, pose=pose))
    return found


# %% tags=["solution-4-result"]
twice = mirrored(mirrored([person], 12), 12)
claim(twice == [person], "mirrored twice, the person is as before")
mirrored([person], 12)

# %% [markdown]
# ## What we saw
#
# - A box of VOC counts pixels from 1, ends included: xmin - 1 and ymin - 1 are its edges.
# - Difficult objects are ignored: two detectors that differ on them only have the same AP.
#   Counting them puts one ahead, dropping them from the list the other.
# - A border of value 255 makes mean IoU blind to where exactly an outline lies.
