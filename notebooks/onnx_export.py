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
# # Export to ONNX, and what predicts latency
#
# A network captured and translated by hand, then by PyTorch's exporter; ten networks run by three
# programs; what an export gets wrong; and which number of a network tells how long it takes.
# The text to it is the [chapter](../chapters/onnx_export.rst).

# %%
import contextlib
import copy
import functools
import io
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

temporary = tempfile.TemporaryDirectory()
os.environ["TORCHINDUCTOR_CACHE_DIR"] = temporary.name
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
sys.modules["openvino_telemetry"] = None  # OpenVINO tells nobody that it is used

import matplotlib.pyplot as plt
import numpy as np
import onnx
import onnxruntime
import openvino as ov
import torch
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnx.reference import ReferenceEvaluator
from onnxscript import opset18
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.ops import aten
from torchvision.models import densenet, mobilenetv2, resnet, shufflenetv2
from torchvision.models import vision_transformer

from workbench import claim, record, seed, table
from workbench import checks, counting, diagrams, plots, protobuf

warnings.filterwarnings("ignore", "The tensor attributes .* were assigned")
warnings.filterwarnings("ignore", "_check_is_size will be removed")  # of the LSTM
for name in ("torch.onnx", "torch.export", "torch.fx", "torch.utils.cpp_extension"):
    logging.getLogger(name).setLevel(logging.ERROR)

# %%
# Each export reads torch's list of translations anew; one reading serves them all.
with contextlib.suppress(ImportError, AttributeError):  # where torch keeps it elsewhere
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    kept = functools.cache(ONNXRegistry.from_torchlib)
    ONNXRegistry.from_torchlib = staticmethod(kept)

# %% [markdown]
# ## Captured
#
# `torch.export` runs the network once, on tensors without numbers, and keeps the operators.


# %% tags=["lenet"]
class LeNet(nn.Sequential):
    """Two convolutions and three linear layers: (B, 3, 64, 64) -> (B, 10)."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * 16 * 16, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        )


# %% tags=["captured"]
seed(0)
lenet = LeNet().eval()
x = torch.randn(2, 3, 64, 64)
program = torch.export.export(lenet, (x,), dynamic_shapes=({0: Dim("B")},))


# %% tags=["translations"]
def convolution(x, weight, bias, stride=(1, 1), padding=(0, 0)):
    return "Conv", (x, weight, bias), {"strides": stride, "pads": [*padding, *padding]}


def max_pool(x, size, stride, padding=(0, 0)):
    pads = [*padding, *padding]
    return "MaxPool", (x,), {"kernel_shape": size, "strides": stride, "pads": pads}


def flatten(x, first):
    if first != 1:
        raise ValueError("ONNX's Flatten always gives two axes: only flatten(1) is it")
    return "Flatten", (x,), {"axis": 1}


TRANSLATIONS = {  # an operator's arguments: ONNX's name, its inputs, its attributes
    aten.conv2d.default: convolution,
    aten.max_pool2d.default: max_pool,
    aten.relu.default: lambda x: ("Relu", (x,), {}),
    aten.flatten.using_ints: flatten,
    aten.linear.default: lambda *inputs: ("Gemm", inputs, {"transB": 1}),
}


# %% tags=["ends"]
def stored(program: ExportedProgram, read: set[str]) -> list[onnx.TensorProto]:
    """The parameters and buffers that nodes read, under their names in the graph."""
    signature = program.graph_signature
    places = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    weights = {name: program.state_dict[place] for name, place in places.items()}
    return [
        numpy_helper.from_array(weight.detach().numpy(), name)
        for name, weight in weights.items()
        if name in read
    ]


def ends(program: ExportedProgram) -> tuple[list, list]:
    """Names and shapes of the inputs and of the outputs, a size left open being B."""
    signature = program.graph_signature
    found = {}
    for node in program.graph.nodes:
        if node.name in (*signature.user_inputs, *signature.user_outputs):
            shape = [n if type(n) is int else "B" for n in node.meta["val"].shape]
            kind = TensorProto.FLOAT
            found[node.name] = helper.make_tensor_value_info(node.name, kind, shape)
    return (
        [found[name] for name in signature.user_inputs],
        [found[name] for name in signature.user_outputs],
    )


# %% tags=["translated"]
def translated(program: ExportedProgram, translations: dict) -> onnx.ModelProto:
    """An ONNX model of a captured network with one input and one output."""
    nodes = []
    for node in program.graph.nodes:
        if node.op == "call_function":
            if node.target not in translations:
                raise ValueError(f"no translation for {node.target}: add one")
            kind, inputs, attributes = translations[node.target](*node.args)
            names = [given.name for given in inputs if given is not None]
            nodes.append(helper.make_node(kind, names, [node.name], **attributes))
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(nodes, "by_hand", *ends(program), stored(program, read))
    opset = helper.make_opsetid("", 18)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)


# %% tags=["by-hand"]
by_hand = translated(program, TRANSLATIONS)
onnx.checker.check_model(by_hand, full_check=True)

# %% tags=["captured-table"]
rows = []
calls = [node for node in program.graph.nodes if node.op == "call_function"]
for call, node in zip(calls, by_hand.graph.node, strict=True):
    rows.append((str(call.target), node.op_type, ", ".join(node.input)))
table(rows, ("captured operator", "ONNX", "its inputs"))


# %% tags=["exported"]
def exported(network: nn.Module, x: Tensor, **how) -> onnx.ModelProto:
    """What PyTorch's exporter makes of a network, for a batch of any size."""
    how = {"dynamic_shapes": ({0: Dim("B")},), **how}
    program = torch.onnx.export(network, (x,), dynamo=True, verbose=False, **how)
    return program.model_proto


