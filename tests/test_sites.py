"""The small sites and the book: built as `make html` builds, whatever was there before."""

import os
import sys

import pytest

from sites import build, build_apart, older_than_its_makers, page, write_site

LOUD = """
import logging, sys, warnings
logging.getLogger("of a library").warning("logged")
warnings.warn("seen", stacklevel=1)
warnings.warn("not seen", DeprecationWarning, stacklevel=1)
sys.path.insert(0, "/no/such/place")
print("printed")
extensions = []
"""


def test_a_build_in_this_process_says_and_leaves_what_one_of_its_own_does(tmp_path, monkeypatch):
    """The tests rest on it: exit status, both streams, and nothing that a later test would see."""
    monkeypatch.setenv("WORD", "before")
    text = "A\n=\n\nText.\n"
    folder = write_site(
        tmp_path, {"index.rst": text}, LOUD + "import os; print(os.environ['WORD'])"
    )
    path = sys.path[:]
    here = build(folder, WORD="given")
    apart = build_apart(folder, out="apart", WORD="given")
    assert (here.returncode, apart.returncode) == (0, 0)
    assert here.stdout.splitlines()[:3] == apart.stdout.splitlines()[:3]
    assert "given" in here.stdout and "printed" in here.stdout
    assert here.stderr.splitlines()[0] == "logged"
    assert sorted(here.stderr.splitlines()) == sorted(apart.stderr.splitlines())
    assert (sys.path, os.environ["WORD"]) == (path, "before")


def test_a_build_knows_nothing_of_the_settings_of_the_build_before(tmp_path):
    """Notebooks as .py files are known to the first site alone: conf.py is no page of the second."""
    index = {"index.rst": "A\n=\n\nText.\n"}
    assert build(write_site(tmp_path / "one", index), "-D", "language=de").returncode == 0
    plain = build(write_site(tmp_path / "two", index, "extensions = []\n"))
    assert (plain.returncode, plain.stderr) == (0, "")
    assert "Search" in page(tmp_path / "two", "search").text


@pytest.mark.parametrize("conf", ["raise SystemExit('stop')", "1 / 0", "extensions = ['absent']"])
def test_a_build_that_breaks_in_this_process_ends_as_one_of_its_own_does(tmp_path, conf):
    folder = write_site(tmp_path, {"index.rst": "A\n=\n"}, conf)
    here, apart = build(folder), build_apart(folder)
    assert here.returncode == apart.returncode != 0
    assert here.stderr.splitlines()[:3] == apart.stderr.splitlines()[:3]


def test_a_site_is_made_anew_when_what_makes_its_pages_has_changed(tmp_path):
    html, makers = tmp_path / "_build" / "html", tmp_path / "_ext" / "engine" / "part.py"
    files = ["index.html", ".doctrees/index.doctree", "_static/old.html"]
    files = {name: html / name for name in files} | {"part": makers, "conf": tmp_path / "conf.py"}
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    def dated(**times: int) -> bool:
        for name, file in files.items():
            os.utime(file, times=(times.get(name, 5),) * 2)
        return older_than_its_makers(html, tmp_path)

    assert not dated(part=1, conf=1)
    assert dated(part=6)
    assert dated(conf=6)
    assert dated(part=3, conf=3, **{".doctrees/index.doctree": 2})
    assert dated(part=3, conf=3, **{"index.html": 2})
    assert not dated(part=3, conf=3, **{"_static/old.html": 2})  # a file of the theme
    template = tmp_path / "_templates" / "sections" / "part.html"
    template.parent.mkdir(parents=True)
    template.touch()
    assert dated(part=3, conf=3)
    assert older_than_its_makers(tmp_path / "nothing", tmp_path)
