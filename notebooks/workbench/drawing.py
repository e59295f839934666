"""A network drawn from itself: a block per stage, from one forward pass."""

import math
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor, nn

from workbench.plots import COLOURS, QUIET
from workbench.tracing import Call, trace

ARROW = {"arrowstyle": "->", "color": QUIET, "shrinkA": 0, "shrinkB": 0}


def repeated(call: Call) -> list[Call]:
    """The blocks in a row, of one class and one shape, that make up a call; else the call alone."""
    for inner in (
        call,
        *(part for part in call.parts if 2 * part.parameters > call.parameters),
    ):
        blocks = [part for part in inner.parts if part.parameters]
        same = len({(type(block.module), block.shape) for block in blocks}) == 1
        if same and all(a.depth < b.depth for a, b in zip(blocks, blocks[1:])):
            return blocks
    return [call]


def stages_in(call: Call) -> Iterator[Call]:
    """The calls of children; those of a Sequential in place of it if it changes the shape often."""
    for part in call.parts:
        several = len({inner.shape for inner in part.parts}) > 3
        if several and isinstance(part.module, nn.Sequential):
            yield from stages_in(part)
        else:
            yield part


def blocks_of(model: nn.Module, x: Tensor) -> list[Call]:
    """What `draw` shows: the input, then one block per stage, from one forward pass.

    What has no parameters and keeps the number of values is left out, a normalisation joins what it
    follows, and unnamed neighbours of one class and shape are one block several times.
    """
    found = [Call("input", nn.Identity(), 0, tuple(x.shape[1:]))]
    for part in stages_in(trace(model, x)):
        blocks, last, unnamed = repeated(part), found[-1], part.name.isdigit()
        inner = blocks[0] if isinstance(part.module, nn.Sequential) else part
        kind, part.times = type(inner.module).__name__, len(blocks)
        part.name = kind if unnamed else part.name
        if not part.parameters and math.prod(part.shape) == math.prod(last.shape):
            continue
        norm = "Norm" in kind and not part.parts and len(found) > 1
        again = unnamed and last.name.partition(" + ")[0] == kind
        if part.shape != last.shape or not (norm or again):
            found.append(part)
            continue
        last.modules |= part.modules
        last.times += again
        last.shortcut |= part.shortcut
        if norm and not last.name.endswith(part.name):
            last.name += f" + {part.name}"
    return found


def extent(shape: tuple[int, ...]) -> tuple[float, float, float]:
    """Width, height and depth of a block in pixels, for (C,), (T, C) or (C, H, W)."""
    C, H, W = {0: (1, 1, 1), 1: (*shape, 1, 1), 2: (*shape[::-1], 1)}.get(
        len(shape), shape[-3:]
    )
    return 8 + 13 * math.log2(C), 3 + 4 * math.log2(H), 2 * math.log2(W)


def draw(model: nn.Module, x: Tensor) -> None:
    """Draw a network from itself: a block per stage, as its forward pass on x runs through them.

    Width: number of channels; height and depth: sides of the map; all on a log scale. Grey: no
    parameters. A loop: the stage has a shortcut, a sum or concatenation of a path with one of fewer
    layers. Lines in a block: parallel paths that it concatenates.
    """
    blocks = blocks_of(model, x)
    heights = [
        max(h + d / 2, 36) + (20 if block.shortcut else 14)
        for block in blocks
        for _, h, d in [extent(block.shape)]
    ]
    _, axes = plt.subplots(figsize=(5, sum(heights) / 96), layout="none")
    axes.set(position=(0, 0, 1, 1), xlim=(0, 480), ylim=(sum(heights), 0))  # in pixels
    axes.axis("off")
    centre, bottom = 108, None
    for block, end, pitch in zip(blocks, np.cumsum(heights), heights):
        y, (width, height, depth) = end - pitch / 2, extent(block.shape)
        top, right = y - (height + depth / 2) / 2, centre + (width + depth) / 2
        draw_box(axes, centre, y, block)
        if bottom:
            axes.annotate("", (centre, top - 1), (centre, bottom + 1), arrowprops=ARROW)
        bottom = y + (height + depth / 2) / 2
        if block.shortcut:
            draw_loop(axes, centre, top - 9, right + 12, bottom + 7)
        if block.times > 1:
            axes.text(right + 18, y, f"×{block.times}", va="center")
        name = block.name if len(block.name) < 22 else block.name[:20] + "…"
        axes.text(252, y - 10, name, weight="bold", va="center")
        small = {"fontsize": 11, "color": QUIET, "va": "center"}
        axes.text(252, y + 10, "×".join(map(str, block.shape)), **small)
        if block.parameters:
            axes.text(472, y + 10, f"{block.parameters:,}", ha="right", **small)


def draw_box(axes, x: float, y: float, block: Call) -> None:
    """A box in oblique projection around (x, y)."""
    (width, height, depth), colour = (
        extent(block.shape),
        COLOURS[0] if block.parameters else QUIET,
    )
    left, top, rise = x - (width + depth) / 2, y - (height - depth / 2) / 2, depth / 2
    right, base = left + width, top + height
    faces = {0.25: [(left, top), (right, top), (right, base), (left, base)]}
    if depth:
        back = (right + depth, top - rise)
        faces[0.1] = [(left, top), (left + depth, top - rise), back, (right, top)]
        faces[0.45] = [(right, top), back, (right + depth, base - rise), (right, base)]
    for alpha, corners in faces.items():
        axes.add_patch(
            plt.Polygon(corners, facecolor=(colour, alpha), edgecolor=colour)
        )
    for share in np.cumsum(block.branches)[:-1] / max(sum(block.branches), 1):
        axes.plot([left + width * share] * 2, [top, base], color=colour, linewidth=1)


def draw_loop(axes, x: float, top: float, right: float, base: float) -> None:
    """A line out of the arrow above a block, past the block and back into the arrow below it."""
    corners = [(x, top), (right, top), (right, base), (x + 2, base)]
    axes.plot(*zip(*corners), color=COLOURS[1], linewidth=1.5, solid_joinstyle="round")
    axes.annotate(
        "", corners[3], (x + 20, base), arrowprops=ARROW | {"color": COLOURS[1]}
    )
