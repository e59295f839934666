"""Executed notebooks by key: a folder, no database.

::

    <store>/<key>.ipynb      one run, written in one step
    <store>/<stem>.last      key and CPU seconds of the last run of that notebook
    <store>/memo.json        slow answers (see ``surroundings``, ``session``)

An entry says in its metadata under which schema, key and stem it was written, and is checked when it
is read. What is not whole is a miss and is replaced.
"""

import base64
import binascii
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from .notebook import code_cells, code_digest, tags

SCHEMA = 3
BOOK = {
    "results": dict,
    "versions": dict,
    "seconds": (int, float),
    "cpu": (int, float),
    "profile": str,
    "finished": float,
}


class Damaged(ValueError):
    """Why an entry cannot be used."""


def write(path: Path, text: str) -> None:
    """Write a file in one step: readers see the old content or the new, never a part.

    Raises OSError; the part that was written is gone then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        part.write_text(text, encoding="utf-8")
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def validate(nb: NotebookNode, key: str, stem: str) -> None:
    """Raise Damaged unless this is a whole run of that notebook under that key."""
    book = nb.get("metadata", {}).get("book")
    if not isinstance(book, dict) or book.get("schema") != SCHEMA:
        raise Damaged("it is not an entry of this version")
    if (book.get("key"), book.get("stem")) != (key, stem):
        raise Damaged(f"it holds a run of {book.get('stem')}")
    if not all(isinstance(book.get(name), kind) for name, kind in BOOK.items()):
        raise Damaged("what the run recorded is not there")
    try:
        nbformat.validate(nb)
    except nbformat.ValidationError as error:
        raise Damaged(str(error).splitlines()[0]) from None
    if code_digest(nb) != book.get("code"):
        raise Damaged("its cells are not those that were run")
    for cell in code_cells(nb):
        if cell.execution_count is None and "skip-execution" not in tags(cell):
            raise Damaged("a cell has not run")
        for output in cell.outputs:
            for kind, data in output.get("data", {}).items():
                if kind.startswith("image/") and kind != "image/svg+xml":
                    try:
                        base64.b64decode("".join(data).replace("\n", ""), validate=True)
                    except (binascii.Error, TypeError, ValueError):
                        raise Damaged(f"a picture ({kind}) cannot be decoded") from None


class Store:
    """Executed notebooks by key. ``folder`` is made when first written to.

    warn: called with a text that says what is wrong with the store; nothing here raises for that.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = print):
        self.folder, self.warn = Path(folder), warn
        self.written = True  # whether the last attempt to write succeeded

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.ipynb"

    def load(self, key: str, stem: str) -> NotebookNode | None:
        """The run of that key, or None when there is none; a damaged one is a miss with a warning."""
        path = self.path(key)
        try:
            nb = nbformat.v4.to_notebook(json.loads(path.read_bytes()))
            validate(nb, key, stem)
            return nb
        except FileNotFoundError:
            return None
        except Damaged as error:
            reason = str(error)
        except OSError as error:
            reason = error.strerror or str(error)
        except Exception:  # not JSON, a list, cells that are none: whatever it is, not ours
            reason = "it is no notebook"
        self.warn(f"{path} cannot be read and is not used: {reason}")
        return None

    def save(self, key: str, stem: str, nb: NotebookNode) -> bool:
        """Keep a run; False, after one warning with the path, where the store cannot be written."""
        nb.metadata["book"].update(schema=SCHEMA, key=key, stem=stem, code=code_digest(nb))
        try:
            write(self.path(key), nbformat.writes(nb))
            write(
                self.folder / f"{stem}.last",
                json.dumps({"key": key, "cpu": nb.metadata["book"]["cpu"]}),
            )
        except OSError as error:
            if self.written:
                self.warn(
                    f"{self.path(key)} cannot be written ({error.strerror}): this build shows what "
                    f"was run, the next will run it again"
                )
            self.written = False
            return False
        return True

    def touch(self, key: str) -> None:
        """Note that an entry is in use: ``prune`` removes those that are not."""
        with suppress(OSError):
            os.utime(self.path(key))

    def prune(self, days: float) -> list[Path]:
        """Remove entries, and leftovers of interrupted writes, that no build used for so long."""
        limit = time.time() - days * 86400
        removed = []
        for path in [*self.folder.glob("*.ipynb"), *self.folder.glob("*.part")]:
            hour = 3600 if path.suffix == ".part" else 0  # another build may be writing it now
            with suppress(OSError):
                if path.stat().st_mtime < limit - hour:
                    path.unlink()
                    removed.append(path)
        return removed

    def last(self, stem: str) -> dict:
        """{"key", "cpu"} of the last run of a notebook, or {} when it never ran."""
        with suppress(OSError, ValueError, TypeError):
            last = json.loads((self.folder / f"{stem}.last").read_text(encoding="utf-8"))
            return {"key": str(last["key"]), "cpu": float(last["cpu"])}
        return {}


def main(arguments: list[str]) -> None:
    if len(arguments) != 3 or arguments[0] != "prune":
        sys.exit("usage: python -m engine.store prune FOLDER DAYS")
    for gone in Store(Path(arguments[1])).prune(float(arguments[2])):
        print("removed", gone)


if __name__ == "__main__":
    main(sys.argv[1:])
