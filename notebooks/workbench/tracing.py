"""One forward pass as the calls of modules in it, and the stages of a network."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from workbench import counting, evaluating


@dataclass
class Call:
    """One call of a module in a forward pass.

    A layer is an operation that mixes in a tensor which does not come from the network's input, such
    as weights; a tensor's depth is the number of layers on the longest path to it.
    """

    name: str
    module: nn.Module
    depth: int  # of its input
    shape: tuple[int, ...] = ()  # of its output, without the batch
    parts: list["Call"] = field(default_factory=list)  # calls of its children, in order
    shortcut: bool = (
        False  # there is a sum, in it or a part, of tensors of different depth
    )
    branches: tuple[
        int, ...
    ] = ()  # channels of the parallel paths that it concatenates
    times: int = 1

    def __post_init__(self):
        self.modules = {self.module}

    @property
    def parameters(self) -> int:
        return sum(map(counting.parameters, self.modules))


class Trace(TorchFunctionMode):
    """Note the calls of modules, the depth of tensors, and where paths meet."""

    def __init__(self, model: nn.Module, x: Tensor):
        super().__init__()
        self.names = {
            module: name.rpartition(".")[2] for name, module in model.named_modules()
        }
        self.open, self.depths = [Call("", model, 0)], WeakTensorKeyDictionary({x: 0})

    def enter(self, module, inputs):
        depth = max([self.depths.get(t, 0) for t in tensors(inputs)], default=0)
        self.open.append(Call(self.names.get(module, ""), module, depth))

    def leave(self, module, inputs, output):
        call = self.open.pop()
        call.shape = tuple(tensors(output)[0].shape[1:])
        call.shortcut |= any(part.shortcut for part in call.parts)
        call.branches = call.branches or next(
            (p.branches for p in call.parts if p.branches), ()
        )
        self.open[-1].parts.append(call)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output, name = (
            function(*args, **(kwargs or {})),
            getattr(function, "__name__", ""),
        )
        inputs = tensors((args, kwargs))
        depths = [self.depths[t] for t in inputs if t in self.depths]
        if not depths or name.startswith("new_") or name.endswith("_like"):
            return output
        for t in tensors(output):
            self.depths[t] = max(depths) + (len(depths) < len(inputs))
        call = self.open[-1]
        if name in ("cat", "concat") and min(depths) > call.depth and len(depths) > 1:
            call.branches = tuple(t.shape[1] for t in inputs)
        elif name.strip("_") in ("add", "iadd", "radd", "cat", "concat"):
            call.shortcut |= len(set(depths)) > 1
        return output


def tensors(values) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]


def trace(model: nn.Module, x: Tensor) -> Call:
    """The call of the model on x in evaluation mode, with the calls in it; works on the meta device."""
    x = x.detach()  # an object of our own
    note = Trace(model, x)
    hooks = torch.nn.modules.module
    handles = [
        hooks.register_module_forward_pre_hook(note.enter),
        hooks.register_module_forward_hook(note.leave),
    ]
    try:
        with counting.unfused(), evaluating(model), torch.no_grad(), note:
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return note.open[0].parts[0]


def stages(model: nn.Module, x: Tensor) -> list[tuple[str, tuple[int, ...], int]]:
    """(name, output shape without the batch, parameters) of each child, from one forward pass."""
    return [(part.name, part.shape, part.parameters) for part in trace(model, x).parts]
