"""Where a page stands in the book: side bar, the line above the title, previous and next, titles.

The parts are the captioned tables of contents of the first page, their chapters what these list. The
templates ``sbt-sidebar-nav.html`` and ``place.html`` show them. A notebook, which no table lists,
stands below its chapter: it is called "ResNet: notebook", and leads to the notebooks before and after.
"""

from html import escape
from typing import NamedTuple

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform

import summaries
from formats import WEB_SITE


class Entry(NamedTuple):
    """A page of a part; `notebook` is the page of its notebook, if it has one."""

    docname: str
    title: str
    notebook: str | None


def is_chapter(docname: str) -> bool:
    return docname.startswith("chapters/")


def is_notebook(docname: str) -> bool:
    return docname.startswith("notebooks/")


def parts(env: BuildEnvironment) -> list[tuple[str, list[Entry]]]:
    """(caption, pages) of each table of contents of the first page."""
    tables = env.tocs[env.config.root_doc].findall(addnodes.toctree)
    found = []
    for table in tables:
        pages = [entry(env, *each) for each in table["entries"] if each[1] in env.all_docs]
        if pages:
            found.append((table.get("caption") or "", pages))
    return found


def entry(env: BuildEnvironment, title: str | None, docname: str) -> Entry:
    notebook = "notebooks/" + docname.rpartition("/")[2]
    has_notebook = is_chapter(docname) and notebook in env.all_docs
    title = title or env.titles[docname].astext()
    return Entry(docname, title, notebook if has_notebook else None)


def fill(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Give the templates the parts, the place of this page, and a notebook its neighbours."""
    if app.builder.name not in WEB_SITE:
        return
    book = parts(app.env)
    context["parts"] = [
        {"caption": caption, "pages": pages, "open": any(pagename in page for page in pages)}
        for caption, pages in book
    ]
    if book and not any(part["open"] for part in context["parts"]):
        context["parts"][0]["open"] = True
    for caption, pages in book:
        chapters = [page for page in pages if is_chapter(page.docname)]
        for number, chapter in enumerate(chapters, 1):
            if pagename in chapter:
                place = {"part": caption, "number": number, "count": len(chapters)}
                context["place"] = place | {"chapter": chapter}
    if is_notebook(pagename):
        chapters = [page for _, pages in book for page in pages if page.notebook]
        context["prev"], context["next"] = neighbours(app, pagename, chapters)


def neighbours(app: Sphinx, pagename: str, chapters: list[Entry]) -> list[dict[str, str] | None]:
    """The notebooks before and after a notebook, as the theme shows them."""
    at = next((i for i, page in enumerate(chapters) if page.notebook == pagename), None)
    if at is None:
        return [None, None]
    around = [chapters[i] if 0 <= i < len(chapters) else None for i in (at - 1, at + 1)]
    return [
        page
        and {
            "link": app.builder.get_relative_uri(pagename, page.notebook),
            "title": escape(app.env.titles[page.notebook].astext()),
        }
        for page in around
    ]


class NameNotebook(SphinxTransform):
    """Tell a notebook from its chapter by its title."""

    default_priority = 400

    def apply(self, **kwargs) -> None:
        title = next(self.document.findall(nodes.title), None)
        if title and is_notebook(self.env.current_document.docname):
            title += nodes.Text(": notebook")


def setup(app: Sphinx) -> dict:
    app.add_transform(NameNotebook)
    app.connect("html-page-context", fill)
    summaries.follow_each(app, "navigation", lambda env: dict.fromkeys(env.all_docs, parts(env)))
    return {
        "version": "1",
        "env_version": 1,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
