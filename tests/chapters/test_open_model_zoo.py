"""Entry, files and integers of a network of Open Model Zoo, of notebooks/open_model_zoo.py."""

import hashlib
import os
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from loader import ROOT, definitions
from networks import close, parameters_of

sys.modules.setdefault("openvino_telemetry", None)  # no test tells anybody of itself
import nncf  # noqa: E402, F401 - once, not in each test that is run alone
import openvino as ov  # noqa: E402
from openvino import opset13 as ops  # noqa: E402

net = definitions("open_model_zoo")
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")


def seeded(build, number: int = 0) -> nn.Module:
    torch.manual_seed(number)
    model = build()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_(0, 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """(network, model, folder) with the files of the network as float32 and float16."""
    folder = tmp_path_factory.mktemp("ir")
    network = seeded(net.Digits)
    model = ov.convert_model(network, example_input=torch.rand(1, 1, 28, 28))
    ov.save_model(model, folder / "digits.xml", compress_to_fp16=False)
    ov.save_model(model, folder / "half.xml")
    return network, model, folder


# ---- who is told ---------------------------------------------------------------------------------


def test_the_listener_keeps_what_it_is_told_and_nothing_else():
    first, second = net.Listener("app"), net.Listener()
    first.start_session("a")
    assert net.heard(lambda: second.send_event("a", "b", 3, 4, force_send=True)) == [
        ("a", "b", "3")
    ]
    first.send_error("a", "wrong")
    first.send_stack_trace("a", "trace")
    first.end_session("a")
    first.force_shutdown(1.0)
    assert net.heard(lambda: None) == [] and net.Listener.told[-1] == ("a", "b", "3")


def test_the_stand_in_has_what_openvino_imports():
    modules = net.stand_in()
    package = modules["openvino_telemetry"]
    assert package.Telemetry is net.Listener
    assert package.backend is modules["openvino_telemetry.backend"]
    assert package.backend.backend_ga4 is None


# The opening of the notebook as it stands, up to its first network, then each call that might tell.
GUARDED = """
import socket, sys
def refuse(*_, **__):
    raise AssertionError("a connection was asked for")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
sys.path[:0] = ["notebooks"]
source = open("notebooks/open_model_zoo.py", encoding="utf-8").read()
exec(source[: source.index("# ## A network")])
told = Listener.told
print(len(told))
network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
x = torch.rand(4, 1, 8, 8)
model = ov.convert_model(network, example_input=x[:1])
print(len(told))
ov.save_model(model, sys.argv[1] + "/m.xml")
CORE.compile_model(CORE.read_model(sys.argv[1] + "/m.xml"), "CPU", SETTINGS)(x.numpy())
print(len(told))
nncf.quantize(model, nncf.Dataset([one[None].numpy() for one in x]), subset_size=4)
print(len(told))
"""


def test_with_the_stand_in_nothing_leaves_the_machine_or_is_left_at_home(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    places = {"MPLCONFIGDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, **places, "HOME": str(home), "BOOK_BUILD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    imported, converted, ran, quantized = map(int, done.stdout.split())
    assert 0 < imported < converted == ran < quantized
    assert not (home / "intel").exists()


def test_these_tests_themselves_have_no_telemetry():
    assert sys.modules["openvino_telemetry"] is None
    assert ov.tools.ovc.telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


# ---- an entry ------------------------------------------------------------------------------------

FACTS = {"description": "d", "task_type": "classification", "framework": "dldt", "license": "l"}


@pytest.fixture
def entry(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"weights")
    (tmp_path / "a.xml").write_bytes(b"")
    return net.describe(tmp_path, ["a.bin", "a.xml"], **FACTS), tmp_path


def test_an_entry_says_name_size_checksum_and_source(entry):
    text, folder = entry
    read = net.read_entry(text)
    assert {key: read[key] for key in FACTS} == FACTS and next(iter(read)) == "files"
    assert read["files"][0] == {
        "name": "a.bin",
        "size": 7,
        "checksum": hashlib.sha384(b"weights").hexdigest(),
        "source": "https://example.org/a.bin",
    }
    assert [net.verdict(file, folder) for file in read["files"]] == ["whole", "whole"]


def test_a_file_that_is_not_the_one_is_found(entry):
    text, folder = entry
    file = net.read_entry(text)["files"][0]
    (folder / "a.bin").write_bytes(b"weighty")
    assert net.verdict(file, folder) == "another checksum"
    (folder / "a.bin").write_bytes(b"w" * 1200)
    assert net.verdict(file, folder) == "1,200 bytes, not 7"
    assert net.verdict({**file, "size": 1500}, folder) == "1,200 bytes, not 1,500"
    (folder / "a.bin").unlink()
    assert net.verdict(file, folder) == "missing"


@pytest.mark.parametrize("key", ["description", "task_type", "files", "framework", "license"])
def test_an_entry_without_a_part_is_refused(key, entry):
    text, _ = entry
    assert net.refusal(text.replace(f"{key}:", f"no{key}:")) == f"{key} is missing"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: a.bin", "name: ../a.bin", "../a.bin would lie outside of the folder"),
        ("name: a.bin", "name: /a.bin", "/a.bin would lie outside of the folder"),
        ("size: 7", "size: seven", "a.bin: a size is a number of bytes"),
        ("size: 7", "size: -7", "a.bin: a size is a number of bytes"),
        ("size: 7", "size: true", "a.bin: a size is a number of bytes"),
        ("size: 7", "weight: 7", "a.bin: a size is a number of bytes"),
        ("checksum: ", "checksum: 0", "a.bin: a checksum is a SHA-384, 96 digits"),
        ("checksum: ", "sha256: ", "a.bin: a checksum is a SHA-384, 96 digits"),
        ("a.xml", "a.bin", "two files have one name"),
    ],
)
def test_an_entry_that_is_wrong_is_refused(old, new, said, entry):
    text, _ = entry
    assert net.refusal(text.replace(old, new)) == said


def test_what_is_no_dictionary_is_refused_and_what_is_right_taken(entry):
    text, _ = entry
    assert net.refusal("- a list") == "description is missing"
    assert net.refusal(text) == "taken"
    assert net.refusal(text.replace("size: 7", "size: 0")) == "taken"
    assert net.refusal(text.replace("name: a.bin", "name: FP32/a.bin")) == "taken"


# ---- the two files -------------------------------------------------------------------------------

HAND = """<net name="hand" version="11"><layers>
<layer id="7" type="Parameter"><data shape="1,2" element_type="f32"/></layer>
<layer id="3" type="Const"><data element_type="f32" shape="2" offset="4" size="8"/></layer>
<layer id="9" type="Multiply"/><layer id="1" type="Result"/></layers><edges>
<edge from-layer="3" from-port="0" to-layer="9" to-port="1"/>
<edge from-layer="7" from-port="0" to-layer="9" to-port="0"/>
<edge from-layer="9" from-port="2" to-layer="1" to-port="0"/></edges></net>"""


def test_a_file_by_hand_is_read_and_run(tmp_path):
    (tmp_path / "hand.xml").write_text(HAND)
    (tmp_path / "hand.bin").write_bytes(np.float32([9, 2, 3]).tobytes())
    layers = net.read_ir(tmp_path / "hand.xml")
    assert list(layers) == ["7", "3", "9", "1"]
    assert layers["9"] == ("Multiply", {}, {1: "3", 0: "7"})
    given = net.run_file(tmp_path / "hand.xml", torch.tensor([[10.0, 100.0]]))
    assert given.tolist() == [[20, 300]]


def test_inputs_come_in_the_order_of_their_ports(tmp_path):
    layers = {
        "0": net.Layer("Parameter", {}, {}),
        "1": net.Layer(
            "Const", {"element_type": "i64", "shape": "2", "offset": "0", "size": "16"}, {}
        ),
        "2": net.Layer("Reshape", {"special_zero": "true"}, {1: "1", 0: "0"}),
    }
    weights = np.int64([0, -1]).tobytes()
    assert net.run_ir(layers, weights, torch.rand(3, 2, 2)).shape == (3, 4)


def test_what_is_no_ir_is_refused(tmp_path):
    (tmp_path / "a.xml").write_text("<html/>")
    with pytest.raises(ValueError, match="a.xml is no IR: its root is 'html', not 'net'"):
        net.read_ir(tmp_path / "a.xml")


def test_an_operation_that_is_unknown_is_named():
    with pytest.raises(ValueError, match="no operation here does what Magic does: add it"):
        net.run_ir({"0": net.Layer("Magic", {}, {})}, b"", torch.zeros(1))


@pytest.mark.parametrize(("kind", "size"), [("f32", 4), ("f16", 2), ("i64", 8), ("i8", 1)])
def test_a_constant_is_found_by_its_offset(kind, size):
    stored = np.arange(-3, 4).astype(net.TYPES[kind])
    assert stored.itemsize == size
    data = {"element_type": kind, "shape": "2, 3", "offset": f"{size}", "size": f"{6 * size}"}
    found = net.constant(net.Layer("Const", data, {}), stored.tobytes())
    assert found.tolist() == [[-2, -1, 0], [1, 2, 3]]


def test_a_constant_beyond_the_end_is_refused():
    data = {"element_type": "f32", "shape": "2", "offset": "4", "size": "8"}
    with pytest.raises(ValueError, match="a constant ends at byte 12 of 11"):
        net.constant(net.Layer("Const", data, {}), bytes(11))


def test_numbers():
    assert net.numbers("2, 3") == (2, 3) and net.numbers("") == () and net.numbers("-1") == (-1,)


def test_both_files_run_as_openvino_and_torch_do(digits):
    network, model, folder = digits
    x = torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        expected = network(x)
    close(net.run(model, x), expected, 1e-5)
    close(net.run_file(folder / "digits.xml", x), expected, 1e-5)
    half = net.run_file(folder / "half.xml", x)
    close(half, net.run(net.CORE.read_model(folder / "half.xml"), x), 1e-5)
    assert 1e-7 < (half - expected).abs().max() < 1e-2


def test_the_order_in_the_file_has_inputs_first(digits):
    _, _, folder = digits
    seen = set()
    for number, layer in net.read_ir(folder / "digits.xml").items():
        assert set(layer.reads.values()) <= seen
        seen.add(number)


def test_the_count_and_the_shape():
    network = seeded(net.Digits)
    assert parameters_of(network) == 8 * 9 + 16 + 16 * 72 + 32 + 32 * 144 + 64 + 2890
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_a_stage_is_convolution_norm_relu_and_half():
    part = seeded(lambda: net.stage(3, 5))
    x = torch.randn(2, 3, 6, 8)
    kept = F.conv2d(x, part[0].weight, padding=1)
    norm = part[1]
    kept = (kept - norm.running_mean.view(-1, 1, 1)) / (norm.running_var + 1e-5).sqrt().view(
        -1, 1, 1
    )
    kept = kept * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    close(part(x), F.max_pool2d(kept.relu(), 2), 1e-5)


def test_one_convolution_does_what_it_and_its_norm_do():
    conv, norm = seeded(lambda: net.stage(3, 5))[:2]
    weight, bias = net.folded(conv, norm)
    x = torch.randn(2, 3, 6, 6)
    close(F.conv2d(x, weight, bias, padding=1), norm(conv(x)), 1e-5)


def test_a_row_says_what_a_layer_reads(digits):
    layer = net.Layer("MatMul", {"transpose_b": "true", "transpose_a": "false"}, {1: "4", 0: "2"})
    assert net.line("5", layer) == ("no. 5", "MatMul", "2, 4", "transpose_b true")


# ---- operations ----------------------------------------------------------------------------------


def ours(node, *inputs):
    """The operation of a node of OpenVINO, from its attributes in a file, on these inputs."""
    attributes = {
        key: ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value).lower()
        for key, value in node.get_attributes().items()
    }
    kind = {"Relu": "ReLU"}.get(node.get_type_name(), node.get_type_name())
    return net.OPERATIONS[kind](attributes, *inputs)


