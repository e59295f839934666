"""Pages in a real browser: quiet, steady, accessible, light; every button does what it says.

Two sites are served as a project's pages are, gzipped and under a sub-path: the real one, and a small
one with the real settings and all that a chapter may hold, whose repository is known. Every page is
visited, in a tab that goes from one to the next; a page of each kind, and those of the chapters that
changed, are looked at closely, each in a fresh profile. With EVERY=1 all are.
"""

import contextlib
import io
import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from browser import MISSING, Visit, against, find, new_context, serve
from engine.notebook import code_cells, parse
from loader import NOTEBOOKS, STEMS, looked_at_closely
from sites import build, write_book

pytestmark = pytest.mark.skipif(find() is None, reason=MISSING)
STANDARD = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
WIDTHS = (390, 768, 1300)
OWN = ("index", "bibliography", "genindex", "search", "status")
PAGES = [
    *(f"real/{page}" for page in OWN),
    *(f"real/{folder}/{stem}" for stem in STEMS for folder in ("chapters", "notebooks")),
    *("small/index", "small/chapters/a", "small/chapters/b", "small/notebooks/a"),
]
CLOSELY = [page for page in PAGES if page[:6] == "small/" or page[5:] in OWN]
CLOSELY += [
    f"real/{folder}/{s}" for s in looked_at_closely() for folder in ("chapters", "notebooks")
]
CHAPTERS = [page for page in CLOSELY if "/chapters/" in page]
SMALL = {
    "index.rst": """Small book
==========

A book with all that a chapter may hold, and hardly more than that, for the tests.

.. toctree::
   :caption: Part

   chapters/a
   chapters/b

.. map::

   A caption.

.. parts::
""",
    "chapters/a.rst": """.. _first:

First chapter
=============

.. paper:: he2016deep
   :parameters: count
   :checked: an equal network
   :idea: learn what to add

Before the first heading there is a paragraph of a length that a description may have.

Section
-------

An equation, :math:`x_i`, a line (:numref:`fig-line`), and an equation that is displayed:

.. math:: y = \\sum_{i=1}^{n} w_i x_i

.. cells:: wide-code

.. cells:: line
   :part: output
   :name: fig-line

   A line.

.. cells:: pixels sound player long table

.. list-table::
   :header-rows: 1

   * - a column
     - another, wide one
     - third
   * - a word_that_is_rather_long_and_cannot_be_broken_anywhere
     - another_word_that_is_rather_long_and_cannot_be_broken
     - text

Exercises
---------

1. **Check.** Does it fold?

   .. admonition:: Solution
      :collapsible: closed

      It folds. :ref:`first`.

Reading list
------------

- :zh:`深度残差网络解读 <https://example.org/resnet>`: a title in Chinese.
""",
    "chapters/b.rst": "Second chapter\n==============\n\nText about `conv2d_relu` and :doc:`a`.\n",
    "notebooks/a.py": """# %% [markdown]
# # First notebook
#
# To the [chapter](../chapters/a.rst).

# %% tags=["wide-code"]
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Audio, display

from workbench import plots, record

record("count", 12345)
words = ["a", "line", "of", "code", "that", "is", "longer", "than", "a", "phone", "is", "wide", "and", "than", "a", "page"]
print(len(words), "words")

# %% tags=["line"] alt="a line that rises from zero to one"
_ = plt.plot([0, 1])

# %% tags=["pixels"] alt="grey noise in a square"
_ = plt.imshow(np.random.default_rng(0).random((40, 40)), cmap="gray")

# %% tags=["sound"]
Audio(np.sin(np.arange(4000) / 10), rate=8000)

# %% tags=["player"]
display({"text/html": '<p class="sound"><span>a bell</span> <audio controls aria-label="a bell"></audio></p>', "text/plain": "-"}, raw=True)

# %% tags=["long"]
for i in range(60):
    print("line", i)

# %% tags=["table"]
row = "".join(f"<td>column_{i}</td>" for i in range(20))
display({"text/html": f'<table class="dataframe"><tbody><tr>{row}</tr></tbody></table>', "text/plain": "-"}, raw=True)
""",
    "notebooks/b.py": "# %% [markdown]\n# # Second notebook\n\n# %%\nprint(1)\n",
}


def build_small_site(folder: Path) -> None:
    """The small site, with the real settings, style and templates."""
    write_book(folder, SMALL)
    shutil.copytree(NOTEBOOKS / "workbench", folder / "notebooks" / "workbench")
    result = build(folder, GITHUB_REPOSITORY="someone/book")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr


@pytest.fixture(scope="session")
def small_site(once) -> Path:
    return once("small", build_small_site) / "_build" / "html"


