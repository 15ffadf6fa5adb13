"""Numbers in words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.schema import Signal
from models.decoder.verbalizer.fields import Fields, Limits, Subject
from models.decoder.verbalizer.numbers import NumberWords, Percentiles, age_words, duration_words, gap_words
from models.decoder.verbalizer.template import Field, parse_template
from tests.models.decoder.prompts import CATALOGUE, DAY_MS, SCHEMA

HOUR_MS = 3_600_000
SIGNALS = (Signal("watch.all", "watch", None), Signal("like.all", "like", None))
WATCH, RATE = ("watch.all",), ("like.all", "watch.all")


def table(**words: float) -> Percentiles:
    return Percentiles.of(SIGNALS, CATALOGUE, NumberWords(**words))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "top", "percentile"),
    [
        (99, "top 1%", "99"), (98, "top 5%", "98"), (95, "top 5%", "95"), (94, "top 10%", "94"), (50, "top 50%", "50"),
        (49, "bottom 50%", "49"), (25, "bottom 50%", "25"), (24, "bottom 25%", "24"), (1, "bottom 25%", "1"),
        (1000, "top 1%", "100"),
    ],
)  # fmt: skip
def test_classes(count: float, top: str, percentile: str) -> None:
    standing = table().standing(np.array([count, 0.0]))
    assert (standing.top(WATCH), standing.percentile(WATCH)) == (top, percentile)


def test_what_never_happened_is_not_said() -> None:
    standing = table().standing(np.zeros(2))
    assert standing.top(WATCH) is standing.percentile(WATCH) is standing.value(RATE) is None


def test_a_rate_of_few_is_drawn_to_that_of_all() -> None:
    assert table().standing(np.array([1.0, 1.0])).value(RATE) == pytest.approx((1 + 5 * 0.5) / 6)
    assert table().standing(np.array([95.0, 95.0])).value(RATE) == pytest.approx((95 + 2.5) / 100)
    assert table(prior_count=0.0).standing(np.array([1.0, 1.0])).value(RATE) == 1.0
    assert table(min_count=3.0).standing(np.array([2.0, 1.0])).value(RATE) is None
    assert table().standing(np.array([95.0, 95.0])).top(RATE) == "top 5%"


def test_items_of_one_value_are_of_one_class() -> None:
    same = Percentiles.of(SIGNALS, np.array([[5.0, 0.0]] * 9 + [[6.0, 0.0]]))
    assert same.standing(np.array([5.0, 0.0])).top(WATCH) == "bottom 25%"
    assert same.standing(np.array([6.0, 0.0])).top(WATCH) == "top 10%"


def test_an_empty_catalogue_has_no_classes_and_no_errors() -> None:
    standing = Percentiles.of(SIGNALS, np.zeros((0, 2))).standing(np.array([3.0, 1.0]))
    assert standing.top(WATCH) == "bottom 25%"
    assert standing.value(RATE) == pytest.approx(1 / 8)


@given(values=st.lists(st.integers(0, 20), min_size=1, max_size=30), value=st.integers(1, 20))
def test_a_higher_count_is_never_of_a_lower_class(values: list[int], value: int) -> None:
    percentiles = Percentiles.of(SIGNALS, np.array([[count, 0] for count in values], dtype=np.float64))
    order = [f"top {c}%" for c in (1, 5, 10, 25, 50)] + ["bottom 50%", "bottom 25%"]
    ranks = [order.index(str(percentiles.standing(np.array([v, 0.0])).top(WATCH))) for v in (value, value + 1)]
    assert ranks[1] <= ranks[0]


@pytest.mark.parametrize(
    ("elapsed_ms", "words"),
    [
        (-5, None), (HOUR_MS - 1, None), (HOUR_MS, "1 hour"), (5 * HOUR_MS, "5 hours"), (DAY_MS, "1 day"),
        (13 * DAY_MS, "13 days"), (14 * DAY_MS, "2 weeks"), (60 * DAY_MS, "2 months"), (729 * DAY_MS, "24 months"),
        (730 * DAY_MS, "2 years"), (3650 * DAY_MS, "10 years"),
    ],
)  # fmt: skip
def test_durations(elapsed_ms: int, words: str | None) -> None:
    assert duration_words(elapsed_ms) == words
    assert gap_words(elapsed_ms) == (None if words is None else f"{words} later")
    assert age_words(elapsed_ms) == ("just now" if words is None else f"{words} ago")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{year}", "1995"),
        ("{released|age}", "2 weeks"),
        ("{released|year}-{released|date}", "1970-1970-01-02"),
        ("{genre| / }", "Drama / War"),
        ("{genre}", "Drama, War"),
        ("{watch.all|count} {like.all / watch.all|percent}", "40 50%"),
        ("{like.all/watch.all|of 100}", "50 of 100"),
        ("{title?none}", "none"),
    ],
)
def test_formats(template: str, text: str) -> None:
    fields, parsed = Fields(SCHEMA.item, SCHEMA.signals), parse_template(template)
    fields.check(parsed)
    subject = Subject(
        {"year": 1995, "released": DAY_MS, "genre": ["Drama", "War"]},
        table().standing(np.array([40.0, 20.0])),
        15 * DAY_MS,
    )
    runs = parsed.fill(lambda named: fields.words(named, subject, Limits()))
    assert "".join(run.text for run in runs) == text


@pytest.mark.parametrize(
    ("value", "words"),
    [(1995.0, "1995"), (1299.95, "1300"), (2.5, "2.5"), (0.123456, "0.123"), (float("nan"), "unknown"),
     (float("inf"), "unknown"), (True, "yes"), (7, "7"), ("\n7", "7")],
)  # fmt: skip
def test_numbers_of_attributes(value: object, words: str) -> None:
    fields, parsed = Fields(SCHEMA.item), parse_template("{year}")
    runs = parsed.fill(lambda named: fields.words(named, Subject({"year": value}), Limits()))
    assert [run.text for run in runs] == [words]


@pytest.mark.parametrize("value", ["1995", True, float("nan"), 10**20, -(10**20), [1]])
def test_what_is_no_time_is_missing(value: object) -> None:
    fields = Fields(SCHEMA.item)
    for how in ("age", "year", "date"):
        assert fields.words(Field("released", how), Subject({"released": value}), Limits()) is None


def test_wrong_shapes_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \[items, 2\]"):
        Percentiles.of(SIGNALS, np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"expected \(2,\)"):
        table().standing(np.zeros(3))
    for wrong in ({"classes": (5, 1)}, {"classes": ()}, {"prior_count": -1.0}, {"min_count": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
            NumberWords(**wrong)  # type: ignore[arg-type]
