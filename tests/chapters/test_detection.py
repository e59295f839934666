"""Boxes, suppression, anchors, regions and average precision of notebooks/detection.py."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torchvision import ops
from torchvision.models.detection import _utils as detection_utils
from torchvision.models.detection import anchor_utils, faster_rcnn, roi_heads, rpn

import networks
from loader import definitions
from networks import macs_of, on_meta, parameters_of

detection = definitions("detection")

EACH = {
    "iou": ops.box_iou,
    "giou": ops.generalized_box_iou,
    "diou": ops.distance_box_iou,
    "ciou": ops.complete_box_iou,
}
LOSSES = {
    "giou": ops.generalized_box_iou_loss,
    "diou": ops.distance_box_iou_loss,
    "ciou": ops.complete_box_iou_loss,
}


def some_boxes(n, number=0, room=40, **how):
    """Boxes of sides from 5 to 30, anywhere in a square."""
    torch.manual_seed(number)
    first = room * torch.rand(n, 2, **how)
    return torch.cat((first, first + 5 + 25 * torch.rand(n, 2, **how)), 1)


# ---- boxes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EACH)
def test_a_measure_of_each_box_with_each_is_that_of_torchvision(name):
    a = some_boxes(30, 0, 80)
    b = some_boxes(20, 1, 80)
    assert (ops.box_iou(a, b) == 0).any()
    networks.close(getattr(detection, name)(a[:, None], b), EACH[name](a, b))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_are_those_of_torchvision(name):
    b = some_boxes(60, 3, 60, dtype=torch.float64)
    found = []
    for loss in (lambda a, b: 1 - getattr(detection, name)(a, b), LOSSES[name]):
        a = some_boxes(60, 2, 60, dtype=torch.float64).requires_grad_()
        value = loss(a, b)
        value.sum().backward()
        found.append((value.detach(), a.grad))
    networks.close(found[0][0], found[1][0])
    networks.close(found[0][1], found[1][1])


def test_equal_boxes_measure_one_and_have_a_gradient():
    for name in EACH:
        a = torch.tensor([1.0, 2, 4, 7], requires_grad=True)
        value = getattr(detection, name)(a, torch.tensor([1.0, 2, 4, 7]))
        value.backward()
        networks.close(value.detach(), torch.tensor(1.0))
        assert a.grad.isfinite().all()


def test_boxes_by_hand_have_these_sizes_centres_and_areas():
    a = torch.tensor([1.0, 2, 4, 7])
    b = torch.tensor([2.0, 0, 9, 4])
    assert detection.size(a).tolist() == [3, 5]
    assert detection.centre(a).tolist() == [2.5, 4.5]
    assert detection.area(a) == 15
    assert detection.shared(a, b) == 2 * 2
    assert detection.union(a, b) == 15 + 28 - 4
    assert detection.around(a, b).tolist() == [8, 7]
    assert detection.shared(a, a + 10) == 0


def test_corners_come_back_from_centre_and_size():
    a = some_boxes(5)
    p = torch.cat((detection.centre(a), detection.size(a)), 1)
    networks.close(detection.corners(p), a)
    networks.close(detection.corners(p[0]), a[0])
    logs = torch.cat((p[:, :2], p[:, 2:].log()), 1)
    networks.close(detection.from_logs(logs), a)


def shape_term(a, b):
    """The v of CIoU, from the angles of two diagonals."""
    angles = [torch.atan2(box[2] - box[0], box[3] - box[1]) for box in (a, b)]
    return 4 * (angles[0] - angles[1]) ** 2 / math.pi**2


@pytest.mark.parametrize("name", EACH)
def test_slopes_are_those_of_small_steps(name):
    """Central differences, in a place where every measure changes with all four numbers."""
    measure = getattr(detection, name)
    target = torch.tensor([0.0, 0, 2, 2.5], dtype=torch.float64)
    p = torch.tensor([-0.1, 0.3, 1.5, 1.2], dtype=torch.float64)

    def loss(*change):
        box = detection.corners(p + torch.tensor(change))
        if name == "ciou":  # its weight is a constant
            return 1 - detection.diou(box, target) + weight * shape_term(box, target)
        return 1 - measure(box, target)

    here = detection.corners(p)
    weight = shape_term(here, target)
    weight = weight / (1 - ops.box_iou(here[None], target[None])[0, 0] + weight)
    e = 1e-4
    x = (loss(e, 0, 0, 0) - loss(-e, 0, 0, 0)) / (2 * e)
    y = (loss(0, e, 0, 0) - loss(0, -e, 0, 0)) / (2 * e)
    wide = 1.5 * e, 1.2 * e
    shape = (loss(0, 0, wide[0], -wide[1]) - loss(0, 0, -wide[0], wide[1])) / (2 * e)
    moved, traded = detection.slopes(measure, p, target)
    assert moved == pytest.approx(float((x**2 + y**2) ** 0.5), rel=1e-4)
    assert traded == pytest.approx(abs(float(shape)), rel=1e-4)


def test_each_measure_sees_one_thing_more():
    target = torch.tensor([0.0, 0, 4, 4])
    apart = torch.tensor([-3.0, -1, 2, 2])
    inside = torch.tensor([1.5, 1.2, 2, 2])
    centred = torch.tensor([2.0, 2, 2, 1])
    for number, name in enumerate(EACH):
        measure = getattr(detection, name)
        found = (
            detection.slopes(measure, apart, target)[0],
            detection.slopes(measure, inside, target)[0],
            detection.slopes(measure, centred, target)[1],
        )
        assert [value > 1e-4 for value in found] == [True] * number + [False] * (3 - number)


def test_the_first_push_of_a_centre_is_that_of_small_steps():
    p = torch.tensor([[-3.0, -1, 1, 0.8], [3, 0.2, 2, 2]], dtype=torch.float64)
    target = torch.tensor([[0.0, 0, 2, 1.5], [-1, -1, 1, 1]], dtype=torch.float64)
    e = 1e-5
    for name in ("giou", "diou"):
        measure = getattr(detection, name)
        expected = torch.zeros(2, 2, dtype=torch.float64)
        for axis in (0, 1):
            step = e * torch.eye(4, dtype=torch.float64)[axis]
            ends = [measure(detection.corners(p + s), target) for s in (step, -step)]
            expected[:, axis] = (ends[0] - ends[1]) / (2 * e)
        networks.close(detection.first_push(measure, p, target), expected)


def test_a_pull_takes_three_hundred_steps_at_a_rate_that_falls_to_zero():
    """Half the squared distance as the loss: each step shrinks it by 1 less the rate."""
    start = torch.tensor([[1.0, 2, 3, 4], [0, 1, 1, 5]], dtype=torch.float64)
    target = torch.tensor([[0.0, 0, 1, 1], [2, 1, 1, 2]], dtype=torch.float64)

    def measure(p, target):
        return 1 - (p - target).square().sum(-1) / 2

    found = detection.pull(measure, start, target, rate=0.02, box_of=lambda p: 1 * p)
    left = start - target
    expected = [start]
    for step in range(300):
        left = left * (1 - 0.02 * (1 - step / 300))
        expected.append(target + left)
    networks.close(found, torch.stack(expected))
    assert not found.requires_grad
    boxes = detection.pull(detection.diou, start, target, rate=0.1)
    networks.close(boxes[0], detection.corners(start))
    assert boxes.shape == (301, 2, 4)


def test_medians_are_those_of_each_seed_alone():
    n = detection.STARTS
    first = torch.cat([torch.arange(n), 100 + torch.arange(n)])
    overlaps = (torch.arange(400)[:, None] >= first).float() * 0.9
    assert detection.medians(overlaps, 0.9) == [(n - 1) // 2, 100 + (n - 1) // 2]
    assert detection.medians(overlaps, 0.95) == [math.inf, math.inf]


def test_random_starts_do_not_touch_and_have_the_stated_sizes():
    torch.manual_seed(0)
    boxes, wanted = detection.random_starts(4000)
    assert boxes.shape == wanted.shape == (4000, 4)
    assert (wanted[:, :2] == 0).all()
    assert (detection.shared(detection.corners(boxes), detection.corners(wanted)) == 0).all()
    for p in (boxes, wanted):
        area, ratio = p[:, 2] * p[:, 3], p[:, 2] / p[:, 3]
        for values in (area, ratio):
            assert 0.5 <= values.min() < 0.51 and 1.96 < values.max() <= 2.001
            assert abs(values.log2().mean()) < 0.05  # as often halved as doubled
    distance = boxes[:, :2].norm(dim=1)
    way = boxes[:, :2] / distance[:, None]
    touch = ((boxes[:, 2:] + wanted[:, 2:]) / 2 / way.abs()).amin(1)
    gap = distance - touch
    assert 0.0999 < gap.min() < 0.12 and 1.98 < gap.max() < 2.0001
    assert abs(gap.mean() - 1.05) < 0.05
    assert abs(gap.std() - 1.9 / 12**0.5) < 0.02
    assert (way.mean(0).abs() < 0.05).all()
    assert (abs((way**2).mean(0) - 0.5) < 0.05).all()
    assert abs((way[:, 0] * way[:, 1]).mean()) < 0.05


def test_steps_are_counted_until_the_first_that_is_enough():
    overlaps = torch.tensor([[0.0, 0.95, 0.1, 0.0], [0.9, 0.2, 0.3, 0.0], [0.1, 1.0, 0.89, 0.9]])
    assert detection.steps_until(overlaps, 0.9).tolist() == [1, 0, math.inf, 2]


# ---- suppression ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(8))
def test_nms_is_that_of_torchvision_alone_and_in_each_class(number):
    boxes = some_boxes(80, number) - 10
    scores = torch.rand(80)
    scores[::9] = scores[0]  # equal ones keep their order
    classes = torch.randint(3, (80,))
    for threshold in (0.1, 0.5):
        ours = detection.nms(boxes, scores, threshold)
        assert torch.equal(ours, ops.nms(boxes, scores, threshold))
        both = detection.batched_nms(boxes, scores, classes, threshold)
        assert torch.equal(both, ops.batched_nms(boxes, scores, classes, threshold))
        hard, kept = detection.soft_nms(
            boxes, scores, lambda overlap, t=threshold: (overlap <= t).float(), least=0
        )
        assert torch.equal(hard, ours)
        assert torch.equal(kept, scores[ours])


def test_classes_side_by_side_stay_apart_at_negative_places_too():
    boxes = torch.tensor([[-9.0, -9, -4, -4], [-9, -9, -4, -4]])
    kept = detection.batched_nms(boxes, torch.tensor([0.5, 0.6]), torch.tensor([0, 1]), 0.1)
    assert kept.tolist() == [1, 0]


def test_classes_keep_apart_at_opposite_ends_and_around_zero():
    ends = torch.tensor([[0.0, 0, 2, 2], [8, 8, 10, 10]])
    assert len(detection.batched_nms(ends, torch.rand(2), torch.tensor([1, 0]), 0.1)) == 2
    twice = torch.tensor([[-5.0, -5, 5, 5], [-5, -5, 5, 5]])
    assert len(detection.batched_nms(twice, torch.rand(2), torch.tensor([1, 0]), 0.1)) == 2


def test_of_no_boxes_none_is_kept():
    none, scores = torch.zeros(0, 4), torch.zeros(0)
    assert detection.nms(none, scores, 0.5).tolist() == []
    assert detection.soft_nms(none, scores, detection.linear)[0].tolist() == []


def test_a_box_that_overlaps_exactly_by_the_threshold_stays():
    boxes = torch.tensor([[0.0, 0, 4, 2], [0, 0, 4, 4]])
    assert len(detection.nms(boxes, torch.tensor([0.9, 0.8]), 0.5)) == 2
    assert len(detection.nms(boxes, torch.tensor([0.9, 0.8]), 0.49)) == 1


def soft_by_loops(boxes, scores, fade, least):
    """Soft-NMS with lists: take the best, fade the others, drop those too low."""
    left = dict(enumerate(scores.tolist()))
    found = []
    while left:
        best = max(left, key=lambda i: left[i])
        found.append((best, left.pop(best)))
        for i in list(left):
            overlap = ops.box_iou(boxes[best][None], boxes[i][None])[0, 0].item()
            left[i] *= fade(overlap)
            if left[i] <= least:
                del left[i]
    return found


@pytest.mark.parametrize("name", ["linear", "gaussian"])
def test_soft_nms_is_that_of_a_loop_over_lists(name):
    def by_hand(overlap):
        if name == "linear":
            return 1 - overlap if overlap >= 0.3 else 1.0
        return math.exp(-(overlap**2) / 0.5)

    boxes = some_boxes(40, dtype=torch.float64)
    scores = torch.rand(40, dtype=torch.float64)
    before = scores.clone()
    order, kept = detection.soft_nms(boxes, scores, getattr(detection, name), 0.1)
    expected = soft_by_loops(boxes, scores, by_hand, 0.1)
    assert order.tolist() == [i for i, _ in expected]
    networks.close(kept, torch.tensor([value for _, value in expected], dtype=torch.float64))
    assert torch.equal(scores, before)


def test_soft_nms_drops_what_fades_to_a_thousandth():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4]])
    scores = torch.tensor([0.9, 0.8, 0.5])

    def kept(factor):
        return len(detection.soft_nms(boxes, scores, lambda x: factor + 0 * x)[0])

    assert kept(0.06) == 3  # 0.5 * 0.06 ** 2 is above
    assert kept(0.04) == 2  # and 0.5 * 0.04 ** 2 below


def test_the_fading_of_scores_at_the_threshold():
    overlap = torch.tensor([0.0, 0.29, 0.3, 0.6])
    networks.close(detection.linear(overlap), torch.tensor([1.0, 1.0, 0.7, 0.4]))


# ---- anchors -------------------------------------------------------------------------------------


def test_anchors_are_those_of_torchvision_but_for_rounding():
    shapes = detection.anchor_shapes((32, 100, 256), (0.5, 1, 2))
    library = anchor_utils.AnchorGenerator(((32, 100, 256),), ((0.5, 1.0, 2.0),))
    networks.close(shapes.round(), library.cell_anchors[0])
    networks.close(detection.area(shapes), torch.tensor([32.0, 100, 256]).square().repeat(3))
    grid = library.grid_anchors([[3, 5]], [[torch.tensor(8), torch.tensor(8)]])[0]
    ours = detection.anchor_grid(3, 5, stride=8, shapes=shapes.round())
    assert torch.equal(ours, grid)


@pytest.mark.parametrize("number", range(6))
def test_anchors_get_the_objects_of_torchvisions_matcher(number):
    shapes = detection.anchor_shapes((16, 28), (0.5, 1, 2))
    anchors = detection.anchor_grid(6, 6, stride=8, shapes=shapes)
    objects = some_boxes(5, number, 30)
    ours = detection.assign_anchors(anchors, objects)
    matcher = detection_utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)
    assert torch.equal(ours, matcher(ops.box_iou(objects, anchors)))
    assert {-2, -1} < set(ours.tolist())


def test_an_anchor_at_a_bound_belongs_to_the_upper_kind():
    objects = torch.tensor([[0.0, 0, 10, 10]])
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 7], [0, 0, 10, 3], [0, 0, 10, 2]])
    overlaps = detection.iou(anchors, objects)
    high, low = overlaps[1].item(), overlaps[2].item()
    label = detection.assign_anchors(anchors, objects, low=low, high=high)
    assert label.tolist() == [0, 0, -2, -1]


def test_an_anchor_need_not_be_the_best_from_an_overlap_of_seven_tenths_on():
    objects = torch.tensor([[0.0, 0, 10, 10]])
    anchors = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 7.1], [0, 0, 10, 6.9]])
    assert detection.assign_anchors(anchors, objects).tolist() == [0, 0, -2]


def test_offsets_are_those_of_torchvision_and_come_back():
    boxes = some_boxes(20, 0)
    anchors = some_boxes(20, 1)
    coder = detection_utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
    t = detection.encode(boxes, anchors)
    networks.close(t, coder.encode([boxes], [anchors])[0])
    networks.close(detection.decode(t, anchors), coder.decode(t, [anchors])[:, 0])
    networks.close(detection.decode(t, anchors), boxes)
    networks.close(detection.encode(boxes[0], anchors[0]), t[0])
    networks.close(detection.decode(t[0], anchors[0]), boxes[0])


# ---- regions -------------------------------------------------------------------------------------


def test_parts_of_a_region_are_rounded_outwards_and_end_with_the_map():
    assert [detection.bounds(i, 2, 2, 5, 8) for i in (0, 1)] == [(2, 5), (4, 7)]
    assert [detection.bounds(i, 3, 0, 9, 8) for i in (0, 1, 2)] == [(0, 3), (3, 6), (6, 8)]
    assert detection.bounds(0, 2, -5, 4, 8) == (0, 0)
    assert detection.bounds(1, 2, 9, 4, 8) == (8, 8)


SIDES = [(7, 1 / 16), (2, 1 / 4), (3, 1.0)]


@pytest.mark.parametrize(("side", "scale"), SIDES)
def test_roi_pooling_and_roi_align_are_those_of_torchvision(side, scale):
    boxes = (some_boxes(40, 0, 60) - 15) / (4 * scale)  # some reach out of the map
    boxes = torch.cat((boxes, boxes[:3] - 1000 / scale, boxes[:3].floor().abs() + 0.5))
    torch.manual_seed(1)
    maps = torch.randn(3, 12, 15)
    for how, library, more in (
        (detection.roi_pool, ops.roi_pool, ()),
        (detection.roi_align, ops.roi_align, (2, True)),
    ):
        ours = torch.stack([how(maps, box, side=side, scale=scale) for box in boxes])
        networks.close(ours, library(maps[None], [boxes], side, scale, *more), 2e-5)


def test_roi_align_reads_more_points_if_asked():
    maps = torch.randn(2, 8, 9)
    box = torch.tensor([1.3, 2.1, 6.2, 7.7])
    ours = detection.roi_align(maps, box, side=3, scale=1.0, points=4)
    networks.close(ours[None], ops.roi_align(maps[None], [box[None]], 3, 1.0, 4, True))


def test_a_region_without_area_is_a_cell_for_roi_pooling():
    maps = torch.arange(20.0).view(1, 4, 5)
    box = torch.tensor([[3.0, 2, 1, 0]])  # turned round
    for side in (1, 2):
        ours = detection.roi_pool(maps, box[0], side=side, scale=1.0)
        networks.close(ours[None], ops.roi_pool(maps[None], [box], side))


def test_only_roi_align_has_a_gradient_by_the_region():
    maps = torch.randn(1, 8, 9)
    box = torch.tensor([1.3, 2.1, 6.2, 7.7], requires_grad=True)
    detection.roi_align(maps, box, side=2, scale=1.0).sum().backward()
    assert (box.grad != 0).all()
    assert not detection.roi_pool(maps, box, side=2, scale=1.0).requires_grad


def test_places_outside_the_map_by_more_than_a_cell_have_no_weight():
    places = torch.tensor([-1.1, -1.0, -0.5, 0.25, 2.0, 3.0, 3.1])
    weights = detection.between_cells(places, 3)
    expected = torch.tensor(
        [[0, 0, 0], [1, 0, 0], [1, 0, 0], [0.75, 0.25, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0]]
    )
    networks.close(weights, expected)


def test_grids_and_regions_stay_on_the_device_of_their_inputs():
    grid = detection.anchor_grid(3, 5, stride=8, shapes=torch.empty(6, 4, device="meta"))
    assert grid.is_meta and grid.shape == (90, 4)
    weights = detection.between_cells(torch.empty(7, device="meta"), 5)
    assert weights.is_meta and weights.shape == (7, 5)
    maps = torch.empty(2, 8, 9, device="meta")
    box = torch.empty(4, device="meta")
    found = detection.roi_align(maps, box, side=3, scale=1.0)
    assert found.is_meta and found.shape == (2, 3, 3)


# ---- the two-stage detector ----------------------------------------------------------------------


def reference_head(channels, d, K):
    predictor = faster_rcnn.FastRCNNPredictor(d, K + 1)
    return nn.Sequential(faster_rcnn.TwoMLPHead(channels * 49, d), predictor)


def test_published_heads_have_the_parameters_of_torchvision_and_of_a_sum_by_hand():
    proposal, head = on_meta(detection.RegionProposal), on_meta(detection.RoIHead)
    assert parameters_of(proposal) == parameters_of(on_meta(rpn.RPNHead, 512, 9))
    assert parameters_of(proposal) == (9 * 512 + 1) * 512 + (512 + 1) * 9 * 5
    assert parameters_of(head) == parameters_of(on_meta(reference_head, 512, 4096, 20))
    assert parameters_of(head) == (25088 + 1) * 4096 + 4097 * 4096 + 4097 * 21 * 5
    assert macs_of(proposal, 1, 512, 37, 62) == 37 * 62 * 512 * (9 * 512 + 45)
    assert macs_of(head, 1, 512, 7, 7) == 25088 * 4096 + 4096 * 4096 + 4096 * 105


@pytest.mark.parametrize("part", ["proposal", "head"])
def test_heads_with_the_same_weights_do_what_those_of_torchvision_do(part):
    torch.manual_seed(0)
    if part == "proposal":
        ours, theirs = detection.RegionProposal(8, 3), rpn.RPNHead(8, 3)
        x = torch.randn(2, 8, 5, 7)
        networks.share_weights(ours, theirs)
        expected = [y[0] for y in theirs([x])]
    else:
        ours, theirs = detection.RoIHead(8, d=16, K=4), reference_head(8, 16, 4)
        x = torch.randn(3, 8, 7, 7)
        networks.share_weights(ours, theirs)
        expected = theirs(x)
    for found, wanted in zip(ours(x), expected, strict=True):
        networks.close(found, wanted)


def test_heads_run_forward_and_backward_on_the_meta_device():
    networks.runs_on_meta(on_meta(detection.RegionProposal), 3, 512, 5, 7)
    networks.runs_on_meta(on_meta(detection.RoIHead), 3, 512, 7, 7)


def test_a_head_takes_another_side_and_fits_a_batch_of_regions():
    torch.manual_seed(0)
    head = detection.RoIHead(4, side=3, d=32, K=9)
    x = torch.randn(20, 4, 3, 3)
    networks.learns(nn.Sequential(head, First()), x, 0.01, 60)


class First(nn.Module):
    def forward(self, pair):
        return pair[0]


def test_best_regions_are_cut_off_at_the_border_and_do_not_overlap_much():
    boxes = some_boxes(200, 0, 100) - 10
    scores = torch.rand(200)
    found = detection.best_regions(boxes, scores, H=60, W=90)
    assert found[:, 0::2].min() == 0 and found[:, 0::2].max() == 90
    assert found[:, 1::2].min() == 0 and found[:, 1::2].max() == 60
    limits = torch.tensor([90.0, 60, 90, 60])
    cut = torch.minimum(boxes.clamp(min=0), limits)
    assert torch.equal(found, cut[ops.nms(cut, scores, 0.7)])
    first = detection.best_regions(boxes, scores, H=60, W=90, n=5)
    assert torch.equal(first, found[:5])


def test_three_hundred_regions_are_kept():
    many = some_boxes(700, 0, 2000)
    assert len(detection.best_regions(many, torch.rand(700), H=3000, W=3000)) == 300


class Fixed(nn.Module):
    """A trunk whose map is given."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, image):
        return self.maps