def theirs(node, place, x):
    return net.run(ov.Model([ops.result(node)], [place], "one"), x)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("rate", [1, 2])
def test_a_convolution_is_openvinos(stride, padding, rate):
    x, weight = torch.randn(2, 3, 9, 11), torch.randn(4, 3, 3, 3)
    place = ops.parameter([-1, 3, 9, 11], np.float32)
    pads = [padding] * 2
    node = ops.convolution(place, weight.numpy(), [stride] * 2, pads, pads, [rate] * 2)
    close(ours(node, x, weight), theirs(node, place, x), 1e-5)


def test_a_convolution_with_unequal_padding_is_refused():
    data = {"pads_begin": "0,0", "pads_end": "1,1", "strides": "1,1", "dilations": "1,1"}
    with pytest.raises(AssertionError, match="padding must be the same on both sides"):
        net.convolution(data, torch.rand(1, 1, 3, 3), torch.rand(1, 1, 1, 1))


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
@pytest.mark.parametrize("pad", [0, 1])
def test_a_maximum_is_openvinos(rounding, pad):
    x = torch.randn(2, 3, 8, 10)
    place = ops.parameter([-1, 3, 8, 10], np.float32)
    sides = {"pads_begin": [pad, pad], "pads_end": [pad, pad], "kernel_shape": [3, 3]}
    node = ops.max_pool(place, [2, 3], [1, 1], rounding_type=rounding, **sides)
    close(ours(node, x), theirs(node.output(0), place, x))


