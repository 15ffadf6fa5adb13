"""x W^T of 8-bit codes by torch's integer product (VNNI); the passes before and after it compiled."""

# M = rows, I = inputs, O = outputs

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.floats import as_array, compiled_loose, in_parts, larger, narrow, widen

_ZERO, _HALF, _ONE, _LARGEST = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(127.0)
_TINY = np.finfo(np.float32).tiny


@compiled_loose
def _encode(x_MI: Any, code_MI: Any, scale_M: Any, start: int, stop: int) -> None:
    for row in range(start, stop):
        x_I, code_I = x_MI[row], code_MI[row]
        largest = _ZERO
        for column in range(len(x_I)):
            largest = larger(largest, abs(widen(x_I[column])))
        scale = max(np.float32(largest / _LARGEST), _TINY)
        inverse = np.float32(_ONE / scale)
        for column in range(len(x_I)):
            value = np.float32(widen(x_I[column]) * inverse)
            # Away from zero; rounding to even is no vector code, and ties are as good either way.
            code_I[column] = np.int8(np.int32(value + (_HALF if value >= _ZERO else -_HALF)))
        scale_M[row] = scale


@compiled_loose
def _decode(sum_MO: Any, scale_M: Any, scale_O: Any, out_MO: Any, start: int, stop: int) -> None:
    for row in range(start, stop):
        sum_O, out_O, scale = sum_MO[row], out_MO[row], scale_M[row]
        for column in range(len(sum_O)):
            out_O[column] = narrow(np.float32(np.float32(sum_O[column]) * scale * scale_O[column]), out_MO)


def int8_linear(x_MI: Tensor, code_IO: Tensor, scale_O: Tensor) -> Tensor:
    """See `kernels.int8_linear`; arguments are checked there."""
    rows, inputs = x_MI.shape
    code_MI = torch.empty(rows, inputs, dtype=torch.int8)
    scale_M = torch.empty(rows)
    in_parts(_encode, rows, rows * inputs // 4, as_array(x_MI), as_array(code_MI), as_array(scale_M))
    sum_MO = torch._int_mm(code_MI, code_IO)
    out_MO = torch.empty(sum_MO.shape, dtype=x_MI.dtype)
    in_parts(
        _decode, rows, sum_MO.numel() // 5, as_array(sum_MO), as_array(scale_M), as_array(scale_O), as_array(out_MO)
    )
    return out_MO
