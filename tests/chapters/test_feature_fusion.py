"""The fusions of notebooks/feature_fusion.py."""

import pytest
import torch
import torchvision
from timm.layers.cbam import CbamModule
from torch import nn
from torch.nn import functional as F

from loader import definitions
from workbench import checks, counting, training

ff = definitions("feature_fusion")
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
MAPS = [name for name in ff.FUSIONS if "bilinear" not in name]
INPUTS = [ff.early, ff.middle, ff.late, ff.luminance_alone, ff.colour_alone]


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def two_maps(channels=C, height=9, width=7, batch=3):
    torch.manual_seed(0)
    return torch.randn(2, batch, channels, height, width).unbind()


@pytest.mark.parametrize(("name", "cost"), COST.items())
def test_parameters_and_macs_are_those_of_a_sum_by_hand(name, cost):
    with torch.device("meta"):
        pair = ff.Pair(ff.FUSIONS[name](C))
        x = torch.empty(1, 2 * C, 28, 28)
    assert (counting.parameters(pair), counting.macs(pair, x)) == cost


def test_se_blocks_of_resnet50_have_the_parameters_the_paper_gives():
    """Hu et al. 2018: 2.5 million more, 2 / r times the sum of N C^2 over the stages."""
    blocks = ((256, 3), (512, 4), (1024, 6), (2048, 3))
    with torch.device("meta"):
        gates = nn.ModuleList(ff.SqueezeExcitation(c) for c, n in blocks for _ in range(n))
        more = counting.parameters(ff.seresnet50())
        more -= counting.parameters(ff.resnet50())
    assert counting.parameters(gates) == more
    assert sum(p.numel() for p in gates.parameters() if p.ndim > 1) == 2_514_944


