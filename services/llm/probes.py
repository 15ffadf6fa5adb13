"""Questions whose answer is known, asked before a model may serve.

A server with another tokenizer, a wrong template or the wrong weights answers numbers that look like any others. So
whoever computes is asked about prompts of every task, and must agree with the decoder's plain network in float32.
"""

# n = probes

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.data.schema import Feature, FeatureSchema
from models.decoder.attention import PackedCausal
from models.decoder.linear import Precision
from models.decoder.network import Decoder
from models.decoder.scoring import Candidate, Labels, Scores
from models.decoder.tokenizer import Tokenizer
from models.decoder.verbalizer.task import Interaction
from models.decoder.verbalizer.verbalizer import Verbalizer
from services.llm.backend import Backend
from services.llm.scheduler import Lease, Scheduler
from services.llm.vllm import VllmBackend
from services.processes.remote import RemoteUnavailable

TOLERANCES: dict[Precision, float] = {"fp32": 2e-3, "bf16": 0.25, "int8": 0.6}
"""Largest difference of a score from the float32 network's; scores differ by several between items."""
SERVER_TOLERANCE = 0.25
"""Of a server's scores: it may compute in bfloat16."""
PROBE_TIMEOUT_S = 120.0
_MOMENT_MS = 1_700_000_000_000
_WORDS = ("A quiet night", "The last train", "Blue, and green", "Yes. No? [maybe]")


class ProbeFailed(ValueError):
    """Whoever computes does not answer as the model does; the message says what was asked, got and expected."""


@dataclass(frozen=True, slots=True)
class Probe:
    task: str
    text: str
    prefix: tuple[int, ...]
    candidates: list[Candidate]
    labels: Labels


def probes_of(verbalizers: Sequence[Verbalizer], schema: FeatureSchema) -> list[Probe]:
    """A prompt with a history, and some items behind it, for each task."""
    probes = []
    for verbalizer in verbalizers:
        items = [_attributes(schema.item, place) for place in range(len(_WORDS))]
        masks = [0, *(1 << bit for bit in range(len(schema.actions)))]
        history = [
            Interaction(item, masks[place % len(masks)], _MOMENT_MS + place * 86_400_000)
            for place, item in enumerate(items)
        ]
        now_ms = _MOMENT_MS + 7 * 86_400_000
        prompt = verbalizer.prefix(_attributes(schema.user, 1), history, now_ms)
        candidates = [verbalizer.candidate(item, None, now_ms, prompt.newest_ms) for item in items[:3]]
        probes.append(Probe(verbalizer.task.name, prompt.text, prompt.tokens, candidates, verbalizer.labels))
    return probes


def check_backend(
    backend: Backend, probes: Sequence[Probe], decoder: Decoder, scheduler: Scheduler, tolerance: float
) -> float:
    """Ask the probes; return the largest difference. Raises ProbeFailed, and what the backend raises."""
    largest = 0.0
    for probe in probes:
        expected = reference_scores(decoder, probe)
        got = _ask(backend, probe, scheduler)
        difference = float(np.abs(got - expected).max())
        if not difference <= tolerance:
            row = int(np.abs(got - expected).max(axis=1).argmax())
            raise ProbeFailed(
                f"task {probe.task!r}: the {backend.name} engine scores probe {row} {got[row].tolist()}, expected "
                f"{expected[row].tolist()} within {tolerance}; it serves other weights, or reads prompts otherwise"
            )
        largest = max(largest, difference)
    return largest


@torch.inference_mode()
def reference_scores(decoder: Decoder, probe: Probe) -> NDArray[np.float32]:
    """float32[n, Q]: each question of each candidate as a sequence of its own, in the plain network."""
    rows = [[*probe.prefix, *one.body, *question] for one in probe.candidates for question in one.questions]
    attention = PackedCausal([len(row) for row in rows])
    tokens = torch.tensor([token for row in rows for token in row])
    hidden = decoder(tokens, attention.positions(), attention)
    ends = torch.tensor(np.cumsum([len(row) for row in rows]) - 1)
    logits = decoder.logits(hidden[ends], torch.tensor([probe.labels.yes, probe.labels.no]))
    scores: NDArray[np.float32] = (logits[:, 0] - logits[:, 1]).numpy()
    return scores.reshape(len(probe.candidates), -1)


