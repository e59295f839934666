"""The card at the head of a chapter: a paper, what an overview draws together, or a resource.

::

    .. paper:: krizhevsky2012imagenet
       :first: 2012-09
       :after: lenet
       :parameters: two.parameters
       :macs: two.macs
       :checked: ``torchvision``, equal outputs
       :idea: a large network learns from a million photographs
       :figure: fig-alexnet-layout

    .. overview:: vgg, nin, googlenet
       :checked: loops over pixels
       :idea: the ways to join two maps, side by side
       :figure: fig-fusion-weights

    .. resource:: MNIST <http://yann.lecun.com/exdb/mnist/>
       :kind: data set
       :first: 1998
       :by: Y. LeCun, C. Cortes and C. J. C. Burges
       :holds: 60,000 and 10,000 grey images of digits
       :licence: none stated
       :checked: ``torchvision``, equal arrays
       :idea: handwritten digits, and which of them no classifier reads
       :figure: fig-mnist-missed

The key names an entry of the file ``paper_bibfile``. ``:first:`` is the month of the first public
version; it is needed only where that was not on arXiv, whose addresses tell it, or was there before.
``:after:`` and the argument of an overview name chapters. ``:parameters:`` and ``:macs:`` take what
the role ``result`` takes; a name without a format is written with thousands separators. ``:idea:``
and ``:figure:``, the name of a figure of this chapter, are for the front page (see ``cards``).
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from pybtex.database import Entry
from pybtex.exceptions import PybtexError
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import entries
import summaries
from cards import card_idea, card_links
from embed import result_reference

LOG = logging.getLogger(__name__)
NUMBERS = (("parameters", "Parameters"), ("macs", "MACs"))
TOLD = (("holds", "Holds"), ("licence", "Licence"), ("checked", "Proven against"))


class Card(SphinxDirective):
    """What all cards have: the frame, facts, the idea and the links to the notebook."""

    required_arguments = 1
    option_spec = dict.fromkeys(("checked", "idea", "figure"), directives.unchanged_required)

    def frame(self, kind: str, after: list[str], key: str = "") -> nodes.container:
        """An empty card that carries what other pages need of it."""
        if "idea" not in self.options:
            raise self.error(f"{self.name}: the option :idea: is missing")
        self.messages = []
        figure = self.options.get("figure", "")
        card = nodes.container(
            classes=["paper-card"], figure=figure, kind=kind, key=key, after=after
        )
        self.set_source_info(card)
        return card

    def finish(self, card: nodes.container) -> list[nodes.Node]:
        if facts := [*self.facts(card)]:
            card += nodes.field_list("", *facts)
        card += self.parsed("idea", card_idea)
        if any(card[-1].findall(addnodes.pending_xref)):
            text = f"{self.name}: :idea: takes no cross-reference, it is shown on another page"
            raise self.error(text)
        if "launch" in self.config.extensions:
            from launch import buttons_node

            card += buttons_node(self.env.current_document.docname)
        return [card, *self.messages]

    def chapters(self, text: str) -> list[str]:
        """Pages beside this one, by the names of their files."""
        folder = posixpath.dirname(self.env.current_document.docname)
        return [posixpath.join(folder, stem.strip()) for stem in text.split(",")]

    def links(self, words: str, docnames: list[str]) -> nodes.paragraph:
        """A sentence that names chapters; their titles are known when the page is written."""
        line = card_links(words, words, classes=["paper-after"], docnames=docnames)
        self.set_source_info(line)
        summaries.note(self.env, "card links")
        return line

    def facts(self, card: nodes.container) -> Iterator[nodes.field]:
        """What the options tell, as rows; warnings about results point to the card."""
        for option, label in NUMBERS:
            if name := self.options.get(option):
                text = name if ":" in name else f"{name}:,d"
                value = result_reference(self.env, text, card)
                number = nodes.paragraph("", "", value, classes=["paper-number"])
                yield self.fact(label, number)
        for option, label in TOLD:
            if option in self.options:
                yield self.fact(label, self.parsed(option, nodes.paragraph))

    def fact(self, label: str, body: nodes.paragraph) -> nodes.field:
        name = nodes.field_name(label, label)
        self.set_source_info(name)
        return nodes.field("", name, nodes.field_body("", body))

    def parsed(self, option: str, kind: type[nodes.paragraph]) -> nodes.paragraph:
        children, messages = self.parse_inline(self.options[option])
        self.messages += messages
        block = kind(self.options[option], "", *children)
        self.set_source_info(block)
        return block


class PaperCard(Card):
    option_spec = Card.option_spec | dict.fromkeys(
        ("parameters", "macs", "first", "after"), directives.unchanged_required
    )

    def run(self) -> list[nodes.Node]:
        after = self.chapters(self.options["after"]) if "after" in self.options else []
        card = self.frame("paper", after, self.arguments[0])
        entry = self.entry()
        if entry is None:
            return []
        first = self.first(entry)
        card["first"] = entries.written(first)
        title = entries.decode(entry.fields["title"])
        link = nodes.reference("", title, refuri=entry.fields["url"], internal=False)
        when = nodes.inline("", str(first[0]), classes=["paper-year"])
        where = self.venue(entry, first[0])
        card += nodes.paragraph("", "", when, nodes.Text(where), classes=["paper-venue"])
        card += nodes.paragraph("", "", link, classes=["paper-title"])
        card += nodes.paragraph(
            "", entries.byline(entry.persons["author"]), classes=["paper-authors"]
        )
        if after:
            card += self.links("Builds on", after)
        return self.finish(card)

    def entry(self) -> Entry | None:
        """The entry named by the argument, or None after a warning."""
        key, file = self.arguments[0], Path(self.env.srcdir, self.config.paper_bibfile)
        self.env.note_dependency(file)
        try:
            entry = entries.bibliography(file, file.stat().st_mtime_ns).entries.get(key)
        except (OSError, PybtexError) as error:
            raise self.error(f"paper: {error}") from error
        if problem := entries.fault(entry):
            text = "paper: entry %r of %s %s"
            LOG.warning(text, key, file.name, problem, location=self.get_location(), type="paper")
            return None
        return entry

    def first(self, entry: Entry) -> entries.Date:
        """When the first version was public: what the option says, else what the entry tells."""
        known = entries.published(entry)
        if "first" not in self.options:
            return known
        try:
            first = entries.month(self.options["first"])
        except ValueError as error:
            raise self.error(f"paper: :first: {error}") from error
        if first > (known[0], known[1] or 12):
            told = f"{entries.written(first)} is later than the entry's {entries.written(known)}"
            raise self.error(f"paper: :first: {told}")
        return first

    def venue(self, entry: Entry, year: int) -> str:
        """Where the paper appeared, with the year if it was another."""
        parts = [
            entries.venue(entry),
            entry.fields["year"] if entry.fields["year"] != str(year) else None,
        ]
        text = ", ".join(part for part in parts if part)
        return f" · {text}" if text else ""


class OverviewCard(Card):
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        after = self.chapters(self.arguments[0])
        card = self.frame("overview", after)
        card += nodes.paragraph("", "Overview", classes=["paper-venue"])
        card += self.links("Draws together", after)
        return self.finish(card)


class ResourceCard(Card):
    """A data set, a hub or a tool: its name and address, who made it, since when."""

    final_argument_whitespace = True
    option_spec = Card.option_spec | dict.fromkeys(
        ("kind", "first", "by", "holds", "licence"), directives.unchanged_required
    )

    def run(self) -> list[nodes.Node]:
        named = re.fullmatch(r"(.+?)\s*<(https?://\S+)>", self.arguments[0])
        if named is None:
            raise self.error("resource: the argument is a name with its address: Name <https://…>")
        if "kind" not in self.options:
            raise self.error("resource: the option :kind: is missing: data set, hub, tool")
        kind = self.options["kind"]
        card = self.frame(kind, [])
        line = nodes.paragraph("", kind[0].upper() + kind[1:], classes=["paper-venue"])
        if first := self.options.get("first"):
            if not re.fullmatch(r"\d{4}", first):
                raise self.error(f"resource: :first: {first!r} is no year such as 1998")
            line += nodes.Text(f" · {first}")
        link = nodes.reference("", named[1], refuri=named[2], internal=False)
        card += [line, nodes.paragraph("", "", link, classes=["paper-title"])]
        if "by" in self.options:
            by = self.parsed("by", nodes.paragraph)
            by["classes"].append("paper-authors")
            card += by
        return self.finish(card)


def setup(app: Sphinx) -> dict:
    app.setup_extension("cards")
    app.add_config_value("paper_bibfile", "references.bib", "env", str)
    app.add_directive("paper", PaperCard)
    app.add_directive("overview", OverviewCard)
    app.add_directive("resource", ResourceCard)
    return {
        "version": "2",
        "env_version": 4,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
