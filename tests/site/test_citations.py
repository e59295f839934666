"""Citations and the bibliography: the same labels, links in both directions, the reference in words."""

import contextlib

import pytest

from browser import MISSING, find, new_context
from loader import ROOT
from sites import build, page, write_site

CONF = f"""
extensions = ["sphinxcontrib.bibtex", "citations", "paper"]
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = bibtex_reference_style = "book"
bibtex_cite_id = "{{key}}"
html_theme = "basic"
html_static_path = [{str(ROOT / "_static")!r}]
html_css_files = ["book.css"]
html_js_files = ["book.js"]
"""
BIB = r"""
@misc{deep, author = {Doll{\'a}r, Piotr and He, Kaiming and Sun, Jian},
  title = {Deep Nets}, year = 2016, url = {https://a.org/deep}}
@misc{maps, author = {Doll{\'a}r, Piotr and Other, Olga and Third, Tom},
  title = {Identity Maps}, year = 2016, url = {https://a.org/maps}}
@misc{pair, author = {Zisserman, Andrew and {\'E}toile, Ada}, title = {Two}, year = 2015,
  url = {https://arxiv.org/abs/1409.1556}}
@misc{alone, author = {{\'E}toile, Ada}, title = {One}, year = 2015, url = {https://a.org/one}}
@misc{never, author = {Fox, F.}, title = {Not cited}, year = 1999, url = {https://a.org/fox}}
"""
FILES = {
    "index.rst": "B\n=\n\n.. toctree::\n\n   chapters/b\n   chapters/a\n   literature\n",
    "literature.rst": "Literature\n==========\n\n.. bibliography::\n   :all:\n",
    "chapters/a.rst": "Alpha\n=====\n\n.. paper:: deep\n   :idea: deeper\n\n"
    ":cite:t:`deep` and again :cite:p:`deep`, :cite:p:`maps`, :cite:t:`alone`.\n",
    "chapters/b.rst": "Beta\n====\n\n.. paper:: alone\n   :idea: alone\n\nSee :cite:p:`deep,pair`.\n",
    "references.bib": BIB,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_site(tmp_path_factory.mktemp("citations"), FILES, CONF)
    assert_built(folder)
    return folder


def assert_built(folder, *options: str, out: str = "html") -> None:
    result = build(folder, *options, out=out)
    assert result.returncode == 0 and not result.stderr, result.stderr


def entries(folder) -> dict[str, str]:
    """{id: label} of the bibliography, in its order."""
    found = page(folder, "literature").select("div.citation")
    return {entry["id"]: entry.select_one(".label").text.strip("[]") for entry in found}


def cited(folder, name: str) -> list[str]:
    return [span.text for span in page(folder, name).select(".bibtex-citation")]


def test_labels_are_those_of_the_text_in_the_order_of_the_alphabet(folder):
    assert entries(folder) == {
        "deep": "Dollár et al., 2016a",
        "maps": "Dollár et al., 2016b",
        "alone": "Étoile, 2015",
        "never": "Fox, 1999",
        "pair": "Zisserman and Étoile, 2014",
    }
    assert list(entries(folder)) == ["deep", "maps", "alone", "never", "pair"]
    assert cited(folder, "chapters/a") == [
        "Dollár et al. [2016a]",
        "[Dollár et al., 2016a]",
        "[Dollár et al., 2016b]",
        "Étoile [2015]",
    ]
    assert cited(folder, "chapters/b") == ["[Dollár et al., 2016a, Zisserman and Étoile, 2014]"]
    link = page(folder, "chapters/a").select_one(".bibtex-citation a")
    assert link["href"] == "../literature.html#deep"
    assert link["aria-description"] == "Piotr Dollár, Kaiming He, and Jian Sun. Deep nets. 2016."
    assert not link.has_attr("title")


def test_a_paper_bears_the_year_in_which_it_was_public_and_its_entry_that_of_the_venue(folder):
    entry = page(folder, "literature").select_one("#pair")
    assert entry.select_one(".label").text == "[Zisserman and Étoile, 2014]"
    assert "2015" in entry.select_one("p").text


def test_an_entry_leads_to_its_chapter_and_to_where_it_is_cited(folder):
    html = page(folder, "literature")
    lines = {e["id"]: [p.text for p in e.select(".cited-in")] for e in html.select("div.citation")}
    assert lines == {
        "deep": ["Chapter: Alpha.", "Cited in Beta, Alpha."],
        "maps": ["Cited in Alpha."],
        "alone": ["Chapter: Beta.", "Cited in Alpha."],
        "never": [],
        "pair": ["Cited in Beta."],
    }
    for link in html.select(".cited-in a"):
        path, _, anchor = link["href"].partition("#")
        target = page(folder, path.removesuffix(".html"))
        assert not anchor or "bibtex-citation" in target.find(id=anchor)["class"]


def test_pages_follow_when_citations_and_titles_change(tmp_path):
    folder = write_site(tmp_path, FILES, CONF)
    assert_built(folder)
    pages = [*folder.glob("_build/html/chapters/*.html"), folder / "_build/html/literature.html"]
    times = {path: path.stat().st_mtime_ns for path in pages}
    assert_built(folder)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    (folder / "references.bib").write_text(
        BIB
        + "@misc{new, author = {{\\'E}toile, Ada}, title = {A}, year = 2015, url = {https://a.org/new}}",
        encoding="utf-8",
    )
    assert_built(folder)
    assert cited(folder, "chapters/a")[-1] == "Étoile [2015b]"
    text = FILES["chapters/b.rst"].replace("Beta\n", "Zeta\n").replace("deep,pair", "new")
    (folder / "chapters" / "b.rst").write_text(text, encoding="utf-8")
    assert_built(folder)
    html = page(folder, "literature")
    assert [p.text for p in html.select("#new .cited-in")] == ["Cited in Zeta."]
    assert [p.text for p in html.select("#alone .cited-in")] == [
        "Chapter: Zeta.",
        "Cited in Alpha.",
    ]
    assert not html.select("#pair .cited-in")


@pytest.mark.parametrize("builder", ["latex", "text", "singlehtml"])
def test_other_formats_cite_as_well(folder, builder):
    assert_built(folder, "-b", builder, out=builder)
    if builder == "text":
        text = (folder / "_build" / "text" / "chapters" / "a.txt").read_text(encoding="utf-8")
        assert "[2016a] and again [Dollár *et al.*, 2016a]" in " ".join(text.split())


@pytest.mark.skipif(find() is None, reason=MISSING)
def test_a_citation_shows_its_reference_and_a_target_stands_out(browser, folder):
    shown = "a => getComputedStyle(a, '::after').content.includes('Deep nets')"
    with contextlib.closing(new_context(browser)) as context:
        tab = context.new_page()
        tab.goto((folder / "_build" / "html" / "chapters" / "a.html").as_uri())
        link = tab.locator(".bibtex-citation a").first
        assert not link.evaluate(shown)
        link.hover()
        assert link.evaluate(shown)
        tab.keyboard.press("Escape")
        assert not link.evaluate(shown)
        tab.mouse.move(0, 0)
        link.hover()
        assert link.evaluate(shown)
        tab.mouse.move(0, 0)
        while not link.evaluate("a => a === document.activeElement"):
            tab.keyboard.press("Tab")
        assert link.evaluate(shown)
        tab.keyboard.press("Escape")
        assert not link.evaluate(shown)
        tab.keyboard.press("Enter")
        tab.wait_for_url("**/literature.html#deep")
        ground = "e => getComputedStyle(e).backgroundColor"
        entry = tab.locator("#deep")
        assert entry.evaluate(ground) != tab.locator("#maps").evaluate(ground)
        entry.locator("a", has_text="Beta").click()
        place = tab.locator(".bibtex-citation:target")
        assert place.evaluate(ground) != "rgba(0, 0, 0, 0)"
