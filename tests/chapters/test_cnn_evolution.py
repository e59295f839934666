"""The kinds of convolution, and MobileNet, of notebooks/cnn_evolution.py."""

from collections import Counter

import pytest
import torch
import torchvision
from timm.models.efficientnet import mobilenetv1_100
from torch import nn
from torch.nn import functional as F
from torchvision.models.shufflenetv2 import channel_shuffle

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

net = definitions("cnn_evolution")

# Weights for 8 channels in and 16 out, summed by hand; MACs are these times the pixels.
WEIGHTS = {
    "standard": 9 * 8 * 16,
    "spatially separable": 3 * 8 * 16 + 3 * 16 * 16,
    "grouped": 4 * (9 * 2 * 4),
    "shuffled": 4 * (9 * 2 * 4),
    "depthwise separable": 9 * 8 + 8 * 16,
    "pointwise": 8 * 16,
    "depthwise": 9 * 16,
}
KINDS = list(WEIGHTS)
NINE = [
    "alexnet",
    "vgg16",
    "googlenet",
    "inception_v3",
    "resnet50",
    "densenet121",
    "resnext50_32x4d",
    "mobilenet_v2",
    "shufflenet_v2_x1_0",
]


def randomised(name):
    torch.manual_seed(0)
    return net.KINDS[name](8, 16)


# ---- cost ----------------------------------------------------------------------------------------


def test_the_kinds_are_those_summed_by_hand_in_their_order():
    assert list(net.KINDS) == KINDS


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_costs_what_a_sum_by_hand_gives(name):
    layer = on_meta(net.KINDS[name], 8, 16)
    assert parameters_of(layer) == WEIGHTS[name]
    assert macs_of(layer, 1, 8, 7, 5) == WEIGHTS[name] * 35


@pytest.mark.parametrize(("size", "groups"), [((3, 3), 1), ((5, 1), 1), ((3, 3), 4), ((1, 7), 8)])
def test_the_formula_gives_the_counted_cost(size, groups):
    layer = on_meta(net.conv, 16, 24, size=size, groups=groups)
    found = net.cost(16, 24, size=size, groups=groups, H=9, W=11)
    assert found == macs_of(layer, 1, 16, 9, 11)
    assert net.cost(16, 24, size=size, H=9, W=11) == groups * found


@pytest.mark.parametrize(("c_in", "c_out"), [(32, 64), (64, 64), (128, 24)])
def test_the_separable_pair_costs_one_over_n_plus_one_over_nine(c_in, c_out):
    pair, full = (on_meta(net.KINDS[k], c_in, c_out) for k in ("depthwise separable", "standard"))
    share = macs_of(pair, 1, c_in, 8, 8) / macs_of(full, 1, c_in, 8, 8)
    assert share == pytest.approx(1 / c_out + 1 / 9)


def test_a_stride_takes_every_second_pixel_of_the_same_map():
    torch.manual_seed(0)
    layer, x = net.conv(4, 6, size=(5, 3), stride=2), torch.randn(2, 4, 9, 8)
    dense = F.conv2d(x, layer.weight, padding=(2, 1))
    close(layer(x), dense[:, :, ::2, ::2])


# ---- dense kernels -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 7, 12), (3, 9, 4)])
def test_each_kind_keeps_any_map_and_equals_its_dense_kernel(name, batch, height, width):
    layer, x = randomised(name), torch.randn(batch, 8, height, width)
    kernel = net.dense_kernel(layer, 8)
    assert kernel.shape == (16, 8, 3, 3)
    close(layer(x), F.conv2d(x, kernel, padding=1))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_dense_kernel_of_a_convolution_is_its_weight(size):
    layer = net.conv(3, 5, size=(size, size))
    close(net.dense_kernel(layer, 3, size=size), layer.weight.detach())


