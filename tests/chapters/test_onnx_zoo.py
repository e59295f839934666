"""The reader of ONNX files, the zoo of our own and the eight bits of notebooks/onnx_zoo.py."""

import io
import json
import socket
import tarfile

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from loader import definitions
from workbench import protobuf

net = definitions("onnx_zoo")
SMALL = helper.make_opsetid("", 20)


@pytest.fixture(scope="module")
def lenet():
    """(network, model): a LeNet and its file's content, exported once."""
    torch.manual_seed(0)
    network = net.LeNet().eval()
    return network, net.exported(network, net.pictures())


def chain(filters: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """A model of one convolution and a ReLU, for inputs (100, 1, 6, 6)."""
    size = 6 - filters.shape[2] + 1
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=filters.shape[2:]),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        "chain",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [100, 1, 6, 6])],
        [
            helper.make_tensor_value_info(
                "y", onnx.TensorProto.FLOAT, [100, len(filters), size, size]
            )
        ],
        [numpy_helper.from_array(filters, "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, opset_imports=[SMALL], ir_version=10)


# ---- bytes ---------------------------------------------------------------------------------------


def test_numbers_are_signed_and_packed_or_not():
    schema = {1: ("n", int), 2: ("f", float), 3: ("s", str), 4: ("inner", {1: ("n", int)})}
    minus = b"\xff" * 9 + b"\x01"
    data = b"\x08\x05\x08" + minus + b"\x0a\x03\x01\xac\x02" + b"\x15" + np.float32(0.5).tobytes()
    data += b"\x1a\x02hi" + b"\x22\x02\x08\x09" + b"\x2a\x01?"
    assert net.message(data, schema) == {
        "n": [5, -1, 1, 300],
        "f": [0.5],
        "s": ["hi"],
        "inner": [{"n": [9]}],
    }
    largest = b"\xff" * 8 + b"\x7f"
    assert net.message(b"\x08" + largest, schema)["n"] == [2**63 - 1]
    assert net.message(b"\x08" + b"\x80" * 9 + b"\x01", schema)["n"] == [-(2**63)]


@pytest.mark.parametrize("dtype", ["f4", "u1", "i1", "i4", "i8"])
def test_tensors_are_those_of_onnx(dtype):
    values = np.arange(-3, 3).astype(dtype).reshape(2, 3)
    data = numpy_helper.from_array(values, "w").SerializeToString()
    tensor = net.message(data, net.TENSOR)
    assert tensor["name"] == ["w"]
    found = net.array(tensor)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


def test_numbers_that_lie_elsewhere_are_named():
    tensor = helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"w.* keeps its numbers outside raw_data: .*to_array"):
        net.array(net.message(tensor.SerializeToString(), net.TENSOR))


def test_a_model_by_hand_is_read_as_onnx_reads_it():
    filters = np.random.default_rng(0).normal(size=(2, 1, 3, 3)).astype(np.float32)
    model = chain(filters, np.zeros(2, np.float32))
    model.graph.node[0].attribute.append(helper.make_attribute("pads", [0, 0, 0, 0]))
    model.graph.node[1].attribute.append(helper.make_attribute("axis", -1))
    data = model.SerializeToString()
    assert net.same_as_onnx(data) == (2, 2, 20)
    opened = net.message(data, net.MODEL)
    assert opened["ir_version"] == [10]
    assert opened["opset_import"][0]["version"] == [20]
    (graph,) = opened["graph"]
    assert graph["name"] == ["chain"]
    assert graph["node"][0]["op_type"] == ["Conv"] and graph["node"][0]["input"] == ["x", "w", "b"]
    attributes = {a["name"][0]: a for a in graph["node"][0]["attribute"]}
    assert attributes["kernel_shape"]["ints"] == [3, 3] and attributes["pads"]["ints"] == [0] * 4
    assert graph["node"][1]["attribute"][0]["i"] == [-1]
    np.testing.assert_array_equal(net.array(graph["initializer"][0]), filters)


def test_a_domain_and_a_float_are_read():
    node = helper.make_node("Elu", ["x"], ["y"], alpha=0.25)
    assert net.message(node.SerializeToString(), net.NODE)["attribute"][0]["f"] == [0.25]
    opset = helper.make_opsetid("reader.own", 3).SerializeToString()
    assert net.message(opset, net.OPSET) == {"domain": ["reader.own"], "version": [3]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g.node.pop(), "other nodes"),
        (lambda g: setattr(g.node[0], "op_type", "Other"), "another operator"),
        (lambda g: g.node[0].input.append("z"), "other inputs"),
        (lambda g: g.node[0].output.append("z"), "other outputs"),
        (lambda g: setattr(g.node[0].attribute[0], "name", "z"), "another attribute"),
        (lambda g: g.node[0].attribute[0].ints.append(1), "other integers"),
        (lambda g: setattr(g.node[1].attribute[0], "i", 3), "another integer"),
        (lambda g: g.initializer.pop(), "other tensors"),
        (lambda g: g.initializer[0].CopyFrom(g.initializer[1]), "not equal"),
    ],
)
def test_the_comparison_finds_each_difference(change, words, monkeypatch):
    model = chain(np.ones((1, 1, 3, 3), np.float32), np.zeros(1, np.float32))
    model.graph.node[1].attribute.append(helper.make_attribute("axis", 2))
    data = model.SerializeToString()
    change(model.graph)
    monkeypatch.setattr(onnx, "load_from_string", lambda _: model)
    with pytest.raises(AssertionError, match=words):
        net.same_as_onnx(data)


