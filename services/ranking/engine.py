"""Ranking without HTTP and without storage: probabilities for candidates. The offline replay uses it too."""

# n = candidates, T = tasks

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.data.items import ItemTable
from models.data.state import History, UserState
from models.ranking.calibration import Calibration
from models.ranking.model import RankingModel
from services.candidates import Candidates, Plan
from services.retrieval.engine import ItemChange, split_changes


class RankingEngine:
    """One ranking model over one item table. Thread-safe: many ranks beside a writer."""

    def __init__(self, model: RankingModel, items: ItemTable) -> None:
        self.model = model
        self.items = items
        self._calibrator = calibrator_version(model.calibration)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the columns that `rank` answers."""
        return tuple(self.model.tasks)

    def versions(self) -> dict[str, str]:
        """What an answer was made with."""
        return {"ranker": self.model.version, "calibrator": self._calibrator}

    def warm_up(self, now_ms: int) -> None:
        """Rank once, with and without a history: the first call allocates what later ones use again."""
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
            self.rank(user, candidates, now_ms)

    def rank(self, user: UserState, candidates: Candidates, now_ms: int) -> NDArray[np.float32]:
        """Return f32[n, T]: calibrated probability of each task for each candidate, in one forward pass."""
        if not len(candidates):
            return np.zeros((0, len(self.tasks)), np.float32)
        batch = self.items.gather(candidates.keys)
        history_items = self.items.gather(user.history.keys)
        return self.model.score(
            user, batch, candidates.signals, candidates.tower_scores(), now_ms, history_items=history_items
        )

    def apply_items(self, changes: Sequence[ItemChange]) -> None:
        """Take new, changed and deleted items into the table; of an item changed twice the last state stays."""
        keys, attributes, deleted = split_changes(changes)
        if len(keys):
            self.items.upsert(keys, attributes)
        if len(deleted):
            self.items.delete(deleted)


def calibrator_version(calibration: Calibration) -> str:
    """16 hex digits that change with any knot of any task: a calibrator may be refitted without its network."""
    digest = hashlib.blake2b(digest_size=8)
    for task, fitted in zip(calibration.tasks, calibration.maps, strict=True):
        digest.update(task.encode())
        digest.update(fitted.raw.tobytes() + fitted.calibrated.tobytes())
    return digest.hexdigest()
