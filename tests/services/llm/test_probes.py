"""What may not serve: other weights, another tokenizer, label words of two tokens, texts of another version."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import structlog
import torch

from models.decoder.attention import PackedCausal
from models.decoder.linear import Precision
from models.decoder.model import LlmModel
from models.decoder.prefix_cache import PrefixCache
from models.decoder.scoring import Labels, Scorer
from models.decoder.tokenizer import TokenizerError
from models.decoder.verbalizer.verbalizer import Verbalizer
from services.llm import loading
from services.llm.backend import LocalBackend
from services.llm.loading import load_llm, make_verbalizers, measure
from services.llm.probes import TOLERANCES, ProbeFailed, check_backend, check_tokenizer, probes_of, reach
from services.llm.scheduler import Scheduler, Speed
from services.llm.vllm import VllmBackend
from services.processes.remote import RemoteUnavailable
from services.settings import LlmSettings
from services.storage.artifacts import ArtifactRegistry
from tests.models.decoder.tiny import tiny_tokenizer
from tests.services.llm.world import LIKE, RATE, SCHEMA, llm_model, publish_llm, roomy_decoder, run_alone

PROBES = probes_of([Verbalizer(task, tiny_tokenizer(), SCHEMA) for task in (LIKE, RATE)], SCHEMA)


def scheduler() -> Scheduler:
    return Scheduler(Speed(1e5), logger=structlog.get_logger())


def local(seed: int = 0, precision: Precision = "fp32") -> LocalBackend:
    return LocalBackend(Scorer(roomy_decoder(seed), precision), PrefixCache(1 << 22))


class FakeServer:
    """A server's answers, computed by the plain network."""

    def __init__(
        self,
        *,
        seed: int = 0,
        shape: str = "vllm",
        tokenize: bool = True,
        encode: Callable[[str], list[int]] | None = None,
    ) -> None:
        self.decoder = roomy_decoder(seed)
        self.shape = shape
        self.tokenize = tokenize
        self.encode = encode or tiny_tokenizer().encode
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = orjson.loads(request.content)
        path = request.url.path
        if path == "/tokenize" and self.tokenize:
            return httpx.Response(200, json={"tokens": self.encode(body["prompt"]), "max_model_len": 900})
        if path != {"vllm": "/generative_scoring", "sglang": "/v1/score"}[self.shape]:
            return httpx.Response(404, json={"detail": "Not Found"})
        self.bodies.append(body)
        query = body["query"] if isinstance(body["query"], list) else self.encode(body["query"])
        items = [item if isinstance(item, list) else self.encode(item) for item in body["items"]]
        chances = self.chances([[*query, *item] for item in items], body["label_token_ids"], body["apply_softmax"])
        if self.shape == "sglang":
            return httpx.Response(200, json={"scores": [row.tolist() for row in chances]})
        data = [{"index": place, "object": "score", "score": float(row[0])} for place, row in enumerate(chances)]
        return httpx.Response(200, json={"data": data[::-1]})

    @torch.inference_mode()
    def chances(self, rows: list[list[int]], labels: list[int], softmax: bool) -> np.ndarray:  # type: ignore[type-arg]
        attention = PackedCausal([len(row) for row in rows])
        hidden = self.decoder(torch.tensor(sum(rows, [])), attention.positions(), attention)
        logits = self.decoder.logits(hidden[torch.tensor(np.cumsum([len(row) for row in rows]) - 1)]).double()
        chances = torch.softmax(logits[:, labels], 1) if softmax else torch.softmax(logits, 1)[:, labels]
        result: np.ndarray = chances.numpy()  # type: ignore[type-arg]
        return result

    def backend(self) -> VllmBackend:
        transport = httpx.MockTransport(self)
        return VllmBackend("http://server", model=None, vocab_size=384, max_tokens=2048, transport=transport)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_local_engine_answers_its_probes(precision: Precision) -> None:
    backend = local(precision=precision)
    difference = check_backend(backend, PROBES, roomy_decoder(), scheduler(), TOLERANCES[precision])
    assert difference <= TOLERANCES[precision]
    at = scheduler()
    assert measure(backend, PROBES[0], at) == at.speed.tokens_per_s > 100


def test_other_weights_fail_with_what_was_asked() -> None:
    with pytest.raises(ProbeFailed, match=r"task 'like': the local engine scores probe \d .* expected"):
        check_backend(local(seed=1), PROBES, roomy_decoder(), scheduler(), TOLERANCES["fp32"])
    with pytest.raises(ProbeFailed, match="vllm engine"):
        check_backend(FakeServer(seed=1).backend(), PROBES, roomy_decoder(), scheduler(), 0.25)


