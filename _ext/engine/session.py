"""One build: which run belongs to which notebook.

``Session`` looks each notebook up in the store and runs those that have no result there, all of them
even if some fail. What is known of each stands in ``runs``.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from .cluster import Cluster
from .notebook import Folder, Notebook, code_cells, read, text_key
from .options import Options
from .pool import Local
from .runner import Job, Limits, Outcome
from .store import SCHEMA, Store
from .surroundings import ALWAYS, Memo, accelerators, python, versions
from .warm import FIXED, Server


class Unknown(ValueError):
    """A notebook is asked for that is not there."""


@dataclass
class Run:
    """What is known of one notebook in this build."""

    notebook: Notebook
    key: str
    origin: str = "from the store"  # or "run", "an earlier run", "not run"
    book: dict = field(default_factory=dict)  # what it recorded and what it ran on
    kept: NotebookNode | None = None  # its outputs, unless they are those in the store
    failure: Outcome | None = None

    @property
    def state(self) -> str:
        """Changes whenever a page has to be made again for its outputs."""
        if self.failure:
            return "failed"
        return f"{self.key} {self.book.get('finished', 'not run')}"


class Session:
    """The runs of one build. log: has info and warning, as a logger."""

    def __init__(self, options: Options, log):
        self.options, self.log = options, log
        self.fresh = not options.store.exists()
        self.store = Store(options.store, log.warning)
        self.memo = Memo(options.store / "memo.json")
        self.cores = os.cpu_count() or 1
        self.runs: dict[str, Run] = {}  # by the document's name
        self.device, self.gpus = "cpu", 0

    # ---- what there is ---------------------------------------------------------------------------

    def prepare(self, paths: dict[str, Path]) -> None:
        """Find each notebook's result and run those that have none. Raises Unknown, Refused."""
        stems = {path.stem for path in paths.values()}
        if unknown := self.options.only - stems:
            known = ", ".join(sorted(stems))
            raise Unknown(f"no notebook named {', '.join(sorted(unknown))}; there are: {known}")
        server = self.early_server(paths)
        try:
            device, count = accelerators(self.memo)
            self.device, self.gpus = device, count if device == "cuda" else 0
            for docname, notebook in self.records(paths).items():
                self.runs[docname] = Run(notebook, self.key(notebook))
            jobs = [doc for doc, run in self.runs.items() if self.to_run(run)]
            if jobs:
                pool, server = self.pool(jobs, server), None
                self.execute(jobs, pool)
        finally:
            if server:
                server.close()

    def early_server(self, paths: dict[str, Path]) -> Server | None:
        """A store that is not there has no result: the server may import torch while another
        process is asked for the device."""
        if paths and self.fresh and self.options.warm and not self.options.cluster:
            return Server(max(1, self.cores // (self.options.jobs or self.cores)))
        return None

    def records(self, paths: dict[str, Path]) -> dict[str, Notebook]:
        """Each notebook, read once; what parsing found is kept for the next build."""
        folders = {path.parent: Folder(path.parent) for path in paths.values()}
        known = self.memo.get("texts", "")
        known = known if isinstance(known, dict) else {}
        found = {doc: read(path, folders[path.parent], known) for doc, path in paths.items()}
        now = {text_key(n.text): n.found for n in found.values() if n.found and not n.fault}
        if now != known:
            self.memo.set("texts", "", now)
        return found

    def key(self, notebook: Notebook) -> str:
        """sha256 of all that can change what the notebook prints, of its name (an entry of the store
        belongs to one notebook, also where two have the same code) and of the form of an entry."""
        around = self.surroundings(notebook.imports)
        found = [SCHEMA, notebook.stem, notebook.digest, self.options.profile, around, FIXED]
        content = json.dumps(found, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def surroundings(self, modules) -> dict:
        """Python, device, and versions of what provides these modules and of torch's family."""
        found = versions({*modules, *ALWAYS}, self.memo)
        return {"versions": found, "python": python(), "device": self.device}

    def to_run(self, run: Run) -> bool:
        """Whether a notebook has to be run; where not, its result is found, or what stands for it."""
        notebook, options = run.notebook, self.options
        asked = not options.only or notebook.stem in options.only
        if notebook.fault:
            fault = notebook.fault
            job = Job("", str(notebook.path), nbformat.writes(notebook.nb))
            run.failure = Outcome(job, job.notebook, 0, fault.message, line=fault.line)
            run.origin, run.kept = "not run", notebook.nb
            return False
        if not (options.force and asked):
            stored = self.store.load(run.key, notebook.stem)
            if stored is not None:
                run.book = stored.metadata["book"]
                self.store.touch(run.key)
                return False
        if asked:
            return True
        self.keep_last(run)
        return False

    def keep_last(self, run: Run) -> None:
        """A stale notebook that is not asked for shows what its last run left."""
        stem = run.notebook.stem
        last = self.store.load(self.store.last(stem).get("key", ""), stem)
        run.kept = last or nbformat.v4.new_notebook()
        run.book = run.kept.metadata.get("book", {})
        run.origin = "an earlier run" if last else "not run"
        what = "its page shows an earlier run" if last else "its page shows no outputs"
        name = run.notebook.path.name
        self.log.warning("%s has changed since its last run and is not asked for: %s", name, what)

    def outputs(self, docname: str) -> NotebookNode:
        """The executed notebook, whole or not; a notebook without cells when there is none."""
        run = self.runs[docname]
        kept = run.kept or self.store.load(run.key, run.notebook.stem)
        return kept or nbformat.v4.new_notebook()

    # ---- running ---------------------------------------------------------------------------------

    def workers(self) -> int:
        """Kernels at once: as asked, else one for each GPU, else one for each core."""
        return self.options.jobs or self.gpus or self.cores

    def pool(self, jobs: list[str], server: Server | None):
        """Where these are run. Raises Refused."""
        options = self.options
        if options.cluster:
            modules = frozenset().union(*(self.runs[doc].notebook.imports for doc in jobs))
            return Cluster(options.cluster, self.surroundings(modules))
        if options.warm and server is None:
            server = Server(self.threads())
        return Local(self.workers(), self.gpus, server)

    def threads(self) -> int:
        return max(1, self.cores // self.workers())

    def job(self, docname: str) -> Job:
        notebook = self.runs[docname].notebook
        return Job(
            docname,
            str(notebook.path),
            nbformat.writes(notebook.nb),
            files=notebook.files,
            imports=tuple(sorted(notebook.imports)),
            limits=Limits(**{**vars(self.options.limits), **notebook.limits}),
            profile=self.options.profile,
            threads=self.threads(),
        )

    def execute(self, docnames: list[str], pool) -> None:
        """Run these, slowest first, and keep each result as it comes."""
        self.log.info("%d of %d notebooks to run", len(docnames), len(self.runs))
        jobs = [self.job(doc) for doc in docnames]
        jobs.sort(key=lambda job: -self.store.last(job.stem).get("cpu", 0))
        with terminated_as_interrupted(), pool:
            for note in pool.notes:
                self.log.warning("not used: %s", note)
            futures = {pool.submit(job): job for job in jobs}
            for n, future in enumerate(finished(futures), 1):
                self.keep(future.result(), f"[{n}/{len(jobs)}]")

    def keep(self, outcome: Outcome, count: str) -> None:
        """Take the result of a finished run into the build and, if it is whole, into the store."""
        run = self.runs[outcome.job.docname]
        nb = nbformat.reads(outcome.notebook, as_version=4)
        run.book, run.origin, run.kept = nb.metadata.get("book", {}), "run", nb
        state = "FAILED after " if outcome.error else ""
        self.log.info("%s %s %s%.1f s", count, outcome.job.stem, state, outcome.seconds)
        if outcome.error:
            run.failure = outcome
        else:
            self.store.save(run.key, outcome.job.stem, nb)

    @property
    def failures(self) -> list[Run]:
        """The notebooks that did not run to their end, in the order of their names."""
        return [run for _, run in sorted(self.runs.items()) if run.failure]


def merge(nb: NotebookNode, run: NotebookNode) -> NotebookNode:
    """Put the outputs of a run into the notebook it was made from, cell by cell of equal code."""
    ran = code_cells(run)
    for cell in code_cells(nb):
        at = next((i for i, other in enumerate(ran) if other.source == cell.source), None)
        if at is not None:
            done = ran.pop(at)
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
    return nb


def finished(futures: dict[Future, Job]):
    """Futures as they finish; on a terminal, with a line that says what is running."""
    pending, started = set(futures), {}
    shown = sys.stdout.isatty()
    while pending:
        done, pending = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
        if done and shown:
            print("\x1b[K", end="", flush=True)
        yield from done
        if shown:
            now = time.monotonic()
            running = [f for f in pending if f.running()]
            for future in running:
                started.setdefault(future, now)
            names = [f"{futures[f].stem} {now - started[f]:.0f} s" for f in running]
            line = f"running: {', '.join(names)}; waiting: {len(pending) - len(running)}"
            print(f"\r\x1b[K{line[:99]}\r", end="", flush=True)


@contextmanager
def terminated_as_interrupted():
    """While notebooks run, SIGTERM ends them as Ctrl-C does: kernels stop, what finished is kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        with suppress(TypeError):  # it was set by other than Python code
            signal.signal(signal.SIGTERM, before)
