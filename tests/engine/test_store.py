"""Entries of the store: whole or a miss, written in one step, whoever else writes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from engine.store import SCHEMA, Store, write
from loader import ROOT

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def executed(source: str = "x = 1") -> nbformat.NotebookNode:
    shown = nbformat.v4.new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"})
    cell = nbformat.v4.new_code_cell(source, execution_count=1, outputs=[shown])
    nb = nbformat.v4.new_notebook(cells=[cell])
    nb.metadata["book"] = {
        "results": {},
        "versions": {},
        "seconds": 1.0,
        "cpu": 0.5,
        "profile": "sample",
        "finished": 1.5,
    }
    return nb


@pytest.fixture
def store(tmp_path):
    """A store with one entry "key" of the notebook "n", and the list of what it warned of."""
    warnings = []
    store = Store(tmp_path / "store", warnings.append)
    assert store.save("key", "n", executed())
    store.warnings = warnings
    return store


def change(store, edit) -> None:
    path = store.path("key")
    entry = json.loads(path.read_text())
    edit(entry)
    path.write_text(json.dumps(entry))


def test_an_entry_is_read_as_it_was_saved_and_an_absent_one_is_a_silent_miss(store):
    assert store.load("key", "n").cells[0].outputs == executed().cells[0].outputs
    assert store.load("other", "n") is None
    assert store.warnings == []


DAMAGED = {
    "an object": lambda s: s.path("key").write_text('{"x": 1}'),
    "a list": lambda s: s.path("key").write_text("[1, 2]"),
    "a number": lambda s: s.path("key").write_text("3"),
    "cut off": lambda s: s.path("key").write_text(s.path("key").read_text()[:100]),
    "empty": lambda s: s.path("key").write_text(""),
    "not text": lambda s: s.path("key").write_bytes(b"\xff\xfe\x00"),
    "no cells": lambda s: change(s, lambda e: e.update(cells=[])),
    "cells that are none": lambda s: change(s, lambda e: e.update(cells=["x"])),
    "a cell without outputs": lambda s: change(s, lambda e: e["cells"][0].pop("outputs")),
    "a cell that has not run": lambda s: change(
        s, lambda e: e["cells"][0].update(execution_count=None)
    ),
    "other code": lambda s: change(s, lambda e: e["cells"][0].update(source="y = 2")),
    "bad base64": lambda s: change(
        s, lambda e: e["cells"][0]["outputs"][0]["data"].update({"image/png": "!!"})
    ),
    "another schema": lambda s: change(
        s, lambda e: e["metadata"]["book"].update(schema=SCHEMA - 1)
    ),
    "no results": lambda s: change(s, lambda e: e["metadata"]["book"].pop("results")),
    "another notebook": lambda s: change(s, lambda e: e["metadata"]["book"].update(stem="m")),
    "another key": lambda s: change(s, lambda e: e["metadata"]["book"].update(key="other")),
    "a folder": lambda s: (s.path("key").unlink(), (s.path("key") / "x").mkdir(parents=True)),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_is_no_whole_run_is_a_miss_with_a_warning_and_is_replaced(store, damage):
    DAMAGED[damage](store)
    assert store.load("key", "n") is None
    (warning,) = store.warnings
    assert str(store.path("key")) in warning and "is not used" in warning
    assert store.save("key", "n", executed())
    assert store.load("key", "n") is not None


def test_a_store_that_cannot_be_written_is_said_once_with_its_path(tmp_path):
    (tmp_path / "file").write_text("in the way")
    warnings = []
    store = Store(tmp_path / "file" / "store", warnings.append)
    assert not store.save("a", "n", executed())
    assert not store.save("b", "n", executed())
    (warning,) = warnings
    assert str(store.path("a")) in warning and "cannot be written" in warning


def test_a_write_that_fails_leaves_no_part_and_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_machines_with_the_same_process_number_do_not_take_each_others_parts(tmp_path, monkeypatch):
    """Two writers between writing and renaming, as on two machines that share the folder."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    rename = os.replace

    def second_writer_comes_in(part, path):
        monkeypatch.setattr(os, "replace", rename)
        write(tmp_path / "file", "second")
        rename(part, path)

    monkeypatch.setattr(os, "replace", second_writer_comes_in)
    write(tmp_path / "file", "first")
    assert (tmp_path / "file").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_two_builds_at_once_share_a_store(tmp_path):
    """Twenty rounds: two processes save, read and prune the same entries at the same time."""
    code = f"""
import sys
sys.path[:0] = {[str(ROOT / "_ext"), *map(str, Path(__file__).parents[:2])]}
from pathlib import Path
from engine.store import Store
from test_store import executed
warnings = []
store = Store(Path(sys.argv[1]), warnings.append)
for n in range(20):
    for key in "abcdefgh":
        found = store.load(key, "n")
        assert found is None or found.cells[0].source == "x" * 200_000, key
        assert store.save(key, "n", executed("x" * 200_000))
        store.touch(key)
        assert store.last("n")["key"] in "abcdefgh"
    store.prune(0 if n % 5 == 4 else 30)
assert not warnings, warnings
"""
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert not list(tmp_path.glob("*.part"))


def test_prune_removes_what_no_build_used(store):
    old = time.time() - 40 * 86400
    store.save("unused", "n", executed())
    (store.folder / "x.ipynb.12.part").write_text("")
    for path in store.folder.iterdir():
        os.utime(path, (old, old))
    store.touch("key")
    command = [sys.executable, "-m", "engine.store", "prune", str(store.folder), "30"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "_ext")}
    removed = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    assert removed.count("removed") == 2
    assert [path.stem for path in store.folder.glob("*.ipynb")] == ["key"]
    wrong = subprocess.run(command[:4], capture_output=True, text=True, env=env)
    assert wrong.returncode != 0 and "usage" in wrong.stderr
