"""x W^T of 8-bit codes in plain torch: the definition of correct, on any device."""

# M = rows, I = inputs, O = outputs

from __future__ import annotations

import torch
from torch import Tensor


def int8_linear(x_MI: Tensor, code_IO: Tensor, scale_O: Tensor) -> Tensor:
    """See `kernels.int8_linear`; arguments are checked there."""
    wide_MI = x_MI.float()
    scale_M1 = (wide_MI.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    code_MI = (wide_MI / scale_M1).round().clamp(-127, 127)
    # float64 holds every sum of products of codes exactly.
    return ((code_MI.double() @ code_IO.double()).float() * scale_M1 * scale_O).to(x_MI.dtype)
