"""Files fetched over the network: once, whole, verified, and kept.

Two environment variables say where files are:

DATA_ROOT     the folder in which they are kept (default ``data``)
DATA_MIRROR   a base address that is tried before the original ones: a copy of DATA_ROOT, or a
              folder with the files of one set
"""

import errno
import hashlib
import http.client
import os
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

import workbench


STALL = 20  # seconds that a server may be silent
SLOWEST = 10_000  # bytes a second over STALL, below which a download is given up
RESUMED = 5  # times that a broken download is taken up again at one address
PART = 2**16  # bytes read at once


def root() -> Path:
    return Path(os.environ.get("DATA_ROOT", "data"))


def place(path: str | Path, addresses: Iterable[str], sha256: str) -> Path:
    """Where the file `path` below DATA_ROOT is; it is verified, or fetched first.

    DATA_MIRROR and then the addresses are tried in turn, by one process at a time. The file appears
    under its name when it is complete and right; what came of a broken download lies beside it as
    ``.part``, and the next call goes on from there. Raises ValueError, naming the file to delete,
    when the one that is there is another one, and OSError, with what each address gave, when none
    gave the right bytes or the disk is too full.
    """
    file = root() / path
    if not file.is_file():
        from filelock import FileLock  # comes with torch

        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not file.is_file():  # the process that had the lock may have fetched it
                partial = file.with_name(f"{file.name}.part")
                try:
                    fetch(partial, [*mirrored(path), *addresses], sha256)
                except OSError as error:
                    raise OSError(
                        f"{file.name} could not be fetched: {error}. Place it as {str(file)!r}, or"
                        f" set DATA_ROOT to the folder that has it as {str(path)!r}, or DATA_MIRROR"
                        " to an address that serves it."
                    ) from error
                partial.replace(file)
                return file
    if digest(file) != sha256:
        raise ValueError(
            f"{file} is damaged or another file (its {file.stat().st_size:,} bytes do not have the"
            f" SHA-256 {sha256}): delete it, and it will be fetched again"
        )
    return file


def mirrored(path: str | Path) -> list[str]:
    """The file's addresses at DATA_MIRROR: in a folder of one set, or in a copy of DATA_ROOT."""
    mirror = os.environ.get("DATA_MIRROR", "").rstrip("/")
    names = dict.fromkeys((Path(path).name, Path(path).as_posix()))
    return [f"{mirror}/{name}" for name in names] if mirror else []


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fetch(partial: Path, addresses: Iterable[str], sha256: str) -> None:
    """Make `partial` the right file, from the first address that gives it."""
    failures = []
    for address in dict.fromkeys(addresses):
        if not workbench.BUILDING:
            print(f"fetching {address}", flush=True)
        try:
            return right(address, partial, sha256)
        except (OSError, ValueError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise  # no other address helps
            failures.append(f"{address}: {reason(error)}")
    raise OSError("; ".join(failures))


def reason(error: Exception) -> str:
    """What went wrong, in words."""
    cause = getattr(error, "reason", error)
    if isinstance(cause, socket.gaierror):
        return "there is no such host, or no network"
    if isinstance(cause, ConnectionRefusedError):
        return "the host refuses connections"
    if isinstance(cause, TimeoutError) and not cause.args[1:]:
        return str(cause) if "bytes" in str(cause) else f"silent for {STALL} seconds"
    return str(error) or type(error).__name__


def right(address: str, partial: Path, sha256: str) -> None:
    """Make `partial` the right file, from one address; ValueError when it has another one."""
    left = partial.exists()
    if left and digest(partial) == sha256:
        return
    complete(address, partial)
    if left and digest(partial) != sha256:  # what had been left was of another file
        partial.unlink()
        complete(address, partial)
    if digest(partial) != sha256:
        count = size(partial)
        partial.unlink()
        raise ValueError(f"its {count:,} bytes do not have the SHA-256 {sha256}")


def complete(address: str, partial: Path) -> None:
    """Download until nothing is missing; a broken connection is taken up again."""
    for more in reversed(range(RESUMED + 1)):
        before = size(partial)
        try:
            return download(address, partial)
        except (ConnectionError, http.client.IncompleteRead):
            if not more or size(partial) <= before:
                raise


def size(partial: Path) -> int:
    return partial.stat().st_size if partial.exists() else 0


def download(address: str, partial: Path) -> None:
    """Write what an address serves, from where `partial` ends if the server can do that.

    Raises TimeoutError when it is silent for STALL seconds or too slow, ConnectionError when bytes
    are missing, ValueError for a web page in place of a file, OSError when the disk is too full.
    """
    begun = size(partial)
    headers = {"User-Agent": "deep-learning-models"}
    if begun:
        headers["Range"] = f"bytes={begun}-"
    request = urllib.request.Request(address, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=STALL)
    except urllib.error.HTTPError as error:
        if not begun or error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        partial.unlink()  # longer than what the address has
        return download(address, partial)
    with answer:
        if getattr(answer, "status", None) != http.HTTPStatus.PARTIAL_CONTENT:
            begun = 0
        announced = int(answer.headers.get("Content-Length") or 0)
        free = shutil.disk_usage(partial.parent).free
        if announced > free:
            words = f"{announced:,} bytes are missing, {partial.parent} has room for {free:,}"
            raise OSError(errno.ENOSPC, words)
        write(answer, partial, begun, announced)


def write(answer, partial: Path, begun: int, announced: int) -> None:
    """Append to the first `begun` bytes of `partial` what is `announced` (0: not known)."""
    came, counted, since = 0, 0, time.monotonic()
    bar = tqdm(
        desc=partial.stem,
        total=begun + announced if announced else None,
        initial=begun,
        unit="B",
        unit_scale=True,
        disable=workbench.BUILDING,
    )
    with bar, partial.open("ab" if begun else "wb") as out:
        while data := answer.read1(PART):
            if not begun and not came and is_page(data):
                raise ValueError("it answered with a web page in place of the file")
            out.write(data)
            bar.update(len(data))
            came += len(data)
            seconds = time.monotonic() - since
            if seconds < STALL:
                continue
            if came - counted < SLOWEST * seconds:
                raise TimeoutError(
                    f"only {came - counted:,} bytes in {seconds:.0f} seconds"
                )
            counted = came
            since = time.monotonic()
    if came < announced:
        words = f"the connection ended after {begun + came:,} of {begun + announced:,} bytes"
        raise ConnectionError(words)


def is_page(data: bytes) -> bool:
    """Whether a file begins as a web page does."""
    return data.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html"))