@pytest.mark.parametrize(("groups", "size"), [(1, 3), (2, 3), (3, 1), (6, 5)])
def test_a_grouped_convolution_is_separate_ones_on_slices(groups, size):
    torch.manual_seed(0)
    layer = net.conv(6, 12, size=(size, size), groups=groups)
    x = torch.randn(2, 6, 8, 7)
    weights = layer.weight.chunk(groups)
    slices = [F.conv2d(a, w, padding=size // 2) for a, w in zip(x.chunk(groups, 1), weights)]
    close(layer(x), torch.cat(slices, 1))


def test_the_written_kernels_are_those_the_layers_answer_with():
    pair = randomised("spatially separable")
    written = net.spatial_product(pair.column.weight, pair.row.weight)
    close(net.dense_kernel(pair, 8), written.detach())
    pair = randomised("depthwise separable")
    written = net.separable_product(pair.depthwise.weight, pair.pointwise.weight)
    close(net.dense_kernel(pair, 8), written.detach())


def test_pointwise_first_gives_each_output_one_pattern():
    torch.manual_seed(0)
    pair, x = net.PointwiseFirst(4, 6), torch.randn(2, 4, 7, 5)
    assert parameters_of(pair) == 4 * 6 + 9 * 6
    kernel = net.dense_kernel(pair, 4)
    close(pair(x), F.conv2d(x, kernel, padding=1))
    assert (torch.linalg.matrix_rank(kernel.flatten(2)) == 1).all()


def test_kernels_have_the_ranks_that_the_text_says():
    torch.manual_seed(0)
    pair = nn.Sequential(net.conv(4, 1, size=(3, 1)), net.conv(1, 5, size=(1, 3)))
    assert (torch.linalg.matrix_rank(net.dense_kernel(pair, 4)) == 1).all()
    patterns = net.dense_kernel(net.DepthwiseSeparable(4, 5), 4).transpose(0, 1).flatten(2)
    assert (torch.linalg.matrix_rank(patterns) == 1).all()
    assert (torch.linalg.matrix_rank(net.dense_kernel(net.conv(4, 5), 4)) == 3).all()


def test_what_is_left_is_a_share_of_the_variance_of_the_teacher_and_trains_the_student_only():
    torch.manual_seed(0)
    teacher, student, seen = net.conv(4, 4), net.conv(4, 4), []
    handle = student.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    found = net.left_over(teacher, student, 4)
    found.backward()
    handle.remove()
    (x,) = seen
    assert x.shape == (16, 4, 8, 8)
    wanted, answer = teacher(x).detach(), student(x).detach()
    close(found.detach(), ((answer - wanted) ** 2).mean() / wanted.var())
    assert teacher.weight.grad is None
    assert student.weight.grad is not None
    assert net.left_over(teacher, teacher, 4) == 0


@pytest.mark.parametrize("name", ["standard", "spatially separable", "grouped"])
def test_a_student_of_the_teacher_s_kind_learns_it_and_the_teacher_stays(name):
    torch.manual_seed(0)
    teacher, student = net.KINDS[name](8, 8), net.KINDS[name](8, 8)
    before = [weight.clone() for weight in teacher.parameters()]
    assert net.learn_from(teacher, student) < 0.005
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), before))
    assert net.left_over(teacher, student, 8) < 0.005


def test_a_student_of_groups_keeps_what_lies_outside_of_them():
    torch.manual_seed(0)
    teacher, student = net.conv(8, 8), net.grouped(8, 8)
    least = net.least_left(net.dense_kernel(teacher, 8))["grouped"]
    assert net.learn_from(teacher, student) == pytest.approx(least, abs=0.05)


def test_the_least_left_is_that_of_kernels_summed_by_hand():
    kernel = torch.zeros(2, 2, 3, 3)
    kernel[0, 0, 0, 0] = 2
    kernel[1, 0, 1, 1] = 1  # another pattern of the first input
    kernel[0, 1, 2, 1] = 1  # of the second input, which has no other
    found = net.least_left(kernel, groups=2)
    assert found == {
        "standard": 0,
        "spatially separable": pytest.approx(1 / 6),  # two of three outer products stay
        "grouped": pytest.approx(2 / 6),  # both ones join the two groups
        "depthwise separable": pytest.approx(1 / 6),
    }


