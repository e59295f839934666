"""Network, rate, augmentation and the measure of luck of notebooks/cifar100_resnet50.py."""

import math

import pytest
import torch
import torchvision
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import rotate

import networks
from loader import definitions
from networks import on_meta, parameters_of
from reproduction import recipe
from reproduction.networks import build
from workbench import checks

cifar = definitions("cifar100_resnet50")
GREY = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25)


@pytest.fixture(autouse=True)
def same_start():
    torch.manual_seed(0)


# ---- the network ---------------------------------------------------------------------------------


def test_parameters_are_those_of_the_repository():
    assert parameters_of(on_meta(cifar.cifar_resnet50)) == 23_705_252
    assert parameters_of(on_meta(lambda: cifar.cifar_resnet50(10))) == 23_705_252 - 90 * 2049


def test_outputs_are_those_of_the_network_that_the_script_trains():
    theirs = build("resnet50", 100).eval()
    ours = cifar.cifar_resnet50().eval()
    checks.transplant(ours, theirs)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        networks.close(ours(x), theirs(x), 1e-5)


def test_the_stem_keeps_every_pixel():
    network = on_meta(cifar.cifar_resnet50)
    assert cifar.sides(network, torch.zeros(1, 3, 32, 32, device="meta")) == [32, 32, 16, 8, 4]
    assert not any(part._forward_hooks for part in network.modules())


def test_the_small_network_halves_three_times_and_runs_on_the_meta_device():
    small = cifar.Small(10, *GREY)
    x = torch.randn(3, 3, 32, 32)
    assert small(x).shape == (3, 10)
    assert small.blocks(small.stem(x)).shape == (3, 32, 4, 4)
    assert small.stem(x).shape == (3, 8, 32, 32)
    blocks = sum(9 * (a + b) * b + a * b + 6 * b for a, b in ((8, 8), (8, 16), (16, 32)))
    assert parameters_of(small) == 9 * 3 * 8 + 2 * 8 + blocks + 33 * 10
    networks.runs_on_meta(
        on_meta(lambda: cifar.Small(7, *(torch.zeros(1, 3, 1, 1),) * 2)), 2, 3, 32, 32
    )
    networks.runs_on_meta(on_meta(cifar.cifar_resnet50), 2, 3, 32, 32)


# ---- the rate ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "epoch, before, behind", [(60, 0.1, 0.02), (120, 0.02, 4e-3), (160, 4e-3, 8e-4)]
)
def test_the_rate_falls_to_a_fifth_with_the_first_step_of_the_epoch(epoch, before, behind):
    assert cifar.rate_at(352 * epoch - 1, 352) == pytest.approx(before)
    assert cifar.rate_at(352 * epoch, 352) == pytest.approx(behind)


def test_the_rate_is_that_of_the_script():
    settings = recipe.Settings("resnet50", "cifar100", epochs=20)
    rates = [recipe.rate(settings, step, 7) for step in range(7 * 20)]
    assert [cifar.rate_at(step, 7, 20) for step in range(7 * 20)] == pytest.approx(rates)


def test_the_rate_rises_within_the_first_epoch_and_falls_at_shares_of_a_short_run():
    assert [cifar.rate_at(step, 4) for step in range(5)] == pytest.approx(
        [0.025, 0.05, 0.075, 0.1, 0.1]
    )
    short = [cifar.rate_at(2 * epoch, 2, 10) for epoch in range(1, 10)]
    assert short == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.02, 4e-3, 4e-3, 8e-4, 8e-4])


def test_training_takes_the_rate_of_each_step_and_asks_after_each_epoch(monkeypatch):
    rates, epochs = [], []
    step = torch.optim.SGD.step

    def watched(self, closure=None):
        (group,) = self.param_groups
        rates.append(group["lr"])
        assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 5e-4)
        return step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    x, y = torch.rand(120, 3, 32, 32), torch.arange(120) % 3
    shown, augment = [], cifar.augment
    monkeypatch.setitem(cifar._namespace, "augment", lambda x: shown.append(len(x)) or augment(x))
    losses = []
    for loss in cifar.train(cifar.Small(3, *GREY), (x, y), 10):
        epochs.append(len(rates))
        losses.append(loss)
    assert rates == pytest.approx([cifar.rate_at(n, 3, 10) for n in range(30)])
    assert epochs == list(range(3, 31, 3)) and len(losses) == 10
    assert shown == [50, 50, 20] * 10


def test_a_part_is_learnt():
    x = F.interpolate(torch.rand(4, 3, 4, 4), 32).repeat(50, 1, 1, 1)
    part = x, torch.arange(4).repeat(50)
    network = cifar.Small(4, *GREY)
    losses = list(cifar.train(network, part, 8))
    assert losses[-1] < losses[0] / 4
    assert losses[0] == pytest.approx(math.log(4), abs=0.7)
    assert cifar.is_right(network, part).double().mean() > 0.9
    assert cifar.is_right(network, (x, part[1] + 1)).sum() == 0


def test_a_halving_block_is_that_of_torchvision_s_resnet():
    theirs = torchvision.models.resnet18().layer2[0].eval()
    ours = cifar.halved(64, 128).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 64, 8, 6)
    with torch.no_grad():
        assert ours(x).equal(theirs(x))


def test_images_are_standardised_in_front_of_the_stem():
    network = cifar.Small(4, *GREY).eval()
    x = torch.rand(2, 3, 32, 32)
    plain = cifar.Small(4, torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)).eval()
    plain.load_state_dict(
        {k: v for k, v in network.state_dict().items() if k not in ("mean", "deviation")},
        strict=False,
    )
    with torch.no_grad():
        networks.close(network(x), plain((x - 0.5) / 0.25))


