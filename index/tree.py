"""The tree of a filter: what it means, and how it is written back in either spelling.

`matches()` is the plain-Python definition of what a filter means; `index.columns` evaluates the same tree over
bit-planes. `index/FORMAT.md` says what a missing value does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from index.attributes import Scalar

MAX_DEPTH = 64  # nested and/or/not, parentheses included: recursion stays far from Python's limit
MAX_CLAUSES = 1024
MAX_VALUES = 10_000  # in all lists of one filter together
MAX_TEXT_CHARS = 1 << 18

PLAIN_NAME = r"[^\W\d][\w.-]*"  # a name that needs no backquotes, unless it is a word of the grammar
WORDS = frozenset(["and", "or", "not", "in", "any_of", "all_of", "none_of", "exists", "true", "false"])


class FilterError(ValueError):
    """A filter that cannot be read.

    pointer: where. A JSON pointer ("/and/1/any_of/0") for JSON, "char 17" for text (counted from 0).
    detail: what was found, what was expected, and the nearest name where a name is unknown.
    """

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(f"filter at {pointer or '/'}: {detail}")
        self.pointer = pointer
        self.detail = detail


@dataclass(frozen=True, slots=True)
class And:
    """Every child matches."""

    children: tuple[Filter, ...]

    def matches(self, attributes: Mapping[str, object]) -> bool:
        return all(child.matches(attributes) for child in self.children)

    def to_json(self) -> dict[str, object]:
        return {"and": [child.to_json() for child in self.children]}

    def to_text(self) -> str:
        return " and ".join(_inner(child) for child in self.children)


@dataclass(frozen=True, slots=True)
class Or:
    """At least one child matches."""

    children: tuple[Filter, ...]

    def matches(self, attributes: Mapping[str, object]) -> bool:
        return any(child.matches(attributes) for child in self.children)

    def to_json(self) -> dict[str, object]:
        return {"or": [child.to_json() for child in self.children]}

    def to_text(self) -> str:
        return " or ".join(_inner(child) for child in self.children)


@dataclass(frozen=True, slots=True)
class Not:
    """The child does not match (so it matches where the child's attribute is missing)."""

    child: Filter

    def matches(self, attributes: Mapping[str, object]) -> bool:
        return not self.child.matches(attributes)

    def to_json(self) -> dict[str, object]:
        return {"not": self.child.to_json()}

    def to_text(self) -> str:
        return f"not {_inner(self.child)}"


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The attribute has at least one of the values."""

    field: str
    values: tuple[Scalar, ...]

    def matches(self, attributes: Mapping[str, object]) -> bool:
        have = _values_of(attributes, self.field)
        return any(value in have for value in self.values)

    def to_json(self) -> dict[str, object]:
        return {"field": self.field, "any_of": list(self.values)}

    def to_text(self) -> str:
        return f"{_name_text(self.field)} any_of {_list_text(self.values)}"


@dataclass(frozen=True, slots=True)
class AllOf:
    """The attribute has every one of the values; a single-valued attribute is a list of one."""

    field: str
    values: tuple[Scalar, ...]

    def matches(self, attributes: Mapping[str, object]) -> bool:
        have = _values_of(attributes, self.field)
        return all(value in have for value in self.values)

    def to_json(self) -> dict[str, object]:
        return {"field": self.field, "all_of": list(self.values)}

    def to_text(self) -> str:
        return f"{_name_text(self.field)} all_of {_list_text(self.values)}"


@dataclass(frozen=True, slots=True)
class NoneOf:
    """The attribute has none of the values; it matches where the attribute is missing."""

    field: str
    values: tuple[Scalar, ...]

    def matches(self, attributes: Mapping[str, object]) -> bool:
        have = _values_of(attributes, self.field)
        return not any(value in have for value in self.values)

    def to_json(self) -> dict[str, object]:
        return {"field": self.field, "none_of": list(self.values)}

    def to_text(self) -> str:
        return f"{_name_text(self.field)} none_of {_list_text(self.values)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The number or time lies within the bounds: at most one lower, at most one upper, at least one of them."""

    field: str
    gte: int | float | None = None
    gt: int | float | None = None
    lte: int | float | None = None
    lt: int | float | None = None

    def matches(self, attributes: Mapping[str, object]) -> bool:
        value = attributes.get(self.field)
        if not isinstance(value, (int, float)):
            return False
        return (
            (self.gte is None or value >= self.gte)
            and (self.gt is None or value > self.gt)
            and (self.lte is None or value <= self.lte)
            and (self.lt is None or value < self.lt)
        )

    def bounds(self) -> dict[str, int | float]:
        """The bounds that are set, by operator name."""
        every = {"gte": self.gte, "gt": self.gt, "lte": self.lte, "lt": self.lt}
        return {operator: bound for operator, bound in every.items() if bound is not None}

    def to_json(self) -> dict[str, object]:
        return {"field": self.field, **self.bounds()}

    def to_text(self) -> str:
        symbols = {"gte": ">=", "gt": ">", "lte": "<=", "lt": "<"}
        mirrored = {"gte": "<=", "gt": "<"}
        (first, bound), *rest = self.bounds().items()
        name = _name_text(self.field)
        if not rest:
            return f"{name} {symbols[first]} {_scalar_text(bound)}"
        ((second, other),) = rest
        return f"{_scalar_text(bound)} {mirrored[first]} {name} {symbols[second]} {_scalar_text(other)}"


@dataclass(frozen=True, slots=True)
class Exists:
    """The attribute has a value (present=True) or has none (present=False)."""

    field: str
    present: bool = True

    def matches(self, attributes: Mapping[str, object]) -> bool:
        return bool(_values_of(attributes, self.field)) == self.present

    def to_json(self) -> dict[str, object]:
        return {"field": self.field, "exists": self.present}

    def to_text(self) -> str:
        return f"{_name_text(self.field)} exists" + ("" if self.present else " false")


Filter = And | Or | Not | AnyOf | AllOf | NoneOf | Range | Exists


def _values_of(attributes: Mapping[str, object], field: str) -> tuple[object, ...]:
    value = attributes.get(field)
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _inner(tree: Filter) -> str:
    text = tree.to_text()
    return f"({text})" if isinstance(tree, (And, Or)) else text


def _name_text(field: str) -> str:
    plain = re.fullmatch(PLAIN_NAME, field) is not None and field.lower() not in WORDS
    return field if plain else f"`{field}`"


def _list_text(values: tuple[Scalar, ...]) -> str:
    return "[" + ", ".join(_scalar_text(value) for value in values) + "]"


def _scalar_text(value: Scalar) -> str:
    return json.dumps(value, ensure_ascii=False)


def fields_of(tree: Filter) -> set[str]:
    """The attribute names that a filter asks about."""
    if isinstance(tree, (And, Or)):
        return set().union(*(fields_of(child) for child in tree.children))
    return fields_of(tree.child) if isinstance(tree, Not) else {tree.field}
