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

import matplotlib.pyplot as plt
import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._meta import _IMAGENET_CATEGORIES
from transformers import BertConfig, BertModel

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
PAD = 0
CLS = 2
SEP = 3
MASK = 4


def most_frequent(pairs: Counter, singles: Counter) -> tuple[str, str]:
    return max(pairs, key=pairs.get)


def highest_score(pairs: Counter, singles: Counter) -> tuple[str, str]:
    """The pair that is more frequent than its parts let expect."""
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
            if self.pairs[pair] == 0:
                del self.pairs[pair]

    def merge(self, pair: tuple[str, str]) -> str:
        for word in sorted(self.where.pop(pair)):
            if word_has(self.spelt[word], pair):
                self.count(word, -self.counts[word])
                self.put(word, join(self.spelt[word], pair))
        return pair[0] + pair[1].removeprefix("##")


def word_has(spelt: list[str], pair: tuple[str, str]) -> bool:
    return pair in zip(spelt, spelt[1:])


def learn_pieces(counts: Counter, size: int, best=most_frequent) -> list[str]:
    """A vocabulary: special pieces, letters, and one merge after the other."""
    learner = WordPieceLearner(counts)
    vocabulary = dict.fromkeys([*SPECIAL, *sorted(learner.singles)])
    while len(vocabulary) < size and learner.pairs:
        pair = best(learner.pairs, learner.singles)
        vocabulary[learner.merge(pair)] = None
    return list(vocabulary)


# %% tags=["by-hand"]
FIVE = Counter({"seam": 4, "seat": 10, "rest": 5, "read": 6, "rose": 6})


def first_merges(counts: Counter, best, steps: int) -> list[str]:
    letters = 5 + len(WordPieceLearner(counts).singles)
    return learn_pieces(counts, letters + steps, best)[letters:]


# %% tags=["by-hand-result"]
RULES = {"frequency": most_frequent, "score": highest_score}
by_rule = {}
for name, best in RULES.items():
    by_rule[name] = first_merges(FIVE, best, 3)
claim(by_rule["frequency"][0] == "##ea", "the pair e a is the most frequent, 20 times")
claim(by_rule["score"][0] == "##os", "o s is 6 of 6 and 11")
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
library.train_from_iterator(
    train_text.split("\n"), vocab_size=1000, show_progress=False
)
shared = set(library.get_vocab()) & set(tokenizer.pieces)
claim(len(shared) >= 980, "at most twenty pieces differ from the library's")
letters = {piece for piece in set(library.get_vocab()) - shared if len(piece) == 1}
claim(letters == {"x"}, "the library keeps x, too, which begins no word")
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
tiny = Size(1, 64, 4, V=1000, longest=32)
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


# %% tags=["input-figure"] alt="A table of seven columns, one for each piece of the input: CLS, the, cat, SEP, it, sleeps, SEP. Below each piece stand three boxes joined by plus signs: a vector of the piece, a vector of its segment, s A for the first four and s B for the last three, and a vector of its place, 0 to 6."
axes = diagrams.sheet(2.0)
shown = ("[CLS]", "the", "cat", "[SEP]", "it", "sleeps", "[SEP]")
nodes = {}
for place, piece in enumerate(shown):
    x = 0.68 + 0.63 * place
    side = "A" if place < 4 else "B"
    colour = plots.COLOURS[0] if place < 4 else plots.COLOURS[1]
    nodes[f"piece{place}"] = diagrams.Node(x, 0.25, piece)
    nodes[f"word{place}"] = diagrams.Node(x, 0.75, "$w$", 0.4)
    nodes[f"segment{place}"] = diagrams.Node(x, 1.2, f"$s_{side}$", 0.4, colour=colour)
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
    rows.append(
        (name, size.n_layers, D, size.n_heads, parameters, f"{macs / 1e9:.2f} G")
    )
table(rows, ("size", "layers", "width", "heads", "parameters", "MACs, 128 pieces"))

