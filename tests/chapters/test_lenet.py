"""The networks of notebooks/lenet.py: two that are compared, and LeNet-5 as its paper has it."""

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
three = pytest.mark.parametrize(
    ("network", "side"), [("LeNet5", 32), ("SimplifiedLeNet5", 28), ("Perceptron", 28)]
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


# ---- counts --------------------------------------------------------------------------------------


def test_stages_and_totals_are_those_of_the_paper():
    network = net.LeNet5()
    rows = net.stage_table(network, torch.zeros(1, 1, 32, 32))
    assert rows == STAGES
    assert (parameters_of(network), sum(row[3] for row in rows)) == PAPER_TOTALS


@pytest.mark.parametrize(
    ("stage", "shape", "biases", "connections"),
    [
        ("C1", (1, 32, 32), 6 * 28 * 28, 122_304),
        ("S2", (6, 28, 28), 6 * 14 * 14, 5_880),
        ("C3", (6, 14, 14), 16 * 10 * 10, 151_600),
        ("S4", (16, 10, 10), 16 * 5 * 5, 2_000),
        ("C5", (16, 5, 5), 120, 48_120),
        ("F6", (120,), 84, 10_164),
        ("output", (84,), 0, 840),
    ],
)
def test_connections_are_the_pairs_in_which_an_input_moves_an_output(
    stage, shape, biases, connections
):
    layer, x = getattr(net.LeNet5(), stage).double(), torch.rand(shape).double()
    one_moved = x + 0.5 * torch.eye(x.numel()).double().view(-1, *shape)
    changed = (layer(one_moved) - layer(x.unsqueeze(0))).abs() > 1e-9
    assert int(changed.sum()) + biases == connections


def test_macs_of_the_published_form_are_those_of_its_layers_by_hand():
    """Of C3's 96 pairs of maps all are multiplied, 36 of them by zeros."""
    by_hand = 6 * 25 * 28**2 + 96 * 25 * 10**2 + 400 * 120 + 120 * 84
    assert macs_of(on_meta(net.LeNet5), 1, 1, 32, 32) == by_hand


def test_the_two_networks_that_are_compared_have_about_the_same_parameters():
    lenet, perceptron = on_meta(net.SimplifiedLeNet5), on_meta(net.Perceptron)
    by_hand = 6 * 25 * 28**2 + 96 * 25 * 10**2 + 400 * 120 + 120 * 84 + 84 * 10
    assert (parameters_of(lenet), macs_of(lenet, 1, 1, 28, 28)) == (61_706, by_hand)
    assert parameters_of(perceptron) == 784 * 75 + 75 + 75 * 10 + 10


# ---- parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 5), (1, 2), (3, 1)])
def test_the_sums_by_hand_are_the_convolution_of_torch(size):
    image, weights = torch.randn(9, 7), torch.randn(size)
    expected = F.conv2d(image[None, None], weights[None, None])[0, 0] + 0.3
    close(net.convolve(image, weights, 0.3), expected)


def test_the_squashing_function_is_odd_keeps_one_and_ends_at_its_amplitude():
    a = torch.randn(50)
    close(net.squash(-a), -net.squash(a))
    close(net.squash(torch.tensor([1.0, -1.0, 50.0])), torch.tensor([1.0, -1.0, 1.7159]), 1e-4)


def test_subsampling_is_four_times_the_mean_with_a_coefficient_and_a_bias():
    layer, x = net.Subsample(3), torch.randn(2, 3, 6, 10)
    close(layer(x), F.avg_pool2d(x, 2) * 4 * layer.coefficient + layer.bias)


def test_a_map_of_s2_reaches_exactly_the_maps_of_c3_in_table_i():
    layer, x = net.TableConv(net.C3_TABLE), torch.randn(1, 6, 14, 14)
    reached = torch.zeros(6, 16, dtype=torch.bool)
    for i in range(6):
        changed = x.clone()
        changed[:, i] += 1
        reached[i] = (layer(changed) - layer(x)).abs().amax((0, 2, 3)) > 1e-4
    assert torch.equal(
        reached, torch.tensor([[mark == "x" for mark in row] for row in TABLE_I.split()])
    )


def test_c3_does_what_a_convolution_for_each_of_its_maps_does():
    layer, x = net.TableConv(net.C3_TABLE), torch.randn(3, 6, 14, 17)
    close(layer(x), net.sixteen_convolutions(layer, x))


def test_the_codes_are_ten_different_drawings_of_plus_and_minus_one():
    codes = net.digit_codes()
    assert codes.shape == (10, 84)
    close(codes.abs(), torch.ones(10, 84))
    lines = net.BITMAPS.split("\n")[1:-1]
    for k in range(10):
        dots = "".join(line.split()[k] for line in lines)
        assert "".join("#" if value > 0 else "." for value in codes[k]) == dots


def test_each_pixel_in_which_codes_differ_adds_four_and_the_nearest_differ_in_sixteen():
    codes = net.digit_codes()
    pixels = torch.tensor([[int((a != b).sum()) for b in codes] for a in codes])
    assert pixels[~torch.eye(10, dtype=torch.bool)].min() == 16
    close(-net.CodeDistance(codes)(codes), 4.0 * pixels)


def test_the_frame_and_the_ink_have_the_values_of_the_paper():
    x = net.as_published(torch.ones(1, 1, 28, 28))
    expected = torch.full((1, 1, 32, 32), -0.1)
    expected[..., 2:30, 2:30] = 1.175
    close(x, expected)


def test_initial_values_fill_the_interval_of_appendix_a():
    """Weights as the paper says; that biases and coefficients follow the same rule is ours."""
    drawn = [net.LeNet5() for _ in range(100)]
    names = [("C1", 25), ("S2", 4), ("S4", 4), ("C5", 400), ("F6", 120)]
    names += [(f"C3.convs.{k}", 25 * len(maps)) for k, maps in enumerate(net.C3_TABLE)]
    for name, inputs in names:
        weight = "coefficient" if name.startswith("S") else "weight"
        for parameter in (weight, "bias"):
            found = [network.get_parameter(f"{name}.{parameter}").detach() for network in drawn]
            values, bound = torch.stack(found), 2.4 / inputs
            near = (1 - 15 / values.numel()) * bound  # as near as so many draws come
            assert -bound <= values.min() < -near and near < values.max() <= bound, name


# ---- networks ------------------------------------------------------------------------------------


def test_the_simplified_form_does_what_layers_of_torch_in_a_row_do():
    layers = nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)),
    )
    networks.same_function(net.SimplifiedLeNet5(), layers, torch.randn(5, 1, 28, 28))


