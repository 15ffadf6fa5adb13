from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.schema import Signal
from models.data.signals import (
    MAX_EXPONENT,
    DecayedCounts,
    decay_factors,
    forward_increments,
    next_landmark,
)
from tests.models.world import DAY_MS, SCHEMA

HOUR_MS = 3_600_000
EVENT = st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 2000 * DAY_MS))


def oracle(events: list[tuple[int, int, int]], key: int, now_ms: int) -> list[float]:
    counts = []
    for signal in SCHEMA.signals:
        total = 0.0
        for event_key, mask, ts_ms in events:
            if event_key == key and mask >> signal.bit & 1:
                half_life = signal.half_life_ms
                total += 1.0 if half_life is None else 2.0 ** max(-(now_ms - ts_ms) / half_life, -1000.0)
        counts.append(total)
    return counts


@given(st.lists(EVENT, max_size=30), st.integers(1, 5))
def test_counts_match_a_sum_over_events(events: list[tuple[int, int, int]], num_parts: int) -> None:
    # Two thousand days against a half life of one: the landmark moves on the way.
    counts = DecayedCounts(SCHEMA.signals)
    for part in np.array_split(np.array(events, dtype=np.int64).reshape(-1, 3), num_parts):
        counts.add(part[:, 0], part[:, 1].astype(np.uint32), part[:, 2])
    now_ms = max([ts for _, _, ts in events], default=0) + 5 * HOUR_MS
    expected = [oracle(events, key, now_ms) for key in range(6)]
    np.testing.assert_allclose(counts.at(np.arange(6), now_ms), expected, rtol=1e-9, atol=1e-12)


def test_the_landmark_moves_before_exponents_overflow() -> None:
    counts = DecayedCounts(SCHEMA.signals)
    like = np.array([3], dtype=np.uint32)
    counts.add(np.array([7]), like, np.array([0]))
    assert counts.landmark_ms == 0
    later_ms = 501 * DAY_MS
    counts.add(np.array([7]), like, np.array([later_ms]))
    assert counts.landmark_ms == later_ms
    np.testing.assert_allclose(counts.at(np.array([7]), later_ms), [[1.0, 2.0, 1.0, 2.0]])
    counts.add(np.array([7]), like, np.array([100_000 * DAY_MS]))
    assert np.isfinite(counts.at(np.array([7]), 100_000 * DAY_MS)).all()


def test_increments_are_what_readers_decay() -> None:
    stored = forward_increments(SCHEMA.signals, np.array([3], np.uint32), np.array([2 * DAY_MS]), 0)
    np.testing.assert_allclose(stored, [[4.0, 1.0, 4.0, 1.0]])
    np.testing.assert_allclose(stored[0] * decay_factors(SCHEMA.signals, 0, 3 * DAY_MS), [0.5, 1.0, 0.5, 1.0])


def test_an_event_too_far_past_the_landmark_is_refused() -> None:
    far_ms = int((MAX_EXPONENT + 1) * DAY_MS)
    with pytest.raises(ValueError, match="move the landmark"):
        forward_increments(SCHEMA.signals, np.array([1], np.uint32), np.array([far_ms]), 0)
    assert next_landmark(SCHEMA.signals, 0, far_ms) == far_ms
    assert next_landmark(SCHEMA.signals, 0, DAY_MS) == 0


def test_a_signal_outside_a_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="no action bit"):
        forward_increments((Signal("x", "like", None),), np.array([1], np.uint32), np.array([0]), 0)
