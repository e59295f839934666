"""Kernels forked from a process that has imported the heavy libraries once.

Starting a kernel and importing torch, torchvision and matplotlib takes longer than many notebooks
run. ``Server`` starts a process that imports them and then forks a kernel for each request;
``WarmProvisioner`` is what jupyter_client asks for it. To the kernel's client nothing differs:
interrupt, kill and exit status are those of a process.

The server is single-threaded and never touches an accelerator: a fork of a process with threads, or
with a CUDA context, is not safe. It and its kernels end when the build that started it does, however
that ends. Linux only; elsewhere, or with WARM=0, kernels are started the ordinary way.
"""

import atexit
import contextlib
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

NAME = "warm"
PRELOAD = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "ipykernel.debugger",  # each kernel imports it, and with it debugpy
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.interactiveshell",
    "IPython.extensions.storemagic",
    "sqlite3",
    "tornado.platform.asyncio",
    "matplotlib.pyplot",
    "numpy",
    "torch",
    "torch.nn.attention",
    "torch.utils.flop_counter",
    "torchvision",
    "timm",
)


# ---- the server ----------------------------------------------------------------------------------


def serve(link: socket.socket) -> None:
    """Import, say so, then fork a kernel or tell how one ended, as asked, until the link closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the build decides what an interrupt means
    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # ipykernel reads it when it is imported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in PRELOAD:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    stream = link.makefile("rw", encoding="utf-8")
    answer(stream, {"threads": threads})
    children: dict[int, int | None] = {}  # pid -> exit status
    try:
        for line in stream:
            request = json.loads(line)
            if request["op"] == "fork":
                pid = os.fork()
                if pid == 0:
                    link.close()
                    become_kernel(request)
                children[pid] = None
                answer(stream, {"pid": pid})
            else:
                pid = request["pid"]
                if children.get(pid, 0) is None:
                    done, status = os.waitpid(pid, os.WNOHANG)
                    children[pid] = os.waitstatus_to_exitcode(status) if done else None
                answer(stream, {"status": children.get(pid)})
    finally:
        for pid, status in children.items():
            if status is None:
                end(pid)
                os.waitpid(pid, 0)  # so that its CPU seconds count as the build's


def end(pid: int) -> None:
    """Kill a kernel and what it has started, also one that has no process group of its own yet."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def answer(stream, message: dict) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def become_kernel(request: dict) -> None:
    """Turn this fork into the kernel that the request describes; does not return."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    os.environ["JPY_PARENT_PID"] = str(os.getppid())  # the kernel ends with the server
    random.seed()  # else all kernels would go on with the server's random numbers
    sys.modules["numpy"].random.seed()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
        torch.seed()
    launcher = importlib.util.find_spec("ipykernel_launcher").origin
    sys.argv = [launcher, *request["arguments"]]
    from ipykernel.kernelapp import launch_new_instance

    try:
        launch_new_instance()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    else:
        code = 0
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    os._exit(code)


def possible() -> bool:
    """Whether kernels can be forked on this system and the user has not switched it off."""
    return sys.platform == "linux" and os.environ.get("WARM", "1") != "0"


# ---- the client ----------------------------------------------------------------------------------


class Server:
    """The build's end of the link to the server process."""

    def __init__(self, threads: int):
        here, there = socket.socketpair()
        from runner import settings  # here, so that the server and its kernels do not import it

        command = [sys.executable, str(Path(__file__).resolve()), str(there.fileno())]
        self.process = subprocess.Popen(
            command,
            pass_fds=[there.fileno()],
            env={**os.environ, **settings(threads)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        there.close()
        self.link, self.stream = here, here.makefile("rw", encoding="utf-8")
        self.lock, self.threads = threading.Lock(), 0

    def ask(self, **request: Any) -> dict:
        """Send a request and wait for its answer; the first call waits for the imports, too."""
        with self.lock:
            if not self.threads:
                self.threads = self.receive()["threads"]
            self.stream.write(json.dumps(request) + "\n")
            self.stream.flush()
            return self.receive()

    def receive(self) -> dict:
        line = self.stream.readline()
        if not line:
            raise RuntimeError("the server of warm kernels has ended; WARM=0 does without it")
        return json.loads(line)

    def use(self, manager: KernelManager) -> None:
        """Let this manager fork its kernel from the server."""
        WarmProvisioner.server = self
        entry = EntryPoint(NAME, "warm:WarmProvisioner", "jupyter_client.kernel_provisioners")
        KernelProvisionerFactory.instance().provisioners.setdefault(NAME, entry)
        manager.kernel_spec.metadata["kernel_provisioner"] = {"provisioner_name": NAME}

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.link.shutdown(socket.SHUT_RDWR)
        self.process.wait(timeout=10)
        self.stream.close()
        self.link.close()


class Forked:
    """A forked kernel, as much of subprocess.Popen as a provisioner uses."""

    stdin = stdout = stderr = None

    def __init__(self, server: Server, pid: int):
        self.server, self.pid, self.returncode = server, pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.ask(op="poll", pid=self.pid)["status"]
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        limit = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if limit is not None and time.monotonic() > limit:
                raise subprocess.TimeoutExpired("kernel", timeout)
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class WarmProvisioner(LocalProvisioner):
    """A local kernel whose process is forked from ``WarmProvisioner.server``."""

    server: Server | None = None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict:
        environment = {k: v for k, v in kwargs["env"].items() if v is not None}
        arguments = cmd[cmd.index("-f") :]
        cwd = kwargs.get("cwd") or os.getcwd()
        request = {"op": "fork", "arguments": arguments, "cwd": cwd, "env": environment}
        self.process = Forked(self.server, self.server.ask(**request)["pid"])
        self.pid, self.pgid = self.process.pid, self.process.pid  # the fork leads its own group
        return self.connection_info


if __name__ == "__main__":
    sys.path.pop(0)  # a kernel does not see the folder of this file
    serve(socket.socket(fileno=int(sys.argv[1])))
