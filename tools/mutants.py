"""The small mistakes that could be made in a notebook's definitions, for ``mutate.py``.

A mutant is one change of the text: another number or operator, the other flag, an argument, a
layer, a call or a statement left out, two arguments that change places, a layer without its bias or
with another epsilon. Messages, annotations, decorators, strings and definitions that draw (`draw`,
`show`, `plot`) are left alone.

A definition belongs to an experiment if it

- seeds (`seed`), trains (`fit`, `optimizer.step`) or makes an optimiser or schedule (`torch.optim`),
- reads a variable that a running cell makes,
- reads a definition that belongs to an experiment, or
- is a constant that only those, drawings and running cells read.

All others are networks, losses, metrics and data.
"""

import ast
import builtins
import hashlib
import itertools
import re
import symtable
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from loader import is_definition

SWAPPED = {  # operators; the text in the source, and what takes its place
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
BIASED = re.compile(r"(Conv\w*|Linear)$")  # layers with a bias unless it is switched off
NORMS = re.compile(r"(Batch|Layer|Group|Instance|RMS)Norm\w*$")  # layers with an epsilon
CONTAINERS = ("Sequential", "ModuleList", "extend")  # calls whose arguments are layers
# Methods without arguments that compute; others only change the form of what they are called on.
COMPUTES = re.compile(
    r"(abs|sqrt|square|exp|log|sigmoid|relu|tanh|sign|mean|sum|any|all|flatten|eval)$"
)
UNSWAPPED = ("isinstance", "getattr", "equal", "allclose")  # nonsense, or the same
DRAWS = ("draw", "show", "plot")


@dataclass(frozen=True)
class Mutant:
    """One change: the bytes from start to stop of the notebook's text are replaced by `new`."""

    line: int
    definition: str
    start: int
    stop: int
    new: bytes
    experiment: bool = False

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new + source[self.stop :]

    def lines(self, source: bytes) -> tuple[str, str]:
        """The lines that change, as they are and as they become, in one line each."""
        first = source.rfind(b"\n", 0, self.start) + 1
        last = source.find(b"\n", self.stop)
        before, after = source[first:last], source[first : self.start] + self.new
        after += source[self.stop : last]
        return tuple(" ".join(text.decode().split()) for text in (before, after))


class Places:
    """Where the nodes of a tree stand in its source, in bytes."""

    def __init__(self, source: bytes):
        self.source = source
        self.starts = [0, *itertools.accumulate(map(len, source.splitlines(keepends=True)))]

    def start(self, node) -> int:
        return self.starts[node.lineno - 1] + node.col_offset

    def stop(self, node) -> int:
        return self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node) -> bytes:
        return self.source[self.start(node) : self.stop(node)]


def name_of(function: ast.expr) -> str:
    """The last name of what is called: Conv2d of nn.Conv2d(...)."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def inside(node: ast.AST) -> Iterator[ast.AST]:
    """The node and those below it that may change; no annotation, decorator, message or f-string."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "msg", "exc"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield from inside(child)


Change = tuple[int, int, bytes]  # start, stop, what takes their place


def changes(node: ast.AST, places: Places, modules: set[str]) -> Iterator[Change]:
    """The changes of one node alone."""
    for kind, of_kind in KINDS.items():
        if isinstance(node, kind):
            yield from of_kind(node, places, modules)


def of_constant(node: ast.Constant, places, modules) -> Iterator[Change]:
    """Another number, the other flag."""
    new = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: 2 * v or 0.1}
    if type(node.value) in new:
        changed = repr(new[type(node.value)](node.value))
        yield places.start(node), places.stop(node), changed.encode()


def of_operator(node: ast.BinOp | ast.Compare | ast.BoolOp, places, modules) -> Iterator[Change]:
    """Another operator. Lists and strings have no other."""
    if isinstance(node, ast.Compare):
        operands, operators = [node.left, *node.comparators], node.ops
    elif isinstance(node, ast.BoolOp):
        operands, operators = node.values, [node.op]
    else:
        operands, operators = [node.left, node.right], [node.op]
    plain = all(is_scalar(operand) for operand in operands)
    if isinstance(node, ast.BinOp) and not plain or type(operators[0]) not in SWAPPED:
        return
    old, new = (word.encode() for word in SWAPPED[type(operators[0])])
    text, here = b"(" + places.source[places.start(node) : places.stop(operands[0])], operands[0]
    for operand, operator in zip(operands[1:], itertools.cycle(operators)):
        between = places.source[places.stop(here) : places.start(operand)]
        alike = isinstance(operator, type(operators[0]))  # the others of a chain stay
        text += (between.replace(old, new, 1) if alike else between) + places.text(operand)
        here = operand
    text += places.source[places.stop(here) : places.stop(node)] + b")"
    yield places.start(node), places.stop(node), text


