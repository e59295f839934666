#!/usr/bin/env python3
"""Train a network of this book on CIFAR-100, as the repository of the reading list does.

python reproduction/train.py --net resnet50
python reproduction/train.py --net resnet18 --seeds 0 1 2 --precision bfloat16 --channels-last
python reproduction/train.py --net smallnet --data patches --epochs 5        (no network, no GPU)
tensorboard --logdir runs --bind_all
"""

import argparse
import contextlib
import importlib.metadata
import os
import platform
import shlex
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

if __name__ == "__main__":  # its own folder has a test.py, which is a module of Python
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from tqdm import tqdm

from reproduction import checkpoints, data, networks, processes, recipe, steps

PROTOCOL = """\
protocol
  5,000 images of the training part are held back, the same in every run; all choices are made by
  them. The test part is read once, after the last epoch, with the weights of that epoch. Several
  seeds (--seeds 0 1 2) give mean and spread. --peek-test reads it after every epoch and reports the
  best only as "best test epoch (selected on the test set)", which is what that repository's table has.

files, in runs/NAME (NAME: network and data, or --name)
  result.json              settings, versions, all curves, test errors of each seed, mean and spread
  seedN/checkpoint.pt      after each epoch, whole whatever kills the process; the one before is kept
  seedN/weights.pt         after the last epoch, for test.py
  seedN/events...          for TensorBoard: tensorboard --logdir runs --bind_all
  The same command again goes on after the last whole epoch and gives the losses of an unbroken run.

several GPUs or machines
  torchrun --standalone --nproc-per-node 4 --max-restarts 3 reproduction/train.py --net resnet50
  --batch stays what it is: it is divided among the processes and --accumulate, so the losses are those
  of one process to rounding. Batch norm measures the whole batch on GPUs (SyncBatchNorm), the share
  of each process on CPUs, and each of the parts of --accumulate alone. When a worker dies torchrun
  starts all of them again, and they go on from the last checkpoint. On several machines --runs must be
  a folder that all see; start torchrun there with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 set.

exit codes
  0 done; 2 wrong use, no data, a file that cannot be used; 3 the loss is not finite; 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    formed = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    p = argparse.ArgumentParser(description=__doc__, epilog=PROTOCOL, **formed)
    add = p.add_argument
    known = {
        "choices": networks.NETWORKS,
        "metavar": "NET",
        "help": "a name of the list at the end",
    }
    add("--net", "-net", required=True, **known)
    add("--data", choices=data.SETS, default="cifar100", help=says(data.SETS))
    add("--seeds", type=int, nargs="+", default=[0], metavar="N", help="one run each (default: 0)")
    add("--name", help="folder of the run below --runs (default: NET-DATA)")
    add("--runs", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    add("--fresh", action="store_true", help="forget what is in the run's folder, start anew")
    add("--peek-test", action="store_true", help="read the test part every epoch, see below")
    add(
        "--first",
        type=count,
        metavar="N",
        help="only the first N images of each part: to try things",
    )
    g = p.add_argument_group("recipe (default: that of the repository)")
    g.add_argument(
        "--epochs", type=count, default=200, help="200; the milestones are scaled with them"
    )
    g.add_argument(
        "--batch", "-b", type=count, default=128, help="images of one step, all together: 128"
    )
    g.add_argument("--lr", "-lr", type=float, default=0.1, help="0.1; a fifth from 60, 120, 160 on")
    g.add_argument("--warm", "-warm", type=int, default=1, help="epochs in which the rate rises: 1")
    g.add_argument("--weight-decay", type=float, default=5e-4, help="5e-4")
    m = p.add_argument_group("machine")
    m.add_argument(
        "--gpu", "-gpu", action="store_true", help="stop if there is none (it is used anyway)"
    )
    m.add_argument("--cpu", action="store_true", help="do not use a GPU")
    m.add_argument(
        "--accumulate", type=count, default=1, metavar="N", help="parts of a batch, in turn"
    )
    kinds = ("float32", "tf32", "bfloat16", "float16")
    m.add_argument(
        "--precision", choices=kinds, default="float32", help="of products; weights: float32"
    )
    m.add_argument(
        "--channels-last", action="store_true", help="layout that is faster on most GPUs"
    )
    m.add_argument(
        "--compile", action="store_true", help="torch.compile: minutes at first, then faster"
    )
    p.epilog += "\nnetworks (python reproduction/networks.py: parameters and forms)\n  "
    p.epilog += "\n  ".join(f"{name:<16}{entry.form}" for name, entry in networks.NETWORKS.items())
    return p


def says(words: dict[str, str]) -> str:
    return "; ".join(f"{name}: {text}" for name, text in words.items())


def count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


class UseError(Exception):
    """What was asked for cannot be done; in words for whoever typed it."""


# ---- one run -------------------------------------------------------------------------------------


def settings_of(options: argparse.Namespace) -> recipe.Settings:
    names = ("net", "data", "epochs", "batch", "lr", "warm", "weight_decay", "precision", "first")
    chosen = {name: getattr(options, name) for name in names}
    return recipe.Settings(**chosen, peek_test=options.peek_test)


def prepare(
    options, settings, seed: int, process: processes.Processes, parts: data.Data
) -> steps.Run:
    """A network with its first weights, and what trains it."""
    torch.manual_seed(seed)
    network = networks.build(settings.net, parts.classes)
    if settings.precision == "tf32":  # behind the notebooks, which switch it off
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    network = process.synchronised(network).to(process.device, memory_format=layout)
    model = process.wrapped(network)
    model = torch.compile(model) if options.compile else model
    how = {"accumulate": options.accumulate, "memory_format": layout}
    scaler = torch.amp.GradScaler(process.device.type, enabled=settings.precision == "float16")
    optimizer = recipe.optimizer(network, settings)
    return steps.Run(settings, seed, process, network, model, optimizer, scaler, parts, **how)


def restore(run: steps.Run, file: Path) -> list[dict]:
    """Go on from the last checkpoint, if there is one; the record of each epoch so far."""
    saved = checkpoints.load(file)
    if not run.processes.same(saved["epoch"] if saved else 0):
        raise UseError(f"the processes do not see the same {file}: --runs must be a shared folder")
    if not saved:
        return []
    refuse_other(saved["settings"], run.settings, file)
    run.network.load_state_dict(saved["model"])
    run.optimizer.load_state_dict(saved["optimizer"])
    run.scaler.load_state_dict(saved["scaler"])
    return saved["history"]


def refuse_other(found: dict, wanted: recipe.Settings, file: Path) -> None:
    """A run is one set of settings: another one does not go on where it stopped."""
    wanted = wanted.plain()
    differ = [f"{k} {found.get(k)}, now {wanted[k]}" for k in wanted if found.get(k) != wanted[k]]
    if differ:
        raise UseError(
            f"{file} was made with {'; '.join(differ)}. Choose another --name, or --fresh to start anew."
        )


def train(run: steps.Run, folder: Path) -> tuple[list[dict], dict]:
    """All epochs that are not done yet, then the test; the record of each epoch, and the test's."""
    process, settings = run.processes, run.settings
    history = restore(run, folder / "checkpoint.pt")
    if history:
        process.say(f"seed {run.seed}: goes on after epoch {len(history)} of {settings.epochs}")
    test, per_epoch = run.data.seal(), len(run.batches(0))
    bar = {
        "total": settings.epochs * per_epoch,
        "initial": len(history) * per_epoch,
        "unit": "step",
    }
    off = None if process.first else True  # None: no bar where nobody watches
    with (
        board(folder, process, len(history)) as writer,
        tqdm(disable=off, leave=False, **bar) as shown,
    ):
        for epoch in range(len(history), settings.epochs):
            shown.set_description(f"seed {run.seed}, epoch {epoch + 1}")
            start = time.monotonic()
            found = {"epoch": epoch + 1, "train_loss": steps.train_epoch(run, epoch, shown.update)}
            found["learning_rate"] = run.optimizer.param_groups[0]["lr"]
            found |= named("validation", steps.evaluate(run, run.data.validation))
            if settings.peek_test:
                found |= named("peeked_test", steps.evaluate(run, test.open(again=True)))
            steps.refuse_not_finite(torch.tensor([found["validation_loss"]]), epoch, per_epoch - 1)
            found["seconds"] = round(time.monotonic() - start, 3)
            history.append(found)
            if process.first:
                keep(run, folder, history)
                show(writer, found)
                tqdm.write(line(found, settings, shown), file=sys.stdout)
                sys.stdout.flush()
    measured = steps.evaluate(run, test.open(again=settings.peek_test))
    if process.first:
        content = {"net": settings.net, "data": settings.data, "seed": run.seed}
        content |= {"epoch": settings.epochs, "settings": settings.plain()}
        content |= {"model": {name: t.cpu() for name, t in run.network.state_dict().items()}}
        checkpoints.write(folder / "weights.pt", lambda opened: torch.save(content, opened))
    return history, measured


