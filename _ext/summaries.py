"""Write a page that shows something of other pages again when what it shows has changed.

The extension of a summary tells once what it shows, and its directive which pages have one::

    summaries.follow(app, "runs", table)            # in setup; table(env) is what a page shows
    summaries.note(env, "runs")                     # in the directive

Where each page shows something else, no directive is needed::

    summaries.follow_each(app, "numbers", numbers)  # numbers(env) is {page: what it shows}
"""

from collections.abc import Callable
from hashlib import sha256

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from per_page import PerPage


class Summaries(PerPage):
    """Which summaries a page has, and what they showed when a builder last wrote them."""

    name, label = "summaries", "Summaries"
    initial_data = {"pages": {}, "shown": {}}


def note(env: BuildEnvironment, summary: str) -> None:
    """The current page has this summary."""
    pages = env.get_domain("summaries").pages
    pages.setdefault(env.current_document.docname, set()).add(summary)


def digest(content: object) -> str:
    return sha256(repr(content).encode()).hexdigest()


def follow(app: Sphinx, summary: str, shown: Callable[[BuildEnvironment], object]) -> None:
    """Compare what is shown from build to build, for each format."""
    app.setup_extension("summaries")

    def outdated(app: Sphinx, env: BuildEnvironment) -> list[str]:
        domain, kind = env.get_domain("summaries"), f"{summary} {app.builder.name}"
        now, before = digest(shown(env)), domain.data["shown"].get(kind)
        domain.data["shown"][kind] = now
        return [doc for doc, has in domain.pages.items() if summary in has and now != before]

    app.connect("env-get-updated", outdated)


def follow_each(
    app: Sphinx,
    summary: str,
    shown: Callable[[BuildEnvironment], dict[str, object]],
    priority: int = 500,
) -> None:
    """Compare what each page shows of others; `shown` is asked at this priority of the event."""
    app.setup_extension("summaries")

    def outdated(app: Sphinx, env: BuildEnvironment) -> list[str]:
        data, kind = env.get_domain("summaries").data["shown"], f"{summary} {app.builder.name}"
        now = {doc: digest(what) for doc, what in shown(env).items()}
        before = data.get(kind, {})
        data[kind] = now
        return [doc for doc in now if now[doc] != before.get(doc)]

    app.connect("env-get-updated", outdated, priority=priority)


def setup(app: Sphinx) -> dict:
    app.add_domain(Summaries)
    return {
        "version": "1",
        "env_version": 2,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
