"""What a decoder does between its products, in plain torch: the definition of correct, on any device."""

# T = tokens, D = width, H = heads, K = head size, E = 2 F

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def add_norm(x_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, eps: float, out_TD: Tensor) -> None:
    """See `kernels.pointwise`."""
    if delta_TD is not None:
        x_TD += delta_TD
    out_TD.copy_(x_TD * torch.rsqrt(x_TD.square().mean(-1, keepdim=True) + eps) * weight_D)


def add(x_TD: Tensor, delta_TD: Tensor) -> None:
    """See `kernels.pointwise`."""
    x_TD += delta_TD


def rotate(x_THK: Tensor, num_heads: int, rotation_2TK: Tensor) -> None:
    """See `kernels.pointwise`."""
    turned = x_THK[:, :num_heads]
    low, high = turned.float().chunk(2, dim=-1)
    cos, sin = rotation_2TK[:, :, None, : low.shape[-1]]
    turned.copy_(torch.cat([low * cos - high * sin, high * cos + low * sin], -1))


def swiglu(x_TE: Tensor) -> Tensor:
    """See `kernels.pointwise`."""
    gate, up = x_TE.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(x_TE.dtype)
