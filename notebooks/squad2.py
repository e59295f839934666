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
# # SQuAD 2.0
#
# The file of a data set of questions, read and checked by hand, its measures, and how far
# guessers get that hardly read. The text to it is the [chapter](../chapters/squad2.rst), the
# paper is [Rajpurkar et al. 2018](https://arxiv.org/abs/1806.03822).

# %%
import json
import math
import random
import re
import string
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter

import workbench
from workbench import claim, record, record_spread, seed, spread, table
from workbench import downloads, plots, reading

SEEDS = (0, 1, 2)
seed(0)

# %% [markdown]
# ## The file

# %% tags=["hand"]
hand = r"""{"version": "v2.0", "data": [{"title": "Caf\u00e9", "paragraphs": [{
 "context": "Zo\u00eb's caf\u00e9 opened in 1907. Its \ud83c\udf70 costs five crowns.",
 "qas": [
  {"id": "h1", "question": "When did it open?", "is_impossible": false,
   "answers": [{"text": "1907", "answer_start": 21}]},
  {"id": "h2", "question": "What does a cake cost?", "is_impossible": false,
   "answers": [{"text": "five crowns", "answer_start": 39}]},
  {"id": "h3", "question": "When did it close?", "is_impossible": true,
   "answers": [], "plausible_answers": [{"text": "1907", "answer_start": 21}]}]
}]}]}"""
folder = Path(tempfile.mkdtemp())
file = folder / "hand.json"
file.write_text(hand, encoding="utf-8")
print(file.read_text(encoding="utf-8"))

# %% tags=["counted"]
context = json.loads(hand)["data"][0]["paragraphs"][0]["context"]
escaped = json.dumps(context)[1:-1]
ways = {
    "characters": lambda text: len(text),
    "UTF-8 bytes": lambda text: len(text.encode("utf-8")),
    "UTF-16 units, as JavaScript": lambda text: len(text.encode("utf-16-le")) // 2,
    "letters of the file, with escapes": lambda text: len(json.dumps(text)) - 2,
}
rows = []
for name, length in ways.items():
    starts = [length(context[: context.index(text)]) for text in ("1907", "five")]
    rows.append((name, *starts, context[starts[1] :][:11] or "none, it ends before"))
table(rows, ("counted in", "before 1907", "before five", "11 characters from there"))

# %% tags=["counted-claims"]
claim(rows[0][1:3] == (21, 39), "the file counts characters")
claim(rows[0][3] == "five crowns", "characters find the answer")
claim(all(row[3] != "five crowns" for row in rows[1:]), "nothing else does")


# %% tags=["read"]
class Question(NamedTuple):
    """A question to a paragraph; no answers where the paragraph does not answer it."""

    id: str
    title: str
    context: str
    question: str
    answers: list[tuple[str, int]]  # text, characters of the context before it


def questions_of(articles: list[dict]) -> Iterator[Question]:
    """The questions of SQuAD 1.1 or 2.0, in the order of the file."""
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = [(a["text"], a["answer_start"]) for a in asked["answers"]]
                place = (article["title"], paragraph["context"])
                yield Question(asked["id"], *place, asked["question"], answers)


def read(path: Path) -> list[Question]:
    """All questions of a file; ValueError where it has another form."""
    try:
        whole = json.loads(path.read_bytes())
        return list(questions_of(whole["data"]))
    except (ValueError, KeyError, TypeError) as error:
        told = (
            f"{path} has not the form of SQuAD ({error!r}): delete it, fetch it again"
        )
        raise ValueError(told) from error


# %% tags=["read-run"]
rows = [(q.id, q.question, str(q.answers)) for q in read(file)]
table(rows, ("id", "question", "answers"))


# %% tags=["faults"]
def faults(questions: list[Question]) -> list[str]:
    """What is wrong with a set, in words; nothing where it is right."""
    found = []
    seen = set()
    for asked in questions:
        if asked.id in seen:
            found.append(f"{asked.id}: a second question has this id")
        seen.add(asked.id)
        for text, start in asked.answers:
            there = asked.context[start : start + len(text)]
            if there != text:
                found.append(f"{asked.id}: {text!r} expected at {start}, not {there!r}")
    return found


# %% tags=["faults-run"]
lost = [q._replace(context=q.context[2:]) for q in read(file)]
cases = {
    "the file": read(file),
    "two characters lost in front": lost,
    "the first question again": read(file) + read(file)[:1],
}
rows = [(name, "; ".join(faults(case)) or "nothing") for name, case in cases.items()]
table(rows, ("set", "what is wrong"))

