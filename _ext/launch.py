"""Links from a chapter and its notebook's page to the notebook's files.

After an HTML build ``notebooks/`` of the output holds, beside each page ``<stem>.html``:

    <stem>.ipynb    without outputs; its first cell writes the modules of the book beside it and
                    installs what is missing, so that it runs in Colab, Kaggle or bare Jupyter
    <stem>.py       the source, and the modules that it imports

Chapters and notebook pages get buttons for them; the ``paper`` card shows the same links. The one
setting, ``launch_repository`` ("owner/name"), defaults to GITHUB_REPOSITORY and to none: without it
there is no Colab button rather than a wrong one. The files are made by ``engine.export``, which ``execution`` calls.
"""

import os
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

COLAB = "https://colab.research.google.com/github"


class launch_buttons(nodes.General, nodes.Element):
    """Stands in a paper card for the links to the chapter's notebook."""


def buttons_node() -> nodes.Element:
    return launch_buttons()


def links_for(env: BuildEnvironment, docname: str) -> list[dict[str, str]]:
    """Links of a page's notebook: text, short label, icon and address (relative to the site's root
    unless it is absolute). Empty for a page without a notebook."""
    stem = docname.rsplit("/", 1)[-1]
    if (
        docname not in (f"chapters/{stem}", f"notebooks/{stem}")
        or f"notebooks/{stem}" not in env.all_docs
    ):
        return []
    config, found = env.config, []
    if config.launch_repository:
        colab = (
            f"{COLAB}/{config.launch_repository}/blob/{config.launch_branch}/notebooks/{stem}.ipynb"
        )
        found.append({"text": "Open in Colab", "icon": "fas fa-play", "url": colab})
    found += [
        {"text": "Download .ipynb", "icon": "fas fa-download", "url": f"notebooks/{stem}.ipynb"},
        {"text": "Download .py", "icon": "fas fa-file-code", "url": f"notebooks/{stem}.py"},
    ]
    if docname.startswith("chapters/"):
        page = {
            "text": "The whole notebook",
            "icon": "fas fa-book-open",
            "url": f"notebooks/{stem}.html",
        }
        found.insert(0, page)
    return found


def edit_link(env: BuildEnvironment, docname: str) -> list[dict[str, str]]:
    """Where the source of a page can be edited: on GitHub, when the repository is known."""
    repository, branch = env.config.launch_repository, env.config.launch_source_branch
    if not repository:
        return []
    file = Path(env.doc2path(docname)).relative_to(env.srcdir).as_posix()
    url = f"https://github.com/{repository}/edit/{branch}/{file}"
    return [{"text": "Edit this page", "icon": "fas fa-pencil", "url": url}]


def relative(app: Sphinx, docname: str, url: str) -> str:
    """Address of a link as seen from a page."""
    depth = "../" * docname.count("/")
    return url if "://" in url else depth + url


def add_buttons(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Put the links into the row of buttons at the top of the page."""
    if doctree is None or "header_buttons" not in context:
        return
    for link in links_for(app.env, pagename) + edit_link(app.env, pagename):
        url = relative(app, pagename, link["url"])
        context["header_buttons"].append(
            {
                "type": "link",
                "url": url,
                "icon": link["icon"],
                "tooltip": link["text"],
                "label": "launch",
            }
        )


def resolve(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replace the placeholder of a card by links; other builders than HTML have no such files."""
    for place in list(doctree.findall(launch_buttons)):
        line = nodes.paragraph(classes=["launch"])
        for link in links_for(app.env, docname) if app.builder.format == "html" else ():
            url = relative(app, docname, link["url"])
            line += nodes.reference("", link["text"], refuri=url, classes=["launch-link"])
            line += nodes.Text(" ")
        place.replace_self(line if line.children else [])


def setup(app: Sphinx) -> dict:
    app.add_config_value("launch_repository", os.environ.get("GITHUB_REPOSITORY", ""), "html")
    app.add_config_value("launch_branch", "gh-pages", "html")
    app.add_config_value("launch_source_branch", "main", "html")
    app.add_node(launch_buttons)
    app.connect("html-page-context", add_buttons, priority=502)  # the theme empties the row at 501
    app.connect("doctree-resolved", resolve)
    return {
        "version": "1",
        "env_version": 1,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