def named(part: str, measured: dict[str, float]) -> dict[str, float]:
    return {f"{part}_{name}": value for name, value in measured.items()}


def keep(run: steps.Run, folder: Path, history: list[dict]) -> None:
    content = {"epoch": len(history), "settings": run.settings.plain(), "seed": run.seed}
    content |= {"net": run.settings.net, "data": run.settings.data, "history": history}
    content |= {"model": run.network.state_dict(), "optimizer": run.optimizer.state_dict()}
    checkpoints.save(folder / "checkpoint.pt", content | {"scaler": run.scaler.state_dict()})


@contextlib.contextmanager
def board(folder: Path, process: processes.Processes, done: int):
    """TensorBoard's writer; what it has of epochs that a kill has undone is not shown."""
    if not process.first:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), purge_step=done + 1) as writer:
        yield writer


def show(writer, found: dict) -> None:
    for name, value in found.items():
        if name != "epoch":
            writer.add_scalar(name.replace("_", "/", 1), value, found["epoch"])
    writer.flush()


def line(found: dict, settings: recipe.Settings, shown: tqdm) -> str:
    """An epoch in words, with the time left when it goes on at the same speed."""
    left = int((settings.epochs - found["epoch"]) * found["seconds"])
    return (
        f"epoch {found['epoch']:>3} of {settings.epochs}  rate {found['learning_rate']:.2g}  "
        f"loss {found['train_loss']:.4f}  validation loss {found['validation_loss']:.4f}, "
        f"error {found['validation_top1_error']:.2f} %  {found['seconds']:.1f} s, "
        f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
    )


