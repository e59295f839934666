"""The networks of 2012 and 2014 of notebooks/alexnet.py."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

net = definitions("alexnet")

TWO = (60_965_224, 724_406_816)  # parameters and MACs, also by hand below
PAPER = (2, 3, 227, 227)


def narrow_dense(network, share=1):
    """The same network with 64 hidden units and 10 classes, or a tower with its share of them."""
    with torch.device("meta"):
        network.fc6 = nn.Linear(256 * 6 * 6, 64 // share)
        network.fc7 = nn.Linear(64, 64 // share)
        network.fc8 = nn.Linear(64, 10 // share)
    return network


# ---- the networks --------------------------------------------------------------------------------


def test_the_network_of_2012_has_the_parameters_and_macs_of_a_sum_by_hand():
    # Section 3.5: kernels and the maps they see; maps of 55, 27, 13 pixels a side.
    kernels = ((96, 11 * 11 * 3), (256, 5 * 5 * 48), (384, 9 * 256), (384, 9 * 192), (256, 9 * 192))
    macs = sum(n * m * s * s for (n, m), s in zip(kernels, (55, 27, 13, 13, 13), strict=True))
    dense = ((4096, 6 * 6 * 256), (4096, 4096), (1000, 4096))
    parameters = sum(n * (m + 1) for n, m in (*kernels, *dense))
    macs += sum(n * m for n, m in dense)
    assert (parameters, macs) == TWO
    network = on_meta(net.AlexNet)
    assert (parameters_of(network), macs_of(network, 1, 3, 227, 227)) == TWO


def test_the_variant_of_2014_has_the_layers_and_the_cost_torchvision_gives():
    network = on_meta(net.AlexNet2014)
    meta = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.meta
    assert parameters_of(network) == meta["num_params"] == 61_100_840
    assert round(macs_of(network) / 1e9, 3) == meta["_ops"]
    networks.same_layers(network, on_meta(torchvision.models.alexnet))


def test_the_footnote_of_2014_gives_other_counts_than_the_code():
    network = on_meta(net.AlexNet2014, conv4_maps=384)
    assert (parameters_of(network), macs_of(network)) == (61_838_248, 838_788_800)


def test_the_variant_of_2014_does_what_torchvision_s_does_on_maps_of_odd_size():
    torch.manual_seed(0)
    ours, theirs = narrow_dense(on_meta(net.AlexNet2014)), on_meta(torchvision.models.alexnet)
    for number, layer in ((1, ours.fc6), (4, ours.fc7), (6, ours.fc8)):
        theirs.classifier[number] = copy.deepcopy(layer)
    networks.same_function(ours, theirs, torch.randn(1, 3, 63, 97))


def test_the_network_of_2012_does_what_two_towers_with_its_weights_do():
    torch.manual_seed(0)
    ours, pair = narrow_dense(on_meta(net.AlexNet)), on_meta(net.TwoTowers)
    narrow_dense(pair.one, 2)
    narrow_dense(pair.two, 2)
    pair.to_empty(device="cpu")
    networks.share_weights(ours, ours)
    net.split_weights(ours, pair)
    networks.same_outputs(ours, pair, 30 * torch.randn(1, 3, 227, 227))
    assert parameters_of(on_meta(net.TwoTowers)) == TWO[0]


def test_conv1_and_conv2_are_followed_by_relu_then_normalisation_then_pooling():
    torch.manual_seed(0)
    network = narrow_dense(on_meta(net.AlexNet))
    networks.share_weights(network, network)
    read = []
    for layer in (network.conv2, network.conv3):
        layer.register_forward_pre_hook(lambda layer, inputs: read.append(inputs[0]))
    x = 300 * torch.randn(1, 3, 227, 227)
    with torch.no_grad():
        network(x)
        for conv, source, found in zip((network.conv1, network.conv2), (x, read[0]), read[:2]):
            halves = conv(source).clamp(min=0).chunk(2, 1)
            normed = torch.cat([net.response_norm(half) for half in halves], 1)
            close(found, F.max_pool2d(normed, 3, 2))
            swapped = F.max_pool2d(torch.cat(halves, 1), 3, 2).chunk(2, 1)
            other = torch.cat([net.response_norm(half) for half in swapped], 1)
            assert (found - other).abs().max() > 0.01 * found.abs().max()  # the order shows


def test_half_of_the_outputs_of_fc6_and_fc7_are_dropped():
    kinds = {"kinds": (nn.Linear, nn.Dropout)}
    one = networks.layers_of(on_meta(net.AlexNet), 1, 3, 227, 227, **kinds)
    two = networks.layers_of(on_meta(net.TwoTowers), 1, 3, 227, 227, **kinds)
    dropped = "Dropout(p=0.5) gives (1, {})"
    assert one[1::2] == [dropped.format(4096)] * 2
    assert two[1:8:2] == [dropped.format(2048)] * 4


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("AlexNet", PAPER),
        ("TwoTowers", PAPER),
        ("AlexNet2014", (3, 3, 161, 225)),
        ("FourLayers", (3, 3, 32, 32)),
        ("SmallNetwork", (3, 1, 20, 20)),
    ],
)
def test_every_network_runs_forward_and_backward_on_the_meta_device(name, shape):
    how = {"FourLayers": (torch.tanh,), "SmallNetwork": (0.5,)}.get(name, ())
    output = networks.runs_on_meta(on_meta(getattr(net, name), *how), *shape)
    assert output.shape == (shape[0], 1000 if "Layers" not in name and "Small" not in name else 10)


def test_the_number_of_towers_and_of_classes_can_be_chosen():
    assert macs_of(on_meta(net.AlexNet, towers=1), 1, 3, 227, 227) == 1_135_256_096
    assert on_meta(net.AlexNet, towers=4).norm.towers == 4
    x = torch.empty(1, 3, 227, 227, device="meta")
    assert on_meta(net.AlexNet, num_classes=7)(x).shape == (1, 7)
    assert on_meta(net.AlexNet2014, num_classes=7)(x).shape == (1, 7)


# ---- response normalisation ----------------------------------------------------------------------


@pytest.mark.parametrize("maps", [1, 4, 5, 48])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_response_norm_equals_torch_with_alpha_times_n(maps, scale):
    x = scale * torch.randn(3, maps, 5, 7, generator=torch.Generator().manual_seed(0))
    close(net.response_norm(x), F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2), 1e-6)


def test_response_norm_of_a_case_by_hand():
    a = torch.tensor([3.0, 4.0, 0.0, 12.0]).view(1, 4, 1, 1)
    found = net.response_norm(a, n=3, k=0.0, alpha=1.0, beta=0.5).flatten()
    close(found, torch.tensor([3 / 5, 4 / 5, 0.0, 1.0]))


def test_response_norm_of_a_tower_does_not_see_the_other():
    x = 30 * torch.rand(2, 12, 3, 3)
    halves = [net.response_norm(half) for half in x.chunk(2, 1)]
    close(net.ResponseNorm(2)(x), torch.cat(halves, 1))


# ---- crops and colours ---------------------------------------------------------------------------


def test_the_middle_crop_is_in_the_middle_of_both_sides():
    x = torch.arange(63.0).view(1, 1, 7, 9)
    close(net.MiddleCrop(3)(x), x[..., 2:5, 3:6])


def test_random_crops_are_all_windows_in_training_and_the_middle_else():
    torch.manual_seed(0)
    x = torch.arange(30.0).view(1, 1, 5, 6).repeat(300, 1, 1, 1)
    crop = net.RandomCrop(3)
    windows = crop(x)
    assert windows.shape == (300, 1, 3, 3)
    assert (windows[..., 1:] - windows[..., :-1] == 1).all()
    assert (windows[..., 1:, :] - windows[..., :-1, :] == 6).all()
    found = {int(window.min()) for window in windows}
    assert found == {6 * i + j for i in range(3) for j in range(4)}
    close(crop.eval()(x), x[..., 1:4, 1:4])


def test_the_colour_shift_has_the_covariance_of_the_pixels_squared():
    torch.manual_seed(0)
    mix = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.5, 0.3, 0.2]])
    x = torch.einsum("ij,bjhw->bihw", mix, torch.randn(4, 3, 50, 50))
    zeros = torch.zeros(20_000, 3, 2, 2)
    shift = 10 * net.shift_colour(zeros, *net.colour_axes(x))  # sigma is 0.1
    close(shift[..., 0, 0], shift[..., 1, 1], 0)  # the same for all pixels
    covariance = torch.cov(x.transpose(0, 1).flatten(1))
    close(torch.cov(shift[:, :, 0, 0].T), covariance @ covariance, 0.03)
    values, vectors = torch.ones(3, device="meta"), torch.ones(3, 3, device="meta")
    assert net.shift_colour(zeros.to("meta"), values, vectors).device.type == "meta"
    ones = torch.ones(1, 3, 2, 2)
    close(net.shift_colour(ones, *net.colour_axes(x), sigma=0.0), ones)


def test_two_grey_pixels_vary_along_grey_only():
    two = torch.tensor([[1.0, -1.0]] * 3).view(1, 3, 1, 2)
    values, vectors = net.colour_axes(two)
    close(values, torch.tensor([0.0, 0.0, 6.0]), 1e-5)
    close(vectors[:, 2].abs(), torch.full((3,), 3**-0.5), 1e-5)


# ---- the small networks and their training -------------------------------------------------------


def test_the_small_network_does_what_its_layers_do_one_after_the_other():
    torch.manual_seed(0)
    network, x = net.SmallNetwork(0.5).eval(), torch.randn(3, 1, 20, 20)
    convs = [nn.Conv2d(1, 8, 5), nn.Conv2d(8, 16, 3)]
    dense = [nn.Linear(144, 256), nn.Linear(256, 256), nn.Linear(256, 10)]
    parts = [convs[0], nn.ReLU(), nn.MaxPool2d(2), convs[1], nn.ReLU(), nn.MaxPool2d(2)]
    parts += [nn.Flatten(), dense[0], nn.ReLU(), nn.Dropout(0.5)]
    parts += [dense[1], nn.ReLU(), nn.Dropout(0.5), dense[2]]
    networks.same_function(network, nn.Sequential(*parts), x)


@pytest.mark.parametrize("unit", [torch.relu, torch.tanh])
def test_four_layers_do_what_their_layers_do_one_after_the_other(unit):
    torch.manual_seed(0)
    act = {torch.relu: nn.ReLU, torch.tanh: nn.Tanh}[unit]
    parts = [nn.Conv2d(3, 16, 5, 2, 2), act(), nn.MaxPool2d(3, 2)]
    parts += [nn.Conv2d(16, 32, 3, 1, 1), act(), nn.MaxPool2d(3, 2)]
    parts += [nn.Conv2d(32, 32, 3, 1, 1), act(), nn.Flatten(), nn.Linear(288, 10)]
    networks.same_function(net.FourLayers(unit), nn.Sequential(*parts), torch.randn(3, 3, 32, 32))


def test_weights_for_relu_have_the_variance_two_over_inputs_and_no_biases():
    torch.manual_seed(0)
    network = net.FourLayers(torch.relu)
    assert net.weights_for_relu(network) is network
    for layer in (network.conv1, network.conv2, network.conv3, network.classifier):
        inputs = layer.weight[0].numel()
        assert layer.weight.var().item() == pytest.approx(2 / inputs, rel=0.12)
        assert not layer.bias.any()


def test_learn_gives_the_error_after_each_epoch(monkeypatch):
    network, x = net.FourLayers(torch.relu), torch.zeros(4, 3, 32, 32)
    labels = torch.zeros(4, dtype=torch.long)

    def fit(given, part, epochs, optimizer, validation):
        settings = optimizer.param_groups[0]
        assert given is network and part[0] is validation[0] is x and part[1] is labels
        assert (epochs, settings["lr"], settings["momentum"]) == (2, 0.25, 0.9)
        return {"validation": [0.5, 1.0]}

    monkeypatch.setattr(net.training, "fit", fit)
    monkeypatch.setattr(net, "classes", labels, raising=False)
    monkeypatch.setitem(net.learn.__globals__, "classes", labels)
    assert net.learn(network, x, rate=0.25, epochs=2) == [0.5, 0.0]


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    torch.manual_seed(0)
    networks.learns(net.SmallNetwork(0.5), torch.randn(20, 1, 20, 20), rate=3e-3, steps=30)
    networks.learns(net.FourLayers(torch.tanh), torch.randn(20, 3, 32, 32), rate=5e-3, steps=30)


def test_the_first_images_of_each_class_are_chosen():
    y = torch.tensor([2, 0, 2, 1, 0, 1, 2, 0])
    x, labels = net.first_of_each((10 * torch.arange(8), y), 2)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert x.tolist() == [10, 40, 30, 50, 0, 20]


class Known(nn.Module):
    """Gives the logits it is given."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.factor * x


