"""What the notebooks share: here device and seed, what a run records, shows and claims.

A package of plain functions, one subject a part, and a notebook imports the parts that it uses:

    from workbench import device, record, seed, table
    from workbench import checks, counting, plots, training

In this repository it lies beside the notebooks; a notebook downloaded from the site carries the
parts that it needs in its first cell and writes them to disk, so nothing has to be installed but
public packages. An environment variable chooses what a run uses:

PROFILE     "sample" (default): real data that ships inside installed packages, no network.
            "full": the complete data sets, see ``archives``.
"""

import html
import math
import numbers
import os
import random
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from torch import nn

PROFILE = os.environ.get("PROFILE", "sample")
if PROFILE not in ("sample", "full"):
    raise ValueError(f"PROFILE must be 'sample' or 'full', not {PROFILE!r}")
BUILDING = (
    os.environ.get("BOOK_BUILD") == "1"
)  # set while the site is built: no progress bars
RESULT = "application/vnd.book.result+json"  # the MIME type under which `record` leaves a value

SCRIPT = None  # the file that plain Python runs, where there is no kernel
if not InteractiveShell.initialized():
    SCRIPT = getattr(sys.modules["__main__"], "__file__", None)
    InteractiveShell.instance()  # without a shell `display` prints all that it is given

_accelerator = torch.accelerator.is_available()
device = (
    torch.accelerator.current_accelerator() if _accelerator else torch.device("cpu")
)
torch.backends.cudnn.allow_tf32 = False  # equality tests need full float32
torch.backends.cudnn.deterministic = True
warnings.filterwarnings(
    "ignore", "IProgress not found"
)  # timm imports tqdm.auto, no bar is shown
sources: list[
    str
] = []  # what data this run has read, for the foot of the page; text, no markup
recorded: set[str] = set()  # the names that `record` has been given


def seed(number: int = 0) -> None:
    """Seed Python, NumPy and torch on every device, so that two runs print the same numbers."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def record(name: str, value) -> None:
    """Keep a value of this run under a name: the chapter's text quotes it from there.

    value: a finite number, a string, a bool, or a tensor or array of one element. A second value
    under one name is an error while the site is built, where every cell runs once and the first
    would be lost; by hand a cell may run again as often as one likes.
    """
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, (int, float, str)):
        raise TypeError(
            f"record({name!r}): a number or string is needed, not {type(value)}"
        )
    if not isinstance(value, str):
        finite([value], f"record({name!r})")
    if BUILDING and name in recorded:
        raise ValueError(
            f"record({name!r}): this name has a value already, choose another one"
        )
    recorded.add(name)
    display({RESULT: {"name": name, "value": value}}, raw=True)


def finite(values: Iterable[float], who: str = "finite") -> list[float]:
    """The numbers as a list; ValueError, which begins with `who`, if one is NaN or infinite.

    Ask for it in front of `max`, `min` and `sorted`: they pass over a NaN, max(0, nan) is 0.
    """
    values = list(values)
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"{who}: a finite number is needed, not {value}")
    return values


def record_spread(name: str, values) -> None:
    """Keep the mean of several seeds under a name, the ends under name.least and name.most."""
    values = finite(values, f"record_spread({name!r})")
    record(name, sum(values) / len(values))
    record(f"{name}.least", min(values))
    record(f"{name}.most", max(values))


def spread(values, form: str) -> str:
    """The mean of several seeds, and the smallest and largest of them, in words for a table."""
    values = finite(values, "spread")
    return f"{sum(values) / len(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def claim(condition, words: str) -> None:
    """Hold what a run has shown to its words; a claim that is true leaves no output.

    condition: a bool, or a tensor or array of one. A number is refused: NaN would pass for true. The
    book speaks of its own run, of the sample profile on the CPU: while the site is built so, a false
    claim is an AssertionError. By hand, with other data or on another device it prints a line: the
    rounding of another processor alone moves what a training gives.
    """
    if not isinstance(words, str) or not words.strip():
        raise ValueError("claim: say in words what was shown")
    single = hasattr(condition, "item") and math.prod(condition.shape) == 1
    shown = condition.item() if single else condition
    if not isinstance(shown, bool):
        raise TypeError(f"claim({words!r}): one bool is needed, not {shown!r:.60}")
    if shown:
        return
    if BUILDING and PROFILE == "sample" and device.type == "cpu":
        raise AssertionError(words)
    print(f"not shown in this run (profile {PROFILE}, {device}): {words}")


def written(value) -> str:
    """A value as a table shows it: yes or no, an integer with separators, else its own text."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, numbers.Integral) else str(value)


def table(rows, columns: tuple[str, ...]) -> None:
    """Show rows of plain text and numbers under column heads, numbers at the right."""
    rows = [[written(value) for value in row] for row in rows]
    numeric = [
        all(any(c.isdigit() for c in v[:2]) for v in column) for column in zip(*rows)
    ]
    sides = ["right" if number else "left" for number in numeric]

    def line(tag: str, values) -> str:
        cell = '<{0} style="text-align: {1}">{2}</{0}>'.format
        cells = [
            cell(tag, side, html.escape(value)) for side, value in zip(sides, values)
        ]
        return f"<tr>{''.join(cells)}</tr>"

    head, body = line("th", columns), "".join(line("td", row) for row in rows)
    page = (
        f'<table class="dataframe"><thead>{head}</thead><tbody>{body}</tbody></table>'
    )
    widths = [max(map(len, column)) for column in zip(columns, *rows)]
    text = "\n".join(
        "  ".join(v.ljust(w) for v, w in zip(row, widths)) for row in [columns, *rows]
    )
    display({"text/html": page, "text/plain": text}, raw=True)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Have models in evaluation mode inside; every module gets its own mode back, error or not."""
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
