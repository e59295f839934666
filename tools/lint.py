"""Faults of notebooks that run without an error: ``python tools/lint.py FOLDER``.

What cannot be run, such as code in a markdown cell, is refused when the book is built.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

MARKER = re.compile(r"^# %%(?P<rest>.*)$")
KERNELSPEC = re.compile(r"^#   kernelspec:$", re.MULTILINE)
IN_CODE = {
    r"\.cuda\(": "names a device: use workbench.device",
    r"\btorch\.load\((?!.*weights_only=True)": "torch.load needs weights_only=True",
    r"^\s*(import|from) torchtext": "torchtext is no longer maintained",
}


def faults(text: str, notebooks: set[str] = frozenset()) -> Iterator[tuple[int, str]]:
    """Yield (line, what is wrong) of a percent-format notebook; `notebooks`: stems beside it."""
    header, *_ = text.partition("# %%")
    if not header.startswith("# ---\n") or not KERNELSPEC.search(header):
        yield 1, "the header with the kernelspec is missing: copy it from another notebook"
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


def main(folder: str) -> int:
    paths = sorted(p for p in Path(folder).glob("*.py") if p.stem != "workbench")
    stems = {path.stem for path in paths}
    found = 0
    for path in paths:
        for line, message in faults(path.read_text(encoding="utf-8"), stems):
            print(f"{path}:{line}: {message}")
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
