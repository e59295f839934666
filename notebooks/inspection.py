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
# # Looking into a network
#
# One small network and six tools that show it: `print`, torchinfo, torch.fx, the graph of
# autograd, an ONNX file as Netron draws it, and the graph of TensorBoard. Fifteen changes of the
# network tell which tool sees what.
# The text to it is the [chapter](../chapters/inspection.rst).

# %%
import contextlib
import functools
import importlib.util
import io
import itertools
import json
import logging
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import gpustat
import matplotlib.pyplot as plt
import netron
import onnx
import pynvml
import torch
import torchinfo
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from workbench import claim, device, record, seed, table
from workbench import counting, diagrams, images, plots, protobuf

logging.getLogger("torch.onnx").setLevel(logging.ERROR)
logging.getLogger("tensorboard").setLevel(logging.ERROR)
logging.getLogger().addHandler(
    logging.NullHandler()
)  # else netron adds one that prints
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)

# %% [markdown]
# ## The network
#
# It holds one of each: a sum, a function, a buffer, a detached path, a module nobody calls.


# %% tags=["block"]
class Block(nn.Module):
    """x + second(relu(first(x))): (B, 8, H, W) -> (B, 8, H, W)."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x)))


# %% tags=["network"]
class Sample(nn.Module):
    """A small network with something for each tool: (B, 1, H, W) -> (B, 10)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.tensor(0.5))
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.block = Block()
        self.side = nn.Linear(8, 10)
        self.head = nn.Linear(8, 10)
        self.spare = nn.Linear(8, 10)  # never called

    def features(self, x: Tensor) -> Tensor:
        return self.block(self.act(self.norm(self.stem(x - self.centre))))

    def scores(self, x: Tensor) -> Tensor:
        return self.head(x) + self.side(x.detach())  # no gradient through the side

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.features(x).mean((2, 3)))


# %%
seed(0)
network = Sample().eval()
x = torch.rand(1, 1, 16, 16)

# %% tags=["printed"]
print(network)

# %%
spare = counting.parameters(network.spare)
record("spare", spare)

# %% [markdown]
# ## A table of calls: hooks


# %% tags=["calls"]
class Called(NamedTuple):
    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


def calls(network: nn.Module, x: Tensor) -> list[Called]:
    """What torchinfo shows: modules without children, in the order of their calls."""
    found = []

    def note(name: str):
        def hook(module, inputs, output):
            count = counting.parameters(module)
            kind = type(module).__name__
            found.append(Called(name, kind, tuple(output.shape), count))

        return hook

    leaves = [(n, m) for n, m in network.named_modules() if not [*m.children()]]
    hooks = [module.register_forward_hook(note(name)) for name, module in leaves]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return found


# %%
def summary(network: nn.Module, x: Tensor):
    """torchinfo's summary as the reading list calls it; prints nothing."""
    rows = ("depth", "var_names")
    return torchinfo.summary(
        network, input_data=x, depth=4, row_settings=rows, mode="eval", verbose=0
    )


# %% tags=["torchinfo"]
lines = str(summary(network, x)).split("\n")
print("\n".join(line.rstrip() for line in lines[:16]))

# %%
theirs = [
    (i.var_name, i.class_name, tuple(i.output_size), i.num_params)
    for i in summary(network, x).summary_list
    if i.is_leaf_layer
]
ours = [(c.name.split(".")[-1], *c[1:]) for c in calls(network, x)]
claim(ours == theirs, "the hooks give torchinfo's rows")
claim("spare" not in {name for name, *_ in theirs}, "torchinfo has no row for spare")
whole = summary(network, x).summary_list[0]
claim(whole.leftover_params() == spare, "spare stands in the row of the whole network")

# %% [markdown]
# ## A graph without data: a stand-in for a tensor


# %% tags=["stand-in"]
class Step(NamedTuple):
    op: str
    target: str
    reads: tuple[int, ...] = ()


class StandIn:
    """Goes through a network in place of a tensor and notes what is done to it."""

    def __init__(self, steps: list[Step], op: str, target: str, reads=()):
        self.steps = steps
        self.number = len(steps)
        numbers = tuple(r.number for r in reads if isinstance(r, StandIn))
        steps.append(Step(op, target, numbers))

    def __getattr__(self, name: str):
        return lambda *rest: StandIn(self.steps, "call_method", name, (self, *rest))

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        known = next(a for a in args if isinstance(a, cls))
        return cls(known.steps, "call_function", function.__name__, args)

    def __add__(self, other):
        return StandIn(self.steps, "call_function", "add", (self, other))

    def __sub__(self, other):
        return StandIn(self.steps, "call_function", "sub", (self, other))

    def __bool__(self):
        raise TypeError("a stand-in has no value that an if could ask for")


