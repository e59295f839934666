"""Time this engine against MyST-NB's own cache and nbsphinx, on the same notebooks, in one run.

    make bench            eight light notebooks, the comparisons, the edits
    make bench WHAT=grow  100, 300 and 1,000 notebooks of one line
    make bench WHAT=book  this book's own settings with 64 chapters and notebooks of one line

Each row is one build of the same site: wall seconds, CPU seconds of the build and all processes it
started, and the ratio of the wall time to that of this engine from nothing.
"""

import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
import pypandoc

from loader import ROOT
from sites import CONF, HEADER, sphinx

NOTEBOOKS = 8
INDEX = "Book\n====\n\n.. toctree::\n   :glob:\n\n   {}*\n"
NOTEBOOK = (
    HEADER
    + """# %% [markdown]
# # Notebook {i}
#
# A paragraph.

# %%
import matplotlib.pyplot as plt
import torch
import torchvision
from torch import nn

# %%
torch.manual_seed({i})
model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 26 * 26, 10))
x, y = torch.rand(256, 1, 28, 28), torch.randint(0, 10, (256,))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

# %%
losses = []
for _ in range(40):
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"{{losses[-1]:.3f}}")

# %%
plt.plot(losses);
"""
)
THEME = 'html_theme = "sphinx_book_theme"\n'
BARE = 'html_theme = "basic"\nhtml_sidebars = {"**": []}\n'
MYST = """
extensions = ["myst_nb"]
include_patterns = ["index.rst", "notebooks/*.py"]
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_timeout = 300
"""
NBSPHINX = """
extensions = ["nbsphinx"]
include_patterns = ["index.rst", "notebooks/*.ipynb"]
nbsphinx_execute = "always"
"""


def site(folder: Path, conf: str, texts: dict[str, str]) -> Path:
    """Write a site of these notebooks; where its conf names .ipynb they are converted."""
    (folder / "notebooks").mkdir(parents=True)
    (folder / "conf.py").write_text(conf + (THEME if BARE not in conf else ""))
    (folder / "index.rst").write_text(INDEX.format("notebooks/"))
    for name, text in texts.items():
        path = folder / "notebooks" / f"{name}.py"
        if ".ipynb" in conf:
            nbformat.write(jupytext.reads(text, fmt="py:percent"), path.with_suffix(".ipynb"))
        else:
            path.write_text(text)
    return folder


def measure(folder: Path, *options: str) -> tuple[float, float, int]:
    """Wall and CPU seconds of one build, its processes included, and the peak memory in MiB."""
    command = sphinx(folder, "-q", *options)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, env=plain_environment())
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, after.ru_maxrss // 1024


def plain_environment() -> dict[str, str]:
    """As a user's shell: no thread count, no backend; with the pandoc that nbsphinx calls."""
    hidden = {"OMP_NUM_THREADS", "MPLBACKEND", "PYTHONPATH"}
    paths = [str(Path(pypandoc.get_pandoc_path()).parent), os.environ["PATH"]]
    return {k: v for k, v in os.environ.items() if k not in hidden} | {"PATH": ":".join(paths)}


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def compare(folder: Path) -> None:
    texts = {f"n{i}": NOTEBOOK.format(i=i) for i in range(NOTEBOOKS)}
    ours = site(folder / "ours", CONF, texts)
    one = ours / "notebooks" / "n3.py"
    rows = {"this engine, from nothing": measure(ours)}
    rows["this engine, nothing changed"] = measure(ours)
    edit(one, "A paragraph.", "Another paragraph.")
    rows["this engine, one paragraph edited"] = measure(ours)
    edit(one, "range(40)", "range(41)")
    rows["this engine, one cell edited"] = measure(ours)
    plain = site(folder / "plain", CONF, texts)
    rows["this engine, WARM=0, from nothing"] = measure(plain, "-D", "notebooks_warm=0")
    myst = site(folder / "myst", MYST, texts)
    rows["MyST-NB cache, from nothing"] = measure(myst)
    rows["MyST-NB cache, nothing changed"] = measure(myst)
    edit(myst / "notebooks" / "n3.py", "A paragraph.", "Another paragraph.")
    rows["MyST-NB cache, one paragraph edited"] = measure(myst)
    edit(myst / "notebooks" / "n3.py", "range(40)", "range(41)")
    rows["MyST-NB cache, one cell edited"] = measure(myst)
    nbsphinx = site(folder / "nbsphinx", NBSPHINX, texts)
    rows["nbsphinx -j2, from nothing"] = measure(nbsphinx, "-j", "2")
    first = rows["this engine, from nothing"][0]
    print(f"{NOTEBOOKS} notebooks that import torch and torchvision, train briefly and draw;")
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}\n")
    print(f"| {'build':36} | wall s | CPU s | wall, ours from nothing = 1 |")
    print(f"|{'-' * 38}|-------:|------:|----:|")
    for name, (wall, cpu, _) in rows.items():
        print(f"| {name:36} | {wall:6.1f} | {cpu:5.1f} | {wall / first:.2f} |")


