"""In which row a network stands, where time runs across: lines of descent shall be calm."""

from functools import lru_cache

from network_map.layout import Node, half

PASSES = 4
ABOVE, BELOW = 0.3, 0.7  # what a network takes of its row, above and below its circle's middle


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
        before = dict(rows)
        for node in sorted(networks, key=lambda node: (node.x, begin[node.key])):
            others = [other for other in networks if other.key in rows and other is not node]
            rows[node.key] = calmest_row(node, others, rows)
        if rows == before:
            break
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
    first, steps = rows[start.key], rows[end.key] - rows[start.key]
    count, long = 0, end.x - start.x
    for node in networks:
        left, right = max(start.x, node.x - half(node)), min(end.x, node.x + half(node))
        if left < right and node is not start and node is not end:
            there = [
                first + steps * height(round((x - start.x) / long * 100)) - rows[node.key]
                for x in (left, right)
            ]
            count += min(there) < BELOW and max(there) > -ABOVE
    return count


@lru_cache(maxsize=101)
def height(hundredth: int) -> float:
    """How far down a line is, of 1, at each hundredth of its way across: as `across.lines` draws it."""
    low, high = 0.0, 1.0
    for _ in range(20):
        t = (low + high) / 2
        low, high = (t, high) if 1.5 * t - 1.5 * t**2 + t**3 < hundredth / 100 else (low, t)
    return t * t * (3 - 2 * t)
