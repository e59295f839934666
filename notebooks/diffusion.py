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
#   limits:
#     cell: 600
# ---

# %% [markdown]
# # Diffusion
#
# Pictures are turned into noise step by step, and a U-Net learns the way back: built as
# published, equal to the library's, trained on digits, and sampled in many steps and in
# few. The text to it is the [chapter](../chapters/diffusion.rst), the papers are
# [Ho et al. 2020](https://arxiv.org/abs/2006.11239) and
# [Song et al. 2020](https://arxiv.org/abs/2010.02502).

# %%
import copy
import math
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, images, plots, training

# %% [markdown]
# ## From a picture to noise
#
# A picture of any step is a weighted sum of the first picture and of noise.


# %% tags=["betas"]
def linear_betas(T: int, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Share of noise that each step adds, (T,) (Ho et al., section 4)."""
    return torch.linspace(first, last, T)


def cosine_betas(T: int) -> Tensor:
    """Shares (T,) with which alpha bar follows a cosine (Nichol and Dhariwal 2021)."""
    place = (torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008
    alpha_bar = torch.cos(place * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999).float()


# %% tags=["schedule"]
class Schedule:
    """What follows from the betas (T,); step t of the paper is entry t - 1.

    The last three belong to the posterior (Ho et al., equation 7).
    """

    def __init__(self, betas: Tensor):
        self.T = len(betas)
        self.betas = betas
        self.alphas = 1 - betas
        self.alpha_bar = self.alphas.cumprod(0)
        before = F.pad(self.alpha_bar[:-1], (1, 0), value=1.0)
        after = 1 - self.alpha_bar
        self.posterior_variance = betas * (1 - before) / after
        self.from_x0 = betas * before.sqrt() / after
        self.from_xt = self.alphas.sqrt() * (1 - before) / after


# %% tags=["diffuse"]
def diffuse(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """A sample of x_t given x_0 (Ho et al., equation 4), alpha_bar (B,)."""
    alpha_bar = alpha_bar[:, None, None, None]
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise


# %% tags=["by-hand"]
schedule = Schedule(torch.tensor([0.1, 0.2]))
claim(abs(schedule.alpha_bar[1].item() - 0.72) < 1e-6, "0.9 times 0.8 is 0.72")
variance = 0.8 * 0.1 + 0.2  # the second step shrinks the noise of the first
claim(abs(1 - schedule.alpha_bar[1].item() - variance) < 1e-6, "the rest is noise")
schedule.alpha_bar


# %% tags=["chain"]
def along_the_chain(betas: Tensor) -> tuple[Tensor, Tensor]:
    """Weight of x_0 and variance of the noise behind each step, one step at a time."""
    weight = betas.new_tensor(1.0)
    variance = betas.new_tensor(0.0)
    found = []
    for beta in betas:
        weight = (1 - beta).sqrt() * weight  # Ho et al., equation 2
        variance = (1 - beta) * variance + beta
        found.append(torch.stack((weight, variance)))
    weights, variances = torch.stack(found).T
    return weights, variances


# %% tags=["chain-result"]
rows = []
for name, betas in (("linear", linear_betas(1000)), ("cosine", cosine_betas(1000))):
    schedule = Schedule(betas.double())
    weights, variances = along_the_chain(betas.double())
    off = checks.deviation(schedule.alpha_bar.sqrt(), weights)
    off = max(off, checks.deviation(1 - schedule.alpha_bar, variances))
    claim(off < 1e-10, "the closed form is what the single steps give")
    middle = schedule.alpha_bar[499].item()
    rows.append((name, f"{middle:.3f}", f"{schedule.alpha_bar[-1].item():.0e}"))
claim(float(rows[0][1]) < 0.2 * float(rows[1][1]), "linear has lost more half-way")
table(rows, ("schedule", "ᾱ after 500 steps", "ᾱ after 1,000"))

# %% tags=["forward-figure"] alt="Two rows of eight pictures of the same digit with the same noise, from clear at the left to nothing but noise at the right. In the upper row, linear betas, the digit can hardly be seen from the middle on; in the lower row, cosine, it can be seen much longer."
data = images.digits(16)
digit = 2 * data.train[0][data.train[1] == 5][:1] - 1
noise = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
shown = []
for betas in (linear_betas(1000), cosine_betas(1000)):
    alpha_bar = Schedule(betas).alpha_bar
    for t in (0, 100, 200, 300, 400, 500, 700, 999):
        shown.append(diffuse(digit, noise, alpha_bar[t : t + 1])[0])
names = [f"{t:,}" for t in (1, 101, 201, 301, 401, 501, 701, 1000)] + [""] * 8
plots.image_grid(shown, names, scale=0.62, vmin=-1.5, vmax=1.5)

# %% [markdown]
# ## The U-Net
#
# It reads a noisy picture and the number of the step, and answers with the noise.


# %% tags=["size"]
@dataclass(frozen=True)
class Size:
    """Channels of each level, which attend, blocks a level, groups of a norm."""

    widths: tuple[int, ...] = (128, 256, 256, 256)
    attention: tuple[bool, ...] = (False, True, False, False)
    blocks: int = 2
    groups: int = 32
    channels: int = 3  # of the picture


CIFAR = Size()
DIGITS = Size((24, 48), (False, True), blocks=1, groups=8, channels=4)


# %% tags=["time"]
def sinusoids(t: Tensor, d: int) -> Tensor:
    """Sines and cosines of the steps (B,), one half each: (B, d).

    As in the authors' code: the exponents reach 1, and sines stand before cosines.
    """
    assert d >= 4 and d % 2 == 0, "d must be even and at least 4"
    places = torch.arange(d // 2, device=t.device) / (d // 2 - 1)
    angles = t[:, None] / 10_000**places  # (B, d / 2)
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class TimeEmbedding(nn.Module):
    """What a block is told about the step (appendix B): (B,) -> (B, 4 * width)."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, 4 * width)

    def forward(self, t: Tensor) -> Tensor:
        return self.linear2(F.silu(self.linear1(sinusoids(t, self.width))))


# %% tags=["residual-block"]
class ResidualBlock(nn.Module):
    """Two convolutions behind their norms; the step is added between (appendix B)."""

    def __init__(self, c_in: int, c_out: int, d_time: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=1e-6)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(d_time, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=1e-6)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        same = c_in == c_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        # x (B, c_in, H, W), e (B, d_time) -> (B, c_out, H, W)
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + self.time(F.silu(e))[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        return self.shortcut(x) + y


# %% tags=["residual-shape"]
ResidualBlock(8, 16, 32, groups=4)(torch.randn(2, 8, 6, 6), torch.randn(2, 32)).shape


# %% tags=["attention"]
class SelfAttention(nn.Module):
    """Every pixel of a map reads all others, with one head (appendix B).

    What it has read is added to it; the linear layers are those of the authors' code.
    """

    def __init__(self, c: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, c, eps=1e-6)
        self.to_q = nn.Linear(c, c)
        self.to_k = nn.Linear(c, c)
        self.to_v = nn.Linear(c, c)
        self.to_out = nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        y = self.norm(x).flatten(2).mT  # (B, H * W, C)
        q = self.to_q(y)
        k = self.to_k(y)
        v = self.to_v(y)
        y = F.scaled_dot_product_attention(q, k, v)  # (B, H * W, C)
        return x + self.to_out(y).mT.unflatten(2, (H, W))  # (B, C, H, W)


# %% tags=["resize"]
class Downsample(nn.Module):
    """Half the side; padded at the right and below, as the authors' TensorFlow pads."""

    def __init__(self, c: int):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # the step e is not needed


class Upsample(nn.Module):
    """Twice the side: each pixel four times, then a convolution (authors' code)."""

    def __init__(self, c: int):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))