# %% tags=["load"]
minilm = BERT(MINILM)
pairs = zip(minilm.state_dict(), real.weights.values(), strict=True)
minilm.load_state_dict(dict(pairs))
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
claim(not kept.all(), "the paragraphs are padded")
found = checks.deviation(ours[kept], theirs.last_hidden_state[kept])
pool_found = checks.deviation(pooled, theirs.pooler_output)
largest = max(found, pool_found)
rows.append(("MiniLM, real weights", "four paragraphs, padded", f"{found:.1e}"))
rows.append(("its pooler", "four paragraphs, padded", f"{pool_found:.1e}"))
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
    rows.append((f"two layers of {name}", "random, two segments", f"{value:.1e}"))
    largest = max(largest, value)
record("deviation", largest)
claim(largest < 1e-5, "the outputs are those of transformers")
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
seed(393)  # a draw in which all three happen
verse = "And God said, Let there be light: and there was light. And God saw the light."
line = tokenizer.padded([verse])
read, chosen = hide(line, 1000)
was = [tokenizer.pieces[n] for n in line[0]]
now = [tokenizer.pieces[n] for n in read[0]]
asked = [a if there else "-" for a, there in zip(was, chosen[0])]
rows = [
    ("text", " ".join(was)),
    ("read", " ".join(now)),
    ("asked for", " ".join(asked)),
]
table(rows, ("what", "pieces"))

# %% tags=["hide-claims"]
changed = [n for a, n in zip(was, now) if a != n]
claim(len(changed) == 3 and changed.count("[MASK]") == 2, "two hidden, one other")
claim(int(chosen.sum()) == 4, "and one stays")


# %% tags=["pretrain"]
def pretrain(model: Pretraining, stream: Tensor, steps: int) -> list[float]:
    """Adam on the sum of both losses, 128 pairs of two times 4 pieces a step.

    Nothing is dropped: the steps are few. Returns the loss behind [MASK], step by step.
    """
    model.eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.9, 0.98))
    schedule = training.one_cycle(optimizer, steps)
    where = next(model.parameters()).device
    losses = []
    for _ in training.progress(range(steps), "steps"):
        numbers, segments, label = (t.to(where) for t in pairs_of(stream, 128, 4))
        read, chosen = hide(numbers, len(model.bias))
        pieces, follows = model(read, segments, chosen)
        each = F.cross_entropy(pieces, numbers[chosen], reduction="none")
        loss = each.mean() + F.cross_entropy(follows, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(each[read[chosen] == MASK].mean().item())
    return losses


# %% tags=["numbered"]
def numbered(tokenizer: WordPiece, text: str) -> Tensor:
    return torch.tensor([tokenizer.numbers[token] for token in tokenizer.tokens(text)])


stream = numbered(tokenizer, train_text)
unseen = numbered(tokenizer, held_text)

# %% tags=["pretrain-run"]
seed(0)
small = Pretraining(tiny).to(device)
for p in small.parameters():
    if p.ndim == 2:  # wider than 0.02: the network is narrow
        nn.init.normal_(p, std=0.1)
losses = pretrain(small, stream, 600)


# %% tags=["ask"]
@torch.no_grad()
def ask(model: Pretraining, stream: Tensor, B: int) -> tuple[Tensor, Tensor, float]:
    """Scores (M, V) and pieces (M,) behind [MASK], and the share of pairs right."""
    where = next(model.parameters()).device
    numbers, segments, label = (t.to(where) for t in pairs_of(stream, B, 4))
    read, _ = hide(numbers, len(model.bias))
    with evaluating(model):
        scores, follows = model(read, segments, read == MASK)
    pairs = (follows.argmax(1) == label).double().mean().item()
    return scores.cpu(), numbers[read == MASK].cpu(), pairs


def judge(scores: Tensor, wanted: Tensor) -> tuple[float, float]:
    """The share whose largest score is right, and the bits that each of them costs."""
    share = (scores.argmax(1) == wanted).double().mean().item()
    return share, F.cross_entropy(scores, wanted).item() / math.log(2)


# %% tags=["pretrain-result"]
seed(1)
scores, wanted, pairs_right = ask(small, unseen, 4000)
often = stream.bincount(minlength=1000) + 1.0
by_frequency = (often / often.sum()).log().expand(len(wanted), -1)
found, bits = judge(scores, wanted)
unigram, unigram_bits = judge(by_frequency, wanted)
rows = [("frequencies", f"{unigram:.1%}", f"{unigram_bits:.2f}")]
rows.append(("one layer, 600 steps", f"{found:.1%}", f"{bits:.2f}"))
table(rows, ("guess by", "hidden pieces right", "bits a piece"))

# %% tags=["pretrain-claims"]
record("tiny.pairs", pairs_right)
record("most.frequent", tokenizer.pieces[often.argmax()])
claim(found > 1.4 * unigram, "it finds more than the most frequent piece")
claim(bits < unigram_bits - 0.15, "it needs fewer bits than the frequencies")
claim(abs(pairs_right - 0.5) < 0.06, "pairs are not told from chance")
smooth = [part.mean() / math.log(2) for part in torch.tensor(losses).split(20)]
claim(min(smooth[:5]) > unigram_bits - 0.2, "a hundred steps end at the frequencies")
claim(smooth[-1] < smooth[12] - 0.15, "the second half goes below them")

# %% tags=["curve"] alt="Bits for each hidden piece against the step of training, 0 to 600, mean of 20 steps. They fall steeply to the dotted line of the frequencies, stay near it, and go below it in the second half."
_, axes = plt.subplots()
axes.plot(range(20, 20 * len(smooth) + 1, 20), smooth)
axes.axhline(unigram_bits, linestyle=":", color=plots.QUIET)
axes.text(600, unigram_bits + 0.05, "frequencies", ha="right", color=plots.QUIET)
axes.set(xlabel="step", ylabel="bits a hidden piece", ylim=(7, 10))
axes.set_axisbelow(True)

# %% [markdown]
# ## Vectors of sentences and of pieces
#
# The real weights in our own classes.


# %% tags=["vectors"]
def mean_vector(x: Tensor, real: Tensor) -> Tensor:
    """The mean over the pieces that are no padding: (B, T, D), (B, T) -> (B, D)."""
    weight = real.unsqueeze(2).to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1)


