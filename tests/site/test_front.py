"""The front page in a browser: the real one, and the map and the parts of a made-up book of 64."""

import contextlib
import os
import re
from itertools import combinations
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

import made_up
from browser import MISSING, Visit, against, find, new_context, serve
from loader import STEMS, on_the_map
from sites import build, write_site

pytestmark = [
    pytest.mark.xdist_group("site"),  # shares the build with test_site
    pytest.mark.skipif(find() is None, reason=MISSING),
]
WIDTHS = (320, 390, 768, 1300)
# What stands on the map: circles, names and overviews, as boxes; the ends of its lines.
MEASURE = """() => {
    const box = (e) => { const b = e.getBoundingClientRect(); return [b.left, b.right, b.top, b.bottom]; };
    const items = [...document.querySelectorAll(".map-networks > li")].map((item) => {
        const link = item.querySelector("a"), name = link.querySelector("span");
        const style = getComputedStyle(item), rem = 16, plot = box(document.querySelector(".map-plot"));
        const wide = getComputedStyle(document.querySelector(".map-years")).display !== "none";
        const get = (property) => parseFloat(style.getPropertyValue(property)) * rem;
        const width = plot[1] - plot[0];
        const centre = wide && item.matches(".map-network")
            ? [plot[0] + parseFloat(style.getPropertyValue("--x")) / 100 * width, plot[2] + get("--y")]
            : [plot[0] + get("--u"), plot[2] + get("--v")];
        const line = [...item.querySelectorAll(".map-lines")].find((s) => getComputedStyle(s).display !== "none");
        const path = line?.querySelector("path"), end = path?.getPointAtLength(path.getTotalLength());
        const tip = end && end.matrixTransform(path.getScreenCTM());
        return {
            text: name.textContent, name: box(name), link: box(link), plot, wide, centre,
            font: parseFloat(getComputedStyle(name).fontSize), tip: tip && [tip.x, tip.y],
            overview: item.matches(".map-overview"), clipped: link.scrollWidth > link.clientWidth + 1,
        };
    });
    return items;
}"""


@pytest.fixture(scope="module")
def large_site(tmp_path_factory) -> Path:
    folder = write_site(tmp_path_factory.mktemp("large"), *made_up.site())
    result = build(folder)
    assert (result.returncode, result.stderr) == (0, "")
    return folder / "_build" / "html"


@pytest.fixture(scope="module")
def visit(browser, site, large_site):
    """visit("real", width) opens a front page."""
    with contextlib.ExitStack() as stack:
        roots = {
            "real": stack.enter_context(serve(site)),
            "large": stack.enter_context(serve(large_site)),
        }

        def open_page(which: str, width: int = 1300, **options) -> Visit:
            context = new_context(browser, viewport={"width": width, "height": 900}, **options)
            stack.callback(context.close)
            return Visit(context, roots[which]).open("index.html")

        yield open_page


def overlap(a: list[float], b: list[float]) -> bool:
    return min(a[1], b[1]) - max(a[0], b[0]) > 0.5 and min(a[3], b[3]) - max(a[2], b[2]) > 0.5


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", ["real", "large"])
def test_names_do_not_overlap_are_whole_and_legible_and_lines_end_at_circles(visit, which, width):
    tab = visit(which, width)
    items = tab.page.evaluate(MEASURE)
    assert len(items) == {"real": len(on_the_map()), "large": 64}[which]
    assert {item["wide"] for item in items} == {width >= 768}
    for item in items:
        left, right, top, bottom = item["plot"]
        name = item["name"]
        inside = (
            left - 1 <= name[0] and name[1] <= right + 1 and top <= name[2] and name[3] <= bottom
        )
        assert inside and not item["clipped"], item
        assert item["font"] >= 14
        if item["tip"]:
            assert item["tip"] == pytest.approx(item["centre"], abs=1.5), item
    for a, b in combinations(items, 2):
        assert not overlap(a["name"], b["name"]), (a, b)
        if a["wide"]:  # on a narrow page a link is as wide as the page
            assert not overlap(a["link"], b["link"]), (a, b)
    for mode in ("light", "dark"):
        tab.page.emulate_media(color_scheme=mode)
        assert tab.page.evaluate("book.faint()") == [], mode
    assert tab.page.evaluate("book.wide()") == []
    assert tab.trouble == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", ["real", "large"])
def test_in_a_card_the_title_leads_and_nothing_lies_on_anything(visit, which, width):
    cards = visit(which, width).page.evaluate("""() =>
        [...document.querySelectorAll(".chapter")].map((card) => [...card.children].map((child) => {
            const box = child.getBoundingClientRect();
            return { kind: child.className, box: [box.left, box.right, box.top, box.bottom] };
        }))""")
    assert len(cards) == {"real": len(STEMS), "large": 64}[which]
    for card in cards:
        for a, b in combinations(card, 2):
            assert not overlap(a["box"], b["box"]), (a, b)
        tops = [part["box"][2] for part in card if "picture" not in part["kind"]]
        assert len(tops) >= 2 and tops == sorted(tops)
        assert max(part["box"][1] - part["box"][0] for part in card) > 150  # not squeezed


@pytest.mark.parametrize("width", WIDTHS)
def test_a_size_stands_beside_its_circle(visit, width):
    sizes = visit("real", width).page.locator(".map-size").all()
    assert len(sizes) == 3
    for size in sizes:
        circle, words = (part.bounding_box() for part in size.locator("> span").all())
        middles = [box["y"] + box["height"] / 2 for box in (circle, words)]
        assert abs(middles[0] - middles[1]) < 2 and words["x"] > circle["x"]