# %% [markdown]
# ## Read back


# %% tags=["said"]
READ = {"torch": "2.14", "onnx": "1.23"}  # what the chapter tells of these


def said(condition: bool, words: str):
    """A claim about libraries, for the versions of which the chapter tells."""
    if all(metadata.version(name).startswith(v) for name, v in READ.items()):
        claim(condition, words)


# %% tags=["anatomy"]
# Numbers of fields, from onnx.proto: of a graph, and of a model
GRAPH = {"node": 1, "initializer": 5, "input": 11, "output": 12, "value_info": 13}
OPSET_IMPORT = 8


def graph_of(data: bytes) -> bytes:
    """Field 7 of a model."""
    graphs = protobuf.field(data, 7)
    if len(graphs) != 1:
        raise ValueError(f"{len(graphs)} graphs in the file: is it an ONNX model?")
    return graphs[0]


def anatomy(data: bytes) -> dict[str, int]:
    """How many of each there are in a file; notes are those beside its nodes."""
    graph = graph_of(data)
    found = {name: len(protobuf.field(graph, n)) for name, n in GRAPH.items()}
    nodes = protobuf.field(graph, GRAPH["node"])
    found["notes"] = sum(len(protobuf.field(node, 9)) for node in nodes)
    return found


def opset(data: bytes) -> int:
    """The version of the standard's operators, whose domain has no name."""
    for entry in protobuf.field(data, OPSET_IMPORT):
        if not any(protobuf.field(entry, 1)):
            return protobuf.field(entry, 2)[0]
    raise ValueError("the file names no opset of the standard: is it an ONNX model?")


def input_shape(data: bytes) -> list:
    """The first input's axes: a number, or a name where any size will do."""
    first = protobuf.field(graph_of(data), GRAPH["input"])[0]
    for number in (2, 1, 2):  # its type, of a tensor, the shape in it
        (first,) = protobuf.field(first, number)
    axes = []
    for axis in protobuf.field(first, 1):
        sizes = protobuf.field(axis, 1)
        axes.append(sizes[0] if sizes else protobuf.field(axis, 2)[0].decode())
    return axes


# %% tags=["anatomy-table"]
by_torch = exported(lenet, x)
files = {"by hand": by_hand.SerializeToString()}
files["by PyTorch"] = by_torch.SerializeToString()
parts = {name: anatomy(data) for name, data in files.items()}
rows = [(name, *(found[name] for found in parts.values())) for name in parts["by hand"]]
rows.append(("opset", *map(opset, files.values())))
rows.append(("shape of the input", *(str(input_shape(d)) for d in files.values())))
table(rows, ("part of the file", *files))

# %%
for name, model in (("by hand", by_hand), ("by PyTorch", by_torch)):
    graph = model.graph
    for part in GRAPH:
        claim(parts[name][part] == len(getattr(graph, part)), f"{name}: {part}")
    notes = sum(len(node.metadata_props) for node in graph.node)
    claim(parts[name]["notes"] == notes, f"{name}: notes")
    claim(opset(files[name]) == model.opset_import[0].version, f"{name}: opset")
    claim(input_shape(files[name])[1:] == [3, 64, 64], f"{name}: shape")
ours, theirs = parts.values()
record("same.nodes", ours["node"])
said(theirs["node"] == ours["node"], "as many nodes by hand as by PyTorch")
said(theirs["value_info"] > ours["value_info"] == 0, "shapes between the nodes")
said(theirs["notes"] > ours["notes"] == 0, "notes on the nodes")
kinds = [node.op_type for node in by_torch.graph.node]
said("Reshape" in kinds and "Flatten" not in kinds, "Flatten is written as Reshape")
said(theirs["initializer"] == ours["initializer"] + 1, "its sizes are stored")
claim(type(input_shape(files["by PyTorch"])[0]) is str, "the batch has a name, no size")

# %% [markdown]
# ## Ten networks
#
# Each reads an image of 64×64. Those of torchvision have fewer or thinner stages than published.


