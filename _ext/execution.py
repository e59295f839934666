"""Run the notebooks whose results are not in the store, then let Sphinx read them.

In conf.py::

    extensions = ["execution", "myst_nb", ...]
    nb_custom_formats = {".py": "execution.read"}

When Sphinx has found its documents, each notebook (a document ending in ``.py``) is looked up in
the store under its key; those without a result are run (see ``engine.session``). All of them are,
even if some fail; the failures are listed at the end, with file, line, cell and exception, and the
exit status is 1, on each build until they are mended. Failed runs are not stored.

Options (the Makefile's variable in brackets): ``notebooks_store``, a folder, relative to the sources;
``notebooks_profile`` [PROFILE]; ``notebooks_only`` [NB], stems separated by commas: no other notebook
is run; ``notebooks_force`` [FORCE], 1: run although a result is there; ``notebooks_jobs`` [JOBS],
kernels at once, by default one for each core, or for each GPU; ``notebooks_warm`` [WARM], 0 for
kernels that are not forked from a warm process; ``notebooks_cluster`` [CLUSTER], address of a Dask
scheduler; ``notebooks_memory`` [MEM], GiB for a kernel; ``notebooks_cell_limit`` and
``notebooks_limit``, seconds for a cell and for a notebook. A notebook's header may set its own limits.
"""

import os
import re
import shutil
from pathlib import Path

import nbformat
from docutils import nodes
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

from engine.cluster import Refused
from engine.export import export_all
from engine.options import options
from engine.session import Session, Unknown, merge
from formats import WEB_SITE
from per_page import PerPage

LOG = logging.getLogger(__name__)
OPTIONS = dict.fromkeys(("only", "force", "jobs", "warm", "cluster", "memory"), "") | {
    "profile": os.environ.get("PROFILE") or "sample",
    "cell_limit": "300",
    "limit": "900",
}
MARKUP = re.compile(r"([\\`*_{}\[\]()<>#+.!|$~^&:@=-])")


class Notebooks(PerPage):
    """{docname: {"state", "results", "failed", "book", "origin"}} of the notebooks that were read."""

    name, label = "notebook", "Notebooks"


def kept(env: BuildEnvironment) -> dict[str, dict]:
    """What is kept of the notebooks that have been read, by docname: see ``Notebooks``."""
    return env.get_domain("notebook").pages


class Stop(SystemExit):
    """Ends a build that cannot begin, in one line; of its own errors Sphinx prints a crash report."""


