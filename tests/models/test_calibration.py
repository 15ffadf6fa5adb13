from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluate import expected_calibration_error
from models.ranking.calibration import Calibration, Isotonic, make_consistent, pool_adjacent_violators


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits))


def draw(num: int, seed: int, slope: float = 1.0, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    logits = random.normal(0.0, 2.0, size=num).astype(np.float32)
    return logits, random.random(num) < sigmoid(slope * logits + offset)


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(1, 5)), min_size=1, max_size=12))
def test_pooling_gives_the_min_max_formula(values: list[tuple[int, int]]) -> None:
    y, w = np.array(values, dtype=np.float64).T
    means, lengths = pool_adjacent_violators(y, w)
    fitted = np.repeat(means, lengths)
    for i in range(len(y)):
        expected = max(
            min(np.average(y[a : b + 1], weights=w[a : b + 1]) for b in range(i, len(y))) for a in range(i + 1)
        )
        assert fitted[i] == pytest.approx(expected)
    assert (np.diff(means) > 0).all()


@given(st.integers(0, 10_000), st.floats(0.2, 3.0), st.floats(-3.0, 3.0))
def test_maps_are_strictly_increasing(seed: int, slope: float, offset: float) -> None:
    fitted = Isotonic.fit(*draw(600, seed, slope, offset))
    grid = np.linspace(-30, 30, 500).astype(np.float32)
    assert (np.diff(fitted(grid)) > 0).all()


def test_calibrated_logits_stay_about_where_they_are() -> None:
    fitted = Isotonic.fit(*draw(100_000, 0))
    grid = np.linspace(-4, 4, 50).astype(np.float32)
    np.testing.assert_allclose(sigmoid(fitted(grid)), sigmoid(grid), atol=0.05)


def test_a_bent_scale_is_straightened() -> None:
    fitted = Isotonic.fit(*draw(50_000, 0, slope=0.4, offset=-1.5))
    logits, labels = draw(50_000, 1, slope=0.4, offset=-1.5)
    assert expected_calibration_error(sigmoid(logits.astype(float)), labels) > 0.1
    assert expected_calibration_error(sigmoid(fitted(logits)), labels) < 0.02


@pytest.mark.parametrize("labels", [np.zeros(500, bool), np.ones(500, bool)])
def test_one_kind_of_label_leaves_the_identity(labels: np.ndarray) -> None:
    logits = np.linspace(-2, 2, 500).astype(np.float32)
    np.testing.assert_array_equal(Isotonic.fit(logits, labels)(logits), logits.astype(np.float64))


def test_few_examples_and_equal_logits_are_no_error() -> None:
    few = Isotonic.fit(np.zeros(3, np.float32), np.array([True, False, True]))
    assert few(np.zeros(1, np.float32)) == 0.0
    level = Isotonic.fit(np.zeros(1000, np.float32), np.arange(1000) % 4 == 0)
    assert sigmoid(level(np.zeros(1, np.float32))) == pytest.approx(0.25, abs=0.05)


def test_a_file_gives_the_same_probabilities(tmp_path: Path) -> None:
    calibration = Calibration(("a", "b"), (Isotonic.fit(*draw(5000, 0, 0.5)), Isotonic.fit(*draw(5000, 1, 2.0))))
    calibration.save(tmp_path / "calibration.json")
    again = Calibration.load(tmp_path / "calibration.json", ("a", "b"))
    logits = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    np.testing.assert_array_equal(calibration.probabilities(logits), again.probabilities(logits))
    with pytest.raises(ValueError, match="tasks are"):
        Calibration.load(tmp_path / "calibration.json", ("a", "c"))


def test_a_map_that_falls_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text('{"format": 2, "maps": {"a": {"raw": [0, 1], "calibrated": [1, 0]}}}')
    with pytest.raises(ValueError, match="task 'a' is not increasing"):
        Calibration.load(path, ("a",))
    path.write_text('{"format": 9}')
    with pytest.raises(ValueError, match="format is 9"):
        Calibration.load(path, ("a",))


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 6), min_size=1, max_size=20))
def test_consistent_probabilities_are_in_order_and_no_further_from_the_truth(rows: list[tuple[float, ...]]) -> None:
    """Tasks watch, like, love: a love is a like, a like is a watch."""
    implied = [(1, 0), (2, 0), (2, 1)]
    estimate = np.array(rows)[:, :3]
    truth = -np.sort(-np.array(rows)[:, 3:], axis=1)
    consistent = make_consistent(estimate, implied)
    assert (np.diff(consistent, axis=1) <= 1e-12).all()
    in_order = (np.diff(estimate, axis=1) <= 0).all(axis=1)
    assert (consistent[in_order] == estimate[in_order]).all()
    # With one pair the sweep is the projection itself.
    pair = make_consistent(estimate[:, :2], [(1, 0)])
    before = np.square(estimate[:, :2] - truth[:, :2]).sum(axis=1)
    after = np.square(pair - truth[:, :2]).sum(axis=1)
    assert (after <= before + 1e-12).all()


def test_the_report_is_of_members_that_the_map_was_not_fitted_on() -> None:
    logits, labels = draw(20_000, 0, slope=0.4, offset=-1.5)
    groups = np.arange(20_000) // 100
    fitted = Calibration.fit(("a",), logits[:, None], labels[:, None], groups)
    (report,) = fitted.reports
    assert (report.num_examples, report.num_positives) == (20_000, labels.sum())
    assert report.before.calibration_error == pytest.approx(
        expected_calibration_error(sigmoid(logits), labels), abs=1e-4
    )
    assert report.after.calibration_error < 0.03 < report.before.calibration_error
    assert report.after.observed_over_expected == pytest.approx(1.0, abs=0.05)
    assert report.after.normalised_entropy < report.before.normalised_entropy
    # Labels that a group shares cannot be learned from the other half: the report does not praise noise.
    random = np.random.default_rng(0)
    noise = np.repeat(random.random(40) < 0.5, 50)
    told = Calibration.fit(
        ("a",), np.repeat(np.arange(40.0, dtype=np.float32), 50)[:, None], noise[:, None], np.repeat(np.arange(40), 50)
    )
    assert told.reports[0].after.normalised_entropy > 0.95


def test_a_file_gives_back_the_report(tmp_path: Path) -> None:
    logits, labels = draw(2000, 0)
    fitted = Calibration.fit(("a",), logits[:, None], labels[:, None], np.arange(2000))
    fitted.save(tmp_path / "calibration.json")
    again = Calibration.load(tmp_path / "calibration.json", ("a",))
    assert again.reports == fitted.reports
    with pytest.raises(ValueError, match="3 groups"):
        Calibration.fit(("a",), logits[:, None], labels[:, None], np.arange(3))
