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


def se_sum(channels, **how):
    return net.GatedSum(net.SqueezeExcitation(channels, **how))


def cbam_sum(channels, **how):
    return net.GatedSum(net.CBAM(channels, **how))


BUILDERS = {
    "sum": lambda channels: net.Sum(),
    "concat": lambda channels: net.Concat(channels),
    "SE": lambda channels: se_sum(channels),
    "spatial": lambda channels: net.GatedSum(net.SpatialAttention()),
    "CBAM": lambda channels: cbam_sum(channels),
    "ASFF": lambda channels: net.ASFF(channels),
    "gate": lambda channels: net.GatedSkip(channels),
    "bilinear": lambda channels: net.Bilinear(),
}
# Parameters and multiply-accumulates of joining two maps of C channels and 28x28, by hand.
COST = {
    "sum": (0, 0),
    "concat": (2 * C * C, 2 * C * C * 784),
    "SE": (2 * C * 4 + 4 + C, 2 * C * 4),
    "CBAM": (2 * C * 4 + 98 + 2, 2 * 2 * C * 4 + 98 * 784),
    "spatial": (98 + 2, 98 * 784),
    "ASFF": (2 * (C + 1), 2 * C * 784),
    "gate": (C * 32 + C * 32 + 32 + 32 + 1, (2 * C * 32 + 32) * 784),
    "bilinear": (0, C * C * 784),
}
MAPS = [name for name in COST if name != "bilinear"]


def two_maps(channels=C, height=9, width=7, batch=3):
    torch.manual_seed(0)
    return torch.randn(2, batch, channels, height, width).unbind()


# ---- count ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "cost"), COST.items())
def test_parameters_and_macs_are_those_of_a_sum_by_hand(name, cost):
    pair = on_meta(net.Pair, on_meta(BUILDERS[name], C))
    assert (parameters_of(pair), macs_of(pair, 1, 2 * C, 28, 28)) == cost


def test_a_pair_hands_the_first_half_of_the_channels_over_first():
    class Second(nn.Module):
        def forward(self, a, b):
            return b

    x = torch.randn(2, 6, 3, 3)
    close(net.Pair(Second())(x), x[:, 3:])


def test_se_blocks_of_resnet50_have_the_parameters_the_paper_gives():
    """Hu et al. 2017: 2.5 million more, 2 / r times the sum of N C^2 over the stages."""
    weights = more = 0
    for channels, blocks in ((256, 3), (512, 4), (1024, 6), (2048, 3)):
        gate = on_meta(net.SqueezeExcitation, channels)
        more += blocks * parameters_of(gate)
        weights += blocks * sum(p.numel() for p in gate.parameters() if p.ndim > 1)
    assert weights == 2_514_944
    assert more == parameters_of(on_meta(seresnet50)) - parameters_of(on_meta(resnet50))


# ---- reference -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "how"), [(64, {}), (24, {"reduction": 4})])
def test_squeeze_and_excitation_does_what_torchvision_s_does(channels, how):
    torch.manual_seed(0)
    inner = channels // how.get("reduction", 16)
    theirs = torchvision.ops.SqueezeExcitation(channels, inner)
    ours = net.SqueezeExcitation(channels, **how)
    networks.same_function(ours, theirs, two_maps(channels)[0])


