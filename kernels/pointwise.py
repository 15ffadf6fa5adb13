"""What a decoder does between its products: the front of four ops without gradient.

# T = tokens, D = width, H = heads, K = head size, F = inner width, E = 2 F

The residual stream is float32 throughout; what the products read and write is of their dtype, float32 or bfloat16.
Every op computes in float32 and rounds once. Arguments are contiguous.
"""

from __future__ import annotations

from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "cpu", "reference"]
DTYPES = (torch.float32, torch.bfloat16)


def add_norm(
    x_TD: Tensor,
    delta_TD: Tensor | None,
    weight_D: Tensor,
    eps: float,
    dtype: torch.dtype,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Add delta to x in place, and return x / sqrt(mean(x^2) + eps) * weight [T, D] in `dtype` (RMSNorm).

    x, weight: float32. Raises ValueError for other dtypes and for shapes that do not fit.
    """
    _expect("x", x_TD, (None, None), (torch.float32,))
    _expect("weight", weight_D, (x_TD.shape[1],), (torch.float32,))
    if delta_TD is not None:
        _expect("delta", delta_TD, tuple(x_TD.shape), DTYPES)
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype}, expected float32 or bfloat16")
    out_TD = torch.empty_like(x_TD, dtype=dtype)
    _of(backend, x_TD).add_norm(x_TD, delta_TD, weight_D, eps, out_TD)
    return out_TD


def add(x_TD: Tensor, delta_TD: Tensor, *, backend: Backend = "auto") -> None:
    """Add delta to x, float32, in place. Raises ValueError for dtypes and shapes that do not fit."""
    _expect("x", x_TD, (None, None), (torch.float32,))
    _expect("delta", delta_TD, tuple(x_TD.shape), DTYPES)
    _of(backend, x_TD).add(x_TD, delta_TD)


def rotate(x_THK: Tensor, num_heads: int, rotation_2TK: Tensor, *, backend: Backend = "auto") -> None:
    """Rotate the pairs (i, i + K/2) of the first heads by their token's angles, in place (RoPE, Su et al. 2021).

    rotation: float32[2, T, K or K/2], cosines and sines. Raises ValueError for dtypes and shapes that do not fit.
    """
    _expect("x", x_THK, (None, None, None), DTYPES)
    num_tokens, heads, head = x_THK.shape
    if rotation_2TK.shape[2:] not in ((head,), (head // 2,)) or head % 2 or not 0 <= num_heads <= heads:
        raise ValueError(
            f"rotation: {list(rotation_2TK.shape)} of {num_heads} heads of {list(x_THK.shape)}, "
            f"expected [2,{num_tokens},{head}], an even head and up to {heads} heads"
        )
    _expect("rotation", rotation_2TK, (2, num_tokens, rotation_2TK.shape[2]), (torch.float32,))
    _of(backend, x_THK).rotate(x_THK, num_heads, rotation_2TK)


def swiglu(x_TE: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Return silu(gate) * up [T, F] of rows that hold gate and up beside one another (SwiGLU, Shazeer 2020)."""
    _expect("x", x_TE, (None, None), DTYPES)
    if x_TE.shape[1] % 2:
        raise ValueError(f"x: {list(x_TE.shape)}, expected an even width")
    out_TF: Tensor = _of(backend, x_TE).swiglu(x_TE)
    return out_TF


def _of(backend: Backend, x: Tensor) -> ModuleType:
    if backend not in ("auto", "cpu", "reference"):
        raise ValueError(f"backend {backend!r}: expected auto, cpu or reference")
    if backend == "cpu" or (backend == "auto" and x.device.type == "cpu"):
        from kernels.cpu import pointwise as run_cpu

        return run_cpu
    from kernels.reference import pointwise as run_reference

    return run_reference


def _expect(name: str, tensor: Tensor, shape: tuple[int | None, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    fits = tensor.ndim == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype not in dtypes or not tensor.is_contiguous():
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        sizes = ",".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: {tensor.dtype}{list(tensor.shape)}, expected contiguous {wanted}[{sizes}]")
