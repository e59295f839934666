"""Files that are whole or not there, whatever kills the process that writes them.

A file is written under another name, forced to the disk and renamed; the checkpoint before it is
kept. What is read is tensors and plain values only (``weights_only``): no file can run code.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

KIND = "checkpoint of reproduction/train.py, version 1"
ABOUT = ("net", "data", "seed", "epoch", "settings")  # what a file says of its weights


class FileError(Exception):
    """A file that cannot be used, in words for whoever typed the command."""


def write(file: Path, put: Callable[[BinaryIO], None], keep: Path | None = None) -> None:
    """Put a file in its place at once; the one that was there goes to `keep`, if given."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as opened:
        put(opened)
        opened.flush()
        os.fsync(opened.fileno())
    if keep and file.exists():
        os.replace(file, keep)  # a kill behind this line leaves `keep`, which is whole
    os.replace(part, file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, is on the disk
    finally:
        os.close(folder)


def write_json(file: Path, content) -> None:
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write(file, lambda opened: opened.write(text.encode()))


def read_json(file: Path) -> dict:
    """What a file holds; nothing where there is no such file."""
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise FileError(f"{file} is no JSON file ({error}): remove it") from error


def previous(file: Path) -> Path:
    return file.with_name(f"{file.stem}.previous{file.suffix}")


def save(file: Path, content: dict) -> None:
    """Write a checkpoint and keep the one before it."""
    write(file, lambda opened: torch.save({"kind": KIND} | content, opened), keep=previous(file))


def load(file: Path) -> dict | None:
    """The last checkpoint, on the CPU; None where there is none. FileError when it cannot be used."""
    for path in (file, previous(file)):
        if path.exists():
            content = read(path)
            if not isinstance(content, dict) or content.get("kind") != KIND:
                raise FileError(f"{path} is no {KIND}; remove it, or choose another --name")
            return content
    return None


def read(file: Path):
    """What torch.save has written, tensors and plain values only; FileError says what is wrong."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each have their own
        reason = str(error).strip().partition("\n")[0][:120]
        other = previous(file)
        hint = f"; {other.name} beside it holds the epoch before it" if other.exists() else ""
        raise FileError(
            f"{file} is damaged or no file of weights ({type(error).__name__}: {reason}). "
            f"Remove it{hint}."
        ) from error


def load_weights(network: nn.Module, file: Path, name: str) -> dict:
    """Fill a network from weights or a checkpoint of train.py, or from any state dictionary.

    Returns what else the file says, see ABOUT, where train.py has written it.
    """
    if not file.is_file():
        raise FileError(f"there is no file {file}")
    content = read(file)
    about = content if isinstance(content, dict) and isinstance(content.get("model"), dict) else {}
    if about.get("net", name) != name:
        raise FileError(f"{file} holds the weights of {about['net']}: --net {about['net']}")
    try:
        network.load_state_dict(about.get("model", content))
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = "\n".join(str(error).splitlines()[:4])
        raise FileError(f"{file} does not fit {name}: {reason}") from error
    return {key: value for key, value in about.items() if key in ABOUT}