@pytest.mark.parametrize("name", ["spatially separable", "grouped", "depthwise separable"])
def test_a_kernel_of_a_form_leaves_nothing_in_it_and_something_in_the_others(name):
    torch.manual_seed(0)
    found = net.least_left(net.dense_kernel(net.KINDS[name](8, 12), 8))
    forms = [form for form, share in found.items() if share < 1e-5]
    assert forms == ["standard", name]


# ---- shuffle, who hears whom ---------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "groups"), [(8, 4), (12, 3), (6, 6), (6, 1)])
def test_shuffle_is_that_of_two_libraries_a_permutation_and_undone_by_the_other_number(
    channels, groups
):
    x, shuffle = torch.randn(2, channels, 3, 5), net.Shuffle(groups)
    close(shuffle(x), channel_shuffle(x, groups), 0)
    close(shuffle(x), nn.ChannelShuffle(groups)(x), 0)
    close(net.Shuffle(channels // groups)(shuffle(x)), x, 0)


def test_a_shuffle_deals_channels_out_like_cards():
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert net.Shuffle(2)(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    with pytest.raises(AssertionError, match="divide"):
        net.Shuffle(4)(x)


def test_shuffled_layers_are_grouped_ones_with_a_shuffle_behind():
    torch.manual_seed(0)
    layer, x = net.shuffled(12, 24, groups=3), torch.randn(1, 12, 5, 4)
    close(layer(x), channel_shuffle(F.conv2d(x, layer[0].weight, padding=1, groups=3), 3))


def test_without_a_shuffle_another_group_is_never_heard_and_with_it_all_are():
    torch.manual_seed(0)
    closed = nn.Sequential(*(net.grouped(16, 16) for _ in range(4)))
    opened = nn.Sequential(*(net.shuffled(16, 16) for _ in range(2)))
    blocks = torch.block_diag(*[torch.ones(4, 4)] * 4).bool()
    assert torch.equal(net.reach(closed, 16), blocks)
    assert net.reach(opened, 16).all()
    x = torch.randn(1, 16, 5, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(closed(x)[:, :4].sum(), x)
    assert gradient[:, :4].any()
    assert not gradient[:, 4:].any()


def test_a_kernel_of_one_row_or_column_is_heard_too():
    layer = net.conv(2, 2, size=(1, 1))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0, 0.0], [0.0, 2.0]]).view(2, 2, 1, 1))
    assert net.reach(layer, 2).tolist() == [[True, False], [False, True]]


# ---- separable terms -----------------------------------------------------------------------------


