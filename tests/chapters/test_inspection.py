"""The readers, recorders and tools of notebooks/inspection.py."""

import io
import json
import struct
import time
from collections import namedtuple

import onnx
import pytest
import torch
import torchinfo
from onnx import helper
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import nn

import networks
from loader import definitions

net = definitions("inspection")


@pytest.fixture
def sample():
    torch.manual_seed(0)
    return net.Sample().eval(), torch.rand(2, 1, 12, 16)


# ---- the network ---------------------------------------------------------------------------------


def test_the_network_is_what_its_parts_say(sample):
    network, x = sample
    y = network.act(network.norm(network.stem(x - 0.5)))
    first, second = network.block.first, network.block.second
    y = (y + second(torch.relu(first(y)))).mean((2, 3))
    networks.close(network(x), network.head(y) + network.side(y))
    assert {n: networks.parameters_of(m) for n, m in network.named_children()} == {
        "stem": 80,
        "norm": 16,
        "act": 0,
        "block": 1152,
        "side": 90,
        "head": 90,
        "spare": 90,
    }
    assert network.centre.item() == 0.5


def test_no_gradient_passes_through_the_side(sample):
    network, x = sample
    nn.init.zeros_(network.head.weight)
    network(x).sum().backward()
    assert not network.stem.weight.grad.any() and network.side.weight.grad.any()
    assert network.spare.weight.grad is None


# ---- hooks ---------------------------------------------------------------------------------------


def test_calls_are_those_of_torchinfo_on_another_network():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.late = nn.Conv2d(3, 4, 3)
            self.early = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(2), nn.Unflatten(2, (6, 7)))

        def forward(self, x):
            return self.late(self.early(x))

    network, x = Odd(), torch.rand(2, 1, 6, 7)
    found = net.calls(network, x)
    assert [c.name for c in found] == ["early.0", "early.1", "early.2", "late"]
    assert found[-1] == net.Called("late", "Conv2d", (2, 4, 4, 5), 112)
    told = torchinfo.summary(network, input_data=x, verbose=0).summary_list
    assert [(c.kind, c.shape, c.parameters) for c in found] == [
        (i.class_name, tuple(i.output_size), i.num_params) for i in told if i.is_leaf_layer
    ]
    assert all(not m._forward_hooks for m in network.modules())


def test_the_summary_goes_four_levels_down_and_keeps_the_mode(sample, capsys):
    network, x = sample
    deep = nn.Sequential(nn.ReLU())
    for _ in range(6):
        deep = nn.Sequential(deep)
    assert str(net.summary(deep, x)).count(": 4-") == 1
    assert ": 5-" not in str(net.summary(deep, x))
    assert "(stem)" in str(net.summary(network, x)) and not network.training
    assert "[2, 8, 12, 16]" in str(net.summary(network, x))
    assert capsys.readouterr().out == ""


# ---- the stand-in --------------------------------------------------------------------------------


def test_a_stand_in_records_functions_methods_modules_and_what_they_read():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Linear(2, 2)

        def forward(self, x):
            y = torch.relu(self.part(x)) - x
            return torch.matmul(y + 1, x).flatten(1)

    assert net.recorded(Small()) == [
        net.Step("placeholder", "x"),
        net.Step("call_module", "part", (0,)),
        net.Step("call_function", "relu", (1,)),
        net.Step("call_function", "sub", (2, 0)),
        net.Step("call_function", "add", (3,)),
        net.Step("call_function", "matmul", (4, 0)),
        net.Step("call_method", "flatten", (5,)),
    ]
    graph = net.fx.symbolic_trace(Small()).graph
    assert net.fx_steps(graph) == [s[:2] for s in net.recorded(Small())]


def test_fx_steps_leave_out_buffers_and_the_output(sample):
    graph = net.fx.symbolic_trace(sample[0]).graph
    found = net.fx_steps(graph)
    assert len(found) == len(list(graph.nodes)) - 2
    assert found == [s[:2] for s in net.recorded(sample[0])]


def test_a_function_that_has_a_stand_in_behind_other_arguments_is_recorded():
    x = net.StandIn([], "placeholder", "x")
    y = torch.add(torch.ones(1), x)
    assert y.steps[1] == net.Step("call_function", "add", (0,)) and y.number == 1


