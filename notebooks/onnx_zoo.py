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
# # ONNX Model Zoo
#
# What stands in a file of the zoo, read byte by byte; five networks made into entries of a zoo of
# our own and run by three programs; and one of them with integers of eight bits in place of its
# numbers: what that costs, and what breaks it.
# The text to it is the [chapter](../chapters/onnx_zoo.rst), the zoo is
# [onnx/models](https://github.com/onnx/models).

# %%
import gzip
import hashlib
import io
import json
import logging
import tarfile
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime import quantization
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import claim, device, record, record_spread, seed, spread, table
from workbench import diagrams, images, plots, protobuf, training

logging.getLogger().setLevel(logging.ERROR)  # the quantiser advises through the root
warnings.filterwarnings(
    "ignore", "The tensor attributes .* were assigned during export"
)
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)

# %% [markdown]
# ## The bytes of a file
#
# An ONNX file is one message of protobuf: fields, each a number, a type and a value.

# %% [markdown]
# What the numbers mean says [onnx.proto](https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).

# %% tags=["schema"]
TENSOR = {
    1: ("dims", int),
    2: ("data_type", int),
    8: ("name", str),
    9: ("raw_data", bytes),
}
ATTRIBUTE = {1: ("name", str), 2: ("f", float), 3: ("i", int), 8: ("ints", int)}
NODE = {
    1: ("input", str),
    2: ("output", str),
    4: ("op_type", str),
    5: ("attribute", ATTRIBUTE),
}
GRAPH = {1: ("node", NODE), 2: ("name", str), 5: ("initializer", TENSOR)}
OPSET = {1: ("domain", str), 2: ("version", int)}
MODEL = {1: ("ir_version", int), 7: ("graph", GRAPH), 8: ("opset_import", OPSET)}


# %% tags=["message"]
def message(data: bytes, schema: dict) -> dict[str, list]:
    """The fields that the schema names, each with all its values."""
    found = {name: [] for name, _ in schema.values()}
    for number, kind, value in protobuf.fields(data):
        if number in schema:
            name, form = schema[number]
            found[name] += decoded(value, kind, form)
    return found


def decoded(value, kind: int, form) -> list:
    """A value in the form that the schema asks for; packed numbers are several."""
    if isinstance(form, dict):
        return [message(value, form)]
    if form is str:
        return [value.decode()]
    if form is float:
        return np.frombuffer(value, "<f4").tolist()
    if form is bytes:
        return [value]
    numbers = [value] if kind == 0 else []
    at = 0
    while kind == 2 and at < len(value):
        number, at = protobuf.varint(value, at)
        numbers.append(number)
    return [n - 2**64 if n >= 2**63 else n for n in numbers]


# %% tags=["array"]
DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8"}


def array(tensor: dict) -> np.ndarray:
    """The numbers of a tensor that `message` has read."""
    if not tensor["raw_data"]:
        raise ValueError(
            f"{tensor['name']} keeps its numbers outside raw_data: "
            "read it with onnx.numpy_helper.to_array"
        )
    numbers = np.frombuffer(tensor["raw_data"][0], DTYPES[tensor["data_type"][0]])
    return numbers.reshape(tensor["dims"])


# %% [markdown]
# ## Five networks of this book
#
# LeNet, a residual network, one with depthwise convolutions, the encoder of a transformer, an LSTM.


# %% tags=["networks"]
class LeNet(nn.Module):
    """Two convolutions and two linear layers: (B, 1, 28, 28) -> (B, 10)."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.hidden = nn.Linear(256, 84)
        self.classifier = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)  # (B, 6, 12, 12)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)  # (B, 16, 4, 4)
        return self.classifier(torch.relu(self.hidden(x.flatten(1))))


class ResidualNet(nn.Module):
    """A residual block with batch norms, behind a strided convolution."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))  # (B, width, 14, 14)
        branch = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(x + self.norm2(self.conv2(branch)))
        return self.classifier(x.mean((2, 3)))


