"""Run the notebooks whose results are not in the store, then let Sphinx read them.

In conf.py::

    extensions = ["execution", "myst_nb", ...]
    nb_custom_formats = {".py": "execution.read"}

When Sphinx has found its documents, each notebook (a document ending in ``.py``) is looked up in
the store under its key; those without a result are run. All of them are, even if some fail; the
failures are listed at the end, with file, line, cell and exception, and the exit status is 1, on
each build until they are mended. Failed runs are not stored.

Options (the Makefile's variable in brackets): ``notebooks_store``, a folder, relative to the sources;
``notebooks_only`` [NB], stems separated by commas: no other notebook is run; ``notebooks_force``
[FORCE], run although a result is there; ``notebooks_jobs`` [JOBS], kernels at once, by default one
for each core, or for each GPU; ``notebooks_warm`` [WARM], 0 for kernels that are not forked from a
warm process; ``notebooks_cluster`` [CLUSTER], address of a Dask scheduler; ``notebooks_memory``
[MEM], GiB for a kernel; ``notebooks_cell_limit`` and ``notebooks_limit``, seconds for a cell and for
a notebook. A notebook's header may set its own limits (see ``runner.Limits``).
"""

import os
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors import EnvironmentCollector
from sphinx.errors import ExtensionError
from sphinx.util import logging

import warm
from pool import Refused, open_pool
from runner import Job, Limits, Outcome
from store import Store, accelerators, merge, parse

LOG = logging.getLogger(__name__)


