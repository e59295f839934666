"""Readers, writers, near copies and the measures of notebooks/cifar.py."""

import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder

import networks
from loader import definitions
from networks import on_meta

cifar = definitions("cifar")


@pytest.fixture(autouse=True)
def same_start():
    torch.manual_seed(0)


def made_up(n: int, fine: int = 8, seed: int = 0):
    """A part of random bytes; two fine classes to a coarse one."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % fine)
    return cifar.Part(rng.integers(0, 256, (n, 3, 32, 32), np.uint8), labels, labels // 2)


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a, b)


# ---- the binary version --------------------------------------------------------------------------


def test_a_record_is_the_labels_and_the_planes_of_red_green_and_blue(tmp_path):
    red, green, blue = bytes(range(256)) * 4, bytes([7]) * 1024, bytes(reversed(range(256))) * 4
    (tmp_path / "test.bin").write_bytes(bytes([3, 61]) + red + green + blue)
    pictures, coarse, fine = cifar.read_binary(tmp_path / "test.bin", 2)
    assert (coarse.tolist(), fine.tolist(), pictures.shape) == ([3], [61], (1, 3, 32, 32))
    assert pictures[0, :, 1, 5].tolist() == [37, 7, 218]  # byte 1 * 32 + 5 of each plane
    with pytest.raises(ValueError, match=r"test.bin: 3,074 bytes .* 3,073.*n_labels"):
        cifar.read_binary(tmp_path / "test.bin", 1)


@pytest.mark.parametrize("n_labels", [1, 2])
def test_what_is_written_is_read_and_stands_where_struct_finds_it(tmp_path, n_labels):
    part, file = made_up(5), tmp_path / "data.bin"
    labels = [part.coarse, part.fine][-n_labels:]
    cifar.write_binary(file, part.pictures, *labels)
    same(cifar.read_binary(file, n_labels), (part.pictures, *labels))
    raw = file.read_bytes()
    assert len(raw) == 5 * (n_labels + 3072)
    for n in range(5):
        start = n * (n_labels + 3072)
        assert list(raw[start : start + n_labels]) == [label[n] for label in labels]
        planes = struct.unpack_from("1024s1024s1024s", raw, start + n_labels)
        assert [bytes(plane) for plane in planes] == [p.tobytes() for p in part.pictures[n]]
    if n_labels == 2:
        found = cifar.colours_at(file, 3, 17, 4)
        assert found == (part.coarse[3], part.fine[3], *part.pictures[3, :, 17, 4])


@pytest.mark.parametrize("size", [0, 3072, 3074])
def test_a_file_that_ends_within_a_record_is_refused(tmp_path, size):
    (tmp_path / "cut.bin").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=f"cut.bin: {size:,} bytes .*Fetch it again"):
        cifar.read_binary(tmp_path / "cut.bin", 1)


# ---- the Python version --------------------------------------------------------------------------


def test_torchvision_reads_cifar10_as_we_write_it_and_we_read_the_same(tmp_path):
    train, test = made_up(23), made_up(7, seed=1)
    cifar.write_cifar10(tmp_path, train, test, ["a", "b", "c", "d"])
    folder = tmp_path / "cifar-10-batches-py"
    assert sorted(f.name for f in folder.iterdir()) == sorted(
        ["batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))]
    )
    kind = cifar.with_checksums(CIFAR10, tmp_path)
    for part, is_training in ((train, True), (test, False)):
        names = [name for name, _ in (kind.train_list if is_training else kind.test_list)]
        ours = cifar.read_batches(folder, names)
        same(ours, (part.pictures, part.coarse, None))
        theirs = kind(tmp_path, train=is_training)
        np.testing.assert_array_equal(theirs.data, part.pictures.transpose(0, 2, 3, 1))
        assert theirs.targets == part.coarse.tolist()
        assert theirs.classes == ["a", "b", "c", "d"]
    batch = cifar.read_pickle(folder / "data_batch_2")
    assert set(batch) == {"batch_label", "labels", "data", "filenames"}
    assert batch["batch_label"] == "data_batch_2"
    assert batch["filenames"] == [f"data_batch_2_{i}.png" for i in range(5, 10)]
    assert batch["data"].shape == (5, 3072)
    assert cifar.read_pickle(folder / "batches.meta")["num_vis"] == 3072


def test_torchvision_reads_cifar100_as_we_write_it_and_we_read_both_levels(tmp_path):
    parts = {"train": made_up(24), "test": made_up(8, seed=1)}
    fine, coarse = [f"fine {i}" for i in range(8)], list("abcd")
    cifar.write_cifar100(tmp_path, parts, fine, coarse)
    kind = cifar.with_checksums(CIFAR100, tmp_path)
    for name, part in parts.items():
        same(cifar.read_batches(tmp_path / "cifar-100-python", [name]), part)
        theirs = kind(tmp_path, train=name == "train")
        np.testing.assert_array_equal(theirs.data, part.pictures.transpose(0, 2, 3, 1))
        assert (theirs.targets, theirs.classes) == (part.fine.tolist(), fine)
        batch = cifar.read_pickle(tmp_path / "cifar-100-python" / name)
        keys = {"batch_label", "fine_labels", "coarse_labels", "data", "filenames"}
        assert set(batch) == keys
        assert batch["batch_label"] == name
        assert batch["filenames"][-1] == f"{name}_{len(part.fine) - 1}.png"
    meta = cifar.read_pickle(tmp_path / "cifar-100-python" / "meta")
    assert meta == {"fine_label_names": fine, "coarse_label_names": coarse}


def test_checksums_of_a_folder_are_those_torchvision_compares(tmp_path):
    cifar.write_cifar10(tmp_path, made_up(10), made_up(2), ["a"])
    kind = cifar.with_checksums(CIFAR10, tmp_path)
    assert issubclass(kind, CIFAR10) and kind.__name__ == "CIFAR10"
    assert kind.meta["key"] == "label_names" and CIFAR10.meta != kind.meta
    with pytest.raises(RuntimeError, match="corrupted"):
        CIFAR10(tmp_path)  # the true sums are others
    with (tmp_path / "cifar-10-batches-py" / "data_batch_5").open("ab") as file:
        file.write(b"!")
    with pytest.raises(RuntimeError, match="corrupted"):
        kind(tmp_path)


def python_2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 pickled it: byte strings, and numpy's old names."""

    def text(word: bytes) -> bytes:
        return b"U" + bytes([len(word)]) + word

    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|") + b"NNN"
    dtype += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(b"M" + struct.pack("<H", n) for n in data.shape) + b"t"
    raw = b"T" + struct.pack("<i", data.nbytes) + data.tobytes()
    state = b"(K\x01" + shape + dtype + b"\x89" + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + state + text(b"labels") + numbers + b"u" + b"."