def test_an_if_is_refused_and_modules_are_called_as_before(sample):
    network, x = sample
    net.with_if(network)
    with pytest.raises((TypeError, RuntimeError), match="if|bool|supported"):
        network.scores(net.StandIn([], "placeholder", "x"))
    with pytest.raises(TypeError, match="no value"):
        bool(net.StandIn([], "placeholder", "x"))
    assert network(x).shape == (2, 10)


# ---- the way back --------------------------------------------------------------------------------


def test_the_walk_back_of_a_hand_worked_case():
    w = torch.ones(1, requires_grad=True)
    v = torch.ones(1, requires_grad=True)
    y = (w * v) + w
    assert net.backward_graph(y, {w: "w", v: "v"}) == [
        net.Step("AccumulateGrad", "w"),
        net.Step("AccumulateGrad", "v"),
        net.Step("MulBackward0", "", (0, 1)),
        net.Step("AddBackward0", "", (2, 0)),
    ]
    z = w.detach() * v + torch.ones(1)
    assert [s.target for s in net.backward_graph(z, {v: "v"})] == ["v", "", ""]


@pytest.mark.parametrize("change", ["without_detach", "without_gradient", "without_sum"])
def test_the_walk_meets_the_parameters_that_get_gradients(change, sample):
    network, x = sample
    getattr(net, change)(network)
    found = {s.target for s in net.backward_graph(network(x), net.named(network))} - {""}
    network(x).sum().backward()
    assert found == {n for n, p in network.named_parameters() if p.grad is not None}


def test_layers_count_from_the_start_and_leaves_stand_above_their_first_reader():
    steps = [net.Step("a", ""), net.Step("b", "", (0,)), net.Step("c", ""), net.Step("d", "")]
    steps.append(net.Step("e", "", (1, 2)))
    steps.append(net.Step("f", "", (4, 2)))
    assert net.layers(steps) == [0, 1, 1, 0, 2, 3]


# ---- ONNX ----------------------------------------------------------------------------------------


def test_the_operators_of_an_onnx_file_and_what_they_read():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Split", ["a"], ["b", "c"], num_outputs=2),
        helper.make_node("Add", ["c", "w"], ["d"]),
        helper.make_node("Mul", ["a", "d"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    ends = [value("x", 1, [2])], [value("y", 1, [1])]
    weights = [helper.make_tensor("w", 1, [1], [1.0])]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends, weights))
    assert net.onnx_steps(model.SerializeToString()) == [
        net.Step("Relu", ""),
        net.Step("Split", "", (0,)),
        net.Step("Add", "", (1,)),
        net.Step("Mul", "", (0, 2)),
    ]


# ---- event files ---------------------------------------------------------------------------------


def test_the_check_of_a_known_text():
    assert net.crc32c(b"123456789") == 0xE3069283  # RFC 3720, appendix B.4 and the CRC catalogue
    assert net.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720
    assert net.masked(0) == 0xA282EAD8
    assert net.masked(0x8000) == 0xA282EAD9


def event_file(values, tags=("loss",)):
    file = io.BytesIO()
    writer = RecordWriter(file)
    writer.write(Event(file_version="brain.Event:2").SerializeToString())
    for step, value in enumerate(values):
        kept = [Summary.Value(tag=tag, simple_value=value) for tag in tags]
        writer.write(Event(step=step, summary=Summary(value=kept)).SerializeToString())
    return file.getvalue()


def test_scalars_of_a_file_that_tensorboards_writer_wrote():
    data = event_file([1.5, -2.0, 0.25], ("a", "b"))
    points = [(0, 1.5), (1, -2.0), (2, 0.25)]
    assert net.scalars(data) == {"a": points, "b": points}
    first, *_ = net.records(data)
    assert Event.FromString(first).file_version == "brain.Event:2"


