"""Attributes as arrays: keywords and words become 64-bit hashes, numbers become float32 with a missing flag.

There is no vocabulary: a value never seen in training hashes to embedding rows like any other.
"""

# n = rows, W = widest bag of a feature, F = numeric features

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.data.schema import Feature

MAX_VALUES = 32
"""Values of one list, and distinct words of one text, that are kept; the rest are dropped."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class AttributeBatch:
    """Encoded attributes of n rows."""

    bags: tuple[NDArray[np.int64], ...]
    """One int64[n, W] per keyword, keyword_list or text feature, in schema order; 0 in unused places."""
    numbers: NDArray[np.float32]
    """float32[n, F] per number or timestamp feature, in schema order; 0 where missing."""
    missing: NDArray[np.bool_]
    """bool[n, F]."""


def is_numeric(feature: Feature) -> bool:
    """Whether a feature is a column of numbers rather than a bag of hashes."""
    return feature.kind in ("number", "timestamp")


def hash_value(field: str, value: str) -> int:
    """Return the signed 64-bit hash of `field=value`; 0 is kept for "nothing here"."""
    digest = xxhash.xxh3_64_intdigest(f"{field}={value}".encode())
    return (digest - (1 << 64) if digest >= 1 << 63 else digest) or 1


def encode_attributes(features: Sequence[Feature], rows: Sequence[Mapping[str, object]]) -> AttributeBatch:
    """Encode n attribute mappings.

    An absent key or None is a missing value; an attribute that is no feature is ignored.

    Raises ValueError when a numeric feature holds something that is not a number.
    """
    bags = tuple(_encode_bag(feature, rows) for feature in features if not is_numeric(feature))
    numeric = [feature for feature in features if is_numeric(feature)]
    numbers = np.zeros((len(rows), len(numeric)), dtype=np.float32)
    missing = np.ones((len(rows), len(numeric)), dtype=np.bool_)
    for column, feature in enumerate(numeric):
        for row, attributes in enumerate(rows):
            value = attributes.get(feature.name)
            if value is None:
                continue
            if not isinstance(value, (int, float)):
                raise ValueError(f"attribute {feature.name!r} is {value!r}; expected a number")
            if np.isfinite(value):
                numbers[row, column] = value
                missing[row, column] = False
    return AttributeBatch(bags, numbers, missing)


def _encode_bag(feature: Feature, rows: Sequence[Mapping[str, object]]) -> NDArray[np.int64]:
    hashed = [
        [hash_value(feature.name, value) for value in _values(feature, attributes.get(feature.name))]
        for attributes in rows
    ]
    bag = np.zeros((len(rows), max((len(values) for values in hashed), default=0)), dtype=np.int64)
    for row, values in enumerate(hashed):
        bag[row, : len(values)] = values
    return bag


def _values(feature: Feature, value: object) -> list[str]:
    if value is None:
        return []
    if feature.kind == "keyword":
        return [str(value)]
    if feature.kind == "text":
        found: Iterable[str] = _WORD.findall(str(value).casefold())
    else:
        found = [str(part) for part in value] if isinstance(value, (list, tuple, set)) else [str(value)]
    return list(dict.fromkeys(found))[:MAX_VALUES]
