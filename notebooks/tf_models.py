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
# # TensorFlow models
#
# The weights of a Keras layer in a layer of PyTorch: what has to be turned, what has to be
# set, and what nothing complains about. Each layer is computed three times, by Keras, by its
# twin in PyTorch and in plain NumPy; then whole networks are carried over.
# The text to it is the [chapter](../chapters/tf_models.rst), the models are at
# [tensorflow/models](https://github.com/tensorflow/models).

# %%
import copy
import io
import json
import logging
import os
import tempfile
import zipfile
from functools import singledispatch
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

FOLDER = tempfile.TemporaryDirectory()
BACKEND = os.environ.setdefault("KERAS_BACKEND", "torch")
KERAS_HOME = os.environ.setdefault("KERAS_HOME", FOLDER.name)
KERAS_DEVICE = os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")

import keras
from keras import layers

from workbench import claim, record, record_spread, seed, spread, table
from workbench import checks, counting, diagrams, images, plots, training

# %% [markdown]
# Keras 3 computes with PyTorch here: the layers, the order of their weights and their padding
# are those of TensorFlow, the arithmetic below is not. Nothing is fetched; what Keras writes
# lies in a folder of this notebook.

# %%
claim(keras.backend.backend() == "torch", "Keras computes with PyTorch")
claim(keras.config.image_data_format() == "channels_last", "channels stand last")
folder = Path(FOLDER.name)

# %% alt="Four rows of two boxes with an arrow between them, from Keras to PyTorch. Kernel (h, w, in, out) to weight (out, in, h, w): turn; map (B, H, W, C) to (B, C, H, W): turn; padding same to padding a number: mend; epsilon 0.001 to eps 0.00001: set." tags=["idea-figure"]
axes = diagrams.sheet(2.5)
pairs = (
    ("kernel\n(h, w, in, out)", "turn", "weight\n(out, in, h, w)"),
    ("map\n(B, H, W, C)", "turn", "map\n(B, C, H, W)"),
    ("padding\n'same'", "mend", "padding\na number"),
    ("epsilon\n0.001", "set", "eps\n0.00001"),
)
nodes = {}
for i, (left, word, right) in enumerate(pairs):
    nodes[f"a{i}"] = diagrams.Node(1.0, 0.35 + 0.6 * i, left, width=1.8)
    nodes[f"b{i}"] = diagrams.Node(4.0, 0.35 + 0.6 * i, right, width=1.8)
    nodes[f"c{i}"] = diagrams.Node(2.5, 0.22 + 0.6 * i, word, colour=plots.COLOURS[1])
diagrams.draw(axes, nodes, [(f"a{i}", f"b{i}") for i in range(4)])

# %% [markdown]
# ## Padding
#
# What 'same' adds before and behind n inputs.


# %% tags=["same-padding"]
def same_padding(n: int, kernel: int, stride: int = 1) -> tuple[int, int]:
    """Zeros before and behind n inputs; 'same' gives ceil(n / stride) outputs."""
    outputs = -(-n // stride)  # rounded up
    total = max((outputs - 1) * stride + kernel - n, 0)
    return total // 2, total - total // 2


class SamePad(nn.Module):
    """Pad a map (B, C, H, W) as TensorFlow's 'same' does, by the map's own size."""

    def __init__(self, kernel, stride, *, value: float = 0.0):
        super().__init__()
        self.kernel = kernel
        self.stride = stride
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[2:]
        rows = same_padding(H, self.kernel[0], self.stride[0])
        columns = same_padding(W, self.kernel[1], self.stride[1])
        return F.pad(x, (*columns, *rows), value=self.value)


# %% [markdown]
# ## One twin for each layer
#
# `twin` looks at the type of a Keras layer. Maps are (B, C, H, W) in the twin, (B, H, W, C) in
# Keras.


# %% tags=["twin"]
def tensors(layer) -> list[Tensor]:
    """The weights of a Keras layer, in the order of Keras."""
    return [torch.from_numpy(np.array(weight)) for weight in layer.get_weights()]


@singledispatch
def twin(layer) -> nn.Module:
    """The layer of PyTorch that computes what a Keras layer does, with its weights."""
    raise TypeError(f"no twin is known for {type(layer).__name__} ({layer.name!r})")


def loaded(module: nn.Module, *values: Tensor) -> nn.Module:
    """The module with these values for its parameters and buffers, in their order."""
    names = [name for name in module.state_dict() if "num_batches" not in name]
    module.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    return module


def plain(layer) -> None:
    """Refuse an activation inside a layer: in the twin it is a layer of its own."""
    if layer.activation is not keras.activations.linear:
        raise ValueError(f"{layer.name!r}: put the activation in a layer of its own")


def padded(layer, size, module: nn.Module, value: float = 0.0) -> nn.Module:
    """The module, behind its padding where the Keras layer says 'same'."""
    if layer.padding == "valid":
        return module
    return nn.Sequential(SamePad(size, layer.strides, value=value), module)


# %% tags=["twin-conv"]
@twin.register(layers.Dense)
def dense(layer) -> nn.Module:
    plain(layer)
    kernel, *bias = tensors(layer)  # (in, out)
    return loaded(nn.Linear(*kernel.shape, bias=bool(bias)), kernel.T, *bias)


@twin.register(layers.Conv2D)
def conv(layer) -> nn.Module:
    plain(layer)
    kernel, *bias = tensors(layer)
    kernel = kernel.permute(3, 2, 0, 1)  # (h, w, in, out) -> (out, in, h, w)
    c_out, c_in, h, w = kernel.shape
    how = {"stride": layer.strides, "groups": layer.groups, "bias": bool(bias)}
    module = nn.Conv2d(c_in * layer.groups, c_out, (h, w), **how)
    return padded(layer, (h, w), loaded(module, kernel, *bias))


# %% tags=["twin-depthwise"]
@twin.register(layers.DepthwiseConv2D)
def depthwise(layer) -> nn.Module:
    plain(layer)
    kernel, *bias = tensors(layer)
    h, w, C, M = kernel.shape
    kernel = kernel.permute(2, 3, 0, 1)  # (C, M, h, w): M maps of each channel
    kernel = kernel.reshape(C * M, 1, h, w)
    how = {"stride": layer.strides, "groups": C, "bias": bool(bias)}
    module = nn.Conv2d(C, C * M, (h, w), **how)
    return padded(layer, (h, w), loaded(module, kernel, *bias))


@twin.register(layers.SeparableConv2D)
def separable(layer) -> nn.Module:
    plain(layer)
    deep, across, *bias = tensors(layer)
    h, w, C, M = deep.shape
    deep = deep.permute(2, 3, 0, 1).reshape(C * M, 1, h, w)
    across = across.permute(3, 2, 0, 1)  # (1, 1, C * M, out) -> (out, C * M, 1, 1)
    first = nn.Conv2d(C, C * M, (h, w), layer.strides, groups=C, bias=False)
    second = nn.Conv2d(C * M, len(across), 1, bias=bool(bias))
    first = padded(layer, (h, w), loaded(first, deep))
    return nn.Sequential(first, loaded(second, across, *bias))


# %% tags=["twin-transposed"]
class Crop(nn.Module):
    """Take rows and columns away from a map; where negative, add zeros."""

    def __init__(self, rows: tuple[int, int], columns: tuple[int, int]):
        super().__init__()
        self.amounts = [-amount for amount in (*columns, *rows)]

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.amounts)


