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
# # Sequence to sequence
#
# One network reads a string into a vector, a second one writes another string from it:
# how much fits through that vector, teacher forcing and scheduled sampling, greedy and
# beam search, and BLEU from its definition.
# The text to it is the [chapter](../chapters/seq2seq.rst), the paper is
# [Sutskever et al. 2014](https://arxiv.org/abs/1409.3215).

# %%
import copy
import math
import random
from collections import Counter
from itertools import product
from typing import NamedTuple

import matplotlib.pyplot as plt
import sacrebleu
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from workbench import claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, plots, text, training
from workbench.text import BEGIN, END, PAD

# %% [markdown]
# ## Strings to reverse
#
# Random strings of ten letters, 2 to 12 long, all lengths equally often. What is read and
# what is to be written have unequal lengths in a batch, so both are padded.

# %% tags=["batch"]
LETTERS = "abcdefghij"
VOCABULARY = text.Vocabulary([LETTERS])


class Batch(NamedTuple):
    """What is read, its lengths, and what is to be written, with BEGIN and END."""

    source: Tensor  # (B, S)
    lengths: Tensor  # (B,)
    target: Tensor  # (B, T)


def as_batch(read: list[str], wanted: list[str]) -> Batch:
    lengths = torch.tensor([len(string) for string in read])
    source = VOCABULARY.padded(read)
    target = VOCABULARY.padded(wanted, ends=True)
    return Batch(source.to(device), lengths.to(device), target.to(device))


# %% tags=["reversal"]
def random_strings(B: int, *, shortest: int = 2, longest: int = 12) -> list[str]:
    strings = []
    for _ in range(B):
        length = random.randint(shortest, longest)
        strings.append("".join(random.choices(LETTERS, k=length)))
    return strings


def reversal(B: int, **lengths: int) -> Batch:
    """Strings, and the same from the end."""
    strings = random_strings(B, **lengths)
    return as_batch(strings, [string[::-1] for string in strings])


# %% tags=["reversal-shown"]
seed(0)
batch = reversal(3, longest=5)
for name, numbers in (("read", batch.source), ("to be written", batch.target)):
    print(name, *(VOCABULARY.decode(row) for row in numbers))
    print(numbers.cpu())


# %% tags=["unrolled-drawing"]
def draw_seq2seq(axes) -> None:
    """An encoder over three letters, the vector, a decoder over four steps."""
    nodes = {}
    arrows = []
    vector = []
    read = ("a", "b", "c")
    fed = ("BEGIN", "c", "b", "a")
    written = ("c", "b", "a", "END")
    for step, letter in enumerate(read):
        x = 0.35 + 0.6 * step
        nodes[f"x{step}"] = diagrams.Node(x, 1.95, letter)
        nodes[f"h{step}"] = diagrams.Node(x, 1.2, f"$h_{step + 1}$", width=0.4)
        arrows.append((f"x{step}", f"h{step}"))
        if step:
            arrows.append((f"h{step - 1}", f"h{step}"))
    for step, letter in enumerate(fed):
        x = 2.65 + 0.66 * step
        nodes[f"y{step}"] = diagrams.Node(x, 1.95, letter)
        nodes[f"s{step}"] = diagrams.Node(x, 1.2, f"$s_{step + 1}$", width=0.4)
        nodes[f"w{step}"] = diagrams.Node(x, 0.55, written[step])
        arrows += [(f"y{step}", f"s{step}"), (f"s{step}", f"w{step}")]
        if step:
            arrows.append((f"s{step - 1}", f"s{step}"))
    vector.append(("h2", "s0"))
    nodes["reader"] = diagrams.Node(0.95, 0.12, "encoder", weight="bold")
    nodes["writer"] = diagrams.Node(3.64, 0.12, "decoder", weight="bold")
    nodes["v"] = diagrams.Node(2.1, 0.92, "$v$", colour=plots.COLOURS[1])
    diagrams.draw(axes, nodes, arrows, vector)


# %% tags=["unrolled-figure"] alt="Left, the encoder: three boxes h1, h2 and h3 in a row, joined by arrows; a, b and c go up into them from below. An orange arrow, v, leads from h3 to the right, to s1. Right, the decoder: four boxes s1 to s4 in a row; below them BEGIN, c, b and a go in; above them c, b, a and END come out."
axes = diagrams.sheet(2.2)
draw_seq2seq(axes)

# %% [markdown]
# ## Encoder and decoder
#
# The recurrent layer is handed in, so that the same classes make the small networks of
# this page and that of the paper.


# %% tags=["encoder"]
class Encoder(nn.Module):
    """Reads a sequence and returns the state behind its last symbol."""

    def __init__(self, V: int, rnn: nn.RNNBase):
        super().__init__()
        self.embed = nn.Embedding(V, rnn.input_size)
        self.rnn = rnn

    def forward(self, source: Tensor, lengths: Tensor):
        # (B, S), (B,) -> (layers, B, D), for an LSTM a pair of them
        how = {"batch_first": True, "enforce_sorted": False}
        packed = pack_padded_sequence(self.embed(source), lengths.cpu(), **how)
        _, state = self.rnn(packed)
        return state


# %% tags=["decoder"]
class Decoder(nn.Module):
    """Scores for the next symbol after each symbol read, from a state."""

    def __init__(self, V: int, rnn: nn.RNNBase):
        super().__init__()
        self.embed = nn.Embedding(V, rnn.input_size)
        self.rnn = rnn
        self.output = nn.Linear(rnn.hidden_size, V)

    def forward(self, before: Tensor, state):
        # (B, T) -> scores (B, T, V), state
        h, state = self.rnn(self.embed(before), state)
        return self.output(h), state


