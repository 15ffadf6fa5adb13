"""Which way a query runs. Every way gives the same hits; only the time differs."""

from __future__ import annotations

from kernels.filtered_topk import Strategy

GATHER_PER_RESULT = 2  # the scan would keep about that many candidates anyway
GATHER_ROWS = 64


def choose_strategy(num_matched: int, k: int) -> Strategy:
    """gather: score the few matches in full precision; stream: scan codes first, then score what is left."""
    return "gather" if num_matched <= max(GATHER_ROWS, GATHER_PER_RESULT * k) else "stream"