@pytest.mark.parametrize(("special", "shape"), [(True, [0, -1]), (True, [4, 0]), (False, [3, 8])])
def test_a_change_of_shape_is_openvinos(special, shape):
    x = torch.randn(4, 2, 3) if shape != [4, 0] else torch.randn(2, 2, 6)
    place = ops.parameter(list(x.shape), np.float32)
    if shape == [4, 0]:
        x, shape = torch.randn(4, 6, 1), [4, 0]
        place = ops.parameter([4, 6, 1], np.float32)
    node = ops.reshape(place, np.int64(shape), special)
    close(ours(node, x, torch.tensor(shape)), theirs(node, place, x))


@pytest.mark.parametrize("a", [False, True])
@pytest.mark.parametrize("b", [False, True])
def test_a_product_is_openvinos(a, b):
    x, other = torch.randn(5, 3), torch.randn(3, 4)
    x = x.T.contiguous() if a else x
    other = other.T.contiguous() if b else other
    place = ops.parameter(list(x.shape), np.float32)
    node = ops.matmul(place, other.numpy(), a, b)
    close(ours(node, x, other), theirs(node, place, x), 1e-5)


def test_the_simple_operations_are_what_they_say():
    a, b = torch.tensor([-1.0, 2]), torch.tensor([3.0, 4])
    run = {kind: net.OPERATIONS[kind] for kind in net.OPERATIONS}
    assert run["ReLU"]({}, a).tolist() == [0, 2] and run["Result"]({}, a) is a
    assert run["Add"]({}, a, b).tolist() == [2, 6]
    assert run["Multiply"]({}, a, b).tolist() == [-3, 8]
    assert run["Convert"]({}, torch.tensor([3], dtype=torch.int8)).dtype == torch.float32


