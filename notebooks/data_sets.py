# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Data sets
#
# One set in several formats, the package datasets, what a memory map saves, and a server that
# fails in all the ways a download can. The text to it is the
# [chapter](../chapters/data_sets.rst).

# %%
import csv
import json
import os
import re
import socket
import tempfile
import textwrap
import threading
import urllib.error
import urllib.request
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import huggingface_hub.constants

huggingface_hub.constants.HF_HUB_OFFLINE = True  # nothing of this page asks the hub

import datasets
import matplotlib.pyplot as plt
import numpy as np
import psutil
import pyarrow
import pyarrow.parquet
from PIL import Image
from torch.utils.data import DataLoader

from workbench import claim, downloads, images, plots, reading, record, seed, table

seed(0)
datasets.disable_progress_bars()

# %% [markdown]
# ## One set, several formats

# %% tags=["rows"]
rows = []
made = reading.generated("train", 3000, seed=0)
for number, article in enumerate(made["data"]):
    paragraph = article["paragraphs"][0]
    asked = paragraph["qas"][0]
    rows.append(
        {
            "id": f"{number:05d}",
            "text": paragraph["context"],
            "words": len(paragraph["context"].split()),
            "answerable": not asked["is_impossible"],
        }
    )
rows[7]


# %% tags=["writers"]
def write_json(rows: list[dict], path: Path) -> None:
    """A JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(rows: list[dict], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_text(rows: list[dict], path: Path) -> None:
    """A text a line, and nothing else."""
    path.write_text("".join(row["text"] + "\n" for row in rows), encoding="utf-8")


def write_parquet(rows: list[dict], path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_arrow(rows: list[dict], path: Path) -> None:
    """Batches of rows as they lie in memory."""
    whole = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(str(path), whole.schema) as stream:
        stream.write_table(whole, max_chunksize=1000)


WRITERS = {
    "json": write_json,
    "csv": write_csv,
    "text": write_text,
    "parquet": write_parquet,
    "arrow": write_arrow,
}

# %% tags=["formats"]
folder = Path(tempfile.mkdtemp())
sizes = {}
loaded = {}
for kind, write in WRITERS.items():
    path = folder / f"rows.{kind}"
    write(rows, path)
    sizes[kind] = path.stat().st_size
    loaded[kind] = datasets.load_dataset(
        kind, data_files=str(path), split="train", cache_dir=str(folder / "cache")
    )

# %% tags=["formats-result"]
kept = {}
told = []
for kind, dataset in loaded.items():
    types = ", ".join(f"{n}: {f.dtype}" for n, f in dataset.features.items())
    kept[kind] = dataset.to_list() == rows
    told.append((kind, f"{sizes[kind] / 1000:.0f}", types, kept[kind]))
table(told, ("format", "kB", "columns that come back", "equal rows"))

# %% tags=["formats-claims"]
whole = {kind for kind, equal in kept.items() if equal}
claim(whole == {"json", "parquet", "arrow"}, "JSON, Parquet and Arrow give back all")
claim(loaded["csv"][7]["id"] == 7, "CSV takes the id for a number")
claim(loaded["text"].column_names == ["text"], "text keeps one column")
claim(sizes["parquet"] < 0.5 * min(sizes["json"], sizes["arrow"]), "Parquet is smaller")
record("rows", len(rows))
for kind, size in sizes.items():
    record(f"kB.{kind}", size / 1000)

# %% tags=["imagefolder"]
digits, labels = images.digits().train
for number, (digit, label) in enumerate(zip(digits[:60], labels[:60])):
    place = folder / "digits" / "train" / f"{label.item()}"
    place.mkdir(parents=True, exist_ok=True)
    pixels = (255 * digit[0]).round().numpy().astype(np.uint8)
    Image.fromarray(pixels).save(place / f"{number:02d}.png")

# %% tags=["imagefolder-run"]
pictures = datasets.load_dataset(
    "imagefolder",
    data_dir=str(folder / "digits"),
    split="train",
    cache_dir=str(folder / "cache"),
)
pictures.features["label"].names

# %% [markdown]
# ## A map is done once


# %% tags=["plus"]
def plus(by: int):
    """A function for `map`: counts letters, and adds a number."""
    return lambda row: {"letters": len(row["text"]) + by}


def arrow_files(folder: Path) -> int:
    return len(list(folder.rglob("*.arrow")))


# %% tags=["map"]
first = loaded["json"].map(plus(0))
told = []
for name, function in (("again", plus(0)), ("with another number", plus(1))):
    before = arrow_files(folder)
    second = loaded["json"].map(function)
    same = second._fingerprint == first._fingerprint
    told.append((name, same, arrow_files(folder) - before))
table(told, ("map", "same fingerprint", "new files"))

# %% tags=["map-claims"]
claim(told[0][1:] == (True, 0), "the same function is not run again")
claim(told[1][1:] == (False, 1), "another one is")

# %% tags=["stream"]
before = arrow_files(folder)
stream = datasets.load_dataset(
    "json", data_files=str(folder / "rows.json"), split="train", streaming=True
)
next(iter(stream.filter(lambda row: not row["answerable"])))

# %% tags=["stream-claims"]
claim(arrow_files(folder) == before, "a stream writes no file")

# %% tags=["torch"]
numbers = loaded["json"].select_columns(["words", "answerable"]).with_format("torch")
batch = next(iter(DataLoader(numbers, batch_size=32)))
{name: (tuple(column.shape), column.dtype) for name, column in batch.items()}

# %% tags=["offline"]
try:
    datasets.load_dataset("rajpurkar/squad_v2")
except (OSError, datasets.exceptions.DatasetsError) as error:
    offline = type(error).__name__
    print(f"{offline}: {str(error)[:72]}")

# %% [markdown]
# ## What a memory map saves


# %% tags=["resident"]
def resident(path: Path) -> float:
    """MB of a mapped file that are in this process's memory (not on macOS)."""
    if not hasattr(psutil.Process, "memory_maps"):
        return 0.0
    maps = psutil.Process().memory_maps()
    return sum(m.rss for m in maps if m.path == str(path)) / 1e6


