"""The dense networks of notebooks/densenet.py."""

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import set_checkpoint_early_stop
from torchvision.models import densenet as library
from torchvision.models.resnet import BasicBlock

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

net = definitions("densenet")

PUBLISHED = {
    "densenet121": library.DenseNet121_Weights.IMAGENET1K_V1,
    "densenet161": library.DenseNet161_Weights.IMAGENET1K_V1,
    "densenet169": library.DenseNet169_Weights.IMAGENET1K_V1,
    "densenet201": library.DenseNet201_Weights.IMAGENET1K_V1,
}
LAYERS = ["DenseLayer", "BasicLayer", "FrugalLayer"]
SMALL = (4, (2, 3, 1, 2), 6)  # growth, depths, channels of the stem


def weighted(network):
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def small(layer="DenseLayer", depths=(2, 2)):
    return net.densenet(4, depths, 8, net.cifar_stem, getattr(net, layer), num_classes=10)


def pair(frugal=False):
    """Ours and torchvision's, narrow and shallow."""
    layer = net.FrugalLayer if frugal else net.DenseLayer
    growth, depths, c_stem = SMALL
    theirs = on_meta(library.DenseNet, growth, depths, c_stem, 4, 0, 10, memory_efficient=frugal)
    return on_meta(net.densenet, *SMALL, layer=layer, num_classes=10), theirs


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_torchvision_s_parameters_and_the_layers_of_their_name(name):
    network = on_meta(getattr(net, name))
    assert parameters_of(network) == PUBLISHED[name].meta["num_params"]
    assert len(weighted(network)) == int(name.removeprefix("densenet"))


def test_densenet121_has_the_macs_torchvision_gives():
    network = on_meta(net.densenet121)
    assert round(macs_of(network) / 1e9, 3) == PUBLISHED["densenet121"].meta["_ops"]


@pytest.mark.parametrize("frugal", [False, True])
def test_the_network_does_what_torchvision_s_does_on_maps_of_odd_size(frugal):
    torch.manual_seed(0)
    networks.same_function(*pair(frugal), torch.randn(3, 3, 75, 97), 3e-5)


def plain_by_hand(growth, depth):
    """DenseNet for CIFAR-10 without bottlenecks: stem of 16, three blocks, nothing halved."""
    c, n = 16, (depth - 4) // 3
    total = 27 * c
    for block in range(3):
        for _ in range(n):
            total += 2 * c + 9 * c * growth
            c += growth
        total += 2 * c + c * c if block < 2 else 2 * c + 10 * c + 10
    return total