# %% [markdown]
# ## The sets
#
# Without a network: a set of our own in the same form. With PROFILE=full: SQuAD 2.0.

# %% tags=["files"]
BASE = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
FILES = {  # SHA-256
    "train-v2.0.json": "68dcfbb971bd3e96d5b46c7177b16c1a"
    "4e7d4bdef19fb204502738552dede002",
    "dev-v2.0.json": "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
}


def squad_file(name: str) -> Path:
    """One of the two files of SQuAD 2.0, verified; fetched where it is missing."""
    return downloads.place(f"SQuAD2/{name}", [BASE + name], FILES[name])


# %% tags=["drawn"]
def written(dataset: dict, path: Path) -> Path:
    """The set as a file of JSON, as the original ones: one line, only ASCII."""
    path.write_text(json.dumps(dataset), encoding="ascii")
    return path


def drawn(part: str, count: int, number: int, wording: str = "known") -> list[Question]:
    """Questions of "train" or "test", drawn by a seed: generated, or from SQuAD 2.0."""
    if workbench.PROFILE == "full":
        whole = read(squad_file(f"{'train' if part == 'train' else 'dev'}-v2.0.json"))
        return random.Random(number).sample(whole, count)
    made = reading.generated(part, count, seed=number, wording=wording)
    with tempfile.TemporaryDirectory() as folder:
        return read(written(made, Path(folder, "made.json")))


# %% tags=["sets"]
TRAIN = 2000
TEST = 1000
DRAWN = "SQuAD 2.0" if workbench.PROFILE == "full" else "generated"
known = [drawn("train", TRAIN, number) for number in SEEDS]
tests = [drawn("test", TEST, 20 + number) for number in SEEDS]
by_hand = read(written(reading.handwritten(), folder / "by_hand.json"))
sum(len(faults(questions)) for questions in [*known, *tests, by_hand])

# %% tags=["shown"]
rows = []
for asked in [*tests[0][1:4], by_hand[2], by_hand[4]]:
    answers = " / ".join(text for text, _ in asked.answers)
    rows.append((asked.context, asked.question, answers or "none"))
table(rows, ("paragraph", "question", "answer"))

# %% [markdown]
# ## The measures

# %% tags=["measures"]
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> list[str]:
    """Words in lower case, without punctuation and articles."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return ARTICLES.sub(" ", text).split()


def exact(found: str, expected: str) -> float:
    return float(normalised(found) == normalised(expected))


def f1(found: str, expected: str) -> float:
    a = normalised(found)
    b = normalised(expected)
    if not a and not b:
        return 1.0  # both say "no answer"
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b))


def best(measure, found: str, asked: Question) -> float:
    """Against the answer that fits best; "" stands for no answer on both sides."""
    return max(measure(found, text) for text, _ in asked.answers or [("", 0)])


# %% tags=["measures-run"]
pairs = [
    ("The U.S. dollar", "us dollar"),
    ("1,907", "1907"),
    ("in 1907", "1907"),
    ("the café", "cafe"),
    ("two", "2"),
    ("the", ""),
    ("", "1907"),
]
rows = []
for found, expected in pairs:
    shown = [f"“{text}”" if text else "no answer" for text in (found, expected)]
    values = (exact(found, expected), f1(found, expected))
    rows.append((*shown, f"{values[0]:.0f}", f"{values[1]:.2f}"))
table(rows, ("found", "expected", "exact match", "F1"))

# %% [markdown]
# ## Checked


# %% tags=["form"]
def flattened(batch: dict) -> dict:
    """Rows of the form of the hub's squad_v2, from whole articles."""
    rows = {name: [] for name in ("id", "title", "context", "question", "answers")}
    for title, paragraphs in zip(batch["title"], batch["paragraphs"]):
        for paragraph in paragraphs:
            for asked in paragraph["qas"]:
                rows["id"].append(asked["id"])
                rows["title"].append(title)
                rows["context"].append(paragraph["context"])
                rows["question"].append(asked["question"])
                texts = [a["text"] for a in asked["answers"]]
                starts = [a["answer_start"] for a in asked["answers"]]
                rows["answers"].append({"text": texts, "answer_start": starts})
    return rows


def by_datasets(path: Path, cache: Path) -> datasets.Dataset:
    """The file through the package datasets."""
    articles = datasets.load_dataset(
        "json", data_files=str(path), field="data", split="train", cache_dir=str(cache)
    )
    return articles.map(flattened, batched=True, remove_columns=articles.column_names)


