"""The two models as the jobs train and publish them: what the replay judges."""

from __future__ import annotations

from models.data.events import EventTable
from models.data.items import ItemTable
from models.ranking.model import RankingModel
from models.ranking.training import RankingConfig, train_ranking
from models.retrieval.model import RetrievalModel
from models.retrieval.training import RetrievalConfig, train_retrieval
from models.train.loop import StageProgress, stage_of
from services.training.data import TrainingData


def fit_retrieval(
    data: TrainingData, items: ItemTable, events: EventTable, seed: int, progress: StageProgress | None
) -> RetrievalModel:
    """Train the towers of the default configuration on `events`, which may be a part of the data's."""
    return train_retrieval(
        data.schema, items, data.users, events, RetrievalConfig(seed=seed), stage_of(progress, "train retrieval")
    )


def fit_ranking(
    data: TrainingData, items: ItemTable, events: EventTable, config: RankingConfig, progress: StageProgress | None
) -> RankingModel:
    """Train the ranker on `events`, which may be a part of the data's."""
    return train_ranking(data.schema, items, data.users, events, config, progress)
