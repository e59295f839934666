"""The same jobs on a Dask cluster: a scheduler and two workers on the loopback interface."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import psutil
import pytest

from engine.cluster import Cluster
from engine.notebook import parse
from engine.runner import Job
from engine.surroundings import python, versions
from sites import CONF, answers, build, page, ran, remember, write_site

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]
HELPER = "VALUE = 'from the helper'\n"
# In place of torch, which takes seconds to import, where a worker is asked for its device.
TORCH = """
class accelerator:
    is_available = staticmethod(lambda: {count} > 0)
    current_accelerator = staticmethod(lambda: type("Device", (), {{"type": {kind!r}}}))
    device_count = staticmethod(lambda: {count})
"""
INDEX = "Book\n====\n\n.. toctree::\n   :glob:\n\n   chapters/*\n"


class Dask:
    """Processes of `dask scheduler` and `dask worker`, each in a folder of its own.

    They can import nothing of this repository. real: not from a stand-in for torch, either.
    """

    def __init__(self, folder: Path, real: bool = False):
        self.folder, self.processes, self.logs = folder, [], []
        self.modules = folder / "modules"
        self.modules.mkdir(parents=True)
        if not real:
            kind, count = device()
            (self.modules / "torch.py").write_text(TORCH.format(kind=kind, count=count))
        self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        wait_for(lambda: re.search(r"tcp://127\.0\.0\.1:\d+", self.log(0)))
        self.address = re.search(r"tcp://127\.0\.0\.1:\d+", self.log(0))[0]

    def start(self, kind: str, *options: str) -> subprocess.Popen:
        own = self.folder / f"{kind}{len(self.processes)}"
        own.mkdir(parents=True)
        self.logs.append(own / "log")
        command = [sys.executable, "-m", "distributed.cli.dask_" + kind, *options]
        environment = {**os.environ, "PYTHONPATH": str(self.modules)}
        with open(own / "log", "w") as log:
            process = subprocess.Popen(command, cwd=own, stdout=log, stderr=log, env=environment)
        self.processes.append(process)
        return process

    def worker(self, *options: str, nanny: bool = False) -> subprocess.Popen:
        limits = ["--nthreads", "1", "--no-dashboard", "--memory-limit", "0"]
        limits += ["--nanny" if nanny else "--no-nanny"]
        process = self.start("worker", self.address, "--host", "127.0.0.1", *limits, *options)
        wait_for(lambda: "Registered to" in self.log(-1))
        return process

    def log(self, n: int) -> str:
        return self.logs[n].read_text()

    def stop(self) -> None:
        for process in reversed(self.processes):
            below = psutil.Process(process.pid).children(recursive=True)
            for one in [process, *below]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def device() -> list:
    """Kind and number of this machine's accelerators."""
    return json.loads(answers())["device"]["value"]


@pytest.fixture
def dask(tmp_path):
    cluster = Dask(tmp_path / "dask")
    yield cluster
    cluster.stop()


@pytest.fixture
def real_dask(tmp_path):
    cluster = Dask(tmp_path / "dask", real=True)
    yield cluster
    cluster.stop()


def book(folder: Path, seconds: float) -> Path:
    files = {"index.rst": INDEX, "notebooks/helper.py": HELPER}
    for name in "abcd":
        code = f"import helper, time\ntime.sleep({seconds})\nprint(helper.VALUE, helper.__file__)\n"
        files[f"chapters/{name}.rst"] = f"{name}\n=\n\n.. cells:: it\n   :part: output\n"
        files[f"notebooks/{name}.py"] = f'# %% [markdown]\n# # N\n\n# %% tags=["it"]\n{code}'
    return write_site(folder, files, CONF.replace("workbench.py", "helper.py"))


