"""The map of a narrow page: time runs down, a row for each network, in one band after the other.

Lines of descent run in lanes at the left of the names, as in a graph of commits; one that leads from
another part of the book is told in words only.
"""

from network_map.layout import CAPTION, LARGEST, Band, Lines, Node

YEAR = 3.2  # width of the years at the left
SMALLER = 0.55  # radii, of those on a wide page; as in book.css
LANE, LANES = 1.3, 5.2  # width of a lane, and of all lanes at most
ROW = 2.4  # as in book.css
LEFT = YEAR + LARGEST * SMALLER  # of the first lane

Place = tuple[int, int]  # lane and row


class Lanes:
    """Which lanes of a band are taken in which rows."""

    def __init__(self):
        self.taken: set[Place] = set()
        self.count = 1

    def free(self, lane: int, rows: range) -> bool:
        return not any((lane, row) in self.taken for row in rows)

    def take(self, rows: range, wanted: list[int]) -> int:
        """The first of the wanted lanes, else of all, that is free in these rows."""
        lane = next(n for n in [*wanted, *range(self.count + 1)] if self.free(n, rows))
        self.taken |= {(lane, row) for row in rows}
        self.count = max(self.count, lane + 1)
        return lane


def place(bands: list[Band]) -> tuple[float, Lines]:
    """Places for all; returns the height of the map, and the lines."""
    v, paths = 0.0, {}
    for band in bands:
        band.v = v
        v = place_band(band, paths)
    return v, paths


def place_band(band: Band, paths: Lines) -> float:
    lanes, at, routes = Lanes(), {}, {}
    for row, node in enumerate(band.networks):
        at[node.key], routes[node.key] = route(node, row, at, lanes)
    top, lane = band.v + CAPTION + ROW / 2, min(LANE, LANES / max(lanes.count - 1, 1))

    def point(place: Place) -> tuple[float, float]:
        return LEFT + place[0] * lane, top + place[1] * ROW

    for row, node in enumerate(band.nodes):
        node.u, node.v = point(at.get(node.key, (0, row)))
        for key, stops in routes.get(node.key, {}).items():
            paths[key, node.key] = wire([point(stop) for stop in stops])
    band.indent = LEFT + (lanes.count - 1) * lane + LARGEST * SMALLER + 0.4
    return band.v + CAPTION + len(band.nodes) * ROW + 0.5


def route(
    node: Node, row: int, at: dict[str, Place], lanes: Lanes
) -> tuple[Place, dict[str, list[Place]]]:
    """The place of a network, and by which places lines come to it.

    It goes on in the lane of the first parent that has room below; otherwise its lane begins below
    the first. The other lines run in the lane of their parent, if it has room, until the last row.
    """
    parents = {key: at[key] for key in node.after if key in at}
    below = {key: range(place[1] + 1, row + 1) for key, place in parents.items()}
    straight = [key for key, place in parents.items() if lanes.free(place[0], below[key])]
    first = next(iter([*straight, *parents]), None)
    rows = below[first] if first else range(row, row + 1)
    lane = lanes.take(rows, [parents[key][0] for key in straight[:1]])
    end, stops = (lane, row), {}
    for key, start in parents.items():
        by = lane if key == first else lanes.take(below[key][:-1], [start[0]])
        bend_out, bend_in = (by, start[1] + 1), (by, row - 1)
        between = [bend_out] if by == lane else [bend_out, bend_in]
        stops[key] = [start, *(between if start[1] + 1 < row else []), end]
    return end, stops


def wire(points: list[tuple[float, float]]) -> str:
    """A path that is upright at each of the points."""
    path = "M{:.2f} {:.2f}".format(*points[0])
    for (x, y), (new_x, new_y) in zip(points, points[1:]):
        if x == new_x:
            path += f"V{new_y:.2f}"
        else:
            middle = (y + new_y) / 2
            path += f"C{x:.2f} {middle:.2f} {new_x:.2f} {middle:.2f} {new_x:.2f} {new_y:.2f}"
    return path
