"""Equations are MathML in the page, numbered as elsewhere, and have a font of the site's own."""

import pytest
from fontTools.ttLib import TTFont

from mathml import characters, convert, in_scripts
from sites import ROOT, build, page, write_site

CONF = f"""
extensions = ["mathml"]
html_theme = "basic"
html_math_renderer = "mathml"
html_static_path = [{str(ROOT / "_static")!r}]
"""
NOTEBOOKS = 'extensions += ["myst_nb"]\nmyst_enable_extensions = ["dollarmath", "amsmath"]\n'
RST = r"""
A
=

Inline :math:`a < \mathbb{R}`, see :eq:`sum`.

.. math::
   :label: sum

   y &= \sqrt{x} \\
     &= z

.. math::

   p = 1

   q = 2

.. math::
   :no-wrap:

   \begin{align}
   u &= 1 \\
   v &= 2
   \end{align}
"""
NOTEBOOK = r"""---
kernelspec: {name: python3, display_name: Python 3}
---
# N

Inline $\zeta$ and {eq}`named`.

$$
\xi = 1
$$ (named)

\begin{equation*}
\begin{split} \psi &= 1 \\ &= 2 \end{split}
\end{equation*}

\begin{gather}
\chi = 1
\end{gather}
"""


def site(tmp_path, text: str, conf: str = CONF, **more: str):
    files = {name.replace("_", "."): content for name, content in more.items()}
    return write_site(tmp_path, {"index.rst": text, **files}, conf)


def font(folder) -> TTFont:
    return TTFont(folder / "_build" / "html" / "_static" / "stix-two-math.woff2")


def test_equations_of_a_page_are_mathml_and_numbered(tmp_path):
    folder = site(tmp_path, RST)
    result = build(folder)
    assert (result.returncode, result.stderr) == (0, "")
    html = page(folder, "index")
    inline = html.select_one("p math")
    assert inline.get("display") is None and inline.text == "a<ℝ"
    reference = html.select_one("p a[href='#equation-sum']")
    assert reference.text == "(1)"
    numbered, lines, bare = html.select("div.math")
    assert numbered["id"] == "equation-sum"
    assert numbered.select_one(".eqno").text.startswith("(1)")
    assert numbered.select_one(".eqno a.headerlink")["href"] == "#equation-sum"
    assert numbered.math["display"] == "block" and numbered.msqrt.text == "x"
    assert [len(block.select("mtr")) for block in (numbered, lines, bare)] == [2, 2, 2]
    assert lines.select(".eqno") == bare.select(".eqno") == []
    assert "(" not in bare.math.text  # no number of the converter's own
    assert html.select("script[src*=mathjax], code") == []
    assert html.select_one("link[href*='mathml.css']")


def test_equations_of_a_notebook_are_too(tmp_path):
    folder = site(tmp_path, "A\n=\n\n.. toctree::\n\n   n\n", CONF + NOTEBOOKS, n_md=NOTEBOOK)
    result = build(folder)
    assert (result.returncode, result.stderr) == (0, "")
    html = page(folder, "n")
    assert html.select_one("p math").text == "ζ"
    named, split, gather = html.select("div.math")
    assert html.select_one("p a.reference").text == named.select_one(".eqno").text[:3] == "(1)"
    assert split.select(".eqno") == [] and len(split.select("mtr")) == 2
    assert gather.select_one(".eqno").text.startswith("(2)")
    assert {ord(c) for c in "𝜁𝜉𝜓𝜒"} <= font(folder).getBestCmap().keys()


@pytest.mark.parametrize(
    ("wrong", "line", "message", "source"),
    [
        (
            r"Two :math:`\nothing x`.",
            6,
            r'not understood: Unknown command "\nothing"',
            r"\nothing x",
        ),
        (".. math::\n\n   a &= b", 6, 'not understood: Found "&"', "a &= b"),
        (".. math:: \\frac{a}", 6, "not understood: Expected argument", r"\frac{a}"),
    ],
)
def test_an_equation_that_is_not_understood_is_a_warning_at_its_line(
    tmp_path, wrong, line, message, source
):
    folder = site(tmp_path, f"A\n=\n\nOne.\n\n{wrong}\n")
    result = build(folder)
    assert result.returncode != 0
    assert f"index.rst:{line}: WARNING: mathml: equation {message}" in result.stderr
    assert page(folder, "index").select_one(".math code").text == source


