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
# # Counting operations and parameters
#
# What a layer costs, counted product by product; two counters of our own, by modules and by
# operators; and four counters on ten networks, with each difference traced to its cause.
# The text to it is the [chapter](../chapters/flops_params.rst).

# %%
import functools
import io
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from itertools import product
from typing import NamedTuple

import matplotlib.pyplot as plt
import safetensors.torch
import torch
import torchinfo
import torchvision
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.ops import aten
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import BertConfig, BertModel

from workbench import claim, device, record, record_spread, seed, table
from workbench import checks, counting, diagrams, plots


# %% [markdown]
# ## Who sees what


# %% tags=["views-figure"] alt="Four boxes from top to bottom, joined by arrows: modules, with MultiheadAttention and LSTM; functions, with linear, scaled_dot_product_attention and lstm; operators, with addmm, bmm and fused ones; and kernels. Beside modules stand hooks and torchinfo, beside functions fvcore, beside operators torch's counter and ours, beside kernels nobody."
axes = diagrams.sheet(3.5)
LEVELS = (
    ("modules", "Linear, LSTM,\nMultiheadAttention", "hooks, torchinfo"),
    ("functions", "linear, lstm, matmul,\nscaled_dot_product_…", "fvcore"),
    ("operators", "addmm, bmm, convolution,\nor one that is fused", "torch, ours"),
    ("kernels", "loops over numbers", "no counter"),
)
nodes = {}
for place, (level, examples, counter) in enumerate(LEVELS):
    y = 0.4 + 0.88 * place
    nodes[level] = diagrams.Node(0.55, y, level, weight="bold")
    nodes[examples] = diagrams.Node(2.3, y, examples, width=2.3)
    nodes[counter] = diagrams.Node(4.25, y, counter, colour=plots.COLOURS[1])
boxes = [examples for _, examples, _ in LEVELS]
diagrams.draw(axes, nodes, list(zip(boxes, boxes[1:])))

# %% [markdown]
# ## One product at a time
#
# A number that counts the products and sums it takes part in. With it a layer is written as
# plain loops, which give both its output and what that took.


# %% tags=["number"]
class Number:
    """A number that notes each product and each sum in `done`."""

    done = Counter()

    def __init__(self, value: float):
        self.value = float(value)

    def __mul__(self, other: "Number") -> "Number":
        Number.done["products"] += 1
        return Number(self.value * other.value)

    def __add__(self, other: "Number") -> "Number":
        Number.done["sums"] += 1
        return Number(self.value + other.value)


def multiply_add(total: Number, a: Number, b: Number) -> Number:
    """One multiply-accumulate: a product that goes into a running total."""
    Number.done["macs"] += 1
    return total + a * b


# %% tags=["by-hand"]
def numbers(x: Tensor):
    """A tensor as lists within lists of `Number`."""
    return [numbers(part) for part in x] if x.ndim else Number(x.item())


def values(x):
    """The way back: lists of floats."""
    return [values(part) for part in x] if isinstance(x, list) else x.value


def by_hand(loops: Callable, *tensors: Tensor, **how) -> tuple[Tensor, Counter]:
    """What loops make of tensors, and the MACs, products and sums that they took."""
    given = [numbers(x) for x in tensors]
    Number.done = Counter()
    y = loops(*given, **how)
    return torch.tensor(values(y)), Number.done


# %% tags=["linear-loops"]
def linear_loops(x, weight, bias):
    """Rows x (T, d_in), weight (d_out, d_in), bias (d_out) -> (T, d_out)."""
    y = []
    for row in x:
        y.append([])
        for weights, total in zip(weight, bias):
            for w, value in zip(weights, row):
                total = multiply_add(total, w, value)
            y[-1].append(total)
    return y


# %% tags=["linear-run"]
seed(0)
rows_in = torch.randn(2, 3)
layer = nn.Linear(3, 4)
y, done = by_hand(linear_loops, rows_in, layer.weight, layer.bias)

# %% tags=["linear-table"]
claim(checks.deviation(y, layer(rows_in)) < 1e-6, "the loops compute the linear layer")
claim(done["macs"] == 2 * 3 * 4, "a MAC for each weight and row")
claim(done["sums"] == done["products"] == done["macs"], "two operations are one MAC")
rows = [("2 rows", 16, done["macs"], done["products"], done["sums"])]
table(rows, ("nn.Linear(3, 4)", "parameters", "MACs", "products", "sums"))

# %% [markdown]
# ## The other layers, the same way


# %% tags=["conv-loops"]
def conv_loops(x, weight, bias, *, groups: int):
    """x (C, H, H), weight (O, C / groups, k, k) -> (O, H - k + 1, H - k + 1)."""
    c = len(weight[0])
    k = len(weight[0][0])
    side = len(x[0]) - k + 1
    y = [[[total] * side for _ in range(side)] for total in bias]
    for o, i, j in product(range(len(bias)), range(side), range(side)):
        first = o // (len(bias) // groups) * c  # the first channel of its group
        for m, a, b in product(range(c), range(k), range(k)):
            pixel = x[first + m][i + a][j + b]
            y[o][i][j] = multiply_add(y[o][i][j], weight[o][m][a][b], pixel)
    return y


def transposed_loops(x, weight, bias, *, stride: int):
    """x (C, H, H), weight (C, O, k, k): each pixel lays its kernel on the output."""
    H = len(x[0])
    k = len(weight[0][0])
    side = (H - 1) * stride + k
    y = [[[total] * side for _ in range(side)] for total in bias]
    for m, i, j in product(range(len(x)), range(H), range(H)):
        for o, a, b in product(range(len(bias)), range(k), range(k)):
            line = y[o][i * stride + a]
            spot = j * stride + b
            line[spot] = multiply_add(line[spot], weight[m][o][a][b], x[m][i][j])
    return y


