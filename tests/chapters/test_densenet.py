"""The dense networks of notebooks/densenet.py."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import densenet as library

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
LAYERS = ("DenseLayer", "basic_layer")


def weighted(network):
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def narrow_pair():
    """Ours and torchvision's, few channels and few layers, on the meta device."""
    how = {"stem": net.imagenet_stem, "c_stem": 6, "num_classes": 10}
    ours = on_meta(net.DenseNet, 4, (2, 3, 1, 2), **how)
    return ours, on_meta(library.DenseNet, 4, (2, 3, 1, 2), 6, num_classes=10)


def stirred(network):
    """Batch norms that have seen something, in evaluation mode."""
    network(torch.randn(8, 3, 16, 16))
    return network.eval()


# ---- the published networks ----------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_torchvision_s_parameters_and_the_layers_of_their_name(name):
    network = on_meta(getattr(net, name))
    assert parameters_of(network) == PUBLISHED[name].meta["num_params"]
    assert len(weighted(network)) == int(name.removeprefix("densenet"))


def test_densenet121_has_the_macs_torchvision_gives():
    network = on_meta(net.densenet121)
    assert round(macs_of(network) / 1e9, 3) == PUBLISHED["densenet121"].meta["_ops"]


def test_the_network_does_what_torchvision_s_does_on_maps_of_odd_size():
    torch.manual_seed(0)
    networks.same_function(*narrow_pair(), torch.randn(3, 3, 75, 97), 3e-5)


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
    x = torch.empty(2, 3, 9, 7, device="meta")
    assert network.body.block1(network.stem(x)).shape[2:] == (9, 7)


def test_the_counts_by_hand_are_those_of_table_2_of_the_paper():
    """Huang et al. 2016: growth rate, depth, millions of parameters."""
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
    network = net.DenseNet(24, (2, 1), stem=net.imagenet_stem, c_stem=48)
    conv = network.body.block1[1].narrow[2]
    networks.starts_with(conv.weight, (2 / conv.in_channels) ** 0.5)
    assert not network.classifier.bias.any()


