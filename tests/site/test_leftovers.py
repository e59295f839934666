"""What is deleted from the sources is deleted from the built site, and nothing else is."""

import shutil

import pytest
from bs4 import BeautifulSoup

from sites import CONF, build, write_site

INDEX = "B\n=\n\n.. toctree::\n   :glob:\n\n   chapters/*\n"
NOTEBOOK = "# %% [markdown]\n# # N\n\n# %%\n1 + 1\n"
FILES = {"index.rst": INDEX}
FILES |= {f"chapters/{stem}.rst": f"{stem}\n=\n\nText.\n" for stem in "ab"}
FILES |= {f"notebooks/{stem}.py": NOTEBOOK for stem in "ab"}
PLAIN = CONF + 'html_theme = "basic"\n'


def files(folder) -> set[str]:
    """Names of all built files in the folders of the pages."""
    found = (folder / "_build/html").rglob("*")
    names = {path.relative_to(folder / "_build/html").as_posix() for path in found}
    return {name for name in names if name.startswith(("chapters", "notebooks", "_sources"))}


@pytest.mark.parametrize(
    ("builder", "how"),
    [("html", "next build"), ("html", "-E"), ("html", "doctrees gone"), ("dirhtml", "next build")],
)
def test_the_files_of_a_deleted_chapter_and_notebook_go(tmp_path, builder, how):
    folder = write_site(tmp_path, FILES, PLAIN)
    assert build(folder, "-b", builder).returncode == 0
    before = files(folder)
    assert {"notebooks/b.ipynb", "notebooks/b.py"} <= before
    mine = folder / "_build/html/chapters/mine.html"
    mine.write_text("not written by any build")
    (folder / "chapters/b.rst").unlink()
    (folder / "notebooks/b.py").unlink()
    if how == "doctrees gone":
        shutil.rmtree(folder / "_build/html/.doctrees")
    result = build(folder, "-b", builder, *(["-E"] if how == "-E" else []))
    assert (result.returncode, result.stderr) == (0, "")
    gone = {name for name in before if {"b", "b.html", "b.py", "b.ipynb"} & set(name.split("/"))}
    gone |= {name for name in before if name.startswith("_sources/") and "/b." in name}
    assert len(gone) >= 6 and files(folder) == before - gone | {"chapters/mine.html"}


def test_no_page_keeps_a_link_to_a_page_that_is_gone_or_lacks_one_to_a_page_that_came(tmp_path):
    folder = write_site(tmp_path, FILES, CONF + 'extensions.append("navigation")\n')
    assert build(folder).returncode == 0
    (folder / "chapters/b.rst").rename(folder / "chapters/c.rst")
    assert build(folder).returncode == 0
    html = BeautifulSoup((folder / "_build/html/chapters/a.html").read_text(), "html.parser")
    links = {a["href"] for a in html.select("nav a[href]")}
    assert "c.html" in links and "b.html" not in links


def test_the_list_of_another_builder_in_the_same_folder_is_left_alone(tmp_path):
    folder = write_site(tmp_path, FILES, PLAIN)
    for builder in ("html", "dirhtml", "html"):
        assert build(folder, "-b", builder).returncode == 0
    assert {"chapters/a.html", "chapters/a/index.html", "notebooks/a.ipynb"} <= files(folder)
