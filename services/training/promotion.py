"""Whether a new ranker takes the active one's place: both replay the newest events, which neither was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from index.attributes import AttributeSchema
from models.evaluate import bootstrap_mean
from models.ranking.model import RankingModel
from models.retrieval.model import RetrievalModel
from models.train.loop import StageProgress
from services.ranking.value import ValueSource
from services.replay.job import ReplayConfig, judge_sessions
from services.replay.report import COMPARED
from services.training.data import TrainingData

METRIC = "ndcg@10"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    margin: float = 0.01
    """How much lower than the active model's a new one's NDCG@10 over replayed sessions may be."""
    holdout_share: float = 0.3
    """Share of the events since the active model's, the newest, that both models are judged on. The new one is not
    trained on them; the next one will be."""
    min_requests: int = 30
    """Sessions with something to judge below which nothing is decided."""
    force: bool = False
    """Promote whatever the figures."""

    def __post_init__(self) -> None:
        if not 0.0 < self.holdout_share < 1.0:
            raise ValueError(f"holdout_share is {self.holdout_share}; expected more than 0 and less than 1")
        if self.margin < 0.0:
            raise ValueError(f"margin is {self.margin}; expected 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Goes into the artifact's record and the job's output."""

    promoted: bool
    reason: str
    active: str | None = None
    """Version that the new model was compared with."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Empty where nothing was compared."""

    def record(self) -> dict[str, Any]:
        """Return the decision as an artifact's config keeps it; the figures are kept as its metrics."""
        return {"promoted": self.promoted, "reason": self.reason, "active": self.active}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Judges by the replay that the platform has: the same walk, index and value function."""

    attributes: AttributeSchema
    value: ValueSource
    replay: ReplayConfig
    config: GateConfig = field(default_factory=GateConfig)

    def decide(
        self,
        data: TrainingData,
        split_ms: int,
        retrieval: RetrievalModel,
        new: RankingModel,
        active: RankingModel,
        active_version: str,
        *,
        promote_unjudged: bool,
        progress: StageProgress | None = None,
    ) -> Decision:
        """Compare two rankers on the sessions from `split_ms` on, which neither they nor `retrieval` were trained on.

        promote_unjudged: what to do where there are too few of them.
        """
        ours, theirs = (
            judge_sessions(data, self.attributes, self.value, split_ms, retrieval, model, self.replay, name, progress)
            for name, model in (("replay the new model", new), ("replay the active one", active))
        )
        num_requests = len(ours.requests)
        if num_requests < max(1, self.config.min_requests):
            reason = f"{num_requests} sessions could be judged, fewer than {self.config.min_requests}"
            return self._decision(promote_unjudged, reason, active_version, {})
        users = np.array([request.user_key for request in ours.requests], dtype=np.int64)
        new_scores, active_scores = ours.values[COMPARED][METRIC], theirs.values[COMPARED][METRIC]
        difference = bootstrap_mean(new_scores - active_scores, clusters=users, seed=self.replay.seed)
        figures = {
            f"replay_{METRIC}": float(new_scores.mean()),
            f"replay_{METRIC}_active": float(active_scores.mean()),
            "replay_difference": difference.mean,
            "replay_difference_low": difference.low,
            "replay_difference_high": difference.high,
            "replay_margin": self.config.margin,
            "replay_sessions": float(num_requests),
        }
        good = difference.mean >= -self.config.margin
        reason = (
            f"NDCG@10 {new_scores.mean():.4f} against {active_scores.mean():.4f} of the active model on "
            f"{num_requests} sessions, difference {difference.mean:+.4f} "
            f"[{difference.low:+.4f}, {difference.high:+.4f}], "
            f"{'not below' if good else 'below'} the margin of -{self.config.margin:g}"
        )
        return self._decision(good, reason, active_version, figures)

    def undecided(self, reason: str, active_version: str, *, promote: bool) -> Decision:
        """Return the decision where nothing can be compared."""
        return self._decision(promote, reason, active_version, {})

    def _decision(self, good: bool, reason: str, active: str, figures: Mapping[str, float]) -> Decision:
        forced = self.config.force and not good
        return Decision(
            promoted=good or forced, reason=f"forced: {reason}" if forced else reason, active=active, figures=figures
        )
