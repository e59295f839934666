"""The residual networks of notebooks/resnet.py."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from loader import definitions
from workbench import checks, counting, training

resnet = definitions("resnet")

# Sizes whose weights torchvision publishes; their entries hold parameters and G MACs at 224x224.
PUBLISHED = {
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": torchvision.models.ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V2,
    "resnet101": torchvision.models.ResNet101_Weights.IMAGENET1K_V2,
    "resnet152": torchvision.models.ResNet152_Weights.IMAGENET1K_V2,
    "wide_resnet50": torchvision.models.Wide_ResNet50_2_Weights.IMAGENET1K_V2,
    "wide_resnet101": torchvision.models.Wide_ResNet101_2_Weights.IMAGENET1K_V2,
}
# He et al. 2015, table 1: blocks per stage and 10^9 multiply-adds.
ORIGINAL = {
    "original_resnet50": ((3, 4, 6, 3), 3.8),
    "original_resnet101": ((3, 4, 23, 3), 7.6),
    "original_resnet152": ((3, 8, 36, 3), 11.3),
}
SIZES = [*PUBLISHED, *ORIGINAL, "resnet50d"]
TORCHVISION = {"wide_resnet50": "wide_resnet50_2", "wide_resnet101": "wide_resnet101_2"}


def on_meta(build):
    with torch.device("meta"):
        return build()


def library(name):
    if name == "resnet50d":
        return timm.create_model(name)
    return getattr(torchvision.models, TORCHVISION.get(name, name))()


def macs_of(network):
    return counting.macs(network, torch.empty(1, 3, 224, 224, device="meta"))


@pytest.mark.parametrize(("name", "weights"), PUBLISHED.items())
def test_published_sizes_have_the_parameters_and_macs_torchvision_gives(name, weights):
    network = on_meta(getattr(resnet, name))
    assert counting.parameters(network) == weights.meta["num_params"]
    assert round(macs_of(network) / 1e9, 3) == weights.meta["_ops"]


def test_resnet50d_has_the_parameters_and_macs_of_timm():
    ours, theirs = on_meta(resnet.resnet50d), on_meta(lambda: library("resnet50d"))
    assert counting.parameters(ours) == counting.parameters(theirs)
    assert macs_of(ours) == macs_of(theirs)


def macs_by_hand(depths):
    """Stem, bottlenecks with the stride in the first 1x1, linear layer; figure 5 and table 1."""
    total = 112 * 112 * 7 * 7 * 3 * 64 + 2048 * 1000
    for depth, width, side, c_in in zip(
        depths, (64, 128, 256, 512), (56, 28, 14, 7), (64, 256, 512, 1024), strict=True
    ):
        first = c_in * width + 9 * width * width + 4 * width * width + c_in * 4 * width
        later = 4 * width * width + 9 * width * width + 4 * width * width
        total += side * side * (first + (depth - 1) * later)
    return total


@pytest.mark.parametrize(("name", "depths", "giga"), [(n, *row) for n, row in ORIGINAL.items()])
def test_original_strides_cost_what_a_sum_by_hand_and_table_1_give(name, depths, giga):
    network = on_meta(getattr(resnet, name))
    assert macs_of(network) == macs_by_hand(depths)
    assert macs_of(network) / 1e9 == pytest.approx(giga, abs=0.06)  # 3.858 stands as 3.8 there
    same = on_meta(getattr(resnet, name.removeprefix("original_")))
    assert counting.parameters(network) == counting.parameters(same)


def test_the_strides_of_v1_5_cost_three_more_quarters_of_three_convolutions():
    saved = sum(
        3 * side * side * c_in * width
        for side, c_in, width in ((28, 256, 128), (14, 512, 256), (7, 1024, 512))
    )
    assert macs_of(on_meta(resnet.resnet50)) - macs_of(on_meta(resnet.original_resnet50)) == saved


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50", "resnet50d"])
def test_outputs_equal_the_library_with_copied_weights(name):
    torch.manual_seed(0)
    reference, network = checks.randomise_norms(library(name)), getattr(resnet, name)()
    checks.transplant(reference, network)
    x = torch.randn(2, 3, 75, 97)
    with torch.no_grad():
        expected, found = reference.eval()(x), network.eval()(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_original_strides_equal_torchvision_with_its_strides_moved():
    torch.manual_seed(0)
    reference = checks.randomise_norms(torchvision.models.resnet50())
    for module in reference.modules():
        if isinstance(module, torchvision.models.resnet.Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
    network = resnet.original_resnet50()
    checks.transplant(reference, network)
    checks.same_outputs(network, reference, torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("name", ["resnet34", "resnet101", "resnet152", "wide_resnet101"])
def test_larger_sizes_have_the_tensors_of_the_library_in_their_order(name):
    ours, theirs = on_meta(getattr(resnet, name)), on_meta(lambda: library(name))
    shapes = [[t.shape for t in model.state_dict().values()] for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_batch_norm_has_the_constants_of_the_library():
    ours, theirs = on_meta(resnet.resnet50), on_meta(torchvision.models.resnet50)
    constants = [
        [(m.eps, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for model in (ours, theirs)
    ]
    assert constants[0] == constants[1]


@pytest.mark.parametrize("name", ["original_resnet50", "resnet50d"])
@pytest.mark.parametrize(("batch", "height", "width"), [(3, 225, 161), (1, 64, 256)])
def test_any_batch_and_map_size_goes_through(name, batch, height, width):
    network = on_meta(getattr(resnet, name)).eval()
    x = torch.empty(batch, 3, height, width, device="meta")
    assert network(x).shape == (batch, 1000)
    ceil = [-(-side // 32) for side in (height, width)]
    assert network[:5](x).shape == (batch, 2048, *ceil)


@pytest.mark.parametrize("block", [resnet.Bottleneck, resnet.OriginalBottleneck])
def test_a_zero_branch_leaves_relu_of_the_input(block):
    x = torch.randn(2, 256, 7, 5)
    zeroed = resnet.zero_last_gamma(block(256, 64))
    torch.testing.assert_close(zeroed(x), torch.relu(x), rtol=0, atol=0)
    assert not torch.allclose(block(256, 64)(x), torch.relu(x))


def test_the_zeroed_scales_are_those_of_the_last_batch_norm_of_each_branch():
    modules = resnet.zero_last_gamma(resnet.resnet18()).named_modules()
    norms = [(name, m) for name, m in modules if isinstance(m, nn.BatchNorm2d)]
    zeros = [name for name, m in norms if not m.weight.any()]
    assert len(zeros) == 8
    assert all(name.endswith("branch.2.1") for name in zeros)


def test_a_block_without_shortcut_is_relu_of_its_branch():
    block = resnet.BasicBlock(8, 16, 2, resnet.NoShortcut).eval()
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(block(x), torch.relu(block.branch(x)))


def test_a_plain_network_has_no_shortcut_in_any_block():
    network = on_meta(lambda: resnet.digit_network(20, resnet.NoShortcut))
    blocks = [m for m in network.modules() if isinstance(m, resnet.ResidualBlock)]
    assert len(blocks) == 9
    assert all(isinstance(block.shortcut, resnet.NoShortcut) for block in blocks)


def test_zero_padding_keeps_every_second_pixel_and_adds_empty_channels():
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    y = resnet.ZeroPad(2, 5, 2)(x)
    torch.testing.assert_close(y[:, :2], x[:, :, [0, 2]][..., [0, 2]])
    torch.testing.assert_close(y[:, 2:], torch.zeros(1, 3, 2, 2))


def test_the_pooled_shortcut_reads_every_pixel_and_the_projection_one_in_four():
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    read = {}
    for shortcut in (resnet.projection, resnet.pooled_projection):
        (gradient,) = torch.autograd.grad(shortcut(8, 16, 2).eval()(x).sum(), x)
        read[shortcut] = (gradient != 0).double().mean().item()
    assert read[resnet.projection] == pytest.approx(0.25)
    assert read[resnet.pooled_projection] == pytest.approx(1.0)


def test_convolutions_start_with_variance_two_over_fan_out():
    torch.manual_seed(0)
    conv = resnet.resnet18()[4][0].branch[0][0]  # 3x3, from 256 channels to 512
    expected = (2 / (512 * 9)) ** 0.5
    torch.testing.assert_close(conv.weight.std().item(), expected, rtol=0.01, atol=0)


@pytest.mark.parametrize(("depth", "parameters"), [(14, 43_490), (32, 116_738)])
def test_plain_and_residual_networks_start_from_the_same_weights(depth, parameters):
    networks = []
    for shortcut in (resnet.NoShortcut, resnet.ZeroPad):
        torch.manual_seed(0)
        networks.append(resnet.digit_network(depth, shortcut))
    plain, residual = networks
    assert counting.parameters(plain) == parameters
    for a, b in zip(plain.state_dict().values(), residual.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    layers = [m for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_depths_other_than_6n_plus_2_are_refused():
    with pytest.raises(AssertionError, match="6n"):
        resnet.digit_network(20 + 1, resnet.ZeroPad)


def test_the_gradient_measure_does_not_depend_on_the_scale_of_the_kernels():
    torch.manual_seed(0)
    x, y = torch.randn(16, 1, 20, 20), torch.randint(10, (16,))
    network = resnet.digit_network(14, resnet.NoShortcut).double()
    norms = resnet.block_gradients(network, x.double(), y)
    with torch.no_grad():
        for block in (m for m in network.modules() if isinstance(m, resnet.ResidualBlock)):
            block.branch[0][0].weight.mul_(3)
    scaled = resnet.block_gradients(network, x.double(), y)
    torch.testing.assert_close(scaled, norms, rtol=1e-3, atol=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradients_grow_towards_the_input_without_shortcuts_and_hardly_with_them(seed):
    growth = {}
    for shortcut in (resnet.NoShortcut, resnet.ZeroPad):
        torch.manual_seed(seed)
        x, y = torch.randn(64, 1, 20, 20), torch.randint(10, (64,))
        norms = resnet.block_gradients(resnet.digit_network(32, shortcut), x, y)
        assert len(norms) == 15
        growth[shortcut] = norms[0] / norms[-1]
    assert growth[resnet.NoShortcut] > 4
    assert growth[resnet.ZeroPad] < 3


@pytest.mark.parametrize("block", [resnet.BasicBlock, resnet.Bottleneck, resnet.WideBottleneck])
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(block):
    torch.manual_seed(0)
    network = resnet.resnet(block, (1, 1, 1), resnet.digit_stem, (8, 16, 32), num_classes=10)
    x, y = torch.randn(20, 1, 28, 28), torch.arange(20) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    losses = training.fit(network, (x, y), 30, optimizer)["loss"]
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize("number", [0, 1, 2])
def test_copying_is_learnt_better_with_the_input_added(number):
    for n in (1, 4):
        plain, residual = (resnet.learn_to_copy(n, kind, number=number)[-1] for kind in (0, 1))
        assert residual < plain / 100


def test_small_initial_branches_are_what_lets_four_residual_ones_copy():
    small, large = (resnet.learn_to_copy(4, True, he)[-1] for he in (False, True))
    assert large > 100 * small


def test_the_schedule_rises_from_a_twenty_fifth_for_a_fifth_and_falls_to_nothing():
    optimizer, schedule = resnet.recipe(nn.Linear(1, 1), 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if len(rates) < 100 else None
    assert rates[0] == pytest.approx(0.004)
    assert max(rates) == pytest.approx(0.1, rel=1e-3)
    assert rates.index(max(rates)) == 19
    assert rates[-1] < 1e-5


def test_torchvision_gives_the_accuracies_the_recipe_table_quotes():
    old, new = torchvision.models.ResNet50_Weights
    top1 = [weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] for weights in (old, new)]
    assert top1 == pytest.approx([76.130, 80.858])


@pytest.mark.parametrize("name", SIZES)
def test_every_size_runs_forward_and_backward_on_the_meta_device(name):
    network = on_meta(getattr(resnet, name))
    network(torch.empty(2, 3, 64, 64, device="meta")).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("shortcut", [resnet.NoShortcut, resnet.ZeroPad])
def test_the_digit_networks_run_forward_and_backward_on_the_meta_device(shortcut):
    network = on_meta(lambda: resnet.digit_network(14, shortcut))
    network(torch.empty(2, 1, 28, 28, device="meta")).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
