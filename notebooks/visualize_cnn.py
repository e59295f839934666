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
# # Seeing what a CNN sees
#
# Filters, maps, the picture that a filter wants, and where in a photograph an answer comes
# from: each method in a few lines, compared with Captum, and tested on what it promises.
# The text to it is the [chapter](../chapters/visualize_cnn.rst), the first of the papers
# is [Zeiler and Fergus 2013](https://arxiv.org/abs/1311.2901).

# %%
import copy
import warnings
from contextlib import contextmanager
from typing import NamedTuple

import matplotlib.pyplot as plt
import timm
import torch
import torchvision
from captum import attr
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import PROFILE, checks, claim, device, diagrams, downloads, images
from workbench import plots, pretrained, record, record_spread, seed, sources, spread
from workbench import table

seed(0)

# %% [markdown]
# ## A network and four photographs
#
# EfficientNet-Lite0 with the weights of an installed package. Its ReLUs must not write over
# their inputs, which hooks will read.

# %% tags=["network"]
CLASSES = torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]


def trained_lite0() -> nn.Module:
    """EfficientNet-Lite0, trained on ImageNet, in evaluation mode."""
    weights = pretrained.lite0_weights()
    network = timm.create_model("tf_efficientnet_lite0")
    network.load_state_dict(dict(zip(network.state_dict(), weights.values())))
    return separate(network).eval().requires_grad_(False)


def separate(network: nn.Module) -> nn.Module:
    """The same network, none of whose layers overwrites its input."""
    for layer in network.modules():
        if isinstance(layer, (nn.ReLU, nn.ReLU6)):
            layer.inplace = False
    return network


# %% tags=["pictures"]
BOXES = {  # drawn by hand on the squares of 224 pixels: left, top, right, bottom
    "coffee": (40, 8, 184, 130),
    "rocket": (104, 68, 122, 218),
    "flower": (34, 46, 182, 190),
    "china": (0, 16, 126, 196),
}


def square(picture: Tensor, size: int) -> Tensor:
    """The middle square of a picture (3, H, W), 0..255, as (3, size, size) in -1..1."""
    H, W = picture.shape[1:]
    side = min(H, W)
    top = (H - side) // 2
    left = (W - side) // 2
    x = picture[None, :, top : top + side, left : left + side].float() / 255
    x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True)
    return 2 * x[0].clamp(0, 1) - 1


# %% tags=["data"]
network = trained_lite0().to(device)
pictures = images.photographs()
sources.append("ten photographs from the packages scikit-image and scikit-learn")
x = torch.stack([square(pictures[name], 224) for name in BOXES]).to(device)
labels = network(x).argmax(1)  # the classes that the network names

# %% tags=["answers"]
areas = {}
rows = []
chances = network(x).softmax(1).amax(1).tolist()
for name, label, chance in zip(BOXES, labels.tolist(), chances):
    left, top, right, bottom = BOXES[name]
    areas[name] = (right - left) * (bottom - top) / 224**2
    rows.append((name, CLASSES[label], f"{chance:.2f}", f"{areas[name]:.0%}"))
found = [CLASSES[label] for label in labels.tolist()]
claim(found == ["espresso", "missile", "daisy", "palace"], "the answers of the text")
table(rows, ("photograph", "first answer", "probability", "area of the box"))

# %% tags=["questions-figure"] alt="From left to right: a picture, an arrow to a box of layers, an arrow to a unit, an arrow to the score of a class. Below, three arrows run back from right to left or end at the layers: what is in a map stops at the layers; which picture would raise a unit runs from the unit back to the picture; where the score comes from runs from the score back to the picture."
axes = diagrams.sheet(2.1)
nodes = {
    "picture": diagrams.Node(0.6, 0.35, "picture", 0.9),
    "layers": diagrams.Node(2.0, 0.35, "layers", 0.9),
    "unit": diagrams.Node(3.2, 0.35, "unit", 0.7),
    "score": diagrams.Node(4.4, 0.35, "score", 0.8),
    "hooks": diagrams.Node(2.0, 1.02, "1  what a map holds"),
    "ascent": diagrams.Node(1.9, 1.4, "2  the picture it wants"),
    "back": diagrams.Node(2.5, 1.78, "3  where it comes from"),
}
forward = [("picture", "layers"), ("layers", "unit"), ("unit", "score")]
back = [("unit", (3.2, 1.4), "ascent"), ("ascent", (0.5, 1.4), (0.5, 0.52))]
back += [("score", (4.4, 1.78), "back"), ("back", (0.3, 1.78), (0.3, 0.52))]
diagrams.draw(axes, nodes, forward, [("layers", "hooks"), *back])
axes.set_axisbelow(True)

