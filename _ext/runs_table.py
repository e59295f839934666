"""The table of the runs: what each notebook ran on, and whether it was run for this build.

::

    .. runs::

Below the table stand the versions of what the notebooks imported, once for all of them: runs of
different days may have used several versions of a package.
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

import summaries
from execution import kept
from formats import can_link, link

COLUMNS = ("Notebook", "Device", "Seconds", "CPU s", "Memory", "Profile", "Date", "Outputs")


class runs_placeholder(nodes.General, nodes.Element):
    """Stands for the table until all notebooks are read."""


class Runs(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        summaries.note(self.env, "runs")
        return [runs_placeholder()]


class Resolve(SphinxPostTransform):
    default_priority = 2  # before cross-references, at 10

    def run(self, **kwargs) -> None:
        for place in list(self.document.findall(runs_placeholder)):
            place.replace_self([self.table(), self.versions()])

    def table(self) -> nodes.table:
        body = nodes.tbody()
        for docname, known in sorted(kept(self.env).items()):
            body += self.row(docname, known)
        head = nodes.thead("", nodes.row("", *[cell(nodes.Text(name)) for name in COLUMNS]))
        group = nodes.tgroup("", cols=len(COLUMNS))
        group += [nodes.colspec(colwidth=1) for _ in COLUMNS]
        group += [head, body]
        return nodes.table("", group, classes=["runs"])

    def row(self, docname: str, known: dict) -> nodes.row:
        book = known["book"]
        name = docname.rpartition("/")[2]
        there = can_link(self.env, self.env._builder_cls, docname)
        first = link(self.env, docname, name) if there else nodes.inline("", name)
        peak = book.get("peak")
        texts = (
            book.get("device") or "",
            f"{book['seconds']:.1f}" if "seconds" in book else "",
            f"{book['cpu']:.1f}" if "cpu" in book else "",
            f"{peak / 2**20:,.0f} MiB" if peak else "",
            book.get("profile", ""),
            book.get("date", ""),
            "failed" if known["failed"] else known["origin"],
        )
        return nodes.row("", cell(first), *[cell(nodes.Text(text)) for text in texts])

    def versions(self) -> nodes.paragraph:
        found = {}
        for _, known in sorted(kept(self.env).items()):
            for name, version in known["book"].get("versions", {}).items():
                found.setdefault(name, []).append(version)
        texts = [
            f"{name} {', '.join(dict.fromkeys(found[name]))}"
            for name in sorted(found, key=str.lower)
        ]
        return nodes.paragraph("", f"Versions: {'; '.join(texts) or 'none'}.")


def cell(content: nodes.Node) -> nodes.entry:
    return nodes.entry("", nodes.paragraph("", "", content))


def shown(env: BuildEnvironment) -> list[tuple]:
    """All runs; the page is written again when any has changed."""
    return sorted(kept(env).items())


def setup(app: Sphinx) -> dict:
    app.setup_extension("execution")
    app.add_node(runs_placeholder)
    app.add_directive("runs", Runs)
    app.add_post_transform(Resolve)
    summaries.follow(app, "runs", shown)
    return {
        "version": "1",
        "env_version": 2,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
