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
from collections.abc import Iterable
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
    """Installed distributions by the module names they provide."""
    return dict(importlib.metadata.packages_distributions())


def versions(modules: Iterable[str]) -> dict[str, str]:
    """Versions of the installed distributions that provide these modules."""
    found = {}
    for module in sorted(set(modules) - set(sys.stdlib_module_names)):
        for name in distributions().get(module, ()):
            found[name] = importlib.metadata.version(name)
    return found


def device_type(folder: Path) -> str:
    """The kind of accelerator that torch sees ("cuda", "mps", ...) or "cpu".

    Importing torch takes seconds, so the answer is kept in the store with what it depends on and
    torch is asked again, in a process of its own, when that has changed.
    """
    nodes = [
        str(p)
        for pattern in ("nvidia[0-9]*", "kfd", "dri/render*")
        for p in Path("/dev").glob(pattern)
    ]
    visible = {k: v for k, v in os.environ.items() if k.endswith("_VISIBLE_DEVICES")}
    torch = versions(["torch"]).get("torch", "none")
    asked = json.dumps(
        [torch, platform.platform(), sorted(nodes), sorted(visible.items()), sys.prefix]
    )
    memo = folder / "device.json"
    try:
        kept = json.loads(memo.read_text(encoding="utf-8"))
        if kept["asked"] == asked:
            return kept["device"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    code = (
        "import torch; a = torch.accelerator;"
        "print(a.current_accelerator().type if a.is_available() else 'cpu')"
    )
    answer = "cpu"
    if torch != "none":
        command = [sys.executable, "-c", code]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    write(memo, json.dumps({"asked": asked, "device": answer}))
    return answer


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

    def fingerprint(self, nb: NotebookNode, beside: Path) -> dict:
        """What surrounds the code of a notebook in the folder ``beside``: see the module's text."""
        code = "\n".join(cell.source for cell in code_cells(nb))
        names, local = imported(code), {}
        for name in sorted(names):
            file = beside / f"{name}.py"
            if file.is_file():
                source = file.read_text(encoding="utf-8")
                local[name] = hashlib.sha256(source.encode()).hexdigest()
                names |= imported(source)
        return {
            "local": local,
            "versions": versions(names.union(ALWAYS)),
            "python": platform.python_version_tuple()[:2],
            "device": device_type(self.folder),
            "profile": self.profile,
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
            return nbformat.read(self.path(key), as_version=4) if key else None
        except (OSError, ValueError, KeyError, AttributeError, nbformat.ValidationError):
            return None

    def save(self, key: str, stem: str, nb: NotebookNode, seconds: float) -> None:
        write(self.path(key), nbformat.writes(nb))
        write(self.folder / f"{stem}.last", json.dumps({"key": key, "seconds": seconds}))

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
