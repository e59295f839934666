#!/usr/bin/env python3
"""How many small mistakes in a chapter's definitions its tests find: ``make mutate STEM=resnet``.

Each mutant of a notebook (see mutants.py) must turn one of its chapter's tests red. Those that do
not are listed: each is a hole in the tests or an equal program. Programs that no test can tell from
the original are named in equal_programs.toml with the reason, and not counted. What belongs to an
experiment is reported apart.

The text is changed in memory, in a fork of a process that has imported everything and collected the
tests, so a mutant costs what its tests take until the first one fails, and nothing is ever written.

Of the kept tools mutmut 3 copies the sources into a folder of the project and puts its switches into
the functions of importable modules; cosmic-ray changes the file in place and starts a command for
each mutant. Both would have to be taught how tests load a notebook. The one would pass over its
constants, which are the tables of papers, the other would import torch for each mutant, 4 s.
"""

import argparse
import ast
import contextlib
import functools
import importlib
import io
import itertools
import multiprocessing
import os
import resource
import signal
import sys
import time
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import pytest

import loader
from mutants import Mutant, mutants, sample
from reproduction.definitions import run_definitions

EQUAL = Path(__file__).with_name("equal_programs.toml")
ENOUGH = 0.95
SLOW = 5  # times as long as all tests of the unchanged notebook is too long: the mutant is killed
MEMORY = 6 * 2**30  # bytes that a mutant may take more than the process it was forked from
SOURCE = loader.source


@dataclass
class Result:
    """What came of one chapter."""

    stem: str
    possible: int
    killed: tuple[int, int] = (0, 0)  # and how many were tried
    of_experiments: tuple[int, int] = (0, 0)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def enough(self) -> bool:
        return not self.faults and self.killed[0] >= ENOUGH * self.killed[1]

    def row(self) -> str:
        """A line of the table."""
        killed, tried = self.killed
        share = f"{killed / tried:.1%}" if tried else ""
        counts = (f"{killed} of {tried}" for killed, tried in (self.killed, self.of_experiments))
        first, second = counts
        cells = self.stem, first, share, second, str(self.possible), f"{self.seconds:.0f}"
        return f"| {' | '.join(cells)} |"


HEAD = """\
| chapter | killed | share | of experiments | possible | s |
|---|---:|---:|---:|---:|---:|"""


class Check:
    """Stands in for pytest's loop over the tests: runs them on one mutant after the other."""

    def __init__(self, stem: str, source: bytes, chosen: list[Mutant], least: float, out: TextIO):
        self.stem, self.source, self.chosen = stem, source, chosen
        self.least, self.out = least, out
        self.killed: list[Mutant] = []
        self.faults: list[str] = []
        self.items: list[pytest.Item] = []
        self.failed, self.seconds = "", {}  # of the tests in a child

    def pytest_collectreport(self, report):
        if report.failed:
            self.faults.append(f"the tests cannot be collected: {report.longreprtext}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        self.items = session.items
        if not self.faults:
            start = time.monotonic()
            failed, seconds = in_child(lambda: self.run(self.source), None) or ("they die", {})
            limit = max(self.least, SLOW * (time.monotonic() - start))
            if failed:
                self.faults.append(f"the tests fail without a mutant: {failed}")
        if not self.faults:
            self.items = sorted(session.items, key=lambda item: seconds[item.nodeid])
            for mutant in self.chosen:
                self.judge(mutant, limit)
        return True

    def judge(self, mutant: Mutant, limit: float) -> None:
        """Run the tests on one mutant, those that killed the last ones first."""
        text = mutant.apply(self.source)
        try:
            ast.parse(text)
        except SyntaxError:
            self.faults.append(f"line {mutant.line}: a mutant that is not Python: {mutant.new}")
            return
        killer = in_child(lambda: self.run(text)[0], limit)
        if killer == "":
            before, after = mutant.lines(self.source)
            where = f"notebooks/{self.stem}.py:{mutant.line} {mutant.definition}"
            kind = " (experiment)" if mutant.experiment else ""
            print(f"{where}{kind}\n  - {before}\n  + {after}", file=self.out, flush=True)
        else:
            self.killed.append(mutant)
        self.items.sort(key=lambda item: item.nodeid != killer)

    def run(self, text: bytes) -> tuple[str, dict[str, float]]:
        """The first test that fails on this text, if any, and the seconds of each."""
        loader.source = lambda file: text.decode() if file.stem == self.stem else SOURCE(file)
        for item, following in itertools.zip_longest(self.items, self.items[1:]):
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                break
        return self.failed, self.seconds

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.failed and not self.failed:
            self.failed = report.nodeid


def in_child(task: Callable, limit: float | None):
    """What a function returns in a fork of this process; None if it dies or takes too long."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            alone(limit)
            writer.send(task())
        os._exit(0)
    writer.close()
    try:
        return reader.recv() if reader.poll(limit) else None
    except EOFError:
        return None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        reader.close()


def alone(limit: float | None) -> None:
    """Be silent, and end untold when the time is over or the memory too much."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    if limit:
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1,) * 2)
    with contextlib.suppress(OSError):  # where there is no /proc
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def refuse(file: Path) -> str:
    raise RuntimeError(
        f"{file.name} is run while its tests are collected: ask for its names inside the tests, "
        f"so that the tests can be collected once for all mutants"
    )


