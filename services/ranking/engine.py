"""Ranking without HTTP and without storage: probabilities for candidates. The offline replay uses it too."""

# n = candidates, T = tasks

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.items import ItemTable
from models.data.state import History, UserState
from models.ranking.calibration import Calibration
from models.ranking.exploration import Draws
from models.ranking.model import RequestScorer
from services.candidates import Candidates, Plan
from services.retrieval.engine import ItemChange, split_changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Calibrated probabilities and who made them."""

    probabilities: NDArray[np.float32]
    """[n, T]."""
    tasks: tuple[str, ...]
    versions: Mapping[str, str]
    """`ranker` and `calibrator`."""
    drawn: NDArray[np.float32] | None = None
    """[1 + M, n, T]: probabilities under draws of the model's posterior, where they were asked for and it has one."""


@dataclass(frozen=True, slots=True)
class _Serving:
    """A model and the versions that an answer of it names: one object, so that no answer mixes two."""

    model: RequestScorer
    versions: Mapping[str, str]


class RankingEngine:
    """One ranking model over one item table. Thread-safe: many ranks beside a writer and a replacement."""

    def __init__(self, model: RequestScorer, items: ItemTable) -> None:
        self.items = items
        self._serving = _serve(model)

    @property
    def model(self) -> RequestScorer:
        """The model that the next request is ranked with."""
        return self._serving.model

    def replace(self, model: RequestScorer, now_ms: int) -> None:
        """Rank with another model from the next request on; requests under way end with the one they began with.

        The new model is warmed up first. Whatever that raises, the old one stays. Popularity offsets go on: what the
        new model has learned meanwhile counts twice, until it has decayed.
        """
        serving = _serve(model)
        self._warm_up(serving, now_ms)
        kept = self.model.popularity
        if model.popularity is not None and kept is not None and kept.tasks == model.tasks:
            model.popularity = kept
        self._serving = serving

    def warm_up(self, now_ms: int) -> None:
        """Rank once, with and without a history: the first call allocates what later ones use again."""
        self._warm_up(self._serving, now_ms)

    def _warm_up(self, serving: _Serving, now_ms: int) -> None:
        keys = self.items.keys()[:64]
        num_keys = len(keys)
        candidates = Candidates(
            keys=keys,
            scores=np.zeros(num_keys, np.float32),
            sources=np.zeros(num_keys, np.uint32),
            signals=np.zeros((num_keys, len(self.model.schema.signals))),
            plan=Plan(matched=num_keys, scanned=0, rescored=0, strategy="given", exact=True),
            versions={},
        )
        history = History(keys, np.ones(num_keys, np.uint32), np.zeros(num_keys, np.float32), np.full(num_keys, now_ms))
        for user in (UserState(), UserState({}, history)):
            self._rank(serving, user, candidates, now_ms)

    def rank(self, user: UserState, candidates: Candidates, now_ms: int, draws: Draws | None = None) -> Ranking:
        """Calibrated probability of each task for each candidate, in one forward pass of one model."""
        return self._rank(self._serving, user, candidates, now_ms, draws)

    def _rank(
        self, serving: _Serving, user: UserState, candidates: Candidates, now_ms: int, draws: Draws | None = None
    ) -> Ranking:
        model = serving.model
        tasks = tuple(model.tasks)
        if not len(candidates):
            empty = np.zeros((0, len(tasks)), np.float32)
            return Ranking(probabilities=empty, tasks=tasks, versions=serving.versions)
        batch = self.items.gather(candidates.keys)
        history_items = self.items.gather(user.history.keys)
        if draws is not None and model.exploration is not None:
            probabilities, drawn = model.draw(
                user, batch, candidates.signals, candidates.tower_scores(), now_ms, draws, history_items=history_items
            )
            return Ranking(probabilities=probabilities, tasks=tasks, versions=serving.versions, drawn=drawn)
        probabilities = model.score(
            user, batch, candidates.signals, candidates.tower_scores(), now_ms, history_items=history_items
        )
        return Ranking(probabilities=probabilities, tasks=tasks, versions=serving.versions)

    def observe(
        self, user: UserState, keys: NDArray[np.int64], signals: NDArray[np.float64], ts_ms: NDArray[np.int64]
    ) -> None:
        """Count items shown to a user against what the model expected of them, until an action says otherwise.

        signals: f64[n, S].  ts_ms: int64[n].  Expected is what the model says now, without offsets and without the
        retrieval scores that the answer had. A model without popularity offsets counts nothing.
        """
        model = self.model
        if model.popularity is None or not len(keys):
            return
        nan = np.full(len(keys), np.nan, np.float32)
        logits = model.logits(
            user, self.items.gather(keys), signals, nan, int(ts_ms.max()),
            history_items=self.items.gather(user.history.keys),
        )  # fmt: skip
        expected = model.calibration.probabilities(logits, model.schema.implied_tasks())
        model.popularity.update(keys, np.zeros(expected.shape, np.bool_), expected, ts_ms)

    def credit(self, keys: NDArray[np.int64], action_masks: NDArray[np.uint32], ts_ms: NDArray[np.int64]) -> None:
        """Count actions on items that were shown. Arrays of n."""
        model = self.model
        if model.popularity is None or not len(keys):
            return
        bits = np.array([model.schema.bit(task) for task in model.tasks], np.uint32)
        done = ((action_masks[:, None] >> bits) & np.uint32(1)).astype(np.bool_)
        model.popularity.update(keys, done, np.zeros(done.shape, np.float32), ts_ms)

    def apply_items(self, changes: Sequence[ItemChange]) -> None:
        """Take new, changed and deleted items into the table; of an item changed twice the last state stays."""
        keys, attributes, deleted = split_changes(changes)
        if len(keys):
            self.items.upsert(keys, attributes)
        if len(deleted):
            self.items.delete(deleted)


def _serve(model: RequestScorer) -> _Serving:
    return _Serving(model, {"ranker": model.version, "calibrator": calibrator_version(model.calibration)})


def calibrator_version(calibration: Calibration) -> str:
    """16 hex digits that change with any knot of any task: a calibrator may be refitted without its network."""
    digest = hashlib.blake2b(digest_size=8)
    for task, fitted in zip(calibration.tasks, calibration.maps, strict=True):
        digest.update(task.encode())
        digest.update(fitted.raw.tobytes() + fitted.calibrated.tobytes())
    return digest.hexdigest()
