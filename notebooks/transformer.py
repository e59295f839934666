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
# # Transformer
#
# Encoder and decoder without recurrence: built as published and with its norms moved,
# equal to torch's, trained to reverse symbols and to translate dates, and decoded with
# and without a cache. The text to it is the [chapter](../chapters/transformer.rst), the
# paper is [Vaswani et al. 2017](https://arxiv.org/abs/1706.03762).

# %%
import math
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import claim, device, evaluating, record, record_spread, seed, spread
from workbench import checks, counting, diagrams, plots, table, text, training
from workbench.text import BEGIN, PAD

# %% [markdown]
# ## Attention
#
# Each query reads the keys that its mask lets it read, and takes the mean of their values.


# %% tags=["attention"]
def attention_weights(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) over the keys where the mask is true (section 3.2.1).

    q (B, h, T, d), k (B, h, S, d), mask to (B, h, T, S) by repetition.
    """
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (B, h, T, S)
    return scores.masked_fill(~mask, -math.inf).softmax(dim=-1)


# %% tags=["attention-equal"]
seed(0)
q = torch.randn(2, 3, 4, 5)
k = torch.randn(2, 3, 6, 5)
v = torch.randn(2, 3, 6, 5)
mask = torch.ones(4, 6, dtype=torch.bool).tril(2)
ours = attention_weights(q, k, mask) @ v
fused = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
fused_deviation = checks.deviation(ours, fused)
claim(fused_deviation < 1e-5, "torch's fused attention computes the same")


# %% tags=["multi-head"]
class MultiHead(nn.Module):
    """Attention in several heads side by side (section 3.2.2)."""

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        assert d_model % n_heads == 0, "n_heads must divide d_model"
        self.n_heads = n_heads
        self.to_q = nn.Linear(d_model, d_model)
        self.to_k = nn.Linear(d_model, d_model)
        self.to_v = nn.Linear(d_model, d_model)
        self.to_out = nn.Linear(d_model, d_model)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, h, T, d)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.to_k(x)), self.split(self.to_v(x))

    def read(self, x: Tensor, keys: Tensor, values: Tensor, mask=None) -> Tensor:
        q = self.split(self.to_q(x))  # (B, h, T, d)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return self.to_out(y.transpose(1, 2).flatten(2))  # (B, T, D)

    def forward(self, x: Tensor, memory: Tensor, mask=None) -> Tensor:
        # x (B, T, D) reads memory (B, S, D) -> (B, T, D)
        keys, values = self.keys_values(memory)
        return self.read(x, keys, values, mask)


# %% tags=["multi-head-shape"]
MultiHead(32, 4)(torch.randn(5, 7, 32), torch.randn(5, 9, 32)).shape

# %% [markdown]
# ## Where the norm stands
#
# After the sum, as published, or before the function, with the sum left alone.


# %% tags=["residuals"]
class PostNorm(nn.Module):
    """norm(x + f(x)), as published (section 3.1)."""

    def __init__(self, d_model: int, dropout: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, f) -> Tensor:
        return self.norm(x + self.dropout(f(x)))


class PreNorm(PostNorm):
    """x + f(norm(x))."""

    def forward(self, x: Tensor, f) -> Tensor:
        return x + self.dropout(f(self.norm(x)))


# %% tags=["size"]
@dataclass(frozen=True)
class Size:
    """How many layers in each stack, and how wide they are (table 3)."""

    depth: int = 6
    d_model: int = 512
    n_heads: int = 8
    d_inner: int = 2048
    dropout: float = 0.1


BASE = Size()
BIG = Size(d_model=1024, n_heads=16, d_inner=4096, dropout=0.3)


# %% tags=["encoder-layer"]
def mlp(size: Size) -> nn.Sequential:
    """Two linear layers for each token alone (section 3.3, equation 2)."""
    wide = nn.Linear(size.d_model, size.d_inner)
    return nn.Sequential(wide, nn.ReLU(), nn.Linear(size.d_inner, size.d_model))


class EncoderLayer(nn.Module):
    """Tokens read each other, then each is changed alone: (B, S, D) -> (B, S, D)."""

    def __init__(self, size: Size, residual):
        super().__init__()
        self.attention = MultiHead(size.d_model, size.n_heads)
        self.mlp = mlp(size)
        self.residual1 = residual(size.d_model, size.dropout)
        self.residual2 = residual(size.d_model, size.dropout)

    def forward(self, x: Tensor, mask=None) -> Tensor:
        x = self.residual1(x, lambda x: self.attention(x, x, mask))
        return self.residual2(x, self.mlp)


# %% tags=["encoder"]
class Encoder(nn.Module):
    """Layers, and a norm at the end."""

    def __init__(self, size: Size, residual):
        super().__init__()
        layers = [EncoderLayer(size, residual) for _ in range(size.depth)]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(size.d_model)

    def forward(self, x: Tensor, mask=None) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


# %% [markdown]
# ## The decoder
#
# Its tokens read those before them, and then the encoder's output.


# %% tags=["decoder-layer"]
class DecoderLayer(nn.Module):
    """Read what is written, read the memory, change each token: (B, T, D) again."""

    def __init__(self, size: Size, residual):
        super().__init__()
        self.attention = MultiHead(size.d_model, size.n_heads)
        self.cross = MultiHead(size.d_model, size.n_heads)
        self.mlp = mlp(size)
        self.residual1 = residual(size.d_model, size.dropout)
        self.residual2 = residual(size.d_model, size.dropout)
        self.residual3 = residual(size.d_model, size.dropout)

    def forward(self, x: Tensor, memory: Tensor, causal: Tensor, mask=None) -> Tensor:
        x = self.residual1(x, lambda x: self.attention(x, x, causal))
        x = self.residual2(x, lambda x: self.cross(x, memory, mask))
        return self.residual3(x, self.mlp)

    def step(self, x: Tensor, cache, mask=None) -> Tensor:
        # the newest token alone, (B, 1, D) -> (B, 1, D)
        def read_written(x: Tensor) -> Tensor:
            cache.add(*self.attention.keys_values(x))
            return self.attention.read(x, cache.keys, cache.values)

        x = self.residual1(x, read_written)
        x = self.residual2(x, lambda x: self.cross.read(x, *cache.memory, mask))
        return self.residual3(x, self.mlp)


# %% tags=["decoder"]
class Decoder(nn.Module):
    """Layers with a causal mask, and a norm at the end."""

    def __init__(self, size: Size, residual):
        super().__init__()
        layers = [DecoderLayer(size, residual) for _ in range(size.depth)]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(size.d_model)

    def forward(self, x: Tensor, memory: Tensor, mask=None) -> Tensor:
        T = x.shape[1]
        causal = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
        for layer in self.layers:
            x = layer(x, memory, causal, mask)
        return self.norm(x)

    def step(self, x: Tensor, caches, mask=None) -> Tensor:
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer.step(x, cache, mask)
        return self.norm(x)


# %% tags=["sinusoids"]
def sinusoids(places: Tensor, d_model: int) -> Tensor:
    """Sines and cosines of places (T,), in turn: (T, D) (section 3.5)."""
    exponents = torch.arange(0, d_model, 2, device=places.device) / d_model
    angles = places[:, None] / 10_000**exponents  # (T, D / 2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


# %% tags=["transformer"]
class Transformer(nn.Module):
    """One table of embeddings for source, target and scores (section 3.4, figure 1)."""

    def __init__(self, V: int, size: Size = BASE, residual=PostNorm):
        super().__init__()
        self.embed = nn.Embedding(V, size.d_model)
        self.dropout = nn.Dropout(size.dropout)
        self.encoder = Encoder(size, residual)
        self.decoder = Decoder(size, residual)
        xavier(self)
        nn.init.normal_(self.embed.weight, 0, size.d_model**-0.5)

    def embedded(self, numbers: Tensor, start: int = 0) -> Tensor:
        x = self.embed(numbers)  # (B, T, D)
        T, D = x.shape[1:]
        places = torch.arange(start, start + T, device=x.device)
        return self.dropout(x * math.sqrt(D) + sinusoids(places, D))

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        mask = (source != PAD)[:, None, None]  # (B, 1, 1, S)
        return self.encoder(self.embedded(source), mask), mask

    def scores(self, x: Tensor) -> Tensor:
        return x @ self.embed.weight.T  # (B, T, V)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        # (B, S), (B, T) -> (B, T, V)
        memory, mask = self.encode(source)
        return self.scores(self.decoder(self.embedded(target), memory, mask))


def xavier(model: nn.Module) -> None:
    """Glorot's uniform weights for all matrices."""
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.xavier_uniform_(weight)


