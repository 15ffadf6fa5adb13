"""Models replaced while requests run: no request fails, and none is answered by half of each."""

from __future__ import annotations

import dataclasses
import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from models.data.state import UserState
from models.ranking.calibration import Calibration, Isotonic
from models.ranking.model import RankingModel
from models.ranking.serving import export_model
from models.retrieval.model import RetrievalModel
from services.app import make_logger
from services.keys import keys_of
from services.platform import Platform, PlatformError, build_platform
from services.reloading import Reloader
from services.storage.artifacts import Provenance
from tests.services.serving.world import World, running, serving

EAGER = {"ranking": {"reload_interval_s": 0.02}}


def changed(platform: Platform, amount: float) -> RankingModel:
    """The platform's model with a table turned a little and every logit shifted: another version of everything."""
    artifact = platform.storage.artifacts.open("ranking")
    assert platform.ranking is not None
    model = RankingModel.load(artifact.folder, platform.ranking.model.schema)
    with torch.no_grad():
        model.network.table.weight.mul_(1.0 + 0.01 * amount)
    shifted = Isotonic(np.zeros(1), np.full(1, amount))
    calibration = Calibration(model.tasks, tuple(shifted for _ in model.tasks))
    return RankingModel(model.schema, model.config, model.network, calibration)


