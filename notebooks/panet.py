# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # PANet
#
# A second way up on top of a feature pyramid, and heads that read all of its levels:
# paths counted on the graph of the network, and what a change of the lowest map does at
# the top.
# The text to it is the [chapter](../chapters/panet.rst), the paper is
# [Liu et al. 2018](https://arxiv.org/abs/1803.01534).

# %%
from collections import Counter

import matplotlib.pyplot as plt
import timm
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision import ops
from torchvision.models.detection import faster_rcnn, mask_rcnn

from workbench import claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, images, plots, pretrained, scenes

# %% [markdown]
# ## The pyramid so far
#
# The trunk gives a map for each of its stages, C2 to C5. The FPN brings them to one
# number of channels and adds to each what comes down from above.


# %% tags=["trunk"]
class Trunk(nn.Module):
    """The maps of a network for images, C2 to C5: 1/4, 1/8, 1/16, 1/32 of the side."""

    def __init__(self, stem: nn.Module, stages):
        super().__init__()
        self.stem = stem  # up to C2
        self.stages = nn.ModuleList(stages)

    def above(self, c2: Tensor) -> list[Tensor]:
        """C3 to C5."""
        maps = [c2]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def forward(self, x: Tensor) -> list[Tensor]:
        c2 = self.stem(x)
        return [c2, *self.above(c2)]


def resnet_trunk(resnet: nn.Module) -> Trunk:
    """A torchvision ResNet without its linear layer."""
    head = (resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool, resnet.layer1)
    stages = (resnet.layer2, resnet.layer3, resnet.layer4)
    return Trunk(nn.Sequential(*head), stages)


# %% tags=["pyramid"]
class FeaturePyramid(nn.Module):
    """1x1 convolutions, sums from the top down, 3x3 convolutions: C2 to C5 -> P2 to P5.

    Lin et al. 2016, section 3; no ReLU. Each P has c channels and the side of its C.
    """

    def __init__(self, channels, c: int = 256):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c_in, c, 1) for c_in in channels)
        self.output = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for _ in channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        merged = [self.lateral[-1](maps[-1])]  # from the top down
        for lateral, x in zip(self.lateral[-2::-1], maps[-2::-1]):
            coarser = F.interpolate(merged[-1], size=x.shape[-2:])
            merged.append(lateral(x) + coarser)
        return [conv(x) for conv, x in zip(self.output, merged[::-1])]


# %% tags=["fpn"]
class FPN(nn.Module):
    """Trunk and pyramid: (B, 3, H, W) -> P2 to P5."""

    def __init__(self, trunk: Trunk, channels, c: int = 256):
        super().__init__()
        self.trunk = trunk
        self.pyramid = FeaturePyramid(channels, c)

    def levels(self, maps: list[Tensor]) -> list[Tensor]:
        return self.pyramid(maps)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.levels(self.trunk(x))


# %% [markdown]
# ## The second way up


# %% tags=["step"]
class Step(nn.Module):
    """N_i, halved by a stride, plus P_i+1 -> N_i+1 (figure 2)."""

    def __init__(self, c: int):
        super().__init__()
        self.down = nn.Conv2d(c, c, 3, stride=2, padding=1)
        self.fuse = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, finer: Tensor, p: Tensor) -> Tensor:
        # (B, c, 2 H, 2 W) and (B, c, H, W) -> (B, c, H, W)
        halved = torch.relu(self.down(finer))
        return torch.relu(self.fuse(halved + p))


# %% tags=["step-shape"]
Step(256)(torch.randn(2, 256, 40, 56), torch.randn(2, 256, 20, 28)).shape


# %% tags=["path"]
class BottomUpPath(nn.Module):
    """P2 to P5 -> N2 to N5, N2 is P2 (section 3.1)."""

    def __init__(self, c: int = 256, *, levels: int = 4):
        super().__init__()
        self.steps = nn.ModuleList(Step(c) for _ in range(levels - 1))

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        found = [pyramid[0]]
        for step, p in zip(self.steps, pyramid[1:]):
            found.append(step(found[-1], p))
        return found


class PANet(FPN):
    """Trunk, pyramid, second way up: (B, 3, H, W) -> N2 to N5."""

    def __init__(self, trunk: Trunk, channels, c: int = 256):
        super().__init__(trunk, channels, c)
        self.path = BottomUpPath(c)

    def levels(self, maps: list[Tensor]) -> list[Tensor]:
        return self.path(super().levels(maps))


# %% tags=["sizes"]
RESNET = (256, 512, 1024, 2048)  # channels of C2 to C5


def panet(name: str = "resnet50", *, kind=PANet) -> FPN:
    resnet = getattr(torchvision.models, name)()
    return kind(resnet_trunk(resnet), RESNET)


# %% tags=["levels"]
with torch.device("meta"):
    network = panet()
    found = network(torch.empty(1, 3, 800, 800))
table(
    [(f"N{k}", *n.shape) for k, n in enumerate(found, 2)], ("level", "B", "C", "H", "W")
)

# %% tags=["overview-figure"] alt="Three columns of four boxes, the lowest level at the bottom. Left the trunk: C2, C3, C4, C5, with arrows upwards. Middle the pyramid: P5, P4, P3, P2, with arrows downwards and one arrow from each C to its P. Right N2, N3, N4, N5, with an arrow from each P to its N and, in another colour, arrows from C2 to P2, from P2 to N2 and up from N2 to N5."
axes = diagrams.sheet(3.3)
nodes = {}
for k in range(2, 6):
    for letter, x in (("C", 0.7), ("P", 2.5), ("N", 4.3)):
        nodes[f"{letter}{k}"] = diagrams.Node(
            x, 0.75 * (5 - k) + 0.6, f"${letter}_{k}$", 0.7
        )
