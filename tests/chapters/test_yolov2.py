"""The networks of notebooks/yolov2.py."""

import math
import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import ops

import networks
from detectors import scenes_of
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of
from workbench import darknet

net = definitions("yolov2")

PUBLISHED = {  # parameters, floats of the weight file, BFLOPs of Darknet at this side
    "darknet19": (20_842_376, 20_856_776, 5.582, 224),
    "coco": (50_962_889, 50_983_561, 29.464, 416),
    "voc": (50_655_389, 50_676_061, 29.360, 416),
    "tiny": (11_232_057, 11_237_145, 5.406, 416),
    "yolo9000": (48_793_101, 48_807_501, 49.062, 544),
}
BUILD = {
    "darknet19": lambda: net.Classifier(net.Darknet()),
    "coco": lambda: net.yolov2(),
    "voc": lambda: net.yolov2(20),
    "tiny": lambda: net.yolov2_tiny(),
    "yolo9000": lambda: net.yolo9000(),
}


@pytest.fixture(autouse=True)
def loaded():
    """The notebook's constants are made here and not on the meta device, by the first that asks."""
    assert net.BY_HAND


def narrow(reorg=None):
    backbone = net.Darknet(((3, 4), None, (3, 6), (1, 8)), (None, (3, 10)))
    return net.YOLOv2(backbone, 14, narrow=4, reorg=reorg or nn.PixelUnshuffle(2))


# ---- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes_have_the_published_counts(name):
    parameters, floats, billions, side = PUBLISHED[name]
    network = on_meta(BUILD[name])
    assert parameters_of(network) == parameters
    assert darknet.floats(network) == floats
    assert abs(2 * macs_of(network, 1, 3, side, side) / 1e9 - billions) < 0.001