def as_row(asked: Question) -> dict:
    """A question in the form of the hub's squad_v2."""
    row = asked._asdict()
    texts, starts = ([a[i] for a in asked.answers] for i in (0, 1))
    return row | {"answers": {"text": texts, "answer_start": starts}}


# %% tags=["compared"]
datasets.disable_progress_bars()
paths = {"the file above": file, "by hand": folder / "by_hand.json"}
made = reading.generated("test", 200, seed=3)
paths["generated"] = written(made, folder / "generated.json")
if workbench.PROFILE == "full":
    paths["SQuAD 2.0, development"] = squad_file("dev-v2.0.json")
rows = []
for name, path in paths.items():
    ours = [as_row(asked) for asked in read(path)]
    theirs = by_datasets(path, folder / "cache").to_list()
    rows.append((name, len(ours), ours == theirs, len(faults(read(path)))))
table(rows, ("file", "questions", "equal rows", "faults"))

# %% tags=["compared-claims"]
claim(all(equal for _, _, equal, _ in rows), "the same rows by both readers")
claim(not any(wrong for *_, wrong in rows), "each answer stands where it should")
record("compared", sum(count for _, count, _, _ in rows))

# %% [markdown]
# ## What is in it


# %% tags=["words"]
def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def opening(question: str, count: int = 2) -> str:
    """The first words of a question."""
    return " ".join(words(question)[:count])


def sentences(context: str) -> list[tuple[int, int]]:
    """Where each sentence begins and ends: behind a mark and a space comes the next."""
    starts = [0, *(m.end() for m in re.finditer(r"[.:?!] ", context))]
    return list(zip(starts, [*starts[1:], len(context)]))


# %% tags=["statistics"]
def shared(asked: Question, span: tuple[int, int]) -> int:
    """How many different words of the question stand in a part of the paragraph."""
    return len(set(words(asked.question)) & set(words(asked.context[slice(*span)])))


def likest_span(asked: Question) -> tuple[int, int]:
    """The sentence with most words of the question; of several the first."""
    return max(sentences(asked.context), key=lambda span: shared(asked, span))


def in_likest(asked: Question) -> bool:
    """Does the first answer begin in the sentence with most words of the question?"""
    start, end = likest_span(asked)
    return start <= asked.answers[0][1] < end


def statistics(questions: list[Question]) -> dict[str, float]:
    """Counts and shares of a set."""
    answered = [asked for asked in questions if asked.answers]
    lengths = [len(asked.answers[0][0].split()) for asked in answered]
    return {
        "questions": len(questions),
        "without an answer": 1 - len(answered) / len(questions),
        "answers of one word": lengths.count(1) / len(answered),
        "answers of more than three": sum(n > 3 for n in lengths) / len(answered),
        "in the sentence most like the question": sum(map(in_likest, answered))
        / len(answered),
        "openings of two words": len({opening(q.question) for q in questions}),
    }


# %% tags=["statistics-run"]
sets = {DRAWN: tests[0], "by hand": by_hand}
found = {name: statistics(questions) for name, questions in sets.items()}
rows = []
for name in found["by hand"]:
    values = [column[name] for column in found.values()]
    rows.append((name, *(f"{v:.0%}" if isinstance(v, float) else v for v in values)))
table(rows, ("measure", *sets))

# %% tags=["statistics-claims"]
for name, values in zip(("made", "hand"), found.values()):
    record(f"{name}.none", values["without an answer"])
    record(f"{name}.likest", values["in the sentence most like the question"])
likest = [statistics(q)["in the sentence most like the question"] for q in tests]
record_spread("likest", likest)
shared_by_hand = found["by hand"]["in the sentence most like the question"]
claim(max(likest) + 0.3 < shared_by_hand, "by hand, more often in the likest sentence")
answered = [asked for asked in by_hand if asked.answers]
record("hand.answered", len(answered))
record("hand.without", len(by_hand) - len(answered))
claim(all(map(in_likest, answered)), "by hand, always")

# %% tags=["likest-claims"]
names = []
for part in tests:
    there = [asked for asked in part if asked.answers]
    first = sum(likest_span(asked)[0] == 0 for asked in there)
    names.append(first / len(there))
record_spread("likest.name", names)
claim(min(names) > 0.45, "the name in front is likest for about half of them")

