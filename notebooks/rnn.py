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
# # RNN
#
# A layer that reads a sequence one step at a time and keeps a state: Elman's cell and
# Jordan's, the gradient through time, by hand and measured, and a reader of dates.
# The text to it is the [chapter](../chapters/rnn.rst), the paper is
# [Elman 1990](https://doi.org/10.1207/s15516709cog1402_1).

# %%
import copy
import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from workbench import claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, plots, text, training

# %% [markdown]
# ## Two cells
#
# A cell makes the next state of the input and the last state. Elman's state are the
# hidden units, Jordan's the outputs.


# %% tags=["elman"]
class ElmanCell(nn.Module):
    """tanh of a linear layer of the input and the last state (Elman 1990, figure 2).

    (B, d_in), (B, D) -> (B, D)
    """

    def __init__(self, d_in: int, d_state: int):
        super().__init__()
        self.d_state = d_state
        self.from_input = nn.Linear(d_in, d_state)
        self.from_state = nn.Linear(d_state, d_state, bias=False)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(self.from_input(x) + self.from_state(state))


# %% tags=["jordan"]
class JordanCell(nn.Module):
    """Hidden units read the input and the last outputs, which are the state.

    (B, d_in), (B, d_out) -> (B, d_out), each between 0 and 1
    """

    def __init__(self, d_in: int, d_hidden: int, d_out: int):
        super().__init__()
        self.d_state = d_out
        self.from_input = nn.Linear(d_in, d_hidden)
        self.from_state = nn.Linear(d_out, d_hidden, bias=False)
        self.output = nn.Linear(d_hidden, d_out)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        hidden = torch.tanh(self.from_input(x) + self.from_state(state))
        return torch.sigmoid(self.output(hidden))


# %% tags=["unroll"]
def unroll(cell: nn.Module, x: Tensor) -> Tensor:
    """The states of a cell along a sequence: (B, T, d_in) -> (B, T, d_state)."""
    state = x.new_zeros(len(x), cell.d_state)
    states = []
    for x_t in x.unbind(1):
        state = cell(x_t, state)
        states.append(state)
    return torch.stack(states, dim=1)


# %% tags=["unroll-run"]
unroll(ElmanCell(5, 8), torch.randn(2, 7, 5)).shape


# %% tags=["drawing"]
def draw_folded(axes, x: float, names, back: str) -> None:
    """One cell, bottom to top; the path back to it begins at `back`."""
    title, state = names
    nodes = {
        "title": diagrams.Node(x, 0.15, title, weight="bold"),
        "y": diagrams.Node(x, 0.6, "$y_t$"),
        "state": diagrams.Node(x, 1.35, state, width=0.75),
        "x": diagrams.Node(x, 2.1, "$x_t$"),
    }
    start = {"state": (x + 0.375, 1.25), "y": (x + 0.2, 0.6)}[back]
    right = x + 0.62
    loop = [start, (right, start[1]), (right, 1.45), (x + 0.375, 1.45)]
    diagrams.draw(axes, nodes, [("x", "state"), ("state", "y")], [loop])


def draw_steps(axes, place, title: str, steps: int, reads, writes) -> None:
    """A cell unrolled from left to right; it reads and writes at some of the steps."""
    left, top = place
    nodes = {"title": diagrams.Node(left + 0.27 * steps, top, title, weight="bold")}
    arrows = []
    for t in range(steps):
        x = left + 0.27 + 0.54 * t
        nodes[f"h{t}"] = diagrams.Node(x, top + 0.9, f"$h_{t + 1}$", width=0.34)
        if t:
            arrows.append((f"h{t - 1}", f"h{t}"))
        if t in writes:
            nodes[f"y{t}"] = diagrams.Node(x, top + 0.38, f"$y_{t + 1}$")
            arrows.append((f"h{t}", f"y{t}"))
        if t in reads:
            nodes[f"x{t}"] = diagrams.Node(x, top + 1.42, f"$x_{t + 1}$")
            arrows.append((f"x{t}", f"h{t}"))
    diagrams.draw(axes, nodes, arrows)


# %% tags=["cells-figure"] alt="Three drawings. Elman: x goes up into a box, state, and on to y; an arrow leaves the box and comes back to it. Jordan: the same with a box named hidden; the arrow that comes back begins at y. Unrolled: three boxes, h1, h2 and h3, in a row, joined by arrows from left to right; below each its x, above each its y."
axes = diagrams.sheet(2.3)
draw_folded(axes, 0.6, ("Elman", "state"), "state")
draw_folded(axes, 2.1, ("Jordan", "hidden"), "y")
draw_steps(axes, (3.15, 0.15), "Elman, unrolled", 3, range(3), range(3))

# %% tags=["forms-figure"] alt="Four rows of boxes with arrows from left to right. One to many: one x below the first of three boxes, a y above each. Many to one: an x below each, one y above the last. Many to many: an x and a y at each. Read, then write: four boxes, x below the first two, y above the last two."
axes = diagrams.sheet(3.6)
draw_steps(axes, (0.35, 0.15), "one to many", 3, [0], range(3))
draw_steps(axes, (2.9, 0.15), "many to one", 3, range(3), [2])
draw_steps(axes, (0.35, 2.0), "many to many", 3, range(3), range(3))
draw_steps(axes, (2.65, 2.0), "read, then write", 4, [0, 1], [2, 3])

# %% [markdown]
# ## Exclusive or, in time
#
# Elman's first experiment: a stream of bits in which each third bit is the exclusive or
# of the two before it. The others are drawn by chance. Predict the next bit.


# %% tags=["stream"]
def xor_stream(n: int, thirds: int) -> Tensor:
    """Streams of bits, each third the exclusive or of two before it: (n, 3 thirds)."""
    drawn = torch.randint(2, (n, thirds, 2))
    third = drawn.sum(2, keepdim=True) % 2
    return torch.cat((drawn, third), dim=2).flatten(1).float()


