"""The cross stages, the measures and the backbones of notebooks/cspnet.py."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

net = definitions("cspnet")

# Parameters of timm; G MACs at 224 of mmpretrain.
PUBLISHED = {
    "cspresnet50": (21_616_168, 3.48),
    "cspresnext50": (20_569_896, 3.11),
    "cspdarknet53": (27_642_184, 5.04),
}
KINDS = ("DenseStage", "FusionFirst", "FusionLast", "CrossDenseStage")


def randomised(network, seed: int = 0):
    """Random weights and norms, in evaluation mode."""
    torch.manual_seed(seed)
    state = {name: networks.random_like(name, t) for name, t in network.state_dict().items()}
    network.load_state_dict(state)
    return network.eval()


def by_hand(part, x):
    """Batch norm, ReLU, convolution."""
    norm, _, conv = part
    x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)
    return F.conv2d(torch.relu(x), conv.weight, padding=conv.weight.shape[-1] // 2)


def block_by_hand(block, x):
    made = [x]
    for layer in block:
        made.append(by_hand(layer, torch.cat(made, 1)))
    return torch.cat(made, 1)


# ---- stages of dense blocks ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_does_what_its_picture_says(kind):
    stage = randomised(getattr(net, kind)(8, 6, depth=3))
    x = torch.randn(2, 8, 5, 7)
    kept, worked = x[:, :4], x[:, 4:]
    if kind == "DenseStage":
        expected = by_hand(stage.transition, block_by_hand(stage.block, x))
    if kind == "FusionFirst":
        expected = by_hand(stage.fuse, torch.cat((kept, block_by_hand(stage.block, worked)), 1))
    if kind in ("FusionLast", "CrossDenseStage"):
        worked = by_hand(stage.transition, block_by_hand(stage.block, worked))
        expected = torch.cat((kept, worked), 1)
    if kind == "CrossDenseStage":
        expected = by_hand(stage.fuse, expected)
    close(stage(x), expected)
    assert expected.shape == (2, 13, 5, 7)  # (8 + 3 * 6) / 2
    assert stage.c_out == 13


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_costs_its_weights_times_the_pixels(kind):
    c, k, m = 64, 32, 6
    read = c if kind == "DenseStage" else c // 2
    layers = sum(9 * k * (read + k * number) for number in range(m))
    extra = {
        "DenseStage": (c + m * k) * (c + m * k) // 2,
        "FusionFirst": (c + m * k) * (c + m * k) // 2,
        "FusionLast": (c // 2 + m * k) * m * k // 2,
    }
    extra["CrossDenseStage"] = extra["FusionLast"] + ((c + m * k) // 2) ** 2
    stage = on_meta(getattr(net, kind), c, k, depth=m)
    assert macs_of(stage, 1, c, 7, 5) == 35 * (layers + extra[kind])


def test_a_dense_block_gives_the_shape_of_one_of_torchvision_with_bottlenecks():
    from torchvision.models.densenet import _DenseBlock

    ours = on_meta(net.DenseBlock, 64, 32, depth=6)
    theirs = on_meta(_DenseBlock, 6, 64, bn_size=4, growth_rate=32, drop_rate=0.0)
    x = torch.empty(2, 64, 8, 8, device="meta")
    assert ours(x).shape == theirs(x).shape


@pytest.mark.parametrize("kept", [2, 4, 6])
def test_an_uneven_stage_works_on_what_does_not_pass_by(kept):
    stage = randomised(net.UnevenStage(8, 6, depth=3, kept=kept))
    x = torch.randn(2, 8, 5, 7)
    worked = by_hand(stage.transition, block_by_hand(stage.block, x[:, kept:]))
    close(stage(x), by_hand(stage.fuse, torch.cat((x[:, :kept], worked), 1)))
    assert stage(x).shape == (2, 13, 5, 7)


def test_an_uneven_stage_past_which_half_goes_is_the_cross_stage():
    cross, uneven = net.CrossDenseStage(8, 6, depth=3), net.UnevenStage(8, 6, depth=3, kept=4)
    networks.same_function(uneven, cross, torch.randn(2, 8, 5, 7))


def test_names_stand_left_and_right_of_a_column_and_behind_t():
    T = net.diagrams.Node(3.0, 2.0, "T, 1×1")
    names = net.arrow_names(3.0, "both", {"both T, 1×1": T})
    places = {key: (round(node.x, 2), round(node.y, 2)) for key, node in names.items()}
    assert places == {
        "both worked": (2.78, 1.0),
        "both kept": (3.33, 1.0),
        "both made": (2.78, 2.31),
    }
    assert len(net.arrow_names(3.0, "first", {})) == 2


# ---- the measures --------------------------------------------------------------------------------


def test_a_channel_is_read_by_the_layers_that_have_a_weight_for_it():
    dense, cross = net.DenseStage(4, 2, depth=3), net.CrossDenseStage(4, 2, depth=3)
    assert [net.reads(dense, 4, channel=channel) for channel in range(4)] == [4] * 4
    assert [net.reads(cross, 4, channel=channel) for channel in range(4)] == [1, 1, 4, 4]
    for stage in (dense, cross):
        assert [net.reads(stage, 4, source=number) for number in range(3)] == [3, 2, 1]
        assert [net.reads(stage, 4, source=number, channel=1) for number in range(3)] == [3, 2, 1]
    assert net.reads(cross, 4, source=3) == 1  # T is read by U
    assert net.reads(net.CrossDenseStage(2, 2, depth=3), 2) == 1  # of two channels the first
    assert net.reads(net.FusionLast(4, 2, depth=3), 4) == 0
    assert net.reads(net.TwoConvs(4, 2), 4) == 2
    assert net.reads(net.one_conv(4, 2), 4) == 1


def test_the_count_of_readers_changes_no_stage():
    stage = net.CrossDenseStage(4, 2, depth=3)
    before = copy.deepcopy(stage.state_dict())
    net.reads(stage, 4)
    for name, value in stage.state_dict().items():
        close(value.double(), before[name].double(), 0)
    assert stage.training
    assert not any(m._forward_hooks for m in stage.modules())


def test_traffic_is_the_channels_that_convolutions_read_and_write():
    rows = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 7, 3, padding=1))
    assert net.traffic(rows.to("meta"), 3) == 3 + 5 + 5 + 7
    block = on_meta(net.DenseBlock, 64, 32, depth=6)
    assert net.traffic(block, 64) == 64 * 6 + 21 * 32
    assert net.traffic(nn.Identity(), 3) == 0
    assert not any(m._forward_hooks for m in block.modules())


def test_the_gradient_at_each_stage_is_that_of_the_summed_loss_a_row_for_each_pixel():
    torch.manual_seed(0)
    network = randomised(net.Network(net.CrossDenseStage)).train()
    x, y = torch.randn(3, 3, 16, 16), torch.tensor([0, 4, 9])
    found = net.base_gradients(network, x, y)
    assert network.training
    assert not any(m._forward_pre_hooks for m in network.modules())
    assert [tuple(g.shape) for g in found] == [(3 * 64, 16), (3 * 16, 24), (3 * 4, 28)]
    network.eval()
    base = network.stem(x)
    rest = F.avg_pool2d(network.stage1(base), 2)
    last = F.avg_pool2d(network.stage2(rest), 2)
    answers = network.classifier(torch.relu(network.norm(network.stage3(last))).mean((2, 3)))
    loss = F.cross_entropy(answers, y, reduction="sum")
    for g, at in zip(found, torch.autograd.grad(loss, (base, rest, last)), strict=True):
        close(g, at.permute(0, 2, 3, 1).reshape(-1, at.shape[1]))


def test_what_a_linear_map_gives_is_explained_and_nothing_else():
    torch.manual_seed(0)
    a, noise = torch.randn(4000, 3) + 5, torch.randn(4000, 3)
    noise -= noise.mean(0)
    centred = a - a.mean(0)
    noise -= centred @ torch.linalg.lstsq(centred, noise).solution  # nothing of a is left in it
    b = 3 + a @ torch.randn(3, 3)
    assert net.explained(a, b) == pytest.approx(1)
    assert net.explained(a, 7 + noise) == pytest.approx(0, abs=1e-4)
    expected = b.var(0).sum() / (b.var(0).sum() + (2 * noise).var(0).sum())
    assert net.explained(a, b + 2 * noise) == pytest.approx(expected.item(), abs=1e-3)


def test_shared_is_the_mean_of_both_directions():
    torch.manual_seed(0)
    a = torch.randn(500, 2)
    b = torch.cat((a, torch.randn(500, 2)), 1)  # gives all of a, and a half of it
    assert net.explained(b, a) == pytest.approx(1)
    assert net.explained(a, b) < 0.7
    assert net.shared(a, b) == pytest.approx((1 + net.explained(a, b)) / 2)


def test_correlations_are_without_sign_and_one_on_the_diagonal():
    x = torch.tensor([[1.0, -2.0, 1.0], [2.0, -4.0, -1.0], [3.0, -6.0, 1.0]])
    close(net.correlations(x), torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]))


# ---- the small networks --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_network_runs_forward_and_backward_on_the_meta_device(kind):
    network = on_meta(net.Network, getattr(net, kind))
    assert networks.runs_on_meta(network, 3, 3, 16, 24).shape == (3, 10)


def test_a_small_network_of_cross_stages_learns_a_batch():
    torch.manual_seed(0)
    network = net.Network(net.CrossDenseStage, depth=2)
    networks.learns(network, torch.randn(20, 3, 16, 16), rate=0.02, steps=30)


@pytest.mark.parametrize(
    ("kind", "parameters", "macs"),
    [
        ("DenseStage", 36_434, 862_028),
        ("FusionFirst", 26_370, 643_148),
        ("CrossDenseStage", 26_286, 645_308),
        ("FusionLast", 23_862, 592_300),
    ],
)
def test_small_networks_have_the_size_of_a_sum_by_hand(kind, parameters, macs):
    total, cost, c, pixels = 3 * 16 * 9 + 2 * 30 + 310, 3 * 16 * 9 * 64 + 300, 16, 64
    for _ in range(3):
        read = c if kind == "DenseStage" else c // 2
        sizes = [(read + 8 * k, 8, 9) for k in range(4)]
        if kind in ("DenseStage", "FusionFirst"):
            sizes.append((c + 32, (c + 32) // 2, 1))
        else:
            sizes.append((read + 32, 16, 1))
        if kind == "CrossDenseStage":
            sizes.append((c // 2 + 16, (c + 32) // 2, 1))
        total += sum(a * b * area + 2 * a for a, b, area in sizes)
        cost += pixels * sum(a * b * area for a, b, area in sizes)
        c, pixels = (c + 32) // 2, pixels // 4
    network = on_meta(net.Network, getattr(net, kind))
    assert (parameters_of(network), macs_of(network, 1, 3, 16, 16)) == (parameters, macs)
    assert (total, cost) == (parameters, macs)


def test_the_rate_rises_for_a_fifth_of_the_steps_and_falls_to_nothing(monkeypatch):
    rates, settings = networks.steps_of(monkeypatch, net.training, batches=5)
    part = torch.zeros(220, 3, 16, 16), torch.zeros(220)  # five batches of 50 at most
    net.train(nn.Linear(1, 1), part)
    assert (settings["momentum"], settings["weight_decay"], settings["batch"]) == (0.9, 1e-4, 50)
    assert settings["nesterov"]
    networks.rises_and_falls(rates, peak=0.1, at=2)


# ---- the backbones -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "counts"), PUBLISHED.items())
def test_backbones_have_the_published_parameters_and_about_the_published_macs(name, counts):
    network = on_meta(getattr(net, name))
    assert parameters_of(network) == counts[0]
    assert macs_of(network) / 1e9 == pytest.approx(counts[1], rel=0.013)  # theirs with the norms


def test_cspdarknet53_costs_what_darknet_prints_at_256():
    macs = macs_of(on_meta(net.cspdarknet53), 1, 3, 256, 256)
    assert round(2 * macs / 1e9, 2) == 13.07


@pytest.mark.parametrize("name", PUBLISHED)
def test_backbones_call_the_layers_of_timm_in_their_order(name):
    theirs = on_meta(timm.create_model, name)
    theirs.head.drop = nn.Identity()  # a dropout of nothing
    networks.same_layers(on_meta(getattr(net, name)), theirs)


@pytest.mark.parametrize("name", PUBLISHED)
def test_backbones_run_forward_and_backward_on_the_meta_device(name):
    network = on_meta(getattr(net, name))
    assert networks.runs_on_meta(network, 3, 3, 64, 96).shape == (3, 1000)


def test_with_the_same_weights_cspresnext50_does_what_that_of_timm_does():
    torch.manual_seed(0)
    ours, theirs = on_meta(net.cspresnext50), on_meta(timm.create_model, "cspresnext50")
    networks.share_weights(ours, theirs)
    networks.same_outputs(ours, theirs, torch.randn(2, 3, 75, 50))


def small_dark(**how):
    """The classes of CSPDarknet-53, narrow."""
    stages = [net.dark_stage(8, 16, half=16, width=8, depth=1)]
    stages.append(net.dark_stage(16, 32, half=16, width=16, depth=2, **how))
    return net.CSPNet(net.conv_act(3, 8, 3), stages, c_out=32, num_classes=10)


def test_with_the_same_weights_a_narrow_darknet_does_what_that_of_timm_does():
    from timm.models.cspnet import CspModelCfg, CspNet, CspStagesCfg, CspStemCfg

    shape = {"depth": (1, 2), "out_chs": (16, 32), "stride": 2, "block_ratio": (1.0, 0.5)}
    shape |= {"bottle_ratio": (0.5, 1.0), "expand_ratio": (2.0, 1.0), "down_growth": True}
    stages = CspStagesCfg(**shape, stage_type="csp", block_type="dark")
    stem = CspStemCfg(out_chs=8, stride=1, kernel_size=3)
    theirs = CspNet(CspModelCfg(stem=stem, stages=stages), num_classes=10)
    torch.manual_seed(0)
    networks.same_function(small_dark(), theirs, torch.randn(3, 3, 25, 18))


@pytest.mark.parametrize("split", ["one_conv", "TwoConvs", "cut"])
def test_a_narrow_darknet_learns_a_batch_with_each_split(split):
    torch.manual_seed(0)
    network = small_dark(split=getattr(net, split))
    networks.learns(network, torch.randn(20, 3, 8, 8), rate=0.01, steps=30)


def test_a_cross_stage_keeps_the_first_half_past_its_blocks():
    stage = randomised(net.dark_stage(6, 8, half=4, width=3, depth=2, split=net.cut))
    x = torch.randn(2, 6, 10, 6)
    base = stage.down(x)
    worked = base[:, 4:]
    for block in stage.blocks:
        worked = worked + block.branch(worked)
    joined = torch.cat((base[:, :4], stage.transition(worked)), 1)
    close(stage(x), stage.fuse(joined))
    assert stage(x).shape == (2, 8, 5, 3)


@pytest.mark.parametrize("block", ["DarkBlock", "Bottleneck"])
def test_a_zero_branch_leaves_the_input_behind_a_bottleneck_its_leaky_relu(block):
    made, x = getattr(net, block)(8, 4).eval(), torch.randn(2, 8, 5, 3)
    assert not torch.allclose(made(x), x)
    for p in made.branch.parameters():
        nn.init.zeros_(p)
    close(made(x), x if block == "DarkBlock" else F.leaky_relu(x, 0.01), 0)


def test_one_convolution_cut_in_two_is_two_convolutions():
    one, two = randomised(net.one_conv(6, 4)), net.TwoConvs(6, 4).eval()
    state = one.state_dict()
    for part, own in ((two.kept, slice(0, 4)), (two.worked, slice(4, 8))):
        part.load_state_dict({n: t[own] if t.ndim else t for n, t in state.items()})
    x = torch.randn(2, 6, 5, 3)
    close(two(x), one(x))


def test_the_blocks_of_the_backbones_are_as_many_and_as_wide_as_the_chapter_says():
    depths = {
        "cspresnet50": [3, 3, 5, 2],
        "cspresnext50": [3, 3, 5, 2],
        "cspdarknet53": [1, 2, 8, 8, 4],
    }
    for name, expected in depths.items():
        assert [len(stage.blocks) for stage in on_meta(getattr(net, name)).stages] == expected
    for name, wider in (("cspresnet50", 2), ("cspresnext50", 1)):
        for stage in on_meta(getattr(net, name)).stages:
            first, _, last = stage.blocks[0].branch
            assert last[0].out_channels == wider * first[0].out_channels


def test_the_split_of_the_paper_has_no_weights_and_needs_whole_halves():
    x = torch.randn(2, 8, 5, 3)
    close(net.cut(8, 4)(x), x, 0)
    with pytest.raises(AssertionError, match="half"):
        net.cut(8, 3)
    saved = parameters_of(on_meta(net.cspdarknet53)) - parameters_of(
        on_meta(net.cspdarknet53, split=net.cut)
    )
    assert saved == sum(c * c + 2 * c for c in (128, 256, 512, 1024))


def test_the_mean_over_the_stages_is_taken_for_each_seed():
    values = {("a", stage, n): 10.0 * n + stage**2 for stage in (1, 2, 3) for n in net.SEEDS}
    found = net.over_stages(values, "a")
    assert found == pytest.approx([10 * n + 14 / 3 for n in net.SEEDS])


def test_a_calibrated_network_keeps_mean_and_variance_of_what_it_has_seen():
    torch.manual_seed(0)
    norm, x = nn.BatchNorm2d(2).eval(), 3 + 2 * torch.randn(50, 2, 4, 4)
    assert net.calibrated(norm, x) is norm
    close(norm.running_mean, x.mean((0, 2, 3)))
    close(norm.running_var, x.transpose(0, 1).flatten(1).var(1))
