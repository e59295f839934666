"""The networks of notebooks/vgg.py."""

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.vgg import VGG, make_layers

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

vgg = definitions("vgg")

DEPTHS = {"A": 11, "B": 13, "D": 16, "E": 19}  # those of torchvision
LAYERS = {"": "ConvRelu", "_bn": "ConvNormRelu"}
NARROW = {"width": 4, "hidden": 24, "num_classes": 10}
STACKS = {"one": (3,), "two": (3, 3), "three": (3, 3, 3), "seven": (7,)}


def network_of(name, layer="ConvRelu", **how):
    return vgg.VGG(vgg.SIZES[name], layer=getattr(vgg, layer), **how)


# ---- the published networks ----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", LAYERS)
@pytest.mark.parametrize("name", DEPTHS)
def test_published_sizes_have_the_layers_and_the_cost_torchvision_gives(name, suffix):
    network = on_meta(network_of, name, LAYERS[suffix])
    published = f"vgg{DEPTHS[name]}{suffix}"
    meta = torchvision.models.get_model_weights(published).DEFAULT.meta
    assert parameters_of(network) == meta["num_params"]
    assert round(macs_of(network) / 1e9, 3) == meta["_ops"]
    networks.same_layers(network, on_meta(getattr(torchvision.models, published)))


@pytest.mark.parametrize("suffix", LAYERS)
def test_the_network_does_what_torchvision_s_does_on_maps_of_odd_size(suffix):
    torch.manual_seed(0)
    plan = (4, "M", 8, "M", 16, 16, "M", 32, 32, "M", 32, 32, "M")  # configuration A
    reference = on_meta(VGG, nn.Sequential(), num_classes=10)
    reference.features = make_layers(plan, batch_norm=bool(suffix))
    reference.classifier[0], reference.classifier[3] = nn.Linear(32 * 49, 24), nn.Linear(24, 24)
    reference.classifier[6] = nn.Linear(24, 10)
    network = network_of("A", LAYERS[suffix], **NARROW)
    networks.same_function(network, reference, torch.randn(3, 3, 75, 97))


def test_vgg16_is_configuration_d_with_the_layer_it_is_given():
    networks.same_layers(on_meta(vgg.vgg16), on_meta(network_of, "D"))
    norms = on_meta(vgg.vgg16, vgg.ConvNormRelu)
    networks.same_layers(norms, on_meta(network_of, "D", "ConvNormRelu"))


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
    network = on_meta(network_of, "C")
    assert parameters_of(network) == parameters == 133_638_952
    assert macs_of(network) == macs


@pytest.mark.parametrize(
    ("name", "layers", "millions"),
    [("A", 11, 133), ("B", 13, 133), ("C", 16, 134), ("D", 16, 138), ("E", 19, 144)],
)
def test_layers_and_millions_of_parameters_are_those_of_tables_1_and_2(name, layers, millions):
    network = on_meta(network_of, name)
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
    network = network_of("C", **NARROW).eval()
    networks.share_weights(network, network_of("C", **NARROW))
    x = torch.randn(1, 3, 224, 224)
    close(network(x), by_matrix_products(network, x))


