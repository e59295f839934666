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
# # Positional encoding
#
# Attention does not know where a token stands. Six ways to tell it, each in a few lines,
# five of them beside a library, and a reader that says which of two tokens comes first.
# The text to it is the [chapter](../chapters/positional_encoding.rst), the papers are
# [Vaswani et al. 2017](https://arxiv.org/abs/1706.03762), section 3.5, and those named
# at each class.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.bloom.configuration_bloom import BloomConfig
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.roformer.configuration_roformer import RoFormerConfig
from transformers.models.roformer.modeling_roformer import RoFormerSelfAttention
from transformers.models.roformer.modeling_roformer import (
    RoFormerSinusoidalPositionalEmbedding,
)
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.wav2vec2_bert.configuration_wav2vec2_bert import (
    Wav2Vec2BertConfig,
)
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import (
    Wav2Vec2BertSelfAttention,
)

from workbench import claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, plots, training

# %% [markdown]
# ## Attention with three openings
#
# Where a token stands can enter at three places: at the input, at queries and keys, or at
# the scores. Each kind of positions overrides one of the three methods.


# %% tags=["no-positions"]
class NoPositions(nn.Module):
    """Changes nothing; the other kinds override one of the three methods."""

    def at_input(self, x: Tensor) -> Tensor:
        return x  # (B, T, D)

    def turn(self, x: Tensor) -> Tensor:
        return x  # queries or keys, (B, h, T, d)

    def bias(self, q: Tensor) -> Tensor | float:
        return 0.0  # added to the scores, (B, h, T, T)


# %% tags=["attention"]
class Attention(nn.Module):
    """Each token takes a weighted mean of the values of all tokens, in h heads.

    Vaswani et al. 2017, section 3.2. mask: 0, and minus infinity where not to look.
    """

    def __init__(self, d_model: int, n_heads: int, positions: nn.Module):
        super().__init__()
        assert d_model % n_heads == 0, "n_heads must divide d_model"
        self.n_heads = n_heads
        self.positions = positions
        self.to_q = nn.Linear(d_model, d_model)
        self.to_k = nn.Linear(d_model, d_model)
        self.to_v = nn.Linear(d_model, d_model)
        self.to_out = nn.Linear(d_model, d_model)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.n_heads, -1)).transpose(1, 2)  # (B, h, T, d)

    def forward(self, x: Tensor, mask: Tensor | float = 0.0) -> Tensor:
        q = self.positions.turn(self.heads(self.to_q(x)))
        k = self.positions.turn(self.heads(self.to_k(x)))
        v = self.heads(self.to_v(x))
        scores = q @ k.mT / math.sqrt(q.shape[3]) + self.positions.bias(q)
        x = (scores + mask).softmax(3) @ v  # (B, h, T, d)
        return self.to_out(x.transpose(1, 2).flatten(2))  # (B, T, D)


# %% tags=["attention-shape"]
Attention(32, 4, NoPositions())(torch.randn(5, 16, 32)).shape

# %% [markdown]
# ## Another order
#
# Attention without positions: the tokens in another order give the same outputs in that
# order.

# %% tags=["permuted"]
seed(0)
attention = Attention(32, 4, NoPositions())
x = torch.randn(5, 16, 32)
order = torch.randperm(16)
blind = checks.deviation(attention(x[:, order]), attention(x)[:, order])

# %% tags=["permuted-claim"]
claim(blind < 1e-5, "without positions outputs follow their tokens")
record("blind", blind)

# %% [markdown]
# ## Sinusoids
#
# Pairs of a sine and a cosine, each pair slower than the one before.


# %% tags=["sinusoid"]
def sinusoid(places: Tensor, D: int) -> Tensor:
    """Sine and cosine of each place at D / 2 frequencies: (T,) -> (T, D).

    Vaswani et al. 2017, section 3.5: frequencies from 1 to about 1 / 10000.
    """
    even = torch.arange(0, D, 2, device=places.device)
    angles = places.unsqueeze(1) * 10000 ** (-even / D)  # (T, D / 2)
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)