# %% tags=["depthwise"]
class DepthwiseNet(nn.Module):
    """A convolution, one that keeps to its channel, one more, two linear layers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 5)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.mix = nn.Conv2d(16, 32, 3)
        self.hidden = nn.Linear(800, 128)
        self.classifier = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.conv(x)), 2)  # (B, 16, 12, 12)
        x = torch.relu(self.depthwise(x))
        x = F.max_pool2d(torch.relu(self.mix(x)), 2)  # (B, 32, 5, 5)
        return self.classifier(torch.relu(self.hidden(x.flatten(1))))


# %% tags=["encoder"]
class Encoder(nn.Module):
    """One layer of a transformer on words: (B, T) -> (B, T, d_model)."""

    def __init__(self, vocabulary: int = 50, *, d_model: int = 32, n_heads: int = 4):
        super().__init__()
        assert d_model % n_heads == 0, "n_heads must divide d_model"
        self.n_heads = n_heads
        self.embedding = nn.Embedding(vocabulary, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.project = nn.Linear(d_model, 3 * d_model)
        self.join = nn.Linear(d_model, d_model)
        self.wide = nn.Linear(d_model, 4 * d_model)
        self.narrow = nn.Linear(4 * d_model, d_model)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words)
        parts = self.project(self.norm1(x)).unflatten(2, (3, self.n_heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # each (B, h, T, d)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        x = x + self.join((weights @ v).transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class Recurrent(nn.Module):
    """An LSTM and a classifier on its last state: (B, T, 12) -> (B, 10)."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.lstm = nn.LSTM(12, width, batch_first=True)
        self.classifier = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        return self.classifier(states[:, -1])


# %% tags=["inputs"]
def pictures(B: int = 4) -> Tensor:
    return torch.randn(B, 1, 28, 28)


def sentences(B: int = 4) -> Tensor:
    return torch.randint(50, (B, 16))


def sequences(B: int = 4) -> Tensor:
    return torch.randn(B, 20, 12)


ZOO = {
    "LeNet": (LeNet, pictures, "vision/classification"),
    "Residual": (ResidualNet, pictures, "vision/classification"),
    "Depthwise": (DepthwiseNet, pictures, "vision/classification"),
    "Encoder": (Encoder, sentences, "text/encoding"),
    "LSTM": (Recurrent, sequences, "text/classification"),
}


# %% tags=["exported"]
def exported(network: nn.Module, x: Tensor) -> onnx.ModelProto:
    """A network as an ONNX model for inputs of this shape."""
    program = torch.onnx.export(
        network.cpu().eval(),
        (x,),
        input_names=["x"],
        output_names=["y"],
        dynamo=True,
        verbose=False,
    )
    return program.model_proto


# %% tags=["bare"]
def bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what the exporter notes about its source."""
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    graph = kept.graph
    parts = (graph.node, graph.input, graph.output, graph.value_info)
    for part in (kept, graph, *(p for several in parts for p in several)):
        del part.metadata_props[:]
    return kept


# %%
seed(0)
trained = {}  # the networks, with batch norms that have seen something
models = {}
for name, (kind, inputs, _) in ZOO.items():
    network = kind()
    if name == "Residual":
        network.train()(pictures(64))
    trained[name] = network
    models[name] = exported(network, inputs())
noted = models["LeNet"].SerializeToString()
models = {name: bare(model) for name, model in models.items()}

# %% tags=["first-bytes"]
lenet = models["LeNet"].SerializeToString()
lenet[:11].hex(" ")

# %% tags=["fields-run"]
NAMES = ("ir_version", "producer_name", "producer_version", "graph", "opset_import")
table(
    [
        (number, kind, name, value if kind == 0 else f"{len(value):,} bytes")
        for (number, kind, value), name in zip(
            protobuf.fields(lenet), NAMES, strict=True
        )
    ],
    ("field", "type", "name in onnx.proto", "value"),
)

# %%
claim(protobuf.varint(bytes([0xAC, 0x02]), 0) == (300, 2), "AC 02 is 300")
claim(lenet[:11] == b"\x08\x0a\x12\x07pytorch", "version 10, made by pytorch")
claim(
    [f[0] for f in protobuf.fields(lenet)] == [1, 2, 3, 7, 8],
    "these fields in this order",
)
record("lenet.bytes", len(lenet))

# %% tags=["opened"]
(graph,) = message(lenet, MODEL)["graph"]
table(
    [
        (node["op_type"][0], ", ".join(node["input"]), node["output"][0])
        for node in graph["node"]
    ],
    ("op_type", "input", "output"),
)

# %%
numbers = sum(array(tensor).nbytes for tensor in graph["initializer"])
record("lenet.share", numbers / len(lenet))
weights = {tensor["name"][0]: array(tensor) for tensor in graph["initializer"]}
kept = torch.from_numpy(weights["conv1.weight"].copy())
claim(
    bool((kept == trained["LeNet"].conv1.weight).all()), "the weights are in the file"
)
claim(numbers > 0.9 * len(lenet), "nine tenths of the file are numbers")
home = str(Path(torch.__file__).parent).encode()
claim(home in noted and home not in lenet, "the exporter notes folders, bare has none")


# %%
def same_as_onnx(data: bytes) -> tuple[int, int, int]:
    """Nodes, tensors and numbers, if the reader and onnx agree on each."""
    (ours,) = message(data, MODEL)["graph"]
    theirs = onnx.load_from_string(data).graph
    assert len(ours["node"]) == len(theirs.node), "other nodes"
    for node, other in zip(ours["node"], theirs.node):
        assert node["op_type"] == [other.op_type], "another operator"
        assert node["input"] == list(other.input), "other inputs"
        assert node["output"] == list(other.output), "other outputs"
        for attribute, its in zip(node["attribute"], other.attribute, strict=True):
            assert attribute["name"] == [its.name], "another attribute"
            assert attribute["ints"] == list(its.ints), "other integers"
            assert attribute["i"] in ([its.i], []), "another integer"
    assert len(ours["initializer"]) == len(theirs.initializer), "other tensors"
    arrays = [array(tensor) for tensor in ours["initializer"]]
    for found, tensor in zip(arrays, theirs.initializer):
        np.testing.assert_array_equal(found, numpy_helper.to_array(tensor))
    return len(ours["node"]), len(arrays), sum(found.size for found in arrays)


# %% [markdown]
# ## Run them elsewhere


# %% tags=["answer"]
def session(model: bytes | str) -> onnxruntime.InferenceSession:
    """A model, its bytes or its path, made ready by ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what it says is in its errors
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"]
    )


