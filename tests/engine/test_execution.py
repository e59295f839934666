"""Builds of a small book: what is run, what is shown, and what a faulty notebook does to it."""

import importlib.metadata
import json
import logging
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from engine import warm
from engine.options import Options
from engine.session import Session
from engine.surroundings import Memo, accelerators, ask_torch, providers
from sites import CONF, PLAIN, as_a_process, build, build_apart, page, ran, remember, write_site

pytestmark = pytest.mark.xdist_group("execution")  # shares the built book
INDEX = "Book\n====\n\n.. toctree::\n\n   chapters/a\n   chapters/b\n"
CHAPTER = "{0}\n=\n\nValue :result:`value`.\n"
RECORD = """
from IPython.display import display

def record(name, value):
    display({"application/vnd.book.result+json": {"name": name, "value": value}}, raw=True)
"""


def notebook(code: str) -> str:
    return f"# %% [markdown]\n# # Notebook\n# Some text.\n\n# %%\nimport helper\n\n# %%\n{code}\n"


@pytest.fixture(scope="module")
def unbuilt(tmp_path_factory) -> Path:
    """Two chapters with their notebooks, which import a module beside them."""
    return write_site(
        tmp_path_factory.mktemp("execution") / "book",
        {
            "index.rst": INDEX,
            "chapters/a.rst": CHAPTER.format("A"),
            "chapters/b.rst": CHAPTER.format("B"),
            "notebooks/a.py": notebook("helper.record('value', 'first')"),
            "notebooks/b.py": notebook("helper.record('value', 'second')\nprint('hello from b')"),
            "notebooks/helper.py": RECORD,
        },
        conf=CONF.replace(
            '"notebooks/workbench.py"',
            '"notebooks/helper.py", "notebooks/deep.py", "notebooks/workbench.py"',
        ),
    )


@pytest.fixture(scope="module")
def first(unbuilt):
    """The first build of the book, in a process of its own, as `make html` runs it."""
    result = build_apart(unbuilt)
    shutil.copytree(unbuilt, unbuilt.with_name("as it was built"))
    return result


@pytest.fixture
def book(first, unbuilt) -> Path:
    """The book as its first build has left it, again for each test."""
    shutil.rmtree(unbuilt)
    shutil.copytree(unbuilt.with_name("as it was built"), unbuilt)
    return unbuilt


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_second_build_runs_nothing_and_an_edit_of_code_runs_that_notebook(first, book):
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stderr == ""
    assert sorted(ran(first)) == ["a", "b"]
    assert "Value second." in page(book, "chapters/b").text
    assert ran(build(book)) == []
    edit(book / "notebooks" / "b.py", "'second'", "'third'")
    again = build(book)
    assert ran(again) == ["b"]
    assert "Value third." in page(book, "chapters/b").text


def test_a_changed_helper_reruns_and_a_changed_tag_alt_text_or_paragraph_does_not(book):
    edit(book / "notebooks" / "b.py", "# Some text.", "# Another paragraph.")
    edit(
        book / "notebooks" / "b.py", "# %%\nhelper", '# %% tags=["hide-input"] alt="words"\nhelper'
    )
    again = build(book)
    assert again.returncode == 0, again.stderr
    assert ran(again) == []
    assert "Another paragraph." in page(book, "notebooks/b").text
    edit(book / "notebooks" / "helper.py", '"value": value', '"value": value.upper()')
    assert sorted(ran(build(book))) == ["a", "b"]
    assert "Value SECOND." in page(book, "chapters/b").text


def test_a_failing_notebook_is_named_and_fails_each_build_until_it_is_mended(book):
    path = book / "notebooks" / "a.py"
    good = path.read_text(encoding="utf-8")
    path.write_text(good + "\n# %%\nx = 1\nx / 0\n", encoding="utf-8")
    line = len(path.read_text(encoding="utf-8").splitlines())
    for _ in range(2):
        failed = build(book)
        assert failed.returncode != 0
        assert "1 of 2 notebooks failed" in failed.stderr
        assert (
            f"notebooks/a.py:{line}: cell 4: ZeroDivisionError: division by zero" in failed.stderr
        )
        assert "x / 0" in failed.stderr  # the last frames
        assert "Value second." in page(book, "chapters/b").text
    path.write_text(good.replace("first", "mended"), encoding="utf-8")
    mended = build(book)
    assert mended.returncode == 0, mended.stderr
    assert "Value mended." in page(book, "chapters/a").text


