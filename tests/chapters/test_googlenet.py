"""The two forms of GoogLeNet in notebooks/googlenet.py."""

from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

net = definitions("googlenet")

# Szegedy et al. 2015, table 1: c_in, then the six widths in the order of the columns.
TABLE_1 = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}
SIDES = {"3": 28, "4": 14, "5": 7}
FORMS = ["PUBLISHED", "TORCHVISION"]
ROW = (5, 3, 7, 2, 4, 6)  # of a small module


def library(**how):
    return torchvision.models.googlenet(init_weights=False, **how)


def small(heads=("4a", "5a"), form="DIGITS"):
    """Four modules on a narrow stem, one head in the middle and one at the last but one."""
    rows = {name: net.Row(*ROW) for name in ("3b", "4a", "5a", "5b")}
    form = getattr(net, form)
    first = OrderedDict(conv1=form.conv(1, 6, 3, 2))
    return net.assemble(first, 6, rows, form, heads, (4, 12), 10, net.Inception)


class Stacked(nn.Module):
    """The outputs of a training step in one tensor, for the order in which each form gives them."""

    def __init__(self, network, order):
        super().__init__()
        self.network, self.order = network, order

    def forward(self, x):
        y = self.network(x)
        return torch.stack([y[i] for i in self.order]) if self.training else y


def test_torchvision_s_form_has_the_layers_and_the_cost_torchvision_gives():
    network, reference = on_meta(net.googlenet, net.TORCHVISION), on_meta(library, aux_logits=True)
    networks.same_layers(network, reference)  # in training mode, with the heads
    assert parameters_of(network) == 13_004_888
    meta = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.meta
    network = on_meta(net.googlenet, net.TORCHVISION, heads=())
    assert parameters_of(network) == meta["num_params"] == 6_624_904
    assert round(macs_of(network) / 1e9, 3) == meta["_ops"] == 1.498


def test_torchvision_s_form_does_what_torchvision_does_with_its_heads():
    torch.manual_seed(0)
    network = Stacked(on_meta(net.googlenet, net.TORCHVISION), (0, 1, 2))
    reference = Stacked(on_meta(library, aux_logits=True), (0, 2, 1))
    networks.same_function(network, reference, torch.randn(3, 3, 64, 75), 3e-5)


def test_the_published_form_costs_what_a_sum_over_the_columns_of_table_1_gives():
    macs = 112 * 112 * 49 * 3 * 64 + 56 * 56 * (64 * 64 + 9 * 64 * 192) + 1024 * 1000
    parameters = 49 * 3 * 64 + 64 + 64 * 64 + 64 + 9 * 64 * 192 + 192 + 1024 * 1000 + 1000
    for name, (c_in, one, reduce3, three, reduce5, five, pool) in TABLE_1.items():
        weights = c_in * (one + reduce3 + reduce5 + pool) + 9 * reduce3 * three
        weights += 25 * reduce5 * five
        macs += SIDES[name[0]] ** 2 * weights
        parameters += weights + one + reduce3 + three + reduce5 + five + pool
    network = on_meta(net.googlenet)
    assert macs_of(network) == macs == 1_582_671_872
    heads = parameters_of(network.heads)
    assert parameters_of(network) - heads == parameters == 6_998_552
    assert parameters_of(on_meta(net.googlenet, heads=())) == parameters


def test_the_network_has_the_channels_of_table_1_and_its_depth_of_22_layers():
    network, found = on_meta(net.googlenet), {}
    for name, stage in network.stages.named_children():
        if isinstance(stage, net.Inception):
            convs = [m for m in stage.modules() if isinstance(m, nn.Conv2d)]
            found[name[-2:]] = (convs[0].in_channels, *(m.out_channels for m in convs))
    assert found == TABLE_1
    modules = sum(isinstance(m, net.Inception) for m in network.modules())
    assert 3 + 2 * modules + 1 == 22  # a module is two layers deep


def test_heads_are_those_that_section_5_describes():
    network = on_meta(net.googlenet)
    assert list(network.heads) == ["inception4a", "inception4d"]
    for head, c_in in zip(network.heads.values(), (512, 528), strict=True):
        expected = c_in * 128 + 128 + 4 * 4 * 128 * 1024 + 1024 + 1024 * 1000 + 1000
        assert parameters_of(head) == expected
        assert parameters_of(on_meta(net.auxiliary_head, c_in, net.PUBLISHED)) == expected
        assert [m.p for m in head if isinstance(m, nn.Dropout)] == [0.7]
        pooled = head[0](torch.empty(1, c_in, 14, 14, device="meta"))
        assert pooled.shape == (1, c_in, 4, 4)


