"""The Network in Network of notebooks/nin.py."""

import pytest
import torch
import torchvision
from torch import nn

from loader import definitions
from workbench import checks, counting, training

nin = definitions("nin")


def on_meta(build):
    with torch.device("meta"):
        return build()


def macs_of(network, side):
    return counting.macs(network, torch.empty(1, 3, side, side, device="meta"))


@pytest.mark.parametrize(
    ("name", "parameters"), [("nin_imagenet", 7_595_176), ("nin_cifar10", 966_986)]
)
def test_published_sizes_have_the_known_parameters(name, parameters):
    assert counting.parameters(on_meta(getattr(nin, name))) == parameters


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
    found = macs_of(on_meta(nin.nin_imagenet), side)
    assert found == macs_by_hand(sides, 3, blocks) == macs


def test_the_cifar10_size_costs_what_a_sum_by_hand_gives():
    blocks = [(5, 192, 160, 96), (5, 192, 192, 192), (3, 192, 192, 10)]
    found = macs_of(on_meta(nin.nin_cifar10), 32)
    assert found == macs_by_hand((32, 16, 8), 3, blocks) == 222_486_528


def pixel_by_pixel(block, x):
    """An mlpconv layer as two loops over places and matrix products, nothing of torch's layers."""
    convs = [layer for layer in block.layers if isinstance(layer, nn.Conv2d)]
    (k, _), (s, _), (p, _) = convs[0].kernel_size, convs[0].stride, convs[0].padding
    padded = torch.zeros(*x.shape[:2], x.shape[2] + 2 * p, x.shape[3] + 2 * p, dtype=x.dtype)
    padded[:, :, p : p + x.shape[2], p : p + x.shape[3]] = x
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
    ("size", "stride", "padding"), [(11, 4, 0), (5, 1, 2), (3, 1, 1), (3, 2, 0)]
)
def test_an_mlpconv_layer_is_a_perceptron_at_each_pixel(size, stride, padding):
    torch.manual_seed(0)
    block = nin.MlpConv(3, (8, 7, 5), size, stride, padding).double()
    x = torch.randn(3, 3, 17, 22, dtype=torch.double)
    with torch.no_grad():
        expected = pixel_by_pixel(block, x)
        torch.testing.assert_close(block(x), expected)
        torch.testing.assert_close(nin.PatchMlp(block).double()(x), expected)


@pytest.mark.parametrize(("name", "size"), [("nin_imagenet", (99, 131)), ("nin_cifar10", (32, 37))])
def test_networks_equal_perceptrons_on_patches(name, size):
    torch.manual_seed(0)
    network = nin.randomise_biases(getattr(nin, name)())
    checks.same_outputs(network, nin.unfolded(network), torch.randn(3, 3, *size))


def test_the_cifar10_network_equals_a_list_of_layers():
    torch.manual_seed(0)
    network, plain = nin.nin_cifar10(), nin.plain_cifar10()
    checks.transplant(nin.randomise_biases(network), plain)
    checks.same_outputs(network, plain, torch.randn(3, 3, 32, 32))


def test_the_imagenet_network_equals_a_list_of_layers():
    torch.manual_seed(0)
    layers, c_in = [], 3
    for a, c, k, s, p in ((96, 96, 11, 4, 0), (256, 256, 5, 1, 2), (384, 384, 3, 1, 1)):
        layers += [nn.Conv2d(c_in, a, k, s, p), nn.ReLU(), nn.Conv2d(a, a, 1), nn.ReLU()]
        layers += [nn.Conv2d(a, c, 1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)]
        c_in = c
    layers += [nn.Conv2d(384, 1024, 3, 1, 1), nn.ReLU(), nn.Conv2d(1024, 1024, 1), nn.ReLU()]
    layers += [nn.Conv2d(1024, 1000, 1), nn.ReLU(), nn.AvgPool2d(6), nn.Flatten()]
    network, plain = nin.nin_imagenet(), nn.Sequential(*layers)
    checks.transplant(nin.randomise_biases(network), plain)
    checks.same_outputs(network, plain, torch.randn(1, 3, 224, 224))


@pytest.mark.parametrize("name", ["nin_imagenet", "nin_cifar10"])
def test_dropout_of_a_half_stands_behind_each_pooling(name):
    network = on_meta(getattr(nin, name))
    drops = [m.p for m in network.modules() if isinstance(m, nn.Dropout)]
    assert drops == [0.5] * (sum(isinstance(m, nin.MlpConv) for m in network) - 1)


