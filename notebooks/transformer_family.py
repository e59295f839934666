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
# # The Transformer family
#
# Encoders, decoders and both: what each mask lets through; GPT-2 and LLaMA from the same
# parts, equal to transformers; keys and values shared between heads, their cache counted
# exactly; and a small GPT that writes.
# The text to it is the [chapter](../chapters/transformer_family.rst), the papers are
# [Radford et al. 2019](https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf)
# and [Touvron et al. 2023](https://arxiv.org/abs/2302.13971).

# %%
import math
import time
from collections import Counter
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaForCausalLM

from workbench import claim, device, record, seed, spread, table
from workbench import checks, counting, plots, text, training

# %% [markdown]
# ## The tree
#
# What each model keeps of the Transformer of 2017, in the order of their months.

# %% tags=["models"]
MODELS = {  # the number on arXiv begins with year and month; two were never there
    "Transformer": ("both", "Google", "1706.03762"),
    "GPT": ("decoder", "OpenAI", "1806"),
    "BERT": ("encoder", "Google", "1810.04805"),
    "GPT-2": ("decoder", "OpenAI", "1902"),
    "RoBERTa": ("encoder", "Facebook", "1907.11692"),
    "ALBERT": ("encoder", "Google", "1909.11942"),
    "T5": ("both", "Google", "1910.10683"),
    "BART": ("both", "Facebook", "1910.13461"),
    "ELECTRA": ("encoder", "Stanford", "2003.10555"),
    "GPT-3": ("decoder", "OpenAI", "2005.14165"),
    "DeBERTa": ("encoder", "Microsoft", "2006.03654"),
    "mT5": ("both", "Google", "2010.11934"),
    "PaLM": ("decoder", "Google", "2204.02311"),
    "OPT": ("decoder", "Meta", "2205.01068"),
    "UL2": ("both", "Google", "2205.05131"),
    "Flan-T5": ("both", "Google", "2210.11416"),
    "BLOOM": ("decoder", "BigScience", "2211.05100"),
    "LLaMA": ("decoder", "Meta", "2302.13971"),
    "Llama 2": ("decoder", "Meta", "2307.09288"),
    "Mistral 7B": ("decoder", "Mistral AI", "2310.06825"),
}
PLACES = {"encoder": 0.5, "both": 2.08, "decoder": 3.38}  # of the branches, in inches


# %% tags=["draw-tree"]
def draw_tree(axes) -> None:
    """A row for each model, oldest at the top; a branch for each kind."""
    last = ""
    rows = {kind: [] for kind in PLACES}
    for row, (name, (kind, maker, number)) in enumerate(MODELS.items()):
        y = 0.5 + 0.27 * row
        year = f"20{number[:2]}"
        if year != last:
            axes.text(0.05, y, year, color=plots.QUIET, va="center", fontsize=11)
            axes.axhline(y - 0.135, color=plots.GRID, linewidth=0.8)
            last = year
        rows[kind].append(y)
        colour = plots.COLOURS[[*PLACES].index(kind)]
        x = PLACES[kind]
        axes.plot(x, y, "o", color=colour, markersize=6)
        words = {"va": "center", "fontsize": 11, "color": colour}
        axes.text(x + 0.1, y, f"{name}, {maker}", **words)
    root = rows["both"][0]
    for (kind, x), colour in zip(PLACES.items(), plots.COLOURS):
        title = {"encoder": "encoder", "both": "both", "decoder": "decoder"}[kind]
        axes.text(x, 0.15, title, color=colour, weight="bold", ha="center")
        fork = root + 0.135
        path = [(PLACES["both"], root), (PLACES["both"], fork), (x, fork)]
        path.append((x, rows[kind][-1]))
        axes.plot(*zip(*path), color=colour, linewidth=1.5, zorder=0)


# %% tags=["tree-figure"] alt="A tree of models, a row each from 2017 to 2023, in three columns. All branches leave the Transformer of 2017 at the top. Encoders: BERT, RoBERTa, ALBERT, ELECTRA, DeBERTa, the last in 2020. Both halves: T5, BART, mT5, UL2, Flan-T5, the last in 2022. Decoders: GPT, GPT-2, GPT-3, PaLM, OPT, BLOOM, LLaMA, Llama 2, Mistral 7B, the last in 2023."
height = 0.6 + 0.27 * len(MODELS)
_, axes = plt.subplots(figsize=(5, height), layout="none")
axes.set(position=(0, 0, 1, 1), xlim=(0, 5), ylim=(height, 0))
axes.axis("off")
draw_tree(axes)
axes.set_axisbelow(True)

# %% tags=["tree-claims"]
months = [number[:4] for _, _, number in MODELS.values()]
claim(months == sorted(months), "the rows are in the order of their months")
later = Counter(kind for kind, _, number in MODELS.values() if number > "21")
claim(later["decoder"] > later["both"] > later["encoder"] == 0, "drawn after 2020")
record("models", len(MODELS))

# %% [markdown]
# ## Masks
#
# A mask (T, S) says which of S tokens each of T tokens may read. The first `start` tokens
# have been read before.


# %% tags=["masks"]
def everything(T: int, start: int, where) -> Tensor:
    """An encoder's mask: each token sees all."""
    return torch.ones(T, start + T, dtype=torch.bool, device=where)


def causal(T: int, start: int, where) -> Tensor:
    """A decoder's mask: each token sees itself and those before it."""
    return everything(T, start, where).tril(diagonal=start)


