"""The request in one screen: hydrate, retrieve, rank, rerank where a language model is on, arrange; then log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from services.candidates import Plan, source_names
from services.query import Person, Place, Query, Ranked, Slate, Trace
from services.schema import (
    Degraded,
    Explanation,
    FilterPlan,
    RecommendationResponse,
    RecommendedItem,
    Served,
    Timings,
)
from services.stages.arrange import Arrange
from services.stages.hydrate import Hydrate
from services.stages.rank import Rank
from services.stages.rerank import Rerank
from services.stages.retrieve import Retrieve


class Pipeline:
    """One question to one slate. Every stage has its share of the budget and its own fallback."""

    def __init__(
        self, *, hydrate: Hydrate, retrieve: Retrieve, rank: Rank, arrange: Arrange, rerank: Rerank | None = None
    ) -> None:
        """rerank: None where there is no language model."""
        self._hydrate = hydrate
        self._retrieve = retrieve
        self._rank = rank
        self._rerank = rerank
        self._arrange = arrange

    async def run(self, query: Query, trace: Trace) -> Slate:
        """Answer the query; what was replaced on the way is in `trace.degraded`.

        Raises Problem: 503 where storage cannot even say the items' ids, 504 where no fallback was in time.
        """
        person = await self._hydrate(query, trace)
        if self._rerank is None:
            ranked = await self._find(query, person, trace)
        else:
            with self._rerank.reading(query, person, trace):
                ranked = await self._find(query, person, trace)
                ranked = await self._rerank(query, person, ranked, trace)
        return await self._arrange(query, person, ranked, trace)

    async def _find(self, query: Query, person: Person, trace: Trace) -> Ranked:
        candidates = await self._retrieve(query, person, trace)
        return await self._rank(query, person, candidates, trace)


class Responder:
    """Turns a slate into the wire's answer."""

    def __init__(
        self,
        *,
        tasks: Sequence[str],
        signals: Sequence[str],
        schema_hash: str,
    ) -> None:
        self._tasks = tasks
        self._signals = signals
        self._schema_hash = schema_hash

    def respond(self, query: Query, slate: Slate, trace: Trace) -> RecommendationResponse:
        """The whole answer."""
        versions = {**slate.ranked.candidates.versions, **slate.ranked.versions}
        laps = trace.watch.laps
        return RecommendationResponse(
            recommendation_id=slate.recommendation_id,
            items=[self._item(query, slate, place, rank) for rank, place in enumerate(slate.places, start=1)],
            served=self.served(versions | {"value": str(query.value)}),
            degraded=[
                Degraded(stage=stage, reason=failure.reason, used=used) for stage, failure, used in trace.degraded
            ],
            timings=Timings(
                hydrate=laps.get("hydrate", 0.0),
                retrieve=laps.get("retrieve", 0.0),
                rank=laps.get("rank", 0.0),
                rerank=laps.get("rerank", 0.0),
                arrange=laps.get("arrange", 0.0),
                total=trace.watch.total_ms(),
            ),
            filter_plan=plan_on_wire(slate.ranked.candidates.plan),
            reranked=slate.ranked.num_reranked(),
            explored=slate.ranked.explored is not None,
            cold_start=slate.person.cold,
        )

    def served(self, versions: Mapping[str, str]) -> Served:
        """The versions on the wire; null for what had no part in the answer."""
        return Served(
            index=versions.get("index"),
            retrieval_model=versions.get("retrieval_model"),
            links=versions.get("links"),
            ranker=versions.get("ranker"),
            calibrator=versions.get("calibrator"),
            value=versions.get("value"),
            llm=versions.get("llm"),
            prompt=versions.get("prompt"),
            dataset_schema=self._schema_hash,
        )

    def _item(self, query: Query, slate: Slate, place: Place, rank: int) -> RecommendedItem:
        ranked, row = slate.ranked, place.row
        probabilities = self._probabilities(ranked, row)
        candidates = ranked.candidates
        return RecommendedItem(
            id=place.id,
            rank=rank,
            score=float(ranked.scores[row]),
            probabilities=probabilities if "scores" in query.include else None,
            sources=source_names(int(candidates.sources[row])) if "sources" in query.include else None,
            metadata=None if place.metadata is None else dict(place.metadata),
            explanation=self._explain(query, ranked, row) if query.explain else None,
        )

    def _probabilities(self, ranked: Ranked, row: int) -> dict[str, float] | None:
        if ranked.probabilities is None:
            return None
        return dict(zip(self._tasks, ranked.probabilities[row].tolist(), strict=True))

    def _explain(self, query: Query, ranked: Ranked, row: int) -> Explanation:
        candidates, probabilities = ranked.candidates, ranked.probabilities
        boost = 0.0
        if candidates.unboosted is not None:
            boost = float(candidates.scores[row]) - float(candidates.unboosted[row])
        terms: dict[str, float] = {}
        if probabilities is not None:
            terms = query.value.function.terms(probabilities, self._tasks, candidates, row)
        return Explanation(
            retrieval_score=float(candidates.scores[row]),
            boost=boost,
            value_terms=terms,
            exploration=0.0 if ranked.explored is None else float(ranked.scores[row]) - sum(terms.values()),
            signals=dict(zip(self._signals, candidates.signals[row].tolist(), strict=True)),
            rerank_terms=_rerank_terms(ranked, row),
        )


def _rerank_terms(ranked: Ranked, row: int) -> dict[str, float] | None:
    if ranked.blended is None or np.isnan(ranked.blended[row, 0]):
        return None
    return dict(zip(("ranker", "llm", "constant"), ranked.blended[row].tolist(), strict=True))


def plan_on_wire(plan: Plan) -> FilterPlan:
    """How the filter was answered."""
    return FilterPlan(
        matched=plan.matched,
        scanned=plan.scanned,
        rescored=plan.rescored,
        strategy=plan.strategy,
        exact=plan.exact,
        joined=plan.joined,
        costs=plan.costs,
    )
