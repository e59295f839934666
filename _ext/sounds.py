"""Sounds that a notebook shows: files beside the pages, fetched when a reader presses play.

``workbench.sound.play`` leaves a player with the sound in its address, which is right for a notebook
that travels alone. A page would carry it in its HTML, a chapter once more, and every reader would load
it. On the web site each sound is a file ``_sounds/<hash>.mp3``, named by its bytes, so that both pages
share it and no reader keeps an old one. What is no web site shows the names of the sounds.
"""

import base64
import binascii
import hashlib
import html
import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.osutil import relative_uri

from formats import WEB_SITE
from per_page import PerPage

LOG = logging.getLogger(__name__)
FOLDER = "_sounds"
ADDRESS = re.compile(r'src="data:audio/mpeg;base64,([^"]*)"')
PLAYER = re.compile(r'<audio\b[^>]*aria-label="([^"]*)"[^>]*>\s*</audio>')


class Sounds(PerPage):
    """The files of the sounds of each notebook."""

    name, label = "sounds", "Sounds of notebooks"


def players(document: nodes.document) -> Iterator[nodes.raw]:
    for node in document.findall(nodes.raw):
        if "html" in node["format"].split() and ADDRESS.search(node.astext()):
            yield node


def file_name(data: str) -> str:
    return f"{hashlib.sha256(data.encode()).hexdigest()[:16]}.mp3"


class Collect(SphinxTransform):
    """Notes the files of a page when it is read, and warns of a player that cannot be played."""

    default_priority = 221

    def apply(self, **kwargs) -> None:
        for node in players(self.document):
            found = ADDRESS.findall(node.astext())
            if len(PLAYER.findall(node.astext())) != len(found):
                LOG.warning("sounds: a player without a name (aria-label)", location=node)
            try:
                for data in found:
                    base64.b64decode(data, validate=True)
            except binascii.Error as error:
                LOG.warning("sounds: a player without a sound: %s", error, location=node)
                continue
            pages = self.env.get_domain("sounds").pages
            kept = pages.setdefault(self.env.current_document.docname, set())
            kept.update(map(file_name, found))


class Place(SphinxPostTransform):
    default_priority = 6  # after MyST-NB has chosen among the types of an output, at 4

    def run(self, **kwargs) -> None:
        for node in list(players(self.document)):
            if self.app.builder.name in WEB_SITE:
                text = ADDRESS.sub(self.placed, node.astext())
                node.replace_self(nodes.raw("", text, format="html"))
            else:
                names = PLAYER.findall(node.astext())
                node.replace_self([nodes.paragraph("", html.unescape(name)) for name in names])

    def placed(self, found: re.Match) -> str:
        """Write the file of a sound, if it is not there; its address as seen from the page."""
        file = Path(self.app.outdir, FOLDER, file_name(found[1]))
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(base64.b64decode(found[1]))
        page = self.app.builder.get_target_uri(self.env.current_document.docname)
        return f'src="{relative_uri(page, f"{FOLDER}/{file.name}")}"'


def files_of_sounds(app: Sphinx) -> list[Path]:
    """All that the pages of the site play; see ``leftovers``."""
    names = set().union(*app.env.get_domain("sounds").pages.values())
    return [Path(app.outdir, FOLDER, name) for name in names]


def setup(app: Sphinx) -> dict:
    app.setup_extension("leftovers")
    app.add_domain(Sounds)
    app.add_transform(Collect)
    app.add_post_transform(Place)
    app.connect("files-beside-pages", files_of_sounds)
    return {
        "version": "1",
        "env_version": 1,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