def is_scalar(node: ast.expr) -> bool:
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return not is_text and not isinstance(node, (ast.List, ast.Tuple, ast.ListComp, ast.JoinedStr))


def of_sign(node: ast.UnaryOp, places, modules) -> Iterator[Change]:
    """No minus, no "not"."""
    if isinstance(node.op, (ast.USub, ast.Not)):
        yield places.start(node), places.stop(node), b"(" + places.text(node.operand) + b")"


def of_condition(node: ast.If | ast.IfExp, places, modules) -> Iterator[Change]:
    """The other branch, where no operator of the condition can change."""
    if not isinstance(node.test, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
        text = b"(not " + places.text(node.test) + b")"
        yield places.start(node.test), places.stop(node.test), text


def of_call(node: ast.Call, places, modules) -> Iterator[Change]:
    """Arguments left out or in another order, layers without bias, calls left out."""
    name = name_of(node.func)
    yield from of_arguments(node, places, name)
    for layers, argument, word in ((BIASED, "bias", b"bias=False"), (NORMS, "eps", b"eps=1e-3")):
        if layers.match(name) and argument not in [k.arg for k in node.keywords]:
            end = places.stop(node) - 1  # in front of the last parenthesis
            yield end, end, b", " + word
    if name in CONTAINERS:
        yield from without_one(node.args, places)
    if node.keywords:
        return
    base = node.func.value if isinstance(node.func, ast.Attribute) else None
    starred = any(isinstance(argument, ast.Starred) for argument in node.args)
    if len(node.args) == 1 and not starred and not hasattr(builtins, name) and name[:1].islower():
        if base is None or isinstance(base, ast.Name) and base.id in modules | {"self"}:
            argument = places.text(node.args[0])
            yield places.start(node), places.stop(node), b"(" + argument + b")"
    elif not node.args and base is not None and COMPUTES.match(name):
        yield places.start(node), places.stop(node), places.text(base)


def of_arguments(node: ast.Call, places, name: str) -> Iterator[Change]:
    """One keyword less, the last of three or more less, the first two in another order."""
    everything = [*node.args, *(k.value for k in node.keywords)]
    for k in node.keywords:
        flag = isinstance(k.value, ast.Constant) and isinstance(k.value.value, bool)
        if k.arg and not flag:  # without a flag is as with the other one
            yield without(k, everything, k.value, places)
    arguments = node.args
    if any(isinstance(a, ast.Starred) for a in arguments) or name in UNSWAPPED:
        return
    if len(arguments) > 2 and isinstance(arguments[-1], ast.Name):
        yield without(arguments[-1], everything, arguments[-1], places)
    if len(arguments) > 1 and places.text(arguments[0]) != places.text(arguments[1]):
        first, second = arguments[:2]
        between = places.source[places.stop(first) : places.start(second)]
        swapped = places.text(second) + between + places.text(first)
        yield places.start(first), places.stop(second), swapped


def without(node: ast.AST, row: list[ast.AST], value: ast.AST, places) -> Change:
    """Leave out one of a row of arguments or elements, with its comma."""
    i = row.index(value)
    if i:
        return comma(places, row[i - 1]).start(1), places.stop(node), b""
    if len(row) > 1:
        return places.start(node), comma(places, row[0]).end(), b""
    return places.start(node), places.stop(node), b""


def comma(places, node) -> re.Match:
    """The comma behind a node, with the space around it."""
    return re.compile(rb"[\s)]*(,)\s*").match(places.source, places.stop(node))


def without_one(row: list[ast.expr], places) -> Iterator[Change]:
    """A row of layers with one of those that are made in it left out."""
    for element in row if len(row) > 1 else []:
        if isinstance(element, ast.Call):
            yield without(element, row, element, places)


def of_comprehension(node: ast.comprehension, places, modules) -> Iterator[Change]:
    """What a condition leaves out in place of what it lets through."""
    for test in node.ifs:
        if not isinstance(test, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
            yield places.start(test), places.stop(test), b"(not " + places.text(test) + b")"


def of_list(node: ast.List, places, modules) -> Iterator[Change]:
    yield from without_one(node.elts, places)


def of_update(node: ast.AugAssign, places, modules) -> Iterator[Change]:
    """Another operator in front of the equals sign."""
    if type(node.op) in SWAPPED and is_scalar(node.value):
        start, stop = places.stop(node.target), places.start(node.value)
        old, new = (word.encode() + b"=" for word in SWAPPED[type(node.op)])
        yield start, stop, places.source[start:stop].replace(old, new, 1)


def of_statement(node: ast.stmt, places, modules) -> Iterator[Change]:
    """The statement left out, where what follows it still has all its names."""
    if isinstance(node, ast.Expr):
        call = isinstance(node.value, ast.Call)
        drop = call and not ast.unparse(node).startswith("super().__init__")
    elif isinstance(node, ast.Assign):
        target, read = node.targets[0], {n.id for n in ast.walk(node.value) if type(n) is ast.Name}
        of_self = isinstance(target, ast.Attribute) and name_of(target.value) == "self"
        again = isinstance(target, ast.Name) and target.id in read
        drop = again or isinstance(target, (ast.Subscript, ast.Attribute)) and not of_self
    else:
        drop = True
    if drop:
        yield places.start(node), places.stop(node), b"pass"


KINDS: dict[object, Callable] = {
    ast.Constant: of_constant,
    (ast.BinOp, ast.Compare, ast.BoolOp): of_operator,
    ast.UnaryOp: of_sign,
    (ast.If, ast.IfExp): of_condition,
    ast.Call: of_call,
    ast.comprehension: of_comprehension,
    ast.List: of_list,
    ast.AugAssign: of_update,
    (ast.Expr, ast.Assign, ast.AugAssign, ast.Assert): of_statement,
}


def mutants(source: bytes) -> list[Mutant]:
    """All mutants of a notebook, in the order of their lines, each once."""
    tree, places = ast.parse(source), Places(source)
    modules, apart, found = imported(tree), experiments(tree), {}
    for name, top in named(tree).items():
        if name.startswith(DRAWS):
            continue
        body = top.body if isinstance(top, (ast.ClassDef, ast.FunctionDef)) else [top.value]
        if isinstance(top, ast.FunctionDef):
            body = [top.args, *body]
        for node in itertools.chain.from_iterable(map(inside, body)):
            for change in changes(node, places, modules):
                line = source.count(b"\n", 0, change[0]) + 1
                found.setdefault(change, Mutant(line, name, *change, name in apart))
    return sorted(found.values(), key=lambda m: (m.line, m.start, m.stop, m.new))


def named(tree: ast.Module) -> dict[str, ast.stmt]:
    """The classes, functions and constants of a notebook by name."""
    found = {}
    for node in filter(is_definition, tree.body):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node for target in targets}
    return found


def experiments(tree: ast.Module) -> set[str]:
    """The names of the definitions of experiments; the rule stands at the head of this file."""
    tops = named(tree)
    reads = {name: names_read(node) for name, node in tops.items()}
    known = {*tops, *imported(tree), *dir(builtins)}
    apart = {name for name in tops if trains(tops[name]) or reads[name] - known}
    while more := {name for name in tops if name not in apart and reads[name] & apart}:
        apart |= more
    used = {n for n in tops if not n.isupper() and n not in apart and not n.startswith(DRAWS)}
    while more := set().union(*(reads[name] for name in used)) & set(tops) - used:
        used |= more
    return apart | {name for name in tops if name.isupper() and name not in used}


def trains(node: ast.stmt) -> bool:
    """Whether a definition seeds, fits or makes an optimiser or a schedule."""
    calls = [ast.unparse(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)]
    return any(re.search(r"(^|\.)(seed|fit)$|\.step$|\.optim\.", call) for call in calls)


def names_read(node: ast.stmt) -> set[str]:
    """The names that a definition reads and does not make itself."""
    found, tables = set(), [symtable.symtable(ast.unparse(node), "definition", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        top = table.get_type() == "module"
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or top):
                found.add(symbol.get_name())
    return found


def imported(tree: ast.Module) -> set[str]:
    """The names that imports make."""
    found = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    return {(a.asname or a.name).partition(".")[0] for node in found for a in node.names}


def sample(found: list[Mutant], n: int, every: bool, source: bytes, seed: int) -> list[Mutant]:
    """n of those that count, or every one, and of the others as large a share as n would be.

    Which ones depends on the lines they change, so an edit elsewhere leaves the choice as it is.
    """

    def rank(mutant: Mutant) -> bytes:
        words = seed, mutant.definition, *mutant.lines(source)
        return hashlib.sha256(repr(words).encode()).digest()

    counted = sorted((m for m in found if not m.experiment), key=rank)
    apart = sorted((m for m in found if m.experiment), key=rank)
    some = round(n / len(counted) * len(apart)) if counted else n
    chosen = {*(counted if every else counted[:n]), *apart[:some]}
    return [m for m in found if m in chosen]
