"""Templates: text with fields in it, and nothing more.

    {title}              the field's words; "unknown" where it has none
    {genre| / }          a format after the bar: here, what stands between the values of a list
    {year?year unknown}  other words for a missing value, after the question mark
    [ ({year})]          a segment that is dropped where a field in it is missing
    {{ }} [[ ]]          the characters themselves

There is no expression, no loop and no escape from a value: what a field holds is never read as a template.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

MISSING = "unknown"

_TOKEN = re.compile(r"\{\{|\}\}|\[\[|\]\]|[{}\[\]]")


class TemplateError(ValueError):
    """A template that says something which cannot be: the message names what, and where."""


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    format: str | None = None
    """What stands after the bar; None: the kind's own."""
    otherwise: str | None = None
    """What is said where there is no value."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Dropped where a field in it is missing and has no other words."""

    parts: tuple[str | Field, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of text that is encoded for itself: of the template's own words, or of a value."""

    text: str
    value: bool


@dataclass(frozen=True, slots=True)
class Template:
    source: str
    parts: tuple[str | Field | Segment, ...]

    def fields(self) -> Iterator[Field]:
        for part in self.parts:
            if isinstance(part, Field):
                yield part
            elif isinstance(part, Segment):
                yield from (inner for inner in part.parts if isinstance(inner, Field))

    def fill(self, words: Callable[[Field], str | None]) -> list[Run]:
        """Return the text, values apart. `words` gives a field's value, None for one that is missing."""
        runs: list[Run] = []
        for part in self.parts:
            if isinstance(part, Segment):
                inner = [_filled(piece, words) for piece in part.parts]
                runs += [run for run in inner if run is not None] if None not in inner else []
            else:
                runs.append(_filled(part, words) or Run(MISSING, value=False))
        return runs


def parse_template(source: str) -> Template:
    """Raises TemplateError for brackets that do not match, with the place."""
    parts: list[str | Field | Segment] = []
    segment: list[str | Field] | None = None
    text, opened = "", 0
    place = 0
    while place < len(source):
        found = _TOKEN.search(source, place)
        text += source[place : found.start() if found else len(source)]
        if found is None:
            break
        place, token = found.end(), found[0]
        if len(token) == 2:
            text += token[0]
            continue
        target: list[str | Field] | list[str | Field | Segment] = parts if segment is None else segment
        if text:
            target.append(text)
            text = ""
        if token == "{":
            end = source.find("}", place)
            if end < 0:
                raise TemplateError(f"{source!r}: the {{ at {found.start()} is never closed")
            target.append(_parse_field(source[place:end], source))
            place = end + 1
        elif token == "[" and segment is None:
            segment, opened = [], found.start()
        elif token == "]" and segment is not None:
            if not any(isinstance(part, Field) for part in segment):
                raise TemplateError(f"{source!r}: the segment at {opened} has no field; for the character write [[")
            parts.append(Segment(tuple(segment)))
            segment = None
        else:
            hint = "segments have no segments in them" if token == "[" else "nothing is open there"
            raise TemplateError(f"{source!r}: {token} at {found.start()}: {hint}; for the character write {token * 2}")
    if segment is not None:
        raise TemplateError(f"{source!r}: the [ at {opened} is never closed")
    if text:
        parts.append(text)
    return Template(source, tuple(parts))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return what to say of a name that is not known: the names that are, and the one nearest to it."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f'; did you mean "{close[0]}"?' if close else ""
    return f"expected one of {', '.join(known) or '(none)'}{hint}"


def _parse_field(text: str, source: str) -> Field:
    rest, question, otherwise = text.partition("?")
    name, bar, format_ = rest.partition("|")
    if not name.strip():
        raise TemplateError(f"{source!r}: {{{text}}} names no field")
    return Field(name.strip(), format_ if bar else None, otherwise if question else None)


def _filled(part: str | Field, words: Callable[[Field], str | None]) -> Run | None:
    if isinstance(part, str):
        return Run(part, value=False)
    value = words(part)
    if value is not None:
        return Run(value, value=True)
    return None if part.otherwise is None else Run(part.otherwise, value=False)
