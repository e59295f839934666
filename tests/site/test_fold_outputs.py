"""Long outputs are folded after their first lines."""

from sites import CONF, build, page, write_site

NOTEBOOK = "# %% [markdown]\n# # Lines\n\n# %%\nfor i in range({n}):\n    print('line', i)\n"


def test_a_long_output_shows_its_first_lines_and_holds_the_rest(tmp_path):
    files = {
        "index.rst": "Book\n====\n\n.. toctree::\n\n   notebooks/long\n   notebooks/short\n",
        "notebooks/long.py": NOTEBOOK.format(n=30),
        "notebooks/short.py": NOTEBOOK.format(n=16),
    }
    folder = write_site(tmp_path, files, CONF + 'extensions.append("fold_outputs")\n')
    result = build(folder)
    assert result.returncode == 0, result.stderr
    output = page(folder, "notebooks/long").select_one(".cell_output")
    folded = output.select_one("details.more-output").extract()
    first = [f"line {i}" for i in range(8)]
    assert output.get_text().strip().splitlines() == first
    assert folded.select_one("summary").text == "22 more lines"
    assert folded.pre.get_text().splitlines() == [f"line {i}" for i in range(8, 30)]
    assert not page(folder, "notebooks/short").select("details")
