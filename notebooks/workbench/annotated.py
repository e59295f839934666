"""Complete sets of photographs with boxes: Pascal VOC and COCO."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset
from torchvision import datasets, ops
from torchvision.transforms.functional import pil_to_tensor

import workbench
from workbench.boxes import Scenes

VOC = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
MOST = 100  # objects of one photograph; COCO's fullest has 93


class Photographs:
    """A set of photographs with boxes, each fitted into a square image, grey beside it.

    name: "VOC", VOC 2007 as torchvision reads it from DATA_ROOT, fetched where it is missing; or
    "COCO", 2017, from DATA_ROOT/coco with the folders train2017, val2017 and annotations. The boxes
    of COCO's test part are not public: its validation part is the test here, and every twentieth
    training photograph is for validation. size: of the square in pixels; what becomes narrower than a
    pixel is ignored, as VOC's difficult objects and COCO's crowds are.
    """

    def __init__(self, name: str, size: int):
        readers = {"VOC": voc, "COCO": coco}
        if name not in readers:
            raise ValueError(
                f"{name!r} is no set of photographs; there are VOC and COCO"
            )
        if workbench.PROFILE != "full":
            raise RuntimeError(
                f"{name} is not part of the sample profile; set PROFILE=full"
            )
        self.size = size
        self.parts, self.classes, self.objects = readers[name](
            Path(os.environ.get("DATA_ROOT", "data"))
        )
        workbench.sources.append(f"{name}, the complete data set")

    def fixed(self, part: str, n: int) -> Scenes:
        """n scenes of "train", "validation" or "test", spread over the part; all if it has fewer."""
        total = len(self.parts[part])
        n = min(n, total)
        return self.gather(part, [i * total // n for i in range(n)])

    def batches(self, steps: int, batch: int) -> Iterator[Scenes]:
        """A batch of training scenes, drawn at random, for each step, on the device."""
        for _ in range(steps):
            chosen = torch.randint(len(self.parts["train"]), (batch,)).tolist()
            yield self.gather("train", chosen).to(workbench.device)

    def gather(self, part: str, chosen: list[int]) -> Scenes:
        scenes = [self.scene(*self.parts[part][i]) for i in chosen]
        return Scenes(*(torch.stack(values) for values in zip(*scenes)))

    def scene(self, picture, target) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One photograph and its annotation as one entry of `Scenes`, MOST objects."""
        x = pil_to_tensor(picture.convert("RGB")).float().div(255)
        image, scale, left, top = fitted(x, self.size)
        boxes = torch.zeros(MOST, 4)
        labels = torch.full((MOST,), -1)
        ignored = torch.zeros(MOST, dtype=torch.bool)
        for i, (box, label, aside) in enumerate(self.objects(target)[:MOST]):
            box = torch.tensor(box, dtype=torch.float32) * scale
            boxes[i] = box + torch.tensor([left, top, left, top])
            labels[i] = label
            narrow = (boxes[i, 2:] - boxes[i, :2]).amin() < 1
            ignored[i] = bool(aside or narrow)
        return image, ops.clip_boxes_to_image(boxes, image.shape[1:]), labels, ignored


def fitted(x: Tensor, size: int) -> tuple[Tensor, float, int, int]:
    """A picture (3, H, W) within a grey square of `size` pixels; its scale and upper left corner."""
    H, W = x.shape[1:]
    scale = size / max(H, W)
    h, w = max(1, round(H * scale)), max(1, round(W * scale))
    small = F.interpolate(x[None], size=(h, w), mode="bilinear", antialias=True)[0]
    left, top = (size - w) // 2, (size - h) // 2
    right, bottom = size - w - left, size - h - top
    return F.pad(small, (left, right, top, bottom), value=0.5), scale, left, top


def voc(root: Path) -> tuple[dict[str, Dataset], list[str], object]:
    """The parts of VOC 2007, its classes, and how an annotation is read."""
    parts = {}
    for part, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        lists = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / f"{name}.txt"
        try:
            parts[part] = datasets.VOCDetection(
                str(root), "2007", name, download=not lists.exists()
            )
        except (OSError, RuntimeError) as error:
            raise RuntimeError(
                f"VOC 2007 could not be read or fetched: {error}. Place VOCdevkit/VOC2007 in "
                f"{str(root)!r}, or set DATA_ROOT to a folder that has it."
            ) from error

    def objects(target) -> list[tuple]:
        found = []
        for one in target["annotation"].get("object", []):
            left, top, right, bottom = (
                float(one["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            box = [
                left - 1,
                top - 1,
                right,
                bottom,
            ]  # VOC counts pixels from 1, ends included
            found.append((box, VOC.index(one["name"]), one.get("difficult") == "1"))
        return found

    return parts, VOC, objects


def coco(root: Path) -> tuple[dict[str, Dataset], list[str], object]:
    """The parts of COCO 2017, its classes, and how an annotation is read."""
    folder = root / "coco"
    found = {}
    for name in ("train2017", "val2017"):
        annotations = folder / "annotations" / f"instances_{name}.json"
        if not annotations.is_file() or not (folder / name).is_dir():
            raise RuntimeError(
                f"COCO is read from {str(annotations)!r} and {str(folder / name)!r}, which are not "
                "there: place them, or set DATA_ROOT to a folder that has coco."
            )
        found[name] = datasets.CocoDetection(str(folder / name), str(annotations))
    train = found["train2017"]
    held = range(19, len(train), 20)
    rest = [i for i in range(len(train)) if i % 20 != 19]
    parts = {
        "train": Subset(train, rest),
        "validation": Subset(train, held),
        "test": found["val2017"],
    }
    numbers = sorted(train.coco.cats)
    classes = [train.coco.cats[number]["name"] for number in numbers]

    def objects(target) -> list[tuple]:
        found = []
        for one in target:
            left, top, width, height = one["bbox"]
            box = [left, top, left + width, top + height]
            found.append((box, numbers.index(one["category_id"]), one.get("iscrowd")))
        return found

    return parts, classes, objects
