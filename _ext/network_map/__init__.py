"""The map of the networks: what stands on the cards, as a drawing in which each name is a link.

::

    .. map::

       A circle is a network, at the month of its first public version ...

The content is the caption. On the web site the map is a list; each network in it has its places on a
wide and on a narrow page (see ``across``, ``down``) as custom properties, and the lines of descent
that lead to it. ``book.css`` makes a drawing of the list. Without style sheets, to a screen reader
and in other formats it stays a list: year, chapter, idea, and what it builds on.
"""

import calendar
import math

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import summaries
from cards import cards, in_words, shown
from formats import WEB_SITE, link
from network_map import across, down, elements
from network_map.elements import element, map_lines
from network_map.layout import Band, Node, broken, logarithms, radius, set_radii
from network_map.read import bands

LOG = logging.getLogger(__name__)
UNITS = ("thousand", 10**3), ("million", 10**6), ("billion", 10**9), ("trillion", 10**12)


class map_placeholder(nodes.General, nodes.Element):
    """Stands for the map until all chapters are read; holds the caption."""


class MapDirective(SphinxDirective):
    has_content = True

    def run(self) -> list[nodes.Node]:
        place = map_placeholder("", *self.parse_content_to_nodes())
        self.set_source_info(place)
        summaries.note(self.env, "map")
        return [place]


class Resolve(SphinxPostTransform):
    default_priority = 2  # before cross-references, at 10

    def run(self, **kwargs) -> None:
        for place in list(self.document.findall(map_placeholder)):
            found = bands(self.env)
            if not found:
                LOG.warning("map: no chapter has a card", location=place, type="map")
                place.replace_self([])
                continue
            web = self.env._builder_cls.name in WEB_SITE
            content = self.drawing(found) + place.children if web else self.plain(found)
            place.replace_self(nodes.container("", *content, classes=["map"]))

    def plain(self, found: list[Band]) -> list[nodes.Node]:
        """The list as other formats have it."""
        content = []
        for band in found:
            items = nodes.definition_list()
            for node in band.nodes:
                year = nodes.Text(f"{years(node)} ")
                term = nodes.term("", "", year, link(self.env, node.key))
                said = nodes.definition("", *self.about(node))
                items += nodes.definition_list_item("", term, said)
            content += [nodes.paragraph("", band.caption), items]
        return content

    def drawing(self, found: list[Band]) -> list[nodes.Node]:
        own = [node for band in found for node in band.nodes]
        set_radii(own)
        scale = across.scale_of(node.when for node in own)
        height = across.place(found, scale)
        depth, lines_down = down.place(found)
        lines = {"across": across.lines(found), "down": lines_down}
        sides = {"height": height, "depth": depth}
        axis = element(
            "div",
            "map-years",
            *[element("span", "map-gap", x=x, wide=wide) for x, wide in scale.gaps],
        )
        axis += [
            element("span", "map-year", nodes.Text(f"{year}"), x=x)
            for year, x in scale.starts.items()
        ]
        axis["hidden"] = True  # each network tells its year
        items = [self.band(band, lines, sides) for band in found]
        return [
            element("div", "map-plot", axis, element("ul", "map-parts", *items), **sides),
            *sizes(own),
        ]

    def band(self, band: Band, lines: dict, sides: dict) -> nodes.Element:
        caption = nodes.paragraph("", band.caption, classes=["map-caption"])
        networks = element(
            "ol", "map-networks", *[self.network(node, lines, sides) for node in band.nodes]
        )
        return element("li", "map-part", caption, networks, y=band.y, v=band.v, indent=band.indent)

    def network(self, node: Node, lines: dict, sides: dict) -> nodes.Element:
        kind = "map-overview" if node.until is not None else "map-network"
        places = {"x": node.x, "y": node.y, "bottom": node.bottom, "u": node.u, "v": node.v}
        places |= {"r": node.radius} if node.until is None else {"wide": node.wide}
        led = {
            way: "".join(path for (_, end), path in paths.items() if end == node.key)
            for way, paths in lines.items()
        }
        year = element("span", "map-when", nodes.Text(years(node)))
        name = link(self.env, node.key, "\n".join(broken(node.name)))
        about = element("div", "map-about", *self.about(node))
        return element("li", kind, map_lines(**led, **sides), year, name, about, **places)

    def about(self, node: Node) -> list[nodes.paragraph]:
        """The idea, and a line of facts."""
        card = cards(self.env)[node.key]
        idea = nodes.paragraph("", "", *card.idea.deepcopy().children, classes=["map-idea"])
        facts = []
        if card.first and card.date[1]:
            facts.append(f"{calendar.month_name[card.date[1]]} {card.date[0]}")
        if node.size:
            facts.append(f"{rounded(node.size)} parameters")
        if titles := [self.env.titles[d].astext() for d in card.after if d in self.env.titles]:
            facts.append(f"{'builds on' if card.first else 'draws together'} {in_words(titles)}")
        line = nodes.paragraph("", " · ".join(facts), classes=["map-facts"])
        return [idea, line] if facts else [idea]


def years(node: Node) -> str:
    return f"{int(node.when)}" + (f" to {int(node.until)}" if node.until is not None else "")


def sizes(own: list[Node]) -> list[nodes.paragraph]:
    """Circles of some sizes with their numbers."""
    logs = logarithms(own)
    powers = range(math.ceil(min(logs)), math.floor(max(logs)) + 1) if logs else []
    if not powers:
        return []
    line = nodes.paragraph("", "", nodes.inline("", "Parameters: "), classes=["map-sizes"])
    for power in sorted({powers[0], powers[len(powers) // 2], powers[-1]}):
        circle = element("span", "map-circle", r=radius(10**power, logs))
        words = nodes.inline("", f"{rounded(10**power)} ")
        line += nodes.inline("", "", circle, words, classes=["map-size"])
    return [line]


def rounded(number: float) -> str:
    """
    >>> rounded(138_357_544)
    '138 million'
    """
    word, unit = next((pair for pair in reversed(UNITS) if pair[1] <= number), ("", 1))
    return f"{number / unit:.3g} {word}".strip()


def setup(app: Sphinx) -> dict:
    app.setup_extension("cards")
    app.add_node(map_placeholder)
    app.add_directive("map", MapDirective)
    app.add_post_transform(Resolve)
    elements.add(app)
    summaries.follow(app, "map", shown)
    return {
        "version": "1",
        "env_version": 1,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