def test_a_notebook_whose_surroundings_are_mended_is_read_again(book):
    """The text of the notebook and of its chapter stays the same; only the helper was wrong."""
    helper = book / "notebooks" / "helper.py"
    good = helper.read_text(encoding="utf-8")
    helper.write_text("raise OSError('no data here')\n", encoding="utf-8")
    failed = build(book)
    assert failed.returncode != 0
    assert "2 of 2 notebooks failed" in failed.stderr
    assert "OSError: no data here" in failed.stderr
    helper.write_text(good, encoding="utf-8")
    mended = build(book)
    assert mended.returncode == 0, mended.stderr
    assert "Value first." in page(book, "chapters/a").text
    assert "no data here" not in page(book, "notebooks/a").text


def test_only_the_notebook_asked_for_is_run_and_force_runs_it_again(book):
    assert ran(build(book, "-D", "notebooks_only=b", "-D", "notebooks_force=1")) == ["b"]
    edit(book / "notebooks" / "a.py", "'first'", "'changed'")
    edit(book / "notebooks" / "b.py", "'second'", "'changed'")
    only = build(book, "-D", "notebooks_only=b")
    assert ran(only) == ["b"]
    assert "a.py has changed since its last run and is not asked for" in only.stderr
    wrong = build(book, "-D", "notebooks_only=c")
    assert wrong.returncode != 0
    assert "no notebook named c; there are: a, b" in wrong.stderr


def test_a_damaged_entry_of_the_store_is_run_again_with_a_warning(book):
    last = json.loads((book / ".store" / "a.last").read_text())
    entry = book / ".store" / f"{last['key']}.ipynb"
    entry.write_text(entry.read_text()[:100])
    again = build(book)
    assert "cannot be read and is not used" in again.stderr
    assert ran(again) == ["a"]
    assert build(book).returncode == 0


def test_a_parallel_build_gives_the_same_pages(book):
    parallel = build(book, "-j", "2", "-E")
    assert parallel.returncode == 0, parallel.stderr
    assert "Value second." in page(book, "chapters/b").text
    edit(book / "notebooks" / "b.py", "'second'", "'third'")
    assert build(book, "-j", "2").returncode == 0
    assert "Value third." in page(book, "chapters/b").text


def test_warnings_in_a_notebook_name_the_true_line(book):
    path = book / "notebooks" / "a.py"
    path.write_text(path.read_text() + "\n# %% [markdown]\n# Some {unknown}`role`.\n")
    line = len(path.read_text().splitlines())
    result = build(book)
    assert result.returncode != 0
    assert f"notebooks/a.py:{line}: WARNING: Unknown interpreted text role" in result.stderr


# ---- right results, whatever the input -------------------------------------------------------------


def test_a_comment_that_looks_like_a_magic_is_not_run_and_hides_no_import(book):
    path = book / "notebooks" / "b.py"
    path.write_text(path.read_text() + "# why?\n# !touch /no/such/place\n# %matplotlib inline\n")
    assert build(book).stderr == ""
    assert "# why?" in page(book, "notebooks/b").text
    edit(book / "notebooks" / "helper.py", '"value": value', '"value": value.upper()')
    assert sorted(ran(build(book))) == ["a", "b"]


def test_an_edit_of_an_import_of_an_import_runs_the_notebook(book):
    helper = book / "notebooks" / "helper.py"
    helper.write_text("import deep\n" + helper.read_text())
    (book / "notebooks" / "deep.py").write_text("WORD = 'deep'\n")
    edit(book / "notebooks" / "b.py", "'second'", "helper.deep.WORD")
    assert build(book).returncode == 0
    assert "Value deep." in page(book, "chapters/b").text
    edit(book / "notebooks" / "deep.py", "deep", "deeper")
    assert sorted(ran(build(book))) == ["a", "b"]
    assert "Value deeper." in page(book, "chapters/b").text


@pytest.mark.parametrize(
    ("damage", "line", "said"),
    [
        (lambda text: text.encode() + b"# \xe9\n", 19, "not UTF-8"),
        (lambda text: text.replace("# %%\nhelper", "# %% tags='it'\nhelper").encode(), 16, "tags="),
        (lambda text: text.replace("# %%\nhelper", "# %% alt=5\nhelper").encode(), 16, "alt=5"),
        (lambda text: text.encode() + b"x = = 1\n", 19, "not Python"),
        (
            lambda text: text.replace("# jupyter", "# limits:\n#   cell: 1\n# jupyter").encode(),
            1,
            "limits",
        ),
    ],
    ids=["encoding", "tags", "alt", "syntax", "limits outside of jupyter"],
)
def test_a_faulty_notebook_is_one_line_and_the_others_are_built(book, damage, line, said):
    path = book / "notebooks" / "b.py"
    good = path.read_text()
    path.write_bytes(damage(good))
    for _ in range(2):
        result = build(book)
        assert result.returncode != 0
        (fault,) = [row for row in result.stderr.splitlines() if "b.py:" in row and said in row]
        assert f"notebooks/b.py:{line}:" in fault
        assert "Traceback" not in result.stderr and "has occurred" not in result.stderr
        assert "Value first." in page(book, "chapters/a").text
    path.write_text(good)
    mended = build(book)
    assert (mended.returncode, mended.stderr) == (0, "")