def layer(part, x):
    """A layer of Darknet written out."""
    conv, norm, activation = part
    x = F.conv2d(x, conv.weight, None, 1, conv.kernel_size[0] // 2)
    statistics = norm.running_mean, norm.running_var
    x = F.batch_norm(x, *statistics, norm.weight, norm.bias, eps=1e-5)
    assert isinstance(activation, nn.LeakyReLU)
    return torch.where(x > 0, x, 0.1 * x)


def row(parts, x):
    for part in parts:
        x = F.max_pool2d(x, 2) if isinstance(part, nn.MaxPool2d) else layer(part, x)
    return x


def randomised(network):
    torch.manual_seed(0)
    networks.share_weights(network, network)
    return network.eval()


def test_the_backbone_is_table_6():
    channels = [32, 64, 128, 64, 128, 256, 128, 256, 512, 256, 512, 256, 512]
    channels += [1024, 512, 1024, 512, 1024]
    kernels = [3, 3, *[3, 1, 3] * 2, *[3, 1, 3, 1, 3] * 2]
    backbone = on_meta(net.Darknet)
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == channels
    assert [m.kernel_size[0] for m in convs] == kernels
    fine, coarse = backbone(torch.empty(1, 3, 64, 96, device="meta"))
    assert (fine.shape, coarse.shape) == ((1, 512, 4, 6), (1, 1024, 2, 3))


def test_the_classifier_is_a_convolution_and_a_mean():
    backbone = net.Darknet(((3, 4), None, (3, 6)), (None, (3, 10)))
    network = randomised(net.Classifier(backbone, 7))
    x = torch.randn(3, 3, 8, 12)
    y = row(backbone.coarse, row(backbone.fine, x)).mean((2, 3))
    head = network.classifier
    close(network(x), F.linear(y, head.weight[:, :, 0, 0], head.bias))


def test_the_fine_map_is_narrowed_taken_apart_and_put_before_the_coarse():
    network = randomised(narrow())
    x = torch.randn(3, 3, 16, 24)
    fine = row(network.backbone.fine, x)
    coarse = row(network.refine, row(network.backbone.coarse, fine))
    thin = layer(network.narrow, fine)
    parts = [thin[:, c : c + 1, a::2, b::2] for c in range(4) for a in (0, 1) for b in (0, 1)]
    y = layer(network.join, torch.cat((*parts, coarse), 1))
    head = network.head
    close(network(x), F.conv2d(y, head.weight, head.bias))
    assert network(x).shape == (3, 14, 4, 6)
    assert [part[0].kernel_size[0] for part in network.refine] == [3, 3]
    sizes = network.narrow[0].kernel_size[0], network.join[0].kernel_size[0]
    assert sizes == (1, 3)


def memory_moved(x):
    """What Darknet's reorg does to one image, number by number, from its description."""
    C, H, W = x.shape
    flat = x.flatten()
    taken = torch.zeros_like(flat)
    thin = C // 4
    for k in range(C):
        for j in range(H):
            for i in range(W):
                column = 2 * i + k // thin % 2
                line = 2 * j + k // thin // 2
                place = (k % thin * 2 * H + line) * 2 * W + column
                taken[(k * H + j) * W + i] = flat[place]
    return taken.view(4 * C, H // 2, W // 2)


def test_darknets_reorg_moves_memory_as_its_loops_do():
    x = torch.randn(2, 8, 6, 10)
    found = net.DarknetReorg()(x)
    for image in range(2):
        close(found[image], memory_moved(x[image]), 0)
    assert isinstance(on_meta(net.yolov2).reorg, net.DarknetReorg)
    assert isinstance(net.small_yolov2(3).reorg, nn.PixelUnshuffle)


def test_where_the_values_of_a_cell_come_from():
    line, column = net.origins(nn.PixelUnshuffle(2), 1, 4, 6)
    assert line[:, 1, 2].tolist() == [2, 2, 3, 3]
    assert column[:, 1, 2].tolist() == [4, 5, 4, 5]
    assert net.rows_off(nn.PixelUnshuffle(2), 3, 4, 6).sum() == 0
    line, column = net.origins(net.DarknetReorg(), 4, 8, 8)
    assert line[0].tolist() == [[0] * 4, [1] * 4, [4] * 4, [5] * 4]
    assert column[0].tolist() == [[0, 2, 4, 6]] * 4
    off = net.rows_off(net.DarknetReorg(), 4, 8, 8)
    assert off[0, :, 0].tolist() == [0, 1, 0, 1]
    assert off[8, :, 0].tolist() == [1, 0, 1, 0]  # rows 2, 3, 6, 7 for rows 0-1, 2-3, 4-5, 6-7


def test_the_last_pool_keeps_the_size_and_looks_right_and_down():
    x = torch.tensor([[[[4.0, 1, 2], [3, 0, -5], [-1, -2, -3]]]])
    expected = torch.tensor([[[[4.0, 2, 2], [3, 0, -3], [-1, -2, -3]]]])
    close(net.LastPool()(x), expected, 0)


def test_the_tiny_network_is_its_configuration_written_out():
    network = randomised(net.yolov2_tiny(2))
    x = torch.randn(1, 3, 64, 96)
    y = x
    convs = [part for part in network.body if isinstance(part, nn.Sequential)]
    for k in range(5):
        y = F.max_pool2d(layer(convs[k], y), 2)
    y = F.max_pool2d(F.pad(layer(convs[5], y), (0, 1, 0, 1), value=-math.inf), 2, 1)
    y = layer(convs[7], layer(convs[6], y))
    close(network(x), F.conv2d(y, network.head.weight, network.head.bias))
    assert network(x).shape == (1, 35, 2, 3)
    assert [part[0].out_channels for part in convs] == [16, 32, 64, 128, 256, 512, 1024, 512]


def test_yolo9000_is_the_backbone_and_a_convolution():
    network = on_meta(net.yolo9000)
    backbone = on_meta(net.Darknet)
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)
    found = networks.layers_of(network, 1, 3, 64, 64, kinds=kinds)
    assert found[:-1] == networks.layers_of(backbone, 1, 3, 64, 64, kinds=kinds)
    assert network(torch.empty(2, 3, 64, 32, device="meta")).shape == (2, 3 * 9423, 2, 1)


@pytest.mark.parametrize("name", BUILD)
def test_networks_run_forward_and_backward_on_the_meta_device(name):
    output = networks.runs_on_meta(on_meta(BUILD[name]), 3, 3, 64, 96)
    outputs = {"darknet19": (1000,), "coco": (425, 2, 3), "voc": (125, 2, 3)}
    outputs |= {"tiny": (425, 2, 3), "yolo9000": (28_269, 2, 3)}
    assert output.shape == (3, *outputs[name])


def test_the_small_network_has_a_stride_of_8_and_starts_with_few_objects():
    torch.manual_seed(0)
    network = net.small_yolov2(10)
    assert network(torch.randn(2, 3, 64, 48)).shape == (2, 75, 8, 6)
    assert network.backbone(torch.randn(1, 3, 64, 48))[0].shape == (1, 48, 16, 12)
    assert parameters_of(network) == 226_099
    assert network.head.bias.view(5, 15)[:, 4].tolist() == [-4.0] * 5
    assert network.head.bias.view(5, 15)[:, [3, 5]].abs().max() < 1
    assert net.small_yolov2(3, 2).head.out_channels == 16


# ---- files ---------------------------------------------------------------------------------------


def test_a_network_goes_through_a_weight_file_and_comes_back(tmp_path):
    one, other = randomised(narrow(net.DarknetReorg())), narrow(net.DarknetReorg()).eval()
    darknet.save(one, tmp_path / "n.weights", seen=7)
    assert darknet.load(other, tmp_path / "n.weights") == 7
    x = torch.randn(1, 3, 16, 32)
    close(other(x), one(x), 0)
    darknet.save(other, tmp_path / "m.weights", seen=7)
    assert (tmp_path / "m.weights").read_bytes() == (tmp_path / "n.weights").read_bytes()


def test_layers_stand_in_the_file_as_in_the_configuration():
    order = [str(tuple(t.shape)) for t in darknet.tensors(on_meta(net.yolov2)) if t.ndim == 4]
    assert order[-5:] == [
        "(1024, 1024, 3, 3)",
        "(1024, 1024, 3, 3)",
        "(64, 512, 1, 1)",
        "(1024, 1280, 3, 3)",
        "(425, 1024, 1, 1)",
    ]


def test_a_file_of_the_published_length_is_taken_and_no_other(tmp_path):
    file = tmp_path / "tiny.weights"
    with file.open("wb") as sparse:
        sparse.write(b"\0\0\0\0\2\0\0\0" + bytes(12))
        sparse.truncate(20 + 4 * PUBLISHED["tiny"][1])
    network = net.yolov2_tiny()
    assert darknet.load(network, file) == 0
    assert network.head.weight.abs().max() == 0
    os.truncate(file, 20 + 4 * PUBLISHED["tiny"][1] + 4)
    with pytest.raises(ValueError, match="11,237,146 floats"):
        darknet.load(network, file)


# ---- anchors -------------------------------------------------------------------------------------


def test_the_overlap_of_shapes_is_that_of_boxes_on_one_centre():
    torch.manual_seed(0)
    size, anchors = torch.rand(9, 2) + 0.1, torch.rand(4, 2) + 0.1
    expected = ops.box_iou(
        torch.cat((-size / 2, size / 2), 1), torch.cat((-anchors / 2, anchors / 2), 1)
    )
    close(net.shape_iou(size, anchors), expected)
    assert net.average_iou(size, anchors) == pytest.approx(expected.amax(1).mean().item())
    close(net.by_iou(size, anchors), 1 - expected)
    assert net.average_iou(size, size) == pytest.approx(1)


def test_squares_are_squared_distances():
    size, anchors = torch.tensor([[1.0, 2], [4, 6]]), torch.tensor([[1.0, 2], [4, 2], [0, 0]])
    assert net.by_square(size, anchors).tolist() == [[0, 9, 5], [25, 16, 52]]


def test_k_means_finds_groups_far_apart_and_sorts_them_by_area():
    torch.manual_seed(3)
    groups = torch.tensor([[30.0, 30], [4, 16], [8, 4]])
    size = groups.repeat_interleave(torch.tensor([4, 3, 3]), 0)
    size[0] += torch.tensor([4.0, 2])
    for seed in range(9):  # some starts have two of one group, and one goes without boxes
        torch.manual_seed(seed)
        first = size[torch.randperm(10)[:3]]
        if len(first.unique(dim=0)) == 3 and (first[:, 0] < 30).sum() == 2:
            found = net.k_means(size, 3)
            close(found, torch.tensor([[8.0, 4], [4, 16], [31, 30.5]]))
            break
    else:
        pytest.fail("no start has a box of each group")


def test_a_step_of_k_means_by_hand():
    torch.manual_seed(0)
    size = torch.tensor([[8.0, 8], [10, 10], [20, 20], [28, 28]])
    order = torch.randperm(4)[:2]
    torch.manual_seed(0)
    found = net.k_means(size, 2, steps=0)
    close(found, size[order.sort().values], 0)
    pair = torch.tensor([[9.0, 9], [24, 24]])
    for distance in (net.by_iou, net.by_square):
        torch.manual_seed(1)
        close(net.k_means(size, 2, distance=distance), pair)


def test_an_anchor_without_boxes_stays_where_it_is():
    size = torch.tensor([[6.0, 6.0]] * 5)
    close(net.k_means(size, 2), torch.tensor([[6.0, 6], [6, 6]]), 0)


def test_thirty_steps_and_their_distance_are_the_default():
    calls = []

    def counted(size, anchors):
        calls.append(1)
        return net.by_iou(size, anchors)

    net.k_means(torch.rand(20, 2) + 1, 3, distance=counted)
    assert len(calls) == 30


def test_medians_are_not_drawn_by_one_far_box():
    torch.manual_seed(0)
    size = torch.tensor([[4.0, 4], [4, 4], [5, 4], [30, 30], [30, 30], [30, 40]])
    for seed in range(9):
        torch.manual_seed(seed)
        found = net.k_medians(size, 2)
        if len(found.unique(dim=0)) == 2 and found.amin() == 4 and found.amax() == 30:
            return
    pytest.fail("no start finds both groups")


def test_sizes_are_those_of_objects_that_count():
    truth = scenes_of(
        [[[1.0, 2, 5, 9], [0, 0, 0, 0]], [[3, 3, 9, 4], [1, 1, 2, 2]]], [[0, -1], [1, 2]]
    )
    truth.ignored[1, 1] = True
    assert net.sizes_in(truth).tolist() == [[4, 7], [6, 1]]

    class Source:
        def batches(self, steps, batch):
            assert (steps, batch) == (4, 50)
            self.drawn = torch.rand(())
            return [truth] * steps

    source = Source()
    assert len(net.part_of(source, 5, 200)) == 8
    torch.manual_seed(5)
    assert source.drawn == torch.rand(())


def test_the_anchors_by_hand_are_those_of_the_yolov3_chapter():
    scales = definitions("yolov3").DIGIT_SCALES
    assert sum((scale.anchors for scale in scales), ()) == net.V3
    found = [anchors[[1, 4, 7]].tolist() for anchors in net.BY_HAND.values()]
    assert found[:2] == [[[side] * 2 for side in sides] for sides in ((8, 16, 32), (12, 18, 28))]
    close(found_third := net.BY_HAND["those of the YOLOv3 chapter"], torch.tensor(net.V3).float())
    assert len(found_third) == 9
    assert {5, 9} < set(net.COUNTS)


def test_nine_anchors_of_three_areas_and_three_ratios():
    found = net.three_by_three((4.0, 8.0, 10.0))
    assert found.shape == (9, 2)
    close(found.prod(1), torch.tensor([16.0, 16, 16, 64, 64, 64, 100, 100, 100]))
    close(found[:, 1] / found[:, 0], torch.tensor([2.0, 1, 0.5] * 3))


# ---- boxes ---------------------------------------------------------------------------------------


def test_a_centre_stays_in_its_cell_only_with_the_sigmoid():
    t = torch.tensor([[-90.0, 0.0], [90.0, 2.0]])
    reach = torch.tensor([2.0, 3.0])
    close(net.direct(t, reach), torch.tensor([[0.0, 0.5], [1.0, 1 / (1 + math.exp(-2))]]))
    close(net.free(t, reach), torch.tensor([[-179.5, 0.5], [180.5, 6.5]]))


@pytest.mark.parametrize("place", ["direct", "free"])
def test_a_box_is_an_offset_in_its_cell_and_a_factor_on_its_anchor(place):
    scale = net.Scale(16, ((10, 20), (30, 8)))
    raw = torch.zeros(2, 2 * 7, 3, 5)
    move = (0.25, -0.5) if place == "free" else (math.log(3), -math.log(3))
    raw[1, 7:11, 2, 4] = torch.tensor([*move, math.log(2), math.log(0.5)])
    t = net.by_anchor(raw, scale)
    assert t.shape == (2, 3, 5, 2, 7)
    found = net.decode(t, scale, getattr(net, place))
    x, y = (72 + 7.5, 40 - 4) if place == "free" else (16 * 4.75, 16 * 2.25)
    close(found[1, 2, 4, 1], torch.tensor([x - 30, y - 2, x + 30, y + 2]))
    close(found[0, 0, 0, 0], torch.tensor([3.0, -2, 13, 18]))
    close(found[0, 1, 3, 1], torch.tensor([56 - 15.0, 24 - 4, 56 + 15, 24 + 4]))
    if place == "direct":
        close(net.decode(t, scale), found, 0)


class Answers(nn.Module):
    def __init__(self, raw):
        super().__init__()
        self.raw = raw

    def forward(self, x):
        assert not self.training
        return self.raw if x is None else self.raw.repeat(len(x), 1, 1, 1)


def test_a_score_is_that_of_an_object_times_a_softmax():
    raw = torch.full((1, 8, 1, 2), -20.0)
    raw[0, :4] = 0
    raw[0, 4:, 0, 1] = torch.tensor([math.log(3), math.log(6), math.log(3), 0.0])
    network = Answers(raw)
    (found,) = net.detect(network, None, net.Scale(16, ((8, 8),)))
    assert network.training
    close(found.scores, torch.tensor([0.45, 0.225, 0.075]))
    assert found.labels.tolist() == [0, 1, 2]
    close(found.boxes[0], torch.tensor([20.0, 4, 28, 12]))
    (found,) = net.detect(network, None, net.Scale(16, ((8, 8),)), least=0.4)
    assert found.labels.tolist() == [0]
    raw[0, 4:, 0, 1] = torch.tensor([-math.log(19), 0.05, -9.0, -9])  # just below .05 in all
    assert len(net.detect(network, None, net.Scale(16, ((8, 8),)))[0].labels) == 0
    raw[0, 4, 0, 1] = -math.log(18)
    assert len(net.detect(network, None, net.Scale(16, ((8, 8),)))[0].labels) == 1


def test_of_two_boxes_of_a_class_the_worse_goes():
    raw = torch.zeros(1, 14, 1, 1)
    raw[0, 4] = 2.0
    raw[0, [5, 12]] = 9.0
    for height, kept in ((4.2, 1), (3.4, 2)):  # overlaps of .525 and .425
        scale = net.Scale(16, ((8, 8), (8, height)))
        found = net.detect(Answers(raw), None, scale)[0]
        assert len(found.scores) == kept
    scale = net.Scale(16, ((8, 8), (8, 3.8)))  # .475
    assert len(net.detect(Answers(raw), None, scale)[0].scores) == 1
    assert len(net.detect(Answers(raw), None, scale, overlap=0.5)[0].scores) == 2


def test_all_images_are_searched_fifty_at_a_time():
    raw = torch.zeros(1, 7, 1, 1)
    raw[0, 4] = 5.0

    class Each(Answers):
        def forward(self, x):
            assert len(x) <= 50
            return super().forward(x)

    found = net.find_all(Each(raw), torch.zeros(70, 3, 16, 16), net.Scale(16, ((8, 8),)))
    assert [len(one.labels) for one in found] == [2] * 70


# ---- loss ----------------------------------------------------------------------------------------


def two_anchors():
    return net.Scale(16, ((10, 20), (20, 20)))


def test_each_object_has_one_box_at_its_cell_with_the_best_anchor():
    places = [
        [[0.0, 0, 16, 20], [35, 17, 43, 35]],
        [[18, 34, 38, 46], [1, 1, 2, 2]],
        [[0, 0, 9, 9]] * 2,
    ]
    truth = scenes_of(places, [[2, 1], [0, -1], [1, 1]], size=48)
    truth.ignored[2] = True
    found = net.positives(truth, two_anchors())
    assert found.image.tolist() == [0, 0, 1]
    assert found.label.tolist() == [2, 1, 0]
    assert found.index.tolist() == [1, (1 * 3 + 2) * 2, (2 * 3 + 1) * 2 + 1]
    close(found.box, torch.tensor([places[0][0], places[0][1], places[1][0]]))
    offsets = [[0.5, 0.625], [39 / 16 - 2, 26 / 16 - 1], [0.75, 0.5]]
    close(found.offset, torch.tensor(offsets))
    close(found.anchor, torch.tensor([[20.0, 20], [10, 20], [20, 20]]))
    wide = truth._replace(images=torch.zeros(3, 3, 48, 64))
    assert net.positives(wide, two_anchors()).index.tolist() == [1, (4 + 2) * 2, (8 + 1) * 2 + 1]


def test_the_loss_of_a_case_worked_by_hand():
    truth = scenes_of([[[0.0, 0, 16, 20], [0, 0, 0, 0]], [[0.0, 0, 0, 0]] * 2], [[2, -1], [-1, -1]])
    raw = torch.zeros(2, 16, 2, 2)
    raw[1, [4, 12]] = -1.0  # nothing there, and said so with .27
    size = math.log(0.8) ** 2 / 2
    objectness = 8 * math.log(2) + 8 * math.log(1 + math.exp(-1))
    expected = torch.tensor([0.125**2, size, objectness, math.log(3)]) / 2
    close(net.detection_loss(raw, truth, two_anchors()), expected)

    raw[0, 8:16, 0, 0] = torch.tensor([1.0, -2, 0.5, 0.25, 3.0, 1, -1, 2])
    p, q = torch.tensor([1.0, -2]).sigmoid().tolist()
    x, y, w, h = 16 * p, 16 * q, 20 * math.exp(0.5), 20 * math.exp(0.25)
    found = torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]])
    iou = ops.box_iou(found, torch.tensor([[0.0, 0, 16, 20]])).item()
    size = ((0.5 - math.log(0.8)) ** 2 + 0.25**2) / 2
    objectness += math.log(1 + math.exp(3)) - iou * 3 - math.log(2)
    classes = math.log(math.e + math.exp(-1) + math.exp(2)) - 2
    centre = (p - 0.5) ** 2 + (q - 0.625) ** 2
    expected = torch.tensor([centre, size, objectness, classes]) / 2
    close(net.detection_loss(raw, truth, two_anchors()), expected)

    expected[0] = (1.25**2 + (0.5 - 2.5 - 0.625) ** 2) / 2  # 1 and -2, times 20 / 16
    loose = net.detection_loss(raw, truth, two_anchors(), net.free)
    close(loose[[0, 1, 3]], expected[[0, 1, 3]])
    x, y = 8 + 20, 8 - 40
    far = torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]])
    change = iou - ops.box_iou(far, torch.tensor([[0.0, 0, 16, 20]])).item()
    assert loose[2].item() == pytest.approx(expected[2].item() + 3 * change / 2, rel=1e-5)


