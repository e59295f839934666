"""The networks by name, with 100 classes and a form for images of 32x32.

What a chapter of this book defines comes from its notebook. The rest is torchvision's or timm's with
another stem, or stands here. "CIFAR stem": a 3x3 convolution of stride 1 in place of what reduces the
image fourfold, so that the last map is 4x4.

The reading list names the repository weiaicunzai/pytorch-cifar100. Where its network has another
number of parameters, `repository` holds that number and `differs` the reason; the paper's form is the
one built here. ``python reproduction/networks.py`` prints all of them.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

if __name__ == "__main__":  # a script finds what stands beside its folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from reproduction.definitions import Definitions

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


@cache
def book(stem: str) -> Definitions:
    """What notebooks/<stem>.py defines."""
    quiet_shell()
    return Definitions(NOTEBOOKS / f"{stem}.py")


@cache
def quiet_shell() -> None:
    """Have IPython's shell, which the workbench asks for, without a history in the home folder.

    Several processes would open that one at once. The shell's own __main__ is not left behind.
    """
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    main, hook = sys.modules["__main__"], sys.excepthook
    InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    sys.modules["__main__"], sys.excepthook = main, hook
    if str(NOTEBOOKS) not in sys.path:
        sys.path.append(str(NOTEBOOKS))


# ---- VGG, GoogLeNet, Inception, Xception ---------------------------------------------------------


def vgg(size: str, layer: str, K: int) -> nn.Module:
    """A configuration of table 1; five pools leave 1x1, so that the classifier reads 512 numbers."""
    vgg = book("vgg")
    network = vgg.VGG(vgg.SIZES[size], layer=getattr(vgg, layer), hidden=1, num_classes=K)
    network.pool = nn.AdaptiveAvgPool2d(1)
    network.classifier = vgg.Classifier(512, K, hidden=4096)
    vgg.he_init(network.classifier)
    return network


def googlenet(K: int, *, module=None) -> nn.Module:
    """The nine modules of table 1 with true 5x5 branches; batch norm behind each convolution."""
    net = book("googlenet")
    stem = nn.Sequential(
        net.conv_norm(3, 64, 3), net.conv_norm(64, 64, 1), net.conv_norm(64, 192, 3), net.halve()
    )
    module = module or (lambda row: net.Inception(row, conv=net.conv_norm))
    return net.GoogLeNet(stem, net.TABLE_1, module=module, num_classes=K)


def inceptionv3(K: int) -> nn.Module:
    """Torchvision's, without the auxiliary head; the stem keeps 30x30 of 32x32 pixels."""
    from torchvision.models import inception_v3

    network = inception_v3(aux_logits=False, init_weights=True, num_classes=K)
    first, second = network.Conv2d_1a_3x3.conv, network.Conv2d_2a_3x3.conv
    first.stride = (1, 1)
    first.padding = second.padding = (1, 1)
    network.maxpool1 = network.maxpool2 = nn.Identity()
    return network


def xception(K: int) -> nn.Module:
    """Timm's; two convolutions of stride 1 for a stem, then 16x16, 8x8, 4x4 and 2x2."""
    from timm.models.xception import legacy_xception

    network = legacy_xception(num_classes=K)
    network.conv1.stride = (1, 1)
    network.conv1.padding = network.conv2.padding = (1, 1)
    return network


# ---- ResNet and what came of it ------------------------------------------------------------------


def resnet(block: str, depths: tuple[int, ...], K: int, *, change=lambda block: block) -> nn.Module:
    """Four stages behind a 3x3 stem: 32x32, 16x16, 8x8, 4x4. change: makes another block of it."""
    net = book("resnet")

    def stem(c_out: int) -> nn.Sequential:
        return nn.Sequential(net.conv_norm(3, c_out, 3), nn.ReLU())

    return net.ResNet(change(getattr(net, block)), depths, stem=stem, num_classes=K)


