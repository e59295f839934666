"""The IDX format, the measures of digits and the label audit of notebooks/mnist.py."""

import gzip
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from loader import definitions
from networks import parameters_of, runs_on_meta

mnist = definitions("mnist")


@pytest.fixture(autouse=True)
def same_start():
    torch.manual_seed(0)


# ---- the format ----------------------------------------------------------------------------------


def test_three_labels_have_these_eleven_bytes():
    data = mnist.write_idx(np.array([3, 1, 4], np.uint8))
    assert data == bytes([0, 0, 8, 1, 0, 0, 0, 3, 3, 1, 4])


def test_the_heads_of_the_real_files_are_read():
    """The magic numbers 2051 and 2049 of the page of the set."""
    images = (2051).to_bytes(4) + b"".join(n.to_bytes(4) for n in (2, 28, 28)) + bytes(2 * 784)
    labels = (2049).to_bytes(4) + (300).to_bytes(4) + bytes(range(100)) * 3
    assert mnist.read_idx(images).shape == (2, 28, 28)
    assert mnist.read_idx(labels).tolist() == list(range(100)) * 3


def test_each_type_has_its_code_and_its_high_byte_first():
    codes = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
    for name, code in codes.items():
        data = mnist.write_idx(np.array([[1, 2]], name))
        value = np.array([1, 2], name).astype(f">{name}").tobytes()
        assert data == bytes([0, 0, code, 2, 0, 0, 0, 1, 0, 0, 0, 2]) + value
    assert mnist.read_idx(bytes.fromhex("00 00 0b 01 00000002 0001 fffe")).tolist() == [1, -2]


@pytest.mark.parametrize("name", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("sizes", [(7,), (3, 5), (2, 3, 4)])
def test_own_files_are_torchvisions(name, sizes):
    values = (np.random.default_rng(0).normal(size=sizes) * 60).astype(name)
    found = mnist.read_idx(mnist.write_idx(values))
    theirs = mnist.theirs_of(mnist.write_idx(values))
    assert found.dtype == theirs.dtype == values.dtype
    assert found.dtype.isnative and found.flags.writeable
    assert np.array_equal(found, values) and np.array_equal(theirs, values)


def test_a_big_endian_array_is_written_as_it_is():
    values = np.array([1, 258], ">i4")
    assert mnist.write_idx(values) == mnist.write_idx(values.astype("<i4"))


def test_more_axes_than_torchvision_reads_and_empty_ones():
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 1, 4)
    assert np.array_equal(mnist.read_idx(mnist.write_idx(values)), values)
    assert mnist.read_idx(mnist.write_idx(np.zeros((0, 28), np.uint8))).shape == (0, 28)


def test_many_values_along_an_axis():
    values = np.zeros(70_000, np.uint8)
    assert mnist.read_idx(mnist.write_idx(values)).shape == (70_000,)


def test_compressed_files_are_read_as_they_are():
    data = mnist.write_idx(np.arange(6, dtype=np.int32).reshape(2, 3))
    assert mnist.read_idx(gzip.compress(data)).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\x08",
        b"<html>403 Forbidden</html>",
        bytes([0, 1, 8, 1, 0, 0, 0, 0]),
        bytes([1, 0, 8, 1, 0, 0, 0, 0]),
        bytes([0, 0, 10, 1, 0, 0, 0, 0]),  # 0x0a is no type
    ],
)
def test_what_is_no_idx_file_is_refused_with_advice(data):
    with pytest.raises(ValueError, match="no IDX file, it begins with .* fetch it again"):
        mnist.read_idx(data)


def test_a_file_that_is_cut_or_too_long_is_refused():
    data = mnist.write_idx(np.arange(6, dtype=np.int16).reshape(2, 3))
    for wrong, found in ((data[:-1], 23), (data + b"\0", 25), (data[:9], 9)):
        with pytest.raises(
            ValueError, match=f"^{found} bytes where sizes .* need .* fetch it again"
        ):
            mnist.read_idx(wrong)
    with pytest.raises(ValueError, match=r"sizes \[2, 3\] need 24:"):
        mnist.read_idx(data[:-2])


