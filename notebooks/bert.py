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
# # BERT
#
# Pieces of words, trained and applied; the network, equal to transformers; two tasks that
# need no labels; real weights in our own classes; and what they are worth when there are
# few labels.
# The text to it is the [chapter](../chapters/bert.rst), the paper is
# [Devlin et al. 2018](https://arxiv.org/abs/1810.04805).

# %%
import copy
import math
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial

import matplotlib.pyplot as plt
import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._meta import _IMAGENET_CATEGORIES
from transformers import BertConfig, BertForPreTraining, BertModel

from workbench import claim, device, evaluating, record, record_spread, seed
from workbench import sources, spread, table
from workbench import checks, counting, diagrams, plots, pretrained, text, training

# %% [markdown]
# ## Pieces of words
#
# A text becomes words and signs, a word becomes pieces of the vocabulary.


# %% tags=["split"]
def stands_alone(c: str) -> bool:
    """Signs and Chinese characters are words of their own."""
    sign = c.isascii() and c.isprintable() and not c.isalnum() and c != " "
    chinese = "\u3400" <= c <= "\u4dbf" or "\u4e00" <= c <= "\u9fff"
    return sign or chinese or unicodedata.category(c)[0] == "P"


def split_words(text: str) -> list[str]:
    """Words and signs of a text in small letters without accents."""
    letters = unicodedata.normalize("NFD", text.lower())
    spaced = ""
    for c in letters:
        if stands_alone(c):
            spaced += f" {c} "
        elif unicodedata.category(c) != "Mn":  # an accent
            spaced += c
    return spaced.split()


# %% tags=["wordpiece-train"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)


def most_frequent(pairs: Counter, singles: Counter) -> tuple[str, str]:
    return max(pairs, key=pairs.get)


def most_likely(pairs: Counter, singles: Counter) -> tuple[str, str]:
    """The pair that is more frequent than its halves let expect."""
    return max(pairs, key=lambda p: pairs[p] / (singles[p[0]] * singles[p[1]]))


def join(spelt: list[str], pair: tuple[str, str]) -> list[str]:
    """Each place where the pair stands becomes one piece, from the left."""
    found = []
    for piece in spelt:
        if found and (found[-1], piece) == pair:
            found[-1] += piece.removeprefix("##")
        else:
            found.append(piece)
    return found


# %% tags=["wordpiece-learner"]
class WordPieceLearner:
    """Words as pieces, at first one a letter, and how often pieces and pairs occur."""

    def __init__(self, counts: Counter):
        self.counts = counts
        self.spelt = {}
        self.singles = Counter()
        self.pairs = Counter()
        self.where = defaultdict(set)  # the words that a pair stands in
        for word in counts:
            self.put(word, [word[0], *(f"##{c}" for c in word[1:])])

    def put(self, word: str, spelt: list[str]) -> None:
        self.spelt[word] = spelt
        self.count(word, self.counts[word])
        for pair in zip(spelt, spelt[1:]):
            self.where[pair].add(word)

    def count(self, word: str, times: int) -> None:
        spelt = self.spelt[word]
        for piece in spelt:
            self.singles[piece] += times
        for pair in zip(spelt, spelt[1:]):
            self.pairs[pair] += times

    def merge(self, pair: tuple[str, str]) -> str:
        for word in sorted(self.where.pop(pair)):
            if word_has(self.spelt[word], pair):
                self.count(word, -self.counts[word])
                self.put(word, join(self.spelt[word], pair))
        del self.pairs[pair]
        return pair[0] + pair[1].removeprefix("##")


def word_has(spelt: list[str], pair: tuple[str, str]) -> bool:
    return pair in zip(spelt, spelt[1:])


def learn_pieces(counts: Counter, size: int, best=most_frequent) -> list[str]:
    """A vocabulary: special pieces, letters, and one merge after the other."""
    learner = WordPieceLearner(counts)
    vocabulary = dict.fromkeys([*SPECIAL, *sorted(learner.singles)])
    while len(vocabulary) < size and max(learner.pairs.values(), default=0) > 0:
        pair = best(learner.pairs, learner.singles)
        vocabulary[learner.merge(pair)] = None
    return list(vocabulary)


