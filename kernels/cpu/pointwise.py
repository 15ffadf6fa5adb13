"""What a decoder does between its products, compiled: one pass over memory where torch's operators take several."""

# T = tokens, D = width, H = heads, K = head size, F = half a row

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, empty

from kernels.cpu.floats import as_array, compiled_loose, exp2, in_parts, narrow, widen

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_MINUS_LOG2_E = np.float32(-1.4426950408889634)


@compiled_loose
def _add(x_TD: Any, delta_TD: Any, start: int, stop: int) -> None:
    for row in range(start, stop):
        for column in range(x_TD.shape[1]):
            x_TD[row, column] += widen(delta_TD[row, column])


@compiled_loose
def _norm(x_TD: Any, weight_D: Any, eps: Any, out_TD: Any, start: int, stop: int) -> None:
    width = x_TD.shape[1]
    for row in range(start, stop):
        total = _ZERO
        for column in range(width):
            total += x_TD[row, column] * x_TD[row, column]
        scale = np.float32(_ONE / np.sqrt(total / np.float32(width) + eps))
        for column in range(width):
            out_TD[row, column] = narrow(np.float32(x_TD[row, column] * scale * weight_D[column]), out_TD)


@compiled_loose
def _add_norm(x_TD: Any, delta_TD: Any, weight_D: Any, eps: Any, out_TD: Any, start: int, stop: int) -> None:
    for row in range(start, stop):  # row by row: the second pass finds it in the cache
        _add(x_TD, delta_TD, row, row + 1)
        _norm(x_TD, weight_D, eps, out_TD, row, row + 1)


@compiled_loose
def _rotate(x_THK: Any, num_heads: int, rotation_2TK: Any, start: int, stop: int) -> None:
    half = x_THK.shape[2] // 2
    for row in range(start, stop):
        cos_K, sin_K = rotation_2TK[0, row, :half], rotation_2TK[1, row, :half]
        for head in range(num_heads):
            low_K, high_K = x_THK[row, head, :half], x_THK[row, head, half:]
            for place in range(half):
                low, high, cos, sin = widen(low_K[place]), widen(high_K[place]), cos_K[place], sin_K[place]
                low_K[place] = narrow(np.float32(low * cos - high * sin), x_THK)
                high_K[place] = narrow(np.float32(high * cos + low * sin), x_THK)


@compiled_loose
def _swiglu(x_TE: Any, out_TF: Any, start: int, stop: int) -> None:
    width = out_TF.shape[1]
    for row in range(start, stop):
        gate_F, up_F, out_F = x_TE[row, :width], x_TE[row, width:], out_TF[row]
        for column in range(width):
            gate = widen(gate_F[column])
            # A gate so low that the exponential is cut off is 0 times its silu anyway.
            silu = gate / (_ONE + exp2(min(gate * _MINUS_LOG2_E, np.float32(126.0))))
            out_F[column] = narrow(np.float32(silu * widen(up_F[column])), out_TF)


def add_norm(x_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, eps: float, out_TD: Tensor) -> None:
    """See `kernels.pointwise`."""
    rows, width = x_TD.shape
    arrays = (as_array(weight_D), np.float32(eps), as_array(out_TD))
    if delta_TD is None:
        in_parts(_norm, rows, rows * width // 4, as_array(x_TD), *arrays)
    else:
        in_parts(_add_norm, rows, rows * width // 3, as_array(x_TD), as_array(delta_TD), *arrays)


def add(x_TD: Tensor, delta_TD: Tensor) -> None:
    """See `kernels.pointwise`."""
    in_parts(_add, len(x_TD), x_TD.numel() // 6, as_array(x_TD), as_array(delta_TD))


def rotate(x_THK: Tensor, num_heads: int, rotation_2TK: Tensor) -> None:
    """See `kernels.pointwise`."""
    in_parts(_rotate, len(x_THK), x_THK.numel() // 4, as_array(x_THK), num_heads, as_array(rotation_2TK))


def swiglu(x_TE: Tensor) -> Tensor:
    """See `kernels.pointwise`."""
    rows, width = x_TE.shape[0], x_TE.shape[1] // 2
    out_TF = empty(rows, width, dtype=x_TE.dtype)
    in_parts(_swiglu, rows, rows * width // 2, as_array(x_TE), as_array(out_TF))
    return out_TF
