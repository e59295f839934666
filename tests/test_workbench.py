"""The functions that the notebooks share."""

import subprocess
import sys
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torchvision
from IPython.utils.capture import capture_output
from torch import nn

import workbench
from loader import NOTEBOOKS, definitions


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10)
    )


def test_digits_are_three_fixed_balanced_parts_without_a_shared_image():
    data = workbench.digits()
    parts = data[:3]
    assert [len(y) for _, y in parts] == [3500, 500, 1000]
    for x, y in parts:
        assert x.shape[1:] == (1, 28, 28)
        assert y.bincount().unique().numel() == 1
        assert x.min() >= 0 and x.max() == 1
    seen = [{x.numpy().tobytes() for x in part[0]} for part in parts]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    assert data.train[1][:20].unique().numel() > 5  # shuffled
    torch.testing.assert_close(workbench.digits().test[0], data.test[0])


def test_digits_can_be_resized_and_given_three_channels():
    x, _ = workbench.digits(size=32, channels=3).test
    assert x.shape == (1000, 3, 32, 32)
    torch.testing.assert_close(x[:, 0], x[:, 2])


def test_patches_are_three_fixed_balanced_parts_in_colour():
    data = workbench.patches()
    assert [len(y) for _, y in data[:3]] == [3000, 500, 1000]
    for x, y in data[:3]:
        assert x.shape[1:] == (3, 32, 32)
        assert y.bincount().tolist() == [len(y) // 10] * 10
        assert x.min() >= 0 and x.max() <= 1
        assert (x[:, 0] - x[:, 2]).abs().mean() > 0.05  # not grey
    assert data.classes[0] == "astronaut" and len(set(data.classes)) == 10
    assert data.train[1][:20].unique().numel() > 5  # shuffled
    torch.testing.assert_close(workbench.patches().test[0], data.test[0])
    assert workbench.patches(size=64).test[0].shape == (1000, 3, 64, 64)


@pytest.mark.parametrize("part", [(0.0, 0.6), (0.6, 0.7), (0.7, 1.0)])
def test_a_patch_stays_in_its_part_of_the_photograph(part):
    """The picture holds its own columns, so that a patch tells where it was cut."""
    W = 451  # the narrowest photograph: a tenth of it is just wider than a patch
    picture = torch.arange(W).expand(3, 40, W)
    rng = np.random.default_rng(0)
    cuts = torch.stack([workbench.cut(picture, *part, rng) for _ in range(500)])
    assert cuts.shape == (500, 3, 32, 32)
    assert cuts.min() >= part[0] * W and cuts.max() + 1 <= part[1] * W
    assert cuts.unique().numel() >= (part[1] - part[0]) * W - 2  # all of the part is used


def test_an_absent_package_is_named_with_the_line_to_run():
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps surely_absent"):
        workbench.package_file("surely_absent", "x.csv", "0")


def test_an_absent_package_is_named_as_pip_knows_it(monkeypatch):
    monkeypatch.setattr(workbench.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps scikit-image"):
        workbench.patches()


def test_a_file_that_is_not_the_expected_one_is_refused():
    with pytest.raises(ValueError, match="is not the file this book uses"):
        workbench.package_file("torch", "version.py", "0")
    with pytest.raises(ValueError, match="no such file"):
        workbench.package_file("torch", "absent.py", "0")


def test_the_sample_profile_downloads_nothing():
    with pytest.raises(RuntimeError, match="set PROFILE=full"):
        workbench.images("CIFAR10")


def idx(array: np.ndarray) -> bytes:
    """The file format of MNIST: magic number with the number of axes, sizes, bytes."""
    head = [0x0800 + array.ndim, *array.shape]
    return b"".join(n.to_bytes(4, "big") for n in head) + array.astype(np.uint8).tobytes()


def test_the_full_profile_reads_what_lies_under_data_root(tmp_path, monkeypatch):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 100), ("t10k", 20)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(rng.integers(0, 256, (n, 28, 28))))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(n) % 10))
    monkeypatch.setattr(workbench, "PROFILE", "full")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    data = workbench.images("FashionMNIST", size=32, channels=3)
    assert [tuple(x.shape) for x, _ in data[:3]] == [
        (90, 3, 32, 32),
        (10, 3, 32, 32),
        (20, 3, 32, 32),
    ]
    assert data.classes[9] == "Ankle boot"


