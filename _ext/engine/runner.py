"""Run one notebook in a kernel of its own, and say what came of it.

A job is all that is needed, an outcome all that comes back, and both travel between machines. The
notebook runs in an empty folder with the local modules that it imports, as a reader's export does, so
that what ran is what was sent. Three limits end a run: seconds for one cell, seconds for the
notebook, and memory of the kernel; each is reported as what it was. Whatever a notebook does, ``run``
returns an outcome.
"""

import atexit
import os
import re
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import psutil
from jupyter_core.utils import ensure_event_loop
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from traitlets.config import Config

from .notebook import code_cells, only_imports, tags
from .surroundings import versions
from .warm import Server, end, provide, settings

RESULT = "application/vnd.book.result+json"  # as in notebooks/workbench
FACTS = "application/vnd.book.facts+json"
ANSI = re.compile(r"\x1b\[[0-9;]*m")
MOST = 200_000  # characters of text that one cell may leave
PROBE = f"""
import sys as _sys
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
    _device = f"{{_device.type.upper()}}, {{_threads}} thread{{'s' * (_threads > 1)}}"
_data = [str(_source) for _source in getattr(_workbench, "sources", [])]
from IPython.display import display as _display
_display({{"{FACTS}": {{"peak": _peak, "device": _device, "data": _data}}}}, raw=True)
"""


@dataclass(frozen=True)
class Limits:
    """What a run may take; 0 is no limit. A notebook's header may set its own, under ``limits:``."""

    cell: float = 300  # seconds
    notebook: float = 900  # seconds
    memory: float = 0  # GiB, of the kernel and the processes it starts


@dataclass(frozen=True)
class Job:
    """One notebook to run: all that a worker needs to know."""

    docname: str
    path: str  # for messages
    notebook: str  # as JSON
    files: dict[str, str] = field(default_factory=dict)  # local modules: path -> text
    imports: tuple[str, ...] = ()  # modules from elsewhere, whose versions are noted
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


class Client(NotebookClient):
    """Keeps of what a cell prints, and of each text it shows, no more than ``MOST`` characters."""

    printed: tuple[int, int] = (-1, 0)  # cell and characters so far

    def note_cpu(self, cell, **_) -> None:
        """How much the kernel has used so far, in the metadata of the cell that has just run."""
        process = getattr(getattr(self.km, "provisioner", None), "process", None)
        if process is not None:
            cell.metadata["cpu"] = cpu_seconds(process.pid)

    def output(self, outs, msg, display_id, cell_index):
        content = msg["content"]
        if msg["msg_type"] == "stream":
            before = self.printed[1] if self.printed[0] == cell_index else 0
            self.printed = (cell_index, before + len(content["text"]))
            if before > MOST:
                return None
            if before + len(content["text"]) > MOST:
                content["text"] = content["text"][: MOST - before] + notice()
        for kind, value in content.get("data", {}).items():
            if kind.startswith("text/") and isinstance(value, str) and len(value) > MOST:
                content["data"][kind] = (
                    value[:MOST] + notice() if kind == "text/plain" else notice()
                )
        return super().output(outs, msg, display_id, cell_index)


def notice() -> str:
    return f"\n[output cut after {MOST // 1000} kB]\n"


class Watch(threading.Thread):
    """Ends the kernel of a client when a limit is passed or all runs are to stop, and says why."""

    def __init__(self, client: NotebookClient, limits: Limits, stop: threading.Event):
        super().__init__(daemon=True)
        self.client, self.limits, self.stop = client, limits, stop
        self.over, self.reason, self.status = threading.Event(), "", None
        self.start()

    def run(self) -> None:
        limit = time.monotonic() + (self.limits.notebook or float("inf"))
        while not self.over.wait(0.1):
            process = self.process()
            if process is None:
                continue
            self.status = process.poll()
            if self.status is not None:
                return
            if self.stop.is_set():
                self.reason = "stopped with the build"
            elif time.monotonic() > limit:
                self.reason = f"the notebook ran longer than {self.limits.notebook:g} s"
            elif self.limits.memory and memory(process.pid, self.limits.memory * 2**30):
                self.reason = f"the kernel used more than {self.limits.memory:g} GiB of memory"
            if self.reason:
                end(process)

    def process(self):
        return getattr(getattr(self.client.km, "provisioner", None), "process", None)

    def death(self) -> str:
        """Why the kernel is dead, in words."""
        if self.reason:
            return self.reason
        if self.status == -signal.SIGKILL:
            return "the kernel was killed from outside; a system short of memory does that"
        if self.status is not None and self.status < 0:
            return f"the kernel died of {signal.Signals(-self.status).name}"
        return f"the kernel ended by itself (exit status {self.status})"


