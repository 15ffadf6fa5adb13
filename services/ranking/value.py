"""The value function: what orders a slate. Serving and the offline replay share it."""

# n = candidates, T = tasks, S = signals

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.schema import FeatureSchema
from services.candidates import Candidates
from services.ranking.expression import Column, Expression, ExpressionError, parse_expression, quoted

ValueSource = str | Mapping[str, float]
"""An expression (see `services.ranking.expression`), or the weight of each task in a sum."""

RETRIEVAL_SCORE = "retrieval_score"
_LARGEST = np.finfo(np.float64).max


@dataclass(frozen=True, slots=True)
class ValueFunction:
    """An expression over calibrated probabilities, the items' signals and the retrieval score."""

    expression: Expression
    labels: tuple[str, ...]
    """What each summand of the expression is called in an explanation: its task, or its text."""
    signals: tuple[str, ...]

    @classmethod
    def parse(cls, source: ValueSource, schema: FeatureSchema) -> ValueFunction:
        """Read a value function. Raises ExpressionError for text that is none, ValueError for wrong weights."""
        names = column_names(schema.tasks, (signal.name for signal in schema.signals))
        text = source if isinstance(source, str) else text_of_weights(source, schema.tasks)
        expression = parse_expression(text, names)
        return cls(expression, _labels(expression, schema.tasks), tuple(signal.name for signal in schema.signals))

    @property
    def text(self) -> str:
        """The expression."""
        return self.expression.text

    def __call__(
        self, probabilities_nT: NDArray[np.float32], tasks: Sequence[str], candidates: Candidates
    ) -> NDArray[np.float64]:
        """Return f64[n]: each candidate's value, finite. What has no value (nan) comes last."""
        return _finite(self.expression(self._columns(probabilities_nT, tasks, candidates)), len(candidates))

    def terms(
        self, probabilities_nT: NDArray[np.float32], tasks: Sequence[str], candidates: Candidates, row: int
    ) -> dict[str, float]:
        """Return the summands of one candidate's value by label; where all are finite they add up to the value."""
        one = candidates.take(np.array([row]))
        columns = self._columns(probabilities_nT[row : row + 1], tasks, one)
        with np.errstate(all="ignore"):
            values = [float(_finite(term(columns), 1)[0]) for term in self.expression.terms]
        terms: dict[str, float] = {}
        for label, value in zip(self.labels, values, strict=True):
            terms[label] = terms.get(label, 0.0) + value
        return terms

    def _columns(
        self, probabilities_nT: NDArray[np.float32], tasks: Sequence[str], candidates: Candidates
    ) -> Mapping[str, Column]:
        columns: dict[str, Column] = {RETRIEVAL_SCORE: candidates.scores.astype(np.float64)}
        columns |= {name: candidates.signals[:, place] for place, name in enumerate(self.signals)}
        columns |= {task: probabilities_nT[:, place].astype(np.float64) for place, task in enumerate(tasks)}
        return columns


def column_names(tasks: Iterable[str], signals: Iterable[str]) -> list[str]:
    """What a value function may name; a signal or the retrieval score of a task's name is hidden by the task."""
    return list(dict.fromkeys([*tasks, *signals, RETRIEVAL_SCORE]))


def text_of_weights(weights: Mapping[str, float], tasks: Sequence[str]) -> str:
    """The weighted sum as an expression. Raises ValueError for no weights, an unknown task, a weight not finite."""
    if not weights:
        raise ValueError(f"no weights; expected at least one of {', '.join(tasks)}")
    for task, weight in weights.items():
        if task not in tasks:
            raise ValueError(f"weight of {task!r}: no such task; expected one of {', '.join(tasks)}")
        if not math.isfinite(weight):
            raise ValueError(f"weight of {task!r} is {weight}; expected a finite number")
    return " + ".join(f"{float(weight)!r} * {quoted(task)}" for task, weight in weights.items())


def order_of(candidates: Candidates, values_n: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the candidates' places, best first: by value, then retrieval score, then the lower key."""
    order: NDArray[np.int64] = np.lexsort((candidates.keys, -candidates.scores, -values_n))
    return order


def _finite(values: Column, num_rows: int) -> NDArray[np.float64]:
    broad = np.broadcast_to(values, (num_rows,))
    return np.nan_to_num(broad, nan=-_LARGEST, posinf=_LARGEST, neginf=-_LARGEST)


def _labels(expression: Expression, tasks: Sequence[str]) -> tuple[str, ...]:
    """`like` for `0.5 * like`: a task times a number is named after the task; any other summand after its text."""
    labels = []
    for term in expression.terms:
        factors = [factor.strip().strip("`") for factor in term.text.split("*")]
        named = [factor for factor in factors if factor in tasks]
        plain = len(factors) <= 2 and len(named) == 1 and all(f in tasks or _is_number(f) for f in factors)
        sign = "-" if term.negative and not plain else ""
        labels.append(named[0] if plain else f"{sign}{term.text}")
    return tuple(labels)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


__all__ = [
    "RETRIEVAL_SCORE",
    "ExpressionError",
    "ValueFunction",
    "ValueSource",
    "column_names",
    "order_of",
    "text_of_weights",
]
