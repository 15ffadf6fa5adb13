"""LiRank's interaction blocks."""

# N = rows, D = input width, R = rank

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LowRankCross(nn.Module):
    """One DCNv2 cross layer with W = U V^T: x_{l+1} = x_0 * (U V^T x_l + b) + x_l.

    DCNv2 (arXiv 2008.13535) section 4.1; low rank as in LiRank (arXiv 2402.06859), which runs two of them. U starts
    at 0, so the layer starts as the identity.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width)
        nn.init.normal_(self.down.weight, std=1.0 / math.sqrt(width))
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x0_ND: Tensor, x_ND: Tensor) -> Tensor:
        crossed: Tensor = x0_ND * self.up(self.down(x_ND)) + x_ND
        return crossed


def segment_log_softmax(logits_N: Tensor, segment_N: Tensor, num_segments: int) -> Tensor:
    """Return float32[N]: log softmax of each row among the rows of its segment."""
    largest = logits_N.new_full((num_segments,), -torch.inf)
    largest = largest.scatter_reduce(0, segment_N, logits_N.detach(), "amax")
    shifted_N = logits_N - largest[segment_N]
    sums = logits_N.new_zeros(num_segments).index_add(0, segment_N, shifted_N.exp())
    return shifted_N - sums[segment_N].log()
