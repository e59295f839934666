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
# # Attention
#
# A decoder that looks at all states of its encoder: additive and multiplicative scores,
# self-attention by hand, scaling, several heads, masks; and what a trained network looks at.
# The text to it is the [chapter](../chapters/attention.rst), the papers are
# [Bahdanau et al. 2014](https://arxiv.org/abs/1409.0473) and
# [Luong et al. 2015](https://arxiv.org/abs/1508.04025).

# %%
import math
import random
import re
import string
from functools import partial
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from workbench import claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, plots, text, training
from workbench.text import BEGIN, END, PAD

# %% [markdown]
# ## A weighted mean
#
# Scores become weights by a softmax, and the weights make a mean of the values. What a
# query may not look at gets the weight 0.


# %% tags=["attend"]
def attend(scores: Tensor, values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Means of the values (..., S, D) by the softmax of the scores (..., T, S).

    allowed: True where a query may look. Returns (..., T, D) and the weights.
    """
    scores = scores.masked_fill(~allowed, -math.inf)
    weights = scores.softmax(-1)
    return weights @ values, weights


# %% tags=["mean-by-hand"]
states = torch.tensor([[4.0, 0.0], [0.0, 2.0], [8.0, 4.0], [9.0, 9.0]])
scores = torch.tensor([[1.0, 2.0, 1.0, 5.0]]).log()
allowed = torch.tensor([[True, True, True, False]])  # the last one is padding
context, weights = attend(scores, states, allowed)

# %% tags=["mean-result"]
quarter = torch.tensor([[0.25, 0.5, 0.25, 0.0]])
deviations = [checks.deviation(weights, quarter)]
deviations.append(checks.deviation(context, torch.tensor([[3.0, 2.0]])))
claim(max(deviations) < 1e-6, "the weights are 1/4, 1/2, 1/4 and 0, the mean is (3, 2)")
shown = ", ".join(f"{weight:.2f}" for weight in weights[0].tolist())
numbers = ", ".join(f"{value:.0f}" for value in context[0].tolist())
table([(shown, numbers)], ("weights", "context"))


# %% tags=["context-drawing"]
def draw_context(axes) -> None:
    """Four states of an encoder, their weights, the sum, a step of the decoder."""
    nodes = {
        "states": diagrams.Node(1.55, 2.15, " \n ", width=2.8),
        "weights": diagrams.Node(1.55, 1.5, " ", width=2.8),
        "scores": diagrams.Node(3.55, 1.5, "scores", width=0.8),
        "sum": diagrams.Node(1.55, 0.85, "+"),
        "c": diagrams.Node(3.1, 0.85, "context $c_2$", width=1.15),
        "s1": diagrams.Node(4.6, 1.5, "$s_1$", width=0.5),
        "s2": diagrams.Node(4.6, 0.85, "$s_2$", width=0.5),
        "y": diagrams.Node(4.6, 0.25, "$y_2$"),
    }
    arrows = [("states", (3.55, 2.15), "scores"), ("s1", "scores")]
    arrows += [("scores", "weights"), ("c", "s2"), ("s1", "s2"), ("s2", "y")]
    weighted = [("sum", "c")]
    for place, letter in enumerate("abcd"):
        x = 0.5 + 0.7 * place
        nodes[f"x{place}"] = diagrams.Node(x, 2.8, letter)
        nodes[f"h{place}"] = diagrams.Node(x, 2.15, f"$h_{place + 1}$", width=0.42)
        nodes[f"w{place}"] = diagrams.Node(x, 1.5, f"$a_{{2{place + 1}}}$")
        arrows.append((f"x{place}", f"h{place}"))
        weighted += [(f"h{place}", f"w{place}"), ((x, 1.4), (1.55, 0.97))]
        if place:
            arrows.append((f"h{place - 1}", f"h{place}"))
    diagrams.draw(axes, nodes, arrows, weighted)


# %% tags=["context-figure"] alt="Below, a, b, c and d go up into four boxes h1 to h4, joined from left to right and framed together. From each an orange arrow leads up to a weight, a21 to a24, and from there to a plus sign, which leads to a box, context c2. Grey arrows lead from the frame of the four states and from a box s1 to a box, scores, and from there to the frame of the four weights. The context and s1 lead to a box s2, and s2 to y2."
axes = diagrams.sheet(2.95)
draw_context(axes)

# %% [markdown]
# ## Scores
#
# A query (the decoder's state) and a key (a state of the encoder) give one number. Each
# class does it for all queries and all keys.


# %% tags=["additive"]
class Additive(nn.Module):
    """v . tanh(W q + U k), Bahdanau et al. 2014, section 3.1 and A.1.2."""

    def __init__(self, d_query: int, d_key: int, *, d_hidden: int):
        super().__init__()
        self.W = nn.Linear(d_query, d_hidden, bias=False)
        self.U = nn.Linear(d_key, d_hidden, bias=False)
        self.v = nn.Linear(d_hidden, 1, bias=False)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        # (B, T, d_query), (B, S, d_key) -> (B, T, S)
        pairs = self.W(queries).unsqueeze(2) + self.U(keys).unsqueeze(1)
        return self.v(torch.tanh(pairs)).squeeze(-1)  # of (B, T, S, d_hidden)


# %% tags=["multiplicative"]
class Dot(nn.Module):
    """q . k, Luong et al. 2015, section 3.1."""

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        # (B, T, D), (B, S, D) -> (B, T, S)
        return queries @ keys.mT


class General(nn.Module):
    """q . W k: the dot product behind a matrix, Luong et al. 2015, section 3.1."""

    def __init__(self, d_query: int, d_key: int):
        super().__init__()
        self.W = nn.Linear(d_key, d_query, bias=False)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        # (B, T, d_query), (B, S, d_key) -> (B, T, S)
        return queries @ self.W(keys).mT


# %% tags=["concat"]
class Concat(nn.Module):
    """v . tanh(W [q; k]), Luong et al. 2015, section 3.1."""

    def __init__(self, d_query: int, d_key: int, *, d_hidden: int):
        super().__init__()
        self.W = nn.Linear(d_query + d_key, d_hidden, bias=False)
        self.v = nn.Linear(d_hidden, 1, bias=False)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        # (B, T, d_query), (B, S, d_key) -> (B, T, S)
        T = queries.shape[1]
        S = keys.shape[1]
        q = queries.unsqueeze(2).expand(-1, -1, S, -1)  # (B, T, S, d_query)
        k = keys.unsqueeze(1).expand(-1, T, -1, -1)  # (B, T, S, d_key)
        return self.v(torch.tanh(self.W(torch.cat((q, k), -1)))).squeeze(-1)


# %% tags=["scores-shape"]
seed(0)
queries = torch.randn(5, 7, 64)
keys = torch.randn(5, 12, 64)
Additive(64, 64, d_hidden=64)(queries, keys).shape

# %% tags=["concat-is-additive"]
additive = Additive(64, 64, d_hidden=64)
concat = Concat(64, 64, d_hidden=64)
with torch.no_grad():
    concat.W.weight.copy_(torch.cat((additive.W.weight, additive.U.weight), 1))
    concat.v.weight.copy_(additive.v.weight)
general = General(64, 64)
with torch.no_grad():
    general.W.weight.copy_(torch.eye(64))

# %% tags=["concat-result"]
off = checks.deviation(concat(queries, keys), additive(queries, keys))
claim(off < 1e-5, "concat is the additive score with its matrices side by side")
record("concat.deviation", off)
off = checks.deviation(general(queries, keys), Dot()(queries, keys))
claim(off < 1e-5, "general with the identity is dot")

# %% tags=["scores-table"]
D = 512
builds = {
    "additive": ("v · tanh(W q + U k)", lambda: Additive(D, D, d_hidden=D)),
    "concat": ("v · tanh(W [q; k])", lambda: Concat(D, D, d_hidden=D)),
    "general": ("q · W k", lambda: General(D, D)),
    "dot": ("q · k", Dot),
}
rows = []
for name, (formula, build) in builds.items():
    with torch.device("meta"):
        score = build()
    rows.append((name, formula, counting.parameters(score)))
table(rows, ("score", "formula", "parameters at width 512"))

# %% tags=["scores-claims"]
found = {name: count for name, _, count in rows}
record("additive.parameters", found["additive"])
claim(found["additive"] == 2 * D * D + D, "two matrices and a vector")
claim(found["concat"] == found["additive"], "concat has the same number")
claim(found["general"] == D * D and found["dot"] == 0, "one matrix, and none")

# %% [markdown]
# ## Encoder and decoder
#
# The encoder keeps all of its states. A decoder reads them by the weights that its own
# state asks for.


# %% tags=["encoder"]
class Memory(NamedTuple):
    """What a decoder may read: states (B, S, D), and which are real (B, 1, S)."""

    states: Tensor
    allowed: Tensor


class Encoder(nn.Module):
    """A GRU over a sequence; `both`: a second one reads it from the end."""

    def __init__(self, V: int, d_model: int, *, both: bool = False, d_embed: int = 32):
        super().__init__()
        self.embed = nn.Embedding(V, d_embed)
        self.rnn = nn.GRU(d_embed, d_model, batch_first=True, bidirectional=both)

    def forward(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        # (B, S), (B,) -> states (B, S, D), the last one (B, d_model)
        how = {"batch_first": True, "enforce_sorted": False}
        packed = pack_padded_sequence(self.embed(source), lengths.cpu(), **how)
        states, last = self.rnn(packed)
        states, _ = pad_packed_sequence(states, batch_first=True)
        return states, last[-1]


# %% tags=["places"]
def real_places(lengths: Tensor, S: int) -> Tensor:
    """All but the padding: (B, 1, S)."""
    places = torch.arange(S, device=lengths.device)
    return (places < lengths[:, None]).unsqueeze(1)


def last_place(lengths: Tensor, S: int) -> Tensor:
    """The last symbol alone, the one fixed vector: (B, 1, S)."""
    places = torch.arange(S, device=lengths.device)
    return (places == lengths[:, None] - 1).unsqueeze(1)


# %% tags=["luong-decoder"]
class LuongDecoder(nn.Module):
    """The state asks after its step; the context enters the output.

    Luong et al. 2015, section 3 and equation 5, without input feeding.
    """

    def __init__(self, V: int, d_model: int, score: nn.Module, *, d_embed: int = 32):
        super().__init__()
        self.embed = nn.Embedding(V, d_embed)
        self.rnn = nn.GRU(d_embed, d_model, batch_first=True)
        self.score = score
        self.mix = nn.Linear(2 * d_model, d_model)
        self.output = nn.Linear(d_model, V)

    def forward(self, before: Tensor, state: Tensor, memory: Memory):
        # (B, T), (B, D) -> scores (B, T, V), the next state, weights (B, T, S)
        h, last = self.rnn(self.embed(before), state.unsqueeze(0))
        scores = self.score(h, memory.states)
        context, weights = attend(scores, memory.states, memory.allowed)
        mixed = torch.tanh(self.mix(torch.cat((context, h), -1)))
        return self.output(mixed), last[0], weights


# %% tags=["bahdanau-decoder"]
class BahdanauDecoder(nn.Module):
    """The state asks before its step; the context enters the step.

    Bahdanau et al. 2014, section 3.1 and appendix A. One linear layer in place of the
    maxout layer in front of the softmax.
    """

    def __init__(self, V: int, d_model: int, *, d_memory: int, d_embed: int = 32):
        super().__init__()
        self.embed = nn.Embedding(V, d_embed)
        self.score = Additive(d_model, d_memory, d_hidden=d_model)
        self.rnn = nn.GRU(d_embed + d_memory, d_model, batch_first=True)
        self.output = nn.Linear(d_model + d_memory + d_embed, V)

    def step(self, y: Tensor, state: Tensor, memory: Memory):
        # (B, d_embed), (B, D) -> what is put out, state, weights (B, 1, S)
        scores = self.score(state.unsqueeze(1), memory.states)
        context, weights = attend(scores, memory.states, memory.allowed)
        context = context.squeeze(1)  # (B, d_memory)
        fed = torch.cat((y, context), -1).unsqueeze(1)  # a sequence of one step
        _, state = self.rnn(fed, state.unsqueeze(0))
        state = state.squeeze(0)  # (B, D)
        return torch.cat((state, context, y), -1), state, weights

    def forward(self, before: Tensor, state: Tensor, memory: Memory):
        # (B, T), (B, D) -> scores (B, T, V), the next state, weights (B, T, S)
        outputs = []
        weights = []
        for y in self.embed(before).unbind(1):
            output, state, looked = self.step(y, state, memory)
            outputs.append(output)
            weights.append(looked)
        scores = self.output(torch.stack(outputs, 1))
        return scores, state, torch.cat(weights, 1)


# %% tags=["translator"]
class Translator(nn.Module):
    """Reads a sequence, writes another; `places` says which states may be read."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, places=real_places):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.places = places

    def read(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Memory]:
        # (B, S), (B,) -> the decoder's first state, memory
        states, last = self.encoder(source, lengths)
        return last, Memory(states, self.places(lengths, states.shape[1]))

    def forward(self, source: Tensor, lengths: Tensor, before: Tensor):
        # (B, S), (B,), (B, T) -> scores (B, T, V), weights (B, T, S)
        state, memory = self.read(source, lengths)
        scores, _, weights = self.decoder(before, state, memory)
        return scores, weights


# %% tags=["greedy"]
@torch.no_grad()
def greedy(model: Translator, source: Tensor, lengths: Tensor, steps: int) -> Tensor:
    """The most probable symbol at each step (B, steps), padding behind END."""
    state, memory = model.read(source, lengths)
    last = torch.full_like(source[:, :1], BEGIN)
    written = []
    for _ in range(steps):
        over = (last == END) | (last == PAD)
        scores, state, _ = model.decoder(last, state, memory)
        last = scores.argmax(-1).masked_fill(over, PAD)
        written.append(last)
    return torch.cat(written, dim=1)


# %% [markdown]
# ## Reversal
#
# Random strings of ten letters, 2 to 12 long, to be written from the end.


# %% tags=["batch"]
class Batch(NamedTuple):
    """What is read, its lengths, and what is to be written, with BEGIN and END."""

    source: Tensor  # (B, S)
    lengths: Tensor  # (B,)
    target: Tensor  # (B, T)


def as_batch(pairs, reads: text.Vocabulary, writes: text.Vocabulary) -> Batch:
    lengths = torch.tensor([len(read) for read, _ in pairs])
    source = reads.padded([read for read, _ in pairs])
    target = writes.padded([written for _, written in pairs], ends=True)
    return Batch(source.to(device), lengths.to(device), target.to(device))


# %% tags=["reversal"]
LETTERS = "abcdefghij"
ALPHABET = text.Vocabulary([LETTERS])


def reversal(B: int, *, shortest: int = 2, longest: int = 12) -> Batch:
    """Strings of all lengths equally often, and the same from the end."""
    pairs = []
    for _ in range(B):
        length = random.randint(shortest, longest)
        letters = "".join(random.choices(LETTERS, k=length))
        pairs.append((letters, letters[::-1]))
    return as_batch(pairs, ALPHABET, ALPHABET)


# %% tags=["reverser"]
def reverser(score: nn.Module, places=real_places, *, d_model: int = 64) -> Translator:
    V = len(ALPHABET)
    decoder = LuongDecoder(V, d_model, score)
    return Translator(Encoder(V, d_model), decoder, places)


# %% tags=["reverser-shape"]
seed(0)
batch = reversal(5)
model = reverser(Dot()).to(device)
scores, weights = model(batch.source, batch.lengths, batch.target[:, :-1])
scores.shape, weights.shape


# %% tags=["training"]
def train(model: Translator, draw, *, steps: int) -> Translator:
    """Adam on fresh batches of 32; the rate rises to 0.008 and falls."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.008)
    schedule = training.one_cycle(optimizer, steps, rising=0.1)
    for _ in training.progress(range(steps), "steps"):
        source, lengths, target = draw(32)
        scores, _ = model(source, lengths, target[:, :-1])
        wanted = target[:, 1:].flatten()
        loss = F.cross_entropy(scores.flatten(0, 1), wanted, ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


# %% tags=["exact"]
def exact(model: Translator, batch: Batch) -> float:
    """Share of strings whose symbols are all right, END included."""
    wanted = batch.target[:, 1:]
    written = greedy(model, batch.source, batch.lengths, wanted.shape[1])
    return (written == wanted).all(1).double().mean().item()


# %% [markdown]
# ## The headline: exact match by length
#
# The same encoder and decoder, with the same weights at the start. Attention may read all
# states; the fixed vector is the last state, the only one that may be read.

# %% tags=["headline"]
SEEDS = (0, 1, 2)
STEPS = 250
KINDS = {"fixed vector": last_place, "attention": real_places}
models = {}
for name, places in KINDS.items():
    for number in SEEDS:
        seed(number)
        model = reverser(Dot(), places).to(device)
        models[name, number] = train(model, reversal, steps=STEPS)

# %% tags=["by-length"]
LENGTHS = (2, 4, 6, 8, 10, 12)
seed(100)
unseen = {}
for length in LENGTHS:
    unseen[length] = reversal(200, shortest=length, longest=length)
right = {}
for run, model in models.items():
    right[run] = torch.tensor([exact(model, batch) for batch in unseen.values()])

# %% tags=["lengths-figure"] alt="Share of strings written without a mistake against their length, 2 to 12, in two bands of three seeds. Both begin near 1. That of the fixed vector falls to nearly 0 at length 10; that of attention falls slowly, and stays above one half at 12."
_, axes = plt.subplots()
ends = {}
pair = (plots.COLOURS[1], plots.COLOURS[0])
for name, colour in zip(KINDS, pair):
    runs = torch.stack([right[name, number] for number in SEEDS])
    ends[name] = plots.seed_band(axes, LENGTHS, runs, colour)
axes.set(xlabel="length of the string", ylabel="exact match", ylim=(-0.03, 1.03))
axes.set(xlim=(2, 15.8), xticks=LENGTHS)
plots.label_ends(axes, ends, pair)
axes.set_axisbelow(True)

# %% tags=["lengths-result"]
at = {}
rows = []
for name in KINDS:
    row = [name]
    for place, length in enumerate(LENGTHS):
        values = [right[name, number][place].item() for number in SEEDS]
        at[name, length] = values
        record_spread(f"exact.{name.split()[0]}.{length}", values)
        if length > 4:
            row.append(spread(values, ".2f"))
    rows.append(row)
table(rows, ("decoder reads by", *(f"length {length}" for length in LENGTHS[2:])))

# %% tags=["lengths-claims"]
record("steps", STEPS)
sizes = {name: counting.parameters(models[name, 0]) for name in KINDS}
record("parameters", sizes["attention"])
claim(sizes["attention"] == sizes["fixed vector"], "dot adds no parameters")
for length in (6, 8, 10, 12):
    words = f"more strings of {length} are right by attention, seeds apart"
    claim(min(at["attention", length]) > max(at["fixed vector", length]) + 0.2, words)
for length in (2, 4, 6):
    words = f"by attention more than nine strings of ten are right at {length}"
    claim(min(at["attention", length]) > 0.9, words)
for length in (8, 10, 12):
    words = f"by attention more than half are right at {length}"
    claim(min(at["attention", length]) > 0.5, words)
words = "by attention fewer are right at 12 than at 8, seeds apart"
claim(max(at["attention", 12]) < min(at["attention", 8]), words)
claim(max(at["fixed vector", 10]) < 0.1, "by one vector fewer than a tenth at 10")
for short, long in ((4, 6), (6, 8), (8, 10)):
    words = f"by one vector it falls from {short} to {long}, seeds apart"
    claim(min(at["fixed vector", short]) > max(at["fixed vector", long]) + 0.05, words)


# %% tags=["looked-at"]
@torch.no_grad()
def looked_at(model: Translator, batch: Batch) -> tuple[float, float, float]:
    """Mean weight on the state at the letter to be written, later ones, earlier ones.

    For strings of one length; END is left out. Earlier states have not read the letter.
    """
    _, weights = model(batch.source, batch.lengths, batch.target[:, :-1])
    S = weights.shape[2]
    by_place = weights[:, :S].flip(1).mean(0)  # (S, S): row s writes the letter at s
    letter = by_place.diagonal().mean()
    later = by_place.triu(1).sum(1).mean()
    earlier = by_place.tril(-1).sum(1).mean()
    return letter.item(), later.item(), earlier.item()


# %% tags=["looked-result"]
looked = [looked_at(models["attention", number], unseen[10]) for number in SEEDS]
rows = []
names = ("at the letter", "later", "earlier")
for name, values in zip(names, zip(*looked)):
    record_spread(f"looked.{name.split()[-1]}", values)
    rows.append((name, spread(values, ".2f")))
least = min(letter + later for letter, later, _ in looked)
claim(least > 0.9, "nearly all weight is on states that have read the letter")
table(rows, ("states", "weight, length 10"))

# %% [markdown]
# ## Dates
#
# English dates in eight formats, to be written as year, month and day. A bidirectional
# encoder and Bahdanau's decoder.

# %% tags=["dates"]
ENGLISH = text.Vocabulary([string.ascii_letters, string.digits, " ,/"])
NUMERIC = text.Vocabulary([string.digits, "-"])


def draw_dates(part: list[tuple[str, str]], B: int) -> Batch:
    return as_batch(random.sample(part, B), ENGLISH, NUMERIC)


# %% tags=["dates-shown"]
pairs = text.dates()
table(pairs.train[:4], ("read", "to be written"))


# %% tags=["date-translator"]
def date_translator(d_model: int = 48) -> Translator:
    encoder = Encoder(len(ENGLISH), d_model, both=True)
    decoder = BahdanauDecoder(len(NUMERIC), d_model, d_memory=2 * d_model)
    return Translator(encoder, decoder)


# %% tags=["date-training"]
DATE_STEPS = 200
seed(0)
dated = train(
    date_translator().to(device), partial(draw_dates, pairs.train), steps=DATE_STEPS
)
held_out = as_batch(pairs.test, ENGLISH, NUMERIC)

# %% tags=["date-result"]
share = exact(dated, held_out)
record("dates.exact", share)
record("dates.steps", DATE_STEPS)
claim(share > 0.9, "nine of ten held-out dates are right")
table([(len(pairs.test), f"{share:.1%}")], ("held-out dates", "exactly right"))

# %% tags=["alignments"]
FIELDS = {
    "year": r"\d{4}",
    "month": r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*",
    "day": r"\b\d{1,2}\b",
}
DIGITS = {"year": slice(0, 4), "month": slice(5, 7), "day": slice(8, 10)}


@torch.no_grad()
def alignment(model: Translator, read: str, written: str) -> Tensor:
    """Weights (T, S) of one date, a row for each character written and END."""
    batch = as_batch([(read, written)], ENGLISH, NUMERIC)
    _, weights = model(batch.source, batch.lengths, batch.target[:, :-1])
    return weights[0].cpu()


def on_field(weights: Tensor, read: str, field: str) -> tuple[float, float]:
    """Weight of a field's digits on its characters; and their share of places."""
    first, end = re.search(FIELDS[field], read).span()
    on = weights[DIGITS[field], first:end].sum(1).mean().item()
    return on, (end - first) / len(read)


# %% tags=["alignment-figure"] alt="Two pictures of weights, characters read from left to right, those written from top to bottom. For a date with the day in front, dark places form blocks: the rows of the year lie on the last characters, those of the month on the month's name in the middle, those of the day on the first. For a date that begins with the name of the weekday, hardly any weight is on that name."
examples = {}
for read, written in pairs.test:
    if re.fullmatch(r"\d+ [A-Z][a-z]+ \d{4}", read):
        examples.setdefault("day first", (read, written))
    if re.fullmatch(r"[A-Z][a-z]+day, [A-Z][a-z]+ \d+, \d{4}", read):
        examples.setdefault("weekday first", (read, written))
figure, parts = plt.subplots(2, 1, figsize=(5, 5.4))
for axes, (read, written) in zip(parts, examples.values()):
    axes.imshow(alignment(dated, read, written)[:-1], "Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(read)), read, fontsize=9)
    axes.set_yticks(range(len(written)), written, fontsize=9)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)

# %% tags=["alignment-result"]
shares = {field: [] for field in FIELDS}
even = {field: [] for field in FIELDS}
weekday = []
for read, written in pairs.test[:300]:
    if "/" in read:
        continue  # there the month is no word
    weights = alignment(dated, read, written)
    for field in FIELDS:
        on, by_chance = on_field(weights, read, field)
        shares[field].append(on)
        even[field].append(by_chance)
    found = re.match(r"[A-Z][a-z]+,", read)
    if found:
        weekday.append(weights[:-1, : found.end() - 1].sum(1).mean().item())
rows = []
for field in FIELDS:
    on = sum(shares[field]) / len(shares[field])
    by_chance = sum(even[field]) / len(even[field])
    record(f"field.{field}", on)
    record(f"even.{field}", by_chance)
    rows.append((field, f"{on:.2f}", f"{by_chance:.2f}"))
    claim(on > 0.6, f"most of the weight lies on the {field}")
    claim(on > 2 * by_chance, "more than twice the even share")
record("weekday", sum(weekday) / len(weekday))
claim(sum(weekday) / len(weekday) < 0.1, "hardly any weight lies on the weekday")
table(rows, ("digits of the", "weight on its characters", "were all weights equal"))

# %% [markdown]
# ## Self-attention by hand
#
# Three inputs of four numbers ask each other. The integers are those of the article in the
# chapter's list, so that each number can be compared.

# %% tags=["by-hand"]
x = torch.tensor([[1.0, 0, 1, 0], [0, 2, 0, 2], [1, 1, 1, 1]])
W_q = torch.tensor([[1.0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 1, 1]])
W_k = torch.tensor([[0.0, 0, 1], [1, 1, 0], [0, 1, 0], [1, 1, 0]])
W_v = torch.tensor([[0.0, 2, 0], [0, 3, 0], [1, 0, 3], [1, 1, 0]])

queries = x @ W_q
keys = x @ W_k
values = x @ W_v
scores = queries @ keys.T
weights = scores.softmax(1)
outputs = weights @ values

# %% tags=["by-hand-result"]
worked_out = {  # worked out with pencil and paper
    "queries": (queries, [[1, 0, 2], [2, 2, 2], [2, 1, 3]]),
    "keys": (keys, [[0, 1, 1], [4, 4, 0], [2, 3, 1]]),
    "values": (values, [[1, 2, 3], [2, 8, 0], [2, 6, 3]]),
    "scores": (scores, [[2, 4, 4], [4, 16, 12], [4, 12, 10]]),
}
for name, (found, wanted) in worked_out.items():
    off = checks.deviation(found, torch.tensor(wanted, dtype=torch.float32))
    claim(off == 0, f"the {name} are the integers worked out by hand")
E1 = math.exp(-2)  # of the softmax of 2, 4, 4: e^-2, 1, 1 over their sum
wanted = torch.tensor([E1, 1, 1]) / (2 + E1)
claim(checks.deviation(weights[0], wanted) < 1e-6, "the first row of weights, too")
by_hand = torch.tensor([E1 + 4, 2 * E1 + 14, 3 * E1 + 3]) / (2 + E1)
claim(checks.deviation(outputs[0], by_hand) < 1e-6, "and the first output")
record("hand.least", weights[0, 0])
for place, value in enumerate(outputs[0]):
    record(f"hand.output.{place}", value)


def in_words(row: Tensor, form: str) -> str:
    return ", ".join(f"{value:{form}}" for value in row.tolist())


rows = []
for place in range(3):
    integers = [in_words(t[place], ".0f") for t in (queries, keys, values, scores)]
    shown = [in_words(t[place], ".2f") for t in (weights, outputs)]
    rows.append((place + 1, *integers, *shown))
table(rows, ("input", "query", "key", "value", "scores", "weights", "output"))

# %% tags=["by-hand-scaled"]
scaled = (scores / 3**0.5).softmax(1)
claim(
    bool((scaled[1].max() < weights[1].max()).item()), "scaled, the weights are softer"
)
record("hand.second", weights[1].max())
record("hand.second.scaled", scaled[1].max())

# %% [markdown]
# ## Why the scores are scaled
#
# A dot product of d products, each of variance 1, has the variance d.


# %% tags=["scaling"]
def softness(d: int, scale: float) -> tuple[float, float, float]:
    """Standard deviation of scores, largest weight, gradient left by the softmax.

    1,000 queries and 16 keys each, all standard normal. The gradient is the trace of
    the softmax's derivative, the sum of a (1 - a).
    """
    seed(0)
    q = torch.randn(1000, 1, d)
    k = torch.randn(1000, 16, d)
    scores = scale * (q @ k.mT).squeeze(1)  # (1000, 16)
    weights = scores.softmax(1)
    left = (weights * (1 - weights)).sum(1)
    return scores.std().item(), weights.amax(1).mean().item(), left.mean().item()


# %% tags=["scaling-result"]
WIDTHS = (1, 4, 16, 64, 256, 1024)
plain = {d: softness(d, 1.0) for d in WIDTHS}
divided = {d: softness(d, d**-0.5) for d in WIDTHS}
rows = []
for d in WIDTHS[1:]:
    rows.append((d, f"{d**0.5:.0f}", *(f"{v:.2f}" for v in (*plain[d], *divided[d]))))
    claim(abs(plain[d][0] / d**0.5 - 1) < 0.05, f"width {d}: the deviation is its root")
    claim(abs(divided[d][0] - 1) < 0.05, f"width {d}: divided by the root it is 1")
left = [plain[d][2] for d in WIDTHS]
claim(left == sorted(left, reverse=True), "the wider, the less gradient is left")
claim(min(divided[d][2] for d in WIDTHS) > 0.7, "scaled, it is not so")
claim(plain[1024][2] < 0.1, "at 1,024 less than a tenth is left")
record("left.64", plain[64][2])
record("left.64.scaled", divided[64][2])
record("largest.64", plain[64][1])
record("largest.64.scaled", divided[64][1])
columns = ("d", "its root", "deviation", "largest weight", "gradient left")
table(rows, (*columns, "scaled: deviation", "largest weight", "gradient left"))

# %% tags=["scaling-figure"] alt="Gradient left by the softmax against the width d from 1 to 1,024, in powers of four. Scaled by one over the root of d the line stays level above 0.8; without scaling it falls from there towards 0."
_, axes = plt.subplots(figsize=(5, 2.7))
ends = {}
curves = {"scaled": divided, "not scaled": plain}
for (name, curve), colour in zip(curves.items(), plots.COLOURS):
    shown = [curve[d][2] for d in WIDTHS]
    axes.plot(WIDTHS, shown, "o-", color=colour)
    ends[name] = (WIDTHS[-1], shown[-1])
axes.set_xscale("log", base=4)
axes.set_xticks(WIDTHS, [f"{d:,}" for d in WIDTHS])
axes.set(xlabel="width d", ylabel="gradient left", xlim=(0.8, 9000), ylim=(0, 1))
plots.label_ends(axes, ends)
axes.set_axisbelow(True)

# %% [markdown]
# ## Several heads
#
# The width is cut into h parts, and each looks for itself.


# %% tags=["multi-head"]
class MultiHeadAttention(nn.Module):
    """n_heads attentions side by side, each on d_model / n_heads numbers.

    Vaswani et al. 2017, section 3.2.2.
    """

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        assert d_model % n_heads == 0, "n_heads must divide d_model"
        self.n_heads = n_heads
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.output = nn.Linear(d_model, d_model)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, h, S, d)

    def forward(self, x: Tensor, memory: Tensor, allowed: Tensor):
        # (B, T, D), (B, S, D), (B, 1, T or 1, S) -> (B, T, D), weights (B, h, T, S)
        q = self.split(self.query(x))  # (B, h, T, d)
        k = self.split(self.key(memory))  # (B, h, S, d)
        v = self.split(self.value(memory))  # (B, h, S, d)
        scores = q @ k.mT / q.shape[-1] ** 0.5  # (B, h, T, S)
        heads, weights = attend(scores, v, allowed)
        joined = heads.transpose(1, 2).flatten(2)  # (B, T, D)
        return self.output(joined), weights


