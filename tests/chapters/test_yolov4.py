"""The networks of notebooks/yolov4.py."""

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
from workbench import boxes, darknet, scenes

net = definitions("yolov4")

PUBLISHED = {  # parameters, floats of the weight file, BFLOPs of Darknet's convolutions at this side
    "cspdarknet53": (27_642_184, 27_677_512, 13.067, 256),
    "yolov4": (64_363_101, 64_429_405, 128.389, 608),
    "TinyYOLOv4": (6_056_606, 6_062_814, 6.908, 416),
}


def build(name):
    return net.Classifier(net.cspdarknet53()) if name == "cspdarknet53" else getattr(net, name)()


def narrow(**how):
    return net.YOLOv4(net.CSPDarknet((4, 8, 8, 16, 24, 32), (1, 0, 2, 1, 1)), 3, **how)


def randomised(network):
    torch.manual_seed(0)
    networks.share_weights(network, network)
    return network.eval()


# ---- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes_have_the_published_counts(name):
    parameters, floats, billions, side = PUBLISHED[name]
    network = on_meta(build, name)
    assert parameters_of(network) == parameters
    assert darknet.floats(network) == floats
    assert abs(2 * macs_of(network, 1, 3, side, side) / 1e9 - billions) < 0.001


def test_mish_is_that_of_torch():
    x = torch.linspace(-30, 30, 999)
    close(net.Mish()(x), nn.Mish()(x))


def test_csp_darknet_is_that_of_timm_with_mish():
    torch.manual_seed(0)
    ours = randomised(build("cspdarknet53"))
    theirs = net.with_mish(timm.create_model("cspdarknet53"))
    kinds = [type(m) for m in theirs.modules() if isinstance(m, nn.LeakyReLU)]
    assert not kinds
    names = theirs.state_dict()
    pairs = zip(names.items(), net.in_order_of_timm(ours), strict=True)
    theirs.load_state_dict({name: value.view_as(t) for (name, t), value in pairs})
    networks.same_outputs(ours, theirs, torch.randn(1, 3, 64, 32))


