"""The description of one data set: its attributes, actions, signals and goals, read from one TOML file.

Everything else derives from it: what filters may name (`attribute_schema`), what models learn from
(`feature_schema`), how import files and archives look (`*_arrow_schema`) and which writes are refused
(`validate_item`, `validate_user`). Knows nothing of storage, models or indexes beyond their schema types.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import pyarrow as pa
from pydantic import Field, model_validator

from index.attributes import Attribute, AttributeSchema
from models.data.schema import Action, Feature, FeatureKind, FeatureSchema, Signal
from models.decoder.verbalizer.task import TaskPrompt
from services.datasets.attribute_values import AttributeType, AttributeValue, BadValue, check_value
from services.datasets.descriptions import (
    DatasetError,
    Names,
    Problem,
    Section,
    listed,
    load_description,
    nearest,
    parse_description,
    shown,
)
from services.datasets.links_section import LinksSection, links_problems
from services.datasets.ranking import RankingSection, ranking_problems
from services.datasets.tasks import LlmSection, task_problems
from services.ranking.expression import ExpressionError, parse_expression
from services.ranking.value import column_names

__all__ = ["EVENT_ARROW_SCHEMA", "Dataset", "DatasetError", "SchemaViolation", "TimestampUnit", "Violation"]

# "auto": text is ISO-8601 unless it is all digits; a number below 1e11 is seconds, from there on milliseconds
# (1e11 s is the year 5138, 1e11 ms is March 1973); microseconds and finer are refused.
TimestampUnit = Literal["auto", "iso", "s", "ms"]

MAX_ECHO = 80  # characters of a refused value that are given back
MAX_ACTIONS = 32  # one bit each in a history entry's uint32 mask

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_RESERVED_NAMES = frozenset({"item_id", "user_id"})
_HALF_LIFE = re.compile(r"([1-9][0-9]{0,8})(s|m|h|d|w)", re.ASCII)
_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
_ARROW_TYPES: dict[AttributeType, Any] = {
    "keyword": pa.string(),
    "keyword_list": pa.list_(pa.string()),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("ms", tz="UTC"),
    "text": pa.string(),
}

_FEATURE_KINDS: dict[AttributeType, FeatureKind] = {
    "keyword": "keyword",
    "keyword_list": "keyword_list",
    "int": "number",
    "float": "number",
    "bool": "number",
    "timestamp": "timestamp",
    "text": "text",
}

_EVENT_FIELDS: list[pa.Field[Any]] = [
    pa.field("event_id", pa.string(), nullable=False),
    pa.field("user_id", pa.string(), nullable=False),
    pa.field("item_id", pa.string(), nullable=False),
    pa.field("type", pa.string(), nullable=False),
    pa.field("value", pa.float64()),
    pa.field("ts", pa.timestamp("ms", tz="UTC"), nullable=False),
    pa.field("recommendation_id", pa.string()),
    pa.field("position", pa.int32()),
    pa.field("propensity", pa.float64()),
]
EVENT_ARROW_SCHEMA = pa.schema(_EVENT_FIELDS)


class Violation(NamedTuple):
    """One thing wrong in the attributes of a write."""

    pointer: str  # RFC 6901, relative to the attributes
    value: object  # fit for an answer: one that is long or no Unicode is replaced by a cut text of it
    expected: str


class SchemaViolation(ValueError):
    """Attributes that the data set's description does not allow; `violations` names each."""

    def __init__(self, violations: Iterable[Violation]) -> None:
        self.violations = tuple(violations)
        super().__init__(
            "; ".join(f"{pointer}: {shown(value)}: expected {want}" for pointer, value, want in self.violations)
        )


class AttributeSpec(Section):
    """One line of `[items.attributes]` or `[users.attributes]`."""

    type: AttributeType
    filter: bool = False
    """Requests may filter by it."""
    model: bool = False
    """Models learn from it."""
    column: str | None = None
    """Its column in import files, where that differs from its name."""


class ItemsSection(Section):
    id: str = "item_id"
    """The id's column in import files."""
    title: str | None = None
    """The attribute shown to people."""
    available_from: str | None = None
    """The timestamp attribute that says since when an item can be recommended; a replay hides it before that."""
    attributes: dict[str, AttributeSpec] = {}


