"""The ranker's numeric features: one function, called by training and by serving.

Everything is computed from what was known at `now_ms`. No feature looks at another candidate, so a score does not
depend on what an item is ranked beside.
"""

# n = candidates, L = history entries, S = signals, F = candidate features, M = member features, W = bag width

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.attributes import is_numeric
from models.data.items import ItemBatch
from models.data.schema import FeatureSchema, Signal
from models.data.state import UserState

_HOUR_MS = 3_600_000.0
_DAY_MS = 24 * _HOUR_MS
_RECENT_ENTRIES = 10.0
"""Half life, in entries, of the weights of recent taste."""
_PRIOR = 3.0
"""Pseudo-events that smooth rates of few events."""


@dataclass(frozen=True, slots=True)
class RequestFeatures:
    """Numeric features of one request."""

    candidates: NDArray[np.float32]
    """float32[n, F]."""
    member: NDArray[np.float32]
    """float32[M]."""


class FeatureAssembler:
    """Assembles a request's numeric features.

    `centers` and `scales` hold the mean and the deviation of every numeric item feature; a missing value is read as
    the mean. Timestamps are scaled as they are, and also read as an age.
    """

    def __init__(self, schema: FeatureSchema, centers: NDArray[np.float64], scales: NDArray[np.float64]) -> None:
        self._schema = schema
        self._centers, self._scales = centers, scales
        self._positive_bit = np.uint32(schema.bit(schema.positive))
        numeric = [feature for feature in schema.item if is_numeric(feature)]
        self._timestamps = [place for place, feature in enumerate(numeric) if feature.kind == "timestamp"]
        bags = [feature for feature in schema.item if not is_numeric(feature)]
        self._bags = [place for place, feature in enumerate(bags) if feature.kind != "text"]
        self._rates, self._trends = _signal_pairs(schema.signals)
        self.candidate_names = (
            *(f"log {signal.name}" for signal in schema.signals),
            *(f"{schema.signals[a].name} / {schema.signals[b].name}" for a, b in self._rates + self._trends),
            *(f"{what} {numeric[place].name}" for place in self._timestamps for what in ("age of", "no")),
            *(
                f"{what} {bags[place].name}"
                for place in self._bags
                for what in ("share of positives with", "positive rate with", "recent share with")
            ),
            *(f"{what} {feature.name}" for what in ("", "far from liked", "far from recent") for feature in numeric),
            "retrieval score",
            "already acted on",
            "log times acted on",
            "log hours since acted on",
            "no positives",
        )
        self.member_names = ("log history", "positive rate", "log hours idle", "log actions in the last hour")

    def __call__(
        self,
        user: UserState,
        history_items: ItemBatch,
        items: ItemBatch,
        signals: NDArray[np.float64],
        retrieval_scores: NDArray[np.float32],
        now_ms: int,
    ) -> RequestFeatures:
        """Assemble one request.

        history_items: features of `user.history.keys`, in that order.  items: the n candidates.
        signals: f64[n, S] at `now_ms`.  retrieval_scores: f32[n], nan for a candidate that has none.
        """
        history = user.history
        if len(history_items) != len(history):
            raise ValueError(f"{len(history_items)} history items for a history of {len(history)}")
        if signals.shape != (len(items), len(self._schema.signals)) or len(retrieval_scores) != len(items):
            raise ValueError(
                f"signals {signals.shape} and {len(retrieval_scores)} retrieval scores for {len(items)} items; "
                f"expected ({len(items)}, {len(self._schema.signals)}) and {len(items)}"
            )
        liked = ((history.actions >> self._positive_bit) & np.uint32(1)).astype(np.float64)
        recent = liked * np.exp2(-np.arange(len(history) - 1, -1, -1) / _RECENT_ENTRIES)
        columns = [
            np.log1p(np.maximum(signals, 0.0)),
            *(_ratio(signals[:, a], signals[:, b])[:, None] for a, b in self._rates + self._trends),
            self._ages(items, now_ms),
            *(_affinity(history_items.bags[place], liked, recent, items.bags[place]) for place in self._bags),
            self._numbers(history_items, liked, recent, items),
            np.nan_to_num(retrieval_scores.astype(np.float64), nan=-1.0)[:, None],
            _repeats(user, items.keys, now_ms),
            np.full((len(items), 1), float(not liked.any())),
        ]
        return RequestFeatures(np.hstack(columns).astype(np.float32), self._member(user, liked, now_ms))

    def _ages(self, items: ItemBatch, now_ms: int) -> NDArray[np.float64]:
        columns = np.zeros((len(items), 2 * len(self._timestamps)))
        for column, place in enumerate(self._timestamps):
            days = np.maximum(now_ms - items.numbers[:, place].astype(np.float64), 0.0) / _DAY_MS
            missing = items.missing[:, place]
            columns[:, 2 * column] = np.where(missing, 0.0, np.log1p(days))
            columns[:, 2 * column + 1] = missing
        return columns

    def _numbers(
        self,
        history_items: ItemBatch,
        liked: NDArray[np.float64],
        recent: NDArray[np.float64],
        items: ItemBatch,
    ) -> NDArray[np.float64]:
        scaled = self._scaled(items)
        columns = [scaled]
        past = self._scaled(history_items)
        for weights in (liked, recent):
            usable = weights[:, None] * ~history_items.missing
            total = usable.sum(axis=0)
            mean = (usable * past).sum(axis=0) / np.maximum(total, 1e-9)
            far = np.abs(scaled - mean)
            far[:, total <= 0] = 0.0
            columns.append(np.where(items.missing, 0.0, far))
        return np.hstack(columns)

    def _scaled(self, items: ItemBatch) -> NDArray[np.float64]:
        scaled = np.clip((items.numbers.astype(np.float64) - self._centers) / self._scales, -5.0, 5.0)
        return np.where(items.missing, 0.0, scaled)

    def _member(self, user: UserState, liked: NDArray[np.float64], now_ms: int) -> NDArray[np.float32]:
        length = len(user.history)
        hours = np.maximum(now_ms - user.history.ts_ms, 0) / _HOUR_MS
        return np.array(
            [
                np.log1p(length),
                (liked.sum() + 0.5 * _PRIOR) / (length + _PRIOR),
                np.log1p(hours[-1]) if length else 0.0,
                np.log1p((hours < 1.0).sum()),
            ],
            dtype=np.float32,
        )