# ---- augmentation --------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """Have `augment` draw what a test says: flips (0 or 1), shares of 15 degrees, shifts."""

    def set_draws(flip, share, shift=(0, 0)):
        def randint(low, high, size):
            values = (flip,) if len(size) == 1 else shift
            assert all(low <= v < high for v in values)
            values = torch.tensor(values)
            return values if len(size) == 1 else values[:, None]

        monkeypatch.setattr(torch, "randint", randint)
        monkeypatch.setattr(torch, "rand", lambda *size: torch.full(size, (share + 1) / 2))

    return set_draws


def test_with_nothing_drawn_an_image_stays_as_it_is(drawn):
    x = torch.arange(3.0 * 32 * 32).view(1, 3, 32, 32)
    drawn(1, 0)
    assert cifar.augment(x).equal(x)
    drawn(0, 0)
    assert cifar.augment(x).equal(x.flip(3))


@pytest.mark.parametrize("across, down", [(-4, 0), (4, 3), (0, -4), (1, 2)])
def test_a_shift_is_a_cut_out_of_a_margin_of_four(drawn, across, down):
    x = torch.arange(1.0, 1 + 3 * 32 * 32).view(1, 3, 32, 32)
    drawn(1, 0, (across, down))
    cut = F.pad(x, (4, 4, 4, 4))[:, :, 4 + down : 36 + down, 4 + across : 36 + across]
    assert cifar.augment(x).equal(cut)


@pytest.mark.parametrize("share", [-1, -0.4, 0.7, 1])
def test_a_rotation_is_that_of_torchvision(drawn, share):
    x = torch.rand(1, 3, 32, 32)
    drawn(1, share)
    expected = rotate(x, 15 * share, interpolation=InterpolationMode.NEAREST)
    assert (cifar.augment(x) == expected).double().mean() > 0.98  # ties of the nearest pixel


def test_the_largest_angle_is_fifteen_degrees(drawn, monkeypatch):
    seen = []
    grid = F.affine_grid
    monkeypatch.setattr(
        F, "affine_grid", lambda places, *a, **k: seen.append(places) or grid(places, *a, **k)
    )
    for share in (1, -1):
        drawn(1, share)
        cifar.augment(torch.zeros(1, 3, 32, 32))
    angles = [torch.atan2(places[0, 1, 0], places[0, 1, 1]).item() for places in seen]
    assert angles == pytest.approx([math.radians(15), -math.radians(15)], rel=1e-5)


def test_each_image_has_its_own_draw_within_the_bounds(monkeypatch):
    x = torch.rand(1, 3, 32, 32).repeat(200, 1, 1, 1)
    seen = []
    grid = F.affine_grid
    monkeypatch.setattr(
        F, "affine_grid", lambda places, *a, **k: seen.append(places) or grid(places, *a, **k)
    )
    assert cifar.augment(x).shape == x.shape
    (places,) = seen
    angle = torch.atan2(places[:, 1, 0], places[:, 1, 1])
    assert math.radians(13) < angle.max() <= math.radians(15) + 1e-6
    assert -math.radians(15) - 1e-6 <= angle.min() < -math.radians(13)
    shift = (places[:, :, 2] * 16).round()
    assert set(shift.flatten().tolist()) == set(range(-4, 5))
    mirrored = (places[:, 0, 0] < 0).double().mean()
    assert 0.35 < mirrored < 0.65


# ---- luck ----------------------------------------------------------------------------------------


def test_an_epoch_that_is_better_is_ahead_on_all_images_and_there_is_no_luck():
    right = torch.zeros(3, 40).bool()
    right[1] = True
    assert cifar.luck(right, 10, splits=5) == (1, 1)
    assert cifar.luck(right.flip(0)[1:], 10, splits=5) == (1, 1)
    assert cifar.luck(right[:2], 10, splits=5) == (0, 0)  # the last is the best


def test_where_all_epochs_are_equally_good_all_of_the_gain_is_luck():
    right = torch.rand(12, 4000) < 0.5
    same, other = cifar.luck(right, 50, splits=400)
    assert same > 0.08 and abs(other) < 0.025
    more, _ = cifar.luck(right, 500, splits=100)
    assert more < same / 2


def test_the_two_halves_share_no_image():
    right = torch.cat((torch.eye(6).bool(), torch.zeros(1, 6).bool()))
    same, other = cifar.luck(right, 3, splits=30)
    assert same == pytest.approx(1 / 3) and other == 0


def test_chance_of_an_error_is_that_of_a_binomial():
    assert cifar.rounding_of_chance(50, 100) == pytest.approx(5)
    assert cifar.rounding_of_chance(10) == pytest.approx(0.3)


# ---- long runs -----------------------------------------------------------------------------------

RUN = {
    "net": "resnet50",
    "date": "2026-11-28",
    "device": "a GPU",
    "seeds": [
        {"seed": 0, "validation": [0.1, 0.5], "test": 0.75},
        {"seed": 1, "validation": [0.2, 0.6], "test": 0.77},
    ],
}


def test_a_recorded_run_is_a_row_and_a_line_for_each_seed():
    assert cifar.long_run_row(RUN) == (
        "resnet50",
        "2026-11-28",
        "a GPU",
        2,
        "24.00 (23.00 to 25.00)",
    )
    cifar.draw_long_runs([RUN])
    axes = cifar.plt.gca()
    curves = [list(line.get_ydata()) for line in axes.lines]
    assert curves == [[0.1, 0.5], [0.2, 0.6], []]
    assert list(axes.lines[0].get_xdata()) == [1, 2]
    cifar.plt.close("all")