def layer(part, x, act=None):
    """A layer of Darknet written out."""
    conv, norm, activation = part
    x = F.conv2d(x, conv.weight, None, conv.stride, conv.kernel_size[0] // 2)
    statistics = norm.running_mean, norm.running_var
    x = F.batch_norm(x, *statistics, norm.weight, norm.bias, eps=1e-5)
    if act is not None:
        assert isinstance(activation, nn.Mish)
        return act(x)
    assert isinstance(activation, nn.LeakyReLU)
    return torch.where(x > 0, x, 0.1 * x)


def mish(part, x):
    return layer(part, x, lambda y: y * torch.tanh(torch.log1p(torch.exp(y))))


def test_a_stage_sends_one_part_through_blocks_and_joins_it_first():
    stage = randomised(net.CrossStage(3, 8, 2, half=6, width=5))
    x = torch.randn(2, 3, 8, 10)
    y = mish(stage.down, x)
    assert y.shape == (2, 8, 4, 5)
    worked = mish(stage.worked, y)
    for block in stage.blocks:
        inside = mish(block.narrow, worked)
        assert inside.shape[1] == 5
        worked = worked + mish(block.widen, inside)
    worked = mish(stage.transition, worked)
    expected = mish(stage.fuse, torch.cat((worked, mish(stage.kept, y)), 1))
    close(stage(x), expected)


def test_the_backbone_gives_the_last_three_maps():
    backbone = randomised(net.CSPDarknet((4, 8, 8, 16, 24, 32), (1, 0, 2, 1, 1)))
    x = torch.randn(2, 3, 64, 32)
    y, maps = mish(backbone.stem, x), []
    stages = (*backbone.early, backbone.stage3, backbone.stage4, backbone.stage5)
    for stage in stages:
        y = stage(y)
        maps.append(y)
    for found, expected in zip(backbone(x), maps[-3:], strict=True):
        close(found, expected)
    assert [len(stage.blocks) for stage in stages] == [1, 0, 2, 1, 1]
    halves = [stage.kept[0].out_channels for stage in stages]
    assert halves == [8, 4, 8, 12, 16]  # the first is not cut
    assert stages[0].blocks[0].narrow[0].out_channels == 4
    assert stages[2].blocks[0].narrow[0].out_channels == 8
    classifier = randomised(net.Classifier(backbone, 7))
    weight, bias = classifier.classifier.weight[:, :, 0, 0], classifier.classifier.bias
    close(classifier(x), F.linear(backbone(x)[2].mean((2, 3)), weight, bias))


def row(parts, x):
    for part in parts:
        x = layer(part, x)
    return x


def written_head(head, x):
    last = head[1]
    return F.conv2d(layer(head[0], x), last.weight, last.bias)


def doubled(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_the_heads_are_a_path_down_and_a_path_up_written_out():
    network = randomised(narrow())
    x = torch.randn(2, 3, 64, 96)
    c3, c4, c5 = network.backbone(x)
    first = network.neck5
    y = row(first[:3], c5)
    pools = [F.max_pool2d(y, k, 1, k // 2) for k in (13, 9, 5)]
    p5 = row(first[4:], torch.cat((*pools, y), 1))
    down = network.descend4
    p4 = torch.cat((layer(down.lateral, c4), doubled(layer(down.narrow, p5))), 1)
    p4 = row(network.neck4, p4)
    down = network.descend3
    p3 = torch.cat((layer(down.lateral, c3), doubled(layer(down.narrow, p4))), 1)
    p3 = row(network.neck3, p3)
    n4 = row(network.again4, torch.cat((layer(network.ascend4.down, p3), p4), 1))
    n5 = row(network.again5, torch.cat((layer(network.ascend5.down, n4), p5), 1))
    heads = (network.head3, network.head4, network.head5)
    for found, head, n in zip(network(x), heads, (p3, n4, n5), strict=True):
        close(found, written_head(head, n))
        assert found.shape[1] == 3 * (5 + 3)
    sizes = [part[0].kernel_size[0] for part in (*first[:3], *first[4:])]
    assert sizes == [1, 3, 1, 1, 3, 1]
    assert [part[0].kernel_size[0] for part in network.neck4] == [1, 3, 1, 3, 1]


def test_the_short_neck_with_a_pyramid_is_two_layers_around_it():
    part = randomised(net.short_pyramid(10, 4))
    x = torch.randn(2, 10, 6, 7)
    y = layer(part[0], x)
    pools = [F.max_pool2d(y, k, 1, k // 2) for k in (13, 9, 5)]
    close(part(x), layer(part[2], torch.cat((*pools, y), 1)))


def test_the_tiny_network_is_its_configuration_written_out():
    network = randomised(net.TinyYOLOv4(2, width=4))
    x = torch.randn(1, 3, 64, 96)
    y = row(network.stem, x)
    assert y.shape[2:] == (16, 24)
    for stage in (network.stage2, network.stage3, network.stage4):
        y = layer(stage.whole, y)
        half = layer(stage.second, y[:, y.shape[1] // 2 :])
        c4 = layer(stage.fuse, torch.cat((layer(stage.third, half), half), 1))
        y = F.max_pool2d(torch.cat((y, c4), 1), 2)
    p5 = layer(network.neck5, layer(network.stage5, y))
    coarse, fine = network(x)
    close(coarse, written_head(network.head5, p5))
    close(fine, written_head(network.head4, torch.cat((doubled(layer(network.narrow, p5)), c4), 1)))
    assert coarse.shape == (1, 21, 2, 3)
    assert fine.shape == (1, 21, 4, 6)


@pytest.mark.parametrize("name", ["yolov4", "TinyYOLOv4"])
def test_networks_run_forward_and_backward_on_the_meta_device(name):
    outputs = networks.runs_on_meta(on_meta(build, name), 2, 3, 64, 96)
    strides = (8, 16, 32) if name == "yolov4" else (32, 16)
    assert [tuple(raw.shape) for raw in outputs] == [(2, 255, 64 // s, 96 // s) for s in strides]


@pytest.mark.parametrize("make", [narrow, lambda: net.TinyYOLOv4(3, width=4)])
def test_a_network_goes_through_a_weight_file_and_comes_back(make, tmp_path):
    one, other = randomised(make()), make().eval()
    darknet.save(one, tmp_path / "n.weights")
    darknet.load(other, tmp_path / "n.weights")
    x = torch.randn(1, 3, 64, 64)
    for found, expected in zip(other(x), one(x), strict=True):
        close(found, expected, 0)


def test_a_file_of_the_published_length_loads_with_nothing_left_over(tmp_path):
    file = tmp_path / "yolov4-tiny.weights"
    floats = PUBLISHED["TinyYOLOv4"][1]
    file.write_bytes(bytes(20 + 4 * floats))
    with pytest.raises(ValueError):  # version 0.0 has a header of 16 bytes
        darknet.load(net.TinyYOLOv4(), file)
    header = torch.tensor([0, 2, 0, 77, 0], dtype=torch.int32).numpy().tobytes()
    values = torch.arange(floats, dtype=torch.float32).numpy().tobytes()
    file.write_bytes(header + values)
    network = net.TinyYOLOv4()
    assert darknet.load(network, file) == 77
    last = network.head4[1].weight.flatten()
    assert last[-1] == torch.tensor(floats - 1.0)
    assert network.stem[0][1].bias[0] == 0
    file.write_bytes(header + values[4:])
    with pytest.raises(ValueError):
        darknet.load(network, file)


def test_the_file_has_the_layers_in_the_order_of_darknet():
    order = [name.split(".")[0] for name, _ in on_meta(build, "yolov4").named_parameters()]
    parts = list(dict.fromkeys(order))
    path = ["neck5", "descend4", "neck4", "descend3", "neck3", "head3"]
    assert parts == ["backbone", *path, "ascend4", "again4", "head4", "ascend5", "again5", "head5"]
    stage = [n for n, _ in net.CrossStage(2, 2, 1, half=2, width=2).named_children()]
    assert stage == ["down", "kept", "worked", "blocks", "transition", "fuse"]
    assert [n for n, _ in net.Descend(2, 2, 2).named_children()] == ["narrow", "lateral"]
    tiny = [n for n, _ in on_meta(build, "TinyYOLOv4").named_children()]
    assert tiny == [
        *("stem", "stage2", "stage3", "stage4", "stage5"),
        *("neck5", "head5", "narrow", "head4"),
    ]


def test_the_small_networks_start_with_few_objects():
    torch.manual_seed(0)
    network = net.small_yolov4(10)
    outputs = network(torch.randn(2, 3, 64, 48))
    assert [tuple(raw.shape) for raw in outputs] == [(2, 45, 64 // s, 48 // s) for s in (4, 8, 16)]
    tiny = net.small_tiny(3)
    outputs = tiny(torch.randn(2, 3, 48, 64))
    assert [tuple(raw.shape) for raw in outputs] == [(2, 24, 48 // s, 64 // s) for s in (16, 8)]
    assert (parameters_of(network), parameters_of(tiny)) == (274_679, 94_692)
    for head in (network.head3, network.head4, network.head5, tiny.head4, tiny.head5):
        bias = head[1].bias.view(3, -1)
        assert bias[:, 4].tolist() == [-4.0] * 3
        assert bias[:, 5:].abs().max() < 1
    assert network.backbone.stem[0].weight.is_contiguous(memory_format=torch.channels_last)


# ---- drop block ----------------------------------------------------------------------------------


def test_drop_block_drops_the_squares_of_torchvision():
    x = torch.randn(3, 4, 11, 14)
    found = []
    for layer in (net.DropBlock(0.2, 5), ops.DropBlock2d(0.2, 5)):
        torch.manual_seed(3)
        found.append(layer(x))
    close(*found)
    assert (found[0] == 0).any()


def test_a_square_as_large_as_the_map_drops_all_or_nothing():
    torch.manual_seed(0)
    y = net.DropBlock(0.25, 5)(torch.ones(40, 50, 5, 5)).flatten(2)
    assert y.amin(2).equal(y.amax(2))
    kept = (y[..., 0] > 0).double().mean().item()
    assert abs(kept - 0.75) < 0.03
    close(y.mean(), torch.tensor(1.0))  # what stays is scaled


def test_the_share_that_is_kept_is_the_expected_one():
    torch.manual_seed(0)
    H, W, size, drop = 9, 12, 3, 0.3
    share = drop * H * W / size**2 / ((H - 2) * (W - 2))
    covering = F.conv_transpose2d(torch.ones(1, 1, H - 2, W - 2), torch.ones(1, 1, 3, 3))
    expected = (1 - share) ** covering[0, 0]
    kept = (net.DropBlock(drop, size)(torch.ones(200, 40, H, W)) > 0).float().mean((0, 1))
    close(kept, expected, 0.03)


def test_drop_block_does_nothing_in_evaluation_and_survives_an_empty_map():
    x = torch.randn(2, 3, 5, 5)
    assert net.DropBlock(0.5, 3).eval()(x) is x
    assert net.DropBlock(1.0, 5)(x).abs().max() == 0
    with pytest.raises(AssertionError):
        net.DropBlock(0.5, 4)


# ---- mosaic --------------------------------------------------------------------------------------


def test_quarters_are_the_four_pairs():
    near, far = torch.tensor([[1, 2]]), torch.tensor([[3, 4]])
    assert net.quarters(near, far).tolist() == [[[1, 2], [3, 2], [1, 4], [3, 4]]]


def numbered(n, H=6, W=8, M=2):
    """Scenes whose pixels tell scene, row and column."""
    rows = torch.arange(H).view(1, H, 1).expand(n, H, W)
    columns = torch.arange(W).view(1, 1, W).expand(n, H, W)
    number = torch.arange(n).view(n, 1, 1).expand(n, H, W)
    images = torch.stack((number, rows, columns), 1).float()
    nothing = torch.zeros(n, M, 4), torch.full((n, M), -1), torch.zeros(n, M, dtype=torch.bool)
    return boxes.Scenes(images, *nothing)


def test_each_quarter_shows_its_window():
    group = numbered(8)
    cut = torch.tensor([[3, 2], [5, 4]])
    start = torch.tensor([[[4, 3], [1, 0], [5, 1], [2, 2]], [[0, 1], [5, 2], [3, 4], [4, 0]]])
    mixed = net.mosaic(group, cut, start)
    assert mixed.images.shape == (2, 3, 6, 8)
    for b in range(2):
        x, y = cut[b].tolist()
        spans = (slice(0, y), slice(0, x)), (slice(0, y), slice(x, 8))
        spans += (slice(y, 6), slice(0, x)), (slice(y, 6), slice(x, 8))
        for q, (down, across) in enumerate(spans):
            window = mixed.images[b, :, down, across]
            left, top = start[b, q].tolist()
            assert (window[0] == 4 * b + q).all()
            assert window[1][:, 0].tolist() == list(range(top, top + window.shape[1]))
            assert window[2][0].tolist() == list(range(left, left + window.shape[2]))
    assert (mixed.labels == -1).all()
    assert mixed.labels.shape == (2, 8)


def test_objects_move_with_their_windows_and_are_cut_at_the_borders():
    group = numbered(4)
    places = group.boxes.clone()
    labels = group.labels.clone()
    ignored = group.ignored.clone()
    places[0, 0], labels[0, 0] = torch.tensor([4.0, 3, 6, 4]), 7  # whole
    places[1, 0], labels[1, 0] = torch.tensor([0.0, 0, 2, 2]), 5  # half: 1 of 2 columns
    places[1, 1], labels[1, 1] = torch.tensor([0.0, 0, 2, 5]), 6  # 1 of 2 columns, 2 of 5 rows
    places[2, 1], labels[2, 1] = torch.tensor([0.0, 0, 5, 6]), 4  # outside
    places[3, 0], labels[3, 0] = torch.tensor([2.0, 2, 4, 4]), 2  # set aside before
    ignored[3, 0] = True
    group = group._replace(boxes=places, labels=labels, ignored=ignored)
    cut = torch.tensor([[3, 2]])
    start = torch.tensor([[[4, 3], [1, 0], [5, 1], [2, 2]]])
    mixed = net.mosaic(group, cut, start)
    assert mixed.labels.tolist() == [[7, -1, 5, 6, -1, -1, 2, -1]]
    assert mixed.ignored.tolist() == [[False, False, False, True, False, False, True, False]]
    expected = torch.zeros(8, 4)
    expected[0] = torch.tensor([0.0, 0, 2, 1])
    expected[2] = torch.tensor([3.0, 0, 4, 2])
    expected[3] = torch.tensor([3.0, 0, 4, 2])
    expected[6] = torch.tensor([3.0, 2, 5, 4])
    close(mixed.boxes[0], expected, 0)


def test_windows_of_a_random_mosaic_lie_within_their_scenes(monkeypatch):
    torch.manual_seed(0)
    group = numbered(400, H=20, W=30)
    seen = {}
    real = net.mosaic

    def noted(group, cut, start):
        seen.update(cut=cut, start=start)
        return real(group, cut, start)

    monkeypatch.setitem(net.random_mosaic.__globals__, "mosaic", noted)
    mixed = net.random_mosaic(group)
    assert mixed.images.shape == (100, 3, 20, 30)
    x, y = seen["cut"].unbind(1)
    assert (x.min(), x.max(), y.min(), y.max()) == (6, 23, 4, 15)
    sizes = net.quarters(seen["cut"], torch.tensor([30, 20]) - seen["cut"])
    room = torch.tensor([30, 20]) - sizes - seen["start"]
    assert seen["start"].min() == 0
    assert room.min() == 0
    assert (seen["start"] > 0).double().mean() > 0.7


def test_scenes_are_chosen_by_chance_and_once(monkeypatch):
    torch.manual_seed(0)
    group = numbered(12)
    numbers = net.plain(group, 9).images[:, 0, 0, 0].tolist()
    assert len(set(numbers)) == 9
    assert numbers != sorted(numbers)
    mixed = net.mosaics(group, 12).images
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert sorted(mixed[:, 0, row, column].tolist()) == list(range(12))
    assert (mixed[:, 0, 0, 0] != mixed[:, 0, -1, -1]).any()
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.full(shape, 0.999))
    middle = net.centred_mosaic(group).images[0]  # 6 rows, 8 columns
    assert middle[0].unique(return_counts=True)[1].tolist() == [12] * 4
    assert middle[1, :, 0].tolist() == middle[1, :, -1].tolist() == [3, 4, 5] * 2
    assert middle[2, 0].tolist() == middle[2, -1].tolist() == [4, 5, 6, 7] * 2
    assert net.take(group, [3, 1]).images[:, 0, 0, 0].tolist() == [3, 1]


def test_a_scene_is_shown_larger_or_smaller_at_another_place():
    group = numbered(2, H=8)
    group = group._replace(images=group.images + 1)  # black is 0
    places, labels = group.boxes.clone(), group.labels.clone()
    ignored = group.ignored.clone()
    places[0], labels[0] = torch.tensor([[0.0, 2, 4, 4], [6, 6, 8, 8]]), torch.tensor([3, 5])
    places[1, 1], labels[1, 1], ignored[1, 1] = torch.tensor([2.0, 4, 6, 8]), 4, True
    group = group._replace(boxes=places, labels=labels, ignored=ignored)
    scale, shift = torch.tensor([[2.0], [0.5]]), torch.tensor([[-3.0, -2], [1, 4]])
    found = net.resized(group, scale, shift)
    close(found.boxes[0], torch.tensor([[0.0, 2, 5, 6], [0, 0, 0, 0]]))
    close(found.boxes[1], torch.tensor([[0.0, 0, 0, 0], [2, 6, 4, 8]]))
    assert found.labels.tolist() == [[3, -1], [-1, 4]]
    assert found.ignored.tolist() == [[False, False], [False, True]]
    rows, columns = found.images[0, 1:] - 1  # the middle of pixel i shows (i + .5 - shift) / 2
    pixel = torch.arange(8) + 0.5
    close(columns[4], (pixel + 3) / 2 - 0.5)
    close(rows[:, 4], (pixel + 2) / 2 - 0.5)
    small = found.images[1, 0]
    assert (small[4:, 1:5] == 2).all()
    assert small[:4].abs().max() == small[4:, 5:].abs().max() == small[4:, 0].abs().max() == 0
    cut = net.resized(group, scale, torch.tensor([[-5.0, 0], [0, 0]]))
    assert cut.ignored.tolist() == [[True, False], [False, True]]  # 3 of 8 columns are left


def test_scenes_are_resized_by_chance_and_keep_their_middle_in_sight(monkeypatch):
    torch.manual_seed(0)
    seen = {}
    monkeypatch.setitem(
        net.jittered.__globals__,
        "resized",
        lambda part, scale, shift: seen.update(part=part, scale=scale, shift=shift),
    )
    net.jittered(numbered(600, H=8), 500)
    numbers = seen["part"].images[:, 0, 0, 0].tolist()
    assert len(set(numbers)) == 500
    scale, shift = seen["scale"], seen["shift"]
    assert 0.75 <= scale.min() < 0.76
    assert 1.32 < scale.max() <= 4 / 3
    assert 0.45 < (scale < 1).double().mean() < 0.55  # even on a log scale
    room = 8 * (1 - scale)
    share = shift / room
    assert share.shape == (500, 2)
    assert share.min() >= 0
    assert 0.95 < share.max() <= 1
    assert not share[:, 0].equal(share[:, 1])


def test_the_few_scenes_have_the_first_digits_only():
    source = net.first_classes(3)
    assert isinstance(source, scenes.DigitScenes)
    part = source.fixed("train", 60)
    assert part.images.shape == (60, 3, 48, 48)
    assert (part.labels >= 0).sum(1).max() == part.labels.shape[1] == 3
    assert sorted(set(part.labels.flatten().tolist())) == [-1, 0, 1, 2]
    size = (part.boxes[..., 2:] - part.boxes[..., :2]).amax(-1)[part.labels >= 0]
    assert 13.9 < size.min() < 15
    assert 19 < size.max() < 20.1


# ---- boxes ---------------------------------------------------------------------------------------


def test_a_box_is_a_stretched_offset_in_its_cell_and_a_factor_on_its_anchor():
    scale = net.Scale(16, ((10, 20), (30, 8)), 1.2)
    raw = torch.zeros(2, 2 * 7, 3, 5)
    raw[1, 7:11, 2, 4] = torch.tensor([math.log(3), -math.log(3), math.log(2), math.log(0.5)])
    raw[1, 11:, 2, 4] = torch.tensor([7.0, 8, 9])
    places, t = net.every_box([raw], (scale,))
    assert places.shape == (2, 30, 4)
    last = torch.tensor([16 * 4.8 - 30, 16 * 2.2 - 2, 16 * 4.8 + 30, 16 * 2.2 + 2])
    close(places[1, 29], last)
    assert t[1, 29, 4:].tolist() == [7, 8, 9]
    close(places[0, 0], torch.tensor([3.0, -2, 13, 18]))
    close(places[0, 3], torch.tensor([9.0, 4, 39, 12]))  # column 1, second anchor
    close(places[0, 10], torch.tensor([3.0, 14, 13, 34]))  # row 1, column 0, first anchor


def test_boxes_of_several_scales_follow_each_other():
    scales = (net.Scale(32, ((20, 20),), 1.0), net.Scale(16, ((9, 9),), 1.0))
    outputs = [torch.zeros(1, 6, 1, 2), torch.ones(1, 6, 2, 4)]
    places, t = net.every_box(outputs, scales)
    assert t[0, :, 0].tolist() == [0] * 2 + [1] * 8
    close(places[0, 1], torch.tensor([38.0, 6, 58, 26]))


def test_a_score_is_that_of_an_object_times_that_of_its_class():
    raw = torch.full((1, 8, 1, 2), -20.0)
    raw[0, :4] = 0
    raw[0, 4:, 0, 1] = torch.tensor([math.log(3), -20, math.log(4), -math.log(1.5)])
    network = Answers(raw)
    scales = (net.Scale(16, ((8, 8),), 1.1),)
    (found,) = net.detect(network, None, scales)
    assert network.training
    close(found.scores, torch.tensor([0.75 * 0.8, 0.75 * 0.4]))
    assert found.labels.tolist() == [1, 2]
    close(found.boxes[0], torch.tensor([20.0, 4, 28, 12]))
    (found,) = net.detect(network, None, scales, least=0.5)
    assert found.labels.tolist() == [1]


def test_of_two_boxes_of_a_class_the_worse_goes():
    raw = torch.zeros(1, 12, 1, 1)
    raw[0, 4] = 2.0
    raw[0, [5, 11]] = 3.0
    shapes = (net.Scale(16, ((8, 8), (8, 4.2)), 1.0),)
    assert len(net.detect(Answers(raw), None, shapes)[0].scores) == 1
    assert len(net.detect(Answers(raw), None, shapes, overlap=0.6)[0].scores) == 2
    raw[0, [4, 10]] = 0.0  # .5 times .95, above a quarter
    raw[0, 5] = raw[0, 11] = -0.1  # .24, below
    assert len(net.detect(Answers(raw), None, shapes)[0].scores) == 0


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
    scales = (net.Scale(32, ((12, 12),), 1.0),)
    found = net.find_all(Each(), part, scales)
    assert [d.labels.tolist() for d in found] == [[1]] * 60
    raw[0, 6] = -3.5  # .029
    assert not len(net.find_all(Each(), part, scales)[0].labels)


def test_boxes_of_far_centres_may_overlap_more():
    places = torch.tensor([[0.0, 0, 10, 10], [0, 4, 10, 14], [0, 2, 10, 12]])
    scores = torch.tensor([0.7, 0.8, 0.9])
    assert net.distance_nms(places, scores, 0.4) == [2]
    scores = torch.tensor([0.9, 0.8, 0.7])  # DIoU 6/14 - 16/296, .375; 8/12 - 4/244, .650
    assert net.distance_nms(places, scores, 0.4) == [0, 1]
    assert net.distance_nms(places, scores, 0.37) == [0]
    assert net.distance_nms(places, scores, 0.66) == [0, 1, 2]


# ---- loss ----------------------------------------------------------------------------------------


def test_the_overlap_with_anchors_is_that_on_one_centre():
    torch.manual_seed(0)
    size, anchors = torch.rand(7, 2) + 0.2, torch.rand(5, 2) + 0.2
    boxed = torch.cat((-size / 2, size / 2), 1)
    others = torch.cat((-anchors / 2, anchors / 2), 1)
    close(net.anchor_overlap(size, anchors), ops.box_iou(boxed, others))


def two_scales():
    coarse = net.Scale(16, ((10, 20), (20, 20)), 1.05)
    return coarse, net.Scale(8, ((5, 5), (8, 4)), 1.2)


def test_all_anchors_that_fit_are_responsible_and_the_best_in_any_case():
    places = [
        [[0.0, 0, 16, 20], [20, 9, 28, 13]],
        [[25, 18, 30, 23], [0, 0, 10, 10]],
        [[18, 18, 28, 38], [1, 1, 2, 2]],
    ]
    truth = scenes_of(places, [[2, 1], [0, 1], [1, -1]], size=48)
    truth.ignored[1, 1] = True
    maps = [(2, 3), (4, 6)]
    found = net.positives(truth, two_scales(), maps)
    # 16x20 fits both coarse ones; 8x4: 8x4 and 5x5 (20/37); 5x5: 5x5 and 8x4; 10x20: both
    # coarse: (row 3 + column) 2 + anchor; fine: 12 + (row 6 + column) 2 + anchor
    second = 12 + (1 * 6 + 3) * 2
    third = 12 + (2 * 6 + 3) * 2
    fourth = (1 * 3 + 1) * 2
    expected = [0, 1, second, second + 1, third, third + 1, fourth, fourth + 1]
    assert found.index.tolist() == expected
    assert found.image.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert found.label.tolist() == [2, 2, 1, 1, 0, 0, 1, 1]
    assert found.box[[0, 2, 4, 6]].equal(truth.boxes[[0, 0, 1, 2], [0, 1, 0, 0]])
    found = net.positives(truth, two_scales(), maps, least=0.9)
    assert found.index.tolist() == [1, second + 1, third, fourth]
    found = net.positives(truth, two_scales(), maps, least=0.6)  # 10x20 with 16x20: .625
    assert found.index.tolist() == [0, 1, second + 1, third, fourth]


def test_a_box_that_two_objects_ask_for_is_counted_for_both():
    scales = (net.Scale(16, ((10, 10), (4, 4)), 1.0),)  # IoU of the second: .16
    places = [[[0.0, 0, 10, 10], [2, 2, 12, 12], [20, 2, 30, 12]], [[0, 0, 10, 10]] * 3]
    found = net.positives(scenes_of(places, [[0, 1, 2], [2, -1, -1]]), scales, [(2, 2)])
    assert found.index.tolist() == [0, 0, 2, 0]
    assert net.asked_twice(found) == 0.5
    outputs = [torch.zeros(2, 16, 2, 2)]
    loss = net.detection_loss(outputs, scenes_of(places, [[0, 1, 2], [2, -1, -1]]), scales)
    close(loss[2], torch.tensor(4 * 3 * math.log(2) / 2))  # classes: of both


def test_convolutions_are_counted_in_all_parts():
    assert net.convolutions([nn.Linear(2, 2), net.neck(4, 2), net.Ascend(2, 2)]) == 6


def test_the_threshold_is_that_of_the_paper():
    scales = (net.Scale(16, ((10, 10), (10, 2.2), (10, 2)), 1.0),)  # IoU 1, .22 and .2
    truth = scenes_of([[[0.0, 0, 10, 10]]], [[0]])
    assert net.positives(truth, scales, [(2, 2)]).index.tolist() == [0, 1]


def test_the_loss_of_a_case_worked_by_hand():
    scales = (net.Scale(16, ((10, 20), (20, 20)), 1.05),)
    truth = scenes_of([[[0.0, 0, 16, 20], [0, 0, 0, 0]], [[0.0, 0, 0, 0]] * 2], [[2, -1], [-1, -1]])
    raw = torch.zeros(2, 16, 2, 2)
    raw[1, [4, 12]] = -1.0  # nothing there, and said so with .27
    box = 0.0
    for width, common, around in ((10, 180, 16**2 + 22**2), (20, 288, 20**2 + 22**2)):
        iou = common / (320 + width * 20 - common)
        v = 4 / math.pi**2 * (math.atan(0.8) - math.atan(width / 20)) ** 2
        box += 1 - iou + 4 / around + v * v / (1 - iou + v)
    objectness = 8 * math.log(2) + 8 * math.log(1 + math.exp(-1))
    expected = torch.tensor([box, objectness, 6 * math.log(2)]) / 2
    close(net.detection_loss([raw], truth, scales), expected)
    raw[0, 12, 0, 0] = 3.0
    raw[0, 13:, 0, 0] = torch.tensor([1.0, -1, 2])
    objectness += math.log(1 + math.exp(-3)) - math.log(2)
    classes = math.log(1 + math.e) + math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))
    expected = torch.tensor([box, objectness, 3 * math.log(2) + classes]) / 2
    close(net.detection_loss([raw], truth, scales), expected)


def test_a_box_on_an_object_is_left_out_and_a_responsible_one_is_not():
    truth = scenes_of([[[8.0, 8, 24, 24]]], [[0]])
    anchors = ((16, 16), (3, 3))  # the second is not responsible: IoU 9/256
    raw = torch.zeros(1, 12, 1, 1)
    raw[0, 4] = 5.0
    raw[0, 8:10] = math.log(16 / 3)  # and is stretched onto the object
    scales = (net.Scale(32, anchors, 1.0),)
    found = net.detection_loss([raw], truth, scales)
    close(found, torch.tensor([0.0, math.log(1 + math.exp(-5)), math.log(2)]), 1e-4)
    for side, counts in ((13.0, True), (13.6, False)):  # IoU .66 and .72
        raw[0, 8:10] = math.log(side / 3)
        found = net.detection_loss([raw], truth, scales)
        more = math.log(2) if counts else 0
        close(found[1], torch.tensor(math.log(1 + math.exp(-5)) + more), 1e-4)


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    torch.manual_seed(0)
    network = net.small_yolov4(3)
    truth = scenes_of([[[4.0, 4, 16, 20]], [[30, 30, 46, 50]]], [[1], [2]], size=64)
    truth = truth._replace(images=torch.rand(2, 3, 64, 64))
    losses = net.train(network, [truth] * 50, net.DIGIT_SCALES, steps=50, rate=0.01)
    assert len(losses) == 50
    assert losses[-1] < losses[0] / 10
    assert all(p.grad is not None for p in network.parameters())


def test_the_loss_of_a_step_is_the_sum_of_its_parts():
    torch.manual_seed(0)
    network = net.small_tiny(3)
    truth = scenes_of([[[4.0, 4, 16, 20]]], [[1]], size=64)
    truth = truth._replace(images=torch.rand(1, 3, 64, 64))
    parts = net.detection_loss(network.train()(truth.images), truth, net.FEW_SCALES)
    (found,) = net.train(network.eval(), [truth], net.FEW_SCALES, steps=12)
    close(torch.tensor(found), parts.sum())
    assert network.training


def test_training_uses_adamw_with_decay_and_one_cycle(monkeypatch):
    seen = {}
    rates = []
    real = torch.optim.AdamW

    class Noted(real):
        def __init__(self, parameters, rate, **how):
            seen.update(how, rate=rate)
            super().__init__(parameters, rate, **how)

        def step(self, *arguments):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*arguments)

    monkeypatch.setattr(torch.optim, "AdamW", Noted)
    truth = scenes_of([[[4.0, 4, 16, 20]]], [[1]], size=64)
    net.train(net.small_tiny(3), [truth] * 12, net.FEW_SCALES, steps=12)
    assert (seen["rate"], seen["weight_decay"]) == (1.2e-2, 0.01)
    networks.rises_and_falls(rates, 1.2e-2, 2)


def test_mistakes_are_what_is_missed_and_what_is_wrong():
    truth = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 0, 0]])
    labels = torch.tensor([3, 5, -1])
    places = torch.tensor([[0.0, 0, 10, 6], [20, 20, 30, 24], [20, 20, 30, 30]])
    found = boxes.Detections(places, torch.ones(3), torch.tensor([3, 5, 4]))
    assert net.mistakes(found, truth, labels) == 3
    right = boxes.Detections(truth[:2], torch.ones(2), labels[:2])
    assert net.mistakes(right, truth, labels) == 0
    double = boxes.Detections(truth[[0, 0, 1]], torch.ones(3), labels[[0, 0, 1]])
    assert net.mistakes(double, truth, labels) == 1
    twins = truth[[0, 0]], torch.tensor([3, 3])  # one detection cannot be right about two
    assert net.mistakes(boxes.Detections(truth[:1], torch.ones(1), labels[:1]), *twins) == 1
    nothing = boxes.Detections(truth[:0], torch.ones(0), labels[:0])
    assert net.mistakes(nothing, truth, labels) == 2