# %% [markdown]
# ## Filters
#
# A filter of the first layer has three channels, so it is a picture.


# %% tags=["filters"]
def as_pictures(weight: Tensor) -> Tensor:
    """Filters (N, 3, k, k) as colours: each over its largest weight, grey for 0."""
    largest = weight.abs().amax((1, 2, 3), keepdim=True)
    return (weight / largest.clamp(min=1e-6) + 1) / 2


# %% tags=["resnet"]
WEIGHTS = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
SHA256 = "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca"
seed(0)
resnet = torchvision.models.resnet50()
if PROFILE == "full":
    file = downloads.place("resnet50-11ad3fa6.pth", [WEIGHTS.url], SHA256)
    resnet.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    sources.append("weights of ResNet-50, IMAGENET1K_V2 of torchvision")
resnet = separate(resnet).eval().requires_grad_(False).to(device)

# %% tags=["filters-figure"] alt="Two rows of nine filters as small pictures. Above, 3x3 pixels, trained: several have purple on one side and green on the other. Below, 7x7 pixels with initial weights: coloured noise."
first = network.conv_stem.weight
largest = first.abs().amax((1, 2, 3)).topk(9).indices.sort().values
shown = [*as_pictures(first[largest]), *as_pictures(resnet.conv1.weight[:9])]
plots.image_grid(shown, columns=9, scale=0.55)

# %% [markdown]
# ## Maps
#
# A hook is a function that a layer calls with what it has computed.


