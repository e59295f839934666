"""Images with boxes: scenes, the detections to keep, average precision, pictures of both.

A box is left, top, right and bottom in pixels from the image's corner.
"""

import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torch.nn import functional as F
from torchvision import ops
from torchvision.utils import draw_bounding_boxes

from workbench import plots

FONT = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf"))
FOUND = "#ffd23f"  # the colour of a detection, on dark scenes


class Scenes(NamedTuple):
    """Images and the objects on them, N images of at most M objects each.

    images (N, 3, H, W) in 0..1. boxes (N, M, 4), zeros where there is no object. labels (N, M): the
    class, -1 where there is no object. ignored (N, M): a detection of it is neither right nor wrong.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    ignored: Tensor

    def to(self, where) -> "Scenes":
        return Scenes(*(part.to(where) for part in self))


class Detections(NamedTuple):
    """What was found on one image: boxes (N, 4), scores (N,), the best first, labels (N,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def select(
    boxes: Tensor,
    scores: Tensor,
    *,
    least: float = 0.05,
    overlap: float = 0.5,
    most=100,
) -> Detections:
    """The detections of one image: NMS in each class by itself, on the CPU.

    boxes (P, 4), scores (P, K) of a box for each class. least: below this score none is kept.
    overlap: of two boxes of one class with a larger IoU the better one stays.
    """
    place, labels = (scores >= least).nonzero(as_tuple=True)
    boxes, values = boxes[place].cpu(), scores[place, labels].cpu()
    labels = labels.cpu()
    kept = ops.batched_nms(boxes, values, labels, overlap)[:most]
    return Detections(boxes[kept], values[kept], labels[kept])


def average_precision(
    found: list[Detections], scenes: Scenes, *, classes: int, sides=()
) -> dict[str, float]:
    """COCO's mean average precision of detections, by pycocotools, each number in 0..1.

    found: for each scene. classes: how many there are. Returns "mAP@0.5", "mAP@0.5:0.95", and with
    two limits `sides`, in pixels, "small", "medium", "large": mAP@0.5 of objects whose longer side
    is below the first, between them, above the second. A class without an object does not count; a
    number for which there is no object at all is NaN.
    """
    if len(found) != len(scenes.images):
        raise ValueError(
            f"detections of {len(found)} scenes, but {len(scenes.images)} scenes"
        )
    truths, results = [], []
    for image, (boxes, labels, ignored) in enumerate(zip(*scenes[1:])):
        for box, label, aside in zip(boxes, labels.tolist(), ignored.tolist()):
            if label >= 0:
                truths.append(entry(image, box, label) | {"iscrowd": int(aside)})
        for box, score, label in zip(*found[image]):
            results.append(entry(image, box, int(label)) | {"score": float(score)})
    areas = [(0, 1e10)]
    if sides:
        low, high = (side**2 for side in sides)
        areas += [(0, low), (low, high), (high, 1e10)]
    names = ["all", "small", "medium", "large"][: len(areas)]
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        evaluation = COCOeval(
            index(truths, len(found), classes),
            index(results, len(found), classes),
            "bbox",
        )
        evaluation.params.areaRng = areas
        evaluation.params.areaRngLbl = names
        evaluation.evaluate()
        evaluation.accumulate()
    precision = torch.from_numpy(evaluation.eval["precision"])[..., -1]  # 100 an image

    def mean(values: Tensor) -> float:
        return values[values > -1].mean().item()

    by_size = {name: mean(precision[0, ..., i]) for i, name in enumerate(names)}
    return {
        "mAP@0.5": by_size.pop("all"),
        "mAP@0.5:0.95": mean(precision[..., 0]),
        **by_size,
    }


def entry(image: int, box: Tensor, label: int) -> dict:
    """An object as pycocotools has it; its "area", which says how large it is, its longer side squared."""
    left, top, right, bottom = box.tolist()
    width, height = right - left, bottom - top
    return {
        "image_id": image,
        "category_id": label,
        "bbox": [left, top, width, height],
        "area": max(width, height) ** 2,
        "iscrowd": 0,
    }


def index(entries: list[dict], images: int, classes: int) -> COCO:
    known = COCO()
    known.dataset = {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": k} for k in range(classes)],
        "annotations": [one | {"id": i} for i, one in enumerate(entries, start=1)],
    }
    known.createIndex()
    return known


def show(
    scenes: Scenes,
    found: list[Detections],
    classes,
    *,
    columns: int = 4,
    scale: int = 4,
) -> None:
    """Pictures of scenes: white boxes for the objects, coloured ones for what was found there.

    At each found box stand its class and, in hundredths, its score.
    """
    pictures = []
    for image, boxes, labels, detections in zip(*scenes[:3], found):
        picture = F.interpolate(image[None].cpu(), scale_factor=scale)[0]
        truths = boxes[labels >= 0].cpu()
        picture = outlined(picture, truths * scale, colors="white", width=2)
        places = detections.boxes * scale
        picture = outlined(picture, places, colors=FOUND, width=3)
        words = [
            f"{classes[k]} {round(100 * s)}"
            for s, k in zip(detections.scores.tolist(), detections.labels.tolist())
        ]
        above = (places - torch.tensor([0, 28, 0, 28])).clamp(min=0)
        above[:, 2:] = torch.maximum(above[:, 2:], above[:, :2] + 1)
        lettering = {"font": FONT, "font_size": 22, "label_colors": FOUND}
        picture = outlined(picture, above, labels=words, width=0, **lettering)
        pictures.append(picture)
    plots.image_grid(pictures, columns=columns, scale=5 / columns)


def outlined(picture: Tensor, boxes: Tensor, **how) -> Tensor:
    """The picture with boxes drawn by torchvision, which warns where there are none."""
    return draw_bounding_boxes(picture, boxes, **how) if len(boxes) else picture
