"""Scales, integer layers, calibration, training with rounding, four bits and torchao's numbers, of
notebooks/quantization.py.
"""

import copy
import logging
import math
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from loader import definitions
from networks import close, parameters_of

logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # what torchao's import logs
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

net = definitions("quantization")
WAYS = ("tensor", "channel", 16, 4)


def near(found, wanted, rtol=1e-4, atol=1e-5):
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)


def seeded(build, number: int = 0):
    torch.manual_seed(number)
    return build()


def network(number: int = 0, width: int = 4):
    """Random weights, and norms that differ from channel to channel."""
    model = seeded(lambda: net.Network(width), number)
    for layer in model.layers:
        layer.norm.weight.data.uniform_(0.3, 2)
        layer.norm.bias.data.normal_(0, 0.3)
        layer.norm.running_mean.normal_(0, 0.3)
        layer.norm.running_var.uniform_(0.05, 2)
    return model.eval()


# ---- scales and zero points ----------------------------------------------------------------------


def test_numbers_go_to_the_nearest_step_and_back():
    x = torch.tensor([-1.0, -0.35, 0.3, 0.9, 1.7, 2.5, 9.0, -9.0])
    q = net.quantise(x, 0.5, 2, 0, 7)
    assert q.tolist() == [0, 1, 3, 4, 5, 7, 7, 0]
    assert net.dequantise(q, 0.5, 2).tolist() == [-1, -0.5, 0.5, 1, 1.5, 2.5, 2.5, -1]


def test_zero_is_added_behind_the_rounding():
    assert net.quantise(torch.tensor([0.26]), 0.5, 3, 0, 7).item() == 4
    assert net.quantise(torch.tensor([0.25]), 0.5, 3, 0, 7).item() == 3  # half to even, then 3


@pytest.mark.parametrize(
    "least, most, scale, zero",
    [
        (-1.0, 2.5, 0.5, 2),
        (0.0, 7.0, 1.0, 0),
        (3.0, 7.0, 1.0, 0),  # 0 stays within the range
        (-7.0, -2.0, 1.0, 7),
        (-3.4, 3.6, 1.0, 3),
    ],
)
def test_an_affine_range_holds_its_ends_and_zero(least, most, scale, zero):
    found, point = net.affine(least, most, 0, 7)
    close(found, torch.tensor(scale))
    assert point == zero


def test_a_range_of_nothing_has_a_scale_all_the_same():
    scale, zero = net.affine(0.0, 0.0, 0, 255)
    assert 0 < scale < 1e-10 and zero == 0
    assert torch.equal(net.symmetric(torch.zeros(2), -127, 127), torch.full((2,), 1e-12))


def test_an_affine_range_may_have_signed_integers():
    scale, zero = net.affine(-1.0, 2.0, -8, 7)
    close(scale, torch.tensor(0.2))
    assert zero == -3


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_no_error_exceeds_half_a_step(bits):
    x = seeded(lambda: torch.randn(5000))
    scale, zero = net.affine(x.min(), x.max(), 0, 2**bits - 1)
    y = net.dequantise(net.quantise(x, scale, zero, 0, 2**bits - 1), scale, zero)
    inner = (x > x.min() + scale / 2) & (x < x.max() - scale / 2)
    assert (y - x)[inner].abs().max() <= scale / 2 * (1 + 1e-5)
    assert (y - x).abs().max() <= scale * (1 + 1e-5)  # zero moved by at most half a step
    for full in (False, True):
        w = net.quantise_weight(x.view(50, 100), bits, "channel", full=full)
        assert ((w.floats() - x.view(50, 100)).abs() <= w.scale / 2 * (1 + 1e-4)).all()


def test_signed_integers_are_even_about_zero_or_full():
    assert net.signed(8) == (-127, 127) and net.signed(8, full=True) == (-128, 127)
    assert net.signed(2) == (-1, 1) and net.signed(4, full=True) == (-8, 7)
    close(net.symmetric(torch.tensor(254.0), -127, 127), torch.tensor(2.0))
    close(net.symmetric(torch.tensor(255.0), -128, 127), torch.tensor(2.0))


# ---- who shares a scale --------------------------------------------------------------------------


