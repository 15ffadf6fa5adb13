"""Whether a new ranker takes the active one's place: both replay the newest events, which neither was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from index.attributes import AttributeSchema
from models.data.schema import FeatureSchema
from models.evaluate import Interval, bootstrap_mean
from models.ranking.model import RankingModel
from models.retrieval.model import RetrievalModel
from models.train.loop import StageProgress
from services.ranking.scenarios import DEFAULT, live_values
from services.ranking.value import ValueFunction, ValueSource
from services.replay.job import ReplayConfig, Scores, judge_sessions
from services.storage.scenarios import ScenarioStore
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

    values: Mapping[str, str] = field(default_factory=dict)
    """The value functions that it was judged with, by scenario."""

    def record(self) -> dict[str, Any]:
        """Return the decision as an artifact's config keeps it; the figures are kept as its metrics."""
        return {
            "promoted": self.promoted, "reason": self.reason, "active": self.active, "values": dict(self.values)
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Judges by the replay that the platform has: the same walk and index, and the value function of every scenario as
    it is when the judging begins."""

    attributes: AttributeSchema
    value: ValueSource
    """The dataset's own."""
    replay: ReplayConfig
    scenarios: ScenarioStore | None = None
    """None: the dataset's value function is the only one."""
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
        values = self._values(data.schema)
        ours, theirs = (
            judge_sessions(data, self.attributes, values, split_ms, retrieval, model, self.replay, name, progress)
            for name, model in (("replay the new model", new), ("replay the active one", active))
        )
        num_requests = len(ours.requests)
        texts = {scenario: value.text for scenario, value in values.items()}
        if num_requests < max(1, self.config.min_requests):
            reason = f"{num_requests} sessions could be judged, fewer than {self.config.min_requests}"
            return self._decision(promote_unjudged, reason, active_version, {}, texts)
        compared = {scenario: _compare(ours, theirs, scenario, self.replay.seed) for scenario in values}
        figures = {name: value for found in compared.values() for name, value in found.figures.items()}
        figures |= {"replay_margin": self.config.margin, "replay_sessions": float(num_requests)}
        worst = min(compared.values(), key=lambda found: found.difference.mean)
        good = worst.difference.mean >= -self.config.margin
        of = "" if len(compared) == 1 else f" with scenario {worst.scenario!r}, the worst of {len(compared)}"
        reason = (
            f"NDCG@10 {worst.new:.4f} against {worst.active:.4f} of the active model on {num_requests} sessions{of}, "
            f"difference {worst.difference.mean:+.4f} [{worst.difference.low:+.4f}, {worst.difference.high:+.4f}], "
            f"{'not below' if good else 'below'} the margin of -{self.config.margin:g}"
        )
        return self._decision(good, reason, active_version, figures, texts)

    def undecided(self, reason: str, active_version: str, *, promote: bool) -> Decision:
        """Return the decision where nothing can be compared."""
        return self._decision(promote, reason, active_version, {})

    def _values(self, schema: FeatureSchema) -> dict[str, ValueFunction]:
        if self.scenarios is None:
            return {DEFAULT: ValueFunction.parse(self.value, schema)}
        return live_values(self.scenarios, self.value, schema)

    def _decision(
        self,
        good: bool,
        reason: str,
        active: str,
        figures: Mapping[str, float],
        values: Mapping[str, str] | None = None,
    ) -> Decision:
        forced = self.config.force and not good
        return Decision(
            promoted=good or forced, reason=f"forced: {reason}" if forced else reason, active=active, figures=figures,
            values=values or {},
        )  # fmt: skip


class _Compared(NamedTuple):
    """Two rankers over the same sessions, ordered by one scenario's value function."""

    scenario: str
    new: float
    active: float
    difference: Interval

    @property
    def figures(self) -> dict[str, float]:
        """Those of scenarios other than the default are named after it."""
        of = "" if self.scenario == DEFAULT else f":{self.scenario}"
        return {
            f"replay_{METRIC}{of}": self.new,
            f"replay_{METRIC}_active{of}": self.active,
            f"replay_difference{of}": self.difference.mean,
            f"replay_difference_low{of}": self.difference.low,
            f"replay_difference_high{of}": self.difference.high,
        }


def _compare(ours: Scores, theirs: Scores, scenario: str, seed: int) -> _Compared:
    users = np.array([request.user_key for request in ours.requests], dtype=np.int64)
    new, active = ours.values[scenario][METRIC], theirs.values[scenario][METRIC]
    difference = bootstrap_mean(new - active, clusters=users, seed=seed)
    return _Compared(scenario, float(new.mean()), float(active.mean()), difference)
