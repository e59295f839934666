"""Numbers in tables stand at the right; a spread is in a span of its own."""

from sites import CONF, build, page, write_site

TABLES = """Book
====

.. toctree::

   notebooks/a

.. list-table::
   :header-rows: 1

   * - network
     - parameters
     - MACs
     - kernels
     - error
   * - one
     - 1,234
     - 0.5 G
     - 3×3
     - 4.0e-07
   * - two
     - 12
     - 1.5 G
     - 1×1, 3×3
     - −1.5% (−2.0% to 0.1%)

==========  =====
1           2
3           4
==========  =====

+-----+-----+
| 1   | 2   |
+-----+-----+
| 3         |
+-----------+
"""
NOTEBOOK = """# %% [markdown]
# # Notebook

# %%
from IPython.display import display

cells = ["plain", "0.23 (0.20 to 0.27)", "87.6% (87.4 to 88.0)", "text 1 (of two)", "3 (three)"]
row = "".join(f"<td>{cell}</td>" for cell in cells)
page = f'<table class="dataframe"><tbody><tr>{row}</tr></tbody></table>'
display({"text/html": page, "text/plain": "0.23 (0.20 to 0.27)"}, raw=True)
"""


def test_a_column_of_numbers_and_its_head_are_marked_and_a_spread_is_apart(tmp_path):
    files = {"index.rst": TABLES, "notebooks/a.py": NOTEBOOK}
    folder = write_site(tmp_path, files, CONF + 'extensions.append("numerals")\n')
    result = build(folder)
    assert (result.returncode, result.stderr) == (0, "")
    first, simple, spanned = page(folder, "index").select("article table")
    marked = [cell.text.strip() for cell in first.select(".number")]
    assert marked == ["parameters", "MACs", "error", "1,234", "0.5 G", "4.0e-07", "12", "1.5 G"] + [
        "−1.5% (−2.0% to 0.1%)"
    ]
    assert len(simple.select("td.number")) == 4
    assert not spanned.select(".number")
    table = page(folder, "notebooks/a").select_one("table.dataframe")
    assert [span.text for span in table.select(".spread")] == ["(0.20 to 0.27)", "(87.4 to 88.0)"]
    texts = [cell.text for cell in table.select("td")]
    assert texts[1:4] == ["0.23 (0.20 to 0.27)", "87.6% (87.4 to 88.0)", "text 1 (of two)"]
