"""Starts a kernel and ends all that it has started: ``python keeper.py BUILD COMMAND ...`` (Linux).

Between the build and each kernel stands a process of this kind. It is a child subreaper: a process
that the kernel starts, in a session of its own even, stays below it when its parent ends. When the
kernel ends, when the build asks for it (SIGTERM) or when the build is gone, every process below is
killed, and the keeper ends as the kernel did. BUILD is the build's process number: a build that was
killed before the keeper ran is not its parent any more. It imports nothing but the standard library.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time

PR_SET_CHILD_SUBREAPER = 36
HEARD = {signal.SIGCHLD, signal.SIGTERM}
LONGEST = 10  # seconds to wait for processes that do not go, as in a system call


def hear() -> None:
    """Block what a keeper waits for: to be called before it is forked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)


def deaf() -> None:
    """What a kernel does: signals as in any process."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def become_keeper() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the kernel
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def keep(kernel: int, parent: int) -> None:
    """Wait for the kernel or for the end of the parent, kill all below; does not return."""
    status = None
    while status is None:
        status = reap(kernel)
        if status is None and os.getppid() != parent:
            status = finish(kernel)
        elif status is None:
            heard = signal.sigtimedwait(HEARD, 0.5)
            if heard is not None and heard.si_signo == signal.SIGTERM:
                status = finish(kernel)
    finish(kernel)
    if os.WIFSIGNALED(status):  # end in the same way
        number = os.WTERMSIG(status)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def reap(kernel: int) -> int | None:
    """Take all that has ended below; the kernel's wait status if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == kernel:
            found = status


def finish(kernel: int) -> int:
    """Kill all below until nothing is left; the kernel's wait status, as killed if not known."""
    status, end = None, time.monotonic() + LONGEST
    while below := descendants(os.getpid()):
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        found = reap(kernel)
        status = found if status is None else status
        if time.monotonic() > end:
            break
        time.sleep(0.002)
    return signal.SIGKILL if status is None else status


def descendants(root: int) -> list[int]:
    """Processes below one, zombies included, as /proc tells."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            children.setdefault(parent, []).append(int(name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def main(build: int, command: list[str]) -> None:
    hear()
    become_keeper()
    kernel = os.fork()
    if kernel == 0:
        deaf()
        os.environ["JPY_PARENT_PID"] = str(os.getppid())  # the kernel ends with its keeper
        os.execvp(command[0], command)
    keep(kernel, build)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