def test_the_held_out_loss_is_the_mean_over_all_images():
    x = torch.tensor([[2.0, 0.0], [0.0, 0.0]]).log1p().repeat(200, 1)  # odds of 3 and of 1
    expected = (torch.tensor(4 / 3).log() + torch.tensor(2.0).log()) / 2
    found = net.held_out_loss(Known(), (x, torch.zeros(400, dtype=torch.long)))
    assert found == pytest.approx(expected.item(), rel=1e-5)


def test_the_rate_rises_for_a_fifth_of_the_steps_and_falls_to_nothing(monkeypatch):
    rates = []

    def fit(network, part, epochs, optimizer, batch, schedule):
        assert (epochs, batch) == (15, 25)
        settings = optimizer.param_groups[0]
        assert (settings["momentum"], settings["weight_decay"]) == (0.9, 5e-4)
        for _ in range(15 * 3):  # three batches of 25 at most
            rates.append(settings["lr"])
            optimizer.step()
            schedule.step() if len(rates) < 180 else None

    monkeypatch.setattr(net.training, "fit", fit)
    part = torch.zeros(60, 2), torch.zeros(60, dtype=torch.long)
    losses = net.fit(Known(), part, part, epochs=60)
    assert losses == pytest.approx([torch.tensor(2.0).log().item()] * 4)
    assert max(rates) == pytest.approx(0.03)
    assert rates.index(max(rates)) == 35
    assert rates[-1] < 1e-5


