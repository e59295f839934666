"""Several kernels at once, what ends them, and what a build leaves behind however it ends."""

import json
import os
import random
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import psutil
import pytest

from engine.notebook import code_cells, parse
from engine.pool import Local
from engine.runner import Job, Limits
from engine.surroundings import differences
from loader import EVERY
from sites import CONF, build, page, ran, remember, sphinx, write_site

INDEX = "Book\n====\n\n.. toctree::\n   :glob:\n\n   chapters/*\n"


def many(folder: Path, n: int, code: str = "print({i})") -> Path:
    files = {"index.rst": INDEX}
    for i in range(n):
        files[f"chapters/n{i:03}.rst"] = f"N{i}\n====\n\n.. cells:: it\n"
        files[f"notebooks/n{i:03}.py"] = f'# %% [markdown]\n# # N{i}\n\n# %% tags=["it"]\n' + (
            code.format(i=i) + "\n"
        )
    return write_site(folder, files)


def job(name: str, code: str, limits: Limits = Limits()) -> Job:  # noqa: B008
    return Job(name, f"{name}.py", nbformat.writes(parse(f"# %%\n{code}\n")), limits=limits)


def text(outcome) -> str:
    assert outcome.error == "", outcome.error
    nb = nbformat.reads(outcome.notebook, as_version=4)
    return "".join(o.text for cell in code_cells(nb) for o in cell.outputs)


def test_kernels_run_at_once_and_each_gpu_has_one(monkeypatch, tmp_path):
    """Each waits for the other."""
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "3,5")
    code = f"""import os, pathlib, time
folder = pathlib.Path({str(tmp_path)!r})
(folder / str(os.getpid())).touch()
while len(list(folder.iterdir())) < 2:
    time.sleep(0.05)
print(os.environ["CUDA_VISIBLE_DEVICES"])"""
    with Local(2, gpus=2) as pool:
        futures = [pool.submit(job(f"n{i}", code, Limits(cell=60))) for i in range(2)]
        assert sorted(text(future.result()) for future in futures) == ["3\n", "5\n"]


def test_the_slowest_of_the_last_build_starts_first(tmp_path):
    folder = many(tmp_path, 3)
    for i in range(3):
        (folder / ".store").mkdir(exist_ok=True)
        (folder / ".store" / f"n{i:03}.last").write_text(json.dumps({"key": "", "cpu": 9 * i}))
    assert ran(build(folder, "-D", "notebooks_jobs=1")) == ["n002", "n001", "n000"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("notebooks_memory=lots", "MEM: 'lots': a number from 0 is needed"),
        ("notebooks_memory=nan", "MEM: 'nan'"),
        ("notebooks_jobs=-1", "JOBS: '-1': a whole number from 0 is needed"),
        ("notebooks_jobs=1.5", "JOBS: '1.5'"),
        ("notebooks_force=maybe", "FORCE: 'maybe': 1 or 0 is needed"),
        ("notebooks_warm=on", "WARM: 'on'"),
        ("notebooks_profile=abc", "PROFILE: 'abc': there are sample and full"),
    ],
)
def test_an_option_that_means_nothing_is_refused_in_one_line(tmp_path, option, said):
    result = build(many(tmp_path, 1), "-D", option)
    assert result.returncode != 0
    (line,) = [
        line for line in result.stderr.splitlines() if "needed" in line or "there are" in line
    ]
    assert said in line
    assert "Traceback" not in result.stderr


