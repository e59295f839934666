"""What the tests of all chapters ask of a network: its cost, its layers, its function, that it learns.

A reference is met twice: on the meta device, layer by layer at the published size, which costs no
arithmetic; and in numbers, small, with the same random weights in both, so that no layer, epsilon
or bias is hidden by a zero.
"""

from itertools import zip_longest

import torch
import torch._dynamo  # what the first pass on the meta device would import, in 1.5 s
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from workbench import counting

IMAGENET = (1, 3, 224, 224)


def on_meta(build, *arguments, **how):
    """What `build` makes, on the meta device: shapes without numbers, so no size is too large."""
    with torch.device("meta"):
        return build(*arguments, **how)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5, name: str = "output") -> None:
    """No value may be off by more than this share of the largest one expected."""
    scale = expected.abs().max().item() if expected.numel() else 0
    torch.testing.assert_close(
        found, expected, rtol=0, atol=tolerance * scale, msg=lambda text: f"{name}: {text}"
    )


# ---- cost and layers -----------------------------------------------------------------------------


def parameters_of(network: nn.Module) -> int:
    return counting.parameters(network)


def macs_of(network: nn.Module, *shape: int) -> int:
    """Multiply-accumulates of one pass on the meta device; an image of ImageNet if no shape is given."""
    return counting.macs(network, torch.empty(shape or IMAGENET, device="meta"))


def runs_on_meta(network: nn.Module, *shape: int, unused: tuple[str, ...] = ()):
    """Run a network forward and backward and return its output; each parameter gets a gradient.

    A tensor made on a wrong device fails here. unused: beginnings of names that get none.
    """
    output = network.train()(torch.empty(shape, device="meta"))
    sum(t.sum() for t in tree_leaves(output)).backward()
    found = {name for name, p in network.named_parameters() if p.grad is None}
    expected = {name for name, _ in network.named_parameters() if name.startswith(unused)}
    assert found == expected, f"without a gradient: {found}, expected: {expected}"
    return output


DESCRIBED = {  # kinds of layers, and what makes one of a kind differ from another
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups"),
    nn.Linear: ("in_features", "out_features"),
    nn.BatchNorm2d: ("num_features", "eps", "momentum"),
    nn.Dropout: ("p",),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "ceil_mode"),
}


def described(layer: nn.Module) -> str:
    """A layer in words, the same for a kernel of 3 and of (3, 3)."""
    (kind,) = (kind for kind in DESCRIBED if isinstance(layer, kind))
    values = {name: getattr(layer, name) for name in DESCRIBED[kind]}
    if hasattr(layer, "bias"):
        values["bias"] = layer.bias is not None
    if values.get("stride") == 1:
        values.pop("ceil_mode", None)  # there is nothing to round
    for name, value in values.items():
        if isinstance(value, tuple) and len(set(value)) == 1:
            values[name] = value[0]
    return f"{kind.__name__}({', '.join(f'{name}={value}' for name, value in values.items())})"


