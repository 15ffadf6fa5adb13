"""Mean embeddings of bags of hashes, compiled: one pass over the hashes, no list of rows, no gradient."""

# n = bags, W = places of a bag, D = dimensions, V = rows

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.cpu.compile import compiled
from kernels.embedding_bag import QuantisedRows

_HALF = np.uint64(0xFFFFFFFF)
_HALF_BITS = np.uint64(32)


@compiled
def _rows_of(bits: np.uint64, part: int, quotient_rows: int, remainder_rows: int) -> tuple[np.int64, np.int64]:
    """The remainder and the quotient row of one half of a hash."""
    half = np.int64((bits >> (np.uint64(part) * _HALF_BITS)) & _HALF)
    first = part * (remainder_rows + quotient_rows)
    return first + half % remainder_rows, first + remainder_rows + half // remainder_rows % quotient_rows


@compiled
def _divide(out_ND: NDArray[np.float32], bag: int, count: int) -> None:
    """Make the mean of a bag's sum."""
    if count > 1:
        share = np.float32(1.0) / np.float32(count)
        for column in range(out_ND.shape[1]):
            out_ND[bag, column] *= share


@compiled
def _sum_rows(
    hash_NW: NDArray[np.int64],
    weight_VD: NDArray[np.float32],
    quotient_rows: int,
    remainder_rows: int,
    out_ND: NDArray[np.float32],
) -> None:
    dim = weight_VD.shape[1]
    for bag in range(hash_NW.shape[0]):
        count = 0
        for place in range(hash_NW.shape[1]):
            if hash_NW[bag, place] == 0:
                continue
            count += 1
            bits = np.uint64(hash_NW[bag, place])
            for part in range(2):
                remainder, quotient = _rows_of(bits, part, quotient_rows, remainder_rows)
                for column in range(dim):
                    out_ND[bag, column] += weight_VD[remainder, column] + weight_VD[quotient, column]
        _divide(out_ND, bag, count)


@compiled
def _sum_codes(
    hash_NW: NDArray[np.int64],
    code_VD: NDArray[np.int8],
    scale_V: NDArray[np.float32],
    middle_V: NDArray[np.float32],
    quotient_rows: int,
    remainder_rows: int,
    out_ND: NDArray[np.float32],
) -> None:
    dim = code_VD.shape[1]
    for bag in range(hash_NW.shape[0]):
        count = 0
        for place in range(hash_NW.shape[1]):
            if hash_NW[bag, place] == 0:
                continue
            count += 1
            bits = np.uint64(hash_NW[bag, place])
            for part in range(2):
                remainder, quotient = _rows_of(bits, part, quotient_rows, remainder_rows)
                middle = middle_V[remainder] + middle_V[quotient]
                scale, other = scale_V[remainder], scale_V[quotient]
                for column in range(dim):
                    out_ND[bag, column] += (
                        middle
                        + scale * np.float32(code_VD[remainder, column])
                        + other * np.float32(code_VD[quotient, column])
                    )
        _divide(out_ND, bag, count)


def embedding_bag(hash_NW: Tensor, table: Tensor | QuantisedRows, quotient_rows: int, remainder_rows: int) -> Tensor:
    """See `kernels.embedding_bag`; arguments are checked there."""
    hashes = hash_NW.contiguous().numpy()
    if isinstance(table, QuantisedRows):
        out_ND = np.zeros((len(hashes), table.code_VD.shape[1]), np.float32)
        columns = (table.code_VD.numpy(), table.scale_V.numpy(), table.middle_V.numpy())
        _sum_codes(hashes, *columns, quotient_rows, remainder_rows, out_ND)
    else:
        out_ND = np.zeros((len(hashes), table.shape[1]), np.float32)
        _sum_rows(hashes, table.detach().numpy(), quotient_rows, remainder_rows, out_ND)
    return torch.from_numpy(out_ND)