def _signal_pairs(signals: tuple[Signal, ...]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return which signals to divide: actions over the first action of one half life (rates), and of one action
    each half life over the next longer one (trends)."""
    rates, trends = [], []
    by_half_life: dict[int | None, list[int]] = {}
    by_action: dict[str, list[int]] = {}
    for place, signal in enumerate(signals):
        by_half_life.setdefault(signal.half_life_ms, []).append(place)
        by_action.setdefault(signal.action, []).append(place)
    for places in by_half_life.values():
        rates += [(place, places[0]) for place in places[1:]]
    for places in by_action.values():
        ordered = sorted(places, key=lambda place: signals[place].half_life_ms or float("inf"))
        trends += list(zip(ordered[:-1], ordered[1:], strict=True))
    return rates, trends


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.maximum(part, 0.0) / (np.maximum(whole, 0.0) + _PRIOR)
    return ratio


def _repeats(user: UserState, keys: NDArray[np.int64], now_ms: int) -> NDArray[np.float64]:
    """Return f64[n, 3]: whether, log how often and log how many hours ago the member acted on each candidate before.

    What is bought is bought again: where items repeat, this says more than anything else.
    """
    columns = np.zeros((len(keys), 3))
    if not len(user.history):
        return columns
    distinct, inverse, counts = np.unique(user.history.keys, return_inverse=True, return_counts=True)
    newest_ms = np.zeros(len(distinct), dtype=np.int64)
    newest_ms[inverse] = user.history.ts_ms  # oldest first: the last to be written is the newest
    places = np.minimum(np.searchsorted(distinct, keys), len(distinct) - 1)
    found = distinct[places] == keys
    hours = np.maximum(now_ms - newest_ms[places], 0) / _HOUR_MS
    columns[:, 0] = found
    columns[:, 1] = found * np.log1p(counts[places])
    columns[:, 2] = found * np.log1p(hours)
    return columns


def _affinity(
    history_LW: NDArray[np.int64],
    liked_L: NDArray[np.float64],
    recent_L: NDArray[np.float64],
    bags_NW: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return f64[n, 3]: means over a candidate's values of how the member took to each value before."""
    used_NW = bags_NW != 0
    if not history_LW.size or not used_NW.any():
        return np.zeros((len(bags_NW), 3))
    values, inverse = np.unique(history_LW, return_inverse=True)
    inverse = inverse.reshape(-1)
    width = history_LW.shape[1]
    seen, liked, recent = (
        np.bincount(inverse, weights=np.repeat(weights, width), minlength=len(values))
        for weights in (np.ones(len(liked_L)), liked_L, recent_L)
    )
    overall = (liked_L.sum() + 0.5 * _PRIOR) / (len(liked_L) + _PRIOR)
    places_NW = np.minimum(np.searchsorted(values, bags_NW), len(values) - 1)
    found_NW = used_NW & (values[places_NW] == bags_NW)
    count_N = np.maximum(used_NW.sum(axis=1), 1)
    per_value = (
        liked / max(float(liked_L.sum()), 1.0),
        (liked + _PRIOR * overall) / (seen + _PRIOR) - overall,
        recent / max(float(recent_L.sum()), 1e-9),
    )
    return np.stack([(value[places_NW] * found_NW).sum(axis=1) / count_N for value in per_value], axis=1)
