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
# # ImageNet recipes
#
# One network, ResNet-50, and thirteen ways to train it: each step of TorchVision's recipe
# of 2021 written out, those with draws or a formula compared with the library, and the effect
# of four measured on small networks. Then what it takes to load the pictures.
# The text to it is the [chapter](../chapters/imagenet_recipes.rst), the recipe is that of
# [Vryniotis 2021](https://pytorch.org/blog/how-to-train-state-of-the-art-models-using-torchvision-latest-primitives/).

# %%
import copy
import functools
import io
import math
import multiprocessing
import time

import matplotlib.pyplot as plt
import torch
import torchvision
from PIL import Image
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from torchvision.ops._utils import split_normalization_params
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as ops

from workbench import claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, images, plots, training

# %% [markdown]
# ## The steps and what they gave
#
# Top-1 accuracy of ResNet-50 on ImageNet after each step, from the table of the article.

# %% tags=["steps"]
STEPS = (
    ("baseline", 76.130, "batch 256, rate 0.1 in 3 steps, 90 epochs, decay 1e-4"),
    ("learning rate", 76.494, "batch 1,024, rate 0.5, warm-up of 5 epochs, cosine"),
    ("TrivialAugment", 76.806, "one random operation on each picture"),
    ("long training", 78.606, "600 epochs"),
    ("random erasing", 78.796, "a box is emptied with a chance of one in ten"),
    ("label smoothing", 79.114, "targets 0.1 softer"),
    ("mixup", 79.232, "pairs of pictures are blended, alpha 0.2"),
    ("CutMix", 79.510, "or a box is exchanged, alpha 1"),
    ("weight decay", 80.036, "2e-5, none on norms"),
    ("FixRes", 80.196, "training crops of 176 pixels"),
    ("weight average", 80.450, "a moving mean, every 32 steps, decay 0.99998"),
    ("resize in testing", 80.674, "to 232 pixels, not 256"),
    ("repeated augmentation", 80.858, "each picture 4 times in a step"),
)

# %% tags=["steps-table"]
rows = []
for k, (name, accuracy, change) in enumerate(STEPS):
    gain = f"{accuracy - STEPS[k - 1][1]:+.3f}" if k else ""
    rows.append((name, f"{accuracy:.3f}", gain, change))
table(rows, ("step", "accuracy, %", "gain", "what changes"))

# %% tags=["steps-figure"] alt="Twelve horizontal bars one below the other, each beginning where the one above ends, from 76.1 to 80.9 percent. The third, long training, is by far the longest, 1.80 points. Weight decay has 0.53, learning rate 0.36, each other one between 0.12 and 0.32."
_, axes = plt.subplots(figsize=(5, 3.9))
for k, (before, step) in enumerate(zip(STEPS, STEPS[1:])):
    gain = step[1] - before[1]
    axes.barh(k, gain, left=before[1], color=plots.COLOURS[k == 2], height=0.7)
    axes.text(step[1] + 0.08, k, f"{gain:.2f}", va="center", fontsize=10)
names = [name for name, *_ in STEPS[1:]]
axes.set(yticks=range(len(names)), yticklabels=names, xlabel="top-1 accuracy, %")
axes.set(xlim=(76, 81.7))
axes.invert_yaxis()

# %% tags=["steps-claims"]
gains = {b[0]: b[1] - a[1] for a, b in zip(STEPS, STEPS[1:])}
ordered = sorted(gains, key=gains.get, reverse=True)
claim(ordered[0] == "long training", "long training is the largest gain")
claim(gains["long training"] > 3 * gains[ordered[1]], "by more than three times")
claim(ordered[1] == "weight decay", "weight decay is the second")
claim(min(gains.values()) > 0.1 and gains["mixup"] < 0.12, "mixup is the smallest")
record("gain.all", sum(gains.values()))
record("gain.long", gains["long training"])

# %% tags=["resnet50"]
with torch.device("meta"):
    resnet50 = torchvision.models.resnet50()
    picture = torch.empty(1, 3, 224, 224)
record("resnet50.millions", counting.parameters(resnet50) / 1e6)
usual = counting.macs(resnet50, picture)
record("resnet50.macs224", usual / 1e9)
fewer = counting.macs(resnet50, picture[..., :176, :176])
record("resnet50.macs176", fewer / 1e9)
claim(fewer < 0.65 * usual, "crops of 176 cost less")

# %% [markdown]
# ## Learning rate
#
# Five epochs of warm-up along a line, then a cosine down to nothing.


# %% tags=["rate"]
def rate(epoch: int, *, peak: float = 0.5, warmup: int = 5, epochs: int = 600) -> float:
    """The learning rate of an epoch: from peak / 100 up along a line, then a cosine."""
    if epoch < warmup:
        return peak * (0.01 + 0.99 * epoch / warmup)
    done = (epoch - warmup) / (epochs - warmup)
    return peak * (1 + math.cos(math.pi * done)) / 2


def old_rate(epoch: int) -> float:
    """The baseline's: a tenth after 30 and a hundredth after 60 of 90 epochs."""
    return 0.1 * 0.1 ** (epoch // 30)


# %% tags=["rate-values"]
table(
    [(epoch, f"{rate(epoch):.3f}") for epoch in (0, 1, 5, 300, 599)], ("epoch", "rate")
)

# %% tags=["rate-figure"] alt="Learning rate against the share of the training done. The new rate rises from nearly 0 to 0.5 within a hundredth of the training and falls along half a cosine wave to 0. The baseline's stays at 0.1 for a third, then at 0.01, then at 0.001."
_, axes = plt.subplots(figsize=(5, 2.4))
axes.plot([e / 600 for e in range(600)], [rate(e) for e in range(600)])
axes.step([e / 90 for e in range(90)], [old_rate(e) for e in range(90)])
axes.set(xlabel="share of the training", ylabel="learning rate", ylim=(0, None))
names = {(0.45, 0.34): "600 epochs, batch 1,024", (0.03, 0.125): "baseline"}
for (place, name), colour in zip(names.items(), plots.COLOURS):
    axes.text(*place, name, color=colour)

# %% tags=["rate-checked"]
optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
rising = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=5)
falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=595)
library = torch.optim.lr_scheduler.SequentialLR(optimizer, [rising, falling], [5])
expected = []
for _ in range(600):
    expected.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    library.step()