def check_tokenizer(backend: VllmBackend, tokenizer: Tokenizer, probes: Sequence[Probe]) -> None:
    """Ask a server to read texts, and compare with our tokens. Raises ProbeFailed, RemoteUnavailable, TimeoutError.

    By its /tokenize where it has one; else a prompt as text must score as the same prompt as tokens does.
    """
    for probe in probes:
        plain = tokenizer.encode(probe.text)
        try:
            for token in (probe.labels.yes, probe.labels.no):
                _check_text(backend, tokenizer.decode([token]), [token])
            _check_text(backend, probe.text, plain)
        except _NoTokenize:
            rows = [list(one.questions[0]) for one in probe.candidates[:1]]
            by_text, by_tokens = (
                backend.first_label(query, rows, probe.labels, PROBE_TIMEOUT_S) for query in (probe.text, plain)
            )
            if abs(by_text[0] - by_tokens[0]) > 1e-3:
                raise ProbeFailed(
                    f"task {probe.task!r}: the server scores a prompt as text {by_text[0]:.4f} and as our tokens "
                    f"{by_tokens[0]:.4f}; it has another tokenizer"
                ) from None


def reach(backend: VllmBackend) -> None:
    """Find out which of the two shapes the server answers. Raises RemoteUnavailable, TimeoutError."""
    paths = ("/generative_scoring", "/v1/score")
    reasons = []
    for path in paths:
        backend.path = path
        try:
            backend.first_label([1, 2], [[3]], Labels(0, 1), PROBE_TIMEOUT_S)
        except RemoteUnavailable as error:
            if " 404" not in error.detail:
                raise
            reasons.append(error.detail)
            continue
        return
    raise RemoteUnavailable("llm server", f"{backend.url} answers neither of {', '.join(paths)}: {'; '.join(reasons)}")


class _NoTokenize(Exception):
    pass


def _check_text(backend: VllmBackend, text: str, expected: Sequence[int]) -> None:
    try:
        answer = backend.post("/tokenize", {"prompt": text, "add_special_tokens": False}, PROBE_TIMEOUT_S)
    except RemoteUnavailable as error:
        if " 404" in error.detail or " 405" in error.detail:
            raise _NoTokenize from None
        raise
    length = answer.get("max_model_len")
    if isinstance(length, int):
        # A server cuts off what is longer, without a word; one position is for the label.
        backend.max_tokens = min(backend.max_tokens, length - 1)
    got = answer.get("tokens")
    if got != list(expected):
        raise ProbeFailed(f"the server reads {text[:80]!r} as tokens {got}, the model's tokenizer as {list(expected)}")


def _ask(backend: Backend, probe: Probe, scheduler: Scheduler) -> NDArray[np.float32]:
    """Score at once, past the queue: at the start there is none, and a reload has its own time."""

    def work(lease: Lease) -> Generator[None, None, Scores]:
        return (yield from backend.score(probe.prefix, probe.candidates, probe.labels, lease))

    return scheduler.run_aside(work, PROBE_TIMEOUT_S).score_NQ


def _attributes(features: Sequence[Feature], place: int) -> dict[str, object]:
    words = _WORDS[place % len(_WORDS)]
    made: dict[str, Callable[[], object]] = {
        "keyword": lambda: words.split()[0],
        "keyword_list": lambda: words.split()[:2],
        "number": lambda: 1990 + place,
        "timestamp": lambda: _MOMENT_MS - place * 86_400_000 * 400,
        "text": lambda: words,
    }
    return {feature.name: made[feature.kind]() for feature in features}