def test_a_batch_of_python_2_is_read(tmp_path):
    part = made_up(3)
    content = python_2_pickle(part.pictures.reshape(3, -1), part.fine.tolist())
    (tmp_path / "data_batch_1").write_bytes(content)
    assert set(pickle.loads(content, encoding="latin1")) == {"data", "labels"}
    same(cifar.read_batches(tmp_path, ["data_batch_1"]), (part.pictures, part.fine, None))


def test_a_pickle_that_would_call_something_is_refused_and_calls_nothing(tmp_path):
    made, file = tmp_path / "made", tmp_path / "batch"
    file.write_bytes(pickle.dumps({"data": cifar.Trap(str(made))}))
    with pytest.raises(pickle.UnpicklingError, match=r"mkdir.*do not load"):
        cifar.read_pickle(file)
    assert not made.exists()
    pickle.loads(file.read_bytes())
    assert made.is_dir()


@pytest.mark.parametrize("value", [print, os.system, np.load, np.random.Generator])
def test_no_other_function_or_class_is_found(tmp_path, value):
    (tmp_path / "batch").write_bytes(pickle.dumps(value))
    with pytest.raises(pickle.UnpicklingError, match="no batch of CIFAR needs"):
        cifar.read_pickle(tmp_path / "batch")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": np.zeros((4, 3072))}, "float64"),
        ({"data": np.zeros((4, 3073), np.uint8)}, r"3073.*Python version"),
        ({"labels": [1, 2, 3]}, "3 labels for 4 pictures: fetch"),
    ],
)
def test_a_batch_of_another_form_is_refused(tmp_path, change, words):
    batch = {"data": np.zeros((4, 3072), np.uint8), "labels": [0] * 4}
    cifar.write_pickle(tmp_path / "deeper" / "still" / "batch", batch | change)
    with pytest.raises(ValueError, match=f"still: .*{words}"):
        cifar.read_batches(tmp_path / "deeper" / "still", ["batch"])
    cifar.write_pickle(tmp_path / "deeper" / "still" / "batch", batch)  # the folders may be there
    assert cifar.read_batches(tmp_path / "deeper" / "still", ["batch"]).coarse is None


