"""Digits on photographs: the boxes are exact, the parts share nothing, seeds decide."""

import pytest
import torch
from torchvision.ops import box_iou

from workbench import annotated, scenes, seed


@pytest.fixture(scope="module")
def source():
    return scenes.source(64)


def test_scenes_have_the_shapes_that_are_promised(source):
    found = source.fixed("test", 120)
    assert found.images.shape == (120, 3, 64, 64)
    assert found.boxes.shape == (120, 4, 4) and found.labels.shape == (120, 4)
    assert found.images.min() >= 0 and found.images.max() <= 1
    assert not found.ignored.any()
    assert found.labels.min() == -1 and found.labels.max() == 9
    count = (found.labels >= 0).sum(1)
    assert count.unique().tolist() == [1, 2, 3, 4]
    there = torch.arange(4) < count[:, None]  # objects first, then nothing
    assert torch.equal(found.labels >= 0, there)
    assert torch.equal((found.boxes != 0).any(-1), there)


def test_boxes_lie_within_the_image_and_have_the_sides_asked_for(source):
    found = source.fixed("train", 400)
    boxes = found.boxes[found.labels >= 0]
    assert boxes.min() >= 0 and boxes.max() <= 64
    side = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    assert side.min() >= 12 and side.max() <= 28.001
    assert (side < 18.33).float().mean() == pytest.approx(0.5, abs=0.08)  # log-uniform


def test_a_box_holds_its_digit_exactly(source, monkeypatch):
    """On black, in white: what is bright begins and ends where the box does, within a pixel."""
    monkeypatch.setattr(scenes, "COLOURS", torch.ones(1, 3))
    monkeypatch.setattr(source, "photographs", [torch.zeros(3, 64, 400)])
    found = source.fixed("validation", 200)
    alone = (found.labels >= 0).sum(1) == 1
    bright = scenes.ink_box(found.images[alone][:, :1])
    assert alone.sum() > 20
    assert (bright - found.boxes[alone, 0]).abs().max() < 1.2
    assert (bright - found.boxes[alone, 0]).mean().abs() < 0.2


def test_a_digit_is_not_covered_by_more_than_a_tenth(source):
    found = source.fixed("train", 300)
    for boxes, labels in zip(found.boxes, found.labels):
        boxes = boxes[labels >= 0]
        for i, box in enumerate(boxes):
            others = torch.cat([boxes[:i], boxes[i + 1 :]])
            assert (scenes.covered(box, others) <= 0.1).all()
    several = found.boxes[(found.labels >= 0).sum(1) > 1]
    assert max(box_iou(b, b).fill_diagonal_(0).max() for b in several) > 0


def test_covered_is_the_share_of_the_smaller_box():
    a = torch.tensor([0.0, 0, 10, 10])
    others = torch.tensor([[5.0, 5, 9, 9], [8, 0, 12, 4], [10, 0, 12, 4], [0, 0, 0, 0]])
    assert scenes.covered(a, others).tolist() == [1, 0.5, 0, 0]


def test_an_ink_box_goes_from_the_first_written_pixel_to_behind_the_last():
    digits = torch.zeros(2, 1, 8, 8)
    digits[0, 0, 2:5, 3] = 1
    digits[1, 0, 7, :] = 0.21
    digits[1, 0, 0, :] = 0.19
    assert scenes.ink_box(digits).tolist() == [[3, 2, 4, 5], [0, 7, 8, 8]]


def test_the_label_is_that_of_the_digit_that_is_drawn(source):
    """Digits of one class alone."""
    x, y = source.digits["train"]
    only = scenes.DigitScenes(64)
    only.digits["train"] = (x[y == 3], y[y == 3])
    labels = only.fixed("train", 50).labels
    assert labels.unique().tolist() == [-1, 3]


def test_fixed_scenes_are_always_the_same_and_begin_alike(source):
    seed(1)
    once, again = source.fixed("test", 60), scenes.source(64).fixed("test", 20)
    assert torch.equal(once.images[:20], again.images)
    assert torch.equal(once.boxes[:20], again.boxes)
    other = source.fixed("validation", 20)
    assert not torch.equal(other.boxes, again.boxes)


def test_batches_are_new_scenes_that_the_seed_decides(source):
    seed(0)
    first, second = source.batches(2, 8)
    seed(0)
    again = next(source.batches(1, 8))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, second.images)
    assert first.images.shape == (8, 3, 64, 64)
    assert not torch.equal(first.images, source.fixed("train", 8).images)


def test_parts_have_digits_and_places_of_their_own(source, monkeypatch):
    whole = torch.arange(1000).expand(3, 64, 1000).float()
    monkeypatch.setattr(source, "photographs", [whole])
    seen = {}
    for part in scenes.SPANS:
        generator = torch.Generator().manual_seed(0)
        cuts = source.background(part, 300, generator) * 510
        seen[part] = (cuts.min().round().item(), cuts.max().round().item())
    assert 0 <= seen["train"][0] < 20 and 480 < seen["train"][1] < 500
    assert 500 <= seen["validation"][0] < 520 and 730 < seen["validation"][1] < 750
    assert 750 <= seen["test"][0] < 770 and 980 < seen["test"][1] < 1000
    digits = [{x.numpy().tobytes() for x in part[0]} for part in source.digits.values()]
    assert not digits[0] & digits[1] and not digits[1] & digits[2] and not digits[0] & digits[2]


def test_photographs_are_dimmed_to_half(source):
    cuts = source.background("train", 50, torch.Generator().manual_seed(0))
    assert 0.3 < cuts.max() <= 0.5


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="least <= most <= 64"):
        scenes.source(64, sides=(12, 80))
    with pytest.raises(ValueError, match="no room for 300 pixels"):
        scenes.source(300).fixed("test", 1)


def test_the_full_profile_takes_photographs_with_boxes(monkeypatch):
    monkeypatch.setattr("workbench.PROFILE", "full")
    asked = []
    monkeypatch.setattr(annotated, "Photographs", lambda *which: asked.append(which))
    scenes.source(96, sides=(10, 20))
    assert asked == [("VOC", 96)]
