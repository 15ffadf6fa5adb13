"""Columns as a whole against the rules for one cell."""

from datetime import date, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.datasets.attribute_values import ATTRIBUTE_TYPES, BadValue, check_value, parse_text
from services.importing.columns import ARROW_TYPES, convert, is_convertible

from .worlds import iso

numbers = st.one_of(st.integers(), st.integers(-(10**15), 10**15), st.floats(), st.booleans())
cells = {
    "keyword": st.one_of(st.text(max_size=5), st.just("x" * 513)),
    "text": st.one_of(st.text(max_size=5), st.just("x" * 65_537)),
    "keyword_list": st.lists(st.one_of(st.text(max_size=3), st.none()), max_size=3),
    "int": numbers,
    "float": numbers,
    "bool": st.one_of(st.booleans(), st.integers(0, 1), st.just("true")),
    "timestamp": st.one_of(
        st.integers(-62_135_596_800_000, 253_402_300_799_999).map(iso),
        st.datetimes().map(lambda moment: moment.isoformat(" ") + "Z"),
        st.integers(),
        st.sampled_from(["2020-02-30", "2020-01-01T24:00", "20200101", "", "2020", "5", "0000-01-01"]),
    ),
}
texts = st.one_of(
    st.integers().map(str),
    st.floats().map(repr),
    st.sampled_from(["", "a|b", "a||b", "true", "0", "False", " 1 ", "+3", "0x1", "1e5", ".5", "1.", "-", "\x00"]),
    st.sampled_from(["2020-01-01", "2020-01-01 10:00", "2020-01-01T10:00:00.123456Z", "2020-13-01", "x|" * 1025]),
    st.integers(-62_135_596_800_000, 253_402_300_799_999).map(iso),
    st.text(max_size=5),
)


def one_by_one(values, check):
    good, bad = [], []
    for place, value in enumerate(values):
        try:
            good.append(check(value))
        except BadValue:
            good.append(None)
            bad.append(place)
    return good, bad


def plain(column):
    values = column.values
    assert values.type in ARROW_TYPES.values()
    return (values.cast(pa.int64()) if pa.types.is_timestamp(values.type) else values).to_pylist()


@pytest.mark.parametrize("kind", ATTRIBUTE_TYPES)
@given(data=st.data())
def test_json_cells_follow_the_rules_for_http_writes(kind, data):
    alike = st.lists(cells[kind], max_size=6)
    values = data.draw(st.one_of(alike, st.lists(st.one_of(st.none(), *cells.values()), max_size=6)))
    column = convert(values, kind)
    good, bad = one_by_one(values, lambda value: check_value(kind, value))
    assert plain(column) == good
    assert [cell.place for cell in column.bad] == bad


@pytest.mark.parametrize("kind", ATTRIBUTE_TYPES)
@given(values=st.lists(texts, max_size=6))
def test_text_cells_follow_the_rules_for_text(kind, values):
    good, bad = one_by_one(values, lambda value: parse_text(kind, value))
    for column in (
        convert(pa.array(values, pa.string()), kind, untyped=True),
        convert(values, kind, untyped=True),
        convert(pa.array(values, pa.large_string()), kind),
        convert(pa.array(values, pa.string()).dictionary_encode(), kind),
    ):
        assert plain(column) == good
        assert [cell.place for cell in column.bad] == bad


@given(st.lists(st.one_of(st.none(), st.floats(width=32), st.integers(-99, 99).map(float)), max_size=6))
def test_whole_floats_are_integers_and_others_are_not(values):
    column = convert(pa.array(values, pa.float64()), "int")
    bad = [place for place, value in enumerate(values) if value is not None and not value.is_integer()]
    too_big = [place for place, value in enumerate(values) if value is not None and abs(value) >= 2**63]
    assert [cell.place for cell in column.bad] == sorted({*bad, *too_big})
    assert all(found is None or found == value for found, value in zip(column.values.to_pylist(), values, strict=True))


