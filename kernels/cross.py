"""Low-rank cross layer, forward and backward: the front of the op.

# N = rows, D = width, R = rank

    y = x_0 * (x V U^T + b) + x        V: down [R, D], transposed;  U: up [D, R]

DCNv2 (arXiv 2008.13535) section 4.1 with W = U V^T. Fused, the [N, D] projection is never written to memory: a program
holds its rows' [R] and makes each block of the output from it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kernels.dense_topk import has_triton

Backend = Literal["auto", "gpu", "reference"]
MAX_RANK = 256
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def low_rank_cross(
    x0_ND: Tensor, x_ND: Tensor, down_RD: Tensor, up_DR: Tensor, bias_D: Tensor, *, backend: Backend = "auto"
) -> Tensor:
    """Return y [N, D]; differentiable once in every argument.

    All of one dtype (float32, float16, bfloat16) on one device; products accumulate in float32, and y is rounded once.
    backend: "gpu" is Triton, "reference" plain torch; "auto" is "gpu" for CUDA tensors where Triton is installed.
    float32 products on a GPU follow `torch.backends.cuda.matmul.allow_tf32`.

    Raises ValueError for shapes, dtypes or devices that do not fit, and for a rank above MAX_RANK.
    """
    _check(x0_ND, x_ND, down_RD, up_DR, bias_D)
    if backend not in ("auto", "gpu", "reference"):
        raise ValueError(f"backend {backend!r}: expected auto, gpu or reference")
    if backend == "gpu" or (backend == "auto" and x_ND.is_cuda and has_triton()):
        from kernels.gpu.cross import low_rank_cross as run_gpu

        return run_gpu(x0_ND, x_ND, down_RD, up_DR, bias_D)
    from kernels.reference.cross import low_rank_cross as run_reference

    return run_reference(x0_ND, x_ND, down_RD, up_DR, bias_D)


def _check(x0_ND: Tensor, x_ND: Tensor, down_RD: Tensor, up_DR: Tensor, bias_D: Tensor) -> None:
    if x_ND.ndim != 2 or x_ND.shape[1] < 1 or x_ND.dtype not in DTYPES:
        raise ValueError(f"x: {x_ND.dtype}{list(x_ND.shape)}, expected float32, float16 or bfloat16 [N,D]")
    dim = x_ND.shape[1]
    if down_RD.ndim != 2 or not 1 <= down_RD.shape[0] <= MAX_RANK:
        raise ValueError(f"down: {list(down_RD.shape)}, expected [1 to {MAX_RANK},{dim}]")
    rank = down_RD.shape[0]
    for name, tensor, shape in (
        ("x0", x0_ND, tuple(x_ND.shape)), ("down", down_RD, (rank, dim)), ("up", up_DR, (dim, rank)),
        ("bias", bias_D, (dim,)),
    ):  # fmt: skip
        if tuple(tensor.shape) != shape or tensor.dtype != x_ND.dtype:
            raise ValueError(f"{name}: {tensor.dtype}{list(tensor.shape)}, expected {x_ND.dtype}{list(shape)}")
        if tensor.device != x_ND.device:
            raise ValueError(f"{name}: on {tensor.device}, expected {x_ND.device}")
