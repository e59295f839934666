"""What the content policy refuses is said when the book is built."""

import pytest

from blocked import Refused
from sites import CONF, build, write_site

SETTINGS = CONF + 'extensions.append("blocked")\n'
INDEX = "B\n=\n\n.. toctree::\n\n   notebooks/n\n"
START = "# %% [markdown]\n# # N\n\n# %%\nfrom IPython.display import HTML, Javascript, Markdown\n\n# %%\n"


def book(tmp_path, cell: str):
    return write_site(tmp_path, {"index.rst": INDEX, "notebooks/n.py": START + cell}, SETTINGS)


@pytest.mark.parametrize(
    ("html", "reason"),
    [
        ("<p>x</p><script>draw()</script>", "a script"),
        ('<script type="module" src="a.js"></script>', "a script"),
        ('<script type="application/vnd.jupyter.widget-view+json">{}</script>', None),
        ('<button onclick="draw()">x</button>', "the script in onclick="),
        ('<a href="  JavaScript:draw()">x</a>', "the script in href="),
        ('<iframe src="https://a.org/v"></iframe>', "<iframe> from https://a.org/v"),
        ('<iframe src="data:text/html,x"></iframe>', "<iframe> from data:text/html,x"),
        ('<iframe src="local.html"></iframe>', None),
        ('<img src="//a.org/x.png">', "<img> from //a.org/x.png"),
        ('<img srcset="x.png 1x, https://a.org/y.png 2x">', "<img> from https://a.org/y.png"),
        ('<img src="data:image/png;base64,aa">', None),
        ('<audio src="data:audio/wav;base64,aa"></audio>', None),
        ('<link rel="stylesheet" href="http://a.org/x.css">', "<link> from http://a.org/x.css"),
        ('<p style="background: url(https://a.org/x.png)">x</p>', "a file from another host"),
        ("<style>@import '//a.org/x.css';</style>", "a style sheet from another host"),
        ("<style scoped>td { color: red }</style><table></table>", None),
        ('<object data="x.svg"></object>', "<object>"),
        ('<a href="https://a.org/">a link is followed, not loaded</a>', None),
        ("&lt;script&gt; in words", None),
    ],
)
def test_what_a_browser_refuses_is_found_and_nothing_else(html, reason):
    reasons = Refused(html).reasons
    assert len(reasons) == (reason is not None)
    assert reason is None or reasons[0].startswith(reason)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("HTML('<p>x</p><script>1</script>')\n", "a script"),
        ("Javascript('draw()')\n", "a script"),
        ("HTML('<img src=\"https://a.org/x.png\">')\n", "<img> from https://a.org/x.png"),
        ("Markdown('![x](https://a.org/x.png)')\n", "a picture from https://a.org/x.png"),
    ],
)
def test_an_output_that_is_refused_is_a_warning_at_its_cell(tmp_path, cell, reason):
    result = build(book(tmp_path, cell))
    assert result.returncode != 0
    lines = (tmp_path / "notebooks/n.py").read_text().splitlines()
    line = lines.index(cell.strip()) + 1
    assert f"notebooks/n.py:{line}: " in result.stderr, result.stderr
    message = f"output of cell 3: the content policy of the pages refuses {reason}"
    assert message in result.stderr


def test_outputs_and_links_that_a_browser_shows_are_no_warning(tmp_path):
    cell = "HTML('<b>x</b> <a href=\"https://a.org\">y</a>')\n\n# %%\nMarkdown('**z**')\n"
    result = build(book(tmp_path, cell))
    assert (result.returncode, result.stderr) == (0, "")