class UsersSection(Section):
    id: str = "user_id"
    attributes: dict[str, AttributeSpec] = {}


class EventsSection(Section):
    """Column names in import files, one per column of EVENT_ARROW_SCHEMA, and how times are written there."""

    event_id: str = "event_id"
    user_id: str = "user_id"
    item_id: str = "item_id"
    type: str = "type"
    value: str = "value"
    ts: str = "ts"
    recommendation_id: str = "recommendation_id"
    position: str = "position"
    propensity: str = "propensity"
    ts_unit: TimestampUnit = "auto"

    def columns(self) -> dict[str, str]:
        """Our column name -> the file's, in the order of EVENT_ARROW_SCHEMA."""
        return {name: str(getattr(self, name)) for name in EVENT_ARROW_SCHEMA.names}


class ActionSpec(Section):
    """An event counts as this action if its type matches and its value lies in [min_value, max_value]."""

    event: str
    min_value: float | None = None
    max_value: float | None = None


class SignalsSection(Section):
    """Every action times every half-life is one decayed count per item, named like `like.7d`."""

    actions: Names
    half_lives: Names


class RetrievalSection(Section):
    positive: str
    """The action the retrieval model learns to predict."""


class Dataset(Section):
    """One data set, as its TOML file describes it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    licence: str | None = None
    """Shown whenever the data is loaded."""
    items: ItemsSection
    users: UsersSection = UsersSection()
    events: EventsSection = EventsSection()
    actions: dict[str, ActionSpec] = Field(min_length=1, max_length=MAX_ACTIONS)
    signals: SignalsSection
    retrieval: RetrievalSection
    ranking: RankingSection
    links: LinksSection | None = None
    """What learned links are mined from; absent: there are none."""
    llm: LlmSection | None = None
    """What a decoder is asked, in words; absent: nothing."""

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        problems = [
            *_attribute_problems("items", self.items.id, self.items.attributes),
            *_attribute_problems("users", self.users.id, self.users.attributes),
            *_goal_problems(self),
            *_signal_problems(self.signals, self.actions),
            *_links_problems(self),
        ]
        if not problems and self.llm is not None:  # the schema that tasks are checked against is sound
            problems = list(task_problems(self.llm, self.feature_schema()))
        if problems:
            raise DatasetError(self.name, problems)
        return self

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a TOML file; DatasetError names it, each wrong key, its value and what was expected."""
        return load_description(cls, path)

    @classmethod
    def parse(cls, text: str, source: str = "<text>") -> Self:
        """As `load`, from a TOML text; `source` names it in errors."""
        return parse_description(cls, text, source)

    def attribute_schema(self) -> AttributeSchema:
        """What filters may name: the item attributes marked `filter`, in the file's order."""
        return AttributeSchema(
            tuple(
                Attribute(name, spec.type)
                for name, spec in self.items.attributes.items()
                if spec.filter and spec.type != "text"
            )
        )

    def feature_schema(self) -> FeatureSchema:
        """What models learn from: the attributes marked `model`, the actions, signals and goals."""
        return FeatureSchema(
            item=_features(self.items.attributes),
            user=_features(self.users.attributes),
            actions=tuple(
                Action(name, spec.event, spec.min_value, spec.max_value) for name, spec in self.actions.items()
            ),
            signals=self.signal_specs(),
            positive=self.retrieval.positive,
            tasks=self.ranking.tasks,
            history_length=self.ranking.history_length,
        )

    def task_prompts(self) -> tuple[TaskPrompt, ...]:
        """What a decoder is asked, the ranking task first; empty where the description has no `[llm]`."""
        return () if self.llm is None else self.llm.prompts()

    def signal_specs(self) -> tuple[Signal, ...]:
        """Every action times every half-life, action by action."""
        return tuple(
            Signal(f"{action}.{half_life}", action, parse_half_life(half_life))
            for action in self.signals.actions
            for half_life in self.signals.half_lives
        )

    def item_arrow_schema(self) -> pa.Schema:
        """item_id, then one typed column per item attribute."""
        return _arrow_schema("item_id", self.items.attributes)

    def user_arrow_schema(self) -> pa.Schema:
        """user_id, then one typed column per user attribute."""
        return _arrow_schema("user_id", self.users.attributes)

    def validate_item(
        self, attributes: Mapping[str, object], *, partial: bool = False
    ) -> dict[str, AttributeValue | None]:
        """The item's attributes, normalised; raises SchemaViolation naming every violation.

        Attributes without a value (null, empty text, empty list) are left out; with `partial` they are kept
        as None, for a patch to delete.
        """
        return _validate(self.items.attributes, attributes, partial)

    def validate_user(
        self, attributes: Mapping[str, object], *, partial: bool = False
    ) -> dict[str, AttributeValue | None]:
        """As `validate_item`, for a user's attributes."""
        return _validate(self.users.attributes, attributes, partial)