# %% tags=["einops"]
class EinopsAttention(MultiHeadAttention):
    """The same with einops: each line names the axes before and after."""

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, "B S (h d) -> B h S d", h=self.n_heads)

    def forward(self, x: Tensor, memory: Tensor, allowed: Tensor):
        # (B, T, D), (B, S, D), (B, 1, T or 1, S) -> (B, T, D), weights (B, h, T, S)
        q = self.split(self.query(x))
        k = self.split(self.key(memory))
        v = self.split(self.value(memory))
        scores = einsum(q, k, "B h T d, B h S d -> B h T S") / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
        heads = einsum(weights, v, "B h T S, B h S d -> B h T d")
        return self.output(rearrange(heads, "B h T d -> B T (h d)")), weights


# %% tags=["multi-head-shape"]
seed(0)
x = torch.randn(2, 5, 512)
everything = torch.ones(1, 1, 5, 5, dtype=torch.bool)
y, weights = MultiHeadAttention(512, 8)(x, x, everything)
y.shape, weights.shape


# %% tags=["heads-drawing"]
def draw_heads(axes) -> None:
    """Three maps of the input, cut into two heads, joined, mapped once more."""
    nodes = {
        "x": diagrams.Node(2.5, 2.9, "x  (T, D)"),
        "q": diagrams.Node(1.0, 2.2, "$W_q x$", width=0.9),
        "k": diagrams.Node(2.5, 2.2, "$W_k x$", width=0.9),
        "v": diagrams.Node(4.0, 2.2, "$W_v x$", width=0.9),
        "one": diagrams.Node(1.6, 1.3, "head 1: (T, d)", width=1.45),
        "two": diagrams.Node(3.4, 1.3, "head 2: (T, d)", width=1.45),
        "o": diagrams.Node(2.5, 0.6, "side by side, $W_o$", width=1.7),
        "y": diagrams.Node(2.5, 0.12, "y  (T, D)"),
    }
    arrows = [("x", "k"), ((2.5, 2.6), (1.0, 2.6), "q"), ((2.5, 2.6), (4.0, 2.6), "v")]
    halves = []
    for part in ("q", "k", "v"):
        x = nodes[part].x
        arrows.append(((x - 0.15, 2.03), (x - 0.15 + 0.3 * (1.75 - x), 1.47)))
        halves.append(((x + 0.15, 2.03), (x + 0.15 + 0.3 * (3.25 - x), 1.47)))
    arrows += [("one", "o"), ("o", "y")]
    halves.append(("two", "o"))
    diagrams.draw(axes, nodes, arrows, halves)


