"""The walk: train on what was before the split, then rank at every request with nothing from the future visible."""

# Q = requests

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from index.attributes import AttributeSchema
from index.config import IndexConfig
from index.live import LiveIndex
from models.data.events import EventCursor, EventTable
from models.data.items import ItemTable
from models.evaluate import dcg_at, ndcg_at, recall_at
from models.ranking.model import RankingModel
from models.ranking.training import RankingConfig
from models.retrieval.model import RetrievalModel
from models.train.loop import StageProgress
from services.ranking.engine import RankingEngine
from services.ranking.value import ValueFunction, ValueSource
from services.replay.requests import ReplayRequest, num_sessions, session_requests, split_requests
from services.replay.systems import RANKED, Asked, systems
from services.retrieval.engine import ItemChange, RetrievalEngine
from services.training.data import TrainingData
from services.training.fits import fit_ranking, fit_retrieval

CUTOFFS = (10, 50, 100)
METRICS = ("recall", "ndcg", "dcg")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """How the data is split and what is asked of the systems."""

    test_share: float = 0.1
    """Share of the events, the newest, that is the test window."""
    num_candidates: int = 300
    """Candidates that retrieval hands to ranking."""
    born: str | None = None
    """Timestamp attribute from which on an item can be recommended; None: from its first event, or from the start."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.test_share < 1.0:
            raise ValueError(f"test_share is {self.test_share}; expected more than 0 and less than 1")


@dataclass(slots=True)
class Scores:
    """One protocol's outcome: per system and metric one number per request, and whose request it was."""

    requests: Sequence[ReplayRequest]
    values: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)
    """System -> "recall@10" -> f64[Q]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Everything the report prints."""

    config: ReplayConfig
    split_ms: int
    num_train: int
    num_test: int
    num_sessions: int
    """Sessions in the test window, of which those with something new and positive were judged."""
    num_items_at_split: int
    sessions: Scores
    """A request at the start of every session, the state rolling on between them."""
    at_split: Scores
    """One request per warm member at the split, nothing after it known: the protocol of published tables."""
    versions: Mapping[str, str]
    train_seconds: float
    walk_seconds: float


def replay(
    data: TrainingData,
    attributes: AttributeSchema,
    value: ValueSource,
    config: ReplayConfig | None = None,
    progress: StageProgress | None = None,
    ranking: RankingConfig | None = None,
) -> Replay:
    """Split, train on the past, walk the test window twice (sessions; all at the split), and score every system.

    ranking: how the ranker is built and trained; its seed is the replay's.
    """
    config = config or ReplayConfig()
    ranking = replace(ranking or RankingConfig(), seed=config.seed)
    function = ValueFunction.parse(value, data.schema)
    split_ms = data.events.quantile_ms(1.0 - config.test_share)
    past, future = data.events.split(split_ms)
    births_ms = _births_ms(data, config.born)
    started = time.perf_counter()
    retrieval_model, ranking_model = _train(data, past, births_ms < split_ms, ranking, progress)
    trained = time.perf_counter()

    def walk(name: str, requests: Sequence[ReplayRequest]) -> Scores:
        world = _World(data, attributes, retrieval_model, ranking_model, births_ms)
        return world.walk(name, requests, {RANKED: function}, config.num_candidates, progress)

    sessions = walk("replay sessions", session_requests(data.events, data.schema, split_ms))
    at_split = walk("replay at the split", split_requests(data.events, data.schema, split_ms))
    return Replay(
        config=config,
        split_ms=split_ms,
        num_train=len(past),
        num_test=len(future),
        num_sessions=num_sessions(data.events, split_ms),
        num_items_at_split=int((births_ms <= split_ms).sum()),
        sessions=sessions,
        at_split=at_split,
        versions={"retrieval_model": retrieval_model.version, "ranker": ranking_model.version},
        train_seconds=trained - started,
        walk_seconds=time.perf_counter() - trained,
    )


def judge_sessions(
    data: TrainingData,
    attributes: AttributeSchema,
    values: Mapping[str, ValueFunction],
    split_ms: int,
    retrieval_model: RetrievalModel,
    ranking_model: RankingModel,
    config: ReplayConfig,
    name: str,
    progress: StageProgress | None = None,
) -> Scores:
    """Walk the sessions from `split_ms` on with given models, which must have been trained on what was before.

    values: what orders the ranker's slates, by the name of the system in the scores that each makes.
    name: of the walk, for `progress`.
    """
    world = _World(data, attributes, retrieval_model, ranking_model, _births_ms(data, config.born))
    requests = session_requests(data.events, data.schema, split_ms)
    return world.walk(name, requests, values, config.num_candidates, progress)