# %% tags=["seq2seq"]
class Seq2Seq(nn.Module):
    """Scores of each next symbol of a target, given what stands before it.

    Sutskever et al. 2014, section 2; Cho et al. 2014, section 2.2.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, source: Tensor, lengths: Tensor, before: Tensor) -> Tensor:
        # (B, S), (B,), (B, T) -> (B, T, V)
        scores, _ = self.decoder(before, self.encoder(source, lengths))
        return scores


def small(d_model: int, *, d_embed: int = 32) -> Seq2Seq:
    """One GRU reads, one writes."""
    V = len(VOCABULARY)
    encoder = Encoder(V, nn.GRU(d_embed, d_model, batch_first=True))
    decoder = Decoder(V, nn.GRU(d_embed, d_model, batch_first=True))
    return Seq2Seq(encoder, decoder)


# %% tags=["squeezed"]
class Squeezed(nn.Module):
    """An encoder whose state passes through k numbers on its way to the decoder."""

    def __init__(self, encoder: Encoder, k: int):
        super().__init__()
        d_model = encoder.rnn.hidden_size
        self.encoder = encoder
        self.narrow = nn.Linear(d_model, k)
        self.widen = nn.Linear(k, d_model)

    def forward(self, source: Tensor, lengths: Tensor) -> Tensor:
        v = self.narrow(self.encoder(source, lengths))  # (1, B, k)
        return self.widen(v)  # (1, B, D)


def squeezed(d_model: int, k: int) -> Seq2Seq:
    model = small(d_model)
    return Seq2Seq(Squeezed(model.encoder, k), model.decoder)


# %% tags=["seq2seq-shape"]
model = small(64).to(device)
model(batch.source, batch.lengths, batch.target[:, :-1]).shape


# %% tags=["loss"]
def loss_of(scores: Tensor, target: Tensor) -> Tensor:
    """Mean of -log p of the symbols behind BEGIN, END included; padding has no part.

    scores (B, T - 1, V), target (B, T)
    """
    wanted = target[:, 1:].flatten()
    return F.cross_entropy(scores.flatten(0, 1), wanted, ignore_index=PAD)


# %% tags=["forced"]
def teacher_forced(model: Seq2Seq, batch: Batch, share: float) -> Tensor:
    """Scores (B, T - 1, V) where the decoder always reads the true symbols."""
    return model(batch.source, batch.lengths, batch.target[:, :-1])


# %% tags=["training"]
SEEDS = (0, 1, 2)
STEPS = 250


def train(model: Seq2Seq, draw, *, steps: int = STEPS, scores_of=teacher_forced):
    """Adam on fresh batches of 64; the rate rises to 0.008 and falls."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.008)
    schedule = training.one_cycle(optimizer, steps, rising=0.1)
    for step in training.progress(range(steps), "steps"):
        batch = draw(64)
        scores = scores_of(model, batch, 1 - step / steps)
        loss = loss_of(scores, batch.target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


# %% [markdown]
# ## Greedy search
#
# The most probable symbol is written and read again, until END.


# %% tags=["greedy"]
@torch.no_grad()
def greedy(model: Seq2Seq, source: Tensor, lengths: Tensor, steps: int) -> Tensor:
    """The most probable symbol at each step (B, steps), padding behind END."""
    state = model.encoder(source, lengths)
    last = torch.full_like(source[:, :1], BEGIN)
    written = []
    for _ in range(steps):
        over = (last == END) | (last == PAD)
        scores, state = model.decoder(last, state)
        last = scores.argmax(-1).masked_fill(over, PAD)
        written.append(last)
    return torch.cat(written, dim=1)


# %% tags=["exact"]
def exact(written: Tensor, target: Tensor) -> float:
    """Share of strings whose symbols are all right, END included."""
    return (written == target[:, 1:]).all(1).double().mean().item()


# %% [markdown]
# ## How much fits through the vector
#
# A vector of 64 numbers, and the same networks with a vector squeezed to 8; three seeds,
# which begin with the same weights in both GRUs and see the same strings.

# %% tags=["headline"]
models = {}
for number in SEEDS:
    seed(number)
    models[64, number] = train(small(64).to(device), reversal)
    seed(number)
    models[8, number] = train(squeezed(64, 8).to(device), reversal)

# %% tags=["by-length"]
LENGTHS = range(2, 13)
seed(100)
unseen = {}
for length in LENGTHS:
    unseen[length] = reversal(300, shortest=length, longest=length)


def by_length(model: Seq2Seq, batches: dict[int, Batch]) -> Tensor:
    """Exact match for each length."""
    shares = []
    for length, (source, lengths, target) in batches.items():
        shares.append(exact(greedy(model, source, lengths, length + 1), target))
    return torch.tensor(shares)


right = {run: by_length(model, unseen) for run, model in models.items()}

# %% tags=["lengths-figure"] alt="Share of strings written without a mistake against their length, 2 to 12, two bands of three seeds. Both begin above 0.8 and end at 0. That of 8 numbers falls between lengths 2 and 8; that of 64 numbers lies above it and falls between lengths 4 and 10."
_, axes = plt.subplots()
for width, colour in ((64, plots.COLOURS[0]), (8, plots.COLOURS[1])):
    runs = torch.stack([right[width, number] for number in SEEDS])
    plots.seed_band(axes, LENGTHS, runs, colour)
    x, y = {64: (7.3, 0.5), 8: (2.1, 0.25)}[width]
    axes.text(x, y, f"{width} numbers", color=colour)
axes.set(xlabel="length of the string", ylabel="exact match", ylim=(-0.03, 1.03))
axes.set_xticks(range(2, 13, 2))
axes.set_axisbelow(True)


# %% tags=["letters"]
@torch.no_grad()
def letters_right(model: Seq2Seq, batch: Batch, forced: bool) -> Tensor:
    """Share right at each place (T - 1,), after the true letters or its own.

    The strings have one length, so that there is no padding.
    """
    if forced:
        written = teacher_forced(model, batch, 1.0).argmax(-1)
    else:
        steps = batch.target.shape[1] - 1
        written = greedy(model, batch.source, batch.lengths, steps)
    return (written == batch.target[:, 1:]).double().mean(0).cpu()


# %% tags=["lengths-result"]
at = {}
rows = []
single = {}
for width in (8, 64):
    for length in (4, 6, 8, 10, 12):
        values = [right[width, number][length - 2].item() for number in SEEDS]
        record_spread(f"exact.{width}.{length}", values)
        at[width, length] = values
        alone = []
        for number in SEEDS:
            places = letters_right(models[width, number], unseen[length], True)
            alone.append(places[:-1].mean().item())
        single[width, length] = alone
        record_spread(f"letter.{width}.{length}", alone)
        rows.append((width, length, spread(values, ".2f"), spread(alone, ".2f")))
columns = ("numbers in the vector", "length", "exact match", "next letter right")
table(rows, columns)

# %% tags=["lengths-claims"]
for width in (8, 64):
    for short, long in ((4, 6), (6, 8)):
        words = f"{width}: exact match falls from {short} to {long}, seeds apart"
        claim(min(at[width, short]) > max(at[width, long]) + 0.05, words)
    words = f"{width}: a single letter is harder in longer strings, seeds apart"
    claim(min(single[width, 4]) > max(single[width, 8]), words)
    claim(min(single[width, 8]) > max(single[width, 12]), words)
claim(min(at[64, 8]) > max(at[64, 10]) + 0.05, "64: and from 8 to 10")
for length in (4, 6, 8):
    words = f"through 64 numbers more strings of {length} are right than through 8"
    claim(min(at[64, length]) > max(at[8, length]) + 0.03, words)
claim(max(at[64, 12]) < 0.03, "hardly a string of 12 is right")
record("chance.12", min(single[64, 4]) ** 12)
words = "if a letter were as easy as at length 4, most strings of 12 would be right"
claim(min(single[64, 4]) ** 12 > 0.5, words)
parameters = counting.parameters(models[64, 0])
record("small.parameters", parameters)
record("steps", STEPS)
record("strings", 64 * STEPS)

# %% [markdown]
# ## From which end to read
#
# To copy a string from its front is to reverse one that was read from its end. The mean
# number of steps between reading a letter and writing it is the same.


# %% tags=["copying"]
def copying(B: int, **lengths: int) -> Batch:
    """Strings, and the same again."""
    strings = random_strings(B, **lengths)
    return as_batch(strings, strings)


# %% tags=["copying-run"]
seed(100)
to_copy = {}
for length in (4, 6, 8):
    to_copy[length] = copying(300, shortest=length, longest=length)
copied = {}
for number in SEEDS:
    seed(number)
    copied[number] = by_length(train(small(64).to(device), copying), to_copy)

# %% tags=["order-result"]
rows = []
for place, length in enumerate(to_copy):
    forwards = [copied[number][place].item() for number in SEEDS]
    record_spread(f"forwards.{length}", forwards)
    backwards = at[64, length]
    rows.append((length, spread(forwards, ".2f"), spread(backwards, ".2f")))
    if length < 8:
        words = f"read from the end, more strings of {length} are right, seeds apart"
        claim(min(backwards) > max(forwards) + 0.03, words)
table(rows, ("length", "read from the front", "read from the end"))

# %% tags=["distances"]
n = 6
same_order = [n for k in range(1, n + 1)]
from_the_end = [2 * (n - k) + 1 for k in range(1, n + 1)]
claim(sum(same_order) == sum(from_the_end), "the mean distance is the same")

# %% [markdown]
# ## The true letters, or its own
#
# In training the decoder reads the true letters, in use its own. How often is the next
# letter right, by its place in strings of 12?

# %% tags=["places"]
by_place = {}
for number in SEEDS:
    for forced in (True, False):
        found = letters_right(models[64, number], unseen[12], forced)
        by_place[forced, number] = found[:-1]

# %% tags=["places-figure"] alt="Share of letters right against their place in what is written, 1 to 12. Both bands begin together near 1. After the true letters the band falls to somewhat above a half, and below it at the last place; after its own letters it falls on to about a quarter, and to a tenth at the last place."
_, axes = plt.subplots()
ends = {}
for forced, name in ((True, "the true ones"), (False, "its own")):
    runs = torch.stack([by_place[forced, number] for number in SEEDS])
    colour = plots.COLOURS[0 if forced else 1]
    ends[name] = plots.seed_band(axes, range(1, 13), runs, colour)
axes.set(xlabel="place of the letter", ylabel="letters right", ylim=(0, 1.03))
axes.set_xticks(range(1, 13))
plots.label_ends(axes, ends)
axes.set_axisbelow(True)


# %% tags=["scheduled"]
def scheduled(model: Seq2Seq, batch: Batch, share: float) -> Tensor:
    """Scores (B, T - 1, V) where the decoder reads a true symbol with chance `share`.

    Else it reads one drawn from its own scores. Bengio et al. 2015, section 2.4.
    """
    state = model.encoder(batch.source, batch.lengths)
    before = batch.target[:, :1]
    found = []
    for true in batch.target[:, 1:].split(1, dim=1):  # (B, 1)
        scores, state = model.decoder(before, state)
        found.append(scores)
        drawn = torch.multinomial(scores[:, 0].detach().softmax(-1), 1)
        keep = torch.rand(true.shape, device=true.device) < share
        before = torch.where(keep, true, drawn)
    return torch.cat(found, dim=1)


# %% tags=["scheduled-run"]
seed(0)
sampled = train(small(64).to(device), reversal, scores_of=scheduled)
of_sampled = by_length(sampled, unseen)

# %% tags=["scheduled-result"]
gap = {"teacher forcing": [], "scheduled sampling": []}
for name, networks in (
    ("teacher forcing", [models[64, number] for number in SEEDS]),
    ("scheduled sampling", [sampled]),
):
    for network in networks:
        true = letters_right(network, unseen[12], True)[:-1].mean().item()
        own = letters_right(network, unseen[12], False)[:-1].mean().item()
        gap[name].append(true - own)
sampled_at = of_sampled[4].item()
record_spread("gap.forced", gap["teacher forcing"])
record("gap.scheduled", gap["scheduled sampling"][0])
record("scheduled.6", sampled_at)
rows = [
    (
        "teacher forcing",
        spread(gap["teacher forcing"], ".2f"),
        spread(at[64, 6], ".2f"),
    ),
    ("scheduled sampling", f"{gap['scheduled sampling'][0]:.2f}", f"{sampled_at:.2f}"),
]
table(rows, ("training", "gap at length 12", "exact match at length 6"))

# %% tags=["places-claims"]
last = {}
for forced in (True, False):
    last[forced] = [by_place[forced, n][8:].mean().item() for n in SEEDS]
record_spread("late.forced", last[True])
record_spread("late.free", last[False])
words = "after its own letters the later ones are less often right, seeds apart"
claim(min(last[True]) > 1.3 * max(last[False]), words)
words = "late letters: about a half after the true ones, less than 0.3 after its own"
claim(min(last[True]) > 0.45 and max(last[False]) < 0.3, words)
words = "the first letter is the same with both"
for number in SEEDS:
    claim(by_place[True, number][0] == by_place[False, number][0], words)
small_gap = gap["scheduled sampling"][0]
claim(small_gap < min(gap["teacher forcing"]), "scheduled sampling narrows the gap")
words = "with scheduled sampling fewer strings of 6 are right than in any other run"
claim(sampled_at < min(at[64, 6]), words)

# %% [markdown]
# ## Beam search
#
# Keep the k most probable beginnings in place of one.


# %% tags=["beam"]
@torch.no_grad()
def beam_search(model: Seq2Seq, source: Tensor, lengths: Tensor, steps: int, k: int):
    """The k most probable strings found (B, k, steps), best first, and their log p.

    For a GRU, whose state is one tensor.
    """
    B = len(source)
    state = model.encoder(source, lengths).repeat_interleave(k, dim=1)
    written = torch.full((B * k, 1), BEGIN, device=source.device)
    total = torch.full((B, k), -math.inf, device=source.device)
    total[:, 0] = 0  # at first all beams are the same, so one counts
    first = k * torch.arange(B, device=source.device).unsqueeze(1)  # rows of a string
    for _ in range(steps):
        last = written[:, -1:]
        scores, state = model.decoder(last, state)
        gain = only_padding(scores[:, 0].log_softmax(-1), (last == END) | (last == PAD))
        V = gain.shape[1]
        candidates = total.unsqueeze(2) + gain.view(B, k, V)
        total, best = candidates.flatten(1).topk(k)  # (B, k)
        rows = (first + best // V).flatten()  # the beam that each one continues
        written = torch.cat((written[rows], (best % V).view(-1, 1)), dim=1)
        state = state[:, rows]
    return written[:, 1:].view(B, k, steps), total


def only_padding(gain: Tensor, over: Tensor) -> Tensor:
    """Where a string is over, padding costs nothing and the rest is impossible."""
    padding = torch.full_like(gain, -math.inf)
    padding[:, PAD] = 0
    return torch.where(over, padding, gain)


# %% tags=["tree-model"]
CHANCES = {  # 3 and 4 are a and b, one of which comes first; 5 and 6 are x and y
    (BEGIN, 3): 0.6,
    (BEGIN, 4): 0.4,
    (3, 5): 0.5,
    (3, 6): 0.5,
    (4, 5): 0.9,
    (4, 6): 0.1,
    (5, END): 1.0,
    (6, END): 1.0,
}


class Tree(nn.Module):
    """A decoder whose next symbol depends on the last one alone, by CHANCES."""

    def __init__(self):
        super().__init__()
        chances = torch.zeros(7, 7)
        for (last, following), chance in CHANCES.items():
            chances[last, following] = chance
        self.register_buffer("scores", chances.log())

    def forward(self, before: Tensor, state):
        return self.scores[before], state


class NoSource(nn.Module):
    """An encoder that has read nothing."""

    def forward(self, source: Tensor, lengths: Tensor) -> Tensor:
        return torch.zeros(1, len(source), 1)


# %% tags=["tree-run"]
tree = Seq2Seq(NoSource(), Tree())
nothing = (torch.zeros(1, 1, dtype=torch.long), torch.ones(1))
by_greedy = greedy(tree, *nothing, 3)[0].tolist()
by_beam, log_p = beam_search(tree, *nothing, 3, 2)
words = "greedy search takes a, the beam of two finds b x"
claim(by_greedy[0] == 3 and by_beam[0, 0].tolist() == [4, 5, END], words)
claim(abs(log_p[0, 0].exp() - 0.36) < 1e-6, "its probability is 0.36")
claim(abs(log_p[0, 1].exp() - 0.30) < 1e-6, "the best that begins with a has 0.30")

# %% tags=["tree-figure"] alt="A tree from left to right. From the start to a, 0.6, and to b, 0.4. From a to a x, 0.30, and a y, 0.30; from b to b x, 0.36, and b y, 0.04. The path of b to b x is orange."
axes = diagrams.sheet(1.9)
nodes = {
    "start": diagrams.Node(0.6, 0.95, "BEGIN"),
    "a": diagrams.Node(2.1, 0.5, "a: 0.6", width=0.8),
    "b": diagrams.Node(2.1, 1.4, "b: 0.4", width=0.8),
    "ax": diagrams.Node(4.0, 0.2, "a x: 0.30", width=1.0),
    "ay": diagrams.Node(4.0, 0.68, "a y: 0.30", width=1.0),
    "bx": diagrams.Node(4.0, 1.2, "b x: 0.36", width=1.0),
    "by": diagrams.Node(4.0, 1.68, "b y: 0.04", width=1.0),
}
arrows = []
found = []
for start, ends in (("start", "ab"), ("a", ("ax", "ay")), ("b", ("bx", "by"))):
    for end in ends:
        left = nodes[start].x + nodes[start].span / 2
        right_side = nodes[end].x - nodes[end].span / 2
        path = ((left, nodes[start].y), (right_side, nodes[end].y))
        (found if end in ("b", "bx") else arrows).append(path)
diagrams.draw(axes, nodes, arrows, found)


# %% tags=["log-p"]
@torch.no_grad()
def log_probability(model: Seq2Seq, batch: Batch) -> Tensor:
    """Log p of each wanted string (B,), END included."""
    gain = teacher_forced(model, batch, 1.0).log_softmax(-1)
    wanted = batch.target[:, 1:].unsqueeze(2)  # (B, T - 1, 1)
    each = gain.gather(2, wanted).squeeze(2)
    return each.masked_fill(batch.target[:, 1:] == PAD, 0).sum(1)


# %% tags=["beams"]
BEAMS = (1, 2, 5, 10)
seed(103)
eights = reversal(1000, shortest=8, longest=8)
beams = {}
for number in SEEDS:
    model = models[64, number]
    of_wanted = log_probability(model, eights)
    for k in BEAMS:
        # two steps more than the strings need: some answers are longer
        written, total = beam_search(model, eights.source, eights.lengths, 11, k)
        found = written[:, 0]
        wanted = F.pad(eights.target, (0, 2))
        missed = (of_wanted > total[:, 0] + 1e-4).double().mean().item()
        mean = total[:, 0].mean().item()
        beams[k, number] = (exact(found, wanted), mean, missed)

# %% tags=["beams-result"]
rows = []
for k in BEAMS:
    shares, means, missed = zip(*(beams[k, number] for number in SEEDS))
    record_spread(f"beam.{k}.exact", shares)
    record_spread(f"beam.{k}.missed", missed)
    columns = (spread(shares, ".3f"), spread(means, ".2f"), spread(missed, ".3f"))
    rows.append((k, *columns))
table(rows, ("beams", "exact match", "mean log p", "wanted string has more"))

# %% tags=["beams-claims"]
for number in SEEDS:
    one, two, five, ten = (beams[k, number] for k in BEAMS)
    claim(one[0] < two[0], "two beams find more right strings, with each seed")
    claim(one[0] < five[0], "five beams find more than one, with each seed")
    claim(one[1] < two[1] < five[1] <= ten[1] + 1e-6, "and more probable ones")
    claim(five[2] < 0.03 < one[2], "with five hardly a wanted string is overlooked")
    claim(five[0] < 0.4, "most strings are wrong with five beams, too")
    claim(abs(five[0] - ten[0]) < 0.03, "ten beams hardly change it")
    of_greedy = greedy(models[64, number], eights.source, eights.lengths, 9)
    words = "one beam is right where greedy search is"
    claim(abs(one[0] - exact(of_greedy, eights.target)) < 1e-9, words)

# %% [markdown]
# ## Checked
#
# Padding, one pass against step by step, one beam against greedy search, and a beam that
# is wide enough for every string against all strings.

# %% tags=["padding"]
seed(1)
mixed = reversal(8)
network = copy.deepcopy(models[64, 0])
padded = {}
for more in (0, 7):
    network.zero_grad()
    wider = (F.pad(mixed.source, (0, more)), mixed.lengths)
    target = F.pad(mixed.target, (0, more))
    state = network.encoder(*wider)
    loss = loss_of(network(*wider, target[:, :-1]), target)
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in network.parameters()])
    written = greedy(network, *wider, 13)
    padded[more] = (state, loss, gradients, written.double())
