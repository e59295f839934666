"""The network, its loss, what its numbers mean, and pairs of digits, of notebooks/yolov1.py."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import ops

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of
from workbench import boxes, scenes

net = definitions("yolov1")


def conv(c_in, c_out, kernel, stride=1):
    return [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2), nn.LeakyReLU(0.1)]


def halve():
    return [nn.MaxPool2d(2, 2)]


def first_twenty():
    """Figure 3 of the paper up to the second block of 512 and 1024 channels, layer by layer."""
    return nn.Sequential(
        *conv(3, 64, 7, 2),
        *halve(),
        *conv(64, 192, 3),
        *halve(),
        *conv(192, 128, 1),
        *conv(128, 256, 3),
        *conv(256, 256, 1),
        *conv(256, 512, 3),
        *halve(),
        *conv(512, 256, 1),
        *conv(256, 512, 3),
        *conv(512, 256, 1),
        *conv(256, 512, 3),
        *conv(512, 256, 1),
        *conv(256, 512, 3),
        *conv(512, 256, 1),
        *conv(256, 512, 3),
        *conv(512, 512, 1),
        *conv(512, 1024, 3),
        *halve(),
        *conv(1024, 512, 1),
        *conv(512, 1024, 3),
        *conv(1024, 512, 1),
        *conv(512, 1024, 3),
    )


def whole():
    return nn.Sequential(
        *first_twenty(),
        *conv(1024, 1024, 3),
        *conv(1024, 1024, 3, 2),
        *conv(1024, 1024, 3),
        *conv(1024, 1024, 3),
        nn.Flatten(),
        nn.Linear(7 * 7 * 1024, 4096),
        nn.LeakyReLU(0.1),
        nn.Dropout(0.5),
        nn.Linear(4096, 7 * 7 * 30),
    )


@pytest.fixture(scope="module")
def source():
    return scenes.DigitScenes(48)


def scene(places, labels, size=64):
    """One image; places: left, top, right, bottom of each object."""
    return boxes.Scenes(
        torch.zeros(1, 3, size, size),
        torch.tensor([places]).float(),
        torch.tensor([labels]),
        torch.zeros(1, len(labels)),
    )


def random_scenes(n, most=5, K=4, size=64, seed=0):
    """Boxes of any size within the image, several of them in one cell, and places without one."""
    torch.manual_seed(seed)
    corner = torch.rand(n, most, 2) * 0.7 * size
    place = torch.cat((corner, corner + 1 + torch.rand(n, most, 2) * 0.25 * size), -1)
    labels = torch.randint(-1, K, (n, most))
    place = place * (labels >= 0).unsqueeze(-1)
    return boxes.Scenes(torch.zeros(n, 3, size, size), place, labels, 0 * labels)


# ---- the network ---------------------------------------------------------------------------------


def test_the_paper_s_network_has_272_million_parameters_and_fills_7_by_7_by_30():
    network = on_meta(net.yolov1)
    assert parameters_of(network) == 271_703_550
    assert macs_of(network, 1, 3, 448, 448) == 20_285_153_280
    assert networks.runs_on_meta(network, 3, 3, 448, 448).shape == (3, 7, 7, 30)
    assert on_meta(net.yolov1, S=5, n_boxes=3, n_classes=4).head.grid.out_features == 25 * 19


def test_it_calls_the_layers_of_figure_3_in_their_order():
    networks.same_layers(on_meta(net.yolov1), on_meta(whole), 1, 3, 448, 448)


def test_with_the_same_weights_the_backbone_does_what_the_figure_written_out_does():
    torch.manual_seed(0)
    backbone, reference = net.features(3, net.BACKBONE), first_twenty()
    networks.share_weights(backbone, reference)
    networks.same_outputs(backbone, reference, torch.randn(3, 3, 96, 64))
    slopes = [m.negative_slope for m in backbone if isinstance(m, nn.LeakyReLU)]
    assert slopes == 20 * [0.1]


def test_a_narrow_one_does_the_same_in_a_training_step():
    rows = ((7, 4, 2), net.POOL, (3, 6, 1), (1, 5, 1), (3, 8, 2))
    plain = nn.Sequential(
        *conv(3, 4, 7, 2), *halve(), *conv(4, 6, 3), *conv(6, 5, 1), *conv(5, 8, 3, 2)
    )
    networks.same_function(net.features(3, rows), plain, torch.randn(3, 3, 40, 24))


def test_with_norms_the_convolutions_have_no_bias():
    found = net.features(3, net.SMALL, norm=nn.BatchNorm2d)
    kinds = [type(m).__name__ for m in found if not isinstance(m, nn.MaxPool2d)]
    assert kinds == 7 * ["Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert all(m.bias is None for m in found if isinstance(m, nn.Conv2d))
    assert sum(m.num_features == 64 for m in found if isinstance(m, nn.BatchNorm2d)) == 2


def test_the_connected_head_is_two_linear_layers_over_the_whole_map():
    torch.manual_seed(0)
    head = net.Connected(3, 4, S=2, outputs=7, hidden=5)
    x = torch.randn(3, 3, 4, 4)
    hidden = F.linear(x.reshape(3, 48), head.hidden.weight, head.hidden.bias)
    hidden = torch.where(hidden > 0, hidden, 0.1 * hidden)
    expected = F.linear(hidden, head.grid.weight, head.grid.bias).reshape(3, 2, 2, 7)
    close(head.eval()(x), expected)
    assert head.dropout.p == 0.5
    head.train()
    assert not torch.equal(head(x), head(x))


def test_one_map_for_each_cell_sees_that_cell_alone():
    torch.manual_seed(0)
    head, x = net.PerCell(3, outputs=7), torch.randn(2, 3, 4, 5)
    y = head(x)
    assert y.shape == (2, 4, 5, 7)
    expected = head.grid.weight[:, :, 0, 0] @ x[1, :, 2, 3] + head.grid.bias
    close(y[1, 2, 3], expected)


@pytest.mark.parametrize(("size", "K"), [(48, 2), (64, 10)])
def test_the_small_network_has_the_paper_s_parts_and_a_cell_for_16_pixels(size, K):
    network = net.small_yolo(size, n_classes=K)
    S = size // 16
    assert isinstance(network, net.YOLOv1)
    assert isinstance(network.head, net.Connected)
    assert network(torch.randn(3, 3, size, size)).shape == (3, S, S, 10 + K)
    assert network.head.hidden.out_features == 256
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == [16, 32, 16, 48, 64, 32, 64, 96, 96]
    assert [m.kernel_size[0] for m in convs] == [7, 3, 1, 3, 3, 1, 3, 3, 3]
    network.eval()
    x = torch.randn(2, 3, size, size)
    close(network(x), network.head(network.added(network.backbone(x))))
    assert torch.equal(network(x), network.train().head(network.eval().added(network.backbone(x))))


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    found = scenes.DigitScenes(48).fixed("train", 8)
    target = net.assign(found, 3)
    torch.manual_seed(0)
    network = net.small_yolo(48, n_classes=10)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        value = sum(net.loss_terms(network(found.images), target))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0] / 10


# ---- boxes and cells -----------------------------------------------------------------------------


def test_an_object_belongs_to_the_cell_of_its_centre():
    target = net.assign(scene([[8, 8, 24, 24], [40, 2, 48, 12], [0, 50, 4, 64]], [3, 1, 0]), 4)
    assert target.labels[0].tolist() == [
        [-1, -1, 1, -1],
        [-1, 3, -1, -1],
        [-1, -1, -1, -1],
        [0, -1, -1, -1],
    ]
    close(target.boxes[0, 1, 1], torch.tensor([0.0, 0.0, 0.25, 0.25]))
    close(target.boxes[0, 0, 2], torch.tensor([0.75, 7 / 16, 0.125, 10 / 64]))
    close(target.boxes[0, 3, 0], torch.tensor([0.125, 57 / 16 - 3, 4 / 64, 14 / 64]))
    assert (target.labels >= 0).sum() == 3
    assert (target.boxes[target.labels < 0] == 0).all()


def test_the_first_listed_has_the_cell():
    pair = scene([[2, 2, 8, 10], [6, 2, 14, 10]], [5, 6])
    assert net.assign(pair, 4).labels[0, 0, 0] == 5
    close(net.assign(pair, 4).boxes[0, 0, 0, 2], torch.tensor(6 / 64))
    other = boxes.Scenes(pair.images, pair.boxes.flip(1), pair.labels.flip(1), pair.ignored)
    assert net.assign(other, 4).labels[0, 0, 0] == 6
    absent = scene([[2, 2, 8, 10], [6, 2, 14, 10]], [-1, 6])
    assert net.assign(absent, 4).labels[0, 0, 0] == 6


def test_the_grid_is_as_wide_as_the_image():
    found = scene([[8, 8, 24, 24]], [0])._replace(images=torch.zeros(1, 3, 96, 64))
    assert net.assign(found, 4).labels[0, 1, 1] == 0


def test_a_centre_on_the_far_edge_belongs_to_the_last_cell():
    target = net.assign(scene([[60, 60, 68, 68]], [2]), 4)
    assert target.labels[0, 3, 3] == 2
    close(target.boxes[0, 3, 3, :2], torch.ones(2))


def test_corners_are_those_of_each_cell():
    torch.manual_seed(0)
    centre, sides = torch.rand(2, 3, 3, 2, 2), torch.rand(2, 3, 3, 2, 2)
    found = net.corners(centre, sides)
    for row in range(3):
        for column in range(3):
            x = (centre[1, row, column, 1, 0] + column) / 3
            y = (centre[1, row, column, 1, 1] + row) / 3
            w, h = sides[1, row, column, 1]
            expected = torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
            close(found[1, row, column, 1], expected)


def test_overlap_is_that_of_torchvision():
    torch.manual_seed(0)
    a = torch.rand(40, 2)
    b = torch.rand(40, 2)
    a, b = torch.cat((a, a + torch.rand(40, 2)), 1), torch.cat((b, b + torch.rand(40, 2)), 1)
    close(net.iou(a, b), ops.box_iou(a, b).diagonal())
    assert net.iou(torch.tensor([0.0, 0, 1, 1]), torch.tensor([2.0, 2, 3, 3])) == 0
    assert net.iou(torch.zeros(4), torch.zeros(4)) == 0
    tiny = torch.tensor([0, 0, 1e-4, 1e-4])
    close(net.iou(tiny, tiny), torch.tensor(1.0))


def test_the_output_is_read_box_by_box_and_then_classes():
    output = torch.arange(13.0).expand(2, 3, 3, 13)
    guess = net.read(output)
    assert guess.centre[0, 0, 0].tolist() == [[0, 1], [5, 6]]
    assert guess.root[0, 0, 0].tolist() == [[2, 3], [7, 8]]
    assert guess.confidence[0, 0, 0].tolist() == [4, 9]
    assert guess.classes[0, 0, 0].tolist() == [10, 11, 12]
    assert net.read(output, 1).classes.shape[-1] == 8


# ---- the loss ------------------------------------------------------------------------------------


def slow_loss(output, target, n, coord, noobj):
    """Equation 3 with loops over images, cells and boxes, in Python's floats."""
    sums = dict.fromkeys(("centre", "sides", "object", "empty", "classes"), 0.0)
    B, S = output.shape[:2]
    for image in range(B):
        for row in range(S):
            for column in range(S):
                values = output[image, row, column].tolist()
                label = target.labels[image, row, column].item()
                x, y, w, h = target.boxes[image, row, column].tolist()
                found = [values[5 * j : 5 * j + 5] for j in range(n)]
                if label < 0:
                    sums["empty"] += noobj * sum(box[4] ** 2 for box in found)
                    continue
                overlaps = []
                for bx, by, rw, rh, _ in found:
                    a = ((x - bx) / S, (y - by) / S)  # shift of the true centre
                    across = min(rw**2 / 2, a[0] + w / 2) - max(-(rw**2) / 2, a[0] - w / 2)
                    down = min(rh**2 / 2, a[1] + h / 2) - max(-(rh**2) / 2, a[1] - h / 2)
                    shared = max(across, 0) * max(down, 0)
                    overlaps.append(shared / (w * h + rw**2 * rh**2 - shared))
                chosen = overlaps.index(max(overlaps))
                for j, (bx, by, rw, rh, sure) in enumerate(found):
                    if j != chosen:
                        sums["empty"] += noobj * sure**2
                        continue
                    sums["centre"] += coord * ((bx - x) ** 2 + (by - y) ** 2)
                    sums["sides"] += coord * ((rw - math.sqrt(w)) ** 2 + (rh - math.sqrt(h)) ** 2)
                    sums["object"] += (sure - overlaps[j]) ** 2
                for k, p in enumerate(values[5 * n :]):
                    sums["classes"] += (p - (k == label)) ** 2
    return {name: value / B for name, value in sums.items()}