# %% tags=["outputs"]
def outputs(network: nn.Module, names, x: Tensor) -> dict[str, Tensor]:
    """What the layers of these names give for x, from one pass."""
    found = {}
    handles = []
    for name in names:

        def keep(layer, inputs, output, name=name):
            found[name] = output

        handles.append(network.get_submodule(name).register_forward_hook(keep))
    try:
        network(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


# %% tags=["outputs-run"]
STAGES = ("bn1", *(f"blocks.{number}" for number in range(7)))
maps = outputs(network, STAGES, square(pictures["chelsea"], 224)[None].to(device))
[tuple(maps[name].shape[1:]) for name in STAGES]

# %% tags=["maps-figure"] alt="Four rows of five maps of one photograph, a cat's face. In the first row, 112x112, the face is plain to see: eyes, nose, fur; in the second, 28x28, coarse squares still show eyes and nose; in the third, 14x14, dark and bright spots; in the last 7x7 squares show no cat."
rows = ("bn1", "blocks.2", "blocks.4", "blocks.6")
_, frames = plt.subplots(4, 5, figsize=(5, 4.2))
for line, name in zip(frames, rows):
    strongest = maps[name][0].var((1, 2)).topk(5).indices.sort().values
    side = maps[name].shape[-1]
    shown = F.adaptive_avg_pool2d(maps[name][0, strongest], min(side, 56))
    for frame, picture in zip(line, shown.cpu()):
        frame.imshow(picture)
        frame.set(xticks=[], yticks=[])
    line[0].set_ylabel(f"{side}×{side}", fontsize=11)
line[0].set_axisbelow(True)

# %% [markdown]
# ## What a unit sees
#
# A unit is one number of a map. Its window in the picture follows from the kernels and
# strides on the way.


# %% tags=["field"]
class Field(NamedTuple):
    """The window of a unit: its side, pixels from unit to unit, first one of unit 0."""

    size: int
    step: int
    start: int


def receptive_field(layers) -> Field:
    """The window behind layers of (kernel, stride, zeros in front), in their order."""
    size = 1
    step = 1
    start = 0
    for kernel, stride, zeros in layers:
        size += (kernel - 1) * step
        start -= zeros * step
        step *= stride
    return Field(size, step, start)


# %% tags=["windows"]
def windows(network: nn.Module) -> list[tuple[int, int, int]]:
    """(kernel, stride, zeros in front) of convolutions and pools, not of shortcuts."""
    found = []
    for name, layer in network.named_modules():
        if "downsample" in name or not isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            continue
        values = (layer.kernel_size, layer.stride, layer.padding)
        kernel, stride, zeros = (v if isinstance(v, int) else v[0] for v in values)
        if isinstance(layer, Conv2dSame):  # TensorFlow's: fewer zeros in front, or none
            zeros = (kernel - stride) // 2
        found.append((kernel, stride, zeros))
    return found


def up_to(network: nn.Module, stage: int) -> nn.Sequential:
    """Lite0 up to one of its seven stages; up to the first convolution for 0."""
    if stage == 0:
        return nn.Sequential(network.conv_stem)
    return nn.Sequential(network.conv_stem, network.bn1, *network.blocks[:stage])


# %% tags=["layers-table"]
LAYERS = ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4")
children = dict(resnet.named_children())
with torch.device("meta"):
    bare = torchvision.models.resnet50()
    shapes = outputs(bare, LAYERS, torch.empty(1, 3, 224, 224))
rows = []
for name in LAYERS:
    names = list(children)[: list(children).index(name) + 1]
    field = receptive_field(windows(nn.ModuleDict({n: children[n] for n in names})))
    if name in ("layer3", "layer4"):
        claim(field.size > 224, "the window is larger than the picture")
    C, H, W = shapes[name].shape[1:]
    rows.append((name, f"{C} of {H}×{W}", field.size, field.step))
table(rows, ("ResNet-50 up to", "maps", "window", "step"))


# %% tags=["reach"]
def reach(features: nn.Module, place: int, side: int) -> tuple[int, int]:
    """First and last row of pixels that move the units of a place, by the gradient."""
    where = next(features.parameters()).device
    x = torch.rand(1, 3, side, side, device=where).requires_grad_()
    (gradient,) = torch.autograd.grad(features(x)[0, :, place, place].sum(), x)
    touched = gradient.abs().sum((0, 1, 3)).nonzero()
    return touched.min().item(), touched.max().item()


# %% [markdown]
# ## The picture that a unit wants
#
# Gradient ascent on the picture. Its unknowns are the picture's waves (a Fourier series),
# slow ones scaled up as in photographs, in colours that vary together as in photographs.


# %% tags=["waves"]
def wave_scale(side: int, power: float = 1) -> Tensor:
    """Each wave's frequency to the power -1: (side, side / 2 + 1), of mean square 1."""
    down = torch.fft.fftfreq(side)[:, None]
    across = torch.fft.rfftfreq(side)[None]
    frequency = (down.square() + across.square()).sqrt().clamp(min=1 / side)
    scale = frequency**-power
    return scale / scale.square().mean().sqrt()


def colour_axes(x: Tensor) -> Tensor:
    """Axes of the colours of pictures (N, 3, H, W), as columns, the longest 1."""
    values, vectors = torch.linalg.eigh(torch.cov(x.transpose(0, 1).flatten(1)))
    axes = vectors * values.clamp(min=0).sqrt()
    return axes / axes.norm(dim=0).max()


def painted(waves: Tensor, scale: Tensor, colours: Tensor) -> Tensor:
    """Pictures (N, 3, side, side) in -1..1 from waves (N, 3, side, side / 2 + 1, 2)."""
    side = len(scale)
    spectrum = torch.view_as_complex(waves) * scale
    x = torch.fft.irfft2(spectrum, s=(side, side), norm="ortho")
    return torch.tanh(torch.einsum("oc,nchw->nohw", colours, x))


# %% tags=["preferred"]
def preferred(features, channels, place: int, side: int, colours, *, power=1, steps=24):
    """Pictures (N, 3, side, side) that raise one channel each at a place; how far."""
    scale = wave_scale(side, power).to(colours.device)
    waves = 0.3 * torch.randn(len(channels), 3, side, side // 2 + 1, 2)
    waves = waves.to(colours.device).requires_grad_()
    optimizer = torch.optim.Adam([waves], lr=0.1)
    own = torch.arange(len(channels))
    for _ in range(steps):
        x = painted(waves, scale, colours)
        raised = features(x)[own, channels, place, place]
        optimizer.zero_grad()
        (-raised.sum()).backward()
        optimizer.step()
    with torch.no_grad():
        x = painted(waves, scale, colours)
        return x, features(x)[own, channels, place, place]


# %% tags=["best-patches"]
class Patch(NamedTuple):
    """The window of a photograph that raises a channel most: how far, and where."""

    value: float
    number: int  # of the photograph
    top: int
    left: int


@torch.no_grad()
def best_patches(features, field: Field, x: Tensor, channels) -> list[Patch]:
    """Over all places of pictures (N, 3, H, H) whose window lies within the picture."""
    low = -(field.start // field.step)
    high = (x.shape[-1] - field.size - field.start) // field.step
    maps = torch.cat([features(one) for one in x.split(1)])
    maps = maps[:, :, low : high + 1, low : high + 1]
    found = []
    for channel in channels:
        values = maps[:, channel]
        place = torch.unravel_index(values.argmax(), values.shape)
        number, row, column = (index.item() for index in place)
        top = field.start + (low + row) * field.step
        left = field.start + (low + column) * field.step
        found.append(Patch(values.max().item(), number, top, left))
    return found


def cut_out(patch: Patch, album: Tensor, size: int) -> Tensor:
    """The pixels of a patch, a window of `size` pixels a side: (3, size, size)."""
    picture = album[patch.number]
    return picture[:, patch.top : patch.top + size, patch.left : patch.left + size]


# %% [markdown]
# ## Where an answer comes from


# %% tags=["saliency"]
def gradient(network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """How the score of its class changes with each value of each picture: as x."""
    x = x.detach().requires_grad_()
    scores = network(x)[torch.arange(len(x)), labels]
    return torch.autograd.grad(scores.sum(), x)[0]


def saliency(network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Heat (N, H, W): the largest gradient of three colours (Simonyan et al. 2013)."""
    return gradient(network, x, labels).abs().amax(1)


# %% tags=["guided"]
@contextmanager
def guided(network: nn.Module):
    """Inside, no ReLU passes a negative gradient back (Springenberg et al. 2014)."""

    def cut(layer, to_input, from_output):
        return (to_input[0].clamp(min=0),)

    relus = [m for m in network.modules() if isinstance(m, (nn.ReLU, nn.ReLU6))]
    handles = [relu.register_full_backward_hook(cut) for relu in relus]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# %% tags=["grad-cam"]
def grad_cam(network: nn.Module, layer: str, x: Tensor, labels: Tensor) -> Tensor:
    """Heat (N, h, w) on a layer's maps (Selvaraju et al. 2016, equations 1 and 2)."""
    found = outputs(network, (layer, ""), x.detach().requires_grad_())
    maps = found[layer]
    scores = found[""][torch.arange(len(x)), labels]  # "" is the network itself
    (slope,) = torch.autograd.grad(scores.sum(), maps)
    weights = slope.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
    return torch.relu((weights * maps).sum(1)).detach()


def enlarged(heat: Tensor, size: int) -> Tensor:
    """Heat (N, h, w) as (N, size, size), linear between the places."""
    return F.interpolate(heat[:, None], size=(size, size), mode="bilinear")[:, 0]


# %% tags=["occlusion"]
@torch.no_grad()
def occlusion(network: nn.Module, x: Tensor, labels: Tensor, *, side=64, step=32):
    """Heat (N, H, W): what the score loses on average under grey squares there."""
    N, _, H, W = x.shape
    own = torch.arange(N)
    whole = network(x)[own, labels]
    lost = x.new_zeros(N, H, W)
    covered = x.new_zeros(H, W)
    for top in range(0, H - side + 1, step):
        for left in range(0, W - side + 1, step):
            area = (..., slice(top, top + side), slice(left, left + side))
            hidden = x.clone()
            hidden[area] = 0
            lost[area] += (whole - network(hidden)[own, labels])[:, None, None]
            covered[area] += 1
    return lost / covered.clamp(min=1)


# %% [markdown]
# ## Checks
#
# Against Captum, on ResNet-50, and against what must hold without any library.

# %% tags=["captum"]
seed(0)
small = torch.randn(2, 3, 64, 64, device=device)
wanted = torch.tensor([3, 7], device=device)
with guided(resnet):
    ours = {"guided": gradient(resnet, small, wanted)}
ours["saliency"] = saliency(resnet, small, wanted)
ours["cam"] = grad_cam(resnet, "layer3", small, wanted)
ours["occlusion"] = occlusion(resnet, small, wanted, side=32, step=16)

# %% tags=["captum-run"]
theirs = {}
cam = attr.LayerGradCam(resnet, resnet.layer3)
theirs["cam"] = cam.attribute(small, wanted, relu_attributions=True)[:, 0]
how = {"strides": (3, 16, 16), "sliding_window_shapes": (3, 32, 32)}
hidden = attr.Occlusion(resnet).attribute(small, target=wanted, **how)
theirs["occlusion"] = hidden[:, 0]
leaf = small.clone().requires_grad_()
theirs["saliency"] = attr.Saliency(resnet).attribute(leaf, wanted).amax(1)
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Setting backward hooks")
    theirs["guided"] = attr.GuidedBackprop(resnet).attribute(leaf, wanted)
    on_lite0 = attr.GuidedBackprop(network).attribute(leaf, wanted)

# %% tags=["captum-lite0"]
plain = gradient(network, small, wanted)
with guided(network):
    cut = gradient(network, small, wanted)
claim(
    checks.deviation(on_lite0, plain) < 1e-6, "Captum's is the plain gradient on Lite0"
)
claim(checks.deviation(cut, plain) > 0.1, "ours is not")

# %% tags=["by-hand"]
found = outputs(network, ("bn2", "blocks.4"), x)
by_parts = network.blocks[:5](network.bn1(network.conv_stem(x)))
heads = network.classifier.weight[labels] / found["bn2"][0, 0].numel()
by_weights = torch.relu((heads[:, :, None, None] * found["bn2"]).sum(1))
ours["head"] = grad_cam(network, "bn2", x, labels)

# %% tags=["differences"]
PIXELS = ((0, 30, 30), (1, 12, 50), (2, 40, 9))


def differences(network: nn.Module, x: Tensor, label: int, step=1e-5) -> Tensor:
    """The gradient at some values of a picture (3, H, W), by moving each a little."""
    found = []
    for index in PIXELS:
        scores = []
        for change in (step, -step):
            moved = x.clone()
            moved[index] += change
            scores.append(network(moved[None])[0, label])
        found.append((scores[0] - scores[1]) / (2 * step))
    return torch.stack(found)


# %% tags=["differences-run"]
precise = copy.deepcopy(network).cpu().double()
picture = F.avg_pool2d(x[:1].cpu().double(), 4)  # 56x56
slopes = gradient(precise, picture, labels[:1].cpu())[0]
slopes = torch.stack([slopes[index] for index in PIXELS])
by_moving = differences(precise, picture[0], labels[0].item())

# %% tags=["equal-table"]
WORDS = {"saliency": "saliency", "guided": "guided backpropagation"}
WORDS |= {"cam": "Grad-CAM of layer3", "occlusion": "occlusion"}
pairs = {name: ("Captum", ours[key], theirs[key]) for key, name in WORDS.items()}
pairs["saliency, three pixels"] = ("pixels moved by 1e-5", slopes, by_moving)
pairs["Grad-CAM of the last map"] = (
    "rows of the linear layer",
    ours["head"],
    by_weights,
)
pairs["maps by hooks"] = ("layers called in turn", found["blocks.4"], by_parts)
rows = []
for name, (reference, a, b) in pairs.items():
    rows.append((name, reference, f"{checks.deviation(a, b):.1e}"))
    claim(checks.deviation(a, b) < 1e-4, f"{name}: equal to {reference}")
table(rows, ("method", "reference", "largest difference"))

# %% tags=["reach-table"]
UNITS = {1: 64, 2: 64, 3: 128, 4: 192}  # stages of Lite0, sides of the pictures
rows = []
for stage, side in UNITS.items():
    features = up_to(network, stage)
    field = receptive_field(windows(features))
    place = side // field.step // 2
    top = field.start + place * field.step
    touched = reach(features, place, side)
    claim(
        touched == (top, top + field.size - 1),
        "the gradient ends where the window does",
    )
    formula = f"{top} to {top + field.size - 1}"
    rows.append((stage, field.size, place, formula, "{} to {}".format(*touched)))
table(rows, ("stage of Lite0", "window", "unit", "rows by formula", "by gradient"))

# %% [markdown]
# ## What a unit wants, and what a photograph gives it
#
# Three channels of four layers. The best patch: of eleven photographs, the window that
# raises the channel most. For a single convolution the best picture is known: the signs of
# its weights.

# %% tags=["album"]
SEEDS = (0, 1, 2) if PROFILE == "sample" else tuple(range(8))
SIDES = {2: 32, 3: 96, 4: 160}  # of the painted pictures, by stage
pictures["hopper"] = (255 * images.photograph(512, 512)[0]).to(torch.uint8)
album = torch.stack([square(picture, 320) for picture in pictures.values()]).to(device)
colours = colour_axes(F.avg_pool2d(album, 8))
record("photographs", len(album))


# %% tags=["unit"]
class Unit(NamedTuple):
    """The middle unit of some channels, and the first pixel of its window."""

    features: nn.Module
    field: Field
    channels: list[int]
    place: int
    top: int


def middle_unit(network: nn.Module, stage: int, side: int) -> Unit:
    """Three channels of a stage of Lite0, evenly spaced, in pictures of a side."""
    features = up_to(network, stage)
    field = receptive_field(windows(features))
    place = round((side / 2 - field.size / 2 - field.start) / field.step)
    count = features(torch.zeros(1, 3, 32, 32, device=device)).shape[1]
    channels = [count * k // 4 for k in (1, 2, 3)]
    return Unit(features, field, channels, place, field.start + place * field.step)


# %% tags=["stem"]
stem = middle_unit(network, 0, 32)
kernels = network.conv_stem.weight[stem.channels]
signs = kernels.sign()
limit = kernels.abs().sum((1, 2, 3))

# %% tags=["headline"]
units = {stage: middle_unit(network, stage, side) for stage, side in SIDES.items()}
patches = {0: best_patches(stem.features, stem.field, album, stem.channels)}
wishes = {}
for stage, unit in units.items():
    patches[stage] = best_patches(unit.features, unit.field, album, unit.channels)
    for number in SEEDS:
        seed(number)
        how = (unit.channels, unit.place, SIDES[stage], colours)
        wishes[stage, number] = preferred(unit.features, *how)

# %% tags=["factors"]
factors = {}
for number in SEEDS:
    wishes[0, number] = (signs, limit)
for (stage, number), (_, raised) in wishes.items():
    best = torch.tensor([patch.value for patch in patches[stage]], device=device)
    factors[stage, number] = raised / best


# %% tags=["headline-table"]
NAMES = {0: "first convolution", 2: "stage 2", 3: "stage 3", 4: "stage 4"}
means = {}
rows = []
for stage, name in NAMES.items():
    means[stage] = [factors[stage, number].mean().item() for number in SEEDS]
    lowest = min(factors[stage, number].min().item() for number in SEEDS)
    record_spread(f"factor.{stage}", means[stage])
    size = (units | {0: stem})[stage].field.size
    rows.append((name, size, spread(means[stage], ".2f"), f"{lowest:.2f}"))
table(rows, ("Lite0 up to", "window", "painted to patch, mean", "least"))

# %% tags=["headline-claims"]
for stage in SIDES:
    least = min(factors[stage, number].min().item() for number in SEEDS)
    claim(least > 1.5, "each painted picture raises its channel above the best patch")
claim(factors[0, 0].min().item() > 1.03, "the signs raise more than any patch")
for before, after in zip((0, 2, 3), (2, 3, 4)):
    claim(min(means[after]) > max(means[before]), "the factor rises with depth")


# %% tags=["wishes-figure"] alt="Four rows of three pairs, a painted picture at the left of each pair and a patch of a photograph at the right. First row, 3x3 pixels: single colours. Second row, 19 pixels: coloured blots beside edges of things. Third and fourth row, 67 and 147 pixels: painted rays and spots in strong colours around the middle; beside them parts of photographs."
_, frames = plt.subplots(4, 6, figsize=(5, 3.7))
for line, (stage, unit) in zip(frames, {0: stem, **units}.items()):
    window = slice(unit.top, unit.top + unit.field.size) if stage else slice(None)
    for k, patch in enumerate(patches[stage]):
        painting = wishes[stage, 0][0][k, :, window, window]
        pair = torch.stack((painting, cut_out(patch, album, unit.field.size)))
        pair = F.avg_pool2d(pair, 1 + unit.field.size // 100)  # 147 pixels as 73
        for frame, picture in zip(line[2 * k : 2 * k + 2], pair):
            frame.imshow((picture.permute(1, 2, 0).cpu() + 1) / 2)
            frame.set(xticks=[], yticks=[])
    line[0].set_ylabel(f"{unit.field.size} px", fontsize=11)
for frame, word in zip(frames[0], 3 * ("painted", "patch")):
    frame.set_title(word, fontsize=11)
line[0].set_axisbelow(True)

# %% [markdown]
# ## Does the heat lie on the object?


# %% tags=["inside"]
def inside(heat: Tensor, boxes) -> Tensor:
    """The share of each heat (N, H, W) in its box; what is negative counts as 0."""
    heat = heat.clamp(min=0)
    found = []
    for one, (left, top, right, bottom) in zip(heat, boxes):
        found.append(one[top:bottom, left:right].sum() / one.sum())
    return torch.stack(found)


# %% tags=["heats"]
heats = {
    "saliency": saliency(network, x, labels),
    "Grad-CAM": enlarged(grad_cam(network, "bn2", x, labels), 224),
    "occlusion": occlusion(network, x, labels),
}
with guided(network):
    heats["guided"] = saliency(network, x, labels)

# %% tags=["inside-table"]
held = {name: inside(heat, BOXES.values()).tolist() for name, heat in heats.items()}
ratios = {}
rows = [("area of the box", *(f"{areas[name]:.0%}" for name in BOXES))]
for name, shares in held.items():
    rows.append((name, *(f"{share:.0%}" for share in shares)))
    ratios[name] = [share / area for share, area in zip(shares, areas.values())]
    record(f"{name}.least", min(ratios[name]))
    record(f"{name}.most", max(ratios[name]))
table(rows, ("heat inside", *BOXES))

# %% tags=["inside-claims"]
for name in ("Grad-CAM", "occlusion", "guided"):
    for index, photograph in enumerate(BOXES):
        words = f"{name} has more of its heat in the box than saliency: {photograph}"
        claim(ratios[name][index] > 1.15 * ratios["saliency"][index], words)
        claim(ratios[name][index] > 1.4, "more than the area of the box")
claim(max(ratios["saliency"]) < 1.6, "saliency: little more than the area")

# %% tags=["heats-figure"] alt="Four rows, one a photograph with its box, and to the right four pictures of heat. Saliency: scattered points over the picture. Grad-CAM: a soft blot on the object. Occlusion: coarse squares, bright on the object. Guided: fine points, many of them on the object."
_, frames = plt.subplots(4, 5, figsize=(5, 4.3))
thumbs = F.avg_pool2d(x, 3).permute(0, 2, 3, 1).cpu()  # 74 pixels
for number, (line, box) in enumerate(zip(frames, BOXES.values())):
    line[0].imshow((thumbs[number] + 1) / 2, extent=(0, 224, 224, 0))
    size = (box[2] - box[0], box[3] - box[1])
    line[0].add_patch(plt.Rectangle(box[:2], *size, fill=False, edgecolor="white"))
    for frame, heat in zip(line[1:], heats.values()):
        picture = F.avg_pool2d(heat[number : number + 1], 3)[0].cpu()
        frame.imshow(picture, vmin=0, vmax=picture.flatten().quantile(0.99))
for frame in frames.flat:
    frame.set(xticks=[], yticks=[])
for frame, word in zip(frames[0], ("photograph", *heats)):
    frame.set_title(word, fontsize=10)
frame.set_axisbelow(True)

# %% [markdown]
# ## Does the heat know the weights?
#
# The weights of a layer are shuffled: it keeps their sizes and loses what it has learnt.


# %% tags=["shuffled"]
def parts(network: nn.Module) -> list[list[nn.Module]]:
    """Lite0 from its classifier to its first layer, in three steps."""
    late = [network.conv_head, *network.blocks[5:]]
    early = [network.conv_stem, *network.blocks[:5]]
    return [[network.classifier], late, early]


@torch.no_grad()
def shuffled(network: nn.Module, steps: int, number: int) -> nn.Module:
    """A copy; in its last parts the weights of each layer change places by chance."""
    network = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(number)
    for part in parts(network)[:steps]:
        for layer in nn.ModuleList(part).modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                weight = layer.weight
                order = torch.randperm(weight.numel(), generator=generator)
                weight.copy_(weight.flatten()[order.to(weight.device)].view_as(weight))
    return network


# %% tags=["rank-correlation"]
def ranks(values: Tensor) -> Tensor:
    """The place of each value in their order, the mean place for equal ones."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[inverse]


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's: 1 for the same order, -1 for the opposite, 0 if one has no order."""
    a = ranks(a.flatten())
    b = ranks(b.flatten())
    a = a - a.mean()
    b = b - b.mean()
    return (a @ b / (a.norm() * b.norm()).clamp(min=1e-9)).item()


# %% tags=["cascade"]
def three_heats(network: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Saliency, guided backpropagation and Grad-CAM, each (N, H, W)."""
    found = {"saliency": saliency(network, x, labels)}
    with guided(network):
        found["guided"] = saliency(network, x, labels)
    found["Grad-CAM"] = enlarged(grad_cam(network, "bn2", x, labels), x.shape[-1])
    return found


def likeness(before: dict, after: dict) -> dict[str, float]:
    """The mean rank correlation of each heat before with the one after, by method."""
    found = {}
    for name, heat in before.items():
        each = [rank_correlation(a, b) for a, b in zip(heat, after[name])]
        found[name] = sum(each) / len(each)
    return found


# %% tags=["cascade-run"]
x160 = F.interpolate(x, size=(160, 160), mode="bilinear", antialias=True)
before = three_heats(network, x160, labels)
likenesses = {}
STEPS = (1, 2, 3)
for steps in STEPS:
    for number in SEEDS:
        after = three_heats(shuffled(network, steps, number), x160, labels)
        likenesses[steps, number] = likeness(before, after)

# %% tags=["cascade-figure"] alt="Rank correlation with the heat of the trained network against what is shuffled, bands of three seeds: the classifier, all from the classifier to stage 6, and all layers. The line of guided backpropagation starts at 1 and is still above 0.8 when all from stage 6 on is shuffled, then falls; those of saliency and Grad-CAM start below 0.6."
_, axes = plt.subplots()
ends = {}
for colour, name in zip(plots.COLOURS, ("guided", "saliency", "Grad-CAM")):
    runs = [[likenesses[s, n][name] for s in STEPS] for n in SEEDS]
    ends[name] = plots.seed_band(axes, STEPS, torch.tensor(runs), colour)
axes.hlines(0, 1, 3, color=plots.QUIET, linestyle=":")
axes.set(xticks=STEPS, xlim=(0.8, 3.8), ylim=(-0.5, 1.05))
axes.set_xticklabels(("classifier", "to stage 6", "all"))
axes.set(xlabel="shuffled weights", ylabel="rank correlation")
plots.label_ends(axes, ends)

# %% tags=["cascade-claims"]
for name in ("guided", "saliency", "Grad-CAM"):
    for steps in STEPS:
        values = [likenesses[steps, n][name] for n in SEEDS]
        record_spread(f"{name}.{steps}", values)
guided_left = [likenesses[1, n]["guided"] for n in SEEDS]
claim(min(guided_left) > 0.98, "guided: without the classifier nearly the same heat")
claim(min(likenesses[2, n]["guided"] for n in SEEDS) > 0.8, "and up to stage 6")
claim(max(likenesses[3, n]["guided"] for n in SEEDS) < 0.6, "it falls in the end")
for steps in (1, 2):
    for name in ("saliency", "Grad-CAM"):
        most = max(likenesses[steps, n][name] for n in SEEDS)
        claim(
            most < 0.6, f"{name} changes with the classifier, seeds apart from guided"
        )

# %% tags=["other-class"]
of_another = labels.roll(1)  # the class of the photograph before
others = three_heats(network, x160, of_another)
same = likeness(before, others)

# %% tags=["other-class-table"]
claim(same["guided"] > 0.95, "guided: another class, nearly the same heat")
claim(max(same["saliency"], same["Grad-CAM"]) < 0.7, "the others change")
rows = []
for name, value in same.items():
    shuffles = spread([likenesses[1, n][name] for n in SEEDS], ".2f")
    rows.append((name, f"{value:.2f}", shuffles))
table(rows, ("heat", "another class", "classifier shuffled"))

# %% [markdown]
# ## What we saw
#
# - A painted picture raises its channel more than any patch of eleven photographs, and by a
#   factor that grows with depth. It says what raises the unit, not what it meets.
# - Of four kinds of heat, plain saliency lies on the objects little more than elsewhere;
#   Grad-CAM, occlusion and guided backpropagation do.
# - Guided backpropagation draws the object whatever the classifier is: with shuffled weights
#   of the classifier its heat is nearly the same.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
by_hand = receptive_field([(3, 2, 0), (3, 1, 1), (3, 2, 0), (3, 1, 1)])

# %% tags=["solution-1-result"]
claim(by_hand == units[2].field, "the 1x1 convolutions do not count")
table([tuple(by_hand)], ("window", "step", "first pixel"))

# %% tags=["solution-2"]
unit = units[3]
how = (unit.channels, unit.place, SIDES[3], colours)
seed(0)
flat, raised = preferred(unit.features, *how, power=0)

# %% tags=["solution-2-result"]
rows = []
for name, painting, reached in (
    ("one over the frequency", *wishes[3, 0]),
    ("the same", flat, raised),
):
    pixels = torch.stack((painting[..., 1:].flatten(), painting[..., :-1].flatten()))
    alike = torch.corrcoef(pixels)[0, 1].item()
    best = torch.tensor([patch.value for patch in patches[3]], device=device)
    rows.append((name, f"{(reached / best).mean():.2f}", f"{alike:.2f}"))
claim(float(rows[0][2]) > float(rows[1][2]) + 0.2, "the pictures are rougher")
claim((raised / best).min() > 1.5, "and raise their channels above the patches, too")
table(rows, ("scale of the waves", "painted to patch", "neighbours' correlation"))


# %% tags=["solution-3"]
def smoothed(network, x: Tensor, labels: Tensor, *, copies=4, noise=0.3) -> Tensor:
    """SmoothGrad: the mean saliency of noisy copies (Smilkov et al. 2017)."""
    total = 0
    for _ in range(copies):
        total = total + saliency(network, x + noise * torch.randn_like(x), labels)
    return total / copies


# %% tags=["solution-3-run"]
seed(0)
smooth = inside(smoothed(network, x, labels), BOXES.values()).tolist()
rows = []
for name, a, b in zip(BOXES, held["saliency"], smooth):
    rows.append((name, f"{areas[name]:.0%}", f"{a:.0%}", f"{b:.0%}"))
    claim(b > 1.05 * a, "more of the heat is inside")
table(rows, ("photograph", "area of the box", "saliency", "SmoothGrad"))


# %% tags=["solution-4"]
def scores(x: Tensor) -> Tensor:
    """The scores of the classes as maps of a single place: (N, 1000, 1, 1)."""
    return network(x)[..., None, None]


seed(0)
painting, _ = preferred(scores, labels.tolist(), 0, 96, colours)

# %% tags=["solution-4-result"] alt="Four painted pictures in a row, named espresso, missile, daisy and palace: coloured swirls and spots all over, in which no cup, rocket, flower or building stands out."
chances = network(painting).softmax(1)[torch.arange(4), labels]
record("painted.least", chances.min())
claim(chances.min() > 0.9, "the network is sure of each painted picture")
titles = [CLASSES[label] for label in labels.tolist()]
plots.image_grid((painting + 1) / 2, titles, columns=4, scale=1.2)