# %% tags=["places-figure"] alt="Two histograms of where in its paragraph an answer begins, from 0 to 1. Generated: few in the first fifth, the others in three humps up to the end. By hand: some in every tenth."
_, panels = plt.subplots(1, 2, figsize=(5, 2.4), sharey=True)
shares = {}
for axes, (name, questions), colour in zip(panels, sets.items(), plots.COLOURS):
    answered = [asked for asked in questions if asked.answers]
    places = [q.answers[0][1] / len(q.context) for q in answered]
    weights = [1 / len(places)] * len(places)
    shares[name], *_ = axes.hist(
        places, bins=10, range=(0, 1), weights=weights, color=colour
    )
    axes.set(xlabel="place in the paragraph", xticks=(0, 0.5, 1))
    axes.set_title(name, loc="left", color=colour)
panels[0].set_ylabel("share of answers")
panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
axes.set_axisbelow(True)

# %% tags=["places-claims"]
first_fifth = {name: sum(share[:2]) for name, share in shares.items()}
claim(first_fifth[DRAWN] < 0.1, "generated, few at the beginning")
claim(all(share > 0.04 for share in shares["by hand"]), "by hand, in every tenth")


# %% [markdown]
# ## Guessers


# %% tags=["guessers"]
def no_answer(question: str, context: str) -> str:
    """Reads nothing."""
    return ""


def answers_by_opening(known: list[Question]) -> dict[str, Counter]:
    """What the answers were to questions that begin with the same two words."""
    found = defaultdict(Counter)
    for asked in known:
        if asked.answers:
            found[opening(asked.question)][asked.answers[0][0]] += 1
    return found


class Commonest:
    """Reads two words of the question: the commonest answer to such ones."""

    def __init__(self, known: list[Question]):
        self.answers = answers_by_opening(known)

    def __call__(self, question: str, context: str) -> str:
        counts = self.answers[opening(question)]
        return max(counts, key=counts.get, default="")


# %% tags=["shape"]
PHRASE = re.compile(r"\d[\d.,]*|[A-Z]\w*(?: [A-Z]\w*)*")


def shape(text: str) -> str:
    """What a phrase looks like: a number, letters in capitals, a name, or else."""
    if text[:1].isdigit():
        return "number"
    if text.isupper():
        return "capitals"
    return "name" if text[:1].isupper() else "else"


class FirstOfShape(Commonest):
    """Reads on until a phrase looks as the answers to such questions mostly do."""

    def __call__(self, question: str, context: str) -> str:
        shapes = Counter()
        for text, count in self.answers[opening(question)].items():
            shapes[shape(text)] += count
        wanted = max(shapes, key=shapes.get, default="name")
        phrases = [p for p in PHRASE.findall(context) if shape(p) == wanted]
        new = [p for p in phrases if p not in question]
        return new[0] if new else ""


# %% tags=["known"]
MOST = 500  # answers that are looked for


class Known(Commonest):
    """Looks which known answer to such questions stands in the paragraph, anywhere."""

    def __call__(self, question: str, context: str) -> str:
        there = f" {' '.join(words(context))} "
        for text, _ in self.answers[opening(question)].most_common(MOST):
            if f" {' '.join(words(text))} " in there:
                return text
        return ""


# %% tags=["scores"]
def scores(guess, questions: list[Question]) -> dict[str, float]:
    """Mean exact match and F1, over all questions and over both kinds."""
    kinds = {"all": [], "answer": [], "none": []}
    for asked in questions:
        found = guess(asked.question, asked.context)
        pair = best(exact, found, asked), best(f1, found, asked)
        kinds["all"].append(pair)
        kinds["answer" if asked.answers else "none"].append(pair)
    means = {}
    for kind, pairs in kinds.items():
        for name, values in zip(("exact", "f1"), zip(*pairs)):
            means[f"{name}, {kind}"] = sum(values) / len(values)
    return means


# %% tags=["guess"]
GUESSERS = {
    "no answer": lambda known: no_answer,
    "commonest": Commonest,
    "first of its shape": FirstOfShape,
    "known answer": Known,
}
results = {
    name: [scores(fit(known[n]), tests[n]) for n in SEEDS]
    for name, fit in GUESSERS.items()
}
elsewhere = {
    name: [scores(fit(known[n]), by_hand) for n in SEEDS]
    for name, fit in GUESSERS.items()
}

