"""Forked kernels behave as plain ones and end with the build."""

import os
import signal
import subprocess
import sys
import threading
import time

import nbformat
import psutil
import pytest

from engine import warm
from engine.notebook import code_cells, parse, read
from engine.runner import Job, Limits, run
from loader import NOTEBOOKS, ROOT

pytestmark = [
    pytest.mark.skipif(not warm.possible(), reason="kernels are forked on Linux only"),
    pytest.mark.xdist_group("warm"),
]


@pytest.fixture(scope="module")
def server():
    server = warm.Server(threads=1)
    yield server
    server.close()
    assert server.process.returncode == 0


def job(text: str, **limits: float) -> Job:
    return Job("n", "n.py", nbformat.writes(parse(text)), limits=Limits(**limits))


def outputs(outcome) -> list:
    assert outcome.error == "", outcome.error
    return [cell.outputs for cell in code_cells(nbformat.reads(outcome.notebook, as_version=4))]


def test_the_server_has_one_thread_and_no_accelerator(server):
    server.ask(op="poll", pid=0)
    assert server.threads == 1
    maps = f"/proc/{server.process.pid}/maps"
    with open(maps) as lines:
        assert "/dev/nvidia" not in lines.read()


@pytest.mark.parametrize(
    "line", ["from transformers import BertModel", "from diffusers import UNet2DModel"]
)
def test_libraries_that_import_torchao_log_nothing(server, line):
    text = f"# %%\nimport torch\n{line}\n"
    for one in (run(job(text, cell=120), server=server), run(job(text, cell=120))):
        said = str(outputs(one))
        assert "_pytree" not in said and "torchao" not in said


def test_a_forked_kernel_gives_the_outputs_of_a_plain_one(server):
    text = """# %%
import os, sys
import matplotlib.pyplot as plt
import torch
from torch import nn
print(sys.path[-1], os.listdir(), sys.argv[0].rpartition("/")[2], __name__)

# %%
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
x = torch.rand(64, 1, 28, 28)
loss = model(x).square().mean()
loss.backward()
loss.item(), torch.get_num_threads()

# %%
plt.plot([1, 2, 3]);

# %%
import warnings
warnings.warn("seen")

# %%
get_ipython().system('echo from the shell')
"""
    plain, forked = run(job(text)), run(job(text), server=server)
    first, second = outputs(plain), outputs(forked)
    assert any("image/png" in o.get("data", {}) for o in first[2])
    for a, b in zip(first, second):
        for one in (*a, *b):  # a warning quotes the kernel's process number
            if "text" in one:
                one["text"] = one["text"].split("/ipykernel_")[0]
        assert a == b


def test_the_real_notebook_gives_the_same_outputs_forked(server):
    notebook = read(NOTEBOOKS / "lenet.py")
    short = notebook.text[: notebook.text.index("# ## Training")].rpartition("# %%")[0]
    one = Job("lenet", "lenet.py", nbformat.writes(parse(short)), notebook.files)
    assert outputs(run(one)) == outputs(run(one, server=server))


def test_a_forked_kernel_reports_how_it_ended(server):
    killed = run(job("# %%\nimport os, signal; os.kill(os.getpid(), 9)\n"), server=server)
    assert "killed from outside" in killed.error
    ended = run(job("# %%\nimport os; os._exit(7)\n"), server=server)
    assert ended.error == "the kernel ended by itself (exit status 7)"


def test_a_forked_kernel_can_be_interrupted(server):
    text = "# %%\nimport time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
    begin = time.monotonic()
    outcome = run(job(text, cell=2), server=server)
    assert outcome.error == "the cell ran longer than 2 s"
    assert time.monotonic() - begin < 20


def test_two_forked_kernels_draw_different_random_numbers(server):
    text = "# %%\nimport random, numpy, torch\nrandom.random(), numpy.random.rand(), torch.rand(()).item()\n"
    seen = [outputs(run(job(text), server=server))[0][0]["data"]["text/plain"] for _ in range(2)]
    one, two = (eval(text) for text in seen)
    assert all(a != b for a, b in zip(one, two))


def test_kernels_and_what_they_started_end_when_the_build_is_killed(tmp_path):
    """SIGKILL to the process that asked: the server sees the link close and ends what it forked."""
    code = f"""
import sys, threading
sys.path.insert(0, {str(ROOT / "_ext")!r})
import nbformat
from engine import warm
from engine.notebook import parse
from engine.runner import Job, run
text = "# %%\\nimport os, subprocess, time\\n"
text += "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\\n"
text += "open({str(tmp_path / "pids")!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}} {{child.pid}}\\\\n')\\n"
text += "time.sleep(600)\\n"
server = warm.Server(1) if sys.argv[1] == "warm" else None
run(Job("n", "n.py", nbformat.writes(parse(text))), server=server)
"""
    for kind in ("warm", "plain"):
        build = subprocess.Popen([sys.executable, "-c", code, kind])
        pids = tmp_path / "pids"
        wait_for(lambda: pids.exists() and pids.read_text().endswith("\n"))  # noqa: B023
        found = [psutil.Process(int(n)) for n in pids.read_text().split()]
        pids.unlink()
        build.kill()
        build.wait()
        gone, alive = psutil.wait_procs(found, 15)
        assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE], kind


def test_a_keeper_ends_its_kernel_also_when_the_build_had_gone_before_it_started(tmp_path):
    """Its parent is another process by then: the build is the one that has asked for it."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    kernel = [sys.executable, "-c", "import time; time.sleep(60)"]
    command = [sys.executable, "-I", "-S", "-c", warm.KEEPER, str(gone.pid), *kernel]
    assert subprocess.run(command, timeout=30).returncode == -signal.SIGKILL


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def test_a_run_whose_server_is_killed_is_started_again_without_one_at_once(tmp_path):
    server = warm.Server(1)
    text = f"# %%\nimport os, time\nopen({str(tmp_path)!r} + '/' + str(os.getpid()), 'w')\n"
    text += f"if len(os.listdir({str(tmp_path)!r})) == 1: time.sleep(600)\nprint('done')\n"
    killer = threading.Thread(
        target=lambda: (wait_for(lambda: os.listdir(tmp_path)), server.process.kill())
    )
    killer.start()
    begin = time.monotonic()
    assert outputs(run(job(text), server=server))[0][0].text == "done\n"
    assert time.monotonic() - begin < 30
    killer.join()
    first, second = sorted(os.listdir(tmp_path))  # the first kernel went with its server
    assert not any(psutil.pid_exists(int(pid)) for pid in (first, second))
    begin = time.monotonic()
    assert outputs(run(job("# %%\nprint('again')\n"), server=server))[0][0].text == "again\n"
    assert time.monotonic() - begin < 20
    server.close()


def test_a_server_that_still_imports_is_ended_at_once():
    server = warm.Server(1)
    begin = time.monotonic()
    server.close()
    assert time.monotonic() - begin < 3
    assert server.process.returncode is not None


def test_warm_kernels_can_be_switched_off(monkeypatch):
    monkeypatch.setitem(os.environ, "WARM", "0")
    assert not warm.possible()
