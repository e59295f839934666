"""Search: what a page is found by, and an index that is made anew when, and only when, it must be."""

import gzip
import json
import re
from pathlib import Path

import pytest

from search_text import GLUE, HIDDEN, copy, found_by, respelled
from sites import build, write_site

CONF = """
extensions = ["leftovers", "search_index"]
html_theme = "basic"
search_weights = {"other": 0.1}
search_sections = {"less": 0.5}
"""
FILES = {
    "index.rst": "Start\n=====\n\n.. toctree::\n\n   pages/a\n   other\n   kept\n",
    "pages/a.rst": "First\n=====\n\nAbout ``BasicBlock``.\n\nLess\n----\n\nThe colour of 3 × 3 cats.\n",
    "other.rst": "Other\n=====\n\nDogs.\n",
    "kept.rst": ":nosearch:\n\nNot searched\n============\n\nOwls.\n",
}
NONE = {"PAGEFIND_BINARY_PATH": "/bin/false"}  # a build that calls Pagefind fails


def indexed(site: Path) -> dict[str, str]:
    """{address: text} of the pages in an index."""
    found = {}
    for path in site.glob("pagefind/fragment/*.pf_fragment"):
        page = json.loads(gzip.decompress(path.read_bytes()).removeprefix(b"pagefind_dcd"))
        found[page["url"]] = page["content"]
    return found


def lines(body: str, weight: float = 1, **sections: float) -> list[str]:
    return re.findall(r"<[hp].*>", copy(body, "en", weight, sections))[
        1:
    ]  # without the first, html


# ---- what a word is found by ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("colour", "color"),
        ("colors", "colours"),
        ("optimizer", "optimiser"),
        ("Normalisation", "Normalization"),
        ("centred", "centered"),
        ("neighbourhood", "neighborhood"),
        ("greyscale", "grayscale"),
        ("initialise_weights", "initialize_weights"),
        ("ColorJitter", "colourJitter"),
    ],
)
def test_a_word_is_found_in_both_spellings(word, other):
    assert respelled(word) == other
    assert found_by(word) == f"{word} {HIDDEN}{other}"


@pytest.mark.parametrize(
    "word",
    ["noise", "raise", "precise", "otherwise", "size", "resize", "arise", "analysis", "horizon"]
    + ["parameter", "diameter", "comparison", "channel", "our", "four", "realistic"],
)
def test_a_word_with_one_spelling_stays_alone(word):
    assert respelled(word) == word


def test_chinese_is_found_from_each_character_on_and_what_stands_in_it_too():
    parts = ["残差网络", f"{HIDDEN}差网络", f"{HIDDEN}网络", f"{HIDDEN}络", f"{GLUE}：ResNet"]
    assert found_by("残差网络：ResNet") == " ".join(parts)


# ---- the copy of a page --------------------------------------------------------------------------


def test_the_copy_has_sections_with_their_addresses_and_weights():
    body = """<section id="net"><h1>Net<a class="headerlink" href="#net">#</a></h1><p>Text</p>
        <section id="less"><span id="id1"></span><h2>Less</h2><p>More <em>text</em>.</p></section>
        <section id="last"><h2>Last</h2><pre>code</pre></section></section>"""
    assert lines(body, 0.5, less=0.1) == [
        '<h1 data-pagefind-weight="3.5">Net</h1>',
        '<p data-pagefind-weight="0.5">Text</p>',
        '<h2 data-pagefind-weight="0.3" id="less">Less</h2>',
        '<p data-pagefind-weight="0.05">More text.</p>',
        '<h2 data-pagefind-weight="3" id="last">Last</h2>',
        '<p data-pagefind-weight="0.25">code</p>',
    ]


def test_code_is_parted_at_punctuation_and_numbers_and_products_are_one_word():
    body = "<p>a <code>nn.Conv2d(3, lr=0.1)</code> of 3 × 3 and 1,234.5 pixels, H×W</p>"
    (line,) = lines(body)
    assert f"nn. {GLUE}Conv2d( {GLUE}3, lr= {GLUE}0.1) of 3ẋ3 and 1,234.5 pixels, HẋW" in line