def answer(model: bytes | str, x: np.ndarray) -> np.ndarray:
    """The one output of a model for its one input."""
    return session(model).run(None, {"x": x})[0]


# %% tags=["differences"]
@torch.no_grad()
def differences(network: nn.Module, model: onnx.ModelProto, x: Tensor) -> tuple:
    """Largest distance from PyTorch's output: of ONNX Runtime, of onnx's reference."""
    expected = network(x).numpy()
    runtime = answer(model.SerializeToString(), x.numpy())
    (reference,) = ReferenceEvaluator(model).run(None, {"x": x.numpy()})
    return float(abs(runtime - expected).max()), float(abs(reference - expected).max())


# %%
SEEDS = (0, 1, 2)
found = {}
for name, (_, inputs, _) in ZOO.items():
    onnx.checker.check_model(models[name], full_check=True)
    for number in SEEDS:
        seed(number)
        found[name, number] = differences(trained[name], models[name], inputs())
largest = max(max(pair) for pair in found.values())
claim(largest < 1e-4, "all outputs are PyTorch's to 1e-4")

# %% tags=["equal"]
table(
    [
        (
            name,
            *same_as_onnx(models[name].SerializeToString()),
            *(f"{found[name, number][0]:.0e}" for number in SEEDS),
            f"{max(found[name, number][1] for number in SEEDS):.0e}",
        )
        for name in ZOO
    ],
    ("network", "nodes", "tensors", "numbers", "seed 0", "1", "2", "reference"),
)

# %%
operators = {name: [node.op_type for node in models[name].graph.node] for name in ZOO}
claim("BatchNormalization" not in operators["Residual"], "the norms are in the weights")
claim(operators["LSTM"].count("LSTM") == 1, "the LSTM is one node")
record("lstm.nodes", len(operators["LSTM"]))


# %% [markdown]
# ## A zoo of our own
#
# A folder for each entry, as in onnx/models: the model, an archive of it with test data, and one
# manifest for all.


