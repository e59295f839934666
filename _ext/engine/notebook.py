"""A notebook as the book reads it: a Python file in the percent format, read once.

``read`` makes a record of a file: its cells, the files beside it that it imports, the modules from
elsewhere that it and they import, and, where it cannot be run, the line at which it is wrong. What is
written is what runs: a comment stays a comment (jupytext would make a magic of ``# why?``), a cell is
Python, and a difference between a cell and the lines it was read from is a fault.
"""

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

MARK = re.compile(r"^\s*#\s*%%(%*)(\s|$)")
PERCENT = {"extension": ".py", "format_name": "percent", "comment_magics": False}
EXECUTION_TAGS = {"raises-exception", "skip-execution"}
LIMITS = ("cell", "notebook", "memory")
VERSION = 1  # of what `look` finds


class Fault(Exception):
    """Why a notebook cannot be run: a line of its file (from 1) and what is wrong there."""

    def __init__(self, line: int, message: str):
        super().__init__(message)
        self.line, self.message = line, message


@dataclass(frozen=True)
class Notebook:
    """A notebook file and all that decides about its outputs, except for its surroundings."""

    path: Path
    text: str = field(repr=False)
    files: dict[str, str] = field(repr=False)  # local modules: path from its folder -> text
    imports: frozenset[str]  # top-level modules from elsewhere that it or a local module imports
    found: dict  # what parsing found, see `look`; kept between builds
    fault: Fault | None = None

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def limits(self) -> dict[str, float]:
        """Those that its header sets."""
        return self.found.get("limits", {})

    @cached_property
    def nb(self) -> NotebookNode:
        """The cells, without outputs; of a notebook with a fault, the text as it stands."""
        try:
            return parse(self.text)
        except Fault:
            cell = nbformat.v4.new_markdown_cell(f"# {self.stem}\n\n````python\n{self.text}\n````")
            return nbformat.v4.new_notebook(cells=[cell])

    @cached_property
    def digest(self) -> str:
        """Of code, tags, kernel and local modules: what can change the outputs. Text is not in it."""
        return sha256(
            repr([self.found.get("code"), sorted(self.files.items())]).encode()
        ).hexdigest()


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def code_cells(nb: NotebookNode) -> list[NotebookNode]:
    """The code cells that a kernel is asked to run: empty ones are not."""
    return [c for c in nb.cells if c.cell_type == "code" and c.source.strip()]


def only_imports(source: str) -> bool:
    """Whether a cell does nothing but import."""
    with suppress(SyntaxError):
        return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source).body)
    return False


# ---- cells ---------------------------------------------------------------------------------------


def parse(text: str) -> NotebookNode:
    """The cells of a percent-format text. Raises Fault.

    The 0-based lines of the cell markers go to ``metadata.source_map``, where MyST-NB looks for
    them, so that warnings name true lines. ``alt="..."`` in a cell's header is the alternative text
    of its picture.
    """
    text = text.removeprefix("\ufeff")
    lines = text.splitlines()
    marks = [i for i, line in enumerate(lines) if MARK.match(line)]
    try:
        nb = jupytext.reads(text, fmt=dict(PERCENT))
    except Exception as error:  # tags="it": nbformat refuses the cell, in fifty lines
        raise headers(lines, marks) or Fault(
            1, f"cannot be read as a notebook: {str(error).splitlines()[0]}"
        ) from None
    unmarked = len(nb.cells) - len(marks)
    if nb.cells and nb.cells[0].cell_type == "raw" and nb.cells[0].source.startswith("---"):
        names = ", ".join(re.findall(r"^(\w+):", nb.cells[0].source, re.MULTILINE))
        raise Fault(1, f"the header sets {names} outside of jupyter: indent it below that line")
    if unmarked not in (0, 1):
        raise Fault(1, f"{len(nb.cells)} cells, but {len(marks)} lines that start one: # %%")
    starts = [0] * unmarked + marks
    nb.metadata["source_map"] = starts
    for cell, start, stop in zip(nb.cells, starts, [*starts[1:], len(lines)]):
        check(cell, lines, start, stop)
        cell.metadata.pop("lines_to_next_cell", None)
        if alt := cell.metadata.get("alt"):
            cell.metadata["mystnb"] = {"image": {"alt": alt}}
    return nb


def headers(lines: list[str], marks: list[int]) -> Fault | None:
    """The first marker whose options jupytext cannot use, found by reading it alone."""
    for i in marks:
        try:
            jupytext.reads(f"{lines[i]}\n1\n", fmt=dict(PERCENT))
        except Exception:
            return Fault(i + 1, 'this cell\'s options cannot be used: tags=["a", "b"], alt="words"')
    return None


def check(cell: NotebookNode, lines: list[str], start: int, stop: int) -> None:
    """Raise Fault where a cell has wrong options, is not what its lines say, or is not Python."""
    if not isinstance(cell.metadata.get("alt", ""), str):
        raise Fault(start + 1, f'alt={cell.metadata.alt!r} is no text: alt="words in quotes"')
    body = lines[start + 1 : stop] if MARK.match(lines[start]) else lines[start:stop]
    first = start + 1 + (stop - start - len(body))  # line of the file, from 1, of body[0]
    if cell.cell_type == "markdown" and not "".join(body).lstrip().startswith(('"', "'")):
        for n, line in enumerate(body):
            if line.strip() and not line.startswith("#"):
                raise Fault(first + n, "code in a markdown cell never runs: start a cell with # %%")
    if cell.cell_type != "code":
        return
    lead, own = blank(body), blank(cell.source.splitlines())
    if start and "\n".join(body).strip("\n") != cell.source.strip("\n"):
        pairs = zip(cell.source.splitlines()[own:], body[lead:])
        at = next((i for i, (ran, written) in enumerate(pairs) if ran != written), 0)
        raise Fault(first + lead + at, "would not run as it is written: start a cell with # %%")
    try:
        ast.parse(cell.source)
    except SyntaxError as error:
        line = first + lead - own + (error.lineno or 1) - 1
        raise Fault(line, f"not Python: {error.msg}: {(error.text or '').strip()}") from None