# %% tags=["stand-in-walk"]
def recorded(network: nn.Module) -> list[Step]:
    """The steps of a network's forward, found without any data."""
    names = {module: name for name, module in network.named_modules()}
    call = nn.Module.__call__

    def step(module, *args):
        if type(module).__module__.startswith("torch.nn"):  # kept as one step
            return StandIn(args[0].steps, "call_module", names[module], args)
        return call(module, *args)

    with patch.object(nn.Module, "__call__", step):
        return network(StandIn([], "placeholder", "x")).steps


# %% tags=["stand-in-run"]
steps = recorded(network)
table(
    [(i, s.op, s.target, ", ".join(map(str, s.reads))) for i, s in enumerate(steps)],
    ("step", "kind", "what", "reads"),
)

# %% tags=["fx"]
graph = fx.symbolic_trace(network).graph
print(str(graph).replace(" : [num_users=1]", "").replace(", kwargs = {}", ""))


# %%
def fx_steps(graph: fx.Graph) -> list[tuple[str, str]]:
    """(kind, what) of each node of an fx graph but buffers and the output."""
    skipped = ("get_attr", "output")
    return [
        (node.op, getattr(node.target, "__name__", node.target))
        for node in graph.nodes
        if node.op not in skipped
    ]


# %%
claim([s[:2] for s in steps] == fx_steps(graph), "the stand-in finds fx's steps")

# %% [markdown]
# ## The way back: autograd's graph


# %% tags=["backward"]
def backward_graph(output: Tensor, names: dict[Tensor, str]) -> list[Step]:
    """The nodes that the gradient passes on its way from an output, each once."""
    numbers = {}
    found = []

    def visit(node) -> int:
        if node not in numbers:
            reads = [visit(n) for n, _ in node.next_functions if n is not None]
            leaf = getattr(node, "variable", None)
            name = "" if leaf is None else names[leaf]
            numbers[node] = len(found)
            found.append(Step(node.name().split("::")[-1], name, tuple(reads)))
        return numbers[node]

    visit(output.grad_fn)
    return found


# %%
def named(network: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in network.named_parameters()}


# %%
way_back = backward_graph(network(x), named(network))
reached = {step.target for step in way_back if step.target}
network(x).sum().backward()
with_gradient = {n for n, p in network.named_parameters() if p.grad is not None}
network.zero_grad()
claim(reached == with_gradient, "the walk meets the parameters that get a gradient")
claim(
    {n for n, _ in network.named_parameters()} - reached
    == {"spare.weight", "spare.bias"},
    "only the spare module gets none",
)


# %%
def layers(steps: list[Step]) -> list[int]:
    """The row of each step: below the last that it reads, a leaf above its reader."""
    depth = []
    for step in steps:
        depth.append(1 + max((depth[r] for r in step.reads), default=-1))
    for i, step in enumerate(steps):
        readers = [depth[j] for j, other in enumerate(steps) if i in other.reads]
        if not step.reads and readers:
            depth[i] = min(readers) - 1
    return depth


def sketch(steps: list[Step], words: list[str], *, gap: float = 0.55) -> None:
    """Draw steps in rows from the start down; a row's boxes stand side by side."""
    depth = layers(steps)
    axes = diagrams.sheet(gap * (max(depth) + 1))
    nodes = {}
    for i, row in enumerate(depth):
        place = depth[:i].count(row)
        x = 5 * (place + 1) / (depth.count(row) + 1)
        width = 0.25 + 0.095 * len(words[i])
        nodes[str(i)] = diagrams.Node(x, gap * (row + 0.5), words[i], width)
    pairs = [(r, i) for i, step in enumerate(steps) for r in step.reads]
    straight = [(str(r), str(i)) for r, i in pairs if depth[i] == depth[r] + 1]
    around = [(str(r), str(i)) for r, i in pairs if depth[i] > depth[r] + 1]
    ways = [(a, (0.5, nodes[a].y), (0.5, nodes[b].y), b) for a, b in around]
    diagrams.draw(axes, nodes, straight, ways)


# %% alt="Seven boxes in five rows: x and first.weight, a convolution, a ReLU and second.weight, a second convolution, a sum. A coloured line leads from x around the others to the sum." tags=["backward-figure"]
leaf = torch.rand(1, 8, 4, 4, requires_grad=True)
block_back = backward_graph(network.block(leaf), {**named(network.block), leaf: "x"})
words = [s.target or s.op.replace("Backward0", "") for s in block_back]
sketch(block_back, words)

