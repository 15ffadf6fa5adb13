"""Mean embeddings of bags of hashes in plain torch: the definition of correct, on any device."""

# n = bags, W = places of a bag, P = rows of one hash, D = dimensions

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels.embedding_bag import QuantisedRows

_HALF = 0xFFFFFFFF


def embedding_bag(hash_NW: Tensor, table: Tensor | QuantisedRows, quotient_rows: int, remainder_rows: int) -> Tensor:
    """See `kernels.embedding_bag`; arguments are checked there."""
    row_NWP = rows_of(hash_NW, quotient_rows, remainder_rows)
    used_NW = hash_NW != 0
    share_NW = used_NW.float() / used_NW.sum(dim=1, keepdim=True).clamp(min=1)
    if isinstance(table, QuantisedRows):
        scale_NWP, middle_NWP = table.scale_V[row_NWP], table.middle_V[row_NWP]
        value_NWD = (middle_NWP[..., None] + scale_NWP[..., None] * table.code_VD[row_NWP].float()).sum(dim=2)
    else:
        value_NWD = functional.embedding(row_NWP, table, sparse=True).sum(dim=2)
    return (value_NWD * share_NW[:, :, None]).sum(dim=1)


def rows_of(hashes: Tensor, quotient_rows: int, remainder_rows: int) -> Tensor:
    """int64[..., P]: the rows that a hash is the sum of."""
    per_half = remainder_rows + quotient_rows
    rows = []
    for place, half in enumerate((hashes & _HALF, (hashes >> 32) & _HALF)):
        rows.append(place * per_half + half % remainder_rows)
        quotients = torch.div(half, remainder_rows, rounding_mode="floor") % quotient_rows
        rows.append(place * per_half + remainder_rows + quotients)
    return torch.stack(rows, dim=-1)
