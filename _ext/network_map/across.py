"""The map of a wide page: time runs across, bands lie below each other, and in them rows."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from network_map.layout import CAPTION, NARROWEST, Band, Lines, Node

LEFT, RIGHT = 3.0, 96.0  # percent between which the years lie
GAP = 0.45  # width of years without any network, in years
LINE = 1.2  # height of a line of a name
CHARACTER = 0.52  # width of a character of a name, on the generous side
WIDEST = 7.5  # a name that is longer is broken
BAR = 1.9  # height of an overview with the space around it
PASSES = 4


@dataclass
class Scale:
    """Where years lie, in percent: those without any network are one narrow gap."""

    starts: dict[int, float]
    gaps: list[tuple[float, float]]  # begin and width
    year: float  # width

    def __call__(self, when: float) -> float:
        return self.starts[int(when)] + when % 1 * self.year


def scale_of(whens: Iterable[float]) -> Scale:
    years = sorted({int(when) for when in whens})
    starts, gaps, at = {}, [], 0.0
    for before, year in zip([years[0], *years], years):
        if year > before + 1:
            gaps.append(at)
            at += GAP
        starts[year] = at
        at += 1
    width = (RIGHT - LEFT) / at
    return Scale(
        {year: LEFT + width * start for year, start in starts.items()},
        [(LEFT + width * gap, width * GAP) for gap in gaps],
        width,
    )


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


def half(node: Node) -> float:
    """Half of the width of a network and its name, in percent of the narrowest page."""
    name = max(len(line) for line in broken(node.name)) * CHARACTER
    return (max(name, 2 * node.radius) / 2 + 0.3) / NARROWEST * 100


def place(bands: list[Band], scale: Callable[[float], float]) -> float:
    """Places for all; returns the height of the map."""
    y = 0.0
    for band in bands:
        band.y = y
        y = place_rows(band.networks, scale, y + CAPTION)
        y = place_bars(band.overviews, scale, y)
    return y


def place_rows(networks: list[Node], scale: Callable[[float], float], y: float) -> float:
    for node in networks:  # a name may not leave the page
        node.x = min(max(scale(node.when), half(node)), 100 - half(node))
    rows = choose_rows(networks)
    for row in sorted(set(rows.values())):
        inside = [node for node in networks if rows[node.key] == row]
        largest = max(node.radius for node in inside)
        for node in inside:
            node.y = y + largest
            node.bottom = node.y + node.radius + LINE * len(broken(node.name))
        y = max(node.bottom for node in inside) + 0.5
    return y


def choose_rows(networks: list[Node]) -> dict[str, int]:
    """A row for each network: one after the other, then each again in sight of all others.

    Of two that came at the same time the one goes first whose line is longer.
    """
    rows: dict[str, int] = {}
    known = {node.key: node.x for node in networks}
    begin = {
        node.key: min([known.get(key, node.x) for key in node.after] or [node.x])
        for node in networks
    }
    for _ in range(PASSES):
        for node in sorted(networks, key=lambda node: (node.x, begin[node.key])):
            others = [other for other in networks if other.key in rows and other is not node]
            rows[node.key] = calmest_row(node, others, rows)
    return rows


def calmest_row(node: Node, others: list[Node], rows: dict[str, int]) -> int:
    """Of the rows that have room, and one more on each side, the one with the calmest lines."""
    used = {rows[other.key] for other in others} or {0}
    near = [other for other in others if abs(node.x - other.x) < half(node) + half(other)]
    free = set(range(min(used) - 1, max(used) + 2)) - {rows[other.key] for other in near}
    own = [(other, node) for other in others if other.key in node.after]
    own += [(node, other) for other in others if node.key in other.after]
    over = [  # lines that pass over or under it
        (start, end)
        for end in others
        for start in others
        if start.key in end.after and start.x < node.x < end.x
    ]

    def cost(row: int) -> tuple[float, int, int]:
        tried = {**rows, node.key: row}
        steps = sum(abs(tried[start.key] - tried[end.key]) for start, end in own)
        touched = sum(touches(start, end, others, tried) for start, end in own)
        touched += sum(touches(start, end, [node], tried) for start, end in over)
        return 3 * touched + steps + 0.5 * (row not in used), abs(row), row

    return min(free, key=cost)


def touches(start: Node, end: Node, networks: list[Node], rows: dict[str, int]) -> int:
    """How many networks and names the line between two would touch."""
    points = []
    for step in range(1, 16):
        t = step / 16
        ease = t * t * (3 - 2 * t)  # level at both ends, as the line is drawn
        y = rows[start.key] + (rows[end.key] - rows[start.key]) * ease
        points.append((start.x + (end.x - start.x) * t, y))
    return sum(
        any(abs(x - node.x) < half(node) and -0.3 < y - rows[node.key] < 0.7 for x, y in points)
        for node in networks
        if node is not start and node is not end
    )


def place_bars(overviews: list[Node], scale: Callable[[float], float], y: float) -> float:
    """A bar for each overview, from the first to the last network that it draws together."""
    ends: list[float] = []  # of the last bar in each row
    for node in overviews:
        name = (len(node.name) * CHARACTER + 1.6) / NARROWEST * 100
        left, right = scale(node.when), scale(node.until)
        node.wide = max(right - left, name)
        node.x = max(0.0, min(left, 100 - node.wide))
        row = next((row for row, last in enumerate(ends) if last + 1 < node.x), len(ends))
        ends[row : row + 1] = [node.x + node.wide]
        node.y = y + row * BAR
        node.bottom = node.y + BAR - 0.3
    return y + len(ends) * BAR + 0.4


def lines(bands: list[Band]) -> Lines:
    known = {node.key: node for band in bands for node in band.networks}
    paths = {}
    for node in known.values():
        for parent in (known[key] for key in node.after if key in known):
            middle = (parent.x + node.x) / 2
            start, end = f"{parent.x:.2f} {parent.y:.2f}", f"{node.x:.2f} {node.y:.2f}"
            bend = f"{middle:.2f} {parent.y:.2f} {middle:.2f} {node.y:.2f}"
            paths[parent.key, node.key] = f"M{start}C{bend} {end}"
    return paths