# %% tags=["transformer-shape"]
small = Transformer(20, Size(2, 32, 4, 64))
source = torch.randint(3, 20, (5, 9))
target = torch.randint(3, 20, (5, 7))
small(source, target).shape


# %% tags=["network-drawing"]
def draw_stack(axes, x: float, boxes, title: str) -> dict:
    """A title, and boxes from top to bottom around x."""
    nodes = {title: diagrams.Node(x, 0.15, title, weight="bold")}
    for number, name in enumerate(boxes):
        y = 0.55 + 0.58 * number
        nodes[f"{title}{number}"] = diagrams.Node(x, y, name, width=1.75)
    chain = [(f"{title}{i}", f"{title}{i + 1}") for i in range(len(boxes) - 1)]
    diagrams.draw(axes, nodes, chain)
    return nodes


# %% tags=["network-figure"] alt="Two columns of boxes from top to bottom. Encoder: source and places, attention to all, MLP, norm. Decoder: target and places, causal attention, attention to the memory, MLP, norm, scores of the next token. An arrow leads from the encoder's last box to the decoder's attention to the memory."
axes = diagrams.sheet(3.75)
left = ("source + places", "attention to all", "MLP", "norm: memory")
right = ("target + places", "causal attention", "attend to memory", "MLP", "norm")
stack = draw_stack(axes, 1.15, left, "encoder")
other = draw_stack(axes, 3.75, (*right, "scores"), "decoder")
memory = stack["encoder3"]
cross = other["decoder2"]
bend = [(2.45, memory.y), (2.45, cross.y)]
diagrams.draw(axes, {"m": memory, "c": cross}, shortcuts=[("m", *bend, "c")])