# %% tags=["attention-loops"]
def dot(a, b) -> Number:
    """The inner product of two lists."""
    total = Number(0)
    for left, right in zip(a, b):
        total = multiply_add(total, left, right)
    return total


def attention_loops(x):
    """softmax(x x' / sqrt(d)) x: one head, queries, keys and values are x (T, d)."""
    scale = Number(1 / math.sqrt(len(x[0])))
    y = []
    for query in x:
        scores = [dot(query, key) * scale for key in x]
        powers = [Number(math.exp(score.value)) for score in scores]
        total = Number(0)
        for power in powers:
            total = total + power
        part = Number(1 / total.value)
        shares = [power * part for power in powers]
        y.append([dot(shares, column) for column in zip(*x)])
    return y


# %% tags=["lstm-loops"]
def lstm_loops(x, w_x, w_h, b_x, b_h):
    """One layer from a state of zeros: x (T, n), w_x (4m, n), w_h (4m, m) -> (T, m)."""
    m = len(w_h[0])
    h = [Number(0)] * m
    c = [Number(0)] * m
    y = []
    for row in x:
        from_x = linear_loops([row], w_x, b_x)[0]
        from_h = linear_loops([h], w_h, b_h)[0]
        sums = [(u + v).value for u, v in zip(from_x, from_h)]
        gates = [Number(1 / (1 + math.exp(-value))) for value in sums]
        new = [Number(math.tanh(value)) for value in sums[2 * m : 3 * m]]
        c = [gates[m + i] * c[i] + gates[i] * new[i] for i in range(m)]
        h = [gates[3 * m + i] * Number(math.tanh(c[i].value)) for i in range(m)]
        y.append(h)
    return y


# %% tags=["other-loops"]
def norm_loops(x, scale, shift):
    """Batch norm in evaluation, statistics folded into two numbers: x (C, H, W)."""
    channels = zip(x, scale, shift)
    return [[[v * a + b for v in line] for line in rows] for rows, a, b in channels]


def embedding_loops(places, weight):
    """Rows of a table: places (T), weight (V, d) -> (T, d)."""
    return [weight[int(place.value)] for place in places]


def vector_loops(x, weight):
    """A matrix times a vector: x (d), weight (n, d) -> (n)."""
    return [dot(row, x) for row in weight]


def twice_loops(x, weight, bias):
    """A linear layer behind itself."""
    return linear_loops(linear_loops(x, weight, bias), weight, bias)


# %% [markdown]
# ## Small networks, one cause each


# %% tags=["small-networks"]
class Fused(nn.Module):
    """Attention as one call, one head: (1, T, d) -> (1, T, d)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x[None], x[None], x[None])[0]


class Written(nn.Module):
    """Attention as two products of matrices."""

    def forward(self, x: Tensor) -> Tensor:
        scores = x @ x.mT / math.sqrt(x.shape[-1])  # (1, T, T)
        return scores.softmax(-1) @ x


class Parent(nn.Module):
    """Calls a function on the parameters of a layer, not the layer."""

    def __init__(self, d: int):
        super().__init__()
        self.layer = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight, self.layer.bias)


class Twice(nn.Module):
    """One layer, used two times."""

    def __init__(self, d: int):
        super().__init__()
        self.layer = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class MatrixVector(nn.Module):
    """A matrix times a single vector: (1, d) -> (d)."""

    def __init__(self, d: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d, d))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x[0]


# %% tags=["small-cases"]
class Case(NamedTuple):
    """A small network, its input, what the loops give, and what they took."""

    network: nn.Module
    x: Tensor
    y: Tensor
    done: Counter


def case(network: nn.Module, x: Tensor, loops: Callable, *given: Tensor, **how) -> Case:
    """Run the loops on the first of the batch and on `given`, else the parameters."""
    given = given or tuple(network.parameters())
    return Case(network.eval(), x, *by_hand(loops, x[0], *given, **how))


def small_cases() -> dict[str, Case]:
    """Name: case, random numbers with a seed."""
    seed(0)
    rows = torch.randn(1, 4, 3)
    norm = checks.randomise_norms(nn.BatchNorm2d(3))
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - scale * norm.running_mean
    grouped = nn.Conv2d(4, 6, 3, groups=2)
    up = nn.ConvTranspose2d(3, 2, 2, stride=2)
    wide = torch.randn(1, 4, 5, 5)
    image = torch.randn(1, 3, 4, 4)
    vector = torch.randn(1, 4)
    places = torch.tensor([[5, 0, 2, 5]])
    return {
        "linear, 4 rows": case(nn.Linear(3, 5), rows, linear_loops),
        "grouped convolution": case(grouped, wide, conv_loops, groups=2),
        "transposed convolution": case(up, image, transposed_loops, stride=2),
        "batch norm": case(norm, image, norm_loops, scale, shift),
        "attention, one call": case(Fused(), rows, attention_loops),
        "attention, written out": case(Written(), rows, attention_loops),
        "layer used by its parent": case(Parent(3), rows, linear_loops),
        "layer used twice": case(Twice(3), rows, twice_loops),
        "LSTM": case(nn.LSTM(3, 4, batch_first=True), rows, lstm_loops),
        "embedding": case(nn.Embedding(7, 3), places, embedding_loops),
        "matrix times vector": case(MatrixVector(4), vector, vector_loops),
    }


# %% tags=["small-run"]
cases = small_cases()
rows = []
for name, (network, x, y, done) in cases.items():
    with torch.no_grad():
        found = network(x)
    found = found[0] if isinstance(found, tuple) else found
    claim(checks.deviation(y.view(found.shape), found) < 1e-5, f"{name}: the loops")
    own = counting.parameters(network)
    rows.append((name, own, done["macs"], done["products"], done["sums"]))

# %% tags=["small-table"]
table(rows, ("network", "parameters", "MACs", "products", "sums"))

# %% [markdown]
# ## Counter one: hooks on modules
#
# Each module that is called tells its input and its output; its type says what that costs.


# %% tags=["hooks"]
def module_macs(module: nn.Module, x: Tensor, y: Tensor) -> int:
    """MACs of one call of a layer; 0 of what is neither linear nor recurrent."""
    if isinstance(module, nn.Linear):
        return y.numel() * module.in_features
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return x.numel() * module.weight[0].numel()  # each input pixel lays a kernel
    if isinstance(module, nn.modules.conv._ConvNd):
        return y.numel() * module.weight[0].numel()  # C / groups * k * k
    if isinstance(module, nn.RNNBase):
        weights = [p for name, p in module.named_parameters() if "weight" in name]
        steps = x.numel() // module.input_size
        return steps * sum(weight.numel() for weight in weights)
    return 0


def count_hooks(network: nn.Module, x: Tensor) -> int:
    """MACs of all layers that are called while the network runs once."""
    found = []

    def hook(module: nn.Module, inputs, outputs):
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        if isinstance(outputs, Tensor) and inputs:
            found.append(module_macs(module, inputs[0], outputs))

    handles = [module.register_forward_hook(hook) for module in network.modules()]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return sum(found)


# %% [markdown]
# ## Counter two: operators
#
# Below the modules torch calls operators on tensors. A dispatch mode sees each of them.


# %% tags=["formulas"]
def matrices(args, out) -> int:
    """mm and bmm: the left matrix, times the columns of the right one."""
    return args[0].numel() * args[1].shape[-1]


def convolution(args, out) -> int:
    """The weight at each place: of the output, or of the input if transposed."""
    x, weight = args[:2]
    transposed = args[6]
    places = x.shape[2:] if transposed else out.shape[2:]
    return len(x) * math.prod(places) * weight.numel()


def attention(args, out) -> int:
    """Queries with keys, shares with values: q (B, h, T, d), k and v (B, h, S, d)."""
    q, k, v = args[:3]
    pairs = q.shape[:-1].numel() * k.shape[-2]
    return pairs * (q.shape[-1] + v.shape[-1])


def encoder_attention(args, out) -> int:
    """Attention in one operator with its four linear layers: queries (B, T, d)."""
    B, T, d = args[0].shape
    return B * T * (4 * d * d + 2 * T * d)


def lstm(args, out) -> int:
    """One layer of oneDNN's LSTM: x (T, B, n) and two weights."""
    x, from_x, from_h = args[:3]
    return x.shape[:2].numel() * (from_x.numel() + from_h.numel())


