"""The Network in Network of notebooks/nin.py."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

net = definitions("nin")

HEADS = ["connected", "connected_dropout", "average"]
SMALL = (((8, 7, 6), 5, 2, 0), ((9, 8, 5), 3, 1, 1))  # two mlpconv layers


def macs_by_hand(sides, c_in, blocks):
    total = 0
    for side, (k, a, b, c) in zip(sides, blocks, strict=True):
        total += side * side * (k * k * c_in * a + a * b + b * c)
        c_in = c
    return total


@pytest.mark.parametrize(
    ("side", "sides", "macs"),
    [(224, (54, 27, 13, 6), 1_100_188_800), (227, (55, 27, 13, 6), 1_105_996_320)],
)
def test_the_imagenet_size_costs_what_a_sum_by_hand_gives(side, sides, macs):
    blocks = [(11, 96, 96, 96), (5, 256, 256, 256), (3, 384, 384, 384), (3, 1024, 1024, 1000)]
    network = on_meta(net.nin_imagenet)
    assert macs_of(network, 1, 3, side, side) == macs_by_hand(sides, 3, blocks) == macs
    assert parameters_of(network) == 7_595_176


def test_the_cifar10_size_costs_what_a_sum_by_hand_gives():
    blocks = [(5, 192, 160, 96), (5, 192, 192, 192), (3, 192, 192, 10)]
    network = on_meta(net.nin_cifar10)
    assert macs_of(network, 1, 3, 32, 32) == macs_by_hand((32, 16, 8), 3, blocks) == 222_486_528
    assert parameters_of(network) == 966_986


def imagenet_as_a_list():
    """The network as the authors' model file has it, one layer after the other."""
    layers, c_in = [], 3
    for a, b, c, k, s, p in (
        (96, 96, 96, 11, 4, 0),
        (256, 256, 256, 5, 1, 2),
        (384, 384, 384, 3, 1, 1),
        (1024, 1024, 1000, 3, 1, 1),
    ):
        layers += [nn.Conv2d(c_in, a, k, s, p), nn.ReLU(), nn.Conv2d(a, b, 1), nn.ReLU()]
        layers += [nn.Conv2d(b, c, 1), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(0.5)] if c < 1000 else []
        c_in = c
    return nn.Sequential(*layers, nn.AvgPool2d(6), nn.Flatten())


def test_the_imagenet_network_has_the_layers_of_a_list():
    networks.same_layers(on_meta(net.nin_imagenet), on_meta(imagenet_as_a_list))


def test_the_cifar10_network_does_what_a_list_of_layers_does():
    torch.manual_seed(0)
    pair = on_meta(net.nin_cifar10), on_meta(net.plain_cifar10)
    networks.same_layers(*pair, 1, 3, 32, 32)
    networks.same_function(*pair, torch.randn(2, 3, 32, 32))


def pixel_by_pixel(block, x):
    """An mlpconv layer as two loops over places and matrix products, nothing of torch's layers."""
    convs = [layer for layer in block.layers if isinstance(layer, nn.Conv2d)]
    (k, _), (s, _), (p, _) = convs[0].kernel_size, convs[0].stride, convs[0].padding
    padded = F.pad(x, (p, p, p, p))
    rows = []
    for i in range(0, padded.shape[2] - k + 1, s):
        row = []
        for j in range(0, padded.shape[3] - k + 1, s):
            y = padded[:, :, i : i + k, j : j + k].reshape(len(x), -1)
            for conv in convs:
                y = (y @ conv.weight.flatten(1).T + conv.bias).clamp(min=0)
            row.append(y)
        rows.append(torch.stack(row, dim=2))
    return torch.stack(rows, dim=2)


@pytest.mark.parametrize(
    ("window", "size", "stride", "padding"),
    [((7, 2, 1), 7, 2, 1), ((5, 1, 2), 5, 1, 2), ((3,), 3, 1, 0), ((3, 2), 3, 2, 0)],
)
def test_an_mlpconv_layer_is_a_perceptron_at_each_pixel(window, size, stride, padding):
    torch.manual_seed(0)
    block = net.MlpConv(3, (8, 7, 5), *window)
    conv = block.layers[0]
    assert (conv.kernel_size[0], conv.stride[0], conv.padding[0]) == (size, stride, padding)
    x = torch.randn(3, 3, 9, 12)
    with torch.no_grad():
        expected = pixel_by_pixel(block, x)
        close(block(x), expected)
        close(net.PatchMlp(block)(x), expected)