def test_losses_of_several_objects_add_up():
    places = [[[0.0, 0, 16, 20], [16, 16, 32, 32]]]
    both = scenes_of(places, [[2, 1]])
    raw = torch.zeros(1, 16, 2, 2)
    found = net.detection_loss(raw, both, two_anchors())
    size = (math.log(0.8) ** 2 + 2 * math.log(0.8) ** 2) / 2
    expected = torch.tensor([0.125**2, size, 8 * math.log(2), 2 * math.log(3)])
    close(found, expected)


def test_a_box_on_an_object_is_left_out_above_0_6_unless_it_is_responsible():
    scale = net.Scale(32, ((16, 16), (16, 10.5), (16, 9.5)))  # overlaps of .66 and .59
    truth = scenes_of([[[8.0, 8, 24, 24]]], [[0]])
    places = net.decode(torch.zeros(1, 1, 1, 3, 6), scale).flatten(1, 3)
    wanted, counted = net.objectness_wanted(places, truth, net.positives(truth, scale))
    assert counted.tolist() == [[True, False, True]]
    close(wanted, torch.tensor([[1.0, 0, 0]]))


def test_the_aim_of_the_objectness_passes_no_gradient():
    truth = scenes_of([[[0.0, 0, 16, 20]]], [[1]])
    raw = torch.zeros(1, 16, 2, 2, requires_grad=True)
    net.detection_loss(raw, truth, two_anchors())[2].backward()
    assert raw.grad[0, [0, 1, 2, 3, 8, 9, 10, 11]].abs().max() == 0
    assert raw.grad[0, [4, 12]].abs().min() > 0


