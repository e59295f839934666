"""The networks of 2012 and 2014 of notebooks/alexnet.py."""

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
STAGES = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]


def narrow(towers=2):
    """The paper's network with about an eighth of the maps, for 99x99 pixels."""
    return net.alexnet((12, 32, 48, 40, 24), 64, 10, side=2, towers=towers)


def test_the_two_towers_have_the_parameters_and_macs_of_a_sum_by_hand():
    # Section 3.5: kernels and the maps they see; maps of 55, 27, 13 pixels a side.
    kernels = ((96, 11 * 11 * 3), (256, 5 * 5 * 48), (384, 9 * 256), (384, 9 * 192), (256, 9 * 192))
    macs = sum(n * m * s * s for (n, m), s in zip(kernels, (55, 27, 13, 13, 13), strict=True))
    dense = ((4096, 6 * 6 * 256), (4096, 4096), (1000, 4096))
    parameters = sum(n * (m + 1) for n, m in (*kernels, *dense))
    macs += sum(n * m for n, m in dense)
    network = on_meta(net.alexnet)
    assert (parameters, macs) == TWO
    assert (parameters_of(network), macs_of(network, 1, 3, 227, 227)) == TWO


def test_the_variant_of_2014_has_the_layers_and_the_cost_torchvision_gives():
    network = on_meta(net.alexnet_2014)
    meta = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.meta
    assert parameters_of(network) == meta["num_params"] == 61_100_840
    assert macs_of(network) == 714_188_480
    assert round(macs_of(network) / 1e9, 3) == meta["_ops"]
    networks.same_layers(network, on_meta(torchvision.models.alexnet))


def test_the_footnote_of_2014_gives_other_counts_than_the_code():
    network = on_meta(net.alexnet_2014, net.FOOTNOTE)
    assert (parameters_of(network), macs_of(network)) == (61_838_248, 838_788_800)


def test_the_variant_of_2014_does_what_torchvision_s_does_on_maps_of_odd_size():
    torch.manual_seed(0)
    widths = (4, 8, 12, 10, 6)
    reference = on_meta(torchvision.models.AlexNet, 10)
    convs = [i for i, m in enumerate(reference.features) if isinstance(m, nn.Conv2d)]
    sizes = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
    for i, c_in, c_out, size in zip(convs, (3, *widths), widths, sizes):
        reference.features[i] = nn.Conv2d(c_in, c_out, *size)
    reference.classifier[1] = nn.Linear(6 * 36, 4096)
    network = on_meta(net.alexnet_2014, widths, 10)
    networks.same_function(network, reference, torch.randn(3, 3, 63, 130))


def test_half_of_the_values_behind_fc6_and_fc7_are_dropped():
    kinds = {"kinds": (nn.Linear, nn.Dropout)}
    one = networks.layers_of(on_meta(net.alexnet), 1, 3, 227, 227, **kinds)
    two = networks.layers_of(on_meta(net.TwoDevices), 1, 3, 227, 227, **kinds)
    dropped = "Dropout(p=0.5) gives (1, {})"
    assert one[1::2] == [dropped.format(4096)] * 2
    assert [layer for layer in two if "Dropout" in layer] == [dropped.format(2048)] * 4
    assert [layer for layer in two[2:8] if "Dropout" in layer] == [dropped.format(2048)] * 3


def test_grouped_network_equals_two_towers_with_the_same_weights():
    torch.manual_seed(0)
    network, pair = (on_meta(n).to_empty(device="cpu") for n in (net.alexnet, net.TwoDevices))
    networks.share_weights(network, network)
    net.split_weights(network, pair)
    networks.same_outputs(pair, network, 30 * torch.randn(1, 3, 227, 227))
    assert parameters_of(pair) == TWO[0]
    assert pair.sent == {"conv3": 128 * 13 * 13, "fc6": 128 * 6 * 6, "fc7": 2048, "fc8": 2048}


def test_the_wiring_is_that_of_section_3_5():
    torch.manual_seed(0)
    reads = net.wiring(net.he(narrow()), torch.randn(1, 3, 99, 99))
    own, both = [[True, False], [False, True]], [[True, True], [True, True]]
    assert reads == {name: own if name in ("conv2", "conv4", "conv5") else both for name in STAGES}


@pytest.mark.parametrize("maps", [1, 4, 5, 48])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_response_norm_equals_torch_with_alpha_times_n(maps, scale):
    x = scale * torch.randn(3, maps, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2)
    torch.testing.assert_close(net.response_norm(x), expected, rtol=1e-5, atol=1e-6)


