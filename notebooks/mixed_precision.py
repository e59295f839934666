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
# Number formats as bit patterns; gradients that float16 loses, and a scale that saves
# them; the scaler and autocast written out; and one network trained in eight ways.
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
from torch.utils._pytree import tree_map

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

    special: what the largest exponent stands for: "ieee" for infinity and NaN, "nan"
    for numbers too but with NaN where all bits are one, "none" for numbers only.
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

    Beyond the largest number follow infinity or NaN, or, saturated, that number.
    """
    assert x.dtype == torch.float32, "encode reads the bits of float32 numbers"
    assert form.fraction < 23, "the code of a float32 number is its bits"
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
for row, form in enumerate(FORMATS.values()):
    first = -form.exponent - 1
    colours = [PARTS[0]] + [PARTS[1]] * form.exponent + [PARTS[2]] * form.fraction
    axes.barh(row, 0.8, 0.7, [first + i for i in range(len(colours))], color=colours)
axes.set_yticks(range(len(FORMATS)), FORMATS, color=plots.INK)
axes.set(xticks=(), xlim=(-9.5, 23.5), ylim=(6.6, -1.6))
axes.spines[:].set_visible(False)
axes.tick_params(length=0)
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
    """float32 of all sizes up to the format's largest number, and ties between two."""
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

# %% tags=["formats-run-4"]
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
    """What torch.finfo tells, and the smallest subnormal number, from the codes."""
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
        same_known = all(
            found[key] == getattr(known, key) for key in ("max", "tiny", "eps")
        )
        claim(same_known, f"{name}: as torch.finfo has it")
    powers = [f"2^{math.log2(found[key]):.0f}" for key in ("tiny", "subnormal", "eps")]
    largest = found["max"]
    rows.append((name, f"{largest:.3g}" if largest > 1e6 else int(largest), *powers))
claim(rows[3][2:4] == ("2^-14", "2^-24"), "float16: 2^-14 and 2^-24")
heads = ("format", "largest", "normal from", "smallest", "gap at 1")
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


# %% tags=["spacing-figure"] alt="The gap between neighbours as a share of the number, against the number, both axes logarithmic. Each format is a saw: its teeth reach from one power of two down to half of it. bfloat16 lies between 2^-8 and 2^-7, from the left edge to beyond the ends of the others; float16 lies lower, between 2^-11 and 2^-10, from 2^-14 to 2^16, and rises to the left of that up to 1 at 2^-24; e5m2 lies between 2^-3 and 2^-2 and e4m3 between 2^-4 and 2^-3 over shorter ranges, and both rise at their left ends."
_, axes = plt.subplots(figsize=(5, 3.2))
ends = {}
for name in ("float8 e5m2", "float8 e4m3", "bfloat16", "float16"):
    limits = properties(FORMATS[name])
    x = 2.0 ** torch.arange(-40, 24, 0.125)
    x = x[(x >= limits["subnormal"]) & (x < 0.7 * limits["max"])]
    codes = encode(x, FORMATS[name])
    low = decode(codes, FORMATS[name])
    gap = (decode(codes + 1, FORMATS[name]) - low) / low
    axes.plot(x, gap, color=plots.COLOURS[len(ends)], linewidth=1.5)
    ends[name] = (x[-1].item(), gap[-1].item())
axes.set_xscale("log", base=2)
axes.set_yscale("log", base=2)
axes.set(xlabel="number", ylabel="gap / number", xlim=(2.0**-40, 2.0**44))
axes.set(xticks=[2.0**power for power in (-36, -24, -14, 0, 16)])
plots.label_ends(axes, ends)

# %% [markdown]
# ## Computing in another format
#
# Weights and outputs are rounded on the way forward, gradients on the way back.
# Products are summed in float32, as tensor cores do.


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
    """Rounding with a power of two for each tensor, so that its largest just fits."""

    def forward(x: Tensor) -> Tensor:
        largest = x.abs().max().clamp(min=2.0**-100)
        factor = torch.exp2((torch.finfo(kind).max / largest).log2().floor())
        return (x * factor).to(kind).float() / factor

    return forward


