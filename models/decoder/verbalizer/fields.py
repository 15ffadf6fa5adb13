"""What a template's fields may be, and the words for what they hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from models.data.schema import Feature, Signal
from models.decoder.verbalizer.numbers import Standing, duration_words
from models.decoder.verbalizer.template import Field, Template, TemplateError, nearest
from models.decoder.verbalizer.values import clean

Kind = Literal["keyword", "keyword_list", "number", "timestamp", "text", "signal", "rate", "moment"]

_FORMATS: Mapping[Kind, tuple[str, ...]] = {
    "keyword": (),
    "text": (),
    "number": (),
    "moment": (),
    "timestamp": ("age", "year", "date"),
    "signal": ("top", "percentile", "count"),
    "rate": ("of 100", "percent", "top", "percentile"),
}
_MUST_NAME: frozenset[Kind] = frozenset({"timestamp", "signal", "rate"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_MS = 62_135_596_800_000
"""Distance to the year 1, the nearer end of what a date can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of a value is said. What is beyond is cut; a history may hold anybody's texts."""

    field_chars: int = 160
    field_tokens: int = 48
    list_values: int = 6

    def __post_init__(self) -> None:
        for name in ("field_chars", "field_tokens", "list_values"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom or what a template is filled with."""

    attributes: Mapping[str, object]
    signals: Standing | None = None
    moment_ms: int = 0
    """When it is spoken of: ages of timestamps are as of then."""
    moments: Mapping[str, str | None] = field(default_factory=dict)
    """Words for the kind `moment`: `when`, as the style says it."""


class Fields:
    """The fields that one template may name."""

    def __init__(
        self, features: Iterable[Feature], signals: Iterable[Signal] = (), moments: Iterable[str] = ()
    ) -> None:
        kinds: dict[str, Kind] = {feature.name: feature.kind for feature in features}
        kinds.update((signal.name, "signal") for signal in signals)
        kinds.update((name, "moment") for name in moments)
        self._kinds = kinds

    def check(self, template: Template) -> None:
        """Raises TemplateError for a field that is none, with the nearest name, and for a format it has not."""
        for named in template.fields():
            kind = self._kind(named.name)
            if kind is None:
                wrong = next((n for n in _signal_names(named.name) if self._kinds.get(n) != "signal"), named.name)
                if "/" in named.name:
                    expected = nearest(wrong, (name for name, kind in self._kinds.items() if kind == "signal"))
                    raise TemplateError(f"{{{named.name}}}: {wrong!r} is no signal; {expected}")
                raise TemplateError(f"{{{named.name}}} is no field; {nearest(named.name, self._kinds)}")
            formats = _FORMATS.get(kind)
            if formats is None or (named.format is None and kind not in _MUST_NAME):
                continue
            if named.format not in formats:
                said = "none" if named.format is None else repr(named.format)
                expected = nearest(named.format or "", formats) if formats else "expected none"
                raise TemplateError(f"{{{named.name}}} is a {kind} and its format is {said}; {expected}")

    def words(self, named: Field, subject: Subject, limits: Limits) -> str | None:
        """Return a value as one line, None where it is missing. The field must have been checked."""
        kind = self._kind(named.name)
        if kind == "moment":
            return subject.moments.get(named.name)
        if kind in ("signal", "rate"):
            return _standing_words(named, subject.signals)
        value = subject.attributes.get(named.name)
        if value is None:
            return None
        if kind == "timestamp":
            return _time_words(value, named.format, subject.moment_ms)
        if kind == "number":
            return _number_words(value, limits)
        if kind == "keyword_list" and isinstance(value, (list, tuple)):
            parts = [clean(part, limits.field_chars) for part in value[: limits.list_values]]
            between = ", " if named.format is None else named.format
            return between.join(part for part in parts if part)[: limits.field_chars].rstrip() or None
        return clean(value, limits.field_chars) or None

    def _kind(self, name: str) -> Kind | None:
        if name in self._kinds:
            return self._kinds[name]
        parts = _signal_names(name)
        return "rate" if len(parts) == 2 and all(self._kinds.get(part) == "signal" for part in parts) else None


def _signal_names(name: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in name.split("/"))


def _standing_words(named: Field, standing: Standing | None) -> str | None:
    if standing is None:
        return None
    names = _signal_names(named.name)
    if named.format == "top":
        return standing.top(names)
    if named.format == "percentile":
        return standing.percentile(names)
    value = standing.value(names)
    if value is None:
        return None
    if named.format == "count":
        return str(round(value))
    return f"{round(100 * value)}%" if named.format == "percent" else f"{round(100 * value)} of 100"


def _time_words(value: object, how: str | None, moment_ms: int) -> str | None:
    # What was not stored by this platform may be anything.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _MAX_MS:
        return None
    if how == "age":
        return duration_words(moment_ms - int(value))
    moment = _EPOCH + timedelta(milliseconds=int(value))
    return str(moment.year) if how == "year" else moment.strftime("%Y-%m-%d")


def _number_words(value: object, limits: Limits) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return f"{value:.0f}" if value.is_integer() or abs(value) >= 100.0 else f"{value:.3g}"
    return clean(value, limits.field_chars) or None