class Sinusoidal(NoPositions):
    """The sinusoids are added to the tokens."""

    def at_input(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        return x + sinusoid(torch.arange(T, device=x.device), D)


# %% tags=["by-hand"]
found = sinusoid(torch.arange(3), 4)
rows = []
for t in range(3):
    by_hand = (math.sin(t), math.cos(t), math.sin(t / 100), math.cos(t / 100))
    deviation = checks.deviation(found[t], torch.tensor(by_hand))
    claim(deviation < 1e-6, f"place {t} by hand")
    rows.append((t, *(f"{value:.4f}" for value in by_hand)))
table(rows, ("t", "sin t", "cos t", "sin t/100", "cos t/100"))

# %% tags=["sinusoid-figure"] alt="A field of 64 rows, the numbers of a vector, and 128 columns, the places, in shades of grey from -1 to 1. The top rows alternate quickly from column to column; further down the waves become wider; the lower half hardly changes from left to right, rows of light grey between rows of mid grey."
_, axes = plt.subplots(figsize=(5, 2.6))
axes.imshow(sinusoid(torch.arange(128), 64).mT, aspect="auto", vmin=-1, vmax=1)
axes.set(xlabel="place", ylabel="number in the vector")
axes.set_axisbelow(True)

# %% [markdown]
# Moving by k places turns each pair by a fixed angle. So one matrix does it, whatever
# the place.


# %% tags=["shift"]
def shift(k: int, D: int) -> Tensor:
    """The matrix that turns the sinusoids of place t into those of t + k: (D, D)."""
    blocks = []
    for sin, cos in sinusoid(torch.tensor([k]), D).view(-1, 2).tolist():
        blocks.append(torch.tensor([[cos, sin], [-sin, cos]]))
    return torch.block_diag(*blocks)


# %% tags=["shift-run"]
waves = sinusoid(torch.arange(200), 512)
moved = waves[:-10] @ shift(10, 512).mT
moved_by = checks.deviation(moved, waves[10:])
middle = 100
plain = waves @ waves[middle] / 256  # 1 at the place itself
turned = waves @ (shift(10, 512) @ waves[middle]) / 256

# %% tags=["shift-claims"]
claim(moved_by < 1e-4, "one matrix moves every place by ten")
record("moved", moved_by)
both = checks.deviation(plain[middle - 60 : middle].flip(0), plain[middle + 1 :][:60])
claim(both < 1e-4, "the product of two places does not know which is the first")
claim(plain.argmax() == middle, "it is largest for a place with itself")
claim(turned.argmax() == middle + 10, "turned by ten, it is largest ten places on")
even = torch.arange(0, 512, 2)
waves_by_formula = torch.cos(torch.tensor(37.0) * 10000 ** (-even / 512)).mean()
claim(abs(plain[middle + 37] - waves_by_formula) < 1e-4, "a mean of cosines")

# %% tags=["shift-figure"] alt="Two curves of the same form over distances from -60 to 60. The one named as it is has its peak, 1, at 0 and falls to both sides alike, to less than a half at 40. The one named turned by 10 is the same curve with its peak at 10."
_, axes = plt.subplots(figsize=(5, 2.6))
reach = range(-60, 61)
near = slice(middle - 60, middle + 61)
axes.plot(reach, plain[near], color=plots.COLOURS[0])
axes.plot(reach, turned[near], color=plots.COLOURS[1])
axes.set(xlabel="distance of the key", ylabel="product / (D / 2)", ylim=(0, 1.1))
axes.text(-4, 1.0, "as it is", color=plots.COLOURS[0], ha="right")
axes.text(14, 1.0, "turned by 10", color=plots.COLOURS[1])
axes.set_axisbelow(True)

# %% [markdown]
# ## Learned rows
#
# One vector a place, learnt like those of the tokens. There is none behind the last row.


# %% tags=["learned"]
class Learned(NoPositions):
    """A learnt row for each place is added (Gehring et al. 2017, section 3.1)."""

    def __init__(self, n_places: int, d_model: int):
        super().__init__()
        self.rows = nn.Embedding(n_places, d_model)

    def at_input(self, x: Tensor) -> Tensor:
        return x + self.rows(torch.arange(x.shape[1], device=x.device))


# %% [markdown]
# ## Distances
#
# What matters to a reader is how far a key stands from the query, and on which side.


# %% tags=["distances"]
def distances(T: int, where=None) -> Tensor:
    """Place of the key minus place of the query: (T, T)."""
    places = torch.arange(T, device=where)
    return places - places.unsqueeze(1)


# %% tags=["relative"]
class Relative(NoPositions):
    """A learnt vector for each distance is added to the keys.

    Shaw et al. 2018, equation 4, without the vectors that are added to the values.
    Distances are clipped at `reach`.
    """

    def __init__(self, d_head: int, reach: int):
        super().__init__()
        self.reach = reach
        self.rows = nn.Embedding(2 * reach + 1, d_head)

    def bias(self, q: Tensor) -> Tensor:
        B, h, T, d = q.shape
        clipped = distances(T, q.device).clamp(-self.reach, self.reach)
        products = q @ self.rows.weight.mT / math.sqrt(d)  # (B, h, T, 2 reach + 1)
        return products.gather(3, (clipped + self.reach).expand(B, h, T, T))


# %% tags=["buckets"]
def buckets(distance: Tensor, n_buckets: int, furthest: int) -> Tensor:
    """Number of the bucket of each distance, half of them for keys on the right.

    Raffel et al. 2019, section 2.1: near distances have buckets of their own, far ones
    share buckets that widen as the logarithm; from `furthest` on all share the last.
    """
    half = n_buckets // 2
    exact = half // 2
    size = distance.abs()
    ratio = torch.log(size.clamp(min=exact) / exact) / math.log(furthest / exact)
    wide = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(size < exact, size, wide) + half * (distance > 0)


class Buckets(NoPositions):
    """A learnt number for each head and bucket of distances is added to the scores."""

    def __init__(self, n_heads: int, n_buckets: int, furthest: int):
        super().__init__()
        self.furthest = furthest
        self.rows = nn.Embedding(n_buckets, n_heads)

    def bias(self, q: Tensor) -> Tensor:
        distance = distances(q.shape[2], q.device)
        chosen = buckets(distance, self.rows.num_embeddings, self.furthest)
        return self.rows(chosen).permute(2, 0, 1)  # (h, T, T)


# %% tags=["linear-bias"]
class LinearBias(NoPositions):
    """ALiBi: the score falls with the distance, in each head by a fixed slope.

    Press et al. 2021, section 3; symmetric here, for keys on both sides.
    """

    def __init__(self, n_heads: int):
        super().__init__()
        assert n_heads.bit_count() == 1, "n_heads must be a power of two"
        slopes = 2 ** (-8 * torch.arange(1, n_heads + 1) / n_heads)
        self.register_buffer("slopes", slopes.view(-1, 1, 1))

    def bias(self, q: Tensor) -> Tensor:
        return -self.slopes * distances(q.shape[2], q.device).abs()  # (h, T, T)


# %% tags=["grid-drawing"]
def draw_grid(axes, left: float, title: str, words) -> None:
    """A square of numbers, a row for each query; left of the diagonal is the past."""
    axes.text(left + 0.72, 0.2, title, ha="center", va="center", weight="bold")
    for row, line in enumerate(words):
        for column, word in enumerate(line):
            corner = (left + 0.29 * column, 0.42 + 0.29 * row)
            colour = plots.GRID if row == column else "none"
            how = {"facecolor": colour, "edgecolor": plots.QUIET, "linewidth": 0.7}
            axes.add_patch(plt.Rectangle(corner, 0.29, 0.29, **how))
            x, y = corner
            how = {"ha": "center", "va": "center", "fontsize": 9}
            axes.text(x + 0.145, y + 0.145, str(word), **how)


# %% tags=["grid-figure"] alt="Three squares of five rows and five columns. Clipped distance: 0 on the grey diagonal, 1 and then 2, 2, 2 to its right, -1 and then -2 to its left. Bucket: 0 on the diagonal; to the left 1, 2, 2 and 3, to the right 5, 6, 6 and 7. Minus distance: 0 on the diagonal, -1, -2, -3 and -4 to both sides alike."
axes = diagrams.sheet(2.0)
five = distances(5)
draw_grid(axes, 0.1, "clipped at 2", five.clamp(-2, 2).tolist())
draw_grid(axes, 1.75, "8 buckets", buckets(five, 8, 5).tolist())
draw_grid(axes, 3.4, "− distance", (-five.abs()).tolist())

# %% tags=["buckets-figure"] alt="Bucket against distance from 0 to 160, on the left side of a query: a steep line through 0 to 7, one bucket a distance, then steps that become wider, up to bucket 15 at about 90 and flat from there."
_, axes = plt.subplots(figsize=(5, 2.4))
left = torch.arange(0, -161, -1)
axes.step(-left, buckets(left, 32, 128), where="post", color=plots.COLOURS[0])
axes.set(xlabel="places to the left of the query", ylabel="bucket")
axes.set_axisbelow(True)

# %% tags=["buckets-claims"]
of_left = buckets(left, 32, 128)
claim(of_left[:8].tolist() == list(range(8)), "eight near distances are apart")
claim((of_left[128:] == 15).all(), "from 128 on all share the last bucket")
last = (of_left == 15).int().argmax().item()
claim(85 < last < 95, "the last bucket begins at about 90")
record("last.bucket", last)

# %% [markdown]
# ## Turned queries and keys
#
# RoPE turns each pair of numbers of a query or key by an angle that grows with its place.
# The product of two turned vectors depends only on the difference of the angles.


# %% tags=["rotary"]
class Rotary(NoPositions):
    """RoPE: queries and keys are turned, pair by pair (Su et al. 2021, equation 34)."""

    def places(self, T: int, where) -> Tensor:
        return torch.arange(T, device=where)

    def turn(self, x: Tensor) -> Tensor:
        B, h, T, d = x.shape
        waves = sinusoid(self.places(T, x.device), d)  # (T, d)
        sin = waves[:, 0::2]
        cos = waves[:, 1::2]
        a = x[..., 0::2]
        b = x[..., 1::2]
        pairs = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=4)
        return pairs.flatten(3)  # (B, h, T, d)