@pytest.mark.parametrize(
    ("n", "S", "coord", "noobj"), [(2, 4, 5, 0.5), (1, 3, 2, 0.3), (3, 5, 1, 1)]
)
def test_the_loss_is_what_loops_over_cells_and_boxes_give(n, S, coord, noobj):
    target = net.assign(random_scenes(6), S)
    output = torch.rand(6, S, S, 5 * n + 4)
    how = {} if n == 2 else {"coord": coord, "noobj": noobj}
    found = net.loss_terms(output, target, n, **how)._asdict()
    expected = slow_loss(output, target, n, coord, noobj)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-4)


def test_two_boxes_by_hand():
    """The better box answers for the object; the other one only for its confidence."""
    target = net.assign(scene([[8, 8, 24, 24]], [0]), 2)  # centre 0.5, 0.5, sides 0.25
    output = torch.zeros(1, 2, 2, 12)
    #                             inside, IoU 0.64, and       IoU 0.25
    output[0, 0, 0] = torch.tensor([0.5, 0.5, 0.4, 0.5, 0.9, 0.5, 0.5, 1.0, 0.5, 0.3, 1, 0.5])
    found = net.loss_terms(output, target)
    expected = (0, 5 * 0.01, 0.26**2, 0.5 * 0.09, 0.25)
    for value, wanted in zip(found, expected, strict=True):
        assert value.item() == pytest.approx(wanted, abs=1e-6)
    close(net.overlaps(net.read(output), target)[0, 0, 0], torch.tensor([0.64, 0.25]))