def parse_half_life(text: str) -> int | None:
    """Milliseconds of "90s", "30m", "12h", "7d", "2w"; None for "all", which never decays.

    Raises ValueError for anything else.
    """
    if text == "all":
        return None
    match = _HALF_LIFE.fullmatch(text)
    if match is None:
        raise ValueError(f'half-life {text!r}: expected a number and s, m, h, d or w, like "7d", or "all"')
    return int(match[1]) * _UNIT_MS[match[2]]


def _validate(
    specs: Mapping[str, AttributeSpec], attributes: Mapping[str, object], partial: bool
) -> dict[str, AttributeValue | None]:
    normalised: dict[str, AttributeValue | None] = {}
    violations = []
    for name, value in attributes.items():
        pointer = "/" + _encodable(str(name)).replace("~", "~0").replace("/", "~1")
        spec = specs.get(name)
        if spec is None:
            expected = f"one of the attributes {listed(specs)}{nearest(str(name), specs)}"
            violations.append(Violation(pointer, _echo(value), expected))
            continue
        try:
            checked = check_value(spec.type, value)
        except BadValue as error:
            inner: object = value
            for position in error.path:
                pointer += f"/{position}"
                inner = inner[position] if isinstance(inner, (list, tuple)) else inner
            violations.append(Violation(pointer, _echo(inner), error.expected))
            continue
        if checked is not None or partial:
            normalised[name] = checked
    if violations:
        raise SchemaViolation(violations)
    return normalised


def _echo(value: object) -> object:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError):
        return shown(value)
    return value if len(text) <= MAX_ECHO else shown(value)


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _features(specs: Mapping[str, AttributeSpec]) -> tuple[Feature, ...]:
    features = []
    for name, spec in specs.items():
        if not spec.model:
            continue
        features.append(Feature(name, _FEATURE_KINDS[spec.type]))
    return tuple(features)


def _arrow_schema(id_name: str, specs: Mapping[str, AttributeSpec]) -> pa.Schema:
    columns: list[pa.Field[Any]] = [pa.field(id_name, pa.string(), nullable=False)]
    columns += [pa.field(name, _ARROW_TYPES[spec.type]) for name, spec in specs.items()]
    return pa.schema(columns)


def _attribute_problems(section: str, id_column: str, specs: Mapping[str, AttributeSpec]) -> Iterable[Problem]:
    columns = {id_column: f"{section}.id"}
    for name, spec in specs.items():
        key = f"{section}.attributes.{name}"
        if _NAME.fullmatch(name) is None or name in _RESERVED_NAMES:
            rule = "expected a name of letters, digits and _, at most 64, other than item_id and user_id"
            yield Problem(key, name, rule)
        if spec.filter and (spec.type == "text" or section == "users"):
            rule = "a text cannot be filtered by" if spec.type == "text" else "only items can be filtered"
            yield Problem(f"{key}.filter", True, rule)
        column = spec.column or name
        if column in columns:
            yield Problem(f"{key}.column", column, f"the column is taken by {columns[column]}")
        columns[column] = key


