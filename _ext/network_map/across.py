"""The map of a wide page: time runs across, bands lie below each other, and in them rows."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from network_map.layout import CAPTION, CHARACTER, NARROWEST, Band, Lines, Node, broken, half
from network_map.rows import choose_rows

LEFT, RIGHT = 3.0, 96.0  # percent between which the years lie
GAP = 0.45  # width of years without any network, in years
LINE = 1.2  # height of a line of a name
BAR = 1.9  # height of an overview with the space around it


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
