"""The residual networks of notebooks/resnet.py."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet as library

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

net = definitions("resnet")

PUBLISHED = {  # torchvision's name and its weights
    "resnet18": ("resnet18", library.ResNet18_Weights.IMAGENET1K_V1),
    "resnet34": ("resnet34", library.ResNet34_Weights.IMAGENET1K_V1),
    "resnet50": ("resnet50", library.ResNet50_Weights.IMAGENET1K_V2),
    "resnet101": ("resnet101", library.ResNet101_Weights.IMAGENET1K_V2),
    "resnet152": ("resnet152", library.ResNet152_Weights.IMAGENET1K_V2),
    "wide_resnet50": ("wide_resnet50_2", library.Wide_ResNet50_2_Weights.IMAGENET1K_V2),
    "wide_resnet101": ("wide_resnet101_2", library.Wide_ResNet101_2_Weights.IMAGENET1K_V2),
}
BLOCKS = ["BasicBlock", "Bottleneck", "OriginalBottleneck", "WideBottleneck"]


def digits(block="BasicBlock", shortcut="projection"):
    """A small network of three stages for maps of one channel."""
    block, shortcut = getattr(net, block), getattr(net, shortcut)
    return net.resnet(block, (1, 2, 1), net.digit_stem, (8, 12, 16), shortcut, 10)


def library_block(name, c_in, width, stride):
    """The library's block; torchvision's bottleneck takes the stride in the 3x3."""
    kind = library.BasicBlock if name == "BasicBlock" else library.Bottleneck
    c_out, how = kind.expansion * width, {"base_width": 128 if name == "WideBottleneck" else 64}
    same = stride == 1 and c_in == c_out
    conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
    shortcut = None if same else nn.Sequential(conv, nn.BatchNorm2d(c_out))
    block = kind(c_in, width, stride, shortcut, **how)
    if name == "OriginalBottleneck":
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return block


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_parameters_torchvision_gives(name):
    assert parameters_of(on_meta(getattr(net, name))) == PUBLISHED[name][1].meta["num_params"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_published_sizes_have_the_layers_and_macs_torchvision_gives(name):
    network, (builder, weights) = on_meta(getattr(net, name)), PUBLISHED[name]
    networks.same_layers(network, on_meta(getattr(library, builder)))
    assert round(macs_of(network) / 1e9, 3) == weights.meta["_ops"]


def test_resnet50d_has_the_layers_of_timm():
    networks.same_layers(on_meta(net.resnet50d), on_meta(timm.create_model, "resnet50d"))


def macs_by_hand(depths):
    """Stem, bottlenecks with the stride in the first 1x1, linear layer; figure 5 and table 1."""
    total, c_in = 112 * 112 * 7 * 7 * 3 * 64 + 2048 * 1000, 64
    for depth, width, side in zip(depths, (64, 128, 256, 512), (56, 28, 14, 7), strict=True):
        for _ in range(depth):
            total += side * side * (c_in * width + 9 * width * width + 4 * width * width)
            total += side * side * 4 * width * c_in if c_in != 4 * width else 0
            c_in = 4 * width
    return total


def test_original_strides_cost_what_a_sum_by_hand_and_table_1_give():
    macs = macs_of(on_meta(net.original_resnet50))
    assert macs == macs_by_hand((3, 4, 6, 3))
    assert macs / 1e9 == pytest.approx(3.8, abs=0.06)  # 3.858 stands as 3.8 there


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnet152"])
def test_original_networks_differ_in_their_blocks_alone(name):
    network = on_meta(getattr(net, f"original_{name}"))
    assert parameters_of(network) == PUBLISHED[name][1].meta["num_params"]
    blocks = [m for m in network.modules() if isinstance(m, net.ResidualBlock)]
    assert all(type(block) is net.OriginalBottleneck for block in blocks)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(
    ("c_in", "width", "stride"), [(32, 8, 1), (12, 8, 1), (12, 8, 2), (32, 8, 2)]
)
def test_each_block_does_what_the_library_s_does(name, c_in, width, stride):
    torch.manual_seed(0)
    reference = library_block(name, c_in, width, stride)
    block = getattr(net, name)(c_in, width, *([stride] if stride > 1 else []))
    networks.same_function(block, reference, torch.randn(3, c_in, 7, 10))


def test_the_network_does_what_torchvision_s_does_on_maps_of_odd_size():
    torch.manual_seed(0)
    network = on_meta(net.resnet, net.BasicBlock, (1, 1, 1, 1))
    reference = on_meta(library.ResNet, library.BasicBlock, [1, 1, 1, 1])
    networks.same_function(network, reference, torch.randn(3, 3, 41, 70), 2e-5)


def test_the_network_of_type_d_does_what_timm_s_does_on_maps_of_odd_size():
    torch.manual_seed(0)
    widths = (8, 12, 16, 20)
    how = {"make_stem": net.deep_stem, "widths": widths, "shortcut": net.pooled_projection}
    network = net.resnet(net.Bottleneck, (1, 1, 1, 1), **how)
    how = {"channels": widths, "stem_width": 4, "stem_type": "deep", "avg_down": True}
    reference = timm.models.ResNet(timm.models.resnet.Bottleneck, [1, 1, 1, 1], **how)
    networks.same_function(network, reference, torch.randn(3, 3, 41, 70), 2e-5)


@pytest.mark.parametrize(("batch", "height", "width"), [(3, 225, 161), (1, 64, 256)])
def test_any_batch_and_map_size_goes_through(batch, height, width):
    how = {"make_stem": net.deep_stem, "shortcut": net.pooled_projection}
    network = on_meta(net.resnet, net.Bottleneck, (1, 1, 1, 1), **how)
    maps = network[:5](torch.empty(batch, 3, height, width, device="meta"))
    assert maps.shape == (batch, 2048, -(-height // 32), -(-width // 32))
    assert network[5:](maps).shape == (batch, 1000)


@pytest.mark.parametrize("block", ["Bottleneck", "OriginalBottleneck"])
def test_a_zero_branch_leaves_relu_of_the_input(block):
    x, block = torch.randn(2, 256, 7, 5), getattr(net, block)(256, 64)
    assert not torch.allclose(block(x), torch.relu(x))
    torch.testing.assert_close(net.zero_last_gamma(block)(x), torch.relu(x), rtol=0, atol=0)


def test_the_zeroed_scales_are_those_of_the_last_batch_norm_of_each_branch():
    modules = net.zero_last_gamma(digits()).named_modules()
    zeros = [n for n, m in modules if isinstance(m, nn.BatchNorm2d) and not m.weight.any()]
    assert zeros == [f"stage{i}.{j}.branch.2.1" for i, j in ((1, 0), (2, 0), (2, 1), (3, 0))]


def test_a_block_without_shortcut_is_relu_of_its_branch():
    block = net.BasicBlock(8, 16, 2, net.NoShortcut).eval()
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(block(x), torch.relu(block.branch(x)))


def test_a_plain_network_has_no_shortcut_in_any_block():
    blocks = [m for m in digits(shortcut="NoShortcut").modules() if isinstance(m, net.BasicBlock)]
    assert [type(block.shortcut) for block in blocks] == [net.NoShortcut] * 4


def test_the_stem_for_digits_is_a_convolution_of_stride_two_and_a_relu():
    stem, x = net.digit_stem(5).eval(), torch.randn(2, 1, 9, 12)
    expected = F.conv2d(x, stem[0][0].weight, None, 2, 1) / (1 + 1e-5) ** 0.5
    close(stem(x), expected.relu())


def test_zero_padding_keeps_every_second_pixel_and_adds_empty_channels():
    x = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    y = net.ZeroPad(2, 5, 2)(x)
    torch.testing.assert_close(y[:, :2], x[:, :, [0, 2]][..., [0, 2, 4]])
    torch.testing.assert_close(y[:, 2:], torch.zeros(1, 3, 2, 3))


def test_the_pooled_shortcut_reads_every_pixel_and_the_projection_one_in_four():
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    for shortcut, share in (("projection", 0.25), ("pooled_projection", 1)):
        (gradient,) = torch.autograd.grad(getattr(net, shortcut)(8, 16, 2).eval()(x).sum(), x)
        assert (gradient != 0).double().mean().item() == share


def test_convolutions_start_with_variance_two_over_fan_out():
    torch.manual_seed(0)
    kernel = net.BasicBlock, (1, 1), net.digit_stem, (64, 128)
    conv = net.resnet(*kernel)[2][0].branch[0][0]  # 3x3, from 64 channels to 128
    networks.starts_with(conv.weight, (2 / (128 * 9)) ** 0.5)


def test_a_depth_of_the_digit_networks_counts_its_convolutions_and_the_linear_layer():
    network = on_meta(net.digit_network, 20, net.NoShortcut)
    layers = networks.layers_of(network, 1, 1, 20, 20, kinds=(nn.Conv2d, nn.Linear))
    assert len(layers) == 20
    with pytest.raises(AssertionError, match="6n"):
        net.digit_network(21, net.NoShortcut)


@pytest.mark.parametrize(("depth", "parameters"), [(14, 43_490), (32, 116_738)])
def test_plain_and_residual_networks_start_from_the_same_weights(depth, parameters):
    pair = []
    for shortcut in (net.NoShortcut, net.ZeroPad):
        torch.manual_seed(0)
        pair.append(net.digit_network(depth, shortcut))
    assert parameters_of(pair[0]) == parameters
    for a, b in zip(*(network.state_dict().values() for network in pair), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def gradients_by_hand(network, x, y):
    """The same from the definition of a norm, a block at a time."""
    found = []
    for block in (m for m in network.modules() if isinstance(m, net.ResidualBlock)):
        kernel = block.branch[0][0].weight
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(x), y), kernel)
        found.append(gradient.square().sum().sqrt() * kernel.detach().square().sum().sqrt())
    return torch.stack(found)


def test_block_gradients_are_norms_of_gradient_and_kernel_whatever_was_there_before():
    torch.manual_seed(0)
    network = net.digit_network(8, net.ZeroPad).double()
    x, y = torch.randn(6, 1, 12, 12).double(), torch.arange(6)
    expected = gradients_by_hand(network.train(), x, y)
    for _ in range(2):  # in evaluation mode, and with gradients of the first time
        close(torch.tensor(net.block_gradients(network.eval(), x, y)), expected.float())


def test_block_gradients_do_not_depend_on_the_scale_of_the_kernels():
    torch.manual_seed(0)
    x, y = torch.randn(16, 1, 12, 12).double(), torch.randint(10, (16,))
    network = net.digit_network(14, net.NoShortcut).double()
    larger = copy.deepcopy(network)
    for block in (m for m in larger.modules() if isinstance(m, net.ResidualBlock)):
        block.branch[0][0].weight.data.mul_(3)
    norms, scaled = (torch.tensor(net.block_gradients(n, x, y)) for n in (network, larger))
    torch.testing.assert_close(scaled, norms, rtol=1e-3, atol=0)


def test_gradients_grow_towards_the_input_without_shortcuts_and_hardly_with_them():
    growth = {}
    for shortcut in ("NoShortcut", "ZeroPad"):
        torch.manual_seed(0)
        x, y = torch.randn(32, 1, 20, 20), torch.randint(10, (32,))
        norms = net.block_gradients(net.digit_network(32, getattr(net, shortcut)), x, y)
        growth[shortcut] = norms[0] / norms[-1]
    assert growth["NoShortcut"] > 4
    assert growth["ZeroPad"] < 3


def test_a_network_without_a_block_is_the_others_in_their_order():
    network = digits().eval()
    x = torch.randn(2, 1, 12, 12)
    shorter = net.without(network, 2, 1)
    expected = network[3:](network.stage2[0](network[:2](x)))
    torch.testing.assert_close(shorter(x), expected)
    assert len(network.stage2) == 2


def test_the_network_of_the_full_profile_has_the_weights_and_input_scales_of_torchvision(
    monkeypatch,
):
    torch.manual_seed(0)
    reference = library.ResNet(library.Bottleneck, [1, 1, 1, 1]).eval()
    asked = []
    monkeypatch.setattr(
        torchvision.models, "resnet50", lambda **how: asked.append(how) or reference
    )
    x = torch.randn(2, 3, 33, 33)
    expected = reference(x)
    small = lambda: net.resnet(net.Bottleneck, (1, 1, 1, 1))  # noqa: E731
    monkeypatch.setitem(net.imagenet_network.__globals__, "resnet50", small)
    network, mean, scale = net.imagenet_network()
    close(network.eval()(x), expected)
    weights = library.ResNet50_Weights.IMAGENET1K_V2
    assert asked == [{"weights": weights, "progress": False}]
    given = weights.transforms()
    assert (mean.flatten().tolist(), mean.shape) == (pytest.approx(given.mean), (3, 1, 1))
    assert scale.flatten().tolist() == pytest.approx(given.std)


def test_copying_is_learnt_better_with_the_input_added():
    plain, residual = (net.learn_to_copy(1, kind)[-1] for kind in (False, True))
    assert residual < plain / 100


@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(block):
    torch.manual_seed(0)
    networks.learns(digits(block), torch.randn(20, 1, 16, 16), rate=0.01, steps=20)


@pytest.mark.parametrize("name", ["resnet18", "resnet50d"])
def test_published_sizes_run_forward_and_backward_on_the_meta_device(name):
    networks.runs_on_meta(on_meta(getattr(net, name)), 2, 3, 64, 64)


@pytest.mark.parametrize("shortcut", ["NoShortcut", "ZeroPad"])
def test_the_digit_networks_run_forward_and_backward_on_the_meta_device(shortcut):
    network = on_meta(net.digit_network, 14, getattr(net, shortcut))
    networks.runs_on_meta(network, 2, 1, 28, 28)