# ---- levels and integers -------------------------------------------------------------------------


def test_levels_on_a_case_by_hand():
    x = torch.tensor([-1.0, 0, 0.4, 0.6, 1.4, 2, 9])
    ends = [torch.tensor(end) for end in (0.0, 2.0, 10.0, 30.0)]
    assert net.fake_quantize(x, *ends, levels=3).tolist() == [10, 10, 10, 20, 20, 30, 30]


@pytest.mark.parametrize(
    ("low", "high", "levels"), [(0.0, 4.0, 256), (-2.0, 2.0, 255), (-1.0, 3.0, 5)]
)
def test_the_formula_is_openvinos(low, high, levels):
    places = torch.arange(-100, 5 * levels + 100) / 5  # half-way, rounding decides on the level
    x = low + places * (high - low) / (levels - 1)
    ends = (low, high, low + 1, 2 * high)
    place = ops.parameter([-1], np.float32)
    node = ops.fake_quantize(place, *map(np.float32, ends), levels)
    close(ours(node, x, *map(torch.tensor, ends)), theirs(node, place, x), 1e-5)


def test_half_way_goes_to_the_even_level():
    x, ends = torch.tensor([0.5, 1.5, 2.5, 3.5]), (0.0, 4.0, 0.0, 4.0)
    assert net.fake_quantize(x, *map(torch.tensor, ends), levels=5).tolist() == [0, 2, 2, 4]


