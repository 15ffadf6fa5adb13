import math

import pytest

from index.attributes import Attribute, AttributeSchema, check_value
from tests.index.worlds import SCHEMA


@pytest.mark.parametrize(
    ("kind", "value", "stored"),
    [
        ("keyword", "x", "x"),
        ("keyword_list", ["a", "b", "a"], ("a", "b")),
        ("keyword_list", [], None),
        ("int", 2**63 - 1, 2**63 - 1),
        ("float", 3, 3.0),
        ("bool", False, False),
        ("timestamp", -5, -5),
        ("int", None, None),
    ],
)
def test_values_in_their_type(kind, value, stored):
    found = check_value(Attribute("x", kind), value)
    assert found == stored and type(found) is type(stored)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("keyword", 3),
        ("keyword", "\ud800"),
        ("keyword_list", "abc"),
        ("keyword_list", [1]),
        ("int", "3"),
        ("int", True),
        ("int", 3.0),
        ("int", 2**63),
        ("float", math.nan),
        ("float", math.inf),
        ("float", True),
        ("float", 2**53 + 1),
        ("float", 10**400),
        ("bool", 1),
        ("timestamp", "2020-01-01"),
    ],
)
def test_values_of_another_type_are_refused(kind, value):
    with pytest.raises(ValueError, match="attribute 'x'.*expected"):
        check_value(Attribute("x", kind), value)


def test_schema_round_trip_and_hash():
    again = AttributeSchema.from_json(SCHEMA.to_json())
    assert again == SCHEMA and again.hash() == SCHEMA.hash()
    assert AttributeSchema(SCHEMA.attributes[::-1]).hash() != SCHEMA.hash()


def test_schema_mistakes_are_named():
    with pytest.raises(ValueError, match="twice.*'a'"):
        AttributeSchema((Attribute("a", "int"), Attribute("a", "bool")))
    with pytest.raises(ValueError, match="'number'"):
        Attribute("a", "number")
    with pytest.raises(ValueError, match="backquotes"):
        Attribute("a`b", "int")
    with pytest.raises(ValueError, match="non-empty"):
        Attribute("", "int")


def test_nearest_ignores_case():
    assert SCHEMA.nearest("Genre") == "genre"
    assert SCHEMA.nearest("zzzzzzz") is None
