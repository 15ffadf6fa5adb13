"""Raw columns to typed ones, and which cells do not fit.

The rules are those of `services.datasets.attribute_values`. A column is first tried as a whole with Arrow; where that
cannot vouch for every cell, each is checked by itself, which also tells what is wrong with it. Both ways give the same
values; only the speed differs.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

from services.datasets.attribute_values import (
    LIST_SEPARATOR,
    MAX_ID_BYTES,
    MAX_KEYWORD_BYTES,
    MAX_LIST_VALUES,
    MAX_TEXT_BYTES,
    MAX_TIMESTAMP_MS,
    MIN_TIMESTAMP_MS,
    AttributeType,
    AttributeValue,
    BadValue,
    check_id,
    check_timestamp,
    check_value,
    parse_text,
)
from services.datasets.dataset import TimestampUnit
from services.importing.readers import Array, Cells

# The stubs know the types each of its functions takes; here no column has a type known beforehand.
pc: Any = pyarrow.compute

CellKind = AttributeType | Literal["id"]

ARROW_TYPES: dict[CellKind, Any] = {
    "id": pa.string(),
    "keyword": pa.string(),
    "keyword_list": pa.list_(pa.string()),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("ms", tz="UTC"),
    "text": pa.string(),
}

_INT = r"^-?[0-9]{1,18}$"
_NUMBER = r"^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
_BOOL = r"^(true|false|True|False|TRUE|FALSE|0|1)$"
_ISO = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?)?Z?$"
_MAX_BYTES = {"id": MAX_ID_BYTES, "keyword": MAX_KEYWORD_BYTES, "text": MAX_TEXT_BYTES}
_DIGITS = re.compile(r"[+-]?[0-9]{1,40}", re.ASCII)

# ts_unit "auto": numbers below the first are seconds, below the second milliseconds; the year 5138 either way.
AUTO_MS_FROM = 100_000_000_000
AUTO_BELOW = 100_000_000_000_000
_EXPECTED_TIMES: dict[TimestampUnit, str] = {
    "iso": "an ISO-8601 time, year 1 to 9999 (numbers need another ts_unit)",
    "s": "an ISO-8601 time or whole seconds since 1970, year 1 to 9999",
    "ms": "an ISO-8601 time or whole milliseconds since 1970, year 1 to 9999",
    "auto": "an ISO-8601 time, or whole seconds or milliseconds since 1970 (not micro- or nanoseconds)",
}


class BadCell(NamedTuple):
    """One cell that does not fit its column."""

    place: int  # in the batch
    value: object
    reason: str


class Column(NamedTuple):
    """A column of a batch, typed; null where there is no value, and where the value is bad."""

    values: Array
    bad: list[BadCell]


def convert(cells: Cells, kind: CellKind, *, untyped: bool = False, ts_unit: TimestampUnit = "ms") -> Column:
    """The column as `ARROW_TYPES[kind]`.

    untyped: the cells are text to be parsed (CSV); otherwise they have types (Parquet, JSON).
    ts_unit: what a number means as a timestamp; "iso" refuses numbers.
    """
    # Arrow columns convert where nothing is lost ("7" or 7.0 to 7, 7 to "7"); JSON values as in an HTTP write.
    lenient = untyped or isinstance(cells, pa.Array)
    if isinstance(cells, pa.Array):
        plain = _plain(cells)
        if pa.types.is_timestamp(plain.type):
            plain, ts_unit = _milliseconds(plain), "ms"
        cells = plain
    array = cells if isinstance(cells, pa.Array) else _as_array(cells, kind, untyped)
    if array is not None:
        whole = _convert_whole(array, kind, lenient, ts_unit)
        if whole is not None:
            return Column(whole, [])

    values = cells.to_pylist() if isinstance(cells, pa.Array) else cells
    good: list[AttributeValue | None] = []
    bad = []
    for place, value in enumerate(values):
        try:
            good.append(_check_cell(value, kind, lenient, ts_unit))
        except BadValue as error:
            good.append(None)
            where = f"value {error.path[0] + 1}: " if error.path else ""
            bad.append(BadCell(place, value, f"{where}expected {error.expected}"))
    return Column(pa.array(good, ARROW_TYPES[kind]), bad)


def is_convertible(column: Any, kind: CellKind) -> bool:
    """Whether a Parquet column of this type can hold such values at all."""
    if pa.types.is_dictionary(column):
        column = column.value_type
    if pa.types.is_null(column) or _is_text(column):
        return True
    if kind == "keyword_list":
        if not (pa.types.is_list(column) or pa.types.is_large_list(column)):
            return False
        inner = column.value_type
        return _is_text(inner.value_type if pa.types.is_dictionary(inner) else inner)
    if kind == "bool":
        return pa.types.is_boolean(column)
    if kind == "timestamp":
        return pa.types.is_integer(column) or pa.types.is_timestamp(column) or pa.types.is_date(column)
    if kind in ("int", "float"):
        return pa.types.is_integer(column) or pa.types.is_floating(column)
    return pa.types.is_integer(column)


def _is_text(column: Any) -> bool:
    return pa.types.is_string(column) or pa.types.is_large_string(column) or pa.types.is_string_view(column)


def _plain(array: Any) -> Any:
    """Without dictionaries, large offsets and dates."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if _is_text(array.type):
        return array.cast(pa.string())
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return array.cast(pa.list_(pa.string()))
    return array.cast(pa.timestamp("ms")) if pa.types.is_date(array.type) else array


