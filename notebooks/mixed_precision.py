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
# # Mixed precision
#
# Number formats as bit patterns; gradients that float16 loses, and a scale that saves them; the
# scaler and autocast written out; and one network trained in seven ways.
# The text to it is the [chapter](../chapters/mixed_precision.rst).

# %%
import copy
import math
import time
from typing import NamedTuple

import matplotlib.pyplot as plt
import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from workbench import PROFILE, claim, device, record, record_spread, seed, spread, table
from workbench import images, plots, training

# %% [markdown]
# ## Formats
#
# A format is a number of exponent bits, a number of fraction bits, and what the largest
# exponent means.


# %% tags=["format"]
class Format(NamedTuple):
    """A sign, then so many bits of exponent and of fraction, from high to low.

    special: what the largest exponent stands for: "ieee" for infinity and NaN, "nan" for
    numbers too but with NaN where all bits are one, "none" for numbers only.
    """

    exponent: int
    fraction: int
    special: str = "ieee"

    @property
    def lowest(self) -> int:
        """The exponent of the smallest normal number, and of all subnormal ones."""
        return 2 - 2 ** (self.exponent - 1)

    @property
    def top(self) -> int:
        """The code of the largest number."""
        ones = (1 << self.exponent + self.fraction) - 1
        return ones - {"ieee": 1 << self.fraction, "nan": 1, "none": 0}[self.special]


FORMATS = {
    "float32": Format(8, 23),
    "tf32": Format(8, 10),
    "bfloat16": Format(8, 7),
    "float16": Format(5, 10),
    "float8 e5m2": Format(5, 2),
    "float8 e4m3": Format(4, 3, "nan"),
    "float4 e2m1": Format(2, 1, "none"),
}


# %% tags=["decode"]
def decode(code: Tensor, form: Format) -> Tensor:
    """The numbers, in float64, that integer codes stand for."""
    magnitude = code & (1 << form.exponent + form.fraction) - 1
    exponent = magnitude >> form.fraction
    fraction = magnitude & (1 << form.fraction) - 1
    normal = (exponent > 0).long()
    significand = fraction + (normal << form.fraction)  # a leading one, if normal
    power = form.lowest + exponent - normal - form.fraction
    value = significand * (power + 1023 << 52).view(torch.float64)  # times 2 ** power
    if form.special == "ieee":
        value[magnitude == form.top + 1] = math.inf
    value[magnitude > form.top + (form.special == "ieee")] = math.nan
    return torch.where(code > magnitude, -value, value)


# %% tags=["encode"]
def encode(x: Tensor, form: Format, *, saturate: bool = False) -> Tensor:
    """The codes of the nearest numbers, ties to the even code; x is float32.

    Beyond the largest number follow infinity or NaN, or with `saturate` the largest number.
    """
    bits = x.view(torch.int32).long()
    exponent = bits >> 23 & 255
    normal = (exponent > 0).long()
    significand = (bits & (1 << 23) - 1) + (normal << 23)
    power = exponent - normal - 126  # x is significand * 2 ** (power - 23)
    drop = 23 - form.fraction + (form.lowest - power).clamp(0, 25)
    kept = significand >> drop
    rest = significand - (kept << drop)
    half = 1 << drop - 1
    kept += (rest > half) | (rest == half) & (kept % 2 == 1)
    code = (power - form.lowest).clamp(min=0) << form.fraction
    code = code + kept  # a carry, and the leading one, count the exponent up
    code = code.clamp(max=form.top + 1 - (saturate or form.special == "none"))
    nan = (1 << form.exponent + form.fraction) - 1
    code = torch.where(x.isnan(), nan, code)
    return code + (x.signbit().long() << form.exponent + form.fraction)


# %% tags=["encode-run"]
pattern = encode(torch.tensor([0.1]), FORMATS["float16"])
f"{pattern.item():016b}", decode(pattern, FORMATS["float16"]).item()


# %% tags=["bits-figure"] alt="Seven rows of small squares, one for each format, aligned where the exponent ends. Each has one square for the sign, then those of the exponent, then those of the fraction: float32 8 and 23, tf32 8 and 10, bfloat16 8 and 7, float16 5 and 10, e5m2 5 and 2, e4m3 4 and 3, e2m1 2 and 1."
_, axes = plt.subplots(figsize=(5, 2.6))
PARTS = (plots.INK, plots.COLOURS[1], plots.COLOURS[0])
for row, (name, form) in enumerate(FORMATS.items()):
    first = -form.exponent - 1
    colours = [PARTS[0]] + [PARTS[1]] * form.exponent + [PARTS[2]] * form.fraction
    axes.barh(row, 0.8, 0.7, [first + i for i in range(len(colours))], color=colours)
