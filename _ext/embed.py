"""Bring cells and recorded values of a notebook into a chapter.

Cells of the paired notebook (same stem), by tag::

    .. cells:: block stage
       :part: output
       :name: fig-stages

       A caption makes it a numbered figure that belongs to the chapter.

``:part:`` is ``all`` (default), ``input`` or ``output``; ``:notebook:`` names another notebook.

A value that a notebook recorded, with a format specification after the first colon::

    :result:`accuracy:.1%` or, from another notebook, :result:`lenet/accuracy:.1%`
"""

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from execution import kept
from per_page import PerPage

LOG = logging.getLogger(__name__)
PARTS = {"all": None, "input": "cell_code_source", "output": "cell_code_output"}


class cells_placeholder(nodes.General, nodes.Element):
    """Stands for cells of a notebook until the page is written."""


class result_placeholder(nodes.Inline, nodes.Element):
    """Stands for a recorded value until the page is written."""


def paired(docname: str) -> str:
    return "notebooks/" + docname.rsplit("/", 1)[-1]


class Embeds(PerPage):
    """The notebooks that each chapter shows something of."""

    name, label = "embeds", "Embedded notebooks"


def depend(env: BuildEnvironment, notebook: str) -> None:
    """The current document has to be read again when that notebook's page is."""
    pages = env.get_domain("embeds").pages
    pages.setdefault(env.current_document.docname, set()).add(notebook)


def result_reference(env: BuildEnvironment, text: str, location: nodes.Node) -> nodes.Element:
    """Placeholder of the value ``[notebook/]name[:format]``; `location` is where warnings point."""
    path, _, spec = text.partition(":")
    notebook, _, name = path.strip().rpartition("/")
    notebook = paired(notebook or env.current_document.docname)
    depend(env, notebook)
    node = result_placeholder(notebook=notebook, result=name, spec=spec)
    node.source, node.line = location.source, location.line
    return node


class Cells(SphinxDirective):
    required_arguments = 1
    optional_arguments = 99
    has_content = True
    option_spec = {
        "part": lambda argument: directives.choice(argument, tuple(PARTS)),
        "name": directives.unchanged,
        "notebook": directives.unchanged_required,
        "class": directives.class_option,
    }

    def run(self) -> list[nodes.Node]:
        notebook = paired(self.options.get("notebook", self.env.current_document.docname))
        depend(self.env, notebook)
        part = self.options.get("part", "all")
        place = cells_placeholder(notebook=notebook, tags=self.arguments, part=part)
        self.set_source_info(place)
        if not self.content:
            if "name" in self.options:
                raise self.error("cells: a name needs a caption: only a numbered figure has one")
            return [place]
        figure = nodes.figure("", place, classes=["embedded", *self.options.get("class", [])])
        self.set_source_info(figure)
        first, *rest = self.parse_content_to_nodes()
        caption = nodes.caption(first.rawsource, "", *first.children)  # rawsource: for gettext
        caption.source, caption.line = first.source, first.line
        figure += caption
        if rest:
            figure += nodes.legend("", *rest)
        self.add_name(figure)
        return [figure]


class Result(SphinxRole):
    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        where = nodes.inline()
        self.set_source_info(where)
        return [result_reference(self.env, self.text, where)], []


class Resolve(SphinxPostTransform):
    default_priority = 3  # before MyST-NB selects among the types of an output, at 4

    def run(self, **kwargs) -> None:
        for place in list(self.document.findall(cells_placeholder)):
            place.replace_self(self.cells(place))
        for place in list(self.document.findall(result_placeholder)):
            value = self.value(place)  # one that is no word, as 4.0e-07, stays on one line
            place.replace_self(nodes.inline("", value, classes=["result"]))

    def cells(self, place: nodes.Element) -> list[nodes.Node]:
        notebook = place["notebook"]
        if notebook not in self.env.all_docs:
            LOG.warning("cells: there is no notebook %s", notebook, location=place, type="embed")
            return []
        tree = self.env.get_doctree(notebook)
        cells = [c for c in tree.findall(nodes.container) if c.get("nb_element") == "cell_code"]
        found = []
        for tag in place["tags"]:
            tagged = [cell for cell in cells if f"tag_{tag}" in cell["classes"]]
            found += [copy(cell, PARTS[place["part"]]) for cell in tagged]
            if not tagged:
                text = "cells: no cell of %s is tagged %r"
                LOG.warning(text, notebook, tag, location=place, type="embed")
        return found

    def value(self, place: nodes.Element) -> str:
        notebook, name = place["notebook"], place["result"]
        known = kept(self.env).get(notebook)
        if known is None:
            LOG.warning("result: there is no notebook %s", notebook, location=place, type="embed")
            return "?"
        if name not in known["results"]:
            if not known["failed"]:  # the failure is reported already
                text = "result: %s recorded no value named %r; there are: %s"
                names = ", ".join(sorted(known["results"])) or "none"
                LOG.warning(text, notebook, name, names, location=place, type="embed")
            return "?"
        try:
            return format(known["results"][name], place["spec"])
        except ValueError as error:
            text = "result: %r cannot be written as %r: %s"
            LOG.warning(text, name, place["spec"], error, location=place, type="embed")
            return "?"


def copy(cell: nodes.container, part: str | None) -> nodes.container:
    """A deep copy for another page: without ids and names, which belong to the first."""
    cell = cell.deepcopy()
    if part:
        cell.children = [child for child in cell.children if child.get("nb_element") == part]
        cell.attributes.pop("hide_mode", None)
    for node in cell.findall(nodes.Element):
        node["ids"], node["names"] = [], []
    return cell


def outdated(app: Sphinx, env: BuildEnvironment, added: set, changed: set, removed: set) -> list:
    """Read a chapter again when a notebook that it embeds is."""
    touched = added | changed | removed
    return [doc for doc, notebooks in env.get_domain("embeds").pages.items() if notebooks & touched]


def setup(app: Sphinx) -> dict:
    app.setup_extension("execution")
    app.add_node(cells_placeholder)
    app.add_node(result_placeholder)
    app.add_directive("cells", Cells)
    app.add_role("result", Result())
    app.add_post_transform(Resolve)
    app.add_domain(Embeds)
    app.connect("env-get-outdated", outdated)
    return {
        "version": "1",
        "env_version": 2,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