# ---- several seeds, and what came of them --------------------------------------------------------


def result_of(history: list[dict], measured: dict) -> dict:
    """The record of one seed: the last epoch is what counts; the best one only where it was asked for."""
    last = history[-1]
    found = {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "test": measured}
    found["validation"] = {name: last[f"validation_{name}"] for name in measured}
    if "peeked_test_top1_error" in last:
        best = min(history, key=lambda epoch: epoch["peeked_test_top1_error"])
        error = {"epoch": best["epoch"], "top1_error": best["peeked_test_top1_error"]}
        found["best test epoch (selected on the test set)"] = error
    names = [name for name in last if name != "epoch"]
    return found | {"curves": {name: [epoch[name] for epoch in history] for name in names}}


def spread(values: list[float]) -> dict:
    """Mean, ends, and the sample's standard deviation where there is one."""
    found = {"mean": statistics.fmean(values), "least": min(values), "most": max(values)}
    return found | ({"deviation": statistics.stdev(values)} if len(values) > 1 else {})


def surroundings(process: processes.Processes) -> dict:
    name = platform.processor() or platform.machine()
    if process.device.type == "cuda":
        name = torch.cuda.get_device_name(process.device)
    versions = {p: importlib.metadata.version(p) for p in ("torchvision", "timm", "numpy")}
    versions |= {"torch": torch.__version__, "python": platform.python_version()}
    return {
        "device": f"{process.device.type}: {name}",
        "processes": process.world,
        "versions": versions,
    }


