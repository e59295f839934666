"""Weight files of Darknet, the framework of YOLOv1 to v4: read into a network, and written.

A file is a header and single floats, layer after layer in the order of the network's configuration
(``load_convolutional_weights`` in Darknet's parser.c): of a convolution with batch normalisation the
shift, scale, running mean and running variance, then the weights; of one without the bias, then the
weights.
"""

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


def tensors(model: nn.Module) -> list[Tensor]:
    """The parameters and running statistics of a network in the order of a file.

    A convolution's batch normalisation is the one registered next. Modules have to be registered in
    the order in which the configuration lists the layers. Raises ValueError for other parameters.
    """
    found = []
    last = None
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            found.append([module.bias, module.weight])
            last = module
        elif isinstance(module, nn.BatchNorm2d):
            if last is None or last.bias is not None:
                raise ValueError(
                    f"{name}: a batch normalisation follows a convolution without bias"
                )
            norms = [module.bias, module.weight, module.running_mean]
            found[-1] = [*norms, module.running_var, last.weight]
            last = None
        elif next(module.parameters(recurse=False), None) is not None:
            raise ValueError(f"{name}: a Darknet file has no {type(module).__name__}")
    if any(layer[0] is None for layer in found):
        raise ValueError("a convolution has neither bias nor batch normalisation")
    return [tensor for layer in found for tensor in layer]


def load(model: nn.Module, file: Path | str) -> int:
    """Read a weight file into a network; returns on how many images it was trained.

    Raises ValueError where the file has more or fewer floats than the network; nothing is changed
    then.
    """
    data = Path(file).read_bytes()
    if len(data) < 12:
        raise ValueError(f"{str(file)!r} is no weight file: it has {len(data)} bytes")
    major, minor, _ = struct.unpack("<3i", data[:12])
    wide = major * 10 + minor >= 2  # from version 0.2 the count of images has 64 bits
    start = 20 if wide else 16
    (seen,) = struct.unpack("<q" if wide else "<i", data[12:start])
    wanted = tensors(model)
    count = sum(tensor.numel() for tensor in wanted)
    if len(data) - start != 4 * count:
        raise ValueError(
            f"{str(file)!r} has {(len(data) - start) / 4:,.10g} floats, the network {count:,}"
        )
    values = torch.from_numpy(np.frombuffer(data, "<f4", offset=start).copy())
    with torch.no_grad():
        for tensor, part in zip(wanted, values.split([t.numel() for t in wanted])):
            tensor.copy_(part.view_as(tensor))
    return seen


def save(model: nn.Module, file: Path | str, *, seen: int = 0) -> None:
    """Write a network's parameters and running statistics as a weight file of version 0.2."""
    parts = [tensor.detach().cpu().numpy().astype("<f4") for tensor in tensors(model)]
    header = struct.pack("<3iq", 0, 2, 0, seen)
    Path(file).write_bytes(header + b"".join(part.tobytes() for part in parts))


def floats(model: nn.Module) -> int:
    """How many floats a network's weight file has; works on the meta device."""
    return sum(tensor.numel() for tensor in tensors(model))