every = torch.full_like(mixed.lengths, mixed.source.shape[1])
careless = network.encoder(mixed.source, every)

# %% tags=["stepwise"]
longest = mixed.target.shape[1] - 1
whole = teacher_forced(network, mixed, 1.0).detach()
stepped = scheduled(network, mixed, 1.0).detach()
one_beam, of_beam = beam_search(network, *mixed[:2], longest, 1)
by_greedy = greedy(network, *mixed[:2], longest)

# %% tags=["enumerated"]
ab = Batch(*reversal(1, shortest=2, longest=2))
endings = torch.tensor(list(product(range(13), repeat=3)))  # all strings of 3 symbols
clean = []
for row in endings.tolist():
    open_ended = END not in row[:2] and PAD not in row[:2]
    clean.append(open_ended)
endings = endings[clean].to(device)
begins = torch.full_like(endings[:, :1], BEGIN)
many = len(endings)
before = torch.cat((begins, endings[:, :-1]), dim=1)
scores = network(ab.source.expand(many, -1), ab.lengths.expand(many), before)
each = scores.log_softmax(-1).gather(2, endings.unsqueeze(2)).squeeze(2)
in_all = each.sum(1).detach()  # log p of every string that is not over earlier
strings, totals = beam_search(network, ab.source, ab.lengths, 3, 13**3)
lasting = totals[0].isfinite()
for place in (0, 1):
    lasting &= (strings[0, :, place] != END) & (strings[0, :, place] != PAD)

