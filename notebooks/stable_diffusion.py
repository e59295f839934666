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
#     notebook: 1800
# ---

# %% [markdown]
# # Stable Diffusion
#
# Diffusion in the latent space of an autoencoder, steered by text: three networks built at
# the published size and compared with two libraries, and a miniature of them trained to
# write digits as asked. The text to it is the
# [chapter](../chapters/stable_diffusion.rst), the paper is
# [Rombach et al. 2021](https://arxiv.org/abs/2112.10752).

# %%
import copy
import math
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from workbench import claim, device, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, images, plots, training

# %% [markdown]
# ## The autoencoder
#
# A residual block, one attention over all places in the middle, and maps that are halved
# on the way in and doubled on the way out.


# %% tags=["block"]
class ResidualBlock(nn.Module):
    """Twice norm, SiLU, 3x3, added to x: (B, c_in, H, W) -> (B, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int, *, groups: int, eps: float = 1e-6):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, c_out, eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        same = c_in == c_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return self.shortcut(x) + y


# %% tags=["attention"]
class Attention(nn.Module):
    """Tokens x read those of a context in heads (Vaswani et al. 2017, 3.2.2)."""

    def __init__(
        self, d_model: int, d_context: int, *, n_heads: int, bias: bool = False
    ):
        super().__init__()
        assert d_model % n_heads == 0, "n_heads must divide d_model"
        self.n_heads = n_heads
        self.to_q = nn.Linear(d_model, d_model, bias=bias)
        self.to_k = nn.Linear(d_context, d_model, bias=bias)
        self.to_v = nn.Linear(d_context, d_model, bias=bias)
        self.to_out = nn.Linear(d_model, d_model)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, h, T, d)

    def forward(self, x: Tensor, context: Tensor, *, causal: bool = False) -> Tensor:
        # x (B, T, D) reads context (B, S, d_context) -> (B, T, D)
        q = self.split(self.to_q(x))
        k = self.split(self.to_k(context))
        v = self.split(self.to_v(context))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.to_out(y.transpose(1, 2).flatten(2))


class PixelAttention(nn.Module):
    """Each place of a map reads all places, one head, added to the map."""

    def __init__(self, c: int, *, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, c, 1e-6)
        self.attention = Attention(c, c, n_heads=1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[2:]
        tokens = self.norm(x).flatten(2).mT  # (B, H W, C)
        y = self.attention(tokens, tokens)
        return x + y.mT.unflatten(2, (H, W))  # (B, C, H, W)


# %% tags=["resize"]
class Halve(nn.Module):
    """3x3 at every second pixel; zeros are added at the right and below only."""

    def __init__(self, c: int):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # (B, C, H / 2, W / 2)


class Double(nn.Module):
    """Each pixel four times, then 3x3."""

    def __init__(self, c: int):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))  # (B, C, 2 H, 2 W)


# %% tags=["coders"]
@dataclass(frozen=True)
class VAESize:
    """Stable Diffusion's by default: one halving between two widths."""

    c_image: int = 3
    c_latent: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    depth: int = 2
    groups: int = 32


def middle(size: VAESize) -> list[nn.Module]:
    c = size.widths[-1]
    first = ResidualBlock(c, c, groups=size.groups)
    last = ResidualBlock(c, c, groups=size.groups)
    return [first, PixelAttention(c, groups=size.groups), last]


def head(size: VAESize, c_in: int, c_out: int) -> list[nn.Module]:
    norm = nn.GroupNorm(size.groups, c_in, 1e-6)
    return [norm, nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1)]


class Encoder(nn.Sequential):
    """(B, c_image, H, W) -> (B, 2 c_latent, H / f, W / f), f = 2 ** (widths - 1)."""

    def __init__(self, size: VAESize):
        c = size.widths[0]
        layers = [nn.Conv2d(size.c_image, c, 3, padding=1)]
        for level, width in enumerate(size.widths):
            if level > 0:
                layers.append(Halve(c))
            for _ in range(size.depth):
                layers.append(ResidualBlock(c, width, groups=size.groups))
                c = width
        layers += middle(size) + head(size, c, 2 * size.c_latent)
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """(B, c_latent, H / f, W / f) -> (B, c_image, H, W), one block a level more."""

    def __init__(self, size: VAESize):
        c = size.widths[-1]
        layers = [nn.Conv2d(size.c_latent, c, 3, padding=1), *middle(size)]
        for level, width in enumerate(reversed(size.widths)):
            if level > 0:
                layers.append(Double(c))
            for _ in range(size.depth + 1):
                layers.append(ResidualBlock(c, width, groups=size.groups))
                c = width
        super().__init__(*layers, *head(size, c, size.c_image))


# %% tags=["vae"]
class VAE(nn.Module):
    """An image as a normal distribution over latents, and latents as an image.

    Rombach et al. 2021, section 3.1, with the KL penalty.
    """

    def __init__(self, size: VAESize = VAESize()):
        super().__init__()
        self.encoder = Encoder(size)
        self.to_moments = nn.Conv2d(2 * size.c_latent, 2 * size.c_latent, 1)
        self.from_latent = nn.Conv2d(size.c_latent, size.c_latent, 1)
        self.decoder = Decoder(size)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # (B, c_image, H, W) -> mean, log variance: (B, c_latent, H / f, W / f) each
        mean, log_variance = self.to_moments(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.from_latent(z))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(x)
        return self.decode(draw(mean, log_variance)), mean, log_variance


def draw(mean: Tensor, log_variance: Tensor) -> Tensor:
    """A sample of the normal distribution."""
    return mean + (log_variance / 2).exp() * torch.randn_like(mean)


# %% tags=["vae-loss"]
def vae_loss(seen: Tensor, x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Squared error, and a little of the divergence from the standard normal.

    Section 3.1. The paper's penalty is a sum with a weight of about 1e-6 (appendix G).
    """
    divergence = (mean**2 + log_variance.exp() - 1 - log_variance) / 2
    return F.mse_loss(seen, x) + 1e-4 * divergence.mean()


# %% tags=["vae-shape"]
tiny = VAE(VAESize(c_image=1, widths=(8, 16, 16), depth=1, groups=4))
mean, log_variance = tiny.encode(torch.randn(5, 1, 16, 32))
mean.shape

# %% [markdown]
# ## The text encoder
#
# CLIP's: pre-norm, causal, with an approximation of the GELU.


# %% tags=["text"]
@dataclass(frozen=True)
class TextSize:
    """CLIP ViT-L/14's text encoder by default."""

    V: int = 49_408
    T: int = 77
    d_model: int = 768
    n_heads: int = 12
    depth: int = 12


class TextLayer(nn.Module):
    """Tokens read those before them, then each is changed alone: (B, T, D) again.

    CLIP's (Radford et al. 2021, section 2.4): the norm in front, a causal mask.
    """

    def __init__(self, d_model: int, *, n_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, d_model, n_heads=n_heads, bias=True)
        self.norm2 = nn.LayerNorm(d_model)
        self.wide = nn.Linear(d_model, 4 * d_model)
        self.narrow = nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, causal=True)
        y = self.wide(self.norm2(x))
        return x + self.narrow(y * torch.sigmoid(1.702 * y))  # "quick GELU"


