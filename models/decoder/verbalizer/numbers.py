"""Numbers in words: how an item's counts stand among all items as of one moment, and how long ago something was.

A small decoder reads "top 10%" and "71 of 100"; it does not read 48213.7. LinkedIn's semantic search found numeric
features as descriptive text worth 5.8 % AUC (arXiv 2602.07309).
"""

# N = items, S = signals

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.schema import Signal

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberWords:
    classes: tuple[int, ...] = (1, 5, 10, 25, 50, 75)
    """Bounds of the classes in percent of all items: "top 1%", "top 5%", ..., "bottom 25%"."""
    prior_count: float = 5.0
    """A rate of few is drawn to the rate of all items, as if by this many more of them."""
    min_count: float = 1.0
    """A rate of fewer than this many is not said."""

    def __post_init__(self) -> None:
        bounds = list(self.classes)
        if not bounds or bounds != sorted(set(bounds)) or bounds[0] < 1 or bounds[-1] > 99:
            raise ValueError(f"classes is {bounds}; expected rising percents of 1 to 99")
        if self.prior_count < 0.0:
            raise ValueError(f"prior_count is {self.prior_count}; expected 0 or more")
        if not self.min_count > 0.0:
            raise ValueError(f"min_count is {self.min_count}; expected above 0")


class Percentiles:
    """All items' signals as of one moment: what "top 10%" is measured against. Immutable; safe to share."""

    def __init__(self, signals: Sequence[Signal], signals_NS: NDArray[np.float64], words: NumberWords) -> None:
        """Use `of`."""
        self.places = {signal.name: place for place, signal in enumerate(signals)}
        self.words = words
        self._signals_NS = signals_NS
        self._sums = dict(zip(self.places, signals_NS.sum(axis=0).tolist(), strict=True))
        self._sorted: dict[tuple[str, ...], NDArray[np.float64]] = {}

    @classmethod
    def of(
        cls, signals: Sequence[Signal], signals_NS: NDArray[np.float64], words: NumberWords | None = None
    ) -> Percentiles:
        """Keep a copy of f64[N, S]; N may be 0, and then nothing has a class.

        Raises ValueError for another number of columns than signals.
        """
        if signals_NS.ndim != 2 or signals_NS.shape[1] != len(signals):
            raise ValueError(f"signals have shape {signals_NS.shape}; expected [items, {len(signals)}]")
        return cls(signals, np.array(signals_NS, dtype=np.float64), words or NumberWords())

    def standing(self, signals_S: NDArray[np.float64]) -> Standing:
        """Return how an item with these signals, f64[S] as of the same moment, stands. Raises ValueError for others."""
        if signals_S.shape != (len(self.places),):
            raise ValueError(f"an item's signals have shape {signals_S.shape}; expected ({len(self.places)},)")
        return Standing(np.array(signals_S, dtype=np.float64), self)

    def rate(self, part: float, whole: float, names: tuple[str, str]) -> float | None:
        """Return the share of `whole` that `part` is, drawn to that of all items; None where there are too few."""
        if whole < self.words.min_count:
            return None
        prior = self._prior(names)
        count = self.words.prior_count
        return min(1.0, (part + count * prior) / (whole + count))

    def share_at_least(self, value: float, names: tuple[str, ...]) -> float:
        """Return the share of items whose signal, or rate of two signals, is at least this; an item counts itself."""
        column = self._column(names)
        at_least = len(column) - int(np.searchsorted(column, value, side="left"))
        return max(1, at_least) / len(column) if len(column) else 1.0

    def share_below(self, value: float, names: tuple[str, ...]) -> float:
        column = self._column(names)
        return int(np.searchsorted(column, value, side="left")) / len(column) if len(column) else 0.0

    def _prior(self, names: tuple[str, str]) -> float:
        """Return the rate of all items together."""
        part, whole = (self._sums[name] for name in names)
        return part / whole if whole else 0.0

    def _column(self, names: tuple[str, ...]) -> NDArray[np.float64]:
        column = self._sorted.get(names)
        if column is None:
            values = [self._signals_NS[:, self.places[name]] for name in names]
            if len(values) == 2:
                part, whole = values
                said, count = whole >= self.words.min_count, self.words.prior_count
                prior = self._prior((names[0], names[1]))
                values = [np.minimum(1.0, (part[said] + count * prior) / (whole[said] + count))]
            column = self._sorted[names] = np.sort(values[0])  # two threads may both do it, and write the same
        return column


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """One item's signals beside all items'."""

    signals_S: NDArray[np.float64]
    percentiles: Percentiles

    def value(self, names: tuple[str, ...]) -> float | None:
        """Return a signal's count, or with two names the rate of the first in the second; None where there is none."""
        values = [float(self.signals_S[self.percentiles.places[name]]) for name in names]
        if len(values) == 2:
            return self.percentiles.rate(values[0], values[1], (names[0], names[1]))
        return values[0] if values[0] > 0.0 else None

    def top(self, names: tuple[str, ...]) -> str | None:
        """Return the class, like "top 5%" or "bottom 25%"; None where there is no value.

        Items of one value are of one class: the one in which the last of them is.
        """
        value = self.value(names)
        if value is None:
            return None
        share = 100.0 * self.percentiles.share_at_least(value, names)
        classes = self.percentiles.words.classes
        place = int(np.searchsorted(classes, share - 1e-9, side="left"))
        # Past the middle a class is named by what it is above: "top 75%" would sound like praise.
        if place < len(classes) and classes[place] <= 50:
            return f"top {classes[place]}%"
        return f"bottom {100 - classes[place - 1] if place else 100}%"

    def percentile(self, names: tuple[str, ...]) -> str | None:
        """Return how many of 100 items are below, like "93"; None where there is no value."""
        value = self.value(names)
        return None if value is None else str(int(100.0 * self.percentiles.share_below(value, names) + 1e-9))


def duration_words(elapsed_ms: int) -> str | None:
    """Return "5 hours", "1 day", "3 weeks", "7 months", "2 years"; None for a negative time and below an hour."""
    hours, days = elapsed_ms // _HOUR_MS, elapsed_ms // _DAY_MS
    if hours < 1:
        return None
    for below, count, unit in (
        (1, hours, "hour"),
        (14, days, "day"),
        (60, days // 7, "week"),
        (730, days // 30, "month"),
    ):
        if days < below:
            return f"{count} {unit}" if count == 1 else f"{count} {unit}s"
    return f"{days // 365} years"


def gap_words(elapsed_ms: int) -> str | None:
    """Return "3 days later"; None below an hour: that is the same sitting."""
    words = duration_words(elapsed_ms)
    return None if words is None else f"{words} later"


def age_words(elapsed_ms: int) -> str:
    """Return "3 days ago", "just now" below an hour."""
    words = duration_words(elapsed_ms)
    return "just now" if words is None else f"{words} ago"