# %% tags=["checks-result"]
rows = []
for place, name in enumerate(("state", "loss", "gradients", "letters written")):
    difference = checks.deviation(padded[7][place], padded[0][place])
    claim(difference < 1e-6, f"padding changes nothing: {name}")
    rows.append((name, "7 columns of padding more", f"{difference:.1e}"))
wrong = checks.deviation(careless, padded[0][0].detach())
claim(wrong > 0.1, "an encoder that reads the padding has another state")
record("careless", wrong)
rows.append(("state", "padding read as symbols", f"{wrong:.1e}"))
difference = checks.deviation(stepped, whole)
claim(difference < 1e-5, "step by step is one pass")
rows.append(("scores", "step by step, one pass", f"{difference:.1e}"))
difference = checks.deviation(one_beam[:, 0].double(), by_greedy.double())
claim(difference == 0, "one beam is greedy search")
rows.append(("letters written", "one beam, greedy search", f"{difference:.1e}"))
sorted_all = in_all.sort(descending=True).values
difference = checks.deviation(totals[0, lasting], sorted_all)
claim(difference < 1e-5, "a beam of all strings is the list of all strings")
rows.append(("log p", "beam of all, all strings", f"{difference:.1e}"))
record("enumerated", many)
table(rows, ("what", "compared", "largest difference"))

