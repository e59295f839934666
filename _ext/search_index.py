"""Search: an index of the written pages, made by Pagefind beside them in ``pagefind/``.

Each page that is written leaves a copy of what is searched of it (see ``search_text``) beside the
doctrees. Once all are written and the copies are not those that the index was made from, it is made
anew. A page with ``:nosearch:``, as a notebook has whose cells its chapter shows, is not in it. What
has no file for each page has no index either.

Where a word stands on several pages, one with the card of a paper comes before one without, and
``search_weights`` says how much less the others count; ``search_sections`` says it of sections::

    search_weights = {"bibliography": 0.05}
    search_sections = {"architecture": 2}
"""

import shutil
import subprocess
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from pagefind.service import get_executable
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError

import search_text

BUILDERS = ("html", "dirhtml")  # they write a file for each page
FOLDER = "pagefind"
UNUSED = ("pagefind-*ui.*", "pagefind-highlight.js")  # book.css and search.js are ours
OVERVIEW = 0.5  # weight of a page without a card


def copies(app: Sphinx) -> Path:
    return Path(app.doctreedir, "searched", app.builder.name)


def place(app: Sphinx, docname: str) -> Path:
    """Where a page is in the site, which is its address."""
    return Path(app.builder.get_outfilename(docname)).relative_to(app.outdir)


def copy_of(app: Sphinx, docname: str) -> Path:
    """Where its copy is; not named as a page, since it lies in the site's folder."""
    return copies(app) / f"{place(app, docname)}.copy"


def searched(env: BuildEnvironment) -> list[str]:
    return [doc for doc in env.found_docs if "nosearch" not in env.metadata[doc]]


def weight(app: Sphinx, docname: str) -> float:
    cards = app.env.get_domain("cards").pages if "cards" in app.extensions else {}
    paper = docname in cards and cards[docname].first
    return app.config.search_weights.get(docname, 1 if paper else OVERVIEW)


def keep(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """A page is being written, perhaps by another process."""
    found = doctree is not None and "nosearch" not in app.env.metadata[pagename]
    if app.builder.name in BUILDERS and found:
        config = app.config
        text = search_text.copy(
            context["body"], config.language, weight(app, pagename), config.search_sections
        )
        path = copy_of(app, pagename)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def without_copy(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Pages to be written again."""
    if app.builder.name not in BUILDERS:
        return []
    return [docname for docname in searched(env) if not copy_of(app, docname).is_file()]


def make(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.name not in BUILDERS:
        return
    found = {place(app, docname): copy_of(app, docname) for docname in searched(app.env)}
    for path in set(copies(app).rglob("*.copy")).difference(found.values()):
        path.unlink()
    digest = sha256(version("pagefind").encode())
    for page in sorted(found):
        digest.update(f"\n{page}\n".encode() + found[page].read_bytes())
    index = Path(app.outdir, FOLDER)
    made_from = index / "digest"
    if made_from.is_file() and made_from.read_text(encoding="ascii") == digest.hexdigest():
        return
    with TemporaryDirectory(dir=app.doctreedir) as folder:
        pages, new = Path(folder, "pages"), Path(folder, FOLDER)
        for page, path in found.items():
            (pages / page).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, pages / page)
        run(pages, new)
        (new / made_from.name).write_text(digest.hexdigest(), encoding="ascii")
        shutil.rmtree(index, ignore_errors=True)
        shutil.move(new, index)


def run(pages: Path, index: Path) -> None:
    try:
        program = get_executable()
        if program is None:
            raise FileNotFoundError("it is not installed")
        command = [program, "--silent", "--site", pages, "--output-path", index]
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        text = "search: Pagefind cannot be run: %s. pip install 'pagefind[extended]' brings it"
        raise ExtensionError(text % error) from error
    if result.returncode:
        said = (result.stdout + result.stderr).strip()[-2000:]
        raise ExtensionError(f"search: Pagefind failed with status {result.returncode}:\n{said}")
    for pattern in UNUSED:
        for file in index.glob(pattern):
            file.unlink()


def setup(app: Sphinx) -> dict:
    app.add_config_value("search_weights", {}, "html", dict)
    app.add_config_value("search_sections", {}, "html", dict)
    app.connect("env-updated", without_copy)
    app.connect("html-page-context", keep, priority=900)
    app.connect("build-finished", make)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
