"""Links from a chapter and from its notebook's page to the notebook's files.

After a web site has been built ``notebooks/`` of the output holds, beside each page:

    <stem>.ipynb    without outputs; its first cell writes the modules of the book beside it and
                    installs what is missing, so that it runs in Colab, Kaggle or bare Jupyter
    <stem>.py       the source, and the modules that it imports

``engine.export`` makes them, called by ``execution``. Here the ``paper`` card of a chapter gets links to
them; where there is no card, the same links are buttons at the top of the page. The one setting,
``launch_repository`` ("owner/name"), defaults to GITHUB_REPOSITORY and to none: without it there is no
Colab button rather than a wrong one, and no link to report a problem, which the template
``report.html`` shows at the foot of each page.
"""

import os
from pathlib import Path
from urllib.parse import urlencode

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.osutil import relative_uri

from formats import WEB_SITE, can_link

COLAB = "https://colab.research.google.com/github"


class launch_buttons(nodes.General, nodes.Element):
    """Stands in a paper card for the links to the chapter's notebook."""


def buttons_node(docname: str) -> nodes.Element:
    return launch_buttons(docname=docname)


def links_for(app: Sphinx, docname: str) -> list[dict[str, str]]:
    """Links of a page's notebook: text, icon and address as seen from the page.

    Empty for a page without a notebook, and in formats that have no files beside their pages.
    """
    env, config, stem = app.env, app.config, docname.rsplit("/", 1)[-1]
    notebook = f"notebooks/{stem}"
    if (
        app.builder.name not in WEB_SITE
        or docname not in (f"chapters/{stem}", notebook)
        or notebook not in env.all_docs
    ):
        return []
    found = []
    if docname != notebook and can_link(env, app.builder, notebook):
        url = app.builder.get_relative_uri(docname, notebook)
        found.append({"text": "The whole notebook", "icon": "fas fa-book-open", "url": url})
    if config.launch_repository:
        colab = f"{COLAB}/{config.launch_repository}/blob/{config.launch_branch}/{notebook}.ipynb"
        found.append({"text": "Open in Colab", "icon": "fas fa-play", "url": colab})
    here = app.builder.get_target_uri(docname)
    for suffix, icon in ((".ipynb", "fas fa-download"), (".py", "fas fa-file-code")):
        url = relative_uri(here, notebook + suffix)
        found.append({"text": f"Download {suffix}", "icon": icon, "url": url})
    return found


def edit_link(env: BuildEnvironment, docname: str) -> list[dict[str, str]]:
    """Where the source of a page can be edited: on GitHub, when the repository is known."""
    repository, branch = env.config.launch_repository, env.config.launch_source_branch
    if not repository:
        return []
    file = Path(env.doc2path(docname)).relative_to(env.srcdir).as_posix()
    url = f"https://github.com/{repository}/edit/{branch}/{file}"
    return [{"text": "Edit this page", "icon": "fas fa-pencil", "url": url}]


def add_buttons(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Put the links into the row of buttons at the top of the page, if no card has them already."""
    if doctree is None or "header_buttons" not in context:
        return
    in_card = any("launch" in node["classes"] for node in doctree.findall(nodes.paragraph))
    links = [] if in_card else links_for(app, pagename)
    for link in links + edit_link(app.env, pagename):
        context["header_buttons"].append(
            {
                "type": "link",
                "url": link["url"],
                "icon": link["icon"],
                "tooltip": link["text"],
                "label": "launch",
            }
        )


def report(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """An issue form of the repository with title and address of the page filled in."""
    repository = app.config.launch_repository
    if not repository:
        return
    title = app.env.titles.get(pagename)
    title = title.astext() if title else context.get("title", pagename)
    address = context.get("pageurl") or pagename
    form = urlencode({"title": f"{title}: ", "body": f"Page: {address}\n\n"})
    context["report_url"] = f"https://github.com/{repository}/issues/new?{form}"


def resolve(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replace the placeholder of a card by links, if there are any."""
    for place in list(doctree.findall(launch_buttons)):
        line = nodes.paragraph(classes=["launch"])
        for link in links_for(app, place["docname"]):
            line += nodes.reference("", link["text"], refuri=link["url"], classes=["launch-link"])
            line += nodes.Text(" ")
        place.replace_self(line if line.children else [])


def name_tags(app: Sphinx) -> None:
    """For ``.. only::``: a page promises what this build has, ``downloads`` and ``colab``."""
    if app.builder.name in WEB_SITE:
        app.tags.add("downloads")
        if app.config.launch_repository:
            app.tags.add("colab")


def setup(app: Sphinx) -> dict:
    app.add_config_value("launch_repository", os.environ.get("GITHUB_REPOSITORY", ""), "html")
    app.add_config_value("launch_branch", "gh-pages", "html")
    app.add_config_value("launch_source_branch", "main", "html")
    app.add_node(launch_buttons)
    app.connect("builder-inited", name_tags)
    app.connect("html-page-context", add_buttons, priority=502)  # the theme empties the row at 501
    app.connect("html-page-context", report)
    app.connect("doctree-resolved", resolve)
    return {
        "version": "1",
        "env_version": 2,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
