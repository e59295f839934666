# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What a framework does
#
# Derivatives, layers and graphs: each of them written small, and set beside PyTorch and Keras.
# The text to it is the [chapter](../chapters/frameworks.rst).

# %%
import ast
import dis
import linecache
import logging
import os
import platform
import re
import shutil
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

FOLDER = tempfile.TemporaryDirectory()
BACKEND = os.environ.setdefault("KERAS_BACKEND", "torch")
KERAS_HOME = os.environ.setdefault("KERAS_HOME", FOLDER.name)
KERAS_DEVICE = os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")
CACHE = os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", FOLDER.name)
WORKERS = os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # no CUDA

import keras
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch._dynamo
import torchvision
from functorch.compile import aot_function, make_boxed_func
from torch import nn
from torch._inductor.utils import run_and_get_code
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils import benchmark
from torch.utils.checkpoint import checkpoint
from torch.utils.data import ConcatDataset, random_split

from workbench import claim, device, record, seed, table
from workbench import checks, counting, diagrams, images, plots


# %% [markdown]
# ## A derivative, an array at a time
#
# An operator is a function of arrays, with one rule for each input: the gradient of the
# result, the result and the inputs give the gradient of that input.


# %% tags=["operator"]
def operator(forward: Callable, *rules: Callable) -> Callable:
    """A method of tensors, from a function of arrays and a rule for each input."""

    def apply(*inputs, **how):
        inputs = [x if isinstance(x, Tensor) else Tensor(x) for x in inputs]
        y = Tensor(forward(*[x.data for x in inputs], **how))
        if Tensor.recording and any(x.requires_grad for x in inputs):
            y.requires_grad = True
            y.parents = inputs
            y.rules = [partial(rule, **how) for rule in rules]
        return y

    return apply


# %% tags=["operators"]
def put_back(a: np.ndarray, index, shape: tuple) -> np.ndarray:
    """Zeros, with a added at an index; an entry named twice gets both."""
    y = np.zeros(shape)
    np.add.at(y, index, a)
    return y


def shares(a: "Tensor", y: "Tensor", axis) -> np.ndarray:
    """One at the largest value; values that are equal share it."""
    found = a.data == y.data
    return found / found.sum(axis, keepdims=True)


class Operators:
    """What can be done with tensors: forward with arrays, back with tensors."""

    __add__ = __radd__ = operator(np.add, lambda g, y, a, b: g, lambda g, y, a, b: g)
    __mul__ = __rmul__ = operator(
        np.multiply, lambda g, y, a, b: g * b, lambda g, y, a, b: g * a
    )
    __matmul__ = operator(
        np.matmul, lambda g, y, a, b: g @ b.mT, lambda g, y, a, b: a.mT @ g
    )
    __pow__ = operator(
        np.power,
        lambda g, y, a, n: g * n * a ** (n - 1),
        lambda g, y, a, n: g * y * a.log(),
    )
    exp = operator(np.exp, lambda g, y, a: g * y)
    log = operator(np.log, lambda g, y, a: g / a)
    tanh = operator(np.tanh, lambda g, y, a: g * (1 - y * y))
    relu = operator(lambda a: np.maximum(a, 0), lambda g, y, a: g * (a.data > 0))
    total = operator(
        lambda a, axis: a.sum(axis, keepdims=True),
        lambda g, y, a, axis: g * np.ones(a.shape),
    )
    largest = operator(
        lambda a, axis: a.max(axis, keepdims=True),
        lambda g, y, a, axis: g * shares(a, y, axis),
    )
    reshape = operator(np.reshape, lambda g, y, a, shape: g.reshape(shape=a.shape))
    transpose = operator(
        np.transpose, lambda g, y, a, axes: g.transpose(axes=np.argsort(axes))
    )
    take = operator(
        lambda a, index: a[index],
        lambda g, y, a, index: g.put(index=index, shape=a.shape),
    )
    mT = property(operator(lambda a: a.mT, lambda g, y, a: g.mT))
    put = operator(put_back, lambda g, y, a, index, shape: g.take(index=index))


# %% tags=["tensor"]
class Tensor(Operators):
    """An array that knows of which tensors an operator made it."""

    recording = True
    __array_ufunc__ = None  # an array leaves `array * tensor` to the tensor

    def __init__(self, data, requires_grad: bool = False):
        self.data = np.asarray(data, dtype=np.float64)
        self.shape = self.data.shape
        self.requires_grad = requires_grad
        self.grad = None
        self.parents = self.rules = ()

    def __sub__(self, other):
        return self + -1 * other

    def __rsub__(self, other):
        return other + -1 * self

    def __truediv__(self, other):
        return self * other**-1.0

    def __getitem__(self, index):
        return self.take(index=index)


# %% tags=["backward"]
def in_order(node: Tensor, done: dict) -> dict:
    """What needs a gradient, each tensor behind those that it was made of."""
    if node.requires_grad and node not in done:
        for parent in node.parents:
            in_order(parent, done)
        done[node] = True
    return done


def shrink(g: Tensor, shape: tuple) -> Tensor:
    """Sum over what broadcasting has repeated, so that g has this shape."""
    more = len(g.shape) - len(shape)
    wide = [i + more for i, n in enumerate(shape) if n == 1 < g.shape[i + more]]
    axes = (*range(more), *wide)
    return g.total(axis=axes).reshape(shape=shape) if axes else g


def backward(loss: Tensor, create_graph: bool = False):
    """Add the derivative of one number to `grad` of each leaf: the chain rule."""
    assert loss.data.size == 1, "backward starts from one number, such as a loss"
    found = {loss: Tensor(np.ones(loss.shape))}
    with recording(create_graph):
        for node in reversed(in_order(loss, {})):
            g = found.pop(node)
            if not node.parents:
                node.grad = g if node.grad is None else node.grad + g
            for parent, rule in zip(node.parents, node.rules):
                if parent.requires_grad:
                    part = shrink(rule(g, node, *node.parents), parent.shape)
                    found[parent] = found[parent] + part if parent in found else part


@contextmanager
def recording(on: bool):
    """Whether tensors made inside know of what they were made."""
    before = Tensor.recording
    Tensor.recording = on
    try:
        yield
    finally:
        Tensor.recording = before


# %% tags=["length"]
def cell_length(function: Callable) -> int:
    """Lines of code in the cell that defines a function: no text, no blank line."""
    code = function.__code__
    lines = linecache.getlines(code.co_filename)
    heads = [i for i, line in enumerate(lines) if line.startswith("# %%")]
    first = max([i for i in heads if i < code.co_firstlineno], default=0)
    last = min([i for i in heads if i >= code.co_firstlineno], default=len(lines))
    told = [line.strip() for line in lines[first:last]]
    return sum(not line.startswith(("#", '"')) for line in told if line)