def blank(lines: list[str]) -> int:
    """How many empty lines these begin with."""
    return next((i for i, line in enumerate(lines) if line.strip()), len(lines))


def decode(data: bytes) -> str:
    """UTF-8 text, with or without a byte order mark. Raises Fault at the line that is not."""
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Fault(line, "not UTF-8: save the file in that encoding") from None


# ---- imports -------------------------------------------------------------------------------------


def imported(source: str, package: str = "") -> Iterator[tuple[str, ...]]:
    """Dotted names, as tuples, that Python source may import anywhere in it.

    ``from a import b`` gives a.b too: b may be a module. package: what relative imports start from.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            base += (node.module or "").split(".") if node.module else []
            yield from ((*base, alias.name) for alias in node.names)


class Folder:
    """The modules beside the notebooks, each read and parsed once.

    A module's name is its path in dots: ``workbench.plots`` is ``workbench/plots.py``.
    """

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, tuple[str, set[tuple[str, ...]]]] = {}  # file -> text, imports

    def files_of(self, name: tuple[str, ...]) -> Iterator[str]:
        """The files that importing this name reads: its packages, then the module itself."""
        for n in range(1, len(name) + 1):
            part = "/".join(name[:n])
            for file in (f"{part}/__init__.py", f"{part}.py"):
                if Path(self.path, file).is_file():
                    yield file
                    break

    def read(self, file: str) -> tuple[str, set[tuple[str, ...]]]:
        if file not in self.known:
            try:
                text = decode(Path(self.path, file).read_bytes())
                package = ".".join(Path(file).parent.parts)
                self.known[file] = text, set(imported(text, package))
            except OSError as error:
                raise Fault(1, f"{file}: {error.strerror}") from None
            except Fault as fault:
                raise Fault(1, f"{file}:{fault.line}: {fault.message}") from None
            except SyntaxError as error:
                raise Fault(1, f"{file}:{error.lineno}: not Python: {error.msg}") from None
        return self.known[file]

    def closure(self, names: set[tuple[str, ...]]) -> tuple[dict[str, str], frozenset[str]]:
        """Texts of the local files that these imports reach, and the modules from elsewhere."""
        files, outside, seen = {}, set(), set()
        waiting = set(names)
        while waiting:
            name = waiting.pop()
            seen.add(name)
            local = list(self.files_of(name))
            if not local and not Path(self.path, name[0]).is_dir():
                outside.add(name[0])
            for file in local:
                if file not in files:
                    files[file], more = self.read(file)
                    waiting |= more - seen
        return dict(sorted(files.items())), frozenset(outside - sys.stdlib_module_names)


# ---- the record ----------------------------------------------------------------------------------


def read(path: Path, folder: Folder | None = None, memo: dict[str, dict] | None = None) -> Notebook:
    """The record of a file. What is wrong with it stands in ``fault``; never raises.

    memo: what parsing found in texts, by ``text_key``; a text that is in it is not parsed again.
    """
    text, found, files, imports, fault = "", {}, {}, frozenset(), None
    try:
        try:
            text = decode(path.read_bytes())
        except OSError as error:
            raise Fault(1, f"cannot be read: {error.strerror}") from None
        found = (memo or {}).get(text_key(text)) or look(text)
        names = {tuple(name.split(".")) for name in found["imports"]}
        files, imports = (folder or Folder(path.parent)).closure(names)
        if path.name in files:
            raise Fault(
                1, f"imports {path.stem}, its own name: another module is meant, rename this file"
            )
    except Fault as this:
        fault = this
    return Notebook(path, text, files, imports, found, fault)


def text_key(text: str) -> str:
    return sha256(f"{VERSION} {jupytext.__version__} {text}".encode()).hexdigest()


def look(text: str) -> dict:
    """What has to be known of a text before anything is run, in values that JSON can hold.

    {"code": digest of code cells, execution tags and kernel, "imports": dotted names, "limits"}.
    Raises Fault.
    """
    nb = parse(text)
    names = {name for cell in code_cells(nb) for name in imported(cell.source)}
    return {
        "code": code_digest(nb),
        "imports": sorted(".".join(name) for name in names),
        "limits": own_limits(nb, text),
    }


def code_digest(nb: NotebookNode) -> str:
    """Of the kernel's name and the code cells with their execution tags."""
    code = [(cell.source, sorted(EXECUTION_TAGS & set(tags(cell)))) for cell in code_cells(nb)]
    kernel = nb.metadata.get("kernelspec", {}).get("name", "python3")
    return sha256(repr([code, kernel]).encode()).hexdigest()


def own_limits(nb: NotebookNode, text: str) -> dict[str, float]:
    """What the header says under ``limits:``. Raises Fault for an unknown name or a non-number."""
    own = nb.metadata.get("limits", {})
    sound = isinstance(own, dict) and all(
        name in LIMITS
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and value >= 0
        for name, value in own.items()
    )
    if not sound:
        line = next((i for i, row in enumerate(text.splitlines(), 1) if "limits:" in row), 1)
        given = dict(own) if isinstance(own, dict) else own
        raise Fault(line, f"limits: {given}: there are cell, notebook and memory, numbers from 0")
    return dict(own)
