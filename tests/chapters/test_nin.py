"""The Network in Network of notebooks/nin.py."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

net = definitions("nin")

# The authors' files: units of each mlpconv layer, then size, stride and padding of its window.
IMAGENET = (
    ((96, 96, 96), (11, 4, 0)),
    ((256, 256, 256), (5, 1, 2)),
    ((384, 384, 384), (3, 1, 1)),
    ((1024, 1024, 1000), (3, 1, 1)),
)
CIFAR10 = (
    ((192, 160, 96), (5, 1, 2)),
    ((192, 192, 192), (5, 1, 2)),
    ((192, 192, 10), (3, 1, 1)),
)
DIGITS = (
    ((16, 12, 8), (3, 1, 1)),
    ((24, 24, 16), (3, 1, 1)),
    ((24, 24, 10), (3, 1, 1)),
)
SIZES = {
    "ImageNetNiN": (IMAGENET, (224, 224), (54, 27, 13, 6), 7_595_176),
    "Cifar10NiN": (CIFAR10, (32, 32), (32, 16, 8), 966_986),
}


def as_a_list(blocks, c_in, dropped=(), last_relu=True):
    """The network as its file has it, one layer after the other; dropout behind these poolings."""
    layers = []
    for number, ((a, b, c), window) in enumerate(blocks, start=1):
        layers += [nn.Conv2d(c_in, a, *window), nn.ReLU()]
        layers += [nn.Conv2d(a, b, 1), nn.ReLU(), nn.Conv2d(b, c, 1), nn.ReLU()]
        c_in = c
        if number < len(blocks):
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        if number in dropped:
            layers.append(nn.Dropout(0.5))
    return nn.Sequential(*(layers if last_relu else layers[:-1]))


def with_mean(*arguments, **how):
    return nn.Sequential(as_a_list(*arguments, **how), nn.AdaptiveAvgPool2d(1), nn.Flatten())


REFERENCES = {
    "ImageNetNiN": lambda: with_mean(IMAGENET, 3, dropped=(3,)),
    "Cifar10NiN": lambda: with_mean(CIFAR10, 3, dropped=(1, 2)),
}


# ---- the published networks ----------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_each_size_costs_what_a_sum_by_hand_gives(name):
    blocks, image, sides, parameters = SIZES[name]
    network, total, c_in = on_meta(getattr(net, name)), 0, 3
    for ((a, b, c), (size, *_)), side in zip(blocks, sides, strict=True):
        total += side * side * (size * size * c_in * a + a * b + b * c)
        c_in = c
    assert macs_of(network, 1, 3, *image) == total
    assert parameters_of(network) == parameters


@pytest.mark.parametrize("name", SIZES)
def test_each_size_calls_the_layers_of_the_authors_file_in_their_order(name):
    shape = (1, 3, *SIZES[name][1])
    networks.same_layers(on_meta(getattr(net, name)), on_meta(REFERENCES[name]), *shape)


@pytest.mark.parametrize(("name", "side"), [("ImageNetNiN", 75), ("Cifar10NiN", 19)])
def test_with_the_same_weights_a_network_does_what_a_list_of_layers_does(name, side):
    torch.manual_seed(0)
    pair = on_meta(getattr(net, name)), on_meta(REFERENCES[name])
    networks.same_function(*pair, torch.randn(2, 3, side, side + 6))


@pytest.mark.parametrize("name", SIZES)
def test_every_size_runs_forward_and_backward_on_the_meta_device(name):
    output = networks.runs_on_meta(on_meta(getattr(net, name)), 3, 3, 96, 131)
    assert output.shape == (3, {"ImageNetNiN": 1000, "Cifar10NiN": 10}[name])


# ---- the layer -----------------------------------------------------------------------------------


def pixel_by_pixel(layer, x):
    """An mlpconv layer as two loops over places and matrix products, nothing of torch's layers."""
    convs = layer.window, layer.pixel1, layer.pixel2
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
    ("size", "stride", "padding"), [(7, 2, 1), (5, 1, 2), (3, 1, 0), (3, 3, 2)]
)
def test_an_mlpconv_layer_is_a_perceptron_at_each_pixel(size, stride, padding):
    torch.manual_seed(0)
    layer = net.MlpConv(3, (8, 7, 5), size=size, stride=stride, padding=padding)
    conv = net.randomise_biases(layer).window
    assert (conv.kernel_size[0], conv.stride[0], conv.padding[0]) == (size, stride, padding)
    x = torch.randn(3, 3, 9, 12)
    with torch.no_grad():
        expected = pixel_by_pixel(layer, x)
        close(layer(x), expected)
        close(net.PatchMlp(layer)(x), expected)


