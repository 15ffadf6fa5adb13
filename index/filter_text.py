"""The text spelling of a filter: `genre any_of ["Comedy"] and year >= 1990 and not released < "1995-01-01"`.

A tokenizer and a recursive descent of bounded depth; the grammar is in `index/FORMAT.md`.
"""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from typing import NamedTuple

from index.attributes import Attribute, AttributeSchema
from index.clauses import LOWER, ClauseBuilder, shorten
from index.tree import MAX_DEPTH, PLAIN_NAME, WORDS, And, Filter, FilterError, Not, Or

_COMPARISONS = {">=": "gte", ">": "gt", "<=": "lte", "<": "lt"}
_MIRRORED = {"gte": "lte", "gt": "lt", "lte": "gte", "lt": "gt"}
_TOKEN = re.compile(
    rf"""\s*(?:
      (?P<name>{PLAIN_NAME})
    | `(?P<quoted>[^`]+)`
    | (?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.])
    | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<mark><=|>=|!=|<|>|=|\(|\)|\[|\]|,)
    )""",
    re.VERBOSE | re.DOTALL,
)
_MAX_NUMBER_CHARS = 400


class Token(NamedTuple):
    kind: str  # "name", "literal", "mark", a keyword, or "end"
    value: object
    position: int  # characters from the start of the filter

    @property
    def where(self) -> str:
        return f"char {self.position}"

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else shorten(self.value)


def read_text(source: str, schema: AttributeSchema) -> Filter:
    """The tree of a text filter. Raises FilterError with the character position."""
    reader = _Reader(_tokenize(source), ClauseBuilder(schema))
    if reader.peek().kind == "end":
        raise FilterError("char 0", "the filter is empty; leave it out to match every item")
    tree = reader.read_or(1)
    rest = reader.take()
    if rest.kind != "end":
        raise FilterError(rest.where, f"got {rest}, expected 'and', 'or' or the end of the filter")
    return tree


def _tokenize(source: str) -> list[Token]:
    tokens: list[Token] = []
    at, end = 0, len(source.rstrip())
    while at < end:
        found = _TOKEN.match(source, at)
        if found is None:
            at += len(source[at:]) - len(source[at:].lstrip())
            what = "a string that does not end" if source[at] in "\"'`" else shorten(source[at : at + 10])
            raise FilterError(f"char {at}", f"got {what}, expected a name, a literal or an operator")
        kind = str(found.lastgroup)
        position, text = found.start(kind), found.group(kind)
        if kind == "name" and text.lower() in ("true", "false"):
            tokens.append(Token("literal", text.lower() == "true", position))
        elif kind == "name" and text.lower() in WORDS:
            tokens.append(Token(text.lower(), text, position))
        elif kind == "quoted":
            tokens.append(Token("name", text, position))
        elif kind == "number":
            tokens.append(Token("literal", _read_number(text, position), position))
        elif kind == "text":
            tokens.append(Token("literal", _read_string(text, position), position))
        else:
            tokens.append(Token(kind, text, position))
        at = found.end()
    tokens.append(Token("end", None, end))
    return tokens


def _read_number(text: str, position: int) -> int | float:
    if len(text) > _MAX_NUMBER_CHARS:
        raise FilterError(f"char {position}", f"a number of {len(text)} characters")
    return float(text) if any(mark in text for mark in ".eE") else int(text)


def _read_string(text: str, position: int) -> str:
    if text[0] == "'":  # the same escapes as JSON, with the other quote
        body = text[1:-1].replace("\\'", "'")
        body = re.sub(r'(\\.)|"', lambda found: found.group(1) or '\\"', body, flags=re.DOTALL)
        text = f'"{body}"'
    try:
        value = json.loads(text, strict=False)
    except ValueError as error:
        raise FilterError(f"char {position}", f"a string that JSON cannot read: {error}") from error
    assert isinstance(value, str)
    return value


