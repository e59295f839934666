"""Both versions of ShuffleNet, and the measures, of notebooks/shufflenet.py."""

import copy
import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

net = definitions("shufflenet")

# Zhang et al. 2017, table 1: groups, channels of the three stages, complexity in millions.
TABLE1 = [
    (1, (144, 288, 576), 143),
    (2, (200, 400, 800), 140),
    (3, (240, 480, 960), 137),
    (4, (272, 544, 1088), 133),
    (8, (384, 768, 1536), 137),
]
# Ma et al. 2018, table 5: complexity in millions.
TABLE5 = {"x0_5": 41, "x1_0": 146, "x1_5": 299, "x2_0": 591}
V2 = {
    "x0_5": torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1,
    "x1_0": torchvision.models.ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1,
    "x1_5": torchvision.models.ShuffleNet_V2_X1_5_Weights.IMAGENET1K_V1,
    "x2_0": torchvision.models.ShuffleNet_V2_X2_0_Weights.IMAGENET1K_V1,
}


def library(size):
    return getattr(torchvision.models, f"shufflenet_v2_{size}")()


def randomised(network, seed: int = 0):
    """Random weights and norms, in evaluation mode."""
    torch.manual_seed(seed)
    state = {name: networks.random_like(name, t) for name, t in network.state_dict().items()}
    network.load_state_dict(state)
    return network.eval()


# ---- the shuffle ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "n"), [(2, 3), (3, 2), (4, 6), (1, 5)])
def test_the_shuffle_sends_channel_in_plus_j_to_jg_plus_i(groups, n):
    x = torch.randn(2, groups * n, 3, 4)
    y = net.Shuffle(groups)(x)
    for i in range(groups):
        for j in range(n):
            close(y[:, j * groups + i], x[:, i * n + j], 0)
    close(net.Shuffle(n)(y), x, 0)


def test_a_shuffle_of_two_halves_is_that_of_torchvision():
    x = torch.randn(2, 12, 3, 4)
    close(net.Shuffle(2)(x), torchvision.models.shufflenetv2.channel_shuffle(x, 2), 0)


# ---- version 1 -----------------------------------------------------------------------------------


def norm(x, layer):
    return F.batch_norm(
        x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=1e-5
    )


def in_groups(x, conv, groups):
    """A 1x1 convolution, group by group."""
    pairs = zip(x.chunk(groups, 1), conv.weight.flatten(1).chunk(groups), strict=True)
    return torch.cat([torch.einsum("bihw,oi->bohw", part, w) for part, w in pairs], 1)


def branch_by_hand(branch, x, first, second, stride):
    """Figure 2b and 2c, the shuffle as a list of places."""
    reduce, depthwise, expand = [part for part in branch if isinstance(part, nn.Sequential)]
    x = torch.relu(norm(in_groups(x, reduce[0], first), reduce[1]))
    n = x.shape[1] // second
    x = x[:, [i * n + j for j in range(n) for i in range(second)]]
    kernel = depthwise[0].weight
    x = F.conv2d(x, kernel, stride=stride, padding=1, groups=len(kernel))
    return norm(in_groups(norm(x, depthwise[1]), expand[0], second), expand[1])


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_unit_is_relu_of_the_input_plus_what_a_branch_by_hand_gives(groups):
    unit = randomised(net.Unit(24, groups=groups))
    x = torch.randn(2, 24, 5, 6)
    close(unit(x), torch.relu(x + branch_by_hand(unit.branch, x, groups, groups, 1)))


@pytest.mark.parametrize("first", [3, 1])
def test_a_halving_unit_puts_the_mean_beside_the_branch(first):
    unit = randomised(net.HalvingUnit(12, 36, first=first, second=3))
    x = torch.randn(2, 12, 7, 6)
    y = branch_by_hand(unit.branch, x, first, 3, 2)
    close(unit(x), torch.relu(torch.cat((F.avg_pool2d(x, 3, 2, 1), y), 1)))
    assert y.shape == (2, 24, 4, 3)


def test_a_zero_branch_leaves_relu_of_the_input():
    unit = randomised(net.Unit(24, groups=3))
    nn.init.zeros_(unit.branch[-1][1].weight)
    nn.init.zeros_(unit.branch[-1][1].bias)
    x = torch.randn(2, 24, 5, 6)
    close(unit(x), torch.relu(x), 0)