def _goal_problems(dataset: Dataset) -> Iterable[Problem]:
    title, attributes = dataset.items.title, dataset.items.attributes
    if title is not None and (title not in attributes or attributes[title].type not in ("text", "keyword")):
        texts = [name for name, spec in attributes.items() if spec.type in ("text", "keyword")]
        yield Problem("items.title", title, f"expected one of {listed(texts)}{nearest(title, texts)}")
    born = dataset.items.available_from
    if born is not None and (born not in attributes or attributes[born].type != "timestamp"):
        times = [name for name, spec in attributes.items() if spec.type == "timestamp"]
        yield Problem("items.available_from", born, f"expected one of {listed(times)}{nearest(born, times)}")
    columns: dict[str, str] = {}
    for name, column in dataset.events.columns().items():
        if column in columns:
            yield Problem(f"events.{name}", column, f"the column is taken by events.{columns[column]}")
        columns[column] = name
    for name, spec in dataset.actions.items():
        if _NAME.fullmatch(name) is None:
            yield Problem(f"actions.{name}", name, "expected a name of letters, digits and _, at most 64")
        for bound in ("min_value", "max_value"):
            if not math.isfinite(getattr(spec, bound) or 0.0):
                yield Problem(f"actions.{name}.{bound}", getattr(spec, bound), "expected a finite number")
        if spec.min_value is not None and spec.max_value is not None and spec.min_value > spec.max_value:
            yield Problem(f"actions.{name}.min_value", spec.min_value, f"expected at most {spec.max_value}")
    yield from _name_problems("retrieval.positive", [dataset.retrieval.positive], dataset.actions)
    yield from _name_problems("ranking.tasks", dataset.ranking.tasks, dataset.actions)
    yield from _value_problems(dataset)
    keywords = [name for name, spec in attributes.items() if spec.model and spec.type in ("keyword", "keyword_list")]
    yield from ranking_problems(dataset.ranking, keywords)


def _links_problems(dataset: Dataset) -> Iterable[Problem]:
    links = dataset.links
    if links is None:
        return
    users = {name: spec.type for name, spec in dataset.users.attributes.items()}
    items = {name: spec.type for name, spec in dataset.items.attributes.items()}
    filterable = [name for name, spec in dataset.items.attributes.items() if spec.filter]
    yield from links_problems(links, users, items, filterable, dataset.actions)
    try:
        if parse_half_life(links.pending) is None:
            raise ValueError('half-life "all": expected a length of time, like "4d"')
    except ValueError as error:
        yield Problem("links.pending", links.pending, str(error).partition(": ")[2])


def _value_problems(dataset: Dataset) -> Iterable[Problem]:
    value = dataset.ranking.value
    if isinstance(value, str):
        try:
            parse_expression(value, column_names(dataset.ranking.tasks, _signal_names(dataset.signals)))
        except ExpressionError as error:
            yield Problem("ranking.value", value, f"at {error}")
        return
    yield from _name_problems("ranking.value", value, dataset.ranking.tasks)
    for name, weight in value.items():
        if not math.isfinite(weight):
            yield Problem(f"ranking.value.{name}", weight, "expected a finite number")


def _signal_names(signals: SignalsSection) -> list[str]:
    return [f"{action}.{half_life}" for action in signals.actions for half_life in signals.half_lives]


def _signal_problems(signals: SignalsSection, actions: Mapping[str, ActionSpec]) -> Iterable[Problem]:
    yield from _name_problems("signals.actions", signals.actions, actions)
    seen: dict[int | None, str] = {}
    if not signals.half_lives:
        yield Problem("signals.half_lives", [], 'expected at least one, like "7d"')
    for half_life in signals.half_lives:
        try:
            duration = parse_half_life(half_life)
        except ValueError as error:
            yield Problem("signals.half_lives", half_life, str(error).partition(": ")[2])
            continue
        if duration in seen:
            yield Problem("signals.half_lives", half_life, f'the same as "{seen[duration]}"')
        seen[duration] = half_life


def _name_problems(key: str, names: Iterable[str], known: Iterable[str]) -> Iterable[Problem]:
    names, known = list(names), list(known)
    if not names:
        yield Problem(key, names, f"expected at least one of {listed(known)}")
    for position, name in enumerate(names):
        if name not in known:
            yield Problem(key, name, f"expected one of {listed(known)}{nearest(name, known)}")
        elif name in names[:position]:
            yield Problem(key, name, "named twice")