def excited(block: type[nn.Module]) -> type[nn.Module]:
    """A block whose branch ends in squeeze and excitation, r = 16 (Hu et al. 2017, figure 3)."""
    from torchvision.ops import SqueezeExcitation

    class Excited(block):
        def __init__(self, c_in: int, width: int, *, stride: int = 1):
            super().__init__(c_in, width, stride=stride)
            c_out = width * self.expansion
            self.branch.append(SqueezeExcitation(c_out, c_out // 16))

    return Excited


class PreActivation(nn.Module):
    """shortcut(x) + branch(x), batch norm and ReLU in front of each convolution.

    He et al. 2016, "Identity mappings", figure 4e. Where the shapes change, the 1x1 convolution of the
    shortcut reads x behind the first norm and ReLU, as in the authors' code.
    """

    expansion = 1

    def __init__(self, c_in: int, width: int, *, stride: int = 1):
        super().__init__()
        c_out = self.expansion * width
        self.norm = nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU())
        self.branch = self.convolutions(c_in, width, stride)
        self.project = stride > 1 or c_in != c_out
        if self.project:
            self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def convolutions(self, c_in: int, width: int, stride: int) -> nn.Sequential:
        first = nn.Conv2d(c_in, width, 3, stride, padding=1, bias=False)
        return nn.Sequential(first, book("densenet").norm_conv(width, width, 3))

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, expansion * width, H / stride, W / stride)
        active = self.norm(x)
        return self.branch(active) + (self.shortcut(active) if self.project else x)


class PreActivationBottleneck(PreActivation):
    """1x1 down, 3x3, 1x1 up to four times the width."""

    expansion = 4

    def convolutions(self, c_in: int, width: int, stride: int) -> nn.Sequential:
        norm_conv = book("densenet").norm_conv
        middle = norm_conv(width, width, 3)
        middle[2].stride = (stride, stride)
        first = nn.Conv2d(c_in, width, 1, bias=False)
        return nn.Sequential(first, middle, norm_conv(width, 4 * width, 1))


def preactivated(block, depths, K: int, *, stem: int = 64, widths=(64, 128, 256, 512)):
    """3x3 stem, stages of such blocks of which all but the first halve the map, norm, mean, linear."""
    body, c_in = nn.Sequential(), stem
    for number, (n, width) in enumerate(zip(depths, widths, strict=True)):
        for i in range(n):
            body.append(block(c_in, width, stride=2 if number and not i else 1))
            c_in = block.expansion * width
    stem = nn.Conv2d(3, stem, 3, padding=1, bias=False)
    return book("densenet").Network(stem, body, c_out=c_in, num_classes=K)


def wideresnet(K: int, *, depth: int = 40, widen: int = 10) -> nn.Module:
    """6n + 4 layers, three stages of 16, 32 and 64 times `widen` channels (Zagoruyko 2016, table 1)."""
    n = (depth - 4) // 6
    widths = (16 * widen, 32 * widen, 64 * widen)
    return preactivated(PreActivation, (n, n, n), K, stem=16, widths=widths)


def resnext(depths, cardinality: int, width: int, K: int) -> nn.Module:
    """The paper's ImageNet network behind a 3x3 stem; only the 3x3 convolutions are grouped."""
    net = book("resnext")
    network = net.ResNeXt(depths, cardinality=cardinality, width=width)
    network.stem = nn.Sequential(net.conv_norm(3, 64, 3), nn.ReLU())
    network.classifier = nn.Linear(2048, K)
    net.he_init(network.stem)
    return network


def densenet(growth: int, depths, K: int) -> nn.Module:
    """DenseNet-BC of four blocks behind one 3x3 convolution of 2k channels, as on CIFAR (section 3)."""
    net = book("densenet")
    return net.DenseNet(growth, depths, stem=net.cifar_stem, c_stem=2 * growth, num_classes=K)


# ---- small networks ------------------------------------------------------------------------------


def shufflenet(K: int) -> nn.Module:
    """Version 1, three groups; the first 1x1 layer of stage 2 is not grouped (section 3.2)."""
    net = book("shufflenet")
    network = net.shufflenet_v1(3)
    network.stem = nn.Sequential(net.conv_norm(3, 24, 3), nn.ReLU())
    network.classifier = nn.Linear(network.classifier.in_features, K)
    return network


def shufflenetv2(K: int) -> nn.Module:
    """Version 2, 1x (table 5)."""
    net = book("shufflenet")
    network = net.shufflenet_v2("x1_0")
    network.stem = nn.Sequential(net.conv_norm(3, 24, 3), nn.ReLU())
    network.classifier = nn.Linear(network.classifier.in_features, K)
    return network


def mobilenet(K: int) -> nn.Module:
    """Version 1; the stem has stride 1, and four stages halve the map: 2x2 in the end."""
    network = book("cnn_evolution").MobileNet(num_classes=K)
    network.stem[0].stride = (1, 1)
    return network