# %% tags=["by-hand"]
HUGS = Counter({"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5})


def first_merges(counts: Counter, best, steps: int) -> list[str]:
    letters = 5 + len(WordPieceLearner(counts).singles)
    return learn_pieces(counts, letters + steps, best)[letters:]


# %% tags=["by-hand-result"]
by_rule = {}
for name, best in (("pair", most_frequent), ("likelihood", most_likely)):
    by_rule[name] = first_merges(HUGS, best, 3)
claim(by_rule["pair"][0] == "##ug", "the pair u g is the most frequent, 20 times")
claim(by_rule["likelihood"][0] == "##gs", "g s is 5 of 20 and 5")
rows = [(name, *found) for name, found in by_rule.items()]
table(rows, ("merged by", "first", "second", "third"))


# %% tags=["wordpiece-apply"]
class WordPiece:
    """Texts as numbers of a vocabulary: from the left, the longest piece that fits."""

    def __init__(self, vocabulary: list[str]):
        self.pieces = vocabulary
        self.numbers = {piece: number for number, piece in enumerate(vocabulary)}

    def cut(self, word: str) -> list[str]:
        found = []
        start = 0
        while start < len(word):
            mark = "##" if start else ""
            ends = range(len(word), start, -1)
            fits = (end for end in ends if mark + word[start:end] in self.numbers)
            end = next(fits, None)
            if end is None:
                return ["[UNK]"]
            found.append(mark + word[start:end])
            start = end
        return found

    def tokens(self, text: str) -> list[str]:
        found = []
        for word in split_words(text):
            found += self.cut(word)
        return found

    def encode(self, text: str) -> list[int]:
        """[CLS], the pieces of the text, [SEP]."""
        tokens = ["[CLS]", *self.tokens(text), "[SEP]"]
        return [self.numbers[token] for token in tokens]

    def padded(self, texts: list[str]) -> Tensor:
        """Texts as rows (B, T), [PAD] behind the shorter."""
        rows = [torch.tensor(self.encode(text)) for text in texts]
        pad = self.numbers["[PAD]"]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)


# %% tags=["vocabulary"]
bible = text.english()
train_text = "\n".join(bible.train.split("\n")[::4])
held_text = "\n".join(bible.validation.split("\n")[::2])
word_counts = Counter(split_words(train_text))
tokenizer = WordPiece(learn_pieces(word_counts, 1000))
record("words", len(word_counts))
len(tokenizer.pieces)

# %% tags=["pieces-result"]
real = pretrained.minilm()
minilm_tokenizer = WordPiece(real.vocabulary)
rows = []
for word in ("kingdom", "righteousness", "tokenizer", "playing"):
    ours = " ".join(tokenizer.cut(word))
    rows.append((word, ours, " ".join(minilm_tokenizer.cut(word))))
table(rows, ("word", "1,000 pieces of this page", "30,522 pieces of BERT"))

# %% tags=["tokens-equal"]
for name, ours in (("own", tokenizer), ("real", minilm_tokenizer)):
    theirs = BertWordPieceTokenizer(ours.numbers)
    expected = theirs.encode(held_text, add_special_tokens=False).tokens
    found = ours.tokens(held_text)
    claim(found == expected, f"the {name} pieces are those of the library")
    record(f"pieces.{name}", len(found))
record("held.words", len(split_words(held_text)))
library = BertWordPieceTokenizer()
library.train_from_iterator(train_text.split("\n"), vocab_size=1000, show_progress=False)
shared = set(library.get_vocab()) & set(tokenizer.pieces)
claim(len(shared) >= 990, "at most ten pieces differ from those of the library's trainer")
record("shared.pieces", len(shared))


# %% [markdown]
# ## The network
#
# Three vectors are added for each piece; then layers of attention look to both sides.


# %% tags=["size"]
@dataclass(frozen=True)
class Size:
    """What a BERT is made of; the published ones have 30,522 pieces."""

    n_layers: int
    d_model: int
    n_heads: int
    V: int = 30_522
    longest: int = 512


BASE = Size(12, 768, 12)
LARGE = Size(24, 1024, 16)
MINILM = Size(6, 384, 12)


# %% tags=["embedding"]
class Embedding(nn.Module):
    """The sum of three vectors: of the piece, of its place, of its segment."""

    def __init__(self, size: Size):
        super().__init__()
        self.word = nn.Embedding(size.V, size.d_model)
        self.position = nn.Embedding(size.longest, size.d_model)
        self.segment = nn.Embedding(2, size.d_model)
        self.norm = nn.LayerNorm(size.d_model, eps=1e-12)
        self.drop = nn.Dropout(0.1)

    def forward(self, numbers: Tensor, segments: Tensor) -> Tensor:
        # (B, T), (B, T) -> (B, T, D)
        T = numbers.shape[1]
        x = self.word(numbers) + self.segment(segments) + self.position.weight[:T]
        return self.drop(self.norm(x))


# %% tags=["attention"]
class SelfAttention(nn.Module):
    """Each piece takes a mean over all that are no padding, h times."""

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        assert d_model % n_heads == 0, "n_heads must divide d_model"
        self.n_heads = n_heads
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)
        self.drop = nn.Dropout(0.1)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.n_heads, -1)).transpose(1, 2)  # (B, h, T, d)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        # x (B, T, D), real (B, T): True where no padding is
        q = self.heads(self.query(x))
        k = self.heads(self.key(x))
        v = self.heads(self.value(x))
        scores = q @ k.mT / math.sqrt(q.shape[-1])  # (B, h, T, T)
        scores = scores.masked_fill(~real[:, None, None], -math.inf)
        mixed = self.drop(scores.softmax(-1)) @ v  # (B, h, T, d)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (B, T, D)


