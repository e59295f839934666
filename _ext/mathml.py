r"""Equations as MathML, made when the book is built: no script, and a font of the site's own.

In conf.py::

    extensions = ["mathml", ...]
    html_math_renderer = "mathml"

Markup is as always: ``:math:`x^2```, ``.. math::`` with ``:label:``, ``$x^2$`` in notebooks. The font
is STIX Two Math from the package ziamath, reduced to the characters that the equations use and
written to ``_static/stix-two-math.woff2``; ``_static/mathml.css`` names it.
"""

import re
import unicodedata
from contextlib import suppress
from functools import lru_cache
from html import unescape
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.locale import _
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

from formats import WEB_SITE
from per_page import PerPage

LOG = logging.getLogger(__name__)
CONVERTER = LatexToMathML(fancy_error=False)
# Sphinx numbers an equation as a whole, so these become what stands inside one.
INNER = {"align": "aligned", "split": "aligned", "gather": "gathered", "equation": ""}
ENVIRONMENT = re.compile(r"\\(begin|end)\{(align|split|gather|equation)\*?\}")
# A browser draws a single letter in an <mi> as the mathematical italic one: "x" as U+1D465.
ITALIC = {"h": "\u210e"} | {
    chr(int(unicodedata.decomposition(chr(code)).split()[-1], 16)): chr(code)
    for code in (*range(0x1D434, 0x1D455), *range(0x1D456, 0x1D468), *range(0x1D6A4, 0x1D6A6),
                 *range(0x1D6E2, 0x1D71C))
}  # fmt: skip
NAMED = re.compile(r"&(?!(?:amp|lt|gt|quot);)[A-Za-z]+;")  # HTML has names for more than XML has
XMLNS = 'xmlns="http://www.w3.org/1998/Math/MathML"'
DRAWN = " \u221a\u2212"  # space, the radical sign of <msqrt>, the minus for a hyphen
# Elements whose children, but for the first ones, may be drawn smaller.
SMALLER = dict.fromkeys(("msub", "msup", "msubsup", "munder", "mover", "munderover", "mroot"), 1)
SMALLER |= {"mfrac": 0, "mmultiscripts": 1}


def latex(node: nodes.math | nodes.math_block) -> str:
    """The source of one equation; blank lines part the lines of a display, as in Sphinx."""
    text = node.astext().strip()
    if isinstance(node, nodes.math_block) and not node.get("no-wrap", node.get("nowrap", False)):
        lines = [line.strip() for line in re.split(r"\n\s*\n", text)]
        lines = [aligned(line) if r"\\" in line else line for line in lines]
        text = lines[0] if len(lines) == 1 else aligned(" \\\\\n".join(lines))
    return ENVIRONMENT.sub(lambda m: INNER[m[2]] and rf"\{m[1]}{{{INNER[m[2]]}}}", text)


def aligned(text: str) -> str:
    return rf"\begin{{aligned}}{text}\end{{aligned}}"


@lru_cache(maxsize=4096)
def convert(text: str, display: bool) -> str:
    markup = CONVERTER.convert_with_local_state(text, displaystyle=display)
    return NAMED.sub(lambda name: unescape(name[0]), markup)


def mathml(node: nodes.math | nodes.math_block) -> str:
    return convert(latex(node), isinstance(node, nodes.math_block))


def as_xml(markup: str) -> str:
    """As an XHTML page needs it: in its name space, and as MathML 3, whose tables have no level."""
    markup = re.sub(r'(<mtable[^>]*) scriptlevel="0"', r"\1", markup)
    return markup.replace("<math", f"<math {XMLNS}", 1)


def characters(markup: str) -> set[str]:
    """What a font needs to draw this."""
    used = set(unescape(re.sub(r"<[^>]*>", "", markup)))
    letters = {unescape(text) for text in re.findall(r"<mi[^>]*>([^<]*)</mi>", markup)}
    return used | {ITALIC[letter] for letter in letters & ITALIC.keys()}


def in_scripts(markup: str) -> set[str]:
    """Of the characters those that stand in scripts or fractions, where they may be smaller."""
    used = set()
    for element in ElementTree.fromstring(markup).iter():
        if element.tag in SMALLER:
            for child in list(element)[SMALLER[element.tag] :]:
                used |= characters(ElementTree.tostring(child, encoding="unicode"))
    return used