def publish(platform: Platform, write: Callable[[Path], object]) -> str:
    registry = platform.storage.artifacts
    version = registry.publish("ranking", write, Provenance())
    registry.promote("ranking", version)
    return version


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Load:
    """Threads that rank the same candidates for the same member, and keep every answer."""

    def __init__(self, client: httpx.Client, num_threads: int = 3) -> None:
        self.answers: list[dict] = []
        self._client = client
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(num_threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        body = {"session": {"events": []}, "candidates": [f"item-{n}" for n in range(20)], "explain": True}
        while not self._stopping.is_set():
            answer = self._client.post("/v1/recommendations", json=body)
            self.answers.append({"status": answer.status_code, **answer.json()})

    def versions(self) -> set[str]:
        return {answer["served"]["ranker"] for answer in list(self.answers) if "served" in answer}


def likes(answer: dict) -> np.ndarray:
    by_id = {item["id"]: item["probabilities"]["like"] for item in answer["items"]}
    return np.array([by_id[f"item-{n}"] for n in range(20)])


def test_models_are_replaced_under_load(world: World, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "data", **EAGER, pipeline={"log_impressions": False})
    with running(settings) as (platform, client), Load(client) as load:
        assert platform.ranking is not None
        models = [changed(platform, amount) for amount in (0.0, 0.5, -0.5, 1.0)]
        for model in models[1:]:
            publish(platform, model.save)
            wait_until(lambda model=model: model.version in load.versions())
        platform.storage.artifacts.rollback("ranking")
        wait_until(lambda: platform.ranking.model.version == models[2].version)  # type: ignore[union-attr]
    assert {answer["status"] for answer in load.answers} == {200}
    assert not any(answer["degraded"] for answer in load.answers)
    assert load.versions() == {model.version for model in models}
    # Every answer is the one of the model that it names, whatever else was loaded at that moment.
    for model in models:
        mine = [likes(answer) for answer in load.answers if answer["served"]["ranker"] == model.version]
        np.testing.assert_allclose(mine, np.broadcast_to(mine[0], (len(mine), 20)), atol=1e-6)
    means = [np.mean([likes(a) for a in load.answers if a["served"]["ranker"] == model.version]) for model in models]
    assert means[2] < means[1] < means[3]


def break_weights(model: RankingModel) -> Callable[[Path], object]:
    """An artifact whose weights are not those its known answer was made with."""

    def write(folder: Path) -> None:
        model.save(folder)
        answer = folder / "known_answer.json"
        document = json.loads(answer.read_text())
        document["logits"][0][0] += 0.01
        answer.write_text(json.dumps(document))

    return write


def drop_weights(model: RankingModel) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        model.save(folder)
        (folder / "weights.safetensors").write_bytes(b"nothing")

    return write


@pytest.mark.parametrize(("spoil", "reason"), [(break_weights, "known answer"), (drop_weights, "Error")])
def test_a_bad_model_leaves_the_old_one(
    world: World, tmp_path: Path, spoil: Callable[[RankingModel], Callable[[Path], object]], reason: str
) -> None:
    log = io.StringIO()
    settings = world.settings(tmp_path / "data", **EAGER)
    with (
        build_platform(settings, logger=make_logger("info", log)) as platform,
        serving(platform.app) as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        assert platform.ranking is not None
        before = platform.ranking.model.version
        with Load(client) as load:
            bad = publish(platform, spoil(changed(platform, 0.7)))
            reloader = next(each for each in platform.reloaders if each.kind == "ranking")
            wait_until(lambda: reloader.refused is not None)
            count = len(load.answers)
            wait_until(lambda: len(load.answers) > count + 3)
        assert load.versions() == {before} and {answer["status"] for answer in load.answers} == {200}
        ready = client.get("/readyz")
        detail = ready.json()["dependencies"]["ranking model"]["detail"]
        assert ready.status_code == 200 and bad in detail and reason in detail
        metrics = client.get("/metrics").text
        assert 'shortlist_model_reloads_total{kind="ranking",outcome="refused"} 1.0' in metrics
        assert "shortlist_ranking_model_refused 1.0" in metrics
        good = publish(platform, changed(platform, 0.2).save) if spoil is break_weights else None
        if good is None:
            platform.storage.artifacts.rollback("ranking")
        wait_until(lambda: reloader.refused is None)
        assert "shortlist_ranking_model_refused 0.0" in client.get("/metrics").text
        if good is not None:
            assert reloader.version == good and platform.ranking.model.version != before
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    (refused,) = [line for line in lines if line["event"] == "promoted model refused"]
    assert refused["version"] == bad and refused["level"] == "error" and "Traceback" in refused["exception"]
    assert any(line["event"] == "ranking answers as in training" for line in lines)


def test_a_model_that_does_not_answer_as_in_training_does_not_start(world: World, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "data")
    with build_platform(settings) as platform:
        bad = publish(platform, break_weights(changed(platform, 0.7)))
    with pytest.raises(PlatformError, match=f"{bad} cannot be served.*known answer"):
        build_platform(settings)


def test_a_refused_version_is_not_read_again_at_once(world: World, tmp_path: Path) -> None:
    """One refusal, one log line: looking again every few milliseconds would fill a disk."""
    tries = []

    def refuse(artifact: object) -> None:
        tries.append(artifact)
        raise ValueError("no")

    with build_platform(world.settings(tmp_path / "data")) as platform:
        publish(platform, changed(platform, 0.1).save)
        reloader = Reloader(
            "ranking",
            platform.storage.artifacts,
            version="another",
            replace=refuse,
            interval_s=1.0,
            metrics=type(platform.metrics)(),
            logger=make_logger("error", io.StringIO()),
        )
        assert not reloader.check() and not reloader.check()
    assert len(tries) == 1 and reloader.refused is not None and reloader.refused[1] == "ValueError: no"


@pytest.mark.parametrize("table_bits", [32, 8])
def test_an_exported_network_serves_and_says_so(world: World, tmp_path: Path, table_bits: int) -> None:
    log = io.StringIO()
    settings = world.settings(tmp_path / "data")
    body = {"session": {"events": []}, "candidates": [f"item-{n}" for n in range(20)]}
    with running(settings) as (platform, client):
        before = likes(client.post("/v1/recommendations", json=body).json())
        model = RankingModel.load(platform.storage.artifacts.open("ranking").folder, platform.ranking.model.schema)  # type: ignore[union-attr]

        def write(folder: Path) -> None:
            model.save(folder)
            export_model(model, folder)

        publish(platform, write)
    settings = world.settings(tmp_path / "data", ranking={"table_bits": table_bits})
    with (
        build_platform(settings, logger=make_logger("info", log)) as platform,
        serving(platform.app) as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        after = likes(client.post("/v1/recommendations", json=body).json())
    np.testing.assert_allclose(after, before, atol=1e-4 if table_bits == 32 else 0.02)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    (said,) = [line for line in lines if line["event"] == "ranking answers as in training"]
    assert (said["runtime"], said["table_bits"]) == ("onnxruntime", table_bits)


def test_int8_tables_need_an_exported_network(world: World, tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="int8 tables need"):
        build_platform(world.settings(tmp_path / "data", ranking={"table_bits": 8}))


def test_towers_are_replaced_under_load_with_the_index_that_they_embedded(world: World, tmp_path: Path) -> None:
    """Every answer is of one model and of its own index, and none is dropped, while items go on changing."""
    settings = world.settings(
        tmp_path / "data", retrieval={"reload_interval_s": 0.02}, pipeline={"log_impressions": False}
    )
    with running(settings) as (platform, client):
        engine, registry = platform.retrieval, platform.storage.artifacts
        assert engine is not None
        models = {engine.model.version: engine.model}
        with Load(client) as load:
            for factor in (1.25, 0.8):
                towers = RetrievalModel.load(registry.open("retrieval").folder, engine.schema)
                with torch.no_grad():
                    for parameter in towers.towers.parameters():
                        parameter.mul_(factor)
                towers = RetrievalModel(towers.schema, towers.config, towers.towers)
                models[towers.version] = towers
                registry.promote("retrieval", registry.publish("retrieval", towers.save, Provenance()))
                number = 0
                deadline = time.monotonic() + 30
                while engine.model.version != towers.version or number < 5:
                    assert time.monotonic() < deadline
                    written = client.put(
                        f"/v1/items/extra-{factor}-{number}?wait_for=visible",
                        json={"attributes": {"title": f"Extra {number}", "genre": ["Drama"], "year": 1999}},
                    )
                    assert written.status_code == 201, written.text
                    number += 1
                wait_until(
                    lambda version=towers.version: any(
                        answer["served"]["retrieval_model"] == version for answer in list(load.answers)
                    )
                )
            num_items = len(platform.storage.items)
        assert {answer["status"] for answer in load.answers} == {200}
        assert not any(answer["degraded"] for answer in load.answers)
        assert {answer["served"]["retrieval_model"] for answer in load.answers} == set(models)
        keys = keys_of(f"item-{n}" for n in range(20))
        for version, model in models.items():
            expected = model.encode_items(engine.items.gather(keys)) @ model.encode_users([UserState()], 0)[0]
            mine = [answer for answer in load.answers if answer["served"]["retrieval_model"] == version]
            for answer in mine:
                assert answer["served"]["index"].startswith(f"{version}@")
                scores = {item["id"]: item["explanation"]["retrieval_score"] for item in answer["items"]}
                np.testing.assert_allclose([scores[f"item-{n}"] for n in range(20)], expected, rtol=1e-4, atol=1e-5)
        assert engine.index.num_items == num_items
    with running(settings) as (platform, _):  # the snapshot at the end is of the last model
        assert platform.retrieval is not None and platform.retrieval.model.version == list(models)[-1]
        assert platform.retrieval.index.num_items == num_items


def test_towers_of_another_schema_are_refused(world: World, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "data", retrieval={"reload_interval_s": 0.02})
    with running(settings) as (platform, client):
        engine, registry = platform.retrieval, platform.storage.artifacts
        assert engine is not None
        version = engine.model.version
        schema = dataclasses.replace(engine.schema, history_length=engine.schema.history_length + 1)
        other = RetrievalModel(schema, engine.model.config, engine.model.towers)
        promoted = registry.publish("retrieval", other.save, Provenance())
        registry.promote("retrieval", promoted)
        reloader = next(each for each in platform.reloaders if each.kind == "retrieval")
        wait_until(lambda: reloader.refused is not None)
        assert engine.model.version == version
        assert client.post("/v1/recommendations", json={"user_id": "user-1"}).status_code == 200
