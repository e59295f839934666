"""The chapters on the front page: pictures, numbers and proofs, from the cards and the runs."""

import pytest

from sites import CONF, build, page, write_site

SETTINGS = CONF + 'extensions += ["figures", "paper", "parts"]\n'
NOTEBOOK = """# %% [markdown]
# # Notebook

# %%
from IPython.display import display
display({"application/vnd.book.result+json": {"name": "count", "value": 12345}}, raw=True)

# %% tags=["line"] alt="a line that rises"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><path style="stroke: #0a58a0"/></svg>'
display({"image/svg+xml": SVG}, raw=True)
"""
FILES = {
    "index.rst": "B\n=\n\n.. parts::\n\n.. toctree::\n   :caption: Old & new\n\n   chapters/a\n   chapters/b\n   chapters/c\n",
    "chapters/a.rst": """A title
=======

.. paper:: one
   :parameters: count
   :checked: a *loop*
   :idea: a clause
   :figure: fig-line

.. cells:: line
   :part: output
   :name: fig-line

   A caption.
""",
    "chapters/b.rst": "No card\n=======\n\nText.\n",
    "chapters/c.rst": "Digits\n======\n\n.. resource:: D <http://a.org>\n   :kind: data set\n   :first: 1998\n   :idea: x\n",
    "notebooks/a.py": NOTEBOOK,
    "references.bib": "@misc{one, author={A, B.}, title={One}, year=2016, url={https://a.org}}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_site(tmp_path_factory.mktemp("parts"), FILES, SETTINGS)
    result = build(folder)
    assert (result.returncode, result.stderr) == (0, "")
    return folder


def chapters(folder):
    (part,) = page(folder, "index").select("section#part-old-new")
    assert part.find(["h2", "h3"]).text.startswith("Old & new")
    return part.select("ul.chapters > li.chapter")


def test_a_chapter_has_its_picture_idea_numbers_and_proof(folder):
    chapter, plain, resource = chapters(folder)
    assert chapter.select_one(".chapter-title").text.strip() == "A title 2016"
    assert chapter.a["href"] == "chapters/a.html"
    assert chapter.select_one(".chapter-idea").text == "a clause"
    assert [dd.text.strip() for dd in chapter.select("dd")] == ["12,345", "a loop"]
    assert chapter.select_one("dd em").text == "loop"
    pictures = chapter.select(".chapter-picture > img")
    assert [image["alt"] for image in pictures] == ["", ""]
    assert [set(image["class"]) & {"only-light", "only-dark"} for image in pictures] == [
        {"only-light"},
        {"only-dark"},
    ]
    for image in pictures:
        assert (folder / "_build" / "html" / image["src"]).is_file()
    assert plain.text.strip() == "No card" and plain.img is None
    assert resource.select_one(".chapter-title").text.strip() == "Digits data set"


def test_the_chapter_keeps_the_words_for_its_picture(folder):
    images = page(folder, "chapters/a").select("figure img")
    assert {image["alt"] for image in images} == {"a line that rises"}


def test_another_run_comes_into_the_front_page(folder):
    text = NOTEBOOK.replace("12345", "54321").replace('width="40"', 'width="44"')
    path = folder / "notebooks" / "a.py"
    path.write_text(path.read_text("utf-8").replace(NOTEBOOK, text), encoding="utf-8")
    assert build(folder).returncode == 0
    chapter, *_ = chapters(folder)
    assert chapter.select_one("dd").text.strip() == "54,321"
    assert {image["width"] for image in chapter.select("img")} == {"44"}
