"""1-bit codes: a first look at all rows that finds most of the best ones, at an eighth of the bytes of nibbles.

# N = rows, D = dimensions, L = bits, W = words of a row's bits = L / 64, P = planes of a query

    z = projection (vector - mean),        bit_l = 1 where z_l > 0
    estimate_i = scale_i * sum_l u_l * (2 bit_il - 1),        u = the query's projection in odd steps of P planes

`rotated_sign`: the projection stacks random orthogonal matrices, vectors are centred, the query keeps 4 planes (steps
-15, -13, ... 15), and scale = ||z||^2 / ||z||_1, which makes the estimate unbiased over rotations (RaBitQ, Gao and
Long, SIGMOD 2024, section 3.2). Unlike matching bits it follows lengths and a shared mean.

`sign_oporp`: Sign-OPORP as published (Li and Li, KDD 2023, arXiv 2302.03505; LiNR, arXiv 2407.13218, section on
quantisation): permute the coordinates, multiply by random signs, cut into bins of equal size, sum each, keep the signs;
no mean, no scale, 1 plane, so that the estimate orders rows as the number of matching bits does. A bin holds at least
two coordinates or, with as many bits as coordinates, one: then the permutation and the signs cancel and what is left
are the signs of the vector. More bits than that take several draws, which neither paper describes.

Neither bounds how far an estimate can be off by anything useful: a certificate needs |estimate - score| <= ||q|| *
||rest_i||, and the rest of a 1-bit code is about .6 of the vector's length.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.codes import random_rotation

SignKind = Literal["rotated_sign", "sign_oporp"]
WORD_BITS = 64
QUERY_PLANES: dict[SignKind, int] = {"rotated_sign": 4, "sign_oporp": 1}
BLOCK_ROWS = 4096


class SignCodes(NamedTuple):
    """1-bit codes of N rows. Rows that no mask admits may hold anything."""

    bit_NW: NDArray[np.uint64]
    scale_N: NDArray[np.float32]  # of no rows for sign_oporp
    projection_LD: NDArray[np.float64]
    num_planes: int  # of a query

    def first(self, num_rows: int) -> SignCodes:
        """The codes of the first rows."""
        return self._replace(bit_NW=self.bit_NW[:num_rows], scale_N=self.scale_N[:num_rows])


class SignQuery(NamedTuple):
    """A query as the scan takes it: step_l = sum_p 2^p * (2 bit_pl - 1), odd."""

    plane_PW: NDArray[np.uint64]
    largest: int  # the sum of the steps where every bit matches: (2^P - 1) * L


def draw_projection(kind: SignKind, dim: int, num_bits: int, seed: int) -> NDArray[np.float64]:
    """float64[L,D]: what the bits are the signs of. num_bits: a multiple of 64."""
    rng = np.random.default_rng(seed)
    if kind == "rotated_sign":
        stacked = [random_rotation(dim, rng) for _ in range((num_bits + dim - 1) // dim)]
        return np.concatenate(stacked)[:num_bits]
    projection_LD = np.zeros((num_bits, dim))
    bins = min(num_bits, dim) if num_bits <= dim else max(1, dim // 2)
    for first in range(0, num_bits, bins):
        order, sign_D = rng.permutation(dim), rng.choice([-1.0, 1.0], dim)
        for number, places in enumerate(np.array_split(order, bins)[: num_bits - first]):
            projection_LD[first + number, places] = sign_D[places]
    return projection_LD


def encode_signs(
    vector_ND: NDArray[np.float32], kind: SignKind, projection_LD: NDArray[np.float64], mean_D: NDArray[np.float32]
) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Bits and scales of finite vectors; sign_oporp takes no mean off and has no scales."""
    num_bits, scaled = len(projection_LD), kind == "rotated_sign"
    bit_NW = np.empty((len(vector_ND), num_bits // WORD_BITS), np.uint64)
    scale_N = np.empty(len(vector_ND) if scaled else 0, np.float32)
    for first in range(0, len(vector_ND), BLOCK_ROWS):
        block = slice(first, first + BLOCK_ROWS)
        vector = vector_ND[block].astype(np.float64)
        projected = (vector - mean_D if scaled else vector) @ projection_LD.T
        bit_NW[block] = _pack(projected > 0)
        if scaled:
            size = np.abs(projected).sum(axis=1)
            squares = np.einsum("nl,nl->n", projected, projected)
            scale = squares / np.where(size > 0, size, 1.0)
            scale_N[block] = np.minimum(scale, np.finfo(np.float32).max / (num_bits << 4))  # estimates stay finite
    return bit_NW, scale_N


def encode_sign_query(query_D: NDArray[np.float32], codes: SignCodes) -> SignQuery:
    """The planes of a finite query. It is not centred: q . mean is the same for all rows."""
    num_bits, levels = len(codes.projection_LD), (1 << codes.num_planes) - 1
    projected = codes.projection_LD @ query_D.astype(np.float64)
    largest = float(np.abs(projected).max(initial=0.0))
    ratio = projected / largest if largest > 0 else projected
    if levels == 1:
        step = (ratio > 0).astype(np.int64)  # as a row's bits are taken
    else:
        step = np.clip(np.rint((ratio + 1.0) * levels / 2), 0, levels).astype(np.int64)
    plane_PL = (step >> np.arange(codes.num_planes)[:, None]) & 1
    return SignQuery(_pack(plane_PL.astype(np.bool_)), levels * num_bits)


def _pack(bit_NL: NDArray[np.bool_]) -> NDArray[np.uint64]:
    packed: NDArray[np.uint64] = np.packbits(bit_NL, axis=1, bitorder="little").view("<u8").astype(np.uint64)
    return packed
