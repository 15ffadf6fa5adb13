"""Link templates, and the meta links that hold between given members and items."""

# n = members or items, P = pairs, W = values of one attribute, K = meta links of one pair, at most

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.retrieval.links.rows import MetaLink, Scalar

Rows = Sequence[Mapping[str, object]]
MAX_VALUES = 32
"""Values of one list that are read; the rest are dropped."""


@dataclass(frozen=True, slots=True)
class LinkTemplate:
    """Which attribute of a member may be linked with which of an item."""

    member: str
    item: str
    same: bool = False
    """Only equal values: for attributes of many values, where every pair of values would be too many."""


def attribute_values(row: Mapping[str, object], name: str) -> list[Scalar]:
    """Return the values of an attribute, each once; none where it is absent.

    Raises ValueError for values that cannot be linked: a link compares words and whole numbers, not measures.
    """
    value = row.get(name)
    if value is None:
        return []
    values = list(value) if isinstance(value, (list, tuple, set)) else [value]
    scalars: dict[tuple[type, Scalar], Scalar] = {}  # True == 1 in Python: the type belongs to the value
    for each in values:
        if not isinstance(each, Scalar):
            raise ValueError(f"attribute {name!r} is {each!r:.80}; a link needs text, whole numbers or true and false")
        scalars.setdefault((type(each), each), each)
    return list(scalars.values())[:MAX_VALUES]


class MetaLinks:
    """The meta links of all pairs of given members and items, as codes; -1 is none."""

    def __init__(self, templates: Sequence[LinkTemplate], members: Rows, items: Rows) -> None:
        if not templates:
            raise ValueError("there are no link templates; expected at least one")
        self.templates = tuple(templates)
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64], list[Scalar], int]] = []
        start = 0
        for template in templates:
            places: dict[tuple[type, Scalar], int] = {}
            member_nW = _table(members, template.member, places)
            item_nW = _table(items, template.item, places)
            self._parts.append((member_nW, item_nW, [value for _, value in places], start))
            start += len(places) ** 2

    def of_pairs(self, members_P: NDArray[np.int64], items_P: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64[P, K]: the codes that hold of each pair of places, -1 in unused places."""
        columns = [np.full((len(members_P), 0), -1, np.int64)]
        for template, (member_nW, item_nW, values, start) in zip(self.templates, self._parts, strict=True):
            mine, theirs = member_nW[members_P][:, :, None], item_nW[items_P][:, None, :]
            holds = (mine >= 0) & (theirs >= 0) & ((mine == theirs) | (not template.same))
            codes = np.where(holds, start + mine * len(values) + theirs, -1).reshape(len(members_P), -1)
            width = int((codes >= 0).sum(axis=1).max(initial=0))
            columns.append(-np.sort(-codes, axis=1)[:, :width])
        return np.concatenate(columns, axis=1)

    def decode(self, code: int) -> MetaLink:
        """Return the meta link of a code."""
        for template, (_, _, values, start) in zip(self.templates, self._parts, strict=True):
            if start <= code < start + len(values) ** 2:
                mine, theirs = divmod(code - start, len(values))
                return MetaLink(template.member, values[mine], template.item, values[theirs])
        raise ValueError(f"{code} is no code of a meta link")


def _table(rows: Rows, name: str, places: dict[tuple[type, Scalar], int]) -> NDArray[np.int64]:
    """Return int64[n, W]: the places of the values of each row, -1 in unused places; new values are added."""
    found = [
        [places.setdefault((type(value), value), len(places)) for value in attribute_values(row, name)] for row in rows
    ]
    table = np.full((len(rows), max((len(values) for values in found), default=0)), -1, np.int64)
    for row, values in enumerate(found):
        table[row, : len(values)] = values
    return table
