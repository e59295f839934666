"""The two forms of LeNet-5 in notebooks/lenet.py."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
import workbench
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of
from workbench import images, training

net = definitions("lenet")
both = pytest.mark.parametrize(
    ("network", "side"), [("published_lenet5", 32), ("SimplifiedLeNet5", 28)]
)

# Stage, output, trainable parameters, connections. LeCun et al. 1998, sections II-A and II-B, state in
# words the totals and both numbers of C1, S2, C3 and S4; of C5 and F6 they state one each.
PAPER_TOTALS = (60_000, 340_908)
STAGES = [
    ("C1", "6×28×28", 156, 122_304),
    ("S2", "6×14×14", 12, 5_880),
    ("C3", "16×10×10", 1_516, 151_600),
    ("S4", "16×5×5", 32, 2_000),
    ("C5", "120×1×1", 48_120, 48_120),  # the paper: 48,120 trainable connections
    ("F6", "84", 10_164, 10_164),  # the paper: 10,164 trainable parameters
    ("output", "10", 0, 840),  # not in the paper: 340,908 less the rest
]
# LeCun et al. 1998, table I, a row for each map of S2, a column for each map of C3
TABLE_I = """
x...xxx..xxxx.xx
xx...xxx..xxxx.x
xxx...xxx..x.xxx
.xxx..xxxx..x.xx
..xxx..xxxx.xx.x
...xxx..xxxx.xxx
"""


@pytest.fixture(autouse=True)
def same_start():
    torch.manual_seed(0)


def table_i():
    return torch.tensor([[mark == "x" for mark in row] for row in TABLE_I.split()])


def test_each_stage_has_its_parameters_and_connections():
    rows = net.stage_table(net.published_lenet5(), torch.zeros(1, 1, 32, 32))
    assert rows == STAGES


def test_the_totals_are_those_of_the_paper():
    network = net.published_lenet5()
    rows = net.stage_table(network, torch.zeros(1, 1, 32, 32))
    assert (parameters_of(network), sum(row[3] for row in rows)) == PAPER_TOTALS


@pytest.mark.parametrize(
    ("stage", "shape", "biases", "connections"),
    [
        ("C1", (1, 32, 32), 6 * 28 * 28, 122_304),
        ("S2", (6, 28, 28), 6 * 14 * 14, 5_880),
        ("C3", (6, 14, 14), 16 * 10 * 10, 151_600),
        ("S4", (16, 10, 10), 16 * 5 * 5, 2_000),
        ("C5", (16, 5, 5), 120, 48_120),
        ("F6", (120, 1, 1), 84, 10_164),
        ("output", (84,), 0, 840),
    ],
)
def test_connections_are_the_pairs_in_which_an_input_moves_an_output(
    stage, shape, biases, connections
):
    layer, x = getattr(net.published_lenet5(), stage).double(), torch.rand(shape).double()
    one_moved = x + 0.5 * torch.eye(x.numel()).double().view(-1, *shape)
    changed = (layer(one_moved) - layer(x.unsqueeze(0))).abs() > 1e-9
    assert int(changed.sum()) + biases == connections


def test_the_simplified_form_has_its_parameters_and_macs():
    network = on_meta(net.SimplifiedLeNet5)
    by_hand = 6 * 25 * 28**2 + 96 * 25 * 10**2 + 400 * 120 + 120 * 84 + 84 * 10
    assert (parameters_of(network), macs_of(network, 1, 1, 28, 28)) == (61_706, by_hand)


def test_macs_of_the_published_form_follow_table_i_without_the_dense_kernel():
    dense, sparse = net.published_lenet5(), net.published_lenet5()
    sparse.C3[0] = net.SixteenConvs(sparse.C3[0], net.C3_TABLE)
    dense, sparse = (macs_of(network.to("meta"), 1, 1, 32, 32) for network in (dense, sparse))
    assert sparse == 6 * 25 * 28**2 + 60 * 25 * 10**2 + 400 * 120 + 120 * 84
    assert dense - sparse == 36 * 25 * 10**2


def test_c3_equals_sixteen_convolutions_with_the_same_weights():
    layer = net.TableConv(6, net.C3_TABLE)
    x = torch.randn(3, 6, 14, 17)
    torch.testing.assert_close(layer(x), net.SixteenConvs(layer, net.C3_TABLE)(x))


def test_c3_equals_a_full_convolution_whose_unused_kernels_are_zero():
    layer = net.TableConv(6, net.C3_TABLE)
    full = nn.Conv2d(6, 16, 5)
    kernels = iter(layer.weight.detach())
    with torch.no_grad():
        full.bias.copy_(layer.bias)
        for k, maps in enumerate(net.C3_TABLE):
            full.weight[k] = 0
            for i in maps:
                full.weight[k, i] = next(kernels)
    x = torch.randn(2, 6, 14, 14)
    torch.testing.assert_close(layer(x), full(x))


def test_a_map_of_s2_reaches_exactly_the_maps_of_c3_in_table_i():
    layer, x = net.TableConv(6, net.C3_TABLE), torch.randn(1, 6, 14, 14)
    reached = torch.zeros(6, 16, dtype=torch.bool)
    for i in range(6):
        changed = x.clone()
        changed[:, i] += 1
        reached[i] = (layer(changed) - layer(x)).abs().amax((0, 2, 3)) > 1e-4
    assert torch.equal(reached, table_i())


def test_the_simplified_form_does_what_its_layers_written_as_a_list_do():
    networks.same_function(net.SimplifiedLeNet5(), net.plain_layers(), torch.randn(5, 1, 28, 28))


def test_the_simplified_form_equals_its_formulas_written_out():
    network, x = net.SimplifiedLeNet5(), torch.randn(5, 1, 28, 28)
    halve = F.avg_pool2d
    h = halve(F.conv2d(F.pad(x, (2, 2, 2, 2)), network.C1.weight, network.C1.bias).tanh(), 2)
    h = halve(F.conv2d(h, network.C3.weight, network.C3.bias).tanh(), 2).flatten(1)
    for layer in (network.C5, network.F6):
        h = (h @ layer.weight.T + layer.bias).tanh()
    expected = h @ network.output.weight.T + network.output.bias
    torch.testing.assert_close(network(x), expected)


def test_the_published_form_equals_its_formulas_written_out():
    network, x = net.published_lenet5(), torch.randn(2, 1, 32, 32)

    def squash(a):
        return 1.7159 * torch.tanh(a * 2 / 3)

    def halve(layer, x):
        four = x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]
        return squash(layer.coefficient * four + layer.bias)

    h = halve(network.S2[0], squash(F.conv2d(x, network.C1[0].weight, network.C1[0].bias)))
    h = halve(network.S4[0], squash(net.SixteenConvs(network.C3[0], net.C3_TABLE)(h)))
    h = squash(h.flatten(1) @ network.C5[0].weight.flatten(1).T + network.C5[0].bias)
    h = squash(h @ network.F6[1].weight.T + network.F6[1].bias)
    penalties = [((h - code) ** 2).sum(1) for code in net.digit_codes()]
    torch.testing.assert_close(network(x), -torch.stack(penalties, dim=1))


@both
def test_an_odd_batch_gives_one_row_of_ten_scores_per_image(network, side):
    assert getattr(net, network)()(torch.rand(7, 1, side, side)).shape == (7, 10)


def test_the_published_form_reads_a_wider_image_up_to_c5():
    assert net.published_lenet5()[:5](torch.rand(3, 1, 32, 44)).shape == (3, 120, 1, 4)


def test_the_frame_and_the_ink_have_the_values_of_the_paper():
    x = net.as_published(torch.ones(1, 1, 28, 28))
    assert x.shape == (1, 1, 32, 32)
    torch.testing.assert_close(x[0, 0, 0], torch.full((32,), -0.1))
    torch.testing.assert_close(x[..., 2:30, 2:30], torch.full((1, 1, 28, 28), 1.175))


def test_the_squashing_function_is_odd_and_keeps_one_and_minus_one():
    f, a = net.Squash(), torch.randn(50)
    torch.testing.assert_close(f(-a), -f(a))
    ones = torch.tensor([1.0, -1.0])
    torch.testing.assert_close(f(ones), ones, rtol=0, atol=1e-4)
    torch.testing.assert_close(f(torch.tensor(50.0)), torch.tensor(1.7159))


def test_subsampling_is_four_times_the_mean_with_a_coefficient_and_a_bias():
    layer, x = net.Subsample(3), torch.randn(2, 3, 6, 10)
    expected = F.avg_pool2d(x, 2) * 4 * layer.coefficient + layer.bias
    torch.testing.assert_close(layer(x), expected)


def test_a_state_equal_to_a_code_has_penalty_zero_there_and_more_elsewhere():
    codes = net.digit_codes()
    penalties = -net.CodeDistance(codes)(codes)
    torch.testing.assert_close(penalties.diagonal(), torch.zeros(10))
    others = penalties[~torch.eye(10, dtype=torch.bool)]
    assert others.min() >= 4


def test_a_pixel_in_which_two_codes_differ_adds_four_to_their_distance():
    a, b = torch.ones(84), torch.ones(84)
    b[:16] = -1
    distance = -net.CodeDistance(b.unsqueeze(0))(a.unsqueeze(0))
    torch.testing.assert_close(distance, torch.tensor([[64.0]]))


def test_the_two_most_similar_codes_differ_in_sixteen_pixels_and_stand_at_distance_64():
    codes = net.digit_codes()
    penalties = -net.CodeDistance(codes)(codes)
    pixels = torch.tensor([[int((a != b).sum()) for b in codes] for a in codes])
    assert pixels[~torch.eye(10, dtype=torch.bool)].min() == 16
    torch.testing.assert_close(penalties, 4.0 * pixels)


def test_the_codes_are_ten_different_drawings_of_plus_and_minus_one():
    codes = net.digit_codes()
    assert codes.shape == (10, 84)
    torch.testing.assert_close(codes.abs(), torch.ones(10, 84))
    one = [row.split()[1] for row in net.BITMAPS.split("\n") if row]
    signs = [1.0 if dot == "#" else -1.0 for dot in "".join(one)]
    torch.testing.assert_close(codes[1], torch.tensor(signs))


def test_initial_values_fill_the_interval_of_appendix_a():
    """Weights as the paper says; that biases and coefficients follow the same rule is ours."""
    drawn = [net.published_lenet5() for _ in range(100)]
    for name, fan_in, rows in [
        ("C1.0.weight", 25, slice(None)),
        ("C1.0.bias", 25, slice(None)),
        ("S2.0.coefficient", 4, slice(None)),
        ("S2.0.bias", 4, slice(None)),
        ("C3.0.weight", 75, slice(0, 18)),
        ("C3.0.weight", 100, slice(18, 54)),
        ("C3.0.weight", 150, slice(54, 60)),
        ("C3.0.bias", 75, slice(0, 6)),
        ("C3.0.bias", 100, slice(6, 15)),
        ("C3.0.bias", 150, slice(15, 16)),
        ("S4.0.coefficient", 4, slice(None)),
        ("S4.0.bias", 4, slice(None)),
        ("C5.0.weight", 400, slice(None)),
        ("C5.0.bias", 400, slice(None)),
        ("F6.1.weight", 120, slice(None)),
        ("F6.1.bias", 120, slice(None)),
    ]:
        values = torch.stack([network.get_parameter(name).detach()[rows] for network in drawn])
        bound = 2.4 / fan_in
        near = (1 - 15 / values.numel()) * bound  # as near as so many draws come
        assert -bound <= values.min() < -near and near < values.max() <= bound, name


def test_the_criterion_has_its_value_in_a_case_worked_by_hand():
    """Penalties 0 and log 2, right class 0, exp(-j) = 1/2: 0 + log(1/2 + 1 + 1/2) = log 2.

    The same penalties, right class 1: log 2 + log 2. The mean is 1.5 log 2.
    """
    scores = -torch.tensor([[0.0, math.log(2)], [0.0, math.log(2)]])
    loss = net.map_criterion(scores, torch.tensor([0, 1]), j=math.log(2))
    torch.testing.assert_close(loss, torch.tensor(1.5 * math.log(2)))


def test_the_criterion_is_equation_9_and_a_cross_entropy_with_one_class_more():
    scores, labels, j = -10 * torch.rand(6, 10), torch.arange(6), 3.0
    penalties = -scores
    right = penalties[torch.arange(6), labels]
    equation_9 = (right + torch.log(math.exp(-j) + (-penalties).exp().sum(1))).mean()
    eleven = F.cross_entropy(torch.cat((scores, torch.full((6, 1), -j)), 1), labels)
    found = net.map_criterion(scores, labels, j)
    torch.testing.assert_close(found, equation_9)
    torch.testing.assert_close(found, eleven)


def test_penalties_above_j_are_hardly_pushed_further():
    """One penalty above all: the others get e^-19 = 5.6e-9 with j = 2, e^-1 / (1 + e^-1 + e^-2) without."""

    def push(j):
        scores = torch.tensor([[-20.0, -21.0, -22.0]], requires_grad=True)
        net.map_criterion(scores, torch.tensor([0]), j).backward()
        return scores.grad[0, 1]

    torch.testing.assert_close(push(2.0), torch.tensor(5.6e-9), rtol=0.01, atol=0)
    torch.testing.assert_close(push(math.inf), torch.tensor(0.2447), rtol=0.01, atol=0)


def test_digits_moved_by_four_pixels_move_c1_by_four_and_s2_by_two_where_the_maps_overlap():
    network = net.published_lenet5()
    x = net.as_published(images.digits(28).validation[0][:50])
    moved = torch.full_like(x, -0.1)
    moved[..., 4:] = x[..., :-4]
    for depth, step in ((1, 4), (2, 2)):
        before, after = network[:depth](x), network[:depth](moved)
        torch.testing.assert_close(before[..., :-step], after[..., step:])
        assert net.difference(before, after, step) < 1e-5
        assert net.difference(before, after, step - 1) > 0.1


def test_maps_that_are_no_numbers_are_not_moved_ones():
    maps = torch.rand(2, 3, 8, 8)
    assert net.difference(maps, torch.nn.functional.pad(maps, (2, -2)), 2) == 0
    with pytest.raises(ValueError, match="a finite number is needed"):
        net.difference(maps, torch.full_like(maps, torch.nan), 2)


def test_distortion_moves_each_image_a_little_and_its_own_way():
    x = torch.zeros(50, 1, 28, 28)
    x[..., 10:18, 10:18] = 1
    y = net.distort(x)
    assert y.shape == x.shape
    assert y.min() >= 0 and y.max() <= 1 + 1e-6
    assert not torch.allclose(y[0], y[1])
    y[..., 4:24, 4:24] = 0  # the square, its scaling, shear and shift, and a pixel of interpolation
    assert y.abs().max() < 1e-6


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize("draw", [0.0, 1.0])
def test_each_kind_of_distortion_reads_the_pixels_that_its_formula_names(monkeypatch, kind, draw):
    """Images whose values are their row and column numbers show where each pixel is read."""
    draws = torch.full((5, 2), 0.5)  # nothing is moved
    draws[kind] = draw
    monkeypatch.setattr(torch, "rand", lambda *shape: draws)
    i, j = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    found = net.distort(torch.stack((i, j)).unsqueeze(1))[:, 0, 7:21, 7:21]
    i, j = (t[7:21, 7:21] - 13.5 for t in (i, j))
    sign = 2 * draw - 1
    moved = [
        (i, (1 + 0.1 * sign) * j),
        ((1 + 0.1 * sign) * i, j),
        (i, j + 0.2 * sign * i),
        (i, j + 1.5 * sign),
        (i + 1.5 * sign, j),
    ]
    close(found, torch.stack(moved[kind]) + 13.5)


@both
def test_one_batch_is_learnt_to_a_tenth_of_its_first_loss(network, side):
    published = network == "published_lenet5"
    loss = (lambda scores, y: net.map_criterion(scores, y, 5.0)) if published else F.cross_entropy
    x = torch.rand(20, 1, side, side)
    networks.learns(
        getattr(net, network)(), x, rate=0.005, steps=150 if published else 40, loss=loss
    )


def test_the_printed_loop_gives_the_losses_of_the_workbench():
    x, y = torch.rand(70, 1, 28, 28), torch.arange(70) % 10
    histories = []
    for fit in (net.fit, training.fit):
        workbench.seed(3)
        model = net.SimplifiedLeNet5().to(workbench.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=9)
        how = {"batch": 30, "validation": (x, y), "schedule": schedule}
        histories.append(fit(model, (x, y), 3, optimizer, F.cross_entropy, **how))
    assert len(histories[0]["loss"]) == 3
    for key in ("loss", "validation"):
        torch.testing.assert_close(*(torch.tensor(h[key]) for h in histories), rtol=0, atol=0)


@both
@pytest.mark.parametrize("device", ["meta", "cpu"], ids=["built there", "moved there"])
def test_it_runs_forward_and_backward_on_the_meta_device(network, side, device):
    with torch.device(device):
        model = getattr(net, network)().to("meta")
    assert networks.runs_on_meta(model, 2, 1, side, side).shape == (2, 10)


def test_the_criterion_runs_on_the_meta_device():
    scores = torch.empty(2, 10, device="meta", requires_grad=True)
    loss = net.map_criterion(scores, torch.zeros(2, dtype=torch.long, device="meta"), 1.0)
    loss.backward()
    assert scores.grad.device.type == "meta"
