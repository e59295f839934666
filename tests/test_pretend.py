"""The pretended accelerator refuses what a GPU refuses, and every notebook runs on it."""

import json
import os
import subprocess
import sys

import pytest

from loader import EVERY, NOTEBOOKS, ROOT, looked_at_closely

BEFORE = """
import copy
import json
import sys
import numpy as np
import pretend
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

here = pretend.start()
x = torch.arange(12.0, device=here).view(3, 4)
mask = torch.tensor([True, False, True, False])


def network(norm=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


def trained(device):
    "Weights, buffers and losses after three steps."
    net, y = network().to(device), torch.tensor([0, 1, 1], device=device)
    inputs = torch.linspace(-1, 1, 12).view(3, 4).to(device)
    optimizer = torch.optim.AdamW(net.parameters())
    for _ in range(3):
        loss = F.cross_entropy(net(inputs), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [t.cpu() for t in net.state_dict().values()] + [loss.detach().cpu()]


class Forgetful(nn.Module):
    "Makes a tensor without saying where, or keeps one that is not a buffer."

    def __init__(self, once=False):
        super().__init__()
        self.kept = torch.ones(4) if once else None

    def forward(self, x):
        return x + (torch.ones(4) if self.kept is None else self.kept)


class Causal(nn.Module):
    "Builds its mask with the first batch, where that batch is."

    def __init__(self):
        super().__init__()
        self.mask = None

    def forward(self, x):
        if self.mask is None:
            self.mask = torch.ones(x.shape, dtype=torch.bool, device=x.device).triu(1)
        return x.masked_fill(self.mask, 0.0)


def masked_elsewhere():
    causal = Causal()
    causal(torch.zeros(3, 4))
    return causal(x)


def hooked():
    seen = []
    net = network().to(here)
    net[0].register_forward_hook(lambda m, i, output: seen.append(output.mean().item()))
    net(x)
    return seen


def kept_for_backward():
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
        network().to(here)(x).sum().backward()
    return sum(sizes) > 0


def channels_last():
    return x.view(1, 2, 2, 3).to(memory_format=torch.channels_last)


def checkpointed():
    gradients = []
    for through in (lambda net: net(x), lambda net: checkpoint(net, x, use_reentrant=False)):
        net = network().to(here)
        through(net).square().sum().backward()
        gradients.append(net[0].weight.grad)
    return torch.equal(*gradients)


def recurrent(layer, packed=False):
    "Outputs and a gradient here and on the CPU."
    found = []
    for device in ("cpu", here):
        torch.manual_seed(0)
        net = layer(4, 5, batch_first=True)
        rows = torch.linspace(-1, 1, 24).view(2, 3, 4).to(device)
        if packed:
            rows = pack_padded_sequence(rows, torch.tensor([3, 1]), batch_first=True)
        outputs, _ = net.to(device)(rows)
        outputs = outputs.data if packed else outputs
        outputs.square().sum().backward()
        found.append((str(outputs.device), outputs.cpu(), net.weight_hh_l0.grad.cpu()))
    devices = [device for device, *_ in found]
    return devices, all(map(torch.equal, found[0][1:], found[1][1:]))


def view_changed():
    y = x.clone()
    y[0] = 0
    y[:, 1:].mul_(2)
    return y.tolist()
"""
REFUSED = {  # what a GPU refuses, and what the error says
    "Forgetful().to(here)(x)": "same device",
    "Forgetful(once=True).to(here)(x)": "same device",
    "masked_elsewhere()": "same device",
    "x.masked_fill(mask, 0)": "same device",
    "torch.where(mask, x, 0)": "same device",
    "x + torch.ones(4)": "same device",
    "x.clone().add_(torch.ones(4))": "same device",
    "torch.cat([x, torch.ones(1, 4)])": "same device",
    "x @ torch.ones(4)": "same device",
    "network()(x)": "same device",
    "network().to(here)(torch.ones(2, 4))": "same device",
    "F.cross_entropy(x, torch.tensor([0, 1, 1]))": "same device",
    "F.embedding(torch.tensor([0]), x)": "same device",
    "torch.ones(3, 4)[x[0].long() % 3]": "same device",
    "x.clone().index_put_((torch.tensor([0]),), torch.ones(4))": "same device",
    "nn.GRU(4, 5).to(here)(x, torch.zeros(1, 5))": "same device",
    "nn.LSTM(4, 5)(x)": "same device",
    "x + torch.ones((), device='meta')": "same device",
    "x.numpy()": "Use Tensor.cpu()",
    "x.detach().numpy()": "Use Tensor.cpu()",
    "np.asarray(x)": "Use Tensor.cpu()",
    "np.square(x)": "Use Tensor.cpu()",
    "torch.rand(3, device=here, generator=torch.Generator())": "for generator",
    "x.clone().normal_(generator=torch.Generator())": "for generator",
}
ALLOWED = {  # what a GPU does, and what comes of it
    "str(torch.accelerator.current_accelerator())": "pretended",
    "str(x.device)": "pretended:0",
    "str((x + 1).device)": "pretended:0",
    "str(x.cpu().device)": "cpu",
    "str(x.to('meta').device)": "meta",
    "str(torch.zeros_like(x, device='cpu').device)": "cpu",
    "x.sum().item()": 66.0,
    "float(x[1, 1])": 5.0,
    "bool(x.sum() > 0)": True,
    "x[2].tolist()": [8.0, 9.0, 10.0, 11.0],
    "x.cpu().numpy().shape": [3, 4],
    "torch.tensor([1, 2], device=here).tolist()": [1, 2],
    "torch.tensor([x[0, 1], x[0, 2]]).tolist()": [1.0, 2.0],
    "(x[0] + torch.tensor(1.0)).tolist()": [1.0, 2.0, 3.0, 4.0],
    "x[0][mask].tolist()": [0.0, 2.0],
    "x[0][torch.tensor([3, 0])].tolist()": [3.0, 0.0],
    "x[0].masked_fill(mask.to(here), 0).tolist()": [0.0, 1.0, 0.0, 3.0],
    "view_changed()": [[0, 0, 0, 0], [4, 10, 12, 14], [8, 18, 20, 22]],
    "list(channels_last().stride())": [12, 1, 6, 2],
    "checkpointed()": True,
    "recurrent(nn.LSTM)": [["cpu", "pretended:0"], True],
    "recurrent(nn.GRU)": [["cpu", "pretended:0"], True],
    "recurrent(nn.RNN, packed=True)": [["cpu", "pretended:0"], True],
    "len(hooked())": 1,
    "kept_for_backward()": True,
    "'pretended' in repr(x)": True,
    "isinstance(copy.deepcopy(network().to(here))[0].weight, nn.Parameter)": True,
    "str(copy.deepcopy(network().to(here))[0].weight.device)": "pretended:0",
    "all(map(torch.equal, trained(here), trained('cpu')))": True,
}
AFTER = """
answers = {}
for expression in json.loads(sys.argv[1]):
    try:
        answers[expression] = eval(expression)
    except (RuntimeError, TypeError) as error:
        answers[expression] = f"{type(error).__name__}: {error}"
print(json.dumps(answers, default=str))
"""


