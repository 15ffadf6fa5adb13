"""The encoded features of every item, updated live."""

# n = keys asked for, W = widest bag of a feature, F = numeric features

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.data.attributes import encode_attributes, is_numeric
from models.data.schema import FeatureSchema

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class ItemBatch:
    """Encoded features of n items. A key the table does not know has empty bags and missing numbers."""

    keys: NDArray[np.int64]
    bags: tuple[NDArray[np.int64], ...]
    """One int64[n, W] per non-numeric item feature, in schema order: value hashes, 0 in unused places."""
    numbers: NDArray[np.float32]
    """float32[n, F]; 0 where missing."""
    missing: NDArray[np.bool_]
    """bool[n, F]."""

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> ItemBatch:
        """Return the items at `rows`."""
        return ItemBatch(self.keys[rows], tuple(bag[rows] for bag in self.bags), self.numbers[rows], self.missing[rows])

    def last(self, length: int) -> ItemBatch:
        """Return the last `length` items."""
        return self.take(slice(max(0, len(self) - length), None))


class ItemTable:
    """Encoded item features by key. Safe for many readers beside writers: each call holds a lock briefly."""

    def __init__(self, schema: FeatureSchema) -> None:
        self.schema = schema
        self._lock = threading.Lock()
        self._rows: dict[int, int] = {}
        self._keys = np.zeros(0, dtype=np.int64)
        num_bags = sum(not is_numeric(feature) for feature in schema.item)
        num_numbers = len(schema.item) - num_bags
        self._bags = [np.zeros((0, 0), dtype=np.int64) for _ in range(num_bags)]
        self._numbers = np.zeros((0, num_numbers), dtype=np.float32)
        self._missing = np.ones((0, num_numbers), dtype=np.bool_)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def keys(self) -> NDArray[np.int64]:
        """Return every key, in no promised order."""
        with self._lock:
            return self._keys[: len(self._rows)].copy()

    def upsert(self, keys: NDArray[np.int64], attributes: Sequence[Mapping[str, object]]) -> None:
        """Add items or replace all their features. Of a key given twice the last one stays."""
        if len(keys) != len(attributes):
            raise ValueError(f"{len(keys)} keys for {len(attributes)} attribute rows")
        encoded = encode_attributes(self.schema.item, attributes)
        with self._lock:
            rows = np.fromiter(
                (self._rows.setdefault(key, len(self._rows)) for key in np.asarray(keys).tolist()),
                dtype=np.int64,
                count=len(keys),
            )
            self._reserve(len(self._rows), [bag.shape[1] for bag in encoded.bags])
            self._keys[rows] = keys
            self._numbers[rows] = encoded.numbers
            self._missing[rows] = encoded.missing
            for bag, new in zip(self._bags, encoded.bags, strict=True):
                bag[rows] = 0
                bag[rows, : new.shape[1]] = new

    def delete(self, keys: NDArray[np.int64]) -> int:
        """Remove items; return how many were there."""
        removed = 0
        with self._lock:
            for key in np.asarray(keys).tolist():
                row = self._rows.pop(key, None)
                if row is None:
                    continue
                removed += 1
                last = len(self._rows)
                if row != last:
                    moved = int(self._keys[last])
                    columns: list[NDArray[Any]] = [self._keys, self._numbers, self._missing, *self._bags]
                    for column in columns:
                        column[row] = column[last]
                    self._rows[moved] = row
        return removed

    def gather(self, keys: NDArray[np.int64]) -> ItemBatch:
        """Return the features of n keys, in their order; an unknown key has every feature missing."""
        keys = np.array(keys, dtype=np.int64)  # a batch's own: what came over a wire may not be written to
        with self._lock:
            rows = np.fromiter((self._rows.get(key, -1) for key in keys.tolist()), dtype=np.int64, count=len(keys))
            unknown = rows < 0
            if not self._rows:
                num_numbers = self._numbers.shape[1]
                return ItemBatch(
                    keys,
                    tuple(np.zeros((len(keys), bag.shape[1]), dtype=np.int64) for bag in self._bags),
                    np.zeros((len(keys), num_numbers), dtype=np.float32),
                    np.ones((len(keys), num_numbers), dtype=np.bool_),
                )
            bags = tuple(bag[rows] for bag in self._bags)
            numbers, missing = self._numbers[rows], self._missing[rows]
        for bag in bags:
            bag[unknown] = 0
        numbers[unknown] = 0.0
        missing[unknown] = True
        return ItemBatch(keys, bags, numbers, missing)

    def _reserve(self, num_rows: int, widths: list[int]) -> None:
        capacity = len(self._keys)
        if num_rows > capacity:
            capacity = max(1024, 2 * num_rows)
            self._keys = _grown(self._keys, (capacity,))
            self._numbers = _grown(self._numbers, (capacity, self._numbers.shape[1]))
            self._missing = _grown(self._missing, (capacity, self._missing.shape[1]))
        self._bags = [
            bag
            if bag.shape[0] == capacity and bag.shape[1] >= width
            else _grown(bag, (capacity, max(width, bag.shape[1])))
            for bag, width in zip(self._bags, widths, strict=True)
        ]


def _grown(array: NDArray[_Scalar], shape: tuple[int, ...]) -> NDArray[_Scalar]:
    grown = np.zeros(shape, dtype=array.dtype)
    grown[tuple(slice(0, size) for size in array.shape)] = array
    return grown
