"""Fold what a cell prints when it is long: the first lines stay in sight, the rest opens.

A text output of more than ``fold_outputs_lines`` lines is cut after ``KEPT`` of them. Only on the web site.
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.locale import _
from sphinx.transforms.post_transforms import SphinxPostTransform

from formats import WEB_SITE

KEPT = 8


class more_output(nodes.General, nodes.Element):
    """The rest of a long output, closed until a reader opens it."""


class Fold(SphinxPostTransform):
    default_priority = 6  # after MyST-NB has chosen among the types of an output, at 4
    builders = WEB_SITE

    def run(self, **kwargs) -> None:
        outputs = [
            block
            for cell in self.document.findall(nodes.container)
            if cell.get("nb_element") == "cell_code_output"
            for block in cell.findall(nodes.literal_block)
        ]
        for block in outputs:
            lines = block.astext().rstrip("\n").split("\n")
            if len(lines) > self.config.fold_outputs_lines:
                block.replace_self([part(block, lines[:KEPT]), rest(block, lines[KEPT:])])


def part(block: nodes.literal_block, lines: list[str]) -> nodes.literal_block:
    """A block like the given one with some of its lines."""
    text = "\n".join(lines)
    return nodes.literal_block(text, text, **block.attributes)


def rest(block: nodes.literal_block, lines: list[str]) -> more_output:
    node = more_output("", part(block, lines), lines=len(lines))
    node.source, node.line = block.source, block.line
    return node


def visit_more_output(self, node: more_output) -> None:
    text = _("%d more lines") % node["lines"]
    self.body.append(f'<details class="more-output"><summary>{text}</summary>')


def depart_more_output(self, node: more_output) -> None:
    self.body.append("</details>\n")


def setup(app: Sphinx) -> dict:
    app.add_config_value("fold_outputs_lines", 16, "env", int)
    app.add_node(more_output, html=(visit_more_output, depart_more_output))
    app.add_post_transform(Fold)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