# %% tags=["bit-networks"]
class ElmanNetwork(nn.Module):
    """A cell and, of its state, the outputs: (B, T, d_in) -> (B, T, d_out)."""

    def __init__(self, d_in: int, d_state: int, d_out: int):
        super().__init__()
        self.cell = ElmanCell(d_in, d_state)
        self.output = nn.Linear(d_state, d_out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.output(unroll(self.cell, x)))


class JordanNetwork(nn.Module):
    """The first of a Jordan cell's outputs: (B, T, 1) -> (B, T, 1)."""

    def __init__(self, d_hidden: int, d_out: int = 1):
        super().__init__()
        self.cell = JordanCell(1, d_hidden, d_out)

    def forward(self, x: Tensor) -> Tensor:
        return unroll(self.cell, x)[..., :1]


# %% tags=["bit-training"]
SEEDS = (0, 1, 2)


def train_on_bits(network: nn.Module, *, steps: int = 300) -> nn.Module:
    """Adam on new streams of 9 bits, 32 a step; each bit but the first is predicted."""
    where = next(network.parameters()).device
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in training.progress(range(steps), "steps"):
        bits = xor_stream(32, 3).unsqueeze(2).to(where)  # (B, T, 1)
        loss = F.binary_cross_entropy(network(bits[:, :-1]), bits[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


@torch.no_grad()
def loss_by_place(network: nn.Module) -> Tensor:
    """Mean loss of the bits 2 to 24 of new streams, longer than those of training."""
    where = next(network.parameters()).device
    bits = xor_stream(1000, 8).unsqueeze(2).to(where)
    found = network(bits[:, :-1])
    loss = F.binary_cross_entropy(found, bits[:, 1:], reduction="none")
    return loss.mean((0, 2)).cpu()  # (T - 1,)


# %% tags=["bits"]
KINDS = {
    "Elman": lambda: ElmanNetwork(1, 8, 1),
    "Jordan": lambda: JordanNetwork(8),
}
by_place = {}
for kind, build in KINDS.items():
    for number in SEEDS:
        seed(number)
        network = train_on_bits(build().to(device))
        by_place[kind, number] = loss_by_place(network)

# %% tags=["bits-figure"] alt="Loss at the bits 2 to 24. The line of the Elman network lies at about 0.7 and falls to nearly 0 at each third bit; the line of the Jordan network is flat at 0.69."
_, axes = plt.subplots(figsize=(5, 2.6))
places = range(2, 25)
ends = {}
for kind, colour in zip(KINDS, plots.COLOURS):
    runs = torch.stack([by_place[kind, number] for number in SEEDS])
    ends[kind] = plots.seed_band(axes, places, runs, colour)
axes.set(xlabel="bit", ylabel="loss", xticks=range(3, 25, 3), ylim=(0, 0.9))
ends["Elman"] = (24, 0.06)
plots.label_ends(axes, ends)
axes.set_axisbelow(True)

# %% tags=["bits-claims"]
third = {k: [by_place[k, n][1::3].mean().item() for n in SEEDS] for k in KINDS}
drawn = {}
for kind in KINDS:
    losses = [by_place[kind, n] for n in SEEDS]
    drawn[kind] = [torch.cat((v[0::3], v[2::3])).mean().item() for v in losses]
    record_spread(f"{kind}.third", third[kind])
    record_spread(f"{kind}.drawn", drawn[kind])
chance = math.log(2)
record("chance", chance)
claim(max(third["Elman"]) < 0.1, "the Elman network predicts each third bit")
claim(min(third["Jordan"]) > 0.68, "the Jordan network guesses each third bit")
claim(min(drawn["Elman"]) > chance, "the drawn bits cannot be predicted")
late = max(by_place["Elman", n][10::3].max().item() for n in SEEDS)
claim(late < 0.15, "it does so beyond the 9 bits of training, too")

# %% [markdown]
# ## One number as a state
#
# $h_t = \tanh(x_t + h_{t-1} / 2)$, read 1, 0 and 0. Each step back multiplies the slope by
# a half and by $1 - h^2$.

# %% tags=["by-hand"]
x = [1.0, 0.0, 0.0]
h = [0.0]
for x_t in x:
    h.append(math.tanh(x_t + h[-1] / 2))
slopes = [1.0]  # of the last state by itself
for h_t in (h[3], h[2]):
    slopes.insert(0, slopes[0] * (1 - h_t**2) / 2)

# %% tags=["by-hand-result"]
cell = ElmanCell(1, 1)
with torch.no_grad():
    for layer, value in ((cell.from_input, 1.0), (cell.from_state, 0.5)):
        layer.weight.fill_(value)
    cell.from_input.bias.zero_()
found = unroll(cell, torch.tensor(x).view(1, 3, 1)).flatten()
claim(checks.deviation(found, torch.tensor(h[1:])) < 1e-6, "the cell by hand")
rows = []
for t in range(3):
    values = (x[t], h[t + 1], 1 - h[t + 1] ** 2, slopes[t])
    rows.append((t + 1, *(f"{value:.3f}" for value in values)))
record("hand.first", slopes[0])
table(rows, ("t", "x", "h", "1 - h²", "slope of the last h"))

# %% [markdown]
# ## Back-propagation through time
#
# The same with matrices. `slopes` holds what the losses of each step ask of its state;
# `carried` brings what later steps ask.


# %% tags=["bptt"]
@torch.no_grad()
def bptt(cell: ElmanCell, x: Tensor, states: Tensor, slopes: Tensor):
    """Gradients of the cell's weights, and of the states, without autograd.

    x (B, T, d_in), states and slopes (B, T, D); slopes: of each state by its own loss.
    """
    gradients = {name: torch.zeros_like(p) for name, p in cell.named_parameters()}
    totals = torch.zeros_like(slopes)
    carried = torch.zeros_like(slopes[:, 0])
    before = F.pad(states, (0, 0, 1, -1))  # (B, T, D), zeros first
    for t in reversed(range(x.shape[1])):
        totals[:, t] = slopes[:, t] + carried
        inner = totals[:, t] * (1 - states[:, t] ** 2)  # below the tanh
        gradients["from_input.weight"] += inner.mT @ x[:, t]
        gradients["from_input.bias"] += inner.sum(0)
        gradients["from_state.weight"] += inner.mT @ before[:, t]
        carried = inner @ cell.from_state.weight
    return gradients, totals


# %% tags=["bptt-check"]
seed(0)
cell = ElmanCell(5, 8)
x = torch.randn(4, 7, 5)
states = unroll(cell, x)
states.retain_grad()
wanted = torch.randn(4, 7, 8)
(0.5 * (states - wanted).square().sum()).backward()
found, totals = bptt(cell, x, states.detach(), (states - wanted).detach())

# %% tags=["bptt-result"]
rows = []
for name, parameter in cell.named_parameters():
    difference = checks.deviation(found[name], parameter.grad)
    claim(difference < 1e-5, f"the gradient of {name} by hand is autograd's")
    rows.append((name, "×".join(map(str, parameter.shape)), f"{difference:.1e}"))
record("bptt", max(float(row[2]) for row in rows))
table(rows, ("gradient of", "shape", "largest difference"))

# %% [markdown]
# ## The gradient by distance
#
# A network of 128 units reads 40 characters. How much does the last loss ask of a state
# k steps before? The matrix from state to state is orthogonal times a radius: all its
# eigenvalues have that size, and it stretches every vector by it.


# %% tags=["linear-cell"]
class LinearCell(ElmanCell):
    """The same without the tanh."""

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return self.from_input(x) + self.from_state(state)


# %% tags=["by-distance"]
def draw_weights(cell: ElmanCell, *, radius: float, size: float) -> ElmanCell:
    """Orthogonal from state to state, times the radius; normal from the input."""
    nn.init.normal_(cell.from_input.weight, std=size)
    nn.init.zeros_(cell.from_input.bias)
    nn.init.orthogonal_(cell.from_state.weight, gain=radius)
    return cell


def by_distance(cell: ElmanCell, x: Tensor) -> Tensor:
    """Size of the last loss's gradient k states before the last, over that at k = 0.

    The slope at the last state is drawn. The mean over B of the logarithms: (T,)
    """
    state = x.new_zeros(len(x), cell.d_state)
    states = []
    for x_t in x.unbind(1):
        state = cell(x_t, state)
        states.append(state)
    loss = (state * torch.randn_like(state)).sum()
    gradients = torch.autograd.grad(loss, states)
    norms = torch.stack([g.norm(dim=1) for g in reversed(gradients)])  # (T, B)
    return (norms / norms[0]).log().mean(1).exp()


# %% [markdown]
# In a wide network the sums below the tanh are about normal. Their variance settles; what
# the slope of the tanh leaves of the gradient is a mean over that normal distribution.


# %% tags=["predicted"]
def predicted_factor(radius: float, size: float) -> float:
    """Factor a step of the gradient's norm in a wide tanh network, by mean field."""
    z = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2)
    density /= density.sum()
    variance = 1.0  # of the sums below the tanh
    for _ in range(500):
        states = torch.tanh(math.sqrt(variance) * z)
        variance = (radius**2 * density @ states**2).item() + size**2
    slopes = 1 - torch.tanh(math.sqrt(variance) * z) ** 2
    return radius * math.sqrt(density @ slopes**2)


# %% tags=["distance-data"]
RADII = (0.5, 1.0, 1.5)
SIZES = (0.1, 0.3, 1.0)
T = 40
verses = text.english().train[:50_000]
vocabulary = text.Vocabulary([verses])
numbers = torch.tensor(vocabulary.encode(verses))
windows = numbers.unfold(0, T, T)[:1000]
record("verses.T", T)
windows.shape

# %% tags=["distance"]
measured = {}
for number in SEEDS:
    seed(number)
    chosen = windows[torch.randperm(len(windows))[:32]].to(device)
    x = F.one_hot(chosen, len(vocabulary)).double()  # (B, T, V)
    for radius in RADII:
        for kind, sizes in ((LinearCell, SIZES[:1]), (ElmanCell, SIZES)):
            for size in sizes:
                cell = kind(len(vocabulary), 128).double().to(device)
                draw_weights(cell, radius=radius, size=size)
                measured[kind, radius, size, number] = by_distance(cell, x).cpu()

# %% tags=["distance-figure"] alt="Two panels, size of the gradient on a log scale against the distance, 0 to 30, dots on lines. Linear: radius 1.5 rises to above 100,000, radius 1 is flat, radius 0.5 falls to below a billionth. tanh: radius 1.5 rises to several, radius 1 falls to about a tenth, radius 0.5 falls a little below the line on the left."
figure, panels = plt.subplots(1, 2, sharey=True, figsize=(5, 3.2))
distances = torch.arange(31)
for axes, kind in zip(panels, (LinearCell, ElmanCell)):
    ends = {}
    for radius, colour in zip(RADII, (plots.COLOURS[0], plots.INK, plots.COLOURS[1])):
        linear = kind is LinearCell
        factor = radius if linear else predicted_factor(radius, SIZES[0])
        axes.plot(distances, factor**distances, color=colour, linewidth=1)
        for number in SEEDS:
            dots = measured[kind, radius, SIZES[0], number][distances]
            axes.plot(distances[::3], dots[::3], "o", color=colour, markersize=4)
        ends[f"{radius}"] = (30, factor**30)
    axes.set(yscale="log", xlabel="distance", xticks=(0, 10, 20, 30))
    axes.set_title("linear" if linear else "tanh", loc="left")
    plots.label_ends(axes, ends, (plots.COLOURS[0], plots.INK, plots.COLOURS[1]))
panels[0].set_ylabel("gradient / gradient at 0")
axes.set_axisbelow(True)

# %% tags=["distance-result"]
rows = []
misses = []
factors = {}
for size in SIZES:
    for radius in RADII:
        runs = [measured[ElmanCell, radius, size, n] for n in SEEDS]
        case = [(run[30] / run[10]).item() ** (1 / 20) for run in runs]
        factors[radius, size] = case
        expected = predicted_factor(radius, size)
        record_spread(f"factor.{radius}.{size}", case)
        record(f"predicted.{radius}.{size}", expected)
        rows.append((f"{size}", f"{radius}", f"{expected:.3f}", spread(case, ".3f")))
        miss = max(abs(value / expected - 1) for value in case)
        claim(miss < 0.025, f"predicted within 2.5 % for {radius}, {size}")
        misses.append(miss)
record("factor.miss", max(misses))
table(rows, ("size of inputs", "radius", "tanh predicted", "measured a step"))

# %% tags=["distance-claims"]
ratios = []
for radius in RADII:
    for number in SEEDS:
        run = measured[LinearCell, radius, SIZES[0], number]
        line = radius ** torch.arange(T, dtype=torch.float64)
        ratios.append(run / line)
        for size in SIZES:
            below = measured[ElmanCell, radius, size, number] <= line * (1 + 1e-9)
            claim(below.all(), "with tanh the gradient is nowhere above the bound")
exact = checks.deviation(torch.stack(ratios), torch.ones(len(ratios), T))
record("linear.deviation", exact)
claim(exact < 1e-9, "the linear network follows the power of the radius")
claim(max(factors[0.5, 0.1]) < 0.5, "radius 0.5 vanishes")
claim(max(factors[1.0, 0.1]) < 1, "radius 1 with tanh vanishes, too")
claim(min(factors[1.5, 0.1]) > 1, "radius 1.5 with small inputs explodes")
claim(max(factors[1.5, 1.0]) < 1, "radius 1.5 with large inputs vanishes")
for radius in RADII:
    pairs = zip(SIZES, SIZES[1:])
    falls = all(max(factors[radius, b]) < min(factors[radius, a]) for a, b in pairs)
    claim(falls, "larger inputs leave less of the gradient, seeds apart")
for size in SIZES:
    at_30 = [measured[ElmanCell, 1.5, size, n][30].item() for n in SEEDS]
    record_spread(f"at30.{size}", at_30)
start = nn.RNN(1, 512).weight_hh_l0.detach()
usual = torch.linalg.eigvals(start).abs().max()
record("usual.radius", usual)
claim(abs(usual - 3**-0.5) < 0.05, "torch's own start has a radius of about 0.58")

# %% [markdown]
# ## Several layers, two directions
#
# A second cell reads the states of the first. Another one may read the sequence from its
# end; the states of both stand side by side.


# %% tags=["layers"]
class ElmanLayer(nn.Module):
    """A cell along a sequence: (B, T, d_in) -> (B, T, D)."""

    def __init__(self, d_in: int, d_state: int):
        super().__init__()
        self.cell = ElmanCell(d_in, d_state)

    def forward(self, x: Tensor) -> Tensor:
        return unroll(self.cell, x)


class Bidirectional(nn.Module):
    """One layer from the left, one from the right: (B, T, d_in) -> (B, T, 2 D)."""

    def __init__(self, d_in: int, d_state: int):
        super().__init__()
        self.from_left = ElmanLayer(d_in, d_state)
        self.from_right = ElmanLayer(d_in, d_state)

    def forward(self, x: Tensor) -> Tensor:
        right = self.from_right(x.flip(1)).flip(1)  # (B, T, D), in the order of x
        return torch.cat((self.from_left(x), right), dim=2)


# %% tags=["layers-shape"]
stacked = nn.Sequential(Bidirectional(5, 8), Bidirectional(16, 8))
stacked(torch.randn(2, 7, 5)).shape


# %% tags=["layers-figure"] alt="Two drawings of three steps each. Stacked: above each x a box, above it a second box, then y; arrows run from left to right in both rows. Bidirectional: each x has an arrow to a lower and to an upper box, both have arrows to y; in the lower row arrows run from left to right, in the upper row from right to left."
def draw_layers(axes, left: float, title: str, shift: float) -> None:
    """Three steps of two layers: one above the other, or side by side."""
    nodes = {"title": diagrams.Node(left + 0.9, 0.15, title, weight="bold")}
    arrows = []
    for t in range(3):
        x = left + 0.2 + 0.75 * t
        nodes[f"y{t}"] = diagrams.Node(x, 0.5, f"$y_{t + 1}$")
        nodes[f"b{t}"] = diagrams.Node(x + shift, 1.1, " ", width=0.26)
        nodes[f"a{t}"] = diagrams.Node(x - shift, 1.7, " ", width=0.26)
        nodes[f"x{t}"] = diagrams.Node(x, 2.3, f"$x_{t + 1}$")
        arrows += [(f"x{t}", f"a{t}"), (f"b{t}", f"y{t}")]
        across = [(f"x{t}", f"b{t}"), (f"a{t}", f"y{t}")]
        arrows += across if shift else [(f"a{t}", f"b{t}")]
        if t:
            upper = (f"b{t}", f"b{t - 1}") if shift else (f"b{t - 1}", f"b{t}")
            arrows += [(f"a{t - 1}", f"a{t}"), upper]
    diagrams.draw(axes, nodes, arrows)


axes = diagrams.sheet(2.45)
draw_layers(axes, 0.3, "stacked", 0)
draw_layers(axes, 2.85, "bidirectional", 0.17)

# %% [markdown]
# ## Equal to torch
#
# torch's layer has two biases for each cell, which are added. We copy its weights and the
# sum of its biases, and compare outputs and gradients.


# %% tags=["take-weights"]
@torch.no_grad()
def take_weights(network: nn.Module, theirs: nn.RNN) -> None:
    """Copy torch's weights, cell by cell; its two biases become one."""
    cells = [part for part in network.modules() if isinstance(part, ElmanCell)]
    for cell, (w_x, w_h, b_x, b_h) in zip(cells, theirs.all_weights, strict=True):
        cell.from_input.weight.copy_(w_x)
        cell.from_state.weight.copy_(w_h)
        cell.from_input.bias.copy_(b_x + b_h)


# %% tags=["equal"]
seed(0)
cases = {
    "one layer": (ElmanLayer(5, 8), {}),
    "two layers": (
        nn.Sequential(ElmanLayer(5, 8), ElmanLayer(8, 8)),
        {"num_layers": 2},
    ),
    "bidirectional": (Bidirectional(5, 8), {"bidirectional": True}),
    "both": (stacked, {"num_layers": 2, "bidirectional": True}),
}
x = torch.randn(3, 7, 5)
compared = {}
for name, (ours, how) in cases.items():
    theirs = nn.RNN(5, 8, batch_first=True, **how)
    take_weights(ours, theirs)
    found = ours(x)
    expected, _ = theirs(x)
    asked = torch.randn_like(expected)
    (found * asked).sum().backward()
    (expected * asked).sum().backward()
    cells = [part for part in ours.modules() if isinstance(part, ElmanCell)]
    differences = []
    for cell, weights in zip(cells, theirs.all_weights):
        w_x, w_h, b_x, b_h = (weight.grad for weight in weights)
        differences.append(checks.deviation(cell.from_input.weight.grad, w_x))
        differences.append(checks.deviation(cell.from_state.weight.grad, w_h))
        differences.append(checks.deviation(cell.from_input.bias.grad, b_x))
        differences.append(checks.deviation(cell.from_input.bias.grad, b_h))
    compared[name] = (checks.deviation(found, expected), max(differences))

# %% tags=["equal-result"]
rows = []
for name, pair in compared.items():
    claim(max(pair) < 1e-5, f"{name}: outputs and gradients are torch's")
    rows.append((name, *(f"{value:.1e}" for value in pair)))
record("deviation", max(max(pair) for pair in compared.values()))
table(rows, ("layers", "outputs", "gradients"))

# %% [markdown]
# ## Counted
#
# The networks of Elman's paper, inputs, states and outputs, and torch's layers of these
# sizes. MACs are those of one step, counted on the meta device.


# %% tags=["count"]
class TorchNetwork(nn.Module):
    """torch's layer and the outputs of its states."""

    def __init__(self, d_in: int, d_state: int, d_out: int):
        super().__init__()
        self.rnn = nn.RNN(d_in, d_state, batch_first=True)
        self.output = nn.Linear(d_state, d_out)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        return torch.sigmoid(self.output(states))


PUBLISHED = {
    "exclusive or": (1, 2, 1),
    "letters": (6, 20, 6),
    "letters of words": (5, 20, 5),
    "words": (31, 150, 31),
}
rows = []
for name, sizes in PUBLISHED.items():
    with torch.device("meta"):
        network = ElmanNetwork(*sizes)
        theirs = TorchNetwork(*sizes)
        x = torch.empty(1, 10, sizes[0])
    parameters = counting.parameters(network)
    macs = counting.macs(network, x) // 10
    d_in, D, d_out = sizes
    claim(macs == D * (d_in + D + d_out), f"{name}: the formula gives the MACs")
    claim(counting.macs(theirs, x) == 10 * macs, f"{name}: torch's has as many MACs")
    more = counting.parameters(theirs) - parameters
    claim(more == D, f"{name}: torch has a bias more for each state")
    rows.append((name, "-".join(map(str, sizes)), parameters, parameters + more, macs))
record("words.parameters", parameters)
record("words.macs", macs)
table(rows, ("network", "sizes", "parameters", "torch's", "MACs a step"))

# %% [markdown]
# ## Which month?
#
# Dates in English, in eight formats, and the number of their month: many characters to
# one answer.


# %% tags=["month-part"]
def month_part(dates, characters: text.Vocabulary) -> tuple[Tensor, Tensor, Tensor]:
    """Padded characters (N, T), lengths (N,) and months from 0 (N,)."""
    x = characters.padded([read for read, _ in dates])
    months = [int(iso[5:7]) - 1 for _, iso in dates]
    return x, (x != text.PAD).sum(1), torch.tensor(months)


# %% tags=["dates"]
pairs = text.dates()
characters = text.Vocabulary([read for read, _ in pairs.train])
train_part = month_part(pairs.train, characters)
test_part = month_part(pairs.test, characters)
record("dates", len(pairs.train))
record("dates.test", len(pairs.test))
rows = [(read, int(iso[5:7])) for read, iso in pairs.train[:4]]
table(rows, ("date", "month"))


# %% tags=["reader"]
class MonthReader(nn.Module):
    """Read the characters, ask the last state: (B, T), (B,) -> (B, 12)."""

    def __init__(self, V: int, *, radius: float, d_state: int = 64):
        super().__init__()
        self.embed = nn.Embedding(V, 16)
        self.rnn = nn.RNN(16, d_state)
        self.output = nn.Linear(d_state, 12)
        nn.init.orthogonal_(self.rnn.weight_hh_l0, gain=radius)

    def answer(self, x: Tensor, lengths: Tensor) -> Tensor:
        # (B, T, 16), (B,) -> (B, 12)
        states, _ = self.rnn(x.transpose(0, 1))  # (T, B, D), torch's own order
        columns = torch.arange(len(x), device=x.device)
        return self.output(states[lengths - 1, columns])

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.answer(self.embed(x), lengths)


# %% [markdown]
# Where the norm of all gradients together is above a limit, clipping scales them down to
# it. The direction stays.


# %% tags=["clip"]
@torch.no_grad()
def clip_by_norm(parameters, limit: float) -> Tensor:
    """Scale the gradients so that their norm is at most the limit; return the norm."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.stack([g.norm() for g in gradients]).norm()
    factor = (limit / (norm + 1e-6)).clamp(max=1)
    for g in gradients:
        g *= factor
    return norm


# %% tags=["clip-check"]
seed(0)
layers = [nn.Linear(4, 3), nn.Linear(4, 3)]
checks.transplant(layers[0], layers[1])
x = torch.randn(5, 4)
for layer in layers:
    (10 * layer(x)).square().sum().backward()
norm = clip_by_norm(layers[0].parameters(), 1.0)
theirs = nn.utils.clip_grad_norm_(layers[1].parameters(), 1.0)
claim(checks.deviation(norm, theirs) < 1e-6, "the norm is torch's")
for ours, expected in zip(layers[0].parameters(), layers[1].parameters()):
    same = checks.deviation(ours.grad, expected.grad) < 1e-6
    claim(same, "clipped gradients are torch's")
claim(norm > 1, "there was something to clip")


# %% tags=["reader-training"]
def train_reader(reader, part, optimizer, *, steps: int = 160, limit=math.inf):
    """Batches of 64 by chance, one-cycle rate; losses and gradient norms, by step."""
    where = next(reader.parameters()).device
    x, lengths, months = (tensor.to(where) for tensor in part)
    schedule = training.one_cycle(optimizer, steps)
    losses = []
    norms = []
    for _ in training.progress(range(steps), "steps"):
        chosen = torch.randint(len(months), (64,)).to(where)
        loss = F.cross_entropy(reader(x[chosen], lengths[chosen]), months[chosen])
        optimizer.zero_grad()
        loss.backward()
        norms.append(clip_by_norm([*reader.parameters()], limit).item())
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses, norms


@torch.no_grad()
def share_right(reader: nn.Module, part) -> float:
    """Share of dates whose month has the largest output."""
    where = next(reader.parameters()).device
    x, lengths, months = (tensor.to(where) for tensor in part)
    return (reader(x, lengths).argmax(1) == months).double().mean().item()


# %% [markdown]
# The same dates, cut off behind their month, have the month next to the answer.

# %% tags=["cut"]
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def through_month(read: str, month: int) -> str:
    """The date up to the last character of its month."""
    for name in (MONTHS[month], MONTHS[month][:3]):
        if name in read:
            return read[: read.index(name) + len(name)]
    return read[: read.index("/")]  # a number, in front of the first stroke


def cut_dates(dates) -> list[tuple[str, str]]:
    return [(through_month(read, int(iso[5:7]) - 1), iso) for read, iso in dates]


# %% tags=["behind"]
behind = []  # characters behind the month
for (read, _), (short, _) in zip(pairs.test, cut_dates(pairs.test)):
    behind.append(len(read) - len(short))
record("behind", max(behind))

# %% tags=["months"]
cut = []
for dates in (pairs.train, pairs.test):
    cut.append(month_part(cut_dates(dates), characters))
whole = (train_part, test_part)
settings = {  # radius, and what is read
    "0.5": (0.5, whole),
    "1.0": (1.0, whole),
    "0.5, cut": (0.5, cut),
}
readers = {}
curves = {}
right = {}
for name, (radius, parts) in settings.items():
    for number in SEEDS:
        seed(number)
        reader = MonthReader(len(characters), radius=radius).to(device)
        optimizer = torch.optim.Adam(reader.parameters(), lr=0.004)
        curves[name, number], _ = train_reader(reader, parts[0], optimizer)
        right[name, number] = share_right(reader, parts[1])
        readers[name, number] = reader

# %% tags=["reader-size"]
seed(0)
fresh = MonthReader(len(characters), radius=1.0)
read = test_part[0][test_part[0] != text.PAD]
brought = fresh.embed(read) @ fresh.rnn.weight_ih_l0.mT  # to each sum
size = brought.square().mean().sqrt().item()
record("reader.size", size)
claim(abs(size - 0.3) < 0.04, "a character brings about 0.3 to each sum")

# %% tags=["months-figure"] alt="Training loss against steps, 0 to 160, in bands of three seeds. Radius 0.5 falls late, from 2.5 to above 1.5; radius 1.0 falls to below 1; radius 0.5 on dates that are cut behind the month falls to nearly 0."
_, axes = plt.subplots()
ends = {}
for name, colour in zip(settings, plots.COLOURS):
    runs = torch.tensor([curves[name, n] for n in SEEDS])
    tens = [part.mean(1) for part in runs.split(10, dim=1)]
    middles = [5 + 10 * k for k in range(len(tens))]
    runs = torch.stack(tens, dim=1)
    ends[name] = plots.seed_band(axes, middles, runs, colour)
axes.set(xlabel="step", ylabel="training loss", ylim=(0, None), xlim=(0, 160))
plots.label_ends(axes, ends)
axes.set_axisbelow(True)

# %% tags=["months-result"]
record("steps", len(curves["0.5", 0]))
rows = []
scores = {}
for name in settings:
    scores[name] = [right[name, n] for n in SEEDS]
    last = [sum(curves[name, n][-20:]) / 20 for n in SEEDS]
    record_spread(f"right.{name}", scores[name])
    rows.append((name, spread(last, ".2f"), spread(scores[name], ".1%")))
table(rows, ("radius", "training loss", "right on held-out dates"))
best = max(scores["0.5"])
claim(best < min(scores["1.0"]), "radius 0.5 learns less, seeds apart")
claim(min(scores["0.5, cut"]) > 0.97, "it learns dates that end with their month")
claim(min(scores["0.5, cut"]) > best, "cut dates are read better, seeds apart")

# %% [markdown]
# ## Clipped
#
# Plain gradient descent at a rate of 1, radius 1.5: with and without a limit of 1.

# %% tags=["clipped"]
clipped = {}
for limit in (1.0, math.inf):
    for number in SEEDS:
        seed(number)
        reader = MonthReader(len(characters), radius=1.5).to(device)
        optimizer = torch.optim.SGD(reader.parameters(), lr=1.0)
        _, norms = train_reader(reader, train_part, optimizer, limit=limit)
        clipped[limit, number] = (share_right(reader, test_part), norms)

# %% tags=["clipped-result"]
rows = []
for limit, name in ((1.0, "clipped"), (math.inf, "not")):
    shares, norms = zip(*(clipped[limit, n] for n in SEEDS))
    middle = [torch.tensor(run).median().item() for run in norms]
    largest = [max(run) for run in norms]
    record_spread(f"right.{name}", shares)
    record_spread(f"norm.{name}", middle)
    columns = (spread(middle, ".1f"), spread(largest, ".1f"), spread(shares, ".1%"))
    rows.append((name, *columns))
table(rows, ("gradients", "median norm", "largest norm", "right on held-out dates"))

# %% tags=["clipped-claims"]
ahead = min(clipped[1.0, n][0] for n in SEEDS)
claim(ahead > max(clipped[math.inf, n][0] for n in SEEDS), "clipped ones are ahead")
for number in SEEDS:
    norms = torch.tensor(clipped[1.0, number][1])
    few = (norms <= 1).double().mean() < 0.1
    claim(few, "the norm is above the limit at nine steps of ten, clipped")
    if limit == 1:
        high = norms.quantile(0.95) < 3 * norms.median()
        claim(high, "few gradients are far longer than the others")
        claim(1.5 < norms.median() < 2.5, "clipping halves a gradient, about")

# %% [markdown]
# ## Padding
#
# Dates of unequal lengths share a batch. Behind the shorter ones stand zeros that must not
# be read: the state holds where a date is over.


# %% tags=["read-until"]
def read_until(cell: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
    """The state behind the last step of each sequence: (B, T, d_in), (B,) -> (B, D)."""
    state = x.new_zeros(len(x), cell.d_state)
    for t, x_t in enumerate(x.unbind(1)):
        going_on = (t < lengths).unsqueeze(1)  # (B, 1)
        state = torch.where(going_on, cell(x_t, state), state)
    return state


# %% tags=["packed-figure"] alt="Three dates in rows of one character a cell, the longest on top: June 7, 1994; 7 May 1994; 5/7/94. Cells behind their ends are grey. Below the columns stand the numbers of dates that are still read: 3 for six columns, then 2, and 1 at the end."
LINES = ("June 7, 1994", "7 May 1994", "5/7/94")
axes = diagrams.sheet(1.75)
for row, line in enumerate(LINES):
    for column in range(len(LINES[0])):
        corner = (0.25 + 0.36 * column, 0.15 + 0.38 * row)
        read = column < len(line)
        colour = plots.COLOURS[0] if read else plots.GRID
        how = {"edgecolor": colour, "facecolor": "none" if read else plots.GRID}
        axes.add_patch(plt.Rectangle(corner, 0.32, 0.32, **how))
        words = line[column] if read else ""
        x, y = corner
        axes.text(x + 0.16, y + 0.16, words, ha="center", va="center", fontsize=11)
for column in range(len(LINES[0])):
    count = sum(column < len(line) for line in LINES)
    axes.text(0.41 + 0.36 * column, 1.5, count, ha="center", va="center", fontsize=11)


# %% tags=["pack"]
def packed_states(rnn: nn.RNN, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """All states (B, T, D), zeros behind the ends, and the last of each (B, D)."""
    how = {"batch_first": True, "enforce_sorted": False}
    states, last = rnn(pack_padded_sequence(x, lengths.cpu(), **how))
    return pad_packed_sequence(states, batch_first=True)[0], last[-1]


# %% tags=["padding"]
x, lengths, months = (tensor[:8] for tensor in test_part)
reader = copy.deepcopy(readers["1.0", 0]).cpu()
results = {}
for more in (0, 10):
    reader.zero_grad()
    embedded = reader.embed(F.pad(x, (0, more)))
    states, last = packed_states(reader.rnn, embedded, lengths)
    loss = F.cross_entropy(reader.output(last), months)
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in reader.parameters()])
    results[more] = (states, last, loss, gradients)

# %% tags=["padding-others"]
cell = ElmanCell(16, 64)
take_weights(cell, reader.rnn)
alone = []
for row, length in zip(x, lengths):
    _, state = reader.rnn(reader.embed(row[:length]))
    alone.append(state[0])
states, end = reader.rnn(embedded.transpose(0, 1))
compared = {
    "our loop, 10 columns more": read_until(cell, embedded, lengths),
    "not packed, state at the length": states[lengths - 1, range(8)],
    "each date alone": torch.stack(alone),
    "not packed, state at the end": end[0],
}

# %% tags=["padding-result"]
rows = []
for k, name in enumerate(("outputs", "last state", "loss", "gradients")):
    difference = checks.deviation(results[10][k], results[0][k])
    claim(difference < 1e-6, f"padding changes nothing: {name}")
    rows.append((name, "packed, 10 columns more", f"{difference:.1e}"))
for name, found in compared.items():
    difference = checks.deviation(found, results[0][1])
    wrong = name == "not packed, state at the end"
    claim((difference < 1e-5) != wrong, f"only the end of padding is wrong: {name}")
    rows.append(("last state", name, f"{difference:.1e}"))
record("unpacked", difference)
claim(difference > 0.1, "without packing the state at the end is another one")
table(rows, ("part", "how it is read", "largest difference"))

# %% tags=["padding-both"]
seed(0)
both = nn.RNN(16, 8, batch_first=True, bidirectional=True)
states, _ = packed_states(both, results[0][0][..., :16].detach(), lengths)
padded, _ = both(results[0][0][..., :16].detach())
inside = torch.arange(states.shape[1]) < lengths.unsqueeze(1)  # (B, T)
difference = checks.deviation(padded[inside], states[inside])
record("bidirectional.unpacked", difference)
claim(difference > 0.1, "a layer from the right has read the padding first")

# %% [markdown]
# ## Look inside
#
# How far back do the readers look, before training and after it? The gradient of the loss
# by each character of the longer held-out dates, from the last one back.


# %% tags=["looks-back"]
def looks_back(reader: MonthReader, part, *, least: int = 20) -> Tensor:
    """Size of the loss's gradient by each character, over that of the last.

    Of dates with at least so many characters: the mean of logarithms, (least,)
    """
    where = next(reader.parameters()).device
    long = part[1] >= least
    x, lengths, months = (tensor[long].to(where) for tensor in part)
    embedded = reader.embed(x).detach().requires_grad_()
    outputs = reader.answer(embedded, lengths)
    loss = F.cross_entropy(outputs, months, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, embedded)
    back = torch.arange(least, device=where)
    places = lengths.unsqueeze(1) - 1 - back  # (B, least), the last character first
    norms = gradient.norm(dim=2).gather(1, places)
    return (norms / norms[:, :1]).log().mean(0).exp().cpu()


# %% tags=["looked"]
looked = {}
for name in ("0.5", "1.0"):
    for number in SEEDS:
        seed(number)
        fresh = MonthReader(len(characters), radius=float(name)).to(device)
        for when, reader in (("before", fresh), ("after", readers[name, number])):
            looked[name, when, number] = looks_back(reader, test_part)

# %% tags=["looked-figure"] alt="Size of the gradient on a log scale against the distance from the last character, 0 to 19. Before training the line of radius 0.5 falls to below a millionth, that of radius 1.0 to some hundredths. After training both stay above a tenth."
_, axes = plt.subplots()
ends = {}
for name, colour in (("1.0", plots.COLOURS[1]), ("0.5", plots.COLOURS[0])):
    for when, line in (("before", "--"), ("after", "-")):
        runs = torch.stack([looked[name, when, n] for n in SEEDS])
        ends[f"{name} {when}"] = plots.seed_band(axes, range(20), runs, colour, line)
axes.set(yscale="log", xlabel="characters before the last", xticks=range(0, 20, 5))
axes.set_ylabel("gradient / gradient at 0")
plots.label_ends(axes, ends, [plots.COLOURS[1]] * 2 + [plots.COLOURS[0]] * 2)
axes.set_axisbelow(True)

# %% tags=["looked-claims"]
far = {case: run[19].item() for case, run in looked.items()}
for name in ("0.5", "1.0"):
    for when in ("before", "after"):
        values = [far[name, when, n] for n in SEEDS]
        record_spread(f"far.{name}.{when}", values)
    before = max(far[name, "before", n] for n in SEEDS)
    after = min(far[name, "after", n] for n in SEEDS)
    claim(after > before, f"training carries radius {name} farther back, seeds apart")
    claim(after > 0.1, f"radius {name} ends above a tenth")
    expected = predicted_factor(float(name), 0.3) ** 19
    record(f"far.{name}.predicted", expected)
    for number in SEEDS:
        ratio = far[name, "before", number] / expected
        claim(0.5 < ratio < 2, f"radius {name} begins about where it is predicted")
claim(max(far["0.5", "before", n] for n in SEEDS) < 1e-6, "0.5 begins at nothing")
claim(all(0.01 < far["1.0", "before", n] < 0.1 for n in SEEDS), "1.0 at hundredths")

# %% [markdown]
# ## What we saw
#
# - The state makes the next bit of a stream predictable where the input alone does not.
# - The gradient goes back by powers: with a tanh it follows the prediction for wide
#   networks, and is never above the power of the radius.
# - Where it vanishes a reader of dates does not learn what stands far from the answer.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
W = torch.tensor([[0.5, 4.0], [0.0, 0.5]], dtype=torch.float64)
radius = torch.linalg.eigvals(W).abs().max()
powers = torch.stack([torch.linalg.matrix_power(W, k) for k in range(13)])
largest = torch.linalg.matrix_norm(powers, ord=2)  # (13,)

# %% tags=["solution-1-result"]
claim(abs(radius - 0.5) < 1e-9, "the radius is a half")
claim(largest.max() > 4 and largest[12] < 1, "it stretches first and shrinks later")
record("stretch.1", largest[1])
record("stretch.12", largest[12])
rows = [(k, f"{largest[k]:.3f}") for k in (0, 1, 2, 3, 6, 9, 12)]
table(rows, ("steps", "largest factor"))

# %% tags=["solution-2"]
at_rate = {}
for rate in (0.002, 0.008):
    seed(0)
    reader = MonthReader(len(characters), radius=0.5).to(device)
    optimizer = torch.optim.Adam(reader.parameters(), lr=rate)
    train_reader(reader, train_part, optimizer)
    at_rate[rate] = share_right(reader, test_part)

# %% tags=["solution-2-result"]
claim(max(at_rate.values()) < min(scores["1.0"]), "at other rates it learns less, too")
rows = [(str(rate), f"{share:.1%}") for rate, share in at_rate.items()]
table(rows, ("rate", "right on held-out dates, radius 0.5"))

# %% tags=["solution-3"]
seed(0)
reader = MonthReader(len(characters), radius=1.5).to(device)
optimizer = torch.optim.SGD(reader.parameters(), lr=0.2)
train_reader(reader, train_part, optimizer)
slower = share_right(reader, test_part)

# %% tags=["solution-3-result"]
worst = [clipped[math.inf, n][0] for n in SEEDS]
claim(slower > max(worst), "a smaller rate does without clipping")
record("slower", slower)
slower

# %% tags=["solution-4"]
seed(0)
wide = train_on_bits(JordanNetwork(8, 8).to(device))
loss_of_wide = loss_by_place(wide)[1::3].mean().item()

# %% tags=["solution-4-result"]
claim(loss_of_wide < min(third["Jordan"]) / 2, "outputs that are free remember")
record("wide.third", loss_of_wide)
loss_of_wide


# %% tags=["solution-5"]
class OneStepBack(ElmanCell):
    """The state is an input like any other: its gradient ends there."""

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return super().forward(x, state.detach())


seed(0)
network = ElmanNetwork(1, 8, 1)
network.cell = OneStepBack(1, 8)
cut_short = loss_by_place(train_on_bits(network.to(device)))[1::3].mean().item()

# %% tags=["solution-5-result"]
claim(max(third["Elman"]) < cut_short < chance - 0.1, "one step learns a part")
record("one.step", cut_short)
cut_short