# %% tags=["publish"]
def publish(zoo: Path, name: str, part: str, model, x: Tensor) -> dict:
    """Write an entry into the zoo and return its part of the manifest."""
    data = model.SerializeToString()
    opset = model.opset_import[0].version
    stem = f"{part}/{name.lower()}/model/{name.lower()}-{opset}"
    tests = {"input_0.pb": x.numpy(), "output_0.pb": answer(data, x.numpy())}
    members = {f"{name.lower()}.onnx": data}
    for file, values in tests.items():
        tensor = numpy_helper.from_array(values, file.removesuffix(".pb"))
        members[f"test_data_set_0/{file}"] = tensor.SerializeToString()
    (zoo / stem).parent.mkdir(parents=True)
    (zoo / f"{stem}.onnx").write_bytes(data)
    (zoo / f"{stem}.tar.gz").write_bytes(archive(members))
    return {
        "model": name,
        "model_path": f"{stem}.onnx",
        "onnx_version": onnx.__version__,
        "opset_version": opset,
        "metadata": {
            "model_sha": sha256(data),
            "model_bytes": len(data),
            "tags": [*part.split("/"), name.lower()],
            "model_with_data_path": f"{stem}.tar.gz",
            "model_with_data_sha": sha256((zoo / f"{stem}.tar.gz").read_bytes()),
        },
    }


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def archive(members: dict[str, bytes]) -> bytes:
    """A tar.gz of files, by their names."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as packed:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
    return gzip.compress(file.getvalue(), mtime=0)


# %% tags=["load"]
def entry_of(zoo: Path, name: str, opset: int | None = None) -> dict:
    """The entry of this name, of several that with the newest operators."""
    manifest = json.loads((zoo / "ONNX_HUB_MANIFEST.json").read_text())
    named = [entry for entry in manifest if entry["model"].lower() == name.lower()]
    fitting = [e for e in named if opset in (None, e["opset_version"])]
    if not fitting:
        known = sorted(f"{e['model']} {e['opset_version']}" for e in manifest)
        raise ValueError(f"no {name} of opset {opset}; there are {', '.join(known)}")
    return max(fitting, key=lambda entry: entry["opset_version"])


def verified(path: Path, expected: str) -> bytes:
    """What is in a file, if it is what the manifest was made from."""
    data = path.read_bytes()
    if sha256(data) != expected:
        raise ValueError(f"{path.name}: not the manifest's SHA-256; fetch it again")
    return data


def load(zoo: Path, name: str, opset: int | None = None) -> onnx.ModelProto:
    """A model of the zoo, verified and checked."""
    entry = entry_of(zoo, name, opset)
    data = verified(zoo / entry["model_path"], entry["metadata"]["model_sha"])
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    return model


# %% tags=["retest"]
def retest(zoo: Path, entry: dict, model: bytes) -> float:
    """Largest distance of a model's output from that in its entry's archive."""
    about = entry["metadata"]
    data = verified(zoo / about["model_with_data_path"], about["model_with_data_sha"])
    tensors = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        for name in ("input_0", "output_0"):
            file = opened.extractfile(f"test_data_set_0/{name}.pb")
            tensor = onnx.TensorProto.FromString(file.read())
            tensors[name] = numpy_helper.to_array(tensor)
    return float(abs(answer(model, tensors["input_0"]) - tensors["output_0"]).max())


# %%
seed(0)
zoo = folder / "zoo"
manifest = [
    publish(zoo, name, part, models[name], inputs())
    for name, (_, inputs, part) in ZOO.items()
]
(zoo / "ONNX_HUB_MANIFEST.json").write_text(json.dumps(manifest, indent=4))
again = [retest(zoo, entry_of(zoo, n), load(zoo, n).SerializeToString()) for n in ZOO]
claim(max(again) == 0, "each entry gives the output in its archive")

# %% tags=["entry"]
print(json.dumps(entry_of(zoo, "lenet"), indent=1)[:640])

# %% [markdown]
# ## What is wrong with a file, and who notices


# %% tags=["damage"]
def outside(model: onnx.ModelProto, location: str) -> onnx.ModelProto:
    """The model with the numbers of its largest tensor in another file."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensor = max(changed.graph.initializer, key=lambda t: len(t.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return changed


