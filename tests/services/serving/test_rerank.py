"""The gateway with a language model: what it changes, what it says of it, and what happens when it is late or away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from services.datasets.dataset import Dataset
from services.llm.engine import LlmEngine
from services.llm.scheduler import Refused
from services.platform import Platform, PlatformError, build_platform
from services.ranking.engine import RankingEngine
from services.settings import SettingsError
from services.storage.events import parse_event
from services.storage.server import EmbeddedServer
from tests.services.llm.world import llm_model, publish_llm
from tests.services.serving.llm_world import llm_settings, make_llm_world
from tests.services.serving.world import World, running


@pytest.fixture(scope="module")
def llm_world(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_llm_world(world, tmp_path_factory.mktemp("llm-world"))


@pytest.fixture(scope="module")
def served(llm_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Platform, httpx.Client]]:
    settings = llm_settings(llm_world, tmp_path_factory.mktemp("served") / "data", max_candidates=20)
    with running(settings) as both:
        yield both


def ask(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/recommendations", json={"user_id": "user-1", **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def broken(*_: object, **__: object) -> Any:
    raise RuntimeError("broken on purpose")


def test_the_best_are_ordered_anew_and_the_rest_stays(
    platform: Platform, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = ask(client, limit=40, explain=True)
    assert answer["degraded"] == [] and answer["reranked"] == 20
    assert platform.llm is not None
    assert answer["served"]["llm"] == platform.llm.served.version and answer["served"]["prompt"].startswith("like/")
    assert answer["timings"]["rerank"] > 0.0
    first, rest = answer["items"][:20], answer["items"][20:]
    scores = [item["score"] for item in first]
    assert scores == sorted(scores, reverse=True)
    for item in first:
        terms = item["explanation"]["rerank_terms"]
        assert set(terms) == {"ranker", "llm", "constant"} and terms["constant"] == pytest.approx(0.1)
        chance = 1.0 / (1.0 + np.exp(-sum(terms.values())))
        probabilities = item["probabilities"]
        if probabilities["view"] > chance:
            assert probabilities["like"] == pytest.approx(chance, abs=1e-5)
        assert probabilities["like"] <= 1.0
        assert sum(item["explanation"]["value_terms"].values()) == pytest.approx(item["score"], abs=1e-5)
    assert all(item["explanation"]["rerank_terms"] is None for item in rest)
    monkeypatch.setattr(LlmEngine, "rerank", broken)
    plain = ask(client, limit=40)
    assert plain["served"]["llm"] is None and plain["reranked"] == 0
    assert {item["id"] for item in plain["items"][:20]} == {item["id"] for item in first}
    assert [item["id"] for item in plain["items"][:20]] != [item["id"] for item in first]
    assert [item["id"] for item in plain["items"][20:]] == [item["id"] for item in rest]


def test_a_model_that_fails_or_refuses_leaves_the_rankers_order(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Any:
        raise Refused("there is no time", 3.0)

    for fault, words in ((broken, "RuntimeError"), (refuse, "busy: there is no time")):
        monkeypatch.setattr(LlmEngine, "rerank", fault)
        answer = ask(client)
        (entry,) = answer["degraded"]
        assert entry["stage"] == "rerank" and entry["used"] == "the ranker's order" and words in entry["reason"]
        assert len(answer["items"]) == 10 and answer["items"][0]["probabilities"]["like"] > 0.0


def test_a_model_that_is_late_is_not_waited_for(
    platform: Platform, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert platform.llm is not None
    backend = platform.llm.served.backend

    def slow(*_: object, **__: object) -> Any:
        time.sleep(2.0)
        raise AssertionError("nobody waits for this")
        yield

    monkeypatch.setattr(type(backend), "score", slow)
    started = time.monotonic()
    answer = ask(client, budget_ms=400)
    assert time.monotonic() - started < 1.5
    assert [entry["stage"] for entry in answer["degraded"]] == ["rerank"] and len(answer["items"]) == 10
    assert "into a budget of 400 ms" in answer["degraded"][0]["reason"]
    while len(platform.llm.scheduler):
        assert time.monotonic() - started < 10.0, "it ends with its caller"
        time.sleep(0.05)


def test_the_prompt_is_read_while_retrieval_runs(
    platform: Platform, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert platform.llm is not None
    seen: list[int] = []
    rerank = LlmEngine.rerank

    def note(self: LlmEngine, *arguments: Any) -> Any:
        prompt = self._chosen(self.served, arguments[0].user, arguments[0].now_ms, arguments[1])
        seen.append(self.served.backend.unread(prompt.tokens))
        return rerank(self, *arguments)

    def late(self: RankingEngine, *arguments: Any) -> Any:
        time.sleep(0.3)
        return rank(self, *arguments)

    rank = RankingEngine.rank
    monkeypatch.setattr(LlmEngine, "rerank", note)
    monkeypatch.setattr(RankingEngine, "rank", late)
    assert ask(client, user_id="user-33")["degraded"] == []
    assert seen == [0], "by the time that candidates are there, the prompt has been read"


def test_without_the_ranker_there_is_nothing_to_blend_with(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RankingEngine, "rank", broken)
    answer = ask(client)
    assert [entry["stage"] for entry in answer["degraded"]] == ["rank", "rerank"] and len(answer["items"]) == 10


def test_somebody_new_and_given_items_are_reranked_too(client: httpx.Client) -> None:
    answer = ask(client, user_id="nobody")
    assert answer["cold_start"] and answer["reranked"] == 20 and answer["degraded"] == []
    given = ["item-9", "item-4", "item-6"]
    answer = ask(client, candidates=given)
    assert sorted(item["id"] for item in answer["items"]) == sorted(given) and answer["reranked"] == 3


def test_metrics_and_readiness_tell_of_it(client: httpx.Client) -> None:
    ask(client)
    text = client.get("/metrics").text
    assert 'shortlist_llm_work_total{outcome="done"}' in text and "shortlist_llm_tokens_per_s" in text
    assert 'shortlist_stage_seconds_count{stage="rerank"}' in text
    states = client.get("/readyz").json()["dependencies"]
    assert "engine local" in states["llm"]["detail"] and states["follower llm-items"]["ready"]


def test_a_changed_item_is_told_as_it_is(platform: Platform, client: httpx.Client) -> None:
    body = {"attributes": {"title": "Brand new", "genre": ["Drama"]}}
    assert client.put("/v1/items/brand-new?wait_for=visible&timeout_ms=5000", json=body).json()["visible"]
    assert platform.llm is not None
    titles = {attributes["title"] for attributes in platform.llm.items._attributes.values()}
    assert "Brand new" in titles
    assert client.delete("/v1/items/brand-new?wait_for=visible&timeout_ms=5000").json()["visible"]


def test_explored_orders_are_reranked_with_propensities(llm_world: World, tmp_path: Path) -> None:
    text = llm_world.dataset.read_text()
    for number, explore in enumerate(('{ kind = "epsilon_greedy", epsilon = 0.1 }', '{ kind = "thompson" }')):
        description = tmp_path / f"explore-{number}.toml"
        description.write_text(text.replace("history_length = 20", f"history_length = 20\nexplore = {explore}"))
        settings = llm_settings(World(llm_world.folder, description), tmp_path / f"data-{number}", max_candidates=20)
        with running(settings) as (platform, client):
            answer = ask(client)
            assert answer["degraded"] == [] and answer["reranked"] == 20
            if answer["explored"]:
                logged = propensities_of(platform, answer["recommendation_id"])
                assert len(logged) == 10 and all(0.0 < propensity <= 1.0 for propensity in logged)


def propensities_of(platform: Platform, recommendation_id: str) -> list[float]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        entries = platform.storage.streams.read("events", "0-0", 1000)
        events = [parse_event(entry).event for entry in entries]
        logged = [event.propensity for event in events if event.recommendation_id == recommendation_id]
        if logged:
            return [float(propensity) for propensity in logged if propensity is not None]
        time.sleep(0.02)
    raise AssertionError("no impressions were logged")


def test_another_process_reranks_the_same(llm_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = llm_settings(llm_world, tmp_path / "data", max_candidates=20)
    server = EmbeddedServer(tmp_path / "data")
    server.start()
    try:
        shared = settings.model_copy(update={"redis_url": server.url})
        with running(shared, {"llm"}) as (llm, direct):
            url = str(direct.base_url)
            far = shared.model_copy(update={"llm": shared.llm.model_copy(update={"url": url})})
            far_parts = {"gateway", "retrieval", "ranking"}
            near_parts = {*far_parts, "llm", "ingest"}
            quiet = {"pipeline": shared.pipeline.model_copy(update={"log_impressions": False})}
            near = shared.model_copy(update=quiet)
            far = far.model_copy(update={**quiet, "ingest": far.ingest.model_copy(update={"url": url})})
            now_ms = llm.storage.clock.now_ms()
            monkeypatch.setattr("services.clock.Clock.now_ms", lambda _: now_ms)
            with running(far, far_parts) as (_, remote):  # type: ignore[arg-type]
                there = ask(remote, limit=30, explain=True)
                score = {"user_id": "user-2", "items": [{"id": "item-1"}, {"id": "item-2"}], "label_mass": True}
                scored = remote.post("/v1/score", json=score)
                wrong = remote.post("/v1/score", json={**score, "task": "lik"})
                same = direct.post("/v1/score", json=score)
            with running(near, near_parts) as (_, local):  # type: ignore[arg-type]
                here = ask(local, limit=30, explain=True)
            assert scored.status_code == 200 and scored.json()["items"] == same.json()["items"]
            assert wrong.status_code == 422 and "did you mean 'like'" in wrong.json()["detail"]
            assert wrong.json()["errors"][0]["pointer"] == "/task"
        assert there["degraded"] == [] and there["reranked"] == 20
        assert there["served"] == here["served"]
        for one, other in zip(there["items"], here["items"], strict=True):
            assert one["id"] == other["id"] and one["score"] == pytest.approx(other["score"], abs=1e-6)
        gone = far.model_copy(update={"llm": far.llm.model_copy(update={"url": "http://127.0.0.1:9"})})
        with running(gone, far_parts) as (_, client):  # type: ignore[arg-type]
            answer = ask(client)
            assert [entry["stage"] for entry in answer["degraded"]] == ["rerank"]
            assert answer["degraded"][0]["reason"] == "llm is unavailable" and len(answer["items"]) == 10
            states = client.get("/readyz").json()["dependencies"]
            assert states["llm"]["ready"] and states["llm"]["detail"].startswith("away")
            refused = client.post("/v1/score", json=score)
            assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
    finally:
        server.stop()


def test_a_promoted_model_takes_over_and_a_wrong_one_does_not(llm_world: World, tmp_path: Path) -> None:
    with running(llm_settings(llm_world, tmp_path / "data")) as (platform, client):
        assert platform.llm is not None
        (reloader,) = [one for one in platform.reloaders if one.version == platform.llm.served.version]
        before = ask(client)["served"]["llm"]
        dataset = Dataset.load(llm_world.dataset)
        schema, tasks = dataset.feature_schema(), dataset.task_prompts()[:1]
        registry = platform.storage.artifacts
        wrong = replace(llm_model(schema, tasks), versions={"like": "0" * 16})
        publish_llm(registry, schema, wrong)
        reloader.check()
        assert reloader.refused is not None and "shortlist train llm" in reloader.refused[1]
        assert ask(client)["served"]["llm"] == before
        version = publish_llm(registry, schema, llm_model(schema, tasks, seed=1))
        reloader.check()
        answer = ask(client)
        assert answer["served"]["llm"] == version != before and answer["degraded"] == []


def test_turned_on_without_a_model_the_platform_serves_without(world: World, tmp_path: Path) -> None:
    with running(llm_settings(world, tmp_path / "data")) as (platform, client):
        answer = ask(client)
        assert answer["degraded"] == [] and answer["reranked"] == 0 and platform.llm is None
        assert client.post("/v1/score", json={"user_id": "u", "items": [{"id": "item-1"}]}).status_code == 404


def test_a_part_that_cannot_be_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="shortlist train llm"):
        build_platform(llm_settings(world, tmp_path / "data"), {"llm"})
    with pytest.raises(SettingsError, match="SHORTLIST_LLM__ENABLED"):
        build_platform(world.settings(tmp_path / "data"), {"llm"})
    with pytest.raises(SettingsError, match="SHORTLIST_LLM__URL"):
        build_platform(llm_settings(world, tmp_path / "data"), {"gateway", "retrieval", "ranking", "ingest"})
