"""What is known of members and items right now: histories, seen items, popularity. Reads only; `consumer` writes.

A history is a sorted set of packed entries by time. An entry begins with the number of the event that made it,
big-endian, so that entries of one millisecond keep the order of arrival, and no two entries are ever equal.
Popularity is kept by forward decay (see `models.data.signals`): sums relative to one landmark, read at any `now`.
"""

# n = keys, S = signals

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.schema import Signal
from models.data.signals import decay_factors
from models.data.state import History, UserState
from services.keys import key_of, pack_key
from services.storage.client import Client, Command
from services.storage.documents import parse_document
from services.storage.errors import KeyCollision
from services.storage.names import Names

HISTORY_ENTRY = np.dtype([("sequence", ">u8"), ("key", "<i8"), ("actions", "<u4"), ("value", "<f4"), ("ts_ms", "<i8")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Hydrated:
    """A member at one instant."""

    user_id: str
    known: bool
    """Whether the member has a document; a member with events alone has none."""
    profile: Mapping[str, Any]
    history: History
    seen: NDArray[np.int64]
    """Distinct keys of items acted on, ascending."""

    @property
    def state(self) -> UserState:
        return UserState(self.profile, self.history)


@dataclass(frozen=True, slots=True)
class Popular:
    """The best items by a signal, best first."""

    keys: NDArray[np.int64]
    values: NDArray[np.float64]
    """Counts decayed to the moment asked for."""


class UserStateStore:
    def __init__(self, client: Client, names: Names) -> None:
        self._client = client
        self._names = names

    def hydrate(self, user_id: str) -> Hydrated:
        """Return profile, history and seen items in one round trip; all empty for an unknown member."""
        return self.hydrate_many([user_id])[0]

    def hydrate_many(self, user_ids: Sequence[str]) -> list[Hydrated]:
        commands: list[Command] = []
        packed_keys = []
        for user_id in user_ids:
            key = key_of(user_id)
            packed_keys.append(pack_key(key))
            commands += [
                ("HGET", self._names.documents("users"), packed_keys[-1]),
                ("ZRANGE", self._names.history(key), 0, -1),
                ("SMEMBERS", self._names.seen(key)),
            ]
        replies = self._client.pipeline(commands)
        return [
            _hydrated(user_id, packed, *replies[3 * i : 3 * i + 3])
            for i, (user_id, packed) in enumerate(zip(user_ids, packed_keys, strict=True))
        ]


class Popularity:
    def __init__(self, client: Client, names: Names) -> None:
        self._client = client
        self._names = names

    def top(self, signal: Signal, k: int, now_ms: int) -> Popular:
        """Return the k items with the highest value of a signal; fewer where fewer have one."""
        if k < 1:
            raise ValueError(f"k is {k}; expected at least 1")
        landmark, flat = self._client.atomically(
            [
                ("HGET", self._names.state, "landmark_ms"),
                ("ZREVRANGE", self._names.popularity(signal.name), 0, k - 1, "WITHSCORES"),
            ]
        )
        keys = np.frombuffer(b"".join(flat[::2]), dtype="<i8").astype(np.int64)
        stored = np.array([float(score) for score in flat[1::2]], dtype=np.float64)
        return Popular(keys, stored if landmark is None else stored * decay_factors([signal], int(landmark), now_ms))

    def values(
        self, signals: Sequence[Signal], keys: NDArray[np.int64] | Sequence[int], now_ms: int
    ) -> NDArray[np.float64]:
        """Return f64[n, S]: each item's signals decayed to `now_ms`, 0 for an item without events."""
        if not len(keys) or not signals:
            return np.zeros((len(keys), len(signals)))
        packed = [pack_key(int(key)) for key in keys]
        commands: list[Command] = [("HGET", self._names.state, "landmark_ms")]
        commands += [("ZMSCORE", self._names.popularity(signal.name), *packed) for signal in signals]
        landmark, *columns = self._client.atomically(commands)
        stored = stored_sums(columns)
        return stored if landmark is None else stored * decay_factors(signals, int(landmark), now_ms)

    def size(self, signal: Signal) -> int:
        """Return how many items have a value of the signal."""
        return int(self._client.call("ZCARD", self._names.popularity(signal.name)))


def stored_sums(columns: Sequence[Sequence[bytes | None]]) -> NDArray[np.float64]:
    """Return f64[n, S] of S ZMSCORE replies."""
    return np.array(
        [[0.0 if score is None else float(score) for score in column] for column in columns], dtype=np.float64
    ).T


def unpack_history(members: Sequence[bytes]) -> History:
    entries = np.frombuffer(b"".join(members), dtype=HISTORY_ENTRY)
    return History(
        entries["key"].astype(np.int64),
        entries["actions"].astype(np.uint32),
        entries["value"].astype(np.float32),
        entries["ts_ms"].astype(np.int64),
    )


def _hydrated(
    user_id: str, packed: bytes, raw: bytes | None, members: Sequence[bytes], seen: Sequence[bytes]
) -> Hydrated:
    profile: Mapping[str, Any] = {}
    if raw is not None:
        document = parse_document(packed, raw)
        if document.id != user_id:
            raise KeyCollision((document.id, user_id))
        profile = document.attributes
    return Hydrated(
        user_id=user_id,
        known=raw is not None,
        profile=profile,
        history=unpack_history(members),
        seen=np.sort(np.frombuffer(b"".join(seen), dtype="<i8").astype(np.int64)),
    )
