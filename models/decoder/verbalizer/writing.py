"""Text to tokens, the template's own words and values apart.

Runs are encoded one by one and their tokens put behind one another. So no value merges with the structure around it,
or changes a token of it; and a text has one row of tokens wherever it stands. A blank that ends the structure is
encoded with the value behind it: " Toy" is one common token, "Toy" after a lone blank is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from models.decoder.verbalizer.template import Run

_MAX_KEPT = 1 << 16
"""Runs whose tokens are remembered: titles and genres come again and again."""


class TextEncoder(Protocol):
    """What is asked of a tokenizer; `models.decoder.tokenizer.Tokenizer` is one."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...

    def single(self, text: str) -> int: ...

    def hash(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    tokens: tuple[int, ...]

    @classmethod
    def join(cls, pieces: Iterable[Piece]) -> Piece:
        pieces = list(pieces)
        return cls("".join(p.text for p in pieces), tuple(token for p in pieces for token in p.tokens))


NOTHING = Piece("", ())


class Writer:
    """Encodes runs; remembers what it encoded. Safe to share between threads."""

    def __init__(self, tokenizer: TextEncoder, max_value_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_value_tokens = max_value_tokens
        self._kept: dict[tuple[str, bool], Piece] = {}

    def write(self, runs: Iterable[Run]) -> Piece:
        """Return the text and its tokens; a value's at most `max_value_tokens`."""
        return Piece.join(self._piece(text, value) for text, value in _joined(runs))

    def structure(self, text: str) -> Piece:
        return self._piece(text, value=False) if text else NOTHING

    def _piece(self, text: str, value: bool) -> Piece:
        piece = self._kept.get((text, value))
        if piece is None:
            piece = self._encode(text, value)
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            self._kept[text, value] = piece
        return piece

    def _encode(self, text: str, value: bool) -> Piece:
        tokens = self._tokenizer.encode(text)
        if not value or len(tokens) <= self._max_value_tokens:
            return Piece(text, tuple(tokens))
        tokens = tokens[: self._max_value_tokens]
        # A character of several bytes may be cut in two; its first half says nothing.
        while tokens and self._tokenizer.decode(tokens).endswith("\ufffd"):
            tokens.pop()
        return Piece(self._tokenizer.decode(tokens), tuple(tokens))


def _joined(runs: Iterable[Run]) -> list[tuple[str, bool]]:
    """Return (text, value) with neighbours of structure as one, and blanks before values given to them."""
    joined: list[tuple[str, bool]] = []
    for run in runs:
        if not run.text:
            continue
        if joined and not run.value and not joined[-1][1]:
            joined[-1] = (joined[-1][0] + run.text, False)
        elif joined and run.value and not joined[-1][1] and joined[-1][0].endswith(" "):
            before = joined.pop()[0][:-1]
            joined += [(before, False)] if before else []
            joined.append((" " + run.text, True))
        else:
            joined.append((run.text, run.value))
    return joined
