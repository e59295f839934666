"""The fusions of notebooks/feature_fusion.py."""

import pytest
import torch
import torchvision
from timm.layers.cbam import CbamModule
from timm.models.resnet import resnet50, seresnet50
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

net = definitions("feature_fusion")
C = 64
# Parameters and multiply-accumulates of joining two maps of C channels and 28x28, by hand.
COST = {
    "sum": (0, 0),
    "concat, 1×1": (2 * C * C, 2 * C * C * 784),
    "SE": (2 * C * 4 + 4 + C, 2 * C * 4),
    "CBAM": (2 * C * 4 + 98 + 2, 2 * 2 * C * 4 + 98 * 784),
    "ASFF": (2 * (C + 1), 2 * C * 784),
    "attention gate": (C * 32 + C * 32 + 32 + 32 + 1, (2 * C * 32 + 32) * 784),
    "bilinear": (0, C * C * 784),
    "compact bilinear": (0, 0),  # Fourier transforms are not counted
}
MAPS = [name for name in COST if "bilinear" not in name]
ABLATION = ["fine alone", "coarse alone", *MAPS, "bilinear"]
INPUTS = ["early", "middle", "late", "luminance_alone", "colour_alone"]


def two_maps(channels=C, height=9, width=7, batch=3):
    torch.manual_seed(0)
    return torch.randn(2, batch, channels, height, width).unbind()


@pytest.mark.parametrize(("name", "cost"), COST.items())
def test_parameters_and_macs_are_those_of_a_sum_by_hand(name, cost):
    pair = on_meta(net.Pair, on_meta(net.FUSIONS[name], C))
    assert (parameters_of(pair), macs_of(pair, 1, 2 * C, 28, 28)) == cost


def test_se_blocks_of_resnet50_have_the_parameters_the_paper_gives():
    """Hu et al. 2018: 2.5 million more, 2 / r times the sum of N C^2 over the stages."""
    weights = more = 0
    for channels, blocks in ((256, 3), (512, 4), (1024, 6), (2048, 3)):
        gate = on_meta(net.SqueezeExcitation, channels)
        more += blocks * parameters_of(gate)
        weights += blocks * sum(p.numel() for p in gate.parameters() if p.ndim > 1)
    assert weights == 2_514_944
    assert more == parameters_of(on_meta(seresnet50)) - parameters_of(on_meta(resnet50))


