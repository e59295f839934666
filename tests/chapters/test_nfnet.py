"""The norm-free networks of notebooks/nfnet.py."""

import math
from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
from timm.utils.agc import adaptive_clip_grad
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import macs_of, on_meta, parameters_of

nfnet = definitions("nfnet")

# Brock et al. 2021, tables 1 and 3: side of the test image, 10^6 parameters, 10^9 multiply-adds.
PUBLISHED = (
    (256, 71.5, 12.38),
    (320, 132.6, 35.54),
    (352, 193.8, 62.59),
    (416, 254.9, 114.76),
    (512, 316.1, 215.24),
    (544, 377.2, 289.76),
    (576, 438.4, 377.28),
)
WIDTHS = (32, 64, 96, 128)
NARROW = {"channels": WIDTHS, "stem_chs": 16, "group_size": 16, "num_features": 256}


def narrow(depths=(1, 2, 6, 3)):
    recipe = replace(nfnet.FNET, branch=partial(nfnet.bottleneck, group=16))
    return nfnet.NFNet(depths, widths=WIDTHS, recipe=recipe)


def shaken(network):
    """The network with gains and biases that hide nothing."""
    return nfnet.randomise_gains(network)


# ---- weights, activations ------------------------------------------------------------------------


def test_standardised_weights_have_mean_zero_and_squares_that_sum_to_the_gain_squared():
    torch.manual_seed(0)
    weight = 3 + 2 * torch.randn(4, 6, 3, 3, dtype=torch.float64)
    gain = torch.tensor([1.0, 0.5, 2.0, 3.0], dtype=torch.float64).view(4, 1, 1, 1)
    scaled = nfnet.standardised(weight, gain)
    assert scaled.sum((1, 2, 3)).abs().max() < 1e-12
    networks.close(scaled.square().sum((1, 2, 3)), gain.flatten().square(), 1e-4)
    networks.close(nfnet.standardised(7 * weight - 5, gain), scaled, 1e-4)
    networks.close(nfnet.standardised(weight[:1], gain[:1]), scaled[:1])


def test_a_scaled_convolution_is_that_of_timm_for_every_stride_group_and_size():
    torch.manual_seed(0)
    for size, stride, groups in ((3, 1, 2), (1, 1, 1), (3, 2, 2), (5, 1, 1)):
        ours = nfnet.ScaledConv2d(4, 6, size, stride=stride, groups=groups)
        theirs = timm.layers.ScaledStdConv2d(4, 6, size, stride=stride, groups=groups, eps=1e-5)
        networks.same_function(ours, theirs, torch.randn(2, 4, 7, 6))
    conv = nfnet.ScaledConv2d(64, 32, 3)
    networks.starts_with(conv.weight, (64 * 9) ** -0.5)
    assert not conv.bias.any()
    assert (conv.gain == 1).all()


@pytest.mark.parametrize("side", [(7, 6), (8, 5), (9, 9)])
def test_a_strided_convolution_pads_as_timms_same_padding_does(side):
    torch.manual_seed(0)
    ours = nfnet.StridedConv2d(4, 6, 3, groups=2)
    theirs = timm.layers.ScaledStdConv2dSame(4, 6, 3, stride=2, groups=2, eps=1e-5)
    networks.same_function(ours, theirs, torch.randn(2, 4, *side))


def test_same_padding_by_hand_for_even_and_odd_sides():
    x = torch.ones(1, 1, 4, 5)
    padded = nfnet.same_pad(x, 3, 2)
    assert padded.shape == (1, 1, 5, 7)  # one row below; a column at each side
    networks.close(padded[0, 0, :4, 1:6], torch.ones(4, 5), 0)
    assert padded.sum() == 20
    x = torch.ones(1, 1, 5, 4)
    padded = nfnet.same_pad(x, 3, 2)
    assert padded.shape == (1, 1, 7, 5)
    networks.close(padded[0, 0, 1:6, :4], torch.ones(5, 4), 0)


