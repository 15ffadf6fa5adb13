"""What was shown, what followed, and what was known then."""

from __future__ import annotations

import numpy as np
import pytest

from models.data.events import EventTable
from models.data.schema import Action, FeatureSchema, Signal
from models.decoder.exposures import ExposureConfig, find_exposures

SCHEMA = FeatureSchema(
    item=(),
    user=(),
    actions=(Action("watch", "rating"), Action("like", "rating", min_value=4), Action("click", "click")),
    signals=(Signal("watched", "watch", None), Signal("liked", "like", None)),
    positive="like",
    tasks=("like",),
)


def table(*rows: tuple[int, int, str, float, int]) -> EventTable:
    users, items, types, values, times = zip(*rows, strict=True)
    return EventTable.from_columns(
        SCHEMA, user_keys=np.array(users), item_keys=np.array(items), types=types,
        values=np.array(values, dtype=np.float64), ts_ms=np.array(times),
    )  # fmt: skip


NONE = float("nan")
RATINGS = table(
    (1, 10, "rating", 5, 100), (1, 11, "rating", 2, 100), (2, 10, "rating", 3, 200), (2, 11, "click", NONE, 300)
)


def test_a_rating_is_an_exposure_and_its_own_answer() -> None:
    found = find_exposures(SCHEMA, RATINGS, "like", ExposureConfig(exposed=("watch",)))
    assert found.item_keys.tolist() == [10, 11, 10] and found.labels.tolist() == [True, False, False]
    assert found.actions.tolist() == [3, 1, 1] and found.log_rate.tolist() == [0.0, 0.0, 0.0]
    assert [rows.tolist() for rows in found.by_member()] == [[0, 1], [2]]


def test_an_impression_is_answered_by_what_follows_within_the_horizon() -> None:
    events = table(
        (1, 10, "impression", NONE, 100), (1, 10, "click", NONE, 150), (1, 10, "impression", NONE, 400),
        (1, 11, "impression", NONE, 100), (1, 11, "click", NONE, 900), (2, 10, "impression", NONE, 120),
    )  # fmt: skip
    found = find_exposures(SCHEMA, events, "click", ExposureConfig(horizon_ms=500))
    assert list(zip(found.user_keys.tolist(), found.item_keys.tolist(), found.labels.tolist(), strict=True)) == [
        (1, 10, True), (1, 11, False), (2, 10, False), (1, 10, False)
    ]  # fmt: skip


def test_what_answers_an_impression_is_no_exposure_of_its_own() -> None:
    events = table(
        (1, 10, "impression", NONE, 100), (1, 10, "rating", 5, 160), (1, 10, "rating", 2, 900),
        (1, 11, "rating", 4, 200), (1, 11, "rating", 1, 210),
    )  # fmt: skip
    found = find_exposures(SCHEMA, events, "like", ExposureConfig(exposed=("watch",), horizon_ms=500))
    assert list(zip(found.item_keys.tolist(), found.ts_ms.tolist(), found.labels.tolist(), strict=True)) == [
        (10, 100, True), (11, 200, True), (10, 900, False)
    ]  # fmt: skip


def test_negatives_are_thinned_and_the_rate_is_kept() -> None:
    rows = [(user, user, "rating", 5.0 if user % 4 == 0 else 1.0, user) for user in range(1, 2001)]
    found = find_exposures(SCHEMA, table(*rows), "like", ExposureConfig(exposed=("watch",)))
    kept, places = found.thinned(0.6, seed=1)
    assert kept.labels.sum() == 500 and 250 < (~kept.labels).sum() < 350
    assert np.allclose(kept.log_rate, np.log(0.2))
    assert np.array_equal(found.item_keys[places], kept.item_keys)
    assert found.thinned(3.0, seed=1)[0] is found
    nothing = found.take(~found.labels)
    assert nothing.thinned(1.0, seed=1)[0] is nothing


def test_an_action_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="'buy' is not an action"):
        find_exposures(SCHEMA, RATINGS, "buy")
    with pytest.raises(ValueError, match="max_negatives is 0"):
        ExposureConfig(max_negatives=0.0)