FORMULAS = {
    aten.mm: matrices,
    aten.bmm: matrices,
    aten.addmm: lambda args, out: matrices(args[1:], out),
    aten.baddbmm: lambda args, out: matrices(args[1:], out),
    aten.mv: lambda args, out: args[0].numel(),
    aten.convolution: convolution,
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    aten._scaled_dot_product_flash_attention: attention,
    aten._scaled_dot_product_efficient_attention: attention,
    aten._scaled_dot_product_cudnn_attention: attention,
    aten._native_multi_head_attention: encoder_attention,
    aten.mkldnn_rnn_layer: lstm,
}


# %% tags=["operators"]
class Operators(TorchDispatchMode):
    """Counts, for each operator, its MACs, and the bytes that all of them move."""

    def __init__(self):
        super().__init__()
        self.macs = Counter()
        self.moved = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        operator = function.overloadpacket
        if operator in FORMULAS:
            self.macs[operator] += FORMULAS[operator](args, out)
        if not function.is_view and operator is not aten._unsafe_view:
            read = args[1:] if operator is aten.embedding else args  # rows, no table
            tensors = [t for t in tree_leaves((read, out)) if isinstance(t, Tensor)]
            self.moved += sum(t.numel() * t.element_size() for t in tensors)
        return out


def run_operators(network: nn.Module, x: Tensor) -> Operators:
    """The counter, after it has seen the network run once."""
    with torch.no_grad(), Operators() as seen:
        network(x)
    return seen


def count_operators(network: nn.Module, x: Tensor) -> int:
    return run_operators(network, x).macs.total()


# %% [markdown]
# ## Three counters of libraries


# %% tags=["libraries"]
def count_torch(network: nn.Module, x: Tensor) -> int:
    """Half of what torch's counter finds: it takes two operations for a MAC."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x)
    return counter.get_total_flops() // 2


def count_torchinfo(network: nn.Module, x: Tensor) -> int:
    """What torchinfo calls mult-adds."""
    found = torchinfo.summary(network, input_data=x, verbose=0, device=x.device)
    return found.total_mult_adds


def analyse(network: nn.Module, x: Tensor):
    """fvcore's count, which calls a MAC a flop, without its lines in the log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit, which it is made of
        from fvcore.nn import FlopCountAnalysis
    analysis = FlopCountAnalysis(network, x)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analysis.tracer_warnings("none")


def count_fvcore(network: nn.Module, x: Tensor) -> int:
    return int(analyse(network, x).total())


# %% tags=["counters"]
COUNTERS = {
    "hooks": count_hooks,
    "operators": count_operators,
    "torch": count_torch,
    "torchinfo": count_torchinfo,
    "fvcore": count_fvcore,
}