# %% tags=["turned"]
q = torch.tensor([1.0, 0.0])
k = torch.tensor([1.0, 1.0])
everywhere = torch.stack((q, k)).view(2, 1, 1, 2).expand(2, 1, 12, 2)
queries, keys = Rotary().turn(everywhere).squeeze(1)  # at each of 12 places
near = (queries[1] @ keys[2]).item()
far = (queries[8] @ keys[9]).item()

# %% tags=["turned-claims"]
claim(abs(near - far) < 1e-6, "the same distance, the same product")
by_hand = math.cos(1) - math.sin(1)  # of (1, 1) turned by 1 with (1, 0)
claim(abs(near - by_hand) < 1e-6, "the product by hand")
record("turned", near)


# %% tags=["turned-drawing"]
def draw_turned(axes, middle: float, title: str, places) -> None:
    """A query and a key, turned for their places, as arrows from one point."""
    axes.text(middle, 0.2, title, ha="center", va="center", weight="bold")
    rows = ((queries[places[0]], "q", 0), (keys[places[1]], "k", 1))
    for vector, name, colour in rows:
        x, y = vector.tolist()
        how = {"arrowstyle": "->", "color": plots.COLOURS[colour], "linewidth": 2}
        tip = (middle + 0.5 * x, 1.2 - 0.5 * y)
        axes.annotate("", tip, (middle, 1.2), arrowprops=how)
        beyond = 0.5 + 0.13 / math.hypot(x, y)
        at = (middle + beyond * x, 1.2 - beyond * y)
        axes.text(*at, name, ha="center", va="center", color=plots.COLOURS[colour])


