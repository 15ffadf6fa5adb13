"""Mean embeddings of bags of hashes in Triton, and the gradient of a float32 table.

# n = bags, W = places of a bag, P = rows of one hash, D = dimensions, U = distinct rows

Forward: a program owns BAGS bags and walks their places; a place's four rows are gathered whole, so reads are as wide
as a row. Backward: the distinct rows of a batch are listed once, and every place adds its bag's gradient over the
bag's size to its four rows, [U, D] in all. The adds are atomic: their order, and so the last bits, may differ from run
to run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.embedding_bag import NUM_PARTS, QuantisedRows
from kernels.reference.embedding_bag import rows_of

BAGS = 32


@triton.jit
def _add_row(total, table_ptr, scale_ptr, middle_ptr, row, used, column, DIM: tl.constexpr, INT8: tl.constexpr):
    inside = used[:, None] & (column < DIM)[None, :]
    values = tl.load(table_ptr + row[:, None] * DIM + column[None, :], mask=inside, other=0).to(tl.float32)
    if INT8:
        scale = tl.load(scale_ptr + row, mask=used, other=0)
        middle = tl.load(middle_ptr + row, mask=used, other=0)
        values = middle[:, None] + scale[:, None] * values
    return total + values


@triton.jit(do_not_specialize=["num_bags", "num_places", "quotient_rows", "remainder_rows"])
def bag_forward(
    hash_ptr, table_ptr, scale_ptr, middle_ptr, out_ptr, num_bags, num_places, quotient_rows, remainder_rows,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BAGS: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    """float32 means of BAGS bags."""
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    inside = bag < num_bags
    column = tl.arange(0, BLOCK_D)
    total = tl.zeros([BAGS, BLOCK_D], tl.float32)
    count = tl.zeros([BAGS], tl.int32)
    per_half = (remainder_rows + quotient_rows).to(tl.int64)
    for place in range(num_places):
        bits = tl.load(hash_ptr + bag * num_places + place, mask=inside, other=0)
        used = bits != 0
        count += used.to(tl.int32)
        for part in tl.static_range(2):
            half = (bits >> (32 * part)) & 0xFFFFFFFF
            row = half % remainder_rows + part * per_half
            total = _add_row(total, table_ptr, scale_ptr, middle_ptr, row, used, column, DIM, INT8)
            row = (half // remainder_rows) % quotient_rows + remainder_rows + part * per_half
            total = _add_row(total, table_ptr, scale_ptr, middle_ptr, row, used, column, DIM, INT8)
    total = total / tl.maximum(count, 1).to(tl.float32)[:, None]
    tl.store(out_ptr + bag[:, None] * DIM + column[None, :], total, mask=inside[:, None] & (column < DIM)[None, :])


@triton.jit(do_not_specialize=["num_bags", "num_places"])
def bag_backward(
    hash_ptr, place_ptr, grad_ptr, out_ptr, num_bags, num_places,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BAGS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Add each bag's gradient to the rows it read: out[U, D]. place[n, W, P]: which of the U rows each one is."""
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    inside = bag < num_bags
    column = tl.arange(0, BLOCK_D)
    count = tl.zeros([BAGS], tl.int32)
    for place in range(num_places):
        count += (tl.load(hash_ptr + bag * num_places + place, mask=inside, other=0) != 0).to(tl.int32)
    in_row = inside[:, None] & (column < DIM)[None, :]
    grad = tl.load(grad_ptr + bag[:, None] * DIM + column[None, :], mask=in_row, other=0)
    grad = grad / tl.maximum(count, 1).to(tl.float32)[:, None]
    for place in range(num_places):
        at = bag * num_places + place
        used = tl.load(hash_ptr + at, mask=inside, other=0) != 0
        for part in tl.static_range(PARTS):
            row = tl.load(place_ptr + at * PARTS + part, mask=used, other=0)
            mask = used[:, None] & (column < DIM)[None, :]
            tl.atomic_add(out_ptr + row[:, None] * DIM + column[None, :], grad, mask=mask)


class _EmbeddingBag(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hash_NW: Tensor, weight_VD: Tensor, quotient_rows: int, remainder_rows: int) -> Tensor:
        ctx.save_for_backward(hash_NW)
        ctx.shape, ctx.rows = weight_VD.shape, (quotient_rows, remainder_rows)
        return _run(hash_NW, weight_VD, None, None, quotient_rows, remainder_rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[None, Tensor, None, None]:
        (hash_NW,) = ctx.saved_tensors
        num_bags, num_places = hash_NW.shape
        dim = ctx.shape[1]
        row_NWP = rows_of(hash_NW, *ctx.rows)
        used_NWP = (hash_NW != 0)[:, :, None].expand(row_NWP.shape)
        row_U, place = torch.unique(row_NWP[used_NWP], return_inverse=True)
        place_NWP = torch.zeros_like(row_NWP).masked_scatter_(used_NWP, place)
        value_UD = torch.zeros(len(row_U), dim, device=grad_ND.device)
        if len(row_U):
            bag_backward[(triton.cdiv(num_bags, BAGS),)](
                hash_NW, place_NWP, grad_ND.contiguous(), value_UD, num_bags, num_places,
                DIM=dim, BLOCK_D=triton.next_power_of_2(dim), BAGS=BAGS, PARTS=NUM_PARTS,
            )  # fmt: skip
        grad_VD = torch.sparse_coo_tensor(row_U[None], value_UD, ctx.shape, is_coalesced=True, check_invariants=False)
        return None, grad_VD, None, None


def embedding_bag(hash_NW: Tensor, table: Tensor | QuantisedRows, quotient_rows: int, remainder_rows: int) -> Tensor:
    """See `kernels.embedding_bag`; arguments are checked there."""
    hash_NW = hash_NW.contiguous()
    if isinstance(table, QuantisedRows):
        return _run(hash_NW, table.code_VD, table.scale_V, table.middle_V, quotient_rows, remainder_rows)
    embedded: Tensor = _EmbeddingBag.apply(hash_NW, table, quotient_rows, remainder_rows)
    return embedded


def _run(
    hash_NW: Tensor,
    rows_VD: Tensor,
    scale_V: Tensor | None,
    middle_V: Tensor | None,
    quotient_rows: int,
    remainder_rows: int,
) -> Tensor:
    num_bags, num_places = hash_NW.shape
    dim = rows_VD.shape[1]
    out_ND = torch.empty(num_bags, dim, device=hash_NW.device)
    if num_bags:
        bag_forward[(triton.cdiv(num_bags, BAGS),)](
            hash_NW, rows_VD, rows_VD if scale_V is None else scale_V, rows_VD if middle_V is None else middle_V,
            out_ND, num_bags, num_places, quotient_rows, remainder_rows,
            DIM=dim, BLOCK_D=triton.next_power_of_2(dim), BAGS=BAGS, INT8=scale_V is not None,
        )  # fmt: skip
    return out_ND
