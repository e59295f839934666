"""The networks of 2012 and 2014 of notebooks/alexnet.py."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from loader import definitions, without_dropout
from workbench import checks, counting, training

alexnet = definitions("alexnet")

TWO = (60_965_224, 724_406_816)  # parameters and MACs, also by hand below
STAGES = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]


def on_meta(build):
    with torch.device("meta"):
        return build()


def narrow(towers=2):
    """The paper's network with an eighth of the maps, for 99x99 pixels."""
    return alexnet.alexnet((12, 32, 48, 48, 32), 64, 10, side=2, towers=towers)


def test_the_two_towers_have_the_parameters_and_macs_of_a_sum_by_hand():
    # Section 3.5: kernels and the maps they see; maps of 55, 27, 13 pixels a side.
    kernels = ((96, 11 * 11 * 3), (256, 5 * 5 * 48), (384, 9 * 256), (384, 9 * 192), (256, 9 * 192))
    macs = sum(n * m * s * s for (n, m), s in zip(kernels, (55, 27, 13, 13, 13), strict=True))
    dense = ((4096, 6 * 6 * 256), (4096, 4096), (1000, 4096))
    parameters = sum(n * (m + 1) for n, m in (*kernels, *dense))
    macs += sum(n * m for n, m in dense)
    network = on_meta(alexnet.alexnet)
    assert (parameters, macs) == TWO
    assert counting.parameters(network) == parameters
    assert counting.macs(network, torch.empty(1, 3, 227, 227, device="meta")) == macs


def test_the_variant_of_2014_has_the_parameters_and_macs_torchvision_gives():
    network = on_meta(alexnet.alexnet_2014)
    meta = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.meta
    assert counting.parameters(network) == meta["num_params"] == 61_100_840
    macs = counting.macs(network, torch.empty(1, 3, 224, 224, device="meta"))
    assert macs == 714_188_480
    assert round(macs / 1e9, 3) == meta["_ops"]


def test_the_footnote_of_2014_gives_other_counts_than_the_code():
    network = on_meta(lambda: alexnet.alexnet_2014(alexnet.FOOTNOTE))
    x = torch.empty(1, 3, 224, 224, device="meta")
    assert counting.parameters(network) == 61_838_248
    assert counting.macs(network, x) == 838_788_800


@pytest.mark.parametrize(("height", "width"), [(224, 224), (63, 130)])
def test_outputs_of_2014_equal_torchvision_with_copied_weights(height, width):
    torch.manual_seed(0)
    reference, network = alexnet.he(torchvision.models.alexnet()), alexnet.alexnet_2014()
    checks.transplant(reference, network)
    checks.same_outputs(network, reference, torch.randn(3, 3, height, width))


def test_dropout_stands_where_torchvision_has_it():
    def kinds(network):
        linear = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Dropout)]
        return [type(m) for m in linear]

    theirs = kinds(on_meta(torchvision.models.alexnet))
    assert kinds(on_meta(alexnet.alexnet_2014)) == theirs
    assert kinds(on_meta(alexnet.alexnet)) == [nn.Linear, nn.Dropout] * 2 + [nn.Linear]


@pytest.fixture(scope="module")
def pairs():
    torch.manual_seed(0)
    network, pair = alexnet.he(alexnet.alexnet()), alexnet.TwoDevices()
    alexnet.split_weights(network, pair)
    return network, pair


def test_grouped_network_equals_two_towers_with_the_same_weights(pairs):
    network, pair = pairs
    checks.same_outputs(pair, network, 30 * torch.randn(3, 3, 227, 227))
    assert counting.parameters(pair) == TWO[0]


def test_the_towers_exchange_maps_in_front_of_conv3_and_the_dense_layers_only(pairs):
    _, pair = pairs
    pair.eval()(torch.zeros(1, 3, 227, 227))
    assert pair.sent == {"conv3": 128 * 13 * 13, "fc6": 128 * 6 * 6, "fc7": 2048, "fc8": 2048}


def test_a_change_in_one_tower_reaches_the_other_behind_conv3_only(pairs):
    network, _ = pairs
    x, names = torch.randn(1, 3, 227, 227), STAGES[:3]
    before, after = {}, {}
    with torch.no_grad():
        for values in (before, after):
            y = x
            for name in names:
                y = values[name] = network.eval().get_submodule(name)(y)
            network.conv1[0].weight[48:] *= -1  # the second tower; twice is as before
    for name in names:
        same = [
            torch.equal(a, b) for a, b in zip(before[name].chunk(2, 1), after[name].chunk(2, 1))
        ]
        assert same == [name != "conv3", False]


