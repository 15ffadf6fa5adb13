"""An isotonic layer inside the network: monotone calibration trained with everything else."""

# N = rows, T = tasks, C = contexts, K = buckets

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

LOWEST, HIGHEST, STEP = -17.0, 8.0, 0.05
NUM_BUCKETS = round((HIGHEST - LOWEST) / STEP)
_UNIT_SLOPE = math.log(math.e - 1.0)
"""softplus of it is 1."""


class IsotonicLayer(nn.Module):
    """A piecewise linear, strictly increasing map of each task's logit, which may depend on a context.

    z = y + b_c + step * sum_{j<i} (s_j - 1) + (y - edge_i) * (s_i - 1),  i the bucket of y,
    s_j = softplus(w_j + e_cj + ln(e - 1)) > 0.

    LiRank (arXiv 2402.06859), section 3.4, with range and step of its authors' follow-up (arXiv 2603.06589): 500
    buckets of 0.05 over -17..8. Written as a correction of y, it is the identity at the start to the last bit (w, e
    and b are 0). Departures: softplus in place of ReLU, so that no bucket dies and the map is strictly monotone; y
    outside the range keeps its distance to the range's end, so that order is kept there too.

    Context 0 is the reference: it has no e and no b. The others (positions, devices: what the examples say) learn how
    they differ from it; in service every candidate has context 0, which takes the position's share out of the score.
    """

    def __init__(self, num_tasks: int, num_contexts: int = 1) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(num_tasks, NUM_BUCKETS))
        self.bias = nn.Parameter(torch.zeros(num_tasks))
        self.context_slope = nn.Parameter(torch.zeros(num_contexts - 1, num_tasks, NUM_BUCKETS))
        self.context_bias = nn.Parameter(torch.zeros(num_contexts - 1, num_tasks))

    def forward(self, logits_NT: Tensor, context_N: Tensor) -> Tensor:
        """Return float32[N, T].  context_N: int64[N], 0 up to the number of contexts."""
        excess_CTK = self._excess()
        # Of the edges of all buckets: what the buckets below add.
        below_CTK = functional.pad(torch.cumsum(STEP * excess_CTK, dim=2), (1, 0))[:, :, :-1]
        bias_CT = functional.pad(self.context_bias, (0, 0, 1, 0)) + self.bias
        inside_NT = logits_NT.clamp(LOWEST, HIGHEST)
        bucket_NT = ((inside_NT.detach() - LOWEST) / STEP).floor().clamp(0, NUM_BUCKETS - 1)
        rest_NT = inside_NT - (LOWEST + STEP * bucket_NT)
        num_tasks = logits_NT.shape[1]
        curve_NT = context_N[:, None] * num_tasks + torch.arange(num_tasks, device=logits_NT.device)
        place_NT = curve_NT * NUM_BUCKETS + bucket_NT.long()
        added_NT = below_CTK.flatten()[place_NT] + rest_NT * excess_CTK.flatten()[place_NT]
        return logits_NT + bias_CT[context_N] + added_NT

    def roughness(self) -> Tensor:
        """Return the mean square of the slopes' second differences: a penalty that keeps the maps smooth."""
        return (torch.diff(self._excess(), n=2, dim=2) / STEP).square().mean()

    def _excess(self) -> Tensor:
        """Return float32[C, T, K]: slopes less 1."""
        raw_CTK = functional.pad(self.context_slope, (0, 0, 0, 0, 1, 0)) + self.slope
        return functional.softplus(raw_CTK + _UNIT_SLOPE) - 1.0
