"""What travels through the pipeline: the question, what is known of the user, the answer, and its trace."""

# n = candidates, T = tasks

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from index.boosts import Boost
from index.filter import Filter
from models.data.state import History, UserState
from services.candidates import Candidates
from services.ingest.offsets import Position
from services.metrics import Metrics
from services.ranking.explore import Explored
from services.ranking.scenarios import LiveValue
from services.timing import Deadline, Stopwatch

T = TypeVar("T")
StageName = Literal["hydrate", "retrieve", "rank", "rerank", "arrange"]


def no_keys() -> NDArray[np.int64]:
    """An empty column of keys."""
    return np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One checked question, in keys."""

    user_id: str | None
    session: History | None
    limit: int
    filter: Filter | None
    boosts: tuple[Boost, ...] = ()
    exclude_seen: bool
    exclude: NDArray[np.int64] = field(default_factory=no_keys)
    given: NDArray[np.int64] | None = None
    """Rank exactly these."""
    positions: tuple[Position, ...] = ()
    """Writes that the answer must see."""
    now_ms: int
    value: LiveValue
    """What orders the slate: of the request's scenario, as it was when the request came."""
    explain: bool = False
    include: frozenset[str] = frozenset()
    recommendation_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    continues: str | None = None
    """The answer whose draw this one is made with, where orders are explored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """What is known of who asks."""

    state: UserState
    seen: NDArray[np.int64]
    cold: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """Candidates with the ranker's answer."""

    candidates: Candidates
    probabilities: NDArray[np.float32] | None
    """[n, T]; None where the ranker did not answer."""
    scores: NDArray[np.float64]
    """[n]: the value function, or the retrieval score in its place."""
    versions: Mapping[str, str]
    explored: Explored | None = None
    """Where the order was drawn; `scores` are then of the draw."""
    blended: NDArray[np.float64] | None = None
    """[n, 3]: summands of the logit that a language model was blended into (ranker, model, constant); nan where it
    was not. None: it had no part."""

    def num_reranked(self) -> int:
        """Candidates whose probability the language model had a part in."""
        return 0 if self.blended is None else int((~np.isnan(self.blended[:, 0])).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One item of a slate: its id and its row among the candidates."""

    id: str
    row: int
    metadata: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slate:
    """The answer of the pipeline."""

    recommendation_id: str
    places: Sequence[Place]
    ranked: Ranked
    person: Person


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a stage did not answer: a sentence for people, a word for metrics."""

    reason: str
    cause: Literal["timeout", "error", "unavailable", "not_visible"]


class Trace:
    """The time of each stage, and every stage that was replaced."""

    def __init__(
        self,
        deadline: Deadline,
        shares: Mapping[StageName, float],
        metrics: Metrics,
        logger: structlog.typing.FilteringBoundLogger,
        describe: Callable[[Exception], str | None],
    ) -> None:
        self.deadline = deadline
        self.watch = Stopwatch()
        self.degraded: list[tuple[StageName, Failure, str]] = []
        self._shares = shares
        self._metrics = metrics
        self._logger = logger
        self._describe = describe

    def left_ms(self, stage: StageName) -> float:
        """Milliseconds until the stage's share of the budget is spent; negative once it is."""
        return self.deadline.left_ms(self._shares[stage])

    async def attempt(self, stage: StageName, work: Callable[[float], Awaitable[T]]) -> T | Failure:
        """Run the stage's work within its share of the budget. `work` is told the milliseconds it has.

        What the caller got wrong (an HTTP problem) passes through; every other failure is logged and returned.
        """
        left_ms = self.left_ms(stage)
        if left_ms <= 0:
            return self._timeout(stage)
        with self.watch.lap(stage):
            try:
                async with asyncio.timeout(left_ms / 1000.0):
                    return await work(left_ms)
            except HTTPException:
                raise
            except TimeoutError:
                return self._timeout(stage)
            except Exception as error:  # any failure of a stage is answered by its fallback
                dependency = self._describe(error)
                if dependency is not None:
                    return Failure(dependency, "unavailable")
                self._logger.error("stage failed", stage=stage, exc_info=error)
                return Failure(f"{stage} failed: {type(error).__name__}", "error")

    def degrade(self, stage: StageName, failure: Failure, used: str) -> None:
        """Note that `used` stands in for the stage."""
        self.degraded.append((stage, failure, used))
        self._metrics.degraded.labels(stage, failure.cause).inc()

    def _timeout(self, stage: StageName) -> Failure:
        share_ms = self.deadline.budget_ms * self._shares[stage]
        return Failure(f"not done {share_ms:.0f} ms into a budget of {self.deadline.budget_ms:.0f} ms", "timeout")
