"""Which links hold: of a member's profile, of items, of pairs of both."""

# n = items or pairs, F = links

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.retrieval.links.rows import Link, Scalar
from models.retrieval.links.templates import Rows, attribute_values

Condition = tuple[str, Scalar]
Side = tuple[Condition, ...]
_Typed = tuple[tuple[str, type, Scalar], ...]


class ItemPostings:
    """An inverted index of items: which rows have a value of an attribute. Built once; never changes."""

    def __init__(self, items: Rows) -> None:
        self.num_items = len(items)
        self._items = items
        self._by_attribute: dict[str, dict[tuple[type, Scalar], NDArray[np.int64]]] = {}
        self._sides: dict[_Typed, NDArray[np.int64]] = {}

    def rows(self, side: Side) -> NDArray[np.int64]:
        """Return the places of the items that have all values of a side, ascending."""
        found = self._sides.get(_typed(side))
        if found is None:
            lists = sorted((self._having(name, value) for name, value in side), key=len)
            found = lists[0]
            for other in lists[1:]:
                found = np.intersect1d(found, other, assume_unique=True)
            self._sides[_typed(side)] = found
        return found

    def with_reach(self, link: Link) -> Link:
        """Return the link with the number of items that its item side holds of."""
        return replace(link, reach=len(self.rows(link.item_side)))

    def _having(self, name: str, value: Scalar) -> NDArray[np.int64]:
        if name not in self._by_attribute:
            places: dict[tuple[type, Scalar], list[int]] = {}
            for place, row in enumerate(self._items):
                for each in attribute_values(row, name):
                    places.setdefault((type(each), each), []).append(place)
            self._by_attribute[name] = {key: np.array(rows, np.int64) for key, rows in places.items()}
        return self._by_attribute[name].get((type(value), value), np.zeros(0, np.int64))


class LinkSet:
    """The enabled links of a set, found by what must hold of a member. Built once; never changes."""

    def __init__(self, links: Iterable[Link]) -> None:
        self.links = tuple(link for link in links if link.enabled)
        segments: dict[_Typed, list[int]] = {}
        for place, link in enumerate(self.links):
            segments.setdefault(_typed(link.member_side), []).append(place)
        self.segments = tuple((self.links[places[0]].member_side, tuple(places)) for places in segments.values())
        """What must hold of a member, and the links that then reach items: the paper's seeker segments."""
        self._by_condition: dict[tuple[str, type, Scalar], list[int]] = {}
        for place, (side, _) in enumerate(self.segments):
            name, value = side[0]
            self._by_condition.setdefault((name, type(value), value), []).append(place)
        self._attributes = sorted({name for side, _ in self.segments for name, _ in side})

    def __len__(self) -> int:
        return len(self.links)

    def segments_of(self, profile: Mapping[str, object]) -> list[int]:
        """Return the places of the segments that the member is in, ascending."""
        held = {(name, type(value), value) for name in self._attributes for value in attribute_values(profile, name)}
        found = []
        for condition in held:
            for place in self._by_condition.get(condition, ()):
                if all((name, type(value), value) in held for name, value in self.segments[place][0]):
                    found.append(place)
        return sorted(found)

    def links_of(self, profile: Mapping[str, object]) -> list[Link]:
        """Return the links whose member side holds, the heaviest first."""
        found = [self.links[link] for place in self.segments_of(profile) for link in self.segments[place][1]]
        return sorted(found, key=lambda link: (-link.weight, link.text))


def score_items(links: Sequence[Link], postings: ItemPostings) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the items that any of a member's links reaches, ascending, and the sum of the weights of those that do."""
    rows = [postings.rows(link.item_side) for link in links]
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0)
    weights = np.repeat([link.weight for link in links], [len(each) for each in rows])
    reached, places = np.unique(np.concatenate(rows), return_inverse=True)
    return reached, np.bincount(places, weights, len(reached)).astype(np.float64)


def _typed(side: Side) -> _Typed:
    """Return a side that differs from another wherever a type does: 1 == True in Python."""
    return tuple((name, type(value), value) for name, value in side)