def v1_parameters(groups, channels):
    """Weights of a unit: c_in m / first + 9 m + m c_new / g, m = c / 4, and two for each norm."""
    total = 27 * 24 + 2 * 24 + 1000 * channels[-1] + 1000
    c_in = 24
    for c, n in zip(channels, (4, 8, 4), strict=True):
        m = c // 4
        units = [(c_in, c - c_in, 1 if c_in == 24 else groups)] + (n - 1) * [(c, c, groups)]
        for before, new, first in units:
            total += before * m // first + 9 * m + m * new // groups + 2 * (m + m + new)
        c_in = c
    return total


@pytest.mark.parametrize(("groups", "channels", "millions"), TABLE1)
def test_version_1_has_the_channels_and_the_cost_of_table_1(groups, channels, millions):
    network = on_meta(net.shufflenet_v1, groups)
    assert net.CHANNELS[groups] == channels
    assert parameters_of(network) == v1_parameters(groups, channels)
    convolutions = macs_of(network) - 1000 * channels[-1]
    assert round(convolutions / 1e6) == millions
    first = network.stage2[0].branch
    assert first[0][0].groups == 1
    assert first[-1][0].groups == groups


def v1_by_hand(network, groups, x):
    x = torch.relu(norm(F.conv2d(x, network.stem.conv[0].weight, None, 2, 1), network.stem.conv[1]))
    x = F.max_pool2d(x, 3, 2, 1)
    for k, stage in enumerate((network.stage2, network.stage3, network.stage4)):
        first = groups if k else 1
        y = branch_by_hand(stage[0].branch, x, first, groups, 2)
        x = torch.relu(torch.cat((F.avg_pool2d(x, 3, 2, 1), y), 1))
        for unit in stage[1:]:
            x = torch.relu(x + branch_by_hand(unit.branch, x, groups, groups, 1))
    return F.linear(x.mean((2, 3)), network.classifier.weight, network.classifier.bias)


@pytest.mark.parametrize("groups", [1, 3])
def test_version_1_does_what_table_1_written_out_does(groups):
    network = randomised(net.ShuffleNet((36, 72, 144), groups, stem=12))
    x = torch.randn(2, 3, 75, 50)
    close(network(x), v1_by_hand(network, groups, x))
    assert [len(stage) for stage in (network.stage2, network.stage3, network.stage4)] == [4, 8, 4]


@pytest.mark.parametrize("groups", [1, 3, 8])
def test_version_1_runs_forward_and_backward_on_the_meta_device(groups):
    network = on_meta(net.shufflenet_v1, groups)
    assert networks.runs_on_meta(network, 3, 3, 64, 96).shape == (3, 1000)


def test_convolutions_have_no_bias_and_three_groups_are_the_usual_number():
    network = on_meta(net.shufflenet_v1)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert all(layer.bias is None for layer in layers)
    assert network.stage2[1].branch[0][0].groups == 3
    assert network.stem.conv[0].out_channels == 24
    assert isinstance(network.stage2[0].branch[2], net.Shuffle)
    assert isinstance(on_meta(net.shufflenet_v1, mix=nn.Identity).stage4[0].branch[2], nn.Identity)


# ---- version 2 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", V2)
def test_version_2_has_the_parameters_and_macs_torchvision_gives(size):
    network = on_meta(net.shufflenet_v2, size)
    assert parameters_of(network) == V2[size].meta["num_params"]
    assert round(macs_of(network) / 1e9, 3) == V2[size].meta["_ops"]


@pytest.mark.parametrize("size", V2)
def test_with_the_authors_units_of_stride_2_version_2_costs_what_table_5_prints(size):
    network = on_meta(lambda: net.as_authors(net.shufflenet_v2(size)))
    assert abs(macs_of(network) / 1e6 - TABLE5[size]) < 0.6