@pytest.mark.parametrize("media", ["screen", "print"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_picture_of_a_chapter_is_whole(visit, width, media):
    page = visit("real", width).page
    page.emulate_media(media=media)
    for picture in page.locator(".chapter-picture").all():
        place, image = picture.bounding_box(), picture.locator("img:visible").bounding_box()
        assert image["height"] > 15
        for start, size in (("x", "width"), ("y", "height")):
            assert place[start] <= image[start] + 1
            assert image[start] + image[size] <= place[start] + place[size] + 1


def test_each_chapter_is_once_in_the_parts_and_each_of_a_network_once_on_the_map(site):
    html = BeautifulSoup((site / "index.html").read_bytes(), "html.parser")
    for where, stems in ((".map-networks > li > a", on_the_map()), (".chapter-title > a", STEMS)):
        expected = sorted(f"chapters/{stem}.html" for stem in stems)
        assert sorted(link["href"] for link in html.select(where)) == expected


def test_the_list_tells_the_idea_of_each_network(site):
    html = BeautifulSoup((site / "index.html").read_bytes(), "html.parser")
    for item in html.select(".map-networks > li"):
        assert len(item.select_one(".map-idea").text.split()) > 4
        assert re.match(
            r"[A-Z][a-z]+ \d{4} · (.* parameters|builds on )|draws together",
            item.select_one(".map-facts").text,
        )


def test_without_style_sheets_the_map_is_a_list(visit):
    tab = visit("real")
    tab.page.evaluate(
        "document.querySelectorAll('link[rel=stylesheet], style').forEach((e) => e.remove())"
    )
    ideas = tab.page.locator(".map-idea").all()
    assert len(ideas) == len(on_the_map()) and all(idea.is_visible() for idea in ideas)
    heights = [idea.bounding_box()["y"] for idea in ideas]
    assert heights == sorted(heights) and len(set(heights)) == len(heights)
    assert tab.page.locator(".map svg").first.bounding_box()["width"] == 0


def test_an_idea_is_shown_at_its_network_to_the_pointer_and_to_the_keyboard(visit):
    page = visit("real").page
    about = page.locator(".map-network", has_text="ResNet").first.locator(".map-about")
    link = page.locator(".map-network > a", has_text=re.compile("^ResNet$"))
    assert not about.is_visible()
    link.hover()
    assert about.is_visible()
    box = about.bounding_box()
    assert box["x"] >= 240 and box["x"] + box["width"] <= 1300
    about.hover()  # it stays while it is read
    assert about.is_visible()
    page.keyboard.press("Escape")
    assert not about.is_visible()
    page.mouse.move(5, 5)
    page.keyboard.press("Tab")  # from now on the focus shows
    link.focus()
    assert about.is_visible()
    ring = link.bounding_box()  # the ring is 4 pixels farther out
    assert about.bounding_box()["y"] >= ring["y"] + ring["height"] + 4
    page.keyboard.press("Enter")
    page.wait_for_url("**/chapters/resnet.html")


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_axe_finds_nothing_on_a_large_front_page(visit, mode):
    width = 390 if mode == "light" else 1300
    tab = visit("large", width, color_scheme=mode, reduced_motion="reduce")
    assert against(tab.page) == {}


def test_the_front_page_is_light_and_its_pictures_come_when_they_are_near(visit):
    tab = visit("large")
    sizes = tab.bytes()
    assert sizes["document"] < 40_000, sizes
    tab = visit("real")
    lazy = tab.page.eval_on_selector_all("main img", "all => all.map((i) => i.loading)")
    assert len(lazy) >= len(STEMS) and set(lazy) == {"lazy"}
    sizes = tab.bytes()
    images = sizes.pop("image")
    # the browser brings what is within 2,500 pixels, so far the pictures of all chapters
    assert sum(sizes.values()) <= 180_000, sizes
    assert images <= 6_500 * len(STEMS), images


def test_nothing_moves_when_the_pictures_come(visit):
    tab = visit("real", 390)
    assert sum(shift["value"] for shift in tab.page.evaluate("book.shifts")) < 0.01


def test_a_picture_of_a_chapter_only_adorns_and_has_its_dark_twin(visit):
    page = visit("real", color_scheme="dark").page
    for picture in page.locator(".chapter-picture").all():
        shown = [image for image in picture.locator("img").all() if image.is_visible()]
        assert len(shown) == 1
        assert shown[0].get_attribute("alt") == ""
        assert {"only-dark", "plate"} & set(shown[0].get_attribute("class").split())


def test_the_first_view_has_the_sentence_two_buttons_and_the_maps_first_part(visit):
    for width in (1300, 1920):
        page = visit("real", width).page
        assert page.locator("article p").first.bounding_box()["y"] < 200
        start, to_map = page.locator(".buttons a").all()
        assert start.get_attribute("href") == "chapters/lenet.html"
        assert page.locator(".map-plot").bounding_box()["y"] < 350
        names = page.locator(".map-part").first.locator(".map-network > a, .map-overview > a")
        boxes = [name.bounding_box() for name in names.all()]
        assert len(boxes) > 15  # the first part is whole; those below it come with scrolling
        assert max(box["y"] + box["height"] for box in boxes) < 900
        to_map.click()
        page.wait_for_function("() => location.hash === '#map'")


@pytest.mark.skipif("GITHUB_REPOSITORY" in os.environ, reason="the repository is known here")
def test_nothing_is_promised_that_this_build_has_not(site):
    text = (
        BeautifulSoup((site / "index.html").read_bytes(), "html.parser").select_one("article").text
    )
    assert "download" in text and "Colab" not in text


def test_an_old_link_to_the_time_line_leads_to_the_map(visit):
    tab = visit("real")
    tab.page.goto(tab.root + "timeline.html")
    tab.page.wait_for_url("**/index.html#map")