def test_without_a_number_there_are_256_levels():
    ends = [torch.tensor(end) for end in (0.0, 1.0, 0.0, 255.0)]
    assert net.fake_quantize(torch.rand(5000), *ends).unique().numel() == 256


def test_integers_by_hand():
    w = np.float32([[0.6, -1, 0.26], [0.02, 0.004, -0.008], [0, 0, 0]])
    integers, step = net.as_integers(w, bits=4)
    assert integers.tolist() == [[4, -7, 2], [7, 1, -3], [0, 0, 0]]
    close(torch.tensor(step), torch.tensor([[1 / 7], [0.02 / 7], [1 / 7]]))
    assert integers.dtype == np.int8 and step.dtype == np.float32
    integers, step = net.as_integers(w, bits=4, per_channel=False)
    assert integers[:2].tolist() == [[4, -7, 2], [0, 0, 0]] and step.shape == (1, 1)


@pytest.mark.parametrize("per_channel", [True, False])
def test_an_integer_is_half_a_step_away_at_most(per_channel):
    w = np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32)
    integers, step = net.as_integers(w, per_channel=per_channel)
    assert step.shape == ((5, 1, 1, 1) if per_channel else (1, 1, 1, 1))
    assert (np.abs(w - step * integers) <= 0.5001 * step).all()
    assert np.abs(integers).max() == 127


def test_ranges_reach_from_zero_or_below_to_the_share():
    seen = [torch.arange(101.0), torch.tensor([-2.0, 1.0])]
    assert net.ranges(seen) == [(0, 100), (-2, 1)]
    assert net.ranges(seen[:1], 0.5) == [(0, 50)]
    assert net.ranges([torch.tensor([3.0, 5.0])]) == [(0, 5)]


@pytest.mark.parametrize("nothing", [torch.zeros(3), -torch.ones(3)])
def test_pictures_that_show_nothing_are_refused(nothing):
    with pytest.raises(ValueError, match="nothing above 0: calibrate with other pictures"):
        net.ranges([torch.ones(3), nothing])


def test_the_inputs_of_the_weighted_operations(digits):
    network, model, _ = digits
    assert [op.get_type_name() for op in net.weighted(model)] == 3 * ["Convolution"] + ["MatMul"]
    x = torch.rand(2, 1, 28, 28)
    before = len(model.get_ops())
    seen = net.inputs_of(model, x)
    assert len(model.get_ops()) == before
    with torch.no_grad():
        maps = [x]
        for part in network.stages:
            maps.append(part(maps[-1]))
    for found, expected in zip(seen, [*maps[:3], maps[3].flatten(1)], strict=True):
        close(found, expected, 1e-5)


def by_torch(network, x, spans, bits=8, per_channel=True):
    """The network with levels and integers, written out with torch alone."""

    def levels(x, span):
        return net.fake_quantize(x, *(torch.tensor(float(end)) for end in (*span, *span)))

    def rounded(w):
        integers, step = net.as_integers(w.numpy(), bits=bits, per_channel=per_channel)
        return torch.tensor(integers * step)

    for part, span in zip(network.stages, spans):
        weight, bias = (t.detach() for t in net.folded(part[0], part[1]))
        x = levels(x, span) if span else x
        x = F.max_pool2d(F.conv2d(x, rounded(weight), bias, padding=1).relu(), 2)
    x = levels(x, spans[-1]) if spans[-1] else x
    last = network.classifier
    return F.linear(x.flatten(1), rounded(last.weight.detach()), last.bias.detach())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_model_with_integers_is_the_one_written_out(bits, per_channel, digits):
    network, model, _ = digits
    x = torch.rand(4, 1, 28, 28)
    before = net.run(model, x)
    small = net.quantized(model, bits=bits, per_channel=per_channel)
    close(net.run(small, x), by_torch(network, x, [None] * 4, bits, per_channel), 1e-4)
    close(net.run(model, x), before)