# %% tags=["norm-drawing"]
def draw_norms(axes, x: float, names, title: str, joins) -> None:
    """One layer around x; joins: where a shortcut leaves, and the sum that it meets."""
    nodes = {"title": diagrams.Node(x, 0.15, title, weight="bold")}
    for number, name in enumerate(names):
        width = 1.15 if name in ("attention", "MLP", "norm") else 0
        nodes[f"b{number}"] = diagrams.Node(x, 0.5 + 0.5 * number, name, width=width)
    shortcuts = []
    for start, end in joins:
        side = x + 0.85
        shortcuts.append(((x, start), (side, start), (side, nodes[end].y), end))
    arrows = [(f"b{k}", f"b{k + 1}") for k in range(len(names) - 1)]
    diagrams.draw(axes, nodes, arrows, shortcuts)


# %% tags=["norm-figure"] alt="Two layers from top to bottom. Post-norm: x, attention, plus, norm, MLP, plus, norm; each shortcut ends in a plus, and the norm stands behind it, on the only way. Pre-norm: x, norm, attention, plus, norm, MLP, plus; the shortcuts pass both norms."
axes = diagrams.sheet(4.2)
post = ("$x$", "attention", "+", "norm", "MLP", "+", "norm", "")
pre = ("$x$", "norm", "attention", "+", "norm", "MLP", "+", "")
draw_norms(axes, 1.2, post, "post-norm", ((0.7, "b2"), (2.23, "b5")))
draw_norms(axes, 3.6, pre, "pre-norm", ((0.7, "b3"), (2.2, "b6")))

# %% [markdown]
# ## Count and compare


# %% tags=["counts"]
class OnSelf(nn.Module):
    """The source as its own target, for what counts a network of one input."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(self, numbers: Tensor) -> Tensor:
        return self.model(numbers, numbers)


def macs_by_formula(size: Size, V: int, T: int) -> int:
    """Projections, products of attention, MLPs and scores, for T tokens in, T out."""
    D = size.d_model
    project = 4 * T * D * D
    attend = 2 * T * T * D
    change = 2 * T * D * size.d_inner
    layer = (project + attend + change) + (2 * (project + attend) + change)
    return size.depth * layer + T * D * V


# %% tags=["count"]
V = 37_000
rows = []
for name, size in (("base", BASE), ("big", BIG)):
    with torch.device("meta"):
        model = Transformer(V, size)
        numbers = torch.zeros(1, 25, dtype=torch.long)
    encoder = counting.parameters(model.encoder)
    decoder = counting.parameters(model.decoder)
    whole = counting.parameters(model)
    macs = counting.macs(OnSelf(model), numbers)
    claim(macs == macs_by_formula(size, V, 25), f"{name}: MACs as by the formula")
    record(f"{name}.parameters", whole)
    record(f"{name}.stacks", encoder + decoder)
    record(f"{name}.macs", macs)
    rows.append((name, encoder, decoder, encoder + decoder, whole, macs))
columns = ("size", "encoder", "decoder", "both stacks", "with embeddings", "MACs")
claim(rows[0][3] == 44_140_544, "the stacks of base have 44,140,544 parameters")
table(rows, columns)


# %% tags=["torch-weights"]
def torch_weights(stacks: nn.Transformer) -> list[Tensor]:
    """torch's weights in our order; it keeps queries, keys and values in one matrix."""
    found = []
    for name, weight in stacks.state_dict().items():
        if name.endswith("in_proj_weight"):
            matrices = weight.chunk(3)
        elif name.endswith("in_proj_bias"):
            for matrix, bias in zip(matrices, weight.chunk(3)):
                found += [matrix, bias]
        else:
            found.append(weight)
    return found