def test_blocks_are_all_rows_or_groups():
    w = torch.arange(24.0).view(2, 3, 2, 2)
    assert net.blocks(w, "tensor").shape == (1, 24)
    assert net.blocks(w, "channel").tolist() == w.flatten(1).tolist()
    groups = net.blocks(w, 5)  # rows of 12 become 15
    assert groups.shape == (6, 5)
    assert groups[2].tolist() == [10, 11, 0, 0, 0] and groups[3].tolist() == [12, 13, 14, 15, 16]


def test_two_channels_by_hand():
    two = torch.tensor([[6.0, -3.0, 1.5], [0.30, 0.12, -0.24]])
    together = net.quantise_weight(two, 4, "tensor")
    assert together.integers.view(2, 3).tolist() == [[7, -4, 2], [0, 0, 0]]
    apart = net.quantise_weight(two, 4, "channel")
    assert apart.integers.tolist() == [[7, -4, 2], [7, 3, -6]]
    close(apart.scale, torch.tensor([[6 / 7], [0.3 / 7]]))
    assert apart.integers.dtype == torch.int8


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(6, 20), (5, 3, 3, 3), (4, 1, 3, 3)])
def test_floats_are_integers_times_the_scale_of_their_block(way, shape):
    w = seeded(
        lambda: (
            torch.randn(shape) * torch.logspace(-2, 2, shape[0]).view(-1, *[1] * (len(shape) - 1))
        )
    )
    found = net.quantise_weight(w, 4, way).floats()
    assert found.shape == w.shape
    rows = w.reshape(shape[0], -1)
    size = {"tensor": None, "channel": rows.shape[1]}.get(way, way)
    wanted = torch.zeros_like(rows)
    for i, row in enumerate(rows):
        for start in range(0, len(row), size or len(row)):
            part = row[start : start + (size or len(row))]
            scale = (w.abs().max() if way == "tensor" else part.abs().max()) / 7
            wanted[i, start : start + len(part)] = (part / scale).round() * scale
    near(found.reshape(shape[0], -1), wanted, rtol=1e-4, atol=1e-6)


def test_rounding_equals_pytorchs_operators():
    rows = net.against_operators()
    assert [row[1:] for row in rows] == [(10_000, 0), (6400, 0)]


# ---- the network ---------------------------------------------------------------------------------


def test_the_network_has_the_layers_of_its_table():
    model = net.Network()
    assert model(torch.randn(2, 1, 20, 20)).shape == (2, 10)
    assert model(torch.randn(3, 1, 28, 14)).shape == (3, 10)
    # convolutions, two numbers a norm, the linear layer
    convolutions = 9 * 16 + (9 + 32) * 16 + (9 + 64) * 32 + (9 + 64) * 64
    norms = 2 * (16 + 16 + 32 + 32 + 64 + 64 + 64)
    assert parameters_of(model) == convolutions + norms + 650
    assert all(layer.norm.eps == 1e-5 for layer in model.layers)  # torch's default
    strides = [layer.conv.stride[0] for layer in model.layers]
    assert strides == [2, 1, 1, 2, 1, 1, 1]
    assert [layer.conv.groups for layer in model.layers] == [1, 16, 1, 32, 1, 64, 1]
    assert model.layers[0](torch.randn(1, 1, 20, 20)).min() == 0
    assert model.layers[0](torch.randn(1, 1, 20, 20)).shape == (1, 16, 10, 10)


def test_the_network_runs_forward_and_backward_on_the_meta_device():
    with torch.device("meta"):
        model = net.Network(8)
        y = model(torch.zeros(2, 1, 20, 20))
    assert y.shape == (2, 10)
    y.sum().backward()