def bc_by_hand(growth, depth):
    """DenseNet-BC for CIFAR-10: stem of 2k, three blocks of n layers, halved between them."""
    c, n = 2 * growth, (depth - 4) // 6
    total = 27 * c
    for block in range(3):
        for _ in range(n):
            total += 2 * c + 4 * growth * c  # norm, 1x1
            total += 8 * growth + 9 * 4 * growth * growth  # norm, 3x3
            c += growth
        if block < 2:
            total += 2 * c + c * (c // 2)
            c //= 2
    return total + 2 * c + 10 * c + 10


@pytest.mark.parametrize("count", [plain_by_hand, bc_by_hand])
@pytest.mark.parametrize(("growth", "depth"), [(12, 40), (6, 22)])
def test_cifar_networks_have_the_depth_they_are_named_after_and_a_count_by_hand(
    count, growth, depth
):
    build = net.cifar_densenet if count is plain_by_hand else net.cifar_densenet_bc
    network = on_meta(build, growth, depth)
    assert len(weighted(network)) == depth
    assert parameters_of(network) == count(growth, depth)
    assert network.block1(network.stem(torch.empty(2, 3, 9, 7, device="meta"))).shape[2:] == (9, 7)


def test_the_counts_by_hand_are_those_of_table_2_of_the_paper():
    """Huang et al. 2017: growth rate, depth, millions of parameters."""
    assert len(net.TABLE_2) == 6
    for build, growth, depth, millions in net.TABLE_2:
        by_hand = plain_by_hand if build is net.cifar_densenet else bc_by_hand
        assert round(by_hand(growth, depth) / 1e6, 1) == millions


def test_depths_that_do_not_fit_are_refused():
    with pytest.raises(AssertionError, match="3n"):
        net.cifar_densenet(12, 41)
    with pytest.raises(AssertionError, match="6n"):
        net.cifar_densenet_bc(12, 43)


def test_convolutions_start_with_variance_two_over_fan_in_and_the_last_bias_at_zero():
    torch.manual_seed(0)
    network = net.densenet(24, (2, 1), 48)
    conv = network.block1[1].narrow[2]
    networks.starts_with(conv.weight, (2 / conv.in_channels) ** 0.5)
    assert not network.fc.bias.any()


@pytest.mark.parametrize(("batch", "height", "width"), [(3, 225, 161), (1, 64, 256)])
def test_any_batch_and_map_size_goes_through(batch, height, width):
    network = on_meta(net.densenet, *SMALL).eval()
    maps = network[:8](torch.empty(batch, 3, height, width, device="meta"))
    halved = [-(-side // 4) // 8 for side in (height, width)]
    assert maps.shape[::2] == (batch, halved[0]) and maps.shape[3] == halved[1]
    assert network[8:](maps).shape == (batch, 1000)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_block_hands_on_its_input_and_what_earlier_layers_made(layer):
    torch.manual_seed(0)
    block = net.DenseBlock(getattr(net, layer), 5, 3, 4).eval()
    x = torch.randn(2, 5, 7, 9)
    with torch.no_grad():
        before = block(x)
        block[2].grow[2].weight.normal_()
        after = block(x)
    assert before.shape == (2, 5 + 4 * 3, 7, 9)
    torch.testing.assert_close(before[:, :5], x, rtol=0, atol=0)
    torch.testing.assert_close(after[:, :11], before[:, :11], rtol=0, atol=0)
    assert (after[:, 11:] != before[:, 11:]).flatten(2).any(2).all()


def test_a_layer_without_bottleneck_is_norm_relu_and_one_3x3_on_all_feature_maps():
    torch.manual_seed(0)
    layer, maps = net.BasicLayer(5, 3), [torch.randn(4, c, 6, 5) for c in (2, 3)]
    x = F.batch_norm(torch.cat(maps, 1), None, None, training=True, eps=1e-5)
    close(layer(*maps), F.conv2d(x.relu(), layer.grow[2].weight, padding=1))


def test_a_transition_halves_the_side_and_averages():
    part = net.transition(2, 2).eval()
    nn.init.dirac_(part[0][2].weight)
    x = torch.rand(1, 2, 6, 4)
    expected = x.view(1, 2, 3, 2, 2, 2).mean((3, 5)) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(part(x), expected)


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("frugal", [False, True])
def test_memory_of_a_block_equals_the_formula_to_the_byte(depth, frugal):
    layer = net.FrugalLayer if frugal else net.DenseLayer
    pixel, once = net.kept_by_hand(10, 4, depth, frugal)
    assert net.block_memory(layer, 3, 10, 6, 4, depth) == 4 * (3 * 6 * 6 * pixel + once)
    closed = 9 * 4 * depth - 4 if frugal else 4 * depth**2 + (2 * 10 + 7 * 4) * depth
    assert pixel == closed  # the chapter's equation


def test_the_ledger_finds_what_autograd_keeps_of_one_product():
    layer = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Sigmoid(), nn.Linear(8, 8, bias=False))
    found = net.memory(layer, torch.randn(5, 8))
    assert found == 4 * 5 * 8  # the sigmoid keeps its output, which the next product reads


@pytest.mark.parametrize("frugal", [False, True])
def test_whole_networks_keep_what_torchvision_s_keep(frugal):
    x = torch.empty(2, 3, 64, 64, device="meta")
    ours, theirs = (net.memory(network, x) for network in pair(frugal))
    assert ours == theirs


def test_the_large_networks_are_plain_and_checkpointed_ones_and_one_of_the_library():
    plain, frugal, resnet = (on_meta(build) for build in net.PLANS.values())
    kinds = [{type(layer) for layer in network.block1} for network in (plain, frugal)]
    assert kinds == [{net.DenseLayer}, {net.FrugalLayer}]
    assert isinstance(resnet, torchvision.models.ResNet)


def test_checkpointing_repeats_no_convolution_because_it_stops_early():
    x = torch.empty(2, 3, 32, 32, device="meta")
    steps = []
    for frugal, early in ((False, True), (True, True), (True, False)):
        network, _ = pair(frugal)
        with set_checkpoint_early_stop(early):
            steps.append(net.macs_of_step(network, x))
    assert steps[0] == steps[1] < steps[2]
    first = 2 * 6 * 16 * 16 * 3 * 7 * 7  # no gradient of the images is computed
    assert steps[0] == 3 * macs_of(network, *x.shape) - first


def test_gradients_are_those_of_one_training_step_whatever_was_there_before():
    torch.manual_seed(0)
    network, x, y = small(), torch.randn(6, 3, 8, 6), torch.arange(6)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.0
    loss = F.cross_entropy(network.train()(x), y)
    expected = torch.autograd.grad(loss, list(network.parameters()))
    for _ in range(2):
        for a, b in zip(net.gradients(network.eval(), x, y), expected, strict=True):
            close(a, b)


def test_checkpointing_leaves_gradients_equal_and_moves_statistics_twice():
    plain, frugal = net.twins()
    x, y = torch.randn(6, 3, 8, 8), torch.arange(6)
    ours, theirs = net.gradients(frugal, x, y), net.gradients(plain, x, y)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(frugal.block2, plain.block2, strict=True):
        torch.testing.assert_close(a.narrow[0].running_mean, 1.9 * b.narrow[0].running_mean)
        torch.testing.assert_close(a.grow[0].running_mean, b.grow[0].running_mean)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_no_numbers_are_not_close(bad):
    good = [torch.ones(3), torch.ones(2)]
    for ours in ([torch.tensor([1.0, bad, 1.0]), good[1]], [good[0], torch.tensor([1.0, bad])]):
        with pytest.raises(ValueError, match="a finite number is needed"):
            net.furthest(ours, good)


def test_the_furthest_of_two_lists_is_relative_to_the_second_and_wants_equal_lengths():
    theirs = [torch.tensor([2.0, 4.0]), torch.tensor([10.0])]
    ours = [torch.tensor([3.0, 4.0]), torch.tensor([11.0])]
    assert net.furthest(theirs, theirs) == 0
    assert net.furthest(ours, theirs) == pytest.approx(1 / 4)
    with pytest.raises(ValueError, match="zip"):
        net.furthest(ours, theirs[:1])


def test_sources_split_the_weights_by_who_made_the_channels():
    weight = torch.arange(24.0).expand(2, -1)
    parts = net.sources(weight, 12)
    assert [p.shape[1] for p in parts] == [12, 6, 6]
    assert parts[2][0].tolist() == [*range(18, 24)]
    assert [p.shape[1] for p in net.sources(weight[:, :12], 12)] == [12]


def test_equal_weights_are_read_in_equal_shares_and_a_larger_one_is_found():
    network = net.small_densenet()
    with torch.no_grad():
        for conv in (conv for block in net.readers(network) for conv in block):
            conv.weight.fill_(-1)
        network.block2[3].narrow[2].weight[:, -6:] = 5  # layer 4 reads layer 3
    found = net.reading(network)
    used = ~found.isnan()
    assert used.sum() == 3 * 28
    torch.testing.assert_close(found[1, :4, 3], torch.tensor([0.5, 0.5, 0.5, 2.5]))
    used[1, :4, 3] = False
    torch.testing.assert_close(found[used], torch.ones(3 * 28 - 4))


def test_what_follows_a_block_reads_it_last():
    network = net.small_densenet()
    readers = net.readers(network)
    assert [len(block) for block in readers] == [7, 7, 7]
    last = network.transition1[0][2], network.transition2[0][2], network.fc
    assert all(block[-1] is reader for block, reader in zip(readers, last))


def test_small_starts_are_a_tenth_and_the_scale_does_not_reach_the_output():
    torch.manual_seed(0)
    network = net.small_densenet().double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    narrow, grow = (
        part[2].weight.clone() for part in (network.block1[0].narrow, network.block1[0].grow)
    )
    with torch.no_grad():
        before = network(x)
        after = net.small_start(network)(x)
    close(after, before)
    close(network.block1[0].narrow[2].weight, narrow / 10)
    close(network.block1[0].grow[2].weight, grow)
    networks.starts_with(network.transition1[0][2].weight, 0.1 * (2 / 48) ** 0.5, share=0.1)


def test_the_small_densenet_has_forty_layers_on_half_the_side():
    network = on_meta(net.small_densenet)
    assert len(weighted(network)) == 40
    assert network.stem(torch.empty(2, 3, 20, 13, device="meta")).shape == (2, 12, 10, 7)
    assert parameters_of(network) == bc_by_hand(6, 40)
    assert networks.runs_on_meta(network, 2, 3, 20, 13).shape == (2, 10)


def test_the_small_resnet_does_what_the_same_blocks_in_a_row_do():
    torch.manual_seed(0)

    def halving(c):
        shortcut = nn.Sequential(nn.Conv2d(c, 2 * c, 1, 2, bias=False), nn.BatchNorm2d(2 * c))
        return BasicBlock(c, 2 * c, 2, shortcut), BasicBlock(2 * c, 2 * c)

    stem = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
    blocks = BasicBlock(4, 4), BasicBlock(4, 4), *halving(4), *halving(8)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    network = net.small_resnet(4)
    assert len(weighted(network)) - 2 == 14  # the 1x1 of shortcuts are not counted
    assert not network[-1].bias.any()
    networks.same_function(network, nn.Sequential(*stem, *blocks, *head), torch.randn(3, 3, 20, 13))


def test_the_networks_compared_have_the_budgets_the_chapter_names():
    built = {name: on_meta(build) for name, build in net.NETWORKS.items()}
    parameters = [parameters_of(n) for n in built.values()]
    macs = [macs_of(n, 1, 3, 20, 20) for n in built.values()]
    assert parameters[1] == pytest.approx(parameters[0], rel=0.05)
    assert macs[2] == pytest.approx(macs[0], rel=0.05)
    assert macs[1] < macs[0] / 2 and parameters[2] > 2 * parameters[0]
    x = torch.empty(50, 3, 20, 20, device="meta")
    kept = [net.memory(network, x) for network in built.values()]
    assert kept[0] > 4 * max(kept[1:])


@pytest.mark.parametrize("layer", ["DenseLayer", "BasicLayer"])
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(layer):
    torch.manual_seed(0)
    networks.learns(small(layer), torch.randn(20, 3, 8, 8), rate=0.03, steps=40)


def test_the_network_for_imagenet_runs_forward_and_backward_on_the_meta_device():
    assert networks.runs_on_meta(pair()[0], 2, 3, 64, 64).shape == (2, 10)


@pytest.mark.parametrize("layer", LAYERS)
def test_every_kind_of_layer_runs_forward_and_backward_on_the_meta_device(layer):
    assert networks.runs_on_meta(on_meta(small, layer), 2, 3, 16, 16).shape == (2, 10)
