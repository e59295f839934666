"""One notebook in a kernel of its own: whatever it does, an outcome comes back and nothing stays."""

import json
import os
import sys
import threading
import time

import nbformat
import psutil
import pytest

from engine import runner
from engine.notebook import code_cells, parse
from engine.runner import Job, Limits, run, terminal

RECORD = """
from IPython.display import display

def record(name, value):
    display({"application/vnd.book.result+json": {"name": name, "value": value}}, raw=True)
"""


def job(code: str, files: dict[str, str] | None = None, **limits: float) -> Job:
    nb = nbformat.writes(parse(f"# %%\n{code}\n"))
    return Job("n", "n.py", nb, files or {}, limits=Limits(**limits))


def notebook(outcome) -> nbformat.NotebookNode:
    assert outcome.error == "", outcome.error
    return nbformat.reads(outcome.notebook, as_version=4)


def printed(outcome) -> str:
    return "".join(o.text for cell in code_cells(notebook(outcome)) for o in cell.outputs)


def alive(mark: str) -> list[psutil.Process]:
    """Processes whose command line has this word."""
    return [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])]


@pytest.mark.parametrize(
    ("code", "limits", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", {}, "killed from outside"),
        ("import os; os.abort()", {}, "the kernel died of SIGABRT"),
        ("import os; os._exit(7)", {}, "the kernel ended by itself (exit status 7)"),
        ("import time; time.sleep(30)", {"cell": 1}, "the cell ran longer than 1 s"),
        ("import time; time.sleep(60)", {"notebook": 3}, "the notebook ran longer than 3 s"),
        ("x = b'1' * 2**30\nimport time; time.sleep(60)", {"memory": 0.5}, "more than 0.5 GiB"),
    ],
)
def test_what_ends_a_run_is_reported_as_what_it_is(code, limits, message):
    outcome = run(job(code, **limits))
    assert message in outcome.error
    assert (outcome.cell, outcome.line) == (1, 1)


def test_an_expected_exception_and_a_skipped_cell_are_no_failure():
    nb = parse('# %% tags=["raises-exception"]\n1 / 0\n\n# %% tags=["skip-execution"]\nnever()\n')
    assert run(Job("n", "n.py", nbformat.writes(nb))).error == ""


def test_recorded_values_leave_the_outputs():
    nb = notebook(run(job(RECORD + "record('x', 3)\nprint('seen')")))
    assert nb.metadata["book"]["results"] == {"x": 3}
    assert [o.output_type for o in nb.cells[0].outputs] == ["stream"]


def test_recorded_values_leave_the_outputs_of_a_run_that_failed():
    outcome = run(job(RECORD + "record('x', 3)\nprint('seen')\n1 / 0"))
    nb = nbformat.reads(outcome.notebook, as_version=4)
    assert [o.output_type for o in nb.cells[0].outputs] == ["stream", "error"]


def test_a_thread_that_prints_on_does_not_spoil_what_the_kernel_is_asked():
    code = """import threading, time
def chatter():
    while True:
        print("chatter", flush=True)
        time.sleep(0.002)
threading.Thread(target=chatter, daemon=True).start()
print = lambda *a, **k: None
display = repr = dict = str = None"""
    book = notebook(run(job(code))).metadata["book"]
    assert book["peak"] > 10 * 2**20


def test_a_fault_of_the_engine_costs_the_notebook_and_not_the_build(monkeypatch):
    def broken(*_):
        raise KeyError("of our own")

    monkeypatch.setattr(runner, "recorded", broken)
    outcome = run(job("1"))
    assert outcome.error == "KeyError: 'of our own'"
    assert any("broken" in frame for frame in outcome.frames)


def test_what_ran_is_what_was_sent(tmp_path, monkeypatch):
    """The module's file is changed meanwhile, and another of its name lies in the folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper.py").write_text("X = 'of the folder'\n")
    files = {"helper.py": "from package.part import X\n", "package/part.py": "X = 'sent'\n"}
    assert printed(run(job("import helper\nprint(helper.X)", files))) == "sent\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["helper.py"]


@pytest.mark.parametrize("how", ["it ends", "it is killed", "it takes too long", "the build stops"])
def test_a_child_in_a_session_of_its_own_ends_with_its_kernel(how, tmp_path):
    mark = f"book-{os.getpid()}-{len(how)}"
    code = f"""import subprocess, sys
