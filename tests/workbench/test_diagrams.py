"""Boxes, words and the arrows between them."""

import re

import pytest
from matplotlib import pyplot as plt

from figures import has_twin
from workbench import diagrams, plots
from workbench.diagrams import Node

COLUMN = {
    "x": Node(1, 0.3, "$x$"),
    "one": Node(1, 0.9, "3×3", 1.2),
    "two": Node(1, 1.6, "1×1", 0.9),
}


@pytest.fixture
def axes():
    yield diagrams.sheet(3)
    plt.close("all")


def ends(axes) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Where the last piece of each arrow starts and ends, in inches."""
    arrows = [text for text in axes.texts if getattr(text, "arrow_patch", None)]
    return [(arrow.xyann, arrow.xy) for arrow in arrows]


def test_a_sheet_is_measured_in_inches_from_the_top_left_corner(axes):
    assert axes.figure.get_size_inches().tolist() == [5, 3]
    corners = axes.transData.transform([(0, 0), (5, 3)]) / axes.figure.dpi
    assert corners.tolist() == [[0, 3], [5, 0]]


def test_an_arrow_goes_straight_down_from_edge_to_edge(axes):
    diagrams.draw(axes, COLUMN, [("x", "one"), ("one", "two")])
    for (start, end), names in zip(ends(axes), (("x", "one"), ("one", "two"))):
        above, below = (COLUMN[name] for name in names)
        assert start == pytest.approx((1, above.y + above.height / 2))
        assert end == pytest.approx((1, below.y - below.height / 2))


def test_an_arrow_up_leaves_at_the_top(axes):
    diagrams.draw(axes, COLUMN, [("two", "one")])
    ((start, end),) = ends(axes)
    assert 1.6 > start[1] > end[1] > 0.9


def test_boxes_that_face_each_other_in_part_are_joined_by_a_straight_arrow(axes):
    nodes = {"a": Node(1, 0.5, "a", 1), "b": Node(1.4, 1.5, "b", 1)}
    diagrams.draw(axes, nodes, [("a", "b")])
    ((start, end),) = ends(axes)
    assert start[0] == end[0] == pytest.approx(1.2)


def test_boxes_apart_are_joined_from_middle_to_middle(axes):
    nodes = {"a": Node(1, 0.5, "a", 0.8), "b": Node(3, 1.5, "b", 0.8)}
    diagrams.draw(axes, nodes, [("a", "b")])
    ((start, end),) = ends(axes)
    assert (start[0], end[0]) == (1, 3)


@pytest.mark.parametrize("width", [0, 1.2])
def test_beside_each_other_they_are_joined_from_side_to_side(axes, width):
    nodes = {"a": Node(1, 1, "left", width), "b": Node(4, 1, "right", width)}
    diagrams.draw(axes, nodes, [("a", "b")])
    ((start, end),) = ends(axes)
    renderer, dpi = axes.figure.canvas.get_renderer(), axes.figure.dpi
    words = [text.get_window_extent(renderer) for text in axes.texts[:2]]
    assert start[1] == end[1] == 1
    assert words[0].x1 / dpi < start[0] <= 1.6 and 3.4 <= end[0] < words[1].x0 / dpi


def test_a_shortcut_passes_its_corners_and_has_a_colour_of_its_own(axes):
    nodes = {**COLUMN, "+": Node(1, 2.4, "+")}
    path = ((1, 0.5), (2, 0.5), (2, 2.4), "+")
    diagrams.draw(axes, nodes, [("two", "+")], [path])
    line = axes.lines[-1]
    assert line.get_xydata().tolist() == [[1, 0.5], [2, 0.5], [2, 2.4]]
    assert line.get_color() == plots.COLOURS[1] != axes.lines[0].get_color()
    start, end = ends(axes)[-1]
    assert start == (2, 2.4) and 1 < end[0] < 1.3 and end[1] == 2.4


def test_words_lie_in_their_boxes_and_stay_text_in_colours_of_both_pages(axes, tmp_path):
    nodes = {"a": Node(1, 1, "3×3, 128,\n32 groups", 1.0), "b": Node(3, 1, "1×1, 256", 0.9)}
    diagrams.draw(axes, nodes, [("a", "b")])
    renderer = axes.figure.canvas.get_renderer()
    for text, box in zip(axes.texts, axes.patches):
        inner, outer = text.get_window_extent(renderer), box.get_window_extent(renderer)
        assert outer.x0 < inner.x0 and inner.x1 < outer.x1
        assert outer.y0 < inner.y0 and inner.y1 < outer.y1
    plt.savefig(tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text()
    assert has_twin(svg)
    assert {"3×3, 128,", "1×1, 256"} <= set(re.findall(r"<text[^>]*>([^<]+)</text>", svg))