# %% [markdown]
# ## The size of the paper
#
# Sutskever et al. 2014, section 3.4: four layers of 1,000 LSTM units on each side, vectors
# of 1,000 numbers for 160,000 English and 80,000 French words.

# %% tags=["published"]
with torch.device("meta"):
    size = {"num_layers": 4, "batch_first": True}
    encoder = Encoder(160_000, nn.LSTM(1000, 1000, **size))
    decoder = Decoder(80_000, nn.LSTM(1000, 1000, **size))
    published = Seq2Seq(encoder, decoder)
    word = torch.empty(1, 1, 1000)

# %% tags=["count"]
parts = {
    "vectors of the English words": (encoder.embed, None),
    "encoder, 4 layers": (encoder.rnn, word),
    "vectors of the French words": (decoder.embed, None),
    "decoder, 4 layers": (decoder.rnn, word),
    "scores of the French words": (decoder.output, word),
}
rows = []
total_macs = 0
weights = 0
for name, (part, x) in parts.items():
    found = counting.parameters(part)
    macs = counting.macs(part, x) if x is not None else 0
    total_macs += macs
    for parameter_name, parameter in part.named_parameters():
        weights += 0 if "bias" in parameter_name else parameter.numel()
    rows.append((name, found, macs))
everything = counting.parameters(published)
rows.append(("in all", everything, total_macs))
record("published.parameters", everything)
record("published.weights", weights)
record("published.macs", total_macs)
claim(weights == 384_000_000, "the weights are the 384 M of the paper, section 3.4")
recurrent = rows[1][2] + rows[3][2]
claim(recurrent == 64_000_000, "of them 64 M in the recurrent layers, as it says")
claim(rows[0][1] + rows[2][1] > everything / 2, "most parameters are of the words")
claim(rows[4][2] > total_macs / 2, "more than half of the MACs are scores")
table(rows, ("part", "parameters", "MACs a word"))

