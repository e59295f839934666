"""Pictures of notebooks: format, dark twin, size; and the style that they are drawn in."""

import re
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from figures import DARK, UNLINKED, dark, transparent
from sites import CONF, build, page, write_site
from workbench import drawing, plots

PAGE, DARK_PAGE = "#ffffff", "#14181f"
NOTEBOOK = """# %% [markdown]
# # Figures

# %% tags=["line"] alt="a line that rises"
import matplotlib.pyplot as plt
import numpy as np
from matplotlib_inline.backend_inline import set_matplotlib_formats

set_matplotlib_formats("svg", "retina", metadata={"Date": None})
style = {"axes.facecolor": "none", "svg.fonttype": "none", "figure.figsize": (5, 3)}
style |= {f"{what}.color": "#566171" for what in ("xtick", "ytick")}
plt.rcParams.update(style | {"axes.edgecolor": "#566171"})
_ = plt.plot([0, 1], color="{colour}")

# %% tags=["foreign"] alt="a red line"
_ = plt.plot([0, 1], color="red")

# %% tags=["noise"] alt="grey noise"
_ = plt.imshow(np.random.default_rng(0).random((300, 300)))
"""
CHAPTER = """A
=

.. cells:: line noise foreign
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
            "notebooks/a.py": NOTEBOOK.replace("{colour}", "#0a58a0"),
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
        classes = [name for name in image.get("class", []) if name != UNLINKED]
        found[image["alt"], *classes] = (image, file)
    return found


@pytest.mark.parametrize("name", ["chapters/a", "notebooks/a"])
def test_a_line_plot_is_a_light_and_a_dark_svg(site, name):
    found = pictures(site, name)
    light, dark_twin = (found["a line that rises", f"only-{mode}"][1] for mode in ("light", "dark"))
    light, dark_twin = light.read_text(), dark_twin.read_text()
    assert "#0a58a0" in light
    assert "#0a58a0" not in dark_twin
    assert DARK["#0a58a0"] in dark_twin
    for svg in (light, dark_twin):
        assert not re.search(r"fill: ?#ffffff", svg), "the white ground is still there"


def test_a_picture_with_pixels_is_one_picture_on_a_plate(site):
    image, file = pictures(site, "chapters/a")["grey noise", "plate"]
    assert file.suffix == ".png" or "<image" in file.read_text()
    assert len(page(site, "chapters/a").select("article img")) == 5


def test_a_figure_in_a_colour_without_a_twin_is_one_picture_on_a_plate(site):
    assert pictures(site, "chapters/a")["a red line", "plate"][1].suffix == ".svg"


@pytest.mark.parametrize("name", ["chapters/a", "notebooks/a"])
def test_each_picture_has_its_size_in_css_pixels_and_is_loaded_late(site, name):
    for (alt, *_), (image, _) in pictures(site, name).items():
        width, height = int(image["width"]), int(image["height"])
        assert image["loading"] == "lazy" and image["decoding"] == "async"
        assert not image.find_parent("a"), "a picture is not a link to itself"
        if alt == "a red dot":
            assert (width, height) == (40, 30)
        else:
            assert 250 < width <= 490 and 200 < height < 320, (alt, width, height)


def test_an_edit_of_the_notebook_gives_new_twins(site):
    before = {file.name for _, file in pictures(site, "chapters/a").values()}
    path = site / "notebooks/a.py"
    path.write_text(path.read_text().replace("#0a58a0", "#c04a00"))
    assert build(site).returncode == 0
    found = pictures(site, "chapters/a")
    assert found["a line that rises", "only-dark"][1].name not in before
    assert DARK["#c04a00"] in found["a line that rises", "only-dark"][1].read_text()


# ---- the style of workbench ----------------------------------------------------------------------


def linear(colour: str) -> list[float]:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear(colour)))


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [*plots.COLOURS, plots.INK, plots.QUIET])
def test_text_in_each_colour_can_be_read_on_the_light_and_the_dark_page(colour):
    assert contrast(colour, PAGE) >= 4.5
    assert contrast(DARK[colour], DARK_PAGE) >= 4.5


def test_all_colours_of_the_style_have_a_dark_twin():
    style = {v for v in plots.STYLE.values() if str(v).startswith("#")}
    assert {*style, *plots.COLOURS} <= set(DARK)


# what protan and deutan eyes make of linear red, green, blue; Machado et al. 2009, table 1, severity 1
EYES = {
    "all": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}
LMS = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
OKLAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("colours", [plots.COLOURS, [DARK[c] for c in plots.COLOURS]])
def test_each_two_colours_can_be_told_apart(colours, eyes):
    """Distance in Oklab (Ottosson 2020), which is 1 between black and white, at least 0.09."""
    seen = np.array(EYES[eyes]) @ np.array([linear(colour) for colour in colours]).T
    points = (np.array(OKLAB) @ np.cbrt(np.array(LMS) @ seen.clip(0, 1))).T
    assert min(np.linalg.norm(a - b) for a, b in combinations(points, 2)) >= 0.09


def test_a_colour_is_exchanged_wherever_it_stands_and_no_other():
    assert dark('style="fill: #0A58A0; stroke: #123456"') == (
        f'style="fill: {DARK["#0a58a0"]}; stroke: #123456"'
    )
    assert transparent("<svg></svg>") == "<svg></svg>"


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    files = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for file in files:
        drawing.draw(torch.nn.Sequential(torch.nn.Linear(4, 2)), torch.zeros(1, 4))
        plt.savefig(file, metadata={"Date": None})
        plt.close()
    assert files[0].read_bytes() == files[1].read_bytes()
    fonts = set(re.findall(r"font-family: ([^;\"]+)", files[0].read_text()))
    assert fonts == {"'DejaVu Sans', sans-serif"}, "a reader has the font of the system"