class Stacks(nn.Module):
    """Encoder and decoder without embeddings."""

    def __init__(self, size: Size, residual):
        super().__init__()
        self.encoder = Encoder(size, residual)
        self.decoder = Decoder(size, residual)

    def forward(self, source: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        return self.decoder(target, self.encoder(source, mask), mask)


# %% tags=["torch-stacks"]
def torch_stacks(size: Size, norm_first: bool) -> nn.Transformer:
    """torch's own; its encoder is passed in, to switch nested tensors off."""
    how = {"dropout": size.dropout, "batch_first": True, "norm_first": norm_first}
    widths = (size.d_model, size.n_heads, size.d_inner)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(*widths, **how),
        size.depth,
        nn.LayerNorm(size.d_model),
        enable_nested_tensor=False,
    )
    depths = (size.depth, size.depth, size.d_inner)
    return nn.Transformer(*widths[:2], *depths, **how, custom_encoder=encoder)


def share(theirs: nn.Transformer, ours: Stacks) -> None:
    """Random tensors in torch's stacks, and the same in ours."""
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    names = list(ours.state_dict())
    ours.load_state_dict(dict(zip(names, torch_weights(theirs), strict=True)))


# %% tags=["equal"]
rows = []
worst = []
for name, residual, first in (("post", PostNorm, False), ("pre", PreNorm, True)):
    seed(0)
    size = Size(3, 64, 4, 128, dropout=0.0)
    theirs = torch_stacks(size, first)
    ours = Stacks(size, residual)
    share(theirs, ours)
    x = torch.randn(2, 9, 64)
    y = torch.randn(2, 7, 64)
    read = torch.tensor([[True] * 9, [True] * 6 + [False] * 3])
    hidden = {"src_key_padding_mask": ~read, "memory_key_padding_mask": ~read}
    causal = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float) < 0
    expected = theirs(x, y, tgt_mask=causal, **hidden)
    found = ours(x, y, read[:, None, None])
    outputs = checks.deviation(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    for weight in (*theirs.parameters(), *ours.parameters()):
        weight.data = weight.grad  # torch_weights sorts the gradients, too
    theirs_all = torch.cat([grad.flatten() for grad in torch_weights(theirs)])
    ours_all = torch.cat([grad.flatten() for grad in ours.parameters()])
    gradients = checks.deviation(ours_all, theirs_all)
    worst += [outputs, gradients]
    rows.append((f"{name}-norm", f"{outputs:.1e}", f"{gradients:.1e}"))
record("deviation", max(worst))
claim(max(worst) < 1e-4, "both forms of the stacks are torch's")
table(rows, ("stacks", "outputs", "all gradients"))

# %% [markdown]
# ## Causality and padding

# %% tags=["behaviour"]
seed(0)
small = Transformer(20, Size(2, 32, 4, 64)).eval()
source = torch.randint(3, 20, (2, 9))
target = torch.randint(3, 20, (2, 7))
scores = small(source, target)
later = target.clone()
later[:, 4:] = 3 + (later[:, 4:] - 2) % 17  # other symbols from the fifth on
causal = checks.deviation(small(source, later)[:, :4], scores[:, :4])
padded = F.pad(source, (0, 4))
padding = checks.deviation(small(padded, target), scores)
swapped = checks.deviation(small(source.flip(1), target), scores)

# %% tags=["behaviour-result"]
claim(causal < 1e-6, "later target tokens change nothing before them")
claim(padding < 1e-5, "padding of the source changes nothing")
claim(swapped > 0.01, "another order of the source does")
rows = [
    ("the last three target tokens changed, scores before them", f"{causal:.0e}"),
    ("four pads behind the source", f"{padding:.0e}"),
    ("source reversed", f"{swapped:.2f}"),
]
table(rows, ("what is changed", "difference"))

# %% [markdown]
# ## Schedule and label smoothing


# %% tags=["schedule"]
def paper_rate(step: int, d_model: int, warmup: int) -> float:
    """Up in a line, then down as 1 / sqrt(step), from 1 (section 5.3, equation 3)."""
    return d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)


# %% tags=["schedule-result"]
record("peak", paper_rate(4000, 512, 4000))
steps = (1, 1000, 4000, 16_000, 100_000)
rates = [paper_rate(step, 512, 4000) for step in steps]
claim(max(rates) == rates[2], "the rate is highest at the end of the warm-up")
claim(abs(rates[3] / rates[2] - 0.5) < 1e-9, "after four times the steps it is half")
table([(s, f"{r:.1e}") for s, r in zip(steps, rates)], ("step", "rate"))


