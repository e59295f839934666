"""The elements of the map on the web site, which carry their places as custom properties."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

WIDTH_DOWN = 20  # rem, room for the lanes; as in book.css


class map_element(nodes.General, nodes.TextElement):
    """An HTML element with custom properties for the style sheet; may hold text and links."""


class map_lines(nodes.General, nodes.Element):
    """The lines of descent that lead to a network, across and down."""


def element(tag: str, kind: str, *children: nodes.Node, **properties: float) -> map_element:
    return map_element("", "", *children, tag=tag, classes=[kind], properties=properties)


def visit_element(self: HTML5Translator, node: map_element) -> None:
    places = [f"--{name}:{number:.4g}" for name, number in node["properties"].items()]
    attributes = {"style": ";".join(places)} if places else {}
    if node.get("hidden"):
        attributes["aria-hidden"] = "true"
    self.body.append(self.starttag(node, node["tag"], "", **attributes))


def depart_element(self: HTML5Translator, node: map_element) -> None:
    self.body.append(f"</{node['tag']}>\n")


def visit_lines(self: HTML5Translator, node: map_lines) -> None:
    """Pictures that lie over the whole map, of which one is shown; without a style sheet, none."""
    across = f'viewBox="0 0 100 {node["height"]:.2f}" preserveAspectRatio="none"'
    down = f'viewBox="0 0 {WIDTH_DOWN} {node["depth"]:.2f}" preserveAspectRatio="xMinYMin slice"'
    for kind, box in (("across", across), ("down", down)):
        if path := node[kind]:
            first = f'<svg class="map-lines map-{kind}" width="0" height="0" fill="none"'
            self.body.append(f'{first} aria-hidden="true" {box}><path d="{path}"/></svg>')
    raise nodes.SkipNode


def add(app: Sphinx) -> None:
    app.add_node(map_element, html=(visit_element, depart_element))
    app.add_node(map_lines, html=(visit_lines, None))
