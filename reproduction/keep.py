#!/usr/bin/env python3
"""Keep the record of a whole run, so that the book's chapter shows it.

python reproduction/keep.py runs/resnet50-cifar100/result.json

The record (date, device, versions, seeds, settings, curves) is added to
notebooks/workbench/long_runs.py, which the chapter's notebook reads. Only runs of the whole recipe on
CIFAR-100 are kept, with the test part read once. Exit code 2 and a line of words for any other.
"""

import argparse
import json
import sys
import textwrap
from pathlib import Path

if __name__ == "__main__":  # a script finds what stands beside its folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from reproduction import checkpoints, recipe

RECORDS = Path(__file__).resolve().parent.parent / "notebooks" / "workbench" / "long_runs.py"
END = '"""\n\n\ndef read'  # what stands behind the records
WIDTH = 88


class KeepError(Exception):
    """Why a file is not kept; in words for whoever typed the command."""


def record_of(result: dict) -> dict:
    """What is kept of a result.json of train.py; curves with four digits, accuracies as shares."""
    try:
        settings, seeds = result["settings"], result["seeds"]
        first = next(iter(seeds.values()))
        kept = {"net": settings["net"], "data": settings["data"], "date": first["finished"][:10]}
        kept |= {"device": first["device"], "versions": first["versions"], "settings": settings}
        kept["seeds"] = [seed_of(number, found) for number, found in seeds.items()]
    except (KeyError, TypeError, StopIteration, AttributeError) as error:
        raise KeepError(f"not a result.json of reproduction/train.py: {error!r}") from error
    whole = recipe.Settings(settings["net"], "cifar100").plain()
    differ = [n for n, value in whole.items() if n != "precision" and settings.get(n) != value]
    if differ:
        raise KeepError(
            "only runs of all 200 epochs of the recipe on the whole of CIFAR-100, with the test part "
            f"read once, are kept; this one differs in {', '.join(differ)}"
        )
    return kept


def seed_of(number: str, found: dict) -> dict:
    curves = found["curves"]
    return {
        "seed": int(number),
        "loss": [round(value, 4) for value in curves["train_loss"]],
        "validation": [as_share(error) for error in curves["validation_top1_error"]],
        "test": as_share(found["test"]["top1_error"]),
    }


def as_share(error: float) -> float:
    """The share that is right, of an error in percent."""
    return round(1 - error / 100, 6)


def add(record: dict, file: Path = RECORDS) -> None:
    """Put a record behind the others; the same one a second time is refused."""
    text = file.read_text(encoding="utf-8")
    before, end, rest = text.partition(END)
    head, quotes, old = before.rpartition('"""')
    if not (end and quotes):
        raise KeepError(f"{file} is not in the form that this script knows")
    if record in json.loads(f"[{old}]"):
        raise KeepError("this run has been kept before")
    lines = textwrap.fill(json.dumps(record), WIDTH, break_long_words=False, break_on_hyphens=False)
    old = f"{old.rstrip()},\n" if old.strip() else "\n"
    text = f"{head}{quotes}{old}{lines}\n{end}{rest}"
    checkpoints.write(file, lambda opened: opened.write(text.encode()))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path, help="the result.json of a run")
    options = parser.parse_args()
    try:
        record = record_of(json.loads(options.result.read_text(encoding="utf-8")))
        add(record)
    except (KeepError, OSError, ValueError) as error:
        print(f"{options.result}: {error}", file=sys.stderr)
        return 2
    print(f"{record['net']}, {len(record['seeds'])} seeds: kept in {RECORDS}; make html shows it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
