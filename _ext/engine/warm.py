"""Kernels, kept and, where that is possible, forked from a process that has imported torch.

Starting a kernel and importing torch, torchvision and matplotlib takes longer than many notebooks
run. ``Server`` is the build's end of the link to such a process (``warm_server``). ``Provisioner`` is
what jupyter_client asks for a kernel: below a keeper, forked from a server or started anew. To the
kernel's client nothing differs: interrupt, kill and exit status are those of a process. Linux only;
elsewhere kernels are started the ordinary way, each in a process group of its own.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner
from traitlets import Any as AnyTrait

NAME = "book"
KEEPER = Path(__file__).with_name("keeper.py").read_text(encoding="utf-8")
KEPT = sys.platform == "linux"
FIXED = {  # settings that are the same for all kernels; a change of them runs all notebooks again
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin starve each other when cores are short
    "OPENBLAS_NUM_THREADS": "1",  # more would be threads of the server of warm kernels
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as ipykernel sets it by itself
    "PYTHONHASHSEED": "0",  # sets of words have the same order in each run
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "TORCH_LOGS": "-torch.utils._pytree",  # which warns when transformers imports torchao
    "DIFFUSERS_VERBOSITY": "error",  # diffusers warns of torchao, too, at its import
}


def possible() -> bool:
    """Whether kernels can be forked on this system and the user has not switched it off."""
    return KEPT and os.environ.get("WARM", "1") != "0"


def settings(threads: int, home: str) -> dict[str, str]:
    """What a process reads when it loads its libraries, whatever the caller has set.

    home: a folder for it, without a profile of IPython and with an empty matplotlibrc.
    """
    matplotlibrc = Path(home, "matplotlibrc")
    matplotlibrc.write_text("# matplotlib's own settings\n", encoding="utf-8")
    return {
        "OMP_NUM_THREADS": str(threads),
        "MATPLOTLIBRC": str(matplotlibrc),
        "IPYTHONDIR": str(Path(home, "ipython")),
        **FIXED,
    }


class Gone(RuntimeError):
    """The server has ended."""


class Server:
    """The build's end of the link to the server process."""

    def __init__(self, threads: int = 1):
        here, there = socket.socketpair()
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        script = str(Path(__file__).with_name("warm_server.py"))
        self.process = subprocess.Popen(
            [sys.executable, script, str(there.fileno())],
            pass_fds=[there.fileno()],
            env={**os.environ, **settings(threads, self.folder.name)},
            cwd=self.folder.name,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        there.close()
        self.link, self.stream = here, here.makefile("rw", encoding="utf-8")
        self.lock, self.threads, self.gone = threading.Lock(), 0, False

    def ask(self, **request: Any) -> dict:
        """Send a request and wait for its answer; the first call waits for the imports, too.

        Raises Gone when the server has ended, at once and ever after.
        """
        with self.lock:
            try:
                if not self.threads:
                    self.threads = self.receive()["threads"]
                self.stream.write(json.dumps(request) + "\n")
                self.stream.flush()
                return self.receive()
            except (OSError, ValueError) as error:
                self.gone = True
                raise Gone(
                    "the server of warm kernels has ended; WARM=0 does without it"
                ) from error

    def receive(self) -> dict:
        line = self.stream.readline()
        if not line:
            raise OSError("closed")
        return json.loads(line)

    def close(self) -> None:
        """End the server and its kernels; kills it when it does not go within five seconds."""
        with contextlib.suppress(OSError):
            self.link.shutdown(socket.SHUT_RDWR)
        try:
            self.process.wait(timeout=5 if self.threads else 0)  # importing, it would not hear
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(OSError, ValueError):
            self.stream.close()
        self.link.close()
        self.folder.cleanup()


class Forked:
    """A forked kernel's keeper, as much of subprocess.Popen as a provisioner uses."""

    stdin = stdout = stderr = None

    def __init__(self, server: Server, pid: int):
        self.server, self.pid, self.returncode = server, pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                self.returncode = self.server.ask(op="poll", pid=self.pid)["status"]
            except Gone:
                self.returncode = -signal.SIGKILL  # its keeper sees that too, and ends it
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
        self.send_signal(signal.SIGTERM)

    terminate = kill


def end(process: Any) -> None:
    """End a kernel and all that it has started: its keeper does, or the system by its group."""
    with contextlib.suppress(ProcessLookupError):
        if KEPT:
            os.kill(process.pid, signal.SIGTERM)
        elif hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


class Provisioner(LocalProvisioner):
    """A kernel below a keeper, of this very Python whatever a kernel specification says."""

    server = AnyTrait()  # a Server to fork it from, or None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict:
        arguments = cmd[cmd.index("-f") :] if "-f" in cmd else []
        if self.server:
            environment = {k: v for k, v in kwargs["env"].items() if v is not None}
            cwd = kwargs.get("cwd") or os.getcwd()
            request = {"op": "fork", "arguments": arguments, "cwd": cwd, "env": environment}
            self.process = Forked(self.server, self.server.ask(**request)["pid"])
            self.pid, self.pgid = self.process.pid, self.process.pid  # it leads its own group
            return self.connection_info
        if "ipykernel_launcher" in cmd:
            cmd = [sys.executable, "-m", "ipykernel_launcher", *arguments]
        keeper = [sys.executable, "-I", "-S", "-c", KEEPER, str(os.getpid())]
        kept = keeper if KEPT else []
        return await super().launch_kernel([*kept, *cmd], **kwargs)

    async def kill(self, restart: bool = False) -> None:
        if self.process and self.process.poll() is None:
            end(self.process)

    async def terminate(self, restart: bool = False) -> None:
        await self.kill(restart)


class Loaded:
    """Stands for an entry point of a package: jupyter_client asks it for the class."""

    value = "Provisioner"

    def load(self) -> type:
        return Provisioner


def provide(manager: KernelManager, server: Server | None) -> None:
    """Let this manager start its kernel here: forked from the server or, without one, anew."""
    KernelProvisionerFactory.instance().provisioners.setdefault(NAME, Loaded())
    chosen = {"provisioner_name": NAME, "config": {"server": server}}
    manager.kernel_spec.metadata["kernel_provisioner"] = chosen
