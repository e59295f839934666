"""The mutation check: which mistakes it makes, and what it says of a tiny chapter."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loader import NOTEBOOKS, ROOT
from mutants import experiments, mutants

SETTINGS = """
[tool.pytest.ini_options]
pythonpath = ["tests"]
"""
NOTEBOOK = """\
# %%
import math

# %%
SIDE = 3


def area(side, scale=1.0):
    \"\"\"A number and a word: 4.\"\"\"
    assert side > 0, f"no side of {side + 1}"
    return scale * side**2


def half(n):
    return n // 2 if n % 2 == 0 else math.floor(n / 2)


def countdown(n):
    while n:
        n -= 1
    return n


def draw_area():
    return area(SIDE + 1)


def trained(model):
    return model.fit(3)


# %%
raise SystemExit("a running cell")
"""
TESTS = """\
import pytest
from loader import definitions

net = definitions("tiny")


def test_area():
    assert net.area(3) == 9
    assert net.area(3, 2.0) == 18
    assert net.area(1) == 1
    with pytest.raises(AssertionError):
        net.area(0)


def test_half():
    assert net.half(8) == 4


def test_countdown():
    assert net.countdown(5) == 0
"""


@pytest.fixture
def project(tmp_path):
    """A chapter "tiny" with the tools beside it."""
    files = {
        "pyproject.toml": SETTINGS,
        "notebooks/tiny.py": NOTEBOOK,
        "tests/chapters/test_tiny.py": TESTS,
        "tests/loader.py": (ROOT / "tests" / "loader.py").read_text(),
        "reproduction/__init__.py": "",
        "reproduction/definitions.py": (ROOT / "reproduction" / "definitions.py").read_text(),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "tools").mkdir()
    for name in ("mutate.py", "mutants.py"):
        shutil.copy(ROOT / "tools" / name, tmp_path / "tools")
    return tmp_path


def run(project: Path, *options: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": "tests", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "tools/mutate.py", "tiny", *options]
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_holes_are_reported_kills_counted_and_nothing_is_written(project):
    before = contents(project)
    result = run(project, "--all", "--limit", "1")
    assert contents(project) == before
    found = len([m for m in mutants(NOTEBOOK.encode()) if not m.experiment])
    survivors = result.stdout.count("half\n")
    row = f"| tiny | {found - survivors} of {found} | {(found - survivors) / found:.1%} |"
    assert row in result.stdout, result.stdout + result.stderr
    hole = "notebooks/tiny.py:15 half\n  - return n // 2 if n % 2 == 0 else math.floor(n / 2)\n  + "
    assert hole + "return n // 2 if n % 2 == 0 else math.floor((n * 2))" in result.stdout
    assert "tiny.py:8 area" not in result.stdout
    assert "countdown" not in result.stdout  # one that counts up has no end and is killed
    assert result.returncode == 1


def test_equal_programs_are_named_beside_the_tool_and_not_counted(project):
    test = project / "tests" / "chapters" / "test_tiny.py"
    test.write_text(TESTS + "    assert [net.half(n) for n in (1, 3, 6)] == [0, 1, 3]\n")
    holes = run(project, "--all", "--limit", "1")
    survivors = [line[4:] for line in holes.stdout.splitlines() if "+ return n" in line]
    assert len(survivors) > 2
    entries = [
        "[[tiny]]\ndefinition = 'half'\n"
        "line = 'return n // 2 if n % 2 == 0 else math.floor(n / 2)'\n"
        f"becomes = '{line}'\nreason = 'both branches round down'\n"
        for line in survivors
    ]
    (project / "tools" / "equal_programs.toml").write_text("\n".join(entries))
    result = run(project, "--all", "--limit", "1")
    assert result.stdout.count("notebooks/tiny.py") == result.stdout.count("(experiment)") == 2
    assert "| 100.0% | 0 of 2 |" in result.stdout
    assert result.returncode == 0


def test_a_sample_is_the_same_each_time_and_another_with_another_seed(project):
    rows = [run(project, "-n", "6", "--limit", "1", "--seed", seed) for seed in ("1", "1", "2")]
    first, second, third = (r.stdout.split("| s |")[0] for r in rows)
    assert " of 6 |" in rows[0].stdout
    assert first == second != third


def test_an_entry_for_no_mutant_is_a_fault(project):
    text = "[[tiny]]\ndefinition = 'half'\nline = 'x'\nbecomes = 'y'\nreason = 'z'\n"
    (project / "tools" / "equal_programs.toml").write_text(text)
    result = run(project, "-n", "1")
    assert "equal_programs.toml names no mutant: ('half', 'x', 'y')" in result.stdout
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\ndef test_red():\n    assert net.half(1) == 1\n", "fail without a mutant"),
        ("\n\nHALF = net.half(2)\n", "tiny.py is run while its tests are collected"),
        ("\n\nimport no_such_module\n", "No module named 'no_such_module'"),
    ],
)
def test_tests_that_cannot_judge_are_a_fault(project, text, message):
    test = project / "tests" / "chapters" / "test_tiny.py"
    test.write_text(TESTS + text)
    result = run(project, "-n", "1")
    assert message in result.stdout + result.stderr
    assert "1 of 1" not in result.stdout
    assert result.returncode == 1


MADE = [  # a statement of a function f(x, y, module), and what it becomes
    ("return x * 3", ["(x / 3)", "x * 4"]),
    ("return [x] * 3", ["[x] * 4"]),
    ("return x - x * 0.5", ["(x + x * 0.5)", "x - (x / 0.5)", "x - x * 1.0"]),
    ("return x <= 1 and y", ["(x <= 1 or y)", "(x < 1) and y", "x <= 2 and y"]),
    ("return 0 < x <= y", ["(0 <= x <= y)", "1 < x <= y"]),
    ("return x if y else 0", ["x if (not y) else 0", "x if y else 1"]),
    ("return not x", ["(x)"]),
    ("x += y", ["x -= y", "pass"]),
    ("x[0] = y", ["x[1] = y", "pass"]),
    ("z = abs(x)", []),
    ("x = torch.relu(x)", ["x = (x)", "pass"]),
    ("return x.square()", ["x"]),
    ("assert x, 'a message of 3'", ["pass"]),
    ("raise ValueError(3)", []),
    ("return f'{x + 1}'", []),
    ("module.zero_(x)", ["pass"]),
    ("return [m for m in x if isinstance(m, y)]", ["[m for m in x if (not isinstance(m, y))]"]),
    ("return pool(3, 2, ceil=True)", ["pool(2, 3, ceil=True)", "pool(4, 2, ceil=True)"]
     + ["pool(3, 3, ceil=True)", "pool(3, 2, ceil=False)"]),
    ("return conv(x, y, module)", ["conv(y, x, module)", "conv(x, y)"]),
    ("return nn.Linear(x, y)", ["nn.Linear(y, x)", "nn.Linear(x, y, bias=False)"]),
    ("return nn.BatchNorm2d(x)", ["nn.BatchNorm2d(x, eps=1e-3)"]),
    ("return nn.Sequential(y(), *x, nn.ReLU())", ["nn.Sequential(*x, nn.ReLU())"]
     + ["nn.Sequential(y(), *x)"]),
    ("return [y(), nn.ReLU()]", ["[nn.ReLU()]", "[y()]"]),
    ("return F.pad(x, y, value=x)", ["F.pad(y, x, value=x)", "F.pad(x, y)"]),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "expected"), MADE, ids=[s for s, _ in MADE])
def test_each_kind_of_mistake_is_made_once(statement, expected):
    source = f"import torch\n\ndef f(x: int | None, y, module) -> 3:\n    {statement}\n".encode()
    found = [m.lines(source)[1].removeprefix("return ") for m in mutants(source)]
    assert sorted(found) == sorted(expected)


def test_definitions_of_experiments_are_those_that_train_or_read_what_cells_make():
    source = """
RATE, SIZES = 0.1, 3
WIDTH = 8
STEPS = 100
COLOUR = 5
def network(width=WIDTH): return width
def gradients(x): return x.backward()
def fresh(n): seed(n); return network()
def schedule(x): return torch.optim.SGD(x, 1)
def run(x): return fresh(x) * STEPS
def measured(x): return x + validation
def draw_all(): return COLOUR
validation = 3
"""
    apart = experiments(ast.parse(source))
    assert apart == {"fresh", "schedule", "run", "measured", "STEPS", "COLOUR", "torch"} - {"torch"}


def test_mutants_of_a_real_notebook_are_programs_and_change_definitions_alone():
    source = (NOTEBOOKS / "lenet.py").read_bytes()
    found = mutants(source)
    assert len(found) > 200
    for mutant in found[::10]:
        ast.parse(mutant.apply(source))
        assert mutant.apply(source) != source
        assert source.splitlines()[mutant.line - 1].strip()