# %% tags=["own-networks"]
class Linear(nn.Sequential):
    """Three linear layers: (B, 3, 64, 64) -> (B, 10)."""

    def __init__(self, width: int = 256):
        super().__init__(
            nn.Flatten(),
            nn.Linear(3 * 64 * 64, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        )


class AlexNet(nn.Sequential):
    """Two convolutions, three wide linear layers: (B, 3, 64, 64) -> (B, 10)."""

    def __init__(self, width: int = 1024):
        super().__init__(
            nn.Conv2d(3, 32, 7, 4, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        )


class Vgg(nn.Sequential):
    """Six convolutions of 3×3, three poolings: (B, 3, 64, 64) -> (B, 10)."""

    def __init__(self):
        layers = []
        widths = (3, 32, 32, 64, 64, 128, 128)
        for i, (c_in, c_out) in enumerate(zip(widths, widths[1:])):
            layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU()]
            if i % 2 == 1:
                layers.append(nn.MaxPool2d(2))
        super().__init__(*layers, nn.Flatten(), nn.Linear(128 * 64, 10))


class Recurrent(nn.Module):
    """An LSTM reads four lines of an image a step: (B, 3, 64, 64) -> (B, 10)."""

    def __init__(self, width: int = 256):
        super().__init__()
        self.lstm = nn.LSTM(768, width, batch_first=True)
        self.classifier = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        lines = x.transpose(1, 2).unflatten(1, (16, 4))  # (B, 16, 4, 3, 64)
        states, _ = self.lstm(lines.flatten(2))
        return self.classifier(states[:, -1])


# %% tags=["networks"]
MOBILE = [[1, 16, 1, 1], [6, 24, 1, 2]]  # widening, width, depth, stride
SHUFFLE = ([1, 1, 1], [24, 64, 128, 256, 512])
NETWORKS = {
    "linear": Linear,
    "LeNet": LeNet,
    "AlexNet": AlexNet,
    "VGG": Vgg,
    "ResNet": lambda: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], 10),
    "DenseNet": lambda: densenet.DenseNet(12, (3, 2), 24, num_classes=10),
    "MobileNetV2": lambda: mobilenetv2.MobileNetV2(10, 1.0, MOBILE),
    "ShuffleNetV2": lambda: shufflenetv2.ShuffleNetV2(*SHUFFLE, 10),
    "ViT": lambda: vision_transformer.VisionTransformer(
        64, 8, 1, 4, 128, 512, num_classes=10
    ),
    "LSTM": Recurrent,
}


@torch.no_grad()
def ready(name: str, number: int = 0) -> nn.Module:
    """A network with random weights, where its library begins with zeros, too."""
    seed(number)
    network = checks.randomise_norms(NETWORKS[name]())
    for weight in network.parameters():
        if not weight.any():
            weight.normal_(0, 0.1)
    return network.eval()


# %%
networks = {name: ready(name) for name in NETWORKS}
networks["LeNet"] = lenet  # whose file is there
models = {"LeNet": by_torch}
for name, network in networks.items():
    if name not in models:
        models[name] = exported(network, x)
data_of = {name: model.SerializeToString() for name, model in models.items()}


# %% tags=["runtimes"]
CORE = ov.Core()
ONE_THREAD = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}