deviations = {}
ours = torch.tensor([rate(epoch) for epoch in range(600)])
deviations["rate"] = checks.deviation(ours, torch.tensor(expected))

# %% [markdown]
# ## TrivialAugment
#
# One operation out of fourteen, at one strength out of 31, nothing else.

# %% tags=["pictures"]
NAMES = ("chelsea", "coffee", "flower", "china")
photographs = images.photographs()
squares = torch.stack(
    [v2.Resize(96)(v2.CenterCrop(300)(photographs[n])) for n in NAMES]
)
cat = squares[0]
squares.shape


# %% tags=["trivial-moves"]
def shear(picture: Tensor, x: float, y: float) -> Tensor:
    """Move each row by x times its distance from the top, each column by y."""
    degrees = [math.degrees(math.atan(share)) for share in (x, y)]
    return ops.affine(picture, 0.0, [0, 0], 1.0, degrees, center=[0, 0])


def shift(picture: Tensor, x: float, y: float) -> Tensor:
    """Move a picture by whole pixels; black comes in."""
    return ops.affine(picture, 0.0, [int(x), int(y)], 1.0, [0.0, 0.0])


# %% tags=["trivial-table"]
UNIT = torch.linspace(0, 0.99, 31)
PIXELS = torch.linspace(0, 32, 31)
DEGREES = torch.linspace(0, 135, 31)
BITS = (8 - torch.arange(31) / 5).round().int()
LEVEL = torch.linspace(1, 0, 31)
TRIVIAL = {  # name: 31 strengths or None, whether a sign is drawn, the operation
    "Identity": (None, False, lambda x, s: x),
    "ShearX": (UNIT, True, lambda x, s: shear(x, s, 0)),
    "ShearY": (UNIT, True, lambda x, s: shear(x, 0, s)),
    "TranslateX": (PIXELS, True, lambda x, s: shift(x, s, 0)),
    "TranslateY": (PIXELS, True, lambda x, s: shift(x, 0, s)),
    "Rotate": (DEGREES, True, lambda x, s: ops.rotate(x, s)),
    "Brightness": (UNIT, True, lambda x, s: ops.adjust_brightness(x, 1 + s)),
    "Color": (UNIT, True, lambda x, s: ops.adjust_saturation(x, 1 + s)),
    "Contrast": (UNIT, True, lambda x, s: ops.adjust_contrast(x, 1 + s)),
    "Sharpness": (UNIT, True, lambda x, s: ops.adjust_sharpness(x, 1 + s)),
    "Posterize": (BITS, False, lambda x, s: ops.posterize(x, int(s))),
    "Solarize": (LEVEL, False, lambda x, s: ops.solarize(x, 255 * s)),
    "AutoContrast": (None, False, lambda x, s: ops.autocontrast(x)),
    "Equalize": (None, False, lambda x, s: ops.equalize(x)),
}


# %% tags=["trivial"]
def trivial_augment(picture: Tensor) -> Tensor:
    """One random operation at one random strength: (3, H, W) of 0..255 to the same.

    Müller and Hutter 2021, algorithm 1, in the wide ranges.
    """
    name = list(TRIVIAL)[torch.randint(14, ()).item()]
    strengths, signed, operation = TRIVIAL[name]
    strength = 0.0
    if strengths is not None:
        strength = strengths[torch.randint(31, ()).item()].item()
        if signed and torch.rand(()) <= 0.5:
            strength = -strength
    return operation(picture, strength)


# %% tags=["trivial-figure"] alt="The head of a cat fourteen times: unchanged, slanted along each axis, moved to the right and down with black behind it, turned by 135 degrees, very bright, in strong colours, in strong contrast, sharper, in few levels of colour, as a negative, with full contrast, and with levels spread evenly."
shown = []
for strengths, _, operation in TRIVIAL.values():
    strongest = 0.0 if strengths is None else strengths[-1].item()
    shown.append(operation(cat, strongest))
plots.image_grid(shown, list(TRIVIAL), columns=5, scale=1.0)

# %% tags=["trivial-checked"]
library = v2.TrivialAugmentWide()
differing = 0
for number in range(300):
    seed(number)
    ours = trivial_augment(cat)
    seed(number)
    differing += not torch.equal(ours, library(cat))
deviations["TrivialAugment"] = differing / 300

# %% tags=["trivial-space"]
idle = 0.0
for strengths, _, operation in TRIVIAL.values():
    drawn = [0.0] if strengths is None else strengths.tolist()
    same = [torch.equal(operation(cat, strength), cat) for strength in drawn]
    idle += sum(same) / len(drawn) / 14  # a strength of 0 has no other sign
record("trivial.idle", idle)
claim(0.1 < idle < 0.16, "about one picture of eight stays as it is")

# %% [markdown]
# ## Random erasing


# %% tags=["erase"]
def draw_box(H: int, W: int) -> tuple[int, int, int, int]:
    """A box of 2 to 33 % of the area, its sides at 0.3 to 3.3; empty if none fits."""
    for _ in range(10):
        area = H * W * torch.empty(1).uniform_(0.02, 0.33).item()
        log_ratio = torch.empty(1).uniform_(math.log(0.3), math.log(3.3))
        ratio = log_ratio.exp().item()
        h = round(math.sqrt(area * ratio))
        w = round(math.sqrt(area / ratio))
        if h < H and w < W:
            top = torch.randint(0, H - h + 1, (1,)).item()
            left = torch.randint(0, W - w + 1, (1,)).item()
            return top, left, h, w
    return 0, 0, 0, 0


def random_erase(x: Tensor, p: float = 0.1) -> Tensor:
    """Empty a box in a share p of the pictures (B, C, H, W) (Zhong et al. 2017)."""
    erased = x.clone()
    for picture in erased:
        if torch.rand(1) < p:
            top, left, h, w = draw_box(*x.shape[2:])
            picture[:, top : top + h, left : left + w] = 0
    return erased


# %% tags=["erase-figure"] alt="A cat, a cup, a flower and a pagoda, each with a black box in another place and of another form; from each picture most is left."
seed(3)
plots.image_grid(random_erase(squares, p=1.0), columns=4, scale=1.25)

