"""The networks of notebooks/yolov5.py."""

import math
import pickle
import urllib.error

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import ops

import networks
from detectors import Answers, scenes_of
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

net = definitions("yolov5")

PUBLISHED = {  # parameters, GFLOPs at 640 as the project's page has them
    "n": (1_872_157, 4.5),
    "s": (7_235_389, 16.5),
    "m": (21_190_557, 49.0),
    "l": (46_563_709, 109.1),
    "x": (86_749_405, 205.7),
}
FOLDED = {"n": 1_867_405, "s": 7_225_885}  # batch norm within the convolutions


def build(name):
    return net.YOLOv5(net.scaled(net.BASE, *net.MULTIPLES[name]))


def narrow(K=3, levels=3):
    return net.YOLOv5(net.Size((4, 8, 12, 16, 24), (1, 2, 1, 0), 2), K, levels=levels)


def randomised(network):
    torch.manual_seed(0)
    networks.share_weights(network, network)
    return network.eval()


# ---- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes_have_the_published_counts(name):
    parameters, billions = PUBLISHED[name]
    network = on_meta(build, name)
    assert parameters_of(network) == parameters
    assert 0.99 < 2 * macs_of(network, 1, 3, 640, 640) / 1e9 / billions < 1.01


@pytest.mark.parametrize("name", FOLDED)
def test_batch_norm_within_the_convolutions_leaves_what_the_logs_show(name):
    network = on_meta(build, name)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert parameters_of(network) - sum(m.num_features for m in norms) == FOLDED[name]
    assert {m.eps for m in norms} == {1e-3}


def test_the_multiples_round_blocks_and_round_channels_up():
    base = net.Size((10, 16, 40), (1, 3, 9), 6)
    assert net.scaled(base, 1 / 3, 0.5) == net.Size((8, 8, 24), (1, 1, 3), 2)
    assert net.scaled(base, 4 / 3, 1.25, multiple=4) == net.Size((16, 20, 52), (1, 4, 12), 8)
    assert list(net.MULTIPLES) == list("nsmlx")


def layer(part, x):
    """A layer of YOLOv5 written out."""
    conv, norm, activation = part
    size, stride = conv.kernel_size[0], conv.stride[0]
    padding = {1: 0, 3: 1, 6: 2}[size]
    x = F.conv2d(x, conv.weight, None, stride, padding)
    statistics = norm.running_mean, norm.running_var
    x = F.batch_norm(x, *statistics, norm.weight, norm.bias, eps=1e-3)
    assert isinstance(activation, nn.SiLU)
    return x * x.sigmoid()


def written_c3(block, x, *, residual):
    y = layer(block.first, x)
    for part in block.blocks:
        z = layer(part.spread, layer(part.mix, y))
        y = y + z if residual else z
    return layer(block.fuse, torch.cat((y, layer(block.second, x)), 1))


def test_a_c3_block_is_its_three_convolutions_and_a_row_written_out():
    x = torch.randn(2, 6, 5, 7)
    for residual, kind in ((False, net.Bottleneck), (True, net.Residual)):
        block = randomised(net.C3(6, 10, 2, block=kind))
        close(block(x), written_c3(block, x, residual=residual))
        assert [part[0].out_channels for part in (block.first, block.second)] == [5, 5]
        assert block.first[0].kernel_size == block.fuse[0].kernel_size == (1, 1)
    assert type(net.C3(6, 10, 1).blocks[0]) is net.Bottleneck