def in_onnxruntime(data: bytes) -> Callable:
    """A function from an array to the model's output, by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what it says is in its errors
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(data, options, providers=providers)
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def in_openvino(data: bytes) -> Callable:
    """The same by OpenVINO."""
    model = CORE.compile_model(CORE.read_model(data), "CPU", ONE_THREAD)
    request = model.create_infer_request()
    return lambda x: request.infer([x])[0]


def in_reference(data: bytes) -> Callable:
    """The same by the evaluator of the onnx package, which is written in NumPy."""
    evaluator = ReferenceEvaluator(onnx.load_from_string(data))
    (name,) = evaluator.input_names
    return lambda x: evaluator.run(None, {name: x})[0]


RUNTIMES = {
    "ONNX Runtime": in_onnxruntime,
    "OpenVINO": in_openvino,
    "reference": in_reference,
}


@torch.no_grad()
def apart(network: nn.Module, run: Callable, x: Tensor) -> float:
    """Largest difference of a program's output from PyTorch's, relative."""
    return checks.deviation(torch.from_numpy(run(x.numpy()).copy()), network(x))


# %%
REFERENCE = ("LeNet", "ResNet", "ShuffleNetV2", "ViT", "LSTM")
BATCHES = (1, 3, 5)  # of the seeds 0, 1 and 2; the example at export had 2
inputs = []
for number, size in enumerate(BATCHES):
    seed(number)
    inputs.append(torch.randn(size, 3, 64, 64))
running = {"ONNX Runtime": {}, "OpenVINO": {}}
found_equal = {}
for name, network in networks.items():
    for runtime, started in running.items():
        started[name] = RUNTIMES[runtime](data_of[name])
        found_equal[name, runtime] = max(
            apart(network, started[name], x) for x in inputs
        )
    if name in REFERENCE:
        run = in_reference(data_of[name])
        found_equal[name, "reference"] = apart(network, run, inputs[1])

# %% tags=["equal-table"]
rows = []
for name in NETWORKS:
    apart_by = [found_equal.get((name, runtime)) for runtime in RUNTIMES]
    shown = ["–" if d is None else f"{d:.0e}" for d in apart_by]
    rows.append((name, len(models[name].graph.node), *shown))
    claim(all(d < 1e-4 for d in apart_by if d is not None), f"{name}: below 1e-4")
hand = [apart(lenet, start(files["by hand"]), inputs[1]) for start in RUNTIMES.values()]
kinds = {node.op_type for node in models["ResNet"].graph.node}
said("BatchNormalization" not in kinds, "PyTorch's exporter merges the norms")
claim(max(hand) < 1e-4, "the file by hand: below 1e-4 in all three")
rows.insert(0, ("LeNet, by hand", len(by_hand.graph.node), *(f"{d:.0e}" for d in hand)))
table(rows, ("file", "nodes", *RUNTIMES))

# %% [markdown]
# ## Opsets


# %% tags=["softmax"]
def softmax(opset: int) -> onnx.ModelProto:
    """One node, Softmax over axis 1 of (2, 3, 4), in this version of the operators."""
    node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 4])
    graph = helper.make_graph([node], "softmax", [x], [y])
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def answer(model: onnx.ModelProto, x: Tensor) -> Tensor:
    return torch.from_numpy(in_onnxruntime(model.SerializeToString())(x.numpy()))


# %% tags=["softmax-table"]
seed(0)
z = torch.randn(2, 3, 4)
over_axis = torch.softmax(z, 1)
over_rest = torch.softmax(z.flatten(1), 1).view_as(z)
versions = {"opset 12": softmax(12), "opset 13": softmax(13)}
versions["12, converted to 13"] = version_converter.convert_version(softmax(12), 13)
versions["13, converted to 12"] = version_converter.convert_version(softmax(13), 12)
rows = []
for name, model in versions.items():
    y = answer(model, z)
    one = checks.deviation(y, over_axis) < 1e-5
    rest = checks.deviation(y, over_rest) < 1e-5
    kinds = ", ".join(node.op_type for node in model.graph.node)
    rows.append((name, kinds, "axis 1" if one else "axes 1 and 2" if rest else "?"))
claim([row[2] for row in rows[:3]] == ["axes 1 and 2", "axis 1", "axes 1 and 2"], "12")
table(rows, ("Softmax, axis=1", "nodes", "sums to 1 over"))

# %%
said(rows[3][2] == "axes 1 and 2", "the way down changes the meaning")
said("," in rows[2][1], "the way up adds nodes")
said(rows[3][1] == "Softmax", "the way down leaves the node")
gelu = exported(nn.GELU().eval(), z, opset_version=18)
kinds = [node.op_type for node in gelu.graph.node]
claim(checks.deviation(answer(gelu, z), nn.GELU()(z)) < 1e-5, "GELU in opset 18")
said("Erf" in kinds and "Gelu" not in kinds, "GELU is written out in opset 18")
said(
    "Gelu" in [node.op_type for node in models["ViT"].graph.node], "and one node in 20"
)
record("gelu.nodes", len(kinds))
record("opset.default", opset(files["by PyTorch"]))
for name, version in READ.items():
    record(f"read.{name}", version)

# %% [markdown]
# ## What goes wrong


# %% tags=["attempt"]
PHRASES = re.compile(
    r"Could not guard on data-dependent expression"
    r"|No ONNX function found for"
    r"|Got invalid dimensions"
    r"|Unexpected input data type"
    r"|Constraints violated"
    r"|Exporting a model while it is in training mode"
    r"|Converting a tensor to a Python boolean"
    r"|no translation for"
)


def phrase(error: Exception | None) -> str:
    """The phrase by which an error is known, of it or of what it came from."""
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    while error is not None:
        if known := PHRASES.search(str(error)):
            return known.group()
        error = error.__cause__
    return first


def attempt(export: Callable) -> tuple[onnx.ModelProto | None, str]:
    """What an export gives, and the phrase in its error or in its warnings."""
    with (
        warnings.catch_warnings(record=True) as heard,
        contextlib.redirect_stderr(io.StringIO()),  # a refused graph is printed there
    ):
        warnings.simplefilter("always")
        try:
            model = export()
        except Exception as error:
            return None, f"error: {phrase(error)}"
    texts = [PHRASES.search(str(warning.message)) for warning in heard]
    return model, next(
        (f"warning: {text.group()}" for text in texts if text), "nothing"
    )


@torch.no_grad()
def verdict(network: nn.Module, model: onnx.ModelProto | None, x: Tensor) -> str:
    """How a file answers, next to the network it was made from."""
    if model is None:
        return "no file"
    expected = network(x.clone())
    try:
        y = answer(model, x)
    except Exception as error:
        return phrase(error)
    if y.dtype != x.dtype:
        return f"numbers of {str(y.dtype).removeprefix('torch.')}"
    return "equal" if checks.deviation(y, expected) < 1e-5 else "other outputs"


# %% tags=["small-networks"]
def by_old_exporter(network: nn.Module, x: Tensor) -> onnx.ModelProto:
    """What the exporter made of TorchScript records, `dynamo=False`."""
    file = io.BytesIO()
    axes = {"x": {0: "B"}}
    how = {"input_names": ["x"], "dynamic_axes": axes, "dynamo": False}
    torch.onnx.export(network, (x,), file, **how)
    return onnx.load_from_string(file.getvalue())


class Function(nn.Module):
    """A module that calls a function of one tensor."""

    def __init__(self, function: Callable):
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def branches(x: Tensor) -> Tensor:
    return x + 1 if x.sum() > 0 else x - 1


def selects(x: Tensor) -> Tensor:
    return torch.where(x.sum() > 0, x + 1, x - 1)


def loops(x: Tensor) -> Tensor:
    """Row plus all rows before it, one by one."""
    rows = [x[0]]
    for row in x[1:]:
        rows.append(rows[-1] + row)
    return torch.stack(rows)


def widens(x: Tensor) -> Tensor:
    return x * torch.tensor([0.5, 1, 2, 3], dtype=torch.float64)


def keeps_width(x: Tensor) -> Tensor:
    return x * torch.tensor([0.5, 1, 2, 3], dtype=x.dtype)


def scales(x: Tensor) -> Tensor:
    return x / x.max().item()


def overwrites(x: Tensor) -> Tensor:
    x[:, 0] = 0
    return 2 * x


@torch.library.custom_op("book::halved", mutates_args=())
def halved(x: Tensor) -> Tensor:
    return x / 2


@halved.register_fake
def halved_shape(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def halved_onnx(x):
    """Its translation, in the operators of onnxscript."""
    return opset18.Mul(x, opset18.Constant(value_float=0.5))


# %% tags=["cases"]
class Case(NamedTuple):
    """A network whose export fails or misleads, and what helps."""

    broken: nn.Module
    remedy: str
    mended: nn.Module | None = None
    export: Callable = exported
    how: dict = {}  # of the export
    how_mended: dict = {}


def cases() -> dict[str, Case]:
    """Name: case, each for a tensor (B, 4)."""
    branch = Function(branches)
    own = Function(halved)
    linear = nn.Linear(4, 4).eval()
    dropout = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    ready = copy.deepcopy(dropout).eval()
    total = Function(lambda x: x.cumsum(0))
    old = by_old_exporter
    fixed = {"dynamic_shapes": None}
    taught = {"custom_translation_table": {torch.ops.book.halved.default: halved_onnx}}
    return {
        "if on a value": Case(branch, "torch.where, torch.cond", Function(selects)),
        "the same, dynamo=False": Case(branch, "the same", export=old),
        "operator of one's own": Case(own, "a translation", own, how_mended=taught),
        "no size left open": Case(linear, "dynamic_shapes", linear, how=fixed),
        "loop over the batch": Case(Function(loops), "an operator for it", total),
        "training mode": Case(dropout, "eval() first", ready),
        "a float64 constant": Case(
            Function(widens), "dtype of the input", Function(keeps_width)
        ),
        "a number by item()": Case(Function(scales), "none needed"),
        "writes into its input": Case(Function(overwrites), "none needed"),
    }


# %% tags=["wrong-table"]
seed(0)
small = torch.randn(3, 4).abs()
other = -torch.randn(5, 4).abs()
rows = []
files_of = {}
for name, case in cases().items():
    how = functools.partial(case.export, case.broken, small, **case.how)
    files_of[name], heard = attempt(how)
    then = "–"
    if case.mended is not None:
        how = functools.partial(exported, case.mended, small, **case.how_mended)
        then = verdict(case.mended, attempt(how)[0], other)
    answered = verdict(case.broken, files_of[name], other)
    rows.append((name, heard, answered, case.remedy, then))
table(rows, ("in the network", "said at export", "the file", "remedy", "then"))

# %%
met = {name: (heard, answered) for name, heard, answered, *_ in rows}
claim(all(row[4] in ("equal", "–") for row in rows), "each mended network is equal")
old = files_of["the same, dynamo=False"]
said(verdict(Function(branches), old, small) == "equal", "right on the example")
said(met["the same, dynamo=False"][1] == "other outputs", "the old one keeps a branch")
said(met["the same, dynamo=False"][0].startswith("warning"), "and warns")
said(met["training mode"][1] == "other outputs", "dropout stays in the file")
said(met["if on a value"][1] == "no file", "the new exporter refuses the if")
said(met["operator of one's own"][1] == "no file", "and the operator")
said(met["loop over the batch"][0] == "nothing", "a fixed batch without a word")
said(met["loop over the batch"][1] == met["no size left open"][1], "both refuse 5 rows")
said(met["a float64 constant"] == ("nothing", "numbers of float64"), "wider, untold")
try:
    in_onnxruntime(files["by hand"])(inputs[0].double().numpy())
    answered = "nothing"
except Exception as error:
    answered = phrase(error)
said(answered == "Unexpected input data type", "float64 for float32 is refused")

# %% tags=["strict"]
how = {"dynamic_shapes": ({0: Dim("B")},)}
loop = Function(loops)
_, refused = attempt(lambda: torch.export.export(loop, (small,), **how))
_, refused_one = attempt(lambda: torch.export.export(lenet, (x[:1],), **how))
given = small.clone()
overwrites(given)
claim(not given[:, 0].any() and bool(small[:, 0].all()), "torch changes its input")
said("Constraints violated" in refused, "torch.export alone refuses the loop")
said("Constraints violated" in refused_one, "and an example of one row")
said(met["a number by item()"] == ("nothing", "equal"), "item() is no fault here")
said(met["writes into its input"] == ("nothing", "equal"), "the output is the same")

# %% [markdown]
# ## What predicts latency


# %% tags=["measures"]
BYTES = {TensorProto.FLOAT: 4, TensorProto.INT64: 8, TensorProto.BOOL: 1}


def sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Bytes of each tensor that has a name, for a batch of one."""
    found = {}
    for tensor in graph.initializer:
        found[tensor.name] = int(np.prod(tensor.dims)) * BYTES[tensor.data_type]
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        axes = [axis.dim_value or 1 for axis in kind.shape.dim]
        found[value.name] = int(np.prod(axes)) * BYTES[kind.elem_type]
    return found