def _milliseconds(array: Array) -> Any:
    """int64 milliseconds of a timestamp column, finer fractions cut off; without a zone it is UTC."""
    ticks = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    if array.type.unit == "s":
        # Clipped to what stays in int64: far out of range either way.
        ticks = np.clip(ticks, -(2**63) // 1000 + 1, 2**63 // 1000 - 1) * 1000
    else:
        ticks = ticks // {"ms": 1, "us": 1_000, "ns": 1_000_000}[array.type.unit]
    return pa.array(ticks, mask=array.is_null().to_numpy(zero_copy_only=False))


def _as_array(cells: list[Any], kind: CellKind, untyped: bool) -> Any:
    """Cells of one Python type as Arrow; None where they differ, or one does not fit Arrow's type."""
    types = set(map(type, cells)) - {type(None)}
    target: Any
    if types <= {str}:
        target = pa.string()
        if not untyped and kind in ("int", "float", "bool", "keyword_list") and types:
            return None
    elif types == {int}:
        # A number is a keyword or a text in no JSON.
        if kind not in ("id", "int", "float", "timestamp"):
            return None
        target = pa.float64() if kind == "float" else pa.int64()
    elif types <= {int, float} and kind == "float":
        target = pa.float64()
    elif types == {bool} and kind == "bool":
        target = pa.bool_()
    elif types == {list} and kind == "keyword_list":
        target = pa.list_(pa.string())
    else:
        return None
    try:
        return pa.array(cells, target)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError):
        return None


# The functions below answer with an Arrow array of the column's type, or None where a cell is bad or only the slow
# way can tell.


def _convert_whole(array: Array, kind: CellKind, lenient: bool, ts_unit: TimestampUnit) -> Any:
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), ARROW_TYPES[kind])
    if kind == "id" or kind == "keyword" or kind == "text":
        return _strings_whole(array, kind)
    if kind == "keyword_list":
        return _lists_whole(array)
    if kind == "timestamp":
        return _times_whole(array, lenient, ts_unit)
    if _is_text(array.type):
        array = pc.if_else(pc.equal(array, ""), None, array)
        pattern = {"int": _INT, "float": _NUMBER, "bool": _BOOL}[kind]
        if not _all(pc.match_substring_regex(array, pattern)):
            return None
    elif pa.types.is_boolean(array.type) != (kind == "bool"):
        return None
    try:
        typed = array.cast(ARROW_TYPES[kind], safe=kind != "float")
    except pa.ArrowException:
        return None
    return typed if kind != "float" or _all(pc.is_finite(typed)) else None


def _strings_whole(array: Array, kind: Literal["id", "keyword", "text"]) -> Any:
    if pa.types.is_integer(array.type):
        array = array.cast(pa.string())
    elif not _is_text(array.type):
        return None
    if _longest(array) > _MAX_BYTES[kind]:
        return None
    return pc.if_else(pc.equal(array, ""), None, array)