# %% tags=["network"]
def make_network() -> nn.Sequential:
    """For digits of 16 x 16: three convolutions, the mean over the map, a layer."""
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
    """The output, with weights and outputs cast; what each layer with weights gave."""
    given = []
    x = cast(x)
    for layer in network:
        weights = {name: cast(p) for name, p in layer.named_parameters()}
        x = functional_call(layer, weights, (x,))
        if weights:
            given.append(x)
        if not isinstance(layer, nn.ReLU | nn.Flatten):  # which invent no new numbers
            x = cast(x)
    return x, given


def casting(forward, backward):
    return lambda x: Rounded.apply(x, forward, backward)


def as_it_is(x: Tensor) -> Tensor:
    return x


def in_float16(x: Tensor) -> Tensor:
    return x.half()


# %% tags=["data"]
DIGITS = 2000
train, *_ = images.standardised(images.digits(16), first=DIGITS)
len(train[1])


# %% tags=["gradients"]
def output_gradients(network, x: Tensor, y: Tensor, cast, power: int = 0) -> Tensor:
    """Gradients of 2 ** power times the loss with respect to the layers' outputs."""
    scores, given = run_in(network, x, cast)
    loss = F.cross_entropy(scores.float(), y) * 2.0**power
    found = torch.autograd.grad(loss, given)
    return torch.cat([gradient.flatten().float() for gradient in found])


LEAST = 2.0**-24  # the smallest number of float16


def predicted_loss(gradients: Tensor, power: int = 0) -> float:
    """The share of gradients other than zero that float16 will round to zero."""
    sizes = gradients[gradients != 0].abs() * 2.0**power
    return (sizes <= LEAST / 2).double().mean().item()


def counted_loss(reference: Tensor, found: Tensor) -> float:
    """The share of gradients other than zero in float32 that are zero in `found`."""
    return (found[reference != 0] == 0).double().mean().item()


# %% tags=["fit"]
RATE = 0.1
BATCH = 50
EPOCHS = 3  # of the comparison


def fit(
    network, data, cast, *, epochs: int = 5, divide: int = 0, scaler=None, store=None
) -> list:
    """SGD on (images, labels), with loss / 2 ** divide and rate * 2 ** divide.

    cast: the arithmetic. scaler: of the loss. store: rounds weights after each step.
    Returns the mean loss of each epoch.
    """
    rate = RATE * 2.0**divide
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9)
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    x, y = (part.to(device) for part in data)
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
    losses["float32", number] = fit(trained[number], train, as_it_is)[:EPOCHS]
    gradients[number] = output_gradients(trained[number], x, y, as_it_is)

# %% tags=["half-run"]
predicted = {}
counted = {}
emulated = {}
for number in SEEDS:
    reference = gradients[number]
    for power in POWERS:
        found = output_gradients(trained[number], x, y, in_float16, power)
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
    shares = [zero, subnormal, predicted[number, 0]]
    shares += [counted[number, power] for power in (0, 12)]
    rows.append((f"seed {number}", *(f"{100 * share:.1f} %" for share in shares)))
    claim(subnormal > 0.8, "most are subnormal or less")
heads = ("network", "zero", "below 2^-14", "predicted", "lost", "lost, times 2^12")
table(rows, heads)

# %% tags=["underflow-claims"]
for key, share in counted.items():
    claim(abs(share - predicted[key]) < 0.06, f"{key}: counted as predicted")
    claim(abs(share - emulated[key]) < 0.05, f"{key}: rounding loses as much")
for number in SEEDS:
    claim(0.2 < counted[number, -4] < 0.7, "a fifth to seven tenths at 2^-4")
    claim(0.08 < counted[number, 0] < 0.4, "a twelfth to two fifths without a scale")
    claim(counted[number, 12] < 0.02, "with a scale of 2^12 less than two in a hundred")
worst = max(counted[number, 12] for number in SEEDS)
claim(min(counted[number, 0] for number in SEEDS) > 5 * worst, "apart over the seeds")
claim(all((g.abs() < 2.0**-4).all() for g in gradients.values()), "unused range above")