def test_damage_is_named_with_its_record():
    data = event_file([1.0, 2.0])
    size = [len(r) + 16 for r in net.records(data)]
    cases = {
        size[0] + 2: "head 1 is damaged",
        size[0] + 9: "head 1 is damaged",
        size[0] + 14: "record 1 is damaged",
        size[0] + size[1] - 1: "record 1 is damaged",
        len(data) - 1: "record 2 is damaged",
    }
    for place, words in cases.items():
        wrong = bytearray(data)
        wrong[place] ^= 16
        with pytest.raises(ValueError, match=words):
            [*net.records(bytes(wrong))]


@pytest.mark.parametrize(
    ("more", "words"),
    [(1, "head of record 1"), (11, "head of record 1"), (12, "in record 1"), (-1, "in record 0")],
)
def test_a_file_that_is_cut_says_in_which_record(more, words):
    data = event_file([1.0])
    first = len(next(net.records(data))) + 16
    with pytest.raises(ValueError, match=words):
        [*net.records(data[: first + more])]
    assert len(net.whole_records(data[: first + more])) == (more > 0)
    assert len([*net.records(data[:first])]) == 1
    with pytest.raises(ValueError, match="in record 1"):
        [*net.records(data[:-1])]


def test_both_readers_of_a_damaged_file(tmp_path):
    data = event_file([float(i) for i in range(20)])
    assert net.points(data, tmp_path / "a") == ("20 points", "20 points")
    cut, theirs = net.points(data[: len(data) // 2], tmp_path / "b")
    assert "cut off" in cut and 0 < int(theirs.split()[0]) < 20
    assert net.points(data[:45], tmp_path / "c")[1] == "0 points"


def test_training_writes_each_loss_and_takes_the_batches_in_turn(tmp_path):
    torch.manual_seed(0)
    network = net.Sample()
    part = torch.rand(100, 1, 8, 8), torch.randint(10, (100,))
    seen = []
    network.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    with net.SummaryWriter(tmp_path) as writer:
        losses = net.train(network, part, writer, steps=30)
    curve = net.scalars(next(tmp_path.iterdir()).read_bytes())["loss"]
    assert curve == [(i, pytest.approx(v)) for i, v in enumerate(losses)]
    assert losses[-1] < losses[0]
    for i, expected in enumerate([part[0][:50], part[0][50:], part[0][:50]]):
        assert torch.equal(seen[i], expected)


# ---- servers -------------------------------------------------------------------------------------


def test_the_board_keeps_windows_and_adds_to_them():
    with net.board() as address:
        said = net.asked(f"{address}/events", net.line([0], [3.0]))
        net.asked(f"{address}/events", {**net.line([7], [7.0]), "win": "other"})
        net.asked(f"{address}/update", net.line([1, 2], [2.0, 1.0]))
        window = json.loads(net.asked(f"{address}/win_data", {"win": "loss"}))
        assert said == b"loss" and address.startswith("http://127.0.0.1:")
    assert window["content"]["data"] == [
        {"x": [0, 1, 2], "y": [3.0, 2.0, 1.0], "name": "loss", "type": "scatter", "mode": "lines"}
    ]
    assert window["content"]["layout"] == {}
    assert net.gone(address)


def test_visdoms_own_server_keeps_the_same_windows():
    pytest.importorskip("visdom")
    said = []
    for serve in (net.board, net.visdom_server):
        with serve() as address:
            assert address.startswith("http://127.0.0.1:")
            for step in range(3):
                where = "update" if step else "events"
                message = {**net.line([step], [0.5**step]), "append": True}
                said.append(net.asked(f"{address}/{where}", message))
            window = net.asked(f"{address}/win_data", {"win": "loss", "eid": "main"})
            said.append(json.loads(window)["content"]["data"])
            said.append(json.loads(window)["content"]["layout"])
        assert net.gone(address)
    assert said[:5] == said[5:] and said[3][0]["y"] == [1.0, 0.5, 0.25]


def test_a_curve_is_drawn_point_by_point_and_the_address_told():
    curve, address = net.curve_kept(net.board, [3.0, 2.0, 4.0])
    assert (curve["x"], curve["y"]) == ([0, 1, 2], [3.0, 2.0, 4.0])
    assert net.gone(address)


class Ended:
    """A process that has ended, or one that runs."""

    def __init__(self, code: int | None):
        self.code = code

    def poll(self) -> int | None:
        return self.code


@pytest.mark.parametrize(("code", "seconds"), [(1, 60), (0, 60), (None, 0.2)])
def test_a_server_that_ends_or_is_silent_is_reported(monkeypatch, code, seconds):
    monkeypatch.setitem(net.wait_until_up.__globals__, "asked", silent)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="run `visdom` to see why"):
        net.wait_until_up(Ended(code), "http://127.0.0.1:1", seconds)
    assert time.monotonic() - start < 30


def silent(*_):
    raise ConnectionRefusedError


def test_a_message_has_all_that_the_server_of_visdom_asks_for():
    message = net.line([1], [2.0])
    assert {*message} == {"win", "eid", "data", "layout", "opts"} and message["eid"] == "main"
    assert not message["layout"] and not message["opts"]


def test_netron_serves_a_file_opens_no_browser_and_is_stopped(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    file = tmp_path / "small.onnx"
    file.write_bytes(b"not a network")
    page, data, root = net.from_netron(file)
    assert "<title>Netron</title>" in page and data == b"not a network" and not opened
    assert root.startswith("http://127.0.0.1:") and net.gone(root)


# ---- the GPU -------------------------------------------------------------------------------------


def test_each_tool_for_the_gpu_has_an_answer():
    answers = dict(net.gpu_answers())
    assert len(answers) == 4 and all(answers.values())
    assert answers["torch.cuda.is_available()"] == str(torch.cuda.is_available())
    if not torch.cuda.is_available():
        assert answers["torch.cuda.memory_allocated()"] == "0 bytes"


def test_the_number_of_cards_is_told_where_there_is_a_driver(monkeypatch):
    Run = namedtuple("Run", "stdout stderr")
    said = Run("[0] card | 30 C\n\x1b[1;36m[1]\x1b[m card | 31 C \n", "")
    monkeypatch.setattr(net.subprocess, "run", lambda *_, **__: said)
    for name, value in (("nvmlInit", None), ("nvmlShutdown", None), ("nvmlDeviceGetCount", 2)):
        monkeypatch.setattr(net.pynvml, name, lambda value=value: value)
    answers = dict(net.gpu_answers())
    assert answers["pynvml.nvmlInit()"] == "2 cards" and answers["gpustat"] == "[1] card | 31 C"


# ---- tools and changes ---------------------------------------------------------------------------


KEEP = (
    "as_method",
    "sum_outside",
    "with_constant",
    "without_gradient",
    "without_detach",
    "with_if",
)


@pytest.mark.parametrize("change", KEEP)
def test_changes_that_only_rewrite_leave_the_outputs(change, sample):
    network, x = sample
    before, names = network(x), [type(m).__name__ for m in network.modules()]
    getattr(net, change)(network)
    networks.close(network(x), before, 1e-6)
    assert [type(m).__name__ for m in network.modules()] == names


def test_changes_that_change_the_outputs_do_as_they_say(sample):
    network, x = sample
    y = torch.rand(1, 8, 5, 5)
    first, second = network.block.first, network.block.second
    net.without_sum(network)
    networks.close(network.block(y), second(torch.relu(first(y))))
    network = net.Sample().eval()
    net.other_order(network)
    z = network.norm(network.act(network.stem(x - 0.5)))
    networks.close(network.features(x), network.block(z))
    network = net.Sample()
    net.dilated(network)
    assert network.block(y).shape == y.shape and network.block.first.dilation == (2, 2)
    net.one_module_twice(network)
    assert network.block.second is network.block.first
    torch.manual_seed(0)
    network = net.Sample()
    before = {n: p.clone() for n, p in network.named_parameters()}
    net.other_weights(network)
    changed = [n for n, p in network.named_parameters() if not torch.equal(p, before[n])]
    assert changed == ["block.second.weight"]


def test_without_gradient_stops_at_the_block_and_the_constant_has_no_buffer(sample):
    network, x = sample
    net.without_gradient(network)
    network(x).sum().backward()
    assert network.stem.weight.grad is None and network.block.first.weight.grad is not None
    net.with_constant(network)
    assert [n for n, _ in network.named_buffers() if "norm" not in n] == []


def test_the_if_divides_large_scores(sample):
    network, _ = sample
    x = torch.rand(3, 8)
    expected = network.scores(x + 150), network.scores(x * 2 + 2)
    net.with_if(network)
    networks.close(network.scores(100 * (x + 150)), expected[0])
    networks.close(network.scores(x * 2 + 2), expected[1])
    networks.close(network.scores(x + 60), net.Sample.scores(network, x + 60))


def test_the_function_head_gives_the_same_scores(sample):
    network, x = sample
    before = network(x)
    net.head_as_function(network)
    networks.close(network(x), before)
    assert "head" not in [c.name for c in net.calls(network, x)]


def test_a_tensorboard_graph_has_scopes_order_and_settings(sample):
    network, x = sample
    shown = net.tensorboard_text(network, x)
    scopes = {scope for scope, *_ in shown}
    assert "Sample/Block[block]" in scopes and "Sample/Conv2d[stem]" in scopes
    kinds = [kind for _, kind, *_ in shown]
    assert kinds.count(b"aten::_convolution") == 3 and kinds.count(b"aten::relu") == 2
    (add,) = [s for s in shown if s[0] == "Sample/Block[block]" and s[1] == b"aten::add"]
    reads = [shown[i][1] for i in add[2] if isinstance(i, int)]
    assert b"aten::relu" in reads and b"aten::_convolution" in reads
    assert len(reads) == len(add[2])
    assert shown == net.tensorboard_text(network, x)
    assert all(settings for *_, settings in shown)


def test_an_onnx_text_has_operators_shapes_and_weights(sample):
    network, x = sample
    shown = net.onnx_text(network, x)
    kinds = [s[0] for s in shown if len(s) == 3]
    assert kinds[:3] == ["Sub", "Conv", "Relu"] and kinds.count("Conv") == 3
    (head, *_) = [s for s in shown if isinstance(s, tuple) and s[0] == "head.weight"]
    assert head[3] == network.head.weight.detach().numpy().tobytes()
    nodes = [s for s in shown if isinstance(s, tuple) and s[0] in ("Relu", "Add")]
    assert nodes[0][1] == ["%2"] and nodes[2][1][0] == "%3"
    assert all(str(name).startswith("%") or "weight" in name for name in nodes[2][1])
    exported = net.onnx_file(network, x)
    ours = net.onnx_steps(exported.SerializeToString())
    assert [s.op for s in ours] == [n.op_type for n in exported.graph.node] == kinds
    onnx.checker.check_model(exported)
    assert any("dim_value: 12" in s for s in shown if isinstance(s, str))
    convs = [s for s in shown if isinstance(s, tuple) and s[0] == "Conv"]
    assert "pads" in str(convs[0][2])


def test_a_refusal_is_a_verdict_and_prints_nothing(capfd):
    found = net.seen(net.export_text, net.with_if)
    assert found.startswith("refused: ") and net.verdict("x", found) == "refuses"
    assert net.verdict("a", "a") == "blind" and net.verdict("a", "b") == "shows"
    assert net.verdict(["a"], ["b"]) == "shows"
    assert capfd.readouterr().err == ""


def test_seen_starts_from_its_seed_and_changes_image_or_network():
    def told(network, x):
        return networks.parameters_of(network), tuple(x.shape), x.dtype, x.sum().item()

    plain = net.seen(told, net.unchanged)
    assert plain == net.seen(told, net.unchanged) != net.seen(told, net.unchanged, 1)
    assert plain[:3] == (1518, (4, 1, 16, 16), torch.float32)
    assert net.seen(told, None)[:2] == (1518, (4, 1, 8, 8))
    assert net.seen(told, lambda n: n.double())[2] == torch.float64
    assert net.seen(lambda n, x: n.training, net.unchanged) is False


def test_the_grid_of_the_tools_without_onnx_is_the_one_of_the_page():
    tools = {name: net.TOOLS[name] for name in ("print", "torch.fx", "autograd")}
    facts = ("sum around a branch", "function or method", "torch.no_grad()", "if on the data")
    grid = net.examine(tools, {f: net.CHANGES[f] for f in facts}, 3)
    table = [[grid[fact, tool] for tool in tools] for fact in facts]
    assert table == [
        ["blind", "shows", "shows"],
        ["blind", "shows", "blind"],
        ["blind", "blind", "shows"],
        ["blind", "refuses", "blind"],
    ]


def test_what_is_shown_alone_and_the_smallest_sets():
    words = {"p": "s.s.", "q": "ss..", "r": "...s", "t": "..sx"}
    names = {"s": "shows", ".": "blind", "x": "refuses"}
    grid = {(i, tool): names[w] for tool, row in words.items() for i, w in enumerate(row)}
    assert net.alone(grid, "q") == [1] and net.alone(grid, "p") == []
    assert net.alone(grid, "r") == [3] and net.alone(grid, "t") == []
    assert net.smallest(grid) == [{"q", "t"}]
    assert net.smallest({(0, "p"): "shows", (0, "q"): "refuses"}) == [{"p"}, {"q"}]
    assert net.smallest({(0, "p"): "blind"}) == []


def test_records_of_a_random_file_are_those_of_the_writer():
    torch.manual_seed(0)
    contents = [bytes(torch.randint(256, (n,)).tolist()) for n in (0, 1, 200, 5)]
    file = io.BytesIO()
    for content in contents:
        RecordWriter(file).write(content)
    assert [*net.records(file.getvalue())] == contents
    head = file.getvalue()[:8]
    net.checked(head, struct.pack("<I", net.masked(net.crc32c(head))), "head")


# ---- what the rest leaves open -------------------------------------------------------------------


def test_a_sketch_has_a_row_for_each_layer_and_leads_long_ways_around(monkeypatch):
    drawn = []
    monkeypatch.setattr(net.diagrams, "draw", lambda axes, *rest: drawn.append((axes, *rest)))
    steps = [net.Step("a", ""), net.Step("b", "", (0,)), net.Step("w", "")]
    steps.append(net.Step("d", "", (1, 2, 0)))
    net.sketch(steps, ["a", "bbbb", "w", "d"], gap=0.5)
    ((axes, nodes, straight, ways),) = drawn
    assert axes.get_ylim() == (1.5, 0)
    places = {name: (node.x, node.y) for name, node in nodes.items()}
    assert places["0"] == (2.5, 0.25) and places["3"] == (2.5, 1.25)
    assert places["1"] == (pytest.approx(5 / 3), 0.75)
    assert places["2"] == (pytest.approx(10 / 3), 0.75)
    assert nodes["1"].text == "bbbb" and nodes["1"].width == pytest.approx(0.63)
    assert straight == [("0", "1"), ("1", "3"), ("2", "3")]
    assert ways == [("0", (0.5, 0.25), (0.5, 1.25), "3")]
    net.sketch(steps, ["a", "bbbb", "w", "d"])
    assert drawn[1][0].get_ylim() == (pytest.approx(1.65), 0)
    net.plt.close("all")


def test_the_board_answers_with_the_status_of_success():
    with net.board() as address:
        request = net.urllib.request.Request(
            f"{address}/events", json.dumps(net.line([], [])).encode()
        )
        opener = net.urllib.request.build_opener(net.urllib.request.ProxyHandler({}))
        assert opener.open(request).status == 200


def test_other_weights_are_those_of_their_own_seed(sample):
    network, _ = sample
    net.other_weights(network)
    torch.manual_seed(100)
    expected = nn.Conv2d(8, 8, 3, padding=1, bias=False).weight
    assert torch.equal(network.block.second.weight, expected)


def test_training_uses_adam_at_its_rate(monkeypatch, tmp_path):
    rates = []
    real = torch.optim.Adam

    def adam(parameters, lr):
        rates.append(lr)
        return real(parameters, lr=lr)

    monkeypatch.setattr(net.torch.optim, "Adam", adam)
    part = torch.rand(50, 1, 8, 8), torch.randint(10, (50,))
    with net.SummaryWriter(tmp_path) as writer:
        assert len(net.train(net.Sample(), part, writer, steps=2)) == 2
    assert rates == [0.02]


def test_the_text_of_an_export_has_operators_and_names(sample):
    text = net.export_text(*sample)
    assert "aten.relu" in text and "block.first.weight" in text