def small_counts(case: Case) -> dict:
    """What the loops and each counter say of a case; "error" where one fails."""
    found = {"by hand": case.done["macs"]}
    for name, count in COUNTERS.items():
        try:
            found[name] = count(case.network, case.x)
        except (IndexError, AssertionError):  # from within fvcore
            found[name] = "error"
    return found


# %% tags=["causes"]
small = {name: small_counts(case) for name, case in cases.items()}
table(
    [(name, *found.values()) for name, found in small.items()],
    ("network", "by hand", *COUNTERS),
)


# %% tags=["versions"]
READ = {"torch": "2.14", "torchinfo": "1.8", "fvcore": "0.1.5"}


def said(library: str, condition: bool, words: str):
    """A claim about a library, for the version whose rules the chapter tells."""
    if metadata.version(library).startswith(READ[library]):
        claim(condition, f"{library}: {words}")


# %% tags=["causes-claims"]
for name, found in small.items():
    claim(found["operators"] == found["by hand"], f"{name}: operators are right")
for counter in ("hooks", *READ):
    right = [found[counter] == found["by hand"] for found in small.values()]
    record(f"right.{counter}", sum(right))
for library in READ:
    record(f"version.{library}", metadata.version(library).split("+")[0])
said("torchinfo", small["linear, 4 rows"]["torchinfo"] == 20, "parameters, once")
said("fvcore", small["batch norm"]["fvcore"] == 2 * 3 * 16, "two for each number")
record("cases", len(small))

# %% [markdown]
# ## Ten networks


# %% tags=["own-networks"]
class LeNet(nn.Sequential):
    """Two convolutions and three linear layers: (B, 1, 28, 28) -> (B, 10)."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.Tanh(),
            nn.Linear(120, 84),
            nn.Tanh(),
            nn.Linear(84, 10),
        )


class LanguageModel(nn.Module):
    """Two layers of an LSTM guess the next word: (B, T) -> (B, T, V)."""

    def __init__(self, V: int = 10_000, d_model: int = 512):
        super().__init__()
        self.words = nn.Embedding(V, d_model // 2)
        self.lstm = nn.LSTM(d_model // 2, d_model, 2, batch_first=True)
        self.guess = nn.Linear(d_model, V)

    def forward(self, words: Tensor) -> Tensor:
        x, _ = self.lstm(self.words(words))  # (B, T, d_model)
        return self.guess(x)


class Bert(nn.Module):
    """BERT-base: (B, T) -> (B, T, 768)."""

    def __init__(self):
        super().__init__()
        self.bert = BertModel(BertConfig())

    def forward(self, words: Tensor) -> Tensor:
        return self.bert(words).last_hidden_state


class Denoiser(nn.Module):
    """A small U-Net with attention, as for diffusion: (B, 3, 32, 32), same out."""

    def __init__(self):
        super().__init__()
        self.unet = UNet2DModel(
            sample_size=32,
            block_out_channels=(64, 128, 128),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )

    def forward(self, x: Tensor) -> Tensor:
        step = torch.zeros(1, dtype=torch.long, device=x.device)
        return self.unet(x, step).sample


# %% tags=["networks"]
PHOTO = (3, 224, 224)
NETWORKS = {  # builder, shape of one input
    "LeNet-5": (LeNet, (1, 28, 28)),
    "AlexNet": (torchvision.models.alexnet, PHOTO),
    "ResNet-50": (torchvision.models.resnet50, PHOTO),
    "MobileNetV2": (torchvision.models.mobilenet_v2, PHOTO),
    "ConvNeXt-T": (torchvision.models.convnext_tiny, PHOTO),
    "ViT-B/16": (torchvision.models.vit_b_16, PHOTO),
    "Swin-T": (torchvision.models.swin_t, PHOTO),
    "BERT-base": (Bert, (128,)),
    "LSTM": (LanguageModel, (32,)),
    "U-Net": (Denoiser, (3, 32, 32)),
}


def key(name: str) -> str:
    """The name under which the page's numbers are kept."""
    return name.replace("/", "-")


def ready(name: str, where="meta", *, B: int = 1) -> tuple[nn.Module, Tensor]:
    """A network and an input, their numbers zero, or without numbers (meta)."""
    build, shape = NETWORKS[name]
    with torch.device("meta"):
        network = build().eval()
    if str(where) != "meta":
        network = network.to_empty(device=where)
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.detach().zero_()
    kind = torch.long if len(shape) == 1 else torch.float32  # words, or pixels
    return network, torch.zeros(B, *shape, dtype=kind, device=where)


# %% tags=["differences"]
def torch_missed(seen: Operators) -> int:
    """MACs of the operators for which torch's counter has no formula."""
    return sum(n for operator, n in seen.macs.items() if operator not in flop_registry)


def hidden(seen: Operators, flat: Operators) -> int:
    """MACs that fvcore's trace has no formula for: fused attention and LSTM.

    On the meta device fused attention falls apart into bmm.
    """
    fused = flat.macs[aten.bmm] - seen.macs[aten.bmm]
    return fused + seen.macs[aten.mkldnn_rnn_layer]


NOT_MACS = (
    "batch_norm",
    "layer_norm",
    "group_norm",
    "adaptive_avg_pool2d",
    "upsample_nearest2d",
)


def torchinfo_parts(network: nn.Module, x: Tensor) -> Counter:
    """What sets torchinfo 1.8 apart: parameters it adds, positions it drops.

    It multiplies all parameters of a leaf by the batch, those of a convolution by the
    places of its output, too, and those of a recurrent layer by the steps.
    """
    parts = Counter()

    def hook(module: nn.Module, inputs, y):
        y = y[0] if isinstance(y, tuple) else y
        own = sum(p.numel() for p in module.parameters())
        times = len(y)
        if isinstance(module, nn.modules.conv._ConvNd):
            times = y[:, 0].numel()
        if isinstance(module, nn.RNNBase):
            times = y.shape[:2].numel()
        true = module_macs(module, inputs[0], y)
        dropped = 0
        if isinstance(module, nn.Linear):
            dropped = true - times * module.weight.numel()
        parts["seen"] += true
        parts["added"] += times * own - true + dropped
        parts["dropped"] += dropped

    leaves = [m for m in network.modules() if not any(m.children())]
    owners = [m for m in leaves if any(True for _ in m.parameters())]
    handles = [module.register_forward_hook(hook) for module in owners]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return parts


