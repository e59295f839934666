"""Pictures of notebooks: format, dark twin, size; and the style that they are drawn in."""

import re

import pytest
import torch
from matplotlib import pyplot as plt

import workbench
from figures import DARK, dark, transparent
from sites import CONF, build, page, write_site

PAGE, DARK_PAGE = "#ffffff", "#14181f"
NOTEBOOK = """# %% [markdown]
# # Figures

# %% tags=["line"] alt="a line that rises"
import matplotlib.pyplot as plt
import numpy as np
from matplotlib_inline.backend_inline import set_matplotlib_formats

set_matplotlib_formats("svg", "retina", metadata={"Date": None})
plt.rcParams.update({"axes.facecolor": "none", "svg.fonttype": "none", "figure.figsize": (5, 3)})
_ = plt.plot([0, 1], color="{colour}")

# %% tags=["noise"] alt="grey noise"
_ = plt.imshow(np.random.default_rng(0).random((300, 300)))
"""
CHAPTER = """A
=

.. cells:: line noise
   :part: output

.. image:: /dot.svg
   :alt: a red dot
"""
DOT = '<svg xmlns="http://www.w3.org/2000/svg" width="40px" height="30px"><circle r="9"/></svg>'


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = write_site(
        tmp_path_factory.mktemp("figures"),
        {
            "index.rst": "Book\n====\n\n.. toctree::\n\n   chapters/a\n   notebooks/a\n",
            "chapters/a.rst": CHAPTER,
            "notebooks/a.py": NOTEBOOK.replace("{colour}", "#0072b2"),
            "dot.svg": DOT,
            "docutils.conf": "[general]\nimage_loading: lazy\n",
        },
        CONF + 'extensions.append("figures")\n',
    )
    result = build(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def pictures(folder, name):
    found = {}
    for image in page(folder, name).select("article img"):
        file = (folder / "_build/html" / name).parent / image["src"]
        found[image["alt"], *image.get("class", [])] = (image, file)
    return found


@pytest.mark.parametrize("name", ["chapters/a", "notebooks/a"])
def test_a_line_plot_is_a_light_and_a_dark_svg(site, name):
    found = pictures(site, name)
    light, dark_twin = (found["a line that rises", f"only-{mode}"][1] for mode in ("light", "dark"))
    light, dark_twin = light.read_text(), dark_twin.read_text()
    assert "#0072b2" in light
    assert "#0072b2" not in dark_twin
    assert DARK["#0072b2"] in dark_twin
    for svg in (light, dark_twin):
        assert not re.search(r"fill: ?#ffffff", svg), "the white ground is still there"


def test_a_picture_with_pixels_is_one_picture_on_a_plate(site):
    image, file = pictures(site, "chapters/a")["grey noise", "plate"]
    assert file.suffix == ".png" or "<image" in file.read_text()
    assert len(page(site, "chapters/a").select("article img")) == 4


@pytest.mark.parametrize("name", ["chapters/a", "notebooks/a"])
def test_each_picture_has_its_size_in_css_pixels_and_is_loaded_late(site, name):
    for (alt, *_), (image, _) in pictures(site, name).items():
        width, height = int(image["width"]), int(image["height"])
        assert image["loading"] == "lazy"
        if alt == "a red dot":
            assert (width, height) == (40, 30)
        else:
            assert 250 < width <= 490 and 200 < height < 320, (alt, width, height)


def test_an_edit_of_the_notebook_gives_new_twins(site):
    before = {file.name for _, file in pictures(site, "chapters/a").values()}
    path = site / "notebooks/a.py"
    path.write_text(path.read_text().replace("#0072b2", "#b54a00"))
    assert build(site).returncode == 0
    found = pictures(site, "chapters/a")
    assert found["a line that rises", "only-dark"][1].name not in before
    assert DARK["#b54a00"] in found["a line that rises", "only-dark"][1].read_text()


# ---- the style of workbench ----------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [*workbench.COLOURS, workbench.INK, workbench.QUIET])
def test_text_in_each_colour_can_be_read_on_the_light_and_the_dark_page(colour):
    assert contrast(colour, PAGE) >= 4.5
    assert contrast(DARK[colour], DARK_PAGE) >= 4.5


def test_all_colours_of_the_style_have_a_dark_twin():
    style = {v for v in workbench.STYLE.values() if str(v).startswith("#")}
    assert {*style, *workbench.COLOURS, workbench.ON_COLOUR} <= set(DARK)
    colour = workbench.COLOURS[0]
    assert contrast(workbench.ON_COLOUR, colour) >= 4.5
    assert contrast(DARK[workbench.ON_COLOUR], DARK[colour]) >= 4.5


def test_a_colour_is_exchanged_wherever_it_stands_and_no_other():
    assert dark('style="fill: #0072B2; stroke: #123456"') == (
        f'style="fill: {DARK["#0072b2"]}; stroke: #123456"'
    )
    assert transparent("<svg></svg>") == "<svg></svg>"


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    files = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for file in files:
        workbench.draw(torch.nn.Sequential(torch.nn.Linear(4, 2)), torch.zeros(1, 4))
        plt.savefig(file, metadata={"Date": None})
        plt.close()
    assert files[0].read_bytes() == files[1].read_bytes()
