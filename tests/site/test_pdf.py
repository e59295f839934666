"""The book as one PDF: cover, contents with the right numbers, bookmarks, links; and its link."""

import os
import subprocess
import sys

import pikepdf
import pytest
from bs4 import BeautifulSoup

import pdf
from browser import MISSING, find
from loader import ROOT
from sites import CONF, build, page, write_site

FILES = {
    "index.rst": """Small book
==========

A book for the tests. It is small.

.. toctree::
   :caption: First part

   chapters/a
   chapters/b

.. toctree::
   :caption: Second part
   :hidden:

   chapters/c
""",
    "chapters/a.rst": """Alpha
=====

.. _there:

The idea
--------

To :ref:`that <other>`, :doc:`c`, :doc:`/index` and the `notebook <../notebooks/a.html>`_.

.. image:: /dot.svg
   :alt: a red dot
""",
    "chapters/b.rst": "Beta\n====\n\n.. _other:\n\nThe idea\n--------\n\nTo :ref:`there`.\n",
    "chapters/c.rst": "Gamma\n=====\n\nText, and `elsewhere <https://example.org>`_.\n",
    "dot.svg": '<svg xmlns="http://www.w3.org/2000/svg" width="40px" height="30px"><circle r="9"/></svg>',
    "_templates/book-files.html": (ROOT / "_templates" / "book-files.html").read_text(),
}
CONF = f"""{CONF}
extensions.append("book_files")
templates_path, html_static_path = ["_templates"], [{str(ROOT / "_static")!r}]
html_css_files = ["book.css"]
copyright = "2026, A. Author"
html_theme_options = {{"footer_content_items": ["copyright.html", "book-files.html"]}}
"""
PAGES = ["chapters/a", "chapters/b", "chapters/c"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_site(tmp_path_factory.mktemp("pdf"), FILES, CONF)
    result = build(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def site(folder):
    return folder / "_build" / "html"


def run(*arguments, **environment: str) -> subprocess.CompletedProcess:
    """The program, as make runs it."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT / '_ext'}"}
    command = [sys.executable, str(ROOT / "tools" / "pdf.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env | environment)


# ---- one page of all -----------------------------------------------------------------------------


def test_the_parts_hold_their_pages_in_order(site):
    assert list(pdf.contents(site)) == [("First part", PAGES[:2]), ("Second part", PAGES[2:])]


def test_each_link_leads_to_a_place_of_its_own_in_the_book(site):
    html = BeautifulSoup(pdf.book(site, {}), "html.parser")
    ids = [node["id"] for node in html.select("[id]")]
    assert len(set(ids)) == len(ids)
    targets = {a.get_text(): a["href"] for a in html.select("article a[href]")}
    assert targets["Gamma"] == "#chapters/c" and targets["Small book"] == "#contents"
    assert html.find(id=targets["that"][1:]).find_parent("section").h2.get_text() == "The idea"
    assert html.find(id=targets["that"][1:]).find_parent("article")["id"] == "chapters/b"
    assert html.find(id=targets["The idea"][1:]).find_parent("article")["id"] == "chapters/a"
    assert targets["elsewhere"] == "https://example.org"
    for href in targets.values():
        assert href.startswith("https:") or html.find(id=href[1:]), href
    assert "notebook" not in targets and "the notebook" in html.get_text(), "it is not in the book"


def test_pictures_are_found_from_the_root_and_loaded_at_once(site):
    html = BeautifulSoup(pdf.book(site, {}), "html.parser")
    (image,) = html.select("article img")
    assert (site / image["src"]).is_file() and "loading" not in image.attrs
    assert not html.select("script")


# ---- the file ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def printed(site):
    if find() is None:
        pytest.skip(MISSING)
    target = site / "book.pdf"
    result = run(site, target)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{target}: 5 pages")
    with pikepdf.open(target) as opened:
        yield opened


def test_contents_say_on_which_page_a_chapter_begins(site, printed):
    numbers = {page.objgen: number for number, page in enumerate(printed.pages, 1)}
    begins = {
        str(name)[1:]: numbers[place[0].objgen]
        for name, place in printed.Root.Dests.items()
        if str(name)[1:] in PAGES
    }
    assert begins == {"chapters/a": 3, "chapters/b": 4, "chapters/c": 5}
    html = BeautifulSoup(pdf.book(site, begins), "html.parser")
    rows = [tuple(a.stripped_strings) for a in html.select(".book-contents a")]
    assert rows == [("Alpha", "3"), ("Beta", "4"), ("Gamma", "5")]
    links = [link for page in printed.pages for link in page.get("/Annots", [])]
    inside = [link for link in links if "/Dest" in link]
    assert len(inside) >= 3 + 3
    assert all(str(link.Dest) in printed.Root.Dests for link in inside)


def test_bookmarks_are_parts_chapters_and_sections(printed):
    with printed.open_outline() as outline:
        tree = {
            part.title: {
                chapter.title: [s.title for s in chapter.children] for chapter in part.children
            }
            for part in outline.root
        }
    assert tree == {
        "Contents": {},
        "First part": {"Alpha": ["The idea"], "Beta": ["The idea"]},
        "Second part": {"Gamma": []},
    }


def test_the_file_has_the_book_s_title_and_language_and_is_tagged(printed):
    assert str(printed.docinfo["/Title"]) == "Small book"
    assert str(printed.Root.Lang).startswith("en")
    assert printed.Root.MarkInfo.Marked and "/StructTreeRoot" in printed.Root


def test_pages_link_to_the_file_once_it_is_there(folder, printed):
    assert not page(folder, "chapters/a").select(".book-files")
    assert build(folder).returncode == 0
    (link,) = page(folder, "chapters/a").select(".book-files a")
    assert link["href"] == "../book.pdf" and link.get_text() == "PDF"


def test_without_a_browser_the_program_says_what_is_missing(site, tmp_path):
    result = run(site, tmp_path / "book.pdf", BROWSER_PATH=str(tmp_path / "none"))
    assert result.returncode == 1 and "BROWSER_PATH" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(find() is None, reason=MISSING)
def test_without_a_site_the_program_says_what_to_do(tmp_path):
    result = run(tmp_path, tmp_path / "book.pdf")
    assert result.returncode == 1 and "make html" in result.stderr
