"""Build small sites for the tests of the extensions."""

import os
import re
import subprocess
import sys
from pathlib import Path

from bs4 import BeautifulSoup

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


def build(
    folder: Path, *options: str, out: str = "html", **environment: str
) -> subprocess.CompletedProcess:
    """Run sphinx-build as the Makefile does, output in ``folder/_build/<out>``."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "_ext"), **environment}
    return subprocess.run(
        sphinx(folder, "-n", "-W", "--keep-going", "--no-color", *options, out=out),
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
    )


def page(folder: Path, name: str) -> BeautifulSoup:
    """A built page, e.g. page(folder, "chapters/a")."""
    html = folder / "_build" / "html" / f"{name}.html"
    return BeautifulSoup(html.read_text(encoding="utf-8"), "html.parser")


def ran(result: subprocess.CompletedProcess) -> list[str]:
    """The notebooks that a build ran, in the order in which they finished."""
    return re.findall(r"^\[\d+/\d+\] (\w+)", result.stdout, re.MULTILINE)