def start(folder: Path, address: str) -> subprocess.Popen:
    """A build in a process of its own, which can be sent signals."""
    remember(folder)
    options = ["-n", "-W", "-D", f"notebooks_cluster={address}", str(folder)]
    command = [sys.executable, "-m", "sphinx", *options, str(folder / "_build" / "html")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_the_notebooks_run_on_a_worker_and_come_into_the_same_store(real_dask, tmp_path):
    real_dask.worker()
    folder = book(tmp_path / "book", 0)
    result = build(folder, "-D", f"notebooks_cluster={real_dask.address}")
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(ran(result)) == list("abcd")
    shown = page(folder, "chapters/c").select_one(".cell_output").text
    assert "from the helper" in shown
    assert str(folder) not in shown  # it ran in a temporary folder of the worker
    assert ran(build(folder)) == []  # the keys are those of this machine


def test_the_notebooks_of_a_lost_worker_are_run_again(dask, tmp_path):
    first = dask.worker()
    dask.worker()
    folder = book(tmp_path / "book", 4)
    process = start(folder, dask.address)
    wait_for(lambda: list((folder / ".store").glob("*.ipynb")))  # one has finished, others run
    first.kill()
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert "from the helper" in page(folder, "chapters/d").select_one(".cell_output").text


def test_a_worker_that_differs_is_refused_with_the_difference(dask, tmp_path):
    """The worker's interpreter claims another version of numpy."""
    lie = dask.modules / "sitecustomize.py"
    lie.write_text(
        "import importlib.metadata as m\n"
        "true = m.version\n"
        "m.version = lambda name: '0.1' if name == 'numpy' else true(name)\n"
    )
    dask.worker()
    lie.unlink()
    folder = book(tmp_path / "book", 0)
    alone = build(folder, "-D", f"notebooks_cluster={dask.address}")
    assert alone.returncode != 0
    assert "no worker of" in alone.stderr and "numpy 0.1, here" in alone.stderr
    dask.worker()
    both = build(folder, "-D", f"notebooks_cluster={dask.address}")
    assert "not used: worker" in both.stderr and "numpy 0.1, here" in both.stderr
    assert sorted(ran(both)) == list("abcd")


def test_an_address_without_a_scheduler_is_a_clear_error(tmp_path):
    folder = book(tmp_path / "book", 0)
    result = build(folder, "-D", "notebooks_cluster=tcp://127.0.0.1:9")
    assert result.returncode != 0
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in result.stderr


# ---- workers that come, go and hang ----------------------------------------------------------------


def job(name: str, code: str) -> Job:
    return Job(name, f"{name}.py", nbformat.writes(parse(f"# %%\n{code}\n")))


@pytest.fixture(scope="module")
def here() -> dict:
    """What the workers must have."""
    return {"versions": versions(["numpy"]), "python": python(), "device": device()[0]}


def test_a_scheduler_without_workers_is_waited_for_and_late_workers_are_used(dask, here):
    """As with SLURM, where jobs queue: the first worker comes when the jobs are there already."""
    with Cluster(dask.address, here, patience=60) as pool:
        futures = [pool.submit(job(f"n{i}", f"print({i})")) for i in range(2)]
        time.sleep(8)
        assert not any(future.done() for future in futures)
        dask.worker()
        assert [future.result(60).error for future in futures] == ["", ""]


def test_without_any_worker_the_wait_has_an_end(dask, here):
    with Cluster(dask.address, here, patience=3) as pool:
        outcome = pool.submit(job("n", "1")).result(30)
    assert f"no worker of {dask.address} that can be used for 3 s" in outcome.error


def test_a_worker_that_its_nanny_starts_again_is_used(dask, here):
    dask.worker(nanny=True)
    (nanny,) = [psutil.Process(p.pid) for p in dask.processes[1:]]
    with Cluster(dask.address, here, patience=60) as pool:
        assert pool.submit(job("a", "1")).result(60).error == ""
        for child in nanny.children(recursive=True):
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
        assert pool.submit(job("b", "1")).result(60).error == ""


def test_when_all_workers_have_died_the_wait_has_an_end(dask, here, tmp_path):
    worker = dask.worker()
    with Cluster(dask.address, here, patience=4) as pool:
        future = pool.submit(
            job("n", f"open({str(tmp_path / 'on')!r}, 'w')\nimport time; time.sleep(99)")
        )
        wait_for((tmp_path / "on").exists)
        worker.kill()
        assert "no worker of" in future.result(40).error


def test_a_notebook_that_kills_each_worker_is_given_up_after_three(dask, here, tmp_path):
    code = f"""import os, psutil
open({str(tmp_path / "tries")!r}, "a").write("x")
for process in psutil.Process().parents():
    if any("dask_worker" in word for word in process.cmdline()):
        process.kill()
        break"""
    for _ in range(4):
        dask.worker()
    with Cluster(dask.address, here, patience=30) as pool:
        outcome = pool.submit(job("n", code)).result(90)
    assert "each worker that ran it died" in outcome.error
    assert 1 <= len((tmp_path / "tries").read_text()) <= 3


def test_a_worker_that_is_frozen_does_not_hold_the_build(dask, here, tmp_path):
    first = dask.worker()
    with Cluster(dask.address, here, patience=5, frozen=3) as pool:
        future = pool.submit(
            job("n", f"open({str(tmp_path / 'on')!r}, 'w')\nimport time; time.sleep(30)")
        )
        wait_for((tmp_path / "on").exists)
        psutil.Process(first.pid).suspend()
        assert future.result(60).error


def test_a_scheduler_that_dies_is_named(dask, here, tmp_path):
    dask.worker()
    with Cluster(dask.address, here, patience=60) as pool:
        future = pool.submit(
            job("n", f"open({str(tmp_path / 'on')!r}, 'w')\nimport time; time.sleep(99)")
        )
        wait_for((tmp_path / "on").exists)
        dask.processes[0].kill()
        assert f"the Dask scheduler at {dask.address} is gone" in future.result(60).error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_kernels_on_the_workers_end_with_the_build(dask, tmp_path, number):
    dask.worker()
    process = start(book(tmp_path / "book", 600), dask.address)
    worker = psutil.Process(dask.processes[1].pid)

    def kernels():
        found = []
        for process in worker.children(recursive=True):
            with suppress(psutil.Error):
                found += [process] if "ipykernel_launcher" in process.cmdline() else []
        return found

    wait_for(kernels)
    process.send_signal(number)
    process.communicate(timeout=60)  # leaving a cluster that is silent takes up to 30 s
    assert process.returncode != 0
    wait_for(lambda: not kernels(), 45)
