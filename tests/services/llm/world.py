"""A tiny language model over a tiny schema: tasks, an artifact, an engine without storage."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import numpy as np
import structlog

from models.data.schema import Action, Feature, FeatureSchema, Signal
from models.data.state import History, UserState
from models.decoder.blend import HISTORY_EDGES, Blend, Weights
from models.decoder.model import LlmModel, question_names
from models.decoder.network import Decoder
from models.decoder.prefix_cache import PrefixCache
from models.decoder.scoring import Scorer
from models.decoder.verbalizer.task import HistorySelection, Question, TaskPrompt
from models.decoder.verbalizer.verbalizer import Verbalizer
from models.ranking.calibration import Calibration, Isotonic
from services.llm.backend import Backend, LocalBackend
from services.llm.engine import LlmEngine, ServedLlm
from services.llm.items import ItemAttributes, Numbers
from services.llm.scheduler import Lease, Scheduler, Speed
from services.metrics import Metrics
from services.retrieval.engine import ItemChange
from services.storage.artifacts import ArtifactRegistry, Provenance
from tests.models.decoder.tiny import tiny_decoder, tiny_tokenizer

T = TypeVar("T")
DAY_MS = 86_400_000
NOW_MS = 1_700_000_000_000

SCHEMA = FeatureSchema(
    item=(Feature("title", "text"), Feature("genre", "keyword_list")),
    user=(Feature("age", "number"),),
    actions=(Action("watch", "rating"), Action("like", "rating", min_value=4)),
    signals=(Signal("watch.all", "watch", None), Signal("like.all", "like", None)),
    positive="like",
    tasks=("watch", "like"),
)

LIKE = TaskPrompt(
    name="like",
    instruction="Films that a member watched, and whether the member liked them.",
    member="The member is {age} years old.",
    item="Film: {title}[, {genre}][, {watch.all|top}]",
    questions=(Question(name="like", text="Liked?", action="like"),),
    history=HistorySelection(max_entries=20, max_tokens=600),
)
RATE = TaskPrompt(
    name="rate",
    instruction="Films, and two questions about each.",
    item="Film: {title}",
    questions=(
        Question(name="like", text="Liked?", action="like"),
        Question(name="watch", text="Watched?", action="watch"),
    ),
    history=HistorySelection(max_entries=20, max_tokens=600),
)

EARNED = Blend((Weights(1.0, 0.5, 0.1),) * (len(HISTORY_EDGES) + 1), Weights(1.0, 0.5, 0.1))


def film(number: int, **more: object) -> dict[str, object]:
    return {"title": f"The {number}. film", "genre": ["comedy" if number % 2 else "drama"], **more}


def member(length: int, first: int = 0) -> UserState:
    """A member who watched films, the newest yesterday, and liked every other one."""
    keys = np.arange(first, first + length, dtype=np.int64)
    masks = np.where(keys % 2 == 0, 3, 1).astype(np.uint32)
    ts_ms = NOW_MS - DAY_MS * np.arange(length, 0, -1)
    return UserState({"age": 30 + first}, History(keys, masks, np.full(length, np.nan, np.float32), ts_ms))


def roomy_decoder(seed: int = 0) -> Decoder:
    """The tiny decoder with positions for a history."""
    return tiny_decoder(seed, max_position_embeddings=2048)


def served_by(backend: Backend, blend: Blend = EARNED, *tasks: TaskPrompt, schema: FeatureSchema = SCHEMA) -> ServedLlm:
    tokenizer = tiny_tokenizer()
    chosen = tasks or (LIKE, RATE)
    return ServedLlm(
        version="tiny-1",
        tokenizer=tokenizer,
        verbalizers={task.name: Verbalizer(task, tokenizer, schema) for task in chosen},
        calibration={"rate.watch": Isotonic(np.array([-1.0, 1.0]), np.array([-0.2, 0.1]))},
        blend=blend,
        backend=backend,
    )


def tiny_backend(max_bytes: int = 1 << 24) -> LocalBackend:
    return LocalBackend(Scorer(roomy_decoder(), "fp32"), PrefixCache(max_bytes))


class Clock:
    """Seconds that pass only when a test says so: on a busy machine real ones pass while nobody looks."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class EngineWorld:
    """An engine over 40 films; its scheduler is stepped by hand."""

    def __init__(
        self,
        backend: Backend | None = None,
        *,
        blend: Blend = EARNED,
        tokens_per_s: float = 1e5,
        clock: Callable[[], float] = time.monotonic,
        max_candidates: int = 30,
    ) -> None:
        logger, metrics = structlog.get_logger(), Metrics()
        self.masses: list[float] = []
        self.scheduler = Scheduler(Speed(tokens_per_s), logger=logger, clock=clock)
        items = ItemAttributes()
        numbers = Numbers(
            SCHEMA, items, lambda keys: np.stack([keys + 1.0, keys / 2.0], axis=1), metrics=metrics, logger=logger
        )
        self.engine = LlmEngine(
            served_by(backend or tiny_backend(), blend),
            items,
            numbers,
            self.scheduler,
            max_candidates=max_candidates,
            max_prompt_tokens=600,
            note_mass=self.masses.append,
        )
        self.engine.apply_items([ItemChange(number, film(number)) for number in range(40)])
        numbers.refresh()

    def deadline_s(self, in_s: float = 60.0) -> float:
        return self.scheduler.clock() + in_s

    def result(self, future: Future[T]) -> T:
        while not future.done():
            assert self.scheduler.step(), "nothing is left to do and there is no result"
        return future.result(0)


def run_alone(work: Callable[[Lease], Generator[None, None, T]]) -> T:
    """Run a backend's work as the engine's scheduler would."""
    return Scheduler(Speed(1e5), logger=structlog.get_logger()).run_aside(work, 60.0)


def llm_model(schema: FeatureSchema, tasks: tuple[TaskPrompt, ...], blend: Blend = EARNED, seed: int = 0) -> LlmModel:
    tokenizer = tiny_tokenizer()
    versions = {task.name: Verbalizer(task, tokenizer, schema).version for task in tasks}
    return LlmModel(roomy_decoder(seed), tokenizer, tasks, versions, Calibration.identity(question_names(tasks)), blend)


def publish_llm(registry: ArtifactRegistry, schema: FeatureSchema, model: LlmModel) -> str:
    """Publish a model as training does, and promote it."""

    def write(folder: Path) -> None:
        model.save(folder, schema)

    version = registry.publish("llm", write, Provenance(schema_hash=schema.hash()))
    registry.promote("llm", version)
    return version
