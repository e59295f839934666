"""The steps of TorchVision's recipe against the library's, and what loading and measures compute."""

import io
import math
import types

import pytest
import torch
import torchvision
from PIL import Image
from timm.data.distributed_sampler import RepeatAugSampler
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.ops._utils import split_normalization_params
from torchvision.transforms import v2

import networks
from loader import definitions

recipes = definitions("imagenet_recipes")


def picture(H: int = 40, W: int = 32):
    """Random levels 0..255, smooth enough that every operation changes them."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(1, 3, 5, 4, generator=generator)
    large = F.interpolate(small, (H, W), mode="bilinear")[0]
    return (20 + 210 * large).byte()


# ---- the table and the rate ------------------------------------------------------------------------


def test_the_table_begins_and_ends_with_the_accuracies_of_the_library():
    weights = torchvision.models.ResNet50_Weights
    ends = (weights.IMAGENET1K_V1, weights.IMAGENET1K_V2)
    for step, weight in zip((recipes.STEPS[0], recipes.STEPS[-1]), ends, strict=True):
        assert step[1] == weight.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    accuracies = [step[1] for step in recipes.STEPS]
    assert len(accuracies) == 13 and accuracies == sorted(accuracies)


@pytest.mark.parametrize(("peak", "warmup", "epochs"), [(0.5, 5, 600), (0.3, 3, 17)])
def test_the_rate_is_that_of_the_library_in_every_epoch(peak, warmup, epochs):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warmup)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs - warmup)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [rising, falling], [warmup])
    for epoch in range(epochs):
        expected = optimizer.param_groups[0]["lr"]
        found = recipes.rate(epoch, peak=peak, warmup=warmup, epochs=epochs)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
        optimizer.step()
        both.step()


def test_the_rates_have_the_published_values():
    assert recipes.rate(0) == pytest.approx(0.005)
    assert recipes.rate(5) == 0.5
    found = [recipes.old_rate(epoch) for epoch in (0, 29, 30, 59, 60, 89)]
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


# ---- what is done to pictures ----------------------------------------------------------------------


def test_every_operation_at_every_strength_is_that_of_the_library():
    library = v2.TrivialAugmentWide()
    space = v2.TrivialAugmentWide._AUGMENTATION_SPACE
    assert list(recipes.TRIVIAL) == list(space)
    x = picture()
    for name, (strengths, signed, operation) in recipes.TRIVIAL.items():
        expected, expected_sign = space[name]
        theirs = expected(31, *x.shape[1:])
        assert signed == expected_sign
        assert (strengths is None) == (theirs is None)
        drawn = [0.0] if theirs is None else theirs.tolist()
        ours = [0.0] if strengths is None else strengths.tolist()
        for mine, strength in zip(ours, drawn, strict=True):
            for sign in (1, -1) if signed else (1,):
                wanted = library._apply_image_or_video_transform(
                    x, name, sign * strength, library.interpolation, library._fill
                )
                assert torch.equal(operation(x, sign * mine), wanted), (name, strength)


def test_one_operation_is_drawn_as_the_library_draws_it():
    library = v2.TrivialAugmentWide()
    x = picture()
    for number in range(120):
        torch.manual_seed(number)
        ours = recipes.trivial_augment(x)
        torch.manual_seed(number)
        assert torch.equal(ours, library(x))


@pytest.mark.parametrize("shape", [(3, 40, 32), (1, 16, 16), (2, 2, 3), (3, 1, 100)])
def test_erasing_draws_the_boxes_of_the_library(shape):
    library = v2.RandomErasing(p=0.6)
    x = 1 + torch.rand(shape)
    for number in range(80):
        torch.manual_seed(number)
        ours = recipes.random_erase(x[None], p=0.6)[0]
        torch.manual_seed(number)
        assert torch.equal(ours, library(x)), number


def test_erasing_changes_one_picture_of_ten_in_a_copy():
    torch.manual_seed(0)
    x = torch.ones(2000, 1, 6, 6)
    touched = (recipes.random_erase(x) == 0).flatten(1).any(1).float().mean()
    assert 0.07 < touched < 0.13 and (x == 1).all()


def test_smoothing_is_that_of_cross_entropy_and_keeps_the_sum():
    torch.manual_seed(0)
    logits = torch.randn(6, 7)
    y = torch.randint(7, (6,))
    rows = F.one_hot(y, 7).float()
    for amount in (0.0, 0.1, 0.4):
        soft = recipes.smoothed(rows, amount)
        torch.testing.assert_close(soft.sum(1), torch.ones(6))
        expected = F.cross_entropy(logits, y, label_smoothing=amount)
        networks.close(recipes.soft_cross_entropy(logits, soft), expected)
    by_hand = torch.tensor([[0.025, 0.925, 0.025, 0.025]])
    networks.close(recipes.smoothed(torch.tensor([[0.0, 1, 0, 0]])), by_hand)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
@pytest.mark.parametrize("alpha", [None, 0.7])
def test_pairs_are_mixed_as_the_library_mixes_them(name, alpha):
    usual = {"mixup": 0.2, "cutmix": 1.0}[name]
    kind = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[name]
    library = kind(alpha=alpha or usual, num_classes=5)
    mix = getattr(recipes, f"random_{name}")
    x = torch.rand(5, 3, 12, 20)
    how = {"alpha": alpha} if alpha else {}
    for number in range(60):
        torch.manual_seed(number)
        found = mix(x, torch.eye(5), **how)
        torch.manual_seed(number)
        for ours, theirs in zip(found, library(x, torch.arange(5)), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_the_targets_of_cutmix_are_shares_of_pixels():
    flags = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 10, 14)
    for centre in ((0, 0), (5, 7), (9, 13), (2, 12)):
        mixed, targets = recipes.cutmix(flags, torch.eye(2), 0.4, centre)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets[:, 1])
        torch.testing.assert_close(targets.sum(1), torch.ones(2))
    whole, targets = recipes.cutmix(flags, torch.eye(2), 1.0, (5, 7))
    assert torch.equal(whole, flags) and torch.equal(targets, torch.eye(2))


def test_a_small_alpha_draws_shares_near_the_ends():
    torch.manual_seed(0)
    shares = {a: torch.tensor([recipes.draw_share(a) for _ in range(400)]) for a in (0.2, 1.0)}
    middle = {a: ((s > 0.25) & (s < 0.75)).float().mean() for a, s in shares.items()}
    assert 0.4 < middle[1.0] < 0.6 and middle[0.2] < 0.3


# ---- weights ---------------------------------------------------------------------------------------


def test_norms_are_split_off_as_the_library_does():
    network = networks.on_meta(torchvision.models.resnet50)
    ours = recipes.split_norms(network)
    for found, expected in zip(ours, split_normalization_params(network), strict=True):
        assert [id(p) for p in found] == [id(p) for p in expected]
    assert sum(p.numel() for p in ours[0]) == 53_120


def test_the_moving_average_is_that_of_the_library():
    torch.manual_seed(0)
    network = recipes.SmallNetwork(1, width=4)
    library = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    library.update_parameters(network)
    ours = recipes.MovingAverage(network, 0.8)
    for _ in range(4):
        network.train()(torch.randn(3, 1, 8, 8))
        with torch.no_grad():
            for p in network.parameters():
                p += torch.randn(p.shape)
        library.update_parameters(network)
        ours.update(network)
    for name, expected in library.module.state_dict().items():
        if expected.is_floating_point():
            networks.close(ours.network.state_dict()[name], expected, name=name)
    assert not any(
        torch.equal(a, b)
        for a, b in zip(ours.network.parameters(), network.parameters(), strict=True)
    )


def test_the_decay_of_an_update_is_that_of_the_training_script():
    found = recipes.decay_of_update(0.99998, batch=1024, every=32, epochs=600)
    assert found == pytest.approx(1 - 2e-5 * 1024 * 32 / 600)
    assert recipes.decay_of_update(0.5, batch=1024, every=32, epochs=600) == 0


# ---- crops and the order of pictures ---------------------------------------------------------------


@pytest.mark.parametrize("size", [(375, 500), (60, 60), (100, 130)])
def test_crops_have_the_sizes_that_the_library_draws(size):
    library = v2.RandomResizedCrop(10)
    for number in range(80):
        torch.manual_seed(number)
        ours = recipes.draw_crop(*size)
        torch.manual_seed(number)
        drawn = library.make_params([torch.empty(3, *size)])
        assert ours == (drawn["height"], drawn["width"])


def test_a_crop_that_never_fits_is_the_whole_picture():
    torch.manual_seed(0)
    assert recipes.draw_crop(2, 4000) == (2, 4000)


def test_scales_say_how_much_larger_a_thing_gets():
    assert recipes.test_scale(375, 500, 256) == 256 / 375
    assert recipes.test_scale(500, 250, 100) == 0.4
    torch.manual_seed(3)
    h, w = recipes.draw_crop(375, 500)
    torch.manual_seed(3)
    assert recipes.training_scale(375, 500, 224) == pytest.approx((224 * 224 / (h * w)) ** 0.5)


@pytest.mark.parametrize(("times", "gpus", "n"), [(4, 8, 4096), (3, 2, 512), (2, 4, 256)])
def test_copies_of_a_picture_go_to_the_gpus_to_which_timm_sends_them(times, gpus, n):
    for epoch in (0, 5):
        for rank in range(gpus):
            sampler = RepeatAugSampler(range(n), gpus, rank, num_repeats=times)
            sampler.set_epoch(epoch)
            found = recipes.repeated(n, times=times, gpus=gpus, rank=rank, epoch=epoch)
            assert found.tolist() == list(sampler)


# ---- networks and measures -------------------------------------------------------------------------


def test_the_small_networks_have_the_shapes_and_counts_by_hand():
    network = networks.on_meta(recipes.SmallNetwork, 3, width=4)
    convolutions = 9 * (3 * 4 + 4 * 8 + 8 * 16) + 2 * (4 + 8 + 16)
    assert networks.parameters_of(network) == convolutions + 16 * 10 + 10
    assert networks.runs_on_meta(network, 3, 3, 16, 12).shape == (3, 10)
    layers = networks.layers_of(network, 1, 3, 16, 12, kinds=(nn.Conv2d,))
    assert [layer.split("gives ")[1] for layer in layers] == [
        "(1, 4, 16, 12)",
        "(1, 8, 8, 6)",
        "(1, 16, 4, 3)",
    ]
    usual = networks.on_meta(recipes.SmallNetwork, 1)
    assert usual.classifier.in_features == 48
    perceptron = networks.on_meta(recipes.Perceptron)
    assert networks.parameters_of(perceptron) == 768 * 128 + 128 + 1280 + 10
    assert networks.runs_on_meta(perceptron, 2, 3, 16, 16).shape == (2, 10)


def test_each_convolution_has_a_norm_and_a_relu():
    block = recipes.conv_norm(2, 5, 2)
    assert [type(layer) for layer in block] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert block[0].bias is None
    block[1].eval()
    x = torch.randn(2, 2, 6, 6)
    expected = F.conv2d(x, block[0].weight, stride=2, padding=1).relu()
    networks.close(block(x), expected / (1 + 1e-5) ** 0.5)


def test_the_calibration_error_by_hand_and_at_the_edges():
    p = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.1, 0.9], [1.0, 0.0]])
    # 0.7 to 0.8: confidence 1.5, right 1; 0.9: 0.9 and 0; 1.0 falls into the last range too
    found = recipes.calibration_error(p, torch.tensor([0, 1, 0, 0]))
    assert found == pytest.approx((0.5 + abs(0.9 + 1.0 - 1)) / 4)
    assert recipes.calibration_error(torch.eye(3), torch.arange(3)) == 0
    halves = torch.tensor([[0.6, 0.4], [0.9, 0.1]])
    apart = recipes.calibration_error(halves, torch.tensor([0, 1]))
    assert apart == pytest.approx((0.4 + 0.9) / 2)
    assert recipes.calibration_error(halves, torch.tensor([0, 1]), bins=2) == pytest.approx(0.25)


def test_a_square_is_hidden_in_each_picture_at_the_same_place_each_time():
    x = torch.ones(30, 2, 9, 9)
    hidden = recipes.hide(x, 4)
    assert (x == 1).all() and torch.equal(hidden, recipes.hide(x, 4))
    empty = hidden == 0
    assert (empty.flatten(1).sum(1) == 2 * 16).all()
    rows = empty[:, 0].any(2)
    assert (rows.sum(1) == 4).all()  # a square, whole
    assert rows.any(0).all() and empty[:, 0].any(1).any(0).all()  # it reaches each border
    assert torch.equal(recipes.hide(x, 0), x)


def test_what_is_trained_on():
    x = torch.rand(4, 1, 16, 16)
    targets = torch.eye(10)[:4]
    assert recipes.unchanged(x, targets) == (x, targets)
    soft = recipes.softened(x, targets)
    assert soft[0] is x and torch.equal(soft[1], recipes.smoothed(targets, 0.1))
    torch.testing.assert_close(recipes.softened(x, targets, 0.3)[1], recipes.smoothed(targets, 0.3))
    torch.manual_seed(1)
    found = recipes.erased(x, targets)
    torch.manual_seed(1)
    assert torch.equal(found[0], recipes.random_erase(x, 0.1)) and found[1] is targets


def test_training_fits_a_batch_and_uses_what_the_change_returns():
    torch.manual_seed(0)
    x = torch.randn(50, 1, 8, 8)
    y = torch.randint(10, (50,))
    network = recipes.SmallNetwork(1)
    first = F.cross_entropy(network(x), y)
    recipes.train(network.eval(), (x, y), epochs=40)
    assert network.training
    assert F.cross_entropy(network(x), y) < first / 10
    seen = []

    def other(x, targets):
        seen.append((len(x), targets.shape))
        return x, targets.roll(1, 1)  # the next class

    torch.manual_seed(0)
    network = recipes.SmallNetwork(1)
    recipes.train(network, (x, y), other, epochs=40, rate=0.1)
    assert (network(x).argmax(1) == (y + 1) % 10).float().mean() > 0.9
    assert seen == [(50, (50, 10))] * 40


def test_the_average_follows_and_its_losses_are_those_of_the_validation():
    torch.manual_seed(0)
    x = torch.randn(100, 1, 8, 8)
    y = torch.randint(2, (100,))
    losses = {}
    for decay in (0.0, 0.9):
        torch.manual_seed(1)
        network = recipes.SmallNetwork(1)
        losses[decay] = recipes.follow(network, (x, y), (x, y), decay=decay)
    assert len(losses[0.0][0]) == len(losses[0.0][1]) == 2  # steps 27 and 30 of 30
    assert losses[0.0][0] == pytest.approx(losses[0.0][1], rel=1e-5)  # nothing is remembered
    assert losses[0.9][0] == pytest.approx(losses[0.0][0], rel=1e-5)  # the same training
    assert abs(losses[0.9][1][0] - losses[0.9][0][0]) > 1e-3
    logits = network.eval()(x)
    assert F.cross_entropy(logits, y).item() == pytest.approx(losses[0.9][0][-1], rel=1e-5)
    assert losses[0.9][0][-1] < 0.69


def test_jumps_are_the_deviation_of_the_changes():
    assert recipes.jumps([1.0, 2.0, 3.0, 4.0]) == 0
    assert recipes.jumps([0.0, 1.0, 0.0]) == pytest.approx(math.sqrt(2))


# ---- loading ---------------------------------------------------------------------------------------


def jpeg(size=(50, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 10, 10)).save(file, "JPEG")
    return file.getvalue()


def test_the_stages_turn_a_file_into_a_normed_tensor():
    data = jpeg()
    assert recipes.decoded(data).size == (50, 30) and recipes.decoded(data).mode == "RGB"
    torch.manual_seed(0)
    x = data
    for name, stage in recipes.LOADING.items():
        if name != "TrivialAugment":  # the one that changes the colour
            x = stage(x)
    assert x.shape == (3, 176, 176) and x.dtype == torch.float32
    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    mean, std = (torch.tensor(v) for v in (weights.transforms().mean, weights.transforms().std))
    colour = (torch.tensor([200, 10, 10]) / 255 - mean) / std
    networks.close(x.mean((1, 2)), colour, 0.03)


def test_a_photograph_is_stored_in_the_size_asked_for():
    data = recipes.jpeg(picture(60, 80), (40, 20))
    found = Image.open(io.BytesIO(data))
    assert (found.format, found.size) == ("JPEG", (40, 20))
    flat = torch.tensor([200, 90, 10], dtype=torch.uint8).view(3, 1, 1).expand(3, 30, 30)
    stored = v2.functional.pil_to_tensor(recipes.decoded(recipes.jpeg(flat, (20, 20))))
    assert (stored.int() - flat[:, :20, :20].int()).abs().max() <= 2
    grey = io.BytesIO()
    Image.new("L", (9, 9)).save(grey, "JPEG")
    assert recipes.decoded(grey.getvalue()).mode == recipes.reduced(grey.getvalue()).mode == "RGB"


def test_a_large_file_can_be_decoded_at_a_half_or_a_quarter_and_a_small_one_whole():
    x = picture(960, 1280)
    sizes = {(160, 120): 1, (640, 480): 2, (1280, 960): 4}
    for (W, H), divisor in sizes.items():
        data = recipes.jpeg(x, (W, H))
        assert recipes.DECODERS["whole"](data).size == (W, H)
        small = recipes.DECODERS["reduced"](data)
        assert small.size == (W // divisor, H // divisor)
    whole = v2.functional.pil_to_tensor(recipes.decoded(data)).float()
    means = F.avg_pool2d(whole, 4)
    assert (v2.functional.pil_to_tensor(small).float() - means).abs().mean() < 2


def test_the_seconds_of_decoding_are_those_of_one_picture(monkeypatch):
    now = [3.0]
    fake = types.SimpleNamespace(process_time=lambda: now[0])
    monkeypatch.setitem(recipes._namespace, "time", fake)
    seen = []

    def slow(data):
        now[0] += 0.5
        seen.append(data)

    assert recipes.seconds_of_decoding(slow, [b"a", b"b"], 3) == 0.5
    assert seen == [b"a", b"b"] * 3


def test_the_seconds_of_the_stages_are_means_over_the_pictures(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(recipes._namespace["time"], "process_time", lambda: next(clock))
    found = recipes.seconds_of_stages([jpeg(), jpeg()], 3)
    assert found == dict.fromkeys(recipes.LOADING, 1.0)


def test_each_stage_gets_what_the_one_before_left(monkeypatch):
    seen = []
    stages = {name: lambda x, name=name: seen.append(x) or f"{x}{name}" for name in "abc"}
    monkeypatch.setitem(recipes._namespace, "LOADING", stages)
    recipes.seconds_of_stages(["1", "2"], 1)
    assert seen == ["1", "1a", "1ab", "2", "2a", "2ab"]


def test_four_pictures_take_the_time_of_a_batch(monkeypatch):
    made = []
    slow = recipes.Slow

    def watched(n, seconds):
        made.append(seconds)
        return slow(n, 0.0)

    monkeypatch.setitem(recipes._namespace, "Slow", watched)
    recipes.step_seconds(0, load=0.8, compute=0.0, steps=1)
    assert made == [0.2]


def test_a_step_takes_what_the_formula_says():
    alone = recipes.step_seconds(0, load=0.008, compute=0.01, steps=5)
    assert 0.017 < alone < 1  # how much above it, is the machine's load
    pictures = recipes.Slow(7, 0.0)
    assert len(pictures) == 7 and pictures[3] == 3


@pytest.mark.parametrize("steps", [1, 4])
def test_as_many_batches_are_loaded_as_computed_with(monkeypatch, steps):
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    clock = types.SimpleNamespace(sleep=sleep, perf_counter=lambda: now[0])
    monkeypatch.setitem(recipes._namespace, "time", clock)
    found = recipes.step_seconds(0, load=0.8, compute=0.3, steps=steps)
    assert found == pytest.approx(0.8 + 0.3)


def test_the_second_step_of_the_training_is_timed(monkeypatch):
    network = nn.Conv2d(3, 2, 3, stride=8)
    models = types.SimpleNamespace(resnet50=lambda: network)
    monkeypatch.setitem(recipes._namespace, "torchvision", types.SimpleNamespace(models=models))
    clock = iter([0, 100, 107])  # the start of the first step, of the second, its end
    fake = types.SimpleNamespace(process_time=lambda: next(clock))
    monkeypatch.setitem(recipes._namespace, "time", fake)
    before = network.weight.clone()
    assert recipes.seconds_of_training() == 7
    assert not torch.equal(network.weight, before)
