"""Notebooks as text, the key of a run, and the store of its outputs.

A notebook is a Python file in the percent format. Its key is a hash of all that can change what it
prints: code cells, tags that change execution, kernel, and a fingerprint of its surroundings (local
modules and versions of what it imports, Python, device, profile). The store is a folder of executed
notebooks named by key::

    <store>/<key>.ipynb      one run, written in one step
    <store>/<stem>.last      key and seconds of the last run of that notebook
    <store>/device.json      what torch answered when last asked for an accelerator

Text, display tags and alternative texts are not part of the key.
"""

import ast
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

MARK = re.compile(r"^\s*#\s*%%(%*)(\s|$)")
EXECUTION_TAGS = {"raises-exception", "skip-execution"}
ALWAYS = ("torch", "torchvision", "numpy", "matplotlib")  # workbench imports them


def parse(text: str) -> NotebookNode:
    """Read a percent-format notebook.

    The 0-based lines of the cell markers go to ``metadata.source_map``, where MyST-NB looks for
    them, so that warnings name true lines. ``alt="..."`` in a cell's header is the alternative text
    of its picture.
    """
    nb = jupytext.reads(text, fmt="py:percent")
    marks = [i for i, line in enumerate(text.splitlines()) if MARK.match(line)]
    unmarked = len(nb.cells) - len(marks)
    if unmarked in (0, 1):
        nb.metadata["source_map"] = [0] * unmarked + marks
    for cell in nb.cells:
        cell.metadata.pop("lines_to_next_cell", None)
        if alt := cell.metadata.get("alt"):
            cell.metadata["mystnb"] = {"image": {"alt": alt}}
    return nb


def code_cells(nb: NotebookNode) -> list[NotebookNode]:
    """The code cells that a kernel is asked to run: empty ones are not."""
    return [c for c in nb.cells if c.cell_type == "code" and c.source.strip()]


def imported(source: str) -> set[str]:
    """Names of the top-level modules that Python source imports anywhere in it."""
    names = set()
    try:
        tree = ast.parse(source)
    except SyntaxError:  # the run will report it
        return names
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@functools.cache
def distributions() -> dict[str, list[str]]:
    """Installed distributions by the module names they provide: slow, reads what is installed."""
    return dict(importlib.metadata.packages_distributions())


def providers(module: str) -> list[str]:
    """Names of the installed distributions that provide a module; most are called like it."""
    try:
        importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        return distributions().get(module, [])
    return [module]


def versions(modules: Iterable[str]) -> dict[str, str]:
    """Versions of the installed distributions that provide these modules."""
    outside = sorted(set(modules) - set(sys.stdlib_module_names))
    names = [name for module in outside for name in providers(module)]
    return {name: importlib.metadata.version(name) for name in names}


def accelerators(folder: Path) -> tuple[str, int]:
    """The kind of accelerator that torch sees ("cuda", "mps", ...) and how many; ("cpu", 0) if none.

    Importing torch takes seconds, so the answer is kept in the store with what it depends on and
    torch is asked again, in a process of its own, when that has changed.
    """
    nodes = [
        str(path)
        for pattern in ("nvidia[0-9]*", "kfd", "dri/render*")
        for path in Path("/dev").glob(pattern)
    ]
    visible = sorted((k, v) for k, v in os.environ.items() if k.endswith("_VISIBLE_DEVICES"))
    torch = versions(["torch"]).get("torch", "none")
    asked = json.dumps([torch, platform.platform(), sorted(nodes), visible, sys.prefix])
    memo = folder / "device.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(memo.read_text(encoding="utf-8"))
        if kept["asked"] == asked:
            return kept["device"], kept["count"]
    device, count = ask_torch()
    write(memo, json.dumps({"asked": asked, "device": device, "count": count}))
    return device, count


def ask_torch() -> tuple[str, int]:
    """Kind and number of accelerators as torch sees them, in a process of its own."""
    if not versions(["torch"]):
        return "cpu", 0
    code = (
        "import torch; a = torch.accelerator; there = a.is_available();"
        "print(a.current_accelerator().type if there else 'cpu', a.device_count() if there else 0)"
    )
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return answer[0], int(answer[1])


