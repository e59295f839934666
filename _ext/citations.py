"""What the bibliography and the pages that cite from it tell of each other.

An entry of the bibliography names the chapter about the paper, if there is one, and the pages that cite
it. On the web site a citation holds the reference in words, as its ``aria-description``; the style sheet
shows it when one points at the citation or comes to it by keyboard. In conf.py::

    bibtex_cite_id = "{key}"  # an address that stays: bibliography.html#he2016deep
"""

from docutils import nodes
from pybtex.plugin import find_plugin
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode
from sphinxcontrib.bibtex.domain import get_docnames

import summaries
from cards import cards
from formats import WEB_SITE


class citation_link(nodes.reference):
    """A link from the text to the bibliography, with the reference in words."""


def chapters(env: BuildEnvironment) -> dict[str, str]:
    """{key of a paper: the chapter about it}"""
    return {card.key: docname for docname, card in sorted(cards(env).items()) if card.key}


def citing(env: BuildEnvironment) -> dict[str, dict[str, str]]:
    """{key of a paper: {page that cites it, in the order of the book: id of the first place}}"""
    order = {docname: place for place, docname in enumerate(get_docnames(env))}
    found = {}
    for cited in sorted(env.get_domain("cite").citation_refs, key=lambda r: order[r.docname]):
        for target in cited.targets:
            pages = found.setdefault(target.key, {})
            pages.setdefault(cited.docname, cited.citation_ref_id)
    return found


class BackLinks(SphinxPostTransform):
    default_priority = 6  # sphinxcontrib.bibtex has put the entries there, at 5
    formats = ("html",)

    def run(self, **kwargs) -> None:
        entries = list(self.document.findall(nodes.citation))
        if not entries:
            return
        about, cited = chapters(self.env), citing(self.env)
        key_of = {c.citation_id: c.key for c in self.env.get_domain("cite").citations}
        for entry in entries:
            key = key_of.get(entry["ids"][0])
            self.add_line(entry, "Chapter: ", {about[key]: ""} if key in about else {})
            self.add_line(entry, "Cited in ", cited.get(key, {}))

    def add_line(self, entry: nodes.citation, words: str, places: dict[str, str]) -> None:
        """Add the links to {page: id} to an entry, if there are any."""
        line = nodes.paragraph("", words, classes=["cited-in"])
        for docname, node_id in places.items():
            here = self.env.current_document.docname
            title = nodes.Text(self.env.titles[docname].astext())
            line += make_refnode(self.app.builder, here, docname, node_id, title)
            line += nodes.Text(", ")
        if places:
            line[-1] = nodes.Text(".")
            entry += line


class Describe(SphinxPostTransform):
    default_priority = 11  # citations are links, since 10

    def run(self, **kwargs) -> None:
        if self.app.builder.name not in WEB_SITE:
            return
        for citation in list(self.document.findall(nodes.inline)):
            if "bibtex-citation" in citation["classes"]:
                for link in list(citation.findall(nodes.reference)):
                    described = citation_link("", "", *link.children, **link.attributes)
                    described["reftitle"] = link["reftitle"].partition(" URL: ")[0]
                    link.replace_self(described)


def visit_citation_link(self, node: citation_link) -> None:
    """As a link is written; but browsers show a title to the mouse only, a description is for all."""
    self.visit_reference(node)
    self.body[-1] = self.body[-1].replace(' title="', ' aria-description="', 1)


def depart_citation_link(self, node: citation_link) -> None:
    self.depart_reference(node)


def shown(env: BuildEnvironment) -> dict[str, object]:
    """What each page shows of others: labels and references, or who cites its entries."""
    domain, plain = env.get_domain("cite"), find_plugin("pybtex.backends", "plaintext")()
    words = {
        c.key: (c.citation_id, c.formatted_entry.label, c.formatted_entry.text.render(plain))
        for c in domain.citations
    }
    cited = citing(env)
    found = {}
    for key, pages in sorted(cited.items()):
        for docname in pages:
            found.setdefault(docname, []).append(words.get(key))
    titles = sorted((docname, title.astext()) for docname, title in env.titles.items())
    for bibliography in domain.bibliographies:
        found[bibliography.docname] = (titles, chapters(env), sorted(cited.items()), words)
    return found


def setup(app: Sphinx) -> dict:
    app.setup_extension("cards")
    app.setup_extension("citation_style")
    app.add_post_transform(BackLinks)
    app.add_post_transform(Describe)
    app.add_node(citation_link, html=(visit_citation_link, depart_citation_link))
    summaries.follow_each(app, "citations", shown)
    return {
        "version": "1",
        "env_version": 2,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
