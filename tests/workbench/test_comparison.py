"""What the table of all detectors records of one."""

import pytest
import torch
from torch import nn

import workbench
from workbench import boxes, comparison, scenes


def test_a_detector_is_scored_on_scenes_that_trials_do_not_see(monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 15, 1))
    noted = {}
    monkeypatch.setattr(comparison, "record", noted.__setitem__)
    monkeypatch.setattr(workbench, "sources", [])
    truth = scenes.source(64).fixed("test", 600)

    def perfect(images):
        assert torch.equal(images, truth.images[300:])
        found = []
        for places, labels in zip(truth.boxes[300:], truth.labels[300:]):
            there = labels >= 0
            ones = torch.ones(int(there.sum()))
            found.append(boxes.Detections(places[there], ones, labels[there]))
        return found

    comparison.compare(network, perfect, "toy")
    assert 0 < noted.pop("time.toy") < 60
    assert noted.pop("toy.parameters") == 3 * 4 * 9 + 4 + 4 * 15 + 15
    assert noted.pop("toy.macs") == 32 * 32 * (3 * 4 * 9 + 4 * 15)
    assert noted.pop("toy.half") == noted.pop("toy.strict") == pytest.approx(1)
    assert noted == {}


def test_one_that_finds_nothing_reaches_nothing(monkeypatch):
    nothing = boxes.Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
    noted = {}
    monkeypatch.setattr(comparison, "record", noted.__setitem__)
    monkeypatch.setattr(workbench, "sources", [])
    comparison.compare(nn.Conv2d(3, 1, 1), lambda images: [nothing] * len(images))
    assert noted["comparison.half"] == noted["comparison.strict"] == 0
