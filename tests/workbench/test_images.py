"""Digits, patches of photographs, and one photograph."""

from itertools import combinations

import numpy as np
import pytest
import torch

from workbench import images


def test_digits_are_three_fixed_balanced_parts():
    data = images.digits()
    parts = data[:3]
    assert [len(y) for _, y in parts] == [3500, 500, 1000]
    for x, y in parts:
        assert x.shape[1:] == (1, 28, 28)
        assert y.bincount().unique().numel() == 1
        assert x.min() >= 0 and x.max() == 1
    assert data.train[1][:20].unique().numel() > 5  # shuffled
    torch.testing.assert_close(images.digits().test[0], data.test[0])


def test_digits_can_be_resized_and_given_three_channels():
    x, _ = images.digits(size=32, channels=3).test
    assert x.shape == (1000, 3, 32, 32)
    torch.testing.assert_close(x[:, 0], x[:, 2])


def test_patches_are_three_fixed_balanced_parts_in_colour():
    data = images.patches()
    assert [len(y) for _, y in data[:3]] == [3000, 500, 1000]
    for x, y in data[:3]:
        assert x.shape[1:] == (3, 32, 32)
        assert y.bincount().tolist() == [len(y) // 10] * 10
        assert x.min() >= 0 and x.max() <= 1
        assert (x[:, 0] - x[:, 2]).abs().mean() > 0.05  # not grey
    assert data.classes[0] == "astronaut" and len(set(data.classes)) == 10
    assert data.train[1][:20].unique().numel() > 5  # shuffled
    torch.testing.assert_close(images.patches().test[0], data.test[0])
    assert images.patches(size=64).test[0].shape == (1000, 3, 64, 64)


@pytest.mark.parametrize("read", [images.digits, images.patches])
def test_no_two_parts_share_a_picture(read):
    seen = [{x.numpy().tobytes() for x in part[0]} for part in read()[:3]]
    for one, other in combinations(seen, 2):
        assert not one & other


@pytest.mark.parametrize("part", [(0.0, 0.6), (0.6, 0.7), (0.7, 1.0)])
def test_a_patch_stays_in_its_part_of_the_photograph(part):
    """The picture holds its own columns, so that a patch tells where it was cut."""
    W = 451  # the narrowest photograph: a tenth of it is just wider than a patch
    picture = torch.arange(W).expand(3, 40, W)
    rng = np.random.default_rng(0)
    cuts = torch.stack([images.cut(picture, *part, rng) for _ in range(500)])
    assert cuts.shape == (500, 3, 32, 32)
    assert cuts.min() >= part[0] * W and cuts.max() + 1 <= part[1] * W
    assert cuts.unique().numel() >= (part[1] - part[0]) * W - 2  # all of the part is used


def test_a_patch_is_not_cut_where_there_is_nothing_to_see():
    rng = np.random.default_rng(0)
    picture = torch.zeros(3, 100, 200, dtype=torch.uint8)
    with pytest.raises(ValueError, match="no patch with anything to see between 0% and 60%"):
        images.cut(picture, 0.0, 0.6, rng)
    picture[:, 60:, :100] = torch.arange(100) * 2
    for _ in range(50):
        assert images.cut(picture, 0.0, 0.6, rng).max() > 0


def test_the_photograph_is_an_image_of_the_size_asked_for():
    x = images.photograph(64, 48)
    assert x.shape == (1, 3, 64, 48)
    assert 0 <= x.min() < 0.2 and 0.8 < x.max() <= 1


def test_all_parts_are_scaled_by_the_training_images_all_of_them():
    y = torch.arange(4)
    parts = [(torch.tensor([k, 2.0, 4.0, 9.0 + k]).view(4, 1, 1, 1), y) for k in (1.0, 3.0, 5.0)]
    train, validation, test = images.standardised(images.Data(*parts, ("a",)), first=2)
    mean, std = parts[0][0].mean(), parts[0][0].std()
    for scaled, (x, labels), count in zip((train, validation, test), parts, (2, 4, 4), strict=True):
        torch.testing.assert_close(scaled[0] * std + mean, x[:count])
        torch.testing.assert_close(scaled[1], labels[:count])