@pytest.mark.parametrize("shape", ["vllm", "sglang"])
def test_either_servers_shape_is_found(shape: str) -> None:
    server = FakeServer(shape=shape)
    backend = server.backend()
    reach(backend)
    assert backend.path == {"vllm": "/generative_scoring", "sglang": "/v1/score"}[shape]
    assert check_backend(backend, PROBES, roomy_decoder(), scheduler(), 1e-3) < 1e-3
    assert ("add_special_tokens" in server.bodies[-1]) == (shape == "vllm")
    scores = run_alone(
        lambda lease: backend.score(PROBES[0].prefix, PROBES[0].candidates, PROBES[0].labels, lease, with_mass=True)
    )
    mine = run_alone(
        lambda lease: local().score(PROBES[0].prefix, PROBES[0].candidates, PROBES[0].labels, lease, with_mass=True)
    )
    assert scores.label_mass_NQ is not None and mine.label_mass_NQ is not None
    np.testing.assert_allclose(scores.label_mass_NQ, mine.label_mass_NQ, atol=1e-5)
    np.testing.assert_allclose(scores.score_NQ, mine.score_NQ, atol=1e-4)
    assert backend.unread(PROBES[0].prefix) == 0


def test_a_server_of_neither_shape_is_named() -> None:
    def nothing(_: httpx.Request) -> httpx.Response:
        return httpx.Response(404, json={})

    transport = httpx.MockTransport(nothing)
    backend = VllmBackend("http://server", model=None, vocab_size=9, max_tokens=9, transport=transport)
    with pytest.raises(RemoteUnavailable, match="neither of /generative_scoring, /v1/score"):
        reach(backend)


@pytest.mark.parametrize("tokenize", [True, False])
def test_another_tokenizer_is_found_out(tokenize: bool) -> None:
    def shifted(text: str) -> list[int]:
        return [*tiny_tokenizer().encode(text)[1:], 7]

    good, bad = FakeServer(tokenize=tokenize), FakeServer(tokenize=tokenize, encode=shifted)
    backend = good.backend()
    check_tokenizer(backend, tiny_tokenizer(), PROBES)
    assert backend.max_tokens == (899 if tokenize else 2048), "longer prompts would be cut off there"
    with pytest.raises(ProbeFailed, match="tokenizer"):
        check_tokenizer(bad.backend(), tiny_tokenizer(), PROBES)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(500, text="boom"), "answered 500: boom"),
        (httpx.Response(200, text="<html>"), "no JSON"),
        (httpx.Response(200, json={"data": []}), "0 scores of 1 items"),
        (httpx.Response(200, json={"data": [{"index": 0, "score": 7.0}]}), "no probabilities"),
        (httpx.Response(200, json={"result": []}), "no scores"),
    ],
)
def test_an_answer_that_is_none_is_an_error(answer: httpx.Response, words: str) -> None:
    transport = httpx.MockTransport(lambda _: answer)
    backend = VllmBackend("http://server", model="m", vocab_size=384, max_tokens=99, transport=transport)
    with pytest.raises(RemoteUnavailable, match=words):
        backend.first_label([1], [[2]], Labels(3, 4), 1.0)


def test_an_artifact_is_loaded_with_the_datasets_other_tasks(tmp_path: Path) -> None:
    registry = ArtifactRegistry(tmp_path)
    version = publish_llm(registry, SCHEMA, llm_model(SCHEMA, (LIKE,)))
    settings = LlmSettings(precision="fp32")
    served = load_llm(registry.open("llm"), SCHEMA, (LIKE, RATE), settings, scheduler(), structlog.get_logger())
    assert served.version == version and list(served.verbalizers) == ["like", "rate"] and served.action == "like"
    assert served.calibration == {}, "an identity is no calibration"


def test_texts_of_another_version_are_refused(tmp_path: Path) -> None:
    registry = ArtifactRegistry(tmp_path)
    model = llm_model(SCHEMA, (LIKE,))
    publish_llm(registry, SCHEMA, replace(model, versions={"like": "0" * 16}))
    with pytest.raises(ValueError, match=r"task 'like' reads as version [0-9a-f]{16} here, .* shortlist train llm"):
        load_llm(registry.open("llm"), SCHEMA, (), LlmSettings(), scheduler(), structlog.get_logger())


def test_label_words_of_several_tokens_are_refused() -> None:
    model = llm_model(SCHEMA, (LIKE,))
    with pytest.raises(TokenizerError, match="Certainly"):
        make_verbalizers(model, [replace(RATE, yes=" Certainly")], SCHEMA)


def test_a_kernel_that_computes_wrongly_does_not_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = ArtifactRegistry(tmp_path)
    publish_llm(registry, SCHEMA, llm_model(SCHEMA, (LIKE,)))

    class Wrong(Scorer):
        def score(self, *arguments: Any, **more: Any) -> Any:
            scores = super().score(*arguments, **more)
            return replace(scores, score_NQ=scores.score_NQ + 1.0)

    monkeypatch.setattr(loading, "Scorer", Wrong)
    with pytest.raises(ProbeFailed, match="local engine"):
        load_llm(registry.open("llm"), SCHEMA, (), LlmSettings(), scheduler(), structlog.get_logger())


def test_the_artifact_is_a_folder_that_others_read(tmp_path: Path) -> None:
    model = llm_model(SCHEMA, (LIKE,))
    model.save(tmp_path / "model", SCHEMA)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "llama"
    again = LlmModel.load(tmp_path / "model", SCHEMA)
    assert again.versions == model.versions and again.blend.earned
