"""The networks of notebooks/yolov3.py."""

import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import ops

import networks
from detectors import Answers, scenes_of
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of
from workbench import boxes, darknet

net = definitions("yolov3")

PUBLISHED = {  # parameters, floats of the weight file, BFLOPs of Darknet at this side
    "darknet53": (41_609_928, 41_645_640, 18.57, 256),
    "yolov3": (61_949_149, 62_001_757, 65.864, 416),
    "yolov3_spp": (62_998_749, 63_052_381, 141.449, 608),
    "TinyYOLOv3": (8_852_366, 8_858_734, 5.565, 416),
}
TINY_FILE = "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c"


def build(name):
    return net.Classifier(net.darknet53()) if name == "darknet53" else getattr(net, name)()


def narrow(**how):
    return net.YOLOv3(net.Darknet((4, 8, 8, 16, 24, 32), (1, 0, 2, 1, 1)), 3, **how)


# ---- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes_have_the_published_counts(name):
    parameters, floats, billions, side = PUBLISHED[name]
    network = on_meta(build, name)
    assert parameters_of(network) == parameters
    assert darknet.floats(network) == floats
    assert abs(2 * macs_of(network, 1, 3, side, side) / 1e9 - billions) < 0.001


def as_timm():
    reference = net.with_slope(timm.create_model("darknet53"), 0.1)
    reference.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(1024, 1000, 1), nn.Flatten())
    return reference


def test_darknet_53_calls_the_layers_of_timm_in_their_order():
    networks.same_layers(on_meta(build, "darknet53"), on_meta(as_timm))


def layer(part, x):
    """A layer of Darknet written out."""
    conv, norm, activation = part
    x = F.conv2d(x, conv.weight, None, conv.stride, conv.kernel_size[0] // 2)
    statistics = norm.running_mean, norm.running_var
    x = F.batch_norm(x, *statistics, norm.weight, norm.bias, eps=1e-5)
    assert isinstance(activation, nn.LeakyReLU)
    return torch.where(x > 0, x, 0.1 * x)


def row(parts, x):
    for part in parts:
        x = layer(part, x)
    return x


def written_head(head, x):
    last = head[1]
    return F.conv2d(layer(head[0], x), last.weight, last.bias)


def joined(join, coarse, fine):
    small = layer(join.narrow, coarse)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return torch.cat((large, fine), 1)


def randomised(network):
    torch.manual_seed(0)
    networks.share_weights(network, network)
    return network.eval()


def test_the_three_heads_are_necks_joins_and_heads_written_out():
    network = randomised(narrow())
    x = torch.randn(2, 3, 64, 96)
    c3, c4, c5 = network.backbone(x)
    assert [tuple(c.shape) for c in (c3, c4, c5)] == [(2, 16, 8, 12), (2, 24, 4, 6), (2, 32, 2, 3)]
    p5 = row(network.neck5, c5)
    p4 = row(network.neck4, joined(network.join4, p5, c4))
    p3 = row(network.neck3, joined(network.join3, p4, c3))
    heads = (network.head5, network.head4, network.head3)
    for found, head, p in zip(network(x), heads, (p5, p4, p3), strict=True):
        close(found, written_head(head, p))
        assert found.shape[1] == 3 * (5 + 3)


def test_the_backbone_is_stages_of_a_halving_and_residual_blocks():
    backbone = randomised(net.Darknet((4, 8, 8, 16, 24, 32), (1, 0, 2, 1, 1)))
    x = torch.randn(2, 3, 64, 32)
    y, maps = layer(backbone.stem, x), []
    stages = (*backbone.early, backbone.stage3, backbone.stage4, backbone.stage5)
    for stage in stages:
        y = layer(stage[0], y)
        for block in stage[1:]:
            y = y + layer(block.widen, layer(block.narrow, y))
        maps.append(y)
    for found, expected in zip(backbone(x), maps[-3:], strict=True):
        close(found, expected)
    assert [len(stage) - 1 for stage in stages] == [1, 0, 2, 1, 1]
    classifier = randomised(net.Classifier(backbone, 7))
    weight, bias = classifier.classifier.weight[:, :, 0, 0], classifier.classifier.bias
    y = x  # the weights of the backbone are new ones
    close(classifier(x), F.linear(backbone(y)[2].mean((2, 3)), weight, bias))


def test_the_pyramid_takes_the_largest_around_each_cell_before_the_map():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 15, 17)
    y = net.SpatialPyramid()(x)
    for k, reach in enumerate((6, 4, 2)):
        expected = x[:, :, 7 - reach : 8 + reach, 8 - reach : 9 + reach].amax((2, 3))
        close(y[:, 3 * k : 3 * k + 3, 7, 8], expected, 0)
    close(y[:, 9:], x, 0)
    assert y.shape == (2, 12, 15, 17)