def test_a_circular_convolution_sees_the_other_side_of_the_map():
    torch.manual_seed(0)
    conv = shaken(nfnet.CircularConv2d(3, 4, 3))
    x = torch.randn(2, 3, 5, 6)
    networks.close(conv(x).roll((2, 1), (2, 3)), conv(x.roll((2, 1), (2, 3))))
    zeros = nfnet.ScaledConv2d(3, 4, 3)
    zeros.load_state_dict(conv.state_dict())
    networks.close(conv(x)[..., 1:-1, 1:-1], zeros(x)[..., 1:-1, 1:-1])
    assert not torch.allclose(conv(x), zeros(x))
    assert nfnet.CircularConv2d(3, 4, 1)(x).shape == (2, 4, 5, 6)


def test_the_constants_restore_variance_one():
    formula = math.sqrt(2 / (1 - 1 / math.pi))
    assert nfnet.gamma_of(torch.relu) == pytest.approx(formula, rel=1e-6)
    second = 1 / 3 + 1 / (2 * math.pi * math.sqrt(3))  # of GELU, in closed form
    gelu = (second - 1 / (4 * math.pi)) ** -0.5
    assert nfnet.gamma_of(F.gelu) == pytest.approx(gelu, rel=1e-6)
    assert nfnet.gamma_of(lambda z: 3 * z + 1) == pytest.approx(1 / 3, rel=1e-6)
    x = torch.linspace(-2, 2, 9)
    networks.close(nfnet.scaled_relu(3)(x), formula * torch.relu(x))
    networks.close(nfnet.scaled_gelu(3)(x), 1.7015043497085571 * F.gelu(x))


# ---- blocks --------------------------------------------------------------------------------------


def test_a_block_adds_a_share_of_its_branch_and_starts_with_nothing():
    torch.manual_seed(0)
    recipe = nfnet.Recipe(nfnet.two_convolutions, alpha=0.3)
    block, h = nfnet.NormFreeBlock(recipe, 4, variance=4.0), torch.randn(2, 4, 5, 6)
    networks.close(block(h), h, 0)
    nn.init.constant_(block.gain, 0.7)
    x = nfnet.scaled_relu(4)(h) / 2
    networks.close(block(h), h + 0.3 * 0.7 * block.branch(x))


def test_a_transition_pools_and_projects_behind_the_activation():
    torch.manual_seed(0)
    recipe = nfnet.Recipe(nfnet.two_convolutions, alpha=0.3, gain=0.7)
    block = nfnet.TransitionBlock(recipe, 4, 6, stride=2, variance=4.0)
    h = torch.randn(2, 4, 7, 6)
    x = nfnet.scaled_relu(4)(h) / 2
    pooled = F.avg_pool2d(x, 2, ceil_mode=True)
    expected = block.shortcut[1](pooled) + 0.3 * 0.7 * block.branch(x)
    networks.close(block(h), expected)
    assert block(h).shape == (2, 6, 4, 3)


def test_the_branch_of_small_networks_is_two_convolutions_with_an_activation_between():
    torch.manual_seed(0)
    branch = nfnet.two_convolutions(nfnet.SCALED, 4, 6, stride=2)
    x = torch.randn(2, 4, 7, 6)
    y = branch[2](nfnet.scaled_relu(6)(branch[0](x)))
    networks.close(branch(x), y)
    assert y.shape == (2, 6, 4, 3)


def test_a_stage_divides_by_the_deviation_expected_in_front_of_each_block():
    recipe = nfnet.Recipe(nfnet.two_convolutions)
    blocks = nfnet.stage(recipe, 4, c_in=4, c_out=6, stride=2, before=1.24)
    found = [block.beta**2 for block in blocks]
    assert found == pytest.approx([1.24, 1.04, 1.08, 1.12])
    assert [type(block).__name__ for block in blocks] == ["TransitionBlock"] + 3 * ["NormFreeBlock"]
    undivided = nfnet.stage(nfnet.PLAIN, 3, c_in=4, c_out=6)
    assert [block.beta for block in undivided] == [1, 1, 1]
    assert undivided(torch.randn(2, 4, 5, 5)).shape == (2, 6, 5, 5)