def renamed(model: onnx.ModelProto, domain: str) -> onnx.ModelProto:
    """The model with its first operator replaced by one of another domain."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.node[0].domain = domain
    changed.opset_import.add(domain=domain, version=1)
    return changed


def flipped(data: bytes, number: float) -> bytes:
    """The file with one bit of the first place changed where this number stands."""
    at = data.index(np.float32(number).tobytes()) + 3
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


# %% tags=["verdicts"]
def passes(call) -> str:
    """Whether a call goes through."""
    try:
        call()
    except Exception:
        return "refuses"
    return "passes"


def verdicts(data: bytes, path: Path, zoo: Path, entry: dict) -> tuple[str, ...]:
    """What onnx.load, the checker, ONNX Runtime and the test data say of a file."""
    path.parent.mkdir(parents=True)
    path.write_bytes(data)

    def test():
        assert retest(zoo, entry, str(path)) < 1e-4, "another output"

    return (
        passes(lambda: onnx.load(path)),
        passes(lambda: onnx.checker.check_model(path, full_check=True)),
        passes(lambda: session(str(path))),
        passes(test),
    )


# %%
model = models["LeNet"]
largest_tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
(folder / "secret.bin").write_bytes(largest_tensor.raw_data)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 26454\n"
weight = weights["conv1.weight"].flat[0]
cases = {
    "the file as published": lenet,
    "one bit of a weight changed": flipped(lenet, weight),
    "its first half": lenet[: len(lenet) // 2],
    "the pointer of Git LFS": POINTER,
    "weights in ../secret.bin": outside(model, "../secret.bin").SerializeToString(),
    "an operator of its own": renamed(model, "reader.own").SerializeToString(),
}
entry = entry_of(zoo, "lenet")
said = {}
for number, (case, data) in enumerate(cases.items()):
    known = sha256(data) == entry["metadata"]["model_sha"]
    path = folder / f"case{number}" / "model.onnx"
    said[case] = ("passes" if known else "refuses", *verdicts(data, path, zoo, entry))

# %% tags=["damages"]
CHECKS = ("SHA-256", "onnx.load", "checker", "ONNX Runtime", "test data")
table([(case, *words) for case, words in said.items()], ("file", *CHECKS))

# %%
claim(said["the file as published"] == ("passes",) * 5, "a whole file passes")
wrong = [said[case] for case in list(cases)[1:]]
claim({words[0] for words in wrong} == {"refuses"}, "the sum refuses all others")
claim(
    said["one bit of a weight changed"] == ("refuses", *("passes",) * 3, "refuses"),
    "of one bit only the sum and the test data tell",
)
claim(said["weights in ../secret.bin"] == ("refuses",) * 5, "the way up is refused")
claim(
    said["an operator of its own"][1:4] == ("passes", "passes", "refuses"),
    "the checker passes what it does not know",
)

# %% [markdown]
# ## Eight bits
#
# A network trained on digits, and the same with integers.


# %% tags=["eight-bits"]
def quantise(x: np.ndarray, scale, zero, low: int, high: int) -> np.ndarray:
    """The integers from low to high that stand for x."""
    return np.clip(np.rint(x / scale) + zero, low, high).astype(int)


def dequantise(q: np.ndarray, scale, zero) -> np.ndarray:
    return (q - zero) * scale


# %% tags=["eight-by-hand"]
x = np.array([-0.5, 0.0, 0.1, 1.0, 2.05, 9.0])
q = quantise(x, 0.01, 50, 0, 255)
table(zip(x, q, np.round(dequantise(q, 0.01, 50), 2)), ("x", "integer", "stands for"))

# %%
claim(q.tolist() == [0, 50, 60, 150, 255, 255], "9 and 2.05 end at 255")


# %% tags=["train"]
def train(data, *, epochs: int = 2) -> DepthwiseNet:
    network = DepthwiseNet().to(device)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    steps = epochs * -(-len(data.train[1]) // 50)
    schedule = training.one_cycle(optimizer, steps)
    training.fit(network, data.train, epochs, optimizer, schedule=schedule)
    return network.cpu().eval()


# %% tags=["refilled"]
def numbers_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The numbers of each tensor of a model, by its name."""
    return {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}