for words, x in (("trunk", 0.7), ("pyramid", 2.5), ("second way up", 4.3)):
    nodes[words] = diagrams.Node(x, 0.2, words, weight="bold")
up = [(f"C{k}", f"C{k + 1}") for k in (2, 3, 4)]
down = [(f"P{k + 1}", f"P{k}") for k in (2, 3, 4)]
across = [(f"C{k}", f"P{k}") for k in (3, 4, 5)] + [
    (f"P{k}", f"N{k}") for k in (3, 4, 5)
]
new = [("C2", "P2"), ("P2", "N2")] + [(f"N{k}", f"N{k + 1}") for k in (2, 3, 4)]
diagrams.draw(axes, nodes, up + down + across, new)

# %% tags=["step-figure"] alt="One step of the second way up. N i goes into a 3x3 convolution of stride 2 and ReLU, then into a plus sign, where P i plus 1 joins from the left; then a 3x3 convolution and ReLU give N i plus 1."
axes = diagrams.sheet(1.6)
row = (
    ("$N_i$", 0.4, 0),
    ("3×3\nstride 2", 1.25, 0.9),
    ("ReLU", 2.1, 0),
    ("+", 2.7, 0),
    ("3×3", 3.25, 0.5),
    ("ReLU", 3.9, 0),
    ("$N_{i+1}$", 4.6, 0),
)
nodes = {}
for k, (word, x, width) in enumerate(row):
    nodes[str(k)] = diagrams.Node(x, 1.1, word, width)
nodes["p"] = diagrams.Node(2.7, 0.3, "$P_{i+1}$")
arrows = [(str(k), str(k + 1)) for k in range(6)]
diagrams.draw(axes, nodes, arrows, [("p", "3")])

# %% [markdown]
# ## Paths, counted
#
# The graph of a forward pass says which layer reads what. Each node of it takes over
# the paths that end in what it reads; a convolution makes each of them longer by one.


# %% tags=["lengths"]
def path_lengths(network: nn.Module, start: str) -> list[Counter]:
    """For each output: how many paths of how many convolutions lead there from `start`.

    start: the name of a module, whose last call counts, or of the input.
    """
    modules = dict(network.named_modules())
    nodes = fx.Tracer().trace(network).nodes
    names = {node: str(node.target) for node in nodes}
    begin = [n for n in nodes if f"{names[n]}.".startswith(f"{start}.")][-1]
    paths = {}
    for node in nodes:
        paths[node] = Counter()
        longer = isinstance(modules.get(names[node]), nn.Conv2d)
        read = [] if node.target is getattr else node.all_input_nodes  # a shape
        for source in read:
            for length, n in paths[source].items():
                paths[node][length + longer] += n
        if node is begin:
            paths[node] = Counter({0: 1})
    return [paths[one] for one in node.args[0]]


# %% tags=["lengths-run"]
with torch.device("meta"):
    built = {
        (name, kind): panet(name, kind=kind)
        for name in ("resnet50", "resnet101")
        for kind in (FPN, PANet)
    }
trunk_paths = {}
for name in ("resnet50", "resnet101"):
    for start in ("x", "trunk.stem"):
        trunk_paths[name, start] = path_lengths(built[name, FPN], start)[-1]

# %% tags=["lengths-table"]
rows = []
for (name, start), paths in trunk_paths.items():
    begin = "image" if start == "x" else "C2"
    short = f"{name}.{begin}"
    total = sum(paths.values())
    mean = sum(length * n for length, n in paths.items()) / total
    record(f"{short}.shortest", min(paths))
    record(f"{short}.longest", max(paths))
    record(f"{short}.paths", total)
    record(f"{short}.mean", mean)
    way = f"{begin} to P5, {name.replace('resnet', 'ResNet-')}"
    rows.append((way, min(paths), max(paths), f"{mean:.1f}", total))
new = path_lengths(built["resnet50", PANet], "pyramid.lateral.0")
((length, n),) = new[-1].items()
direct = length + 1  # the lateral convolution itself
record("direct", direct)
rows.append(("C2 to N5, second way up", direct, direct, f"{direct:.1f}", n))
table(rows, ("way", "shortest", "longest", "mean", "paths"))

# %% tags=["lengths-claims"]
paths = trunk_paths["resnet50", "trunk.stem"]
claim(min(paths) < direct < max(paths), "the new path lies between the trunk's lengths")
fewer = sum(count for length, count in paths.items() if length <= direct)
record("fewer", fewer)
record("fewer.share", fewer / sum(paths.values()))
claim(n == 1, "there is one path through the lateral convolution of C2 to N5")
old = path_lengths(built["resnet50", FPN], "pyramid.lateral.0")
claim(old[0] == Counter({1: 1}), "in the FPN that convolution reaches P2")
claim(not any(old[1:]), "and no other level")
deep = trunk_paths["resnet101", "x"]
claim(max(deep) > 100, "from the image through ResNet-101 there are more than 100")
claim(direct < 10, "the new path has fewer than 10")

# %% tags=["lengths-figure"] alt="Bars: number of paths from C2 to P5 through the trunk of ResNet-50 against the number of convolutions, a hill from 5 to 41 with its top near 23. A line at 8, named second way up, stands at the left foot of the hill."
_, axes = plt.subplots(figsize=(5, 2.6))
axes.bar(list(paths), list(paths.values()), color=plots.COLOURS[0], width=0.8)
axes.axvline(direct, color=plots.COLOURS[1])
axes.annotate(
    "second way up", (direct + 0.6, 0.93 * max(paths.values())), color=plots.COLOURS[1]
)
axes.set(xlabel="convolutions on the path", ylabel="paths")
plt.show()