def test_two_stages_take_the_variance_behind_the_first_to_the_second():
    blocks = nfnet.two_stages(nfnet.SCALED, width=4, depth=3)
    assert [b.beta**2 for b in blocks] == pytest.approx([1, 1.04, 1.08, 1.12, 1.04, 1.08])
    assert blocks(torch.randn(2, 4, 5, 5)).shape == (2, 8, 5, 5)
    full = nfnet.two_stages(nfnet.SCALED)
    assert len(full) == 12
    assert full(torch.randn(2, 64, 3, 3)).shape == (2, 128, 3, 3)


def test_variances_are_those_of_each_channel_over_images_and_pixels():
    h = torch.tensor([[1.0, 3.0], [2.0, 2.0]]).view(2, 2, 1, 1).expand(2, 2, 1, 3)
    doubled = nn.Sequential(nn.Identity(), nn.LeakyReLU(negative_slope=1.0))
    assert nfnet.variances(doubled, h) == pytest.approx([0.25, 0.25])

    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    assert nfnet.variances(nn.Sequential(Double(), Double()), h) == pytest.approx([1.0, 4.0])


def test_the_squared_mean_is_that_of_each_channel_behind_the_last_block():
    h = torch.tensor([[1.0, 3.0], [2.0, -3.0]]).view(2, 2, 1, 1).expand(2, 2, 1, 3)
    shifted = nn.Sequential(nn.Identity(), nn.Flatten(2), nn.Unflatten(2, (3, 1)))
    assert nfnet.squared_mean(shifted, h) == pytest.approx(1.5**2 / 2)
    assert nfnet.squared_mean(nn.LeakyReLU(negative_slope=-1.0), h) == pytest.approx(
        (1.5**2 + 9) / 2
    )


def test_with_scaled_weights_the_variance_follows_the_sum_block_by_block():
    torch.manual_seed(0)
    recipe = replace(nfnet.SCALED, conv=nfnet.CircularConv2d)
    found = nfnet.variances(nfnet.two_stages(recipe, depth=4), torch.randn(8, 64, 12, 12))
    expected = [1.04, 1.08, 1.12, 1.16] * 2
    assert found == pytest.approx(expected, rel=0.04)


def test_plain_blocks_and_those_with_batch_norm_are_preactivation_blocks():
    torch.manual_seed(0)
    h = torch.randn(3, 4, 5, 6)
    plain = nfnet.NormFreeBlock(nfnet.PLAIN, 4, variance=1.0)
    networks.close(plain(h), h + plain.branch(torch.relu(h)))
    normed = nfnet.NormFreeBlock(nfnet.NORMED, 4, variance=1.0)
    y = torch.relu(F.batch_norm(h, None, None, training=True))
    networks.close(normed(h), h + normed.branch(y), 1e-4)
    conv = nfnet.HeConv2d(64, 32, 3, stride=2)
    networks.starts_with(conv.weight, (2 / (64 * 9)) ** 0.5)
    assert conv.bias is None
    networks.close(
        nfnet.norm_relu(4)(h / 100), torch.relu(F.batch_norm(h / 100, None, None, training=True))
    )
    assert nfnet.HeConv2d(4, 4, 5)(h).shape == h.shape
    assert conv(torch.randn(1, 64, 7, 7)).shape == (1, 32, 4, 4)


# ---- clipping ------------------------------------------------------------------------------------


def test_norms_belong_to_output_channels_and_to_whole_vectors():
    w = torch.arange(24.0).view(2, 3, 2, 2)
    networks.close(nfnet.unit_norms(w).flatten(), w.flatten(1).norm(dim=1))
    assert nfnet.unit_norms(w).shape == (2, 1, 1, 1)
    assert nfnet.unit_norms(torch.tensor([3.0, 4.0])).tolist() == [5.0]
    assert nfnet.unit_norms(torch.tensor(-2.0)).item() == 2.0