def test_the_full_profile_without_data_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(workbench, "PROFILE", "full")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "nowhere"))
    monkeypatch.setenv("DATA_MIRROR", "http://127.0.0.1:9/")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/original")
    with pytest.raises(RuntimeError, match="CIFAR10 could not be read or fetched .*DATA_MIRROR"):
        workbench.images("CIFAR10")


def test_an_unknown_profile_is_refused():
    command = [sys.executable, "-c", "import workbench"]
    result = subprocess.run(
        command, cwd=NOTEBOOKS, env={"PROFILE": "fast"}, capture_output=True, text=True
    )
    assert "PROFILE must be 'sample' or 'full', not 'fast'" in result.stderr


def test_fit_is_repeatable_and_learns():
    x, y = workbench.digits().train
    histories = []
    for _ in range(2):
        workbench.seed(0)
        model = small().to(workbench.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        part = (x[:200], y[:200])
        histories.append(workbench.fit(model, part, 5, optimizer, validation=part))
    torch.testing.assert_close(histories[0]["loss"], histories[1]["loss"])
    assert histories[0]["loss"][-1] < histories[0]["loss"][0] / 2
    assert histories[0]["validation"][-1] == workbench.evaluate(model, part)


def test_evaluate_counts_right_answers():
    class Echo(nn.Module):
        """Says the class that is written into the first pixel."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return nn.functional.one_hot(x[:, 0, 0, 0].long(), 4) * self.scale

    x = torch.tensor([0.0, 1, 2, 3]).view(4, 1, 1, 1)
    assert workbench.evaluate(Echo().to(workbench.device), (x, torch.tensor([0, 1, 2, 0]))) == 0.75


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
    assert workbench.count_parameters(model) == parameters
    assert workbench.count_macs(model, x) == pytest.approx(macs, rel=1e-3)
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled()


def test_only_trainable_parameters_are_counted():
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert workbench.count_parameters(layer) == 6


def test_a_transplanted_model_gives_the_same_outputs_and_a_wrong_one_is_refused():
    workbench.seed(0)
    a, b, x = small(), small(), torch.rand(3, 1, 28, 28)
    nn.init.uniform_(a[1].running_mean)
    with pytest.raises(AssertionError, match="outputs differ by"):
        workbench.same_outputs(a, b, x)
    workbench.transplant(a, b)
    assert workbench.same_outputs(a, b, x) == 0.0
    assert a.training and b.training


def test_a_transplant_that_does_not_fit_copies_nothing():
    target = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    before = target[0].weight.clone()
    with pytest.raises(ValueError, match=r"1.weight \(5, 4\) does not fit 1.weight \(2, 4\)"):
        workbench.transplant(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)), target)
    with pytest.raises(ValueError, match="the source has 2 tensors, the target 4"):
        workbench.transplant(nn.Sequential(nn.Linear(3, 4)), target)
    torch.testing.assert_close(target[0].weight, before)


def test_record_leaves_one_value_of_its_own_type_and_refuses_others():
    with capture_output() as captured:
        workbench.record("accuracy", torch.tensor(0.5))
    assert captured.outputs[0].data == {workbench.RESULT: {"name": "accuracy", "value": 0.5}}
    with pytest.raises(TypeError, match="a number or string is needed"):
        workbench.record("all", [1, 2])


def test_a_table_is_html_and_text():
    with capture_output() as captured:
        workbench.table([("C1", 156), ("F6", 10164)], ("layer", "parameters"))
    data = captured.outputs[0].data
    assert "10,164" in data["text/html"] and "10,164" in data["text/plain"]
    assert data["text/html"].count("<tr>") == 3


def drawn(model: nn.Module, x: torch.Tensor) -> list[str]:
    """What a drawing says, checked to lie inside it and apart."""
    workbench.draw(model, x)
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
    blocks = workbench.blocks_of(model, x)
    assert [block.times for block in blocks if block.shortcut] == NETWORKS[name]
    total = sum(block.parameters for block in blocks)
    direct = sum(p.numel() for p in model.parameters(recurse=False))  # of no stage
    assert total == workbench.count_parameters(model) - direct
    words = drawn(model, x)
    assert {f"×{n}" for n in NETWORKS[name] if n > 1} <= set(words)


@pytest.mark.parametrize("stem", ["lenet", "resnet"])
def test_the_networks_of_the_notebooks_are_drawn(stem):
    net = definitions(stem)
    if stem == "lenet":
        assert drawn(net.published_lenet5(), torch.zeros(1, 1, 32, 32))[-2:] == ["output", "10"]
        return
    x = torch.zeros(1, 1, 20, 20)
    for shortcut, loops in ((net.NoShortcut, 0), (net.ZeroPad, 3)):
        blocks = workbench.blocks_of(net.digit_network(14, shortcut), x)
        assert [block.times for block in blocks] == [1, 1, 2, 2, 2, 1, 1]
        assert sum(block.shortcut for block in blocks) == loops


def test_parallel_paths_are_lines_in_a_block():
    blocks = {block.name: block for block in workbench.blocks_of(*known("googlenet"))}
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
    (_, block) = workbench.blocks_of(encoder, torch.rand(1, 5, 16))
    assert (block.name, block.times, block.shortcut) == ("TransformerEncoderLayer", 3, True)


def test_a_drawing_leaves_the_model_as_it_was_even_when_it_fails():
    model, x = small(), torch.rand(1, 1, 28, 28)
    model[1].eval()  # a frozen norm in a model that trains
    workbench.draw(model, x)
    plt.close("all")
    with pytest.raises(RuntimeError):
        workbench.draw(model, torch.rand(1, 5, 28, 28))
    assert [m.training for m in model] == [True, False, True, True, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not torch.nn.modules.module._global_forward_hooks
    assert torch.backends.mha.get_fastpath_enabled()
    assert model(x).requires_grad


def test_names_at_the_ends_of_lines_lie_apart_and_near_their_lines():
    ends = {"a": 0.50, "b": 0.51, "c": 0.52, "d": 0.9}
    workbench.curves({name: [0.0, y] for name, y in ends.items()}, "epoch", "loss")
    figure = plt.gcf()
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    middles = [(box.y0 + box.y1) / 2 for box in boxes]
    wanted = figure.axes[0].transData.transform([(2, y) for y in ends.values()])[:, 1]
    assert abs(middles[1] - wanted[1]) < 3 and abs(middles[3] - wanted[3]) < 3  # pixels
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)
    plt.close(figure)


def test_names_of_lines_that_end_on_the_axis_stay_above_it():
    figure, axes = plt.subplots()
    axes.plot([1, 2], [1, 0])
    axes.set_ylim(0, None)
    workbench.label_ends(axes, dict.fromkeys("abc", (2, 0.0)))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 3 and all(box.y0 >= axes.bbox.y0 for box in boxes)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    plt.close(figure)


def test_the_photograph_is_an_image_of_the_size_asked_for():
    x = workbench.photograph(64, 48)
    assert x.shape == (1, 3, 64, 48)
    assert 0 <= x.min() < 0.2 and 0.8 < x.max() <= 1


def test_the_values_of_seeds_are_kept_and_written_with_their_ends(monkeypatch):
    kept = {}
    monkeypatch.setattr(workbench, "record", kept.__setitem__)
    workbench.record_spread("a", [0.5, 0.25, 0.75])
    assert kept == {"a": 0.5, "a.least": 0.25, "a.most": 0.75}
    assert workbench.spread([0.5, 0.25, 0.75], ".0%") == "50% (25% to 75%)"


def test_a_band_of_seeds_reaches_from_the_smallest_to_the_largest():
    _, axes = plt.subplots()
    runs = torch.tensor([[4.0, 2.0], [0.0, 1.0]])
    assert workbench.seed_band(axes, range(1, 3), runs, "k", "--") == (2, 1.5)
    assert axes.lines[0].get_ydata().tolist() == [2.0, 1.5]
    corners = axes.collections[0].get_paths()[0].vertices.tolist()
    assert {(1, 0), (1, 4), (2, 1), (2, 2)} <= set(map(tuple, corners))
    plt.close()


def test_random_norms_leave_no_value_of_a_fresh_one():
    norm = workbench.randomise_norms(nn.Sequential(nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8)))[1]
    fresh = nn.BatchNorm2d(8).state_dict()
    for name in ("running_mean", "running_var", "weight", "bias"):
        assert (norm.state_dict()[name] != fresh[name]).all(), name
    assert norm.running_var.min() > 0


def test_a_deviation_is_relative_to_the_largest_expected_value():
    assert workbench.deviation(torch.tensor([1.0, 5.0]), torch.tensor([2.0, -4.0])) == 2.25