def test_the_perceptron_does_what_layers_of_torch_in_a_row_do():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 75), nn.Tanh(), nn.Linear(75, 10))
    networks.same_function(net.Perceptron(), layers, torch.randn(5, 1, 28, 28))


def test_the_published_form_equals_its_formulas_written_out():
    network, x = net.LeNet5(), torch.randn(2, 1, 32, 32)

    def squash(a):
        return 1.7159 * torch.tanh(a * 2 / 3)

    def halve(layer, x):
        four = x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]
        return squash(layer.coefficient * four + layer.bias)

    h = halve(network.S2, squash(F.conv2d(x, network.C1.weight, network.C1.bias)))
    maps = []
    for conv, row in zip(network.C3.convs, zip(*TABLE_I.split(), strict=True), strict=True):
        read = [i for i, mark in enumerate(row) if mark == "x"]
        maps.append(F.conv2d(h[:, read], conv.weight, conv.bias))
    h = halve(network.S4, squash(torch.cat(maps, dim=1))).flatten(1)
    h = squash(h @ network.C5.weight.flatten(1).T + network.C5.bias)
    h = squash(h @ network.F6.weight.T + network.F6.bias)
    penalties = [((h - code) ** 2).sum(1) for code in net.digit_codes()]
    close(network(x), -torch.stack(penalties, dim=1))


@three
def test_an_odd_batch_gives_one_row_of_ten_scores_per_image(network, side):
    assert getattr(net, network)()(torch.rand(7, 1, side, side)).shape == (7, 10)


@three
def test_one_batch_is_learnt_to_a_tenth_of_its_first_loss(network, side):
    published = network == "LeNet5"
    loss = net.published_loss if published else F.cross_entropy
    x, steps = torch.rand(5, 1, side, side), 90 if published else 80
    networks.learns(getattr(net, network)(), x, rate=0.005, steps=steps, loss=loss)


@three
@pytest.mark.parametrize("device", ["meta", "cpu"], ids=["built there", "moved there"])
def test_it_runs_forward_and_backward_on_the_meta_device(network, side, device):
    with torch.device(device):
        model = getattr(net, network)().to("meta")
    assert networks.runs_on_meta(model, 2, 1, side, side).shape == (2, 10)


def test_moved_digits_move_c1_along_and_s2_by_half_where_the_maps_overlap():
    network = net.LeNet5()
    x = net.as_published(images.digits(28).validation[0][:50])
    moved = net.move(x, 4, background=-0.1)
    c1, moved_c1 = network.C1(x), network.C1(moved)
    close(moved_c1[..., 4:], c1[..., :-4])
    close(network.S2(moved_c1)[..., 2:], network.S2(c1)[..., :-2])


def test_the_states_of_the_layers_end_in_what_the_output_reads():
    network, x = net.SimplifiedLeNet5(), torch.rand(3, 1, 28, 28)
    found = net.states(network, x)
    shapes = [tuple(t.shape[1:]) for t in found.values()]
    assert list(found) == ["pixels", "C1", "S2", "C3", "S4", "C5", "F6"]
    assert shapes[:5] == [(1, 28, 28), (6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5)]
    close(network.output(found["F6"]), network(x))


# ---- loss and loop -------------------------------------------------------------------------------


def test_the_criterion_has_its_value_in_a_case_worked_by_hand():
    """Penalties 0 and log 2, right class 0, exp(-j) = 1/2: 0 + log(1/2 + 1 + 1/2) = log 2.

    The same penalties, right class 1: log 2 + log 2. The mean is 1.5 log 2.
    """
    scores = -torch.tensor([[0.0, math.log(2)], [0.0, math.log(2)]])
    loss = net.map_criterion(scores, torch.tensor([0, 1]), j=math.log(2))
    torch.testing.assert_close(loss, torch.tensor(1.5 * math.log(2)))