def test_the_detector_finds_the_anchor_that_its_map_names():
    """Channel 0 is 1 at one place; the weights ask for anchor 2 there, a little moved."""
    torch.manual_seed(0)
    shapes = detection.anchor_shapes((20, 30), (0.5, 2))
    maps = torch.randn(1, 8, 4, 6)
    maps[:, 0] = 0
    maps[0, 0, 2, 3] = 1
    network = detection.TwoStage(Fixed(maps), 8, shapes, d=16, K=5)
    with torch.no_grad():
        for p in network.proposal.parameters():
            p.zero_()
        network.proposal.conv.weight[0, 0, 1, 1] = 1
        network.proposal.objectness.weight[2, 0] = 1
        network.proposal.offsets.weight[4 * 2 : 4 * 2 + 4, 0, 0, 0] = torch.tensor(
            [0.1, -0.2, 0.3, 0.0]
        )
    regions, classes, offsets = network(torch.zeros(1, 3, 60, 90))
    anchor = shapes[2] + torch.tensor([48.0, 32, 48, 32])
    expected = detection.decode(torch.tensor([0.1, -0.2, 0.3, 0.0]), anchor)
    networks.close(regions[0], expected)
    assert regions.min() >= 0 and regions[:, 2].max() <= 90 and regions[:, 3].max() <= 60
    assert not regions.requires_grad
    pooled = [detection.roi_align(maps[0], box, side=7, scale=1 / 16) for box in regions]
    for found, wanted in zip((classes, offsets), network.head(torch.stack(pooled)), strict=True):
        networks.close(found, wanted, 1e-4)