@torch.no_grad()
def sentence_vectors(model: BERT, numbers: Tensor) -> Tensor:
    """Mean vectors of length one: (B, T) -> (B, D)."""
    with evaluating(model):
        x = model(numbers)
    return F.normalize(mean_vector(x, numbers != PAD))


# %% tags=["sentences"]
SENTENCES = (
    "The ship left the harbour at dawn.",
    "A boat sailed out of the port in the morning.",
    "The soup needs more salt.",
    "Add some spices to the stew.",
)
numbers = minilm_tokenizer.padded(SENTENCES).to(device)
alike = sentence_vectors(minilm, numbers)
alike = (alike @ alike.T).cpu()
near = min(alike[0, 1], alike[2, 3])
claim(near > 2 * alike[:2, 2:].max(), "pairs on one subject are nearer")
rows = [(s, *(f"{v:.2f}" for v in line)) for s, line in zip(SENTENCES, alike)]
table(rows, ("sentence", "1", "2", "3", "4"))


# %% tags=["token-vectors"]
@torch.no_grad()
def token_vector(model: BERT, tokenizer: WordPiece, text: str, word: str) -> Tensor:
    """The vector of a word of one piece where it stands first in a text."""
    place = 1 + tokenizer.tokens(text).index(word)
    numbers = torch.tensor([tokenizer.encode(text)])
    with evaluating(model):
        x = model(numbers.to(model.pooler.weight.device))
    return F.normalize(x[0, place], dim=0)


