"""What heads, rescoring and batching need of an index: `LiveIndex` and `FaissIndex` both have it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.hits import Hits
from index.tree import Filter


class Searchable(Protocol):
    """An index that answers the k best items of each query, and the vectors of keys."""

    @property
    def dim(self) -> int: ...

    def search(
        self, query: ArrayLike, k: int, filter: Filter | None = None, exclude: ArrayLike | None = None
    ) -> Hits: ...

    def vectors(self, keys: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.bool_]]: ...
