"""What a network has and costs: parameters and multiply-accumulates."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from workbench import evaluating


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one forward pass: half of what torch.utils.flop_counter finds.

    Convolutions and matrix products count; biases, normalisation and activations do not. Works on
    the meta device.
    """
    counter = FlopCounterMode(display=False, custom_mapping=FLOPS)
    counter.mod_tracker = NoModules()
    with unfused(), evaluating(model), torch.no_grad(), counter:
        model(x)
    return counter.get_total_flops() // 2


class NoModules(nullcontext):
    """Stands for the counter's record of modules: its hooks fail if a forward pass calls autograd."""

    parents = ("Global",)


@contextmanager
def unfused() -> Iterator[None]:
    """Switch off the fused kernels, which hide from a counter what is in them.

    Those are attention (ViT-B/16 would read 11.3 instead of 17.6 G multiply-accumulates), the
    layers of an encoder, and the LSTM of oneDNN and the recurrent layers of cuDNN.
    """
    mha, libraries = torch.backends.mha, (torch.backends.mkldnn, torch.backends.cudnn)
    fast, enabled = (
        mha.get_fastpath_enabled(),
        [library.enabled for library in libraries],
    )
    try:
        mha.set_fastpath_enabled(False)
        for library in libraries:
            library.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(fast)
        for library, before in zip(libraries, enabled):
            library.enabled = before


def conv_backward_flops(
    gradient,
    x,
    weight,
    bias,
    stride,
    padding,
    dilation,
    transposed,
    output_padding,
    groups,
    mask,
    **_,
) -> int:
    """Of the gradients of input and weight: each costs what the forward pass does.

    torch's own formula forgets the groups.
    """
    places = math.prod(x[2:] if transposed else gradient[2:])
    return 2 * x[0] * places * math.prod(weight) * (mask[0] + mask[1])


def trilinear_flops(a, b, c, expand_a, expand_b, expand_c, summed, *_, **__) -> int:
    """Of nn.Bilinear and its gradients: the first tensor times the second, that times the third."""
    shapes = []
    for shape, expand in ((a, expand_a), (b, expand_b), (c, expand_c)):
        full = list(shape)
        for axis in expand:
            full.insert(axis, 1)
        shapes.append(full)
    first = [max(pair) for pair in zip(shapes[0], shapes[1])]
    gone = [axis in summed and axis in expand_c for axis in range(len(first))]
    second = [n if lost else max(m, n) for m, n, lost in zip(first, shapes[2], gone)]
    return 2 * (math.prod(first) + math.prod(second))


def matrix_vector_flops(matrix, vector, **_) -> int:
    return 2 * math.prod(matrix)  # for two vectors too


aten = torch.ops.aten
FLOPS = {  # what torch's counter does not know, or knows wrongly; shapes in place of tensors
    aten.convolution_backward: conv_backward_flops,
    aten._trilinear: trilinear_flops,
    aten.mv: matrix_vector_flops,
    aten.dot: matrix_vector_flops,
    aten.addmv: lambda bias, matrix, vector, **_: matrix_vector_flops(matrix, vector),
}
