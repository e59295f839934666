"""The recipe that the reading list's repository trains all its networks with.

200 epochs, batches of 128, SGD with Nesterov momentum 0.9, weight decay 5e-4. The rate is 0.1, a fifth
of it from each of the epochs 60, 120 and 160 on; it rises from nothing during the first.
"""

from dataclasses import asdict, dataclass

import torch
from torch import nn

EPOCHS = 200
MILESTONES = (60, 120, 160)  # of 200 epochs; scaled with their number


@dataclass(frozen=True)
class Settings:
    """All that the numbers of a run depend on but its seed, the device and how a batch is shared."""

    net: str
    data: str
    epochs: int = EPOCHS
    batch: int = 128
    lr: float = 0.1
    warm: int = 1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    precision: str = "float32"
    first: int | None = None
    peek_test: bool = False

    def plain(self) -> dict:
        return asdict(self)


def milestones(epochs: int) -> list[int]:
    return [round(m * epochs / EPOCHS) for m in MILESTONES]


def rate(settings: Settings, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0 over all epochs of `steps` each."""
    if step < settings.warm * steps:
        return settings.lr * (step + 1) / (settings.warm * steps)
    passed = sum(step >= m * steps for m in milestones(settings.epochs))
    return settings.lr * 0.2**passed


def rate_at_end(settings: Settings, epoch: int) -> float:
    """The rate of the last step of an epoch, counted from 0: what a run is checked against."""
    if epoch < settings.warm:
        return settings.lr * (epoch + 1) / settings.warm
    found = settings.lr
    for milestone in milestones(settings.epochs):
        if epoch >= milestone:
            found *= 0.2
    return found


def optimizer(network: nn.Module, settings: Settings) -> torch.optim.SGD:
    return torch.optim.SGD(
        network.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        weight_decay=settings.weight_decay,
    )