# %% [markdown]
# ## A file: ONNX


# %% tags=["export"]
def onnx_file(network: nn.Module, x: Tensor) -> onnx.ModelProto:
    """Record the network with torch.export and translate the record to ONNX."""
    with contextlib.redirect_stderr(io.StringIO()):  # a refused graph is printed there
        program = torch.export.export(network, (x,))
    return torch.onnx.export(program, dynamo=True, verbose=False).model_proto


# %%
# Each export reads torch's list of translations anew; one reading serves them all.
with contextlib.suppress(ImportError, AttributeError):  # where torch keeps it elsewhere
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    kept = functools.cache(ONNXRegistry.from_torchlib)
    ONNXRegistry.from_torchlib = staticmethod(kept)

exported = onnx_file(network, x)
data = exported.SerializeToString()


# %% tags=["onnx-nodes"]
MODEL_GRAPH = 7  # numbers of fields, from onnx.proto
GRAPH_NODE = 1
NODE_INPUT = 1
NODE_OUTPUT = 2
NODE_OP = 4


def onnx_steps(data: bytes) -> list[Step]:
    """The operators of an ONNX file; each reads those whose outputs are its inputs."""
    steps = []
    made = {}
    for node in protobuf.field(protobuf.field(data, MODEL_GRAPH)[0], GRAPH_NODE):
        inputs = protobuf.field(node, NODE_INPUT)
        reads = tuple(made[name] for name in inputs if name in made)
        for name in protobuf.field(node, NODE_OUTPUT):
            made[name] = len(steps)
        steps.append(Step(protobuf.field(node, NODE_OP)[0].decode(), "", reads))
    return steps


# %% alt="A column of eleven boxes: Sub, Conv, Relu, Conv, Relu, Conv, Add, ReduceMean, two boxes Gemm side by side, Add. A coloured line leads from the first Relu around two convolutions to the first Add." tags=["onnx-figure"]
onnx_graph = onnx_steps(data)
sketch(onnx_graph, [step.op for step in onnx_graph], gap=0.5)

# %%
claim(
    [s.op for s in onnx_graph] == [n.op_type for n in exported.graph.node],
    "our reader finds the operators that the onnx package finds",
)
claim("BatchNormalization" not in {s.op for s in onnx_graph}, "the norm is folded away")
record("onnx.nodes", len(onnx_graph))


# %% tags=["asked"]
def asked(address: str, message: dict | None = None) -> bytes:
    """What a server on this machine answers; a message is posted to it as JSON."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = None if message is None else json.dumps(message).encode()
    with opener.open(address, body, timeout=20) as answer:
        return answer.read()


# %%
def gone(address: str) -> bool:
    """Whether nobody answers there."""
    try:
        asked(address)
    except OSError:
        return True
    return False


# %% tags=["netron"]
file = folder / "network.onnx"
file.write_bytes(data)


def from_netron(file: Path) -> tuple[str, bytes, str]:
    """Netron's page, the file that it serves and its address; the server is stopped."""
    host, port = netron.start(str(file), address=("127.0.0.1", 0), browse=False)
    try:
        root = f"http://{host}:{port}"
        return asked(root).decode(), asked(f"{root}/data/{file.name}"), root
    finally:
        netron.stop((host, port))


# %%
page, served, root = from_netron(file)
claim(gone(root), "netron is stopped")
claim(served == data, "netron serves the file byte for byte")
claim("<title>Netron</title>" in page, "netron serves its page")

# %% [markdown]
# ## TensorBoard: the event file
#
# Each record is a length, a check of the length, the data and a check of the data.


# %% tags=["crc"]
def crc32c(data: bytes) -> int:
    """The Castagnoli check of 32 bits, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """As the file stores it: turned right by 15 bits, plus a constant."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# %% tags=["records"]
def records(data: bytes) -> Iterator[bytes]:
    """The contents of a TFRecord file, each checked."""
    place = count = 0
    while place < len(data):
        if place + 12 > len(data):
            raise ValueError(f"the file is cut off in the head of record {count}")
        (size,) = struct.unpack_from("<Q", data, place)
        checked(data[place : place + 8], data[place + 8 : place + 12], f"head {count}")
        content = data[place + 12 : place + 12 + size]
        check = data[place + 12 + size : place + 16 + size]
        if len(check) < 4:
            raise ValueError(
                f"the file is cut off in record {count}: read those before"
            )
        checked(content, check, f"record {count}")
        yield content
        place += 16 + size
        count += 1


def checked(content: bytes, check: bytes, what: str) -> None:
    if struct.pack("<I", masked(crc32c(content))) != check:
        raise ValueError(f"{what} is damaged: its check does not fit")


