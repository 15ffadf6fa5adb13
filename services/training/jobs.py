"""The training jobs: each makes one artifact, publishes and promotes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from models.data.events import EventTable
from models.data.items import ItemTable
from models.ranking.model import RankingModel
from models.ranking.training import RankingConfig, train_ranking
from models.retrieval.model import RetrievalModel
from models.retrieval.training import RetrievalConfig, train_retrieval
from models.train.loop import StageProgress, stage_of
from services.storage.artifacts import ArtifactRegistry, Provenance
from services.training.data import TrainingData

RETRIEVAL, RANKING = "retrieval", "ranking"


def fit_retrieval(
    data: TrainingData, items: ItemTable, events: EventTable, seed: int, progress: StageProgress | None
) -> RetrievalModel:
    """Train the towers of the dataset's default configuration on `events`, which may be a part of the data's."""
    return train_retrieval(
        data.schema, items, data.users, events, RetrievalConfig(seed=seed), stage_of(progress, "train retrieval")
    )


def fit_ranking(
    data: TrainingData, items: ItemTable, events: EventTable, seed: int, progress: StageProgress | None
) -> RankingModel:
    """As `fit_retrieval`, for the ranker."""
    return train_ranking(data.schema, items, data.users, events, RankingConfig(seed=seed), progress)


def train(
    data: TrainingData,
    registry: ArtifactRegistry,
    kinds: tuple[str, ...] = (RETRIEVAL, RANKING),
    progress: StageProgress | None = None,
) -> dict[str, str]:
    """Train each kind on all data, publish and promote it; return the artifact versions by kind."""
    versions = {}
    if RETRIEVAL in kinds:
        retrieval = fit_retrieval(data, data.items, data.events, 0, progress)
        versions[RETRIEVAL] = _publish(registry, RETRIEVAL, retrieval.save, data, asdict(RetrievalConfig()))
    if RANKING in kinds:
        ranking = fit_ranking(data, data.items, data.events, 0, progress)
        versions[RANKING] = _publish(registry, RANKING, ranking.save, data, asdict(RankingConfig()))
    return versions


def _publish(
    registry: ArtifactRegistry,
    kind: str,
    save: Callable[[Path], object],
    data: TrainingData,
    config: Mapping[str, object],
) -> str:
    provenance = Provenance(
        config=config,
        schema_hash=data.schema.hash(),
        data_window_ms=data.window_ms,
        parent=registry.current(kind),
    )
    version = registry.publish(kind, save, provenance)
    registry.promote(kind, version)
    return version