def test_response_norm_of_a_case_by_hand():
    a = torch.tensor([3.0, 4.0, 0.0, 12.0]).view(1, 4, 1, 1)
    found = net.response_norm(a, n=3, k=0.0, alpha=1.0, beta=0.5).flatten()
    torch.testing.assert_close(found, torch.tensor([3 / 5, 4 / 5, 0.0, 1.0]))


def test_response_norm_of_a_tower_does_not_see_the_other():
    x = torch.rand(2, 12, 3, 3)
    halves = [net.response_norm(half) for half in x.chunk(2, 1)]
    torch.testing.assert_close(net.ResponseNorm(2)(x), torch.cat(halves, 1))


def test_overlapping_pooling_gives_the_sizes_of_two_by_two():
    for side in (55, 27, 13):  # section 3.4: "output of equivalent dimensions"
        x = torch.empty(1, 1, side, side, device="meta")
        assert net.pool()(x).shape == F.max_pool2d(x, 2, 2).shape


def test_a_convolution_has_a_bias_and_a_relu_and_no_padding_unless_it_is_given():
    torch.manual_seed(0)
    layer, x = net.conv(4, 6, 5), torch.randn(2, 4, 9, 8)
    close(layer(x), F.conv2d(x, layer[0].weight, layer[0].bias).relu())


def test_the_sides_are_those_of_the_modules():
    assert net.sides(227) == [55, 27, 13, 6]  # section 3.5 and figure 2
    for size, padding in ((224, 0), (227, 0), (224, 3)):
        x = torch.empty(1, 3, size + padding, size + padding, device="meta")
        network = on_meta(narrow, 1)
        first = network.conv1[0](x).shape[-1]
        later = [network[:n](x).shape[-1] for n in (1, 2, 5)]
        assert net.sides(size, padding) == [first, *later]


def test_initial_values_are_those_of_section_5():
    torch.manual_seed(0)
    network = net.initialise(narrow())
    for name, stage in network.named_children():
        (layer,) = (m for m in stage.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        one = name in ("conv2", "conv4", "conv5", "fc6", "fc7")
        assert layer.bias.unique().tolist() == [float(one)]
        assert abs(layer.weight.mean().item()) < 1e-3
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_the_update_is_that_of_section_5_on_two_steps_by_hand():
    w = nn.Parameter(torch.tensor([2.0]))
    optimizer = net.PaperSGD([w], lr=0.1, momentum=0.9, weight_decay=0.5)
    w.grad = torch.tensor([3.0])
    optimizer.step()  # v = -0.5 * 0.1 * 2 - 0.1 * 3 = -0.4
    torch.testing.assert_close(w.detach(), torch.tensor([1.6]))
    optimizer.param_groups[0]["lr"] = 0.01
    w.grad = torch.tensor([1.0])
    optimizer.step()  # v = -0.36 - 0.5 * 0.01 * 1.6 - 0.01 = -0.378
    torch.testing.assert_close(w.detach(), torch.tensor([1.222]))


def test_the_update_equals_torch_while_the_rate_is_constant():
    found = []
    for kind in (net.PaperSGD, torch.optim.SGD):
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
    optimizer = net.PaperSGD([w], lr=0.1, momentum=0.9, weight_decay=0.0)

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
    optimizer = net.PaperSGD([unused, used], lr=0.1)
    used.sum().backward()
    optimizer.step()
    assert unused.item() == 1.0 and used.item() < 1.0


def test_ten_crops_are_those_of_torchvision():
    x = torch.rand(3, 3, 40, 52)
    expected = torch.stack(torchvision.transforms.functional.ten_crop(x, 30), 1)
    torch.testing.assert_close(net.ten_crops(x, 30), expected, rtol=0, atol=0)


def test_ten_crop_accuracy_of_a_network_that_looks_at_one_corner():
    class Corner(nn.Linear):
        """Says 1 where the upper left pixel of the crop is bright."""

        def forward(self, x):
            bright = 50 * x[:, 0, :1, 0]
            return torch.cat((25 - bright, bright - 25), 1)

    x = torch.zeros(2, 1, 4, 4)
    x[1] = 1
    part = x, torch.tensor([0, 1])
    assert net.ten_crop_accuracy(Corner(1, 1), part, 2) == 1
    part[0][1, 0, :3, :3] = 0  # the corner of three of ten crops stays bright
    x[1, 0, 2, :] = 1
    assert net.ten_crop_accuracy(Corner(1, 1), part, 2) == 0.5


def test_random_crops_are_windows_of_the_image_or_of_its_mirror():
    torch.manual_seed(0)
    x = torch.arange(30.0).view(1, 1, 5, 6).repeat(300, 1, 1, 1)
    pieces = net.random_crops(x, 3)
    assert pieces.shape == (300, 1, 3, 3)
    steps = pieces[:, 0, :, 1] - pieces[:, 0, :, 0]
    assert set(steps.unique().tolist()) == {-1.0, 1.0}
    assert (pieces[:, 0, 1:] - pieces[:, 0, :-1] == 6).all()
    assert {int(p.min()) for p in pieces[:, 0]} == {6 * i + j for i in range(3) for j in range(4)}


def test_the_colour_shift_has_the_covariance_of_the_pixels_squared():
    torch.manual_seed(0)
    mix = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.5, 0.3, 0.2]])
    x = torch.einsum("ij,bjhw->bihw", mix, torch.randn(4, 3, 50, 50))
    values, vectors = net.colour_axes(x)
    zeros = torch.zeros(20_000, 3, 2, 2)
    shift = 10 * net.shift_colour(zeros, values, vectors)  # sigma is 0.1
    torch.testing.assert_close(shift[..., 0, 0], shift[..., 1, 1])  # the same for all pixels
    covariance = torch.cov(x.transpose(0, 1).flatten(1))
    expected = covariance @ covariance  # variance of a_i l_i is l_i^2
    found = torch.cov(shift[:, :, 0, 0].T)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03 * expected.max().item())


