"""The workers of a Dask scheduler in place of this machine.

What travels is the notebook with its local modules, and the files of this package under a name made
of their content, so a worker needs the Python environment and no file of this repository. Each
worker, also one that comes late or that its nanny has started again, compares itself with the
building machine and offers a resource when it has the same versions, Python and device;
jobs ask for that resource. A run whose task is cancelled, because the build was stopped or is gone,
ends its kernel.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from .runner import Job, Limits, Outcome, run
from .surroundings import ask_torch, differences, python, versions

TRIES = 3  # a notebook whose worker dies is given to another, this often in all


class Refused(Exception):
    """There is no scheduler, or none of its workers can stand in for this machine."""


# ---- on the worker -------------------------------------------------------------------------------


def here_and_there(modules: list[str]) -> dict:
    """What decides about the numbers that a notebook prints here: as in the key of a run."""
    return {"versions": versions(modules), "python": python(), "device": ask_torch()[0]}


def compare(here: dict) -> list[str]:
    """In which facts this machine differs from the building one."""
    try:
        return differences(here, here_and_there(sorted(here["versions"])))
    except RuntimeError as error:
        return [str(error)]


def run_there(job: dict) -> dict:
    """Run a job; it ends when its task is no longer wanted."""
    from distributed import get_worker
    from distributed.worker import thread_state

    worker, key = get_worker(), thread_state.key
    stop, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            task = worker.state.tasks.get(key)
            if task is None or task.state == "cancelled" or worker.status.name != "running":
                stop.set()

    threading.Thread(target=watch, daemon=True).start()
    try:
        limits = Limits(**job["limits"])
        outcome = run(Job(**{**job, "limits": limits}), stop=stop)
    finally:
        over.set()
    return {name: value for name, value in vars(outcome).items() if name != "job"}


# ---- what travels --------------------------------------------------------------------------------


def shipped() -> Callable:
    """A function that imports this module on a worker. It carries the files of the package.

    Dask sends a named function by its name, which a worker cannot import, and a nested one by value:
    what travels is nested here and below, and names nothing of this package.
    """
    files = {p.name: p.read_text("utf-8") for p in sorted(Path(__file__).parent.glob("*.py"))}
    package = f"book_engine_{sha256(repr(files).encode()).hexdigest()[:16]}"

    def load():
        import atexit
        import importlib
        import shutil
        import sys
        import tempfile
        from pathlib import Path

        try:
            return importlib.import_module(f"{package}.cluster")
        except ModuleNotFoundError:
            folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        Path(folder, package).mkdir()
        for name, text in files.items():
            Path(folder, package, name).write_text(text, encoding="utf-8")
        sys.path.append(folder)
        importlib.invalidate_caches()
        return importlib.import_module(f"{package}.cluster")

    return load


def offer(load: Callable, here: dict, resource: str):
    """The plugin that each worker runs when it starts or hears of it."""
    from distributed import WorkerPlugin

    class Offer(WorkerPlugin):
        """Compares the worker with the building machine; it offers itself where nothing differs."""

        different = None

        async def setup(self, worker):
            ask = worker.loop.run_in_executor
            self.different = await ask(None, lambda: load().compare(here))
            slots = 0 if self.different else worker.state.nthreads
            await worker.set_resources(**{resource: slots})

    return Offer()


# ---- on the building machine ---------------------------------------------------------------------


def bounded(seconds: float, function: Callable, *arguments, **options):
    """Call a function that a worker which does not answer could hold for ever.

    Raises TimeoutError; the call goes on in a thread of its own then.
    """
    answer: Future = Future()

    def call() -> None:
        try:
            answer.set_result(function(*arguments, **options))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return answer.result(seconds)


class Cluster:
    """Jobs for the workers of a scheduler, with the face of ``pool.Local``.

    here: versions, Python and device that a worker must share. patience: seconds without any worker
    that can be used, while jobs wait, after which the build gives up. frozen: seconds after which a
    worker that has not been heard of does not count. Raises Refused.
    """

    def __init__(self, address: str, here: dict, patience: float = 300, frozen: float = 60):
        try:
            from distributed import Client
        except ImportError as error:
            raise Refused("CLUSTER needs Dask: pip install distributed") from error
        try:
            self.client = Client(address, timeout="20s", set_as_default=False)
        except (OSError, ValueError) as error:
            said = str(error) or type(error).__name__
            raise Refused(f"no Dask scheduler answers at {address}: {said}") from error
        self.address, self.patience, self.frozen = address, patience, frozen
        self.jobs: dict[Future, Job] = {}  # what has been submitted and has no outcome
        self.tasks: dict[Future, object] = {}  # what of it the scheduler has
        self.lock, self.over = threading.Lock(), threading.Event()
        self.load = shipped()
        self.resource = f"book-{sha256(repr(here).encode()).hexdigest()[:16]}"  # offered for `here`
        plugin = offer(self.load, here, self.resource)
        try:
            bounded(60, self.client.register_plugin, plugin, name=self.resource)
            different = self.differing()
        except Exception as error:
            bounded(5, self.client.close)
            said = str(error) or type(error).__name__
            raise Refused(f"the workers of {address} do not answer: {said}") from error
        self.notes = [f"worker {n}: {', '.join(d)}" for n, d in different.items() if d]
        if self.notes and len(self.notes) == len(different):  # one that has none yet may get some
            bounded(5, self.client.close)
            raise Refused(f"no worker of {address} can be used: {'; '.join(self.notes)}")
        self.watcher = threading.Thread(target=self.watch, daemon=True)

    def __enter__(self) -> "Cluster":
        self.watcher.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.over.set()
        self.watcher.join(15)
        with suppress(Exception):
            bounded(5, self.client.cancel, list(self.tasks.values()), force=True)
        with suppress(Exception):
            bounded(10, self.client.close, timeout=5)

    def differing(self) -> dict[str, list[str]]:
        """In what each worker differs; asked until all know, at most a minute."""
        name, end = self.resource, time.monotonic() + 60
        while True:
            said = bounded(
                30,
                self.client.run,
                lambda dask_worker: getattr(dask_worker.plugins.get(name), "different", None),
                on_error="ignore",
            )
            if all(found is not None for found in said.values()) or time.monotonic() > end:
                return {worker: found for worker, found in said.items() if found is not None}
            time.sleep(0.2)

    def submit(self, job: Job) -> Future:
        future: Future = Future()
        future.set_running_or_notify_cancel()
        with self.lock:
            self.jobs[future] = job
        return future

    def send(self, future: Future) -> None:
        """Give a job to the scheduler; a task whose worker dies is tried again, ``TRIES`` in all."""
        load, job = self.load, self.jobs[future]
        task = self.client.submit(
            lambda job: load().run_there(job),
            asdict(job),
            resources={self.resource: 1},
            pure=False,
        )
        self.tasks[future] = task
        key, retries = task.key, TRIES - 1

        async def limit(dask_scheduler) -> None:  # of this task; the scheduler has one for all
            import asyncio

            for _ in range(200):  # it may not have heard of the task yet
                if known := dask_scheduler.tasks.get(key):
                    least = dask_scheduler.allowed_failures - retries
                    known.suspicious = max(known.suspicious, least)
                    return
                await asyncio.sleep(0.01)

        self.client.run_on_scheduler(limit)

    def watch(self) -> None:
        """Give jobs to the scheduler when there is a worker for them, and hand results on.

        Gives up where no worker is left for too long or the scheduler is gone.
        """
        heard, had_any = time.monotonic(), False
        while not self.over.wait(0.2):
            try:
                if self.client.status != "running":
                    raise OSError("the connection is closed")
                any_now = self.usable_workers()
                if any_now:
                    if not had_any:  # Dask does not look again at tasks that no worker fitted
                        stale, self.tasks = list(self.tasks.values()), {}
                        if stale:
                            self.client.cancel(stale, force=True)
                    for future in [f for f in self.jobs if f not in self.tasks]:
                        self.send(future)
                for future, task in list(self.tasks.items()):
                    self.settle(future, task)
            except Exception as error:
                said = str(error) or type(error).__name__
                self.give_up(f"the Dask scheduler at {self.address} is gone ({said})")
                continue
            if any_now or not self.jobs:
                heard = time.monotonic()
            had_any = any_now
            if time.monotonic() - heard > self.patience:
                self.give_up(
                    f"no worker of {self.address} that can be used for {self.patience:g} s"
                )

    def usable_workers(self) -> bool:
        """Whether some worker that the scheduler has heard of lately offers itself."""
        info = self.client.scheduler_info(n_workers=-1)["workers"]
        now = time.time()
        return any(
            w.get("resources", {}).get(self.resource)
            and now - w.get("last_seen", now) < self.frozen
            for w in info.values()
        )

    def settle(self, future: Future, task) -> None:
        """Hand on what a task came to; one whose result cannot be fetched is computed again."""
        if task.status not in ("finished", "error", "cancelled"):
            return
        job = self.jobs[future]
        try:
            outcome = Outcome(job, **task.result(timeout=10))
        except TimeoutError:
            return
        except BaseException as error:  # CancelledError is no Exception
            if type(error).__name__ in ("CancelledError", "FutureCancelledError"):
                raise OSError("it has cancelled a task") from None
            said = str(error) or type(error).__name__
            if type(error).__name__ == "KilledWorker":
                said = "each worker that ran it died"
            outcome = Outcome(job, job.notebook, 0.0, f"on the cluster: {said}")
        with self.lock:
            del self.jobs[future], self.tasks[future]
        future.set_result(outcome)

    def give_up(self, reason: str) -> None:
        with self.lock:
            waiting, self.jobs, self.tasks = dict(self.jobs), {}, {}
        for future, job in waiting.items():
            future.set_result(Outcome(job, job.notebook, 0.0, reason))