axes.set_yticks(range(len(FORMATS)), FORMATS, color=plots.INK)
axes.set(xticks=(), xlim=(-9.5, 23.5), ylim=(6.6, -1.6))
axes.spines[:].set_visible(False)
axes.text(-9, -0.8, "sign", ha="center", color=PARTS[0])
axes.text(-4, -0.8, "exponent", ha="center", color=PARTS[1])
axes.text(4, -0.8, "fraction", ha="center", color=PARTS[2])
axes.set_axisbelow(True)

# %% [markdown]
# ## Against the libraries

# %% tags=["formats-check"]
TYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8 e5m2": torch.float8_e5m2,
    "float8 e4m3": torch.float8_e4m3fn,
}
WHOLE = {8: torch.uint8, 16: torch.int16, 32: torch.int32}


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, the sign of zero too; one NaN is like another."""
    a = a.double()
    b = b.double()
    equal = (a == b) & (a.signbit() == b.signbit())
    return bool((equal | a.isnan() & b.isnan()).all())


def samples(form: Format, count: int = 100_000) -> Tensor:
    """float32 of all sizes that the format rounds to finite numbers, and ties between two."""
    value = torch.randn(count) * 2.0 ** torch.randint(-30, 16, (count,))
    codes = torch.randint(0, form.top, (1000,))
    ties = (decode(codes, form) + decode(codes + 1, form)) / 2
    value = torch.cat([value, ties.float(), -ties.float(), torch.tensor([0.0, -0.0])])
    return value[value.abs() <= decode(torch.tensor([form.top]), form).float()]


# %% tags=["formats-run"]
seed()
rows = []
for name in ("bfloat16", "float16", "float8 e5m2", "float8 e4m3"):
    form = FORMATS[name]
    width = 1 + form.exponent + form.fraction
    codes = torch.arange(1 << width)
    known = codes.to(WHOLE[width]).view(TYPES[name]).double()
    x = samples(form)
    decoded = same(decode(codes, form), known)
    encoded = same(decode(encode(x, form), form), x.to(TYPES[name]))
    rows.append((name, len(codes), decoded, len(x), encoded))
x = samples(FORMATS["float4 e2m1"])
four = FORMATS["float4 e2m1"]
known = torch.arange(16, dtype=torch.uint8).numpy().view(ml_dtypes.float4_e2m1fn)
decoded = same(decode(torch.arange(16), four), torch.from_numpy(known.astype("f4")))
found = torch.from_numpy(x.numpy().astype(ml_dtypes.float4_e2m1fn).astype("f4"))
encoded = same(decode(encode(x, four), four), found)
rows.append(("float4 e2m1", 16, decoded, len(x), encoded))

# %% tags=["formats-check-table"]
claim(all(row[2] and row[4] for row in rows), "decode and encode equal the libraries")
heads = ("format", "codes", "all decoded alike", "numbers", "all encoded alike")
table(rows, heads)


# %% tags=["properties"]
def properties(form: Format) -> dict[str, float]:
    """What torch.finfo tells of a type, and the smallest subnormal number, from the codes."""
    one = encode(torch.tensor([1.0]), form) if form.fraction < 23 else 127 << 23
    codes = torch.tensor([form.top, 1 << form.fraction, 1, int(one), int(one) + 1])
    top, normal, subnormal, one, next_one = decode(codes, form).tolist()
    return {"max": top, "tiny": normal, "subnormal": subnormal, "eps": next_one - one}


# %% tags=["properties-table"]
rows = []
for name, form in FORMATS.items():
    found = properties(form)
    if name in TYPES:
        known = torch.finfo(TYPES[name])
        same_known = all(found[key] == getattr(known, key) for key in ("max", "tiny", "eps"))
        claim(same_known, f"{name}: as torch.finfo has it")
    powers = [f"2^{math.log2(found[key]):.0f}" for key in ("tiny", "subnormal", "eps")]
    rows.append((name, 1 + form.exponent + form.fraction, f"{found['max']:.6g}", *powers))
claim(rows[3][4] == "2^-24" and rows[3][3] == "2^-14", "float16: 2^-24 and 2^-14")
heads = ("format", "bits", "largest", "smallest normal", "smallest", "gap after 1")
table(rows, heads)

# %% tags=["overflow"]
x = torch.tensor([464.0, 465.0, 1000.0, math.inf])
four_three = FORMATS["float8 e4m3"]
answers = {
    "ours": decode(encode(x, four_three), four_three).tolist(),
    "ours, saturate": decode(encode(x, four_three, saturate=True), four_three).tolist(),
    "torch": x.to(torch.float8_e4m3fn).float().tolist(),
    "ml_dtypes": x.numpy().astype(ml_dtypes.float8_e4m3fn).astype("f4").tolist(),
}

# %% tags=["overflow-table"]
record("torch.version", torch.__version__.split("+")[0])
claim(math.isnan(answers["ours"][1]) and answers["ours"][0] == 448, "465 is NaN")
claim(answers["ours, saturate"] == [448.0] * 4, "saturation stops at 448")
heads = ("e4m3", *(f"{value:g}" for value in x.tolist()))
table([(name, *(f"{v:g}" for v in found)) for name, found in answers.items()], heads)


# %% tags=["spacing-figure"] alt="The gap between neighbours as a share of the number, against the number, both axes logarithmic. Each format is a saw: bfloat16 is flat over the whole width, between 2^-8 and 2^-7; float16 lies lower, near 2^-10, from 2^-14 to 2^16, and rises to the left of it up to 1 at 2^-24; e5m2 is flat near 2^-2 and e4m3 near 2^-3 over short ranges, and both rise at their left ends."
_, axes = plt.subplots(figsize=(5, 3.2))
ends = {}
for name in ("float8 e5m2", "float8 e4m3", "bfloat16", "float16"):
    form = FORMATS[name]
    step = 2.0 ** np.arange(-40, 20, 0.125)
    inside = step[(step >= properties(form)["subnormal"]) & (step < properties(form)["max"])]
    codes = encode(torch.from_numpy(inside).float(), form)
    low, high = (decode(codes + i, form) for i in (0, 1))
    colour = plots.COLOURS[len(ends)]
    axes.plot(inside, (high - low) / low, color=colour, linewidth=1.5)
    ends[name] = (inside[-1], ((high - low) / low)[-1].item())
axes.set(xscale="log", yscale="log", xlabel="number", ylabel="gap / number")
axes.set_xscale("log", base=2)
axes.set_yscale("log", base=2)
axes.set_xlim(2.0**-40, 2.0**38)
plots.label_ends(axes, ends)

# %% [markdown]
# ## Computing in another format
#
# Weights and outputs are rounded on the way forward, gradients on the way back. Products are
# summed in float32, as tensor cores do.


# %% tags=["rounded"]
class Rounded(torch.autograd.Function):
    """A number rounded on the way forward, its gradient on the way back."""

    @staticmethod
    def forward(ctx, x, forward, backward):
        ctx.backward = backward
        return forward(x)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.backward(gradient), None, None


def to_float16(x: Tensor) -> Tensor:
    return x.half().float()


def to_bfloat16(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def scaled(kind: torch.dtype):
    """Rounding with a power of two for each tensor, so that its largest number just fits."""

    def forward(x: Tensor) -> Tensor:
        largest = x.abs().max().clamp(min=2.0**-100)
        factor = torch.exp2((torch.finfo(kind).max / largest).log2().floor())
        return (x * factor).to(kind).float() / factor

    return forward


# %% tags=["network"]
def make_network() -> nn.Sequential:
    """For digits of 16 x 16: three convolutions, the mean over the map, a linear layer."""
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    for layer in network[0], network[2], network[4], network[8]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return network


# %% tags=["run-in"]
def run_in(network, x: Tensor, cast) -> tuple[Tensor, list[Tensor]]:
    """The output, with weights and all outputs cast; and what each layer with weights gave."""
    given = []
    x = cast(x)
    for layer in network:
        weights = {name: cast(p) for name, p in layer.named_parameters()}
        x = functional_call(layer, weights, (x,))
        if weights:
            given.append(x)
        x = cast(x)
    return x, given


def casting(forward, backward):
    return lambda x: Rounded.apply(x, forward, backward)


def as_it_is(x: Tensor) -> Tensor:
    return x


# %% tags=["data"]
DIGITS = 2000
train, _, test = images.standardised(images.digits(16), first=DIGITS)
len(train[1]), len(test[1])


# %% tags=["gradients"]
def output_gradients(network, x: Tensor, y: Tensor, cast, power: int = 0) -> Tensor:
    """Gradients of 2 ** power times the loss with respect to the layers' outputs."""
    scores, given = run_in(network, x, cast)
    loss = F.cross_entropy(scores.float(), y) * 2.0**power
    found = torch.autograd.grad(loss, given)
    return torch.cat([gradient.flatten().float() for gradient in found])


