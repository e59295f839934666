"""Figures: their style, names at the ends of lines, bands of seeds, rows of pictures.

Importing it sets the style. In a notebook that is run as a script, ``python vgg.py``, the figures are
saved when it ends.
"""

import atexit
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import Tensor

import workbench


# The hues of Okabe and Ito 2008, of a contrast of 4.5 on white so that words can be read in them, and
# as far apart as that allows for protan and deutan eyes too (as Machado et al. 2009 model them).
COLOURS = ("#0a58a0", "#c04a00", "#3b7f5b", "#831a60", "#6a3f00", "#387ca1")
INK, QUIET, GRID = "#1d2430", "#566171", "#d8dde4"  # text; axes and units; lines behind
STYLE = {
    "figure.figsize": (5, 3),
    "figure.dpi": 96,  # a page's pixels
    "figure.constrained_layout.use": True,
    "font.sans-serif": [
        "DejaVu Sans"
    ],  # for the layout; readers without it have their own
    "font.size": 12,  # 5 inches become a phone's 350 pixels: 12 points become 12 pixels
    "axes.labelsize": 12,
    "axes.titlesize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "text.color": INK,
    "grid.color": GRID,
    "lines.linewidth": 2,
    "image.cmap": "gray",
    "image.interpolation": "none",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "book",  # the same figure gives the same bytes
}
plt.rcParams.update(STYLE)


def save_figures(stem: str) -> None:
    """Save the open figures as figures/<stem>-<number>.svg in the working folder and say so."""
    if not plt.get_fignums():
        return
    folder = Path("figures")
    folder.mkdir(exist_ok=True)
    for number in plt.get_fignums():
        plt.figure(number).savefig(
            folder / f"{stem}-{number}.svg", metadata={"Date": None}
        )
    print(
        f"{len(plt.get_fignums())} figures are saved as {folder.absolute() / stem}-*.svg"
    )


# A notebook that is run as a script, by plain Python, has nobody who shows its figures.
_beside = Path(__file__).resolve().parent.parent
if workbench.SCRIPT and Path(workbench.SCRIPT).resolve().parent == _beside:
    plt.switch_backend("agg")  # opens no windows
    plt.rcParams["figure.max_open_warning"] = 0  # they stay open until the end
    atexit.register(save_figures, Path(workbench.SCRIPT).stem)
# Figures keep their size; the site shows the smaller of the two forms.
set_matplotlib_formats("svg", "retina", bbox_inches=None, metadata={"Date": None})


def label_ends(
    axes, ends: dict[str, tuple[float, float]], colours=COLOURS, gap: float = 15
) -> None:
    """Write each name beside the end (x, y) of its line, within the axes, `gap` points apart."""
    axes.autoscale_view()
    axes.figure.draw_without_rendering()  # so that data have their place in points
    points = 72 / axes.figure.dpi
    wanted = np.array(
        [axes.transData.transform(end)[1] * points for end in ends.values()]
    )
    order, steps = wanted.argsort(), gap * np.arange(len(wanted))
    free = (
        wanted[order] - steps
    )  # has to rise: isotonic regression by its min-max formula
    means = [
        [free[i : j + 1].mean() for j in range(i, len(free))] for i in range(len(free))
    ]
    fitted = [
        max(min(means[j][k - j :]) for j in range(k + 1)) for k in range(len(free))
    ]
    low, high = axes.bbox.y0 * points + gap / 2, axes.bbox.y1 * points - gap / 2
    placed = np.empty_like(wanted)
    placed[order] = np.clip(fitted, low, max(low, high - steps[-1])) + steps
    for i, ((name, end), colour) in enumerate(zip(ends.items(), colours)):
        axes.annotate(
            name,
            end,
            (6, placed[i] - wanted[i]),
            textcoords="offset points",
            color=colour,
            va="center",
        )


def seed_band(
    axes, x, runs: Tensor, colour: str, line: str = "-"
) -> tuple[float, float]:
    """Draw the mean over the seeds of (seeds, points), in a band from the smallest to the largest.

    Returns the last point of the mean, for `label_ends`.
    """
    axes.plot(x, runs.mean(0), line, color=colour)
    axes.fill_between(
        x, runs.amin(0), runs.amax(0), color=colour, alpha=0.15, linewidth=0
    )
    return x[-1], runs.mean(0)[-1].item()


def image_grid(
    pictures, titles=None, columns: int = 8, scale: float = 0.75, **how
) -> None:
    """Show pictures, each (H, W) or (C, H, W), in rows; `how` goes to imshow."""
    rows = math.ceil(len(pictures) / columns)
    lines = 1 + max(str(t).count("\n") for t in titles) if titles else 0
    size = (columns * scale, rows * (scale + 0.2 * lines))
    _, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for cell in axes.flat:
        cell.axis("off")
    for i, (cell, picture) in enumerate(zip(axes.flat, pictures)):
        picture = torch.as_tensor(picture).detach().cpu()
        cell.imshow(
            picture.permute(1, 2, 0).squeeze(-1) if picture.ndim == 3 else picture,
            **how,
        )
        if titles:
            cell.set_title(titles[i], fontsize=10, pad=2)