def font_file() -> Path | None:
    """Where ziamath keeps the font, or None after a warning; the package itself is not imported."""
    spec = find_spec("ziamath")
    places = spec.submodule_search_locations if spec else []
    files = [Path(place, "fonts", "STIXTwoMath-Regular.ttf") for place in places]
    if found := next((file for file in files if file.exists()), None):
        return found
    text = "mathml: no font for equations; pip install --no-deps -r requirements-data.txt"
    LOG.warning(text, type="mathml", subtype="font")
    return None


ALTERNATES = 3  # a type of lookup of the table GSUB: glyphs that may stand for one


class Drawn(NamedTuple):
    """What the font must have: all characters, and of them those that may be smaller."""

    used: set[str]
    small: set[str]


def write_font(source: Path, drawn: Drawn, target: Path) -> None:
    from fontTools import subset  # only when the font is made: it takes time to import

    options = subset.Options(flavor="woff2", notdef_outline=True, hinting=False)
    options.layout_features = ["ssty", "dtls", "flac"]  # scripts, dotless letters, flat accents
    with subset.load_font(source, options) as font:
        glyphs = font.getBestCmap()
        small = {glyphs.get(ord(character)) for character in drawn.small}
        for lookup in font["GSUB"].table.LookupList.Lookup:
            for table in lookup.SubTable if lookup.LookupType == ALTERNATES else ():
                # scripts of scripts look like scripts: the first form for both spares a fifth,
                # and no form for what stands in none another sixth
                table.alternates = {
                    name: [v[0]] * len(v) for name, v in table.alternates.items() if name in small
                }
        maker = subset.Subsetter(options)
        maker.populate(text="".join(drawn.used))
        maker.subset(font)
        subset.save_font(font, target, options)


class Characters(PerPage):
    """What each page's equations need from the font."""

    name, label = "equation-characters", "Characters of equations"
    data_version = 1

    def process_doc(self, env: BuildEnvironment, docname: str, document: nodes.document) -> None:
        drawn = Drawn(set(), set())
        for node in document.findall(lambda n: isinstance(n, (nodes.math, nodes.math_block))):
            with suppress(LatexError):  # reported when the page is written
                markup = mathml(node)
                drawn.used.update(characters(markup))
                drawn.small.update(in_scripts(markup))
        if drawn.used:
            self.pages[docname] = drawn


def drawn_characters(env: BuildEnvironment) -> dict[str, Drawn]:
    """{docname: characters} of the pages with equations."""
    return env.get_domain("equation-characters").pages


def all_drawn(env: BuildEnvironment) -> Drawn:
    """What the font must have for all pages."""
    pages = drawn_characters(env).values()
    used = set(DRAWN).union(*(page.used for page in pages))
    return Drawn(used, set().union(*(page.small for page in pages)))


def add_font(app: Sphinx, exception: Exception | None) -> None:
    site = app.builder.name in WEB_SITE and app.builder.math_renderer_name == "mathml"
    source = font_file() if site and not exception else None
    if source is None:
        return
    drawn = all_drawn(app.env)
    target = Path(app.outdir, "_static", "stix-two-math.woff2")
    stamp = Path(app.outdir, ".mathml-font")
    program = Path(__file__).stat().st_size
    texts = ["".join(sorted(characters)) for characters in drawn]
    made_of = f"{source.stat().st_size} {program} {texts}"
    if target.exists() and stamp.exists() and stamp.read_text("utf-8") == made_of:
        return
    write_font(source, drawn, target)
    stamp.write_text(made_of, "utf-8")


def visit_math(self, node: nodes.math) -> None:
    start = self.starttag(node, "span", "", CLASS="math")
    self.body.append(f"{start}{markup_or_source(self, node)}</span>")
    raise nodes.SkipNode


def visit_displaymath(self, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    if node.get("number"):
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, _("Link to this equation"))
        self.body.append("</span>")
    self.body.append(markup_or_source(self, node) + "</div>\n")
    raise nodes.SkipNode


def markup_or_source(self, node: nodes.math | nodes.math_block) -> str:
    try:
        return as_xml(mathml(node)) if self.builder.name == "epub" else mathml(node)
    except LatexError as error:
        reason = re.sub(r"^\d+: ", "", str(error))  # the place counts our own additions
        LOG.warning("mathml: equation not understood: %s", reason, location=node, type="mathml")
        return f"<code>{self.encode(node.astext().strip())}</code>"


def setup(app: Sphinx) -> dict:
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(visit_math, None),
        block_renderers=(visit_displaymath, None),
    )
    app.add_css_file("mathml.css")
    app.add_domain(Characters)
    app.connect("build-finished", add_font)
    return {
        "version": "1",
        "env_version": 2,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