# %% tags=["layer"]
class Layer(nn.Module):
    """Attention and a network for each piece, each added and then normalised."""

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.attention = SelfAttention(d_model, n_heads)
        self.norm1 = nn.LayerNorm(d_model, eps=1e-12)
        self.wide = nn.Linear(d_model, 4 * d_model)
        self.narrow = nn.Linear(4 * d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model, eps=1e-12)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        # (B, T, D) -> (B, T, D)
        x = self.norm1(x + self.drop(self.attention(x, real)))
        branch = self.narrow(F.gelu(self.wide(x)))
        return self.norm2(x + self.drop(branch))


# %% tags=["bert"]
class BERT(nn.Module):
    """A vector for each piece, made from all pieces before and behind it.

    Devlin et al. 2018, section 3. PAD in numbers is not looked at.
    """

    def __init__(self, size: Size):
        super().__init__()
        self.embed = Embedding(size)
        self.layers = nn.ModuleList()
        for _ in range(size.n_layers):
            self.layers.append(Layer(size.d_model, size.n_heads))
        self.pooler = nn.Linear(size.d_model, size.d_model)
        self.apply(initialise)

    def forward(self, numbers: Tensor, segments: Tensor | None = None) -> Tensor:
        # (B, T) -> (B, T, D)
        if segments is None:
            segments = torch.zeros_like(numbers)
        x = self.embed(numbers, segments)
        for layer in self.layers:
            x = layer(x, numbers != PAD)
        return x

    def pool(self, x: Tensor) -> Tensor:
        return torch.tanh(self.pooler(x[:, 0]))  # of [CLS], (B, D)


def initialise(layer: nn.Module) -> None:
    """Normal weights with a deviation of 0.02, no biases."""
    if isinstance(layer, nn.Linear | nn.Embedding):
        nn.init.normal_(layer.weight, std=0.02)
    if isinstance(layer, nn.Linear):
        nn.init.zeros_(layer.bias)


# %% tags=["bert-shape"]
tiny = Size(2, 128, 4, V=1000, longest=64)
BERT(tiny)(torch.randint(5, 1000, (3, 7))).shape


# %% tags=["pretraining-model"]
class Pretraining(nn.Module):
    """A BERT with a head for each task: which piece is hidden, does B follow A."""

    def __init__(self, size: Size):
        super().__init__()
        self.bert = BERT(size)
        self.bias = nn.Parameter(torch.zeros(size.V))
        self.transform = nn.Linear(size.d_model, size.d_model)
        self.norm = nn.LayerNorm(size.d_model, eps=1e-12)
        self.follows = nn.Linear(size.d_model, 2)
        self.apply(initialise)

    def forward(self, numbers: Tensor, segments: Tensor, where: Tensor):
        # where (B, T), True at M places -> scores (M, V), (B, 2)
        x = self.bert(numbers, segments)
        hidden = self.norm(F.gelu(self.transform(x[where])))  # (M, D)
        pieces = hidden @ self.bert.embed.word.weight.T + self.bias
        return pieces, self.follows(self.bert.pool(x))


# %% tags=["input-figure"] alt="A table of seven columns, one for each piece of the input: CLS, the, cat, SEP, it, sleeps, SEP. Below each piece stand three boxes joined by plus signs: a vector of the piece, a vector of its segment, A for the first four and B for the last three, and a vector of its place, 0 to 6."
axes = diagrams.sheet(2.0)
shown = ("[CLS]", "the", "cat", "[SEP]", "it", "sleeps", "[SEP]")
nodes = {}
for place, piece in enumerate(shown):
    x = 0.68 + 0.63 * place
    side = "A" if place < 4 else "B"
    colour = plots.COLOURS[0] if place < 4 else plots.COLOURS[1]
    nodes[f"piece{place}"] = diagrams.Node(x, 0.25, piece)
    nodes[f"word{place}"] = diagrams.Node(x, 0.75, "$w$", 0.4)
    nodes[f"segment{place}"] = diagrams.Node(x, 1.2, f"${side}$", 0.4, colour=colour)
    nodes[f"place{place}"] = diagrams.Node(x, 1.65, f"$p_{place}$", 0.4)
