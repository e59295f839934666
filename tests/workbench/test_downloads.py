"""Files fetched over the network, from hosts that fail in every way that hosts fail."""

import errno
import hashlib
import os
import re
import subprocess
import sys
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest

import workbench
from hosts import Host
from loader import NOTEBOOKS
from workbench import downloads

DATA = bytes(range(256)) * 40
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.delenv("DATA_MIRROR", raising=False)
    return tmp_path / "data"


def place(host: Host, path: str = "set/file.bin"):
    return downloads.place(path, [f"{host.address}/file"], SHA256)


def test_a_file_is_fetched_once_and_kept(here, monkeypatch, capfd):
    monkeypatch.setattr(workbench, "BUILDING", True)
    with Host({"/file": DATA}) as host:
        assert place(host) == place(host) == here / "set" / "file.bin"
    assert host.asked == {"/file": 1}
    assert (here / "set" / "file.bin").read_bytes() == DATA
    assert sorted(os.listdir(here / "set")) == ["file.bin", "file.bin.lock"]
    assert capfd.readouterr() == ("", "")  # a word on either would be an output of the page


def test_by_hand_it_tells_the_address_and_shows_a_bar(capfd):
    with Host({"/file": DATA}) as host:
        place(host)
    out, err = capfd.readouterr()
    assert out == f"fetching {host.address}/file\n"
    assert "file.bin: 100%" in err and "10.2k/10.2k" in err


def test_the_mirror_comes_first_as_one_folder_or_as_a_copy_of_the_root(monkeypatch):
    for path in ("/mirror/file.bin", "/mirror/set/file.bin"):
        with Host({path: DATA, "/file": DATA}) as host:
            monkeypatch.setenv("DATA_MIRROR", f"{host.address}/mirror/")
            place(host).unlink()
        assert host.asked[path] == 1 and host.asked["/file"] == 0


