"""Checked clauses: the one place where both spellings of a filter meet the schema and become tree nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from index.attributes import INT64_MAX, INT64_MIN, Attribute, AttributeSchema, Scalar
from index.tree import MAX_CLAUSES, MAX_VALUES, AllOf, AnyOf, Exists, Filter, FilterError, NoneOf, Range

SET_NODES: dict[str, type[AnyOf] | type[AllOf] | type[NoneOf]] = {
    "any_of": AnyOf,
    "all_of": AllOf,
    "none_of": NoneOf,
}
RANGE_TYPES = ("int", "float", "timestamp")
LOWER, UPPER = ("gte", "gt"), ("lte", "lt")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class ClauseBuilder:
    """Builds the clauses of one filter and counts them, so that a hostile one stops early."""

    schema: AttributeSchema
    num_clauses: int = field(default=0, init=False)
    num_values: int = field(default=0, init=False)

    def find(self, name: str, where: str) -> Attribute:
        """The attribute called `name`; FilterError with the nearest name where there is none."""
        attribute = self.schema.find(name)
        if attribute is not None:
            return attribute
        nearest = self.schema.nearest(name)
        if nearest is not None:
            hint = f"; did you mean {nearest!r}?"
        else:
            known = [each.name for each in self.schema.attributes]
            hint = f"; the filterable attributes are {known}" if known else "; no attribute is filterable"
        raise FilterError(where, f"unknown attribute {shorten(name)}{hint}")

    def set_clause(
        self, operator: str, attribute: Attribute, values: Sequence[tuple[object, str]], where: str
    ) -> Filter:
        """any_of, all_of or none_of; `values` are (literal, where it stands)."""
        self._count_clause(where)
        if not values:
            raise FilterError(where, f"{operator} needs at least one value")
        self.num_values += len(values)
        if self.num_values > MAX_VALUES:
            raise FilterError(where, f"more than {MAX_VALUES} values in one filter")
        checked = (read_literal(attribute, value, at) for value, at in values)
        return SET_NODES[operator](attribute.name, tuple(dict.fromkeys(checked)))

    def range_clause(self, attribute: Attribute, bounds: Mapping[str, tuple[object, str]], where: str) -> Filter:
        """A range from {"gte": (literal, where it stands), ...}."""
        self._count_clause(where)
        if attribute.type not in RANGE_TYPES:
            raise FilterError(
                where,
                f"attribute {attribute.name!r} is a {attribute.type}: ranges need one of {list(RANGE_TYPES)}",
            )
        for side in (LOWER, UPPER):
            if all(operator in bounds for operator in side):
                raise FilterError(where, f"both {side[0]!r} and {side[1]!r} given: one bound per side")
        checked: dict[str, int | float] = {}
        for operator, (value, at) in bounds.items():
            bound = read_literal(attribute, value, at)
            assert not isinstance(bound, str)
            checked[operator] = bound
        return Range(field=attribute.name, **checked)

    def exists_clause(self, attribute: Attribute, present: object, where: str) -> Filter:
        self._count_clause(where)
        if not isinstance(present, bool):
            raise FilterError(where, f"exists takes true or false, got {shorten(present)}")
        return Exists(attribute.name, present)

    def _count_clause(self, where: str) -> None:
        self.num_clauses += 1
        if self.num_clauses > MAX_CLAUSES:
            raise FilterError(where, f"more than {MAX_CLAUSES} clauses in one filter")


def read_literal(attribute: Attribute, value: object, where: str) -> Scalar:
    """The literal in the attribute's own type; FilterError where it is of another one."""
    return _READERS[attribute.type](attribute, value, where)


def shorten(value: object) -> str:
    """repr, cut so that a hostile value cannot fill a log."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _mismatch(attribute: Attribute, value: object, where: str, expected: str) -> FilterError:
    return FilterError(
        where, f"attribute {attribute.name!r} is a {attribute.type}: got {shorten(value)}, expected {expected}"
    )


def _read_text(attribute: Attribute, value: object, where: str) -> Scalar:
    if isinstance(value, str):
        return value
    raise _mismatch(attribute, value, where, "a string")


def _read_bool(attribute: Attribute, value: object, where: str) -> Scalar:
    if isinstance(value, bool):
        return value
    raise _mismatch(attribute, value, where, "true or false")


def _read_int(attribute: Attribute, value: object, where: str) -> Scalar:
    if isinstance(value, int) and not isinstance(value, bool) and INT64_MIN <= value <= INT64_MAX:
        return int(value)
    raise _mismatch(attribute, value, where, "an integer between -2^63 and 2^63-1")


def _read_float(attribute: Attribute, value: object, where: str) -> Scalar:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and number == value:
            return number + 0.0  # -0.0 and 0.0 are one value
    raise _mismatch(attribute, value, where, "a finite number that a float64 holds exactly")


def _read_timestamp(attribute: Attribute, value: object, where: str) -> Scalar:
    expected = "integer milliseconds since 1970 or an ISO-8601 time such as '1995-01-01T12:00:00Z'"
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise _mismatch(attribute, value, where, expected) from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        milliseconds, rest = divmod(moment - _EPOCH, timedelta(milliseconds=1))
        if rest:
            raise _mismatch(attribute, value, where, "a time in whole milliseconds")
        return milliseconds
    if isinstance(value, int) and not isinstance(value, bool) and INT64_MIN <= value <= INT64_MAX:
        return int(value)
    raise _mismatch(attribute, value, where, expected)


_READERS: dict[str, Callable[[Attribute, object, str], Scalar]] = {
    "keyword": _read_text,
    "keyword_list": _read_text,
    "int": _read_int,
    "float": _read_float,
    "bool": _read_bool,
    "timestamp": _read_timestamp,
}