# %% [markdown]
# ## BLEU
#
# Runs of one to four words that also stand in a reference, each as often as there.


# %% tags=["counts"]
def counted(words: list[str], n: int) -> Counter:
    """How often each run of n words occurs."""
    return Counter(zip(*(words[k:] for k in range(n))))


def matched(words: list[str], references: list[list[str]], n: int) -> int:
    """Runs that stand in a reference, each at most as often as in one reference."""
    most = Counter()
    for reference in references:
        most |= counted(reference, n)  # the larger count of each run
    return (counted(words, n) & most).total()  # the smaller count of each run


# %% tags=["bleu"]
class Bleu(NamedTuple):
    """The score, 0 to 100, and what it is made of."""

    score: float
    precisions: list[float]
    brevity: float


def bleu(found: list[list[str]], wanted: list[list[list[str]]]) -> Bleu:
    """Of translations, each with its references; Papineni et al. 2002, section 2.3."""
    precisions = []
    for n in (1, 2, 3, 4):
        pairs = zip(found, wanted)
        right = sum(matched(words, references, n) for words, references in pairs)
        runs = sum(max(len(words) - n + 1, 0) for words in found)
        precisions.append(right / max(runs, 1))
    length = sum(map(len, found))
    closest = sum(map(closest_length, found, wanted))
    brevity = min(1.0, math.exp(1 - closest / max(length, 1)))
    if min(precisions) == 0:
        return Bleu(0.0, precisions, brevity)
    mean = sum(map(math.log, precisions)) / 4
    return Bleu(100 * brevity * math.exp(mean), precisions, brevity)


