"""A network for the tests of workbench."""

from torch import nn


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10)
    )


MODES = [True, True, False, True, True, True]  # a frozen norm in a model that trains


def frozen() -> nn.Sequential:
    model = small()
    model[1].eval()
    return model
