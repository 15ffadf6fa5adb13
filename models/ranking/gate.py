"""Hidden layers that gate themselves."""

# N = rows, H = hidden width, R = rank of a gate

from __future__ import annotations

import math

from torch import Tensor, nn


class LowRankGate(nn.Module):
    """h * 2 sigmoid(B A h + c): each hidden unit scaled by a factor in 0..2 that depends on the others.

    Dense gating of LiRank (arXiv 2402.06859), section 3.3, after GateNet (arXiv 2007.03519). Departures: the gate's
    matrix has rank R, as a full one would cost as much as the layer it gates; B and c start at 0 and the sigmoid is
    doubled, so the gate starts as the identity.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width)
        nn.init.normal_(self.down.weight, std=1.0 / math.sqrt(width))
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """Return float32[N, H]."""
        gated: Tensor = hidden_NH * (2.0 * self.up(self.down(hidden_NH)).sigmoid())
        return gated


def gated_mlp(width: int, hidden: tuple[int, ...], dropout: float, gate_rank: int) -> nn.Sequential:
    """Return linear, ReLU, gate and dropout per hidden width; no gates when `gate_rank` is 0."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        layers += [LowRankGate(size, gate_rank)] if gate_rank else []
        layers += [nn.Dropout(dropout)]
        width = size
    return nn.Sequential(*layers)