def write(path: Path, text: str) -> None:
    """Write a file in one step: readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


class Store:
    """Executed notebooks by key. ``folder`` is made when first written to."""

    def __init__(self, folder: Path, profile: str):
        self.folder, self.profile = Path(folder), profile

    def local_modules(self, nb: NotebookNode, beside: Path) -> dict[str, str]:
        """Texts of the modules in the folder ``beside`` that the notebook imports, by name."""
        names = imported("\n".join(cell.source for cell in code_cells(nb)))
        files = {name: beside / f"{name}.py" for name in sorted(names)}
        return {n: f.read_text(encoding="utf-8") for n, f in files.items() if f.is_file()}

    def modules(self, nb: NotebookNode, beside: Path) -> set[str]:
        """Names of what the notebook and its local modules import, without those modules."""
        local = self.local_modules(nb, beside)
        own = imported("\n".join(cell.source for cell in code_cells(nb)))
        return own.union(*map(imported, local.values())) - set(local)

    def surroundings(self, modules: Iterable[str]) -> dict:
        """Python, device and the versions of what provides these modules, and of torch's family."""
        return {
            "versions": versions({*modules, *ALWAYS}),
            "python": list(platform.python_version_tuple()[:2]),
            "device": accelerators(self.folder)[0],
        }

    def fingerprint(self, nb: NotebookNode, beside: Path) -> dict:
        """What surrounds the code of a notebook in the folder ``beside``: see the module's text."""
        local = self.local_modules(nb, beside)
        return {
            "local": {n: hashlib.sha256(text.encode()).hexdigest() for n, text in local.items()},
            "profile": self.profile,
            **self.surroundings(self.modules(nb, beside)),
        }

    def key(self, nb: NotebookNode, beside: Path) -> str:
        """sha256 over code cells, execution tags, kernel name and fingerprint."""
        cells = [
            (c.source, sorted(EXECUTION_TAGS & set(c.metadata.get("tags", []))))
            for c in code_cells(nb)
        ]
        kernel = nb.metadata.get("kernelspec", {}).get("name", "python3")
        content = json.dumps([cells, kernel, self.fingerprint(nb, beside)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.ipynb"

    def load(self, key: str | None) -> NotebookNode | None:
        """The run of that key, or None when there is none or its file cannot be used."""
        try:
            nb = nbformat.v4.reads(self.path(key).read_text("utf-8")) if key else None
            if nb and nb.metadata["book"]:
                code_cells(nb)  # raises when it is no notebook
                return nb
            return None
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return None

    def save(self, key: str, stem: str, nb: NotebookNode, seconds: float) -> None:
        write(self.path(key), nbformat.writes(nb))
        write(self.folder / f"{stem}.last", json.dumps({"key": key, "seconds": seconds}))

    def touch(self, key: str) -> None:
        """Note that an entry is in use: ``prune`` removes those that are not."""
        with suppress(OSError):
            os.utime(self.path(key))

    def prune(self, days: float) -> list[Path]:
        """Remove entries, and leftovers of interrupted writes, that no build used for so long."""
        limit = time.time() - days * 86400
        removed = []
        for path in [*self.folder.glob("*.ipynb"), *self.folder.glob("*.part")]:
            with suppress(OSError):
                if path.stat().st_mtime < limit:
                    path.unlink()
                    removed.append(path)
        return removed

    def last(self, stem: str) -> dict:
        """{"key", "seconds"} of the last run of a notebook, or {} when it never ran."""
        try:
            return json.loads((self.folder / f"{stem}.last").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}


def merge(nb: NotebookNode, run: NotebookNode) -> NotebookNode:
    """Put the outputs of a run into the notebook it was made from, cell by cell of equal code."""
    ran = code_cells(run)
    for cell in code_cells(nb):
        at = next((i for i, other in enumerate(ran) if other.source == cell.source), None)
        if at is not None:
            done = ran.pop(at)
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
    return nb


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] != "prune":
        sys.exit("usage: store.py prune FOLDER DAYS")
    for gone in Store(Path(sys.argv[2]), "").prune(float(sys.argv[3])):
        print("removed", gone)