def test_nothing_follows_the_overlap_back():
    target = net.assign(random_scenes(4), 3)
    output = torch.rand(4, 3, 3, 14, requires_grad=True)
    net.loss_terms(output, target).object.backward()
    per_box = output.grad[..., :10].unflatten(-1, (2, 5))
    assert (per_box[..., :4] == 0).all()
    assert (per_box[..., 4] != 0).sum() == (target.labels >= 0).sum()


# ---- decoding ------------------------------------------------------------------------------------


def test_decoding_gives_boxes_in_pixels_and_confidence_times_class():
    torch.manual_seed(0)
    output = torch.rand(2, 3, 3, 14) * 0.5
    place, scores = net.decode(output, 60)
    assert place.shape == (2, 18, 4)
    assert scores.shape == (2, 18, 4)
    row, column, box = 1, 2, 1
    i = (row * 3 + column) * 2 + box
    x, y, w, h, sure = output[1, row, column, 5:10].tolist()
    middle = ((x + column) * 20, (y + row) * 20)
    expected = [middle[0] - 30 * w**2, middle[1] - 30 * h**2]
    expected += [middle[0] + 30 * w**2, middle[1] + 30 * h**2]
    close(place[1, i], torch.tensor(expected).clamp(0, 60))
    close(scores[1, i], sure * output[1, row, column, 10:])
    outside = net.decode(output + 3, 60)[0]
    assert outside.min() >= 0 and outside.max() <= 60