# %% tags=["block"]
class Block(nn.Module):
    """A residual block; attention and a larger map where asked for (appendix B)."""

    def __init__(self, c_in: int, c_out: int, size: Size, *, attend=False, up=False):
        super().__init__()
        d_time = 4 * size.widths[0]
        self.residual = ResidualBlock(c_in, c_out, d_time, size.groups)
        same = nn.Identity()
        self.attention = SelfAttention(c_out, size.groups) if attend else same
        self.resize = Upsample(c_out) if up else same

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        return self.resize(self.attention(self.residual(x, e)))


# %% tags=["ways"]
def way_down(size: Size) -> tuple[nn.ModuleList, list[int]]:
    """Blocks from the finest level to the coarsest, and channels of what is kept."""
    layers = nn.ModuleList()
    kept = [size.widths[0]]
    for level, width in enumerate(size.widths):
        for _ in range(size.blocks):
            attend = size.attention[level]
            layers.append(Block(kept[-1], width, size, attend=attend))
            kept.append(width)
        if level < len(size.widths) - 1:
            layers.append(Downsample(width))
            kept.append(width)
    return layers, kept


def way_up(size: Size, kept: list[int]) -> nn.ModuleList:
    """One block for each map that was kept, from the last to the first."""
    layers = nn.ModuleList()
    c = size.widths[-1]
    for level in reversed(range(len(size.widths))):
        width = size.widths[level]
        for number in range(size.blocks + 1):
            up = number == size.blocks and level > 0
            attend = size.attention[level]
            c_in = c + kept.pop()
            layers.append(Block(c_in, width, size, attend=attend, up=up))
            c = width
    return layers


# %% tags=["unet"]
class UNet(nn.Module):
    """The noise in pictures (B, C, H, W) of the steps t (B,) (appendix B)."""

    def __init__(self, size: Size = CIFAR):
        super().__init__()
        first = size.widths[0]
        last = size.widths[-1]
        self.time = TimeEmbedding(first)
        self.conv_in = nn.Conv2d(size.channels, first, 3, padding=1)
        self.down, kept = way_down(size)
        self.middle1 = Block(last, last, size, attend=True)
        self.middle2 = Block(last, last, size)
        self.up = way_up(size, kept)
        self.norm = nn.GroupNorm(size.groups, first, eps=1e-6)
        self.conv_out = nn.Conv2d(first, size.channels, 3, padding=1)

    def embedded(self, t: Tensor, y) -> Tensor:
        return self.time(t)

    def forward(self, x: Tensor, t: Tensor, y=None) -> Tensor:
        e = self.embedded(t, y)  # (B, 4 * width)
        x = self.conv_in(x)
        kept = [x]
        for layer in self.down:
            x = layer(x, e)
            kept.append(x)
        x = self.middle2(self.middle1(x, e), e)
        for layer in self.up:
            x = layer(torch.cat((x, kept.pop()), dim=1), e)
        return self.conv_out(F.silu(self.norm(x)))


# %% tags=["labelled"]
NO_LABEL = 10  # the row that stands for "any digit"


class LabelledUNet(UNet):
    """The same, told which digit it is: a row of a table is added to the step.

    As in diffusers (`num_class_embeds`); Ho et al. use no labels.
    """

    def __init__(self, size: Size = DIGITS):
        super().__init__(size)
        self.label = nn.Embedding(NO_LABEL + 1, 4 * size.widths[0])

    def embedded(self, t: Tensor, y: Tensor) -> Tensor:
        return self.time(t) + self.label(y)


# %% tags=["silent"]
def silent(network: UNet) -> UNet:
    """Start each branch and the answer at zero, as the authors' code nearly does."""
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.conv2.weight)
        if isinstance(module, SelfAttention):
            nn.init.zeros_(module.to_out.weight)
    nn.init.zeros_(network.conv_out.weight)
    return network


# %% tags=["labelled-shape"]
labels = torch.tensor([3, NO_LABEL])
LabelledUNet()(torch.randn(2, 4, 8, 8), torch.tensor([0, 199]), labels).shape

# %% [markdown]
# ## What the network has
#
# Its levels, drawn and counted, and the library's network with the same weights.