def descendants(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def start(folder: Path, *options: str) -> subprocess.Popen:
    """A build in a process of its own, which can be sent signals; what it says can be read."""
    command = sphinx(folder, "--no-color", *options)
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def kill(process: subprocess.Popen) -> None:
    """SIGKILL, which no program hears; what it has started ends all the same.

    A server of warm kernels does when it has imported its libraries.
    """
    children = descendants(process) if process.poll() is None else []
    process.kill()
    process.communicate(timeout=60)
    assert not psutil.wait_procs(children, 20)[1]


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("warm", ["0", "1"])
def test_an_interrupt_ends_the_kernels_and_keeps_what_has_finished(tmp_path, number, warm):
    folder = many(tmp_path, 2, "import time; time.sleep({i} * 120)")
    remember(folder)
    process = start(folder, "-q", "-D", "notebooks_jobs=2", "-D", f"notebooks_warm={warm}")
    wait_for(lambda: list((folder / ".store").glob("*.ipynb")))
    children = descendants(process)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    gone, alive = psutil.wait_procs(children, 20)
    assert not alive
    assert len(list((folder / ".store").glob("*.ipynb"))) == 1


KINDS_OF_MOMENTS = [  # with forked kernels or plain ones, and the last words of the build
    ("1", "notebooks to run"),  # the server still imports
    ("1", "[1/4]"),  # a kernel has ended, another runs, a third is started
    ("0", "notebooks to run"),
    ("0", "[1/4]"),
    ("0", "reading sources"),
    ("0", "writing output"),
    ("0", "dumping search index"),
]


def check_the_store(folder: Path) -> None:
    after = build(folder, "-E")
    assert (after.returncode, after.stderr) == (0, "")
    assert page(folder, "chapters/n003").select_one(".cell_output").text.strip() == "3"


@pytest.mark.timeout(600)
def test_a_build_killed_at_each_kind_of_moment_leaves_a_store_that_works(tmp_path):
    folder = many(tmp_path, 4)
    remember(folder)
    for warm, words in KINDS_OF_MOMENTS:
        options = ("-D", f"notebooks_warm={warm}", "-D", "notebooks_force=1")
        process = start(folder, *options)
        assert any(words in line for line in process.stdout), words
        kill(process)
    check_the_store(folder)


@pytest.mark.skipif(not EVERY, reason="takes minutes: with EVERY=1")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("warm", ["0", "1"])
def test_a_build_killed_at_any_moment_leaves_a_store_that_works(tmp_path, warm):
    """Ten times SIGKILL with plain kernels, ten with forked ones."""
    folder = many(tmp_path, 4)
    moments = random.Random(0)
    for _ in range(10):
        process = start(folder, "-D", f"notebooks_warm={warm}", "-D", "notebooks_force=1")
        with suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0.2, 6))
        kill(process)
    check_the_store(folder)


def test_two_builds_of_one_site_at_once_both_succeed(tmp_path):
    folder = many(tmp_path, 3)
    remember(folder)
    plain = ("-D", "notebooks_warm=0")
    other = ["-d", str(folder / "_build" / "other")]
    both = [start(folder, *plain, "-W"), start(folder, *plain, "-W", *other)]
    for process in both:
        process.communicate(timeout=120)
    assert [process.returncode for process in both] == [0, 0]


def test_a_failure_is_also_written_to_a_file(tmp_path):
    folder = many(tmp_path, 1, "1 / 0")
    assert build(folder).returncode != 0
    report = (folder / "_build" / "html" / "reports" / "n000.txt").read_text()
    assert "notebooks/n000.py:13: cell 2: ZeroDivisionError: division by zero" in report
    (folder / "notebooks" / "n000.py").write_text('# %% [markdown]\n# # N\n\n# %% tags=["it"]\n1\n')
    assert build(folder).returncode == 0
    assert not (folder / "_build" / "html" / "reports").exists()


def test_the_status_page_says_what_ran_and_what_came_from_the_store(tmp_path):
    conf = CONF.replace('"launch"]', '"launch", "runs_table"]').replace('"index.rst"', '"*.rst"')
    folder = many(tmp_path, 2)
    slow = folder / "notebooks" / "n000.py"
    slow.write_text(slow.read_text() + "import time\nimport numpy\ntime.sleep(0.3)\n")
    index = INDEX + "   status\n"
    write_site(folder, {"index.rst": index, "status.rst": "Status\n======\n\n.. runs::\n"}, conf)
    assert build(folder).returncode == 0
    rows = [
        [c.text.strip() for c in row.select("td")]
        for row in page(folder, "status").select("tbody tr")
    ]
    assert [row[0] for row in rows] == ["n000", "n001"]
    assert {row[-1] for row in rows} == {"run"}
    edited = folder / "notebooks" / "n001.py"
    edited.write_text(edited.read_text() + "print()\n")
    assert build(folder).returncode == 0
    rows = [
        [c.text.strip() for c in row.select("td")]
        for row in page(folder, "status").select("tbody tr")
    ]
    assert [row[-1] for row in rows] == ["from the store", "run"]
    assert float(rows[0][2]) >= 0.3 and rows[0][4].endswith("MiB") and rows[0][5] == "sample"
    texts = [paragraph.text for paragraph in page(folder, "status").select("article p")]
    assert [text for text in texts if re.fullmatch(r"Versions: .*numpy \d.*\.", text)], texts


def test_the_difference_of_a_worker_is_named():
    here = {"python": ["3", "11"], "device": "cpu", "versions": {"torch": "2.9", "numpy": "2.0"}}
    there = {"python": ["3", "12"], "device": "cuda", "versions": {"numpy": "2.0"}}
    assert list(differences(here, here)) == []
    assert list(differences(here, there)) == [
        "python 3.12, here 3.11",
        "device cuda, here cpu",
        "torch none, here 2.9",
    ]