def test_gradients_are_clipped_as_by_timm_and_short_ones_are_left():
    torch.manual_seed(0)
    pair = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(2, 5)) for _ in range(2)]
    scales = (1e-9, 1e-5, 3e-3, 1.0)
    for ours, theirs in zip(*(model.parameters() for model in pair), strict=True):
        with torch.no_grad():
            ours[: len(ours) // 2] *= 1e-6  # weights below the floor
            theirs.copy_(ours)
        ours.grad = torch.randn_like(ours)
        for row, scale in zip(ours.grad, scales, strict=False):
            row *= scale
        theirs.grad = ours.grad.clone()
    before = [p.grad.clone() for p in pair[0].parameters()]
    nfnet.clip_gradients(pair[0].parameters(), 0.02)
    adaptive_clip_grad(pair[1].parameters(), clip_factor=0.02)
    for ours, theirs, old in zip(*(m.parameters() for m in pair), before, strict=True):
        networks.close(ours.grad, theirs.grad, 1e-6)
        assert not torch.equal(ours.grad, old)
    first = pair[0][0].weight.grad
    networks.close(first[0], before[0][0], 0)  # far below its limit


def test_a_zero_weight_may_move_by_the_floor_and_a_zero_gradient_stays_zero():
    p = nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    nfnet.clip_gradients([p], 0.01)
    networks.close(p.grad, torch.tensor([[0.6e-5, 0.8e-5], [0.0, 0.0]]))
    assert nfnet.leave([p]) is None
    networks.close(p.grad, torch.tensor([[0.6e-5, 0.8e-5], [0.0, 0.0]]))
    tiny = nn.Parameter(torch.zeros(1))  # allowed 1e-12, below the floor of the gradient
    tiny.grad = torch.tensor([1e-8])
    nfnet.clip_gradients([tiny], 1e-9)
    networks.close(tiny.grad, torch.tensor([1e-14]))


def test_the_largest_ratio_is_that_of_the_kernel_most_in_need():
    def kernel(weights, gradient):
        p = nn.Parameter(torch.tensor(weights).view(-1, 2, 1, 1))
        p.grad = torch.tensor(gradient).view(-1, 2, 1, 1)
        return p

    one = kernel([3.0, 4.0, 0.3, 0.4], [0.3, 0.4, 0.3, 0.4])  # ratios 0.1 and 1
    two = kernel([0.0, 0.0], [0.0006, 0.0008])  # the floor: 0.001 / 0.001
    gain = nn.Parameter(torch.ones(2, 1, 1, 1))
    gain.grad = torch.full_like(gain, 50.0)
    bias = nn.Parameter(torch.ones(2))
    bias.grad = torch.full_like(bias, 50.0)
    assert nfnet.largest_ratio([one, gain, bias]) == pytest.approx(1.0)
    assert nfnet.largest_ratio([gain, bias]) == 0.0
    assert nfnet.largest_ratio([two]) == pytest.approx(1.0)
    one.grad[0] = 3 * one.grad[1]
    one.grad[1] = 0
    assert nfnet.largest_ratio([two, one]) == pytest.approx(1.0)
    two.grad *= 4
    assert nfnet.largest_ratio([two, one]) == pytest.approx(4.0)
    for lost in (math.nan, math.inf):
        two.grad[0, 0] = lost
        assert nfnet.largest_ratio([two, one]) == math.inf


# ---- the digit networks --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SCALED", "NORMED"])
def test_a_digit_network_has_two_stages_of_three_blocks(kind):
    network = on_meta(nfnet.DigitNetwork, getattr(nfnet, kind))
    assert len(network.stage1) == len(network.stage2) == 3
    shapes = []
    for name in ("stem", "stage1", "stage2"):
        part = getattr(network, name)
        part.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[1:])))
    assert networks.runs_on_meta(network, 3, 1, 11, 16).shape == (3, 10)
    assert shapes == [(8, 6, 8), (8, 6, 8), (16, 3, 4)]