class TextEncoder(nn.Module):
    """Numbers of tokens (B, T) -> what the U-Net reads (B, T, D)."""

    def __init__(self, size: TextSize = TextSize()):
        super().__init__()
        D = size.d_model
        self.tokens = nn.Embedding(size.V, D)
        self.places = nn.Embedding(size.T, D)
        layers = [TextLayer(D, n_heads=size.n_heads) for _ in range(size.depth)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(D)

    def forward(self, numbers: Tensor) -> Tensor:
        places = torch.arange(numbers.shape[1], device=numbers.device)
        x = self.tokens(numbers) + self.places(places)  # (B, T, D)
        return self.norm(self.layers(x))


# %% tags=["text-shape"]
TextEncoder(TextSize(V=16, T=6, d_model=32, n_heads=4, depth=2))(
    torch.randint(16, (5, 6))
).shape

# %% [markdown]
# ## The U-Net
#
# It is given noisy latents, the step and the text, and predicts the noise. Each residual
# block is told the step, and each spatial transformer reads the text.


# %% tags=["timed-block"]
def sinusoids(t: Tensor, d: int) -> Tensor:
    """Cosines and sines of steps (B,) at d / 2 frequencies: (B, d).

    Vaswani et al. 2017, section 3.5, with a step in the place of a position.
    """
    half = d // 2
    exponents = torch.arange(half, device=t.device) / half
    angles = t[:, None] * 10_000**-exponents  # (B, d / 2)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TimedBlock(ResidualBlock):
    """A residual block whose channels are shifted by what the step becomes.

    Ho et al. 2020, appendix B.
    """

    def __init__(self, c_in: int, c_out: int, *, d_time: int, groups: int):
        super().__init__(c_in, c_out, groups=groups, eps=1e-5)
        self.to_shift = nn.Linear(d_time, c_out)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        # x (B, c_in, H, W), time (B, d_time) -> (B, c_out, H, W)
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + self.to_shift(F.silu(time))[..., None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        return self.shortcut(x) + y


# %% tags=["transformer-block"]
class GatedMLP(nn.Module):
    """GEGLU (Shazeer 2020): a linear layer, multiplied by the GELU of another."""

    def __init__(self, d_model: int):
        super().__init__()
        self.wide = nn.Linear(d_model, 8 * d_model)  # both layers in one
        self.narrow = nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        values, gates = self.wide(x).chunk(2, dim=-1)
        return self.narrow(values * F.gelu(gates))


class TransformerBlock(nn.Module):
    """Places read each other, read the text, and are changed alone.

    Rombach et al. 2021, section 3.3; the order is that of the published code. The MLP
    of the paper (appendix E.2.1) comes before the cross-attention.
    """

    def __init__(self, d_model: int, d_text: int, *, n_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, d_model, n_heads=n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.cross = Attention(d_model, d_text, n_heads=n_heads)
        self.norm3 = nn.LayerNorm(d_model)
        self.mlp = GatedMLP(d_model)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        # x (B, H W, D), text (B, T, d_text) -> (B, H W, D)
        y = self.norm1(x)
        x = x + self.attention(y, y)
        x = x + self.cross(self.norm2(x), text)
        return x + self.mlp(self.norm3(x))


# %% tags=["spatial-transformer"]
class SpatialTransformer(nn.Module):
    """The places of a map as tokens of a transformer block, added to the map.

    Rombach et al. 2021, appendix E.2.1.
    """

    def __init__(self, c: int, d_text: int, *, n_heads: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, c, 1e-6)
        self.into = nn.Conv2d(c, c, 1)
        self.block = TransformerBlock(c, d_text, n_heads=n_heads)
        self.back = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        # x (B, C, H, W), text (B, T, d_text) -> (B, C, H, W)
        H, W = x.shape[2:]
        tokens = self.into(self.norm(x)).flatten(2).mT  # (B, H W, C)
        y = self.block(tokens, text).mT.unflatten(2, (H, W))
        return x + self.back(y)


class NoText(nn.Module):
    """In the place of a spatial transformer where the text is not read."""

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        return x


# %% tags=["unet-layer"]
@dataclass(frozen=True)
class UNetSize:
    """Stable Diffusion 1's by default; reads: which levels read the text."""

    c_latent: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    reads: tuple[bool, ...] = (True, True, True, False)
    depth: int = 2
    d_text: int = 768
    n_heads: int = 8
    groups: int = 32

    @property
    def d_time(self) -> int:
        return 4 * self.widths[0]


class Layer(nn.Module):
    """A block that is told the step, a transformer that reads the text, a new size."""

    def __init__(self, size: UNetSize, c_in: int, c: int, *, reads: bool, resize=None):
        super().__init__()
        how = {"n_heads": size.n_heads, "groups": size.groups}
        self.block = TimedBlock(c_in, c, d_time=size.d_time, groups=size.groups)
        self.read = SpatialTransformer(c, size.d_text, **how) if reads else NoText()
        self.resize = resize or nn.Identity()

    def forward(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        return self.resize(self.read(self.block(x, time), text))


class HalveLayer(nn.Module):
    """3x3 at every second place, with zeros at all four sides; reads nothing."""

    def __init__(self, c: int):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        return self.conv(x)  # (B, C, H / 2, W / 2)


# %% tags=["ways"]
def way_down(size: UNetSize) -> tuple[list[nn.Module], list[int]]:
    """The layers that lead down, and the channels of all that is handed over."""
    c = size.widths[0]
    layers = []
    handed = [c]
    for level, (width, reads) in enumerate(zip(size.widths, size.reads)):
        if level > 0:
            layers.append(HalveLayer(c))
            handed.append(c)
        for _ in range(size.depth):
            layers.append(Layer(size, c, width, reads=reads))
            c = width
            handed.append(c)
    return layers, handed


def way_up(size: UNetSize, handed: list[int]) -> list[nn.Module]:
    """The layers that lead up; each takes over what one on the way down has handed."""
    c = size.widths[-1]
    layers = []
    for level in reversed(range(len(size.widths))):
        width = size.widths[level]
        for number in range(size.depth + 1):
            doubles = level > 0 and number == size.depth
            resize = Double(width) if doubles else None
            reads = size.reads[level]
            c_in = c + handed.pop()
            layers.append(Layer(size, c_in, width, reads=reads, resize=resize))
            c = width
    return layers


# %% tags=["unet"]
class UNet(nn.Module):
    """Predict the noise in latents from the latents, the step and the text.

    Rombach et al. 2021, sections 3.2 and 3.3.
    """

    def __init__(self, size: UNetSize = UNetSize()):
        super().__init__()
        self.width = size.widths[0]
        last = size.widths[-1]
        wide = nn.Linear(self.width, size.d_time)
        narrow = nn.Linear(size.d_time, size.d_time)
        self.time = nn.Sequential(wide, nn.SiLU(), narrow)
        self.conv_in = nn.Conv2d(size.c_latent, self.width, 3, padding=1)
        down, handed = way_down(size)
        self.down = nn.ModuleList(down)
        first = Layer(size, last, last, reads=True)
        self.middle = nn.ModuleList([first, Layer(size, last, last, reads=False)])
        self.up = nn.ModuleList(way_up(size, handed))
        self.norm = nn.GroupNorm(size.groups, self.width)
        self.conv_out = nn.Conv2d(self.width, size.c_latent, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        # x (B, c_latent, H, W), t (B,), text (B, T, d_text) -> as x
        time = self.time(sinusoids(t, self.width))
        x = self.conv_in(x)
        handed = [x]
        for layer in self.down:
            x = layer(x, time, text)
            handed.append(x)
        for layer in self.middle:
            x = layer(x, time, text)
        for layer in self.up:
            x = layer(torch.cat((x, handed.pop()), dim=1), time, text)
        return self.conv_out(F.silu(self.norm(x)))


# %% tags=["unet-shape"]
SMALL = UNetSize(widths=(16, 32, 32), reads=(True, True, False), d_text=32, groups=8)
UNet(SMALL)(
    torch.randn(5, 4, 8, 16), torch.randint(1000, (5,)), torch.randn(5, 6, 32)
).shape

# %% [markdown]
# ## The scheduler
#
# How much noise each of 1,000 steps has, and one step of DDIM from more noise to less.


# %% tags=["scheduler"]
def signal_shares() -> Tensor:
    """alpha-bar, the signal's share of the variance at 1,000 steps: (1000,).

    The numbers are those of Stable Diffusion (v1-inference.yaml of its code).
    """
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000)
    return torch.cumprod(1 - roots**2, dim=0)


def add_noise(z: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """Latents and noise, weighted so that a variance of 1 stays one."""
    return share.sqrt() * z + (1 - share).sqrt() * noise


def ddim_step(z: Tensor, noise: Tensor, share: Tensor, next_share: Tensor) -> Tensor:
    """From one share of signal to a larger one, no new noise (Song et al. 2020)."""
    clean = (z - (1 - share).sqrt() * noise) / share.sqrt()
    return add_noise(clean, noise, next_share)


# %% tags=["guided"]
def guided(with_text: Tensor, without: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance; scale is 1 + w of Ho and Salimans 2022."""
    return without + scale * (with_text - without)


# %% tags=["sample"]
@torch.no_grad()
def sample(
    unet, text, empty, z: Tensor, *, scale: float, steps: int, skipped=0
) -> Tensor:
    """Noise z (B, c_latent, H, W) -> latents that fit texts (B, T, d_text).

    scale: that of the guidance. skipped: how many of the first steps are left out,
    where z is not noise alone.
    """
    shares = signal_shares().to(z.device)
    stride = 1000 // steps
    both = torch.cat((text, empty.expand_as(text)))
    for place in reversed(range(steps - skipped)):
        number = place * stride + 1
        before = max(number - stride, 0)
        t = torch.full((2 * len(z),), number, device=z.device)
        with_text, without = unet(torch.cat((z, z)), t, both).chunk(2)
        noise = guided(with_text, without, scale)
        z = ddim_step(z, noise, shares[number], shares[before])
    return z


# %% tags=["network-drawing"]
def draw_network(axes) -> None:
    """The three networks at work: prompt and noise in, picture out."""
    nodes = {
        "prompt": diagrams.Node(0.65, 1.0, "prompt"),
        "text": diagrams.Node(2.2, 1.0, "text encoder", width=1.4),
        "noise": diagrams.Node(0.65, 1.9, "noise\n4×64×64"),
        "unet": diagrams.Node(2.2, 1.9, "U-Net", width=1.4),
        "step": diagrams.Node(4.05, 1.9, "step", width=0.9),
        "decoder": diagrams.Node(4.05, 1.0, "decoder", width=1.1),
        "picture": diagrams.Node(4.05, 0.25, "picture\n3×512×512"),
        "tokens": diagrams.Node(2.62, 1.45, "77×768"),
        "answer": diagrams.Node(3.25, 1.68, "noise"),
        "latents": diagrams.Node(4.5, 1.45, "4×64×64"),
        "again": diagrams.Node(
            2.7, 2.62, "latents with less noise", colour=plots.COLOURS[1]
        ),
    }
    arrows = [("prompt", "text"), ("text", "unet"), ("noise", "unet")]
    arrows += [("unet", "step"), ("step", "decoder"), ("decoder", "picture")]
    loop = ("step", (4.05, 2.42), (1.3, 2.42), (1.3, 2.0), (1.5, 2.0))
    diagrams.draw(axes, nodes, arrows, [loop])


# %% tags=["network-figure"] alt="A prompt goes into a text encoder, and its 77 vectors of 768 numbers into a U-Net. Noise of 4x64x64 goes into the U-Net, too, whose answer, the noise that it finds, goes into a box named step. From there one arrow leads back into the U-Net, marked as latents with less noise, and another one up to a decoder, which gives a picture of 3x512x512."
draw_network(diagrams.sheet(2.8))

# %% [markdown]
# ## Count and compare
#
# The published sizes on the meta device, which computes shapes and no numbers.


# %% tags=["count"]
PUBLISHED = {"U-Net": UNet, "autoencoder": VAE, "text encoder": TextEncoder}
EXPECTED = {
    "U-Net": 859_520_964,
    "autoencoder": 83_653_863,
    "text encoder": 123_060_480,
}
real = {}
rows = []
for name, build in PUBLISHED.items():
    with torch.device("meta"):
        real[name] = build()
    found = counting.parameters(real[name])
    claim(found == EXPECTED[name], f"the {name} has the published parameters")
    rows.append((name, found, f"{2 * found / 1e9:.2f}"))
total = sum(counting.parameters(model) for model in real.values())
record("parameters", total)
table(
    [*rows, ("together", total, f"{2 * total / 1e9:.2f}")],
    ("part", "parameters", "GB at 2 bytes"),
)


# %% tags=["watched"]
@contextmanager
def watched(layers, note):
    """Call note(layer, inputs, output) after each call of one of the layers, inside."""
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def with_weights(model: nn.Module) -> list[nn.Module]:
    """The layers that have weights of their own."""
    return [m for m in model.modules() if any(True for _ in m.parameters(False))]


# %% tags=["levels"]
def predict(unet: UNet, x: Tensor) -> Tensor:
    """One call of the published U-Net, with 77 tokens."""
    t = torch.zeros(len(x), device=x.device)
    return unet(x, t, torch.zeros(len(x), 77, 768, device=x.device))


def levels(unet: UNet, x: Tensor) -> list[tuple]:
    """A row for each level on its way: where, shape that it gives, parameters."""
    down = [unet.conv_in, *unet.down]
    ways = {"down": (down, 3), "middle": (unet.middle, 2), "up": (unet.up, 3)}
    shapes = {}

    def note(layer, _, y) -> None:
        shapes[layer] = tuple(y.shape[1:])

    with watched([*unet.down, *unet.middle, *unet.up], note):
        predict(unet, x)
    rows = []
    for way, (layers, length) in ways.items():
        for start in range(0, len(layers), length):
            part = layers[start : start + length]
            count = sum(counting.parameters(layer) for layer in part)
            rows.append((way, shapes[part[-1]], count))
    return rows


# %% tags=["levels-result"]
with torch.device("meta"):
    latents = torch.empty(1, 4, 64, 64)
rows = []
for way, shape, count in levels(real["U-Net"], latents):
    rows.append((way, "×".join(map(str, shape)), count))
table(rows, ("way", "gives", "parameters"))


# %% tags=["called"]
def called(model: nn.Module, *inputs) -> list[nn.Module]:
    """The layers with weights of their own, in the order in which a pass calls them."""
    found = []
    with watched(with_weights(model), lambda layer, *_: found.append(layer)):
        model(*inputs)
    return found


def copy_weights(source: nn.Module, target: nn.Module, *inputs) -> None:
    """Layer by layer in the order of their calls; shapes that differ are an error."""
    layers = called(source, *inputs)
    for a, b in zip(layers, called(target, *inputs), strict=True):
        b.load_state_dict(a.state_dict())


@torch.no_grad()
def shake(model: nn.Module) -> nn.Module:
    """Move all vectors of weights off the zeros and ones that they start with."""
    for weight in model.parameters():
        if weight.ndim == 1:
            weight += torch.randn_like(weight) / 10
    return model.eval()


# %% tags=["references"]
def reference_unet(size: UNetSize) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=size.widths,
        down_block_types=[
            "CrossAttnDownBlock2D" if reads else "DownBlock2D" for reads in size.reads
        ],
        up_block_types=[
            "CrossAttnUpBlock2D" if reads else "UpBlock2D"
            for reads in reversed(size.reads)
        ],
        layers_per_block=size.depth,
        cross_attention_dim=size.d_text,
        attention_head_dim=size.n_heads,  # so named there
        norm_num_groups=size.groups,
    )


def reference_vae(size: VAESize) -> AutoencoderKL:
    levels = len(size.widths)
    return AutoencoderKL(
        in_channels=size.c_image,
        out_channels=size.c_image,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=size.widths,
        layers_per_block=size.depth,
        latent_channels=size.c_latent,
        norm_num_groups=size.groups,
    )


def reference_text(size: TextSize) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=size.V,
        hidden_size=size.d_model,
        intermediate_size=4 * size.d_model,
        num_hidden_layers=size.depth,
        num_attention_heads=size.n_heads,
        max_position_embeddings=size.T,
        bos_token_id=0,
        eos_token_id=1,
    )
    return CLIPTextModel(config)


def reference_scheduler(steps: int) -> DDIMScheduler:
    """Stable Diffusion's settings."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    return scheduler


# %% tags=["equal"]
seed(0)
deviations = {}
unet_size = UNetSize(widths=(16, 32, 32, 32), d_text=24, n_heads=4, groups=8)
theirs = shake(reference_unet(unet_size))
ours = UNet(unet_size)
inputs = torch.randn(2, 4, 16, 24), torch.tensor([3, 700]), torch.randn(2, 7, 24)
copy_weights(theirs, ours, *inputs)
with torch.no_grad():
    deviations["U-Net"] = checks.deviation(ours(*inputs), theirs(*inputs).sample)

# %% tags=["equal-text"]
text_size = TextSize(V=50, T=10, d_model=32, n_heads=4, depth=2)
theirs = shake(reference_text(text_size))
ours = TextEncoder(text_size)
numbers = torch.randint(50, (2, 9))
copy_weights(theirs, ours, numbers)
with torch.no_grad():
    expected = theirs(numbers).last_hidden_state
    deviations["text encoder"] = checks.deviation(ours(numbers), expected)

# %% tags=["equal-vae"]
vae_size = VAESize(widths=(16, 32), groups=8)
theirs = shake(reference_vae(vae_size))
ours = VAE(vae_size)
x = torch.randn(2, 3, 16, 24)
copy_weights(theirs, ours, x)
with torch.no_grad():
    mean, log_variance = ours.encode(x)
    found = theirs.encode(x).latent_dist
    deviations["encoder, mean"] = checks.deviation(mean, found.mean)
    deviations["encoder, variance"] = checks.deviation(log_variance, found.logvar)
    seen = theirs.decode(mean).sample
    deviations["decoder"] = checks.deviation(ours.decode(mean), seen)

# %% tags=["equal-scheduler"]
scheduler = reference_scheduler(10)
prompt = torch.randn(2, 7, 24)
start = torch.randn(2, 4, 8, 8)
unet = UNet(unet_size)
z = start
with torch.no_grad():
    for number in scheduler.timesteps:
        noise = unet(z, number.repeat(2), prompt)
        z = scheduler.step(noise, number, z).prev_sample
found = sample(unet, prompt, torch.zeros(1, 7, 24), start, scale=1.0, steps=10)
deviations["10 steps"] = checks.deviation(found, z)

# %% tags=["equal-result"]
references = {
    "U-Net": "diffusers, UNet2DConditionModel",
    "encoder, mean": "diffusers, AutoencoderKL",
    "encoder, variance": "diffusers, AutoencoderKL",
    "decoder": "diffusers, AutoencoderKL",
    "text encoder": "transformers, CLIPTextModel",
    "10 steps": "diffusers, DDIMScheduler",
}
largest = max(deviations.values())
claim(largest < 1e-5, "equal to both libraries")
rows = [(name, references[name], f"{deviations[name]:.1e}") for name in references]
table(rows, ("part", "reference", "largest difference"))

# %% [markdown]
# ## What one picture costs


# %% tags=["calling"]
class Calling(nn.Module):
    """One use of a model as a network of one input, for what counts those."""

    def __init__(self, model: nn.Module, use):
        super().__init__()
        self.model = model
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.model, x)


def largest_output(model: nn.Module, x: Tensor) -> int:
    """How many numbers the largest output of a layer has."""
    sizes = []
    with watched(with_weights(model), lambda layer, _, y: sizes.append(y.numel())):
        model(x)
    return max(sizes)


# %% tags=["cost"]
with torch.device("meta"):
    pixels = torch.empty(1, 3, 512, 512)
    numbers = torch.zeros(1, 77, dtype=torch.long)
    on_pixels = UNet(UNetSize(c_latent=3))
record("fewer", pixels.numel() / latents.numel())
uses = {
    "text encoder": (real["text encoder"], numbers, 2),
    "U-Net": (Calling(real["U-Net"], predict), latents, 100),
    "decoder": (Calling(real["autoencoder"], VAE.decode), latents, 1),
}
costs = {name: counting.macs(model, x) for name, (model, x, _) in uses.items()}
step = costs["U-Net"]
record("step.macs", step)
record("guided.giga.macs", 2 * step / 1e9)

# %% tags=["cost-result"]
whole = sum(costs[name] * times for name, (_, _, times) in uses.items())
rows = []
largest_outputs = {}
for name, (model, x, times) in uses.items():
    share_of_picture = costs[name] * times / whole
    largest_outputs[name] = 2 * largest_output(model, x) / 1e6
    numbers_of_row = (f"{costs[name] / 1e9:,.0f}", times, f"{share_of_picture:.1%}")
    rows.append((name, *numbers_of_row, f"{largest_outputs[name]:,.0f}"))
last = "MB of a layer's largest output"
heads = ("part", "G MACs a call", "calls", "share", last)
table(rows, heads)

# %% tags=["cost-claims"]
claim(100 * step > 0.9 * whole, "the U-Net has over nine tenths of the cost")
record("share.U-Net", 100 * step / whole)
claim(
    largest_outputs["decoder"] > 2 * largest_outputs["U-Net"],
    "the largest output of a layer is the decoder's",
)

# %% tags=["pixel-cost"]
pixel_step = counting.macs(Calling(on_pixels, predict), pixels)
ratio = pixel_step / step
claim(ratio > 2 * 64, "a call on pixels costs more than 128 times one on latents")
record("pixel.ratio", ratio)
record("pixel.places", 512 * 512 // (64 * 64))
record("pixel.scores", (512 * 512 // (64 * 64)) ** 2)
rows = []
for name, macs, places in (
    ("64×64×4 latents", step, 64 * 64),
    ("512×512×3 pixels", pixel_step, 512 * 512),
):
    scores = 2 * 8 * places**2 / 1e9  # 2 bytes, 8 heads
    rows.append((name, f"{macs / 1e9:,.0f}", f"{scores:,.1f}"))
table(rows, ("the U-Net works on", "G MACs a call", "GB of scores, one layer"))

# %% [markdown]
# ## Digits with prompts
#
# One digit in the middle of a sheet of 16x32 pixels, as it is, thick or thin; or two plain
# digits side by side. Some prompts are kept back.


# %% tags=["prompts"]
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WORDS = ["BEGIN", "END", "thick", "thin", "and", *NAMES]
STYLES = ("plain", "thick", "thin")
KEPT_BACK = (("thick", 2), ("thick", 7), ("thin", 5), ("thin", 8))


def prompt_of(style: str, shown: tuple[int, ...]) -> str:
    """For example "two", "thick two", "three and five", "thin three and five"."""
    words = " and ".join(NAMES[k] for k in shown)
    return words if style == "plain" else f"{style} {words}"


def kept_back(style: str, shown: tuple[int, ...]) -> bool:
    """No training picture has these: 4 of 30 single digits, 20 of 100 pairs."""
    if len(shown) == 1:
        return (style, shown[0]) in KEPT_BACK
    return (shown[0] + 3 * shown[1]) % 5 == 0


def numbers_of(prompts: list[str]) -> Tensor:
    """BEGIN, the words, and END up to six tokens, as CLIP's tokeniser pads: (B, 6)."""
    rows = []
    for prompt in prompts:
        words = ["BEGIN", *prompt.split(), "END"]
        words += ["END"] * (6 - len(words))
        rows.append([WORDS.index(word) for word in words])
    return torch.tensor(rows)


# %% tags=["asked"]
SINGLES = [(style, (k,)) for style in STYLES for k in range(10)]
PAIRS = [("plain", (a, b)) for a in range(10) for b in range(10)]
SEEN = {
    "single digits": [what for what in SINGLES if not kept_back(*what)],
    "pairs": [what for what in PAIRS if not kept_back(*what)][::3],
}
NOT_SEEN = {
    "single digits kept back": [w for w in SINGLES if kept_back(*w)] * 5,
    "pairs kept back": [what for what in PAIRS if kept_back(*what)],
    "thick pairs": [("thick", shown) for _, shown in SEEN["pairs"][:20]],
    "thin pairs": [("thin", shown) for _, shown in SEEN["pairs"][:20]],
}


# %% tags=["sheets"]
def restyled(x: Tensor, style: str) -> Tensor:
    """Digits of 28x28 in one of the styles, shrunk to 16x16."""
    if style == "thick":
        x = F.max_pool2d(x, 3, stride=1, padding=1)  # the brightest of 3x3
    if style == "thin":
        x = -F.max_pool2d(F.pad(-x, (0, 1, 0, 1)), 2, stride=1)  # the darkest of 2x2
    return F.interpolate(x, size=(16, 16), mode="bilinear", antialias=True)


def sheet(digits: list[Tensor]) -> Tensor:
    """One digit (1, 16, 16) in the middle, or two side by side: (1, 16, 32)."""
    return F.pad(torch.cat(digits, dim=-1), (8, 8) if len(digits) == 1 else (0, 0))


def draw_asked(draw: torch.Generator) -> tuple[str, tuple[int, ...]]:
    """A style and one digit, or two plain digits; nothing that is kept back."""
    while True:
        style, pair, first, second = torch.randint(30, (4,), generator=draw).tolist()
        if pair % 2:
            asked = "plain", (first % 10, second % 10)
        else:
            asked = STYLES[style % 3], (first % 10,)
        if not kept_back(*asked):
            return asked


def written(styled: dict, labels: Tensor, asked, draw: torch.Generator) -> Tensor:
    """A sheet of real digits, drawn by chance, for each asked: (B, 1, 16, 32)."""
    pool = [(labels == k).nonzero().flatten() for k in range(10)]
    pictures = []
    for style, shown in asked:
        digits = []
        for k in shown:
            place = torch.randint(len(pool[k]), (1,), generator=draw)
            digits.append(styled[style][pool[k][place]][0])
        pictures.append(sheet(digits))
    return torch.stack(pictures)


# %% tags=["data"]
SHEETS = 6000
data = images.digits()
labels = data.train[1]
styled = {style: restyled(data.train[0], style) for style in STYLES}
held_out = {style: restyled(data.test[0], style) for style in STYLES}
draw_sheets = torch.Generator().manual_seed(0)
asked = [draw_asked(draw_sheets) for _ in range(SHEETS)]
pictures = written(styled, labels, asked, draw_sheets)
prompts = [prompt_of(*what) for what in asked]
record("sheets", SHEETS)

# %% tags=["data-figure"] alt="Two rows of four dark sheets, twice as wide as high, with white handwritten digits and their prompts above. From the left: a digit of usual strokes, one of thick strokes and one of thin strokes, each in the middle, and two digits side by side."
chosen = []
for row in range(2):
    for style, length in (("plain", 1), ("thick", 1), ("thin", 1), ("plain", 2)):
        fits = [i for i, (a, b) in enumerate(asked) if (a, len(b)) == (style, length)]
        chosen.append(fits[row])
titles = [prompts[place] for place in chosen]
plots.image_grid(pictures[chosen], titles, columns=4, scale=1.25, vmin=0, vmax=1)
plt.gcf().set_size_inches(5, 1.9)

# %% [markdown]
# A small network that reads digits judges what is written.


# %% tags=["judge"]
class Judge(nn.Module):
    """A digit in any style, (B, 1, 16, 16) in 0..1 -> (B, 10)."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden = nn.Linear(32 * 16, 64)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)  # (B, 16, 8, 8)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)  # (B, 32, 4, 4)
        return self.classifier(torch.relu(self.hidden(x.flatten(1))))


def places_of(shown: tuple[int, ...]) -> tuple[int, ...]:
    """The left edges of the digits on a sheet."""
    return (8,) if len(shown) == 1 else (0, 16)


def obeyed(judge: Judge, sheets: Tensor, asked) -> Tensor:
    """Whether all digits of each sheet (B, 1, 16, 32) are read as asked: (B,)."""
    found = []
    for picture, (_, shown) in zip(sheets, asked):
        cuts = [picture[..., left : left + 16] for left in places_of(shown)]
        read = training.predict(judge, torch.stack(cuts)).argmax(1)
        found.append(read.tolist() == list(shown))
    return torch.tensor(found)


def ink(sheets: Tensor, asked) -> Tensor:
    """The mean of the pixels, by digit: (B,)."""
    digits = torch.tensor([len(shown) for _, shown in asked])
    return 2 * sheets.mean((1, 2, 3)) / digits


# %% tags=["judge-run"]
seed(0)
judge = Judge().to(device)
part = torch.cat([styled[style] for style in STYLES]), labels.repeat(3)
epochs = 3
optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3)
schedule = training.one_cycle(optimizer, epochs * math.ceil(len(part[1]) / 50))
training.fit(judge, part, epochs, optimizer, schedule=schedule)

# %% tags=["judge-result"]
rows = []
inks = {}
for style in STYLES:
    read = training.evaluate(judge, (held_out[style], data.test[1]))
    inks[style] = held_out[style].mean().item()
    rows.append((style, f"{read:.1%}", f"{inks[style]:.3f}"))
table(rows, ("style", "held-out digits read", "ink"))

# %% [markdown]
# ## Train the autoencoder
#
# On squares of 16x16 cut from the sheets; it is convolutional and takes whole ones later.


# %% tags=["train-vae"]
CUTS = 16
VAE_RATE = 6e-3


def train_vae(vae: VAE, pictures: Tensor, *, steps: int) -> list[float]:
    """CUTS squares a step, values in -1..1; the loss of each step."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=VAE_RATE, fused=True)
    schedule = training.one_cycle(optimizer, steps)
    losses = []
    for _ in training.progress(range(steps), "steps"):
        chosen = torch.randint(len(pictures), (CUTS,)).to(pictures.device)
        left = torch.randint(17, ()).item()
        x = 2 * pictures[chosen][..., left : left + 16] - 1
        seen, mean, log_variance = vae(x)
        loss = vae_loss(seen, x, mean, log_variance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


# %% tags=["vae-run"]
VAE_STEPS = 300
seed(0)
vae = VAE(VAESize(c_image=1, widths=(16, 32, 32), depth=1, groups=4))
vae = vae.to(device, memory_format=torch.channels_last)  # a fifth faster here
train_vae(vae, pictures.to(device), steps=VAE_STEPS)
record("vae.steps", VAE_STEPS)
record("vae.batch", CUTS)
record("vae.rate", VAE_RATE)


# %% tags=["latents"]
@torch.no_grad()
def encoded(vae: VAE, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of pictures in 0..1, 500 at a time."""
    parts = [vae.encode(2 * part - 1) for part in pictures.split(500)]
    means, log_variances = zip(*parts)
    return torch.cat(means).contiguous(), torch.cat(log_variances).contiguous()


@torch.no_grad()
def decoded(vae: VAE, z: Tensor) -> Tensor:
    """Pictures in 0..1, on the CPU."""
    return ((vae.decode(z) + 1) / 2).clamp(0, 1).cpu()


# %% tags=["latents-run"]
means, log_variances = encoded(vae, pictures.to(device))
to_unit = 1 / means.std().item()  # Stable Diffusion's number is 0.18215
record("latents.deviation", means.std())
means.shape

# %% tags=["restored"]
SEVERAL = 10
draw_sheets = torch.Generator().manual_seed(1)
real_sheets = {}
for name, asked in SEEN.items():
    real_sheets[name] = written(held_out, data.test[1], asked * SEVERAL, draw_sheets)
unseen = torch.cat(list(real_sheets.values()))
restored = decoded(vae, encoded(vae, unseen.to(device))[0])
error = F.mse_loss(restored, unseen)
claim(error < unseen.var() / 4, "less than a quarter of the variance is lost")
record("vae.lost", error / unseen.var())

# %% tags=["restored-figure"] alt="Two rows of five dark sheets with white digits. Each sheet below looks like the one above it; its strokes are a little softer."
FIVE = [("single digits", 3), ("single digits", 12), ("single digits", 22)]
FIVE += [("pairs", 4), ("pairs", 20)]
above = torch.stack([real_sheets[name][place] for name, place in FIVE])
below = decoded(vae, encoded(vae, above.to(device))[0])
plots.image_grid(torch.cat((above, below)), columns=5, scale=1.0, vmin=0, vmax=1)
plt.gcf().set_size_inches(5, 1.15)


# %% [markdown]
# ## Train the U-Net
#
# Text encoder and U-Net together, on latents with noise; the prompt of one sample in ten is
# emptied.


# %% tags=["painter"]
class Painter(nn.Module):
    """A text encoder and a U-Net that reads it."""

    def __init__(self, text: TextSize, unet: UNetSize):
        super().__init__()
        self.text = TextEncoder(text)
        self.unet = UNet(unet)

    def forward(self, z: Tensor, t: Tensor, numbers: Tensor) -> Tensor:
        return self.unet(z, t, self.text(numbers))


def diffusion_loss(painter, z: Tensor, numbers: Tensor, shares: Tensor) -> Tensor:
    """Squared error of the noise predicted at steps by chance.

    Rombach et al. 2021, equation 3.
    """
    t = torch.randint(1000, (len(z),)).to(z.device)
    noise = torch.randn(z.shape).to(z.device)
    noisy = add_noise(z, noise, shares[t][:, None, None, None])
    return F.mse_loss(painter(noisy, t, numbers), noise)


# %% tags=["train"]
BATCH = 32
RATE = 2e-3


@torch.no_grad()
def follow(averaged: nn.Module, model: nn.Module, share: float = 0.01) -> None:
    """Move the weights of the average by a share towards those of the model.

    Samples are drawn from the average, as with the published weights.
    """
    for a, b in zip(averaged.parameters(), model.parameters(), strict=True):
        a.lerp_(b, share)


def train(painter: Painter, latents, numbers: Tensor, *, steps: int, unit: float):
    """BATCH latents a step, times unit; the average of the weights, and the losses."""
    means, log_variances = latents
    shares = signal_shares().to(means.device)
    empty = numbers_of([""]).to(means.device)
    averaged = copy.deepcopy(painter)
    optimizer = torch.optim.AdamW(painter.parameters(), lr=RATE, fused=True)
    schedule = training.one_cycle(optimizer, steps)
    losses = []
    for _ in training.progress(range(steps), "steps"):
        chosen = torch.randint(len(means), (BATCH,)).to(means.device)
        z = unit * draw(means[chosen], log_variances[chosen])
        emptied = (torch.rand(BATCH, 1) < 0.1).to(means.device)
        asked = torch.where(emptied, empty, numbers[chosen])
        loss = diffusion_loss(painter, z, asked, shares)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        follow(averaged, painter)
        losses.append(loss.item())
    return averaged, losses


# %% tags=["train-run"]
STEPS = 780
seed(0)
MINI_TEXT = TextSize(V=len(WORDS), T=6, d_model=48, n_heads=4, depth=1)
MINI = UNetSize(
    widths=(24, 48), reads=(False, True), depth=1, d_text=48, n_heads=4, groups=8
)
painter = Painter(MINI_TEXT, MINI).to(device)
painter, losses = train(
    painter,
    (means, log_variances),
    numbers_of(prompts).to(device),
    steps=STEPS,
    unit=to_unit,
)
record("painter.parameters", counting.parameters(painter))
record("painter.steps", STEPS)
record("painter.batch", BATCH)
record("painter.rate", RATE)

# %% [markdown]
# ## Ask for digits

# %% tags=["ask"]
SAMPLING_STEPS = 10


@torch.no_grad()
def paint(painter, vae, asked, *, number: int, scale: float, unit: float) -> Tensor:
    """Pictures (B, 1, 16, 32) for what is asked, from the noise of one seed."""
    where = next(painter.parameters()).device
    seed(number)
    noise = torch.randn(len(asked), 4, 4, 8).to(where)
    text = painter.text(numbers_of([prompt_of(*what) for what in asked]).to(where))
    empty = painter.text(numbers_of([""]).to(where))
    steps = SAMPLING_STEPS
    z = sample(painter.unet, text, empty, noise, scale=scale, steps=steps)
    return decoded(vae, z / unit)


# %% tags=["headline"]
SEEDS = (0, 1, 2)
SCALES = (0, 1, 4)
GUIDED = 4
ASKED = SEEN | NOT_SEEN
runs = [(name, scale) for name in SEEN for scale in SCALES]
runs += [(name, GUIDED) for name in NOT_SEEN]
painted = {}
right = {}
for name, scale in runs:
    for number in SEEDS:
        how = {"number": number, "scale": scale, "unit": to_unit}
        found = paint(painter, vae, ASKED[name], **how)
        painted[name, scale, number] = found
        right[name, scale, number] = obeyed(judge, found, ASKED[name])


# %% tags=["by-seed"]
def by_seed(values: dict, asked, name: str, scale: int, style=None) -> list[float]:
    """The mean of the values of each seed, of those asked for in a style only if given.

    values: tensors with a number for each that is asked, by (name, scale, seed).
    """
    fits = torch.tensor([style in (None, asked_style) for asked_style, _ in asked])
    seeds = sorted(number for *run, number in values if run == [name, scale])
    return [values[name, scale, n].double()[fits].mean().item() for n in seeds]


# %% tags=["ceiling"]
ceiling = {}
for name, asked in SEEN.items():
    read = obeyed(judge, real_sheets[name], asked * SEVERAL)
    ceiling[name] = read.double().mean().item()
    record(f"asked.{name.replace(' ', '.')}", len(asked))
record("sampling.steps", SAMPLING_STEPS)

# %% tags=["headline-result"]
rows = []
for scale in SCALES:
    cells = [f"scale {scale}"]
    for name, asked in SEEN.items():
        found = by_seed(right, asked, name, scale)
        record_spread(f"obeyed.{name.replace(' ', '.')}.{scale}", found)
        cells.append(spread(found, ".2f"))
    rows.append(cells)
rows.append(["real, held out", *(f"{value:.2f}" for value in ceiling.values())])
table(rows, ("sheets", *(f"{name} read as asked" for name in SEEN)))

# %% tags=["carried-result"]
rows = []
for name, asked in ASKED.items():
    for style in STYLES if name == "single digits" else (None,):
        found = by_seed(right, asked, name, GUIDED, style)
        full = name if style is None else f"{name}, {style}"
        record_spread(f"carried.{full.replace(',', '').replace(' ', '.')}", found)
        count = sum(style in (None, what[0]) for what in asked)
        seen = "yes" if name in SEEN else "no"
        rows.append((full, seen, count, spread(found, ".2f")))
table(rows, ("prompts", "seen in training", "a seed", "read as asked"))

# %% tags=["headline-claims"]
for name, asked in SEEN.items():
    by_scale = {scale: by_seed(right, asked, name, scale) for scale in SCALES}
    for scale in (0, 1):
        words = f"{name}: more obeyed at scale 4 than at {scale}, seeds apart"
        claim(min(by_scale[4]) > max(by_scale[scale]) + 0.1, words)
together = {}
for name, asked in ASKED.items():
    together[name] = sum(by_seed(right, asked, name, GUIDED)) / len(SEEDS)
for name in ("thick pairs", "thin pairs"):
    words = f"{name} are obeyed less often than pairs kept back"
    claim(together[name] < together["pairs kept back"] - 0.15, words)

# %% tags=["ink-of"]
inked = {run: ink(found, ASKED[run[0]]) for run, found in painted.items()}
INK_ROWS = {
    "single digits, scale 1": (["single digits"], 1),
    "single digits, scale 4": (["single digits"], 4),
    "kept back, scale 4": (["single digits kept back"], 4),
    "pairs, scale 4": (["pairs", "thick pairs", "thin pairs"], 4),
}
inks_of = {}
for row, (names, scale) in INK_ROWS.items():
    for name in names:
        for style in {what[0] for what in ASKED[name]}:
            inks_of[row, style] = by_seed(inked, ASKED[name], name, scale, style)

# %% tags=["ink-result"]
rows = [("real, held out", *(f"{inks[style]:.2f}" for style in STYLES))]
for row in INK_ROWS:
    cells = [row]
    for style in STYLES:
        found = inks_of.get((row, style))
        cells.append(spread(found, ".2f") if found else "–")
    rows.append(cells)
table(rows, ("ink of", *STYLES))

# %% tags=["ink-claims"]
first = {style: inks_of["single digits, scale 1", style] for style in STYLES}
one = {style: inks_of["single digits, scale 4", style] for style in STYLES}
kept = {style: inks_of["kept back, scale 4", style] for style in ("thick", "thin")}
two = {style: inks_of["pairs, scale 4", style] for style in STYLES}
claim(min(one["thick"]) > max(one["plain"]), "thick has more ink than plain")
claim(min(one["plain"]) > max(one["thin"]), "plain has more ink than thin")
claim(min(one["thick"]) > inks["thick"], "thick has more ink than real thick digits")
claim(max(one["thin"]) < inks["thin"], "thin has less ink than real thin digits")
claim(min(one["thick"]) > max(first["thick"]), "thick: more ink at scale 4 than at 1")
claim(max(one["thin"]) < min(first["thin"]), "thin: less ink at scale 4 than at 1")
claim(min(kept["thick"]) > max(one["plain"]), "kept back: thick has more than plain")
claim(max(kept["thin"]) < min(one["plain"]), "kept back: thin has less than plain")
claim(min(two["thick"]) > max(two["plain"]), "pairs: thick has more than plain")
claim(max(two["thin"]) < min(two["plain"]), "pairs: thin has less than plain")
claim(min(two["plain"]) > inks["plain"], "plain pairs have more than real digits")

# %% tags=["scales-figure"] alt="Three rows of five dark sheets with white digits under their prompts, one row for each scale of guidance, 0, 1 and 4."
chosen = []
titles = []
for scale in SCALES:
    for name, place in FIVE:
        chosen.append(painted[name, scale, 0][place])
        titles.append(prompt_of(*SEEN[name][place]).replace(" and ", "\nand "))
plots.image_grid(chosen, titles, columns=5, scale=1.0, vmin=0, vmax=1)
plt.gcf().set_size_inches(5, 2.9)
for row, scale in enumerate(SCALES):
    axes = plt.gcf().axes[5 * row]
    how = {"transform": axes.transAxes, "fontsize": 10, "color": plots.COLOURS[1]}
    axes.text(0, 1.5, f"scale {scale}", **how)

# %% [markdown]
# ## Look inside
#
# Which words the places of the latents read.


# %% tags=["look"]
def reading_weights(cross: Attention, x: Tensor, text: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)), the mean over the heads: (B, H W, T)."""
    q = cross.split(cross.to_q(x))  # (B, h, H W, d)
    k = cross.split(cross.to_k(text))  # (B, h, T, d)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.softmax(dim=-1).mean(1)


def where_read(painter: Painter, z: Tensor, t: Tensor, numbers: Tensor) -> Tensor:
    """How much each place reads each token, the mean over the layers: (B, H W, T)."""
    blocks = [m for m in painter.modules() if isinstance(m, TransformerBlock)]
    found = []

    def note(cross, inputs, _) -> None:
        found.append(reading_weights(cross, *inputs))

    with watched([block.cross for block in blocks], note):
        painter(z, t, numbers)
    return torch.stack(found).mean(0)


# %% tags=["look-run"]
pairs = [prompt for prompt in prompts if "and" in prompt][:200]
seed(0)
noise = torch.randn(len(pairs), 4, 4, 8).to(device)
t = torch.full((len(pairs),), 901, device=device)
weights = where_read(painter, noise, t, numbers_of(pairs).to(device)).cpu()
by_column = weights.unflatten(1, (2, 4)).mean((0, 1))  # (B, 2x4, T) -> (4, T)

# %% tags=["look-claims"]
first = by_column[:, 1]
second = by_column[:, 3]
weight = {"first.left": first[:2].mean(), "first.right": first[2:].mean()}
weight |= {"second.left": second[:2].mean(), "second.right": second[2:].mean()}
words = "the first digit is read more at the left, the second more at the right"
claim(weight["first.left"] > weight["first.right"] + 0.03, words)
claim(weight["second.right"] > weight["second.left"] + 0.03, words)
for name, value in weight.items():
    record(f"look.{name}", value)

# %% tags=["look-figure"] alt="A grid of six tokens down the left and four columns of the map along the bottom. The row of the first digit is darker at the left than at the right, that of the second digit darker at the right."
_, axes = plt.subplots(figsize=(5, 2.8))
axes.imshow(by_column.T, cmap="gray_r", vmin=0, aspect="auto")
axes.set_xticks(range(4), ("left", "", "", "right"))
tokens = ("BEGIN", "first digit", "and", "second digit", "END", "END")
axes.set_yticks(range(6), tokens)
axes.set(xlabel="column of the map")
axes.set_axisbelow(True)

# %% [markdown]
# ## What we saw
#
# - Three networks equal those of two libraries, and nearly all of the cost of a picture is
#   the U-Net's.
# - More prompts are obeyed at scale 1 of the guidance than at 0, and more at 4 than at 1.
# - Pairs that were kept back are written; with a style in front of a pair, which was never
#   seen, its digits are lost, and the ink still shows the style.

# %% [markdown]
# ## Solutions

# %% tags=["solution-1"]
with torch.device("meta"):
    larger = torch.empty(1, 4, 128, 128)
at_1024 = counting.macs(Calling(real["U-Net"], predict), larger)

# %% tags=["solution-1-result"]
claim(at_1024 > 5 * step, "four times the places cost more than five times as much")
record("step.1024", at_1024 / step)
rows = [("512×512", f"{step / 1e9:,.0f}"), ("1024×1024", f"{at_1024 / 1e9:,.0f}")]
table(rows, ("picture", "G MACs a call"))


# %% tags=["solution-2"]
@torch.no_grad()
def repaint(painter, vae, pictures: Tensor, prompts, *, skipped: int, unit: float):
    """Pictures as latents with noise, from a later of 20 steps on towards prompts."""
    where = next(painter.parameters()).device
    mean, _ = encoded(vae, pictures.to(where))
    number = (20 - skipped - 1) * 50 + 1
    noise = torch.randn(mean.shape).to(where)
    z = add_noise(unit * mean, noise, signal_shares().to(where)[number])
    text = painter.text(numbers_of(prompts).to(where))
    empty = painter.text(numbers_of([""]).to(where))
    z = sample(painter.unet, text, empty, z, scale=4.0, steps=20, skipped=skipped)
    return decoded(vae, z / unit)


# %% tags=["solution-2-run"]
threes = held_out["plain"][data.test[1] == 3][:20]
before = torch.stack([sheet([three]) for three in threes])
repainted = {}
for skipped in (0, 10, 17):
    seed(0)
    how = {"skipped": skipped, "unit": to_unit}
    repainted[skipped] = repaint(painter, vae, before, ["eight"] * 20, **how)

# %% tags=["solution-2-result"]
rows = []
eights = {}
nearness = {}
for skipped, found in repainted.items():
    read = {}
    for digit in (8, 3):
        as_digit = obeyed(judge, found, [("plain", (digit,))] * 20)
        read[digit] = as_digit.float().mean().item()
    eights[skipped] = read[8]
    nearness[skipped] = F.mse_loss(found, before).item()
    rows.append(
        (skipped, *(f"{v:.2f}" for v in read.values()), f"{nearness[skipped]:.3f}")
    )
table(rows, ("steps left out", "read as eight", "read as three", "squared difference"))

# %% tags=["solution-2-claims"]
claim(nearness[17] < nearness[10] < nearness[0], "the later the start, the nearer")
claim(eights[0] > eights[17] + 0.2, "from a late step fewer become an eight")

# %% tags=["solution-3"]
by_steps = {}
for steps in (2, 5, 10, 20):
    seed(0)
    asked = SEEN["pairs"]
    texts = painter.text(numbers_of([prompt_of(*what) for what in asked]).to(device))
    empty = painter.text(numbers_of([""]).to(device))
    z = torch.randn(len(asked), 4, 4, 8).to(device)
    z = sample(painter.unet, texts, empty, z, scale=4.0, steps=steps)
    read = obeyed(judge, decoded(vae, z / to_unit), asked)
    by_steps[steps] = read.float().mean().item()

# %% tags=["solution-3-result"]
others = [by_steps[steps] for steps in (5, 10, 20)]
claim(min(others) > by_steps[2] + 0.1, "two steps obey less often than more")
rows = [(steps, f"{share:.2f}") for steps, share in by_steps.items()]
table(rows, ("steps", "pairs read as asked"))

# %% tags=["solution-4"]
avoided = {}
for word in ("", "nine"):
    seed(0)
    text = painter.text(numbers_of(["four"] * 50).to(device))
    other = painter.text(numbers_of([word]).to(device))
    z = torch.randn(50, 4, 4, 8).to(device)
    z = sample(painter.unet, text, other, z, scale=4.0, steps=10)
    avoided[word] = decoded(vae, z / to_unit)

# %% tags=["solution-4-result"]
rows = []
for word, found in avoided.items():
    cells = [word or "(empty)"]
    for digit in (4, 9):
        read = obeyed(judge, found, [("plain", (digit,))] * 50)
        record(f"avoided.{word or 'empty'}.{digit}", read.float().mean())
        cells.append(f"{read.float().mean().item():.2f}")
    rows.append(cells)
table(rows, ("in the place of the empty prompt", "read as four", "read as nine"))
