"""Code, figures and tables on screens: room for 88 columns, a sign of what is hidden, no clutter."""

import contextlib
import io
import re

import pytest
from PIL import Image, ImageChops
from test_figures import contrast

from browser import MISSING, Visit, find, new_context, serve
from loader import ROOT

pytestmark = [
    pytest.mark.xdist_group("site"),  # shares the build with test_site
    pytest.mark.skipif(find() is None, reason=MISSING),
]
COLUMNS = 88
WIDEST = 0.6185  # em of a letter of SF Mono, the widest of the faces that the pages ask for
SCROLL_BAR = 15  # pixels of a window where it is not drawn over the page
GROUND = {"light": "#f5f6f8", "dark": "#1c222c"}  # of code
FRAMES = {
    "chapters/resnet": "section > .cell .cell_input pre",
    "chapters/vgg": "details.admonition .cell_input pre",
    "notebooks/resnet": ".cell_input pre",
}


@pytest.fixture
def visit(browser, site):
    """visit("chapters/vgg", width=390) opens a page of the real site with all that folds open."""
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(serve(site))

        def open_page(name: str, width: int = 1300, **options):
            size = {"viewport": {"width": width, "height": 900}, "reduced_motion": "reduce"}
            context = stack.enter_context(
                contextlib.closing(new_context(browser, **size, **options))
            )
            page = Visit(context, root).open(f"{name}.html").page
            page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
            return page

        yield open_page


# ---- code and tables -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_holds_88_columns_of_code_in_a_window_of_1300_pixels(visit, name):
    page = visit(name, width=1300 - SCROLL_BAR)
    frame = page.locator(FRAMES[name]).first
    frame.evaluate(f"frame => frame.textContent = 'x'.repeat({COLUMNS})")
    assert frame.evaluate("frame => frame.scrollWidth <= frame.clientWidth")
    room, size = frame.evaluate(
        """frame => {
          const style = getComputedStyle(frame);
          const inner = frame.clientWidth - 2 * parseFloat(style.paddingLeft);
          return [inner, parseFloat(style.fontSize)];
        }"""
    )
    assert size >= 13
    assert room >= COLUMNS * WIDEST * size
    frame.evaluate(f"frame => frame.textContent = 'x'.repeat({COLUMNS + 8})")
    assert frame.evaluate("frame => frame.scrollWidth > frame.clientWidth"), "room is wasted"


