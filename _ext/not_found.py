"""The page that a host such as GitHub Pages sends where there is none: ``404.html``.

It is sent at any address, so its links start from the root of the host: from the path of
``html_baseurl``. Without that setting they stay relative, and the page works where it lies. Search
engines are told to leave it out.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from sphinx.application import Sphinx

PAGE = "404"
# What stands before an address in the page: an attribute, a style sheet's url(), the list of fonts for
# the first script. Addresses within the page, "#...", stay.
ADDRESSES = re.compile(
    r'((?:\s(?:href|src|action|data-content_root)=|url\(|"href": )")([^"#][^"]*)'
)


def from_root(html: str, base: str) -> str:
    """The page with all its relative addresses put below `base`.

    >>> from_root('<a href="index.html">', "/book/")
    '<a href="/book/index.html">'
    """

    def rewrite(found: re.Match) -> str:
        before, address = found.groups()
        absolute = re.match(r"/|\w+:", address)
        return found[0] if absolute else before + base + address.removeprefix("./")

    return ADDRESSES.sub(rewrite, html)


def collect(app: Sphinx) -> Iterator[tuple[str, dict, str]]:
    if app.builder.name == "html":
        yield PAGE, {"title": "Page not found", "pageurl": None}, "404.html"


def write(app: Sphinx, exception: Exception | None) -> None:
    file = Path(app.outdir, f"{PAGE}.html")
    if not exception and app.builder.name == "html" and app.config.html_baseurl:
        base = urlsplit(app.config.html_baseurl).path.rstrip("/") + "/"
        file.write_text(from_root(file.read_text(encoding="utf-8"), base), encoding="utf-8")


def setup(app: Sphinx) -> dict:
    app.connect("html-collect-pages", collect)
    app.connect("build-finished", write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