def test_a_folded_network_computes_the_same_and_has_no_norms():
    model = network()
    before = copy.deepcopy(model.state_dict())
    folded = net.fold(model)
    assert not folded.training and not net.fold(model.train()).training
    model.eval()
    x = torch.randn(2, 1, 20, 20)
    near(folded(x), model(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_rounded_weights_are_a_copy_and_biases_stay():
    model = net.fold(network())
    low = net.rounded(model, 2, "channel")
    layers = list(zip(net.weighted(model), net.weighted(low), strict=True))
    assert len(layers) == 8
    for old, new in layers:
        close(new.weight, net.quantise_weight(old.weight, 2, "channel").floats())
        assert not torch.equal(new.weight, old.weight)
        assert torch.equal(new.bias, old.bias)


def test_float16_keeps_ten_bits():
    model = net.fold(network())
    half = net.as_float16(model)
    for old, new in zip(net.weighted(model), net.weighted(half)):
        assert torch.equal(new.weight, old.weight.half().float())
        assert new.weight.dtype == torch.float32
    assert not torch.equal(half.classifier.weight, model.classifier.weight)


# ---- training with rounding ----------------------------------------------------------------------


def test_the_gradient_passes_the_rounding():
    w = seeded(lambda: torch.randn(3, 8)).requires_grad_()
    y = net.Rounded(2, "channel")(w)
    close(y, net.quantise_weight(w, 2, "channel").floats())
    wanted = torch.randn(3, 8)
    y.backward(wanted)
    close(w.grad, wanted)
    full = net.Rounded(2, "channel", full=True)(w)
    close(full, net.quantise_weight(w, 2, "channel", full=True).floats())


def test_training_with_rounding_changes_a_copy_whose_weights_stay_rounded():
    model = net.fold(network())
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    part = (torch.randn(60, 1, 20, 20), torch.randint(10, (60,)))
    found = net.aware(model, 2, "channel", part)
    assert not found.training
    for layer, old in zip(net.weighted(found), net.weighted(model)):
        assert len(layer.weight[0].unique()) <= 3
        kept = layer.parametrizations.weight.original
        assert not torch.equal(kept, old.weight)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# ---- integers only -------------------------------------------------------------------------------


def test_a_factor_becomes_an_integer_of_31_bits_and_a_shift():
    real = torch.tensor([1.0, 0.5, 0.75, 3.0, 1e-6, 0.9999999999999], dtype=torch.double)
    m, shift = net.fixed_point(real)
    assert ((m >= 2**30) & (m < 2**31)).all()
    assert ((m.double() / 2.0**shift - real).abs() <= real * 2.0**-31).all()
    assert (m[1], shift[1]) == (2**30, 31) and (m[-1], shift[-1]) == (2**30, 30)
    m, shift = net.fixed_point(torch.tensor(1 / 49))
    assert m.ndim == 0 and m.dtype == torch.long


def test_a_total_is_rescaled_exactly():
    torch.manual_seed(0)
    real = torch.rand(200, dtype=torch.double) * 0.01 + 1e-5
    m, shift = net.fixed_point(real)
    totals = torch.randint(-(2**31), 2**31, (200,))
    found = net.rescale(totals, m, shift)
    for total, a, b, y in zip(totals.tolist(), m.tolist(), shift.tolist(), found.tolist()):
        assert y == math.floor(Fraction(total * a, 2**b) + Fraction(1, 2))
    half = net.rescale(torch.tensor([3, -3]), torch.tensor(2**30), torch.tensor(31))
    assert half.tolist() == [2, -1]  # 1.5 and -1.5, halves upwards


def made_layer(c_in, c_out, kernel, stride, groups, number=0):
    torch.manual_seed(number)
    weight = torch.randint(-127, 128, (c_out, c_in // groups, kernel, kernel))
    bias = torch.randint(-500, 500, (c_out,))
    m, shift = net.fixed_point(torch.rand(c_out, dtype=torch.double) * 0.004 + 0.0005)
    return net.IntegerLayer(weight, bias, m, shift, 7, 90, stride, groups)


@pytest.mark.parametrize(
    "c_in, c_out, kernel, stride, groups",
    [(3, 4, 3, 1, 1), (4, 4, 3, 2, 4), (4, 6, 3, 2, 2), (5, 3, 1, 1, 1), (2, 2, 5, 1, 1)],
)
def test_a_layer_in_tensors_is_the_layer_in_loops(c_in, c_out, kernel, stride, groups):
    layer = made_layer(c_in, c_out, kernel, stride, groups)
    x = torch.randint(0, 256, (2, c_in, 7, 6))
    found = layer(x)
    assert found.dtype == torch.long and found.min() >= 0 and found.max() <= 255
    assert len(found.unique()) > 20
    for image, y in zip(x, found):
        assert net.loops(layer, image).dtype == y.dtype
        assert torch.equal(net.loops(layer, image), y)


def test_the_loops_know_a_case_by_hand():
    weight = torch.tensor([[[[2]], [[-3]]]])
    # sum w (x - 5) + 7 with x = 9, 6: 2 * 4 - 3 * 1 + 7 = 12; the zero point is in the bias
    bias = torch.tensor([7 - 5 * (2 - 3)])
    m, shift = net.fixed_point(torch.tensor([0.5]))
    layer = net.IntegerLayer(weight, bias, m, shift, 5, 10, 1, 1)
    x = torch.tensor([[[9]], [[6]]])
    assert layer.total(x[None]).item() == 12
    assert layer(x[None]).item() == 6 + 10
    assert net.loops(layer, x).item() == 16
    far = layer._replace(zero_out=300)
    assert far(x[None]).item() == 255 and net.loops(far, x).item() == 255


def test_padding_is_the_integer_of_zero():
    layer = made_layer(1, 1, 3, 1, 1)._replace(zero_in=40, bias=torch.tensor([0]))
    x = torch.full((1, 1, 4, 4), 40)  # all zeros: the total is z times the sum of weights
    total = layer.total(x)
    assert (total == 40 * layer.weight.sum()).all()


def test_a_total_beyond_32_bits_is_refused():
    layer = made_layer(1, 1, 1, 1, 1)._replace(bias=torch.tensor([2**31]))
    with pytest.raises(AssertionError, match="32 bits"):
        layer(torch.zeros(1, 1, 2, 2, dtype=torch.long))


def test_an_integer_layer_is_within_a_step_of_its_float_layer():
    torch.manual_seed(0)
    for part in (nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.Linear(9, 5)):
        x = torch.randn(3, 4, 6, 6) if isinstance(part, nn.Conv2d) else torch.randn(3, 9)
        low = copy.deepcopy(part)
        low.weight.data = net.quantise_weight(part.weight, 8, "channel").floats()
        came = net.affine(x.min(), x.max(), 0, 255)
        q = net.quantise(x, *came, 0, 255)
        y = low(net.dequantise(q, *came)).detach()
        goes = net.affine(y.min(), y.max(), 0, 255)
        layer = net.integer_layer(part, came, goes)
        assert layer.zero_in == int(came[1]) and layer.zero_out == int(goes[1])
        assert layer.weight.abs().max() == 127 and layer.bias.dtype == torch.long
        q = q.long() if x.ndim == 4 else q.long()[:, :, None, None]
        found = layer(q).view(y.shape)
        wanted = net.quantise(y, *goes, 0, 255)
        assert (found - wanted).abs().max() <= 1
        assert (found == wanted).double().mean() > 0.95


def test_ranges_are_those_of_each_map():
    model = net.fold(network())
    x = torch.randn(4, 1, 20, 20)
    found = net.ranges(model, x)
    assert len(found) == 8
    assert found[0] == (x.min(), x.max())
    y = model.layers[1](model.layers[0](x))
    assert found[2] == (y.min(), y.max())


def test_a_network_in_integers_agrees_with_its_floats():
    model = net.fold(network(width=8))
    x = seeded(lambda: torch.randn(40, 1, 20, 20))
    ours = net.IntegerNetwork(model, net.ranges(model, x))
    found = ours(x)
    wanted = model(x).detach()
    assert found.shape == (40, 10)
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()
    low = net.rounded(model, 8, "channel")
    edge = torch.full((1, 1, 20, 20), x.max())
    assert torch.equal(ours(10 * edge), ours(edge))  # pixels beyond the range are cut
    count, differ, most = net.by_layer(ours, low, x)
    assert count == 40 * (8 + 8 + 16) * 100 + 40 * (16 + 32 + 32 + 32) * 25
    assert most <= 1 and differ < count / 100


def test_differences_by_layer_are_counted():
    model = net.fold(network())
    x = seeded(lambda: torch.randn(4, 1, 20, 20))
    ours = net.IntegerNetwork(model, net.ranges(model, x))
    ours.layers[0] = ours.layers[0]._replace(zero_out=ours.layers[0].zero_out + 2)
    count, differ, most = net.by_layer(ours, net.rounded(model, 8, "channel"), x)
    assert most in (2, 3) and differ > 0.2 * 4 * 4 * 100
    low = net.rounded(model, 8, "channel")
    q = net.quantise(x, *ours.codes[0], 0, 255).long()
    wanted = 0
    for layer, part, came, goes in zip(ours.layers, low.layers, ours.codes, ours.codes[1:]):
        real = part(net.dequantise(q, *came)).detach()
        q = layer(q)
        wanted += int((q != net.quantise(real, *goes, 0, 255)).sum())
    assert differ == wanted


# ---- calibration ---------------------------------------------------------------------------------


def test_empty_bins_get_a_little_of_the_others():
    p = net.smooth(torch.tensor([4.0, 0.0, 6.0, 0.0, 2.0]), small=0.3)
    close(p, torch.tensor([3.8, 0.3, 5.8, 0.3, 1.8]))
    close(p.sum(), torch.tensor(12.0))


def test_a_histogram_that_is_even_within_its_levels_loses_nothing():
    counts = torch.tensor([6, 6, 2, 2, 9, 9, 1, 1])
    assert net.divergence(counts, 0, 8, 4) == pytest.approx(0, abs=1e-12)
    assert net.divergence(counts, 0, 8, 2) > 0.1


def test_the_divergence_of_a_case_by_hand():
    # levels {3, 1} and {4, 0 + what is cut: 2}: q = 2 2, 2 2 (each bin holds something)
    counts = torch.tensor([3, 1, 4, 0, 2])
    p = [3 / 10, 1 / 10, 4 / 10, 2 / 10]
    wanted = sum(a * math.log(a / 0.25) for a in p)
    assert net.divergence(counts, 0, 4, 2) == pytest.approx(wanted)
    left = net.divergence(counts.flip(0), 1, 5, 2)
    assert left == pytest.approx(wanted)


def test_empty_bins_stay_empty_but_not_in_onnx_runtime():
    counts = torch.tensor([4, 0, 3, 3, 5, 1, 1])
    ours = net.divergence(counts, 0, 6, 3)
    p = net.smooth(torch.tensor([4.0, 0, 3, 3, 5, 2]))
    q = net.smooth(torch.tensor([4.0, 0, 3, 3, 3, 3]))
    p, q = p / p.sum(), q / q.sum()
    assert ours == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-4)
    # seven bins in three levels of two: the seventh stays empty, 7 / 2 is rounded down to 3
    theirs = net.divergence(counts, 0, 7, 3, net.like_ort)
    p = net.smooth(torch.tensor([4.0, 0, 3, 3, 5, 1, 1]))
    q = net.smooth(torch.tensor([4.0, 4, 3, 3, 3, 3, 0]))
    p, q = p / p.sum(), q / q.sum()
    assert theirs == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-4)


def test_nothing_inside_is_infinitely_far():
    assert net.divergence(torch.tensor([0, 0, 0, 0, 5]), 0, 4, 2) == math.inf


@pytest.mark.parametrize("number", range(3))
def test_onnx_runtime_chooses_the_least_divergence_by_its_rules(number):
    torch.manual_seed(number)
    for x in (torch.randn(4000), torch.distributions.StudentT(3.0).sample((4000,))):
        chosen, excess, own = net.two_sided(x, 157)
        assert 0 < chosen <= x.abs().max() * 1.001
        assert 0 <= excess < 1e-4
        assert 0 < own <= x.abs().max() * 1.001
    # four levels of even numbers lose nothing, so all is kept
    assert net.two_sided(torch.linspace(-1, 1, 64), 64, 64)[2] == pytest.approx(1)


def test_entropy_cuts_a_tail_and_leaves_an_even_histogram():
    even = torch.linspace(-1, 1, 40_001)
    assert net.entropy(even, bins=256, every=16) > 0.9
    torch.manual_seed(0)
    tail = torch.cat((torch.randn(5000), torch.tensor([60.0])))
    assert net.entropy(tail, bins=1024, every=4) < 20
    counts, edges = torch.histogram(tail.abs(), 1024)
    stops = range(128, 1025, 4)
    found = [net.divergence(counts, 0, stop, 128) for stop in stops]
    wanted = edges[stops[found.index(min(found))]].item()
    assert net.entropy(tail, bins=1024, every=4) == pytest.approx(wanted, rel=1e-4)
    assert net.entropy(tail, 4, bins=1024) < net.entropy(tail, 8, bins=1024)


def test_a_moving_average_leans_on_the_past():
    x = torch.tensor([1.0, -2.0, 4.0, -8.0])
    assert net.moving_average(x, parts=2, keep=0.75) == pytest.approx(0.75 * 2 + 0.25 * 8)
    assert net.moving_average(x, parts=4, keep=0.5) == pytest.approx(5.375)


def test_the_error_of_a_cut_by_hand():
    x = torch.tensor([3.0, -1.0, 0.0, 6.0])  # 3 bits, step 1: 6 becomes 3
    assert net.error(x, 3.0, 3) == pytest.approx(9 / 46)
    assert net.error(x, 6.0, 3) == pytest.approx((1 + 1) / 46)  # 3 to 4 (half to even), -1 to 0


def test_least_squares_is_the_least_of_its_grid():
    x = seeded(lambda: torch.distributions.StudentT(3.0).sample((3000,)))
    found = net.least_squares(x, 4)
    widest = x.abs().max().item()
    assert all(net.error(x, found, 4) <= net.error(x, widest * k / 100, 4) for k in range(1, 101))


def test_least_squares_tries_from_a_hundredth_to_the_whole():
    many = torch.cat((torch.ones(10_000), torch.tensor([100.0])))
    assert net.least_squares(many, 2) == pytest.approx(1)  # 99 squared is less than 10,000
    assert net.least_squares(torch.tensor([1.0, -1.0, 0.0]), 2) == 1


def test_each_way_of_calibration_has_a_cut():
    x = torch.cat((seeded(lambda: torch.randn(3000)), torch.tensor([-40.0])))
    found = net.thresholds(x, 8)
    assert list(found) == ["largest", "moving average", "99.9 %", "entropy", "least squares"]
    assert found["largest"] == 40 and found["99.9 %"] == x.abs().quantile(0.999)
    assert found["moving average"] < 10 and found["entropy"] < 20
    assert found["least squares"] == net.least_squares(x, 8)
    assert net.thresholds(x, 4)["least squares"] == net.least_squares(x, 4)


# ---- a transformer -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = net.BertConfig(vocab_size=50, num_attention_heads=4, **sizes)
    return seeded(lambda: net.BertModel(config)).eval()


def test_minilm_has_its_trained_weights_and_pieces():
    model, tokeniser = net.minilm()
    real = net.pretrained.minilm().weights
    name = "encoder.layer.5.output.dense.weight"
    assert torch.equal(model.state_dict()[name], real[name])
    assert not model.training and len(net.linears(model)) == 36
    assert tokeniser.encode("The LORD").tokens == ["[CLS]", "the", "lord", "[SEP]"]


def test_the_encoders_linear_layers_are_found(bert):
    layers = net.linears(bert)
    assert len(layers) == 12
    assert layers[0] is bert.encoder.layer[0].attention.self.query


def test_weights_alone_are_rounded_in_a_copy(bert):
    low = net.weights_only(bert, 4, 16)
    for old, new in zip(net.linears(bert), net.linears(low)):
        close(new.weight, net.quantise_weight(old.weight, 4, 16, full=True).floats())
        assert not torch.equal(new.weight, old.weight)
    assert torch.equal(low.pooler.dense.weight, bert.pooler.dense.weight)


def test_vectors_are_means_of_length_one(bert):
    x = torch.randint(50, (3, 7))
    found = net.vectors(bert, x)
    with torch.no_grad():
        mean = bert(x).last_hidden_state.mean(1)
    close(found, mean / mean.norm(dim=1, keepdim=True))
    assert not found.requires_grad


def test_the_nearest_is_another_one():
    x = F.normalize(torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1.0], [-1.0, -0.1]]), dim=1)
    assert net.nearest(x).tolist() == [1, 0, 1, 2]