def edges(page, place) -> tuple[float, float]:
    """How far the brightness at the left and the right edge is from that of the middle."""
    box = place.bounding_box()
    clip = {**box, "height": 5}  # above the text
    clip["y"] += 2
    strip = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("L")
    middle, y = strip.getpixel((strip.width // 2, 2)), 2
    left, right = (strip.getpixel((x, y)) for x in (2, strip.width - 3))
    return abs(left - middle), abs(right - middle)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_code_that_is_wider_than_a_phone_has_a_shade_where_there_is_more(visit, mode):
    page = visit("chapters/resnet", width=390, color_scheme=mode)
    frame = page.locator(FRAMES["chapters/resnet"]).first
    frame.evaluate(f"frame => frame.textContent = 'x'.repeat({COLUMNS})")
    frame.scroll_into_view_if_needed()
    left, right = edges(page, frame)
    assert left < 3 and right > 20
    frame.evaluate("frame => frame.scrollLeft = 60")
    assert min(edges(page, frame)) > 20
    frame.evaluate("frame => frame.scrollLeft = 9999")
    left, right = edges(page, frame)
    assert left > 20 and right < 3
    frame.evaluate("frame => frame.textContent = 'short'")
    assert max(edges(page, frame)) < 3


@pytest.mark.parametrize("width", [768, 1300])
def test_what_fits_leaves_no_line_of_a_shade(visit, width):
    page = visit("chapters/resnet", width=width, device_scale_factor=1.5)  # edges between pixels
    wide = "pre, .pst-scrollable-table-container, .output.text_html, div.math > math"
    places = [place for place in page.locator(f"main :is({wide})").all() if place.is_visible()]
    fits = [p for p in places if p.evaluate("e => e.scrollWidth <= e.clientWidth")]
    assert len(fits) > 20
    for place in [*fits[:8], *fits[-8:]]:
        shaded = Image.open(io.BytesIO(place.screenshot())).convert("L")
        place.evaluate("e => e.style.backgroundImage = 'none'")
        bare = Image.open(io.BytesIO(place.screenshot())).convert("L")
        difference = ImageChops.difference(shaded, bare)
        width, height = difference.size
        for left in (0, width - 20):  # a shade is narrower
            strip = difference.crop((left, 0, left + 20, height))
            assert strip.getextrema()[1] < 6, place.text_content()[:60]


def test_without_scripts_what_scrolls_has_its_shade(browser, site):
    narrow = {"java_script_enabled": False, "viewport": {"width": 390, "height": 900}}
    with serve(site) as root, contextlib.closing(browser.new_context(**narrow)) as context:
        page = context.new_page()
        page.goto(f"{root}chapters/resnet.html")
        frame = page.locator(FRAMES["chapters/resnet"]).first
        frame.scroll_into_view_if_needed()
        left, right = edges(page, frame)
        assert left < 3 and right > 20


def test_what_scrolls_is_reached_and_moved_by_keyboard(visit):
    page = visit("chapters/resnet", width=390)
    wide = "pre, .pst-scrollable-table-container, .cell_output > .output, div.math > math"
    page.wait_for_function(
        """wide => [...document.querySelectorAll(`main :is(${wide})`)].every(
            e => e.scrollWidth <= e.clientWidth || e.tabIndex === 0)""",
        arg=wide,
    )
    scrolling = page.locator(".pst-scrollable-table-container[tabindex='0'], pre[tabindex='0']")
    assert scrolling.count() > 3
    for place in (page.locator("pre[tabindex='0']").first, scrolling.last):
        place.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("() => document.activeElement.scrollLeft > 0")


def test_numbers_on_a_phone_take_one_line_and_their_spread_another(visit):
    for name in ("chapters/resnet", "chapters/feature_fusion"):
        cells = visit(name, width=390).locator("main .dataframe td[style*='right']")
        lines = cells.evaluate_all(
            """all => all.map(cell => {
              const range = document.createRange();
              range.selectNodeContents(cell);
              const height = range.getBoundingClientRect().height;
              const lines = Math.round(height / parseFloat(getComputedStyle(cell).lineHeight));
              return [lines, cell.querySelectorAll(".spread").length];
            })"""
        )
        assert max(spread for _, spread in lines) == 1
        assert all(count == 1 + spread for count, spread in lines), lines


@pytest.mark.parametrize("name", ["status", "chapters/cnn_evolution"])
def test_a_column_of_numbers_ends_at_one_line_with_its_head(visit, name):
    page = visit(name)
    rights = page.locator("main table.table").first.evaluate(
        """table => {
          const found = {};
          for (const cell of table.querySelectorAll(".number")) {
            const range = document.createRange();
            range.selectNodeContents(cell);
            (found[cell.cellIndex] ??= []).push(range.getBoundingClientRect().right);
          }
          return Object.values(found);
        }"""
    )
    assert len(rights) >= 2
    assert all(max(column) - min(column) < 0.5 for column in rights)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_comment_is_no_brighter_than_the_code(visit, mode):
    page = visit("chapters/resnet", color_scheme=mode)
    colour = "e => getComputedStyle(e).color"
    comment, code = (page.locator(f"pre {s}").first.evaluate(colour) for s in (".c1", ".n"))
    comment, code = ([int(v) for v in re.findall(r"\d+", c)[:3]] for c in (comment, code))
    contrasts = [contrast("#" + bytes(c).hex(), GROUND[mode]) for c in (comment, code)]
    assert 4.5 <= contrasts[0] <= contrasts[1]


def test_a_row_of_the_status_page_is_one_line_on_a_phone(visit, site):
    page = visit("status", width=390)
    heights = page.evaluate(
        "[...document.querySelectorAll('table.runs tr')].map(e => e.offsetHeight)"
    )
    assert len(heights) > 10 and max(heights) < 45
    table = page.locator(".pst-scrollable-table-container")
    table.evaluate("table => table.scrollLeft = 200")
    name = page.locator("table.runs tbody td").first
    assert abs(name.bounding_box()["x"] - table.bounding_box()["x"]) < 2, "names stay in view"
    assert "torch 2" in page.locator("main p", has_text="Versions:").inner_text()


# ---- what stands around --------------------------------------------------------------------------


@pytest.mark.parametrize("width", [390, 1300])
def test_captions_stand_under_the_text_s_edge_with_tight_lines(visit, width):
    page = visit("chapters/resnet", width=width)
    edge = page.locator("main section > p").first.bounding_box()["x"]
    captions = page.evaluate(
        """[...document.querySelectorAll("main section > figure > figcaption p")].map(p => {
          const style = getComputedStyle(p);
          const ratio = parseFloat(style.lineHeight) / parseFloat(style.fontSize);
          return [p.getBoundingClientRect().left, ratio];
        })"""
    )
    assert len(captions) > 3
    for left, ratio in captions:
        assert abs(left - edge) < 1 and ratio < 1.5


@pytest.mark.parametrize("width", [390, 768, 1024, 1300, 1920])
def test_all_of_a_page_begins_at_one_edge(visit, width):
    lefts = """parts => parts.map(part => {
      const range = document.createRange();
      range.selectNodeContents(part);
      return [part.className || part.tagName, range.getBoundingClientRect().left];
    })"""
    for name in ("index", "status", "chapters/resnet", "notebooks/resnet"):
        page = visit(name, width=width)
        parts = "main article h1, main .place, main .copyright"
        found = dict(page.locator(parts).evaluate_all(lefts))
        assert {"H1", "copyright"} <= set(found)
        assert max(found.values()) - min(found.values()) < 1, (name, found)


def test_a_foot_has_one_line(visit):
    page = visit("status")
    feet = page.locator("footer").evaluate_all(
        "all => all.filter(e => e.checkVisibility() && getComputedStyle(e).borderTopWidth !== '0px')"
    )
    assert len(feet) == 1


@pytest.mark.parametrize("width", [390, 768, 1300])
@pytest.mark.parametrize("name", ["chapters/lenet", "chapters/resnet", "chapters/feature_fusion"])
def test_previous_and_next_touch_neither_each_other_nor_the_foot(visit, name, width):
    page = visit(name, width=width)
    boxes = [link.bounding_box() for link in page.locator(".prev-next-area a").all()]
    foot = page.locator(".bd-footer-content").bounding_box()
    for box in boxes:
        assert foot["y"] - (box["y"] + box["height"]) >= 24
    for left, right in zip(boxes, boxes[1:]):
        assert right["x"] - (left["x"] + left["width"]) >= 12
        assert left["height"] == right["height"]


def test_a_solution_has_no_shadow(visit):
    page = visit("chapters/resnet")
    assert page.locator("details.admonition").count() >= 3
    shadows = page.evaluate(
        "[...document.querySelectorAll('.admonition')].map(e => getComputedStyle(e).boxShadow)"
    )
    assert set(shadows) == {"none"}


def test_the_sign_of_the_book_stands_out_from_light_and_dark():
    text = (ROOT / "_static" / "favicon.svg").read_text(encoding="utf-8")
    colours = set(re.findall(r"#[0-9a-fA-F]{6}", text))
    assert len(colours) == 2
    for colour in colours:
        assert min(contrast(colour, ground) for ground in ("#ffffff", "#14181f")) >= 3.5, colour


def test_the_top_of_a_page_does_not_repeat_the_buttons_of_its_card(visit):
    top = ".article-header-buttons a.btn-launch"
    for name in ("chapters/resnet", "chapters/cnn_evolution"):  # a paper's card, an overview's
        page = visit(name)
        assert page.locator(".paper-card .launch-link").count() >= 3
        assert page.locator(top).count() == 0
    assert visit("notebooks/resnet").locator(top).count() >= 2