# %% tags=["turned-figure"] alt="Three drawings of two arrows from one point, a query and a key. At places 0 and 0 the key is turned against the query by an eighth of a circle. At places 1 and 2, and again at places 8 and 9, both point elsewhere, but the angle between them is the same in these two: wider than in the first."
axes = diagrams.sheet(1.7)
draw_turned(axes, 0.8, "places 0 and 0", (0, 0))
draw_turned(axes, 2.5, "places 1 and 2", (1, 2))
draw_turned(axes, 4.2, "places 8 and 9", (8, 9))

# %% [markdown]
# ## A reader
#
# A small encoder, its layers with the norms in front, and one answer from the mean of all
# tokens that are not padding. The positions are one module for all layers.


# %% tags=["masks"]
PAD = 0


def no_padding(tokens: Tensor) -> Tensor:
    """Minus infinity where a key is padding, else 0: (B, T) -> (B, 1, 1, T)."""
    mask = torch.zeros_like(tokens, dtype=torch.float)
    return mask.masked_fill(tokens == PAD, -math.inf)[:, None, None]


def only_earlier(tokens: Tensor) -> Tensor:
    """The same, and where a key stands behind the query: (B, 1, T, T)."""
    T = tokens.shape[1]
    later = torch.full((T, T), -math.inf, device=tokens.device).triu(1)
    return no_padding(tokens) + later


# %% tags=["layer"]
class EncoderLayer(nn.Module):
    """Attention, then two linear layers for each token, both added to their input."""

    def __init__(self, d_model: int, n_heads: int, positions: nn.Module):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads, positions)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = nn.Sequential(
            nn.Linear(d_model, 2 * d_model), nn.ReLU(), nn.Linear(2 * d_model, d_model)
        )

    def forward(self, x: Tensor, mask: Tensor | float = 0.0) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


# %% tags=["reader"]
class Reader(nn.Module):
    """Tokens in, one of two answers out: (B, T) -> (B, 2)."""

    def __init__(self, positions: nn.Module, mask=no_padding, *, n_layers: int = 2):
        super().__init__()
        self.positions = positions
        self.mask = mask
        self.embed = nn.Embedding(18, 32)
        layers = [EncoderLayer(32, 4, positions) for _ in range(n_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(32)
        self.answer = nn.Linear(32, 2)

    def encode(self, tokens: Tensor) -> Tensor:
        mask = self.mask(tokens)
        x = self.positions.at_input(self.embed(tokens))
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)  # (B, T, D)

    def forward(self, tokens: Tensor) -> Tensor:
        real = (tokens != PAD).unsqueeze(2)  # (B, T, 1)
        mean = (self.encode(tokens) * real).sum(1) / real.sum(1)
        return self.answer(mean)


# %% tags=["reader-shape"]
Reader(Sinusoidal())(torch.randint(1, 18, (5, 16))).shape

# %% [markdown]
# ## A before B
#
# One A and one B in a row of other tokens. Does A come first? Long sequences hold the same
# tokens as short ones, only more of them.

# %% tags=["task"]
A = 1
B = 2
END = 17


def order_batch(n: int, T: int, generator=None) -> tuple[Tensor, Tensor]:
    """Tokens (n, T) with one A and one B, and whether A is the first (n,)."""
    tokens = torch.randint(3, END, (n, T), generator=generator)
    both = torch.rand(n, T, generator=generator).argsort(1)[:, :2]  # two places
    tokens.scatter_(1, both, torch.tensor([A, B]).expand(n, 2))
    return tokens, (both[:, 0] < both[:, 1]).long()


def marked_batch(n: int, T: int, generator=None) -> tuple[Tensor, Tensor]:
    """The same with an end marker behind the last token: (n, T + 1)."""
    tokens, first = order_batch(n, T, generator)
    return F.pad(tokens, (0, 1), value=END), first


# %% tags=["task-shape"]
tokens, first = order_batch(32, 16)
record("trained", tokens.shape[1])
tokens.shape, first.shape


# %% tags=["training"]
def train(reader: nn.Module, batch=order_batch, *, T: int = 16) -> int:
    """Adam on new sequences, 32 a step, until the loss has stayed near zero.

    The rate rises for 20 steps. Returns how many steps that took, at most 600.
    """
    where = next(reader.parameters()).device
    optimizer = torch.optim.Adam(reader.parameters(), lr=0.005, fused=True)
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, 1.0, total_iters=20)
    recent = 1.0  # a running mean of the loss
    taken = 0
    for _ in training.progress(range(600), "steps"):
        tokens, first = (values.to(where) for values in batch(32, T))
        loss = F.cross_entropy(reader(tokens), first)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rising.step()
        taken += 1
        recent = 0.9 * recent + 0.1 * loss.item()
        if recent < 0.02:
            break
    return taken