def test_odd_images_pass_and_the_map_gets_a_gradient():
    torch.manual_seed(0)
    shapes = detection.anchor_shapes((24,), (0.5, 1, 2))
    network = detection.TwoStage(nn.Conv2d(3, 8, 16, 16), 8, shapes, d=16, K=4)
    regions, classes, offsets = network(torch.randn(1, 3, 70, 105))
    assert classes.shape == (len(regions), 5) and offsets.shape == (len(regions), 20)
    (classes.sum() + offsets.sum()).backward()
    assert network.trunk.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("least", [0.05, 0.2, 0.9])
def test_detections_are_those_of_torchvisions_second_stage(least):
    regions = some_boxes(60, 0, 100) + 500
    classes = 3 * torch.randn(60, 5)
    offsets = 0.2 * torch.randn(60, 20)
    stage = roi_heads.RoIHeads(
        *[None] * 3, 0.5, 0.5, 512, 0.25, (1.0, 1.0, 1.0, 1.0), least, 0.5, 1000
    )
    expected = stage.postprocess_detections(classes, offsets, [regions], [(2000, 2000)])
    found = detection.detections(regions, classes, offsets, least)
    for ours, theirs in zip(found, (part[0] for part in expected), strict=True):
        networks.close(ours, theirs)
    assert len(found[0]) > 0