# %% tags=["figure-values"]
a = Tensor(2.0, requires_grad=True)
b = Tensor(3.0, requires_grad=True)
loss = (a * b + a) ** 2
backward(loss)
a.grad.data.item(), b.grad.data.item()

# %% tags=["length-run"]
lengths = [cell_length(f) for f in (operator, shares, Tensor.__sub__, backward)]
claim(sum(lengths) <= 100, "reverse mode takes at most a hundred lines")
record("lines", sum(lengths))
claim(loss.data.item() == 64, "the value of the figure")
claim((a.grad.data.item(), b.grad.data.item()) == (64, 32), "its gradients")

# %% tags=["idea-figure"] alt="A graph from left to right. a = 2 and b = 3 lead to c = ab = 6; c and a lead to d = c + a = 8; d leads to the loss, d squared = 64. Beside each node stands its gradient: 1 at the loss, 16 at d, 16 at c, 32 at b, and at a 48 + 16 = 64, the sum over its two arrows."
axes = diagrams.sheet(2.1)
nodes = {
    "a": diagrams.Node(0.6, 0.65, "a = 2", width=0.8),
    "b": diagrams.Node(0.6, 1.5, "b = 3", width=0.8),
    "c": diagrams.Node(1.9, 1.5, "c = ab = 6", width=1.1),
    "d": diagrams.Node(3.1, 0.65, "d = c + a\n= 8", width=1.0),
    "L": diagrams.Node(4.4, 0.65, "L = d²\n= 64", width=0.9),
}
gradients = {"a": "48 + 16 = 64", "b": "32", "c": "16", "d": "16", "L": "1"}
for name, text in gradients.items():
    node = nodes[name]
    y = node.y + (-0.42 if node.y < 1 else 0.42)
    nodes[f"g{name}"] = diagrams.Node(node.x, y, text, colour=plots.COLOURS[1])
diagrams.draw(axes, nodes, [("a", "c"), ("b", "c"), ("a", "d"), ("c", "d"), ("d", "L")])

# %% [markdown]
# ## Random expressions
#
# The same expression in our operators and in torch's, put together at random.


# %% tags=["random-expression"]
def total(x, axis=None):
    """The sum of a tensor of ours or of torch's; the axis stays, of length 1."""
    return x.total(axis=axis) if isinstance(x, Tensor) else x.sum(axis, keepdim=True)


def largest(x):
    return x.largest(axis=-1) if isinstance(x, Tensor) else x.amax(-1, keepdim=True)


FULL = (3, 4)
LEAVES = (FULL, (4,), (3, 1), (1, 4), (1,))  # what broadcasting can make (3, 4) of
STEPS = (  # a has the shape (3, 4) in the last four
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: a.tanh() * b,
    lambda a, b: a / (b * b + 1),
    lambda a, b: a.tanh().exp() - 2,
    lambda a, b: (a * a + 1).log(),
    lambda a, b: a.relu() * b,
    lambda a, b: (b * b + 1) ** a.tanh(),
    lambda a, b: largest(a) - b,
    lambda a, b: total(a, -1) * b.tanh(),
    lambda a, b: (a @ a.mT).tanh() @ a,
    lambda a, b: a[[0, 2, 0]] * b,
    lambda a, b: a.mT.reshape(shape=FULL) + b,
    lambda a, b: 2 - a[1, 1:3][[0, 1, 1, 0]],
)


def expression(rng: np.random.Generator, steps: int = 8) -> list[tuple]:
    """Steps with the places of their operands, which come from all that is there."""
    plan = []
    for step in range(steps):
        places = rng.integers(0, len(LEAVES) + step, 2)
        plan.append((rng.integers(len(STEPS)), *places))
    return plan


def evaluated(plan: list[tuple], leaves: list):
    """One number, which all leaves and all steps enter."""
    values = [*leaves]
    for number, i, j in plan:
        wide = 0 * leaves[0] if number >= len(STEPS) - 4 else 0
        values.append(STEPS[number](values[i] + wide, values[j]))
    return sum(total(value.tanh()).reshape(shape=(1,)) for value in values)


def both(plan: list[tuple], arrays: list[np.ndarray]) -> dict[str, float]:
    """Relative differences of ours and torch's: value, gradients, second gradients."""
    ours = [Tensor(x, requires_grad=True) for x in arrays]
    theirs = [torch.tensor(x, requires_grad=True) for x in arrays]
    y = evaluated(plan, ours)
    z = evaluated(plan, theirs)
    backward(y, create_graph=True)
    first = [x.grad for x in ours]
    expected = torch.autograd.grad(z, theirs, create_graph=True)
    for x in ours:
        x.grad = None
    squares = [total(g * g).reshape(shape=(1,)) for g in first]
    backward(sum(squares))
    sum(g.square().sum() for g in expected).backward()
    return {
        "value": apart([y], [z]),
        "gradient": apart(first, expected),
        "gradient of its square": apart(
            [x.grad for x in ours], [x.grad for x in theirs]
        ),
    }


def apart(ours: list[Tensor], theirs: list[torch.Tensor]) -> float:
    """The largest difference, relative to the largest of torch's values."""
    ours = [torch.as_tensor(x.data).flatten() for x in ours]
    theirs = [x.detach().flatten() for x in theirs]
    return checks.deviation(torch.cat(ours), torch.cat(theirs))


# %% tags=["random-run"]
COUNT = 100
SEEDS = (0, 1, 2)
random_gaps = []
for number in SEEDS:
    rng = np.random.default_rng(number)
    for _ in range(COUNT):
        leaves = [rng.normal(size=shape) for shape in LEAVES]
        random_gaps.append(both(expression(rng), leaves))
largest_gaps = {name: max(gap[name] for gap in random_gaps) for name in random_gaps[0]}

# %% tags=["random-table"]
claim(largest_gaps["gradient"] < 1e-12, "the gradients of random expressions are equal")
claim(largest_gaps["gradient of its square"] < 1e-10, "second derivatives are, too")
record("expressions", len(random_gaps))
record("kinds", len(STEPS))
rows = [(name, f"{gap:.0e}") for name, gap in largest_gaps.items()]
table(rows, ("of random expressions", "largest difference, relative"))

# %% [markdown]
# ## Layers