def test_a_perfect_output_decodes_to_the_objects_that_have_a_cell():
    found = scene([[8, 8, 24, 24], [40, 2, 48, 12], [42, 4, 50, 14]], [3, 1, 0])
    target = net.assign(found, 4)
    output = net.perfect(target, 4)
    terms = net.loss_terms(output, target)
    assert sum(terms).item() == pytest.approx(0, abs=1e-9)
    place, scores = net.decode(output, 64)
    one = boxes.select(place[0], scores[0])
    assert sorted(one.labels.tolist()) == [1, 3]
    assert one.scores.tolist() == [1, 1]
    close(one.boxes[one.labels == 3][0], found.boxes[0, 0])
    close(one.boxes[one.labels == 1][0], found.boxes[0, 1])
    assert net.without_cell(found, 4) == pytest.approx(1 / 3)
    assert net.without_cell(found, 32) == pytest.approx(0)


def test_room_for_more_in_a_cell():
    found = scene([[40, 2, 48, 12], [8, 8, 24, 24], [42, 4, 50, 14], [41, 3, 49, 13]], [3, 1, 0, 0])
    assert net.beyond(found, 4, 1) == pytest.approx(2 / 4)
    assert net.beyond(found, 4, 2) == pytest.approx(1 / 4)
    assert net.beyond(found, 4, 3) == 0
    many = random_scenes(30)
    for S in (2, 5):
        assert net.beyond(many, S, 1) == pytest.approx(net.without_cell(many, S))


