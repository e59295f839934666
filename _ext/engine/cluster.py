"""The workers of a Dask scheduler in place of this machine.

What travels is the notebook with its local modules, and this package by value, so a worker needs the
Python environment and no file of this repository. Each worker, also one that comes late or that its
nanny has started again, compares itself with the building machine and offers the resource ``book``
when it has the same versions, Python and device; jobs ask for that resource. A run whose task is
cancelled, because the build was stopped or is gone, ends its kernel.
"""

import importlib
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict

from .runner import Job, Limits, Outcome, run
from .surroundings import ask_torch, differences, python, versions

RESOURCE = "book"
PACKAGE = __name__.rpartition(".")[0]


class Refused(Exception):
    """There is no scheduler, or none of its workers can stand in for this machine."""


def here_and_there(modules: list[str]) -> dict:
    """What decides about the numbers that a notebook prints here: as in the key of a run."""
    return {"versions": versions(modules), "python": python(), "device": ask_torch()[0]}


def offer_class() -> type:
    """The plugin that workers run when they start. Dask is imported only when it is asked for."""
    from distributed import WorkerPlugin

    class Offer(WorkerPlugin):
        """Compares a worker with the building machine; it offers itself where nothing differs."""

        name = "book"

        def __init__(self, here: dict):
            self.here, self.different = here, None

        async def setup(self, worker):
            self.different = await worker.loop.run_in_executor(None, self.compare)
            slots = 0 if self.different else worker.state.nthreads
            await worker.set_resources(**{RESOURCE: slots})

        def compare(self) -> list[str]:
            try:
                there = here_and_there(sorted(self.here["versions"]))
            except RuntimeError as error:
                return [str(error)]
            return differences(self.here, there)

    return Offer


def answers(dask_worker) -> list[str] | None:
    """In which facts this worker differs, or None while it does not know."""
    plugin = dask_worker.plugins.get("book")
    return plugin.different if plugin else None


def run_there(job: dict) -> dict:
    """Run a job on a worker; it ends when its task is no longer wanted."""
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
        limits = Limits(**job.pop("limits"))
        outcome = run(Job(**job, limits=limits), stop=stop)
    finally:
        over.set()
    return {name: value for name, value in vars(outcome).items() if name != "job"}


class Cluster:
    """Jobs for the workers of a scheduler, with the face of ``pool.Local``.

    here: versions, Python and device that a worker must share. patience: seconds without any worker
    that can be used, while jobs wait, after which the build gives up. frozen: seconds after which a
    worker that has not been heard of does not count. Raises Refused.
    """

    def __init__(self, address: str, here: dict, patience: float = 300, frozen: float = 60):
        try:
            import cloudpickle
            from distributed import Client
        except ImportError as error:
            raise Refused("CLUSTER needs Dask: pip install distributed") from error
        cloudpickle.register_pickle_by_value(importlib.import_module(PACKAGE))
        try:
            self.client = Client(address, timeout="20s", set_as_default=False)
        except (OSError, ValueError) as error:
            said = str(error) or type(error).__name__
            raise Refused(f"no Dask scheduler answers at {address}: {said}") from error
        self.address, self.patience, self.frozen = address, patience, frozen
        self.notes: list[str] = []
        self.waiting: dict[Future, object] = {}
        self.lock, self.over = threading.Lock(), threading.Event()
        self.client.register_plugin(offer_class()(here), name="book")
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
            self.client.unregister_worker_plugin("book")
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
        end = time.monotonic() + 60
        while True:
            said = self.client.run(answers, on_error="ignore")
            if all(found is not None for found in said.values()) or time.monotonic() > end:
                return {name: found or [] for name, found in said.items() if found is not None}
            time.sleep(0.2)

    def submit(self, job: Job) -> Future:
        task = self.client.submit(
            run_there, asdict(job), resources={RESOURCE: 1}, pure=False, retries=0,
            allow_other_workers=False,
        )  # fmt: skip
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