def test_the_centre_error_is_a_distance_in_pixels():
    truth = scenes_of(
        [[[4.0, 4, 24, 20], [0, 0, 0, 0]], [[20, 20, 30, 40], [0, 0, 0, 0]]], [[0, -1], [1, -1]]
    )
    raw = torch.zeros(2, 14, 2, 2)
    # centres 14, 12 and 25, 30 against 8, 8 and 24, 24
    expected = (math.hypot(6, 4) + math.hypot(1, 6)) / 2
    for place in (net.direct, net.free):
        found = net.centre_error(raw, truth, two_anchors(), place)
        assert found.item() == pytest.approx(expected, rel=1e-5)
    raw[0, 7] = 0.3  # the wide anchor moves 6 pixels
    found = net.centre_error(raw, truth, two_anchors(), net.free)
    assert found.item() == pytest.approx((4 + math.hypot(1, 6)) / 2, rel=1e-5)


def test_the_first_steps_are_noted_before_they_are_taken(monkeypatch):
    monkeypatch.setitem(net.begin.__globals__, "source", type("S", (), {"classes": "abc"}))
    truth = scenes_of([[[4.0, 4, 16, 20]], [[10, 8, 26, 28]]], [[1], [2]])
    truth = truth._replace(images=torch.rand(2, 3, 32, 32))
    scale = net.Scale(8, ((12, 16), (16, 20)))
    torch.manual_seed(0)
    network = net.small_yolov2(3, 2).to(net.device).train()
    first = net.centre_error(network(truth.images), truth, scale, net.direct)
    made = []
    real = torch.optim.SGD
    monkeypatch.setattr(
        torch.optim, "SGD", lambda *given, **how: made.append(real(*given, **how)) or made[-1]
    )
    torch.manual_seed(0)
    found = net.begin([truth] * 40, scale, net.direct)
    set_to = made[0].param_groups[0]
    assert [set_to[name] for name in ("lr", "momentum", "weight_decay")] == [1e-3, 0.9, 5e-4]
    assert found.shape == (40,)
    close(found[0], first)
    assert found[-1] < 0.8 * found[0]
    torch.manual_seed(0)
    other = net.begin([truth] * 2, scale, net.direct, loss_of=net.in_anchors)
    close(other[0], first)
    assert other[1] != found[1]


