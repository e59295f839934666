"""A made-up book of 64 chapters in nine parts, for tests of what has to grow with the book."""

import random

from loader import ROOT

PARTS = {
    "Image classification": 24,
    "Object detection": 9,
    "Sequences and language": 10,
    "Speech": 6,
    "Diffusion": 4,
    "Data sets": 3,
    "Model hubs": 3,
    "Reproduction and scale": 3,
    "Tools": 2,
}
SYLLABLES = [
    "Net",
    "Res",
    "Dense",
    "Mo",
    "bile",
    "Vi",
    "T",
    "former",
    "Con",
    "v",
    "Ne",
    "Xt",
    "YO",
    "LO",
    "Seg",
    "Wave",
    "Diff",
    "Fu",
    "sion",
    "Swin",
]
CONF = f"""
import sys
sys.path.insert(0, {str(ROOT / "_ext")!r})
from execution import kept
extensions = ["paper", "network_map", "parts", "page_head"]
html_theme = "sphinx_book_theme"
html_theme_options = {{"use_download_button": False, "use_fullscreen_button": False}}  # as conf.py
html_static_path = [{str(ROOT / "_static")!r}]
templates_path = [{str(ROOT / "_templates")!r}]
html_css_files = ["book.css"]
html_favicon = {str(ROOT / "_static" / "favicon.svg")!r}
html_context = {{"default_mode": ""}}

def give_results(app):
    kept(app.env).update(RESULTS)

def setup(app):
    app.connect("builder-inited", give_results)
"""
FRONT = """\
:html_theme.sidebar_secondary.remove: true

Made-up book
============

A book of made-up networks, as many as there may be, in all its parts.

.. _map:

.. map::

   A circle is a network.

Chapters
--------

.. parts::
"""


def name(dice: random.Random) -> str:
    words = [
        "".join(dice.choices(SYLLABLES, k=dice.randint(1, 4)))
        for _ in range(dice.choice((1, 1, 2, 3)))
    ]
    number = dice.choice(("", "", f"-{dice.randint(2, 9)}"))
    return " ".join(word.capitalize() for word in words) + number


def networks(seed: int = 0) -> list[dict]:
    """Chapters with a part, a name, a month, a size, and stems of older ones; the last of a part with
    four or more chapters is an overview."""
    dice, found = random.Random(seed), []
    for part, count in PARTS.items():
        for place in range(count):
            year = int(2012 + 13 * dice.random() ** 1.3) if found else 1998
            overview = count > 3 and place == count - 1
            chapter = {"part": part, "stem": f"c{len(found):02}", "name": name(dice)}
            chapter |= {"month": f"{year}-{dice.randint(1, 12):02}", "overview": overview}
            found.append(chapter | {"size": int(10 ** dice.uniform(4.7, 11))})
    for chapter in found:
        own = [c for c in found if c["part"] == chapter["part"] and not c["overview"]]
        older = sorted((c["month"], c["stem"]) for c in own if c["month"] < chapter["month"])
        near = [stem for _, stem in older[-6:]]
        if chapter["overview"]:
            near = [c["stem"] for c in own]
        chapter["after"] = dice.sample(near, min(len(near), dice.choice((1, 1, 2, 3))))
        others = [c["stem"] for c in found if c["month"] < chapter["month"] and c not in own]
        others = [stem for stem in others if not found[int(stem[1:])]["overview"]]
        if others and not chapter["overview"] and dice.random() < 0.2:
            chapter["after"].append(dice.choice(others))
    return found


def card(chapter: dict) -> str:
    after = ", ".join(chapter["after"])
    end = "   :checked: a library: equal outputs with copied weights\n"
    end += "   :idea: do something that is told in a clause of about this length\n"
    if chapter["overview"]:
        return f".. overview:: {after}\n{end}"
    line = f"   :after: {after}\n" if after else ""
    numbers = "   :parameters: parameters\n   :macs: parameters\n"
    return f".. paper:: {chapter['stem']}\n   :first: {chapter['month']}\n{line}{numbers}{end}"


def site(seed: int = 0) -> tuple[dict[str, str], str]:
    """The files and the settings of the book; no notebook, the results are given."""
    found, front, bib, results = networks(seed), FRONT, "", {}
    for part in PARTS:
        stems = [chapter["stem"] for chapter in found if chapter["part"] == part]
        entries = "".join(f"   chapters/{stem}\n" for stem in stems)
        front += f"\n.. toctree::\n   :hidden:\n   :caption: {part}\n\n{entries}"
    files = {"index.rst": front}
    for chapter in found:
        stem, title = chapter["stem"], chapter["name"]
        text = f"{title}\n{'=' * len(title)}\n\n{card(chapter)}\nText.\n"
        files[f"chapters/{stem}.rst"] = text
        year = chapter["month"][:4]
        bib += f"@misc{{{stem}, author={{A, B.}}, title={{{title}}}, year={year}, url={{https://a.org}}}}\n"
        results[f"notebooks/{stem}"] = {"results": {"parameters": chapter["size"]}, "failed": False}
    return files | {"references.bib": bib}, f"RESULTS = {results!r}\n{CONF}"
