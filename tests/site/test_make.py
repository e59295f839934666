"""The Makefile's plumbing, with a stub in place of Python that writes down how it was called."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from loader import ROOT
from sites import BOOK

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
STUB = '#!/bin/sh\nfor word; do printf "[%s]" "$word"; done >> calls\necho >> calls\n'
# what writes an electronic book
EPUB = f"{STUB}mkdir -p _build/epub && touch _build/epub/book.epub\n"
# pip, where visdom cannot be built
OLD = f'{STUB}case "$*" in *visdom*) cat "$PIP_BUILD_CONSTRAINT" >> calls; exit 1;; esac\n'
# what Debian's python3 does without the package python3-venv
HALF = f'{STUB}mkdir -p .venv/bin && cp "$0" .venv/bin/python\nexit 1\n'


def program(path: Path, text: str = STUB) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def make(tmp_path, *arguments: str, **environment: str):
    """Run make in a folder whose path has a space; the calls of the stub, or what make said."""
    project = tmp_path / "a project"
    project.mkdir(exist_ok=True)
    for file in (ROOT / "Makefile", *ROOT.glob("requirements*.txt")):
        if not (project / file.name).exists():  # a newer file would be installed again
            shutil.copy(file, project)
    ours = {"PYTHON", "VIRTUAL_ENV", "MAKEFLAGS", "NB", "SPHINXOPTS"}
    env = {name: value for name, value in os.environ.items() if name not in ours}
    result = subprocess.run(
        ["make", *arguments], cwd=project, env=env | environment, capture_output=True, text=True
    )
    calls = project / "calls"
    return result, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize("name", ["my python", "o'python"])
@pytest.mark.parametrize("how", ["PYTHON", "VIRTUAL_ENV"])
def test_a_path_of_python_may_have_a_space_or_a_quote(tmp_path, how, name):
    place = program(tmp_path / name / "bin" / "python")
    value = place if how == "PYTHON" else place.parent.parent
    result, calls = make(tmp_path, "html", **{how: str(value)})
    assert result.returncode == 0, result.stderr
    assert calls[0].startswith("[-m][pip][install]")
    assert calls[-1] == "".join(f"[{word}]" for word in BOOK)  # what the tests of the site run


def test_each_setting_reaches_sphinx_as_one_word(tmp_path):
    stub = program(tmp_path / "stub")
    given = {
        "NB": "resnet,  vgg",
        "FORCE": "maybe so",
        "JOBS": "$$(echo 2)",
        "WARM": "it's",
        "CLUSTER": "tcp://a:1;x",
        "MEM": "4 GiB",
    }
    settings = [f"{name}={value}" for name, value in given.items()]
    result, calls = make(tmp_path, "html", f"PYTHON={stub}", *settings)
    assert result.returncode == 0, result.stderr
    assert calls[-1] == (
        "[-m][sphinx][-n][--keep-going]"
        "[-D][notebooks_only=resnet,  vgg][-D][notebooks_force=maybe so]"
        "[-D][notebooks_jobs=$(echo 2)][-D][notebooks_warm=it's]"
        "[-D][notebooks_cluster=tcp://a:1;x][-D][notebooks_memory=4 GiB]"
        "[-b][html][.][_build/html]"
    )


def test_the_electronic_book_is_made_anew_from_the_doctrees_of_the_site(tmp_path):
    stub = program(tmp_path / "stub", EPUB)
    project = tmp_path / "a project"
    stale = program(project / "_build" / "epub" / "stale.xhtml")
    result, calls = make(tmp_path, "epub", PYTHON=str(stub))
    assert result.returncode == 0, result.stderr
    assert calls[-1].endswith("[-b][epub][-d][_build/html/.doctrees][.][_build/epub]")
    assert not stale.exists()
    assert (project / "_build" / "html" / "book.epub").is_file()


def test_the_pdf_is_made_from_a_site_that_is_built_first(tmp_path):
    stub = program(tmp_path / "stub")
    result, calls = make(tmp_path, "pdf", PYTHON=str(stub))
    assert result.returncode == 0, result.stderr
    assert calls[-2].endswith("[-b][html][.][_build/html]")
    assert calls[-1] == "[tools/pdf.py][_build/html][_build/html/book.pdf]"


def test_what_is_installed_is_not_installed_again_for_the_same_python(tmp_path):
    first, second = program(tmp_path / "one python"), program(tmp_path / "other python")
    for stub, installs in ((first, 3), (first, 3), (second, 6)):
        _, calls = make(tmp_path, "html", PYTHON=str(stub))
        assert sum(call.startswith("[-m][pip]") for call in calls) == installs


def test_without_visdom_the_book_is_built_all_the_same(tmp_path):
    stub = program(tmp_path / "stub", OLD)
    result, calls = make(tmp_path, "html", PYTHON=str(stub))
    assert result.returncode == 0 and "visdom was not installed" in result.stderr
    assert calls[-2] == "setuptools < 80" and calls[-1].endswith("[-b][html][.][_build/html]")


def test_an_environment_that_cannot_be_made_is_removed_and_the_package_is_named(tmp_path):
    program(tmp_path / "bin" / "python3", HALF)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    for _ in range(2):
        result, calls = make(tmp_path, "html", PATH=path)
        assert result.returncode != 0
        assert "python3-venv" in result.stderr
        assert not (tmp_path / "a project" / ".venv").exists()
    assert calls == ["[-m][venv][.venv]"] * 2
