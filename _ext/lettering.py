"""Text of figures in the page's face, which each picture carries with it.

matplotlib lays text out in DejaVu Sans and names it in the SVG. A reader without that font saw the
browser's sans serif, and a serif for formulas; a picture cannot use the fonts of its page. Here

- text is set in Source Sans 3, of which the file holds the glyphs that it uses; what that face does
  not have, such as an arrow, comes from DejaVu Sans, which is part of matplotlib;
- letters are ``SCALE`` times as large, so that they look as large as before. Lines are then about a
  tenth shorter than matplotlib measured them, so what had room keeps it;
- formulas, whose glyphs matplotlib places one by one, are drawn together about their middle.
"""

import base64
import io
import re
from functools import lru_cache
from html import unescape
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

SCALE = 1.14  # lower-case letters are 0.486 em high, those of DejaVu Sans 0.547
FAMILY = "Source Sans 3"
FONTS = Path(__file__).parent.parent / "_static" / "fonts"
OURS = "'DejaVu Sans'"  # how matplotlib names the font
TEXT = re.compile(r'<(?:text|tspan)\b[^>]*? style="(?P<style>[^"]*)"[^>]*>(?P<text>[^<]*)<')
SIZE = re.compile(r"font-size: ([\d.]+)px; font-family: 'DejaVu Sans'(?:, sans-serif)?")
FORMULA = re.compile(r"<text>(?:\s*<tspan[^>]*>[^<]*</tspan>)+\s*</text>")
GLYPHS = re.compile(r'x="(?P<x>[^"]*)"(?P<rest>[^>]*>)(?P<text>[^<]*)<')
EMPTY_PATH = re.compile(r"<path (?![^>]*\bd=)[^>]*/>\n?")
IMAGE_ID = re.compile(r' id="image[0-9a-f]+"')
PROLOGUE = re.compile(r"<!DOCTYPE[^>]*>\s*|<metadata>.*?</metadata>\s*", re.DOTALL)


class Face(NamedTuple):
    """A style of the text."""

    bold: bool = False
    italic: bool = False


def face(style: str) -> Face:
    """The face that a style asks for."""
    bold = re.search(r"font-weight: (?:bold|[6-9]00)", style)
    italic = re.search(r"font-style: (?:italic|oblique)", style)
    return Face(bool(bold), bool(italic))


@lru_cache
def font(face: Face) -> bytes:
    """Source Sans 3 in one weight, from the variable fonts of the site."""
    from fontTools.ttLib import TTFont  # only when figures are read: it takes time to import
    from fontTools.varLib.instancer import instantiateVariableFont

    name = "source-sans-3-italic.woff2" if face.italic else "source-sans-3.woff2"
    fixed = instantiateVariableFont(TTFont(FONTS / name), {"wght": 700 if face.bold else 400})
    fixed.flavor = None
    file = io.BytesIO()
    fixed.save(file)
    return file.getvalue()


@lru_cache
def drawn_with(face: Face) -> bytes:
    """DejaVu Sans in the style that matplotlib used."""
    name = "DejaVuSans" + "-" * any(face) + "Bold" * face.bold + "Oblique" * face.italic
    (folder,) = find_spec("matplotlib").submodule_search_locations
    return Path(folder, "mpl-data", "fonts", "ttf", f"{name}.ttf").read_bytes()


@lru_cache
def widths(file: bytes) -> dict[int, float]:
    """{code of a character: how far it reaches, in em} of a font."""
    from fontTools.ttLib import TTFont

    opened = TTFont(io.BytesIO(file))
    em, reach = opened["head"].unitsPerEm, opened["hmtx"]
    return {code: reach[glyph][0] / em for code, glyph in opened.getBestCmap().items()}


def width(text: str, face: Face) -> float:
    """How wide we draw a text, in units of matplotlib's font size."""
    ours, theirs = widths(font(face)), widths(drawn_with(face))
    return SCALE * sum(ours.get(code, theirs.get(code, 0)) for code in map(ord, text))