def test_a_published_head_pools_convolves_and_reads_with_two_linear_layers():
    torch.manual_seed(0)
    head, x = net.auxiliary_head(6, net.PUBLISHED, (4, 12), 10).eval(), torch.randn(2, 6, 14, 14)
    conv, first, last = (m for m in head.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    h = F.conv2d(F.avg_pool2d(x, 5, 3), conv.weight, conv.bias).relu().flatten(1)
    h = (h @ first.weight.T + first.bias).relu()
    close(head(x), h @ last.weight.T + last.bias)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_published_convolution_has_a_bias_and_a_relu(stride):
    torch.manual_seed(0)
    layer, x = net.conv_relu(3, 5, 5, stride), torch.randn(2, 3, 8, 9)
    close(layer(x), F.conv2d(x, layer[0].weight, layer[0].bias, stride, 2).relu())


def test_the_published_module_equals_its_four_branches_computed_separately():
    torch.manual_seed(0)
    block, x = net.Inception(8, net.Row(*ROW)), torch.randn(3, 8, 9, 6)
    found = block(x)
    assert found.shape == (3, net.Row(*ROW).c_out, 9, 6) == (3, 5 + 7 + 4 + 6, 9, 6)
    close(found, net.four_branches(block, x))


def test_without_reductions_every_module_reads_all_channels():
    network = on_meta(net.googlenet, block=net.Unreduced)
    assert macs_of(network) == 4_426_547_200
    for name, (c_in, one, _, three, _, five, pool) in TABLE_1.items():
        block = network.stages.get_submodule(f"inception{name}")
        expected = c_in * (one + 9 * three + 25 * five + pool) + one + three + five + pool
        assert parameters_of(block) == expected


def test_a_module_without_reductions_is_four_branches_of_one_convolution():
    torch.manual_seed(0)
    block, x = net.Unreduced(8, net.Row(*ROW)), torch.randn(3, 8, 9, 6)
    convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    inputs = x, x, x, F.max_pool2d(x, 3, 1, 1)
    expected = [F.conv2d(t, c.weight, c.bias, padding="same") for t, c in zip(inputs, convs)]
    close(block(x), torch.cat(expected, 1).relu())
    assert [c.kernel_size[0] for c in convs] == [1, 3, 5, 1]


def test_the_naive_module_passes_the_maxima_of_all_channels_on():
    torch.manual_seed(0)
    block, x = net.Naive(8, net.Row(*ROW)), torch.randn(3, 8, 9, 6)
    convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    expected = [F.conv2d(x, c.weight, c.bias, padding="same").relu() for c in convs]
    close(block(x), torch.cat((*expected, F.max_pool2d(x, 3, 1, 1)), 1))
    assert [c.kernel_size[0] for c in convs] == [1, 3, 5]


def test_two_small_convolutions_stand_where_the_5x5_was():
    torch.manual_seed(0)
    block, x = net.TwoSmall(8, net.Row(*ROW)), torch.randn(3, 8, 9, 6)
    plain = net.Inception(8, net.Row(*ROW))
    for i in (0, 1, 3):
        block.branches[i] = plain.branches[i]
    reduce, *both = (m for m in block.branches[2].modules() if isinstance(m, nn.Conv2d))
    h = F.conv2d(x, reduce.weight, reduce.bias).relu()
    for conv in both:
        h = F.conv2d(h, conv.weight, conv.bias, padding=1).relu()
    found, expected = block(x), plain(x)
    close(found[:, 12:16], h)
    close(found[:, [*range(12), *range(16, 22)]], expected[:, [*range(12), *range(16, 22)]])


def test_the_published_stem_normalises_where_figure_3_does():
    torch.manual_seed(0)
    stem, x = nn.Sequential(net.stem(net.PUBLISHED)), torch.rand(1, 3, 64, 64)
    conv1, conv2, conv3 = (stem.get_submodule(f"conv{i}")[0] for i in (1, 2, 3))

    def normalise(t):  # a neighbourhood of five channels, by hand
        squares = F.pad(t.square(), (0, 0, 0, 0, 2, 2))
        total = sum(squares[:, i : i + t.shape[1]] for i in range(5))
        return t / (1 + 1e-4 * total / 5) ** 0.75

    def shrink(t):  # 3x3, stride 2, a row and a column more at the far side
        return F.max_pool2d(F.pad(t, (0, 1, 0, 1), value=-torch.inf), 3, 2)

    with torch.no_grad():
        conv1.weight.mul_(30)  # large values, which the normalisation changes
        conv3.weight.mul_(30)
        t = normalise(shrink(F.conv2d(x, conv1.weight, conv1.bias, 2, 3).relu()))
        t = F.conv2d(t, conv2.weight, conv2.bias).relu()
        t = shrink(normalise(F.conv2d(t, conv3.weight, conv3.bias, 1, 1).relu()))
        close(stem(x), t, 1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_windows_of_the_branches_are_one_three_five_three_and_a_three_in_torchvision(form):
    branches = net.Inception(8, net.Row(*[16] * 6), getattr(net, form)).branches
    windows = [net.window(branch, 8) for branch in branches]
    assert windows == [1, 3, 5 if form == "PUBLISHED" else 3, 3]


def test_a_window_is_counted_from_the_unit_at_the_centre_and_in_evaluation_mode():
    assert net.window(nn.Conv2d(2, 1, (1, 9), padding=(0, 4)), 2) == 9
    silent = nn.Conv2d(1, 1, (1, 3), padding=(0, 1))
    nn.init.ones_(silent.weight)
    nn.init.constant_(silent.bias, -5)  # below zero for any image, above for a pixel that is larger
    assert net.window(nn.Sequential(silent, nn.ReLU()), 1) == 3
    left = nn.Conv2d(1, 1, (1, 11), padding=(0, 5))
    nn.init.zeros_(left.weight)
    left.weight.data[..., :3] = 1
    assert net.window(nn.Sequential(nn.Dropout(0.5), left), 1) == 3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("batch", "height", "width"), [(3, 225, 161), (1, 64, 256)])
def test_any_batch_and_map_size_goes_through(form, batch, height, width):
    network = on_meta(net.googlenet, getattr(net, form), heads=()).eval()
    sides = []
    for side in (height, width):
        side = (side + 1) // 2  # the first convolution
        for _ in range(4):  # poolings of 3 at stride 2, the last window may reach over the edge
            side = side // 2
        sides.append(side)
    maps = network.stages(torch.empty(batch, 3, height, width, device="meta"))
    assert maps.shape == (batch, 1024, *sides)
    assert network.classifier(maps).shape == (batch, 1000)


def test_evaluation_gives_the_main_output_alone_whatever_the_heads():
    torch.manual_seed(0)
    network, x = small().eval(), torch.randn(2, 1, 16, 16)
    before = network(x)
    for parameter in network.heads.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(network(x), before, rtol=0, atol=0)


def test_a_head_sends_no_gradient_to_stages_behind_it():
    torch.manual_seed(0)
    network = small()
    _, _, last = network(torch.randn(4, 1, 16, 16))
    last.sum().backward()
    stages = network.stages.named_children()
    reached = [n for n, s in stages if any(p.grad is not None for p in s.parameters())]
    assert reached == ["conv1", *(f"inception{n}" for n in ("3b", "4a", "5a"))]


def test_heads_with_the_losses_of_a_training_step_come_behind_the_main_output():
    torch.manual_seed(0)
    network, x = small().eval(), torch.randn(3, 1, 16, 16)
    maps, expected = x, []
    for name, stage in network.stages.named_children():
        maps = stage(maps)
        if name in network.heads:
            expected.append(network.heads[name](maps))
    expected = torch.stack([network.classifier(maps), *expected])
    close(net.WithHeads(network.train())(x), expected)
    close(net.WithHeads(network.train(), (0, 2, 1))(x), expected[[0, 2, 1]])
    assert not any(m.training for m in network.modules())


def test_the_loss_adds_three_tenths_of_each_head():
    y = torch.tensor([0, 1])
    right, none = 50 * F.one_hot(y, 4).float(), torch.zeros(2, 4)
    log4 = torch.tensor(4.0).log()
    torch.testing.assert_close(net.total_loss([right, none, none], y), 0.6 * log4)
    torch.testing.assert_close(net.total_loss([none, right, none], y), 1.3 * log4)
    torch.testing.assert_close(net.total_loss([none], y), log4)


def test_the_main_loss_is_that_of_the_main_output_in_evaluation_mode():
    torch.manual_seed(0)
    network, x, y = small(), torch.randn(7, 1, 16, 16), torch.arange(7)
    found = net.main_loss(network, (x, y))
    assert network.training
    assert found == pytest.approx(F.cross_entropy(network.eval()(x), y).item(), rel=1e-5)


def test_dropout_is_four_tenths_as_published_and_two_tenths_in_torchvision():
    for form, p in (("PUBLISHED", 0.4), ("TORCHVISION", 0.2), ("DIGITS", 0.4), ("PLAIN", 0.4)):
        network = on_meta(small, form=form)
        assert [m.p for m in network.classifier if isinstance(m, nn.Dropout)] == [p]


@pytest.mark.parametrize(("form", "norm", "large"), [("DIGITS", 2, 5), ("PLAIN", 1, 5)])
def test_the_digit_network_has_the_modules_at_an_eighth_of_their_width(form, norm, large):
    """A norm has two parameters a channel, a bias one."""
    parameters, last = 24 * 9 + norm * 24, 1024 // 8
    for c_in, *widths in TABLE_1.values():
        c_in, (one, r3, three, r5, five, pool) = c_in // 8, (w // 8 for w in widths)
        parameters += c_in * (one + r3 + r5 + pool) + 9 * r3 * three + large**2 * r5 * five
        parameters += norm * (one + r3 + three + r5 + five + pool)
    parameters += last * 10 + 10
    form = getattr(net, form)
    assert parameters_of(on_meta(net.digit_network, (), form)) == parameters
    for c_in in (512 // 8, 528 // 8):
        parameters += c_in * 16 + norm * 16 + 256 * 128 + 128 + 128 * 10 + 10
    network = on_meta(net.digit_network, form=form)
    assert parameters_of(network) == parameters
    shapes = [y.shape for y in networks.runs_on_meta(network, 3, 1, 20, 12)]
    assert shapes == [(3, 10)] * 3
    maps = network.stages(torch.empty(3, 1, 20, 12, device="meta"))
    assert maps.shape == (3, 128, 2, 1)
    assert network.stages.pool4.kernel_size == 3


@pytest.mark.parametrize("form", ["DIGITS", "PLAIN"])
def test_heads_of_small_networks_bring_any_map_to_four_by_four(form):
    pool = getattr(net, form).head_pool()
    assert pool(torch.empty(1, 2, 3, 7)).shape == (1, 2, 4, 4)


@pytest.mark.parametrize("heads", [("4a", "5a"), ()])
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(heads):
    torch.manual_seed(0)
    x = torch.randn(20, 1, 16, 16)
    networks.learns(small(heads), x, rate=0.02, steps=40, loss=net.total_loss)


def test_gradients_of_stages_are_those_of_the_main_loss_and_of_the_weighted_heads():
    torch.manual_seed(0)
    network = networks.without_dropout(small()).double()
    x, y = torch.randn(6, 1, 16, 16).double(), torch.arange(6)
    kernels = [network.stages.conv1[0].weight]
    for name in ("3b", "4a", "5a", "5b"):
        kernels.append(network.stages.get_submodule(f"inception{name}.branches.0.0").weight)
    main, *heads = (F.cross_entropy(output, y) for output in network(x))
    expected = torch.zeros(2, 5)
    for row, loss in enumerate((main, 0.3 * sum(heads))):
        network.zero_grad()
        loss.backward(retain_graph=True)
        for column, kernel in enumerate(kernels[: 5 - row]):  # no head behind the last module
            expected[row, column] = kernel.grad.square().sum().sqrt()
    close(net.stage_gradients(network.eval(), x, y).float(), expected)


def test_without_batch_norm_the_heads_send_more_gradient_where_the_signal_fades():
    torch.manual_seed(0)
    x, y = torch.randn(32, 1, 16, 16), torch.randint(10, (32,))
    ratios = []
    for gain in (1, 2):  # 1 / inputs halves the mean square at each ReLU, 2 / inputs keeps it
        network = net.xavier(net.digit_network(form=net.PLAIN), gain)
        main, heads = net.stage_gradients(network, x, y)
        ratios.append((heads[0] / main[0]).item())
    assert ratios[0] > 2 * max(1, ratios[1])


@pytest.mark.parametrize("gain", [(), (2,)])
def test_initial_weights_have_the_variance_of_gain_over_inputs_and_no_bias(gain):
    torch.manual_seed(0)
    network = nn.Sequential(net.conv_relu(16, 64, 3), net.conv_norm(16, 64, 3), nn.Linear(64, 200))
    network = net.xavier(network, *gain)
    for layer in (network[0][0], network[1][0], network[2]):
        weight = layer.weight
        bound = (3 * (*gain, 1)[0] / weight[0].numel()) ** 0.5
        networks.starts_with(weight, bound / 3**0.5, share=0.05)
        assert weight.abs().max() <= bound
    assert not network[0][0].bias.any() and not network[2].bias.any()


def test_the_network_of_the_full_profile_has_the_weights_of_torchvision(monkeypatch):
    torch.manual_seed(0)
    reference, asked = library(aux_logits=False), []
    monkeypatch.setattr(
        torchvision.models, "googlenet", lambda **how: asked.append(how) or reference
    )
    x = torch.randn(2, 3, 64, 64)
    expected = reference.eval()(x)
    network = net.imagenet_network().eval()
    close(network(x), expected)
    weights = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1
    assert asked == [{"weights": weights, "progress": False}]


def test_the_published_form_runs_forward_and_backward_on_the_meta_device():
    outputs = networks.runs_on_meta(on_meta(net.googlenet), 2, 3, 224, 224)
    assert [y.shape for y in outputs] == [(2, 1000)] * 3