# %% tags=["tokens-result"]
BANKS = (
    "We sat on the bank of the river and fished.",
    "They walked along the bank of the stream.",
    "She put her wages into the bank.",
    "The bank raised the interest on loans.",
)
banks = [token_vector(minilm, minilm_tokenizer, line, "bank") for line in BANKS]
banks = torch.stack(banks)
banks = (banks @ banks.T).cpu()
claim(banks[0, 1] > banks[:2, 2:].max() + 0.05, "rivers are nearer than money")
claim(abs(banks[1, 2] - banks[2, 3]) < 0.03, "the banks with money are hardly nearer")
record("bank.across", banks[1, 2])
record("bank.money", banks[2, 3])
rows = [(s, *(f"{v:.2f}" for v in line)) for s, line in zip(BANKS, banks)]
table(rows, ("the vector of bank in", "1", "2", "3", "4"))

# %% [markdown]
# ## Fine-tuning
#
# Names of things and of animals: the first 398 of ImageNet's 1,000 classes are animals.


# %% tags=["names"]
def names_of(tokenizer: WordPiece) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Numbers (N, 8) and labels of 256 names to train and of 240 held out.

    Half are things, 0, and half animals, 1. Names of more than six pieces are left out.
    """
    sources.append("names of ImageNet's classes from the package torchvision")
    rows = tokenizer.padded(_IMAGENET_CATEGORIES)
    animal = torch.arange(1000) < 398
    short = (rows != PAD).sum(1) <= 8
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    train = []
    test = []
    for kind in (False, True):
        chosen = order[(animal == kind)[order] & short[order]]
        test.append(chosen[:120])
        train.append(chosen[120:248])
    train = torch.cat(train)
    test = torch.cat(test)
    return rows[train, :8], animal[train].long(), rows[test, :8], animal[test].long()


# %% tags=["names-data"]
names, kinds, test_names, test_kinds = names_of(minilm_tokenizer)
examples = []
for row, kind in zip(test_names[::40], test_kinds[::40]):
    pieces = [minilm_tokenizer.pieces[n] for n in row if n != PAD]
    examples.append((" ".join(pieces), ("thing", "animal")[kind]))
table(examples, ("what is read", "what it is"))


# %% tags=["classifier"]
class Classifier(nn.Module):
    """Layers over vectors that are made elsewhere, and scores from their mean."""

    def __init__(self, layers, d_model: int, K: int):
        super().__init__()
        self.layers = layers
        self.head = nn.Linear(d_model, K)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        # (B, T, D), (B, T) -> (B, K)
        for layer in self.layers:
            x = layer(x, real)
        return self.head(mean_vector(x, real))


class FromNothing(nn.Module):
    """A fresh BERT with the same head, trained as a whole."""

    def __init__(self, size: Size, K: int):
        super().__init__()
        self.bert = BERT(size)
        self.top = Classifier(nn.ModuleList(), size.d_model, K)

    def forward(self, numbers: Tensor, real: Tensor) -> Tensor:
        return self.top(self.bert(numbers), real)


# %% tags=["lower"]
@torch.no_grad()
def below(model: BERT, numbers: Tensor, last: int) -> Tensor:
    """What all layers but the last few give: (B, T) -> (B, T, D)."""
    with evaluating(model):
        x = model.embed(numbers, torch.zeros_like(numbers))
        for layer in model.layers[:-last]:
            x = layer(x, numbers != PAD)
    return x


# %% tags=["fine-tune"]
def balanced(kinds: Tensor, n: int, number: int) -> Tensor:
    """Places of n examples, half of each kind, chosen by a seed."""
    draw = torch.Generator().manual_seed(number)
    order = torch.randperm(len(kinds), generator=draw)
    halves = [order[kinds[order] == kind][: n // 2] for kind in (0, 1)]
    return torch.cat(halves)


def fine_tune(network, x: Tensor, real: Tensor, kinds: Tensor, steps: int) -> None:
    """AdamW on batches of 16; a batch may begin a new round through the examples."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    schedule = training.one_cycle(optimizer, steps)
    network.train()
    order = torch.empty(0, dtype=torch.long)
    for _ in training.progress(range(steps), "steps"):
        while len(order) < 16:
            order = torch.cat((order, torch.randperm(len(kinds))))
        batch = order[:16].to(kinds.device)
        order = order[16:]
        loss = F.cross_entropy(network(x[batch], real[batch]), kinds[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def right(network, x: Tensor, real: Tensor, kinds: Tensor) -> float:
    """The share of examples whose larger score is right."""
    with evaluating(network):
        return (network(x, real).argmax(1) == kinds).double().mean().item()


# %% tags=["class-means"]
def class_means(vectors: Tensor, kinds: Tensor, test: Tensor) -> Tensor:
    """The kind whose mean vector is nearer: nothing is trained."""
    means = torch.stack([vectors[kinds == kind].mean(0) for kind in (0, 1)])
    return torch.cdist(test, means).argmin(1)


# %% tags=["counted"]
def count_pieces(names: Tensor, kinds: Tensor, test: Tensor, V: int) -> Tensor:
    """The kind whose names had these pieces more often: naive Bayes, 0.1 added."""
    marks = torch.tensor([0, 101, 102])  # [PAD], [CLS], [SEP] say nothing
    shares = []
    for kind in (0, 1):
        times = names[kinds == kind].flatten().bincount(minlength=V).double() + 0.1
        times[marks] = 0.1
        shares.append(times / times.sum())
    says = (shares[1] / shares[0]).log()
    says[marks] = 0.0
    return (says[test].sum(1) > 0).long()


def by_length(names: Tensor, kinds: Tensor, test: Tensor) -> Tensor:
    """An animal where pieces are more than the limit that suits the examples best."""
    lengths = (names != PAD).sum(1)
    fits = [((lengths > n).long() == kinds).sum() for n in range(names.shape[1])]
    limit = torch.stack(fits).argmax()
    return ((test != PAD).sum(1) > limit).long()


# %% tags=["headline"]
EXAMPLES = (16, 64, 256)
SEEDS = (0, 1, 2)
kept = torch.cat((names, test_names)).unique()  # only these pieces need a vector
own = torch.searchsorted(kept, names).to(device)  # [PAD] stays 0
own_test = torch.searchsorted(kept, test_names).to(device)
fresh_size = Size(2, 128, 4, V=len(kept), longest=8)
seen = below(minilm, names.to(device), 1)
seen_test = below(minilm, test_names.to(device), 1)
with torch.no_grad():
    last = [
        minilm.layers[-1](seen, own != PAD),
        minilm.layers[-1](seen_test, own_test != PAD),
    ]
vectors = F.normalize(mean_vector(last[0], own != PAD)).cpu()
test_vectors = F.normalize(mean_vector(last[1], own_test != PAD)).cpu()
answer = test_kinds.to(device)


# %% tags=["sides"]
def from_real(chosen: Tensor, layers: nn.ModuleList) -> float:
    """The last layers go on learning, those below stay as they are."""
    network = Classifier(copy.deepcopy(layers), 384, 2).to(device)
    x = seen[chosen]
    fine_tune(network, x, own[chosen] != PAD, kinds[chosen].to(device), 30)
    return right(network, seen_test, own_test != PAD, answer)


def from_nothing(chosen: Tensor, size: Size) -> float:
    network = FromNothing(size, 2).to(device)
    x = own[chosen]
    fine_tune(network, x, x != PAD, kinds[chosen].to(device), 60)
    return right(network, own_test, own_test != PAD, answer)


# %% tags=["headline-run"]
TITLES = {
    "real": "fine-tuned",
    "means": "class means",
    "nothing": "from nothing",
    "counted": "counted pieces",
    "length": "number of pieces",
}


def share_right(guess: Tensor) -> float:
    return (guess == test_kinds).double().mean().item()


accuracy = {side: {n: [] for n in EXAMPLES} for side in TITLES}
for n in EXAMPLES:
    for number in SEEDS:
        chosen = balanced(kinds, n, number)
        labels = kinds[chosen]
        seed(number)
        accuracy["real"][n].append(from_real(chosen, minilm.layers[-1:]))
        seed(number)
        accuracy["nothing"][n].append(from_nothing(chosen, fresh_size))
        guess = class_means(vectors[chosen], labels, test_vectors)
        accuracy["means"][n].append(share_right(guess))
        guess = count_pieces(names[chosen], labels, test_names, 30_522)
        accuracy["counted"][n].append(share_right(guess))
        guess = by_length(names[chosen], labels, test_names)
        accuracy["length"][n].append(share_right(guess))

# %% tags=["headline-result"]
rows = []
for side, runs in accuracy.items():
    rows.append((TITLES[side], *(spread(values, ".2f") for values in runs.values())))
    for n, values in runs.items():
        record_spread(f"{side}.{n}", values)
table(rows, ("start", *(f"{n} examples" for n in EXAMPLES)))

# %% tags=["headline-claims"]
without = ("nothing", "counted", "length")
for n in EXAMPLES:
    others = max(max(accuracy[side][n]) for side in without)
    claim(min(accuracy["real"][n]) > others, f"fine-tuned is ahead at {n}")
    if n > 16:
        claim(min(accuracy["means"][n]) > others + 0.05, f"so are the means at {n}")
known = torch.isin(test_names, names) | (test_names == PAD)
unknown = 1 - known.all(1).double().mean().item()
claim(unknown > 0.5, "most held-out names have a piece that no example has")
record("unknown", unknown)
most = max(max(accuracy[side][256]) for side in without)
fewer = min(accuracy["real"][64] + accuracy["means"][64])
claim(fewer > most + 0.03, "64 examples on real weights are ahead of 256 without")

# %% tags=["centre-claims"]
centre = {
    side: {n: sum(v) / 3 for n, v in runs.items()} for side, runs in accuracy.items()
}
for n in EXAMPLES:
    apart = abs(centre["real"][n] - centre["means"][n])
    claim(apart < 0.08, f"fine-tuning and means are close at {n}")
claim(centre["nothing"][64] < centre["length"][64], "64 names teach less than length")
claim(centre["counted"][64] < centre["length"][64] + 0.03, "counting them, too")
for side in ("nothing", "counted"):
    claim(min(accuracy[side][256]) > 0.02 + centre["length"][256], "256 teach more")
apart = abs(centre["nothing"][256] - centre["counted"][256])
claim(apart < 0.06, "a fresh network and counting end together")

# %% tags=["headline-figure"] alt="Accuracy on held-out names against the number of examples, 16, 64 and 256 on a logarithmic axis, bands over three seeds. Two lines, fine-tuned and class means, rise close together above all others. The number of pieces is flat near two thirds; from nothing and counted pieces start below it and end together above it, lower than the first two are with 64."
_, axes = plt.subplots()
ends = {}
for (side, runs), colour in zip(accuracy.items(), plots.COLOURS):
    runs = torch.tensor(list(runs.values())).T
    ends[TITLES[side]] = plots.seed_band(axes, EXAMPLES, runs, colour)
axes.set(xlabel="examples", ylabel="right on held-out names", xscale="log")
axes.set(xlim=(14, 1000), ylim=(0.45, 1))
axes.set_xticks(EXAMPLES, [str(n) for n in EXAMPLES])
axes.minorticks_off()
plots.label_ends(axes, ends)
axes.set_axisbelow(True)

# %% [markdown]
# ## Look inside


# %% tags=["neighbours"]
def neighbours_agree(vectors: Tensor, kinds: Tensor) -> float:
    """The share of names whose nearest other name is of their kind."""
    alike = vectors @ vectors.T
    nearest = alike.fill_diagonal_(-2).argmax(1)
    return (kinds[nearest] == kinds).double().mean().item()


# %% tags=["plane"]
seed(0)
fresh = BERT(MINILM).to(device)
fresh_vectors = sentence_vectors(fresh, test_names.to(device)).cpu()
lengths = (test_names != PAD).sum(1)
clouds = {}
agree = {}
for name, x in (("fresh", fresh_vectors), ("real", test_vectors)):
    agree[name] = neighbours_agree(x, test_kinds)
    record(f"agree.{name}", agree[name])
    centred = x - x.mean(0)
    clouds[name] = centred @ torch.linalg.svd(centred).Vh[:2].T
same_length = neighbours_agree(fresh_vectors, lengths)
record("same.length", same_length)
claim(agree["real"] > 0.75 > 0.7 > agree["fresh"], "neighbours agree")
claim(same_length > 0.8, "fresh weights sort by the number of pieces")

# %% tags=["plane-figure"] alt="Two clouds of points, one a held-out name, blue for things and orange for animals. Left, with fresh weights, the points lie in groups, and both colours are in each. Right, with the real weights and before any training on the task, most blue points lie on one side and most orange ones on the other."
figure, cells = plt.subplots(1, 2, figsize=(5, 2.6))
for cell, (name, points) in zip(cells, clouds.items()):
    for kind in (0, 1):
        x, y = points[test_kinds == kind].T
        cell.plot(x, y, ".", color=plots.COLOURS[kind], markersize=4)
    cell.set_title(f"{name} weights")
    cell.set(xticks=[], yticks=[])
cells[0].set_axisbelow(True)

# %% [markdown]
# ## What we saw
#
# - A word is cut into pieces of a learnt vocabulary; only a letter that it lacks is unknown.
# - Two tasks without labels train the network; in 600 small steps ours has learnt a part
#   of the first, and nothing of the second.
# - Real weights tell animals from things: 64 examples on them are worth more than 256
#   from nothing, and the means of both kinds do as well as training.

# %% [markdown]
# ## Solutions


# %% tags=["solution-1"]
short = torch.tensor([minilm_tokenizer.encode(SENTENCES[0])]).to(device)
longer = F.pad(short, (0, 20))
with torch.no_grad():
    alone = minilm(short)
    padded = minilm(longer)[:, : short.shape[1]]
    hears = minilm.embed(longer, torch.zeros_like(longer))
    for layer in minilm.layers:
        hears = layer(hears, torch.ones_like(longer, dtype=torch.bool))
unmasked = hears[:, : short.shape[1]]

# %% tags=["solution-1-result"]
masked_change = checks.deviation(padded, alone)
open_change = checks.deviation(unmasked, alone)
claim(masked_change < 1e-5, "padding changes nothing")
claim(open_change > 0.01, "without the mask it does")
table([(f"{masked_change:.0e}", f"{open_change:.2f}")], ("with a mask", "without"))

# %% tags=["solution-2"]
merges = {}
for name, best in RULES.items():
    merges[name] = first_merges(word_counts, best, 5)

# %% tags=["solution-2-result"]
letters = WordPieceLearner(word_counts)
pair = ("##z", "##z")
record("zz", letters.pairs[pair])
record("z", letters.singles["##z"])
claim("##zz" in merges["score"], "the score joins z and z")
often_joined = letters.pairs[max(letters.pairs, key=letters.pairs.get)]
claim(often_joined > 100 * letters.pairs[pair], "which is rare")
expected = letters.singles["##z"] ** 2 / letters.singles.total()
claim(letters.pairs[pair] > 10 * expected, "and yet more frequent than expected")
rows = [(name, ", ".join(found)) for name, found in merges.items()]
table(rows, ("merged by", "first five pieces of the Bible"))

# %% tags=["solution-3"]
head_alone = []
for number in SEEDS:
    seed(number)
    chosen = balanced(kinds, 64, number)
    network = Classifier(copy.deepcopy(minilm.layers[-1:]), 384, 2).to(device)
    for p in network.layers.parameters():
        p.requires_grad_(False)
    fine_tune(network, seen[chosen], own[chosen] != PAD, kinds[chosen].to(device), 100)
    head_alone.append(right(network, seen_test, own_test != PAD, answer))

# %% tags=["solution-3-result"]
rows = [("last layer and head", 30, spread(accuracy["real"][64], ".2f"))]
rows.append(("head", 100, spread(head_alone, ".2f")))
rows.append(("nothing, class means", 0, spread(accuracy["means"][64], ".2f")))
centres = [centre["real"][64], centre["means"][64], sum(head_alone) / 3]
claim(max(centres) - min(centres) < 0.06, "the three are not far apart")
table(rows, ("what is trained, 64 examples", "steps", "right"))
