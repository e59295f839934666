"""A browser for the tests, a server that sends a built site as GitHub Pages does, and visits.

``python tests/browser.py`` prints the path of the browser, or says how to get one.
"""

import gzip
import mimetypes
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = (
    "no Chromium or Chrome found: install one (Debian, Ubuntu: apt-get install chromium) or set "
    "BROWSER_PATH to its program"
)
FLAGS = [
    "--no-sandbox",  # a container's root has no sandbox; the pages are our own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
PREFIX = "/book/"  # the site lies in a folder of its host, as a project's pages do
MEASURES = Path(__file__).with_suffix(".js")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".ipynb": "application/x-ipynb+json",
    ".js": "text/javascript; charset=utf-8",
    ".py": "text/x-python",
    ".woff2": "font/woff2",
}
PACKED = ("text/", "image/svg", "application/json", "application/x-ipynb")


def find() -> str | None:
    """Path of the browser: BROWSER_PATH, else the first of NAMES that is installed."""
    named = os.environ.get("BROWSER_PATH")
    found = map(shutil.which, [named] if named else NAMES)
    return next(filter(None, found), None)


# ---- a server ------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def packed(file: Path, changed: int) -> bytes:
    return gzip.compress(file.read_bytes(), compresslevel=6, mtime=0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        file = self.server.folder.joinpath(path.removeprefix(PREFIX))
        file = (file / "index.html" if path.endswith("/") else file).resolve()
        inside = path.startswith(PREFIX) and file.is_relative_to(self.server.folder)
        if not inside or not file.is_file():
            page = self.server.folder / "404.html"
            body = page.read_bytes() if page.is_file() else b"no such page"
            self.send(404, TYPES[".html"], body)
            return
        kind = TYPES.get(file.suffix) or mimetypes.guess_type(file)[0] or "application/octet-stream"
        if kind.startswith(PACKED) and "gzip" in self.headers.get("Accept-Encoding", ""):
            self.send(200, kind, packed(file, file.stat().st_mtime_ns), "gzip")
        else:
            self.send(200, kind, file.read_bytes())

    def send(self, status: int, kind: str, body: bytes, encoding: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "max-age=600")
        if encoding:
            self.send_header("Content-Encoding", encoding)
            self.send_header("Vary", "Accept-Encoding")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args) -> None:
        pass


class Server(ThreadingHTTPServer):
    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder.resolve()

    def handle_error(self, request, client_address) -> None:
        """A browser that leaves a page ends its connections: not an error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine while the context lasts; its address, which ends in a slash."""
    with Server(folder) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}{PREFIX}"
        finally:
            server.shutdown()
            thread.join()


# ---- visits --------------------------------------------------------------------------------------


class Visit:
    """A tab that notes what goes wrong in it and what it loads.

    root: what the addresses of this site start with; everything else is foreign.
    """

    def __init__(self, context, root: str):
        self.root, self.trouble, self.requests = root, [], []
        self.page = context.new_page()
        self.page.set_default_timeout(30_000)  # of a machine that does other work, too
        self.page.on("console", self.note_message)
        self.page.on("pageerror", lambda error: self.trouble.append(f"exception: {error}"))
        self.page.on("request", self.note_request)
        self.page.on("requestfailed", lambda r: self.trouble.append(f"failed: {r.url} {r.failure}"))
        self.page.on("response", self.note_response)

    def note_message(self, message) -> None:
        if message.type == "error":
            where = message.location
            self.trouble.append(f"console: {message.text} ({where['url']}:{where['lineNumber']})")

    def note_request(self, request) -> None:
        self.requests.append(request)
        if not request.url.startswith((self.root, "data:", "blob:")):
            self.trouble.append(f"foreign: {request.url}")

    def note_response(self, response) -> None:
        if response.status >= 400:
            self.trouble.append(f"{response.status}: {response.url}")

    def open(self, name: str) -> "Visit":
        """Open a page, scroll through it and wait for its pictures."""
        self.page.goto(self.root + name)
        self.scroll()
        return self

    def go(self, name: str) -> "Visit":
        """Go on to another page and let it load all its pictures, without scrolling."""
        self.page.goto("about:blank")  # what the page before has left undone is not this one's
        self.trouble.clear()
        self.requests.clear()
        self.page.goto(self.root + name)
        self.page.evaluate("book.load()")
        self.trouble += self.page.evaluate("book.refused.splice(0)")
        return self

    def scroll(self) -> None:
        self.page.evaluate("book.scroll()")
        self.trouble += self.page.evaluate("book.refused.splice(0)")

    def loaded(self, word: str) -> bool:
        return any(word in urlsplit(request.url).path for request in self.requests)

    def bytes(self) -> Counter:
        """Bytes of the bodies as they were sent, by kind: document, stylesheet, script, font, ..."""
        sizes = Counter()
        for request in self.requests:
            if request.url.startswith(self.root) and request.response():
                sizes[request.resource_type] += request.sizes()["responseBodySize"]
        return sizes

    def close(self) -> None:
        self.page.close()


@contextmanager
def launched():
    """The browser, without a window, while the context lasts."""
    from playwright.sync_api import sync_playwright  # not needed to ask for the browser's path

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(), args=FLAGS)
        with closing(browser):
            yield browser


def new_context(browser, **options):
    """A fresh profile, 1300 px wide unless said otherwise, with the measures of browser.js."""
    context = browser.new_context(**{"viewport": {"width": 1300, "height": 900}, **options})
    context.add_init_script(path=MEASURES)
    return context


def against(page, rules: list[str] | None = None, part: str | None = None) -> dict[str, list[str]]:
    """{rule of axe: elements that break it} in a page or a part of it; rules: their tags, else all."""
    import axe_playwright_python  # carries axe-core

    page.evaluate(Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text("utf-8"))
    options = {"resultTypes": ["violations"], "preload": part is None}
    if rules:
        options["runOnly"] = {"type": "tag", "values": rules}
    result = page.evaluate("([part, o]) => axe.run(part ?? document, o)", [part, options])
    return {
        rule["id"]: [node["html"][:160] for node in rule["nodes"]][:4]
        for rule in result["violations"]
    }


if __name__ == "__main__":
    print(find() or sys.exit(MISSING))
