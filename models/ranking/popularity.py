"""Popularity offsets: what the ranker misses of an item, learned from the stream between two trainings."""

# n = rows or keys, T = tasks

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

FORMAT = 1
_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PopularityConfig:
    half_life_ms: int = 24 * _HOUR_MS
    """After so long what was observed counts half."""
    regularisation: float = 20.0
    """Ridge on an offset: observations of so much information (p (1 - p) each) move it half way."""
    cap: float = 2.0
    """Largest absolute offset, in logits."""

    def __post_init__(self) -> None:
        if self.half_life_ms <= 0 or self.regularisation <= 0.0 or self.cap < 0.0:
            raise ValueError(f"half_life_ms and regularisation must be above 0, cap at least 0: {self}")


class PopularityOffsets:
    """A residual random effect per item and task, added to the logits of the main model.

    o = sum(y - p) / (sum p (1 - p) + lambda), capped: one Newton step from 0 of a logistic regression with a ridge, on
    the residuals of the main model, whose probabilities p come without the offset. Both sums decay by half every
    `half_life_ms`. LiRank (arXiv 2402.06859), section 3.8: sigmoid(logit(p_global) + logit(p_random)), retrained
    every 8 hours. The form of the random effect is not published; this one needs no retraining, only the stream.

    A row's label does not have to be known when the row is: an impression may be added at once with labels of 0, and
    an action on it when it comes, as a row with a label of 1 and a probability of 0. The sums are the same. Until
    then the impression counts against the item, so where actions take longer than the half life, add impressions once
    their time for an action is over.

    Safe for many readers beside writers.
    """

    def __init__(self, tasks: tuple[str, ...], config: PopularityConfig | None = None) -> None:
        self.tasks = tasks
        self.config = config or PopularityConfig()
        self._lock = threading.Lock()
        self._rows: dict[int, int] = {}
        self._sums = np.zeros((0, 2, len(tasks)))
        """Residual and information of each row, as of `_as_of_ms`."""
        self._as_of_ms = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def update(
        self,
        keys: NDArray[np.int64],
        labels: NDArray[np.bool_],
        probabilities: NDArray[np.float32],
        ts_ms: NDArray[np.int64],
    ) -> None:
        """Add n observations: labels bool[n, T], the main model's probabilities f32[n, T], times. A key may repeat.

        Raises ValueError for columns of other lengths and for a probability outside 0..1.
        """
        expected = (len(keys), len(self.tasks))
        if labels.shape != expected or probabilities.shape != expected or len(ts_ms) != len(keys):
            raise ValueError(
                f"labels {labels.shape}, probabilities {probabilities.shape}, {len(ts_ms)} times; expected {expected}"
            )
        chances = probabilities.astype(np.float64)
        wrong = ~((chances >= 0.0) & (chances <= 1.0))
        if wrong.any():
            raise ValueError(f"probability is {chances[wrong][0]}; expected 0 to 1")
        if not len(keys):
            return
        distinct, inverse = np.unique(np.asarray(keys, dtype=np.int64), return_inverse=True)
        newest_ms = np.full(len(distinct), np.iinfo(np.int64).min)
        np.maximum.at(newest_ms, inverse, ts_ms)
        with self._lock:
            rows = self._reserve(distinct)
            known = (self._sums[rows] != 0.0).any(axis=(1, 2))
            as_of_ms = np.where(known, np.maximum(newest_ms, self._as_of_ms[rows]), newest_ms)
            self._sums[rows] *= self._decay(as_of_ms - np.where(known, self._as_of_ms[rows], as_of_ms))[:, None, None]
            weights = self._decay(as_of_ms[inverse] - ts_ms)[:, None, None]
            added = np.stack([labels - chances, chances * (1.0 - chances)], axis=1)
            np.add.at(self._sums, rows[inverse], weights * added)
            self._as_of_ms[rows] = as_of_ms

    def offsets(self, keys: NDArray[np.int64], now_ms: int) -> NDArray[np.float32]:
        """Return f32[n, T]: what to add to each key's logits; 0 for a key without observations."""
        found = np.zeros((len(keys), len(self.tasks)), dtype=np.float32)
        with self._lock:
            rows = np.fromiter((self._rows.get(key, -1) for key in np.asarray(keys).tolist()), np.int64, len(keys))
            known = rows >= 0
            sums = self._sums[rows[known]]
            left = self._decay(np.maximum(now_ms - self._as_of_ms[rows[known]], 0))
        sums = sums * left[:, None, None]
        steps = sums[:, 0] / (sums[:, 1] + self.config.regularisation)
        found[known] = np.clip(steps, -self.config.cap, self.config.cap)
        return found

    def forget(self, now_ms: int, half_lives: float = 20.0) -> int:
        """Drop keys that were not observed for so long; return how many."""
        with self._lock:
            oldest_ms = now_ms - half_lives * self.config.half_life_ms
            kept = {key: row for key, row in self._rows.items() if self._as_of_ms[row] >= oldest_ms}
            dropped = len(self._rows) - len(kept)
            rows = np.fromiter(kept.values(), dtype=np.int64, count=len(kept))
            self._sums, self._as_of_ms = self._sums[rows], self._as_of_ms[rows]
            self._rows = {key: row for row, key in enumerate(kept)}
        return dropped

    def to_bytes(self) -> bytes:
        """Return the sums as safetensors, with the settings in its header."""
        with self._lock:
            keys = np.fromiter(self._rows, dtype=np.int64, count=len(self._rows))
            columns = {
                "keys": keys,
                "sums": self._sums[: len(keys)].copy(),
                "as_of_ms": self._as_of_ms[: len(keys)].copy(),
            }
        header = {"format": FORMAT, "tasks": list(self.tasks), "config": asdict(self.config)}
        return save(columns, metadata={"popularity": json.dumps(header)})

    @classmethod
    def from_bytes(cls, stored: bytes, tasks: tuple[str, ...]) -> PopularityOffsets:
        """Read what `to_bytes` wrote. Raises ValueError for another format or other tasks."""
        try:
            columns = load(stored)
        except SafetensorError as error:
            raise ValueError(f"popularity offsets cannot be read: {error}") from error
        header = _header(stored)
        if header.get("format") != FORMAT:
            raise ValueError(f"format is {header.get('format')!r}, expected {FORMAT}")
        if tuple(header["tasks"]) != tasks:
            raise ValueError(f"tasks are {header['tasks']}, expected {list(tasks)}")
        keys, sums, as_of_ms = (columns[name] for name in ("keys", "sums", "as_of_ms"))
        offsets = cls(tasks, PopularityConfig(**header["config"]))
        offsets._rows = {key: row for row, key in enumerate(keys.tolist())}
        offsets._sums, offsets._as_of_ms = sums, as_of_ms
        return offsets

    def save(self, path: Path) -> None:
        """Write the offsets into a file."""
        path.write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: Path, tasks: tuple[str, ...]) -> PopularityOffsets:
        """Read a file. Raises ValueError for one of another format or of other tasks."""
        try:
            return cls.from_bytes(path.read_bytes(), tasks)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _decay(self, elapsed_ms: NDArray[np.int64]) -> NDArray[np.float64]:
        # Past 1000 halvings nothing is left in float64.
        halvings = np.minimum(elapsed_ms / self.config.half_life_ms, 1000.0)
        left: NDArray[np.float64] = np.exp2(-halvings)
        return left

    def _reserve(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = np.fromiter(
            (self._rows.setdefault(key, len(self._rows)) for key in keys.tolist()), dtype=np.int64, count=len(keys)
        )
        if len(self._rows) > len(self._sums):
            capacity = max(1024, 2 * len(self._rows))
            sums, as_of_ms = np.zeros((capacity, *self._sums.shape[1:])), np.zeros(capacity, dtype=np.int64)
            sums[: len(self._sums)], as_of_ms[: len(self._as_of_ms)] = self._sums, self._as_of_ms
            self._sums, self._as_of_ms = sums, as_of_ms
        return rows


def _header(stored: bytes) -> dict[str, Any]:
    """Return our part of a safetensors header: its length as uint64, then JSON."""
    length = int.from_bytes(stored[:8], "little")
    metadata = json.loads(stored[8 : 8 + length]).get("__metadata__") or {}
    header: dict[str, Any] = json.loads(metadata.get("popularity", "{}"))
    return header