def grow(folder: Path) -> None:
    print(
        "| notebooks of one line | from nothing, s | for each, ms | nothing changed, s | peak MiB |"
    )
    print("|---:|---:|---:|---:|---:|")
    for n in (100, 300, 1000):
        text = HEADER + "# %% [markdown]\n# # N{i}\n\n# %%\nprint({i})\n"
        # without a side bar: the theme's, with a line for each page on each page, grows as n * n
        place = site(folder / str(n), CONF + BARE, {f"n{i:04}": text.format(i=i) for i in range(n)})
        wall, _, _ = measure(place)
        again, _, peak = measure(place)
        print(f"| {n} | {wall:.1f} | {wall / n * 1000:.0f} | {again:.1f} | {peak} |", flush=True)
        shutil.rmtree(place)


BOOK = ("_ext", "_static", "_templates", "conf.py", "docutils.conf", "references.bib")
PAGES = (
    "status.rst",
    "bibliography.rst",
    "requirements.txt",
    "requirements-data.txt",
)
CHAPTER = """Chapter {i}
===========

.. paper:: {key}
   :idea: an idea of chapter {i}

A paragraph with :math:`x_{{{i}}}` and :result:`value`.

.. cells:: it
"""
CELL = """# %% [markdown]
# # Notebook {i}

# %% tags=["it"]
from IPython.display import display
display({{"application/vnd.book.result+json": {{"name": "value", "value": {i}}}}}, raw=True)
print({i})
"""


def book(folder: Path, n: int = 64) -> None:
    """This site's extensions, theme and side bar around made-up chapters, eight to a part."""
    for name in (*BOOK, *PAGES):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    keys = re.findall(r"^@\w+\{(\S+),", (ROOT / "references.bib").read_text(), re.MULTILINE)
    for name in ("chapters", "notebooks"):
        (folder / name).mkdir()
    for i in range(n):
        chapter = CHAPTER.format(i=i, key=keys[i % len(keys)])
        (folder / "chapters" / f"c{i:02}.rst").write_text(chapter)
        (folder / "notebooks" / f"c{i:02}.py").write_text(HEADER + CELL.format(i=i))
    tree = ".. toctree::\n   :caption: Part {}\n   :maxdepth: 1\n   :glob:\n\n   {}\n\n"
    parts = [
        tree.format(k, "\n   ".join(f"chapters/c{i:02}" for i in range(8 * k, min(8 * k + 8, n))))
        for k in range((n + 7) // 8)
    ]
    about = tree.format("about", "bibliography\n   status")
    front = "Book\n====\n\n.. map::\n\n   Caption.\n\n.. parts::\n\n"
    (folder / "index.rst").write_text(front + "".join(parts) + about)
    print(f"| {n} chapters, this book's theme and extensions | wall s | CPU s |\n|---|---:|---:|")
    for name in ("from nothing", "nothing changed", "one paragraph edited"):
        if name == "one paragraph edited":
            edit(folder / "chapters" / "c07.rst", "A paragraph", "Another paragraph")
        wall, cpu, _ = measure(folder, "-n", "-W", "--keep-going")
        print(f"| {name} | {wall:.1f} | {cpu:.1f} |", flush=True)


if __name__ == "__main__":
    asked = {"grow": grow, "book": book}.get(" ".join(sys.argv[1:]), compare)
    with tempfile.TemporaryDirectory() as temporary:
        asked(Path(temporary))
