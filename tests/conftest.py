"""The real site, built once for the tests that look at it."""

import subprocess
import sys
from pathlib import Path

import pytest

from loader import ROOT


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The site as `make html` builds it, in a fresh folder; runs what the store does not have."""
    out = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "--no-color", str(ROOT)]
    result = subprocess.run([*command, str(out)], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr
    return out
