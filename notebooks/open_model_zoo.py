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
# # Open Model Zoo
#
# An entry of Open Model Zoo and the two files of a network in it, read and run by hand. Networks of
# this book converted for OpenVINO, and one of them with weights and maps of eight bits.
# The text to it is the [chapter](../chapters/open_model_zoo.rst), the zoo is
# [Open Model Zoo](https://github.com/openvinotoolkit/open_model_zoo).

# %%
import hashlib
import logging
import re
import sys
import tempfile
import types
import warnings
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import rich
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import claim, device, record, record_spread, seed, spread, table
from workbench import checks, diagrams, images, plots, training

SEEDS = (0, 1, 2)
seed(0)

# %% [markdown]
# ## What is told to whom
#
# OpenVINO tells Google Analytics what it is used for, through the package `openvino_telemetry`.
# Whoever does not want that runs `opt_in_out --opt_out` once. Here a stand-in takes the place of the
# package: nothing is sent, and we see what would be.


# %% tags=["listener"]
class Listener:
    """In the place of openvino_telemetry.Telemetry: keeps what it is told."""

    told: list[tuple[str, str, str]] = []

    def __init__(self, *_, **__):
        pass

    def send_event(self, event_category, event_action, event_label, *_, **__):
        self.told.append((event_category, event_action, str(event_label)))

    def start_session(self, *_, **__):
        pass

    end_session = send_error = send_stack_trace = force_shutdown = start_session


def stand_in() -> dict[str, types.ModuleType]:
    """The modules that OpenVINO looks for, with the listener in them."""
    package = types.ModuleType("openvino_telemetry")
    package.backend = types.ModuleType("openvino_telemetry.backend")
    package.backend.backend_ga4 = None
    package.Telemetry = Listener
    return {package.__name__: package, package.backend.__name__: package.backend}


def heard(call) -> list[tuple[str, str, str]]:
    """What the listener is told during a call."""
    before = len(Listener.told)
    call()
    return Listener.told[before:]


