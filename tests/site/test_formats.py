"""Other formats than the web site, all written from the same doctrees: pictures, links, warnings."""

import re
import zipfile
from pathlib import Path
from urllib.parse import unquote

import pytest
from bs4 import BeautifulSoup
from test_figures import NOTEBOOK

from loader import ROOT
from sites import CONF, build, write_site

SETTINGS = f"""
extensions += ["figures", "paper", "network_map", "parts", "runs_table", "fold_outputs", "page_head"]
templates_path = [{str(ROOT / "_templates")!r}]
project, author = "Book", "A. Author"
man_pages = [("index", "book", "a book", "A. Author", 1)]
texinfo_documents = [("index", "book", "Book", "A. Author", "Book", "a book", "Science")]
epub_copyright, version = "2026, A. Author", "1"
epub_show_urls = "no"
"""
FILES = {
    "index.rst": "Book\n====\n\n.. map::\n\n   Caption.\n\n.. parts::\n\n.. toctree::\n   :caption: Part\n\n   chapters/a\n   notebooks/a\n",
    "chapters/a.rst": """\
A
=

.. paper:: one
   :idea: a clause

See :numref:`fig-line`.

.. cells:: line
   :part: output
   :name: fig-line

   A caption.

.. cells:: foreign noise
   :part: output

.. runs::
""",
    "notebooks/a.py": NOTEBOOK.replace("{colour}", "#0a58a0"),
    "notebooks/b.py": "# %% [markdown]\n# # Only a link leads here\n\n# %%\n1 + 1\n",
    "chapters/b.rst": ":orphan:\n\nB\n=\n\nText.\n",
    "references.bib": "@misc{one, author={A, B.}, title={One}, year=2016, url={https://a.org}}",
}
ALTS = ["a line that rises", "a red line", "grey noise"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_site(tmp_path_factory.mktemp("formats"), FILES, CONF + SETTINGS)


def written(folder: Path, builder: str) -> Path:
    """Where a builder has written; the doctrees are those of the builders before it."""
    kept = "own" if builder == "gettext" else "shared"  # Sphinx refuses others for gettext
    result = build(folder, "-b", builder, "-d", str(folder / "_build" / kept), out=builder)
    assert (result.returncode, result.stderr) == (0, "")
    return folder / "_build" / builder


def check_pictures(file: Path, pictures: list, twins: bool) -> None:
    """Each figure stands there, equally often, as a file that is there; one has a dark twin."""
    shown = [p for p in pictures if "only-dark" not in p.get("class", [])]
    times = len(shown) // len(ALTS)
    assert shown and sorted(p["alt"] for p in shown) == sorted(ALTS * times)
    assert len(pictures) - len(shown) == (times if twins else 0)
    for picture in pictures:
        assert (file.parent / picture["src"]).is_file(), f"{file}: {picture}"


def check_links(file: Path, html: BeautifulSoup) -> None:
    for a in html.select("a[href]"):
        path, _, anchor = unquote(a["href"]).partition("#")
        if re.match(r"[a-z]+:", a["href"]):
            continue
        target = (file.parent / path).resolve() if path else file
        target = target / "index.html" if target.is_dir() else target
        assert target.is_file(), f"{file}: {a}"
        if anchor and target == file:
            assert html.find(id=anchor), f"{file}: {a}"


def parsed(file: Path) -> BeautifulSoup:
    return BeautifulSoup(file.read_bytes(), "html.parser")


@pytest.mark.parametrize(
    ("builder", "pages"),
    [
        ("html", ["chapters/a.html", "notebooks/a.html"]),
        ("dirhtml", ["chapters/a/index.html", "notebooks/a/index.html"]),
        ("singlehtml", ["index.html"]),
    ],
)
def test_a_web_site_has_all_pictures_and_links_that_lead_to_files(folder, builder, pages):
    out = written(folder, builder)
    for name in pages:
        html = parsed(out / name)
        check_pictures(out / name, html.select("article img"), twins=True)
        buttons = {Path(a["href"]).suffix for a in html.select("a.btn-launch, a.launch-link")}
        assert {".ipynb", ".py"} <= buttons, name
    for file in out.rglob("*.html"):
        if "_static" not in file.parts:
            check_links(file, parsed(file))
    assert (out / "notebooks" / "a.ipynb").is_file()


def test_an_electronic_book_has_each_picture_once_and_no_link_to_what_it_does_not_hold(folder):
    out = written(folder, "epub")
    opened = folder / "_build" / "opened"
    with zipfile.ZipFile(out / "Book.epub") as book:
        book.extractall(opened)
    assert not list(out.rglob("*.ipynb"))
    for file in opened.rglob("*.xhtml"):
        html = parsed(file)
        check_links(file, html)
        if file.stem == "a":
            check_pictures(file, html.select("img"), twins=False)
    written(folder, "epub")  # a second time, over the first


def test_latex_includes_a_picture_that_it_can_read_for_each_figure(folder):
    out = written(folder, "latex")
    text = (out / "book.tex").read_text(encoding="utf-8")
    found = re.findall(r"\\sphinxincludegraphics\[.*?\]\{\{(\w+)\}(\.\w+)\}", text, re.DOTALL)
    assert sorted(map(found.count, set(found))) == [2, 2, 2]
    for stem, suffix in found:
        assert suffix in (".png", ".pdf") and (out / f"{stem}{suffix}").is_file()


def test_texinfo_includes_a_picture_that_it_can_read_for_each_figure(folder):
    out = written(folder, "texinfo")
    found = re.findall(
        r"@image\{([^,]*),[^,]*,[^,]*,([^,]*),(\w+)\}", (out / "book.texi").read_text()
    )
    assert sorted(alt for _, alt, _ in found) == sorted(ALTS * 2)
    for stem, _, suffix in found:
        assert suffix == "png" and (out / f"{stem}.{suffix}").is_file()


@pytest.mark.parametrize(
    ("builder", "files"),
    [
        ("text", ["chapters/a.txt", "notebooks/a.txt"]),
        ("man", ["book.1"]),
        ("xml", ["chapters/a.xml", "notebooks/a.xml"]),
    ],
)
def test_a_format_without_pictures_has_their_alternative_texts(folder, builder, files):
    out = written(folder, builder)
    text = "".join((out / name).read_text(encoding="utf-8") for name in files)
    found = re.findall(r'alt="([^"]+)"|\[image: ([^]]+)\]', text)
    assert sorted("".join(pair) for pair in found) == sorted(ALTS * 2)
    assert "<Figure size" not in text


def test_the_words_of_a_book_with_notebooks_are_extracted_for_translation(folder):
    out = written(folder, "gettext")
    words = "".join(file.read_text(encoding="utf-8") for file in out.rglob("*.pot"))
    for text in ("A caption.", "a clause", "Figures"):
        assert f'msgid "{text}"' in words
