"""The replay command: settings in, storage wired, a report out."""

from __future__ import annotations

import json
from pathlib import Path

from models.train.loop import StageProgress
from services.datasets.dataset import Dataset
from services.folder import job_storage
from services.replay.job import ReplayConfig, replay
from services.replay.report import document, text
from services.settings import Settings
from services.training.data import load_training_data


def run_replay(
    settings: Settings,
    *,
    test_share: float,
    seed: int,
    json_file: Path | None = None,
    progress: StageProgress | None = None,
) -> str:
    """Replay the data folder of the settings; return the report as text, and write it as JSON where asked."""
    dataset = Dataset.load(settings.dataset)
    with job_storage(settings, "replay") as storage:
        data = load_training_data(storage, dataset.feature_schema())
    config = ReplayConfig(
        test_share=test_share,
        seed=seed,
        num_candidates=settings.retrieval.num_candidates,
        born=dataset.items.available_from,
    )
    ranking = dataset.ranking.config(seed)
    outcome = replay(data, dataset.attribute_schema(), dataset.ranking.value, config, progress, ranking)
    if json_file is not None:
        json_file.write_text(json.dumps(document(outcome), indent=2) + "\n")
    return text(outcome)
