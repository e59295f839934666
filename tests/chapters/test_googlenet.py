"""The two forms of GoogLeNet in notebooks/googlenet.py."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import workbench
from loader import definitions
from networks import without_dropout

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
FORMS = {"published": net.PUBLISHED, "torchvision": net.TORCHVISION}


def on_meta(build):
    with torch.device("meta"):
        return build()


def macs_of(network):
    return workbench.count_macs(network, torch.empty(1, 3, 224, 224, device="meta"))


def library(**how):
    return torchvision.models.googlenet(init_weights=False, **how)


def weights_by_hand(c_in, one, reduce3, three, reduce5, five, pool):
    return (
        c_in * (one + reduce3 + reduce5 + pool) + 9 * reduce3 * three + 25 * reduce5 * five,
        one + reduce3 + three + reduce5 + five + pool,
    )


def test_the_published_main_branch_has_6998552_parameters():
    network = on_meta(net.googlenet)
    heads = workbench.count_parameters(network.heads)
    assert workbench.count_parameters(network) - heads == 6_998_552
    assert workbench.count_parameters(on_meta(lambda: net.googlenet(heads=()))) == 6_998_552


def test_torchvisions_form_has_the_parameters_and_macs_torchvision_gives():
    meta = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.meta
    network = on_meta(lambda: net.googlenet(net.TORCHVISION, heads=()))
    assert workbench.count_parameters(network) == meta["num_params"] == 6_624_904
    assert round(macs_of(network) / 1e9, 3) == meta["_ops"] == 1.498
    both = on_meta(lambda: net.googlenet(net.TORCHVISION))
    assert workbench.count_parameters(both) == 13_004_888


def test_the_published_form_costs_what_a_sum_over_the_columns_of_table_1_gives():
    macs = 112 * 112 * 49 * 3 * 64 + 56 * 56 * (64 * 64 + 9 * 64 * 192) + 1024 * 1000
    parameters = 49 * 3 * 64 + 64 + 64 * 64 + 64 + 9 * 64 * 192 + 192 + 1024 * 1000 + 1000
    for name, row in TABLE_1.items():
        weights, biases = weights_by_hand(*row)
        macs += SIDES[name[0]] ** 2 * weights
        parameters += weights + biases
    network = on_meta(net.googlenet)
    assert macs_of(network) == macs == 1_582_671_872
    assert parameters == 6_998_552


def test_the_network_has_the_channels_of_table_1_and_its_depth_of_22_layers():
    network = on_meta(net.googlenet)
    found = {}
    for name, stage in network.stages.named_children():
        if isinstance(stage, net.Inception):
            convs = [m for m in stage.modules() if isinstance(m, nn.Conv2d)]
            found[name[-2:]] = (convs[0].in_channels, *(m.out_channels for m in convs))
    assert found == TABLE_1
    call = workbench.trace(network, torch.empty(1, 3, 224, 224, device="meta"))
    assert call.parts[-1].depth + 1 == 22  # layers in front of the classifier, and its own


def test_heads_have_the_parameters_that_section_5_describes():
    network = on_meta(net.googlenet)
    assert list(network.heads) == ["inception4a", "inception4d"]
    for head, c_in in zip(network.heads.values(), (512, 528), strict=True):
        expected = c_in * 128 + 128 + 4 * 4 * 128 * 1024 + 1024 + 1024 * 1000 + 1000
        assert workbench.count_parameters(head) == expected
        assert [m.p for m in head if isinstance(m, nn.Dropout)] == [0.7]
        pooled = head[0](torch.empty(1, c_in, 14, 14, device="meta"))
        assert pooled.shape == (1, c_in, 4, 4)


def test_without_reductions_every_module_reads_all_channels():
    network = on_meta(lambda: net.googlenet(block=net.Unreduced))
    assert macs_of(network) == 4_426_547_200
    for name, (c_in, one, _, three, _, five, pool) in TABLE_1.items():
        block = network.stages.get_submodule(f"inception{name}")
        expected = c_in * (one + 9 * three + 25 * five + pool) + one + three + five + pool
        assert workbench.count_parameters(block) == expected


def copied():
    torch.manual_seed(0)
    reference = workbench.randomise_norms(library(aux_logits=True))
    network = net.googlenet(net.TORCHVISION)
    workbench.transplant(reference, network)
    return reference, network


@pytest.mark.parametrize(("height", "width"), [(96, 96), (75, 131), (224, 224)])
def test_the_output_equals_torchvision_with_copied_weights(height, width):
    reference, network = copied()
    workbench.same_outputs(network, reference, torch.randn(2, 3, height, width))


def test_the_heads_equal_those_of_torchvision_in_training_mode():
    reference, network = copied()
    for model in (reference, network):
        model.eval().training = True  # heads on, dropout off, running statistics
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected, found = reference(x), network(x)
    assert len(found) == 3
    for ours, theirs in zip(found, (expected[0], expected[2], expected[1]), strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * scale)


def test_the_heads_equal_those_of_torchvision_on_the_statistics_of_the_batch():
    reference, network = copied()
    for model in (reference, network):
        model.train()
        for layer in model.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
    x = torch.randn(4, 3, 128, 128)
    with torch.no_grad():
        expected, found = reference(x), network(x)
    for ours, theirs in zip(found, (expected[0], expected[2], expected[1]), strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("name", TABLE_1)
def test_the_published_module_equals_its_four_branches_computed_separately(name):
    torch.manual_seed(0)
    c_in, *widths = TABLE_1[name]
    block, x = net.Inception(c_in, net.Row(*widths)), torch.randn(3, c_in, 9, 6)
    with torch.no_grad():
        torch.testing.assert_close(block(x), net.four_branches(block, x), rtol=1e-5, atol=1e-5)


def test_the_published_stem_normalises_where_figure_3_does():
    torch.manual_seed(0)
    network, x = net.googlenet(heads=()).eval(), torch.rand(1, 3, 64, 64)
    conv1, conv2, conv3 = (network.stages.get_submodule(f"conv{i}")[0] for i in (1, 2, 3))

    def normalise(t):  # a neighbourhood of five channels, by hand
        squares = F.pad(t.square(), (0, 0, 0, 0, 2, 2))
        total = sum(squares[:, i : i + t.shape[1]] for i in range(5))
        return t / (1 + 1e-4 * total / 5) ** 0.75

    def shrink(t):  # 3x3, stride 2, a row and a column more at the far side
        return F.max_pool2d(F.pad(t, (0, 1, 0, 1), value=-torch.inf), 3, 2)

    with torch.no_grad():
        t = normalise(shrink(F.conv2d(x, conv1.weight, conv1.bias, 2, 3).relu()))
        t = F.conv2d(t, conv2.weight, conv2.bias).relu()
        t = shrink(normalise(F.conv2d(t, conv3.weight, conv3.bias, 1, 1).relu()))
        torch.testing.assert_close(network.stages[:7](x), t)


@pytest.mark.parametrize("name", FORMS)
def test_windows_of_the_branches_are_one_three_five_three_and_a_three_in_torchvision(name):
    branches = net.Inception(8, net.Row(*[16] * 6), FORMS[name]).branches
    windows = [net.window(branch, 8) for branch in branches]
    assert windows == [1, 3, 5 if name == "published" else 3, 3]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("batch", "height", "width"), [(3, 225, 161), (1, 64, 256)])
def test_any_batch_and_map_size_goes_through(name, batch, height, width):
    network = on_meta(lambda: net.googlenet(FORMS[name])).eval()
    x = torch.empty(batch, 3, height, width, device="meta")
    assert network(x).shape == (batch, 1000)
    sides = []
    for side in (height, width):
        side = (side + 1) // 2  # the first convolution
        for _ in range(4):  # poolings of 3 at stride 2, the last window may reach over the edge
            side = side // 2
        sides.append(side)
    assert network.stages(x).shape == (batch, 1024, *sides)


def test_evaluation_gives_the_main_output_alone_whatever_the_heads():
    torch.manual_seed(0)
    network, x = net.digit_network().eval(), torch.randn(2, 1, 16, 16)
    before = network(x)
    with torch.no_grad():
        for parameter in network.heads.parameters():
            parameter.zero_()
    torch.testing.assert_close(network(x), before, rtol=0, atol=0)


def test_a_head_sends_no_gradient_to_stages_behind_it():
    torch.manual_seed(0)
    network = net.digit_network()
    _, _, last = network(torch.randn(4, 1, 16, 16))
    last.sum().backward()
    reached = {
        name
        for name, stage in network.stages.named_children()
        if any(p.grad is not None for p in stage.parameters())
    }
    assert reached == {"conv1", *(f"inception{n}" for n in ("3a", "3b", "4a", "4b", "4c", "4d"))}


def test_the_loss_adds_three_tenths_of_each_head():
    y = torch.tensor([0, 1])
    right, none = 50 * F.one_hot(y, 4).float(), torch.zeros(2, 4)
    log4 = torch.tensor(4.0).log()
    torch.testing.assert_close(net.total_loss([right, none, none], y), 0.6 * log4)
    torch.testing.assert_close(net.total_loss([none, right, none], y), 1.3 * log4)
    torch.testing.assert_close(net.total_loss([none], y), log4)


def test_batch_norm_has_the_constants_of_torchvision():
    constants = [
        [(m.eps, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for model in (on_meta(lambda: net.googlenet(net.TORCHVISION)), on_meta(library))
    ]
    assert constants[0][: len(constants[1])] == constants[1]


def test_dropout_is_four_tenths_as_published_and_two_tenths_in_torchvision():
    for name, p in (("published", 0.4), ("torchvision", 0.2)):
        network = on_meta(lambda name=name: net.googlenet(FORMS[name]))
        assert [m.p for m in network.classifier if isinstance(m, nn.Dropout)] == [p]
    assert on_meta(library).dropout.p == 0.2


@pytest.mark.parametrize("heads", [net.HEADS, ()])
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(heads):
    torch.manual_seed(0)
    network = without_dropout(net.digit_network(heads))
    x, y = torch.randn(20, 1, 16, 16), torch.arange(20) % 10
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = workbench.fit(network, (x, y), 40, optimizer, net.total_loss)["loss"]
    assert losses[-1] < losses[0] / 10


def test_without_batch_norm_the_heads_send_more_gradient_where_the_signal_fades():
    torch.manual_seed(0)
    x, y = torch.randn(64, 1, 16, 16), torch.randint(10, (64,))
    ratios = []
    for gain in (1, 2):  # 1 / inputs halves the mean square at each ReLU, 2 / inputs keeps it
        network = net.xavier(net.digit_network(form=net.PLAIN), gain)
        main, heads = net.stage_gradients(network, x, y)
        assert len(main) == 10
        assert not heads[7:].any()
        ratios.append((heads[0] / main[0]).item())
    assert ratios[0] > 2 * max(1, ratios[1])


@pytest.mark.parametrize("gain", [1, 2])
def test_initial_weights_have_the_variance_of_gain_over_inputs_and_no_bias(gain):
    torch.manual_seed(0)
    network = net.xavier(net.digit_network(form=net.PLAIN), gain)
    for weight in (network.heads["inception4a"][3].weight, network.classifier[-1].weight):
        expected = (gain / weight.shape[1]) ** 0.5
        torch.testing.assert_close(weight.std().item(), expected, rtol=0.05, atol=0)
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("name", FORMS)
def test_every_form_runs_forward_and_backward_on_the_meta_device(name):
    network = on_meta(lambda: net.googlenet(FORMS[name]))
    outputs = network(torch.empty(2, 3, 224, 224, device="meta"))
    net.total_loss(outputs, torch.zeros(2, dtype=torch.long, device="meta")).backward()
    assert all(p.grad is not None for p in network.parameters())
