"""The networks of aggregated transformations of notebooks/resnext.py."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from loader import definitions
from workbench import checks, counting, training

resnext = definitions("resnext")

PUBLISHED = {
    "resnext50": torchvision.models.ResNeXt50_32X4D_Weights.IMAGENET1K_V2,
    "resnext101": torchvision.models.ResNeXt101_32X8D_Weights.IMAGENET1K_V2,
    "resnext101_64x4d": torchvision.models.ResNeXt101_64X4D_Weights.IMAGENET1K_V1,
}
PARAMETERS = {"resnext50": 25_028_904, "resnext101": 88_791_336, "resnext101_64x4d": 83_455_272}
TORCHVISION = {
    "resnext50": "resnext50_32x4d",
    "resnext101": "resnext101_32x8d",
    "resnext101_64x4d": "resnext101_64x4d",
}
TABLE_2 = {1: 64, 2: 40, 4: 24, 8: 14, 32: 4}  # Xie et al. 2017: cardinality, width of a path


def on_meta(build, *args, **how):
    with torch.device("meta"):
        return build(*args, **how)


def parameters_of(build, *args, **how):
    return counting.parameters(on_meta(build, *args, **how))


def close(found, expected, tolerance=1e-5):
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(("name", "weights"), PUBLISHED.items())
def test_published_sizes_have_the_parameters_and_macs_torchvision_gives(name, weights):
    network = on_meta(getattr(resnext, name))
    assert counting.parameters(network) == weights.meta["num_params"] == PARAMETERS[name]
    macs = counting.macs(network, torch.empty(1, 3, 224, 224, device="meta"))
    assert round(macs / 1e9, 3) == weights.meta["_ops"]


def test_only_the_3x3_convolutions_are_grouped():
    for layer in on_meta(resnext.resnext50).modules():
        if isinstance(layer, nn.Conv2d):
            inside = layer.kernel_size == (3, 3)
            assert layer.groups == (32 if inside else 1)


def test_grouping_the_first_1x1_too_is_seen_in_the_count():
    wrong = parameters_of(resnext.resnext50, form=resnext.first_grouped)
    missing = (
        sum(  # 31 of 32 weights of each block's first 1x1: depth, channels in, channels inside
            (first * inner + (depth - 1) * 2 * inner * inner) * 31 // 32
            for depth, first, inner in ((3, 64, 128), (4, 256, 256), (6, 512, 512), (3, 1024, 1024))
        )
    )
    assert wrong == PARAMETERS["resnext50"] - missing


def test_the_count_another_repository_reports_on_cifar_100_is_that_of_the_mistake():
    sizes = (3, 4, 6, 3), 32, 4, resnext.cifar_stem, 256, 100
    reported = 14_788_772  # "resnext50" of github.com/weiaicunzai/pytorch-cifar100, 14.8M
    assert parameters_of(resnext.resnext, *sizes, resnext.first_grouped) == reported
    assert parameters_of(resnext.resnext, *sizes) > reported + 8_000_000


@pytest.mark.parametrize("cardinality", [2, 8, 32])
def test_a_path_reads_all_input_channels_and_with_the_mistake_only_its_share(cardinality):
    sizes = 256, 256, cardinality, 4
    assert resnext.channels_read(resnext.grouped(*sizes)) == 1
    assert resnext.channels_read(resnext.first_grouped(*sizes)) == 1 / cardinality


@pytest.mark.parametrize(("cardinality", "width"), TABLE_2.items())
def test_equal_weights_give_the_widths_of_table_2(cardinality, width):
    assert resnext.equal_width(cardinality) == width
    branch = on_meta(resnext.grouped, 256, 256, cardinality, width)
    kernels = sum(p.numel() for p in branch.parameters() if p.ndim == 4)
    assert resnext.branch_weights(cardinality, width) == kernels
    assert kernels == pytest.approx(resnext.branch_weights(1, 64), rel=0.03)


@pytest.mark.parametrize(("cardinality", "width"), TABLE_2.items())
def test_every_pair_has_the_tensors_of_the_library_in_their_order(cardinality, width):
    ours = on_meta(resnext.resnext50, cardinality, width)
    how = {"groups": cardinality, "width_per_group": width}
    theirs = on_meta(torchvision.models.resnet50, **how)
    shapes = [[t.shape for t in model.state_dict().values()] for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_32_paths_save_weights_in_the_first_block_of_a_stage_and_cost_some_in_the_others():
    one, many = (on_meta(resnext.resnext50, *pair) for pair in ((1, 64), (32, 4)))
    for i in (1, 2, 3, 4):
        for block, (a, b) in enumerate(zip(one.get_submodule(f"stage{i}"), many[i])):
            kernels = [sum(p.numel() for p in x.parameters() if p.ndim == 4) for x in (a, b)]
            assert kernels[1] < kernels[0] if block == 0 else kernels[1] > kernels[0]


@pytest.mark.parametrize(("cardinality", "millions"), [(8, 34.4), (16, 68.1)])
def test_the_cifar_networks_have_the_parameters_of_table_7_cut_to_one_decimal(
    cardinality, millions
):
    counted = parameters_of(resnext.resnext29, cardinality, 64)
    assert counted // 100_000 == round(10 * millions)


@pytest.mark.parametrize("name", TORCHVISION)
def test_outputs_equal_torchvision_with_copied_weights(name):
    torch.manual_seed(0)
    reference = checks.randomise_norms(getattr(torchvision.models, TORCHVISION[name])())
    network = getattr(resnext, name)()
    checks.transplant(reference, network)
    x = torch.randn(3, 3, 75, 97)
    with torch.no_grad():
        close(network.eval()(x), reference.eval()(x))


def three_forms(stride=1, dtype=torch.float64):
    torch.manual_seed(0)
    c = checks.randomise_norms(resnext.grouped(24, 40, 5, 3, stride))
    return [form.to(dtype) for form in (*resnext.as_paths(c), c)]


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
    assert len({counting.parameters(form) for form in (a, b, c)}) == 1
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
        resnext.copy_slice(copy.deepcopy(c[layer]), c[layer], order)
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
    close(resnext.connections(conv), full.norm(dim=(2, 3)), 1e-12)


def test_one_path_is_the_bottleneck_of_resnet():
    torch.manual_seed(0)
    reference = checks.randomise_norms(torchvision.models.resnet50())
    network = resnext.resnext50(1, 64)
    checks.transplant(reference, network)
    checks.same_outputs(network, reference, torch.randn(2, 3, 64, 64))


def test_a_zero_branch_leaves_relu_of_the_input():
    block = resnext.ResNeXtBlock(64, 64, 4, 6)
    x = torch.randn(2, 64, 7, 5)
    assert not torch.allclose(block(x), torch.relu(x))
    nn.init.zeros_(block.branch[4][1].weight)
    torch.testing.assert_close(block(x), torch.relu(x), rtol=0, atol=0)


def test_leaving_out_a_path_is_the_sum_without_its_term():
    torch.manual_seed(0)
    network = checks.randomise_norms(resnext.digit_network(4)).eval()
    whole, _ = resnext.as_paths(network.stage1[1].branch)
    cut = resnext.without_path(network, 1, 1, 2)
    del whole.paths[2]
    x = torch.randn(2, 128, 5, 5)
    with torch.no_grad():
        close(cut.stage1[1].branch(x), whole.eval()(x))
    assert network.stage1[1].branch[4][0].weight.count_nonzero(dim=(0, 2, 3)).all()


@pytest.mark.parametrize("form", ["grouped", "SummedPaths", "ConcatenatedPaths"])
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(form):
    torch.manual_seed(0)
    network = resnext.digit_network(4, getattr(resnext, form))
    x, y = torch.randn(20, 1, 20, 20), torch.arange(20) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    losses = training.fit(network, (x, y), 30, optimizer)["loss"]
    assert losses[-1] < losses[0] / 10


def test_the_digit_networks_have_equal_parameters_within_three_in_a_hundred():
    counts = [parameters_of(resnext.digit_network, c) for c in resnext.CARDINALITIES]
    assert max(counts) < 1.03 * min(counts)
    widths = [resnext.equal_width(c, 128) for c in resnext.CARDINALITIES]
    assert widths == [32, 12, 7]


@pytest.mark.parametrize(("batch", "height", "width"), [(3, 225, 161), (1, 64, 256)])
def test_any_batch_and_map_size_goes_through(batch, height, width):
    network = on_meta(resnext.resnext50).eval()
    x = torch.empty(batch, 3, height, width, device="meta")
    assert network(x).shape == (batch, 1000)
    ceil = [-(-side // 32) for side in (height, width)]
    assert network[:5](x).shape == (batch, 2048, *ceil)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_size_runs_forward_and_backward_on_the_meta_device(name):
    network = on_meta(getattr(resnext, name))
    network(torch.empty(2, 3, 64, 64, device="meta")).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("form", ["SummedPaths", "ConcatenatedPaths", "first_grouped"])
def test_the_other_forms_run_forward_and_backward_on_the_meta_device(form):
    network = on_meta(resnext.digit_network, 4, getattr(resnext, form))
    network(torch.empty(3, 1, 20, 28, device="meta")).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
