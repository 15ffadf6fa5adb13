"""What a replay compares: each system answers the same request with its k best unseen items.

All of them ask the same live index, so "the catalogue alive at that instant" is the same for all.
"""

# K = items asked for, T = tasks

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.data.state import UserState
from services.candidates import Candidates
from services.ranking.engine import Ranking, RankingEngine
from services.ranking.value import ValueFunction, order_of
from services.retrieval.engine import RetrievalEngine


class Asked(NamedTuple):
    """One request with the member's state at that instant."""

    user: UserState
    seen: NDArray[np.int64]
    now_ms: int
    k: int


System = Callable[[Asked], NDArray[np.int64]]


RANKED = "retrieval + ranking"


def systems(
    retrieval: RetrievalEngine,
    ranking: RankingEngine,
    values: Mapping[str, ValueFunction],
    num_candidates: int,
) -> dict[str, System]:
    """Return the systems by name, simplest first.

    values: by the name of what ranks with each; all of them are asked in turn, and order one ranking.
    """

    def by_signal(name: str) -> System:
        def answer(asked: Asked) -> NDArray[np.int64]:
            found = retrieval.index.search_signal(name, asked.k, None, asked.seen).keys[0]
            keys: NDArray[np.int64] = found[found != -1]
            return keys

        return answer

    def by_retrieval(asked: Asked) -> NDArray[np.int64]:
        return retrieval.retrieve(asked.user, asked.now_ms, num_candidates, None, asked.seen).keys[: asked.k]

    last: list[tuple[Asked, Candidates, Ranking]] = []

    def ranked_for(asked: Asked) -> tuple[Candidates, Ranking]:
        if not last or last[0][0] is not asked:
            found = retrieval.retrieve(asked.user, asked.now_ms, num_candidates, None, asked.seen)
            last[:] = [(asked, found, ranking.rank(asked.user, found, asked.now_ms))]
        return last[0][1:]

    def by_ranking(value: ValueFunction) -> System:
        def answer(asked: Asked) -> NDArray[np.int64]:
            found, ranked = ranked_for(asked)
            keys: NDArray[np.int64] = found.keys[order_of(found, value(ranked.probabilities, ranked.tasks, found))]
            return keys[: asked.k]

        return answer

    answers: dict[str, System] = {}
    if retrieval.popular is not None:
        answers["popularity"] = by_signal(retrieval.popular.name)
    if retrieval.recent is not None:
        answers[f"recency popularity ({retrieval.recent.name})"] = by_signal(retrieval.recent.name)
    answers["retrieval only"] = by_retrieval
    answers |= {name: by_ranking(value) for name, value in values.items()}
    return answers