# %%
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", "`torch.jit")  # OpenVINO traces networks with it
rich.reconfigure(quiet=True, force_jupyter=False)  # no progress bars of NNCF
sys.modules.update(stand_in())

# %%
import openvino as ov  # noqa: E402
from openvino import opset13 as ops  # noqa: E402

told_by = {"import openvino": list(Listener.told)}
import nncf  # noqa: E402

CORE = ov.Core()
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
nncf.set_log_level(logging.ERROR)

# %% [markdown]
# ## A network
#
# Three convolutions with batch norm and a linear layer, for digits of 28×28 pixels.


# %% tags=["network"]
def stage(c_in: int, c_out: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU; then half the side."""
    conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(2))


class Digits(nn.Module):
    """A score for each of ten digits: (B, 1, 28, 28) -> (B, 10)."""

    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(stage(1, 8), stage(8, 16), stage(16, 32))
        self.classifier = nn.Linear(32 * 3 * 3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.stages(x).flatten(1))


# %% tags=["train"]
def trained(number: int, epochs: int = 3) -> Digits:
    """The network, trained on the digits from one seed; on the CPU, ready for use."""
    seed(number)
    network = Digits().to(device)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    schedule = training.one_cycle(optimizer, epochs * len(data.train[1]) // 50)
    training.fit(network, data.train, epochs, optimizer, schedule=schedule)
    return network.cpu().eval()


# %%
data = images.digits()
networks = [trained(number) for number in SEEDS]
record("parameters", sum(p.numel() for p in networks[0].parameters()))
record("digits.train", len(data.train[1]))
record("digits.test", len(data.test[1]))

# %% [markdown]
# ## Converted


# %% tags=["convert"]
def run(model: ov.Model, x: Tensor) -> Tensor:
    """Compile for the CPU, in full float32 where the model has floats, and run."""
    compiled = CORE.compile_model(model, "CPU", SETTINGS)
    return torch.from_numpy(compiled(x.numpy())[0])


# %% tags=["converted"]
model = ov.convert_model(networks[0], example_input=data.train[0][:1])
scores = run(model, data.test[0])
tuple(scores.shape)

# %%
with torch.no_grad():
    expected = networks[0](data.test[0])
converted = checks.deviation(scores, expected)
claim(converted <= 1e-4, "the converted network gives the same")
models = [model]
for network in networks[1:]:
    models.append(ov.convert_model(network, example_input=data.train[0][:1]))
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)

# %% tags=["saved"]
ov.save_model(model, folder / "digits.xml", compress_to_fp16=False)
ov.save_model(model, folder / "half.xml")  # floats of 16 bits, the default
[path.name for path in sorted(folder.iterdir())]


# %% [markdown]
# ## The two files, read by hand


# %% tags=["read-ir"]
class Layer(NamedTuple):
    """One operation: its type, its attributes, the layers it reads, by input port."""

    kind: str
    data: dict[str, str]
    reads: dict[int, str]


def read_ir(file: Path) -> dict[str, Layer]:
    """The layers of a model.xml by their number, in the order of the file."""
    root = ElementTree.parse(file).getroot()
    if root.tag != "net":
        raise ValueError(f"{file.name} is no IR: its root is {root.tag!r}, not 'net'")
    layers = {}
    for node in root.findall("layers/layer"):
        found = node.find("data")
        data = {} if found is None else dict(found.attrib)
        layers[node.get("id")] = Layer(node.get("type"), data, {})
    for edge in root.findall("edges/edge"):
        port = int(edge.get("to-port"))
        layers[edge.get("to-layer")].reads[port] = edge.get("from-layer")
    return layers


# %% tags=["constants"]
TYPES = {"f32": np.float32, "f16": np.float16, "i64": np.int64, "i8": np.int8}


def numbers(text: str) -> tuple[int, ...]:
    """ "2, 3" -> (2, 3); "" -> ()."""
    return tuple(int(part) for part in text.split(",") if part.strip())


def constant(layer: Layer, weights: bytes) -> np.ndarray:
    """The array that a layer of kind Const names in model.bin."""
    start = int(layer.data["offset"])
    stop = start + int(layer.data["size"])
    if stop > len(weights):
        raise ValueError(f"a constant ends at byte {stop} of {len(weights)}")
    found = np.frombuffer(weights[start:stop], TYPES[layer.data["element_type"]])
    return found.reshape(numbers(layer.data["shape"]))


# %% tags=["listed"]
def line(number: str, layer: Layer) -> tuple[str, str, str, str]:
    """One layer as a row: number, type, the layers it reads, some attributes."""
    kept = ("offset", "size", "strides", "kernel", "transpose_b")
    said = [f"{key} {layer.data[key]}" for key in kept if key in layer.data]
    reads = [layer.reads[port] for port in sorted(layer.reads)]
    return f"no. {number}", layer.kind, ", ".join(reads), ", ".join(said)


# %% tags=["ir-table"]
layers = read_ir(folder / "digits.xml")
weights = (folder / "digits.bin").read_bytes()
rows = [line(number, layer) for number, layer in layers.items()]
table(rows[:7] + rows[-7:], ("layer", "type", "reads", "attributes, some"))

# %% [markdown]
# The numbers in model.bin, against those of the network.


# %% tags=["folded"]
def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weights and bias of the one convolution that does what both layers do."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return conv.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


# %%
stored = [constant(one, weights) for one in layers.values() if one.kind == "Const"]
fours = [torch.tensor(c) for c in stored if c.ndim == 4]  # weights, bias, weights ...
pairs = [folded(part[0], part[1]) for part in networks[0].stages]
expected_fours = [t.detach() for pair in pairs for t in pair]
folding = max(
    checks.deviation(found.flatten(), t.flatten())
    for found, t in zip(fours, expected_fours, strict=True)
)
linear = next(torch.tensor(c) for c in stored if c.shape == (10, 288))
same = torch.equal(linear, networks[0].classifier.weight)
claim(same, "the linear layer bit for bit")
claim(folding <= 1e-5, "the convolutions hold the batch norms")


# %% [markdown]
# Run by hand: a function for each type of operation.


# %% tags=["operations"]
def convolution(data: dict, x: Tensor, weight: Tensor) -> Tensor:
    assert data["pads_begin"] == data["pads_end"], (
        "padding must be the same on both sides"
    )
    steps = numbers(data["strides"]), numbers(data["pads_begin"])
    return F.conv2d(x, weight, None, *steps, numbers(data["dilations"]))


def max_pool(data: dict, x: Tensor) -> Tensor:
    sides = [numbers(data[key]) for key in ("kernel", "strides", "pads_begin")]
    return F.max_pool2d(x, *sides, ceil_mode=data["rounding_type"] == "ceil")


def reshape(data: dict, x: Tensor, shape: Tensor) -> Tensor:
    """With special_zero a side of 0 stays what it was."""
    keep = data["special_zero"] == "true"
    sides = [x.shape[i] if keep and n == 0 else n for i, n in enumerate(shape.tolist())]
    return x.reshape(sides)


def mat_mul(data: dict, a: Tensor, b: Tensor) -> Tensor:
    a = a.mT if data["transpose_a"] == "true" else a
    return a @ (b.mT if data["transpose_b"] == "true" else b)


def fake_quantize(x, low, high, out_low, out_high, levels: int = 256) -> Tensor:
    """Clip to low..high, take the nearest level, give it as out_low..out_high."""
    x = torch.minimum(torch.maximum(x, low), high)
    level = ((x - low) / (high - low) * (levels - 1)).round()
    return level / (levels - 1) * (out_high - out_low) + out_low


# %% tags=["run-ir"]
OPERATIONS = {
    "Convolution": convolution,
    "MaxPool": max_pool,
    "Reshape": reshape,
    "MatMul": mat_mul,
    "ReLU": lambda data, x: x.relu(),
    "Add": lambda data, a, b: a + b,
    "Multiply": lambda data, a, b: a * b,
    "Convert": lambda data, x: x.to(torch.float32),
    "FakeQuantize": lambda data, *five: fake_quantize(*five, int(data["levels"])),
    "Result": lambda data, x: x,
}


def run_ir(layers: dict[str, Layer], weights: bytes, x: Tensor) -> Tensor:
    """What a network of one input gives for x: its layers, one after another."""
    values = {}
    for number, layer in layers.items():
        if layer.kind == "Parameter":
            values[number] = x
        elif layer.kind == "Const":
            values[number] = torch.tensor(constant(layer, weights))
        elif layer.kind in OPERATIONS:
            inputs = [values[layer.reads[port]] for port in sorted(layer.reads)]
            values[number] = OPERATIONS[layer.kind](layer.data, *inputs)
        else:
            raise ValueError(f"no operation here does what {layer.kind} does: add it")
    return values[number]


def run_file(file: Path, x: Tensor) -> Tensor:
    """The same for the two files of a network; file: the one that ends in .xml."""
    return run_ir(read_ir(file), file.with_suffix(".bin").read_bytes(), x)


# %% [markdown]
# ## What conversion does to the graph


# %% tags=["kinds"]
TORCH = {
    "Conv2d": "Convolution",
    "BatchNorm2d": "BatchNorm",
    "ReLU": "Relu",
    "MaxPool2d": "MaxPool",
    "Linear": "MatMul",
}
SHOWN = ("Convolution", "BatchNorm", "Add", "Relu", "MaxPool", "MatMul")
ENDS = ("Input", "Const", "Output")


def kinds(network: nn.Module, model: ov.Model) -> list[Counter]:
    """Operations of each type in the network and in its IR."""
    there = Counter(TORCH.get(type(m).__name__) for m in network.modules())
    return [there, Counter(op.get_type_name() for op in model.get_ops())]


def as_run(model: ov.Model) -> list[tuple[str, str]]:
    """(type, precision) of what runs on this CPU, in the words of the runtime."""
    graph = CORE.compile_model(model, "CPU", SETTINGS).get_runtime_model()
    infos = [op.get_rt_info() for op in graph.get_ordered_ops()]
    keys = ("layerType", "runtimePrecision")
    found = [tuple(info[key].astype(str) for key in keys) for info in infos]
    return [pair for pair in found if pair[0] not in ENDS]


def precision(model: ov.Model) -> str:
    """In which precisions the convolutions run on this CPU."""
    return ", ".join(
        sorted({how for what, how in as_run(model) if what == "Convolution"})
    )


# %% tags=["kinds-table"]
counts = kinds(networks[0], model)
claim(counts[0]["BatchNorm"] == 3 and counts[1]["BatchNorm"] == 0, "batch norms go")
claim(counts[1]["Multiply"] == 0, "and leave no multiplication behind")
rows = [(kind, *(count[kind] for count in counts)) for kind in SHOWN]
table(rows, ("operation", "in torch", "in the IR"))

# %% tags=["ran-table"]
ran = Counter(what for what, _ in as_run(model))
table(list(ran.items()), ("as compiled", "how many"))


# %% [markdown]
# ## An entry


# %% tags=["entry"]
def describe(folder: Path, files: list[str], **facts) -> str:
    """A model.yml about files in a folder, in the form of Open Model Zoo."""
    listed = []
    for name in files:
        content = (folder / name).read_bytes()
        digest = hashlib.sha384(content).hexdigest()
        listed.append({"name": name, "size": len(content), "checksum": digest})
        listed[-1]["source"] = f"https://example.org/{name}"
    return yaml.safe_dump({"files": listed, **facts}, sort_keys=False)


# %% tags=["read-entry"]
NEEDED = ("description", "task_type", "files", "framework", "license")


def read_entry(text: str) -> dict:
    """A model.yml as a dictionary. ValueError, with what is wrong, if it is not one."""
    entry = yaml.safe_load(text)
    for key in NEEDED:
        if not isinstance(entry, dict) or key not in entry:
            raise ValueError(f"{key} is missing")
    for file in entry["files"]:
        name = PurePosixPath(file["name"])
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{name} would lie outside of the folder")
        if type(file.get("size")) is not int or file["size"] < 0:
            raise ValueError(f"{name}: a size is a number of bytes")
        if not re.fullmatch("[0-9a-f]{96}", str(file.get("checksum"))):
            raise ValueError(f"{name}: a checksum is a SHA-384, 96 digits")
    names = [file["name"] for file in entry["files"]]
    if len(set(names)) < len(names):
        raise ValueError("two files have one name")
    return entry


def verdict(file: dict, folder: Path) -> str:
    """What is wrong with one file of an entry; "whole" if nothing is."""
    path = folder / file["name"]
    if not path.is_file():
        return "missing"
    content = path.read_bytes()
    if len(content) != file["size"]:
        return f"{len(content):,} bytes, not {file['size']:,}"
    if hashlib.sha384(content).hexdigest() != file["checksum"]:
        return "another checksum"
    return "whole"


# %% tags=["entry-text"]
facts = {"task_type": "classification", "framework": "dldt"}
facts["description"] = "Scores for ten digits, for one image of 28x28 pixels."
facts["license"] = "https://example.org/LICENSE"
text = describe(folder, ["digits.xml", "digits.bin"], **facts)
entry = read_entry(text)
claim(
    all(verdict(file, folder) == "whole" for file in entry["files"]), "our entry holds"
)
print(re.sub("([0-9a-f]{16})[0-9a-f]{80}", r"\1...", text))


# %% tags=["refused"]
def refusal(text: str) -> str:
    """What the reader says to an entry that it does not take."""
    try:
        read_entry(text)
    except ValueError as error:
        return str(error)
    return "taken"


# %% tags=["refusals"]
wrong = {
    "no licence": text.replace("license:", "licence:"),
    "../digits.bin": text.replace("name: digits.bin", "name: ../digits.bin"),
    "a SHA-256": re.sub("[0-9a-f]{96}", "0" * 64, text),
    "size: 35 kB": re.sub(r"size: \d+", "size: 35 kB", text),
    "a name twice": text.replace("digits.xml", "digits.bin"),
}
refusals = [(what, refusal(changed)) for what, changed in wrong.items()]
claim("taken" not in dict(refusals).values(), "all five are refused")
table(refusals, ("entry", "what our reader says"))


# %% [markdown]
# ## Eight bits, by hand


# %% tags=["integers"]
def as_integers(w: np.ndarray, *, bits: int = 8, per_channel: bool = True):
    """Weights as integers, and what one step is worth: w is nearly step * integers.

    A step for each output channel, or one for all.
    """
    axes = tuple(range(1, w.ndim)) if per_channel else None
    largest = np.abs(w).max(axis=axes, keepdims=True)
    step = np.where(largest > 0, largest, 1) / (2 ** (bits - 1) - 1)
    return np.rint(w / step).astype(np.int8), step.astype(np.float32)


# %% tags=["integers-hand"]
w = np.array([[0.6, -1.0, 0.26], [0.02, 0.004, -0.008]], dtype=np.float32)
integers, step = as_integers(w, bits=4)
print(integers, step.round(4), sep="\n")

# %% tags=["ranges"]
WEIGHTED = ("Convolution", "MatMul")


def weighted(model: ov.Model) -> list:
    """The operations that have weights, in the order in which they run."""
    return [op for op in model.get_ordered_ops() if op.get_type_name() in WEIGHTED]


def inputs_of(model: ov.Model, x: Tensor) -> list[Tensor]:
    """What each of them reads when the model is given x."""
    model = model.clone()
    ports = [ops.result(op.input_value(0)) for op in weighted(model)]
    probe = ov.Model(ports, model.get_parameters(), "probe")
    found = CORE.compile_model(probe, "CPU", SETTINGS)(x.numpy())
    return [torch.from_numpy(found[i]) for i in range(len(ports))]


def ranges(seen: list[Tensor], share: float = 1.0) -> list[tuple[float, float]]:
    """From the least value or 0 to the one below which a share of them lies."""
    highs = [np.quantile(values.numpy(), share) for values in seen]
    if min(highs) <= 0:
        raise ValueError("a layer saw nothing above 0: calibrate with other pictures")
    return [(min(0.0, v.min().item()), float(h)) for v, h in zip(seen, highs)]


# %% tags=["quantized"]
def quantized(model: ov.Model, spans=None, *, bits=8, per_channel=True) -> ov.Model:
    """The model with integers for weights and, with spans, levels for maps."""
    model = model.clone()
    for i, op in enumerate(weighted(model)):
        w = op.input_value(1).get_node().get_data()
        integers, step = as_integers(w, bits=bits, per_channel=per_channel)
        whole = ops.convert(ops.constant(integers), "f32")
        op.input(1).replace_source_output(ops.multiply(whole, step).output(0))
        if spans:
            low, high = (np.float32(end) for end in spans[i])
            levels = ops.fake_quantize(op.input_value(0), low, high, low, high, 256)
            op.input(0).replace_source_output(levels.output(0))
    return model


# %%
claim(integers.tolist() == [[4, -7, 2], [7, 1, -3]], "seven steps to each side")
claim(
    as_integers(w, bits=4, per_channel=False)[0][1].tolist() == [0, 0, 0],
    "with one step for all the second channel is gone",
)
calibration = data.train[0][:100]
spans = ranges(inputs_of(model, calibration))
small = quantized(model, spans)
ov.save_model(small, folder / "small.xml", compress_to_fp16=False)
record("precision.float", precision(model))
record("precision.small", precision(small))


# %% tags=["nncf"]
def by_nncf(model: ov.Model, pictures: Tensor) -> ov.Model:
    """The same by the tool made for it."""
    examples = nncf.Dataset([picture[None].numpy() for picture in pictures])
    return nncf.quantize(model, examples, subset_size=len(pictures))


# %% [markdown]
# The formula against OpenVINO's operation, on numbers that lie between the levels.


# %%
def library_levels(x: Tensor, ends: tuple[float, ...], levels: int) -> Tensor:
    """FakeQuantize as OpenVINO runs it; ends: low, high, out_low, out_high."""
    place = ops.parameter([-1], np.float32)
    node = ops.fake_quantize(place, *(np.float32(end) for end in ends), levels)
    return run(ov.Model([ops.result(node)], [place], "levels"), x)


# %%
formula = 0.0
for levels, ends in (256, (0, 4, 0, 4)), (255, (-2, 2, -2, 2)), (5, (0, 1, 2, 6)):
    places = torch.arange(-100, 5 * levels + 100) / 5  # in steps, none half-way
    x = ends[0] + places * (ends[1] - ends[0]) / (levels - 1)
    mine = fake_quantize(x, *(torch.tensor(float(end)) for end in ends), levels)
    given = library_levels(x, ends, levels)
    formula = max(formula, checks.deviation(mine, given))
claim(formula <= 1e-5, "the formula is OpenVINO's")
ties = torch.tensor([0.5, 1.5, 2.5, 3.5])
claim(library_levels(ties, (0, 4, 0, 4), 5).tolist() == [0, 2, 2, 4], "ties to even")

# %% alt="A rising line of dashes and a staircase on it. The staircase is flat at 0 below 0, has five levels up to 1, and is flat at 1 beyond." tags=["levels-figure"]
_, axes = plt.subplots(figsize=(5, 2.6))
x = torch.linspace(-0.4, 1.4, 721)
zero = torch.tensor(0.0)
axes.plot(x, x, "--", color=plots.QUIET, linewidth=1)
axes.plot(x, fake_quantize(x, zero, zero + 1, zero, zero + 1, levels=5))
axes.set(xlabel="number that comes in", ylabel="number that goes out")
axes.set(yticks=[0, 0.25, 0.5, 0.75, 1])
axes.grid(axis="y")
axes.set_axisbelow(True)

# %% [markdown]
# ## Equal


# %%
by_file = {}
for name in ("digits", "half", "small"):
    file = folder / f"{name}.xml"
    given = run(CORE.read_model(file), data.test[0])
    by_file[name] = checks.deviation(run_file(file, data.test[0]), given)
halved = checks.deviation(run_file(folder / "half.xml", data.test[0]), expected)
ours = run_file(folder / "small.xml", data.test[0]).argmax(1)
apart = (ours != run(small, data.test[0]).argmax(1)).sum()
claim(apart <= 10, "the digits read are the same, but for a few")
record("small.apart", apart)

# %%
exact = max(folding, converted, by_file["digits"], by_file["half"], formula)
claim(exact <= 1e-4, "floats: the same three ways")
claim(10 * exact < halved <= 5e-3, "16 bits cost more, some thousandths at most")
claim(by_file["small"] <= 0.1, "integers: as near as the rounding of the levels")

# %% tags=["equal"]
rows = [
    ("model.bin, against the weights with batch norm folded in", folding),
    ("OpenVINO, against torch", converted),
    ("our reader, against OpenVINO, float32", by_file["digits"]),
    ("our reader, against OpenVINO, float16", by_file["half"]),
    ("our reader, against OpenVINO, int8", by_file["small"]),
    ("float16 file, against torch", halved),
    ("formula of the levels, against FakeQuantize", formula),
]
table([(what, f"{d:.0e}") for what, d in rows], ("compared", "largest difference"))


# %% [markdown]
# ## Networks of this book


# %% tags=["networks"]
def conv_norm(c_in: int, c_out: int, size: int = 3, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, size, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())


class Residual(nn.Module):
    """A residual block between a stem and a mean: (B, 3, H, W) -> (B, 10)."""

    def __init__(self):
        super().__init__()
        self.stem = conv_norm(3, 16)
        self.branch = nn.Sequential(conv_norm(16, 16), conv_norm(16, 16)[:2])
        self.classifier = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classifier(torch.relu(x + self.branch(x)).mean((2, 3)))


class Depthwise(nn.Module):
    """Each channel for itself, then 1x1, twice: (B, 3, H, W) -> (B, 10)."""

    def __init__(self):
        super().__init__()
        first = nn.Sequential(conv_norm(16, 16, 3, 16), conv_norm(16, 32, 1))
        second = nn.Sequential(conv_norm(32, 32, 3, 32), conv_norm(32, 32, 1))
        self.trunk = nn.Sequential(conv_norm(3, 16), first, nn.MaxPool2d(2), second)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.trunk(x).mean((2, 3)))


class Encoder(nn.Module):
    """A transformer encoder of one layer over numbers of words: (B, T) -> (B, 10)."""

    def __init__(self, d_model: int = 32, h: int = 4):
        super().__init__()
        self.h = h
        self.words = nn.Embedding(50, d_model)
        self.in_project = nn.Linear(d_model, 3 * d_model)
        self.norm = nn.LayerNorm(d_model)
        self.feed = nn.Sequential(nn.Linear(d_model, 64), nn.GELU(), nn.Linear(64, 10))

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)  # (B, T, D)
        parts = self.in_project(x).unflatten(2, (3, self.h, -1))  # (B, T, 3, h, d)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, T, d) each
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.feed(self.norm(x + mixed)).mean(1)


# %%
def made(build, number: int) -> nn.Module:
    """A network with random weights, batch norms included, in evaluation mode."""
    seed(number)
    return checks.randomise_norms(build()).eval()


def through_onnx(network: nn.Module, x: Tensor, file: Path) -> ov.Model:
    """The other way: to a file of ONNX, which OpenVINO reads."""
    torch.onnx.export(
        network, (x,), file, dynamo=True, verbose=False, external_data=False
    )
    return CORE.read_model(file)


@torch.no_grad()
def apart_from(network: nn.Module, model: ov.Model, x: Tensor) -> float:
    """Largest difference of a model's outputs and the network's."""
    return checks.deviation(run(model, x), network(x))


# %%
seed(0)
pictures = torch.rand(2, 3, 32, 32)
cases = {
    "plain convolutions": (Digits, torch.rand(2, 1, 28, 28)),
    "residual": (Residual, pictures),
    "depthwise": (Depthwise, pictures),
    "transformer encoder": (Encoder, torch.randint(50, (2, 12))),
}
THROUGH_ONNX = ("residual", "transformer encoder")  # the dearer way

# %% tags=["networks-table"]
rows = []
for name, (build, x) in cases.items():
    built = [made(build, number) for number in SEEDS]
    found = [apart_from(n, ov.convert_model(n, example_input=x), x) for n in built]
    if name in THROUGH_ONNX:
        written = through_onnx(built[0], x, folder / "network.onnx")
        found.append(apart_from(built[0], written, x))
    claim(max(found) <= 1e-4, f"{name}: the same to 1e-4")
    rows.append((name, *(f"{d:.0e}" for d in found), *["–"] * (4 - len(found))))
table(rows, ("network", "seed 0", "seed 1", "seed 2", "through ONNX, seed 0"))

# %% [markdown]
# ## What eight bits cost


# %%
def accuracy(model: ov.Model, part: tuple[Tensor, Tensor]) -> float:
    """Share of the digits that a model reads right."""
    x, y = part
    return (run(model, x).argmax(1) == y).double().mean().item()


def changed(a: ov.Model, b: ov.Model, x: Tensor) -> int:
    """How many of the digits two models read differently."""
    return (run(a, x).argmax(1) != run(b, x).argmax(1)).sum().item()


# %%
ours = [quantized(m, ranges(inputs_of(m, calibration))) for m in models]
theirs = []
told_by["nncf.quantize"] = heard(lambda: theirs.append(by_nncf(model, calibration)))
theirs += [by_nncf(m, calibration) for m in models[1:]]
floats = [accuracy(m, data.test) for m in models]
hand = [accuracy(m, data.test) for m in ours]
tool = [accuracy(m, data.test) for m in theirs]
record_spread("accuracy.float", floats)
record("cost.hand", 100 * max(abs(a - b) for a, b in zip(hand, floats)))
record("cost.nncf", 100 * max(abs(a - b) for a, b in zip(tool, floats)))

# %% tags=["headline"]
rows = []
for i, number in enumerate(SEEDS):
    many = [changed(models[i], other[i], data.test[0]) for other in (ours, theirs)]
    shares = [f"{100 * part[i]:.1f}" for part in (floats, hand, tool)]
    rows.append((number, *shares, *many))
    claim(abs(hand[i] - floats[i]) <= 0.01, f"seed {number}: by hand within a point")
    claim(abs(tool[i] - floats[i]) <= 0.01, f"seed {number}: NNCF within a point")
heads = ("seed", "float32 %", "int8 by hand %", "int8 NNCF %")
table(rows, (*heads, "changed, by hand", "changed, NNCF"))

# %%
ov.save_model(theirs[0], folder / "nncf.xml", compress_to_fp16=False)
names = {"digits": "float32", "half": "float16", "small": "int8, by hand"}
names |= {"nncf": "int8, NNCF"}
rows = []
for name, shown in names.items():
    both = [(folder / f"{name}{end}").stat().st_size for end in (".bin", ".xml")]
    rows.append((shown, *both, len(read_ir(folder / f"{name}.xml"))))

# %% tags=["sizes"]
ratio = rows[2][1] / rows[0][1]
whole = sum(rows[2][1:3]) / sum(rows[0][1:3])
claim(0.25 < ratio < 0.28, "integers take little more than a quarter of the bytes")
claim(rows[2][3] > rows[0][3], "there are more operations")
claim(ratio + 0.1 < whole < 1, "both files together shrink less")
record("ratio", ratio)
record("ratio.whole", whole)
table(rows, ("weights as", "model.bin, bytes", "model.xml, bytes", "operations"))

# %% [markdown]
# Fewer bits for the weights, maps left as they are.

# %%
BITS = (8, 5, 4, 3, 2)


def by_bits(models: list, part: tuple[Tensor, Tensor], per_channel: bool) -> Tensor:
    """Per cent of the digits read right: (models, bits of the weights)."""
    small = [
        [quantized(m, bits=bits, per_channel=per_channel) for bits in BITS]
        for m in models
    ]
    return 100 * torch.tensor([[accuracy(m, part) for m in row] for row in small])


# %%
channels = by_bits(models, data.test, per_channel=True)
tensor = by_bits(models, data.test, per_channel=False)
plain = 100 * torch.tensor(floats)
claim((channels[:, 1] - plain).abs().max() <= 1.5, "5 bits, a step for each channel")
four = torch.cat((channels[:, 2] - plain, tensor[:, 2] - plain))
claim(four.abs().max() <= 3, "4 bits: both near what floats give")
claim(channels[:, 4].min() > tensor[:, 4].max() + 5, "2 bits: channels apart")
claim(channels[:, 4].max() < plain.min() - 3, "and below float32")
record_spread("bits2.channel", channels[:, 4].tolist())
record_spread("bits2.tensor", tensor[:, 4].tolist())
record("bits5.cost", (channels[:, 1] - plain).abs().max())

# %% alt="Two bands over the bits of a weight, from 8 to 2. Both stay near the value at 8 bits down to 4 bits. At 2 bits both have fallen, the one with one step for all weights furthest." tags=["bits-figure"]
_, axes = plt.subplots(figsize=(5, 3))
x = list(range(len(BITS)))
ends = {}
names = ("a step for\neach channel", "one step\nfor all")
for name, runs, colour in zip(names, (channels, tensor), plots.COLOURS):
    ends[name] = plots.seed_band(axes, x, runs, colour)
axes.set(xlabel="bits of a weight", ylabel="digits read right, %", ylim=(0, 101))
axes.set(xticks=x, xticklabels=BITS, xlim=(0, 5.6))
axes.spines["bottom"].set_bounds(0, 4)
plots.label_ends(axes, ends, gap=34)
axes.set_axisbelow(True)

# %% [markdown]
# Ranges from other pictures.


# %%
def calibrated(models: list, part, pictures: Tensor, share: float = 1.0) -> list[float]:
    """Per cent of the digits read right, with ranges from these pictures."""
    spans = [ranges(inputs_of(m, pictures), share) for m in models]
    return [100 * accuracy(quantized(m, s), part) for m, s in zip(models, spans)]


# %%
odd = calibration.clone()
odd[0] *= 255
good = [100 * share for share in hand]
one = calibrated(models, data.test, calibration[:1])
dark = calibrated(models, data.test, 0.1 * calibration)
outlier = calibrated(models, data.test, odd)
without = calibrated(models, data.test, odd, 0.995)
claim(max(dark) < min(good) - 20, "ranges that are too small break it")
claim(max(outlier) < min(good) - 2, "one outlier costs points")
claim(min(without) > max(outlier) + 2, "a share in place of the largest mends it")
claim(max(abs(a - b) for a, b in zip(one, good)) <= 1, "one digit will do")

# %% tags=["ranges-table"]
tried = {
    "100 digits": good,
    "one digit": one,
    "100 digits at a tenth of their brightness": dark,
    "one of the 100 not divided by 255": outlier,
    "the same, without the largest 0.5% of each map": without,
}
rows = [(what, spread(found, ".1f")) for what, found in tried.items()]
table(rows, ("ranges from", "digits read right, %"))

# %% [markdown]
# ## What goes wrong


# %%
def attempt(file: Path, network: nn.Module, x: Tensor) -> str:
    """What OpenVINO says to a file, the last line of its error; or what comes of it."""
    try:
        found = run(CORE.read_model(file), x)
    except RuntimeError as error:
        return str(error).strip().splitlines()[-1]
    with torch.no_grad():
        same = checks.deviation(found, network(x)) <= 1e-4
    return "nothing; same outputs" if same else "nothing; other outputs"


def damaged(file: Path, xml: str, content: bytes | None) -> Path:
    """Both files of a network; without the second if there is no content for it."""
    file.write_text(xml)
    if content is not None:
        file.with_suffix(".bin").write_bytes(content)
    return file


# %%
xml = (folder / "digits.xml").read_text()
flipped = bytearray(weights)
flipped[int(layers["1"].data["offset"]) + 3] ^= 0x40
unknown = xml.replace('type="ReLU"', 'type="Magic"')
harm = {
    "no model.bin": (xml, None),
    "half of model.bin": (xml, weights[: len(weights) // 2]),
    "an operation that it does not know": (unknown, weights),
    "one bit of a weight changed": (xml, bytes(flipped)),
}

# %% tags=["harm"]
rows = []
for i, (what, content) in enumerate(harm.items()):
    file = damaged(folder / f"harm{i}.xml", *content)
    found = verdict({**entry["files"][1], "name": f"harm{i}.bin"}, folder)
    rows.append((what, attempt(file, networks[0], data.test[0][:10]), found))
claim(rows[3][1] == "nothing; other outputs", "a changed weight goes unnoticed")
claim(rows[3][2] == "another checksum", "but for the checksum")
claim(all("nothing" not in row[1] for row in rows[:3]), "the others are refused")
table(rows, ("what was done", "what OpenVINO says", "what the entry says of model.bin"))

# %% [markdown]
# ## Who is told


# %%
calls = {
    "ov.convert_model": lambda: ov.convert_model(
        networks[0], example_input=data.train[0][:1]
    ),
    "ov.save_model": lambda: ov.save_model(model, folder / "again.xml"),
    "core.read_model": lambda: CORE.read_model(folder / "digits.xml"),
    "core.compile_model, a run": lambda: run(model, data.test[0][:1]),
}
told_by |= {name: heard(call) for name, call in calls.items()}

# %% tags=["told"]
quiet = ("ov.save_model", "core.read_model", "core.compile_model, a run")
claim(not any(told_by[name] for name in quiet), "to save, read and run tells nobody")
claim(len(told_by["import openvino"]) > 0, "the import tells")
claim(len(told_by["ov.convert_model"]) > 1, "and so does a conversion")
claim(len(told_by["nncf.quantize"]) > 0, "and so does NNCF")
rows = []
for name, told in sorted(told_by.items(), key=lambda pair: -len(pair[1])):
    actions = list(dict.fromkeys(action for _, action, _ in told))
    rows.append((name, len(told), ", ".join(actions)))
table(rows, ("call", "events", "what they are about"))

# %% alt="Boxes joined by arrows. A network of torch or a file of ONNX leads to model.xml and model.bin, these to the compiled model, which runs on a CPU, GPU or NPU. Below, a second way from the files to it leads through int8. model.yml points to the files from above." tags=["idea-figure"]
axes = diagrams.sheet(2.3)
nodes = {
    "torch": diagrams.Node(0.65, 0.95, "network\nof torch", width=1.0),
    "onnx": diagrams.Node(0.65, 1.75, "ONNX file", width=1.0),
    "ir": diagrams.Node(2.3, 1.35, "model.xml\nmodel.bin", width=1.1),
    "yml": diagrams.Node(2.3, 0.35, "model.yml", colour=plots.COLOURS[1]),
    "int8": diagrams.Node(3.3, 2.05, "int8", width=0.7),
    "run": diagrams.Node(4.35, 1.35, "compiled\nCPU, GPU, NPU", width=1.25),
}
arrows = [("torch", (1.2, 0.95), (1.75, 1.2)), ("onnx", (1.2, 1.75), (1.75, 1.5))]
arrows += [("ir", "run"), ("ir", (2.3, 2.05), "int8"), ("int8", (4.35, 2.05), "run")]
diagrams.draw(axes, nodes, arrows, [("yml", "ir")])

# %% [markdown]
# ## Exercises

# %% tags=["solution-step"]
for kernel in (pair[0].detach().numpy() for pair in pairs):
    integers, step = as_integers(kernel)
    print(np.abs(kernel - step * integers).max() <= 0.501 * step.max())

# %% tags=["solution-weights"]
only_weights = quantized(model)
(
    precision(only_weights),
    precision(small),
    changed(model, only_weights, data.test[0]),
)

# %% tags=["solution-residual"]
OPERATIONS["ReduceMean"] = lambda data, x, axes: x.mean(axes.tolist())
residual = made(Residual, 0)
ov.save_model(
    ov.convert_model(residual, example_input=pictures),
    folder / "residual.xml",
    compress_to_fp16=False,
)
with torch.no_grad():
    print(
        torch.allclose(run_file(folder / "residual.xml", pictures), residual(pictures))
    )

# %% [markdown]
# ## What we saw
#
# - An IR is a list of operations and a file of numbers; a function for each operation runs it.
# - Eight bits for weights and maps change few of the digits read, by hand and by NNCF.
# - Ranges matter more than bits: one picture that is not scaled costs more than the weights do.

# %%
temporary.cleanup()
