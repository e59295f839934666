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
# # What training keeps in memory
#
# Weights, gradients, the optimiser's numbers and activations: their bytes computed before
# anything runs, measured to the byte, and then made fewer.
# The text to it is the [chapter](../chapters/memory.rst).

# %%
import math
import os
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from workbench import PROFILE, claim, device, record, seed, table
from workbench import checks, images, plots, training

# %% [markdown]
# ## Measure: follow the storages


# %% tags=["tracker"]
def storages(values) -> list:
    """The memory behind each tensor among values, which may be nested."""
    return [x.untyped_storage() for x in tree_leaves(values) if isinstance(x, Tensor)]


class Tracker(TorchDispatchMode):
    """Bytes of the storages that operators make, from their birth to their end."""

    def __init__(self):
        super().__init__()
        self.sizes = {}
        self.live = 0
        self.peak = 0
        self.history = []  # bytes alive after each operator

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        given = {storage._cdata for storage in storages((args, kwargs))}
        if operator == torch.ops.aten.lift_fresh.default:
            given = set()  # this is how torch.tensor(...) begins
        for storage in storages(result):
            if storage._cdata not in given | self.sizes.keys():  # else a view
                self.begin(storage)
        self.history.append(self.live)
        return result

    def begin(self, storage) -> None:
        self.sizes[storage._cdata] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.end, storage._cdata)

    def end(self, address: int) -> None:
        self.live -= self.sizes.pop(address)


# %% tags=["saved"]
def saved(network: nn.Module, x: Tensor, y: Tensor | None = None) -> int:
    """Bytes that the graph of one forward pass keeps: each storage once, no weights."""
    fixed = {storage._cdata for storage in storages(state(network))}
    kept = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in fixed:
            kept[storage._cdata] = storage
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        out = network(x)
        if y is not None:
            out = F.cross_entropy(out, y)
    return sum(storage.nbytes() for storage in kept.values())


def state(network: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*network.parameters(), *network.buffers()]


# %% [markdown]
# ## Compute: what each layer keeps


# %% tags=["rules"]
def dropout_rule(y, x, p=0.5, training=True, *rest, **how):
    return (x.nbytes,) if training and p > 0 else ()  # its mask, in floats


def pool_rule(y, x, *rest, **how):
    return x, 8 * y.numel()  # places as int64


def batch_norm_rule(y, x, *rest, **how):
    return x, 8 * x.shape[1]  # mean and 1 / deviation of each channel


def layer_norm_rule(y, x, shape, *rest, **how):
    return x, 8 * (x.numel() // math.prod(shape))  # the same of each row


def attention_rule(y, q, k, v, *rest, **how):
    return q, k, v, y, 4 * q[..., 0].numel()  # the logarithm of each row's sum


def loss_rule(y, x, labels, *rest, **how):
    return labels, x.nbytes + 4  # log-probabilities, and the sum of the weights


RULES = {  # function: the tensors, or bytes, that its gradient needs
    "linear": lambda y, x, *rest, **how: (x,),
    "conv2d": lambda y, x, *rest, **how: (x,),
    "embedding": lambda y, places, *rest, **how: (places,),
    "relu": lambda y, x, **how: (y,),
    "gelu": lambda y, x, **how: (x,),
    "softmax": lambda y, x, *rest, **how: (y,),
    "bmm": lambda y, a, b: (a, b),
    "dropout": dropout_rule,
    "max_pool2d": pool_rule,
    "batch_norm": batch_norm_rule,
    "layer_norm": layer_norm_rule,
    "scaled_dot_product_attention": attention_rule,
    "cross_entropy": loss_rule,
}
NOTHING = {"add", "add_", "mean", "div", "flatten", "unflatten", "transpose", "__get__"}


# %% tags=["walk"]
class Walk(TorchFunctionMode):
    """Notes by the rules what each function keeps; a storage counts once."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.bytes = Counter()
        self.known = {storage._cdata for storage in storages(state(network))}
        self.results = []  # held, so that no storage gets the address of another

    def __torch_function__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        self.results.append(y)
        name = function.__name__
        if name in RULES:
            for part in RULES[name](y, *args, **(kwargs or {})):
                self.bytes[name] += part if isinstance(part, int) else self.once(part)
        elif name not in NOTHING and isinstance(y, Tensor):
            raise LookupError(f"{name}: add a rule to RULES, or the name to NOTHING")
        return y

    def once(self, x: Tensor) -> int:
        storage = x.untyped_storage()
        if storage._cdata in self.known:
            return 0
        self.known.add(storage._cdata)
        return storage.nbytes()


def expected(build: Callable, batch: Callable, B: int) -> Counter:
    """Function: bytes it keeps, from shapes alone; no number is computed."""
    with FakeTensorMode():
        network = build()
        x, y = batch(B)
        with Walk(network) as walk:
            F.cross_entropy(network(x), y)
    return walk.bytes


# %% tags=["layers"]
LAYERS = {  # layer: what it keeps, input, bytes by hand
    "Linear(6, 5)": ("input", nn.Linear(6, 5), (2, 3, 6), 4 * 36),
    "Conv2d(4, 5, 3)": ("input", nn.Conv2d(4, 5, 3), (2, 4, 6, 6), 4 * 288),
    "ReLU": ("output", nn.ReLU(), (2, 8), 4 * 16),
    "GELU": ("input", nn.GELU(), (2, 8), 4 * 16),
    "Softmax": ("output", nn.Softmax(-1), (2, 8), 4 * 16),
    "Dropout": ("mask, as floats", nn.Dropout(0.5), (2, 8), 4 * 16),
    "MaxPool2d(2)": ("input, places as int64", nn.MaxPool2d(2), (2, 4, 6, 6), 1728),
    "BatchNorm2d": ("input, 2 a channel", nn.BatchNorm2d(4), (2, 4, 6, 6), 1184),
    "LayerNorm": ("input, 2 a row", nn.LayerNorm(8), (2, 3, 8), 4 * (48 + 12)),
    "Flatten": ("nothing", nn.Flatten(), (2, 4, 6), 0),
}


def layer_saved(layer: nn.Module, shape: tuple[int, ...]) -> int:
    """Of one layer, its input included if it is kept."""
    return saved(layer, torch.rand(shape, requires_grad=True))


# %% tags=["layers-table"]
rows = []
for name, (words, layer, shape, by_hand) in LAYERS.items():
    found = layer_saved(layer, shape)
    claim(found == by_hand, f"{name}: {words}")
    rows.append((name, words, str(shape), by_hand, found))
table(rows, ("layer", "keeps", "input", "bytes by hand", "measured"))

# %% [markdown]
# ## Five networks


# %% tags=["networks"]
class LeNet(nn.Module):
    """The LeNet-5 of this book with ReLU and maxima: (B, 1, 28, 28) -> (B, 10)."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.hidden = nn.Sequential(
            nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()
        )
        self.classifier = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)  # (B, 6, 14, 14)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)  # (B, 16, 5, 5)
        return self.classifier(self.hidden(x.flatten(1)))


