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
# # VGG
#
# Six networks from one table of kernel sizes: their receptive field computed, their parameters and memory
# located, their outputs compared with torchvision; then stacks of 3x3 against single 5x5 kernels on digits.
# The text to it is the [chapter](../chapters/vgg.rst), the paper is
# [Simonyan and Zisserman 2015](https://arxiv.org/abs/1409.1556).

# %%
import math
from collections import OrderedDict

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import Tensor, nn

from workbench import PROFILE, claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, drawing, images, plots, training

# %% [markdown]
# ## From the layer to the network
#
# A convolution keeps the side of its map and is followed by a ReLU, in later versions by batch norm before it.


# %% tags=["layer"]
def conv_relu(c_in: int, c_out: int, size: int = 3) -> list[nn.Module]:
    """Convolution that keeps the side, with a bias, and ReLU: section 2.1."""
    return [nn.Conv2d(c_in, c_out, size, padding=size // 2), nn.ReLU()]


def conv_norm_relu(c_in: int, c_out: int, size: int = 3) -> list[nn.Module]:
    """The same with batch norm between them, as in torchvision, which keeps the bias too."""
    conv, relu = conv_relu(c_in, c_out, size)
    return [conv, nn.BatchNorm2d(c_out), relu]


def stage(c_in: int, c_out: int, kernels, layer=conv_relu) -> nn.Sequential:
    """One layer per kernel size, then a maximum over 2x2: (B, c_in, H, W) -> (B, c_out, H/2, W/2)."""
    parts = layer(c_in, c_out, kernels[0])
    for size in kernels[1:]:
        parts += layer(c_out, c_out, size)
    return nn.Sequential(*parts, nn.MaxPool2d(2))


# %% tags=["stage-shape"]
stage(64, 128, (3, 3))(torch.randn(2, 64, 112, 112)).shape


# %% tags=["table"]
WIDTHS = (64, 128, 256, 512, 512)  # channels of the five stages
KERNELS = {  # kernel sizes of each stage; Simonyan and Zisserman 2015, table 1
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}


# %% tags=["network"]
def classifier(c_in: int, hidden: int, num_classes: int) -> nn.Sequential:
    """Three linear layers, dropout behind the first two: (B, C, 7, 7) -> (B, num_classes)."""
    first = [nn.Flatten(), nn.Linear(c_in, hidden), nn.ReLU(), nn.Dropout(0.5)]
    second = [nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*first, *second, nn.Linear(hidden, num_classes))


def vgg(
    kernels,
    layer=conv_relu,
    widths=WIDTHS,
    hidden: int = 4096,
    num_classes: int = 1000,
    c_in: int = 3,
    side: int = 7,
) -> nn.Sequential:
    """Stages and classifier: (B, c_in, H, W) -> (B, num_classes).

    The mean pool does nothing at the size of the paper; it lets other sizes in, as in torchvision.
    """
    parts = OrderedDict()
    for i, (sizes, c_out) in enumerate(zip(kernels, widths, strict=True), start=1):
        parts[f"stage{i}"] = stage(c_in, c_out, sizes, layer)
        c_in = c_out
    parts["pool"] = nn.AdaptiveAvgPool2d(side)
    parts["classifier"] = classifier(c_in * side * side, hidden, num_classes)
    return initialise(nn.Sequential(parts))


def initialise(network: nn.Module) -> nn.Module:
    """Normal weights of variance 2 / fan-out (convolutions) or 2 / fan-in (linear), biases zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            mode = "fan_out" if isinstance(module, nn.Conv2d) else "fan_in"
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return network


# %% tags=["sizes"]
def vgg11(layer=conv_relu) -> nn.Sequential:
    return vgg(KERNELS["A"], layer)


def vgg13(layer=conv_relu) -> nn.Sequential:
    return vgg(KERNELS["B"], layer)


def vgg16_c(layer=conv_relu) -> nn.Sequential:
    return vgg(KERNELS["C"], layer)


def vgg16(layer=conv_relu) -> nn.Sequential:
    return vgg(KERNELS["D"], layer)


def vgg19(layer=conv_relu) -> nn.Sequential:
    return vgg(KERNELS["E"], layer)


# %% [markdown]
# ## Counting
#
# On the meta device a network has shapes but no memory. MACs are those of convolutions and linear layers for one
# image of 224x224; biases and batch norm are not in them.

# %% tags=["count"]
rows = []
for build in (vgg11, vgg13, vgg16_c, vgg16, vgg19):
    for layer, suffix in ((conv_relu, ""), (conv_norm_relu, "_bn")):
        with torch.device("meta"):
            network, x = build(layer), torch.empty(1, 3, 224, 224)
        name, macs = build.__name__ + suffix, counting.macs(network, x)
        record(f"{name}.parameters", counting.parameters(network))
        record(f"{name}.macs", macs)
        record(f"{name}.gmacs", macs / 1e9)
        rows.append((name, counting.parameters(network), f"{macs / 1e9:.3f}"))
table(rows, ("network", "parameters", "G MACs"))

# %% tags=["drawn"] alt="VGG-16 from top to bottom, with output shape and parameters at the right: an input of 3x224x224, five stages whose maps shrink from 112 to 7 pixels a side while the channels grow from 64 to 512, and a classifier with by far the most parameters."
with torch.device("meta"):
    network, x = vgg16(), torch.empty(1, 3, 224, 224)
drawing.draw(network, x)


# %% [markdown]
# ## Where the parameters and where the memory are
#
# For each part of VGG-16: its parameters, its MACs, and the outputs of its convolutions and linear layers. Training
# keeps as many values behind the ReLUs for the backward pass.


# %% tags=["costs"]
def costs(part: nn.Module, x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Output, and (parameters, output values of weighted layers, MACs) of one part."""
    values, y = 0, x.detach()
    for module in part:
        y = module(y)
        if isinstance(module, nn.Conv2d | nn.Linear):
            values += y.numel()
    return y.detach(), (counting.parameters(part), values, counting.macs(part, x))


# %% tags=["stages"]
rows, share = [], {}
y = x
for name, part in network.named_children():
    if name != "pool":
        y, share[name] = costs(part, y)
        rows.append((name, "×".join(map(str, y.shape[1:])), *share[name]))
totals = [sum(column) for column in zip(*share.values())]
rows.append(("all", "", *totals))
record("classifier.share", share["classifier"][0] / totals[0])
record("linear1.share", counting.parameters(network.classifier[1]) / totals[0])
record("classifier.macs.share", share["classifier"][2] / totals[2])
record("early.share", (share["stage1"][1] + share["stage2"][1]) / totals[1])
record("values.mebibytes", totals[1] * 4 / 2**20)
table(rows, ("part", "output", "parameters", "values", "MACs"))

# %% tags=["shares-figure"] alt="Six groups of three horizontal bars, the five stages and the classifier of VGG-16. Output values are mostly in stages 1 and 2 and shrink downwards, MACs are mostly in stages 2 to 4, and the classifier has nearly all the parameters, close to no values and almost no MACs."
_, axes = plt.subplots(figsize=(5, 4))
for k, (kind, row) in enumerate(
    zip(("parameters", "output values", "MACs"), (4.35, 0, 2))
):
    percent = [100 * counts[k] / totals[k] for counts in share.values()]
    places = [i + (k - 1) * 0.27 for i in range(len(share))]
    axes.barh(places, percent, 0.25, color=plots.COLOURS[k])
    x_text = 60 if k == 0 else percent[row] + 1
    y_text = row if k == 0 else places[row]
    axes.text(x_text, y_text, kind, va="center", color=plots.COLOURS[k])
axes.set(yticks=range(6), yticklabels=list(share), xlabel="share in %", xlim=(0, 100))
axes.invert_yaxis()


# %% [markdown]
# ## The receptive field
#
# Which pixels can change one output unit? Those where its gradient is not zero. With random weights a gradient
# may vanish by chance, with a maximum it goes to one pixel of four; so all weights are one, the input is positive
# and maxima are replaced by means of the same window.


# %% tags=["field"]
def reach(kernels, pooled: bool, side: int = 301) -> Tensor:
    """Gradient of the middle output unit with respect to a side x side input, one channel."""
    stages = [stage(1, 1, sizes) for sizes in kernels]
    layers = [layer for part in stages for layer in (part if pooled else part[:-1])]
    layers = [nn.AvgPool2d(2) if isinstance(m, nn.MaxPool2d) else m for m in layers]
    network = nn.Sequential(*layers).double()
    for weights in network.parameters():
        nn.init.constant_(weights, float(weights.ndim > 1))
    x = torch.ones(1, 1, side, side, dtype=torch.double, requires_grad=True)
    y = network(x)
    middle = y.shape[-1] // 2
    return torch.autograd.grad(y[0, 0, middle, middle], x)[0][0, 0]


def extent(gradient: Tensor) -> int:
    """Side of the square in which the gradient is not zero."""
    return int((gradient != 0).any(0).sum())


def field_formula(kernels, pooled: bool) -> int:
    """Receptive field by counting: each layer adds (size - 1) steps; a pool doubles the step."""
    field, step = 1, 1
    for sizes in kernels:
        field += step * sum(size - 1 for size in sizes)
        if pooled:
            field, step = field + step, 2 * step
    return field


# %% tags=["field-figure"] alt="Four squares of eleven by eleven pixels. One layer lights up three by three pixels evenly, two light up five by five, three light up seven by seven, brightest in the middle and fading to the edge; the single seven by seven kernel is evenly bright over seven by seven."
stacks = {"one 3×3": (3,), "two 3×3": (3, 3), "three 3×3": (3, 3, 3), "one 7×7": (7,)}
pictures = [reach((sizes,), False, side=11) for sizes in stacks.values()]
pictures = [picture / picture.max() for picture in pictures]
plots.image_grid([p.sqrt() for p in pictures], list(stacks), columns=4, scale=1.2)

# %% tags=["field-table"]
rows = []
for n in range(1, 7):
    found = extent(reach(((3,) * n,), False, side=31))
    claim(found == 1 + 2 * n, f"an output of {n} layers sees {1 + 2 * n} pixels a side")
    rows.append((n, found, 1 + 2 * n, 9 * n, found**2))
heads = (
    "layers",
    "by gradient",
    "1 + 2n",
    "weights of the stack / C²",
    "of one kernel / C²",
)
table(rows, heads)

# %% tags=["field-networks"]
rows = []
for name, kernels in KERNELS.items():
    found, formula = extent(reach(kernels, True)), field_formula(kernels, True)
    claim(found == formula, f"{name}: the field by gradient is that of the formula")
    record(f"field.{name}", found)
    rows.append((name, found, formula))
record("stack.weights", 3 * nn.Conv2d(64, 64, 3, bias=False).weight.numel())
record("single.weights", nn.Conv2d(64, 64, 7, bias=False).weight.numel())
table(rows, ("configuration", "by gradient", "by formula"))

# %% [markdown]
# ## Equal to torchvision
#
# All eight networks of torchvision, each filled with random values. Library and ours read the same tensors, and the
# three large matrices, alike in all of them, are drawn once: that saves memory and time.


# %% tags=["random-state"]
def random_state(network: nn.Module, large: dict) -> dict[str, Tensor]:
    """Random values for a network on the meta device; tensors above 4 million values come from `large`."""
    state = {}
    for name, t in network.state_dict().items():
        if t.ndim > 1:
            bound = (6 / t[0].numel()) ** 0.5  # keeps the scale through ReLUs
            new = large.get(t.shape)
            new = torch.empty(t.shape).uniform_(-bound, bound) if new is None else new
            large |= {t.shape: new} if t.ndim == 2 else {}
        elif t.dtype.is_floating_point:
            positive = name.endswith("running_var") or name.endswith("weight")
            new = (
                torch.empty(t.shape).uniform_(0.5, 1.5)
                if positive
                else torch.randn(t.shape) / 10
            )
        else:
            new = torch.ones(t.shape, dtype=t.dtype)
        state[name] = new
    return state


def share_state(reference: nn.Module, network: nn.Module, large: dict) -> None:
    """Give both the same random tensors, pair by pair in their order."""
    state, names = random_state(reference, large), network.state_dict()
    assert [t.shape for t in state.values()] == [t.shape for t in names.values()]
    reference.load_state_dict(state, assign=True)
    network.load_state_dict(dict(zip(names, state.values(), strict=True)), assign=True)


# %% tags=["equal"]
seed(0)
rows, deviations, large = [], [], {}
x = torch.randn(2, 3, 40, 75)
for build in (vgg11, vgg13, vgg16, vgg19):
    for layer, suffix in ((conv_relu, ""), (conv_norm_relu, "_bn")):
        name = build.__name__ + suffix
        with torch.device("meta"):
            reference, network = getattr(torchvision.models, name)(), build(layer)
        share_state(reference, network, large)
        deviations.append(checks.same_outputs(network, reference, x))
        rows.append((name, f"{deviations[-1]:.1e}"))
record("deviation", max(deviations))
table(rows, ("network", "largest relative deviation"))


# %% [markdown]
# ## Dense evaluation
#
# A linear layer on a map of 7x7 is a convolution with a 7x7 kernel, the next ones are 1x1 convolutions
# (section 3.2). So rewritten, the network takes any larger image and gives a map of scores.


# %% tags=["dense"]
@torch.no_grad()
def dense(network: nn.Sequential, side: int = 7) -> nn.Sequential:
    """The network with its linear layers as convolutions: (B, c_in, H, W) -> (B, K, h, w)."""
    parts = [
        part for name, part in network.named_children() if name.startswith("stage")
    ]
    for module in network.classifier[1:]:
        if isinstance(module, nn.Linear):
            weight = module.weight.unflatten(
                1, (-1, side, side)
            )  # (c_out, c_in, side, side)
            conv = nn.Conv2d(*weight.shape[1::-1], side, device=weight.device)
            conv.weight.copy_(weight)
            conv.bias.copy_(module.bias)
            module, side = conv, 1
        parts.append(module)
    return nn.Sequential(*parts)


# %% tags=["dense-check"]
seed(0)
narrow = vgg(KERNELS["D"], widths=(8, 16, 32, 64, 64), hidden=64, num_classes=10).eval()
score_map, x = dense(narrow).eval(), torch.randn(2, 3, 288, 256)
with torch.no_grad():
    published = score_map(x[..., :224, :224]).flatten(1), narrow(x[..., :224, :224])
    scores, maps = score_map(x), narrow[:5](x)
    windows = [
        narrow.classifier(maps[..., i : i + 7, j : j + 7])
        for i in range(3)
        for j in range(2)
    ]
larger = scores, torch.stack(windows, -1).view_as(scores)
deviation = max(checks.deviation(*pair) for pair in (published, larger))
claim(deviation < 1e-5, "the dense form gives the network's scores at every window")
record("dense.deviation", deviation)
tuple(scores.shape)

# %% [markdown]
# ## Pairs of 3x3 against single 5x5
#
# Section 4.1 of the paper replaces each pair of 3x3 layers of configuration B by one 5x5 layer. We do it with a
# narrow network of three stages on digits of 24x24; a third network has a single 3x3 layer per stage.

# %% tags=["data"]
IMAGES = 1200 if PROFILE == "sample" else 20_000
data = images.digits(size=24)
mean, std = data.train[0].mean(), data.train[0].std()
train_part, validation, test = [((x - mean) / std, y) for x, y in data[:3]]
train_part = train_part[0][:IMAGES], train_part[1][:IMAGES]
record("images", len(train_part[1]))
rows = [(n, *p[0].shape) for n, p in zip(data._fields, (train_part, validation, test))]
table(rows, ("part", "N", "C", "H", "W"))


# %% tags=["digit-network"]
DIGITS = {  # kernel sizes of each of the three stages
    "two 3×3": (3, 3),
    "one 5×5": (5,),
    "one 3×3": (3,),
}
EPOCHS, BATCH, RATE, SEEDS = 8, 50, 3e-3, (0, 1, 2)


def digit_network(kernels, layer=conv_relu) -> nn.Sequential:
    """A narrow VGG of three equal stages: (B, 1, 24, 24) -> (B, 10)."""
    shape = {
        "widths": (8, 16, 32),
        "hidden": 128,
        "num_classes": 10,
        "c_in": 1,
        "side": 3,
    }
    return vgg((kernels,) * 3, layer, **shape)


def train(kernels, number: int, layer=conv_relu) -> tuple[nn.Module, list[float]]:
    """One network of one seed, trained; with its training loss of each epoch."""
    seed(number)
    network = digit_network(kernels, layer).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    return network, training.fit(network, train_part, EPOCHS, optimizer, batch=BATCH)[
        "loss"
    ]


# %% tags=["curve"] alt="Training loss over eight epochs for three networks, mean of three seeds with a band from the smallest to the largest. All fall steeply, then flatten; the pair of 3x3 layers is above the other two all along."
networks, losses, ends = {}, {}, {}
_, axes = plt.subplots()
for colour, (name, kernels) in zip(plots.COLOURS, DIGITS.items()):
    for number in SEEDS:
        networks[name, number], losses[name, number] = train(kernels, number)
    runs = torch.tensor([losses[name, number] for number in SEEDS])
    ends[name] = plots.seed_band(axes, range(1, EPOCHS + 1), runs, colour)
axes.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
plots.label_ends(axes, ends)

# %% tags=["result"]
rows, final, tested = [], {}, {}
record("epochs", EPOCHS)
record("steps", EPOCHS * math.ceil(IMAGES / BATCH))
record("batch", BATCH)
record("rate", RATE)
library = torchvision.models.VGG16_Weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]
record("library.top1", library["acc@1"])
for name, key in zip(DIGITS, ("pair", "five", "three")):
    final[key] = [losses[name, number][-1] for number in SEEDS]
    tested[key] = [training.evaluate(networks[name, number], test) for number in SEEDS]
    parameters = counting.parameters(networks[name, 0])
    record(f"{key}.parameters", parameters)
    record_spread(f"{key}.loss", final[key])
    record_spread(f"{key}.test", tested[key])
    rows.append(
        (name, parameters, spread(final[key], ".3f"), spread(tested[key], ".1%"))
    )
pair, five = (counting.parameters(networks[name, 0]) for name in ("two 3×3", "one 5×5"))
claim(
    pair > five, "as narrow as this, the pairs have more parameters than the single 5×5"
)
means = [sum(values) / len(values) for values in tested.values()]
least = min(max(values) - min(values) for values in tested.values())
claim(
    max(means) - min(means) < least,
    "the test means differ less than the seeds of any network",
)
claim(
    max(final["five"]) < min(final["pair"]),
    "every seed of 5×5 has a lower loss than any pair",
)
claim(
    min(final["pair"]) < max(final["three"]),
    "the best pair has a lower loss than the worst 3×3",
)
table(rows, ("each stage", "parameters", "training loss", "test accuracy"))

# %% [markdown]
# ## Look inside
#
# The convolutions take any size, so a photograph can go through the network that has only seen digits.

# %% tags=["maps"] alt="Three rows of four feature maps of a portrait photograph, from the three stages of the network trained on digits. The face and cap can be made out in the first row and get coarser below."
photograph = (images.photograph().mean(1, keepdim=True) - mean) / std
maps, sides = [], []
for i in (1, 2, 3):
    found = training.predict(networks["two 3×3", 0][:i], photograph)[0]
    most = found[found.flatten(1).std(1).argsort(descending=True)[:4]]  # that vary most
    maps += [m.clamp(max=m.quantile(0.98).item()) for m in most]
    sides.append(found.shape[-1])
plots.image_grid(maps, columns=4, scale=1.1)
for i, cell in enumerate(plt.gcf().axes[::4]):
    cell.set_title(f"stage {i + 1}, {sides[i]}×{sides[i]}", loc="left", fontsize=11)

# %% [markdown]
# ## What we saw
#
# - One table of kernel sizes gives configurations A to E; with the same weights the outputs equal torchvision's.
# - The parameters are in the classifier, the values to keep are in the first stages, the work is in between.
# - On digits, in a small budget, a pair of 3x3 layers is not ahead of one 5x5 layer.
# - The gradient of one unit covers 1 + 2n pixels after n layers of 3x3, and 27 C² weights reach as far as 49 C².

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
counts = {}
for name, kernels in KERNELS.items():
    c_in, total = 3, 0
    for sizes, c_out in zip(kernels, WIDTHS, strict=True):
        for size in sizes:
            total, c_in = total + size * size * c_in * c_out + c_out, c_out
    counts[name] = total + 25088 * 4096 + 4096 * 4096 + 4096 * 1000 + 4096 + 4096 + 1000
with torch.device("meta"):
    for name, count in counts.items():
        same = counting.parameters(vgg(KERNELS[name])) == count
        claim(same, f"{name}: the parameters by hand are those counted")
record("c.by.hand", counts["C"])
table(counts.items(), ("configuration", "parameters by hand"))

# %% tags=["solution-2"]
final["norm"], tested["norm"] = [], []
for number in SEEDS:
    network, loss = train((3, 3), number, conv_norm_relu)
    final["norm"].append(loss[-1])
    tested["norm"].append(training.evaluate(network, validation))
plain = [training.evaluate(networks["two 3×3", number], validation) for number in SEEDS]
record_spread("norm.loss", final["norm"])
record_spread("norm.validation", tested["norm"])
record_spread("pair.validation", plain)
rows = [("without", spread(final["pair"], ".3f"), spread(plain, ".1%"))]
rows.append(("with", spread(final["norm"], ".3f"), spread(tested["norm"], ".1%")))
claim(
    min(final["norm"]) > max(final["pair"]),
    "with batch norm every loss is above any without",
)
table(rows, ("batch norm", "training loss", "validation accuracy"))

# %% tags=["solution-3"]
with torch.device("meta"):
    pooled = nn.Sequential(
        *vgg16()[:5], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)
    )
    macs = counting.macs(pooled, torch.empty(1, 3, 224, 224))
record("pooled.parameters", counting.parameters(pooled))
record("pooled.gmacs", macs / 1e9)
table([(counting.parameters(pooled), f"{macs / 1e9:.3f}")], ("parameters", "G MACs"))

# %% tags=["solution-4"]
x, y = test
rows = [x[0:300].unflatten(0, (100, 3)), y[0:300].unflatten(0, (100, 3))]
strips = torch.cat(rows[0].unbind(1), dim=-1)  # (100, 1, 24, 72)
scores = training.predict(
    dense(networks["two 3×3", 0], side=3), strips
)  # (100, 10, 1, 7)
right = (scores[:, :, 0, ::3].argmax(1) == rows[1]).double().mean().item()
alone = training.evaluate(networks["two 3×3", 0], (x[:300], y[:300]))
record("strip.dense", right)
record("strip.alone", alone)
table(
    [(f"{alone:.1%}", f"{right:.1%}", str(tuple(scores.shape)))],
    ("alone", "in a strip", "scores"),
)