def test_the_authors_unit_of_stride_2_keeps_the_channels_at_its_side():
    torch.manual_seed(0)
    network = net.as_authors(net.shufflenet_v2("x0_5"))
    c_in = 24
    for stage, c in zip(
        (network.stage2, network.stage3, network.stage4), (48, 96, 192), strict=True
    ):
        x = torch.randn(2, c_in, 8, 6)
        assert stage[0].side(x).shape == (2, c_in, 4, 3)
        assert stage[0].branch(x).shape == (2, c - c_in, 4, 3)
        c_in = c
    assert network.stage2[0].branch[2][0].out_channels == 24
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 1000)


@pytest.mark.parametrize("size", V2)
def test_version_2_calls_the_layers_of_torchvision_in_their_order(size):
    networks.same_layers(on_meta(net.shufflenet_v2, size), on_meta(library, size))


def test_with_the_same_weights_version_2_does_what_that_of_torchvision_does():
    torch.manual_seed(0)
    networks.same_function(net.shufflenet_v2("x0_5"), library("x0_5"), torch.randn(3, 3, 75, 50))


@pytest.mark.parametrize("size", V2)
def test_version_2_runs_forward_and_backward_on_the_meta_device(size):
    network = on_meta(net.shufflenet_v2, size)
    assert networks.runs_on_meta(network, 3, 3, 64, 96).shape == (3, 1000)


def test_a_split_unit_keeps_its_first_half_in_every_second_channel():
    torch.manual_seed(0)
    unit, x = net.SplitUnit(12), torch.randn(2, 12, 5, 6)
    close(unit(x)[:, ::2], x[:, :6], 0)
    close(unit.eval()(x)[:, 1::2], unit.branch(x[:, 6:]))


# ---- who reaches whom ----------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [False, True])
def test_connections_are_where_the_derivative_is_not_zero(mixed):
    torch.manual_seed(0)
    mix = net.Shuffle if mixed else nn.Identity
    layers = nn.Sequential(
        net.Unit(24, groups=3, mix=mix), net.HalvingUnit(24, 48, first=3, second=3)
    )
    positive = copy.deepcopy(layers).eval()
    for p in positive.parameters():
        p.data.abs_()
    x = torch.ones(1, 24, 4, 4)
    jacobian = torch.autograd.functional.jacobian(lambda x: positive(x).sum((0, 2, 3)), x)
    found = net.connections(layers, 24, side=4)
    assert found.equal(jacobian.sum((1, 3, 4)) > 0)
    assert found.shape == (48, 24)
    assert not found.all()
    assert layers.training


def test_averaging_leaves_a_map_of_ones_as_it_is_and_the_network_too():
    network = nn.Sequential(net.conv_norm(6, 4, 1), net.conv_norm(4, 8, 1, groups=2))
    before = copy.deepcopy(network.state_dict())
    close(net.averaging(network)(torch.ones(1, 6, 2, 2)), torch.ones(1, 8, 2, 2), 1e-4)
    for name, value in network.state_dict().items():
        close(value.double(), before[name].double(), 0)


def test_a_channel_at_the_rim_is_heard_at_any_pixel():
    assert net.connections(nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False), 2, side=3).equal(
        torch.eye(2).bool()
    )


# ---- pairs of digits -----------------------------------------------------------------------------


def test_a_pair_is_two_digits_below_two_and_their_labels():
    y = torch.arange(10).repeat(5)
    x = y.view(-1, 1, 1, 1) + 10.0 * torch.arange(50).view(-1, 1, 1, 1)
    image, first, second = net.pairs((x, y), 40, number=3)
    assert image.shape == (40, 2, 1, 1)
    assert (image[:, 0, 0, 0] % 10).equal(first.float())
    assert (image[:, 1, 0, 0] % 10).equal(second.float())
    for labels in (first, second):
        assert sorted(labels.unique().tolist()) == [0, 1]
    assert not first.equal(second)
    assert len(image[:, 0].unique()) > 5  # from all over the part
    again = net.pairs((x, y), 40, number=3)
    close(again[0], image, 0)
    assert not net.pairs((x, y), 40, number=4)[0].equal(image)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_pair_network_is_a_sum_only_without_the_shuffle(mixed):
    network = randomised(net.PairNetwork(net.Shuffle if mixed else nn.Identity))
    x = torch.randn(20, 2, 16, 16)
    found = net.mixed_difference(network, x)
    assert (found > 1e-3) == mixed
    assert mixed or found < 1e-5
    other = x.roll(1, 0)
    ab = network(torch.stack((x[:, 0], other[:, 1]), 1))
    ba = network(torch.stack((other[:, 0], x[:, 1]), 1))
    expected = (network(x) - ab - ba + network(other)).abs().max() / network(other).abs().max()
    assert found == pytest.approx(expected.item(), abs=1e-6)