# %% tags=["heads-figure"] alt="From below: x with T rows of D numbers goes into three boxes, W q x, W k x and W v x. From each of the three a grey arrow leads to head 1 and an orange arrow to head 2, each of T rows of d numbers. Both heads lead to a box, side by side and W o, and that to y, again of T rows of D numbers."
axes = diagrams.sheet(3.05)
draw_heads(axes)

# %% [markdown]
# ## Masks
#
# A mask says which places a query may look at. True means that it may.


# %% tags=["causal"]
def no_later(T: int) -> Tensor:
    """A causal mask: each place sees itself and those before it. (1, 1, T, T)"""
    return torch.ones(T, T, dtype=torch.bool).tril()[None, None]


# %% tags=["masks"]
lengths = torch.tensor([4, 6])
padding = real_places(lengths, 6).unsqueeze(1)  # (B, 1, 1, S), for every head and query
causal = no_later(6)  # (1, 1, T, T), for every sequence and head
both = padding & causal  # (B, 1, T, S)
both.shape

# %% tags=["masks-figure"] alt="Three squares of six by six, the place that looks from top to bottom, the place looked at from left to right; allowed is filled. Padding: the first four columns. Causal: the diagonal and all below it. Both: what lies on or below the diagonal, within the first four columns."
_, parts = plt.subplots(1, 3, figsize=(5, 2.3), sharey=True)
shown = {
    "padding": padding[0, 0].expand(6, 6),
    "causal": causal[0, 0],
    "both": both[0, 0],
}
for axes, (name, square) in zip(parts, shown.items()):
    axes.imshow(square, "Blues", vmin=0, vmax=1.6)
    axes.set_xticks(torch.arange(-0.5, 6), [""] * 7, minor=False)
    axes.set_yticks(torch.arange(-0.5, 6), [""] * 7, minor=False)
    axes.grid(color="white", linewidth=1)
    axes.tick_params(length=0)
    axes.set(title=name, xlabel="looked at")
