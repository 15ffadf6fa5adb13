"""Training on, and whether what comes of it takes the active ranker's place: over a real archive and registry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.ranking.examples import ExampleConfig
from models.ranking.incremental import IncrementalConfig
from models.ranking.model import RankingModel
from models.ranking.training import RankingConfig
from models.retrieval.model import RetrievalModel
from services.datasets.dataset import Dataset
from services.replay.job import ReplayConfig
from services.storage.storage import Storage
from services.training.data import NothingToTrainOn, TrainingData, load_training_data
from services.training.jobs import RANKING, RETRIEVAL, train, train_on
from services.training.promotion import Gate, GateConfig
from tests.services.serving.world import DATASET, NUM_ITEMS, NUM_USERS, attributes_of, make_events

NOW_MS = 1_750_000_000_000
INCREMENT = IncrementalConfig(ranking=RankingConfig(examples=ExampleConfig(per_source=30), num_epochs=1.0))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("dataset") / "dataset.toml"
    path.write_text(DATASET)
    return Dataset.load(path)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    """A data folder whose models were trained on the older three quarters of its events."""
    folder = tmp_path_factory.mktemp("trained") / "data"
    with Storage.open(data_dir=folder, role="prepare") as storage:
        storage.items.put_many((f"item-{item}", attributes_of(item)) for item in range(NUM_ITEMS))
        storage.users.put_many((f"user-{user}", {"age": 20 + user}) for user in range(NUM_USERS))
        storage.archive.write_import("world", 0, make_events(NOW_MS))
        data = load_training_data(storage, dataset.feature_schema())
        past = replace(data, events=data.events.between(None, data.events.quantile_ms(0.75)))
        outcomes = train(past, storage.artifacts, gate_of(dataset), checkpoints=folder / "checkpoints")
        assert [outcome.kind for outcome in outcomes] == [RETRIEVAL, RANKING]
        assert all(outcome.decision.promoted for outcome in outcomes)
        assert outcomes[1].decision.reason == "there was no active ranking model of this schema"
    assert not list((folder / "checkpoints").iterdir())
    return folder


@pytest.fixture
def storage(first: Path, tmp_path: Path) -> Iterator[Storage]:
    shutil.copytree(first, tmp_path / "data")
    with Storage.open(data_dir=tmp_path / "data", role="prepare") as storage:
        yield storage


def gate_of(dataset: Dataset, **changes: float) -> Gate:
    return Gate(
        attributes=dataset.attribute_schema(),
        value=dataset.ranking.value,
        replay=ReplayConfig(num_candidates=60),
        config=GateConfig(**{"min_requests": 10, **changes}),  # type: ignore[arg-type]
    )


def data_of(storage: Storage, dataset: Dataset) -> TrainingData:
    return load_training_data(storage, dataset.feature_schema())


def test_an_increment_trains_judges_and_is_recorded(storage: Storage, dataset: Dataset) -> None:
    registry, data = storage.artifacts, data_of(storage, dataset)
    before = registry.open(RANKING)
    outcome = train_on(data, registry, gate_of(dataset, margin=1.0), INCREMENT)
    decision = outcome.decision
    assert decision.promoted and decision.active == before.version and registry.current(RANKING) == outcome.version
    artifact = registry.open(RANKING)
    made = artifact.provenance
    assert made.parent == before.version
    assert made.config["promotion"] == {
        "promoted": True,
        "reason": decision.reason,
        "active": before.version,
        "values": {"default": "0.25 * view + 1.0 * like"},
    }
    assert before.provenance.data_window_ms is not None and made.data_window_ms is not None
    since_ms = before.provenance.data_window_ms[1] + 1
    assert made.config["lineage"] == {"cold": before.version, "since_ms": since_ms}
    # What judged is left for the next increment.
    assert since_ms < made.data_window_ms[1] < int(data.events.ts_ms[-1])
    figures = made.metrics
    assert figures["replay_difference"] == pytest.approx(figures["replay_ndcg@10"] - figures["replay_ndcg@10_active"])
    assert figures["replay_margin"] == 1.0 and figures["replay_sessions"] >= 10
    for name in ("replay_ndcg@10", "replay_ndcg@10_active"):
        assert f"{figures[name]:.4f}" in decision.reason
    assert (
        RankingModel.load(artifact.folder, data.schema).version != RankingModel.load(before.folder, data.schema).version
    )
    # The second increment goes on from the first, and keeps the cold model it came from.
    second = train_on(data, registry, gate_of(dataset, margin=1.0), INCREMENT)
    lineage = registry.open(RANKING, second.version).provenance.config["lineage"]
    assert lineage == {"cold": before.version, "since_ms": made.data_window_ms[1] + 1}


def test_a_worse_model_is_published_and_not_promoted_unless_forced(storage: Storage, dataset: Dataset) -> None:
    """Worse by construction: what was liked is to be ranked last, and no anchor holds."""
    registry, data = storage.artifacts, data_of(storage, dataset)
    before = registry.current(RANKING)
    wild = replace(
        INCREMENT,
        anchor_strength=0.0,
        ranking=replace(INCREMENT.ranking, listwise_weight=-5.0, num_epochs=4.0, learning_rate=0.01),
    )
    outcome = train_on(data, registry, gate_of(dataset), wild)
    assert not outcome.decision.promoted and "below the margin of -0.01" in outcome.decision.reason
    assert registry.current(RANKING) == before and len(registry.versions(RANKING)) == 2
    manifest = json.loads((registry.open(RANKING, outcome.version).folder / "manifest.json").read_text())
    assert manifest["config"]["promotion"]["promoted"] is False
    assert manifest["metrics"]["replay_difference"] < -0.01
    forced = train_on(data, registry, gate_of(dataset, force=True), wild)
    assert forced.decision.promoted and forced.decision.reason.startswith("forced: NDCG@10")
    assert registry.current(RANKING) == forced.version


def test_the_gate_judges_with_what_orders_slates_now(storage: Storage, dataset: Dataset) -> None:
    registry, data = storage.artifacts, data_of(storage, dataset)
    gate = replace(gate_of(dataset, margin=1.0), scenarios=storage.scenarios)
    storage.scenarios.put("default", "-like")  # the worst first: whatever was liked comes last
    storage.scenarios.put("evening", {"like": 1.0})
    storage.scenarios.put("broken", "nothing.of + the_kind")
    outcome = train_on(data, registry, gate, INCREMENT)
    decision = outcome.decision
    assert decision.values == {"default": "-like", "evening": "1.0 * like"}
    assert registry.open(RANKING, outcome.version).provenance.config["promotion"]["values"] == decision.values
    figures = decision.figures
    assert figures["replay_ndcg@10"] < figures["replay_ndcg@10:evening"]
    assert figures["replay_ndcg@10_active"] < figures["replay_ndcg@10_active:evening"]
    # The worst of them decides.
    worst = min(figures["replay_difference"], figures["replay_difference:evening"])
    assert f"difference {worst:+.4f}" in decision.reason and "the worst of 2" in decision.reason
    storage.scenarios.delete("default")
    again = gate.decide(
        data, int(data.events.quantile_ms(0.9)), RetrievalModel.load(registry.open(RETRIEVAL).folder, data.schema),
        *(RankingModel.load(registry.open(RANKING).folder, data.schema) for _ in range(2)), "same",
        promote_unjudged=False,
    )  # fmt: skip
    assert again.values["default"] == "0.25 * view + 1.0 * like" and again.figures["replay_difference"] == 0.0


def test_the_dataset_says_how_its_ranker_is_trained(storage: Storage, dataset: Dataset) -> None:
    registry, data = storage.artifacts, data_of(storage, dataset)
    lines = '[ranking.network]\nhistory = "causal"\nhidden = [8]\n[ranking.training]\nnum_epochs = 0.5\n'
    config = Dataset.parse(DATASET + lines).ranking.config()
    (outcome,) = train(data, registry, gate_of(dataset, margin=1.0), (RANKING,), config=config)
    artifact = registry.open(RANKING, outcome.version)
    model = RankingModel.load(artifact.folder, data.schema)
    assert model.config.history == "causal" and model.config.hidden == (8,)
    assert artifact.provenance.config["num_epochs"] == 0.5
    # An increment keeps the network and takes the rest of the settings, once over the requests.
    increment = IncrementalConfig.of(replace(config, table_learning_rate=0.005, fisher_requests=500))
    assert increment.ranking.table_learning_rate == 0.005
    assert (increment.ranking.num_epochs, increment.ranking.fisher_requests) == (1.0, 64)
    assert IncrementalConfig.of(RankingConfig()) == IncrementalConfig()


def test_too_few_sessions_decide_nothing(storage: Storage, dataset: Dataset) -> None:
    registry, data = storage.artifacts, data_of(storage, dataset)
    before = registry.current(RANKING)
    outcome = train_on(data, registry, gate_of(dataset, min_requests=100_000), INCREMENT)
    assert not outcome.decision.promoted and "fewer than 100000" in outcome.decision.reason
    assert registry.current(RANKING) == before and not outcome.decision.figures


def test_training_anew_is_judged_where_there_is_something_to_judge_on(storage: Storage, dataset: Dataset) -> None:
    registry, data = storage.artifacts, data_of(storage, dataset)
    (judged,) = train(data, registry, gate_of(dataset, margin=1.0), (RANKING,))
    assert judged.decision.promoted and judged.decision.figures["replay_sessions"] >= 10
    made = registry.open(RANKING, judged.version).provenance
    assert made.data_window_ms is not None and made.data_window_ms[1] < int(data.events.ts_ms[-1])
    same = replace(data, events=data.events.between(None, made.data_window_ms[1] + 1))
    (again,) = train(same, registry, gate_of(dataset), (RANKING,))
    assert again.decision.promoted and again.decision.reason == "there are no events after the active model's"


def test_what_is_missing_is_said(storage: Storage, dataset: Dataset, tmp_path: Path) -> None:
    registry, data = storage.artifacts, data_of(storage, dataset)
    window = registry.open(RANKING).provenance.data_window_ms
    assert window is not None
    old = replace(data, events=data.events.between(None, window[1] + 1))
    with pytest.raises(NothingToTrainOn, match="0 events since those of ranking model"):
        train_on(old, registry, gate_of(dataset), INCREMENT)
    for folder in (registry.folder / RETRIEVAL).iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    with pytest.raises(NothingToTrainOn, match="no retrieval model that was trained on nothing but"):
        train_on(data, registry, gate_of(dataset), INCREMENT)
    shutil.rmtree(registry.folder / RANKING)
    with pytest.raises(NothingToTrainOn, match="no ranking model of this schema to train on from"):
        train_on(data, registry, gate_of(dataset), INCREMENT)
    with pytest.raises(ValueError, match=r"holdout_share is 1\.0"):
        GateConfig(holdout_share=1.0)
    with pytest.raises(ValueError, match=r"margin is -1"):
        GateConfig(margin=-1.0)
    assert np.isfinite(GateConfig().margin)