# %% [markdown]
# ## What a change of the lowest map does at the top
#
# Twice the same C2 goes into the network: once into the trunk above it, once into the
# pyramid. So either can be changed alone.


# %% tags=["through"]
def by_trunk(network: FPN, c2: Tensor):
    """The levels as a function of what the trunk reads; the pyramid keeps `c2`."""
    return lambda changed: network.levels([c2, *network.trunk.above(changed)])


def by_path(network: FPN, c2: Tensor):
    """The levels as a function of what the pyramid reads; the trunk keeps `c2`."""
    above = network.trunk.above(c2)
    return lambda changed: network.levels([changed, *above])


# %% tags=["agreement"]
SHARE = 0.1  # of the norm of C2: the length of a step
TINY = 1e-4  # of the step: so far the derivative holds


@torch.no_grad()
def response(function, c2: Tensor, step: Tensor, *, share: float = SHARE) -> Tensor:
    """For each map that a function gives, the size of its derivative and a cosine.

    The derivative is that along `step`, taken from a tiny step. A change as large as C2
    counts as 1, and so does one as large as the map. The cosine is that of the change
    foretold and the change. Means over the images; (maps, 2).
    """
    step = step * norms(c2) / norms(step)
    before = function(c2)
    near = function(c2 + TINY * step)
    after = function(c2 + share * step)
    found = []
    for x, close, far in zip(before, near, after):
        foretold = (close - x) / TINY
        cosine = F.cosine_similarity(foretold.flatten(1), (far - x).flatten(1))
        found.append(((norms(foretold) / norms(x)).mean(), cosine.mean()))
    return torch.tensor(found)


def norms(x: Tensor) -> Tensor:
    """Of each image, (B, 1, 1, 1)."""
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


# %% [markdown]
# By hand: a ReLU reads two values. The second is off, so the derivative along (1, 1)
# leaves it out; a step of a tenth wakes it.

# %% tags=["waking"]
two = torch.tensor([1.0, -0.05])
foretold = torch.tensor([1.0, 0.0])
change = torch.relu(two + 0.1) - torch.relu(two)
torch.testing.assert_close(change, torch.tensor([0.1, 0.05]))
record("waking", F.cosine_similarity(foretold, change, dim=0))


# %% [markdown]
# Batch norm would let the images of a batch change each other, so it keeps the
# statistics of one batch of scenes. Two trunks: ResNet-50 as it begins, and
# EfficientNet-Lite0 trained on ImageNet. Two kinds of initial weights for what stands on
# them.


# %% tags=["settled"]
def settled(network: nn.Module, x: Tensor) -> nn.Module:
    """Let batch norm keep the statistics of x; evaluation mode from here on."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()(x)
    return network.eval()


def fresh(module: nn.Module, fill) -> None:
    """Initial weights; biases are zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fill(layer.weight)
            nn.init.zeros_(layer.bias)


# %% tags=["lite0"]
LITE0 = (24, 40, 112, 320)  # channels of C2 to C5


def trained_trunk() -> Trunk:
    """EfficientNet-Lite0, trained on ImageNet; weights from an installed package."""
    weights = pretrained.lite0_weights()
    lite = timm.create_model("tf_efficientnet_lite0")
    names = lite.state_dict()
    lite.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    blocks = lite.blocks
    stem = nn.Sequential(lite.conv_stem, lite.bn1, *blocks[:2])
    return Trunk(stem, (blocks[2], blocks[3:5], blocks[5:])).eval()


# %% tags=["data"]
SIDE = 64
scene = scenes.DigitScenes(SIDE).fixed("test", 8).images.to(device)
mean = scene.mean((0, 2, 3), keepdim=True)
x = (scene - mean) / scene.std((0, 2, 3), keepdim=True)

# %% tags=["data-shape"]
table([tuple(x.shape)], ("B", "C", "H", "W"))


# %% tags=["headline"]
SEEDS = (0, 1, 2)
FILLS = {
    "Xavier": lambda weight: nn.init.kaiming_uniform_(weight, a=1),
    "He": nn.init.kaiming_normal_,
}
measured = {}
kept = {}
for number in SEEDS:
    seed(number)
    resnet = settled(resnet_trunk(torchvision.models.resnet50()).to(device), x)
    trunks = {"resnet": (resnet, RESNET), "lite0": (trained_trunk().to(device), LITE0)}
    for trunk, (maps, channels) in trunks.items():
        with torch.no_grad():
            c2 = maps.stem(x[:4])
        here = c2[:2]
        step = c2[2:] - here  # from two scenes to two others
        for fill, method in FILLS.items():
            seed(number)
            network = PANet(maps, channels).to(device)
            fresh(network.pyramid, method)
            fresh(network.path, method)
            plain = FPN(maps, channels)
            plain.pyramid = network.pyramid  # the same weights
            ways = {"p5": by_trunk(plain, here), "n5": by_trunk(network, here)}
            ways["new"] = by_path(network, here)
            for way, levels in ways.items():
                measured[trunk, fill, way, number] = response(levels, here, step)[-1]
            kept[trunk, fill, number] = (network, here, step)

# %% tags=["headline-table"]
TRUNKS = {"resnet": "ResNet-50, initial", "lite0": "Lite0, trained"}
WAYS = {"p5": "trunk, to P5", "n5": "trunk, to N5", "new": "second way up, to N5"}
rows = []
results = {}
for trunk, fill, way in [(t, f, w) for t in TRUNKS for f in FILLS for w in WAYS]:
    found = [measured[trunk, fill, way, number].tolist() for number in SEEDS]
    sizes, cosines = zip(*found)
    results[trunk, fill, way] = (sizes, cosines)
    record_spread(f"{trunk}.{fill}.{way}.size", sizes)
    record_spread(f"{trunk}.{fill}.{way}.cosine", cosines)
    shown = (spread(sizes, ".2f"), spread(cosines, ".2f"))
    rows.append((TRUNKS[trunk], fill, WAYS[way], *shown))