parts[0].set(ylabel="looks")
plt.show()

# %% [markdown]
# ## Equal to torch
#
# torch's layer stacks the three matrices and says True for what is *not* allowed.


# %% tags=["from-torch"]
@torch.no_grad()
def from_torch(theirs: nn.MultiheadAttention) -> MultiHeadAttention:
    """Our layer with torch's weights."""
    ours = MultiHeadAttention(theirs.embed_dim, theirs.num_heads)
    weights = theirs.in_proj_weight.chunk(3)
    biases = theirs.in_proj_bias.chunk(3)
    layers = (ours.query, ours.key, ours.value)
    for layer, weight, bias in zip(layers, weights, biases):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    ours.output.load_state_dict(theirs.out_proj.state_dict())
    return ours


# %% tags=["equal"]
seed(0)
theirs = nn.MultiheadAttention(48, 6, batch_first=True)
nn.init.normal_(theirs.in_proj_bias)  # zeros at the start would hide a mistake
nn.init.normal_(theirs.out_proj.bias)
ours = from_torch(theirs)
in_einops = EinopsAttention(48, 6)
in_einops.load_state_dict(ours.state_dict())
x = torch.randn(2, 6, 48, requires_grad=True)
other = torch.randn(2, 6, 48, requires_grad=True)
cases = {
    "self-attention": (x, torch.ones(1, 1, 6, 6, dtype=torch.bool)),
    "of another sequence": (other, torch.ones(1, 1, 6, 6, dtype=torch.bool)),
    "padding": (x, padding),
    "causal": (x, causal),
    "padding and causal": (x, both),
}
rows = []
worst = []
for name, (memory, allowed) in cases.items():
    y, weights = ours(x, memory, allowed)
    forbidden = ~allowed.expand(2, 6, 6, 6).flatten(0, 1)
    how = {"attn_mask": forbidden, "average_attn_weights": False}
    wanted, wanted_weights = theirs(x, memory, memory, **how)
    (gradient,) = torch.autograd.grad(y.square().sum(), memory)
    (wanted_gradient,) = torch.autograd.grad(wanted.square().sum(), memory)
    q, k, v = (
        ours.split(f(t))
        for f, t in zip((ours.query, ours.key, ours.value), (x, memory, memory))
    )
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    fused = ours.output(fused.transpose(1, 2).flatten(2))
    named, _ = in_einops(x, memory, allowed)
    off = [checks.deviation(y, wanted), checks.deviation(weights, wanted_weights)]
    off.append(checks.deviation(gradient, wanted_gradient))
    off += [checks.deviation(fused, y), checks.deviation(named, y)]
    worst += off
    rows.append((name, *(f"{value:.0e}" for value in off)))