# %% tags=["guess-result"]
columns = ("exact, all", "f1, all", "exact, answer", "exact, none")
rows = []
for name, runs in results.items():
    rows.append((name, *(spread([r[c] for r in runs], ".2f") for c in columns)))
    for column in columns:
        record_spread(f"{name}.{column}", [run[column] for run in runs])
    record_spread(f"{name}.hand", [run["exact, answer"] for run in elsewhere[name]])
table(rows, ("guesser", "exact match", "F1", "exact, with answer", "exact, without"))

# %% tags=["guess-claims"]
record("train", TRAIN)
everywhere = {name: [r["exact, all"] for r in runs] for name, runs in results.items()}
right = {name: [r["exact, answer"] for r in runs] for name, runs in results.items()}
words_of = "a known answer that stands there is right more often, seeds apart"
for other in ("no answer", "commonest", "first of its shape"):
    claim(min(everywhere["known answer"]) > max(everywhere[other]) + 0.1, words_of)
    claim(min(right["known answer"]) > max(right[other]) + 0.1, words_of)
claim(min(right["commonest"]) > 0.15, "without the paragraph")
claim(max(everywhere["commonest"]) < min(everywhere["no answer"]), "saying nothing")
hands = [run["exact, answer"] for runs in elsewhere.values() for run in runs]
claim(max(hands) == 0, "of the questions by hand none")


# %% tags=["again"]
def known_share(questions: list[Question], known: list[Question]) -> float:
    """Share of the answers (first of each question) that were answers in training."""
    before = {text for asked in known for text, _ in asked.answers}
    answered = [asked for asked in questions if asked.answers]
    return sum(asked.answers[0][0] in before for asked in answered) / len(answered)


# %% tags=["again-records"]
record_spread("again", [known_share(tests[n], known[n]) for n in SEEDS])
hand_known = [known_share(by_hand, known[n]) for n in SEEDS]
claim(max(hand_known) == 0, "by hand, no answer was known")
met = [answers_by_opening(known[n]) for n in SEEDS]
openings = [opening(asked.question) for asked in by_hand if asked.answers]
record("hand.known", sum(start in met[0] for start in openings))
claim(all(sum(s in m for s in openings) < 18 for m in met), "most openings are new")

# %% tags=["guess-figure"] alt="Four rows of dots, one row for each guesser, in two panels: share of exact answers over all questions, and over those with an answer. The dots of the known answer lie farthest right in both panels; those of no answer lie at 0 in the second. Crosses for the questions by hand lie at one fifth or less in the first panel, at 0 in the second."
_, panels = plt.subplots(1, 2, figsize=(5, 2.6), sharey=True)
titles = {"exact, all": "all questions", "exact, answer": "with an answer"}
for axes, (column, title) in zip(panels, titles.items()):
    for row, name in enumerate(GUESSERS):
        values = [run[column] for run in results[name]]
        axes.plot(values, [row] * len(values), "o", color=plots.COLOURS[0], alpha=0.7)
        value = elsewhere[name][0][column]
        axes.plot(value, row + 0.3, "x", color=plots.COLOURS[1], markersize=7)
    axes.set(xlim=(-0.05, 1), xticks=(0, 0.5, 1), xlabel="exact match")
    axes.set_title(title, loc="left")
    axes.grid(axis="y")
panels[0].set(yticks=range(len(GUESSERS)), yticklabels=GUESSERS, ylim=(3.6, -0.4))
panels[1].annotate(DRAWN, (0.98, 0.38), color=plots.COLOURS[0], ha="right")
panels[1].annotate("by hand", (0.98, 0.72), color=plots.COLOURS[1], ha="right")
axes.set_axisbelow(True)

# %% [markdown]
# ## Told from the question alone


# %% tags=["suspicion"]
class Suspicion:
    """How much a question's words speak for "no answer": naive Bayes, log odds."""

    def __init__(self, known: list[Question]):
        self.counts = {True: Counter(), False: Counter()}
        self.sizes = Counter()
        for asked in known:
            self.sizes[bool(asked.answers)] += 1
            self.counts[bool(asked.answers)].update(set(words(asked.question)))

    def weight(self, word: str) -> float:
        """Above 0 for a word that is more frequent in questions without an answer."""
        none, some = (
            (self.counts[kind][word] + 1) / (self.sizes[kind] + 2)
            for kind in (False, True)
        )
        return math.log(none / some)

    def __call__(self, question: str) -> float:
        return sum(self.weight(word) for word in set(words(question)))