@pytest.mark.parametrize("side", [7, 8])
def test_terms_are_exact_when_all_nine_are_kept_and_better_the_more(side):
    torch.manual_seed(0)
    layer, x = net.conv(6, 16), torch.randn(2, 6, side, 5)
    errors = [(net.separable_terms(layer, r)(x) - layer(x)).norm().item() for r in (1, 3, 6, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4 * layer(x).norm().item()


def test_one_term_gives_back_a_kernel_that_is_separable():
    torch.manual_seed(0)
    pair, x = net.DepthwiseSeparable(6, 16), torch.randn(2, 6, 7, 5)
    dense = net.with_kernel(net.dense_kernel(pair, 6))
    close(net.separable_terms(dense, 1)(x), pair(x), 1e-4)


def test_a_factorised_network_of_nine_terms_has_the_outputs_of_the_whole_and_leaves_it_alone():
    torch.manual_seed(0)
    network = net.SmallNetwork(net.conv, 8).eval()
    split, x = net.factorised(network, 9).eval(), torch.randn(3, 3, 16, 16)
    assert len([m for m in split.modules() if isinstance(m, nn.Conv2d)]) == 1 + 2 * 4
    assert len([m for m in network.modules() if isinstance(m, nn.Conv2d)]) == 1 + 4
    close(split(x), network(x), 1e-4)


def test_norms_measured_again_have_the_statistics_of_the_new_pictures_in_a_copy():
    torch.manual_seed(0)
    network = nn.Sequential(net.conv(3, 4), nn.BatchNorm2d(4))
    x = 3 + 2 * torch.randn(5, 3, 6, 4)
    before = network[1].running_mean.clone()
    renewed = net.measured_again(network, x)
    y = network[0](x).detach()
    close(renewed[1].running_mean, y.mean((0, 2, 3)))
    close(renewed[1].running_var, y.var((0, 2, 3)))
    assert torch.equal(network[1].running_mean, before)
    assert not renewed.training and network.training


# ---- the small network ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["standard", "depthwise separable"])
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(name):
    torch.manual_seed(0)
    network = net.SmallNetwork(net.KINDS[name], 8)
    networks.learns(network, torch.randn(20, 3, 16, 16), rate=0.02, steps=50)


def test_the_small_network_has_the_layers_that_the_text_names_and_a_relu_behind_each_norm():
    torch.manual_seed(0)
    w = 5
    stem = [nn.Conv2d(3, w, 2, 2, bias=False), nn.BatchNorm2d(w), nn.ReLU()]
    parts = []
    for c_in, c_out in ((w, 2 * w), (2 * w, 2 * w), (2 * w, 4 * w), (4 * w, 4 * w)):
        layer = nn.Conv2d(c_in, c_out, 3, 1, 1, bias=False)
        parts.append(nn.Sequential(layer, nn.BatchNorm2d(c_out), nn.ReLU()))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * w, 10)]
    plain = nn.Sequential(*stem, *parts[:2], nn.MaxPool2d(2), *parts[2:], *head)
    networks.same_function(net.SmallNetwork(net.conv, w), plain, torch.randn(4, 3, 14, 18))


@pytest.mark.parametrize("name", KINDS)
def test_small_networks_run_forward_and_backward_on_the_meta_device(name):
    network = on_meta(net.SmallNetwork, net.KINDS[name], 8)
    assert networks.runs_on_meta(network, 2, 3, 18, 13).shape == (2, 10)


# ---- MobileNet -----------------------------------------------------------------------------------


def test_mobilenet_has_the_layers_of_timm_and_the_cost_of_the_paper():
    """Howard et al. 2017, table 4: 569 million and 4.2 million."""
    network = on_meta(net.MobileNet)
    networks.same_layers(network, on_meta(mobilenetv1_100))
    assert parameters_of(network) == 4_231_976
    assert round(macs_of(network) / 1e6) == 569


def test_the_twin_of_standard_kernels_has_the_parameters_and_macs_of_the_paper():
    """Howard et al. 2017, table 4: 4866 million, without the linear layer, and 29.3 million."""
    twin = on_meta(lambda: net.MobileNet(net.FullBlock))
    assert round(parameters_of(twin) / 1e6, 1) == 29.3
    assert round((macs_of(twin) - 1024 * 1000) / 1e6) == 4866


@pytest.mark.parametrize("stride", [1, 2])
def test_the_blocks_are_convolutions_with_norms_and_clipped_relus(stride):
    torch.manual_seed(0)

    def act(conv):
        return conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6()

    space = nn.Conv2d(6, 6, 3, stride, 1, groups=6, bias=False)
    pair = nn.Sequential(*act(space), *act(nn.Conv2d(6, 4, 1, bias=False)))
    full = nn.Sequential(*act(nn.Conv2d(6, 4, 3, stride, 1, bias=False)))
    x = 9 * torch.randn(3, 6, 7, 8)  # some values above 6
    networks.same_function(net.SeparableBlock(6, 4, stride=stride), pair, x)
    networks.same_function(net.FullBlock(6, 4, stride=stride), full, x)


