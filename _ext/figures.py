"""Pictures that fit the page: the smaller format, its face, a dark twin, a size, loaded when near.

A notebook leaves a matplotlib figure as SVG and as PNG of double density. On the web site

- the larger of the two goes, the SVG being counted as it is sent, compressed;
- an SVG without raster images, in colours of ``workbench.plots`` only, has a twin for dark pages: they are
  exchanged, as ``DARK`` says, and the white ground goes. The theme shows one of the two;
- any other picture of a notebook has the class ``plate``: it keeps its white ground;
- the text of an SVG is in the page's face (see ``lettering``);
- each local picture has its width and height in CSS pixels, so that nothing moves when it arrives.

Other formats show what they can: LaTeX the PNG, plain text the alternative text. So a page is read
with both formats and the twin, and what is not shown goes when it is written.
"""

import gzip
import re
import zlib
from hashlib import sha256
from pathlib import Path

import imagesize
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform

from formats import WEB_SITE
from lettering import SCALE, letter

SVG, PNG = "image/svg+xml", "image/png"
UNLINKED = "no-scaled-link"  # else Sphinx makes a picture with a width a link to itself
# What `STYLE` and `COLOURS` of workbench/plots.py draw with, and its twin on the dark page.
DARK = {
    "#1d2430": "#dbe1e9",  # ink
    "#566171": "#9ba7b6",  # quiet ink: axes, units
    "#d8dde4": "#36404e",  # grid
    "#0a58a0": "#0f8cf8",
    "#c04a00": "#df7401",
    "#3b7f5b": "#5aebb8",
    "#831a60": "#e4539a",
    "#6a3f00": "#ffba04",
    "#387ca1": "#7ac3ff",
}
COLOUR = re.compile("|".join(DARK), re.IGNORECASE)
USED = re.compile(r"(?:fill|stroke): ?(#[0-9a-f]{6})", re.IGNORECASE)
GROUND = re.compile(r'<g id="patch_1">\s*<path[^>]*style="fill: #ffffff[^>]*/>\s*</g>')


def size(path: Path) -> tuple[int, int] | None:
    """Width and height of a picture in CSS pixels, or None if the file does not tell."""
    width, height = imagesize.get(path)
    if width <= 0 or height <= 0:
        return None
    dots, _ = imagesize.getDPI(path)  # an inch has 96 CSS pixels
    scale = 96 / dots if dots > 0 else 1
    return round(width * scale), round(height * scale)


def dark(svg: str) -> str:
    """The figure in the colours of the dark page."""
    return COLOUR.sub(lambda found: DARK[found[0].lower()], svg)


def transparent(svg: str) -> str:
    """The figure without the white ground that matplotlib draws first."""
    return GROUND.sub("", svg, count=1)


def has_twin(svg: str) -> bool:
    """Whether all that is drawn has a colour with a twin; only half exchanged it could not be read."""
    used = {colour.lower() for colour in USED.findall(transparent(svg))}
    return "<image" not in svg and used <= DARK.keys()


def store(source: Path, text: str) -> Path:
    """Write a variant of a picture beside it, named by its content."""
    path = source.with_name(sha256(text.encode()).hexdigest() + ".svg")
    if not path.exists():
        path.write_text(text, encoding="utf-8")
    return path


def bundles(document: nodes.document) -> list[nodes.container]:
    """The outputs that a notebook left in several formats, from which one is shown."""
    containers = document.findall(nodes.container)
    return [node for node in containers if node.get("nb_element") == "mime_bundle"]


def pictures(bundle: nodes.container) -> dict[str, tuple[nodes.container, nodes.image]]:
    """{format: the part of the output that is a picture, and the picture}."""
    found = {}
    for part in bundle.children:
        images = list(part.findall(nodes.image))
        if images and part.get("mime_type", "").startswith("image/"):
            found[part["mime_type"]] = (part, images[0])
    return found


