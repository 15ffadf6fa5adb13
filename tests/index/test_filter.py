import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.attributes import Attribute, AttributeSchema
from index.filter import AllOf, And, AnyOf, Exists, FilterError, NoneOf, Not, Or, Range, fields_of, parse_filter
from tests.index.worlds import SCHEMA, attributes, filters

SAME = [  # text, JSON, tree
    ('genre any_of ["a", "b"]', {"field": "genre", "any_of": ["a", "b"]}, AnyOf("genre", ("a", "b"))),
    ('genre in ["a"]', {"field": "genre", "any_of": ["a"]}, AnyOf("genre", ("a",))),
    ("genre all_of ['a','b']", {"field": "genre", "all_of": ["a", "b"]}, AllOf("genre", ("a", "b"))),
    ('genre none_of ["a"]', {"field": "genre", "none_of": ["a"]}, NoneOf("genre", ("a",))),
    ('genre not in ["a"]', {"field": "genre", "none_of": ["a"]}, NoneOf("genre", ("a",))),
    ("studio = 'x'", {"field": "studio", "eq": "x"}, AnyOf("studio", ("x",))),
    ('studio != "x"', {"field": "studio", "ne": "x"}, NoneOf("studio", ("x",))),
    ("year >= 1990", {"field": "year", "gte": 1990}, Range(field="year", gte=1990)),
    ("1990 <= year", {"field": "year", "gte": 1990}, Range(field="year", gte=1990)),
    ("1990 < year <= 2000", {"field": "year", "gt": 1990, "lte": 2000}, Range(field="year", gt=1990, lte=2000)),
    ("2000 > year >= 1990", {"field": "year", "lt": 2000, "gte": 1990}, Range(field="year", gte=1990, lt=2000)),
    ("score < -1.5e3", {"field": "score", "lt": -1500}, Range(field="score", lt=-1500.0)),
    ("adult = true", {"field": "adult", "any_of": [True]}, AnyOf("adult", (True,))),
    ("year exists", {"field": "year", "exists": True}, Exists("year", True)),
    ("year exists false", {"field": "year", "exists": False}, Exists("year", False)),
    (
        'released < "1970-01-02"',
        {"field": "released", "lt": 86_400_000},
        Range(field="released", lt=86_400_000),
    ),
    (
        'released = "1970-01-01T01:00:00.001+01:00"',
        {"field": "released", "eq": 1},
        AnyOf("released", (1,)),
    ),
    (
        "year = 1 or year = 2 and not year = 3",
        {
            "or": [
                {"field": "year", "eq": 1},
                {"and": [{"field": "year", "eq": 2}, {"not": {"field": "year", "eq": 3}}]},
            ]
        },
        Or((AnyOf("year", (1,)), And((AnyOf("year", (2,)), Not(AnyOf("year", (3,))))))),
    ),
    (
        "NOT (year = 1 OR adult = FALSE)",
        {"not": {"or": [{"field": "year", "eq": 1}, {"field": "adult", "eq": False}]}},
        Not(Or((AnyOf("year", (1,)), AnyOf("adult", (False,))))),
    ),
    ("((year = 1))", {"and": [{"or": [{"field": "year", "eq": 1}]}]}, AnyOf("year", (1,))),
    ("year in [1, 1, 2]", {"field": "year", "any_of": [1, 1, 2]}, AnyOf("year", (1, 2))),
    (
        f"year = {2**53 + 1}",
        {"field": "year", "eq": 2**53 + 1},
        AnyOf("year", (2**53 + 1,)),
    ),
    (r'studio = "\"\u00c9\\"', {"field": "studio", "eq": '"É\\'}, AnyOf("studio", ('"É\\',))),
    (r"""studio = 'it\'s "x"'""", {"field": "studio", "eq": 'it\'s "x"'}, AnyOf("studio", ('it\'s "x"',))),
]


@pytest.mark.parametrize(("text", "source", "tree"), SAME)
def test_both_spellings_give_one_tree(text, source, tree):
    assert parse_filter(text, SCHEMA) == tree
    assert parse_filter(source, SCHEMA) == tree
    assert parse_filter(json.dumps(source), SCHEMA) == tree


@settings(max_examples=300, deadline=None)
@given(filters)
def test_every_tree_survives_both_spellings(tree):
    assert parse_filter(tree.to_json(), SCHEMA) == tree
    assert parse_filter(tree.to_text(), SCHEMA) == tree
    assert fields_of(tree) <= {attribute.name for attribute in SCHEMA.attributes}


