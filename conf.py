"""Settings of the site. The extensions are in _ext/, each with its own description."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "Deep Learning Models"
author = "the authors of Deep Learning Models"
copyright = "2026, the authors; text and figures CC BY 4.0, code MIT"  # noqa: A001
language = "en"

extensions = [
    "warned",  # first, so that it hears the others
    "execution",  # before myst_nb: notebooks are run when Sphinx has found them
    "myst_nb",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
    "embed",
    "launch",
    "leftovers",
    "runs_table",
    "paper",
    "network_map",
    "parts",
    "mathml",
    "chinese",
    "figures",
    "sounds",
    "ebook",
    "book_files",
    "fold_outputs",
    "numerals",
    "numbering",
    "navigation",
    "citations",
    "not_found",
    "blocked",
    "search_index",
    "page_head",
    "slim",
]

# Every .py file would be a notebook: name what is a page instead of what is not.
include_patterns = ["*.rst", "chapters/*.rst", "notebooks/*.py"]
# These are not searched: looking through an environment takes seconds.
exclude_patterns = [".git", ".store", ".venv", "_build", "data", "runs"]
nb_custom_formats = {".py": "execution.read"}

nb_execution_mode = "off"  # the extension "execution" has run them
nb_output_stderr = "remove-warn"  # a notebook that writes to stderr fails a build with -W
nb_merge_streams = False  # the engine has merged them
nb_ipywidgets_js = {}  # would come from other hosts
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]

numfig = True
math_numfig = False  # equations count within a page, as "numbering" has it for the rest
html_math_renderer = "mathml"
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = bibtex_reference_style = "book"
bibtex_cite_id = "{key}"  # an address that stays: bibliography.html#he2016deep

search_weights = {"index": 0.4, "status": 0.1, "bibliography": 0.05}
search_sections = {"architecture": 2, "what-came-next": 0.5, "exercises": 0.5, "reading-list": 0.5}

# The electronic book. Its identifier stays the same from edition to edition.
version = "1"
epub_basename = epub_uid = "book"
epub_identifier = "urn:uuid:6b2f0d3e-3c0f-4a53-9d0c-6a1f5b6f0f53"
epub_description = "A reading list of deep-learning architectures that runs"
epub_contributor = author
epub_show_urls = "no"
epub_css_files = ["ebook.css"]
epub_cover = ("_static/cover.png", "epub-cover.html")
epub_tocdepth = 2
epub_tocdup = False
epub_use_index = False

html_theme = "sphinx_book_theme"
html_title = "Deep Learning Models"
html_static_path = ["_static"]
templates_path = ["_templates"]
html_css_files = ["book.css"]
html_additional_pages = {"timeline": "moved.html"}  # old links lead to the map
html_favicon = "_static/favicon.svg"
html_context = {"default_mode": ""}  # set by the page's first script; light without scripts
html_copy_source = False  # the launch buttons lead to the files
html_show_sourcelink = False
html_baseurl = os.environ.get("SITE_URL", "")  # for links from exported notebooks back to chapters
html_theme_options = {
    "use_download_button": False,  # knows only .md notebooks
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navbar_persistent": [],  # one search button, in the side bar
    "footer_content_items": ["copyright.html", "book-files.html", "report.html"],
    "pygments_light_style": "github-light-high-contrast",
    "pygments_dark_style": "github-dark-high-contrast",
}
copybutton_selector = "div.highlight pre:not(.cell_output pre)"
copybutton_exclude = ".linenos, .gp, .go"