def memory(keeper: int, limit: float) -> bool:
    """Whether the processes below a keeper use more than these bytes.

    Resident memory counts pages that several of them share for each; only where that passes the
    limit the exact share of each is summed, which takes longer to ask for.
    """
    return all(total(keeper, measure) > limit for measure in (lambda p: p.memory_info().rss, share))


def total(keeper: int, measure: Callable[[psutil.Process], float]) -> float:
    """Sum of a measure over the processes below a keeper; where there is none, of the kernel."""
    found = 0.0
    with suppress(psutil.Error):
        process = psutil.Process(keeper)
        for one in process.children(recursive=True) or [process]:
            with suppress(psutil.Error):
                found += measure(one)
    return found


def cpu_seconds(keeper: int) -> float:
    """User and system time of a kernel and the processes it has started, ended ones included."""
    return total(keeper, lambda process: sum(process.cpu_times()[:4]))


def share(process: psutil.Process) -> int:
    """Proportional memory of a process: what it shares counts in part; Linux, else all it holds."""
    full = process.memory_full_info()
    return getattr(full, "pss", None) or full.uss


def environment(job: Job, home: str) -> dict[str, str]:
    """What a kernel starts with: the caller's environment without what changes results by stealth."""
    private = ("PYTHONSTARTUP", "PYTHONWARNINGS", "MPLSTYLE", "IPYTHONDIR", "MATPLOTLIBRC")
    kept = {k: v for k, v in os.environ.items() if k not in private}
    data = os.path.abspath(os.environ.get("DATA_ROOT", "data"))
    run = {"BOOK_BUILD": "1", "PROFILE": job.profile, "DATA_ROOT": data}
    return {**kept, **settings(job.threads, home), **run}


def run(
    job: Job,
    extra: dict[str, str] | None = None,
    server: Server | None = None,
    stop: threading.Event | None = None,
    prepare=None,
) -> Outcome:
    """Run a notebook in a kernel of its own and return what came of it; never raises.

    extra: more environment. server: what the kernel is forked from. stop: ends the run when set.
    prepare: called with the kernel's manager before it starts one. A kernel that dies before it is
    ready is started again, up to twice: its ports, free when they were chosen, may have been taken by
    another build on this machine before it bound them. One that ends because its server did is
    started anew, without a server.
    """
    stop = stop or threading.Event()
    begin = time.perf_counter()
    try:
        for _ in range(3):
            outcome, started = attempt(job, extra or {}, server, stop, prepare)
            lost = server is not None and server.gone and bool(outcome.error)
            if stop.is_set() or (started and not lost):
                break
            server = None if lost else server
        return outcome
    except Exception as error:  # a fault of this program; it costs this notebook, not the build
        frames = traceback.format_exc().strip().splitlines()[-12:]
        seconds = time.perf_counter() - begin
        return Outcome(
            job, job.notebook, seconds, f"{type(error).__name__}: {error}", frames=frames
        )


