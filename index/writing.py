"""The writing side of an index: items and signals into rows that no reader can see, then shown in one moment."""

# M = items in one call, D = dimensions, S = signals

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.attributes import Stored, check_attributes
from index.checks import check_keys, check_vectors
from index.state import State


class Writer:
    """The calls of `LiveIndex` that write. Writers wait for one another."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.offsets: dict[str, str] = {}  # stream -> id of the last entry applied; written into snapshots

    def upsert(self, keys: ArrayLike, vectors: ArrayLike, attributes: Sequence[Mapping[str, object]]) -> None:
        key_M = check_keys(keys)
        if (key_M == -1).any():
            raise ValueError("key -1: it stands for no item")
        config = self._state.config
        vector_MD = check_vectors(key_M, vectors, config.dim)
        if len(attributes) != key_M.size:
            raise ValueError(f"{len(attributes)} attribute mappings for {key_M.size} keys")
        items: list[list[Stored]] = []
        for key, each in zip(key_M.tolist(), attributes, strict=True):
            try:
                items.append(check_attributes(config.schema, each))
            except ValueError as error:
                raise ValueError(f"key {key}: {error}") from error
        last = {key: place for place, key in enumerate(key_M.tolist())}
        if len(last) < key_M.size:
            chosen = np.fromiter(last.values(), np.int64, len(last))
            key_M, vector_MD, items = key_M[chosen], vector_MD[chosen], [items[place] for place in last.values()]
        if key_M.size:
            with self._state.write_lock:
                self._write_items(key_M, vector_MD, items)

    def _write_items(self, key_M: NDArray[np.int64], vector_MD: NDArray[np.float32], items: list[list[Stored]]) -> None:
        state = self._state
        rows = state.allocate(key_M.size)
        arrays = state.arrays
        arrays.write_vectors(rows, vector_MD)
        arrays.key_N[rows] = key_M
        arrays.columns.write(rows, items)
        old_rows = state.rows_of(key_M)
        known = old_rows >= 0
        freed = old_rows[known]
        arrays.signal_SN[:, rows] = 0.0
        arrays.signal_SN[:, rows[known]] = arrays.signal_SN[:, freed]
        state.publish(rows, key_M, freed)

    def delete(self, keys: ArrayLike) -> int:
        key_M = np.unique(check_keys(keys))
        with self._state.write_lock:
            rows = self._state.rows_of(key_M)
            there = rows >= 0
            self._state.withdraw(key_M[there], rows[there])
        return int(there.sum())

    def change_signals(self, keys: ArrayLike, values: ArrayLike, *, add: bool) -> int:
        """Set the signals of keys or add to them; how many of the keys were unknown."""
        key_M = check_keys(keys)
        value_MS = np.asarray(values, np.float64)
        expected = (key_M.size, len(self._state.config.signals))
        if value_MS.shape != expected:
            raise ValueError(f"signals: shape {list(value_MS.shape)}, expected {list(expected)}")
        bad = ~np.isfinite(value_MS).all(axis=1)
        if bad.any():
            raise ValueError(f"signals of key {key_M[bad][0]}: {value_MS[bad][0].tolist()}, expected finite values")
        with self._state.write_lock:
            rows = self._state.rows_of(key_M)
            known = rows >= 0
            signal_SN = self._state.arrays.signal_SN
            if add:
                np.add.at(signal_SN.T, rows[known], value_MS[known])
            else:
                signal_SN.T[rows[known]] = value_MS[known]
            self._state.touch(rows[known])
        return int(key_M.size - known.sum())

    def rescale_signals(self, factors: ArrayLike) -> None:
        factor_S, state = np.asarray(factors, np.float64), self._state
        signals = state.config.signals
        if factor_S.shape != (len(signals),) or not np.isfinite(factor_S).all():
            raise ValueError(f"factors: {factor_S.tolist()}, expected {len(signals)} finite numbers")
        with state.write_lock:
            state.replace(state.arrays.with_signals(factor_S, state.num_rows))

    @contextmanager
    def applying(self, stream: str, offset: str) -> Iterator[None]:
        with self._state.write_lock:
            yield
            self.offsets[stream] = offset

    def move(self, rows: NDArray[np.int64], to: NDArray[np.int64]) -> None:
        """Show items at other, free rows, as if they were written again. The caller holds write_lock."""
        arrays = self._state.arrays
        arrays.move(rows, to)
        self._state.publish(to, arrays.key_N[to], rows)
