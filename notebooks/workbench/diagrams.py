"""Diagrams of a block: boxes and words, and the arrows between them."""

from typing import NamedTuple

import matplotlib.pyplot as plt

from workbench.plots import COLOURS, INK, QUIET

LINE = 0.18  # inches from one line of text to the next
ROOM = 0.15  # inches that an arrow stays away from the corner of a box


class Node(NamedTuple):
    """A text in a box, or without one; its middle stands x and y inches from the top left corner."""

    x: float
    y: float
    text: str = ""
    width: float = 0  # of the box
    colour: str = INK  # of the text
    weight: str = "normal"

    @property
    def height(self) -> float:
        lines = self.text.split("\n") if self.text else []
        return LINE * len(lines) + (0.16 if self.width else 0.06 * bool(lines))

    @property
    def span(self) -> float:
        """The width of its box, or about that of its words."""
        longest = max(map(len, self.text.replace("$", "").split("\n")))
        return self.width or (0.1 + 0.09 * longest if self.text else 0)


def sheet(height: float):
    """Axes of a figure that is 5 inches wide, in inches from its top left corner."""
    _, axes = plt.subplots(figsize=(5, height), layout="none")
    axes.set(position=(0, 0, 1, 1), xlim=(0, 5), ylim=(height, 0))
    axes.axis("off")
    return axes


def draw(axes, nodes: dict[str, Node], arrows=(), shortcuts=()) -> None:
    """Draw nodes and arrows on a sheet; shortcuts are arrows in a colour of their own.

    An arrow is a sequence of two or more places, each the name of a node or a point (x, y). It
    leaves and meets nodes at their edges, straight down or across where they face each other.
    """
    for node in nodes.values():
        style = {"color": node.colour, "weight": node.weight, "fontsize": 11}
        axes.text(node.x, node.y, node.text, ha="center", va="center", **style)
        if node.width:
            corner = node.x - node.width / 2, node.y - node.height / 2
            box = plt.Rectangle(
                corner, node.width, node.height, fill=False, edgecolor=COLOURS[0]
            )
            axes.add_patch(box)
    for paths, colour, width in ((arrows, QUIET, 1), (shortcuts, COLOURS[1], 1.5)):
        head = {
            "arrowstyle": "->",
            "color": colour,
            "linewidth": width,
            "shrinkA": 0,
            "shrinkB": 0,
        }
        for path in paths:
            places = [
                nodes[place] if isinstance(place, str) else Node(*place)
                for place in path
            ]
            points = [edge(places[0], places[1]), *((p.x, p.y) for p in places[1:-1])]
            end = edge(places[-1], places[-2])
            axes.plot(
                *zip(*points),
                color=colour,
                linewidth=width,
                solid_capstyle="projecting",
            )
            axes.annotate("", end, points[-1], arrowprops=head)


def edge(node: Node, other: Node) -> tuple[float, float]:
    """Where an arrow between two nodes meets the edge of the first."""
    below, right = (1 if other.y > node.y else -1), (1 if other.x > node.x else -1)
    x = shared(node.x, node.width, other.x, other.width)
    if x is None and shared(node.y, node.height, other.y, other.height) is not None:
        return node.x + right * node.span / 2, node.y
    return node.x if x is None else x, node.y + below * node.height / 2


def shared(a: float, a_size: float, b: float, b_size: float) -> float | None:
    """The middle of what two ranges around a and b have in common without their ends, if anything."""
    reach = [max(size / 2 - ROOM, 0) for size in (a_size, b_size)]
    low = max(a - reach[0], b - reach[1])
    high = min(a + reach[0], b + reach[1])
    return (low + high) / 2 if low < high + 1e-6 else None
