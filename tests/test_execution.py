"""The key, the store, the runner and what a failing notebook does to a build."""

import json
import os

import nbformat
import pytest

from runner import Job, Limits, run
from sites import build, page, ran, write_site
from store import Store, parse

INDEX = "Book\n====\n\n.. toctree::\n\n   chapters/a\n   chapters/b\n"
CHAPTER = "{0}\n=\n\nValue :result:`value`.\n"
RECORD = """
from IPython.display import display

def record(name, value):
    display({"application/vnd.book.result+json": {"name": name, "value": value}}, raw=True)
"""


def notebook(code: str) -> str:
    return f"# %% [markdown]\n# # Notebook\n# Some text.\n\n# %%\nimport helper\n\n# %%\n{code}\n"


@pytest.fixture
def book(tmp_path):
    """Two chapters with their notebooks, which import a module beside them."""
    return write_site(
        tmp_path,
        {
            "index.rst": INDEX,
            "chapters/a.rst": CHAPTER.format("A"),
            "chapters/b.rst": CHAPTER.format("B"),
            "notebooks/a.py": notebook("helper.record('value', 'first')"),
            "notebooks/b.py": notebook("helper.record('value', 'second')\nprint('hello from b')"),
            "notebooks/helper.py": RECORD,
        },
        conf=open_conf(),
    )


def open_conf() -> str:
    from sites import CONF

    return CONF.replace('"notebooks/workbench.py"', '"notebooks/helper.py"')


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_second_build_runs_nothing_and_an_edit_of_code_runs_that_notebook(book):
    first = build(book)
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
    build(book)
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
    path.write_text(good, encoding="utf-8")
    mended = build(book)
    assert mended.returncode == 0, mended.stderr
    assert "Value first." in page(book, "chapters/a").text


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
    build(book)
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
    build(book)
    last = json.loads((book / ".store" / "a.last").read_text())
    entry = book / ".store" / f"{last['key']}.ipynb"
    entry.write_text(entry.read_text()[:100])
    again = build(book)
    assert "cannot be read; the notebook is run again" in again.stderr
    assert ran(again) == ["a"]
    assert build(book).returncode == 0


def test_a_parallel_build_gives_the_same_pages(book):
    parallel = build(book, "-j", "2")
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


def job(tmp_path, code: str, **limits: float) -> Job:
    path = tmp_path / "n.py"
    path.write_text(f"# %%\n{code}\n")
    nb = nbformat.writes(parse(path.read_text()))
    return Job("n", str(path), nb, {}, str(tmp_path), Limits(**limits))


def test_a_kernel_that_dies_is_an_outcome_not_a_crash(tmp_path):
    outcome = run(job(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    assert "the kernel was killed from outside" in outcome.error
    assert (outcome.cell, outcome.line) == (1, 1)


def test_a_cell_that_takes_too_long_is_called_so(tmp_path):
    outcome = run(job(tmp_path, "import time; time.sleep(30)", cell=1))
    assert outcome.error == "the cell ran longer than 1 s"


def test_an_expected_exception_and_a_skipped_cell_are_no_failure(tmp_path):
    code = '1 / 0\n\n# %% tags=["skip-execution"]\nnever()\n'
    path = tmp_path / "n.py"
    path.write_text(f'# %% tags=["raises-exception"]\n{code}')
    nb = nbformat.writes(parse(path.read_text()))
    outcome = run(Job("n", str(path), nb, {}, str(tmp_path)))
    assert outcome.error == ""


def test_recorded_values_leave_the_outputs(tmp_path):
    outcome = run(job(tmp_path, RECORD + "record('x', 3)\nprint('seen')"))
    nb = nbformat.reads(outcome.notebook, as_version=4)
    assert nb.metadata["book"]["results"] == {"x": 3}
    assert [o.output_type for o in nb.cells[0].outputs] == ["stream"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda nb: nb.cells[0].metadata.update(tags=["hide-input"], alt="seen"), True),
        (lambda nb: nb.cells.append(nbformat.v4.new_markdown_cell("text")), True),
        (lambda nb: nb.cells[0].metadata.update(tags=["raises-exception"]), False),
        (lambda nb: nb.cells[0].update(source="x = 2"), False),
        (lambda nb: nb.metadata.update(kernelspec={"name": "other"}), False),
    ],
    ids=["display tag and alt text", "paragraph", "execution tag", "code", "kernel"],
)
def test_the_key_changes_with_what_can_change_the_outputs(tmp_path, change, same):
    store = Store(tmp_path / "store", "sample")
    nb = parse("# %%\nx = 1\n")
    before = store.key(nb, tmp_path)
    change(nb)
    assert (store.key(nb, tmp_path) == before) is same


def test_the_key_covers_local_modules_versions_device_and_profile(tmp_path, monkeypatch):
    store = Store(tmp_path / "store", "sample")
    nb = parse("# %%\nimport helper, numpy\n")
    (tmp_path / "helper.py").write_text("x = 1\n")
    keys = [store.key(nb, tmp_path), Store(tmp_path / "store", "full").key(nb, tmp_path)]
    (tmp_path / "helper.py").write_text("x = 2\n")
    keys.append(store.key(nb, tmp_path))
    monkeypatch.setattr("store.accelerators", lambda folder: ("cuda", 1))
    keys.append(store.key(nb, tmp_path))
    monkeypatch.setattr("store.versions", lambda modules: {"numpy": "0"})
    keys.append(store.key(nb, tmp_path))
    assert len(set(keys)) == len(keys)


def test_torch_is_asked_for_a_device_again_when_what_it_can_see_has_changed(tmp_path, monkeypatch):
    store = Store(tmp_path / "store", "sample")
    store.fingerprint(parse("# %%\n1\n"), tmp_path)
    memo = tmp_path / "store" / "device.json"
    kept = json.loads(memo.read_text())
    memo.write_text(json.dumps({**kept, "device": "from the memo"}))
    assert store.fingerprint(parse("# %%\n1\n"), tmp_path)["device"] == "from the memo"
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    assert store.fingerprint(parse("# %%\n1\n"), tmp_path)["device"] == "cpu"
