"""Loops that count, the counters by modules and operators, and the differences between libraries,
of notebooks/flops_params.py.
"""

import subprocess
import sys
from collections import Counter
from importlib.metadata import version

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from loader import NOTEBOOKS, ROOT, definitions
from networks import close, parameters_of

net = definitions("flops_params")
aten = torch.ops.aten


@pytest.fixture(scope="module")
def cases():
    return net.small_cases()


@pytest.fixture(scope="module")
def on_both():
    """Of each network that the CPU runs fused: our records on the CPU and on the meta device."""
    names = ("BERT-base", "LSTM", "U-Net")
    return {
        name: (
            net.run_operators(*net.ready(name, "cpu")),
            net.run_operators(*net.ready(name)),
        )
        for name in names
    }


# ---- loops that count ----------------------------------------------------------------------------


def test_a_number_notes_each_product_and_each_sum():
    net.Number.done = Counter()
    two, three = net.Number(2), net.Number(3)
    assert (two * three).value == 6
    assert (two + three).value == 5
    assert net.multiply_add(net.Number(1), two, three).value == 7
    assert net.Number.done == {"products": 2, "sums": 2, "macs": 1}
    assert isinstance(net.Number(2).value, float)


def test_numbers_and_values_are_each_others_way_back():
    x = torch.arange(12.0).view(2, 3, 2)
    assert net.values(net.numbers(x)) == x.tolist()


def test_each_run_counts_from_zero():
    x = torch.ones(1, 2)
    weight, bias = torch.ones(1, 2), torch.ones(1)
    for _ in range(2):
        y, done = net.by_hand(net.linear_loops, x, weight, bias)
        assert y.tolist() == [[3.0]]
        assert done == {"products": 2, "sums": 2, "macs": 2}