def conv_norm(c_in: int, c_out: int) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class Residual(nn.Module):
    """A stem and a residual block: (B, 3, H, W) -> (B, 10)."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, width), nn.ReLU())
        self.branch = nn.Sequential(
            conv_norm(width, width), nn.ReLU(), conv_norm(width, width)
        )
        self.classifier = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(torch.add(x, self.branch(x)))
        return self.classifier(x.mean((2, 3)))


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # (B, h, T, d) -> the same
    return F.scaled_dot_product_attention(q, k, v)


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    B, h, T, d = q.shape
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))  # (B h, T, d)
    shares = torch.softmax(torch.div(torch.bmm(q, k.mT), math.sqrt(d)), -1)
    return torch.bmm(shares, v).unflatten(0, (B, h))


class Block(nn.Module):
    """Attention and two linear layers, each on a branch: (B, T, D) -> the same."""

    def __init__(self, attend: Callable, *, d_model: int = 32, n_heads: int = 4):
        super().__init__()
        self.attend = attend
        self.n_heads = n_heads
        self.norm1 = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Sequential(nn.Linear(d_model, d_model), nn.Dropout(0.1))
        wide = nn.Linear(d_model, 4 * d_model)
        narrow = nn.Linear(4 * d_model, d_model)
        parts = (nn.LayerNorm(d_model), wide, nn.GELU(), narrow, nn.Dropout(0.1))
        self.mlp = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm1(x)).chunk(3, -1)  # three of (B, T, D)
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in parts)
        y = self.attend(q, k, v).transpose(1, 2).flatten(2)  # (B, T, D)
        x = torch.add(x, self.out(y))
        return torch.add(x, self.mlp(x))


class Transformer(nn.Module):
    """Words (B, T) -> (B, 10)."""

    def __init__(self, attend: Callable, *, V: int = 100, d_model: int = 32):
        super().__init__()
        self.words = nn.Embedding(V, d_model)
        self.blocks = nn.Sequential(Block(attend), Block(attend))
        self.classifier = nn.Linear(d_model, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.words(x)).mean(1))


def mlp() -> nn.Module:
    hidden = (nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(128, 10))


def pictures(*shape: int) -> Callable:
    return lambda B: (torch.randn(B, *shape), torch.randint(0, 10, (B,)))


def words(B: int) -> tuple[Tensor, Tensor]:
    return torch.randint(0, 100, (B, 24)), torch.randint(0, 10, (B,))


NETWORKS = {  # name: network, and batches for it
    "MLP": (mlp, pictures(64)),
    "LeNet": (LeNet, pictures(1, 28, 28)),
    "residual": (Residual, pictures(3, 16, 16)),
    "transformer": (lambda: Transformer(fused), words),
    "transformer, written out": (lambda: Transformer(written_out), words),
}


# %% [markdown]
# ## Computed and measured


# %% tags=["measure"]
class Bytes(NamedTuple):
    """What one training step holds."""

    weights: int  # and buffers
    gradients: int
    optimiser: int
    activations: int  # the batch included


def computed(build: Callable, batch: Callable, B: int) -> Bytes:
    """With Adam: two numbers for each parameter, and a count for each tensor."""
    network = build()
    weights = sum(p.nbytes for p in network.parameters())
    tensors = len(list(network.parameters()))
    buffers = sum(b.nbytes for b in network.buffers())
    kept = expected(build, batch, B).total()
    return Bytes(weights + buffers, weights, 2 * weights + 4 * tensors, kept)


def measured(build: Callable, batch: Callable, B: int) -> Bytes:
    """The growth of what is alive, from one moment of a step to the next."""
    with Tracker() as tracker:
        network = build()
        weights = tracker.live
        x, y = batch(B)
        given = tracker.live
        loss = F.cross_entropy(network(x), y)
        kept = tracker.live - weights - loss.nbytes
        loss.backward()
        del loss
        gradients = tracker.live - given
        optimizer = torch.optim.Adam(network.parameters())
        optimizer.step()
    return Bytes(weights, gradients, tracker.live - given - gradients, kept)


def per_input(build: Callable, batch: Callable, B: int) -> int:
    """Bytes of activations that one more input adds."""
    more = expected(build, batch, B + 1).total()
    return more - expected(build, batch, B).total()


# %% tags=["headline"]
SIZES = (1, 8, 32) if PROFILE == "sample" else (1, 8, 32, 128)
found = {}
for name, (build, batch) in NETWORKS.items():
    for B in SIZES:
        seed(B)
        found[name, B] = (computed(build, batch, B), measured(build, batch, B))

# %% tags=["headline-table"]
rows = []
for (name, B), (by_rule, by_tracker) in found.items():
    claim(by_rule == by_tracker, f"{name}, batch of {B}: computed is measured")
    build, batch = NETWORKS[name]
    hooks = saved(build(), *batch(B))
    claim(hooks == by_rule.activations, f"{name}, batch of {B}: hooks agree")
    if B == 8:
        rows.append((name, *by_rule, "yes" if by_rule == by_tracker else "no"))
record("headline.cases", len(found))
heads = ("batch of 8", "weights", "gradients", "Adam", "activations", "= measured")
table(rows, heads)

# %% tags=["headline-claims"]
flat, whole = (found[f"transformer{end}", 8][0] for end in ("", ", written out"))
claim(flat.activations < whole.activations, "fused attention keeps less")
claim(flat.weights == whole.weights, "the same weights")
record("version.torch", torch.__version__.split("+")[0])
record("fused.less", whole.activations - flat.activations)
shares = 2 * 4 * 8 * 4 * 24 * 24  # blocks, bytes, B, h, T, T
row_sums = shares // 24
claim(whole.activations - flat.activations == shares - row_sums, "shares, not sums")
vast = expected(lambda: nn.Linear(10**6, 10**6), pictures(10**6), 1).total()
claim(vast == 4 * 2 * 10**6 + 8 + 4, "computed where weights of 4 TB would not fit")

# %% tags=["batch-figure"] alt="A stacked area of megabytes against the size of the batch, from 1 to 32. Weights, gradients and Adam's numbers are three bands of constant height; above them the activations rise along a straight line and are the largest part at the right. Dots of the measured sums lie on the upper edge."
build, batch = NETWORKS["transformer"]
sizes = [1, 8, 16, 24, 32]
parts = np.array([computed(build, batch, B) for B in sizes]).T / 1e6
dots = [sum(measured(build, batch, B)) / 1e6 for B in sizes]
_, axes = plt.subplots()
axes.stackplot(sizes, parts, colors=plots.COLOURS, alpha=0.35)
axes.plot(sizes, dots, "o", color=plots.INK, clip_on=False)
middles = parts.cumsum(0)[:, -1] - parts[:, -1] / 2
names = ("weights", "gradients", "Adam", "activations")
plots.label_ends(axes, {name: (32, y) for name, y in zip(names, middles)})
axes.set(xlabel="batch", ylabel="MB", xlim=(1, 32), ylim=0)
axes.set_axisbelow(True)

# %% tags=["batch-claims"]
claim(parts[3, -1] > parts[:3, -1].max(), "activations are the largest part at 32")
claim(np.ptp(parts[:3], axis=1).max() == 0, "the other parts do not change")
claim(parts[3, 0] < parts[:3, 0].sum(), "one input: less than the rest together")
for name, (build, batch) in NETWORKS.items():
    steps = {per_input(build, batch, B) for B in (1, 8, 31)}
    claim(len(steps) == 1, f"{name}: each input adds the same")
claim(np.allclose(dots, parts.sum(0)), "the dots lie on the edge")
record("batch.each", per_input(*NETWORKS["transformer"], 1))

# %% [markdown]
# ## Through one step


# %% tags=["peak"]
def peak(build: Callable, batch: Callable, B: int) -> int:
    """The most bytes alive in a forward and backward pass, beside what was before."""
    with Tracker() as tracker:
        network = build()
        x, y = batch(B)
        before = tracker.live
        F.cross_entropy(network(x), y).backward()
    return tracker.peak - before


def library_peak(build: Callable, batch: Callable, B: int) -> int:
    """The same by PyTorch's own tracker."""
    network = build()
    x, y = batch(B)
    tracker = MemTracker()
    tracker.track_external(network, x, y)
    with tracker:
        F.cross_entropy(network(x), y).backward()
    found = tracker.get_tracker_snapshot("peak")[x.device]["Total"]
    return found - sum(t.nbytes for t in (*state(network), x, y))