def test_a_digit_network_reads_the_mean_of_its_last_activation():
    torch.manual_seed(0)
    network = nfnet.DigitNetwork(nfnet.SCALED, width=64)
    networks.starts_with(network.classifier.weight, 0.01, share=0.05)
    assert not network.classifier.bias.any()
    x = torch.randn(2, 1, 10, 10)
    h = network.stage2(network.stage1(network.stem(x)))
    networks.close(network(x), network.classifier(nfnet.scaled_relu(1)(h).mean((2, 3))))
    assert network.stage2[0].beta ** 2 == pytest.approx(1.12)
    assert network.stage1[0].beta == 1.0


@pytest.mark.parametrize("kind", ["SCALED", "NORMED"])
def test_one_batch_of_digits_is_fitted(kind):
    torch.manual_seed(0)
    network = nfnet.DigitNetwork(getattr(nfnet, kind))
    networks.learns(network, torch.randn(20, 1, 10, 10), rate=0.02, steps=40)


def test_accuracy_counts_over_batches_with_the_statistics_of_each():
    torch.manual_seed(0)
    network = nfnet.DigitNetwork(nfnet.NORMED).train()
    nn.init.normal_(network.classifier.weight)
    x = torch.randn(300, 1, 10, 10)
    x[250:] *= 3
    with torch.no_grad():
        answers = torch.cat([network(part).argmax(1) for part in (x[:250], x[250:])])
    y = answers.clone()
    y[:60] = (y[:60] + 1) % 10
    assert nfnet.accuracy(network, (x, y)) == pytest.approx(0.8)


def test_training_clips_all_but_the_last_layer_at_a_rate_that_rises_and_falls(monkeypatch):
    torch.manual_seed(0)
    rates, momenta, clipped, batches = [], [], [], []

    class Watched(torch.optim.SGD):
        def step(self):
            group = self.param_groups[0]
            rates.append(group["lr"])
            momenta.append((group["momentum"], group["nesterov"], group["weight_decay"]))
            super().step()

    monkeypatch.setattr(torch.optim, "SGD", Watched)
    network = nfnet.DigitNetwork(nfnet.SCALED)
    network.stage1[0].gain.requires_grad_(False)
    network.register_forward_hook(lambda m, i, o: batches.append(len(o)))
    last = set(network.classifier.parameters())
    first = network.classifier.weight.clone()
    x, y = torch.randn(40, 1, 10, 10), torch.arange(40) % 10

    def clip(parameters):
        clipped.append(list(parameters))

    found = nfnet.train(network, (x, y), rate=0.5, clip=clip)
    assert len(found) == len(rates) == nfnet.STEPS
    assert set(batches) == {nfnet.BATCH}
    assert set(momenta) == {(0.9, True, 0)}
    assert rates[0] == pytest.approx(0.02)
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.5, rel=0.01)
    assert peak == pytest.approx(0.3 * (nfnet.STEPS + 1) - 1, abs=0.51)
    assert 0 < rates[-1] < 0.02
    expected = [p for p in network.parameters() if p.requires_grad and p not in last]
    assert all(len(c) == len(expected) for c in clipped)
    assert all(a is b for a, b in zip(clipped[0], expected, strict=True))
    assert not torch.equal(network.classifier.weight, first)
    assert 0 < found[0] < math.inf


def test_training_lowers_the_loss_of_what_it_draws():
    torch.manual_seed(0)
    network = nfnet.DigitNetwork(nfnet.SCALED)
    x = torch.randn(10, 1, 10, 10)
    part = x, torch.arange(10)
    clip = partial(nfnet.clip_gradients, share=0.01)
    nfnet.train(network, part, rate=1.0, clip=clip)
    assert nfnet.accuracy(network, part) > 0.8


