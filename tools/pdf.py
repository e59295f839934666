"""The whole book as one PDF, from the print view of its pages; ``make pdf``.

The chapters of the built site, in the order of the tables of contents, are joined to one page: each
id gets the name of its page before it, so that links lead from chapter to chapter. A browser prints
it twice; the first print tells on which page each chapter begins. Headings become bookmarks, and tags
say to reading programs what is a heading, a table or a figure. Arguments: the built site, the file.
"""

import io
import pickle
import re
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pikepdf
from bs4 import BeautifulSoup, Tag
from docutils import nodes
from sphinx import addnodes

from browser import MISSING, find, launched, serve
from page_head import MATH_FONT, TEXT_FONTS

ROOT_PAGE = "index"
STYLE = Path(__file__).with_suffix(".css")
IDS = ("id", "for", "aria-labelledby", "aria-describedby")  # attributes that hold an id
# what stands around an article in a page of the site, for its style sheet
FRAME = (("main", "bd-main"), ("div", "bd-content"), ("div", "bd-article-container"))
LIMIT = 600_000  # milliseconds for one print


# ---- what is in the book --------------------------------------------------------------------------


def doctree(site: Path, page: str) -> nodes.document:
    return pickle.loads((site / ".doctrees" / f"{page}.doctree").read_bytes())


def contents(site: Path, page: str = ROOT_PAGE) -> Iterator[tuple[str, list[str]]]:
    """(name of a part, its pages) in the order of the tables of contents; pages may have pages."""
    for toctree in doctree(site, page).findall(addnodes.toctree):
        pages = []
        for name in toctree["includefiles"]:
            pages += [name, *(inner for _, found in contents(site, name) for inner in found)]
        yield toctree.get("caption") or "", pages


# ---- one page of all -------------------------------------------------------------------------------


def anchor(page: str, fragment: str = "") -> str:
    """The id in the book of a page or of a place in it."""
    return f"{page}/{fragment}" if fragment else page


def joined(site: Path, page: str, pages: set[str]) -> Tag:
    """The text of a page as a part of the book."""
    html = BeautifulSoup((site / f"{page}.html").read_bytes(), "html.parser")
    article = html.select_one("article.bd-article")
    for image in article.select("img.only-dark, .headerlink, .launch, script, button"):
        image.decompose()
    for node in article.find_all(True):
        for name in IDS:
            if name in node.attrs:
                node[name] = anchor(page, node[name])
        if node.name in ("h1", "h2", "h3", "h4", "h5"):  # a part is above its chapters
            node["aria-level"] = int(node.name[1]) + 1
    for image in article.select("img"):
        image["src"] = inside(page, image["src"])
        image.attrs.pop("loading", None)
    for link in article.select("a[href]"):
        redirect(link, page, pages)
    article["id"] = anchor(page)
    return article


def inside(page: str, address: str) -> str:
    """An address seen from a page, as a path from the root of the site."""
    parts: list[str] = []
    for part in (PurePosixPath(page).parent / unquote(address)).parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/".join(parts)


def redirect(link: Tag, page: str, pages: set[str]) -> None:
    """Let a link lead to its place in the book; one to what is not in the book becomes text."""
    address, _, fragment = link["href"].partition("#")
    if re.match(r"[a-z]+:", address):
        return
    target = inside(page, address).removesuffix(".html") if address else page
    if target == ROOT_PAGE:
        link["href"] = "#contents"
    elif target in pages:
        link["href"] = "#" + anchor(target, fragment)
    else:
        link.unwrap()


def element(html: BeautifulSoup, name: str, text: str = "", **attributes) -> Tag:
    made = html.new_tag(name, attrs={key.rstrip("_"): value for key, value in attributes.items()})
    if text:
        made.string = text
    return made


def table_of_contents(html: BeautifulSoup, parts: list, titles: dict, numbers: dict) -> Tag:
    section = element(html, "section", class_="book-contents", id="contents")
    section.append(element(html, "h1", "Contents", **{"aria-level": "1"}))
    for part, pages in parts:
        if part:
            section.append(element(html, "p", part, class_="book-part"))
        table = element(html, "ol")
        for page in pages:
            link = element(html, "a", href="#" + anchor(page))
            link.append(element(html, "span", titles[page]))
            link.append(element(html, "span", str(numbers.get(anchor(page), "")), class_="number"))
            entry = element(html, "li")
            entry.append(link)
            table.append(entry)
        section.append(table)
    return section


