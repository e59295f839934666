"""Export each notebook as one self-contained file, and link to it from its pages.

After an HTML build ``notebooks/`` of the output holds, beside each page ``<stem>.html``:

    <stem>.ipynb    without outputs; its first cell writes workbench.py beside it and installs what
                    an import test finds missing, so that it runs in Colab, Kaggle or bare Jupyter
    <stem>.py       the source, and workbench.py, which it imports

Chapters and notebook pages get buttons for them; the ``paper`` card shows the same links. The one
setting, ``launch_repository`` ("owner/name"), defaults to GITHUB_REPOSITORY and to none: without it
there is no Colab button rather than a wrong one. Without Sphinx::

    python _ext/launch.py notebooks _build/notebooks
"""

import ast
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
from docutils import nodes
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.osutil import relative_uri

from formats import WEB_SITE, can_link
from store import code_cells, imported, parse, providers

SHARED = "workbench"
COLAB = "https://colab.research.google.com/github"
NOT_FOR_READERS = {"alt", "mystnb"}  # metadata that only the site uses
SETUP = """#@title Run this cell first: it writes workbench.py and installs what is missing {{display-mode: "form"}}
import importlib, importlib.util, subprocess, sys
from pathlib import Path

MARK = "# Written by the first cell of a notebook; edits are lost when it runs again.\\n"
SOURCE = \'\'\'{source}\'\'\'

shared = Path("{shared}.py")
if not shared.exists() or shared.read_text(encoding="utf-8").startswith(MARK):
    shared.write_text(MARK + SOURCE, encoding="utf-8")

PACKAGES = {packages}
DATA = {data}  # taken for the files inside them: their own requirements are not needed
for packages, options in ((PACKAGES, []), (DATA, ["--no-deps"])):
    missing = [line for name, line in packages.items() if importlib.util.find_spec(name) is None]
    if missing:
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *options, *missing], check=True)
importlib.invalidate_caches()
if str(Path.cwd()) not in sys.path:
    sys.path.insert(0, str(Path.cwd()))
"""


class launch_buttons(nodes.General, nodes.Element):
    """Stands in a paper card for the links to the chapter's notebook."""


def buttons_node(docname: str) -> nodes.Element:
    return launch_buttons(docname=docname)


def data_packages(workbench: str, code: str) -> list[str]:
    """Packages whose data this code reads: those in the functions of the workbench that it names."""
    named = set(re.findall(r"\w+", code))
    found = set()
    for function in ast.parse(workbench).body:
        if not isinstance(function, ast.FunctionDef) or function.name not in named:
            continue
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "package_file":
                found.add(ast.literal_eval(call.args[0]))
    return sorted(found)


def distribution(module: str) -> str:
    """What pip calls the package that provides a module."""
    return (providers(module) or [module])[0]


def pinned(requirements: Path) -> dict[str, str]:
    """{package: "package==version"} of a requirements file."""
    lines = re.findall(r"^([\w.-]+)==(\S+)", requirements.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: f"{name}=={version}" for name, version in lines}


def export(path: Path, site: str = "") -> NotebookNode:
    """The notebook of that file as a reader gets it: self-contained, without outputs.

    site: address of the built site, for the links to chapters; without one they become plain text.
    """
    nb = parse(path.read_text(encoding="utf-8"))
    code = "\n".join(cell.source for cell in code_cells(nb))
    shared, source, data = path.with_name(f"{SHARED}.py"), "", []
    if SHARED in imported(code) and shared.is_file():
        source = shared.read_text(encoding="utf-8")
        data = data_packages(source, code)
    pins = pinned(path.parent.parent / "requirements-data.txt") if data else {}
    names = (imported(code) | imported(source)) - {SHARED} - set(sys.stdlib_module_names)
    setup = SETUP.format(
        source=source.replace("\\", "\\\\").replace("'''", "\\'\\'\\'"),
        shared=SHARED,
        packages={name: distribution(name) for name in sorted(names)},
        data={name: pins.get(distribution(name), distribution(name)) for name in data},
    )
    folded = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["setup"]}
    for cell in nb.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k not in NOT_FOR_READERS}
        if cell.cell_type == "markdown":
            cell.source = links(cell.source, site)
    nb.cells.insert(0, nbformat.v4.new_code_cell(setup, metadata=folded))
    for i, cell in enumerate(nb.cells):
        cell.id = f"cell-{i}"  # the same file each time
    nb.metadata = NotebookNode(
        kernelspec=nb.metadata["kernelspec"],
        language_info={"name": "python"},
        colab={"provenance": [], "toc_visible": True},
    )
    nbformat.validate(nb)
    return nb