def test_equations_buttons_and_drawings_are_left_out_and_cells_of_a_table_kept_apart():
    body = """<div class="math"><math><mi>x</mi></math></div><p class="launch"><a>Open</a></p>
        <svg><text>drawn</text></svg><table><tr><td>1</td><td>2</td></tr></table><p>a<br/>b</p>"""
    assert [re.sub("<.*?>", "", line) for line in lines(body)] == ["1 2", "a b"]


def test_terms_in_bold_and_the_paper_of_a_card_are_fields():
    body = """<p class="paper-title"><a>Very Deep</a></p><p class="paper-authors">A. Nother</p>
        <p>The <strong>skip path</strong> &lt;b&gt;.</p><p><strong>Check.</strong> Is it?</p>"""
    text = copy(body, "en", 1, {})
    assert 'data-pagefind-meta="terms[content]" content="skip path"' in text
    assert 'data-pagefind-meta="paper">Very Deep<' in text
    assert 'data-pagefind-meta="authors">A. Nother<' in text
    assert "&lt;b&gt;" in text


# ---- the index -----------------------------------------------------------------------------------


def test_the_index_holds_the_pages_and_is_made_anew_when_what_is_searched_changes(tmp_path):
    folder = write_site(tmp_path, FILES, CONF)
    site = folder / "_build" / "html"
    result = build(folder, "-j2")
    assert result.returncode == 0, result.stderr
    found = indexed(site)
    assert set(found) == {"/", "/pages/a.html", "/other.html"}
    assert "cats" in found["/pages/a.html"] and f"colour {HIDDEN}color" in found["/pages/a.html"]
    assert not list(site.glob("pagefind/*ui*"))

    assert build(folder, **NONE).returncode == 0, "made anew though nothing has changed"
    (folder / "kept.rst").write_text(FILES["kept.rst"] + "\nMore owls.\n")
    assert build(folder, **NONE).returncode == 0, "made anew though nothing searched has changed"

    (folder / "pages" / "a.rst").write_text(FILES["pages/a.rst"].replace("cats", "mice"))
    (site / ".doctrees" / "searched" / "html" / "other.html.copy").unlink()  # lost, it comes back
    assert build(folder).returncode == 0
    assert "mice" in indexed(site)["/pages/a.html"]
    assert set(indexed(site)) == set(found)

    (folder / "other.rst").unlink()
    (folder / "index.rst").write_text(FILES["index.rst"].replace("   other\n", ""))
    (folder / "pages" / "a.rst").write_text(":nosearch:\n\n" + FILES["pages/a.rst"])
    assert build(folder).returncode == 0
    assert set(indexed(site)) == {"/"}


def test_folders_for_addresses_are_followed_and_other_formats_have_no_index(tmp_path):
    folder = write_site(tmp_path, FILES, CONF)
    assert build(folder, "-b", "dirhtml", out="dirhtml").returncode == 0
    assert "/pages/a/" in indexed(folder / "_build" / "dirhtml")
    for name in ("singlehtml", "text"):
        assert build(folder, "-b", name, out=name, **NONE).returncode == 0
        assert not (folder / "_build" / name / "pagefind").exists()


def test_without_pagefind_or_when_it_fails_the_build_says_so(tmp_path):
    folder = write_site(tmp_path, FILES, CONF)
    result = build(folder, PAGEFIND_BINARY_PATH=str(tmp_path / "none"))
    assert result.returncode and "pip install 'pagefind[extended]'" in result.stderr
    program = tmp_path / "broken"
    program.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    program.chmod(0o755)
    result = build(folder, PAGEFIND_BINARY_PATH=str(program))
    assert result.returncode
    assert "Pagefind failed with status 3" in result.stderr and "it is broken" in result.stderr
    assert build(folder).returncode == 0  # once mended
