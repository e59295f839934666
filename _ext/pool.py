"""Where notebooks run: kernels on this machine, or a Dask cluster.

``open_pool`` gives a ``concurrent.futures`` executor for ``run``. On this machine it runs as many
kernels at once as asked, each with its share of the cores and, where there are several GPUs, one of
them. With the address of a Dask scheduler the same jobs go to its workers: what travels is the
notebook with the modules it imports, so a worker needs the Python environment and nothing else.
"""

import os
import platform
import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from runner import STOP, Job, Outcome, run
from store import ask_torch, versions


class Refused(Exception):
    """No worker of the cluster can stand in for this machine."""


@contextmanager
def open_pool(jobs: int, gpus: int, server, cluster: str, here: dict) -> Iterator[Executor]:
    """An executor whose ``submit(job)`` gives the future of an outcome.

    server: what kernels are forked from (a ``warm.Server``, which the caller closes), or None.
    here: versions, Python and device that a cluster's workers must share.
    """
    STOP.clear()
    pool = Cluster(cluster, here) if cluster else Local(jobs, gpus, server)
    try:
        yield pool
    except BaseException:
        STOP.set()  # an interrupt: end the kernels, keep what has finished
        raise
    finally:
        pool.close()


class Local:
    """Kernels on this machine, forked from a warm process where that is possible."""

    def __init__(self, jobs: int, gpus: int, server=None):
        self.refused: list[str] = []
        self.prepare = server.use if server else None
        slots: queue.SimpleQueue = queue.SimpleQueue()
        for slot in range(jobs):
            slots.put({"CUDA_VISIBLE_DEVICES": visible(slot % gpus)} if gpus > 1 else {})
        self.own = threading.local()
        self.executor = ThreadPoolExecutor(jobs, initializer=self.take, initargs=(slots,))

    def take(self, slots: queue.SimpleQueue) -> None:
        self.own.environment = slots.get()

    def submit(self, job: Job):
        return self.executor.submit(self.run, job)

    def run(self, job: Job) -> Outcome:
        return run(job, self.own.environment, self.prepare)

    def close(self) -> None:
        self.executor.shutdown(wait=True, cancel_futures=True)


def visible(number: int) -> str:
    """Name of the n-th GPU among those that this process may use."""
    names = [n for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n.strip()]
    return names[number] if number < len(names) else str(number)


class Cluster:
    """The workers of a Dask scheduler that have the versions and the device of this machine."""

    def __init__(self, address: str, here: dict):
        try:
            from distributed import Client
        except ImportError as error:
            raise Refused("CLUSTER needs Dask: pip install distributed") from error
        try:
            self.client = Client(address, timeout="20s")
        except OSError as error:
            raise Refused(f"no Dask scheduler answers at {address}: {error}") from error
        for name in ("store", "runner", "pool"):  # workers, later ones too, do not have these files
            self.client.upload_file(str(Path(__file__).with_name(f"{name}.py")))
        modules = sorted(here["versions"])
        workers = self.client.run(environment_of_worker, modules)
        different = {name: ", ".join(differences(here, there)) for name, there in workers.items()}
        self.refused = [f"worker {name}: {text}" for name, text in different.items() if text]
        fit = [name for name, text in different.items() if not text]
        if not fit:
            self.client.close()
            reasons = "; ".join(self.refused) or "it has none"
            raise Refused(f"no worker of {address} can be used: {reasons}")
        self.executor = self.client.get_executor(workers=fit, pure=False, retries=3)

    def submit(self, job: Job):
        return self.executor.submit(run, job)

    def close(self) -> None:
        with suppress(Exception):
            self.executor.shutdown(wait=not STOP.is_set())
        self.client.close()


def environment_of_worker(modules: Iterable[str]) -> dict:
    """What decides about the numbers that a notebook prints here: as in the key of a run."""
    return {
        "versions": versions(modules),
        "python": list(platform.python_version_tuple()[:2]),
        "device": ask_torch()[0],
    }


def differences(here: dict, there: dict) -> Iterator[str]:
    """Each fact in which a worker differs, in words."""
    for name in ("python", "device"):
        if list(here[name]) != list(there[name]):
            mine, other = (
                ".".join(v) if isinstance(v, list | tuple) else v for v in (here[name], there[name])
            )
            yield f"{name} {other}, here {mine}"
    for name, version in here["versions"].items():
        other = there["versions"].get(name, "none")
        if other != version:
            yield f"{name} {other}, here {version}"