def allocator_peak(build: Callable, batch: Callable, B: int) -> int:
    """The same from the list of what the CPU's allocator gave and took back."""
    network = build()
    x, y = batch(B)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        F.cross_entropy(network(x), y).backward()
    events = run.profiler.kineto_results.events()
    events = [event for event in events if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max())


def trace(build: Callable, batch: Callable, B: int) -> tuple[list[int], dict[str, int]]:
    """Bytes alive after each operator of a second step, and where its parts end."""
    ends = {}
    with Tracker() as tracker:
        network = build()
        optimizer = torch.optim.Adam(network.parameters())
        for _ in range(2):
            tracker.history.clear()
            x, y = batch(B)
            loss = F.cross_entropy(network(x), y)
            ends["forward"] = len(tracker.history)
            loss.backward()
            ends["backward"] = len(tracker.history)
            optimizer.step()
            ends["optimiser"] = len(tracker.history)
            optimizer.zero_grad()
            del loss
    return tracker.history[: ends["optimiser"]], ends


# %% tags=["peaks-table"]
os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler's own lines
rows = []
for name, how in NETWORKS.items():
    with FakeTensorMode():
        rehearsed = peak(*how, 8)
    ours = peak(*how, 8)
    theirs = library_peak(*how, 8)
    more = allocator_peak(*how, 8) - ours
    claim(rehearsed == ours == theirs, f"{name}: three equal peaks")
    claim(more >= 0, f"{name}: the allocator sees no less")
    rows.append((name, rehearsed, ours, theirs, "more" if more else "the same"))
heads = ("batch of 8", "rehearsed", "our tracker", "MemTracker", "allocator")
table(rows, heads)


# %% tags=["step-run"]
seed(0)
history, ends = trace(*NETWORKS["transformer"], 8)
alive = np.array(history) / 1e6
top = int(alive.argmax())

