"""rank: in which order? The ranker's value function; the retrieval order where the ranker does not answer in time."""

# n = candidates, T = tasks

from __future__ import annotations

import numpy as np

from services.candidates import Candidates
from services.query import Failure, Person, Query, Ranked, Trace
from services.ranking.client import RankingClient
from services.ranking.engine import Ranking
from services.ranking.explore import explored, seed_of
from services.ranking.value import order_of
from services.stages.arrange import SPARE


class Rank:
    """Scores candidates with the value function of the request's scenario, and orders them by what is expected, or
    where the scenario explores, by one draw of it."""

    def __init__(self, client: RankingClient) -> None:
        self._client = client

    async def __call__(self, query: Query, person: Person, candidates: Candidates, trace: Trace) -> Ranked:
        explore, continued = query.value.explore, query.continues is not None
        seed = seed_of(query.continues or query.recommendation_id)
        draws = None if explore is None else explore.draws_of(seed, continued=continued)

        async def score(left_ms: float) -> Ranking:
            return await self._client.rank(person.state, candidates, query.now_ms, left_ms, draws)

        ranking = await trace.attempt("rank", score)
        if isinstance(ranking, Failure):
            trace.degrade("rank", ranking, "the retrieval order")
            scores = candidates.scores.astype(np.float64)
            return Ranked(candidates=candidates, probabilities=None, scores=scores, versions={})
        function, drawn = query.value.function, None
        if explore is not None:
            places = query.limit + SPARE
            drawn = explored(explore, seed, continued, places, ranking, function, candidates)
        scores = function(ranking.probabilities, ranking.tasks, candidates) if drawn is None else drawn.values
        order = order_of(candidates, scores) if drawn is None else drawn.order
        return Ranked(
            candidates=candidates.take(order),
            probabilities=ranking.probabilities[order],
            scores=scores[order],
            versions=ranking.versions,
            explored=drawn,
        )