def test_pickles_have_the_protocol_that_python_2_reads(tmp_path):
    cifar.write_pickle(tmp_path / "batch", {})
    assert (tmp_path / "batch").read_bytes()[:2] == b"\x80\x02"


# ---- the complete sets, and the tiny one ---------------------------------------------------------


def test_a_complete_archive_is_placed_verified_and_extracted(tmp_path, monkeypatch):
    asked = []
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as out:
        member = tarfile.TarInfo("cifar-100-python/meta")
        member.size = 4
        out.addfile(member, io.BytesIO(b"meta"))

    def place(*what):
        asked.append(what)
        return archive

    monkeypatch.setattr(cifar.downloads, "place", place)
    name = "cifar-100-python.tar.gz"
    cifar.unpack(name, tmp_path / "here")
    assert (tmp_path / "here" / "cifar-100-python" / "meta").read_bytes() == b"meta"
    ((path, addresses, sha256),) = asked
    assert (path, sha256[:4], len(sha256)) == (name, "85cd", 64)
    assert addresses == [CIFAR100.url]


def test_the_archives_are_those_that_the_workbench_reads():
    from workbench import archives

    for kind in ("CIFAR10", "CIFAR100"):
        for name, sha256 in archives.ARCHIVES[kind].items():
            assert cifar.ARCHIVES[name] == sha256


def chess(side: int = 640) -> torch.Tensor:
    """A picture whose tile in row r and column c has the colour (r, c, anything)."""
    line = torch.arange(side) // 32
    red = line[:, None].expand(side, side)
    return torch.stack((red, line.expand(side, side), torch.randint(0, 256, (side, side))))


def test_quarters_hold_the_tiles_of_their_corner_once():
    found = cifar.quarters(chess().byte())
    assert [tuple(q.shape) for q in found] == [(100, 3, 32, 32)] * 4
    corners = ((0, 0), (0, 10), (10, 0), (10, 10))
    for (top, left), quarter in zip(corners, found, strict=True):
        places = [(int(t[0, 0, 0]), int(t[1, 0, 0])) for t in quarter]
        assert places == [(top + r, left + c) for r in range(10) for c in range(10)]
        for t in quarter:
            assert (t[:2] == t[:2, :1, :1]).all()


def test_a_photograph_of_any_form_is_made_a_square_and_empty_tiles_go():
    picture = torch.zeros(3, 40, 90).byte()
    picture[:, :, 45:] = torch.randint(0, 256, (3, 40, 45)).byte()
    found = cifar.quarters(picture, side=128)
    assert len(found[0]) <= 2 and len(found[2]) <= 2  # but for the edge
    assert len(found[1]) == len(found[3]) == 4
    flat = torch.full((3, 64, 64), 100)
    flat[:, ::2] = 102  # deviates by just more than a level
    assert [len(q) for q in cifar.quarters(flat, side=64)] == [1] * 4
    flat[:, ::2] = 101
    assert [len(q) for q in cifar.quarters(flat, side=64)] == [0] * 4


def test_a_large_photograph_is_averaged_when_it_is_made_small():
    stripes = torch.zeros(3, 192, 192)
    stripes[..., 1::3] = 255
    stripes[..., ::32] = 0  # something to see
    found = cifar.quarters(stripes, side=64)
    assert all(len(quarter) == 1 and quarter.max() < 150 for quarter in found)


