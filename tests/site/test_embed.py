"""Cells and recorded values in a chapter, and what a wrong use says."""

import shutil

import pytest

from sites import build, page, write_site

NOTEBOOK = """# %% [markdown]
# # Notebook

# %%
from IPython.display import display

def record(name, value):
    display({"application/vnd.book.result+json": {"name": name, "value": value}}, raw=True)

# %% tags=["code"]
number = 1234.5
record("number", number)
record("share", 0.98765)
record("word", "LeNet")

# %% tags=["shown"]
print("printed", number)

# %% tags=["figure"] alt="A line goes up."
import matplotlib.pyplot as plt
plt.plot([1, 2]);
"""


def write_book(folder, chapter: str):
    chapter = f"A\n=\n\n{chapter}"
    files = {"index.rst": "B\n=\n\n.. toctree::\n\n   chapters/a\n", "chapters/a.rst": chapter}
    return write_site(folder, {**files, "notebooks/a.py": NOTEBOOK})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """What the notebook, which is the same in all tests, left when it ran."""
    folder = write_book(tmp_path_factory.mktemp("embed"), "Text.\n")
    assert build(folder).returncode == 0
    return folder / ".store"


@pytest.fixture
def book(tmp_path, store):
    """book("text of the chapter") is the folder of a book whose notebook has run."""
    shutil.copytree(store, tmp_path / ".store")
    return lambda chapter: write_book(tmp_path, chapter)


def test_cells_values_and_a_numbered_figure_come_into_the_chapter(book):
    folder = book(
        """
Values :result:`number:,.1f`, :result:`share:.1%`, :result:`a/word`; see :numref:`fig-line`.

.. cells:: code
   :part: input

.. cells:: shown
   :part: output

.. cells:: figure
   :part: output
   :name: fig-line

   A *line*.
""",
    )
    result = build(folder)
    assert (result.returncode, result.stderr) == (0, "")
    html = page(folder, "chapters/a")
    assert "Values 1,234.5, 98.8%, LeNet; see Fig. 1." in html.text
    inputs = [cell.text.strip() for cell in html.select(".cell_input")]
    assert len(inputs) == 1 and inputs[0].startswith("number = 1234.5")
    assert "printed 1234.5" in html.select_one(".cell_output").text
    figure = html.select_one("figure#fig-line")
    assert figure.img["alt"] == "A line goes up."
    assert (folder / "_build" / "html" / "chapters" / figure.img["src"]).resolve().is_file()
    assert figure.figcaption.em.text == "line"
    ids = [tag["id"] for tag in html.select("[id]")]
    assert len(ids) == len(set(ids))


def test_the_page_of_the_notebook_is_reached_but_not_searched(book):
    folder = book("Text.\n")
    assert build(folder).returncode == 0
    assert "printed 1234.5" in page(folder, "notebooks/a").text
    index = (folder / "_build" / "html" / "searchindex.js").read_text()
    assert "printed" not in index.partition('"terms"')[2].partition('"titles"')[0]


@pytest.mark.parametrize(
    ("wrong", "line", "message"),
    [
        (".. cells:: nothing\n", 4, "cells: no cell of notebooks/a is tagged 'nothing'"),
        (".. cells:: code\n   :notebook: z\n", 4, "cells: there is no notebook notebooks/z"),
        (".. cells:: code\n   :part: some\n", 4, '"some" unknown; choose from "all", "input"'),
        (".. cells:: code\n   :name: fig\n", 4, "a name needs a caption"),
        (
            "A paragraph.\n\nHere :result:`numbr`.\n",
            6,
            "recorded no value named 'numbr'; there are: number",
        ),
        ("Here :result:`word:.1%`.\n", 4, "'word' cannot be written as '.1%'"),
        ("Here :result:`z/word`.\n", 4, "result: there is no notebook notebooks/z"),
    ],
)
def test_wrong_use_is_a_warning_at_its_line(book, wrong, line, message):
    result = build(book(wrong))
    assert result.returncode != 0
    assert f"chapters/a.rst:{line}: " in result.stderr
    assert message in " ".join(result.stderr.split())
