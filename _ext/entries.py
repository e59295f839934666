"""Entries of the bibliography, in words and dates."""

import re
from functools import lru_cache
from pathlib import Path

from pybtex.database import BibliographyData, Entry, Person, parse_file
from pybtex.richtext import Text

MOST_AUTHORS = 6
ARXIV = re.compile(
    r"arxiv\.org/(?:abs|pdf)/(\d\d)(\d\d)\."
)  # year and month begin a paper's number
MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")

Date = tuple[int, int | None]  # year and month, if that is known


@lru_cache(maxsize=1)
def bibliography(file: Path, changed: int) -> BibliographyData:
    return parse_file(file, bib_format="bibtex")


def decode(latex: str) -> str:
    return str(Text.from_latex(latex))


def full_name(person: Person) -> str:
    first, last = person.first_names + person.middle_names, person.prelast_names + person.last_names
    return decode(" ".join(first + last + person.lineage_names))


def byline(persons: list[Person]) -> str:
    names = [full_name(person) for person in persons]
    if names[-1] == "others":
        return ", ".join(names[:-1]) + " and others"
    more = len(names) - MOST_AUTHORS
    return ", ".join(names[:MOST_AUTHORS]) + (f" and {more} more" if more > 0 else "")


def fault(entry: Entry | None) -> str | None:
    """Why an entry cannot be shown on a card."""
    if entry is None:
        return "is not there"
    if "author" not in entry.persons or not {"title", "year", "url"} <= {*entry.fields}:
        return "needs author, title, year and url"
    return None if entry.fields["year"].isdecimal() else "needs a year in digits"


def month(text: str) -> Date:
    """
    >>> month("2015-12")
    (2015, 12)
    """
    found = MONTH.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no month such as 2015-12")
    return int(found[1]), int(found[2])


def written(date: Date) -> str:
    """
    >>> written((2015, 12)), written((1998, None))
    ('2015-12', '1998')
    """
    return "-".join(f"{part:02}" for part in date if part)


def published(entry: Entry) -> Date:
    """When arXiv had the paper, where the address tells, else the year of the entry."""
    if found := ARXIV.search(entry.fields.get("url", "")):
        return 2000 + int(found[1]), int(found[2])
    return int(entry.fields["year"]), None


def venue(entry: Entry) -> str | None:
    name = entry.fields.get("journal") or entry.fields.get("booktitle")
    return decode(name) if name else None
