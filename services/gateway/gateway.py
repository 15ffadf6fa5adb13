"""What the gateway's routes work with: one object per process, passed to every router."""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog

from index.attributes import AttributeSchema
from models.data.schema import FeatureSchema
from services.clock import Clock
from services.datasets.dataset import Dataset
from services.ingest.visibility import Visibility
from services.llm.scheduler import Refused
from services.metrics import Metrics
from services.pipeline import Pipeline, Responder
from services.processes.remote import RemoteUnavailable
from services.query import StageName, Trace
from services.ranking.scenarios import Scenarios
from services.retrieval.client import RetrievalClient
from services.settings import Settings
from services.stages.log import Log
from services.storage.errors import StorageUnavailable
from services.storage.storage import Storage
from services.timing import Deadline
from services.workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """Everything the edge knows."""

    settings: Settings
    dataset: Dataset
    schema: FeatureSchema
    attributes: AttributeSchema
    storage: Storage
    clock: Clock
    workers: Workers
    pipeline: Pipeline
    responder: Responder
    retrieval: RetrievalClient
    scenarios: Scenarios
    visibility: Visibility
    log: Log | None
    """None: impressions are not logged."""
    metrics: Metrics
    logger: structlog.typing.FilteringBoundLogger
    event_types: frozenset[str] = field(default_factory=frozenset)
    """Types that some action, or an impression, is made of."""

    def trace(self, budget_ms: int | None) -> Trace:
        """A trace that starts now."""
        pipeline = self.settings.pipeline
        shares: dict[StageName, float] = {
            "hydrate": pipeline.hydrate_share,
            "retrieve": pipeline.retrieve_share,
            "rank": pipeline.rank_share,
            "rerank": self.settings.llm.rerank_share,
            "arrange": 1.0,
        }
        deadline = Deadline(budget_ms or pipeline.budget_ms)
        return Trace(deadline, shares, self.metrics, self.logger, name_dependency)


def name_dependency(error: Exception) -> str | None:
    """A sentence for a dependency that is away; None for any other failure."""
    if isinstance(error, StorageUnavailable):
        return "storage is unavailable"
    if isinstance(error, RemoteUnavailable):
        return f"{error.name} is unavailable"
    if isinstance(error, Refused):
        return f"the language model is busy: {error}"
    return None