def prefix(T: int, start: int, where, *, length: int = 4) -> Tensor:
    """Raffel et al. 2019, figure 3: all see the first tokens, the rest is causal."""
    mask = causal(T, start, where)
    mask[:, :length] = True
    return mask


# %% tags=["masks-run"]
causal(2, 3, None)


# %% [markdown]
# ## Attention with fewer keys
#
# Heads of queries come in groups; each group reads one head of keys and values. As many
# groups as heads: multi-head; one group: multi-query.


# %% tags=["attend"]
def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q (B, h, T, d) reads k and v (B, g, S, d), h / g heads of queries each.

    Shazeer 2019 for g = 1, Ainslie et al. 2023 between; mask (T, S).
    """
    B, h, T, d = q.shape
    g = k.shape[1]
    q = q.reshape(B, g, h // g * T, d)  # the heads of a group below one another
    products = (q @ k.mT / math.sqrt(d)).unflatten(2, (-1, T))  # (B, g, h/g, T, S)
    weights = products.masked_fill(~mask, -math.inf).softmax(dim=-1)
    return (weights.flatten(2, 3) @ v).reshape(B, h, T, d)


# %% tags=["draw-heads"]
def draw_heads(axes, title: str, groups: int) -> None:
    """Eight heads of queries above, and the heads of keys and values that they read."""
    axes.set(xlim=(-0.7, 7.7), ylim=(2.2, -0.9), title=title)
    axes.axis("off")
    style = {"ha": "center", "va": "center", "fontsize": 11}
    each = 8 // groups
    for group in range(groups):
        place = (group + 0.5) * each - 0.5
        axes.text(place, 1.5, "k, v", color=plots.COLOURS[1], **style)
        for head in range(group * each, (group + 1) * each):
            axes.plot((head, place), (0.3, 1.2), color=plots.QUIET, linewidth=1)
            axes.text(head, 0, "q", color=plots.COLOURS[0], **style)


# %% tags=["heads-figure"] alt="Three drawings of eight heads of queries. Multi-head: each q has a line to a k, v of its own. Grouped-query: two neighbours share a k, v, four in all. Multi-query: all eight lines lead to a single k, v."
_, panels = plt.subplots(3, 1, figsize=(5, 4.2))
kinds = (("multi-head", 8), ("grouped-query", 4), ("multi-query", 1))
for axes, (title, groups) in zip(panels, kinds):
    draw_heads(axes, title, groups)
axes.set_axisbelow(True)


# %% tags=["size"]
@dataclass(frozen=True)
class Size:
    """What tells one model from another of its kind."""

    layers: int
    d_model: int
    n_heads: int  # of queries
    n_groups: int  # heads of keys and values
    d_mlp: int
    V: int
    T_most: int = 1024  # learnt positions, where there are any


# %% tags=["attention"]
class Attention(nn.Module):
    """Heads in groups, over what is in the cache and what is new.

    turn: a module that is told where the tokens stand, for queries and keys.
    """

    def __init__(self, size: Size, *, turn: nn.Module, bias: bool):
        super().__init__()
        assert size.n_heads % size.n_groups == 0, "n_groups must divide n_heads"
        D = size.d_model
        self.d = D // size.n_heads
        self.to_q = nn.Linear(D, D, bias=bias)
        self.to_k = nn.Linear(D, size.n_groups * self.d, bias=bias)
        self.to_v = nn.Linear(D, size.n_groups * self.d, bias=bias)
        self.to_out = nn.Linear(D, D, bias=bias)
        self.turn = turn

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.d)).transpose(1, 2)  # (B, heads, T, d)

    def forward(self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor]):
        # x (B, T, D), past k and v (B, g, start, d) -> (B, T, D), k and v with the new
        start = past[0].shape[2]
        q = self.turn(self.heads(self.to_q(x)), start)
        k = torch.cat((past[0], self.turn(self.heads(self.to_k(x)), start)), dim=2)
        v = torch.cat((past[1], self.heads(self.to_v(x))), dim=2)
        read = attend(q, k, v, mask)  # (B, h, T, d)
        return self.to_out(read.transpose(1, 2).flatten(2)), (k, v)


# %% [markdown]
# ## The parts of GPT-2 and of LLaMA


# %% tags=["gelu-mlp"]
class GELUMLP(nn.Module):
    """GPT-2: wide, GELU (its approximation by a tanh), narrow."""

    def __init__(self, size: Size):
        super().__init__()
        self.up = nn.Linear(size.d_model, size.d_mlp)
        self.down = nn.Linear(size.d_mlp, size.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


# %% tags=["swiglu"]
class SwiGLU(nn.Module):
    """Shazeer 2020, equation 6: one product is the gate of another, no biases."""

    def __init__(self, size: Size):
        super().__init__()
        self.gate = nn.Linear(size.d_model, size.d_mlp, bias=False)
        self.up = nn.Linear(size.d_model, size.d_mlp, bias=False)
        self.down = nn.Linear(size.d_mlp, size.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


# %% tags=["rms-norm"]
class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019, equation 4: divide by the root mean square."""

    def __init__(self, d_model: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        square = x.square().mean(-1, keepdim=True)
        return self.weight * x * torch.rsqrt(square + self.eps)


# %% tags=["by-hand"]
token = torch.tensor([1.0, 1.0, 5.0, 5.0])
normed = RMSNorm(4)(token)
centred = nn.LayerNorm(4)(token)
moved = RMSNorm(4)(token - token.mean())

# %% tags=["by-hand-result"]
rows = []
for name, x in (("token", token), ("RMSNorm", normed), ("layer norm", centred)):
    rows.append((name, *(f"{value:.3f}" for value in x.tolist())))
claim(
    checks.deviation(normed, token / math.sqrt(13)) < 1e-5, "root mean square: sqrt 13"
)
claim(
    checks.deviation(moved, centred) < 1e-5, "layer norm is RMSNorm of what is centred"
)
table(rows, ("vector", "1", "2", "3", "4"))


# %% tags=["rotation"]
class Rotation(nn.Module):
    """RoPE (Su et al. 2021): pair i of place t is turned by t / 10000^(2i/d).

    A number and the one half a head further are a pair, as in transformers.
    """

    def forward(self, x: Tensor, start: int) -> Tensor:
        T, d = x.shape[-2:]
        t = torch.arange(start, start + T, device=x.device)
        speed = 10000.0 ** -(torch.arange(0, d, 2, device=x.device) / d)
        angle = t[:, None] * speed  # (T, d / 2)
        a, b = x.chunk(2, dim=-1)
        cos = angle.cos()
        sin = angle.sin()
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class NoRotation(nn.Module):
    """For models that add positions to their tokens."""

    def forward(self, x: Tensor, start: int) -> Tensor:
        return x


# %% tags=["block"]
class Block(nn.Module):
    """Pre-norm: tokens read each other, then each is changed alone."""

    def __init__(self, size: Size, *, norm, mlp, turn, bias: bool):
        super().__init__()
        self.attention = Attention(size, turn=turn(), bias=bias)
        self.mlp = mlp(size)
        self.norm1 = norm(size.d_model)
        self.norm2 = norm(size.d_model)

    def forward(self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor]):
        # (B, T, D) -> (B, T, D), keys and values
        read, pair = self.attention(self.norm1(x), mask, past)
        x = x + read
        return x + self.mlp(self.norm2(x)), pair