def test_a_head_whose_sizes_are_cut_is_refused():
    with pytest.raises(ValueError, match="fetch it again"):
        mnist.read_idx(bytes([0, 0, 8, 3, 0, 0, 0]))


def test_a_type_that_the_format_lacks_is_not_written():
    for name in ("i8", "u2", "?"):
        with pytest.raises(ValueError, match="IDX has no type for .* convert it"):
            mnist.write_idx(np.zeros(2, name))


def test_the_four_files_have_the_true_names(tmp_path):
    rng = np.random.default_rng(0)
    parts = {
        part: (rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8))
        for part, n in (("train", 6), ("t10k", 2))
    }
    folder = tmp_path / "deep" / "raw"
    mnist.write_set(folder, parts)
    expected = mnist.archives.ARCHIVES["MNIST"]
    assert {file.name for file in folder.iterdir()} == set(expected)
    for part, (x, y) in parts.items():
        data = (folder / f"{part}-images-idx3-ubyte.gz").read_bytes()
        assert data[:2] == b"\x1f\x8b"
        assert np.array_equal(mnist.read_idx(data), x)
        data = (folder / f"{part}-labels-idx1-ubyte.gz").read_bytes()
        assert np.array_equal(mnist.read_idx(data), y)


def test_the_digits_of_the_sample_are_kept_to_the_last_bit():
    parts = mnist.own_parts()
    data = mnist.images.digits()
    assert [len(y) for _, y in parts.values()] == [4000, 1000]
    assert list(parts) == ["train", "t10k"]
    x, y = parts["t10k"]
    assert x.dtype == y.dtype == np.uint8 and x.shape == (1000, 28, 28)
    assert torch.equal(torch.tensor(x).float().div(255), data.test[0][:, 0])
    assert torch.equal(torch.tensor(y).long(), data.test[1])
    x, y = parts["train"]
    assert torch.equal(torch.tensor(x[3500:]).float().div(255), data.validation[0][:, 0])
    assert torch.equal(torch.tensor(y[:3500]).long(), data.train[1])


# ---- measures of digits --------------------------------------------------------------------------


def test_the_box_of_ink_by_hand():
    image = torch.zeros(28, 28)
    image[3, 5] = 0.01
    assert mnist.ink_box(image) == (1, 1)
    image[9, 7] = 1.0
    assert mnist.ink_box(image) == (7, 3)
    assert mnist.ink_box(torch.ones(28, 28)) == (28, 28)


def test_the_centre_of_mass_by_hand():
    x = torch.zeros(3, 1, 28, 28)
    x[0, 0, 4, 9] = 0.3
    x[1, 0, 10, 0] = 1.0
    x[1, 0, 20, 8] = 3.0
    x[2] = 1.0
    expected = torch.tensor([[4, 9], [17.5, 6], [13.5, 13.5]]).double()
    torch.testing.assert_close(mnist.centres(x), expected)


def test_the_centre_of_an_image_that_is_not_square():
    x = torch.zeros(1, 1, 4, 6)
    x[0, 0, 3, 5] = 1.0
    assert mnist.centres(x).tolist() == [[3, 5]]


def test_a_moved_image_has_its_box_in_the_middle():
    x = torch.full((2, 1, 28, 28), -0.5)
    x[0, 0, 0:20, 0:8] = 1.0
    x[1, 0, 27, 4:9] = torch.arange(5) + 1.0
    moved = mnist.boxed(x)
    assert moved.shape == x.shape and moved.min() == -0.5
    assert (moved[0, 0] == 1).nonzero().aminmax(dim=0).min.tolist() == [4, 10]
    assert (moved[0, 0] == 1).nonzero().aminmax(dim=0).max.tolist() == [23, 17]
    assert moved[1, 0, 13, 11:16].tolist() == [1, 2, 3, 4, 5]
    assert (moved[1] > -0.5).sum() == 5
    assert x[1, 0, 27, 4] == 1, "what is given stays as it is"