@pytest.mark.parametrize(
    ("latex", "drawn"),
    [
        ("x", "x𝑥"),
        ("h", "hℎ"),
        (r"\alpha\partial\epsilon", "α𝛼∂𝜕ϵ𝜖"),
        (r"\operatorname{max}", "max"),
        (r"\mathcal{L}", "ℒ"),
        ("a < b", "<"),
        (r"\hat{y} - 1", "ˆ−1"),
    ],
)
def test_what_a_browser_draws_is_collected(latex, drawn):
    assert set(drawn) <= characters(convert(latex, False))


@pytest.mark.parametrize(
    ("latex", "small"),
    [
        ("x", ""),
        ("a + b_c^{d e}", "cd𝑐𝑑e𝑒"),
        (r"\sum_{i}^n k", "i𝑖n𝑛"),
        (r"\frac{x}{y} z", "x𝑥y𝑦"),
        (r"\sqrt[3]{x} + \sqrt{y}", "3"),
        (r"\hat{u}", "^ˆ"),
    ],
)
def test_what_may_be_smaller_is_collected(latex, small):
    assert in_scripts(convert(latex, False)) <= set(small)
    assert set(small) - {"^", "ˆ"} <= in_scripts(convert(latex, False))


def test_only_what_stands_in_scripts_has_a_form_for_them(tmp_path):
    folder = site(tmp_path, "A\n=\n\n:math:`\\alpha_\\beta`\n")
    assert build(folder).returncode == 0
    made = font(folder)
    names = {c: made.getBestCmap()[ord(c)] for c in "𝛼𝛽"}
    tables = [t for lookup in made["GSUB"].table.LookupList.Lookup for t in lookup.SubTable]
    forms = set().union(*(getattr(t, "alternates", {}) for t in tables))
    assert names["𝛽"] in forms and names["𝛼"] not in forms


def test_the_font_has_what_the_equations_need_and_no_more(tmp_path):
    folder = site(tmp_path, "A\n=\n\n:math:`\\left( \\frac{h}{\\sqrt{\\alpha}} \\right)`\n")
    assert build(folder).returncode == 0
    made = font(folder)
    assert made.flavor == "woff2"
    assert {ord(c) for c in "()ℎ𝛼√−"} <= made.getBestCmap().keys()
    assert ord("𝛽") not in made.getBestCmap()
    variants = made["MATH"].table.MathVariants
    stretchy = dict(zip(variants.VertGlyphCoverage.glyphs, variants.VertGlyphConstruction))
    for character in "(√":
        construction = stretchy[made.getBestCmap()[ord(character)]]
        assert len(construction.MathGlyphVariantRecord) > 2
        assert construction.GlyphAssembly.PartRecords
    style = (folder / "_build" / "html" / "_static" / "mathml.css").read_text(encoding="utf-8")
    assert 'url("stix-two-math.woff2")' in style and "http" not in style.partition("*/")[2]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_the_font_follows_the_equations(tmp_path, jobs):
    index = "A\n=\n\n.. toctree::\n\n   a\n   b\n"
    pages = {name: f"P\n=\n\n:math:`\\{name}`\n" for name in ("alpha", "beta", "gamma")}
    folder = site(tmp_path, index, a_rst=pages["alpha"], b_rst=pages["beta"])
    file = folder / "_build" / "html" / "_static" / "stix-two-math.woff2"

    def rebuilt(**files: str) -> set[str]:
        for name, text in files.items():
            (folder / f"{name}.rst").write_text(text, encoding="utf-8")
        assert build(folder, "-j", jobs).returncode == 0
        return {c for c in "𝛼𝛽𝛾" if ord(c) in font(folder).getBestCmap()}

    assert rebuilt() == {"𝛼", "𝛽"}
    first = file.stat().st_mtime_ns
    assert rebuilt(a=pages["alpha"] + "\nMore text.\n") == {"𝛼", "𝛽"}
    assert file.stat().st_mtime_ns == first, "made again for the same characters"
    assert rebuilt(b=pages["gamma"]) == {"𝛼", "𝛾"}
    assert rebuilt(b="P\n=\n\nNo equation.\n") == {"𝛼"}


def test_without_the_package_of_the_font_there_is_one_warning(tmp_path):
    hidden = CONF + 'import sys\nsys.modules["ziamath"] = None\n'
    folder = site(tmp_path, RST, hidden)
    result = build(folder)
    assert result.stderr.count("WARNING") == 1
    assert "pip install --no-deps -r requirements-data.txt" in result.stderr
    assert page(folder, "index").select_one("p math").text == "a<ℝ"
    assert build(folder, "-b", "text").stderr == ""