@torch.no_grad()
def share_right(reader: nn.Module, T: int, batch=order_batch) -> float:
    """Share of right answers on 500 sequences of length T, the same for all readers."""
    where = next(reader.parameters()).device
    tokens, first = batch(500, T, torch.Generator().manual_seed(T))
    parts = [reader(part).argmax(1).cpu() for part in tokens.to(where).split(50)]
    return (torch.cat(parts) == first).double().mean().item()


# %% tags=["kinds"]
SEEDS = (0, 1, 2)
KINDS = {
    "sinusoidal": Sinusoidal,
    "learned": lambda: Learned(65, 32),
    "relative": lambda: Relative(8, reach=8),
    "T5": lambda: Buckets(4, n_buckets=16, furthest=16),
    "RoPE": Rotary,
    "ALiBi": lambda: LinearBias(4),
}
BATCHES = dict.fromkeys(KINDS, order_batch) | {"ALiBi": marked_batch}
LENGTHS = (16, 24, 32, 48, 64)

# %% [markdown]
# Without positions a sequence and its mirror image get the same answer, and so they do
# with a bias that is the same on both sides. No training can change that.

# %% tags=["mirrored"]
seed(0)
tokens, first = order_batch(200, 16)
mirrors = {}
for name in ("none", *KINDS):
    reader = Reader(KINDS.get(name, NoPositions)())
    with torch.no_grad():
        answers = reader(tokens)
        mirrors[name] = checks.deviation(reader(tokens.flip(1)), answers)
        if name == "ALiBi":
            marked = F.pad(tokens, (0, 1), value=END)
            turned_round = F.pad(tokens.flip(1), (0, 1), value=END)
            mirrors["marked"] = checks.deviation(reader(turned_round), reader(marked))

# %% tags=["mirrored-claims"]
for name in ("none", "ALiBi"):
    claim(mirrors[name] < 1e-5, f"a mirror image changes no answer: {name}")
    record(f"mirror.{name}", mirrors[name])
for name, found in mirrors.items():
    blind = name in ("none", "ALiBi")
    claim(blind or found > 1e-3, f"a mirror image changes the answer: {name}")

# %% tags=["headline"]
readers = {}
right = {}
steps = {}
for name, build in KINDS.items():
    for number in SEEDS:
        seed(number)
        reader = Reader(build()).to(device)
        steps[name, number] = train(reader, BATCHES[name])
        shares = [share_right(reader, T, BATCHES[name]) for T in LENGTHS]
        right[name, number] = shares
        readers[name, number] = reader

# %% tags=["headline-figure"] alt="Share of right answers against length, 16 to 64, in bands of three seeds. All begin above 0.9 at 16. At 32 sinusoidal and learned are below 0.8 and below the other four, at 64 they are near a half. Relative stays above 0.85 at 64, and RoPE ends below it."
_, axes = plt.subplots(figsize=(5, 3.4))
ends = {}
for name, colour in zip(KINDS, plots.COLOURS):
    runs = torch.tensor([right[name, n] for n in SEEDS])
    ends[name] = plots.seed_band(axes, LENGTHS, runs, colour)
axes.set(xlabel="tokens", ylabel="share right", xticks=LENGTHS, ylim=(0.35, 1.02))
axes.axhline(0.5, color=plots.QUIET, linestyle=":", linewidth=1)
axes.axvline(16, color=plots.QUIET, linestyle=":", linewidth=1)
plots.label_ends(axes, ends)
axes.set_axisbelow(True)

# %% tags=["headline-result"]
rows = []
by_length = {}
for name in KINDS:
    for place, T in enumerate(LENGTHS):
        by_length[name, T] = [right[name, n][place] for n in SEEDS]
        record_spread(f"right.{name}.{T}", by_length[name, T])
    columns = [spread(by_length[name, T], ".2f") for T in (16, 32, 64)]
    rows.append((name, *columns))
table(rows, ("positions", "16 tokens", "32 tokens", "64 tokens"))

# %% tags=["headline-claims"]
for name in KINDS:
    claim(min(by_length[name, 16]) > 0.9, f"solved at the length of training: {name}")
for name in ("sinusoidal", "learned"):
    claim(max(by_length[name, 32]) < 0.8, f"much is lost at twice the length: {name}")
    claim(
        max(by_length[name, 64]) < 0.65,
        f"about guessing at four times the length: {name}",
    )