table(rows, ("trunk", "weights", "way", "size", "cosine"))

# %% tags=["headline-claims"]
for trunk in TRUNKS:
    cosines = {key: values[1] for key, values in results.items() if key[0] == trunk}
    old = [max(values) for key, values in cosines.items() if key[2] != "new"]
    new = [min(values) for key, values in cosines.items() if key[2] == "new"]
    record(f"{trunk}.trunk.most", max(old))
    record(f"{trunk}.new.least", min(new))
    claim(max(old) < min(new), f"{trunk}: all weights and levels apart")
for trunk, bound in (("resnet", 0.4), ("lite0", 0.92)):
    for fill in FILLS:
        case = f"{trunk}, {fill}: "
        sizes, new = results[trunk, fill, "new"]
        claim(min(new) > 0.93, f"{case}by the new way the change is as foretold")
        for way in ("p5", "n5"):
            large, cosines = results[trunk, fill, way]
            claim(max(sizes) < min(large), f"{case}the derivative of {way} is larger")
            claim(max(cosines) < min(new), f"{case}by the trunk it is less so, {way}")
            claim(max(cosines) < bound, f"{case}the cosine of {way} is below {bound}")
with_he = results["lite0", "He", "new"][0]
claim(min(with_he) > max(results["lite0", "Xavier", "new"][0]), "He's are larger")


# %% [markdown]
# The same step changes the top by very different amounts. What if the steps are chosen so
# that the change foretold at the top is the same, a tenth of N5?

# %% tags=["same-top"]
tenth = {}
for trunk in TRUNKS:
    for way, function in (("n5", by_trunk), ("new", by_path)):
        sizes = results[trunk, "Xavier", way][0]
        for number, size in zip(SEEDS, sizes):
            network, here, step = kept[trunk, "Xavier", number]
            found = response(function(network, here), here, step, share=0.1 / size)
            tenth.setdefault((trunk, way), []).append(found[-1, 1].item())

# %% tags=["same-top-table"]
rows = []
for (trunk, way), cosines in tenth.items():
    record_spread(f"{trunk}.{way}.tenth", cosines)
    steps = [0.1 / size for size in results[trunk, "Xavier", way][0]]
    record_spread(f"{trunk}.{way}.step", steps)
    shown = (spread(steps, ".1%"), spread(cosines, ".2f"))
    rows.append((TRUNKS[trunk], WAYS[way], *shown))
table(rows, ("trunk", "way", "step of C2", "cosine"))
for trunk in TRUNKS:
    ahead = max(tenth[trunk, "new"]) > max(tenth[trunk, "n5"])
    claim(not ahead, f"{trunk}: the second way up is not ahead there")


# %% tags=["along"]
def along_trunk(network: FPN):
    """What C2 becomes: the map behind each block of the trunk, and P5."""
    blocks = [block for stage in network.trunk.stages for block in stage]
    end = nn.Sequential(network.pyramid.lateral[-1], network.pyramid.output[-1])

    def maps(changed: Tensor) -> list[Tensor]:
        found = [changed]
        for layer in (*blocks, end):
            found.append(layer(found[-1]))
        return found[1:]

    return maps


# %% tags=["along-run"]
curves = {"trunk": [], "second way up": []}
for number in SEEDS:
    network, here, step = kept["resnet", "Xavier", number]
    curves["trunk"].append(response(along_trunk(network), here, step)[:, 1])
    curves["second way up"].append(response(by_path(network, here), here, step)[:, 1])
curves = {way: torch.stack(runs) for way, runs in curves.items()}
lengths = {"trunk": [*range(3, 42, 3), 41], "second way up": [2, 4, 6, 8]}

# %% tags=["along-figure"] alt="Cosine between foretold and real change against the number of convolutions passed, bands of three seeds. The line of the second way up stays above 0.9 from 2 to 8 convolutions. The line of the trunk begins above 0.9 at 3 convolutions and falls below 0.4 at 41."
_, axes = plt.subplots(figsize=(5, 3))
for (way, runs), colour in zip(curves.items(), plots.COLOURS):
    plots.seed_band(axes, lengths[way], runs, colour)
axes.annotate("second way up, to N5", (9, 0.98), color=plots.COLOURS[1])
axes.annotate("trunk, to P5", (22, 0.6), color=plots.COLOURS[0])
axes.set(xlabel="convolutions passed", ylabel="cosine", ylim=(0, 1.08), xlim=(0, 43))
plt.show()

# %% tags=["along-claims"]
claim(curves["second way up"].min() > 0.93, "to N5 the change is as foretold")
claim(curves["trunk"][:, 0].min() > 0.93, "so it is after one block of the trunk")
claim(curves["trunk"][:, -1].max() < 0.4, "at P5 it is not")
claim((curves["trunk"][:, :-1].diff() < 0).all(), "it falls with each block")
record("curve.first", curves["trunk"][:, 0].mean())
record("curve.nine", curves["trunk"][:, 2].mean())

# %% [markdown]
# ## All levels for each box
#
# The FPN chooses one level for a box by its size. Adaptive feature pooling takes the
# same box from all levels, sends each through a first layer of its own and keeps the
# largest value.


# %% tags=["level"]
def assigned_level(boxes: Tensor) -> Tensor:
    """The level that the FPN reads for a box, 2 to 5 (Lin et al. 2016, equation 1)."""
    width = boxes[:, 2] - boxes[:, 0]
    height = boxes[:, 3] - boxes[:, 1]
    k = 4 + torch.log2(torch.sqrt(width * height) / 224)
    return torch.floor(k).clamp(2, 5).long()