@pytest.mark.parametrize(("channels", "how"), [(64, {}), (24, {"reduction": 4})])
def test_cbam_does_what_timm_s_does(channels, how):
    torch.manual_seed(0)
    theirs = CbamModule(channels, rd_channels=channels // how.get("reduction", 16))
    networks.same_function(net.CBAM(channels, **how), theirs, two_maps(channels)[0])


def test_channel_attention_narrows_by_sixteen_unless_told_otherwise():
    assert net.ChannelAttention(64).narrow.out_channels == 4
    assert net.CBAM(64, reduction=4).channels.narrow.out_channels == 16


def test_concatenation_and_1x1_are_one_matrix_for_each_map():
    a, b = two_maps()
    fusion = net.Concat(C)
    first, second = fusion.mix.weight.split(C, dim=1)
    close(fusion(a, b), F.conv2d(a, first) + F.conv2d(b, second), 1e-5)
    close(net.as_sum(fusion)(a, b), net.Sum()(a, b))


@pytest.mark.parametrize("levels", [2, 3])
def test_asff_weights_sum_to_one_at_each_pixel_and_equal_a_loop(levels):
    torch.manual_seed(0)
    maps = torch.randn(levels, 2, C, 5, 4).unbind()
    asff = net.ASFF(C, levels=levels)
    weights, found = asff.weights(*maps), asff(*maps)
    close(weights.sum(1), torch.ones(2, 5, 4))
    for i in range(5):
        for j in range(4):
            scores = [s(x[:, :, i : i + 1, j : j + 1]) for s, x in zip(asff.scores, maps)]
            e = [score.exp()[:, 0, 0] for score in scores]
            pixel = sum(w * x[:, :, i, j] for w, x in zip(e, maps)) / sum(e)
            close(found[:, :, i, j], pixel, 1e-5)


def test_an_attention_gate_computes_equations_1_and_2_at_each_pixel():
    torch.manual_seed(0)
    gate = net.AttentionGate(8, 8, inner=4)
    x, g = torch.randn(2, 1, 8, 3, 2).unbind()
    w_x, w_g, psi = (m.weight.flatten(1) for m in (gate.skip, gate.signal, gate.score))
    for i in range(3):
        for j in range(2):
            inner = (w_x @ x[0, :, i, j] + w_g @ g[0, :, i, j] + gate.signal.bias).relu()
            close(gate.weights(x, g)[0, 0, i, j], (psi @ inner + gate.score.bias).sigmoid()[0])


def test_bilinear_pooling_equals_a_loop_over_pixels_and_one_pixel_an_outer_product():
    a, b = (x.double() for x in two_maps())
    close(net.Bilinear()(a, b), net.summed_outer_products(a, b).flatten(1), 1e-10)
    a, b = two_maps(5, 1, 1, batch=1)
    close(net.Bilinear()(a, b).view(5, 5), torch.outer(a.flatten(), b.flatten()))


@pytest.mark.parametrize("d", [31, 100])
def test_the_compact_form_equals_the_sketch_of_all_products(d):
    a, b = (x.double() for x in two_maps(16))
    compact = net.CompactBilinear(16, d)
    close(compact(a, b), net.sketch_by_hand(net.summed_outer_products(a, b), compact), 1e-9)


@pytest.mark.parametrize(("n", "size"), [(1, 3), (2, 5), (5, 3)])
def test_a_residual_chain_is_a_dense_one_with_repeated_kernels(n, size):
    torch.manual_seed(0)
    layers = [nn.Conv2d(6, 6, size, padding=size // 2) for _ in range(n)]
    x = torch.randn(2, 6, 5, 4)
    dense = net.dense_chain(net.densely(layers), x)
    assert dense.shape == (2, 6 * (n + 1), 5, 4)
    expected = net.residual_chain(layers, x)
    close(dense.unflatten(1, (n + 1, 6)).sum(1), expected, 1e-4)
    assert n > 1 or torch.allclose(expected, x + layers[0](x))


def test_late_fusion_is_early_fusion_with_zeros_between_the_inputs():
    torch.manual_seed(0)
    two = net.LateFusion(4)
    networks.share_weights(two, two)
    one = net.merged(two, net.Classifier(3, 8))
    x = torch.randn(2, 3, 33, 27)
    networks.same_outputs(one, two, x)
    mean = (two.luminance(x[:, :1]) + two.colour(x[:, 1:])) / 2
    close(two(x), mean)


def plain_block(c_in, c_out, stride=1):
    conv = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())


def pooled(*blocks, c_out):
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_out, 10))


def test_a_classifier_is_two_convolutions_a_mean_and_a_linear_layer():
    torch.manual_seed(0)
    theirs = pooled(plain_block(2, 4, 2), plain_block(4, 8, 2), c_out=8)
    networks.same_function(net.Classifier(2, 4), theirs, torch.randn(3, 2, 13, 18))


def test_each_path_reads_its_own_image_and_the_joined_map_is_read_by_one_convolution():
    torch.manual_seed(0)

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(plain_block(1, 16, 2), plain_block(16, 16))
            self.second = nn.Sequential(plain_block(1, 16, 2), plain_block(16, 16))
            self.head = pooled(plain_block(16, 32, 2), c_out=32)

        def forward(self, x):
            return self.head(self.first(x[:, :1]) + self.second(x[:, 1:2]))

    ours = nn.Sequential(net.Paths(), net.FusedNetwork(net.Sum()))
    networks.same_function(ours, Plain(), torch.randn(3, 2, 17, 22))
    assert ours[0](torch.randn(3, 2, 16, 24)).shape == (3, 2, 16, 8, 12)


def test_the_fusion_gets_the_first_map_first():
    class First(nn.Module):
        def forward(self, a, b):
            return a

    torch.manual_seed(0)
    network = net.FusedNetwork(First()).eval()
    maps = torch.randn(2, 2, 16, 8, 8)
    other = torch.stack((maps[:, 0], torch.zeros(2, 16, 8, 8)), dim=1)
    close(network(maps), network(other))
    assert not torch.allclose(network(maps), network(maps.flip(1)))


