"""A pretended accelerator: ``python tests/pretend.py notebooks/resnet.py`` runs a notebook on it.

With ``--brief`` its training sees a few batches an epoch.

It says that it is a device of its own and holds its numbers on the CPU, where they are computed. What
fails on a GPU fails here, on a machine that has none: an operator that is given tensors of both
devices, NumPy, a generator of the other device. So notebooks and the definitions in them can be
shown to run on a GPU as far as devices go; streams, pinned memory, kernels that are not
deterministic and memory that ends are not pretended.

Of what torch ships, its Python backend serves (``torch.utils.backend_registration``): an operator on
this device, one that makes tensors included, comes to `run`. The wheels do not hold OpenReg, which is
a C++ extension of torch's own tests, and a FakeTensor holds no numbers unless the device it pretends
to is there.
"""

import functools
import itertools
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "pretended"
BRIEF = 3
aten = torch.ops.aten
CROSSING = {aten.copy_.default, aten._to_copy.default}
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
BARE = [aten.copy_.default, aten._local_scalar_dense.default]  # torch.tensor calls no fallback
RECURRENT = ("rnn_tanh", "rnn_relu", "lstm", "gru", "_pack_padded_sequence", "_pad_packed_sequence")
_registered: list[torch.library.Library] = []  # what is registered is so as long as these live


class Pretended(Tensor):
    """A tensor of the pretended device; `held` is the one on the CPU that has its numbers."""

    @staticmethod
    def __new__(cls, held: Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
        )

    def __init__(self, held: Tensor):
        self.held = held

    def __repr__(self, **_) -> str:
        return f"{self.cpu()!r} on {self.device}"

    def __deepcopy__(self, memo: dict) -> Tensor:
        if id(self) not in memo:
            copy = self.detach().clone().requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copy = torch.nn.Parameter(copy, self.requires_grad)
            memo[id(self)] = copy
        return memo[id(self)]

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, **_):
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. "
            f"Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def __array__(self, *_, **__):
        self.numpy()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return run(operator, *args, **(kwargs or {}))


def run(operator, *args, **kwargs):
    """Compute on the CPU what an operator computes on this device; RuntimeError if devices are mixed."""
    given = list(tensors((*args, *kwargs.values())))
    ours = [x for x in given if isinstance(x, Pretended)]
    device = kwargs.get("device")
    here = torch.device(device).type == NAME if device is not None else bool(ours)
    if len(ours) not in (0, len(given)) and operator not in CROSSING:
        refuse_strangers(operator, args, kwargs)
    generator = kwargs.get("generator")
    if here and generator is not None:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator, not {generator.device}")
    if here and device is not None:
        kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
    kwargs = {name: held(value) for name, value in kwargs.items()}
    result = operator(*map(held, args), **kwargs)
    known = {id(x.held): x for x in ours}  # an operator in place returns what it was given
    return pretended(result, known) if here or id(result) in known else result


def tensors(values) -> Iterator[Tensor]:
    """The tensors among arguments, and in their lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors(value)


def held(value):
    """An argument as the CPU is to have it."""
    if isinstance(value, Pretended):
        return value.held
    if isinstance(value, (list, tuple)):
        return type(value)(map(held, value))
    return value


def pretended(value, known: dict[int, Pretended]):
    """A result as this device returns it."""
    if isinstance(value, Tensor):
        return known[id(value)] if id(value) in known else Pretended(value)
    if isinstance(value, (list, tuple)):
        return type(value)(pretended(x, known) for x in value)
    return value


def refuse_strangers(operator, args, kwargs) -> None:
    """RuntimeError for a tensor of another device, but for a single number and for indices."""
    if operator in INDEXING and isinstance(args[0], Pretended):
        args = (args[0], *args[2:])
    for x in tensors((*args, *kwargs.values())):
        if not isinstance(x, Pretended) and (x.dim() or x.is_meta):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {operator} was given one "
                f"of shape {tuple(x.shape)} on {x.device} beside one on {NAME}"
            )


def recurrent(name: str):
    """A function of torch's recurrent layers, run on the CPU: elsewhere it wants a kernel of GPUs.

    Lengths and sizes of batches, whole numbers, are on the CPU with every device.
    """
    function = getattr(torch._VF, name)

    def on_cpu(x: Tensor, *args):
        if not isinstance(x, Pretended):
            return function(x, *args)
        real = [t for t in tensors(args) if t.is_floating_point()]
        refuse_strangers(name, real, {})
        moved = [[t.cpu() for t in a] if isinstance(a, (list, tuple)) else a for a in args]
        moved = [a.cpu() if isinstance(a, Pretended) else a for a in moved]
        results = function(x.cpu(), *moved)
        return tuple(t.to(x.device) if t.is_floating_point() else t for t in results)

    return on_cpu


class Module(_DummyBackendModule):
    """What torch asks of ``torch.pretended``."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:  # a checkpoint's backward asks for it
        return [torch.bfloat16, torch.float16]


def start() -> torch.device:
    """Make the pretended device the accelerator of this process, for good, and return it."""
    if not _registered:
        _setup_privateuseone_for_python_backend(NAME, Module())
        _registered.append(torch.library.Library("_", "IMPL"))
        _registered[0].fallback(run, "PrivateUse1")
        _registered.append(torch.library.Library("aten", "IMPL"))
        for operator in BARE:
            kernel = functools.partial(run, operator)
            _registered[1].impl(operator.name().removesuffix(".default"), kernel, "PrivateUse1")
        for name in RECURRENT:
            setattr(torch._VF, name, recurrent(name))
        # a second thread would wait for Python at each operator
        torch.autograd.set_multithreading_enabled(False)
    return torch.accelerator.current_accelerator()


def train_briefly() -> None:
    """Let `training.fit` see `BRIEF` batches an epoch and detectors see `BRIEF` batches of scenes.

    A notebook with a loop of its own runs `BRIEF` of the steps that it takes from
    `training.progress`. What is asked is whether a notebook runs.
    """
    from workbench import scenes, training

    whole, all_batches = training.fit, scenes.DigitScenes.batches

    def fit(model, train, epochs, optimizer, *args, batch=50, **kwargs):
        few = tuple(part[: BRIEF * batch] for part in train)
        return whole(model, few, epochs, optimizer, *args, batch=batch, **kwargs)

    def batches(source, steps: int, batch: int):
        return all_batches(source, min(steps, BRIEF), batch)

    def progress(steps, title: str):
        return steps if title == "epochs" else itertools.islice(steps, BRIEF)

    training.fit, scenes.DigitScenes.batches = fit, batches
    training.progress = progress


def main(arguments: list[str]) -> None:
    brief = "--brief" in arguments
    files = [Path(name).resolve() for name in arguments if name != "--brief"]
    if len(files) != 1 or not files[0].is_file():
        sys.exit("usage: python tests/pretend.py [--brief] NOTEBOOK.py")
    os.environ.setdefault("MPLBACKEND", "agg")
    start()
    sys.path.insert(0, str(files[0].parent))
    if brief:
        train_briefly()
    runpy.run_path(str(files[0]), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