def test_a_share_of_the_outputs_is_taken_away_and_the_others_scaled_up():
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 40), torch.randn(3, 5)
    before = layer(x)
    handle = net.take_away(layer, 0.75)
    factor = layer(x) / before
    close(factor, factor[:1].expand(3, 40))  # the same units for all images
    assert sorted(factor[0].round(decimals=3).tolist()) == [0.0] * 30 + [4.0] * 10
    handle.remove()
    close(layer(x), before, 0)
    handle = net.take_away(layer, 0.0)
    close(layer(x), before, 0)
    handle.remove()


def test_the_accuracy_without_units_is_the_mean_over_draws_in_both_layers(monkeypatch):
    network = nn.Sequential(net.MiddleCrop(20), net.SmallNetwork(0.0))
    hooks, results = [], iter([0.5, 0.75, 1.0])

    def evaluate(network, part):
        hooks.append([len(layer._forward_hooks) for layer in (network[1].fc3, network[1].fc4)])
        return next(results)

    monkeypatch.setattr(net.training, "evaluate", evaluate)
    assert net.accuracy_without(network, None, 0.5, draws=3) == pytest.approx(0.75)
    assert hooks == [[1, 1]] * 3
    assert not network[1].fc3._forward_hooks and not network[1].fc4._forward_hooks


# ---- the input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "expected"), [(227, [55, 27, 13, 6]), (224, [54, 26, 12, 5])])
def test_the_sides_are_those_of_the_modules(size, expected):
    network, x = on_meta(net.AlexNet), torch.empty(1, 3, size, size, device="meta")
    found = [network.conv1(x).shape[-1]]
    x = network.pool(network.conv1(x))
    found.append(x.shape[-1])
    x = network.pool(network.conv2(x))
    found.append(x.shape[-1])
    found.append(network.pool(network.conv3(x)).shape[-1])
    assert net.sides(size) == found == expected
    assert on_meta(net.AlexNet, side=expected[-1]).fc6.in_features == 256 * expected[-1] ** 2