# %% tags=["underflow-record"]
brain = casting(to_bfloat16, to_bfloat16)
found = output_gradients(trained[0], x, y, brain, -14)
gone = counted_loss(gradients[0], found)
claim(gone < 0.01, "bfloat16 loses next to nothing, even at 2^-14")
record("lost.bfloat16", 100 * gone)
record_spread("lost", [100 * counted[number, 0] for number in SEEDS])
record_spread("largest", [g.abs().max().log2().item() for g in gradients.values()])
record("difference", 100 * max(abs(counted[key] - predicted[key]) for key in counted))
record("emulated", 100 * max(abs(counted[key] - emulated[key]) for key in counted))

# %% tags=["histogram-figure"] alt="Two histograms of the logarithm of gradients, one above the other, with a dotted line at 2^-14, where the normal numbers of float16 begin. In the upper one, without scale, a broad hill lies between 2^-36 and 2^-12, mostly left of the line, and its left flank below 2^-25, in orange, becomes zero. In the lower one, times 2^12, the same hill lies mostly right of the line, and next to nothing of it is orange."
_, panels = plt.subplots(2, 1, figsize=(5, 4), sharex=True)
sizes = gradients[0][gradients[0] != 0].abs().log2().cpu()
for axes, power in zip(panels, (0, 12)):
    heights, edges = np.histogram(
        (sizes + power).numpy(), bins=np.arange(-42, 16.5, 0.5)
    )
    lost = edges[:-1] < -25
    colours = [plots.COLOURS[1] if gone else plots.COLOURS[0] for gone in lost]
    axes.bar(edges[:-1], heights / len(sizes), 0.5, align="edge", color=colours)
    axes.axvline(-14, color=plots.QUIET, linewidth=1, linestyle=":")
    axes.set(ylabel="share", xlim=(-42, 16), ylim=(0, 0.075))
    axes.text(-41.5, 0.064, "no scale" if power == 0 else f"times $2^{{{power}}}$")
panels[0].text(-25.5, 0.05, "zero", ha="right", color=plots.COLOURS[1])
panels[0].text(-13, 0.05, "normal", color=plots.QUIET)
panels[0].text(-14.6, 0.064, "subnormal", ha="right", color=plots.QUIET)
panels[1].set(xlabel="log$_2$ |gradient|", xticks=(-36, -25, -14, 0, 12))
panels[1].set_axisbelow(True)

# %% tags=["scale-figure"] alt="The share of gradients lost against the exponent of the scale, from minus 4 to 16. Three lines, one a seed, predicted from float32, fall from between a fifth and seven tenths at minus 4, over between a twelfth and two fifths at 0, to less than two in a hundred at 12; the dots, counted in float16, lie on the lines."
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


# %% tags=["running-sum-table"]
ones = torch.ones(3000)
rows = []
for name, store in (("float16", to_float16), ("bfloat16", to_bfloat16)):
    stored = running_sum(ones, store)
    rows.append((name, int(stored), int(store(ones.sum()))))
claim([row[1] for row in rows] == [2048, 256], "sums stall at 2^(fraction + 1)")
total = torch.dot(ones.half(), ones.half())
record("dot", int(total))
table(
    rows, ("total kept in", "3,000 ones, one by one", "summed in float32, then rounded")
)

# %% [markdown]
# ## Master weights
#
# One more epoch with a small rate. Where the weights are kept in 16 bits, most updates are
# smaller than half the gap to the next number.


# %% tags=["small-steps"]
def small_steps(network, data, store, rate: float = 3e-3) -> tuple[float, float]:
    """One epoch of plain SGD; weights are stored rounded.

    Returns by how much the loss on the training digits has fallen, and the share of
    updates other than zero that changed no weight.
    """
    x, y = (part.to(device) for part in data)
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
            p.detach().copy_(new)
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
        steps[name, number] = small_steps(copy.deepcopy(trained[number]), train, store)

