"""The electronic book: ``sphinx-build -b epub``, or ``make epub``.

Sphinx's builder, whose book readers and checkers refuse, with these differences:

- only the chapters and what belongs to them are in it. The pages of notebooks, which no table of
  contents names, are files of the web site;
- it has a style sheet of its own, ``_static/ebook.css``, and none of the site's, which no reading
  system could parse; and the font for equations;
- its list of files says which of them hold MathML, and which is the cover.

The doctrees are those of the web site (``-d _build/html/.doctrees``), so no notebook runs for it.
"""

import re
from collections.abc import Set
from pathlib import Path
from shutil import copyfile
from xml.etree import ElementTree

from sphinx.application import Sphinx
from sphinx.builders.epub3 import Epub3Builder

from formats import can_link
from mathml import all_drawn, font_file, write_font

STATIC = ("ebook.css", "cover.png")  # what of the folder _static the book shows
SHEETS = ("pygments.css", "ebook.css")
MATH_FONT = "stix-two-math.woff2"
OPF = "http://www.idpf.org/2007/opf"
DC = "http://purl.org/dc/elements/1.1/"


class Book(Epub3Builder):
    """Sphinx's builder of the same name, as described above."""

    media_types = Epub3Builder.media_types | {".woff2": "font/woff2"}

    def add_css_file(self, filename: str, **attributes) -> None:
        if filename in SHEETS:
            super().add_css_file(filename, **attributes)

    def prepare_writing(self, docnames: Set[str]) -> None:
        super().prepare_writing(docnames)
        language = self.config.language
        tag = self.html_tag.replace(">", f' lang="{language}" xml:lang="{language}">')
        self.globalcontext["html_tag"] = tag
        self.docsettings.image_loading = "link"  # a book is there as a whole

    def write_documents(self, docnames: Set[str]) -> None:
        super().write_documents({name for name in docnames if can_link(self.env, self, name)})

    def gen_additional_pages(self) -> None:
        """A book has none: those of the web site lead from old addresses to new ones."""

    def copy_static_files(self) -> None:
        self._static_dir.mkdir(parents=True, exist_ok=True)
        self.create_pygments_style_file()
        for name in STATIC:
            copyfile(Path(self.confdir, "_static", name), self._static_dir / name)

    def build_content(self) -> None:
        """Write the list of files, and into it what Sphinx leaves out."""
        if source := font_file():
            write_font(source, all_drawn(self.env), self._static_dir / MATH_FONT)
        super().build_content()
        file = Path(self.outdir, "content.opf")
        for prefix, address in (("", OPF), ("dc", DC)):
            ElementTree.register_namespace(prefix, address)
        tree = ElementTree.parse(file)
        for item in tree.iter(f"{{{OPF}}}item"):
            if found := self.properties(item.get("href")):
                item.set("properties", found)
        tree.write(file, encoding="utf-8", xml_declaration=True)

    def toc_metadata(self, level: int, navpoints: list) -> dict:
        """What older reading systems are told; Sphinx tells them another identifier."""
        found = super().toc_metadata(level, navpoints)
        return found | {"uid": self.config.epub_identifier}

    def properties(self, name: str) -> str:
        """What a reading system has to know of a file before it opens it."""
        if name == "nav.xhtml":
            return "nav"
        if self.config.epub_cover and name == self.config.epub_cover[0]:
            return "cover-image"
        path = Path(self.outdir, name)
        holds = path.suffix == ".xhtml" and re.search(r"<math\b", path.read_text(encoding="utf-8"))
        return "mathml" if holds else ""


def setup(app: Sphinx) -> dict:
    app.setup_extension("mathml")
    app.setup_extension("sphinx.builders.epub3")
    app.add_builder(Book, override=True)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
