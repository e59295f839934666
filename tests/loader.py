"""Load what a notebook defines without running it."""

import ast
import os
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
STEMS = sorted(path.stem for path in (ROOT / "chapters").glob("*.rst"))
EVERY = os.environ.get("EVERY") == "1"  # what takes long is tested at its full length
# Running a notebook again takes as long as the notebook: one stands for all, unless EVERY=1.
RUN_AGAIN = STEMS if EVERY else ["lenet"]


def is_definition(node: ast.stmt) -> bool:
    """Imports, classes, functions and constants in capitals; nothing that computes."""
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)):
        return True
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    assigns = isinstance(node, (ast.Assign, ast.AnnAssign))
    return assigns and all(isinstance(t, ast.Name) and t.id.isupper() for t in targets)


def definitions(stem: str, folder: Path = NOTEBOOKS) -> SimpleNamespace:
    """Compile and run only the definitions of notebooks/<stem>.py and return them as attributes.

    A definition that reads a variable of a running cell fails here with a NameError.
    """
    file = folder / f"{stem}.py"
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    tree.body = [node for node in tree.body if is_definition(node)]
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    namespace = {"__name__": f"notebook_{stem}"}
    exec(compile(tree, str(file), "exec"), namespace)
    return SimpleNamespace(**namespace)


def without_dropout(network):
    """The same network with nothing dropped while it is trained: what is dropped is not fitted."""
    from torch import nn  # most who load this file need no network

    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return network