LEAST = 2.0**-24  # the smallest number of float16


def predicted_loss(gradients: Tensor, power: int = 0) -> float:
    """The share of gradients other than zero that float16 will round to zero: half of LEAST."""
    sizes = gradients[gradients != 0].abs() * 2.0**power
    return (sizes <= LEAST / 2).double().mean().item()


def counted_loss(reference: Tensor, found: Tensor) -> float:
    """The share of the gradients other than zero in float32 that are zero in `found`."""
    return (found[reference != 0] == 0).double().mean().item()


# %% tags=["fit"]
RATE = 0.1
BATCH = 50


def fit(network, cast, *, epochs: int = 5, divide: int = 0, scaler=None, store=None) -> list:
    """SGD on the digits, whose loss is divided by 2 ** divide and whose rate is multiplied.

    cast: the arithmetic. scaler: of the loss. store: rounds the weights after each step.
    Returns the mean loss of each epoch.
    """
    rate = RATE * 2.0**divide
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9)
    scaler = scaler or Scaler(1.0, interval=10**9)
    x, y = (part.to(device) for part in train)
    history = []
    for _ in training.progress(range(epochs), "epochs"):
        total = 0.0
        for chosen in torch.randperm(len(y)).to(device).split(BATCH):
            scores, _ = run_in(network, x[chosen], cast)
            loss = F.cross_entropy(scores, y[chosen])
            optimizer.zero_grad()
            scaler.scale(loss / 2.0**divide).backward()
            scaler.step(optimizer)
            scaler.update()
            keep(network, store)
            total += loss.detach() * len(chosen)
        history.append(float(total) / len(y))
    return history


