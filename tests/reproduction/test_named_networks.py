"""The networks of reproduction/: parameters, forms, equality with libraries behind the same stem."""

import re
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn

from networks import (
    close,
    on_meta,
    parameters_of,
    random_like,
    runs_on_meta,
    same_function,
    same_outputs,
)
from reproduction import networks
from reproduction.networks import NETWORKS, book, build

COUNTS = {  # with 100 classes; equal to the repository's where the paper's form and that one agree
    "vgg11": 28_512_740,
    "vgg11_bn": 28_518_244,
    "vgg13": 28_697_252,
    "vgg13_bn": 28_703_140,
    "vgg16": 34_006_948,
    "vgg16_bn": 34_015_396,
    "vgg19": 39_316_644,
    "vgg19_bn": 39_327_652,
    "googlenet": 6_075_652,
    "inceptionv3": 21_990_468,
    "xception": 21_011_852,
    "resnet18": 11_220_132,
    "resnet34": 21_328_292,
    "resnet50": 23_705_252,
    "resnet101": 42_697_380,
    "resnet152": 58_341_028,
    "preactresnet18": 11_218_340,
    "preactresnet34": 21_326_500,
    "preactresnet50": 23_697_572,
    "preactresnet101": 42_689_700,
    "preactresnet152": 58_333_348,
    "seresnet18": 11_309_212,
    "seresnet34": 21_489_488,
    "seresnet50": 26_236_244,
    "seresnet101": 47_475_092,
    "seresnet152": 64_970_068,
    "wideresnet": 55_899_444,
    "resnext50": 23_177_124,
    "resnext101": 86_939_556,
    "densenet121": 7_048_548,
    "densenet161": 26_681_188,
    "densenet169": 12_643_172,
    "densenet201": 18_277_220,
    "shufflenet": 1_000_828,
    "shufflenetv2": 1_356_104,
    "mobilenet": 3_309_476,
    "mobilenetv2": 2_351_972,
    "squeezenet": 781_156,
    "smallnet": 30_196,
}
AGREE = [
    "vgg11_bn",
    "vgg16_bn",
    "vgg19_bn",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "densenet121",
    "densenet161",
    "squeezenet",
]


OTHER_DEPTHS = re.compile(r"vgg1[369]|.*net(34|101|152)|.*net(161|169|201)|.*next101|seresnet50")


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_shape_and_gradients(name):
    network = on_meta(build, name, 100)
    assert parameters_of(network) == COUNTS[name]
    if not OTHER_DEPTHS.match(name):
        assert runs_on_meta(network, 2, 3, 32, 32).shape == (2, 100)


def test_where_paper_and_repository_agree_the_counts_do():
    assert set(COUNTS) == set(NETWORKS)
    for name in AGREE:
        assert NETWORKS[name].repository == COUNTS[name]


# ---- the repository's counts, made from ours by what the registry says of the difference -----------


def biases(network: nn.Module, among=lambda conv: True) -> int:
    """How many there would be, did each convolution without a bias have one."""
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.bias is None]
    return sum(conv.out_channels for conv in convs if among(conv))


def of_repository(name: str, network: nn.Module) -> int:
    """Parameters behind the changes that `differs` names."""
    count, unbiased = parameters_of(network), biases(network)
    match name:
        case "googlenet":
            return two_small()
        case "inceptionv3":
            inner = ((192, 32), (256, 64), (288, 64))
            return count + sum(8 * c_in * c_out for c_in, c_out in inner)
        case "xception":
            skips = [block.skip for block in network.children() if getattr(block, "skip", None)]
            return count + sum(skip.out_channels for skip in skips)
        case "preactresnet18":
            return count + unbiased + 2 * 64 - 2 * 512
        case "seresnet50" | "wideresnet":
            return count + unbiased
        case "resnext50":
            return parameters_of(book("resnext").group_first(network))
        case "shufflenet":
            return count + unbiased - 24 * 60 * 2 // 3
        case "shufflenetv2":
            kept, wide = (unit_side(24, 24), 48), (unit_side(24, 58), 116)
            return count + kept[0] - wide[0] + unbiased + kept[1] - wide[1]
        case "mobilenet":
            return count + biases(network, lambda conv: conv.kernel_size == (1, 1))
        case "mobilenetv2":
            expansion = 32 * 32 + 2 * 32 + 32
            return count + unbiased + expansion - 8 * 3 * 32


def unit_side(c_in: int, c: int) -> int:
    """The branch of three layers that halves 24 channels' map and gives 58, of this inner width."""
    return c_in * c + 9 * c + c * 58 + 2 * (c + c + 58)


def two_small() -> int:
    """GoogLeNet with biases in the modules, two 3x3 for each 5x5, a 3x3 within the stem."""
    net = book("googlenet")

    def conv(c_in: int, c_out: int, size: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(c_in, c_out, size), nn.BatchNorm2d(c_out))

    class TwoSmall(net.Inception):
        def __init__(self, row):
            super().__init__(row, conv=conv, large=3)
            self.branch5.append(conv(row.five, row.five, 3))

    network = networks.googlenet(100, module=TwoSmall)
    network.stem[1] = net.conv_norm(64, 64, 3)
    return parameters_of(network)