def links(text: str, site: str) -> str:
    """Point links between source files to the site's pages."""
    pattern = r"\[([^\]]+)\]\(\.\./(chapters/[\w-]+)\.rst\)"
    return re.sub(pattern, rf"[\1]({site.rstrip('/')}/\2.html)" if site else r"\1", text)


def export_all(source: Path, target: Path, site: str = "") -> list[Path]:
    """Write all notebooks of a folder, and the Python files themselves, into another.

    A notebook is a file whose header names a kernel; the others are modules beside them.
    """
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted(source.glob("*.py")):
        shutil.copy(path, target)
        if "kernelspec" in parse(path.read_text(encoding="utf-8")).metadata:
            written.append(target / f"{path.stem}.ipynb")
            nbformat.write(export(path, site), written[-1])
    return written


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
    """Put the links into the row of buttons at the top of the page."""
    if doctree is None or "header_buttons" not in context:
        return
    for link in links_for(app, pagename) + edit_link(app.env, pagename):
        context["header_buttons"].append(
            {
                "type": "link",
                "url": link["url"],
                "icon": link["icon"],
                "tooltip": link["text"],
                "label": "launch",
            }
        )


def resolve(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replace the placeholder of a card by links, if there are any."""
    for place in list(doctree.findall(launch_buttons)):
        line = nodes.paragraph(classes=["launch"])
        for link in links_for(app, place["docname"]):
            line += nodes.reference("", link["text"], refuri=link["url"], classes=["launch-link"])
            line += nodes.Text(" ")
        place.replace_self(line if line.children else [])


def write_files(app: Sphinx, exception: Exception | None) -> None:
    source = Path(app.srcdir, "notebooks")
    if exception is None and app.builder.name in WEB_SITE and source.is_dir():
        export_all(source, Path(app.outdir, "notebooks"), app.config.html_baseurl)


def written_files(app: Sphinx) -> list[Path]:
    """What the links lead to; see ``leftovers``."""
    sources = [path.relative_to(app.srcdir) for path in Path(app.srcdir, "notebooks").glob("*.py")]
    notebooks = [name for name in sources if name.with_suffix("").as_posix() in app.env.found_docs]
    names = sources + [name.with_suffix(".ipynb") for name in notebooks]
    return [Path(app.outdir, name) for name in names]


def setup(app: Sphinx) -> dict:
    app.setup_extension("leftovers")
    app.add_config_value("launch_repository", os.environ.get("GITHUB_REPOSITORY", ""), "html")
    app.add_config_value("launch_branch", "gh-pages", "html")
    app.add_config_value("launch_source_branch", "main", "html")
    app.add_node(launch_buttons)
    app.connect("html-page-context", add_buttons, priority=502)  # the theme empties the row at 501
    app.connect("doctree-resolved", resolve)
    app.connect("build-finished", write_files)
    app.connect("files-beside-pages", written_files)
    return {
        "version": "1",
        "env_version": 2,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: launch.py FOLDER_OF_NOTEBOOKS TARGET_FOLDER")
    for written in export_all(Path(sys.argv[1]), Path(sys.argv[2]), os.environ.get("SITE_URL", "")):
        print(written)
