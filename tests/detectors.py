"""What the tests of the detectors share: scenes written by hand, and a network that only answers."""

import torch
from torch import nn

from workbench.boxes import Scenes


def scenes_of(places, labels, *, ignored=None, size=32) -> Scenes:
    """Black scenes with objects: places (B, M, 4) and labels (B, M), -1 for none, as lists."""
    labels = torch.tensor(labels)
    aside = torch.zeros_like(labels, dtype=torch.bool)
    if ignored is not None:
        aside = torch.as_tensor(ignored)
    images = torch.zeros(len(labels), 3, size, size)
    return Scenes(images, torch.tensor(places), labels, aside)


class Answers(nn.Module):
    """Gives the same outputs for any input, and is asked in evaluation mode."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        assert not self.training
        return self.outputs
