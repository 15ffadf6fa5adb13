"""Low-rank cross layer in Triton, forward and backward.

# N = rows, D = width, R = rank, P = parts of the rows

    h = x V^T                       [N, R], kept for the backward pass
    y = x_0 * u + x,  u = h U^T + b
    dh = (g * x_0) U                dx_0 = g * u        dx = g + dh V
    dU = (g * x_0)^T h              dV = dh^T x         db = sum_N g * x_0

Forward and the row half of the backward take two passes over a program's rows: one to reduce to R, one to expand; the
second finds the rows in the cache. The weights' half reduces over rows in P parts that are added at the end, so two
runs give the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 64
BLOCK_D = 64
MAX_PARTS = 64
NUM_WARPS = 4
NUM_STAGES = 2  # three tiles of float32 a stage: more would leave one block to a processor


@triton.jit
def _tile(ptr, row, column, num_rows, DIM: tl.constexpr):
    """[rows, columns] of a [num_rows, DIM] matrix; 0 outside."""
    inside = (row < num_rows)[:, None] & (column < DIM)[None, :]
    return tl.load(ptr + row.to(tl.int64)[:, None] * DIM + column[None, :], mask=inside, other=0)


@triton.jit
def _product(a, b, total, PRECISION: tl.constexpr):
    """total + a b in float32; both rounded to the narrower of their types, as tensor cores take them."""
    kind = b.dtype if b.dtype.primitive_bitwidth < a.dtype.primitive_bitwidth else a.dtype
    return tl.dot(a.to(kind), b.to(kind), total, input_precision=PRECISION)


@triton.jit(do_not_specialize=["num_rows"])
def cross_forward(
    x0_ptr, x_ptr, down_ptr, up_ptr, bias_ptr, h_ptr, out_ptr, num_rows,
    DIM: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """y of ROWS rows, and their h in float32."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rank = tl.arange(0, BLOCK_R)
    h = tl.zeros([ROWS, BLOCK_R], tl.float32)
    for start in range(0, DIM, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        x = _tile(x_ptr, row, column, num_rows, DIM)
        down = _tile(down_ptr, rank, column, RANK, DIM)
        h = _product(x, tl.trans(down), h, PRECISION)
    inside = (row < num_rows)[:, None] & (rank < RANK)[None, :]
    tl.store(h_ptr + row.to(tl.int64)[:, None] * RANK + rank[None, :], h, mask=inside)
    for start in range(0, DIM, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        up = _tile(up_ptr, column, rank, DIM, RANK)
        bias = tl.load(bias_ptr + column, mask=column < DIM, other=0).to(tl.float32)
        u = _product(h, tl.trans(up), tl.zeros([ROWS, BLOCK_D], tl.float32), PRECISION) + bias[None, :]
        x0 = _tile(x0_ptr, row, column, num_rows, DIM).to(tl.float32)
        x = _tile(x_ptr, row, column, num_rows, DIM).to(tl.float32)
        at = out_ptr + row.to(tl.int64)[:, None] * DIM + column[None, :]
        tl.store(
            at, (x0 * u + x).to(out_ptr.dtype.element_ty), mask=(row < num_rows)[:, None] & (column < DIM)[None, :]
        )


@triton.jit(do_not_specialize=["num_rows"])
def cross_backward_rows(
    grad_ptr, x0_ptr, down_ptr, up_ptr, bias_ptr, h_ptr, dh_ptr, dx0_ptr, dx_ptr, num_rows,
    DIM: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dx0 and dx of ROWS rows, and their dh in float32."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rank = tl.arange(0, BLOCK_R)
    dh = tl.zeros([ROWS, BLOCK_R], tl.float32)
    for start in range(0, DIM, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        grad = _tile(grad_ptr, row, column, num_rows, DIM).to(tl.float32)
        x0 = _tile(x0_ptr, row, column, num_rows, DIM).to(tl.float32)
        up = _tile(up_ptr, column, rank, DIM, RANK)
        dh = _product(grad * x0, up, dh, PRECISION)
    inside = (row < num_rows)[:, None] & (rank < RANK)[None, :]
    at = row.to(tl.int64)[:, None] * RANK + rank[None, :]
    tl.store(dh_ptr + at, dh, mask=inside)
    h = tl.load(h_ptr + at, mask=inside, other=0)
    for start in range(0, DIM, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        grad = _tile(grad_ptr, row, column, num_rows, DIM).to(tl.float32)
        up = _tile(up_ptr, column, rank, DIM, RANK)
        down = _tile(down_ptr, rank, column, RANK, DIM)
        bias = tl.load(bias_ptr + column, mask=column < DIM, other=0).to(tl.float32)
        u = _product(h, tl.trans(up), tl.zeros([ROWS, BLOCK_D], tl.float32), PRECISION) + bias[None, :]
        dx = _product(dh, down, grad, PRECISION)
        at_D = row.to(tl.int64)[:, None] * DIM + column[None, :]
        inside_D = (row < num_rows)[:, None] & (column < DIM)[None, :]
        tl.store(dx0_ptr + at_D, (grad * u).to(dx0_ptr.dtype.element_ty), mask=inside_D)
        tl.store(dx_ptr + at_D, dx.to(dx_ptr.dtype.element_ty), mask=inside_D)


@triton.jit(do_not_specialize=["num_rows", "rows_per_part"])
def cross_backward_weights(
    grad_ptr, x0_ptr, x_ptr, h_ptr, dh_ptr, dup_ptr, ddown_ptr, dbias_ptr, num_rows, rows_per_part,
    DIM: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One part's sums for BLOCK_D columns: dup[P, D, R], ddown[P, D, R] (transposed), dbias[P, D]."""
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    part = tl.program_id(1)
    rank = tl.arange(0, BLOCK_R)
    dup = tl.zeros([BLOCK_D, BLOCK_R], tl.float32)
    ddown = tl.zeros([BLOCK_D, BLOCK_R], tl.float32)
    dbias = tl.zeros([BLOCK_D], tl.float32)
    first = part * rows_per_part
    last = tl.minimum(first + rows_per_part, num_rows)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        grad = _tile(grad_ptr, row, column, last, DIM).to(tl.float32)
        x0 = _tile(x0_ptr, row, column, last, DIM).to(tl.float32)
        x = _tile(x_ptr, row, column, last, DIM)
        h = _tile(h_ptr, row, rank, last, RANK)
        dh = _tile(dh_ptr, row, rank, last, RANK)
        du = grad * x0
        dup = _product(tl.trans(du).to(x.dtype), h, dup, PRECISION)
        ddown = _product(tl.trans(x), dh, ddown, PRECISION)
        dbias += tl.sum(du, 0)
    at = (part.to(tl.int64) * DIM + column)[:, None] * RANK + rank[None, :]
    inside = (column < DIM)[:, None] & (rank < RANK)[None, :]
    tl.store(dup_ptr + at, dup, mask=inside)
    tl.store(ddown_ptr + at, ddown, mask=inside)
    tl.store(dbias_ptr + part.to(tl.int64) * DIM + column, dbias, mask=column < DIM)


class _LowRankCross(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x0_ND: Tensor, x_ND: Tensor, down_RD: Tensor, up_DR: Tensor, bias_D: Tensor) -> Tensor:
        num_rows, dim = x_ND.shape
        h_NR = torch.empty(num_rows, down_RD.shape[0], dtype=torch.float32, device=x_ND.device)
        out_ND = torch.empty_like(x_ND)
        if num_rows:
            cross_forward[(triton.cdiv(num_rows, ROWS),)](
                x0_ND, x_ND, down_RD, up_DR, bias_D, h_NR, out_ND, num_rows,
                **shape_of(dim, down_RD.shape[0]), PRECISION=_precision(), num_warps=NUM_WARPS, num_stages=NUM_STAGES,
            )  # fmt: skip
        ctx.save_for_backward(x0_ND, x_ND, down_RD, up_DR, bias_D, h_NR)
        return out_ND

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, ...]:
        x0_ND, x_ND, down_RD, up_DR, bias_D, h_NR = ctx.saved_tensors
        grad_ND = grad_ND.contiguous()
        num_rows, dim = x_ND.shape
        rank = down_RD.shape[0]
        dh_NR = torch.empty_like(h_NR)
        dx0_ND, dx_ND = torch.empty_like(x0_ND), torch.empty_like(x_ND)
        if not num_rows:
            return dx0_ND, dx_ND, torch.zeros_like(down_RD), torch.zeros_like(up_DR), torch.zeros_like(bias_D)
        constants = {**shape_of(dim, rank), "PRECISION": _precision(), "num_warps": NUM_WARPS, "num_stages": NUM_STAGES}
        cross_backward_rows[(triton.cdiv(num_rows, ROWS),)](
            grad_ND, x0_ND, down_RD, up_DR, bias_D, h_NR, dh_NR, dx0_ND, dx_ND, num_rows, **constants
        )
        num_parts = min(MAX_PARTS, triton.cdiv(num_rows, 4 * ROWS))
        rows_per_part = triton.cdiv(triton.cdiv(num_rows, num_parts), ROWS) * ROWS
        num_parts = triton.cdiv(num_rows, rows_per_part)
        dup, ddown = (torch.empty(num_parts, dim, rank, device=x_ND.device) for _ in range(2))
        dbias = torch.empty(num_parts, dim, device=x_ND.device)
        cross_backward_weights[(triton.cdiv(dim, BLOCK_D), num_parts)](
            grad_ND, x0_ND, x_ND, h_NR, dh_NR, dup, ddown, dbias, num_rows, rows_per_part, **constants
        )
        kind = x_ND.dtype
        return dx0_ND, dx_ND, ddown.sum(0).T.to(kind), dup.sum(0).to(kind), dbias.sum(0).to(kind)


def low_rank_cross(x0_ND: Tensor, x_ND: Tensor, down_RD: Tensor, up_DR: Tensor, bias_D: Tensor) -> Tensor:
    """See `kernels.cross`; arguments are checked there."""
    tensors = (tensor.contiguous() for tensor in (x0_ND, x_ND, down_RD, up_DR, bias_D))
    crossed: Tensor = _LowRankCross.apply(*tensors)
    return crossed


def shape_of(dim: int, rank: int) -> dict[str, int]:
    """The kernels' compile-time shape: a product takes at least 16 of the rank, a power of two."""
    return {
        "DIM": dim,
        "RANK": rank,
        "BLOCK_R": max(16, triton.next_power_of_2(rank)),
        "BLOCK_D": BLOCK_D,
        "ROWS": ROWS,
    }


def _precision() -> str:
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
