"""A warning comes again with each build until its page is mended."""

import re

import pytest

from sites import CONF, build, write_site

CLEAN = "P\n=\n\nA page without a fault.\n"
FAULTS = {  # page -> (its text, what the warning says)
    "chapters/reference": (":ref:`nowhere`", "undefined label: 'nowhere'"),
    "chapters/role": (":nonsense:`x`", 'Unknown interpreted text role "nonsense"'),
    "chapters/value": (":result:`n/absent`", "recorded no value named 'absent'"),
    "chapters/tag": (".. cells:: absent\n   :notebook: n", "is tagged 'absent'"),
    "chapters/part": (".. include:: part.txt", "undefined label: 'elsewhere'"),
    "chapters/alone": ("", "isn't included in any toctree"),
    "notebooks/n": (None, "stderr was found"),
}
LOUD = "# %% [markdown]\n# # N\n\n# %%\nimport sys\n\nprint('x', file=sys.stderr)\n"


def faulty(tmp_path):
    files = {
        f"{name}.rst": f"P\n=\n\n{text}\n" for name, (text, _) in FAULTS.items() if text is not None
    }
    linked = "".join(f"   {name}\n" for name in FAULTS if name != "chapters/alone")
    files |= {
        "index.rst": f"B\n=\n\n.. toctree::\n\n{linked}   chapters/clean\n",
        "chapters/clean.rst": CLEAN,
        "chapters/part.txt": "Here :ref:`elsewhere`.\n",
        "notebooks/n.py": LOUD,
    }
    return write_site(tmp_path, files, CONF)


def warnings(result) -> list[str]:
    """The pages whose fault was reported, in the order of their names."""
    return [page for page, (_, message) in FAULTS.items() if message in result.stderr]


def read_again(result) -> int:
    """How many pages of the last build were read again."""
    return int(re.search(r"0 added, (\d+) changed", result.stdout)[1])


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_each_kind_of_warning_comes_again_until_its_page_is_mended(tmp_path, jobs):
    folder = faulty(tmp_path)
    for _ in range(3):
        result = build(folder, "-j", jobs)
        assert result.returncode != 0
        assert warnings(result) == list(FAULTS), result.stderr
    assert read_again(result) == len(FAULTS), "a page without a warning is read again"
    for page in FAULTS:
        if page.startswith("chapters/"):
            (folder / f"{page}.rst").write_text(CLEAN, encoding="utf-8")
    (folder / "chapters/alone.rst").write_text(":orphan:\n\n" + CLEAN, encoding="utf-8")
    result = build(folder, "-j", jobs)
    assert result.returncode != 0 and warnings(result) == ["notebooks/n"], result.stderr
    notebook = folder / "notebooks/n.py"
    notebook.write_text(notebook.read_text().replace(", file=sys.stderr", ""))
    assert build(folder, "-j", jobs).returncode == 0
    result = build(folder, "-j", jobs)
    assert (result.returncode, result.stderr, read_again(result)) == (0, "", 0)


def test_a_warning_for_one_format_is_not_forgotten_in_another(tmp_path):
    files = {"index.rst": "B\n=\n\n:nonsense:`x`\n"}
    folder = write_site(tmp_path, files, 'extensions = ["warned"]\n')
    for builder in ("text", "xml", "text"):
        doctrees = str(folder / "_build" / "doctrees")
        assert build(folder, "-b", builder, "-d", doctrees, out=builder).returncode != 0


def test_a_warning_that_is_suppressed_does_not_make_its_page_read_again(tmp_path):
    files = {"index.rst": "B\n=\n\nText.\n", "alone.rst": CLEAN}
    settings = 'extensions = ["warned"]\nsuppress_warnings = ["toc.not_included"]\n'
    folder = write_site(tmp_path, files, settings)
    assert build(folder).returncode == 0
    assert read_again(build(folder)) == 0