# %% tags=["erase-checked"]
library = v2.RandomErasing(p=0.5)
shares = []
differing = 0
for number in range(300):
    seed(number)
    ours = random_erase(squares[:1] + 1, p=0.5)[0]
    seed(number)
    differing += not torch.equal(ours, library(squares[0] + 1))
    top, left, h, w = draw_box(96, 96)
    shares.append(h * w / 96**2)
deviations["random erasing"] = differing / 300
record("erase.share", sum(shares) / 300)
claim(0.15 < sum(shares) / 300 < 0.2, "a box takes about a sixth of the picture")

# %% [markdown]
# ## Label smoothing


# %% tags=["smooth"]
def smoothed(targets: Tensor, amount: float = 0.1) -> Tensor:
    """Share a part of each target (B, K) among all classes (Szegedy et al. 2015)."""
    return (1 - amount) * targets + amount / targets.shape[1]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with targets that are shares of the classes: (B, K) twice."""
    return -(targets * logits.log_softmax(1)).sum(1).mean()


# %% tags=["smooth-run"]
target = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
smoothed(target)

# %% tags=["smooth-checked"]
seed(0)
logits = torch.randn(8, 10)
labels = torch.randint(10, (8,))
ours = soft_cross_entropy(logits, smoothed(F.one_hot(labels, 10).float()))
expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
deviations["label smoothing"] = checks.deviation(ours, expected)
record("smooth.best", 0.9 + 0.1 / 1000)
record("smooth.margin", math.log((0.9 + 0.0001) / 0.0001))

# %% [markdown]
# ## Mixup and CutMix


# %% tags=["mix"]
def mixup(x: Tensor, targets: Tensor, share: float):
    """Blend each picture and its target with those before it (Zhang et al. 2017)."""
    mixed = share * x + (1 - share) * x.roll(1, 0)
    return mixed, share * targets + (1 - share) * targets.roll(1, 0)


def cutmix(x: Tensor, targets: Tensor, share: float, centre: tuple[int, int]):
    """Fill a box of each picture from the one before it (Yun et al. 2019).

    centre: (row, column). The box would take 1 - share of the area; what the border
    cuts off stays with the picture, and the targets are the areas that are there.
    """
    H, W = x.shape[2:]
    half = math.sqrt(1 - share) / 2
    top = max(centre[0] - int(half * H), 0)
    left = max(centre[1] - int(half * W), 0)
    bottom = min(centre[0] + int(half * H), H)
    right = min(centre[1] + int(half * W), W)
    mixed = x.clone()
    mixed[..., top:bottom, left:right] = x.roll(1, 0)[..., top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (H * W)
    return mixed, kept * targets + (1 - kept) * targets.roll(1, 0)


# %% tags=["mix-random"]
def draw_share(alpha: float) -> float:
    """From Beta(alpha, alpha): near 0 or 1 for a small alpha, uniform for 1."""
    return torch.distributions.Beta(alpha, alpha).sample().item()


def random_mixup(x: Tensor, targets: Tensor, alpha: float = 0.2):
    return mixup(x, targets, draw_share(alpha))


def random_cutmix(x: Tensor, targets: Tensor, alpha: float = 1.0):
    share = draw_share(alpha)
    column = torch.randint(x.shape[3], (1,)).item()
    row = torch.randint(x.shape[2], (1,)).item()
    return cutmix(x, targets, share, (row, column))


# %% tags=["mix-run"]
pair = squares[:2] / 255  # a cat and a cup
targets = torch.eye(2)
blended, blended_targets = mixup(pair, targets, 0.7)
pasted, pasted_targets = cutmix(pair, targets, 0.7, (20, 60))
torch.stack((blended_targets[0], pasted_targets[0]))

# %% tags=["mix-figure"] alt="Four pictures: a cat; a cup; both at once, the cup faint over the cat; the cat with a rectangle at the top right that shows what the cup's picture has there."
shown = [pair[0], pair[1], blended[0], pasted[0]]
words = ["cat", "cup", "mixup\ncat 0.70", f"CutMix\ncat {pasted_targets[0, 0]:.2f}"]
plots.image_grid(shown, words, columns=4, scale=1.25)

# %% tags=["mix-checked"]
ours = {"mixup": random_mixup, "CutMix": random_cutmix}
libraries = {
    "mixup": v2.MixUp(alpha=0.2, num_classes=4),
    "CutMix": v2.CutMix(alpha=1.0, num_classes=4),
}
for name, mix in ours.items():
    worst = 0.0
    for number in range(100):
        seed(number)
        found = mix(squares / 255, torch.eye(4))
        seed(number)
        expected = libraries[name](squares / 255, torch.arange(4))
        worst = max(worst, *map(checks.deviation, found, expected))
    deviations[name] = worst

# %% tags=["mix-counted"]
seed(0)
flags = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 96, 96)  # picture k is k
errors = []
kept = []
for _ in range(200):
    mixed, found = random_cutmix(flags, torch.eye(2))
    counted = mixed.mean((1, 2, 3))  # the share of pixels that come from picture 1
    errors.append((counted - found[:, 1]).abs().max().item())
    kept.append(found[0, 0].item())
claim(max(errors) < 1e-6, "CutMix's targets are the shares of pixels")
record("cutmix.kept", sum(kept) / len(kept))
claim(sum(kept) / len(kept) > 0.55, "the border leaves each picture more than half")
record("cutmix.pasted", pasted_targets[0, 0])

# %% [markdown]
# ## Weight decay, without the norms


# %% tags=["decay"]
def split_norms(network: nn.Module) -> tuple[list, list]:
    """The parameters of batch norms, and all others."""
    norms = []
    others = []
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        (norms if isinstance(module, nn.BatchNorm2d) else others).extend(own)
    return norms, others


# %% tags=["decay-run"]
norms, others = split_norms(resnet50)
groups = [
    {"params": norms, "weight_decay": 0.0},
    {"params": others, "weight_decay": 2e-5},
]
optimizer = torch.optim.SGD(groups, lr=0.5, momentum=0.9)
len(norms), sum(p.numel() for p in norms), len(others), sum(p.numel() for p in others)

# %% tags=["decay-checked"]
expected = split_normalization_params(resnet50)
same = [
    [id(p) for p in ours] == [id(p) for p in theirs]
    for ours, theirs in zip((norms, others), expected)
]
claim(all(same), "the same two lists as torchvision's")
record("norms.parameters", sum(p.numel() for p in norms))
record("norms.tensors", len(norms))
record("norms.share", sum(p.numel() for p in norms) / counting.parameters(resnet50))

# %% [markdown]
# ## FixRes: how large a cat looks
#
# Training cuts a random part out of a photograph and scales it to the crop's size, testing
# scales the short side and cuts the middle out.


# %% tags=["fixres"]
def draw_crop(H: int, W: int) -> tuple[int, int]:
    """Height and width of RandomResizedCrop's part: 8 to 100 % of the area."""
    for _ in range(10):
        area = H * W * torch.empty(1).uniform_(0.08, 1).item()
        ratio = torch.empty(1).uniform_(math.log(3 / 4), math.log(4 / 3)).exp().item()
        w = round(math.sqrt(area * ratio))
        h = round(math.sqrt(area / ratio))
        if 0 < w <= W and 0 < h <= H:
            return h, w
    return H, W