# ---- classifiers ---------------------------------------------------------------------------------


def test_counts_and_shapes_of_the_networks():
    assert parameters_of(mnist.linear()) == 784 * 10 + 10
    assert parameters_of(mnist.perceptron()) == 784 * 64 + 64 + 640 + 10
    assert parameters_of(mnist.Convolutional()) == 160 + 32 * 16 * 9 + 32 + 5120 + 10
    for build in (mnist.linear, mnist.perceptron, mnist.Convolutional):
        with torch.device("meta"):
            network = build()
        assert runs_on_meta(network, 3, 1, 28, 28).shape == (3, 10)


def test_the_convolutional_network_is_this_stack():
    network = mnist.Convolutional()
    x = torch.randn(2, 1, 28, 28)
    halved = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    y = F.max_pool2d(F.conv2d(halved, network.conv1.weight, network.conv1.bias).relu(), 2)
    y = F.conv2d(y, network.conv2.weight, network.conv2.bias).relu().flatten(1)
    torch.testing.assert_close(network(x), network.classifier(y))


def test_the_perceptron_has_a_bend():
    network = mnist.perceptron()
    x = torch.randn(4, 1, 28, 28)
    straight = (network(x) + network(-x)) / 2 - network(torch.zeros_like(x))
    assert straight.abs().max() > 1e-3


def easy(n):
    """Images of which each class has a bright square at a place of its own."""
    y = torch.arange(n) % 10
    x = torch.randn(n, 1, 28, 28) * 0.3
    for image, k in zip(x[:, 0], y):
        top = 9 * (k // 4)
        left = 7 * (k % 4)
        image[top : top + 7, left : left + 7] += 2.0
    return x, y


@pytest.mark.parametrize("name", ["linear", "neighbours", "perceptron", "convolutional"])
def test_each_learner_reads_images_it_has_not_seen(name):
    x, y = easy(400)
    chances = mnist.LEARNERS[name](x, y)(easy(50)[0])
    assert chances.shape == (50, 10)
    torch.testing.assert_close(chances.sum(1), torch.ones(50))
    assert (chances.argmax(1) == torch.arange(50) % 10).double().mean() > 0.9


def test_each_learner_trains_its_own_network(monkeypatch):
    met = []
    monkeypatch.setattr(mnist.training, "fit", lambda network, *a, **k: met.append(network))
    x, y = easy(60)
    for name in ("linear", "perceptron", "convolutional"):
        mnist.LEARNERS[name](x, y)
    assert [parameters_of(network) for network in met] == [7850, 50890, 9930]


def test_training_takes_four_epochs_at_the_schedule(monkeypatch):
    met = {}

    def fit(network, part, epochs, optimizer, schedule):
        met.update(
            part=part,
            epochs=epochs,
            peak=optimizer.param_groups[0]["max_lr"],
            steps=schedule.total_steps,
        )

    monkeypatch.setattr(mnist.training, "fit", fit)
    x, y = easy(120)
    mnist.trained(mnist.linear, x, y)
    assert met["part"] == (x, y) and met["epochs"] == 4
    assert met["peak"] == pytest.approx(5e-3)
    assert met["steps"] == 4 * 3, "three batches of at most 50"


def test_the_nearest_five_vote():
    x = torch.zeros(7, 1, 1, 1)
    x[:, 0, 0, 0] = torch.tensor([0.0, 1, 2, 3, 4, 10, 11])
    y = torch.tensor([7, 7, 7, 2, 2, 5, 5])
    found = mnist.neighbours(x, y)(torch.tensor([[[[0.1]]], [[[12.0]]]]))
    expected = torch.zeros(2, 10)
    expected[0, 7], expected[0, 2] = 0.6, 0.4
    expected[1, 5], expected[1, 2], expected[1, 7] = 0.4, 0.4, 0.2
    torch.testing.assert_close(found, expected)


def test_folds_are_equal_and_drawn():
    fold = mnist.folds(10)
    assert sorted(torch.bincount(fold).tolist()) == [3, 3, 4]
    assert torch.bincount(mnist.folds(5000, 4)).tolist() == [1250] * 4
    assert not torch.equal(mnist.folds(100), mnist.folds(100))


def test_no_image_is_judged_by_a_model_that_saw_it():
    x = torch.arange(12.0).view(12, 1, 1, 1)
    y = torch.arange(12) % 10
    fold = torch.tensor([0, 1, 2] * 4)
    met = []

    def learn(seen, labels):
        assert torch.equal(seen.flatten().long() % 10, labels)
        met.append(set(seen.flatten().tolist()))

        def chances(new):
            assert not met[-1] & set(new.flatten().tolist())
            assert len(met[-1]) + len(new) == 12
            return torch.eye(10)[new.flatten().long() % 10] + len(met)

        return chances

    found = mnist.out_of_fold(learn, x, y, fold)
    assert torch.equal(found, torch.eye(10)[y] + (fold + 1)[:, None])


# ---- missed by all -------------------------------------------------------------------------------


def test_expected_counts_by_hand():
    """Two classifiers, each with half of four images wrong: 1, 2 and 1 by chance."""
    missed = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]]).bool()
    y = torch.zeros(4).long()
    assert mnist.expected_counts(missed, y).tolist() == [1, 2, 1]


