"""The record of a notebook: what is written is what runs, and what it depends on is found."""

from pathlib import Path

import pytest

from engine.notebook import Folder, code_cells, read, text_key
from sites import HEADER


def record(folder: Path, text: str | bytes, **files: str):
    """The record of n.py with other files beside it; a name's double underscore is a slash."""
    for name, source in files.items():
        path = folder / f"{name.replace('___', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source, encoding="utf-8")
    path = folder / "n.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(path)


LOOKS_LIKE_MAGIC = ["# %matplotlib inline", "# why?", "# !x", "# ?print", "#%time", "# %%timeit"]


@pytest.mark.parametrize("line", LOOKS_LIKE_MAGIC)
def test_a_comment_that_looks_like_a_magic_stays_a_comment(tmp_path, line):
    code = f"import torch\n{line}\nx = 1"
    found = record(tmp_path, f"# %%\n{code}\n")
    assert [cell.source for cell in code_cells(found.nb)] == [code]
    assert found.fault is None
    assert found.imports == {"torch"}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("# %%\nx = 1\n\n# %%\n\n\ny = = 2\n", 7, "not Python: invalid syntax: y = = 2"),
        ("# %%\n%matplotlib inline\n", 2, "not Python"),
        ("# %%\n1\n\n# %% tags='it'\n2\n", 4, 'tags=["a", "b"]'),
        ("# %%\n1\n\n# %% alt=5\n2\n", 4, "alt=5 is no text"),
        ("# %%\n1\n\n# %% [markdown]\n# text\nx = 1\n", 6, "never runs"),
        ("# ---\n# limits:\n#   cell: 3\n# ---\n\n# %%\n1\n", 1, "limits outside of jupyter"),
        ("# ---\n# jupyter:\n#   limits:\n#     cel: 3\n# ---\n\n# %%\n1\n", 3, "there are cell,"),
        ("# ---\n# jupyter:\n#   limits:\n#     cell: x\n# ---\n\n# %%\n1\n", 3, "there are cell,"),
        ("# ---\n# jupyter:\n#   limits:\n#     memory: -1\n# ---\n\n# %%\n1\n", 3, "there are"),
        ("# %%\n'''\n# %% inside a string\n'''\n", 1, "1 cells, but 2 lines"),
        (b"# %%\nx = 1\n# \xe9t\xe9\n", 3, "not UTF-8"),
        ("# %%\nimport n\n", 1, "its own name"),
    ],
)
def test_what_cannot_be_run_is_a_fault_at_its_line_in_one_line(tmp_path, text, line, message):
    fault = record(tmp_path, text).fault
    assert (fault.line, message in fault.message) == (line, True), fault.message
    assert "\n" not in fault.message


def test_a_byte_order_mark_does_not_turn_the_header_into_code(tmp_path):
    found = record(tmp_path, ("\ufeff" + HEADER + "# %%\nx = 1\n").encode())
    assert found.fault is None
    assert [cell.source for cell in found.nb.cells] == ["x = 1"]


def test_a_notebook_that_is_gone_is_a_fault(tmp_path):
    assert "No such file" in read(tmp_path / "n.py").fault.message


def test_imports_of_imports_are_found_with_packages_and_their_parts(tmp_path):
    found = record(
        tmp_path,
        "# %%\nfrom package import part\nimport helper\nfrom torch import nn\n",
        helper="import deep\n",
        deep="def f():\n    import numpy.linalg\n",
        unused="import timm\n",
        package_____init__="VALUE = 1\n",
        package___part="from . import other\nfrom .last import x\nfrom json import loads\n",
        package___other="",
        package___last="import scipy\nx = 1\n",
        package___unused="import librosa\n",
    )
    assert list(found.files) == [
        "deep.py",
        "helper.py",
        "package/__init__.py",
        "package/last.py",
        "package/other.py",
        "package/part.py",
    ]
    assert found.imports == {"numpy", "scipy", "torch"}


@pytest.mark.parametrize("name", ["helper", "deep", "package_____init__", "package___part"])
def test_an_edit_of_any_module_that_is_reached_changes_the_digest(tmp_path, name):
    files = {
        "helper": "import deep\n",
        "deep": "X = 1\n",
        "package_____init__": "",
        "package___part": "",
        "package___unused": "",
    }
    text = "# %%\nimport helper\nimport package.part\n"
    before = record(tmp_path, text, **files).digest
    assert record(tmp_path, text, **{**files, "package___unused": "X = 1\n"}).digest == before
    assert record(tmp_path, text, **{**files, name: files[name] + "Y = 2\n"}).digest != before


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("# Text.", "# Other text.", True),
        ('["a"]', '["a", "hide-input"] alt="words"', True),
        ('["a"]', '["a", "raises-exception"]', False),
        ("x = 1", "x = 2", False),
        ("name: python3", "name: other", False),
    ],
    ids=["paragraph", "display tag and alt text", "execution tag", "code", "kernel"],
)
def test_the_digest_changes_with_what_can_change_the_outputs(tmp_path, old, new, same):
    text = HEADER + '# %% [markdown]\n# Text.\n\n# %% tags=["a"]\nx = 1\n'
    assert old in text
    before = record(tmp_path, text).digest
    assert (record(tmp_path, text.replace(old, new)).digest == before) is same


def test_a_module_that_is_wrong_is_named_with_its_line(tmp_path):
    fault = record(tmp_path, "# %%\nimport helper\n", helper="x = 1\ny = = 2\n").fault
    assert fault.message == "helper.py:2: not Python: invalid syntax"
    (tmp_path / "helper.py").write_bytes(b"# \xff\n")
    assert "helper.py:1: not UTF-8" in read(tmp_path / "n.py").fault.message


def test_a_text_that_is_known_is_not_parsed_again(tmp_path, monkeypatch):
    first = record(tmp_path, "# %%\nimport helper, numpy\n", helper="import scipy\n")
    monkeypatch.setattr("engine.notebook.parse", None)
    memo = {text_key(first.text): first.found}
    again = read(tmp_path / "n.py", Folder(tmp_path), memo)
    assert (again.digest, again.imports) == (first.digest, first.imports)


def test_a_header_may_set_limits(tmp_path):
    text = "# ---\n# jupyter:\n#   limits:\n#     cell: 7\n#     memory: 0.5\n# ---\n\n# %%\n1\n"
    assert record(tmp_path, text).limits == {"cell": 7, "memory": 0.5}
