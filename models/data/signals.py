"""Popularity signals: per-item counts that decay with time, kept by forward decay.

An event at time t adds 2^((t - landmark) / half_life); a stored sum is read at `now` by multiplying with
2^(-(now - landmark) / half_life). The increment does not depend on `now`, so adding commutes and the same
number can be added in a database, in an index and in training (Cormode et al., "Forward Decay", ICDE 2009).
Exponents grow with the distance to the landmark, so the landmark is moved, and sums rescaled, before any
passes MAX_EXPONENT. Reading before an event's own time gives it a weight above 1; readers ask at or after it.
"""

# n = events or keys, S = signals

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.data.schema import Signal

MAX_EXPONENT = 500.0
"""Half lives between landmark and event at which the landmark must move; float64 holds 1023."""


def decay_factors(signals: Sequence[Signal], landmark_ms: int, now_ms: int) -> NDArray[np.float64]:
    """Return f64[S]: what a sum stored against `landmark_ms` is multiplied with to be read at `now_ms`.

    Also the factors that move stored sums from an old landmark to a new one.
    """
    return np.array([_power(-(now_ms - landmark_ms), signal.half_life_ms) for signal in signals], dtype=np.float64)


def forward_increments(
    signals: Sequence[Signal],
    action_masks: NDArray[np.uint32],
    ts_ms: NDArray[np.int64],
    landmark_ms: int,
) -> NDArray[np.float64]:
    """Return f64[n, S]: what each event adds to each signal's stored sum.

    signals: from `FeatureSchema.signals`, whose bits are resolved.  masks: uint32[n].  ts_ms: int64[n].

    Raises ValueError for an unresolved signal and for an event so far past the landmark
    that the landmark must move first.
    """
    masks = np.asarray(action_masks, dtype=np.uint32)
    elapsed_ms = np.asarray(ts_ms, dtype=np.float64) - landmark_ms
    increments = np.empty((len(masks), len(signals)), dtype=np.float64)
    for column, signal in enumerate(signals):
        if signal.bit < 0:
            raise ValueError(f"signal {signal.name!r} has no action bit; take signals from a FeatureSchema's `signals`")
        exponents = np.zeros(len(masks)) if signal.half_life_ms is None else elapsed_ms / signal.half_life_ms
        if len(exponents) and exponents.max() > MAX_EXPONENT:
            raise ValueError(
                f"signal {signal.name!r}: an event is {exponents.max():.0f} half lives past landmark "
                f"{landmark_ms}; move the landmark before {MAX_EXPONENT:.0f}"
            )
        matched = (masks >> np.uint32(signal.bit)) & np.uint32(1)
        increments[:, column] = matched * np.exp2(exponents)
    return increments


def next_landmark(signals: Sequence[Signal], landmark_ms: int, ts_ms: int) -> int:
    """Return the landmark to add an event at `ts_ms` under: the old one, or `ts_ms` when it must move."""
    half_lives = [signal.half_life_ms for signal in signals if signal.half_life_ms is not None]
    if half_lives and (ts_ms - landmark_ms) / min(half_lives) > MAX_EXPONENT:
        return ts_ms
    return landmark_ms


class DecayedCounts:
    """Forward-decayed counts of every key, in memory."""

    def __init__(self, signals: Sequence[Signal]) -> None:
        self._signals = tuple(signals)
        self._landmark_ms: int | None = None
        self._rows: dict[int, int] = {}
        self._sums = np.zeros((0, len(self._signals)), dtype=np.float64)
        self._sorted_keys = np.zeros(0, dtype=np.int64)
        self._sorted_rows = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def landmark_ms(self) -> int | None:
        """The time stored sums are relative to; None before the first event."""
        return self._landmark_ms

    def keys(self) -> NDArray[np.int64]:
        """Return every key counted so far, in order of first appearance."""
        return np.fromiter(self._rows, dtype=np.int64, count=len(self._rows))

    def add(self, keys: NDArray[np.int64], action_masks: NDArray[np.uint32], ts_ms: NDArray[np.int64]) -> None:
        """Count n events. Order does not matter; a key may repeat."""
        if not len(keys) == len(action_masks) == len(ts_ms):
            raise ValueError(f"{len(keys)} keys, {len(action_masks)} masks, {len(ts_ms)} times")
        if not len(keys):
            return
        newest_ms = int(np.max(ts_ms))
        if self._landmark_ms is None:
            self._landmark_ms = newest_ms
        landmark_ms = next_landmark(self._signals, self._landmark_ms, newest_ms)
        if landmark_ms != self._landmark_ms:
            self._sums *= decay_factors(self._signals, self._landmark_ms, landmark_ms)
            self._landmark_ms = landmark_ms
        rows = np.fromiter(
            (self._rows.setdefault(key, len(self._rows)) for key in np.asarray(keys).tolist()), dtype=np.int64
        )
        if len(self._rows) > len(self._sums):
            grown = np.zeros((max(1024, 2 * len(self._rows)), len(self._signals)), dtype=np.float64)
            grown[: len(self._sums)] = self._sums
            self._sums = grown
        np.add.at(self._sums, rows, forward_increments(self._signals, action_masks, ts_ms, landmark_ms))

    def at(self, keys: NDArray[np.int64], now_ms: int) -> NDArray[np.float64]:
        """Return f64[n, S]: each key's counts decayed to `now_ms`; zeros for a key never counted."""
        counts = np.zeros((len(keys), len(self._signals)), dtype=np.float64)
        if self._landmark_ms is None:
            return counts
        rows = self._rows_of(np.asarray(keys, dtype=np.int64))
        known = rows >= 0
        counts[known] = self._sums[rows[known]] * decay_factors(self._signals, self._landmark_ms, now_ms)
        return counts

    def _rows_of(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64[n]: where each key's counts are; -1 for a key never counted."""
        if len(keys) * 8 < len(self._rows):
            return np.fromiter((self._rows.get(key, -1) for key in keys.tolist()), dtype=np.int64, count=len(keys))
        # Replays ask for the whole catalogue at every request: a search in sorted keys, which move only when a new
        # key is counted, takes a tenth of as many look-ups in a dict.
        if len(self._sorted_keys) != len(self._rows):
            counted = self.keys()
            self._sorted_rows = np.argsort(counted)
            self._sorted_keys = counted[self._sorted_rows]
        places = np.minimum(np.searchsorted(self._sorted_keys, keys), len(self._sorted_keys) - 1)
        return np.where(self._sorted_keys[places] == keys, self._sorted_rows[places], -1)


def _power(elapsed_ms: int, half_life_ms: int | None) -> float:
    # Past 1000 halvings the result is 0 within float64; past 1000 doublings there is nothing to read.
    return 1.0 if half_life_ms is None else float(np.exp2(np.clip(elapsed_ms / half_life_ms, -1000.0, 1000.0)))
