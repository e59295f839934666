"""Parameters and multiply-accumulates."""

import pytest
import torch
import torchvision
from torch import nn

import workbench
from workbench import counting


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("resnet18", 11_689_512, 1.814e9),
        ("resnet50", 25_557_032, 4.089e9),
        ("vgg16", 138_357_544, 15.470e9),
        ("densenet121", 7_978_856, 2.834e9),
        ("vit_b_16", 86_567_656, 17.56e9),  # 11.3 G where fused attention hides from the counter
    ],
)
def test_counts_agree_with_published_ones(name, parameters, macs):
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
        x = torch.empty(1, 3, 224, 224)
    assert counting.parameters(model) == parameters
    assert counting.macs(model, x) == pytest.approx(macs, rel=1e-3)
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled()


class First(nn.Module):
    """The first output of a layer with several."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


RECURRENT = {
    "LSTM": lambda: nn.LSTM(10, 20),
    "LSTM, both directions": lambda: nn.LSTM(10, 20, 2, bidirectional=True, batch_first=True),
    "LSTM, projected": lambda: nn.LSTM(10, 20, 2, bidirectional=True, proj_size=5),
    "GRU": lambda: nn.GRU(10, 20, 2, bidirectional=True),
    "RNN": lambda: nn.RNN(10, 20, 2, nonlinearity="relu"),
}


@pytest.mark.parametrize("place", ["device", "meta"])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_multiply_each_weight_matrix_once_a_step(name, place):
    where = workbench.device if place == "device" else "meta"
    model = First(RECURRENT[name]()).to(where)
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert counting.macs(model, torch.rand(7, 3, 10, device=where)) == 7 * 3 * weights


class Pairwise(nn.Module):
    """nn.Bilinear, or the same from torch.einsum, of the two halves of the input."""

    def __init__(self, einsum: bool):
        super().__init__()
        self.layer, self.einsum = nn.Bilinear(4, 5, 6, bias=False), einsum

    def forward(self, x):
        halves = x[:, :4], x[:, 4:]
        return (
            torch.einsum("bi,kij,bj->bk", halves[0], self.layer.weight, halves[1])
            if self.einsum
            else self.layer(*halves)
        )


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_a_bilinear_layer_costs_what_its_two_products_cost(where):
    x = torch.rand(3, 9, device=where)
    found = counting.macs(Pairwise(einsum=False).to(where), x)
    assert found == counting.macs(Pairwise(einsum=True).to(where), x) > 0


class InputGradient(nn.Module):
    """A forward pass that asks autograd for the gradients of input and weights of a layer."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            total = self.layer(x).sum()
        return torch.autograd.grad(total, [x, *self.layer.parameters()])[0]


@pytest.mark.parametrize("where", ["cpu", "meta"])
@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(8, 12, 3, groups=4, bias=False),
        lambda: nn.Conv2d(8, 12, 3, 2, 1),
        lambda: nn.Conv1d(8, 8, 3, groups=8),
        lambda: nn.ConvTranspose2d(8, 12, 3, stride=2, groups=4),
        lambda: nn.Linear(9, 5),
    ],
)
def test_a_backward_pass_costs_twice_the_forward_one(layer, where):
    layer = layer().to(where)
    x = torch.rand(*((8, 8, 9) if isinstance(layer, nn.Conv1d) else (2, 8, 9, 9)), device=where)
    forward = counting.macs(layer, x)
    assert counting.macs(InputGradient(layer), x) == 3 * forward > 0


class Products(nn.Module):
    def forward(self, x):
        return torch.addmv(x[0], x, x @ x[0]) * (x[0] @ x[1])  # two matrices times vectors, a dot


def test_products_with_vectors_count():
    assert counting.macs(Products(), torch.rand(9, 9)) == 2 * 81 + 9


def test_counting_leaves_the_switches_of_torch_as_they_were():
    libraries = torch.backends.mkldnn, torch.backends.cudnn
    before = [library.enabled for library in libraries]
    with pytest.raises(RuntimeError):
        counting.macs(nn.Linear(3, 2), torch.rand(1, 4))
    assert [library.enabled for library in libraries] == before and any(before)
    assert torch.backends.mha.get_fastpath_enabled()


def test_only_trainable_parameters_are_counted():
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert counting.parameters(layer) == 6
