from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.ranking.dwell import DwellConfig, DwellThresholds, label_by_day, position_bucket

DAY_MS = 86_400_000
CONFIG = DwellConfig(min_count=50)


def dwells(num_rows: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Articles take ten times as long as pictures; one device is rare."""
    random = np.random.default_rng(seed)
    kinds, positions = random.integers(0, 2, num_rows), random.integers(0, 3, num_rows)
    devices = (random.random(num_rows) < 0.01).astype(np.int64)
    dwell = random.lognormal(2.0 + 2.3 * kinds - 0.3 * positions, 1.0)
    return dwell, np.stack([kinds, positions, devices], axis=1), np.sort(random.integers(0, 4 * DAY_MS, num_rows))


def test_a_share_of_every_cluster_is_long() -> None:
    dwell, clusters, _ = dwells()
    fitted = DwellThresholds.fit(dwell, clusters, CONFIG)
    long = fitted.are_long(dwell, clusters)
    for kind in (0, 1):
        for position in (0, 1, 2):
            rows = (clusters == [kind, position, 0]).all(axis=1)
            assert long[rows].mean() == pytest.approx(0.1, abs=0.01)
    # One threshold for all would call hardly a picture long.
    single = dwell > np.quantile(dwell, 0.9)
    assert single[clusters[:, 0] == 0].mean() < 0.02


@given(
    st.sampled_from([np.log1p, np.sqrt, lambda x: x**3, lambda x: 1000.0 * x, lambda x: -1.0 / x]), st.integers(0, 20)
)
def test_labels_do_not_change_when_dwell_is_rescaled(rescaled: object, seed: int) -> None:
    assert callable(rescaled)
    dwell, clusters, ts_ms = dwells(600, seed)
    straight, bent = (DwellThresholds.fit(values, clusters, CONFIG) for values in (dwell, rescaled(dwell)))
    np.testing.assert_array_equal(straight.are_long(dwell, clusters), bent.are_long(rescaled(dwell), clusters))
    np.testing.assert_array_equal(
        label_by_day(dwell, clusters, ts_ms, CONFIG)[0], label_by_day(rescaled(dwell), clusters, ts_ms, CONFIG)[0]
    )


def test_few_dwells_fall_back_to_the_wider_cluster() -> None:
    dwell, clusters, _ = dwells()
    fitted = DwellThresholds.fit(dwell, clusters, CONFIG)
    rows = (clusters[:, :2] == [1, 2]).all(axis=1)
    asked = np.array([[1, 2, 1], [1, 9, 0], [5, 0, 0]])
    expected = [
        np.quantile(dwell[rows], 0.9, method="inverted_cdf"),
        np.quantile(dwell[clusters[:, 0] == 1], 0.9, method="inverted_cdf"),
        np.quantile(dwell, 0.9, method="inverted_cdf"),
    ]
    np.testing.assert_array_equal(fitted.thresholds(asked), expected)


def test_a_day_is_judged_by_the_day_before() -> None:
    dwell, clusters, ts_ms = dwells()
    labels, limits = label_by_day(dwell, clusters, ts_ms, CONFIG)
    days = ts_ms // DAY_MS
    for day, judge in ((0, 0), (1, 0), (2, 1), (3, 2)):
        fitted = DwellThresholds.fit(dwell[days == judge], clusters[days == judge], CONFIG)
        np.testing.assert_array_equal(limits[days == day], fitted.thresholds(clusters[days == day]))
    np.testing.assert_array_equal(labels, dwell > limits)
    # What happens later changes nothing of what was labelled.
    early, _ = label_by_day(dwell[days < 3], clusters[days < 3], ts_ms[days < 3], CONFIG)
    np.testing.assert_array_equal(early, labels[days < 3])


def test_an_unknown_dwell_is_not_long() -> None:
    dwell, clusters, ts_ms = dwells(100)
    dwell[::2] = np.nan
    labels, _ = label_by_day(dwell, clusters, ts_ms, CONFIG)
    assert not labels[::2].any()
    assert labels.any()


def test_a_file_gives_the_same_thresholds(tmp_path: Path) -> None:
    dwell, clusters, _ = dwells()
    fitted = DwellThresholds.fit(dwell, clusters, CONFIG)
    fitted.save(tmp_path / "dwell.json")
    again = DwellThresholds.load(tmp_path / "dwell.json")
    np.testing.assert_array_equal(fitted.thresholds(clusters), again.thresholds(clusters))
    assert again.config == CONFIG


def test_positions_far_down_share_a_bucket() -> None:
    assert position_bucket(np.array([0, 1, 2, 3, 4, 5, 9, 10, 500])).tolist() == [0, 1, 2, 3, 3, 4, 4, 5, 5]
    with pytest.raises(ValueError, match="position is -1"):
        position_bucket(np.array([3, -1]))


def test_bad_input_is_refused() -> None:
    dwell, clusters, _ = dwells(10)
    with pytest.raises(ValueError, match="0 dwells"):
        DwellThresholds.fit(dwell[:0], clusters[:0])
    with pytest.raises(ValueError, match="clusters have 2 columns; expected 3"):
        DwellThresholds.fit(dwell, clusters).thresholds(clusters[:, :2])
    with pytest.raises(ValueError, match="share"):
        DwellConfig(share=1.0)