def places(graph: onnx.GraphProto) -> dict[str, int]:
    """For a tensor that depends on the input, the longest chain up to it."""
    found = {value.name: 0 for value in graph.input}
    for node in graph.node:
        before = [found[name] for name in node.input if name in found]
        if before:
            found.update(dict.fromkeys(node.output, max(before) + 1))
    return found


def working(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that depend on the input; the others can run at loading."""
    found = places(graph)
    return [node for node in graph.node if node.output[0] in found]


def moved(graph: onnx.GraphProto) -> int:
    """Bytes that these read and write, each its own inputs and outputs once."""
    size = sizes(graph)
    nodes = working(graph)
    return sum(
        size[name] for node in nodes for name in (*node.input, *node.output) if name
    )


def depth(graph: onnx.GraphProto) -> int:
    """Nodes of the longest chain, each of which reads what the one before gives."""
    return max(places(graph).values())


# %% tags=["measures-table"]
one = torch.zeros(1, 3, 64, 64)
measures = {"parameters": [], "MACs": [], "bytes": [], "depth": [], "nodes": []}
for name, network in networks.items():
    graph = models[name].graph
    measures["parameters"].append(counting.parameters(network))
    measures["MACs"].append(counting.macs(network, one))
    measures["bytes"].append(moved(graph))
    measures["depth"].append(depth(graph))
    measures["nodes"].append(len(working(graph)))
table(list(zip(NETWORKS, *measures.values())), ("network", *measures))


# %% tags=["correlation"]
def ranks(x: Tensor) -> Tensor:
    """1 for the smallest of the last axis; equal values share the mean of theirs."""
    below = (x[..., None] > x[..., None, :]).sum(-1)
    equal = (x[..., None] == x[..., None, :]).sum(-1)
    return below + (equal.double() + 1) / 2


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Correlation along the last axis."""
    x = x - x.mean(-1, keepdim=True)
    y = y - y.mean(-1, keepdim=True)
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))


