"""Forked kernels behave as plain ones and end with the build."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

import warm
from loader import NOTEBOOKS, ROOT
from runner import Job, Limits, run
from store import code_cells, parse

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


def job(tmp_path, text: str, **limits: float) -> Job:
    path = tmp_path / "n.py"
    path.write_text(text)
    return Job("n", str(path), nbformat.writes(parse(text)), {}, str(tmp_path), Limits(**limits))


def outputs(outcome) -> list:
    assert outcome.error == "", outcome.error
    return [cell.outputs for cell in code_cells(nbformat.reads(outcome.notebook, as_version=4))]


def test_the_server_has_one_thread_and_no_accelerator(server):
    server.ask(op="poll", pid=0)
    assert server.threads == 1
    maps = f"/proc/{server.process.pid}/maps"
    with open(maps) as lines:
        assert "/dev/nvidia" not in lines.read()


def test_a_forked_kernel_gives_the_outputs_of_a_plain_one(server, tmp_path):
    text = """# %%
import os, sys
import matplotlib.pyplot as plt
import torch
from torch import nn
print(os.getcwd(), sys.path[-1], sys.argv[0].rpartition("/")[2], __name__)

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
!echo from the shell
"""
    plain, forked = run(job(tmp_path, text)), run(job(tmp_path, text), prepare=server.use)
    first, second = outputs(plain), outputs(forked)
    assert any("image/png" in o.get("data", {}) for o in first[2])
    for a, b in zip(first, second):
        for one in (*a, *b):  # a warning quotes the kernel's process number
            if "text" in one:
                one["text"] = one["text"].split("/ipykernel_")[0]
        assert a == b


def test_the_real_notebook_gives_the_same_outputs_forked(server):
    path = NOTEBOOKS / "lenet.py"
    text = path.read_text(encoding="utf-8")
    short = text[: text.index("# ## Training")].rpartition("# %%")[0]  # all but the training
    nb = nbformat.writes(parse(short))
    one = Job("lenet", str(path), nb, {}, str(NOTEBOOKS))
    assert outputs(run(one)) == outputs(run(one, prepare=server.use))


def test_a_forked_kernel_reports_how_it_ended(server, tmp_path):
    killed = run(
        job(tmp_path, "# %%\nimport os, signal; os.kill(os.getpid(), 9)\n"), prepare=server.use
    )
    assert "killed from outside" in killed.error
    ended = run(job(tmp_path, "# %%\nimport os; os._exit(7)\n"), prepare=server.use)
    assert ended.error == "the kernel ended by itself (exit status 7)"


def test_a_forked_kernel_can_be_interrupted(server, tmp_path):
    text = "# %%\nimport time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
    begin = time.monotonic()
    outcome = run(job(tmp_path, text, cell=2), prepare=server.use)
    assert outcome.error == "the cell ran longer than 2 s"
    assert time.monotonic() - begin < 20


def test_two_forked_kernels_draw_different_random_numbers(server, tmp_path):
    text = "# %%\nimport random, numpy, torch\nrandom.random(), numpy.random.rand(), torch.rand(()).item()\n"
    seen = [
        outputs(run(job(tmp_path, text), prepare=server.use))[0][0]["data"]["text/plain"]
        for _ in range(2)
    ]
    one, two = (eval(text) for text in seen)
    assert all(a != b for a, b in zip(one, two))


def test_kernels_end_when_the_build_is_killed(tmp_path):
    """SIGKILL to the process that asked: the server sees the link close and ends what it forked."""
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT / "_ext")!r})
import warm
server = warm.Server(1)
file = {str(tmp_path / "connection.json")!r}
pid = server.ask(op="fork", arguments=["-f", file], cwd={str(tmp_path)!r}, env=dict(os.environ))["pid"]
print(server.process.pid, pid, flush=True)
server.process.wait()
"""
    build = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = [int(n) for n in build.stdout.readline().split()]
    assert all(psutil.pid_exists(pid) for pid in pids)
    build.send_signal(signal.SIGKILL)
    build.wait()
    build.stdout.close()
    gone, alive = psutil.wait_procs([psutil.Process(p) for p in pids if psutil.pid_exists(p)], 15)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("own_group", [True, False])
def test_a_kernel_is_ended_before_and_after_it_has_a_group_of_its_own(own_group):
    script = "sleep 60 & echo $!; wait" if own_group else "echo 0; exec sleep 60"
    command = ["sh", "-c", script]
    kernel = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=own_group)
    started = int(kernel.stdout.readline())
    warm.end(kernel.pid)
    assert kernel.wait(5) == -signal.SIGKILL
    kernel.stdout.close()
    if own_group:  # what it had started ends too
        gone, alive = psutil.wait_procs(
            [psutil.Process(started)] if psutil.pid_exists(started) else [], 5
        )
        assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_warm_kernels_can_be_switched_off(monkeypatch):
    monkeypatch.setitem(os.environ, "WARM", "0")
    assert not warm.possible()