def test_an_error_in_anchors_is_smaller_by_their_sizes():
    truth = scenes_of([[[0.0, 0, 16, 20], [0, 0, 0, 0]], [[0.0, 0, 0, 0]] * 2], [[2, -1], [-1, -1]])
    raw = torch.zeros(2, 16, 2, 2)
    raw[0, 8:10, 0, 0] = torch.tensor([0.5, -0.25])  # of 20 pixels each
    for place, offset in (
        (net.free, (8 + 10, 8 - 5)),
        (net.direct, (16 / (1 + math.exp(-0.5)), 16 / (1 + math.exp(0.25)))),
    ):
        usual = net.detection_loss(raw, truth, two_anchors(), place)
        found = net.in_anchors(raw, truth, two_anchors(), place)
        close(found[1:], usual[1:], 0)
        error = ((offset[0] - 8) / 20) ** 2 + ((offset[1] - 10) / 20) ** 2
        assert found[0].item() == pytest.approx(error / 2, rel=1e-5)


def test_the_loss_reaches_all_parameters_and_one_batch_is_fitted(monkeypatch):
    monkeypatch.setitem(net.train.__globals__, "SIDES", (32,))
    torch.manual_seed(0)
    network = net.small_yolov2(3, 2)
    truth = scenes_of([[[4.0, 4, 16, 20]], [[10, 8, 26, 28]]], [[1], [2]])
    truth = truth._replace(images=torch.rand(2, 3, 32, 32))
    scale = net.Scale(8, ((12, 16), (16, 20)))
    net.detection_loss(network(truth.images), truth, scale).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    network.zero_grad()
    losses = net.train(network, [truth] * 60, scale, steps=60, rate=0.01)
    assert len(losses) == 60
    assert losses[-1] < losses[0] / 10


