"""rank: in which order? The ranker's value function; the retrieval order where the ranker does not answer in time."""

# n = candidates, T = tasks

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from services.candidates import Candidates
from services.query import Failure, Person, Query, Ranked, Trace
from services.ranking.client import Ranking, RankingClient
from services.ranking.value import order_of, values_of


class Rank:
    """Scores candidates with the weighted sum of their calibrated probabilities."""

    def __init__(self, client: RankingClient, weights: Mapping[str, float]) -> None:
        self._client = client
        self._weights = weights

    async def __call__(self, query: Query, person: Person, candidates: Candidates, trace: Trace) -> Ranked:
        async def score(left_ms: float) -> Ranking:
            return await self._client.rank(person.state, candidates, query.now_ms, left_ms)

        ranking = await trace.attempt("rank", score)
        if isinstance(ranking, Failure):
            trace.degrade("rank", ranking, "the retrieval order")
            scores = candidates.scores.astype(np.float64)
            return Ranked(candidates=candidates, probabilities=None, scores=scores, versions={})
        scores = values_of(ranking.probabilities, ranking.tasks, self._weights)
        order = order_of(candidates, scores)
        return Ranked(
            candidates=candidates.take(order),
            probabilities=ranking.probabilities[order],
            scores=scores[order],
            versions=ranking.versions,
        )