@given(
    st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=5),
    st.sampled_from(["s", "ms", "us", "ns"]),
)
def test_typed_times_are_cut_to_milliseconds(ticks, unit):
    per_ms = {"s": 0.001, "ms": 1, "us": 1000, "ns": 1_000_000}[unit]
    expected = [None if tick is None else tick * 1000 if unit == "s" else tick // int(per_ms) for tick in ticks]
    outside = [
        place
        for place, value in enumerate(expected)
        if value is not None and not -62_135_596_800_000 <= value <= 253_402_300_799_999
    ]
    column = convert(pa.array(ticks, pa.timestamp(unit)), "timestamp", ts_unit="iso")
    assert [cell.place for cell in column.bad] == outside
    assert plain(column) == [None if place in outside else value for place, value in enumerate(expected)]


def test_other_arrow_types():
    day = pa.array([date(1970, 1, 2), None])
    assert plain(convert(day, "timestamp")) == [86_400_000, None]
    zone = pa.array([datetime(1970, 1, 1)], pa.timestamp("us", tz="America/New_York"))
    assert plain(convert(zone, "timestamp")) == [0]
    assert plain(convert(pa.array([1, None], pa.uint8()), "keyword")) == ["1", None]
    assert plain(convert(pa.array([2**64 - 1, 5], pa.uint64()), "int")) == [None, 5]
    assert plain(convert(pa.array([1.5, 2.5], pa.float32()), "float")) == [1.5, 2.5]
    lists = pa.array([["a"], [], None], pa.large_list(pa.dictionary(pa.int32(), pa.string())))
    assert plain(convert(lists, "keyword_list")) == [["a"], None, None]
    assert plain(convert(pa.nulls(2), "bool")) == [None, None]
    sliced = pa.array([["", "z"], ["a", "b"], ["c"]]).slice(1)
    assert convert(sliced, "keyword_list").bad == []


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        ("s", 1_000_000_000, 1_000_000_000_000),
        ("ms", 1_000_000_000, 1_000_000_000),
        ("auto", 1_000_000_000, 1_000_000_000_000),
        ("auto", 99_999_999_999, 99_999_999_999_000),
        ("auto", 100_000_000_000, 100_000_000_000),
        ("auto", 1_000_000_000_000, 1_000_000_000_000),
        ("auto", -5, -5_000),
        ("auto", 1_000_000_000_000_000, None),
        ("iso", 1_000_000_000, None),
        ("s", 10**12, None),
        ("ms", 10**15, None),
        ("ms", -(2**63), None),
        ("auto", -(2**63), None),
        ("s", 2**63, None),
        ("s", "2001-09-09T01:46:40Z", 1_000_000_000_000),
        ("iso", "2001-09-09T01:46:40Z", 1_000_000_000_000),
    ],
)
def test_numbers_mean_what_the_unit_says(unit, value, expected):
    forms = [[value], [value, None], [value, "1970-01-01"]]
    for form in forms:
        column = convert(form, "timestamp", ts_unit=unit)
        assert plain(column)[0] == expected
        assert bool(column.bad) == (expected is None)
    column = convert([str(value), "1970-01-01"], "timestamp", untyped=True, ts_unit=unit)
    assert plain(column)[0] == expected
    assert plain(convert([str(value)], "timestamp", untyped=True, ts_unit=unit)) == [expected]


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        ("int", pa.struct({"a": pa.int64()})),
        ("bool", pa.int64()),
        ("keyword", pa.float64()),
        ("keyword_list", pa.list_(pa.int64())),
        ("timestamp", pa.float64()),
        ("id", pa.bool_()),
    ],
)
def test_columns_that_cannot_be_read(kind, column):
    assert not is_convertible(column, kind)
    assert is_convertible(pa.string(), kind)
    assert is_convertible(ARROW_TYPES[kind], kind)
    assert is_convertible(pa.dictionary(pa.int32(), pa.string()), kind)