record("deviation", max(worst))
claim(
    max(worst) < 1e-5,
    "outputs, weights and gradients are those of torch, and in einops",
)
columns = ("outputs", "weights", "gradients", "function", "einops")
table(rows, ("case", *columns))

# %% [markdown]
# ## Counted


# %% tags=["of-itself"]
class OfItself(nn.Module):
    """Self-attention behind a mask, as a network of one input."""

    def __init__(self, layer: MultiHeadAttention, allowed: Tensor):
        super().__init__()
        self.layer = layer
        self.allowed = allowed

    def forward(self, x: Tensor) -> Tensor:
        # (B, T, D) -> (B, T, D)
        y, _ = self.layer(x, x, self.allowed)
        return y


# %% tags=["count"]
rows = []
T = 100
for name, D, h in (("base", 512, 8), ("one head", 512, 1), ("big", 1024, 16)):
    with torch.device("meta"):
        layer = MultiHeadAttention(D, h)
        x = torch.empty(1, T, D)
        everything = torch.ones(1, 1, T, T, dtype=torch.bool)

    parameters = counting.parameters(layer)
    macs = counting.macs(OfItself(layer, everything), x)
    claim(parameters == 4 * (D * D + D), "four square matrices with their biases")
    claim(macs == 4 * T * D * D + 2 * T * T * D, "four products a place, two a pair")
    with torch.device("meta"):
        torchs = nn.MultiheadAttention(D, h)
    claim(parameters == counting.parameters(torchs), "as many as in torch's layer")
    rows.append((name, D, h, parameters, macs))
    record(f"{name.split()[0]}.parameters", parameters)
    record(f"{name.split()[0]}.macs", macs)
