"""Overlaps with objects, and mistakes."""

import torch
from torchvision import ops

from networks import close
from workbench import boxes, detectors

TRUTH = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 0, 0]])
LABELS = torch.tensor([3, 5, -1])


def test_the_largest_overlap_is_that_of_torchvision():
    torch.manual_seed(0)
    corner, size = torch.rand(3, 9, 2), torch.rand(3, 9, 2) + 0.1
    places = torch.cat((corner, corner + size), 2)
    found = detectors.best_overlap(places[:, :5], places[:, 5:])
    for k in range(3):
        close(found[k], ops.box_iou(places[k, :5], places[k, 5:]).amax(1))
    nothing = detectors.best_overlap(places, torch.zeros(3, 2, 4))
    close(nothing, torch.zeros(3, 9), 0)


def mistakes(found):
    part = boxes.Scenes(torch.zeros(1, 3, 32, 32), TRUTH[None], LABELS[None], LABELS[None] < -1)
    (count,) = detectors.mistakes([found], part)
    return count


def test_mistakes_are_what_is_missed_and_what_is_wrong():
    places = torch.tensor([[0.0, 0, 10, 6], [20, 20, 30, 24], [20, 20, 30, 30]])
    found = boxes.Detections(places, torch.ones(3), torch.tensor([3, 5, 4]))
    assert mistakes(found) == 3
    found.boxes[0, 3] = 5.0  # an IoU of one half is enough
    assert mistakes(found) == 3
    right = boxes.Detections(TRUTH[:2], torch.ones(2), LABELS[:2])
    assert mistakes(right) == 0
    half = boxes.Detections(torch.tensor([[0.0, 0, 10, 5]]), torch.ones(1), torch.tensor([3]))
    assert mistakes(half) == 1
    nothing = boxes.Detections(TRUTH[:0], torch.ones(0), LABELS[:0])
    assert mistakes(nothing) == 2


def test_each_scene_has_its_own_mistakes():
    empty = boxes.Detections(TRUTH[:0], torch.ones(0), LABELS[:0])
    right = boxes.Detections(TRUTH[:2], torch.ones(2), LABELS[:2])
    both = TRUTH.expand(2, -1, -1), LABELS.expand(2, -1)
    part = boxes.Scenes(torch.zeros(2, 3, 32, 32), *both, both[1] < -1)
    assert detectors.mistakes([empty, right], part) == [2, 0]
    assert detectors.mistakes([right, empty], part) == [0, 2]
