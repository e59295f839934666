"""The time line of the book: all paper cards in the order of their years.

::

    .. timeline::

Each line has the paper's year, a link to the chapter and the idea that its card names.
"""

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import summaries

LOG = logging.getLogger(__name__)


class timeline_placeholder(nodes.General, nodes.Element):
    """Stands for the time line until all chapters are read."""


class Timeline(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        place = timeline_placeholder()
        self.set_source_info(place)
        summaries.note(self.env, "timeline")
        return [place]


def in_order(env: BuildEnvironment) -> list[tuple[int, str, str, nodes.paragraph]]:
    """Year, title of the paper, docname and idea of all cards."""
    pages = env.get_domain("papers").pages
    cards = [(year, title, doc, idea) for doc, own in pages.items() for year, title, idea in own]
    return sorted(cards, key=lambda card: card[:3])


class Resolve(SphinxPostTransform):
    default_priority = 2  # before results, at 3, and cross-references, at 10

    def run(self, **kwargs) -> None:
        for place in list(self.document.findall(timeline_placeholder)):
            items = [self.item(*card) for card in in_order(self.env)]
            if not items:
                LOG.warning("timeline: no page has a paper card", location=place, type="timeline")
            content = [nodes.definition_list("", *items)] if items else []
            place.replace_self(nodes.container("", *content, classes=["timeline"]))

    def item(self, year: int, title: str, docname: str, idea: nodes.paragraph) -> nodes.Element:
        chapter = addnodes.pending_xref(
            "",
            nodes.inline("", self.env.titles[docname].astext()),
            refdomain="std",
            reftype="doc",
            reftarget=f"/{docname}",
            refexplicit=True,
            refdoc=self.env.current_document.docname,
        )
        when = nodes.inline("", str(year), classes=["timeline-year"])
        term = nodes.term("", "", when, nodes.Text(" "), chapter)
        clause = nodes.paragraph("", "", *idea.deepcopy().children)
        return nodes.definition_list_item("", term, nodes.definition("", clause))


def shown(env: BuildEnvironment) -> list[tuple]:
    """All of which the time line consists; a card may change, appear or go."""
    return [
        (year, title, doc, env.titles[doc].astext(), str(idea))
        for year, title, doc, idea in in_order(env)
    ]


def setup(app: Sphinx) -> dict:
    app.setup_extension("paper")
    app.add_node(timeline_placeholder)
    app.add_directive("timeline", Timeline)
    app.add_post_transform(Resolve)
    summaries.follow(app, "timeline", shown)
    return {
        "version": "1",
        "env_version": 2,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
