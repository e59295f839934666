"""Where notebooks run: kernels on this machine.

``Local`` runs as many jobs at once as asked, each with its share of the cores and, where there are
several GPUs, one of them. ``cluster.Cluster`` has the same face.
"""

import os
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from .runner import Job, Outcome, run
from .warm import Server


class Local:
    """Kernels on this machine, forked from a server if there is one; it is closed with the pool.

    To be used in ``with``: an exception inside ends the kernels that run, and what they started.
    """

    def __init__(self, jobs: int, gpus: int = 0, server: Server | None = None):
        self.notes: list[str] = []
        self.stop, self.server = threading.Event(), server
        slots: queue.SimpleQueue = queue.SimpleQueue()
        for slot in range(jobs):
            slots.put({"CUDA_VISIBLE_DEVICES": visible(slot % gpus)} if gpus > 1 else {})
        self.own = threading.local()
        self.executor = ThreadPoolExecutor(jobs, initializer=self.take, initargs=(slots,))

    def __enter__(self) -> "Local":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind:
            self.stop.set()
        self.executor.shutdown(wait=True, cancel_futures=True)
        if self.server:
            self.server.close()

    def take(self, slots: queue.SimpleQueue) -> None:
        self.own.environment = slots.get()

    def submit(self, job: Job) -> Future:
        return self.executor.submit(self.run, job)

    def run(self, job: Job) -> Outcome:
        return run(job, self.own.environment, self.server, self.stop)


def visible(number: int) -> str:
    """Name of the n-th GPU among those that this process may use."""
    names = [n for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n.strip()]
    return names[number] if number < len(names) else str(number)