# %% tags=["layer"]
class Layer:
    """Has tensors and layers as attributes; makes them when it sees the first shape."""

    built = False
    training = True

    def __call__(self, x: Tensor) -> Tensor:
        if not self.built:
            self.build(x.shape)
            self.built = True
        return self.call(x)

    def build(self, shape: tuple):
        """A layer without parameters has nothing to make."""

    def parameters(self, prefix: str = "") -> dict[str, Tensor]:
        found = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                found[prefix + name] = value
            if isinstance(value, Layer):
                found |= value.parameters(f"{prefix}{name}.")
        return found

    def state_dict(self) -> dict[str, np.ndarray]:
        return {name: value.data.copy() for name, value in self.parameters().items()}

    def load_state_dict(self, state: dict):
        own = self.parameters()
        if odd := own.keys() ^ state.keys():
            raise KeyError(f"only in the layer or only in the state: {sorted(odd)}")
        for name, value in state.items():
            if own[name].shape != tuple(value.shape):
                raise ValueError(f"{name}: {own[name].shape} against {value.shape}")
            own[name].data = np.array(value, dtype=np.float64)

    def train(self, mode: bool = True):
        self.training = mode
        for value in vars(self).values():
            if isinstance(value, Layer):
                value.train(mode)


def parameter(*shape: int) -> Tensor:
    """Random numbers, small where a sum has many terms."""
    bound = shape[-1] ** -0.5
    return Tensor(np.random.uniform(-bound, bound, shape), requires_grad=True)


class Dense(Layer):
    """(..., n) -> (..., units)."""

    def __init__(self, units: int):
        self.units = units

    def build(self, shape: tuple):
        self.weight = parameter(self.units, shape[-1])
        self.bias = parameter(self.units)

    def call(self, x: Tensor) -> Tensor:
        return x @ self.weight.mT + self.bias


# %% tags=["networks"]
def windows_of(a: np.ndarray, k: int) -> np.ndarray:
    """All windows of k x k pixels: (B, C, H, W) -> (B, C, H', W', k, k)."""
    return np.lib.stride_tricks.sliding_window_view(a, (k, k), axis=(2, 3))


def laid(a: np.ndarray, k: int, shape: tuple) -> np.ndarray:
    """Windows laid onto an image of zeros, sums where they overlap."""
    y = np.zeros(shape)
    H, W = a.shape[2:4]
    for i in range(k):
        for j in range(k):
            y[:, :, i : i + H, j : j + W] += a[..., i, j]
    return y


class Windows(Operators):
    """Two more operators, each the other's way back."""

    cut = operator(windows_of, lambda g, y, a, k: Windows.lay(g, k=k, shape=a.shape))
    lay = operator(laid, lambda g, y, a, k, shape: Windows.cut(g, k=k))


class Convolution(Layer):
    """(B, C, H, W) -> (B, units, H', W')."""

    def __init__(self, units: int, k: int, padding: int = 0):
        self.units = units
        self.k = k
        self.padding = padding

    def build(self, shape: tuple):
        self.weight = parameter(self.units, shape[1], self.k, self.k)
        self.bias = parameter(self.units)

    def call(self, x: Tensor) -> Tensor:
        x = Windows.cut(pad(x, self.padding), k=self.k)
        B, C, H, W, k, _ = x.shape
        rows = x.transpose(axes=(0, 2, 3, 1, 4, 5)).reshape(shape=(B, H, W, C * k * k))
        kernels = self.weight.reshape(shape=(self.units, C * k * k))
        return (rows @ kernels.mT + self.bias).transpose(axes=(0, 3, 1, 2))


def pad(x: Tensor, n: int) -> Tensor:
    """n zeros on each side of H and W."""
    B, C, H, W = x.shape
    inside = (slice(None), slice(None), slice(n, n + H), slice(n, n + W))
    return x.put(index=inside, shape=(B, C, H + 2 * n, W + 2 * n))