def test_the_tiny_set_has_as_many_tiles_of_each_quarter_and_none_twice():
    pictures = {"a": torch.randint(0, 256, (3, 640, 640)), "b": chess()}
    train, test = cifar.tiny_set(pictures, 9, 4)
    for part, each in ((train, 9), (test, 4)):
        assert np.bincount(part.fine).tolist() == [each] * 8
        assert part.pictures.shape == (8 * each, 3, 32, 32) and part.pictures.dtype == np.uint8
        np.testing.assert_array_equal(part.coarse, part.fine // 4)
        assert (np.diff(part.fine) != 0).any() and not (np.diff(part.fine) >= 0).all()
    tiles = [t.tobytes() for part in (train, test) for t in part.pictures]
    assert len(set(tiles)) == len(tiles)
    by_hand = [q.numpy() for p in pictures.values() for q in cifar.quarters(p)]
    for label, tile in zip(test.fine, test.pictures, strict=True):
        assert (by_hand[label] == tile).all((1, 2, 3)).any()
    again = cifar.tiny_set(pictures, 9, 4)
    same(again[0], train)


def test_the_tiny_set_is_written_in_both_layouts(tmp_path):
    pictures = {"a": torch.randint(0, 256, (3, 64, 80)), "b": torch.randint(0, 256, (3, 90, 64))}
    cifar.write_tiny(tmp_path, pictures, 3, 2)
    hundred = tmp_path / "cifar-100-python"
    names = cifar.read_pickle(hundred / "meta")
    assert names["coarse_label_names"] == ["a", "b"]
    assert names["fine_label_names"][:5] == [
        *("a_top_left", "a_top_right", "a_bottom_left", "a_bottom_right"),
        "b_top_left",
    ]
    parts = [cifar.read_batches(hundred, [name]) for name in ("train", "test")]
    assert [len(part.fine) for part in parts] == [24, 16]
    ten = cifar.read_batches(tmp_path / "cifar-10-batches-py", ["test_batch"])
    same(ten, (parts[1].pictures, parts[1].coarse, None))


# ---- two levels ----------------------------------------------------------------------------------


def test_each_fine_class_has_the_coarse_class_of_its_pictures():
    part = cifar.Part(np.zeros((4, 1)), np.array([2, 0, 1, 2]), np.array([5, 3, 5, 5]))
    assert torch.equal(cifar.coarse_of(part), torch.tensor([3, 5, 5]))
    swapped = cifar.Part(part.pictures, part.coarse, part.fine)
    with pytest.raises(ValueError, match="swapped"):
        cifar.coarse_of(swapped)


def test_the_hundred_classes_are_in_twenty_of_five_and_their_order_is_the_alphabet():
    assert len(cifar.SUPERCLASSES) == 20
    assert all(len(names.split()) == 5 for names in cifar.SUPERCLASSES.values())
    fine = sorted(" ".join(cifar.SUPERCLASSES.values()).split())
    assert len(set(fine)) == 100
    coarse = list(cifar.SUPERCLASSES)
    # Pairs of labels as the data set on Hugging Face's hub shows them.
    shown = "19cattle 29dinosaur 0apple 11boy 86telephone 90train 28cup 23cloud 39keyboard"
    shown += " 96willow_tree 82sunflower 17castle 80squirrel 74shrew 64possum 45lobster"
    for pair in shown.split():
        number = int("".join(c for c in pair if c.isdigit()))
        assert fine[number] == pair.removeprefix(str(number))
    of = {name: coarse[k] for k, v in enumerate(cifar.SUPERCLASSES.values()) for name in v.split()}
    for name, number in (("cattle", 11), ("dinosaur", 15), ("cup", 3), ("train", 18), ("boy", 14)):
        assert coarse.index(of[name]) == number
    assert coarse == sorted(coarse)


# ---- near copies ---------------------------------------------------------------------------------


def test_near_copies_are_what_their_names_say():
    x = torch.rand(2, 3, 32, 32)
    shifted = cifar.near_copy(x, "shifted")
    networks.close(shifted[:, :, 1:, 1:], x[:, :, :-1, :-1], 0)
    networks.close(shifted[:, :, 0, 1:], x[:, :, 0, :-1], 0)
    networks.close(shifted[:, :, 1:, 0], x[:, :, :-1, 0], 0)
    networks.close(
        cifar.near_copy(torch.tensor([0.0, 0.5, 1.0]), "paler"), torch.tensor([0.1, 0.5, 0.9])
    )
    networks.close(cifar.near_copy(x, "mirrored")[..., 3], x[..., 28], 0)
    grey = torch.full((4, 3, 32, 32), 0.5)
    noise = cifar.near_copy(grey, "noisy") - grey
    assert noise.std().item() == pytest.approx(0.03, rel=0.05)
    assert noise.mean().abs() < 0.002
    for level in (0.0, 1.0):
        noisy = cifar.near_copy(torch.full((2, 3, 32, 32), level), "noisy")
        assert noisy.min() >= 0 and noisy.max() <= 1 and noisy.std() > 0


def test_copies_take_the_places_of_training_pictures_of_their_class_in_turn():
    train = torch.rand(8, 3, 32, 32), torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    test = torch.rand(4, 3, 32, 32), torch.tensor([1, 0, 1, 1])
    chosen = torch.tensor([3, 1, 2])
    before = train[0].clone()
    x, y = cifar.plant(train, test, chosen, kinds=("mirrored", "paler"))
    networks.close(train[0], before, 0)
    networks.close(y, train[1], 0)
    networks.close(x[1], test[0][3].flip(-1), 0)  # the first of class 1
    networks.close(x[0], 0.1 + 0.8 * test[0][1])  # the first of class 0
    networks.close(x[3], test[0][2].flip(-1), 0)  # the second of class 1
    for place in (2, 4, 5, 6, 7):
        networks.close(x[place], before[place], 0)


def test_all_kinds_take_turns():
    test = torch.rand(8, 3, 32, 32), torch.zeros(8).long()
    x, _ = cifar.plant((torch.zeros(9, 3, 32, 32), torch.zeros(9).long()), test, torch.arange(8))
    assert cifar.KINDS == ("shifted", "paler", "noisy", "mirrored")
    for start in (0, 4):
        for turn, how in enumerate(cifar.KINDS):
            off = (x[start + turn] - cifar.near_copy(test[0][start + turn][None], how)[0]).abs()
            assert off.max() < 0.3 and (off == 0).all() == (how != "noisy")
    assert not x[8].any()


# ---- the finder ----------------------------------------------------------------------------------


def test_a_fingerprint_does_not_know_brightness_contrast_or_tint():
    x = torch.rand(3, 3, 32, 32)
    marks = cifar.fingerprint(x)
    assert marks.shape == (3, 3 * 64)
    tint = torch.tensor([0.1, -0.2, 0.05]).view(3, 1, 1)
    networks.close(cifar.fingerprint(0.5 * x + tint), marks, 1e-4)
    per_colour = marks.view(3, 3, 64)
    assert per_colour.mean(2).abs().max() < 1e-5
    networks.close(marks.std(1), torch.ones(3), 1e-4)
    by_hand = x.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5))  # (3, 3, 8, 8)
    centred = by_hand - by_hand.mean((2, 3), keepdim=True)
    networks.close(marks, (centred / centred.std((1, 2, 3), keepdim=True)).flatten(1), 1e-5)
    assert cifar.fingerprint(x, 32).shape == (3, 3072)
    flat = torch.full((1, 3, 32, 32), 0.3)
    flat[:, 0, 0, 0] += 1e-4  # hardly anything to see is not made large
    assert cifar.fingerprint(flat, 32).abs().max() == pytest.approx(0.1, rel=0.02)