# By the formulas of the chapter, with the sizes of small_cases: MACs, products, sums.
TOOK = {
    "linear, 4 rows": (4 * 3 * 5, 4 * 3 * 5, 4 * 3 * 5),
    "grouped convolution": (3 * 3 * 9 * 4 * 6 // 2,) * 3,
    "transposed convolution": (4 * 4 * 4 * 3 * 2,) * 3,
    "batch norm": (0, 48, 48),
    "attention, one call": (2 * 16 * 3, 2 * 16 * 3 + 2 * 16, 2 * 16 * 3 + 16),
    "attention, written out": (2 * 16 * 3, 2 * 16 * 3 + 2 * 16, 2 * 16 * 3 + 16),
    "layer used by its parent": (36, 36, 36),
    "layer used twice": (72, 72, 72),
    "LSTM": (4 * 4 * 4 * 7, 4 * (4 * 4 * 7 + 3 * 4), 4 * (4 * 4 * 7 + 4 * 4 + 4)),
    "embedding": (0, 0, 0),
    "matrix times vector": (16, 16, 16),
}


@pytest.mark.parametrize("name", TOOK)
def test_loops_give_what_the_small_network_gives(cases, name):
    network, x, y, _ = cases[name]
    with torch.no_grad():
        found = network(x)
    found = found[0] if isinstance(found, tuple) else found
    assert found.numel() == y.numel()
    close(y.view(found.shape), found)


@pytest.mark.parametrize("name", TOOK)
def test_small_networks_take_what_the_formulas_say(cases, name):
    done = cases[name].done
    assert (done["macs"], done["products"], done["sums"]) == TOOK[name]


def test_loops_of_other_sizes_give_what_torch_gives():
    torch.manual_seed(1)
    x = torch.randn(6, 7, 7)
    weight, bias = torch.randn(9, 2, 2, 2), torch.randn(9)
    y, done = net.by_hand(net.conv_loops, x, weight, bias, groups=3)
    close(y, F.conv2d(x[None], weight, bias, groups=3)[0])
    assert done["macs"] == 6 * 6 * weight.numel()
    weight, bias = torch.randn(6, 2, 3, 3), torch.randn(2)
    y, done = net.by_hand(net.transposed_loops, x, weight, bias, stride=3)
    close(y, F.conv_transpose2d(x[None], weight, bias, stride=3)[0])
    assert done["macs"] == 7 * 7 * weight.numel()
    one = torch.randn(1, 2, 2)
    y, _ = net.by_hand(net.transposed_loops, one, torch.ones(1, 1, 1, 1), torch.zeros(1), stride=1)
    close(y, one)
    y, _ = net.by_hand(net.conv_loops, one, torch.ones(1, 1, 1, 1), torch.zeros(1), groups=1)
    close(y, one)
    row = torch.randn(1, 5)  # attends to itself alone
    close(net.by_hand(net.attention_loops, row)[0], row)
    q = torch.randn(3, 5)
    y, _ = net.by_hand(net.attention_loops, q)
    close(y, F.scaled_dot_product_attention(q[None], q[None], q[None])[0])
    x, weight = torch.randn(4), torch.randn(3, 4)
    close(net.by_hand(net.vector_loops, x, weight)[0], weight @ x)


@pytest.mark.parametrize(
    ("kind", "loops", "gates"), [("LSTM", "lstm_loops", 4), ("GRU", "gru_loops", 3)]
)
def test_recurrent_loops_are_those_of_torch(kind, loops, gates):
    torch.manual_seed(2)
    layer = getattr(nn, kind)(5, 3, batch_first=True)
    x = torch.randn(1, 6, 5)
    y, done = net.by_hand(getattr(net, loops), x[0], *layer.parameters())
    close(y, layer(x)[0][0].detach())
    assert done["macs"] == 6 * gates * 3 * (5 + 3)
    assert parameters_of(layer) == gates * 3 * (5 + 3 + 2)


# ---- counters ------------------------------------------------------------------------------------


LAYERS = {
    "linear": (nn.Linear(5, 7), (3, 2, 5), 3 * 2 * 5 * 7),
    "without bias": (nn.Linear(5, 7, bias=False), (3, 2, 5), 3 * 2 * 5 * 7),
    "one row": (nn.Linear(5, 7), (5,), 35),
    "convolution": (nn.Conv2d(4, 6, 3, 2, 1, groups=2), (2, 4, 9, 8), 2 * 5 * 4 * 9 * 2 * 6),
    "dilated": (nn.Conv1d(4, 6, 3, dilation=2), (2, 4, 9), 2 * 5 * 3 * 4 * 6),
    "in three": (nn.Conv3d(1, 2, 2), (1, 1, 3, 4, 5), 2 * 3 * 4 * 8 * 2),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (2, 4, 5, 3), 2 * 15 * 9 * 4 * 3),
    "GRU": (nn.GRU(3, 4, 2, batch_first=True), (2, 5, 3), 2 * 5 * 12 * (3 + 4 + 4 + 4)),
    "LSTM": (nn.LSTM(3, 4, bidirectional=True), (5, 2, 3), 2 * 5 * 16 * (3 + 4) * 2),
    "RNN": (nn.RNN(3, 4), (5, 2, 3), 2 * 5 * 4 * (3 + 4)),
    "norm": (nn.BatchNorm2d(4), (2, 4, 3, 3), 0),
    "activation": (nn.GELU(), (2, 4), 0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_both_counters_count_a_layer_as_its_formula_says(name):
    layer, shape, macs = LAYERS[name]
    x = torch.randn(shape)
    assert net.count_hooks(layer, x) == macs
    assert net.count_operators(layer, x) == macs


def test_hooks_are_gone_after_counting():
    layer = nn.Linear(2, 2)
    net.count_hooks(layer, torch.ones(1, 2))
    net.torchinfo_parts(layer, torch.ones(1, 2))
    assert not layer._forward_hooks


def test_operators_count_products_of_matrices_however_they_are_called():
    a, b, c = torch.randn(2, 3, 4), torch.randn(2, 4, 5), torch.randn(2, 3, 5)
    with net.Operators() as seen:
        torch.bmm(a, b)
        torch.baddbmm(c, a, b)
        torch.mm(a[0], b[0])
        torch.addmm(c[0], a[0], b[0])
        torch.mv(a[0], b[0, :, 0])
        torch.einsum("bij,bjk->bik", a, b)
    assert seen.macs[aten.baddbmm] == 2 * 60
    assert seen.macs[aten.bmm] == 2 * 120
    assert seen.macs[aten.mm] == seen.macs[aten.addmm] == 60
    assert seen.macs[aten.mv] == 12
    assert seen.macs.total() == 120 + 240 + 120 + 12


def test_fused_attention_counts_queries_keys_and_values_of_different_sizes():
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)
    for where in ("cpu", "meta"):
        with net.Operators() as seen:
            F.scaled_dot_product_attention(q.to(where), k.to(where), k.to(where))
        assert seen.macs.total() == 2 * 3 * 5 * 7 * (8 + 8)
    v = torch.empty(2, 3, 7, 4)
    assert net.attention((q, k, v), None) == 2 * 3 * 5 * 7 * (8 + 4)


def test_attention_in_one_operator_counts_what_its_parts_do():
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()

    class Self(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x, x, x, need_weights=False)[0]

    x = torch.randn(3, 5, 8)
    seen = net.run_operators(Self().eval(), x)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        apart = net.run_operators(Self().eval(), x)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    formula = 3 * (4 * 5 * 8 * 8 + 2 * 5 * 5 * 8)
    assert seen.macs == {aten._native_multi_head_attention: formula}
    assert apart.macs.total() == formula


def test_bytes_are_those_of_inputs_and_outputs_and_views_move_none():
    a, b = torch.empty(4, 6), torch.empty(6, 2)
    with net.Operators() as seen:
        a @ b
    assert seen.moved == 4 * (24 + 12 + 8)
    with net.Operators() as seen:
        a.t().reshape(3, 8)[:2].view(-1)
    assert seen.moved == 2 * 4 * 24  # reshape copies, the others look
    with net.Operators() as seen:
        torch.cat((a.half(), a.half()))
    assert seen.moved == 2 * (4 + 2) * 24 + 2 * 2 * 2 * 24
    table = nn.Embedding(100, 5)
    with torch.no_grad(), net.Operators() as seen:
        table(torch.tensor([3, 4]))
    assert seen.moved == 2 * 8 + 4 * 10  # places and rows, not the table


def test_intensity_of_matrices_is_a_sixth_of_their_side():
    assert net.product_intensity(30) == 5
    assert net.intensity(10, 4) == 5


as_read = pytest.mark.skipif(
    any(not version(name).startswith(read) for name, read in net.READ.items()),
    reason="the rules of another version of a library",
)

# What each library says of the small networks, worked out from its rules.
SAID = {  # torch, torchinfo, fvcore
    "linear, 4 rows": (60, 20, 60),
    "grouped convolution": (972, 972 + 9 * 6, 972),
    "transposed convolution": (384, 64 * 26, 384),
    "batch norm": (0, 6, 2 * 48),
    "attention, written out": (96, 0, 96),
    "layer used by its parent": (36, 0, 36),
    "layer used twice": (72, 2 * 12, 72),
    "embedding": (0, 21, 0),
}


@as_read
@pytest.mark.parametrize("name", SAID)
def test_libraries_say_what_their_rules_give(cases, name):
    found = net.small_counts(cases[name])
    assert (found["torch"], found["torchinfo"], found["fvcore"]) == SAID[name]
    assert found["operators"] == found["by hand"] == TOOK[name][0]


@as_read
def test_a_counter_that_fails_is_an_error_in_the_table(cases):
    assert net.small_counts(cases["matrix times vector"])["fvcore"] == "error"


def test_torch_is_asked_for_half_of_its_flops():
    layer = nn.Linear(3, 5)
    with FlopCounterMode(display=False) as counter:
        layer(torch.ones(2, 3))
    assert counter.get_total_flops() == 60 == 2 * net.count_torch(layer, torch.ones(2, 3))


def test_fvcore_says_nothing_in_the_log(caplog, capfd):
    net.count_fvcore(net.Fused(), torch.ones(1, 2, 3))
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


NETWORKS = [
    "LeNet-5",
    "AlexNet",
    "ResNet-50",
    "MobileNetV2",
    "ConvNeXt-T",
    "ViT-B/16",
    "Swin-T",
    "BERT-base",
    "LSTM",
    "U-Net",
]

# ---- networks ------------------------------------------------------------------------------------


# MACs and parameters: torchvision's own for its networks, else what the book counts.
OWN = {
    "LeNet-5": (416_520, 61_706),
    "BERT-base": (11_174_215_680, 109_482_240),
    "LSTM": (281_280_512, 11_368_208),
    "U-Net": (1_587_445_760, 6_472_195),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_our_count_is_that_of_the_book(name):
    network, x = net.ready(name)
    assert x.shape == (1, *net.NETWORKS[name][1])
    seen = net.run_operators(network, x).macs.total()
    assert seen == net.counting.macs(network, x)
    assert not network.training
    if name in OWN:
        assert (seen, parameters_of(network)) == OWN[name]
    else:
        published = net.WEIGHTS[name].meta
        assert round(seen / 1e9, 3) == published["_ops"]
        assert parameters_of(network) == published["num_params"]


def test_names_and_choices_of_the_page():
    assert list(net.NETWORKS) == NETWORKS
    assert net.key("ViT-B/16") == "ViT-B-16"
    assert set(net.BATCHED) < set(NETWORKS)
    assert (net.LARGER, net.POOLER) == (16, 589_824)
    fused = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    for kind in fused:
        assert net.FORMULAS[getattr(aten, f"_scaled_dot_product_{kind}")] is net.attention


def test_a_network_on_the_cpu_holds_zeros_and_as_many_inputs_as_asked():
    network, x = net.ready("MobileNetV2", "cpu", B=3)
    assert x.shape == (3, 3, 224, 224)
    tensors = (*network.parameters(), *network.buffers(), x)
    assert all(t.device.type == "cpu" and not t.any() for t in tensors)
    words, x = net.ready("LSTM", "cpu", B=2)
    assert x.dtype == torch.long
    assert words(x[:, :3]).shape == (2, 3, 10_000)


def test_own_networks_have_the_shapes_they_promise():
    assert net.LeNet()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    denoiser, x = net.ready("U-Net")
    assert denoiser(x).shape == x.shape
    bert, x = net.ready("BERT-base")
    assert bert(x).shape == (1, 128, 768)


# ---- differences ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BERT-base", "LSTM", "U-Net"])
def test_ours_is_the_same_on_both_devices_and_torch_lacks_what_is_named(on_both, name):
    seen, flat = on_both[name]
    assert seen.macs.total() == flat.macs.total()
    network, x = net.ready(name, "cpu")
    assert net.count_torch(network, x) == seen.macs.total() - net.torch_missed(seen)
    assert net.torch_missed(seen) > 0 == net.torch_missed(flat)


def test_what_a_trace_has_no_formula_for_is_attention_and_the_lstm(on_both):
    assert net.hidden(*on_both["BERT-base"]) == 12 * 2 * 128 * 128 * 768
    assert net.hidden(*on_both["LSTM"]) == 32 * 2048 * (256 + 512 + 512 + 512)
    assert net.hidden(*on_both["U-Net"]) == 2 * 128 * (5 * 256**2 + 64**2)


@as_read
@pytest.mark.parametrize("name", ["LeNet-5", "AlexNet", "U-Net", "LSTM", "Swin-T"])
def test_the_parts_of_torchinfo_lead_to_its_count(name):
    network, x = net.ready(name)
    parts = net.torchinfo_parts(network, x)
    hooks = net.count_hooks(network, x)
    assert parts["seen"] == hooks
    assert net.count_torchinfo(network, x) == hooks - parts["dropped"] + parts["added"]


def test_the_parts_of_torchinfo_on_layers_known_by_hand(cases):
    def parts(name):
        found = net.torchinfo_parts(cases[name].network, cases[name].x)
        return found["added"], found["dropped"]

    assert parts("linear, 4 rows") == (5, 3 * 15)
    assert parts("grouped convolution") == (9 * 6, 0)
    assert parts("transposed convolution") == (64 * 26 - 384, 0)
    assert parts("batch norm") == (6, 0)
    assert parts("LSTM") == (4 * 32, 0)
    assert parts("embedding") == (21, 0)
    assert parts("layer used by its parent") == (0, 0)


@as_read
def test_what_fvcore_counts_beyond_macs_is_named():
    class Others(nn.Module):
        def __init__(self):
            super().__init__()
            norms = (nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(6))
            self.layers = nn.Sequential(
                *norms, nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(3)
            )

        def forward(self, x):
            return self.layers(x)

    x = torch.randn(1, 4, 6, 6)
    report = net.analyse(Others().eval(), x).by_operator()
    assert {kind for kind, n in report.items() if n} == set(net.NOT_MACS)
    assert sum(report.values()) == 144 * (2 + 5 + 5 + 4 + 4)


@as_read
def test_a_trace_keeps_what_the_output_needs():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 5), nn.Linear(3, 7)

        def forward(self, x):
            self.unused(x)
            return self.used(x)

    x = torch.ones(2, 3)
    assert net.count_fvcore(Unused(), x) == 2 * 3 * 5
    assert net.count_torch(Unused(), x) == 2 * 3 * (5 + 7)


# ---- bytes and times -----------------------------------------------------------------------------


def test_bytes_of_a_state_are_four_a_number_and_eight_a_counter():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert net.state_bytes(network) == {
        "parameters": 4 * (16 + 8),
        "buffers, float32": 4 * 8,
        "buffers, int64": 8,
    }


def test_the_size_of_a_file_is_that_on_disk(tmp_path):
    state = nn.Linear(30, 40).state_dict()
    torch.save(state, tmp_path / "file")
    size = (tmp_path / "file").stat().st_size
    assert abs(net.saved_bytes(state) - size) < 400  # the name of the file is in it
    assert net.saved_bytes(state) > 4 * 40 * 31


def test_tied_weights_are_one_tensor():
    tied = net.Tied(10, 4)
    assert parameters_of(tied) == 40
    assert tied.guess.weight is tied.words.weight
    assert tied(torch.tensor([[1, 2, 3]])).shape == (1, 3, 10)


def test_seconds_are_those_of_the_shortest_run(monkeypatch):
    ticks = iter([0, 9, 10, 15, 20, 23, 30, 37])
    monkeypatch.setattr(net.time, "perf_counter", lambda: next(ticks))
    runs = []

    def work():
        runs.append(1)
        return torch.ones(2, 3)

    assert net.seconds(work) == 3
    assert len(runs) == 4


def test_peak_and_bandwidth_are_operations_and_bytes_a_second(monkeypatch):
    def half(work, *_):
        work()
        return 0.5

    monkeypatch.setitem(net.peak.__globals__, "seconds", half)
    assert net.peak.__defaults__ == (1024,)
    assert net.bandwidth.__defaults__ == (2**24,)
    assert net.peak(8) == 2 * 8**3 / 0.5
    assert net.bandwidth(100) == 2 * 400 / 0.5
    monkeypatch.setitem(net.peak.__globals__, "seconds", lambda work, *_: work().numel() / 512)
    assert net.peak(64) == 2 * 64**3 / 8  # a product of 64 x 64 numbers is what runs


def test_a_network_is_timed_once_without_gradients(monkeypatch):
    monkeypatch.setitem(net.peak.__globals__, "seconds", lambda work, n: (work(), n))
    network, x = net.ready("LeNet-5", "cpu", B=3)
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    y, repeats = net.running(network, x)
    assert (y.shape, y.requires_grad, repeats, len(calls)) == ((3, 10), False, 1, 1)


def test_a_claim_about_a_library_is_one_about_the_version_that_was_read(monkeypatch):
    claimed = []
    monkeypatch.setitem(net.said.__globals__, "claim", lambda *what: claimed.append(what))
    monkeypatch.setattr(
        net.metadata, "version", lambda name: {"torch": "2.14.1+cpu"}.get(name, "9")
    )
    net.said("torch", True, "words")
    net.said("torchinfo", False, "words")
    assert claimed == [(True, "torch: words")]
    assert set(net.READ) == {"torch", "torchinfo", "fvcore"}


def test_the_two_convolutions_have_equal_macs():
    found = []
    for layer in net.LAYERS.values():
        x = torch.zeros(1, layer.in_channels, 8, 8)
        assert layer(x).shape == x.shape
        found.append(net.count_operators(layer, x))
    assert found == [64 * 9 * 256] * 2


# ---- exercises -----------------------------------------------------------------------------------


def test_formulas_for_torch_count_as_ours(cases):
    for name in ("attention, one call", "LSTM"):
        network, x, _, done = cases[name]
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=net.KNOWN) as counter:
            network(x)
        assert counter.get_total_flops() == 2 * done["macs"]
    assert net.attention_flops((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4)) == 2 * 30 * 7 * 12
    assert net.lstm_flops((6, 2, 3), (16, 3), (16, 4)) == 2 * 12 * 16 * 7


@pytest.mark.slow
def test_nothing_asks_another_host():
    """Imports and a count of each library, where opening a connection is an error."""
    code = (
        "import socket\n"
        "def refuse(*_): raise SystemExit('asked a host')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from loader import definitions\n"
        "net = definitions('flops_params')\n"
        "case = net.small_cases()['linear, 4 rows']\n"
        "assert net.small_counts(case)['fvcore'] == 60\n"
    )
    path = f"{ROOT / 'tests'}:{NOTEBOOKS}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "")
