"""The lists of several sources as one, with which of them brought each key."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.candidates import SOURCES

BITS = {name: np.uint32(1 << bit) for bit, name in enumerate(SOURCES)}


def blend(lists: Sequence[tuple[str, NDArray[np.int64]]], k: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """The first k different keys of the lists in their order, each with the mask of all lists it stands in."""
    keys = np.concatenate([found for _, found in lists])
    bits = np.repeat(np.array([BITS[name] for name, _ in lists], np.uint32), [len(found) for _, found in lists])
    unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    masks = np.zeros(len(unique), np.uint32)
    np.bitwise_or.at(masks, inverse, bits)
    chosen = np.argsort(first, kind="stable")[:k]
    return unique[chosen], masks[chosen]
