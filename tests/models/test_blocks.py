from __future__ import annotations

import torch

from models.ranking.blocks import LowRankCross, segment_log_softmax


def test_a_low_rank_cross_layer_is_the_dense_formula() -> None:
    torch.manual_seed(0)
    layer = LowRankCross(width=7, rank=3)
    torch.nn.init.normal_(layer.up.weight)
    torch.nn.init.normal_(layer.up.bias)
    x0, x = torch.randn(5, 7), torch.randn(5, 7)
    dense = layer.up.weight @ layer.down.weight
    torch.testing.assert_close(layer(x0, x), x0 * (x @ dense.T + layer.up.bias) + x)
    assert torch.linalg.matrix_rank(dense) == 3


def test_a_cross_layer_starts_as_the_identity() -> None:
    x0, x = torch.randn(5, 7), torch.randn(5, 7)
    torch.testing.assert_close(LowRankCross(7, 3)(x0, x), x)


def test_segment_log_softmax_is_log_softmax_within_each_segment() -> None:
    torch.manual_seed(0)
    logits = 100 * torch.randn(9)
    segment = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3, 3])
    found = segment_log_softmax(logits, segment, 4)
    for number in (0, 1, 3):
        expected = torch.log_softmax(logits[segment == number], dim=0)
        torch.testing.assert_close(found[segment == number], expected)