def layers_of(network: nn.Module, *shape: int, kinds: tuple = tuple(DESCRIBED)) -> list[str]:
    """The layers that a pass on the meta device calls, in order, each with the shape it gives."""
    found = []

    def note(layer, inputs, output):
        found.append(f"{described(layer)} gives {tuple(output.shape)}")

    layers = [m for m in network.modules() if isinstance(m, kinds)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        network(torch.empty(shape or IMAGENET, device="meta"))
    for handle in handles:
        handle.remove()
    return found


def same_layers(network: nn.Module, reference: nn.Module, *shape: int) -> None:
    """Two networks call equal layers in the same order, on maps of the same sizes."""
    pairs = zip_longest(layers_of(network, *shape), layers_of(reference, *shape))
    for number, (found, expected) in enumerate(pairs, start=1):
        assert found == expected, f"layer {number} is {found}, in the reference {expected}"


# ---- function ------------------------------------------------------------------------------------


@torch.no_grad()
def share_weights(network: nn.Module, reference: nn.Module) -> None:
    """Give both the same random tensors, pair by pair in their order; both may be on the meta device."""
    ours, theirs = network.state_dict(), reference.state_dict()
    for a, b in zip_longest(ours, theirs):
        shapes = [tuple(t[k].shape) if k else None for t, k in ((ours, a), (theirs, b))]
        assert shapes[0] == shapes[1], (
            f"{a} {shapes[0]} stands where the reference has {b} {shapes[1]}"
        )
    values = [random_like(name, t) for name, t in theirs.items()]
    reference.load_state_dict(dict(zip(theirs, values)), assign=True)
    network.load_state_dict({name: t.clone() for name, t in zip(ours, values)}, assign=True)


def random_like(name: str, t: Tensor) -> Tensor:
    """Weights that keep the signal at its size through ReLUs, scales around one, shifts around zero."""
    if not t.dtype.is_floating_point:
        return torch.zeros(t.shape, dtype=t.dtype)
    if t.ndim > 1:
        bound = (6 / t[0].numel()) ** 0.5
        return torch.empty(t.shape).uniform_(-bound, bound)
    if name.endswith(("running_var", "weight")):
        return torch.empty(t.shape).uniform_(0.5, 1.5)
    return torch.randn(t.shape) / 10


@torch.no_grad()
def same_outputs(network, reference, x: Tensor, tolerance: float = 1e-5) -> None:
    """Two networks with the same weights give the same in evaluation mode."""
    close(network.eval()(x), reference.eval()(x), tolerance)


def same_training(network, reference, x: Tensor, tolerance: float = 1e-4) -> None:
    """Two networks with the same weights do the same in a training step.

    Outputs, gradients of the parameters and what is kept between steps, such as running means. Dropout
    draws the same numbers in both, so that it must stand in the same places with the same share.
    """
    steps = []
    for model in (network, reference):
        torch.manual_seed(0)
        y = model.train()(x)
        model.zero_grad()
        (y * torch.randn(y.shape, dtype=y.dtype)).sum().backward()
        named = [(f"gradient of {name}", p.grad) for name, p in model.named_parameters()]
        steps.append([("output", y.detach()), *named, *model.named_buffers()])
    for (name, found), (_, expected) in zip(*steps, strict=True):
        close(found, expected, tolerance, name)


def same_function(network, reference, x: Tensor, tolerance: float = 1e-5) -> None:
    """Two networks do the same with the same weights, in evaluation and in a training step."""
    share_weights(network, reference)
    same_outputs(network, reference, x, tolerance)
    same_training(network, reference, x, 10 * tolerance)


# ---- training ------------------------------------------------------------------------------------


def without_dropout(network: nn.Module) -> nn.Module:
    """The same network with nothing dropped while it is trained: what is dropped is not fitted."""
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return network


def learns(network, x: Tensor, rate: float, steps: int, loss=F.cross_entropy, K: int = 10) -> None:
    """A batch with labels by chance is fitted to a tenth of its first loss by Adam."""
    optimizer = torch.optim.Adam(without_dropout(network).train().parameters(), lr=rate)
    y, losses = torch.arange(len(x)) % K, []
    for _ in range(steps):
        value = loss(network(x), y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0] / 10, f"a loss of {losses[0]:.3g} comes down to {losses[-1]:.3g}"


def starts_with(weight: Tensor, deviation: float, share: float = 0.03) -> None:
    """Initial weights have mean zero and this standard deviation."""
    found, mean = weight.std().item(), weight.mean().item()
    assert abs(found / deviation - 1) < share, f"a deviation of {found:.4g}, not {deviation:.4g}"
    assert abs(mean) < share * deviation, f"a mean of {mean:.4g} at a deviation of {found:.4g}"


# ---- training ------------------------------------------------------------------------------------


def steps_of(monkeypatch, training, batches: int) -> tuple[list[float], dict]:
    """Let `training.fit` do nothing but step, `batches` times an epoch.

    Returns what it will fill: the rate of each step, and the optimiser's settings with the size of a
    batch.
    """
    rates, settings = [], {}

    def fit(network, part, epochs, optimizer, batch, schedule):
        for _ in range(epochs * batches):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step() if len(rates) < epochs * batches else None
        settings.update(optimizer.param_groups[0], batch=batch)
        return {"loss": [1.0] * epochs}

    monkeypatch.setattr(training, "fit", fit)
    return rates, settings


def rises_and_falls(rates: list[float], peak: float, at: int) -> None:
    """The rates of `training.one_cycle`: `peak` is that of step `at`, counted from 0."""
    assert abs(rates[0] - peak / 25) < 1e-6 * peak
    assert abs(max(rates) - peak) < 1e-6 * peak
    assert rates.index(max(rates)) == at
    assert rates[-1] < 1e-5 * peak
