"""The inner product of two float32 vectors, rounded once to float64.

1. T. Ogita, S. Rump, S. Oishi, Accurate Sum and Dot Product, SIAM J. Sci. Comput. 26(6), 2005: Dot2 and its bound.
2. J. Shewchuk, Adaptive Precision Floating-Point Arithmetic, Discrete Comput. Geom. 18, 1997: the fallback.
"""

# N = rows, D = dimensions

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.cpu.compile import compiled

MAX_PARTIALS = 64  # non-overlapping parts of a sum of float32 products: they span about 560 bits


@compiled
def exact_dot(vector_ND: NDArray[np.float32], row: int, query_D: NDArray[np.float64]) -> float:
    """q . vector[row], correctly rounded. The products are exact; only their sum can round.

    The sum is carried as total + rest. Where the bound on what both lose together leaves the rounding of the
    result open, the sum is done again in exact parts.
    """
    total: float = 0.0
    rest: float = 0.0
    size = 0.0
    lost = 0.0
    for dimension in range(query_D.shape[0]):
        product = np.float64(vector_ND[row, dimension]) * query_D[dimension]
        added = total + product
        part = added - total
        error = (total - (added - part)) + (product - part)
        total = added
        rest += error
        lost += abs(error)
        size += abs(product)
    if lost == 0.0:
        return total + 0.0  # no addition rounded
    width = query_D.shape[0] * 2.0**-52
    open_bound = width * width * size + abs(rest) * 2.0**-51
    low: float = total + (rest - open_bound)
    high = total + (rest + open_bound)
    if low == high:
        return low
    return _sum_exactly(vector_ND, row, query_D)


@compiled
def _sum_exactly(vector_ND: NDArray[np.float32], row: int, query_D: NDArray[np.float64]) -> float:
    partials = np.empty(MAX_PARTIALS, np.float64)
    used = 0
    high: float = 0.0
    low: float = 0.0
    for dimension in range(query_D.shape[0]):
        value = np.float64(vector_ND[row, dimension]) * query_D[dimension]
        kept = 0
        for index in range(used):
            other = partials[index]
            if abs(value) < abs(other):
                value, other = other, value
            high = value + other
            low = other - (high - value)
            if low != 0.0:
                partials[kept] = low
                kept += 1
            value = high
        partials[kept] = value
        used = kept + 1
    # Add from the largest; the first part that does not fit decides, and a tie looks at the next part's sign.
    if used == 0:
        return 0.0
    used -= 1
    high = partials[used]
    low = 0.0
    while used > 0:
        used -= 1
        value = high
        other = partials[used]
        high = value + other
        low = other - (high - value)
        if low != 0.0:
            break
    if used > 0 and ((low < 0.0 and partials[used - 1] < 0.0) or (low > 0.0 and partials[used - 1] > 0.0)):
        other = low * 2.0
        value = high + other
        if other == value - high:
            high = value
    return high + 0.0
