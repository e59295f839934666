"""A chapter on paper: light whatever the screen, whole, on few pages that are full."""

import contextlib
import io

import pikepdf
import pytest

from browser import MISSING, Visit, find, new_context, serve

pytestmark = [
    pytest.mark.xdist_group("site"),  # shares the build with test_site
    pytest.mark.skipif(find() is None, reason=MISSING),
]
MOST_PAGES = 15
FOOT = 50  # points at the foot of a page that hold its number


@pytest.fixture(scope="module")
def opened(browser, site):
    """ResNet in the dark, in a browser that is about to print it."""
    context = new_context(browser, color_scheme="dark")
    with serve(site) as root, contextlib.closing(context):
        tab = Visit(context, root).open("chapters/resnet.html")
        assert tab.page.evaluate("book.brightness()") < 0.2
        tab.page.emulate_media(media="print", color_scheme="dark")
        tab.page.wait_for_function("() => document.documentElement.dataset.theme === 'light'")
        tab.page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
        yield tab.page


@pytest.fixture(scope="module")
def pdf(opened) -> pikepdf.Pdf:
    file = opened.pdf(format="A4", prefer_css_page_size=True, outline=True, tagged=True)
    with pikepdf.open(io.BytesIO(file)) as found:
        yield found


def lines(page: pikepdf.Page) -> list[float]:
    """How high above the foot the lines of a page's text stand, without its number."""
    found, outer, saved, inner = set(), pikepdf.Matrix(), [], pikepdf.Matrix()
    for values, operator in pikepdf.parse_content_stream(page):
        match str(operator):
            case "q":
                saved.append(outer)
            case "Q":
                outer = saved.pop()
            case "cm":
                outer = pikepdf.Matrix(*map(float, values)) @ outer
            case "Tm":
                inner = pikepdf.Matrix(*map(float, values))
            case "Tj" | "TJ":
                found.add(round((inner @ outer).f))
    return sorted(y for y in found if y > FOOT)


def test_paper_is_light_and_its_text_dark(opened):
    assert opened.evaluate("book.brightness()") > 0.8
    assert opened.evaluate("book.faint()") == []
    assert opened.evaluate("book.faint(true)") == []
    assert opened.locator("main img.only-light:visible").count() >= 3
    assert opened.locator("main img.only-dark:visible").count() == 0
    assert opened.locator("main img").evaluate_all("all => all.every(i => i.complete)")


def test_the_screen_is_dark_again_after_printing(opened):
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    opened.emulate_media(media="screen", color_scheme="dark")
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.evaluate("document.documentElement.dataset.theme") == "dark"
    opened.emulate_media(media="print", color_scheme="dark")
    opened.wait_for_function("() => document.documentElement.dataset.theme === 'light'")


def test_solutions_are_printed_and_what_one_presses_is_not(opened):
    solutions = opened.locator("details.admonition")
    assert solutions.count() >= 3
    for solution in solutions.all():
        assert solution.locator("p").first.is_visible()
    for hidden in (
        ".bd-sidebar-primary",
        ".bd-sidebar-secondary",
        ".bd-header-article",
        ".copybtn",
    ):
        assert opened.locator(f"{hidden}:visible").count() == 0, hidden


def test_an_address_is_printed_beside_its_link(opened):
    link = opened.locator("main a.reference.external").first
    shown = link.evaluate("a => getComputedStyle(a, '::after').content")
    assert link.get_attribute("href") in shown


def test_a_chapter_takes_few_pages_and_none_but_the_last_is_half_empty(pdf):
    assert len(pdf.pages) <= MOST_PAGES
    for number, page in enumerate(pdf.pages, 1):
        height = float(page.mediabox[3])
        lowest = min(lines(page)) / height
        assert lowest < 0.5 or number == len(pdf.pages), f"page {number} ends at {lowest:.0%}"


def test_no_heading_is_parted_from_what_follows_it(pdf):
    def places(items):
        for item in items:
            yield item.title, item.destination
            yield from places(item.children)

    pages = {page.objgen: lines(page) for page in pdf.pages}
    with pdf.open_outline() as outline:
        found = list(places(outline.root))
    assert len(found) >= 10
    for title, (page, _, _, top, *_) in found:
        below = [y for y in pages[page.objgen] if y < float(top) - 25]
        assert len(below) >= 2, f"{title} is the last on its page"


def test_on_paper_all_begins_at_one_edge_and_no_text_touches_a_bar(opened):
    lefts = "all => all.filter(e => e.checkVisibility()).map(e => e.getBoundingClientRect().left)"
    edge = opened.locator("main section > p").first.bounding_box()["x"]
    (place,) = opened.locator(".place").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect().left + parseFloat(getComputedStyle(e).paddingLeft))"
    )
    assert abs(place - edge) < 1
    asides = opened.locator("main .admonition").all()
    assert len(asides) >= 6
    for aside in asides:
        bar = aside.bounding_box()["x"] + 3
        assert min(aside.locator("> :not(summary)").evaluate_all(lefts)) > bar + 5
        shown = aside.locator("> summary").evaluate("e => getComputedStyle(e).listStyleType")
        assert shown == "none"  # a sign that it is closed


def test_what_introduces_a_list_or_an_equation_stays_with_it(opened):
    found = opened.locator("main p + :is(ul, ol, div.math)").evaluate_all(
        "all => all.map(e => getComputedStyle(e.previousElementSibling).breakAfter)"
    )
    assert len(found) >= 5 and set(found) == {"avoid"}


def test_cards_of_the_front_page_are_whole_and_begin_at_its_edge(browser, site):
    with serve(site) as root, contextlib.closing(new_context(browser)) as context:
        page = Visit(context, root).open("index.html").page
        page.emulate_media(media="print")
        edge = page.locator("main h2:visible").first.bounding_box()["x"]
        cards = page.locator(".chapter")
        lefts = cards.evaluate_all("all => all.map(e => e.getBoundingClientRect().left)")
        assert abs(min(lefts) - edge) < 1
        breaks = cards.evaluate_all("all => all.map(e => getComputedStyle(e).breakInside)")
        assert set(breaks) == {"avoid"}


def test_code_of_88_columns_is_not_wrapped(opened):
    opened.set_viewport_size({"width": 657, "height": 900})  # the text of an A4 page, in CSS pixels
    frame = opened.locator("main .cell_input pre").first
    before = frame.inner_html()
    frame.evaluate("frame => frame.textContent = 'x'.repeat(88)")
    one = frame.bounding_box()["height"]
    frame.evaluate("frame => frame.textContent = 'x'")
    assert frame.bounding_box()["height"] == one
    frame.evaluate("(frame, html) => frame.innerHTML = html", before)
