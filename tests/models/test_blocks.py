from __future__ import annotations

import torch

from models.ranking.blocks import segment_log_softmax


def test_segment_log_softmax_is_log_softmax_within_each_segment() -> None:
    torch.manual_seed(0)
    logits = 100 * torch.randn(9)
    segment = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3, 3])
    found = segment_log_softmax(logits, segment, 4)
    for number in (0, 1, 3):
        expected = torch.log_softmax(logits[segment == number], dim=0)
        torch.testing.assert_close(found[segment == number], expected)
