"""The codes that `filtered_topk` scans: what they hold and how far a score from them can be off.

# N = rows, D = dimensions, P = ceil(D / 2)

    vector_i = mean + scale_i * code_i + rest_i,        code in -127..127,      ||rest_i|| <= scale_i * share_i * UNIT
    code + 128 = 16 * upper + lower,                    two nibbles, kept in planes of their own
    vector_i = mean + scale_i * (16 * upper_i - 120.5) + its rest, of at most scale_i * upper_share_i * UPPER_UNIT

A scan reads the upper plane and one byte of error bound: half of what int8 codes take. Only where a row may still be
among the best does it read the lower plane as well, which makes the same row an int8 code. Per-row scale and a shared
mean follow the measured ranking of int8 codes: per row beats one global scale, and centring beats both where embeddings
share a direction.

Rows may be rotated first: what is coded is then rotation (vector - mean), with an orthogonal matrix, and the inner
product is that of the rotated query. A dimension much larger than the others is spread over all of them, which is what
a scale per row needs; vectors without such dimensions gain nothing.

A plane holds dimension d in the low half of byte d for d < P, and in the high half of byte d - P for the others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_DIM = 8192  # keeps int32 dot products free of overflow
CODE_MAX = 127
STEP_MAX = 2039  # of a query: 11 bits, 16 * (one of 8 bits) + (one of 4)
LINE = 64  # bytes; a query's steps are padded with zeros to whole lines of a plane
UPPER_MIDDLE = 120.5  # 16 * upper - UPPER_MIDDLE is the middle of the codes that share an upper nibble
NUM_ARRAYS = 5  # of codes that have a row for each row, before what they share
MAX_ROTATED_DIM = 2048  # keeps the scale of a rotated row within float32, and the matrix at 32 MiB
NO_ROTATION: NDArray[np.float64] = np.empty((0, 0))
UNIT, UPPER_UNIT = 0.51 / 255, 8.02 / 255  # times sqrt(D): what one count of a share stands for, in steps of a code


class Codes(NamedTuple):
    """Codes of N rows. Rows that no mask admits may hold anything."""

    upper_NP: NDArray[np.uint8]
    lower_NP: NDArray[np.uint8]  # of no rows where only the upper nibbles are kept
    scale_N: NDArray[np.float32]
    upper_share_N: NDArray[np.uint8]
    share_N: NDArray[np.uint8]
    mean_D: NDArray[np.float32]
    rotation_DD: NDArray[np.float64]  # [0,0] where vectors are coded as they are

    @property
    def is_fine(self) -> bool:
        """Whether the lower nibbles are there."""
        return len(self.lower_NP) > 0 or not len(self.upper_NP)

    def first(self, num_rows: int) -> Codes:
        """The codes of the first rows."""
        return Codes._make((*(each[:num_rows] for each in self[:NUM_ARRAYS]), *self[NUM_ARRAYS:]))


class QueryCode(NamedTuple):
    """A query prepared for the scan of codes."""

    step_2L: NDArray[np.int16]  # query ~ step * scale; the dimensions of either half of a plane's bytes, padded
    high_2L: NDArray[np.int8]  # step = 16 * high + low
    low_2L: NDArray[np.int8]
    sum_steps: int
    scale: float
    mean_score: float  # q . mean
    scale_error: float  # bound per unit of a row's scale: what the query's rounding can change
    norm: float  # upper bound of ||q||
    slack: float  # float64 rounding of everything else, the final score's own rounding included

    def steps(self, dim: int) -> NDArray[np.int16]:
        """int16[D]: the steps in order of dimensions."""
        width = (dim + 1) // 2
        return np.concatenate([self.step_2L[0, :width], self.step_2L[1, : dim - width]])


class CoarseQuery(NamedTuple):
    """A query as an int8 code, for the product of many queries with many rows."""

    step_D: NDArray[np.int8]
    scale: float
    error: float  # upper bound of ||query - scale * step||


def encode_rows(
    vector_ND: NDArray[np.float32],
    mean_D: NDArray[np.float32],
    *,
    fine: bool = True,
    alone: bool = False,
    rotation_DD: NDArray[np.float64] = NO_ROTATION,
) -> Codes:
    """Codes of finite vectors, by rounding to nearest; without `fine` the upper nibbles alone.

    A scale is rounded up, so that no code has to be cut off. Shares are measured in float64 and rounded up: against
    the vector or, where the codes stand `alone` in its place, against what the whole code stands for.
    """
    num_rows, dim = vector_ND.shape
    width = (dim + 1) // 2
    upper_NP = np.empty((num_rows, width), np.uint8)
    lower_NP = np.empty((num_rows if fine else 0, width), np.uint8)
    scale_N = np.empty(num_rows, np.float32)
    upper_share_N, share_N = np.empty(num_rows, np.uint8), np.empty(num_rows, np.uint8)
    mean = mean_D.astype(np.float64)
    for first in range(0, num_rows, 4096):
        block = slice(first, first + 4096)
        centred = vector_ND[block].astype(np.float64) - mean
        if rotation_DD.size:
            centred = centred @ rotation_DD.T
        largest = np.abs(centred).max(axis=1, initial=0.0)
        scale = (largest / CODE_MAX).astype(np.float32)
        short = scale.astype(np.float64) * CODE_MAX < largest
        scale[short] = np.nextafter(scale[short], np.float32(np.inf))
        wide = scale.astype(np.float64)[:, None]
        steps = centred / np.where(wide > 0, wide, 1.0)
        code = np.rint(steps)
        byte = (code + 128).astype(np.uint8)
        upper = byte >> np.uint8(4)
        upper_NP[block] = pack(upper)
        if fine:
            lower_NP[block] = pack(byte & np.uint8(15))
        middle = 16.0 * upper - UPPER_MIDDLE
        if alone:
            steps = np.where(fine, code, middle)
        share_N[block] = _share(steps - code if fine else steps - middle, UNIT if fine else UPPER_UNIT)
        upper_share_N[block] = _share(steps - middle, UPPER_UNIT)
        scale_N[block] = scale
    return Codes(upper_NP, lower_NP, scale_N, upper_share_N, share_N, mean_D, rotation_DD)


def decode_steps(codes: Codes, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64[M,D]: the codes of some rows; the middles of what their upper nibbles leave open if those are all."""
    dim = codes.mean_D.size
    steps = 16.0 * unpack(codes.upper_NP[rows], dim)
    return steps + (unpack(codes.lower_NP[rows], dim) - 128.0 if codes.is_fine else -UPPER_MIDDLE)