@pytest.mark.parametrize(("batch", "height", "width"), [(3, 225, 161), (1, 64, 256)])
def test_any_batch_and_map_size_goes_through_and_each_stage_halves_it(batch, height, width):
    network = on_meta(network_of, "C")
    x = torch.empty(batch, 3, height, width, device="meta")
    assert network.maps(x).shape == (batch, 512, height // 32, width // 32)
    assert network(x).shape == (batch, 1000)
    assert network.stage1(x).shape == (batch, 64, height // 2, width // 2)


def test_each_stage_has_the_kernels_of_its_place_in_the_table():
    sizes = ((1,), (3, 1), (5,), (7, 1), (3, 5))
    network = on_meta(vgg.VGG, sizes, **NARROW)
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [conv.kernel_size[0] for conv in convs] == [1, 3, 1, 5, 7, 1, 3, 5]


@pytest.mark.parametrize("layer", LAYERS.values())
def test_a_layer_keeps_the_side_whatever_its_kernel_which_is_3x3_unless_another_is_given(layer):
    x = torch.randn(2, 3, 8, 9)
    for how in ({}, {"size": 1}, {"size": 3}, {"size": 5}, {"size": 7}):
        made = getattr(vgg, layer)(3, 4, **how)
        assert made(x).shape == (2, 4, 8, 9)
        assert made.conv.weight.shape[2:] == 2 * (how.get("size", 3),)


def test_weights_start_with_variance_two_over_fan_and_biases_with_zero():
    torch.manual_seed(0)
    network = network_of("A", width=16, hidden=96)
    conv, linear = network.stage4.layers[0].conv, network.classifier.hidden1
    networks.starts_with(conv.weight, (2 / (128 * 9)) ** 0.5)
    networks.starts_with(linear.weight, (2 / linear.in_features) ** 0.5)
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(("name", "layer"), [("E", "ConvRelu"), ("A", "ConvNormRelu")])
def test_published_sizes_run_forward_and_backward_on_the_meta_device(name, layer):
    output = networks.runs_on_meta(on_meta(network_of, name, layer), 2, 3, 64, 64)
    assert output.shape == (2, 1000)


def test_a_network_without_values_has_its_tensors_on_the_cpu():
    network = vgg.without_values(network_of, "A", **NARROW)
    assert {t.device.type for t in network.state_dict().values()} == {"cpu"}
    assert parameters_of(network) == parameters_of(network_of("A", **NARROW))


def test_the_values_of_the_parts_are_those_of_a_sum_by_hand():
    network, x = on_meta(vgg.vgg16), torch.empty(networks.IMAGENET, device="meta")
    assert vgg.values(network.stage1, x) == 2 * 64 * 224**2
    found = vgg.values(network, x)
    maps = 2 * 64 * 224**2 + 2 * 128 * 112**2 + 3 * (256 * 56**2 + 512 * 28**2 + 512 * 14**2)
    assert found == maps + 4096 + 4096 + 1000
    assert not any(m._forward_hooks for m in network.modules())


# ---- what a unit sees ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 7))
def test_n_layers_of_3x3_see_1_plus_2n_pixels(n):
    found = vgg.paths(vgg.stack((3,) * n), 31)
    assert found.shape == (31, 31)
    assert (found != 0).any(0).sum() == 1 + 2 * n
    assert vgg.fields([(3, 1)] * n) == [3, 5, 7, 9, 11, 13][:n]


def test_paths_count_the_ways_from_a_pixel_to_the_middle():
    expected = torch.zeros(9).double()
    expected[2:7] = torch.tensor([1.0, 2, 3, 2, 1])
    close(vgg.paths(vgg.stack((3, 3)), 9), torch.outer(expected, expected), 0)


@pytest.mark.parametrize(
    ("name", "field"), [("A", 150), ("B", 156), ("C", 156), ("D", 212), ("E", 268)]
)
def test_the_field_of_a_configuration_is_that_of_the_formula(name, field):
    sizes = vgg.SIZES[name]
    found = vgg.paths(vgg.one_channel(sizes), 301)
    assert (found != 0).any(0).sum() == field
    assert vgg.fields(vgg.windows(sizes))[-1] == field
    assert len(vgg.windows(sizes)) == 5 + sum(map(len, sizes))


def test_fields_with_strides_are_those_of_alexnet_s_first_layers():
    layers = [(11, 4), (3, 2), (5, 1), (3, 2), (3, 1)]  # two convolutions, each with a pool
    assert vgg.fields(layers) == [11, 19, 51, 67, 99]


def test_the_core_holds_half_of_the_paths():
    even = torch.zeros(1000, 1000)
    even[450:550] = 1  # spread over the columns
    assert vgg.core(even) == pytest.approx(1000 * math.sqrt(0.5), abs=1)
    found = vgg.paths(vgg.stack((3,) * 9), 31).float()
    edge = (31 - vgg.core(found)) // 2
    halves = [found[e : 31 - e, e : 31 - e].sum() / found.sum() for e in (edge, edge + 1)]
    assert halves[1] < 0.5 < halves[0]


# ---- dots ----------------------------------------------------------------------------------------


def test_maps_hold_two_dots_of_one_in_a_row_with_their_distance_and_whether_they_are_alike():
    torch.manual_seed(0)
    x, same, distance = vgg.dots(3_000)
    assert x.shape == (3_000, 1, 5, 16)
    assert set(x.unique().tolist()) == {-1, 0, 1}
    for map_, label, d in zip(x[:, 0], same, distance):
        (row, left), (other, right) = map_.nonzero().tolist()
        assert (row, left + d) == (other, right)
        assert label == (map_[row, left] == map_[row, right])
    for d in range(1, 9):
        chosen = distance == d
        assert chosen.double().mean() == pytest.approx(1 / 8, abs=0.02)
        assert same[chosen].double().mean() == pytest.approx(0.5, abs=0.08)
        columns = x[chosen].any(2).any(1).any(0).nonzero().flatten().tolist()
        assert columns == list(range(16))  # as far left and right as there is room
    signs = x.sum((1, 2, 3))[same == 1]
    assert signs.mean() == pytest.approx(0, abs=0.2)
    assert x.any(3).double().mean((0, 1)) == pytest.approx(torch.full((5,), 1 / 5), abs=0.03)
    assert vgg.dots(500, farthest=2)[2].unique().tolist() == [1, 2]


def test_the_test_maps_hold_every_place_with_every_pair_of_signs_once():
    x, same, distance = vgg.every_dots()
    assert x.shape == (5 * 4 * sum(16 - d for d in range(1, 9)), 1, 5, 16)
    found = []
    for map_, label, d in zip(x[:, 0].tolist(), same.tolist(), distance.tolist()):
        dots = [(i, j, s) for i, row in enumerate(map_) for j, s in enumerate(row) if s]
        (row, left, first), (other, right, second) = dots
        assert (row, left + d) == (other, right)
        assert {abs(first), abs(second)} == {1}
        assert label == (first == second)
        found.append((d, row, left, first, second))
    assert len(set(found)) == len(found)
    assert {d for d, *_ in found} == set(range(1, 9))
    assert [signs for _, _, _, *signs in found[:4]] == [[1, 1], [-1, -1], [1, -1], [-1, 1]]


@pytest.mark.parametrize("name", STACKS)
def test_beyond_the_field_two_dots_add_up_and_within_they_do_not(name):
    torch.manual_seed(0)
    sizes = STACKS[name]
    far = sum(size - 1 for size in sizes)
    network = vgg.DotNetwork(sizes)
    effects = [vgg.joint_effect(network, d) for d in range(1, 9)]
    assert max(effects[far:]) < 1e-12
    assert min(effects[:far]) > 1e-4


def test_the_joint_effect_is_that_of_the_four_pairs_of_signs():
    class Alike(nn.Module):
        """S is 2 first second + 3 first - 1."""

        def forward(self, x):
            assert x.shape == vgg.dots(4)[0].shape
            first, second = x[:, 0, 2, 4], x[:, 0, 2, 6]
            product = first * second
            return torch.stack((product, 3 * product + 3 * first - 1), dim=1)

    assert vgg.joint_effect(Alike(), 2) == pytest.approx((4 - 2 - 0 + 6) / 6)
    assert vgg.joint_effect(Alike(), 1) == pytest.approx(0)
    network = vgg.DotNetwork((3,))
    vgg.joint_effect(network, 1)
    assert network.classifier.weight.dtype == torch.float  # a copy was doubled


@pytest.mark.parametrize(
    ("name", "squares"), [("one", 9), ("two", 18), ("three", 27), ("seven", 49)]
)
def test_a_stack_has_the_weights_per_squared_channel_of_its_kernels(name, squares):
    network = on_meta(vgg.DotNetwork, STACKS[name])
    assert sum(p.numel() for p in network.stack.parameters() if p.ndim > 1) == squares * 16**2
    layers = len(STACKS[name])
    assert parameters_of(network) == squares * 16**2 + 16 * layers + 32 + 34
    assert networks.runs_on_meta(network, 3, 1, 5, 7).shape == (3, 2)


def test_a_dot_network_sums_over_the_map_and_starts_as_the_others_do():
    torch.manual_seed(0)
    network, x = vgg.DotNetwork((3,)), torch.randn(2, 1, 5, 16)
    expected = network.classifier(network.stack(network.point(x)).sum((2, 3)))
    close(network(x), expected)
    networks.starts_with(network.stack[0].conv.weight, (2 / (16 * 9)) ** 0.5, share=0.05)


def test_answers_are_counted_by_the_distance_of_the_dots():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = nn.Parameter(torch.tensor([0.0, 1.0]))

        def forward(self, x):
            return self.scores.expand(len(x), 2)

    distance = torch.arange(1, 9).repeat(2)
    same = torch.ones(16, dtype=torch.long)
    same[:3] = 0
    found = vgg.by_distance(Constant(), torch.zeros(16, 1, 5, 16), same, distance)
    assert found == [0.5, 0.5, 0.5, 1, 1, 1, 1, 1]


# ---- digits, scales, dense evaluation ------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(3, 3), (5,)])
def test_the_digit_networks_have_the_parameters_of_a_sum_by_hand(sizes):
    parameters = 32 * 9 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10
    for c_in, c_out in ((1, 8), (8, 16), (16, 32)):
        for i, size in enumerate(sizes):
            parameters += (c_out if i else c_in) * c_out * size * size + c_out
    network = on_meta(vgg.DigitNetwork, sizes)
    assert parameters_of(network) == parameters
    assert networks.runs_on_meta(network, 2, 1, 24, 24).shape == (2, 10)


def test_the_digit_network_starts_as_the_others_do():
    torch.manual_seed(0)
    conv = vgg.DigitNetwork((3, 3)).stage3.layers[1].conv
    networks.starts_with(conv.weight, (2 / (32 * 9)) ** 0.5)


@pytest.mark.parametrize("kind", ["digits", "dots"])
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(kind):
    torch.manual_seed(0)
    if kind == "digits":
        x = torch.randn(20, 1, 24, 24)
        networks.learns(vgg.DigitNetwork((3, 3)), x, rate=3e-3, steps=40)
    else:
        x = torch.randn(10, 1, 5, 16)
        networks.learns(vgg.DotNetwork((3, 3, 3)), x, rate=0.01, steps=60, K=2)


def test_scales_are_those_of_each_layer_in_front_of_the_pool():
    torch.manual_seed(0)
    network, x = network_of("B", **NARROW), torch.randn(2, 3, 32, 64)
    found, expected = vgg.scales(network, x), []
    for stage in (network.stage1, network.stage2, network.stage3, network.stage4, network.stage5):
        for layer in stage.layers:
            x = layer(x)
            expected.append((x**2).mean().sqrt().item())
        x = F.max_pool2d(x, 2)
    close(found, torch.tensor(expected))


def test_normal_weights_have_one_deviation_in_all_layers():
    torch.manual_seed(0)
    network = network_of("A", **NARROW | {"width": 16})
    network.stage1.layers[0].conv.bias.data.fill_(1.0)
    vgg.normal_init(network, 0.3)
    networks.starts_with(network.stage4.layers[1].conv.weight, 0.3)
    networks.starts_with(network.classifier.hidden1.weight, 0.3)
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


def test_dense_scores_are_those_of_the_classifier_on_every_window_of_the_map():
    torch.manual_seed(0)
    classifier = vgg.Classifier(12 * 4 * 4, 10, hidden=24).eval()
    maps = torch.randn(3, 12, 5, 6)
    scores = vgg.DenseClassifier(classifier, 4)(maps)
    assert scores.shape == (3, 10, 2, 3)
    for i in range(2):
        for j in range(3):
            close(scores[..., i, j], classifier(maps[..., i : i + 4, j : j + 4]))


def test_dense_scores_are_made_where_the_network_is():
    classifier = on_meta(vgg.Classifier, 12 * 4 * 4, 10, hidden=24)
    maps = torch.empty(2, 12, 4, 4, device="meta")
    assert vgg.DenseClassifier(classifier, 4)(maps).shape == (2, 10, 1, 1)


def test_the_pooled_network_takes_the_mean_over_each_map():
    network = on_meta(vgg.PooledVGG, vgg.SIZES["A"])
    assert parameters_of(network) == 9_220_480 + 512 * 1000 + 1000  # the convolutions of A first
    assert networks.runs_on_meta(network, 2, 3, 64, 96).shape == (2, 1000)


def test_the_rate_rises_from_a_twenty_fifth_for_a_fifth_of_the_steps_and_falls_to_nothing(
    monkeypatch,
):
    rates, _ = networks.steps_of(monkeypatch, vgg.training, batches=4)
    part = torch.zeros(180, 1, 16, 16), torch.zeros(180)  # four batches of 50 at most
    vgg.train(nn.Linear(1, 1), part, epochs=5, batch=50, rate=0.1)
    networks.rises_and_falls(rates, peak=0.1, at=3)
