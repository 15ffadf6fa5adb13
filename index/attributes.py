"""What an item can be filtered by: names, types, and which Python values each type admits.

It does not know rows, planes or filters; `index.columns` stores the values and `index.filter` asks about them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

AttributeType = Literal["keyword", "keyword_list", "int", "float", "bool", "timestamp"]
Scalar = str | int | float | bool
Stored = Scalar | tuple[str, ...] | None  # a checked value; None = missing

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class Attribute:
    """One filterable property of an item."""

    name: str
    type: AttributeType

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or "`" in self.name or not self.name.isprintable():
            raise ValueError(f"attribute name {self.name!r}: expected a non-empty printable string without backquotes")
        if self.type not in get_args(AttributeType):
            raise ValueError(f"attribute {self.name!r}: type {self.type!r}, expected one of {get_args(AttributeType)}")


@dataclass(frozen=True, slots=True)
class AttributeSchema:
    """The filterable attributes of a catalogue, in order."""

    attributes: tuple[Attribute, ...] = ()

    def __post_init__(self) -> None:
        names = [attribute.name for attribute in self.attributes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"attribute names given twice: {twice}")

    def find(self, name: str) -> Attribute | None:
        """The attribute of this name, or None."""
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        return None

    def nearest(self, name: str) -> str | None:
        """The existing name most like `name`, for an error message; None where none is like it."""
        names = [attribute.name for attribute in self.attributes]
        by_folded = {each.casefold(): each for each in names}
        near = get_close_matches(name.casefold()[:200], list(by_folded), n=1, cutoff=0.5)
        return by_folded[near[0]] if near else None

    def to_json(self) -> list[dict[str, str]]:
        return [{"name": attribute.name, "type": attribute.type} for attribute in self.attributes]

    @classmethod
    def from_json(cls, source: Sequence[Mapping[str, str]]) -> AttributeSchema:
        """The schema written by `to_json`; ValueError for an unknown type."""
        return cls(tuple(Attribute(each["name"], each["type"]) for each in source))  # type: ignore[arg-type]

    def hash(self) -> str:
        """Hex sha256 of names, types and order: two indexes with the same hash read the same columns."""
        return hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()


def check_value(attribute: Attribute, value: object) -> Stored:
    """The stored form of an item's attribute value; None = missing (absent, None, or an empty list).

    Raises ValueError, naming the value and what was expected. Nothing is converted silently: a bool is not
    an int, a string is not a number; an int stands for a float only when the float equals it exactly.
    """
    if value is None:
        return None
    kind = attribute.type
    if kind == "keyword_list":
        if isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
            return tuple(dict.fromkeys(_check_text(attribute, each) for each in value)) or None
        raise _mismatch(attribute, value, "a list of strings")
    if kind == "keyword":
        if isinstance(value, str):
            return _check_text(attribute, value)
        raise _mismatch(attribute, value, "a string")
    if kind == "bool":
        if isinstance(value, bool):
            return value
        raise _mismatch(attribute, value, "true or false")
    if kind == "float":
        return _check_float(attribute, value)
    if isinstance(value, int) and not isinstance(value, bool) and INT64_MIN <= value <= INT64_MAX:
        return int(value)
    what = "integer milliseconds" if kind == "timestamp" else "an integer"
    raise _mismatch(attribute, value, f"{what} between -2^63 and 2^63-1")


def check_attributes(schema: AttributeSchema, attributes: Mapping[str, object]) -> list[Stored]:
    """The stored values in schema order; names the schema does not know are not the index's business.

    Raises ValueError for a value of the wrong type.
    """
    return [check_value(attribute, attributes.get(attribute.name)) for attribute in schema.attributes]


def _check_text(attribute: Attribute, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _mismatch(attribute, value, "text that utf-8 can hold (no lone surrogates)") from None
    return str(value)


def _check_float(attribute: Attribute, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and number == value:
            return number
    raise _mismatch(attribute, value, "a finite number that a float64 holds exactly")


def _mismatch(attribute: Attribute, value: object, expected: str) -> ValueError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return ValueError(f"attribute {attribute.name!r} ({attribute.type}): got {shown}, expected {expected}")