# ---- pairs of digits -----------------------------------------------------------------------------


def test_shapes_keep_their_ratio_at_12_pixels():
    digits = torch.zeros(1, 2, 1, 28, 28)
    digits[0, 0, 0, 4:24, 10:15] = 1  # 5 wide, 20 high
    digits[0, 1, 0, 5:10, 3:13] = 1  # 10 wide, 5 high
    close(net.shapes_of(digits), torch.tensor([[[3.0, 12.0], [12.0, 6.0]]]))


def test_two_boxes_stand_side_by_side_around_the_middle():
    shapes = torch.tensor([[[4.0, 12.0], [8.0, 10.0]]])
    found = net.side_by_side(
        shapes, torch.tensor([2.0]), torch.tensor([20.0]), torch.tensor([24.0])
    )
    assert found[0].tolist() == [[13, 18, 17, 30], [19, 19, 27, 29]]


def test_only_zeros_and_ones_are_taken(source):
    x, y = net.zeros_and_ones(source, "test")
    assert sorted(y.unique().tolist()) == [0, 1]
    assert len(x) == len(y) == (source.digits["test"][1] < 2).sum()


def test_white_digits_are_painted_where_they_are_there(source):
    x, _ = net.zeros_and_ones(source, "train")
    digits = x[:4].view(2, 2, 1, 28, 28)
    place = torch.tensor([[4.0, 4, 12, 16], [30, 30, 38, 42]]).expand(2, 2, 4)
    picture = torch.full((2, 3, 48, 48), 0.2)
    there = torch.tensor([[True, False], [True, True]])
    found = net.painted(source, digits, place, there, picture)
    assert found[0, :, 4:16, 4:12].max() > 0.8
    close(found[0, :, 28:, 28:], picture[0, :, 28:, 28:])
    assert found[1, :, 30:42, 30:38].max() > 0.8
    assert found.max() <= 1 and found.min() >= 0.2 - 1e-6
    assert (picture == torch.full((2, 3, 48, 48), 0.2)).all()