# %% tags=["scalars"]
EVENT_STEP = 2  # from event.proto and summary.proto
EVENT_GRAPH = 4
EVENT_SUMMARY = 5
SUMMARY_VALUE = 1
VALUE_TAG = 1
VALUE_SCALAR = 2


def scalars(data: bytes) -> dict[str, list[tuple[int, float]]]:
    """tag -> [(step, value)] of an event file's curves."""
    curves = {}
    for event in records(data):
        step = (protobuf.field(event, EVENT_STEP) or [0])[0]
        for summary in protobuf.field(event, EVENT_SUMMARY):
            for value in protobuf.field(summary, SUMMARY_VALUE):
                tag = protobuf.field(value, VALUE_TAG)[0].decode()
                for packed in protobuf.field(value, VALUE_SCALAR):
                    point = step, struct.unpack("<f", packed)[0]
                    curves.setdefault(tag, []).append(point)
    return curves


# %% [markdown]
# A short training writes such a file.


# %% tags=["train"]
def train(
    network: nn.Module, part, writer: SummaryWriter, *, steps: int
) -> list[float]:
    """Minimise the cross-entropy on batches of 50; write each loss."""
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    losses = []
    pictures, labels = part
    for step in range(steps):
        batch = slice(50 * step % len(pictures), 50 * step % len(pictures) + 50)
        loss = F.cross_entropy(network(pictures[batch]), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        writer.add_scalar("loss", losses[-1], step)
    return losses


# %% tags=["train-run"]
digits = images.standardised(images.digits(size=16), first=3000)[0]
digits = tuple(part.to(device) for part in digits)
seed(0)
trained = Sample().to(device)
with SummaryWriter(folder / "run") as writer:
    losses = train(trained, digits, writer, steps=100)

# %%
(events,) = (folder / "run").iterdir()
written = events.read_bytes()
curve = scalars(written)["loss"]
claim([v for _, v in curve] == losses, "the curve is read as it was written")
accumulator = EventAccumulator(str(events)).Reload()
accumulated = [(e.step, e.value) for e in accumulator.Scalars("loss")]
claim(curve == accumulated, "our reader and EventAccumulator give the same curve")

# %% alt="One curve over 100 steps; the loss is noisy, and its mean over ten steps falls from above 2.2 to below 2." tags=["curve-figure"]
_, axes = plt.subplots(figsize=(5, 2.6))
axes.plot(*zip(*curve))
axes.set(xlabel="step", ylabel="training loss", ylim=(0, None))
axes.set_axisbelow(True)

# %%
first = sum(losses[:10]) / 10
last = sum(losses[-10:]) / 10
claim(first > 2.2 and last < 2, "the mean of ten steps falls so far")

# %% [markdown]
# Damage: one byte is wrong, or the file ends early, as after a crash.


# %%
def points(data: bytes, place: Path) -> tuple[str, str]:
    """What our reader and what EventAccumulator gives for an event file's bytes."""
    place.mkdir()
    (place / "events.out.tfevents.0").write_bytes(data)
    loaded = EventAccumulator(str(place)).Reload()
    tags = loaded.Tags()["scalars"]
    theirs = f"{len(loaded.Scalars('loss')) if 'loss' in tags else 0} points"
    try:
        return f"{len(scalars(data)['loss'])} points", theirs
    except ValueError as error:
        return str(error), theirs


# %% tags=["damage"]
middle = len(written) // 2
flipped = bytearray(written)
flipped[middle] ^= 1
files = {"whole": written, "one bit changed": bytes(flipped), "cut": written[:middle]}
damage = {name: points(d, folder / name) for name, d in files.items()}
table([(n, *said) for n, said in damage.items()], ("file", "here", "EventAccumulator"))

# %%
claim(damage["whole"] == ("100 points", "100 points"), "both read the whole file")
claim("damaged" in damage["one bit changed"][0], "our reader names the damage")
claim("cut off" in damage["cut"][0], "our reader names the cut")
left = [int(damage[n][1].split()[0]) for n in ("one bit changed", "cut")]
claim(all(0 < n < 100 for n in left), "EventAccumulator gives a shorter curve")

# %% [markdown]
# ## visdom: events as JSON
#
# A client posts each change of a window, a server keeps the windows for the browsers. Where visdom
# is installed, its own server is asked, too.


# %% tags=["board"]
class Board(BaseHTTPRequestHandler):
    """Keeps windows with curves, as visdom's server does at these three addresses."""

    def do_POST(self):
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        windows = self.server.windows
        if self.path == "/events":
            kept = {"data": said["data"], "layout": said["layout"]}
            windows[said["win"]] = {"content": kept}
        elif self.path == "/update":
            for old, new in zip(windows[said["win"]]["content"]["data"], said["data"]):
                old["x"] += new["x"]
                old["y"] += new["y"]
        answer = said["win"]
        if self.path == "/win_data":
            answer = json.dumps(windows[said["win"]])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_):  # no lines for requests
        pass


