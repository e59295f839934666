"""Paragraphs with questions in the form of SQuAD 2.0."""

import random
import sys
from types import SimpleNamespace

import pytest

import workbench
from workbench import reading
from workbench.questions import ASKED, WRITTEN


@pytest.fixture(autouse=True)
def own_sources(monkeypatch):
    monkeypatch.setattr(workbench, "sources", [])


def questions_of(dataset):
    for article in dataset["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield article["title"], paragraph["context"], question


def holds_its_form(dataset):
    """Keys and types of a file of SQuAD 2.0; answers stand where they are said to."""
    assert dataset.keys() == {"version", "data"} and dataset["version"] == "v2.0"
    names = []
    for title, context, question in questions_of(dataset):
        assert question.keys() == {"id", "question", "is_impossible", "answers"}
        assert isinstance(title, str) and question["question"].endswith("?")
        assert question["is_impossible"] is (not question["answers"])
        for answer in question["answers"]:
            start = answer["answer_start"]
            assert context[start : start + len(answer["text"])] == answer["text"] != ""
        names.append(question["id"])
    assert len(names) == len(set(names))
    return names


def test_territories_are_parted_once_and_for_all():
    parts = reading.territories()
    names = [place.name for places in parts.values() for place in places]
    assert len(names) == len(set(names)) > 200
    shares = [len(places) / len(names) for places in parts.values()]
    assert list(parts) == ["train", "validation", "test"]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.01)
    assert reading.territories() == parts


def test_facts_are_those_of_cldr():
    places = {p.name: p.facts for part in reading.territories().values() for p in part}
    assert places["Czechia"] == {
        "currency": "Czech Koruna",
        "language": "Czech",
        "share": "98",
        "code": "CZ",
        "week": "Monday",
        "weekend": "Saturday",
        "minority": "English",
        "clock": "Prague",
    }
    assert "clock" not in places["Brazil"]  # of several zones
    assert places["Egypt"]["weekend"] == "Friday"
    assert places["Ghana"]["language"] == "English"  # official, though Akan is spoken by more
    assert float(places["Ghana"]["share"]) < 50
    assert places["Ghana"]["minority"] == "Akan"


@pytest.mark.parametrize("facts", [2, 3, 8])
def test_a_generated_set_has_the_form_of_the_files(facts):
    dataset = reading.generated("train", 200, seed=1, facts=facts)
    assert len(holds_its_form(dataset)) == 200
    known = {place.name for place in reading.territories()["train"]}
    for title, context, question in questions_of(dataset):
        assert title in known and title in question["question"]
        assert context.startswith(f"{title}:")
        assert facts <= context.count(".") + title.count(".") or facts == 8
    assert dataset == reading.generated("train", 200, seed=1, facts=facts)
    assert dataset != reading.generated("train", 200, seed=2, facts=facts)
    assert "CLDR" in workbench.sources[0]


def test_a_third_asks_for_what_the_paragraph_does_not_state():
    dataset = reading.generated("test", 600, seed=1)
    impossible = [q for _, _, q in questions_of(dataset) if q["is_impossible"]]
    assert len(impossible) / 600 == pytest.approx(1 / 3, abs=0.05)
    kinds = {words: kind for kind in ASKED for words in ASKED[kind]}
    for title, context, question in questions_of(dataset):
        kind = kinds[question["question"].replace(title, "{t}")]
        begun = [sentence.split("{v}") for sentence in WRITTEN[kind]]
        stated = any(a in context and b in context for a, b in begun if len(a) + len(b) > 1)
        assert stated is not question["is_impossible"]


def test_wordings_are_two_known_ones_and_a_new_one():
    seen = {}
    for wording in ("known", "new"):
        found = questions_of(reading.generated("test", 300, seed=1, wording=wording))
        seen[wording] = {q["question"].replace(title, "{t}") for title, _, q in found}
    assert seen["known"] == {words for kind in ASKED for words in ASKED[kind][:2]}
    assert seen["new"] == {ASKED[kind][2] for kind in ASKED}
    assert ASKED.keys() == WRITTEN.keys()


def test_the_share_stands_behind_its_language():
    places = reading.territories()["train"]
    for number in range(300):
        draw = random.Random(number)
        place = draw.choice(places)
        text, starts = reading.paragraph(place, 3, draw)
        assert len(starts) == 3
        kinds = list(starts)
        assert sorted(starts.values()) == list(starts.values())
        if "share" in kinds:
            assert kinds[kinds.index("share") - 1] == "language"


def test_written_questions_have_the_form_of_the_files():
    dataset = reading.handwritten()
    assert len(holds_its_form(dataset)) == 45
    found = [len(q["answers"]) for _, _, q in questions_of(dataset)]
    assert found.count(0) == 9 and max(found) == 2
    assert "written for this book" in workbench.sources[0]


def test_the_full_profile_reads_squad(monkeypatch):
    rows = [
        {
            "id": str(i),
            "title": f"title {i // 2:02}",
            "context": "one two",
            "question": "what?",
            "answers": {"text": ["two"] * (i % 2), "answer_start": [4] * (i % 2)},
        }
        for i in range(80)
    ]
    asked = []

    def load_dataset(*names, **how):
        asked.append((names, how))
        return rows

    monkeypatch.setattr(workbench, "PROFILE", "full")
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    names = {}
    for part in ("train", "validation", "test"):
        names[part] = holds_its_form(reading.questions(part, 5, seed=0))
    assert names["test"] == [str(i) for i in range(80)]
    assert names["validation"] == ["0", "1", "40", "41"]
    assert sorted(names["train"] + names["validation"], key=int) == names["test"]
    assert [how["split"] for _, how in asked] == ["train", "train", "validation"]
    assert all(words == ("rajpurkar/squad_v2",) for words, _ in asked)
    assert workbench.sources[0] == "SQuAD 2.0, train"


def test_in_the_sample_profile_questions_are_generated():
    how = {"seed": 3, "facts": 4, "wording": "new"}
    assert reading.questions("test", 5, **how) == reading.generated("test", 5, **how)


def test_what_is_missing_in_the_full_profile_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install datasets"):
        reading.squad2("train")

    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=offline))
    with pytest.raises(RuntimeError, match="no route. Without a network run with PROFILE=sample"):
        reading.squad2("train")