claim(rows[0][3:] == rows[1][3:], "the number of heads changes neither count")
table(rows, ("layer", "D", "heads", "parameters", "MACs of 100 places"))

# %% [markdown]
# ## What it does with order, and with what it may not see

# %% tags=["behaviour"]
seed(0)
layer = MultiHeadAttention(48, 6)
x = torch.randn(1, 6, 48)
alone = torch.ones(1, 1, 6, 6, dtype=torch.bool)
order = torch.tensor([3, 0, 5, 1, 4, 2])
y, _ = layer(x, x, alone)
shuffled, _ = layer(x[:, order], x[:, order], alone)

changed = x.clone()
changed[:, 4:] = 7.0
before, _ = layer(x, x, causal)
after, _ = layer(changed, changed, causal)

short, _ = layer(x[:, :4], x[:, :4], alone[..., :4, :4])
padded, _ = layer(changed, changed, padding[:1])  # of length 4

# %% tags=["behaviour-result"]
found = {
    "places shuffled: the outputs are shuffled, too": (shuffled, y[:, order]),
    "causal mask, places 5 and 6 changed: outputs 1 to 4": (
        after[:, :4],
        before[:, :4],
    ),
    "padded by two places of sevens: outputs 1 to 4": (padded[:, :4], short),
}
rows = []
for name, (one, other) in found.items():
    off = checks.deviation(one, other)
    claim(off < 1e-5, name)
    rows.append((name, f"{off:.0e}"))