def test_training_pairs_are_what_they_promise(source):
    torch.manual_seed(0)
    found = net.pairs(source, 300)
    assert found.images.shape == (300, 3, 48, 48)
    there = found.labels >= 0
    assert (there.sum(1) == 1).sum() == 100
    assert there.any(1).all()
    assert found.labels.max() == 1
    pair = found.boxes[there.all(1)]
    close((pair[..., 2:] - pair[..., :2]).amax(-1), torch.full((200, 2), 12.0))
    assert found.boxes.min() >= -1e-4 and found.boxes.max() <= 48 + 1e-4
    left = pair[..., 0].argmin(1)
    assert 60 < left.sum() < 140  # either may be listed first
    near = torch.arange(200), left
    far = torch.arange(200), 1 - left
    gap = pair[far][:, 0] - pair[near][:, 2]
    assert gap.min() >= 0.99 and gap.max() <= 8.01
    assert gap.max() > 7 and gap.min() < 2
    middle = (pair[far][:, 2] + pair[near][:, 0]) / 2
    assert middle.min() < 14 and middle.max() > 34
    rows = pair[..., [1, 3]].mean(-1)
    assert rows.min() < 9 and rows.max() > 39
    for image, box, label in zip(found.images[:20], found.boxes[:20], found.labels[:20]):
        for (x0, y0, x1, y1), k in zip(box.round().int().tolist(), label.tolist()):
            bright = image[:, max(y0, 0) : y1, max(x0, 0) : x1].amin(0).max() > 0.75
            assert bright or k < 0
    assert not torch.equal(net.pairs(source, 300).images, found.images)


def test_sliding_pairs_differ_in_place_alone(source):
    found = net.sliding(source, 30, "test")
    n = len(net.MIDDLES)
    assert list(net.MIDDLES) == [14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34]
    assert found["both"].shape == (n, 30, 3, 48, 48)
    assert found["boxes"].shape == (n, 30, 2, 4)
    place = found["boxes"]
    close(place[1] - place[0], torch.tensor([2.0, 0, 2, 0]).expand(30, 2, 4), 1e-4)
    close(place[..., 1, 0] - place[..., 0, 2], torch.ones(n, 30), 1e-4)
    middle = (place[..., 0, 0] + place[..., 1, 2]) / 2
    close(middle, torch.tensor([float(m) for m in net.MIDDLES]).unsqueeze(1).expand(n, 30))
    close(place[..., [1, 3]].mean(-1), torch.full((n, 30, 2), 24.0))
    both, first, second = (found[name][5] for name in ("both", "first", "second"))
    for i in range(30):
        cut = int(place[5, i, 0, 2].ceil())
        close(first[i, :, :, : cut - 1], both[i, :, :, : cut - 1])
        close(second[i, :, :, cut + 2 :], both[i, :, :, cut + 2 :])
        assert (second - both)[i, :, :, : cut - 1].abs().max() > 0.2  # the first is gone
        assert (first - both)[i, :, :, cut + 2 :].abs().max() > 0.2  # and here the second
    again = net.sliding(source, 30, "test")
    close(again["both"], found["both"], 0)
    assert found["labels"].unique().tolist() == [0, 1]
    other = net.sliding(source, 30, "validation")
    assert not torch.equal(other["both"], found["both"])


class Fixed(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        assert not self.training
        return self.output


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, [[4], []]),  # the middle cell finds the first of the two
        ({4: 0.19}, [[], []]),  # not sure enough
        ({10: 0.0, 11: 1.0}, [[], []]),  # another class
        ({2: 0.35}, [[], []]),  # half as wide
        ({5: 0.8, 7: 0.5, 8: 0.5, 9: 0.9}, [[4], [4]]),  # its second box has the other one
    ],
)
def test_a_digit_is_found_by_class_score_and_overlap(change, expected):
    place = torch.tensor([[[18.0, 18, 30, 30], [22.8, 18, 34.8, 30]]])
    output = torch.zeros(1, 3, 3, 12)
    output[0, 1, 1, :5] = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.9])
    output[0, 1, 1, 6] = 0.5
    output[0, 1, 1, 10] = 1.0
    for i, value in change.items():
        output[0, 1, 1, i] = value
    network = Fixed(output).train()
    labels = torch.tensor([[0, 0]])
    if not {5} & change.keys():
        place = place + torch.tensor([[0.0], [10.0]]) * torch.tensor([1.0, 0, 1, 0])
    found = net.hits(network, torch.zeros(1, 3, 48, 48), place, labels)
    assert found.shape == (1, 2, 9)
    assert [row.nonzero().flatten().tolist() for row in found[0]] == expected
    assert network.training


# ---- training and errors -------------------------------------------------------------------------