# %% tags=["network-drawing"]
def draw_levels(axes, size: Size, side: int) -> None:
    """The way down at the left, up at the right, what is kept across."""
    nodes = {}
    for level, width in enumerate(size.widths):
        text = f"{side >> level}×{side >> level}, {width}"
        text += " + attention" * size.attention[level]
        y = 0.9 + 0.75 * level
        for name, x in (("down", 1.1), ("up", 3.9)):
            nodes[f"{name}{level}"] = diagrams.Node(x, y, text, width=1.95)
    last = len(size.widths) - 1
    y = 0.9 + 0.75 * (last + 1)
    nodes["middle"] = diagrams.Node(2.5, y, "middle + attention", width=1.6)
    nodes["x"] = diagrams.Node(1.1, 0.25, "noisy picture")
    nodes["noise"] = diagrams.Node(3.9, 0.25, "its noise")
    way = ["x", *(f"down{n}" for n in range(last + 1))]
    back = [*(f"up{n}" for n in range(last, -1, -1)), "noise"]
    arrows = [*zip(way, way[1:]), *zip(back, back[1:])]
    arrows.append((way[-1], (1.1, y), "middle"))
    arrows.append(("middle", (3.9, y), back[0]))
    kept = [(f"down{n}", f"up{n}") for n in range(last + 1)]
    diagrams.draw(axes, nodes, arrows, kept)


# %% tags=["network-figure"] alt="Boxes in the shape of a U. At the left the way down, from the noisy picture: 32×32 with 128 channels, 16×16 with 256 and attention, 8×8 and 4×4 with 256. At the bottom the middle with attention. At the right the way up over the same sizes, to the noise. An orange arrow leads from each box at the left to the one of its size at the right."
axes = diagrams.sheet(4.2)
draw_levels(axes, CIFAR, 32)


# %% tags=["level-rows"]
def level_rows(network: UNet, size: Size, side: int) -> list[tuple]:
    """Of each level: map, channels, parameters of the way down and of the way up."""
    shapes = {}
    for layer in network.down:
        layer.register_forward_hook(lambda m, _, y: shapes.update({m: y.shape}))
    x = torch.zeros(1, size.channels, side, side, device="meta")
    network(x, torch.zeros(1, device="meta"))
    each = size.blocks + 1  # layers of a level
    rows = []
    for level in range(len(size.widths)):
        down = network.down[level * each : (level + 1) * each]
        up = network.up[len(network.up) - (level + 1) * each :][:each]
        _, C, H, W = shapes[down[0]]
        counts = (counting.parameters(down), counting.parameters(up))
        rows.append((f"{H}×{W}", C, *counts))
    return rows


# %% tags=["level-table"]
with torch.device("meta"):
    published = UNet()
rows = level_rows(published, CIFAR, 32)
claim(all(up >= 2 * down for *_, down, up in rows), "at least twice as many go up")
table(rows, ("map", "channels", "parameters down", "parameters up"))


# %% tags=["library"]
def library_unet(size: Size, classes: int | None = None) -> UNet2DModel:
    """The network of diffusers, set as its google/ddpm-cifar10-32 is."""
    down = ["AttnDownBlock2D" if a else "DownBlock2D" for a in size.attention]
    up = ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(size.attention)]
    return UNet2DModel(
        in_channels=size.channels,
        out_channels=size.channels,
        block_out_channels=size.widths,
        layers_per_block=size.blocks,
        down_block_types=down,
        up_block_types=up,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=size.groups,
        attention_head_dim=None,
        num_class_embeds=classes,
    )


# %% tags=["called"]
def called(network: nn.Module, *inputs) -> nn.ModuleList:
    """The layers with weights, in the order in which a forward pass calls them."""
    found = []
    handles = []
    for layer in network.modules():
        if not list(layer.children()) and list(layer.parameters()):
            hook = layer.register_forward_hook(lambda m, *_: found.append(m))
            handles.append(hook)
    with torch.no_grad():
        network(*inputs)
    for handle in handles:
        handle.remove()
    return nn.ModuleList(found)


# %% tags=["count"]
with torch.device("meta"):
    theirs = library_unet(CIFAR)
    x = torch.zeros(1, 3, 32, 32)
    inputs = (x, torch.zeros(1))
pairs = zip(called(published, *inputs), called(theirs, *inputs), strict=True)
same_layers = all(str(ours) == str(other) for ours, other in pairs)
claim(same_layers, "at the published size the same layers are called in the same order")


# %% tags=["count-result"]
class AtOneStep(nn.Module):
    """A network at one step, for what counts it."""

    def __init__(self, network: UNet):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x, torch.zeros(len(x), device=x.device))


found = counting.parameters(published)
record("cifar.parameters", found)
record("cifar.macs", counting.macs(AtOneStep(published), x))
claim(found == counting.parameters(theirs), "as many parameters as in the library")
claim(found == 35_746_307, "the count is that of google/ddpm-cifar10-32")
row = (found, counting.parameters(theirs), "35.7 million")
table([row], ("parameters here", "in diffusers", "in the paper"))

# %% tags=["equal-networks"]
seed(0)
small = Size((16, 32, 32, 32), blocks=2, groups=8)
inputs = (torch.randn(3, 3, 16, 16), torch.tensor([0, 500, 999]))
equal = {}
for name, labels in (("U-Net", None), ("U-Net with labels", torch.tensor([1, 7, 10]))):
    ours = (UNet if labels is None else LabelledUNet)(small)
    theirs = library_unet(small, None if labels is None else 11)
    for weight in theirs.parameters():
        nn.init.normal_(weight, 0, 0.1)
    checks.transplant(called(theirs, *inputs, labels), called(ours, *inputs, labels))
    with torch.no_grad():
        y = theirs(*inputs, labels).sample
        equal[name] = checks.deviation(ours(*inputs, labels), y)

# %% [markdown]
# ## The way back
#
# One step of each sampler, compared with the library's.


# %% tags=["loss"]
def noise_loss(network, x0: Tensor, y, t: Tensor, noise: Tensor, schedule) -> Tensor:
    """Mean squared difference of noise and answer (Ho et al., equation 14)."""
    noisy = diffuse(x0, noise, schedule.alpha_bar[t])
    return F.mse_loss(network(noisy, t, y), noise)


