"""Numbers of figures, tables and equations: within the chapter, and the same wherever they are named."""

import re

import pytest

from sites import build, page, write_site

CONF = 'extensions = ["numbering"]\nhtml_theme = "basic"\nnumfig = True\n'
CHAPTER = """\
{title}
{line}

See :numref:`fig-{stem}-one`, :numref:`fig-{stem}-two`, :numref:`tab-{stem}`, :eq:`eq-{stem}-two`.

.. figure:: /one.png
   :alt: a dot
   :name: fig-{stem}-one

   The first.

.. figure:: /one.png
   :alt: a dot
   :name: fig-{stem}-two

   The second.

.. list-table:: A table
   :name: tab-{stem}

   * - cell

.. math::
   :label: eq-{stem}-one

   x = 1

.. math::
   :label: eq-{stem}-two

   x = 2
"""
ACROSS = """
Elsewhere
---------

By the shortcut of :numref:`fig-a-two`, by :numref:`tab-a` and :eq:`eq-a-two`;
:numref:`the second figure (%s) <fig-a-two>`.
"""
NEW = ".. figure:: /one.png\n   :alt: a dot\n   :name: fig-new\n\n   A new one.\n\n"
DOT = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00\x1f\x15"
    b"\xc4\x89\x00\x00\x00\rIDATx\x9cc\xf8\xcf\xc0\xf0\x1f\x00\x05\x00\x01\xff\x89\x99=\x1d\x00\x00"
    b"\x00\x00IEND\xaeB`\x82"
)


def chapter(stem: str, title: str) -> str:
    return CHAPTER.format(stem=stem, title=title, line="=" * len(title))


@pytest.fixture
def folder(tmp_path):
    """Three chapters; the second refers to the first."""
    files = {
        "index.rst": "B\n=\n\n.. toctree::\n\n   chapters/a\n   chapters/b\n   chapters/c\n",
        "chapters/a.rst": chapter("a", "First net"),
        "chapters/b.rst": chapter("b", "Second net") + ACROSS,
        "chapters/c.rst": chapter("c", "Third net"),
    }
    (tmp_path / "one.png").write_bytes(DOT)
    return write_site(tmp_path, files, CONF)


def edit(folder, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")


def paragraph(folder, name: str, start: str) -> str:
    found = [p.text for p in page(folder, name).select("p") if p.text.startswith(start)]
    return " ".join(found[0].split())


def built(folder, *options: str, out: str = "html") -> None:
    result = build(folder, *options, out=out)
    assert result.returncode == 0 and not result.stderr, result.stderr[-1500:]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_each_chapter_counts_from_one_and_another_one_is_named(folder, jobs):
    built(folder, "-j", jobs)
    for name in ("a", "b", "c"):
        html = page(folder, f"chapters/{name}")
        numbers = [span.text.strip() for span in html.select(".caption-number")]
        assert numbers == ["Fig. 1", "Fig. 2", "Table 1"]
        assert [span.contents[0] for span in html.select("span.eqno")] == ["(1)", "(2)"]
        assert paragraph(folder, f"chapters/{name}", "See") == "See Fig. 1, Fig. 2, Table 1, (2)."
    assert paragraph(folder, "chapters/b", "By") == (
        "By the shortcut of Fig. 2 of First net, by Table 1 of First net and (2) of First net; "
        "the second figure (2)."
    )
    links = [a["href"] for a in page(folder, "chapters/b").select("#elsewhere p a")]
    assert links == ["a.html#fig-a-two", "a.html#tab-a", "a.html#equation-eq-a-two", links[0]]


def test_references_follow_and_nothing_else_is_written_again(folder):
    built(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("chapters/*.html")}
    built(folder)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    edit(folder, "chapters/a.rst", "See", f"{NEW}In :numref:`fig-new` and see")
    edit(folder, "chapters/a.rst", "First net", "Prime net")
    built(folder)
    assert paragraph(folder, "chapters/a", "In").startswith("In Fig. 1 and see Fig. 2, Fig. 3,")
    assert paragraph(folder, "chapters/b", "By").startswith(
        "By the shortcut of Fig. 3 of Prime net"
    )
    numbers = [span.text.strip() for span in page(folder, "chapters/c").select(".caption-number")]
    assert numbers == ["Fig. 1", "Fig. 2", "Table 1"]
    later = {path.stem for path in times if path.stat().st_mtime_ns != times[path]}
    assert {"a", "b"} <= later


@pytest.mark.parametrize("builder", ["latex", "singlehtml"])
def test_other_formats_have_their_numbers(folder, builder):
    built(folder, "-b", builder, out=builder)
    out = folder / "_build" / builder
    if builder == "latex":
        text = next(out.glob("*.tex")).read_text(encoding="utf-8")
        assert re.search(r"\{Fig\.\\@ \\ref\{[^}]*fig-a-two\}\}\} of First net", text)
        assert re.search(r"\\eqref\{[^}]*eq-a-two\} of First net", text)
        return
    text = (out / "index.html").read_text(encoding="utf-8")
    text = " ".join(re.sub("<[^>]*>", "", text).split())
    assert "By the shortcut of Fig. 2 of First net, by Table 1 of First net" in text
    assert "See Fig. 1, Fig. 2, Table 1, (2)." in text


def test_what_is_shown_and_not_referred_to_is_named_at_its_line(folder):
    edit(folder, "chapters/a.rst", ":numref:`fig-a-two`, ", "")
    edit(folder, "chapters/b.rst", "   :name: tab-b\n", "")
    edit(folder, "chapters/b.rst", ":numref:`tab-b`, ", "")
    result = build(folder)
    assert result.returncode != 0
    first, second = result.stderr.splitlines()
    assert "chapters/a.rst:12: WARNING: numbering: the text does not refer to the figure" in first
    assert "'The second.': write :numref:`fig-a-two`" in first
    assert "chapters/b.rst:18: WARNING: numbering: the text does not refer to the table" in second
    assert "'A table': give it a :name: and refer to it" in second