def test_the_model_with_levels_is_the_one_written_out_in_its_file(digits):
    network, model, folder = digits
    x = torch.rand(8, 1, 28, 28)
    spans = net.ranges(net.inputs_of(model, x))
    small = net.quantized(model, spans)
    ov.save_model(small, folder / "small.xml", compress_to_fp16=False)
    found = net.run_file(folder / "small.xml", x)
    close(found, by_torch(network, x, spans), 2e-2)
    kinds = [layer.kind for layer in net.read_ir(folder / "small.xml").values()]
    assert kinds.count("FakeQuantize") == kinds.count("Convert") == 4
    sizes = [(folder / f"{name}.bin").stat().st_size for name in ("small", "digits")]
    assert 0.25 < sizes[0] / sizes[1] < 0.28
    with torch.no_grad():
        assert (found - network(x)).abs().max() < 0.2 * network(x).abs().max()
    assert {
        op.get_attributes()["levels"] for op in small.get_ops() if "Fake" in op.get_type_name()
    } == {256}


def test_the_tool_gives_a_model_with_integers_too(digits):
    network, model, _ = digits
    net.rich.reconfigure(quiet=True, force_jupyter=False)
    torch.manual_seed(0)
    x = torch.rand(6, 1, 28, 28)
    small = net.by_nncf(model, x)
    assert sum(op.get_type_name() == "FakeQuantize" for op in small.get_ops()) == 4
    with torch.no_grad():
        assert (net.run(small, x) - network(x)).abs().max() < 0.2 * network(x).abs().max()


def test_kinds_are_counted_in_both_graphs(digits):
    network, model, _ = digits
    there, here = net.kinds(network, model)
    assert [there[k] for k in net.SHOWN] == [3, 3, 0, 3, 3, 1]
    assert [here[k] for k in net.SHOWN] == [3, 0, 4, 3, 3, 1]


def test_what_runs_is_named_in_order_with_its_precision(digits):
    """Another processor fuses otherwise: three convolutions of floats run on any."""
    _, model, _ = digits
    ran = net.as_run(model)
    convolutions = [pair for pair in ran if "Convolution" in pair[0]]
    assert len(convolutions) == 3 and {how for _, how in convolutions} == {"f32"}
    assert not {"Input", "Const", "Output"} & {what for what, _ in ran}
    assert ran.index(convolutions[-1]) < len(ran) - 1  # the linear layer is behind


def test_the_precision_is_that_of_the_convolutions(monkeypatch):
    pairs = [("Pooling", "i8"), ("Convolution", "u8"), ("Convolution", "f32")]
    monkeypatch.setitem(net._namespace, "as_run", lambda model: pairs)
    assert net.precision(None) == "f32, u8"


# ---- the networks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "shape"),
    [
        ("Residual", 27 * 16 + 2 * 144 * 16 + 3 * 32 + 170, (2, 10)),
        ("Depthwise", 432 + 32 + 144 + 32 + 512 + 64 + 288 + 64 + 1024 + 64 + 330, (2, 10)),
        ("Encoder", 1600 + 33 * 96 + 64 + 33 * 64 + 65 * 10, (2, 10)),
    ],
)
def test_networks_have_their_counts_and_come_through_conversion(name, count, shape):
    network = seeded(getattr(net, name), 3)
    x = torch.randint(50, (2, 12)) if name == "Encoder" else torch.rand(2, 3, 8, 8)
    assert parameters_of(network) == count
    with torch.no_grad():
        expected = network(x)
    assert expected.shape == shape
    close(net.run(ov.convert_model(network, example_input=x), x), expected, 1e-4)


def test_a_norm_is_pytorchs_and_padding_keeps_the_sides():
    part = net.conv_norm(4, 6, 1, 2)
    assert part[1].eps == nn.BatchNorm2d(6).eps and part[0].groups == 2
    assert part(torch.rand(2, 4, 5, 7)).shape == (2, 6, 5, 7)
    assert net.conv_norm(4, 6)(torch.rand(2, 4, 5, 7)).shape == (2, 6, 5, 7)


def test_the_residual_block_adds_its_branch():
    network = seeded(net.Residual)
    network.branch[1][1].weight.data.zero_()
    network.branch[1][1].bias.data.zero_()
    x = torch.rand(2, 3, 8, 8)
    close(network(x), network.classifier(network.stem(x).mean((2, 3))), 1e-5)
    network.branch[1][1].bias.data.fill_(-100.0)
    close(network(x), network.classifier.bias.expand(2, -1), 1e-5)