# %% tags=["master-table"]
rows = []
for name in STORES:
    fallen = [steps[name, number][0] for number in SEEDS]
    lost = [100 * steps[name, number][1] for number in SEEDS]
    rows.append((name, spread(lost, ".1f"), spread(fallen, ".4f")))
table(rows, ("weights kept in", "updates without effect, %", "fall of the loss"))

# %% tags=["master-claims"]
for number in SEEDS:
    master, lost = steps["float32 (master)", number]
    claim(lost < 0.1, "float32 takes most updates")
    claim(steps["bfloat16", number][1] > 0.95, "bfloat16 drops nearly all")
    claim(0.7 < steps["float16", number][1] < 0.95, "float16 drops most")
    claim(steps["bfloat16", number][0] < 0.5 * master, "and falls by less than half")
    nearly = abs(steps["bfloat16, stochastic", number][0] - master) < 0.3 * master
    claim(nearly, "rounded by chance the loss falls about as with a master")

# %% tags=["recipes"]
EIGHT = casting(scaled(torch.float8_e4m3fn), scaled(torch.float8_e5m2))
SIXTEEN = casting(to_float16, to_float16)
BRAIN = casting(to_bfloat16, to_bfloat16)
RECIPES = {
    "bfloat16": {"cast": BRAIN},
    "bfloat16, kept in it": {"cast": BRAIN, "store": to_bfloat16},
    "float16": {"cast": SIXTEEN},
    "float16, kept in it": {"cast": SIXTEEN, "store": to_float16},
    "float16, loss / 2^14": {"cast": SIXTEEN, "divide": 14},
    "the same, scaler": {"cast": SIXTEEN, "divide": 14},
    "float8, own scales": {"cast": EIGHT},
}

# %% tags=["exact"]
seed()
network = make_network()[:5]  # up to the last convolution
keep(network, lambda p: (3 * p).round())
whole = torch.randint(-2, 3, (16, 1, 16, 16)).float()
rounded, _ = run_in(network, whole, SIXTEEN)
real, _ = run_in(network, whole, in_float16)
claim(
    bool(rounded.any()) and torch.equal(rounded, real.float()),
    "equal where sums are exact",
)

# %% tags=["recipes-run"]
for name, how in RECIPES.items():
    for number in SEEDS:
        seed(number)
        network = make_network().to(device)
        if name == "the same, scaler":
            how = how | {"scaler": Scaler()}
        losses[name, number] = fit(network, train, epochs=EPOCHS, **how)

# %% tags=["training-table"]
rows = []
for name in ("float32", *RECIPES):
    last = [losses[name, number][-1] for number in SEEDS]
    rows.append((name, spread(last, ".2f")))
table(rows, ("arithmetic", "loss, third epoch"))

# %% tags=["training-claims"]
BAD = "float16, loss / 2^14"
ends = {name: [losses[name, n][-1] for n in SEEDS] for name in ("float32", *RECIPES)}
others = [value for name, found in ends.items() if name != BAD for value in found]
claim(min(ends[BAD]) > 1.5 * max(others), "only small gradients without scale fail")
for epoch in range(EPOCHS):
    good = max(
        losses[n, k][epoch] for n in ("float32", "the same, scaler") for k in SEEDS
    )
    bad = min(losses[BAD, number][epoch] for number in SEEDS)
    claim(bad > good, "above the others in each epoch")
record("training.bad", min(ends[BAD]))
record("training.least", min(others))
record("training.others", max(others))

# %% tags=["division"]
seed(0)
first = make_network().to(device)
second = copy.deepcopy(first)
for network, divide in ((first, 0), (second, 14)):
    seed(1)
    fit(network, train, as_it_is, epochs=1, divide=divide)
pairs = zip(first.parameters(), second.parameters())
claim(
    all(torch.equal(a, b) for a, b in pairs), "in float32 the division changes no bit"
)