FAULTS = {
    "forbidden": (403, "HTTP Error 403: Forbidden"),
    "absent": (404, "HTTP Error 404: Not Found"),
    "silent": (None, "silent for 0.4 seconds"),
    "trickle": (("trickle", DATA), r"only \d+ bytes in \d seconds"),
    "short": (("stubborn", DATA), "the connection ended after 5,120 of 10,240 bytes"),
    "page": (b"\n<!DOCTYPE html><html>Sign in", "answered with a web page in place of the file"),
    "other page": (b"<HTML>Moved", "answered with a web page in place of the file"),
    "wrong": (b"12345", f"its 5 bytes do not have the SHA-256 {SHA256}"),
    "empty": (b"", f"its 0 bytes do not have the SHA-256 {SHA256}"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_told_and_the_next_address_asked(fault, here, monkeypatch):
    given, words = FAULTS[fault]
    if fault in ("silent", "trickle"):
        monkeypatch.setattr(downloads, "STALL", 0.4)
    start = time.monotonic()
    with Host({"/file": given}) as host:
        with pytest.raises(OSError, match=f"{host.address}/file: .*{words}") as caught:
            place(host)
        assert re.search("Place it as .*file.bin.*DATA_ROOT .* DATA_MIRROR", str(caught.value))
        assert not (here / "set" / "file.bin").exists()
        with Host({"/set/file.bin": given}) as mirror, Host({"/file": DATA}) as good:
            monkeypatch.setenv("DATA_MIRROR", mirror.address)
            assert place(good).read_bytes() == DATA
            assert mirror.asked["/set/file.bin"] >= 1
    assert time.monotonic() - start < 10


def test_a_host_that_refuses_connections_and_one_that_does_not_exist_are_told():
    with Host({}) as host:
        pass
    with pytest.raises(OSError, match="the host refuses connections"):
        place(host)
    with pytest.raises(OSError, match="there is no such host, or no network"):
        downloads.place("file.bin", ["http://no-such-host.invalid/file"], SHA256)


def test_without_any_address_it_says_what_to_place_where(here):
    with pytest.raises(OSError, match=f"Place it as '{here}/a.bin'"):
        downloads.place("a.bin", [], SHA256)


def test_a_broken_connection_is_taken_up_where_it_broke():
    broken = pytest.raises(OSError, match="ended after 10,080 of 10,240 bytes")
    with Host({"/file": ("short", DATA)}) as host, broken:
        place(host)
    assert host.asked["/file"] == 1 + downloads.RESUMED
    assert host.ranges[:2] == ["bytes=5120-", "bytes=7680-"]


def test_the_next_call_goes_on_from_what_came(here):
    with Host({"/file": ("stubborn", DATA)}) as host, pytest.raises(OSError):
        place(host)
    assert (here / "set" / "file.bin.part").read_bytes() == DATA[:5120]
    with Host({"/file": DATA}) as host:
        assert place(host).read_bytes() == DATA
    assert host.ranges == ["bytes=5120-"] and not (here / "set" / "file.bin.part").exists()


@pytest.mark.parametrize("left", [b"of another file", b"", DATA + b"more", DATA, DATA[:-1]])
def test_whatever_was_left_the_file_is_right(left, here):
    (here / "set").mkdir(parents=True)
    (here / "set" / "file.bin.part").write_bytes(left)
    with Host({"/file": DATA}) as host:
        assert place(host).read_bytes() == DATA
    assert host.asked["/file"] == {DATA: 0, DATA[:-1]: 1, b"": 1}.get(left, 2)


def test_a_host_that_cannot_go_on_gives_all_of_it(here):
    (here / "set").mkdir(parents=True)
    (here / "set" / "file.bin.part").write_bytes(DATA[:100])
    with Host({"/file": ("unannounced", DATA)}) as host:
        host.server.RequestHandlerClass.begun = lambda *_: 0
        assert place(host).read_bytes() == DATA
    assert host.asked["/file"] == 1


def test_too_full_a_disk_is_told_before_anything_comes_and_ends_the_search(here, monkeypatch):
    usage = namedtuple("usage", "total used free")(9, 0, 9_000)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda folder: usage)
    words = f"10,240 bytes are missing, {here / 'set'} has room for 9,000"
    with Host({"/file": DATA}) as host, Host({"/set/file.bin": DATA}) as mirror:
        monkeypatch.setenv("DATA_MIRROR", mirror.address)
        with pytest.raises(OSError, match=words):
            place(host)
    assert not host.asked and not (here / "set" / "file.bin.part").exists()


def test_a_disk_that_fills_meanwhile_ends_the_search(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(downloads, "write", full)
    with Host({"/file": DATA, "/set/file.bin": DATA}) as host:
        monkeypatch.setenv("DATA_MIRROR", host.address)
        with pytest.raises(OSError, match="No space left on device"):
            place(host)
    assert host.asked == {"/file.bin": 1, "/set/file.bin": 1}


def test_a_damaged_file_is_named_as_what_to_delete(here):
    (here / "set").mkdir(parents=True)
    file = here / "set" / "file.bin"
    file.write_bytes(DATA[:100])
    with Host({"/file": DATA}) as host:
        with pytest.raises(ValueError, match=rf"{file} is damaged .* \(its 100 bytes .*: delete"):
            place(host)
        assert file.read_bytes() == DATA[:100] and not host.asked
        file.unlink()
        assert place(host).read_bytes() == DATA


def test_two_kernels_that_fetch_one_file_at_once_ask_for_it_once(here):
    data = bytes(range(12))
    code = (
        "import sys; from workbench import downloads;"
        "print(downloads.place('set/file.gz', [sys.argv[1]], sys.argv[2]).read_bytes().hex())"
    )
    with Host({"/file.gz": ("trickle", data)}) as host:
        sha256 = hashlib.sha256(data).hexdigest()
        command = [sys.executable, "-c", code, f"{host.address}/file.gz", sha256]
        with ThreadPoolExecutor(2) as pool:
            how = {"cwd": NOTEBOOKS, "capture_output": True, "text": True}
            env = os.environ | {"BOOK_BUILD": "1"}
            runs = [pool.submit(subprocess.run, command, env=env, **how) for _ in range(2)]
            results = [run.result() for run in runs]
    assert [r.stdout.strip() for r in results] == [data.hex()] * 2, results
    assert host.asked == {"/file.gz": 1}
