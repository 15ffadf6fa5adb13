"""Sums within the requests of a batch."""

# N = rows

from __future__ import annotations

import torch
from torch import Tensor


def segment_log_softmax(logits_N: Tensor, segment_N: Tensor, num_segments: int) -> Tensor:
    """Return float32[N]: log softmax of each row among the rows of its segment."""
    largest = logits_N.new_full((num_segments,), -torch.inf)
    largest = largest.scatter_reduce(0, segment_N, logits_N.detach(), "amax")
    shifted_N = logits_N - largest[segment_N]
    sums = logits_N.new_zeros(num_segments).index_add(0, segment_N, shifted_N.exp())
    return shifted_N - sums[segment_N].log()