# %% tags=["clock"]
def seconds(work: Callable, repeats: int = 4) -> float:
    """The shortest of some runs of what gives a tensor."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        y = work()
        y[(0,) * y.ndim].item()  # a number can be read when the work is done
        found.append(time.perf_counter() - start)
    return min(found)


@torch.no_grad()
def running(network: nn.Module, x: Tensor) -> float:
    """Seconds of one forward pass of a network that has run on the CPU before."""
    work = functools.partial(network.to(device), x.to(device))
    if device.type != "cpu":
        work()
    return seconds(work, 1)


# %% tags=["count"]
on_meta = {}
parts = {}  # of torchinfo's count
flat = {}  # our counter's record on the meta device
parameters = {}
for name in NETWORKS:
    network, x = ready(name)
    with FlopCounterMode(display=False) as library, Operators() as flat[name]:
        parts[name] = torchinfo_parts(network, x)
    on_meta[name, "torch"] = library.get_total_flops() // 2
    on_meta[name, "torchinfo"] = count_torchinfo(network, x)
    on_meta[name, "book"] = counting.macs(network, x)
    parameters[name] = counting.parameters(network)

# %% tags=["count-cpu"]
seen = {}  # our counter's record on the CPU
on_cpu = {}  # torch's count
reports = {}  # fvcore's, by operator
taken = {}  # seconds of a pass
for name in NETWORKS:
    network, x = ready(name, "cpu")
    with FlopCounterMode(display=False) as library:
        seen[name] = run_operators(network, x)
    on_cpu[name] = library.get_total_flops() // 2
    reports[name] = analyse(network, x).by_operator()
    taken[name] = running(network, x)

# %% tags=["counts"]
counts = {}
for name in NETWORKS:
    counts[name] = {
        "ours": seen[name].macs.total(),
        "torch": on_cpu[name],
        "torchinfo": on_meta[name, "torchinfo"],
        "fvcore": int(reports[name].total()),
    }

# %% tags=["headline-table"]
rows = []
for name, found in counts.items():
    digits = 4 if name == "LeNet-5" else 3
    giga = [f"{macs / 1e9:.{digits}f}" for macs in found.values()]
    rows.append((name, f"{parameters[name] / 1e6:.2f}", *giga))
    for counter, macs in found.items():
        record(f"{key(name)}.{counter}", macs / 1e9)
table(rows, ("network", "parameters, M", "ours", "torch", "torchinfo", "fvcore"))

# %% tags=["headline-claims"]
for name, found in counts.items():
    alike = {found["ours"], flat[name].macs.total(), on_meta[name, "book"]}
    words = f"{name}: ours on the CPU, on meta and the book's counter agree"
    claim(len(alike) == 1, words)
    said("torch", on_meta[name, "torch"] == found["ours"], f"{name}: ours, on meta")
exact = [name for name, found in counts.items() if found["torch"] == found["ours"]]
record("torch.exact", len(exact))
record("torch.misses", len(counts) - len(exact))

# %% tags=["ratio-claims"]
share = {(n, c): found[c] / found["ours"] for n, found in counts.items() for c in found}
low = [share[n, "torchinfo"] for n in ("ConvNeXt-T", "ViT-B/16", "Swin-T", "BERT-base")]
said("torchinfo", max(low) < 0.1, "less than a tenth of four networks")
for library in READ:
    near = [abs(share[name, library] - 1) < 0.05 for name in list(counts)[:4]]
    said(library, all(near), "the four first networks: within five per cent")
fvcore = [share[n, "fvcore"] for n in counts if n != "LSTM"]
said("fvcore", min(fvcore) > 0.93 and max(fvcore) < 1.05, "near 1 but on the LSTM")
said("fvcore", 0.57 < share["LSTM", "fvcore"] < 0.65, "0.58 of the LSTM")
lows = [share[n, "torch"] for n in ("LSTM", "ViT-B/16", "U-Net", "BERT-base")]
said("torch", max(lows[:2]) < 0.65 and min(lows[2:]) > 0.9, "four networks")

# %% tags=["ratio-figure"] alt="Ten networks, one a row, and the count of each library divided by ours on a logarithmic axis from 0.005 to 1.3. fvcore lies near 1 on all but the LSTM, at 0.58. torch lies at 1 but for ViT at 0.64, LSTM at 0.58, U-Net and BERT a little below 1. torchinfo lies near 1 on the four first networks, and far to the left for ConvNeXt, ViT, Swin and BERT, at 0.1 or less."
MARKS = {"torchinfo": "s", "fvcore": "D", "torch": "o"}
_, axes = plt.subplots(figsize=(5, 4))
lines = range(len(counts))
axes.hlines(lines, 0.005, 1.3, color=plots.GRID, linewidth=1)
axes.axvline(1, color=plots.QUIET, linewidth=1)
for (counter, mark), colour in zip(MARKS.items(), plots.COLOURS):
    ratios = [found[counter] / found["ours"] for found in counts.values()]
    axes.plot(ratios, lines, mark, color=colour, label=counter, fillstyle="none")
axes.set(xscale="log", xlabel="count divided by ours", xlim=(0.005, 1.3))
axes.set(yticks=lines, yticklabels=counts)
axes.set(xticks=(0.01, 0.1, 1), xticklabels=("0.01", "0.1", "1"))
axes.invert_yaxis()
axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
axes.set_axisbelow(True)

# %% [markdown]
# ## Each difference, to the last product


# %% tags=["differences-table"]
rows = []
POOLER = 768 * 768  # of BERT; none of its outputs is used
for name, found in counts.items():
    missed = torch_missed(seen[name])
    extra = int(sum(reports[name][kind] for kind in NOT_MACS))
    lost = hidden(seen[name], flat[name]) + (POOLER if name == "BERT-base" else 0)
    claim(found["torch"] == found["ours"] - missed, f"{name}: torch, explained")
    said(
        "fvcore", found["fvcore"] == found["ours"] - lost + extra, f"{name}, explained"
    )
    signs = [f"{n / 1e6:.2f}" for n in (missed, lost)]
    rows.append((name, *signs, f"{extra / 1e6:.2f}"))
table(rows, ("network", "torch, misses", "fvcore, misses", "fvcore, adds"))

# %% tags=["torchinfo-table"]
rows = []
for name, found in counts.items():
    unseen = found["ours"] - parts[name]["seen"]
    steps = (unseen, parts[name]["dropped"], parts[name]["added"])
    explained = found["ours"] - steps[0] - steps[1] + steps[2]
    said("torchinfo", explained == found["torchinfo"], f"{name}, explained")
    rows.append((name, *(f"{n / 1e6:.3f}" for n in steps)))
table(rows, ("network", "misses calls", "drops positions", "adds parameters"))

# %% [markdown]
# ## Bytes
#
# A file of weights holds parameters and buffers.


# %% tags=["bytes"]
def state_bytes(network: nn.Module) -> Counter:
    """Bytes of parameters, and of buffers by their type of number."""
    found = Counter(
        parameters=sum(p.numel() * p.element_size() for p in network.parameters())
    )
    for buffer in network.buffers():
        found[f"buffers, {str(buffer.dtype).removeprefix('torch.')}"] += buffer.nbytes
    return found


def saved_bytes(state: dict) -> int:
    """Size of the file that torch.save makes."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.tell()


