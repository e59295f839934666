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
# # SQuAD
#
# A network that answers a question with a part of a paragraph, or says that no part is an
# answer: the measures of SQuAD 2.0, windows over long paragraphs, the search for a span, and
# MiniLM trained on questions about territories. The text to it is the
# [chapter](../chapters/squad.rst), the paper is
# [Rajpurkar et al. 2018](https://arxiv.org/abs/1806.03822).

# %%
import random
import re
import string
import textwrap
from collections import Counter
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForQuestionAnswering, BertModel

import workbench
from workbench import claim, device, evaluating, record, record_spread, seed, spread
from workbench import checks, counting, plots, pretrained, reading, table
from workbench import training

SEEDS = (0, 1, 2)

# %% [markdown]
# ## The data
#
# A file of SQuAD 2.0 holds articles, these hold paragraphs, and these hold questions.


# %% tags=["example"]
class Example(NamedTuple):
    """A question to a paragraph, and the answers that count, if there are any."""

    name: str
    question: str
    context: str
    answers: list[dict]  # "text", "answer_start"


def examples_of(dataset: dict) -> list[Example]:
    """All questions of a set in the form of SQuAD 2.0's files, in order."""
    found = []
    for article in dataset["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = [] if asked["is_impossible"] else asked["answers"]
                context = paragraph["context"]
                found.append(Example(asked["id"], asked["question"], context, answers))
    return found


# %% tags=["shown-examples"]
shown = examples_of(reading.generated("train", 40, seed=5))[:4]
rows = []
for example in shown:
    answers = " / ".join(answer["text"] for answer in example.answers)
    rows.append((example.context, example.question, answers or "none"))
table(rows, ("paragraph", "question", "answer"))


# %% tags=["kinds"]
TWINS = {  # languages, and days of the week
    "language": "minority",
    "minority": "language",
    "week": "weekend",
    "weekend": "week",
}


def kind_of(question: str) -> str:
    """The kind of fact that a question to a territory asks for; "" of other ones."""
    for kind, wordings in reading.ASKED.items():
        for wording in wordings:
            before, after = wording.split("{t}")
            if question.startswith(before) and question.endswith(after):
                return kind
    return ""


def states(context: str, kind: str) -> bool:
    """Whether a paragraph about a territory states a fact of this kind."""
    sentences = reading.WRITTEN.get(kind, ())
    return any(max(s.split("{v}"), key=len) in context for s in sentences)


def plausible(examples: list[Example]) -> list[bool]:
    """Of each question without an answer: does a value of its type stand there?"""
    found = []
    for example in examples:
        if not example.answers:
            twin = TWINS.get(kind_of(example.question), "")
            found.append(states(example.context, twin))
    return found


# %% [markdown]
# ## The measures
#
# Exact match and F1 as the official script of SQuAD 2.0 has them.

# %% tags=["normalized"]
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(text: str) -> str:
    """Lower case, without punctuation, without articles, with single spaces."""
    text = text.lower()
    text = "".join(c for c in text if c not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", text).split())


# %% tags=["measures"]
def exact_match(found: str, expected: str) -> float:
    """1 if both are the same when normalised; the empty string is no answer."""
    return float(normalized(found) == normalized(expected))


def f1(found: str, expected: str) -> float:
    """Harmonic mean of precision and recall over words; 1 if both have none."""
    a = normalized(found).split()
    b = normalized(expected).split()
    if not a and not b:
        return 1.0
    common = sum((Counter(a) & Counter(b)).values())
    if common == 0:
        return 0.0
    precision = common / len(a)
    recall = common / len(b)
    return 2 * precision * recall / (precision + recall)


# %% tags=["best-of"]
def best_of(measure, found: str, example: Example) -> float:
    """The measure against the answer that fits best; no answer is the empty one."""
    golden = [a["text"] for a in example.answers if normalized(a["text"])] or [""]
    return max(measure(found, text) for text in golden)


# %% tags=["measures-run"]
pairs = [
    ("the clockwork", "clockwork"),
    ("old clockwork", "the clockwork"),
    ("it turned the old lens.", "the lens"),
    ("", "the lens"),
    ("", ""),
]
rows = []
for found, expected in pairs:
    values = (exact_match(found, expected), f1(found, expected))
    quoted = [f"“{text}”" if text else "no answer" for text in (found, expected)]
    rows.append((*quoted, f"{values[0]:.0f}", f"{values[1]:.2f}"))
record("half.f1", f1("old clockwork", "the clockwork"))
table(rows, ("found", "expected", "exact match", "F1"))

# %% [markdown]
# ## Windows
#
# BERT reads a limited number of pieces. A longer paragraph is read in windows that overlap.


# %% tags=["window"]
class Window(NamedTuple):
    """Pieces of a question and a part: [CLS] question [SEP] part [SEP]."""

    number: int  # of the example
    ids: list[int]
    first: int  # place of the part's first piece
    offsets: list[tuple[int, int]]  # characters of the context, of each piece there
    target: tuple[int, int]  # first and last place of the answer; (0, 0) if not here


# %% tags=["windows"]
def windows(
    tokenizer, example: Example, number: int, *, length: int, stride: int
) -> list[Window]:
    """Parts of the paragraph, each `stride` pieces behind the last (Devlin's code).

    length: of a window with the question. ValueError if the question leaves no room.
    """
    question = tokenizer.encode(example.question, add_special_tokens=False).ids
    context = tokenizer.encode(example.context, add_special_tokens=False)
    room = length - len(question) - 3
    if room < 1:
        raise ValueError(f"{example.name}: the question leaves no room in {length}")
    assert 1 <= stride <= room, f"a stride of 1 to {room} leaves nothing out"
    cls = tokenizer.token_to_id("[CLS]")
    sep = tokenizer.token_to_id("[SEP]")
    found = []
    for start in range(0, len(context.ids), stride):
        part = slice(start, start + room)
        ids = [cls, *question, sep, *context.ids[part], sep]
        first = len(question) + 2
        offsets = context.offsets[part]
        target = target_of(example, first, offsets)
        found.append(Window(number, ids, first, offsets, target))
        if start + room >= len(context.ids):
            break
    return found


# %% tags=["target"]
def target_of(example: Example, first: int, offsets) -> tuple[int, int]:
    """Places of the first answer if the part holds all of it, else (0, 0), [CLS]."""
    if not example.answers:
        return 0, 0
    answer = example.answers[0]
    start = answer["answer_start"]
    end = start + len(answer["text"])
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
    if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return 0, 0
    return first + inside[0], first + inside[-1]


# %% tags=["batch"]
class Batch(NamedTuple):
    """Windows side by side, PAD behind the shorter: each (B, T)."""

    ids: Tensor
    types: Tensor  # 0 for [CLS] question [SEP], 1 for the part and its [SEP]
    mask: Tensor  # 1 where there is a piece
    readable: Tensor  # True for the pieces of the part
    targets: Tensor  # (B, 2)


def batch_of(chosen: list[Window]) -> Batch:
    """Windows as tensors on the device of the run."""
    T = max(len(window.ids) for window in chosen)
    ids = torch.zeros(len(chosen), T, dtype=torch.long)
    types, mask, readable = (torch.zeros_like(ids) for _ in range(3))
    for row, window in enumerate(chosen):
        end = len(window.ids)
        ids[row, :end] = torch.tensor(window.ids)
        types[row, window.first : end] = 1
        mask[row, :end] = 1
        readable[row, window.first : end - 1] = 1
    targets = torch.tensor([window.target for window in chosen])
    parts = (ids, types, mask, readable.bool(), targets)
    return Batch(*(part.to(device) for part in parts))


# %% tags=["tokenizer-run"]
minilm = pretrained.minilm()
pieces = {piece: number for number, piece in enumerate(minilm.vocabulary)}
tokenizer = BertWordPieceTokenizer(pieces)
written = examples_of(reading.handwritten())
parts = windows(tokenizer, written[10], 0, length=48, stride=16)
batch_of(parts).ids.shape

# %% tags=["windows-figure"] alt="Bars of windows below a bar of the whole paragraph, each shifted to the right by the stride, so that neighbours overlap; a narrow mark, the answer, lies in the two windows in the middle; the first and the last hold nothing of it."
whole = len(tokenizer.encode(written[10].context, add_special_tokens=False).ids)
front = parts[0].first
_, axes = plt.subplots(figsize=(5, 0.5 + 0.28 * (len(parts) + 1)))
axes.barh(0, whole, height=0.5, color=plots.QUIET)
for row, window in enumerate(parts, start=1):
    left = 16 * (row - 1)
    axes.barh(row, len(window.offsets), left=left, height=0.5, color=plots.COLOURS[0])
    if window.target != (0, 0):
        place = left + window.target[0] - front
        size = window.target[1] - window.target[0] + 1
        axes.barh(row, size, left=place, height=0.5, color=plots.COLOURS[1])
axes.invert_yaxis()
names = ["paragraph", *(f"window {i}" for i in range(1, len(parts) + 1))]
axes.set(yticks=range(len(parts) + 1), yticklabels=names, xlabel="pieces")
axes.set_axisbelow(True)

# %% tags=["windows-claims"]
held = [window for window in parts if window.target != (0, 0)]
record("figure.windows", len(parts))
record("figure.held", len(held))
claim(
    [w.target != (0, 0) for w in parts] == [False, True, True, False], "the middle two"
)
start = written[10].answers[0]["answer_start"]
end = start + len(written[10].answers[0]["text"])
outer = [*parts[0].offsets, *parts[-1].offsets]
claim(all(b <= start or a >= end for a, b in outer), "the outer two hold none of it")
record("figure.part", len(parts[0].offsets))
record("figure.question", front - 2)

# %% [markdown]
# ## The network


# %% tags=["reader"]
class SpanReader(nn.Module):
    """BERT and one linear layer: scores of each piece to be the first and the last.

    Devlin et al. 2018, section 4.2: a vector S and a vector E. Batch -> (B, T, 2).
    """

    def __init__(self, body: nn.Module, d_model: int):
        super().__init__()
        self.body = body
        self.span = nn.Linear(d_model, 2)

    def forward(self, x: Batch) -> Tensor:
        padding = x.mask[:, None, None] == 0  # (B, 1, 1, T)
        hidden = torch.zeros_like(padding, dtype=torch.float).masked_fill(
            padding, -torch.inf
        )
        read = self.body(x.ids, attention_mask=hidden, token_type_ids=x.types)
        scores = self.span(read.last_hidden_state)  # (B, T, 2)
        return scores.masked_fill(x.mask[..., None] == 0, -torch.inf)


# %% tags=["loss"]
def span_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of first and last place: (B, T, 2), (B, 2) -> ()."""
    first = F.cross_entropy(scores[..., 0], targets[:, 0])
    last = F.cross_entropy(scores[..., 1], targets[:, 1])
    return (first + last) / 2


# %% tags=["builders"]
def bert(n_layers: int, d_model: int, n_heads: int) -> BertModel:
    """BERT without its pooler; nothing is dropped in training."""
    config = BertConfig(
        num_hidden_layers=n_layers,
        hidden_size=d_model,
        num_attention_heads=n_heads,
        intermediate_size=4 * d_model,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
        attn_implementation="eager",
    )
    return BertModel(config, add_pooling_layer=False)


SIZES = {
    "MiniLM": (6, 384, 12),
    "BERT base": (12, 768, 12),
    "BERT large": (24, 1024, 16),
}


# %% tags=["reader-run"]
reader = SpanReader(bert(*SIZES["MiniLM"]), 384).to(device)
reader(batch_of(parts)).shape

# %% [markdown]
# ## The best span


# %% tags=["best-span"]
class Span(NamedTuple):
    score: float
    first: int
    last: int


def best_span(scores: Tensor, readable: Tensor, longest: int) -> Span:
    """The readable span of at most `longest` pieces with the largest score.

    (T, 2), (T,) -> places of its first and last piece, first <= last.
    """
    total = scores[:, 0, None] + scores[:, 1]  # (T, T): row first, column last
    length = torch.ones_like(total).triu().tril(longest - 1)
    possible = (length > 0) & readable[:, None] & readable
    total = total.masked_fill(~possible, -torch.inf)
    first, last = divmod(int(total.argmax()), len(total))
    return Span(total[first, last].item(), first, last)


# %% tags=["by-hand-result"]
starts = torch.tensor([1.0, 0.0, 2.0, 3.0])
ends = torch.tensor([0.0, 4.0, 2.0, 1.0])
scores = torch.stack((starts, ends), dim=1)
found = best_span(scores, torch.ones(4).bool(), longest=4)
claim(int(starts.argmax()) > int(ends.argmax()), "by itself the last piece is in front")
claim(found == (5, 0, 1), "the span from piece 0 to piece 1")
claim(bool((starts + ends < 5).all()), "no single piece reaches its score")
rows = [(f"piece {i}", f"{starts[i]:.0f}", f"{ends[i]:.0f}") for i in range(4)]
record("hand.score", found.score)
record("hand.first", found.first)
record("hand.last", found.last)
table(rows, ("place", "first", "last"))


# %% tags=["answer"]
class Answer(NamedTuple):
    """The best span's text, and by how much "no answer" is ahead of it."""

    text: str
    margin: float


@torch.no_grad()
def read(network, chosen: list[Window], examples, *, longest: int = 15) -> list[Answer]:
    """An answer to each example, from the best span of all its windows.

    The score of "no answer" is that of [CLS], of the window where it is lowest: an
    answer in one window is enough (Devlin's code).
    """
    best = {}
    none = {}
    with evaluating(network):
        for start in range(0, len(chosen), 16):
            part = chosen[start : start + 16]
            x = batch_of(part)
            rows = zip(part, network(x).cpu(), x.readable.cpu())
            for window, scores, readable in rows:
                span = best_span(scores, readable, longest)
                n = window.number
                none[n] = min(none.get(n, torch.inf), scores[0].sum().item())
                if n not in best or span.score > best[n][0].score:
                    best[n] = (span, window)
    answers = []
    for n, example in enumerate(examples):
        span, window = best[n]
        left = window.offsets[span.first - window.first][0]
        right = window.offsets[span.last - window.first][1]
        answers.append(Answer(example.context[left:right], none[n] - span.score))
    return answers


# %% tags=["scored"]
def scored(answers, examples, threshold: float = 0.0) -> dict[str, float]:
    """Means of exact match and F1 over all, over the answerable and over the others.

    Where the margin of "no answer" is above the threshold the answer is the empty one.
    """
    values = {
        "exact": [],
        "f1": [],
        "exact, answer": [],
        "f1, answer": [],
        "exact, none": [],
    }
    for answer, example in zip(answers, examples, strict=True):
        text = "" if answer.margin > threshold else answer.text
        exact = best_of(exact_match, text, example)
        overlap = best_of(f1, text, example)
        values["exact"].append(exact)
        values["f1"].append(overlap)
        if example.answers:
            values["exact, answer"].append(exact)
            values["f1, answer"].append(overlap)
        else:
            values["exact, none"].append(exact)
    return {name: sum(v) / len(v) for name, v in values.items() if v}


# %% tags=["threshold"]
def best_threshold(answers, examples) -> float:
    """The threshold of the largest mean F1: a margin, or a number below all."""
    margins = sorted(answer.margin for answer in answers)
    candidates = [margins[0] - 1, *margins]
    return max(candidates, key=lambda t: scored(answers, examples, t)["f1"])


# %% [markdown]
# ## Counts and the library

# %% tags=["count"]
rows = []
for name, (n_layers, d_model, n_heads) in SIZES.items():
    with torch.device("meta"):
        network = SpanReader(bert(n_layers, d_model, n_heads), d_model)
        long = torch.zeros(1, 384, dtype=torch.long)
        x = Batch(long, long, long + 1, long.bool(), long[:, :2])
    found = counting.parameters(network)
    cost = counting.macs(network, x)
    T = 384
    body = n_layers * (12 * d_model**2 * T + 2 * d_model * T**2)
    claim(cost == body + 2 * d_model * T, "the products are those of the formula")
    short = name.split()[-1]
    record(f"{short}.parameters", found)
    record(f"{short}.macs", cost)
    rows.append((name, found, 2 * d_model + 2, f"{cost / 1e9:.2f}"))
table(rows, ("network", "parameters", "new parameters", "G MACs, 384 pieces"))


# %% tags=["equal-result"]
class Library(nn.Module):
    """transformers' network for the same, with its two outputs side by side."""

    def __init__(self, config):
        super().__init__()
        self.network = BertForQuestionAnswering(config)

    def forward(self, x: Batch) -> Tensor:
        found = self.network(x.ids, attention_mask=x.mask, token_type_ids=x.types)
        scores = torch.stack((found.start_logits, found.end_logits), dim=-1)
        return scores.masked_fill(x.mask[..., None] == 0, -torch.inf)


seed()
ours = SpanReader(bert(*SIZES["MiniLM"]), 384).to(device)
for parameter in ours.parameters():
    nn.init.normal_(parameter, 0, 0.1)
theirs = Library(ours.body.config).to(device)
checks.transplant(ours, theirs)
x = batch_of(parts)
kept = x.mask.bool()
with torch.no_grad(), evaluating(ours, theirs):
    deviation = checks.deviation(ours(x)[kept], theirs(x)[kept])
claim(deviation == 0, "the scores are those of the library, exactly")
table([("SpanReader", f"{deviation:g}")], ("network", "largest difference"))

# %% [markdown]
# ## Training

# %% tags=["setting"]
STEPS = 80
BATCH = 8
LENGTH = 128 if workbench.PROFILE == "sample" else 384


def from_minilm(weights: dict[str, Tensor]) -> SpanReader:
    """MiniLM with a new span layer; its embeddings and lower half stay as they are."""
    network = SpanReader(bert(*SIZES["MiniLM"]), 384)
    wanted = {k: v for k, v in weights.items() if not k.startswith("pooler")}
    network.body.load_state_dict(wanted)
    network.body.embeddings.requires_grad_(False)
    network.body.encoder.layer[:3].requires_grad_(False)
    return network.to(device)


# %% tags=["train"]
def train(network: SpanReader, chosen: list[Window], *, rate: float) -> list[float]:
    """One pass over the windows, in order; returns the loss of each step."""
    changed = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(changed, rate, weight_decay=0.01)
    steps = len(chosen) // BATCH
    schedule = training.one_cycle(optimizer, steps, rising=0.1)
    losses = []
    network.train()
    for step in training.progress(range(steps), "steps"):
        x = batch_of(chosen[BATCH * step : BATCH * (step + 1)])
        loss = span_loss(network(x), x.targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(changed, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


# %% tags=["all-windows"]
def all_windows(
    tokenizer, examples, *, length: int = LENGTH, stride: int = 64
) -> list[Window]:
    """The windows of all examples, in order."""
    found = []
    for number, example in enumerate(examples):
        found += windows(tokenizer, example, number, length=length, stride=stride)
    return found


# %% tags=["sets"]
def asked(part: str, count: int, **how) -> list[Example]:
    return examples_of(reading.questions(part, count, **how))


trained = {n: asked("train", STEPS * BATCH, seed=10 + n) for n in SEEDS}
validation = asked("validation", 80, seed=3)
tests = {
    "known": asked("test", 100, seed=4),
    "new": asked("test", 100, seed=4, wording="new"),
}
losses = {}
readers = {}
thresholds = {}
answers = {}

# %% tags=["training"]
for number in SEEDS:
    seed(number)
    readers[number] = from_minilm(minilm.weights)
    chosen = all_windows(tokenizer, trained[number])
    losses[number] = train(readers[number], chosen, rate=5e-4)
    found = read(readers[number], all_windows(tokenizer, validation), validation)
    thresholds[number] = best_threshold(found, validation)
    for wording, examples in tests.items():
        answers[number, wording] = read(
            readers[number], all_windows(tokenizer, examples), examples
        )

# %% tags=["result"]
columns = ("exact", "f1", "exact, answer", "exact, none")
results = {}
rows = []
for wording, examples in tests.items():
    runs = [scored(answers[n, wording], examples, thresholds[n]) for n in SEEDS]
    results[wording] = runs
    for name in columns:
        record_spread(f"{wording}.{name}", [run[name] for run in runs])
    cells = [spread([run[name] for run in runs], ".2f") for name in columns]
    rows.append((wording, *cells))
claims = [[run["exact"] for run in results[wording]] for wording in ("known", "new")]
claim(min(claims[0]) > max(claims[1]), "known wordings are read better, seeds apart")
none = [[run["exact, none"] for run in results[wording]] for wording in tests]
touch = min(none[0]) <= max(none[1]) and min(none[1]) <= max(none[0])
claim(touch, "refusals of known and new wordings are not told apart")
table(rows, ("wording", "exact match", "F1", "exact, with answer", "exact, without"))

# %% tags=["result-claims"]
both = list(zip(*tests.values()))
same = all(a.context == b.context and a.answers == b.answers for a, b in both)
claim(same, "the same paragraphs and facts, asked for in other words")
record("test.questions", len(both))
record("test.none", sum(not example.answers for example in tests["known"]))
record("test.most", sum(bool(e.answers) for e in tests["known"]) / len(both))
claim(len(chosen) == STEPS * BATCH, "in training each paragraph has one window")


# %% tags=["by-heart"]
def by_heart(known: list[Example], examples: list[Example]) -> float:
    """Exact match, where there is an answer, of the commonest known one of its kind.

    Of those that stand in the paragraph; known: questions with the answers to count.
    """
    common = {}
    for example in known:
        counter = common.setdefault(kind_of(example.question), Counter())
        counter.update(answer["text"] for answer in example.answers[:1])
    right = []
    for example in examples:
        counter = common.get(kind_of(example.question), Counter())
        texts = [text for text, _ in counter.most_common()]
        whole = [t for t in texts if re.search(rf"\b{re.escape(t)}\b", example.context)]
        if example.answers:
            right.append(best_of(exact_match, whole[0] if whole else "", example))
    return sum(right) / len(right)


# %% tags=["by-heart-claims"]
guessed = [by_heart(trained[n], tests["known"]) for n in SEEDS]
record_spread("by.heart", guessed)
read_right = [run["exact, answer"] for run in results["known"]]
claim(min(read_right) > max(guessed) + 0.05, "a reader finds more than the commonest")

# %% tags=["again-claims"]
again = []
for number in SEEDS:
    texts = {a["text"] for example in trained[number] for a in example.answers}
    golden = [e.answers[0]["text"] for e in tests["known"] if e.answers]
    again.append(sum(text in texts for text in golden))
record("test.answers", len(golden))
record_spread("test.again", again)
for name, examples in (("train", trained[0]), ("test", tests["known"])):
    similar = plausible(examples)
    record(f"{name}.plausible", sum(similar))
    record(f"{name}.refused", len(similar))

# %% tags=["losses-claims"]
for number in SEEDS:
    first = sum(losses[number][:20])
    claim(sum(losses[number][-20:]) < 0.5 * first, "the loss falls to less than half")
record("steps", STEPS)
record("batch", BATCH)
record("train.questions", STEPS * BATCH)
record("train.territories", len(reading.territories()["train"]))
record("test.territories", len(reading.territories()["test"]))
record("free", counting.parameters(readers[0]))

# %% [markdown]
# ## The threshold

# %% tags=["threshold-curves"]
axis = torch.linspace(-12, 12, 49)
curves = {"exact": [], "exact, answer": [], "exact, none": []}
for number in SEEDS:
    found = [scored(answers[number, "known"], tests["known"], t) for t in axis.tolist()]
    for name in curves:
        curves[name].append([values[name] for values in found])
curves = {name: torch.tensor(runs) for name, runs in curves.items()}

# %% tags=["threshold-figure"] alt="Exact match against the threshold from -12 to 12. Questions without an answer: from 1 at the left down. Questions with an answer: from near 0 at the left up to a plateau. All questions: rises to a broad top around 0 and falls to the right. Crosses near the top mark the thresholds chosen on validation."
_, axes = plt.subplots(figsize=(5, 3.2))
ends = {}
names = {"exact": "all", "exact, answer": "with answer", "exact, none": "without"}
for (name, runs), colour in zip(curves.items(), (plots.INK, *plots.COLOURS)):
    ends[names[name]] = plots.seed_band(axes, axis, runs, colour)
for number, run in zip(SEEDS, results["known"]):
    axes.plot(thresholds[number], run["exact"], "x", color=plots.INK)
axes.set(xlabel="threshold", ylabel="exact match", xlim=(-12, 20), xticks=(-10, 0, 10))
plots.label_ends(axes, ends, (plots.INK, *plots.COLOURS))
axes.set_axisbelow(True)

# %% tags=["threshold-claims"]
falls = curves["exact, none"].diff(dim=1) <= 0
claim(bool(falls.all()), "without an answer, a larger threshold is never better")
rises = curves["exact, answer"].diff(dim=1) >= 0
claim(bool(rises.all()), "with an answer, a larger threshold is never worse")
top = curves["exact"].mean(0)
claim(bool(axis[top.argmax()].abs() < 6), "the top is around 0")
claim(bool(torch.max(top[0], top[-1]) < top.max() - 0.04), "it falls to both sides")
best = curves["exact"].amax(1).tolist()
lost = [most - run["exact"] for most, run in zip(best, results["known"])]
record_spread("threshold.lost", [100 * value for value in lost])

# %% tags=["always-claims"]
every = [scored(answers[n, "known"], tests["known"], torch.inf) for n in SEEDS]
claim(all(run["exact, none"] == 0 for run in every), "a reader that always answers")
always = [run["exact"] for run in every]
chosen = [run["exact"] for run in results["known"]]
claim(
    all(b > a for a, b in zip(always, chosen)), "of each seed the threshold finds more"
)
record_spread("always", always)

# %% [markdown]
# ## Long paragraphs

# %% tags=["long"]
LONG = 48
long = [e for e in asked("test", 50, seed=5, facts=8) if e.answers]
every = all_windows(tokenizer, long, length=LONG, stride=16)
firsts = {}
for window in every:
    firsts.setdefault(window.number, window)
ways = {"first window": list(firsts.values()), "windows": every}
ways["whole"] = all_windows(tokenizer, long)
rows = []
right = {}
for name, chosen in ways.items():
    found = [read(readers[number], chosen, long) for number in SEEDS]
    right[name] = [scored(run, long, torch.inf)["exact"] for run in found]
    record_spread(f"long.{name.split()[0]}", right[name])
    rows.append((name, len(chosen), spread(right[name], ".2f")))
table(rows, ("paragraph", "windows", "exact match"))

# %% tags=["long-claims"]
mean = {name: sum(values) / len(values) for name, values in right.items()}
claim(mean["windows"] > mean["first window"] + 0.05, "windows find more on average")
claim(mean["windows"] > mean["whole"] + 0.05, "more than whole paragraphs, on average")
pairs = zip(right["first window"], right["windows"])
claim(all(a < b for a, b in pairs), "and more with each seed")

# %% tags=["long-records"]
held = sum(window.target != (0, 0) for window in firsts.values())
record("long.held", held)
claim(max(right["first window"]) <= held / len(long), "what is not there is not found")
claim(len(ways["whole"]) == len(long), "whole, a paragraph is one window")
record("long.questions", len(long))
sizes = [len(tokenizer.encode(example.context).ids) - 2 for example in long]
record("long.least", min(sizes))
record("long.most", max(sizes))

# %% [markdown]
# ## Other paragraphs
#
# Questions that were written by hand, about nothing that CLDR knows.

# %% tags=["written-result"]
rows = []
runs = []
for number in SEEDS:
    found = read(readers[number], all_windows(tokenizer, written), written)
    runs.append(scored(found, written, thresholds[number]))
for name in columns:
    record_spread(f"written.{name}", [run[name] for run in runs])
    rows.append((name, spread([run[name] for run in runs], ".2f")))
claim(max(r["f1"] for r in runs) < min(r["f1"] for r in results["known"]), "far below")
record("written.questions", len(written))
record("written.none", sum(not example.answers for example in written))
table(rows, ("measure", f"{len(written)} questions by hand"))

# %% [markdown]
# ## Look inside


# %% tags=["two-questions"]
def two_questions(place, draw) -> list[Example]:
    """A paragraph of four facts, and questions for the first two of them."""
    context, starts = reading.paragraph(place, 4, draw)
    found = []
    for kind in list(starts)[:2]:
        answer = {"text": place.facts[kind], "answer_start": starts[kind]}
        question = reading.ASKED[kind][0].format(t=place.name)
        found.append(Example(kind, question, context, [answer]))
    return found


def chances_of(network, pair: list[Window]) -> Tensor:
    """Of each piece to be the first and the last: (2, T, 2)."""
    with torch.no_grad(), evaluating(network):
        return network(batch_of(pair)).softmax(1).cpu()


# %% tags=["inside"]
place = reading.territories()["test"][3]
for drawn in range(1, 51):  # until both answers have the largest chances
    two = two_questions(place, random.Random(drawn - 1))
    pair = all_windows(tokenizer, two)
    chances = chances_of(readers[0], pair)
    likeliest = [tuple(chance.argmax(0).tolist()) for chance in chances]
    if likeliest == [window.target for window in pair]:
        break
found = read(readers[0], pair, two)
rows = [(e.question, a.text, f"{a.margin:.1f}") for e, a in zip(two, found)]
table(rows, ("question", "best span", "margin of no answer"))

# %% tags=["inside-figure"] alt="Pieces of a paragraph from top to bottom, two panels, one for each question. In each panel a bar for the chance to be the first piece and one for the last: the longest bars lie at the pieces of that question's answer, which is another place in the other panel."
_, panels = plt.subplots(1, 2, figsize=(5, 6), sharey=True)
for axes, window, chance, example in zip(panels, pair, chances, two):
    end = window.first + len(window.offsets)
    marks = [example.context[a:b] for a, b in window.offsets]
    rows = torch.arange(len(marks))
    axes.barh(rows - 0.2, chance[window.first : end, 0], 0.4, color=plots.COLOURS[0])
    axes.barh(rows + 0.2, chance[window.first : end, 1], 0.4, color=plots.COLOURS[1])
    axes.set(xlim=(0, 1), xticks=(0, 1), xlabel="chance")
    axes.set_title(textwrap.fill(example.question, 22), loc="left")
panels[0].set(yticks=range(len(marks)), yticklabels=marks)
panels[0].tick_params(axis="y", labelsize=9)
panels[0].invert_yaxis()
panels[1].annotate(
    "first", (0.6, 0.9), xycoords="axes fraction", color=plots.COLOURS[0]
)
panels[1].annotate(
    "last", (0.6, 0.86), xycoords="axes fraction", color=plots.COLOURS[1]
)
axes.set_axisbelow(True)

# %% tags=["inside-claims"]
record("inside.drawn", drawn)
claim(all(answer.margin < 0 for answer in found), "no answer is behind")
claim(scored(found, two)["exact"] == 1, "both questions are answered")
claim(likeliest == [window.target for window in pair], "largest at the answer's ends")
claim(pair[0].target != pair[1].target, "another question, another place")

# %% [markdown]
# ## Solutions


# %% tags=["solution-1"]
@torch.no_grad()
def without_search(network, chosen: list[Window]) -> float:
    """Share of windows whose likeliest first and last piece make no span."""
    x = batch_of(chosen)
    with evaluating(network):
        places = network(x).argmax(1)  # (B, 2)
    first, last = places.T
    inside = x.readable.gather(1, places).all(1)
    good = (inside & (first <= last)) | ((first == 0) & (last == 0))
    return 1 - good.double().mean().item()


record("unsearched", without_search(readers[0], all_windows(tokenizer, long)))

# %% tags=["solution-2"]
some = [example for example in tests["known"] if example.answers][:50]
others = [example.question for example in some[1:] + some[:1]]
blind = [e._replace(question=question) for e, question in zip(some, others)]
shares = []
for asked_for in (some, blind):
    found = read(readers[0], all_windows(tokenizer, asked_for), asked_for)
    shares.append(scored(found, asked_for, torch.inf)["exact"])

# %% tags=["solution-2-claims"]
record("blind.questions", len(some))
record("sighted", shares[0])
record("blind", shares[1])
claim(shares[1] + 0.2 < shares[0], "with another question far fewer are right")

# %% tags=["solution-3"]
exact = []
rows = []
for longest in (1, 4):
    found = read(readers[0], all_windows(tokenizer, some), some, longest=longest)
    values = scored(found, some, torch.inf)
    exact.append(values["exact"])
    rows.append((longest, f"{exact[-1]:.2f}", f"{values['f1']:.2f}"))

# %% tags=["solution-3-result"]
targets = [window.target for window in all_windows(tokenizer, some)]
longer = sum(last > first for first, last in targets)
record("several.pieces", longer)
claim(exact[0] <= 1 - longer / len(some), "an answer of several pieces is not found")
claim(exact[0] + 0.05 < exact[1], "single pieces answer fewer")
table(rows, ("longest span", "exact match", "F1"))


# %% tags=["solution-4"]
def whole_somewhere(tokenizer, examples, *, length: int, stride: int) -> float:
    """Share of the answers that some window holds from the first to the last piece."""
    every = all_windows(tokenizer, examples, length=length, stride=stride)
    kept = {window.number for window in every if window.target != (0, 0)}
    return len(kept) / len(examples)


# %% tags=["solution-4-room"]
answered = [example for example in written if example.answers]
short = all_windows(tokenizer, answered, length=32, stride=1)
room = min(32 - window.first - 1 for window in short)
most = max(w.target[1] - w.target[0] + 1 for w in short if w.target != (0, 0))
record("short.room", room)
record("short.answer", most)
safe = room - most + 1
claim(safe < room, "a stride may leave nothing out and still lose an answer")

# %% tags=["solution-4-result"]
shares = {}
for stride in (safe, room):
    shares[stride] = whole_somewhere(tokenizer, answered, length=32, stride=stride)
claim(shares[safe] == 1, "up to room less answer plus 1 nothing is lost")
claim(shares[room] < 1, "at the largest stride some answers are")
rows = [(stride, f"{share:.2f}") for stride, share in shares.items()]
table(rows, ("stride", "answers whole in some window"))

# %% [markdown]
# ## What we saw
#
# - A reader is BERT with one linear layer; it and the upper three layers were trained. The
#   search for the best span and the score of "no answer" are arithmetic on its outputs.
# - The threshold trades questions with an answer against those without one.
# - On territories never seen, questions in known wordings are answered more often than the same
#   questions in a new wording.
