"""The LLM ranker of a process: model, queue, texts and numbers, in the order in which they need one another."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
import torch

from models.data.schema import FeatureSchema
from models.decoder.verbalizer.task import TaskPrompt
from services.llm.backend import LocalBackend
from services.llm.engine import LlmEngine
from services.llm.items import ItemAttributes, Numbers, read_numbers
from services.llm.loading import load_llm
from services.llm.scheduler import Outcome, Scheduler, Speed
from services.metrics import Metrics
from services.settings import LlmSettings
from services.storage.artifacts import Artifact
from services.storage.storage import Storage

NICENESS = 5
GUESS_TOKENS_PER_S = 1000.0
"""Until the start has measured it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmPart:
    """What a process with a language model has."""

    engine: LlmEngine
    scheduler: Scheduler
    numbers: Numbers
    items_offset: str
    """Place in the items stream from which to follow."""
    schema: FeatureSchema
    tasks: Sequence[TaskPrompt]
    settings: LlmSettings
    logger: structlog.typing.FilteringBoundLogger

    def replace(self, promoted: Artifact) -> None:
        """Answer with another model from the next question on. Raises what loading raises; then the old one stays."""
        self.engine.replace(load_llm(promoted, self.schema, self.tasks, self.settings, self.scheduler, self.logger))


def build_llm(
    artifact: Artifact,
    settings: LlmSettings,
    schema: FeatureSchema,
    tasks: Sequence[TaskPrompt],
    storage: Storage,
    *,
    metrics: Metrics,
    logger: structlog.typing.FilteringBoundLogger,
) -> LlmPart:
    """Load the model and everything that it is told. Raises what loading raises."""

    def note(outcome: Outcome) -> None:
        metrics.llm_work.labels(outcome).inc()

    scheduler = Scheduler(
        Speed(GUESS_TOKENS_PER_S), logger=logger, note=note, prepare=lambda: _prepare(settings.threads)
    )
    others = torch.get_num_threads()
    torch.set_num_threads(settings.threads)  # of this thread, which measures the speed
    try:
        served = load_llm(artifact, schema, tasks, settings, scheduler, logger)
    finally:
        torch.set_num_threads(others)
    items = ItemAttributes()
    offset = storage.streams.last_offset("items")
    for document in storage.items.scan():
        items.put(document.key, document.attributes)
    numbers = Numbers(schema, items, read_numbers(storage, schema), metrics=metrics, logger=logger)
    numbers.refresh()
    engine = LlmEngine(
        served,
        items,
        numbers,
        scheduler,
        max_candidates=settings.max_candidates,
        max_prompt_tokens=settings.max_prompt_tokens,
        note_mass=metrics.llm_label_mass.observe,
    )
    _watch(metrics, engine)
    return LlmPart(
        engine=engine,
        scheduler=scheduler,
        numbers=numbers,
        items_offset=offset,
        schema=schema,
        tasks=tasks,
        settings=settings,
        logger=logger,
    )


def _prepare(num_threads: int) -> None:
    """Of the thread that computes, and of those that its passes start: on a full machine slates come first."""
    torch.set_num_threads(num_threads)
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _watch(metrics: Metrics, engine: LlmEngine) -> None:
    scheduler = engine.scheduler

    def cached_bytes() -> float:
        backend = engine.served.backend
        return float(backend.cache.num_bytes) if isinstance(backend, LocalBackend) else 0.0

    metrics.watch("llm_waiting", "Requests that wait for the language model", lambda: float(len(scheduler)))
    metrics.watch("llm_tokens_per_s", "Measured speed of the language model", lambda: scheduler.speed.tokens_per_s)
    metrics.watch("llm_tokens", "Tokens computed by the language model", lambda: float(scheduler.num_tokens))
    metrics.watch("llm_prefix_bytes", "Memory that held prompts take", cached_bytes)