DIFFERENT = [
    name for name, entry in NETWORKS.items() if entry.repository not in (None, COUNTS[name])
]


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_difference_to_the_repository_is_what_the_registry_says(name):
    assert NETWORKS[name].differs
    with torch.device("meta"):
        assert of_repository(name, build(name, 100)) == NETWORKS[name].repository


def test_where_nothing_differs_no_reason_is_given():
    for name in set(AGREE):
        assert not NETWORKS[name].differs


# ---- equal to libraries ----------------------------------------------------------------------------


def small_stem(reference: nn.Module) -> nn.Module:
    """A ResNet of torchvision or timm behind a 3x3 convolution of stride 1."""
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    return reference


def timm_seresnet18(num_classes: int) -> nn.Module:
    """Timm's own rounds the 4 channels that 64 are squeezed to up to 8."""
    squeeze = partial(timm.layers.SEModule, rd_divisor=1)
    how = {"num_classes": num_classes, "block_args": {"attn_layer": squeeze}}
    return timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, (2, 2, 2, 2), **how)


@pytest.mark.parametrize(
    ("name", "reference"),
    [("resnet18", torchvision.models.resnet18), ("seresnet18", timm_seresnet18)],
)
def test_resnets_equal_the_libraries_behind_the_same_stem(name, reference):
    theirs = on_meta(lambda: small_stem(reference(num_classes=100)))
    same_function(on_meta(build, name, 100), theirs, torch.randn(2, 3, 16, 16))


def test_densenet_equals_torchvision_behind_the_same_stem():
    def reference() -> nn.Module:
        theirs = torchvision.models.densenet121(num_classes=100)
        theirs.features.conv0 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        theirs.features.norm0 = theirs.features.relu0 = theirs.features.pool0 = nn.Identity()
        return theirs

    same_function(on_meta(build, "densenet121", 100), on_meta(reference), torch.randn(2, 3, 16, 16))


def test_vgg_equals_torchvision_without_the_pool_to_7x7():
    def reference() -> nn.Module:
        theirs = torchvision.models.vgg11_bn(num_classes=100)
        theirs.avgpool = nn.Identity()
        theirs.classifier[0] = nn.Linear(512, 4096)
        return theirs

    same_function(on_meta(build, "vgg11_bn", 100), on_meta(reference), torch.randn(2, 3, 32, 32))


PARTS = {  # of a block, here and in timm
    "norm.0": "norm1",
    "branch.0": "conv1",
    "branch.1.0": "norm2",
    "branch.1.2": "conv2",
    "shortcut": "downsample.conv",
}


def test_preactivation_equals_timm_behind_the_same_stem():
    reference = timm.create_model("resnetv2_18", num_classes=100)
    reference.stem.conv = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.stem.pool = nn.Identity()
    ours = build("preactresnet18", 100)
    values = {name: random_like(name, t) for name, t in ours.state_dict().items()}
    ours.load_state_dict(values)
    theirs = {}
    for name, value in values.items():
        name = name.replace("stem.", "stem.conv.").replace("classifier.", "head.fc.")
        if found := re.fullmatch(r"body\.(\d)\.(.*)\.(\w+)", name):
            number, part, kind = found.groups()
            name = f"stages.{int(number) // 2}.blocks.{int(number) % 2}.{PARTS[part]}.{kind}"
        theirs[name] = value[..., None, None] if name == "head.fc.weight" else value
    reference.load_state_dict(theirs)
    x = torch.randn(2, 3, 16, 16)
    same_outputs(ours, reference, x)
    close(ours.train()(x), reference.train()(x), 1e-4)


def test_a_squeezing_block_equals_torchvision_where_the_norm_does_nothing():
    ours, theirs = networks.Fire(8, 4, 6).eval(), torchvision.models.squeezenet.Fire(8, 4, 6, 6)
    for part in ("squeeze", "expand1", "expand3"):
        conv = getattr(theirs, {"expand1": "expand1x1", "expand3": "expand3x3"}.get(part, part))
        conv.load_state_dict(getattr(ours, part)[0].state_dict())
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["inceptionv3", "xception", "mobilenetv2", "mobilenet", "shufflenet"]
)
def test_a_stem_of_stride_1_keeps_the_map(name):
    network = on_meta(build, name, 100)
    sides = []

    def note(layer, inputs, output):
        sides.append(output.shape[-1])

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(note)
    network(torch.empty(2, 3, 32, 32, device="meta"))
    last = {"inceptionv3": 6, "xception": 2, "mobilenetv2": 2, "mobilenet": 2, "shufflenet": 4}[
        name
    ]
    assert (sides[0], sides[-1]) == (32, last)


def test_a_wide_network_of_depth_40_has_40_layers():
    network = on_meta(build, "wideresnet", 100)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(layers) + 1 == 38  # 6n + 4 counts the three 1x1 of the shortcuts, too


def test_the_list_of_networks_has_each_with_its_reason(capsys, monkeypatch):
    few = {name: NETWORKS[name] for name in ("resnext50", "resnet50", "smallnet")}
    monkeypatch.setattr(networks, "NETWORKS", few)
    networks.main()
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(lines) == set(few) and " 30,196 " in lines["smallnet"]
    assert "there 14,788,772: the first 1x1 of each block is grouped" in lines["resnext50"]
    assert "there" not in lines["resnet50"]
