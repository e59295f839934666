"""Run one notebook in a kernel of its own, and say what came of it.

This module knows nothing of Sphinx: a job is all that a worker needs, an outcome all that it
returns, and both travel between machines. Three limits end a run: seconds for one cell, seconds for
the notebook, and memory of the kernel; each is reported as what it was.
"""

import atexit
import json
import os
import re
import signal
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import psutil
from jupyter_core.utils import ensure_event_loop
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from traitlets.config import Config

from store import code_cells, imported, versions

RESULT = "application/vnd.book.result+json"  # as in notebooks/workbench.py
ANSI = re.compile(r"\x1b\[[0-9;]*m")
PROBE = """
import json as _json, sys as _sys
try:
    import resource as _resource
    _peak = _resource.getrusage(_resource.RUSAGE_SELF).ru_maxrss * (1 if _sys.platform == "darwin" else 1024)
except ImportError:
    _peak = None
_workbench, _torch = _sys.modules.get("workbench"), _sys.modules.get("torch")
_device = getattr(_workbench, "device", None)
if getattr(_device, "type", "cpu") == "cuda":
    _device = _torch.cuda.get_device_name(_device)
elif _device is not None:
    _threads = _torch.get_num_threads()
    _device = f"{_device.type.upper()}, {_threads} thread{'s' * (_threads > 1)}"
print(_json.dumps({"peak": _peak, "device": _device, "data": getattr(_workbench, "sources", [])}))
"""


STOP = threading.Event()  # set: every run ends its kernel and returns


@dataclass(frozen=True)
class Limits:
    """What a run may take; 0 is no limit. A notebook's header may set its own, under ``limits:``."""

    cell: float = 300  # seconds
    notebook: float = 900  # seconds
    memory: float = 0  # GiB, of the kernel and the processes it starts

    @classmethod
    def of(cls, nb: NotebookNode, default: "Limits") -> "Limits":
        """The default with what the header says; an unknown name or a non-number is refused."""
        own = nb.metadata.get("limits", {})
        values = {**vars(default), **own}
        if set(values) != set(vars(default)) or not all(
            isinstance(v, (int, float)) and v >= 0 for v in values.values()
        ):
            raise ValueError(f"limits: {dict(own)}: there are cell, notebook and memory, numbers")
        return cls(**values)


@dataclass(frozen=True)
class Job:
    """One notebook to run: all that a worker needs to know."""

    docname: str
    path: str  # for messages
    notebook: str  # as JSON
    modules: dict[str, str]  # the text of each local module that it imports
    folder: str = ""  # where it runs; "": a temporary folder with the modules in it
    limits: Limits = Limits()
    profile: str = "sample"
    threads: int = 1

    @property
    def stem(self) -> str:
        return Path(self.path).stem


@dataclass
class Outcome:
    """The notebook with its outputs, and what went wrong, if anything did."""

    job: Job
    notebook: str
    seconds: float
    error: str = ""  # one line: the exception, the limit, the death of the kernel
    cell: int = 0  # counted from 1 among all cells
    line: int = 0  # in the .py file
    frames: list[str] = field(default_factory=list)


class Watch(threading.Thread):
    """Ends the kernel of a client when a limit is passed or all runs are to stop, and says why."""

    def __init__(self, client: NotebookClient, limits: Limits):
        super().__init__(daemon=True)
        self.client, self.limits = client, limits
        self.over, self.reason, self.status = threading.Event(), "", None
        self.start()

    def run(self) -> None:
        end = time.monotonic() + (self.limits.notebook or float("inf"))
        while not self.over.wait(0.1):
            process = getattr(getattr(self.client.km, "provisioner", None), "process", None)
            if process is None:
                continue
            self.status = process.poll()
            if STOP.is_set():
                self.reason = "stopped with the build"
            elif time.monotonic() > end:
                self.reason = f"the notebook ran longer than {self.limits.notebook:g} s"
            elif self.limits.memory and memory(process.pid) > self.limits.memory * 2**30:
                self.reason = f"the kernel used more than {self.limits.memory:g} GiB of memory"
            if self.reason:
                with suppress(ProcessLookupError):  # just forked, no group yet: again
                    os.killpg(process.pid, signal.SIGKILL)  # a kernel leads its own group
                    return

    def death(self) -> str:
        """Why the kernel is dead, in words."""
        if self.reason:
            return self.reason
        if self.status == -signal.SIGKILL:
            return "the kernel was killed from outside; a system short of memory does that"
        if self.status is not None and self.status < 0:
            return f"the kernel died of {signal.Signals(-self.status).name}"
        return f"the kernel ended by itself (exit status {self.status})"


