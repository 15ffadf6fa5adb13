"""Linear maps at the precisions that a decoder is served with."""

# M = rows, I = inputs, O = outputs

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.int8_linear import encode_weight, int8_linear

Precision = Literal["fp32", "bf16", "int8"]
Linear = Callable[[Tensor], Tensor]
"""[M, I] -> [M, O], both in the precision's dtype."""


def dtype_of(precision: Precision) -> torch.dtype:
    """What hidden states, keys and values are held in. Raises ValueError for a precision there is not."""
    if precision not in ("fp32", "bf16", "int8"):
        raise ValueError(f"precision is {precision!r}; expected 'fp32', 'bf16' or 'int8'")
    return torch.float32 if precision == "fp32" else torch.bfloat16


def prepare(weight_OI: Tensor, precision: Precision) -> Linear:
    """Return x -> x W^T with the weight rounded to the precision.

    int8 rounds each token's inputs to 8 bits by their largest, and a pretrained decoder has a few inputs far larger
    than the rest: SmolLM2-135M's scores move by up to 0.8 logits, beside 0.1 of bf16.
    """
    if precision == "int8":
        code_IO, scale_O = encode_weight(weight_OI)
        return lambda x_MI: int8_linear(x_MI, code_IO, scale_O)
    weight_OI = weight_OI.to(dtype_of(precision)).contiguous()
    if weight_OI.device.type != "cpu":
        return lambda x_MI: F.linear(x_MI, weight_OI)
    from kernels.cpu.product import linear

    return lambda x_MI: linear(x_MI, weight_OI)
