"""Checkpoints of reproduction/: whole or not there; what cannot be used is refused in words."""

import os

import pytest
import torch
from torch import nn

from reproduction import checkpoints


class Runs:
    """A pickle of it runs code where it is loaded without care."""

    def __reduce__(self):
        return os.mkdir, ("made by a checkpoint",)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "new" / "checkpoint.pt"


def test_the_last_one_is_loaded_and_the_one_before_is_kept(file):
    assert checkpoints.load(file) is None
    for epoch in (1, 2, 3):
        checkpoints.save(file, {"epoch": epoch, "model": {"w": torch.full((2,), epoch)}})
    assert checkpoints.load(file)["epoch"] == 3
    assert checkpoints.read(checkpoints.previous(file))["epoch"] == 2
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "checkpoint.previous.pt",
        "checkpoint.pt",
    ]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", range(4))
def test_a_kill_at_any_call_leaves_a_whole_checkpoint(file, monkeypatch, call):
    for epoch in (1, 2):
        checkpoints.save(file, {"epoch": epoch})
    calls = []

    def until(function):
        def counted(*arguments):
            if len(calls) == call:
                raise Killed
            calls.append(function)
            return function(*arguments)

        return counted

    monkeypatch.setattr(checkpoints.os, "fsync", until(os.fsync))
    monkeypatch.setattr(checkpoints.os, "replace", until(os.replace))
    with pytest.raises(Killed):
        checkpoints.save(file, {"epoch": 3})
    monkeypatch.undo()
    assert checkpoints.load(file)["epoch"] == (3 if call == 3 else 2)
    checkpoints.save(file, {"epoch": 4})
    assert checkpoints.load(file)["epoch"] == 4


def test_bytes_are_on_the_disk_before_the_name_is(file, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)

        def noted(*arguments, name=name, call=call):
            order.append(name)
            return call(*arguments)

        monkeypatch.setattr(checkpoints.os, name, noted)
    checkpoints.save(file, {"epoch": 1})
    assert order == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("length", [0, 100, -50])
def test_a_truncated_one_is_refused_with_what_to_do(file, length):
    checkpoints.save(file, {"epoch": 1, "model": {"w": torch.zeros(1000)}})
    checkpoints.save(file, {"epoch": 2, "model": {"w": torch.zeros(1000)}})
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(checkpoints.FileError, match="damaged.*Remove it; checkpoint.previous.pt"):
        checkpoints.load(file)
    file.unlink()
    assert checkpoints.load(file)["epoch"] == 1


@pytest.mark.parametrize("content", [{"epoch": 1}, [1, 2], torch.zeros(2), {"kind": "another"}])
def test_a_foreign_one_is_refused(file, content):
    file.parent.mkdir()
    torch.save(content, file)
    with pytest.raises(checkpoints.FileError, match="is no checkpoint of reproduction/train.py"):
        checkpoints.load(file)


def test_a_file_cannot_run_code(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file.parent.mkdir()
    torch.save({"kind": checkpoints.KIND, "model": Runs()}, file)
    with pytest.raises(checkpoints.FileError, match="damaged or no file of weights"):
        checkpoints.load(file)
    assert not (tmp_path / "made by a checkpoint").exists()


def test_weights_come_from_a_checkpoint_or_a_state_dictionary(tmp_path):
    source, found = nn.Linear(2, 3), nn.Linear(2, 3)
    torch.save(source.state_dict(), tmp_path / "bare.pt")
    assert checkpoints.load_weights(found, tmp_path / "bare.pt", "any") == {}
    torch.testing.assert_close(found.weight, source.weight)
    torch.save({"net": "a", "seed": 3, "model": source.state_dict()}, tmp_path / "named.pt")
    assert checkpoints.load_weights(found, tmp_path / "named.pt", "a") == {"net": "a", "seed": 3}
    with pytest.raises(checkpoints.FileError, match="the weights of a: --net a"):
        checkpoints.load_weights(found, tmp_path / "named.pt", "b")
    with pytest.raises(checkpoints.FileError, match="does not fit any.*\n.*size mismatch"):
        checkpoints.load_weights(nn.Linear(2, 4), tmp_path / "bare.pt", "any")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(checkpoints.FileError, match="does not fit any"):
        checkpoints.load_weights(found, tmp_path / "list.pt", "any")
    with pytest.raises(checkpoints.FileError, match="there is no file"):
        checkpoints.load_weights(found, tmp_path / "none.pt", "any")


def test_a_result_is_written_at_once_and_holds_no_nan(tmp_path):
    file = tmp_path / "result.json"
    assert checkpoints.read_json(file) == {}
    checkpoints.write_json(file, {"a": 1.5})
    with pytest.raises(ValueError):
        checkpoints.write_json(file, {"a": float("nan")})
    assert checkpoints.read_json(file) == {"a": 1.5}
    file.write_text("{")
    with pytest.raises(checkpoints.FileError, match="no JSON"):
        checkpoints.read_json(file)
