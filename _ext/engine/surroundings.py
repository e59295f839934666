"""What surrounds the code of a notebook and decides about the numbers it prints.

Versions of what it imports, Python, and the kind of accelerator. Two answers are slow to get, which
distribution provides a module and what torch sees; ``Memo`` keeps them in a file with what they
depend on.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from .store import write

ALWAYS = ("torch", "torchvision", "numpy", "matplotlib")
ANSWER = "book-device:"  # before the answer of `ask_torch`; anything may print before and after it


class Memo:
    """Values kept in a JSON file, each under a name with what it depends on."""

    def __init__(self, file: Path | None):
        self.file, self.kept = file, {}
        with suppress(OSError, ValueError):
            kept = json.loads(file.read_text(encoding="utf-8")) if file else {}
            self.kept = kept if isinstance(kept, dict) else {}

    def get(self, name: str, depends: str):
        """The value, or None when there is none or what it depends on has changed."""
        entry = self.kept.get(name)
        if isinstance(entry, dict) and entry.get("depends") == depends:
            return entry.get("value")
        return None

    def set(self, name: str, depends: str, value) -> None:
        self.kept[name] = {"depends": depends, "value": value}
        if self.file:
            with suppress(OSError):  # asked again next time
                write(self.file, json.dumps(self.kept))


def installed() -> str:
    """Changes when a package is installed, removed or replaced by another version."""
    found = []
    for folder in sys.path:
        with suppress(OSError):
            names = os.listdir(folder or ".")
            found += [(folder, n) for n in names if n.endswith((".dist-info", ".egg-info"))]
    return sha256(repr(sorted(found)).encode()).hexdigest()


def providers(modules: Iterable[str], memo: Memo | None = None) -> dict[str, list[str]]:
    """Names of the installed distributions that provide each module; most are called like it."""
    memo = memo or Memo(None)
    depends = installed()
    known = memo.get("providers", depends)
    known = dict(known) if isinstance(known, dict) else {}
    asked = sorted(set(modules) - known.keys())
    slow = None
    for module in asked:
        try:
            importlib.metadata.version(module)
            known[module] = [module]
        except importlib.metadata.PackageNotFoundError:
            slow = (
                slow or importlib.metadata.packages_distributions()
            )  # reads all that is installed
            known[module] = sorted(set(slow.get(module, [])))
    if asked:
        memo.set("providers", depends, known)
    return {module: known[module] for module in modules}


def versions(modules: Iterable[str], memo: Memo | None = None) -> dict[str, str]:
    """Versions of the installed distributions that provide these modules."""
    outside = sorted(set(modules) - set(sys.stdlib_module_names))
    found = {}
    for names in providers(outside, memo).values():
        for name in names:
            with suppress(importlib.metadata.PackageNotFoundError):  # removed a moment ago
                found[name] = importlib.metadata.version(name)
    return found


def python() -> list[str]:
    return list(platform.python_version_tuple()[:2])


def accelerators(memo: Memo) -> tuple[str, int]:
    """The kind of accelerator that torch sees ("cuda", "mps", ...) and how many; ("cpu", 0) if none.

    Importing torch takes seconds: it is asked, in a process of its own, when what it can see has
    changed.
    """
    nodes = [
        str(path)
        for pattern in ("nvidia[0-9]*", "kfd", "dri/render*")
        for path in Path("/dev").glob(pattern)
    ]
    visible = sorted((k, v) for k, v in os.environ.items() if k.endswith("_VISIBLE_DEVICES"))
    torch = versions(["torch"], memo).get("torch", "none")
    depends = json.dumps([torch, platform.platform(), sorted(nodes), visible, sys.prefix])
    answer = memo.get("device", depends)
    if not (isinstance(answer, list) and len(answer) == 2):
        answer = ask_torch() if torch != "none" else ["cpu", 0]
        memo.set("device", depends, list(answer))
    return str(answer[0]), int(answer[1])


def ask_torch() -> tuple[str, int]:
    """Kind and number of accelerators as torch sees them, in a process of its own.

    Raises RuntimeError with what the process said when it gave no answer.
    """
    code = (
        "import torch; a = torch.accelerator; there = a.is_available();"
        f"print(); print({ANSWER!r}, a.current_accelerator().type if there else 'cpu',"
        " a.device_count() if there else 0)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    for line in process.stdout.splitlines():
        if line.startswith(ANSWER):
            kind, count = line.removeprefix(ANSWER).split()
            return kind, int(count)
    said = process.stderr.strip().splitlines()
    raise RuntimeError(
        f"torch does not say which device it sees: {said[-1] if said else 'no answer'}"
    )


def differences(here: dict, there: dict) -> list[str]:
    """Each fact of {"python", "device", "versions"} in which another machine differs, in words."""
    found = []
    for name in ("python", "device"):
        if list(here[name]) != list(there[name]):
            mine, other = (
                v if isinstance(v, str) else ".".join(v) for v in (here[name], there[name])
            )
            found.append(f"{name} {other}, here {mine}")
    for name, version in here["versions"].items():
        other = there["versions"].get(name, "none")
        if other != version:
            found.append(f"{name} {other}, here {version}")
    return found
