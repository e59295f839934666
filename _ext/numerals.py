"""Numbers in tables can be compared: they stand at the right, and do not break.

A column of a table whose cells all hold one number, with a unit or a spread in brackets if need be,
gets the class ``number`` in each cell and in its head. In a table that a notebook has left, where the
numbers stand at the right already, the spread gets a span of its own, ``spread``, so that it can stand
below its number where there is little room.
"""

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

from formats import WEB_SITE

NUMBER = re.compile(
    r"[+\N{MINUS SIGN}-]?\d[\d,.]*(e[+-]?\d+)?( ?(%|[kMG]|s|[KMG]iB))?( \([^()]+\))?"
)
SPREAD = re.compile(r"(?<=[\d%]) (\([^()<>]*\d[^()<>]*\))(?=</td>)")


class Mark(SphinxPostTransform):
    default_priority = 7  # after the values and the table of the runs are there, at 2 and 3

    def run(self, **kwargs) -> None:
        for group in self.document.findall(nodes.tgroup):
            for column in columns(group):
                body = [cell for cell in column if isinstance(cell.parent.parent, nodes.tbody)]
                if body and all(NUMBER.fullmatch(cell.astext()) for cell in body):
                    for cell in column:
                        cell["classes"].append("number")


class Spreads(SphinxPostTransform):
    default_priority = 7  # after MyST-NB has chosen among the types of an output, at 4
    builders = WEB_SITE

    def run(self, **kwargs) -> None:
        for output in list(self.document.findall(nodes.raw)):
            if output.get("format") == "html" and 'class="dataframe"' in output.astext():
                text = SPREAD.sub(r' <span class="spread">\1</span>', output.astext())
                output.replace_self(nodes.raw("", text, **output.attributes))


def columns(group: nodes.tgroup) -> list[tuple[nodes.entry, ...]]:
    """The cells of each column; none where a cell takes up more than one place."""
    rows = [row.children for row in group.findall(nodes.row)]
    if any("morecols" in cell or "morerows" in cell for row in rows for cell in row):
        return []
    return list(zip(*rows))


def setup(app: Sphinx) -> dict:
    app.add_post_transform(Mark)
    app.add_post_transform(Spreads)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
