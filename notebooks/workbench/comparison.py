"""All detectors of the book on the same scenes, for the table that compares them."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from workbench import boxes, counting, record, scenes


def compare(
    network: nn.Module,
    detect: Callable[[Tensor], list[boxes.Detections]],
    name: str = "comparison",
) -> None:
    """Record what a trained detector has, costs and reaches on 300 test scenes of 64 pixels.

    network: what maps images (B, 3, 64, 64) to its outputs. detect: images (300, 3, 64, 64), on the
    CPU, to the detections of each, weak ones too. Recorded as name.parameters, name.macs of one
    image, name.half and name.strict (mAP at an IoU of 0.5, and from 0.5 to 0.95) and time.name,
    the seconds of the processor that `detect` took.
    """
    source = scenes.source(64)
    both = source.fixed("test", 600)
    part = boxes.Scenes(*(values[300:] for values in both))  # trials may see the others
    start = time.process_time()
    found = detect(part.images)
    seconds = time.process_time() - start
    scored = boxes.average_precision(found, part, classes=len(source.classes))
    where = next(network.parameters()).device
    values = {
        "parameters": counting.parameters(network),
        "macs": counting.macs(network, torch.zeros(1, 3, 64, 64, device=where)),
        "half": scored["mAP@0.5"],
        "strict": scored["mAP@0.5:0.95"],
    }
    for key, value in values.items():
        record(f"{name}.{key}", value)
    record(f"time.{name}", seconds)