# ---- limit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SE", "spatial", "CBAM", "gate", "ASFF"])
def test_scores_of_zero_halve_what_is_gated_and_weigh_levels_alike(name):
    a, b = two_maps()
    fusion = BUILDERS[name](C).eval()
    for p in fusion.parameters():
        nn.init.zeros_(p)
    expected = {"SE": a + b / 2, "spatial": a + b / 2, "CBAM": a + b / 4, "gate": a / 2 + b}
    close(fusion(a, b), expected.get(name, (a + b) / 2))


def test_se_and_channel_attention_do_not_see_where_pixels_are():
    x, _ = two_maps()
    order = torch.randperm(63)
    shuffled = x.flatten(2)[..., order].view_as(x)
    for gate in (net.SqueezeExcitation(C), net.ChannelAttention(C)):
        close(gate(shuffled), gate(x).flatten(2)[..., order].view_as(x), 1e-5)
    spatial = net.SpatialAttention().eval()
    moved = spatial(x).flatten(2)[..., order].view_as(x)
    assert not torch.allclose(spatial(shuffled), moved, atol=1e-3)
    assert net.SqueezeExcitation(C).weights(x).shape == (3, C, 1, 1)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_asff_selects_the_level_whose_score_is_far_above_the_others(level):
    torch.manual_seed(0)
    maps, asff = torch.randn(3, 2, C, 5, 4), net.ASFF(C, levels=3)
    nn.init.constant_(asff.scores[level].bias, 100.0)
    close(asff(*maps), maps[level])


def test_an_open_gate_passes_the_skip_and_a_shut_one_nothing():
    torch.manual_seed(0)
    gate = net.AttentionGate(C, 2 * C, inner=32, stride=2)
    x, g = torch.randn(2, C, 8, 6), torch.randn(2, 2 * C, 4, 3)
    assert gate.weights(x, g).shape == (2, 1, 8, 6)
    nn.init.constant_(gate.score.bias, 100.0)
    close(gate(x, g), x)
    nn.init.constant_(gate.score.bias, -100.0)
    assert gate(x, g).abs().max() < 1e-6


def test_weights_of_a_coarse_map_go_over_into_each_other_along_a_line():
    torch.manual_seed(0)
    gate = net.AttentionGate(C, 2 * C, inner=32, stride=2)
    weights = gate.weights(torch.randn(1, C, 2, 4), torch.randn(1, 2 * C, 1, 2))[0, 0, 0]
    left, right = weights[0], weights[3]
    assert left != right
    close(weights[1:3], torch.stack((0.75 * left + 0.25 * right, 0.25 * left + 0.75 * right)))


def test_inner_products_of_sketches_are_right_on_average_only_with_signs():
    torch.manual_seed(0)
    x, y = torch.rand(2, 1, 8, 3, 3).unbind()
    exact = (net.Bilinear()(x, x) * net.Bilinear()(y, y)).sum()
    drawn = {}
    for signs in (True, False):
        found = [net.sketched_product(x, y, 32, signs=signs) for _ in range(300)]
        drawn[signs] = torch.tensor(found)
    assert abs(drawn[True].mean() - exact) < 4 * drawn[True].std() / 300**0.5
    assert drawn[False].min() > exact
    slots = torch.cat([net.CompactBilinear(8, 32).first.slot for _ in range(100)])
    signs = torch.cat([net.CompactBilinear(8, 32).second.sign for _ in range(100)])
    assert sorted(slots.unique().tolist()) == list(range(32))
    assert sorted(signs.unique().tolist()) == [-1, 1]


def test_without_signs_all_products_of_sketches_add_up():
    torch.manual_seed(0)
    x, y = torch.rand(2, 1, 3, 2, 2).unbind()
    one_slot = net.sketched_product(x, y, 1, signs=False)  # all in one slot: sums of all products
    total = net.Bilinear()(x, x).sum() * net.Bilinear()(y, y).sum()
    assert one_slot == pytest.approx(total.item(), rel=1e-5)


def test_the_compact_form_takes_half_precision_maps_under_autocast():
    torch.manual_seed(0)
    compact, conv = net.CompactBilinear(8, 32), nn.Conv2d(8, 8, 1)
    x = torch.randn(2, 8, 6, 6)
    expected = compact(conv(x), conv(x))
    with torch.autocast("cpu", torch.bfloat16):
        found = compact(conv(x), conv(x))
    close(found.float(), expected, 0.1)


# ---- damage and data -----------------------------------------------------------------------------


def test_a_block_is_a_square_of_four_pixels_a_side_anywhere_in_the_map():
    torch.manual_seed(0)
    where = net.one_block(torch.zeros(2000, 16, 8, 6))
    assert where.shape == (2000, 1, 8, 6)
    assert (where.sum((1, 2, 3)) == 16).all()
    rows, columns = where.any(3)[:, 0], where.any(2)[:, 0]
    assert (rows.sum(1) == 4).all()
    assert (columns.sum(1) == 4).all()
    assert sorted(rows.int().argmax(1).unique().tolist()) == [0, 1, 2, 3, 4]
    assert sorted(columns.int().argmax(1).unique().tolist()) == [0, 1, 2]
    assert (net.one_block(torch.zeros(9, 1, 8, 8), side=2).sum((1, 2, 3)) == 4).all()


