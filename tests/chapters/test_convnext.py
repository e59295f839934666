"""The steps from ResNet-50 to ConvNeXt and the networks of notebooks/convnext.py."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import convnext as library
from torchvision.ops import StochasticDepth

import networks
from loader import definitions
from networks import macs_of, on_meta, parameters_of

convnext = definitions("convnext")

# Entries whose weights torchvision publishes; they hold parameters and G MACs at 224x224.
PUBLISHED = {
    "convnext_tiny": torchvision.models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1,
    "convnext_small": torchvision.models.ConvNeXt_Small_Weights.IMAGENET1K_V1,
    "convnext_base": torchvision.models.ConvNeXt_Base_Weights.IMAGENET1K_V1,
    "convnext_large": torchvision.models.ConvNeXt_Large_Weights.IMAGENET1K_V1,
}
# Liu et al. 2022, table 10: GFLOPs of each step but the last two.
TABLE10 = {
    "ResNet-50": 4.09,
    "stage ratio": 4.53,
    "patchify stem": 4.42,
    "depthwise": 2.35,
    "wider": 5.27,
    "inverted": 4.64,
    "depthwise first": 4.07,
    "7×7 kernels": 4.15,
    "GELU": 4.15,
    "fewer activations": 4.15,
    "fewer norms": 4.15,
}
STEPS = (*TABLE10, "layer norm", "separate downsampling")


def narrow(dropped=0.0):
    """torchvision's ConvNeXt with 8 to 64 channels and the depths 1, 2, 3, 1."""
    widths = (8, 16, 32, 64, None)
    rows = zip(widths, widths[1:], (1, 2, 3, 1))
    settings = [library.CNBlockConfig(*row) for row in rows]
    return library.ConvNeXt(settings, stochastic_depth_prob=dropped, num_classes=10)


def ours(dropped=0.0, **how):
    return convnext.ConvNeXt((1, 2, 3, 1), width=8, dropped=dropped, num_classes=10, **how)


def dropped_shares(network):
    return [1 - m.kept for m in network.modules() if isinstance(m, convnext.StochasticDepth)]


def noted(network, size=64):
    """The shapes that the stages of a network give, for a square image."""
    shapes = []
    for name in ("stem", "stage1", "stage2", "stage3", "stage4"):
        part = getattr(network, name)
        part.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[1:])))
    network(torch.empty(2, 3, size, size, device="meta"))
    return shapes


# ---- layer norm ----------------------------------------------------------------------------------


def test_channel_norm_is_the_layer_norm_of_torch_over_channels():
    torch.manual_seed(0)
    norm, theirs = convnext.ChannelNorm(6), library.LayerNorm2d(6, eps=1e-6)
    x = 0.003 * torch.randn(2, 6, 3, 4)  # so small that epsilon counts
    networks.same_function(norm, theirs, x)


def test_fresh_channel_norm_gives_each_pixel_mean_zero_and_variance_one():
    y = convnext.ChannelNorm(64)(5 + 3 * torch.randn(2, 64, 3, 3))
    assert y.mean(1).abs().max() < 1e-5
    torch.testing.assert_close(y.var(1, correction=0), torch.ones(2, 3, 3))


# ---- the block -----------------------------------------------------------------------------------


def test_stochastic_depth_drops_whole_branches_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = convnext.StochasticDepth(0.25)
    y = drop.train()(torch.ones(4000, 2, 3, 1))
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert all(len(image.unique()) == 1 for image in y)
    assert y.mean().item() == pytest.approx(1, abs=0.03)
    networks.close(drop.eval()(y), y, 0)


@pytest.mark.parametrize("dropped", [0.0, 0.5])
def test_a_block_does_what_that_of_torchvision_does_in_training_too(dropped):
    torch.manual_seed(0)
    block = convnext.Block(12, dropped=dropped)
    theirs = library.CNBlock(12, 1e-6, dropped)
    networks.same_function(block, theirs, torch.randn(6, 12, 9, 11))