def test_a_network_does_what_its_perceptrons_on_patches_do():
    torch.manual_seed(0)
    network = net.randomise_biases(net.nin(3, SMALL, net.average()))
    patches = net.unfolded(network)
    assert [type(m) for m in patches] == [net.PatchMlp, nn.Sequential, net.PatchMlp, nn.Sequential]
    networks.same_outputs(patches, network, torch.randn(3, 3, 17, 22))


def test_randomised_biases_are_about_a_tenth_and_weights_stay():
    torch.manual_seed(0)
    network = net.nin(3, (((50, 50, 50), 3),), net.average())
    before = [p.clone() for name, p in network.named_parameters() if name.endswith("weight")]
    assert net.randomise_biases(network) is network
    biases = torch.cat([p for name, p in network.named_parameters() if name.endswith("bias")])
    networks.starts_with(biases, 0.1, share=0.15)
    after = [p for name, p in network.named_parameters() if name.endswith("weight")]
    assert all(map(torch.equal, before, after))


def test_kernels_start_with_variance_two_over_fan_in_and_biases_at_zero():
    torch.manual_seed(0)
    network = net.nin(24, (((48, 96), 5),), net.average())
    first, second = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    networks.starts_with(first.weight, (2 / (24 * 25)) ** 0.5)
    networks.starts_with(second.weight, (2 / 48) ** 0.5)
    assert not first.bias.any() and not second.bias.any()


def test_half_of_the_values_are_dropped_unless_another_share_is_given():
    drops = [
        [m.p for m in net.nin(3, SMALL, net.average(), *share).modules() if type(m) is nn.Dropout]
        for share in ((), (0.2,))
    ]
    assert drops == [[0.5], [0.2]]
    drops = [
        [m.p for m in getattr(net, head)().modules() if type(m) is nn.Dropout] for head in HEADS
    ]
    assert drops == [[0.0], [0.5], []]


