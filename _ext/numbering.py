"""Figures, tables and equations are numbered within their chapter, from 1.

Markup is Sphinx's: ``:numref:`fig-stages``` and ``:eq:`eq-block```. A reference from another page
names the chapter, too: "Fig. 3 of ResNet". LaTeX counts for itself, by its chapters.

A chapter that shows a numbered figure or table and refers to it nowhere gets a warning at its line.
"""

from collections.abc import Iterator

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

import summaries
from per_page import PerPage

LOG = logging.getLogger(__name__)
BEFORE_SPHINX, AFTER_SPHINX = 400, 600  # priorities around the numbering that Sphinx does, at 500


def references(document: nodes.document) -> Iterator[addnodes.pending_xref]:
    """The references by number to figures, tables and equations."""
    for node in document.findall(addnodes.pending_xref):
        if (node["refdomain"], node["reftype"]) in {("std", "numref"), ("math", "eq")}:
            yield node


class Numbering(PerPage):
    """What each page refers to by number: pairs of the kind, "numref" or "eq", and the label.

    ``running`` keeps Sphinx's numbers, which run through the book.
    """

    name, label = "numbering", "Numbers"
    initial_data = {"pages": {}, "running": {}}

    def process_doc(self, env: BuildEnvironment, docname: str, document: nodes.document) -> None:
        found = {(node["reftype"], node["reftarget"]) for node in references(document)}
        self.pages[docname] = found
        if docname.startswith("chapters/"):
            warn_of_unused(env, document, {label for kind, label in found if kind == "numref"})


def warn_of_unused(env: BuildEnvironment, document: nodes.document, used: set[str]) -> None:
    """Warn of what has a number and a caption and is not referred to on its page."""
    standard = env.domains.standard_domain
    for node in document.findall(nodes.Element):
        kind = standard.get_enumerable_node_type(node)
        title = standard.get_numfig_title(node) if kind not in (None, "section") else None
        if title and not used.intersection(node["names"]):
            name = node["names"][0] if node["names"] else None
            how = f"write :numref:`{name}`" if name else "give it a :name: and refer to it"
            text = "numbering: the text does not refer to the %s %r: %s"
            # a table itself has no line, its title has
            where = next((part for part in node.findall() if part.line), node)
            LOG.warning(text, kind, title[:40], how, location=where, type="numbering")


def restore(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Give Sphinx its own numbers of the last build back, which it compares with its new ones."""
    env.toc_fignumbers = env.get_domain("numbering").data["running"]
    return []


def number(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Count anew in each page."""
    env.get_domain("numbering").data["running"] = env.toc_fignumbers
    env.toc_fignumbers = {
        docname: {
            kind: {node_id: (n,) for n, node_id in enumerate(numbers, 1)}
            for kind, numbers in kinds.items()
        }
        for docname, kinds in env.toc_fignumbers.items()
    }
    return []


def shown(env: BuildEnvironment) -> dict[str, list[tuple]]:
    """What the references of each page say."""
    pages = env.get_domain("numbering").pages
    return {doc: sorted(place(env, *named) for named in found) for doc, found in pages.items()}


def place(env: BuildEnvironment, kind: str, label: str) -> tuple[str, int, str]:
    """Page, number and the page's title of what a reference leads to; empty if nothing is there."""
    if kind == "eq":
        docname, count = env.domains.math_domain.equations.get(label, ("", 0))
    else:
        docname, node_id = env.domains.standard_domain.anonlabels.get(label, ("", ""))
        counts = env.toc_fignumbers.get(docname, {}).values()
        count = next((own[node_id][0] for own in counts if node_id in own), 0)
    return docname, count, env.titles[docname].astext() if docname in env.titles else ""


class NameChapter(SphinxPostTransform):
    default_priority = 4  # before references are resolved: at 5 for LaTeX, else at 10

    def run(self, **kwargs) -> None:
        for node in list(references(self.document)):
            docname, _, title = place(self.env, node["reftype"], node["reftarget"])
            if docname and docname != node["refdoc"] and not node["refexplicit"]:
                node.parent.insert(node.parent.index(node) + 1, nodes.Text(f" of {title}"))


def setup(app: Sphinx) -> dict:
    app.add_domain(Numbering)
    app.add_post_transform(NameChapter)
    app.connect("env-get-updated", restore, priority=BEFORE_SPHINX)
    app.connect("env-get-updated", number, priority=AFTER_SPHINX)
    summaries.follow_each(app, "numbering", shown, priority=AFTER_SPHINX + 1)
    return {
        "version": "1",
        "env_version": 1,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