# ---- the published networks ----------------------------------------------------------------------


@pytest.mark.parametrize("number", range(7))
def test_published_sizes_have_the_parameters_of_table_3(number):
    network = on_meta(nfnet.nfnet, number)
    assert parameters_of(network) / 1e6 == pytest.approx(PUBLISHED[number][1], abs=0.051)
    assert nfnet.TEST_SIZES[number] == PUBLISHED[number][0]


def test_f1_costs_what_table_3_says():
    side, _, giga = PUBLISHED[1]
    macs = macs_of(on_meta(nfnet.nfnet, 1), 1, 3, side, side)
    assert macs / 1e9 == pytest.approx(giga, abs=0.006)


def test_f0_has_71_489_284_parameters():
    assert parameters_of(on_meta(nfnet.nfnet, 0)) == 71_489_284


def test_f0_calls_the_layers_of_timm_in_their_order():
    theirs = on_meta(timm.create_model, "dm_nfnet_f0")
    theirs.head.drop = nn.Identity()
    networks.same_layers(on_meta(nfnet.nfnet, 0), theirs, 1, 3, 64, 96)


def test_with_the_same_weights_a_narrow_network_does_what_timms_does():
    torch.manual_seed(0)
    theirs = timm.create_model("dm_nfnet_f0", **NARROW)
    networks.same_function(narrow(), theirs, torch.randn(2, 3, 75, 50))


def test_a_large_network_runs_forward_and_backward_on_the_meta_device():
    assert networks.runs_on_meta(on_meta(nfnet.nfnet, 0), 2, 3, 64, 96).shape == (2, 1000)


def test_fresh_branches_add_nothing_and_the_last_layer_starts_small():
    torch.manual_seed(0)
    network, x = narrow((1, 2, 1, 1)), torch.randn(2, 3, 64, 64)
    block = network.stage2[1]
    h = torch.randn(2, 64, 6, 6)
    networks.close(block(h), h, 0)
    networks.starts_with(network.classifier.weight, 0.01)
    assert not network.classifier.bias.any()
    assert network(x).shape == (2, 1000)


def test_a_gate_scales_channels_by_up_to_two_and_starts_near_one():
    torch.manual_seed(0)
    gate, x = nfnet.Gate(8), torch.randn(2, 8, 5, 6)
    nn.init.zeros_(gate.widen.weight)
    nn.init.zeros_(gate.widen.bias)
    networks.close(gate(x), x)
    nn.init.constant_(gate.widen.bias, 50.0)
    networks.close(gate(x), 2 * x)
    assert gate.narrow.out_channels == 4


def test_a_narrow_network_fits_one_batch():
    torch.manual_seed(0)
    network = shaken(narrow((1, 1, 1, 1)))
    networks.learns(network, torch.randn(10, 3, 32, 32), rate=0.003, steps=30)


def test_random_gains_lie_around_one_and_biases_around_zero():
    torch.manual_seed(0)
    network = narrow((1, 1, 1, 1))
    weight = network.last.weight.clone()
    assert shaken(network) is network
    networks.close(network.last.weight, weight, 0)
    gains = network.last.gain.flatten()
    assert gains.min() > 0.5
    assert gains.max() < 1.5
    assert gains.std() > 0.2
    assert network.stage1[0].gain != 0
    networks.starts_with(network.classifier.bias, 0.1, share=0.1)


def test_unscaled_convolutions_keep_the_weights_as_they_are_drawn():
    torch.manual_seed(0)
    conv, x = nfnet.UnscaledConv2d(64, 32, 3, stride=2), torch.randn(1, 64, 7, 7)
    networks.starts_with(conv.weight, (64 * 9) ** -0.5)
    networks.close(conv(x), F.conv2d(x, conv.weight, None, 2, 1))
    assert nfnet.UnscaledConv2d(2, 3, 1)(torch.zeros(1, 2, 4, 5)).shape == (1, 3, 4, 5)