def test_the_comparison_finds_an_attribute_too_many(monkeypatch):
    model = chain(np.ones((1, 1, 3, 3), np.float32), np.zeros(1, np.float32))
    data = model.SerializeToString()
    model.graph.node[0].attribute.append(helper.make_attribute("zz", 1))
    monkeypatch.setattr(onnx, "load_from_string", lambda _: model)
    with pytest.raises(ValueError, match="longer than"):
        net.same_as_onnx(data)


def test_what_is_written_is_what_was_read(lenet):
    _, model = lenet
    data = model.SerializeToString()
    assert net.written(protobuf.fields(data)) == data
    for value in (0, 1, 127, 128, 300, 16384, 2**63, 2**64 - 1):
        data = net.number_written(value)
        assert protobuf.varint(data, 0) == (value, len(data))
    every = [(1, 0, 150), (2, 2, b"abc"), (3, 5, b"1234"), (4, 1, b"12345678")]
    assert protobuf.fields(net.written(every)) == every


# ---- networks and their files --------------------------------------------------------------------


def test_networks_have_the_counts_of_their_layers():
    count = {n: sum(p.numel() for p in kind().parameters()) for n, (kind, _, _) in net.ZOO.items()}
    assert count == {
        "LeNet": 156 + 2416 + 256 * 84 + 84 + 850,
        "Residual": 160 + 2 * (2304 + 32) + 170,
        "Depthwise": 416 + 160 + 4640 + 800 * 128 + 128 + 1290,
        "Encoder": 1600 + 2 * 64 + 32 * 96 + 96 + 32 * 32 + 32 + 32 * 128 + 128 + 128 * 32 + 32,
        "LSTM": 4 * 24 * (12 + 24 + 2) + 250,
    }


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("LeNet", (4, 10)),
        ("Residual", (4, 10)),
        ("Depthwise", (4, 10)),
        ("Encoder", (4, 16, 32)),
        ("LSTM", (4, 10)),
    ],
)
def test_networks_give_their_shapes(name, shape):
    torch.manual_seed(0)
    kind, inputs, _ = net.ZOO[name]
    x = inputs()
    assert kind().eval()(x).shape == shape
    assert inputs(2).shape[0] == 2 and inputs(2).shape[1:] == x.shape[1:]
    if x.dtype == torch.int64:
        assert int(x.min()) >= 0 and int(x.max()) < 50 and len(x.unique()) > 10


def test_the_residual_net_is_its_layers_in_a_row():
    torch.manual_seed(1)
    network = net.ResidualNet().eval()
    for norm in (network.norm1, network.norm2):
        norm.running_var.uniform_(0.5, 2)
    x = net.pictures(2)
    with torch.no_grad():
        h = torch.relu(torch.conv2d(x, network.stem.weight, network.stem.bias, 2, 1))
        a = torch.relu(network.norm1(network.conv1(h)))
        expected = torch.relu(h + network.norm2(network.conv2(a))).mean((2, 3))
        torch.testing.assert_close(network(x), network.classifier(expected))
    assert h.shape == (2, 16, 14, 14)