# %% tags=["level-run"]
sides = torch.tensor([100.0, 223.0, 225.0, 600.0])
boxes = torch.stack((0 * sides, 0 * sides, sides, sides), dim=1)
chosen = assigned_level(boxes)
table(zip((100, 223, 225, 600), chosen), ("side in pixels", "level"))
claim(chosen.tolist() == [2, 3, 4, 5], "two pixels more, another level")


# %% tags=["pooled"]
def pooled(levels: list[Tensor], boxes: Tensor, size: int) -> list[Tensor]:
    """A grid for each box from each level: four times (N, c, size, size).

    boxes (N, 5): number of the image; left, top, right and bottom in its pixels.
    """
    grids = []
    for k, x in enumerate(levels, start=2):
        how = {"spatial_scale": 1 / 2**k, "sampling_ratio": 2}
        grids.append(ops.roi_align(x, boxes, size, **how))
    return grids


def fused(layers: nn.ModuleList, grids: list[Tensor]) -> Tensor:
    """Each grid through its own layer and ReLU, then the largest of each place."""
    each = [torch.relu(layer(x)) for layer, x in zip(layers, grids)]
    return torch.stack(each).amax(0)


# %% tags=["box-head"]
class BoxHead(nn.Module):
    """Four grids -> class scores (N, K) and a box for each class (N, 4 K).

    Section 3.2: the maximum stands behind the first of two linear layers.
    """

    def __init__(self, num_classes: int, *, c: int = 256, hidden: int = 1024):
        super().__init__()
        first = [nn.Linear(c * 7 * 7, hidden) for _ in range(4)]
        self.first = nn.ModuleList(first)
        self.second = nn.Linear(hidden, hidden)
        self.score = nn.Linear(hidden, num_classes)
        self.box = nn.Linear(hidden, 4 * num_classes)

    def features(self, grids: list[Tensor]) -> Tensor:
        x = fused(self.first, [grid.flatten(1) for grid in grids])
        return torch.relu(self.second(x))  # (N, hidden)

    def forward(self, grids: list[Tensor]) -> tuple[Tensor, Tensor]:
        x = self.features(grids)
        return self.score(x), self.box(x)


# %% tags=["box-run"]
levels = [torch.randn(1, 256, side, side) for side in (64, 32, 16, 8)]
box = torch.tensor([[0.0, 20.0, 30.0, 120.0, 90.0]])
scores, moves = BoxHead(81)(pooled(levels, box, 7))
table([("scores", *scores.shape), ("boxes", *moves.shape)], ("output", "N", "values"))


