"""GoogLeNet in notebooks/googlenet.py."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import close, macs_of, on_meta, parameters_of

net = definitions("googlenet")

# Szegedy et al. 2014, table 1: c_in, then the six widths in the order of the columns.
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
SMALL = (8, 5, 3, 7, 2, 4, 6)  # of a module alone
BUILDERS = ("googlenet", "googlenet_with_heads", "torchvision_googlenet", "unreduced_googlenet")


def library(**how):
    return torchvision.models.googlenet(init_weights=False, **how)


def library_head(name):
    return getattr(library(aux_logits=True), name)


def small_module(kind="Inception"):
    torch.manual_seed(0)
    return getattr(net, kind)(net.Row(*SMALL)), torch.randn(3, 8, 9, 6)


def small_network(conv="conv_norm"):
    torch.manual_seed(0)
    return net.digit_network_with_heads(conv=getattr(net, conv))


def convolutions(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def four_branches(module, x):
    """The published module once more, from its weights and plain functions."""
    one, reduce3, three, reduce5, five, pool = convolutions(module)

    def step(conv, t):
        size = conv.weight.shape[-1]
        return F.conv2d(t, conv.weight, conv.bias, padding=size // 2).relu()

    around = F.pad(x, (1, 1, 1, 1), value=-torch.inf)
    largest = F.max_pool2d(around, 3, stride=1)
    y3 = step(three, step(reduce3, x))
    y5 = step(five, step(reduce5, x))
    return torch.cat((step(one, x), y3, y5, step(pool, largest)), dim=1)


# ---- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("square", "window", "answer"), [(1, 3, 1 / 3), (3, 5, 9 / 5), (5, 5, 5), (5, 3, 3), (5, 1, 1)]
)
def test_a_window_of_norm_one_answers_with_what_it_shares_with_the_square(square, window, answer):
    assert net.largest_answer(square, window) == pytest.approx(answer)


# ---- the module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
def test_a_published_convolution_has_a_bias_and_a_relu(stride):
    torch.manual_seed(0)
    layer, x = net.conv_relu(3, 5, 5, stride=stride), torch.randn(2, 3, 8, 9)
    close(layer(x), F.conv2d(x, layer[0].weight, layer[0].bias, stride, 2).relu())


def test_a_module_equals_its_four_branches_computed_separately():
    module, x = small_module()
    found = module(x)
    assert found.shape == (3, net.Row(*SMALL).c_out, 9, 6) == (3, 5 + 7 + 4 + 6, 9, 6)
    close(found, four_branches(module, x))
    assert [c.kernel_size[0] for c in convolutions(module)] == [1, 1, 3, 1, 5, 1]


def test_a_module_without_reductions_is_four_branches_of_one_convolution():
    module, x = small_module("Unreduced")
    convs = convolutions(module)
    inputs = x, x, x, F.max_pool2d(x, 3, 1, 1)
    expected = [F.conv2d(t, c.weight, c.bias, padding="same") for t, c in zip(inputs, convs)]
    close(module(x), torch.cat(expected, 1).relu())
    assert [c.kernel_size[0] for c in convs] == [1, 3, 5, 1]


def test_two_small_convolutions_stand_where_the_5x5_was():
    module, x = small_module("TwoSmall")
    reduce, first, second = convolutions(module.branch5)
    h = F.conv2d(x, reduce.weight, reduce.bias).relu()
    for conv in (first, second):
        h = F.conv2d(h, conv.weight, conv.bias, padding=1).relu()
    close(module(x)[:, 12:16], h)
    plain = net.Inception(net.Row(*SMALL))
    plain.branch5 = module.branch5
    plain.load_state_dict(module.state_dict())
    close(module(x), plain(x))


@pytest.mark.parametrize(("large", "sides"), [(5, (1, 3, 5, 3)), (3, (1, 3, 3, 3))])
def test_a_pixel_reaches_the_square_of_each_branch(large, sides):
    torch.manual_seed(0)
    module = net.Inception(net.Row(8, *[16] * 6), large=large)
    for branch, side in zip(module.children(), sides, strict=True):
        expected = torch.zeros(11, 11, dtype=torch.bool)
        reach = slice(5 - side // 2, 6 + side // 2)
        expected[reach, reach] = True
        assert torch.equal(net.reached(branch, 8), expected)


def test_what_a_pixel_reaches_is_asked_in_evaluation_mode_of_all_channels():
    torch.manual_seed(0)
    last = nn.Conv2d(2, 3, 3, padding=1)
    nn.init.zeros_(last.weight[:2])  # only the third channel hears anything
    branch = nn.Sequential(nn.Dropout(0.5), last).train()
    assert net.reached(branch, 2).sum() == 9
    assert branch[0].training
    faint = nn.Conv2d(1, 1, 1)
    nn.init.constant_(faint.weight, 1.5e-5)  # 1.5e-4 for a change of 10
    assert net.reached(faint, 1).sum() == 1


# ---- the network ---------------------------------------------------------------------------------


def test_the_network_has_the_channels_of_table_1_and_22_layers():
    network = on_meta(net.googlenet)
    for name, widths in TABLE_1.items():
        convs = convolutions(network.get_submodule(f"inception{name}"))
        assert (convs[0].in_channels, *(c.out_channels for c in convs)) == widths
    assert [conv.kernel_size[0] for conv in convolutions(network.stem)] == [7, 1, 3]
    modules = sum(isinstance(m, net.Inception) for m in network.modules())
    linears = sum(isinstance(m, nn.Linear) for m in network.modules())
    assert 3 + 2 * modules + linears == 22  # three in the stem; a module is two layers deep


def test_all_modules_but_5a_cost_what_the_column_ops_of_table_1_says():
    """Millions of MACs; for 5a the paper says 54."""
    ops = {"3a": 128, "3b": 304, "4a": 73, "4b": 88, "4c": 100, "4d": 119, "4e": 170, "5b": 71}
    network = on_meta(net.googlenet)
    for name, expected in ops.items():
        side = SIDES[name[0]]
        module = network.get_submodule(f"inception{name}")
        found = macs_of(module, 1, TABLE_1[name][0], side, side)
        assert found / 1e6 == pytest.approx(expected, abs=1), name
    assert round(macs_of(network.inception5a, 1, 832, 7, 7) / 1e6, 1) == 51.1


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
    assert parameters_of(network) == parameters == 6_998_552
    heads = parameters
    for c_in in (512, 528):
        heads += c_in * 128 + 128 + 4 * 4 * 128 * 1024 + 1024 + 1024 * 1000 + 1000
    assert parameters_of(on_meta(net.googlenet_with_heads)) == heads
    assert macs_of(on_meta(net.unreduced_googlenet)) == 4_426_547_200


def test_torchvision_s_form_has_the_layers_and_the_cost_torchvision_gives():
    network = on_meta(net.torchvision_googlenet)
    networks.same_layers(network, on_meta(library, aux_logits=False))
    meta = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.meta
    assert parameters_of(network) == meta["num_params"] == 6_624_904
    assert round(macs_of(network) / 1e9, 3) == meta["_ops"] == 1.498
    for c_in, name in ((512, "aux1"), (528, "aux2")):
        head, reference = on_meta(net.torchvision_head, c_in), on_meta(library_head, name)
        networks.same_layers(head, reference, 1, c_in, 14, 14)


def test_torchvision_s_form_does_what_torchvision_does():
    torch.manual_seed(0)
    network, reference = on_meta(net.torchvision_googlenet), on_meta(library, aux_logits=False)
    networks.same_function(network, reference, torch.randn(3, 3, 64, 75), 3e-5)


def test_a_head_does_what_that_of_torchvision_does():
    torch.manual_seed(0)
    head, reference = on_meta(net.torchvision_head, 512), on_meta(library_head, "aux1")
    networks.same_function(head, reference, torch.randn(3, 512, 9, 5), 3e-5)


def test_the_published_stem_normalises_where_figure_3_does():
    torch.manual_seed(0)
    stem, x = net.Stem(), torch.rand(1, 3, 64, 64)
    conv1, conv2, conv3 = convolutions(stem)

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


def test_maps_shrink_by_32_and_the_last_windows_reach_over_the_edge():
    network = on_meta(net.googlenet)
    shapes = []
    for name in ("stem", "pool3", "pool4", "inception5b"):
        part = network.get_submodule(name)
        part.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape)))
    assert networks.runs_on_meta(network, 3, 3, 225, 161).shape == (3, 1000)
    assert shapes == [(3, 192, 28, 20), (3, 480, 14, 10), (3, 832, 7, 5), (3, 1024, 7, 5)]
    assert network.pool4.kernel_size == 3
    assert network.classifier[0].p == 0.4


@pytest.mark.parametrize("name", BUILDERS)
def test_every_form_runs_forward_and_backward_on_the_meta_device(name):
    outputs = networks.runs_on_meta(on_meta(getattr(net, name)), 2, 3, 224, 224)
    shapes = [y.shape for y in outputs] if isinstance(outputs, tuple) else [outputs.shape]
    assert shapes == [(2, 1000)] * (3 if name == "googlenet_with_heads" else 1)


# ---- heads ---------------------------------------------------------------------------------------


def test_a_published_head_pools_convolves_and_reads_with_two_linear_layers():
    torch.manual_seed(0)
    head = net.Head(6, narrow=4, hidden=12, num_classes=10).eval()
    x = torch.randn(2, 6, 14, 14)
    h = F.avg_pool2d(x, 5, 3)  # (2, 6, 4, 4)
    h = F.conv2d(h, head.conv[0].weight, head.conv[0].bias).relu().flatten(1)
    h = (h @ head.linear.weight.T + head.linear.bias).relu()
    close(head(x), h @ head.classifier.weight.T + head.classifier.bias)
    assert head.dropout.p == 0.7
    wide = on_meta(net.thousand_classes, 512)
    assert (wide.conv[0].out_channels, wide.linear.out_features) == (128, 1024)


def test_in_training_the_heads_read_the_maps_behind_4a_and_4d():
    network, x = small_network(), torch.randn(4, 1, 16, 16)
    maps = {}
    for name in ("4a", "4d"):
        part = network.get_submodule(f"inception{name}")
        part.register_forward_hook(lambda m, i, o, name=name: maps.update({name: o}))
    _, at4a, at4d = network(x)
    close(at4a, network.head4a(maps["4a"]))
    close(at4d, network.head4d(maps["4d"]))


def test_evaluation_gives_the_main_output_alone_whatever_the_heads():
    network, x = small_network().eval(), torch.randn(2, 1, 16, 16)
    before = network(x)
    for head in (network.head4a, network.head4d):
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
    close(network(x), before, 0)
    assert before.shape == (2, 10)


def test_a_head_sends_no_gradient_to_modules_behind_it():
    network = small_network()
    _, _, at4d = network(torch.randn(4, 1, 16, 16))
    at4d.sum().backward()
    parts = [
        n for n, m in network.named_children() if any(p.grad is not None for p in m.parameters())
    ]
    assert parts == [
        "stem",
        *(f"inception{n}" for n in ("3a", "3b", "4a", "4b", "4c", "4d")),
        "head4d",
    ]


def test_the_loss_adds_three_tenths_of_each_head():
    y = torch.tensor([0, 1])
    right, none = 50 * F.one_hot(y, 4).float(), torch.zeros(2, 4)
    log4 = torch.tensor(4.0).log()
    close(net.total_loss((right, none, right), y), 0.3 * log4)
    close(net.total_loss((right, right, none), y), 0.3 * log4)
    close(net.total_loss((none, right, none), y), 1.3 * log4)


# ---- digits --------------------------------------------------------------------------------------


def test_the_digit_network_has_the_modules_at_an_eighth_of_their_width():
    """A norm has two parameters a channel."""
    parameters, last = 24 * 9 + 2 * 24, 1024 // 8
    for widths in TABLE_1.values():
        c_in, one, r3, three, r5, five, pool = (w // 8 for w in widths)
        parameters += c_in * (one + r3 + r5 + pool) + 9 * r3 * three + 25 * r5 * five
        parameters += 2 * (one + r3 + three + r5 + five + pool)
    parameters += last * 10 + 10
    network = on_meta(net.digit_network)
    assert parameters_of(network) == parameters
    assert network.classifier[0].p == 0
    for c_in in (512 // 8, 528 // 8):
        parameters += c_in * 16 + 2 * 16 + 256 * 128 + 128 + 128 * 10 + 10
    with_heads = on_meta(net.digit_network_with_heads, conv=net.conv_norm)
    assert parameters_of(with_heads) == parameters
    assert [m.p for m in with_heads.modules() if isinstance(m, nn.Dropout)] == [0, 0, 0]
    shapes = []
    for part in (network.inception4a, with_heads.inception4a):
        part.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape)))
    assert networks.runs_on_meta(network, 3, 1, 20, 12).shape == (3, 10)
    outputs = networks.runs_on_meta(with_heads, 3, 1, 20, 12)
    assert [y.shape for y in outputs] == [(3, 10)] * 3
    assert shapes == [(3, 64, 5, 3)] * 2


def test_training_takes_the_settings_of_the_table(monkeypatch):
    rates, settings = networks.steps_of(monkeypatch, net.training, batches=5)
    net.train(nn.Linear(1, 1), (torch.zeros(230, 1), torch.zeros(230)))  # five batches
    assert (settings["momentum"], settings["weight_decay"], settings["batch"]) == (0.9, 1e-4, 50)
    assert len(rates) == 20
    networks.rises_and_falls(rates, peak=0.1, at=3)


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    torch.manual_seed(0)
    x = torch.randn(20, 1, 16, 16)
    networks.learns(net.digit_network(), x, rate=0.01, steps=30)


def test_the_heads_are_trained_with_the_network():
    torch.manual_seed(0)
    x = torch.randn(20, 1, 16, 16)
    networks.learns(small_network(), x, rate=0.01, steps=30, loss=net.total_loss)


def test_pooled_channels_are_means_over_maps_normed_by_the_batch_and_change_no_network():
    torch.manual_seed(0)
    network = net.digit_network().eval()
    x = torch.randn(9, 1, 16, 16)
    before = copy.deepcopy(network.state_dict())
    found = net.pooled(network, x)
    assert [name for name in found if not name.startswith("pool")] == ["stem", *TABLE_1]
    for name, value in network.state_dict().items():
        close(value.double(), before[name].double(), 0)
    assert not network.training
    assert found["5b"].dtype == torch.float64
    network.train()
    close(network.classifier(found["5b"].float()), network(x))
    close(found["stem"].float(), network.stem(x).mean((2, 3)))
    assert not found["5b"].requires_grad


def test_a_probe_is_least_squares_with_a_bias():
    torch.manual_seed(0)
    x, y = 5 + torch.randn(40, 6).double(), torch.arange(40) % 7
    more, ones = torch.randn(8, 6).double(), torch.ones(40, 1)
    weight = torch.linalg.lstsq(torch.cat((x, ones), 1), F.one_hot(y, 10).double()).solution
    close(net.probe(x, y, more), torch.cat((more, ones[:8]), 1) @ weight)


# ---- gradients -----------------------------------------------------------------------------------


def test_norms_are_those_of_the_gradients_of_both_losses():
    network = small_network("conv_relu").double()
    net.caffe_init(network)
    x, y = torch.randn(6, 1, 16, 16).double(), torch.arange(6)
    found = net.gradient_norms(network.eval(), x, y)
    kernels = [network.stem[0].weight]
    for name in ("3a", "3b", "4a", "4b", "4c", "4d"):
        kernels.append(convolutions(network.get_submodule(f"inception{name}"))[0].weight)
    main, *heads = (F.cross_entropy(output, y) for output in network.train()(x))
    norms = []
    for loss in (0.3 * sum(heads), main):
        network.zero_grad()
        loss.backward(retain_graph=True)
        norms.append(torch.stack([kernel.grad.norm() for kernel in kernels]))
    close(found, torch.stack(norms))


@pytest.mark.parametrize("how", [{}, {"gain": 2.0}])
def test_initial_weights_have_the_variance_of_gain_over_inputs_and_biases_are_a_fifth(how):
    torch.manual_seed(0)
    network = nn.Sequential(net.conv_relu(16, 64, 3), net.conv_norm(16, 64, 3), nn.Linear(64, 200))
    net.caffe_init(network, **how)
    for layer in (network[0][0], network[1][0], network[2]):
        bound = (3 * how.get("gain", 1) / layer.weight[0].numel()) ** 0.5
        networks.starts_with(layer.weight, bound / 3**0.5, share=0.05)
        assert layer.weight.abs().max() <= bound
    for layer in (network[0][0], network[2]):
        close(layer.bias, torch.full_like(layer.bias, 0.2))


def test_each_of_eight_seeds_has_a_network_of_its_own():
    x, y = torch.randn(6, 1, 16, 16), torch.arange(6)
    found = net.norms_of_seeds(x, y, conv=net.conv_relu, gain=2.0)
    assert found.shape == (8, 2, 7)
    for number in (0, 7):
        torch.manual_seed(number)
        network = net.digit_network_with_heads(conv=net.conv_relu)
        net.caffe_init(network, gain=2.0)
        close(found[number], net.gradient_norms(network, x, y))


# ---- look inside ---------------------------------------------------------------------------------


def test_the_variance_between_classes_is_all_none_or_as_by_hand():
    y = torch.arange(20) % 10
    classes = torch.randn(10, 4).double()
    assert net.between(classes[y], y) == pytest.approx(1)
    alike = torch.cat((torch.ones(10, 2), -torch.ones(10, 2)))  # each class twice, once a sign
    assert net.between(alike, y) == pytest.approx(0)
    # Class 0 holds 1 and 5, the others 0 twice: the mean is 0.3, the total 26 - 20 * 0.09 = 24.2.
    x = torch.zeros(20, 1)
    x[0], x[10] = 1, 5
    assert net.between(x, y) == pytest.approx(1 - 8 / 24.2)


def test_two_directions_are_those_of_the_largest_variance():
    torch.manual_seed(0)
    points = torch.randn(50, 5).double() * torch.tensor([1, 9, 2, 5, 1]) + 3
    found = net.two_directions(points)
    values = torch.linalg.eigvalsh(points.T.cov())
    close(found.T.cov(), torch.diag(values[[-1, -2]]))
    assert found.mean(0).abs().max() < 1e-9