# %% tags=["decoder"]
class Decoder(nn.Module):
    """What GPT-2 and LLaMA share: embedding, blocks, norm, a score for each token.

    tokens (B, T) -> scores (B, T, V), cache: for each layer k and v (B, g, S, d).
    """

    def __init__(self, size: Size, *, norm, **parts):
        super().__init__()
        self.size = size
        self.embed = nn.Embedding(size.V, size.d_model)
        blocks = [Block(size, norm=norm, **parts) for _ in range(size.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(size.d_model)

    def empty(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        d = self.size.d_model // self.size.n_heads
        nothing = x.new_zeros(len(x), self.size.n_groups, 0, d)
        return [(nothing, nothing)] * self.size.layers

    def read(self, x: Tensor, past=None, mask=causal):
        # (B, T, D) -> (B, T, D), cache
        past = past or self.empty(x)
        seen = mask(x.shape[1], past[0][0].shape[2], x.device)
        cache = []
        for block, pair in zip(self.blocks, past):
            x, pair = block(x, seen, pair)
            cache.append(pair)
        return self.norm(x), cache


# %% tags=["gpt2"]
class GPT2(Decoder):
    """Radford et al. 2019: learnt positions; scores by the matrix that embeds."""

    def __init__(self, size: Size):
        parts = {"mlp": GELUMLP, "turn": NoRotation, "bias": True}
        super().__init__(size, norm=nn.LayerNorm, **parts)
        self.positions = nn.Embedding(size.T_most, size.d_model)

    def forward(self, tokens: Tensor, past=None, mask=causal):
        start = past[0][0].shape[2] if past else 0
        places = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        x = self.embed(tokens) + self.positions(places)  # (B, T, D)
        x, cache = self.read(x, past, mask)
        return x @ self.embed.weight.T, cache


# %% tags=["llama"]
class Llama(Decoder):
    """Touvron et al. 2023: RMSNorm, SwiGLU, rotation in each layer, no biases."""

    def __init__(self, size: Size):
        parts = {"mlp": SwiGLU, "turn": Rotation, "bias": False}
        super().__init__(size, norm=RMSNorm, **parts)
        self.head = nn.Linear(size.d_model, size.V, bias=False)

    def forward(self, tokens: Tensor, past=None, mask=causal):
        x, cache = self.read(self.embed(tokens), past, mask)
        return self.head(x), cache


# %% tags=["llama-shape"]
small = Size(layers=2, d_model=64, n_heads=8, n_groups=2, d_mlp=172, V=100)
scores, cache = Llama(small)(torch.randint(100, (5, 7)))
scores.shape, cache[0][0].shape

# %% [markdown]
# ## What each mask lets through
#
# Which inputs an output depends on, by its gradient, after two layers with random
# weights. Encoder-decoder: torch's, four tokens for the encoder, four for the decoder.


# %% tags=["reached"]
def reached(function, x: Tensor, *rest) -> Tensor:
    """Which of the inputs (1, S, D) each output (1, T, D) depends on: (T, S)."""
    x = x.clone().requires_grad_()
    y = function(x, *rest)
    rows = []
    for t in range(y.shape[1]):
        total = y[0, t].square().sum()
        (gradient,) = torch.autograd.grad(total, x, retain_graph=True)
        rows.append(gradient[0].norm(dim=-1) > 0)  # (S,)
    return torch.stack(rows)


def last_states(x: Tensor, network: Decoder, mask) -> Tensor:
    states, _ = network.read(x, mask=mask)
    return states


# %% tags=["both-halves"]
class BothHalves(nn.Module):
    """torch's encoder-decoder: first half of the tokens read, second half written."""

    def __init__(self, d_model: int):
        super().__init__()
        sizes = (d_model, 4, 2, 2, 2 * d_model)
        self.halves = nn.Transformer(*sizes, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        # (B, T, D) -> (B, T, D)
        source, target = x.chunk(2, dim=1)
        memory = self.halves.encoder(source)
        hidden = ~causal(target.shape[1], 0, x.device)  # torch marks what is not seen
        written = self.halves.decoder(target, memory, tgt_mask=hidden)
        return torch.cat((memory, written), dim=1)


# %% tags=["reached-run"]
seed(0)
network = Llama(small).to(device)
x = torch.randn(1, 8, 64, device=device)
KINDS = {"encoder": everything, "decoder": causal, "prefix decoder": prefix}
patterns = {}
for name, mask in KINDS.items():
    patterns[name] = reached(last_states, x, network, mask).cpu()
patterns["encoder-decoder"] = reached(BothHalves(64).to(device), x).cpu()

# %% tags=["reached-figure"] alt="Four grids of eight outputs, rows, by eight inputs, columns; a filled square where the output depends on the input. Encoder: all squares are filled. Decoder: the diagonal and all below it. Prefix decoder: the first four columns and the diagonal with all below it. Encoder-decoder: the same squares as the prefix decoder."
_, panels = plt.subplots(2, 2, figsize=(5, 4.9), sharex=True, sharey=True)
for axes, (name, pattern) in zip(panels.flat, patterns.items()):
    for t, s in pattern.nonzero().tolist():
        square = plt.Rectangle((s + 0.55, t + 0.55), 0.9, 0.9, color=plots.COLOURS[0])
        axes.add_patch(square)
    axes.set(xlim=(0.4, 8.6), ylim=(8.6, 0.4), aspect="equal", title=name)
    axes.set(xticks=range(1, 9), yticks=range(1, 9))
for axes in panels[:, 0]:
    axes.set_ylabel("output")
for axes in panels[1]:
    axes.set_xlabel("input")
axes.set_axisbelow(True)

# %% tags=["reached-claims"]
for name, mask in KINDS.items():
    words = f"{name}: after two layers the outputs depend on what the mask shows"
    claim(torch.equal(patterns[name], mask(8, 0, None)), words)
words = "an encoder-decoder lets through what a prefix decoder does"
claim(torch.equal(patterns["encoder-decoder"], patterns["prefix decoder"]), words)

# %% [markdown]
# ## Equal to transformers
#
# GPT-2 small at its full size, LLaMA small with one, two and eight heads of keys.

# %% tags=["sizes"]
SIZES = {
    "GPT-2 small": (GPT2, Size(12, 768, 12, 12, 3072, 50257)),
    "GPT-2 XL": (GPT2, Size(48, 1600, 25, 25, 6400, 50257)),
    "LLaMA 7B": (Llama, Size(32, 4096, 32, 32, 11008, 32000)),
    "LLaMA 65B": (Llama, Size(80, 8192, 64, 64, 22016, 32000)),
    "Llama 2 70B": (Llama, Size(80, 8192, 64, 8, 28672, 32000)),
    "Mistral 7B": (Llama, Size(32, 4096, 32, 8, 14336, 32000)),
}


# %% tags=["theirs"]
def their_gpt2(size: Size) -> GPT2Model:
    """GPT-2 as transformers has it."""
    shape = {"n_layer": size.layers, "n_embd": size.d_model, "n_head": size.n_heads}
    shape |= {"vocab_size": size.V, "n_inner": size.d_mlp, "n_positions": size.T_most}
    return GPT2Model(GPT2Config(**shape))


def their_llama(size: Size) -> LlamaForCausalLM:
    """LLaMA as transformers has it."""
    config = LlamaConfig(
        vocab_size=size.V,
        hidden_size=size.d_model,
        intermediate_size=size.d_mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.n_heads,
        num_key_value_heads=size.n_groups,
    )
    return LlamaForCausalLM(config)


# %% tags=["gpt2-weights"]
def gpt2_weights(theirs: GPT2Model) -> dict[str, Tensor]:
    """Their tensors under our names; theirs are (in, out), q, k and v in one."""
    found = {"embed.weight": theirs.wte.weight, "positions.weight": theirs.wpe.weight}
    norms = {"norm": theirs.ln_f}
    layers = {}
    for i, block in enumerate(theirs.h):
        norms[f"blocks.{i}.norm1"] = block.ln_1
        norms[f"blocks.{i}.norm2"] = block.ln_2
        layers[f"blocks.{i}.mlp.up"] = block.mlp.c_fc
        layers[f"blocks.{i}.mlp.down"] = block.mlp.c_proj
        layers[f"blocks.{i}.attention.to_out"] = block.attn.c_proj
        thirds = block.attn.c_attn.weight.chunk(3, dim=1)
        biases = block.attn.c_attn.bias.chunk(3)
        for name, third, bias in zip("qkv", thirds, biases):
            found[f"blocks.{i}.attention.to_{name}.weight"] = third.mT
            found[f"blocks.{i}.attention.to_{name}.bias"] = bias
    for name, layer in layers.items():
        found[f"{name}.weight"] = layer.weight.mT
    for name, layer in norms.items():
        found[f"{name}.weight"] = layer.weight
    for name, layer in (layers | norms).items():
        found[f"{name}.bias"] = layer.bias
    return {name: tensor.detach() for name, tensor in found.items()}


# %% tags=["randomise"]
@torch.no_grad()
def randomise(model: nn.Module) -> nn.Module:
    """Draw the vectors of a model anew: fresh ones are 0 or 1 and hide mistakes."""
    for name, p in model.named_parameters():
        if p.ndim == 1:
            p.normal_(1.0 if name.endswith("weight") else 0.0, 0.1)
    return model


# %% tags=["equal"]
seed(0)
_, size = SIZES["GPT-2 small"]
theirs = randomise(their_gpt2(size)).eval()
with torch.device("meta"):
    ours = GPT2(size)
ours.load_state_dict(gpt2_weights(theirs), assign=True)
tokens = torch.randint(size.V, (2, 12))
with torch.no_grad():
    expected = theirs(tokens).last_hidden_state
    scores, cache = ours(tokens)
    off = {"GPT-2 small": checks.deviation(scores, expected @ theirs.wte.weight.T)}
    first, past = ours(tokens[:, :5])
    rest, _ = ours(tokens[:, 5:], past)
in_pieces = checks.deviation(torch.cat((first, rest), dim=1), scores)

# %% tags=["equal-llama"]
names = {8: "multi-head", 2: "grouped-query", 1: "multi-query"}
for groups, name in names.items():
    size = replace(small, n_groups=groups)
    theirs = randomise(their_llama(size)).eval()
    ours = Llama(size)
    checks.transplant(theirs, ours)
    tokens = torch.randint(size.V, (2, 50))
    with torch.no_grad():
        expected = theirs(tokens).logits
        scores, _ = ours(tokens)
    off[f"LLaMA, {name}"] = checks.deviation(scores, expected)

# %% tags=["equal-result"]
rows = [(name, f"{value:.1e}") for name, value in off.items()]
record("deviation", max(off.values()))
record("in.pieces", in_pieces)
claim(max(off.values()) < 1e-5, "scores are those of transformers")
claim(in_pieces < 1e-5, "read in two pieces, with a cache, GPT-2 gives the same")
table(rows, ("model", "largest difference of scores"))

# %% [markdown]
# ## The cache counted


# %% tags=["cached"]
def cached_numbers(model: Decoder) -> int:
    """How many numbers the cache holds for each token of a sequence."""
    where = model.embed.weight.device
    _, cache = model(torch.zeros(1, 2, dtype=torch.long, device=where))
    return sum(k.numel() + v.numel() for k, v in cache) // 2


# %% tags=["count"]
rows = []
counted = {}
for name, (kind, size) in SIZES.items():
    with torch.device("meta"):
        model = kind(size)
        theirs = (their_gpt2 if kind is GPT2 else their_llama)(size)
    parameters = counting.parameters(model)
    claim(parameters == counting.parameters(theirs), f"{name}: as many as transformers")
    numbers = cached_numbers(model)
    d = size.d_model // size.n_heads
    words = f"{name}: keys and values, for each layer and group d numbers"
    claim(numbers == 2 * size.layers * size.n_groups * d, words)
    key = name.replace(" ", "")
    record(f"{key}.parameters", parameters)
    record(f"{key}.cache", numbers)
    heads = f"{size.n_heads} / {size.n_groups}"
    rows.append((name, parameters, size.layers, heads, numbers))
    counted[name] = (parameters, numbers)
columns = ("model", "parameters", "layers", "heads: q / k, v", "cache of a token")
table(rows, columns)

# %% tags=["macs"]
with torch.device("meta"):
    model = GPT2(SIZES["GPT-2 small"][1])
    record("gpt2.macs", counting.macs(model, torch.zeros(1, 1024, dtype=torch.long)))


# %% tags=["by-groups"]
_, size = SIZES["Llama 2 70B"]
by_groups = {size.n_groups: counted["Llama 2 70B"]}
for groups in (64, 1):
    with torch.device("meta"):
        model = Llama(replace(size, n_groups=groups))
    by_groups[groups] = (counting.parameters(model), cached_numbers(model))

# %% tags=["by-groups-result"]
rows = []
for groups, (parameters, numbers) in sorted(by_groups.items(), reverse=True):
    gigabytes = numbers * 2 * 4096 / 1e9
    record(f"groups.{groups}.gigabytes", gigabytes)
    rows.append((groups, parameters, f"{gigabytes:.2f}"))
words = "64 heads of keys in place of 8: the cache is eight times as large"
claim(by_groups[64][1] == 8 * by_groups[8][1] == 64 * by_groups[1][1], words)
table(rows, ("heads of keys", "parameters", "cache of 4,096 tokens, GB"))

# %% [markdown]
# ## The cache timed
#
# One layer of LLaMA 7B writes one token after 2,048 others. The products are the same for
# any number of groups; how many numbers of keys and values there are is not. For
# comparison all heads of queries meet the same keys, one after another. The times are
# those of the machine of this build, and no claim rests on them.


# %% tags=["step"]
def one_memory(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Multi-head products, 32 times on the keys and values of one head."""
    h = q.shape[1]
    return attend(q, k.expand(-1, h, -1, -1), v.expand(-1, h, -1, -1), mask)


class Step(nn.Module):
    """Attend to S tokens in the cache: q (1, h, 1, 128) -> the same shape."""

    def __init__(self, way, groups: int, *, S: int = 2048):
        super().__init__()
        self.way = way
        self.k = torch.randn(1, groups, S, 128)
        self.v = torch.randn(1, groups, S, 128)

    def forward(self, q: Tensor) -> Tensor:
        mask = causal(1, self.k.shape[2] - 1, q.device)
        return self.way(q, self.k, self.v, mask)


# %% tags=["seconds"]
def seconds(step: Step, q: Tensor) -> float:
    """Least time of 15 steps in a row."""
    best = math.inf
    for _ in range(15):
        start = time.perf_counter()
        step(q)
        best = min(best, time.perf_counter() - start)
    return best


# %% tags=["ways"]
WAYS = {
    "multi-head": (attend, 32),
    "grouped-query": (attend, 8),
    "multi-query": (attend, 1),
    "one head read 32 times": (one_memory, 1),
}
products = {}
held = {}  # numbers of keys and values
for name, (way, groups) in WAYS.items():
    with torch.device("meta"):
        step = Step(way, groups)
        products[name] = counting.macs(step, torch.empty(1, 32, 1, 128))
    held[name] = step.k.numel() + step.v.numel()

# %% tags=["ways-claims"]
claim(len(set(products.values())) == 1, "all steps have the same products")
record("step.macs", products["multi-head"])
for name, (_, groups) in WAYS.items():
    words = f"{name}: each number is used once for each head of queries on it"
    claim(products[name] * groups == 32 * held[name], words)
    key = name.split(" ")[0]
    record(f"uses.{key}", products[name] // held[name])

# %% tags=["timed"]
seed(0)
threads = torch.get_num_threads()
torch.set_num_threads(1)
q = torch.randn(1, 32, 1, 128)
steps = {name: Step(way, groups) for name, (way, groups) in WAYS.items()}
taken = {name: [] for name in WAYS}
for _ in range(3):
    for name, step in steps.items():
        taken[name].append(1e3 * seconds(step, q))
torch.set_num_threads(threads)

# %% tags=["timed-result", "times"]
rows = []
for name in WAYS:
    uses = products[name] // held[name]
    megabytes = f"{4 * held[name] / 1e6:.1f}"
    rows.append((name, megabytes, uses, spread(taken[name], ".2f")))
table(rows, ("attention", "keys, values, MB", "MACs a number", "ms a step"))

# %% [markdown]
# ## A small GPT
#
# Characters of the King James Bible; two layers, four heads of queries, two of keys.


# %% tags=["text"]
def every(part: str, step: int) -> str:
    """Each step-th paragraph."""
    return "\n".join(part.split("\n")[::step])


bible = text.english()
train_text = every(bible.train, 4)
unseen_text = every(bible.test, 8)
vocabulary = text.Vocabulary(bible)
train_numbers = torch.tensor(vocabulary.encode(train_text)).to(device)
unseen_numbers = torch.tensor(vocabulary.encode(unseen_text)).to(device)
record("characters", len(train_text))
record("held.out", len(unseen_text))

# %% tags=["writer"]
T_TRAIN = 128
STEPS = 500
writer = Size(2, 64, n_heads=4, n_groups=2, d_mlp=172, V=len(vocabulary))
record("steps", STEPS)


# %% tags=["training"]
def train(model: Decoder, numbers: Tensor, steps: int, *, mask=causal) -> list[float]:
    """AdamW on 4 pieces of 128 characters a step; returns the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.95))
    schedule = training.one_cycle(optimizer, steps, rising=0.1)
    piece = torch.arange(T_TRAIN + 1, device=numbers.device)
    losses = []
    for _ in training.progress(range(steps), "steps"):
        starts = torch.randint(len(numbers) - T_TRAIN, (4, 1)).to(numbers.device)
        window = numbers[starts + piece]  # (B, T + 1)
        scores, _ = model(window[:, :-1], mask=mask)
        loss = F.cross_entropy(scores.flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


# %% tags=["bits"]
@torch.no_grad()
def bits(model: Decoder, numbers: Tensor) -> float:
    """Bits per character, in pieces of 128, each read from nothing."""
    rows = len(numbers) // (T_TRAIN + 1)
    windows = numbers[: rows * (T_TRAIN + 1)].view(rows, T_TRAIN + 1)
    scores, _ = model(windows[:, :-1])
    wanted = windows[:, 1:].flatten()
    return F.cross_entropy(scores.flatten(0, 1), wanted).item() / math.log(2)


# %% tags=["train-run"]
seed(0)
model = Llama(writer).to(device)
train(model, train_numbers, STEPS)

# %% tags=["bits-result"]
counts = Counter(vocabulary.characters)  # once each, so that none has a chance of 0
counts.update(train_text)
alone = 0.0
for character in unseen_text:
    alone -= math.log2(counts[character] / counts.total()) / len(unseen_text)
held_out = bits(model, unseen_numbers)
record("bits", held_out)
record("bits.alone", alone)
claim(held_out < alone - 1, "the GPT is more than a bit below the counts of characters")
rows = [("counts of characters", len(counts), f"{alone:.2f}")]
rows.append(("small GPT", counting.parameters(model), f"{held_out:.2f}"))
table(rows, ("model", "numbers it keeps", "bits per character"))

# %% [markdown]
# ## Choosing the next character


# %% tags=["rules"]
def cooled(scores: Tensor, temperature: float) -> Tensor:
    """Chances from scores (..., V); below 1 what is likely gets likelier."""
    return (scores / temperature).softmax(dim=-1)


def top_k(chances: Tensor, k: int) -> Tensor:
    """Fan et al. 2018: only the k likeliest, scaled to a sum of 1."""
    least = chances.topk(k).values[..., -1:]
    kept = torch.where(chances >= least, chances, 0)
    return kept / kept.sum(-1, keepdim=True)


def top_p(chances: Tensor, p: float) -> Tensor:
    """Holtzman et al. 2019: the fewest that have a share p together."""
    ordered, places = chances.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.where(before < p, ordered, 0)
    kept = torch.zeros_like(chances).scatter(-1, places, kept)
    return kept / kept.sum(-1, keepdim=True)


# %% tags=["rules-run"]
RULES = {
    "greedy": lambda scores: top_k(cooled(scores, 1.0), 1),
    "temperature 0.5": lambda scores: cooled(scores, 0.5),
    "temperature 1": lambda scores: cooled(scores, 1.0),
    "top-k, k = 5": lambda scores: top_k(cooled(scores, 1.0), 5),
    "top-p, p = 0.8": lambda scores: top_p(cooled(scores, 1.0), 0.8),
}
example = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])
by_rule = {
    "as it is": example,
    "temperature 0.5": cooled(example.log(), 0.5),
    "top-k, k = 2": top_k(example, 2),
    "top-p, p = 0.8": top_p(example, 0.8),
}

# %% tags=["rules-result"]
rows = []
for name, chances in by_rule.items():
    rows.append((name, *(f"{chance:.3f}" for chance in chances.tolist())))
claim(abs(by_rule["temperature 0.5"][0].item() - 0.25 / 0.325) < 1e-6, "squares")
claim(abs(by_rule["top-k, k = 2"][0].item() - 5 / 7) < 1e-6, "5 of 7")
claim(abs(by_rule["top-p, p = 0.8"][0].item() - 50 / 85) < 1e-6, "50 of 85")
table(rows, ("chances", "a", "b", "c", "d", "e"))


# %% tags=["write"]
@torch.no_grad()
def write(model: Decoder, tokens: Tensor, steps: int, rule) -> Tensor:
    """Go on from tokens (B, T) by `steps` drawn ones, with a cache: (B, T + steps)."""
    scores, cache = model(tokens)
    for _ in range(steps):
        chances = rule(scores[:, -1]).cpu()
        new = torch.multinomial(chances, 1).to(tokens.device)  # (B, 1)
        tokens = torch.cat((tokens, new), dim=1)
        scores, cache = model(new, cache)
    return tokens


# %% tags=["written"]
START = "And the LORD said unto "
TEXTS = 30
start = torch.tensor([vocabulary.encode(START)] * TEXTS).to(device)
record("texts", TEXTS)
written = {}
for name, rule in RULES.items():
    for number in (0, 1, 2):
        seed(number)
        tokens = write(model, start, T_TRAIN - len(START), rule)
        written[name, number] = [vocabulary.decode(row) for row in tokens]


# %% tags=["measured"]
def known(texts: list[str], vocabulary: set[str]) -> float:
    """Share of the whole words after the start that are in a vocabulary."""
    words = [word for one in texts for word in one[len(START) :].split()[:-1]]
    return sum(word in vocabulary for word in words) / max(len(words), 1)


def different(texts: list[str]) -> float:
    """Number of different words over number of words, in all texts together."""
    words = [word for one in texts for word in one[len(START) :].split()[:-1]]
    return len(set(words)) / max(len(words), 1)


# %% tags=["written-result"]
bible_words = set(bible.train.split())
rows = []
found = {}
for name in RULES:
    texts = [written[name, number] for number in (0, 1, 2)]
    found[name] = (
        [known(t, bible_words) for t in texts],
        [different(t) for t in texts],
    )
    rows.append((name, *(spread(values, ".2f") for values in found[name])))
table(rows, ("rule", "words of the Bible", "different words"))

# %% tags=["samples"]
rows = [(name, written[name, 0][0].replace("\n", " ¶ ")) for name in RULES]
table(rows, ("rule", "sample"))

# %% tags=["written-claims"]
shares = {name: values[0] for name, values in found.items()}
kinds = {name: values[1] for name, values in found.items()}
claim(len(set(written["greedy", 0])) == 1, "greedy writing gives one text")
hot = "temperature 1"
for name in ("greedy", "temperature 0.5", "top-k, k = 5", "top-p, p = 0.8"):
    words = f"{name}: more words of the Bible than at temperature 1, seeds apart"
    claim(min(shares[name]) > max(shares[hot]), words)
    words = f"{name}: fewer different words, seeds apart"
    claim(max(kinds[name]) < min(kinds[hot]), words)
for name in ("top-k, k = 5", "top-p, p = 0.8"):
    words = f"temperature 0.5: more words of the Bible than {name}, fewer kinds"
    claim(min(shares["temperature 0.5"]) > max(shares[name]), words)
    claim(max(kinds["temperature 0.5"]) < min(kinds[name]), words)

# %% tags=["pruned"]
with torch.no_grad():
    scores, _ = model(start[:1])
    chances = cooled(scores[0, -1], 1.0).cpu()
likely = chances.argsort(descending=True)[:12].tolist()
shown = {
    "temperature 1": chances,
    "temperature 0.5": cooled(scores[0, -1], 0.5).cpu(),
    "top-k, k = 5": top_k(chances, 5),
    "top-p, p = 0.8": top_p(chances, 0.8),
}

# %% tags=["pruned-claims"]
kept = (shown["top-p, p = 0.8"] > 0).sum().item()
record("kept", kept)
claim(12 <= kept < len(vocabulary) / 2, "top-p keeps all that are drawn, few of all")
words = "the two likeliest are more than twice as likely as the next"
claim(chances[likely[1]].item() > 2 * chances[likely[2]].item(), words)

# %% tags=["pruned-figure"] alt="Four bar charts of the chances of the twelve likeliest next characters. Temperature 1: two bars stand out and none is empty. Temperature 0.5: the first two are higher, the rest close to nothing. Top-k: five bars are left, each higher than at temperature 1. Top-p: all twelve are left, each a little higher than at temperature 1."
_, panels = plt.subplots(2, 2, figsize=(5, 3.8), sharex=True, sharey=True)
names = []
for place in likely:
    names.append(vocabulary.decode([place]).replace(" ", "␣"))
for axes, (name, values) in zip(panels.flat, shown.items()):
    axes.bar(range(12), values[likely])
    axes.set_title(name)
    axes.set_xticks(range(12), names)
for axes in panels[:, 0]:
    axes.set_ylabel("chance")
axes.set_axisbelow(True)

# %% [markdown]
# ## What we saw
#
# - The mask decides what an output can depend on, at any depth. A prefix decoder lets
#   through what an encoder-decoder does, with one stack in place of two.
# - GPT-2 and LLaMA are one decoder with other parts, and equal those of transformers.
# - Heads of keys that are shared make the cache smaller by their number; the products
#   stay, and each number of the cache is used by more of them.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
wide = {}
for name in ("LLaMA 7B", "LLaMA 65B", "Llama 2 70B", "Mistral 7B"):
    _, size = SIZES[name]
    wide[name] = (size.d_model, 8 * size.d_model / 3, size.d_mlp)

# %% tags=["solution-1-result"]
rows = []
for name, (d_model, equal, d_mlp) in wide.items():
    rows.append((name, d_model, f"{equal:,.0f}", d_mlp, f"{d_mlp / d_model:.2f}"))
for name in ("LLaMA 7B", "LLaMA 65B"):
    _, equal, d_mlp = wide[name]
    claim(0 <= d_mlp - equal < 256 and d_mlp % 256 == 0, "the next multiple of 256")
for name in ("Llama 2 70B", "Mistral 7B"):
    claim(wide[name][2] == 3.5 * wide[name][0], "3.5 times the width")
columns = ("model", "width", "8/3 of it", "hidden", "hidden / width")
table(rows, columns)

# %% tags=["solution-2"]
seed(0)
peeking = Llama(writer).to(device)
losses = train(peeking, train_numbers, 150, mask=everything)
in_training = sum(losses[-10:]) / 10 / math.log(2)
honest = bits(peeking, unseen_numbers)

# %% tags=["solution-2-result"]
words = "it reads the answer: half the bits of the trained GPT"
claim(in_training < held_out / 2, words)
claim(honest > alone, "asked honestly it is behind the counts of characters")
rows = [("the end of training", "encoder's", f"{in_training:.2f}")]
rows.append(("held out", "causal", f"{honest:.2f}"))
table(rows, ("text", "mask", "bits per character"))


# %% tags=["window"]
def window(T: int, start: int, where, *, width: int = 3) -> Tensor:
    """Jiang et al. 2023, section 2: causal, the last `width` tokens only."""
    return causal(T, start, where).triu(diagonal=start - width + 1)


# %% tags=["solution-3"]
spans = {}
for layers in (1, 2, 3):
    seed(0)
    network = Llama(replace(small, layers=layers)).to(device)
    x = torch.randn(1, 12, 64, device=device)
    pattern = reached(last_states, x, network, window)
    spans[layers] = pattern[-1].sum().item()

# %% tags=["solution-3-result"]
for layers, span in spans.items():
    claim(span == 1 + layers * 2, "each layer adds width - 1 tokens")
table([*spans.items()], ("layers", "tokens that the last output depends on"))


# %% tags=["pooled"]
@torch.no_grad()
def pooled(model: Decoder, groups: int) -> Llama:
    """Fewer heads of keys and values, each the mean of some (Ainslie et al. 2023)."""
    size = replace(model.size, n_groups=groups)
    fewer = Llama(size).to(model.embed.weight.device)
    weights = model.state_dict()
    for name in weights:
        if "to_k" in name or "to_v" in name:
            heads = weights[name].unflatten(
                0, (groups, -1, size.d_model // size.n_heads)
            )
            weights[name] = heads.mean(1).flatten(0, 1)
    fewer.load_state_dict(weights)
    return fewer


# %% tags=["solution-4"]
shared = pooled(model, 1)
pooled_bits = [bits(shared, unseen_numbers)]
seed(0)
train(shared, train_numbers, STEPS // 10)
pooled_bits.append(bits(shared, unseen_numbers))

# %% tags=["solution-4-result"]
steps = ("two heads of keys", "their mean", f"trained for {STEPS // 10} steps more")
rows = []
for name, value in zip(steps, (held_out, *pooled_bits)):
    rows.append((name, f"{value:.2f}"))
words = (
    "the mean costs more than 0.3 bits, of which a tenth of the steps give half back"
)
half = (held_out + pooled_bits[0]) / 2
claim(pooled_bits[0] > held_out + 0.3 and pooled_bits[1] < half, words)
table(rows, ("small GPT", "bits per character"))
