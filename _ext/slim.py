"""Send only the rules of the theme's style sheet that some page of the site can need.

The theme's sheet holds Bootstrap and two thousand icons. When a site has been written, the rules go
whose classes occur neither in a page nor as a word in a script, which might set them; the rest stays
as it was. The result is kept beside the doctrees and used again while classes and sheet are the same.
"""

import re
from hashlib import sha256
from pathlib import Path

import tinycss2
from sphinx.application import Sphinx

from formats import WEB_SITE

SHEET = "styles/pydata-sphinx-theme.css"
WORD = re.compile(r"[\w-]+")
CLASSES = re.compile(rb'\bclass=(?:"([^"]*)"|([^\s">]+))')
NESTED = {"media", "supports", "layer", "container"}
ICON_FONT = "Font Awesome"  # our own icons are in book.css


def known_classes(outdir: Path) -> set[str]:
    """Classes in the pages, and all words of the scripts."""
    found = set()
    for page in outdir.rglob("*.html"):
        for quoted, bare in CLASSES.findall(page.read_bytes()):
            found.update((quoted or bare).decode("utf-8").split())
    for script in (outdir / "_static").rglob("*.js"):
        if script.name not in ("bootstrap.js", "fontawesome.js"):  # not loaded by our pages
            found.update(WORD.findall(script.read_text(encoding="utf-8")))
    return found


def needed(selector: list, known: set[str]) -> bool:
    """Whether an element of the site may match: all classes outside of functions are known."""
    return all(
        after.value in known
        for before, after in zip(selector, selector[1:])
        if before == "." and after.type == "ident"
    )


def selectors(prelude: list) -> list[list]:
    parts = [[]]
    for token in prelude:
        if token == ",":
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def slim(rules: list, known: set[str]) -> str:
    """The rules that may apply, as text; a rule keeps those of its selectors that may match."""
    kept = []
    for rule in rules:
        if rule.type == "qualified-rule":
            alive = [tinycss2.serialize(s) for s in selectors(rule.prelude) if needed(s, known)]
            if alive:
                kept.append(f"{','.join(alive)}{{{tinycss2.serialize(rule.content)}}}")
        elif rule.type == "at-rule" and rule.lower_at_keyword in NESTED and rule.content:
            inner = slim(tinycss2.parse_blocks_contents(rule.content), known)
            if inner:
                prelude = tinycss2.serialize(rule.prelude)
                kept.append(f"@{rule.at_keyword}{prelude}{{{inner}}}")
        elif rule.type == "at-rule" and not (
            rule.lower_at_keyword == "font-face" and ICON_FONT in unescaped(rule.content)
        ):
            kept.append(rule.serialize())
    return "".join(kept)


def unescaped(tokens: list) -> str:
    return "".join(str(getattr(token, "value", "")) for token in tokens).replace("\\", "")


def write(app: Sphinx, exception: Exception | None) -> None:
    sheet = Path(app.outdir, "_static", SHEET)
    if exception or app.builder.name not in WEB_SITE or not sheet.is_file():
        return
    text = sheet.read_text(encoding="utf-8")
    if text.startswith("/* slim"):
        return  # nothing was written in this build, so the sheet was not copied again
    known = known_classes(Path(app.outdir))
    key = sha256("\n".join([text, *sorted(known)]).encode()).hexdigest()
    kept = Path(app.doctreedir, "slim.css")
    if not kept.is_file() or key not in kept.read_text(encoding="utf-8")[:100]:
        rules = tinycss2.parse_stylesheet(text, skip_comments=True, skip_whitespace=True)
        kept.write_text(f"/* slim {key} */\n{slim(rules, known)}", encoding="utf-8")
    sheet.write_text(kept.read_text(encoding="utf-8"), encoding="utf-8")


def setup(app: Sphinx) -> dict:
    app.connect("build-finished", write, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
