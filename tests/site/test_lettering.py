"""Text of figures: in the page's face, as large as matplotlib meant it, and never longer."""

import base64
import contextlib
import io
import re
from html import unescape

import pytest
from fontTools.ttLib import TTFont
from matplotlib import pyplot as plt

from browser import MISSING, find
from lettering import FAMILY, SCALE, Face, drawn_with, face, font, letter, valid, width, widths
from page_head import POLICY
from workbench.plots import STYLE

BOLD = "bold text"
TEXTS = ["held-out accuracy, %", "3×3, 128", "9→1 & 2<3", "1,234.5", "−0.25"]


@pytest.fixture(scope="module")
def drawn() -> str:
    """A figure as a notebook leaves it: plain, bold and rotated text, formulas, an axis of powers."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5, 3))
        axes.plot([1, 1000])
        axes.set(yscale="log", ylabel=TEXTS[0])
        for place, text in enumerate(TEXTS[1:]):
            axes.text(0.2, 10 ** (place / 2), text)
        axes.text(0.6, 3, BOLD, weight="bold")
        axes.text(0.6, 30, r"$x_{12}$ and $10^{4}$")
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        plt.close(figure)
    return file.getvalue()


@pytest.fixture(scope="module")
def lettered(drawn) -> str:
    return letter(drawn)


def fonts(svg: str) -> list[tuple[str, TTFont]]:
    """(rule, font) of each font in a figure."""
    found = re.findall(r"@font-face \{([^}]*)url\(data:font/woff2;base64,([^)]*)\)", svg)
    return [(rule, TTFont(io.BytesIO(base64.b64decode(data)))) for rule, data in found]


def places(svg: str, text: str) -> list[float]:
    """Where the glyphs of the formula that starts with `text` stand."""
    formulas = re.findall(r"<text>\s*(?:<tspan.*?</tspan>\s*)+</text>", svg, re.DOTALL)
    (formula,) = [f for f in formulas if re.sub(r"\s*<[^>]*>\s*", "", f).startswith(text)]
    return sorted(float(x) for xs in re.findall(r'x="([^"]*)"', formula) for x in xs.split())


def test_all_text_is_in_the_page_s_face_and_no_other_font_is_named(drawn, lettered):
    assert "'DejaVu Sans'" in drawn
    named = re.findall(r"<t(?:ext|span) [^>]*font-family: ([^;\"]*)", lettered)
    assert len(named) > 12 and set(named) == {f"'{FAMILY}', sans-serif"}
    assert "DejaVu" not in lettered and "<!DOCTYPE" not in lettered


def test_a_figure_carries_the_glyphs_that_it_uses_and_no_other(lettered):
    characters = {}
    for rule, opened in fonts(lettered):
        kind = Face("weight: 700" in rule, "style: italic" in rule)
        characters.setdefault(kind, set()).update(map(chr, opened.getBestCmap()))
    texts = re.findall(r'style="([^"]*)"[^>]*>([^<]*)</t(?:ext|span)>', lettered)
    for kind in characters:
        used = [unescape(text).strip() for style, text in texts if face(style) == kind]
        assert characters[kind] == set("".join(used)), kind
    assert characters[Face(bold=True)] == set(BOLD)
    assert characters[Face(italic=True)] == {"x"}
    assert len(lettered.encode()) - len(re.sub(r"base64,[^)]*", "", lettered).encode()) < 20_000


def test_what_the_face_lacks_comes_from_the_font_that_matplotlib_drew_with(lettered):
    (arrow,) = [opened for rule, opened in fonts(lettered) if "U+2192" in rule]
    assert set(arrow.getBestCmap()) == {0x2192}


def test_letters_look_as_large_as_before_and_lines_are_not_longer(drawn):
    heights = [
        TTFont(io.BytesIO(file))["glyf"]["x"].yMax for file in (font(Face()), drawn_with(Face()))
    ]
    assert SCALE * heights[0] / 1000 == pytest.approx(heights[1] / 2048, rel=0.04)
    sizes = [
        [float(x) for x in re.findall(r"font-size: ([\d.]+)px", svg)]
        for svg in (drawn, letter(drawn))
    ]
    assert sizes[1] == pytest.approx([SCALE * size for size in sizes[0]], abs=1e-3)
    for kind in (Face(), Face(bold=True)):
        for text in (*TEXTS, BOLD, "stage 4", "ReLU", "WWW", "il1.,", "0123456789"):
            before = sum(widths(drawn_with(kind))[ord(c)] for c in text)
            assert width(text, kind) <= before, text


def test_a_formula_is_drawn_together_about_its_middle(drawn, lettered):
    before, after = places(drawn, "103"), places(lettered, "103")
    assert before[0] < after[0] < after[1] < after[2] < before[2]
    gaps = [(b - a) / (d - c) for a, b, c, d in zip(after, after[1:], before, before[1:])]
    assert 0.8 < min(gaps) <= max(gaps) < 1


def test_a_large_root_is_refused_in_words():
    figure = plt.figure()
    figure.text(0.2, 0.5, r"$\sqrt{d_k}$")
    file = io.StringIO()
    figure.savefig(file, format="svg")
    plt.close(figure)
    with pytest.raises(ValueError, match="a large '√'.*in place of"):
        letter(file.getvalue())


def test_a_figure_without_text_or_by_another_program_stays_as_it_is():
    for svg in ("<svg><path/></svg>", '<svg><text style="font-family: Arial">a</text></svg>'):
        assert letter(svg) == svg


@pytest.mark.skipif(find() is None, reason=MISSING)
def test_a_browser_draws_the_glyphs_that_the_figure_carries(browser, lettered, tmp_path):
    """As wide as computed; and in an <img> under the site's content policy, too."""
    (tmp_path / "with.svg").write_text(lettered, encoding="utf-8")
    (tmp_path / "without.svg").write_text(
        lettered.replace("base64,", "base64,AA"), encoding="utf-8"
    )
    policy = POLICY.replace("'self'", "file: 'self'")
    (tmp_path / "page.html").write_text(
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<img src="with.svg"><img src="without.svg">'
    )
    with contextlib.closing(browser.new_page()) as page:
        page.goto((tmp_path / "with.svg").as_uri())
        page.evaluate("document.fonts.ready")
        for text, size in page.evaluate(
            """[...document.querySelectorAll("text")].filter(e => !e.children.length).map(
                e => [e.textContent, e.getComputedTextLength() / parseFloat(getComputedStyle(e).fontSize)])"""
        ):
            kind = Face(bold=text == BOLD)
            assert SCALE * size == pytest.approx(width(text, kind), rel=0.03), text
        page.goto((tmp_path / "page.html").as_uri())
        page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
        shots = [image.screenshot() for image in page.locator("img").all()]
    assert shots[0] != shots[1]


def test_an_empty_contour_goes_and_an_image_shown_twice_has_its_name_once():
    path, image = '<path style="fill: none"/>\n', '<image id="image0a" width="1"/>'
    svg = f'<svg><path id="a" d="M 0 0"/>{path}{image}{image}</svg>'
    assert valid(svg) == f'<svg><path id="a" d="M 0 0"/>{image}<image width="1"/></svg>'