def test_a_class_that_all_find_hard_is_no_agreement():
    missed = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]] * 3).bool()
    y = torch.tensor([4, 4, 4, 7, 7, 7, 7, 7])
    assert mnist.expected_counts(missed, y).tolist() == [5, 0, 0, 3]


def test_expected_counts_are_a_sum_over_all_outcomes():
    missed = torch.rand(4, 50) < torch.tensor([[0.1], [0.3], [0.5], [0.2]])
    y = torch.arange(50) % 2
    expected = torch.zeros(5).double()
    for k in (0, 1):
        rates = missed[:, y == k].double().mean(1)
        for outcome in itertools.product((0, 1), repeat=4):
            each = [r if miss else 1 - r for r, miss in zip(rates, outcome)]
            expected[sum(outcome)] += 25 * torch.stack(each).prod()
    found = mnist.expected_counts(missed, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# ---- the audit -----------------------------------------------------------------------------------


def test_planted_labels_are_wrong_and_all_others_right():
    y = torch.arange(2000) % 10
    before = y.clone()
    wrong, planted = mnist.plant(y, 300)
    assert planted.sum() == 300 and planted.dtype == torch.bool
    assert torch.equal(wrong != y, planted) and torch.equal(y, before)
    assert wrong.min() == 0 and wrong.max() == 9
    moves = (wrong - y)[planted] % 10
    assert moves.unique().tolist() == list(range(1, 10))
    assert not torch.equal(mnist.plant(y, 300)[1], planted)


def test_planted_labels_are_drawn_without_repetition():
    assert mnist.plant(torch.zeros(30).long(), 30)[1].all()


def test_the_least_likely_label_comes_first():
    chances = torch.zeros(4, 10)
    chances[0, 3], chances[1, 9], chances[2, 0], chances[3, 5] = 0.9, 0.2, 0.5, 0.2
    labels = torch.tensor([3, 9, 0, 5])
    assert mnist.doubtful(chances, labels).tolist() == [1, 3, 2, 0]
    assert mnist.doubtful(chances, torch.tensor([3, 9, 1, 5])).tolist() == [2, 1, 3, 0]


def test_the_share_found_grows_with_what_is_looked_at():
    order = torch.tensor([2, 0, 3, 1])
    planted = torch.tensor([True, False, True, False])
    assert mnist.found_by(order, planted).tolist() == [0.5, 1, 1, 1]
    assert mnist.found_by(order.flip(0), planted).tolist() == [0, 0, 0.5, 1]


def test_another_set_is_refused_in_the_sample_profile(monkeypatch):
    mnist_fashion = mnist.own_parts
    monkeypatch.setitem(mnist_fashion.__globals__, "SET", "FashionMNIST")
    with pytest.raises(RuntimeError, match="FashionMNIST .* set PROFILE=full"):
        mnist_fashion()
