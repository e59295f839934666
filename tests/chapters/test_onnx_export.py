"""Translation, anatomy, measures and failures of an ONNX export, of notebooks/onnx_export.py."""

import copy
import functools
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from scipy import stats
from torch import nn
from torch.export import Dim

from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

sys.modules.setdefault("openvino_telemetry", None)  # no test tells anybody of itself

net = definitions("onnx_export")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*_check_is_size:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
OPEN = {"dynamic_shapes": ({0: Dim("B")},)}


def captured(network: nn.Module, x: torch.Tensor):
    return torch.export.export(network.eval(), (x,), **OPEN)


@pytest.fixture(scope="module")
def lenet():
    """The network and the file that the table of translations gives."""
    torch.manual_seed(0)
    network = net.LeNet().eval()
    program = captured(network, torch.randn(2, 3, 64, 64))
    return network, net.translated(program, net.TRANSLATIONS)


# ---- by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["ONNX Runtime", "OpenVINO", "reference"])
def test_three_programs_run_the_file_by_hand_for_any_batch(lenet, runtime):
    network, model = lenet
    onnx.checker.check_model(model, full_check=True)
    run = net.RUNTIMES[runtime](model.SerializeToString())
    for B in (1, 5):
        assert net.apart(network, run, torch.randn(B, 3, 64, 64)) < 1e-5


def test_what_is_compared_is_the_largest_difference():
    x = torch.tensor([[1.0, -4.0]])
    assert net.apart(nn.Identity(), lambda a: a + np.float32([[1, 0]]), x) == 0.25


def test_the_file_by_hand_has_a_node_a_call_and_the_weights_that_are_read(lenet):
    _, model = lenet
    kinds = [node.op_type for node in model.graph.node]
    assert kinds[:3] == ["Conv", "Relu", "MaxPool"]
    assert kinds.count("Gemm") == 3 and kinds.count("Flatten") == 1 and len(kinds) == 12
    assert len(model.graph.initializer) == 10
    assert model.opset_import[0].version == 18 and model.ir_version == 10


