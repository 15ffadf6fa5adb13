"""A published artifact, served by a real vLLM and by our own engine: the same answers. See test_vllm_server.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import structlog

from models.decoder.model import LlmModel, question_names
from models.decoder.verbalizer.verbalizer import Verbalizer
from models.ranking.calibration import Calibration
from services.llm.calls import Asked, RerankCall, ScoreCall
from services.llm.loading import load_llm
from services.llm.scheduler import Scheduler, Speed
from services.settings import LlmSettings
from services.storage.artifacts import ArtifactRegistry
from tests.models.decoder.tiny import tiny_decoder, tiny_tokenizer
from tests.services.llm.vllm_server import PYTHON, serve_vllm
from tests.services.llm.world import EARNED, LIKE, NOW_MS, RATE, SCHEMA, EngineWorld, member, publish_llm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON, reason="SHORTLIST_VLLM_PYTHON names no python with vLLM; see test_vllm_server.py"),
]


def test_an_artifact_behind_a_real_vllm_answers_as_here(tmp_path: Path) -> None:
    tokenizer, tasks = tiny_tokenizer(), (LIKE, RATE)
    versions = {task.name: Verbalizer(task, tokenizer, SCHEMA).version for task in tasks}
    # Heads of a size that vLLM's kernels have.
    decoder = tiny_decoder(hidden_size=128, head_dim=32, max_position_embeddings=2048)
    identity = Calibration.identity(question_names(tasks))
    registry = ArtifactRegistry(tmp_path / "artifacts")
    publish_llm(registry, SCHEMA, LlmModel(decoder, tokenizer, tasks, versions, identity, EARNED))
    artifact = registry.open("llm")
    scheduler = Scheduler(Speed(1e4), logger=structlog.get_logger())
    here = EngineWorld()
    settings = LlmSettings(precision="fp32")
    here.engine.replace(load_llm(artifact, SCHEMA, (), settings, scheduler, structlog.get_logger()))
    with serve_vllm(artifact.folder, tmp_path / "vllm.log", 1024) as url:
        settings = LlmSettings(engine="vllm", engine_url=url, engine_model="llm")
        far = load_llm(artifact, SCHEMA, (), settings, scheduler, structlog.get_logger())
        assert far.backend.max_tokens == 1023
        there = EngineWorld()
        there.engine.replace(far)
        rows = np.arange(25, 35)
        call = RerankCall(user=member(9), keys=rows, signals=np.stack([rows + 1.0, rows / 2.0], axis=1), now_ms=NOW_MS)
        asked = ScoreCall(
            task="rate", user=member(4), items=[Asked(key=7, attributes={})], now_ms=NOW_MS, with_mass=True
        )
        answers = []
        for world in (here, there):
            reranking = world.result(world.engine.rerank(call, world.deadline_s()))
            answered = world.result(world.engine.score(asked, world.deadline_s()))
            answers.append((reranking.scores, answered.scores, answered.label_mass))
        for ours, theirs in zip(*answers, strict=True):
            assert ours is not None and theirs is not None
            print(f"largest difference {np.abs(ours - theirs).max():.2e}")
            np.testing.assert_allclose(ours, theirs, atol=1e-3)
