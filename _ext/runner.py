"""Run one notebook in a kernel of its own, and say what came of it.

This module knows nothing of Sphinx: a job is all that a worker needs, an outcome all that it
returns, and both travel between processes. ``executor`` is where jobs run.
"""

import json
import os
import re
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
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
    _device = f"{_device.type.upper()}, {_torch.get_num_threads()} threads"
print(_json.dumps({"peak": _peak, "device": _device, "data": getattr(_workbench, "sources", [])}))
"""


@dataclass(frozen=True)
class Job:
    """One notebook to run: all that a worker needs to know."""

    docname: str
    path: str
    notebook: str  # as JSON
    timeout: int
    profile: str
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
    error: str = ""  # one line: the exception, the time-out, the death of the kernel
    cell: int = 0  # counted from 1 among all cells
    line: int = 0  # in the .py file
    frames: list[str] = field(default_factory=list)


def run(job: Job) -> Outcome:
    """Run a notebook in a kernel of its own and return what came of it; never raises."""
    nb = nbformat.reads(job.notebook, as_version=4)
    nb.cells.append(nbformat.v4.new_code_cell(PROBE))
    environment = {
        **os.environ,
        "BOOK_BUILD": "1",
        "PROFILE": job.profile,
        "OMP_NUM_THREADS": str(job.threads),  # whatever the caller has set: the same sums each time
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin starve each other when cores are short
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as ipykernel sets it by itself
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    client = NotebookClient(
        nb,
        timeout=job.timeout,
        kernel_name=nb.metadata.get("kernelspec", {}).get("name", "python3"),
        resources={"metadata": {"path": str(Path(job.path).parent)}},
        record_timing=False,
        config=Config(KernelManager={"transport_encryption": "auto"}),  # else each start warns
    )
    start, error = time.perf_counter(), None
    try:
        client.execute(env=environment)
    except Exception as exception:
        error = exception
    seconds = time.perf_counter() - start
    probe = nb.cells.pop()
    if error is None:
        collect(nb, probe, job, seconds)
    outcome = Outcome(job, nbformat.writes(nb), seconds)
    if error is not None or any(not ran(cell) for cell in code_cells(nb)):
        diagnose(outcome, nb, error)
    return outcome


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
    used = imported("\n".join(c.source for c in code_cells(nb)))
    said = json.loads("".join(o.get("text", "") for o in probe.outputs) or "{}")
    nb.metadata["book"] = {
        "results": results,
        "seconds": round(seconds, 1),
        "profile": job.profile,
        "versions": versions(used | ({"torch"} if "workbench" in used else set())),
        "date": time.strftime("%Y-%m-%d"),
        **said,
    }


def diagnose(outcome: Outcome, nb: NotebookNode, error: Exception | None) -> None:
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
        outcome.error = f"the cell ran longer than {outcome.job.timeout} s"
    elif isinstance(error, DeadKernelError):
        outcome.error = "the kernel died: it was killed (out of memory?) or crashed"
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


def executor() -> Executor:
    """Where the jobs run: plain kernels, one after the other."""
    return ThreadPoolExecutor(max_workers=1)