@lru_cache(maxsize=1024)
def subset(file: bytes, text: str) -> str:
    """The glyphs of a text, as the address of a font."""
    from fontTools import subset
    from fontTools.ttLib import TTFont

    options = subset.Options(flavor="woff2", hinting=False, notdef_outline=True, bidi_closure=False)
    options.layout_features = ["kern", "mark", "ccmp"]
    options.name_IDs = []
    options.drop_tables += ["FFTM"]  # notes of a font editor
    opened, packed = TTFont(io.BytesIO(file)), io.BytesIO()
    maker = subset.Subsetter(options)
    maker.populate(text=text)
    maker.subset(opened)
    subset.save_font(opened, packed, options)
    return "data:font/woff2;base64," + base64.b64encode(packed.getvalue()).decode()


def rules(used: dict[Face, set[str]]) -> str:
    """The style sheet that brings the glyphs of all faces."""
    found = []
    for kind, characters in sorted(used.items()):
        known = widths(font(kind)).keys()
        shared = {c for c in characters if ord(c) in known}
        for file, part in ((font(kind), shared), (drawn_with(kind), characters - shared)):
            if part:
                text = "".join(sorted(part))
                points = ", ".join(f"U+{ord(c):X}" for c in text)
                found.append(
                    f"@font-face {{font-family: '{FAMILY}'; font-weight: {700 if kind.bold else 400}; "
                    f"font-style: {'italic' if kind.italic else 'normal'}; unicode-range: {points}; "
                    f"src: url({subset(file, text)}) format('woff2')}}"
                )
    return "\n".join(found)


def closer(formula: re.Match) -> str:
    """A formula with its glyphs as far apart as ours are wide."""
    parts, before, now = list(TEXT.finditer(formula[0])), 0.0, 0.0
    places = []
    for part in parts:
        text, kind = unescape(part["text"]), face(part["style"])
        if not (found := SIZE.search(part["style"])):
            raise ValueError(
                f"a figure's formula has a large {text!r}, which the page's face does not have: "
                r"write the character itself in place of \sqrt, and brackets without \left"
            )
        size = float(found[1])
        before += size * sum(widths(drawn_with(kind)).get(ord(c), 0) for c in text)
        now += size * width(text, kind)
        xs = map(float, GLYPHS.search(part[0])["x"].split())
        places += [x + size * width(c, kind) / 2 for x, c in zip(xs, text)]
    if not before:
        return formula[0]
    middle, ratio = (min(places) + max(places)) / 2, now / before

    def moved(glyphs: re.Match) -> str:
        xs = (middle + (float(x) - middle) * ratio for x in glyphs["x"].split())
        return f'x="{" ".join(f"{x:.3f}" for x in xs)}"{glyphs["rest"]}{glyphs["text"]}<'

    return GLYPHS.sub(moved, formula[0])


def valid(svg: str) -> str:
    """The figure without what matplotlib leaves of an empty contour and of an image shown twice."""
    seen: set[str] = set()

    def once(match: re.Match) -> str:
        again = match[0] in seen
        seen.add(match[0])
        return "" if again else match[0]

    return IMAGE_ID.sub(once, EMPTY_PATH.sub("", svg))


def letter(svg: str) -> str:
    """The figure with its text in the page's face, without what a browser does not read."""
    used: dict[Face, set[str]] = {}
    for found in TEXT.finditer(svg):
        if OURS in found["style"]:
            used.setdefault(face(found["style"]), set()).update(unescape(found["text"]).strip())
    svg = valid(PROLOGUE.sub("", svg))
    if not any(used.values()):
        return svg
    svg = FORMULA.sub(closer, svg)
    svg = SIZE.sub(
        lambda m: f"font-size: {float(m[1]) * SCALE:.3f}px; font-family: '{FAMILY}', sans-serif",
        svg,
    )
    return svg.replace("<defs>", f"<defs>\n  <style>{rules(used)}</style>", 1)