def mobilenetv2(K: int) -> nn.Module:
    """Torchvision's; the stem has stride 1: 2x2 in the end."""
    from torchvision.models import mobilenet_v2

    network = mobilenet_v2(num_classes=K)
    network.features[0][0].stride = (1, 1)
    return network


def norm_relu(c_in: int, c_out: int, size: int) -> nn.Sequential:
    """Convolution with bias, batch norm, ReLU."""
    conv = nn.Conv2d(c_in, c_out, size, padding=size // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())


class Fire(nn.Module):
    """Squeeze by a 1x1, then 1x1 beside 3x3 (Iandola et al. 2016, figure 1), with batch norm."""

    def __init__(self, c_in: int, squeeze: int, expand: int):
        super().__init__()
        self.squeeze = norm_relu(c_in, squeeze, 1)
        self.expand1 = norm_relu(squeeze, expand, 1)
        self.expand3 = norm_relu(squeeze, expand, 3)

    def forward(self, x: Tensor) -> Tensor:
        # (B, c_in, H, W) -> (B, 2 * expand, H, W)
        x = self.squeeze(x)
        return torch.cat((self.expand1(x), self.expand3(x)), dim=1)


def squeezenet(K: int) -> nn.Module:
    """Version 1.0 (table 1) with batch norm; a 3x3 stem and three pools: 4x4 in the end."""
    return nn.Sequential(
        *(norm_relu(3, 96, 3), nn.MaxPool2d(2)),
        *(Fire(96, 16, 64), Fire(128, 16, 64), Fire(128, 32, 128), nn.MaxPool2d(2)),
        *(Fire(256, 32, 128), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256)),
        *(nn.MaxPool2d(2), Fire(512, 64, 256), nn.Dropout(0.5), nn.Conv2d(512, K, 1)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def smallnet(K: int) -> nn.Module:
    """Three 3x3 convolutions with group norm, mean, linear layer: to try the scripts on a CPU."""
    layers, c_in = [], 3
    for c in (16, 32, 64):
        layers += [nn.Conv2d(c_in, c, 3, stride=2, padding=1, bias=False)]
        layers += [nn.GroupNorm(4, c), nn.ReLU()]
        c_in = c
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, K))


# ---- by name -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """How a network is built, what form it has, the repository's parameters and why they differ."""

    build: Callable[[int], nn.Module]
    form: str
    repository: int | None = None
    differs: str = ""


BIASES = "biases in front of batch norm, which subtracts them"
NETWORKS: dict[str, Entry] = {}
for _size, _depth, _count in (
    ("A", 11, 28_518_244),
    ("B", 13, None),
    ("D", 16, 34_015_396),
    ("E", 19, 39_327_652),
):
    NETWORKS[f"vgg{_depth}"] = Entry(
        lambda K, size=_size: vgg(size, "ConvRelu", K),
        "VGG as published, without batch norm; try --lr 0.01 (that name has batch norm there)",
    )
    NETWORKS[f"vgg{_depth}_bn"] = Entry(
        lambda K, size=_size: vgg(size, "ConvNormRelu", K),
        "VGG with batch norm; five pools, 512 numbers into the classifier",
        _count,
    )
