"""What cards say of each other and to other pages: dates, descent, overviews, figures."""

import pytest

from sites import build, page, write_site

CONF = 'extensions = ["paper"]\nhtml_theme = "basic"\n'
BIB = """
@inproceedings{old, author = {A, A.}, title = {Old}, year = 1998, url = {https://a.org/old},
  booktitle = {Journal of Old Things}}
@inproceedings{new, author = {A, A.}, title = {New}, year = 2016, booktitle = {Conference},
  url = {https://arxiv.org/abs/1512.03385}}
"""
FILES = {
    "index.rst": "B\n=\n\n.. toctree::\n   :glob:\n\n   chapters/*\n",
    "chapters/a.rst": "First\n=====\n\n.. paper:: old\n   :first: 1998-11\n   :idea: share filters\n",
    "chapters/b.rst": "Second\n======\n\n.. paper:: new\n   :after: a\n   :idea: deeper\n",
    "chapters/c.rst": "Overview\n========\n\n.. overview:: a, b\n   :checked: loops\n   :idea: both\n",
    "references.bib": BIB,
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """card("b") is the card of a chapter of the site as it stands above."""
    folder = write_site(tmp_path_factory.mktemp("cards"), FILES, CONF)
    result = build(folder)
    assert (result.returncode, result.stderr) == (0, "")
    return lambda name: page(folder, f"chapters/{name}").select_one("div.paper-card")


def test_the_year_is_that_of_the_first_public_version_and_the_venues_stands_beside_it(pages):
    assert pages("a").select_one(".paper-venue").text == "1998 · Journal of Old Things"
    assert pages("b").select_one(".paper-venue").text == "2015 · Conference, 2016"


def test_a_card_links_to_what_its_network_builds_on(pages):
    line = pages("b").select_one(".paper-after")
    assert line.text == "Builds on First"
    assert line.a["href"] == "a.html"
    assert pages("a").select(".paper-after") == []


def test_an_overview_names_what_it_draws_together(pages):
    card = pages("c")
    assert card.select_one(".paper-venue").text == "Overview"
    assert card.select_one(".paper-after").text == "Draws together First and Second"
    assert [dt.text for dt in card.select("dt")] == ["Proven against:"]


def test_a_new_title_comes_into_the_cards_that_name_the_chapter(tmp_path):
    folder = write_site(tmp_path, FILES, CONF)
    assert build(folder).returncode == 0
    path = folder / "chapters" / "a.rst"
    path.write_text(FILES["chapters/a.rst"].replace("First", "Fresh"), encoding="utf-8")
    assert build(folder).returncode == 0
    assert "Builds on Fresh" in page(folder, "chapters/b").text


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("a", "1998-11", "1998", ":first: '1998' is no month such as 2015-12"),
        ("a", "1998-11", "1998-13", ":first: '1998-13' is no month"),
        ("a", "1998-11", "1999-01", ":first: 1999-01 is later than the entry's 1998"),
        ("b", ":after", ":first: 2016-01\n   :after", ":first: 2016-01 is later than the entry's 2015-12"),
        ("b", ":after: a", ":after: a, z", "card: 'z' is no chapter"),
        ("b", ":after: a", ":after: c", "card: 'c' has no card of a paper"),
        ("a", ":first", ":after: b\n   :first", "card: 'b' is of 2015-12, later than 1998-11"),
        ("c", "a, b", "a, c", "card: 'c' has no card of a paper"),
        ("c", "   :idea: both\n", "", "overview: the option :idea: is missing"),
        ("c", "overview:: a, b", "overview::", "1 argument(s) required"),
        ("c", ":idea: both", ":idea: both\n   :figure: fig", "there is no figure 'fig' with cells"),
    ],
)
def test_wrong_use_is_reported_at_its_line(tmp_path, name, old, new, message):
    text = FILES[f"chapters/{name}.rst"].replace(old, new)
    assert text != FILES[f"chapters/{name}.rst"]
    folder = write_site(tmp_path, {**FILES, f"chapters/{name}.rst": text}, CONF)
    result = build(folder)
    assert result.returncode != 0
    line = next(line for line in result.stderr.splitlines() if f"chapters/{name}.rst:4: " in line)
    assert message in " ".join(result.stderr.split()), line