def test_a_byte_order_mark_is_no_code(book):
    path = book / "notebooks" / "b.py"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    result = build(book)
    assert (result.returncode, result.stderr) == (0, "")
    assert "jupyter" not in page(book, "notebooks/b").text


WAIT = """
import pathlib, time
pathlib.Path({folder!r}, "runs").open("a").write("x")
while not pathlib.Path({folder!r}, "go").exists():
    time.sleep(0.05)
"""


def while_it_runs(book, change, *options: str):
    """A build of the book during whose run of b something changes; its result and times b ran."""
    path, over = book / "notebooks" / "b.py", threading.Event()
    path.write_text(path.read_text() + WAIT.format(folder=str(book)))

    def watch():
        while not (book / "runs").exists():
            if over.wait(0.05):
                return
        try:
            change()
        finally:
            (book / "go").touch()

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = build(book, *options)
    over.set()
    watcher.join()
    return result, len((book / "runs").read_text())


def test_a_helper_that_is_edited_meanwhile_is_not_stored_as_what_ran(book):
    helper = book / "notebooks" / "helper.py"
    good = helper.read_text()
    result, runs = while_it_runs(book, lambda: helper.write_text(good + "# edited\n"))
    assert (result.returncode, runs) == (0, 1)
    assert sorted(ran(build(book))) == ["a", "b"]
    helper.write_text(good)
    assert ran(build(book)) == []


def test_a_notebook_that_is_edited_meanwhile_shows_what_ran_and_runs_in_the_next_build(book):
    path = book / "notebooks" / "b.py"
    result, runs = while_it_runs(book, lambda: edit(path, "'second'", "'edited'"))
    assert (result.returncode, runs) == (0, 1)
    assert "Value second." in page(book, "chapters/b").text
    assert "'edited'" not in page(book, "notebooks/b").text
    assert ran(build(book)) == ["b"]
    assert "Value edited." in page(book, "chapters/b").text


def test_a_store_that_is_deleted_meanwhile_runs_nothing_twice(book):
    def delete():
        # moved first: the build goes on writing, and a folder that fills again is not deleted
        (book / ".store").rename(book / "old")
        shutil.rmtree(book / "old")

    result, runs = while_it_runs(book, delete, "-D", "notebooks_force=1")
    assert (result.returncode, runs) == (0, 1)
    assert "Value second." in page(book, "chapters/b").text


def test_a_notebook_that_is_deleted_meanwhile_is_named_in_one_line(book):
    path = book / "notebooks" / "b.py"
    result, _ = while_it_runs(book, path.unlink)
    assert result.returncode != 0
    assert "b.py was deleted while the build ran" in result.stderr
    assert "Traceback" not in result.stderr and "has occurred" not in result.stderr
    assert "Value first." in page(book, "chapters/a").text


@pytest.mark.parametrize(
    "content", ['{"x": 1}', "[]", "{}", '{"cells": [], "metadata": {"book": {}}}']
)
def test_an_entry_that_is_not_ours_is_replaced_and_the_build_after_is_silent(book, content):
    last = json.loads((book / ".store" / "a.last").read_text())
    (book / ".store" / f"{last['key']}.ipynb").write_text(content)
    again = build(book)
    assert "is not used" in again.stderr and "Traceback" not in again.stderr
    assert ran(again) == ["a"]
    after = build(book)
    assert (after.returncode, after.stderr, ran(after)) == (0, "", [])
    assert "Value first." in page(book, "chapters/a").text


def test_a_store_that_cannot_be_written_is_named_and_the_results_are_shown(book):
    shutil.rmtree(book / ".store")
    (book / ".store").write_text("a file is in the way")
    result = build(book)
    assert result.returncode != 0
    assert result.stderr.count("cannot be written") == 1
    assert str(book / ".store") in result.stderr
    assert sorted(ran(result)) == ["a", "b"]
    assert "Value second." in page(book, "chapters/b").text


def test_a_text_of_the_notebook_is_no_markup_in_its_foot(book):
    (book / "notebooks" / "workbench.py").write_text(
        "sources = ['<b>bold</b> *x* [l](http://a.b) `c`']\n"
    )
    path = book / "notebooks" / "b.py"
    path.write_text(path.read_text() + "import workbench\n")
    result = build(book)
    assert (result.returncode, result.stderr) == (0, "")
    foot = page(book, "notebooks/b").select_one(".admonition.run")
    assert "<b>bold</b> *x* [l](http://a.b) `c`" in foot.text
    assert not foot.select("b, em, code, a")