class _Reader:
    """Recursive descent over the tokens; `depth` counts parentheses and nots."""

    def __init__(self, tokens: list[Token], builder: ClauseBuilder) -> None:
        self._tokens = tokens
        self._builder = builder
        self._next = 0

    def peek(self) -> Token:
        return self._tokens[self._next]

    def take(self) -> Token:
        token = self._tokens[self._next]
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def take_mark(self, mark: str) -> Token:
        token = self.take()
        if token.kind != "mark" or token.value != mark:
            raise FilterError(token.where, f"got {token}, expected {mark!r}")
        return token

    def read_or(self, depth: int) -> Filter:
        children = [self.read_and(depth)]
        while self.peek().kind == "or":
            self.take()
            children.append(self.read_and(depth))
        return children[0] if len(children) == 1 else Or(tuple(children))

    def read_and(self, depth: int) -> Filter:
        children = [self.read_not(depth)]
        while self.peek().kind == "and":
            self.take()
            children.append(self.read_not(depth))
        return children[0] if len(children) == 1 else And(tuple(children))

    def read_not(self, depth: int) -> Filter:
        token = self.peek()
        if depth > MAX_DEPTH:
            raise FilterError(token.where, f"nested deeper than {MAX_DEPTH}")
        if token.kind == "not":
            self.take()
            return Not(self.read_not(depth + 1))
        if token.kind == "mark" and token.value == "(":
            self.take()
            tree = self.read_or(depth + 1)
            self.take_mark(")")
            return tree
        return self.read_clause()

    def read_clause(self) -> Filter:
        token = self.take()
        if token.kind == "literal":
            return self._read_mirrored(token)
        if token.kind != "name":
            raise FilterError(token.where, f"got {token}, expected an attribute, '(' or 'not'")
        attribute = self._builder.find(str(token.value), token.where)
        operator = self.take()
        if operator.kind in ("any_of", "all_of", "none_of", "in"):
            name = "any_of" if operator.kind == "in" else operator.kind
            return self._builder.set_clause(name, attribute, self._read_list(), operator.where)
        if operator.kind == "not" and self.peek().kind == "in":
            self.take()
            return self._builder.set_clause("none_of", attribute, self._read_list(), operator.where)
        if operator.kind == "exists":
            present = self.take().value if self.peek().kind == "literal" else True
            return self._builder.exists_clause(attribute, present, operator.where)
        if operator.kind == "mark" and operator.value in ("=", "!="):
            name = "any_of" if operator.value == "=" else "none_of"
            return self._builder.set_clause(name, attribute, [self._read_literal()], operator.where)
        if operator.kind == "mark" and operator.value in _COMPARISONS:
            bound = {_COMPARISONS[str(operator.value)]: self._read_literal()}
            return self._builder.range_clause(attribute, bound, operator.where)
        raise FilterError(operator.where, f"got {operator}, {self._expected_operator(operator, attribute)}")

    def _read_mirrored(self, literal: Token) -> Filter:
        """`1990 <= year` and `1990 <= year < 2000`."""
        first = self._take_comparison()
        name = self.take()
        if name.kind != "name":
            raise FilterError(name.where, f"got {name}, expected an attribute")
        attribute = self._builder.find(str(name.value), name.where)
        operator = _MIRRORED[_COMPARISONS[str(first.value)]]
        bounds = {operator: (literal.value, literal.where)}
        if self.peek().kind == "mark" and self.peek().value in _COMPARISONS:
            second = self.take()
            other = _COMPARISONS[str(second.value)]
            if (other in LOWER) == (operator in LOWER):
                raise FilterError(second.where, "a second bound on the same side; write a <= x < b")
            bounds[other] = self._read_literal()
        return self._builder.range_clause(attribute, bounds, first.where)

    def _take_comparison(self) -> Token:
        token = self.take()
        if token.kind != "mark" or token.value not in _COMPARISONS:
            raise FilterError(
                token.where, f"got {token}, expected one of {list(_COMPARISONS)} (the attribute stands first in others)"
            )
        return token

    def _read_literal(self) -> tuple[object, str]:
        token = self.take()
        if token.kind != "literal":
            hint = f'; a string needs quotes: "{token.value}"' if token.kind == "name" else ""
            raise FilterError(token.where, f"got {token}, expected a string, a number, true or false{hint}")
        return token.value, token.where

    def _read_list(self) -> list[tuple[object, str]]:
        self.take_mark("[")
        values: list[tuple[object, str]] = []
        if self.peek().kind == "mark" and self.peek().value == "]":
            self.take()
            return values
        values.append(self._read_literal())
        while self.peek().kind == "mark" and self.peek().value == ",":
            self.take()
            values.append(self._read_literal())
        self.take_mark("]")
        return values

    @staticmethod
    def _expected_operator(token: Token, attribute: Attribute) -> str:
        every = ["any_of", "all_of", "none_of", "in", "exists", "=", "!=", *_COMPARISONS]
        near = get_close_matches(str(token.value), every, n=1, cutoff=0.5) if token.kind == "name" else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"expected an operator after {attribute.name!r}: {', '.join(every)}{hint}"
