"""The map: places that do not overlap, lines that lead where they should, and that it follows the cards."""

import re
from itertools import combinations, pairwise

import pytest

import made_up
from network_map import across, down
from network_map.layout import NARROWEST, Band, Node, half, set_radii
from sites import build, page, write_site

# ---- places ----------------------------------------------------------------------------------------


def year(month: str) -> float:
    return int(month[:4]) + (int(month[5:]) - 0.5) / 12


@pytest.fixture(scope="module", params=range(5))
def placed(request) -> dict:
    """A made-up book of 64, placed in both ways."""
    chapters = {c["stem"]: c for c in made_up.networks(request.param)}
    bands = {part: Band(part, []) for part in made_up.PARTS}
    for stem, chapter in chapters.items():
        node = Node(stem, chapter["name"], year(chapter["month"]), after=chapter["after"])
        if chapter["overview"]:
            whens = sorted(year(chapters[other]["month"]) for other in chapter["after"])
            node.when, node.until = whens[0], whens[-1]
        else:
            node.size = chapter["size"]
        bands[chapter["part"]].nodes.append(node)
    bands = list(bands.values())
    for band in bands:
        band.nodes.sort(key=lambda node: (node.until is not None, node.when, node.name))
    nodes = [node for band in bands for node in band.nodes]
    set_radii(nodes)
    scale = across.scale_of(node.when for node in nodes)
    height = across.place(bands, scale)
    _, paths = down.place(bands)
    return {"bands": bands, "nodes": nodes, "height": height, "down": paths}


def box(node: Node) -> tuple[float, float, float, float]:
    """Left, right, top and bottom on the narrowest page, in rem."""
    rem = NARROWEST / 100
    if node.until is not None:
        return node.x * rem, (node.x + node.wide) * rem, node.y, node.bottom
    wide = half(node) * rem
    return node.x * rem - wide, node.x * rem + wide, node.y - node.radius, node.bottom


def test_across_nothing_touches_anything_and_all_stay_on_the_page(placed):
    boxes = {node.key: box(node) for node in placed["nodes"]}
    for left, right, top, bottom in boxes.values():
        assert left >= -0.01 and right <= NARROWEST + 0.01
        assert top >= 0 and bottom <= placed["height"]
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        beside = a[1] <= b[0] + 1e-6 or b[1] <= a[0] + 1e-6
        assert beside or a[3] <= b[2] or b[3] <= a[2], (one, other)


def test_across_time_goes_to_the_right(placed):
    networks = sorted((n for n in placed["nodes"] if n.until is None), key=lambda n: n.when)
    inner = [n for n in networks if across.LEFT + 8 < n.x < across.RIGHT - 8]  # not held by an edge
    assert len(inner) > 40
    assert [n.x for n in inner] == sorted(n.x for n in inner)


def test_years_without_a_network_are_a_gap():
    scale = across.scale_of([1998.5, 2012.2, 2013.9])
    assert list(scale.starts) == [1998, 2012, 2013]
    assert scale(1998.5) < scale(2012.0) < scale(2013.0) < 100
    ((begin, wide),) = scale.gaps
    assert scale.starts[1998] + scale.year == pytest.approx(begin)
    assert begin + wide == pytest.approx(scale.starts[2012])


def test_a_larger_network_has_a_larger_circle_within_bounds():
    nodes = [Node(str(size), "", 2000, size=size) for size in (6e4, 7e6, 1.4e8)]
    set_radii(nodes)
    radii = [node.radius for node in nodes]
    assert radii == sorted(radii) and radii[0] < radii[1] < radii[2]
    assert (radii[0], radii[2]) == (pytest.approx(0.3), pytest.approx(1.05))


def test_a_line_goes_round_a_network_that_stands_between():
    nodes = [
        Node("a", "A", 2012.1),
        Node("b", "Between", 2013.5, after=["a"]),
        Node("c", "C", 2015.0, after=["a"]),
    ]
    across.place([Band("", nodes)], across.scale_of(node.when for node in nodes))
    assert nodes[2].y != nodes[0].y or nodes[1].y != nodes[0].y


