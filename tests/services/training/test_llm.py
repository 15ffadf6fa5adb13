"""The decoder's job: trained on what the ranker's training left, calibrated and weighed on what neither has seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.decoder.checkpoint import write_decoder
from models.decoder.model import LlmModel
from models.decoder.scoring import Scorer
from models.decoder.sft import SftConfig
from models.decoder.verbalizer.task import HistorySelection, Question, TaskPrompt
from models.decoder.verbalizer.verbalizer import Verbalizer
from services.datasets.dataset import Dataset
from services.replay.job import ReplayConfig
from services.storage.storage import Storage
from services.training.data import NothingToTrainOn, TrainingData, load_training_data
from services.training.jobs import LLM, RANKING, train, train_llm
from services.training.llm import LlmConfig, fit_llm
from services.training.promotion import Gate
from tests.models.decoder.tiny import tiny_decoder, tiny_tokenizer
from tests.services.serving.world import DATASET, NUM_ITEMS, NUM_USERS, attributes_of, make_events

NOW_MS = 1_750_000_000_000
ITEM = "{genre}[; liked by {like.all/view.all|percentile}]"
TASKS = (
    TaskPrompt(
        name="like", instruction="The member", item=ITEM, style="terse", history=HistorySelection(max_tokens=200),
        questions=(Question(name="liked", text="liked", action="like"),),
    ),
    TaskPrompt(
        name="both", instruction="The member", item="{genre}", history=HistorySelection(max_tokens=200),
        questions=(
            Question(name="liked", text="liked?", action="like"),
            Question(name="watched", text="watched?", action="view"),
        ),
    ),
)  # fmt: skip
CONFIG = LlmConfig(
    num_layers=2,
    sft=SftConfig(trained="full", num_tokens=60_000, row_tokens=512, window_tokens=256, learning_rate=3e-3, bf16=False),
    calibration_turns=400, blend_requests=25, blend_candidates=8, held_out_share=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    write_decoder(folder, tiny_decoder(num_hidden_layers=3, max_position_embeddings=2048), tiny_tokenizer())
    return folder


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    with Storage.open(data_dir=tmp_path_factory.mktemp("data"), role="prepare") as storage:
        storage.items.put_many((f"item-{item}", attributes_of(item)) for item in range(NUM_ITEMS))
        storage.users.put_many((f"user-{user}", {"age": 20 + user}) for user in range(NUM_USERS))
        storage.archive.write_import("world", 0, make_events(NOW_MS))
        yield storage


@pytest.fixture(scope="module")
def data(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    path = tmp_path_factory.mktemp("dataset") / "dataset.toml"
    path.write_text(DATASET)
    return load_training_data(storage, Dataset.load(path).feature_schema())


def test_without_a_ranker_it_is_published_with_the_ranker_alone(
    storage: Storage, data: TrainingData, pretrained: Path, tmp_path: Path
) -> None:
    outcome = train_llm(data, storage.artifacts, TASKS, pretrained, CONFIG, checkpoints=tmp_path)
    assert outcome.kind == LLM
    assert "there was no ranker to weigh it against" in outcome.decision.reason
    artifact = storage.artifacts.open(LLM, outcome.version)
    model = LlmModel.load(artifact.folder, data.schema)
    assert not model.blend.earned
    assert model.tasks == TASKS and model.decoder.config.num_hidden_layers == 2
    assert model.calibration.tasks == ("like.liked", "both.liked", "both.watched")
    metrics = artifact.provenance.metrics
    assert outcome.decision.promoted == (metrics["like.liked_auc"] > 0.5)
    assert metrics["like.liked_held_out"] >= 100 and metrics["tokens"] > 50_000
    assert artifact.provenance.config["sft"]["num_tokens"] == 60_000
    assert not list(tmp_path.iterdir())
    for task in TASKS:
        verbalizer = Verbalizer(task, model.tokenizer, data.schema)
        assert model.versions[task.name] == verbalizer.version
        candidate = verbalizer.candidate({"genre": ["Action"]}, None, NOW_MS)
        scorer = Scorer(model.decoder, "fp32")
        prompt = verbalizer.prefix({}, [], NOW_MS)
        scores = scorer.score(scorer.prefill(prompt.tokens), [candidate], verbalizer.labels)
        assert scores.score_NQ.shape == (1, len(task.questions)) and np.isfinite(scores.score_NQ).all()


def test_beside_a_ranker_it_is_weighed_on_requests_that_trained_neither(
    storage: Storage, data: TrainingData, pretrained: Path
) -> None:
    dataset_gate = Gate(attributes=None, value=None, replay=ReplayConfig(num_candidates=60))  # type: ignore[arg-type]
    train(data, storage.artifacts, dataset_gate, (RANKING,))
    outcome = train_llm(data, storage.artifacts, TASKS[:1], pretrained, CONFIG)
    artifact = storage.artifacts.open(LLM, outcome.version)
    blend = LlmModel.load(artifact.folder, data.schema).blend
    assert artifact.provenance.config["ranking"] == storage.artifacts.current(RANKING)
    assert blend.report is not None and blend.report.num_examples > 50
    assert ("earned no weight" in outcome.decision.reason) == (not blend.earned)
    assert artifact.provenance.metrics["blend_candidates"] == blend.report.num_examples
    assert set(json.loads((artifact.folder / "blend.json").read_text())) >= {"weights", "pooled", "report"}


def test_a_folder_of_another_schema_or_tokenizer_is_refused(
    storage: Storage, data: TrainingData, pretrained: Path, tmp_path: Path
) -> None:
    folder = storage.artifacts.versions(LLM)[-1].folder
    model = LlmModel.load(folder, data.schema)
    assert model.decoder.head_VD.dtype == torch.float32
    with pytest.raises(ValueError, match="schema_hash"):
        LlmModel.load(folder, replace(data.schema, history_length=7))
    model.save(tmp_path, data.schema)
    path = tmp_path / "shortlist.json"
    path.write_text(path.read_text().replace(model.tokenizer.hash(), "0" * 16))
    with pytest.raises(ValueError, match="tokenizer is"):
        LlmModel.load(tmp_path, data.schema)


def test_what_there_is_nothing_to_train_on_is_said(storage: Storage, data: TrainingData, pretrained: Path) -> None:
    with pytest.raises(ValueError, match=r"\[llm\] section"):
        train_llm(data, storage.artifacts, (), pretrained, CONFIG)
    empty = replace(data, events=data.events.take(slice(0, 0)))
    with pytest.raises(NothingToTrainOn, match="no member was exposed"):
        fit_llm(empty, TASKS, pretrained, CONFIG, None)