def test_the_wiring_is_that_of_section_3_5():
    torch.manual_seed(0)
    reads = alexnet.wiring(alexnet.he(narrow()), torch.randn(1, 3, 99, 99))
    own, both = [[True, False], [False, True]], [[True, True], [True, True]]
    assert reads == {name: own if name in ("conv2", "conv4", "conv5") else both for name in STAGES}


@pytest.mark.parametrize("maps", [1, 4, 5, 48])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_response_norm_equals_torch_with_alpha_times_n(maps, scale):
    x = scale * torch.randn(3, maps, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2)
    torch.testing.assert_close(alexnet.response_norm(x), expected, rtol=1e-5, atol=1e-6)


def test_response_norm_of_a_case_by_hand():
    a = torch.tensor([3.0, 4.0, 0.0, 12.0]).view(1, 4, 1, 1)
    found = alexnet.response_norm(a, n=3, k=0.0, alpha=1.0, beta=0.5).flatten()
    torch.testing.assert_close(found, torch.tensor([3 / 5, 4 / 5, 0.0, 1.0]))


def test_response_norm_of_a_tower_does_not_see_the_other():
    x = torch.rand(2, 12, 3, 3)
    halves = [alexnet.response_norm(half) for half in x.chunk(2, 1)]
    torch.testing.assert_close(alexnet.ResponseNorm(2)(x), torch.cat(halves, 1))


def test_overlapping_pooling_gives_the_sizes_of_two_by_two():
    for side in (55, 27, 13):  # section 3.4: "output of equivalent dimensions"
        x = torch.empty(1, 1, side, side, device="meta")
        assert alexnet.pool()(x).shape == F.max_pool2d(x, 2, 2).shape


def test_the_sides_are_those_of_the_modules():
    for size, padding in ((224, 0), (227, 0), (224, 3)):
        x = torch.empty(1, 3, size + padding, size + padding, device="meta")
        network = on_meta(lambda: narrow(1))
        first = network.conv1[0](x).shape[-1]
        later = [network[:n](x).shape[-1] for n in (1, 2, 5)]
        assert alexnet.sides(size, padding) == [first, *later]


def test_a_size_rounded_up_is_three_zeros_at_the_end():
    x = torch.randn(1, 3, 224, 224)
    conv = nn.Conv2d(3, 4, 11, 4)
    padded = conv(F.pad(x, (0, 3, 0, 3)))
    assert padded.shape[-2:] == (55, 55)
    torch.testing.assert_close(padded[..., :54, :54], conv(x))