def cropped(kernel: int, stride: int, padding: str) -> tuple[int, int]:
    """What falls away before and behind, so that n inputs give n * stride outputs."""
    total = kernel - stride
    if padding == "valid":
        total = min(total, 0)  # outputs that no input reaches are zeros
    before = max(total, 0) // 2
    return before, total - before


@twin.register(layers.Conv2DTranspose)
def transposed(layer) -> nn.Module:
    plain(layer)
    kernel, *bias = tensors(layer)
    kernel = kernel.permute(3, 2, 0, 1)  # (h, w, out, in) -> (in, out, h, w)
    c_in, c_out, h, w = kernel.shape
    module = nn.ConvTranspose2d(c_in, c_out, (h, w), layer.strides, bias=False)
    sides = zip((h, w), layer.strides)
    crop = Crop(*[cropped(k, s, layer.padding) for k, s in sides])
    shift = bias[0] if bias else torch.zeros(c_out)
    shift = loaded(Shift(c_out), shift)  # behind the zeros that may have been added
    return nn.Sequential(loaded(module, kernel), crop, shift)


class Shift(nn.Module):
    """Add a number to each channel: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias[:, None, None]


# %% tags=["twin-norm"]
@twin.register(layers.BatchNormalization)
def batch_norm(layer) -> nn.Module:
    scale, shift, mean, variance = tensors(layer)
    how = {"eps": layer.epsilon, "momentum": 1 - layer.momentum}
    return loaded(nn.BatchNorm2d(len(scale), **how), scale, shift, mean, variance)


@twin.register(layers.LayerNormalization)
def layer_norm(layer) -> nn.Module:
    scale, shift = tensors(layer)
    return loaded(nn.LayerNorm(len(scale), eps=layer.epsilon), scale, shift)


# %% tags=["twin-pool"]
class SameAverage(nn.Module):
    """Average pooling with 'same': the padding is no part of an average."""

    def __init__(self, size, stride):
        super().__init__()
        self.pool = nn.Sequential(SamePad(size, stride), nn.AvgPool2d(size, stride))

    def forward(self, x: Tensor) -> Tensor:
        inside = torch.ones_like(x[:1, :1])
        return self.pool(x) / self.pool(inside)  # (B, C, H', W')


@twin.register(layers.MaxPooling2D)
def max_pool(layer) -> nn.Module:
    module = nn.MaxPool2d(layer.pool_size, layer.strides)
    return padded(layer, layer.pool_size, module, value=-torch.inf)


@twin.register(layers.AveragePooling2D)
def average_pool(layer) -> nn.Module:
    if layer.padding == "same":
        return SameAverage(layer.pool_size, layer.strides)
    return nn.AvgPool2d(layer.pool_size, layer.strides)


# %% tags=["twin-rest"]
class Mean(nn.Module):
    """The mean of each map: (B, C, H, W) -> (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class FlattenLast(nn.Module):
    """Flatten a map, channels fastest: (B, C, H, W) -> (B, H * W * C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


@twin.register(layers.GlobalAveragePooling2D)
def mean(layer) -> nn.Module:
    return Mean()


@twin.register(layers.Flatten)
def flatten(layer) -> nn.Module:
    return FlattenLast()


@twin.register(layers.ZeroPadding2D)
def zero_pad(layer) -> nn.Module:
    rows, columns = layer.padding
    return nn.ZeroPad2d((*columns, *rows))


@twin.register(layers.ReLU)
def relu(layer) -> nn.Module:
    return nn.ReLU() if layer.max_value is None else nn.Hardtanh(0.0, layer.max_value)


@twin.register(layers.Embedding)
def embedding(layer) -> nn.Module:
    (rows,) = tensors(layer)
    return loaded(nn.Embedding(*rows.shape), rows)


@twin.register(keras.Sequential)
def chain(model) -> nn.Sequential:
    return nn.Sequential(*[twin(layer) for layer in model.layers])


# %% tags=["twin-recurrent"]
class Outputs(nn.Module):
    """The outputs of a recurrent layer without its state, all of them or the last."""

    def __init__(self, layer: nn.Module, *, every: bool):
        super().__init__()
        self.layer = layer
        self.every = every

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.layer(x)  # (B, T, D)
        return y if self.every else y[:, -1]


def in_order(weight: Tensor, order: tuple[int, ...]) -> Tensor:
    """The gates on the last axis of a weight in another order, and that axis first."""
    gates = weight.chunk(len(order), dim=-1)
    return torch.cat([gates[i] for i in order], dim=-1).mT.contiguous()


@twin.register(layers.LSTM)
def lstm(layer) -> nn.Module:
    kernel, recurrent, bias = tensors(layer)  # gates i, f, c, o; in torch i, f, g, o
    module = nn.LSTM(*kernel.shape[:1], layer.units, batch_first=True)
    module = loaded(module, kernel.T, recurrent.T, bias, torch.zeros_like(bias))
    return Outputs(module, every=layer.return_sequences)


@twin.register(layers.GRU)
def gru(layer) -> nn.Module:
    if not layer.reset_after:
        raise ValueError(f"{layer.name!r}: torch has no GRU with reset_after=False")
    # z, r, h -> r, z, n
    turned = [in_order(weight, (1, 0, 2)) for weight in tensors(layer)]
    kernel, recurrent, biases = turned
    module = nn.GRU(kernel.shape[1], layer.units, batch_first=True)
    module = loaded(module, kernel, recurrent, *biases.T)
    return Outputs(module, every=layer.return_sequences)


# %% tags=["twin-attention"]
class SelfAttention(nn.MultiheadAttention):
    """Attention of a sequence (B, T, D) to itself, without its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x, x, need_weights=False)[0]


@twin.register(layers.MultiHeadAttention)
def attention(layer) -> nn.Module:
    values = tensors(layer)  # kernel and bias of q, k and v, then of the output
    D, h, d = values[0].shape
    if h * d != D:
        raise ValueError(
            f"{layer.name!r}: torch needs {D} = heads * key_dim, not {h * d}"
        )
    kernels = torch.cat([kernel.flatten(1) for kernel in values[0:6:2]], dim=1)
    biases = torch.cat([bias.flatten() for bias in values[1:6:2]])
    output = values[6].flatten(0, 1)  # (h, d, D) -> (h * d, D)
    module = SelfAttention(D, h, batch_first=True)
    return loaded(module, kernels.T, biases, output.T, values[7])


# %% [markdown]
# ## The same in NumPy
#
# What the documentation says, computed with nothing but arrays, channels last as in Keras.