@pytest.mark.parametrize(("batch", "height", "width"), [(3, 225, 161), (1, 64, 256)])
def test_any_batch_and_map_size_goes_through(batch, height, width):
    network, _ = narrow_pair()
    x = torch.empty(batch, 3, height, width, device="meta")
    halved = [-(-side // 4) // 8 for side in (height, width)]
    assert list(network.body(network.stem(x)).shape[2:]) == halved
    assert network.eval()(x).shape == (batch, 10)


@pytest.mark.parametrize("build", ["densenet121", "small_densenet", "wide_resnet", "dense_tower"])
def test_networks_run_forward_and_backward_on_the_meta_device(build):
    network = on_meta(getattr(net, build), *([3] if build == "dense_tower" else []))
    side = 64 if build == "densenet121" else 16
    K = 1000 if build == "densenet121" else 10
    assert networks.runs_on_meta(network, 2, 3, side, side + 3).shape == (2, K)


@pytest.mark.parametrize("layer", LAYERS)
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(layer):
    torch.manual_seed(0)
    how = {"stem": net.cifar_stem, "c_stem": 8, "layer": getattr(net, layer)}
    network = net.DenseNet(4, (2, 2), num_classes=10, **how)
    networks.learns(network, torch.randn(20, 3, 8, 8), rate=0.03, steps=40)


# ---- layers, rows, blocks ------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_a_block_hands_on_its_input_and_what_earlier_layers_made(layer):
    torch.manual_seed(0)
    block = net.DenseBlock(5, 3, depth=4, layer=getattr(net, layer)).eval()
    x = torch.randn(2, 5, 7, 9)
    with torch.no_grad():
        before = block(x)
        (block[2].grow if layer == "DenseLayer" else block[2])[2].weight.normal_()
        after = block(x)
    assert before.shape == (2, 5 + 4 * 3, 7, 9)
    close(before[:, :5], x, 0)
    close(after[:, :11], before[:, :11], 0)
    assert (after[:, 11:] != before[:, 11:]).flatten(2).any(2).all()


def test_a_layer_without_bottleneck_is_norm_relu_and_one_3x3_on_all_that_it_reads():
    torch.manual_seed(0)
    layer, x = net.basic_layer(5, 3), torch.randn(4, 5, 6, 7)
    normed = F.batch_norm(x, None, None, training=True, eps=1e-5)
    close(layer(x), F.conv2d(normed.relu(), layer[2].weight, padding=1))


def test_layers_that_compute_nothing_leave_a_residual_row_as_it_was():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 6)
    row = net.residual_row(4).eval()
    close(row[1](row[0](x) + x) + row[0](x) + x, row(x))
    for block in row:
        nn.init.zeros_(block[1][2].weight)
    close(row(x), x, 0)


def test_a_transition_halves_the_side_and_averages():
    part = net.transition(2, 2).eval()
    nn.init.dirac_(part[0][2].weight)
    x = torch.rand(1, 2, 6, 4)
    expected = x.view(1, 2, 3, 2, 2, 2).mean((3, 5)) / (1 + 1e-5) ** 0.5
    close(part(x), expected)


# ---- the towers and the small networks -----------------------------------------------------------


MEETINGS = {
    "plain": lambda x, made: made,
    "residual": lambda x, made: x + made,
    "dense": lambda x, made: torch.cat((x, made), 1),
}


@pytest.mark.parametrize("kind", MEETINGS)
def test_towers_have_as_many_layers_as_said_and_differ_in_how_they_meet(kind):
    torch.manual_seed(0)
    tower = stirred(net.TOWERS[kind](3))
    x = torch.randn(2, 3, 10, 8)
    y = tower.stem(x)
    assert y.shape == (2, 12, 5, 4)
    assert len(weighted(tower)) == 3 + 2
    for layer in tower.body:
        made = layer(y)
        y = MEETINGS[kind](y, made)
    assert y.shape[1] == (12 + 3 * 6 if kind == "dense" else 12)
    close(tower(x), tower.classifier(torch.relu(tower.norm(y)).mean((2, 3))))
    assert tower(x).shape == (2, 10)
    assert {layer[2].kernel_size for layer in tower.body} == {(3, 3)}


def test_gradients_of_kernels_are_of_the_mean_cross_entropy_by_the_norm_of_the_weights():
    torch.manual_seed(0)
    network, x, y = net.plain_tower(3), torch.randn(4, 3, 8, 8), torch.arange(4)
    kernels = [layer[2].weight for layer in network.body]
    with torch.no_grad():
        kernels[1].mul_(3)
    expected = torch.autograd.grad(F.cross_entropy(network(x), y), kernels)
    found = net.kernel_gradients(network, x, y)
    relative = [(g.norm() / kernel.norm()).item() for g, kernel in zip(expected, kernels)]
    assert found == pytest.approx(relative)


def test_the_small_densenet_has_27_convolutions_on_half_the_side():
    network = on_meta(net.small_densenet)
    assert len(weighted(network)) == 27 + 1
    assert network.stem(torch.empty(2, 3, 20, 13, device="meta")).shape == (2, 16, 10, 7)
    assert parameters_of(network) == bc_by_hand(8, 28)


def test_the_residual_networks_have_15_convolutions_and_double_twice():
    network = on_meta(net.small_resnet, 4)
    assert len(weighted(network)) == 15 + 1
    shapes = []
    for part in network.body:
        part.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[1:])))
    networks.runs_on_meta(network, 2, 3, 16, 24)
    assert shapes == [(4, 8, 12), (8, 4, 6), (8, 4, 6), (16, 2, 3), (16, 2, 3)]