def spearman(x: Tensor, y: Tensor) -> Tensor:
    return pearson(ranks(x), ranks(y))


def interval(x: Tensor, y: Tensor, draws: int = 1000) -> tuple[float, float]:
    """Ends of nine tenths of the correlations of networks drawn with return."""
    drawn = torch.randint(len(x), (draws, len(x)))
    found = spearman(x[drawn], y[drawn])
    ends = found[found.isfinite()].quantile(torch.tensor([0.05, 0.95]).double())
    return tuple(ends.tolist())


# %%
numbers = {name: torch.tensor(values).double() for name, values in measures.items()}
by_name = {what: dict(zip(NETWORKS, v)) for what, v in measures.items()}
more = by_name["parameters"]["linear"] / by_name["parameters"]["VGG"]
fewer = by_name["MACs"]["VGG"] / by_name["MACs"]["linear"]
record("linear.parameters", more)
record("linear.macs", fewer)
claim(more > 8 and fewer > 40, "eight times the parameters, a fortieth of the MACs")
deep = by_name["depth"]["DenseNet"] / by_name["depth"]["ResNet"]
claim(deep > 1.5, "DenseNet is deeper than the ResNet")
claim(by_name["parameters"]["ResNet"] > 50 * by_name["parameters"]["DenseNet"], "1/50")
record("rank.parameters.macs", spearman(numbers["parameters"], numbers["MACs"]))
record("rank.depth.macs", spearman(numbers["depth"], numbers["MACs"]))
record("rank.bytes.macs", spearman(numbers["bytes"], numbers["MACs"]))


# %% tags=["latency"]
def seconds(work: Callable) -> float:
    """Processor time of one run, after one that is not counted."""
    work()
    start = time.process_time()
    work()
    return time.process_time() - start


@torch.inference_mode()
def latencies(work: dict, rounds: int) -> dict[str, Tensor]:
    """Seconds (rounds, networks) of each program, all of them once in each round."""
    found = {program: [] for program in work}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(rounds):
        for program, networks in work.items():
            found[program].append([seconds(run) for run in networks.values()])
    torch.set_num_threads(threads)
    return {program: torch.tensor(rows).double() for program, rows in found.items()}


# %% tags=["latency-run", "times"]
ROUNDS = 15  # three parts of five
record("rounds", ROUNDS)
picture = one.numpy()
work = {"PyTorch": {n: functools.partial(net, one) for n, net in networks.items()}}
for program, started in running.items():
    work[program] = {n: functools.partial(run, picture) for n, run in started.items()}
taken = latencies(work, ROUNDS)