# %% tags=["training-figure"] alt="Training loss in three epochs, three lines with bands over the seeds. float32 and float16 with a scaler lie on each other and fall from 2 to about 0.6; float16 with the loss divided by 2^14 and no scaler lies above both in each epoch, for all seeds."
_, axes = plt.subplots(figsize=(5, 3))
LINES = {"float32": "float32", BAD: "no scaler", "the same, scaler": "scaler"}
ends = {}
for (name, words), colour in zip(LINES.items(), plots.COLOURS):
    runs = torch.tensor([losses[name, number] for number in SEEDS])
    ends[words] = plots.seed_band(axes, range(1, EPOCHS + 1), runs, colour)
axes.set(xlabel="epoch", ylabel="loss", ylim=(0, None), xlim=(0.9, 3.6))
axes.set_xticks(range(1, EPOCHS + 1))
plots.label_ends(axes, ends)

# %% [markdown]
# ## The scaler
#
# Ours against torch's, with overflows planted on the way.


# %% tags=["planted"]
def planted(scaler, overflows: set[int], data, count: int = 24):
    """A training in which some losses are infinite: scales, steps taken, network."""
    seed()
    network = make_network().to(device)
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=0.9)
    x, y = (part[:BATCH].to(device) for part in data)
    scales = []
    taken = []
    for step in range(count):
        before = network[0].weight.detach().clone()
        loss = F.cross_entropy(network(x), y) * (math.inf if step in overflows else 1)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        taken.append(not torch.equal(before, network[0].weight))
    return scales, taken, network


# %% tags=["scaler-run"]
OVERFLOWS = {3, 4, 15}
ours = planted(Scaler(interval=5), OVERFLOWS, train)
theirs = planted(torch.amp.GradScaler(device.type, growth_interval=5), OVERFLOWS, train)
claim(ours[0] == theirs[0], "the same scales")
claim(ours[1] == theirs[1], "the same steps are skipped")
claim(ours[1] == [step not in OVERFLOWS for step in range(24)], "those that overflow")
pairs = zip(ours[2].parameters(), theirs[2].parameters())
claim(all(torch.equal(a, b) for a, b in pairs), "the same weights, bit for bit")
record("scaler.steps", len(ours[0]))
record("scaler.skipped", ours[1].count(False))


# %% tags=["clipping"]
def step_norm(data, unscale_first: bool) -> float:
    """The norm of the gradients that an optimiser gets when they are clipped to 1."""
    seed()
    network = make_network()
    optimizer = torch.optim.SGD(network.parameters(), RATE)
    scaler = Scaler()
    x, y = (part[:BATCH] for part in data)
    scaler.scale(F.cross_entropy(network(5 * x), y)).backward()
    if unscale_first:
        scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    scaler.step(optimizer)
    return torch.cat([p.grad.flatten() for p in network.parameters()]).norm().item()


# %% tags=["clipping-table"]
right = step_norm(train, True)
wrong = step_norm(train, False)
claim(abs(right - 1) < 1e-3 and abs(wrong * 2**16 - 1) < 1e-3, "clipped to 1 / 65,536")
rows = [("divide, then clip", f"{right:.4f}"), ("clip, then divide", f"{wrong:.2g}")]
table(rows, ("clipping to a norm of 1", "norm of the step's gradients"))

# %% [markdown]
# ## Autocast
#
# What it does with a function is read from the types of outputs.


