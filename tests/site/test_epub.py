"""The electronic book of the real site: whole, well-formed, and as its list of files says."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from loader import ROOT, STEMS, on_the_map

pytestmark = pytest.mark.xdist_group("site")  # shares the build with test_site
XHTML, OPF = "{http://www.w3.org/1999/xhtml}", "{http://www.idpf.org/2007/opf}"
DC, NCX = "{http://purl.org/dc/elements/1.1/}", "{http://www.daisy.org/z3986/2005/ncx/}"
MATH = "{http://www.w3.org/1998/Math/MathML}math"
CHECKER = shutil.which("epubcheck")


@pytest.fixture(scope="module")
def made(site, tmp_path_factory) -> tuple[Path, str]:
    """The book, written from the doctrees of the site, and what Sphinx said."""
    out = tmp_path_factory.mktemp("epub")
    where = ["-d", str(site / ".doctrees"), str(ROOT), str(out)]
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going"]
    result = subprocess.run(
        [*command, "-b", "epub", *where],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr
    return out / "book.epub", result.stdout


@pytest.fixture(scope="module")
def files(made) -> dict[str, bytes]:
    with zipfile.ZipFile(made[0]) as book:
        return {name: book.read(name) for name in book.namelist()}


@pytest.fixture(scope="module")
def pages(files) -> dict[str, ElementTree.Element]:
    """All pages, each parsed as XML."""
    return {
        name: ElementTree.fromstring(text)
        for name, text in files.items()
        if name.endswith(".xhtml")
    }


@pytest.fixture(scope="module")
def package(files) -> ElementTree.Element:
    return ElementTree.fromstring(files["content.opf"])


def beside(name: str, address: str) -> str:
    """A relative address in a file, as a path in the book."""
    parts: list[str] = []
    for part in (PurePosixPath(name).parent / unquote(address)).parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/".join(parts)


def test_no_page_is_read_and_no_notebook_runs_for_the_book(made):
    assert not re.search(r"^reading sources.*(?:chapters|notebooks)/", made[1], re.MULTILINE)
    assert re.search(r"^writing output.*chapters/", made[1], re.MULTILINE)
    assert not re.search(r"^\[\d+/\d+\]", made[1], re.MULTILINE)


def test_each_chapter_is_in_the_book_and_no_page_of_a_notebook(files):
    chapters = {f"chapters/{stem}.xhtml" for stem in STEMS}
    assert chapters == {name for name in files if name.startswith("chapters/")}
    assert not [name for name in files if name.startswith("notebooks/")]


def test_each_target_is_in_the_book(files, pages):
    ids = {name: {node.get("id") for node in page.iter()} for name, page in pages.items()}
    targets = []
    for name, page in pages.items():
        for node in page.iter():
            targets += [(name, node.get(key)) for key in ("href", "src") if node.get(key)]
    contents = ElementTree.fromstring(files["toc.ncx"])
    targets += [("toc.ncx", node.get("src")) for node in contents.iter(f"{NCX}content")]
    for name in (name for name in files if name.endswith(".css")):
        targets += [(name, url) for url in re.findall(r'url\("([^"]*)"\)', files[name].decode())]
    for name, target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        address, _, fragment = target.partition("#")
        there = beside(name, address) if address else name
        assert there in files, f"{name}: {target}"
        assert not fragment or fragment in ids[there], f"{name}: {target}"
    assert len(targets) > 500


def test_the_list_names_each_file_once_and_says_where_mathml_is(files, pages, package):
    items = {unquote(item.get("href")): item for item in package.iter(f"{OPF}item")}
    rest = {"mimetype", "META-INF/container.xml", "content.opf"}
    assert set(items) == set(files) - rest
    for name, page in pages.items():
        properties = (items[name].get("properties") or "").split()
        assert ("mathml" in properties) == (page.find(f".//{MATH}") is not None), name
        assert not page.findall(f".//{XHTML}math"), "a formula without its name space"
    marked = [item for item in items.values() if "mathml" in (item.get("properties") or "")]
    assert len(marked) >= len(on_the_map())
    names = [item.get("id") for item in items.values()]
    assert len(set(names)) == len(names)
    spine = {reference.get("idref") for reference in package.iter(f"{OPF}itemref")}
    assert spine <= set(names)
    assert {items[f"chapters/{stem}.xhtml"].get("id") for stem in STEMS} <= spine


def test_the_book_has_an_identifier_a_title_a_language_and_a_date(files, pages, package):
    metadata = package.find(f"{OPF}metadata")
    texts = {node.tag.removeprefix(DC): node.text for node in metadata if node.tag.startswith(DC)}
    assert texts["title"] == "Deep Learning Models" and texts["language"] == "en"
    assert all(text and text != "unknown" for text in texts.values()), texts
    identifier = metadata.find(f"{DC}identifier")
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", identifier.text)
    assert package.get("unique-identifier") == identifier.get("id")
    older = ElementTree.fromstring(files["toc.ncx"])
    uid = older.find(f"{NCX}head/{NCX}meta[@name='dtb:uid']")
    assert uid.get("content") == identifier.text
    for name, page in pages.items():
        assert page.get("{http://www.w3.org/XML/1998/namespace}lang") == "en", name


def test_the_book_begins_with_its_cover(files, pages, package):
    (cover,) = [i for i in package.iter(f"{OPF}item") if i.get("properties") == "cover-image"]
    assert files[cover.get("href")].startswith(b"\x89PNG")
    first = next(package.iter(f"{OPF}itemref")).get("idref")
    (item,) = [item for item in package.iter(f"{OPF}item") if item.get("id") == first]
    (image,) = pages[item.get("href")].iter(f"{XHTML}img")
    assert beside(item.get("href"), image.get("src")) == cover.get("href")


def test_each_figure_is_there_once_and_can_be_read_without_the_page(site, files, pages):
    for stem in STEMS:
        images = list(pages[f"chapters/{stem}.xhtml"].iter(f"{XHTML}img"))
        web = (site / "chapters" / f"{stem}.html").read_text(encoding="utf-8")
        article = web[web.index("<article") : web.index("</article>")]
        assert len(images) == article.count("<img ") - article.count("only-dark")
    figures = [text.decode() for name, text in files.items() if name.endswith(".svg")]
    assert figures and not [text for text in figures if "<!DOCTYPE" in text]


def test_a_reader_that_knows_no_style_sheet_of_the_site_is_given_none(files, pages):
    for name, page in pages.items():
        sheets = {link.get("href").rpartition("/")[2] for link in page.iter(f"{XHTML}link")}
        assert sheets <= {"pygments.css", "ebook.css"}, name
    assert {name for name in files if name.endswith(".css")} == {
        "_static/pygments.css",
        "_static/ebook.css",
    }


def test_the_file_is_a_zip_file_that_tells_its_kind_first(made):
    with zipfile.ZipFile(made[0]) as book:
        first = book.infolist()[0]
        assert first.filename == "mimetype" and first.compress_type == zipfile.ZIP_STORED
        assert book.read("mimetype") == b"application/epub+zip"


@pytest.mark.skipif(CHECKER is None, reason="epubcheck is not installed")
def test_epubcheck_finds_nothing(made):
    program = Path(CHECKER).resolve()  # Debian's is the archive itself
    command = ["java", "-jar", str(program)] if program.suffix == ".jar" else [CHECKER]
    result = subprocess.run([*command, str(made[0])], capture_output=True, text=True)
    found = re.findall(r"^(?:ERROR|FATAL|WARNING).*", result.stdout + result.stderr, re.MULTILINE)
    assert found == [] and result.returncode == 0
