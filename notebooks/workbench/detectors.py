"""What detectors have in common: how far their boxes lie on objects, and how often they are wrong."""

import torch
from torch import Tensor
from torchvision import ops

from workbench import boxes


def best_overlap(places: Tensor, objects: Tensor) -> Tensor:
    """Largest IoU of boxes (B, P, 4) with an object (B, M, 4) of the image: (B, P)."""
    places = places.unsqueeze(2)
    objects = objects.unsqueeze(1)
    upper = torch.maximum(places[..., :2], objects[..., :2])  # (B, P, M, 2)
    lower = torch.minimum(places[..., 2:], objects[..., 2:])
    common = (lower - upper).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (places, objects)]
    return (common / (areas[0] + areas[1] - common)).amax(-1)


def mistakes(found: list[boxes.Detections], part: boxes.Scenes) -> list[int]:
    """Of each scene the objects that no detection is right about and the wrong detections.

    Right: of the object's class, at an IoU of one half or more.
    """
    counts = []
    for detections, truth, labels in zip(found, part.boxes, part.labels, strict=True):
        right = ops.box_iou(detections.boxes, truth[labels >= 0]) >= 0.5
        right &= detections.labels[:, None] == labels[labels >= 0]
        missed = (~right.any(0)).sum()
        wrong = (~right.any(1)).sum()
        counts.append(int(missed + wrong))
    return counts
