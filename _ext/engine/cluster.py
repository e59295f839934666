"""The workers of a Dask scheduler in place of this machine.

What travels is the notebook with its local modules, and the files of this package under a name made
of their content, so a worker needs the Python environment and no file of this repository. Each
worker, also one that comes late or that its nanny has started again, compares itself with the
building machine and offers the resource ``book`` when it has the same versions, Python and device;
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

RESOURCE = "book"
PLUGIN = "book"


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
        self.notes: list[str] = []
        self.waiting: dict[Future, object] = {}
        self.lock, self.over = threading.Lock(), threading.Event()
        self.load = shipped()
        self.client.register_plugin(offer(self.load, here, RESOURCE), name=PLUGIN)
        self.check()
        self.watcher = threading.Thread(target=self.watch, daemon=True)

    def __enter__(self) -> "Cluster":
        self.watcher.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.over.set()
        with suppress(Exception):
            self.client.cancel(list(self.waiting.values()), force=True)
        if self.watcher.is_alive():
            self.watcher.join(10)
        with suppress(Exception):
            self.client.unregister_worker_plugin(PLUGIN)
        with suppress(Exception):
            self.client.close(timeout=5)

    def check(self) -> None:
        """Refuse a cluster all of whose workers differ; one that has none yet may get some."""
        different = self.differing()
        self.notes = [f"worker {n}: {', '.join(d)}" for n, d in different.items() if d]
        if self.notes and len(self.notes) == len(different):
            self.client.close()
            raise Refused(f"no worker of {self.address} can be used: {'; '.join(self.notes)}")

    def differing(self) -> dict[str, list[str]]:
        """In what each worker differs; asked until all know, at most a minute."""
        plugin, end = PLUGIN, time.monotonic() + 60
        while True:
            said = self.client.run(
                lambda dask_worker: getattr(dask_worker.plugins.get(plugin), "different", None),
                on_error="ignore",
            )
            if all(found is not None for found in said.values()) or time.monotonic() > end:
                return {name: found or [] for name, found in said.items() if found is not None}
            time.sleep(0.2)

    def submit(self, job: Job) -> Future:
        load = self.load
        task = self.client.submit(
            lambda job: load().run_there(job), asdict(job), resources={RESOURCE: 1}, pure=False
        )
        future: Future = Future()
        future.set_running_or_notify_cancel()
        future.job = job
        with self.lock:
            self.waiting[future] = task
        return future

    def watch(self) -> None:
        """Hand results on; give up where no worker is left for too long or the scheduler is gone."""
        usable = time.monotonic()
        while not self.over.wait(0.2):
            with self.lock:
                waiting = list(self.waiting.items())
            for future, task in waiting:
                if task.status in ("finished", "error", "cancelled", "lost"):
                    self.settle(future, task)
            try:
                if self.client.status != "running":
                    raise OSError("the connection is closed")
                if self.usable_workers() or not self.waiting:
                    usable = time.monotonic()
            except Exception as error:
                self.give_up(f"the Dask scheduler at {self.address} is gone ({error})")
                continue
            if time.monotonic() - usable > self.patience:
                self.give_up(
                    f"no worker of {self.address} that can be used for {self.patience:g} s"
                )

    def usable_workers(self) -> bool:
        """Whether some worker that the scheduler knows, and has heard of lately, offers itself."""
        info = self.client.scheduler_info(n_workers=-1)["workers"]
        now = time.time()
        return any(
            w.get("resources", {}).get(RESOURCE) and now - w.get("last_seen", now) < self.frozen
            for w in info.values()
        )

    def settle(self, future: Future, task) -> None:
        with self.lock:
            if self.waiting.pop(future, None) is None:
                return
        job = future.job
        try:
            future.set_result(Outcome(job, **task.result(timeout=10)))
        except Exception as error:
            said = str(error) or type(error).__name__
            if type(error).__name__ == "KilledWorker":
                said = "each worker that ran it died"
            future.set_result(Outcome(job, job.notebook, 0.0, f"on the cluster: {said}"))

    def give_up(self, reason: str) -> None:
        with self.lock:
            waiting, self.waiting = list(self.waiting), {}
        for future in waiting:
            future.set_result(Outcome(future.job, future.job.notebook, 0.0, reason))
