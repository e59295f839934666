"""The residual networks of notebooks/resnet.py."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

import networks
from loader import definitions
from networks import macs_of, on_meta, parameters_of

resnet = definitions("resnet")

# Sizes whose weights torchvision publishes; their entries hold parameters and G MACs at 224x224.
PUBLISHED = {
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": torchvision.models.ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V2,
    "resnet101": torchvision.models.ResNet101_Weights.IMAGENET1K_V2,
    "resnet152": torchvision.models.ResNet152_Weights.IMAGENET1K_V2,
    "wide_resnet50": torchvision.models.Wide_ResNet50_2_Weights.IMAGENET1K_V2,
    "wide_resnet101": torchvision.models.Wide_ResNet101_2_Weights.IMAGENET1K_V2,
}
TORCHVISION = {"wide_resnet50": "wide_resnet50_2", "wide_resnet101": "wide_resnet101_2"}
# He et al. 2015, table 1: blocks per stage and 10^9 multiply-adds.
ORIGINAL = {
    "original_resnet50": ((3, 4, 6, 3), 3.8),
    "original_resnet101": ((3, 4, 23, 3), 7.6),
    "original_resnet152": ((3, 8, 36, 3), 11.3),
}
SIZES = [*PUBLISHED, *ORIGINAL, "resnet50d"]
KINDS = ("PlainBlock", "ResidualBlock")


def library(name):
    """The reference of a size; of the authors' models, torchvision's with its strides moved."""
    if name == "resnet50d":
        return timm.create_model(name)
    plain = name.removeprefix("original_")
    network = getattr(torchvision.models, TORCHVISION.get(plain, plain))()
    if plain != name:
        for module in network.modules():
            if isinstance(module, torchvision.models.resnet.Bottleneck):
                strides = module.conv1.stride, module.conv2.stride
                module.conv2.stride, module.conv1.stride = strides
    return network


# ---- batch norm ----------------------------------------------------------------------------------


def test_batch_norm_by_hand_is_that_of_torch_in_both_modes_and_in_what_it_keeps():
    torch.manual_seed(0)
    ours, theirs = resnet.OneChannelNorm().double(), nn.BatchNorm1d(1).double()
    with torch.no_grad():
        for norm, names in ((ours, ("scale", "shift")), (theirs, ("weight", "bias"))):
            getattr(norm, names[0]).fill_(1.7)
            getattr(norm, names[1]).fill_(-0.4)
    for _ in range(3):
        x = 3 + 0.01 * torch.randn(
            7, dtype=torch.float64
        )  # a variance that an epsilon of another size would change
        networks.close(ours(x), theirs(x[:, None])[:, 0])
    networks.close(ours.mean, theirs.running_mean[0])
    networks.close(ours.variance, theirs.running_var[0])
    networks.close(ours.eval()(x), theirs.eval()(x[:, None])[:, 0])


# ---- the networks --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "weights"), PUBLISHED.items())
def test_published_sizes_have_the_parameters_and_macs_torchvision_gives(name, weights):
    network = on_meta(getattr(resnet, name))
    assert parameters_of(network) == weights.meta["num_params"]
    assert round(macs_of(network) / 1e9, 3) == weights.meta["_ops"]


@pytest.mark.parametrize("name", SIZES)
def test_each_size_calls_the_layers_of_the_library_in_their_order(name):
    networks.same_layers(on_meta(getattr(resnet, name)), on_meta(library, name))


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "wide_resnet50", "original_resnet50", "resnet50d"]
)
def test_with_the_same_weights_a_network_does_what_that_of_the_library_does(name):
    torch.manual_seed(0)
    ours, theirs = getattr(resnet, name)(), library(name)
    networks.same_function(ours, theirs, torch.randn(3, 3, 75, 50))


def macs_by_hand(depths):
    """Stem, bottlenecks with the stride in the first 1x1, linear layer; figure 5 and table 1."""
    total = 112 * 112 * 7 * 7 * 3 * 64 + 2048 * 1000
    stages = zip(depths, (64, 128, 256, 512), (56, 28, 14, 7), (64, 256, 512, 1024), strict=True)
    for depth, width, side, c_in in stages:
        first = c_in * width + 9 * width * width + 4 * width * width + c_in * 4 * width
        later = 4 * width * width + 9 * width * width + 4 * width * width
        total += side * side * (first + (depth - 1) * later)
    return total


@pytest.mark.parametrize(("name", "depths", "giga"), [(n, *row) for n, row in ORIGINAL.items()])
def test_original_strides_cost_what_a_sum_by_hand_and_table_1_give(name, depths, giga):
    network = on_meta(getattr(resnet, name))
    assert macs_of(network) == macs_by_hand(depths)
    assert macs_of(network) / 1e9 == pytest.approx(giga, abs=0.06)  # 3.858 stands as 3.8 there
    same = on_meta(getattr(resnet, name.removeprefix("original_")))
    assert parameters_of(network) == parameters_of(same)


def test_convolutions_start_with_variance_two_over_fan_out():
    torch.manual_seed(0)
    conv = resnet.resnet18().stage4[0].branch[0][0]  # 3x3, from 256 channels to 512
    networks.starts_with(conv.weight, (2 / (512 * 9)) ** 0.5)
    networks.starts_with(
        resnet.DigitNetwork(resnet.PlainBlock, 8, width=64).stage3[0].branch[2][0].weight,
        (2 / (256 * 9)) ** 0.5,
    )


@pytest.mark.parametrize("name", SIZES)
def test_every_size_runs_forward_and_backward_on_the_meta_device(name):
    assert networks.runs_on_meta(on_meta(getattr(resnet, name)), 2, 3, 64, 96).shape == (2, 1000)


# ---- blocks --------------------------------------------------------------------------------------


def test_a_plain_block_is_relu_of_its_branch_and_a_residual_one_adds_its_input():
    torch.manual_seed(0)
    plain, residual = resnet.PlainBlock(4, 4).eval(), resnet.ResidualBlock(4, 4).eval()
    residual.branch = plain.branch
    x = torch.randn(2, 4, 5, 6)
    networks.close(plain(x), torch.relu(plain.branch(x)))
    networks.close(residual(x), torch.relu(plain.branch(x) + x))


def test_zero_padding_keeps_every_second_pixel_and_adds_empty_channels():
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    y = resnet.ZeroPad(2, 5, stride=2)(x)
    networks.close(y[:, :2], x[:, :, [0, 2]][..., [0, 2]])
    assert y.shape == (1, 5, 2, 2)
    assert not y[:, 2:].any()


@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck", "OriginalBottleneck"])
def test_a_zero_branch_leaves_relu_of_the_input(block):
    x = torch.randn(2, 256, 7, 5)
    width = 256 if block == "BasicBlock" else 64
    zeroed = getattr(resnet, block)(256, width)
    assert not torch.allclose(zeroed(x), torch.relu(x))
    resnet.zero_last_scale(zeroed)
    networks.close(zeroed(x), torch.relu(x), 0)


def test_the_pooled_shortcut_reads_every_pixel_and_the_projection_one_in_four():
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    read = {}
    for block in (resnet.Bottleneck, resnet.PooledBottleneck):
        shortcut = block(8, 16, stride=2).shortcut.eval()
        (gradient,) = torch.autograd.grad(shortcut(x).sum(), x)
        read[block] = (gradient != 0).double().mean().item()
    assert read[resnet.Bottleneck] == pytest.approx(0.25)
    assert read[resnet.PooledBottleneck] == pytest.approx(1.0)


# ---- the digit networks --------------------------------------------------------------------------


DEPTHS = [(8, 19_074), (14, 43_490), (20, 67_906), (32, 116_738)]


@pytest.mark.parametrize(("depth", "parameters"), DEPTHS)
def test_plain_and_residual_networks_start_from_the_same_weights(depth, parameters):
    pair = []
    for kind in KINDS:
        torch.manual_seed(0)
        pair.append(resnet.DigitNetwork(getattr(resnet, kind), depth))
    plain, residual = pair
    assert parameters_of(plain) == parameters
    for a, b in zip(plain.state_dict().values(), residual.state_dict().values(), strict=True):
        networks.close(a, b, 0)
    layers = [m for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


@pytest.mark.parametrize("kind", KINDS)
def test_the_stages_of_a_digit_network_halve_the_map_and_double_the_channels(kind):
    network = on_meta(resnet.DigitNetwork, getattr(resnet, kind), 14)
    shapes = []
    for name in ("stem", "stage1", "stage2", "stage3"):
        part = getattr(network, name)
        part.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[1:])))
    assert networks.runs_on_meta(network, 3, 1, 16, 24).shape == (3, 10)
    assert shapes == [(8, 8, 12), (8, 8, 12), (16, 4, 6), (32, 2, 3)]


def test_a_digit_network_has_a_relu_behind_its_stem_and_takes_the_mean_over_the_map():
    torch.manual_seed(0)
    network = resnet.DigitNetwork(resnet.ResidualBlock, 8).eval()
    x = torch.randn(2, 1, 16, 16)
    parts = nn.Sequential(network.stem, nn.ReLU(), network.stage1, network.stage2, network.stage3)
    networks.close(network(x), network.classifier(parts(x).mean((2, 3))))


def test_depths_other_than_6n_plus_2_are_refused():
    with pytest.raises(AssertionError, match="6n"):
        resnet.DigitNetwork(resnet.ResidualBlock, 21)


@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss(kind):
    torch.manual_seed(0)
    network = resnet.DigitNetwork(getattr(resnet, kind), 8)
    networks.learns(network, torch.randn(20, 1, 16, 16), rate=0.02, steps=40)


# ---- growing, leaving out ------------------------------------------------------------------------


def trained(kind: str, depth: int = 14):
    """A network whose batch norms have seen something, in evaluation mode."""
    torch.manual_seed(0)
    network = resnet.DigitNetwork(getattr(resnet, kind), depth)
    for _ in range(3):
        network(torch.randn(16, 1, 16, 16))
    return network.eval()


def test_a_grown_network_has_three_blocks_more_a_stage_and_the_old_one_is_unchanged():
    network = trained("ResidualBlock")
    before = copy.deepcopy(network.state_dict())
    deeper = resnet.grow(network, resnet.ResidualBlock, resnet.he_init)
    for name in ("stage1", "stage2", "stage3"):
        assert len(getattr(deeper, name)) == len(getattr(network, name)) + 3
    for name, value in network.state_dict().items():
        networks.close(value.double(), before[name].double(), 0)
        networks.close(deeper.state_dict()[name].double(), before[name].double(), 0)


@pytest.mark.parametrize(
    ("kind", "start", "tolerance"),
    [("ResidualBlock", "zero_last_scale", 0), ("PlainBlock", "copy_input", 1e-3)],
)
def test_blocks_that_add_nothing_or_copy_leave_the_outputs_as_they_were(kind, start, tolerance):
    network, x = trained(kind), torch.randn(4, 1, 16, 16)
    deeper = resnet.grow(network, getattr(resnet, kind), getattr(resnet, start)).eval()
    networks.close(deeper(x), network(x), tolerance)


def test_accuracy_on_batches_takes_the_statistics_of_each_batch_and_changes_no_network():
    torch.manual_seed(0)
    network = trained("PlainBlock")
    network.stem[1].running_mean.fill_(100.0)  # memory that would spoil every answer
    before = copy.deepcopy(network.state_dict())
    x = torch.randn(200, 1, 16, 16)
    with torch.no_grad():
        fair = torch.cat([copy.deepcopy(network).train()(part) for part in x.split(100)])
    assert resnet.accuracy_on_batches(network, (x, fair.argmax(1))) == 1
    assert resnet.accuracy_on_batches(network, (x, (fair.argmax(1) + 1) % 10)) == 0
    for name, value in network.state_dict().items():
        networks.close(value.double(), before[name].double(), 0)
    assert not network.training


def test_one_block_is_left_out_of_a_copy():
    network, x = trained("ResidualBlock"), torch.randn(2, 1, 16, 16)
    smaller = resnet.without(network, "stage2", 1)
    assert [len(stage) for stage in (smaller.stage1, smaller.stage2, smaller.stage3)] == [2, 1, 2]
    assert len(network.stage2) == 2
    resnet.zero_last_scale(network.stage2[1])
    networks.close(smaller(x), network(x))  # the block that goes is the one that adds nothing


def test_each_block_but_the_first_of_a_stage_is_left_out_in_turn():
    network = trained("ResidualBlock", 20)
    places = [(name, index) for name in ("stage1", "stage2", "stage3") for index in (1, 2)]
    torch.manual_seed(1)
    nn.init.normal_(network.classifier.weight)  # answers of many classes
    x = torch.randn(210, 1, 16, 16)
    answers = [resnet.without(network, *place)(x).argmax(1) for place in places]
    sizes = (10, 20, 30, 40, 55, 55)
    labels = torch.cat([a.split(sizes)[k] for k, a in enumerate(answers)])  # of each a part
    expected = [(answer == labels).double().mean().item() for answer in answers]
    assert len(set(expected)) == len(places)  # else two blocks could change places unseen
    assert resnet.left_out(network, (x, labels)) == pytest.approx(expected)


def test_a_halved_shortcut_adds_half_of_the_input():
    torch.manual_seed(0)
    block, x = resnet.HalvedShortcut(4, 4).eval(), torch.randn(2, 4, 5, 5)
    networks.close(block(x), torch.relu(block.branch(x) + x / 2))


def test_the_rate_rises_from_a_twenty_fifth_for_a_fifth_of_the_steps_and_falls_to_nothing(
    monkeypatch,
):
    rates, settings = networks.steps_of(monkeypatch, resnet.training, batches=4)
    part = torch.zeros(180, 1, 16, 16), torch.zeros(180)  # four batches of 50 at most
    resnet.train(nn.Linear(1, 1), part, epochs=5)
    assert (settings["momentum"], settings["weight_decay"], settings["batch"]) == (0.9, 1e-4, 50)
    networks.rises_and_falls(rates, peak=0.1, at=3)