def test_the_nearest_is_found_as_it_is_or_mirrored_in_any_order():
    train = torch.rand(20, 3, 32, 32)
    test = torch.cat((train[[7]], train[[3]].flip(-1), torch.rand(1, 3, 32, 32)))
    distance = cifar.nearest(test, train)
    assert (distance[:2] < 0.1).all() and distance[2] > 5
    a, b = cifar.fingerprint(test[2:]), cifar.fingerprint(train)
    mirrored = cifar.fingerprint(test[2:].flip(-1))
    by_hand = torch.cat(((a - b).square().sum(1), (mirrored - b).square().sum(1))).min().sqrt()
    networks.close(distance[2], by_hand, 1e-4)


def test_many_pictures_are_searched_in_parts_with_any_description():
    test, train = torch.rand(1203, 1, 1, 2), torch.rand(4, 1, 1, 2)
    found = cifar.nearest(test, train, lambda x: x.flatten(1))
    both = torch.cat((train, train.flip(-1))).flatten(1)
    networks.close(found, torch.cdist(test.flatten(1), both).amin(1), 1e-5)


def test_precision_at_each_hit_on_a_case_by_hand():
    distance = torch.tensor([0.3, 0.1, 0.4, 0.2, 0.5])
    planted = torch.tensor([True, True, False, False, True])
    found = cifar.precision_at_hits(distance, planted)  # order: hit, miss, hit, miss, hit
    networks.close(found, torch.tensor([1, 2 / 3, 3 / 5], dtype=torch.float64))
    networks.close(
        cifar.precision_at_hits(distance, ~planted), torch.tensor([1 / 2, 2 / 4]).double()
    )