def test_always_the_same_ten_channels():
    where = net.ten_channels(torch.zeros(3, 16, 8, 6))
    assert where.shape == (1, 16, 1, 1)
    assert where.flatten().tolist() == [True] * 10 + [False] * 6


def test_half_of_the_images_have_noise_from_0_to_8_in_the_second_map_and_nowhere_else():
    torch.manual_seed(0)
    maps = torch.full((1000, 2, 16, 4, 4), -1.0)
    damaged, where = net.damage(maps, net.ten_channels)
    assert (maps == -1).all()
    assert (damaged[:, 0] == -1).all()
    b = damaged[:, 1]
    assert (b[~where] == -1).all()
    assert 0 <= b[where].min() < 0.01
    assert 7.99 < b[where].max() <= 8
    hit = where.flatten(1).any(1)
    assert 450 < hit.sum() < 550
    assert (where[hit].flatten(1).sum(1) == 160).all()


@pytest.mark.parametrize("places", ["one_block", "ten_channels"])
def test_damage_is_made_on_the_device_of_the_maps(places):
    maps = torch.empty(2, 2, 16, 8, 6, device="meta")
    damaged, where = net.damage(maps, getattr(net, places))
    assert damaged.device.type == where.device.type == "meta"
    assert damaged.shape == maps.shape


def test_the_noisy_copy_comes_first_and_deviates_by_two():
    torch.manual_seed(0)
    x = torch.randn(50, 1, 16, 16)
    found = net.with_noise(x)
    close(found[:, 1:], x)
    noise = found[:, :1] - x
    assert noise.std().item() == pytest.approx(2, rel=0.03)
    assert abs(noise.mean().item()) < 0.1
    assert abs((noise * x).mean().item()) < 0.1


def test_the_weights_of_the_second_map_are_those_that_the_gates_use():
    torch.manual_seed(0)
    maps = torch.randn(3, 2, 16, 8, 8)
    a, b = maps.unbind(1)
    se = net.FusedNetwork(se_sum(16))
    weights = net.weights_of_second(se, "SE", maps)
    close(se.fusion(a, b), a + weights * b)
    asff = net.FusedNetwork(net.ASFF(16))
    weights = net.weights_of_second(asff, "ASFF", maps)
    close(asff.fusion(a, b), (1 - weights) * a + weights * b)


def test_luminance_is_weighted_as_by_the_eye_and_colours_are_what_is_left():
    assert net.luminance_and_colour(torch.rand(2, 3, 4, 5)).shape == (2, 3, 4, 5)
    primaries = torch.eye(3).view(3, 3, 1, 1)  # red, green, blue
    found = net.luminance_and_colour(primaries).flatten(1)
    y = torch.tensor([0.299, 0.587, 0.114])
    close(found, torch.stack((y, torch.tensor([0.0, 0, 1]) - y, torch.tensor([1.0, 0, 0]) - y), 1))


# ---- shape, learn, meta device -------------------------------------------------------------------


@pytest.mark.parametrize("name", MAPS)
def test_any_batch_and_map_size_is_kept(name):
    a, b = two_maps(C, 4, 17, 1)
    assert BUILDERS[name](C).eval()(a, b).shape == a.shape


@pytest.mark.parametrize("name", ["sum", "CBAM", "ASFF", "gate"])
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(name):
    torch.manual_seed(0)
    network = net.FusedNetwork(BUILDERS[name](16))
    networks.learns(network, torch.randn(20, 2, 16, 8, 8), rate=0.01, steps=40)


@pytest.mark.parametrize("name", MAPS)
def test_every_network_runs_forward_and_backward_on_the_meta_device(name):
    with torch.device("meta"):
        network = nn.Sequential(net.Paths(), net.FusedNetwork(BUILDERS[name](16)))
    assert networks.runs_on_meta(network, 2, 2, 16, 16).shape == (2, 10)


def test_networks_of_two_inputs_run_on_the_meta_device():
    assert networks.runs_on_meta(on_meta(net.LateFusion, 11), 2, 3, 16, 16).shape == (2, 10)


def test_the_compact_form_runs_forward_and_backward_on_the_meta_device():
    with torch.device("meta"):
        a, b = torch.empty(2, 2, C, 8, 8).requires_grad_().unbind()
        out = net.CompactBilinear(C, 100)(a, b)
        out.sum().backward()
    assert out.shape == (2, 100)