# %% tags=["bytes-run"]
network, _ = ready("MobileNetV2", "cpu")
state = network.state_dict()
held = state_bytes(network)
sizes = {**held, "torch.save": saved_bytes(state)}
sizes["safetensors"] = len(safetensors.torch.save(state))
sizes["torch.save, half"] = saved_bytes({k: v.half() for k, v in state.items()})

# %% tags=["bytes-table"]
published = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["_file_size"]
record("published.file", published)
record("saved.file", sizes["torch.save"] / 2**20)
claim(
    abs(sizes["torch.save"] / 2**20 - published) < 0.1, "as large as the one published"
)
claim(sizes["torch.save"] > sum(held.values()), "a file has more than the numbers")
claim(sizes["safetensors"] < sizes["torch.save"], "safetensors adds less")
claim(held["parameters"] == 4 * parameters["MobileNetV2"], "four bytes a parameter")
table(list(sizes.items()), ("MobileNetV2", "bytes"))


# %% tags=["tied"]
class Tied(nn.Module):
    """The output layer uses the table of the words."""

    def __init__(self, V: int, d: int):
        super().__init__()
        self.words = nn.Embedding(V, d)
        self.guess = nn.Linear(d, V, bias=False)
        self.guess.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.guess(self.words(words))


# %% tags=["tied-run"]
tied = Tied(1000, 64)
weights = tied.state_dict()
once = counting.parameters(tied)
twice = sum(weight.numel() for weight in weights.values())
in_file = saved_bytes(weights)
try:
    safetensors.torch.save(weights)
    refused = False
except RuntimeError:
    refused = True

# %% tags=["tied-claims"]
claim(once == 64_000 and twice == 2 * once, "the state dict names tied weights twice")
claim(in_file < 1.1 * 4 * once, "torch.save writes them once")
claim(refused, "safetensors refuses tied weights")
record("tied.once", once)
record("tied.twice", twice)
record("tied.file", in_file)

# %% [markdown]
# ## The roofline
#
# A machine multiplies so fast, and moves bytes so fast. Which of the two bounds a network
# depends on its operations for each byte.


# %% tags=["intensity"]
def intensity(macs: int, moved: int) -> float:
    """Operations, two for a MAC, for each byte that the operators read or write."""
    return 2 * macs / moved


def product_intensity(n: int) -> float:
    """Of the product of two n x n matrices of float32: n / 6."""
    matrix = torch.empty(n, n, device="meta")
    with Operators() as seen:
        matrix @ matrix
    return intensity(seen.macs.total(), seen.moved)


# %% tags=["intensity-table"]
LARGER = 16
rows = []
single = {}
larger = {}
for name in NETWORKS:
    single[name] = intensity(seen[name].macs.total(), seen[name].moved)
    batch = run_operators(*ready(name, B=LARGER))
    alone = intensity(flat[name].macs.total(), flat[name].moved)
    larger[name] = intensity(batch.macs.total(), batch.moved)
    figures = [f"{value:.1f}" for value in (single[name], alone, larger[name])]
    record(f"{key(name)}.intensity", single[name])
    record(f"{key(name)}.alone", alone)
    record(f"{key(name)}.larger", larger[name])
    rows.append((name, f"{seen[name].moved / 1e6:.1f}", *figures))
heads = ("network", "MB moved", "operations a byte", "unfused", "unfused, batch of 16")
table(rows, heads)

# %% tags=["intensity-claims"]
for n in (12, 96):
    claim(abs(product_intensity(n) - n / 6) < 1e-9, "matrices: n / 6")