def record(file: Path, run: steps.Run, found: dict) -> dict:
    """Put a seed's result beside those of the others; the whole record."""
    content = checkpoints.read_json(file)
    seeds = content.get("seeds", {}) | {str(run.seed): found | surroundings(run.processes)}
    errors = {
        name: [s["test"][name] for s in seeds.values()] for name in ("top1_error", "top5_error")
    }
    content = {
        "settings": run.settings.plain(),
        "parameters": networks.parameters(run.network),
        "protocol": "last epoch; validation part for every choice; test part read once, at the end",
        "test": {name: spread(values) for name, values in errors.items()},
        "seeds": seeds,
    }
    if run.settings.peek_test:
        content["protocol"] = "last epoch; the test part was read after every epoch (--peek-test)"
    checkpoints.write_json(file, content)
    return content


def train_seeds(options: argparse.Namespace, process: processes.Processes) -> None:
    settings = settings_of(options)
    if settings.batch % (process.world * options.accumulate):
        parts = f"{process.world} processes times {options.accumulate} parts"
        raise UseError(f"a batch of {settings.batch} cannot be divided into {parts}")
    folder = options.runs / (options.name or f"{settings.net}-{settings.data}")
    if options.fresh and process.first and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        forget(folder)
    process.wait()
    parts = data.load(settings.data, first=settings.first)
    parts.train, parts.validation = (
        tuple(t.to(process.device) for t in part) for part in (parts.train, parts.validation)
    )
    for seed in options.seeds:
        content = checkpoints.read_json(folder / "result.json")
        if content:
            refuse_other(content["settings"], settings, folder / "result.json")
        process.wait()
        if str(seed) in content.get("seeds", {}):
            process.say(f"seed {seed}: done before, its test part is not read again")
            continue
        run = prepare(options, settings, seed, process, parts)
        found = result_of(*train(run, folder / f"seed{seed}"))
        if process.first:
            record(folder / "result.json", run, found)
            process.say(f"seed {seed}: {words(found)}")
    if process.first:
        print(summary(checkpoints.read_json(folder / "result.json")))
        print(folder / "result.json")


def forget(folder: Path) -> None:
    """Remove what runs have left in a folder, and nothing else."""
    files = [folder / "result.json", *folder.glob("seed*/*.pt"), *folder.glob("seed*/events.out.*")]
    for file in files:
        file.unlink(missing_ok=True)


def words(found: dict) -> str:
    said = f"test error {found['test']['top1_error']:.2f} % (top 5: {found['test']['top5_error']:.2f} %)"
    said += f", validation error {found['validation']['top1_error']:.2f} %, last epoch"
    for name in (name for name in found if name.startswith("best")):
        said += f"; {name}: epoch {found[name]['epoch']}, {found[name]['top1_error']:.2f} %"
    return said


def summary(content: dict) -> str:
    found, n = content["test"]["top1_error"], len(content["seeds"])
    said = f"test error of the last epoch, {n} seed{'s' * (n > 1)}: {found['mean']:.2f} %"
    if n > 1:
        said += (
            f" (deviation {found['deviation']:.2f}, {found['least']:.2f} to {found['most']:.2f})"
        )
    return said


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    process = processes.Processes(int(os.environ.get("RANK", 0)), 1, torch.device("cpu"))
    again = f"the same command goes on: {shlex.join(['python', sys.argv[0], *(arguments or sys.argv[1:])])}"
    try:
        process = processes.join(gpu=options.gpu, cpu=options.cpu)
        train_seeds(options, process)
    except steps.NotFinite as error:
        process.say(
            f"{error}. Try --lr {options.lr / 10:g}, --warm {options.warm + 4}, or --precision bfloat16 in "
            "place of float16. The checkpoint of the epoch before is kept.",
            file=sys.stderr,
        )
        return 3
    except (UseError, data.DataError, checkpoints.FileError, processes.NoDevice) as error:
        process.say(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        process.say(f"\ninterrupted; {again}", file=sys.stderr)
        return 130
    finally:
        processes.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
