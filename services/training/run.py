"""The train command: settings in, storage wired, artifact versions out."""

from __future__ import annotations

from models.train.loop import StageProgress
from services.datasets.dataset import Dataset
from services.folder import job_storage
from services.settings import Settings
from services.training.data import load_training_data
from services.training.jobs import train


def run_training(settings: Settings, kinds: tuple[str, ...], progress: StageProgress | None = None) -> dict[str, str]:
    """Train the kinds on what the data folder of the settings holds; return the new versions by kind."""
    with job_storage(settings, "train") as storage:
        data = load_training_data(storage, Dataset.load(settings.dataset).feature_schema())
        return train(data, storage.artifacts, kinds, progress)
