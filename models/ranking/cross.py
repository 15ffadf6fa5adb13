"""Cross layers: products of the input with projections of itself."""

# N = rows, D = input width, R = rank

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_TEMPERATURES = (0.1, 10.0)


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
        """Return float32[N, D]."""
        crossed: Tensor = x0_ND * self.up(self.down(x_ND)) + x_ND
        return crossed


class ResidualCross(nn.Module):
    """A low-rank cross layer with an attention branch beside it.

    v, q, k = V^T x_l, Q^T x_l, K^T x_l, each in R^R;  A = softmax_rows(q k^T / tau), R x R per row of the batch;
    x_{l+1} = x_l + x_0 * (U V_p^T x_l + b) + gamma * x_0 * (U_a (A v + v) + b_a).

    Residual DCN of LiRank (arXiv 2402.06859), section 3.2: three down projections, a softmax of scores with a tuned
    temperature between down and up projection, a skip around it, all of it parallel to the plain layer. Departures:
    gamma, one factor per coordinate, starts at 0, so that training starts from the low-rank layer; the temperature is
    learned, held in 0.1..10. The paper leaves open how the branches join; they are added.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.plain = LowRankCross(width, rank)
        self.value, self.query, self.key = (nn.Linear(width, rank, bias=False) for _ in range(3))
        for projection in (self.value, self.query, self.key):
            nn.init.normal_(projection.weight, std=1.0 / math.sqrt(width))
        self.up = nn.Linear(rank, width)
        nn.init.normal_(self.up.weight, std=1.0 / math.sqrt(rank))  # not 0 beside gamma: neither would have a gradient
        nn.init.zeros_(self.up.bias)
        self.raw_temperature = nn.Parameter(torch.tensor(math.log(math.e - 1.0)))
        self.gamma = nn.Parameter(torch.zeros(width))

    def temperature(self) -> Tensor:
        """Return tau, which starts at 1."""
        return functional.softplus(self.raw_temperature).clamp(*_TEMPERATURES)

    def attend(self, x_ND: Tensor) -> Tensor:
        """Return float32[N, R]: A v, before the skip."""
        scores_NRR = self.query(x_ND)[:, :, None] * (self.key(x_ND) / self.temperature())[:, None, :]
        attended: Tensor = (torch.softmax(scores_NRR, dim=2) @ self.value(x_ND)[:, :, None]).squeeze(2)
        return attended

    def forward(self, x0_ND: Tensor, x_ND: Tensor) -> Tensor:
        """Return float32[N, D]."""
        branch_ND = x0_ND * self.up(self.attend(x_ND) + self.value(x_ND))
        crossed: Tensor = self.plain(x0_ND, x_ND) + self.gamma * branch_ND
        return crossed
