"""rerank: which of the best is best? A language model reads the member's history; the ranker's order where it is late.

Its score is blended into the ranker's probability of one task, and the value function orders the items it has read
again. What it had no time to read stays behind them in the ranker's order.
"""

# n = candidates, m = candidates that the model read, T = tasks, M = draws

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.data.schema import FeatureSchema
from models.decoder.blend import Weights
from models.ranking.calibration import make_consistent
from services.candidates import Candidates
from services.llm.calls import RerankCall, Reranking
from services.llm.client import LlmClient
from services.query import Failure, Person, Query, Ranked, Trace
from services.ranking.explore import Explored, explored
from services.ranking.value import order_of
from services.stages.arrange import SPARE

USED = "the ranker's order"
_LEAST = 1e-7
"""Probabilities nearer to 0 or 1 have no logit worth the name."""


class Rerank:
    """Asks for the first candidates of the ranker's order; how many there is time for is up to the model's queue."""

    def __init__(self, client: LlmClient, schema: FeatureSchema, *, max_candidates: int) -> None:
        self._client = client
        self._schema = schema
        self._max_candidates = max_candidates

    @contextlib.contextmanager
    def reading(self, query: Query, person: Person, trace: Trace) -> Iterator[None]:
        """Have the member's prompt read while the block runs: by the time that candidates are there, it is."""
        left_ms = trace.left_ms("rerank")
        if left_ms <= 0:
            yield
            return
        task = asyncio.ensure_future(self._client.prefill(person.state, query.now_ms, left_ms))
        # Whatever is wrong with the model, reranking meets it too, and says so.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            yield
        finally:
            task.cancel()

    async def __call__(self, query: Query, person: Person, ranked: Ranked, trace: Trace) -> Ranked:
        if ranked.probabilities is None:
            trace.degrade("rerank", Failure("the ranker did not answer: nothing to blend with", "error"), USED)
            return ranked
        drawn = ranked.explored
        # Which items are read must not depend on the draw: its propensities are worked out for these.
        best = ranked.candidates if drawn is None else _expected(drawn)
        best = best.take(np.arange(min(len(best), self._max_candidates)))
        if not len(best):
            return ranked
        call = RerankCall(user=person.state, keys=best.keys, signals=best.signals, now_ms=query.now_ms)

        async def score(left_ms: float) -> Reranking:
            return await self._client.rerank(call, left_ms)

        reranking = await trace.attempt("rerank", score)
        if isinstance(reranking, Failure):
            trace.degrade("rerank", reranking, USED)
            return ranked
        if not len(reranking.scores):
            return ranked
        if drawn is not None:
            return self._redraw(query, ranked, drawn, best, reranking)
        return self._reorder(query, ranked, reranking)

    def _reorder(self, query: Query, ranked: Ranked, reranking: Reranking) -> Ranked:
        assert ranked.probabilities is not None
        rows = np.arange(len(reranking.scores))
        probabilities, terms = self._blend(ranked.probabilities, rows, reranking)
        read, tasks = ranked.candidates.take(rows), self._schema.tasks
        scores = ranked.scores.copy()
        scores[rows] = query.value.function(probabilities[rows], tasks, read)
        order = np.concatenate([order_of(read, scores[rows]), np.arange(len(rows), len(scores))])
        return replace(
            ranked,
            candidates=ranked.candidates.take(order),
            probabilities=probabilities[order],
            scores=scores[order],
            versions={**ranked.versions, **reranking.versions},
            blended=terms[order],
        )

    def _redraw(self, query: Query, ranked: Ranked, drawn: Explored, best: Candidates, reranking: Reranking) -> Ranked:
        """Blend into what was expected and into every draw, and order all candidates by the same draw again."""
        candidates, ranking = drawn.candidates, drawn.ranking
        rows = rows_of(candidates.keys, best.keys[: len(reranking.scores)])
        probabilities, terms = self._blend(ranking.probabilities, rows, reranking)
        draws = ranking.drawn
        if draws is not None:
            draws = np.stack([self._blend(one_nT, rows, reranking)[0] for one_nT in draws])
        again = explored(
            drawn.explore,
            drawn.seed,
            drawn.continued,
            query.limit + SPARE,
            replace(ranking, probabilities=probabilities, drawn=draws),
            query.value.function,
            candidates,
        )
        assert again is not None
        return replace(
            ranked,
            candidates=candidates.take(again.order),
            probabilities=probabilities[again.order],
            scores=again.values[again.order],
            versions={**ranked.versions, **reranking.versions},
            explored=again,
            blended=terms[again.order],
        )

    def _blend(
        self, probabilities_nT: NDArray[np.float32], rows_m: NDArray[np.int64], reranking: Reranking
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return the probabilities, the rows' blended, and f64[n, 3]: summands of the rows' logits, nan elsewhere."""
        place = self._place(reranking.action)
        terms_m3 = blend_terms(probabilities_nT[rows_m, place], reranking.scores, reranking.weights)
        blended = probabilities_nT.astype(np.float64)
        blended[rows_m, place] = 1.0 / (1.0 + np.exp(-terms_m3.sum(axis=1)))
        blended[rows_m] = make_consistent(blended[rows_m], self._schema.implied_tasks())
        terms = np.full((len(probabilities_nT), 3), np.nan)
        terms[rows_m] = terms_m3
        return blended.astype(np.float32), terms

    def _place(self, action: str) -> int:
        tasks: Sequence[str] = self._schema.tasks
        if action not in tasks:
            raise ValueError(f"the language model's question is about {action!r}; expected one of {', '.join(tasks)}")
        return tasks.index(action)


def blend_terms(
    probabilities_m: NDArray[np.float32], scores_m: NDArray[np.float32], weights: Weights
) -> NDArray[np.float64]:
    """Return f64[m, 3]: a * logit of the probability, b * score, c."""
    chances = np.clip(probabilities_m.astype(np.float64), _LEAST, 1.0 - _LEAST)
    return np.stack(
        [
            weights.logit * (np.log(chances) - np.log1p(-chances)),
            weights.score * scores_m.astype(np.float64),
            np.full(len(scores_m), weights.constant),
        ],
        axis=1,
    )


def rows_of(keys_n: NDArray[np.int64], wanted_m: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64[m]: where each wanted key stands among the keys, which are distinct and hold them all."""
    order = np.argsort(keys_n)
    rows: NDArray[np.int64] = order[np.searchsorted(keys_n, wanted_m, sorter=order)]
    return rows


def _expected(drawn: Explored) -> Candidates:
    """The candidates in the order of what is expected of them."""
    ranking, candidates = drawn.ranking, drawn.candidates
    return candidates.take(order_of(candidates, drawn.function(ranking.probabilities, ranking.tasks, candidates)))
