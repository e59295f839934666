"""Warn of what the content policy of the pages (see ``page_head``) keeps a browser from running.

A notebook may leave HTML with a script, or with a picture from another host. A page shows it without
a word, and the browser refuses it: the reader sees a hole, the builder nothing. Here each page is
looked at when it is read, and what would be refused is a warning at the line of its cell.
"""

import re
from html.parser import HTMLParser
from urllib.parse import urlsplit

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

LOG = logging.getLogger(__name__)
# What loads a file, in which attributes; with "data" the file may stand in the address itself.
LOADS = {
    "img": ("src", "srcset", "data"),
    "source": ("src", "srcset", "data"),
    "audio": ("src", "data"),
    "video": ("src", "poster", "data"),
    "track": ("src", "data"),
    "image": ("href", "xlink:href", "data"),
    "iframe": ("src",),
    "link": ("href",),
    "form": ("action",),
}
NEVER = {"object", "embed", "applet", "base"}
DATA_SCRIPTS = re.compile(r"(application|text)/([\w.-]+\+)?(json|plain)", re.IGNORECASE)
FROM_ELSEWHERE = re.compile(r"(?:url\(|@import)\s*[\"']?\s*(?:https?:)?//", re.IGNORECASE)


def elsewhere(address: str, data: bool = False) -> bool:
    """Whether an address leads to another host, or to nothing that the policy lets in."""
    try:
        parts = urlsplit(address.strip())
    except ValueError:
        return True
    return bool(parts.netloc or (parts.scheme and not (data and parts.scheme == "data")))


class Refused(HTMLParser):
    """Collects what a browser would refuse of some HTML."""

    def __init__(self, html: str):
        super().__init__()
        self.reasons: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "script" and not DATA_SCRIPTS.fullmatch(given.get("type", "").strip()):
            self.reasons.append("a script")
        if tag in NEVER:
            self.reasons.append(f"<{tag}>")
        for name, value in given.items():
            script = re.sub(r"[\0-\x20]", "", value).lower().startswith("javascript:")
            if script or name.startswith("on"):
                self.reasons.append(f"the script in {name}=")
            elif name == "style" and FROM_ELSEWHERE.search(value):
                self.reasons.append(f"a file from another host in <{tag} style>")
            elif name in LOADS.get(tag, ()):
                addresses = [part.split()[0] for part in value.split(", ") if part.strip()]
                refused = [a for a in addresses if elsewhere(a, "data" in LOADS[tag])]
                self.reasons += [f"<{tag}> from {address[:60]}" for address in refused]

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style" and FROM_ELSEWHERE.search(data):
            self.reasons.append("a style sheet from another host")


class Blocked(SphinxTransform):
    default_priority = 220  # after all is parsed; earlier than pictures are fetched

    def apply(self, **kwargs) -> None:
        for node in self.document.findall(nodes.raw):
            if "html" in node["format"].split():
                self.warn(node, Refused(node.astext()).reasons)
        for image in self.document.findall(nodes.image):
            if elsewhere(image["uri"], data=True):
                self.warn(image, [f"a picture from {image['uri'][:60]}"])

    def warn(self, node: nodes.Node, reasons: list[str]) -> None:
        if not reasons:
            return
        cell = node
        while cell is not None and cell.get("nb_element") != "cell_code":
            cell = cell.parent
        where = f"output of cell {cell['cell_index'] + 1}: " if cell is not None else ""
        LOG.warning(
            "blocked: %sthe content policy of the pages refuses %s",
            where,
            ", ".join(dict.fromkeys(reasons)),
            location=node if cell is None else cell,
            type="blocked",
        )


def setup(app: Sphinx) -> dict:
    app.add_transform(Blocked)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