def test_initial_values_are_those_of_section_5():
    torch.manual_seed(0)
    network = alexnet.initialise(narrow())
    for name, stage in network.named_children():
        (layer,) = (m for m in stage.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        one = name in ("conv2", "conv4", "conv5", "fc6", "fc7")
        assert layer.bias.unique().tolist() == [float(one)]
        assert abs(layer.weight.mean().item()) < 1e-3
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_the_update_is_that_of_section_5_on_two_steps_by_hand():
    w = nn.Parameter(torch.tensor([2.0]))
    optimizer = alexnet.PaperSGD([w], lr=0.1, momentum=0.9, weight_decay=0.5)
    w.grad = torch.tensor([3.0])
    optimizer.step()  # v = -0.5 * 0.1 * 2 - 0.1 * 3 = -0.4
    torch.testing.assert_close(w.detach(), torch.tensor([1.6]))
    optimizer.param_groups[0]["lr"] = 0.01
    w.grad = torch.tensor([1.0])
    optimizer.step()  # v = -0.36 - 0.5 * 0.01 * 1.6 - 0.01 = -0.378
    torch.testing.assert_close(w.detach(), torch.tensor([1.222]))


def test_the_update_equals_torch_while_the_rate_is_constant():
    found = []
    for kind in (alexnet.PaperSGD, torch.optim.SGD):
        torch.manual_seed(0)
        network, x = nn.Linear(5, 3), torch.randn(8, 5)
        optimizer = kind(network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
        found.append(network.weight.detach())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_the_update_calls_its_closure_and_returns_the_loss():
    w = nn.Parameter(torch.tensor([2.0]))
    optimizer = alexnet.PaperSGD([w], lr=0.1, momentum=0.9, weight_decay=0.0)

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    torch.testing.assert_close(w.detach(), torch.tensor([1.6]))  # 2 - 0.1 * 4
    assert optimizer.step() is None


def test_the_update_leaves_a_parameter_without_gradient_as_it_is():
    used, unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = alexnet.PaperSGD([unused, used], lr=0.1)
    used.sum().backward()
    optimizer.step()
    assert unused.item() == 1.0 and used.item() < 1.0


def test_ten_crops_are_those_of_torchvision():
    x = torch.rand(3, 3, 40, 52)
    expected = torch.stack(torchvision.transforms.functional.ten_crop(x, 30), 1)
    torch.testing.assert_close(alexnet.ten_crops(x, 30), expected, rtol=0, atol=0)


def test_ten_crop_accuracy_of_a_network_that_looks_at_one_corner():
    class Corner(nn.Linear):
        """Says 1 where the upper left pixel of the crop is bright."""

        def forward(self, x):
            bright = 50 * x[:, 0, :1, 0]
            return torch.cat((25 - bright, bright - 25), 1)

    x = torch.zeros(2, 1, 4, 4)
    x[1] = 1
    part = x, torch.tensor([0, 1])
    assert alexnet.ten_crop_accuracy(Corner(1, 1), part, 2) == 1
    part[0][1, 0, :3, :3] = 0  # the corner of three of ten crops stays bright
    x[1, 0, 2, :] = 1
    assert alexnet.ten_crop_accuracy(Corner(1, 1), part, 2) == 0.5


def test_random_crops_are_windows_of_the_image_or_of_its_mirror():
    torch.manual_seed(0)
    x = torch.arange(30.0).view(1, 1, 5, 6).repeat(300, 1, 1, 1)
    pieces = alexnet.random_crops(x, 3)
    assert pieces.shape == (300, 1, 3, 3)
    steps = pieces[:, 0, :, 1] - pieces[:, 0, :, 0]
    assert set(steps.unique().tolist()) == {-1.0, 1.0}
    assert (pieces[:, 0, 1:] - pieces[:, 0, :-1] == 6).all()
    assert {int(p.min()) for p in pieces[:, 0]} == {6 * i + j for i in range(3) for j in range(4)}


def test_the_colour_shift_has_the_covariance_of_the_pixels_squared():
    torch.manual_seed(0)
    mix = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.5, 0.3, 0.2]])
    x = torch.einsum("ij,bjhw->bihw", mix, torch.randn(4, 3, 50, 50))
    values, vectors = alexnet.colour_axes(x)
    zeros = torch.zeros(20_000, 3, 2, 2)
    shift = alexnet.shift_colour(zeros, values, vectors, sigma=1.0)
    torch.testing.assert_close(shift[..., 0, 0], shift[..., 1, 1])  # the same for all pixels
    covariance = torch.cov(x.transpose(0, 1).flatten(1))
    expected = covariance @ covariance  # variance of a_i l_i is l_i^2
    found = torch.cov(shift[:, :, 0, 0].T)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03 * expected.max().item())


def test_augmentation_stands_still_in_evaluation():
    module = alexnet.Augment(4, torch.ones(3), torch.eye(3)).eval()
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(module(x), x[..., 2:6, 2:6])
    assert not torch.equal(module.train()(x), x[..., 2:6, 2:6])


def test_colourfulness_is_zero_for_grey_and_one_for_opposite_channels():
    grey = torch.rand(1, 1, 5, 5).expand(1, 3, 5, 5)
    opposite = torch.stack((torch.ones(5, 5), -torch.ones(5, 5), torch.zeros(5, 5)))[None]
    found = alexnet.colourfulness(torch.cat((grey, opposite)))
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_behind_the_maximum_an_activation_gives_what_it_gives_in_front(activation):
    x = torch.randn(2, 3, 11, 11)
    torch.testing.assert_close(
        activation()(alexnet.pool()(x)), alexnet.pool()(activation()(x)), rtol=0, atol=0
    )


def test_maps_that_are_not_square_go_through_the_convolutions():
    network = on_meta(alexnet.alexnet)
    assert network[:5](torch.empty(3, 3, 227, 291, device="meta")).shape == (3, 256, 6, 8)
    network = on_meta(alexnet.alexnet_2014)
    assert network(torch.empty(3, 3, 161, 225, device="meta")).shape == (3, 1000)


def fits(network, x, y, rate, steps):
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    losses = training.fit(without_dropout(network), (x, y), steps, optimizer)["loss"]
    return losses[-1] < losses[0] / 10


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    torch.manual_seed(0)
    x, y = torch.randn(20, 3, 28, 28), torch.arange(20) % 10
    assert fits(alexnet.he(alexnet.small_alexnet()), x, y, 0.01, 60)
    x = torch.randn(20, 3, 32, 32)
    assert fits(alexnet.four_layers(nn.Tanh), x, y, 0.05, 60)


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (alexnet.alexnet, 227),
        (alexnet.alexnet_2014, 224),
        (alexnet.TwoDevices, 227),
        (alexnet.small_alexnet, 28),
        (lambda: alexnet.four_layers(nn.ReLU), 32),
    ],
)
def test_every_network_runs_forward_and_backward_on_the_meta_device(build, size):
    network = on_meta(build)
    network(torch.empty(2, 3, size, size, device="meta")).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