def training_scale(H: int, W: int, crop: int) -> float:
    """How many times larger a thing gets on the way into the network, at random."""
    h, w = draw_crop(H, W)
    return crop / math.sqrt(h * w)


def test_scale(H: int, W: int, resize: int) -> float:
    """The same in testing, where only the short side is scaled."""
    return resize / min(H, W)


# %% tags=["fixres-run"]
DRAWS = 20_000
PHOTO = (375, 500)  # height and width
seed(0)
scales = torch.tensor([training_scale(*PHOTO, 224) for _ in range(DRAWS)])
cases = {"baseline": (224, 256), "FixRes": (176, 256), "both": (176, 232)}
ratios = {}
medians = {}
for name, (crop, resize) in cases.items():
    factor = crop / 224 / test_scale(*PHOTO, resize)
    ratios[name] = scales.mean().item() * factor
    medians[name] = scales.median().item() * factor
ratios

# %% tags=["fixres-figure"] alt="Two histograms of the scale at which things enter the network, each with a peak at the left and a long tail to the right. For crops of 224 pixels the mean, 0.89, lies well right of the test's line at 0.68; for crops of 176 pixels the two lines nearly coincide."
_, both = plt.subplots(2, 1, figsize=(5, 4))
for axes, (crop, resize) in zip(both, (cases["baseline"], cases["FixRes"])):
    values = scales * crop / 224
    axes.hist(values.numpy(), bins=60, range=(0.3, 1.9), color=plots.COLOURS[0])
    axes.axvline(values.mean(), color=plots.INK, linestyle="--")
    axes.axvline(test_scale(*PHOTO, resize), color=plots.COLOURS[1])
    axes.set(yticks=[], xlabel="scale", xlim=(0.3, 1.9))
    words = (f"training, crop {crop}", "its mean (dashed)", f"test, resize {resize}")
    for k, colour in enumerate((plots.COLOURS[0], plots.INK, plots.COLOURS[1])):
        place = (0.98, 0.85 - 0.2 * k)
        axes.text(*place, words[k], color=colour, ha="right", transform=axes.transAxes)

# %% tags=["fixres-checked"]
library = v2.RandomResizedCrop(224)
differing = 0
for number in range(300):
    seed(number)
    ours = draw_crop(*PHOTO)
    seed(number)
    drawn = library.make_params([torch.empty(3, *PHOTO)])
    differing += ours != (drawn["height"], drawn["width"])
deviations["random crop"] = differing / 300
record("fixres.measured", scales.mean())
for name, ratio in ratios.items():
    record(f"fixres.{name}", ratio)
    record(f"fixres.{name}.median", medians[name])

# %% tags=["fixres-claims"]
claim(ratios["baseline"] > 1.2, "at 224 and 256 things look larger in training")
claim(abs(ratios["FixRes"] - 1) < 0.05, "176 brings the mean sizes within 5 %")
claim(1.05 < ratios["both"] < 1.2, "a resize to 232 takes a part of that back")
claim(abs(medians["both"] - 1) < 0.05, "by the median the last size fits")
claim(medians["FixRes"] < 0.95, "and 176 with 256 does not")
record("fixres.seen256", 224 / 256)
record("fixres.seen232", 224 / 232)

# %% [markdown]
# ## A moving mean of the weights