def test_the_depthwise_filters_keep_to_their_channel():
    torch.manual_seed(0)
    network = net.DepthwiseNet().eval()
    assert network.depthwise.groups == 16 and network.depthwise.weight.shape == (16, 1, 3, 3)
    x = net.pictures(2)
    with torch.no_grad():
        h = torch.max_pool2d(torch.relu(network.conv(x)), 2)
        h = torch.relu(network.depthwise(h))
        assert h.shape == (2, 16, 12, 12)
        h = torch.max_pool2d(torch.relu(network.mix(h)), 2).flatten(1)
        expected = network.classifier(torch.relu(network.hidden(h)))
        torch.testing.assert_close(network(x), expected)


def test_lenet_and_the_lstm_are_their_layers_in_a_row(lenet):
    network, _ = lenet
    x = net.pictures(2)
    with torch.no_grad():
        h = torch.max_pool2d(torch.relu(network.conv1(x)), 2)
        h = torch.max_pool2d(torch.relu(network.conv2(h)), 2).flatten(1)
        torch.testing.assert_close(network(x), network.classifier(torch.relu(network.hidden(h))))
        recurrent = net.Recurrent().eval()
        x = net.sequences(2)
        _, (last, _) = recurrent.lstm(x)
        torch.testing.assert_close(recurrent(x), recurrent.classifier(last[0]))


def test_the_encoder_is_a_layer_of_torch():
    torch.manual_seed(0)
    encoder = net.Encoder().eval()
    layer = torch.nn.TransformerEncoderLayer(
        32, 4, 128, dropout=0, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": encoder.project.weight,
            "self_attn.in_proj_bias": encoder.project.bias,
            "self_attn.out_proj.weight": encoder.join.weight,
            "self_attn.out_proj.bias": encoder.join.bias,
            "linear1.weight": encoder.wide.weight,
            "linear1.bias": encoder.wide.bias,
            "linear2.weight": encoder.narrow.weight,
            "linear2.bias": encoder.narrow.bias,
            "norm1.weight": encoder.norm1.weight,
            "norm1.bias": encoder.norm1.bias,
            "norm2.weight": encoder.norm2.weight,
            "norm2.bias": encoder.norm2.bias,
        }
    )
    words = net.sentences(3)
    with torch.no_grad():
        torch.testing.assert_close(encoder(words), layer(encoder.embedding(words)))
    with pytest.raises(AssertionError, match="n_heads must divide d_model"):
        net.Encoder(d_model=30)


def test_a_file_gives_the_output_of_its_network(lenet):
    network, model = lenet
    assert [node.op_type for node in model.graph.node].count("Conv") == 2
    assert model.graph.input[0].name == "x" and model.graph.output[0].name == "y"
    pair = net.differences(network, model, net.pictures())
    assert max(pair) < 1e-5
    with torch.no_grad():
        network.classifier.bias[3] += 0.5
    pair = net.differences(network, model, net.pictures())
    with torch.no_grad():
        network.classifier.bias[3] -= 0.5
    assert pair == pytest.approx((0.5, 0.5), abs=1e-5)


def test_a_network_is_exported_as_it_is_used():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9)).train()
    x = torch.ones(4, 1, 2, 2)
    assert abs(net.answer(net.exported(network, x).SerializeToString(), x.numpy()) - 1).max() == 0


def test_bare_files_name_no_folder(lenet):
    network, model = lenet
    folder = str(torch.__file__).removesuffix("/__init__.py").encode()
    data, bare = model.SerializeToString(), net.bare(model).SerializeToString()
    assert folder in data and folder not in bare and b"pkg.torch" not in bare
    assert net.same_as_onnx(data) == net.same_as_onnx(bare)
    assert model.SerializeToString() == data
    full = onnx.ModelProto()
    full.CopyFrom(model)
    full.metadata_props.add(key="k", value="secret")
    assert b"secret" not in net.bare(full).SerializeToString()


def test_sessions_have_one_thread_and_whole_products(monkeypatch):
    kept = {}

    def keep(model, options, providers):
        kept.update(options=options, providers=providers)

    monkeypatch.setattr(net.onnxruntime, "InferenceSession", keep)
    net.session(b"")
    options = kept["options"]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.x64quantprecision") == "1"
    assert kept["providers"] == ["CPUExecutionProvider"] and options.log_severity_level == 4