@pytest.mark.parametrize(("channels", "reduction"), [(32, ()), (64, ()), (24, (4,)), (3, ())])
def test_squeeze_and_excitation_does_what_torchvision_s_does(channels, reduction):
    torch.manual_seed(0)
    inner = max(channels // (*reduction, 16)[0], 1)
    theirs = torchvision.ops.SqueezeExcitation(channels, inner)
    ours = net.SqueezeExcitation(channels, *reduction)
    networks.same_function(ours, theirs, two_maps(channels)[0])


@pytest.mark.parametrize(("channels", "reduction"), [(32, ()), (64, ()), (24, (4,)), (3, ())])
def test_cbam_does_what_timm_s_does(channels, reduction):
    torch.manual_seed(0)
    inner = max(channels // (*reduction, 16)[0], 1)
    theirs = CbamModule(channels, rd_channels=inner)
    networks.same_function(net.cbam(channels, *reduction), theirs, two_maps(channels)[0])


def test_a_sum_is_a_concatenation_read_by_two_identity_matrices():
    a, b = two_maps()
    close(net.as_sum(net.Concat(C))(a, b), a + b)


def test_concatenation_and_1x1_are_one_matrix_for_each_map():
    a, b = two_maps()
    fusion = net.Concat(C)
    first, second = fusion.mix.weight.split(C, dim=1)
    close(fusion(a, b), F.conv2d(a, first) + F.conv2d(b, second), 1e-5)


@pytest.mark.parametrize("name", ["SE", "CBAM", "attention gate", "ASFF"])
def test_gates_at_one_leave_the_sum_and_equal_scores_the_mean(name):
    a, b = two_maps()
    fusion = net.FUSIONS[name](C).eval()
    for p in fusion.parameters():
        nn.init.zeros_(p)
    expected = {"SE": a + b / 2, "CBAM": a + b / 4, "attention gate": a / 2 + b}
    close(fusion(a, b), expected.get(name, (a + b) / 2))
    if name == "SE":
        nn.init.constant_(fusion.gate.excite[2].bias, 100.0)
        close(fusion(a, b), a + b)
    if name == "attention gate":
        nn.init.constant_(fusion.gate.score.bias, 100.0)
        close(fusion(a, b), a + b)


def test_se_gives_one_weight_a_channel_and_spatial_attention_one_a_pixel():
    x, _ = two_maps()
    assert net.SqueezeExcitation(C).weights(x).shape == (3, C, 1, 1)
    assert net.SpatialAttention().weights(x).shape == (3, 1, 9, 7)


def test_se_and_channel_attention_do_not_see_where_pixels_are():
    x, _ = two_maps()
    order = torch.randperm(63)
    shuffled = x.flatten(2)[..., order].view_as(x)
    for gate in (net.SqueezeExcitation(C), net.ChannelAttention(C)):
        close(gate(shuffled), gate(x).flatten(2)[..., order].view_as(x), 1e-5)
    spatial = net.SpatialAttention().eval()
    moved = spatial(x).flatten(2)[..., order].view_as(x)
    assert not torch.allclose(spatial(shuffled), moved, atol=1e-3)


@pytest.mark.parametrize("levels", [2, 3])
def test_asff_weights_sum_to_one_at_each_pixel_and_equal_a_loop(levels):
    torch.manual_seed(0)
    maps = torch.randn(levels, 2, C, 5, 4).unbind()
    asff = net.ASFF(C, levels)
    weights, found = asff.weights(maps), asff(*maps)
    close(weights.sum(1), torch.ones(2, 5, 4))
    for i in range(5):
        for j in range(4):
            scores = [s(x[:, :, i : i + 1, j : j + 1]) for s, x in zip(asff.scores, maps)]
            e = [score.exp()[:, 0, 0] for score in scores]
            pixel = sum(w * x[:, :, i, j] for w, x in zip(e, maps)) / sum(e)
            close(found[:, :, i, j], pixel, 1e-5)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_asff_selects_the_level_whose_score_is_far_above_the_others(level):
    torch.manual_seed(0)
    maps, asff = torch.randn(3, 2, C, 5, 4), net.ASFF(C, 3)
    nn.init.constant_(asff.scores[level].bias, 100.0)
    close(asff(*maps), maps[level])


def test_an_open_gate_passes_the_skip_and_a_shut_one_nothing():
    torch.manual_seed(0)
    gate = net.AttentionGate(C, 2 * C, 32, stride=2)
    x, g = torch.randn(2, C, 8, 6), torch.randn(2, 2 * C, 4, 3)
    assert gate.weights(x, g).shape == (2, 1, 8, 6)
    nn.init.constant_(gate.score.bias, 100.0)
    close(gate(x, g), x)
    nn.init.constant_(gate.score.bias, -100.0)
    assert gate(x, g).abs().max() < 1e-6


def test_an_attention_gate_computes_equations_1_and_2_at_each_pixel():
    torch.manual_seed(0)
    gate, x, g = net.AttentionGate(8, 8, 4), *torch.randn(2, 1, 8, 3, 2).unbind()
    w_x, w_g, psi = (m.weight.flatten(1) for m in (gate.skip, gate.signal, gate.score))
    for i in range(3):
        for j in range(2):
            inner = (w_x @ x[0, :, i, j] + w_g @ g[0, :, i, j] + gate.signal.bias).relu()
            close(gate.weights(x, g)[0, 0, i, j], (psi @ inner + gate.score.bias).sigmoid()[0])


def test_bilinear_pooling_equals_a_loop_over_pixels():
    a, b = (x.double() for x in two_maps())
    close(net.Bilinear()(a, b), net.summed_outer_products(a, b).flatten(1), 1e-10)


def test_bilinear_pooling_of_one_pixel_is_an_outer_product():
    a, b = two_maps(5, 1, 1, batch=1)
    close(net.Bilinear()(a, b).view(5, 5), torch.outer(a.flatten(), b.flatten()))


def test_the_signed_root_has_its_length_keeps_signs_and_has_a_gradient_at_zero():
    x = torch.tensor([[4.0, -9.0, 0.0]], requires_grad=True)
    y = net.SignedRoot(2.0)(x)
    expected = 2 * torch.tensor([[2.0, -3.0, 0.0]]) / 13**0.5
    close(y, expected, 1e-4)
    y.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("d", [31, 100, 512])
def test_the_compact_form_equals_the_sketch_of_all_products(d):
    a, b = (x.double() for x in two_maps(16))
    compact = net.CompactBilinear(16, d)
    close(compact(a, b), net.sketch_by_hand(net.summed_outer_products(a, b), compact), 1e-9)


def test_the_compact_form_works_in_a_network_under_autocast():
    torch.manual_seed(0)
    network = net.TwoPaths(net.CompactBilinear(8, 32), nn.Linear(32, 10), 8)
    x = torch.randn(2, 3, 16, 16)
    expected = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x)
    found.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    close(found.float(), expected, 0.1)


def test_inner_products_of_sketches_are_right_on_average():
    torch.manual_seed(0)
    (x, y), found = torch.randn(2, 1, 8, 3, 3, dtype=torch.float64), []
    for _ in range(400):
        compact = net.CompactBilinear(8, 32)
        found.append((compact(x, x) * compact(y, y)).sum())
    exact = (net.Bilinear()(x, x) * net.Bilinear()(y, y)).sum()
    found = torch.stack(found)
    assert abs(found.mean() - exact) < 4 * found.std() / 20


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_residual_chain_is_a_dense_one_with_repeated_kernels(n):
    torch.manual_seed(0)
    layers = [nn.Conv2d(6, 6, 3, padding=1) for _ in range(n)]
    x = torch.randn(2, 6, 5, 4)
    dense = net.dense_chain(net.densely(layers), x)
    assert dense.shape == (2, 6 * (n + 1), 5, 4)
    expected = net.residual_chain(layers, x)
    close(dense.unflatten(1, (n + 1, 6)).sum(1), expected, 1e-4)


def test_late_fusion_is_early_fusion_with_zeros_between_the_inputs():
    torch.manual_seed(0)
    two = net.late(4)
    networks.share_weights(two, two)
    one = net.merged(two.luminance, two.colour, net.classifier(3, 8))
    networks.same_outputs(one, two, torch.randn(2, 3, 33, 27))
    assert not one[0][0].weight[:4, 1:].any()
    assert not one[0][0].weight[4:, :1].any()


def plain_block(c_in, c_out, stride=1):
    conv = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())