@torch.no_grad()
def keep(network, store) -> None:
    """Round the weights as a format that keeps them would."""
    if store:
        for p in network.parameters():
            p.copy_(store(p))


# %% tags=["scaler"]
class Scaler:
    """Scale the loss, so that gradients do not vanish, and find the scale by trial.

    Micikevicius et al. 2018, section 3.2, with the constants of torch.amp.GradScaler.
    """

    def __init__(self, factor=2.0**16, *, growth=2.0, backoff=0.5, interval=2000):
        self.factor = factor
        self.growth = growth
        self.backoff = backoff
        self.interval = interval
        self.good = 0  # steps since the last change
        self.finite = None  # of the gradients at hand, once they are divided

    def scale(self, loss: Tensor) -> Tensor:
        return loss * self.factor

    def unscale_(self, optimizer) -> None:
        found = [p.grad for group in optimizer.param_groups for p in group["params"]]
        for gradient in found:
            gradient.mul_(1 / self.factor)
        self.finite = all(bool(gradient.isfinite().all()) for gradient in found)

    def step(self, optimizer) -> None:
        if self.finite is None:
            self.unscale_(optimizer)
        if self.finite:
            optimizer.step()

    def update(self) -> None:
        self.good = self.good + 1 if self.finite else 0
        if not self.finite:
            self.factor *= self.backoff
        elif self.good == self.interval:
            self.factor *= self.growth
            self.good = 0
        self.finite = None

    def get_scale(self) -> float:
        return self.factor


# %% [markdown]
# ## Gradients that float16 loses

# %% tags=["underflow-run"]
SEEDS = (0, 1, 2) if PROFILE == "sample" else (0, 1, 2, 3, 4)
POWERS = (-4, 0, 4, 8, 12, 16)
x, y = (part[:256].to(device) for part in train)
trained = {}
gradients = {}
losses = {}
for number in SEEDS:
    seed(number)
    trained[number] = make_network().to(device)
    losses["float32", number] = fit(trained[number], as_it_is)
    gradients[number] = output_gradients(trained[number], x, y, as_it_is)