def test_augmentation_stands_still_in_evaluation():
    module = net.Augment(4, torch.ones(3), torch.eye(3)).eval()
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(module(x), x[..., 2:6, 2:6])
    assert not torch.equal(module.train()(x), x[..., 2:6, 2:6])


def test_colourfulness_is_zero_for_grey_and_one_for_opposite_channels():
    grey = torch.rand(1, 1, 5, 5).expand(1, 3, 5, 5)
    opposite = torch.stack((torch.ones(5, 5), -torch.ones(5, 5), torch.zeros(5, 5)))[None]
    found = net.colourfulness(torch.cat((grey, opposite)))
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_four_layers_give_what_activations_in_front_of_the_maxima_give(activation):
    torch.manual_seed(0)
    network, act = net.four_layers(activation, width=4, num_classes=5), activation()
    convs = [m for m in network if isinstance(m, nn.Conv2d)]
    (w1, b1), (w2, b2), (w3, b3) = ((conv.weight, conv.bias) for conv in convs)
    x = torch.randn(3, 3, 32, 32)
    h = F.max_pool2d(act(F.conv2d(x, w1, b1, 2, 2)), 3, 2)
    h = F.max_pool2d(act(F.conv2d(h, w2, b2, 1, 1)), 3, 2)
    h = act(F.conv2d(h, w3, b3, 1, 1)).flatten(1)
    close(network(x), h @ network[-1].weight.T + network[-1].bias)


def test_the_small_networks_have_the_parameters_of_a_sum_by_hand():
    four = 75 * 16 + 16 + 144 * 32 + 32 + 288 * 32 + 32 + 288 * 10 + 10
    assert parameters_of(on_meta(net.four_layers, nn.ReLU)) == four
    small = 75 * 12 + 12 + 150 * 32 + 32 + 288 * 48 + 48 + 216 * 48 + 48 + 216 * 32 + 32
    small += 32 * 4 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10
    assert parameters_of(on_meta(net.small_alexnet)) == small
    assert on_meta(net.small_alexnet)[:5](torch.empty(1, 3, 28, 28, device="meta")).shape[2:] == (
        2,
        2,
    )


@pytest.mark.parametrize("build", ["larger", "narrow"])
def test_larger_initial_values_keep_the_signal(build):
    torch.manual_seed(0)
    network = net.larger() if build == "larger" else net.he(narrow())
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all((layer.bias == 0.1).all() for layer in layers)
    for layer in layers:
        if layer.weight.numel() > 4000:
            networks.starts_with(layer.weight, (2 / layer.weight[0].numel()) ** 0.5, share=0.05)


def test_maps_that_are_not_square_go_through_the_convolutions():
    maps = on_meta(net.alexnet)[:5](torch.empty(3, 3, 227, 291, device="meta"))
    assert maps.shape == (3, 256, 6, 8)
    network = on_meta(net.alexnet_2014)
    assert network(torch.empty(3, 3, 161, 225, device="meta")).shape == (3, 1000)


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    torch.manual_seed(0)
    x = torch.randn(20, 3, 32, 32)
    networks.learns(net.he(net.small_alexnet()), x[..., :28, :28], rate=2e-3, steps=25)
    networks.learns(net.four_layers(nn.Tanh), x, rate=5e-3, steps=25)


@pytest.mark.parametrize(
    ("name", "size"),
    [("alexnet", 227), ("alexnet_2014", 224), ("TwoDevices", 227), ("small_alexnet", 28)],
)
def test_every_network_runs_forward_and_backward_on_the_meta_device(name, size):
    networks.runs_on_meta(on_meta(getattr(net, name)), 2, 3, size, size)