@pytest.fixture(scope="session")
def roots(site, small_site):
    with serve(site) as real, serve(small_site) as small:
        yield {"real": real, "small": small}


@pytest.fixture
def visit(browser, roots):
    """visit("real/index", colour_scheme="dark") opens a page in a fresh profile."""
    with contextlib.ExitStack() as stack:

        def open_page(name: str, address: str = "", **options) -> Visit:
            which, _, path = name.partition("/")
            context = stack.enter_context(contextlib.closing(new_context(browser, **options)))
            return Visit(context, address or roots[which]).open(f"{path}.html")

        yield open_page


@pytest.fixture(scope="module")
def tabs(browser, roots):
    """A tab for each site that goes from page to page; it holds what pages share already."""
    with contextlib.closing(new_context(browser)) as context:
        yield {which: Visit(context, root).open("index.html") for which, root in roots.items()}


# ---- every page ----------------------------------------------------------------------------------


def test_no_page_of_the_site_is_left_out(site):
    built = {
        f"real/{path.relative_to(site).with_suffix('')}"
        for path in site.rglob("*.html")
        if "_static" not in path.parts and path.name != "404.html"  # see test_navigation
    }
    built -= {"real/timeline"}  # leads to the map
    assert built == {page for page in PAGES if page.startswith("real/")}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_quiet_light_in_order_and_no_wider_than_the_window(tabs, name):
    which, _, path = name.partition("/")
    tab = tabs[which].go(f"{path}.html")
    levels = tab.page.evaluate("book.headings()")
    assert levels[0][0] == 1 and [level for level, _ in levels].count(1) == 1, levels
    for (before, _), (after, text) in zip(levels, levels[1:]):
        assert after <= before + 1, f"a level is left out before {text}"
    assert tab.page.evaluate("book.wide()") == []
    tab.page.set_viewport_size({"width": 390, "height": 900})
    assert tab.page.evaluate("book.wide()") == [], "390 px"
    tab.page.set_viewport_size({"width": 1300, "height": 900})
    assert tab.trouble == []
    assert not tab.loaded("searchindex.js") or name.endswith("/search")
    if "/chapters/" in name:
        sizes = tab.bytes()
        assert sizes["document"] <= 150_000  # with what all pages share, see below
        assert sizes["image"] <= 1_200_000


# ---- pages looked at closely ---------------------------------------------------------------------


@pytest.mark.parametrize("name", CLOSELY)
def test_a_page_is_steady_and_as_wide_as_the_window_in_light_and_dark(visit, name):
    tab = visit(name)
    shifts = tab.page.evaluate("book.shifts")
    assert sum(shift["value"] for shift in shifts) < 0.01, shifts
    for mode in ("light", "dark"):
        tab.page.emulate_media(color_scheme=mode)
        for width in WIDTHS:
            tab.page.set_viewport_size({"width": width, "height": 900})
            assert tab.page.evaluate("book.wide()") == [], f"{width} px, {mode}"
    assert tab.trouble == []
    assert not tab.loaded("searchindex.js")
    if "/chapters/" in name:
        sizes = tab.bytes()
        images = sizes.pop("image", 0)
        assert sum(sizes.values()) <= 180_000, sizes
        assert images <= 1_500_000 - sum(sizes.values())


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("name", CLOSELY)
def test_axe_finds_nothing(visit, name, mode):
    width = 390 if mode == "light" else 1300
    tab = visit(
        name,
        color_scheme=mode,
        reduced_motion="reduce",
        viewport={"width": width, "height": 900},
    )
    assert against(tab.page, STANDARD) == {}
    assert tab.page.evaluate("book.faint()") == []  # axe leaves text that scrolls undecided


@pytest.mark.parametrize("name", CHAPTERS)
def test_nothing_moves_when_pictures_and_fonts_come_late(browser, roots, name):
    which, _, path = name.partition("/")
    held, late = [], re.compile(r"\.(woff2|svg|png)$")
    with contextlib.closing(new_context(browser)) as context:
        tab = Visit(context, roots[which])
        tab.page.route(late, lambda route: held.append(route))
        tab.page.goto(f"{tab.root}{path}.html", wait_until="domcontentloaded")
        before = tab.page.evaluate("book.places()")
        assert held and tab.page.evaluate("document.fonts.status") == "loading"
        tab.page.route(late, lambda route: route.continue_())  # from now on
        for route in held:
            route.continue_()
        tab.page.wait_for_load_state()
        tab.scroll()
        after = tab.page.evaluate("book.places()")
    assert len(before) == len(after)
    moved = [
        f"{text}: {y} -> {new}" for (text, y), (_, new) in zip(before, after) if abs(new - y) > 2
    ]
    assert moved == []