def memory(pid: int) -> int:
    """Resident bytes of a process and its children."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])
    return 0


def environment(job: Job) -> dict[str, str]:
    return {**os.environ, **settings(job.threads), "BOOK_BUILD": "1", "PROFILE": job.profile}


def settings(threads: int) -> dict[str, str]:
    """What a process reads when it loads its libraries, whatever the caller has set."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin starve each other when cores are short
        "OPENBLAS_NUM_THREADS": "1",  # more would be threads of the server of warm kernels
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as ipykernel sets it by itself
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def run(job: Job, extra: dict[str, str] | None = None, prepare=None) -> Outcome:
    """Run a notebook in a kernel of its own and return what came of it; never raises.

    extra: more environment. prepare: called with the kernel's manager before it starts one. A
    kernel that dies before it is ready is started again, up to twice: its ports, free when they
    were chosen, may have been taken by another build on this machine before it bound them.
    """
    for _ in range(3):
        outcome, started = attempt(job, extra, prepare)
        if started:
            break
    return outcome


def attempt(job: Job, extra: dict[str, str] | None, prepare) -> tuple[Outcome, bool]:
    """One run, and whether its kernel was ready or was ended on purpose before that."""
    nb = nbformat.reads(job.notebook, as_version=4)
    nb.cells.append(nbformat.v4.new_code_cell(PROBE))
    clock, error = [time.perf_counter()], None
    with ExitStack() as stack:
        folder = job.folder or stack.enter_context(tempfile.TemporaryDirectory())
        if not job.folder:
            for name, source in job.modules.items():
                Path(folder, f"{name}.py").write_text(source, encoding="utf-8")
        client = NotebookClient(
            nb,
            timeout=job.limits.cell or None,
            kernel_name=nb.metadata.get("kernelspec", {}).get("name", "python3"),
            resources={"metadata": {"path": folder}},
            record_timing=False,
            shutdown_kernel="immediate",  # what it printed is here, it has nothing left to do
            on_notebook_start=lambda **_: clock.append(time.perf_counter()),  # the kernel is ready
            config=Config(KernelManager={"transport_encryption": "auto"}),  # else each start warns
        )
        watch = Watch(client, job.limits)
        try:
            client.create_kernel_manager()
            if prepare:
                prepare(client.km)
            client.execute(env={**environment(job), **(extra or {})})
        except Exception as exception:
            error = exception
        finally:
            watch.over.set()
            watch.join()
            atexit.unregister(client._cleanup_kernel)  # nbclient forgets it when a start fails
            ensure_event_loop().close()  # of this thread; nbclient leaves it open
    seconds = time.perf_counter() - clock[-1]
    probe = nb.cells.pop()
    if error is None:
        collect(nb, probe, job, seconds)
    outcome = Outcome(job, nbformat.writes(nb), seconds)
    if error is not None or any(not ran(cell) for cell in code_cells(nb)):
        diagnose(outcome, nb, error, watch)
    return outcome, len(clock) > 1 or bool(watch.reason)


def ran(cell: NotebookNode) -> bool:
    return cell.execution_count is not None or "skip-execution" in cell.metadata.get("tags", [])


def collect(nb: NotebookNode, probe: NotebookNode, job: Job, seconds: float) -> None:
    """Move recorded values out of the outputs and note what the notebook ran on."""
    results = {}
    for cell in code_cells(nb):
        for output in [o for o in cell.outputs if RESULT in o.get("data", {})]:
            value = output["data"][RESULT]
            results[value["name"]] = value["value"]
            cell.outputs.remove(output)
    used = imported("\n".join(c.source for c in code_cells(nb))) - set(job.modules)
    said = json.loads("".join(o.get("text", "") for o in probe.outputs) or "{}")
    nb.metadata["book"] = {
        "results": results,
        "seconds": round(seconds, 1),
        "profile": job.profile,
        "versions": versions(used | ({"torch"} if job.modules else set())),
        "date": time.strftime("%Y-%m-%d"),
        "finished": time.time(),  # tells one run from another of the same key
        **said,
    }


def diagnose(outcome: Outcome, nb: NotebookNode, error: Exception | None, watch: Watch) -> None:
    """Say which cell failed, where it stands in the file, and why."""
    lines = nb.metadata.get("source_map", [])
    cells = [i for i, cell in enumerate(nb.cells) if cell in code_cells(nb)]
    failed = next((i for i in cells if not ran(nb.cells[i])), cells[-1] if cells else 0)
    if isinstance(error, CellExecutionError):
        failed = next(
            (i for i in cells if any(o.output_type == "error" for o in nb.cells[i].outputs)), failed
        )
        outcome.error = f"{error.ename}: {ANSI.sub('', error.evalue)}"
        outcome.frames = ANSI.sub("", error.traceback).strip().splitlines()[-12:]
    elif isinstance(error, CellTimeoutError):
        outcome.error = f"the cell ran longer than {outcome.job.limits.cell:g} s"
    elif isinstance(error, DeadKernelError) or watch.reason:
        outcome.error = watch.death()
    elif error is not None:
        outcome.error = f"{type(error).__name__}: {error}"
    else:
        outcome.error = "the cell did not run"
    outcome.cell = failed + 1
    if failed < len(lines):
        inner = re.findall(
            r"^Cell In\[\d+\], line (\d+)|^\s*line (\d+)", "\n".join(outcome.frames), re.M
        )
        within = int(next(filter(None, inner[0]))) if inner else 0
        outcome.line = lines[failed] + 1 + within