def test_one_pixel_and_stride_1_are_what_a_layer_has_unless_it_is_told():
    layer = net.MlpConv(3, (8, 7, 5), size=3)
    assert (layer.window.stride, layer.window.padding) == ((1, 1), (0, 0))


def test_on_patches_is_the_network_with_each_mlpconv_layer_replaced():
    torch.manual_seed(0)
    network = net.randomise_biases(net.Cifar10NiN())
    patches = net.on_patches(network)
    for name in ("mlpconv1", "mlpconv2", "mlpconv3"):
        assert isinstance(getattr(network, name), net.MlpConv)
        assert isinstance(getattr(patches, name), net.PatchMlp)
    networks.same_outputs(patches, network, torch.randn(2, 3, 14, 19))


def test_randomised_biases_are_about_a_tenth_and_weights_stay():
    torch.manual_seed(0)
    layer = net.MlpConv(3, (300, 300, 300), size=1)
    before = [p.clone() for name, p in layer.named_parameters() if name.endswith("weight")]
    assert net.randomise_biases(layer) is layer
    biases = torch.cat([p for name, p in layer.named_parameters() if name.endswith("bias")])
    networks.starts_with(biases, 0.1, share=0.05)
    after = [p for name, p in layer.named_parameters() if name.endswith("weight")]
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("name", ["window", "filter"])
def test_kernels_start_with_variance_two_over_fan_in_and_biases_at_zero(name):
    torch.manual_seed(0)
    if name == "filter":
        layer = net.PlainConv(24, 96, size=5)
    else:
        layer = net.MlpConv(24, (96, 200, 100), size=5)
        networks.starts_with(layer.pixel1.weight, (2 / 96) ** 0.5)
    networks.starts_with(getattr(layer, name).weight, (2 / (24 * 25)) ** 0.5)
    assert not any(p.any() for key, p in layer.named_parameters() if key.endswith("bias"))


# ---- do two pixels differ? -----------------------------------------------------------------------


def test_a_pixel_differs_from_its_right_neighbour_by_hand():
    x = torch.tensor([[9, 9, 9, 9], [9, 1, 0, 0], [9, 1, 1, 0], [9, 9, 9, 9]]).view(1, 1, 4, 4)
    assert net.differs(x.float()).tolist() == [[[[1.0, 0.0], [0.0, 1.0]]]]


def test_all_windows_are_there_once():
    windows = net.all_windows()
    assert windows.shape == (512, 1, 3, 3)
    assert ((windows == 0) | (windows == 1)).all()
    assert len(set(map(tuple, windows.flatten(1).tolist()))) == 512


def test_two_hidden_units_compute_the_exclusive_or_of_neighbours():
    torch.manual_seed(0)
    x = torch.rand(3, 1, 7, 9)
    a, b = x[..., 1:-1, 1:-1], x[..., 1:-1, 2:]
    with torch.no_grad():
        close(net.exclusive_or()(x), (a + b - 2 * (a + b - 1).relu()).relu())
        bits = x.round()
        assert torch.equal(net.exclusive_or()(bits), net.differs(bits))


def test_a_plain_layer_is_relu_of_a_convolution():
    torch.manual_seed(0)
    layer, x = net.PlainConv(3, 4, size=5), torch.randn(2, 3, 8, 9)
    layer.filter.bias.data.normal_()
    close(layer(x), F.conv2d(x, layer.filter.weight, layer.filter.bias).relu())


class Read(nn.Module):
    """Says which value stands at a place of the window."""

    def __init__(self, row, column):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.place = row, column

    def forward(self, x):
        assert x.shape[1:] == (1, 3, 3)
        return self.weight * x[:, 0, self.place[0], self.place[1]]


def test_the_square_has_a_along_the_rows_and_b_up_and_zeros_around_them():
    steps = torch.tensor([0.0, 0.5, 1.0])
    close(net.over_square(Read(1, 1), 3), steps.expand(3, 3))
    close(net.over_square(Read(1, 2), 3), steps.expand(3, 3).T)
    assert not net.over_square(Read(1, 0), 3).any()
    assert not net.over_square(Read(2, 2), 3).any()
    assert net.over_square(on_meta(net.PlainConv, 1, 1, size=3), 4).shape == (4, 4)


# ---- the heads -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("K", "H", "W"), [(10, 5, 5), (3, 2, 7)])
def test_the_average_is_a_fully_connected_layer_with_fixed_weights(K, H, W):
    torch.manual_seed(0)
    maps = torch.randn(3, K, H, W)
    with torch.no_grad():
        close(net.average_as_linear(K, H, W)(maps), maps.sum((2, 3)) / (H * W))
    close(net.GlobalAverage()(maps), maps.sum((2, 3)) / (H * W))


