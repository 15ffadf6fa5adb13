"""Arithmetic over named columns, as text: `0.2 * watch + like * max(0.1, log(1 + watch.7d))`.

    sum     = product { ("+" | "-") product }
    product = factor { ("*" | "/") factor }
    factor  = ("-" | "+") factor | power
    power   = atom [ "**" factor ]
    atom    = number | name | function "(" sum { "," sum } ")" | "(" sum ")"

Precedence and associativity are Python's: `-a ** 2` is `-(a ** 2)`, `a ** b ** c` is `a ** (b ** c)`. Functions are
`min` and `max` of two or more and `log` of one. A name is letters, digits, `_` and dots, or anything else between
backquotes. A tokenizer and a recursive descent of bounded depth: no text of a caller is ever run as code.
"""

# n = rows

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]
"""f64[n]; the value of a constant has no dimension."""
Columns = Mapping[str, Column]

MAX_LENGTH = 2000
MAX_DEPTH = 32

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
    | (?P<name>[^\W\d]\w*(?:\.\w+)*)
    | `(?P<quoted>[^`]+)`
    | (?P<mark>\*\*|[-+*/(),])
    )""",
    re.VERBOSE,
)


class ExpressionError(ValueError):
    """Text that is no expression; `position` counts characters from the start of the text."""

    def __init__(self, position: int, detail: str) -> None:
        self.position = position
        self.detail = detail
        super().__init__(f"char {position}: {detail}")


class _Function(NamedTuple):
    fewest: int
    most: int | None
    compute: Callable[[list[Column]], Column]


def _smallest(arguments: list[Column]) -> Column:
    result = arguments[0]
    for argument in arguments[1:]:
        result = np.minimum(result, argument)
    return result


def _largest(arguments: list[Column]) -> Column:
    result = arguments[0]
    for argument in arguments[1:]:
        result = np.maximum(result, argument)
    return result


_FUNCTIONS = {
    "min": _Function(2, None, _smallest),
    "max": _Function(2, None, _largest),
    "log": _Function(1, 1, lambda arguments: np.log(arguments[0])),
}

_OPERATORS: Mapping[str, Callable[[Column, Column], Column]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "**": np.power,
}

_Node = Callable[[Columns], Column]


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of the outermost sum."""

    text: str
    """As written, without its sign."""
    negative: bool
    compute: _Node

    def __call__(self, columns: Columns) -> Column:
        value = self.compute(columns)
        return -value if self.negative else value


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression: its summands, which add up to its value."""

    text: str
    terms: tuple[Term, ...]
    names: frozenset[str]
    """The columns it reads."""

    def __call__(self, columns: Columns) -> Column:
        """Return f64[n]. Division by zero and logarithms of what is not positive give inf or nan, as in IEEE 754."""
        with np.errstate(all="ignore"):
            total = self.terms[0](columns)
            for term in self.terms[1:]:
                total = total + term(columns)
        return total


class _Token(NamedTuple):
    kind: str  # "number", "name", "function", "mark" or "end"
    text: str
    position: int
    stop: int

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else repr(self.text)


def parse_expression(text: str, known: Collection[str]) -> Expression:
    """Read an expression over the columns `known`. Raises ExpressionError."""
    if len(text) > MAX_LENGTH:
        raise ExpressionError(MAX_LENGTH, f"{len(text)} characters; expected at most {MAX_LENGTH}")
    reader = _Reader(text, _tokenize(text), known)
    terms = reader.read_terms()
    reader.expect_end()
    return Expression(text, terms, frozenset(reader.names))


def quoted(name: str) -> str:
    """A name as an expression writes it: between backquotes where it is not plain."""
    match = _TOKEN.fullmatch(name)
    return name if match and match.lastgroup == "name" else f"`{name}`"


def _tokenize(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            hint = "; power is '**'" if text[at] == "^" else ""
            raise ExpressionError(at, f"got {text[at : at + 10]!r}, expected a number, a name or an operator{hint}")
        kind = str(found.lastgroup)
        position = found.start(kind)
        if kind == "name" and text[found.end() :].lstrip().startswith("("):
            kind = "function"
        name = found.group(str(found.lastgroup))
        tokens.append(_Token("name" if kind == "quoted" else kind, name, position, found.end()))
        at = found.end()
    tokens.append(_Token("end", "", end, end))
    return tokens


class _Reader:
    """Recursive descent over the tokens; `depth` counts whatever nests."""

    def __init__(self, text: str, tokens: list[_Token], known: Collection[str]) -> None:
        self.names: set[str] = set()
        self._text = text
        self._tokens = tokens
        self._known = known
        self._next = 0

    def read_terms(self) -> tuple[Term, ...]:
        """The outermost sum."""
        terms: list[Term] = []
        negative = False
        while True:
            start = self._peek().position
            node = self._read_product(1)
            text = self._text[start : self._tokens[self._next - 1].stop]
            terms.append(Term(text, negative, node))
            if not self._at("+", "-"):
                return tuple(terms)
            negative = self._take().text == "-"

    def expect_end(self) -> None:
        rest = self._take()
        if rest.kind != "end":
            raise ExpressionError(rest.position, f"got {rest}, expected an operator or the end")

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def _at(self, *marks: str) -> bool:
        return self._peek().kind == "mark" and self._peek().text in marks

    def _take_mark(self, *marks: str) -> _Token:
        token = self._take()
        if token.kind != "mark" or token.text not in marks:
            raise ExpressionError(token.position, f"got {token}, expected {' or '.join(map(repr, marks))}")
        return token

    def _read_sum(self, depth: int) -> _Node:
        node = self._read_product(depth)
        while self._at("+", "-"):
            node = _combine(self._take().text, node, self._read_product(depth))
        return node

    def _read_product(self, depth: int) -> _Node:
        node = self._read_factor(depth)
        while self._at("*", "/"):
            node = _combine(self._take().text, node, self._read_factor(depth))
        return node

    def _read_factor(self, depth: int) -> _Node:
        if depth > MAX_DEPTH:
            raise ExpressionError(self._peek().position, f"nested deeper than {MAX_DEPTH}")
        if not self._at("-", "+"):
            return self._read_power(depth)
        negative = self._take().text == "-"
        inner = self._read_factor(depth + 1)
        return (lambda columns: -inner(columns)) if negative else inner

    def _read_power(self, depth: int) -> _Node:
        base = self._read_atom(depth)
        if not self._at("**"):
            return base
        self._take()
        return _combine("**", base, self._read_factor(depth + 1))

    def _read_atom(self, depth: int) -> _Node:
        token = self._take()
        if token.kind == "number":
            constant = np.float64(token.text)
            return lambda columns: np.asarray(constant)
        if token.kind == "name":
            return self._read_name(token)
        if token.kind == "function":
            return self._read_call(token, depth)
        if token.kind == "mark" and token.text == "(":
            node = self._read_sum(depth + 1)
            self._take_mark(")")
            return node
        raise ExpressionError(token.position, f"got {token}, expected a number, a name, a function or '('")

    def _read_name(self, token: _Token) -> _Node:
        name = token.text
        if name not in self._known:
            raise ExpressionError(token.position, f"no column {name!r}{_hint(name, self._known)}")
        self.names.add(name)
        return lambda columns: columns[name]

    def _read_call(self, token: _Token, depth: int) -> _Node:
        function = _FUNCTIONS.get(token.text)
        if function is None:
            raise ExpressionError(token.position, f"no function {token.text!r}{_hint(token.text, _FUNCTIONS)}")
        self._take_mark("(")
        arguments = [self._read_sum(depth + 1)]
        while self._take_mark(",", ")").text == ",":
            arguments.append(self._read_sum(depth + 1))
        fewest, most, compute = function
        if len(arguments) < fewest or most is not None and len(arguments) > most:
            wanted = "1 argument" if most == 1 else f"{fewest} or more arguments"
            raise ExpressionError(token.position, f"{token.text} takes {wanted}, got {len(arguments)}")
        return lambda columns: compute([argument(columns) for argument in arguments])


def _combine(operator: str, left: _Node, right: _Node) -> _Node:
    compute = _OPERATORS[operator]
    return lambda columns: compute(left(columns), right(columns))


def _hint(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
