"""The tracker, the rules of what layers keep, optimisers in fewer bytes, and checkpoints,
of notebooks/memory.py.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from loader import definitions
from networks import close, parameters_of

net = definitions("memory")
NAMES = ("MLP", "LeNet", "residual", "transformer", "transformer, written out")


# ---- the tracker ---------------------------------------------------------------------------------


def test_a_storage_counts_from_its_birth_to_its_end():
    with net.Tracker() as tracker:
        x = torch.zeros(10)
        assert (tracker.live, tracker.peak) == (40, 40)
        y = x + 1
        assert tracker.live == 80
        del x
        assert tracker.live == 40
        z = y.view(2, 5)[0]
        del y
        assert tracker.live == 40  # the row keeps it
        del z
        assert (tracker.live, tracker.peak) == (0, 80)


def test_views_and_changes_in_place_make_no_bytes():
    with net.Tracker() as tracker:
        x = torch.ones(4, dtype=torch.float64)
        x += 1
        views = [x.view(2, 2), x[1:], x.detach(), x.expand(3, 4)]
        assert (tracker.live, len(views)) == (32, 4)


def test_what_was_made_before_is_not_counted():
    before = torch.ones(100)
    with net.Tracker() as tracker:
        view = before[10:]
        before.add_(1)
        assert tracker.live == 0
        total = view.sum()
        assert tracker.live == total.nbytes


def test_a_tensor_made_of_numbers_is_counted():
    with net.Tracker() as tracker:
        x = torch.tensor([1.0, 2.0, 3.0])
        assert tracker.live == x.nbytes == 12


def test_the_history_has_the_bytes_after_each_operator():
    with net.Tracker() as tracker:
        x = torch.zeros(2)
        y = x.exp()
        x.neg_()
    assert tracker.history == [8, 16, 16]
    assert y.shape == x.shape


def test_storages_finds_tensors_within_lists():
    x = torch.zeros(3)
    found = net.storages([x, {"a": (x[1:], 2)}, None])
    assert [storage.nbytes() for storage in found] == [12, 12]


# ---- what layers keep ----------------------------------------------------------------------------

BY_HAND = {  # layer, shape of its input: bytes
    "linear": (nn.Linear(7, 3), (5, 7), 4 * 35),
    "convolution": (nn.Conv2d(2, 3, 3, padding=1), (3, 2, 5, 4), 4 * 120),
    "relu": (nn.ReLU(), (3, 5), 60),
    "gelu": (nn.GELU(), (3, 5), 60),
    "softmax": (nn.Softmax(-1), (3, 5), 60),
    "dropout": (nn.Dropout(0.3), (3, 5), 60),
    "pool": (nn.MaxPool2d(3), (2, 3, 6, 9), 4 * 324 + 8 * 36),
    "batch norm": (nn.BatchNorm2d(3), (2, 3, 5, 5), 4 * 150 + 8 * 3),
    "layer norm": (nn.LayerNorm(5), (2, 3, 5), 4 * 30 + 8 * 6),
    "layer norm over two": (nn.LayerNorm((3, 5)), (2, 3, 5), 4 * 30 + 8 * 2),
    "flatten": (nn.Flatten(), (2, 3, 4), 0),
    "dropout of nothing": (nn.Dropout(0.0), (3, 5), 0),
    "dropout in evaluation": (nn.Dropout(0.3).eval(), (3, 5), 0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_layer_keeps_what_the_rule_says(name):
    layer, shape, by_hand = BY_HAND[name]
    assert net.layer_saved(layer, shape) == by_hand
    x = torch.rand(shape, requires_grad=True)
    with net.Walk(layer) as walk:
        layer(x)
    assert walk.bytes.total() == by_hand


def test_the_numbers_of_the_table_are_measured():
    for name, (_, layer, shape, by_hand) in net.LAYERS.items():
        assert net.layer_saved(layer, shape) == by_hand, name


def test_attention_keeps_its_four_maps_and_a_number_for_each_row():
    q, k, v = (torch.rand(2, 3, 5, 4, requires_grad=True) for _ in range(3))

    class Attention(nn.Module):
        def forward(self, q):
            return F.scaled_dot_product_attention(q, k, v)

    with net.Walk(nn.Identity()) as walk:
        Attention()(q)
    assert walk.bytes == {"scaled_dot_product_attention": 4 * (4 * 120 + 2 * 3 * 5)}
    assert net.saved(Attention(), q) == walk.bytes.total()


def test_the_loss_keeps_log_probabilities_labels_and_a_sum():
    x = torch.rand(5, 7, requires_grad=True)
    y = torch.tensor([0, 6, 3, 2, 1])
    with net.Walk(nn.Identity()) as walk:
        F.cross_entropy(x, y)
    assert walk.bytes == {"cross_entropy": 4 * 35 + 8 * 5 + 4}
    assert net.saved(nn.Identity(), x, y) == walk.bytes.total()


def test_a_storage_that_two_functions_keep_counts_once():
    network = nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    x = torch.rand(2, 4, requires_grad=True)
    assert net.saved(network, x) == 2 * 32
    with net.Walk(network) as walk:
        network(x)
    assert walk.bytes == {"relu": 64, "linear": 0}


def test_parameters_are_not_activations():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 3))

        def forward(self, x):
            return torch.bmm(self.weight[None], x)

    x = torch.rand(1, 3, 3, requires_grad=True)
    assert net.saved(Square(), x) == 36
    with net.Walk(square := Square()) as walk:
        net.NOTHING.add("__getitem__")
        square(x)
    net.NOTHING.discard("__getitem__")
    assert walk.bytes == {"bmm": 36}


def test_a_function_without_a_rule_is_named():
    x = torch.ones(3)
    wanted = pytest.raises(LookupError, match="cumsum: add a rule to RULES")
    with wanted, net.Walk(nn.Identity()):
        torch.cumsum(x, 0)


def test_functions_that_give_no_tensor_need_no_rule():
    x = torch.ones(3)
    with net.Walk(nn.Identity()) as walk:
        assert x.dim() == 1
    assert walk.bytes.total() == 0


def test_state_has_parameters_and_buffers():
    assert len(net.state(nn.BatchNorm2d(3))) == 2 + 3


# ---- whole networks ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("B", [1, 3])
def test_computed_is_measured(name, B):
    build, batch = net.NETWORKS[name]
    by_rule = net.computed(build, batch, B)
    assert by_rule == net.measured(build, batch, B)
    assert by_rule.activations == net.saved(build(), *batch(B))


def test_the_parts_of_the_mlp_by_hand():
    parameters = 64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10
    kept = 4 * 5 * (64 + 128 + 128 + 10) + 8 * 5 + 4
    expected = (4 * parameters, 4 * parameters, 8 * parameters + 4 * 6, kept)
    assert net.computed(*net.NETWORKS["MLP"], 5) == expected
    assert net.Bytes(*expected).optimiser == expected[2]


def test_buffers_have_no_gradients():
    found = net.computed(*net.NETWORKS["residual"], 1)
    assert found.weights - found.gradients == 3 * (2 * 16 * 4 + 8)


def test_each_input_adds_the_same():
    found = {net.per_input(*net.NETWORKS["LeNet"], B) for B in (1, 4, 9)}
    maps = 28 * 28 + 28 * 28 * 6 + 14 * 14 * 6 * 3 + 10 * 10 * 16 + 400 * 3 + 120 + 84 + 10
    assert found == {4 * maps + 8}


def test_attention_written_out_is_attention():
    q, k, v = (torch.randn(2, 3, 5, 4) for _ in range(3))
    close(net.written_out(q, k, v), net.fused(q, k, v))


def test_attention_written_out_keeps_shares_in_place_of_sums():
    flat = net.expected(*net.NETWORKS["transformer"], 2)
    whole = net.expected(*net.NETWORKS["transformer, written out"], 2)
    blocks, B, h, T = 2, 2, 4, 24
    assert whole.total() - flat.total() == blocks * 4 * B * h * T * (T - 1)


def test_the_networks_have_their_shapes_and_counts():
    assert parameters_of(net.LeNet()) == 61_706
    for name, (build, batch) in net.NETWORKS.items():
        x, y = batch(3)
        assert build()(x).shape == (3, 10), name
        assert y.shape == (3,) and y.min() >= 0 and y.max() < 10
    assert parameters_of(net.digits_mlp()) == 784 * 64 + 64 + 640 + 10
    assert net.digits_mlp()(torch.ones(2, 1, 28, 28)).shape == (2, 10)
    x = torch.randn(2, 3, 8, 8)
    network = net.Residual(8).eval()
    stem = network.stem(x)
    y = torch.relu(stem + network.branch(stem)).mean((2, 3))
    close(network(x), network.classifier(y))
    assert isinstance(network.stem[0][1], nn.BatchNorm2d)
    assert network.stem[0][0].bias is None


def test_lenet_is_the_lenet_of_this_book():
    network = net.LeNet()
    x = torch.randn(3, 1, 28, 28)
    y = F.max_pool2d(F.relu(F.conv2d(x, *network.conv1.parameters(), padding=2)), 2)
    y = F.max_pool2d(F.relu(F.conv2d(y, *network.conv2.parameters())), 2).flatten(1)
    for layer in (network.hidden[0], network.hidden[2]):
        y = F.relu(F.linear(y, layer.weight, layer.bias))
    close(network(x), F.linear(y, *network.classifier.parameters()))


def test_batches_have_all_labels_and_words():
    torch.manual_seed(0)
    x, y = net.pictures(2, 3)(300)
    assert x.shape == (300, 2, 3)
    assert set(y.tolist()) == set(range(10))
    x, y = net.words(300)
    assert x.shape == (300, 24)
    assert set(x.flatten().tolist()) == set(range(100))
    assert set(y.tolist()) == set(range(10))


def test_the_blocks_of_the_transformer_add_to_what_came_in():
    block = net.Block(net.fused).eval()
    x = torch.randn(2, 5, 32)
    for name in ("out", "mlp"):
        last = block.out[0] if name == "out" else block.mlp[3]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    close(block(x), x)
    assert [type(part).__name__ for part in block.mlp][::2] == ["LayerNorm", "GELU", "Dropout"]
    assert block.out[1].p == block.mlp[4].p == 0.1


def test_places_of_words_mix_through_attention_only():
    block = net.Block(net.fused).eval()
    x = torch.randn(1, 5, 32)
    changed = x.clone()
    changed[0, 4] = torch.randn(32)
    assert not torch.allclose(block(x)[0, 0], block(changed)[0, 0])
    nn.init.zeros_(block.out[0].weight)
    close(block(x)[0, 0], block(changed)[0, 0])


# ---- peaks ---------------------------------------------------------------------------------------


def test_the_peak_of_one_layer_by_hand():
    def build():
        return nn.Linear(6, 10)

    # log-probabilities, their gradient; then the gradient of the outputs beside both
    found = net.peak(build, net.pictures(6), 4)
    assert found == net.library_peak(build, net.pictures(6), 4)
    outputs = 4 * 4 * 10
    assert found == 3 * outputs + 4 + 4  # the loss, the sum of the weights


@pytest.mark.parametrize("name", NAMES)
def test_three_trackers_find_one_peak(name):
    build, batch = net.NETWORKS[name]
    found = net.peak(build, batch, 3)
    assert found == net.library_peak(build, batch, 3)
    with net.FakeTensorMode():
        assert net.peak(build, batch, 3) == found


def test_the_allocator_sees_the_same_in_a_network_of_linear_layers(monkeypatch):
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    how = (*net.NETWORKS["MLP"], 4)
    assert net.allocator_peak(*how) >= net.peak(*how)
    assert net.allocator_peak(*how) < 1.2 * net.peak(*how)


def test_a_step_is_traced_in_three_parts():
    history, ends = net.trace(*net.NETWORKS["MLP"], 16)
    assert list(ends) == ["forward", "backward", "optimiser"]
    assert 0 < ends["forward"] < ends["backward"] < ends["optimiser"] == len(history)
    parts = net.computed(*net.NETWORKS["MLP"], 16)
    old = 4 * 16 * 64 + 8 * 16  # the batch of the first step
    assert history[0] == parts.weights + parts.optimiser + old + 4 * 16 * 64
    assert history[ends["backward"] - 1] >= sum(parts[:3])
    kept = parts.weights + parts.optimiser + parts.activations + 4
    outputs = 4 * 16 * 10  # alive until the loss is given back
    assert history[ends["forward"] - 1] == kept + outputs


# ---- optimisers ----------------------------------------------------------------------------------


def test_the_codes_of_a_byte():
    signed = net.dynamic_codes(signed=True)
    unsigned = net.dynamic_codes(signed=False)
    for codes in (signed, unsigned):
        assert len(codes.unique()) == 256
        assert (codes.diff() > 0).all()
        assert codes[-1] == 1 and 0 in codes
    close(signed[128], torch.tensor(0.55e-6))
    assert signed[127] == 0
    close(-signed[:127].flip(0), signed[128:255])
    close(signed[254], torch.tensor(1 - 0.9 / 128))
    close(unsigned[1:3], torch.tensor([0.325e-6, 0.775e-6]))
    close(unsigned[254], torch.tensor(1 - 0.9 / 256))
    close(signed[129:131], torch.tensor([0.325e-5, 0.775e-5]))
    assert net.SIGNED.equal(signed) and net.UNSIGNED.equal(unsigned)


def test_values_of_the_codes_come_back_exactly():
    for codes in (net.SIGNED, net.UNSIGNED):
        x = 4 * codes.view(16, 16)
        store = net.EightBit(x, codes)
        store.write(x)
        assert store.read().equal(x)
        assert store.bytes.dtype == torch.uint8
        assert store.bytes.tolist() == list(range(256))


def test_a_round_trip_is_off_by_half_a_step_at_most():
    torch.manual_seed(0)
    x = torch.randn(50, 101)
    store = net.EightBit(x, net.SIGNED)
    assert store.read().equal(torch.zeros(50, 101))
    store.write(x)
    assert len(store.scale) == math.ceil(5050 / 2048) == 3
    off = (store.read() - x).abs().max() / store.scale.max()
    assert 0.001 < off <= net.SIGNED.diff().max() / 2 + 1e-6


def test_each_block_has_a_scale_of_its_own():
    x = torch.cat([torch.full((2048,), 1e-9), torch.full((2048,), 1e9), torch.tensor([-3.0])])
    store = net.EightBit(x, net.SIGNED)
    store.write(x)
    close(store.scale, torch.tensor([1e-9, 1e9, 3.0]))
    close(store.read()[:2048], x[:2048])
    close(store.read()[-1:], torch.tensor([-3.0]), 0.01)


def test_a_store_holds_a_byte_for_each_number():
    x = torch.zeros(2049)
    store = net.EightBit(x, net.SIGNED)
    assert (store.bytes.nbytes, store.scale.nbytes) == (2049, 8)
    assert store.bytes.untyped_storage().nbytes() == 2049


def steps_of(make, number=6):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 3))
    optimizer = make(network.parameters())
    x = torch.randn(32, 20)
    for _ in range(number):
        optimizer.zero_grad()
        network(x).square().sum().backward()
        optimizer.step()
    return [p.detach() for p in network.parameters()]


def test_adam_with_whole_moments_is_torch_s():
    ours = steps_of(lambda p: net.Adam(p, net.Whole, 0.01))
    theirs = steps_of(lambda p: torch.optim.Adam(p, 0.01))
    for a, b in zip(ours, theirs):
        close(a, b)
    default = steps_of(lambda p: net.Adam(p, net.Whole))
    for a, b in zip(default, steps_of(torch.optim.Adam)):
        close(a, b)


def test_a_gradient_of_zero_moves_nothing():
    p = nn.Parameter(torch.ones(3))
    optimizer = net.Adam([p], net.Whole, 0.1)
    p.grad = torch.tensor([0.0, 1e-8, 1.0])
    optimizer.step()
    close(p.detach(), torch.tensor([1, 0.95, 0.9]))


def test_adam_of_8_bits_stays_near():
    ours = steps_of(lambda p: net.Adam(p, net.EightBit))
    theirs = steps_of(torch.optim.Adam)
    off = max((a - b).abs().max().item() for a, b in zip(ours, theirs))
    assert 0 < off < 6e-3  # six steps of at most about a thousandth


def test_an_optimiser_keeps_what_its_rule_says():
    for name, (make, rule) in net.OPTIMISERS.items():
        by_rule = sum(rule(p) for p in net.digits_mlp().parameters())
        assert net.kept_by(make) == by_rule, name


def test_the_rules_of_optimisers_by_hand():
    matrix, vector = torch.zeros(30, 100), torch.zeros(30)
    found = {name: (rule(matrix), rule(vector)) for name, (_, rule) in net.OPTIMISERS.items()}
    assert found == {
        "SGD": (0, 0),
        "SGD, momentum": (12000, 120),
        "Adam": (24004, 244),
        "Adafactor": (4 * 130 + 4, 124),
        "Adam, 8 bits": (2 * (3000 + 8), 2 * (30 + 4)),
    }
    assert net.blocks(matrix) == 2


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["recompute", "library"])
def test_checkpoints_give_the_same_gradients_with_dropout(name):
    run = getattr(net, name)
    assert net.twins(run)
    assert net.twins(run, n=4, segments=1)
    torch.manual_seed(3)
    part = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh())
    found = []
    for way in (net.plain, run):
        torch.manual_seed(5)
        x = torch.ones(8, 4, requires_grad=True)
        part.zero_grad()
        way(part, x).square().sum().backward()
        found.append([x.grad, *(p.grad for p in part.parameters()), torch.rand(1)])
    assert all(a.equal(b) for a, b in zip(*found))


def test_twins_sees_other_gradients():
    assert not net.twins(lambda part, x: 2 * part(x))


def test_a_checkpoint_runs_its_part_twice_and_keeps_its_input_only():
    calls = []
    part = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    part.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = part

        def forward(self, x):
            return net.recompute(self.part, x)

    x = torch.rand(5, 3, requires_grad=True)
    assert net.saved(Network(), x) == x.nbytes
    assert calls == [False]
    net.recompute(part, x).sum().backward()
    assert calls == [False, False, True]


def test_a_chain_has_its_layers_in_segments():
    chain = net.Chain(6, 4, 3, net.plain, dropout=0.3)
    assert [len(segment) for segment in chain.segments] == [2, 2, 2]
    assert chain.segments[0][0][2].p == 0.3
    chain.eval()
    x = torch.randn(5, 4)
    y = x
    for segment in chain.segments:
        for layer in segment:
            y = torch.relu(layer[0](y))
    close(chain(x), y)


def test_gradients_are_of_the_sum_of_squares():
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 3)
    for _ in range(2):
        assert net.gradients(network, torch.tensor([[2.0]]))[0].item() == 24


def test_the_peak_of_a_chain_is_its_formula():
    assert net.MAP == 4 * 256 * 16
    one = 4 * (16 * 16 + 16) + 8
    assert one == net.ONE_LAYER
    assert all(net.N % segments == 0 for segments in net.COUNTS)
    for segments in (1, 4, 9):
        maps = segments + 36 // segments
        assert net.chain_peak(segments, net.library) == maps * net.MAP + one
        assert net.chain_peak(segments, net.recompute) == (maps + 1) * net.MAP + one
    assert net.chain_peak(1, net.plain) == 37 * net.MAP + one


# ---- means ---------------------------------------------------------------------------------------


def test_files_hold_what_the_graph_kept(tmp_path):
    torch.manual_seed(0)
    network = net.mlp()
    x, y = net.pictures(64)(8)
    F.cross_entropy(network(x), y).backward()
    expected = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    with net.Tracker() as tracker:
        with (files := net.ToFiles(tmp_path, network)):
            loss = F.cross_entropy(network(x), y)
        assert tracker.live < 100
    loss.backward()
    assert all(p.grad.equal(g) for p, g in zip(network.parameters(), expected))
    # outputs of ReLU are kept by it and by the layer behind it, shares by both parts of the loss
    assert files.bytes == net.saved(network, x, y) + 2 * 8 * 128 * 4 + 8 * 10 * 4
    assert sum(1 for _ in tmp_path.iterdir()) == 9


def one_step(step, make=None):
    torch.manual_seed(0)
    network = net.Deep()
    optimizer = (make or net.adam)(network)
    x, y = net.pictures(64)(32)
    for _ in range(2):
        step(network, optimizer, x, y)
    return network


def test_steps_end_with_the_same_weights():
    expected = list(one_step(net.usual).parameters())
    for step, make in (
        (net.keep_gradients, net.adam),
        (net.offload, net.adam),
        (net.only_backward, net.step_in_backward),
    ):
        found = list(one_step(step, make).parameters())
        assert net.alike(found, expected) == "equal", step
    pieces = list(one_step(net.accumulate).parameters())
    assert net.alike(pieces, expected) == "but for rounding"


def test_steps_leave_gradients_or_none():
    for step in (net.usual, net.accumulate, net.offload):
        assert all(p.grad is None for p in one_step(step).parameters())
    assert all(p.grad is not None for p in one_step(net.keep_gradients).parameters())
    hooked = one_step(net.only_backward, net.step_in_backward)
    assert all(p.grad is None for p in hooked.parameters())


def test_pieces_are_run_one_after_the_other():
    sizes = []
    network = net.Deep()
    network.register_forward_hook(lambda part, x, y: sizes.append(len(y)))
    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    net.accumulate(network, optimizer, *net.pictures(64)(32))
    assert sizes == [8] * 4


def test_the_deep_network_has_16_layers_in_4_segments():
    network = net.Deep(net.library, inplace=True)
    relus = [part for part in network.modules() if isinstance(part, nn.ReLU)]
    assert len(relus) == 16 and all(part.inplace for part in relus)
    assert len(network.chain.segments) == 4
    assert network.chain.run is net.library
    assert not any(getattr(part, "inplace", False) for part in net.Deep().modules())
    assert net.Deep()(torch.ones(3, 64)).shape == (3, 10)


def test_a_trial_counts_the_layers_of_its_second_step():
    plain = net.trial(net.usual, net.adam, 64)
    assert plain.layers == 16
    twice = net.trial(net.usual, net.adam, 64, run=net.library)
    assert twice.layers == 32
    assert net.alike(twice.weights, plain.weights) == "equal"
    weights = 4 * parameters_of(net.Deep())
    kept = net.expected(net.Deep, net.pictures(64), 64).total()
    assert weights * 3 + kept < plain.peak < weights * 4 + 2 * kept


def test_means_save_where_their_part_is_the_largest():
    found = {}
    for name in ("nothing", "to files", "step in backward"):
        step, make, how = net.MEANS[name]
        found[name] = [net.trial(step, make, B, **how).peak for B in (256, 16)]
    wide, small = zip(*found.values())
    assert wide[1] < wide[2] <= wide[0]
    assert small[2] < small[1] <= small[0] + 1000


def test_the_optimisers_of_the_means():
    network = net.Deep()
    kinds = {name: make for name, (_, make, _) in net.MEANS.items()}
    assert kinds["Adam, 8 bits"](network).store is net.EightBit
    assert isinstance(kinds["Adafactor"](network), torch.optim.Adafactor)
    assert isinstance(kinds["nothing"](network), torch.optim.Adam)
    assert net.step_in_backward(network) is None


def test_weights_alike_in_a_word():
    a = [torch.tensor([1.0, 2.0])]
    assert net.alike(a, [torch.tensor([1.0, 2.0])]) == "equal"
    assert net.alike(a, [torch.tensor([1.0, 2.0001])]) == "but for rounding"
    assert net.alike(a, [torch.tensor([1.0, 2.1])]) == "differ"
    assert net.alike(a * 2, [a[0], torch.tensor([1.0, 2.1])]) == "differ"


def test_a_forward_pass_alone():
    one = 256 * 64 * 4
    assert net.forward_only(torch.enable_grad) == (16 * one, 17 * one)
    kept, most = net.forward_only(torch.no_grad)
    assert kept == 0 and most == net.forward_only(torch.inference_mode)[1]
    assert net.forward_only(torch.no_grad, True) == (0, most - one)


# ---- mistakes ------------------------------------------------------------------------------------


def test_autograd_notices_what_was_overwritten():
    assert "modified by an inplace operation" in net.overwritten()
    assert "is at version 1; expected version 0" in net.overwritten()


def test_losses_in_a_list_keep_their_graphs():
    assert net.losses_in_a_list(5, True) == 5 * 4
    one = net.losses_in_a_list(1, False)
    assert net.losses_in_a_list(5, False) == 5 * one
    assert one == 4 * 32 * (64 + 128 + 128 + 10) + 4


def test_a_row_keeps_the_memory_of_its_map():
    assert net.slice_of(copied=True) == 256 * 4
    assert net.slice_of(copied=False) == 1000 * 256 * 4


def test_batch_norm_sees_the_size_of_the_pieces():
    torch.manual_seed(0)
    network = net.Residual()
    whole, parts = (net.accumulated(network, n) for n in (1, 4))
    apart = max((a - b).abs().max() / a.abs().max() for a, b in zip(whole, parts))
    assert net.pieces_apart(network) == pytest.approx(apart.item(), rel=0.01)
    assert apart > 0.01
    network.eval()
    for a, b in zip(*(net.accumulated(network, n) for n in (1, 4))):
        close(a, b, 1e-4)
    assert net.pieces_apart(network) < 1e-4


def test_bytes_of_a_parameter_by_hand():
    sums = [sum(parts) for parts in net.PER_PARAMETER.values()]
    assert sums == pytest.approx([16, 16, 10, 0.25, 2.16])
    assert [len(parts) for parts in net.PER_PARAMETER.values()] == [3] * 5


def test_cuda_is_asked_in_order(monkeypatch, tmp_path):
    asked = []
    names = ("_record_memory_history", "_dump_snapshot")
    for name in names:
        note = lambda *a, name=name, **how: asked.append((name, *a, *how.values()))  # noqa: E731
        monkeypatch.setattr(torch.cuda.memory, name, note)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 40)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 100)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: asked.append("reset"))
    found = net.on_cuda(*net.NETWORKS["MLP"], 2, tmp_path / "s.pickle")
    assert found == 60
    assert asked == [
        ("_record_memory_history",),
        "reset",
        ("_dump_snapshot", str(tmp_path / "s.pickle")),
        ("_record_memory_history", None),
    ]


# ---- solutions -----------------------------------------------------------------------------------


def test_gelu_keeps_a_map_more_for_each_layer():
    batch = net.pictures(64)
    more = net.expected(net.gelu_mlp, batch, 3).total() - net.expected(net.mlp, batch, 3).total()
    assert more == 2 * 3 * 128 * 4
    assert net.gelu_mlp()(torch.ones(2, 64)).shape == (2, 10)


def test_halves_keep_half():
    network = net.Chain(2, 8, 1, net.plain)
    x = torch.randn(4, 8)
    exact = net.gradients(network, x)
    with (halves := net.Halves()):
        near = net.gradients(network, x)
    for a, b in zip(near, exact):
        close(a, b, 0.01)
    assert halves.pack(x).dtype == torch.float16
    assert halves.pack(torch.tensor([3])).dtype == torch.int64
    assert halves.unpack(x.half()).dtype == torch.float32
    assert halves.unpack(torch.tensor([3])).dtype == torch.int64


def test_checkpoints_within_checkpoints():
    torch.manual_seed(0)
    layers = [net.layer(8, 0) for _ in range(5)]
    x = torch.randn(4, 8)
    y = net.nested(layers, x)
    close(y, nn.Sequential(*layers)(x))
    maps, run = net.nested_cost(8)
    assert round(maps) == 5
    assert run == 8 * (3 + 3) // 2
    assert net.nested_cost(1) == (pytest.approx(2, abs=0.1), 1)