def _train(
    data: TrainingData,
    past: EventTable,
    born: NDArray[np.bool_],
    config: RankingConfig,
    progress: StageProgress | None,
) -> tuple[RetrievalModel, RankingModel]:
    items = ItemTable(data.schema)
    items.upsert(data.item_keys[born], [row for row, here in zip(data.item_attributes, born, strict=True) if here])
    retrieval = fit_retrieval(data, items, past, config.seed, progress)
    return retrieval, fit_ranking(data, items, past, config, progress)


class _World:
    """The index and the counters at one instant, moved forward from request to request."""

    def __init__(
        self,
        data: TrainingData,
        attributes: AttributeSchema,
        retrieval_model: RetrievalModel,
        ranking_model: RankingModel,
        births_ms: NDArray[np.int64],
    ) -> None:
        self._data = data
        self._order = np.argsort(births_ms, kind="stable")
        self._births_ms = births_ms[self._order]
        self._num_born = 0
        self._applied_ms: int | None = None
        self._cursor = EventCursor(data.schema, data.events, data.users)
        index = IndexConfig(
            dim=retrieval_model.dim,
            schema=attributes,
            signals=tuple(signal.name for signal in data.schema.signals),
            capacity=max(1024, len(data.item_keys)),
        )
        self._retrieval = RetrievalEngine(
            index=LiveIndex(index),
            model=retrieval_model,
            items=ItemTable(data.schema),
            schema=data.schema,
            landmark_ms=int(data.events.ts_ms[-1]),
        )
        self._ranking = RankingEngine(ranking_model, self._retrieval.items)

    def walk(
        self,
        name: str,
        requests: Sequence[ReplayRequest],
        values: Mapping[str, ValueFunction],
        num_candidates: int,
        progress: StageProgress | None,
    ) -> Scores:
        compared = systems(self._retrieval, self._ranking, values, num_candidates)
        names = [f"{metric}@{k}" for metric in METRICS for k in CUTOFFS]
        scores = {system: {metric: np.zeros(len(requests)) for metric in names} for system in compared}
        for row, request in enumerate(requests):
            self._advance(request.now_ms)
            asked = Asked(
                self._cursor.user(request.user_key),
                self._cursor.seen(request.user_key),
                request.now_ms,
                max(CUTOFFS),
            )
            for system, answer in compared.items():
                ranked = answer(asked)
                hit = np.isin(ranked, request.relevant)
                for k in CUTOFFS:
                    scores[system][f"recall@{k}"][row] = recall_at(hit, len(request.relevant), k)
                    scores[system][f"ndcg@{k}"][row] = ndcg_at(hit, len(request.relevant), k)
                    scores[system][f"dcg@{k}"][row] = dcg_at(hit, k)
            if progress is not None:
                progress(name, row + 1, len(requests), {})
        return Scores(requests, scores)

    def _advance(self, now_ms: int) -> None:
        """Make everything strictly before `now_ms` known, and every item born until then retrievable."""
        self._cursor.advance(now_ms)
        born = int(np.searchsorted(self._births_ms, now_ms, side="right"))
        rows = self._order[self._num_born : born].tolist()
        keys, attributes = self._data.item_keys, self._data.item_attributes
        self._retrieval.apply_items([ItemChange(int(keys[row]), attributes[row]) for row in rows])
        self._num_born = born
        new = self._data.events.between(self._applied_ms, now_ms)
        self._retrieval.apply_events(new.item_keys, new.action_masks, new.ts_ms)
        self._applied_ms = now_ms


def _births_ms(data: TrainingData, attribute: str | None) -> NDArray[np.int64]:
    """When each item can first be recommended.

    With an attribute: at that time, or at its first event where that came earlier (the attribute must be wrong).
    Without one, or where an item lacks it: always, since nothing says when it came.
    """
    births = np.full(len(data.item_keys), -(1 << 62), dtype=np.int64)
    if attribute is None:
        return births
    keys, first = np.unique(data.events.item_keys, return_index=True)  # events are sorted by time
    first_ms = dict(zip(keys.tolist(), data.events.ts_ms[first].tolist(), strict=True))
    for row, (key, values) in enumerate(zip(data.item_keys.tolist(), data.item_attributes, strict=True)):
        value = values.get(attribute)
        if isinstance(value, int):
            births[row] = min(value, first_ms.get(key, value))
    return births