def test_scores_down_to_a_twentieth_are_kept():
    regions = some_boxes(2)
    classes = torch.tensor([[0.94, 0.06], [0.96, 0.04]]).log()
    boxes, scores, kind = detection.detections(regions, classes, torch.zeros(2, 8))
    networks.close(boxes, regions[:1])
    networks.close(scores, torch.tensor([0.06]))
    assert kind.tolist() == [1]


# ---- average precision ---------------------------------------------------------------------------


def test_three_averages_of_six_detections_by_hand():
    right = torch.tensor([True, False, True, True, False, False])
    precision, recall = detection.precision_recall(right, 4)
    assert precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4, 3 / 5, 1 / 2])
    assert recall.tolist() == [0.25, 0.25, 0.5, 0.75, 0.75, 0.75]
    eleven = detection.at_points(precision, recall, detection.ELEVEN)
    assert eleven == pytest.approx((3 + 5 * 0.75) / 11)
    assert detection.all_points(precision, recall) == pytest.approx(0.625)
    coco = detection.at_points(precision, recall, detection.HUNDRED_ONE)
    assert coco == pytest.approx((26 + 50 * 0.75) / 101)


def test_averages_of_all_right_and_of_no_detections():
    right = torch.tensor([True] * 3)
    curve = detection.precision_recall(right, 3)
    none = detection.precision_recall(right[:0], 3)
    for points in (detection.ELEVEN, detection.HUNDRED_ONE):
        assert detection.at_points(*curve, points) == 1
        assert detection.at_points(*none, points) == 0
    assert detection.all_points(*curve) == pytest.approx(1)
    assert detection.all_points(*none) == 0


