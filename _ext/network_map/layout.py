"""What stands on the map, and where: time across on a wide page, time down on a narrow one.

Lengths are in rem. Across, ``x`` is in percent of the width: a page may be wider than ``NARROWEST``,
and names that do not touch there touch nowhere. Nothing here knows Sphinx or HTML.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache

NARROWEST = 44.0  # width from which time runs across; as in book.css
CAPTION = 2.0  # height of the name of a band
SMALLEST, LARGEST = 0.3, 1.05  # radii, across
CHARACTER = 0.52  # width of a character of a name, on the generous side
WIDEST = 7.5  # a name that is longer is broken


@dataclass
class Node:
    """A network, or an overview, which has no size and reaches over some years."""

    key: str
    name: str
    when: float  # years
    until: float | None = None  # of an overview
    size: float | None = None
    after: list[str] = field(default_factory=list)

    radius: float = 0.5
    x: float = 0.0  # across: percent, of the centre; of an overview, of its left end
    wide: float = 0.0  # percent, of an overview
    y: float = 0.0
    bottom: float = 0.0  # where what is said about it may stand
    u: float = 0.0  # down
    v: float = 0.0


@dataclass
class Band:
    """A part of the book: its networks in the order of time, then its overviews."""

    caption: str
    nodes: list[Node]
    y: float = 0.0
    v: float = 0.0
    indent: float = 0.0  # down: where the names begin

    @property
    def networks(self) -> list[Node]:
        return [node for node in self.nodes if node.until is None]

    @property
    def overviews(self) -> list[Node]:
        return [node for node in self.nodes if node.until is not None]


Lines = dict[tuple[str, str], str]  # (from, to): the path of a line of descent, as SVG writes it


def set_radii(nodes: list[Node]) -> None:
    logs = logarithms(nodes)
    for node in nodes:
        if node.size:
            node.radius = radius(node.size, logs)


def logarithms(nodes: list[Node]) -> list[float]:
    return [math.log10(node.size) for node in nodes if node.size]


def radius(size: float, logs: list[float]) -> float:
    """It grows with the logarithm of the size, from the smallest on the map to the largest."""
    span = max(logs) - min(logs)
    place = (math.log10(size) - min(logs)) / span if span else 0.5
    return SMALLEST + (LARGEST - SMALLEST) * place


def broken(name: str) -> list[str]:
    """The name in lines, broken between words."""
    lines = [""]
    for word in name.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and len(longer) * CHARACTER > WIDEST:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


@lru_cache(maxsize=512)
def width(name: str) -> float:
    return max(map(len, broken(name))) * CHARACTER


def half(node: Node) -> float:
    """Half of the width of a network and its name, in percent of the narrowest page."""
    return (max(width(node.name), 2 * node.radius) / 2 + 0.3) / NARROWEST * 100