def test_lines_that_are_too_short_are_left_out():
    class Tokeniser:
        def encode(self, line):
            return type("", (), {"ids": [len(word) for word in line.split()]})

    found = net.first_words(["a bb ccc dddd", "a", "bb bb bb"], Tokeniser(), 3)
    assert found.tolist() == [[1, 2, 3], [2, 2, 2]]


def test_what_layers_read_is_kept_and_the_hooks_go(bert):
    layers = [bert.encoder.layer[i].intermediate.dense for i in (0, 1)]
    x = torch.randint(50, (3, 7))
    first, second = net.inputs_of(layers, bert, x)
    assert first.shape == second.shape == (21, 32)
    with torch.no_grad():
        y = bert.encoder.layer[0].attention(bert.embeddings(x))[0].flatten(0, 1)
    near(first, y, rtol=1e-4, atol=1e-5)
    assert not any(layer._forward_pre_hooks for layer in layers)
    assert not first.requires_grad


def test_two_integers_share_a_byte():
    q = torch.tensor([[-8, 7, 0, -1]], dtype=torch.int8)
    packed = net.pack(q)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [[0 + 16 * 15, 8 + 16 * 7]]
    assert torch.equal(net.unpack(packed), q)
    q = seeded(lambda: torch.randint(-8, 8, (5, 6), dtype=torch.int8))
    assert torch.equal(net.unpack(net.pack(q)), q) and net.unpack(net.pack(q)).dtype == q.dtype


