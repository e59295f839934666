"""The networks of notebooks/vgg.py."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.vgg import VGG, make_layers

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

net = definitions("vgg")

PUBLISHED = {  # parameters and 10^9 MACs at 224x224
    "vgg11": (132_863_336, 7.609),
    "vgg13": (133_047_848, 11.308),
    "vgg16": (138_357_544, 15.470),
    "vgg19": (143_667_240, 19.632),
    "vgg11_bn": (132_868_840, 7.609),
    "vgg13_bn": (133_053_736, 11.308),
    "vgg16_bn": (138_365_992, 15.470),
    "vgg19_bn": (143_678_248, 19.632),
}
WIDTHS = (4, 8, 12, 16, 20)
NARROW = {"widths": WIDTHS, "hidden": 24, "num_classes": 10}
DIGITS = {"two 3×3": ((3, 3), 18, 9), "one 5×5": ((5,), 25, 25), "one 3×3": ((3,), 9, 9)}


def ours(name):
    layer = net.conv_norm_relu if name.endswith("_bn") else net.conv_relu
    return on_meta(getattr(net, name.removesuffix("_bn")), layer)


def narrow(name, **how):
    """A configuration of table 1 with few channels."""
    return net.vgg(net.KERNELS[name], **NARROW | how)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_layers_and_the_cost_torchvision_gives(name):
    network, (parameters, giga) = ours(name), PUBLISHED[name]
    meta = torchvision.models.get_model_weights(name).DEFAULT.meta
    assert parameters_of(network) == parameters == meta["num_params"]
    assert round(macs_of(network) / 1e9, 3) == giga == meta["_ops"]
    networks.same_layers(network, on_meta(getattr(torchvision.models, name)))


@pytest.mark.parametrize("norm", [False, True])
def test_the_network_does_what_torchvision_s_does_on_maps_of_odd_size(norm):
    torch.manual_seed(0)
    plan = (4, "M", 8, "M", 12, 12, "M", 16, 16, "M", 20, 20, "M")  # configuration A
    reference = on_meta(VGG, nn.Sequential(), num_classes=10)
    reference.features = make_layers(plan, batch_norm=norm)
    reference.classifier[0], reference.classifier[3] = nn.Linear(20 * 49, 24), nn.Linear(24, 24)
    reference.classifier[6] = nn.Linear(24, 10)
    network = narrow("A", layer=net.conv_norm_relu if norm else net.conv_relu)
    networks.same_function(network, reference, torch.randn(3, 3, 75, 97))


@pytest.mark.parametrize("layer", ["conv_relu", "conv_norm_relu"])
def test_a_layer_keeps_the_side_whatever_its_kernel_which_is_3x3_unless_another_is_given(layer):
    x = torch.randn(2, 3, 8, 9)
    for size in ((), (1,), (3,), (5,), (7,)):
        layers = nn.Sequential(*getattr(net, layer)(3, 4, *size))
        assert layers(x).shape == (2, 4, 8, 9)
        assert layers[0].weight.shape[2:] == 2 * (size or (3,))


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
    network = on_meta(net.vgg16_c)
    assert parameters_of(network) == parameters == 133_638_952
    assert macs_of(network) == macs


@pytest.mark.parametrize(
    ("name", "layers", "millions"),
    [("A", 11, 133), ("B", 13, 133), ("C", 16, 134), ("D", 16, 138), ("E", 19, 144)],
)
def test_layers_and_millions_of_parameters_are_those_of_tables_1_and_2(name, layers, millions):
    network = on_meta(net.vgg, net.KERNELS[name])
    weighted = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == layers
    assert round(parameters_of(network) / 1e6) == millions


def by_matrix_products(network, x):
    """Convolutions as products of a matrix and the patches of the image; maxima by reshaping."""
    tensors = iter(network.state_dict().values())
    for sizes in ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)):
        for size in sizes:
            weight, bias = next(tensors), next(tensors)
            B, _, H, W = x.shape
            patches = F.unfold(x, size, padding=size // 2)
            x = (weight.flatten(1) @ patches + bias[:, None]).clamp(min=0).view(B, -1, H, W)
        x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    x = x.flatten(1)
    for last in (False, False, True):
        x = x @ next(tensors).T + next(tensors)
        x = x if last else x.clamp(min=0)
    return x


def test_configuration_c_equals_matrix_products_over_patches():
    torch.manual_seed(0)
    network = narrow("C", side=2).eval()
    networks.share_weights(network, narrow("C", side=2))
    x = torch.randn(2, 3, 64, 64)
    close(network(x), by_matrix_products(network, x))


@pytest.mark.parametrize(("batch", "height", "width"), [(3, 225, 161), (1, 64, 256)])
def test_any_batch_and_map_size_goes_through(batch, height, width):
    network = on_meta(net.vgg16_c)
    maps = network[:5](torch.empty(batch, 3, height, width, device="meta"))
    assert maps.shape == (batch, 512, height // 32, width // 32)
    assert network[5:](maps).shape == (batch, 1000)


def test_as_many_widths_as_stages_are_asked_for():
    with pytest.raises(ValueError, match="zip"):
        net.vgg(net.KERNELS["A"], **NARROW | {"widths": WIDTHS[:4]})


def test_the_pool_before_the_classifier_does_nothing_at_the_size_of_the_paper():
    x = torch.randn(2, 16, 7, 7)
    torch.testing.assert_close(narrow("A").pool(x), x)


@pytest.mark.parametrize("n", range(1, 7))
def test_n_layers_of_3x3_see_1_plus_2n_pixels(n):
    assert net.extent(net.reach(((3,) * n,), False, side=31)) == 1 + 2 * n
    assert net.field_formula(((3,) * n,), False) == 1 + 2 * n


def test_three_3x3_reach_as_far_as_one_7x7_and_two_as_one_5x5():
    for kernels, one in (((3, 3, 3), 7), ((3, 3), 5)):
        found = [net.reach((sizes,), False, side=15) != 0 for sizes in (kernels, (one,))]
        torch.testing.assert_close(found[0], found[1])


def test_the_extent_is_a_number_of_columns():
    gradient = torch.zeros(9, 9)
    gradient[2:5, 1:6] = -1
    assert net.extent(gradient) == 5


def test_the_reach_counts_the_paths_from_a_pixel_to_the_middle():
    expected = torch.tensor([[1.0, 2, 3, 2, 1]]).double()
    close(net.reach(((3, 3),), False, side=9)[2:7, 2:7], expected.T @ expected)


@pytest.mark.parametrize(
    ("name", "field"), [("A", 150), ("B", 156), ("C", 156), ("D", 212), ("E", 268)]
)
def test_the_field_of_a_configuration_is_that_of_the_formula(name, field):
    gradient = net.reach(net.KERNELS[name], True)
    assert gradient.shape == (301, 301)
    assert net.extent(gradient) == field
    assert net.field_formula(net.KERNELS[name], True) == field


@pytest.mark.parametrize("name", DIGITS)
def test_a_stage_has_the_weights_per_squared_channel_of_its_kernels(name):
    kernels, squares, _ = DIGITS[name]
    assert net.DIGITS[name] == kernels
    convs = [m for m in net.stage(16, 16, kernels) if isinstance(m, nn.Conv2d)]
    assert sum(conv.weight.numel() for conv in convs) == squares * 16**2


def test_two_of_the_digit_networks_have_equal_fields():
    assert net.field_formula(((3, 3),) * 3, True) == net.field_formula(((5,),) * 3, True)


def test_costs_of_the_parts_add_up_to_those_of_the_network():
    network, y = on_meta(net.vgg16), torch.empty(networks.IMAGENET, device="meta")
    found = []
    for part in (*network[:5], network.classifier):
        y, numbers = net.costs(part, y)
        found.append(numbers)
    parameters, values, macs = map(sum, zip(*found))
    assert y.shape == (1, 1000)
    assert parameters == parameters_of(network)
    assert macs == macs_of(network)
    maps = 2 * 64 * 224**2 + 2 * 128 * 112**2 + 3 * (256 * 56**2 + 512 * 28**2 + 512 * 14**2)
    assert values == maps + 4096 + 4096 + 1000


def test_random_states_are_drawn_by_kind_and_matrices_once():
    torch.manual_seed(0)
    how = {"widths": (8, 2000), "hidden": 8, "num_classes": 10, "side": 1}
    network, large = on_meta(net.vgg, ((3,), (3,)), net.conv_norm_relu, **how), {}
    state = net.random_state(network, large)
    for name, t in network.state_dict().items():
        assert (state[name].shape, state[name].dtype) == (t.shape, t.dtype)
    kernel, matrix = state["stage2.0.weight"], state["classifier.1.weight"]
    for weight in (kernel, matrix):
        networks.starts_with(weight, (2 / weight[0].numel()) ** 0.5, share=0.05)
        assert weight.abs().max() <= (6 / weight[0].numel()) ** 0.5
    for name in ("stage2.1.weight", "stage2.1.running_var"):
        assert 0.5 <= state[name].min() < 0.51 and 1.49 < state[name].max() <= 1.5
    for name in ("stage2.0.bias", "stage2.1.bias", "stage2.1.running_mean"):
        networks.starts_with(state[name], 0.1, share=0.06)
    assert state["stage2.1.num_batches_tracked"].item() == 1
    again = net.random_state(network, large)
    assert again["classifier.1.weight"] is matrix
    assert not torch.equal(again["stage2.0.weight"], kernel)
    assert sorted(map(len, large)) == [2, 2, 2]


def test_shared_states_make_equal_functions_and_are_refused_where_shapes_differ():
    torch.manual_seed(0)
    pair = [on_meta(narrow, "A") for _ in range(2)]
    net.share_state(*pair, {})
    networks.same_outputs(*pair, torch.randn(2, 3, 64, 64))
    with pytest.raises(AssertionError):
        net.share_state(pair[0], on_meta(narrow, "B"), {})


def test_dense_scores_are_those_of_the_classifier_on_every_window_of_the_map():
    torch.manual_seed(0)
    network = narrow("C", side=2)
    networks.share_weights(network, narrow("C", side=2))
    x = torch.randn(3, 3, 96, 128)
    with torch.no_grad():
        scores, maps = net.dense(network, 2).eval()(x), network.eval()[:5](x)
        assert scores.shape == (3, 10, 2, 3)
        for i in range(2):
            for j in range(3):
                close(scores[..., i, j], network.classifier(maps[..., i : i + 2, j : j + 2]))


def test_dense_equals_the_network_at_its_own_size_and_not_on_a_crop_of_a_larger_image():
    torch.manual_seed(0)
    network = narrow("A", side=2).eval()
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        crop = network(x[..., :64, :])
        own = net.dense(network, 2).eval()(x[..., :64, :])[..., 0, 0]
        larger = net.dense(network, 2).eval()(x)[..., 0, 0]
    close(own, crop)
    assert not torch.allclose(larger, crop, rtol=1e-3)  # a crop is padded with zeros


def test_dense_is_made_for_the_maps_of_the_paper_and_where_the_network_is():
    scores = net.dense(on_meta(narrow, "A"))(torch.empty(networks.IMAGENET, device="meta"))
    assert scores.shape == (1, 10, 1, 1)


def test_weights_start_with_variance_two_over_fan():
    torch.manual_seed(0)
    network = net.vgg(((3,), (3,)), widths=(48, 96), hidden=96)
    conv, linear = network.stage2[0], network.classifier[1]
    networks.starts_with(conv.weight, (2 / (96 * 9)) ** 0.5)
    networks.starts_with(linear.weight, (2 / linear.in_features) ** 0.5)
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("name", DIGITS)
def test_the_digit_networks_have_the_parameters_of_a_sum_by_hand(name):
    kernels, *_ = DIGITS[name]
    parameters = 32 * 9 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10
    for c_in, c_out in ((1, 8), (8, 16), (16, 32)):
        for i, size in enumerate(kernels):
            parameters += (c_out if i else c_in) * c_out * size * size + c_out
    network = on_meta(net.digit_network, kernels)
    assert parameters_of(network) == parameters
    assert networks.runs_on_meta(network, 2, 1, 24, 24).shape == (2, 10)
    norms = on_meta(net.digit_network, kernels, net.conv_norm_relu)
    assert parameters_of(norms) == parameters + 2 * (8 + 16 + 32) * len(kernels)


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    torch.manual_seed(0)
    network = net.digit_network((3, 3))
    networks.learns(network, torch.randn(20, 1, 24, 24), rate=3e-3, steps=40)


@pytest.mark.parametrize("name", ["vgg19", "vgg11_bn", "vgg16_c"])
def test_published_sizes_run_forward_and_backward_on_the_meta_device(name):
    networks.runs_on_meta(ours(name), 2, 3, 64, 64)