def test_time_and_date_of_the_foot_are_not_in_the_catalogues(book):
    result = build(book, "-b", "gettext", out="gettext")
    assert (result.returncode, result.stderr) == (0, "")
    catalogue = (book / "_build" / "gettext" / "notebooks.pot").read_text()
    assert "Some text." in catalogue
    assert (
        "Device" not in catalogue
        and time.strftime("%Y-%m-%d") not in catalogue.partition("Some")[2]
    )


def test_two_notebooks_of_the_same_code_have_an_entry_each(book):
    path = book / "notebooks" / "b.py"
    path.write_text((book / "notebooks" / "a.py").read_text())
    assert ran(build(book)) == ["b"]
    again = build(book)
    assert (again.returncode, again.stderr, ran(again)) == (0, "", [])


def test_two_builds_in_one_process_do_not_share_a_session(tmp_path):
    """Two books whose notebooks have the same name and text beside different helpers."""
    for word in ("one", "two"):
        files = {
            "index.rst": "Book\n====\n\n.. toctree::\n\n   chapters/a\n",
            "chapters/a.rst": CHAPTER.format("A"),
            "notebooks/a.py": notebook("helper.record('value', helper.WORD)"),
            "notebooks/helper.py": RECORD + f"WORD = {word!r}\n",
        }
        conf = CONF.replace('"notebooks/workbench.py"', '"notebooks/helper.py"')
        remember(write_site(tmp_path / word, files, conf))
    with as_a_process(PLAIN) as (_, warning), docutils_namespace():
        apps = [
            Sphinx(f, f, f / "_build" / "html", f / "_build" / "d", "html", warning=warning)
            for f in (tmp_path / "one", tmp_path / "two")
        ]
        for app in apps:
            app.build()
    assert [app.statuscode for app in apps] == [0, 0], warning.getvalue()
    assert "Value one." in page(tmp_path / "one", "chapters/a").text
    assert "Value two." in page(tmp_path / "two", "chapters/a").text


# ---- the key ---------------------------------------------------------------------------------------


def key(folder: Path, profile: str = "sample", device: str = "cpu") -> str:
    session = Session(Options(folder / "store", profile), logging.getLogger())
    session.device = device
    (notebook,) = session.records({"n": folder / "n.py"}).values()
    return session.key(notebook)


def test_the_key_covers_modules_versions_device_profile_and_settings(tmp_path, monkeypatch):
    (tmp_path / "n.py").write_text("# %%\nimport helper, numpy\n")
    (tmp_path / "helper.py").write_text("x = 1\n")
    keys = [key(tmp_path), key(tmp_path, "full"), key(tmp_path, device="cuda")]
    assert key(tmp_path) == keys[0]
    (tmp_path / "helper.py").write_text("x = 2\n")
    keys.append(key(tmp_path))
    monkeypatch.setattr("engine.session.versions", lambda modules, memo: {"numpy": "0"})
    keys.append(key(tmp_path))
    monkeypatch.setitem(warm.FIXED, "PYTHONHASHSEED", "1")
    keys.append(key(tmp_path))
    assert len(set(keys)) == len(keys)


def test_torch_is_asked_for_a_device_again_when_what_it_can_see_has_changed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("engine.surroundings.ask_torch", lambda: asked.append(1) or ["cpu", 0])

    def device():
        return accelerators(Memo(tmp_path / "memo.json"))

    assert [device(), device(), len(asked)] == [("cpu", 0), ("cpu", 0), 1]
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    assert [device(), len(asked)] == [("cpu", 0), 2]


def test_the_answer_for_the_device_is_found_among_what_else_is_printed(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("print('hello from my site')\nprint('cuda 3')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert ask_torch()[0] != "cuda" or ask_torch()[1] != 3


def test_torch_that_cannot_be_asked_is_said_in_words(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart is missing')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="which device it sees: OSError: libcudart is missing"):
        ask_torch()


def test_which_package_provides_a_module_is_looked_up_once_and_again_after_an_install(
    tmp_path, monkeypatch
):
    calls = []
    real = importlib.metadata.packages_distributions
    monkeypatch.setattr(
        importlib.metadata, "packages_distributions", lambda: calls.append(1) or real()
    )
    for n, expected in ((0, 1), (1, 1)):
        found = providers(["PIL", "numpy"], Memo(tmp_path / "memo.json"))
        assert found == {"PIL": ["pillow"], "numpy": ["numpy"]}
        assert len(calls) == expected, n
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "other-1.0.dist-info").mkdir()
    providers(["PIL"], Memo(tmp_path / "memo.json"))
    assert len(calls) == 2