@pytest.mark.parametrize("q", [[1, 2, 3], [0, 8], [-9, 0]])
def test_what_does_not_fit_into_four_bits_is_refused(q):
    with pytest.raises(ValueError, match="even number of integers -8..7"):
        net.pack(torch.tensor(q))


def test_bytes_are_weights_scales_and_biases():
    layers = [nn.Linear(20, 6), nn.Conv2d(2, 4, 3)]
    assert net.size(layers, 32) == 4 * (120 + 6 + 72 + 4)
    assert net.size(layers, 8, "tensor") == 192 + 4 * (2 + 10)
    assert net.size(layers, 8, "channel") == 192 + 4 * (10 + 10)
    assert net.size(layers, 4, 16) == 96 + 4 * (6 * 2 + 4 * 2 + 10)


# ---- GPTQ ----------------------------------------------------------------------------------------


def test_inputs_without_correlation_leave_nothing_to_make_up_for():
    w = seeded(lambda: torch.randn(5, 8))
    found = net.gptq(w, torch.eye(8), 4)
    close(found, net.quantise_weight(w, 4, "channel", full=True).floats())


def test_after_each_column_the_others_are_the_best_that_is_left():
    torch.manual_seed(0)
    x = torch.randn(50, 4) @ torch.randn(4, 4)
    w = torch.randn(3, 4)
    found = net.gptq(w, x, 4, damping=0.0)
    scale = net.symmetric(w.abs().amax(1), -8, 7)
    now = w.double().clone()
    x = x.double()
    for i in range(4):  # round one column, solve for the columns behind it by least squares
        fixed = torch.round(now[:, i] / scale).clamp(-8, 7) * scale
        missed = (now[:, i] - fixed)[:, None] * x[:, i]  # (3, 50)
        now[:, i] = fixed
        if i < 3:
            now[:, i + 1 :] += torch.linalg.lstsq(x[:, i + 1 :], missed.T).solution.T
    near(found.double(), now, rtol=1e-3, atol=1e-3)