@pytest.mark.parametrize(("batch", "height", "width"), [(3, 225, 161), (1, 96, 256)])
def test_any_batch_and_map_size_goes_through(batch, height, width):
    x = torch.empty(batch, 3, height, width, device="meta")
    network = on_meta(net.nin_imagenet)
    maps = network[0](x)
    assert maps.shape == (batch, 96, (height - 11) // 4 + 1, (width - 11) // 4 + 1)
    assert network[1:](maps).shape == (batch, 1000)
    assert on_meta(net.nin_cifar10)(x).shape == (batch, 10)


def test_two_hidden_units_compute_the_exclusive_or_of_neighbours():
    torch.manual_seed(0)
    x = torch.randint(2, (3, 1, 7, 9))
    right = F.pad(x[..., 1:], (0, 1))
    with torch.no_grad():
        assert torch.equal(net.exclusive_or()(x.float()), (x ^ right).float())
        between = torch.rand(3, 1, 7, 9)
        total = between + F.pad(between[..., 1:], (0, 1))
        close(net.exclusive_or()(between), (total - 2 * (total - 1).relu()).relu())


@pytest.mark.parametrize(("K", "H", "W"), [(10, 5, 5), (3, 2, 7)])
def test_average_pooling_is_a_fully_connected_layer_with_fixed_weights(K, H, W):
    torch.manual_seed(0)
    maps = torch.randn(3, K, H, W)
    with torch.no_grad():
        close(net.pooling_as_linear(K, H, W)(maps), maps.mean((2, 3)))
    close(net.average()(maps), maps.mean((2, 3)))


@pytest.mark.parametrize("size", [(20, 20), (23, 41)])
def test_class_maps_of_the_digit_network_add_up_to_its_outputs(size):
    torch.manual_seed(0)
    network, x = net.digit_network(net.average).double(), torch.randn(3, 1, *size).double()
    maps = network[:-1](x)
    close((maps / maps[0, 0].numel()).sum((2, 3)), network(x))
    assert (maps < 0).any()
    assert (net.digit_network(net.average, last_relu=True)[:-1](x.float()) >= 0).all()


def test_the_digit_network_has_the_layers_that_its_cell_names():
    network = on_meta(net.digit_network, net.connected)
    assert networks.layers_of(network, 2, 1, 20, 20) == networks.layers_of(
        nn.Sequential(
            *(nn.Conv2d(1, 16, 5, 1, 2), nn.Conv2d(16, 12, 1), nn.Conv2d(12, 8, 1)),
            *(nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(0.0)),
            *(nn.Conv2d(8, 24, 5, 1, 2), nn.Conv2d(24, 24, 1), nn.Conv2d(24, 16, 1)),
            *(nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(0.0)),
            *(nn.Conv2d(16, 24, 3, 1, 1), nn.Conv2d(24, 24, 1), nn.Conv2d(24, 10, 1)),
            *(nn.Flatten(), nn.Dropout(0.0), nn.Linear(250, 10)),
        ).to("meta"),
        *(2, 1, 20, 20),
    )


def test_class_activation_maps_add_up_to_the_linear_layer_s_outputs():
    torch.manual_seed(0)
    layer, features = nn.Linear(6, 4), torch.randn(2, 6, 3, 5)
    maps = net.class_activation(features, layer.weight)
    assert maps.shape == (2, 4, 3, 5)
    close(maps.mean((2, 3)) + layer.bias, layer(features.mean((2, 3))))


def test_both_heads_stand_on_bodies_with_the_same_first_weights():
    first, second = (net.fresh(name, 1)[:-1].state_dict() for name in ("connected", "average"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_spoiled_labels_change_about_the_share_asked_for_and_are_drawn_from_all_ten():
    y = torch.arange(10).repeat(500)
    wrong = (net.spoiled(y, 0.4) != y).double().mean().item()
    assert wrong == pytest.approx(0.4 * 0.9, abs=0.02)  # a tenth of the draws are right by chance
    assert torch.equal(net.spoiled(y, 0.4), net.spoiled(y, 0.4))
    assert torch.equal(net.spoiled(y, 0.0), y)
    assert net.spoiled(y, 1.0).bincount(minlength=10).min() > 400
    assert net.spoiled(y, 1.0).max() == 9


def test_pairs_hold_two_digits_of_different_classes():
    x, y = torch.rand(11, 1, 4, 5), torch.tensor([1, 2, 3, 4, 5, 1, 7, 3, 9, 5, 0])
    both, labels = net.pairs((x, y))
    assert labels.tolist() == [[2, 7], [4, 9]]
    assert torch.equal(both, torch.cat((x[[1, 3]], x[[6, 8]]), dim=3))


def test_a_map_counts_where_it_is_highest_on_the_half_of_its_digit():
    maps, labels = torch.zeros(3, 4, 3, 6), torch.tensor([[1, 3], [0, 2], [2, 0]])
    maps[0, 1, 2, 0] = maps[0, 3, 0, 3] = 1  # both right
    maps[1, 0, 1, 2] = maps[1, 2, 1, 1] = 1  # the second is on the wrong half
    maps[2, 2, 0, 4] = maps[2, 0, 0, 5] = 1  # the first is
    chosen, share = net.on_own_side(maps, labels)
    torch.testing.assert_close(chosen[0], maps[0, [1, 3]])
    assert share == pytest.approx(4 / 6)


@pytest.mark.parametrize("pixels", [-2, 0, 1, 3])
def test_moved_pictures_are_the_old_ones_at_another_place(pixels):
    x = torch.rand(2, 1, 7, 9) + 1
    y = net.moved(x, pixels)
    assert y.shape == x.shape
    for i in range(7):
        for j in range(9):
            inside = 0 <= i - pixels < 7 and 0 <= j - pixels < 9
            expected = x[..., i - pixels, j - pixels] if inside else x.min().expand(2, 1)
            assert torch.equal(y[..., i, j], expected)


def test_between_borders_maps_move_with_the_picture_and_the_average_stays():
    torch.manual_seed(0)
    network = net.digit_network(net.average).double()
    x = F.pad(torch.rand(2, 1, 12, 12), [24] * 4).double()
    maps, later = network[:-1](x), network[:-1](net.moved(x, 4))  # four pixels are one of a map
    close(later[..., 3:-3, 3:-3], maps[..., 2:-4, 2:-4])
    close(network(net.moved(x, 4)), network(x))


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    torch.manual_seed(0)
    network = net.digit_network(net.average)
    networks.learns(network, torch.randn(20, 1, 20, 20), rate=5e-3, steps=120)


@pytest.mark.parametrize("name", ["nin_imagenet", "nin_cifar10"])
def test_every_size_runs_forward_and_backward_on_the_meta_device(name):
    networks.runs_on_meta(on_meta(getattr(net, name)), 2, 3, 96, 96)


@pytest.mark.parametrize("head", HEADS)
def test_the_digit_networks_run_forward_and_backward_on_the_meta_device(head):
    network = on_meta(net.digit_network, getattr(net, head))
    assert networks.runs_on_meta(network, 2, 1, 20, 20).shape == (2, 10)
