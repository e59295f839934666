"""Two networks that should compute the same: copy the weights, compare the outputs."""

import torch
from torch import Tensor, nn

from workbench import evaluating, finite


def transplant(source: nn.Module, target: nn.Module) -> None:
    """Copy all parameters and buffers of `source` into `target`, pair by pair in their order.

    Raises ValueError at the first pair whose shapes differ, or when one has more than the other;
    nothing is copied then.
    """
    pairs = list(zip(source.state_dict().items(), target.state_dict().items()))
    for (name, a), (other, b) in pairs:
        if a.shape != b.shape:
            raise ValueError(
                f"{name} {tuple(a.shape)} does not fit {other} {tuple(b.shape)}"
            )
    counts = len(source.state_dict()), len(target.state_dict())
    if counts[0] != counts[1]:
        raise ValueError(f"the source has {counts[0]} tensors, the target {counts[1]}")
    target.load_state_dict({other: a for (_, a), (other, _) in pairs})


@torch.no_grad()
def randomise_norms(model: nn.Module) -> nn.Module:
    """Give every batch norm random statistics, scale and shift; return the model.

    Fresh ones have 0 and 1 for them, which hides a wrong epsilon or two layers that changed places.
    """
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.normal_(0, 0.1)
    return model


def deviation(found: Tensor, expected: Tensor) -> float:
    """Largest difference of two tensors, relative to the largest value of the second.

    Every comparison goes through here. Raises AssertionError when the shapes differ, and ValueError
    when the result is not finite: NaN or infinity in a tensor, or nothing but zeros expected.
    """
    assert found.shape == expected.shape, (
        f"{tuple(found.shape)} against {tuple(expected.shape)}"
    )
    difference = (found - expected).abs().max()
    if difference == 0:
        return 0.0
    return finite([(difference / expected.abs().max()).item()], "deviation")[0]


@torch.no_grad()
def same_outputs(
    a: nn.Module, b: nn.Module, x: Tensor, tolerance: float = 1e-5
) -> float:
    """Largest difference of two models' outputs on x in evaluation mode, relative to their scale.

    Raises AssertionError when it exceeds the tolerance or the shapes differ.
    """
    with evaluating(a, b):
        found = deviation(a(x), b(x))
    assert found <= tolerance, f"outputs differ by {found:.1e}, allowed {tolerance:.0e}"
    return found
