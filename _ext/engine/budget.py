"""What the notebooks cost: CPU seconds of their last runs, the dearest cells of each; ``make budget``.

A notebook aims at ``AIM`` CPU seconds after its imports and may take ``LIMIT``, and the mean of the book
stays below ``AIM``; those in ``MORE``, which need more to show anything, may take what it gives them
and do not count in the mean. Load alone makes the same run dearer by a fifth to a half
and more, so that a test fails only above ``far``; measure on an idle machine, one thread to a kernel.
"""

import sys
from pathlib import Path
from statistics import fmean

from nbformat import NotebookNode

from .notebook import code_cells, tags
from .store import Store

AIM, LIMIT = 25, 45
MORE = {
    "bloom": 90,
    "diffusion": 90,
    "squad": 90,
    "stable_diffusion": 90,
    "tacotron": 70,
    "tacotron2": 90,
}
FAR = 70
SHOWN = 3  # cells of each notebook


def usual(costs: dict[str, float]) -> list[float]:
    """What the notebooks cost that count in the book's mean: all but those in ``MORE``."""
    return [cpu for stem, cpu in costs.items() if stem not in MORE]


def pace(costs: dict[str, float]) -> float:
    """How much dearer this machine and its load make the book, at least 1: seconds are no fixed unit.

    costs: CPU seconds of notebooks by stem. Their mean is compared with what it aims at.
    """
    counted = usual(costs)
    return max(1.0, fmean(counted) / AIM) if counted else 1.0


def far(stem: str, pace: float = 1.0) -> float:
    """CPU seconds that a notebook's run does not reach even under load, on a machine of that pace."""
    return pace * FAR * MORE.get(stem, LIMIT) / LIMIT


def dearest(nb: NotebookNode) -> str:
    """The cells that cost most, by their first tag or number, with their CPU seconds."""
    named = []
    for number, cell in enumerate(code_cells(nb), 1):
        name = next(iter(tags(cell)), f"code cell {number}")
        named.append((cell.metadata.get("cpu", 0), name))
    named.sort(key=lambda pair: -pair[0])
    return ", ".join(f"{name} {seconds:.1f}" for seconds, name in named[:SHOWN])


def report(stems: list[str], store: Store) -> str:
    """A line for each notebook that has run, dearest first, and what is above the limit."""
    rows, missing = [], []
    for stem in stems:
        nb = store.load(store.last(stem).get("key", ""), stem)
        if nb is None:
            missing.append(stem)
        else:
            rows.append((nb.metadata["book"]["cpu"], stem, dearest(nb)))
    rows.sort(reverse=True)
    width = max((len(stem) for _, stem, _ in rows), default=0)
    lines = [f"{stem:{width}}  {cpu:5.1f}  {cells}" for cpu, stem, cells in rows]
    if rows:
        counted = usual({stem: cpu for cpu, stem, _ in rows})
        above = [stem for cpu, stem, _ in rows if cpu > MORE.get(stem, LIMIT)]
        if counted:
            mean = f"mean {fmean(counted):.1f} CPU s of {len(counted)} notebooks"
            lines.append(f"{mean}, the aim is {AIM}")
        lines.append(f"above its limit: {', '.join(above) or 'none'}")
    if missing:
        lines.append(f"not run yet (make html): {', '.join(missing)}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        sys.exit("usage: python -m engine.budget NOTEBOOKS STORE")
    stems = sorted(path.stem for path in Path(arguments[0]).glob("*.py"))
    print(report(stems, Store(Path(arguments[1]))))


if __name__ == "__main__":
    main(sys.argv[1:])