# %% tags=["half-run"]
predicted = {}
counted = {}
emulated = {}
for number in SEEDS:
    half = copy.deepcopy(trained[number]).half()
    reference = gradients[number]
    for power in POWERS:
        found = output_gradients(half, x.half(), y, as_it_is, power)
        predicted[number, power] = predicted_loss(reference, power)
        counted[number, power] = counted_loss(reference, found)
        found = output_gradients(
            trained[number], x, y, casting(to_float16, to_float16), power
        )
        emulated[number, power] = counted_loss(reference, found)

# %% tags=["underflow-table"]
rows = []
for number in SEEDS:
    g = gradients[number]
    sizes = g[g != 0].abs()
    subnormal = (sizes < 2.0**-14).double().mean().item()
    zero = (g == 0).double().mean().item()
    words = [zero, subnormal, predicted[number, 0], counted[number, 0], counted[number, 12]]
    rows.append((f"seed {number}", *(f"{100 * share:.1f} %" for share in words)))
    claim(predicted[number, 0] > 0.08, "a considerable share is lost")
    claim(counted[number, 12] < 0.01, "a scale of 2^12 loses less than one in a hundred")
heads = ("network", "zero", "below 2^-14", "predicted", "lost", "lost, times 2^12")
table(rows, heads)

# %% tags=["underflow-claims"]
for key, share in counted.items():
    claim(abs(share - predicted[key]) < 0.03, f"{key}: counted as predicted")
    claim(abs(share - emulated[key]) < 0.02, f"{key}: rounding in float32 loses as much")
worst = max(counted[number, 12] for number in SEEDS)
claim(min(counted[number, 0] for number in SEEDS) > 10 * worst, "apart over the seeds")
claim(all((g.abs() < 2.0**-4).all() for g in gradients.values()), "unused range above")
record_spread("lost", [100 * counted[number, 0] for number in SEEDS])
record_spread("lost.scaled", [100 * counted[number, 12] for number in SEEDS])
record_spread("largest", [g.abs().max().log2().item() for g in gradients.values()])
record("difference", 100 * max(abs(counted[key] - predicted[key]) for key in counted))

# %% tags=["histogram-figure"] alt="Two histograms of the logarithm of gradients, one above the other, over a band of three shades: zero in float16, subnormal, normal. In the upper one, without scale, a broad hill lies around 2^-21, mostly in the subnormal range, and its left flank, filled in another colour, lies where float16 has only zero. In the lower one, times 2^12, the same hill lies in the normal range, and next to nothing is left of 2^-25."
_, panels = plt.subplots(2, 1, figsize=(5, 4), sharex=True)
sizes = gradients[0][gradients[0] != 0].abs().log2().cpu()
for axes, power in zip(panels, (0, 12)):
    heights, edges = np.histogram((sizes + power).numpy(), bins=np.arange(-42, 16.5, 0.5))
    lost = edges[:-1] < -25
    colours = [plots.COLOURS[1] if gone else plots.COLOURS[0] for gone in lost]
    axes.bar(edges[:-1], heights / len(sizes), 0.5, align="edge", color=colours)
    axes.axvline(-14, color=plots.QUIET, linewidth=1, linestyle=":")
    axes.set(ylabel="share", xlim=(-42, 16), ylim=(0, 0.075))
    axes.text(-41.5, 0.064, "no scale" if power == 0 else f"times $2^{{{power}}}$")
panels[0].text(-25.5, 0.05, "zero", ha="right", color=plots.COLOURS[1])
panels[0].text(-13, 0.05, "normal", color=plots.QUIET)
panels[0].text(-19.5, 0.066, "subnormal", ha="center", color=plots.QUIET)
panels[1].set(xlabel="log$_2$ |gradient|", xticks=(-36, -25, -14, 0, 12))
panels[1].set_axisbelow(True)

# %% tags=["scale-figure"] alt="The share of gradients lost against the exponent of the scale, from minus 4 to 16. Three lines, one a seed, predicted from float32, fall from between a third and a half at minus 4 over about a fifth at 0 to less than one in a hundred at 12; the dots, counted in float16, lie on the lines."
_, axes = plt.subplots(figsize=(5, 2.8))
for number, colour in zip(SEEDS, plots.COLOURS):
    line = [100 * predicted[number, power] for power in POWERS]
    axes.plot(POWERS, line, color=colour, linewidth=1.5)
    axes.plot(POWERS, [100 * counted[number, p] for p in POWERS], "o", color=colour)
