from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.attributes import MAX_VALUES, hash_value
from models.data.items import ItemTable
from tests.models.world import SCHEMA

TITLE, GENRE = 0, 1
YEAR, RELEASED = 0, 1


def values_of(table: ItemTable, key: int, feature: int) -> set[int]:
    return set(table.gather(np.array([key])).bags[feature][0].tolist()) - {0}


def test_features_are_hashed_by_field_and_value() -> None:
    table = ItemTable(SCHEMA)
    table.upsert(np.array([1]), [{"title": "The Big, big SLEEP", "genre": ["noir", "crime"], "year": 1946}])
    assert values_of(table, 1, GENRE) == {hash_value("genre", "noir"), hash_value("genre", "crime")}
    assert values_of(table, 1, TITLE) == {hash_value("title", word) for word in ("the", "big", "sleep")}
    batch = table.gather(np.array([1]))
    assert batch.numbers[0, YEAR] == 1946
    assert batch.missing[0].tolist() == [False, True]


def test_upsert_replaces_everything() -> None:
    table = ItemTable(SCHEMA)
    table.upsert(np.array([1, 2]), [{"genre": ["a", "b", "c"], "year": 1}, {"genre": ["a"]}])
    table.upsert(np.array([1]), [{"genre": ["d"]}])
    assert values_of(table, 1, GENRE) == {hash_value("genre", "d")}
    assert table.gather(np.array([1])).missing.all()
    assert len(table) == 2


def test_an_unknown_key_has_nothing() -> None:
    table = ItemTable(SCHEMA)
    for known in (False, True):
        if known:
            table.upsert(np.array([1]), [{"genre": ["a"], "year": 3, "title": "x"}])
        batch = table.gather(np.array([9, 9]))
        assert batch.missing.all()
        assert not batch.numbers.any()
        assert not any(bag.any() for bag in batch.bags)
    assert 9 not in table
    assert 1 in table


def test_long_lists_are_cut() -> None:
    table = ItemTable(SCHEMA)
    table.upsert(np.array([1]), [{"genre": [str(value) for value in range(100)]}])
    assert len(values_of(table, 1, GENRE)) == MAX_VALUES


def test_a_number_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="attribute 'year' is 'old'"):
        ItemTable(SCHEMA).upsert(np.array([1]), [{"year": "old"}])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 5)), max_size=40))
def test_upserts_and_deletes_match_a_dict(operations: list[tuple[int, int]]) -> None:
    table, expected = ItemTable(SCHEMA), dict[int, int]()
    for key, value in operations:
        if value < 0:
            assert table.delete(np.array([key])) == (expected.pop(key, None) is not None)
        else:
            table.upsert(np.array([key]), [{"year": value, "genre": [str(value)]}])
            expected[key] = value
    assert sorted(table.keys().tolist()) == sorted(expected)
    batch = table.gather(np.arange(10))
    for key in range(10):
        assert batch.missing[key, YEAR] == (key not in expected)
        if key in expected:
            assert batch.numbers[key, YEAR] == expected[key]
            assert values_of(table, key, GENRE) == {hash_value("genre", str(expected[key]))}