def equal_programs(stem: str) -> set[tuple[str, str, str]]:
    """Definition, line and what it becomes, of the mutants that no test can tell from the original."""
    entries = tomllib.loads(EQUAL.read_text(encoding="utf-8")) if EQUAL.exists() else {}
    return {(e["definition"], e["line"], e["becomes"]) for e in entries.get(stem, [])}


def check(stem: str, options: argparse.Namespace) -> Result:
    """One chapter: some of its mutants, or all, and those that survive."""
    start = time.monotonic()
    source = (loader.NOTEBOOKS / f"{stem}.py").read_bytes()
    equal, found, met = equal_programs(stem), [], set()
    for mutant in mutants(source):
        program = mutant.definition, *mutant.lines(source)
        if program in equal:
            met.add(program)
        else:
            found.append(mutant)
    chosen = sample(found, options.n, options.all, source, options.seed)
    loader.source = refuse
    tests = Check(stem, source, chosen, options.limit, sys.stdout)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        early = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
        how = ["-p", "no:cacheprovider", "-s", "-W", early]
        status = pytest.main([*how, str(test_of(stem))], plugins=[tests])
    faults = tests.faults
    if not tests.items:
        faults.append(f"pytest finds no tests ({status!r}): {out.getvalue()}")
    faults += [f"{EQUAL.name} names no mutant: {program}" for program in equal - met]
    counts = []
    for apart in (False, True):
        tried = [m for m in chosen if m.experiment is apart]
        counts.append((sum(m in tests.killed for m in tried), len(tried)))
    return Result(stem, len(found), *counts, faults, time.monotonic() - start)


def warm(stems: list[str]) -> None:
    """Import what the notebooks and their tests import, before there are forks.

    A notebook may set something before an import, so its definitions are run first.
    """
    sys.path += [str(loader.NOTEBOOKS)]
    main_module = sys.modules["__main__"]
    for stem in stems:
        notebook = loader.NOTEBOOKS / f"{stem}.py"
        with warnings.catch_warnings(action="ignore"), contextlib.suppress(Exception):
            run_definitions(notebook)  # its tests tell what is wrong with them
        for file in (notebook, test_of(stem)):
            for name in imports(file):
                with warnings.catch_warnings(action="ignore"):
                    importlib.import_module(name)
    sys.modules["__main__"] = main_module  # IPython, which the workbench imports, has put its own


def imports(file: Path) -> list[str]:
    """The modules that a file imports."""
    found = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module)
    return found


def test_of(stem: str) -> Path:
    return loader.ROOT / "tests" / "chapters" / f"test_{stem}.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stems", nargs="+", help="chapters, or all")
    parser.add_argument("-n", type=int, default=24, help="mutants of a chapter that count")
    parser.add_argument("--all", action="store_true", help="all mutants that count")
    parser.add_argument("--seed", type=int, default=0, help="for another choice of n")
    parser.add_argument("--jobs", type=int, default=1, help="chapters at once")
    parser.add_argument("--limit", type=float, default=20, help="seconds a mutant has at least")
    options = parser.parse_args()
    stems = loader.STEMS if options.stems == ["all"] else options.stems
    os.environ["OMP_NUM_THREADS"] = "1"  # threads do not survive a fork, nor does an accelerator
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["MPLBACKEND"] = "agg"
    warm(stems)
    results = []
    fork = multiprocessing.get_context("fork")
    with fork.Pool(options.jobs, maxtasksperchild=1) as pool:
        for result in pool.imap(functools.partial(check, options=options), stems):
            results.append(result)
            for fault in result.faults:
                print(f"{result.stem}: {fault}", flush=True)
    print("\n".join([HEAD, *(result.row() for result in results)]))
    return 0 if all(result.enough for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
