"""Run the notebooks whose results are not in the store, then let Sphinx read them.

In conf.py::

    extensions = ["execution", "myst_nb", ...]
    nb_custom_formats = {".py": "execution.read"}

When Sphinx has found its documents, each notebook (a document ending in ``.py``) is looked up in
the store under its key; those without a result are run. All of them are, even if some fail; the
failures are listed at the end, with file, line, cell and exception, and the exit status is 1, on
each build until they are mended. Failed runs are not stored.

Options: ``notebooks_store`` (folder, relative to the sources), ``notebooks_only`` (stems, separated
by commas: no other notebook is run), ``notebooks_force`` (run although a result is there),
``notebooks_timeout`` (seconds for one cell; ``mystnb: execution_timeout`` in a notebook's header
overrides it).
"""

import os
from concurrent.futures import as_completed
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors import EnvironmentCollector
from sphinx.errors import ExtensionError
from sphinx.util import logging

from runner import Job, Outcome, executor, run
from store import Store, merge, parse

LOG = logging.getLogger(__name__)


class Session:
    """The runs of one build: which result belongs to which notebook."""

    def __init__(self, app: Sphinx):
        config = app.config
        self.store = Store(Path(app.srcdir, config.notebooks_store), config.notebooks_profile)
        self.timeout = config.notebooks_timeout
        self.only = {s.strip() for s in config.notebooks_only.split(",") if s.strip()}
        self.force = config.notebooks_force
        self.runs: dict[str, NotebookNode] = {}  # key -> executed notebook
        self.keys: dict[str, str] = {}  # docname -> key
        self.key_of_text: dict[str, str] = {}  # text of a notebook -> key
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
            known = None if self.force and asked else self.stored(key)
            if known is not None:
                self.runs[key] = known
            elif asked:
                timeout = nb.metadata.get("mystnb", {}).get("execution_timeout", self.timeout)
                jobs.append(
                    Job(docname, str(path), nbformat.writes(nb), timeout, self.store.profile)
                )
            else:
                self.keep_last(key, path)
        self.execute(jobs)

    def stored(self, key: str) -> NotebookNode | None:
        run = self.store.load(key)
        if run is None and self.store.path(key).exists():
            LOG.warning("%s cannot be read; the notebook is run again", self.store.path(key))
        return run

    def keep_last(self, key: str, path: Path) -> None:
        """A stale notebook that is not asked for shows what its last run left."""
        last = self.store.load(self.store.last(path.stem).get("key"))
        self.runs[key] = last or nbformat.v4.new_notebook()
        what = "its page shows an earlier run" if last else "its page shows no outputs"
        LOG.warning("%s has changed since its last run and is not asked for: %s", path.name, what)

    def execute(self, jobs: list[Job]) -> None:
        if jobs:
            LOG.info("%d of %d notebooks to run", len(jobs), len(self.keys))
        jobs.sort(key=lambda job: -self.store.last(job.stem).get("seconds", 0))
        with executor() as pool:
            for n, future in enumerate(as_completed([pool.submit(run, job) for job in jobs]), 1):
                outcome = future.result()
                job, nb = outcome.job, nbformat.reads(outcome.notebook, as_version=4)
                key = self.keys[job.docname]
                self.runs[key] = nb
                state = "FAILED after " if outcome.error else ""
                LOG.info("[%d/%d] %s %s%.1f s", n, len(jobs), job.stem, state, outcome.seconds)
                if outcome.error:
                    self.failures.append(outcome)
                else:
                    self.store.save(key, job.stem, nb, outcome.seconds)

    def failed(self, docname: str) -> bool:
        return any(outcome.job.docname == docname for outcome in self.failures)

    def state(self, docname: str) -> str:
        """Changes whenever the page of a notebook has to be read again for its outputs."""
        key = self.keys[docname]
        if self.failed(docname):
            return "failed"
        file = self.store.path(key)
        return f"{key} {file.stat().st_mtime_ns}" if file.exists() else "not run"


session: Session | None = None


def read(text: str) -> NotebookNode:
    """Reader for ``nb_custom_formats``: the notebook with the outputs of its run and a foot.

    A text that no session has prepared is left to MyST-NB, which runs it itself.
    """
    nb = parse(text)
    run_of = session.runs.get(session.key_of_text.get(text)) if session else None
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
        book = session.runs[session.keys[docname]].metadata.get("book", {})
        kept(app.env)[docname] = {
            "state": session.state(docname),
            "results": book.get("results", {}),
            "failed": session.failed(docname),
        }
        # the chapter is what readers find; the notebook's page is reached from it
        app.env.metadata[docname].update(orphan=True, nosearch=True)


def kept(env: BuildEnvironment) -> dict[str, dict]:
    """{docname: {"state", "results", "failed"}} of the notebooks that have been read."""
    if not hasattr(env, "book_notebooks"):
        env.book_notebooks = {}
    return env.book_notebooks


def prepare(app: Sphinx, env: BuildEnvironment, added: set, changed: set, removed: set) -> set:
    """Run what is stale; pages whose outputs are not those of the last build are read again."""
    global session
    session = Session(app)
    session.prepare(env)
    before = kept(env)
    new = {
        doc
        for doc in session.keys
        if doc in before and (before[doc]["failed"] or before[doc]["state"] != session.state(doc))
    }
    changed |= new  # for the handlers after this one: chapters that embed these notebooks
    return new


def report(app: Sphinx, exception: Exception | None) -> None:
    if session is None or not session.failures:
        return
    parts = [f"{len(session.failures)} of {len(session.keys)} notebooks failed:"]
    for outcome in sorted(session.failures, key=lambda o: o.job.docname):
        parts.append(f"{outcome.job.path}:{outcome.line}: cell {outcome.cell}: {outcome.error}")
        parts += [f"    {frame}" for frame in outcome.frames]
    LOG.error("\n".join(parts))
    app.statuscode = 1


def setup(app: Sphinx) -> dict:
    profile = os.environ.get("PROFILE", "sample")
    app.add_config_value("notebooks_store", ".store", "")
    app.add_config_value("notebooks_profile", profile, "")
    app.add_config_value("notebooks_only", "", "")
    app.add_config_value("notebooks_force", False, "", bool)
    app.add_config_value("notebooks_timeout", 300, "", int)
    app.add_env_collector(Results)
    app.connect("env-get-outdated", prepare, priority=100)
    app.connect("build-finished", report)
    return {
        "version": "1",
        "env_version": 1,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