@pytest.mark.parametrize("channels", [32, 64, 96])
def test_squeeze_and_excitation_equals_torchvision(channels):
    torch.manual_seed(0)
    ours = ff.SqueezeExcitation(channels)
    theirs = torchvision.ops.SqueezeExcitation(channels, channels // 16)
    checks.transplant(theirs, ours)
    checks.same_outputs(ours, theirs, two_maps(channels)[0])


@pytest.mark.parametrize("channels", [32, 64, 96])
def test_cbam_equals_timm(channels):
    torch.manual_seed(0)
    ours, theirs = ff.cbam(channels), checks.randomise_norms(CbamModule(channels))
    checks.transplant(theirs, ours)
    checks.same_outputs(ours, theirs, two_maps(channels)[0])


def test_a_sum_is_a_concatenation_read_by_two_identity_matrices():
    a, b = two_maps()
    close(ff.as_sum(ff.Concat(C))(a, b), a + b)


def test_concatenation_and_1x1_are_one_matrix_for_each_map():
    a, b = two_maps()
    fusion = ff.Concat(C)
    first, second = fusion.mix.weight.split(C, dim=1)
    close(fusion(a, b), F.conv2d(a, first) + F.conv2d(b, second), 1e-5)


@pytest.mark.parametrize("name", ["SE", "CBAM", "attention gate", "ASFF"])
def test_gates_at_one_leave_the_sum_and_equal_scores_the_mean(name):
    a, b = two_maps()
    fusion = ff.FUSIONS[name](C).eval()
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
    assert ff.SqueezeExcitation(C).weights(x).shape == (3, C, 1, 1)
    assert ff.SpatialAttention().weights(x).shape == (3, 1, 9, 7)


def test_se_and_channel_attention_do_not_see_where_pixels_are():
    x, _ = two_maps()
    order = torch.randperm(63)
    shuffled = x.flatten(2)[..., order].view_as(x)
    for gate in (ff.SqueezeExcitation(C), ff.ChannelAttention(C)):
        close(gate(shuffled), gate(x).flatten(2)[..., order].view_as(x), 1e-5)
    spatial = ff.SpatialAttention().eval()
    moved = spatial(x).flatten(2)[..., order].view_as(x)
    assert not torch.allclose(spatial(shuffled), moved, atol=1e-3)


@pytest.mark.parametrize("levels", [2, 3])
def test_asff_weights_sum_to_one_at_each_pixel_and_equal_a_loop(levels):
    torch.manual_seed(0)
    maps = torch.randn(levels, 2, C, 5, 4).unbind()
    asff = ff.ASFF(C, levels)
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
    maps, asff = torch.randn(3, 2, C, 5, 4), ff.ASFF(C, 3)
    nn.init.constant_(asff.scores[level].bias, 100.0)
    close(asff(*maps), maps[level])


def test_an_open_gate_passes_the_skip_and_a_shut_one_nothing():
    torch.manual_seed(0)
    gate = ff.AttentionGate(C, 2 * C, 32, stride=2)
    x, g = torch.randn(2, C, 8, 6), torch.randn(2, 2 * C, 4, 3)
    assert gate.weights(x, g).shape == (2, 1, 8, 6)
    nn.init.constant_(gate.score.bias, 100.0)
    close(gate(x, g), x)
    nn.init.constant_(gate.score.bias, -100.0)
    close(gate(x, g), torch.zeros_like(x))


def test_an_attention_gate_computes_equations_1_and_2_at_each_pixel():
    torch.manual_seed(0)
    gate, x, g = ff.AttentionGate(8, 8, 4), *torch.randn(2, 1, 8, 3, 2).unbind()
    w_x, w_g, psi = (m.weight.flatten(1) for m in (gate.skip, gate.signal, gate.score))
    for i in range(3):
        for j in range(2):
            inner = (w_x @ x[0, :, i, j] + w_g @ g[0, :, i, j] + gate.signal.bias).relu()
            close(gate.weights(x, g)[0, 0, i, j], (psi @ inner + gate.score.bias).sigmoid()[0])


def test_bilinear_pooling_equals_a_loop_over_pixels():
    a, b = (x.double() for x in two_maps())
    close(ff.Bilinear()(a, b), ff.summed_outer_products(a, b).flatten(1), 1e-10)


def test_bilinear_pooling_of_one_pixel_is_an_outer_product():
    a, b = two_maps(5, 1, 1, batch=1)
    close(ff.Bilinear()(a, b).view(5, 5), torch.outer(a.flatten(), b.flatten()))


def test_the_signed_root_has_its_length_keeps_signs_and_has_a_gradient_at_zero():
    x = torch.tensor([[4.0, -9.0, 0.0]], requires_grad=True)
    y = ff.SignedRoot(2.0)(x)
    expected = 2 * torch.tensor([[2.0, -3.0, 0.0]]) / 13**0.5
    close(y, expected, 1e-4)
    y.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("d", [31, 100, 512])
def test_the_compact_form_equals_the_sketch_of_all_products(d):
    a, b = (x.double() for x in two_maps(16))
    compact = ff.CompactBilinear(16, d)
    close(compact(a, b), ff.sketch_by_hand(ff.summed_outer_products(a, b), compact), 1e-9)


def test_the_compact_form_works_in_a_network_under_autocast():
    torch.manual_seed(0)
    network = ff.TwoPaths(ff.CompactBilinear(ff.WIDTH, 32), nn.Linear(32, 10), ff.WIDTH)
    x = torch.randn(2, 3, 16, 16)
    expected = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x)
    found.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    assert checks.deviation(found.float(), expected) < 0.1


def test_inner_products_of_sketches_are_right_on_average():
    torch.manual_seed(0)
    (x, y), found = torch.randn(2, 1, 8, 3, 3, dtype=torch.float64), []
    for _ in range(400):
        compact = ff.CompactBilinear(8, 32)
        found.append((compact(x, x) * compact(y, y)).sum())
    exact = (ff.Bilinear()(x, x) * ff.Bilinear()(y, y)).sum()
    found = torch.stack(found)
    assert abs(found.mean() - exact) < 4 * found.std() / 20


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_residual_chain_is_a_dense_one_with_repeated_kernels(n):
    torch.manual_seed(0)
    layers = [nn.Conv2d(6, 6, 3, padding=1) for _ in range(n)]
    x = torch.randn(2, 6, 5, 4)
    dense = ff.dense_chain(ff.densely(layers), x)
    assert dense.shape == (2, 6 * (n + 1), 5, 4)
    expected = ff.residual_chain(layers, x)
    close(dense.unflatten(1, (n + 1, 6)).sum(1), expected, 1e-4)


