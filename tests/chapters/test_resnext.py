"""The networks of aggregated transformations of notebooks/resnext.py."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet as library

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

net = definitions("resnext")

PUBLISHED = {  # torchvision's name, its weights, parameters
    "resnext50": ("resnext50_32x4d", "ResNeXt50_32X4D_Weights", 25_028_904),
    "resnext101": ("resnext101_32x8d", "ResNeXt101_32X8D_Weights", 88_791_336),
    "resnext101_64x4d": ("resnext101_64x4d", "ResNeXt101_64X4D_Weights", 83_455_272),
}
TABLE_2 = {1: 64, 2: 40, 4: 24, 8: 14, 32: 4}  # Xie et al. 2017: cardinality, width of a path


def counted(build, *arguments, **how):
    return parameters_of(on_meta(build, *arguments, **how))


def digits(cardinality=4, form="grouped"):
    """A small network of two stages for maps of one channel."""
    how = {"make_stem": net.digit_stem, "c_out": 32, "num_classes": 10}
    return net.resnext((1, 2), cardinality, 2, form=getattr(net, form), **how)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_parameters_torchvision_gives(name):
    _, weights, parameters = PUBLISHED[name]
    meta = getattr(torchvision.models, weights).DEFAULT.meta
    assert counted(getattr(net, name)) == parameters == meta["num_params"]


def test_resnext50_has_the_layers_and_macs_torchvision_gives():
    network, reference = on_meta(net.resnext50), on_meta(torchvision.models.resnext50_32x4d)
    networks.same_layers(network, reference)
    weights = torchvision.models.ResNeXt50_32X4D_Weights.DEFAULT
    assert round(macs_of(network) / 1e9, 3) == weights.meta["_ops"]


def test_grouping_the_first_1x1_too_is_seen_in_the_count():
    wrong = counted(net.resnext50, form=net.first_grouped)
    missing = (
        sum(  # 31 of 32 weights of each block's first 1x1: depth, channels in, channels inside
            (first * inner + (depth - 1) * 2 * inner * inner) * 31 // 32
            for depth, first, inner in ((3, 64, 128), (4, 256, 256), (6, 512, 512), (3, 1024, 1024))
        )
    )
    assert wrong == PUBLISHED["resnext50"][2] - missing


def test_the_count_another_repository_reports_on_cifar_100_is_that_of_the_mistake():
    sizes = (3, 4, 6, 3), 32, 4, net.cifar_stem, 256, 100
    reported = 14_788_772  # "resnext50" of github.com/weiaicunzai/pytorch-cifar100, 14.8M
    assert counted(net.resnext, *sizes, net.first_grouped) == reported
    assert counted(net.resnext, *sizes) > reported + 8_000_000


@pytest.mark.parametrize("cardinality", [2, 8, 32])
def test_a_path_reads_all_input_channels_and_with_the_mistake_only_its_share(cardinality):
    sizes = 256, 256, cardinality, 4
    assert net.channels_read(net.grouped(*sizes)) == 1
    assert net.channels_read(net.first_grouped(*sizes)) == 1 / cardinality


@pytest.mark.parametrize(("cardinality", "width"), TABLE_2.items())
def test_equal_weights_give_the_widths_of_table_2(cardinality, width):
    assert net.equal_width(cardinality) == width
    branch = on_meta(net.grouped, 256, 256, cardinality, width)
    kernels = sum(p.numel() for p in branch.parameters() if p.ndim == 4)
    assert net.branch_weights(cardinality, width) == kernels
    assert kernels == pytest.approx(net.branch_weights(1, 64), rel=0.03)


def test_32_paths_save_weights_in_the_first_block_of_a_stage_and_cost_some_in_the_others():
    one, many = (on_meta(net.resnext50, *pair) for pair in ((1, 64), (32, 4)))
    for i in (1, 2, 3, 4):
        for block, (a, b) in enumerate(zip(one.get_submodule(f"stage{i}"), many[i])):
            kernels = [sum(p.numel() for p in x.parameters() if p.ndim == 4) for x in (a, b)]
            assert kernels[1] < kernels[0] if block == 0 else kernels[1] > kernels[0]


@pytest.mark.parametrize(("cardinality", "millions"), [(8, 34.4), (16, 68.1)])
def test_the_cifar_networks_have_the_parameters_of_table_7_cut_to_one_decimal(
    cardinality, millions
):
    assert counted(net.resnext29, cardinality, 64) // 100_000 == round(10 * millions)


@pytest.mark.parametrize(
    ("c_in", "c_out", "stride"), [(32, 32, 1), (12, 32, 1), (12, 32, 2), (32, 32, 2)]
)
def test_each_block_does_what_torchvision_s_does(c_in, c_out, stride):
    torch.manual_seed(0)
    block = net.ResNeXtBlock(c_in, c_out, 4, 3, *([stride] if stride > 1 else []))
    conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
    same = stride == 1 and c_in == c_out
    shortcut = None if same else nn.Sequential(conv, nn.BatchNorm2d(c_out))
    how = {"groups": 4, "base_width": 24}  # torchvision's width of a path is of 64 channels
    reference = library.Bottleneck(c_in, c_out // 4, stride, shortcut, **how)
    networks.same_function(block, reference, torch.randn(3, c_in, 7, 10))


def test_the_network_does_what_torchvision_s_does_on_maps_of_odd_size():
    torch.manual_seed(0)
    network = on_meta(net.resnext, (1, 1, 1, 1), 8, 2)
    how = {"groups": 8, "width_per_group": 2}
    reference = on_meta(library.ResNet, library.Bottleneck, [1, 1, 1, 1], **how)
    networks.same_function(network, reference, torch.randn(3, 3, 41, 70), 2e-5)


def test_convolutions_start_with_variance_two_over_fan_out():
    torch.manual_seed(0)
    conv = net.resnext((1,), 1, 48, c_out=128)[1][0].branch[2][0]  # 3x3, of 48 channels
    networks.starts_with(conv.weight, (2 / (48 * 9)) ** 0.5)


def three_forms(stride=1, dtype=torch.float64):
    torch.manual_seed(0)
    c = net.grouped(24, 40, 5, 3, stride)
    networks.share_weights(c, net.grouped(24, 40, 5, 3, stride))
    return [form.to(dtype) for form in (*net.as_paths(c), c)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_the_three_forms_are_one_function(stride, training):
    forms = [form.train(training) for form in three_forms(stride)]
    x = torch.randn(3, 24, 9, 7, dtype=torch.float64)
    a, b, c = (form(x) for form in forms)
    assert c.shape == ((3, 40, 9, 7) if stride == 1 else (3, 40, 5, 4))
    close(a, c, 1e-12)
    close(b, c, 1e-12)


def test_the_three_forms_have_the_same_weights_and_the_same_gradients():
    a, b, c = three_forms()
    assert len({parameters_of(form) for form in (a, b, c)}) == 1
    x, target = torch.randn(3, 24, 9, 7).double(), torch.randn(3, 40, 9, 7).double()
    for form in (a, b, c):
        (form(x) * target).sum().backward()
    for form in (a, b):
        for layer in (0, 2):  # the 1x1 and the 3x3 of all paths, one below the other
            for i in (0, 1):  # convolution, batch norm
                parts = [path[layer][i].weight.grad for path in form.paths]
                close(torch.cat(parts), c[layer][i].weight.grad, 1e-10)
    close(torch.cat([path[4].weight.grad for path in a.paths], 1), c[4][0].weight.grad, 1e-10)
    close(b.last[0].weight.grad, c[4][0].weight.grad, 1e-10)


def test_the_order_of_the_paths_does_not_matter():
    *_, c = three_forms()
    x = torch.randn(3, 24, 9, 7, dtype=torch.float64)
    y = c.eval()(x)
    order = torch.arange(15).view(5, 3)[[3, 0, 4, 2, 1]].flatten()  # channels, path by path
    for layer in (0, 2):
        net.copy_slice(copy.deepcopy(c[layer]), c[layer], order)
    assert not torch.allclose(c(x), y)  # the paths moved, the last 1x1 did not
    c[4][0].weight.data = c[4][0].weight.data[:, order]
    close(c(x), y, 1e-12)


def test_a_grouped_convolution_is_a_full_one_with_zeros_between_the_groups():
    conv = nn.Conv2d(12, 12, 3, padding=1, groups=4, bias=False).double()
    full = torch.zeros(12, 12, 3, 3, dtype=torch.float64)
    for i in range(4):
        mine = slice(3 * i, 3 * i + 3)
        full[mine, mine] = conv.weight[mine].detach()
    x = torch.randn(2, 12, 5, 6, dtype=torch.float64)
    close(conv(x), F.conv2d(x, full, padding=1), 1e-12)
    close(net.connections(conv), full.norm(dim=(2, 3)), 1e-12)


def test_one_path_of_width_64_is_the_bottleneck_of_resnet():
    networks.same_layers(
        on_meta(net.resnext50, 1, 64), on_meta(torchvision.models.resnet50), 1, 3, 64, 64
    )


def test_a_zero_branch_leaves_relu_of_the_input():
    block = net.ResNeXtBlock(64, 64, 4, 6)
    x = torch.randn(2, 64, 7, 5)
    assert not torch.allclose(block(x), torch.relu(x))
    nn.init.zeros_(block.branch[4][1].weight)
    torch.testing.assert_close(block(x), torch.relu(x), rtol=0, atol=0)


def test_leaving_out_a_path_is_the_sum_without_its_term():
    torch.manual_seed(0)
    network = digits()
    networks.share_weights(network, digits())
    whole, _ = net.as_paths(network.stage2[1].branch)
    cut = net.without_path(network, 2, 1, 2)
    del whole.paths[2]
    x = torch.randn(2, 64, 5, 5)
    with torch.no_grad():
        close(cut.eval().stage2[1].branch(x), whole.eval()(x))
    changed = [
        a is not b and not torch.equal(a, b) for a, b in zip(network.parameters(), cut.parameters())
    ]
    assert sum(changed) == 1
    assert network.stage2[1].branch[4][0].weight.count_nonzero(dim=(0, 2, 3)).all()


@pytest.mark.parametrize("form", ["grouped", "SummedPaths", "ConcatenatedPaths"])
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(form):
    torch.manual_seed(0)
    networks.learns(digits(form=form), torch.randn(20, 1, 16, 16), rate=0.02, steps=25)


def test_the_digit_networks_have_equal_parameters_within_three_in_a_hundred():
    counts = [counted(net.digit_network, c) for c in (1, 4, 8)]
    assert max(counts) < 1.03 * min(counts)
    assert [net.equal_width(c, 128) for c in (1, 4, 8)] == [32, 12, 7]
    stem = 9 * 32 + 64
    branches = sum(c_in * 48 + 9 * 48 * 12 + 48 * 128 + 96 * 2 + 256 for c_in in (32, 128))
    branches += sum(c_in * 96 + 9 * 96 * 24 + 96 * 256 + 192 * 2 + 512 for c_in in (128, 256))
    shortcuts = 32 * 128 + 256 + 128 * 256 + 512
    assert counts[1] == stem + branches + shortcuts + 256 * 10 + 10


def test_the_stem_for_digits_leaves_a_quarter_of_the_side():
    torch.manual_seed(0)
    stem, x = net.digit_stem(5), torch.randn(2, 1, 9, 12)
    conv = nn.Conv2d(1, 5, 3, 2, 1, bias=False)
    reference = nn.Sequential(conv, nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    networks.same_function(stem, reference, x)
    networks.same_layers(stem.to("meta"), reference.to("meta"), *x.shape)


def test_the_stem_for_cifar_keeps_the_side():
    torch.manual_seed(0)
    stem, x = net.cifar_stem(5), torch.randn(2, 3, 9, 12)
    conv = nn.Conv2d(3, 5, 3, 1, 1, bias=False)
    networks.same_function(stem, nn.Sequential(conv, nn.BatchNorm2d(5), nn.ReLU()), x)


@pytest.mark.parametrize(("batch", "height", "width"), [(3, 225, 161), (1, 64, 256)])
def test_any_batch_and_map_size_goes_through(batch, height, width):
    network = on_meta(net.resnext, (1, 1, 1, 1), 32, 4)
    maps = network[:5](torch.empty(batch, 3, height, width, device="meta"))
    assert maps.shape == (batch, 2048, -(-height // 32), -(-width // 32))
    assert network[5:](maps).shape == (batch, 1000)


def test_resnext50_runs_forward_and_backward_on_the_meta_device():
    networks.runs_on_meta(on_meta(net.resnext50), 2, 3, 64, 64)


@pytest.mark.parametrize("form", ["SummedPaths", "ConcatenatedPaths", "first_grouped"])
def test_the_other_forms_run_forward_and_backward_on_the_meta_device(form):
    network = on_meta(net.digit_network, 4, getattr(net, form))
    assert networks.runs_on_meta(network, 3, 1, 20, 28).shape == (3, 10)
