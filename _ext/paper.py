"""The card of a chapter's paper.

::

    .. paper:: he2016
       :parameters: resnet50.parameters
       :macs: resnet50.macs
       :checked: ``torchvision``, equal outputs
       :idea: learn what to add to the input

The key names an entry of the file ``paper_bibfile``. ``:parameters:`` and ``:macs:`` take what the
role ``result`` takes; a name without a format is written with thousands separators. ``:idea:`` is
the clause for the time line (see ``timeline``), not shown in the card.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from pybtex.database import BibliographyData, Entry, Person, parse_file
from pybtex.exceptions import PybtexError
from pybtex.richtext import Text
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from embed import result_reference
from per_page import PerPage

LOG = logging.getLogger(__name__)
MOST_AUTHORS = 6


class paper_idea(nodes.paragraph):
    """The clause for the time line; part of the chapter so that it is translated with it."""


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


class PaperCard(SphinxDirective):
    required_arguments = 1
    option_spec = dict.fromkeys(
        ("parameters", "macs", "checked", "idea"), directives.unchanged_required
    )

    def run(self) -> list[nodes.Node]:
        if "idea" not in self.options:
            raise self.error("paper: the option :idea: is missing")
        entry = self.entry()
        if entry is None:
            return []
        self.messages = []
        title, year = decode(entry.fields["title"]), entry.fields["year"]
        key = self.arguments[0]
        card = nodes.container(classes=["paper-card"], key=key, title=title, year=year)
        self.set_source_info(card)
        link = nodes.reference("", title, refuri=entry.fields["url"], internal=False)
        venue = entry.fields.get("journal") or entry.fields.get("booktitle")
        when = nodes.inline("", year, classes=["paper-year"])
        where = [nodes.Text(f" · {decode(venue)}")] if venue else []
        card += nodes.paragraph("", "", when, *where, classes=["paper-venue"])
        card += nodes.paragraph("", "", link, classes=["paper-title"])
        card += nodes.paragraph("", byline(entry.persons["author"]), classes=["paper-authors"])
        if facts := [*self.facts(card)]:
            card += nodes.field_list("", *facts)
        card += self.parsed("idea", paper_idea)
        if any(card[-1].findall(addnodes.pending_xref)):
            raise self.error("paper: :idea: takes no cross-reference, it is shown on another page")
        if "launch" in self.config.extensions:
            from launch import buttons_node

            card += buttons_node(self.env.current_document.docname)
        return [card, *self.messages]

    def entry(self) -> Entry | None:
        """The entry named by the argument, or None after a warning."""
        key, file = self.arguments[0], Path(self.env.srcdir, self.config.paper_bibfile)
        self.env.note_dependency(file)
        try:
            entry = bibliography(file, file.stat().st_mtime_ns).entries.get(key)
        except (OSError, PybtexError) as error:
            raise self.error(f"paper: {error}") from error
        if entry is None:
            problem = "is not there"
        elif "author" not in entry.persons or not {"title", "year", "url"} <= {*entry.fields}:
            problem = "needs author, title, year and url"
        elif not entry.fields["year"].isdecimal():
            problem = "needs a year in digits"
        else:
            return entry
        text = "paper: entry %r of %s %s"
        LOG.warning(text, key, file.name, problem, location=self.get_location(), type="paper")
        return None

    def facts(self, card: nodes.container) -> Iterator[nodes.field]:
        """What the options tell, as rows; warnings about results point to the card."""
        for option, label in (("parameters", "Parameters"), ("macs", "MACs")):
            if name := self.options.get(option):
                text = name if ":" in name else f"{name}:,d"
                value = result_reference(self.env, text, card)
                number = nodes.paragraph("", "", value, classes=["paper-number"])
                yield self.fact(label, number)
        if "checked" in self.options:
            yield self.fact("Proven against", self.parsed("checked", nodes.paragraph))

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


class Papers(PerPage):
    """(year, title of the paper, idea) of each card of a page."""

    name, label = "papers", "Paper cards"

    def process_doc(self, env: BuildEnvironment, docname: str, document: nodes.document) -> None:
        for idea in document.findall(paper_idea):
            card = (int(idea.parent["year"]), idea.parent["title"], idea.deepcopy())
            self.pages.setdefault(docname, []).append(card)


class Ideas(SphinxPostTransform):
    default_priority = 2

    def run(self, **kwargs) -> None:
        if self.env._builder_cls.name == "gettext":  # it extracts them
            return
        for idea in list(self.document.findall(paper_idea)):
            idea.parent.remove(idea)


def setup(app: Sphinx) -> dict:
    app.setup_extension("embed")
    app.add_config_value("paper_bibfile", "references.bib", "env", str)
    app.add_node(paper_idea)
    app.add_directive("paper", PaperCard)
    app.add_post_transform(Ideas)
    app.add_domain(Papers)
    return {
        "version": "1",
        "env_version": 2,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
