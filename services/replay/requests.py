"""Who would have asked, when, and what they then did: the questions of a replay.

Both kinds split on the global timeline, so nothing trained before the split has seen what comes after it.
"""

# R = relevant items of one request

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.events import EventTable
from models.data.schema import FeatureSchema

SESSION_GAP_MS = 3_600_000
"""A member's events further apart than this belong to two sessions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """One member at one instant; state of the world: every event strictly before `now_ms`."""

    user_key: int
    now_ms: int
    relevant: NDArray[np.int64]
    """int64[R]: distinct items, new to the member, with a positive action from `now_ms` until the horizon."""
    warm: bool
    """The member had a positive action before the split."""


def session_requests(events: EventTable, schema: FeatureSchema, split_ms: int) -> list[ReplayRequest]:
    """A request at the start of every session in the test window; relevant is what that session liked.

    Sessions without a positive action on an item that was new to the member ask nothing that can be judged;
    the caller reports how many there were: `num_sessions(...) - len(session_requests(...))`.
    """
    requests = []
    warm = _positive_members(events.between(None, split_ms), schema)
    seen = _seen_before(events.between(None, split_ms))
    for user_key, rows in _sessions(events.between(split_ms, None)):
        known = seen.setdefault(user_key, set())
        relevant = _new_positives(rows, schema, known)
        known.update(rows.item_keys[rows.action_masks != 0].tolist())
        if len(relevant):
            requests.append(
                ReplayRequest(user_key=user_key, now_ms=int(rows.ts_ms[0]), relevant=relevant, warm=user_key in warm)
            )
    return sorted(requests, key=lambda request: (request.now_ms, request.user_key))


def num_sessions(events: EventTable, split_ms: int) -> int:
    """Sessions in the test window, judged or not."""
    return sum(1 for _ in _sessions(events.between(split_ms, None)))


def split_requests(events: EventTable, schema: FeatureSchema, split_ms: int) -> list[ReplayRequest]:
    """One request per warm member, all at the split: the protocol of most published tables.

    Relevant is everything the member liked in the test window and had not seen before it.
    """
    warm = _positive_members(events.between(None, split_ms), schema)
    seen = _seen_before(events.between(None, split_ms))
    requests = []
    for user_key, rows in _by_member(events.between(split_ms, None)):
        relevant = _new_positives(rows, schema, seen.get(user_key, set()))
        if user_key in warm and len(relevant):
            requests.append(ReplayRequest(user_key=user_key, now_ms=split_ms, relevant=relevant, warm=True))
    return requests


def _new_positives(events: EventTable, schema: FeatureSchema, seen: set[int]) -> NDArray[np.int64]:
    positive = (events.action_masks >> np.uint32(schema.bit(schema.positive))) & np.uint32(1)
    liked = np.unique(events.item_keys[positive == 1])
    return liked[[key not in seen for key in liked.tolist()]] if len(liked) else liked


def _positive_members(events: EventTable, schema: FeatureSchema) -> set[int]:
    positive = (events.action_masks >> np.uint32(schema.bit(schema.positive))) & np.uint32(1)
    return set(np.unique(events.user_keys[positive == 1]).tolist())


def _seen_before(events: EventTable) -> dict[int, set[int]]:
    acted = events.take(events.action_masks != 0)
    return {user: set(rows.item_keys.tolist()) for user, rows in _by_member(acted)}


def _by_member(events: EventTable) -> Iterator[tuple[int, EventTable]]:
    order = np.argsort(events.user_keys, kind="stable")
    users, starts = np.unique(events.user_keys[order], return_index=True)
    for user, rows in zip(users.tolist(), np.split(order, starts[1:]), strict=True) if len(users) else ():
        yield user, events.take(rows)


def _sessions(events: EventTable) -> Iterator[tuple[int, EventTable]]:
    for user, rows in _by_member(events):
        breaks = np.flatnonzero(np.diff(rows.ts_ms) > SESSION_GAP_MS) + 1
        for part in np.split(np.arange(len(rows)), breaks):
            yield user, rows.take(part)