def test_a_depthwise_channel_sees_itself_alone():
    network = seeded(net.Depthwise)
    first, second = network.trunk[1][0], network.trunk[3][0]
    x = torch.rand(1, 16, 6, 6)
    other = x.clone()
    other[:, 5] += 1
    differ = (first(x) != first(other)).flatten(2).any(2)[0]
    assert differ.nonzero().tolist() == [[5]] and second[0].groups == 32


def test_the_encoder_is_attention_by_heads():
    network = seeded(net.Encoder)
    words = torch.randint(50, (2, 7))
    with torch.no_grad():
        x = network.words(words)
        q, k, v = network.in_project(x).chunk(3, dim=2)
        heads = []
        for part in range(4):
            cut = slice(8 * part, 8 * part + 8)
            weights = (q[..., cut] @ k[..., cut].mT / 8**0.5).softmax(-1)
            heads.append(weights @ v[..., cut])
        expected = network.feed(network.norm(x + torch.cat(heads, 2))).mean(1)
        close(network(words), expected, 1e-5)


# ---- what goes wrong -----------------------------------------------------------------------------


def test_accuracy_and_changes_are_counted(digits):
    network, model, _ = digits
    x = torch.rand(8, 1, 28, 28)
    y = network(x).argmax(1)
    wrong = y.clone()
    wrong[:2] += 1
    assert net.accuracy(model, (x, y)) == 1 and net.accuracy(model, (x, wrong)) == 0.75
    assert net.changed(model, model, x) == 0
    place = ops.parameter([-1, 1, 28, 28], np.float32)
    flat = ops.reshape(place, np.int64([0, 784]), True)
    other = ov.Model([ops.result(flat)], [place], "other")
    found = (network(x).argmax(1) != x.flatten(1).argmax(1)).sum().item()
    assert found > 0 and net.changed(model, other, x) == found


def test_the_bits_that_the_text_names_stand_where_it_looks_for_them(digits):
    _, model, _ = digits
    assert (net.BITS[1], net.BITS[2], net.BITS[4]) == (5, 4, 2)
    x = torch.rand(6, 1, 28, 28)
    y = net.run(net.quantized(model, bits=2), x).argmax(1)
    assert net.by_bits([model], (x, y), per_channel=True)[0, 4] == 100
    y = net.run(net.quantized(model, bits=5, per_channel=False), x).argmax(1)
    assert net.by_bits([model], (x, y), per_channel=False)[0, 1] == 100


def test_ranges_from_the_same_pictures_give_the_same_digits(digits):
    _, model, _ = digits
    x = torch.rand(6, 1, 28, 28)
    y = net.run(net.quantized(model, net.ranges(net.inputs_of(model, x), 0.9)), x).argmax(1)
    assert net.calibrated([model, model], (x, y), x, 0.9) == [100, 100]
    y = net.run(net.quantized(model, net.ranges(net.inputs_of(model, x))), x).argmax(1)
    assert net.calibrated([model], (x, y), x) == [100]


def test_what_happens_to_a_file_is_told(digits, tmp_path):
    network, _, folder = digits
    x, xml = torch.rand(2, 1, 28, 28), (folder / "digits.xml").read_text()
    content = (folder / "digits.bin").read_bytes()
    whole = net.damaged(tmp_path / "whole.xml", xml, content)
    assert net.attempt(whole, network, x) == "nothing; same outputs"
    other = net.damaged(tmp_path / "other.xml", xml, bytes(288) + content[288:])
    assert net.attempt(other, network, x) == "nothing; other outputs"
    bare = net.damaged(tmp_path / "bare.xml", xml, None)
    assert "bin file cannot be found" in net.attempt(bare, network, x)
    assert "\n" not in net.attempt(bare, network, x)


def test_random_numbers_come_from_the_seed():
    a, b, c = (net.made(net.Residual, number) for number in (1, 1, 2))
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(a(x), b(x)) and not torch.equal(a(x), c(x)) and not a.training
    assert a.stem[1].running_mean.abs().max() > 0


def test_the_xml_of_the_page_is_what_elementtree_reads(digits):
    _, _, folder = digits
    root = ET.parse(folder / "digits.xml").getroot()
    layers = net.read_ir(folder / "digits.xml")
    assert [node.get("id") for node in root.iter("layer")] == list(layers)
    assert sum(len(layer.reads) for layer in layers.values()) == len(list(root.iter("edge")))