NETWORKS["googlenet"] = Entry(
    googlenet,
    "table 1 with 5x5 branches, 1x1 in the stem; batch norm, no auxiliary heads",
    6_402_564,
    "two 3x3 for each 5x5, a 3x3 for the 1x1 of the stem, biases; eps of batch norm set by mistake",
)
NETWORKS["inceptionv3"] = Entry(
    inceptionv3,
    "torchvision's Inception-v3 behind a stem of stride 1, no auxiliary head",
    22_318_148,
    "a 3x3 in place of the 1x1 behind the pooling of the first three modules",
)
NETWORKS["xception"] = Entry(
    xception,
    "timm's Xception, 728 channels in eight middle blocks; stem of stride 1",
    21_013_988,
    f"{BIASES} (of the four shortcuts)",
)
BASIC, BOTTLENECK = ("BasicBlock", PreActivation), ("Bottleneck", PreActivationBottleneck)
COUNTS = {
    "resnet18": 11_220_132,
    "resnet34": 21_328_292,
    "resnet50": 23_705_252,
    "resnet101": 42_697_380,
    "resnet152": 58_341_028,
    "preactresnet18": 11_222_244,
    "seresnet50": 26_262_804,
}
for _depth, (_block, _preact), _depths in (
    (18, BASIC, (2, 2, 2, 2)),
    (34, BASIC, (3, 4, 6, 3)),
    (50, BOTTLENECK, (3, 4, 6, 3)),
    (101, BOTTLENECK, (3, 4, 23, 3)),
    (152, BOTTLENECK, (3, 8, 36, 3)),
):
    NETWORKS[f"resnet{_depth}"] = Entry(
        lambda K, block=_block, depths=_depths: resnet(block, depths, K),
        "ResNet behind a 3x3 stem",
        COUNTS.get(f"resnet{_depth}"),
    )
    NETWORKS[f"preactresnet{_depth}"] = Entry(
        lambda K, block=_preact, depths=_depths: preactivated(block, depths, K),
        "ResNet with pre-activation, a norm behind the last block",
        COUNTS.get(f"preactresnet{_depth}"),
        f"{BIASES}; a norm behind the stem in place of the last one",
    )
    NETWORKS[f"seresnet{_depth}"] = Entry(
        lambda K, block=_block, depths=_depths: resnet(block, depths, K, change=excited),
        "ResNet with squeeze and excitation at the end of each branch, r = 16",
        COUNTS.get(f"seresnet{_depth}"),
        BIASES,
    )
NETWORKS["wideresnet"] = Entry(wideresnet, "Wide ResNet-40-10 without dropout", 55_914_020, BIASES)
NETWORKS["resnext50"] = Entry(
    lambda K: resnext((3, 4, 6, 3), 32, 4, K),
    "ResNeXt-50 32x4d, only the 3x3 grouped, behind a 3x3 stem",
    14_788_772,
    "the first 1x1 of each block is grouped, too",
)
NETWORKS["resnext101"] = Entry(
    lambda K: resnext((3, 4, 23, 3), 32, 8, K), "ResNeXt-101 32x8d behind a 3x3 stem"
)
for _name, _growth, _depths, _count in (
    ("densenet121", 32, (6, 12, 24, 16), 7_048_548),
    ("densenet161", 48, (6, 12, 36, 24), 26_681_188),
    ("densenet169", 32, (6, 12, 32, 32), None),
    ("densenet201", 32, (6, 12, 48, 32), None),
):
    NETWORKS[_name] = Entry(
        lambda K, growth=_growth, depths=_depths: densenet(growth, depths, K),
        "DenseNet-BC of ImageNet's depths behind a 3x3 convolution of 2k channels",
        _count,
    )
NETWORKS["shufflenet"] = Entry(
    shufflenet,
    "ShuffleNet 1x, g = 3, behind a 3x3 stem; first 1x1 of stage 2 not grouped",
    1_012_108,
    f"first 1x1 of stage 2 grouped; {BIASES}",
)
NETWORKS["shufflenetv2"] = Entry(
    shufflenetv2,
    "ShuffleNet V2 1x behind a 3x3 stem",
    1_360_896,
    f"the branch that halves the map keeps its channels up to the last 1x1; {BIASES}",
)
NETWORKS["mobilenet"] = Entry(
    mobilenet,
    "MobileNet 1x, stem of stride 1",
    3_315_428,
    f"{BIASES} (of the pointwise convolutions)",
)
NETWORKS["mobilenetv2"] = Entry(
    mobilenetv2,
    "torchvision's MobileNetV2 1x, stem of stride 1",
    2_369_380,
    f"a 1x1 stem, an expansion in the first block; {BIASES}",
)
NETWORKS["squeezenet"] = Entry(
    squeezenet, "SqueezeNet 1.0 with batch norm, which the paper has not; 3x3 stem", 781_156
)
NETWORKS["smallnet"] = Entry(
    smallnet, "three convolutions with group norm, 30 thousand parameters: to try the scripts"
)


def build(name: str, classes: int) -> nn.Module:
    """The network of that name: (B, 3, 32, 32) -> (B, classes)."""
    return NETWORKS[name].build(classes)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def main() -> None:
    for name, entry in NETWORKS.items():
        with torch.device("meta"):
            count = parameters(entry.build(100))
        other = "" if entry.repository in (None, count) else f"; there {entry.repository:,}"
        reason = f": {entry.differs}" if other and entry.differs else ""
        print(f"{name:<16} {count:>12,}  {entry.form}{other}{reason}")


if __name__ == "__main__":
    main()