def test_a_block_of_scale_zero_is_the_identity_and_a_fresh_one_nearly_so():
    x = torch.randn(2, 8, 6, 5)
    networks.close(convnext.Block(8, scale=0.0)(x), x, 0)
    fresh = convnext.Block(8)
    assert not torch.equal(fresh(x), x)
    networks.close(fresh(x), x, 1e-5)
    assert fresh.scale.unique().item() == pytest.approx(1e-6)


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_a_block_reads_as_far_as_its_kernel(kernel):
    x = torch.randn(1, 4, 11, 11, requires_grad=True)
    y = convnext.Block(4, kernel=kernel, scale=1.0)(x)
    (gradient,) = torch.autograd.grad(y[0, :, 5, 5].sum(), x)
    read = gradient.abs().sum((0, 1)) > 0
    first = 5 - kernel // 2
    assert read.sum() == kernel**2
    assert read[first : first + kernel, first : first + kernel].all()


# ---- the published networks ----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "weights"), PUBLISHED.items())
def test_published_sizes_have_the_parameters_and_macs_torchvision_gives(name, weights):
    network = on_meta(getattr(convnext, name))
    assert parameters_of(network) == weights.meta["num_params"]
    assert round(macs_of(network) / 1e9, 3) == weights.meta["_ops"]
    dropped = {"convnext_tiny": 0.1, "convnext_small": 0.4}.get(name, 0.5)  # table 5
    assert dropped_shares(network)[-1] == pytest.approx(dropped)


@pytest.mark.parametrize("name", ["convnext_tiny", "convnext_small"])
def test_a_size_has_the_layers_and_dropped_shares_of_torchvision(name):
    network, theirs = on_meta(getattr(convnext, name)), on_meta(getattr(library, name))
    networks.same_layers(network, theirs, 1, 3, 32, 32)
    expected = [m.p for m in theirs.modules() if isinstance(m, StochasticDepth) and m.p]
    assert dropped_shares(network) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dropped", [0.0, 0.6])
def test_with_the_same_weights_a_network_does_what_that_of_torchvision_does(dropped):
    torch.manual_seed(0)
    network, theirs = ours(dropped), narrow(dropped)
    networks.same_function(network, theirs, torch.randn(3, 3, 64, 96))
    for norm in (m for m in network.modules() if isinstance(m, nn.LayerNorm)):
        assert norm.eps == theirs.classifier[0].eps


def test_nothing_is_dropped_and_the_branches_are_small_unless_it_is_said():
    network = convnext.ConvNeXt((1, 1, 1, 1), width=8)
    assert dropped_shares(network) == []
    assert network.stage1[0].scale.unique().item() == pytest.approx(1e-6)
    assert network.classifier.out_features == 1000


def test_weights_start_with_a_deviation_of_a_fiftieth_and_biases_at_zero():
    torch.manual_seed(0)
    network = convnext.ConvNeXt((1, 1, 1, 1), width=32)
    networks.starts_with(network.stage4[0].expand.weight, 0.02)
    networks.starts_with(network.halve3[1].weight, 0.02)
    assert not network.stage4[0].expand.bias.any()
    assert not network.stem[0].bias.any()


