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
# # LSTM and GRU
#
# Cells with a memory and gates: what each gate does, by hand and in a trained network;
# both cells equal to torch's in outputs and gradients; how far a gradient reaches; a sum
# over fifty steps; and a model of text beside a count of five characters.
# The text to it is the [chapter](../chapters/lstm.rst), the papers are
# [Hochreiter and Schmidhuber 1997](https://doi.org/10.1162/neco.1997.9.8.1735) and
# [Cho et al. 2014](https://arxiv.org/abs/1406.1078).

# %%
import math
from collections import Counter

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, plots, text, training

# %% [markdown]
# ## The LSTM cell
#
# A cell reads one vector and its state and returns the next state. All cells of this page
# have the same kind of weights: one matrix for the input, one for the state, and a bias
# with each, so that those of torch can be copied into them.


# %% tags=["gated-cell"]
class GatedCell(nn.Module):
    """The weights of a cell whose rows are stacked, one block of d_hidden a gate."""

    def __init__(self, d_in: int, d_hidden: int, *, blocks: int):
        super().__init__()
        rows = blocks * d_hidden
        self.d_hidden = d_hidden
        self.weight_x = nn.Parameter(torch.empty(rows, d_in))
        self.weight_h = nn.Parameter(torch.empty(rows, d_hidden))
        self.bias_x = nn.Parameter(torch.empty(rows))
        self.bias_h = nn.Parameter(torch.empty(rows))
        for weight in self.parameters():
            nn.init.uniform_(weight, -(d_hidden**-0.5), d_hidden**-0.5)

    def from_input(self, x: Tensor) -> Tensor:
        # (B, d_in) -> (B, blocks d_hidden)
        return F.linear(x, self.weight_x, self.bias_x)

    def from_state(self, h: Tensor) -> Tensor:
        # (B, d_hidden) -> (B, blocks d_hidden)
        return F.linear(h, self.weight_h, self.bias_h)


# %% tags=["lstm-cell"]
class LSTMCell(GatedCell):
    """One step of an LSTM: input gate, forget gate, candidate, output gate.

    Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000.
    """

    def __init__(self, d_in: int, d_hidden: int):
        super().__init__(d_in, d_hidden, blocks=4)

    def start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # (B, T, d_in) -> h and c, (B, d_hidden) of zeros
        zeros = x.new_zeros(len(x), self.d_hidden)
        return zeros, zeros

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]):
        # x (B, d_in), h and c (B, d_hidden) -> the next h and c
        h, c = state
        blocks = self.from_input(x) + self.from_state(h)  # (B, 4 d_hidden)
        i, f, g, o = blocks.chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, c


# %% tags=["unrolled"]
class Unrolled(nn.Module):
    """A cell over a sequence: (B, T, d_in) -> all h (B, T, d_hidden), last state."""

    def __init__(self, cell: GatedCell):
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, state=None):
        state = state or self.cell.start(x)
        outputs = []
        for x_t in x.unbind(1):  # (B, d_in)
            state = self.cell(x_t, state)
            outputs.append(state[0])
        return torch.stack(outputs, dim=1), state


# %% tags=["lstm-shape"]
outputs, (h, c) = Unrolled(LSTMCell(2, 32))(torch.randn(5, 7, 2))
outputs.shape, h.shape, c.shape


# %% tags=["lstm-drawing"]
def draw_lstm(axes) -> None:
    """The memory from left to right, the gates below it, each on its way."""
    nodes = {
        "c": diagrams.Node(0.3, 0.4, "$c_{t-1}$"),
        "keep": diagrams.Node(1.2, 0.4, "×"),
        "add": diagrams.Node(2.3, 0.4, "+"),
        "new": diagrams.Node(4.65, 0.4, "$c_t$"),
        "write": diagrams.Node(2.3, 1.05, "×"),
        "tanh": diagrams.Node(3.7, 0.95, "tanh"),
        "read": diagrams.Node(3.7, 1.6, "×"),
        "h": diagrams.Node(4.65, 1.6, "$h_t$"),
        "f": diagrams.Node(1.2, 2.2, "forget $f$", width=0.95),
        "i": diagrams.Node(2.3, 2.2, "input $i$", width=0.9),
        "g": diagrams.Node(3.3, 2.2, "new $g$", width=0.8),
        "o": diagrams.Node(4.3, 2.2, "output $o$", width=0.95),
        "x": diagrams.Node(2.75, 2.85, "$x_t$ and $h_{t-1}$"),
    }
    arrows = [("f", "keep"), ("i", "write"), ("write", "add"), ("tanh", "read")]
    arrows += [("read", "h"), ((3.7, 0.4), "tanh")]
    arrows.append(((3.3, 2.03), (3.3, 1.05), "write"))
    arrows.append(((4.0, 2.03), (4.0, 1.85), (3.7, 1.85), "read"))
    for gate in ("f", "i", "g", "o"):
        x = nodes[gate].x
        arrows.append(((x, 2.6), gate))
    axes.plot((1.2, 4.3), (2.6, 2.6), color=plots.QUIET, linewidth=1)
    memory = [("c", "keep"), ("keep", "add"), ("add", "new")]
    diagrams.draw(axes, nodes, arrows, memory)


# %% tags=["lstm-figure"] alt="The memory runs along the top from left to right, from c of the last step through a times sign and a plus sign to c of this step. Four boxes stand in a row below, all fed by the input and the last output: forget leads to the times sign, input and new meet in a times sign that leads to the plus sign, and output meets the tanh of the memory in a times sign that gives h."
axes = diagrams.sheet(3.05)
draw_lstm(axes)

# %% [markdown]
# ## One step by hand
#
# One unit, an input of 1, weights whose sigmoids are round numbers.


# %% tags=["set-blocks"]
def set_blocks(cell: GatedCell, blocks) -> None:
    """Weights of a cell of one unit: for each block those of the input, and a bias."""
    with torch.no_grad():
        cell.weight_h.zero_()
        cell.bias_h.zero_()
        for row, (weights, bias) in enumerate(blocks):
            cell.weight_x[row] = torch.tensor(weights)
            cell.bias_x[row] = bias


