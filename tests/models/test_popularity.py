from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.ranking.popularity import PopularityConfig, PopularityOffsets

DAY_MS = 86_400_000
TASKS = ("watch", "like")


def stream(num_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    keys = random.choice(np.array([7, -8, 9]), num_rows)
    labels = random.random((num_rows, 2)) < 0.3
    chances = random.random((num_rows, 2)).astype(np.float32)
    return keys, labels, chances, np.sort(random.integers(0, 5 * DAY_MS, num_rows))


@given(st.integers(0, 1000), st.lists(st.integers(0, 60), max_size=4))
def test_offsets_are_one_decayed_newton_step_however_the_stream_is_cut(seed: int, cuts: list[int]) -> None:
    keys, labels, chances, ts_ms = stream(60, seed)
    config = PopularityConfig(half_life_ms=DAY_MS, regularisation=2.0, cap=0.5)
    offsets = PopularityOffsets(TASKS, config)
    edges = [0, *sorted(cuts), 60]
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        rows = slice(start, stop)
        offsets.update(keys[rows], labels[rows], chances[rows], ts_ms[rows])
    now_ms = 6 * DAY_MS
    left = np.exp2(-(now_ms - ts_ms) / DAY_MS)[:, None]
    for key, found in zip((7, -8, 9), offsets.offsets(np.array([7, -8, 9]), now_ms), strict=True):
        of = keys == key
        information = (left * chances * (1.0 - chances))[of].sum(axis=0)
        expected = (left * (labels - chances))[of].sum(axis=0) / (information + 2.0)
        np.testing.assert_allclose(found, np.clip(expected, -0.5, 0.5), rtol=1e-4, atol=1e-6)


def test_order_does_not_matter() -> None:
    columns = stream(200)
    straight, turned = PopularityOffsets(TASKS), PopularityOffsets(TASKS)
    straight.update(*columns)
    for rows in np.array_split(np.arange(200)[::-1], 7):
        turned.update(*(column[rows] for column in columns))
    keys = np.array([7, -8, 9, 4])
    found = straight.offsets(keys, 6 * DAY_MS)
    np.testing.assert_allclose(found, turned.offsets(keys, 6 * DAY_MS), rtol=1e-5)
    assert not found[3].any()


def test_an_action_may_come_after_its_impression() -> None:
    keys, labels, chances, ts_ms = stream(100)
    once, later = PopularityOffsets(TASKS), PopularityOffsets(TASKS)
    once.update(keys, labels, chances, ts_ms)
    later.update(keys, np.zeros_like(labels), chances, ts_ms)
    later.update(keys, labels, np.zeros_like(chances), ts_ms)
    np.testing.assert_allclose(once.offsets(keys, 6 * DAY_MS), later.offsets(keys, 6 * DAY_MS), rtol=1e-4, atol=1e-6)


def test_an_offset_recovers_what_the_model_misses() -> None:
    """True rates are 1.2 logits above the model's for one item and as it says for the other."""
    random = np.random.default_rng(0)
    keys = np.repeat([1, 2], 20_000)
    logits = random.normal(-2.0, 1.0, 40_000)
    truth = 1.0 / (1.0 + np.exp(-logits - 1.2 * (keys == 1)))
    chances = (1.0 / (1.0 + np.exp(-logits)))[:, None].astype(np.float32)
    labels = random.random(40_000)[:, None] < truth[:, None]
    offsets = PopularityOffsets(("like",))
    offsets.update(keys, labels, chances, np.zeros(40_000, np.int64))
    missed, right = offsets.offsets(np.array([1, 2]), 0)[:, 0]
    assert 1.0 < missed < 2.0
    assert abs(right) < 0.1


def test_offsets_are_capped_and_fade() -> None:
    offsets = PopularityOffsets(("like",))
    offsets.update(np.full(5000, 3), np.ones((5000, 1), np.bool_), np.full((5000, 1), 0.01, np.float32), np.zeros(5000))
    steps = [float(offsets.offsets(np.array([3]), days * DAY_MS)[0, 0]) for days in (0, 4, 8, 12, 2000)]
    assert steps[0] == 2.0
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] == 0.0


def test_what_was_not_seen_for_long_is_forgotten(tmp_path: Path) -> None:
    offsets = PopularityOffsets(TASKS)
    keys, labels, chances, ts_ms = stream(50)
    offsets.update(keys, labels, chances, ts_ms)
    offsets.update(np.array([5]), labels[:1], chances[:1], np.array([40 * DAY_MS]))
    before = offsets.offsets(np.array([5]), 40 * DAY_MS)
    assert offsets.forget(40 * DAY_MS) == 3
    assert len(offsets) == 1
    np.testing.assert_array_equal(offsets.offsets(np.array([5]), 40 * DAY_MS), before)


def test_a_file_gives_the_same_offsets(tmp_path: Path) -> None:
    config = PopularityConfig(half_life_ms=DAY_MS, cap=1.0)
    offsets = PopularityOffsets(TASKS, config)
    offsets.update(*stream(80))
    offsets.save(tmp_path / "popularity.safetensors")
    again = PopularityOffsets.load(tmp_path / "popularity.safetensors", TASKS)
    keys = np.array([7, -8, 9, 4])
    np.testing.assert_array_equal(offsets.offsets(keys, 6 * DAY_MS), again.offsets(keys, 6 * DAY_MS))
    assert again.config == config
    again.update(*stream(80, seed=1))
    with pytest.raises(ValueError, match=r"tasks are \['watch', 'like'\], expected \['like'\]"):
        PopularityOffsets.load(tmp_path / "popularity.safetensors", ("like",))


def test_bad_rows_are_refused() -> None:
    offsets = PopularityOffsets(TASKS)
    keys, labels, chances, ts_ms = stream(3)
    with pytest.raises(ValueError, match=r"labels \(3, 1\)"):
        offsets.update(keys, labels[:, :1], chances, ts_ms)
    for wrong in (1.5, np.nan):
        with pytest.raises(ValueError, match=f"probability is {wrong}"):
            offsets.update(keys, labels, np.full_like(chances, wrong), ts_ms)
    with pytest.raises(ValueError, match="half_life_ms"):
        PopularityConfig(half_life_ms=0)