class Session:
    """The runs of one build: which result belongs to which notebook."""

    def __init__(self, app: Sphinx):
        config = app.config
        self.store = Store(Path(app.srcdir, config.notebooks_store), config.notebooks_profile)
        try:
            memory = float(config.notebooks_memory)
        except ValueError as error:
            raise ExtensionError(f"MEM: {config.notebooks_memory!r} is no number of GiB") from error
        self.limits = Limits(config.notebooks_cell_limit, config.notebooks_limit, memory)
        self.cluster, self.warm = config.notebooks_cluster, config.notebooks_warm
        # A store that is not there yet has no result: all will be run, so the process that warm
        # kernels come from may import torch while another one is asked for the device.
        self.cores, self.jobs = os.cpu_count() or 1, config.notebooks_jobs
        early = self.warm and not self.cluster and not self.store.folder.exists()
        threads = max(1, self.cores // (self.jobs or self.cores))
        self.server = warm.Server(threads) if early else None
        device, count = accelerators(self.store.folder)
        self.gpus = count if device == "cuda" else 0
        self.only = {s.strip() for s in config.notebooks_only.split(",") if s.strip()}
        self.force = config.notebooks_force
        self.books: dict[str, dict] = {}  # key -> what the run recorded and ran on
        self.unstored: dict[str, NotebookNode] = {}  # key -> run that failed, or an earlier one
        self.keys: dict[str, str] = {}  # docname -> key
        self.key_of_text: dict[str, str] = {}  # text of a notebook -> key
        self.origins: dict[str, str] = {}  # docname -> "run" or "from the store"
        self.modules: set[str] = set()  # what the notebooks to run import
        self.failures: list[Outcome] = []

    def notebooks(self, env: BuildEnvironment) -> dict[str, Path]:
        paths = {doc: Path(env.doc2path(doc)) for doc in sorted(env.found_docs)}
        return {doc: path for doc, path in paths.items() if path.suffix == ".py"}

    def prepare(self, env: BuildEnvironment) -> None:
        """Find each notebook's result and run those that have none."""
        found = self.notebooks(env)
        unknown = self.only - {path.stem for path in found.values()}
        if unknown:
            known = ", ".join(sorted(path.stem for path in found.values()))
            raise ExtensionError(
                f"no notebook named {', '.join(sorted(unknown))}; there are: {known}"
            )
        jobs = []
        for docname, path in found.items():
            text = path.read_text(encoding="utf-8")
            nb = parse(text)
            key = self.keys[docname] = self.key_of_text[text] = self.store.key(nb, path.parent)
            asked = not self.only or path.stem in self.only
            self.origins[docname] = "from the store"
            if not (self.force and asked) and self.stored(key):
                self.store.touch(key)
            elif asked:
                jobs.append(self.job(docname, path, nb))
                self.modules |= self.store.modules(nb, path.parent)
            else:
                self.keep_last(key, path)
        if jobs:
            self.execute(jobs)

    def job(self, docname: str, path: Path, nb: NotebookNode) -> Job:
        try:
            limits = Limits.of(nb, self.limits)
        except ValueError as error:
            raise ExtensionError(f"{path}: {error}") from error
        return Job(
            docname,
            str(path),
            nbformat.writes(nb),
            modules=self.store.local_modules(nb, path.parent),
            folder="" if self.cluster else str(path.parent),
            limits=limits,
            profile=self.store.profile,
            threads=max(1, self.cores // self.workers()),
        )

    def workers(self) -> int:
        """Kernels at once: as asked, else one for each GPU, else one for each core."""
        return self.jobs or self.gpus or self.cores

    def stored(self, key: str) -> bool:
        """Whether the store has this run; only what is known about it stays in memory."""
        run = self.store.load(key)
        if run is not None:
            self.books[key] = run.metadata["book"]
        elif self.store.path(key).exists():
            LOG.warning("%s cannot be read; the notebook is run again", self.store.path(key))
        return run is not None

    def result(self, key: str | None) -> NotebookNode | None:
        """The executed notebook for a key, whether it is whole or not."""
        return self.unstored.get(key) or self.store.load(key)

    def keep_last(self, key: str, path: Path) -> None:
        """A stale notebook that is not asked for shows what its last run left."""
        last = self.store.load(self.store.last(path.stem).get("key"))
        self.unstored[key] = last or nbformat.v4.new_notebook()
        self.books[key] = self.unstored[key].metadata.get("book", {})
        what = "its page shows an earlier run" if last else "its page shows no outputs"
        LOG.warning("%s has changed since its last run and is not asked for: %s", path.name, what)

    def execute(self, jobs: list[Job]) -> None:
        """Run the jobs, slowest first, and keep each result as it comes."""
        LOG.info("%d of %d notebooks to run", len(jobs), len(self.keys))
        jobs.sort(key=lambda job: -self.store.last(job.stem).get("seconds", 0))
        here = self.store.surroundings(self.modules)
        workers = self.workers()
        if self.warm and not self.cluster and not self.server:
            self.server = warm.Server(jobs[0].threads)
        pool = open_pool(workers, self.gpus, self.server, self.cluster, here)
        try:
            with terminated_as_interrupted(), pool as run:
                for worker in run.refused:
                    LOG.warning("not used: %s", worker, type="execution", subtype="worker")
                futures = {run.submit(job): job for job in jobs}
                for n, future in enumerate(self.finished(futures), 1):
                    self.keep(future.result(), f"[{n}/{len(jobs)}]")
        except Refused as error:
            raise ExtensionError(str(error)) from error

    def finished(self, futures: dict[Future, Job]):
        """Futures as they finish; on a terminal, with a line that says what is running."""
        pending, started = set(futures), {}
        while pending:
            done, pending = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
            if done and sys.stdout.isatty():
                print("\x1b[K", end="", flush=True)
            yield from done
            if sys.stdout.isatty():
                now = time.monotonic()
                running = [f for f in pending if f.running()]
                for future in running:
                    started.setdefault(future, now)
                names = [f"{futures[f].stem} {now - started[f]:.0f} s" for f in running]
                line = f"running: {', '.join(names)}; waiting: {len(pending) - len(running)}"
                print(f"\r\x1b[K{line[:99]}\r", end="", flush=True)

    def keep(self, outcome: Outcome, count: str) -> None:
        """Take the result of a finished run into the build and, if it is whole, into the store."""
        job, nb = outcome.job, nbformat.reads(outcome.notebook, as_version=4)
        key = self.keys[job.docname]
        self.books[key], self.origins[job.docname] = nb.metadata.get("book", {}), "run"
        state = "FAILED after " if outcome.error else ""
        LOG.info("%s %s %s%.1f s", count, job.stem, state, outcome.seconds)
        if outcome.error:
            self.failures.append(outcome)
            self.unstored[key] = nb
        else:
            self.store.save(key, job.stem, nb, outcome.seconds)

    def failed(self, docname: str) -> bool:
        return any(outcome.job.docname == docname for outcome in self.failures)

    def state(self, docname: str) -> str:
        """Changes whenever the page of a notebook has to be read again for its outputs."""
        key = self.keys[docname]
        if self.failed(docname):
            return "failed"
        return f"{key} {self.books[key].get('finished', 'not run')}"


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
        signal.signal(signal.SIGTERM, before)


session: Session | None = None


def read(text: str) -> NotebookNode:
    """Reader for ``nb_custom_formats``: the notebook with the outputs of its run and a foot.

    A text that no session has prepared is left to MyST-NB, which runs it itself.
    """
    nb = parse(text)
    run_of = session.result(session.key_of_text.get(text)) if session else None
    nb.metadata = NotebookNode(
        kernelspec=nb.metadata.get("kernelspec", {"name": "python3", "display_name": "Python 3"}),
        language_info={"name": "python", "pygments_lexer": "ipython3"},
        source_map=nb.metadata.get("source_map"),
        mystnb={"execution_mode": "force" if run_of is None else "off"},
    )
    if run_of is None:
        return nb
    merge(nb, run_of)
    if "book" in run_of.metadata:
        nb.cells.append(nbformat.v4.new_markdown_cell(foot(run_of.metadata["book"])))
        if nb.metadata["source_map"]:
            nb.metadata["source_map"].append(len(text.splitlines()) - 1)
    return nb


def foot(book: dict) -> str:
    """What the notebook ran on, as the last cell of its page."""
    used = ", ".join(f"{name} {version}" for name, version in book["versions"].items())
    peak = f", peak memory {book['peak'] / 2**20:,.0f} MiB" if book.get("peak") else ""
    rows = {
        "Device": book.get("device") or "CPU",
        "Time": f"{book['seconds']} s{peak}",
        "Profile": book["profile"],
        "Data": "; ".join(dict.fromkeys(book.get("data", []))) or "none",
        "Versions": used,
        "Date": book["date"],
    }
    lines = "\n".join(f"- {name}: {value}" for name, value in rows.items())
    return f"```{{admonition}} What this page ran on\n:class: run\n\n{lines}\n```"


class Results(EnvironmentCollector):
    """Keep each notebook's recorded values and the state of its outputs in the environment."""

    def clear_doc(self, app: Sphinx, env: BuildEnvironment, docname: str) -> None:
        kept(env).pop(docname, None)

    def merge_other(self, app, env, docnames, other) -> None:
        kept(env).update({d: v for d, v in kept(other).items() if d in docnames})

    def process_doc(self, app: Sphinx, doctree) -> None:
        docname = app.env.docname
        if session is None or docname not in session.keys:
            return
        book = session.books[session.keys[docname]]
        kept(app.env)[docname] = {
            "state": session.state(docname),
            "results": book.get("results", {}),
            "failed": session.failed(docname),
            "book": {name: value for name, value in book.items() if name != "results"},
            "origin": session.origins[docname],
        }
        # the chapter is what readers find; the notebook's page is reached from it
        app.env.metadata[docname].update(orphan=True, nosearch=True)


def kept(env: BuildEnvironment) -> dict[str, dict]:
    """{docname: {"state", "results", "failed", "book"}} of the notebooks that have been read."""
    if not hasattr(env, "book_notebooks"):
        env.book_notebooks = {}
    return env.book_notebooks


def prepare(app: Sphinx, env: BuildEnvironment, added: set, changed: set, removed: set) -> set:
    """Run what is stale; pages whose outputs are not those of the last build are read again."""
    global session
    session = Session(app)
    try:
        session.prepare(env)
    finally:
        if session.server:
            session.server.close()
    before = kept(env)
    for doc in before.keys() & session.origins.keys():
        before[doc]["origin"] = session.origins[doc]  # also where the page is not read again
    new = {
        doc
        for doc in session.keys
        if doc in before and (before[doc]["failed"] or before[doc]["state"] != session.state(doc))
    }
    changed |= new  # for the handlers after this one: chapters that embed these notebooks
    return new


def report(app: Sphinx, exception: Exception | None) -> None:
    """List what failed, on the screen and in <output>/reports/, and let the build fail."""
    if session is None:
        return
    folder = Path(app.outdir, "reports")
    shutil.rmtree(folder, ignore_errors=True)
    if not session.failures:
        return
    parts = [f"{len(session.failures)} of {len(session.keys)} notebooks failed:"]
    for outcome in sorted(session.failures, key=lambda o: o.job.docname):
        lines = [f"{outcome.job.path}:{outcome.line}: cell {outcome.cell}: {outcome.error}"]
        lines += [f"    {frame}" for frame in outcome.frames]
        folder.mkdir(parents=True, exist_ok=True)
        Path(folder, f"{outcome.job.stem}.txt").write_text("\n".join(lines) + "\n", "utf-8")
        parts += lines
    LOG.error("\n".join(parts))
    app.statuscode = 1


def setup(app: Sphinx) -> dict:
    profile = os.environ.get("PROFILE", "sample")
    app.add_config_value("notebooks_store", ".store", "")
    app.add_config_value("notebooks_profile", profile, "")
    app.add_config_value("notebooks_only", "", "")
    app.add_config_value("notebooks_force", False, "", bool)
    app.add_config_value("notebooks_jobs", 0, "", int)
    app.add_config_value("notebooks_warm", warm.possible(), "", bool)
    app.add_config_value("notebooks_cluster", "", "", str)
    app.add_config_value("notebooks_memory", "0", "", str)
    app.add_config_value("notebooks_cell_limit", 300, "", int)
    app.add_config_value("notebooks_limit", 900, "", int)
    app.add_env_collector(Results)
    app.connect("env-get-outdated", prepare, priority=100)
    app.connect("build-finished", report)
    return {
        "version": "1",
        "env_version": 1,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