def refilled(model: onnx.ModelProto, numbers: dict) -> onnx.ModelProto:
    """The same graph with other numbers in the tensors that are named."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in numbers:
            new = numpy_helper.from_array(numbers[tensor.name], tensor.name)
            tensor.CopyFrom(new)
    return changed


# %% tags=["quantised"]
class Digits(quantization.CalibrationDataReader):
    """Gives the quantiser pictures (N, 1, 28, 28), a hundred at a time."""

    def __init__(self, x: Tensor):
        self.batches = iter([{"x": part.numpy()} for part in x.split(100)])

    def get_next(self) -> dict | None:
        return next(self.batches, None)


def quantised(model, pictures: Tensor, folder: Path, *, per_channel=True) -> bytes:
    """The model in eight bits, with the ranges that it has on these pictures."""
    onnx.save(model, folder / "float.onnx")
    quantization.quantize_static(
        folder / "float.onnx",
        folder / "int8.onnx",
        Digits(pictures),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=per_channel,
    )
    return (folder / "int8.onnx").read_bytes()


# %% tags=["accuracy"]
def guesses(model: bytes, x: Tensor) -> np.ndarray:
    """The digit that a model sees in each picture, a hundred at a time."""
    ready = session(model)
    outputs = [ready.run(None, {"x": part.numpy()})[0] for part in x.split(100)]
    return np.concatenate(outputs).argmax(1)


def accuracy(model: bytes, part) -> float:
    return float((guesses(model, part[0]) == part[1].numpy()).mean())


# %%
data = images.digits()
networks = {}
for number in SEEDS:
    seed(number)
    networks[number] = train(data)
graph_of_all = bare(exported(networks[0], torch.zeros(100, 1, 28, 28)))
floats = {}
for n in SEEDS:  # one export serves all: only the numbers differ
    weights_of = networks[n].state_dict().items()
    floats[n] = refilled(graph_of_all, {name: w.numpy() for name, w in weights_of})

# %%
calibration = data.train[0][:100]
whole = {n: floats[n].SerializeToString() for n in SEEDS}
dynamic = {}
small = {}
for n in SEEDS:
    small[n] = quantised(floats[n], calibration, folder)
    quantization.quantize_dynamic(folder / "float.onnx", folder / "dynamic.onnx")
    dynamic[n] = (folder / "dynamic.onnx").read_bytes()
before = {n: accuracy(whole[n], data.test) for n in SEEDS}
after = {n: accuracy(small[n], data.test) for n in SEEDS}
rows = []
for n in SEEDS:
    same = guesses(whole[n], data.test[0]) == guesses(small[n], data.test[0])
    rows.append((n, before[n], after[n], same.mean(), len(whole[n]), len(small[n])))

# %% tags=["headline"]
table(
    [
        (n, f"{100 * a:.1f} %", f"{100 * b:.1f} %", f"{100 * s:.1f} %", c, d)
        for n, a, b, s, c, d in rows
    ],
    ("seed", "float", "int8", "same answer", "float bytes", "int8 bytes"),
)

# %%
lost = [100 * abs(a - b) for _, a, b, *_ in rows]
ratios = [len(small[n]) / len(whole[n]) for n in SEEDS]
record("ratio", max(ratios))
record("dynamic.ratio", max(len(dynamic[n]) / len(whole[n]) for n in SEEDS))
dynamic_lost = [100 * abs(accuracy(dynamic[n], data.test) - before[n]) for n in SEEDS]
claim(max(dynamic_lost) < 1, "dynamic quantisation stays within a point, too")
claim(max(lost) < 1, "int8 stays within a point of the float network")
claim(max(ratios) < 0.3, "the int8 file has less than .3 of the bytes")
claim(all(row[3] > 0.98 for row in rows), "the answers are the same for 98 of 100")

# %% [markdown]
# ### One layer by hand


# %% tags=["layer"]
def first_layer(model: onnx.ModelProto) -> dict[str, list]:
    """Integers, scale and zero point of what the first convolution reads and gives."""
    nodes = model.graph.node
    value = numbers_of(model)
    made_by = {output: node for node in nodes for output in node.output}
    conv = next(node for node in nodes if node.op_type == "Conv")
    behind = next(node for node in nodes if conv.output[0] in node.input)
    x, w, b = (made_by[name].input for name in conv.input)
    return {
        "x": [value[name] for name in x[1:]],  # scale and zero point
        "w": [value[name] for name in w],
        "b": [value[name] for name in b],
        "y": [value[name] for name in behind.input[1:]],
        "name": behind.output[0],
    }


def in_integers(q: np.ndarray, layer: dict) -> np.ndarray:
    """The layer's output for integers q (B, 1, H, W); up to the sum all is integer."""
    x_scale, x_zero = layer["x"]
    w, w_scale, _ = layer["w"]
    y_scale, y_zero = layer["y"]
    shifted = q - x_zero.astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(shifted, w.shape[2:], (2, 3))
    sums = np.einsum("bihwkl,oikl->bohw", windows, w.astype(int))
    sums = sums + layer["b"][0][:, None, None]
    factors = x_scale * w_scale / y_scale
    return quantise(sums * factors[:, None, None], 1, y_zero, 0, 255)


# %%
int8 = onnx.load_from_string(small[0])
layer = first_layer(int8)
ours = networks[0].conv.weight.detach().numpy()
widest = abs(ours).max((1, 2, 3))
w, w_scale, w_zero = layer["w"]
weights_here = quantise(ours, w_scale[:, None, None, None], 0, -127, 127)
claim(np.allclose(widest / 127, w_scale, rtol=1e-5), "scale: widest weight over 127")
claim(not w_zero.any(), "the zero point of weights is 0")
claim((weights_here == w).all(), "all weights by hand are the file's")

# %%
int8.graph.output.append(
    onnx.helper.make_tensor_value_info(layer["name"], onnx.TensorProto.UINT8, None)
)
hundred = data.test[0][:100].numpy()
_, theirs = session(int8.SerializeToString()).run(None, {"x": hundred})
q = quantise(hundred, *layer["x"], 0, 255)
steps = abs(in_integers(q, layer) - theirs.astype(int))
record("layer.values", steps.size)
claim(steps.max() <= 1, "the layer by hand is ONNX Runtime's to one step")
claim("Relu" not in [node.op_type for node in int8.graph.node], "no ReLU is left")
claim(int(layer["y"][1]) == 0, "its output's zero point is 0")
claim(abs(layer["x"][0] - 1 / 255) < 1e-6, "pixels from 0 to 1 have the scale 1/255")

# %% [markdown]
# ### What breaks it


