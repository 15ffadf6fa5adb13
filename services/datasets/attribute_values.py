"""What one attribute value may be: the single definition behind HTTP writes and imported rows.

Knows nothing of files, columns or datasets. `check_value` takes values as JSON gives them; `parse_text`
takes the text cells of a CSV file. Both answer in plain Python: str, list[str], int, float, bool, and int
milliseconds UTC for a timestamp. None means "no value": null, an empty text or an empty list.
"""

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

AttributeType = Literal["keyword", "keyword_list", "int", "float", "bool", "timestamp", "text"]
ATTRIBUTE_TYPES: tuple[AttributeType, ...] = get_args(AttributeType)
AttributeValue = str | list[str] | int | float | bool

MAX_ID_BYTES = 512
MAX_KEYWORD_BYTES = 512
MAX_TEXT_BYTES = 64 * 1024
MAX_LIST_VALUES = 1024
MAX_INT_DIGITS = 40  # leading zeros included; Python itself refuses thousands of digits with another error
LIST_SEPARATOR = "|"

MIN_INT64, MAX_INT64 = -(2**63), 2**63 - 1
# 0001-01-01 to 9999-12-31T23:59:59.999: what ISO-8601 can write with four digits.
MIN_TIMESTAMP_MS, MAX_TIMESTAMP_MS = -62_135_596_800_000, 253_402_300_799_999

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_DIGITS = re.compile(r"[+-]?[0-9]+", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
_BOOLS = {"true": True, "false": False, "1": True, "0": False}

EXPECTED: dict[AttributeType, str] = {
    "keyword": f"a text of at most {MAX_KEYWORD_BYTES} bytes",
    "keyword_list": f"a list of at most {MAX_LIST_VALUES} non-empty texts",
    "int": "an integer between -2^63 and 2^63 - 1",
    "float": "a finite number",
    "bool": "true or false",
    "timestamp": "ISO-8601 time (UTC if it names no zone) or milliseconds since 1970, year 1 to 9999",
    "text": f"a text of at most {MAX_TEXT_BYTES} bytes",
}


class BadValue(ValueError):
    """A value its attribute cannot hold.

    path: where inside the value, as list positions; () is the value itself.
    """

    def __init__(self, expected: str, path: tuple[int, ...] = ()) -> None:
        super().__init__(f"expected {expected}")
        self.expected = expected
        self.path = path


def check_value(kind: AttributeType, value: object) -> AttributeValue | None:
    """The normalised value, None where there is none; raises BadValue saying what was expected."""
    if value is None:
        return None
    if kind == "keyword":
        return _check_str(value, MAX_KEYWORD_BYTES, EXPECTED[kind]) or None
    if kind == "text":
        return _check_str(value, MAX_TEXT_BYTES, EXPECTED[kind]) or None
    if kind == "keyword_list":
        return _check_list(value) or None
    if kind == "timestamp":
        return check_timestamp(value)
    if kind == "bool":
        if not isinstance(value, bool):
            raise BadValue(EXPECTED[kind])
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadValue(EXPECTED[kind])
    return _check_int(value) if kind == "int" else _check_float(value)


def parse_text(kind: AttributeType, text: str) -> AttributeValue | None:
    """A text cell's value: numbers in decimal, true/false/1/0, lists joined by '|'; raises BadValue."""
    if kind in ("keyword", "text"):
        return check_value(kind, text)
    if text == "":
        return None
    if kind == "keyword_list":
        return _check_list(text.split(LIST_SEPARATOR))
    cell = text.strip()
    if kind == "bool":
        if cell.lower() not in _BOOLS:
            raise BadValue(EXPECTED[kind])
        return _BOOLS[cell.lower()]
    if kind == "float":
        if _NUMBER.fullmatch(cell) is None:
            raise BadValue(EXPECTED[kind])
        return _check_float(float(cell))
    if _DIGITS.fullmatch(cell) is not None:
        if len(cell) > MAX_INT_DIGITS:
            raise BadValue(EXPECTED[kind])
        return check_value(kind, int(cell))
    if kind == "timestamp":
        return check_timestamp(cell)
    raise BadValue(EXPECTED[kind])


def check_timestamp(value: object) -> int:
    """Milliseconds UTC of an ISO-8601 text or an integer of milliseconds; finer fractions are cut off."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not MIN_TIMESTAMP_MS <= value <= MAX_TIMESTAMP_MS:
            raise BadValue(EXPECTED["timestamp"])
        return value
    if not isinstance(value, str):
        raise BadValue(EXPECTED["timestamp"])
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise BadValue(EXPECTED["timestamp"]) from None
    milliseconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return check_timestamp(milliseconds // _MILLISECOND)


def check_id(value: object) -> str:
    """An item, user or event id; raises BadValue."""
    expected = f"a non-empty text of at most {MAX_ID_BYTES} bytes"
    text = _check_str(value, MAX_ID_BYTES, expected)
    if not text:
        raise BadValue(expected)
    return text


def _check_str(value: object, max_bytes: int, expected: str) -> str:
    if not isinstance(value, str):
        raise BadValue(expected)
    try:
        num_bytes = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise BadValue("valid Unicode (a lone surrogate is none)") from None
    if num_bytes > max_bytes:
        raise BadValue(f"{expected} (this one has {num_bytes})")
    return value


def _check_list(value: object) -> list[str]:
    if not isinstance(value, (list, tuple)):
        raise BadValue(EXPECTED["keyword_list"])
    if len(value) > MAX_LIST_VALUES:
        raise BadValue(f"{EXPECTED['keyword_list']} (this one has {len(value)})")
    texts: list[str] = []
    for position, member in enumerate(value):
        try:
            texts.append(_check_str(member, MAX_KEYWORD_BYTES, f"a non-empty {EXPECTED['keyword'][2:]}"))
        except BadValue as error:
            raise BadValue(error.expected, (position,)) from None
        if member == "":
            raise BadValue(f"a non-empty {EXPECTED['keyword'][2:]}", (position,))
    return texts


def _check_int(value: int | float) -> int:
    if not isinstance(value, int) or not MIN_INT64 <= value <= MAX_INT64:
        raise BadValue(EXPECTED["int"])
    return value


def _check_float(value: int | float) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise BadValue(EXPECTED["float"]) from None
    if not math.isfinite(number):
        raise BadValue(EXPECTED["float"])
    return number