def closest_length(words: list[str], references: list[list[str]]) -> int:
    """The length of the reference nearest in length, the shorter of two as near."""
    lengths = [len(reference) for reference in references]
    return min(lengths, key=lambda length: (abs(length - len(words)), length))


# %% tags=["sacrebleu"]
def by_sacrebleu(found: list[list[str]], wanted: list[list[list[str]]]) -> float:
    """The same by sacrebleu, words as they are, nothing smoothed."""
    lines = [" ".join(words) for words in found]
    streams = []  # the first reference of each, the second of each, and so on
    for references in zip(*wanted):
        streams.append([" ".join(words) for words in references])
    how = {"tokenize": "none", "smooth_method": "none", "force": True}
    return sacrebleu.corpus_bleu(lines, streams, **how).score


# %% tags=["damaged"]
seed(0)
verses = [line.split() for line in text.english().test.split("\n")][:300]
references = [[verse] for verse in verses]
shuffled = [random.sample(verse, len(verse)) for verse in verses]
thinned = []
for verse in verses:
    thinned.append([word for place, word in enumerate(verse) if place % 5 != 4])
cut = [verse[: len(verse) * 2 // 3] for verse in verses]
doubled = [verse + verse for verse in verses]

# %% tags=["bleu-result"]
MAT = ["the", "cat", "sat", "on", "the", "mat"]
cases = {}
for line in ("the cat sat on a mat", "the the the the the the", "the cat sat on"):
    cases[line] = ([line.split()], [[MAT]])
cases["300 verses"] = (verses, references)
cases["each fifth word left out"] = (thinned, references)
cases["the last third cut off"] = (cut, references)
cases["each verse twice"] = (doubled, references)
cases["words in random order"] = (shuffled, references)
rows = []
scored = {}
for name, (found, wanted) in cases.items():
    scored[name] = bleu(found, wanted)
    reference = by_sacrebleu(found, wanted)
    same = abs(scored[name].score - reference) < 1e-9
    claim(same, f"BLEU is that of sacrebleu: {name}")
    shares = [f"{share:.2f}" for share in scored[name].precisions]
    last_two = (f"{scored[name].score:.1f}", f"{reference:.1f}")
    rows.append((name, *shares, f"{scored[name].brevity:.2f}", *last_two))
table(rows, ("found", "p1", "p2", "p3", "p4", "brevity", "BLEU", "sacrebleu"))

# %% tags=["bleu-claims"]
first = scored["the cat sat on a mat"]
claim(abs(first.score - 100 * (1 / 12) ** 0.25) < 1e-9, "by hand the root of 1/12")
record("bleu.mat", first.score)
claim(scored["300 verses"].score > 100 - 1e-9, "the verses themselves have 100")
order = scored["words in random order"]
claim(order.precisions[0] == 1, "in random order every word is right")
record("bleu.random", order.score)
claim(order.score < 10, "and the score is low")
third = scored["the last third cut off"]
claim(min(third.precisions) == 1 and third.brevity < 0.7, "only brevity sees the cut")
record("bleu.cut", third.score)
record("bleu.cut.brevity", third.brevity)
record("bleu.twice", scored["each verse twice"].score)
claim(scored["each verse twice"].brevity == 1, "what is too long is not brief")

# %% [markdown]
# ## What the vector holds
#
# A linear layer is fitted to find each letter of strings of 10 in the vector.


# %% tags=["probe"]
@torch.no_grad()
def probe(model: Seq2Seq, train_part: Batch, test_part: Batch) -> Tensor:
    """Share of letters that a linear layer reads off the vector, by place (S,).

    Least squares, one layer a place, fitted on one part, measured on the other.
    """
    vectors = []
    for source, lengths, _ in (train_part, test_part):
        vector = model.encoder(source, lengths)[-1]
        vectors.append(F.pad(vector, (0, 1), value=1.0).double().cpu())  # and a bias
    shares = []
    for place in range(train_part.source.shape[1]):
        letters = F.one_hot(train_part.source[:, place].cpu()).double()
        weights = torch.linalg.lstsq(vectors[0], letters).solution
        read = (vectors[1] @ weights).argmax(1)
        right = read == test_part.source[:, place].cpu()
        shares.append(right.double().mean())
    return torch.stack(shares)


# %% tags=["probe-run"]
seed(101)
tens = (
    reversal(3000, shortest=10, longest=10),
    reversal(1000, shortest=10, longest=10),
)
probed = {}
for number in SEEDS:
    probed["trained", number] = probe(models[64, number], *tens)
    seed(number)
    probed["untrained", number] = probe(small(64).to(device), *tens)

# %% tags=["probe-figure"] alt="Share of letters read off the vector against their place in the string, 1 to 10. The untrained band rises from near the dotted line of chance at place 1, ever more steeply, to 1 at place 10, the letter read last. The trained band lies well above it at the first places and is level there; it meets the other at place 6, is below it at place 9, and is 1 at place 10, too."
_, axes = plt.subplots()
for kind, colour in (("trained", plots.COLOURS[0]), ("untrained", plots.COLOURS[1])):
    runs = torch.stack([probed[kind, number] for number in SEEDS])
    plots.seed_band(axes, range(1, 11), runs, colour)
    how = {"textcoords": "offset points", "color": colour}
    offset = {"trained": 10, "untrained": -20}[kind]
    axes.annotate(kind, (5, runs.mean(0)[4]), (-5, offset), **how)
axes.axhline(0.1, color=plots.QUIET, linestyle=":")
axes.set(xlabel="place of the letter", ylabel="letters found", ylim=(0, 1.03))
axes.set_xticks(range(1, 11))
axes.set_axisbelow(True)

# %% tags=["probe-claims"]
first = {}
for kind in ("trained", "untrained"):
    newest = [probed[kind, number][9].item() for number in SEEDS]
    first[kind] = [probed[kind, number][:4].mean().item() for number in SEEDS]
    record_spread(f"probe.{kind}.newest", newest)
    record_spread(f"probe.{kind}.first", first[kind])
    claim(min(newest) > 0.95, f"{kind}: the letter read last is there")
words = "training keeps more of the first four letters, seeds apart"
claim(min(first["trained"]) > max(first["untrained"]) + 0.05, words)
ninth = {}
for kind in ("trained", "untrained"):
    ninth[kind] = [probed[kind, number][8].item() for number in SEEDS]
words = "at place 9 it is the other way round, seeds apart"
claim(max(ninth["trained"]) < min(ninth["untrained"]) - 0.05, words)
claim(max(first["trained"]) < 0.5, "most of them are not found, for a linear layer")

# %% [markdown]
# ## What we saw
#
# - Through one vector short strings come back whole and long ones do not; where the fall
#   lies depends on the size of the vector, and on how long the network was trained.
# - Read from the end, the first letters to be written are the last ones read, and more
#   strings are right, though the mean distance is the same.
# - Beam search finds what greedy search overlooks; what is wrong with five beams is
#   nearly always what the network thinks more probable than the wanted string.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
needed = 12 * math.log2(len(LETTERS))
available = 64 * 32

# %% tags=["solution-1-result"]
record("bits.needed", needed)
record("bits.there", available)
table([(f"{needed:.1f}", available)], ("bits of a string of 12", "bits of 64 numbers"))

# %% tags=["solution-2"]
seed(10)
longer = train(copy.deepcopy(models[64, 0]), reversal)
of_longer = by_length(longer, unseen)

# %% tags=["solution-2-result"]
rows = []
for length in (4, 6, 8, 10, 12):
    value = of_longer[length - 2].item()
    record(f"longer.{length}", value)
    rows.append((length, spread(at[64, length], ".2f"), f"{value:.2f}"))
for length in (6, 8):
    words = f"trained once more, more strings of {length} are right"
    claim(of_longer[length - 2].item() > max(at[64, length]) + 0.1, words)
claim(of_longer[-1] < of_longer[2] / 3, "at 12 still far fewer than at 4")
table(rows, ("length", f"{STEPS} steps", f"{STEPS} steps more"))

# %% tags=["solution-3"]
seed(102)
long_ones = {}
for length in (14, 16, 20):
    long_ones[length] = reversal(300, shortest=length, longest=length)
beyond = {}
letters_written = []
for number in SEEDS:
    model = models[64, number]
    beyond[number] = by_length(model, long_ones)
    twenty = long_ones[20]
    written = greedy(model, twenty.source, twenty.lengths, 21)
    letters_written.append((written > END).double().sum(1).mean().item())

# %% tags=["solution-3-result"]
largest = max(beyond[number].max().item() for number in SEEDS)
claim(largest == 0, "none of the longer strings is right")
record_spread("written", letters_written)
claim(max(letters_written) < 16, "what is written for 20 letters is too short")
rows = [(20, spread(letters_written, ".1f"))]
table(rows, ("letters to write", "mean letters written"))

# %% tags=["solution-4"]
letter_bleu = {}
for number in SEEDS:
    written = greedy(models[64, number], eights.source, eights.lengths, 9)
    found = [list(VOCABULARY.decode(row)) for row in written]
    wanted = [[list(VOCABULARY.decode(row))] for row in eights.target]
    letter_bleu[number] = bleu(found, wanted)

# %% tags=["solution-4-result"]
rows = []
for number in SEEDS:
    score = letter_bleu[number]
    shares = [f"{share:.2f}" for share in score.precisions]
    one = beams[1, number][0]
    rows.append((number, f"{one:.2f}", *shares, f"{score.score:.1f}"))
    words = "BLEU is larger than the share of exact strings"
    claim(score.score > 100 * one, words)
record_spread("bleu.letters", [score.score for score in letter_bleu.values()])
table(rows, ("seed", "exact match", "p1", "p2", "p3", "p4", "BLEU"))