# ---- the zoo -------------------------------------------------------------------------------------


@pytest.fixture
def zoo(tmp_path, lenet):
    """A zoo with two versions of LeNet, of opsets 20 and 12."""
    _, model = lenet
    older = chain(np.ones((2, 1, 3, 3), np.float32), np.zeros(2, np.float32))
    older.opset_import[0].version = 12
    x = torch.randn(100, 1, 6, 6)
    manifest = [
        net.publish(tmp_path, "LeNet", "vision/old", older, x),
        net.publish(tmp_path, "LeNet", "vision/classification", model, net.pictures()),
    ]
    (tmp_path / "ONNX_HUB_MANIFEST.json").write_text(json.dumps(manifest))
    return tmp_path


def test_an_entry_says_what_its_files_are(zoo, lenet):
    _, model = lenet
    entry = net.entry_of(zoo, "lenet")
    stem = "vision/classification/lenet/model/lenet-20"
    data = (zoo / f"{stem}.onnx").read_bytes()
    packed = (zoo / f"{stem}.tar.gz").read_bytes()
    assert data == model.SerializeToString()
    assert entry == {
        "model": "LeNet",
        "model_path": f"{stem}.onnx",
        "onnx_version": onnx.__version__,
        "opset_version": 20,
        "metadata": {
            "model_sha": net.hashlib.sha256(data).hexdigest(),
            "model_bytes": len(data),
            "tags": ["vision", "classification", "lenet"],
            "model_with_data_path": f"{stem}.tar.gz",
            "model_with_data_sha": net.hashlib.sha256(packed).hexdigest(),
        },
    }
    with tarfile.open(fileobj=io.BytesIO(packed)) as opened:
        assert opened.getnames() == [
            "lenet.onnx",
            "test_data_set_0/input_0.pb",
            "test_data_set_0/output_0.pb",
        ]
        assert opened.extractfile("lenet.onnx").read() == data
        tensor = onnx.TensorProto.FromString(opened.extractfile(opened.getnames()[1]).read())
    assert tensor.name == "input_0" and list(tensor.dims) == [4, 1, 28, 28]


def test_an_archive_is_the_same_each_time():
    first = net.archive({"a": b"one", "b": b"two"})
    assert first == net.archive({"a": b"one", "b": b"two"}) and first[4:8] == bytes(4)


def test_the_newest_opset_is_taken_unless_one_is_named(zoo):
    assert net.entry_of(zoo, "LENET")["opset_version"] == 20
    assert net.entry_of(zoo, "LeNet", 12)["opset_version"] == 12
    assert net.load(zoo, "LeNet", 12).opset_import[0].version == 12
    assert net.load(zoo, "LeNet").opset_import[0].version == 20
    with pytest.raises(ValueError, match="no LeNet of opset 13; there are LeNet 12, LeNet 20"):
        net.entry_of(zoo, "LeNet", 13)
    with pytest.raises(ValueError, match="no resnet of opset None; there are LeNet 12"):
        net.load(zoo, "resnet")


def test_a_file_that_has_changed_is_not_opened(zoo):
    path = zoo / net.entry_of(zoo, "LeNet")["model_path"]
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(ValueError, match="lenet-20.onnx: not the manifest's SHA-256; fetch it"):
        net.load(zoo, "LeNet")


def test_a_model_that_is_no_graph_is_refused_by_load(zoo):
    entry = net.entry_of(zoo, "LeNet")
    model = onnx.load(zoo / entry["model_path"])
    model.graph.node[0].input[0] = "nowhere"
    data = model.SerializeToString()
    (zoo / entry["model_path"]).write_bytes(data)
    entry["metadata"]["model_sha"] = net.sha256(data)
    (zoo / "ONNX_HUB_MANIFEST.json").write_text(json.dumps([entry]))
    with pytest.raises(onnx.checker.ValidationError, match="nowhere"):
        net.load(zoo, "LeNet")


def test_the_full_check_finds_shapes_that_do_not_fit(zoo):
    entry = net.entry_of(zoo, "LeNet")
    model = onnx.load(zoo / entry["model_path"])
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 11
    data = model.SerializeToString()
    (zoo / entry["model_path"]).write_bytes(data)
    entry["metadata"]["model_sha"] = net.sha256(data)
    (zoo / "ONNX_HUB_MANIFEST.json").write_text(json.dumps([entry]))
    with pytest.raises(Exception, match="11"):
        net.load(zoo, "LeNet")


