"""The card of a paper: what it shows, what a wrong use says, and what makes it change."""

import pytest

from sites import CONF, build, page, write_site

ALONE = """
from execution import kept
extensions = ["paper"]
html_theme = "basic"

def give_results(app):
    results = {"parameters": 25557032, "macs": 4089184256}
    kept(app.env)["notebooks/resnet"] = {"results": results, "failed": False}

def setup(app):
    app.connect("builder-inited", give_results)
"""
BIB = r"""
@inproceedings{he2016,
  author = {He, Kaiming and Doll{\'a}r, Piotr}, title = {Deep {ResNet} \& Co}, year = 2016,
  booktitle = {Conference}, url = {https://a.org/resnet}}
@article{many,
  author = {A, A. and B, B. and C, C. and {\L}ach, D. and E, E. and von F, F. and G, G. and H, H.},
  title = {Many}, year = 2017, journal = {Journal}, url = {https://a.org/many}}
@misc{others,
  author = {A, A. and others}, title = {Others}, year = 2018, url = {https://a.org/others}}
@misc{noyear, author = {A, A.}, title = {No year}, url = {https://a.org}}
@misc{soon, author = {A, A.}, title = {Soon}, year = {to appear}, url = {https://a.org}}
"""
INDEX = "B\n=\n\n.. toctree::\n\n   chapters/resnet\n"


def book(tmp_path, card: str, bib: str = BIB):
    chapter = f"ResNet\n======\n\n{card}\n\nText.\n"
    files = {"index.rst": INDEX, "chapters/resnet.rst": chapter, "references.bib": bib}
    return write_site(tmp_path, files, ALONE)


def card_of(folder):
    return page(folder, "chapters/resnet").select_one("div.paper-card")


FULL = """\
.. paper:: he2016
   :parameters: parameters
   :macs: macs:.2e
   :checked: ``torchvision``, *equal*
   :idea: add to the input
"""


def test_the_card_shows_the_entry_and_the_results(tmp_path):
    folder = book(tmp_path, FULL)
    result = build(folder)
    assert (result.returncode, result.stderr) == (0, "")
    card = card_of(folder)
    assert card.select_one(".paper-title a")["href"] == "https://a.org/resnet"
    assert card.select_one(".paper-title").text == "Deep ResNet & Co"
    assert card.select_one(".paper-authors").text == "Kaiming He, Piotr Dollár"
    assert card.select_one(".paper-venue").text == "2016 · Conference"
    names = [dt.text for dt in card.select("dt")]
    values = [dd.text.strip() for dd in card.select("dd")]
    assert names == ["Parameters:", "MACs:", "Proven against:"]
    assert values == ["25,557,032", "4.09e+09", "torchvision, equal"]
    assert card.select_one("dd code").text == "torchvision"
    assert "add to the input" not in card.text


def test_long_lists_of_authors_are_cut(tmp_path):
    cards = [f".. paper:: {key}\n   :idea: one\n" for key in ("many", "others")]
    folder = book(tmp_path, "\n".join(cards))
    assert build(folder).stderr == ""
    many, others = (tag.text for tag in page(folder, "chapters/resnet").select(".paper-authors"))
    assert many == "A. A, B. B, C. C, D. Łach, E. E, F. von F and 2 more"
    assert others == "A. A and others"
    assert page(folder, "chapters/resnet").select(".paper-venue")[1].text == "2018"
    assert page(folder, "chapters/resnet").select("dl") == []


@pytest.mark.parametrize("builder", ["text", "latex"])
def test_other_builders_write_the_card(tmp_path, builder):
    folder = book(tmp_path, FULL)
    result = build(folder, "-b", builder)
    assert (result.returncode, result.stderr) == (0, "")
    files = [f for f in (folder / "_build" / "html").rglob("*") if f.suffix in (".txt", ".tex")]
    written = "".join(f.read_text(encoding="utf-8") for f in files)
    assert "Kaiming He, Piotr Dollár" in written and "25,557,032" in written
    assert "add to the input" not in written


def test_its_words_are_extracted_for_translation(tmp_path):
    folder = book(tmp_path, FULL)
    assert build(folder, "-b", "gettext").returncode == 0
    catalogue = (folder / "_build" / "html" / "chapters.pot").read_text(encoding="utf-8")
    for words in ("add to the input", "``torchvision``, *equal*", "Proven against"):
        assert f'msgid "{words}"' in catalogue
    assert "Kaiming" not in catalogue


def test_an_edit_of_the_bibliography_changes_the_card(tmp_path):
    folder = book(tmp_path, FULL)
    assert build(folder).returncode == 0
    (folder / "references.bib").write_text(BIB.replace("Conference", "Workshop"), "utf-8")
    assert build(folder).returncode == 0
    assert card_of(folder).select_one(".paper-venue").text == "2016 · Workshop"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (".. paper:: he2061\n   :idea: one", "entry 'he2061' of references.bib is not there"),
        (
            ".. paper:: noyear\n   :idea: one",
            "'noyear' of references.bib needs author, title, year",
        ),
        (".. paper:: soon\n   :idea: one", "'soon' of references.bib needs a year in digits"),
        (".. paper:: he2016", "paper: the option :idea: is missing"),
        (".. paper:: he2016\n   :idea:", '"idea"'),
        (".. paper:: he2016\n   :idea: as :doc:`/index`", ":idea: takes no cross-reference"),
        (".. paper:: he2016\n   :idea: one\n   :macs: mac", "recorded no value named 'mac'"),
    ],
)
def test_wrong_use_is_reported_at_its_line(tmp_path, wrong, message):
    result = build(book(tmp_path, wrong))
    assert result.returncode != 0
    assert "chapters/resnet.rst:4: " in result.stderr
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("bib", "message"), [(None, "references.bib"), ("@misc{a, title = {}", "syntax error")]
)
def test_a_bibliography_that_cannot_be_read_is_an_error(tmp_path, bib, message):
    folder = book(tmp_path, FULL, bib or "")
    if bib is None:
        (folder / "references.bib").unlink()
    result = build(folder)
    assert result.returncode != 0
    assert "chapters/resnet.rst:4: ERROR" in result.stderr
    assert message in result.stderr


def test_with_a_real_notebook_the_card_has_its_value_and_its_links(tmp_path):
    cell = 'from IPython.display import display\ndata = {"name": "parameters", "value": 1234567}\n'
    cell += 'display({"application/vnd.book.result+json": data}, raw=True)\n'
    chapter = "R\n=\n\n.. paper:: he2016\n   :parameters: parameters\n   :idea: one\n"
    folder = write_site(
        tmp_path,
        {
            "index.rst": INDEX,
            "chapters/resnet.rst": chapter,
            "notebooks/resnet.py": f"# %% [markdown]\n# # N\n\n# %%\n{cell}",
            "references.bib": BIB,
        },
        CONF + 'extensions += ["paper"]\n',
    )
    result = build(folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert card_of(folder).select_one("dd").text.strip() == "1,234,567"
    links = [a["href"] for a in card_of(folder).select("p:not(.paper-title) a")]
    assert any(link.endswith("resnet.ipynb") for link in links)