# %% tags=["calls"]
def calls() -> dict:
    """Functions of torch, by name, with small inputs."""
    m = torch.rand(3, 3) + torch.eye(3)
    b = torch.rand(2, 3, 3)
    image = torch.rand(1, 2, 6, 6)
    kernel = torch.rand(2, 2, 3, 3)
    label = torch.tensor([0, 1, 2])
    one = ["prod", "trace", "exp", "log", "rsqrt", "sum", "norm", "relu"]
    two = ["matmul", "mm", "cdist", "add", "mul"]
    losses = ["mse_loss", "l1_loss", "huber_loss", "binary_cross_entropy"]
    return (
        {name: (getattr(torch, name), m) for name in one}
        | {name: (getattr(torch, name), m, m) for name in two}
        | {name: (getattr(F, name), m / 3, m / 3) for name in losses}
        | {
            "linear": (F.linear, m, m),
            "conv2d": (F.conv2d, image, kernel),
            "conv_transpose2d": (F.conv_transpose2d, image, kernel),
            "addmm": (torch.addmm, m, m, m),
            "bmm": (torch.bmm, b, b),
            "prelu": (F.prelu, m, torch.rand(1)),
            "scaled_dot_product_attention": (F.scaled_dot_product_attention, b, b, b),
            "cross_entropy": (lambda a: F.cross_entropy(a, label), m),
            "linalg_solve": (torch.linalg.solve, m, m),
            "avg_pool3d": (lambda a: F.avg_pool3d(a, 2), image),
            "cat": (lambda a, c: torch.cat([a, c]), m, m),
            "index_copy": (lambda a, c: a.index_copy(0, label, c), m, m),
            "mv": (torch.mv, m, m[0]),
            "softmax": (lambda a: F.softmax(a, -1), m),
            "layer_norm": (lambda a: F.layer_norm(a, (3,)), m),
            "batch_norm": (lambda a: F.batch_norm(a, m[0, :2], m[0, :2]), image),
            "gelu": (F.gelu, m),
            "cumsum": (lambda a: torch.cumsum(a, 0), m),
        }
    )


# %% tags=["behaviour"]
LOWER = "16 bits"
FULL = "float32"
GIVEN = "as given"


def behaviour(call, dtype: torch.dtype = torch.bfloat16) -> str:
    """What the CPU's autocast does with a function: what comes out of each type."""
    function, *inputs = call
    found = []
    for kind in (torch.float32, dtype):
        with torch.autocast("cpu", dtype):
            found.append(function(*(value.to(kind) for value in inputs)).dtype)
    known = {(dtype, dtype): LOWER, (torch.float32,) * 2: FULL}
    return known.get(tuple(found), GIVEN)


# %% tags=["documented"]
DOCUMENTED = {
    LOWER: "matmul mm linear conv2d conv_transpose2d addmm bmm prelu "
    "scaled_dot_product_attention",
    FULL: "prod trace cdist mse_loss l1_loss huber_loss binary_cross_entropy "
    "cross_entropy linalg_solve avg_pool3d",
}
ON_CUDA = {
    LOWER: "matmul mm linear conv2d conv_transpose2d addmm bmm prelu mv",
    FULL: "prod exp log rsqrt sum norm cdist mse_loss l1_loss cross_entropy softmax "
    "layer_norm cumsum",
}


def listed(name: str, lists: dict[str, str]) -> str:
    """What lists say of a function; what they do not name takes inputs as given."""
    return next((kind for kind, names in lists.items() if name in names.split()), GIVEN)


# %% tags=["autocast-table"]
kinds = {name: behaviour(call) for name, call in calls().items()}
halves = {name: behaviour(call, torch.float16) for name, call in calls().items()}
rows = []
for name in kinds:
    documented = listed(name, DOCUMENTED)
    cuda = listed(name, ON_CUDA)
    if documented == GIVEN and cuda != GIVEN:
        rows.append((name, documented, kinds[name], cuda))
record("autocast.calls", len(kinds))
record("autocast.same", sum(kinds[n] == listed(n, DOCUMENTED) for n in kinds))
record("autocast.half", sum(kinds[name] == halves[name] for name in kinds))
table(rows, ("function", "documented, CPU", "here", "documented, CUDA"))


# %% tags=["own-autocast"]
class Autocast(TorchFunctionMode):
    """Casts the inputs of listed functions, and keeps the casts of parameters."""

    def __init__(self, dtype: torch.dtype, lists: dict[str, str]):
        super().__init__()
        self.dtype = dtype
        self.lists = lists
        self.casts = {}

    def cast(self, value, dtype: torch.dtype):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if value.dtype == dtype:
            return value
        if not isinstance(value, nn.Parameter):
            return value.to(dtype)
        if value not in self.casts:
            self.casts[value] = value.to(dtype)
        return self.casts[value]

    def __torch_function__(self, function, types, inputs=(), options=None):
        options = options or {}
        kind = listed(function.__name__, self.lists)
        if kind != GIVEN and "out" not in options:
            dtype = self.dtype if kind == LOWER else torch.float32
            inputs, options = tree_map(lambda v: self.cast(v, dtype), (inputs, options))
        return function(*inputs, **options)