@contextlib.contextmanager
def board():
    """The address of a server that runs as long as the block."""
    with HTTPServer(("127.0.0.1", 0), Board) as server:
        server.windows = {}
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


# %% tags=["visdom"]
START = """
import sys
from visdom.server.run_server import start_server
start_server(int(sys.argv[1]), base_url="", env_path=sys.argv[2], bind_local=True)
"""


@contextlib.contextmanager
def visdom_server():
    """The same with visdom's own server, in a process that ends with the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as kept:
        command = [sys.executable, "-c", START, str(port), kept]
        server = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_until_up(server, address)
            yield address
        finally:
            server.terminate()
            server.wait()


# %%
def wait_until_up(server: subprocess.Popen, address: str, seconds: float = 60):
    """Ask until visdom answers. RuntimeError when it ends or takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError):
            asked(f"{address}/win_exists", {"win": "loss", "eid": "main"})
            return
        time.sleep(0.05)
    raise RuntimeError("visdom's server does not answer: run `visdom` to see why")


# %% tags=["board-run"]
def line(x: list, y: list) -> dict:
    """A message that draws a line in the window "loss", or adds to it."""
    data = {"x": x, "y": y, "name": "loss", "type": "scatter", "mode": "lines"}
    return {"win": "loss", "eid": "main", "data": [data], "layout": {}, "opts": {}}


def curve_kept(serve, losses: list[float]) -> tuple[dict, str]:
    """Draw the losses one by one, and read the line and its server's address back."""
    with serve() as address:
        asked(f"{address}/events", line([0], losses[:1]))
        for step, loss in enumerate(losses[1:], 1):
            asked(f"{address}/update", {**line([step], [loss]), "append": True})
        window = asked(f"{address}/win_data", {"win": "loss", "eid": "main"})
    return json.loads(window)["content"]["data"][0], address


servers = {"stand-in": board}
if importlib.util.find_spec("visdom"):
    servers["visdom"] = visdom_server
kept = {name: curve_kept(serve, losses) for name, serve in servers.items()}

# %% tags=["boards"]
table([(n, len(shown["x"])) for n, (shown, _) in kept.items()], ("server", "points"))

# %%
for name, (shown, address) in kept.items():
    claim(shown["x"] == [*range(100)], f"{name}: the window has each step")
    claim(shown["y"] == losses, f"{name}: the window has the curve")
    claim(shown["mode"] == "lines", f"{name}: as lines")
    claim(gone(address), f"{name}: the server is gone")

# %% [markdown]
# ## The GPU


# %%
def gpu_answers() -> list[tuple[str, str]]:
    """What the tools for the GPU say on this machine."""
    command = [sys.executable, "-m", gpustat.__name__, "--no-color", "--no-header"]
    said = subprocess.run(command, capture_output=True, text=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said.stdout + said.stderr)  # without colours
    lines = plain.strip().split("\n")
    try:
        pynvml.nvmlInit()
        cards = f"{pynvml.nvmlDeviceGetCount()} cards"
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        cards = str(error)
    return [
        ("gpustat", lines[-1].strip()),
        ("pynvml.nvmlInit()", cards),
        ("torch.cuda.is_available()", str(torch.cuda.is_available())),
        ("torch.cuda.memory_allocated()", f"{torch.cuda.memory_allocated():,} bytes"),
    ]


# %% tags=["gpu"]
table(gpu_answers(), ("asked", "answer"))

# %% [markdown]
# ## Six tools, fifteen changes
#
# A tool shows a fact if it tells two networks apart that differ in nothing else.


# %% tags=["tools"]
def onnx_text(network: nn.Module, x: Tensor) -> list:
    """What Netron shows of a file: operators, their settings, shapes, weights."""
    graph = onnx_file(network, x).graph
    kept = {tensor.name for tensor in graph.initializer}
    order = {v.name: f"%{i}" for i, v in enumerate(graph.input)}
    shown = [str(v.type) for v in (*graph.input, *graph.value_info, *graph.output)]
    for node in graph.node:
        reads = [name if name in kept else order[name] for name in node.input]
        shown.append((node.op_type, reads, [str(a) for a in node.attribute]))
        order |= {name: f"%{len(order)}" for name in node.output}
    weights = [
        (t.name, list(t.dims), t.data_type, t.raw_data) for t in graph.initializer
    ]
    return [*shown, *sorted(weights)]


