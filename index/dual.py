"""Two indexes of different embedding versions: one serves while the other is filled, then they change places.

Vectors of two embedding models share no space, so a query names the version that encoded it and is answered
by the index of that version or not at all. It does not know models, and it does not fill an index: whoever
applies a stream applies it to both.
"""

from __future__ import annotations

from threading import Lock

from numpy.typing import ArrayLike

from index.hits import Hits
from index.live import LiveIndex
from index.tree import Filter


class DualIndex:
    """The serving index, and for the time of a change of version the one that will serve next."""

    def __init__(self, version: str, index: LiveIndex) -> None:
        self._lock = Lock()  # one change of the pair at a time; readers take the tuple as a whole
        self._indexes: tuple[tuple[str, LiveIndex], ...] = ((version, index),)

    @property
    def version(self) -> str:
        """The embedding version that new queries are to be encoded with."""
        return self._indexes[0][0]

    @property
    def versions(self) -> tuple[str, ...]:
        """Every version that is answered: the serving one first."""
        return tuple(version for version, _ in self._indexes)

    @property
    def serving(self) -> LiveIndex:
        return self._indexes[0][1]

    def get(self, version: str) -> LiveIndex:
        """The index of a version; ValueError where it is not (or no longer) here."""
        indexes = self._indexes
        for each, index in indexes:
            if each == version:
                return index
        raise ValueError(f"embedding version {version!r}: the index has {[each for each, _ in indexes]}")

    def begin(self, version: str, index: LiveIndex) -> None:
        """Put an index of another version beside the serving one, to be filled.

        Raises ValueError where the version serves already or a change is under way.
        """
        with self._lock:
            if len(self._indexes) > 1:
                raise ValueError(f"embedding version {version!r}: {list(self.versions)} are here; retire one first")
            if version == self.version:
                raise ValueError(f"embedding version {version!r} serves already")
            self._indexes = (*self._indexes, (version, index))

    def switch(self) -> str:
        """Let the other version serve; the old one still answers the queries pinned to it, and can come back.

        Returns the version that serves now; ValueError where there is no other one.
        """
        with self._lock:
            if len(self._indexes) < 2:
                raise ValueError(f"embedding version {self.version!r} is the only one")
            self._indexes = self._indexes[::-1]
            return self.version

    def retire(self) -> str | None:
        """Drop the version that does not serve, and its memory when its last search is over; its name or None."""
        with self._lock:
            gone = self._indexes[1][0] if len(self._indexes) > 1 else None
            self._indexes = self._indexes[:1]
            return gone

    def search(
        self,
        query: ArrayLike,
        k: int,
        filter: Filter | None = None,
        exclude: ArrayLike | None = None,
        *,
        version: str,
    ) -> Hits:
        """`LiveIndex.search` of the index of `version`, the one that encoded the query; ValueError without it."""
        return self.get(version).search(query, k, filter, exclude)