# ---- training ------------------------------------------------------------------------------------


def test_scenes_change_their_size_with_their_boxes():
    truth = scenes_of([[[4.0, 8, 16, 24]]], [[1]], size=64)
    truth = truth._replace(images=torch.rand(1, 3, 64, 64))
    found = net.resized(truth, 48)
    assert found.images.shape == (1, 3, 48, 48)
    assert found.boxes.tolist() == [[[3, 6, 12, 18]]]
    how = {"mode": "bilinear", "antialias": True}
    close(found.images, F.interpolate(truth.images, scale_factor=0.75, **how), 1e-4)
    assert net.resized(truth, 64).images.equal(truth.images)
    assert net.resized(truth, 80).boxes[0, 0].tolist() == [5, 10, 20, 30]


def test_each_batch_has_a_size_by_chance_and_the_schedule_is_one_cycle(monkeypatch):
    seen = {"sides": [], "rates": []}
    real = torch.optim.AdamW

    def noted(parameters, rate, **how):
        seen.update(how, rate=rate)
        seen["optimizer"] = real(parameters, rate, **how)
        return seen["optimizer"]

    monkeypatch.setattr(torch.optim, "AdamW", noted)

    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = nn.Conv2d(3, 7, 16, 16)

        def forward(self, x):
            assert self.training
            seen["sides"].append(x.shape[3])
            seen["rates"].append(seen["optimizer"].param_groups[0]["lr"])
            return self.network(x)

    truth = scenes_of([[[4.0, 4, 16, 20]]], [[1]], size=64)
    torch.manual_seed(0)
    scale = net.Scale(16, ((8, 8),))
    losses = net.train(Seen().eval(), [truth] * 60, scale, steps=60)
    assert len(losses) == 60
    assert set(seen["sides"]) == {48, 64, 80}
    assert min(map(seen["sides"].count, (48, 64, 80))) > 9
    assert (seen["rate"], seen["weight_decay"]) == (8e-3, 0.01)
    networks.rises_and_falls(seen["rates"], 8e-3, 14)


