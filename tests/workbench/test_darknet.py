"""Darknet's weight files: the order of the floats, header, what does not fit."""

import struct

import numpy as np
import pytest
import torch
from torch import nn

from workbench import darknet


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 1, 2)
    )


def test_the_floats_lie_in_darknets_order(tmp_path):
    file = tmp_path / "n.weights"
    values = np.arange(31, dtype="<f4")  # 4 x 3 of the norm, 6 weights, a bias, 12 weights
    file.write_bytes(struct.pack("<3iq", 0, 2, 5, 32013312) + values.tobytes())
    model = network()
    assert darknet.load(model, file) == 32013312
    conv, norm, _, last = model
    assert norm.bias.tolist() == [0, 1, 2] and norm.weight.tolist() == [3, 4, 5]
    assert norm.running_mean.tolist() == [6, 7, 8]
    assert norm.running_var.tolist() == [9, 10, 11]
    assert conv.weight.flatten().tolist() == list(range(12, 18))
    assert conv.weight[1, 0].item() == 14  # filters, channels, rows, columns
    assert last.bias.tolist() == [18]
    assert last.weight.flatten().tolist() == list(range(19, 31))


def test_a_header_of_version_0_1_counts_images_with_32_bits(tmp_path):
    file = tmp_path / "n.weights"
    file.write_bytes(struct.pack("<4i", 0, 1, 0, 7) + bytes(4 * 31))
    assert darknet.load(network(), file) == 7


def test_what_is_written_is_read(tmp_path):
    one, other = network(), network()
    one[1].running_mean.uniform_()
    one[1].running_var.uniform_()
    darknet.save(one, tmp_path / "n.weights", seen=640)
    assert darknet.load(other, tmp_path / "n.weights") == 640
    x = torch.rand(2, 2, 5, 5)
    assert torch.equal(one.eval()(x), other.eval()(x))
    assert (tmp_path / "n.weights").stat().st_size == 20 + 4 * 31


@pytest.mark.parametrize(("size", "words"), [(30, "has 30 floats"), (32, "the network 31")])
def test_a_file_of_another_length_changes_nothing(tmp_path, size, words):
    file, model = tmp_path / "n.weights", network()
    file.write_bytes(struct.pack("<3iq", 0, 2, 0, 0) + bytes(4 * size))
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match=words):
        darknet.load(model, file)
    assert torch.equal(model[0].weight, before)
    (tmp_path / "short").write_bytes(b"1234")
    with pytest.raises(ValueError, match="is no weight file: it has 4 bytes"):
        darknet.load(model, tmp_path / "short")


def test_floats_are_counted_on_the_meta_device():
    with torch.device("meta"):
        assert darknet.floats(network()) == 31


def test_networks_that_no_file_holds_are_refused():
    for model, words in (
        (nn.Sequential(nn.Linear(2, 2)), "has no Linear"),
        (nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)), "neither bias nor"),
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), "1: a batch normalisation"),
        (nn.Sequential(nn.BatchNorm2d(1)), "0: a batch normalisation"),
    ):
        with pytest.raises(ValueError, match=words):
            darknet.tensors(model)