def test_down_there_is_one_row_for_each_and_a_child_stands_below_its_parents(placed):
    for band in placed["bands"]:
        rows = [node.v for node in band.nodes]
        assert all(after - before == pytest.approx(down.ROW) for before, after in pairwise(rows))
    places = {node.key: node for node in placed["nodes"]}
    for parent, child in placed["down"]:
        assert places[parent].v < places[child].v


def test_down_no_line_passes_through_another_network_or_a_name(placed):
    """On a lane a line is upright; it may bend only between two rows."""
    places = {node.key: node for node in placed["nodes"]}
    indents = {node.key: band.indent for band in placed["bands"] for node in band.nodes}
    for (parent, child), path in placed["down"].items():
        assert max(ends(path)) < indents[child]
        for node in placed["nodes"]:
            if node.until is None and node.key not in (parent, child):
                assert not passes(path, node.u, node.v), (parent, child, node.key)
        start, end = places[parent], places[child]
        assert path.startswith(f"M{start.u:.2f} {start.v:.2f}")
        assert path.endswith(f"{end.v:.2f}")


def ends(path: str) -> list[float]:
    """The lanes in which a path is upright."""
    return [float(pair.split()[-2]) for pair in re.findall(r"[MC]([\d. ]+)", path)]


def passes(path: str, u: float, v: float) -> bool:
    """Whether an upright stretch of a path goes through a point."""
    x = y = 0.0
    for command, numbers in re.findall(r"([MVC])([\d. ]+)", path):
        values = [float(number) for number in numbers.split()]
        if command == "V":
            if abs(x - u) < 0.05 and y + 0.05 < v < values[0] - 0.05:
                return True
            y = values[0]
        else:
            x, y = values[-2:]
    return False


# ---- the list, and that it follows the cards --------------------------------------------------------

CONF = 'extensions = ["network_map"]\nhtml_theme = "basic"\nlocale_dirs = ["locale"]\n'
CONF += 'extensions += ["paper", "parts"]\n'
BIB = """
@misc{old, author = {A, A.}, title = {Old}, year = 1998, url = {https://a.org/old}}
@misc{new, author = {A, A.}, title = {New}, year = 2016, url = {https://a.org/new}}
@misc{also, author = {A, A.}, title = {Also new}, year = 2016, url = {https://a.org/also}}
"""
FILES = {
    # Not on the page of the toctrees: Sphinx writes that again with each of its chapters.
    "index.rst": "B\n=\n\n.. toctree::\n   :caption: Part\n   :glob:\n\n   chapters/*\n\n"
    ".. toctree::\n\n   maps/map\n",
    "maps/map.rst": "Map\n===\n\n.. map::\n\n   The *caption*.\n\n.. parts::\n",
    "chapters/a.rst": "New one\n=======\n\n.. paper:: new\n   :first: 2015-12\n   :after: b\n   :idea: *deeper*\n",
    "chapters/b.rst": "Old one\n=======\n\n.. paper:: old\n   :idea: share filters\n",
    "chapters/c.rst": "Also one\n========\n\n.. paper:: also\n   :idea: wider\n",
    "chapters/d.rst": "Both\n====\n\n.. overview:: a, c\n   :idea: side by side\n",
    "chapters/e.rst": "No card\n=======\n\nText.\n",
    "chapters/f.rst": "Digits\n======\n\n.. resource:: D <http://a.org>\n   :kind: data set\n   :idea: ten\n",
    "chapters/g.rst": "Sets\n====\n\n.. overview:: f\n   :idea: all of them\n",
    "references.bib": BIB,
}


def told(folder) -> list[tuple[str, str, str, str]]:
    """(year, name, idea, facts) of each network of the map."""
    items = page(folder, "maps/map").select(".map-networks > li")
    parts = (".map-when", "a", ".map-idea", ".map-facts")
    found = [[item.select_one(part) for part in parts] for item in items]
    return [tuple(tag.text.strip() if tag else "" for tag in tags) for tags in found]