class Strided(nn.Module):
    """A convolution with stride, padding and no bias, and a pooling with padding."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, (2, 1), (1, 2), bias=False)
        self.pool = nn.MaxPool2d((3, 2), (2, 1), (1, 0))
        self.register_buffer("unread", torch.ones(2))

    def forward(self, x):
        return torch.relu(self.pool(self.conv(x)))


def test_strides_and_paddings_are_those_of_the_layer():
    network = Strided().eval()
    x = torch.randn(2, 3, 9, 8)
    model = net.translated(captured(network, x), net.TRANSLATIONS)
    assert len(model.graph.initializer) == 1  # a buffer that nobody reads is left out
    x = torch.randn(3, 3, 9, 8)
    with torch.no_grad():
        close(net.answer(model, x), network(x))
    (given,) = model.graph.output
    axes = [axis.dim_param or axis.dim_value for axis in given.type.tensor_type.shape.dim]
    assert axes == ["B", *network(x).shape[1:]]


def test_an_operator_that_is_not_in_the_table_is_named():
    program = captured(nn.Tanh(), torch.randn(2, 3))
    with pytest.raises(ValueError, match="no translation for aten.tanh.default: add one"):
        net.translated(program, net.TRANSLATIONS)


def test_what_flatten_means_elsewhere_is_refused():
    program = captured(nn.Flatten(2), torch.randn(2, 3, 4, 5))
    with pytest.raises(ValueError, match="always gives two axes"):
        net.translated(program, net.TRANSLATIONS)


def test_the_larger_table_translates_a_residual_network():
    torch.manual_seed(0)
    block = net.resnet.BasicBlock(4, 4)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.1
    net.checks.randomise_norms(network).eval()
    x = torch.randn(2, 3, 6, 6)
    model = net.translated(captured(network, x), net.RESIDUAL)
    with torch.no_grad():
        close(net.answer(model, x), network(x))


# ---- read back -----------------------------------------------------------------------------------


def test_anatomy_counts_what_the_onnx_package_counts(lenet):
    model = copy.deepcopy(lenet[1])
    note = model.graph.node[3].metadata_props.add()
    note.key = "where"
    value = helper.make_tensor_value_info("conv2d", TensorProto.FLOAT, ["B", 6, 64, 64])
    model.graph.value_info.extend([value, value])
    data = model.SerializeToString()
    assert net.anatomy(data) == {
        "node": 12,
        "initializer": 10,
        "input": 1,
        "output": 1,
        "value_info": 2,
        "notes": 1,
    }
    assert net.opset(data) == 18
    assert net.input_shape(data) == ["B", 3, 64, 64]


def test_the_opset_is_that_of_the_standard():
    model = net.softmax(12)
    model.opset_import.insert(0, helper.make_opsetid("book", 3))
    assert net.opset(model.SerializeToString()) == 12
    del model.opset_import[:]
    with pytest.raises(ValueError, match="no opset of the standard: is it an ONNX model"):
        net.opset(model.SerializeToString())


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match="0 graphs in the file: is it an ONNX model"):
        net.anatomy(b"")
    with pytest.raises(ValueError, match="no message of protobuf"):
        net.anatomy(b"version https://git-lfs.github.com/spec/v1")
    whole = net.softmax(13).SerializeToString()
    with pytest.raises(ValueError, match="is the file whole"):
        net.input_shape(whole[:-9])


# ---- networks ------------------------------------------------------------------------------------

COUNTS = {  # parameters and MACs, by hand or as the page shows them
    "linear": (12288 * 256 + 256 * 256 + 2560 + 522, 12288 * 256 + 256 * 256 + 2560),
    "LeNet": (456 + 2416 + 4097 * 120 + 121 * 84 + 850, 4_803_240),
    "AlexNet": (32 * 148 + 64 * 801 + 2 * 1025 * 1024 + 10250, 6_588_416),
    "VGG": (368_938, 154_615_808),
    "ResNet": (4_910_922, 72_553_472),
    "DenseNet": (41_554, 10_267_164),
    "MobileNetV2": (53_050, 11_964_928),
    "ShuffleNetV2": (208_106, 2_350_592),
    "ViT": (232_970, 15_435_264),
    "LSTM": (1024 * (768 + 256 + 2) + 2570, 16 * 1024 * 1024 + 2560),
}


NETWORKS = ["linear", "LeNet", "AlexNet", "VGG", "ResNet"]
NETWORKS += ["DenseNet", "MobileNetV2", "ShuffleNetV2", "ViT", "LSTM"]


def test_the_networks_are_those_of_the_page():
    assert list(net.NETWORKS) == NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_give_ten_scores_and_have_the_layers_they_promise(name):
    network = net.ready(name, 3)
    assert not network.training
    with torch.no_grad():
        y = network(torch.randn(2, 3, 64, 64))
    assert y.shape == (2, 10) and y.std() > 0
    assert all(weight.any() for weight in network.parameters())
    parameters, macs = COUNTS[name]
    assert parameters_of(network) == parameters
    assert macs == macs_of(network.to("meta"), 1, 3, 64, 64)


@pytest.mark.parametrize("kind", ["AlexNet", "Linear", "Recurrent"])
def test_the_width_is_that_of_the_inner_layers(kind):
    network = getattr(net, kind)(8)
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


def test_weights_follow_the_seed():
    first, again, other = (net.ready("LeNet", n).state_dict() for n in (1, 1, 2))
    assert all(first[name].equal(again[name]) for name in first)
    assert not first["0.weight"].equal(other["0.weight"])
    head = net.ready("ViT", 0).heads.head.weight  # of zeros in torchvision
    assert head.mean().abs() < 0.05 and 0.05 < head.std() < 0.2
    assert net.ready("ResNet", 0).bn1.running_var.ne(1).all()


def test_vgg_has_six_convolutions_and_three_poolings():
    kinds = [type(layer).__name__ for layer in net.Vgg()]
    assert kinds[:5] == ["Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d"]
    assert kinds.count("Conv2d") == 6 and kinds.count("MaxPool2d") == 3
    assert macs_of(on_meta(net.Vgg), 1, 3, 64, 64) == 154_615_808


def test_the_lstm_reads_the_lines_of_all_channels_in_their_order():
    network = net.Recurrent(4).eval()
    x = torch.randn(2, 3, 64, 64)
    steps = [x[:, :, 4 * t : 4 * t + 4].transpose(1, 2).flatten(1) for t in range(16)]
    with torch.no_grad():
        states, _ = network.lstm(torch.stack(steps, 1))
        close(network(x), network.classifier(states[:, 15]))


def test_programs_run_the_chains_of_the_table(monkeypatch):
    found = {}

    def once(work, rounds):
        for program, runs in work.items():
            for length, run in runs.items():
                found[program, length] = torch.as_tensor(run())
        return {program: torch.tensor([[1.0, 3], [2, 4], [9, 9]]) * 1e-6 for program in work}

    monkeypatch.setitem(net.chain_times.__globals__, "latencies", once)
    torch.manual_seed(0)
    with torch.no_grad():
        times = net.chain_times(4, rounds=3)
    assert list(times) == ["PyTorch", "ONNX Runtime", "OpenVINO"]
    assert all(shown == pytest.approx([2, 4]) for shown in times.values())
    for length in (net.SHORT, net.LONG):
        assert found["PyTorch", length].shape == (2, 4)
        close(found["ONNX Runtime", length], found["PyTorch", length])
        close(found["OpenVINO", length], found["PyTorch", length])


def test_sizes_of_the_chain():
    assert [type(layer) for layer in net.chain(2)] == [nn.Linear, nn.ReLU] * 2
    assert net.chain(3)[0].weight.shape == (8, 8)
    assert net.chain(1, width=5)(torch.zeros(1, 5)).shape == (1, 5)
    assert not net.chain(1).training


# ---- opsets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset, axes", [(12, (1, 2)), (13, (1,))])
def test_one_node_has_two_meanings(opset, axes):
    y = net.answer(net.softmax(opset), torch.randn(2, 3, 4))
    close(y.sum(axes), torch.ones_like(y.sum(axes)))
    expected = net.in_reference(net.softmax(13).SerializeToString())(y.numpy())
    close(net.answer(net.softmax(13), y), torch.from_numpy(expected))


def test_claims_about_libraries_wait_for_their_versions(monkeypatch):
    held = []
    monkeypatch.setitem(net.said.__globals__, "claim", lambda *given: held.append(given))
    monkeypatch.setitem(net.said.__globals__, "READ", {"torch": "0.1"})
    net.said(False, "of another version")
    monkeypatch.setitem(net.said.__globals__, "READ", {"torch": torch.__version__[:3]})
    net.said(False, "of this one")
    assert held == [(False, "of this one")]


# ---- failures ------------------------------------------------------------------------------------


def test_an_error_is_known_by_a_phrase_of_it_or_of_its_cause():
    inner = ValueError("so: No ONNX function found for <x>")
    outer = RuntimeError("first line\nsecond")
    outer.__cause__ = inner
    assert net.phrase(outer) == "No ONNX function found for"
    assert net.phrase(RuntimeError("first line\nsecond")) == "first line"
    assert net.phrase(KeyError()) == "KeyError"


def test_numbers_of_another_type_are_refused(lenet):
    run = net.in_onnxruntime(lenet[1].SerializeToString())
    with pytest.raises(Exception) as wider:
        run(np.zeros((1, 3, 64, 64)))
    assert net.phrase(wider.value) == "Unexpected input data type"


def test_an_attempt_tells_of_errors_and_warnings(capfd):
    def warns():
        net.warnings.warn("of no matter", stacklevel=1)
        net.warnings.warn("Exporting a model while it is in training mode. So", stacklevel=1)
        print("a graph", file=sys.stderr)
        return "a model"

    def fails():
        raise ValueError("no translation for aten.x: add one")

    assert net.attempt(warns) == ("a model", f"warning: {net.PHRASES.pattern.split('|')[5]}")
    assert net.attempt(fails) == (None, "error: no translation for")
    assert net.attempt(lambda: 3) == (3, "nothing")
    assert capfd.readouterr().err == ""


def test_a_verdict_tells_how_a_file_answers():
    x = torch.randn(2, 3, 4)
    over = nn.Softmax(1)
    assert net.verdict(over, None, x) == "no file"
    assert net.verdict(over, net.softmax(13), x) == "equal"
    assert net.verdict(over, net.softmax(12), x) == "other outputs"
    assert net.verdict(over, net.softmax(13), torch.randn(3, 3, 4)) == "Got invalid dimensions"
    for more, told in ((5e-6, "equal"), (15e-6, "other outputs")):
        near = net.Function(lambda x, more=more: torch.softmax(x, 1) * (1 + more))
        assert net.verdict(near, net.softmax(13), x) == told
    writes = net.Function(net.overwrites)
    before = x.clone()
    net.verdict(writes, net.softmax(13), x)
    assert x.equal(before)  # the network gets a copy


EXPECTED = {  # what happens, matched loosely: the words are the libraries'
    "if on a value": ("error", "no file"),
    "the same, dynamo=False": ("warning", "other outputs"),
    "operator of one's own": ("error", "no file"),
    "no size left open": ("nothing", "Got invalid dimensions"),
    "loop over the batch": ("nothing", "Got invalid dimensions"),
    "training mode": ("warning", "other outputs"),
    "a float64 constant": ("nothing", "numbers of float64"),
    "a number by item()": ("nothing", "equal"),
    "writes into its input": ("nothing", "equal"),
}


def test_the_cases_are_those_of_the_page():
    assert list(net.cases()) == list(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_case_fails_as_told_and_its_mended_network_computes_the_same(name):
    torch.manual_seed(0)
    case = net.cases()[name]
    small, other = torch.randn(3, 4).abs(), -torch.randn(5, 4).abs()
    export = functools.partial(case.export, case.broken, small.clone(), **case.how)
    model, heard = net.attempt(export)
    assert heard.startswith(EXPECTED[name][0])
    assert net.verdict(case.broken, model, other) == EXPECTED[name][1]
    if case.mended is None:
        return
    model, _ = net.attempt(
        functools.partial(net.exported, case.mended, small.clone(), **case.how_mended)
    )
    assert net.verdict(case.mended, model, other) == "equal"
    if name == "training mode":
        case.broken.eval()
    for x in (small, other):
        with torch.no_grad():
            close(case.mended(x.clone()).double(), case.broken(x.clone()).double())


def test_branches_and_loops_by_hand():
    x = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    assert net.branches(x).tolist() == [[2, -1], [4, 5]]
    assert net.branches(-x).tolist() == [[-2, 1], [-4, -5]]
    assert net.selects(-x).tolist() == net.branches(-x).tolist()
    assert net.loops(x).tolist() == [[1, -2], [4, 2]]
    assert net.scales(x).tolist() == [[0.25, -0.5], [0.75, 1]]
    four = torch.ones(1, 4).half()
    assert net.keeps_width(four).dtype == torch.half and net.widens(four).dtype == torch.double
    assert net.halved(x).tolist() == [[0.5, -1], [1.5, 2]]
    assert net.overwrites(x).tolist() == [[0, -4], [0, 8]] and x[0, 0] == 0


def test_the_exporter_leaves_the_batch_open_unless_told_otherwise():
    x = torch.randn(2, 4)
    linear = nn.Linear(4, 3).eval()
    assert type(net.input_shape(net.exported(linear, x).SerializeToString())[0]) is str
    fixed = net.exported(linear, x, dynamic_shapes=None)
    assert net.input_shape(fixed.SerializeToString()) == [2, 4]


# ---- measures ------------------------------------------------------------------------------------


def small_graph() -> onnx.GraphProto:
    """x (B, 4) -> Gemm -> y, Relu -> z, y + z -> out; w is turned round beforehand."""
    nodes = [
        helper.make_node("Transpose", ["w"], ["turned"]),
        helper.make_node("Gemm", ["x", "turned", ""], ["y"]),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("Shape", ["y"], ["shape"]),
        helper.make_node("Add", ["y", "z"], ["out"]),
    ]
    infos = {
        name: helper.make_tensor_value_info(name, kind, axes)
        for name, kind, axes in (
            ("x", TensorProto.FLOAT, ["B", 4]),
            ("turned", TensorProto.FLOAT, [4, 3]),
            ("y", TensorProto.FLOAT, ["B", 3]),
            ("z", TensorProto.FLOAT, ["B", 3]),
            ("shape", TensorProto.INT64, [2]),
            ("out", TensorProto.FLOAT, ["B", 3]),
        )
    }
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 4], [0.0] * 12)
    inner = [infos[name] for name in ("turned", "y", "z", "shape")]
    return helper.make_graph(
        nodes, "small", [infos["x"]], [infos["out"]], [weight], value_info=inner
    )


def test_bytes_depth_and_nodes_of_a_small_graph_by_hand():
    graph = small_graph()
    assert net.sizes(graph) == {
        "x": 16,
        "w": 48,
        "turned": 48,
        "y": 12,
        "z": 12,
        "shape": 16,
        "out": 12,
    }
    assert [node.op_type for node in net.working(graph)] == ["Gemm", "Relu", "Shape", "Add"]
    assert net.moved(graph) == (16 + 48 + 12) + (12 + 12) + (12 + 16) + (12 + 12 + 12)
    assert net.depth(graph) == 3
    assert net.places(graph) == {"x": 0, "y": 1, "z": 2, "shape": 2, "out": 3}


def test_correlations_are_those_of_scipy_with_ties():
    torch.manual_seed(0)
    for _ in range(5):
        x, y = torch.randint(6, (2, 10)).double()
        assert abs(net.pearson(x, y) - stats.pearsonr(x, y)[0]) < 1e-9
        assert abs(net.spearman(x, y) - stats.spearmanr(x, y)[0]) < 1e-9
        assert net.ranks(x).tolist() == stats.rankdata(x).tolist()
    x = torch.tensor([1.0, 10, 100, 1000])
    assert net.spearman(x, x**2) == pytest.approx(1) == -net.spearman(x, -x)


def test_the_interval_holds_the_correlation_and_narrows_with_more_networks():
    torch.manual_seed(0)
    x = torch.arange(10).double()
    assert net.interval(x, x**3) == pytest.approx((1, 1))
    noise = 4 * torch.randn(40).double()
    many = torch.arange(40).double()
    low, high = net.interval(x, x + noise[:10])
    less_low, less_high = net.interval(many, many + 4 * noise)
    assert low < net.spearman(x, x + noise[:10]) < high
    assert high - low > 0.1
    assert less_high - less_low < 0.6
    drawn = torch.randint(10, (4000, 10))
    found = net.spearman(x[drawn], (x + noise[:10])[drawn])
    found = found[found.isfinite()]
    assert abs((found < low).double().mean() - 0.05) < 0.02
    assert abs((found > high).double().mean() - 0.05) < 0.02


def test_latencies_call_each_network_once_more_than_it_is_timed(monkeypatch):
    calls, now = [], iter(range(1000))
    monkeypatch.setattr(net.time, "process_time", lambda: float(next(now)))
    set_to = [2]  # threads
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: set_to[-1])
    work = {
        "one": {"a": lambda: calls.append("1a"), "b": lambda: calls.append("1b")},
        "two": {"a": lambda: calls.append(torch.get_num_threads())},
    }
    found = net.latencies(work, 3)
    assert found["one"].tolist() == [[1, 1]] * 3 and found["two"].tolist() == [[1]] * 3
    assert calls == ["1a", "1a", "1b", "1b", 1, 1] * 3
    assert set_to == [2, 1, 2]


def test_the_compiler_is_the_one_that_is_there(monkeypatch):
    which = {"c++-of-mine": "/bin/mine", "clang++": "/bin/clang++"}
    monkeypatch.setattr(net.shutil, "which", which.get)
    monkeypatch.delenv("CXX", raising=False)
    assert net.compiler() == "/bin/clang++"
    monkeypatch.setenv("CXX", "c++-of-mine")
    assert net.compiler() == "/bin/mine"
    monkeypatch.setattr(net.shutil, "which", lambda name: None)
    assert net.compiler() is None