class Figures(SphinxTransform):
    """When a page is read: add the twins, the sizes, and which format is the smaller one."""

    default_priority = 210  # the pictures are there, and not yet collected

    def apply(self, **kwargs) -> None:
        for bundle in bundles(self.document):
            self.complete(bundle)
        for image in list(self.document.findall(nodes.image)):
            if "://" not in image["uri"] and not image["uri"].startswith("data:"):
                self.measure(image)

    def path(self, image: nodes.image) -> Path:
        return Path(self.env.relfn2path(image["uri"], self.env.current_document.docname)[1])

    def complete(self, bundle: nodes.container) -> None:
        """Note the smaller of SVG and PNG; give an SVG its dark twin."""
        found = {kind: part for kind, part in pictures(bundle).items() if kind in (SVG, PNG)}
        if len(found) == 2:
            sent = len(gzip.compress(self.path(found[SVG][1]).read_bytes(), mtime=0))
            bundle["larger"] = SVG if sent > self.path(found[PNG][1]).stat().st_size else PNG
        for kind, (_, image) in found.items():
            image["classes"].append(UNLINKED)
            text = self.path(image).read_text(encoding="utf-8") if kind == SVG else ""
            if not (text and has_twin(text)):
                image["classes"].append("plate")
                if text:
                    self.replace(image, letter(text))
                continue
            text = letter(transparent(text))
            twin = image.deepcopy()
            for node, drawn, name in ((image, text, "only-light"), (twin, dark(text), "only-dark")):
                self.replace(node, drawn)
                node["classes"].append(name)
            image.parent.insert(image.parent.index(image) + 1, twin)

    def replace(self, image: nodes.image, drawn: str) -> None:
        """Let an image show a variant of its file."""
        name = store(self.path(image), drawn).name
        image["uri"] = str(Path(image["uri"]).with_name(name))

    def measure(self, image: nodes.image) -> None:
        path = self.path(image)
        if {"width", "height", "scale"} & set(image.attributes) or not path.is_file():
            return
        if known := size(path):
            image["width"], image["height"] = map(str, known)
            image["classes"] += [] if UNLINKED in image["classes"] else [UNLINKED]


class Shown(SphinxPostTransform):
    """When a page is written: leave of each figure what the format can show."""

    default_priority = 3  # after `embed` has brought the cells, before MyST-NB selects, at 4

    def run(self, **kwargs) -> None:
        builder = self.env._builder_cls
        if builder.name not in WEB_SITE:  # nothing else has dark pages
            for image in list(self.document.findall(nodes.image)):
                if "only-dark" in image["classes"]:
                    image.parent.remove(image)
        for bundle in bundles(self.document):
            found = pictures(bundle)
            if {SVG, PNG} <= {kind for kind in found if kind in builder.supported_image_types}:
                bundle.remove(found[bundle["larger"]][0])
            elif found and not builder.supported_image_types and not described(bundle):
                _, image = next(iter(found.values()))
                bundle.replace_self(image)  # the builder writes its alternative text


def described(bundle: nodes.container) -> bool:
    """Whether the notebook has told the output in words or as a formula, too."""
    kinds = {part.get("mime_type") for part in bundle.children}
    return bool(kinds & {"text/latex", "text/markdown"})


def visit_image(self, node: nodes.image) -> None:
    type(self).visit_image(self, node)
    if self.body and self.body[-1].startswith("<img "):
        self.body[-1] = '<img decoding="async" ' + self.body[-1][5:]


def depart_image(self, node: nodes.image) -> None:
    type(self).depart_image(self, node)


def setup(app: Sphinx) -> dict:
    app.setup_extension("embed")  # its transform of the same priority comes first
    app.add_transform(Figures)
    app.add_post_transform(Shown)
    app.add_node(nodes.image, override=True, html=(visit_image, depart_image))
    # pages hold both formats and the variants' names: read them again when their looks change
    version = zlib.crc32(f"3 {DARK} {SCALE}".encode())
    return {
        "version": "2",
        "env_version": version,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
