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
# # AlexNet
#
# The network of 2012 with its two towers, proven equal to two networks that exchange maps, and torchvision's
# variant of 2014; then its parts in small: rectified linear units, augmentation, the test on ten crops.
# The text to it is the [chapter](../chapters/alexnet.rst), the paper is
# [Krizhevsky et al. 2012](https://papers.nips.cc/paper/2012/hash/c399862d3b9d6b76c8436e924a68c45b-Abstract.html).

# %%
from collections import OrderedDict

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import (
    PROFILE,
    claim,
    device,
    finite,
    record,
    record_spread,
    seed,
    spread,
    table,
)
from workbench import checks, counting, drawing, images, plots, tracing, training

# %% [markdown]
# ## Local response normalisation
#
# Each value is divided by a power of the squares around it: at the same place, in the maps next to its own.


# %% tags=["response-norm"]
def response_norm(
    a: Tensor, n: int = 5, k: float = 2, alpha: float = 1e-4, beta: float = 0.75
):
    """b_i = a_i / (k + alpha * sum of a_j^2 over the n maps around i)^beta, n odd; section 3.3.

    (B, C, H, W) -> the same; beyond the first and the last map there is nothing to add.
    """
    C = a.shape[1]
    squares = F.pad(a.square(), (0, 0, 0, 0, n // 2, n // 2))  # (B, C + n - 1, H, W)
    around = sum(squares[:, j : j + C] for j in range(n))  # (B, C, H, W)
    return a / (k + alpha * around) ** beta


class ResponseNorm(nn.Module):
    """Local response normalisation inside each tower: the maps of the other one are not at hand."""

    def __init__(self, towers: int):
        super().__init__()
        self.towers = towers

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        x = x.reshape(
            B * self.towers, C // self.towers, H, W
        )  # (B * towers, C / towers, H, W)
        return response_norm(x).reshape(B, C, H, W)  # (B, C, H, W)


# %% [markdown]
# torch divides `alpha` by `n`, the paper does not, so the paper's 10⁻⁴ is 5 · 10⁻⁴ there.

# %% tags=["response-equal"]
seed(0)
x = 30 * torch.randn(2, 48, 9, 7)  # large enough for the sum to matter
theirs = F.local_response_norm(x, size=5, alpha=5 * 1e-4, beta=0.75, k=2)
unscaled = F.local_response_norm(x, size=5, alpha=1e-4, beta=0.75, k=2)
deviations = [checks.deviation(response_norm(x), y) for y in (theirs, unscaled)]
claim(
    deviations[0] < 1e-6,
    "with five times alpha torch's normalisation gives what ours gives",
)
claim(deviations[1] > 1e-6, "with the same alpha it gives something else")
record("norm.deviation", deviations[0])
record("norm.unscaled", deviations[1])
table([(f"{d:.1e}" for d in deviations)], ("alpha × 5 in torch", "same alpha in torch"))

# %% [markdown]
# ## The network of 2012
#
# A convolution with `groups=2` is two convolutions side by side: its first half of output maps reads the first half
# of the input maps, the second the second. That is a tower on each GPU. Where a layer has one group, both halves read
# everything.


# %% tags=["parts"]
def conv(
    c_in: int, c_out: int, size: int, stride: int = 1, padding: int = 0, groups: int = 1
):
    """Convolution and ReLU."""
    layer = nn.Conv2d(c_in, c_out, size, stride, padding, groups=groups)
    return nn.Sequential(layer, nn.ReLU())


def pool() -> nn.Module:
    """Maximum over 3x3, every 2 pixels, so that windows overlap; section 3.4."""
    return nn.MaxPool2d(3, 2)


def dense(n_in: int, n_out: int) -> nn.Sequential:
    """Linear layer, ReLU and dropout of its outputs; section 4.2."""
    return nn.Sequential(nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(0.5))


# %% tags=["two-tower"]
def alexnet(
    widths=(96, 256, 384, 384, 256),
    hidden=4096,
    num_classes=1000,
    first=(11, 4, 0),
    side=6,
    towers=2,
) -> nn.Sequential:
    """The network of section 3.5 and figure 2: (B, 3, 227, 227) -> (B, num_classes).

    widths: maps of the five convolutions, of all towers. first: size, stride and padding of the first
    kernel. side: of the maps behind the last pooling. Halves of the maps are the two towers.
    """
    c1, c2, c3, c4, c5 = widths
    parts = OrderedDict(
        conv1=conv(3, c1, *first).extend([ResponseNorm(towers), pool()]),
        conv2=conv(c1, c2, 5, padding=2, groups=towers).extend(
            [ResponseNorm(towers), pool()]
        ),
        conv3=conv(c2, c3, 3, padding=1),
        conv4=conv(c3, c4, 3, padding=1, groups=towers),
        conv5=conv(c4, c5, 3, padding=1, groups=towers).append(pool()),
        fc6=nn.Sequential(nn.Flatten(), *dense(c5 * side * side, hidden)),
        fc7=dense(hidden, hidden),
        fc8=nn.Linear(hidden, num_classes),
    )
    return nn.Sequential(parts)


# %% [markdown]
# ### The variant of 2014
#
# One tower and fewer maps in the first two layers. The form that torchvision calls `alexnet` also leaves the response
# normalisation out and has dropout in front of the linear layers instead of behind them.


# %% tags=["one-tower"]
def alexnet_2014(
    widths=(64, 192, 384, 256, 256), num_classes: int = 1000
) -> nn.Sequential:
    """The single column of Krizhevsky 2014 with the fourth width of his code and without his response
    normalisation, as in torchvision.

    (B, 3, H, W) -> (B, num_classes) from 63 pixels a side; a mean over cells brings other sizes to 6x6.
    """
    c1, c2, c3, c4, c5 = widths
    parts = OrderedDict(
        conv1=conv(3, c1, 11, 4, padding=2).append(pool()),
        conv2=conv(c1, c2, 5, padding=2).append(pool()),
        conv3=conv(c2, c3, 3, padding=1),
        conv4=conv(c3, c4, 3, padding=1),
        conv5=conv(c4, c5, 3, padding=1).append(pool()),
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten()),
        fc6=nn.Sequential(nn.Dropout(0.5), nn.Linear(c5 * 36, 4096), nn.ReLU()),
        fc7=nn.Sequential(nn.Dropout(0.5), nn.Linear(4096, 4096), nn.ReLU()),
        fc8=nn.Linear(4096, num_classes),
    )
    return nn.Sequential(parts)


# %% tags=["count"]
FOOTNOTE = (64, 192, 384, 384, 256)  # Krizhevsky 2014, page 5
networks = {
    "2012, two towers": (alexnet, 227),
    "2012, towers joined": (lambda: alexnet(towers=1), 227),
}
networks["2014, torchvision"] = (alexnet_2014, 224)
networks["2014, footnote 1"] = (lambda: alexnet_2014(FOOTNOTE), 224)
rows = []
for name, (build, size) in networks.items():
    with torch.device("meta"):
        network, x = build(), torch.empty(1, 3, size, size)
    rows.append((name, size, counting.parameters(network), counting.macs(network, x)))
for key, row in zip(("two", "joined", "single", "footnote"), rows):
    for unit, value in zip(("parameters", "macs"), row[2:]):
        record(f"{key}.{unit}", value)
        record(
            f"{key}.{unit}.more", value / rows[0][2 if unit == "parameters" else 3] - 1
        )
table(rows, ("network", "input", "parameters", "MACs"))

# %% [markdown]
# ### How large is the input?
#
# The paper says 224×224, kernels of 11×11, stride 4. We count what follows from each way to read that.


# %% tags=["input-size"]
def sides(size: int, padding: int = 0) -> list[int]:
    """Sides of the maps behind conv1, pool1, pool2 and pool5."""
    found = [(size + padding - 11) // 4 + 1]
    for _ in range(3):
        found.append((found[-1] - 3) // 2 + 1)
    return found


# %% tags=["input-count"]
rows = []
for size, padding in ((224, 0), (227, 0), (224, 3), (224, 4)):
    found = sides(size, padding)
    with torch.device("meta"):
        network = alexnet(side=found[-1])
        x = F.pad(torch.empty(1, 3, size, size), (0, padding, 0, padding))
        claim(
            network(x).shape == (1, 1000),
            f"the network takes {size} pixels and {padding} zeros",
        )
    units = (
        sum(n * s * s for n, s in zip((96, 256, 384 * 2 + 256), found))
        + 2 * 4096
        + 1000
    )
    rows.append((size, padding, *found, counting.parameters(network), units))
columns = (
    "input",
    "zeros added",
    "conv1",
    "pool1",
    "pool2",
    "pool5",
    "parameters",
    "units",
)
record("short.parameters", rows[0][-2])
table(rows, columns)

# %% tags=["drawn"] alt="The network of 2012 from top to bottom, with output shape and parameters at the right: the input of 3x227x227, five convolutional stages whose maps shrink from 27 over 13 to 6 pixels a side, then fc6, fc7 and fc8 with 4096, 4096 and 1000 values. Most parameters stand beside fc6 and fc7."
with torch.device("meta"):
    network, x = alexnet(), torch.empty(1, 3, 227, 227)
drawing.draw(network, x)


# %% [markdown]
# ## Two devices
#
# The independent form: two networks of half the width, with no group anywhere, torch's own normalisation, and a
# place where both put their maps when the other needs them.


# %% tags=["tower"]
class TorchNorm(nn.Module):
    """Local response normalisation as torch has it, which divides alpha by the size of the window."""

    def forward(self, x: Tensor) -> Tensor:
        return F.local_response_norm(x, size=5, alpha=5e-4, beta=0.75, k=2)


def tower() -> nn.ModuleDict:
    """Half of the maps of each layer; conv3 and the dense layers read the maps of both towers."""
    parts = {
        "conv1": nn.Sequential(nn.Conv2d(3, 48, 11, 4), nn.ReLU(), TorchNorm(), pool()),
        "conv2": nn.Sequential(
            nn.Conv2d(48, 128, 5, 1, 2), nn.ReLU(), TorchNorm(), pool()
        ),
        "conv3": nn.Sequential(nn.Conv2d(256, 192, 3, 1, 1), nn.ReLU()),
        "conv4": nn.Sequential(nn.Conv2d(192, 192, 3, 1, 1), nn.ReLU()),
        "conv5": nn.Sequential(
            nn.Conv2d(192, 128, 3, 1, 1), nn.ReLU(), pool(), nn.Flatten()
        ),
        "fc6": nn.Sequential(nn.Linear(9216, 2048), nn.ReLU(), nn.Dropout(0.5)),
        "fc7": nn.Sequential(nn.Linear(4096, 2048), nn.ReLU(), nn.Dropout(0.5)),
        "fc8": nn.Linear(4096, 500),
    }
    return nn.ModuleDict(parts)


# %% tags=["two-devices"]
class TwoDevices(nn.Module):
    """Two towers that meet in four places; each may live on a device of its own.

    `sent` counts the numbers that one tower sends to the other, for each image and layer.
    """

    exchange = ("conv3", "fc6", "fc7", "fc8")

    def __init__(self):
        super().__init__()
        self.first, self.second = tower(), tower()
        self.sent = {}

    def forward(self, image: Tensor) -> Tensor:
        # (B, 3, 227, 227) -> (B, 1000), on the device of the first tower
        here, there = (next(t.parameters()).device for t in (self.first, self.second))
        a, b = image.to(here), image.to(there)
        for name in self.first:
            if name in self.exchange:
                self.sent[name] = a[0].numel()
                a, b = torch.cat((a, b.to(here)), 1), torch.cat((a.to(there), b), 1)
            a, b = self.first[name](a), self.second[name](b)
        return torch.cat((a, b.to(here)), 1)


def split_weights(network: nn.Module, pair: TwoDevices) -> None:
    """Give the first half of the outputs of each layer to one tower, the second half to the other."""
    halves = [tensor.chunk(2) for tensor in network.state_dict().values()]
    for half, part in enumerate((pair.first, pair.second)):
        names = part.state_dict()
        part.load_state_dict(
            {name: both[half] for name, both in zip(names, halves, strict=True)}
        )


# %% tags=["he"]
@torch.no_grad()
def he(network: nn.Module) -> nn.Module:
    """Weights of variance 2 / inputs, which keep the signal at its size from layer to layer; biases 0.1."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.constant_(layer.bias, 0.1)
    return network


# %% tags=["towers-equal"]
seed(0)
network, pair = he(alexnet()), TwoDevices()
split_weights(network, pair)
deviation = checks.same_outputs(pair, network, 30 * torch.randn(2, 3, 227, 227))
same_count = counting.parameters(pair) == counting.parameters(network)
claim(same_count, "the two towers together have the parameters of the grouped network")
record("towers.deviation", deviation)
record("towers.sent", sum(pair.sent.values()))
table(pair.sent.items(), ("in front of", "numbers sent by each tower"))


# %% [markdown]
# The same on the grouped network itself, by behaviour: which half of a layer's output depends on which half of its
# input? A derivative that is not zero says so.


# %% tags=["wiring"]
def wiring(
    network: nn.Module, image: Tensor, towers: int = 2
) -> dict[str, list[list[bool]]]:
    """For each stage, whether the maps of a tower (row) depend on those of a tower below (column)."""
    found, x = {}, image
    for name, stage in network.eval().named_children():
        x = x.detach().requires_grad_()
        y = stage(x)
        found[name] = []
        for part in y.chunk(towers, 1):
            (gradient,) = torch.autograd.grad(part.sum(), x, retain_graph=True)
            found[name].append([bool(half.any()) for half in gradient.chunk(towers, 1)])
        x = y
    return found


# %% tags=["layout"]
def draw_layout(
    reads: dict[str, list[list[bool]]], shapes: dict[str, tuple[int, ...]]
) -> None:
    """Two columns, one for each GPU; arrows where a tower reads the maps of a tower below."""
    _, axes = plt.subplots(figsize=(5, 6.4))
    axes.set(xlim=(0, 10), ylim=(-len(reads) - 0.4, 0.95))
    axes.axis("off")
    places, colours = (3.4, 7), (plots.COLOURS[0], plots.COLOURS[2])
    for place, colour, text in zip(places, colours, ("GPU 1", "GPU 2")):
        axes.text(place, 0.62, text, ha="center", color=colour, weight="bold")
    axes.add_patch(
        plt.Rectangle((2.1, -0.24), 6.2, 0.48, fill=False, edgecolor=plots.QUIET)
    )
    axes.text(5.2, 0, "image, 3×227×227", ha="center", va="center", fontsize=11)
    for y, (name, wires) in enumerate(reads.items(), start=1):
        axes.text(0, -y, name, va="center", weight="bold")
        source = (
            "image" if name == "conv1" else "both" if all(map(all, wires)) else "own"
        )
        axes.text(8.6, -y, source, va="center", color=plots.QUIET)
        half = "×".join(map(str, (shapes[name][0] // 2, *shapes[name][1:])))
        for row, (place, colour) in enumerate(zip(places, colours)):
            axes.add_patch(
                plt.Rectangle(
                    (place - 1.3, -y - 0.24), 2.6, 0.48, fill=False, ec=colour
                )
            )
            axes.text(place, -y, half, ha="center", va="center", fontsize=11)
            for column, start in enumerate(places):
                if wires[row][column] and (name != "conv1" or row == column):
                    own = row == column
                    arrow = drawing.ARROW | {
                        "color": plots.QUIET if own else plots.COLOURS[1]
                    }
                    end = (
                        (place, -y + 0.25)
                        if own
                        else (place + (start - place) * 0.15, -y + 0.25)
                    )
                    axes.annotate("", end, (start, -y + 0.75), arrowprops=arrow)


# %% tags=["layout-figure"] alt="Two columns of boxes under one image, GPU 1 and GPU 2, eight rows from conv1 to fc8. Straight arrows lead down each column. Crossing arrows between the columns stand only above conv3, fc6, fc7 and fc8, which are marked both; conv1 is marked image, and conv2, conv4 and conv5 are marked own."
image = torch.randn(1, 3, 227, 227)
reads = wiring(network, image)
shapes = {name: shape for name, shape, _ in tracing.stages(network, image)}
draw_layout(reads, shapes)
crossing = [name for name, wires in reads.items() if all(map(all, wires))]
expected = ["conv1", *TwoDevices.exchange]  # conv1: the image has no halves
claim(
    crossing == expected,
    "the towers meet in conv3 and the dense layers and nowhere else",
)

# %% [markdown]
# ## Equal to torchvision

# %% tags=["torchvision-equal"]
seed(0)
reference, single = he(torchvision.models.alexnet()), alexnet_2014()
checks.transplant(reference, single)
deviations = []
for height, width in ((224, 224), (131, 97)):
    deviations.append(
        checks.same_outputs(single, reference, torch.randn(3, 3, height, width))
    )
record("torchvision.deviation", max(deviations))
table([(f"{d:.1e}" for d in deviations)], ("224×224", "131×97"))

# %% [markdown]
# ## How it is trained
#
# Section 5 of the paper writes the update out. The rate is inside the velocity $v$, so after the rate has been lowered
# the old, larger steps go on for a while. torch keeps a velocity without the rate and multiplies by the present one.


# %% tags=["update"]
class PaperSGD(torch.optim.Optimizer):
    """v <- momentum v - decay lr w - lr gradient, then w <- w + v; Krizhevsky et al. 2012, section 5."""

    def __init__(self, parameters, lr=0.01, momentum=0.9, weight_decay=0.0005):
        super().__init__(
            parameters, {"lr": lr, "momentum": momentum, "decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure=None):
        loss = torch.enable_grad()(closure)() if closure else None
        for group in self.param_groups:
            for w in (w for w in group["params"] if w.grad is not None):
                v = self.state[w].setdefault("v", torch.zeros_like(w))
                v.mul_(group["momentum"]).sub_(
                    group["lr"] * (w.grad + group["decay"] * w)
                )
                w.add_(v)
        return loss


# %% tags=["update-steps"]
lengths = {}
for kind in (PaperSGD, torch.optim.SGD):
    w, lengths[kind] = nn.Parameter(torch.zeros(1)), []
    optimizer = kind([w], lr=0.01, momentum=0.9, weight_decay=0)
    for step in range(1, 61):
        optimizer.param_groups[0]["lr"] = 0.01 if step <= 50 else 0.001
        before, w.grad = w.item(), torch.ones(1)  # the slope is 1 everywhere
        optimizer.step()
        lengths[kind].append(before - w.item())
rows = [
    (step, *(f"{values[step - 1]:.4f}" for values in lengths.values()))
    for step in (49, 50, 51, 55, 60)
]
table(rows, ("step", "length, paper", "length, torch"))


# %% tags=["initialise"]
@torch.no_grad()
def initialise(network: nn.Module) -> nn.Module:
    """Weights normal with deviation 0.01; biases 1 in conv2, conv4, conv5, fc6, fc7, else 0; section 5."""
    for name, stage in network.named_children():
        for layer in stage.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.normal_(0, 0.01)
                layer.bias.fill_(name in ("conv2", "conv4", "conv5", "fc6", "fc7"))
    return network


# %% [markdown]
# ## Augmentation and the test on ten crops
#
# The paper enlarges its images without storing any: crops of 7/8 of the side, mirror images, and a shift along the
# principal axes of colour.


# %% tags=["crops"]
def random_crops(x: Tensor, size: int) -> Tensor:
    """A random window of each image, mirrored half of the time: (B, C, H, W) -> (B, C, size, size)."""
    H, W = x.shape[-2:]
    pieces = []
    for image in x:
        top, left = torch.randint(H - size + 1, ()), torch.randint(W - size + 1, ())
        piece = image[:, top : top + size, left : left + size]
        pieces.append(piece.flip(-1) if torch.rand(()) < 0.5 else piece)
    return torch.stack(pieces)


def ten_crops(x: Tensor, size: int) -> Tensor:
    """Corners, centre and their mirror images: (B, C, H, W) -> (B, 10, C, size, size); section 4.1."""
    bottom, right = x.shape[-2] - size, x.shape[-1] - size
    corners = [
        (0, 0),
        (0, right),
        (bottom, 0),
        (bottom, right),
        (bottom // 2, right // 2),
    ]
    both = (x, x.flip(-1))
    crops = [y[..., i : i + size, j : j + size] for y in both for i, j in corners]
    return torch.stack(crops, 1)  # (B, 10, C, size, size)


# %% tags=["colour"]
def colour_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (3,) and eigenvectors, in columns, of the covariance of the colours of all pixels."""
    return torch.linalg.eigh(torch.cov(x.transpose(0, 1).flatten(1)))


def shift_colour(
    x: Tensor, values: Tensor, vectors: Tensor, sigma: float = 0.1
) -> Tensor:
    """Add p_1 a_1 l_1 + p_2 a_2 l_2 + p_3 a_3 l_3 to all pixels of an image, a_i normal; section 4.1."""
    a = sigma * torch.randn(len(x), 3, device=x.device)
    return x + ((a * values) @ vectors.T)[:, :, None, None]


class Augment(nn.Module):
    """In training random crops, mirrors and colours; else the window in the middle."""

    def __init__(self, size: int, values: Tensor, vectors: Tensor):
        super().__init__()
        self.size = size
        self.register_buffer("values", values)
        self.register_buffer("vectors", vectors)

    def forward(self, x: Tensor) -> Tensor:
        # (B, 3, H, W) -> (B, 3, size, size)
        if self.training:
            return random_crops(shift_colour(x, self.values, self.vectors), self.size)
        top, left = ((side - self.size) // 2 for side in x.shape[-2:])
        return x[..., top : top + self.size, left : left + self.size]


# %% tags=["data"]
IMAGES = 1000 if PROFILE == "sample" else 20_000
data = images.patches()
mean, std = data.train[0].mean((0, 2, 3), keepdim=True), data.train[0].std()
train_part, validation, test = [((x - mean) / std, y) for x, y in data[:3]]
train_part = train_part[0][:IMAGES], train_part[1][:IMAGES]
values, vectors = colour_axes(train_part[0])
record("images", len(train_part[1]))
record("classes", len(data.classes))
table(
    [(n, *p[0].shape) for n, p in zip(data._fields, (train_part, validation, test))],
    ("part", "N", "C", "H", "W"),
)

# %% tags=["augmentation"] alt="A portrait photograph eight times in two rows. The first row shows the whole picture and three crops of it at different places; in the first two crops the flag has moved from the left to the right. The second row shows the middle crop four times, twice hardly changed, once lighter and warmer and once lighter."
seed(3)
picture = (images.photograph(128, 128) - mean) / std
crops = random_crops(picture.repeat(3, 1, 1, 1), 112)
shifted = shift_colour(picture[..., 8:120, 8:120].repeat(4, 1, 1, 1), values, vectors)
shown = [(x * std + mean[0]).clamp(0, 1) for x in (*picture, *crops, *shifted)]
titles = ["128×128", *["112×112"] * 3, *["colour"] * 4]
plots.image_grid(shown, titles, columns=4, scale=1.2)

# %% tags=["crop-count"]
size, crop = 256, 224
record("crops.windows", 2 * (size - crop + 1) ** 2)
x = torch.rand(2, 3, 40, 40)
theirs = torch.stack(torchvision.transforms.functional.ten_crop(x, 36), 1)
claim(torch.equal(ten_crops(x, 36), theirs), "our ten crops are those of torchvision")
2 * (size - crop + 1) ** 2

# %% [markdown]
# ## ReLU against tanh
#
# Figure 1 of the paper: a network of four layers, once with ReLU and once with tanh, each at its own best rate,
# without regularisation. We run it twice: on pixels scaled to deviation 1, as is usual today, and on pixels
# in 0..255 with their mean subtracted, as in the paper (section 2).


# %% tags=["four-layers"]
EPOCHS = 8
SEEDS = (0, 1, 2)
UNITS = {"ReLU": lambda: four_layers(nn.ReLU), "tanh": lambda: four_layers(nn.Tanh)}
SCALES = {"deviation 1": 1.0, "0..255": 255.0}
RATES = {  # tried
    ("ReLU", "deviation 1"): (0.01, 0.03, 0.1),
    ("tanh", "deviation 1"): (0.01, 0.03, 0.1),
    ("ReLU", "0..255"): (0.0003, 0.001, 0.003),
    ("tanh", "0..255"): (0.003, 0.01, 0.03),
}


def four_layers(
    activation: type[nn.Module], width: int = 16, num_classes: int = 10
) -> nn.Sequential:
    """Three convolutions and a linear layer for patches: (B, 3, 32, 32) -> (B, num_classes).

    Both functions are monotone, so behind the maximum they give what they give in front, for less work.
    """
    return nn.Sequential(
        *(nn.Conv2d(3, width, 5, 2, padding=2), pool(), activation()),
        *(nn.Conv2d(width, 2 * width, 3, padding=1), pool(), activation()),
        *(nn.Conv2d(2 * width, 2 * width, 3, padding=1), activation(), nn.Flatten()),
        nn.Linear(2 * width * 9, num_classes),
    )


def learn(build, part, rate: float, number: int, epochs: int) -> list[float]:
    """Error on the training part after each epoch of the network that `build` makes."""
    seed(number)
    network = build().to(
        device, memory_format=torch.channels_last
    )  # half the time on a CPU
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    history = training.fit(network, part, epochs, optimizer, validation=part)
    return [1 - right for right in history["validation"]]


# %% tags=["rates"]
best, rows, parts = {}, [], {}
for units, scale in SCALES.items():
    factor = scale * std if units == "0..255" else scale
    parts[units] = train_part[0] * factor, train_part[1]
for (kind, units), rates in RATES.items():
    means = {
        rate: sum(learn(UNITS[kind], parts[units], rate, 9, 3)) / 3 for rate in rates
    }
    best[kind, units] = min(means, key=means.get)
    rows.append(
        (kind, units, *(f"{rate:g}: {mean:.0%}" for rate, mean in means.items()))
    )
table(
    rows,
    ("units", "pixels", "rate: mean training error", "of three epochs", "(seed 9)"),
)


# %% tags=["speed"]
def draw_speed(axes, runs: dict[str, Tensor], title: str) -> None:
    """Mean over the seeds of the training error, a band from the smallest to the largest."""
    ends = {}
    for (kind, errors), colour in zip(runs.items(), plots.COLOURS):
        epochs = range(1, errors.shape[1] + 1)
        ends[kind] = plots.seed_band(axes, epochs, errors, colour)
    axes.hlines(0.25, 1, errors.shape[1], color=plots.QUIET, linestyle=":")
    axes.set(
        title=f"pixels: {title}", xlabel="epoch", ylabel="training error", ylim=(0, 1)
    )
    plots.label_ends(axes, ends)


# %% tags=["speed-figure"] alt="Training error over eight epochs, ReLU and tanh, in two panels with a dotted line at one quarter. On pixels of deviation 1 both fall, tanh lies below ReLU all the way. On pixels in 0..255 ReLU falls steeply to the dotted line, tanh far more slowly and stays well above it."
record("epochs", EPOCHS)
_, grid = plt.subplots(2, 1, figsize=(5, 5.4))
speed = {}
for axes, units in zip(grid, SCALES):
    for kind in ("ReLU", "tanh"):
        rate = best[kind, units]
        runs = [learn(UNITS[kind], parts[units], rate, n, EPOCHS) for n in SEEDS]
        speed[kind, units] = torch.tensor(runs)
    draw_speed(axes, {kind: speed[kind, units] for kind in ("ReLU", "tanh")}, units)

# %% [markdown]
# The last epoch is noisy: another seed, even another order of the same sums, moves it by several points. The mean error
# of all epochs, the area under the curve, is steadier and says how fast a network learns.

# %% tags=["speed-result"]
rows = []
for (kind, units), errors in speed.items():
    below = [
        next((i + 1 for i, e in enumerate(run) if e <= 0.25), None)
        for run in errors.tolist()
    ]
    short = f"{kind}.{'raw' if units == '0..255' else 'scaled'}"
    record_spread(f"{short}.error", errors.mean(1).tolist())
    record_spread(f"{short}.last", errors[:, -1].tolist())
    record(f"{short}.reached", sum(map(bool, below)))
    record(f"{short}.epoch", max((b for b in below if b), default=0))
    reached = ", ".join(str(b or "–") for b in below)
    ends = [spread(e.tolist(), ".0%") for e in (errors.mean(1), errors[:, -1])]
    rows.append((kind, units, best[kind, units], *ends, reached))
table(
    rows,
    ("units", "pixels", "rate", "mean of all epochs", "last epoch", "25 % in epoch"),
)

# %% tags=["speed-checked"]
whole = {key: errors.mean(1) for key, errors in speed.items()}
raw_gap = whole["tanh", "0..255"].min() - whole["ReLU", "0..255"].max()
claim(
    raw_gap > 0.03,
    "on pixels in 0..255 every seed of ReLU has the smaller error, by 0.03 or more",
)
quick = (speed["ReLU", "0..255"].amin(1) <= 0.25).sum()
claim(
    quick >= 2, "on pixels in 0..255 two seeds of ReLU or more reach an error of 25 %"
)
claim(
    speed["tanh", "0..255"].min() > 0.25,
    "on pixels in 0..255 no seed of tanh reaches 25 %",
)
scaled_gap = whole["ReLU", "deviation 1"].mean() - whole["tanh", "deviation 1"].mean()
claim(
    scaled_gap > 0.03,
    "on pixels of deviation 1 tanh has the smaller mean error, by 0.03 or more",
)

# %% [markdown]
# Why the pixels matter: before any training, how many tanh units behind the first convolution receive a value beyond
# ±2, where the slope of tanh is below 0.08?

# %% tags=["flat"]
seed(0)
before_tanh, shares = four_layers(nn.Tanh)[:2], []
with torch.no_grad():
    for short, units in (("scaled", "deviation 1"), ("raw", "0..255")):
        share = (before_tanh(parts[units][0]).abs() > 2).double().mean().item()
        record(f"flat.{short}", share)
        shares.append(share)
claim(
    shares[0] < 0.05,
    "on pixels of deviation 1 less than 5 % of the tanh units start flat",
)
claim(
    shares[1] > 0.8, "on pixels in 0..255 more than 80 % of the tanh units start flat"
)
table(
    [(f"{share:.0%}" for share in shares)],
    ("beyond ±2, deviation 1", "beyond ±2, 0..255"),
)

# %% [markdown]
# ## A small AlexNet
#
# The paper's network at an eighth of its maps, with 128 hidden units and a first kernel of 5×5 that moves by one pixel:
# two towers, response normalisation, overlapping pooling, dropout, the paper's update and augmentation. 28 of 32
# pixels are the paper's 224 of 256.


# %% tags=["small"]
CROP = 28
LONG = 5


def small_alexnet(num_classes: int = 10) -> nn.Sequential:
    """(B, 3, 28, 28) -> (B, num_classes)."""
    return alexnet((12, 32, 48, 48, 32), 128, num_classes, first=(5, 1, 0), side=2)


def train(
    network: nn.Module, part, epochs: int = LONG, rate: float = 0.01
) -> list[float]:
    """Loss per epoch with the update of the paper; the rate is divided by 10 for the last quarter."""
    optimizer = PaperSGD(network.parameters(), lr=rate)
    steps = epochs * -(-len(part[1]) // 20)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps * 3 // 4])
    return training.fit(network, part, epochs, optimizer, batch=20, schedule=schedule)[
        "loss"
    ]


def ten_crop_accuracy(network: nn.Module, part, size: int) -> float:
    """Fraction right when the softmax is averaged over ten crops; `network` takes crops."""
    scores = training.predict(network, ten_crops(part[0], size).flatten(0, 1)).softmax(
        1
    )
    return (
        (scores.unflatten(0, (-1, 10)).mean(1).argmax(1) == part[1])
        .double()
        .mean()
        .item()
    )


# %% tags=["small-train"]
towers, one, ten, trained = {}, [], [], []
for number in SEEDS:
    seed(number)
    towers[number] = nn.Sequential(
        Augment(CROP, values, vectors), he(small_alexnet())
    ).to(device)
    train(towers[number], train_part)
    trained.append(training.evaluate(towers[number], train_part))
    one.append(training.evaluate(towers[number], test))
    ten.append(ten_crop_accuracy(towers[number][1], test, CROP))
record("long", LONG)
record("small.parameters", counting.parameters(towers[0]))
record("small.gain", 100 * sum(b - a for a, b in zip(one, ten)) / len(SEEDS))

# %% tags=["small-result"]
rows = []
for name, scores in (("train", trained), ("one", one), ("ten", ten)):
    record_spread(f"small.{name}", scores)
    rows.append(spread(scores, ".1%"))
claim(min(one) > 0.25, "every seed is right on more than 25 % of the held-out patches")
claim(max(trained) < 0.75, "no seed is right on 75 % of the training part")
gain = abs(sum(ten) - sum(one)) / len(SEEDS)
claim(gain < 0.02, "ten crops change the mean accuracy by less than two points")
table([rows], ("training part", "held out, middle crop", "held out, ten crops"))

# %% [markdown]
# What does response normalisation do here? On pixels of deviation 1 the squares are small beside `k`, so that it
# divides everything by nearly the same number, 2 to the power of 0.75.

# %% tags=["small-norm"]
divisors, x = [], towers[0][0].eval()(test[0][:200].to(device))
with torch.no_grad():
    for stage in (towers[0][1].conv1, towers[0][1].conv2):
        maps = stage[:2](x)  # behind ReLU
        divisors.append((maps / stage[2](maps))[maps > 0])
        x = stage(x)
least, most = (end.item() for end in torch.cat(divisors).aminmax())
record("small.divisor.least", least)
record("small.divisor.most", most)
claim(
    most / least < 1.02,
    "the divisors of response normalisation differ by less than 2 %",
)
table([(f"{least:.3f}", f"{most:.3f}")], ("least divisor", "greatest divisor"))


# %% [markdown]
# ## Look inside
#
# In the paper one GPU learns kernels without colour and the other kernels of colour, in every run (section 6.1). The
# share of a kernel's squared weights that is left when its grey part, the mean of its three channels, is taken away
# says how much of it is colour. For random numbers it is two thirds.


# %% tags=["colourfulness"]
def colourfulness(kernels: Tensor) -> Tensor:
    """Share of each kernel (C, 3, h, w) that differs from its mean over the three channels."""
    rest = kernels - kernels.mean(1, keepdim=True)
    return rest.square().sum((1, 2, 3)) / kernels.square().sum((1, 2, 3))


# %% tags=["kernels"] alt="Two rows of six kernels of 5x5 pixels, one row for each tower. Both rows begin with kernels of dull colours and end with kernels of strong colours; there are no clear edges in them."
kernels = towers[0][1].conv1[0].weight.detach().cpu()
rows = []
for part in kernels.chunk(2):
    rows += list(part[colourfulness(part).argsort()])
shown = [0.5 + 0.5 * k / k.abs().max() for k in rows]
plots.image_grid(shown, columns=6, scale=0.8)
for cell, text in zip(plt.gcf().axes[::6], ("tower 1", "tower 2")):
    cell.set_title(text, loc="left", fontsize=11)

# %% tags=["kernel-colour"]
rows, gaps = [], []
for number in SEEDS:
    halves = towers[number][1].conv1[0].weight.detach().cpu().chunk(2)
    shares = [colourfulness(half).mean().item() for half in halves]
    rows.append((number, *(f"{share:.2f}" for share in shares)))
    gaps.append(abs(shares[0] - shares[1]))
widest = max(finite(gaps))
record("colour.gap", widest)
claim(
    widest < 0.15,
    "in no seed do the first layers of the towers differ by 0.15 in colour",
)
table(rows, ("seed", "colour in tower 1", "colour in tower 2"))

# %% [markdown]
# ## What we saw
#
# - The grouped network of 2012 is two towers that exchange maps in front of conv3 and of the dense layers and nowhere
#   else: equal outputs with the same weights. The variant of 2014 is torchvision's.
# - 224 pixels and the sizes of the paper do not go together without three rows and columns of zeros.
# - On pixels in 0..255 ReLU learns faster than tanh, as in figure 1 of the paper; on scaled pixels the initial weights
#   decide which one is ahead.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
layers = (
    (3, 96, 11),
    (48, 256, 5),
    (256, 384, 3),
    (192, 384, 3),
    (192, 256, 3),
)  # c_in, c_out, size
total = sum(c_out * (c_in * size**2 + 1) for c_in, c_out, size in layers)
conv_parameters = total
total += 4096 * (256 * 6 * 6 + 1) + 4096 * (4096 + 1) + 1000 * (4096 + 1)
with torch.device("meta"):
    claim(
        total == counting.parameters(alexnet()),
        "the parameters by hand are those counted",
    )
record("dense.share", 1 - conv_parameters / total)
table(
    [(conv_parameters, total - conv_parameters, total)],
    ("convolutions", "dense layers", "together"),
)

# %% tags=["solution-2"]
seed(0)
x = 30 * torch.rand(1, 96, 5, 5)
inside, across = ResponseNorm(2)(x), ResponseNorm(1)(x)
changed = (inside - across).abs().amax((0, 2, 3)).nonzero().flatten()
claim(
    changed.tolist() == [46, 47, 48, 49],
    "joined towers change two maps at either side of the seam",
)
[int(i) + 1 for i in changed]  # counted from 1


# %% tags=["solution-3"]
def larger() -> nn.Module:
    return he(four_layers(nn.ReLU))


scaled = parts["deviation 1"]
means = {
    rate: sum(learn(larger, scaled, rate, 9, 3)) / 3 for rate in (0.003, 0.01, 0.03)
}
rate = min(means, key=means.get)
runs = [learn(larger, scaled, rate, number, EPOCHS) for number in SEEDS]
errors = {kind: speed[kind, "deviation 1"].mean(1) for kind in ("ReLU", "tanh")}
errors["ReLU, larger weights"] = torch.tensor(runs).mean(1)
record_spread("he.error", errors["ReLU, larger weights"].tolist())
record("he.rate", rate)
gap = errors["tanh"].mean() - errors["ReLU, larger weights"].mean()
claim(gap > 0, "with larger weights the mean error of ReLU is below that of tanh")
rows = [(kind, spread(values.tolist(), ".0%")) for kind, values in errors.items()]
table(rows, ("units", "training error, mean of all epochs"))

# %% tags=["solution-4"]
rows = []
for n in (1, 2, 4):
    with torch.device("meta"):
        network = alexnet(towers=n)
        cost = counting.macs(network, torch.empty(1, 3, 227, 227))
    rows.append((n, counting.parameters(network), cost))
narrow = he(alexnet((8, 16, 16, 16, 8), hidden=16, num_classes=8, towers=4))
reads = wiring(narrow, torch.randn(1, 3, 227, 227), towers=4)
own = [name for name in reads if sum(map(sum, reads[name])) == 4]
claim(
    own == ["conv2", "conv4", "conv5"],
    "four towers read their own maps alone in conv2, 4 and 5",
)
table(rows, ("towers", "parameters", "MACs"))
