"""Maps, windows, painted pictures and heats of notebooks/visualize_cnn.py."""

import math

import pytest
import scipy.stats
import torch
import torchvision
from torch import nn

from loader import definitions

net = definitions("visualize_cnn")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Small(nn.Module):
    """Two convolutions, the mean over the map and a linear layer, five classes."""

    def __init__(self, relu=nn.ReLU):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), relu(), nn.Conv2d(6, 8, 3, stride=2, padding=1), relu()
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Linear(nn.Module):
    """One class whose score is the sum of picture times weights."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return (x * self.weight).sum((1, 2, 3))[:, None]


# ---- network and pictures ------------------------------------------------------------------------


def test_separate_leaves_every_layer_its_input():
    network = nn.Sequential(nn.ReLU(inplace=True), nn.ReLU6(inplace=True))
    x = torch.tensor([-1.0, 7.0])
    assert net.separate(network)(x).tolist() == [0, 6]
    assert x.tolist() == [-1, 7]


@pytest.mark.parametrize("shape", [(3, 8, 12), (3, 12, 8)])
def test_square_takes_the_middle_and_scales_to_minus_one_and_one(shape):
    picture = torch.zeros(shape, dtype=torch.uint8)
    middle = picture[:, :, 2:10] if shape[2] > 8 else picture[:, 2:10]
    middle.fill_(255)
    x = net.square(picture, 8)
    assert x.shape == (3, 8, 8)
    assert (x == 1).all()
    assert (net.square(torch.zeros(3, 8, 8, dtype=torch.uint8), 4) == -1).all()


def test_square_keeps_within_the_range_where_the_cubic_overshoots():
    picture = torch.zeros(3, 16, 16, dtype=torch.uint8)
    picture[:, :, 8:] = 255
    x = net.square(picture, 64)
    assert x.min() == -1 and x.max() == 1


def test_filters_become_colours_with_grey_for_zero():
    weight = torch.zeros(3, 3, 2, 2)
    weight[0, 0, 0, 0] = 4
    weight[0, 1, 1, 1] = -2
    weight[1, 2, 0, 1] = -0.1
    pictures = net.as_pictures(weight)
    assert pictures[0, 0, 0, 0] == 1 and pictures[0, 1, 1, 1] == 0.25
    assert pictures[1, 2, 0, 1] == 0
    assert (pictures[2] == 0.5).all()


# ---- maps and windows ----------------------------------------------------------------------------


def test_hooks_give_what_the_parts_give_and_are_gone_afterwards():
    network = Small()
    x = torch.randn(2, 3, 8, 8)
    found = net.outputs(network, ("body.1", "body.3", ""), x)
    torch.testing.assert_close(found["body.1"], network.body[:2](x))
    torch.testing.assert_close(found["body.3"], network.body(x))
    torch.testing.assert_close(found[""], network(x))
    assert not any(layer._forward_hooks for layer in network.modules())


def test_hooks_are_gone_after_an_error_too():
    network = Small()
    with pytest.raises(RuntimeError):
        net.outputs(network, ("body.1",), torch.randn(1, 4, 8, 8))
    assert not any(layer._forward_hooks for layer in network.modules())


@pytest.mark.parametrize(
    "layers, expected",
    [
        ([], (1, 1, 0)),
        ([(3, 1, 1)], (3, 1, -1)),
        ([(3, 2, 0), (3, 1, 1)], (7, 2, -2)),
        ([(7, 2, 3), (3, 2, 1)], (11, 4, -5)),
        ([(2, 2, 0), (2, 2, 0), (5, 1, 2)], (20, 4, -8)),
    ],
)
def test_windows_worked_by_hand(layers, expected):
    assert net.receptive_field(layers) == expected


def test_the_last_window_of_resnet_50_and_no_shortcut_in_it():
    rows = net.windows(torchvision.models.resnet50())
    assert rows[:3] == [(7, 2, 3), (3, 2, 1), (1, 1, 0)]
    assert len(rows) == 50  # 49 convolutions on the way and the pool
    assert net.receptive_field(rows)[:2] == (427, 32)


def test_tensorflows_convolutions_have_fewer_zeros_in_front():
    network = nn.Sequential(net.Conv2dSame(3, 4, 3, stride=2), net.Conv2dSame(4, 4, 5, stride=2))
    assert net.windows(network) == [(3, 2, 0), (5, 2, 1)]


@pytest.mark.parametrize("place", [2, 5])
def test_the_gradient_reaches_as_far_as_the_window(place):
    convs = (nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 5, padding=2))
    features = nn.Sequential(*convs)
    size, step, start = net.receptive_field(net.windows(features))
    first = start + place * step
    assert net.reach(features, place, 32) == (max(first, 0), first + size - 1)


def test_stages_are_counted_from_the_first_convolution():
    network = net.timm.create_model("tf_efficientnet_lite0").eval()
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(net.up_to(network, 0)(x), network.conv_stem(x))
    for stage, channels in ((1, 16), (3, 40)):
        assert net.up_to(network, stage)(x).shape[1] == channels


@pytest.mark.parametrize("stage, side", [(0, 32), (2, 32), (3, 96), (4, 160)])
def test_the_window_of_the_middle_unit_lies_in_the_picture(stage, side):
    network = net.timm.create_model("tf_efficientnet_lite0").eval()
    unit = net.middle_unit(network, stage, side)
    assert unit.top >= 0 and unit.top + unit.field.size <= side
    assert unit.top == unit.field.start + unit.place * unit.field.step
    assert abs(unit.top + unit.field.size / 2 - side / 2) <= unit.field.step / 2
    C = unit.features(torch.zeros(1, 3, 32, 32)).shape[1]
    assert unit.channels == [C // 4, C // 2, 3 * C // 4]


# ---- painted pictures ----------------------------------------------------------------------------


def test_the_scale_of_a_wave_is_one_over_its_frequency():
    scale = net.wave_scale(16)
    assert scale.shape == (16, 9)
    assert scale.square().mean().item() == pytest.approx(1)
    assert (scale[0, 1] / scale[0, 4]).item() == pytest.approx(4)
    assert (scale[1, 0] / scale[3, 4]).item() == pytest.approx(5)
    assert scale[0, 0] == scale[0, 1] == scale.max()
    assert (net.wave_scale(16, 0) == 1).all()
    squared = net.wave_scale(16, 2)
    assert (squared[0, 1] / squared[0, 4]).item() == pytest.approx(16)


def test_colours_that_vary_together_give_their_axis():
    x = torch.randn(4, 1, 16, 16) * torch.tensor([1.0, 2, -2])[None, :, None, None]
    axes = net.colour_axes(x)
    norms = axes.norm(dim=0)
    assert norms.max().item() == pytest.approx(1)
    longest = axes[:, norms.argmax()].abs()
    torch.testing.assert_close(longest, torch.tensor([1.0, 2, 2]) / 3, rtol=0, atol=1e-4)
    assert norms.sort().values[1] < 1e-2


def test_the_axes_have_the_deviations_for_lengths():
    x = torch.randn(1, 3, 64, 64) * torch.tensor([1.0, 0.5, 0.25])[None, :, None, None]
    lengths = net.colour_axes(x).norm(dim=0).sort(descending=True).values
    torch.testing.assert_close(lengths, torch.tensor([1, 0.5, 0.25]), rtol=0.1, atol=0)


def test_one_wave_paints_a_cosine_in_its_colour():
    waves = torch.zeros(1, 3, 8, 5, 2)
    waves[0, 1, 0, 1, 0] = 4.0
    colours = torch.tensor([[0, 1.0, 0], [0, 0, 0], [0, -0.5, 0]])
    x = net.painted(waves, 2 * torch.ones(8, 5), colours)
    across = 2 * torch.cos(2 * math.pi * torch.arange(8) / 8)  # 4 * 2 * 2 / sqrt(64)
    torch.testing.assert_close(x[0, 0], torch.tanh(across).expand(8, 8))
    torch.testing.assert_close(x[0, 2], torch.tanh(-across / 2).expand(8, 8))
    assert (x[0, 1] == 0).all()


def test_the_ascent_nears_the_best_picture_of_a_convolution():
    features = nn.Conv2d(3, 2, 3, bias=False).requires_grad_(False)
    x, raised = net.preferred(features, [1, 0], 6, 16, torch.eye(3), steps=150)
    limit = features.weight.abs().sum((1, 2, 3))[[1, 0]]
    assert x.shape == (2, 3, 16, 16) and x.abs().max() <= 1
    assert (raised > 0.97 * limit).all() and (raised <= limit + 1e-5).all()
    torch.testing.assert_close(raised, features(x)[[0, 1], [1, 0], 6, 6])


def test_more_steps_raise_a_unit_further():
    features = Small().body[:3].requires_grad_(False)
    reached = []
    for steps in (1, 20):
        torch.manual_seed(3)
        reached.append(net.preferred(features, [0, 4, 7], 4, 16, torch.eye(3), steps=steps)[1])
    assert (reached[1] > reached[0]).all()


def test_without_a_scale_the_painted_pictures_start_as_noise():
    rough = []
    for power in (0, 1):
        torch.manual_seed(1)
        features = nn.Conv2d(3, 1, 1).requires_grad_(False)
        x, _ = net.preferred(features, [0], 9, 64, torch.eye(3), power=power, steps=0)
        rough.append((x[..., 1:] - x[..., :-1]).square().mean() / x.square().mean())
    assert rough[0] > 1.5 and rough[1] < 1


def test_the_best_patch_is_found_at_its_place():
    features = nn.Conv2d(3, 2, 3, stride=2, padding=1, bias=False).requires_grad_(False)
    features.weight.fill_(0.0)
    features.weight[1] = 1.0
    x = torch.zeros(3, 3, 16, 16)
    x[1, :, 5:8, 9:12] = 1
    x[2, :, 4:6, 9:12] = 1
    field = net.receptive_field(net.windows(features))
    assert net.best_patches(features, field, x, [1]) == [(27, 1, 5, 9)]


def test_a_patch_at_the_border_does_not_count():
    features = nn.Conv2d(3, 1, 3, padding=1, bias=False).requires_grad_(False)
    features.weight.fill_(1.0)
    x = torch.ones(1, 3, 6, 6)
    x[..., 1:5, 1:5] = 0
    x[..., 4, 4] = 2
    field = net.receptive_field(net.windows(features))
    (patch,) = net.best_patches(features, field, x, [0])
    assert patch == (3 * 7, 0, 3, 3)


def test_a_cut_takes_rows_from_the_top_and_columns_from_the_left():
    album = torch.arange(2 * 3 * 6 * 6).view(2, 3, 6, 6)
    found = net.cut_out(net.Patch(0.0, 1, 2, 3), album, 2)
    assert found.equal(album[1, :, 2:4, 3:5])


# ---- heats ---------------------------------------------------------------------------------------


def test_the_gradient_of_a_linear_score_is_its_weight():
    weight = torch.randn(3, 4, 4)
    network = Linear(weight)
    x = torch.randn(2, 3, 4, 4)
    labels = torch.zeros(2, dtype=torch.long)
    torch.testing.assert_close(net.gradient(network, x, labels), weight.expand(2, 3, 4, 4))
    heat = net.saliency(network, x, labels)
    torch.testing.assert_close(heat, weight.abs().amax(0).expand(2, 4, 4))
    assert not x.requires_grad


def test_each_picture_has_the_gradient_of_its_own_class():
    network = Small()
    x = torch.randn(2, 3, 8, 8)
    both = net.gradient(network, x, torch.tensor([1, 4]))
    for index, label in enumerate((1, 4)):
        alone = net.gradient(network, x[index : index + 1], torch.tensor([label]))
        torch.testing.assert_close(both[index : index + 1], alone)


def test_moving_pixels_gives_the_gradient():
    network = Small().double()
    x = torch.randn(3, 64, 64, dtype=torch.double)
    slopes = net.gradient(network, x[None], torch.tensor([2]))[0]
    expected = torch.stack([slopes[index] for index in net.PIXELS])
    found = net.differences(network, x, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_a_guided_relu_passes_what_is_positive_both_ways():
    network = nn.Sequential(nn.ReLU(), nn.ReLU6())
    x = torch.tensor([-1.0, 2, 3, 8], requires_grad=True)
    arriving = torch.tensor([1.0, -1, 1, 1])
    with net.guided(network):
        (found,) = torch.autograd.grad(network(x), x, arriving)
    assert found.tolist() == [0, 0, 1, 0]
    (found,) = torch.autograd.grad(network(x), x, arriving)
    assert found.tolist() == [0, -1, 1, 0]


def test_guided_lets_go_after_an_error():
    network = nn.Sequential(nn.ReLU())
    with pytest.raises(KeyError), net.guided(network):
        raise KeyError
    assert not network[0]._backward_hooks


def test_grad_cam_before_a_mean_and_a_linear_layer_has_the_weights_of_its_rows():
    network = Small()
    x = torch.randn(2, 3, 8, 8)
    labels = torch.tensor([3, 0])
    maps = network.body(x)
    rows = network.head.weight[labels] / 16
    expected = torch.relu((rows[:, :, None, None] * maps).sum(1))
    found = net.grad_cam(network, "body", x, labels)
    assert found.shape == (2, 4, 4) and not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_heat_is_enlarged_between_its_places():
    heat = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    found = net.enlarged(heat, 4)
    assert found.shape == (1, 4, 4)
    torch.testing.assert_close(found[0, 0], torch.tensor([0, 0.25, 0.75, 1]))


def test_occlusion_of_a_linear_score_is_the_mean_of_what_the_squares_hide():
    weight = torch.randn(3, 6, 6)
    x = torch.randn(2, 3, 6, 6)
    labels = torch.zeros(2, dtype=torch.long)
    found = net.occlusion(Linear(weight), x, labels, side=4, step=2)
    part = (weight * x).sum(1)  # (2, 6, 6)
    squares = {(t, q): part[:, t : t + 4, q : q + 4].sum((1, 2)) for t in (0, 2) for q in (0, 2)}
    torch.testing.assert_close(found[:, 0, 0], squares[0, 0])
    torch.testing.assert_close(found[:, 0, 5], squares[0, 2])
    torch.testing.assert_close(found[:, 5, 3], (squares[2, 0] + squares[2, 2]) / 2)
    torch.testing.assert_close(found[:, 2, 3], sum(squares.values()) / 4)


def test_pixels_that_no_square_covers_have_no_heat():
    x = torch.ones(1, 3, 5, 5)
    labels = torch.zeros(1, dtype=torch.long)
    found = net.occlusion(Linear(torch.ones(3, 5, 5)), x, labels, side=2, step=2)
    assert (found[0, :4, :4] == 12).all()
    assert (found[0, 4] == 0).all() and (found[0, :, 4] == 0).all()


def test_a_layer_without_effect_on_the_score_gives_no_heat_by_occlusion():
    network = Small()
    nn.init.zeros_(network.head.weight)
    heat = net.occlusion(network, torch.randn(1, 3, 56, 56), torch.tensor([1]))
    assert heat.shape == (1, 56, 56) and (heat == 0).all()


@pytest.mark.parametrize("method", ["saliency", "guided", "cam", "occlusion"])
def test_captum_gives_the_same(method):
    attr = pytest.importorskip("captum.attr")
    network = Small()
    x = torch.randn(2, 3, 12, 12)
    labels = torch.tensor([1, 3])
    leaf = x.clone().requires_grad_()
    if method == "saliency":
        found = net.saliency(network, x, labels)
        expected = attr.Saliency(network).attribute(leaf, labels).amax(1)
    elif method == "guided":
        with net.guided(network):
            found = net.gradient(network, x, labels)
        with pytest.warns(UserWarning, match="Setting backward hooks"):
            expected = attr.GuidedBackprop(network).attribute(leaf, labels)
    elif method == "cam":
        found = net.grad_cam(network, "body.1", x, labels)
        cam = attr.LayerGradCam(network, network.body[1])
        expected = cam.attribute(x, labels, relu_attributions=True)[:, 0].detach()
    else:
        found = net.occlusion(network, x, labels, side=4, step=2)
        how = {"strides": (3, 2, 2), "sliding_window_shapes": (3, 4, 4)}
        expected = attr.Occlusion(network).attribute(x, target=labels, **how)[:, 0].detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


# ---- measures ------------------------------------------------------------------------------------


def test_the_share_inside_a_box_counts_what_is_positive():
    heat = torch.zeros(2, 8, 8)
    heat[0, 2:4, 1:5] = 1  # rows 2 and 3, columns 1 to 4
    heat[0, 7, 7] = 8
    heat[0, 0, 0] = -100
    heat[1] = 1
    found = net.inside(heat, [(1, 2, 5, 4), (0, 0, 4, 2)])
    assert found.tolist() == [0.5, 0.125]


def test_the_boxes_lie_in_their_pictures():
    for left, top, right, bottom in net.BOXES.values():
        assert 0 <= left < right <= 224 and 0 <= top < bottom <= 224


@pytest.mark.parametrize("high", [4, 1000])
def test_rank_correlation_is_scipys_ties_too(high):
    a, b = torch.randint(high, (2, 50)).float()
    expected = scipy.stats.spearmanr(a.numpy(), b.numpy()).statistic
    assert net.rank_correlation(a, b) == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(net.ranks(a), torch.from_numpy(scipy.stats.rankdata(a.numpy())))


def test_rank_correlation_of_known_orders():
    a = torch.rand(5, 5)
    assert net.rank_correlation(a, a.exp()) == pytest.approx(1)
    assert net.rank_correlation(a, -a) == pytest.approx(-1)
    assert net.rank_correlation(a, torch.zeros(5, 5)) == 0


def test_the_parts_go_from_the_classifier_to_the_first_layer_and_miss_no_weight():
    network = net.timm.create_model("tf_efficientnet_lite0")
    steps = net.parts(network)
    assert steps[0] == [network.classifier]
    assert steps[1] == [network.conv_head, network.blocks[5], network.blocks[6]]
    assert len(steps) == 3 and steps[2] == [network.conv_stem, *network.blocks[:5]]
    kinds = (nn.Conv2d, nn.Linear)
    named = [m for part in steps for top in part for m in top.modules() if isinstance(m, kinds)]
    assert set(named) == {m for m in network.modules() if isinstance(m, kinds)}


def test_shuffled_keeps_the_values_of_a_layer_and_the_layers_in_front():
    network = net.timm.create_model("tf_efficientnet_lite0").eval()
    kept = {name: p.clone() for name, p in network.named_parameters()}
    copies = [net.shuffled(network, 2, number) for number in (0, 0, 1)]
    for name, weight in network.named_parameters():
        assert weight.equal(kept[name])  # the network itself is left as it is
    changed = {n for n, p in copies[0].named_parameters() if not p.equal(kept[n])}
    assert {"classifier.weight", "conv_head.weight", "blocks.5.0.conv_pw.weight"} <= changed
    assert not any(n.startswith(("blocks.4", "bn1", "conv_stem")) for n in changed)
    assert all(n.endswith("weight") and "bn" not in n for n in changed)
    weights = [copy.classifier.weight for copy in copies]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])
    before = kept["classifier.weight"].flatten().sort().values
    assert weights[0].flatten().sort().values.equal(before)


def test_three_heats_and_their_likeness():
    network = net.timm.create_model("tf_efficientnet_lite0").eval()
    net.separate(network)
    x = torch.randn(2, 3, 64, 64)
    labels = torch.tensor([3, 5])
    heats = net.three_heats(network, x, labels)
    assert [*heats] == ["saliency", "guided", "Grad-CAM"]
    assert all(heat.shape == (2, 64, 64) for heat in heats.values())
    torch.testing.assert_close(heats["saliency"], net.saliency(network, x, labels))
    cam = net.enlarged(net.grad_cam(network, "bn2", x, labels), 64)
    torch.testing.assert_close(heats["Grad-CAM"], cam)
    with net.guided(network):
        torch.testing.assert_close(heats["guided"], net.saliency(network, x, labels))
    a, b = torch.rand(2, 4, 4)
    before = {"x": torch.stack((a, b)), "y": torch.stack((a, b))}
    after = {"x": torch.stack((a, -b)), "y": torch.stack((2 * a, b))}
    assert net.likeness(before, after) == pytest.approx({"x": 0, "y": 1})


def test_smoothgrad_is_the_mean_saliency_and_of_a_linear_score_the_weight():
    weight = torch.randn(3, 4, 4)
    x = torch.randn(1, 3, 4, 4)
    labels = torch.zeros(1, dtype=torch.long)
    found = net.smoothed(Linear(weight), x, labels)
    torch.testing.assert_close(found[0], weight.abs().amax(0))


def test_smoothgrad_adds_noise_of_the_given_deviation():
    seen = []

    class Notes(nn.Module):
        def forward(self, x):
            seen.append(x.detach())
            return x.sum((1, 2, 3))[:, None]

    x = torch.ones(1, 3, 32, 32)
    net.smoothed(Notes(), x, torch.tensor([0]))
    assert len(seen) == 4
    assert (torch.stack(seen) - 1).std().item() == pytest.approx(0.3, abs=0.02)


# ---- with trained weights --------------------------------------------------------------------------


def test_the_packaged_network_evaluates_and_names_a_photograph():
    network = net.trained_lite0()
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    x = net.square(net.images.photographs()["coffee"], 224)
    scores = network(x[None])[0]
    assert net.CLASSES[scores.argmax()] == "espresso"
    assert not any(getattr(layer, "inplace", False) for layer in network.modules())