def test_the_neck_with_a_pyramid_is_seven_parts_written_out():
    neck = randomised(net.spp_neck(10, 4))
    x = torch.randn(2, 10, 6, 7)
    y = row(neck[:3], x)
    pools = [F.max_pool2d(y, k, 1, k // 2) for k in (13, 9, 5)]
    close(neck(x), row(neck[4:], torch.cat((*pools, y), 1)))
    assert neck(x).shape == (2, 4, 6, 7)
    sizes = [part[0].kernel_size[0] for part in (*neck[:3], *neck[4:])]
    assert sizes == [1, 3, 1, 1, 3, 1]


def test_the_last_pool_keeps_the_size_and_looks_right_and_down():
    x = torch.tensor([[[[4.0, 1, 2], [3, 0, -5], [-1, -2, -3]]]])
    expected = torch.tensor([[[[4.0, 2, 2], [3, 0, -3], [-1, -2, -3]]]])
    close(net.LastPool()(x), expected, 0)


def test_the_tiny_network_is_its_configuration_written_out():
    network = randomised(net.TinyYOLOv3(2))
    x = torch.randn(1, 3, 64, 96)
    y = x
    for k in range(4):
        y = F.max_pool2d(layer(network.fine[2 * k], y), 2)
    c4 = layer(network.fine[8], y)
    y = layer(network.coarse[1], F.max_pool2d(c4, 2))
    y = F.max_pool2d(F.pad(y, (0, 1, 0, 1), value=-math.inf), 2, 1)
    p5 = layer(network.neck5, layer(network.coarse[3], y))
    coarse, fine = network(x)
    close(coarse, written_head(network.head5, p5))
    close(fine, written_head(network.head4, joined(network.join4, p5, c4)))
    assert coarse.shape == (1, 21, 2, 3)
    assert fine.shape == (1, 21, 4, 6)


@pytest.mark.parametrize("name", ["yolov3", "yolov3_spp", "TinyYOLOv3"])
def test_networks_run_forward_and_backward_on_the_meta_device(name):
    outputs = networks.runs_on_meta(on_meta(build, name), 2, 3, 64, 96)
    strides = (32, 16, 8)[: len(outputs)]
    assert [tuple(raw.shape) for raw in outputs] == [(2, 255, 64 // s, 96 // s) for s in strides]


def test_a_network_goes_through_a_weight_file_and_comes_back(tmp_path):
    one, other = randomised(narrow()), narrow().eval()
    darknet.save(one, tmp_path / "n.weights")
    darknet.load(other, tmp_path / "n.weights")
    x = torch.randn(1, 3, 64, 64)
    for found, expected in zip(other(x), one(x), strict=True):
        close(found, expected, 0)


def test_the_published_file_of_the_tiny_network_fits_to_the_last_float():
    assert net.WEIGHTS == TINY_FILE
    file = net.official("yolov3-tiny.weights", TINY_FILE)
    assert file.stat().st_size == 20 + 4 * PUBLISHED["TinyYOLOv3"][1]
    network = net.trained_tiny()
    assert not network.training
    assert network.neck5[1].running_var.min() > 0
    names = net.coco_names()
    assert (len(names), names[0], names[-1]) == (80, "person", "toothbrush")


def test_the_small_network_has_strides_of_16_8_and_4_and_starts_with_few_objects():
    torch.manual_seed(0)
    network = net.small_yolov3(10)
    outputs = network(torch.randn(2, 3, 64, 48))
    assert [tuple(raw.shape) for raw in outputs] == [(2, 45, 64 // s, 48 // s) for s in (16, 8, 4)]
    assert parameters_of(network) == 230_023
    for head in (network.head5, network.head4, network.head3):
        assert head[1].bias.view(3, 15)[:, 4].tolist() == [-4.0] * 3
        assert head[1].bias.view(3, 15)[:, 5:].abs().max() < 1
    assert network.backbone.stem[0].stride == (2, 2)


def test_the_slope_is_set_in_all_layers():
    network = net.with_slope(narrow(), 0.3)
    slopes = {m.negative_slope for m in network.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.3}


# ---- boxes ---------------------------------------------------------------------------------------


def test_a_box_is_an_offset_in_its_cell_and_a_factor_on_its_anchor():
    scale = net.Scale(16, ((10, 20), (30, 8)))
    raw = torch.zeros(2, 2 * 7, 3, 5)
    raw[1, 7:11, 2, 4] = torch.tensor([math.log(3), -math.log(3), math.log(2), math.log(0.5)])
    raw[1, 11:, 2, 4] = torch.tensor([7.0, 8, 9])
    places, t = net.every_box([raw], (scale,))
    assert places.shape == (2, 30, 4)
    last = torch.tensor([16 * 4.75 - 30, 16 * 2.25 - 2, 16 * 4.75 + 30, 16 * 2.25 + 2])
    close(places[1, 29], last)
    assert t[1, 29, 4:].tolist() == [7, 8, 9]
    close(places[0, 0], torch.tensor([3.0, -2, 13, 18]))
    close(places[0, 3], torch.tensor([9.0, 4, 39, 12]))  # column 1, second anchor
    close(places[0, 10], torch.tensor([3.0, 14, 13, 34]))  # row 1, column 0, first anchor


def test_boxes_of_several_scales_follow_each_other():
    scales = (net.Scale(32, ((20, 20),)), net.Scale(16, ((9, 9),)))
    outputs = [torch.zeros(1, 6, 1, 2), torch.ones(1, 6, 2, 4)]
    places, t = net.every_box(outputs, scales)
    assert t[0, :, 0].tolist() == [0] * 2 + [1] * 8
    close(places[0, 1], torch.tensor([38.0, 6, 58, 26]))


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


# ---- loss ----------------------------------------------------------------------------------------


def test_the_best_anchor_is_that_of_the_largest_iou_on_one_centre():
    anchors = torch.tensor([[10.0, 20], [20, 20], [40, 10]])
    size = torch.tensor([[[10.0, 22], [18, 16]], [[40, 12], [0, 0]]])
    assert net.best_anchor(size, anchors).tolist() == [[0, 1], [2, 0]]
    shapes = torch.rand(50, 2) + 0.2
    boxed = torch.cat((-shapes / 2, shapes / 2), 1)
    others = torch.cat((-anchors / 80, anchors / 80), 1)
    expected = ops.box_iou(boxed, others).argmax(1)
    assert net.best_anchor(shapes, anchors / 40).equal(expected)


def two_scales():
    return (net.Scale(16, ((10, 20), (20, 20))), net.Scale(8, ((5, 5), (8, 4))))


def test_each_object_has_one_box_at_its_cell_with_the_best_anchor():
    places = [
        [[0.0, 0, 16, 20], [20, 9, 28, 13]],
        [[25, 18, 30, 23], [0, 0, 10, 10]],
        [[18, 18, 28, 38], [1, 1, 2, 2]],
    ]
    truth = scenes_of(places, [[2, 1], [0, 1], [1, -1]], size=48)
    truth.ignored[1, 1] = True
    found = net.positives(truth, two_scales(), [(2, 3), (4, 6)])
    assert found.image.tolist() == [0, 0, 1, 2]
    assert found.label.tolist() == [2, 1, 0, 1]
    # coarse: (row 3 + column) 2 + anchor; fine: 12 + (row 6 + column) 2 + anchor
    first = 12 + (1 * 6 + 3) * 2 + 1
    second = 12 + (2 * 6 + 3) * 2
    assert found.index.tolist() == [1, first, second, (1 * 3 + 1) * 2]
    offsets = [[0.5, 0.625], [0, 0.375], [27.5 / 8 - 3, 20.5 / 8 - 2], [23 / 16 - 1, 0.75]]
    close(found.offset, torch.tensor(offsets))
    stretch = torch.zeros(4, 2)
    stretch[0, 0] = math.log(0.8)
    close(found.stretch, stretch)


def test_the_loss_of_a_case_worked_by_hand():
    scales = (net.Scale(16, ((10, 20), (20, 20))),)
    truth = scenes_of([[[0.0, 0, 16, 20], [0, 0, 0, 0]], [[0.0, 0, 0, 0]] * 2], [[2, -1], [-1, -1]])
    raw = torch.zeros(2, 16, 2, 2)
    raw[1, [4, 12]] = -1.0  # nothing there, and said so with .27
    box = 2 * math.log(2) + math.log(0.8) ** 2 / 2
    objectness = 7 * math.log(2) + 8 * math.log(1 + math.exp(-1))  # one of 16 is left out
    expected = torch.tensor([box, objectness, 3 * math.log(2)]) / 2
    close(net.detection_loss([raw], truth, scales), expected)
    raw[0, 8:12, 0, 0] = torch.tensor([1.0, -2, 0.5, 0.25])
    raw[0, 12, 0, 0] = 3.0
    raw[0, 13:, 0, 0] = torch.tensor([1.0, -1, 2])
    p, q = torch.tensor([1.0, -2]).sigmoid().tolist()
    box = -0.5 * math.log(p) - 0.5 * math.log(1 - p)
    box -= 0.625 * math.log(q) + 0.375 * math.log(1 - q)
    box += ((0.5 - math.log(0.8)) ** 2 + 0.25**2) / 2
    objectness += math.log(1 + math.exp(-3)) - math.log(2)
    classes = math.log(1 + math.e) + 2 * math.log(1 + math.e) - 2  # of 1, -1 and 2
    classes = math.log(1 + math.e) + math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))
    found = net.detection_loss([raw], truth, scales)
    close(found, torch.tensor([box, objectness, classes]) / 2)


def test_a_responsible_box_counts_though_it_overlaps_an_object():
    scales = (net.Scale(32, ((16, 16),)),)
    truth = scenes_of([[[8.0, 8, 24, 24]]], [[0]])
    raw = torch.zeros(1, 6, 1, 1)
    raw[0, 4] = 5.0
    expected = torch.tensor([2 * math.log(2), math.log(1 + math.exp(-5)), math.log(2)])
    close(net.detection_loss([raw], truth, scales), expected)


def test_perfect_outputs_have_the_least_loss():
    scales = two_scales()
    torch.manual_seed(0)
    truth = scenes_of([[[0.0, 0, 16, 20], [20, 9, 28, 13]]], [[2, 1]])
    outputs = [torch.full((1, 16, 2, 2), -9.0), torch.full((1, 16, 4, 4), -9.0)]
    found = net.positives(truth, scales, [(2, 2), (4, 4)])
    _, t = net.every_box(outputs, scales)
    t = t.clone()
    for k in range(2):
        own = t[0, found.index[k]]
        own[:2] = found.offset[k].clamp(1e-3, 1 - 1e-3).logit()
        own[2:4] = found.stretch[k]
        own[4] = own[5 + found.label[k]] = 9.0
    back = t[0].split([8, 32])
    outputs = [
        part.view(1, side, side, 2, 8).permute(0, 3, 4, 1, 2).flatten(1, 2)
        for part, side in zip(back, (2, 4))
    ]
    places, _ = net.every_box(outputs, scales)
    close(places[0, found.index], truth.boxes[0], 1e-3)
    _, objectness, classes = net.detection_loss(outputs, truth, scales).tolist()
    assert objectness < 0.01
    assert classes < 0.01


def test_the_loss_runs_on_the_meta_devices_shapes_and_reaches_all_parameters():
    torch.manual_seed(0)
    network = net.small_yolov3(3)
    truth = scenes_of([[[1.0, 1, 13, 17], [30, 30, 38, 38]]], [[1, 2]], size=64)
    scales = net.DIGIT_SCALES
    net.detection_loss(network(truth.images + 0.5), truth, scales).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    torch.manual_seed(0)
    network = net.small_yolov3(3)
    truth = scenes_of([[[4.0, 4, 16, 20]], [[30, 30, 46, 50]]], [[1], [2]], size=64)
    truth = truth._replace(images=torch.rand(2, 3, 64, 64))
    scales = net.DIGIT_SCALES
    batches = [truth] * 40
    losses = net.train(network, batches, scales, steps=40, rate=0.01)
    assert len(losses) == 40
    assert losses[-1] < losses[0] / 10


def test_the_loss_of_a_step_is_the_sum_of_its_parts():
    torch.manual_seed(0)
    network = net.small_yolov3(3)
    truth = scenes_of([[[4.0, 4, 16, 20]]], [[1]], size=64)
    truth = truth._replace(images=torch.rand(1, 3, 64, 64))
    scales = net.DIGIT_SCALES
    parts = net.detection_loss(network.train()(truth.images), truth, scales)
    (found,) = net.train(network, [truth], scales, steps=1)
    close(torch.tensor(found), parts.sum())


def test_the_rate_rises_along_a_line_and_falls_along_a_cosine():
    rates = [net.rate_at(step, 80) for step in range(80)]
    close(torch.tensor(rates[:20]), torch.arange(1, 21) / 20)
    falling = [(1 + math.cos(math.pi * (k - 20) / 60)) / 2 for k in range(20, 80)]
    close(torch.tensor(rates[20:]), torch.tensor(falling))


def test_training_uses_adamw_with_decay(monkeypatch):
    seen = {}
    real = torch.optim.AdamW

    def noted(parameters, rate, **how):
        seen.update(how, rate=rate)
        return real(parameters, rate, **how)

    monkeypatch.setattr(torch.optim, "AdamW", noted)
    truth = scenes_of([[[4.0, 4, 16, 20]]], [[1]], size=64)
    scales = net.DIGIT_SCALES
    network = net.small_yolov3(3).eval()
    net.train(network, [truth], scales, steps=4)
    assert network.training
    assert (seen["rate"], seen["weight_decay"]) == (8e-3, 0.01)


# ---- anchors, photographs, measures --------------------------------------------------------------


def test_a_picture_stands_in_the_middle_of_grey():
    picture = torch.ones(3, 10, 20)
    x = net.within(picture, 8, 13)
    assert x.shape == (1, 3, 13, 13)
    assert (x[0, 0] > 0.9).nonzero().amin(0).tolist() == [4, 2]
    assert (x[0, 0] > 0.9).nonzero().amax(0).tolist() == [7, 9]
    assert x[0, 0, 0, 0] == x[0, 2, 12, 12] == 0.5


def test_the_photographs_are_those_with_words():
    pictures = net.photographs()
    assert list(pictures) == list(net.SEEN)
    assert pictures["chelsea"].shape == (3, 300, 451)
    assert all(0.5 < picture.max() <= 1 for picture in pictures.values())


def test_the_best_score_of_each_head():
    coarse, fine = torch.zeros(1, 14, 1, 1), torch.full((1, 14, 2, 2), -3.0)
    fine[0, 11, 1, 0], fine[0, 13, 1, 0] = math.log(3), math.log(4)
    scales = (net.Scale(16, ((1, 1), (2, 2))), net.Scale(8, ((1, 1), (2, 2))))
    network = Answers(coarse, fine).eval()
    close(torch.tensor(net.best_by_head(network, None, scales, 1)), torch.tensor([0.25, 0.6]))


def test_one_head_alone_is_one_output():
    network = Answers(1, 2, 3).eval()
    assert net.OneHead(network, 1).eval()(None) == (2,)


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
    found = [boxes.Detections(truth.boxes[0, :1], torch.ones(1), torch.tensor([3]))]
    same, part = net.of_one_class(found, truth)
    assert part.labels.tolist() == [[0, -1]]
    assert same[0].labels.tolist() == [0]
    assert boxes.average_precision(same, part, classes=1)["mAP@0.5"] == pytest.approx(1)


def test_detections_of_a_mirror_image_are_turned_back():
    class Turned(nn.Module):
        def forward(self, x):
            raw = torch.full((1, 6, 1, 4), -9.0)
            raw[0, :4] = 0
            raw[0, 4:, 0, 0] = 9.0 - x[0, 0, 0, 0]  # at the left, surer of a dark corner
            return (raw,)

    x = torch.zeros(1, 3, 16, 64)
    x[..., -1] = 1.0
    found = net.with_mirror(Turned(), x, (net.Scale(16, ((8, 4),)),))
    close(found.boxes, torch.tensor([[4.0, 6, 12, 10], [52, 6, 60, 10]]))
    assert found.scores[0] > found.scores[1]
    assert found.labels.tolist() == [0, 0]
    x = torch.zeros(1, 3, 16, 16)
    assert len(net.with_mirror(Twice(), x, (net.Scale(16, ((8, 4),)),)).boxes) == 1


class Twice(nn.Module):
    def forward(self, x):
        return (torch.cat((torch.zeros(1, 4, 1, 1), torch.full((1, 2, 1, 1), 5.0)), 1),)


def test_heads_agree_where_their_boxes_do():
    coarse, fine = torch.zeros(1, 6, 1, 1), torch.zeros(1, 6, 2, 2)
    fine[0, 4, 1, 1] = 4.0
    scales = (net.Scale(16, ((16, 16),)), net.Scale(8, ((8, 8),)))
    network = Answers(coarse, fine).eval()
    assert net.agreement(network, None, scales, 0) == pytest.approx(0.25)
