"""The networks of notebooks/vgg.py."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from loader import definitions, without_dropout
from workbench import checks, counting, training

vgg = definitions("vgg")

# Configuration and torchvision's name; parameters and 10^9 MACs at 224x224.
PUBLISHED = {
    "vgg11": (132_863_336, 7.609),
    "vgg13": (133_047_848, 11.308),
    "vgg16": (138_357_544, 15.470),
    "vgg19": (143_667_240, 19.632),
    "vgg11_bn": (132_868_840, 7.609),
    "vgg13_bn": (133_053_736, 11.308),
    "vgg16_bn": (138_365_992, 15.470),
    "vgg19_bn": (143_678_248, 19.632),
}
NARROW = {"widths": (4, 8, 12, 16, 16), "hidden": 20, "num_classes": 10}


def on_meta(build, *arguments):
    with torch.device("meta"):
        return build(*arguments)


def ours(name):
    layer = vgg.conv_norm_relu if name.endswith("_bn") else vgg.conv_relu
    return getattr(vgg, name.removesuffix("_bn"))(layer)


def macs_of(network):
    return counting.macs(network, torch.empty(1, 3, 224, 224, device="meta"))


@pytest.mark.parametrize(("name", "parameters", "giga"), [(n, *v) for n, v in PUBLISHED.items()])
def test_published_sizes_have_the_parameters_and_macs_torchvision_gives(name, parameters, giga):
    network = on_meta(ours, name)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    assert counting.parameters(network) == parameters == weights.meta["num_params"]
    assert round(macs_of(network) / 1e9, 3) == giga == weights.meta["_ops"]


def test_configuration_c_has_the_parameters_and_macs_of_a_sum_by_hand():
    c_in, side, parameters, macs = 3, 224, 0, 0
    for sizes, c_out in zip(
        ("33", "33", "331", "331", "331"), (64, 128, 256, 512, 512), strict=True
    ):
        for size in map(int, sizes):
            parameters += size * size * c_in * c_out + c_out
            macs += side * side * size * size * c_in * c_out
            c_in = c_out
        side //= 2
    for before, after in ((512 * 49, 4096), (4096, 4096), (4096, 1000)):
        parameters, macs = parameters + before * after + after, macs + before * after
    network = on_meta(vgg.vgg16_c)
    assert counting.parameters(network) == parameters == 133_638_952
    assert macs_of(network) == macs


@pytest.mark.parametrize(
    ("name", "layers", "millions"),
    [("A", 11, 133), ("B", 13, 133), ("C", 16, 134), ("D", 16, 138), ("E", 19, 144)],
)
def test_layers_and_millions_of_parameters_are_those_of_tables_1_and_2(name, layers, millions):
    network = on_meta(vgg.vgg, vgg.KERNELS[name])
    weighted = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == layers
    assert round(counting.parameters(network) / 1e6) == millions


def test_all_networks_of_torchvision_give_equal_outputs():
    torch.manual_seed(0)
    large, x = {}, torch.randn(3, 3, 43, 70)
    for name in PUBLISHED:
        reference, network = on_meta(getattr(torchvision.models, name)), on_meta(ours, name)
        vgg.share_state(reference, network, large)
        assert network(x).isfinite().all()
        checks.same_outputs(network, reference, x)


def by_matrix_products(network, x):
    """Convolutions as products of a matrix and the patches of the image; maxima by reshaping."""
    tensors = iter(network.state_dict().values())
    for sizes in vgg.KERNELS["C"]:
        for _ in sizes:
            weight, bias = next(tensors), next(tensors)
            B, _, H, W = x.shape
            size = weight.shape[-1]
            patches = F.unfold(x, size, padding=size // 2) if size > 1 else x.flatten(2)
            x = (weight.flatten(1) @ patches + bias[:, None]).clamp(min=0).view(B, -1, H, W)
        x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    x = x.flatten(1)
    for last in (False, False, True):
        x = x @ next(tensors).T + next(tensors)
        x = x if last else x.clamp(min=0)
    assert next(tensors, None) is None
    return x


def test_configuration_c_equals_matrix_products_over_patches():
    torch.manual_seed(0)
    network = vgg.vgg(vgg.KERNELS["C"], **NARROW).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.bias, 0, 0.1)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected, found = by_matrix_products(network, x), network(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(("batch", "height", "width"), [(3, 225, 161), (1, 64, 256)])
def test_any_batch_and_map_size_goes_through(batch, height, width):
    network = on_meta(vgg.vgg16_c).eval()
    x = torch.empty(batch, 3, height, width, device="meta")
    assert network(x).shape == (batch, 1000)
    assert network[:5](x).shape == (batch, 512, height // 32, width // 32)


def test_the_pool_before_the_classifier_does_nothing_at_the_size_of_the_paper():
    x = torch.randn(2, 16, 7, 7)
    network = vgg.vgg(vgg.KERNELS["A"], **NARROW)
    torch.testing.assert_close(network.pool(x), x)


@pytest.mark.parametrize("n", range(1, 7))
def test_n_layers_of_3x3_see_1_plus_2n_pixels(n):
    gradient = vgg.reach(((3,) * n,), False, side=31)
    assert vgg.extent(gradient) == 1 + 2 * n
    assert vgg.field_formula(((3,) * n,), False) == 1 + 2 * n


def test_three_3x3_reach_as_far_as_one_7x7_and_two_as_one_5x5():
    for kernels, one in (((3, 3, 3), 7), ((3, 3), 5)):
        found = [vgg.reach((sizes,), False, side=15) != 0 for sizes in (kernels, (one,))]
        torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(
    ("name", "field"), [("A", 150), ("B", 156), ("C", 156), ("D", 212), ("E", 268)]
)
def test_the_field_of_a_configuration_is_that_of_the_formula(name, field):
    assert vgg.extent(vgg.reach(vgg.KERNELS[name], True)) == field
    assert vgg.field_formula(vgg.KERNELS[name], True) == field


def test_three_3x3_have_27_and_one_7x7_has_49_weights_per_squared_channel():
    C = 16
    for kernels, squares in (((3, 3, 3), 27), ((7,), 49)):
        weights = [p.numel() for p in vgg.stage(C, C, kernels).parameters() if p.ndim > 1]
        assert sum(weights) == squares * C**2


def test_three_linear_3x3_layers_form_a_7x7_kernel_and_only_some_of_them():
    torch.manual_seed(0)

    def one(kernels):  # what they amount to, 7x7
        second, third = kernels[1:].flip(3, 4)
        return F.conv2d(F.conv2d(kernels[0], second, padding=2), third, padding=2)

    kernels, x = torch.randn(3, 1, 1, 3, 3).double(), torch.randn(1, 1, 12, 9).double()
    in_a_row = F.conv2d(F.conv2d(F.conv2d(x, kernels[0]), kernels[1]), kernels[2])
    torch.testing.assert_close(in_a_row, F.conv2d(x, one(kernels)))
    directions = torch.autograd.functional.jacobian(one, kernels).reshape(49, 27)
    assert torch.linalg.matrix_rank(directions) == 25  # of 49: 27 weights, two scales are shared


def test_costs_of_the_parts_add_up_to_those_of_the_network():
    network, y = on_meta(vgg.vgg16), torch.empty(1, 3, 224, 224, device="meta")
    sums = [0, 0, 0]
    for part in (*network[:5], network.classifier):
        y, found = vgg.costs(part, y)
        sums = [a + b for a, b in zip(sums, found, strict=True)]
    assert sums[0] == counting.parameters(network)
    assert sums[2] == macs_of(network)
    maps = 2 * 64 * 224**2 + 2 * 128 * 112**2 + 3 * (256 * 56**2 + 512 * 28**2 + 512 * 14**2)
    assert sums[1] == maps + 4096 + 4096 + 1000


def test_training_keeps_the_values_behind_the_relus_and_those_of_the_pools():
    network, kept = on_meta(vgg.vgg16), {}
    weights = {p.untyped_storage()._cdata for p in network.parameters()}

    def keep(t):
        if t.is_floating_point() and t.untyped_storage()._cdata not in weights:
            kept[t.untyped_storage()._cdata] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = network(torch.empty(1, 3, 224, 224, device="meta"))
    maps = 2 * 64 * 224**2 + 2 * 128 * 112**2 + 3 * (256 * 56**2 + 512 * 28**2 + 512 * 14**2)
    pools = 64 * 112**2 + 128 * 56**2 + 256 * 28**2 + 512 * (14**2 + 7**2)
    found = sum(t.numel() for t in kept.values())
    assert y.grad_fn is not None
    assert maps + pools < found < 1.02 * (maps + pools)  # the rest: image, dropout, linear layers


def test_dense_scores_are_those_of_the_classifier_on_every_window_of_the_map():
    torch.manual_seed(0)
    network = vgg.vgg(vgg.KERNELS["C"], **NARROW).eval()
    x = torch.randn(3, 3, 257, 300)
    with torch.no_grad():
        scores, maps = vgg.dense(network).eval()(x), network[:5](x)
        assert scores.shape == (3, 10, 2, 3)
        for i in range(2):
            for j in range(3):
                expected = network.classifier(maps[..., i : i + 7, j : j + 7])
                torch.testing.assert_close(scores[..., i, j], expected, rtol=1e-4, atol=1e-5)


def test_dense_equals_the_network_at_its_own_size_and_not_on_a_crop_of_a_larger_image():
    torch.manual_seed(0)
    network = vgg.vgg(vgg.KERNELS["A"], **NARROW).eval()
    x = torch.randn(1, 3, 256, 224)
    with torch.no_grad():
        crop = network(x[..., :224, :])
        own = vgg.dense(network).eval()(x[..., :224, :])[..., 0, 0]
        larger = vgg.dense(network).eval()(x)[..., 0, 0]
    torch.testing.assert_close(own, crop, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(larger, crop, rtol=1e-3)  # a crop is padded with zeros


def test_weights_start_with_variance_two_over_fan():
    torch.manual_seed(0)
    network = vgg.vgg(vgg.KERNELS["A"], widths=(8, 16, 64, 128, 128), hidden=256, num_classes=10)
    conv, linear = network.stage5[0], network.classifier[1]
    torch.testing.assert_close(conv.weight.std().item(), (2 / (128 * 9)) ** 0.5, rtol=0.02, atol=0)
    expected = (2 / linear.in_features) ** 0.5
    torch.testing.assert_close(linear.weight.std().item(), expected, rtol=0.02, atol=0)
    assert not conv.bias.any()


@pytest.mark.parametrize("name", vgg.DIGITS)
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(name):
    torch.manual_seed(0)
    network = without_dropout(vgg.digit_network(vgg.DIGITS[name]))
    x, y = torch.randn(20, 1, 24, 24), torch.arange(20) % 10
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = training.fit(network, (x, y), 60, optimizer)["loss"]
    assert losses[-1] < losses[0] / 10


def test_the_digit_networks_with_equal_fields_have_18_and_25_weights_per_squared_channel():
    for name, squares in (("two 3×3", 18), ("one 5×5", 25)):
        part = vgg.stage(32, 32, vgg.DIGITS[name])
        weights = [m.weight.numel() for m in part if isinstance(m, nn.Conv2d)]
        assert sum(weights) == squares * 32**2
    fields = [vgg.field_formula((vgg.DIGITS[n],) * 3, True) for n in ("two 3×3", "one 5×5")]
    assert fields[0] == fields[1]


@pytest.mark.parametrize("name", [*PUBLISHED, "vgg16_c"])
def test_every_size_runs_forward_and_backward_on_the_meta_device(name):
    network = on_meta(ours, name)
    network(torch.empty(2, 3, 64, 64, device="meta")).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("layer", [vgg.conv_relu, vgg.conv_norm_relu])
def test_the_digit_network_runs_forward_and_backward_on_the_meta_device(layer):
    network = on_meta(vgg.digit_network, (3, 3), layer)
    network(torch.empty(2, 1, 24, 24, device="meta")).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