def faces() -> str:
    """The fonts of the site, waited for: a print has no second look."""
    return "".join(
        f'@font-face {{ font-family: "{family}"; src: url("{file}") format("woff2"); '
        f"font-weight: {weight}; font-style: {style}; font-display: block; }}\n"
        for family, file, weight, style in (*TEXT_FONTS, MATH_FONT)
    )


def book(site: Path, numbers: dict[str, int]) -> str:
    """The book as a page that lies at the root of the site."""
    html = BeautifulSoup((site / f"{ROOT_PAGE}.html").read_bytes(), "html.parser")
    for tag in html.head.select("meta[http-equiv], script, noscript, link:not([rel=stylesheet])"):
        tag.decompose()
    html.head.append(element(html, "style", faces() + STYLE.read_text(encoding="utf-8")))
    parts = list(contents(site))
    pages = {page for _, found in parts for page in found}
    texts = {page: joined(site, page, pages) for page in sorted(pages)}
    titles = {page: text.h1.get_text() for page, text in texts.items()}
    root = doctree(site, ROOT_PAGE)
    title = html.title.string = next(root.findall(nodes.title)).astext()
    words = next(root.findall(nodes.paragraph)).astext().split(".")[0] + "."
    body = element(html, "body")
    cover = element(html, "section", class_="book-cover")
    cover.append(html.new_tag("img", src="_static/favicon.svg", alt=""))
    cover.append(element(html, "p", title, class_="book-title"))
    cover.append(element(html, "p", " ".join(words.split()), class_="book-words"))
    names = "  ·  ".join(titles[page] for part, found in parts[:-1] for page in found)
    cover.append(element(html, "p", names, class_="book-names"))
    rights = html.select_one(".copyright").get_text(" ", strip=True)
    cover.append(element(html, "p", f"{rights} {date.today():%B %Y}", class_="book-rights"))
    body.append(cover)
    body.append(table_of_contents(html, parts, titles, numbers))
    place = body
    for name, kind in FRAME:
        place.append(element(html, name, class_=kind))
        place = place.contents[-1]
    for part, found in parts:
        for page in found:
            if part and page == found[0]:
                level = {"aria-level": "1"}
                texts[page].insert(0, element(html, "h1", part, class_="book-part", **level))
            place.append(texts[page])
    html.body.replace_with(body)
    html.html["data-theme"] = "light"
    return str(html)


# ---- the print -------------------------------------------------------------------------------------


def printed(page, root: str, text: str) -> bytes:
    """One print of the book by the browser."""
    address = f"{root}book.html"
    page.unroute(address)
    page.route(address, lambda route: route.fulfill(body=text, content_type="text/html"))
    page.goto(address)
    page.emulate_media(media="print")
    page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    page.evaluate("document.fonts.ready.then(() => null)")
    return page.pdf(
        format="A4", prefer_css_page_size=True, print_background=True, outline=True, tagged=True
    )


def page_numbers(pdf: bytes) -> dict[str, int]:
    """{id: number of the page} of each place that a link leads to."""
    with pikepdf.open(io.BytesIO(pdf)) as opened:
        numbers = {page.objgen: number for number, page in enumerate(opened.pages, 1)}
        places = opened.Root.Dests.items()
        return {unquote(name)[1:]: numbers[place[0].objgen] for name, place in places}


def packed(pdf: bytes, target: Path) -> int:
    """Write the file in half its size, with nothing left out; the number of its pages."""
    with pikepdf.open(io.BytesIO(pdf)) as opened:
        opened.docinfo["/Creator"] = "tools/pdf.py"
        opened.Root.PageMode = pikepdf.Name.UseOutlines
        target.parent.mkdir(parents=True, exist_ok=True)
        streams = pikepdf.ObjectStreamMode.generate
        opened.save(target, object_stream_mode=streams, recompress_flate=True, linearize=True)
        return len(opened.pages)


def main(site: Path, target: Path) -> None:
    if not find():
        sys.exit(f"the PDF is printed by a browser: {MISSING}")
    if not (site / f"{ROOT_PAGE}.html").is_file():
        sys.exit(f"there is no site in {site}; run: make html")
    with serve(site) as root, launched() as browser:
        page = browser.new_page()
        page.set_default_timeout(LIMIT)
        numbers = page_numbers(printed(page, root, book(site, {})))
        pdf = printed(page, root, book(site, numbers))
    pages = packed(pdf, target)
    print(f"{target}: {pages} pages, {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: pdf.py SITE FILE")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