diagrams.draw(axes, nodes)
for y in (0.975, 1.425):
    for place in range(7):
        axes.text(0.68 + 0.63 * place, y, "+", ha="center", va="center", fontsize=9)
axes.set_axisbelow(True)


# %% tags=["count"]
def formula(size: Size) -> int:
    """Embeddings with their norm, layers, pooler."""
    D = size.d_model
    embeddings = (size.V + size.longest + 2) * D + 2 * D
    return embeddings + size.n_layers * (12 * D**2 + 13 * D) + D**2 + D


def published(size: Size) -> BertConfig:
    """The same network in transformers."""
    return BertConfig(
        vocab_size=size.V,
        hidden_size=size.d_model,
        num_hidden_layers=size.n_layers,
        num_attention_heads=size.n_heads,
        intermediate_size=4 * size.d_model,
        max_position_embeddings=size.longest,
        attn_implementation="eager",
    )


# %% tags=["count-result"]
rows = []
for name, size in (("base", BASE), ("large", LARGE), ("MiniLM", MINILM)):
    with torch.device("meta"):
        network = BERT(size)
        theirs = BertModel(published(size))
        numbers = torch.zeros(1, 128, dtype=torch.long)
    parameters = counting.parameters(network)
    macs = counting.macs(network, numbers)
    D = size.d_model
    by_hand = size.n_layers * 128 * (12 * D**2 + 2 * 128 * D)
    claim(parameters == formula(size), f"the formula counts {name}")
    claim(macs == by_hand, f"the products of {name} are those of the formula")
    shapes = [p.shape for p in network.parameters()]
    same = shapes == [p.shape for p in theirs.parameters()]
    claim(same, f"the tensors of {name} are those of transformers")
    record(f"{name}.parameters", parameters)
    record(f"{name}.macs", macs)
    rows.append((name, size.n_layers, D, size.n_heads, parameters, f"{macs / 1e9:.2f} G"))
table(rows, ("size", "layers", "width", "heads", "parameters", "MACs, 128 pieces"))

# %% tags=["load"]
minilm = BERT(MINILM)
checks_names = zip(minilm.state_dict(), real.weights.values(), strict=True)
minilm.load_state_dict(dict(checks_names))
minilm = minilm.to(device).eval()

# %% tags=["equal"]
seed(0)
rows = []
lines = held_text.split("\n")[:4]
batch = minilm_tokenizer.padded(lines)
their_minilm = BertModel(published(MINILM)).eval()
their_minilm.load_state_dict(real.weights)
with torch.no_grad():
    ours = minilm(batch.to(device)).cpu()
    theirs = their_minilm(batch, attention_mask=(batch != PAD).long())
    pooled = minilm.pool(ours.to(device)).cpu()
kept = batch != PAD
found = checks.deviation(ours[kept], theirs.last_hidden_state[kept])
pool_found = checks.deviation(pooled, theirs.pooler_output)
rows.append(("MiniLM, real weights", "four paragraphs", f"{found:.1e}"))
rows.append(("its pooler", "four paragraphs", f"{pool_found:.1e}"))
for name, size in (("base", BASE), ("large", LARGE)):
    shallow = Size(2, size.d_model, size.n_heads, V=100, longest=32)
    mine = BERT(shallow).eval()
    their = BertModel(published(shallow)).eval()
    checks.transplant(their, mine)
    numbers = torch.randint(5, 100, (2, 32))
    segments = (torch.arange(32) > 15).long().expand(2, -1)
    with torch.no_grad():
        wanted = their(numbers, token_type_ids=segments).last_hidden_state
        value = checks.deviation(mine(numbers, segments), wanted)
    rows.append((f"two layers of {name}", "random", f"{value:.1e}"))
    found = max(found, value)
record("deviation", found)
claim(found < 1e-5, "the outputs are those of transformers")
table(rows, ("network", "input", "largest difference"))

# %% [markdown]
# ## Two tasks without labels