def test_the_criterion_is_equation_9():
    scores, labels, j = -10 * torch.rand(6, 10), torch.arange(6), 3.0
    right = -scores[torch.arange(6), labels]
    equation_9 = (right + torch.log(math.exp(-j) + scores.exp().sum(1))).mean()
    torch.testing.assert_close(net.map_criterion(scores, labels, j), equation_9)


def test_penalties_above_j_are_hardly_pushed_further():
    """One penalty above all: the others get e^-19 = 5.6e-9 with j = 2, e^-1 / (1 + e^-1 + e^-2) without."""

    def push(j):
        scores = torch.tensor([[-20.0, -21.0, -22.0]], requires_grad=True)
        net.map_criterion(scores, torch.tensor([0]), j).backward()
        return scores.grad[0, 1]

    torch.testing.assert_close(push(2.0), torch.tensor(5.6e-9), rtol=0.01, atol=0)
    torch.testing.assert_close(push(math.inf), torch.tensor(0.2447), rtol=0.01, atol=0)


def test_the_criterion_runs_on_the_meta_device():
    scores = torch.empty(2, 10, device="meta", requires_grad=True)
    net.published_loss(scores, torch.zeros(2, dtype=torch.long, device="meta")).backward()
    assert scores.grad.device.type == "meta"


def test_the_printed_loop_gives_the_losses_of_the_workbench():
    x, y = torch.rand(70, 1, 28, 28), torch.arange(70) % 10
    found, weights = [], []
    for fit in (net.fit, training.fit):
        workbench.seed(3)
        model = net.SimplifiedLeNet5()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=9)
        how = {"optimizer": optimizer, "schedule": schedule, "batch": 30}
        model.eval()
        arguments = (x, y) if fit == net.fit else ((x, y),)
        losses = fit(model, *arguments, epochs=3, **how)
        assert model.training
        found.append(losses if fit == net.fit else losses["loss"])
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    close(*weights, 0)


def test_training_takes_its_steps_in_whole_epochs_and_ends_at_a_rate_of_zero(monkeypatch):
    seen = []

    def fit(model, x, y, *, epochs, optimizer, schedule, batch):
        settings = optimizer.param_groups[0]
        seen.append((epochs, batch, settings["lr"], settings["momentum"]))
        for _ in range(epochs * len(y) // batch):
            optimizer.step()
            schedule.step()
            seen.append(settings["lr"])

    monkeypatch.setitem(net.train.__globals__, "fit", fit)
    net.train(nn.Linear(1, 1), torch.zeros(300, 1), torch.zeros(300))
    assert seen[0] == (10, 20, 0.1, 0.9)
    assert len(seen) == 1 + 150
    assert seen[75] == pytest.approx(0.05) and seen[-1] == pytest.approx(0, abs=1e-9)


def test_the_error_is_the_share_of_answers_that_are_not_the_label():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))  # in evaluation: the image is the score
    x = torch.eye(8).view(8, 1, 1, 8)
    assert net.error(model, x, torch.arange(8)) == 0
    assert net.error(model, x, torch.tensor([0, 1, 2, 3, 4, 5, 0, 0])) == 0.25


def test_the_error_is_computed_without_gradients():
    modes = []

    class Stub(nn.Module):
        def forward(self, x):
            modes.append((torch.is_grad_enabled(), self.training))
            return x.flatten(1)

    net.error(Stub(), torch.eye(3).view(3, 1, 1, 3), torch.arange(3))
    assert modes == [(False, False)]


# ---- images --------------------------------------------------------------------------------------


def test_one_permutation_is_used_for_all_images_and_loses_no_pixel():
    x = torch.arange(12.0).view(1, 1, 3, 4).repeat(2, 1, 1, 1)
    y = net.permute(x)
    assert y.shape == x.shape
    close(y[0], y[1], 0)
    assert not torch.equal(y, x)
    close(y[0].flatten().sort().values, x[0].flatten(), 0)
    torch.manual_seed(5)
    close(net.permute(x), y, 0)


def test_images_are_moved_to_the_right_and_to_the_left():
    x = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    close(net.move(x, 1), torch.tensor([[[[0.0, 1.0, 2.0]]]]), 0)
    close(net.move(x, -2, background=-1.0), torch.tensor([[[[3.0, -1.0, -1.0]]]]), 0)


def test_the_distance_is_the_mean_of_the_distances_of_two_rows():
    a = torch.zeros(2, 1, 1, 2)
    b = torch.tensor([[3.0, 4.0], [0.0, 1.0]]).view(2, 1, 1, 2)
    assert net.distance(a, b) == pytest.approx(3.0)


def test_the_share_that_is_left_divides_by_the_change_to_the_image_before():
    still = torch.tensor([[0.0], [2.0], [6.0]])  # to the image before: 6, 2 and 4
    assert net.share_left(still, still + 1) == pytest.approx(1 / 4)