# %% tags=["mask-head"]
class MaskHead(nn.Module):
    """Four grids of 14x14 -> a mask for each class, (N, K, 28, 28).

    Section 3.3: convolutions say for each class, a linear layer for all classes alike,
    which pixels belong to the object; the two are added.
    """

    def __init__(self, num_classes: int, *, c: int = 256):
        super().__init__()
        first = [nn.Conv2d(c, c, 3, padding=1) for _ in range(4)]
        self.first = nn.ModuleList(first)
        self.conv2 = nn.Conv2d(c, c, 3, padding=1)
        self.conv3 = nn.Conv2d(c, c, 3, padding=1)
        self.conv4 = nn.Conv2d(c, c, 3, padding=1)
        self.up = nn.ConvTranspose2d(c, c, 2, stride=2)
        self.classes = nn.Conv2d(c, num_classes, 1)
        self.conv4_fc = nn.Conv2d(c, c, 3, padding=1)
        self.conv5_fc = nn.Conv2d(c, c // 2, 3, padding=1)
        self.linear = nn.Linear(c // 2 * 14 * 14, 28 * 28)

    def forward(self, grids: list[Tensor]) -> Tensor:
        x = fused(self.first, grids)  # (N, c, 14, 14)
        x = torch.relu(self.conv3(torch.relu(self.conv2(x))))
        y = torch.relu(self.up(torch.relu(self.conv4(x))))  # (N, c, 28, 28)
        z = torch.relu(
            self.conv5_fc(torch.relu(self.conv4_fc(x)))
        )  # (N, c / 2, 14, 14)
        whole = self.linear(z.flatten(1)).view(-1, 1, 28, 28)
        return self.classes(y) + whole  # (N, K, 28, 28)


# %% tags=["mask-run"]
MaskHead(81)(pooled(levels, box, 14)).shape

# %% tags=["mask-figure"] alt="The mask head. Four grids of 14x14 go through a 3x3 convolution each into a maximum, then conv2 and conv3. From there two ways: at the left conv4, a doubling of the side and a 1x1 convolution give 28x28 for each class; at the right, in another colour, conv4_fc, conv5_fc with half of the channels and a linear layer give 784 values, one mask for all classes. A plus sign adds both."
axes = diagrams.sheet(4.35)
nodes = {"in": diagrams.Node(2.5, 0.25, "four grids, 14×14")}
nodes["one"] = diagrams.Node(2.5, 0.75, "four 3×3", 1.2)
nodes["max"] = diagrams.Node(2.5, 1.2, "maximum")
nodes["mid"] = diagrams.Node(2.5, 1.65, "conv2, conv3", 1.4)
left = ("conv4", "×2 side", "1×1, K masks")
right = ("conv4_fc", "conv5_fc, c/2", "linear, 784")
for k, (a, b) in enumerate(zip(left, right)):
    nodes[f"a{k}"] = diagrams.Node(1.2, 2.3 + 0.55 * k, a, 1.6)
    nodes[f"b{k}"] = diagrams.Node(3.8, 2.3 + 0.55 * k, b, 1.6)
nodes["+"] = diagrams.Node(2.5, 4.0, "+")
nodes["out"] = diagrams.Node(3.6, 4.0, "28×28")
chain = [("in", "one"), ("one", "max"), ("max", "mid"), ("a0", "a1"), ("a1", "a2")]
chain += [("mid", (1.2, 1.65), "a0"), ("a2", (1.2, 4.0), "+"), ("+", "out")]
side = [("mid", (3.8, 1.65), "b0"), ("b0", "b1"), ("b1", "b2")]
side += [("b2", (3.8, 3.75), (2.5, 3.75), "+")]
diagrams.draw(axes, nodes, chain, side)

# %% [markdown]
# One box in the middle of a photograph grows from 160 to 320 pixels. How much do the
# features of a head change from one side to the next?


# %% tags=["centred"]
def centred(sides: Tensor, centre: float) -> Tensor:
    """Square boxes (N, 5) of image 0 around one point."""
    low = centre - sides / 2
    high = centre + sides / 2
    return torch.stack((0 * sides, low, low, high, high), dim=1)


def changes(features: Tensor) -> Tensor:
    """How far each row is from the next, relative to its norm: (N, D) -> (N - 1,)."""
    return (features[1:] - features[:-1]).norm(dim=1) / features[:-1].norm(dim=1)


class OneLevelHead(nn.Module):
    """The head of the FPN: one level for each box, one first layer: (N, hidden)."""

    def __init__(self, *, c: int, hidden: int):
        super().__init__()
        self.layers = faster_rcnn.TwoMLPHead(c * 7 * 7, hidden)

    def forward(self, grids: list[Tensor], boxes: Tensor) -> Tensor:
        level = assigned_level(boxes[:, 1:]) - 2
        number = torch.arange(len(boxes), device=boxes.device)
        return self.layers(torch.stack(grids)[level, number])


# %% tags=["jump"]
photograph = images.photograph(512, 512).to(device)
sides = torch.arange(160.0, 321.0, 4.0, device=device)
close = torch.tensor([223.99, 224.0], device=device)
moved = {}
for number in SEEDS:
    seed(number)
    network = PANet(trained_trunk(), LITE0, 64)
    fresh(network.pyramid, FILLS["Xavier"])
    fresh(network.path, FILLS["Xavier"])
    one = OneLevelHead(c=64, hidden=256).to(device)
    adaptive = BoxHead(81, c=64, hidden=256).to(device)
    with torch.no_grad():
        n = network.to(device)(2 * photograph - 1)
        for name, values in (("sides", sides), ("close", close)):
            boxes = centred(values, 256)
            grids = pooled(n, boxes, 7)
            moved["one level", name, number] = changes(one(grids, boxes)).cpu()
            moved["all levels", name, number] = changes(adaptive.features(grids)).cpu()

# %% tags=["jump-table"]
rows = []
at = sides.tolist().index(220)  # from 220 to 224
HEADS = ("one level", "all levels")
for head in HEADS:
    jumps = [moved[head, "sides", n][at].item() for n in SEEDS]
    usual = [moved[head, "sides", n].median().item() for n in SEEDS]
    least = [moved[head, "close", n].item() for n in SEEDS]
    short = head.split()[0]
    record_spread(f"jump.{short}", jumps)
    record_spread(f"usual.{short}", usual)
    record_spread(f"close.{short}", least)
    shown = (spread(usual, ".1%"), spread(jumps, ".1%"), spread(least, ".3%"))
    rows.append((head, *shown))
columns = ("the head reads", "median of 4 pixels", "220 to 224", "223.99 to 224")
table(rows, columns)

# %% tags=["jump-claims"]
for number in SEEDS:
    step = moved["one level", "sides", number]
    claim(step.argmax() == at, "the head of one level changes most from 220 to 224")
    claim(step[at] > 3 * step.median(), "by more than three times the median")
    step = moved["all levels", "sides", number]
    claim(step[at] < 1.5 * step.median(), "the head of all levels does not")
    claim(moved["one level", "close", number] > 0.1, "it jumps within 0.01 pixels")
    claim(moved["all levels", "close", number] < 0.001, "all levels: no jump")
usual = [[moved[head, "sides", n].median() for n in SEEDS] for head in HEADS]
claim(max(usual[0]) < min(usual[1]), "elsewhere the head of all levels changes more")

# %% tags=["jump-figure"] alt="Change of a head's features when a box grows by 4 pixels, against the side of the box, bands of three seeds. The line of the head that reads one level lies low but for a single high peak between 220 and 224 pixels. The line of the head that reads all levels stays low everywhere."
_, axes = plt.subplots(figsize=(5, 2.8))
middle = (sides[:-1] + 2).tolist()
for head, colour in zip(HEADS, plots.COLOURS):
    runs = torch.stack([moved[head, "sides", n] for n in SEEDS])
    plots.seed_band(axes, middle, runs, colour)
    top = runs.max().item()
    spot = (230, 0.8 * top) if head == "one level" else (255, 1.6 * top)
    axes.annotate(head, spot, color=colour)
axes.set(xlabel="side of the box in pixels", ylabel="change of the features", ylim=0)
plt.show()

# %% [markdown]
# ## Counted

# %% tags=["count"]
rows = []
with torch.device("meta"):
    maps = [
        torch.empty(1, c, 800 // 2**k, 800 // 2**k) for k, c in enumerate(RESNET, 2)
    ]
    p = FeaturePyramid(RESNET)(maps)
    grids = {size: 4 * [torch.empty(1, 256, size, size)] for size in (7, 14)}
    parts = {
        "pyramid": (FeaturePyramid(RESNET), maps),
        "path": (BottomUpPath(), p),
        "box": (BoxHead(81), grids[7]),
        "mask": (MaskHead(81), grids[14]),
    }

# %% tags=["count-table"]
NAMES = {
    "pyramid": "pyramid, 800×800",
    "path": "second way up, 800×800",
    "box": "box head, one box",
    "mask": "mask head, one box",
}
for name, (part, given) in parts.items():
    parameters = counting.parameters(part)
    macs = counting.macs(part, given)
    record(f"{name}.parameters", parameters)
    record(f"{name}.gmacs", macs / 1e9)
    rows.append((NAMES[name], parameters, f"{macs / 1e9:.2f}"))
table(rows, ("part", "parameters", "G MACs"))
with torch.device("meta"):
    whole = panet()
    record("panet50.parameters", counting.parameters(whole))
    record("panet50.macs", counting.macs(whole, torch.empty(1, 3, 800, 800)))

# %% tags=["count-claims"]
with torch.device("meta"):
    theirs = ops.FeaturePyramidNetwork(list(RESNET), 256)
    two = faster_rcnn.TwoMLPHead(256 * 7 * 7, 1024)
same = counting.parameters(theirs) == counting.parameters(parts["pyramid"][0])
claim(same, "the pyramid has as many parameters as that of torchvision")
first = 256 * 7 * 7 * 1024 + 1024
rest = counting.parameters(parts["box"][0].score) + counting.parameters(
    parts["box"][0].box
)
expected = counting.parameters(two) + 3 * first + rest
claim(counting.parameters(parts["box"][0]) == expected, "three first layers more")
record("first.parameters", first)
claim(counting.macs(*parts["path"]) < counting.macs(*parts["pyramid"]), "path cheaper")

# %% [markdown]
# ## Equal to torchvision
#
# With the first layers of the other levels at zero their grids give zero behind the
# ReLU, and the maximum is what one level gives: the head of torchvision on that level.


# %% tags=["one-level"]
@torch.no_grad()
def only(head: nn.Module, level: int) -> nn.Module:
    """The head with the first layers of all levels but one at zero."""
    for k, layer in enumerate(head.first):
        if k != level:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return head


def copied(pairs) -> None:
    """Copy parameters from the second module of each pair into the first."""
    for ours, theirs in pairs:
        checks.transplant(theirs, ours)


# %% tags=["equal"]
seed(0)
rows = []
maps = [
    torch.randn(2, c, 75 // 2**k, 50 // 2**k) for k, c in enumerate((24, 40, 112, 320))
]
theirs = ops.FeaturePyramidNetwork([24, 40, 112, 320], 32)
ours = FeaturePyramid((24, 40, 112, 320), 32)
checks.transplant(theirs, ours)
expected = theirs({str(k): x for k, x in enumerate(maps)}).values()
found = [checks.deviation(a, b) for a, b in zip(ours(maps), expected)]
rows.append(("P2 to P5", "FeaturePyramidNetwork", max(found)))

# %% tags=["equal-heads"]
levels = [torch.randn(1, 16, 128 // 2**k, 96 // 2**k) for k in range(4)]
boxes = torch.tensor(
    [[10.0, 20.0, 90.0, 60.0], [0.0, 0.0, 300.0, 400.0], [5.0, 5, 9, 9]]
)
numbered = torch.cat((torch.zeros(3, 1), boxes), dim=1)
for level in range(4):
    grid = {}
    for size in (7, 14):
        pool = ops.MultiScaleRoIAlign([str(level)], size, 2)
        grid[size] = pool({str(level): levels[level]}, [boxes], [(512, 384)])
    head = only(BoxHead(5, c=16, hidden=32), level)
    two = faster_rcnn.TwoMLPHead(16 * 7 * 7, 32)
    last = faster_rcnn.FastRCNNPredictor(32, 5)
    copied([(head.first[level], two.fc6), (head.second, two.fc7)])
    copied([(head.score, last.cls_score), (head.box, last.bbox_pred)])
    pairs = zip(head(pooled(levels, numbered, 7)), last(two(grid[7])))
    found = max(checks.deviation(a, b) for a, b in pairs)
    rows.append((f"box head, level {level + 2} alone", "Faster R-CNN's head", found))
    head = only(MaskHead(5, c=16), level)
    nn.init.zeros_(head.linear.weight)
    nn.init.zeros_(head.linear.bias)
    body = mask_rcnn.MaskRCNNHeads(16, (16, 16, 16, 16), 1)
    last = mask_rcnn.MaskRCNNPredictor(16, 16, 5)
    convs = (head.first[level], head.conv2, head.conv3, head.conv4)
    copied([(conv, block[0]) for conv, block in zip(convs, body)])
    copied([(head.up, last.conv5_mask), (head.classes, last.mask_fcn_logits)])
    found = checks.deviation(head(pooled(levels, numbered, 14)), last(body(grid[14])))
    rows.append((f"mask head, level {level + 2} alone", "Mask R-CNN's head", found))

# %% tags=["equal-table"]
worst = {}
for part, reference, found in rows:
    name = (part.split(",")[0], reference)
    worst[name] = max(found, worst.get(name, 0.0))
claim(max(worst.values()) < 1e-5, "equal to torchvision")
record("deviation", max(worst.values()))
shown = [(*name, f"{found:.1e}") for name, found in worst.items()]
table(shown, ("part", "torchvision", "largest difference"))

# %% tags=["equal-levels"]
seed(0)
sides = 700 * torch.rand(10_000, 2) + 1
boxes = torch.cat((torch.zeros_like(sides), sides), dim=1)
theirs = ops.poolers.LevelMapper(2, 5)([boxes]) + 2
claim(
    (assigned_level(boxes) == theirs).all(), "10,000 boxes: the levels of torchvision"
)

# %% [markdown]
# ## Look inside
#
# What can the linear layer of the mask head say that convolutions cannot? Give the head
# the same values at each pixel. Away from the border a convolution then gives one value
# for all pixels of a class.

# %% tags=["views"]
seed(0)
head = MaskHead(3, c=32)
same = 4 * [torch.randn(1, 32, 1, 1).expand(-1, -1, 14, 14)]
with torch.no_grad():
    both = head(same)
    nn.init.zeros_(head.linear.weight)
    nn.init.zeros_(head.linear.bias)
    convolutions = head(same)
layer = both - convolutions
record("views.layer", layer.std())

# %% tags=["views-figure"] alt="Two masks of 28x28 pixels for an input that is the same everywhere. By the convolutions: one value but for a fine grid and the border. By the linear layer: noise, another value at each pixel."
pictures = (convolutions[0, 0], layer[0, 0])
plots.image_grid(pictures, ("convolutions", "linear layer"), columns=2, scale=2)
plt.show()

# %% tags=["views-claims"]
inner = convolutions[0, :, 8:20, 8:20]  # no border within four convolutions
for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):  # the places of the doubled side
    values = inner[:, i::2, j::2].flatten(1)
    flat = (values.amax(1) - values.amin(1)).max()
    claim(flat < 1e-5, "by convolutions all inner pixels of one kind are equal")
claim(layer[0, 0].std() > 0.01, "by the linear layer they differ")
claim(layer[0].std(0).max() < 1e-5, "it says the same for all classes")

# %% [markdown]
# ## What we saw
#
# - The second way up has 8 convolutions; through the trunk there are 5 to 41, because
#   ResNet's shortcuts make short paths, too.
# - The derivative by the trunk is larger, and for a step of a tenth it holds less than
#   that by the second way up. At an equal change foretold the second way up is not
#   ahead.
# - A head that reads all levels has no jump where the FPN changes the level.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
blocks = 4 + 6 + 3  # of stages 3 to 5
longest = 3 * blocks + 2  # three convolutions each; lateral, output
shortest = 3 + 2  # a projection where a stage begins
number_of_paths = 2**blocks

# %% tags=["solution-1-result"]
by_hand = (shortest, longest, number_of_paths)
counted = (min(paths), max(paths), sum(paths.values()))
claim(by_hand == counted, "by hand as on the graph")
table(
    [("by hand", *by_hand), ("counted", *counted)],
    ("made", "shortest", "longest", "paths"),
)


# %% tags=["solution-2"]
class ShorterPath(BottomUpPath):
    """The way up goes through the sums; the last 3x3 of a level stands beside it."""

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        sums = [pyramid[0]]
        found = [pyramid[0]]
        for step, p in zip(self.steps, pyramid[1:]):
            sums.append(torch.relu(step.down(sums[-1])) + p)
            found.append(torch.relu(step.fuse(sums[-1])))
        return found


# %% tags=["solution-2-result"]
with torch.device("meta"):
    network = panet()
    network.path = ShorterPath()
(shorter,) = path_lengths(network, "pyramid.lateral.0")[-1]
record("shorter", shorter + 1)
claim(shorter + 1 == 6, "six convolutions instead of eight")
shown = [("here", direct), ("the last 3×3 beside the way", shorter + 1)]
table(shown, ("second way up", "convolutions from C2 to N5"))

# %% tags=["solution-3"]
shares = {}
for trunk in TRUNKS:
    network, here, step = kept[trunk, "Xavier", 0]
    for share in (0.01, 0.3):
        for way in (by_trunk, by_path):
            found = response(way(network, here), here, step, share=share)
            shares[trunk, share, way.__name__] = found[-1, 1].item()

# %% tags=["solution-3-result"]
rows = []
for trunk in TRUNKS:
    for share in (0.01, 0.3):
        found = [shares[trunk, share, way] for way in ("by_trunk", "by_path")]
        rows.append((TRUNKS[trunk], f"{share:.1%}", *(f"{c:.3f}" for c in found)))
        claim(found[0] < found[1], f"{trunk}, {share}: less as foretold by the trunk")
claim(shares["lite0", 0.01, "by_trunk"] > 0.95, "Lite0, 1%: nearly as foretold")
claim(shares["resnet", 0.01, "by_trunk"] < 0.7, "ResNet, 1%: not so")
for trunk in TRUNKS:
    claim(shares[trunk, 0.3, "by_trunk"] < 0.6, f"{trunk}, 30%: far from it")
    claim(shares[trunk, 0.3, "by_path"] > 0.8, f"{trunk}, 30%: nearer by the new way")
table(rows, ("trunk", "step", "trunk, to N5", "second way up"))

# %% tags=["solution-4"]
seed(0)
network = PANet(trained_trunk(), LITE0, 64).to(device)
head = BoxHead(81, c=64, hidden=256).to(device)
sides = torch.tensor([64.0, 128.0, 256.0, 448.0], device=device)
with torch.no_grad():
    grids = pooled(network(2 * photograph - 1), centred(sides, 256), 7)
    each = [layer(x.flatten(1)) for layer, x in zip(head.first, grids)]
    best = torch.stack(each).argmax(0)  # (N, hidden): the level of each maximum

# %% tags=["solution-4-result"]
rows = []
for side, row in zip((64, 128, 256, 448), best.cpu()):
    count = torch.bincount(row, minlength=4) / len(row)
    rows.append((side, *(f"{value:.0%}" for value in count)))
    claim(count.min() > 0.05, f"side {side}: maxima come from every level")
table(rows, ("side in pixels", "N2", "N3", "N4", "N5"))
