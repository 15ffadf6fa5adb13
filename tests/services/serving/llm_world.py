"""The tiny world with a tiny language model: untrained, but its blend gives it weight."""

from __future__ import annotations

import shutil
from pathlib import Path

from services.datasets.dataset import Dataset
from services.settings import Settings
from services.storage.artifacts import ArtifactRegistry
from tests.services.llm.world import EARNED, llm_model, publish_llm
from tests.services.serving.world import DATASET, World

TASKS = """
[llm]
task = "like"
[llm.tasks.like]
instruction = "Films that a member saw, and whether the member liked them."
member = "The member is {age} years old."
item = "Film: {title}[, {genre}][; {like.all/view.all|percent} liked it][ ({when})]"
questions.like = { text = "Liked?", action = "like" }
history = { max_entries = 10, max_tokens = 500 }
[llm.tasks.both]
instruction = "Films, and two questions about each."
item = "Film: {title}"
questions.like = { text = "Liked?", action = "like" }
questions.view = { text = "Viewed?", action = "view" }
history = { max_entries = 10, max_tokens = 500 }
"""


def make_llm_world(world: World, folder: Path) -> World:
    """A world of its own with an `llm` artifact, from a world without."""
    shutil.copytree(world.folder, folder / "data")
    description = folder / "dataset.toml"
    description.write_text(DATASET + TASKS)
    dataset = Dataset.load(description)
    schema = dataset.feature_schema()
    model = llm_model(schema, dataset.task_prompts()[:1], EARNED)
    publish_llm(ArtifactRegistry(folder / "data" / "artifacts"), schema, model)
    return World(folder / "data", description)


def llm_settings(world: World, data_dir: Path, **llm: object) -> Settings:
    """Settings with the language model turned on, in float32 on one thread."""
    return world.settings(data_dir, llm={"enabled": True, "precision": "fp32", "threads": 1, **llm})
