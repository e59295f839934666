"""The learning rate of reproduction/ at the boundaries of epochs."""

import pytest
import torch
from torch import nn

from reproduction import recipe
from reproduction.recipe import Settings

PAPER = Settings("resnet50", "cifar100")
STEPS = 352  # of an epoch: 45,000 images in batches of 128


@pytest.mark.parametrize(
    ("epoch", "first", "last"),
    [
        (0, 0.1 / STEPS, 0.1),
        (1, 0.1, 0.1),
        (59, 0.1, 0.1),
        (60, 0.02, 0.02),
        (119, 0.02, 0.02),
        (120, 0.004, 0.004),
        (159, 0.004, 0.004),
        (160, 0.0008, 0.0008),
        (199, 0.0008, 0.0008),
    ],
)
def test_the_rate_at_the_ends_of_an_epoch(epoch, first, last):
    assert recipe.rate(PAPER, epoch * STEPS, STEPS) == pytest.approx(first, rel=1e-12)
    assert recipe.rate(PAPER, (epoch + 1) * STEPS - 1, STEPS) == pytest.approx(last, rel=1e-12)
    assert recipe.rate_at_end(PAPER, epoch) == pytest.approx(last, rel=1e-12)


def test_the_rate_is_that_of_torchs_scheduler_behind_the_warm_up():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60, 120, 160], gamma=0.2)
    for epoch in range(200):
        if epoch:
            assert recipe.rate(PAPER, epoch * STEPS, STEPS) == pytest.approx(
                schedule.get_last_lr()[0]
            )
        optimizer.step()
        schedule.step()


def test_milestones_are_scaled_and_the_warm_up_can_be_longer_or_none():
    assert recipe.milestones(200) == [60, 120, 160]
    assert recipe.milestones(20) == [6, 12, 16]
    long = Settings("resnet50", "cifar100", warm=4)
    assert recipe.rate(long, 2 * STEPS - 1, STEPS) == pytest.approx(0.05)
    assert recipe.rate_at_end(long, 1) == pytest.approx(0.05)
    none = Settings("resnet50", "cifar100", warm=0)
    assert recipe.rate(none, 0, STEPS) == 0.1 == recipe.rate_at_end(none, 0)


def test_the_optimiser_is_the_recipes():
    (group,) = recipe.optimizer(nn.Linear(2, 2), PAPER).param_groups
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 5e-4)
    assert (PAPER.epochs, PAPER.batch, PAPER.lr, PAPER.warm) == (200, 128, 0.1, 1)
