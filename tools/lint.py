"""Faults of notebooks that run without an error: ``python tools/lint.py FOLDER``.

What cannot be run, such as code in a markdown cell, is refused when the book is built.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

MARKER = re.compile(r"^# %%(?P<rest>.*)$")
KERNELSPEC = re.compile(r"^#   kernelspec:$", re.MULTILINE)
MATPLOTLIB = re.compile(r"^(import|from) matplotlib", re.MULTILINE)
STYLED = re.compile(r"^from workbench import .*\bplots\b", re.MULTILINE)
IN_CODE = {
    r"\.cuda\(": "names a device: use workbench.device",
    r"\btorch\.load\((?!.*weights_only=True)": "torch.load needs weights_only=True",
    r"^\s*(import|from) torchtext": "torchtext is no longer maintained",
    r".{89}": "wider than the 88 columns that a page shows",
}


def faults(text: str, notebooks: set[str] = frozenset()) -> Iterator[tuple[int, str]]:
    """Yield (line, what is wrong) of a percent-format notebook; `notebooks`: stems beside it."""
    header, *_ = text.partition("# %%")
    if not header.startswith("# ---\n") or not KERNELSPEC.search(header):
        yield 1, "the header with the kernelspec is missing: copy it from another notebook"
    if (found := MATPLOTLIB.search(text)) and not STYLED.search(text):
        yield text.count("\n", 0, found.start()) + 1, "draws without its style: import plots"
    try:
        module = ast.parse(text)
    except SyntaxError:  # the engine names the line
        module = ast.Module([], [])
    yield from claims(module)
    yield from packed(module)
    cell = None
    for number, line in enumerate(text.splitlines(), 1):
        if marker := MARKER.match(line):
            cell = "markdown" if "[markdown]" in marker["rest"] else "code"
        elif cell == "code":
            for pattern, message in IN_CODE.items():
                if re.search(pattern, line):
                    yield number, message
            for stem in re.findall(r"^\s*(?:import|from) (\w+)", line):
                if stem in notebooks:
                    yield number, f"imports the notebook {stem}: show the block again instead"
        elif cell is None and line.strip() and not line.startswith("#"):
            yield number, "code before the first cell marker"


def claims(module: ast.Module) -> Iterator[tuple[int, str]]:
    """What running cells take for shown other than by a `claim`; definitions keep their guards."""
    waiting = [*module.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        held = [part for part in ast.walk(node) if isinstance(part, ast.Assert) or is_claim(part)]
        if isinstance(node, ast.If) and names_profile(node.test) and held:
            yield node.lineno, "a claim knows the profile: leave the guard away"
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Assert):
            yield node.lineno, 'a bare assert in a running cell: claim(condition, "what was shown")'
        elif is_claim(node) and names_profile(node):
            yield node.lineno, "a claim knows the profile: leave it out of the condition"
        elif is_claim(node) and any(map(passes_nan, node.args[:1])):
            yield node.lineno, "`not a < b` is true of NaN: claim a >= b"


def packed(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Values written side by side that do not need each other, as a swap does."""
    for node in ast.walk(module):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
            continue
        names, values = node.targets[0], node.value.elts
        if not isinstance(names, ast.Tuple) or len(names.elts) != len(values):
            continue
        early = {ast.unparse(name) for name in names.elts[:-1]}
        if not any(ast.unparse(part) in early for value in values for part in ast.walk(value)):
            yield node.lineno, "several values in one line: a line for each"


def is_claim(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "claim"


def names_profile(node: ast.AST) -> bool:
    return any(
        getattr(part, "id", getattr(part, "attr", "")) == "PROFILE" for part in ast.walk(node)
    )


def passes_nan(condition: ast.expr) -> bool:
    """Whether a comparison in it is negated."""
    return any(
        isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.Not) and compares(part.operand)
        for part in ast.walk(condition)
    )


def compares(node: ast.expr) -> bool:
    order = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
    parts = [part for part in ast.walk(node) if isinstance(part, ast.Compare)]
    return any(isinstance(sign, order) for part in parts for sign in part.ops)


def main(folder: str) -> int:
    paths = sorted(Path(folder).glob("*.py"))
    stems = {path.stem for path in paths}
    found = 0
    for path in paths:
        for line, message in faults(path.read_text(encoding="utf-8"), stems):
            print(f"{path}:{line}: {message}")
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