def test_the_fast_pyramid_equals_the_pyramid_of_5_9_and_13():
    slow, fast = randomised(net.SPP(8)), net.SPPF(8).eval()
    fast.load_state_dict(slow.state_dict())
    x = torch.randn(2, 8, 20, 17)
    y = layer(slow.narrow, x)
    assert y.shape[1] == 4
    around = []
    for size in (5, 9, 13):
        padded = F.pad(y, [size // 2] * 4, value=-math.inf)
        around.append(padded.unfold(2, size, 1).unfold(3, size, 1).amax((4, 5)))
    expected = layer(slow.fuse, torch.cat((y, *around), 1))
    close(slow(x), expected)
    close(fast(x), slow(x), 0)


def test_a_focus_and_a_convolution_of_6_pixels_are_one():
    focus = randomised(net.Focus(5))
    conv, norm, _ = focus.conv
    six = net.conv_norm(3, 5, 6, stride=2).eval()
    six[1].load_state_dict(norm.state_dict())
    six[0].load_state_dict({"weight": net.as_six(conv.weight)})
    x = torch.randn(2, 3, 16, 24)
    close(six(x), focus(x))
    assert focus(x).shape == (2, 5, 8, 12)
    for corner in range(4):  # the channels of a colour: upper left, right, lower left, right
        row, column = divmod(corner, 2)
        found = net.as_six(conv.weight)[:, 1, row::2, column::2]
        close(found, conv.weight[:, 4 + corner], 0)


def test_the_network_is_a_path_down_and_a_path_up_written_out():
    network = randomised(narrow())
    x = torch.randn(2, 3, 64, 96)
    c3, c4, c5 = network.backbone(x)
    assert [tuple(c.shape) for c in (c3, c4, c5)] == [(2, 12, 8, 12), (2, 16, 4, 6), (2, 24, 2, 3)]

    def joined(a, b):
        return torch.cat((a, b), 1)

    def large(a):
        return a.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def block(part, a):
        return written_c3(part, a, residual=False)

    p5 = layer(network.narrow[0], c5)
    p4 = layer(network.narrow[1], block(network.down[0], joined(large(p5), c4)))
    n3 = block(network.down[1], joined(large(p4), c3))
    n4 = block(network.up[0], joined(layer(network.halve[0], n3), p4))
    n5 = block(network.up[1], joined(layer(network.halve[1], n4), p5))
    for found, head, n in zip(network(x), network.heads, (n3, n4, n5), strict=True):
        close(found, F.conv2d(n, head.weight, head.bias))
        assert found.shape[1] == 3 * (5 + 3)
    assert [len(part.blocks) for part in (*network.down, *network.up)] == [2] * 4


def test_the_backbone_is_a_stem_stages_and_a_pyramid():
    backbone = randomised(net.Backbone(net.Size((4, 6, 8, 12), (1, 0, 2), 1), 2))
    x = torch.randn(2, 3, 32, 48)
    y, maps = layer(backbone.stem, x), []
    for stage in backbone.stages:
        y = written_c3(stage[1], layer(stage[0], y), residual=True)
        maps.append(y)
    fine, coarse = backbone(x)
    close(fine, maps[1])
    pyramid = backbone.pyramid
    y = layer(pyramid.narrow, maps[2])
    pools = [F.max_pool2d(y, k, 1, k // 2) for k in (5, 9, 13)]
    close(coarse, layer(pyramid.fuse, torch.cat((y, *pools), 1)))
    assert [len(stage[1].blocks) for stage in backbone.stages] == [1, 0, 2]


@pytest.mark.parametrize("name", ["n", "x"])
def test_networks_run_forward_and_backward_on_the_meta_device(name):
    outputs = networks.runs_on_meta(on_meta(build, name), 3, 3, 64, 96)
    assert [tuple(raw.shape) for raw in outputs] == [
        (3, 255, 64 // s, 96 // s) for s in (8, 16, 32)
    ]


def test_the_small_network_has_strides_of_8_and_16_and_starts_with_few_objects():
    torch.manual_seed(0)
    network = net.small_yolov5(1 / 3, 1.0, 10)
    outputs = network(torch.randn(2, 3, 64, 48))
    assert [tuple(raw.shape) for raw in outputs] == [(2, 45, 64 // s, 48 // s) for s in (8, 16)]
    for head in network.heads:
        assert head.bias.view(3, 15)[:, 4].tolist() == [-4.0] * 3
        assert head.bias.view(3, 15)[:, [0, 1, 2, 3, 5]].abs().max() < 1
    assert network.backbone.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
    counts = [parameters_of(net.small_yolov5(*size, 1)) for size in net.MULTIPLES.values()]
    assert counts == sorted(counts)
    assert network.backbone.stem[0].out_channels == 8
    size = net.scaled(net.SMALL, *net.MULTIPLES["x"], multiple=4)
    assert size == net.Size((12, 20, 40, 80), (1, 3, 4), 1)
    assert parameters_of(net.small_yolov5(*net.MULTIPLES["x"], 1)) == 209_556


# ---- boxes ---------------------------------------------------------------------------------------


def test_a_box_may_leave_its_cell_and_reach_four_times_its_anchor():
    scale = net.Scale(16, ((10, 20), (30, 8)))
    raw = torch.zeros(2, 2 * 7, 3, 5)
    raw[1, 7:11, 2, 4] = torch.tensor([math.log(3), -math.log(3), 60.0, -math.log(3)])
    raw[1, 11:, 2, 4] = torch.tensor([7.0, 8, 9])
    places, t = net.every_box([raw], (scale,))
    assert places.shape == (2, 30, 4)
    # centre 2 * 3/4 - 1/2 = 1 and 2 / 4 - 1/2 = 0 cells further; sides 4 * 30 and 8 / 4
    close(places[1, 29], torch.tensor([80.0 - 60, 32 - 1, 80 + 60, 32 + 1]))
    assert t[1, 29, 4:].tolist() == [7, 8, 9]
    close(places[0, 0], torch.tensor([3.0, -2, 13, 18]))
    close(places[0, 3], torch.tensor([9.0, 4, 39, 12]))  # column 1, second anchor
    close(places[0, 10], torch.tensor([3.0, 14, 13, 34]))  # row 1, column 0, first anchor


def test_boxes_of_several_scales_follow_each_other():
    scales = (net.Scale(16, ((9, 9),)), net.Scale(32, ((20, 20),)))
    outputs = [torch.ones(1, 6, 2, 4), torch.zeros(1, 6, 1, 2)]
    places, t = net.every_box(outputs, scales)
    assert t[0, :, 0].tolist() == [1] * 8 + [0] * 2
    close(places[0, 9], torch.tensor([38.0, 6, 58, 26]))


def test_a_score_is_that_of_an_object_times_that_of_its_class():
    raw = torch.full((1, 8, 1, 2), -20.0)
    raw[0, :4] = 0
    raw[0, 4:, 0, 1] = torch.tensor([math.log(3), -20, math.log(4), -math.log(1.5)])
    network = Answers(raw)
    (found,) = net.detect(network, None, (net.Scale(16, ((8, 8),)),))
    assert network.training
    close(found.scores, torch.tensor([0.75 * 0.8, 0.75 * 0.4]))
    assert found.labels.tolist() == [1, 2]
    close(found.boxes[0], torch.tensor([20.0, 4, 28, 12]))
    (found,) = net.detect(network, None, (net.Scale(16, ((8, 8),)),), least=0.5)
    assert found.labels.tolist() == [1]


def test_of_two_boxes_of_a_class_the_worse_goes():
    raw = torch.zeros(1, 12, 1, 1)
    raw[0, 4] = 2.0
    raw[0, [5, 11]] = 3.0
    shapes = (net.Scale(16, ((8, 8), (8, 4.2))),)
    assert len(net.detect(Answers(raw), None, shapes)[0].scores) == 1
    assert len(net.detect(Answers(raw), None, shapes, overlap=0.6)[0].scores) == 2
    raw[0, [4, 10]] = 0.0  # .5 times .95, above a quarter
    raw[0, 5] = raw[0, 11] = -0.1  # .24, below
    assert len(net.detect(Answers(raw), None, shapes)[0].scores) == 0


# ---- anchors -------------------------------------------------------------------------------------


def test_the_side_ratio_is_that_of_the_side_that_fits_worse():
    size = torch.tensor([[10.0, 10], [10, 40], [2, 30]])
    anchors = torch.tensor([[10.0, 20], [5, 10]])
    close(net.side_ratio(size, anchors), torch.tensor([[2.0, 2], [2, 4], [5, 3]]))
    assert net.within_reach(size, anchors) == 1
    assert net.within_reach(size, anchors, limit=3.0) == pytest.approx(2 / 3)
    assert net.within_reach(size, anchors, limit=2.0) == 0


def test_k_means_finds_groups_and_their_geometric_means():
    groups = torch.tensor([[20.0, 40], [2, 3], [12, 6]])
    size = torch.cat(
        [g * torch.tensor([[f, 1 / f], [1 / f, f]]) for g in groups for f in (1.1, 1.2)]
    )
    close(net.k_means(size, 3), groups[[1, 2, 0]])
    torch.manual_seed(0)
    many = torch.rand(300, 2) * 20 + 4
    found = net.k_means(many, 4)
    nearest = (many.log()[:, None] - found.log()).square().sum(-1).argmin(1)
    again = torch.stack([many[nearest == k].log().mean(0).exp() for k in range(4)])
    close(found, again, 0.02)
    assert found.prod(1).diff().min() > 0
    start = net.k_means(many, 4, rounds=0)
    ordered = many[many.prod(1).argsort()]
    close(start, ordered[[37, 112, 187, 262]])


def test_sizes_are_those_of_objects_that_count():
    truth = scenes_of(
        [[[1.0, 2, 4, 8], [0, 0, 9, 9]], [[0, 0, 0, 0], [3, 3, 5, 4]]], [[0, 1], [-1, 2]]
    )
    truth.ignored[0, 1] = True
    assert net.sizes_of(truth).tolist() == [[3, 6], [2, 1]]


# ---- loss ----------------------------------------------------------------------------------------


def by_loops(truth, scales, maps, limit, three):
    """All (image, box number, label) that answer for an object, one by one."""
    found = []
    for image in range(len(truth.labels)):
        for box, label in zip(truth.boxes[image].tolist(), truth.labels[image].tolist()):
            if label < 0:
                continue
            w, h = box[2] - box[0], box[3] - box[1]
            start = 0
            for scale, (H, W) in zip(scales, maps):
                x = (box[0] + box[2]) / 2 / scale.stride
                y = (box[1] + box[3]) / 2 / scale.stride
                places = {(int(y), int(x))}
                if three:
                    places.add((int(y), int(x) + (1 if x % 1 >= 0.5 else -1)))
                    places.add((int(y) + (1 if y % 1 >= 0.5 else -1), int(x)))
                for number, (aw, ah) in enumerate(scale.anchors):
                    if max(w / aw, aw / w, h / ah, ah / h) >= limit:
                        continue
                    for row, column in places:
                        if 0 <= row < H and 0 <= column < W:
                            index = start + (row * W + column) * len(scale.anchors) + number
                            found.append((image, index, label))
                start += H * W * len(scale.anchors)
    return sorted(found)


@pytest.mark.parametrize("three", [False, True])
def test_an_object_is_answered_by_fitting_anchors_in_one_or_three_cells(three):
    torch.manual_seed(0)
    corner = torch.rand(6, 5, 2) * torch.tensor([70.0, 22])
    places = torch.cat((corner, corner + torch.rand(6, 5, 2) * 20 + 2), 2)
    truth = scenes_of(places.tolist(), torch.randint(-1, 4, (6, 5)).tolist())
    scales = (net.Scale(8, ((5, 5), (9, 4), (6, 12))), net.Scale(16, ((20, 10), (14, 20))))
    maps = ((6, 12), (3, 6))
    for limit in (1.7, 4.0):
        how = {} if three and limit == 4 else {"limit": limit}
        how |= {} if three else {"cells": net.OWN}
        found = net.positives(truth, scales, maps, **how)
        pairs = zip(found.image.tolist(), found.index.tolist(), found.label.tolist())
        assert sorted(pairs) == by_loops(truth, scales, maps, limit, three)
        for image, label, box in zip(found.image, found.label, found.box):
            assert label in truth.labels[image][(truth.boxes[image] == box).all(1)]


def test_what_is_ignored_has_no_box_to_answer_for_it():
    truth = scenes_of([[[4.0, 4, 12, 12], [18, 18, 28, 26]]], [[0, 1]])
    truth.ignored[0, 0] = True
    found = net.positives(truth, (net.Scale(16, ((8, 8),)),), ((2, 2),), cells=net.OWN)
    assert found.index.tolist() == [3]
    assert found.label.tolist() == [1]


def test_a_centre_in_the_middle_of_a_cell_has_neighbours_right_and_below():
    truth = scenes_of([[[4.0, 4, 12, 12]]], [[0]])
    found = net.positives(truth, (net.Scale(16, ((8, 8),)),), ((2, 2),))
    assert sorted(found.index.tolist()) == [0, 1, 2]


def test_the_loss_of_a_case_worked_by_hand():
    scales = (net.Scale(16, ((16, 16),)), net.Scale(32, ((1, 1),)))
    truth = scenes_of([[[0.0, 0, 16, 16], [0, 0, 0, 0]]], [[2, -1]])
    fine, coarse = torch.zeros(1, 8, 2, 2), torch.full((1, 8, 1, 1), -1.0)
    beside = 1 + 256 / 1280
    softplus = math.log(1 + math.exp(-1))
    objectness = 4 * math.log(2) + softplus
    expected = torch.tensor([2 * beside / 3, objectness, 3 * math.log(2)])
    close(net.detection_loss([fine, coarse], truth, scales), expected)
    fine[0, 4] = torch.tensor([[2.0, -1], [1, 0]])
    fine[0, 5:, 0, 0] = torch.tensor([1.0, -1, 2])
    each = [math.log(1 + math.exp(-2)), softplus, math.log(1 + math.e), math.log(2)]
    classes = math.log(1 + math.e) + softplus + math.log(1 + math.exp(-2))
    expected[1] = sum(each) + softplus  # means: of four boxes times 4, of one times 1
    expected[2] = (classes + 6 * math.log(2)) / 3
    close(net.detection_loss([fine, coarse], truth, scales), expected)


def test_the_objectness_wanted_is_the_ciou_and_the_larger_of_two():
    scales = (net.Scale(32, ((16, 16),)),)
    truth = scenes_of([[[8.0, 8, 24, 24], [8, 8, 24, 16]]], [[0, 1]])
    raw = torch.zeros(1, 7, 1, 1)
    raw[0, 4] = 3.0
    found = net.detection_loss([raw], truth, scales)
    second = ops.complete_box_iou_loss(truth.boxes[0, :1], truth.boxes[0, 1:])[0]
    softplus = math.log(1 + math.exp(-3))
    close(found, torch.tensor([second / 2, 4 * softplus, 2 * math.log(2)]))
    truth = truth._replace(labels=torch.tensor([[-1, 1]]))
    found = net.detection_loss([raw], truth, scales)
    close(found[1], 4 * (softplus + 3 * second))
    raw.requires_grad_()
    net.detection_loss([raw], truth, scales)[1].backward()
    assert raw.grad[0, :4].abs().max() == 0  # the wanted value is no way to the box


def test_limit_and_cells_reach_the_matching():
    scales = (net.Scale(16, ((10, 10),)),)
    truth = scenes_of([[[0.0, 0, 16, 16]]], [[0]])
    raw = torch.zeros(1, 6, 2, 2)
    one = net.detection_loss([raw], truth, scales, cells=net.OWN)
    three = net.detection_loss([raw], truth, scales)
    assert one[0] < three[0]
    none = net.detection_loss([raw], truth, scales, limit=1.5)
    close(none, torch.tensor([0, 4 * math.log(2), 0]))


def test_the_loss_reaches_all_parameters_and_is_balanced_finest_first():
    torch.manual_seed(0)
    network = net.small_yolov5(1 / 3, 0.5, 3)
    truth = scenes_of([[[1.0, 1, 13, 17], [30, 30, 38, 38]]], [[1, 2]], size=64)
    scales = (
        net.Scale(8, ((8, 8), (9, 12), (12, 9))),
        net.Scale(16, ((12, 16), (20, 20), (16, 12))),
    )
    net.detection_loss(network(truth.images + 0.5), truth, scales).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert net.BALANCE == (4.0, 1.0, 0.4)


def digit_scales():
    return (
        net.Scale(8, ((8, 14), (10, 16), (14, 14))),
        net.Scale(16, ((12, 20), (18, 18), (20, 24))),
    )


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    torch.manual_seed(0)
    network = net.small_yolov5(1 / 3, 1.0, 3)
    truth = scenes_of([[[4.0, 4, 16, 20]], [[30, 30, 46, 50]]], [[1], [2]], size=64)
    truth = truth._replace(images=torch.rand(2, 3, 64, 64))
    losses = net.train(network, [truth] * 60, digit_scales(), rate=0.01)
    assert len(losses) == 60
    assert losses[-1] < losses[0] / 10


def test_the_loss_of_a_step_is_the_sum_of_its_parts_at_the_limit():
    torch.manual_seed(0)
    network = net.small_yolov5(1 / 3, 0.5, 3)
    truth = scenes_of([[[4.0, 4, 16, 20]]] * 2, [[1], [0]], size=64)
    truth = truth._replace(images=torch.rand(2, 3, 64, 64))
    x = truth.images.contiguous(memory_format=torch.channels_last)
    parts = net.detection_loss(network.train()(x), truth, digit_scales(), limit=2.0)
    (found,) = net.train(network, [truth], digit_scales())
    close(torch.tensor(found), parts.sum())


def test_training_uses_a_cycle_of_rates_over_all_batches(monkeypatch):
    seen = {}
    real = net.training.one_cycle

    def noted(optimizer, steps, **how):
        seen.update(how, steps=steps, rate=optimizer.param_groups[0]["lr"], kind=type(optimizer))
        return real(optimizer, steps, **how)

    monkeypatch.setattr(net.training, "one_cycle", noted)
    truth = scenes_of([[[4.0, 4, 16, 20]]] * 2, [[1], [0]], size=64)
    network = net.small_yolov5(1 / 3, 0.5, 3).eval()
    net.train(network, [truth] * 3, digit_scales())
    assert network.training
    expected = {"rising": 0.25, "steps": 3, "rate": 1e-2, "kind": torch.optim.AdamW}
    assert seen == expected


# ---- measures, the hub, solutions ----------------------------------------------------------------


def test_all_scenes_are_searched_and_weak_detections_kept():
    raw = torch.full((1, 8, 1, 1), -9.0)
    raw[0, :4] = 0
    raw[0, 4] = 9.0
    raw[0, 6] = -2.5  # .076

    class Each(nn.Module):
        def forward(self, x):
            assert len(x) <= 50
            return (raw.repeat(len(x), 1, 1, 1),)

    part = scenes_of([[[10.0, 10, 22, 22]]] * 60, [[1]] * 60)
    found = net.find_all(Each(), part, (net.Scale(32, ((12, 12),)),))
    assert [d.labels.tolist() for d in found] == [[1]] * 60
    raw[0, 6] = -3.5  # .029
    assert not len(net.find_all(Each(), part, (net.Scale(32, ((12, 12),)),))[0].labels)


def test_classes_are_put_aside_and_no_object_stays_none():
    truth = scenes_of([[[1.0, 1, 9, 9], [0, 0, 0, 0]]], [[7, -1]])
    assert net.of_one_class(truth).labels.tolist() == [[0, -1]]


def test_objectness_and_overlap_of_positives():
    truth = scenes_of([[[0.0, 0, 16, 8]]], [[0]])
    raw = torch.zeros(1, 6, 2, 2)
    raw[0, 4, 0, 0] = math.log(3)
    network = Answers(raw).train()
    scales = (net.Scale(16, ((16, 15),)),)
    objectness, ciou = net.objectness_and_ciou(network, truth, scales)
    assert network.training
    assert sorted(objectness.tolist()) == pytest.approx([0.5, 0.75])
    own = objectness.argmax()
    mine = torch.tensor([[0.0, 0.5, 16, 15.5]])
    close(ciou[own], ops.complete_box_iou(mine, truth.boxes[0])[0, 0])


def hub(answer):
    def load(repository, name, *, trust_repo):
        assert (repository, name, trust_repo) == ("ultralytics/yolov5", "yolov5s", True)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return load


def test_the_sample_profile_asks_no_server(monkeypatch):
    monkeypatch.setattr(torch.hub, "load", hub(AssertionError("asked")))
    assert "PROFILE=full" in net.example("picture.jpg")


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("no network"),
        ImportError("no module"),
        pickle.UnpicklingError("weights only"),
        Exception("weights only. Cache may be out of date, try force_reload=True"),
    ],
)
def test_without_a_network_there_is_a_clear_message(monkeypatch, error):
    monkeypatch.setitem(net.from_hub.__globals__, "PROFILE", "full")
    monkeypatch.setattr(torch.hub, "load", hub(error))
    message = net.example("picture.jpg")
    assert message == f"YOLOv5s cannot be asked: {error}"


def test_a_picture_that_cannot_be_fetched_gives_a_clear_message(monkeypatch):
    def model(pictures):
        raise OSError(f"no {pictures[0]}")

    monkeypatch.setitem(net.from_hub.__globals__, "PROFILE", "full")
    monkeypatch.setattr(torch.hub, "load", hub(model))
    assert net.example("picture.jpg") == "YOLOv5s cannot be asked: no picture.jpg"


def test_with_a_network_the_published_model_is_asked(monkeypatch):
    monkeypatch.setitem(net.from_hub.__globals__, "PROFILE", "full")
    monkeypatch.setattr(torch.hub, "load", hub(lambda pictures: f"seen {pictures}"))
    assert net.example("picture.jpg") == "seen ['picture.jpg']"


def test_a_layer_with_its_norm_folded_gives_the_same():
    layer = randomised(net.conv_norm(5, 7, 3, stride=2))
    one = net.folded(layer)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in one.modules())
    networks.same_outputs(one, layer, torch.randn(2, 5, 9, 12))


def test_a_detector_that_is_always_sure_keeps_boxes_and_classes():
    raw = torch.randn(2, 3 * 7, 2, 3)
    (found,) = net.AlwaysThere(Answers(raw).eval()).eval()(None)
    found, before = found.unflatten(1, (3, 7)), raw.unflatten(1, (3, 7))
    kept = [0, 1, 2, 3, 5, 6]
    close(found[:, :, kept], before[:, :, kept], 0)
    assert found[:, :, 4].sigmoid().min() > 0.999