# %% tags=["mixed-network"]
class MixedNetwork(nn.Module):
    """Convolution, norm, attention and softmax: something of each list."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 4, stride=4)
        self.norm = nn.LayerNorm(16)
        self.project = nn.Linear(16, 48)
        self.classifier = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).mT  # (B, 16, D)
        q, k, v = self.project(self.norm(x)).chunk(3, -1)
        x = x + F.softmax(q @ k.mT / 4, -1) @ v
        return self.classifier(F.gelu(x).mean(1))


# %% tags=["own-autocast-run"]
def gradients_under(mode, network, x: Tensor, y: Tensor) -> list[Tensor]:
    """Scores, loss and gradients of a forward pass under an autocast."""
    with mode:
        scores = network(x)
        loss = F.cross_entropy(scores, y)
    return [scores, loss, *torch.autograd.grad(loss, list(network.parameters()))]


# %% tags=["own-autocast-check"]
seed()
network = MixedNetwork()
x, y = (part[:8] for part in train)
read = {kind: " ".join(n for n in kinds if kinds[n] == kind) for kind in (LOWER, FULL)}
for dtype in (torch.bfloat16, torch.float16):
    ours = gradients_under(Autocast(dtype, read), network, x, y)
    theirs = gradients_under(torch.autocast("cpu", dtype), network, x, y)
    for a, b in zip(ours, theirs):
        claim(a.dtype == b.dtype and torch.equal(a, b), "equal bit for bit")


# %% tags=["casts"]
class Casts(TorchDispatchMode):
    """Counts the casts between types."""

    count = 0

    def __torch_dispatch__(self, operator, types, inputs=(), options=None):
        self.count += operator is torch.ops.aten._to_copy.default
        return operator(*inputs, **(options or {}))


class Square(torch.autograd.Function):
    """Notes the type that it is given."""

    seen = None

    @staticmethod
    def forward(ctx, x):
        Square.seen = x.dtype
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class SquareInFull(Square):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx, x):
        return Square.forward(ctx, x)


# %% tags=["casts-run"]
layer = nn.Linear(4, 4)
x = torch.rand(2, 4)
found = {}
for cache in (True, False):
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache), Casts() as casts:
        for _ in range(3):
            layer(x)
    found[cache] = casts.count
claim(found == {True: 5, False: 9}, "with a cache weight and bias are cast once")
record("casts.cached", found[True])
record("casts.plain", found[False])


# %% tags=["exceptions"]
def exceptions() -> list[tuple[str, str]]:
    """Calls that go past autocast's lists, and the type that they compute in."""
    m = torch.rand(3, 3)
    out = torch.empty(3, 3)
    kept = m.clone()
    with torch.autocast("cpu", torch.bfloat16):
        rows = [("torch.mm(a, b)", torch.mm(m, m).dtype)]
        rows.append(("torch.mm(a, b, out=c)", torch.mm(m, m, out=out).dtype))
        rows.append(("c.addmm_(a, b)", kept.addmm_(m, m).dtype))
        for square in (Square, SquareInFull):
            square.apply(torch.mm(m, m))
            rows.append((f"{square.__name__}.apply(torch.mm(a, b))", Square.seen))
        with torch.autocast("cpu", enabled=False):
            rows.append(("torch.mm(a, b), autocast off inside", torch.mm(m, m).dtype))
    return [(call, str(kind).removeprefix("torch.")) for call, kind in rows]


# %% tags=["exceptions-table"]
table(exceptions(), ("call in a region of bfloat16", "computes in"))

# %% [markdown]
# ## Speed


# %% tags=["speed"]
def seconds(call, count: int = 3) -> float:
    """The shortest of some runs, after one that is not timed."""
    call()
    found = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)