# %% tags=["latency-table", "times"]
middle = {program: rows.median(0).values for program, rows in taken.items()}
rows = []
for place, name in enumerate(NETWORKS):
    rows.append((name, *(f"{1000 * middle[p][place]:.2f}" for p in middle)))
table(rows, ("milliseconds, batch of 1", *middle))

# %% tags=["rank-table", "times"]
seed(0)
rows = []
for what, x in numbers.items():
    shown = []
    for y in middle.values():
        low, high = interval(x, y)
        shown.append(f"{spearman(x, y):.2f} ({low:.2f} to {high:.2f})")
    rows.append((what, *shown))
table(rows, ("rank correlation of latency with", *middle))

# %% tags=["log-table", "times"]
rows = []
for what, x in numbers.items():
    found = [pearson(x.log(), y.log()) for y in middle.values()]
    rows.append((what, *(f"{value:.2f}" for value in found)))
table(rows, ("correlation of the logarithms", *middle))

# %% tags=["rank-record", "times"]
for program, y in middle.items():
    by_rank = {what: spearman(x, y).item() for what, x in numbers.items()}
    record(f"time.best.{program}", max(by_rank, key=by_rank.get))
    thirds = [part.median(0).values for part in taken[program].chunk(3)]
    for what, x in numbers.items():
        found = [spearman(x, y).item() for y in thirds]
        record(f"time.{program}.{what}", by_rank[what])
        record(f"time.{program}.{what}.least", min(found))
        record(f"time.{program}.{what}.most", max(found))

# %% tags=["predict-figure", "times"] alt="Four panels, milliseconds over parameters, over MACs, over bytes and over depth, all logarithmic, with a blue disc for each of ten networks in PyTorch and an orange triangle in ONNX Runtime."
_, panels = plt.subplots(2, 2, figsize=(5, 4.6), sharey=True)
shapes = {"PyTorch": "o", "ONNX Runtime": "^"}
for axes, what in zip(panels.flat, ("parameters", "MACs", "bytes", "depth")):
    for (program, marker), colour in zip(shapes.items(), plots.COLOURS):
        y = 1000 * middle[program]
        axes.plot(measures[what], y, marker, color=colour, label=program)
    axes.set(xscale="log", yscale="log", xlabel=what)
    axes.margins(0.12)
    axes.minorticks_off()
for axes in panels[:, 0]:
    axes.set(ylabel="milliseconds")
panels[1, 0].set(xticks=(3e6, 1e7), xticklabels=("$3·10^6$", "$10^7$"))
panels[1, 1].set(xticks=(10, 20, 50), xticklabels=("10", "20", "50"))
panels[0, 0].figure.legend(
    *panels[0, 0].get_legend_handles_labels(),
    loc="outside upper center",
    ncols=2,
    frameon=False,
)
panels[1, 1].set_axisbelow(True)

# %% [markdown]
# ## What a node costs
#
# A chain of layers that are so small that their products take no time worth speaking of.


# %% tags=["chain"]
def chain(length: int, width: int = 8) -> nn.Sequential:
    """So many linear layers, a ReLU behind each: (B, width) -> (B, width)."""
    pairs = ((nn.Linear(width, width), nn.ReLU()) for _ in range(length))
    return nn.Sequential(*(layer for pair in pairs for layer in pair)).eval()


def compiler() -> str | None:
    """The C++ compiler that torch.compile would call."""
    names = (os.environ.get("CXX"), "g++", "clang++")
    return next((found for n in names if n and (found := shutil.which(n))), None)


# %% tags=["chain-times"]
SHORT = 5
LONG = 45


