"""Remove from the built site what an earlier build wrote and this one would not.

Sphinx leaves the page of a deleted chapter where it is, and what this book writes beside its pages
stays too. Here a build lists the files that belong to its pages in ``.written.json`` of the output
folder, which outlives the doctrees; a file that was on the list and is no longer goes. What no build
has put on the list is never touched.
"""

import json
from contextlib import suppress
from itertools import chain
from pathlib import Path

from sphinx.application import Sphinx

BUILDERS = ("html", "dirhtml")  # they write a file for each page
LIST = ".written.json"


def files_of_pages(app: Sphinx) -> list[Path]:
    """What Sphinx writes for each page."""
    names = [*app.env.found_docs, *app.config.html_additional_pages]
    pages = [Path(app.builder.get_outfilename(name)) for name in names]
    if app.config.html_copy_source:
        pages += [source_copy(app, docname) for docname in app.env.found_docs]
    return pages


def source_copy(app: Sphinx, docname: str) -> Path:
    """Where Sphinx puts a copy of a page's source."""
    suffix = Path(app.env.doc2path(docname)).suffix
    end = app.config.html_sourcelink_suffix
    name = docname + suffix + (end if suffix != end else "")
    return Path(app.outdir, "_sources", name)


def remove(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.name not in BUILDERS:
        return
    kept = Path(app.outdir, LIST)
    try:
        before = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    paths = [*files_of_pages(app), *chain(*app.emit("files-beside-pages"))]
    now = {path.relative_to(app.outdir).as_posix() for path in paths}
    lists = {**before, app.builder.name: sorted(now)}
    for name in set(before.get(app.builder.name, [])).difference(*lists.values()):
        file = Path(app.outdir, name)
        if file.resolve().is_relative_to(Path(app.outdir).resolve()):
            file.unlink(missing_ok=True)
            with suppress(OSError):  # a folder that is not empty stays
                for folder in file.relative_to(app.outdir).parents[:-1]:
                    Path(app.outdir, folder).rmdir()
    kept.write_text(json.dumps(lists, indent=1) + "\n", encoding="utf-8")


def setup(app: Sphinx) -> dict:
    app.add_event("files-beside-pages")  # handlers give the paths of what else belongs to the site
    app.connect("build-finished", remove, priority=900)  # after what the others write then
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