# %% tags=["average"]
class MovingAverage:
    """A copy whose tensors follow those of a network: mean += (1 - decay) (new - mean).

    Batch norm's memory is averaged too, as in torchvision's training script; its count
    of batches stays.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network = copy.deepcopy(network)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        pairs = zip(self.network.state_dict().values(), network.state_dict().values())
        for mean, new in pairs:
            if mean.is_floating_point():
                mean.lerp_(new, 1 - self.decay)


def decay_of_update(decay: float, *, batch: int, every: int, epochs: int) -> float:
    """The decay of one update, from one that suits all lengths of training."""
    return 1 - min(1, (1 - decay) * batch * every / epochs)


# %% tags=["average-run"]
decay = decay_of_update(0.99998, batch=1024, every=32, epochs=600)
half_life = math.log(0.5) / math.log(decay)  # updates until half is forgotten
steps_of_epoch = 1_281_167 / 1024
record("average.decay", decay)
record("average.updates", half_life)
record("average.epochs", half_life * 32 / steps_of_epoch)

# %% [markdown]
# ## Repeated augmentation


# %% tags=["repeat"]
def repeated(n: int, *, times: int, gpus: int, rank: int, epoch: int) -> Tensor:
    """Which of n pictures one of the GPUs reads in an epoch, in order.

    Each picture stands `times` in a row and the GPUs take turns, so that its copies go
    to different ones; an epoch ends after n pictures, n / times different ones.
    """
    generator = torch.Generator().manual_seed(epoch)
    order = torch.randperm(n, generator=generator).repeat_interleave(times)
    return order[rank::gpus][: n // gpus]


# %% tags=["repeat-run"]
readers = [repeated(4096, times=4, gpus=8, rank=r, epoch=0) for r in range(8)]
step = torch.stack([reader[:128] for reader in readers])  # a batch of 128 on each GPU
rows = [("pictures of one step", step.numel(), len(step.unique()))]
rows.append(("pictures of one GPU in it", 128, len(step[0].unique())))
epoch = torch.cat(readers)
rows.append(("pictures of an epoch", len(epoch), len(epoch.unique())))
table(rows, ("what", "in all", "different"))

# %% tags=["repeat-checked"]
found = []
for rank in range(8):
    sampler = RepeatAugSampler(range(4096), 8, rank, num_repeats=4)
    found.append(torch.equal(readers[rank], torch.tensor(list(sampler))))
deviations["repeated augmentation"] = float(not all(found))
claim(len(step.unique()) == 256, "a step of 1,024 holds 256 pictures, each 4 times")
claim(len(step[0].unique()) == 128, "no GPU gets a picture twice in a step")
claim(len(epoch.unique()) * 4 == 4096, "an epoch holds a quarter of the pictures")

# %% [markdown]
# ## Two small networks
#
# Three convolutions with batch norm, on 400 digits of 16x16 pixels; and a perceptron on
# 500 patches of photographs, nearly all of which it knows in the end.


# %% tags=["network"]
def conv_norm(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())


class SmallNetwork(nn.Module):
    """Three convolutions, a mean over the map, a linear layer.

    (B, c_in, H, W) -> (B, 10).
    """

    def __init__(self, c_in: int, *, width: int = 12):
        super().__init__()
        self.conv1 = conv_norm(c_in, width, 1)
        self.conv2 = conv_norm(width, 2 * width, 2)
        self.conv3 = conv_norm(2 * width, 4 * width, 2)
        self.classifier = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)  # (B, width, H, W)
        x = self.conv2(x)  # (B, 2 width, H / 2, W / 2)
        x = self.conv3(x)  # (B, 4 width, H / 4, W / 4)
        return self.classifier(x.mean((2, 3)))  # (B, 10)


class Perceptron(nn.Sequential):
    """One hidden layer of 128: (B, 3, 16, 16) -> (B, 10)."""

    def __init__(self):
        layers = (nn.Linear(3 * 16 * 16, 128), nn.ReLU(), nn.Linear(128, 10))
        super().__init__(nn.Flatten(), *layers)


# %% tags=["train"]
SEEDS = (0, 1, 2)


def unchanged(x: Tensor, targets: Tensor):
    return x, targets


def erased(x: Tensor, targets: Tensor):
    return random_erase(x), targets


def softened(x: Tensor, targets: Tensor, amount: float = 0.1):
    return x, smoothed(targets, amount)


def train(network: nn.Module, part, change=unchanged, *, epochs=15, rate=0.1) -> None:
    """SGD on batches of 50 that `change` changes; the rate rises, then falls to 0."""
    where = next(network.parameters()).device
    x, y = (t.to(where) for t in part)
    targets = F.one_hot(y, 10).float()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4
    )
    schedule = training.one_cycle(optimizer, epochs * math.ceil(len(y) / 50))
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(y)).to(where).split(50):
            pictures, wanted = change(x[chosen], targets[chosen])
            loss = soft_cross_entropy(network(pictures), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


# %% tags=["data"]
digits = images.standardised(images.digits(size=16), first=400)
patches = [
    (F.avg_pool2d(x, 2), y) for x, y in images.standardised(images.patches(), first=500)
]
data = {"digits": digits, "patches": patches}
rows = [(name, *parts[0][0].shape, len(parts[2][1])) for name, parts in data.items()]
table(rows, ("data", "pictures", "C", "H", "W", "held out"))

# %% tags=["runs"]
networks = {}
for number in SEEDS:
    for change in (unchanged, erased, softened, random_mixup):
        seed(number)
        network = SmallNetwork(1).to(device, memory_format=torch.channels_last)
        train(network, digits[0], change)
        networks["digits", change.__name__, number] = network
    for change in (unchanged, softened):
        seed(number)
        network = Perceptron().to(device)
        train(network, patches[0], change, epochs=40, rate=0.02)
        networks["patches", change.__name__, number] = network


# %% tags=["calibration"]
def calibration_error(probabilities: Tensor, y: Tensor, bins: int = 10) -> float:
    """Mean gap of confidence and accuracy in ten ranges (Guo et al. 2017)."""
    confidence, guess = probabilities.max(1)
    right = (guess == y).float()
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins).index_add(0, place, confidence - right)  # sums
    return gaps.abs().sum().item() / len(y)


# %% tags=["calibrated"]
calibrated = {}
for name in data:
    x, y = data[name][2]
    for change in ("unchanged", "softened"):
        found = []
        for number in SEEDS:
            p = training.predict(networks[name, change, number], x).softmax(1)
            right = (p.argmax(1) == y).float().mean().item()
            found.append((p.amax(1).mean().item(), right, calibration_error(p, y)))
        calibrated[name, change] = list(zip(*found))
rows = []
for (name, change), columns in calibrated.items():
    words = "0.1" if change == "softened" else "none"
    rows.append((name, words, *(spread(values, ".3f") for values in columns)))
heads = ("data", "smoothing", "mean confidence", "accuracy", "calibration error")
table(rows, heads)

# %% tags=["calibrated-figure"] alt="Accuracy against confidence, two panels with a dashed diagonal. Digits: the line without smoothing lies somewhat above the diagonal, the line with smoothing far above it. Patches: the line without smoothing lies below the diagonal, the line with smoothing near it, on both sides."
_, both = plt.subplots(1, 2, figsize=(5, 2.8), sharey=True)
colours = {"unchanged": plots.COLOURS[1], "softened": plots.COLOURS[0]}
for axes, name in zip(both, data):
    x, y = data[name][2]
    axes.plot((0.3, 1), (0.3, 1), "--", color=plots.QUIET, linewidth=1)
    for change, colour in colours.items():
        runs = [training.predict(networks[name, change, n], x) for n in SEEDS]
        confidence, guess = torch.cat(runs).softmax(1).max(1)
        chunks = confidence.sort().indices.chunk(8)
        right = (guess == y.repeat(3)).float()
        points = [(confidence[c].mean(), right[c].mean()) for c in chunks]
        axes.plot(*zip(*points), "o-", color=colour, markersize=4)
    axes.set(xlabel=f"confidence, {name}", xlim=(0.2, 1), ylim=(0.2, 1.02))
    both[0].set(ylabel="accuracy")

# %% tags=["calibrated-record"]
for (name, change), columns in calibrated.items():
    key = f"{name}.{change}"
    record_spread(f"{key}.confidence", columns[0])
    record_spread(f"{key}.accuracy", columns[1])
    record_spread(f"{key}.error", columns[2])

# %% tags=["calibrated-claims"]
plain = {name: calibrated[name, "unchanged"] for name in data}
soft = {name: calibrated[name, "softened"] for name in data}
for name in data:
    words = f"{name}: smoothing lowers the mean confidence, seeds apart"
    claim(max(soft[name][0]) < min(plain[name][0]), words)
known = [networks["patches", "unchanged", n] for n in SEEDS]
known = [training.evaluate(network, patches[0]) for network in known]
record_spread("patches.known", known)
claim(min(known) > 0.93, "the perceptron knows nearly all of its 500 patches")
sure = all(a > b + 0.1 for a, b in zip(*plain["patches"][:2]))
claim(sure, "on patches confidence is above accuracy by more than 0.1")
smaller = max(soft["patches"][2]) < min(plain["patches"][2]) - 0.03
claim(smaller, "on patches smoothing makes the calibration error smaller, seeds apart")
modest = all(a < b for a, b in zip(*plain["digits"][:2]))
claim(modest, "on digits confidence is below accuracy")
larger = min(soft["digits"][2]) > max(plain["digits"][2]) + 0.03
claim(larger, "on digits smoothing makes the calibration error larger, seeds apart")

# %% [markdown]
# ## Erasing, and a square that hides a quarter


# %% tags=["hide"]
def hide(x: Tensor, side: int) -> Tensor:
    """Set a square of each picture (B, C, H, W) to 0 at a place that seed 0 draws."""
    generator = torch.Generator().manual_seed(0)
    hidden = x.clone()
    places = torch.randint(x.shape[2] - side + 1, (len(x), 2), generator=generator)
    for picture, (top, left) in zip(hidden, places.tolist()):
        picture[:, top : top + side, left : left + side] = 0
    return hidden


# %% tags=["hidden"]
SIDES = (0, 2, 4, 6, 8)
x, y = digits[2]
hidden = {}
for change in ("unchanged", "erased"):
    for number in SEEDS:
        network = networks["digits", change, number]
        scores = [training.evaluate(network, (hide(x, side), y)) for side in SIDES]
        hidden[change, number] = scores

# %% tags=["hidden-figure"] alt="Accuracy against the side of the hidden square, 0 to 8 of 16 pixels, two lines in bands of three seeds. Both begin near 0.84. Without erasing the line falls to about a third, with erasing to between 0.5 and 0.6."
_, axes = plt.subplots(figsize=(5, 2.8))
ends = {}
for change, colour in (("unchanged", plots.COLOURS[1]), ("erased", plots.COLOURS[0])):
    runs = torch.tensor([hidden[change, n] for n in SEEDS])
    name = {"unchanged": "without", "erased": "with erasing"}[change]
    ends[name] = plots.seed_band(axes, SIDES, runs, colour)
axes.set(xlabel="side of the hidden square, pixels of 16", ylabel="accuracy")
axes.set(ylim=(0, 1), xlim=(0, 10.6), xticks=SIDES)
plots.label_ends(axes, ends, (plots.COLOURS[1], plots.COLOURS[0]))

# %% tags=["hidden-claims"]
for side in (0, 8):
    k = SIDES.index(side)
    plain = [hidden["unchanged", n][k] for n in SEEDS]
    robust = [hidden["erased", n][k] for n in SEEDS]
    record_spread(f"hidden{side}.plain", plain)
    record_spread(f"hidden{side}.erased", robust)
words = "with 8 pixels hidden erasing is right more often, seeds apart"
claim(min(robust) > max(plain) + 0.05, words)

# %% [markdown]
# ## Between two digits

# %% tags=["between"]
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
x, y = digits[2]
differ = (y[:400] != y[400:800]).nonzero().flatten()
between = {}
for change in ("unchanged", "random_mixup"):
    for number in SEEDS:
        network = networks["digits", change, number]
        found = []
        for share in SHARES:
            mixed = share * x[differ] + (1 - share) * x[differ + 400]
            p = training.predict(network, mixed).softmax(1)
            found.append(p.gather(1, y[differ, None]).flatten())
        between[change, number] = torch.stack(found)  # (shares, pairs)

# %% tags=["between-figure"] alt="Distance between the confidence in a digit and its share of a blend, against that share, two lines in bands of three seeds. Both are near 0 at a share of 0 and rise to a hill at 0.6, where the line with mixup lies lower; at a share of 1 it ends above the other."
_, axes = plt.subplots(figsize=(5, 2.8))
ends = {}
colours = {"unchanged": plots.COLOURS[1], "random_mixup": plots.COLOURS[0]}
for change, colour in colours.items():
    runs = torch.stack([between[change, n] for n in SEEDS])
    away = (runs - torch.tensor(SHARES)[:, None]).abs().mean(2)
    name = {"unchanged": "without", "random_mixup": "with mixup"}[change]
    ends[name] = plots.seed_band(axes, SHARES, away, colour)
axes.set(xlabel="share of the digit in the blend", ylabel="distance")
axes.set(xlim=(0, 1.3), ylim=(0, None), xticks=SHARES)
plots.label_ends(axes, ends, tuple(colours.values()))

# %% tags=["between-claims"]
wanted = torch.tensor(SHARES)[:, None]
gaps = {key: (p - wanted).abs()[1:-1] for key, p in between.items()}
distance = {key: gap.mean().item() for key, gap in gaps.items()}
plain = [distance["unchanged", n] for n in SEEDS]
mixed = [distance["random_mixup", n] for n in SEEDS]
record_spread("between.plain", plain)
record_spread("between.mixup", mixed)
words = "with mixup the confidence is nearer the share"
claim(sum(mixed) / 3 < sum(plain) / 3 - 0.02, words)
claim(all(m < p for m, p in zip(mixed, plain)), f"{words}, for each seed")
away = {key: 1 - p[-1].mean().item() for key, p in between.items()}  # unmixed
plain = [away["unchanged", n] for n in SEEDS]
mixed = [away["random_mixup", n] for n in SEEDS]
claim(min(mixed) > max(plain) + 0.02, "on an unmixed digit it is farther from 1")

# %% [markdown]
# ## The average and the network that it follows


# %% tags=["follow"]
def follow(network: nn.Module, part, validation, *, decay: float = 0.95):
    """Train at a constant rate; every third step the loss of network and average.

    15 epochs of batches of 50; the first three are passed over. Returns two lists.
    """
    x, y = part
    average = MovingAverage(network, decay)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9)
    losses = ([], [])
    steps = 0
    for _ in range(15):
        for chosen in torch.randperm(len(y)).split(50):
            network.train()
            loss = F.cross_entropy(network(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update(network)
            steps += 1
            if steps > 24 and steps % 3 == 0:
                for values, model in zip(losses, (network, average.network)):
                    logits = training.predict(model, validation[0])
                    values.append(F.cross_entropy(logits, validation[1]).item())
    return losses


# %% tags=["follow-run"]
followed = {}
validation = [t[:150] for t in digits[1]]
part = [t.to(device) for t in digits[0]]
for number in SEEDS:
    seed(number)
    network = SmallNetwork(1).to(device, memory_format=torch.channels_last)
    followed[number] = follow(network, part, validation)

# %% tags=["follow-figure"] alt="Validation loss against steps for one seed, on a logarithmic scale. The line of the network jumps up and down from one point to the next; the line of the averaged weights falls smoothly and ends below most of these points."
_, axes = plt.subplots(figsize=(5, 2.8))
steps = [27 + 3 * k for k in range(len(followed[0][0]))]
ends = {}
for k, name in enumerate(("average", "network")):
    values = followed[0][1 - k]
    axes.plot(steps, values, color=plots.COLOURS[k], linewidth=2 - k / 2)
    ends[name] = (steps[-1], values[-1])
axes.set(xlabel="steps", ylabel="validation loss", yscale="log", xlim=(24, 150))
axes.minorticks_off()
axes.set(yticks=(0.6, 1, 2, 3), yticklabels=("0.6", "1", "2", "3"))
axes.set(xticks=range(30, 121, 30))
plots.label_ends(axes, ends)


# %% tags=["jumps"]
def jumps(values) -> float:
    """Standard deviation of the change from one point to the next."""
    return torch.tensor(values).diff().std().item()


# %% tags=["follow-claims"]
raw = [jumps(followed[n][0]) for n in SEEDS]
smooth = [jumps(followed[n][1]) for n in SEEDS]
record_spread("jumps.network", raw)
record_spread("jumps.average", smooth)
last = [[sum(followed[n][k][-16:]) / 16 for n in SEEDS] for k in (0, 1)]
record_spread("last.network", last[0])
record_spread("last.average", last[1])
words = "over the last steps the averages are below their networks, in the mean"
claim(sum(last[1]) < sum(last[0]), words)
claim(max(smooth) * 2 < min(raw), "the average's loss jumps less than half as far")

# %% tags=["average-checked"]
seed(0)
network = SmallNetwork(1)
library = AveragedModel(
    network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True
)
library.update_parameters(network)  # the first one copies
ours = MovingAverage(network, 0.9)
for _ in range(5):
    network(torch.randn(4, 1, 8, 8))  # moves the memory of the norms
    for p in network.parameters():
        p.data += torch.randn(p.shape)
    library.update_parameters(network)
    ours.update(network)
x = torch.randn(4, 1, 8, 8)
deviations["average"] = checks.same_outputs(ours.network, library.module, x)

# %% tags=["equal"]
KINDS = {
    "rate": "all 600 epochs, SequentialLR",
    "TrivialAugment": "300 draws, v2.TrivialAugmentWide",
    "random erasing": "300 draws, v2.RandomErasing",
    "label smoothing": "cross_entropy of torch",
    "mixup": "100 draws, v2.MixUp",
    "CutMix": "100 draws, v2.CutMix",
    "random crop": "300 draws, v2.RandomResizedCrop",
    "average": "5 updates, AveragedModel",
    "repeated augmentation": "8 GPUs, timm's RepeatAugSampler",
}
rows = [(name, KINDS[name], f"{deviations[name]:.1g}") for name in KINDS]
claim(max(deviations.values()) < 1e-5, "each of these does what the library does")
record("deviation", max(deviations.values()))
table(rows, ("step", "against", "difference"))

# %% [markdown]
# ## Loading the pictures


# %% tags=["jpeg"]
def jpeg(picture: Tensor, size: tuple[int, int]) -> bytes:
    """A photograph (3, H, W) as a file of this width and height."""
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    file = io.BytesIO()
    image.resize(size).save(file, "JPEG", quality=90)
    return file.getvalue()


# %% tags=["files"]
FIVE = ("astronaut", "chelsea", "coffee", "china", "flower")
files = [jpeg(photographs[name], (500, 375)) for name in FIVE]
record("files.kb", sum(map(len, files)) / len(files) / 1000)


# %% tags=["stages"]
def decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


LOADING = {  # what each stage does to what the one before left
    "decode": decoded,
    "crop and scale to 176": v2.RandomResizedCrop(176),
    "flip": v2.RandomHorizontalFlip(),
    "TrivialAugment": v2.TrivialAugmentWide(),
    "to a tensor": v2.PILToTensor(),
    "to floats": v2.ToDtype(torch.float32, scale=True),
    "subtract, divide": v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def seconds_of_stages(files: list[bytes], repeats: int) -> dict[str, float]:
    """CPU seconds of one picture in each stage."""
    seconds = dict.fromkeys(LOADING, 0.0)
    for data in files * repeats:
        for name, stage in LOADING.items():
            start = time.process_time()
            data = stage(data)
            seconds[name] += time.process_time() - start
    return {name: s / repeats / len(files) for name, s in seconds.items()}


# %% tags=["compute"]
def seconds_of_training() -> float:
    """CPU seconds of ResNet-50 for a picture of 176 pixels: forward, backward, step."""
    network = torchvision.models.resnet50()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    x = torch.randn(1, 3, 176, 176)
    for _ in range(2):  # the first step sets things up, the second is timed
        start = time.process_time()
        optimizer.zero_grad()
        network(x).sum().backward()
        optimizer.step()
    return time.process_time() - start


# %% tags=["stages-run"]
seed(0)
seconds_of_stages(files, 2)  # the first calls set things up
stage_seconds = seconds_of_stages(files, 20)
loading = sum(stage_seconds.values())
computing = seconds_of_training()

# %% tags=["stages-table", "times"]
rows = []
for name, value in stage_seconds.items():
    rows.append((name, f"{1000 * value:.2f}", f"{value / loading:.0%}"))
rows.append(("all stages", f"{1000 * loading:.2f}", "100%"))
record("time.rate", 1 / loading)
record("time.compute", computing / loading)
record("time.cores", 2470 * loading)
table(rows, ("stage", "CPU ms a picture", "share"))


# %% tags=["sizes"]
def reduced(data: bytes) -> Image.Image:
    """Decoded at a half, quarter or eighth of each side; at least 176 pixels stay."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (176, 176))
    return image.convert("RGB")


