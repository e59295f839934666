"""Links to the whole book as one file, at the foot of each page.

``make pdf`` and ``make epub`` put ``book.pdf`` and ``book.epub`` beside the pages of the site. What lies
there when the site is built next is linked, with its size, by ``_templates/book-files.html``; where
nothing lies no page promises it.
"""

from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

from formats import WEB_SITE

FILES = {"book.pdf": "PDF", "book.epub": "EPUB"}


def look(app: Sphinx, config: Config) -> None:
    """Note what is there; when that has changed all pages are written again."""
    files = {name: Path(app.outdir, name) for name in FILES}
    config.book_files = [
        [name, FILES[name], f"{file.stat().st_size / 1e6:.1f} MB"]
        for name, file in files.items()
        if file.is_file()
    ]


def fill(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    if app.builder.name in WEB_SITE:
        context["book_files"] = [
            {"href": context["pathto"](name, 1), "kind": kind, "size": size}
            for name, kind, size in app.config.book_files
        ]


def setup(app: Sphinx) -> dict:
    app.add_config_value("book_files", [], "html", list)
    app.connect("config-inited", look)
    app.connect("html-page-context", fill)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