class Execution:
    """The session of one build, joined to the events of its application."""

    session: Session

    def prepare(self, app: Sphinx, env: BuildEnvironment, added, changed: set, removed) -> set:
        """Run what is stale; pages whose outputs are not those of the last build are read again."""
        typed = {name: app.config[f"notebooks_{name}"] for name in OPTIONS}
        try:
            self.session = Session(
                options(Path(app.srcdir, app.config.notebooks_store), typed), LOG
            )
        except ValueError as error:
            raise Stop(f"{error}") from None
        paths = {doc: Path(env.doc2path(doc)) for doc in sorted(env.found_docs)}
        try:
            self.session.prepare({d: p for d, p in paths.items() if p.suffix == ".py"})
        except (Unknown, Refused, RuntimeError) as error:
            raise Stop(f"{error}") from None
        before, runs = kept(env), self.session.runs
        for doc in before.keys() & runs.keys():
            before[doc]["origin"] = runs[doc].origin  # also where the page is not read again
        new = {
            doc
            for doc in before.keys() & runs.keys()
            if before[doc]["failed"] or before[doc]["state"] != runs[doc].state
        }
        changed |= new  # for the handlers after this one: chapters that embed these notebooks
        return new

    def skip_unreadable(self, app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
        """Sphinx reads each file itself, and ends in a crash report where it cannot.

        A notebook that went while others ran is named here; one that is no UTF-8 is a failure that
        `report` names.
        """
        for doc in [doc for doc in docnames if doc in self.session.runs]:
            path = Path(env.doc2path(doc))
            try:
                path.read_text(encoding="utf-8")
                continue
            except OSError:
                LOG.error("%s was deleted while the build ran", path)
            except UnicodeDecodeError:
                pass
            docnames.remove(doc)
            env.project.docnames.discard(doc)
            env.clear_doc(doc)

    def source(self, app: Sphinx, docname: str, source: list[str]) -> None:
        """Hand MyST-NB the notebook with the outputs of its run and a foot, as JSON.

        The text that was run is what the page shows, whatever has become of the file since.
        """
        run = self.session.runs.get(docname)
        if run is None:
            return
        nb, done = nbformat.from_dict(run.notebook.nb), self.session.outputs(docname)
        if not done.cells and not run.failure and run.origin != "not run":
            text = (
                "the outputs of this notebook went from the store while the build ran: build again"
            )
            LOG.warning(text, location=docname, type="execution")
        nb.metadata = NotebookNode(
            kernelspec=nb.metadata.get(
                "kernelspec", {"name": "python3", "display_name": "Python 3"}
            ),
            language_info={"name": "python", "pygments_lexer": "ipython3"},
            source_map=nb.metadata.get("source_map"),
            mystnb={"execution_mode": "off"},
        )
        merge(nb, done)
        if "versions" in run.book:
            nb.cells.append(nbformat.v4.new_markdown_cell(foot(run.book)))
            if nb.metadata["source_map"]:
                nb.metadata["source_map"].append(len(run.notebook.text.splitlines()) - 1)
        source[0] = nbformat.writes(nb)

    def note(self, app: Sphinx, doctree: nodes.document) -> None:
        """Keep a notebook's recorded values and the state of its outputs in the environment."""
        docname = app.env.current_document.docname
        run = self.session.runs.get(docname)
        if run is None:
            return
        kept(app.env)[docname] = {
            "state": run.state,
            "results": run.book.get("results", {}),
            "failed": run.failure is not None,
            "book": {name: value for name, value in run.book.items() if name != "results"},
            "origin": run.origin,
        }
        # the chapter is what readers find; the notebook's page is reached from it
        app.env.metadata[docname].update(orphan=True, nosearch=True)
        for admonition in doctree.findall(nodes.admonition):
            if "run" in admonition["classes"]:
                for text in admonition.findall(nodes.TextElement):
                    text["translatable"] = False  # time and date would change each catalogue

    def export(self, app: Sphinx, exception: Exception | None) -> None:
        """Write each notebook as a file of its own into the site (see ``engine.export``)."""
        if exception is not None or app.builder.name not in WEB_SITE:
            return
        records = [run.notebook for run in self.session.runs.values()]
        target, memo = Path(app.outdir, "notebooks"), Path(app.doctreedir, "exports.json")
        for record, fault in export_all(records, target, app.config.html_baseurl, memo):
            if fault is not record.fault:  # of that one, `report` tells
                LOG.warning(fault.message, location=f"{record.path}:{fault.line}")

    def exported(self, app: Sphinx) -> list[Path]:
        """The files that `export` writes; see ``leftovers``."""
        names = set()
        for run in self.session.runs.values():
            stem = run.notebook.stem
            names |= {f"{stem}.py", f"{stem}.ipynb", *run.notebook.files}
        return [Path(app.outdir, "notebooks", name) for name in sorted(names)]

    def report(self, app: Sphinx, exception: Exception | None) -> None:
        """List what failed, on the screen and in <output>/reports/, and let the build fail."""
        folder = Path(app.outdir, "reports")
        shutil.rmtree(folder, ignore_errors=True)
        session = getattr(self, "session", None)
        if session is None or not session.failures:
            return
        parts = [f"{len(session.failures)} of {len(session.runs)} notebooks failed:"]
        for run in session.failures:
            outcome, path = run.failure, run.notebook.path
            cell = f" cell {outcome.cell}:" if outcome.cell else ""
            lines = [f"{path}:{outcome.line}:{cell} {outcome.error}"]
            lines += [f"    {frame}" for frame in outcome.frames]
            folder.mkdir(parents=True, exist_ok=True)
            Path(folder, f"{path.stem}.txt").write_text("\n".join(lines) + "\n", "utf-8")
            parts += lines
        LOG.error("\n".join(parts))
        app.statuscode = 1


def read(text: str) -> NotebookNode:
    """Reader for ``nb_custom_formats``: of what ``Execution.source`` has put in place of the text."""
    return nbformat.reads(text, as_version=4)


def foot(book: dict) -> str:
    """What the notebook ran on, as the last cell of its page. Values are text, never markup."""
    used = ", ".join(f"{name} {version}" for name, version in book["versions"].items())
    peak = f", peak memory {book['peak'] / 2**20:,.0f} MiB" if book.get("peak") else ""
    rows = {
        "Device": book.get("device") or "CPU",
        "Time": f"{book['seconds']} s, {book['cpu']} s of CPU after the imports{peak}",
        "Profile": book["profile"],
        "Data": "; ".join(dict.fromkeys(book.get("data", []))) or "none",
        "Versions": used,
        "Date": book["date"],
    }
    plain = {name: MARKUP.sub(r"\\\1", " ".join(value.split())) for name, value in rows.items()}
    lines = "\n".join(f"- {name}: {value}" for name, value in plain.items())
    return f"```{{admonition}} What this page ran on\n:class: run\n\n{lines}\n```"


def setup(app: Sphinx) -> dict:
    app.add_config_value("notebooks_store", ".store", "")
    for name, default in OPTIONS.items():
        app.add_config_value(f"notebooks_{name}", default, "", (str, int, float))
    app.setup_extension("leftovers")
    app.add_domain(Notebooks)
    execution = Execution()
    app.connect("env-get-outdated", execution.prepare, priority=100)
    app.connect("env-before-read-docs", execution.skip_unreadable)
    app.connect("source-read", execution.source)
    app.connect("doctree-read", execution.note)
    app.connect("files-beside-pages", execution.exported)
    app.connect("build-finished", execution.export)
    app.connect("build-finished", execution.report)
    return {
        "version": "2",
        "env_version": 2,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
