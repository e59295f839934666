"""The dense networks of notebooks/densenet.py."""

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import set_checkpoint_early_stop

import workbench
from loader import definitions
from workbench import checks, counting, training

densenet = definitions("densenet")

PUBLISHED = {
    "densenet121": torchvision.models.DenseNet121_Weights.IMAGENET1K_V1,
    "densenet161": torchvision.models.DenseNet161_Weights.IMAGENET1K_V1,
    "densenet169": torchvision.models.DenseNet169_Weights.IMAGENET1K_V1,
    "densenet201": torchvision.models.DenseNet201_Weights.IMAGENET1K_V1,
}
# Huang et al. 2017, table 2: growth rate, depth, millions of parameters.
PLAIN = [(12, 40, 1.0), (12, 100, 7.0), (24, 100, 27.2)]
BC = [(12, 100, 0.8), (24, 250, 15.3), (40, 190, 25.6)]
LAYERS = [densenet.DenseLayer, densenet.BasicLayer, densenet.FrugalLayer]


def on_meta(build):
    with torch.device("meta"):
        return build()


def layers_of(network):
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize(("name", "weights"), PUBLISHED.items())
def test_published_sizes_have_the_parameters_and_macs_torchvision_gives(name, weights):
    network = on_meta(getattr(densenet, name))
    assert counting.parameters(network) == weights.meta["num_params"]
    macs = counting.macs(network, torch.empty(1, 3, 224, 224, device="meta"))
    assert round(macs / 1e9, 3) == weights.meta["_ops"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_name_counts_convolutions_and_the_linear_layer(name):
    assert len(layers_of(on_meta(getattr(densenet, name)))) == int(name.removeprefix("densenet"))


@pytest.mark.parametrize(("growth", "depth", "millions"), PLAIN)
def test_plain_cifar_networks_have_the_size_of_table_2(growth, depth, millions):
    network = on_meta(lambda: densenet.cifar_densenet(growth, depth))
    assert round(counting.parameters(network) / 1e6, 1) == millions
    assert len(layers_of(network)) == depth


@pytest.mark.parametrize(("growth", "depth", "millions"), BC)
def test_bc_cifar_networks_have_the_size_of_table_2(growth, depth, millions):
    network = on_meta(lambda: densenet.cifar_densenet_bc(growth, depth))
    assert round(counting.parameters(network) / 1e6, 1) == millions
    assert len(layers_of(network)) == depth


def parameters_by_hand(growth, n):
    """DenseNet-BC for CIFAR-10: stem of 2k, three blocks of n layers, halved between them."""
    c = 2 * growth
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


@pytest.mark.parametrize(("growth", "depth"), [(12, 100), (24, 250), (40, 190), (6, 40)])
def test_bc_parameters_equal_a_sum_by_hand(growth, depth):
    network = on_meta(lambda: densenet.cifar_densenet_bc(growth, depth))
    assert counting.parameters(network) == parameters_by_hand(growth, (depth - 4) // 6)


def test_depths_that_do_not_fit_are_refused():
    with pytest.raises(AssertionError, match="3n"):
        densenet.cifar_densenet(12, 41)
    with pytest.raises(AssertionError, match="6n"):
        densenet.cifar_densenet_bc(12, 43)


@pytest.mark.parametrize("name", PUBLISHED)
def test_outputs_equal_torchvision_with_copied_weights(name):
    torch.manual_seed(0)
    reference = checks.randomise_norms(getattr(torchvision.models, name)())
    network = getattr(densenet, name)()
    checks.transplant(reference, network)
    checks.same_outputs(network, reference, torch.randn(2, 3, 75, 97))


def test_batch_norm_has_the_constants_of_the_library():
    ours, theirs = on_meta(densenet.densenet121), on_meta(torchvision.models.densenet121)
    constants = [
        [(m.eps, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for model in (ours, theirs)
    ]
    assert constants[0] == constants[1]


def test_convolutions_start_with_variance_two_over_fan_in():
    torch.manual_seed(0)
    conv = densenet.densenet121().block3[20].narrow[2]
    expected = (2 / conv.in_channels) ** 0.5
    torch.testing.assert_close(conv.weight.std().item(), expected, rtol=0.02, atol=0)


@pytest.mark.parametrize(("batch", "height", "width"), [(3, 225, 161), (1, 64, 256)])
def test_any_batch_and_map_size_goes_through(batch, height, width):
    network = on_meta(densenet.densenet121).eval()
    x = torch.empty(batch, 3, height, width, device="meta")
    assert network(x).shape == (batch, 1000)
    assert network[:7](x).shape[:2] == (batch, 512)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_block_hands_on_its_input_and_what_earlier_layers_made(layer):
    torch.manual_seed(0)
    block = densenet.DenseBlock(layer, 5, 3, 4).eval()
    x = torch.randn(2, 5, 7, 9)
    with torch.no_grad():
        before = block(x)
        block[2].grow[2].weight.normal_()
        after = block(x)
    assert before.shape == (2, 5 + 4 * 3, 7, 9)
    torch.testing.assert_close(before[:, :5], x, rtol=0, atol=0)
    torch.testing.assert_close(after[:, :11], before[:, :11], rtol=0, atol=0)
    assert (after[:, 11:] != before[:, 11:]).flatten(2).any(2).all()


def test_every_layer_has_a_gradient_of_every_earlier_one():
    torch.manual_seed(0)
    block = densenet.DenseBlock(densenet.DenseLayer, 4, 2, 3).eval()
    features = [torch.randn(1, c, 5, 5, requires_grad=True) for c in (4, 2, 2)]
    grads = torch.autograd.grad(block[2](*features).sum(), features)
    assert all(g.any() for g in grads)


def test_a_transition_halves_the_side_and_averages():
    part = densenet.transition(2, 2).eval()
    with torch.no_grad():
        part[0][2].weight.copy_(torch.eye(2).view(2, 2, 1, 1))
    x = torch.rand(1, 2, 6, 4)
    expected = x.view(1, 2, 3, 2, 2, 2).mean((3, 5)) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(part(x), expected)


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("frugal", [False, True])
def test_memory_of_a_block_equals_the_formula_to_the_byte(depth, frugal):
    layer = densenet.FrugalLayer if frugal else densenet.DenseLayer
    pixel, once = densenet.kept_by_hand(10, 4, depth, frugal)
    found = densenet.block_memory(layer, 3, 10, 6, 4, depth)
    assert found == 4 * (3 * 6 * 6 * pixel + once)
    closed = 9 * 4 * depth - 4 if frugal else 4 * depth**2 + (2 * 10 + 7 * 4) * depth
    assert pixel == closed  # the chapter's equation


def test_the_ledger_finds_what_autograd_keeps_of_one_product():
    layer = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Sigmoid(), nn.Linear(8, 8, bias=False))
    found = densenet.memory(layer, torch.randn(5, 8))
    assert found == 4 * 5 * 8  # the sigmoid keeps its output, which the next product reads


@pytest.mark.parametrize("frugal", [False, True])
def test_whole_networks_keep_what_torchvision_s_keep(frugal):
    x = torch.empty(2, 3, 64, 64, device="meta")
    layer = densenet.FrugalLayer if frugal else densenet.DenseLayer
    ours = on_meta(lambda: densenet.densenet121(layer))
    theirs = on_meta(lambda: torchvision.models.densenet121(memory_efficient=frugal))
    assert densenet.memory(ours, x) == densenet.memory(theirs, x)


def test_checkpointing_repeats_no_convolution_because_it_stops_early():
    x = torch.empty(2, 3, 32, 32, device="meta")
    steps = []
    for layer, early in (("DenseLayer", True), ("FrugalLayer", True), ("FrugalLayer", False)):
        network = on_meta(lambda layer=layer: densenet.densenet121(getattr(densenet, layer)))
        with set_checkpoint_early_stop(early):
            steps.append(densenet.macs_of_step(network, x))
    assert steps[0] == steps[1] < steps[2]
    first = 2 * 64 * 16 * 16 * 3 * 7 * 7  # no gradient of the images is computed
    assert steps[0] == 3 * counting.macs(network.eval(), x) - first


def test_checkpointing_leaves_gradients_equal_and_moves_statistics_twice():
    plain, frugal = densenet.twins()
    x = torch.randn(6, 3, 12, 8, device=workbench.device)
    y = torch.arange(6, device=workbench.device)
    ours, theirs = densenet.gradients(frugal, x, y), densenet.gradients(plain, x, y)
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
            densenet.furthest(ours, good)
    assert densenet.furthest(good, good) == 0


def test_sources_split_the_weights_by_who_made_the_channels():
    weight = torch.arange(24.0).expand(2, -1)
    parts = densenet.sources(weight, 12)
    assert [p.shape[1] for p in parts] == [12, 6, 6]
    assert parts[2][0].tolist() == [*range(18, 24)]
    assert [p.shape[1] for p in densenet.sources(weight[:, :12], 12)] == [12]


def test_equal_weights_are_read_in_equal_shares_and_a_larger_one_is_found():
    network = densenet.small_densenet()
    with torch.no_grad():
        for conv in (conv for block in densenet.readers(network) for conv in block):
            conv.weight.fill_(-1)
        network.block2[3].narrow[2].weight[:, -6:] = 5  # layer 4 reads layer 3
    found = densenet.reading(network)
    used = ~found.isnan()
    assert used.sum() == 3 * 28
    torch.testing.assert_close(found[1, :4, 3], torch.tensor([0.5, 0.5, 0.5, 2.5]))
    used[1, :4, 3] = False
    torch.testing.assert_close(found[used], torch.ones(3 * 28 - 4))


def test_the_scale_of_the_narrowing_kernels_does_not_reach_the_output():
    torch.manual_seed(0)
    network = densenet.small_densenet().double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12
    x = torch.randn(8, 3, 20, 20, dtype=torch.float64)
    with torch.no_grad():
        before = network(x)
        after = densenet.small_start(network)(x)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-8)


def test_the_networks_compared_have_the_budgets_the_chapter_names():
    networks = {name: on_meta(build) for name, build in densenet.NETWORKS.items()}
    x = torch.empty(1, 3, 20, 20, device="meta")
    parameters = [counting.parameters(n) for n in networks.values()]
    macs = [counting.macs(n, x) for n in networks.values()]
    assert parameters[1] == pytest.approx(parameters[0], rel=0.05)
    assert macs[2] == pytest.approx(macs[0], rel=0.05)
    assert macs[1] < macs[0] / 2 and parameters[2] > 2 * parameters[0]
    kept = [densenet.memory(network, x.expand(50, -1, -1, -1)) for network in networks.values()]
    assert kept[0] > 4 * max(kept[1:])
    assert len(layers_of(networks["DenseNet-BC"])) == 40


@pytest.mark.parametrize("layer", LAYERS)
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(layer):
    torch.manual_seed(0)
    network = densenet.densenet(6, (2, 2, 2), 12, densenet.cifar_stem, layer, num_classes=10)
    x, y = torch.randn(20, 3, 12, 12), torch.arange(20) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    losses = training.fit(network, (x, y), 30, optimizer)["loss"]
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_size_runs_forward_and_backward_on_the_meta_device(name):
    network = on_meta(getattr(densenet, name))
    network(torch.empty(2, 3, 64, 64, device="meta")).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("layer", LAYERS)
def test_every_kind_of_layer_runs_forward_and_backward_on_the_meta_device(layer):
    network = on_meta(lambda: densenet.densenet(4, (2, 2), 8, densenet.cifar_stem, layer))
    network(torch.empty(2, 3, 16, 16, device="meta")).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
