"""The JSON spelling of a filter: {"and": [...]}, {"or": [...]}, {"not": {...}}, {"field": ..., OPERATOR: ...}."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from index.attributes import AttributeSchema
from index.clauses import LOWER, SET_NODES, UPPER, ClauseBuilder, shorten
from index.tree import MAX_DEPTH, And, Filter, FilterError, Not, Or

RANGE_OPERATORS = LOWER + UPPER
_ALIASES = {"eq": "any_of", "ne": "none_of"}
_OPERATORS = (*SET_NODES, *_ALIASES, *RANGE_OPERATORS, "exists")
_TREE_KEYS = ("and", "or", "not")


def read_json(source: object, schema: AttributeSchema) -> Filter:
    """The tree of a decoded JSON filter. Raises FilterError with a JSON pointer."""
    return _read_node(source, ClauseBuilder(schema), "", 1)


def _read_node(source: object, builder: ClauseBuilder, where: str, depth: int) -> Filter:
    if depth > MAX_DEPTH:
        raise FilterError(where, f"nested deeper than {MAX_DEPTH}")
    if not isinstance(source, Mapping):
        raise FilterError(where, f"got {shorten(source)}, expected an object with 'and', 'or', 'not' or 'field'")
    found = [key for key in _TREE_KEYS if key in source]
    if found and len(source) > 1:
        others = sorted(str(key) for key in source if key != found[0])
        raise FilterError(where, f"{found[0]!r} stands alone in its object, found also {shorten(others)}")
    if found == ["not"]:
        return Not(_read_node(source["not"], builder, f"{where}/not", depth + 1))
    if found:
        return _read_children(found[0], source[found[0]], builder, f"{where}/{found[0]}", depth)
    if "field" in source:
        return _read_clause(source, builder, where)
    raise FilterError(
        where, f"got keys {shorten(list(source))}, expected 'and', 'or', 'not' or 'field' with an operator"
    )


def _read_children(key: str, source: object, builder: ClauseBuilder, where: str, depth: int) -> Filter:
    if not isinstance(source, (list, tuple)) or not source:
        raise FilterError(where, f"got {shorten(source)}, expected a non-empty list of filters")
    children = tuple(
        _read_node(child, builder, f"{where}/{position}", depth + 1) for position, child in enumerate(source)
    )
    if len(children) == 1:
        return children[0]
    return And(children) if key == "and" else Or(children)


def _read_clause(source: Mapping[str, object], builder: ClauseBuilder, where: str) -> Filter:
    name = source["field"]
    if not isinstance(name, str):
        raise FilterError(f"{where}/field", f"got {shorten(name)}, expected the name of an attribute")
    attribute = builder.find(name, f"{where}/field")
    operators = [key for key in source if key != "field"]
    for operator in operators:
        if operator not in _OPERATORS:
            near = get_close_matches(str(operator)[:200], _OPERATORS, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the operators are {list(_OPERATORS)}"
            raise FilterError(f"{where}/{_escape(operator)}", f"unknown operator {shorten(operator)}{hint}")
    if operators and all(operator in RANGE_OPERATORS for operator in operators):
        bounds = {operator: (source[operator], f"{where}/{operator}") for operator in operators}
        return builder.range_clause(attribute, bounds, where)
    if len(operators) != 1:
        raise FilterError(
            where,
            f"got operators {operators}, expected exactly one (or a lower and an upper bound); join clauses with 'and'",
        )
    operator = operators[0]
    value, at = source[operator], f"{where}/{operator}"
    if operator == "exists":
        return builder.exists_clause(attribute, value, at)
    if operator in _ALIASES:
        return builder.set_clause(_ALIASES[operator], attribute, [(value, at)], at)
    if not isinstance(value, (list, tuple)):
        raise FilterError(at, f"got {shorten(value)}, expected a list of values")
    return builder.set_clause(
        operator, attribute, [(each, f"{at}/{position}") for position, each in enumerate(value)], at
    )


def _escape(key: object) -> str:
    return str(key)[:80].replace("~", "~0").replace("/", "~1")  # RFC 6901