def test_the_loss_of_a_step_is_the_sum_of_its_parts(monkeypatch):
    torch.manual_seed(0)
    network = net.small_yolov2(3, 2)
    truth = scenes_of([[[4.0, 4, 16, 20]]], [[1]], size=64)
    truth = truth._replace(images=torch.rand(1, 3, 64, 64))
    scale = net.Scale(8, ((12, 16), (16, 20)))
    parts = [
        net.detection_loss(network.train()(batch.images), batch, scale).sum().item()
        for batch in (net.resized(truth, side) for side in (48, 64, 80))
    ]
    (found,) = net.train(network, [truth], scale, steps=1)
    assert min(abs(found - part) for part in parts) < 1e-4 * max(parts)


# ---- WordTree ------------------------------------------------------------------------------------

TREE = (("a", "b", "c", "d", "e", "f"), (-1, -1, 0, 0, 0, 3))


def test_the_children_of_a_node():
    tree = net.Tree(*TREE)
    assert [tree.children(node) for node in (-1, 0, 1, 3)] == [[0, 1], [2, 3, 4], [], [5]]
    names = [[net.THINGS.names[k] for k in net.THINGS.children(n)] for n in range(-1, 8)]
    found = [["animal", "vehicle"], ["dog", "cat"], ["car", "boat"], ["terrier", "husky"]]
    assert names == [*found, [], [], [], [], []]
    assert all(parent < node for node, parent in enumerate(net.THINGS.parents))


