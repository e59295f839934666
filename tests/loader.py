"""Load what a notebook defines without running it."""

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
STEMS = sorted(path.stem for path in (ROOT / "chapters").glob("*.rst"))
EVERY = os.environ.get("EVERY") == "1"  # what takes long is tested at its full length


def git(root: Path, *words: str) -> str:
    """What git says of a folder; nothing without git, a repository or the commit it is asked for."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def changed_stems(root: Path = ROOT) -> set[str]:
    """The notebooks that are not as they were where this branch left origin/main.

    On main itself: not as they were one commit before. What is not committed counts, too.
    """
    base = git(root, "merge-base", "HEAD", "origin/main")
    if base == git(root, "rev-parse", "HEAD") or not base:
        base = git(root, "rev-parse", "--verify", "HEAD~1") or "HEAD"
    which = ("--", ":(glob)notebooks/*.py")
    differ = git(root, "diff", "--name-only", base, *which).splitlines()
    new = git(root, "ls-files", "--others", "--exclude-standard", *which).splitlines()
    return {Path(name).stem for name in differ + new}


def looked_at_closely() -> list[str]:
    """Chapters for which the tests do what takes long: those that changed and one more, or all."""
    return STEMS if EVERY else sorted({"lenet"} | changed_stems().intersection(STEMS))


def is_definition(node: ast.stmt) -> bool:
    """Imports, classes, functions and constants in capitals; nothing that computes."""
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)):
        return True
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    assigns = isinstance(node, (ast.Assign, ast.AnnAssign))
    return assigns and all(isinstance(t, ast.Name) and t.id.isupper() for t in targets)


def source(file: Path) -> str:
    """The text of a notebook; a mutation check puts a changed one in its place."""
    return file.read_text(encoding="utf-8")


class Definitions:
    """What a notebook defines, as attributes. It is run when the first of them is asked for.

    So collecting tests runs no notebook, and each is run once in a process.
    """

    def __init__(self, file: Path):
        self._file = file

    def __getattr__(self, name: str):
        if name.startswith("_"):  # what copy and pytest ask of any object
            raise AttributeError(name)
        if "_namespace" not in vars(self):
            self._namespace = run_definitions(self._file)
        if name not in self._namespace:
            raise AttributeError(f"{self._file.name} does not define {name}")
        return self._namespace[name]


def run_definitions(file: Path) -> dict:
    """Compile and run only the definitions of a notebook; the names they make.

    A definition that reads a variable of a running cell fails here with a NameError.
    """
    tree = ast.parse(source(file), str(file))
    tree.body = [node for node in tree.body if is_definition(node)]
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    namespace = {"__name__": f"notebook_{file.stem}"}
    exec(compile(tree, str(file), "exec"), namespace)
    return namespace


@cache
def definitions(stem: str, folder: Path = NOTEBOOKS) -> Definitions:
    """The definitions of notebooks/<stem>.py, the same object in each test file that asks."""
    return Definitions(folder / f"{stem}.py")