def speed_calls(dtype: torch.dtype) -> dict:
    """A product of matrices and a convolution."""
    a = torch.rand(128, 128, device=device).to(dtype)
    x = torch.rand(8, 16, 16, 16, device=device).to(dtype)
    w = torch.rand(16, 16, 3, 3, device=device).to(dtype)
    return {"matmul, 128": lambda: a @ a, "conv2d, 16 to 16": lambda: F.conv2d(x, w)}


# %% tags=["speed-table", "times"]
rows = []
for name in speed_calls(torch.float32):
    row = [name]
    for dtype in (torch.bfloat16, torch.float16):
        ratios = []
        for _ in range(5):
            full = seconds(speed_calls(torch.float32)[name])
            ratios.append(seconds(speed_calls(dtype)[name]) / full)
        row.append(spread(ratios, ".2g"))
    rows.append(row)
table(rows, ("time, float32 = 1", "bfloat16", "float16"))

# %% tags=["capability", "times"]
supports = getattr(torch.cpu, "get_capabilities", dict)()  # not in older releases
names = ("avx2", "avx512_f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16")
rows = [(name, str(supports.get(name, "not known")).lower()) for name in names]
table(rows, ("instructions", "on this processor"))

# %% [markdown]
# ## What we saw
#
# - A format is sign, exponent and fraction; encoding and decoding take a few shifts.
# - float16 rounds a considerable part of our gradients to zero; with a factor of 2^12 on
#   the loss less than two in a hundred are lost.
# - bfloat16 loses next to no gradients, but most small updates, so weights stay in float32.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
third = torch.tensor([1 / 3])
words = []
for name in ("float16", "float8 e4m3"):
    code = encode(third, FORMATS[name])
    words.append((name, f"{code.item():b}", decode(code, FORMATS[name]).item()))

# %% tags=["solution-1-result"]
claim(words[0][1] == "11010101010101" and words[1][1] == "101011", "as by hand")
table(words, ("1/3 in", "exponent and fraction", "value"))

# %% tags=["solution-2"]
x, y = (part[:256].to(device) for part in train)
largest = gradients[0].abs().max().item()
last = math.floor(math.log2(65_504 / largest))
finite = {}
for power in range(last - 2, last + 3):
    found = output_gradients(trained[0], x, y, in_float16, power)
    finite[power] = found.isfinite().all()

# %% tags=["solution-2-result"]
claim(bool(finite[last - 2]) and not finite[last + 2], "overflow where it is predicted")
record("solution.last", last)
table(
    [(f"2^{power}", bool(ok)) for power, ok in finite.items()], ("scale", "all finite")
)

# %% tags=["solution-3"]
number = torch.full((100_000,), 1.003)
seed()
by_chance = stochastic_bfloat16(number)

# %% tags=["solution-3-result"]
mean = by_chance.mean().item()
claim(
    len(by_chance.unique()) == 2 and abs(mean - 1.003) < 1e-4, "two values, right mean"
)
rows = [("nearest", f"{to_bfloat16(number).mean().item():.4f}")]
rows.append(("by chance", f"{mean:.4f}"))
table(rows, ("1.003 in bfloat16", "mean of 100,000"))


# %% tags=["solution-4"]
def in_blocks(x: Tensor, size: int) -> Tensor:
    """To e2m1, a power of two for each `size` numbers; the largest may be clipped."""
    blocks = x.view(-1, size)
    largest = blocks.abs().amax(1, keepdim=True)
    factor = torch.exp2(largest.log2().floor() - 2)  # 6 is 1.5 * 2 ** 2
    code = encode((blocks / factor).contiguous(), FORMATS["float4 e2m1"])
    return (decode(code, FORMATS["float4 e2m1"]).float() * factor).view(x.shape)


# %% tags=["solution-4-result"]
seed()
x = torch.randn(4096) * torch.exp2(torch.randint(-6, 1, (128,))).repeat_interleave(32)
rows = []
for size in (32, 4096):
    error = (in_blocks(x, size) - x).abs() / x.abs()
    rows.append((size, f"{error.median().item():.2f}"))
claim(float(rows[0][1]) < 0.5 * float(rows[1][1]), "blocks of 32 are nearer")
table(rows, ("numbers to a scale", "median of the relative difference"))