def test_a_retest_measures_the_distance(zoo, lenet):
    network, model = lenet
    entry = net.entry_of(zoo, "LeNet")
    assert net.retest(zoo, entry, model.SerializeToString()) == 0
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    (bias,) = [t for t in changed.graph.initializer if t.name == "classifier.bias"]
    values = numpy_helper.to_array(bias).copy()
    values[4] -= 0.25
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    assert net.retest(zoo, entry, changed.SerializeToString()) == pytest.approx(0.25, abs=1e-5)
    (zoo / entry["metadata"]["model_with_data_path"]).write_bytes(b"other")
    with pytest.raises(ValueError, match="lenet-20.tar.gz: not the manifest's"):
        net.retest(zoo, entry, model.SerializeToString())


def test_who_notices_what(zoo, lenet, tmp_path):
    _, model = lenet
    entry = net.entry_of(zoo, "LeNet")
    data = model.SerializeToString()
    largest = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    (tmp_path / "secret.bin").write_bytes(largest.raw_data)
    outside = net.outside(model, "../secret.bin")
    (tensor,) = [t for t in outside.graph.initializer if t.name == largest.name]
    assert not tensor.raw_data and tensor.external_data[0].value == "../secret.bin"
    assert model.SerializeToString() == data

    def said(content, number):
        return net.verdicts(content, tmp_path / f"c{number}" / "model.onnx", zoo, entry)

    assert said(data, 0) == ("passes",) * 4
    assert said(data[: len(data) // 2], 1) == ("refuses",) * 4
    assert said(net.POINTER, 2) == ("refuses",) * 4
    assert said(outside.SerializeToString(), 3) == ("refuses",) * 4
    own = net.renamed(model, "reader.own")
    assert [(o.domain, o.version) for o in own.opset_import] == [("", 20), ("reader.own", 1)]
    assert said(own.SerializeToString(), 4) == ("passes", "passes", "refuses", "refuses")
    assert model.SerializeToString() == data
    inside = net.outside(model, "weights.bin")
    (tmp_path / "c5").mkdir()
    (tmp_path / "c5" / "weights.bin").write_bytes(largest.raw_data)
    onnx.save(inside, tmp_path / "c5" / "model.onnx")
    assert net.retest(zoo, entry, str(tmp_path / "c5" / "model.onnx")) == 0


def test_one_bit_is_changed_and_only_one():
    data = b"ab" + np.float32(1.5).tobytes() + b"cd"
    changed = net.flipped(data, 1.5)
    bits = [bin(a ^ b).count("1") for a, b in zip(data, changed, strict=True)]
    assert bits == [0, 0, 0, 0, 0, 1, 0, 0]
    value = np.frombuffer(changed[2:6], "<f4")[0]
    assert value / 1.5 in (2.0**2, 2.0**-2, 2.0**126, 2.0**-126, -1.0)


def test_a_call_passes_or_refuses():
    assert net.passes(lambda: None) == "passes"
    assert net.passes(lambda: 1 / 0) == "refuses"


# ---- eight bits ----------------------------------------------------------------------------------


def test_integers_by_hand():
    x = np.array([-1.0, 0.0, 0.5, 1.0, 1.26, 9.0])
    q = net.quantise(x, 0.5, 3, 0, 7)
    assert q.tolist() == [1, 3, 4, 5, 6, 7] and q.dtype == int
    assert net.dequantise(q, 0.5, 3).tolist() == [-1.0, 0.0, 0.5, 1.0, 1.5, 2.0]
    assert net.quantise(np.array([-9.0]), 0.5, 3, 0, 7).tolist() == [0]
    assert net.quantise(np.array([-9.0, 9.0]), 1, 0, -4, 5).tolist() == [-4, 5]


def test_rounding_costs_half_a_step_at_most():
    x = np.random.default_rng(0).uniform(-1, 1, 1000)
    back = net.dequantise(net.quantise(x, 1 / 127, 0, -127, 127), 1 / 127, 0)
    assert 0.4 / 127 < abs(back - x).max() <= 0.5 / 127 + 1e-12


def test_calibration_gives_a_hundred_at_a_time_and_ends():
    x = torch.rand(250, 1, 28, 28)
    reader = net.Digits(x)
    parts = [reader.get_next()["x"] for _ in range(3)]
    assert [len(part) for part in parts] == [100, 100, 50] and reader.get_next() is None
    np.testing.assert_array_equal(np.concatenate(parts), x.numpy())


@pytest.fixture
def model_of_two():
    """One filter sums nine pixels, the other has a hundredth of its weights."""
    filters = np.stack([np.ones((1, 3, 3)), np.full((1, 3, 3), -0.01)]).astype(np.float32)
    filters[1, 0, 1, 1] = 0.01
    return filters, chain(filters, np.array([-1.0, 0.05], np.float32))


def test_per_channel_gives_each_filter_its_scale(model_of_two, tmp_path):
    filters, model = model_of_two
    torch.manual_seed(0)
    x = torch.rand(100, 1, 6, 6)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 1.0, 0.0
    each = net.first_layer(onnx.load_from_string(net.quantised(model, x, tmp_path)))
    np.testing.assert_allclose(each["w"][1], [1 / 127, 0.01 / 127], rtol=1e-5)
    assert set(each["w"][0].ravel()) == {127, -127}
    np.testing.assert_allclose(each["x"][0], 1 / 255, rtol=1e-5)
    assert each["x"][1] == 0 and each["w"][0].dtype == np.int8
    one = net.quantised(model, x, tmp_path, per_channel=False)
    one = net.first_layer(onnx.load_from_string(one))
    assert one["w"][1].size == 1 and set(one["w"][0][1].ravel()) == {1, -1}


def test_a_layer_in_integers_is_that_of_onnx_runtime(model_of_two, tmp_path):
    _, model = model_of_two
    torch.manual_seed(0)
    x = torch.rand(100, 1, 6, 6) - 0.25  # a zero point that is not 0
    data = net.quantised(model, x, tmp_path)
    opened = onnx.load_from_string(data)
    layer = net.first_layer(opened)
    assert layer["x"][1] > 0
    opened.graph.output.append(
        helper.make_tensor_value_info(layer["name"], onnx.TensorProto.UINT8, None)
    )
    _, theirs = net.session(opened.SerializeToString()).run(None, {"x": x.numpy()})
    q = net.quantise(x.numpy(), *layer["x"], 0, 255)
    steps = abs(net.in_integers(q, layer) - theirs.astype(int))
    assert steps.max() <= 1 and (steps > 0).mean() < 0.01
    assert len(np.unique(theirs)) > 50


def test_a_layer_in_integers_by_hand():
    layer = {
        "x": [np.float32(0.5), np.uint8(2)],
        "w": [np.array([[[[1, 2]]]], np.int8), np.array([0.25], np.float32), None],
        "b": [np.array([8], np.int32)],
        "y": [np.float32(0.5), np.uint8(10)],
    }
    q = np.array([[[[2, 4, 1, 2]]]])  # less the zero point: 0, 2, -1, 0
    # sums 0+4, 2-2, -1+0, and 8: 12, 8, 7; times 0.5 * 0.25 / 0.5 = 0.25: 3, 2, 1.75; and 10
    assert net.in_integers(q, layer).tolist() == [[[[13, 12, 12]]]]
    layer["b"] = [np.array([-400], np.int32)]
    assert net.in_integers(q, layer).max() == 0
    layer["b"] = [np.array([4000], np.int32)]
    assert net.in_integers(q, layer).min() == 255


def answering(row: int) -> onnx.ModelProto:
    """A model whose largest output is the pixel of the first row with the largest value."""
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["x", "from", "to", "axes"], ["s"]),
            helper.make_node("Flatten", ["s"], ["y"]),
        ],
        "answers",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 1, 28, 28])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.array([row, 0]), "from"),
            numpy_helper.from_array(np.array([row + 1, 10]), "to"),
            numpy_helper.from_array(np.array([2, 3]), "axes"),
        ],
    )
    return helper.make_model(graph, opset_imports=[SMALL], ir_version=10)


