"""The train command: settings in, storage wired, outcomes out."""

from __future__ import annotations

from models.ranking.incremental import IncrementalConfig
from models.train.loop import StageProgress
from services.datasets.dataset import Dataset
from services.folder import job_storage
from services.links.artifact import KIND as LINKS
from services.links.job import train_links
from services.llm.pretrained import fetch_smollm2
from services.replay.job import ReplayConfig
from services.settings import Settings
from services.storage.scenarios import ScenarioStore
from services.training.data import load_training_data
from services.training.jobs import LLM, RANKING, RETRIEVAL, Outcome, train, train_llm, train_on
from services.training.promotion import Gate, GateConfig

CHECKPOINTS = "checkpoints"
"""Folder of the data folder where jobs that were cut short left what they had done."""


def run_training(
    settings: Settings,
    kinds: tuple[str, ...],
    *,
    incremental: bool = False,
    config: GateConfig | None = None,
    progress: StageProgress | None = None,
) -> list[Outcome]:
    """Train the kinds on what the data folder of the settings holds.

    kinds: of retrieval, ranking and links; empty: the two models, and links where the dataset says what may be linked.
    incremental: train the active ranker on, instead of new models from nothing; `kinds` is then not read.
    The kind "llm" takes minutes and a pretrained decoder, which is downloaded once; it comes last, as it is weighed
    against the active ranker.
    """
    dataset = Dataset.load(settings.dataset)
    ranking = dataset.ranking.config()
    kinds = kinds or (RETRIEVAL, RANKING, *((LINKS,) if dataset.links is not None else ()))
    with job_storage(settings, "train") as storage:
        gate = make_gate(settings, dataset, storage.scenarios, config)
        data = load_training_data(storage, dataset.feature_schema())
        checkpoints = storage.data_dir / CHECKPOINTS
        if incremental:
            increment = IncrementalConfig.of(ranking)
            return [train_on(data, storage.artifacts, gate, increment, progress, checkpoints)]
        outcomes = [train_links(data, storage.artifacts, dataset)] if LINKS in kinds else []
        models = tuple(kind for kind in kinds if kind in (RETRIEVAL, RANKING))
        if models:
            outcomes += train(data, storage.artifacts, gate, models, progress, checkpoints, ranking)
        if LLM in kinds:
            outcomes.append(
                train_llm(
                    data, storage.artifacts, dataset.task_prompts(), fetch_smollm2(),
                    force=gate.config.force, progress=progress, checkpoints=checkpoints,
                )
            )  # fmt: skip
        return outcomes


def make_gate(settings: Settings, dataset: Dataset, scenarios: ScenarioStore, config: GateConfig | None = None) -> Gate:
    """Return the gate that judges as the platform serves."""
    return Gate(
        attributes=dataset.attribute_schema(),
        value=dataset.ranking.value,
        replay=ReplayConfig(num_candidates=settings.retrieval.num_candidates, born=dataset.items.available_from),
        scenarios=scenarios,
        config=config or GateConfig(),
    )