def test_points_and_thresholds_are_those_of_the_rules():
    assert detection.ELEVEN.tolist() == [i / 10 for i in range(11)]
    assert detection.HUNDRED_ONE.tolist() == np.linspace(0, 1, 101).tolist()
    assert pytest.approx(np.linspace(0.5, 0.95, 10)) == detection.IOUS


def picture(number, kinds=1):
    """Objects, each found up to three times a little aside, crowds, tied scores; as lists of parts."""
    rng = np.random.default_rng(number)
    first = rng.uniform(0, 60, (rng.integers(0, 6), 2))
    objects = np.concatenate([first, first + rng.uniform(8, 40, first.shape)], 1)
    near = objects.repeat(3, 0)
    near = (near + rng.uniform(-3, 3, near.shape))[rng.random(len(near)) < 0.6]
    first = rng.uniform(0, 60, (rng.integers(0, 4), 2))
    far = np.concatenate([first, first + rng.uniform(5, 30, first.shape)], 1)
    boxes = np.concatenate([near, far])[rng.permutation(len(near) + len(far))]
    scores = rng.integers(1, 6, len(boxes)) / 8
    crowd = rng.random(len(objects)) < 0.25
    return detection.Picture(*map(torch.from_numpy, (boxes, scores, objects, crowd)))