added = max(by_length["sinusoidal", 32] + by_length["learned", 32])
for name in ("relative", "T5", "RoPE", "ALiBi"):
    claim(min(by_length[name, 32]) > added, f"ahead at twice the length: {name}")
claim(min(by_length["relative", 64]) > 0.85, "clipped distances hold at 64")
least = min(by_length["relative", 64])
claim(max(by_length["RoPE", 64]) < least, "RoPE behind clipped distances at 64")
record("steps.most", max(steps.values()))

# %% [markdown]
# ## A causal mask tells order
#
# Each token sees itself and those in front of it. The same readers, without positions.

# %% tags=["causal"]
causal = {}
for number in SEEDS:
    seed(number)
    reader = Reader(NoPositions(), only_earlier).to(device)
    train(reader)
    causal[number] = [share_right(reader, T) for T in LENGTHS]

# %% tags=["causal-layers"]
seed(0)
tokens, _ = order_batch(200, 16)
reordered = torch.cat((tokens[:, torch.randperm(15)], tokens[:, 15:]), dim=1)
changed = {}
for n_layers in (1, 2):
    reader = Reader(NoPositions(), only_earlier, n_layers=n_layers)
    with torch.no_grad():
        before = reader.encode(tokens)[:, -1]
        after = reader.encode(reordered)[:, -1]
    changed[n_layers] = checks.deviation(after, before)

# %% tags=["causal-claims"]
for place, T in enumerate(LENGTHS):
    record_spread(f"causal.{T}", [causal[n][place] for n in SEEDS])
    shares = min(causal[n][place] for n in SEEDS)
    claim(shares > 0.97, f"a causal mask alone tells order at length {T}")
claim(changed[1] < 1e-5, "one causal layer: the last token sees a bag of tokens")
claim(changed[2] > 1e-3, "two causal layers: the last token sees their order")
record("bag.1", changed[1])
record("bag.2", changed[2])

# %% [markdown]
# ## Equal to the libraries
#
# The same weights in our attention and in those of the library transformers.


# %% tags=["copy-weights"]
@torch.no_grad()
def take_weights(ours: Attention, theirs) -> None:
    """Copy four linear layers, in the order queries, keys, values, output.

    One without a bias gives zeros; None stands for the identity.
    """
    parts = (ours.to_q, ours.to_k, ours.to_v, ours.to_out)
    for part, source in zip(parts, theirs, strict=True):
        nn.init.eye_(part.weight)
        nn.init.zeros_(part.bias)
        if source is not None:
            part.weight.copy_(source.weight)
            if source.bias is not None:
                part.bias.copy_(source.bias)


# %% tags=["equal-start"]
seed(0)
equal = {}
D = 32
T = 24
x = torch.randn(3, T, D)
table_of_waves = RoFormerSinusoidalPositionalEmbedding(T, D)
theirs = table_of_waves.create_weight()
ours = sinusoid(torch.arange(T), D)
in_halves = torch.cat((ours[:, 0::2], ours[:, 1::2]), dim=1)
equal["sinusoidal", "RoFormer's table"] = checks.deviation(in_halves, theirs)

# %% tags=["equal-relative"]
sizes = {"left_max_position_embeddings": 5, "right_max_position_embeddings": 5}
sizes |= {"hidden_size": D, "num_attention_heads": 4, "attention_dropout": 0.0}
settings = Wav2Vec2BertConfig(position_embeddings_type="relative_key", **sizes)
settings._attn_implementation = "eager"
theirs = Wav2Vec2BertSelfAttention(settings).eval()
ours = Attention(D, 4, Relative(8, reach=5))
linears = (theirs.linear_q, theirs.linear_k, theirs.linear_v, theirs.linear_out)
take_weights(ours, linears)
checks.transplant(theirs.distance_embedding, ours.positions.rows)
equal["relative", "Wav2Vec2-BERT"] = checks.deviation(ours(x), theirs(x)[0])

# %% tags=["equal-buckets"]
settings = T5Config(d_model=D, d_kv=8, num_heads=4, dropout_rate=0.0)
settings._attn_implementation = "eager"
theirs = T5Attention(settings, has_relative_attention_bias=True).eval()
ours = Attention(D, 4, Buckets(4, n_buckets=32, furthest=128))
take_weights(ours, (theirs.q, theirs.k, theirs.v, theirs.o))
with torch.no_grad():
    ours.to_q.weight.mul_(math.sqrt(8))  # T5 does not divide the scores
checks.transplant(theirs.relative_attention_bias, ours.positions.rows)
long = torch.randn(1, 300, D)
equal["T5", "T5"] = checks.deviation(ours(long), theirs(long)[0])

# %% tags=["equal-rotary"]
sizes = {"hidden_size": D, "num_attention_heads": 4}
settings = RoFormerConfig(attention_probs_dropout_prob=0.0, **sizes)
theirs = RoFormerSelfAttention(settings).eval()
ours = Attention(D, 4, Rotary())
take_weights(ours, (theirs.query, theirs.key, theirs.value, None))
waves = RoFormerSinusoidalPositionalEmbedding(T, 8).create_weight()
found = theirs(x, sinusoidal_pos=waves[None, None])[0]
equal["RoPE", "RoFormer"] = checks.deviation(ours(x), found)