def test_shapes_halve_from_stage_to_stage_also_for_maps_that_are_not_square():
    network = on_meta(ours)
    shapes = [(8, 16, 16), (8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]
    assert noted(network) == shapes
    assert networks.runs_on_meta(on_meta(ours, 0.3), 3, 3, 70, 101).shape == (3, 10)


# ---- the steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "giga"), TABLE10.items())
def test_each_step_costs_what_table_10_says(name, giga):
    network = on_meta(convnext.steps()[name])
    assert macs_of(network) / 1e9 == pytest.approx(giga, abs=0.0055)
    assert convnext.PAPER[name][1] == giga


def test_layer_norm_costs_what_batch_norm_costs_and_the_last_step_what_torchvision_counts():
    built = convnext.steps()
    norms = [macs_of(on_meta(built[name])) for name in ("fewer norms", "layer norm")]
    assert norms[0] == norms[1] == pytest.approx(4.146e9, abs=5e5)
    last = macs_of(on_meta(built["separate downsampling"]))
    assert round(last / 1e9, 3) == PUBLISHED["convnext_tiny"].meta["_ops"]


def test_the_first_step_is_torchvisions_resnet_and_the_last_its_convnext():
    built = convnext.steps()
    assert list(built) == list(STEPS) == list(convnext.PAPER)
    first, last = on_meta(built["ResNet-50"]), on_meta(built["separate downsampling"])
    networks.same_layers(first, on_meta(torchvision.models.resnet50), 1, 3, 64, 64)
    networks.same_layers(last, on_meta(library.convnext_tiny), 1, 3, 64, 64)
    assert last.stage3[0].scale.shape == (384, 1, 1)
    assert convnext.steps(shrink=16)["separate downsampling"]().stage1[0].scale.unique() == 1


def test_resnet_with_the_same_weights_does_what_that_of_torchvision_does():
    torch.manual_seed(0)
    network = convnext.StepNetwork(
        convnext.Bottleneck, (1, 1, 1, 1), width=64, stem=convnext.Stem, num_classes=10
    )
    theirs = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10
    )
    networks.same_function(network, theirs, torch.randn(2, 3, 50, 64))


@pytest.mark.parametrize("name", STEPS)
def test_every_step_runs_forward_and_backward_on_the_meta_device(name):
    network = on_meta(convnext.steps(shrink=4)[name])
    assert networks.runs_on_meta(network, 2, 3, 64, 32).shape == (2, 1000)


BRANCHES = {  # what a branch of width 4 calls, in order; d is depthwise
    "Bottleneck": ("1", "norm", "relu", "3", "norm", "relu", "1", "norm"),
    "DepthwiseBottleneck": ("1", "norm", "relu", "d3", "norm", "relu", "1", "norm"),
    "InvertedBottleneck": ("1", "norm", "relu", "d3", "norm", "relu", "1", "norm"),
    "DepthwiseFirst": ("d3", "norm", "relu", "1", "norm", "relu", "1", "norm"),
    "Kernel5": ("d5", "norm", "relu", "1", "norm", "relu", "1", "norm"),
    "LargeKernel": ("d7", "norm", "relu", "1", "norm", "relu", "1", "norm"),
    "Kernel9": ("d9", "norm", "relu", "1", "norm", "relu", "1", "norm"),
    "Kernel11": ("d11", "norm", "relu", "1", "norm", "relu", "1", "norm"),
    "WithGelu": ("d7", "norm", "gelu", "1", "norm", "gelu", "1", "norm"),
    "FewerActivations": ("d7", "norm", "1", "norm", "gelu", "1", "norm"),
    "FewerNorms": ("d7", "norm", "1", "gelu", "1"),
    "WithLayerNorm": ("d7", "layer norm", "1", "gelu", "1"),
}
LAST = {"WithGelu": nn.GELU, "FewerActivations": nn.Identity, "FewerNorms": nn.Identity}
LAST["WithLayerNorm"] = nn.Identity
WORDS = {
    "BatchNorm2d": "norm",
    "ChannelNorm": "layer norm",
    "ReLU": "relu",
    "GELU": "gelu",
}


