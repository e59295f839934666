"""The settings of the tests themselves."""

import subprocess
import sys

from loader import ROOT

HANGS = """
import threading

def test_hangs():
    threading.Event().wait()

def test_after_it():
    pass
"""


def test_a_test_that_hangs_fails_by_its_name_and_the_next_one_runs(tmp_path, pytestconfig):
    assert 0 < float(pytestconfig.getini("timeout")) <= 600
    (tmp_path / "test_it.py").write_text(HANGS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(ROOT / "pyproject.toml"),
        "-o",
        "timeout=1",
    ]
    result = subprocess.run(
        [*command, "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "1 failed, 1 passed" in result.stdout, result.stdout + result.stderr
    assert "test_it.py::test_hangs - Failed: Timeout" in result.stdout
