"""What every page needs around its text: a content policy, a description, scripts and fonts.

Fills the variables of ``_templates/layout.html``. The policy lets a page load only what lies beside
it; the one script that stands in the page is allowed by its hash: it chooses light or dark and asks
for fonts before anything is drawn. A page from a file, which may not ask ahead, and one without
scripts wait for their fonts instead: they come from this machine, or are few. Scripts that the theme
writes into each page, for features that this site does not use, are left out.
"""

import base64
import hashlib

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.builders.html._assets import _JavaScript
from sphinx.writers.html5 import HTML5Translator

from formats import WEB_SITE
from mathml import drawn_characters

FIRST_SCRIPT = """\
(() => {
  const root = document.documentElement.dataset;
  try { root.mode = localStorage.getItem("mode") || "auto"; } catch { root.mode = "auto"; }
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.theme = root.mode === "auto" ? (dark ? "dark" : "light") : root.mode;
  for (const { family, href, weight, style } of JSON.parse(document.currentScript.dataset.fonts)) {
    if (location.protocol === "file:") {
      const options = { weight, style, display: "block" };
      document.fonts.add(new FontFace(family, `url("${href}")`, options));
      continue;
    }
    const link = { rel: "preload", as: "font", type: "font/woff2", crossOrigin: "", href };
    document.head.append(Object.assign(document.createElement("link"), link));
  }
})();"""
HASH = base64.b64encode(hashlib.sha256(FIRST_SCRIPT.encode()).digest()).decode()
POLICY = "; ".join(
    (
        "default-src 'self'",
        f"script-src 'self' 'wasm-unsafe-eval' 'sha256-{HASH}'",  # the search engine is WebAssembly
        "style-src 'self' 'unsafe-inline'",  # alignment of table cells, written by notebooks
        "img-src 'self' data:",  # icons in the style sheet
        "media-src 'self' data:",  # audio that a notebook shows
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)
SCRIPTS = ("scripts/pydata-sphinx-theme.js", "book.js")  # Bootstrap's and the icons' are left out
UNUSED = ("", "_static/sphinx_highlight.js")  # scripts in the page; marks of Sphinx's search
# as in book.css and mathml.css: family, file, weight, style
TEXT_FONTS = [
    ("Source Sans 3", "_static/fonts/source-sans-3.woff2", "200 900", "normal"),
    ("Source Sans 3", "_static/fonts/source-sans-3-italic.woff2", "200 900", "italic"),
]
MATH_FONT = ("STIX Two Math", "_static/stix-two-math.woff2", "400", "normal")
LONGEST = 160  # characters of a description that search engines show


def description(doctree: nodes.document | None, fallback: str) -> str:
    """The first paragraph of the text itself, cut at a word."""
    for paragraph in doctree.findall(nodes.paragraph) if doctree else ():
        text = " ".join(paragraph.astext().split())
        if isinstance(paragraph.parent, nodes.section) and len(text) > 40:
            return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + " …"
    return fallback


def deferred(script: _JavaScript) -> _JavaScript:
    """The same script, which no longer keeps the page from being drawn."""
    attributes = {**script.attributes, "defer": "defer"}
    return _JavaScript(script.filename, priority=script.priority, **attributes)


def fill(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    if app.builder.name not in WEB_SITE:
        return
    context["content_policy"], context["first_script"] = POLICY, FIRST_SCRIPT
    math = [MATH_FONT] if pagename in drawn_characters(app.env) else []
    context["fonts"] = [
        {"family": family, "href": context["pathto"](file, 1), "weight": weight, "style": style}
        for family, file, weight, style in TEXT_FONTS + math
    ]
    fallback = f"{app.config.html_title}: {context.get('title', pagename)}"
    context["description"] = description(doctree, fallback)
    files = [file for file in context["script_files"] if str(file.filename or "") not in UNUSED]
    context["script_files"] = [deferred(file) for file in files]


def visit_citation(self, node: nodes.citation) -> None:
    """As docutils writes it, an item of a list, but by a role that is allowed for one."""
    HTML5Translator.visit_citation(self, node)
    self.body[-1] = self.body[-1].replace('"doc-biblioentry"', '"listitem"')


def depart_citation(self, node: nodes.citation) -> None:
    HTML5Translator.depart_citation(self, node)


def setup(app: Sphinx) -> dict:
    app.setup_extension("mathml")
    app.add_node(nodes.citation, override=True, html=(visit_citation, depart_citation))
    for script in SCRIPTS:
        app.add_js_file(script, loading_method="defer")
    app.connect("html-page-context", fill, priority=900)  # after the theme has added its scripts
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
