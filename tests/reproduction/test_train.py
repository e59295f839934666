"""reproduction/train.py and test.py: what a run leaves, that it goes on where it stopped, how it ends."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from loader import ROOT
from reproduction import checkpoints, data, networks, recipe, steps, test, train

SCRIPT = str(ROOT / "reproduction" / "train.py")
SHORT = ["--data", "digits", "--first", "120", "--batch", "40", "--epochs", "4", "--cpu"]
BEST = "best test epoch (selected on the test set)"


def dropping(K: int) -> nn.Module:
    """Batch norm and dropout: what a resumed run could get wrong."""
    conv = nn.Conv2d(3, 8, 3, stride=4)
    return nn.Sequential(
        conv, nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(512, K)
    )


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A folder of its own, one thread, and a network that trains at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(networks.NETWORKS, "dropping", networks.Entry(dropping, "for tests"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def loaded():
    """The digits, read once for all tests."""
    parts, load = {}, data.load

    def cached(name, *, first=None):
        if (name, first) not in parts:
            parts[name, first] = load(name, first=first)
        return data.Data(**vars(parts[name, first]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", cached)
        yield


def run(*options: str, net: str = "dropping") -> int:
    return train.main(["--net", net, *SHORT, *options])


def result(name: str, runs: str = "runs") -> dict:
    return json.loads(Path(runs, name, "result.json").read_text())


def curves(name: str, seed: int = 0) -> dict:
    found = result(name)["seeds"][str(seed)]["curves"]
    return {curve: values for curve, values in found.items() if curve != "seconds"}


def weights(name: str, seed: int = 0) -> dict:
    return checkpoints.read(Path("runs", name, f"seed{seed}", "weights.pt"))["model"]


def stop_after(monkeypatch, epochs: int, error=KeyboardInterrupt) -> None:
    """Have training interrupted in the middle of a later epoch."""
    whole = steps.train_epoch

    def stops(run, epoch, tick):
        if epoch < epochs:
            return whole(run, epoch, tick)
        steps.train_step(
            run, *run.data.train, data.changes(120, 0, 0, torch.device("cpu")), torch.arange(9)
        )
        raise error

    monkeypatch.setattr(steps, "train_epoch", stops)


# ---- one run ---------------------------------------------------------------------------------------


def test_a_run_leaves_a_result_with_all_that_it_depends_on(capsys):
    assert run() == 0
    found = result("dropping-digits")
    assert found["settings"] == recipe.Settings("dropping", "digits", 4, 40, first=120).plain()
    seed = found["seeds"]["0"]
    assert len(seed["curves"]["train_loss"]) == 4
    assert seed["curves"]["learning_rate"] == pytest.approx([0.1, 0.02, 0.004, 0.0008])
    assert seed["versions"]["torch"] == torch.__version__ and seed["device"].startswith("cpu")
    assert seed["validation"]["top1_error"] == seed["curves"]["validation_top1_error"][-1]
    assert found["test"]["top1_error"]["mean"] == seed["test"]["top1_error"]
    assert BEST not in seed
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("epoch   1 of 4  rate 0.1  loss ") and lines[0].endswith(" left")
    assert "last epoch" in lines[4] and lines[-1] == "runs/dropping-digits/result.json"


def test_tensorboard_reads_the_curves():
    assert run(net="smallnet") == 0
    events = EventAccumulator("runs/smallnet-digits/seed0")
    events.Reload()
    shown = [event.value for event in events.Scalars("train/loss")]
    assert shown == pytest.approx(curves("smallnet-digits")["train_loss"])
    assert [event.step for event in events.Scalars("learning/rate")] == [1, 2, 3, 4]


def test_several_seeds_give_mean_and_spread(capsys):
    assert run("--seeds", "0", "3", "--epochs", "2") == 0
    assert "2 seeds" in capsys.readouterr().out.splitlines()[-2]
    found = result("dropping-digits")
    errors = [found["seeds"][seed]["test"]["top1_error"] for seed in ("0", "3")]
    spread = found["test"]["top1_error"]
    assert spread["mean"] == pytest.approx(sum(errors) / 2)
    assert (spread["least"], spread["most"]) == (min(errors), max(errors))
    assert spread["deviation"] == pytest.approx(abs(errors[0] - errors[1]) / math.sqrt(2))
    assert curves("dropping-digits", 0) != curves("dropping-digits", 3)
    assert run("--seeds", "5", "--epochs", "2") == 0
    assert set(result("dropping-digits")["seeds"]) == {"0", "3", "5"}


def test_the_loss_of_an_epoch_weighs_each_image_the_same():
    assert run("--epochs", "1", "--batch", "100", "--lr", "1e-12") == 0
    assert run("--epochs", "1", "--batch", "120", "--lr", "1e-12", "--name", "whole") == 0
    one, other = curves("dropping-digits"), curves("whole")
    assert one["train_loss"] == pytest.approx(other["train_loss"], rel=0.1)
    assert one["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-2)


def test_a_batch_in_parts_gives_the_losses_of_a_whole_one():
    assert run(net="smallnet") == 0
    assert run("--accumulate", "4", "--name", "parts", net="smallnet") == 0
    for name, values in curves("smallnet-digits").items():
        assert curves("parts")[name] == pytest.approx(values, rel=1e-4), name


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "tf32"])
def test_other_precisions_and_layouts_train(monkeypatch, precision):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    allowed = torch.get_float32_matmul_precision()
    more = ("--channels-last", "--compile", "--epochs", "1")
    assert run("--precision", precision, *more) == 0
    torch.set_float32_matmul_precision(allowed)
    torch.backends.cudnn.allow_tf32 = False
    assert len(compiled) == 1
    assert compiled[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert weights("dropping-digits")["0.weight"].dtype == torch.float32


# ---- protocol --------------------------------------------------------------------------------------


@pytest.fixture
def readings(monkeypatch) -> list[int]:
    """How often each run has read its test part."""
    found, opens = [], data.Sealed.open

    def counted(sealed, **how):
        part = opens(sealed, **how)
        found.append(sealed.readings)
        return part

    monkeypatch.setattr(data.Sealed, "open", counted)
    return found


def test_the_test_part_is_read_once_in_a_run_and_not_by_a_second_one(readings, capsys):
    assert run("--seeds", "0", "1", "--epochs", "2") == 0
    assert readings == [1, 1]
    first = result("dropping-digits")
    assert run("--seeds", "0", "1", "--epochs", "2") == 0
    assert readings == [1, 1] and result("dropping-digits") == first
    assert "not read again" in capsys.readouterr().out


def test_the_best_epoch_on_the_test_part_has_that_name_only_and_only_if_asked(readings, capsys):
    assert run("--peek-test") == 0
    assert readings == [1, 2, 3, 4, 5]
    found = result("dropping-digits")
    seed = found["seeds"]["0"]
    peeked = seed["curves"]["peeked_test_top1_error"]
    assert seed[BEST]["top1_error"] == min(peeked)
    assert seed["test"]["top1_error"] == peeked[-1] == found["test"]["top1_error"]["mean"]
    assert "after every epoch" in found["protocol"]
    assert f"{BEST}: epoch" in capsys.readouterr().out


def test_validation_does_not_change_what_is_trained():
    assert run(net="smallnet") == 0
    assert run("--peek-test", "--name", "peeked", net="smallnet") == 0
    assert curves("peeked")["train_loss"] == curves("smallnet-digits")["train_loss"]


# ---- it goes on ------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_unbroken_one_to_the_last_bit(monkeypatch, capsys):
    assert run("--name", "unbroken") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert run("--name", "broken") == 130
    assert "interrupted; the same command goes on: python" in capsys.readouterr().err
    assert not Path("runs/broken/result.json").exists()
    assert run("--name", "broken") == 0
    assert "goes on after epoch 2 of 4" in capsys.readouterr().out
    assert curves("broken") == curves("unbroken")
    assert result("broken")["seeds"]["0"]["test"] == result("unbroken")["seeds"]["0"]["test"]
    for name, value in weights("unbroken").items():
        assert torch.equal(weights("broken")[name], value), name


def test_a_run_that_was_killed_before_its_test_only_tests(monkeypatch):
    assert run("--name", "unbroken") == 0
    with monkeypatch.context() as patch:
        patch.setattr(data.Data, "seal", lambda self: None)
        with pytest.raises(AttributeError):
            run("--name", "broken")
    stop_after(monkeypatch, 0)
    assert run("--name", "broken") == 0
    assert curves("broken") == curves("unbroken")


def test_other_settings_do_not_go_on_but_may_start_anew(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert run() == 130
    assert run("--batch", "60", "--lr", "0.2") == 2
    assert (
        "batch 40, now 60; lr 0.1, now 0.2. Choose another --name, or --fresh"
        in capsys.readouterr().err
    )
    assert run("--batch", "60", "--lr", "0.2", "--fresh") == 0
    assert run() == 2
    assert "result.json was made with batch 60, now 40" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_refused_and_the_one_before_goes_on(monkeypatch, capsys):
    assert run("--name", "unbroken") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run("--name", "broken") == 130
    file = Path("runs/broken/seed0/checkpoint.pt")
    file.write_bytes(file.read_bytes()[:2000])
    assert run("--name", "broken") == 2
    assert "damaged" in capsys.readouterr().err
    file.unlink()
    assert run("--name", "broken") == 0
    assert curves("broken") == curves("unbroken")


# ---- how it ends -----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_it_with_epoch_and_step(capsys):
    assert run("--lr", "1e30", net="smallnet") == 3
    said = capsys.readouterr().err
    assert "not finite in epoch 1, step 2. Try --lr 1e+29" in said
    assert not Path("runs/smallnet-digits/seed0/checkpoint.pt").exists()


def test_no_checkpoint_holds_weights_that_are_not_finite(monkeypatch):
    nan = {"loss": math.nan, "top1_error": 90.0, "top5_error": 50.0}
    monkeypatch.setattr(steps, "evaluate", lambda run, part: nan)
    assert run() == 3
    assert not Path("runs/dropping-digits/seed0/checkpoint.pt").exists()


def test_a_rate_that_is_not_the_recipes_ends_it(monkeypatch):
    monkeypatch.setattr(recipe, "rate", lambda settings, step, steps: 0.05)
    with pytest.raises(RuntimeError, match="epoch 1 ends with the rate 0.05, not 0.1"):
        run()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--accumulate", "3"), "a batch of 40 cannot be divided into 1 processes times 3 parts"),
        (("--gpu",), "torch finds no GPU"),
    ],
)
def test_what_cannot_be_done_is_said(options, said, capsys):
    assert run(*options) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--net", "nonet"), ("--epochs", "0"), ("--dat", "digits")])
def test_what_cannot_be_meant_is_said(options, capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["--net", "smallnet", *options])
    assert end.value.code == 2
    assert capsys.readouterr().err


def test_without_a_network_it_says_so_at_once(monkeypatch, capsys, tmp_path):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    for name in ("no_proxy", "NO_PROXY", "DATA_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    # the opener that an earlier test left would keep the proxies of then
    monkeypatch.setattr(urllib.request, "_opener", None)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    start = time.monotonic()
    assert train.main(["--net", "smallnet"]) == 2
    assert time.monotonic() - start < 20
    said = capsys.readouterr().err
    assert "CIFAR-100 could not be read or fetched" in said and "the host refuses" in said
    assert "DATA_ROOT" in said and "DATA_MIRROR" in said and "--data patches" in said
    assert not list((tmp_path / "data").glob("*.gz"))


# ---- test.py ---------------------------------------------------------------------------------------


def test_weights_are_tested_once(readings, capsys):
    assert run() == 0
    file = "runs/dropping-digits/seed0/weights.pt"
    assert test.main(["-net", "dropping", "-weights", file]) == 0
    said = capsys.readouterr().out
    recorded = result("dropping-digits")["seeds"]["0"]["test"]
    assert readings == [1] and "has the reading" in said
    assert f"top-1 error {recorded['top1_error']:.2f} %" in said
    assert test.main(["--net", "dropping", "--weights", file, "--again"]) == 0
    said = capsys.readouterr().out
    assert len(readings) == 2 and "read 2 times" in said
    assert f"top-1 error {recorded['top1_error']:.2f} %" in said
    assert f"loss {recorded['loss']:.4f}" in said
    assert result("dropping-digits")["seeds"]["0"]["test_readings"] == 2


def test_the_validation_part_and_foreign_weights_are_measured(readings, capsys):
    assert run() == 0
    file = "runs/dropping-digits/seed0/checkpoint.pt"
    assert test.main(["--net", "dropping", "--weights", file, "--part", "validation"]) == 0
    last = result("dropping-digits")["seeds"]["0"]["validation"]
    assert f"top-1 error {last['top1_error']:.2f} %" in capsys.readouterr().out and readings == [1]
    torch.save(weights("dropping-digits"), "bare.pt")
    assert test.main(["--net", "dropping", "--weights", "bare.pt", "--data", "digits"]) == 0
    assert len(readings) == 2


def test_weights_of_another_network_are_refused(capsys):
    assert run("--epochs", "1") == 0
    file = "runs/dropping-digits/seed0/weights.pt"
    assert test.main(["--net", "smallnet", "--weights", file]) == 2
    assert test.main(["--net", "smallnet", "--weights", "none.pt"]) == 2
    said = capsys.readouterr().err
    assert "the weights of dropping: --net dropping" in said and "there is no file none.pt" in said


# ---- as processes ----------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def epochs_done(name: str) -> int:
    saved = checkpoints.load(Path("runs", name, "seed0", "checkpoint.pt"))
    return saved["epoch"] if saved else 0


@pytest.fixture
def quietly():
    """Starts Python; with the test ends what it has started, and what that has."""
    started = []

    def start(*command: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, *command], env=environment(), **pipes))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            for other in [*psutil.Process(process.pid).children(recursive=True), process]:
                other.kill()
            process.communicate()


LONG = [*SHORT[:-3], "--epochs", "40", "--cpu"]


def test_help_explains_from_any_folder(quietly):
    done = quietly(SCRIPT, "--help")
    out, err = done.communicate(timeout=120)
    assert (done.returncode, err) == (0, "")
    for words in (
        "exit codes",
        "torchrun --standalone",
        "--peek-test",
        "resnext50",
        "the same command",
    ):
        assert words in out.lower() or words in out


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_to_the_losses_of_an_unbroken_one(quietly):
    command = ["--net", "smallnet", *LONG]
    process = quietly(SCRIPT, *command, "--name", "broken")
    wait_for(lambda: epochs_done("broken") >= 2, process)
    process.kill()
    process.communicate()
    assert 2 <= epochs_done("broken") < 40
    assert train.main([*command, "--name", "broken"]) == 0
    assert train.main([*command, "--name", "unbroken"]) == 0
    assert curves("broken") == curves("unbroken")


def torchrun(*options: str) -> tuple[str, ...]:
    processes = ("--standalone", "--nproc-per-node", "2")
    return ("-m", "torch.distributed.run", *processes, *options, SCRIPT)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_with_the_whole_batch(quietly):
    command = ["--net", "smallnet", *SHORT]
    process = quietly(*torchrun(), *command, "--accumulate", "2", "--name", "two")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("epoch   1 of 4") == 1  # the first process alone speaks
    assert train.main([*command, "--name", "one"]) == 0
    assert result("two")["seeds"]["0"]["processes"] == 2
    for name, values in curves("one").items():
        assert curves("two")[name] == pytest.approx(values, rel=1e-4), name


@pytest.mark.slow
def test_a_worker_that_is_killed_is_started_again_and_all_go_on(quietly):
    command = ["--net", "smallnet", *LONG]
    restart = ("--max-restarts", "1", "--monitor-interval", "0.1")
    process = quietly(*torchrun(*restart), *command, "--name", "two")
    wait_for(lambda: epochs_done("two") >= 2, process)
    workers = [p for p in psutil.Process(process.pid).children() if SCRIPT in p.cmdline()]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "goes on after epoch" in out
    assert train.main([*command, "--name", "one"]) == 0
    losses = curves("one")["train_loss"]  # rounding grows over 40 epochs
    assert curves("two")["train_loss"] == pytest.approx(losses, rel=1e-2)


ON_ACCELERATOR = """
import sys
import pretend
print(pretend.start())
from reproduction import test, train
how = "--data digits --first 80 --batch 40 --epochs 2 --gpu --runs".split()
code = train.main(["--net", "smallnet", *how, sys.argv[1]])
weights = sys.argv[1] + "/smallnet-digits/seed0/weights.pt"
sys.exit(code or test.main(["--net", "smallnet", "--weights", weights, "--again", "--gpu"]))
"""


def test_it_trains_and_tests_on_an_accelerator_even_if_a_pretended_one(quietly, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT / "tests"), str(ROOT))))
    out, err = (process := quietly("-c", ON_ACCELERATOR, "on")).communicate(timeout=200)
    assert process.returncode == 0, err
    seed = result("smallnet-digits", "on")["seeds"]["0"]
    assert seed["device"].startswith("pretended")
    measured = checkpoints.read(Path("on/smallnet-digits/seed0/weights.pt"))["model"]
    assert all(type(value) is torch.Tensor for value in measured.values())
    assert f"loss {seed['test']['loss']:.4f}" in out
