"""Build sites for the tests of the extensions: small ones, and the book as `make html` does."""

import io
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from bs4 import BeautifulSoup
from sphinx.cmd.build import build_main
from sphinx.config import Config
from sphinx.locale import translators

from engine.surroundings import ALWAYS, Memo, accelerators, versions
from loader import ROOT

CONF = f"""
import sys
sys.path.insert(0, {str(ROOT / "_ext")!r})
extensions = ["warned", "execution", "myst_nb", "embed", "launch"]
include_patterns = ["index.rst", "chapters/*.rst", "notebooks/*.py"]
exclude_patterns = ["notebooks/workbench.py"]
nb_custom_formats = {{".py": "execution.read"}}
nb_execution_mode = "off"
nb_output_stderr = "remove-warn"
html_theme = "sphinx_book_theme"
numfig = True
"""
HEADER = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

"""


def write_site(folder: Path, files: dict[str, str], conf: str = CONF) -> Path:
    """Write files (a notebook without a header gets one) and conf.py; return the folder."""
    for name, text in {"conf.py": conf, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_notebook = name.startswith("notebooks/") and text.startswith("# %%")
        path.write_text((HEADER if is_notebook else "") + text, encoding="utf-8")
    return folder


def sphinx(folder: Path, *options: str, out: str = "html") -> list[str]:
    """The command that builds a site into ``folder/_build/<out>``."""
    where = [str(folder), str(folder / "_build" / out)]
    return [sys.executable, "-m", "sphinx", *options, *where]


BOOK = ("-m", "sphinx", "-n", "-W", "--keep-going", "-b", "html", ".", "_build/html")
CHECKED = ("-n", "-W", "--keep-going", "--no-color")
PLAIN = {"WARM": "0"}  # kernels are not forked from a server
HIDDEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


def build(
    folder: Path, *options: str, out: str = "html", **environment: str
) -> subprocess.CompletedProcess:
    """Build a site in this process, with the exit status and the texts of a process of its own.

    Sphinx and its extensions are imported once for all builds. Kernels are plain ones: the server of
    warm kernels imports torch first, which no small site needs. A parallel build forks, which this
    process with its threads must not do: it gets one of its own.
    """
    if dict(zip(options, options[1:])).get("-j", "1") != "1":
        return build_apart(folder, *options, out=out, **PLAIN, **environment)
    remember(folder)
    words = [*CHECKED, *options, str(folder)]
    with as_a_process({**PLAIN, **environment}) as (status, warning):
        try:
            code = build_main([*words, str(folder / "_build" / out)])
        except SystemExit as stop:
            code = stop.code
            if isinstance(code, str):  # Python prints it and ends with 1
                print(code, file=sys.stderr)
                code = 1
    return subprocess.CompletedProcess(words, code, status.getvalue(), warning.getvalue())


def build_apart(
    folder: Path, *options: str, out: str = "html", **environment: str
) -> subprocess.CompletedProcess:
    """Run sphinx-build as the Makefile does, output in ``folder/_build/<out>``."""
    return subprocess.run(
        sphinx(folder, *CHECKED, *options, out=out),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "_ext"), **environment},
        timeout=300,
    )


@contextmanager
def as_a_process(environment: dict[str, str]):
    """Undo in this process what a build does to it, and what pytest has done: (stdout, stderr).

    Warnings go to stderr, those that Python hides by itself are hidden, and loggers that have no
    handler of their own print. Sphinx adds to its own defaults, such as the suffixes of sources, and
    to the translations that it has loaded.
    """
    status, warning, path, root = io.StringIO(), io.StringIO(), sys.path[:], logging.getLogger()
    handlers, root.handlers = root.handlers, []
    with (
        patch.dict(os.environ, environment),
        patch.dict(translators, clear=True),
        patch.object(Config, "config_values", deepcopy(Config.config_values)),
        redirect_stdout(status),
        redirect_stderr(warning),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.resetwarnings()
        for kind in HIDDEN:
            warnings.simplefilter("ignore", kind)
        try:
            yield status, warning
        finally:
            sys.path[:], root.handlers = path, handlers
    for one in caught:
        warning.write(warnings.formatwarning(one.message, one.category, one.filename, one.lineno))


def remember(folder: Path) -> None:
    """Give a site without a store one that has been asked what takes seconds to find out."""
    store = folder / ".store"
    if not store.exists():
        store.mkdir()
        (store / "memo.json").write_text(answers(), encoding="utf-8")


@cache
def answers() -> str:
    """What a store remembers of this machine, which takes seconds to ask: device and versions."""
    with TemporaryDirectory() as folder:
        memo = Memo(Path(folder, "memo.json"))
        accelerators(memo)
        versions(ALWAYS, memo)
        return Path(folder, "memo.json").read_text(encoding="utf-8")


def page(folder: Path, name: str) -> BeautifulSoup:
    """A built page, e.g. page(folder, "chapters/a")."""
    html = folder / "_build" / "html" / f"{name}.html"
    return BeautifulSoup(html.read_text(encoding="utf-8"), "html.parser")


def ran(result: subprocess.CompletedProcess) -> list[str]:
    """The notebooks that a build ran, in the order in which they finished."""
    return re.findall(r"^\[\d+/\d+\] (\w+)", result.stdout, re.MULTILINE)


# ---- the book ------------------------------------------------------------------------------------


def write_book(folder: Path, files: dict[str, str]) -> Path:
    """Write files as a site with the book's own settings, style, templates and extensions."""
    for name in ("_static", "_templates", "_ext"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("references.bib", "docutils.conf"):
        shutil.copy(ROOT / name, folder)
    return write_site(folder, files, (ROOT / "conf.py").read_text(encoding="utf-8"))


def bring_up_to_date() -> None:
    """Build the book into _build/html as `make html` does, which writes what has changed."""
    everything = ["-E"] if older_than_its_makers(ROOT / "_build" / "html") else []
    command = [sys.executable, *BOOK, "--no-color", *everything]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr


def older_than_its_makers(html: Path, root: Path = ROOT) -> bool:
    """Whether a page was read or written before the settings, an extension or a template changed.

    Sphinx does not look at these: it compares a page with its source.
    """
    makers = [root / "conf.py", *root.glob("_ext/**/*.py"), *root.glob("_templates/**/*.html")]
    pages = [file for file in html.rglob("*.html") if "_static" not in file.parts]
    made = [*pages, *html.rglob("*.doctree")]
    oldest = min((file.stat().st_mtime for file in made), default=0)
    return max(file.stat().st_mtime for file in makers) > oldest
