"""Load what a notebook defines without running it."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # the package reproduction, which loads definitions, too

# A mutation check asks for is_definition, and puts another function in the place of source here.
from reproduction.definitions import Definitions, is_definition, source  # noqa: E402, F401

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


@cache
def definitions(stem: str, folder: Path = NOTEBOOKS) -> Definitions:
    """The definitions of notebooks/<stem>.py, the same object in each test file that asks."""
    return Definitions(folder / f"{stem}.py", lambda file: source(file))


def on_the_map() -> list[str]:
    """The chapters about networks: neither of a resource nor an overview of resources alone."""
    cards = {stem: (ROOT / "chapters" / f"{stem}.rst").read_text("utf-8") for stem in STEMS}
    others = {stem for stem, text in cards.items() if "\n.. resource:: " in text}
    for stem, text in cards.items():
        drawn = re.search(r"^\.\. overview:: (.+)", text, re.MULTILINE)
        if drawn and set(re.split(r",\s*", drawn[1].strip())) <= others:
            others = others | {stem}
    return [stem for stem in STEMS if stem not in others]
