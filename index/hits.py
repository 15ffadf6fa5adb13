"""What a search answers."""

# B = queries, K = results asked for

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """The best items of each query, best first; ties go to the lower key."""

    keys: NDArray[np.int64]  # [B,K]; -1 past the last match
    scores: NDArray[np.float32]  # [B,K]; -inf past the last match; ordered as float64, rounded afterwards
    exact: bool  # the hits are certified equal to a full-precision scan of every match
    recall: float | None = (
        None  # by 1-bit codes: what such searches found lately of an answer without; None: not measured
    )
    recall_samples: int = 0  # the number of searches that `recall` is the mean of
    num_matched: int  # live items that the filter admits and `exclude` does not name; or sum of `matched_per_query`
    num_scanned: int  # codes read, over all queries
    num_rescored: int  # float32 vectors read, over all queries
    strategy: (
        str  # "empty", "column", or what ran: "gather", "compact", "stream", "batch", "boosted", "signs", joined by "+"
    )
    matched_per_query: tuple[int, ...] = ()  # [B] with `filters` or `excludes`: what each query's own admit
    num_joined: int = 1  # calls that shared the search, see `BatchingIndex`