def allocated() -> float:
    """MB that Arrow holds outside of mapped files."""
    return pyarrow.total_allocated_bytes() / 1e6


# %% tags=["large"]
large = folder.resolve() / "large.arrow"
write_arrow([{"id": n, "values": [float(n)] * 128} for n in range(20000)], large)
megabytes = large.stat().st_size / 1e6
megabytes

# %% tags=["mapped"]
steps = {"nothing": (0, resident(large))}
dataset = datasets.Dataset.from_file(str(large))
steps["opened"] = (0, resident(large))
before = allocated()
dataset[12345]
steps["one row"] = (1, resident(large))
for start in range(0, 2000, 500):
    dataset[start : start + 500]
steps["a tenth"] = (2000, resident(large))
outside = allocated() - before
for start in range(0, 20000, 500):
    dataset[start : start + 500]
steps["all"] = (20000, resident(large))

# %% tags=["in-memory"]
before = allocated()
with pyarrow.OSFile(str(large)) as opened:
    copied = pyarrow.ipc.open_stream(opened).read_all()
in_memory = allocated() - before
in_memory

# %% tags=["mapped-result"]
told = [(name, read, f"{size:.1f}") for name, (read, size) in steps.items()]
table(told, ("mapped file", "rows read", "MB in memory"))

# %% tags=["resident-figure"] alt="Bars of MB in memory. Mapped: opened and one row take less than a fifth of the file, a tenth of the rows less than two fifths, all rows the whole file. A line at the end of the last bar marks what a copy takes."
_, axes = plt.subplots(figsize=(5, 2.4))
names = [name for name in steps if name != "nothing"]
axes.barh(range(len(names)), [steps[n][1] for n in names], color=plots.COLOURS[0])
axes.axvline(in_memory, color=plots.COLOURS[1])
axes.set(yticks=range(len(names)), yticklabels=names, ylim=(3.6, -0.6))
axes.set(xlabel="MB in memory", xlim=(0, 1.25 * megabytes))
axes.annotate(
    "a copy", (in_memory, 0), (5, 0), textcoords="offset points",
    color=plots.COLOURS[1], va="center",
)  # fmt: skip
axes.set_axisbelow(True)