# %% tags=["windows"]
def windows(x, size, strides, padding: str, fill: float = 0.0):
    """What each output of a map (B, H, W, C) sees: (B, H', W', C, h, w)."""
    for axis in (0, 1) if padding == "same" else ():
        over = x.shape[1 + axis] % strides[axis]
        total = max(size[axis] - (over or strides[axis]), 0)
        amounts = [(0, 0)] * 4
        amounts[1 + axis] = total // 2, total - total // 2
        x = np.pad(x, amounts, constant_values=fill)
    seen = np.lib.stride_tricks.sliding_window_view(x, size, axis=(1, 2))
    return seen[:, :: strides[0], :: strides[1]]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


@singledispatch
def by_hand(layer, x):
    """The output of a Keras layer for an array x, computed in NumPy."""
    raise TypeError(f"{type(layer).__name__} is not written out in NumPy")


# %% tags=["by-hand-maps"]
@by_hand.register(layers.Dense)
def dense_by_hand(layer, x):
    kernel, bias = layer.get_weights()
    return x @ kernel + bias


@by_hand.register(layers.Conv2D)
def conv_by_hand(layer, x):
    kernel, bias = layer.get_weights()
    seen = windows(x, layer.kernel_size, layer.strides, layer.padding)
    return np.einsum("bhwcij,ijco->bhwo", seen, kernel) + bias


@by_hand.register(layers.DepthwiseConv2D)
def depthwise_by_hand(layer, x):
    kernel, bias = layer.get_weights()
    seen = windows(x, layer.kernel_size, layer.strides, layer.padding)
    y = np.einsum("bhwcij,ijcm->bhwcm", seen, kernel)
    return y.reshape(*y.shape[:3], -1) + bias


@by_hand.register(layers.SeparableConv2D)
def separable_by_hand(layer, x):
    deep, across, bias = layer.get_weights()
    seen = windows(x, layer.kernel_size, layer.strides, layer.padding)
    y = np.einsum("bhwcij,ijcm->bhwcm", seen, deep)
    return y.reshape(*y.shape[:3], -1) @ across[0, 0] + bias


@by_hand.register(layers.Conv2DTranspose)
def transposed_by_hand(layer, x):
    """Each input adds its multiple of the kernel; 'same' keeps the middle."""
    kernel, bias = layer.get_weights()
    B, H, W, _ = x.shape
    h, w, c_out, _ = kernel.shape
    down, right = layer.strides
    y = np.zeros((B, H * down + h, W * right + w, c_out))
    for i, j in np.ndindex(H, W):
        part = np.einsum("bc,hwoc->bhwo", x[:, i, j], kernel)
        y[:, i * down : i * down + h, j * right : j * right + w] += part
    if layer.padding == "same":
        y = y[:, max(h - down, 0) // 2 :, max(w - right, 0) // 2 :]
        return y[:, : H * down, : W * right] + bias
    return y[:, : H * down + max(h - down, 0), : W * right + max(w - right, 0)] + bias


@by_hand.register(layers.MaxPooling2D)
def max_pool_by_hand(layer, x):
    seen = windows(x, layer.pool_size, layer.strides, layer.padding, fill=np.nan)
    return np.nanmax(seen, axis=(-2, -1))


@by_hand.register(layers.AveragePooling2D)
def average_pool_by_hand(layer, x):
    seen = windows(x, layer.pool_size, layer.strides, layer.padding, fill=np.nan)
    return np.nanmean(seen, axis=(-2, -1))


@by_hand.register(layers.GlobalAveragePooling2D)
def mean_by_hand(layer, x):
    return x.mean((1, 2))


@by_hand.register(layers.Flatten)
def flatten_by_hand(layer, x):
    return x.reshape(len(x), -1)


@by_hand.register(layers.ZeroPadding2D)
def zero_pad_by_hand(layer, x):
    return np.pad(x, [(0, 0), *layer.padding, (0, 0)])


@by_hand.register(layers.ReLU)
def relu_by_hand(layer, x):
    return np.clip(x, 0, layer.max_value)


# %% tags=["by-hand-rest"]
@by_hand.register(layers.BatchNormalization)
def batch_norm_by_hand(layer, x):
    scale, shift, mean, variance = layer.get_weights()
    return scale * (x - mean) / np.sqrt(variance + layer.epsilon) + shift


@by_hand.register(layers.LayerNormalization)
def layer_norm_by_hand(layer, x):
    scale, shift = layer.get_weights()
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return scale * centred / np.sqrt(variance + layer.epsilon) + shift


@by_hand.register(layers.Embedding)
def embedding_by_hand(layer, x):
    (rows,) = layer.get_weights()
    return rows[x]


@by_hand.register(layers.LSTM)
def lstm_by_hand(layer, x):
    kernel, recurrent, bias = layer.get_weights()
    h = c = np.zeros((len(x), layer.units))
    outputs = []
    for t in range(x.shape[1]):
        gates = x[:, t] @ kernel + h @ recurrent + bias
        i, f, g, o = np.split(gates, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, axis=1)


@by_hand.register(layers.GRU)
def gru_by_hand(layer, x):
    kernel, recurrent, (bias, inner) = layer.get_weights()
    h = np.zeros((len(x), layer.units))
    outputs = []
    for t in range(x.shape[1]):
        from_input = np.split(x[:, t] @ kernel + bias, 3, axis=1)
        from_state = np.split(h @ recurrent + inner, 3, axis=1)
        z = sigmoid(from_input[0] + from_state[0])
        r = sigmoid(from_input[1] + from_state[1])
        h = z * h + (1 - z) * np.tanh(from_input[2] + r * from_state[2])
        outputs.append(h)
    return np.stack(outputs, axis=1)


@by_hand.register(layers.MultiHeadAttention)
def attention_by_hand(layer, x):
    wq, bq, wk, bk, wv, bv, wo, bo = layer.get_weights()
    q = np.einsum("btD,Dhd->bhtd", x, wq) + bq[:, None]
    k = np.einsum("bsD,Dhd->bhsd", x, wk) + bk[:, None]
    v = np.einsum("bsD,Dhd->bhsd", x, wv) + bv[:, None]
    weights = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]))
    return np.einsum("bhtd,hdD->btD", weights @ v, wo) + bo


# %% [markdown]
# ## Every layer, three times


# %% tags=["three"]
def first(x: Tensor) -> Tensor:
    """A map with its channels second, as PyTorch has it; anything else as it is."""
    return x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x


