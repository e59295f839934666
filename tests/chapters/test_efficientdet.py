"""The networks of notebooks/efficientdet.py."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import ops

import networks
from detectors import scenes_of
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

net = definitions("efficientdet")

PUBLISHED = {  # with the biases in front of batch norm; G MACs of table 2
    0: (3_880_067, 2.5),
    1: (6_625_898, 6.1),
    2: (8_097_039, 11),
}
PARTS_OF_D0 = {
    "backbone": 3_595_388,
    "pyramid": 196_281,
    "class_head": 69_354,
    "box_head": 19_044,
}


def small(**how):
    """Five levels, two layers, three classes, two anchors, a backbone that hands its maps on."""
    size = net.Size(d=4, depth=2, head_depth=2)
    return net.EfficientDet(nn.Identity(), (3, 5, 6), size, K=3, A=2, **how)


def maps_for(batch=2):
    return [torch.randn(batch, c, 32 // s, 48 // s) for c, s in ((3, 1), (5, 2), (6, 4))]


def randomised(network):
    torch.manual_seed(0)
    networks.share_weights(network, network)
    for node in net.fusions_of(network):
        nn.init.uniform_(node.weights, -0.3, 2.0)
    return network.eval()


# ---- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", PUBLISHED)
def test_the_published_sizes_have_the_published_counts(phi):
    network = on_meta(net.efficientdet, phi)
    parameters, billions = PUBLISHED[phi]
    assert parameters_of(network) == parameters
    side = 512 + 128 * phi
    assert abs(macs_of(network, 1, 3, side, side) / 1e9 / billions - 1) < 0.02
    if phi == 0:
        for name, expected in PARTS_OF_D0.items():
            assert parameters_of(getattr(network, name)) == expected
        plain = on_meta(net.efficientdet, 0, parts=net.Parts(bias=False))
        assert parameters_of(plain) == 3_877_763


def test_the_sizes_follow_the_equations():
    found = [net.scaled(phi) for phi in range(7)]
    widths = [64, 86.4, 116.64, 157.464, 212.5764, 286.97814, 387.420489]
    close(torch.tensor([f[0] for f in found]), torch.tensor(widths))
    assert [f[1] for f in found] == [3, 4, 5, 6, 7, 8, 9]
    assert [f[2] for f in found] == [3, 3, 3, 4, 4, 4, 5]
    assert [f[3] for f in found] == [512, 640, 768, 896, 1024, 1152, 1280]
    assert net.WIDTHS == (64, 88, 112, 160, 224, 288, 384)
    assert net.DEPTHS == (3, 4, 5, 6, 7, 7, 8)
    assert net.SIDES == (512, 640, 768, 896, 1024, 1280, 1280)


@pytest.mark.parametrize("phi", [3, 5])
def test_larger_sizes_are_built_from_their_rows(phi):
    network = on_meta(net.efficientdet, phi)
    assert len(network.pyramid.layers) == {3: 6, 5: 7}[phi]
    assert len(network.class_head.convs) == len(network.box_head.convs) == 4
    assert network.box_head.last[1].out_channels == 36
    assert network.class_head.last[1].out_channels == 810
    assert network.pyramid.layers[0].top.norm.num_features == {3: 160, 5: 288}[phi]


# ---- fusion --------------------------------------------------------------------------------------


def test_shares_of_a_case_by_hand():
    w = torch.tensor([3.0, -2.0, 1.0])
    close(net.fast_normalised(w), torch.tensor([3 / 4.0001, 0, 1 / 4.0001]), 1e-7)
    close(net.softmax(torch.tensor([math.log(3), 0.0])), torch.tensor([0.75, 0.25]))
    assert net.fast_normalised(-torch.ones(2)).tolist() == [0, 0]
    tiny = net.fast_normalised(torch.tensor([1e-4, 0.0]))
    close(tiny, torch.tensor([0.5, 0.0]))


@pytest.mark.parametrize("add", ["weighted_sum", "stacked_sum"])
def test_both_sums_are_sums_by_shares(add):
    maps = torch.randn(3, 2, 4, 5, 6)
    shares = torch.tensor([0.5, 0.2, -0.3])
    found = getattr(net, add)(tuple(maps), shares)
    close(found, 0.5 * maps[0] + 0.2 * maps[1] - 0.3 * maps[2])


def written(norm, x):
    return F.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )


def written_separable(layer, x):
    depthwise, pointwise = layer
    x = F.conv2d(x, depthwise.weight, None, 1, 1, groups=x.shape[1])
    return F.conv2d(x, pointwise.weight, pointwise.bias)


def written_node(node, *maps):
    w = node.weights.clamp(min=0)
    total = sum(v * x for v, x in zip(w, maps)) / (w.sum() + 1e-4)
    assert node.norm.eps == 1e-3
    return written(node.norm, written_separable(node.conv, total * total.sigmoid()))


def test_a_node_is_shares_swish_and_a_separable_convolution():
    node = randomised(net.Fusion(4, 3))
    maps = torch.randn(3, 2, 4, 5, 7)
    close(node(*maps), written_node(node, *maps))
    assert node.conv[1].bias is not None
    assert net.Fusion(4, 2, parts=net.Parts(bias=False)).conv[1].bias is None
    assert net.Fusion(4, 2).weights.tolist() == [1, 1]
    soft = net.Fusion(4, 2, parts=net.Parts(normalise=net.softmax))
    assert soft.normalise is net.softmax
    assert isinstance(net.Fusion(4, 2, parts=net.Parts(norm=net.quick_norm)).norm, nn.BatchNorm2d)


def test_batch_norm_has_the_constants_of_the_authors():
    for norm, momentum in ((net.batch_norm(3), 0.01), (net.quick_norm(3), 0.1)):
        assert (norm.eps, norm.momentum, norm.num_features) == (1e-3, momentum, 3)


def test_maps_are_enlarged_by_repeating_and_halved_by_the_largest():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    large = net.enlarged(x, torch.empty(1, 9, 6, 8))
    close(large, x.repeat_interleave(2, 2).repeat_interleave(2, 3), 0)
    small = net.halved(-x)
    expected = torch.tensor([[0.0, -1], [-4, -5]]).view(1, 1, 2, 2)
    close(small, expected, 0)


# ---- the pyramid ---------------------------------------------------------------------------------

# Nodes of five levels in the order of the authors' code: the level, and the numbers of what is
# read. 0 to 4 are the inputs, finest first; 5 is the first node.
NODES = [
    (3, [3, 4]),
    (2, [2, 5]),
    (1, [1, 6]),
    (0, [0, 7]),
    (1, [1, 7, 8]),
    (2, [2, 6, 9]),
    (3, [3, 5, 10]),
    (4, [4, 11]),
]


def resized(x, height, width):
    if x.shape[2] < height:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    if x.shape[2] > height:
        padded = F.pad(x, (1, 1, 1, 1), value=-math.inf)
        return padded.unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))
    return x


def graph(nodes, maps, again):
    """A layer as a list of nodes; on the way up inputs come from `again`."""
    made = list(maps)
    for number, (node, (level, read)) in enumerate(zip(nodes, NODES, strict=True)):
        shape = maps[level].shape[2:]
        sources = []
        for k in read:
            x = again[k] if number > 3 and k < 5 else made[k]
            sources.append(resized(x, *shape))
        made.append(written_node(node, *sources))
    return [made[8], made[9], made[10], made[11], made[12]]


def projected(layer, x):
    return written(layer[1], F.conv2d(x, layer[0].weight, layer[0].bias))


def test_the_pyramid_is_the_authors_graph_of_nodes():
    bifpn = randomised(net.BiFPN((3, 5, 6), 4, 2, levels=5))
    c3, c4, c5 = maps = maps_for()
    inputs = bifpn.inputs
    p6 = resized(projected(inputs.coarser, c5), 4, 6)
    p7 = resized(p6, 2, 3)
    levels = [projected(layer, c) for layer, c in zip(inputs.first, maps, strict=True)]
    again = [levels[0], projected(inputs.second[0], c4), projected(inputs.second[1], c5), p6, p7]
    levels += [p6, p7]
    for layer in bifpn.layers:
        nodes = [*layer.down, *layer.up, layer.top]
        levels = again = graph(nodes, levels, again)
    for found, expected in zip(bifpn(maps), levels, strict=True):
        close(found, expected)


def test_a_layer_is_the_figure_written_out():
    layer = randomised(net.Layer(4, 5))
    maps = [torch.randn(1, 4, 32 // 2**k, 16 // 2**k) for k in range(5)]
    again = [torch.randn_like(x) for x in maps]
    for found, expected in zip(
        layer(maps, again), net.written_out(layer, maps, again), strict=True
    ):
        close(found, expected, 0)


def test_the_second_projections_are_read_on_the_way_up_only():
    layer = randomised(net.Layer(4, 4))
    maps = [torch.randn(1, 4, 16 // 2**k, 16 // 2**k) for k in range(4)]
    other = [maps[0], *(x + 1 for x in maps[1:3]), maps[3]]
    before = layer(maps, maps)
    after = layer(maps, other)
    close(after[0], before[0], 0)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(after[1:], before[1:]))
    ignored = [x + 1 for x in maps]
    close(layer(maps, [ignored[0], *maps[1:3], ignored[3]])[3], before[3], 0)


def test_levels_beyond_the_backbone_are_pooled():
    inputs = randomised(net.Inputs((3, 5), 4, levels=5))
    maps = [torch.randn(1, 3, 32, 16), torch.randn(1, 5, 16, 8)]
    first, again = inputs(maps)
    assert [tuple(x.shape[2:]) for x in first] == [(32, 16), (16, 8), (8, 4), (4, 2), (2, 1)]
    assert again[0] is first[0]
    assert all(a is b for a, b in zip(first[2:], again[2:], strict=True))
    close(first[4], net.halved(net.halved(net.halved(projected(inputs.coarser, maps[1])))))


# ---- heads and network ---------------------------------------------------------------------------


def test_a_head_has_one_set_of_convolutions_and_a_batch_norm_for_each_level():
    head = randomised(net.Head(4, 2, 6, levels=3))
    maps = [torch.randn(2, 4, 8 // 2**k, 8 // 2**k) for k in range(3)]
    for number, (x, found) in enumerate(zip(maps, head(maps), strict=True)):
        for conv, norm in zip(head.convs, head.norms[number], strict=True):
            x = written(norm, written_separable(conv, x))
            x = x * x.sigmoid()
        close(found, written_separable(head.last, x))
    plain = net.Head(4, 1, 6, levels=3, parts=net.Parts(bias=False))
    assert plain.convs[0][1].bias is None
    assert plain.last[1].bias is not None
    assert len(head.norms) == 3


def test_the_network_gives_class_and_box_maps_of_all_levels():
    network = randomised(small())
    maps = maps_for()
    classes, places = network(maps)
    levels = network.pyramid(maps)
    for found, head, channels in ((classes, network.class_head, 6), (places, network.box_head, 8)):
        for x, expected in zip(found, head(levels), strict=True):
            close(x, expected, 0)
            assert x.shape[1] == channels


def test_every_class_starts_with_a_score_of_one_percent():
    network = small()
    bias = network.class_head.last[1].bias
    close(bias.sigmoid(), torch.full((6,), 0.01))
    assert network.box_head.last[1].bias.abs().max() < 1


def test_d0_runs_forward_and_backward_on_the_meta_device():
    network = on_meta(net.efficientdet, 0)
    classes, places = networks.runs_on_meta(network, 2, 3, 128, 256)
    assert [tuple(x.shape) for x in classes] == [
        (2, 810, 128 // s, 256 // s) for s in (8, 16, 32, 64, 128)
    ]
    assert [x.shape[1] for x in places] == [36] * 5


def test_the_small_network_has_strides_of_4_8_and_16():
    torch.manual_seed(0)
    network = net.small_efficientdet(10)
    classes, places = network(torch.randn(2, 3, 64, 32))
    assert [tuple(x.shape) for x in classes] == [(2, 20, 64 // s, 32 // s) for s in (4, 8, 16)]
    assert [x.shape[1] for x in places] == [8] * 3
    kinds = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in kinds} == {0.1}
    assert network.pyramid.layers[0].top.conv[1].bias is None


def test_the_small_backbone_is_six_convolutions_written_out():
    backbone = randomised(net.SmallBackbone())
    x = torch.randn(2, 3, 32, 48)

    def layer(part, x):
        conv, norm, _ = part
        y = written(norm, F.conv2d(x, conv.weight, None, conv.stride, 1))
        return y * y.sigmoid()

    y, strides = x, []
    for part in backbone.fine:
        y = layer(part, y)
        strides.append(part[0].stride[0])
    c2 = y
    for part in backbone.coarse:
        y = layer(part, y)
        strides.append(part[0].stride[0])
    found = backbone(x)
    close(found[0], c2)
    close(found[1], y)
    assert strides == [2, 2, 1, 2, 1, 1]
    assert [c.shape[1] for c in found] == [32, 64]


def test_the_tree_detector_reads_three_maps_and_has_four_levels():
    torch.manual_seed(0)
    network = net.tree_detector()
    maps = [torch.randn(2, c, 8 // s, 16 // s) for c, s in ((40, 1), (112, 2), (320, 4))]
    classes, places = network(maps)
    assert [tuple(x.shape) for x in classes] == [
        (2, 3, 8, 16),
        (2, 3, 4, 8),
        (2, 3, 2, 4),
        (2, 3, 1, 2),
    ]
    assert places[0].shape[1] == 12
    assert all(node.normalise is net.fast_normalised for node in net.fusions_of(network))
    soft = net.tree_detector(net.softmax)
    assert all(node.normalise is net.softmax for node in net.fusions_of(soft))
    assert len(net.fusions_of(soft)) == 6
    trees, digits = net.TREE_ANCHORS, net.DIGIT_ANCHORS  # pixels on the finest level
    close(
        torch.tensor(trees.shapes()) * trees.stride,
        torch.tensor([[20.0], [32], [44.8]]).expand(3, 2),
    )
    close(torch.tensor(digits.shapes()).prod(1).sqrt() * digits.stride, torch.tensor([8, 11.2]))
    assert digits.ratios == (0.7,)
    assert {m.momentum for m in soft.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}
    assert soft.pyramid.layers[0].top.conv[1].bias is None


# ---- cost of the sums ----------------------------------------------------------------------------


def test_values_moved_are_those_counted_by_hand():
    maps = list(torch.randn(2, 1, 2, 3, 4))  # 24 values each
    form = net.Form(2, net.softmax, net.weighted_sum)
    close(form(maps), maps[0] / 2 + maps[1] / 2)
    # two products, each with a share, and a sum; the softmax of two numbers
    assert net.moved(form, maps) == 2 * (24 + 1 + 24) + 72 + 4
    stacked = net.Form(2, net.softmax, net.stacked_sum)
    assert net.moved(stacked, maps) == (48 + 48) + (48 + 2 + 48) + (48 + 24) + 4
    # each map is multiplied and divided by a sum with epsilon; they are added; relu
    divided = net.Form(2, torch.relu, net.divided_sum)
    close(divided(maps), (maps[0] + maps[1]) / 2.0001)
    assert net.moved(divided, maps) == 4 * (24 + 1 + 24) + 2 * (3 + 2) + 72 + 4


def test_the_shortest_time_is_of_passes_after_the_first_ones():
    calls = []

    class Counted(nn.Module):
        def forward(self, maps):
            calls.append(torch.get_num_threads())

    threads = torch.get_num_threads()
    assert 0 < net.shortest(Counted(), [], rounds=5) < 1
    assert calls == [1] * 25
    assert torch.get_num_threads() == threads


# ---- boxes ---------------------------------------------------------------------------------------


def test_anchors_stand_at_cells_level_by_level():
    anchors = net.Anchors(8, (2, 3), (0.25, 1.0))
    assert len(anchors) == 4
    close(torch.tensor(anchors.shapes()), torch.tensor([[1.0, 4], [2, 2], [1.5, 6], [3, 3]]))
    found = net.anchor_boxes(anchors, [torch.empty(1, 1, 2, 3), torch.empty(1, 1, 1, 2)])
    assert found.shape == ((6 + 2) * 4, 4)
    close(found[0], torch.tensor([0.0, -12, 8, 20]))
    close(found[4 * 5 + 1], torch.tensor([12.0, 4, 28, 20]))  # row 1, column 2, second
    close(found[24 + 4 + 3], torch.tensor([0.0, -16, 48, 32]))  # second level, column 1
    assert (len(net.PUBLISHED), net.PUBLISHED.stride) == (9, 8)
    shapes = torch.tensor(net.PUBLISHED.shapes())
    sides = shapes.prod(1).sqrt().view(3, 3)
    close(sides, torch.tensor([4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)])[:, None].expand(3, 3))
    close(shapes[:3, 0] / shapes[:3, 1], torch.tensor([0.5, 1, 2]))


def test_a_box_is_moved_and_stretched_and_found_again():
    anchor = torch.tensor([10.0, 20, 30, 60])
    t = torch.tensor([0.5, -0.25, math.log(2), math.log(0.5)])
    expected = torch.tensor([10.0, 20, 50, 40])
    close(net.decode(t, anchor), expected)
    close(net.encode(expected, anchor), t)
    torch.manual_seed(0)
    corner, size = torch.rand(2, 50, 2) + 0.1
    places = torch.cat((corner, corner + size), 1)
    close(net.decode(net.encode(places, anchor), anchor), places, 1e-4)
    wide = net.decode(torch.tensor([0.0, 0, 9, 0]), anchor)
    close(wide[2] - wide[0], torch.tensor(20 * math.exp(4)))


def test_numbers_follow_the_anchors():
    raw = torch.zeros(2, 6, 2, 3)
    raw[1, 3:, 1, 2] = torch.tensor([7.0, 8, 9])
    found = net.by_anchor([raw, torch.ones(2, 6, 1, 1)], 2)
    assert found.shape == (2, 14, 3)
    assert found[1, 11].tolist() == [7, 8, 9]
    assert found[0, 12:].min() == 1


class Answers(nn.Module):
    def __init__(self, classes, places):
        super().__init__()
        self.answer = (classes, places)

    def forward(self, x):
        assert not self.training
        return self.answer


def test_detections_have_scores_of_their_own_for_each_class():
    anchors = net.Anchors(16, (1,), (1,))
    classes = torch.full((1, 2, 1, 2), -9.0)
    classes[0, :, 0, 1] = torch.tensor([math.log(3), -math.log(4)])
    places = torch.zeros(1, 4, 1, 2)
    places[0, :2, 0, 1] = 0.5
    network = Answers([classes], [places])
    (found,) = net.detect(network, None, anchors)
    assert network.training
    close(found.scores, torch.tensor([0.75, 0.2]))
    assert found.labels.tolist() == [0, 1]
    close(found.boxes[0], torch.tensor([24.0, 8, 40, 24]))
    (found,) = net.detect(network, None, anchors, least=0.5)
    assert found.labels.tolist() == [0]
    classes[0, :, 0, 1] = -2.9  # .052
    assert len(net.detect(network, None, anchors)[0].scores) == 2
    classes[0, :, 0, 1] = -3.0  # .047
    assert len(net.detect(network, None, anchors)[0].scores) == 0


# ---- loss ----------------------------------------------------------------------------------------


def test_an_anchor_answers_for_the_object_it_overlaps_most():
    anchor = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4.9], [20, 20, 30, 30]])
    truth = scenes_of(
        [[[0.0, 0, 10, 10], [21, 21, 23, 23]], [[0, 0, 10, 6], [0, 0, 0, 0]]], [[0, 1], [2, -1]]
    )
    found = net.assign(anchor, truth)
    assert found.tolist() == [[0, 0, -1, 1], [0, 0, 0, -1]]
    strict = net.assign(anchor, truth, least=0.7)
    assert strict.tolist() == [[0, -1, -1, 1], [-1, 0, 0, -1]]


def test_objects_that_are_ignored_or_not_there_get_no_anchor():
    anchor = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    truth = scenes_of([[[0.0, 0, 10, 10], [20, 20, 30, 30]]], [[0, -1]], ignored=[[True, False]])
    assert net.assign(anchor, truth).tolist() == [[-1, -1]]


def test_the_focal_loss_of_cases_by_hand():
    t = torch.tensor([math.log(9), math.log(9), 0.0])
    wanted = torch.tensor([1.0, 0, 0])
    expected = torch.tensor(
        [
            0.25 * 0.1**1.5 * -math.log(0.9),
            0.75 * 0.9**1.5 * -math.log(0.1),
            0.75 * 0.5**1.5 * math.log(2),
        ]
    )
    close(net.focal_loss(t, wanted), expected)
    close(net.focal_loss(t, wanted, alpha=0.5, gamma=0), -0.5 * torch.tensor([0.9, 0.1, 0.5]).log())
    reference = ops.sigmoid_focal_loss(t, wanted, alpha=0.25, gamma=1.5)
    close(net.focal_loss(t, wanted), reference)


def test_the_loss_of_a_case_worked_by_hand():
    anchors = net.Anchors(16, (1,), (1,))
    truth = scenes_of([[[0.0, 0, 16, 20]], [[0, 0, 0, 0]]], [[1], [-1]])
    classes = torch.zeros(2, 2, 1, 2)
    classes[1] = -1.0
    places = torch.zeros(2, 4, 1, 2)
    places[0, :, 0, 0] = torch.tensor([0.05, 0.5, -1.0, math.log(1.25)])
    found = net.detection_loss(([classes], [places]), truth, anchors)
    p = 1 / (1 + math.e)
    focal = (0.25 + 3 * 0.75) * 0.5**1.5 * math.log(2)
    focal += 4 * 0.75 * p**1.5 * math.log(1 + math.exp(-1))
    huber = 0.05**2 / 2 + 0.1 * (0.375 - 0.05) + 0.1 * (1 - 0.05)
    expected = torch.tensor([focal, 50 * huber / 4]) / 2
    close(found, expected)


def test_the_loss_reaches_all_parameters():
    torch.manual_seed(0)
    network = net.small_efficientdet(3)
    # an object for each level: its boxes learn at those with a positive only
    places = [[4.0, 4, 12, 16], [40, 4, 54, 24], [10, 14, 40, 58]]
    truth = scenes_of([places], [[0, 1, 2]], size=64)
    net.detection_loss(
        network(truth.images + torch.rand(1, 3, 64, 64)), truth, net.DIGIT_ANCHORS
    ).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in network.parameters())


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    torch.manual_seed(0)
    network = net.small_efficientdet(3)
    truth = scenes_of([[[4.0, 4, 16, 20]], [[30, 30, 46, 50]]], [[1], [2]], size=64)
    pairs = [(torch.rand(2, 3, 64, 64), truth)] * 40
    losses = net.train(network, pairs, net.DIGIT_ANCHORS, steps=40)
    assert len(losses) == 40
    assert losses[-1] < losses[0] / 10
    assert network.training


def test_the_first_loss_is_that_of_both_parts():
    torch.manual_seed(0)
    network = net.small_efficientdet(3)
    truth = scenes_of([[[4.0, 4, 16, 20]]], [[1]], size=64)
    x = torch.rand(1, 3, 64, 64)
    expected = net.detection_loss(network.train()(x), truth, net.DIGIT_ANCHORS).sum()
    (found,) = net.train(network.eval(), [(x, truth)], net.DIGIT_ANCHORS, steps=20)
    close(torch.tensor(found), expected)


def test_the_weights_of_sums_learn_at_eight_times_the_rate():
    network = small()
    others, sums = net.optimizers_of(network, 0.01)
    assert isinstance(others, torch.optim.AdamW)
    assert (others.defaults["lr"], others.defaults["weight_decay"]) == (0.01, 0.01)
    assert (sums.defaults["lr"], sums.defaults["weight_decay"]) == (0.08, 0)
    found = {id(p) for one in (others, sums) for p in one.param_groups[0]["params"]}
    assert found == {id(p) for p in network.parameters()}
    mine = sums.param_groups[0]["params"]
    assert {id(p) for p in mine} == {id(node.weights) for node in net.fusions_of(network)}
    assert len(mine) == 2 * 8
    assert len(others.param_groups[0]["params"]) + 16 == len(list(network.parameters()))


def test_the_rates_rise_for_a_quarter_of_the_steps(monkeypatch):
    seen = []
    real = net.optimizers_of

    def noted(network, rate):
        made = real(network, rate)
        for one in made:
            one.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
        return made

    monkeypatch.setitem(net.train.__globals__, "optimizers_of", noted)
    truth = scenes_of([[[4.0, 4, 16, 20]], [[30, 30, 46, 50]]], [[1], [2]], size=64)
    pairs = [(torch.rand(2, 3, 64, 64), truth)] * 20
    net.train(net.small_efficientdet(3), pairs, net.DIGIT_ANCHORS, steps=20)
    networks.rises_and_falls(seen[0::2], 0.016, 4)
    networks.rises_and_falls(seen[1::2], 0.128, 4)


# ---- trees ---------------------------------------------------------------------------------------


def test_the_photographs_of_trees_are_read_with_their_boxes():
    net.sources.clear()
    picture, trees = net.photograph_of(net.FAR)
    assert any("deepforest" in words for words in net.sources)
    assert picture.shape == (3, 1035, 1249)
    assert 0.5 < picture.max() <= 1
    assert trees.shape == (279, 4)
    assert (trees.amin(0) >= 0).all()
    assert (trees[:, :2] < trees[:, 2:]).all()
    close(trees[:, 2:].amax(0), torch.tensor([1249.0, 1035]), 0)
    close(trees.amin(0)[:2], torch.tensor([1.0, 0]), 0)


def test_tiles_hold_what_is_in_them():
    picture = torch.rand(3, 520, 800)
    trees = torch.tensor(
        [
            [10.0, 10, 30, 40],
            [240, 300, 268, 320],
            [300, 10, 310, 20],
            [560, 0, 570, 9],
            [240, 30, 340, 50],
        ]
    )
    part = net.tiles(picture, trees)
    assert len(part.images) == 4  # of six, two have no tree or less than half of one
    close(part.images[1], picture[:, :256, 256:512], 0)
    close(part.images[3], picture[:, 256:512, :256], 0)
    assert part.boxes.shape[1] == 2
    assert part.boxes[0, 0].tolist() == [10, 10, 30, 40]
    assert part.labels[0].tolist() == [0, 0]
    assert part.ignored[0].tolist() == [False, True]  # 16 of 100 columns
    assert part.boxes[1].tolist() == [[44, 10, 54, 20], [0, 30, 84, 50]]
    assert part.boxes[3, 0].tolist() == [240, 44, 256, 64]
    assert part.labels[3].tolist() == [0, -1]
    assert not part.ignored[1:].any()


def test_a_tile_needs_its_full_side():
    trees = torch.tensor([[10.0, 10, 30, 30], [300, 10, 320, 30], [10, 300, 30, 320]])
    assert len(net.tiles(torch.rand(3, 511, 511), trees).images) == 1
    assert len(net.tiles(torch.rand(3, 256, 512), trees).images) == 2
    assert len(net.tiles(torch.rand(3, 512, 256), trees).images) == 2


def test_areas_are_those_of_boxes():
    assert net.areas(torch.tensor([[1.0, 2, 4, 7], [0, 0, 0, 0]])).tolist() == [15, 0]


def test_tiles_come_once_before_any_comes_again():
    part = scenes_of([[[float(k), 0, 9, 9]] for k in range(6)], [[0]] * 6)
    maps = [torch.arange(6.0).view(6, 1, 1, 1), torch.arange(6.0).view(6, 1, 1, 1) + 10]
    torch.manual_seed(0)
    seen = []
    for (fine, coarse), truth in net.tree_batches(maps, part, 3):
        assert len(fine) == 4
        close(coarse, fine + 10, 0)
        close(truth.boxes[:, 0, 0], fine.flatten(), 0)
        seen += fine.flatten().tolist()
    assert len(seen) == 12
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))


def test_shares_of_a_network_are_those_of_its_nodes():
    network = randomised(small())
    found = net.shares_of(network)
    assert found.shape == (2 * (4 * 2 + 3 * 3 + 2),)
    close(found[:2], net.fast_normalised(network.pyramid.layers[0].down[0].weights))
    assert not found.requires_grad


def test_the_trunk_gives_three_maps_with_trained_weights():
    net.sources.clear()
    trunk = net.trained_trunk()
    assert any("Lite0" in words for words in net.sources)
    assert not trunk.training
    x = torch.rand(9, 3, 32, 64)
    maps = net.maps_of(trunk, x)
    assert [tuple(c.shape) for c in maps] == [(9, 40, 4, 8), (9, 112, 2, 4), (9, 320, 1, 2)]
    with torch.no_grad():
        for found, expected in zip(maps, trunk(2 * x - 1), strict=True):
            close(found, expected)
    assert trunk.blocks[0][0].bn1.running_var.std() > 0


# ---- measures ------------------------------------------------------------------------------------


def test_digits_come_in_batches_of_sixteen():
    class Source:
        def batches(self, steps, batch):
            assert (steps, batch) == (3, 16)
            yield scenes_of([[[1.0, 1, 9, 9]]] * 2, [[0]] * 2)

    ((x, truth),) = net.digit_batches(Source(), 3)
    close(x, truth.images, 0)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_all_images_are_searched_fifty_at_a_time():
    class Each(nn.Module):
        def forward(self, x):
            assert len(x) <= 50
            classes = x[:, :1, :1, :1] - 2.5  # .076 where the image is black
            return [classes], [torch.zeros(len(x), 4, 1, 1)]

    x = torch.zeros(60, 3, 8, 8)
    x[55] = -1
    found = net.find_all(Each(), x, net.Anchors(16, (1,), (1,)))
    assert [len(one.boxes) for one in found] == [1] * 55 + [0] + [1] * 4


def test_shares_are_trained_to_the_inverse_variances():
    noise = torch.tensor([1.0, 2.0])
    for normalise in (net.softmax, net.fast_normalised):
        found = net.trained_shares(normalise, noise, (1.0, 1.0))
        close(found, torch.tensor([0.8, 0.2]), 0.02)
    noise = torch.tensor([1.0, 2.0, 2.0])
    stuck = net.trained_shares(net.fast_normalised, noise, (1.0, 1.0, -0.1))
    close(stuck, torch.tensor([0.8, 0.2, 0.0]), 0.02)