def test_the_features_of_a_network_have_length_1_and_its_mode_stays():
    network = cifar.SmallNetwork(4, width=2).train()
    x = torch.rand(501, 3, 32, 32)
    rows = cifar.seen_by(network, x)
    assert rows.shape == (501, 8 * 16) and not rows.requires_grad and network.training
    networks.close(rows.norm(dim=1), torch.ones(501), 1e-4)
    network.eval()
    expected = network.features(4 * (x[:3] - 0.5)).detach()
    networks.close(rows[:3], expected / expected.norm(dim=1, keepdim=True), 1e-4)


# ---- the network and its measures ----------------------------------------------------------------


def test_the_network_halves_three_times_and_runs_on_the_meta_device():
    network = on_meta(cifar.SmallNetwork, 40)
    assert networks.runs_on_meta(network, 3, 3, 32, 32).shape == (3, 40)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    shapes = [(c.in_channels, c.out_channels, c.stride, c.bias) for c in convolutions]
    assert shapes == [(3, 12, (2, 2), None), (12, 24, (2, 2), None), (24, 48, (2, 2), None)]
    assert networks.parameters_of(network) == 324 + 24 + 2592 + 48 + 10368 + 96 + 768 * 40 + 40
    real = cifar.SmallNetwork(5).eval()
    x = torch.rand(2, 3, 32, 32)
    networks.close(real(x), real.classifier(real.features(4 * x - 2)), 1e-5)
    kinds = [type(m).__name__ for m in real.features]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU"] * 3 + ["Flatten"]


def test_one_batch_is_fitted_to_a_tenth_of_its_first_loss():
    networks.learns(cifar.SmallNetwork(10), torch.rand(20, 3, 32, 32), rate=0.02, steps=40)


def test_training_starts_from_its_seed_and_its_rate_rises_and_falls(monkeypatch):
    rates, settings = networks.steps_of(monkeypatch, cifar.training, batches=3)
    part = torch.zeros(101, 3, 32, 32), torch.zeros(101).long()
    first = cifar.train_on(part, 4, 7)
    networks.rises_and_falls(rates, peak=5e-3, at=5)
    assert settings["batch"] == 50
    again = cifar.train_on(part, 4, 7)
    other = cifar.train_on(part, 4, 8)
    weights = [n.features[0].weight for n in (first, again, other)]
    networks.close(weights[0], weights[1], 0)
    assert not torch.equal(weights[0], weights[2])
    assert first.classifier.out_features == 4


def test_shares_are_of_the_pictures_with_a_copy_of_the_rest_and_of_all():
    right = torch.tensor([True, True, False, False, False])
    planted = torch.tensor([True, False, True, False, False])
    found = cifar.shares(right, planted)
    assert found == pytest.approx({"with a copy": 1 / 2, "the rest": 1 / 3, "all": 2 / 5})


def test_the_first_pictures_are_between_0_and_1():
    part = made_up(5)
    x, y = cifar.tensors(part, 3)
    networks.close(x, torch.tensor(part.pictures[:3]) / 255, 1e-6)
    assert (y.tolist(), y.dtype, x.dtype) == (part.fine[:3].tolist(), torch.int64, torch.float32)


def test_mirroring_happens_to_half_of_the_training_pictures_only():
    network = cifar.Mirroring(nn.Identity())
    x = torch.rand(400, 1, 1, 2)
    y = network.train()(x)
    mirrored = (y == x.flip(-1)).all((1, 2, 3))
    assert 150 < mirrored.sum() < 250
    networks.close(y[~mirrored], x[~mirrored], 0)
    networks.close(network.eval()(x), x, 0)


# ---- ImageNet's folders --------------------------------------------------------------------------


def test_folders_give_what_torchvision_gives_and_labels_follow_the_sorted_ids(tmp_path):
    for name in ("n07920052", "n02123159", "n03773504"):
        (tmp_path / name).mkdir()
        for i in (2, 1):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{name}_{i}.JPEG")
    (tmp_path / "readme.txt").touch()
    paths, labels, ids = cifar.read_folders(tmp_path)
    theirs = ImageFolder(tmp_path)
    assert theirs.samples == list(zip(paths, labels, strict=True))
    assert ids == theirs.classes == ["n02123159", "n03773504", "n07920052"]
    assert labels == [0, 0, 1, 1, 2, 2]


def test_a_folder_without_pictures_says_what_to_do(tmp_path):
    (tmp_path / "n02123159.tar").touch()
    with pytest.raises(ValueError, match="extract the archive"):
        cifar.read_folders(tmp_path)