def test_a_pair_network_is_stem_units_mean_and_linear_layer():
    torch.manual_seed(0)
    network = net.PairNetwork(net.Shuffle).eval()
    x = torch.randn(3, 2, 18, 14)
    parts = nn.Sequential(network.stem, nn.ReLU(), nn.MaxPool2d(2), network.unit1, network.unit2)
    close(network(x), network.classifier(parts(x).mean((2, 3))))
    assert parts(x).shape == (3, 16, 4, 3)
    groups = [network.stem[0].groups, *(u.branch[0][0].groups for u in parts[3:])]
    assert groups == [2, 2, 2]
    pair = [on_meta(net.PairNetwork, mix) for mix in (nn.Identity, net.Shuffle)]
    assert parameters_of(pair[0]) == parameters_of(pair[1]) == 506
    assert networks.runs_on_meta(pair[1], 3, 2, 16, 16).shape == (3, 2)


def test_the_two_questions():
    first, second = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    found = [label(first, second).tolist() for label in net.TASKS.values()]
    assert found == [[0, 0, 1, 1], [0, 1, 1, 0]]


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    torch.manual_seed(0)
    x = torch.randn(20, 2, 16, 16)
    networks.learns(net.PairNetwork(net.Shuffle, channels=32), x, rate=0.02, steps=60, K=2)
    small = net.ShuffleNet((36, 72, 144), 3, stem=12)
    networks.learns(small, torch.randn(10, 3, 32, 32), rate=0.005, steps=12)


def test_the_rate_rises_from_a_twenty_fifth_for_a_fifth_of_the_steps_and_falls_to_nothing(
    monkeypatch,
):
    rates, settings = networks.steps_of(monkeypatch, net.training, batches=4)
    part = torch.zeros(180, 2, 16, 16), torch.zeros(180)  # four batches of 50 at most
    net.train(nn.Linear(1, 1), part, epochs=5)
    assert (settings["momentum"], settings["weight_decay"], settings["batch"]) == (0.9, 1e-4, 50)
    networks.rises_and_falls(rates, peak=0.1, at=3)


# ---- the guidelines ------------------------------------------------------------------------------


def test_layers_of_one_guideline_have_equal_macs():
    found = {}
    for (guideline, _), (layers, c) in net.guideline_cases().items():
        found.setdefault(guideline, []).append(macs_of(layers.to("meta"), 1, c, 28, 28))
    assert [len(set(macs)) for macs in found.values()] == [1, 1, 1, 1]
    assert [macs[0] / 784 for macs in found.values()] == [2 * 128**2, 64**2, 128**2, 10_140]
    assert [len(macs) for macs in found.values()] == [3, 3, 3, 4]


def test_the_cases_are_what_their_names_say():
    cases = net.guideline_cases()
    for n in (1, 4, 16):
        assert cases["groups (G2)", str(n)][0].groups == n
        assert len(cases["pieces (G3)", str(n)][0].pieces) == n
    for ratio, narrow in ((1, 128), (16, 32), (64, 16)):
        there, back = cases["channels (G1)", f"1:{ratio}"][0]
        assert (there.in_channels, there.out_channels) == (narrow, ratio * narrow)
        assert (back.in_channels, back.out_channels) == (ratio * narrow, narrow)
    unit = cases["unit (G4)", "+ batch norm"][0]
    kinds = (nn.BatchNorm2d, nn.Conv2d, nn.ReLU, net.Shuffle)
    for name, counts in (
        ("convolutions", (0, 3, 0, 0)),
        ("+ ReLU, sum", (0, 3, 1, 0)),
        ("+ shuffle", (0, 3, 1, 1)),
        ("+ batch norm", (3, 3, 1, 1)),
    ):
        found = list(cases["unit (G4)", name][0].modules())
        assert tuple(sum(isinstance(m, kind) for m in found) for kind in kinds) == counts
    assert isinstance(unit, net.Unit)


