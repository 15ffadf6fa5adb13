"""The models' view of a dataset: which features, which actions, which signals.

Derived from a dataset description elsewhere; nothing here reads files. The content hash of a schema is stored
in every artifact trained with it and compared when the artifact is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

FeatureKind = Literal["keyword", "keyword_list", "number", "timestamp", "text"]

MAX_ACTIONS = 32
"""Actions are bits of a uint32 mask."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One attribute a model reads. A `timestamp` is read as an age at the moment of the request."""

    name: str
    kind: FeatureKind

    def __post_init__(self) -> None:
        if self.kind not in get_args(FeatureKind):
            raise ValueError(f"feature {self.name!r} has kind {self.kind!r}; expected one of {get_args(FeatureKind)}")


@dataclass(frozen=True, slots=True)
class Action:
    """What a member did: an event type, optionally with bounds on the event's value (both inclusive)."""

    name: str
    event: str
    min_value: float | None = None
    max_value: float | None = None

    def is_within(self, other: Action) -> bool:
        """Return whether every event that is this action is the other one as well."""
        lowest, highest = -float("inf"), float("inf")
        low, other_low = (lowest if a.min_value is None else a.min_value for a in (self, other))
        high, other_high = (highest if a.max_value is None else a.max_value for a in (self, other))
        # An event without a value satisfies no bound: an action with bounds is within one without, not the reverse.
        return self.event == other.event and other_low <= low and high <= other_high

    def matches(self, types: Sequence[str] | NDArray[Any], values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return bool[n]: which events are this action. An absent value (nan) never satisfies a bound."""
        matched = np.asarray(types, dtype=object) == self.event
        values = np.asarray(values, dtype=np.float64)
        if values.shape != matched.shape:
            raise ValueError(f"{values.shape} values for {matched.shape} types")
        if self.min_value is not None:
            matched = matched & (values >= self.min_value)
        if self.max_value is not None:
            matched = matched & (values <= self.max_value)
        result: NDArray[np.bool_] = matched.astype(np.bool_)
        return result


@dataclass(frozen=True, slots=True)
class Signal:
    """A count of one action per item, halved every `half_life_ms`; None never decays."""

    name: str
    action: str
    half_life_ms: int | None
    bit: int = field(default=-1, compare=False, repr=False)
    """Place of the action in an action mask, filled in by FeatureSchema: read them from `schema.signals`."""

    def __post_init__(self) -> None:
        if self.half_life_ms is not None and self.half_life_ms <= 0:
            raise ValueError(f"signal {self.name!r} has half life {self.half_life_ms} ms; expected more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSchema:
    """Everything a model must agree on with the data it is given.

    `positive` is the action retrieval learns to find; `tasks` are the actions ranking predicts.
    Bit i of an action mask is the i-th of `actions`.
    """

    item: tuple[Feature, ...]
    user: tuple[Feature, ...]
    actions: tuple[Action, ...]
    signals: tuple[Signal, ...]
    positive: str
    tasks: tuple[str, ...]
    history_length: int = 100

    def __post_init__(self) -> None:
        bits = {action.name: bit for bit, action in enumerate(self.actions)}
        if not 1 <= len(self.actions) <= MAX_ACTIONS:
            raise ValueError(f"{len(self.actions)} actions; expected 1 to {MAX_ACTIONS}")
        for what, names in (
            ("item feature", [f.name for f in self.item]),
            ("user feature", [f.name for f in self.user]),
            ("action", [a.name for a in self.actions]),
            ("signal", [s.name for s in self.signals]),
            ("task", list(self.tasks)),
        ):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"{what} {repeated[0]!r} is named twice")
        for what, name in (
            ("positive", self.positive),
            *(("task", task) for task in self.tasks),
            *((f"signal {signal.name!r}: action", signal.action) for signal in self.signals),
        ):
            if name not in bits:
                raise ValueError(f"{what} {name!r} is not an action; expected one of {sorted(bits)}")
        if not self.tasks:
            raise ValueError("tasks is empty; expected at least one action")
        if self.history_length < 1:
            raise ValueError(f"history_length is {self.history_length}; expected at least 1")
        resolved = tuple(replace(signal, bit=bits[signal.action]) for signal in self.signals)
        object.__setattr__(self, "signals", resolved)

    def bit(self, action: str) -> int:
        """Return the place of an action in an action mask."""
        for bit, candidate in enumerate(self.actions):
            if candidate.name == action:
                return bit
        raise ValueError(f"{action!r} is not an action; expected one of {[a.name for a in self.actions]}")

    def implied_tasks(self) -> tuple[tuple[int, int], ...]:
        """Return pairs (narrow, wide) of places in `tasks`: every event that is the narrow action is the wide one too.

        True of two actions of one event type where the narrow one's bounds lie within the wide one's.
        """
        actions = [self.actions[self.bit(task)] for task in self.tasks]
        return tuple(
            (narrow, wide)
            for narrow, a in enumerate(actions)
            for wide, b in enumerate(actions)
            if narrow != wide and a.is_within(b) and not (b.is_within(a) and wide > narrow)
        )

    def action_masks(self, types: Sequence[str] | NDArray[Any], values: NDArray[np.float64]) -> NDArray[np.uint32]:
        """Return uint32[n]: bit i is set where the event is the i-th action."""
        masks = np.zeros(len(types), dtype=np.uint32)
        for bit, action in enumerate(self.actions):
            masks |= action.matches(types, values).astype(np.uint32) << np.uint32(bit)
        return masks

    def to_json(self) -> str:
        """Return the canonical JSON text of the schema: what `hash` hashes."""
        document = asdict(self)
        for signal in document["signals"]:
            del signal["bit"]
        return json.dumps(document, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FeatureSchema:
        """Rebuild a schema from `to_json`."""
        document = json.loads(text)
        return cls(
            item=tuple(Feature(**feature) for feature in document["item"]),
            user=tuple(Feature(**feature) for feature in document["user"]),
            actions=tuple(Action(**action) for action in document["actions"]),
            signals=tuple(Signal(**signal) for signal in document["signals"]),
            positive=document["positive"],
            tasks=tuple(document["tasks"]),
            history_length=document["history_length"],
        )

    def hash(self) -> str:
        """Return the content hash: 32 hex digits, the same on every machine and in every process."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()
