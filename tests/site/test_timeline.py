"""The time line of all cards, and that it follows them."""

import pytest

from sites import build, page, write_site

CONF = 'extensions = ["timeline"]\nhtml_theme = "basic"\nlocale_dirs = ["locale"]\n'
BIB = """
@misc{old, author = {A, A.}, title = {Old}, year = 1998, url = {https://a.org/old}}
@misc{new, author = {A, A.}, title = {New}, year = 2016, url = {https://a.org/new}}
@misc{also, author = {A, A.}, title = {Also new}, year = 2016, url = {https://a.org/also}}
"""
FILES = {
    # Not beside the table of contents: Sphinx writes that page again with each of its chapters.
    "index.rst": "B\n=\n\n.. toctree::\n   :glob:\n\n   chapters/*\n   years/line\n",
    "years/line.rst": "Years\n=====\n\n.. timeline::\n",
    "chapters/a.rst": "New one\n=======\n\n.. paper:: new\n   :idea: *deeper*\n",
    "chapters/b.rst": "Old one\n=======\n\n.. paper:: old\n   :idea: share filters\n",
    "chapters/c.rst": "Also one\n========\n\n.. paper:: also\n   :idea: wider\n",
    "references.bib": BIB,
}


def lines(folder) -> list[tuple[str, str, str]]:
    """(what stands at the left, where it links to, idea)."""
    left, right = (page(folder, "years/line").select(f"div.timeline {tag}") for tag in ("dt", "dd"))
    return [(dt.text, dt.a["href"], dd.text.strip()) for dt, dd in zip(left, right)]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_cards_stand_in_the_order_of_year_and_title(tmp_path, jobs):
    folder = write_site(tmp_path, FILES, CONF)
    result = build(folder, "-j", jobs)
    assert (result.returncode, result.stderr) == (0, "")
    assert lines(folder) == [
        ("1998 Old one", "../chapters/b.html", "share filters"),
        ("2016 Also one", "../chapters/c.html", "wider"),
        ("2016 New one", "../chapters/a.html", "deeper"),
    ]
    assert page(folder, "years/line").select_one("div.timeline dd em").text == "deeper"


@pytest.mark.parametrize(
    ("jobs", "name", "old", "new", "line"),
    [
        ("1", "chapters/b.rst", "share", "slide", ("1998 Old one", "slide filters")),
        ("2", "chapters/b.rst", "share", "slide", ("1998 Old one", "slide filters")),
        ("1", "chapters/b.rst", "Old one", "Odd one", ("1998 Odd one", "share filters")),
        ("1", "references.bib", "1998", "1997", ("1997 Old one", "share filters")),
    ],
)
def test_it_follows_an_edit_of_a_card(tmp_path, jobs, name, old, new, line):
    folder = write_site(tmp_path, FILES, CONF)
    assert build(folder, "-j", jobs).returncode == 0
    (folder / name).write_text(FILES[name].replace(old, new), encoding="utf-8")
    assert build(folder, "-j", jobs).returncode == 0
    assert lines(folder)[0] == (line[0], "../chapters/b.html", line[1])


def test_it_follows_a_card_that_goes_and_one_that_comes_back(tmp_path):
    folder = write_site(tmp_path, FILES, CONF)
    assert build(folder).returncode == 0
    card = folder / "chapters" / "c.rst"
    card.write_text("Also one\n========\n\nNo card.\n", encoding="utf-8")
    assert build(folder).returncode == 0
    assert [line[0] for line in lines(folder)] == ["1998 Old one", "2016 New one"]
    card.write_text(FILES["chapters/c.rst"], encoding="utf-8")
    assert build(folder).returncode == 0
    assert len(lines(folder)) == 3


def test_each_format_follows_an_edit_of_a_card(tmp_path):
    folder = write_site(tmp_path, FILES, CONF)
    doctrees = ("-d", str(folder / "_build" / "doctrees"))
    for idea in ("share", "slide"):
        card = FILES["chapters/b.rst"].replace("share", idea)
        (folder / "chapters" / "b.rst").write_text(card, encoding="utf-8")
        for builder, page_name in (("html", "line.html"), ("text", "line.txt")):
            assert build(folder, "-b", builder, *doctrees, out=builder).returncode == 0
            text = (folder / "_build" / builder / "years" / page_name).read_text(encoding="utf-8")
            assert f"{idea} filters" in text, builder


def test_text_that_is_no_card_does_not_write_it_again(tmp_path):
    folder = write_site(tmp_path, FILES, CONF)
    assert build(folder).returncode == 0
    (folder / "chapters" / "a.rst").write_text(FILES["chapters/a.rst"] + "\nMore.\n", "utf-8")
    result = build(folder)
    written = [line.split()[-1] for line in result.stdout.splitlines() if "writing output" in line]
    assert "chapters/a" in written and "years/line" not in written


def test_a_translated_idea_comes_into_the_time_line(tmp_path):
    header = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n'
    catalogue = header + 'msgid "share filters"\nmsgstr "共享 *卷积核*"\n'
    files = {**FILES, "locale/zh_CN/LC_MESSAGES/chapters.po": catalogue}
    folder = write_site(tmp_path, files, CONF)
    result = build(folder, "-D", "language=zh_CN")
    assert (result.returncode, result.stderr) == (0, "")
    assert lines(folder)[0][2] == "共享 卷积核"


def test_without_any_card_it_is_a_warning_at_its_line(tmp_path):
    files = {"index.rst": "B\n=\n\n.. timeline::\n"}
    result = build(write_site(tmp_path, files, CONF))
    assert result.returncode != 0
    assert "index.rst:4: WARNING: timeline: no page has a paper card" in result.stderr


def test_other_builders_write_it(tmp_path):
    folder = write_site(tmp_path, FILES, CONF)
    result = build(folder, "-b", "text")
    assert (result.returncode, result.stderr) == (0, "")
    text = (folder / "_build" / "html" / "years" / "line.txt").read_text(encoding="utf-8")
    assert "1998 Old one\n   share filters" in text