seen = checks.deviation(after[:, 4:], before[:, 4:])
claim(seen > 0.1, "the places that changed change")
table(rows, ("what is done, and compared", "difference"))

# %% [markdown]
# ## What we saw
#
# - Where one vector loses strings of 10 letters, a decoder that reads all states writes
#   most of them right; longer strings than it was trained on it does not.
# - On dates the weights lie on the part of the date that is being written.
# - Self-attention is a weighted mean with weights made of dot products; scaled, cut into
#   heads and masked it is torch's layer.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
nothing = torch.zeros(1, 3, dtype=torch.bool)
ours_nothing, _ = attend(torch.zeros(1, 3), values, nothing)
kept = ours_nothing.nan_to_num()

# %% tags=["solution-1-result"]
claim(bool(ours_nothing.isnan().all()), "a query that may look at nothing gets NaN")
claim(not kept.any(), "and zeros where NaN is replaced")
table(
    [(in_words(ours_nothing[0], ".0f"), in_words(kept[0], ".0f"))],
    ("attend", "repaired"),
)


# %% tags=["solution-2"]
class Sharpened(nn.Module):
    """Scores times a large factor, so that the softmax is nearly 1 at the largest."""

    def __init__(self, score: nn.Module, factor: float = 1000.0):
        super().__init__()
        self.score = score
        self.factor = factor

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        return self.factor * self.score(queries, keys)