def plain_classifier(c_in, width, K=10):
    blocks = plain_block(c_in, width, 2), plain_block(width, 2 * width, 2)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, K)
    return nn.Sequential(*blocks, plain_block(2 * width, 2 * width), *head)


def test_a_classifier_is_three_convolutions_a_mean_and_a_linear_layer():
    torch.manual_seed(0)
    x = torch.randn(3, 2, 13, 18)
    networks.same_function(net.classifier(2, 4), plain_classifier(2, 4), x)
    networks.same_function(net.classifier(2, 4, 7), plain_classifier(2, 4, 7), x)


def test_two_paths_are_joined_where_the_fine_one_has_its_map():
    torch.manual_seed(0)

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.fine = plain_block(3, 4, 2), plain_block(4, 4, 2)
            self.coarse = nn.Sequential(plain_block(4, 4, 2), plain_block(4, 4, 2))
            head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
            self.head = nn.Sequential(plain_block(4, 8, 2), *head)

        def forward(self, x):
            x = self.stem(x)
            fine, coarse = self.fine(x), self.coarse(x)
            return self.head(fine + F.interpolate(coarse, fine.shape[2:]))

    networks.same_function(net.network_with("sum", 4), Plain(), torch.randn(3, 3, 33, 45))


def test_an_early_fusion_is_one_classifier_and_a_later_one_joins_two_halves():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 13, 18)
    early, middle = net.early(4).eval(), net.middle(4).eval()
    close(early(x), early[1](x))
    networks.same_layers(on_meta(net.early), on_meta(plain_classifier, 3, 16), 1, 3, 32, 32)
    halves = middle[0].luminance(x[:, :1]), middle[0].colour(x[:, 1:])
    assert [half.shape[1] for half in halves] == [2, 2]
    close(middle(x), middle[1](torch.cat(halves, 1)))
    middle[0].colour, first = nn.Identity(), plain_block(1, 16, 2)
    middle[0].luminance = first
    rest = plain_classifier(3, 4)[1:]
    networks.same_layers(middle[1].to("meta"), rest.to("meta"), 1, 4, 16, 16)


def test_each_input_alone_does_not_read_the_other():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    for build, other in ((net.luminance_alone, slice(1, 3)), (net.colour_alone, slice(0, 1))):
        network, changed = build().eval(), x.clone()
        changed[:, other] = 0
        close(network(changed), network(x))


def test_luminance_is_weighted_as_by_the_eye_and_colours_are_what_is_left():
    primaries = torch.eye(3).view(3, 3, 1, 1)  # red, green, blue
    found = net.luminance_and_colour(primaries).flatten(1)
    y = torch.tensor([0.299, 0.587, 0.114])
    close(found, torch.stack((y, torch.tensor([0.0, 0, 1]) - y, torch.tensor([1.0, 0, 0]) - y), 1))