# %% tags=["step-by-hand"]
one = LSTMCell(1, 1)
input_half = ([0.0], 0.0)
forget_three_quarters = ([0.0], math.log(3))
new_three_fifths = ([math.log(2)], 0.0)
output_four_fifths = ([0.0], math.log(4))
blocks = (input_half, forget_three_quarters, new_three_fifths, output_four_fifths)
set_blocks(one, blocks)
x = torch.ones(1, 1)
h, c = one(x, (torch.zeros(1, 1), torch.full((1, 1), 2.0)))

# %% tags=["step-result"]
record("step.c", c)
record("step.h", h)
claim(abs(c.item() - (0.75 * 2 + 0.5 * 0.6)) < 1e-6, "3/4 of 2 and half of 0.6 are 1.8")
claim(abs(h.item() - 0.8 * math.tanh(1.8)) < 1e-6, "four fifths of tanh(1.8) are read")
table([(f"{c.item():.3f}", f"{h.item():.3f}")], ("memory c", "output h"))

# %% [markdown]
# ## The adding task
#
# Pairs of a value and a mark. Two values are marked, one in each half; what is wanted at
# the end is their mean. Hochreiter and Schmidhuber 1997, section 5.4.


# %% tags=["adding"]
def adding_batch(B: int, T: int) -> tuple[Tensor, Tensor]:
    """Values in -1 to 1 and two marks (B, T, 2), and the mean of those marked (B,)."""
    values = 2 * torch.rand(B, T) - 1
    marks = torch.zeros(B, T)
    rows = torch.arange(B)
    marks[rows, torch.randint(T // 2, (B,))] = 1
    marks[rows, torch.randint(T // 2, T, (B,))] = 1
    x = torch.stack((values, marks), dim=-1).to(device)
    y = (values * marks).sum(1) / 2
    return x, y.to(device)


# %% tags=["adding-shape"]
x, y = adding_batch(64, 50)
x.shape, y.shape

# %% [markdown]
# ## Gates set by hand
#
# One unit does the task: it writes where there is a mark, forgets nothing, always reads.

# %% tags=["adder"]
adder = LSTMCell(2, 1)
write_at_mark = ([0.0, 20.0], -10.0)
keep = ([0.0, 0.0], 10.0)
value = ([0.1, 0.0], 0.0)
read = ([0.0, 0.0], 10.0)
set_blocks(adder, (write_at_mark, keep, value, read))

# %% tags=["damaged"]
write_always = LSTMCell(2, 1)
set_blocks(write_always, (keep, keep, value, read))
half_kept = LSTMCell(2, 1)
set_blocks(half_kept, (write_at_mark, ([0.0, 0.0], 0.0), value, read))
read_half = LSTMCell(2, 1)
set_blocks(read_half, (write_at_mark, keep, value, ([0.0, 0.0], 0.0)))


# %% tags=["adder-error"]
@torch.no_grad()
def adder_error(cell: GatedCell, T: int) -> float:
    """Mean squared error of h / 0.2, on 500 sequences."""
    seed(0)
    x, y = adding_batch(500, T)
    h, _ = Unrolled(cell).to(device)(x)
    return (h[:, -1, 0] / 0.2 - y).square().mean().item()


# %% tags=["adder-result"]
variants = {
    "as set": adder,
    "input gate always open": write_always,
    "forget gate at a half": half_kept,
    "output gate at a half": read_half,
}
rows = []
by_hand = {}
for name, cell in variants.items():
    errors = [adder_error(cell, T) for T in (20, 100, 500)]
    by_hand[name] = errors
    rows.append((name, *(f"{error:.4f}" for error in errors)))
record("adder.500", by_hand["as set"][-1])
table(rows, ("gates", "20 steps", "100 steps", "500 steps"))

# %% tags=["adder-claims"]
NOTHING = 1 / 6  # the error of the answer 0: the variance of the mean of two values
claim(max(by_hand["as set"]) < 0.001, "by hand one unit adds over 500 steps")
claim(min(by_hand["input gate always open"]) > NOTHING, "writing always is useless")
words = "a gate at a half forgets nearly all over 100 steps"
claim(abs(by_hand["forget gate at a half"][1] / NOTHING - 1) < 0.2, words)
words = "half of the output is half of the answer, a quarter of the error of no answer"
claim(abs(by_hand["output gate at a half"][0] / NOTHING - 0.25) < 0.05, words)

# %% [markdown]
# ## The GRU
#
# One state, two gates and a candidate, in the order of torch.


# %% tags=["gru-cell"]
class GRUCell(GatedCell):
    """One step of a gated recurrent unit: reset gate, update gate, candidate.

    Cho et al. 2014, equations 5 to 8, but the reset gate multiplies behind the matrix,
    as in torch and cuDNN; the paper resets h in front of it.
    """

    def __init__(self, d_in: int, d_hidden: int):
        super().__init__(d_in, d_hidden, blocks=3)

    def start(self, x: Tensor) -> tuple[Tensor]:
        # (B, T, d_in) -> h, (B, d_hidden) of zeros
        return (x.new_zeros(len(x), self.d_hidden),)

    def forward(self, x: Tensor, state: tuple[Tensor]):
        # x (B, d_in), h (B, d_hidden) -> the next h
        (h,) = state
        x_r, x_z, x_n = self.from_input(x).chunk(3, dim=1)
        h_r, h_z, h_n = self.from_state(h).chunk(3, dim=1)
        r = torch.sigmoid(x_r + h_r)
        z = torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        return (z * h + (1 - z) * n,)


# %% tags=["gru-shape"]
outputs, (h,) = Unrolled(GRUCell(2, 32))(torch.randn(5, 7, 2))
outputs.shape, h.shape


# %% tags=["gru-drawing"]
def draw_gru(axes) -> None:
    """The state from left to right; the update gate divides, the reset gate hides."""
    nodes = {
        "h": diagrams.Node(0.3, 0.4, "$h_{t-1}$"),
        "keep": diagrams.Node(1.4, 0.4, "×"),
        "add": diagrams.Node(2.9, 0.4, "+"),
        "new": diagrams.Node(4.65, 0.4, "$h_t$"),
        "write": diagrams.Node(2.9, 1.05, "×"),
        "rest": diagrams.Node(2.05, 1.05, "$1 - z$"),
        "z": diagrams.Node(1.4, 2.0, "update $z$", width=1.0),
        "n": diagrams.Node(2.9, 2.0, "new $n$", width=0.9),
        "r": diagrams.Node(4.3, 2.0, "reset $r$", width=0.95),
        "x": diagrams.Node(2.85, 2.65, "$x_t$ and $h_{t-1}$"),
    }
    arrows = [("z", "keep"), ("n", "write"), ("write", "add"), ("rest", "write")]
    arrows += [((1.4, 1.05), "rest"), ("r", "n")]
    for box in ("z", "n", "r"):
        arrows.append(((nodes[box].x, 2.4), box))
    axes.plot((1.4, 4.3), (2.4, 2.4), color=plots.QUIET, linewidth=1)
    state = [("h", "keep"), ("keep", "add"), ("add", "new")]
    diagrams.draw(axes, nodes, arrows, state)


# %% tags=["gru-figure"] alt="The state runs along the top from left to right, from h of the last step through a times sign and a plus sign to h of this step. Three boxes stand in a row below, fed by the input and the last state: update leads to the times sign, and as one minus z to a second times sign, where it meets new; that leads to the plus sign. Reset leads to new."
axes = diagrams.sheet(2.85)
draw_gru(axes)

# %% [markdown]
# ## Peepholes
#
# With the output gate closed h is zero, and the gates cannot see what the memory holds.
# Peepholes are weights from the memory to the gates, one a unit and gate.


# %% tags=["peephole-cell"]
class PeepholeCell(LSTMCell):
    """An LSTM whose gates see the memory: i and f the last one, o the new one.

    Gers and Schmidhuber 2000; as written in Graves 2013, equations 7 to 11.
    """

    def __init__(self, d_in: int, d_hidden: int):
        super().__init__(d_in, d_hidden)
        self.peep_i = nn.Parameter(torch.zeros(d_hidden))
        self.peep_f = nn.Parameter(torch.zeros(d_hidden))
        self.peep_o = nn.Parameter(torch.zeros(d_hidden))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]):
        # x (B, d_in), h and c (B, d_hidden) -> the next h and c
        h, c = state
        blocks = self.from_input(x) + self.from_state(h)  # (B, 4 d_hidden)
        i, f, g, o = blocks.chunk(4, dim=1)
        write = torch.sigmoid(i + self.peep_i * c)
        keep = torch.sigmoid(f + self.peep_f * c)
        c = keep * c + write * torch.tanh(g)
        h = torch.sigmoid(o + self.peep_o * c) * torch.tanh(c)
        return h, c


# %% tags=["peephole-run"]
seed(0)
plain = LSTMCell(1, 1)
peeping = PeepholeCell(1, 1)
peeping.load_state_dict(plain.state_dict(), strict=False)
nn.init.constant_(peeping.peep_f, 1.0)
x = torch.zeros(1, 1)
h = torch.zeros(1, 1)  # what a closed output gate has left
kept = {}
for name, cell in (("LSTM", plain), ("with peepholes", peeping)):
    for memory in (0.5, 3.0):
        _, after = cell(x, (h, torch.full((1, 1), memory)))
        _, empty = cell(x, (h, torch.zeros(1, 1)))
        kept[name, memory] = ((after - empty) / memory).item()

# %% tags=["peephole-result"]
words = "behind a closed output gate an LSTM keeps the same share of any memory"
claim(abs(kept["LSTM", 0.5] - kept["LSTM", 3.0]) < 1e-6, words)
words = "with a peephole the share depends on what the memory holds"
claim(abs(kept["with peepholes", 0.5] - kept["with peepholes", 3.0]) > 0.05, words)
rows = []
for name in ("LSTM", "with peepholes"):
    rows.append((name, *(f"{kept[name, memory]:.3f}" for memory in (0.5, 3.0))))
table(rows, ("cell", "kept of c = 0.5", "kept of c = 3"))

# %% [markdown]
# ## Equal to torch
#
# Outputs, last state and all gradients, from a state that is not zero.


# %% tags=["gradients"]
def with_gradients(network: nn.Module, x: Tensor, state) -> list[Tensor]:
    """Outputs, last state, gradients of x, of the first state and of all weights."""
    inputs = [x.clone().requires_grad_(), *(s.clone().requires_grad_() for s in state)]
    outputs, last = network(inputs[0], tuple(inputs[1:]))
    found = [outputs, *last]
    total = sum(part.square().sum() for part in found)
    return found + [*torch.autograd.grad(total, [*inputs, *network.parameters()])]


# %% tags=["torch-layers"]
class TorchGRU(nn.GRU):
    """torch's GRU with its state in a tuple, as the others have it."""

    def forward(self, x: Tensor, state=(None,)):
        h, last = super().forward(x, state[0])
        return h, (last,)


# %% tags=["equal"]
PAIRS = (("LSTM", LSTMCell, nn.LSTM, 2), ("GRU", GRUCell, TorchGRU, 1))
rows = []
worst = []
for name, cell, layer, states in PAIRS:
    seed(0)
    theirs = layer(5, 6, batch_first=True)
    ours = Unrolled(cell(5, 6))
    checks.transplant(theirs, ours)
    x = torch.randn(3, 20, 5)
    state = [torch.randn(3, 6) for _ in range(states)]
    layered = [s[None] for s in state]  # torch has an axis for its layers
    found = with_gradients(ours, x, state)
    expected = with_gradients(theirs, x, layered)
    off = []
    for a, b in zip(found, expected):
        off.append(checks.deviation(a, b.view(a.shape)))
    worst += off
    count = 1 + states
    rows.append(
        (name, f"{max(off[:count]):.1e}", f"{max(off[count:]):.1e}", len(off) - count)
    )
record("deviation", max(worst))
claim(max(worst) < 1e-5, "outputs, states and gradients are those of torch")
table(rows, ("layer", "outputs and states", "gradients", "tensors with a gradient"))

# %% [markdown]
# ## Counted
#
# Each block of a cell has n rows, over m inputs, n states and one bias. torch has two
# biases, one with each matrix, because cuDNN has.

# %% tags=["count"]
SIZES = ((128, 256), (512, 512))
CELLS = (("GRU", GRUCell, nn.GRU, 3), ("LSTM", LSTMCell, nn.LSTM, 4))
rows = []
for name, cell, layer, blocks in CELLS:
    for m, n in SIZES:
        with torch.device("meta"):
            x = torch.empty(1, 1, m)  # one step
            ours = Unrolled(cell(m, n))
            theirs = layer(m, n, batch_first=True)
        paper = blocks * (n * m + n * n + n)
        parameters = counting.parameters(ours)
        macs = counting.macs(ours, x)
        record(f"{name}.{n}.paper", paper)
        record(f"{name}.{n}.parameters", parameters)
        record(f"{name}.{n}.macs", macs)
        two = parameters == paper + blocks * n
        claim(two, "a second bias is all that torch has more than the paper")
        same = parameters == counting.parameters(theirs)
        claim(same and macs == counting.macs(theirs, x), "counts are those of torch")
        claim(macs == blocks * (n * m + n * n), "two products a block, once a step")
        rows.append((name, m, n, paper, parameters, macs))
columns = ("cell", "inputs m", "units n", "one bias", "two biases", "MACs a step")
table(rows, columns)

# %% tags=["two-biases"]
seed(0)
ours = Unrolled(LSTMCell(5, 6))
x = torch.randn(3, 20, 5)
outputs, _ = ours(x)
outputs.square().sum().backward()
same_gradient = checks.deviation(ours.cell.bias_x.grad, ours.cell.bias_h.grad)
summed = Unrolled(LSTMCell(5, 6))
summed.load_state_dict(ours.state_dict())
with torch.no_grad():
    summed.cell.bias_x += summed.cell.bias_h
    summed.cell.bias_h.zero_()
same_output = checks.deviation(summed(x)[0], outputs)
gru = Unrolled(GRUCell(5, 6))
gru(x)[0].square().sum().backward()
unlike = (gru.cell.bias_x.grad - gru.cell.bias_h.grad).chunk(3)

# %% tags=["two-biases-claims"]
claim(same_gradient < 1e-6, "the two biases of an LSTM have the same gradient")
claim(same_output < 1e-5, "their sum in one of them gives the same outputs")
words = "in the GRU those of the gates are alike, those of the candidate are not"
claim(unlike[0].abs().max() < 1e-4 and unlike[1].abs().max() < 1e-4, words)
claim(unlike[2].abs().max() > 0.01, words)

# %% [markdown]
# ## How far a gradient reaches
#
# At the initial weights: the output after 100 steps, and its gradient with respect to the
# input at each lag before it, divided by that at lag 0. Nothing is trained.


# %% tags=["set-gate"]
def set_gate(layer: nn.Module, bias: float) -> nn.Module:
    """Set the bias of the second block: an LSTM's forget gate, a GRU's update gate."""
    n = layer.hidden_size
    with torch.no_grad():
        layer.bias_ih_l0[n : 2 * n] = bias
        layer.bias_hh_l0[n : 2 * n] = 0
    return layer


# %% tags=["reach"]
def reach(layer: nn.Module, T: int = 100) -> Tensor:
    """Gradient norm of the last output by the lag of the input (T,), lag 0 first."""
    x = torch.randn(16, T, layer.input_size, device=device, requires_grad=True)
    outputs, _ = layer(x)
    last = outputs[:, -1]
    (gradient,) = torch.autograd.grad((last * torch.randn_like(last)).sum(), x)
    norms = gradient.norm(dim=-1).mean(0).flip(0)
    return norms / norms[0]


# %% tags=["reach-run"]
SEEDS = (0, 1, 2)
LAYERS = {
    "RNN": lambda: nn.RNN(8, 64, batch_first=True),
    "GRU": lambda: nn.GRU(8, 64, batch_first=True),
    "LSTM, 0": lambda: set_gate(nn.LSTM(8, 64, batch_first=True), 0),
    "LSTM, 1": lambda: set_gate(nn.LSTM(8, 64, batch_first=True), 1),
    "LSTM, 3": lambda: set_gate(nn.LSTM(8, 64, batch_first=True), 3),
}
reached = {}
for name, build in LAYERS.items():
    for number in SEEDS:
        seed(number)
        reached[name, number] = reach(build().to(device)).cpu()

# %% tags=["reach-figure"] alt="Gradient norm relative to lag 0 on a logarithmic axis against lags 0 to 50, five lines in narrow bands of three seeds. RNN falls fastest, below one in ten million at lag 30. GRU and LSTM with forget bias 0 fall side by side, to about one in a million at lag 30. LSTM with bias 1 falls to some thousandths there, LSTM with bias 3 stays above a tenth."
_, axes = plt.subplots(figsize=(5, 3.4))
ends = {}
for name, colour in zip(LAYERS, plots.COLOURS):
    runs = torch.stack([reached[name, number][:51] for number in SEEDS])
    ends[name] = plots.seed_band(axes, range(51), runs, colour)
axes.set(xlabel="lag (steps)", ylabel="gradient / that at lag 0", yscale="log")
axes.set(ylim=(1e-12, 3), xticks=range(0, 51, 10))
plots.label_ends(axes, ends)
axes.set_axisbelow(True)

# %% tags=["reach-result"]
at_thirty = {}
by_step = {}
rows = []
gates = {"RNN": None, "GRU": 0.0, "LSTM, 0": 0.0, "LSTM, 1": 1.0, "LSTM, 3": 3.0}
for name, bias in gates.items():
    at_thirty[name] = [reached[name, number][30].item() for number in SEEDS]
    by_step[name] = []
    for number in SEEDS:
        between = reached[name, number][30] / reached[name, number][10]
        by_step[name].append(between.item() ** (1 / 20))
    key = name.replace(", ", "")
    record_spread(f"reach.{key}", at_thirty[name])
    record_spread(f"step.{key}", by_step[name])
    gate = "–" if bias is None else f"{1 / (1 + math.exp(-bias)):.3f}"
    rows.append(
        (name, spread(at_thirty[name], ".1e"), gate, spread(by_step[name], ".3f"))
    )
columns = ("layer", "gradient at lag 30", "gate alone, a step", "measured, a step")
table(rows, columns)

# %% tags=["reach-claims"]
order = ("RNN", "GRU", "LSTM, 1", "LSTM, 3")
for shorter, farther in zip(order, order[1:]):
    words = (
        f"at lag 30 {farther} keeps more of the gradient than {shorter}, seeds apart"
    )
    claim(max(at_thirty[shorter]) < min(at_thirty[farther]), words)
for name in ("RNN", "GRU", "LSTM, 0"):
    claim(max(at_thirty[name]) < 1e-5, f"{name}: less than 1e-5 at lag 30")
words = "LSTM with bias 0 is like the GRU: between a tenth and ten times"
for a, b in zip(at_thirty["GRU"], at_thirty["LSTM, 0"]):
    claim(0.1 < a / b < 10, words)
claim(min(at_thirty["LSTM, 1"]) > 1e-3, "forget bias 1: some thousandths are left")
claim(min(at_thirty["LSTM, 3"]) > 0.1, "forget bias 3: more than a tenth is left")
for name, bias in gates.items():
    if bias is not None:
        words = f"{name}: a step keeps more than the gate alone"
        claim(min(by_step[name]) > 1 / (1 + math.exp(-bias)), words)

# %% [markdown]
# ## Trained on the adding task
#
# 32 units, Adam, 64 fresh sequences a step, until the error on 200 fixed ones is below
# 0.01. The layers are torch's, which are faster than ours and compute the same.


# %% tags=["reader"]
class LastStep(nn.Module):
    """A recurrent layer, and one number from its last output: (B, T, 2) -> (B,)."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.layer(x)  # (B, T, n)
        return self.head(outputs[:, -1])[:, 0]


def plain_rnn() -> LastStep:
    return LastStep(nn.RNN(2, 32, batch_first=True))


def orthogonal_rnn() -> LastStep:
    network = plain_rnn()
    nn.init.orthogonal_(network.layer.weight_hh_l0)
    return network


def lstm() -> LastStep:
    return LastStep(set_gate(nn.LSTM(2, 32, batch_first=True), 1))


# %% tags=["learn"]
GOAL = 0.01


@torch.no_grad()
def error_on(network: LastStep, x: Tensor, y: Tensor) -> float:
    return (network(x) - y).square().mean().item()


def learn(network: LastStep, T: int, steps: int, *, rate: float = 0.01) -> list[float]:
    """Train until the error is below GOAL, `steps` at most; the error each 20 steps."""
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    fixed = adding_batch(200, T)
    errors = [error_on(network, *fixed)]
    for step in training.progress(range(1, steps + 1), "steps"):
        x, y = adding_batch(64, T)
        loss = (network(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            errors.append(error_on(network, *fixed))
            if errors[-1] < GOAL:
                break
    return errors


# %% tags=["headline"]
runs = {}
networks = {}
for T in (5, 20, 50):
    for number in SEEDS:
        seed(number)
        networks[T, number] = lstm().to(device)
        runs["LSTM", T, number] = learn(networks[T, number], T, 600)


def steps_of(kind: str, T: int) -> list[int]:
    """How many steps each seed took."""
    return [20 * (len(runs[kind, T, number]) - 1) for number in SEEDS]


# %% tags=["headline-rnn"]
TIMES = {5: 4, 20: 2, 50: 1}  # as many times the steps of the slowest LSTM
for T, times in TIMES.items():
    most = times * max(steps_of("LSTM", T))
    for number in SEEDS:
        seed(number)
        runs["RNN", T, number] = learn(orthogonal_rnn().to(device), T, most)

# %% tags=["reach-orthogonal"]
orthogonal = []
for number in SEEDS:
    seed(number)
    layer = nn.RNN(8, 64, batch_first=True)
    nn.init.orthogonal_(layer.weight_hh_l0)
    orthogonal.append(reach(layer.to(device))[30].item())
record_spread("reach.orthogonal", orthogonal)
words = "orthogonal weights reach farther at the start than an LSTM of bias 1"
claim(min(orthogonal) > 1.3 * max(at_thirty["LSTM, 1"]), words)

# %% tags=["headline-figure"] alt="Error against training steps on a logarithmic error axis, sequences of 50 pairs, three thin lines each. The lines of the LSTM stay near the error of answering 0 for some 100 steps, then fall to the dotted line of 0.01 within about 200 steps and end there. Those of the plain RNN go on to the last of these steps and never leave the neighbourhood of the error of answering 0."
_, axes = plt.subplots()
ends = {}
for kind, colour in (("LSTM", plots.COLOURS[0]), ("RNN", plots.COLOURS[1])):
    for number in SEEDS:
        errors = runs[kind, 50, number]
        steps = range(0, 20 * len(errors), 20)
        axes.plot(steps, errors, color=colour, linewidth=1.5, alpha=0.8)
        ends[kind] = (steps[-1], errors[-1])
axes.axhline(GOAL, color=plots.QUIET, linestyle=":")
axes.set(xlabel="training step", ylabel="error at 50 pairs", yscale="log")
plots.label_ends(axes, ends)
axes.set_axisbelow(True)

# %% tags=["headline-result"]
rows = []
for kind, T in (
    ("RNN", 5),
    ("RNN", 20),
    ("RNN", 50),
    ("LSTM", 5),
    ("LSTM", 20),
    ("LSTM", 50),
):
    last = [runs[kind, T, number][-1] for number in SEEDS]
    record_spread(f"{kind}{T}.error", last)
    record_spread(f"{kind}{T}.steps", steps_of(kind, T))
    learnt = sum(error < GOAL for error in last)
    rows.append(
        (
            kind,
            T,
            f"{learnt} of 3",
            spread(steps_of(kind, T), ".0f"),
            spread(last, ".3f"),
        )
    )
table(rows, ("layer", "pairs", "learnt", "steps", "error at the end"))

# %% tags=["headline-claims"]
for T in (5, 20, 50):
    for number in SEEDS:
        claim(runs["LSTM", T, number][-1] < GOAL, f"the LSTM learns at {T} pairs")
for number in SEEDS:
    claim(runs["RNN", 5, number][-1] < GOAL, "the plain RNN learns at 5 pairs")
for number in SEEDS:
    words = "at 20 pairs no RNN halves the error of answering 0"
    claim(min(runs["RNN", 20, number]) > 0.5 * NOTHING, words)
    words = "at 50 pairs no RNN leaves the error of answering 0"
    claim(min(runs["RNN", 50, number]) > 0.7 * NOTHING, words)
words = "at 5 pairs each RNN takes longer than each LSTM"
claim(min(steps_of("RNN", 5)) > max(steps_of("LSTM", 5)), words)
for short, long in ((5, 20), (20, 50)):
    words = f"the LSTM takes more steps at {long} pairs than at {short}, seeds apart"
    claim(min(steps_of("LSTM", long)) > max(steps_of("LSTM", short)), words)

# %% [markdown]
# ## What the gates of a trained network do
#
# The weights of a trained layer go into our own cell. It runs step by step, we keep its
# gates, and can hold one of them at its mean.


# %% tags=["walk"]
@torch.no_grad()
def walk(cell: LSTMCell, x: Tensor, held: dict | None = None) -> dict[str, Tensor]:
    """The gates, c and h of each step (B, T, n); gates in `held` keep those values."""
    h, c = cell.start(x)
    steps = {name: [] for name in ("i", "f", "g", "o", "c", "h")}
    for x_t in x.unbind(1):
        i, f, g, o = (cell.from_input(x_t) + cell.from_state(h)).chunk(4, dim=1)
        gates = {"i": i.sigmoid(), "f": f.sigmoid(), "g": g.tanh(), "o": o.sigmoid()}
        gates |= held or {}
        c = gates["f"] * c + gates["i"] * gates["g"]
        h = gates["o"] * torch.tanh(c)
        for name, value in (gates | {"c": c, "h": h}).items():
            steps[name].append(value.expand_as(h))
    return {name: torch.stack(values, dim=1) for name, values in steps.items()}


# %% tags=["held"]
GATES = {"i": "input gate", "f": "forget gate", "g": "candidate", "o": "output gate"}
seed(0)
x, y = adding_batch(500, 50)
walked = {}
errors = {name: [] for name in ("none", *GATES)}
for number in SEEDS:
    network = networks[50, number]
    cell = LSTMCell(2, 32).to(device)
    checks.transplant(network.layer, cell)
    walked[number] = walk(cell, x)
    held = {"none": {}}
    for gate in GATES:
        held[gate] = {gate: walked[number][gate].mean((0, 1))}  # a number a unit
    for name, values in held.items():
        answer = network.head(walk(cell, x, values)["h"][:, -1])[:, 0]
        errors[name].append((answer - y).square().mean().item())

# %% tags=["held-result"]
rows = []
for name, values in errors.items():
    record_spread(f"held.{name}", values)
    rows.append((GATES.get(name, "none"), spread(values, ".3f")))
table(rows, ("held at its mean", "error at 50 pairs"))

# %% tags=["at-marks"]
marked = x[..., 1].bool()  # (B, T)
at_marks = {"written": [], "forget": []}
elsewhere = {"written": [], "forget": []}
for number in SEEDS:
    written = (walked[number]["i"] * walked[number]["g"]).abs().mean(-1)
    forget = walked[number]["f"].mean(-1)
    for name, value in (("written", written), ("forget", forget)):
        at_marks[name].append(value[marked].mean().item())
        elsewhere[name].append(value[~marked].mean().item())
for name in at_marks:
    record_spread(f"{name}.marked", at_marks[name])
    record_spread(f"{name}.elsewhere", elsewhere[name])

# %% tags=["gates-figure"] alt="Two rows against 50 steps of one sequence, mean of 32 units of one trained network; two dotted lines at the marked steps. Above, the size of what is written: two peaks stand at the dotted lines, the rest is lower. Below, the forget gate: it runs between 0.6 and 0.8 and drops at the two dotted lines."
_, panels = plt.subplots(2, 1, figsize=(5, 3.6), sharex=True)
written = (walked[0]["i"] * walked[0]["g"]).abs().mean(-1)[0].cpu()
forget = walked[0]["f"].mean(-1)[0].cpu()
panels[0].plot(range(50), written)
panels[0].set(ylabel="written", ylim=(0, None))
panels[1].plot(range(50), forget, color=plots.COLOURS[2])
panels[1].set(xlabel="step", ylabel="forget gate", ylim=(0, 1))
for axes in panels:
    for step in marked[0].nonzero().flatten().tolist():
        axes.axvline(step, color=plots.QUIET, linestyle=":")
axes.set_axisbelow(True)

# %% tags=["gates-claims"]
shares = []
for number in SEEDS:
    kept = walked[number]["f"][:, 25:].prod(1)  # of the memory half way, at the end
    shares.append(kept.mean(0).max().item())  # the unit that keeps most
record_spread("share", shares)
claim(max(shares) < 0.2, "by its forget gate no unit keeps a fifth over the last half")
words = "a trained network writes more at marks than elsewhere, seeds apart"
claim(min(at_marks["written"]) > 1.5 * max(elsewhere["written"]), words)
words = "its forget gate is lower at marks than elsewhere, seeds apart"
claim(max(at_marks["forget"]) < min(elsewhere["forget"]), words)
claim(max(elsewhere["forget"]) < 0.8, "its mean forget gate is far from 1")
claim(max(errors["none"]) < 0.015, "our cell with the trained weights still adds")
for gate in ("f", "o"):
    words = (
        f"the {GATES[gate]} held costs less than input gate or candidate, seeds apart"
    )
    claim(max(errors[gate]) < min(errors["i"] + errors["g"]), words)
claim(min(errors["g"]) > 0.8 * NOTHING, "a constant candidate leaves nothing to add")
claim(min(errors["i"]) > 0.5 * NOTHING, "the input gate held costs over half of all")
first = marked[0].nonzero().flatten().tolist()
quiet = written[~marked[0].cpu()]
claim(written[first].min() > quiet.mean(), "what is written peaks at the marks")

# %% [markdown]
# ## A model of text
#
# Characters in, for each step the next character out. The same characters are counted for
# the baseline, in runs of one to five.


# %% tags=["text"]
def every(part: str, step: int) -> str:
    """Each step-th paragraph."""
    return "\n".join(part.split("\n")[::step])


bible = text.english()
train_text = every(bible.train, 30)
unseen_text = every(bible.validation, 7)  # trials for this page used bible.test
vocabulary = text.Vocabulary([train_text])
train_numbers = torch.tensor(vocabulary.encode(train_text)).to(device)
unseen_numbers = torch.tensor(vocabulary.encode(unseen_text)).to(device)
record("characters", len(train_text))
record("held.out", len(unseen_text))
record("alphabet", len(vocabulary.characters))


# %% tags=["character-model"]
class CharacterModel(nn.Module):
    """A vector for each character, an LSTM, scores for the next character."""

    def __init__(self, V: int, *, d_embed: int = 32, d_hidden: int = 128):
        super().__init__()
        self.embed = nn.Embedding(V, d_embed)
        self.memory = set_gate(nn.LSTM(d_embed, d_hidden, batch_first=True), 1)
        self.head = nn.Linear(d_hidden, V)

    def forward(self, numbers: Tensor, state=None):
        # (B, T) -> scores (B, T, V), state
        h, state = self.memory(self.embed(numbers), state)
        return self.head(h), state


# %% tags=["character-training"]
def train_characters(model: CharacterModel, numbers: Tensor, steps: int) -> None:
    """Adam on 8 pieces of 64 characters a step; the rate rises once and falls."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = training.one_cycle(optimizer, steps)
    piece = torch.arange(65, device=numbers.device)
    for _ in training.progress(range(steps), "steps"):
        starts = torch.randint(len(numbers) - 64, (8, 1)).to(numbers.device)
        window = numbers[starts + piece]  # (B, T + 1)
        scores, _ = model(window[:, :-1])
        loss = F.cross_entropy(scores.flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


# %% tags=["character-run"]
seed(0)
model = CharacterModel(len(vocabulary)).to(device)
train_characters(model, train_numbers, 1000)
record("passes", 1000 * 8 * 64 / len(train_numbers))


# %% tags=["bits"]
@torch.no_grad()
def bits(model: CharacterModel, numbers: Tensor) -> float:
    """Bits per character, from the second on, the state carried from first to last."""
    scores, _ = model(numbers[None, :-1])
    return F.cross_entropy(scores[0], numbers[1:]).item() / math.log(2)


# %% tags=["ngram"]
class NGram:
    """How often what followed the last characters, mixed over lengths.

    Each length is trusted as far as its context has been seen more often than it was
    followed by something new (Witten and Bell 1991), the rest goes to a shorter one.
    """

    def __init__(self, text: str, order: int):
        self.order = order
        self.times = Counter()
        for length in range(1, order + 1):
            for start in range(len(text) - length + 1):
                self.times[text[start : start + length]] += 1
        self.seen = Counter()
        self.kinds = Counter()
        for piece, times in self.times.items():
            self.seen[piece[:-1]] += times
            self.kinds[piece[:-1]] += 1

    def probability(self, context: str, character: str) -> float:
        p = 1 / self.kinds[""]
        for length in range(min(self.order, len(context) + 1)):
            last = context[len(context) - length :]
            seen = self.seen[last]
            kinds = self.kinds[last]
            if seen:
                p = (self.times[last + character] + kinds * p) / (seen + kinds)
        return p

    def bits(self, text: str) -> float:
        """Bits per character, from the second on."""
        total = 0.0
        for place in range(1, len(text)):
            context = text[max(0, place - self.order + 1) : place]
            total -= math.log2(self.probability(context, text[place]))
        return total / (len(text) - 1)


# %% tags=["ngrams-run"]
counted = {}
for order in (1, 2, 3, 4, 5):
    counted[order] = NGram(train_text, order)

# %% tags=["bits-result"]
held_out = {}
rows = []
for order, ngram in counted.items():
    held_out[order] = ngram.bits(unseen_text)
    rows.append((f"{order}-gram", len(ngram.times), f"{held_out[order]:.3f}"))
held_out["LSTM"] = bits(model, unseen_numbers)
rows.append(("LSTM", counting.parameters(model), f"{held_out['LSTM']:.3f}"))
for name, value in held_out.items():
    record(f"bits.{name}", value)
table(rows, ("model", "numbers it keeps", "bits per character"))


# %% tags=["context"]
@torch.no_grad()
def bits_with(
    model: CharacterModel, numbers: Tensor, context: int, places: Tensor
) -> float:
    """Bits per character at some places, given only so many characters before each."""
    window = torch.arange(-context, 0, device=numbers.device)
    scores, _ = model(numbers[places[:, None] + window])
    return F.cross_entropy(scores[:, -1], numbers[places]).item() / math.log(2)


# %% tags=["context-run"]
CONTEXTS = (1, 2, 3, 4, 6, 8, 16, 32, 64)
spots = range(64, len(unseen_text), 10)
places = torch.tensor(spots).to(device)
by_context = []
for context in CONTEXTS:
    by_context.append(bits_with(model, unseen_numbers, context, places))
by_order = []
for order, ngram in counted.items():
    total = 0.0
    for place in spots:
        context = unseen_text[place - order + 1 : place]
        total -= math.log2(ngram.probability(context, unseen_text[place]))
    by_order.append(total / len(spots))

# %% tags=["context-figure"] alt="Bits per character against the number of characters that a model may read, 1 to 64 on a logarithmic axis. Both lines fall. That of the counts ends at 4 characters; up to there it lies below the line of the LSTM, which falls on until about 8 characters and is level from there to 64, above the end of the other line."
_, axes = plt.subplots()
axes.plot(CONTEXTS, by_context, "o-")
axes.plot(range(1, 5), by_order[1:], "o-")
axes.set(xlabel="characters before it", ylabel="bits per character", xscale="log")
axes.set_xticks(CONTEXTS, [str(c) for c in CONTEXTS])
axes.minorticks_off()
ends = {"LSTM": (CONTEXTS[-1], by_context[-1]), "counts": (4, by_order[4])}
plots.label_ends(axes, ends)
axes.set_axisbelow(True)

# %% tags=["text-claims"]
for order in (1, 2, 3):
    claim(held_out["LSTM"] < held_out[order], f"the LSTM is below the {order}-gram")
for order in (4, 5):
    claim(held_out["LSTM"] > held_out[order], f"the {order}-gram is below the LSTM")
for context, order in zip((1, 2, 3, 4), (2, 3, 4, 5)):
    words = f"of {context} characters the counts make more than the LSTM"
    claim(by_order[order - 1] < by_context[context - 1], words)
claim(by_context[3] - by_context[5] > 0.05, "the LSTM uses more than four characters")
words = "beyond eight characters nothing is gained"
claim(abs(by_context[5] - by_context[-1]) < 0.01, words)
for place, context in enumerate(CONTEXTS):
    record(f"context.{context}", by_context[place])
for order in (2, 3, 4, 5):
    record(f"counts.{order - 1}", by_order[order - 1])


# %% tags=["sampling"]
@torch.no_grad()
def write(model: CharacterModel, vocabulary, start: str, *, temperature: float) -> str:
    """Go on from a start for 160 characters, drawn by the scores / temperature."""
    where = next(model.parameters()).device
    numbers = torch.tensor([vocabulary.encode(start)]).to(where)
    found = start
    state = None
    for _ in range(160):
        scores, state = model(numbers, state)
        chances = (scores[0, -1] / temperature).softmax(0).cpu()
        numbers = torch.multinomial(chances, 1)[None].to(where)
        found += vocabulary.decode(numbers[0])
    return found


def write_counted(ngram: NGram, characters: list[str], start: str) -> str:
    """The same from counts."""
    found = start
    for _ in range(160):
        context = found[len(found) - ngram.order + 1 :]
        chances = torch.tensor([ngram.probability(context, c) for c in characters])
        found += characters[torch.multinomial(chances, 1).item()]
    return found


# %% tags=["samples"]
seed(0)
START = "And the LORD said unto "
samples = {
    "LSTM": write(model, vocabulary, START, temperature=1.0),
    "LSTM, temperature 0.5": write(model, vocabulary, START, temperature=0.5),
    "5-gram": write_counted(counted[5], vocabulary.characters, START),
}
rows = [(name, sample.replace("\n", " ¶ ")) for name, sample in samples.items()]
table(rows, ("written by", "sample"))

# %% [markdown]
# ## What we saw
#
# - A gate is a number from 0 to 1 that multiplies: by hand one unit with four gates set
#   adds over hundreds of steps. A trained network spreads the sum over its units.
# - At the start the bias of the forget gate decides how far a gradient reaches. The GRU
#   and an LSTM with a bias of 0 reach about as far as a plain RNN.
# - The LSTM learns to add over 50 steps, the plain RNN not over 20 in twice the
#   steps. On text a small LSTM, briefly trained, is behind a count of five characters.

# %% [markdown]
# ## Solutions


# %% tags=["solution-1"]
def growth(T: int, held: dict) -> float:
    """Mean size of the memory after T steps of one constant input, fresh weights."""
    seed(0)
    cell = LSTMCell(4, 16)
    x = torch.ones(1, T, 4)
    return walk(cell, x, held)["c"][:, -1].abs().mean().item()


always = {"f": torch.ones(16)}  # no forget gate, as in 1997
grown = {T: (growth(T, {}), growth(T, always)) for T in (10, 100, 1000)}

# %% tags=["solution-1-result"]
claim(grown[1000][1] > 50 * grown[1000][0], "without a forget gate the memory grows")
claim(abs(grown[1000][0] / grown[100][0] - 1) < 0.01, "with one it comes to rest")
rows = [(T, f"{a:.2f}", f"{b:.1f}") for T, (a, b) in grown.items()]
table(rows, ("steps", "with a forget gate", "without"))

# %% tags=["solution-2"]
gru_reach = {}
for bias in (0, 1, 3):
    gru_reach[bias] = []
    for number in SEEDS:
        seed(number)
        layer = set_gate(nn.GRU(8, 64, batch_first=True), bias).to(device)
        gru_reach[bias].append(reach(layer)[30].item())

# %% tags=["solution-2-result"]
rows = []
for bias, values in gru_reach.items():
    record_spread(f"gru.{bias}", values)
    alone = (1 / (1 + math.exp(-bias))) ** 30
    rows.append((bias, spread(values, ".1e"), f"{alone:.1e}"))
claim(min(gru_reach[3]) > 0.1, "with bias 3 a GRU keeps more than a tenth")
claim(min(gru_reach[1]) > 100 * max(gru_reach[0]), "bias 1: a hundred times bias 0")
table(rows, ("update bias", "gradient at lag 30", "gate alone"))


# %% tags=["solution-3"]
most = 2 * max(steps_of("LSTM", 20))
other = {}
for name, build, rate in (
    ("rate 0.003", orthogonal_rnn, 0.003),
    ("torch's own weights", plain_rnn, 0.01),
):
    seed(0)
    other[name] = learn(build().to(device), 20, most, rate=rate)

# %% tags=["solution-3-result"]
words = "neither another rate nor torch's weights bring the RNN to the goal"
claim(min(map(min, other.values())) > 2 * GOAL, words)
rows = [(name, f"{min(errors):.3f}") for name, errors in other.items()]
table(rows, ("plain RNN, 20 pairs", "smallest error"))

# %% tags=["solution-4"]
longer = {}
for T in (50, 100, 200):
    seed(0)
    x, y = adding_batch(500, T)
    longer[T] = [error_on(networks[50, number], x, y) for number in SEEDS]

# %% tags=["solution-4-result"]
rows = []
for T, values in longer.items():
    record_spread(f"longer.{T}", values)
    rows.append((T, spread(values, ".3f")))
table(rows, ("pairs", "error of those trained on 50"))
words = "trained on 50 pairs, the networks are worse at 200, seeds apart"
claim(min(longer[200]) > max(longer[50]), words)


# %% tags=["solution-5"]
class PaperGRUCell(GRUCell):
    """The reset gate multiplies h in front of the matrix (Cho et al. 2014, eq. 8)."""

    def forward(self, x: Tensor, state: tuple[Tensor]):
        # x (B, d_in), h (B, d_hidden) -> the next h
        (h,) = state
        x_r, x_z, x_n = self.from_input(x).chunk(3, dim=1)
        h_r, h_z, _ = self.from_state(h).chunk(3, dim=1)
        r = torch.sigmoid(x_r + h_r)
        z = torch.sigmoid(x_z + h_z)
        _, _, h_n = self.from_state(r * h).chunk(3, dim=1)
        return (z * h + (1 - z) * torch.tanh(x_n + h_n),)


# %% tags=["solution-5-result"]
seed(0)
usual = Unrolled(GRUCell(5, 6))
paper = Unrolled(PaperGRUCell(5, 6))
checks.transplant(usual, paper)
x = torch.randn(3, 20, 5)
apart = checks.deviation(paper(x)[0], usual(x)[0])
for network in (usual, paper):
    with torch.no_grad():
        network.cell.bias_x[:6] = 50  # the reset gate is open
opened = checks.deviation(paper(x)[0], usual(x)[0])
claim(apart > 0.01, "the same weights give other outputs")
claim(opened < 1e-5, "with the reset gate open both are the same")
table([(f"{apart:.1e}", f"{opened:.1e}")], ("largest difference", "reset gate open"))