def test_the_first_block_of_a_stage_takes_the_stride_and_all_others_keep_the_map():
    calls = []

    def block(c_in, c_out, *, stride=1):
        calls.append((c_in, c_out, stride))
        return nn.Identity()

    assert len(net.stage(block, 3, c_in=4, c_out=8, stride=2)) == 3
    assert calls == [(4, 8, 2), (8, 8, 1), (8, 8, 1)]


def test_mobilenet_does_what_timm_s_does_on_maps_of_odd_size():
    torch.manual_seed(0)
    pair = on_meta(net.MobileNet), on_meta(mobilenetv1_100)
    networks.share_weights(*pair)
    networks.same_outputs(*pair, torch.randn(3, 3, 75, 97))


@pytest.mark.parametrize("block", ["SeparableBlock", "FullBlock"])
def test_mobilenet_runs_forward_and_backward_on_the_meta_device(block):
    network = on_meta(lambda: net.MobileNet(getattr(net, block), num_classes=7))
    assert networks.runs_on_meta(network, 2, 3, 97, 64).shape == (2, 7)


# ---- where the cost lies -------------------------------------------------------------------------


def test_shares_of_mobilenet_are_those_of_table_2_of_its_paper():
    macs = net.macs_by_kind(on_meta(net.MobileNet), torch.empty(1, 3, 224, 224, device="meta"))
    assert 100 * macs["1×1"] / macs.total() == pytest.approx(94.86, abs=0.006)
    assert 100 * macs["depthwise"] / macs.total() == pytest.approx(3.06, abs=0.006)
    printed = 94.86 + 3.06 + 1.19 + 0.18  # the paper's column; the first layer has what is missing
    assert 100 * macs["3×3"] / macs.total() == pytest.approx(100 - printed + 1.19, abs=0.02)


def test_costs_are_counted_for_each_kind_and_image_in_evaluation_mode():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    layers = net.conv(3, 4), norm, net.conv(4, 4, size=(1, 1)), nn.Flatten(), nn.Linear(120, 2)
    network, before = nn.Sequential(*layers), norm.running_mean.clone()
    macs = net.macs_by_kind(network, torch.randn(3, 3, 5, 6))
    assert macs == Counter({"3×3": 108 * 30, "1×1": 16 * 30, "linear": 240})
    assert torch.equal(norm.running_mean, before) and network.training
    assert not any(layer._forward_hooks for layer in layers)


@pytest.mark.parametrize("builder", NINE)
def test_the_nine_cost_what_torchvision_publishes(builder):
    network, x = net.built(builder)
    meta = torchvision.models.get_model_weights(builder).DEFAULT.meta
    macs = net.macs_by_kind(network, x).total()
    assert round(macs / 1e9, 3) == meta["_ops"]
    heads = 3_326_696 if builder == "inception_v3" else 0  # its published count has the extra head
    assert parameters_of(network) + heads == meta["num_params"]


def test_these_nine_are_the_networks_of_the_page():
    assert list(net.NINE) == NINE


def test_layers_are_sorted_into_kinds():
    layers = [
        nn.Linear(2, 2),
        net.conv(4, 4, size=(7, 7)),
        net.conv(4, 4),
        net.conv(4, 4, size=(1, 7)),
        net.conv(4, 4, size=(1, 1)),
        net.conv(4, 4, groups=2),
        net.conv(4, 4, groups=4),
    ]
    assert [net.kind_of(layer) for layer in layers] == list(net.ORDER)
    assert net.kind_of(net.conv(4, 4, size=(5, 5))) == "5×5+"


def test_the_map_goes_forward_in_time_and_has_every_network_that_is_counted():
    assert list(net.MAP) == sorted(net.MAP)
    entries = [entry for year in net.MAP.values() for entry in year]
    assert {lane for lane, _, _ in entries} == set(range(len(net.LANES)))
    shown = {name for _, name, _ in entries}
    counted = {name.removesuffix("-16").removesuffix("-121") for name in net.NINE.values()}
    assert {name.removesuffix("-50") for name in counted} | {"MobileNet"} <= shown
    assert {name.strip("()") for name in shown} == {n for n in shown if "(" not in n}