# %% tags=["hide"]
def hide(numbers: Tensor, V: int) -> tuple[Tensor, Tensor]:
    """Choose 15 % of the pieces; return what the network reads, and where it is asked.

    Devlin et al. 2018, appendix A.1: of the chosen 80 % become [MASK], 10 % another
    piece by chance, 10 % stay. Special pieces are never chosen.
    """
    chosen = (torch.rand(numbers.shape) < 0.15).to(numbers.device)
    chosen &= numbers > MASK
    chance = torch.rand(numbers.shape).to(numbers.device)
    anything = torch.randint(MASK + 1, V, numbers.shape).to(numbers.device)
    read = torch.where(chosen & (chance < 0.8), MASK, numbers)
    read = torch.where(chosen & (chance >= 0.9), anything, read)
    return read, chosen


# %% tags=["pairs"]
def pairs_of(stream: Tensor, B: int, half: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pieces (B, T), segments (B, T), and 0 where B follows A in the text, else 1.

    A and B are `half` pieces each; every other B is from elsewhere.
    """
    start = torch.randint(len(stream) - 2 * half, (B,))
    elsewhere = torch.randint(len(stream) - half, (B,))
    label = torch.arange(B) % 2
    second = torch.where(label == 0, start + half, elsewhere)
    run = torch.arange(half)
    a = stream[start[:, None] + run]
    b = stream[second[:, None] + run]
    cls = torch.full((B, 1), CLS)
    sep = torch.full((B, 1), SEP)
    numbers = torch.cat((cls, a, sep, b, sep), 1)  # (B, 2 half + 3)
    segments = (torch.arange(2 * half + 3) > half + 1).long().expand(B, -1)
    return numbers, segments, label


# %% tags=["hide-result"]
seed(0)
line = tokenizer.padded(["And God said, Let there be light: and there was light."])
read, chosen = hide(line, 1000)
shown = [tokenizer.pieces[n] for n in read[0]]
table([(" ".join(shown), int(chosen.sum()))], ("what is read", "asked for"))


# %% tags=["pretrain"]
def pretrain(model: Pretraining, stream: Tensor, steps: int, *, B=16, half=28):
    """Adam on both losses; returns the loss of hidden pieces at each step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = training.one_cycle(optimizer, steps)
    where = next(model.parameters()).device
    model.train()
    losses = []
    for _ in training.progress(range(steps), "steps"):
        numbers, segments, label = (t.to(where) for t in pairs_of(stream, B, half))
        read, chosen = hide(numbers, len(model.bias))
        pieces, follows = model(read, segments, chosen)
        masked = F.cross_entropy(pieces, numbers[chosen])
        loss = masked + F.cross_entropy(follows, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(masked.item())
    return losses


# %% tags=["pretrain-run"]
stream = torch.tensor([tokenizer.numbers[t] for t in tokenizer.tokens(train_text)])
unseen = torch.tensor([tokenizer.numbers[t] for t in tokenizer.tokens(held_text)])
seed(0)
small = Pretraining(tiny).to(device)
losses = pretrain(small, stream, 300)


# %% tags=["ask"]
@torch.no_grad()
def ask(model: Pretraining, stream: Tensor, B: int = 200) -> dict[str, float]:
    """Share of hidden pieces and of pairs that are right, beside the most frequent piece."""
    where = next(model.parameters()).device
    numbers, segments, label = (t.to(where) for t in pairs_of(stream, B, 28))
    read, chosen = hide(numbers, len(model.bias))
    with evaluating(model):
        pieces, follows = model(read, segments, chosen)
    wanted = numbers[chosen]
    return {
        "hidden": (pieces.argmax(1) == wanted).double().mean().item(),
        "pairs": (follows.argmax(1) == label).double().mean().item(),
        "bits": F.cross_entropy(pieces, wanted).item() / math.log(2),
    }


# %% tags=["pretrain-result"]
seed(1)
asked = ask(small, unseen)
often = stream.bincount(minlength=1000).double()
share = (often + 1) / (often + 1).sum()
unigram = (unseen == often.argmax()).double().mean().item()
unigram_bits = -share[unseen].log2().mean().item()
for name, value in asked.items():
    record(f"tiny.{name}", value)
record("unigram.hidden", unigram)
record("unigram.bits", unigram_bits)
rows = [("most frequent piece", f"{unigram:.1%}", f"{unigram_bits:.2f}")]
rows.append(("two layers, 300 steps", f"{asked['hidden']:.1%}", f"{asked['bits']:.2f}"))
table(rows, ("guess by", "hidden pieces right", "bits a piece"))
print(asked)