def python(*arguments: str) -> subprocess.CompletedProcess:
    """Run in a process of its own, whose accelerator it is then for good."""
    paths = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    more = {"PYTHONPATH": paths, "BOOK_BUILD": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=os.environ | more
    )


@pytest.fixture(scope="module")
def answers() -> dict:
    asked = json.dumps([*REFUSED, *ALLOWED])
    result = python("-W", "error", "-c", BEFORE + AFTER, asked)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("expression", REFUSED)
def test_what_a_gpu_refuses_is_refused(answers, expression):
    answer = answers[expression]
    assert isinstance(answer, str) and "Error: " in answer, answer
    assert REFUSED[expression] in answer


@pytest.mark.parametrize("expression", ALLOWED)
def test_what_a_gpu_does_is_done(answers, expression):
    assert answers[expression] == ALLOWED[expression]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stem", looked_at_closely())
def test_a_notebook_runs_from_its_first_cell_to_its_last(stem):
    """On a GPU it would, as far as devices go; what it then claims, it claims for the CPU."""
    brief = () if EVERY else ("--brief",)
    result = python(str(ROOT / "tests" / "pretend.py"), *brief, str(NOTEBOOKS / f"{stem}.py"))
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_file_that_is_not_there_is_said_so():
    result = python(str(ROOT / "tests" / "pretend.py"), "nothing.py")
    assert result.returncode != 0 and "usage" in result.stderr
