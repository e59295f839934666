"""Paragraphs with questions, in the form of SQuAD 2.0's files.

A set is a dictionary {"version", "data"}; data are articles {"title", "paragraphs"}, paragraphs
{"context", "qas"}, and a question of qas has "id", "question", "is_impossible" and "answers", each
{"text", "answer_start"}, the number of characters of the context before it.
"""

import random
from typing import NamedTuple

import workbench
from workbench import archives
from workbench.questions import ASKED, PARAGRAPHS, WRITTEN

WORDINGS = {"known": (0, 1), "new": (2,)}
UNANSWERABLE = 1 / 3  # share of the questions, about that of SQuAD 2.0's training set


class Territory(NamedTuple):
    """A territory and what CLDR says of it, by the kinds of WRITTEN."""

    name: str
    facts: dict[str, str]


def territories() -> dict[str, list[Territory]]:
    """Seven tenths to train, a tenth for validation, a fifth held out, drawn once and for all."""
    from babel import Locale
    from babel.core import UnknownLocaleError, get_global

    known = []
    for code in sorted(get_global("territory_zones")):
        try:
            place = Locale.parse(f"und_{code}")
        except UnknownLocaleError:
            continue
        facts = facts_of(code, place)
        if facts:
            known.append(Territory(Locale("en").territories[code], facts))
    random.Random(0).shuffle(known)
    first, second = len(known) * 7 // 10, len(known) * 8 // 10
    return {
        "train": known[:first],
        "validation": known[first:second],
        "test": known[second:],
    }


def facts_of(code: str, place) -> dict[str, str]:
    """What CLDR knows of a territory, in English; none where currency or official language lack."""
    from babel import Locale
    from babel.core import get_global
    from babel.languages import get_territory_language_info
    from babel.numbers import get_territory_currencies

    english = Locale("en")
    spoken = get_territory_language_info(code)
    shares = {name: spoken[name]["population_percent"] for name in spoken}
    ordered = [
        n for n in sorted(shares, key=shares.get)[::-1] if n in english.languages
    ]
    official = ("official", "de_facto_official")
    first = [n for n in ordered if spoken[n]["official_status"] in official]
    money = get_territory_currencies(code)
    if not first or not money:
        return {}
    days = english.days["format"]["wide"]
    facts = {
        "currency": english.currencies[money[0]],
        "language": english.languages[first[0]],
        "share": f"{shares[first[0]]:g}",
        "code": code,
        "week": days[place.first_week_day],
        "weekend": days[place.weekend_start],
    }
    others = [name for name in ordered if name != first[0]]
    if others:
        facts["minority"] = english.languages[others[0]]
    zones = get_global("territory_zones")[code]
    if len(zones) == 1:
        facts["clock"] = zones[0].split("/")[-1].replace("_", " ")
    return facts


def generated(
    part: str, count: int, *, seed: int, facts: int = 3, wording: str = "known"
) -> dict:
    """A set of `count` paragraphs about territories of a part, each with one question.

    A paragraph states `facts` facts of one territory in one of two ways each; a third of the
    questions ask for a fact that it does not state. wording: of the questions, "known" or "new".
    """
    pool = territories()[part]
    draw = random.Random(seed)
    articles = []
    for number in range(count):
        place = draw.choice(pool)
        context, starts = paragraph(place, facts, draw)
        missing = [kind for kind in WRITTEN if kind not in starts]
        impossible = bool(missing) and draw.random() < UNANSWERABLE
        kind = draw.choice(missing if impossible else list(starts))
        answer = {"text": place.facts.get(kind), "answer_start": starts.get(kind)}
        words = ASKED[kind][draw.choice(WORDINGS[wording])].format(t=place.name)
        answers = [] if impossible else [answer]
        question = as_question(f"{part}-{seed}-{number}", words, answers)
        articles.append(as_article(place.name, context, [question]))
    workbench.sources.append(
        "facts about territories by Unicode's CLDR from the package Babel"
    )
    return {"version": "v2.0", "data": articles}


def as_question(name: str, words: str, answers: list[dict]) -> dict:
    """A question in the form of the files; without answers it is impossible."""
    return {
        "id": name,
        "question": words,
        "is_impossible": not answers,
        "answers": answers,
    }


def as_article(title: str, context: str, qas: list[dict]) -> dict:
    """An article of one paragraph in the form of the files."""
    return {"title": title, "paragraphs": [{"context": context, "qas": qas}]}


def paragraph(place: Territory, count: int, draw: random.Random) -> tuple[str, dict]:
    """A text that states some facts of a territory, and where in it each value starts."""
    kinds = draw.sample(sorted(place.facts), min(count, len(place.facts)))
    if "share" in kinds:  # it says "it", of the language: that one comes before
        kinds.remove("share")
        if "language" not in kinds:
            kinds[-1:] = ["language"]
        kinds.insert(kinds.index("language") + 1, "share")
    text = f"{place.name}:"
    starts = {}
    for kind in kinds:
        sentence = draw.choice(WRITTEN[kind])
        starts[kind] = len(text) + 1 + sentence.index("{v}")
        text += " " + sentence.format(v=place.facts[kind])
    return text, starts


def handwritten() -> dict:
    """Nine paragraphs with 45 questions, some without an answer, written for this book."""
    articles = []
    for number, (title, context, asked) in enumerate(PARAGRAPHS):
        qas = []
        for place, (words, *answers) in enumerate(asked):
            starts = [{"text": a, "answer_start": context.index(a)} for a in answers]
            qas.append(as_question(f"written-{number}-{place}", words, starts))
        articles.append(as_article(title, context, qas))
    workbench.sources.append("paragraphs with questions written for this book")
    return {"version": "v2.0", "data": articles}


def questions(
    part: str, count: int, *, seed: int, facts: int = 3, wording: str = "known"
) -> dict:
    """A generated set; in the full profile SQuAD 2.0 whole, whatever the other arguments say."""
    if workbench.PROFILE == "full":
        return squad2(part)
    return generated(part, count, seed=seed, facts=facts, wording=wording)


def squad2(part: str) -> dict:
    """SQuAD 2.0 through the package datasets; "test" is its development set.

    Of its training set every twentieth article is "validation".
    """
    split = "validation" if part == "test" else "train"
    with archives.through_datasets("SQuAD 2.0") as datasets:
        rows = datasets.load_dataset("rajpurkar/squad_v2", split=split)
    titles = sorted({row["title"] for row in rows})
    apart = set() if part == "test" else set(titles[::20])
    articles = []
    for row in rows:
        if part != "test" and (row["title"] in apart) != (part == "validation"):
            continue
        pairs = zip(row["answers"]["text"], row["answers"]["answer_start"])
        answers = [{"text": text, "answer_start": start} for text, start in pairs]
        question = as_question(row["id"], row["question"], answers)
        articles.append(as_article(row["title"], row["context"], [question]))
    workbench.sources.append(f"SQuAD 2.0, {part}")
    return {"version": "v2.0", "data": articles}
