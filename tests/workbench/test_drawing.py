"""A network drawn from itself."""

from itertools import combinations

import pytest
import torch
import torchvision
from matplotlib import pyplot as plt
from small import small
from torch import nn

from loader import definitions
from workbench import counting, drawing


def drawn(model: nn.Module, x: torch.Tensor) -> list[str]:
    """What a drawing says, checked to lie inside it and apart."""
    drawing.draw(model, x)
    figure = plt.gcf()
    assert figure.get_figwidth() == 5
    assert all(text.get_fontsize() >= 10.5 for text in figure.axes[0].texts)
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = [text.get_window_extent(figure.canvas.get_renderer()) for text in texts]
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
    for (a, one), (b, other) in combinations(zip(texts, boxes), 2):
        assert not one.overlaps(other), f"{a.get_text()} touches {b.get_text()}"
    plt.close(figure)
    return [text.get_text() for text in texts]


def known(name: str) -> tuple[nn.Module, torch.Tensor]:
    quiet = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    with torch.device("meta"):
        return torchvision.models.get_model(name, **quiet), torch.empty(1, 3, 224, 224)


def test_a_drawing_names_each_stage_with_its_shape_and_parameters():
    model = nn.Sequential()
    model.add_module("stem", nn.Conv2d(3, 8, 3, padding=1))
    model.add_module("relu", nn.ReLU())
    model.add_module("pool", nn.MaxPool2d(2))
    words = drawn(model, torch.rand(2, 3, 16, 16))
    assert words == ["input", "3×16×16", "stem", "8×16×16", "224", "pool", "8×8×8"]


NETWORKS = {  # blocks that have a shortcut, and how often each stands there
    "alexnet": [],
    "vgg16": [],
    "googlenet": [],
    "resnet18": [2, 2, 2, 2],
    "resnet152": [3, 8, 36, 3],
    "densenet121": [6, 12, 24, 16],  # these concatenate
    "mobilenet_v2": [2, 3, 4, 3, 3],
    "vit_b_16": [12],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_shortcuts_are_found_where_they_are_and_labels_lie_apart(name):
    model, x = known(name)
    blocks = drawing.blocks_of(model, x)
    assert [block.times for block in blocks if block.shortcut] == NETWORKS[name]
    total = sum(block.parameters for block in blocks)
    direct = sum(p.numel() for p in model.parameters(recurse=False))  # of no stage
    assert total == counting.parameters(model) - direct
    words = drawn(model, x)
    assert {f"×{n}" for n in NETWORKS[name] if n > 1} <= set(words)


@pytest.mark.parametrize("stem", ["lenet", "resnet"])
def test_the_networks_of_the_notebooks_are_drawn(stem):
    net = definitions(stem)
    if stem == "lenet":
        assert drawn(net.LeNet5(), torch.zeros(1, 1, 32, 32))[-2:] == ["output", "10"]
        return
    x = torch.zeros(1, 1, 20, 20)
    for block, loops in ((net.PlainBlock, 0), (net.ResidualBlock, 3)):
        blocks = drawing.blocks_of(net.DigitNetwork(block, 14), x)
        assert [block.times for block in blocks] == [1, 1, 2, 2, 2, 1]
        assert sum(block.shortcut for block in blocks) == loops


def test_parallel_paths_are_lines_in_a_block():
    blocks = {block.name: block for block in drawing.blocks_of(*known("googlenet"))}
    assert blocks["inception3a"].branches == (64, 128, 32, 32)
    assert blocks["conv1"].branches == ()


def test_twelve_stages_with_long_names_lie_apart():
    model = nn.Sequential()
    for i in range(12):
        model.add_module(
            f"a_stage_with_a_long_name_{i}", nn.Conv2d(2 ** min(i, 9), 2 ** min(i + 1, 9), 1)
        )
    assert len(drawn(model, torch.zeros(1, 1, 64, 64))) == 2 + 12 * 3


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.lstm = nn.LSTM(8, 16, batch_first=True)

    def forward(self, x):
        return self.lstm(self.embed(x))


def test_tokens_and_tuples_are_drawn():
    words = drawn(Recurrent(), torch.zeros(1, 7, dtype=torch.long))
    assert words[2:] == ["embed", "7×8", "400", "lstm", "7×16", "1,664"]


def test_fused_attention_does_not_hide_the_shortcuts():
    layer = nn.TransformerEncoderLayer(16, 2, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    (_, block) = drawing.blocks_of(encoder, torch.rand(1, 5, 16))
    assert (block.name, block.times, block.shortcut) == ("TransformerEncoderLayer", 3, True)


def test_a_drawing_leaves_the_model_as_it_was_even_when_it_fails():
    model, x = small(), torch.rand(1, 1, 28, 28)
    model[1].eval()  # a frozen norm in a model that trains
    drawing.draw(model, x)
    plt.close("all")
    with pytest.raises(RuntimeError):
        drawing.draw(model, torch.rand(1, 5, 28, 28))
    assert [m.training for m in model] == [True, False, True, True, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not torch.nn.modules.module._global_forward_hooks
    assert torch.backends.mha.get_fastpath_enabled()
    assert model(x).requires_grad