def test_the_maps_of_the_digit_network_are_those_of_a_list_of_layers():
    torch.manual_seed(0)
    network = net.DigitNiN(net.GlobalAverage())
    reference = as_a_list(DIGITS, 1, last_relu=False)
    networks.share_weights(network, reference)
    x = torch.randn(2, 1, 16, 23)
    close(network.maps(x), reference(x))
    close(network(x), reference(x).mean((2, 3)))


@pytest.mark.parametrize("head", ["ConnectedHead", "GlobalAverage"])
def test_the_digit_networks_run_forward_and_backward_on_the_meta_device(head):
    network = on_meta(lambda: net.DigitNiN(getattr(net, head)()))
    assert networks.runs_on_meta(network, 3, 1, 16, 16).shape == (3, 10)


def test_the_connected_head_reads_every_value_of_every_map():
    torch.manual_seed(0)
    head, maps = net.ConnectedHead(), torch.randn(2, 10, 4, 4)
    assert parameters_of(head) == 10 * 160 + 10
    expected = torch.einsum("kchw,bchw->bk", head.linear.weight.view(10, 10, 4, 4), maps)
    close(head(maps), expected + head.linear.bias)


def test_between_borders_maps_move_with_the_picture_and_the_average_stays():
    torch.manual_seed(0)
    network = net.randomise_biases(net.DigitNiN(net.GlobalAverage())).double()
    x = F.pad(torch.rand(2, 1, 12, 12), [24] * 4).double()
    later = net.moved(x, 4)  # four pixels are one of a map
    close(network.maps(later)[..., 3:-3, 3:-3], network.maps(x)[..., 2:-4, 2:-4])
    close(network(later), network(x))


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    torch.manual_seed(0)
    network = net.DigitNiN(net.GlobalAverage())
    networks.learns(network, torch.randn(20, 1, 16, 16), rate=1e-2, steps=100)


def test_networks_of_one_seed_differ_only_in_their_head():
    first, second = net.start("connected", 1), net.start("average", 1)
    weights = dict(first.named_parameters())
    for name, weight in second.named_parameters():
        close(weight, weights.pop(name), 0)
    assert set(weights) == {"head.linear.weight", "head.linear.bias"}


# ---- data and measures ---------------------------------------------------------------------------


def test_of_ten_labels_about_the_share_asked_for_is_replaced_by_all_others():
    y = torch.arange(10).repeat(500)
    spoiled = net.wrong_labels(y, 0.4)
    assert (spoiled != y).double().mean().item() == pytest.approx(0.4, abs=0.02)
    assert torch.equal(spoiled, net.wrong_labels(y, 0.4))
    assert torch.equal(net.wrong_labels(y, 0.0), y)
    steps = (net.wrong_labels(y, 1.0) - y) % 10
    assert steps.unique().tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert steps.bincount().amin() == steps.bincount()[0] == 0
    assert steps.bincount()[1:].min() > 450
    assert set(spoiled.tolist()) == set(range(10))


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


def test_the_share_of_chosen_images_that_are_right():
    outputs = torch.eye(4)[[0, 1, 2, 3, 0]]
    network = nn.Linear(4, 4, bias=False)
    network.weight.data.copy_(torch.eye(4))
    part = outputs, torch.tensor([0, 1, 3, 3, 1])
    chosen = torch.tensor([True, False, True, False, True])
    assert net.share_right(network, part, chosen) == pytest.approx(1 / 3)


def test_pairs_hold_two_digits_of_different_classes():
    x, y = torch.rand(11, 1, 4, 5), torch.tensor([1, 2, 3, 4, 5, 1, 7, 3, 9, 5, 0])
    both, labels = net.pairs((x, y))
    assert labels.tolist() == [[2, 7], [4, 9]]
    assert torch.equal(both, torch.cat((x[[1, 3]], x[[6, 8]]), dim=3))


def test_a_map_counts_where_it_is_highest_on_the_half_of_its_digit():
    maps, labels = torch.zeros(3, 4, 3, 6), torch.tensor([[1, 3], [0, 2], [2, 0]])
    maps[0, 1, 2, 2] = maps[0, 3, 0, 3] = 1  # both right
    maps[1, 0, 1, 2] = maps[1, 2, 1, 1] = 1  # the second is on the wrong half
    maps[2, 2, 0, 3] = maps[2, 0, 0, 5] = 1  # the first is
    assert net.on_own_side(maps, labels) == pytest.approx(4 / 6)


def test_class_activation_maps_add_up_to_the_outputs_of_the_linear_layer():
    torch.manual_seed(0)
    layer, features = nn.Linear(6, 4), torch.randn(2, 6, 3, 5)
    maps = net.class_activation(features, layer.weight)
    assert maps.shape == (2, 4, 3, 5)
    close(maps.mean((2, 3)) + layer.bias, layer(features.mean((2, 3))))