def word(layer):
    if not isinstance(layer, nn.Conv2d):
        return WORDS[type(layer).__name__]
    mixes = "d" if layer.groups == layer.in_channels > 1 else ""
    assert layer.padding == (layer.kernel_size[0] // 2,) * 2
    return f"{mixes}{layer.kernel_size[0]}"


@pytest.mark.parametrize("name", BRANCHES)
def test_the_block_of_a_step_has_these_layers_and_halves_the_map_once(name):
    kind = getattr(convnext, name)
    block = kind(6, 4, stride=2)
    leaves = [m for m in block.branch.modules() if type(m).__name__ in (*WORDS, "Conv2d")]
    assert tuple(word(m) for m in leaves) == BRANCHES[name]
    assert type(block.activation) is LAST.get(name, nn.ReLU)
    assert [m.stride[0] for m in leaves if isinstance(m, nn.Conv2d)].count(2) == 1
    depthwise = [m for m in leaves if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert depthwise[0].stride == (2, 2)
    assert block(torch.randn(2, 6, 7, 8)).shape == (2, 4 * kind.expansion, 4, 4)
    norm = convnext.ChannelNorm if name == "WithLayerNorm" else nn.BatchNorm2d
    assert type(block.shortcut[1]) is norm
    biases = [m.bias is not None for m in leaves if isinstance(m, nn.Conv2d)]
    fewer = name in ("FewerNorms", "WithLayerNorm")
    assert biases == [False, fewer, fewer]


def test_the_shortcut_is_the_identity_where_the_shapes_allow_and_a_zero_branch_leaves_it():
    block = convnext.FewerNorms(6, 6)
    assert isinstance(block.shortcut, nn.Identity)
    nn.init.zeros_(block.branch[-1].weight)
    nn.init.zeros_(block.branch[-1].bias)
    x = torch.randn(2, 6, 5, 5)
    networks.close(block(x), x, 0)
    assert not isinstance(convnext.FewerNorms(6, 6, stride=2).shortcut, nn.Identity)
    assert not isinstance(convnext.FewerNorms(6, 4).shortcut, nn.Identity)
    relu = convnext.DepthwiseFirst(6, 6)
    nn.init.zeros_(relu.branch[-1][1].weight)
    networks.close(relu(x), torch.relu(x), 0)


def test_patches_of_four_pixels_do_not_overlap():
    torch.manual_seed(0)
    stem = convnext.Patchify(5).eval()
    x = torch.randn(2, 3, 8, 12)
    by_hand = torch.einsum("bcyixj,ocij->boyx", x.view(2, 3, 2, 4, 3, 4), stem.patches.weight)
    networks.close(stem(x), torch.relu(stem.norm(by_hand)))
    assert stem.patches.bias is None
    stem.norm.running_var.fill_(1e-5)
    networks.close(stem(x), torch.relu(by_hand) / 2e-5**0.5)  # with the epsilon of torch


def test_a_network_that_is_shrunk_has_that_share_of_the_channels():
    for name, channels in (("ResNet-50", 16), ("separate downsampling", 24)):
        stem = on_meta(convnext.steps(shrink=4)[name]).stem
        assert next(stem.parameters()).shape[0] == channels


def test_what_is_counted_are_parameters_and_the_macs_of_one_colour_image_of_224_pixels():
    assert convnext.counted(lambda: nn.Conv2d(3, 2, (3, 1))) == (20, 2 * 9 * 222 * 224)


def test_features_are_the_third_stage_and_the_rest_follows():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    step = convnext.steps(shrink=16)["wider"]().eval()
    maps = step.stage3(step.stage2(step.stage1(step.stem(x))))
    networks.close(step.features(x), maps, 0)
    networks.close(step(x), step.classifier(step.stage4(maps).mean((2, 3))), 0)
    assert [len(part) for part in (step.stage1, step.stage2, step.stage3, step.stage4)] == [
        *convnext.RATIO
    ]


# ---- the field -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("top", "side"), [(0, 11), (4, 11), (6, 7), (3, 1)])
def test_the_field_of_a_square_is_the_square_that_holds_the_share(top, side):
    gradient = torch.zeros(1, 2, 20, 30)
    gradient[0, :, top : top + side, 8 : 8 + side] = torch.tensor([1.0, -1.0])[:, None, None]
    rings = [(2 * r + 1, (2 * r + 1) ** 2 / side**2) for r in range(side)]
    for share in (0.1, 0.5, 0.95):
        expected = next(width for width, held in rings if held >= share)
        found = convnext.side_of_field(gradient, share=share)
        assert found == pytest.approx(expected, abs=1e-3)
    exactly_half = torch.tensor([[[[1.0, 2.0, 1.0]]]])
    assert convnext.side_of_field(exactly_half) == 1
    half = convnext.side_of_field(gradient)
    assert half == pytest.approx(next(width for width, held in rings if held >= 0.5), abs=1e-3)


def test_the_middle_gradient_is_that_of_the_middle_and_leaves_the_image_alone():
    torch.manual_seed(0)
    network = convnext.Isotropic(1, 8, patch=2, c_in=1, num_classes=3, kernel=3, scale=1.0)
    x = torch.randn(1, 1, 18, 14)
    gradient = convnext.middle_gradient(network, x)
    assert gradient.shape == x.shape
    assert not x.requires_grad
    read = gradient[0, 0] != 0
    assert read[6:12, 4:10].all()  # three patches a side around (4, 3)
    assert read.sum() == 36
    torch.manual_seed(1)
    found = convnext.middle_gradient(network, x)
    torch.manual_seed(1)
    direction = torch.randn(1, 8)
    y = x.clone().requires_grad_()
    (direction * network.features(y)[:, :, 4, 3]).sum().backward()
    networks.close(found, y.grad)


def test_settled_batch_norms_remember_one_image_and_evaluate_with_it():
    torch.manual_seed(0)
    network = convnext.steps(shrink=16)["7×7 kernels"]().eval()
    x = 2 + torch.randn(1, 3, 64, 64)
    convnext.settle(network, x)
    assert not network.training
    maps = network.stem.patches(x)
    networks.close(network.stem.norm.running_mean, maps.mean((0, 2, 3)))
    networks.close(network.stem.norm.running_var, maps.var((0, 2, 3)))
    y = network.stem.norm(maps)
    assert y.mean().abs() < 1e-5
    without = ours(dropped=0.5)
    convnext.settle(without, None)  # no norm, no pass
    assert not without.training


def test_weights_of_the_measured_networks_have_variance_two_over_fan_in():
    torch.manual_seed(0)
    network = convnext.ConvNeXt((1, 1, 1, 1), width=32)
    convnext.he_init(network)
    networks.starts_with(network.stage4[0].expand.weight, (2 / 256) ** 0.5)
    networks.starts_with(network.stage4[0].depthwise.weight, (2 / 49) ** 0.5)


def test_an_untrained_gradient_is_of_noise_of_the_size_in_a_settled_network_with_fresh_weights():
    torch.manual_seed(0)
    network = convnext.steps(shrink=16)["depthwise first"]()
    before = network.stem.patches.weight.clone()
    torch.manual_seed(3)
    found = convnext.untrained_gradient(network, size=64)
    assert found.shape == (1, 3, 64, 64)
    assert not torch.equal(network.stem.patches.weight, before)
    assert network.stem.patches.weight.is_contiguous(memory_format=torch.channels_last)
    network.to(memory_format=torch.contiguous_format)  # weights are drawn in the order of memory
    torch.manual_seed(3)
    convnext.he_init(network)
    x = torch.randn(1, 3, 64, 64)
    convnext.settle(network, x)
    networks.close(found, convnext.middle_gradient(network, x), 1e-4)


def test_the_centre_is_the_mean_place_whatever_the_weights_sum_to():
    weight = torch.zeros(9, 14)
    weight[2, 3] = 3.0
    weight[6, 11] = 1.0
    row, column = convnext.centre_of(weight)
    assert (row.item(), column.item()) == pytest.approx((3, 5))
    assert convnext.centre_of(weight.to("meta"))[1].is_meta


def test_a_masked_copy_keeps_the_kernels_where_the_mask_is_one_and_the_network_as_it_was():
    torch.manual_seed(0)
    network = convnext.digit_network(7)
    mask = torch.zeros(7, 7)
    mask[1, 2] = 1
    copy = convnext.masked(network, mask)
    for block, before in zip(copy.blocks, network.blocks):
        kernels = block.depthwise.weight
        assert (kernels != 0).sum() == len(kernels)
        networks.close(kernels[:, 0, 1, 2], before.depthwise.weight[:, 0, 1, 2], 0)
        assert (before.depthwise.weight != 0).all()
        networks.close(block.expand.weight, before.expand.weight, 0)


def test_what_is_woken_is_neither_one_nor_zero_nor_a_millionth():
    torch.manual_seed(0)
    network = convnext.wake(narrow())
    lowest = []
    for name, p in network.named_parameters():
        if name.endswith("layer_scale"):
            assert p.min() >= 0.5 and p.max() <= 1.5
            assert len(p.unique()) == p.numel()
            lowest.append(p.min().item())
    assert min(lowest) < 0.7
    norms = [m for m in network.modules() if isinstance(m, nn.LayerNorm)]
    for norm in norms:
        assert norm.weight.min() >= 0.5 and norm.weight.max() <= 1.5
        assert norm.weight.std() > 0.1
        assert 0.01 < norm.bias.std() < 0.3
    means = torch.cat([norm.bias.detach() for norm in norms])
    assert abs(means.mean().item()) < 0.02
    assert 0.08 < means.std() < 0.12
    resnet = convnext.wake(torchvision.models.resnet18())
    assert resnet.bn1.running_mean.any()


# ---- the isotropic networks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "width", "millions", "giga"),
    [(18, 384, 22, 4.3), (18, 768, 87, 16.9), (36, 1024, 306, 59.7)],
)
def test_isotropic_sizes_cost_what_table_2_says(n, width, millions, giga):
    network = on_meta(convnext.Isotropic, n, width)
    assert round(parameters_of(network) / 1e6) == millions
    assert round(macs_of(network) / 1e9, 1) == giga


def test_an_isotropic_network_is_patches_blocks_mean_norm_linear():
    torch.manual_seed(0)
    network = convnext.Isotropic(2, 8, patch=4, c_in=1, num_classes=5, scale=1.0)
    networks.starts_with(convnext.Isotropic(1, 64).blocks[0].expand.weight, 0.02)
    nn.init.normal_(network.norm.weight)
    x = torch.randn(2, 1, 12, 16)
    parts = nn.Sequential(network.stem, *network.blocks)
    networks.close(network(x), network.classifier(network.norm(parts(x).mean((2, 3)))))
    assert network.stem(x).shape == (2, 8, 3, 4)
    assert network.norm.eps == 1e-6
    assert convnext.Isotropic(1, 8).classifier.out_features == 1000
    meta = on_meta(convnext.Isotropic, 2, 8, patch=4, num_classes=5)
    assert networks.runs_on_meta(meta, 3, 3, 20, 28).shape == (3, 5)


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_a_digit_network_has_two_blocks_of_one_kernel(kernel):
    network = convnext.digit_network(kernel)
    assert network.stem.weight.shape == (16, 1, 4, 4)
    assert [b.depthwise.weight.shape[-1] for b in network.blocks] == [kernel] * 2
    assert [b.scale.unique().item() for b in network.blocks] == [1.0, 1.0]
    assert convnext.digit_network(3, width=19).blocks[1].scale.shape == (19, 1, 1)
    assert network.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert on_meta(convnext.digit_network, kernel)(
        torch.empty(3, 1, 28, 28, device="meta")
    ).shape == (3, 10)


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    torch.manual_seed(0)
    networks.learns(convnext.digit_network(7), torch.randn(20, 1, 28, 28), rate=0.02, steps=30)
    step = convnext.StepNetwork(
        convnext.WithLayerNorm, (1, 1, 1, 1), width=8, stem=convnext.Patchify, num_classes=10
    )
    networks.learns(step, torch.randn(10, 3, 32, 32), rate=0.01, steps=25)


def test_the_rate_rises_for_a_fifth_of_the_steps_and_falls_to_nothing(monkeypatch):
    rates, settings = networks.steps_of(monkeypatch, convnext.training, batches=5)
    part = torch.zeros(230, 1, 28, 28), torch.zeros(230)  # five batches of 50 at most
    assert convnext.train(nn.Linear(1, 1), part) == [1.0] * convnext.EPOCHS
    assert len(rates) == 5 * convnext.EPOCHS
    assert (settings["weight_decay"], settings["batch"], settings["fused"]) == (0.05, 50, True)
    networks.rises_and_falls(rates, peak=0.03, at=convnext.EPOCHS - 1)
