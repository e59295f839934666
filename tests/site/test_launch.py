"""Buttons and links that lead to files."""

from sites import build, page, write_site

FILES = {
    "index.rst": """B
=

.. only:: downloads and not colab

   To download.

.. only:: colab

   To download or in Colab.

.. toctree::

   chapters/a
""",
    "chapters/a.rst": "A\n=\n\nText.\n",
    "notebooks/a.py": "# %% [markdown]\n# # N\n# To the [chapter](../chapters/a.rst).\n\n# %%\n1 + 1\n",
}


def hrefs(html) -> list[str]:
    return [a["href"] for a in html.select("a.btn-launch")]


def test_every_button_leads_to_a_file_and_none_to_colab_without_a_repository(tmp_path):
    folder = write_site(tmp_path, FILES)
    assert build(folder, GITHUB_REPOSITORY="").returncode == 0
    for name in ("chapters/a", "notebooks/a"):
        found = hrefs(page(folder, name))
        assert any(href.endswith(".ipynb") for href in found)
        assert any(href.endswith(".py") for href in found)
        for href in found:
            assert (folder / "_build" / "html" / name).parent.joinpath(href).is_file(), href
    assert hrefs(page(folder, "index")) == []
    promised = page(folder, "index").select_one("article").text
    assert "To download." in promised and "Colab" not in promised


def test_a_format_without_files_promises_none(tmp_path):
    folder = write_site(tmp_path, FILES)
    assert build(folder, "-b", "text", out="text", GITHUB_REPOSITORY="someone/book").returncode == 0
    text = (folder / "_build" / "text" / "index.txt").read_text(encoding="utf-8")
    assert "download" not in text


def test_the_colab_button_opens_the_published_export(tmp_path):
    folder = write_site(tmp_path, FILES)
    assert build(folder, GITHUB_REPOSITORY="someone/book").returncode == 0
    colab = [h for h in hrefs(page(folder, "chapters/a")) if "colab" in h]
    expected = "https://colab.research.google.com/github/someone/book/blob/gh-pages/"
    assert len(colab) == 1
    promised = page(folder, "index").select_one("article").text
    assert "To download or in Colab." in promised and "To download." not in promised
    assert colab[0].startswith(expected)
    assert (folder / "_build" / "html" / colab[0].removeprefix(expected)).is_file()


def test_a_notebook_that_cannot_be_exported_is_a_warning_at_its_line(tmp_path):
    cell = '\n# %% tags=["skip-execution"]\nimport surely_absent\n'
    folder = write_site(tmp_path, {**FILES, "notebooks/a.py": FILES["notebooks/a.py"] + cell})
    result = build(folder)
    assert result.returncode == 1
    assert "notebooks/a.py:17: WARNING: imports surely_absent, which nothing" in result.stderr
    assert len(result.stderr.splitlines()) == 1