def area(suspicions: list[float], impossible: list[bool]) -> float:
    """How often one without an answer is suspected more than one with; ties half."""
    none = [s for s, is_none in zip(suspicions, impossible) if is_none]
    some = [s for s, is_none in zip(suspicions, impossible) if not is_none]
    wins = sum((a > b) + (a == b) / 2 for a in none for b in some)
    return wins / (len(none) * len(some))


# %% tags=["suspicion-run"]
areas = []
for number in SEEDS:
    suspicion = Suspicion(known[number])
    values = [suspicion(asked.question) for asked in tests[number]]
    areas.append(area(values, [not asked.answers for asked in tests[number]]))
spread(areas, ".2f")

# %% tags=["suspicion-claims"]
record_spread("area", areas)
claim(min(areas) > 0.53, "more than by chance, each seed")

# %% tags=["openings-figure"] alt="Fourteen bars, one for each opening of two words: the share of questions without an answer. What do and which language are below one fifth, all others above three tenths, up to whose time near one half; the line stands near one third."
counts = Counter(opening(asked.question) for asked in known[0])
impossible = Counter(opening(q.question) for q in known[0] if not q.answers)
frequent = [name for name, _ in counts.most_common(14)]
frequent.sort(key=lambda name: impossible[name] / counts[name])
_, axes = plt.subplots(figsize=(5, 3.6))
none = [impossible[name] / counts[name] for name in frequent]
axes.barh(range(len(none)), none, color=plots.COLOURS[0])
axes.axvline(impossible.total() / TRAIN, color=plots.INK, linewidth=1)
axes.set(yticks=range(len(none)), yticklabels=frequent, xlim=(0, 0.6))
axes.set(xlabel="share without an answer")
axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
axes.set_axisbelow(True)

# %% tags=["openings-claims"]
claim(set(frequent[:2]) == {"what do", "which language"}, "of the official language")
claim(none[1] + 0.1 < none[2], "all others lack an answer more often")
claim(none[1] < 0.2 and none[2] > 0.3, "below a fifth, above three tenths")
record("least.none", none[0])
record("most.none", none[-1])

# %% [markdown]
# ## What we saw
#
# - The file counts characters; each answer can be checked against its paragraph.
# - On a set whose answers come again, two words of the question and a search for known
#   answers go a long way; on questions by hand the same guesser gets nothing.
# - Whether there is an answer can be told in part from the question alone.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
answers = Counter(bool(asked.answers) for asked in tests[0])
always = answers[True] / answers.total()  # the most for who never abstains

# %% tags=["solution-1-result"]
record("never.abstains", always)
record("never.answers", 1 - always)
least = results["no answer"][0]["exact, all"]
claim(abs(least + always - 1) < 1e-9, "both shares are 1 together")

# %% tags=["solution-2"]
unlike = [drawn("test", TEST, 20 + number, wording="new") for number in SEEDS]
again = [scores(Known(known[n]), unlike[n])["exact, answer"] for n in SEEDS]

# %% tags=["solution-2-result"]
record_spread("unlike", again)
new = {opening(asked.question) for asked in unlike[0]}
record("unlike.openings", len(new))
record("unlike.unknown", len(new - {opening(asked.question) for asked in known[0]}))
claim(max(again) + 0.1 < min(right["known answer"]), "other wordings, fewer answers")


# %% tags=["solution-3"]
def readable(asked: Question) -> bool:
    """Is there a second phrase of the answer's shape, so that reading is needed?"""
    wanted = shape(asked.answers[0][0])
    phrases = {p for p in PHRASE.findall(asked.context) if p not in asked.question}
    return sum(shape(p) == wanted for p in phrases) > 1


harder = [[q for q in part if q.answers and readable(q)] for part in tests]
firsts = [
    sum(best(exact, FirstOfShape(known[n])(q.question, q.context), q) for q in part)
    / len(part)
    for n, part in enumerate(harder)
]

# %% tags=["solution-3-result"]
record_spread("harder", firsts)
record("harder.questions", len(harder[0]))

# %% tags=["solution-4"]
guess = Known(known[0])
suspicion = Suspicion(known[0])
trade = []
for threshold in (-math.inf, -1, -0.5, 0, 0.5, 1, math.inf):
    total = 0
    for asked in tests[0]:
        quiet = suspicion(asked.question) > threshold
        total += best(
            exact, "" if quiet else guess(asked.question, asked.context), asked
        )
    trade.append((threshold, f"{total / TEST:.2f}"))

# %% tags=["solution-4-result"]
claim(trade[-1][1] > max(share for _, share in trade[:-1]), "best without abstaining")
table(trade, ("threshold", "exact match"))