def chain_times(width: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds of the short and of the long chain in each program, medians."""
    row = torch.randn(2, width)
    chains = {"PyTorch": {}, "ONNX Runtime": {}, "OpenVINO": {}}
    for length in (SHORT, LONG):
        network = chain(length, width)
        captured = torch.export.export(network, (row,))
        data = translated(captured, TRANSLATIONS).SerializeToString()
        chains["PyTorch"][length] = functools.partial(network, row)
        for program in ("ONNX Runtime", "OpenVINO"):
            run = RUNTIMES[program](data)
            assert apart(network, run, row) < 1e-4, f"{program}: another function"
            chains[program][length] = functools.partial(run, row.numpy())
    found = latencies(chains, rounds)
    return {name: (1e6 * t.median(0).values).tolist() for name, t in found.items()}


# %% tags=["chain-table", "times"]
rows = []
for program, (short, long) in chain_times(8, rounds=60).items():
    more = (long - short) / (2 * (LONG - SHORT))  # a layer is two nodes
    record(f"time.node.{program}", more)
    rows.append((program, f"{short:.0f}", f"{long:.0f}", f"{more:.1f}"))
heads = (f"{2 * SHORT} nodes", f"{2 * LONG} nodes", "for one more")
table(rows, ("microseconds", *heads))

# %% tags=["compiled-table", "times"]
four = {program: {"LeNet": runs["LeNet"]} for program, runs in work.items()}
if compiler():
    compiled = torch.compile(networks["LeNet"])
    with torch.inference_mode():
        same = checks.deviation(compiled(one + 1), networks["LeNet"](one + 1))
    four["torch.compile"] = {"LeNet": functools.partial(compiled, one)}
else:
    same = 0.0
four = {program: rows.flatten() for program, rows in latencies(four, 30).items()}
QUANTILES = torch.tensor([0.5, 0.1, 0.9]).double()
claim(same < 1e-4, "compiled: the same outputs")
rows = []
for program in ("PyTorch", "torch.compile", *running):
    shown = "no compiler here"
    if program in four:
        shares = (four[program] / four["PyTorch"]).quantile(QUANTILES)
        shown = "{:.2f} ({:.2f} to {:.2f})".format(*shares.tolist())
    rows.append((program, shown))
table(rows, ("LeNet, batch of 1", "time, PyTorch = 1"))

# %% tags=["idea-figure"] alt="Boxes from left to right joined by arrows: network, captured graph, ONNX file. Above the first arrow stands capture, above the second translate. From the file, arrows lead to ONNX Runtime, to OpenVINO and to the reference."
axes = diagrams.sheet(1.9)
nodes = {
    "network": diagrams.Node(0.6, 0.95, "network\nin Python", width=0.95),
    "graph": diagrams.Node(1.95, 0.95, "captured\ngraph", width=0.95),
    "file": diagrams.Node(3.15, 0.95, "ONNX\nfile", width=0.7),
    "ort": diagrams.Node(4.35, 0.35, "ONNX Runtime", width=1.25),
    "ov": diagrams.Node(4.35, 0.95, "OpenVINO", width=1.25),
    "reference": diagrams.Node(4.35, 1.55, "reference", width=1.25),
    "capture": diagrams.Node(1.28, 0.45, "capture", colour=plots.COLOURS[1]),
    "translate": diagrams.Node(2.6, 0.45, "translate", colour=plots.COLOURS[1]),
}
arrows = [("network", "graph"), ("graph", "file"), ("file", "ov")]
arrows += [("file", (3.15, 0.35), "ort"), ("file", (3.15, 1.55), "reference")]
diagrams.draw(axes, nodes, arrows)

# %% tags=["solution-1"]
weights = 3 * 64 * 64 * 256 + 256 * 256 + 256 * 10 + 256 + 256 + 10
maps = 3 * (3 * 64 * 64) + 8 * 256 + 10  # Flatten, Gemm, Relu, Gemm, Relu, Gemm
shape = 2 * 8  # of Reshape, two integers

# %% tags=["solution-1-result"]
total = 4 * (weights + maps) + shape
claim(total == by_name["bytes"]["linear"], "the bytes by hand")
table([(total, by_name["bytes"]["linear"])], ("by hand", "counted"))


# %% tags=["solution-2"]
def norm(x, weight, bias, mean, variance, training, momentum, eps, *_):
    return "BatchNormalization", (x, weight, bias, mean, variance), {"epsilon": eps}


RESIDUAL = {
    **TRANSLATIONS,
    aten.batch_norm.default: norm,
    aten.relu_.default: lambda x: ("Relu", (x,), {}),
    aten.add_.Tensor: lambda x, y: ("Add", (x, y), {}),
    aten.adaptive_avg_pool2d.default: lambda x, size: ("GlobalAveragePool", (x,), {}),
}

# %% tags=["solution-2-run"]
captured = torch.export.export(
    networks["ResNet"], (inputs[1],), dynamic_shapes=({0: Dim("B")},)
)
residual = translated(captured, RESIDUAL)

# %% tags=["solution-2-result"]
data = residual.SerializeToString()
further = max(apart(networks["ResNet"], in_onnxruntime(data), x) for x in inputs)
claim(further < 1e-4, "the residual network by hand: below 1e-4")
claim(len(residual.graph.node) > len(models["ResNet"].graph.node), "norms are kept")
rows = [("by hand", len(residual.graph.node), f"{further:.0e}")]
largest = found_equal["ResNet", "ONNX Runtime"]
rows.append(("by PyTorch", len(models["ResNet"].graph.node), f"{largest:.0e}"))
table(rows, ("ResNet", "nodes", "difference in ONNX Runtime"))


# %% tags=["solution-3", "times"]
lasted = chain_times(256, rounds=30)

# %% tags=["solution-3-result", "times"]
rows = [(name, f"{short:.0f}", f"{long:.0f}") for name, (short, long) in lasted.items()]
table(rows, ("microseconds, width 256", *heads[:2]))

# %% tags=["solution-4", "times"]
rows = []
for place, name in enumerate(NETWORKS):
    others = [i for i in range(len(NETWORKS)) if i != place]
    y = middle["ONNX Runtime"][others]
    found = [spearman(numbers[w][others], y) for w in ("parameters", "MACs", "bytes")]
    rows.append((name, *(f"{value:.2f}" for value in found)))

# %% tags=["solution-4-result", "times"]
table(rows, ("without", "parameters", "MACs", "bytes"))

# %% [markdown]
# ## What we saw
#
# - An export captures the operators and translates them, one table entry each.
# - A file equal to its network on the example may differ elsewhere; compare with another
#   batch size and with values that take the other branch.
# - Which number goes with latency depends on the program that runs the network.

# %%
temporary.cleanup()
