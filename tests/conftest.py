"""The real site, built once for the tests that look at it."""

import logging
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock

from browser import launched
from engine.options import Options
from engine.session import Run, Session
from engine.surroundings import accelerators
from loader import NOTEBOOKS, ROOT, STEMS
from sites import bring_up_to_date


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that looks at the site may have to build it, with all its notebooks."""
    for item in items:
        if "site" in item.fixturenames:
            item.add_marker(pytest.mark.timeout(1500))


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """once("name", make) is a folder that one process of a test run has made for all of them."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        with FileLock(shared / f"{name}.lock"):
            if not (shared / f"{name}.made").exists():
                shutil.rmtree(shared / name, ignore_errors=True)
                (shared / name).mkdir()
                make(shared / name)
                (shared / f"{name}.made").touch()
        return shared / name

    return folder


@pytest.fixture(scope="module")  # its event loop must not run while other tests run kernels
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture(scope="session")
def site(once) -> Path:
    """The site that `make html` has built; what it has not, or not from these sources, is now."""
    once("site", lambda _: bring_up_to_date())
    return ROOT / "_build" / "html"


@pytest.fixture(scope="session")
def session(site) -> Session:
    """What the build of the site knew of each notebook, by its stem."""
    session = Session(Options(ROOT / ".store"), logging.getLogger())
    session.device = accelerators(session.memo)[0]
    for stem, notebook in session.records({s: NOTEBOOKS / f"{s}.py" for s in STEMS}).items():
        session.runs[stem] = Run(notebook, session.key(notebook))
    return session


@pytest.fixture(scope="session")
def stored(session) -> Callable[[str], nbformat.NotebookNode]:
    """stored("lenet") is that notebook with its outputs, from the store that the site shows."""
    return cache(lambda stem: session.store.load(session.runs[stem].key, stem))
