"""The process that kernels are forked from: ``python warm_server.py DESCRIPTOR`` (see ``warm``).

It imports the heavy libraries, says so, and then forks a kernel, below a keeper, for each request,
or tells how one has ended, until its link closes. It has one thread and never touches an
accelerator: a fork of a process with threads, or with a CUDA context, is not safe.
"""

import atexit
import contextlib
import importlib.util
import json
import os
import random
import signal
import socket
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import keeper  # noqa: E402

sys.path.pop(0)  # a kernel does not see the folder of this file
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


def serve(link: socket.socket) -> None:
    """Import, say so, then answer requests, one JSON object a line, until the link closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the build decides what an interrupt means
    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # ipykernel reads it when it is imported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in PRELOAD:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    stream = link.makefile("rw", encoding="utf-8")
    answer(stream, {"threads": len(os.listdir("/proc/self/task"))})
    ended: dict[int, int | None] = {}  # keeper -> exit status
    try:
        for line in stream:
            request = json.loads(line)
            if request["op"] == "fork":
                pid = fork(link, request)
                ended[pid] = None
                answer(stream, {"pid": pid})
                continue
            pid = request["pid"]
            if ended.get(pid, 0) is None:
                done, status = os.waitpid(pid, os.WNOHANG)
                ended[pid] = os.waitstatus_to_exitcode(status) if done else None
            answer(stream, {"status": ended.get(pid)})
    finally:
        running = [pid for pid, status in ended.items() if status is None]
        for pid in running:
            os.kill(pid, signal.SIGTERM)
        for pid in running:
            os.waitpid(pid, 0)  # so that its CPU seconds count as the build's


def answer(stream, message: dict) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def fork(link: socket.socket, request: dict) -> int:
    """Fork a keeper, which forks the kernel; the keeper's process number."""
    keeper.hear()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, keeper.HEARD)
        return pid
    try:
        link.close()
        os.setsid()
        keeper.become_keeper()
        kernel = os.fork()
        if kernel == 0:
            keeper.deaf()
            become_kernel(request)
        keeper.keep(kernel, parent)
    finally:
        os._exit(1)


def become_kernel(request: dict) -> None:
    """Turn this process into the kernel that the request describes; does not return."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    os.environ["JPY_PARENT_PID"] = str(os.getppid())  # the kernel ends with its keeper
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


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