axes.set(xlabel="exponent of the scale", ylabel="lost, per cent", yscale="log")
axes.set(yticks=(0.1, 1, 10), yticklabels=("0.1", "1", "10"), xticks=POWERS)
axes.set_axisbelow(True)

# %% [markdown]
# ## Sums


# %% tags=["running-sum"]
def running_sum(terms: Tensor, store) -> float:
    """The sum, one term after the other, with a total that `store` rounds each time."""
    total = torch.tensor(0.0)
    for term in terms:
        total = store(total + term)
    return total.item()


def to_e4m3(x: Tensor) -> Tensor:
    return x.to(torch.float8_e4m3fn).float()


# %% tags=["running-sum-table"]
ones = torch.ones(3000)
rows = []
for name, store in (("float16", to_float16), ("bfloat16", to_bfloat16), ("e4m3", to_e4m3)):
    stored = running_sum(ones, store)
    rows.append((name, int(stored), int(store(ones.sum()))))
claim([row[1] for row in rows] == [2048, 256, 16], "sums stall at 2^(fraction + 1)")
total = torch.dot(ones.half(), ones.half())
record("dot", int(total))
table(rows, ("total kept in", "3,000 ones, one by one", "summed in float32, then rounded"))

# %% [markdown]
# ## Master weights
#
# One more epoch with a small rate, for networks that are trained. Where the weights are kept in
# 16 bits, most updates are smaller than half the gap to the next number.


# %% tags=["small-steps"]
def small_steps(network, store, rate: float = 3e-3) -> tuple[float, float]:
    """One epoch of plain SGD; weights are stored rounded.

    Returns by how much the loss on the training digits has fallen, and the share of updates
    other than zero that changed no weight.
    """
    x, y = (part.to(device) for part in train)
    keep(network, store)
    before = F.cross_entropy(network(x), y).item()
    same = count = 0
    for chosen in torch.randperm(len(y)).to(device).split(BATCH):
        network.zero_grad()
        F.cross_entropy(network(x[chosen]), y[chosen]).backward()
        for p in network.parameters():
            new = p.detach() - rate * p.grad
            new = store(new) if store else new
            moved = p.grad != 0
            same += ((new == p) & moved).sum().item()
            count += moved.sum().item()
            p.data = new
    return before - F.cross_entropy(network(x), y).item(), same / count


# %% tags=["stochastic"]
def stochastic_bfloat16(x: Tensor) -> Tensor:
    """To one of the two neighbours, the nearer the likelier, so that the mean is x."""
    noise = torch.randint(1 << 16, x.shape, dtype=torch.int32, device=x.device)
    bits = x.view(torch.int32) + noise
    return (bits >> 16 << 16).view(torch.float32)


# %% tags=["master-run"]
STORES = {
    "float32 (master)": None,
    "float16": to_float16,
    "bfloat16": to_bfloat16,
    "bfloat16, stochastic": stochastic_bfloat16,
}
steps = {}
for name, store in STORES.items():
    for number in SEEDS:
        seed(100 + number)
        steps[name, number] = small_steps(copy.deepcopy(trained[number]), store)

# %%
for k,v in steps.items(): print(k,v)

# %% tags=["recipes"]
eight = casting(scaled(torch.float8_e4m3fn), scaled(torch.float8_e5m2))
sixteen = casting(to_float16, to_float16)
brain = casting(to_bfloat16, to_bfloat16)
RECIPES = {
    "bfloat16": dict(cast=brain),
    "bfloat16, kept in it": dict(cast=brain, store=to_bfloat16),
    "float16": dict(cast=sixteen),
    "float16, loss / 2^14": dict(cast=sixteen, divide=14),
    "the same, scaler": dict(cast=sixteen, divide=14),
    "float8, own scales": dict(cast=eight),
}
scores = {("float32", n): training.evaluate(trained[n], test) for n in SEEDS}
for name, how in RECIPES.items():
    for number in SEEDS:
        seed(number)
        network = make_network().to(device)
        if name == "the same, scaler":
            how = how | {"scaler": Scaler()}
        losses[name, number] = fit(network, **how)
        scores[name, number] = training.evaluate(network, test)

# %%
for k,v in losses.items(): print(k,[round(a,3) for a in v],scores[k])