def test_grey_has_no_colour_and_keeps_its_luminance():
    grey = torch.rand(2, 1, 4, 4).repeat(1, 3, 1, 1)
    found = net.luminance_and_colour(grey)
    close(found[:, :1], grey[:, :1])
    assert found[:, 1:].abs().max() < 1e-6


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(("batch", "height", "width"), [(3, 9, 7), (1, 4, 17)])
def test_any_batch_and_map_size_is_kept(name, batch, height, width):
    a, b = two_maps(C, height, width, batch)
    assert net.FUSIONS[name](C).eval()(a, b).shape == a.shape


@pytest.mark.parametrize("name", ABLATION)
def test_the_networks_take_any_size_and_join_their_paths(name):
    torch.manual_seed(0)
    network = net.network_with(name).eval()
    assert network(torch.randn(3, 3, 33, 45)).shape == (3, 10)
    found = network.fusion(*network.paths(torch.randn(2, 3, 32, 32)))
    assert found.shape == ((2, 256) if name == "bilinear" else (2, 16, 8, 8))


def test_the_networks_of_two_inputs_have_about_the_same_parameters():
    def after_the_first(w, K=10):  # two convolutions with norms, a linear layer
        return 18 * w * w + 4 * w + 36 * w * w + 4 * w + 2 * w * K + K

    counts = {name: parameters_of(on_meta(getattr(net, name))) for name in INPUTS}
    assert counts == {
        "early": 27 * 16 + 32 + after_the_first(16),
        "middle": (9 * 8 + 16) + (18 * 8 + 16) + after_the_first(16),
        "late": (9 * 11 + 22) + (18 * 11 + 22) + 2 * after_the_first(11),
        "luminance_alone": 9 * 16 + 32 + after_the_first(16),
        "colour_alone": 18 * 16 + 32 + after_the_first(16),
    }
    assert [counts[name] for name in INPUTS[:3]] == pytest.approx([14_400] * 3, rel=0.03)


def test_the_networks_of_the_ablation_have_the_parameters_of_a_sum_by_hand():
    body = 27 * 16 + 32 + 3 * (144 * 16 + 32)
    head = 144 * 32 + 64 + 32 * 10 + 10
    fusions = {"concat, 1×1": 512, "SE": 2 * 64 + 20, "CBAM": 2 * 64 + 100, "ASFF": 34}
    for name in ABLATION:
        fusion = fusions.get(name, 2 * 16 * 8 + 8 + 9 if name == "attention gate" else 0)
        expected = body + fusion + (256 * 10 + 10 if name == "bilinear" else head)
        assert parameters_of(on_meta(net.network_with, name)) == expected, name


def test_products_are_about_one_in_size_in_front_of_the_linear_layer():
    torch.manual_seed(0)
    root, linear = net.product_head(36, 7)
    assert root(torch.randn(5, 36)).square().mean().item() == pytest.approx(1, rel=1e-3)
    assert linear.weight.shape == (7, 36)
    assert net.product_head(36)[1].out_features == 10
    close(net.SignedRoot()(torch.tensor([[9.0, -16.0]])), torch.tensor([[0.6, -0.8]]), 1e-5)


def test_results_are_kept_under_the_first_word_and_alone():
    names = ["concat, 1×1", "fine alone", "attention gate", "SE"]
    assert [*map(net.key, names)] == ["concat", "fine.alone", "attention.gate", "SE"]


def test_runs_are_apart_only_if_no_value_lies_between_those_of_the_other():
    assert net.apart([1, 2, 3], [4, 5, 6])
    assert net.apart([4, 5, 6], [1, 2, 3])
    assert not net.apart([1, 2, 4], [3, 5, 6])


@pytest.mark.parametrize("name", ["sum", "CBAM", "ASFF", "attention gate", "bilinear"])
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(name):
    torch.manual_seed(0)
    networks.learns(net.network_with(name), torch.randn(20, 3, 32, 32), rate=0.01, steps=30)


@pytest.mark.parametrize("name", [*ABLATION, *INPUTS])
def test_every_network_runs_forward_and_backward_on_the_meta_device(name):
    network = on_meta(getattr(net, name)) if name in INPUTS else on_meta(net.network_with, name)
    unused = {"fine alone": ("coarse",), "coarse alone": ("fine",)}.get(name, ())
    assert networks.runs_on_meta(network, 2, 3, 32, 32, unused=unused).shape == (2, 10)


def test_the_compact_form_runs_forward_and_backward_on_the_meta_device():
    with torch.device("meta"):
        a, b = torch.empty(2, 2, C, 8, 8).requires_grad_().unbind()
        out = net.CompactBilinear(C, 100)(a, b)
        out.sum().backward()
    assert out.shape == (2, 100)
