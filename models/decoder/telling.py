"""From columns to words: members' exposures as conversations, each item told as it stood at its instant."""

# n = exposures, N = items, S = signals

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.data.events import EventTable
from models.data.schema import FeatureSchema
from models.data.signals import DecayedCounts
from models.decoder.exposures import Exposures
from models.decoder.sequences import Conversation
from models.decoder.verbalizer.numbers import NumberWords, Percentiles
from models.decoder.verbalizer.task import Interaction
from models.decoder.verbalizer.verbalizer import Verbalizer

MAX_TABLES = 256
"""Moments at which all items' signals are looked at anew; an item's own are read at every instant. Tables are held in
memory as long as the interactions are."""


def interactions_of(
    schema: FeatureSchema,
    items: Mapping[int, Mapping[str, object]],
    events: EventTable,
    exposures: Exposures,
    numbers: NumberWords,
    max_tables: int = MAX_TABLES,
) -> list[Interaction]:
    """Return the exposures as interactions, in their order, with signals from strictly earlier events.

    items: attributes by key; an item that is not among them has none.
    """
    counts = DecayedCounts(schema.signals)
    catalogue = np.array(sorted(items), dtype=np.int64)
    told: list[Interaction] = []
    position, next_table = 0, 0
    percentiles = Percentiles.of(schema.signals, np.zeros((0, len(schema.signals))), numbers)
    starts = np.flatnonzero(np.diff(exposures.ts_ms, prepend=np.iinfo(np.int64).min)).tolist()
    for start, stop in zip(starts, [*starts[1:], len(exposures)], strict=True):
        now_ms = int(exposures.ts_ms[start])
        known = int(np.searchsorted(events.ts_ms, now_ms, side="left"))
        new = slice(position, known)
        counts.add(events.item_keys[new], events.action_masks[new], events.ts_ms[new])
        position = known
        if start >= next_table:
            percentiles = Percentiles.of(schema.signals, counts.at(catalogue, now_ms), numbers)
            # Often at first, when every event moves the ranks, then ever less often.
            next_table = start + max(1, start // 32, len(exposures) // max_tables)
        signals = counts.at(exposures.item_keys[start:stop], now_ms)
        told += [
            Interaction(items.get(key, {}), mask, now_ms, percentiles.standing(signals[place]))
            for place, (key, mask) in enumerate(
                zip(exposures.item_keys[start:stop].tolist(), exposures.actions[start:stop].tolist(), strict=True)
            )
        ]
    return told


def tell(
    verbalizer: Verbalizer,
    users: Mapping[int, Mapping[str, object]],
    exposures: Exposures,
    interactions: Sequence[Interaction],
) -> list[tuple[Conversation, NDArray[np.int64]]]:
    """Return every member's conversations, with the rows of the exposures that their turns are of."""
    told = []
    for rows in exposures.by_member():
        mine = [interactions[row] for row in rows.tolist()]
        conversations = verbalizer.conversations(
            users.get(int(exposures.user_keys[rows[0]]), {}), mine, log_rates=exposures.log_rate[rows].tolist()
        )
        told += [
            (conversation, rows[places])
            for conversation, places in zip(conversations, verbalizer.places(mine), strict=True)
        ]
    return told