def test_the_policy_refuses_scripts_in_a_page_and_files_from_elsewhere(visit):
    tab = visit("real/index")
    tab.page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.head.append(script);
        document.body.append(Object.assign(new Image(), { src: "https://example.org/a.png" }));
    }""")
    tab.page.wait_for_function("() => book.refused.length > 1")
    assert tab.page.evaluate("window.ran") is None
    refused = sorted(text.split(":")[0] for text in tab.page.evaluate("book.refused"))
    assert refused == ["img-src", "script-src-elem"]


# ---- one chapter ---------------------------------------------------------------------------------


def test_the_keyboard_reaches_everything_and_shows_where_it_is(visit):
    tab = visit("small/chapters/a", reduced_motion="reduce")
    tab.page.evaluate("book.rest()")
    seen = []
    for _ in range(60):
        tab.page.keyboard.press("Tab")
        if not (place := tab.page.evaluate("book.focused()")):
            break
        seen.append(place)
    own = [place for place in seen if place["tag"] != "audio"]  # the browser draws its controls
    assert not [place for place in own if place["faults"]]
    labels = [place["label"] for place in seen]
    assert labels[0] == "Skip to main content"
    for label in (
        "Search",
        "Colours: as the system",
        "First chapter",
        "Download .ipynb",
        "Solution",
    ):
        assert any(label in text for text in labels), f"{label} is not among {labels}"


def test_an_input_and_its_output_are_one_unit_and_a_long_output_is_folded(visit):
    page = visit("small/chapters/a").page
    cell = page.locator(".cell.tag_wide-code")
    source, output = (cell.locator(s).bounding_box() for s in (".cell_input", ".cell_output"))
    assert abs(source["y"] + source["height"] - output["y"]) < 2
    long = page.locator(".cell.tag_long .cell_output")
    assert "line 7" in long.inner_text() and "line 8" not in long.inner_text()
    long.locator("summary").click()
    assert "line 59" in long.inner_text()


def test_the_copy_button_copies_the_code_and_nothing_else(visit):
    tab = visit("small/notebooks/a", permissions=["clipboard-read", "clipboard-write"])
    sources = [cell.source for cell in code_cells(parse(SMALL["notebooks/a.py"]))]
    cells = tab.page.locator(".cell").all()
    assert len(cells) == len(sources)
    assert tab.page.locator(".cell_output button.copybtn").count() == 0
    for cell, source in zip(cells, sources):
        cell.locator(".cell_input").hover()
        cell.locator("button.copybtn").click()
        assert tab.page.evaluate("navigator.clipboard.readText()").rstrip("\n") == source


def test_the_links_of_a_chapter_lead_to_its_files(visit, roots):
    tab = visit("small/chapters/a")
    links = {a.inner_text(): a for a in tab.page.locator(".paper-card .launch-link").all()}
    href = {text: a.evaluate("a => a.href") for text, a in links.items()}
    answer = tab.page.request.get(href["Download .ipynb"])
    nb = nbformat.reads(answer.text(), as_version=4)
    source = parse(SMALL["notebooks/a.py"])
    assert [c.source for c in code_cells(nb)][1:] == [c.source for c in code_cells(source)]
    assert "range(60)" in tab.page.request.get(href["Download .py"]).text()
    assert tab.page.request.get(href["The whole notebook"]).ok
    colab = "https://colab.research.google.com/github/someone/book/blob/gh-pages/notebooks/a.ipynb"
    assert href["Open in Colab"] == colab
    edit = tab.page.locator(".article-header-buttons a[title='Edit this page']")
    assert edit.get_attribute("href") == "https://github.com/someone/book/edit/main/chapters/a.rst"


@pytest.mark.skipif("GITHUB_REPOSITORY" in os.environ, reason="the repository is known here")
def test_without_a_repository_no_link_leads_to_one(visit):
    page = visit("real/chapters/lenet").page
    assert page.locator("a[href*='colab.research'], a[title='Edit this page']").count() == 0


def test_the_colours_go_from_the_system_to_light_to_dark_and_stay(visit):
    tab = visit("small/chapters/a", color_scheme="dark")
    button = tab.page.locator(".theme-switch-button")

    def state():
        return button.get_attribute("aria-label"), tab.page.evaluate("book.brightness()") < 0.2

    assert state() == ("Colours: as the system", True)
    shown = tab.page.locator("main img[alt='a line that rises from zero to one']:visible")
    assert "only-dark" in shown.get_attribute("class")
    button.click()
    assert state() == ("Colours: light", False)
    assert "only-light" in shown.get_attribute("class")
    button.click()
    assert state() == ("Colours: dark", True)
    player = tab.page.locator(".output:has(.sound)").last
    ground = player.evaluate("e => getComputedStyle(e).background")
    assert ground.startswith("rgba(0, 0, 0, 0)"), ground  # no light box on a dark page
    tab.page.reload()
    assert state() == ("Colours: dark", True)
    button.click()
    tab.page.emulate_media(color_scheme="light")
    tab.page.wait_for_function("() => book.brightness() > 0.8")
    assert state() == ("Colours: as the system", False)


def test_a_button_that_is_pressed_keeps_the_focus(visit):
    page = visit("small/chapters/a", viewport={"width": 390, "height": 800}).page
    button = page.locator(".theme-switch-button")
    button.focus()
    for name in ("light", "dark"):
        page.keyboard.press("Enter")
        assert button.get_attribute("aria-label") == f"Colours: {name}"
    for toggle in ("primary", "secondary"):
        button = page.locator(f".{toggle}-toggle")
        button.focus()
        page.keyboard.press("Enter")
        dialog = page.locator(f"dialog#pst-{toggle}-sidebar-modal")
        dialog.wait_for(state="visible")
        page.keyboard.press("Escape")
        dialog.wait_for(state="hidden")
        page.wait_for_function(
            "button => button === document.activeElement", arg=button.element_handle()
        )


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_icons_are_seen_in_forced_colours(visit, mode):
    options = {"forced_colors": "active", "color_scheme": mode}
    page = visit("small/chapters/a", viewport={"width": 390, "height": 800}, **options).page
    icons = page.locator(".bd-header-article .btn")
    assert icons.count() >= 4
    for icon in icons.all():
        if icon.is_visible():
            picture = Image.open(io.BytesIO(icon.screenshot())).convert("L")
            darkest, lightest = picture.getextrema()
            assert lightest - darkest > 150, icon.get_attribute("title")


def test_on_a_phone_the_side_bars_open_and_close(visit):
    page = visit("small/chapters/a", viewport={"width": 390, "height": 800}).page
    for toggle, bar in (("primary", "Second chapter"), ("secondary", "Reading list")):
        link = page.locator(f"dialog#pst-{toggle}-sidebar-modal a", has_text=bar)
        assert not link.is_visible()
        page.locator(f".{toggle}-toggle").click()
        link.wait_for(state="visible")
        page.keyboard.press("Escape")
        link.wait_for(state="hidden")


def test_on_paper_there_is_text_and_nothing_to_press(visit):
    page = visit("small/chapters/a").page
    page.emulate_media(media="print")
    for hidden in (".bd-sidebar-primary", ".bd-sidebar-secondary", ".bd-header-article", ".launch"):
        assert not page.locator(hidden).first.is_visible(), hidden
    assert page.locator("button:visible").count() == 0
    assert page.locator("article h1").is_visible()
    assert page.locator("details.more-output pre").is_visible()
    assert page.locator("details.admonition p", has_text="It folds").is_visible()
    assert page.locator("article").bounding_box()["width"] > 1000
    assert page.evaluate("book.faint(true)") == []
    assert len(page.pdf()) > 10_000


def test_who_asks_for_less_motion_gets_none(visit):
    assert visit("small/chapters/a", reduced_motion="reduce").page.evaluate("book.moving()") == []


def test_without_scripts_a_chapter_can_be_read(browser, roots):
    with contextlib.closing(new_context(browser, java_script_enabled=False)) as context:
        page = context.new_page()
        page.goto(roots["small"] + "chapters/a.html")
        assert page.locator("main p", has_text="Before the first heading").is_visible()
        pairs = page.locator("main img.only-light").count()
        assert pairs == page.locator("main img.only-dark").count() > 0
        assert page.locator("main img.only-light:visible").count() == pairs
        assert page.locator("main img.only-dark:visible").count() == 0
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert page.locator("button:visible").count() == 0  # none would do anything
        page.locator("summary", has_text="Solution").click()
        assert page.locator("p", has_text="It folds").is_visible()


def test_a_chapter_opened_as_a_file_has_its_style(browser, small_site):
    with contextlib.closing(new_context(browser)) as context:
        tab = Visit(context, f"{small_site.as_uri()}/").open("chapters/a.html")
        assert "Source Sans" in tab.page.evaluate("getComputedStyle(document.body).fontFamily")
        assert tab.page.locator(".paper-card").bounding_box()["width"] > 400
        assert tab.trouble == []


def test_each_page_has_a_description_of_its_own(visit):
    texts = {}
    for name in ("small/index", "small/chapters/a", "small/chapters/b"):
        meta = visit(name).page.locator("meta[name=description]")
        texts[name] = meta.get_attribute("content")
    assert texts["small/chapters/a"].startswith("Before the first heading there is a paragraph")
    assert len(set(texts.values())) == 3
    assert all(len(text) <= 165 for text in texts.values()), json.dumps(texts)