# %% tags=["resident-claims"]
if hasattr(psutil.Process, "memory_maps"):
    claim(steps["one row"][1] < 0.2 * megabytes, "a row needs a part of the file")
    claim(steps["a tenth"][1] < 0.4 * megabytes, "a tenth needs a part")
    claim(steps["all"][1] > 0.9 * megabytes, "all needs all")
claim(in_memory > 0.9 * megabytes, "a copy needs all at once")
claim(abs(outside) < 0.1 * megabytes, "and nothing beside the map")
record("megabytes", megabytes)
record("rows.large", len(dataset))
record("in.memory", in_memory)
for name, (_, size) in steps.items():
    record(f"resident.{name}", size)

# %% [markdown]
# ## How a file is fetched

# %% tags=["server"]
FILE = bytes(range(256)) * 400


class Misbehaving(BaseHTTPRequestHandler):
    """Serves FILE as /right.bin; every other name is a way to fail."""

    def do_GET(self):
        self.server.asked.append(self.path)
        way = self.path.strip("/").removesuffix(".bin")
        begin = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if way == "silent":
            return self.server.over.wait(10)
        body = {"page": b"<!DOCTYPE html><p>Log in", "other": FILE[::-1]}.get(way, FILE)
        if way == "broken" and begin:
            self.head(206, len(FILE) - begin)
            return self.wfile.write(FILE[begin:])
        self.head(
            403 if way == "forbidden" else 200, len(body) + 10**15 * (way == "huge")
        )
        self.wfile.write(
            body[: len(body) // 2] if way in ("cut", "broken", "huge") else body
        )

    def head(self, status: int, length: int):
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_):
        pass  # the log of a server is no output of this page


def serve() -> ThreadingHTTPServer:
    """A server on this machine, in a thread of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Misbehaving)
    server.asked = []
    server.over = threading.Event()
    server.handle_error = lambda *_: None  # a client that goes away is no news
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


# %% tags=["ways"]
WAYS = {
    "right": "nothing fails",
    "nowhere": "no such host, or no network",
    "closed": "nobody listens",
    "forbidden": "403, forbidden",
    "page": "a page to log in",
    "cut": "ends early, each time",
    "broken": "ends early, once",
    "other": "another file",
    "silent": "no answer",
    "huge": "no room on the disk",
}


def told_by(error: Exception) -> str:
    """What an error says, without addresses, folders and advice."""
    text = str(error).split("could not be fetched: ")[-1].split(". Place it")[0]
    text = re.sub(r"http://\S+: ", "", text)
    text = re.sub(r"\S+ has room for [\d,]+", "the folder has room for less", text)
    return re.sub(r"([0-9a-f]{8})[0-9a-f]{56}", r"\1…", text)


def left(path: Path) -> str:
    """What is there under the name of a file."""
    if not path.exists():
        return "nothing"
    return "the file" if path.read_bytes() == FILE else "something else"


# %% tags=["fetches"]
def by_urlretrieve(address: str, path: Path) -> None:
    urllib.request.urlretrieve(address, path)


def by_place(address: str, path: Path) -> None:
    with mock.patch.dict(
        os.environ, {"DATA_ROOT": str(path.parent), "DATA_MIRROR": ""}
    ):
        downloads.place(path.name, [address], sha256(FILE).hexdigest())


def tried(fetch, address: str, path: Path) -> tuple[str, str]:
    """What a fetch says, and what it leaves under the file's name."""
    silent = mock.patch.object(downloads.workbench, "BUILDING", True)  # words, bars
    try:
        with silent:
            fetch(address, path)
        words = "done"
    except (OSError, ValueError, urllib.error.ContentTooShortError) as error:
        words = told_by(error)
    return words, left(path)


