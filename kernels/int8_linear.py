"""x W^T with weights and rows of x at 8 bits (W8A8): the front of the op. No gradient.

# M = rows, I = inputs, O = outputs

    y_mo = s_m s_o sum_i round(x_mi / s_m) code_io        s_m = max_i |x_mi| / 127,  s_o = max_i |w_oi| / 127

Weights are rounded once, with a scale for every output; rows when they come, with a scale for every row (dynamic
per-token activations, as in LLM.int8 without its outliers; Dettmers et al. 2022). Sums are exact integers.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "cpu", "reference"]
DTYPES = (torch.float32, torch.bfloat16)
MAX_INPUTS = 1 << 17  # sums stay below 2^31


def encode_weight(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes int8[I, O] and scales float32[O]; an output of zeros has the scale 1."""
    wide_OI = weight_OI.float()
    largest_O = wide_OI.abs().amax(1)
    scale_O = torch.where(largest_O > 0, largest_O / 127, torch.ones_like(largest_O))
    return (wide_OI / scale_O[:, None]).round().clamp(-127, 127).to(torch.int8).T.contiguous(), scale_O


def int8_linear(x_MI: Tensor, code_IO: Tensor, scale_O: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Return y [M, O] in x's dtype, float32 or bfloat16; x is finite and contiguous.

    backend: "cpu" is torch's integer product and numba, "reference" plain torch; "auto" is "cpu" for CPU tensors.
    A tie between two codes of x may go either way.

    Raises ValueError for shapes and dtypes that do not fit.
    """
    if x_MI.ndim != 2 or x_MI.dtype not in DTYPES or not x_MI.is_contiguous():
        raise ValueError(f"x: {x_MI.dtype}{list(x_MI.shape)}, expected contiguous float32 or bfloat16 [M,I]")
    if code_IO.ndim != 2 or code_IO.dtype != torch.int8 or code_IO.shape[0] != x_MI.shape[1]:
        raise ValueError(f"codes: {code_IO.dtype}{list(code_IO.shape)}, expected int8[{x_MI.shape[1]},O]")
    if tuple(scale_O.shape) != (code_IO.shape[1],) or scale_O.dtype != torch.float32:
        raise ValueError(f"scales: {scale_O.dtype}{list(scale_O.shape)}, expected float32[{code_IO.shape[1]}]")
    if x_MI.shape[1] > MAX_INPUTS:
        raise ValueError(f"x: {x_MI.shape[1]} inputs, expected up to {MAX_INPUTS}")
    if backend not in ("auto", "cpu", "reference"):
        raise ValueError(f"backend {backend!r}: expected auto, cpu or reference")
    if backend == "cpu" or (backend == "auto" and x_MI.device.type == "cpu"):
        from kernels.cpu.int8_linear import int8_linear as run_cpu

        return run_cpu(x_MI, code_IO, scale_O)
    from kernels.reference.int8_linear import int8_linear as run_reference

    return run_reference(x_MI, code_IO, scale_O)