# %% tags=["equal-llama"]
q = torch.randn(2, 4, T, 8)
k = torch.randn(2, 4, T, 8)
halves = torch.cat((torch.arange(0, 8, 2), torch.arange(1, 8, 2)))
waves = sinusoid(torch.arange(T), 8)
cos = waves[:, 1::2].repeat(1, 2)[None]
sin = waves[:, 0::2].repeat(1, 2)[None]
their_q, their_k = apply_rotary_pos_emb(q[..., halves], k[..., halves], cos, sin)
scores = Rotary().turn(q) @ Rotary().turn(k).mT
equal["RoPE", "Llama, scores"] = checks.deviation(scores, their_q @ their_k.mT)

# %% tags=["equal-alibi"]
settings = BloomConfig(hidden_size=D, n_head=4)
theirs = BloomAttention(settings, layer_idx=0).eval()
ours = Attention(D, 4, LinearBias(4))
parts = []
weights = theirs.query_key_value.weight.view(4, 3, 8, D).unbind(1)
biases = theirs.query_key_value.bias.view(4, 3, 8).unbind(1)
for weight, bias in zip(weights, biases):
    part = nn.Linear(D, D)
    part.load_state_dict({"weight": weight.flatten(0, 1), "bias": bias.flatten()})
    parts.append(part)

# %% tags=["equal-alibi-run"]
take_weights(ours, (*parts, theirs.dense))
ones = torch.ones(3, T, dtype=torch.long)
later = only_earlier(ones)
slopes = build_alibi_tensor(ones, 4, torch.float)
found = theirs(x, torch.zeros_like(x), slopes, later)[0]
equal["ALiBi", "Bloom, causal"] = checks.deviation(ours(x, later), found)

# %% tags=["equal-layer"]
theirs = nn.TransformerEncoderLayer(
    D, 4, 2 * D, dropout=0.0, batch_first=True, norm_first=True
).eval()
ours = EncoderLayer(D, 4, NoPositions())
with torch.no_grad():
    ours.mlp[0].load_state_dict(theirs.linear1.state_dict())
    ours.mlp[2].load_state_dict(theirs.linear2.state_dict())
    rows = theirs.self_attn.in_proj_weight.chunk(3)
    for part, weight in zip(("to_q", "to_k", "to_v"), rows):
        getattr(ours.attention, part).weight.copy_(weight)
        getattr(ours.attention, part).bias.zero_()
    ours.attention.to_out.load_state_dict(theirs.self_attn.out_proj.state_dict())

# %% tags=["equal-layer-run"]
padded = torch.ones(3, T, dtype=torch.long)
padded[0, 15:] = PAD
padded[1, 20:] = PAD
real = padded != PAD
found = theirs(x, src_key_padding_mask=~real)
layer = checks.deviation(ours(x, no_padding(padded))[real], found[real])
equal["none", "torch's encoder layer, padded"] = layer

# %% tags=["equal-result"]
rows = []
for (name, library), found in equal.items():
    claim(found < 1e-5, f"{name} is that of {library}")
    rows.append((name, library, f"{found:.1e}"))
record("deviation", max(equal.values()))
table(rows, ("positions", "reference", "largest difference"))

# %% [markdown]
# ## What it costs
#
# Parameters of the positions at published sizes, and the MACs of one attention layer of
# the base size of 2017 on 128 tokens.

# %% tags=["count"]
PUBLISHED = {
    "none": ("", NoPositions),
    "sinusoidal": ("Transformer, any size", Sinusoidal),
    "learned": ("BERT base, 512 places", lambda: Learned(512, 768)),
    "relative": ("8 heads share, clipped at 16", lambda: Relative(64, reach=16)),
    "T5": ("T5 small, 32 buckets", lambda: Buckets(8, 32, 128)),
    "RoPE": ("any size", Rotary),
    "ALiBi": ("any size", lambda: LinearBias(8)),
}
rows = []
for name, (size, build) in PUBLISHED.items():
    with torch.device("meta"):
        positions = build()
        macs = counting.macs(Attention(512, 8, positions), torch.empty(1, 128, 512))
    rows.append((name, size, counting.parameters(positions), macs))
    record(f"{name}.macs", macs)
bare = counting.parameters(Attention(512, 8, NoPositions()))
record("attention.parameters", bare)
table(rows, ("positions", "size", "parameters", "MACs of attention"))

# %% [markdown]
# ## Padding and order
#
# Two rules for each kind: padding changes nothing, and two tokens that change places
# change the outputs of the others only where there are positions.

# %% tags=["rules"]
seed(0)
tokens, _ = order_batch(8, 16)
longer = F.pad(tokens, (0, 7))
swapped = tokens.clone()
swapped[:, [3, 9]] = tokens[:, [9, 3]]
others = [t for t in range(16) if t not in (3, 9)]
rules = {}
for name in ("none", *KINDS):
    reader = Reader(KINDS.get(name, NoPositions)())
    with torch.no_grad():
        x = reader.encode(tokens)
        padding = checks.deviation(reader(longer), reader(tokens))
        swap = checks.deviation(reader.encode(swapped)[:, others], x[:, others])
    rules[name] = (padding, swap)

