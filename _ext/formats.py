"""What differs between the formats in which the book can be written, asked when a page is written.

Pages are read once for all formats, so nothing of this may be asked before. ``sphinx-build -b``
names the builder; what has a browser, the theme's style sheets and other files beside it is a web
site, and an electronic book, which Sphinx's builder also calls HTML, is not.
"""

from docutils import nodes
from sphinx import addnodes
from sphinx.builders import Builder
from sphinx.environment import BuildEnvironment

WEB_SITE = ("html", "dirhtml", "singlehtml")  # names of builders
WHOLE = ("singlehtml", "epub")  # one page, one book: only what a table of contents names


def can_link(env: BuildEnvironment, builder: Builder | type[Builder], docname: str) -> bool:
    """Whether a page is written to which a link can lead: what is one whole holds no orphans."""
    if builder.name not in WHOLE:
        return docname in env.all_docs
    held, waiting = set(), [env.config.root_doc]
    while waiting:
        page = waiting.pop()
        if page not in held:
            held.add(page)
            waiting += env.toctree_includes.get(page, [])
    return docname in held


def link(env: BuildEnvironment, docname: str, text: str = "") -> addnodes.pending_xref:
    """A link to a page with its title, or another text; resolved when the page is written."""
    return addnodes.pending_xref(
        "",
        nodes.inline("", text or env.titles[docname].astext()),
        refdomain="std",
        reftype="doc",
        reftarget=f"/{docname}",
        refexplicit=True,
        refdoc=env.current_document.docname,
    )
