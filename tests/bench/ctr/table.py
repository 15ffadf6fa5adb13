"""Examples as the flat table that logistic regression, trees and field-wise networks take: the same features."""

# N = rows, F = numeric features, S = single-valued fields, W = places of a multi-valued field

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.attributes import encode_attributes, is_numeric
from tests.bench.ctr.log import SPLITS, PreparedLog

_RARE = 3
"""A value seen less often in training is read as unknown: code 0."""


@dataclass(frozen=True, slots=True)
class Rows:
    """One split."""

    numbers: NDArray[np.float32]
    """float32[N, F]: scaled by training's mean and deviation, cut at 6, as our network's batch norm has them."""
    singles: NDArray[np.int64]
    """int64[N, S]: codes, 0 unknown or absent."""
    lists: tuple[NDArray[np.int64], ...]
    """int64[N, W] each: codes, 0 in unused places and for unknown values."""
    labels: NDArray[np.bool_]
    """bool[N]: of the log's first task."""
    user_keys: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Table:
    splits: Mapping[str, Rows]
    single_names: tuple[str, ...]
    single_sizes: tuple[int, ...]
    """Codes of each single-valued field, the unknown one among them."""
    list_sizes: tuple[int, ...]


def flatten(prepared: PreparedLog) -> Table:
    """Return the examples' numbers, ids and attribute values. Vocabularies and scales are those of training rows."""
    schema, items = prepared.log.schema, prepared.log.items
    item_fields = [feature for feature in schema.item if not is_numeric(feature)]
    user_fields = [feature for feature in schema.user if not is_numeric(feature)]
    numbers, columns, wide = {}, {}, {}
    for split in SPLITS:
        examples = prepared.examples[split]
        sizes = [len(example.keys) for example in examples]
        profiles = encode_attributes(schema.user, [example.user.profile for example in examples])
        member = np.hstack([np.stack([e.features.member for e in examples]), profiles.numbers, profiles.missing])
        candidates = np.concatenate([example.features.candidates for example in examples])
        numbers[split] = np.hstack([candidates, np.repeat(member, sizes, axis=0)]).astype(np.float32)
        batch = items.gather(prepared.keys(split))
        bags = [
            *((f"item {feature.name}", bag) for feature, bag in zip(item_fields, batch.bags, strict=True)),
            *(
                (f"member {feature.name}", np.repeat(bag, sizes, axis=0))
                for feature, bag in zip(user_fields, profiles.bags, strict=True)
            ),
        ]
        many = {f"item {feature.name}" for feature in item_fields if feature.kind in ("keyword_list", "text")}
        columns[split] = {"member id": prepared.user_keys[split], "item id": batch.keys}
        columns[split] |= {
            name: bag[:, 0] if bag.shape[1] else np.zeros(len(bag), np.int64) for name, bag in bags if name not in many
        }
        wide[split] = {name: bag for name, bag in bags if name in many}
    mean, deviation = numbers["train"].mean(axis=0), numbers["train"].std(axis=0)
    vocabulary = {
        name: _vocabulary(values) for part in (columns["train"], wide["train"]) for name, values in part.items()
    }
    splits = {
        split: Rows(
            np.clip((numbers[split] - mean) / np.maximum(deviation, 1e-6), -6.0, 6.0).astype(np.float32),
            np.stack([_codes(values, vocabulary[name]) for name, values in columns[split].items()], axis=1),
            tuple(_codes(values, vocabulary[name]) for name, values in wide[split].items()),
            prepared.labels(split)[:, 0],
            prepared.user_keys[split],
        )
        for split in SPLITS
    }
    names = tuple(columns["train"])
    return Table(
        splits,
        names,
        tuple(len(vocabulary[name]) + 1 for name in names),
        tuple(len(vocabulary[name]) + 1 for name in wide["train"]),
    )


def _vocabulary(values: NDArray[np.int64]) -> NDArray[np.int64]:
    distinct, counts = np.unique(values, return_counts=True)
    return distinct[(counts >= _RARE) & (distinct != 0)]


def _codes(values: NDArray[np.int64], vocabulary: NDArray[np.int64]) -> NDArray[np.int64]:
    if not len(vocabulary):
        return np.zeros(values.shape, dtype=np.int64)
    places = np.minimum(np.searchsorted(vocabulary, values), len(vocabulary) - 1)
    return np.where(vocabulary[places] == values, places + 1, 0)
