"""What the cards of the chapters tell other pages, and the chapters of each part of the book.

A chapter is a page of the folder ``chapters/``; the toctrees of the front page that have a caption
and hold chapters are the parts.
"""

from dataclasses import dataclass

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

import navigation
import summaries
from embed import cells_placeholder, result_placeholder
from execution import kept
from formats import link
from navigation import is_chapter
from per_page import PerPage

LOG = logging.getLogger(__name__)


class card_idea(nodes.paragraph):
    """The clause for other pages; part of the chapter so that it is translated with it."""


class card_links(nodes.paragraph):
    """Stands for links to other chapters until all are read; its text goes before them."""


@dataclass(frozen=True)
class Card:
    """What is kept of a card: `key` is that of the paper and `first` its month, as 2015-12.

    Both are empty where `kind` is not "paper": it is "overview" or tells what a resource is.
    """

    kind: str
    key: str
    first: str
    after: list[str]  # docnames: what it builds on or, an overview, what it draws together
    idea: nodes.paragraph
    facts: list[nodes.field]
    picture: cells_placeholder | None
    line: int

    @property
    def date(self) -> tuple[int, int | None]:
        year, _, month = self.first.partition("-")
        return int(year), int(month) if month else None

    @property
    def values(self) -> list[result_placeholder]:
        """The numbers of the card: parameters, MACs."""
        return [value for field in self.facts for value in field.findall(result_placeholder)]


class Cards(PerPage):
    """The first card of each page."""

    name, label = "cards", "Cards"

    def process_doc(self, env: BuildEnvironment, docname: str, document: nodes.document) -> None:
        for card in document.findall(nodes.container):
            if "paper-card" in card["classes"]:
                self.pages[docname] = self.kept(document, card)
                break

    def kept(self, document: nodes.document, card: nodes.container) -> Card:
        picture = None
        if name := card["figure"]:
            figures = [f for f in document.findall(nodes.figure) if name in f["names"]]
            picture = next((p for f in figures for p in f.findall(cells_placeholder)), None)
            if picture is None:
                text = ":figure: there is no figure %r with cells of a notebook on this page"
                LOG.warning(text, name, location=card, type="cards")
        (idea,) = card.findall(card_idea)
        facts = [alone(field) for field in card.findall(nodes.field)]
        first, picture = card.get("first", ""), picture and alone(picture)
        return Card(
            card["kind"], card["key"], first, card["after"], alone(idea), facts, picture, card.line
        )

    def check_consistency(self) -> None:
        """Chapters that a card names are there, have a card with a date, and are not younger."""
        for docname, card in sorted(self.pages.items()):
            for other in card.after:
                if problem := self.fault(card, other):
                    stem = other.rpartition("/")[2]
                    where = (docname, card.line)
                    LOG.warning("card: %r %s", stem, problem, location=where, type="cards")

    def fault(self, card: Card, other: str) -> str | None:
        known = self.pages.get(other)
        if other not in self.env.all_docs:
            return "is no chapter"
        if known is not None and card.kind == "overview" and known.kind != "overview":
            return None
        if known is None or not known.first:
            return "has no card of a paper, so nothing can build on it"
        both = min(len(known.first), len(card.first))  # a month is not always known
        if known.first[:both] > card.first[:both]:
            return f"is of {known.first}, later than {card.first}"
        return None


def alone(node: nodes.Element) -> nodes.Element:
    """A copy that does not hold on to its page, all of which would be kept with it."""
    copy = node.deepcopy()
    for each in copy.findall():
        each.document = None
    return copy


def cards(env: BuildEnvironment) -> dict[str, Card]:
    return env.get_domain("cards").pages


def parts(env: BuildEnvironment) -> list[tuple[str, list[str]]]:
    """Caption and chapters of each part, in the order of the front page."""
    found = []
    for caption, pages in navigation.parts(env):
        docnames = [page.docname for page in pages if is_chapter(page.docname)]
        if caption and docnames:
            found.append((caption, docnames))
    return found


def value(env: BuildEnvironment, place: result_placeholder) -> object:
    """The value that a notebook recorded, None if it did not."""
    return kept(env).get(place["notebook"], {"results": {}})["results"].get(place["result"])


def shown(env: BuildEnvironment) -> list[tuple]:
    """All that pages can show of cards, in the order of the parts."""
    found = []
    for caption, docnames in parts(env):
        for doc in docnames:
            card = cards(env).get(doc)
            told = card and (
                card.kind,
                card.first,
                card.after,
                str(card.idea),
                list(map(str, card.facts)),
            )
            numbers = card and [value(env, place) for place in card.values]
            picture = card and card.picture
            drawn = picture and (str(picture), kept(env).get(picture["notebook"], {}).get("state"))
            found.append((caption, doc, env.titles[doc].astext(), told, numbers, drawn))
    return found


def titles(env: BuildEnvironment) -> dict[str, str]:
    """Of the chapters to which cards link."""
    named = {doc for card in cards(env).values() for doc in card.after}
    return {doc: env.titles[doc].astext() for doc in sorted(named & env.titles.keys())}


def in_words(items: list[str]) -> str:
    """
    >>> in_words(["VGG", "NiN", "ResNet"])
    'VGG, NiN and ResNet'
    """
    return " and ".join([*filter(None, [", ".join(items[:-1])]), *items[-1:]])


class Resolve(SphinxPostTransform):
    default_priority = 2  # before cross-references, at 10

    def run(self, **kwargs) -> None:
        for line in list(self.document.findall(card_links)):
            known = [doc for doc in line["docnames"] if doc in self.env.titles]
            words = [*line.children]
            for number, doc in enumerate(known, 1):
                between = " " if number == 1 else " and " if number == len(known) else ", "
                words += [nodes.Text(between), link(self.env, doc)]
            line.replace_self(nodes.paragraph("", "", *words, classes=line["classes"]))
        if self.env._builder_cls.name == "gettext":  # it extracts the ideas
            return
        for idea in list(self.document.findall(card_idea)):
            idea.parent.remove(idea)


def setup(app: Sphinx) -> dict:
    app.setup_extension("embed")
    app.add_node(card_idea)
    app.add_node(card_links)
    app.add_post_transform(Resolve)
    app.add_domain(Cards)
    summaries.follow(app, "card links", titles)
    return {
        "version": "1",
        "env_version": 3,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