@pytest.mark.parametrize(
    ("source", "pointer", "parts"),
    [
        ("gerne = 1", "char 0", ["'gerne'", "did you mean 'genre'"]),
        ({"and": [{"field": "yaer", "gte": 1}]}, "/and/0/field", ["did you mean 'year'"]),
        ("zzzzzz = 1", "char 0", ["the filterable attributes are", "studio"]),
        ("year = 'x'", "char 7", ["is a int", "'x'", "expected an integer"]),
        ("year = 1.5", "char 7", ["1.5", "expected an integer"]),
        ("year = true", "char 7", ["True", "expected an integer"]),
        ({"field": "adult", "eq": 1}, "/eq", ["expected true or false"]),
        ({"field": "genre", "any_of": ["a", 3]}, "/any_of/1", ["got 3", "expected a string"]),
        ({"field": "score", "gt": 2**53 + 1}, "/gt", ["float64 holds exactly"]),
        ({"field": "score", "gt": 10**400}, "/gt", ["float64 holds exactly"]),
        ("score > 1e999", "char 8", ["inf", "finite"]),
        ({"field": "year", "gte": 2**63}, "/gte", ["2^63-1"]),
        ("released > 'soon'", "char 11", ["'soon'", "ISO-8601"]),
        ("released > '2020-01-01T00:00:00.0001'", "char 11", ["whole milliseconds"]),
        ("genre > 'a'", "char 6", ["keyword_list", "ranges need"]),
        ({"field": "year", "gt": 1, "gte": 2}, "", ["both 'gte' and 'gt'"]),
        ("1 < year > 2", "char 9", ["same side"]),
        ({"field": "year", "gte": 1, "any_of": [1]}, "", ["exactly one"]),
        ({"field": "year"}, "", ["exactly one"]),
        ({"field": "year", "anyof": [1]}, "/anyof", ["did you mean 'any_of'"]),
        ({"field": "year", "any_of": []}, "/any_of", ["at least one value"]),
        ({"field": "year", "any_of": 3}, "/any_of", ["expected a list"]),
        ({"field": "year", "exists": 1}, "/exists", ["true or false"]),
        ({"field": 3, "eq": 1}, "/field", ["name of an attribute"]),
        ({"and": []}, "/and", ["non-empty list"]),
        ({"and": [1]}, "/and/0", ["got 1", "expected an object"]),
        ({"not": []}, "/not", ["expected an object"]),
        ({"and": [{"field": "year", "eq": 1}], "or": []}, "", ["stands alone"]),
        ({}, "", ["expected 'and', 'or', 'not' or 'field'"]),
        ("", "char 0", ["empty"]),
        ("  ", "char 0", ["empty"]),
        ("year", "char 4", ["the end", "expected an operator"]),
        ("year anyof [1]", "char 5", ["did you mean 'any_of'"]),
        ("year in [1", "char 10", ["the end", "']'"]),
        ("year in 1", "char 8", ["expected '['"]),
        ("year in []", "char 5", ["at least one value"]),
        ("studio = x", "char 9", ["a string needs quotes"]),
        ("(year = 1", "char 9", ["the end", "')'"]),
        ("year = 1 year = 2", "char 9", ["'year'", "expected 'and', 'or'"]),
        ("year = 1 and", "char 12", ["the end"]),
        ("year = 1 and ;", "char 13", ["';'"]),
        ("studio = 'open", "char 9", ["does not end"]),
        (r"studio = '\q'", "char 9", ["cannot read"]),
        ("year = 12x", "char 7", ["12x"]),
        ("1 = year", "char 2", ["'='", ">="]),
        ('{"field": "year", "eq": 1', "char 25", ["not JSON"]),
        ('{"field": "year", "eq": 1, "eq": 2}', "", ["given twice", "'eq'"]),
        ('{"field": "score", "eq": NaN}', "/eq", ["nan", "finite"]),
        ([], "", ["expected an object"]),
    ],
)
def test_errors_say_where_and_what_was_expected(source, pointer, parts):
    with pytest.raises(FilterError) as caught:
        parse_filter(source, SCHEMA)
    assert caught.value.pointer == pointer
    for part in parts:
        assert part in caught.value.detail


HOSTILE = {
    "not": "not " * 60_000 + "year = 1",
    "parentheses": "(" * 100_000,
    "json": '{"not":' * 30_000,
    "json_lists": '{"and":' + "[" * 200_000,
    "long": "year = 1 or " * 100_000,
    "clauses": "year = 1 or " * 2000 + "year = 1",
    "values": "year in [" + "1," * 20_000 + "1]",
    "digits": "year = " + "9" * 100_000,
    "json_digits": '{"field":"year","eq":' + "9" * 100_000 + "}",
    "quotes": '"' + "\\" * 100_001,
    "name": "a" * 100_000 + " = 1",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_filters_end_in_a_short_error(name):
    with pytest.raises(FilterError) as caught:
        parse_filter(HOSTILE[name], SCHEMA)
    assert len(str(caught.value)) < 500


def test_deep_python_objects_are_refused():
    source = {"field": "year", "eq": 1}
    for _ in range(5000):
        source = {"not": source}
    with pytest.raises(FilterError, match="nested deeper than 64"):
        parse_filter(source, SCHEMA)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("year genre()[]<>=!\"'\\,.0123-andornot{}:é`"), max_size=40))
def test_any_text_parses_or_raises_filter_error(text):
    try:
        tree = parse_filter(text, SCHEMA)
    except FilterError:
        return
    assert parse_filter(tree.to_text(), SCHEMA) == tree


def test_no_filter_is_no_tree():
    assert parse_filter(None, SCHEMA) is None


def test_odd_names_are_quoted():
    schema = AttributeSchema((Attribute("and", "int"), Attribute("half life", "int"), Attribute("a-b.c", "int")))
    tree = parse_filter("`and` = 1 and `half life` > 2 and a-b.c exists", schema)
    assert parse_filter(tree.to_text(), schema) == tree


def test_no_attributes_says_so():
    with pytest.raises(FilterError, match="no attribute is filterable"):
        parse_filter("year = 1", AttributeSchema())


MISSING = {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('genre any_of ["a"]', False),
        ('genre all_of ["a"]', False),
        ('genre none_of ["a"]', True),
        ('not genre any_of ["a"]', True),
        ("year >= 0", False),
        ("not year >= 0", True),
        ("year != 3", True),
        ("genre exists", False),
        ("genre exists false", True),
    ],
)
def test_missing_attributes(text, expected):
    tree = parse_filter(text, SCHEMA)
    assert tree.matches(MISSING) is expected
    assert tree.matches({"genre": [], "year": None}) is expected


@given(filters, attributes)
def test_not_is_the_complement(tree, values):
    assert Not(tree).matches(values) is not tree.matches(values)