def test_what_went_wrong_is_told_by_class_and_overlap():
    truth = scene([[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50], [0, 0, 0, 0]], [1, 2, 3, -1])
    place = [[0, 0, 10, 8], [20, 20, 24, 30], [40, 40, 50, 50], [0, 0, 10, 10]]
    one = boxes.Detections(torch.tensor(place).float(), torch.ones(4), torch.tensor([1, 2, 1, 1]))
    assert net.kinds([one], truth) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    far = boxes.Detections(torch.tensor([[55.0, 0, 60, 5]]), torch.ones(1), torch.tensor([1]))
    assert net.kinds([far], truth) == [0, 0, 0, 1]
    assert net.KINDS == ("correct", "localisation", "class", "background")
    for width, expected in ((5, 0), (4.9, 1), (1, 1), (0.9, 3)):
        box = torch.tensor([[0.0, 0, width, 10]])
        found = boxes.Detections(box, torch.ones(1), torch.tensor([1]))
        assert net.kinds([found], truth).index(1) == expected
        found = boxes.Detections(box, torch.ones(1), torch.tensor([2]))
        assert net.kinds([found], truth).index(1) == (3 if width < 1 else 2)


def test_maps_are_those_of_the_backbone_in_evaluation():
    torch.manual_seed(0)
    backbone = net.features(3, net.SMALL, norm=nn.BatchNorm2d).train()
    images = torch.rand(3, 3, 32, 32)
    found = net.maps_of(backbone, images)
    assert backbone.training and not found.requires_grad
    close(found, backbone.eval()(images))
    assert net.maps_of(backbone, images.repeat(40, 1, 1, 1)).shape == (120, 64, 4, 4)


def test_detections_are_selected_from_what_is_decoded():
    found = scene([[8, 8, 24, 24], [40, 2, 48, 12]], [3, 1])
    output = net.perfect(net.assign(found, 4), 4)
    output[0, 1, 1, 5:10] = output[0, 1, 1, :5]  # the same box again
    (one,) = net.detect(Fixed(output), torch.zeros(1))
    assert sorted(one.labels.tolist()) == [1, 3]
    close(one.boxes[one.labels == 1][0], found.boxes[0, 1])
    (both,) = net.detect(Fixed(output), torch.zeros(1), overlap=1.0)
    assert sorted(both.labels.tolist()) == [1, 3, 3]


def test_training_lowers_the_loss_and_keeps_the_terms(monkeypatch):
    found = random_scenes(40)
    target = net.assign(found, 4)
    inputs = torch.rand(40, 6, 4, 4)
    made = []
    schedule = torch.optim.lr_scheduler.OneCycleLR

    def noted(*arguments, **how):
        made.append(schedule(*arguments, **how))
        return made[-1]

    monkeypatch.setattr(torch.optim.lr_scheduler, "OneCycleLR", noted)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Dropout(0), net.PerCell(6, outputs=14)).eval()
    history = net.train(layers, inputs, target, steps=40, rate=0.05, batch=20)
    assert history.shape == (40, 5) and layers.training
    assert history[-5:].sum(1).mean() < history[:5].sum(1).mean() / 2
    (one,) = made
    assert (one.total_steps, one.last_epoch) == (40, 40)
    group = one.optimizer.param_groups[0]
    assert (group["max_lr"], group["weight_decay"]) == (0.05, 1e-2)
    assert group["betas"] == (0.9, 0.999)


def test_a_backbone_learns_to_name_digits():
    torch.manual_seed(0)
    backbone = net.features(3, net.SMALL, norm=nn.BatchNorm2d)
    before = backbone[0].weight.clone()
    accuracy = net.pretrain(backbone, steps=30)
    assert len(accuracy) == 30
    assert sum(accuracy[-5:]) > 1.5 * sum(accuracy[:5])
    assert not torch.equal(before, backbone[0].weight)


def test_one_seed_is_shown_without_a_range():
    assert net.ranged([0.25], ".2f") == "0.25"
    assert net.ranged([0.25, 0.75], ".2f") == "0.50 (0.25 to 0.75)"