def ideas(folder) -> dict[str, str]:
    """{chapter: idea} as the parts show them."""
    found = {}
    for item in page(folder, "maps/map").select("li.chapter"):
        idea = item.select_one(".chapter-idea")
        found[item.select_one(".chapter-title a").text] = idea.text if idea else ""
    return found


@pytest.fixture
def folder(tmp_path):
    folder = write_site(tmp_path, FILES, CONF)
    result = build(folder)
    assert (result.returncode, result.stderr) == (0, "")
    return folder


def test_the_map_tells_all_cards_in_the_order_of_time_and_follows_them(folder):
    assert told(folder) == [
        ("1998", "Old one", "share filters", ""),
        ("2015", "New one", "deeper", "December 2015 · builds on Old one"),
        ("2016", "Also one", "wider", ""),
        ("2015 to 2016", "Both", "side by side", "draws together New one and Also one"),
    ]
    shown = page(folder, "maps/map")
    assert shown.select_one(".map-networks a")["href"] == "../chapters/b.html"
    assert shown.select_one(".map-idea em").text == "deeper"
    assert shown.select_one(".map > p em").text == "caption"
    assert ideas(folder) == {
        "New one": "deeper",
        "Old one": "share filters",
        "Also one": "wider",
        "Both": "side by side",
        "No card": "",
        "Digits": "ten",
        "Sets": "all of them",
    }

    html = folder / "_build" / "html"

    def edit(name: str, old: str, new: str) -> set[str]:
        """Change a file, build, and return which of two pages were written again."""
        pages = ("maps/map", "chapters/e")
        before = [(html / f"{name}.html").stat().st_mtime_ns for name in pages]
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")
        result = build(folder, "-j", "2")
        assert (result.returncode, result.stderr) == (0, "")
        after = [(html / f"{name}.html").stat().st_mtime_ns for name in pages]
        return {name for name, old, new in zip(pages, before, after) if old != new}

    assert edit("chapters/b.rst", "share", "slide") == {"maps/map"}
    assert told(folder)[0][2] == "slide filters" == ideas(folder)["Old one"]
    edit("chapters/b.rst", "Old one", "Odd one")
    assert [line[1] for line in told(folder)][0] == "Odd one"
    assert told(folder)[1][3] == "December 2015 · builds on Odd one"
    edit("references.bib", "1998", "1997")
    assert told(folder)[0][0] == "1997"
    assert edit("chapters/e.rst", "Text.", "More text.") == {"chapters/e"}
    edit("chapters/d.rst", FILES["chapters/d.rst"], "Both\n====\n\nNo card.\n")
    assert [line[1] for line in told(folder)] == ["Odd one", "New one", "Also one"]
    assert ideas(folder)["Both"] == ""


def test_a_translated_idea_comes_into_the_map(tmp_path):
    header = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n'
    catalogue = header + 'msgid "share filters"\nmsgstr "共享 *卷积核*"\n'
    files = {**FILES, "locale/zh_CN/LC_MESSAGES/chapters.po": catalogue}
    folder = write_site(tmp_path, files, CONF)
    assert build(folder, "-D", "language=zh_CN").stderr == ""
    assert told(folder)[0][2] == "共享 卷积核" == ideas(folder)["Old one"]


def test_other_formats_have_the_list_and_no_drawing(folder):
    doctrees = ("-d", str(folder / "_build" / "doctrees"))
    result = build(folder, "-b", "text", *doctrees, out="text")
    assert (result.returncode, result.stderr) == (0, "")
    text = (folder / "_build" / "text" / "maps" / "map.txt").read_text(encoding="utf-8")
    assert re.search(r"1998 Old one\n\s+share filters", text)
    assert "December 2015 · builds on Old one" in text
    assert "caption" not in text  # it explains the drawing
    assert "* Also one 2016" in text


def test_without_any_card_it_is_a_warning_at_its_line(tmp_path):
    files = {"index.rst": "B\n=\n\n.. map::\n"}
    result = build(write_site(tmp_path, files, CONF))
    assert result.returncode != 0
    assert "index.rst:4: WARNING: map: no chapter has a card" in result.stderr