def decode_rows(codes: Codes, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """float32[M,D]: the vectors that the codes of some rows stand for."""
    wide = codes.scale_N[rows].astype(np.float64)[:, None]
    steps = decode_steps(codes, rows)
    if codes.rotation_DD.size:
        steps = steps @ codes.rotation_DD
    return (codes.mean_D.astype(np.float64) + wide * steps).astype(np.float32)


def pack(nibble_ND: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8[N,P]: two dimensions a byte."""
    width = (nibble_ND.shape[1] + 1) // 2
    packed = nibble_ND[:, :width].copy()
    packed[:, : nibble_ND.shape[1] - width] |= nibble_ND[:, width:] << 4
    return packed


def unpack(plane_NP: NDArray[np.uint8], dim: int) -> NDArray[np.uint8]:
    """uint8[N,D]: the nibbles of a plane."""
    return np.concatenate([plane_NP & 15, plane_NP >> 4], axis=1)[:, :dim]


def random_rotation(dim: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """float64[D,D]: orthogonal, uniform over rotations and reflections."""
    basis_DD, upper_DD = np.linalg.qr(rng.standard_normal((dim, dim)))
    return np.ascontiguousarray(basis_DD * np.where(np.diag(upper_DD) < 0, -1.0, 1.0))


def rotate_query(query_D: NDArray[np.float32], rotation_DD: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64[D]: the query as the codes see it. Summed in numpy's order, which is the same wherever it runs."""
    query = query_D.astype(np.float64)
    return (rotation_DD * query).sum(axis=1) if rotation_DD.size else query


def encode_query(
    query_D: NDArray[np.float32], mean_D: NDArray[np.float32], rotation_DD: NDArray[np.float64] = NO_ROTATION
) -> QueryCode:
    """Quantise a finite query to 11 bits a dimension, and bound what that loses."""
    mean_score, spread = _score_mean(query_D, mean_D)
    query = rotate_query(query_D, rotation_DD)
    dim = query.size
    width = (dim + 1) // 2
    scale = float(np.abs(query).max(initial=0.0)) / STEP_MAX
    step = np.clip(np.rint(query / scale), -STEP_MAX, STEP_MAX) if scale > 0 else np.zeros(dim)
    lost = np.abs(query - step * scale).sum()
    norm = float(np.sqrt(query @ query)) * (1 + 1e-9)
    scale_error = CODE_MAX * float(lost * (1 + 1e-9) + np.abs(query).sum() * 2.0**-44)
    if rotation_DD.size:
        # Neither side is rotated exactly: each loses less than dim ** 1.5 * 2 ** -51 of its length, the matrix's own
        # error included, and a row is no longer than sqrt(dim) * CODE_MAX steps.
        scale_error += norm * CODE_MAX * dim**2 * 2.0**-49
    step_2L = np.zeros((2, (width + LINE - 1) // LINE * LINE), np.int16)
    step_2L[0, :width], step_2L[1, : dim - width] = step[:width], step[width:]
    high_2L = (step_2L + 8) >> 4
    # mean_score is one long sum, so its slack grows with the number of terms.
    return QueryCode(
        *(step_2L, high_2L.astype(np.int8), (step_2L - 16 * high_2L).astype(np.int8), int(step.sum())),
        *(scale, mean_score, scale_error, norm, spread * (dim + 16) * 2.0**-52),
    )


def _score_mean(query_D: NDArray[np.float32], mean_D: NDArray[np.float32]) -> tuple[float, float]:
    """q . mean, and the sum of the sizes of its terms."""
    query, mean = query_D.astype(np.float64), mean_D.astype(np.float64)
    return float(query @ mean), float(np.abs(query) @ np.abs(mean))


def encode_query_coarsely(query_D: NDArray[np.floating]) -> CoarseQuery:
    """Quantise a finite query, rotated where the codes are, to 8 bits a dimension.

    A row's score changes by at most error * scale_i * ||code_i|| (Cauchy-Schwarz), beside what `encode_query` bounds.
    """
    query = query_D.astype(np.float64)
    scale = float(np.abs(query).max(initial=0.0)) / CODE_MAX
    step = np.clip(np.rint(query / scale), -CODE_MAX, CODE_MAX) if scale > 0 else np.zeros(query.size)
    lost = query - step * scale
    error = float(np.sqrt(lost @ lost)) * (1 + 1e-9) + float(np.abs(query).sum()) * 2.0**-50
    return CoarseQuery(step.astype(np.int8), scale, error)


def _share(rest_ND: NDArray[np.float64], unit: float) -> NDArray[np.uint8]:
    norm = np.sqrt(np.einsum("nd,nd->n", rest_ND, rest_ND)) / (unit * np.sqrt(rest_ND.shape[1]))
    shares: NDArray[np.uint8] = np.ceil(norm * (1 + 1e-9) + 1e-9).astype(np.uint8)
    return shares