# %% tags=["smoothing"]
def smoothed_loss(scores: Tensor, wanted: Tensor, *, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy with 1 - e on what is wanted and e spread over all; PAD left out.

    Szegedy et al. 2015, section 7. scores (B, T, V), wanted (B, T).
    """
    logs = scores.log_softmax(dim=-1)
    right = logs.gather(-1, wanted[..., None])[..., 0]  # (B, T)
    loss = -(1 - smoothing) * right - smoothing * logs.mean(-1)
    return loss[wanted != PAD].mean()


# %% tags=["smoothing-result"]
chances = torch.tensor([0.05, 0.8, 0.1, 0.05])
one = smoothed_loss(chances.log()[None, None], torch.tensor([[1]]), smoothing=0.2)
by_hand = -0.85 * math.log(0.8) - 0.05 * (math.log(0.1) + 2 * math.log(0.05))
claim(abs(one.item() - by_hand) < 1e-5, "0.85, 0.05, 0.05 and 0.05 are the targets")
same = F.cross_entropy(scores.mT, target, label_smoothing=0.1, ignore_index=PAD)
difference = checks.deviation(smoothed_loss(scores, target), same)
claim(difference < 1e-5, "the loss with smoothing is torch's")
record("smoothed", one)
table([(f"{-math.log(0.8):.3f}", f"{one.item():.3f}")], ("plain", "smoothed"))

# %% [markdown]
# ## Reverse eight symbols
#
# Six layers, norms after or before; the rate at once, or after a hundred steps of warm-up.


# %% tags=["reverser"]
class Reverser(nn.Module):
    """An encoder with a learnt row for each of eight places, scores of ten symbols."""

    def __init__(self, residual, *, depth: int = 6, d_model: int = 32):
        super().__init__()
        size = Size(depth, d_model, 4, 2 * d_model, dropout=0.0)
        self.embed = nn.Embedding(10, d_model)
        self.encoder = Encoder(size, residual)
        self.head = nn.Linear(d_model, 10)
        xavier(self)
        nn.init.normal_(self.embed.weight)
        self.places = nn.Parameter(torch.randn(8, d_model))

    def forward(self, numbers: Tensor) -> Tensor:
        # (B, 8) -> (B, 8, 10)
        return self.head(self.encoder(self.embed(numbers) + self.places))


# %% tags=["learn"]
def learn(model: Reverser, rate: float, *, warmup: int, steps: int = 200) -> list:
    """Share of symbols right by step, on new batches each; ends when solved."""
    optimizer = adam(model, rate)
    shares = []
    while len(shares) < steps and min(shares[-5:], default=0) < 0.97:
        optimizer.param_groups[0]["lr"] = rate * min(1, (len(shares) + 1) / warmup)
        x = torch.randint(10, (32, 8)).to(device)
        scores = model(x)
        wanted = x.flip(1)
        loss = F.cross_entropy(scores.flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shares.append((scores.argmax(-1) == wanted).float().mean().item())
    return shares


def adam(model: nn.Module, rate: float) -> torch.optim.Adam:
    """The paper's settings (section 5.3)."""
    settings = {"betas": (0.9, 0.98), "eps": 1e-9, "fused": True}
    return torch.optim.Adam(model.parameters(), lr=rate, **settings)


# %% tags=["headline"]
SEEDS = (0, 1, 2)
SIDES = {
    "post-norm": (PostNorm, 1),
    "post-norm, warm-up": (PostNorm, 100),
    "pre-norm": (PreNorm, 1),
}
shares = {}
held_out = {}


def reverse(side: str, rate: float, number: int) -> None:
    """Train one side with one seed, and test it on 500 new rows."""
    residual, warmup = SIDES[side]
    seed(number)
    model = Reverser(residual).to(device)
    shares[side, rate, number] = learn(model, rate, warmup=warmup)
    x = torch.randint(10, (500, 8)).to(device)
    with torch.no_grad():
        right = model(x).argmax(-1) == x.flip(1)
    held_out[side, rate, number] = right.float().mean().item()


# %% tags=["headline-run"]
RATE = 0.005
for side in SIDES:
    for number in SEEDS:
        reverse(side, RATE, number)
for other_rate in (0.002, 0.01):
    reverse("post-norm", other_rate, 0)

# %% tags=["headline-result"]
rows = []
for side in SIDES:
    found = [held_out[side, RATE, number] for number in SEEDS]
    steps = [len(shares[side, RATE, number]) for number in SEEDS]
    name = side.replace(",", "").replace(" ", ".")
    record_spread(f"right.{name}", found)
    record_spread(f"steps.{name}", steps)
    rows.append((side, spread(found, ".2f"), spread(steps, ".0f")))
table(rows, ("norm", "symbols right", "steps taken"))

# %% tags=["headline-claims"]
without = [held_out["post-norm", RATE, number] for number in SEEDS]
warmed = [held_out["post-norm, warm-up", RATE, number] for number in SEEDS]
pre_normed = [held_out["pre-norm", RATE, number] for number in SEEDS]
claim(max(without) < 0.6, "post-norm without warm-up does not solve the task")
claim(min(warmed) > 0.95, "with warm-up it does")
claim(min(pre_normed) > 0.95, "pre-norm does without")
slowest = max(len(shares["pre-norm", RATE, number]) for number in SEEDS)
fastest = min(len(shares["post-norm, warm-up", RATE, number]) for number in SEEDS)
claim(slowest < fastest, "pre-norm takes fewer steps, seeds apart")
words = "at the lowest rate post-norm without warm-up learns, too"
claim(held_out["post-norm", 0.002, 0] > 0.9, words)
claim(held_out["post-norm", 0.01, 0] < 0.3, "at the highest it does not")

# %% tags=["rates-result"]
rows = []
for rate in (0.002, RATE, 0.01):
    steps = len(shares["post-norm", rate, 0])
    rows.append((rate, f"{held_out['post-norm', rate, 0]:.2f}", steps))
table(rows, ("rate", "symbols right", "steps taken"))

# %% tags=["headline-figure"] alt="Share of symbols right against step, up to 200. Pre-norm rises to about 1 within some 60 steps. Post-norm with warm-up rises later, to about 1 between 100 and 200 steps. Post-norm without warm-up stays below 0.6 to the end. The bands of three seeds are apart at the end."
_, axes = plt.subplots()
ends = {}
for place, side in enumerate(SIDES):
    runs = torch.full((3, 200), 1.0)
    for row, number in enumerate(SEEDS):
        found = shares[side, RATE, number]
        runs[row] = found[-1]  # a solved one is not trained on
        runs[row, : len(found)] = torch.tensor(found)
    runs = F.avg_pool1d(runs, 5)
    ends[side] = plots.seed_band(axes, range(5, 201, 5), runs, plots.COLOURS[place])
axes.set(xlabel="step", ylabel="symbols right", ylim=(0, 1.05), xlim=(0, 320))
axes.set_xticks((0, 50, 100, 150, 200))
plots.label_ends(axes, ends)
axes.set_axisbelow(True)


# %% tags=["gradients"]
def gradient_by_layer(residual, number: int) -> Tensor:
    """Norm of the gradient of each layer's last matrix, untrained: (depth,)."""
    seed(number)
    model = Reverser(residual).to(device)
    x = torch.randint(10, (256, 8)).to(device)
    F.cross_entropy(model(x).flatten(0, 1), x.flip(1).flatten()).backward()
    layers = model.encoder.layers
    return torch.stack([layer.mlp[2].weight.grad.norm().cpu() for layer in layers])


# %% tags=["gradients-result"]
rows = []
growth = {}
for name, residual in (("post-norm", PostNorm), ("pre-norm", PreNorm)):
    norms = torch.stack([gradient_by_layer(residual, number) for number in SEEDS])
    growth[name] = (norms[:, -1] / norms[:, 0]).tolist()
    record_spread(f"growth.{name}", growth[name])
    means = [f"{value:.3f}" for value in norms.mean(0)]
    rows.append((name, *means))
claim(min(growth["post-norm"]) > 1.2, "post-norm: larger in the last layer")
claim(max(growth["pre-norm"]) < 0.9, "pre-norm: smaller in the last layer")
table(rows, ("norm", *(f"layer {n}" for n in range(1, 7))))

# %% [markdown]
# ## Dates
#
# From English in eight formats to ISO 8601.

# %% tags=["data"]
pairs = text.dates()
words = [word for pair in pairs.train for word in pair]
vocabulary = text.Vocabulary(words)


def numbers_of(part) -> tuple[Tensor, Tensor]:
    """Source (B, S) and target with BEGIN and END (B, T)."""
    read = vocabulary.padded([a for a, _ in part])
    written = vocabulary.padded([b for _, b in part], ends=True)
    return read.to(device), written.to(device)


train_source, train_target = numbers_of(pairs.train)
rows = [pairs.train[number] for number in range(8)]
table(rows, ("read", "wanted"))


# %% tags=["learnt-places"]
class LearntPlaces(Transformer):
    """A learnt row for each of 30 places in the place of sinusoids (table 3, row E)."""

    def __init__(self, V: int, size: Size, residual=PostNorm):
        super().__init__(V, size, residual)
        self.places = nn.Parameter(torch.randn(30, size.d_model))

    def embedded(self, numbers: Tensor, start: int = 0) -> Tensor:
        x = self.embed(numbers)  # (B, T, D)
        T, D = x.shape[1:]
        return self.dropout(x * math.sqrt(D) + self.places[start : start + T])


# %% tags=["train"]
def train(model: Transformer, source, target, steps: int, *, peak: float) -> list:
    """Teacher forcing on 64 pairs a step; the rate rises once and falls; the losses."""
    optimizer = adam(model, peak)
    schedule = training.one_cycle(optimizer, steps)
    losses = []
    for _ in training.progress(range(steps), "steps"):
        chosen = torch.randint(len(source), (64,)).to(source.device)
        written = target[chosen]
        scores = model(source[chosen], written[:, :-1])
        loss = smoothed_loss(scores, written[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


# %% tags=["train-run"]
seed(0)
SMALL = Size(1, 64, 4, 256, dropout=0.0)
dates = LearntPlaces(len(vocabulary), SMALL).to(device)
losses = train(dates, train_source, train_target, 350, peak=4e-3)
record("dates.parameters", counting.parameters(dates))


# %% [markdown]
# ## Decoding with a cache


# %% tags=["cache"]
class Cache:
    """Keys and values of one decoder layer: of what is written, and of the memory."""

    def __init__(self, layer: DecoderLayer, memory: Tensor):
        self.memory = layer.cross.keys_values(memory)  # each (B, h, S, d)
        none_yet = memory[:, :0]
        self.keys, self.values = layer.attention.keys_values(none_yet)

    def add(self, keys: Tensor, values: Tensor) -> None:
        self.keys = torch.cat((self.keys, keys), dim=2)  # (B, h, T + 1, d)
        self.values = torch.cat((self.values, values), dim=2)


# %% tags=["translate"]
@torch.no_grad()
def translate(model: Transformer, source: Tensor, steps: int):
    """The likeliest token, step by step: numbers (B, steps), scores (B, steps, V)."""
    memory, mask = model.encode(source)
    caches = [Cache(layer, memory) for layer in model.decoder.layers]
    token = source.new_full((len(source), 1), BEGIN)
    tokens = []
    all_scores = []
    for place in range(steps):
        x = model.embedded(token, place)  # (B, 1, D)
        scores = model.scores(model.decoder.step(x, caches, mask))
        token = scores.argmax(-1)
        tokens.append(token)
        all_scores.append(scores)
    return torch.cat(tokens, 1), torch.cat(all_scores, 1)


@torch.no_grad()
def translate_whole(model: Transformer, source: Tensor, steps: int):
    """The same with a full pass of the decoder over all that is written, each step."""
    memory, mask = model.encode(source)
    written = source.new_full((len(source), 1), BEGIN)
    for _ in range(steps):
        x = model.decoder(model.embedded(written), memory, mask)
        scores = model.scores(x)
        written = torch.cat((written, scores[:, -1:].argmax(-1)), 1)
    return written[:, 1:], scores


# %% tags=["dates-result"]
test_source, test_target = numbers_of(pairs.test)
with evaluating(dates):
    tokens, scores = translate(dates, test_source, 11)
answers = [vocabulary.decode(row) for row in tokens]
exact = 0
for (_, wanted), answer in zip(pairs.test, answers):
    exact += answer == wanted
exact /= len(answers)
record("exact", exact)
record("dates.loss", sum(losses[-20:]) / 20)
claim(exact >= 0.95, "of the held-out dates 95 % are exact")
rows = [(*pair, answer) for pair, answer in zip(pairs.test[:6], answers)]
table(rows, ("read", "wanted", "written"))

# %% tags=["cache-equal"]
with evaluating(dates):
    whole, whole_scores = translate_whole(dates, test_source[:100], 11)
claim(bool((whole == tokens[:100]).all()), "both ways write the same")
cache_deviation = checks.deviation(scores[:100], whole_scores)
record("cache.deviation", cache_deviation)
claim(cache_deviation < 1e-4, "and give the same scores")


# %% tags=["cache-macs"]
class Decoding(nn.Module):
    """64 tokens written in one of the two ways, for what counts a network."""

    def __init__(self, model: Transformer, how):
        super().__init__()
        self.model = model
        self.how = how

    def forward(self, source: Tensor) -> Tensor:
        return self.how(self.model, source, 64)[1]


with torch.device("meta"):
    wide = Transformer(50, Size(2, 64, 4, 256, dropout=0.0))
    source = torch.zeros(1, 12, dtype=torch.long)
decoding_macs = {}
for name, how in (("cache", translate), ("full pass", translate_whole)):
    decoding_macs[name] = counting.macs(Decoding(wide, how), source)
fewer = decoding_macs["cache"] < 0.1 * decoding_macs["full pass"]
claim(fewer, "with the cache 64 tokens take less than a tenth of the MACs")
table(list(decoding_macs.items()), ("decoded with", "MACs for 64 tokens"))

# %% [markdown]
# ## Where the decoder looks

# %% tags=["look"]
read, wanted = next(pair for pair in pairs.test if pair[0].startswith("September"))
numbers = vocabulary.padded([read]).to(device)
written = vocabulary.padded([wanted], ends=True).to(device)[:, :-1]
layer = dates.decoder.layers[0]
kept = {}
hook = layer.cross.register_forward_pre_hook(lambda _, args: kept.update(args=args))
with torch.no_grad():
    dates(numbers, written)
hook.remove()
x, memory, mask = kept["args"]
keys, _ = layer.cross.keys_values(memory)
q = layer.cross.split(layer.cross.to_q(x))
looked = attention_weights(q, keys, mask)[0].detach().cpu()  # (h, T, S)

# %% tags=["look-figure"] alt="A picture with the characters of a date in English along the bottom and those of the ISO date down the left, with one grey cell for each pair; a darker cell is a larger weight of attention, the mean over the heads."
_, axes = plt.subplots(figsize=(5, 3.2))
axes.imshow(looked.mean(0), cmap="gray_r", vmin=0, aspect="auto")
axes.set_xticks(range(len(read)), read)
axes.set_yticks(range(len(wanted) + 1), [*wanted, "END"])
axes.set(xlabel="read", ylabel="written next")
axes.set_axisbelow(True)

# %% [markdown]
# ## What we saw
#
# - Six post-norm layers do not learn to reverse at a rate at which they do after a
#   warm-up, and at which pre-norm layers learn at once.
# - The stacks are torch's, in both forms, and the same dates are written with a cache and
#   without one.
# - One layer in each stack learns to write dates of eight formats in one.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
with torch.device("meta"):
    shared = counting.parameters(Transformer(37_000))
separate = shared + 2 * 37_000 * BASE.d_model

# %% tags=["solution-1-result"]
claim(separate > 1.5 * shared, "three tables cost more than half of the rest again")
table([(shared, separate)], ("one table", "three tables"))


# %% tags=["solution-2"]
def least_loss(V: int, smoothing: float) -> float:
    """The loss of a network that gives exactly the smoothed targets."""
    right = 1 - smoothing + smoothing / V
    other = smoothing / V
    return -right * math.log(right) - (V - 1) * other * math.log(other)


# %% tags=["solution-2-result"]
targets = torch.full((1, 1, 50), 0.1 / 50)
targets[..., 7] += 0.9
found = smoothed_loss(targets.log(), torch.tensor([[7]])).item()
claim(abs(found - least_loss(50, 0.1)) < 1e-5, "the loss of the targets is the least")
sure = smoothed_loss((targets > 0.5) * 30.0, torch.tensor([[7]])).item()
claim(sure > 2 * found, "a network that is nearly certain has a larger loss")
record("least.50", found)
rows = [(V, f"{least_loss(V, 0.1):.3f}") for V in (50, 37_000)]
table(rows, ("vocabulary", "least loss"))


# %% tags=["solution-3"]
def passed(T: int) -> tuple[int, int]:
    """Tokens that go through the decoder to write T: with the cache, without."""
    return T, T * (T + 1) // 2


# %% tags=["solution-3-result"]
rows = [(T, *passed(T)) for T in (11, 64, 512)]
table(rows, ("tokens written", "with the cache", "without"))


# %% tags=["solution-4"]
class WithoutPlaces(Transformer):
    """Embeddings alone."""

    def embedded(self, numbers: Tensor, start: int = 0) -> Tensor:
        return self.embed(numbers) * math.sqrt(self.embed.embedding_dim)


# %% tags=["solution-4-result"]
seed(0)
placeless = WithoutPlaces(20, Size(2, 32, 4, 64)).eval()
source = torch.randint(3, 20, (2, 9))
target = torch.randint(3, 20, (2, 7))
scores = placeless(source, target)
reversed_source = checks.deviation(placeless(source.flip(1), target), scores)
first_two = target[:, [1, 0, 2, 3, 4, 5, 6]]
reversed_target = checks.deviation(placeless(source, first_two)[:, :1], scores[:, :1])
claim(reversed_source < 1e-5, "without places the order of the source is lost")
claim(reversed_target > 0.01, "the causal mask still tells the first token")
rows = [(f"{reversed_source:.0e}", f"{reversed_target:.2f}")]
table(rows, ("source reversed", "first two target tokens swapped, first scores"))