def test_gptq_errs_less_where_inputs_go_together():
    torch.manual_seed(0)
    x = torch.randn(400, 8) @ torch.randn(8, 32) + 0.1 * torch.randn(400, 32)
    w = torch.randn(16, 32)
    before = w.clone()
    found = net.in_four_bits(w, x[:300], x[300:])
    assert list(found) == ["nearest", "nearest, groups of 32", "GPTQ"]
    assert found["GPTQ"] < 0.7 * found["nearest"]
    assert found["nearest"] == pytest.approx(found["nearest, groups of 32"])  # a row is a group
    row = net.quantise_weight(w, 4, "channel", full=True).floats()
    assert found["nearest"] == net.output_error(w, row, x[300:])
    assert torch.equal(w, before)
    firm = net.gptq(w, x, 4, damping=1e6)  # nothing but the damping: as if x were even
    close(firm, row)


def test_the_error_of_outputs_is_relative():
    w = torch.tensor([[1.0, 2.0]])
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert net.output_error(w, torch.tensor([[0.0, 2.0]]), x) == pytest.approx(1 / 5)


# ---- torchao -------------------------------------------------------------------------------------


def test_torchaos_integers_and_scales_are_ours(bert):
    eight = copy.deepcopy(bert)
    net.quantize_(eight.encoder, net.Int8WeightOnlyConfig(set_inductor_config=False))
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert net.same_weights(bert, eight, 8, "channel") == (weights + 2 * (5 * 32 + 64), 0)
    four = copy.deepcopy(bert)
    net.quantize_(four.encoder, net.IntxWeightOnlyConfig(torch.int4, net.PerGroup(32)))
    count, differ = net.same_weights(bert, four, 4, 32)
    assert (count, differ) == (weights + weights // 32, 0)
    other = net.weights_only(bert, 3, "channel")
    assert net.same_weights(other, eight, 8, "channel")[1] > 1000


@pytest.mark.parametrize("bits", [8, 4])
def test_torchaos_training_layer_is_ours_within_the_ends(bits):
    output, gradient, ends, missing = net.same_training(bits)
    assert output < 1e-6 and gradient < 1e-6
    assert ends >= 32 and 0 <= missing <= ends  # the widest weight of each row at least


# ---- solutions -----------------------------------------------------------------------------------


def test_rounding_errs_a_twelfth_of_a_squared_step():
    w = seeded(lambda: torch.rand(100, 1000) * 2 - 1)
    assert net.share_of_twelfth(w, 8) == pytest.approx(1, abs=0.02)
    assert net.share_of_twelfth(torch.ones(2, 4), 8) == pytest.approx(0, abs=1e-6)


def test_equalised_channels_are_as_wide_on_both_sides():
    model = net.fold(network(width=8))
    before = copy.deepcopy(model.state_dict())
    even = net.equalised(model, 60)
    x = torch.randn(3, 1, 20, 20)
    near(even(x), model(x), rtol=1e-3, atol=1e-4)
    layers = net.weighted(even)
    for first, second in zip(layers, layers[1:]):
        there = second.weight if getattr(second, "groups", 1) > 1 else second.weight.transpose(0, 1)
        wide = [w.flatten(1).abs().amax(1) for w in (first.weight, there)]
        near(*wide, rtol=0.05, atol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_dynamic_rows_have_scales_of_their_own():
    torch.manual_seed(0)
    x = torch.randn(5, 40) * torch.logspace(-3, 3, 5)[:, None]
    w = torch.randn(7, 40)
    found = net.dynamic(w, x)
    low = (
        net.quantise_weight(x, 8, "channel").floats()
        @ net.quantise_weight(w, 8, "channel").floats().T
    )
    near(found, low, rtol=1e-3, atol=1e-4)
    assert found.dtype == torch.float32
    error = (found - x @ w.T).norm(dim=1) / (x @ w.T).norm(dim=1)
    assert error.max() < 0.02


def test_a_learnt_scale_rounds_to_its_levels_and_gets_a_gradient():
    w = seeded(lambda: torch.randn(3, 8)).requires_grad_()
    learnt = net.Learned(w, 3)
    close(learnt.scale, 2 * w.detach().abs().mean(1, keepdim=True) / math.sqrt(3))
    assert net.Learned(torch.randn(4, 2, 3, 3), 2).scale.shape == (4, 1, 1, 1)
    learnt.scale.data.fill_(0.25)
    x = (w / 0.25).detach()
    y = learnt(w)
    close(y, x.round().clamp(-3, 3) * 0.25)
    y.sum().backward()
    inside = (x.abs() < 3).float()
    close(w.grad, inside)
    # Esser et al. 2020, equations 3 and section 2.2: weaker by 1 / sqrt(numbers * top)
    each = torch.where(inside > 0, x.round() - x, x.sign() * 3)
    near(learnt.scale.grad, each.sum(1, keepdim=True) / math.sqrt(8 * 3), rtol=1e-4, atol=1e-5)
    parametrize.register_parametrization(nn.Linear(8, 3), "weight", net.Learned(w, 3))
