"""The networks of aggregated transformations of notebooks/resnext.py."""

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

REFERENCES = {  # torchvision's network and its weights, which know their parameters
    "resnext50": ("resnext50_32x4d", "ResNeXt50_32X4D_Weights"),
    "resnext101": ("resnext101_32x8d", "ResNeXt101_32X8D_Weights"),
    "resnext101_64x4d": ("resnext101_64x4d", "ResNeXt101_64X4D_Weights"),
    "one_path_resnet50": ("resnet50", "ResNet50_Weights"),
}
TABLE_2 = {1: 64, 2: 40, 4: 24, 8: 14, 32: 4}  # Xie et al. 2016: cardinality, width of a path
FORMS = ("SummedPaths", "ConcatenatedPaths", "GroupedPaths")


def digits(cardinality=2, width=2):
    return net.DigitNetwork(cardinality=cardinality, width=width)


# ---- count ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cardinality", "width"), TABLE_2.items())
def test_equal_weights_rounded_up_give_the_widths_of_table_2(cardinality, width):
    assert 0 <= width - net.equal_width(cardinality) < 0.31
    branch = on_meta(net.GroupedPaths, 256, 256, cardinality=cardinality, width=width)
    kernels = sum(p.numel() for p in branch.parameters() if p.ndim == 4)
    assert net.branch_weights(cardinality, width) == kernels