def _lists_whole(array: Array) -> Any:
    if _is_text(array.type):
        array = pc.split_pattern(pc.if_else(pc.equal(array, ""), None, array), LIST_SEPARATOR)
    elif not pa.types.is_list(array.type):
        return None
    members = pc.list_flatten(array)
    if members.null_count or pc.any(pc.equal(members, "")).as_py() or _longest(members) > MAX_KEYWORD_BYTES:
        return None
    lengths = pc.list_value_length(array)
    if (pc.max(lengths).as_py() or 0) > MAX_LIST_VALUES:
        return None
    return pc.if_else(pc.equal(lengths, 0), None, array).cast(ARROW_TYPES["keyword_list"])


def _times_whole(array: Array, lenient: bool, ts_unit: TimestampUnit) -> Any:
    if _is_text(array.type):
        if lenient:
            array = pc.if_else(pc.equal(array, ""), None, array)
        if not (lenient and _all(pc.match_substring_regex(array, _INT))):
            return _times_of_iso(array)
        array = array.cast(pa.int64())
    if not pa.types.is_integer(array.type):
        return None
    try:
        array = array.cast(pa.int64())
    except pa.ArrowException:
        return None
    numbers = array.fill_null(0).to_numpy(zero_copy_only=False)
    size = np.abs(numbers)
    scale: Any = {"s": 1000, "ms": 1, "iso": 0, "auto": np.where(size < AUTO_MS_FROM, 1000, 1)}[ts_unit]
    limit = AUTO_BELOW if ts_unit == "auto" else MAX_TIMESTAMP_MS
    # abs(-2**63) is negative.
    if len(array) > array.null_count and (ts_unit == "iso" or size.max() >= limit or size.min() < 0):
        return None
    return _in_range(pa.array(numbers * scale, mask=array.is_null().to_numpy(zero_copy_only=False)))


def _times_of_iso(array: Array) -> Any:
    if not _all(pc.match_substring_regex(array, _ISO)):
        return None
    try:
        return _in_range(_milliseconds(pc.utf8_rtrim(array, "Z").cast(pa.timestamp("us"))))
    except pa.ArrowException:
        return None


def _in_range(milliseconds: Array) -> Any:
    inside = pc.and_(pc.greater_equal(milliseconds, MIN_TIMESTAMP_MS), pc.less_equal(milliseconds, MAX_TIMESTAMP_MS))
    return milliseconds.cast(ARROW_TYPES["timestamp"]) if _all(inside) else None


def _all(mask: Array) -> bool:
    """Whether no value is False; nulls and an empty mask are fine."""
    return pc.all(mask).as_py() is not False


def _longest(texts: Array) -> int:
    return int(pc.max(pc.binary_length(texts)).as_py() or 0)


def _check_cell(value: Any, kind: CellKind, lenient: bool, ts_unit: TimestampUnit) -> AttributeValue | None:
    if kind == "timestamp":
        return _check_time(value, lenient, ts_unit)
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if kind == "id":
        # Numbers are common as ids, in JSON too.
        return None if value is None or value == "" else check_id(str(value) if is_int else value)
    if lenient:
        if isinstance(value, str):
            return parse_text(kind, value)
        if is_int and kind in ("keyword", "text"):
            value = str(value)
        elif isinstance(value, float) and kind == "int" and value.is_integer():
            value = int(value)
    return check_value(kind, value)


def _check_time(value: Any, lenient: bool, ts_unit: TimestampUnit) -> int | None:
    if value is None or (lenient and value == ""):
        return None
    expected = _EXPECTED_TIMES[ts_unit]
    if isinstance(value, str):
        cell = value.strip() if lenient else value
        if not (lenient and _DIGITS.fullmatch(cell)):
            try:
                return check_timestamp(cell)
            except BadValue:
                raise BadValue(expected) from None
        value = int(cell)
    if not isinstance(value, int) or isinstance(value, bool) or ts_unit == "iso":
        raise BadValue(expected)
    if ts_unit == "s" or (ts_unit == "auto" and abs(value) < AUTO_MS_FROM):
        value *= 1000
    elif ts_unit == "auto" and abs(value) >= AUTO_BELOW:
        raise BadValue(expected)
    if not MIN_TIMESTAMP_MS <= value <= MAX_TIMESTAMP_MS:
        raise BadValue(expected)
    return int(value)