def last(x: Tensor) -> Tensor:
    """A map with its channels last, as Keras has it; anything else as it is."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def called(layer, x) -> Tensor:
    """The output of a Keras layer for an array; attention looks at its own input."""
    arguments = (x, x) if isinstance(layer, layers.MultiHeadAttention) else (x,)
    return layer(*arguments).detach()


def randomise(layer, number: int) -> None:
    """Weights that hide nothing: no zeros, no ones, all different, all above 0."""
    draw = np.random.default_rng(number)
    layer.set_weights([draw.uniform(0.1, 0.9, w.shape) for w in layer.get_weights()])


@torch.no_grad()
def three(make, shape: tuple[int, ...], number: int) -> tuple[float, float]:
    """Largest differences from NumPy of the twin and of Keras, relative.

    make: builds the layer. shape: of its input; number: the seed of both.
    """
    draw = np.random.default_rng(100 + number)
    layer = make()
    x = draw.normal(size=shape).astype("float32")
    if isinstance(layer, layers.Embedding):
        x = draw.integers(layer.input_dim, size=shape)
    called(layer, x)  # makes the weights
    randomise(layer, number)
    expected = torch.from_numpy(by_hand(layer, x)).float()
    found = last(twin(layer).eval()(first(torch.from_numpy(x))))
    differences = checks.deviation(found, expected)
    return differences, checks.deviation(called(layer, x), expected)


# %%
MAP = (2, 8, 6, 4)
SEQUENCE = (2, 5, 8)
SAME = {"strides": 2, "padding": "same"}
CASES = {
    "Dense": (lambda: layers.Dense(5), (2, 8)),
    "Conv2D": (lambda: layers.Conv2D(6, 3, **SAME), MAP),
    "DepthwiseConv2D": (
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, **SAME),
        MAP,
    ),
    "SeparableConv2D": (lambda: layers.SeparableConv2D(6, 3, **SAME), MAP),
    "Conv2DTranspose": (lambda: layers.Conv2DTranspose(6, 3, **SAME), MAP),
    "BatchNormalization": (lambda: layers.BatchNormalization(), MAP),
    "LayerNormalization": (lambda: layers.LayerNormalization(), SEQUENCE),
    "MaxPooling2D": (lambda: layers.MaxPooling2D(3, **SAME), MAP),
    "AveragePooling2D": (lambda: layers.AveragePooling2D(3, **SAME), MAP),
    "GlobalAveragePooling2D": (lambda: layers.GlobalAveragePooling2D(), MAP),
    "ZeroPadding2D": (lambda: layers.ZeroPadding2D(((0, 1), (2, 3))), MAP),
    "ReLU": (lambda: layers.ReLU(0.6), MAP),
    "Flatten": (lambda: layers.Flatten(), MAP),
    "Embedding": (lambda: layers.Embedding(7, 4), (2, 5)),
    "LSTM": (lambda: layers.LSTM(6, return_sequences=True), SEQUENCE),
    "GRU": (lambda: layers.GRU(6, return_sequences=True), SEQUENCE),
    "MultiHeadAttention": (lambda: layers.MultiHeadAttention(2, 4), SEQUENCE),
}

# %%
found = {
    name: [three(make, shape, number) for number in (0, 1, 2)]
    for name, (make, shape) in CASES.items()
}
rows = []
for name, pairs in found.items():
    ours, theirs = (max(side) for side in zip(*pairs))
    rows.append((name, *(f"{most:.0e}" if most else "0" for most in (ours, theirs))))
largest = {name: max(pair[0] for pair in pairs) for name, pairs in found.items()}
keras_largest = {name: max(pair[1] for pair in pairs) for name, pairs in found.items()}

# %% tags=["three-table"]
table(rows, ("layer", "twin, NumPy", "Keras, NumPy"))

# %%
others = [value for name, value in keras_largest.items() if name != "AveragePooling2D"]
claim(max(largest.values()) < 1e-5, "each twin is equal to NumPy, for three seeds")
claim(max(others) < 1e-5, "so is Keras, if one layer is left aside")
record("layers", len(CASES))
record("twins.largest", max(largest.values()))
record("keras.version", keras.__version__)

# %% [markdown]
# The layer that depends on the version of Keras: two numbers, windows of three, stride 2.

# %% tags=["average"]
two = np.array([10.0, 20.0], dtype="float32").reshape(1, 1, 2, 1)
pool = layers.AveragePooling2D((1, 3), strides=(1, 2), padding="same")
table(
    [
        ("NumPy", f"{by_hand(pool, two).item():.2f}"),
        ("twin", f"{twin(pool)(first(torch.from_numpy(two))).item():.2f}"),
        ("Keras, PyTorch below", f"{pool(two).item():.2f}"),
    ],
    ("computed by", "average of 10 and 20"),
)

# %%
claim(by_hand(pool, two).item() == 15, "the padding is no part of the average")
ignored = abs(pool(two).item() - 15) < 1e-4
repeated = abs(pool(two).item() - 50 / 3) < 1e-4
claim(ignored or repeated, "Keras ignores the padding, or repeats the 20 in its place")
claim(ignored == (keras_largest["AveragePooling2D"] < 1e-5), "the table says the same")
record("average.keras", pool(two).item())

# %% [markdown]
# ## What the defaults are


# %% tags=["defaults"]
def forget_bias(weights: list[Tensor], units: int) -> str:
    """The least and the largest bias of the forget gate, the second of four."""
    bias = sum(weights)[units : 2 * units]
    return f"{bias.min():.2f} to {bias.max():.2f}"


# %%
seed(0)
lstm_layer = layers.LSTM(50)
called(lstm_layer, np.zeros((1, 1, 4), dtype="float32"))
recurrent = nn.LSTM(4, 50)
both = [forget_bias(tensors(lstm_layer)[2:], 50)]
both.append(
    forget_bias([recurrent.bias_ih_l0.detach(), recurrent.bias_hh_l0.detach()], 50)
)
norm = layers.BatchNormalization()
default_rows = [
    ("BatchNormalization, epsilon", norm.epsilon, nn.BatchNorm2d(1).eps),
    ("the old average's share", norm.momentum, 1 - nn.BatchNorm2d(1).momentum),
    (
        "LayerNormalization, epsilon",
        layers.LayerNormalization().epsilon,
        nn.LayerNorm(1).eps,
    ),
    ("LSTM, bias of the forget gate", *both),
]

# %% tags=["defaults-table"]
table(default_rows, ("default", "Keras", "PyTorch"))

# %%
claim(norm.epsilon == layers.LayerNormalization().epsilon == 0.001, "Keras adds 0.001")
claim(nn.BatchNorm2d(1).eps == nn.LayerNorm(1).eps == 1e-5, "PyTorch a hundredth of it")
claim(not both[1].startswith("1"), "PyTorch starts the gate elsewhere")
claim(both[0] == "1.00 to 1.00", "Keras starts the forget gate at 1")
claim(norm.momentum > 1 - nn.BatchNorm2d(1).momentum, "Keras keeps more of the old")

# %% [markdown]
# One step of training moves the averages. Keras takes the variance of the batch as it is,
# PyTorch that of n numbers divided by n - 1.

# %%
draw = np.random.default_rng(0)
x = draw.normal(2, 3, size=(2, 2, 2, 3)).astype("float32")
norm(x)
copied = twin(norm).train()
in_training = norm(x, training=True), last(copied(first(torch.from_numpy(x))))
claim(checks.deviation(*in_training) < 1e-5, "the outputs in training are equal")
n = x[..., 0].size
kept = norm.momentum
moved = (tensors(norm)[3] - kept) / (1 - kept)
torch_moved = (copied.running_var - kept) / (1 - kept)
claim(torch.allclose(tensors(norm)[2], copied.running_mean), "the means are equal")
claim(torch.allclose(moved, torch.tensor(x.var((0, 1, 2))), rtol=1e-3), "Keras: by n")
claim(torch.allclose(torch_moved, moved * n / (n - 1), rtol=1e-3), "PyTorch: by n - 1")

# %% [markdown]
# ## 'Same' with stride 2
#
# By hand: six numbers, a kernel of three ones.

# %% tags=["by-hand"]
x = torch.arange(1.0, 7.0)
ones = torch.ones(3)
ours = F.conv1d(F.pad(x, same_padding(6, 3, 2))[None, None], ones[None, None], stride=2)
symmetric = F.conv1d(x[None, None], ones[None, None], stride=2, padding=1)
table(
    [("same", *ours.flatten().tolist()), ("padding=1", *symmetric.flatten().tolist())],
    ("padding", "first", "second", "third"),
)

# %%
claim(
    ours.flatten().tolist() == [1 + 2 + 3, 3 + 4 + 5, 5 + 6], "the zero stands behind"
)
claim(symmetric.flatten().tolist() == [1 + 2, 2 + 3 + 4, 4 + 5 + 6], "or in front")
claim(ours.shape == symmetric.shape, "both have three outputs")
claim(not (ours == symmetric).any().item(), "and none is equal")
try:
    nn.Conv2d(1, 1, 3, stride=2, padding="same")
    refused = ""
except ValueError as error:
    refused = str(error)
claim("strided" in refused, "PyTorch has no 'same' with a stride")

# %% alt="Two rows of seven squares. Above, same: inputs 1 to 6 and a zero behind them. Below, padding=1: a zero and then inputs 1 to 6. Under each row three lines show what an output sees. With same they start at inputs 1, 3 and 5, and the last takes the zero behind; with padding=1 they start one place earlier, and the first takes the zero in front." tags=["windows-figure"]
_, axes = plt.subplots(2, 1, figsize=(5, 3.3))
for axis, name, start in zip(axes, ("same", "padding=1"), (1, 0)):
    for i in range(8):
        used = start <= i < start + 7
        style = {"ec": plots.QUIET, "fc": "none", "ls": "-" if 0 < i < 7 else ":"}
        if used:
            axis.add_patch(plt.Rectangle((i, 0), 1, 1, **style))
            word = str(i) if 0 < i < 7 else "0"
            axis.text(i + 0.5, 0.5, word, ha="center", va="center", color=plots.INK)
    for output in range(3):
        left = start + 2 * output
        y = -0.35 - 0.3 * (output % 2)
        axis.plot([left + 0.1, left + 2.9], [y, y], color=plots.COLOURS[output])
    axis.text(-2.3, 0.35, name)
    axis.set(xlim=(-2.4, 8.1), ylim=(-1, 1.1))
    axis.axis("off")


# %% [markdown]
# Where do both agree? Kernels of 1 to 7, strides of 1 to 3, sizes of 6 to 12, Keras against
# PyTorch with `padding=kernel // 2`.


# %% tags=["agreement"]
def predicted(n: int, kernel: int, stride: int) -> bool:
    """Whether kernel // 2 zeros on both sides give what 'same' does, by the formula."""
    same_shape = (n + 2 * (kernel // 2) - kernel) // stride == (n - 1) // stride
    return same_shape and same_padding(n, kernel, stride)[0] == kernel // 2


@torch.no_grad()
def agree(n: int, kernel: int, stride: int) -> bool:
    """Whether a Keras convolution with 'same' and PyTorch's with kernel // 2 agree."""
    x = torch.randn(1, 1, n, n)
    layer = layers.Conv2D(1, kernel, strides=stride, padding="same")
    expected = layer(last(x))
    weight = tensors(layer)[0].permute(3, 2, 0, 1)
    found = last(F.conv2d(x, weight, stride=stride, padding=kernel // 2))
    return found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)


# %%
seed(0)
SIZES = range(6, 13)
grid = [(n, k, s) for k in range(1, 8) for s in (1, 2, 3) for n in SIZES]
agreeing = {case: agree(*case) for case in grid}
rule = {(n, k, s): k % 2 == 1 and (k == 1 or (n - 1) % s == 0) for n, k, s in grid}
claim(agreeing == {case: predicted(*case) for case in grid}, "as the formula says")
claim(agreeing == rule, "odd kernels, where the stride divides n - 1, and kernels of 1")
record("agreement.cases", len(grid))
record("agreement.equal", sum(agreeing.values()))

# %% alt="A grid of squares: kernels of 1 to 7 across, and down, for each stride, the size n. Filled are the columns of the odd kernels at stride 1, at stride 2 the sizes 7, 9 and 11 and at stride 3 the sizes 7 and 10; the column of kernel 1 is filled throughout, those of the even kernels are empty." tags=["agreement-figure"]
_, axes = plt.subplots(1, 3, figsize=(5, 3), sharey=True)
for axis, s in zip(axes, (1, 2, 3)):
    for (n, k, stride), equal in agreeing.items():
        if stride == s:
            face = plots.COLOURS[0] if equal else "none"
            style = {"fc": face, "ec": plots.QUIET, "lw": 0.5}
            axis.add_patch(plt.Rectangle((k - 0.4, n - 0.4), 0.8, 0.8, **style))
    axis.set(xlim=(0.4, 7.6), ylim=(12.6, 5.4), xlabel="kernel", xticks=[1, 3, 5, 7])
    axis.set_title(f"stride {s}")
axes[0].set(ylabel="size n", yticks=list(SIZES))
axes[0].set_axisbelow(True)

# %% [markdown]
# ## A trained network, carried over
#
# Three convolutions with stride 2, trained by Keras on 3,500 digits.


# %% tags=["digits"]
def digits_network() -> keras.Sequential:
    """Three strided convolutions, (B, 28, 28, 1) -> (B, 10) scores."""
    parts = [keras.Input((28, 28, 1))]
    for channels in (8, 16, 32):
        parts.append(
            layers.Conv2D(channels, 3, strides=2, padding="same", use_bias=False)
        )
        parts.append(layers.BatchNormalization())
        parts.append(layers.ReLU())
    return keras.Sequential([*parts, layers.Flatten(), layers.Dense(10)])


# %% tags=["norms-of"]
def norms_of(source: keras.Model) -> list:
    """The batch norms of a Keras model, in their order."""
    return [
        part for part in source.layers if isinstance(part, layers.BatchNormalization)
    ]


# %% tags=["trained"]
def trained(train: tuple[Tensor, Tensor], number: int) -> keras.Sequential:
    """A network of digits after four epochs with Keras's own loop."""
    keras.utils.set_random_seed(number)
    network = digits_network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(0.003), loss)
    x = last(train[0]).contiguous().numpy()
    y = train[1].numpy()
    network.fit(x, y, batch_size=100, epochs=4, verbose=0)
    return network


# %% [markdown]
# Five ways to carry it over: one is right. Each mistake starts from the right twin.


# %% tags=["mistakes"]
def symmetric_padding(network: nn.Sequential) -> None:
    """Kernel // 2 zeros on both sides, as PyTorch code has it, in place of 'same'."""
    for part in network:
        if isinstance(part, nn.Sequential):
            part[0] = nn.ZeroPad2d(part[1].kernel_size[0] // 2)


def torch_epsilon(network: nn.Sequential) -> None:
    """The epsilon that nn.BatchNorm2d has by default."""
    for part in network:
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 1e-5


def turned_kernels(network: nn.Sequential) -> None:
    """Height and width of each kernel exchanged, as kernel.T has them."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data = part.weight.data.mT.contiguous()


def torch_flatten(network: nn.Sequential) -> None:
    """The order of nn.Flatten, columns fastest, where Keras has channels fastest."""
    for i, part in enumerate(network):
        if isinstance(part, FlattenLast):
            network[i] = nn.Flatten()


MISTAKES = {
    "none": lambda network: None,
    "epsilon 1e-5": torch_epsilon,
    "kernels turned": turned_kernels,
    "padding=1": symmetric_padding,
    "nn.Flatten": torch_flatten,
}


@torch.no_grad()
def carried(network: keras.Sequential, part, mistake) -> tuple[float, int, float]:
    """Accuracy of the twin with a mistake, answers that changed, largest difference."""
    x, y = part
    expected = torch.from_numpy(network.predict(last(x).numpy(), verbose=0))
    copied = copy.deepcopy(twin(network)).eval()
    mistake(copied)
    found = copied(x)
    right = (found.argmax(1) == y).double().mean().item()
    changed = (found.argmax(1) != expected.argmax(1)).sum().item()
    return right, changed, checks.deviation(found, expected)


# %%
train, _, test = images.standardised(images.digits(), first=3500)
trained_networks = [trained(train, number) for number in (0, 1, 2)]
results = {
    name: [carried(network, test, mistake) for network in trained_networks]
    for name, mistake in MISTAKES.items()
}
own = [
    (
        network.predict(last(test[0]).numpy(), verbose=0).argmax(1) == test[1].numpy()
    ).mean()
    for network in trained_networks
]

# %% tags=["carried-table"]
table(
    [
        (
            name,
            spread([100 * run[0] for run in runs], ".1f"),
            f"{min(run[1] for run in runs)} to {max(run[1] for run in runs)}",
            f"{max(run[2] for run in runs):.0e}",
        )
        for name, runs in results.items()
    ],
    ("mistake", "accuracy, %", "answers changed", "difference"),
)

# %%
accuracy = {name: [run[0] for run in runs] for name, runs in results.items()}
changed = {name: [run[1] for run in runs] for name, runs in results.items()}
differ = {name: [run[2] for run in runs] for name, runs in results.items()}
claim(np.allclose(accuracy["none"], own), "the right twin has Keras's accuracy")
claim(max(changed["none"]) == 0, "and each of its answers")
claim(max(differ["none"]) < 1e-5, "its outputs are equal")
claim(
    max(changed["epsilon 1e-5"]) <= 5, "another epsilon changes hardly an answer here"
)
claim(min(differ["epsilon 1e-5"]) > 100 * max(differ["none"]), "its outputs do differ")
for name in ("kernels turned", "padding=1", "nn.Flatten"):
    claim(
        max(accuracy[name]) < 0.5 < min(accuracy["none"]), f"{name} breaks the network"
    )
for name, key in zip(MISTAKES, ("right", "epsilon", "turned", "symmetric", "flatten")):
    record_spread(f"digits.{key}", accuracy[name])
claim(max(accuracy["padding=1"]) < 0.2, "about what guessing gives")

# %% [markdown]
# Why another epsilon does no harm here: by how much too large are outputs, by the variance?

# %%
trained_norms = [norm for network in trained_networks for norm in norms_of(network)]
smallest = min(tensors(norm)[3].min().item() for norm in trained_norms)
record("digits.variance", smallest)
claim(smallest > 0.05, "the variances of the trained networks are large")


# %% tags=["gain"]
@torch.no_grad()
def gain(variance: float) -> float:
    """By how much an output grows if the epsilon is 1e-5 in place of Keras's."""
    norm = layers.BatchNormalization(center=False, scale=False)
    x = np.ones((1, 1, 1, 1), dtype="float32")
    norm(x)
    norm.set_weights([np.zeros(1), np.full(1, variance)])
    one = torch.ones(1)
    zero = torch.zeros(1)
    ours = F.batch_norm(
        torch.ones(1, 1, 1, 1), zero, variance * one, one, zero, eps=1e-5
    )
    return (ours / norm(x)).item()


# %% tags=["gain-table"]
table(
    [(f"{v:g}", f"{gain(v):.3f}") for v in (1.0, 0.1, 0.01, 0.001, 0.0001)],
    ("variance", "output with 1e-5 / output with 1e-3"),
)

# %%
claim(gain(1.0) < 1.001 and gain(0.0001) > 3, "small variances are what suffers")
claim(abs(gain(0.001) - ((0.001 + 1e-3) / (0.001 + 1e-5)) ** 0.5) < 1e-4, "as computed")

# %% [markdown]
# ## A published network
#
# MobileNetV2 of keras.applications, and torchvision's, which gets the padding and the epsilon
# of the other one.


# %% tags=["mend"]
def mend(
    network: nn.Module, *, padding: bool = True, epsilon: float = 1e-3
) -> nn.Module:
    """Give a network of torchvision TensorFlow's padding and epsilon; return it."""
    for part in list(network.modules()):
        if isinstance(part, nn.BatchNorm2d):
            part.eps = epsilon
        for name, conv in part.named_children():
            if padding and isinstance(conv, nn.Conv2d) and conv.stride == (2, 2):
                conv.padding = (0, 0)
                pad = SamePad(conv.kernel_size, conv.stride)
                setattr(part, name, nn.Sequential(pad, conv))
    return network


def carry(source: keras.Model, target: nn.Module) -> None:
    """The weights of each Keras layer into the layer of the same rank in torch."""
    theirs = [layer for layer in source.layers if layer.weights]
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    ours = [part for part in target.modules() if isinstance(part, kinds)]
    if len(theirs) != len(ours):
        raise ValueError(
            f"{len(theirs)} layers have weights, in the target {len(ours)}"
        )
    for layer, part in zip(theirs, ours):
        checks.transplant(twin(layer), part)


# %% tags=["measured"]
@torch.no_grad()
def measured(source: keras.Model, x: Tensor) -> None:
    """Set the moving averages of each norm to what it sees in these images."""
    norms = norms_of(source)
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    source(last(x), training=True)
    for norm, momentum in zip(norms, kept):
        norm.momentum = momentum


@torch.no_grad()
def along(source: keras.Model, target: nn.Module, x: Tensor) -> list[float]:
    """Largest difference behind each norm and of the outputs, from the first on."""
    points = [*[norm.output for norm in norms_of(source)], source.output]
    expected = keras.Model(source.input, points)(last(x), training=False)
    found = []
    kinds = (nn.BatchNorm2d, nn.Linear)
    watched = [part for part in target.modules() if isinstance(part, kinds)]
    handles = [
        part.register_forward_hook(lambda part, x, y: found.append(y.clone()))
        for part in watched  # a copy: the ReLU behind a norm works in place
    ]
    target.eval()(x)
    for handle in handles:
        handle.remove()
    return [checks.deviation(last(a), b) for a, b in zip(found, expected, strict=True)]


# %%
keras.utils.set_random_seed(0)
mobilenet = keras.applications.MobileNetV2(weights=None, classifier_activation=None)
pictures = [images.photographs()[name] for name in ("astronaut", "chelsea", "coffee")]
x = torch.stack([picture[:, :224, :224] for picture in pictures]).float() / 127.5 - 1
measured(mobilenet, x)
depth = {}
for name, how in {
    "both mended": {},
    "padding": {"padding": False},
    "epsilon": {"epsilon": 1e-5},
}.items():
    target = mend(models.mobilenet_v2(), **how)
    carry(mobilenet, target)
    depth[name] = along(mobilenet, target, x[:1])

# %%
trainable = counting.parameters(target)
counts = {
    "all": mobilenet.count_params(),
    "moving averages": sum(
        int(np.prod(w.shape)) for w in mobilenet.non_trainable_weights
    ),
    "trainable": trainable,
}

# %%
claim(counts["all"] == 3_538_984, "the count of keras.applications")
claim(
    counts["all"] - counts["moving averages"] == trainable,
    "torchvision's, and averages",
)
claim(max(depth["both mended"]) < 1e-3, "equal everywhere with both mended")
claim(min(depth["padding"]) > 0.1, "different from the first norm on")
claim(
    depth["epsilon"][-1] > 1000 * depth["both mended"][-1],
    "different with torch's epsilon",
)
claim(depth["epsilon"][-1] > 3 * depth["epsilon"][0], "and more so towards the end")
claim(depth["epsilon"][0] < 1 < depth["epsilon"][-1], "from below one to above it")
claim(max(depth["padding"]) < 3, "the padding's line stays near one")

# %%
right = mend(models.mobilenet_v2())
carry(mobilenet, right)
right.eval()
with torch.no_grad():
    single = right(x[:1])
    rounding = checks.deviation(single, right.double()(x[:1].double()))
claim(depth["both mended"][-1] < 10 * rounding, "no more than rounding explains")
record("mobilenet.rounding", rounding)
record("mobilenet.outputs", depth["both mended"][-1])

# %%
record("mobilenet.parameters", counts["all"])
record("mobilenet.trainable", trainable)
record("mobilenet.averages", counts["moving averages"])
record("mobilenet.norms", len(depth["padding"]) - 1)
record("mobilenet.mended", max(depth["both mended"]))
record("mobilenet.epsilon", depth["epsilon"][-1])
variances = [tensors(part)[3] for part in norms_of(mobilenet)]
record("mobilenet.variance", min(variance.min().item() for variance in variances))
claim(min(v.min().item() for v in variances) < 2e-4, "far below the epsilon")

# %% alt="Largest difference behind each of the norms and of the outputs, on a logarithmic axis. With both mended it stays below one thousandth. With the padding left it is near one from the first norm on; with the epsilon left it rises from below one to above one." tags=["depth-figure"]
_, axes = plt.subplots(figsize=(5, 3.2))
for values in depth.values():
    axes.semilogy(range(1, len(values) + 1), [max(v, 1e-8) for v in values])
axes.set(xlabel="norm, from the first to the last", ylabel="largest difference")
names = ("both mended", "padding left", "epsilon left")
ends = {word: (len(v), v[-1]) for word, v in zip(names, depth.values())}
axes.set_xlim(0, 78)
plots.label_ends(axes, ends)
axes.set_axisbelow(True)

# %% [markdown]
# ## What a file holds
#
# A .keras file is a zip archive of three files; the weights are HDF5.


# %% tags=["read-keras"]
def read_keras(file: Path) -> tuple[dict, dict[str, list]]:
    """What a .keras file says of a chain of layers; its weights, by their layers."""
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{file.name} is no .keras file: that is a zip archive")
    with zipfile.ZipFile(file) as archive:
        missing = {"config.json", "model.weights.h5"} - set(archive.namelist())
        if missing:
            raise ValueError(f"{file.name} has no {min(missing)}: save the model again")
        config = json.loads(archive.read("config.json"))
        content = io.BytesIO(archive.read("model.weights.h5"))
    weights = {}
    with h5py.File(content, "r") as opened:
        for group in opened["layers"].values():
            values = group["vars"]
            arrays = [values[str(i)][()] for i in range(len(values))]
            weights[values.attrs["name"]] = arrays
    return config, weights


# %% tags=["saved"]
keras.utils.set_random_seed(0)
small = keras.Sequential(
    [
        keras.Input((6, 6, 2)),
        layers.Conv2D(3, 3, name="stem"),
        layers.BatchNormalization(name="norm"),
        layers.Conv2D(4, 3, name="second"),
    ]
)
small.save(folder / "small.keras")

# %%
with zipfile.ZipFile(folder / "small.keras") as archive:
    names = archive.namelist()
    weights_file = io.BytesIO(archive.read("model.weights.h5"))
places = []
with h5py.File(weights_file, "r") as opened:
    for name, group in opened["layers"].items():
        for number, values in group["vars"].items():
            owner = group["vars"].attrs["name"]
            places.append((f"{name}/vars/{number}", owner, str(values.shape)))

# %% tags=["file-table"]
table(places, ("place", "layer", "shape"))

# %%
config, read = read_keras(folder / "small.keras")
pairs = [(layer.get_weights(), read[layer.name]) for layer in small.layers]
claim(
    all(np.array_equal(a, b) for ours, theirs in pairs for a, b in zip(ours, theirs)),
    "what h5py reads is what Keras holds",
)
claim(
    sorted(names) == ["config.json", "metadata.json", "model.weights.h5"], "three files"
)
claim(("conv2d_1/vars/0", "second", "(3, 3, 3, 4)") in places, "by kind and number")

# %% [markdown]
# A file may hold code: this one leaves a mark where it is run.


# %% tags=["trap"]
def trap(mark: str) -> keras.Sequential:
    """A model whose Lambda layer makes a file each time that it is called."""
    lay = layers.Lambda(lambda x: [open(mark, "w").close(), x][1])
    return keras.Sequential([keras.Input((2,)), lay])


def outcome(load, mark: Path) -> tuple[str, bool]:
    """What a call ends in, and whether the code in the file has run."""
    mark.unlink(missing_ok=True)
    try:
        load()
    except ValueError as error:
        return str(error).split(".")[0], mark.exists()
    return "loads", mark.exists()


# %%
logging.getLogger("absl").setLevel(logging.ERROR)  # it warns that HDF5 is the old form
mark = folder / "mark"
trapped = trap(str(mark))
for name in ("trap.keras", "trap.h5"):
    trapped.save(folder / name)
load = keras.saving.load_model
loads = {
    "load_model, .keras": lambda: load(folder / "trap.keras"),
    "load_model, .h5": lambda: load(folder / "trap.h5"),
    ".keras, safe_mode=False": lambda: load(folder / "trap.keras", safe_mode=False),
    "zipfile and h5py": lambda: read_keras(folder / "trap.keras"),
}
ended = {name: outcome(call, mark) for name, call in loads.items()}

# %% tags=["trap-table"]
table(
    [
        (name, "loads" if said == "loads" else "ValueError", ran)
        for name, (said, ran) in ended.items()
    ],
    ("read by", "ends in", "code has run"),
)

# %%
ran = [ran for _, ran in ended.values()]
claim(ran == [False, False, True, False], "the code runs only where the guard is off")
claim("Lambda" in ended["load_model, .keras"][0], "the guard names the layer")
function = read_keras(folder / "trap.keras")[0]["config"]["layers"][1]["config"]
claim("code" in function["function"]["config"], "the file has the code of the function")

# %% [markdown]
# ## What the input looks like


# %% tags=["preprocess"]
MEANS = {"caffe": (103.939, 116.779, 123.68), "torch": (0.485, 0.456, 0.406)}
DEVIATIONS = (0.229, 0.224, 0.225)


def preprocessed(x, mode: str):
    """Colours (..., 3) of 0 to 255, red first, as a network of Keras wants them."""
    if mode == "tf":
        return x / 127.5 - 1
    if mode == "torch":
        return (x / 255 - np.array(MEANS["torch"])) / np.array(DEVIATIONS)
    if mode == "caffe":
        return x[..., ::-1] - np.array(MEANS["caffe"])  # blue first
    return x


def mode_of(network: str) -> str:
    """Which of the modes a network's own preprocess_input has."""
    x = np.arange(24.0).reshape(2, 2, 2, 3) * 10
    found = getattr(keras.applications, network).preprocess_input(x.copy())
    modes = ("tf", "torch", "caffe", "none")
    (mode,) = [m for m in modes if np.allclose(found, preprocessed(x, m), atol=1e-4)]
    return mode


# %%
NETWORKS = ("mobilenet_v2", "resnet_v2", "densenet", "resnet", "vgg16", "efficientnet")
red = np.array([255.0, 0.0, 0.0])
modes = {network: mode_of(network) for network in NETWORKS}

# %% tags=["preprocess-table"]
table(
    [
        (network, mode, ", ".join(f"{v:.1f}" for v in preprocessed(red, mode)))
        for network, mode in modes.items()
    ],
    ("network", "mode", "red (255, 0, 0) becomes"),
)

# %%
claim(modes["resnet"] == "caffe" != modes["resnet_v2"], "two ResNets, two modes")
claim(modes["efficientnet"] == "none", "EfficientNet takes colours as they are")

# %% [markdown]
# ## Exercises

# %% tags=["solution-sizes"]
right = twin(trained_networks[0]).eval()
wrong = copy.deepcopy(right)
symmetric_padding(wrong)
fits = []
for n in range(20, 42):
    x = torch.randn(1, 1, n, n)
    with torch.no_grad():
        if torch.allclose(right[:9](x), wrong[:9](x), atol=1e-4):
            fits.append(n)
fits

# %%
claim(fits == [n for n in range(20, 42) if n % 8 == 1], "one more than a multiple of 8")


# %% tags=["solution-rows"]
def rows_for_torch(kernel: Tensor, channels: int) -> Tensor:
    """The rows of a Dense kernel for a map that is flattened columns fastest."""
    by_place = kernel.unflatten(0, (-1, channels))  # (H * W, C, K)
    return by_place.transpose(0, 1).flatten(0, 1)  # (C * H * W, K)


reordered = twin(trained_networks[0]).eval()
kernel = reordered[-1].weight.detach().T
reordered[-1].weight.data = rows_for_torch(kernel, 32).T.contiguous()
torch_flatten(reordered)
checks.same_outputs(reordered, right, test[0][:100])

# %% tags=["solution-tuned"]
seed(0)
tuned = twin(trained_networks[0])
symmetric_padding(tuned)
before = training.evaluate(tuned, test)
optimizer = torch.optim.Adam(tuned.parameters(), 0.003)
training.fit(tuned, train, 2, optimizer, batch=100)
table(
    [
        ("Keras", f"{100 * own[0]:.1f}"),
        ("padding=1", f"{100 * before:.1f}"),
        ("padding=1, two epochs later", f"{100 * training.evaluate(tuned, test):.1f}"),
    ],
    ("network", "accuracy, %"),
)

# %%
claim(training.evaluate(tuned, test) > 0.85, "training hides the mistake")


# %% tags=["solution-file"]
def without_keras(file: Path) -> nn.Sequential:
    """A chain of convolutions, norms and Dense layers, from its .keras file alone."""
    config, weights = read_keras(file)
    parts = []
    for entry in config["config"]["layers"][1:]:  # behind the input
        kind = entry["class_name"]
        how = entry["config"]
        values = [torch.from_numpy(value) for value in weights[how["name"]]]
        if kind == "Conv2D":
            kernel = values[0].permute(3, 2, 0, 1)
            conv = nn.Conv2d(
                *kernel.shape[1::-1], kernel.shape[2:], how["strides"], bias=False
            )
            parts += [SamePad(kernel.shape[2:], how["strides"]), loaded(conv, kernel)]
        elif kind == "BatchNormalization":
            norm = nn.BatchNorm2d(len(values[0]), eps=how["epsilon"])
            parts.append(loaded(norm, *values))
        elif kind == "Dense":
            kernel, bias = values
            parts.append(loaded(nn.Linear(*kernel.shape), kernel.T, bias))
        else:
            parts.append({"ReLU": nn.ReLU, "Flatten": FlattenLast}[kind]())
    return nn.Sequential(*parts)


trained_networks[0].save(folder / "digits.keras")
from_file = without_keras(folder / "digits.keras")
checks.same_outputs(from_file, right, test[0][:100])

# %% [markdown]
# ## What we saw
#
# - Each of the layers has a twin that computes the same; four kinds of mistakes raise no error.
# - 'Same' with stride 2 puts the odd zero behind: `padding=1` looks one pixel further left.
# - A file of weights may hold code, and Keras refuses it unless the guard is switched off.

# %%
FOLDER.cleanup()
