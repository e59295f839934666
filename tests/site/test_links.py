"""Links from chapter to chapter, in the real site: a paper that has a chapter is linked with it."""

import re

import pytest
from bs4 import BeautifulSoup
from pybtex.database import parse_file

from loader import ROOT, STEMS

pytestmark = pytest.mark.xdist_group("site")
ARXIV = re.compile(r"arxiv\.org/(?:abs|pdf)/(\d+\.\d+)")
CARD = re.compile(r"^\.\. paper:: (\S+)", re.MULTILINE)
BLOCKS = ["p", "li", "td", "th", "dd", "figcaption"]


def address(url: str) -> str:
    """What is the same in all links to a paper: its number, or else the whole address."""
    found = ARXIV.search(url)
    return found[1] if found else url


@pytest.fixture(scope="module")
def subjects() -> dict[str, str]:
    """{key or address of a paper: stem of the chapter about it}"""
    entries = parse_file(ROOT / "references.bib", bib_format="bibtex").entries
    found = {}
    for stem in STEMS:
        text = (ROOT / "chapters" / f"{stem}.rst").read_text(encoding="utf-8")
        for key in CARD.findall(text):
            found[key] = found[address(entries[key].fields["url"])] = stem
    return found


def test_a_paper_that_has_a_chapter_is_linked_with_it(site, subjects):
    """In the same paragraph, entry or cell; a card and a reading list tell of the paper alone."""
    missing, seen = [], 0
    for stem in STEMS:
        html = BeautifulSoup((site / "chapters" / f"{stem}.html").read_bytes(), "html.parser")
        article = html.select_one("article")
        for part in article.select(".paper-card, #reading-list"):
            part.decompose()
        for link in article.select("a[href]"):
            page, _, anchor = link["href"].partition("#")
            cited = anchor if page.endswith("bibliography.html") else address(link["href"])
            chapter = subjects.get(cited, stem)
            if chapter == stem:
                continue
            seen += 1
            block = link.find_parent(BLOCKS)
            if not block.select(f'a[href^="{chapter}.html"]'):
                missing.append(f"{stem}: {chapter} in {' '.join(block.text.split())[:80]!r}")
    assert missing == []
    assert seen > 10
