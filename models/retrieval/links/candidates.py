"""Candidate links: all sets of meta links that hold together of enough confirmed hires.

The paper adds all 2^k - 1 subsets of the k meta links of a hire and counts. The same sets are found level by level
here, as in Apriori: a set can only be frequent if the set without its last part is.
"""

# P = pairs, K = meta links of a pair, C = columns of a pair kept, E = (pair, link) entries

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 15


@dataclass(frozen=True, slots=True)
class Entries:
    """Which links hold of which pairs: the places of the ones of a matrix, by row."""

    rows: NDArray[np.int64]
    links: NDArray[np.int64]


class CandidateLinks:
    """Sets of meta links, numbered by size and then by code."""

    def __init__(self, codes_PK: NDArray[np.int64], *, max_size: int, min_support: int, max_per_pair: int) -> None:
        """Find all sets of up to `max_size` codes that stand together in at least `min_support` rows.

        max_per_pair: of a row with more frequent codes than that, the most frequent are looked at.
        """
        codes, counts = np.unique(codes_PK[codes_PK >= 0], return_counts=True)
        frequent = counts >= min_support
        codes, counts = codes[frequent], counts[frequent]
        self._codes = codes
        """Sorted codes of the frequent meta links."""
        self._rank = np.empty(len(codes), np.int64)
        self._rank[np.argsort(-counts, kind="stable")] = np.arange(len(codes))
        self._by_rank = codes[np.argsort(self._rank)]
        self._max_per_pair = max_per_pair
        self.num_cut = int((self._present(codes_PK) > max_per_pair).sum())
        """Rows of which not all frequent codes were looked at."""
        self._levels: list[NDArray[np.int64]] = [np.arange(len(codes))]
        """Of each size, the sorted numbers prefix * M + last, where prefix is a place in the level before."""
        ids_PC = self._ids(codes_PK)
        for _ in range(1, max_size):
            found = [level for _, level in self._walk(ids_PC, extend=True)]
            joined = np.concatenate([np.zeros(0, np.int64), *found])
            sets, counts = np.unique(joined[joined >= 0], return_counts=True)
            self._levels.append(sets[counts >= min_support])

    def __len__(self) -> int:
        return sum(len(level) for level in self._levels)

    def codes_of(self, link: int) -> tuple[int, ...]:
        """Return the codes of one link."""
        size = 0
        while link >= len(self._levels[size]):
            link -= len(self._levels[size])
            size += 1
        ranks: list[int] = []
        for level in range(size, 0, -1):
            link, last = divmod(int(self._levels[level][link]), len(self._codes))
            ranks.append(last)
        return tuple(int(self._by_rank[rank]) for rank in [link, *reversed(ranks)])

    def sizes(self) -> NDArray[np.int64]:
        """Return the number of meta links of each link."""
        return np.repeat(np.arange(1, len(self._levels) + 1), [len(level) for level in self._levels])

    def match(self, codes_PK: NDArray[np.int64]) -> Entries:
        """Return which links hold of which rows, sorted by row."""
        rows, links = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        starts = np.cumsum([0, *(len(level) for level in self._levels)])
        for start in range(0, len(codes_PK), _CHUNK):
            for size, places in self._walk(self._ids(codes_PK[start : start + _CHUNK]), extend=False):
                held = np.flatnonzero(places >= 0)
                rows.append(held + start)
                links.append(places[held] + starts[size])
        all_rows, all_links = np.concatenate(rows), np.concatenate(links)
        order = np.lexsort((all_links, all_rows))
        return Entries(all_rows[order], all_links[order])

    def _present(self, codes_PK: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(np.isin(codes_PK, self._codes).sum(axis=1))

    def _ids(self, codes_PK: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64[P, C]: the ranks of each row's frequent codes, ascending; M in unused places."""
        size = len(self._codes)
        if not size:
            return np.zeros((len(codes_PK), 0), np.int64)
        places = np.minimum(np.searchsorted(self._codes, codes_PK), size - 1)
        ids = np.where(self._codes[places] == codes_PK, self._rank[places], size)
        return np.sort(ids, axis=1)[:, : self._max_per_pair]

    def _walk(self, ids_PC: NDArray[np.int64], *, extend: bool) -> Sequence[tuple[int, NDArray[np.int64]]]:
        """Return, for every choice of columns, (size - 1, int64[P] places of the chosen sets in their level).

        -1 where the set is no candidate. extend: return only the choices one larger than the levels there are, as
        numbers that have no places yet.
        """
        size, num_columns = len(self._codes), ids_PC.shape[1]
        ids = [np.where(ids_PC[:, column] < size, ids_PC[:, column], -1) for column in range(num_columns)]
        layer = list(enumerate(ids))
        found: list[tuple[int, NDArray[np.int64]]] = [] if extend else [(0, places) for _, places in layer]
        for level in range(1, len(self._levels) + extend):
            following = []
            for last, prefix in layer:
                for column in range(last + 1, num_columns):
                    both = (prefix >= 0) & (ids[column] >= 0)
                    if not both.any():
                        break  # ids ascend, so the columns after hold nothing either
                    numbers = np.where(both, prefix * size + ids[column], -1)
                    if level < len(self._levels):
                        numbers = _find(self._levels[level], numbers)
                    following.append((column, numbers))
            layer = following
            if not extend or level == len(self._levels):
                found += [(level, places) for _, places in layer]
        return found


def _find(ordered: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place of each number in a sorted array, -1 where it does not stand there."""
    if not len(ordered):
        return np.full(len(numbers), -1, np.int64)
    places = np.minimum(np.searchsorted(ordered, numbers), len(ordered) - 1)
    return np.where(ordered[places] == numbers, places, -1)