@pytest.mark.parametrize("cardinality", [2, 5, 32])
def test_paths_of_the_equal_width_have_the_weights_of_one_path(cardinality):
    for c_out in (128, 256):
        width = net.equal_width(cardinality, c_out=c_out)
        found = net.branch_weights(cardinality, width, c_out=c_out)
        assert found == pytest.approx(net.branch_weights(1, c_out // 4, c_out=c_out))


@pytest.mark.parametrize(("cardinality", "millions"), [(8, 34.4), (16, 68.1)])
def test_the_cifar_networks_have_the_parameters_of_table_7_cut_to_one_decimal(
    cardinality, millions
):
    network = on_meta(net.ResNeXt29, cardinality=cardinality, width=64)
    assert parameters_of(network) // 100_000 == round(10 * millions)


def test_grouping_the_first_1x1_too_is_seen_in_the_count():
    network = net.group_first(on_meta(net.resnext50))
    assert all(p.is_meta for p in network.parameters())
    wrong = parameters_of(network)
    missing = 0
    for depth, c_in, inner in ((3, 64, 128), (4, 256, 256), (6, 512, 512), (3, 1024, 1024)):
        weights = c_in * inner + (depth - 1) * 2 * inner * inner  # of all first 1x1 of a stage
        missing += weights * 31 // 32
    assert wrong == parameters_of(on_meta(net.resnext50)) - missing


# ---- reference -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("c_in", "c_out", "stride"), [(32, 32, 1), (12, 32, 1), (12, 32, 2), (32, 32, 2)]
)
def test_each_block_does_what_torchvision_s_does(c_in, c_out, stride):
    torch.manual_seed(0)
    how = {"stride": stride} if stride > 1 else {}
    block = net.ResNeXtBlock(c_in, c_out, cardinality=4, width=3, **how)
    conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
    same = stride == 1 and c_in == c_out
    shortcut = None if same else nn.Sequential(conv, nn.BatchNorm2d(c_out))
    how = {"groups": 4, "base_width": 24}  # torchvision's width of a path is of 64 channels
    reference = library.Bottleneck(c_in, c_out // 4, stride, shortcut, **how)
    networks.same_function(block, reference, torch.randn(3, c_in, 7, 10))


def test_the_network_does_what_torchvision_s_does_on_maps_of_odd_size():
    torch.manual_seed(0)
    network = on_meta(net.ResNeXt, (1, 1, 1, 1), cardinality=8, width=2)
    how = {"groups": 8, "width_per_group": 2}
    reference = on_meta(library.ResNet, library.Bottleneck, [1, 1, 1, 1], **how)
    networks.same_function(network, reference, torch.randn(3, 3, 41, 70), 2e-5)


@pytest.mark.parametrize("build", ["resnext", "digits", "cifar", "teacher"])
def test_convolutions_start_with_variance_two_over_fan_out(build):
    torch.manual_seed(0)
    network = {
        "resnext": lambda: net.ResNeXt((1, 1, 1, 1), cardinality=1, width=16).stage3[0].branch,
        "digits": lambda: digits(1, 48).stage2[0].branch,
        "cifar": lambda: net.ResNeXt29(cardinality=1, width=24).stage3[0].branch,
        "teacher": lambda: net.branch_of("one path"),
    }[build]()
    weight = network.expand[0].weight
    networks.starts_with(weight, (2 / len(weight)) ** 0.5)


# ---- the three forms -----------------------------------------------------------------------------


def three_forms(stride=1):
    torch.manual_seed(0)
    how = {"cardinality": 5, "width": 3, "stride": stride}
    a, b, c = (getattr(net, name)(24, 40, **how) for name in FORMS)
    networks.share_weights(c, net.GroupedPaths(24, 40, **how))
    net.copy_weights(c, a, b)
    return [form.double() for form in (a, b, c)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_the_three_forms_are_one_function(stride, training):
    a, b, c = (form.train(training) for form in three_forms(stride))
    x = torch.randn(3, 24, 9, 7, dtype=torch.float64)
    assert c(x).shape == ((3, 40, 9, 7) if stride == 1 else (3, 40, 5, 4))
    close(a(x), c(x), 1e-12)
    close(b(x), c(x), 1e-12)


def test_with_one_path_the_forms_are_one_function_too():
    forms = [getattr(net, name)(6, 8, cardinality=1, width=3) for name in FORMS]
    a, b, c = forms
    net.copy_weights(c, a, b)
    x = torch.randn(2, 6, 5, 4)
    close(a(x), c(x))
    close(b(x), c(x))


def test_the_three_forms_have_the_same_weights_and_the_same_gradients():
    a, b, c = three_forms()
    assert len({parameters_of(form) for form in (a, b, c)}) == 1
    x, target = torch.randn(3, 24, 9, 7).double(), torch.randn(3, 40, 9, 7).double()
    for form in (a, b, c):
        (form(x) * target).sum().backward()
    for form in (a, b):
        for layer in ("reduce", "conv"):
            for i in (0, 1):  # convolution, batch norm
                parts = [getattr(path, layer)[i].weight.grad for path in form.paths]
                whole = getattr(c.path, layer)[i].weight.grad
                close(torch.cat(parts), whole, 1e-10)
    last = torch.cat([expand.weight.grad for expand in a.expands], dim=1)
    close(last, c.expand[0].weight.grad, 1e-10)
    close(b.expand[0].weight.grad, c.expand[0].weight.grad, 1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_have_a_stride_of_one_unless_they_are_given_another(form):
    branch = getattr(net, form)(4, 6, cardinality=2, width=2)
    assert branch(torch.randn(2, 4, 5, 7)).shape == (2, 6, 5, 7)
    assert net.Path(4, 3)(torch.randn(2, 4, 5, 7)).shape == (2, 3, 5, 7)


def test_a_path_reads_all_input_channels_and_with_the_mistake_only_its_share():
    torch.manual_seed(0)
    for spoil, share in ((False, 1), (True, 1 / 4)):
        stage = nn.Sequential(net.ResNeXtBlock(16, 32, cardinality=4, width=3))
        path = (net.group_first(stage) if spoil else stage)[0].branch.path
        assert path.reduce[0].weight.shape[1] / 16 == share
        assert path.reduce[0].weight.shape[0] == 12
        assert path.reduce[1].num_features == 12
        assert path.reduce[0].kernel_size == (1, 1)


def test_what_a_grouped_convolution_hears_are_the_middles_of_its_kernels():
    conv = nn.Conv2d(12, 8, 3, padding=1, groups=4, bias=False)
    full = torch.zeros(12, 8)
    for i in range(4):
        middle = conv.weight[2 * i : 2 * i + 2, :, 1, 1].detach()
        full[3 * i : 3 * i + 3, 2 * i : 2 * i + 2] = middle.abs().T
    close(net.heard(conv), full)
    assert net.heard(conv.to("meta")).is_meta


# ---- directions, teacher and student -------------------------------------------------------------


@pytest.mark.parametrize(("cardinality", "width"), [(1, 5), (6, 2), (3, 1)])
def test_a_branch_writes_to_as_many_directions_as_it_has_channels_inside(cardinality, width):
    torch.manual_seed(0)
    branch = net.GroupedPaths(16, 16, cardinality=cardinality, width=width)
    nn.init.normal_(branch.expand[1].bias)  # a shift is not counted as a direction
    assert net.directions(branch.eval(), torch.randn(4, 16, 5, 6)) == cardinality * width


@pytest.mark.parametrize(("size", "found"), [(1.5e-4, 2), (0.7e-4, 1)])
def test_a_direction_counts_from_one_in_ten_thousand_of_the_largest(size, found):
    first = torch.tensor([1.0, -1, 1, -1])
    second = size * torch.tensor([1.0, 1, -1, -1])
    maps = torch.stack([first, second]).view(1, 2, 2, 2)
    assert net.directions(nn.Identity(), maps) == found


def test_what_a_student_leaves_is_1_for_the_mean_and_0_for_the_teacher_itself():
    torch.manual_seed(0)
    x = torch.randn(6, 4, 5, 3)
    teacher = nn.Conv2d(4, 4, 1, bias=False)
    assert net.unexplained(teacher, teacher, x) == 0
    mean = teacher(x).mean().detach()
    student = nn.Conv2d(4, 4, 1)
    nn.init.zeros_(student.weight)
    nn.init.constant_(student.bias, mean)
    assert net.unexplained(teacher, student, x) == pytest.approx(1, abs=1e-6)


def test_the_floor_is_what_the_best_student_of_few_directions_leaves():
    torch.manual_seed(0)
    x = torch.randn(5, 6, 4, 3)
    shift = 5 * torch.randn(1, 6, 1, 1)  # does not count

    def teacher(x):
        return x * torch.tensor([3.0, 1, 2, 1, 1, 0.5]).view(1, 6, 1, 1) + shift

    y = teacher(x).transpose(0, 1).flatten(1)
    y = y - y.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(y @ y.T)
    best = vectors[:, -2:] @ vectors[:, -2:].T @ y  # projected on two directions
    expected = ((y - best).square().sum() / y.square().sum()).item()
    assert net.floor(teacher, 2, x) == pytest.approx(expected, rel=1e-4)
    assert net.floor(teacher, 6, x) == 0
    assert net.floor(teacher, 0, x) == pytest.approx(1)


def test_a_student_learns_what_its_teacher_does_and_the_teacher_stays():
    torch.manual_seed(0)
    teacher, student = nn.Conv2d(48, 48, 1), nn.Conv2d(48, 48, 1)
    kept = teacher.weight.detach().clone()
    x = net.noise(30)
    assert x.shape == (30, 48, 4, 4)
    before = net.unexplained(teacher, student, x)
    net.imitate(teacher, student)
    assert net.unexplained(teacher, student, x) < before / 100
    close(teacher.weight.detach(), kept, 0)
    assert teacher.weight.grad is None


def test_the_kinds_of_the_comparison_have_nearly_the_same_weights():
    one, many = (net.branch_of(kind) for kind in ("one path", "11 paths"))
    sizes = [sum(p.numel() for p in b.parameters() if p.ndim == 4) for b in (one, many)]
    assert sizes == [2_448, 2_508]
    assert [b.path.conv[0].groups for b in (one, many)] == [1, 11]
    x = torch.randn(2, 48, 4, 4)
    assert one(x).shape == many(x).shape == x.shape


def test_noise_and_branches_are_made_on_the_device_of_the_run(monkeypatch):
    monkeypatch.setitem(net.noise.__globals__, "device", torch.device("meta"))
    assert net.noise(2).is_meta
    assert all(p.is_meta for p in net.branch_of("11 paths").parameters())


def test_teacher_and_student_are_compared_with_the_statistics_of_the_batch(monkeypatch):
    torch.manual_seed(0)
    x = 3 * net.noise(40) + 2  # unlike the running statistics
    teacher = net.branch_of("11 paths")
    constant = net.branch_of("one path")
    nn.init.zeros_(constant.expand[1].weight)
    assert net.unexplained(teacher, constant, x) == pytest.approx(1, abs=1e-3)
    student = net.branch_of("one path")
    monkeypatch.setitem(net.imitate.__globals__, "STEPS", 20)
    net.imitate(teacher, student)
    assert all(module.training for module in [*teacher.modules(), *student.modules()])
    least = net.floor(teacher, 12, x)
    assert 0.1 < least < net.unexplained(teacher, student, x) < 1


def test_one_path_with_zeros_between_the_groups_gives_what_many_paths_give():
    torch.manual_seed(0)
    many = net.branch_of("11 paths")
    networks.share_weights(many, net.branch_of("11 paths"))
    one = net.without_groups(many)
    assert one.path.conv[0].groups == 1
    x = torch.randn(3, 48, 5, 4)
    close(one(x), many(x))
    close(one.eval()(x), many.eval()(x))
    assert net.without_groups(many.to("meta")).expand[0].weight.is_meta


# ---- shape, limit, learn -------------------------------------------------------------------------


def shapes_of(network, x):
    """Shapes of what the stem and the stages give, without the batch."""
    shapes = []
    for name, part in network.named_children():
        if name.startswith(("stem", "stage")):
            part.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[1:])))
    assert networks.runs_on_meta(network, *x).shape[0] == x[0]
    return shapes


def test_the_stages_halve_the_map_and_double_the_channels():
    found = shapes_of(on_meta(net.resnext50), (3, 3, 64, 96))
    assert found == [(64, 16, 24), (256, 16, 24), (512, 8, 12), (1024, 4, 6), (2048, 2, 3)]
    found = shapes_of(on_meta(net.ResNeXt29, cardinality=8, width=4), (3, 3, 32, 24))
    assert found == [(64, 32, 24), (256, 32, 24), (512, 16, 12), (1024, 8, 6)]
    found = shapes_of(on_meta(digits), (3, 1, 16, 24))
    assert found == [(16, 8, 12), (64, 4, 6), (128, 2, 3)]


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_run_forward_and_backward_on_the_meta_device(form):
    branch = on_meta(getattr(net, form), 8, 12, cardinality=2, width=3)
    assert networks.runs_on_meta(branch, 3, 8, 5, 7).shape == (3, 12, 5, 7)


def test_the_small_networks_have_a_relu_behind_their_stem_and_take_the_mean_over_the_map():
    torch.manual_seed(0)
    cifar = net.ResNeXt29(cardinality=2, width=2)
    for network, x in ((digits(), torch.randn(2, 1, 16, 16)), (cifar, torch.randn(2, 3, 12, 12))):
        children = dict(network.eval().named_children())
        last = children.pop("classifier")
        stem = children.pop("stem")
        maps = nn.Sequential(stem, nn.ReLU(), *children.values())(x)
        close(network(x), last(maps.mean((2, 3))))
        assert (last.out_features, last.bias.shape) == (10, (10,))


def test_the_digit_networks_have_the_widths_and_blocks_that_the_count_says():
    def block(c_in, c_out, inner, groups):
        kernels = c_in * inner + 9 * inner * inner // groups + inner * c_out
        return kernels + 2 * (inner + inner + c_out)  # scale and shift of three batch norms

    for cardinality, width in net.DIGIT_SIZES.values():
        wide = cardinality * width
        total = 9 * 16 + 2 * 16 + 128 * 10 + 10
        total += block(16, 64, wide, cardinality) + 16 * 64 + 2 * 64
        total += block(64, 64, wide, cardinality)
        total += block(64, 128, 2 * wide, cardinality) + 64 * 128 + 2 * 128
        total += block(128, 128, 2 * wide, cardinality)
        assert parameters_of(on_meta(digits, cardinality, width)) == total


def test_the_order_of_the_paths_does_not_matter():
    *_, c = three_forms()
    x = torch.randn(3, 24, 9, 7, dtype=torch.float64)
    y = c.eval()(x)
    order = torch.arange(15).view(5, 3)[[3, 0, 4, 2, 1]].flatten()  # channels, path by path
    with torch.no_grad():
        for layer in (c.path.reduce, c.path.conv):
            layer[0].weight.copy_(layer[0].weight[order])
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(layer[1], name).copy_(getattr(layer[1], name)[order])
        assert not torch.allclose(c(x), y)  # the paths moved, the last 1x1 did not
        c.expand[0].weight.copy_(c.expand[0].weight[:, order])
        close(c(x), y, 1e-12)


def test_a_zero_branch_leaves_relu_of_the_input():
    block = net.ResNeXtBlock(64, 64, cardinality=4, width=6)
    x = torch.randn(2, 64, 7, 5)
    assert not torch.allclose(block(x), torch.relu(x))
    nn.init.zeros_(block.branch.expand[1].weight)
    close(block(x), torch.relu(x), 0)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_leaving_out_paths_is_the_sum_without_their_terms(stage):
    torch.manual_seed(0)
    network = digits(4, 3)
    networks.share_weights(network, digits(4, 3))
    branch = getattr(network.eval(), stage)[-1].branch
    channels = 64 if stage == "stage1" else 128
    how = {"cardinality": 4, "width": 3 if stage == "stage1" else 6}
    whole = net.SummedPaths(channels, channels, **how).eval()
    net.copy_weights(branch, whole, net.ConcatenatedPaths(channels, channels, **how))
    cut = net.without_paths(network, stage, [0, 2]).eval()
    for name in ("paths", "expands"):
        kept = getattr(whole, name)
        setattr(whole, name, nn.ModuleList([kept[1], kept[3]]))
    x = torch.randn(2, channels, 5, 5)
    close(getattr(cut, stage)[-1].branch(x), whole(x))
    pairs = zip(network.parameters(), cut.parameters())
    assert sum(not torch.equal(a, b) for a, b in pairs) == 1
    assert branch.expand[0].weight.count_nonzero(dim=(0, 2, 3)).all()  # a copy was cut


def test_the_rate_rises_from_a_twenty_fifth_for_a_fifth_of_the_steps_and_falls_to_nothing(
    monkeypatch,
):
    rates, settings = networks.steps_of(monkeypatch, net.training, batches=5)
    net.train(nn.Linear(1, 1), (torch.zeros(230, 1), torch.zeros(230)))  # five batches
    assert (settings["momentum"], settings["weight_decay"], settings["batch"]) == (0.9, 1e-4, 50)
    assert len(rates) == 20
    networks.rises_and_falls(rates, peak=0.1, at=3)


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    torch.manual_seed(0)
    networks.learns(digits(), torch.randn(20, 1, 16, 16), rate=0.02, steps=25)


def test_a_grouped_convolution_is_a_full_one_with_zeros_between_the_groups():
    conv = net.conv_norm(12, 12, 3, groups=4)[0]
    full = torch.zeros(12, 12, 3, 3)
    for i in range(4):
        mine = slice(3 * i, 3 * i + 3)
        full[mine, mine] = conv.weight[mine].detach()
    x = torch.randn(2, 12, 5, 6)
    close(conv(x), F.conv2d(x, full, padding=1))


# ---- the published sizes, last because they take longest -----------------------------------------


@pytest.mark.parametrize("name", REFERENCES)
def test_each_size_has_the_parameters_and_macs_that_torchvision_gives(name):
    _, weights = REFERENCES[name]
    meta = getattr(torchvision.models, weights).DEFAULT.meta
    network = on_meta(getattr(net, name))
    assert parameters_of(network) == meta["num_params"]
    assert round(macs_of(network) / 1e9, 3) == meta["_ops"]


@pytest.mark.parametrize("name", ["resnext50", "one_path_resnet50"])
def test_the_sizes_of_50_layers_call_the_layers_of_torchvision_in_their_order(name):
    reference = getattr(torchvision.models, REFERENCES[name][0])
    networks.same_layers(on_meta(getattr(net, name)), on_meta(reference), 1, 3, 64, 64)
