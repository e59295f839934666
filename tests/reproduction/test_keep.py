"""reproduction/keep.py: records of whole runs travel with the chapter's notebook."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from reproduction import keep, recipe

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "reproduction" / "keep.py"


def module(file: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, file)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def result(**changed):
    """What train.py leaves of two seeds, made up."""
    settings = recipe.Settings("resnet50", "cifar100").plain()
    curves = {"train_loss": [4.00004, 1.0] * 100, "validation_top1_error": [90.0, 30.0] * 100}
    seed = {"finished": "2026-11-28T10:00:00+00:00", "device": "cuda: a GPU", "curves": curves}
    seed |= {"versions": {"torch": "2"}, "test": {"top1_error": 25.5, "top5_error": 7.0}}
    return {"settings": settings | changed, "seeds": {"0": seed, "1": seed}}


@pytest.fixture
def records(tmp_path):
    file = tmp_path / "long_runs.py"
    file.write_text(keep.RECORDS.read_text())
    return file


def test_records_are_read_back_and_the_module_stays_narrow(records):
    before = module(records, "before").read()
    first = keep.record_of(result())
    keep.add(first, records)
    second = keep.record_of(result(net="resnet18"))
    keep.add(second, records)
    assert module(records, "after").read() == [*before, first, second]
    assert max(map(len, records.read_text().splitlines())) <= 100
    assert first["seeds"][1]["test"] == pytest.approx(0.745)
    assert first["seeds"][0]["validation"][:2] == pytest.approx([0.1, 0.7])
    assert first["seeds"][0]["loss"][:2] == [4.0, 1.0]
    assert (first["net"], first["date"], first["device"]) == (
        "resnet50",
        "2026-11-28",
        "cuda: a GPU",
    )


def test_a_run_is_kept_once(records):
    keep.add(keep.record_of(result()), records)
    text = records.read_text()
    with pytest.raises(keep.KeepError, match="before"):
        keep.add(keep.record_of(result()), records)
    assert records.read_text() == text


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"epochs": 5}, "200 epochs"),
        ({"data": "patches"}, "200 epochs"),
        ({"first": 100}, "200 epochs"),
        ({"peek_test": True}, "peek"),
        ({"lr": 0.01, "warm": 5}, "lr, warm"),
    ],
)
def test_only_whole_runs_with_a_sealed_test_are_kept(changed, words):
    with pytest.raises(keep.KeepError, match=words):
        keep.record_of(result(**changed))


@pytest.mark.parametrize("content", ["{}", "[]", '{"settings": {}, "seeds": {}}', "no JSON"])
def test_another_file_is_refused_in_a_line(content, tmp_path):
    file = tmp_path / "result.json"
    file.write_text(content)
    before = keep.RECORDS.read_bytes()
    done = subprocess.run([sys.executable, SCRIPT, file], capture_output=True, text=True)
    assert done.returncode == 2 and str(file) in done.stderr
    assert "Traceback" not in done.stderr and keep.RECORDS.read_bytes() == before
    if content != "no JSON":
        with pytest.raises(keep.KeepError):
            keep.record_of(json.loads(content))
