"""Values as HTTP writes and text cells give them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.datasets.attribute_values import (
    ATTRIBUTE_TYPES,
    MAX_ID_BYTES,
    MAX_KEYWORD_BYTES,
    MAX_LIST_VALUES,
    MAX_TEXT_BYTES,
    BadValue,
    check_id,
    check_value,
    parse_text,
)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("keyword", "a", "a"),
        ("keyword", "", None),
        ("text", "smörgås 🎬", "smörgås 🎬"),
        ("keyword_list", ["a", "b"], ["a", "b"]),
        ("keyword_list", [], None),
        ("int", -(2**63), -(2**63)),
        ("int", 2**63 - 1, 2**63 - 1),
        ("float", 3, 3.0),
        ("float", -0.5, -0.5),
        ("bool", False, False),
        ("timestamp", 0, 0),
        ("timestamp", "1970-01-01", 0),
        ("timestamp", "1970-01-01T01:00:00+01:00", 0),
        ("timestamp", "1969-12-31T23:59:59.9999Z", -1),
        ("timestamp", "9999-12-31T23:59:59.999Z", 253_402_300_799_999),
    ],
)
def test_values_are_normalised(kind, value, expected):
    found = check_value(kind, value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("keyword", 1),
        ("keyword", "k" * (MAX_KEYWORD_BYTES + 1)),
        ("keyword", "\ud800"),
        ("text", "ä" * (MAX_TEXT_BYTES // 2 + 1)),
        ("text", ["a"]),
        ("keyword_list", "a"),
        ("keyword_list", ["a"] * (MAX_LIST_VALUES + 1)),
        ("int", True),
        ("int", 2**63),
        ("int", 1.0),
        ("int", "1"),
        ("float", float("nan")),
        ("float", float("inf")),
        ("float", 10**400),
        ("float", True),
        ("bool", 1),
        ("timestamp", "yesterday"),
        ("timestamp", "19-01-1995"),
        ("timestamp", 10**18),
        ("timestamp", True),
        ("timestamp", 1.5),
    ],
)
def test_other_values_are_refused(kind, value):
    with pytest.raises(BadValue, match="expected"):
        check_value(kind, value)


def test_a_bad_list_member_is_named_by_its_place():
    for member in ("", 5, None, "k" * (MAX_KEYWORD_BYTES + 1)):
        with pytest.raises(BadValue) as caught:
            check_value("keyword_list", ["a", member])
        assert caught.value.path == (1,)


@pytest.mark.parametrize("kind", ATTRIBUTE_TYPES)
def test_null_and_an_empty_cell_are_no_value(kind):
    assert check_value(kind, None) is None
    assert parse_text(kind, "") is None


@pytest.mark.parametrize(
    ("kind", "cell", "expected"),
    [
        ("int", " +7 ", 7),
        ("float", "-.5e1", -5.0),
        ("bool", "TRUE", True),
        ("bool", "0", False),
        ("keyword_list", "a|b", ["a", "b"]),
        ("timestamp", "86400000", 86_400_000),
        ("timestamp", "1970-01-02T00:00Z", 86_400_000),
        ("keyword", " a ", " a "),
    ],
)
def test_text_cells_are_parsed(kind, cell, expected):
    assert parse_text(kind, cell) == expected


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        ("int", "0x1F"),
        ("int", "1_000"),
        ("int", "٣"),
        ("int", "9" * 5000),
        ("int", "7.0"),
        ("float", "nan"),
        ("float", "inf"),
        ("float", "1e999"),
        ("float", "1,5"),
        ("bool", "yes"),
        ("keyword_list", "a||b"),
        ("timestamp", "soon"),
    ],
)
def test_other_cells_are_refused(kind, cell):
    with pytest.raises(BadValue):
        parse_text(kind, cell)


@given(st.text(max_size=600))
def test_an_id_is_taken_if_and_only_if_it_fits(text):
    fits = 0 < len(text.encode(errors="surrogatepass")) <= MAX_ID_BYTES and text.isprintable()
    if fits:
        assert check_id(text) == text
    for bad in ("", "x" * 4096, "🎬" * 129, 5, None, "\udcff"):
        with pytest.raises(BadValue):
            check_id(bad)
    assert check_id("🎬" * 128) == "🎬" * 128
