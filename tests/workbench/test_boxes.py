"""What is kept of a detector's output, its average precision, and the pictures."""

import math

import matplotlib.pyplot as plt
import pytest
import torch

from workbench import boxes

BOXES = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 40]])


def scenes(*objects, size=64):
    """One scene for each list of (box, label) or (box, label, ignored)."""
    M = max(map(len, objects))
    found = boxes.Scenes(
        torch.zeros(len(objects), 3, size, size),
        torch.zeros(len(objects), M, 4),
        torch.full((len(objects), M), -1),
        torch.zeros(len(objects), M, dtype=torch.bool),
    )
    for n, one in enumerate(objects):
        for m, (box, label, *ignored) in enumerate(one):
            found.boxes[n, m] = torch.tensor(box)
            found.labels[n, m] = label
            found.ignored[n, m] = bool(ignored)
    return found


def detections(*entries):
    places, scores, labels = zip(*entries) if entries else ((), (), ())
    return boxes.Detections(
        torch.tensor(places, dtype=torch.float32).view(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.long),
    )


def test_of_two_that_overlap_the_better_one_stays():
    scores = torch.tensor([[0.6, 0.0], [0.9, 0.0], [0.3, 0.2]])
    kept = boxes.select(BOXES, scores)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.3, 0.2])
    assert kept.labels.tolist() == [0, 0, 1]
    assert torch.equal(kept.boxes, BOXES[[1, 2, 2]])


def test_classes_do_not_suppress_one_another_and_limits_hold():
    scores = torch.tensor([[0.6, 0.0], [0.0, 0.9], [0.04, 0.05]])
    assert boxes.select(BOXES, scores).labels.tolist() == [1, 0, 1]
    assert boxes.select(BOXES, scores, least=0.7).labels.tolist() == [1]
    assert boxes.select(BOXES, scores, most=2).scores.tolist() == pytest.approx([0.9, 0.6])
    same = torch.tensor([[0.6], [0.9], [0.0]])  # their IoU is 9 / 11
    assert len(boxes.select(BOXES, same, overlap=0.82).scores) == 2
    assert len(boxes.select(BOXES, same, overlap=0.81).scores) == 1


def test_nothing_found_is_an_empty_detection():
    kept = boxes.select(torch.zeros(0, 4), torch.zeros(0, 3))
    assert kept.boxes.shape == (0, 4) and kept.scores.shape == kept.labels.shape == (0,)


def test_a_perfect_detector_has_average_precision_one():
    truth = scenes([([0, 0, 10, 20], 0), ([30, 30, 50, 50], 2)], [([5, 5, 15, 25], 0)])
    found = [
        detections(([0, 0, 10, 20], 0.3, 0), ([30, 30, 50, 50], 0.9, 2)),
        detections(([5, 5, 15, 25], 0.5, 0)),
    ]
    score = boxes.average_precision(found, truth, classes=3)
    assert score == {"mAP@0.5": pytest.approx(1), "mAP@0.5:0.95": pytest.approx(1)}


def test_a_case_by_hand():
    """Right, wrong, right for two objects: precision 1 up to recall 1/2, then 2/3."""
    truth = scenes([([0, 0, 10, 10], 0), ([30, 30, 40, 40], 0)])
    found = [
        detections(([0, 0, 10, 10], 0.9, 0), ([50, 0, 60, 10], 0.8, 0), ([30, 30, 40, 40], 0.7, 0))
    ]
    score = boxes.average_precision(found, truth, classes=1)["mAP@0.5"]
    assert score == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_the_mean_over_overlaps_counts_how_well_boxes_fit():
    """IoU 100 / 140 = 0.71: right at 0.50 to 0.70, five of ten."""
    truth = scenes([([0, 0, 10, 10], 0)])
    found = [detections(([0, 0, 10, 14], 0.9, 0))]
    score = boxes.average_precision(found, truth, classes=1)
    assert score == {"mAP@0.5": pytest.approx(1), "mAP@0.5:0.95": pytest.approx(0.5)}


def test_a_class_without_objects_does_not_count_and_wrong_classes_do():
    truth = scenes([([0, 0, 10, 10], 0), ([30, 30, 40, 40], 1)])
    found = [detections(([0, 0, 10, 10], 0.9, 0), ([30, 30, 40, 40], 0.9, 3))]
    assert boxes.average_precision(found, truth, classes=5)["mAP@0.5"] == pytest.approx(0.5)


def test_an_ignored_object_is_neither_missed_nor_found():
    truth = scenes([([0, 0, 10, 10], 0), ([30, 30, 40, 40], 0, "ignored")])
    without = [detections(([0, 0, 10, 10], 0.5, 0))]
    with_it = [detections(([0, 0, 10, 10], 0.5, 0), ([30, 30, 40, 40], 0.9, 0))]
    for found in (without, with_it):
        assert boxes.average_precision(found, truth, classes=1)["mAP@0.5"] == pytest.approx(1)


def test_sizes_go_by_the_longer_side():
    objects = [([0, 0, 3, 12], 0), ([20, 20, 38, 38], 0), ([20, 40, 60, 46], 0)]
    truth = scenes(objects)
    found = [detections((objects[0][0], 0.9, 0), (objects[2][0], 0.8, 0))]
    score = boxes.average_precision(found, truth, classes=1, sides=(16, 24))
    assert [score[k] for k in ("small", "medium", "large")] == pytest.approx([1, 0, 1])


def test_no_detection_is_zero_and_no_object_is_not_a_number():
    truth = scenes([([0, 0, 10, 10], 0)])
    assert boxes.average_precision([detections()], truth, classes=1)["mAP@0.5"] == 0
    nothing = boxes.Scenes(*truth[:2], truth.labels.fill_(-1), truth.ignored)
    found = [detections(([0, 0, 10, 10], 0.9, 0))]
    assert math.isnan(boxes.average_precision(found, nothing, classes=1)["mAP@0.5"])


def test_nothing_is_printed(capsys):
    boxes.average_precision([detections()], scenes([([0, 0, 9, 9], 0)]), classes=1)
    assert capsys.readouterr() == ("", "")


def test_as_many_detections_as_scenes_are_needed():
    with pytest.raises(ValueError, match="detections of 1 scenes, but 2 scenes"):
        boxes.average_precision(
            [detections()], scenes([([0, 0, 9, 9], 0)], [([0, 0, 9, 9], 0)]), classes=1
        )


@pytest.mark.filterwarnings("ignore:__array__")  # torch, as matplotlib asks it
def test_pictures_show_what_is_there_in_white_and_what_was_found_in_colour():
    truth = scenes([([8, 20, 20, 40], 1)], [([30, 30, 50, 50], 0)])
    found = [detections(([10, 22, 22, 42], 0.876, 1)), detections()]
    boxes.show(truth, found, "ab", columns=2)
    first, second = (axes.images[0].get_array() for axes in plt.gcf().axes)
    assert first.shape == (256, 256, 3)
    assert tuple(first[80:82, 34, :].mean(0)) == pytest.approx((1, 1, 1), abs=0.01)
    yellow = (1, 210 / 255, 63 / 255)
    assert tuple(first[88:90, 60].mean(0)) == pytest.approx(yellow, abs=0.02)
    assert ((first - yellow) ** 2).sum(-1).min() < 0.001  # the label, above the box
    above = first[60:85, 40:120].reshape(-1, 3)
    assert (abs(above - yellow).max(1) < 0.1).sum() > 50
    assert set(second.ravel().round(3).tolist()) == {0, 1}
    plt.close("all")