def test_late_fusion_is_early_fusion_with_zeros_between_the_inputs():
    torch.manual_seed(0)
    two = checks.randomise_norms(ff.late(4))
    one = ff.merged(two.luminance, two.colour, ff.classifier(3, 8))
    checks.same_outputs(one, two, torch.randn(2, 3, 33, 27))
    assert not one[0][0].weight[:4, 1:].any()
    assert not one[0][0].weight[4:, :1].any()


def test_each_input_alone_does_not_read_the_other():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    for build, other in ((ff.luminance_alone, slice(1, 3)), (ff.colour_alone, slice(0, 1))):
        network, changed = build().eval(), x.clone()
        changed[:, other] = 0
        close(network(changed), network(x))


def test_grey_has_no_colour_and_keeps_its_luminance():
    grey = torch.rand(2, 1, 4, 4).repeat(1, 3, 1, 1)
    found = ff.luminance_and_colour(grey)
    close(found[:, :1], grey[:, :1])
    close(found[:, 1:], torch.zeros(2, 2, 4, 4))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(("batch", "height", "width"), [(3, 9, 7), (1, 4, 17)])
def test_any_batch_and_map_size_is_kept(name, batch, height, width):
    a, b = two_maps(C, height, width, batch)
    assert ff.FUSIONS[name](C).eval()(a, b).shape == a.shape


@pytest.mark.parametrize("name", ff.ABLATION)
def test_the_networks_take_any_size_and_join_their_paths(name):
    torch.manual_seed(0)
    network = ff.network_with(name).eval()
    assert network(torch.randn(3, 3, 33, 45)).shape == (3, 10)
    found = network.fusion(*network.paths(torch.randn(2, 3, 32, 32)))
    assert found.shape == ((2, 256) if name == "bilinear" else (2, 16, 8, 8))


@pytest.mark.parametrize("build", INPUTS[:3])
def test_the_networks_of_two_inputs_have_about_the_same_parameters(build):
    assert counting.parameters(build()) == pytest.approx(14_400, rel=0.03)


def test_runs_are_apart_only_if_no_value_lies_between_those_of_the_other():
    assert ff.apart([1, 2, 3], [4, 5, 6])
    assert ff.apart([4, 5, 6], [1, 2, 3])
    assert not ff.apart([1, 2, 4], [3, 5, 6])


@pytest.mark.parametrize("name", ff.ABLATION)
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(name):
    torch.manual_seed(0)
    network = ff.network_with(name)
    x, y = torch.randn(20, 3, 32, 32), torch.arange(20) % 10
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = training.fit(network, (x, y), 40, optimizer)["loss"]
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize("build", [*ff.ABLATION, *INPUTS])
def test_every_network_runs_forward_and_backward_on_the_meta_device(build):
    with torch.device("meta"):
        network = ff.network_with(build) if isinstance(build, str) else build()
        network(torch.empty(2, 3, 32, 32)).sum().backward()
    unused = "coarse" if build == "fine alone" else "fine" if build == "coarse alone" else None
    for name, p in network.named_parameters():
        assert (p.grad is None) == (unused is not None and name.startswith(unused))


def test_the_compact_form_runs_forward_and_backward_on_the_meta_device():
    with torch.device("meta"):
        a, b = torch.empty(2, 2, C, 8, 8).requires_grad_().unbind()
        out = ff.CompactBilinear(C, 100)(a, b)
        out.sum().backward()
    assert out.shape == (2, 100)
