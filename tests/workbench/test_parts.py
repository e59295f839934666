"""The parts of workbench: what each rests on, and what a notebook that imports some of them carries."""

import ast
from pathlib import Path

import pytest

from engine.export import export, needs
from engine.notebook import Folder, read
from loader import NOTEBOOKS, STEMS
from sites import HEADER

PARTS = {path.stem: path for path in (NOTEBOOKS / "workbench").glob("*.py")}
RESTS_ON = {
    "archives": {"downloads"},
    "images": {"archives"},
    "boxes": {"plots"},
    "annotated": {"boxes", "downloads"},
    "detectors": {"boxes"},
    "comparison": {"boxes", "counting", "scenes"},
    "scenes": {"annotated", "boxes", "images"},
    "pretrained": {"archives"},
    "reading": {"archives", "questions"},
    "sound": {"downloads"},
    "text": {"archives"},
    "tracing": {"counting"},
    "drawing": {"plots", "tracing"},
    "diagrams": {"plots"},
}


def parts(files) -> set[str]:
    return {Path(file).stem for file in files}


def reached(part: str) -> set[str]:
    """A part and all that it rests on."""
    return {part}.union(*(reached(other) for other in RESTS_ON.get(part, ())))


def record(folder: Path, code: str):
    """The record of a notebook of one cell beside the real workbench."""
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "workbench").symlink_to(NOTEBOOKS / "workbench")
    path = folder / "notebooks" / "n.py"
    path.write_text(f"{HEADER}# %%\n{code}\n")
    return read(path)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_imports_workbench_itself_and_what_it_rests_on(part):
    files, _ = Folder(NOTEBOOKS).closure({("workbench", part)})
    assert parts(files) == {"__init__"} | reached(part)


@pytest.mark.parametrize(
    ("code", "carried", "packages"),
    [
        ("from workbench import device, table", set(), set()),
        ("from workbench import checks", {"checks"}, set()),
        ("from workbench import training", {"training"}, {"tqdm"}),
        ("from workbench import plots", {"plots"}, {"matplotlib", "matplotlib_inline"}),
    ],
)
def test_a_notebook_carries_and_installs_what_its_parts_need(tmp_path, code, carried, packages):
    found = record(tmp_path, code)
    assert parts(found.files) == {"__init__"} | carried
    assert needs(found).packages.keys() == {"IPython", "numpy", "torch"} | packages
    written = {name for name in PARTS if f"workbench/{name}.py" in export(found).cells[0].source}
    assert written == {"__init__"} | carried


def called(notebook: ast.Module) -> set[str]:
    """What a notebook takes from workbench: training.fit, and seed of ``from workbench import seed``."""
    found = set()
    for node in ast.walk(notebook):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in PARTS:
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == "workbench":
            found |= {alias.name for alias in node.names}
    return found


def named(statement: ast.stmt) -> set[str]:
    """What the code of a part calls by name."""
    names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    return names | {node.attr for node in ast.walk(statement) if isinstance(node, ast.Attribute)}


def test_each_function_of_a_part_has_a_user():
    found = [called(ast.parse((NOTEBOOKS / f"{stem}.py").read_text("utf-8"))) for stem in STEMS]
    defined = set()
    for path in PARTS.values():
        for statement in ast.parse(path.read_text("utf-8")).body:
            own = {getattr(statement, "name", "")} - {""}
            defined |= own
            found.append(named(statement) - own)
    assert defined - set().union(*found) == set()