def reference(classes):
    """pycocotools on the same, put together here and not by the notebook; also AP at 0.5."""
    datasets = []
    for found in (False, True):
        entries = []
        for k, pictures in enumerate(classes, 1):
            for i, p in enumerate(pictures, 1):
                for j, (x1, y1, x2, y2) in enumerate((p.boxes if found else p.objects).tolist()):
                    w, h = x2 - x1, y2 - y1
                    entry = {
                        "id": len(entries) + 1,
                        "image_id": i,
                        "category_id": k,
                        "bbox": [x1, y1, w, h],
                    }
                    entry |= {"area": w * h, "iscrowd": int(not found and p.crowd[j])}
                    entry |= {"score": float(p.scores[j])} if found else {}
                    entries.append(entry)
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(1, len(classes[0]) + 1)],
            "categories": [{"id": k} for k in range(1, len(classes) + 1)],
            "annotations": entries,
        }
        datasets.append(coco)
    with contextlib.redirect_stdout(io.StringIO()):
        for coco in datasets:
            coco.createIndex()
        run = COCOeval(*datasets, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats[0], run.stats[1]


@pytest.mark.parametrize("number", range(10))
def test_average_precision_is_that_of_pycocotools(number):
    classes = [[picture(100 * number + 10 * k + i) for i in range(5)] for k in range(3)]
    expected, at_half = reference(classes)
    assert detection.coco_ap(classes) == pytest.approx(expected, abs=1e-6)
    halves = [detection.average_precision(c, 0.5) for c in classes]
    assert np.nanmean(halves) == pytest.approx(at_half, abs=1e-6)
    assert detection.pycocotools_ap(classes) == pytest.approx(expected, abs=1e-12)


def test_of_more_than_a_hundred_detections_the_best_hundred_count():
    objects = some_boxes(1, dtype=torch.float64)
    boxes = some_boxes(120, 1, dtype=torch.float64) + 500
    for rank in (98, 99, 100, 101):
        boxes = boxes.clone()
        boxes[100:] = boxes[0]
        boxes[rank] = objects[0]
        scores = torch.linspace(1, 0.1, 120)
        one = detection.Picture(boxes, scores, objects, torch.tensor([False]))
        expected, _ = reference([[one]])
        assert detection.coco_ap([[one]]) == pytest.approx(expected, abs=1e-6)
        boxes[rank] += 500


def special(**parts):
    none = torch.zeros(0, 4, dtype=torch.float64)
    empty = detection.Picture(none, torch.zeros(0), none, torch.zeros(0, dtype=torch.bool))
    return empty._replace(**parts)


def test_without_objects_there_is_no_average_and_without_detections_it_is_zero():
    boxes = some_boxes(3, dtype=torch.float64)
    no_objects = special(boxes=boxes, scores=torch.rand(3))
    crowds = special(
        boxes=boxes, scores=torch.rand(3), objects=boxes, crowd=torch.ones(3, dtype=torch.bool)
    )
    for p in (special(), no_objects, crowds):
        assert math.isnan(detection.average_precision([p], 0.5))
        assert math.isnan(detection.coco_ap([[p]]))
        assert reference([[p]])[0] == detection.pycocotools_ap([[p]]) == -1
    unfound = special(objects=boxes, crowd=torch.zeros(3, dtype=torch.bool))
    assert detection.coco_ap([[unfound]]) == reference([[unfound]])[0] == 0
    assert detection.coco_ap([[unfound], [no_objects]]) == 0  # the second class does not count


def test_rules_of_who_finds_whom_by_hand():
    plain = torch.tensor([False, False])
    overlaps = torch.tensor([[0.8, 0.5], [0.7, 0.6], [0.9, 0.9]])
    assert detection.assign(overlaps, plain, 0.5) == [0, 1, -1]
    assert detection.assign(overlaps, plain, 0.61) == [0, -1, 1]
    assert detection.assign_voc(overlaps[:2], 0.5) == [0, -1]
    assert detection.assign_voc(torch.tensor([[0.2, 0.4], [0.1, 0.5]]), 0.5) == [-1, -1]
    assert detection.assign_voc(torch.tensor([[0.2, 0.6], [0.5, 0.1]]), 0.5) == [1, 0]
    assert detection.assign(overlaps, torch.tensor([True, False]), 0.5) == [1, 0, 0]
    ties = torch.tensor([[0.75, 0.75]])
    assert detection.assign(ties, plain, 0.75) == [1]  # as pycocotools: the later one
    assert detection.assign(torch.zeros(2, 0), plain[:0], 0.5) == [-1, -1]


def test_a_box_inside_a_crowd_overlaps_it_wholly():
    boxes = torch.tensor([[1.0, 1, 3, 3], [9, 0, 11, 2]])
    objects = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    found = detection.overlaps_of(boxes, objects, torch.tensor([True, False]))
    networks.close(found, torch.tensor([[1.0, 0.04], [0.5, 2 / 102]]))


def test_random_cases_have_what_the_rules_differ_by():
    torch.manual_seed(0)
    made = [detection.random_picture() for _ in range(400)]
    numbers = [len(p.objects) for p in made]
    assert set(numbers) == {0, 1, 2, 3, 4}
    strangers = {len(p.boxes) for p in made if len(p.objects) == 0}
    assert strangers == {0, 1, 2, 3}
    boxes = torch.cat([p.boxes for p in made])
    objects = torch.cat([p.objects for p in made])
    assert objects.dtype == torch.float64
    sides = detection.size(objects)
    assert 10 <= sides.min() < 10.5 and 39.5 < sides.max() <= 40
    assert objects[:, :2].min() < 1 and 79 < objects[:, :2].max() <= 80
    assert detection.size(boxes).min() > 5
    scores = torch.cat([p.scores for p in made])
    assert {round(10 * s) for s in scores.tolist()} == set(range(1, 10))
    crowd = torch.cat([p.crowd for p in made])
    assert abs(crowd.double().mean() - 0.2) < 0.04
    near = 0
    for p in made:
        if len(p.objects):
            gap = (p.boxes[:, None] - p.objects).abs().amax(2)
            near += int((gap.amin(1) <= 2).sum()) if len(gap) else 0
            assert (gap.amin(1) > 1.9).any() or len(gap) <= 2 * len(p.objects)
    assert abs(near / len(objects) - 2 * 0.6) < 0.1
    assert all(len(p.boxes) == len(p.scores) for p in made)
