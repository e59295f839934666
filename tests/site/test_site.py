"""The real site: what every page and every notebook must hold."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

from engine.budget import far, pace
from engine.notebook import code_cells
from loader import NOTEBOOKS, ROOT, STEMS

pytestmark = pytest.mark.xdist_group("site")
GENERATED = {"404", "genindex", "search", "timeline"}
# a warning, a progress bar, a memory address, an absolute path
UNWANTED = (
    r"Warning\b",
    r"\d+%\|",
    r"\bit/s\b",
    r"\b0x[0-9a-f]{6,}",
    r"(?<![\w.])/(?:home|root|tmp|usr|work|opt|Users|content)/\w",
)


@pytest.fixture(scope="session")
def pages(site) -> dict[str, BeautifulSoup]:
    return {
        str(path.relative_to(site).with_suffix("")): BeautifulSoup(whole(path), "html.parser")
        for path in site.rglob("*.html")
        if "_static" not in path.parts
    }


def whole(path: Path) -> bytes:
    """What a page holds; a build that was killed may have written a part, which stays until -E."""
    text = path.read_bytes()
    assert text.rstrip().endswith(b"</html>"), f"{path} is not whole: make clean html"
    return text


def test_each_chapter_has_a_notebook_and_a_test():
    notebooks = {path.stem for path in NOTEBOOKS.glob("*.py")}
    tests = {
        path.stem.removeprefix("test_") for path in (ROOT / "tests" / "chapters").glob("test_*.py")
    }
    assert set(STEMS) == notebooks
    assert set(STEMS) <= tests


def test_the_documents_are_exactly_the_expected_ones(pages):
    expected = {
        "index",
        "bibliography",
        "status",
        *(f"{f}/{s}" for s in STEMS for f in ("chapters", "notebooks")),
    }
    assert set(pages) - GENERATED == expected


@pytest.mark.parametrize("stem", STEMS)
def test_each_cell_ran_and_left_nothing_unwanted(stored, stem):
    for cell in code_cells(stored(stem)):
        assert cell.execution_count, f"did not run: {cell.source}"
        for output in cell.outputs:
            assert output.get("name") != "stderr", output
            data = output.get("data", {})
            shown = output.get("text", "") + data.get("text/plain", "") + data.get("text/html", "")
            for pattern in UNWANTED:
                assert not re.search(pattern, shown), f"{pattern} in the output of: {cell.source}"


@pytest.mark.parametrize("stem", STEMS)
def test_a_cell_that_draws_leaves_its_figure_and_no_text(stored, stem):
    """The last line of a cell may return something: ``axes.set(...)`` does; ``plt.show()`` does not."""
    for cell in code_cells(stored(stem)):
        left = [output for output in cell.outputs if "data" in output]
        if any(kind.startswith("image/") for output in left for kind in output.data):
            texts = [o.data for o in left if o.output_type == "execute_result"]
            assert all(len(data) > 1 for data in texts), cell.source


def test_each_notebook_keeps_its_time_budget(stored):
    """Other tests and kernels beside it make a run dearer, and so does a slow machine, but for all."""
    costs = {stem: stored(stem).metadata["book"]["cpu"] for stem in STEMS}
    assert {stem: cpu for stem, cpu in costs.items() if cpu > far(stem, pace(costs))} == {}


@pytest.mark.parametrize("stem", STEMS)
def test_the_foot_of_a_notebook_page_says_what_it_ran_on(pages, stem):
    foot = pages[f"notebooks/{stem}"].select_one(".admonition.run").text
    for word in ("Device", "Time", "peak memory", "Profile", "sample", "Data", "torch 2", "Date"):
        assert word in foot


def test_each_picture_has_a_file_and_an_alternative_text_in_words(site, pages):
    seen = 0
    for name, html in pages.items():
        for image in html.select("main img"):
            alt = image.get("alt", "")
            if image.find_parent(class_="chapter-picture"):
                assert alt == "", name  # it adorns a list; its words stand in the chapter
                continue
            assert len(alt.split()) >= 2, f"{name}: {image}"
            assert not re.search(r"\.(png|svg|jpe?g)$|^[\w./-]*/[\w./-]+$", alt), f"{name}: {alt}"
            assert (site / name).parent.joinpath(image["src"]).is_file(), f"{name}: {image['src']}"
            seen += 1
    assert seen > 10


def test_each_column_of_a_table_has_a_head_that_says_what_it_holds(pages):
    heads = [(name, head) for name, html in pages.items() for head in html.select("main th")]
    assert len(heads) > 100
    assert not [(name, head.parent) for name, head in heads if not head.get_text(strip=True)]


def test_no_page_loads_anything_from_another_host(site, pages):
    for name, html in pages.items():
        for tag in html.select(
            "script[src], img[src], iframe[src], source[src], video[src], audio[src]"
        ):
            assert "//" not in tag["src"], f"{name}: {tag}"
        for tag in html.select("link[href]"):
            if not {"canonical", "alternate", "author", "license"} & set(tag.get("rel", [])):
                assert "//" not in tag["href"], f"{name}: {tag}"
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", text), path


def test_each_page_forbids_what_comes_from_elsewhere(pages):
    for name, html in pages.items():
        (meta,) = html.select("meta[http-equiv=Content-Security-Policy]")
        rules = dict(rule.strip().split(" ", 1) for rule in meta["content"].split(";"))
        assert rules["default-src"] == "'self'", name
        script = rules["script-src"].replace("'wasm-unsafe-eval'", "")  # for the search engine
        assert "unsafe" not in script, name
        assert not re.search(r"https?:|\*", meta["content"]), name
        before = [tag.name for tag in meta.find_previous_siblings(["script", "link", "style"])]
        assert not before, f"{name}: something is loaded before the policy holds"


def test_links_within_the_site_lead_to_a_file_and_an_anchor(site, pages):
    site = site.resolve()
    anchors = {
        site / f"{name}.html": {tag["id"] for tag in html.select("[id]")}
        for name, html in pages.items()
    }
    for name, html in pages.items():
        links = set() if name in GENERATED else {a["href"] for a in html.select("a[href]")}
        for href in links:
            if re.match(r"[a-z]+:", href):
                continue
            path, _, anchor = href.partition("#")
            page = site / f"{name}.html"
            target = Path(os.path.normpath(page.parent / path.partition("?")[0])) if path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{name}: {href}"
            if anchor and target.suffix == ".html":
                assert anchor in anchors[target], f"{name}: {href}"


@pytest.mark.parametrize("stem", STEMS)
def test_each_button_for_a_file_leads_to_a_notebook_or_code_that_can_be_read(site, pages, stem):
    for name in (f"chapters/{stem}", f"notebooks/{stem}"):
        places = ".article-header-buttons a[title^=Download], .paper-card .launch-link"
        files = [a["href"] for a in pages[name].select(places)]
        files = [(site / name).parent / href for href in files if not href.endswith(".html")]
        notebook, code = files
        assert (notebook.suffix, code.suffix) == (".ipynb", ".py")
        nbformat.validate(nbformat.read(notebook, as_version=4))
        compile(code.read_text(encoding="utf-8"), name, "exec")


def test_chinese_titles_are_marked_as_chinese(pages):
    for name, html in pages.items():
        for text in html.select_one("main, body").find_all(string=re.compile(r"[\u4e00-\u9fff]")):
            assert text.find_parent(attrs={"lang": re.compile("^zh")}), f"{name}: {text}"