# %% tags=["step-figure"] alt="Megabytes alive against the number of the operator in one training step. A first part, forward, rises in steps. In the second part, backward, the curve first reaches its highest point, marked as the peak, and then falls in steps to a level above the start; in the third, the optimiser, it stays there with small teeth."
_, axes = plt.subplots(figsize=(5, 2.8))
axes.plot(alive, color=plots.COLOURS[0], linewidth=1.5)
axes.plot(top, alive[top], "o", color=plots.COLOURS[1])
axes.annotate(
    "peak", (top, alive[top]), (8, 0), textcoords="offset points", va="center"
)
start = 0
for name, end in ends.items():
    axes.axvline(end, color=plots.GRID, zorder=0)
    axes.text((start + end) / 2, 0.06, name, ha="center", color=plots.QUIET)
    start = end
axes.set(xlabel="operator", ylabel="MB", ylim=0, xlim=(0, len(alive)))
axes.set_axisbelow(True)

# %% tags=["step-claims"]
forward = alive[: ends["forward"]]
backward = alive[ends["forward"] : ends["backward"]]
near = ends["forward"] <= top < ends["forward"] + len(backward) // 4
claim(near, "the peak is early in the backward pass")
start = forward[0]  # weights, Adam's numbers, and the batch
most = alive[top] - start > 0.9 * (forward[-1] - start)
claim(most, "most activations are still there")
claim(backward[-1] < 0.6 * alive[top], "backward lets go of the activations")
claim(backward[-1] > alive[0], "and leaves the gradients")
claim(forward[-1] > 2 * forward[0], "forward rises")

# %% [markdown]
# ## Optimisers


# %% tags=["codes"]
def dynamic_codes(*, signed: bool) -> Tensor:
    """The 256 values of a byte: seven powers of ten, more steps in the larger ones.

    Dettmers et al. 2021; `create_dynamic_map` of their bitsandbytes gives the same.
    """
    values = [0.0, 1.0]
    for power in range(7):
        steps = 2**power * (1 if signed else 2)
        edges = torch.linspace(0.1, 1, steps + 1)
        middles = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (power - 6)
        values += middles.tolist()
        if signed:
            values += (-middles).tolist()
    return torch.tensor(values).sort().values


SIGNED = dynamic_codes(signed=True)
UNSIGNED = dynamic_codes(signed=False)
BLOCK = 2048


# %% tags=["eight-bit"]
class EightBit:
    """A tensor as bytes, and one scale for each block of 2,048."""

    def __init__(self, like: Tensor, codes: Tensor):
        self.codes = codes
        self.shape = like.shape
        self.write(torch.zeros_like(like))

    def write(self, x: Tensor) -> None:
        n = x.numel()
        blocks = F.pad(x.flatten(), (0, -n % BLOCK)).view(-1, BLOCK)
        self.scale = blocks.abs().amax(1)
        shares = blocks / self.scale.clamp(min=1e-38)[:, None]
        edges = (self.codes[1:] + self.codes[:-1]) / 2
        self.bytes = (
            torch.bucketize(shares, edges).to(torch.uint8).flatten()[:n].clone()
        )

    def read(self) -> Tensor:
        n = self.bytes.numel()
        shares = F.pad(self.codes[self.bytes.int()], (0, -n % BLOCK)).view(-1, BLOCK)
        return (shares * self.scale[:, None]).flatten()[:n].view(self.shape)


class Whole:
    """The same interface with the tensor as it is."""

    def __init__(self, like: Tensor, codes: Tensor):
        self.x = torch.zeros_like(like)

    def write(self, x: Tensor) -> None:
        self.x = x

    def read(self) -> Tensor:
        return self.x


# %% tags=["adam"]
class Adam(torch.optim.Optimizer):
    """Adam, its two moments in a store of either kind."""

    def __init__(self, parameters, store: type, lr: float = 1e-3):
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8})
        self.store = store

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.update(p, p.grad, self.state[p], **group)

    def update(self, p, g, kept, *, lr, betas, eps, **_) -> None:
        if not kept:
            kept["t"] = 0
            kept["m"] = self.store(p, SIGNED)
            kept["v"] = self.store(p, UNSIGNED)
        kept["t"] += 1
        m = betas[0] * kept["m"].read() + (1 - betas[0]) * g
        v = betas[1] * kept["v"].read() + (1 - betas[1]) * g * g
        unbiased = (v / (1 - betas[1] ** kept["t"])).sqrt()
        p -= lr / (1 - betas[0] ** kept["t"]) * m / (unbiased + eps)
        kept["m"].write(m)
        kept["v"].write(v)


