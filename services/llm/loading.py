"""From a promoted artifact to a model that may serve: read, prepared, and asked questions whose answers are known."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence

import structlog

from models.data.schema import FeatureSchema
from models.decoder.model import LlmModel, question_names
from models.decoder.prefix_cache import PrefixCache
from models.decoder.scoring import Scorer
from models.decoder.verbalizer.task import TaskPrompt
from models.decoder.verbalizer.verbalizer import Verbalizer
from services.llm.backend import Backend, LocalBackend, size_of
from services.llm.engine import ServedLlm
from services.llm.probes import (
    PROBE_TIMEOUT_S,
    SERVER_TOLERANCE,
    TOLERANCES,
    Probe,
    check_backend,
    check_tokenizer,
    probes_of,
    reach,
)
from services.llm.scheduler import Lease, Scheduler
from services.llm.vllm import VllmBackend
from services.settings import LlmSettings
from services.storage.artifacts import Artifact


def load_llm(
    artifact: Artifact,
    schema: FeatureSchema,
    tasks: Sequence[TaskPrompt],
    settings: LlmSettings,
    scheduler: Scheduler,
    logger: structlog.typing.FilteringBoundLogger,
) -> ServedLlm:
    """Return the model behind the engine that the settings choose, its speed measured and its probes answered.

    tasks: the dataset's; those that the model was not trained on are answered too, and not calibrated.

    Raises ValueError where the artifact fits another schema or other texts, where a label word is not one token, and
    where whoever computes does not answer as the model does; RemoteUnavailable or TimeoutError where it is away.
    """
    model = LlmModel.load(artifact.folder, schema)
    verbalizers = make_verbalizers(model, tasks, schema)
    probes = probes_of(list(verbalizers.values()), schema)
    tolerance = TOLERANCES[settings.precision]
    backend: Backend
    if settings.engine == "vllm":
        assert settings.engine_url is not None
        server = VllmBackend(
            settings.engine_url,
            model=settings.engine_model,
            vocab_size=model.decoder.config.vocab_size,
            max_tokens=model.decoder.config.max_position_embeddings,
            api_key=settings.engine_api_key,
        )
        reach(server)
        check_tokenizer(server, model.tokenizer, probes)
        backend, tolerance = server, SERVER_TOLERANCE
    else:
        backend = LocalBackend(Scorer(model.decoder, settings.precision), PrefixCache(settings.cache_bytes))
    difference = check_backend(backend, probes, model.decoder, scheduler, tolerance)
    speed = measure(backend, probes[0], scheduler)
    logger.info(
        "language model answers as its network does",
        version=artifact.version,
        engine=backend.name,
        precision=settings.precision if backend.name == "local" else None,
        tasks=list(verbalizers),
        largest_difference=difference,
        tokens_per_s=round(speed),
        blend_earned=model.blend.earned,
    )
    names = question_names(model.tasks)
    maps = dict(zip(names, model.calibration.maps, strict=True))
    return ServedLlm(
        version=artifact.version,
        tokenizer=model.tokenizer,
        verbalizers=verbalizers,
        calibration={name: fitted for name, fitted in maps.items() if len(fitted.raw)},
        blend=model.blend,
        backend=backend,
    )


def make_verbalizers(model: LlmModel, tasks: Sequence[TaskPrompt], schema: FeatureSchema) -> Mapping[str, Verbalizer]:
    """By name: the model's tasks, the ranking one first, then those of the dataset that it has not.

    Raises ValueError for a task of the model's that this code puts into other words than it was trained with, and
    TokenizerError for a label word that is not one token.
    """
    trained = [Verbalizer(task, model.tokenizer, schema) for task in model.tasks]
    for verbalizer in trained:
        name = verbalizer.task.name
        if model.versions.get(name) != verbalizer.version:
            raise ValueError(
                f"task {name!r} reads as version {verbalizer.version} here, and the model was trained with "
                f"{model.versions.get(name)}; train it again: shortlist train llm"
            )
    known = {verbalizer.task.name for verbalizer in trained}
    others = [Verbalizer(task, model.tokenizer, schema) for task in tasks if task.name not in known]
    return {verbalizer.task.name: verbalizer for verbalizer in [*trained, *others]}


def measure(backend: Backend, probe: Probe, scheduler: Scheduler) -> float:
    """Score the probe's items many times over, behind a prompt that is read anew; return, and note, tokens a second."""
    rows = [*probe.candidates] * 8
    vocab_size = backend.vocab_size
    # Other tokens than the probe's, so that nothing of it is held.
    prefix = [(token + 1) % vocab_size for token in probe.prefix]
    num_tokens = len(prefix) + sum(map(size_of, rows))

    def work(lease: Lease) -> Generator[None, None, None]:
        yield from backend.score(prefix, rows, probe.labels, lease)

    started_s = time.perf_counter()
    scheduler.run_aside(work, PROBE_TIMEOUT_S)
    scheduler.speed.reset(num_tokens / (time.perf_counter() - started_s))
    return scheduler.speed.tokens_per_s
