"""What a build warned of stays an error until it is mended.

Sphinx warns while it reads or writes a page. The next build neither reads nor writes a page that has
not changed, so its fault would still be there and the build would succeed. Here the pages that
warnings name are kept, for each builder, in ``warned.json`` beside the doctrees, and read again by
the next build. A warning that names no page is not about one, and comes again by itself.
"""

import json
import logging
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.logging import NAMESPACE, get_node_location, is_suppressed_warning

LINE = re.compile(r":\d*$")


class Noted(logging.Handler):
    """Notes the pages that warnings name; those of parallel reading arrive here, too."""

    def __init__(self, app: Sphinx):
        super().__init__(logging.WARNING)
        self.app = app
        self.pages: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        kind, part = getattr(record, "type", ""), getattr(record, "subtype", "")
        if not is_suppressed_warning(kind, part, self.app.config.suppress_warnings):
            self.pages |= pages_at(self.app.env, getattr(record, "location", None))

    def start(self, app: Sphinx) -> None:
        logging.getLogger(NAMESPACE).addHandler(self)

    def keep_early(self, app: Sphinx, env: BuildEnvironment) -> None:
        """The environment is about to be saved: what reading found outlives a build that breaks."""
        keep(app, self.pages.union(kept(app).get(app.builder.name, [])))

    def finish(self, app: Sphinx, exception: Exception | None) -> None:
        logging.getLogger(NAMESPACE).removeHandler(self)
        if exception is None:
            keep(app, self.pages)


def pages_at(env: BuildEnvironment, location: str | tuple | nodes.Node | None) -> set[str]:
    """The pages that hold the place of a warning, in any of the forms that Sphinx accepts."""
    if isinstance(location, nodes.Node):
        location = get_node_location(location)
    if isinstance(location, tuple):
        location = location[0]
    if not location:
        return set()
    if location in env.found_docs:
        return {location}
    file = Path(env.srcdir, LINE.sub("", location))
    if (docname := env.path2doc(file)) in env.found_docs:
        return {docname}
    # a file that is part of a page, such as one that is included
    return {
        docname
        for docname, files in env.dependencies.items()
        if any(Path(env.srcdir, name) == file for name in files)
    }


def kept(app: Sphinx) -> dict[str, list[str]]:
    """{builder: pages with a warning in its last build}; nothing if the file cannot be read."""
    try:
        return json.loads(Path(app.doctreedir, "warned.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def keep(app: Sphinx, pages: set[str]) -> None:
    text = json.dumps({**kept(app), app.builder.name: sorted(pages)}, indent=1)
    Path(app.doctreedir, "warned.json").write_text(text + "\n", encoding="utf-8")


def read_again(app: Sphinx, env: BuildEnvironment, added: set, changed: set, removed: set) -> set:
    pages = {page for pages in kept(app).values() for page in pages}
    again = (pages & env.found_docs) - added
    changed |= again  # for the handlers after this one: chapters that embed these notebooks
    return again


def setup(app: Sphinx) -> dict:
    noted = Noted(app)
    app.connect("builder-inited", noted.start, priority=0)
    app.connect("env-get-outdated", read_again, priority=90)
    app.connect("env-updated", noted.keep_early, priority=900)
    app.connect("build-finished", noted.finish, priority=1000)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