# %% tags=["rescaled"]
def rescaled(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The same function: one channel divided by a factor, its next filter times it."""
    numbers = numbers_of(model)
    numbers["conv.weight"][0] /= factor
    numbers["conv.bias"][0] /= factor
    numbers["depthwise.weight"][0] *= factor
    return refilled(model, numbers)


# %%
FACTORS = (1, 16, 64, 256, 1024)
curves = {"float": [], "per channel": [], "per tensor": []}
for n in SEEDS:
    changed = [rescaled(floats[n], factor) for factor in FACTORS]
    files = {"float": [model.SerializeToString() for model in changed]}
    for name, each in (("per channel", True), ("per tensor", False)):
        how = {"per_channel": each}
        files[name] = [quantised(m, calibration, folder, **how) for m in changed]
    for name, versions in files.items():
        curves[name].append([accuracy(file, data.test) for file in versions])
curves = {name: 100 * torch.tensor(rows) for name, rows in curves.items()}

# %% alt="Accuracy over the factor from 1 to 1024, in a logarithmic scale. Float and per channel lie close together at the top. Per tensor lies with them at 1 and 16 and ends far below at 1024." tags=["factor-figure"]
_, axes = plt.subplots(figsize=(5, 2.8))
ends = {}
for name, colour in zip(("per channel", "per tensor"), plots.COLOURS):
    ends[name] = plots.seed_band(axes, FACTORS, curves[name], colour)
ends["float"] = plots.seed_band(axes, FACTORS, curves["float"], plots.COLOURS[2], ":")
axes.set_xscale("log", base=4)
axes.set_xticks(FACTORS, FACTORS)
axes.minorticks_off()
axes.set(xlabel="factor of one channel", ylabel="accuracy, %", ylim=(0, 105))
plots.label_ends(axes, ends)
axes.set_axisbelow(True)

# %%
channel = curves["per channel"]
tensor = curves["per tensor"]
float_ = curves["float"]
claim(
    bool((float_ == float_[:, :1]).all()), "the factor leaves the float network alone"
)
claim((channel - float_).abs().max() < 3, "per channel stays within three points")
claim((tensor - float_)[:, :2].abs().max() < 3, "per tensor does, too, at 1 and 16")
claim(tensor[:, -1].max() < 30, "per tensor falls below thirty percent at 1024")
claim(tensor[:, -1].max() < channel[:, -1].min() - 40, "far below per channel")
record_spread("tensor.1024", tensor[:, -1].tolist())
record_spread("channel.1024", channel[:, -1].tolist())


# %%
def levels(model: onnx.ModelProto) -> np.ndarray:
    """The integers of the depthwise filters, a row for each."""
    found = numbers_of(model)["depthwise.weight_quantized"]
    return found.reshape(len(found), -1)


# %%
far = rescaled(floats[0], 1024)
crushed = quantised(far, calibration, folder, per_channel=False)
others = levels(onnx.load_from_string(crushed))[1:]
zeros = int((others == 0).sum())
record("zeros", zeros)
record("zeros.of", others.size)
claim(zeros > 0.9 * others.size, "nearly all weights of the other filters are zero")

# %%
one = data.train[0][data.train[1] == 1][:100]
seed(0)
inputs_of = {
    "10 training digits": calibration[:10].repeat(10, 1, 1, 1),
    "100 digits, all of them 1": one[torch.arange(100) % len(one)],
    "digits, black and white exchanged": 1 - calibration,
    "noise, even from 0 to 1": torch.rand(100, 1, 28, 28),
    "digits with pixels up to 255": 255 * calibration,
}
calibrated = {"100 training digits": [100 * after[n] for n in SEEDS]}
for name, x in inputs_of.items():
    files = [quantised(floats[n], x, folder) for n in SEEDS]
    calibrated[name] = [100 * accuracy(file, data.test) for file in files]

# %% tags=["calibrations"]
table(
    [(name, spread(values, ".1f")) for name, values in calibrated.items()],
    ("calibrated on", "accuracy, mean and spread of 3 seeds"),
)

# %%
costs = {
    name: max(100 * before[n] - values[n] for n in SEEDS)
    for name, values in calibrated.items()
}
record("noise.cost", costs["noise, even from 0 to 1"])
few = [costs["10 training digits"], costs["100 digits, all of them 1"]]
claim(max(few) < 1, "few digits, or those of one class, cost less than a point")
exchanged = costs["digits, black and white exchanged"]
claim(exchanged < 3, "black and white exchanged costs less than three points")
claim(2 < costs["noise, even from 0 to 1"] < 20, "noise costs some points")
claim(max(calibrated["digits with pixels up to 255"]) < 50, "another unit ruins it")

# %% [markdown]
# ## Figures

# %% alt="Boxes from left to right. ModelProto holds ir_version, opset_import and one GraphProto. GraphProto holds NodeProto, with op_type, input and output; TensorProto, with dims and raw_data; and ValueInfoProto, with name and type." tags=["file-figure"]
axes = diagrams.sheet(2.2)
nodes = {
    "model": diagrams.Node(
        0.8, 1.15, "ModelProto\nir_version\nopset_import", width=1.3
    ),
    "graph": diagrams.Node(2.45, 1.15, "GraphProto\nname", width=1.2),
    "node": diagrams.Node(4.1, 0.42, "NodeProto\nop_type, input,\noutput", width=1.6),
    "tensor": diagrams.Node(4.1, 1.15, "TensorProto\ndims, raw_data", width=1.6),
    "value": diagrams.Node(4.1, 1.8, "ValueInfoProto\nname, type", width=1.6),
}
middle = [("model", "graph"), ("graph", "tensor")]
bent = [("graph", (2.45, 0.42), "node"), ("graph", (2.45, 1.8), "value")]
diagrams.draw(axes, nodes, [*middle, *bent])

# %% alt="Two rows. Above: x and float weights go into Conv, its output into Relu, that gives y. Below: x is rounded, goes with int8 weights into an integer sum, and that is scaled and rounded to y; there is no Relu." tags=["layers-figure"]
axes = diagrams.sheet(1.9)
nodes = {
    "x": diagrams.Node(0.3, 0.65, "x"),
    "Conv": diagrams.Node(2.35, 0.65, "Conv", width=0.8),
    "w": diagrams.Node(2.35, 0.15, "weights, float"),
    "Relu": diagrams.Node(3.7, 0.65, "Relu", width=0.8),
    "y": diagrams.Node(4.75, 0.65, "y"),
    "x8": diagrams.Node(0.3, 1.65, "x"),
    "round": diagrams.Node(1.1, 1.65, "round", width=0.8),
    "sum": diagrams.Node(2.35, 1.65, "integer sum", width=1.2),
    "w8": diagrams.Node(2.35, 1.15, "weights, int8"),
    "scale": diagrams.Node(3.7, 1.65, "scale, round", width=1.2),
    "y8": diagrams.Node(4.75, 1.65, "y"),
}
rows = (("x", "Conv", "Relu", "y"), ("x8", "round", "sum", "scale", "y8"))
across = [pair for row in rows for pair in zip(row, row[1:])]
diagrams.draw(axes, nodes, [*across, ("w", "Conv"), ("w8", "sum")])

# %% [markdown]
# ## Exercises

# %% tags=["solution-varint"]
print(protobuf.fields(bytes([0x08, 0x96, 0x01])))
print(protobuf.fields(bytes([0x12, 0x03, 0x61, 0x62, 0x63])))


# %% tags=["solution-equalise"]
def equalised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with each channel's two filters equally wide."""
    numbers = numbers_of(model)
    first = abs(numbers["conv.weight"]).max((1, 2, 3))
    second = abs(numbers["depthwise.weight"]).max((1, 2, 3))
    factor = np.sqrt(second / first)  # both become sqrt(first * second)
    numbers["conv.weight"] *= factor[:, None, None, None]
    numbers["conv.bias"] *= factor
    numbers["depthwise.weight"] /= factor[:, None, None, None]
    return refilled(model, numbers)


# %% tags=["solution-equalised"]
mended = [
    accuracy(
        quantised(
            equalised(rescaled(floats[n], 1024)),
            calibration,
            folder,
            per_channel=False,
        ),
        data.test,
    )
    for n in SEEDS
]
table(
    [(n, f"{100 * mended[n]:.1f} %") for n in SEEDS], ("seed", "per tensor, equalised")
)

# %%
claim(
    all(abs(mended[n] - before[n]) < 0.03 for n in SEEDS),
    "equal widths mend per tensor",
)


# %% tags=["solution-written"]
def number_written(value: int) -> bytes:
    """The bytes that `varint` reads."""
    low = value & 127
    rest = value >> 7
    return bytes([low | 128]) + number_written(rest) if rest else bytes([low])


def written(found: list[tuple]) -> bytes:
    """The bytes that `fields` reads."""
    data = b""
    for number, kind, value in found:
        data += number_written(8 * number + kind)
        if kind == 0:
            data += number_written(value)
        else:
            data += number_written(len(value)) + value if kind == 2 else value
    return data


# %% tags=["solution-producer"]
named = [
    (number, kind, b"a reader" if number == 2 else value)
    for number, kind, value in protobuf.fields(lenet)
]
onnx.load_from_string(written(named)).producer_name

# %% [markdown]
# ## What we saw
#
# - An ONNX file is a list of fields: nodes with the names of their inputs, and numbers.
# - Five networks give the same outputs in three programs, to less than 1e-4.
# - Integers of eight bits keep the accuracy, if each channel has a scale of its own and the
#   calibration has the unit of the real inputs.

# %%
temporary.cleanup()