DEF_NAME = 1  # from node_def.proto
DEF_OP = 2
DEF_INPUT = 3
DEF_ATTRIBUTE = 5


def tensorboard_text(network: nn.Module, x: Tensor) -> list[tuple]:
    """The graph in TensorBoard's event file; values by their order, not their names."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit, which add_graph still uses
        with SummaryWriter(place) as writer:
            writer.add_graph(network, x)
        data = next(Path(place).iterdir()).read_bytes()
    (graph,) = [
        g for event in records(data) for g in protobuf.field(event, EVENT_GRAPH)
    ]
    shown = []
    order = {}
    for node in protobuf.field(graph, 1):
        name = protobuf.field(node, DEF_NAME)[0].decode()
        reads = [n.decode() for n in protobuf.field(node, DEF_INPUT)]
        order[name] = len(order)
        settings = sorted(protobuf.field(node, DEF_ATTRIBUTE))
        shown.append(
            [name.rpartition("/")[0], protobuf.field(node, DEF_OP)[0], reads, settings]
        )
    return [
        (scope, kind, [order.get(n, n.rpartition("/")[0]) for n in reads], settings)
        for scope, kind, reads, settings in shown
    ]


# %% tags=["tools-asked"]
TOOLS = {
    "print": lambda network, x: str(network),
    "torchinfo": lambda network, x: str(summary(network, x)),
    "torch.fx": lambda network, x: str(fx.symbolic_trace(network).graph),
    "autograd": lambda network, x: backward_graph(network(x), named(network)),
    "ONNX": onnx_text,
    "TensorBoard": tensorboard_text,
}


# %% tags=["changes-forward"]
def altered(module: nn.Module, **methods) -> None:
    """Exchange methods of one module; its class keeps its name."""
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), methods)


def without_sum(network: Sample) -> None:
    def forward(self, x):
        return self.second(torch.relu(self.first(x)))

    altered(network.block, forward=forward)


def as_method(network: Sample) -> None:
    def forward(self, x):
        return x + self.second(self.first(x).relu())

    altered(network.block, forward=forward)


def sum_outside(network: Sample) -> None:
    def features(self, x):
        x = self.act(self.norm(self.stem(x - self.centre)))
        return x + self.block(x)

    without_sum(network)
    altered(network, features=features)


def other_order(network: Sample) -> None:
    def features(self, x):
        return self.block(self.norm(self.act(self.stem(x - self.centre))))

    altered(network, features=features)


# %% tags=["changes-rest"]
def with_constant(network: Sample) -> None:
    def features(self, x):
        return self.block(self.act(self.norm(self.stem(x - 0.5))))

    del network.centre
    altered(network, features=features)


def without_detach(network: Sample) -> None:
    altered(network, scores=lambda self, x: self.head(x) + self.side(x))


def without_gradient(network: Sample) -> None:
    def features(self, x):
        with torch.no_grad():
            x = self.act(self.norm(self.stem(x - self.centre)))
        return self.block(x)

    altered(network, features=features)


def with_if(network: Sample) -> None:
    def scores(self, x):
        return Sample.scores(self, x / 100 if x.mean() > 100 else x)

    altered(network, scores=scores)


def dilated(network: Sample) -> None:
    network.block.first.dilation = 2, 2
    network.block.first.padding = 2, 2


def one_module_twice(network: Sample) -> None:
    network.block.second = network.block.first


def other_weights(network: Sample) -> None:
    seed(100)
    network.block.second.reset_parameters()


# %%
CHANGES = {
    "sum around a branch": without_sum,
    "sum in which module": sum_outside,
    "order of the calls": other_order,
    "function or method": as_method,
    "if on the data": with_if,
    "one module, two names": one_module_twice,
    "module never called": lambda network: delattr(network, "spare"),
    "buffer or constant": with_constant,
    "setting of a layer": dilated,
    "values of weights": other_weights,
    "frozen layer": lambda network: network.stem.requires_grad_(False),
    "detach()": without_detach,
    "torch.no_grad()": without_gradient,
    "32 or 64 bits": lambda network: network.double(),
    "size of the image": None,  # the network stays, the image changes
}


# %% tags=["tells"]
def seen(tool, change, number: int = 0):
    """What a tool shows of the network after a change, or the name of its error."""
    seed(number)
    network = Sample().eval()
    x = torch.rand(4, 1, 16, 16)
    if change is None:
        x = x[..., :8, :8]
    else:
        change(network)
    try:
        return tool(network, x.to(network.stem.weight.dtype))
    except Exception as error:
        return f"refused: {type(error).__name__}"


def verdict(before, after) -> str:
    """shows, blind or refuses: what a tool makes of one change."""
    if isinstance(after, str) and after.startswith("refused: "):
        return "refuses"
    return "blind" if after == before else "shows"


def unchanged(network: nn.Module) -> None:
    pass


# %% tags=["headline"]
def examine(tools: dict, changes: dict, number: int = 0) -> dict:
    """(change, tool) -> verdict."""
    grid = {}
    for name, tool in tools.items():
        before = seen(tool, unchanged, number)
        for fact, change in changes.items():
            grid[fact, name] = verdict(before, seen(tool, change, number))
    return grid


# %%
grid = examine(TOOLS, CHANGES)

# %%
said = {fact: [grid[fact, name] for name in TOOLS] for fact in CHANGES}
idle = ["shows", "shows", "blind", "blind", "blind", "blind"]
claim(said["module never called"] == idle, "print and torchinfo see the idle module")
asks = ["blind", "blind", "refuses", "blind", "refuses", "blind"]
claim(said["if on the data"] == asks, "torch.fx and the export refuse the if")
claim(
    said["detach()"][4] == said["frozen layer"][4] == "blind", "a file has no training"
)
claim([row[0] for row in said.values()].count("shows") == 2, "print shows two changes")
columns = {name: [row[i] for row in said.values()] for i, name in enumerate(TOOLS)}
claim(all("blind" in words for words in columns.values()), "no column is full")
record("changes", len(CHANGES))

# %%
cheap = {name: tool for name, tool in TOOLS.items() if name != "ONNX"}
again = examine(cheap, CHANGES, 1)
claim(all(grid[key] == word for key, word in again.items()), "so on other weights")


# %%
def alone(grid: dict, tool: str) -> list[str]:
    """The facts that one tool shows and no other."""
    return [
        fact
        for (fact, name), word in grid.items()
        if name == tool
        and word == "shows"
        and [w for (f, _), w in grid.items() if f == fact].count("shows") == 1
    ]


def smallest(grid: dict) -> list[set[str]]:
    """The smallest sets of tools that leave no change unnoticed."""
    facts = {fact for fact, _ in grid}
    names = {name: None for _, name in grid}
    for size in range(1, len(names) + 1):
        enough = [
            set(chosen)
            for chosen in itertools.combinations(names, size)
            if all(any(grid[f, name] != "blind" for name in chosen) for f in facts)
        ]
        if enough:
            return enough
    return []


# %%
only = {name: alone(grid, name) for name in TOOLS}
claim(only["torch.fx"] == ["function or method"], "fx alone shows how it is written")
claim(only["autograd"] == ["torch.no_grad()"], "autograd alone shows no_grad")
claim(only["ONNX"] == ["values of weights"], "the file alone shows the values")
claim(only["TensorBoard"] == ["sum in which module"], "TensorBoard alone shows where")
claim(not only["print"] and not only["torchinfo"], "print, torchinfo: nothing alone")
sets = smallest(grid)
four = {"torch.fx", "autograd", "ONNX", "TensorBoard"}
claim(sets == [{"print", *four}, {"torchinfo", *four}], "five tools leave nothing out")
record("smallest", len(sets[0]))

# %%
questioned = Sample().eval()
with_if(questioned)
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    torch.jit.trace(questioned, x)
claim(
    any("boolean" in str(w.message) for w in warned), "a recorded run warns of the if"
)

# %%
narrow = seen(TOOLS["torchinfo"], unchanged).split("\n")
double = seen(TOOLS["torchinfo"], CHANGES["32 or 64 bits"]).split("\n")
differing = [line for line, other in zip(narrow, double, strict=True) if line != other]
claim(
    all("(MB)" in line for line in differing), "torchinfo shows bits by megabytes only"
)

# %% tags=["alone"]
rows = [
    (name, columns[name].count("shows"), ", ".join(only[name]) or "nothing")
    for name in TOOLS
]
table(rows, ("tool", "changes it shows", "that no other shows"))

# %% alt="A grid of fifteen rows and six columns with dots where a tool shows a change and crosses where it refuses. The column of print has two dots; torch.fx and ONNX have a cross at the if; in four rows there is one dot only." tags=["grid-figure"]
_, axes = plt.subplots(figsize=(5, 5.2))
marks = {"shows": ("o", plots.COLOURS[0], 70), "refuses": ("X", plots.COLOURS[1], 70)}
for row, fact in enumerate(CHANGES):
    for column, name in enumerate(TOOLS):
        shape, colour, size = marks.get(grid[fact, name], ("o", plots.GRID, 12))
        axes.scatter(column, row, s=size, marker=shape, color=colour)
axes.set_xticks(range(len(TOOLS)), TOOLS, rotation=40, ha="left")
axes.set_yticks(range(len(CHANGES)), CHANGES)
axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
axes.set(xlim=(-0.6, 5.6), ylim=(14.6, -0.6))
axes.spines[:].set_visible(False)

# %% alt="Four boxes in a column: object, forward pass, backward pass, joined by arrows down, and file. Beside object stand print and torch.fx; beside forward pass torchinfo and TensorBoard; beside backward pass autograd; beside file ONNX and Netron." tags=["places-figure"]
axes = diagrams.sheet(2.6)
places = {
    "object": "print: its modules\ntorch.fx: its forward, without data",
    "forward pass": "torchinfo: calls of modules\nTensorBoard: all operators",
    "backward pass": "autograd: the way of the gradient",
    "file": "ONNX, drawn by Netron:\noperators and weights",
}
nodes = {}
for i, (place, tools) in enumerate(places.items()):
    nodes[place] = diagrams.Node(0.85, 0.35 + 0.63 * i, place, width=1.4)
    nodes[tools] = diagrams.Node(3.3, 0.35 + 0.63 * i, tools, colour=plots.COLOURS[1])
diagrams.draw(
    axes, nodes, [("object", "forward pass"), ("forward pass", "backward pass")]
)

# %% tags=["equal"]
rows = [
    ("hooks, torchinfo: rows", len(theirs)),
    ("stand-in, torch.fx: steps", len(steps)),
    ("walk back, gradients that arrive: parameters", len(reached)),
    ("reader of ONNX, onnx: operators", len(onnx_graph)),
    ("reader of events, EventAccumulator: points", len(curve)),
]
table([(words, f"{n:,}") for words, n in rows], ("compared", "all equal"))

# %% [markdown]
# ## Exercises

# %% tags=["solution-shared"]
seed(0)
shared = Sample().eval()
one_module_twice(shared)
by_calls = sum(c.parameters for c in calls(shared, x)) + spare
table(
    [
        ("with two modules", counting.parameters(network)),
        ("torchinfo's total", summary(shared, x).total_params),
        ("sum of the rows of calls", by_calls),
    ],
    ("counted", "parameters"),
)

# %%
claim(summary(shared, x).total_params == 1518 - 576, "torchinfo counts it once")
claim(by_calls == 1518, "the rows count it twice")


# %% tags=["solution-function"]
def head_as_function(network: Sample) -> None:
    def scores(self, x):
        return F.linear(x, self.head.weight, self.head.bias) + self.side(x.detach())

    altered(network, scores=scores)


seed(0)
by_function = Sample().eval()
head_as_function(by_function)
[c.name for c in calls(by_function, x)]

# %%
same = torch.equal(by_function(x), network(x))
claim(same and "head" not in [c.name for c in calls(by_function, x)], "the row is lost")
claim(len(onnx_file(by_function, x).graph.node) == len(onnx_graph), "ONNX has it still")


# %% tags=["solution-cut"]
def whole_records(data: bytes) -> list[bytes]:
    """The records before the first that is damaged or cut off."""
    found = []
    with contextlib.suppress(ValueError):
        for content in records(data):
            found.append(content)
    return found


len(whole_records(files["cut"])), len(whole_records(files["whole"]))

# %%
claim(len(whole_records(files["whole"])) == 101, "a hundred points and the version")
claim(len(whole_records(files["cut"])) - 1 == left[1], "as many as EventAccumulator")


# %% tags=["solution-export"]
def export_text(network: nn.Module, x: Tensor) -> str:
    with contextlib.redirect_stderr(io.StringIO()):
        program = torch.export.export(network, (x,))
    return f"{program.graph}{program.graph_signature}"


lone = {fact: CHANGES[fact] for name in TOOLS for fact in only[name]}
lone["if on the data"] = with_if
exported_grid = examine({"torch.export": export_text}, lone)
table([(f, w) for (f, _), w in exported_grid.items()], ("change", "torch.export"))

# %%
claim(exported_grid["if on the data", "torch.export"] == "refuses", "it refuses the if")

# %% [markdown]
# ## What we saw
#
# - Each tool reads a network at one place: the object, a run, the way back, a file.
# - Four of the six show something that no other shows; print and torchinfo see the idle module.
# - An `if` on the data is refused by two tools; the answers of the other four hide it.

# %%
temporary.cleanup()