@pytest.mark.parametrize(("batch", "height", "width"), [(3, 225, 161), (1, 96, 256)])
def test_any_batch_and_map_size_goes_through(batch, height, width):
    x = torch.empty(batch, 3, height, width, device="meta")
    network = on_meta(nin.nin_imagenet)
    assert network(x).shape == (batch, 1000)
    assert network[0](x).shape == (batch, 96, (height - 11) // 4 + 1, (width - 11) // 4 + 1)
    assert on_meta(nin.nin_cifar10)(x).shape == (batch, 10)


def test_two_hidden_units_compute_the_exclusive_or_of_neighbours():
    torch.manual_seed(0)
    x = torch.randint(2, (3, 1, 7, 9))
    right = torch.zeros_like(x)
    right[..., :-1] = x[..., 1:]
    with torch.no_grad():
        assert torch.equal(nin.exclusive_or()(x.float()), (x ^ right).float())


@pytest.mark.parametrize(("K", "H", "W"), [(10, 5, 5), (3, 2, 7)])
def test_average_pooling_is_a_fully_connected_layer_with_fixed_weights(K, H, W):
    torch.manual_seed(0)
    maps = torch.randn(3, K, H, W)
    with torch.no_grad():
        found = nin.pooling_as_linear(K, H, W)(maps)
    torch.testing.assert_close(found, maps.mean((2, 3)))
    torch.testing.assert_close(nin.average()(maps), maps.mean((2, 3)))


def test_average_pooling_does_not_see_where_a_value_stands():
    maps = torch.randn(2, 4, 5, 5)
    shuffled = maps.flatten(2)[..., torch.randperm(25)].view_as(maps)
    torch.testing.assert_close(nin.average()(maps), nin.average()(shuffled))


@pytest.mark.parametrize("size", [(20, 20), (23, 41)])
def test_class_maps_of_the_digit_network_add_up_to_its_outputs(size):
    torch.manual_seed(0)
    network = nin.digit_network(nin.average).double()
    x = torch.randn(3, 1, *size, dtype=torch.double)
    maps = network[:-1](x)
    shares = maps / maps[0, 0].numel()
    torch.testing.assert_close(shares.sum((2, 3)), network(x))
    assert (maps < 0).any()
    assert (nin.digit_network(nin.average, last_relu=True).double()[:-1](x) >= 0).all()


def test_class_activation_maps_add_up_to_the_outputs_of_a_resnet():
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=7).double().eval()
    x = torch.randn(2, 3, 64, 96, dtype=torch.double)
    with torch.no_grad():
        features = nn.Sequential(*list(network.children())[:-2])(x)
        maps = nin.class_activation(features, network.fc.weight)
        assert maps.shape == (2, 7, 2, 3)
        torch.testing.assert_close(maps.mean((2, 3)) + network.fc.bias, network(x))


def test_both_heads_stand_on_bodies_with_the_same_first_weights():
    first, second = (nin.fresh(name, 1)[:-1].state_dict() for name in ("connected", "average"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_spoiled_labels_change_about_the_share_asked_for():
    y = torch.arange(10).repeat(500)
    wrong = (nin.spoiled(y, 0.4) != y).double().mean().item()
    assert wrong == pytest.approx(0.4 * 0.9, abs=0.02)  # a tenth of the draws are right by chance
    assert torch.equal(nin.spoiled(y, 0.4), nin.spoiled(y, 0.4))
    assert torch.equal(nin.spoiled(y, 0.0), y)


def test_pairs_hold_two_digits_of_different_classes():
    x, y = torch.rand(11, 1, 4, 5), torch.tensor([1, 2, 3, 4, 5, 1, 7, 3, 9, 5, 0])
    both, labels = nin.pairs((x, y))
    assert labels.tolist() == [[2, 7], [4, 9]]
    assert torch.equal(both, torch.cat((x[[1, 3]], x[[6, 8]]), dim=3))


def test_a_map_counts_where_it_is_highest_on_the_half_of_its_digit():
    maps, labels = torch.zeros(2, 4, 3, 6), torch.tensor([[1, 3], [0, 2]])
    maps[0, 1, 2, 0] = maps[0, 3, 0, 3] = 1  # both right
    maps[1, 0, 1, 2] = maps[1, 2, 1, 1] = 1  # the second is on the wrong half
    chosen, share = nin.on_own_side(maps, labels)
    torch.testing.assert_close(chosen[0], maps[0, [1, 3]])
    assert share == pytest.approx(3 / 4)


@pytest.mark.parametrize("pixels", [-2, 0, 1, 3])
def test_moved_pictures_are_the_old_ones_at_another_place(pixels):
    x = torch.rand(2, 1, 7, 9) + 1
    y = nin.moved(x, pixels)
    for i in range(7):
        for j in range(9):
            inside = 0 <= i - pixels < 7 and 0 <= j - pixels < 9
            expected = x[..., i - pixels, j - pixels] if inside else x.min().expand(2, 1)
            assert torch.equal(y[..., i, j], expected)


def test_between_borders_maps_move_with_the_picture_and_the_average_stays():
    torch.manual_seed(0)
    network = nin.digit_network(nin.average).double()
    x = torch.zeros(2, 1, 60, 60, dtype=torch.double)
    x[..., 24:36, 24:36] = torch.rand(2, 1, 12, 12, dtype=torch.double)
    maps, later = network[:-1](x), network[:-1](nin.moved(x, 4))  # four pixels are one of a map
    torch.testing.assert_close(later[..., 3:-3, 3:-3], maps[..., 2:-4, 2:-4])
    torch.testing.assert_close(network(nin.moved(x, 4)), network(x))


@pytest.mark.parametrize("name", nin.HEADS)
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(name):
    network = nin.fresh(name, 0)
    x, y = torch.randn(20, 1, 20, 20), torch.arange(20) % 10
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = training.fit(network, (x, y), 150, optimizer)["loss"]
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize("name", ["nin_imagenet", "nin_cifar10"])
def test_every_size_runs_forward_and_backward_on_the_meta_device(name):
    network = on_meta(getattr(nin, name))
    network(torch.empty(2, 3, 96, 96, device="meta")).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name", nin.HEADS)
def test_the_digit_networks_run_forward_and_backward_on_the_meta_device(name):
    network = on_meta(lambda: nin.digit_network(nin.HEADS[name][0]))
    network(torch.empty(2, 1, 20, 20, device="meta")).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