def test_the_networks_compared_have_the_budgets_the_chapter_names():
    built = {key: on_meta(build) for key, build in net.BUILDERS.items()}
    parameters = {key: parameters_of(network) for key, network in built.items()}
    macs = {key: macs_of(network, 1, 3, 16, 16) for key, network in built.items()}
    assert parameters["slim"] == pytest.approx(parameters["dense"], rel=0.08)
    assert macs["wide"] == pytest.approx(macs["dense"], rel=0.01)
    assert built["slim"].norm.num_features == 4 * 8
    assert set(net.NAMES) == set(built)


# ---- cut connections -----------------------------------------------------------------------------


def test_what_is_read_joins_all_and_has_means_where_the_connection_is_cut():
    made = [torch.randn(3, c, 4, 5) for c in (2, 3, 1)]
    close(net.joined(made, 3, []), torch.cat(made, 1), 0)
    cut = [(1, 3), (2, 2)]
    found = net.joined(made, 3, cut)
    close(found[:, :2], made[0], 0)
    close(found[:, 5:], made[2], 0)
    for channel in range(3):
        mean = made[1][:, channel].mean()
        close(found[:, 2 + channel], mean.expand(3, 4, 5))


@pytest.mark.parametrize(
    ("pair", "same"),
    [((0, 1), 5), ((1, 2), 8), ((1, 3), 11), ((0, 4), None), ((3, 4), None)],
)
def test_a_cut_changes_what_its_reader_makes_and_nothing_before_it(pair, same):
    torch.manual_seed(0)
    block, x = net.DenseBlock(5, 3, depth=3, layer=net.DenseLayer).eval(), torch.randn(2, 5, 4, 4)
    whole = block(x)
    close(net.block_without(block, x, []), whole)
    found = net.block_without(block, x, [pair])
    if same is None:  # the reader is what follows the block
        columns = slice(0, 5) if pair[0] == 0 else slice(11, 14)
        expected = whole.clone()
        expected[:, columns] = whole[:, columns].mean((0, 2, 3), keepdim=True)
        close(found, expected)
    else:
        close(found[:, :same], whole[:, :same])
        assert (found[:, same : same + 3] - whole[:, same : same + 3]).abs().max() > 1e-3


def test_the_loss_without_connections_is_that_of_a_network_whose_block_is_replaced():
    torch.manual_seed(0)
    network = stirred(net.small_densenet())
    x, y = torch.randn(6, 3, 16, 16), torch.arange(6)
    for cuts in ({}, {"block2": [(0, 5), (1, 3)]}):
        maps = network.body.transition1(network.body.block1(network.stem(x)))
        maps = net.block_without(network.body.block2, maps, cuts.get("block2", []))
        maps = network.body.block3(network.body.transition2(maps))
        expected = F.cross_entropy(network.head(maps), y)
        before = network.train()
        assert net.loss_without(before, cuts, x, y) == pytest.approx(expected.item(), rel=1e-4)
        assert not network.training


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_memory_of_a_block_equals_the_equation_to_the_byte(depth):
    k_0, k = 10, 4
    with torch.device("meta"):
        x = torch.empty(3, k_0, 6, 6, requires_grad=True)
        found = net.kept(net.DenseBlock(k_0, k, depth=depth, layer=net.DenseLayer), x)
    pixel = k * depth**2 + (2 * k_0 + 7 * k) * depth  # the chapter's equation
    read = sum(k_0 + k * number + 4 * k for number in range(depth))
    assert found == 4 * (3 * 6 * 6 * pixel + 2 * read)  # mean and scale of each channel read


def test_a_shared_tensor_is_counted_once_and_parameters_are_not():
    layer = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Sigmoid(), nn.Linear(8, 8, bias=False))
    found = net.kept(layer, torch.randn(5, 8))
    assert found == 4 * 5 * 8 * 2  # the input; what the sigmoid keeps, the next layer reads


def test_a_whole_network_keeps_what_torchvision_s_keeps():
    x = torch.empty(2, 3, 64, 64, device="meta")
    ours, theirs = (net.kept(network, x) for network in narrow_pair())
    assert abs(ours - theirs) < 0.01 * theirs