# %% tags=["optimiser-bytes"]
def digits_mlp() -> nn.Module:
    layers = (nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    return nn.Sequential(nn.Flatten(), *layers)


def blocks(p: Tensor) -> int:
    return math.ceil(p.numel() / BLOCK)


def factors(p: Tensor) -> int:
    """Adafactor keeps a number for each row and column, of a vector all."""
    numbers = sum(p.shape) if p.ndim == 2 else p.numel()
    return 4 * numbers + 4  # and a count


OPTIMISERS = {  # name: how it is made, and the bytes it keeps of one tensor
    "SGD": (lambda p: torch.optim.SGD(p, 0.1), lambda p: 0),
    "SGD, momentum": (lambda p: torch.optim.SGD(p, 0.1, 0.9), lambda p: 4 * p.numel()),
    "Adam": (torch.optim.Adam, lambda p: 8 * p.numel() + 4),
    "Adafactor": (torch.optim.Adafactor, factors),
    "Adam, 8 bits": (
        lambda p: Adam(p, EightBit),
        lambda p: 2 * (p.numel() + 4 * blocks(p)),
    ),
}


def kept_by(make: Callable) -> int:
    """Measured bytes that an optimiser keeps after a step."""
    with Tracker() as tracker:
        network = digits_mlp()
        optimizer = make(network.parameters())
        network(torch.randn(2, 784)).sum().backward()
        before = tracker.live
        optimizer.step()
    return tracker.live - before


# %% tags=["optimiser-table"]
shapes = list(digits_mlp().parameters())
weights = sum(p.nbytes for p in shapes)
rows = []
for name, (make, rule) in OPTIMISERS.items():
    by_rule = sum(rule(p) for p in shapes)
    by_tracker = kept_by(make)
    claim(by_rule == by_tracker, f"{name}: computed is measured")
    rows.append((name, by_rule, by_tracker, f"{by_rule / weights:.3f}"))
kept = {name: by_rule for name, by_rule, *_ in rows}
claim(abs(kept["Adam, 8 bits"] / kept["Adam"] - 0.25) < 0.01, "a quarter of Adam's")
claim(kept["Adafactor"] < kept["Adam"] / 50, "Adafactor: less than a fiftieth")
table(rows, ("optimiser", "bytes computed", "measured", "of the weights"))

# %% tags=["train"]
SEEDS = (0, 1, 2) if PROFILE == "sample" else range(10)
data = images.digits()
train, _, test = images.standardised(data, first=1500)
correct = {"32 bits": [], "8 bits": []}
for number in SEEDS:
    for name, store in zip(correct, (Whole, EightBit)):
        seed(number)
        network = digits_mlp()
        optimizer = Adam(network.parameters(), store, lr=2e-3)
        training.fit(network, train, 5, optimizer, batch=100)
        correct[name].append(training.evaluate(network, test))

# %% tags=["train-table"]
claim(SIGNED.diff()[127] < 1e-4 * SIGNED.diff()[253], "codes are finer near zero")
both = list(zip(*correct.values()))
claim(max(abs(a - b) for a, b in both) < 0.015, "within 1.5 points on each seed")
claim(min(min(pair) for pair in both) > 0.8, "both learn")
rows = [(n, f"{a:.1%}", f"{b:.1%}") for n, (a, b) in zip(SEEDS, both)]
table(rows, ("seed", "Adam, 32 bits", "Adam, 8 bits"))

# %% [markdown]
# ## Checkpoints


# %% tags=["recompute"]
class Recompute(torch.autograd.Function):
    """Run without a graph; for the gradients run again, with one."""

    @staticmethod
    def forward(ctx, part, x, *parameters):
        ctx.part = part
        ctx.chance = torch.get_rng_state()  # so that dropout drops the same
        ctx.save_for_backward(x)
        return part(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_(ctx.needs_input_grad[1])
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.chance)
            y = ctx.part(x)
        torch.autograd.backward(y, gradient)
        return None, x.grad, *[None] * (len(ctx.needs_input_grad) - 2)


def recompute(part: nn.Module, x: Tensor) -> Tensor:
    return Recompute.apply(part, x, *part.parameters())


def library(part: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(part, x, use_reentrant=False)


def plain(part: nn.Module, x: Tensor) -> Tensor:
    return part(x)


# %% tags=["chain"]
def layer(d: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Dropout(dropout))


class Chain(nn.Module):
    """n layers in segments, and how a segment is run: (B, d) -> (B, d)."""

    def __init__(
        self, n: int, d: int, segments: int, run: Callable, dropout: float = 0
    ):
        super().__init__()
        layers = [layer(d, dropout) for _ in range(n)]
        size = n // segments
        starts = range(0, n, size)
        self.segments = nn.ModuleList(
            nn.Sequential(*layers[i : i + size]) for i in starts
        )
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        for segment in self.segments:
            x = self.run(segment, x)
        return x


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Of the sum of squares of the outputs."""
    network.zero_grad()
    network(x).square().sum().backward()
    return [p.grad for p in network.parameters()]


def twins(run: Callable, n: int = 6, segments: int = 3) -> bool:
    """Whether the gradients are those of the plain chain, bit for bit, with dropout."""
    found = []
    for way in (plain, run):
        seed(0)
        network = Chain(n, 8, segments, way, dropout=0.2)
        found.append(gradients(network, torch.randn(16, 8)))
    return all(torch.equal(a, b) for a, b in zip(*found))


N = 36
D = 16
ROWS = 256
MAP = 4 * ROWS * D  # bytes of one output


def chain_peak(segments: int, run: Callable) -> int:
    """Most bytes alive in a step, beside the weights, their gradients and the input."""
    with Tracker() as tracker:
        network = Chain(N, D, segments, run)
        for p in network.parameters():
            p.grad = torch.zeros_like(p)
        x = torch.randn(ROWS, D)
        before = tracker.live
        network(x).sum().backward()
    return tracker.peak - before


# %% tags=["sqrt-run"]
COUNTS = (1, 2, 3, 4, 6, 9, 12, 18, 36)
ONE_LAYER = 4 * (D * D + D) + 8  # its gradients on their way; the loss and its gradient
line = [(k + N // k) * MAP + ONE_LAYER for k in COUNTS]
ours = [chain_peak(k, recompute) for k in COUNTS]
theirs = [chain_peak(k, library) for k in COUNTS]
without = chain_peak(1, plain)

# %% tags=["sqrt-claims"]
claim(twins(recompute), "checkpoints written out: equal gradients, dropout too")
claim(twins(library), "the library's: equal gradients, dropout too")
claim(theirs == line, "the library's peak is the formula, to the byte")
claim(ours == [size + MAP for size in line], "ours holds one map more")
claim(without == (N + 1) * MAP + ONE_LAYER, "without: each output, and a gradient")
claim(COUNTS[line.index(min(line))] == math.isqrt(N), "least at the root of n")
record("sqrt.times", without / min(line))

# %% tags=["sqrt-figure"] alt="Peak megabytes against the number of segments of a chain of 36 layers, from 1 to 36, on a logarithmic axis. A curve falls from the left to six segments and rises again to the same height; dots of the library lie on it, squares of the page's own checkpoints a constant step above. A horizontal dashed line, without checkpoints, meets the curve's two ends."
_, axes = plt.subplots()
axes.plot(COUNTS, np.array(line) / 1e6, color=plots.COLOURS[0], linewidth=1)
axes.plot(COUNTS, np.array(theirs) / 1e6, "o", color=plots.COLOURS[0])
axes.plot(COUNTS, np.array(ours) / 1e6, "s", color=plots.COLOURS[1])
axes.axhline(without / 1e6, color=plots.QUIET, linestyle="--", linewidth=1)
axes.text(6, without / 1e6, "without checkpoints", ha="center", va="bottom")
axes.text(2.2, ours[1] / 1e6, "ours", color=plots.COLOURS[1])
axes.text(6, 0.12, "library, and computed", ha="center", color=plots.COLOURS[0])
axes.set(xscale="log", xlabel="segments", ylabel="peak, MB", ylim=0)
axes.set(xticks=(1, 2, 3, 6, 12, 36), xticklabels=("1", "2", "3", "6", "12", "36"))
axes.minorticks_off()

# %% [markdown]
# ## All means on one network


# %% tags=["offload"]
class ToFiles(saved_tensors_hooks):
    """What the graph keeps is written to files, and read when it is needed."""

    def __init__(self, folder: Path, network: nn.Module):
        self.fixed = {storage._cdata for storage in storages(state(network))}
        self.folder = folder
        self.bytes = 0
        super().__init__(self.write, self.read)

    def write(self, x: Tensor) -> Tensor | Path:
        if x.untyped_storage()._cdata in self.fixed:
            return x
        file = self.folder / f"{len(list(self.folder.iterdir()))}.npy"
        np.save(file, x.numpy(force=True))
        self.bytes += x.nbytes
        return file

    def read(self, kept: Tensor | Path) -> Tensor:
        return kept if isinstance(kept, Tensor) else torch.from_numpy(np.load(kept))


# %% tags=["steps"]
def usual(network: nn.Module, optimizer, x: Tensor, y: Tensor) -> None:
    F.cross_entropy(network(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def keep_gradients(network, optimizer, x, y) -> None:
    optimizer.zero_grad(set_to_none=False)  # they are filled with zeros, and stay
    F.cross_entropy(network(x), y).backward()
    optimizer.step()


def accumulate(network, optimizer, x, y, pieces: int = 4) -> None:
    for part, labels in zip(x.chunk(pieces), y.chunk(pieces)):
        (F.cross_entropy(network(part), labels) / pieces).backward()
    optimizer.step()
    optimizer.zero_grad()


def offload(network, optimizer, x, y) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with ToFiles(Path(folder), network):
            loss = F.cross_entropy(network(x), y)
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def step_in_backward(network: nn.Module) -> None:
    """An optimiser for each parameter, which steps when its gradient is complete."""
    for p in network.parameters():
        own = torch.optim.Adam([p])

        def step(p: Tensor, own=own) -> None:
            own.step()
            own.zero_grad()

        p.register_post_accumulate_grad_hook(step)


def only_backward(network, optimizer, x, y) -> None:
    F.cross_entropy(network(x), y).backward()


# %% tags=["means"]
class Deep(nn.Module):
    """A chain in segments and a classifier; `inplace` is for its ReLUs."""

    def __init__(
        self, run: Callable = plain, inplace: bool = False, *, n: int = 16, d: int = 64
    ):
        super().__init__()
        self.chain = Chain(n, d, math.isqrt(n), run)
        self.classifier = nn.Linear(d, 10)
        for part in self.modules():
            if isinstance(part, nn.ReLU):
                part.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.chain(x))


class Trial(NamedTuple):
    """Two steps of training: most bytes, layers of the second run, the weights."""

    peak: int
    layers: int
    weights: list[Tensor]


def trial(step: Callable, make: Callable, B: int, **how) -> Trial:
    """`make` gives the optimiser, or hooks in its place; `how` goes to the network."""
    seed(0)
    with Tracker() as tracker:
        network = Deep(**how)
        optimizer = make(network)
        x, y = pictures(64)(B)
        step(network, optimizer, x, y)
        calls = Counter()
        for part in network.modules():
            if isinstance(part, nn.ReLU):
                part.register_forward_pre_hook(lambda *_: calls.update(layers=1))
        step(network, optimizer, x, y)
    return Trial(tracker.peak, calls["layers"], list(network.parameters()))


def alike(a: list[Tensor], b: list[Tensor]) -> str:
    """Two lists of weights in a word."""
    if all(torch.equal(p, q) for p, q in zip(a, b)):
        return "equal"
    off = max(checks.deviation(p, q) for p, q in zip(a, b))
    return "but for rounding" if off < 1e-3 else "differ"


def adam(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters())


MEANS = {  # name: the step, the optimiser, how the network is run
    "nothing": (usual, adam, {}),
    "gradients kept": (keep_gradients, adam, {}),
    "ReLU in place": (usual, adam, {"inplace": True}),
    "4 pieces": (accumulate, adam, {}),
    "4 checkpoints": (usual, adam, {"run": library}),
    "to files": (offload, adam, {}),
    "step in backward": (only_backward, step_in_backward, {}),
    "Adam, 8 bits": (usual, lambda net: Adam(net.parameters(), EightBit), {}),
    "Adafactor": (usual, lambda net: torch.optim.Adafactor(net.parameters()), {}),
}

# %% tags=["means-table"]
tried = {}
rows = []
for name, (step, make, how) in MEANS.items():
    tried[name] = pair = [trial(step, make, B, **how) for B in (256, 16)]
    less = [first.peak - now.peak for first, now in zip(tried["nothing"], pair)]
    same = alike(pair[0].weights, tried["nothing"][0].weights)
    rows.append((name, *(round(n / 1e3) for n in less), pair[0].layers, same))
heads = ("means", "kB saved, batch of 256", "batch of 16", "layers run", "weights")
table(rows, heads)

# %% tags=["same-claims"]
first = tried["nothing"]
same = {name: alike(pair[0].weights, first[0].weights) for name, pair in tried.items()}
near = {name for name, word in same.items() if word == "but for rounding"}
other = {name for name, word in same.items() if word == "differ"}
claim(near == {"4 pieces"}, "pieces: equal but for rounding")
claim(other == {"Adam, 8 bits", "Adafactor"}, "these two differ, all else is equal")
ours = trial(usual, lambda net: Adam(net.parameters(), Whole), 16)
claim(alike(ours.weights, first[1].weights) != "differ", "our Adam is PyTorch's")
claim(tried["4 checkpoints"][0].layers == 32, "checkpoints run each layer twice")

# %% tags=["means-claims"]
wide, small = (
    {n: first[i].peak - pair[i].peak for n, pair in tried.items()} for i in (0, 1)
)
claim(wide["ReLU in place"] == 0, "in place saves nothing here")
claim(max(wide["gradients kept"], small["gradients kept"]) < 0, "kept gradients cost")
activations = expected(Deep, pictures(64), 256).total()
claim(
    activations > first[0].peak / 2, "256: more than half of the peak are activations"
)
three = ("4 pieces", "4 checkpoints", "to files")
least = min(wide[n] for n in three)
claim(least > 5e5, "256: the three save more than half a megabyte")
claim(least > max(wide[n] for n in wide if n not in three), "more than all others")
claim(max(abs(small[n]) for n in three) < 2000, "16: the three change next to nothing")
for_states = ("Adafactor", "Adam, 8 bits", "step in backward")
claim(min(small[n] for n in for_states) > 1e5, "16: the other three save")
record("means.wide", first[0].peak / 1e6)
record("means.small", first[1].peak / 1e6)

# %% tags=["place-claims"]
for B, start, end in ((256, "forward", "backward"), (16, "backward", "optimiser")):
    history, ends = trace(Deep, pictures(64), B)
    claim(ends[start] <= np.argmax(history) < ends[end], f"{B}: peak in the {end}")

# %% [markdown]
# ## Without gradients, and mistakes


# %% tags=["forward-only"]
def forward_only(mode: Callable, inplace: bool = False) -> tuple[int, int]:
    """Bytes kept by the output, and most bytes, of one forward pass in a mode."""
    with Tracker() as tracker:
        network = Deep(inplace=inplace)
        x = torch.randn(256, 64)
        before = tracker.live
        with mode():
            y = network(x)
        return tracker.live - before - y.nbytes, tracker.peak - before


# %% tags=["forward-table"]
MODES = {
    "with a graph": (torch.enable_grad,),
    "no_grad": (torch.no_grad,),
    "inference_mode": (torch.inference_mode,),
    "no_grad, ReLU in place": (torch.no_grad, True),
}
only = {name: forward_only(*how) for name, how in MODES.items()}
claim(only["with a graph"][0] == 16 * 256 * 64 * 4, "the graph keeps 16 outputs")
claim(only["no_grad"] == only["inference_mode"], "both modes keep nothing")
claim(only["no_grad"][0] == 0, "without a graph nothing is kept")
claim(only["no_grad, ReLU in place"][1] < only["no_grad"][1], "in place saves a map")
rows = [(name, *pair) for name, pair in only.items()]
table(rows, ("forward pass alone", "kept, bytes", "peak"))


# %% tags=["mistakes"]
def overwritten() -> str:
    """What autograd says when a kept tensor was changed before its gradient."""
    x = torch.ones(3, requires_grad=True)
    y = x.exp()  # keeps its output
    y += 1
    try:
        y.sum().backward()
    except RuntimeError as error:
        return str(error)
    return ""


def losses_in_a_list(number: int, detached: bool) -> int:
    """Bytes alive after some losses have gone into a list."""
    with Tracker() as tracker:
        network = mlp()
        before = tracker.live
        losses = []
        for _ in range(number):
            loss = network(torch.randn(32, 64)).square().mean()
            losses.append(loss.detach() if detached else loss)
            del loss
        return tracker.live - before


def slice_of(copied: bool) -> int:
    """Bytes alive when one row of a thousand is all that is left."""
    with Tracker() as tracker:
        row = torch.zeros(1000, 256)[0]
        row = row.clone() if copied else row
        return tracker.live


def accumulated(network: nn.Module, pieces: int) -> list[Tensor]:
    """Gradients of the mean loss, collected over pieces of a batch."""
    seed(0)
    x, y = pictures(3, 16, 16)(16)
    network.zero_grad()
    for part, labels in zip(x.chunk(pieces), y.chunk(pieces)):
        (F.cross_entropy(network(part), labels) / pieces).backward()
    return [p.grad for p in network.parameters()]


def pieces_apart(network: nn.Module) -> float:
    """Largest change of a gradient, relative, when a batch goes in four pieces."""
    whole = accumulated(network, 1)
    pieces = accumulated(network, 4)
    return max(checks.deviation(a, b) for a, b in zip(pieces, whole))


# %% tags=["mistakes-claims"]
said = overwritten()
claim("modified by an inplace operation" in said, "autograd notices")
claim("version 1; expected version 0" in said, "by counting versions")
record("list.kept", losses_in_a_list(10, False))
record("list.detached", losses_in_a_list(10, True))
claim(slice_of(False) == 1000 * slice_of(True), "a row keeps the whole memory")
seed(0)
network = Residual()
claim(pieces_apart(network) > 0.01, "with batch norm, pieces give other gradients")
claim(pieces_apart(network.eval()) < 1e-4, "not with fixed statistics")

# %% [markdown]
# ## Large networks, by formula

# %% tags=["large"]
PER_PARAMETER = {  # bytes: weight, gradient, optimiser's numbers
    "float32, Adam": (4, 4, 8),
    "mixed, Adam": (2, 2, 4 + 8),  # a copy of the weight in float32
    "mixed, Adam of 8 bits": (2, 2, 4 + 2),
    "mixed, Adam, ZeRO on 64 GPUs": (2 / 64, 2 / 64, 12 / 64),
    "mixed, Adam, LoRA of 1 %": (2 + 0.02, 0.02, 0.12),  # all weights, and 1 % more
}

# %% tags=["large-table"]
rows = []
for name, parts in PER_PARAMETER.items():
    cells = [f"{part:.3g}" for part in (*parts, sum(parts))]
    rows.append((name, *cells, f"{7 * sum(parts):.1f}"))
heads = ("bytes a parameter", "weight", "gradient", "optimiser", "sum", "7 billion, GB")
table(rows, heads)

# %% [markdown]
# ## On a GPU


# %% tags=["cuda"]
def on_cuda(build: Callable, batch: Callable, B: int, file: Path) -> int:
    """Peak by CUDA's allocator; its history, for pytorch.org/memory_viz, in a file."""
    torch.cuda.memory._record_memory_history()
    network = build().to(device)
    x, y = (t.to(device) for t in batch(B))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    F.cross_entropy(network(x), y).backward()
    torch.cuda.memory._dump_snapshot(str(file))
    torch.cuda.memory._record_memory_history(enabled=None)
    return torch.cuda.max_memory_allocated() - before


# %% tags=["cuda-run"]
if torch.cuda.is_available():
    with tempfile.TemporaryDirectory() as folder:
        found = on_cuda(*NETWORKS["MLP"], 8, Path(folder) / "snapshot.pickle")
    table([("MLP", found)], ("on CUDA", "peak, bytes"))

# %% [markdown]
# ## What we saw
#
# - What each layer keeps is a rule; with the rules and shapes, the bytes of a training
#   step are known before it runs, and measured they are the same.
# - Activations grow with the batch; weights, gradients and the optimiser's numbers do not.
# - Each means lowers one of these parts, and pays with work, transfers or exactness.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
sizes = (784, 64, 10)
parameters_1 = 784 * 64 + 64 + 64 * 10 + 10
state_1 = 4 * parameters_1 * 4 + 4 * 4  # and the counts of four tensors
kept_1 = 32 * (4 * 784 + 4 * 64 + 4 * 10 + 8) + 4  # input, hidden, shares, labels

# %% tags=["solution-1-result"]
step_1 = measured(digits_mlp, pictures(784), 32)
claim(step_1.activations == kept_1, "activations by hand")
claim(sum(step_1) == state_1 + kept_1, "the sum by hand")
table([(state_1 + kept_1, sum(step_1))], ("by hand", "measured"))


# %% tags=["solution-2"]
def gelu_mlp() -> nn.Module:
    hidden = (nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU())
    return nn.Sequential(*hidden, nn.Linear(128, 10))


# %% tags=["solution-2-result"]
pair = [expected(build, pictures(64), 32).total() for build in (mlp, gelu_mlp)]
claim(measured(gelu_mlp, pictures(64), 32).activations == pair[1], "measured, too")
claim(pair[1] - pair[0] == 2 * 32 * 128 * 4, "two maps more")
table([tuple(pair)], ("ReLU, bytes kept", "GELU"))


# %% tags=["solution-3"]
class Halves(saved_tensors_hooks):
    """Keeps what is in float32 as float16."""

    def __init__(self):
        super().__init__(self.pack, self.unpack)

    def pack(self, x: Tensor) -> Tensor:
        return x.half() if x.dtype == torch.float32 else x

    def unpack(self, x: Tensor) -> Tensor:
        return x.float() if x.dtype == torch.float16 else x


# %% tags=["solution-3-result"]
seed(0)
network = Chain(8, 32, 1, plain)
x = torch.randn(64, 32)
exact = gradients(network, x)
with Halves():
    near = gradients(network, x)
off = max(checks.deviation(a, b) for a, b in zip(near, exact))
claim(0 < off < 0.01, "gradients change by less than a hundredth")
table([(f"{off:.0e}",)], ("largest change of a gradient, relative",))


# %% tags=["solution-4"]
def nested(layers: list[nn.Module], x: Tensor) -> Tensor:
    """Checkpoints within checkpoints: each half, and in it each half."""
    if len(layers) == 1:
        return layers[0](x)
    middle = len(layers) // 2
    for half in (layers[:middle], layers[middle:]):
        x = checkpoint(nested, half, x, use_reentrant=False)
    return x


def nested_cost(n: int) -> tuple[float, int]:
    """Peak in maps, beside weights and their gradients, and layers run."""
    calls = Counter()
    with Tracker() as tracker:
        layers = [layer(D, 0) for _ in range(n)]
        for part in layers:
            part[0].weight.grad = torch.zeros_like(part[0].weight)
            part[0].bias.grad = torch.zeros_like(part[0].bias)
            part[1].register_forward_pre_hook(lambda *_: calls.update(layers=1))
        x = torch.randn(ROWS, D)
        before = tracker.live
        nested(layers, x).sum().backward()
    return (tracker.peak - before) / MAP, calls["layers"]


# %% tags=["solution-4-result"]
rows = []
for n in (4, 16, 64):
    maps, layers_run = nested_cost(n)
    claim(abs(maps - math.log2(n) - 2) < 0.2, f"{n} layers: a map for each doubling")
    claim(layers_run == n * (math.log2(n) + 3) / 2, f"{n} layers: runs as n log n")
    rows.append((n, f"{maps:.2f}", 2 * math.isqrt(n), layers_run, 2 * n))
heads = ("layers", "peak, outputs", "root of n: peak", "layers run", "root of n: run")
table(rows, heads)