claim(larger["AlexNet"] > 9 * single["AlexNet"], "a batch shares AlexNet's weights")
small_maps = max(single["MobileNetV2"], larger["MobileNetV2"]) < 4
claim(small_maps, "MobileNetV2 stays below 4")
weights = 4 * parameters["MobileNetV2"]
claim(
    weights < 0.1 * seen["MobileNetV2"].moved, "weights: less than a tenth of its bytes"
)
for name in ("ViT-B/16", "BERT-base", "LSTM", "U-Net"):
    unfused = intensity(flat[name].macs.total(), flat[name].moved)
    claim(single[name] > 1.1 * unfused, f"{name}: fused, more operations a byte")
order = sorted(NETWORKS, key=single.get)
claim(set(order[:2]) == {"LeNet-5", "MobileNetV2"}, "two at the left")
claim(set(order[-2:]) == {"BERT-base", "ViT-B/16"}, "two at the right")


# %% tags=["roof"]
def peak(n: int = 1024) -> float:
    """Operations a second of a product of two matrices of float32."""
    a = torch.rand(n, n, device=device)
    return 2 * n**3 / seconds(lambda: a @ a)


def bandwidth(n: int = 1 << 24) -> float:
    """Bytes a second of a copy, read and written, far larger than a cache."""
    a = torch.rand(n, device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / seconds(lambda: b.copy_(a))


# %% tags=["roofline", "times"]
BATCHED = ("LeNet-5", "AlexNet", "MobileNetV2", "LSTM")
top = peak()
slope = bandwidth()
points = {}
for name in NETWORKS:
    points[name, 1] = (single[name], 2 * seen[name].macs.total() / taken[name])
for name in BATCHED:
    network, x = ready(name, "cpu", B=LARGER)
    found = run_operators(network, x)
    macs = found.macs.total()
    place = intensity(macs, found.moved)
    points[name, LARGER] = (place, 2 * macs / running(network, x))

# %% tags=["roofline-figure", "times"] alt="Operations a second as a share of the peak against operations a byte, both logarithmic: a roof that rises and then is flat, and one dot for each network with one input, its name at the right. Four dots have a line to a second dot, the same network with 16 inputs. LeNet and MobileNetV2 lie at the left, BERT and ViT at the right; the line of AlexNet leads from the left far to the right."
_, axes = plt.subplots(figsize=(5, 4))
line = [1.5, top / slope, 150]
axes.plot(line, [min(x * slope / top, 1) for x in line], color=plots.QUIET)
for name in BATCHED:
    pair = [points[name, B] for B in (1, LARGER)]
    heights = [rate / top for _, rate in pair]
    axes.plot([x for x, _ in pair], heights, "o-", color=plots.COLOURS[1], linewidth=1)
thin = {"arrowstyle": "-", "color": plots.GRID}
for place, name in enumerate(sorted(NETWORKS, key=lambda name: points[name, 1][1])):
    spot = (points[name, 1][0], points[name, 1][1] / top)
    words = (1.04, (place + 0.5) / len(NETWORKS))
    how = {"textcoords": "axes fraction", "va": "center", "arrowprops": thin}
    axes.annotate(name, spot, words, fontsize=11, **how)
    axes.plot(*spot, "o", color=plots.COLOURS[0])
axes.set(
    xscale="log", yscale="log", xlabel="operations a byte", ylabel="share of the peak"
)
axes.set(xticks=(2, 10, 100), xticklabels=("2", "10", "100"))
axes.set(yticks=(0.1, 1), yticklabels=("0.1", "1"))
axes.set_axisbelow(True)

# %% tags=["roofline-record", "times"]
record("time.ridge", top / slope)
record("time.peak", top / 1e9)
record("time.bandwidth", slope / 1e9)

# %% [markdown]
# ## Equal MACs
#
# A depthwise convolution of 256 channels and a dense one of 16 have the same MACs.

# %% tags=["equal-macs"]
LAYERS = {
    "dense, 16 channels": nn.Conv2d(16, 16, 3, padding=1),
    "depthwise, 256 channels": nn.Conv2d(256, 256, 3, padding=1, groups=256),
}
pair = {}
for name, layer in LAYERS.items():
    x = torch.zeros(1, layer.in_channels, 64, 64)
    pair[name] = run_operators(layer, x)
dense, depthwise = pair.values()

# %% tags=["equal-table"]
rows = []
for name, found in pair.items():
    macs = found.macs.total()
    byte = f"{intensity(macs, found.moved):.1f}"
    rows.append((name, counting.parameters(LAYERS[name]), macs, found.moved, byte))
claim(dense.macs == depthwise.macs, "equal MACs")
record("equal.bytes", depthwise.moved / dense.moved)
table(
    rows,
    ("convolution, 3×3, 64×64", "parameters", "MACs", "bytes", "operations a byte"),
)

# %% tags=["equal-times", "times"]
ratios = []
for _ in range(5):
    taken = []
    for layer in LAYERS.values():
        layer = layer.to(device)
        x = torch.zeros(1, layer.in_channels, 64, 64, device=device)
        with torch.no_grad():
            taken.append(seconds(functools.partial(layer, x)))
    ratios.append(taken[1] / taken[0])
record_spread("time.equal", ratios)

# %% [markdown]
# ## Published numbers

# %% tags=["published"]
WEIGHTS = {
    "AlexNet": torchvision.models.AlexNet_Weights.IMAGENET1K_V1,
    "ResNet-50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
    "MobileNetV2": torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1,
    "ConvNeXt-T": torchvision.models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1,
    "ViT-B/16": torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1,
    "Swin-T": torchvision.models.Swin_T_Weights.IMAGENET1K_V1,
}
for name, weights in WEIGHTS.items():
    said = weights.meta["_ops"]
    claim(round(counts[name]["ours"] / 1e9, 3) == said, f"{name}: torchvision's GFLOPS")
    claim(weights.meta["num_params"] == parameters[name], f"{name}: parameters")
lookup = 128 * 30_522 * 768  # a product of one-hot rows and the table of words
record("electra.lookup", 2 * lookup / 1e9)
record("BERT.flops", 2 * counts["BERT-base"]["ours"] / 1e9)

# %% tags=["training"]
layer = nn.Linear(8, 8)
x = torch.ones(4, 8, requires_grad=True)
with FlopCounterMode(display=False) as counter:
    layer(x).sum().backward()
tripled = counter.get_total_flops() == 3 * 2 * count_operators(layer, x)
claim(tripled, "forward and two gradients: three times the forward pass")

# %% [markdown]
# ## What we saw
#
# - A layer written as loops takes as many products as its formula says; a MAC is one of
#   them and a sum.
# - Four counters give four answers for most networks, and each difference is a rule of the
#   counter: what it cannot see, and what it adds.
# - MACs say little of the bytes that a network moves.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
weights_1 = 6 * 1 * 25 + 16 * 6 * 25 + 400 * 120 + 120 * 84 + 84 * 10
biases_1 = 6 + 16 + 120 + 84 + 10
macs_1 = 28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25 + 400 * 120 + 120 * 84 + 84 * 10

# %% tags=["solution-1-result"]
claim(weights_1 + biases_1 == parameters["LeNet-5"], "LeNet-5's parameters by hand")
claim(macs_1 == counts["LeNet-5"]["ours"], "LeNet-5's MACs by hand")
rows = [("by hand", weights_1 + biases_1, macs_1)]
rows.append(("counted", parameters["LeNet-5"], counts["LeNet-5"]["ours"]))
table(rows, ("LeNet-5", "parameters", "MACs"))


# %% tags=["solution-2"]
def attention_flops(q, k, v, *rest, **how) -> int:
    """torch's counter gives shapes, and wants two operations for a MAC."""
    return 2 * math.prod(q) * k[-2] + 2 * math.prod(q[:-1]) * k[-2] * v[-1]


def lstm_flops(x, from_x, from_h, *rest, **how) -> int:
    return 2 * x[0] * x[1] * (math.prod(from_x) + math.prod(from_h))


KNOWN = {
    aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    aten.mkldnn_rnn_layer: lstm_flops,
}

# %% tags=["solution-2-run"]
taught = {}
for name in ("BERT-base", "LSTM", "U-Net"):
    network, x = ready(name, "cpu")
    with (
        torch.no_grad(),
        FlopCounterMode(display=False, custom_mapping=KNOWN) as counter,
    ):
        network(x)
    taught[name] = counter.get_total_flops() // 2

# %% tags=["solution-2-result"]
rows = []
for name, macs in taught.items():
    claim(macs == counts[name]["ours"], f"{name}: with formulas torch counts as we do")
    rows.append((name, counts[name]["torch"], macs, counts[name]["ours"]))
table(rows, ("network", "torch", "torch, taught", "ours"))

# %% tags=["solution-3"]
grown = {}
with torch.device("meta"):
    big = torch.zeros(1, 3, 448, 448)
    grown["ResNet-50"] = count_operators(torchvision.models.resnet50().eval(), big)
    grown["Swin-T"] = count_operators(torchvision.models.swin_t().eval(), big)
    vit = torchvision.models.vit_b_16(image_size=448).eval()
    grown["ViT-B/16"] = count_operators(vit, big)

# %% tags=["solution-3-result"]
rows = []
for name, macs in grown.items():
    times = macs / counts[name]["ours"]
    rows.append((name, f"{macs / 1e9:.3f}", f"{times:.2f}"))
claim(
    3.99 < grown["ResNet-50"] / counts["ResNet-50"]["ours"] < 4,
    "convolutions: fourfold",
)
claim(grown["ViT-B/16"] / counts["ViT-B/16"]["ours"] > 4.4, "attention over all: more")
table(rows, ("network at 448×448", "G MACs", "times 224×224"))


# %% tags=["solution-4"]
def gru_loops(x, w_x, w_h, b_x, b_h):
    """x (T, n), w_x (3m, n), w_h (3m, m) -> (T, m), from a state of zeros."""
    m = len(w_h[0])
    h = [Number(0)] * m
    y = []
    for row in x:
        u = linear_loops([row], w_x, b_x)[0]
        v = linear_loops([h], w_h, b_h)[0]
        gates = [1 / (1 + math.exp(-(u[i] + v[i]).value)) for i in range(2 * m)]
        inner = [u[2 * m + i] + Number(gates[i]) * v[2 * m + i] for i in range(m)]
        new = [Number(math.tanh(value.value)) for value in inner]
        keep = [Number(gate) for gate in gates[m:]]
        h = [new[i] * Number(1 - keep[i].value) + keep[i] * h[i] for i in range(m)]
        y.append(h)
    return y


# %% tags=["solution-4-result"]
gru = nn.GRU(3, 4, batch_first=True)
found = case(gru, torch.randn(1, 5, 3), gru_loops)
with torch.no_grad():
    expected = gru(found.x)[0][0]
claim(checks.deviation(found.y, expected) < 1e-5, "the loops compute a GRU")
formula = 5 * 3 * 4 * (3 + 4)
ours = count_operators(gru, found.x)
claim(formula == found.done["macs"] == ours, "the MACs of a GRU")
table([(formula, found.done["macs"], ours)], ("formula", "by hand", "ours"))
