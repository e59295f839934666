"""What cards say of each other and to other pages: dates, descent, overviews, figures."""

import pickle
import re

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
    "chapters/d.rst": (
        "Digits\n======\n\n.. resource:: Digits <http://a.org/d>\n   :kind: data set\n   :first: 1998\n"
        "   :by: A. *A*\n   :holds: ten\n   :licence: none\n   :checked: loops\n   :idea: written\n"
    ),
    "chapters/e.rst": "Sets\n====\n\n.. overview:: d\n   :idea: all\n",
    "references.bib": BIB,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_site(tmp_path_factory.mktemp("cards"), FILES, CONF)
    result = build(folder)
    assert (result.returncode, result.stderr) == (0, "")
    return folder


@pytest.fixture
def pages(folder):
    """pages("b") is the card of a chapter of the site as it stands above."""
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


def test_a_resource_tells_its_address_its_makers_and_what_it_holds(pages):
    card = pages("d")
    assert card.select_one(".paper-venue").text == "Data set · 1998"
    assert card.select_one(".paper-title a")["href"] == "http://a.org/d"
    assert card.select_one(".paper-title").text == "Digits"
    assert card.select_one(".paper-authors em").text == "A"
    assert [dt.text for dt in card.select("dt")] == ["Holds:", "Licence:", "Proven against:"]
    assert "written" not in card.text


def test_an_overview_draws_resources_together(pages):
    assert pages("e").select_one(".paper-after").text == "Draws together Digits"


def test_what_is_kept_of_a_card_does_not_keep_its_page(folder):
    environment = pickle.loads((folder / "_build/html/.doctrees/environment.pickle").read_bytes())
    kept = environment.domaindata["cards"]["pages"]
    assert sorted(kept) == [f"chapters/{name}" for name in "abcde"]
    assert all(len(pickle.dumps(card)) < 4_000 for card in kept.values())


def test_a_new_title_comes_into_the_cards_that_name_the_chapter(tmp_path):
    folder = write_site(tmp_path, FILES, CONF)
    assert build(folder).returncode == 0
    path = folder / "chapters" / "a.rst"
    path.write_text(FILES["chapters/a.rst"].replace("First", "Fresh"), encoding="utf-8")
    assert build(folder).returncode == 0
    assert "Builds on Fresh" in page(folder, "chapters/b").text


WRONG = {
    "first-year": ("a", "1998-11", "1998", ":first: '1998' is no month such as 2015-12"),
    "first-month": ("a", "1998-11", "1998-13", ":first: '1998-13' is no month"),
    "first-late": ("a", "1998-11", "1999-01", ":first: 1999-01 is later than the entry's 1998"),
    "first-arxiv": (
        "b",
        ":after",
        ":first: 2016-01\n   :after",
        ":first: 2016-01 is later than the entry's 2015-12",
    ),
    "after-none": ("b", ":after: a", ":after: a, z", "card: 'z' is no chapter"),
    "after-overview": ("b", ":after: a", ":after: c", "card: 'c' has no card of a paper"),
    "after-younger": (
        "a",
        ":first",
        ":after: b\n   :first",
        "card: 'b' is of 2015-12, later than 1998-11",
    ),
    "overview-of-one": ("c", "a, b", "a, c", "card: 'c' has no card of a paper"),
    "overview-idea": ("c", "   :idea: both\n", "", "overview: the option :idea: is missing"),
    "overview-chapters": ("c", "overview:: a, b", "overview::", "1 argument(s) required"),
    "after-resource": ("b", ":after: a", ":after: d", "card: 'd' has no card of a paper"),
    "overview-overview": ("e", "overview:: d", "overview:: c", "card: 'c' has no card of a paper"),
    "resource-address": ("d", " <http://a.org/d>", "", "a name with its address: Name <https://"),
    "resource-kind": ("d", "   :kind: data set\n", "", "the option :kind: is missing: data set"),
    "resource-first": ("d", "1998", "1998-11", ":first: '1998-11' is no year such as 1998"),
    "figure": (
        "c",
        ":idea: both",
        ":idea: both\n   :figure: fig",
        "there is no figure 'fig' with cells",
    ),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory) -> str:
    """What a build says of a site that has each wrong use once, in a chapter of its own."""
    files = dict(FILES)
    for name, (chapter, old, new, _) in WRONG.items():
        text = FILES[f"chapters/{chapter}.rst"].replace(old, new)
        assert text != FILES[f"chapters/{chapter}.rst"]
        files[f"chapters/{name}.rst"] = text
    result = build(write_site(tmp_path_factory.mktemp("wrong"), files, CONF))
    assert result.returncode != 0
    return result.stderr


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_reported_at_its_line(refused, name):
    reports = re.split(r"^(?=/)", refused, flags=re.MULTILINE)
    own = [" ".join(report.split()) for report in reports if f"chapters/{name}.rst:4: " in report]
    assert len(own) == 1 and WRONG[name][3] in own[0], own
