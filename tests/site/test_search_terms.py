"""Search: what the index keeps of a text."""

import pytest

from search_terms import words


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("learned filters", ["learned", "filters"]),
        ("BasicBlock", ["BasicBlock", "Basic", "Block"]),
        ("conv2d_relu", ["conv2d_relu", "conv2d", "relu"]),
        ("LeNet5, 3x3", ["LeNet5", "Net5", "3x3"]),
        ("深度残差网络", ["深度", "度残", "残差", "差网", "网络"]),
        ("网", ["网"]),
        ("用ResNet训练", ["用", "ResNet", "Res", "Net", "训练"]),
    ],
)
def test_words_identifiers_and_chinese_are_kept_with_their_parts(text, kept):
    assert words(text) == kept