DECODERS = {"whole": decoded, "reduced": reduced}


def seconds_of_decoding(decoder, files: list[bytes], repeats: int) -> float:
    """CPU seconds of one picture."""
    start = time.process_time()
    for data in files * repeats:
        decoder(data)
    return (time.process_time() - start) / repeats / len(files)


# %% tags=["sizes-run"]
decoding = {}
kilobytes = {}
for width in (160, 320, 640, 1280):
    stored = [jpeg(photographs[name], (width, width * 3 // 4)) for name in FIVE]
    kilobytes[width] = sum(map(len, stored)) / len(stored) / 1000
    for name, decoder in DECODERS.items():
        seconds_of_decoding(decoder, stored, 1)
        decoding[name, width] = seconds_of_decoding(decoder, stored, 6400 // width)

# %% tags=["sizes-table", "times"]
rows = []
for width, kb in kilobytes.items():
    times = [
        f"{decoding[name, width] / decoding['whole', 160]:.1f}" for name in DECODERS
    ]
    rows.append((f"{width}×{width * 3 // 4}", f"{kb:.0f}", (width // 160) ** 2, *times))
for name in DECODERS:
    record(f"time.decode.{name}", decoding[name, 1280] / decoding["whole", 160])
heads = ("size", "kB", "pixels", "time to decode", "reduced")
table(rows, heads)


# %% tags=["slow"]
class Slow(Dataset):
    """Stands for pictures that each take `seconds` to load; costs no processor."""

    def __init__(self, n: int, seconds: float):
        self.n = n
        self.seconds = seconds

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        time.sleep(self.seconds)
        return index


def step_seconds(
    workers: int, *, load: float, compute: float, steps: int = 12
) -> float:
    """Seconds of one step: a batch of 4 that takes `load` to read, then `compute`."""
    context = multiprocessing.get_context("fork") if workers else None
    pictures = Slow(4 * (steps + 6), load / 4)
    loader = DataLoader(
        pictures, batch_size=4, num_workers=workers, multiprocessing_context=context
    )
    for number, _ in enumerate(loader):
        if number == 5:  # what the workers had read ahead is used up
            start = time.perf_counter()
        if number == 5 + steps:
            return (time.perf_counter() - start) / steps
        time.sleep(compute)


# %% tags=["workers"]
LOAD = 0.1
COMPUTE = 0.05
WORKERS = (0, 1, 2)
taken = {w: step_seconds(w, load=LOAD, compute=COMPUTE) for w in WORKERS}

# %% tags=["workers-table", "times"]
rows = []
for workers, value in taken.items():
    expected = max(COMPUTE, LOAD / workers) if workers else LOAD + COMPUTE
    rows.append((workers, f"{expected / COMPUTE:.0f}", f"{value / COMPUTE:.1f}"))
    record(f"time.workers{workers}", value / COMPUTE)
table(rows, ("workers", "formula, in computing times", "measured"))

# %% [markdown]
# ## Solutions of the exercises

# %% tags=["solution-1"]
area = torch.empty(DRAWS).uniform_(0.08, 1)  # any part, whether it fits or not
by_hand = 2 * (1 - math.sqrt(0.08)) / 0.92
by_hand, (1 / area.sqrt()).mean().item()

# %% tags=["solution-1-record"]
factor = 224 / math.sqrt(PHOTO[0] * PHOTO[1])
record("solution.hand", by_hand * factor)
claim(scales.mean() > 1.05 * by_hand * factor, "parts that fit are smaller on average")

# %% tags=["solution-2"]
recipe = decay_of_update(0.99998, batch=1024, every=32, epochs=600)
rows = []
for decay in (0.95, 0.999, recipe):
    rows.append((f"{decay:.6g}", f"{math.log(0.01) / math.log(decay):,.0f}"))
table(rows, ("decay", "updates until the start counts 1 %"))

# %% tags=["solution-3"]
x, y = patches[2]
rows = []
for amount in (0.05, 0.4):
    seed(0)
    network = Perceptron().to(device)
    change = functools.partial(softened, amount=amount)
    train(network, patches[0], change, epochs=40, rate=0.02)
    p = training.predict(network, x).softmax(1)
    rows.append((amount, p.amax(1).mean().item(), calibration_error(p, y)))

# %% tags=["solution-3-result"]
heads = ("amount", "mean confidence", "calibration error")
table([(a, f"{c:.3f}", f"{e:.3f}") for a, c, e in rows], heads)
claim(rows[0][1] > rows[1][1] + 0.1, "the more smoothing, the less confidence")
plain = calibrated["patches", "unchanged"][2]
claim(rows[1][2] > max(plain) + 0.03, "0.4 is too much: a larger error than with none")

# %% tags=["solution-4"]
seed(0)
network = SmallNetwork(1).to(device, memory_format=torch.channels_last)
train(network, digits[0], lambda x, targets: (random_erase(x, 0.5), targets))
x, y = digits[2]
often = [training.evaluate(network, (hide(x, side), y)) for side in (0, 8)]
often

# %% tags=["solution-4-record"]
record("often.whole", often[0])
record("often.hidden", often[1])

# %% [markdown]
# ## What we saw
#
# - Each step is a few lines; those with draws or a formula do what the library does.
# - Smoothing lowers confidence in both cases; erasing helps where something is hidden;
#   mixup makes confidence follow the share; an average jumps less than what it follows.
# - A picture costs milliseconds of a processor, and a GPU asks for thousands a second.