child = "import os, time; os.fork(); os.setsid(); os.fork(); time.sleep(600)"
command = [sys.executable, "-c", child, {mark!r}]
subprocess.Popen(command, start_new_session=True)
import os, pathlib, time
time.sleep(1)
pathlib.Path({str(tmp_path)!r}, "started").touch()
""" + {"it ends": "", "it is killed": "os.kill(os.getpid(), 9)"}.get(how, "time.sleep(60)")
    stop, limits = threading.Event(), {"cell": 4} if how == "it takes too long" else {}
    found = []

    def watch():
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
        found.extend(alive(mark))
        if how == "the build stops":
            stop.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    outcome = run(job(code, **limits), stop=stop)
    watcher.join()
    assert bool(outcome.error) is (how != "it ends")
    assert len(found) >= 1 or how in ("it ends", "it is killed")
    gone, left = psutil.wait_procs(alive(mark), 5)
    assert not left


def test_a_private_startup_file_and_style_do_not_reach_a_kernel(tmp_path, monkeypatch):
    startup = tmp_path / "ipython" / "profile_default" / "startup" / "mine.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("secret = 'from my profile'\n")
    (tmp_path / "start.py").write_text("secret = 'from PYTHONSTARTUP'\n")
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\n")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "start.py"))
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path))
    code = "import matplotlib\nprint('secret' in globals(), matplotlib.rcParams['lines.linewidth'])"
    assert printed(run(job(code))) == "False 1.5\n"


def test_another_python3_among_the_users_kernels_is_not_taken(tmp_path, monkeypatch):
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = ["/no/such/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "mine", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert printed(run(job("import sys\nprint(sys.executable)"))) == f"{sys.executable}\n"


def test_two_runs_have_the_same_order_of_words_in_a_set():
    code = "print(list(set('a b c d e f g h i j k'.split())))"
    assert printed(run(job(code))) == printed(run(job(code)))


def test_a_kernel_that_dies_before_it_is_ready_is_started_again():
    """The first two commands end at once, as when a port is taken; the third is a kernel."""
    starts = []

    def prepare(manager):
        starts.append(manager)
        if len(starts) < 3:
            failing = [sys.executable, "-c", "raise SystemExit(1)", "-f", "{connection_file}"]
            manager.kernel_spec.argv = failing

    assert printed(run(job("print('ran')"), prepare=prepare)) == "ran\n"
    assert len(starts) == 3


def test_a_kernel_that_never_starts_is_a_failure():
    def prepare(manager):
        manager.kernel_spec.argv = [sys.executable, "-c", "raise SystemExit(1)"]

    outcome = run(job("1"), prepare=prepare)
    assert "died before replying" in outcome.error or "the kernel ended" in outcome.error


def test_shared_memory_counts_once():
    """Two children share 400 MiB of their parent: 1.2 GiB resident, 0.4 used."""
    code = """import os, time
block = b"1" * (400 * 2**20)
for _ in range(2):
    if os.fork() == 0:
        sum(block[::4096])
        time.sleep(60)
time.sleep(3)
"""
    assert run(job(code, memory=0.9)).error == ""


@pytest.mark.parametrize(
    ("code", "least"),
    [
        ("print('x' * 3_000_000)", 200_000),
        ("for i in range(100_000): print('line', i)", 200_000),
        ("'y' * 3_000_000", 200_000),
        ("class H:\n    def _repr_html_(self): return 'z' * 3_000_000\nH()", 0),
    ],
    ids=["one line", "many lines", "a value", "html"],
)
def test_an_output_beyond_any_page_is_cut_with_a_notice(code, least):
    nb = notebook(run(job(code)))
    texts = [o.get("text", "") + "".join(o.get("data", {}).values()) for o in nb.cells[0].outputs]
    assert least <= len("".join(texts)) < 201_000
    assert sum(text.count("output cut after 200 kB") for text in texts) == 1


def test_parts_of_a_stream_are_one_and_keep_their_place():
    code = """import sys, time
for i in range(30):
    print(i, end=" ", flush=True)
    time.sleep(0.01)
display(1)
print("after")
print("wrong", file=sys.stderr)
"""
    outputs = notebook(run(job(code))).cells[0].outputs
    assert [o.get("name", "shown") for o in outputs] == ["stdout", "shown", "stdout", "stderr"]
    assert outputs[0].text == "".join(f"{i} " for i in range(30))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10%\r50%\r100%\n", "100%\n"),
        ("a\r\nb\r\n", "a\nb\n"),
        ("abc\b\bx", "ax"),
        ("done\r", "done"),
        ("plain", "plain"),
    ],
)
def test_a_stream_is_shown_as_a_terminal_leaves_it(text, shown):
    assert terminal(text) == shown


def test_a_long_line_is_merged_in_no_time():
    begin = time.perf_counter()
    terminal("x\b" * 150_000 + "\r" + "y" * 300_000)
    assert time.perf_counter() - begin < 1


BURN = """
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
"""


def test_cpu_seconds_are_those_of_the_cells_after_the_imports():
    slow = f"import time\n{BURN}\nburn(1.5)\n"
    text = f"# %%\nimport slow\nimport time\n\n# %%\n{BURN}\nburn(0.6)\n\n# %%\ntime.sleep(1)\n"
    nb = notebook(run(Job("n", "n.py", nbformat.writes(parse(text)), {"slow.py": slow})))
    imports, burning, waiting = (cell.metadata["cpu"] for cell in nb.cells)
    assert imports > 1.4
    assert 0.5 < burning < 1.4
    assert waiting < 0.5
    assert nb.metadata["book"]["cpu"] == pytest.approx(burning + waiting, abs=0.1)
    assert nb.metadata["book"]["seconds"] > 3


def test_cpu_seconds_of_processes_that_a_cell_starts_count():
    child = "import time; t = time.process_time\nwhile t() < 0.8: pass"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    assert notebook(run(job(code))).metadata["book"]["cpu"] > 0.7