def test_accuracy_counts_the_digits_that_are_right():
    x = torch.zeros(250, 1, 28, 28)
    y = torch.arange(250) % 10
    x[torch.arange(250), 0, 0, y] = 1.0
    data = answering(0).SerializeToString()
    assert net.guesses(data, x).tolist() == y.tolist()
    assert net.accuracy(data, (x, y)) == 1.0
    wrong = y.clone()
    wrong[:50] = (wrong[:50] + 1) % 10
    assert net.accuracy(data, (x, wrong)) == 0.8


@pytest.fixture(scope="module")
def depthwise():
    torch.manual_seed(0)
    network = net.DepthwiseNet().eval()
    return network, net.exported(network, net.pictures())


def numbers(model) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_a_graph_with_the_numbers_of_another_network_is_that_network(depthwise):
    network, model = depthwise
    torch.manual_seed(7)
    other = net.DepthwiseNet().eval()
    weights = {name: w.numpy() for name, w in other.state_dict().items()}
    changed = net.refilled(model, weights)
    x = net.pictures()
    assert max(net.differences(other, changed, x)) < 1e-6
    assert max(net.differences(network, model, x)) < 1e-6
    assert min(net.differences(network, changed, x)) > 1e-3
    assert [t.name for t in changed.graph.initializer] == list(numbers(model))


