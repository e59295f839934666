"""Where one is in the book: side bar, line above the title, previous and next, titles of notebooks.

Looked at in a made-up book of 64 chapters in nine parts, whose pages are 900 px high, and in the real one.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from bs4 import BeautifulSoup

from browser import MISSING, against, find, new_context, serve
from loader import ROOT, STEMS
from sites import build, page, write_book, write_site

pytestmark = [
    pytest.mark.xdist_group("site"),
    pytest.mark.skipif(find() is None, reason=MISSING),
]
PARTS = {
    "Image classification": 10,
    "Object detection": 12,
    "Sequences and language": 14,
    "Speech": 6,
    "Diffusion": 8,
    "Data sets": 4,
    "Model hubs": 3,
    "Reproduction and scale": 4,
    "Tools": 3,
}
TABLE = "\n.. toctree::\n   :caption: {}\n\n{}"


def chapters() -> Iterator[tuple[str, int, int]]:
    """(part, place in the part, place in the book) of each chapter."""
    number = 0
    for part, size in PARTS.items():
        for place in range(1, size + 1):
            number += 1
            yield part, place, number


def about() -> str:
    """A page with sections of many lengths, the last ones shorter than a window."""
    text = "About\n=====\n\n" + "Text. " * 300 + "\n"
    for number, words in enumerate((900, 40, 1500, 600, 30, 20), 1):
        title = f"Section {number}"
        half = "word " * (words // 2)
        text += f"\n{title}\n---------\n\n{half}\n\n.. _middle-{number}:\n\n{half}\n"
        if number == 3:
            text += f"\nBelow\n~~~~~\n\n{half}\n"
    return text


def book() -> dict[str, str]:
    files, tables = {"about.rst": about()}, dict.fromkeys(PARTS, "")
    for part, _, number in chapters():
        files[f"chapters/net{number}.rst"] = (
            f"Network number {number}\n=================\n\nText.\n"
        )
        tables[part] += f"   chapters/net{number}\n"
    tables["About"] = "   about\n"
    return files | {
        "index.rst": "Book\n====\n" + "".join(map(TABLE.format, tables, tables.values()))
    }


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """The made-up book, built with the real settings, style and templates."""
    folder = tmp_path_factory.mktemp("many")
    write_book(folder, book())
    published = {"SITE_URL": "https://someone.github.io/book/", "GITHUB_REPOSITORY": "someone/book"}
    result = build(folder, **published)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def root(many):
    with serve(many / "_build" / "html") as root:
        yield root


@pytest.fixture
def visit(browser, root):
    """visit("chapters/net1.html", width=390) opens a page of the book in a window that is 900 px high."""
    with contextlib.ExitStack() as stack:

        def open_page(name: str, width: int = 1300, **options):
            size = {"width": width, "height": 900}
            context = new_context(browser, viewport=size, **options)
            stack.enter_context(contextlib.closing(context))
            tab = context.new_page()
            tab.goto(root + name)
            return tab

        yield open_page


def opened(tab) -> list[str]:
    return [
        text.lower() for text in tab.locator(".bd-links details[open] > summary").all_inner_texts()
    ]


def in_view(tab) -> bool:
    """Whether the entry of the page is within the part of the side bar that one sees."""
    return tab.evaluate("""() => {
        const link = document.querySelector(".bd-links [aria-current=page]");
        const { top, bottom } = link.closest(".bd-sidebar-primary").getBoundingClientRect();
        const box = link.getBoundingClientRect();
        return link.checkVisibility() && box.top >= top && box.bottom <= Math.min(bottom, innerHeight);
    }""")


def test_the_part_of_the_page_is_open_and_its_entry_in_view(visit):
    wanted = [(part, place, n) for part, place, n in chapters() if place in (1, PARTS[part])]
    for part, place, number in [*wanted[:6], *wanted[-2:]]:
        tab = visit(f"chapters/net{number}.html")
        assert opened(tab) == [part.lower()]
        assert (
            tab.locator(".bd-links [aria-current=page]").inner_text() == f"Network number {number}"
        )
        assert in_view(tab)
        line = f"{part} · chapter {place} of {PARTS[part]}"
        assert tab.locator(".place").inner_text() == line
        assert tab.evaluate("scrollY") == 0
        tab.close()


def test_a_page_of_no_part_opens_the_first_one(visit):
    for name in ("index", "search"):
        tab = visit(f"{name}.html")
        assert opened(tab) == ["image classification"]
        assert tab.locator(".place, .bd-links [aria-current]").count() == 0


def test_a_part_opens_by_keyboard_and_leads_to_its_chapters(visit):
    tab = visit("chapters/net1.html")
    speech = tab.locator("summary", has_text="Speech")
    assert not tab.locator(".bd-links a", has_text="Network number 37").is_visible()
    speech.focus()
    tab.keyboard.press("Enter")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/chapters/net37.html")
    assert opened(tab) == ["speech"]


@pytest.mark.parametrize("width", [390, 1300])
def test_without_scripts_the_parts_fold_all_the_same(visit, width):
    tab = visit("chapters/net30.html", width, java_script_enabled=False)
    assert opened(tab) == ["sequences and language"]
    tab.locator("summary", has_text="Tools").click()
    tab.locator(".bd-links a", has_text="Network number 64").click()
    assert tab.url.endswith("chapters/net64.html")


def test_on_a_phone_the_dialog_shows_the_entry_of_the_page(visit):
    tab = visit("chapters/net36.html", 390)
    tab.locator(".primary-toggle").click()
    tab.locator(".bd-links [aria-current=page]").wait_for(state="visible")
    tab.wait_for_function(
        "() => document.querySelector('dialog[open]').getBoundingClientRect().x >= 0"
    )
    assert in_view(tab)


def test_the_parts_cost_a_page_no_more_than_their_links(many):
    html = page(many, "chapters/net30")
    links = html.select(".bd-links a")
    assert len(links) == 65
    text = (many / "_build" / "html" / "chapters" / "net30.html").read_text(encoding="utf-8")
    start = text.index('<nav class="bd-links"')
    assert text.index("</nav>", start) - start < 65 * 75


# ---- the contents of a page ----------------------------------------------------------------------

MARKED = """() => [...document.querySelectorAll("#page-contents a")]
    .filter((a) => a.matches(".active") && a.ariaCurrent === "true").map((a) => a.textContent)"""


def marked(tab, wanted: list[str]) -> bool:
    """Whether what is marked in the contents is what is wanted, now and when all has settled."""
    tab.wait_for_function(f"wanted => String(({MARKED})()) === String(wanted)", arg=wanted)
    tab.wait_for_timeout(150)
    return tab.evaluate(MARKED) == wanted


def test_the_contents_mark_what_a_link_led_to(visit):
    tab = visit("about.html", reduced_motion="reduce")
    assert marked(tab, [])
    links = tab.locator("#page-contents a")
    names = links.all_inner_texts()
    assert len(names) == 7
    for name in [*names, *reversed(names), names[0]]:
        links.get_by_text(name, exact=True).click()
        assert marked(tab, [name])
    for number in (5, 1, 6, 2, 4, 3):
        tab.evaluate("id => { location.hash = id; }", f"middle-{number}")
        assert marked(tab, [f"Section {number}"])
    tab.go_back()
    assert marked(tab, ["Section 4"])


def test_the_contents_mark_what_one_scrolls_to(visit):
    tab = visit("about.html#section-3", reduced_motion="reduce")
    assert marked(tab, ["Section 3"])
    jump = "y => scrollTo({ top: y, behavior: 'instant' })"
    tab.evaluate(jump, 900)
    assert marked(tab, ["Section 1"])
    tab.evaluate(jump, 100_000)
    assert marked(tab, ["Section 6"])
    tab.evaluate(jump, 0)
    assert marked(tab, [])


SHORT = f"""
import sys
sys.path.insert(0, {str(ROOT / "_ext")!r})
extensions = ["navigation"]
templates_path = [{str(ROOT / "_templates")!r}]
html_theme = "sphinx_book_theme"
html_title = "Book"
"""


def test_every_page_follows_when_a_chapter_is_renamed_or_comes(tmp_path):
    files = {
        "index.rst": "Book\n====\n" + TABLE.format("Nets", "   chapters/a\n   chapters/b\n"),
        "chapters/a.rst": "First\n=====\n\nText.\n",
        "chapters/b.rst": "Second\n======\n\nText.\n",
    }
    folder = write_site(tmp_path, files, SHORT)
    assert build(folder).returncode == 0
    before = (folder / "_build" / "html" / "chapters" / "b.html").stat().st_mtime_ns
    assert build(folder).returncode == 0
    assert (folder / "_build" / "html" / "chapters" / "b.html").stat().st_mtime_ns == before
    write_site(
        folder,
        {
            "index.rst": files["index.rst"].replace("/a\n", "/a\n   chapters/new\n"),
            "chapters/a.rst": "Another\n=======\n\nText.\n",
            "chapters/new.rst": "New\n===\n\nText.\n",
        },
        SHORT,
    )
    assert build(folder).returncode == 0
    html = page(folder, "chapters/b")
    assert [a.text for a in html.select(".bd-links a")] == ["Another", "New", "Second"]
    assert html.select_one(".place").text == "Nets · chapter 3 of 3"


# ---- where there is no page, and where something is wrong with one -------------------------------


@pytest.mark.parametrize("address", ["nothing.html", "chapters/of/no/book.html"])
def test_where_there_is_no_page_one_is_told_and_led_on(visit, root, address):
    for target in ("index.html", "search.html", "chapters/net1.html"):
        tab = visit(address)
        assert tab.locator("h1:visible").inner_text() == "There is no page here"
        assert tab.locator("meta[name=robots]").get_attribute("content") == "noindex"
        assert tab.locator("link[rel=canonical]").count() == 0
        assert "Source Sans" in tab.evaluate("getComputedStyle(document.body).fontFamily")
        assert tab.locator(".logo__image").evaluate("image => image.naturalWidth") > 0
        tab.locator(f"a[href$='/{target}']:visible").first.click()
        tab.wait_for_url(root + target)
    tab.keyboard.press("Control+k")
    assert tab.locator("dialog input[type=search]").is_visible()


def test_nothing_that_this_page_asks_for_is_missing_at_any_address(browser, root, many):
    with contextlib.closing(new_context(browser)) as context:
        tab, asked = context.new_page(), {}
        tab.on("response", lambda response: asked.update({response.url: response.status}))
        tab.goto(f"{root}chapters/of/no/book.html")
        tab.evaluate("document.fonts.ready")
        tab.wait_for_load_state("networkidle")
    assert asked.pop(f"{root}chapters/of/no/book.html") == 404
    assert any(url.endswith("source-sans-3.woff2") for url in asked)
    assert {url: status for url, status in asked.items() if status != 200} == {}
    html = (many / "_build" / "html" / "404.html").read_text(encoding="utf-8")
    for address in re.findall(r'url\("([^"]*)"\)', html):  # what is asked for without scripts
        assert address.startswith("/book/"), address


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_axe_finds_nothing_where_there_is_no_page(visit, mode):
    tab = visit("nothing.html", color_scheme=mode)
    assert against(tab) == {}
    assert tab.evaluate("book.faint()") == []


def test_a_problem_is_reported_with_title_and_address_filled_in(many):
    for name, title in (("chapters/net30", "Network number 30"), ("about", "About")):
        (link,) = page(many, name).select(".bd-footer-content .report a")
        address = urlsplit(link["href"])
        assert address.hostname == "github.com" and address.path == "/someone/book/issues/new"
        form = parse_qs(address.query)
        assert form["title"] == [f"{title}: "]
        assert form["body"] == [f"Page: https://someone.github.io/book/{name}.html\n\n"]


@pytest.mark.skipif("GITHUB_REPOSITORY" in os.environ, reason="the repository is known here")
def test_without_a_repository_nothing_can_be_reported_to_it(site):
    assert "issues/new" not in (site / "index.html").read_text(encoding="utf-8")


# ---- notebooks of the real site --------------------------------------------------------------------


@pytest.fixture(scope="module")
def notebooks(site) -> dict[str, BeautifulSoup]:
    def parsed(stem: str) -> BeautifulSoup:
        return BeautifulSoup((site / "notebooks" / f"{stem}.html").read_bytes(), "html.parser")

    return {stem: parsed(stem) for stem in STEMS}


def test_a_notebook_is_named_and_has_a_place_below_its_chapter(notebooks):
    for stem, html in notebooks.items():
        heading = html.select_one("article h1").contents[0]
        assert heading.endswith(": notebook")
        assert html.title.text == f"{heading} — Deep Learning Models"
        (here,) = html.select(".bd-links [aria-current=page]")
        assert here.text == "Notebook"
        chapter = here.find_parent("ul").find_previous_sibling("a")
        assert chapter["href"] == f"../chapters/{stem}.html"
        assert here.find_parent("details").has_attr("open")
        place = html.select_one(".place")
        assert place.a["href"] == chapter["href"] and " · chapter " in place.text


def test_notebooks_lead_to_the_notebooks_before_and_after(site, notebooks):
    index = BeautifulSoup((site / "notebooks" / "lenet.html").read_bytes(), "html.parser")
    chapters = [a["href"] for a in index.select(".bd-links a[href^='../chapters/']")]
    order = [Path(href).stem for href in chapters]
    assert sorted(order) == sorted(STEMS)
    for before, after in zip(order, order[1:]):
        assert notebooks[before].select_one("a.right-next")["href"] == f"{after}.html"
        assert notebooks[after].select_one("a.left-prev")["href"] == f"{before}.html"
    assert not notebooks[order[0]].select("a.left-prev")
    assert not notebooks[order[-1]].select("a.right-next")
