"""Styles for sphinxcontrib.bibtex: the same authors and year in the text and in the bibliography.

In conf.py::

    bibtex_default_style = bibtex_reference_style = "book"

A paper of three authors or more is "He et al., 2015"; papers that would be cited alike get letters, in
the order of the bibliography: "He et al., 2015a", "He et al., 2015b". The year is that of the first
public version (see ``entries.published``), as on the cards; the entry names where and when it appeared.
"""

import unicodedata
from collections import Counter

from pybtex.database import Entry
from pybtex.plugin import register_plugin as register_bibliography_style
from pybtex.richtext import Text
from pybtex.style.formatting.unsrt import Style
from pybtex.style.template import Node
from sphinx.application import Sphinx
from sphinxcontrib.bibtex.plugin import register_plugin as register_reference_style
from sphinxcontrib.bibtex.style.referencing.author_year import AuthorYearReferenceStyle
from sphinxcontrib.bibtex.style.referencing.basic_author_year import (
    BasicAuthorYearParentheticalReferenceStyle,
    BasicAuthorYearTextualReferenceStyle,
)
from sphinxcontrib.bibtex.style.template import join, join2, node, post_text, pre_text, reference

from entries import published


@node
def year(children: list, data: dict) -> Text:
    """The year as the label has it, with its letter."""
    return Text(data["formatted_entry"].label.rpartition(", ")[2])


class Parenthetical(BasicAuthorYearParentheticalReferenceStyle):
    """[He et al., 2016a]: as in its base class, but for the year."""

    def inner(self, role_name: str) -> Node:
        names = self.person.author_or_editor_or_title(full="s" in role_name)
        cited = reference[join(sep=self.author_year_sep)[names, year]]
        return join2(sep1=self.pre_text_sep, sep2=self.post_text_sep)[pre_text, cited, post_text]


class Textual(BasicAuthorYearTextualReferenceStyle):
    """He et al. [2016a]: as in its base class, but for the year."""

    def inner(self, role_name: str) -> Node:
        names = self.person.author_or_editor_or_title(full="s" in role_name)
        within = join2(sep1=self.pre_text_sep, sep2=self.post_text_sep)
        cited = within[pre_text, reference[year], post_text]
        return join(sep=self.text_reference_sep)[
            names, join[self.bracket.left, cited, self.bracket.right]
        ]


class ReferenceStyle(AuthorYearReferenceStyle):
    def __post_init__(self) -> None:
        super().__post_init__()
        for style in (Parenthetical(person=self.person), Textual(person=self.person)):
            self.role_style.update(dict.fromkeys(style.role_names(), style))


REFERENCES = ReferenceStyle()


class BibliographyStyle(Style):
    """Entries in the order of their labels, which are written as the text has them."""

    default_label_style, default_sorting_style = "number", "none"  # both replaced below

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.sort, self.format_labels = in_order, labels


def authors(entry: Entry) -> str:
    names = REFERENCES.person.author_or_editor_or_title(full=False)
    return str(names.format_data({"entry": entry, "style": REFERENCES}))


def in_order(entries: list[Entry]) -> list[Entry]:
    """Sorted by authors, accents left out, year and title."""

    def key(entry: Entry) -> tuple[str, str, str]:
        letters = unicodedata.normalize("NFKD", authors(entry)).encode("ascii", "ignore")
        return letters.lower().decode(), first_public(entry), entry.fields["title"]

    return sorted(entries, key=key)


def first_public(entry: Entry) -> str:
    """The year in which the paper was public, in four digits; "n.d." for an entry without a year."""
    return str(published(entry)[0]) if "year" in entry.fields else "n.d."


def labels(entries: list[Entry]) -> list[str]:
    """Authors and year of each entry, with a letter where that names more than one."""
    plain = [f"{authors(entry)}, {first_public(entry)}" for entry in entries]
    total, seen, found = Counter(plain), Counter(), []
    for label in plain:
        found.append(label + chr(ord("a") + seen[label]) if total[label] > 1 else label)
        seen[label] += 1
    return found


def setup(app: Sphinx) -> dict:
    register_bibliography_style("pybtex.style.formatting", "book", BibliographyStyle)
    group = "sphinxcontrib.bibtex.style.referencing"
    register_reference_style(group, "book", ReferenceStyle)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