def test_the_numbers_of_a_model_are_copies(depthwise):
    _, model = depthwise
    found = net.numbers_of(model)
    for name, values in numbers(model).items():
        np.testing.assert_array_equal(found[name], values)
    found["conv.bias"] += 1
    assert (numbers(model)["conv.bias"] != found["conv.bias"]).all()


def test_a_factor_changes_the_numbers_and_not_the_function(depthwise):
    network, model = depthwise
    changed = net.rescaled(model, 64)
    before, after = numbers(model), numbers(changed)
    for name, times in (("conv.weight", 1 / 64), ("conv.bias", 1 / 64), ("depthwise.weight", 64)):
        np.testing.assert_array_equal(after[name][0], before[name][0] * np.float32(times))
        np.testing.assert_array_equal(after[name][1:], before[name][1:])
    same = set(before) - {"conv.weight", "conv.bias", "depthwise.weight"}
    assert all((before[name] == after[name]).all() for name in same)
    assert max(net.differences(network, changed, net.pictures())) < 1e-6
    assert (numbers(model)["conv.bias"] == network.conv.bias.detach().numpy()).all()


def test_equalised_filters_are_equally_wide(depthwise):
    network, model = depthwise
    mended = net.equalised(net.rescaled(model, 1024))
    assert max(net.differences(network, mended, net.pictures())) < 1e-6
    first = abs(numbers(mended)["conv.weight"]).max((1, 2, 3))
    second = abs(numbers(mended)["depthwise.weight"]).max((1, 2, 3))
    np.testing.assert_allclose(first, second, rtol=1e-5)
    plain = numbers(net.equalised(model))
    for name, values in numbers(mended).items():
        np.testing.assert_allclose(values, plain[name], rtol=1e-5)


def test_levels_are_the_integers_of_the_depthwise_filters(depthwise, tmp_path):
    network, _ = depthwise
    torch.manual_seed(0)
    model = net.exported(network, torch.zeros(100, 1, 28, 28))
    data = net.quantised(net.rescaled(model, 1024), torch.rand(100, 1, 28, 28), tmp_path)
    found = net.levels(onnx.load_from_string(data))
    assert found.shape == (16, 9) and (abs(found).max(1) == 127).all()
    data = net.quantised(
        net.rescaled(model, 1024), torch.rand(100, 1, 28, 28), tmp_path, per_channel=False
    )
    found = net.levels(onnx.load_from_string(data))
    assert abs(found[0]).max() == 127 and abs(found[1:]).max() <= 1


def test_training_learns_two_kinds_of_pictures():
    torch.manual_seed(0)
    y = torch.arange(500) % 2
    x = torch.rand(500, 1, 28, 28) * 0.2
    x[y == 1, :, 10:18] += 0.8
    data = net.images.Data((x, y), (x, y), (x, y), ("0", "1"))
    network = net.train(data, epochs=2)
    assert not network.training and net.training.evaluate(network, data.test) > 0.95


def test_nothing_asks_another_host(model_of_two, zoo, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    _, model = model_of_two
    data = net.quantised(model, torch.rand(100, 1, 6, 6), tmp_path)
    net.session(data)
    net.load(zoo, "LeNet")
    linear = net.exported(torch.nn.Linear(2, 3), torch.ones(1, 2))
    net.ReferenceEvaluator(linear)