def pool(x: Tensor) -> Tensor:
    """Means of 2x2: (B, C, H, W) -> (B, C, H / 2, W / 2)."""
    B, C, H, W = x.shape
    halves = x.reshape(shape=(B, C, H // 2, 2, W // 2, 2))
    return (halves.total(axis=(3, 5)) / 4).reshape(shape=(B, C, H // 2, W // 2))


def softmax(x: Tensor) -> Tensor:
    powers = (x - x.largest(axis=-1)).exp()
    return powers / powers.total(axis=-1)


class Attention(Layer):
    """Self-attention with h heads: (B, T, D) -> (B, T, D)."""

    def __init__(self, h: int):
        self.h = h

    def build(self, shape: tuple):
        D = shape[-1]
        self.in_proj_weight = parameter(3 * D, D)
        self.in_proj_bias = parameter(3 * D)
        self.out_proj = Dense(D)

    def call(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        d = D // self.h
        x = x @ self.in_proj_weight.mT + self.in_proj_bias  # (B, T, 3 D)
        x = x.reshape(shape=(B, T, 3, self.h, d))
        x = x.transpose(axes=(2, 0, 3, 1, 4))  # (3, B, h, T, d)
        share = softmax(x[0] @ x[1].mT * d**-0.5)  # (B, h, T, T)
        y = (share @ x[2]).transpose(axes=(0, 2, 1, 3))  # (B, T, h, d)
        return self.out_proj(y.reshape(shape=(B, T, D)))


class Perceptron(Layer):
    def __init__(self):
        self.hidden = Dense(75)
        self.output = Dense(10)

    def call(self, x: Tensor) -> Tensor:
        x = x.reshape(shape=(-1, 784))
        return self.output(self.hidden(x).tanh())


class LeNet(Layer):
    def __init__(self):
        self.C1 = Convolution(6, 5, padding=2)
        self.C3 = Convolution(16, 5)
        self.C5 = Dense(120)
        self.F6 = Dense(84)
        self.output = Dense(10)

    def call(self, x: Tensor) -> Tensor:
        x = pool(self.C1(x).tanh())  # (B, 6, 14, 14)
        x = pool(self.C3(x).tanh())  # (B, 16, 5, 5)
        x = self.C5(x.reshape(shape=(-1, 400))).tanh()
        return self.output(self.F6(x).tanh())


class Reader(Layer):
    """Reads a digit as 28 rows."""

    def __init__(self):
        self.attention = Attention(4)
        self.output = Dense(10)

    def call(self, x: Tensor) -> Tensor:
        x = self.attention(x.reshape(shape=(-1, 28, 28)))
        return self.output((x.total(axis=1) / 28).reshape(shape=(-1, 28)))


# %% tags=["twins"]
def torch_perceptron() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            flat=nn.Flatten(),
            hidden=nn.Linear(784, 75),
            tanh=nn.Tanh(),
            output=nn.Linear(75, 10),
        )
    )


def torch_lenet() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            C1=nn.Conv2d(1, 6, 5, padding=2),
            tanh1=nn.Tanh(),
            S2=nn.AvgPool2d(2),
            C3=nn.Conv2d(6, 16, 5),
            tanh3=nn.Tanh(),
            S4=nn.AvgPool2d(2),
            flat=nn.Flatten(),
            C5=nn.Linear(400, 120),
            tanh5=nn.Tanh(),
            F6=nn.Linear(120, 84),
            tanh6=nn.Tanh(),
            output=nn.Linear(84, 10),
        )
    )


class TorchReader(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(28, 4, batch_first=True)
        self.output = nn.Linear(28, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.squeeze(1)
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.output(y.mean(1))


PAIRS = {
    "perceptron": (Perceptron, torch_perceptron),
    "LeNet": (LeNet, torch_lenet),
    "attention": (Reader, TorchReader),
}


def twins(name: str, x: np.ndarray) -> tuple[Layer, nn.Module]:
    """The network in our layers and in torch's, in float64, with equal weights."""
    ours, theirs = (make() for make in PAIRS[name])
    theirs = theirs.double()
    ours(Tensor(x))  # builds it
    state = theirs.state_dict()
    ours.load_state_dict({name: value.numpy() for name, value in state.items()})
    return ours, theirs


def cross_entropy(logits: Tensor, y: np.ndarray) -> Tensor:
    logits = logits - logits.largest(axis=-1)
    logs = logits - logits.exp().total(axis=-1).log()
    return logs[np.arange(len(y)), y].total(axis=None) / -len(y)


def our_steps(network: Layer, x, y, steps: int, rate: float = 0.1) -> list[float]:
    """Losses of gradient descent."""
    losses = []
    for _ in range(steps):
        for value in network.parameters().values():
            value.grad = None
        loss = cross_entropy(network(Tensor(x)), y)
        backward(loss)
        losses.append(loss.data.item())
        for value in network.parameters().values():
            value.data = value.data - rate * value.grad.data
    return losses


def torch_steps(network: nn.Module, x, y, steps: int) -> list[float]:
    x = torch.as_tensor(x)
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = F.cross_entropy(network(x), torch.as_tensor(y))
        loss.backward()
        losses.append(loss.item())
        optimiser.step()
    return losses


# %% [markdown]
# ## The headline: the same gradient


# %% tags=["gaps"]
KINDS = {
    "ours": "ours and torch",
    "difference": "central\ndifference",
    "float32": "torch, float32\nand float64",
}


def torch_gradients(network: nn.Module, x: np.ndarray, y: np.ndarray, dtype) -> dict:
    """Name and gradient of each parameter, computed in a type of numbers."""
    network.zero_grad()  # before `to`, which converts gradients, too
    network = network.to(dtype)
    logits = network(torch.as_tensor(x, dtype=dtype))
    F.cross_entropy(logits, torch.as_tensor(y)).backward()
    return {name: p.grad.double().clone() for name, p in network.named_parameters()}


def slope(network: Layer, name: str, x: np.ndarray, y: np.ndarray) -> float:
    """Our gradient along a random direction against a central difference, relative."""
    p = network.parameters()[name]
    at = p.data
    step = np.random.normal(size=p.shape)
    step = step / np.linalg.norm(step)
    losses = []
    for h in (1e-5, -1e-5):
        p.data = at + h * step
        with recording(False):
            losses.append(cross_entropy(network(Tensor(x)), y).data.item())
    p.data = at
    g = p.grad.data
    return abs((losses[0] - losses[1]) / 2e-5 - (g * step).sum()) / np.linalg.norm(g)


def gaps(name: str, x: np.ndarray, y: np.ndarray) -> dict[str, list[float]]:
    """For each parameter of a network, how far three pairs of gradients are apart."""
    ours, theirs = twins(name, x)
    our_steps(ours, x, y, 1, rate=0)
    exact = torch_gradients(theirs, x, y, torch.float64)
    single = torch_gradients(theirs, x, y, torch.float32)
    found = {"ours": [], "float32": [], "difference": []}
    for label, p in ours.parameters().items():
        found["ours"].append(apart([p.grad], [exact[label]]))
        found["float32"].append(checks.deviation(single[label], exact[label]))
        found["difference"].append(slope(ours, label, x, y))
    return found


# %% tags=["headline-run"]
data = images.digits()
pixels = data.train[0][:16].double().numpy()
labels = data.train[1][:16].numpy()
measured = {}
losses = {}
for number in SEEDS:
    for name in PAIRS:
        seed(number)
        measured[name, number] = gaps(name, pixels, labels)
        ours, theirs = twins(name, pixels)
        losses[name, number] = [
            our_steps(ours, pixels, labels, 10),
            torch_steps(theirs, pixels, labels, 10),
        ]

# %% tags=["headline-figure"] alt="Three rows, perceptron, LeNet and attention; in each, dots in three colours on a logarithmic axis of the relative difference. By their medians, the dots of our gradient against torch's are furthest left, near 1e-15, those of our gradient against a central difference follow, and those of torch in float32 against float64 are furthest right."
_, axes = plt.subplots(figsize=(5, 3.2))
for row, name in enumerate(PAIRS):
    for place, (kind, colour) in enumerate(zip(KINDS, plots.COLOURS)):
        dots = [max(gap, 1e-17) for n in SEEDS for gap in measured[name, n][kind]]
        height = [row + 0.2 * (place - 1)] * len(dots)
        axes.plot(dots, height, "o", color=colour, markersize=4, alpha=0.6)
for kind, x, colour in zip(KINDS.values(), (8e-16, 3e-11, 6e-7), plots.COLOURS):
    axes.text(x, -1.0, kind, color=colour, ha="center", va="center", fontsize=11)
axes.set(xscale="log", xlabel="relative difference, a dot for each parameter")
axes.set(yticks=range(3), yticklabels=PAIRS, ylim=(2.5, -1.4), xlim=(1e-18, 1e-3))
axes.set_axisbelow(True)

# %% tags=["headline-claims"]
worst = {}
for name in PAIRS:
    each = [measured[name, number] for number in SEEDS]
    joined = {kind: sum((found[kind] for found in each), []) for kind in KINDS}
    worst[name] = max(joined["ours"])
    claim(worst[name] < 1e-12, f"{name}: our gradient is torch's")
    apart_least = min(joined["float32"])
    claim(100 * worst[name] < apart_least, f"{name}: float32 is further from float64")
    claim(max(joined["difference"]) < 1e-6, f"{name}: a central difference agrees")
    middle = [statistics.median(joined[kind]) for kind in KINDS]
    claim(sorted(middle) == middle, f"{name}: the medians from left to right")
    claim(1e-17 < middle[0] < 1e-13, f"{name}: the left ones")

# %% tags=["losses-table"]
rows = []
for name in PAIRS:
    pairs = [losses[name, number] for number in SEEDS]
    gap = max(abs(p - q) for ours, theirs in pairs for p, q in zip(ours, theirs))
    claim(gap < 1e-10, f"{name}: ten losses are equal")
    count = counting.parameters(PAIRS[name][1]())
    ends = f"{pairs[0][0][0]:.3f} to {pairs[0][0][-1]:.3f}"
    rows.append((name, count, f"{worst[name]:.0e}", ends, f"{gap:.0e}"))
heads = ("network", "parameters", "gradients apart", "losses, seed 0", "losses apart")
table(rows, heads)


# %% tags=["differences"]
def second_time(x, back: Callable):
    """Backward twice through one graph."""
    y = x * x
    back(y)
    back(y)


def changed(x, back: Callable):
    """A value that backward needs, changed after it was used."""
    y = x * x
    z = y * y
    if isinstance(y, Tensor):
        y.data = y.data + 1
    else:
        y.detach().add_(1)  # the same numbers
    back(z)


def long_chain(x, back: Callable):
    """Five thousand operators, one behind the other."""
    for _ in range(5000):
        x = x + 1
    back(x)


def outcome(case: Callable, make: Callable, back: Callable) -> str:
    """The gradient at 3 as text, or what was raised."""
    x = make(3.0, requires_grad=True)
    try:
        case(x, back)
        return f"{float(x.grad.data):g}"
    except RuntimeError as error:
        return type(error).__name__


FRAMEWORKS = ((Tensor, backward), (torch.tensor, torch.Tensor.backward))

# %% tags=["differences-table"]
rows = []
for words, case in (
    ("backward twice, x * x at 3", second_time),
    ("changed in between, (x * x)² at 3", changed),
    ("5,000 additions", long_chain),
):
    rows.append((words, *[outcome(case, *framework) for framework in FRAMEWORKS]))
table(rows, ("case", "ours", "torch"))

# %% tags=["differences-claims"]
claim(
    [row[1:] for row in rows[:2]] == [("12", "RuntimeError"), ("120", "RuntimeError")],
    "torch refuses, ours goes on",
)
claim(rows[2][1:] == ("RecursionError", "1"), "a long chain ends our recursion")
claim(4 * 3**3 == 108, "the derivative of (x * x)² at 3")
for lists, make in ((Layer(), Dense), (nn.Module(), nn.LazyLinear)):
    lists.layers = [make(2)]
    claim(not [*lists.parameters()], "no framework finds layers in a plain list")

# %% [markdown]
# ## The life of a layer
#
# The same layer in ours, in Keras and as a lazy module of torch; each notes what is called.


# %% tags=["lives"]
NOTES = []


class OurNoted(Dense):
    """Our layer, which notes its calls."""

    def __init__(self, units: int):
        NOTES.append("made")
        super().__init__(units)

    def build(self, shape: tuple):
        NOTES.append(f"built for {tuple(shape)}")
        super().build(shape)

    def call(self, x: Tensor) -> Tensor:
        NOTES.append(f"run on {tuple(x.shape)}")
        return super().call(x)


class KerasNoted(keras.layers.Layer):
    """The same in Keras."""

    def __init__(self, units: int, **how):
        NOTES.append("made")
        super().__init__(**how)
        self.units = units

    def build(self, shape: tuple):
        NOTES.append(f"built for {tuple(shape)}")
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")
        self.bias = self.add_weight(shape=(self.units,), name="bias")

    def call(self, x):
        NOTES.append(f"run on {tuple(x.shape)}")
        return x @ self.kernel + self.bias

    def get_config(self) -> dict:
        return super().get_config() | {"units": self.units}


class LazyNoted(nn.modules.lazy.LazyModuleMixin, nn.Module):
    """The same in torch, whose parameters have no shape at first."""

    def __init__(self, units: int):
        NOTES.append("made")
        super().__init__()
        self.units = units
        self.weight = nn.UninitializedParameter()
        self.bias = nn.UninitializedParameter()

    def initialize_parameters(self, x: torch.Tensor):
        if self.has_uninitialized_params():
            NOTES.append(f"built for {tuple(x.shape)}")
            self.weight.materialize((self.units, x.shape[-1]))
            self.bias.materialize((self.units,))
            nn.init.uniform_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        NOTES.append(f"run on {tuple(x.shape)}")
        return F.linear(x, self.weight, self.bias)


# %% tags=["lives-run"]
ones = np.ones((4, 3), dtype="float32")
lives = {}
for name, make, x in (
    ("ours", OurNoted, Tensor(ones)),
    ("Keras", KerasNoted, ones),
    ("torch, lazy", LazyNoted, torch.tensor(ones)),
):
    NOTES.clear()
    layer = make(2)
    layer(x)
    layer(x)
    lives[name] = [*NOTES]

# %% tags=["lives-table"]
claim(lives["ours"] == lives["Keras"] == lives["torch, lazy"], "three equal lives")
table(zip(*lives.values()), tuple(lives))


# %% tags=["keras-rows"]
def keras_rows() -> list[tuple[str, str, str, bool]]:
    """What Keras does around `call`, what torch has for it, and what was seen."""
    x = torch.ones(4, 3)
    rows = []
    layer = KerasNoted(2)
    layer(x)
    shapes = {weight.name: tuple(weight.shape) for weight in layer.weights}
    seen = shapes == {"kernel": (3, 2), "bias": (2,)}
    rows.append(
        ("add_weight in build", "nn.Parameter as attribute", "two weights", seen)
    )
    layer.trainable = False
    seen = len(layer.trainable_weights) == 0 and len(layer.weights) == 2
    rows.append(("trainable = False", "requires_grad_(False)", "none to train", seen))
    copy = KerasNoted.from_config(layer.get_config())
    seen = copy.units == 2 and not copy.built
    rows.append(("get_config, from_config", "none", "a copy, not built", seen))
    layer = KerasNoted(2, dtype="mixed_bfloat16")
    y = layer(x)
    seen = y.dtype == torch.bfloat16 and layer.kernel.dtype == "float32"
    rows.append(('dtype="mixed_bfloat16"', "torch.autocast", "bfloat16 inside", seen))
    embedding = keras.layers.Embedding(5, 3, mask_zero=True)
    seen = embedding(torch.tensor([[1, 0]]))._keras_mask.tolist() == [[True, False]]
    rows.append(("a mask that travels along", "an argument", "on the output", seen))
    NOTES.clear()
    layer = KerasNoted(2)
    y = layer(keras.Input((3,)))
    seen = tuple(y.shape) == (None, 2) and NOTES[1] == "built for (None, 3)"
    rows.append(("a symbolic input", "the meta device", "shape (None, 2)", seen))
    seen = len(list(layer.parameters())) == 2 and isinstance(layer, nn.Module)
    rows.append(("a layer, over torch", "nn.Module", "is one itself", seen))
    return rows


# %% tags=["keras-table"]
rows = keras_rows()
claim(all(seen for *_, seen in rows), "Keras does what the table says")
table([row[:3] for row in rows], ("Keras", "PyTorch", "checked here"))
record("version.keras", keras.__version__)
record("symbolic", " and ".join(NOTES[2:]))

# %% [markdown]
# ## A front end
#
# A proxy stands for a value that is not there yet. What is done with it becomes a list.

# %% tags=["proxy"]
ARITHMETIC = {
    "add": lambda a, b: a + b,
    "multiply": lambda a, b: a * b,
    "greater": lambda a, b: a > b,
    "select": lambda c, a, b: np.where(c, a, b),
}


class Proxy:
    """Stands for the value of a line of a graph, and writes the next lines."""

    __add__ = __radd__ = lambda a, b: a.note("add", a, b)
    __mul__ = __rmul__ = lambda a, b: a.note("multiply", a, b)

    def __init__(self, lines: list, place: int):
        self.lines = lines
        self.place = place

    def write(self, *line) -> "Proxy":
        self.lines.append(line)
        return Proxy(self.lines, len(self.lines) - 1)

    def note(self, name: str, *operands) -> "Proxy":
        places = []
        for x in operands:
            x = x if isinstance(x, Proxy) else self.write("constant", x)
            places.append(x.place)
        return self.write(name, *places)

    def __gt__(self, other) -> "Proxy":
        return self.note("greater", self, other)

    def __bool__(self):
        raise TypeError("a traced value is neither true nor false: use select")


def trace(function: Callable, inputs: int) -> list[tuple]:
    """The lines that a function writes when it is run on proxies."""
    lines = [("input", i) for i in range(inputs)]
    result = function(*[Proxy(lines, i) for i in range(inputs)])
    return [*lines, ("output", result.place)]


def run(lines: list[tuple], *inputs):
    """Replay a graph."""
    values = []
    for name, *operands in lines:
        if name in ARITHMETIC:
            values.append(ARITHMETIC[name](*[values[i] for i in operands]))
        else:
            kinds = {"input": inputs, "output": values}
            values.append(kinds[name][operands[0]] if name in kinds else operands[0])
    return values[-1]


# %% tags=["passes"]
def rewritten(lines: list[tuple], change: Callable) -> list[tuple]:
    """Copy lines; `change` gives another line, or the place of one that is there."""
    done = []
    places = []
    for name, *operands in lines:
        if name in ARITHMETIC or name == "output":
            operands = [places[i] for i in operands]
        new = change((name, *operands), done)
        if isinstance(new, tuple):
            done.append(new)
            new = len(done) - 1
        places.append(new)
    return done


def fold(line: tuple, done: list) -> tuple:
    """Compute at once what depends on constants alone."""
    name, *operands = line
    if name in ARITHMETIC and all(done[i][0] == "constant" for i in operands):
        return ("constant", ARITHMETIC[name](*[done[i][1] for i in operands]))
    return line


def reuse(line: tuple, done: list) -> tuple | int:
    """A line that was there before is not computed again."""
    return done.index(line) if line in done else line


def without_dead(lines: list[tuple]) -> list[tuple]:
    """Leave out what the output does not need; inputs stay."""
    needed = {len(lines) - 1}
    for i in reversed(range(len(lines))):
        name, *operands = lines[i]
        if i in needed and name in ARITHMETIC or name == "output":
            needed |= {*operands}
    keep = [i for i, line in enumerate(lines) if i in needed or line[0] == "input"]
    place = {old: new for new, old in enumerate(keep)}
    done = []
    for name, *operands in [lines[i] for i in keep]:
        if name in ARITHMETIC or name == "output":
            operands = [place[i] for i in operands]
        done.append((name, *operands))
    return done


# %% tags=["example"]
def example(x, w):
    scale = w * w + 1
    x * 7  # nobody asks for it
    return (x + scale) * (x + scale) + w


# %% tags=["passes-run"]
traced = trace(example, 2)
known = [("constant", 2.0) if line == ("input", 1) else line for line in traced]
folded = rewritten(known, fold)
shared = rewritten(folded, reuse)
stages = {
    "traced": traced,
    "w is 2": known,
    "constants folded": folded,
    "repeated lines shared": shared,
    "dead lines gone": without_dead(shared),
}

# %% tags=["passes-table"]
rows = []
for name, lines in stages.items():
    for x in (-1.5, 0.25, 3.0):
        claim(run(lines, x, 2.0) == example(x, 2.0), f"{name}: equal outputs")
    rows.append((name, sum(line[0] in ARITHMETIC for line in lines), len(lines)))
claim([row[1] for row in rows] == [7, 7, 5, 4, 3], "sums and products, pass by pass")
table(rows, ("graph", "sums and products", "lines"))

# %% [markdown]
# ## One function, stage by stage


# %% tags=["staged-function"]
def staged(x):
    y = F.silu(x) * 2 + 1
    return torch.relu(y - x).square()


# %% tags=["stage-tools"]
class Staged(nn.Module):
    """The same as a module, for export."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return staged(x)


class Keep:
    """A compiler that compiles nothing: it keeps each graph that it is given."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph: torch.fx.GraphModule, inputs) -> Callable:
        self.graphs.append(graph)
        return graph.forward


def joint(forward: Keep, back: Keep) -> Callable:
    """`staged` as two graphs, which AOTAutograd makes of one."""
    boxed = [
        lambda *given, keep=keep: make_boxed_func(keep(*given))
        for keep in (forward, back)
    ]
    return aot_function(staged, *boxed)


def called(graph: torch.fx.GraphModule) -> list[str]:
    """Names of what a graph calls, in order."""
    nodes = [node for node in graph.graph.nodes if node.op.startswith("call")]
    names = [getattr(node.target, "__name__", str(node.target)) for node in nodes]
    return [name.split(".")[0] for name in names]


def compiled(function: Callable, x: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Output and C++ of Inductor, written for one number at a time."""
    torch._dynamo.reset()
    plain = torch.compile(function, options={"cpp.simdlen": 1})
    y, sources = run_and_get_code(plain, x)
    return y, kernel_of(sources[0])


def kernel_of(source: str) -> str:
    """The C++ within the Python that Inductor writes."""
    found = re.search(r"r'''(.*?)'''", source, re.DOTALL)
    return found[1] if found else ""


def loop_of(source: str) -> str:
    """The loop of a kernel, without the casts of its indices."""
    found = re.search(r"for\(.*= tmp[^;]*;", source, re.DOTALL)
    if not found:
        return "no loop: no C++ compiler here, or another form of code"
    body = re.sub(r"static_cast<int64_t>\((\w+?)L?\)", r"\1", found[0])
    lines = [line.strip() for line in body.splitlines() if line.strip(" {}")]
    return "\n".join([lines[0], *["    " + line for line in lines[1:]]])


# %% tags=["stages-run"]
x = torch.linspace(-3, 3, 1000)
expected = staged(x)
dynamo = Keep()
outputs = {"Dynamo": torch.compile(staged, backend=dynamo)(x)}
exported = torch.export.export(Staged(), (x,))
outputs["export"] = exported.module()(x)
core = exported.run_decompositions()
outputs["core operators"] = core.module()(x)
forward = Keep()
back = Keep()
leaf = x.clone().requires_grad_()
outputs["forward, with gradients"] = joint(forward, back)(leaf)
outputs["forward, with gradients"].sum().backward()

# %% tags=["inductor-run"]
source = ""
if shutil.which(os.environ.get("CXX", "g++")):
    outputs["C++"], source = compiled(staged, x)

# %% tags=["stages-claims"]
for name, y in outputs.items():
    claim(checks.deviation(y, expected) < 1e-6, f"{name}: equal outputs")
by_hand = torch.autograd.grad(staged(leaf).sum(), leaf)[0]
gap = checks.deviation(leaf.grad, by_hand)
claim(gap < 1e-6, "the backward graph: equal gradients")
loops = source.count("for(")
record("loops", "one loop" if loops == 1 else f"{loops} loops")
record("version.torch", torch.__version__.split("+")[0])
record("version.python", platform.python_version())

# %% tags=["stages-table"]
graphs = {
    "Dynamo": dynamo.graphs[0],
    "export": exported.graph_module,
    "core operators": core.graph_module,
    "forward, with gradients": forward.graphs[0],
    "backward": back.graphs[0],
}
rows = [("Python", "bytecode", len([*dis.get_instructions(staged)]))]
for name, graph in graphs.items():
    rows.append((name, ", ".join(called(graph)), len(called(graph))))
table([*rows, ("C++", "loops", loops)], ("stage", "what it calls", "count"))

# %% tags=["loop"]
print(loop_of(source))


# %% tags=["guards"]
def branches(x):
    if x.sum() > 0:
        return x * 2
    return x - 1


def repeats(x, n):
    for _ in range(n):
        x = x * 2
    return x


def refused(front: Callable, error: type) -> bool:
    """Whether a front end that traces gives up at the `if`."""
    try:
        front(branches)
    except error:
        return True
    return False


def graphs_after(function: Callable, *calls: tuple) -> list[int]:
    """How many graphs Dynamo has made after each of several calls."""
    torch._dynamo.reset()
    keep = Keep()
    watched = torch.compile(function, backend=keep)
    counts = []
    for inputs in calls:
        claim(torch.equal(watched(*inputs), function(*inputs)), "equal outputs")
        counts.append(len(keep.graphs))
    return counts


# %% tags=["guards-table"]
calls_of = {
    "6, 5 and 4 numbers": (staged, (x[:6],), (x[:5],), (x[:4],)),
    "float32, float64, float32": (staged, (x,), (x.double(),), (x,)),
    "a loop run 2, 3 and 2 times": (repeats, (x, 2), (x, 3), (x, 2)),
    "if: positive, positive, negative": (branches, (x + 1,), (x + 2,), (x - 9,)),
}
rows = []
for name, (function, *calls) in calls_of.items():
    rows.append((name, ", ".join(map(str, graphs_after(function, *calls)))))
for front, error in (
    (torch.fx.symbolic_trace, torch.fx.proxy.TraceError),
    (lambda f: trace(lambda x: 1 if x > 0 else 2, 1), TypeError),
):
    claim(refused(front, error), "a trace cannot follow an if")
table(rows, ("three calls", "graphs after each"))

# %% [markdown]
# ## Timing as torchbench does


# %% tags=["bench"]
class Bench:
    """A network and an input from a seed: a step of evaluation, one of training."""

    def __init__(self, make: Callable, *shape: int):
        seed(0)
        self.network = make().to(device)
        self.x = torch.rand(shape, device=device)
        self.optimiser = torch.optim.SGD(self.network.parameters(), 0.01)

    def eval(self) -> torch.Tensor:
        with torch.no_grad():
            return self.network.eval()(self.x)

    def train(self):
        self.optimiser.zero_grad()
        self.network.train()(self.x).square().mean().backward()
        self.optimiser.step()


def wait():
    """Python runs ahead of a GPU; a number can be read when all before it is done."""
    torch.zeros((), device=device).item()


def latencies(step: Callable, warm: int = 10, count: int = 15) -> list[float]:
    """Seconds of single steps, after some that warm up."""
    for _ in range(warm):
        step()
    taken = []
    for _ in range(count):
        wait()
        start = time.perf_counter()
        step()
        wait()
        taken.append(time.perf_counter() - start)
    return taken


def spread_of(taken: list[float]) -> float:
    """The distance of the quartiles, relative to the median."""
    low, middle, high = statistics.quantiles(taken, n=4)
    return (high - low) / middle


BENCHES = {
    "perceptron": (torch_perceptron, 8, 1, 28, 28),
    "LeNet": (torch_lenet, 8, 1, 28, 28),
    "attention": (TorchReader, 8, 1, 28, 28),
    "ShuffleNet V2": (torchvision.models.shufflenet_v2_x0_5, 2, 3, 64, 64),
    "ResNet-18": (torchvision.models.resnet18, 2, 3, 64, 64),
}

# %% tags=["bench-table", "times"]
rows = []
for name, (make, *shape) in BENCHES.items():
    bench = Bench(make, *shape)
    first = latencies(bench.eval, warm=0, count=1)[0]
    taken = latencies(bench.eval)
    middle = statistics.median(taken)
    training = statistics.median(latencies(bench.train, warm=3, count=7))
    names = {"step": bench.eval, "wait": wait}
    timer = benchmark.Timer("step(); wait()", timer=time.perf_counter, globals=names)
    other = timer.blocked_autorange(min_run_time=0.1).median
    ratios = (first / middle, spread_of(taken), training / middle, other / middle)
    rows.append((name, f"{1000 * middle:.2f}", *[f"{ratio:.2f}" for ratio in ratios]))
heads = ("network", "ms", "first step", "spread", "training", "by Timer")
table(rows, heads)

# %% tags=["bench-claims"]
same = [Bench(*BENCHES["LeNet"]).eval() for _ in range(2)]
claim(torch.equal(*same), "a seed makes the same network and input")
seen = []
timer = benchmark.Timer(
    "seen.append(gc.isenabled())",
    "import gc",
    timer=time.perf_counter,
    globals={"seen": seen},
)
timed = timer.timeit(1)
claim(not any(seen), "Timer switches the garbage collector off")
claim(timed.num_threads == 1, "Timer has one thread if it is not told")

# %% [markdown]
# ## Tools of PyTorch, each beside what it does


# %% tags=["tools"]
def flat(tensors) -> torch.Tensor:
    return torch.cat([x.detach().flatten() for x in tensors])


def data_tools() -> dict[str, tuple]:
    """Of data. Name of a tool: what it gives in words, its result, the same by hand."""
    parts = random_split(range(10), [7, 3])
    joined = [*ConcatDataset([range(3), range(5, 7)])]
    x = torch.rand(4, 1, 2, 2)
    grid = torchvision.utils.make_grid(x, nrow=2, padding=0)[0]
    rows = torch.cat([torch.cat([*pair], 1) for pair in x[:, 0].split(2)])
    numbers = sorted([*parts[0], *parts[1]])
    return {
        "random_split": ("each of ten once", numbers, [*range(10)]),
        "ConcatDataset": ("one behind the other", joined, [0, 1, 2, 5, 6]),
        "make_grid": ("rows of pictures", grid, rows),
    }


def weight_tools() -> dict[str, tuple]:
    """Of weights."""
    layer = nn.Linear(4, 3)
    weights = [*layer.parameters()]
    vector = parameters_to_vector(weights)
    found = {"parameters_to_vector": ("one vector", vector, flat(weights))}
    layer(torch.ones(2, 4)).sum().backward()
    g = flat(p.grad for p in weights)
    nn.utils.clip_grad_norm_(weights, 1.0)
    clipped = flat(p.grad for p in weights)
    found["clip_grad_norm_"] = ("g / (|g| + 1e-6)", clipped, g / (g.norm() + 1e-6))
    average = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(layer)
    by_hand = 0.9 * flat(weights) + 0.1
    for p in weights:
        nn.init.ones_(p)
    average.update_parameters(layer)
    mean = flat(average.module.parameters())
    found["AveragedModel"] = ("0.9 of the old, 0.1 of the new", mean, by_hand)
    return found


def derivative_tools() -> dict[str, tuple]:
    """Of derivatives and graphs."""
    w = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def loss(w: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return (w @ row).tanh().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(w, x)
    loop = torch.stack([torch.autograd.grad(loss(w, row), w)[0] for row in x])
    again = torch.autograd.grad(checkpoint(loss, w, x[0], use_reentrant=False), w)[0]
    square = torch.func.jacrev(torch.sin)(x[0])
    right = torch.autograd.gradcheck(torch.sin, x)
    traced = torch.fx.symbolic_trace(Staged())(x)
    return {
        "func.vmap of func.grad": ("a loop over the inputs", each, loop),
        "func.jacrev": ("cosines on a diagonal", square, x[0].cos().diag()),
        "autograd.gradcheck": ("the sine is right", right, True),
        "checkpoint": ("the gradient without it", again, loop[0]),
        "fx.symbolic_trace": ("the function itself", traced, staged(x)),
    }


# %% tags=["tools-table"]
seed(0)
tools = data_tools() | weight_tools() | derivative_tools()
for _, found, by_hand in tools.values():
    torch.testing.assert_close(found, by_hand)
table([(name, words) for name, (words, *_) in tools.items()], ("tool", "equal to"))

# %% [markdown]
# ## What we saw
#
# - A hundred lines give the gradients of three networks as torch does, to rounding.
# - A layer is made, built for the first shape it sees, and run; three libraries agree.
# - A front end turns Python into a list of operators, which can be made shorter or compiled.

# %% [markdown]
# ## Solutions


# %% tags=["solution-1"]
def value(a: float, b: float) -> float:
    return (a * b + a) ** 2


slopes_1 = [
    (value(2 + 1e-6, 3) - value(2 - 1e-6, 3)) / 2e-6,
    (value(2, 3 + 1e-6) - value(2, 3 - 1e-6)) / 2e-6,
]

# %% tags=["solution-1-result"]
claim(
    max(abs(slopes_1[0] - 64), abs(slopes_1[1] - 32)) < 1e-5,
    "the slopes are the gradients",
)
table([("a", f"{slopes_1[0]:.4f}"), ("b", f"{slopes_1[1]:.4f}")], ("input", "slope"))

# %% tags=["solution-2"]
weight = Tensor(2.0, requires_grad=True)
for _ in range(3):
    backward(weight * weight)
weight.grad.data.item()

# %% tags=["solution-2-claim"]
claim(weight.grad.data.item() == 12, "gradients add up until they are cleared")


# %% tags=["solution-3"]
class Dual:
    """A value, and its derivative along one direction."""

    def __init__(self, value, slope=0.0):
        self.value = value
        self.slope = slope

    def __add__(self, other: "Dual") -> "Dual":
        return Dual(self.value + other.value, self.slope + other.slope)

    def __mul__(self, other: "Dual") -> "Dual":
        slope = self.slope * other.value + self.value * other.slope
        return Dual(self.value * other.value, slope)

    def tanh(self) -> "Dual":
        y = np.tanh(self.value)
        return Dual(y, self.slope * (1 - y * y))


def forward_mode(function: Callable, values: list[float]) -> list[float]:
    """One run for each input."""
    slopes = []
    for i in range(len(values)):
        given = [Dual(v, float(i == j)) for j, v in enumerate(values)]
        slopes.append(function(*given).slope)
    return slopes


def mixed(a, b, c):
    return (a * b + c * a).tanh() * b


# %% tags=["solution-3-result"]
leaves = [Tensor(v, requires_grad=True) for v in (0.3, -0.5, 0.8)]
backward(mixed(*leaves))
slopes_3 = forward_mode(mixed, [0.3, -0.5, 0.8])
rows = []
for name, x, slope_3 in zip("abc", leaves, slopes_3):
    claim(abs(x.grad.data - slope_3) < 1e-12, "forward mode gives the same gradient")
    rows.append((name, f"{slope_3:.4f}", f"{x.grad.data:.4f}"))
table(rows, ("input", "forward mode", "reverse mode"))


# %% tags=["solution-4"]
class Selects(ast.NodeTransformer):
    """Make `a if c else b` the call `select(c, a, b)`."""

    def visit_IfExp(self, node: ast.IfExp) -> ast.Call:
        self.generic_visit(node)
        name = ast.Name("select", ast.Load())
        return ast.Call(name, [node.test, node.body, node.orelse], [])


def with_select(source: str) -> Callable:
    """The function of one expression, without `if`, for `trace`."""
    tree = Selects().visit(ast.parse(source, mode="eval"))
    code = compile(ast.fix_missing_locations(tree), "<select>", "eval")
    return eval(code, {"select": lambda c, a, b: c.note("select", c, a, b)})


# %% tags=["solution-4-result"]
SOURCE = "lambda x: x * 2 if x > 0 else x + 1"
lines = trace(with_select(SOURCE), 1)
for x in (-1.0, 2.0):
    claim(run(lines, x) == eval(SOURCE)(x), "both branches are in the graph")
table([(", ".join(line[0] for line in lines),)], ("lines of the graph",))
