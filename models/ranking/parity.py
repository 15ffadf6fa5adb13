"""A known answer: what a model answered to a made-up request where it was trained, to be met where it is served.

The request is drawn from the schema alone, so both sides make the same one. It goes the whole way from attributes and
history to logits; a difference means that the two sides assemble features or compute the network differently.
"""

# n = candidates, S = signals, T = tasks

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.data.items import ItemBatch, ItemTable
from models.data.schema import Feature, FeatureSchema
from models.data.state import History, UserState

FORMAT = 1
NUM_CANDIDATES = 48
TOLERANCE = 1e-4
"""Largest `relative_difference` of logits of the same float32 weights: rounding in another order, on another
processor."""
QUANTISED_TOLERANCE = 0.25
"""Where the tables are int8 at serving: rounding of weights. It catches what is broken, not what is a little off."""

_FILE = "known_answer.json"
_NOW_MS = 1_700_000_000_000
_HOUR_MS = 3_600_000
_WORDS = tuple(f"word{place}" for place in range(40))


class Scorer(Protocol):
    """What is checked."""

    @property
    def schema(self) -> FeatureSchema: ...

    def logits(
        self,
        user: UserState,
        items: ItemBatch,
        signals: NDArray[np.float64],
        retrieval_scores: NDArray[np.float32],
        now_ms: int,
        *,
        history_items: ItemBatch,
    ) -> NDArray[np.float32]: ...


class ParityError(ValueError):
    """A model does not answer as it did where it was trained."""


def relative_difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the largest difference of two answers f32[n, T], in units of the largest logit expected of its task.

    float32 keeps seven digits of what is summed, so that rounding grows with the logits; below 1 the unit is 1. Where
    either has a logit that is no finite number, so is the difference.
    """
    scale_T = np.maximum(np.abs(expected).max(axis=0, initial=0.0), 1.0)
    with np.errstate(invalid="ignore"):
        return float((np.abs(found - expected) / scale_T).max(initial=0.0))


class Question(NamedTuple):
    """One whole request, as `RankingModel.logits` takes it."""

    user: UserState
    items: ItemBatch
    signals: NDArray[np.float64]
    retrieval_scores: NDArray[np.float32]
    now_ms: int
    history_items: ItemBatch

    def ask(self, model: Scorer) -> NDArray[np.float32]:
        """Return the model's logits f32[n, T]."""
        return model.logits(*self[:5], history_items=self.history_items)


def questions(schema: FeatureSchema) -> tuple[Question, Question]:
    """A member with a full history and profile, and one of whom nothing is known, over the same candidates."""
    random = np.random.RandomState(20)  # the legacy generator: its numbers are the same in every numpy
    length = schema.history_length
    keys = random.randint(1, 2**62, NUM_CANDIDATES + length, dtype=np.int64)
    table = ItemTable(schema)
    table.upsert(keys, [_attributes(schema.item, random, row % 7 == 0) for row in range(len(keys))])
    candidates = keys[:NUM_CANDIDATES]
    # Some of the candidates were acted on before.
    past = np.concatenate([keys[NUM_CANDIDATES:], candidates[:4]])[-length:]
    history = History(
        past,
        random.randint(1, 2 ** len(schema.actions), len(past), dtype=np.int64).astype(np.uint32),
        np.full(len(past), np.nan, np.float32),
        _NOW_MS - np.sort(random.randint(0, 2000 * _HOUR_MS, len(past), dtype=np.int64))[::-1],
    )
    signals = random.gamma(0.5, 20.0, (NUM_CANDIDATES, len(schema.signals)))
    scores = random.normal(0.0, 1.0, NUM_CANDIDATES).astype(np.float32)
    scores[::5] = np.nan
    items = table.gather(candidates)
    known = UserState(_attributes(schema.user, random, False), history)
    return (
        Question(known, items, signals, scores, _NOW_MS, table.gather(past)),
        Question(UserState(), items, signals, scores, _NOW_MS, table.gather(np.zeros(0, np.int64))),
    )


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """Logits f32[2 n, T] of both questions, one under the other."""

    logits: NDArray[np.float32]

    @classmethod
    def of(cls, model: Scorer) -> KnownAnswer:
        """What a model answers."""
        return cls(np.concatenate([question.ask(model) for question in questions(model.schema)]))

    def difference(self, model: Scorer) -> float:
        """The `relative_difference` of a model's logits from these. Raises ParityError for another shape."""
        answer = KnownAnswer.of(model).logits
        if answer.shape != self.logits.shape:
            raise ParityError(
                f"the model answers logits of shape {answer.shape}; the known ones have {self.logits.shape}"
            )
        return relative_difference(answer, self.logits)

    def check(self, model: Scorer, tolerance: float) -> float:
        """Return the difference. Raises ParityError where it is more than `tolerance`, or no number."""
        difference = self.difference(model)
        if not difference <= tolerance:
            raise ParityError(
                f"a logit differs by {difference:.3g} of its scale from the known answer; expected at most "
                f"{tolerance:.3g}"
            )
        return difference

    def save(self, folder: Path) -> None:
        """Write it beside a model's weights."""
        document = {"format": FORMAT, "logits": self.logits.tolist()}
        (folder / _FILE).write_text(json.dumps(document) + "\n")

    @classmethod
    def load(cls, folder: Path) -> KnownAnswer:
        """Read it. Raises ValueError where there is none, or one of another format."""
        path = folder / _FILE
        if not path.is_file():
            raise ValueError(f"{path} is missing; train the model again")
        document = json.loads(path.read_text())
        if document.get("format") != FORMAT:
            raise ValueError(f"{path}: format is {document.get('format')!r}, expected {FORMAT}")
        return cls(np.array(document["logits"], np.float32))


def _attributes(features: Sequence[Feature], random: np.random.RandomState, sparse: bool) -> dict[str, object]:
    """Attributes of one row, drawn whether they are kept or not, so that a row does not change the next."""
    drawn: dict[str, object] = {}
    for feature in features:
        words = random.choice(_WORDS, 3, replace=False).tolist()
        number = float(np.float32(random.normal(100.0, 50.0)))
        if feature.kind == "timestamp":
            drawn[feature.name] = _NOW_MS - 24 * _HOUR_MS * number
        elif feature.kind == "number":
            drawn[feature.name] = number
        elif feature.kind == "keyword":
            drawn[feature.name] = words[0]
        else:
            drawn[feature.name] = " ".join(words) if feature.kind == "text" else words
    return {} if sparse else drawn
