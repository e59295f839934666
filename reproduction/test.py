#!/usr/bin/env python3
"""Measure trained weights: loss, top-1 and top-5 error, number of parameters.

    python reproduction/test.py --net vgg16_bn --weights runs/vgg16_bn-cifar100/seed0/weights.pt

FILE is weights.pt or a checkpoint of train.py, or any state dictionary that fits the network.

train.py has read the test part of a finished run, once. For its weights this script shows that
record and reads nothing; --again reads anew, and the number of readings is put into result.json.
--part validation measures on the images that choices are made by, as often as you like.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # its own folder has a test.py, which is a module of Python
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from reproduction import checkpoints, data, networks, processes, recipe, steps


def parser() -> argparse.ArgumentParser:
    formed = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    epilog = "exit codes\n  0 done; 2 wrong use, no data, a file that cannot be used"
    p = argparse.ArgumentParser(description=__doc__, epilog=epilog, **formed)
    add = p.add_argument
    add(
        "--net",
        "-net",
        required=True,
        choices=networks.NETWORKS,
        metavar="NET",
        help="see train.py",
    )
    add("--weights", "-weights", required=True, type=Path, metavar="FILE")
    add("--data", choices=data.SETS, help="default: what the file was trained on, else cifar100")
    add("--part", choices=("test", "validation"), default="test", help="default: test")
    add("--again", action="store_true", help="read the test part once more")
    add("--batch", "-b", type=int, default=500, help="images at a time: 500")
    add("--gpu", "-gpu", action="store_true", help="stop if there is none (it is used anyway)")
    add("--cpu", action="store_true", help="do not use a GPU")
    return p


def classes_of(file: Path, net: str) -> int | None:
    """How many classes the weights have: the length of the last tensor."""
    content = checkpoints.read(file) if file.is_file() else None
    model = content.get("model", content) if isinstance(content, dict) else None
    last = list(model.values())[-1] if isinstance(model, dict) and model else None
    return len(last) if isinstance(last, torch.Tensor) and last.ndim == 1 else None


def record_of(file: Path, seed) -> tuple[Path, dict]:
    """The result.json of the run that the weights belong to, and what it holds of their seed."""
    path = file.resolve().parent.parent / "result.json"
    seeds = checkpoints.read_json(path).get("seeds", {})
    return path, seeds.get(str(seed), {})


def measure(options: argparse.Namespace, network, about: dict, parts: data.Data) -> dict:
    process = processes.join(gpu=options.gpu, cpu=options.cpu)
    settings = recipe.Settings(options.net, about.get("data", ""), batch=options.batch)
    network = network.to(process.device)
    optimizer, scaler = recipe.optimizer(network, settings), torch.amp.GradScaler(enabled=False)
    run = steps.Run(settings, 0, process, network, network, optimizer, scaler, parts)
    part = parts.validation if options.part == "validation" else parts.seal().open()
    return steps.evaluate(run, part, batch=options.batch)


def note_reading(path: Path, seed, found: dict) -> None:
    """One more reading of the test part, in the record of the run."""
    content = checkpoints.read_json(path)
    readings = found.get("test_readings", 1) + 1
    content["seeds"][str(seed)]["test_readings"] = readings
    checkpoints.write_json(path, content)
    print(f"The test part has been read {readings} times with the weights of this run.")


def test(options: argparse.Namespace) -> None:
    classes = classes_of(options.weights, options.net) or 100
    network = networks.build(options.net, classes)
    about = checkpoints.load_weights(network, options.weights, options.net)
    path, found = record_of(options.weights, about.get("seed"))
    finished = (
        options.part == "test" and found and about["epoch"] == len(found["curves"]["seconds"])
    )
    if finished and not options.again:
        print(f"{path} has the reading of the test part by train.py; --again reads anew.")
        measured = found["test"]
    else:
        first = about.get("settings", {}).get("first")
        parts = data.load(options.data or about.get("data", "cifar100"), first=first)
        measured = measure(options, network, about, parts)
        if finished:
            note_reading(path, about["seed"], found)
    print(f"{options.net}: {networks.parameters(network):,} parameters")
    print(f"{options.part} part: loss {measured['loss']:.4f}")
    print(f"top-1 error {measured['top1_error']:.2f} %")
    print(f"top-5 error {measured['top5_error']:.2f} %")


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        test(options)
    except (data.DataError, checkpoints.FileError, processes.NoDevice) as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        processes.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
