"""What a notebook defines, without running it."""

import ast
import sys
from collections.abc import Callable
from pathlib import Path


def is_definition(node: ast.stmt) -> bool:
    """Imports, classes, functions and constants in capitals; nothing that computes."""
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)):
        return True
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    assigns = isinstance(node, (ast.Assign, ast.AnnAssign))
    return assigns and all(isinstance(t, ast.Name) and t.id.isupper() for t in targets)


def source(file: Path) -> str:
    """The text of a notebook."""
    return file.read_text(encoding="utf-8")


class Definitions:
    """What a notebook defines, as attributes. It is run when the first of them is asked for.

    So collecting tests runs no notebook, and each is run once in a process. read: gives the text.
    """

    def __init__(self, file: Path, read: Callable[[Path], str] = source):
        self._file = file
        self._read = read

    def __getattr__(self, name: str):
        if name.startswith("_"):  # what copy and pytest ask of any object
            raise AttributeError(name)
        if "_namespace" not in vars(self):
            self._namespace = run_definitions(self._file, self._read)
        if name not in self._namespace:
            raise AttributeError(f"{self._file.name} does not define {name}")
        return self._namespace[name]


def run_definitions(file: Path, read: Callable[[Path], str] = source) -> dict:
    """Compile and run only the definitions of a notebook; the names they make.

    A definition that reads a variable of a running cell fails here with a NameError.
    """
    tree = ast.parse(read(file), str(file))
    tree.body = [node for node in tree.body if is_definition(node)]
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    namespace = {"__name__": f"notebook_{file.stem}"}
    exec(compile(tree, str(file), "exec"), namespace)
    return namespace