def test_pieces_compute_what_the_whole_does():
    torch.manual_seed(0)
    whole, cut = net.Pieces(8, 1), net.Pieces(8, 4)
    for piece, weight in zip(cut.pieces, whole.pieces[0].weight.chunk(4), strict=True):
        piece.weight.data.copy_(weight)
    x = torch.randn(2, 8, 3, 5)
    close(cut(x), whole(x))
    assert cut(x).shape == x.shape


@pytest.mark.parametrize(("c_in", "c_out", "groups"), [(8, 16, 1), (16, 8, 4), (12, 12, 12)])
def test_a_1x1_convolution_moves_two_maps_and_its_weights(c_in, c_out, groups):
    layer = net.conv(c_in, c_out, groups=groups)
    by_formula = 35 * (c_in + c_out) + c_in * c_out // groups
    assert net.moved(layer, torch.randn(1, c_in, 7, 5)) == by_formula


def test_a_sum_moves_three_maps_a_relu_two_a_view_none():
    x = torch.randn(2, 6, 3, 4)
    assert net.moved(lambda x: x + x.flip(0), x) == (2 + 3) * x.numel()
    assert net.moved(nn.ReLU(), x) == 2 * x.numel()
    assert net.moved(lambda x: x.transpose(1, 2), x) == 0
    assert net.moved(net.Shuffle(2), x) == 2 * x.numel()  # the copy that puts it in order
    assert net.moved(lambda x: torch.sum(x, dim=(0, 1, 2, 3)), x) == x.numel() + 1


def test_the_shortest_pass_of_each_is_kept_and_the_threads_come_back(monkeypatch):
    clock = iter([0, 5, 5, 7, 10, 13, 20, 29, 30, 34, 40, 41])
    monkeypatch.setattr(net.time, "perf_counter", lambda: next(clock))
    seen = []

    def first(x):
        seen.append((x, torch.get_num_threads(), torch.is_grad_enabled()))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert net.shortest([(first, 1), (first, 2)], rounds=3) == [3, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == 3 * [(1, 1, False), (2, 1, False)]
    assert net.shortest([], rounds=1) == []


def test_a_network_that_never_ran_has_no_time():
    assert net.shortest([(None, None)], rounds=0) == [math.inf]


# ---- the same in another form --------------------------------------------------------------------


@pytest.mark.parametrize("groups", [2, 3])
def test_a_unit_without_groups_and_shuffle_does_the_same(groups):
    unit = randomised(net.Unit(24, groups=groups))
    before = copy.deepcopy(unit.state_dict())
    dense = net.without_shuffle(unit)
    x = torch.randn(2, 24, 5, 6)
    close(dense(x), unit(x))
    assert [part[0].groups for part in (dense.branch[0], dense.branch[-1])] == [1, 1]
    assert not any(isinstance(m, net.Shuffle) for m in dense.modules())
    for name, value in unit.state_dict().items():
        close(value.double(), before[name].double(), 0)


def test_a_unit_without_norms_has_none_and_leaves_the_other_as_it_was():
    unit = randomised(net.Unit(24, groups=3))
    bare = net.without_norms(unit)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in bare.modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in unit.modules()) == 3
    for part in unit.branch:
        if isinstance(part, nn.Sequential):
            part[1].reset_parameters()
            part[1].eps = 0.0
    x = torch.randn(2, 24, 5, 6)
    close(bare(x), unit(x))


def test_the_shuffle_behind_the_depthwise_convolution_does_the_same():
    unit = randomised(net.Unit(48, groups=3))
    later = net.shuffled_later(unit)
    x = torch.randn(2, 48, 5, 6)
    close(later(x), unit(x))
    assert isinstance(later.branch[3], net.Shuffle)
    assert isinstance(unit.branch[2], net.Shuffle)


def test_unchanged_channels_are_counted_wherever_they_are():
    class Replace(nn.Module):
        def forward(self, x):
            return torch.cat((x[:, 2:].flip(1), x[:, :2] + 1), 1)

    x = torch.randn(1, 6, 2, 3)
    assert net.unchanged([Replace(), Replace(), nn.Identity()], x) == [4, 2, 2]
    y = x.clone()
    y[..., 0, 0] += 1  # one pixel is enough
    assert net.unchanged([lambda _: y], x) == [0]