hard = {}
for number in SEEDS:
    decoder = models["attention", number].decoder
    soft = decoder.score
    decoder.score = Sharpened(soft)
    hard[number] = exact(models["attention", number], unseen[8])
    decoder.score = soft

# %% tags=["solution-2-result"]
record_spread("hard", list(hard.values()))
words = "with the largest weight alone fewer strings are right, seeds apart"
claim(max(hard.values()) < min(at["attention", 8]), words)
rows = []
for number in SEEDS:
    rows.append((number, f"{at['attention', 8][number]:.2f}", f"{hard[number]:.2f}"))
table(rows, ("seed", "weighted mean", "largest weight only"))

# %% tags=["solution-3"]
by_last = {}
for length in (4, 6, 8):
    by_last[length] = []
    for number in SEEDS:
        model = models["attention", number]
        model.places = last_place
        by_last[length].append(exact(model, unseen[length]))
        model.places = real_places

# %% tags=["solution-3-result"]
rows = []
for length, values in by_last.items():
    trained = at["fixed vector", length]
    shown = [
        spread(found, ".2f") for found in (at["attention", length], values, trained)
    ]
    rows.append((length, *shown))
    if length < 8:
        words = f"fewer strings of {length} than by the network trained so, seeds apart"
        claim(max(values) < min(trained), words)
columns = ("attention", "the same, last state only", "trained with the last state only")
table(rows, ("length", *columns))

# %% tags=["solution-4"]
seed(102)
beyond = {}
for length in (14, 16, 20):
    longer = reversal(200, shortest=length, longest=length)
    beyond[length] = [exact(models["attention", number], longer) for number in SEEDS]

# %% tags=["solution-4-result"]
rows = [(length, spread(beyond[length], ".2f")) for length in beyond]
record_spread("beyond", beyond[14])
claim(
    max(beyond[14]) < min(at["attention", 12]) - 0.3, "at 14 it has fallen, seeds apart"
)
claim(max(beyond[16]) < 0.05, "hardly a string of 16 is right")
table(rows, ("length", "exact match by attention"))