# %% tags=["rules-result"]
rows = []
for name, (padding, swap) in rules.items():
    claim(padding < 1e-5, f"padding changes nothing: {name}")
    claim((swap < 1e-5) == (name == "none"), f"a swap is seen with positions: {name}")
    rows.append((name, f"{padding:.1e}", f"{swap:.1e}"))
table(rows, ("positions", "7 places of padding", "two tokens swapped"))

# %% [markdown]
# ## Look inside
#
# How training changes what a T5 reader adds to the scores, by distance. The same seed
# gives the biases of the beginning once more.


# %% tags=["inside"]
@torch.no_grad()
def learnt_bias(number: int) -> Tensor:
    """Bias of the middle one of 33 places, less that before training: (h, 33)."""
    seed(number)
    start = Reader(KINDS["T5"]()).to(device)
    q = torch.zeros(1, 4, 33, 8, device=device)
    change = readers["T5", number].positions.bias(q) - start.positions.bias(q)
    return change[:, 16].cpu()


changes = {number: learnt_bias(number) for number in SEEDS}

# %% tags=["inside-figure"] alt="Change of the bias against distance from -16 to 16, a line for each of four heads, in steps. The line of at least one head lies high on one side of 0 and low on the other."
_, axes = plt.subplots(figsize=(5, 2.8))
ends = {}
for head, colour in enumerate(plots.COLOURS[:4]):
    line = changes[0][head]
    axes.plot(range(-16, 17), line, color=colour)
    ends[f"head {head + 1}"] = (16, line[-1].item())
axes.set(xlabel="distance of the key", ylabel="change of the bias")
plots.label_ends(axes, ends)
axes.set_axisbelow(True)

# %% tags=["inside-claims"]
sides = []
for change in changes.values():
    by_head = (change[:, 17:].mean(1) - change[:, :16].mean(1)).abs()
    sides.append(by_head.max().item())
claim(min(sides) > 0.4, "training sets the sides apart in a head of each reader")
record_spread("sides", sides)

# %% [markdown]
# ## What we saw
#
# - Attention without positions treats a sequence as a bag; a bias that is the same on both
#   sides sees distance, but no direction.
# - All six kinds solve the task at the length of training; beyond it they differ.
# - A causal mask is a position of its own.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
D = 512
waves = 2 * math.pi * 10000 ** (torch.arange(0, D, 2) / D)  # lengths, in places
slow = (waves > 512).sum().item()

# %% tags=["solution-1-result"]
record("shortest", waves[0])
record("longest", waves[-1])
record("slow", slow)
claim(waves[-1] < 2 * math.pi * 10000, "none is quite as long as 2 pi times 10000")
slow

# %% tags=["solution-2"]
seed(0)
reaching = Reader(Buckets(4, n_buckets=16, furthest=128)).to(device)
train(reaching)
at_64 = share_right(reaching, 64)

# %% tags=["solution-2-result"]
at_16 = share_right(reaching, 16)
claim(at_16 > 0.95, "it learns the task")
claim(at_64 < min(by_length["relative", 64]), "this reader falls behind")
used = buckets(distances(16), 16, 128).unique()
claim(len(used) == 11, "two buckets a side are not used, nor the right one of 0")
record("reaching.16", at_16)
record("reaching.64", at_64)
at_64


# %% tags=["solution-3"]
class Interpolated(Rotary):
    """Places are squeezed so that a longer sequence has the angles of training."""

    def places(self, T: int, where) -> Tensor:
        return torch.arange(T, device=where) * (16 / T)


squeezed = []
for number in SEEDS:
    reader = Reader(Interpolated()).to(device)
    reader.load_state_dict(readers["RoPE", number].state_dict())
    squeezed.append(share_right(reader, 64))

# %% tags=["solution-3-result"]
record_spread("squeezed", squeezed)
ahead = min(squeezed) > max(by_length["RoPE", 64])
claim(ahead, "squeezed into the angles of training, long sequences are read")
claim(min(squeezed) > 0.9, "nearly as those of the length of training")
rows = [(n, f"{right['RoPE', n][-1]:.2f}", f"{squeezed[n]:.2f}") for n in SEEDS]
table(rows, ("seed", "64 places", "squeezed into 16"))


# %% tags=["solution-4"]
class OneSided(LinearBias):
    """Keys on the right cost twice as much as those on the left."""

    def bias(self, q: Tensor) -> Tensor:
        distance = distances(q.shape[2], q.device)
        return -self.slopes * torch.where(distance > 0, 2 * distance, -distance)


seed(0)
one_sided = Reader(OneSided(4)).to(device)
train(one_sided)
of_one_sided = share_right(one_sided, 16)

# %% tags=["solution-4-result"]
claim(of_one_sided > 0.9, "slopes that differ by side tell order")
record("one.sided", of_one_sided)
of_one_sided