# %% tags=["fetch"]
server = serve()
port = server.server_port
with socket.create_server(("127.0.0.1", 0)) as unused:
    closed = unused.getsockname()[1]
hosts = {"nowhere": "nowhere.invalid", "closed": f"127.0.0.1:{closed}"}
outcomes = {}
with mock.patch.object(downloads, "STALL", 0.5):
    socket.setdefaulttimeout(0.5)
    for way in WAYS:
        address = f"http://{hosts.get(way, f'127.0.0.1:{port}')}/{way}.bin"
        for fetch in (by_urlretrieve, by_place):
            place = folder / fetch.__name__
            place.mkdir(exist_ok=True)
            outcomes[way, fetch] = tried(fetch, address, place / f"{way}.bin")
    socket.setdefaulttimeout(None)

# %% tags=["fetch-result"]
told = []
for way, words in WAYS.items():
    naive, careful = (outcomes[way, fetch] for fetch in (by_urlretrieve, by_place))
    told.append((words, naive[1], careful[1], careful[0]))
table(told, ("what fails", "urlretrieve leaves", "the book leaves", "and says"))

# %% tags=["fetch-claims"]
wrong = {
    fetch.__name__: sum(outcomes[way, fetch][1] == "something else" for way in WAYS)
    for fetch in (by_urlretrieve, by_place)
}
record("wrong.naive", wrong["by_urlretrieve"])
record("ways", len(WAYS) - 1)
claim(wrong["by_place"] == 0, "no wrong file under the name")
claim(wrong["by_urlretrieve"] >= 4, "urlretrieve leaves some")
claim(outcomes["broken", by_place] == ("done", "the file"), "taken up again")
claim(outcomes["right", by_place] == ("done", "the file"), "the file that is served")

# %% tags=["later"]
asked = len(server.asked)
place = folder / "by_place" / "right.bin"
again = tried(by_place, f"http://127.0.0.1:{port}/right.bin", place)
requests = len(server.asked) - asked
place.write_bytes(FILE[1:])
damaged = tried(by_place, f"http://127.0.0.1:{port}/right.bin", place)
server.over.set()
server.shutdown()
server.server_close()

# %% tags=["later-result"]
record("requests", requests)
claim(requests == 0 and again == ("done", "the file"), "a file that is there is kept")
claim("delete it" in damaged[0], "a damaged one is named")
print(textwrap.fill(damaged[0].replace(str(place.parent), "…"), 80))

# %% [markdown]
# ## What we saw
#
# - JSON, Parquet and Arrow give back the rows that were written; CSV guesses types.
# - A mapped file takes memory for what is read of it.
# - A file is right when its SHA-256 is; that it exists says little.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
columns = pyarrow.parquet.read_table(folder / "rows.parquet", columns=["words"])
total = sum(columns["words"].to_pylist())

# %% tags=["solution-1-result"]
claim(total == sum(row["words"] for row in rows), "one column is enough")
record("total.words", total)

# %% tags=["solution-2"]
typed = datasets.Features({**loaded["csv"].features, "id": datasets.Value("string")})
repaired = datasets.load_dataset(
    "csv",
    data_files=str(folder / "rows.csv"),
    split="train",
    features=typed,
    cache_dir=str(folder / "cache"),
)

# %% tags=["solution-2-result"]
claim(repaired.to_list() == rows, "with types given, CSV gives back all")
repaired[7]["id"]


# %% tags=["solution-3"]
def cautious(address: str, path: Path, expected: str) -> None:
    """urlretrieve under another name, and the right one only for the right bytes."""
    partial = path.with_suffix(".part")
    urllib.request.urlretrieve(address, partial)
    if sha256(partial.read_bytes()).hexdigest() != expected:
        raise ValueError(f"{address} is another file")
    partial.replace(path)