def attempt(job: Job, extra, server, stop, prepare) -> tuple[Outcome, bool]:
    """One run, and whether its kernel was ready or was ended on purpose before that."""
    nb = nbformat.reads(job.notebook, as_version=4)
    nb.cells.append(nbformat.v4.new_code_cell(PROBE))
    clock, error = [time.perf_counter()], None
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        for name, source in job.files.items():
            file = Path(folder, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source, encoding="utf-8")
        client = Client(
            nb,
            timeout=job.limits.cell or None,
            kernel_name=nb.metadata.get("kernelspec", {}).get("name", "python3"),
            resources={"metadata": {"path": folder}},
            record_timing=False,
            shutdown_kernel="immediate",  # what it printed is here, it has nothing left to do
            on_notebook_start=lambda **_: clock.append(time.perf_counter()),  # the kernel is ready
            on_cell_executed=lambda **reply: client.note_cpu(**reply),
            config=Config(KernelManager={"transport_encryption": "auto"}),  # else each start warns
        )
        watch = Watch(client, job.limits, stop)
        try:
            client.create_kernel_manager()
            provide(client.km, server)
            if prepare:
                prepare(client.km)
            client.execute(env={**environment(job, home), **extra})
        except Exception as exception:
            error = exception
        finally:
            watch.over.set()
            watch.join()
            if (
                process := watch.process()
            ) is not None:  # nbclient did not end it: the start failed
                watch.status = process.poll() if watch.status is None else watch.status
                end(process)
            atexit.unregister(client._cleanup_kernel)  # nbclient forgets it when a start fails
            ensure_event_loop().close()  # of this thread; nbclient leaves it open
    seconds = time.perf_counter() - clock[-1]
    probe = nb.cells.pop()
    for cell in code_cells(nb):
        cell.outputs = joined(cell.outputs)
    results = recorded(nb)
    if error is None:
        nb.metadata["book"] = book(results, nb, probe, job, seconds)
    outcome = Outcome(job, nbformat.writes(nb), seconds)
    if error is not None or any(not ran(cell) for cell in code_cells(nb)):
        diagnose(outcome, nb, error, watch)
    return outcome, len(clock) > 1 or bool(watch.reason)


def ran(cell: NotebookNode) -> bool:
    return cell.execution_count is not None or "skip-execution" in tags(cell)


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs in their order, neighbouring parts of one stream in one, as a terminal shows them."""
    found: list[NotebookNode] = []
    parts: list[str] = []
    for output in [*outputs, NotebookNode(output_type="end")]:
        last = found[-1] if found else NotebookNode(output_type="none")
        if last.output_type == "stream" and last.get("name") != output.get("name"):
            last["text"], parts = terminal("".join(parts)), []
        if output.output_type == "stream":
            parts.append(output.text)
            if parts[1:]:
                continue
        found.append(output)
    return found[:-1]


def terminal(text: str) -> str:
    """What stays of a text when carriage returns and backspaces have done what they do."""
    if "\r" not in text and "\b" not in text:
        return text
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        line = line.rstrip("\r").rpartition("\r")[2]
        kept: list[str] = []
        for character in line if "\b" in line else ():
            if character == "\b":
                del kept[-1:]
            else:
                kept.append(character)
        lines.append("".join(kept) if "\b" in line else line)
    return "\n".join(lines)


def recorded(nb: NotebookNode) -> dict:
    """Take the recorded values out of the outputs, also of a run that failed: no page shows them."""
    results = {}
    for cell in code_cells(nb):
        for output in [o for o in cell.outputs if RESULT in o.get("data", {})]:
            value = output["data"][RESULT]
            results[value["name"]] = value["value"]
            cell.outputs.remove(output)
    return results


def book(results: dict, nb: NotebookNode, probe: NotebookNode, job: Job, seconds: float) -> dict:
    """The recorded values, and what the notebook ran on."""
    facts: dict = {}
    for output in probe.outputs:
        facts = output.get("data", {}).get(FACTS, facts)
    return {
        "results": results,
        "seconds": round(seconds, 1),
        "cpu": since_imports(nb),
        "profile": job.profile,
        "versions": versions(job.imports),
        "date": time.strftime("%Y-%m-%d"),
        "finished": time.time(),  # tells one run from another of the same key
        "peak": facts.get("peak"),
        "device": facts.get("device"),
        "data": [str(source) for source in facts.get("data") or []],
    }


def since_imports(nb: NotebookNode) -> float:
    """CPU seconds of the cells after those that only import.

    Turns what was counted up to each cell's end into what the cell itself used. Importing is not
    the notebook's own cost: a kernel forked from a warm process has done it already.
    """
    before, own, importing = 0.0, 0.0, True
    for cell in code_cells(nb):
        now = cell.metadata.get("cpu", before)
        cell.metadata["cpu"] = round(now - before, 2)
        importing = importing and only_imports(cell.source)
        own += 0 if importing else now - before
        before = now
    return round(own, 1)


def diagnose(outcome: Outcome, nb: NotebookNode, error: Exception | None, watch: Watch) -> None:
    """Say which cell failed, where it stands in the file, and why."""
    lines = nb.metadata.get("source_map", [])
    code = code_cells(nb)
    cells = [i for i, cell in enumerate(nb.cells) if any(cell is other for other in code)]
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