def clear_picture(x: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_0 as it follows from x_t and its noise: `diffuse` turned round."""
    return (x - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()


# %% tags=["ddpm"]
def ddpm_step(x, noise, t: int, schedule: Schedule, fresh: Tensor) -> Tensor:
    """x_t-1 from x_t and the noise in it (Ho et al., algorithm 2 and equation 11)."""
    beta = schedule.betas[t]
    share = beta / (1 - schedule.alpha_bar[t]).sqrt()
    mean = (x - share * noise) / schedule.alphas[t].sqrt()
    return mean + schedule.posterior_variance[t].sqrt() * fresh


# %% tags=["ddim"]
def ddim_step(x, noise, now: Tensor, then: Tensor, fresh, eta: float = 0.0) -> Tensor:
    """From one alpha bar to a larger one (Song et al., equations 12 and 16, C.1)."""
    sigma = eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
    x0 = clear_picture(x, noise, now)
    return then.sqrt() * x0 + (1 - then - sigma**2).sqrt() * noise + sigma * fresh


# %% tags=["mean"]
schedule = Schedule(linear_betas(1000).double())
seed(0)
x, noise, fresh = (torch.randn(4, 3, 8, 8).double() for _ in range(3))
worst = 0.0
for t in range(1000):
    x0 = clear_picture(x, noise, schedule.alpha_bar[t])
    posterior = schedule.from_x0[t] * x0 + schedule.from_xt[t] * x  # equation 7
    mean = ddpm_step(x, noise, t, schedule, torch.zeros_like(x))
    worst = max(worst, checks.deviation(mean, posterior))
claim(worst < 1e-9, "the mean from the picture is the mean from the noise")

# %% tags=["eta-one"]
worst = 0.0
for t in range(1, 1000):
    now = schedule.alpha_bar[t]
    then = schedule.alpha_bar[t - 1]
    ddpm = ddpm_step(x, noise, t, schedule, fresh)
    ddim = ddim_step(x, noise, now, then, fresh, eta=1.0)
    worst = max(worst, checks.deviation(ddim, ddpm))
claim(worst < 1e-9, "DDIM with eta 1, one step at a time, is DDPM")

# %% tags=["equal-schedules"]
x, noise, fresh = (torch.randn(4, 3, 8, 8).double() for _ in range(3))
forms = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
t = torch.tensor([0, 10, 500, 999])
for name, betas in (("linear", linear_betas(1000)), ("cosine", cosine_betas(1000))):
    theirs = DDPMScheduler(beta_schedule=forms[name], clip_sample=False)
    schedule = Schedule(betas.double())
    off = checks.deviation(schedule.alpha_bar, theirs.alphas_cumprod.double())
    theirs.alphas_cumprod = schedule.alpha_bar  # single precision is too coarse near 1
    variances = torch.stack([theirs._get_variance(n) for n in range(1, 1000)])
    off = max(off, checks.deviation(schedule.posterior_variance[1:], variances))
    noisy = diffuse(x, noise, schedule.alpha_bar[t])
    off = max(off, checks.deviation(noisy, theirs.add_noise(x, noise, t)))
    equal[f"{name} schedule, x_t from x_0"] = off

# %% tags=["equal-steps"]
schedule = Schedule(linear_betas(1000).double())
theirs = DDPMScheduler(clip_sample=False)
theirs.alphas_cumprod = schedule.alpha_bar
found = []
for t in (1, 500, 999):
    seed(t)
    library = theirs.step(noise, t, x).prev_sample
    seed(t)  # the library draws its fresh noise as we do
    ours = ddpm_step(x, noise, t, schedule, torch.randn_like(x))
    found.append(checks.deviation(ours, library))
equal["DDPM step"] = max(found)

# %% tags=["equal-far-steps"]
theirs = DDIMScheduler(clip_sample=False)
theirs.set_timesteps(50)
theirs.alphas_cumprod = schedule.alpha_bar
now = schedule.alpha_bar[600]
then = schedule.alpha_bar[580]
for eta in (0.0, 0.5, 1.0):
    library = theirs.step(noise, 600, x, eta=eta, variance_noise=fresh).prev_sample
    ours = ddim_step(x, noise, now, then, fresh, eta)
    equal[f"DDIM step, eta {eta:g}"] = checks.deviation(ours, library)

# %% tags=["equal"]
for name, found in equal.items():
    claim(found < 1e-5, f"{name}: equal to the library's")
rows = [(name, f"{found:.0e}") for name, found in equal.items()]
table(rows, ("part", "difference from diffusers"))

# %% tags=["differences"]
theirs = library_unet(small)
claim(
    bool(theirs.conv_out.weight.any()), "the library's last layer begins other than 0"
)
last = theirs.mid_block.resnets[0].conv2.weight
claim(bool(last.any()), "and so does the last layer of a branch")
how = DDPMScheduler().config
claim(how.variance_type == "fixed_small", "its variance is that of the posterior")
claim(how.clip_sample, "it holds the cleared picture")

# %% [markdown]
# ## Training
#
# Digits of 16 pixels, folded; for each batch new steps and new noise.


# %% tags=["fold"]
FOLD = 2


def folded(pictures: Tensor) -> Tensor:
    """Each 2x2 pixels of grey pictures (B, 1, 2 H, 2 W) as four channels, -1..1."""
    return F.pixel_unshuffle(2 * pictures - 1, FOLD)


def unfolded(x: Tensor) -> Tensor:
    """The way back, (B, 4, H, W) -> (B, 1, 2 H, 2 W), held between 0 and 1."""
    return F.pixel_shuffle(x, FOLD).add(1).div(2).clamp(0, 1)


# %% tags=["average"]
@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """Move an average of the weights a little towards those of this step.

    At first it moves faster (as TensorFlow's does with `num_updates`), so that it
    does not remember the start for long.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for a, b in zip(average.parameters(), network.parameters(), strict=True):
        a.lerp_(b, 1 - decay)


# %% tags=["train"]
RATE = 3e-3
DECAY = 0.995  # share of the old average that a step keeps
HIDDEN = 0.1  # share of the labels that are left out


def train(network, x0: Tensor, y: Tensor, schedule: Schedule, steps: int, batch: int):
    """Ho et al., algorithm 1, some labels left out: the average, the losses."""
    average = copy.deepcopy(network)
    how = {"lr": RATE, "betas": (0.9, 0.99), "fused": True}
    optimizer = torch.optim.AdamW(network.parameters(), **how)
    losses = []
    for step in training.progress(range(steps), "steps"):
        chosen = torch.randint(len(x0), (batch,)).to(x0.device)
        hidden = (torch.rand(batch) < HIDDEN).to(x0.device)
        labels = y[chosen].masked_fill(hidden, NO_LABEL)
        t = torch.randint(schedule.T, (batch,)).to(x0.device)
        noise = torch.randn(x0[chosen].shape).to(x0.device)
        loss = noise_loss(network, x0[chosen], labels, t, noise, schedule)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        follow(average, network, step, DECAY)
        losses.append(loss.item())
    return average, losses


# %% tags=["train-run"]
schedule = Schedule(cosine_betas(200).to(device))
x0 = folded(data.train[0]).to(device, memory_format=torch.channels_last)
y = data.train[1].to(device)
seed(0)
network = silent(LabelledUNet()).to(device, memory_format=torch.channels_last)
BATCH = 32
average, losses = train(network, x0, y, schedule, steps=700, batch=BATCH)

# %% tags=["train-record"]
record("digits.parameters", counting.parameters(network))
record("train.count", len(y))
record("train.steps", len(losses))
record("train.batch", BATCH)
record("train.rate", RATE)
record("train.decay", DECAY)
record("schedule.steps", schedule.T)
record("schedule.end", schedule.alpha_bar[-1])


# %% [markdown]
# ## Sampling
#
# With the label, without it, and beyond it.


# %% tags=["guided"]
def told(network, y: Tensor):
    """The noise that a network finds, as a function of x and t, labels (B,) given."""
    return lambda x, t: network(x, t, y)


def guided(network, y: Tensor, scale: float):
    """Go from "any digit" to the label, `scale` times as far (Ho and Salimans 2022)."""
    nothing = torch.full_like(y, NO_LABEL)

    def noise_in(x: Tensor, t: Tensor) -> Tensor:
        both = network(torch.cat((x, x)), torch.cat((t, t)), torch.cat((nothing, y)))
        without, with_label = both.chunk(2)
        return without + scale * (with_label - without)

    return noise_in


# %% tags=["hold"]
def held(x: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise for which the clear picture stays between -1 and 1.

    The authors' code holds the picture, too, and leaves the noise as it is.
    """
    x0 = clear_picture(x, noise, alpha_bar).clamp(-1, 1)
    return (x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()


# %% tags=["sample"]
@torch.no_grad()
def sample(noise_in, x: Tensor, schedule: Schedule, steps: int, eta: float = 0.0):
    """From noise (B, C, H, W) to pictures, in steps spread evenly over all T."""
    times = torch.linspace(schedule.T - 1, 0, steps).round().long().tolist()
    bars = [*schedule.alpha_bar[times], x.new_tensor(1.0)]
    for t, now, then in zip(times, bars, bars[1:]):
        noise = noise_in(x, torch.full((len(x),), t, device=x.device))
        fresh = torch.randn(x.shape).to(x.device)
        x = ddim_step(x, held(x, noise, now), now, then, fresh, eta)
    return x


# %% tags=["start"]
def start(number: int, count: int) -> tuple[Tensor, Tensor]:
    """Noise of a seed, and the labels 0 to 9 in turn."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(count, FOLD**2, 16 // FOLD, 16 // FOLD, generator=generator)
    return x.to(device), (torch.arange(count) % 10).to(device)


# %% [markdown]
# ## A judge
#
# A small classifier reads which digit a picture shows; its last features tell how far
# the made pictures are from real ones.


# %% tags=["judge"]
class Judge(nn.Module):
    """Which digit: (B, 1, 16, 16) -> (B, 10), over 16 features of the picture."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(512, 16),
        )
        self.classifier = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).relu())


# %% tags=["frechet"]
def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Of two clouds of features (N, d) and (M, d) (Heusel et al. 2017).

    Each is taken for a normal distribution: squared distance of the means +
    trace(A + B - 2 sqrt(A B)) of the covariances A and B.
    """
    a = a.double()
    b = b.double()
    A = a.T.cov()
    B = b.T.cov()
    root = torch.linalg.eigvals(A @ B).real.clamp(min=0).sqrt().sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return (means + A.trace() + B.trace() - 2 * root).item()


def within(features: Tensor, y: Tensor) -> float:
    """Mean distance of two pictures of one digit; 0 where no digit has two."""
    groups = [features[y == digit] for digit in y.unique()]
    distances = [F.pdist(group).mean() for group in groups if len(group) > 1]
    return float(sum(distances)) / max(len(distances), 1)


def outermost(pictures: Tensor) -> float:
    """How bright the outermost pixels of pictures (B, 1, H, W) are, 0..1."""
    inner = torch.zeros_like(pictures, dtype=torch.bool)
    inner[..., 1:-1, 1:-1] = True
    return pictures[~inner].mean().item()


# %% tags=["judge-train"]
seed(0)
judge = Judge().to(device)
optimizer = torch.optim.AdamW(judge.parameters(), lr=4e-3)
rate = training.one_cycle(optimizer, 8 * 70)
training.fit(judge, data.train, 8, optimizer, schedule=rate)
judge_right = training.evaluate(judge, data.test)
record("judge.right", judge_right)
claim(judge_right > 0.95, "the judge reads more than 95 % of the held-out digits")


# %% tags=["judged"]
def judged(judge, x: Tensor, y: Tensor, real: Tensor) -> tuple[float, float, float]:
    """Share read as asked, distance to real ones, spread within those read as asked."""
    pictures = unfolded(x).cpu()
    features = training.predict(judge.features, pictures)
    right = training.predict(judge, pictures).argmax(1) == y.cpu()
    alike = within(features[right], y.cpu()[right])
    return right.double().mean().item(), frechet_distance(features, real), alike


def balanced(part, number: int, each: int) -> tuple[Tensor, Tensor]:
    """A draw, by its number, of `each` pictures of each digit from a part."""
    x, y = part
    places = [(y == digit).nonzero().flatten() for digit in y.unique()]
    first = number * each
    chosen = torch.cat([place[first : first + each] for place in places])
    return x[chosen], y[chosen]


# %% tags=["headline"]
SEEDS = (0, 1, 2)
SCALES = (0.0, 1.0, 3.0)
COUNT = 70
real = training.predict(judge.features, data.test[0])
found = {}
made = {}
for number in SEEDS:
    noise, labels = start(number, COUNT)
    nothing = told(average, torch.full_like(labels, NO_LABEL))
    ways = (nothing, told(average, labels), guided(average, labels, SCALES[2]))
    for scale, noise_in in zip(SCALES, ways, strict=True):
        seed(number)
        made[scale, number] = sample(noise_in, noise, schedule, 20, eta=1.0)
        found[scale, number] = judged(judge, made[scale, number], labels, real)

# %% tags=["headline-real"]
for number in SEEDS:
    x, labels = balanced(data.validation, number, COUNT // 10)
    found["real digits", number] = judged(judge, folded(x), labels, real)
columns = {}
for row in (*SCALES, "real digits"):
    runs = [found[row, number] for number in SEEDS]
    columns[row] = list(zip(*runs))  # shares, distances, distances within a digit
record("count", COUNT)

# %% tags=["headline-result"]
rows = []
for row, (rights, distances, alike) in columns.items():
    name = "real" if row == "real digits" else f"scale{row:g}"
    record_spread(f"right.{name}", rights)
    record_spread(f"distance.{name}", distances)
    if row != 0:  # without the label too few are as asked
        record_spread(f"within.{name}", alike)
    title = row if name == "real" else f"{row:g}"
    rows.append((title, spread(rights, ".2f"), spread(distances, ".0f")))
table(rows, ("guidance", "read as asked", "Fréchet distance"))

# %% tags=["headline-claims"]
for lower, upper in zip(SCALES, SCALES[1:]):
    more = min(columns[upper][0]) > max(columns[lower][0])
    claim(more, "with more guidance more digits are as asked, seeds apart")
    nearer = max(columns[upper][1]) < min(columns[lower][1])
    claim(nearer, "and they are nearer to real ones")
variety = {row: each[2] for row, each in columns.items()}
claim(max(variety[3.0]) < min(variety[1.0]), "two of one digit are more alike at 3")
claim(max(variety[3.0]) < min(variety["real digits"]), "more alike than real ones")
overlap = min(variety[1.0]) < max(variety["real digits"])
overlap = overlap and min(variety["real digits"]) < max(variety[1.0])
claim(overlap, "at 1 they are not told apart from real ones in that")
claim(max(columns[0.0][0]) < 0.2, "without the label they are as asked by chance")

# %% tags=["guidance-figure"] alt="Three rows of ten pictures, one row for each guidance, from the same ten pieces of noise; asked for are the digits 0 to 9. With guidance 0 they are digits and strokes of no order, with 1 some are the digit that was asked for, with 3 nearly all are."
shown = []
for scale in SCALES:
    shown += list(unfolded(made[scale, 0][:10]))
plots.image_grid(shown, columns=10, scale=0.5, vmin=0, vmax=1)

# %% [markdown]
# ## Fewer steps
#
# The same network and the same noise, in 5, 20 and 100 steps.

# %% tags=["steps"]
STEPS = (5, 20, 100)
by_steps = {}
pictures = {}
for number in SEEDS:
    noise, labels = start(number, COUNT)
    for steps in STEPS:
        x = sample(told(average, labels), noise, schedule, steps)
        by_steps[steps, number] = judged(judge, x, labels, real)
        pictures[steps, number] = unfolded(x).cpu()

# %% tags=["steps-result"]
rows = []
moved = {}
for steps in STEPS:
    distances = [by_steps[steps, number][1] for number in SEEDS]
    moved[steps] = []
    for number in SEEDS:
        away = pictures[steps, number] - pictures[100, number]
        moved[steps].append(away.abs().mean().item())
    record_spread(f"distance.steps{steps}", distances)
    rows.append((steps, spread(distances, ".0f"), spread(moved[steps], ".3f")))
table(rows, ("steps", "Fréchet distance", "difference from 100 steps"))

# %% tags=["steps-claims"]
gains = []
for number in SEEDS:
    five, twenty, hundred = (by_steps[steps, number][1] for steps in STEPS)
    claim(
        hundred < twenty < five, "with each seed more steps are nearer to real digits"
    )
    gains.append((five - twenty, twenty - hundred))
most = min(first for first, _ in gains) > 2 * max(second for _, second in gains)
claim(most, "most of the gain comes between 5 and 20 steps")
least = min(by_steps[20, number][1] for number in SEEDS)
drawn = [found[1.0, number][1] for number in SEEDS]
claim(max(drawn) < least, "in 20 steps eta 1 is nearer to real digits than DDIM")
worst = max(found["real digits", number][1] for number in SEEDS)
claim(min(drawn) > 3 * worst, "and still far from what real digits have")
far = min(moved[5]) > 3 * max(moved[20])
claim(far, "5 steps give other pictures than 100, more than three times as far as 20")

# %% tags=["edges"]
by_drawing = [outermost(unfolded(made[1.0, n]).cpu()) for n in SEEDS]
by_ddim = [outermost(pictures[20, n]) for n in SEEDS]
record_spread("edge.drawn", by_drawing)
record_spread("edge.ddim", by_ddim)
record("edge.real", outermost(data.test[0]))
claim(min(by_ddim) > 1.5 * max(by_drawing), "DDIM leaves more light at the edges")

# %% tags=["steps-figure"] alt="Three rows of ten pictures from the same noise, made in 5, 20 and 100 steps. Each column shows one shape; some are digits, some have a bright, spotted ground; the last two rows can hardly be told apart."
shown = [row for steps in STEPS for row in pictures[steps, 0][:10]]
plots.image_grid(shown, columns=10, scale=0.5, vmin=0, vmax=1)

# %% [markdown]
# ## With chance and without
#
# The same noise twice, by DDIM and with eta 1; and from a picture back to its noise.

# %% tags=["twice"]
noise, labels = start(0, 10)
again = {}
for name, eta in (("DDIM", 0.0), ("eta 1", 1.0)):
    both = []
    for number in (0, 1):
        seed(number)
        both.append(sample(guided(average, labels, 3.0), noise, schedule, 25, eta))
    again[name] = [unfolded(x).cpu() for x in both]

# %% tags=["twice-result"]
same, other = again.values()
claim(bool((same[0] == same[1]).all()), "DDIM gives the same twice")
difference = (other[0] - other[1]).abs().mean().item()
record("twice.drawn", difference)
claim(difference > 0.05, "eta 1 gives other pictures from the same noise")
table([(f"{difference:.3f}",)], ("difference of two runs with eta 1",))

# %% tags=["twice-figure"] alt="Four rows of ten digits from the same noise. The first two rows, two runs of DDIM, are the same pictures. The last two rows, two runs with eta 1, show digits in different handwriting."
shown = [picture for both in again.values() for row in both for picture in row]
plots.image_grid(shown, columns=10, scale=0.5, vmin=0, vmax=1)


# %% tags=["invert"]
@torch.no_grad()
def invert(noise_in, x: Tensor, schedule: Schedule, steps: int) -> Tensor:
    """The noise from which DDIM would make pictures (Song et al., section 4.3).

    Its steps turned round. The noise at step t is not known yet: what the network
    finds in the picture before it, asked with the number t, stands in for it.
    """
    times = torch.linspace(0, schedule.T - 1, steps).round().long().tolist()
    bars = schedule.alpha_bar[times]
    noise = noise_in(x, torch.full((len(x),), times[0], device=x.device))
    x = diffuse(x, noise, bars[0].expand(len(x)))
    for t, now, then in zip(times[1:], bars, bars[1:]):
        noise = noise_in(x, torch.full((len(x),), t, device=x.device))
        noise = held(x, noise, now)
        clear = clear_picture(x, noise, now)
        x = diffuse(clear, noise, then.expand(len(x)))
    return x


# %% tags=["invert-result"]
digits = folded(data.test[0][:10]).to(device)
noise_in = told(average, data.test[1][:10].to(device))
returned = {}
widths = []
rows = []
for steps in (10, 20, 50):
    noise = invert(noise_in, digits, schedule, steps)
    back = unfolded(sample(noise_in, noise, schedule, steps)).cpu()
    returned[steps] = (back - data.test[0][:10]).abs().mean().item()
    widths.append(noise.std().item())
    rows.append((steps, f"{returned[steps]:.3f}", f"{widths[-1]:.2f}"))
claim(returned[50] < returned[20] < returned[10], "more steps lead back more nearly")
claim(max(widths) < 0.95, "the noise found is weaker than 1")
table(
    rows,
    (
        "steps each way",
        "difference from the digits",
        "standard deviation of the noise found",
    ),
)

# %% [markdown]
# ## What the network knows
#
# The loss by step, the picture it has in mind on the way, and what averaging is worth.

# %% tags=["loss-by-step"]
shown_steps = (0, 20, 50, 100, 150, 199)
test_digits = folded(data.test[0][:200]).to(device)
test_labels = data.test[1][:200].to(device)
noise = torch.randn(test_digits.shape, generator=torch.Generator().manual_seed(1))
by_step = {}
for step in shown_steps:
    t = torch.full((200,), step, device=device)
    with torch.no_grad():
        inputs = (test_digits, test_labels, t, noise.to(device), schedule)
        by_step[step] = noise_loss(average, *inputs).item()

# %% tags=["loss-by-step-result"]
rows = []
for step, loss in by_step.items():
    bar = schedule.alpha_bar[step].item()
    rows.append((step + 1, f"{bar:.3f}", f"{loss:.3f}"))
claim(by_step[0] > 5 * by_step[100], "noise is hard to see in a nearly clear picture")
claim(max(by_step.values()) < 1, "each loss is below that of the answer 0")
claim(abs(noise.square().mean().item() - 1) < 0.05, "the answer 0 has a loss of 1")
table(rows, ("step", "ᾱ", "loss on held-out digits"))


# %% tags=["on-the-way"]
@torch.no_grad()
def on_the_way(noise_in, x: Tensor, schedule: Schedule, steps: int) -> list[Tensor]:
    """Pairs (noisy, clear as the network sees it) of each step of DDIM."""
    times = torch.linspace(schedule.T - 1, 0, steps).round().long().tolist()
    bars = [*schedule.alpha_bar[times], x.new_tensor(1.0)]
    pairs = []
    for t, now, then in zip(times, bars, bars[1:]):
        noise = noise_in(x, torch.full((len(x),), t, device=x.device))
        noise = held(x, noise, now)
        pairs.append((x, clear_picture(x, noise, now)))
        x = ddim_step(x, noise, now, then, torch.zeros_like(x))
    return pairs


# %% tags=["way-figure"] alt="Two rows of ten pictures, from left to right the steps of one sample. Above, the noisy picture turns from noise into a 7. Below, the cleared picture: at first scattered white dots, then a faint 7, then a clear one."
noise, labels = start(0, 10)
pairs = on_the_way(guided(average, labels, 3.0), noise, schedule, 20)
chosen = pairs[::2]
shown = [unfolded(x[7:8])[0] for x, _ in chosen]
shown += [unfolded(clear[7:8])[0] for _, clear in chosen]
plots.image_grid(shown, columns=10, scale=0.5, vmin=0, vmax=1)

# %% tags=["way-claims"]
last_step = torch.full_like(labels, schedule.T - 1)
with torch.no_grad():
    answer = average(noise, last_step, labels)
uncut = clear_picture(noise, answer, schedule.alpha_bar[-1]).abs().mean().item()
claim(uncut > 10, "the first cleared picture is far outside -1 to 1")
read = [training.predict(judge, unfolded(clear)).argmax(1) for _, clear in pairs]
settled = all(bool((now == read[-1]).all()) for now in read[10:])
claim(settled, "from the 11th of 20 on each cleared picture is read as the last one is")
claim(read[-1][7].item() == 7, "what was asked for as a 7 is read as a 7")

# %% tags=["average-run"]
last = {}
for number in SEEDS:
    noise, labels = start(number, COUNT)
    seed(number)
    x = sample(told(network, labels), noise, schedule, 20, eta=1.0)
    last[number] = judged(judge, x, labels, real)

# %% tags=["average-result"]
rows = []
averaged = {number: found[1.0, number] for number in SEEDS}
for name, by_seed in (("average", averaged), ("last step", last)):
    rights = [by_seed[number][0] for number in SEEDS]
    distances = [by_seed[number][1] for number in SEEDS]
    key = name.replace(" ", ".")
    record_spread(f"right.{key}", rights)
    record_spread(f"distance.{key}", distances)
    rows.append((name, spread(rights, ".2f"), spread(distances, ".0f")))
each = [averaged[number][1] < last[number][1] for number in SEEDS]
claim(all(each), "with the noise of each seed the average is nearer to real digits")
apart = min(averaged[n][0] for n in SEEDS) > max(last[n][0] for n in SEEDS)
claim(apart, "more pictures of the average are as asked, seeds apart")
table(rows, ("weights", "read as asked", "Fréchet distance"))

# %% [markdown]
# ## What we saw
#
# - The U-Net is the library's, and so are schedules and steps of both samplers.
# - With more guidance more digits are as asked, and those of a kind are more alike.
# - DDIM makes the same picture from the same noise; 20 steps come near to 100.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
by_hand = math.exp(-1000 * (1e-4 + 0.02) / 2)  # 1 - beta is nearly exp(-beta)
exact = Schedule(linear_betas(1000).double()).alpha_bar[-1].item()

# %% tags=["solution-1-result"]
claim(abs(by_hand / exact - 1) < 0.1, "the estimate is right within a tenth")
table([(f"{by_hand:.1e}", f"{exact:.1e}")], ("by hand", "product"))


# %% tags=["solution-2"]
def clear_loss(x0: Tensor, found: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Mean squared difference of the picture and the one that follows from `found`."""
    noisy = diffuse(x0, noise, alpha_bar)
    shape = alpha_bar[:, None, None, None]
    return F.mse_loss(clear_picture(noisy, found, shape), x0)


# %% tags=["solution-2-result"]
rows = []
x0 = torch.rand(8, 1, 4, 4)
noise = torch.randn_like(x0)
guess = noise + 0.1 * torch.randn_like(x0)
for bar in (0.99, 0.5, 0.01):
    loss = clear_loss(x0, guess, noise, torch.full((8,), bar)).item()
    ratio = loss / F.mse_loss(guess, noise).item()
    claim(abs(ratio * bar / (1 - bar) - 1) < 1e-3, "the ratio is (1 - bar) / bar")
    rows.append((bar, f"{ratio:.3f}"))
table(rows, ("alpha bar", "loss of the picture / loss of the noise"))


# %% tags=["solution-3"]
def between(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Noise on the arc from a to b (B, ...), taken for orthogonal, as long as they are.

    Song et al., appendix D.5, measure the angle; noise of 256 pixels is nearly at a
    right one.
    """
    angle = torch.tensor(share * math.pi / 2)
    return angle.cos() * a + angle.sin() * b


# %% tags=["solution-3-result"]
ends, _ = start(0, 9)
steps = [between(ends[7:8], ends[8:], n / 8) for n in range(9)]
labels = torch.full((9,), 7, device=device)
x = sample(guided(average, labels, 3.0), torch.cat(steps), schedule, 20)
sevens = (training.predict(judge, unfolded(x)).argmax(1) == 7).sum()
record("between.right", sevens)
claim(sevens > 6, "nearly all are read as a 7")

# %% tags=["solution-3-figure"] alt="A row of nine pictures of the digit 7, whose form changes little by little from the left one to the right one."
plots.image_grid(list(unfolded(x)), columns=9, scale=0.55, vmin=0, vmax=1)


# %% tags=["solution-4"]
@torch.no_grad()
def fill_in(noise_in, known: Tensor, mask: Tensor, x: Tensor, schedule: Schedule):
    """All T steps of DDPM; where the mask is 1, the known picture is put in.

    It is put in with the noise of the step.
    """
    for t in reversed(range(schedule.T)):
        fresh = torch.randn(x.shape).to(x.device)
        bar = schedule.alpha_bar[t].expand(len(x))
        x = mask * diffuse(known, fresh, bar) + (1 - mask) * x
        noise = noise_in(x, torch.full((len(x),), t, device=x.device))
        noise = held(x, noise, schedule.alpha_bar[t])
        x = ddpm_step(x, noise, t, schedule, torch.randn(x.shape).to(x.device))
    return mask * known + (1 - mask) * x


# %% tags=["solution-4-result"]
digits = data.test[1][:8]
known = folded(data.test[0][:8]).to(device)
left = torch.zeros_like(known)
left[..., : known.shape[-1] // 2] = 1
seed(0)
noise_in = told(average, digits.to(device))
filled = unfolded(fill_in(noise_in, known, left, torch.randn_like(known), schedule))
read = training.predict(judge, filled).argmax(1)
record("filled.right", (read == digits).sum())
claim((read == digits).sum() > 4, "most of them are read as the digit again")

# %% tags=["solution-4-figure"] alt="Three rows of eight pictures: real digits, the same with the right half grey, and with the right half made by the network, most of them the digit again."
shown = [*unfolded(known), *unfolded(known * left), *filled]
plots.image_grid(shown, columns=8, scale=0.6, vmin=0, vmax=1)
