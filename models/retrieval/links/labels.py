"""Which pairs of members and items were confirmed hires, and which were refused, as events tell it."""

# n = pairs

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.events import EventTable
from models.data.schema import FeatureSchema
from models.retrieval.links.mining import LabelledPairs, join_pairs, sample_others


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConfig:
    confirmed: str
    """The action that is a hire."""
    refused: str
    """The action that is a refusal where no hire followed it."""
    pending_ms: int = 4 * 86_400_000
    """A refusal as young as that, counted back from the newest event, may yet become a hire: it is left out."""
    sampled_per_hire: int = 0
    """Pairs drawn evenly for each hire, beside the refusals. They teach what nobody tries, too: what is popular, or
    near, and not only what qualifies."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pending_ms < 0 or self.sampled_per_hire < 0:
            raise ValueError(
                f"pending_ms {self.pending_ms}, sampled_per_hire {self.sampled_per_hire}; expected at least 0 each"
            )


def label_pairs(
    config: LabelConfig,
    schema: FeatureSchema,
    events: EventTable,
    member_keys: NDArray[np.int64],
    item_keys: NDArray[np.int64],
) -> LabelledPairs:
    """Return every pair once, by places in the two arrays of keys, in order of the pair's first event.

    A pair that was refused and then confirmed is a hire. Events of members or items that are not among the keys, and
    events that repeat one, change nothing.  member_keys, item_keys: different keys, in any order.
    """
    confirmed, refused = (np.uint32(1 << schema.bit(name)) for name in (config.confirmed, config.refused))
    members, known_members = _places(events.user_keys, member_keys)
    items, known_items = _places(events.item_keys, item_keys)
    rows = known_members & known_items & ((events.action_masks & (confirmed | refused)) != 0)
    members, items, masks, times_ms = members[rows], items[rows], events.action_masks[rows], events.ts_ms[rows]
    codes, first, inverse = np.unique(members * max(1, len(item_keys)) + items, return_index=True, return_inverse=True)
    hired = np.zeros(len(codes), np.bool_)
    hired[inverse[(masks & confirmed) != 0]] = True
    newest = np.full(len(codes), -(1 << 62))
    np.maximum.at(newest, inverse, times_ms)
    decided = hired | (newest <= (int(events.ts_ms[-1]) if len(events) else 0) - config.pending_ms)
    first, codes, hired = first[decided], codes[decided], hired[decided]
    known = LabelledPairs(members[first], items[first], hired)
    parts = [(known, times_ms[first])]
    if config.sampled_per_hire:
        hires, hire_times = known.take(hired), times_ms[first[hired]]
        random = np.random.default_rng(config.seed)
        others = sample_others(hires, len(item_keys), config.sampled_per_hire, random, codes)
        parts.append((others, random.permutation(np.resize(hire_times, len(others)))))
    return join_pairs(parts)


def _places(keys: NDArray[np.int64], known: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the place of each key among the known ones, and whether it has one."""
    if not len(known):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), np.bool_)
    order = np.argsort(known, kind="stable")
    places = order[np.minimum(np.searchsorted(known, keys, sorter=order), len(known) - 1)]
    return places, known[places] == keys
