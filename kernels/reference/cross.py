"""Low-rank cross layer in plain torch: the definition of correct, on any device."""

# N = rows, D = width, R = rank

from __future__ import annotations

from torch import Tensor


def low_rank_cross(x0_ND: Tensor, x_ND: Tensor, down_RD: Tensor, up_DR: Tensor, bias_D: Tensor) -> Tensor:
    """See `kernels.cross`; arguments are checked there."""
    x0, x, down, up, bias = (tensor.float() for tensor in (x0_ND, x_ND, down_RD, up_DR, bias_D))
    return (x0 * (x @ down.T @ up.T + bias) + x).to(x_ND.dtype)
