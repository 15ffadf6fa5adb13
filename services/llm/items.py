"""What the LLM ranker knows of items: attributes by key, followed live, and where every item's numbers stand."""

# N = items, S = signals

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import structlog
from numpy.typing import NDArray

from models.data.schema import FeatureSchema
from models.decoder.verbalizer.numbers import NumberWords, Percentiles, Standing
from services.ingest.retrying import RetryingThread
from services.metrics import Metrics
from services.retrieval.engine import ItemChange
from services.schema import DependencyState
from services.storage.storage import Storage

REFRESH_S = 60.0
"""Between two looks at all items' numbers. Classes such as "top 10%" change slowly, and with them prompts that are
held."""
CHUNK_ITEMS = 4096

ReadSignals = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""int64[n] keys -> f64[n, S], as of one moment."""


class ItemAttributes:
    """Attributes by key. Safe for many readers beside a writer."""

    def __init__(self) -> None:
        self._attributes: dict[int, Mapping[str, object]] = {}

    def __len__(self) -> int:
        return len(self._attributes)

    def get(self, key: int) -> Mapping[str, object] | None:
        """None for an item that is not known."""
        return self._attributes.get(key)

    def keys(self) -> NDArray[np.int64]:
        # One C call, so that no writer comes between.
        return np.array(list(self._attributes), np.int64)

    def put(self, key: int, attributes: Mapping[str, object]) -> None:
        """Add an item, or replace all its attributes."""
        self._attributes[key] = attributes

    def apply(self, changes: Sequence[ItemChange]) -> None:
        """Take new, changed and deleted items in."""
        for key, attributes in changes:
            if attributes is None:
                self._attributes.pop(key, None)
            else:
                self._attributes[key] = attributes


@dataclass(frozen=True, slots=True)
class NumbersTable:
    """Every item's signals as of one moment. Immutable."""

    keys_N: NDArray[np.int64]
    """Ascending."""
    signals_NS: NDArray[np.float64]

    def of(self, key: int) -> NDArray[np.float64] | None:
        """Return f64[S]; None for an item that came later."""
        place = int(np.searchsorted(self.keys_N, key))
        return self.signals_NS[place] if place < len(self.keys_N) and self.keys_N[place] == key else None


class Numbers:
    """Keeps the table of all items' numbers fresh, in a thread."""

    def __init__(
        self,
        schema: FeatureSchema,
        items: ItemAttributes,
        read: ReadSignals,
        *,
        metrics: Metrics,
        logger: structlog.typing.FilteringBoundLogger,
        refresh_s: float = REFRESH_S,
    ) -> None:
        self._schema = schema
        self._items = items
        self._read = read
        self._refresh_s = refresh_s
        self._lock = threading.Lock()
        self._percentiles: dict[NumberWords, Percentiles] = {}
        self.table = NumbersTable(np.zeros(0, np.int64), np.zeros((0, len(schema.signals))))
        self._thread = RetryingThread("llm-numbers", self._step, metrics=metrics, logger=logger)
        self.start = self._thread.start
        self.stop = self._thread.stop
        self.join = self._thread.join

    def state(self) -> DependencyState:
        """Numbers that are a little old endanger no answer: a failure is told, not fatal."""
        failure = self._thread.failure
        return DependencyState(
            ready=True, detail=f"retrying: {failure}" if failure else f"numbers of {len(self.table.keys_N)} items"
        )

    def refresh(self) -> None:
        """Read every item's signals again."""
        keys = np.sort(self._items.keys())
        parts = [self._read(keys[start : start + CHUNK_ITEMS]) for start in range(0, len(keys), CHUNK_ITEMS)]
        signals = np.concatenate(parts) if parts else np.zeros((0, len(self._schema.signals)))
        with self._lock:
            self.table = NumbersTable(keys, signals)
            self._percentiles = {}

    def percentiles(self, words: NumberWords) -> Percentiles:
        """What one item's numbers are measured against, in a task's words."""
        with self._lock:
            found = self._percentiles.get(words)
            if found is None:
                found = Percentiles.of(self._schema.signals, self.table.signals_NS, words)
                self._percentiles[words] = found
            return found

    def standing(
        self, key: int | None, words: NumberWords, signals_S: NDArray[np.float64] | None = None
    ) -> Standing | None:
        """How an item stands; with its signals of this moment where they are at hand, else as of the table's."""
        if signals_S is None and key is not None:
            signals_S = self.table.of(key)
        return None if signals_S is None else self.percentiles(words).standing(signals_S)

    def _step(self) -> None:
        self._thread.pause(self._refresh_s)
        if not self._thread.stopping:
            self.refresh()


def read_numbers(storage: Storage, schema: FeatureSchema) -> ReadSignals:
    """Signals as storage has counted them, as of now."""
    return lambda keys: storage.popularity.values(schema.signals, keys, storage.clock.now_ms())
