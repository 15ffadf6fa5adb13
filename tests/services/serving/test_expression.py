"""The value function's language: Python's arithmetic is the oracle."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ranking.expression import MAX_DEPTH, MAX_LENGTH, ExpressionError, parse_expression, quoted
from tests.services.serving.world import DAY_MS

NAMES = ("watch", "like", "watch.7d")
COLUMNS = {"watch": np.array([0.5, 0.25]), "like": np.array([0.125, 0.75]), "watch.7d": np.array([3.0, 40.0])}


def value(text: str) -> list[float]:
    return np.broadcast_to(parse_expression(text, NAMES)(COLUMNS), (2,)).tolist()


NUMBERS = st.floats(0.0, 100.0, allow_subnormal=False).map(repr)
ATOMS = NUMBERS | st.sampled_from(["watch", "like"])


def combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return (
        st.tuples(inner, st.sampled_from([" + ", "-", "*", " / ", "**"]), inner).map("".join)
        | inner.map("({})".format)
        | inner.map("-{}".format)
        | st.tuples(st.sampled_from(["min", "max"]), inner, inner).map("{0[0]}({0[1]}, {0[2]})".format)
        | inner.map("log({})".format)
    )


@given(st.recursive(ATOMS, combined, max_leaves=12))
def test_equals_python(text: str) -> None:
    """The same text through Python's own parser, over numpy's arithmetic."""
    row = {name: COLUMNS[name][1] for name in ("watch", "like")}
    functions = {"min": np.minimum, "max": np.maximum, "log": np.log, "__builtins__": {}}
    # Numpy scalars throughout, so that both sides overflow and divide alike.
    wrapped = re.sub(r"(?<![\w.])(\d+\.\d+(?:e[+-]?\d+)?)", r"f(\1)", text)
    with np.errstate(all="ignore"):
        expected = eval(wrapped, {**functions, "f": np.float64, **row})
    assert value(text)[1] == pytest.approx(float(expected), rel=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.2 * watch + like", [0.225, 0.8]),
        ("-2 ** 2", [-4.0, -4.0]),
        ("2 ** 3 ** 2", [512.0, 512.0]),
        ("2 ** -1", [0.5, 0.5]),
        ("watch - like - 0.125", [0.25, -0.625]),
        ("like / watch / 2", [0.125, 1.5]),
        ("max(watch, like, 0.6)", [0.6, 0.75]),
        ("min(`watch.7d`, 10) * +like", [0.375, 7.5]),
        ("log(watch.7d)", [math.log(3), math.log(40)]),
        (" 1e-1\n* ( watch ) ", [0.05, 0.025]),
    ],
)
def test_known_values(text: str, expected: list[float]) -> None:
    assert value(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("", 0, ["the end", "expected a number"]),
        ("lke + watch", 0, ["'lke'", "did you mean 'like'?"]),
        ("like + wach.7d", 7, ["'wach.7d'", "did you mean 'watch.7d'?"]),
        ("like + zzz", 7, ["known: watch, like, watch.7d"]),
        ("mx(like, watch)", 0, ["no function 'mx'", "did you mean 'max'?"]),
        ("max(like)", 0, ["max takes 2 or more arguments, got 1"]),
        ("log(like, watch)", 0, ["log takes 1 argument, got 2"]),
        ("like ^ 2", 5, ["power is '**'"]),
        ("like watch", 5, ["'watch'", "operator or the end"]),
        ("(like + 1", 9, ["the end", "')'"]),
        ("like *", 6, ["the end"]),
        ("1.5.2", 0, ["expected a number"]),
        ("2like", 0, ["expected a number"]),
        ("like; watch", 4, ["';"]),
        ("__import__('os')", 11, ["expected a number"]),
        ("like.__class__", 0, ["no column 'like.__class__'"]),
        ("(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1), MAX_DEPTH, ["nested deeper"]),
        ("-" * 1000 + "1", MAX_DEPTH, ["nested deeper"]),
        ("1+" * MAX_LENGTH + "1", MAX_LENGTH, [f"at most {MAX_LENGTH}"]),
    ],
)
def test_mistakes_are_told_with_their_place(text: str, position: int, words: list[str]) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse_expression(text, NAMES)
    assert caught.value.position == position, caught.value
    for word in words:
        assert word in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_expression(text, NAMES)
    except ExpressionError as error:
        assert 0 <= error.position <= len(text)


def test_summands_add_up_and_keep_their_text() -> None:
    expression = parse_expression("0.2*watch - like * (1 + watch) + max(like, 0.1)", NAMES)
    assert [(term.text, term.negative) for term in expression.terms] == [
        ("0.2*watch", False),
        ("like * (1 + watch)", True),
        ("max(like, 0.1)", False),
    ]
    assert expression.names == {"watch", "like"}
    np.testing.assert_allclose(sum(term(COLUMNS) for term in expression.terms), expression(COLUMNS))


def test_names_that_are_not_plain_are_quoted() -> None:
    assert quoted("watch.7d") == "watch.7d" and quoted("a b") == "`a b`"
    assert parse_expression("`a b` * 2", ["a b"])({"a b": np.array([DAY_MS])}) == 2 * DAY_MS