def test_probabilities_multiply_along_the_path():
    x = torch.tensor([[3.0, 1, 1, 4, 5, 7], [1, 1, 1, 1, 2, 9]]).log()
    tree = net.Tree(*TREE)
    given = torch.tensor([[3 / 4, 1 / 4, 0.1, 0.4, 0.5, 1], [1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 2, 1]])
    close(net.conditional_logs(x, tree).exp(), given)
    expected = given.clone()
    expected[:, 2:5] *= given[:, :1]
    expected[:, 5] = expected[:, 3]
    close(net.tree_logs(x, tree).exp(), expected)
    close(net.tree_logs(x.view(2, 1, 6), tree).exp(), expected.view(2, 1, 6))
    loss = net.tree_loss(x, torch.tensor([4, 0]), tree)
    assert loss.item() == pytest.approx(-(math.log(3 / 8) + math.log(1 / 2)) / 2, rel=1e-5)


def test_a_flat_tree_is_a_softmax():
    torch.manual_seed(0)
    x, labels = torch.randn(3, 7), torch.tensor([6, 0, 3])
    tree = net.flat(tuple("abcdefg"))
    assert tree.parents == (-1,) * 7
    close(net.tree_loss(x, labels, tree), F.cross_entropy(x, labels))


def test_a_coarse_label_teaches_nothing_below_it():
    x = torch.randn(2, 6, requires_grad=True)
    net.tree_loss(x, torch.tensor([0, 0]), net.Tree(*TREE)).backward()
    assert x.grad[:, 2:].abs().max() == 0
    assert x.grad[:, :2].abs().min() > 0


def test_a_descent_stops_where_it_is_not_sure():
    tree = net.Tree(*TREE)
    probability = torch.tensor([0.75, 0.25, 0.1, 0.25, 0.4, 0.25])
    assert [net.descend(probability, tree, p) for p in (0.8, 0.75, 0.5, 0.4, 0.1)] == [
        -1,
        0,
        0,
        4,
        4,
    ]
    probability = torch.tensor([0.75, 0.25, 0.1, 0.5, 0.15, 0.5])
    assert net.descend(probability, tree, 0.5) == 5
