"""The job that fine-tunes the decoder and publishes it with what its scores are worth."""

# N = candidates, Q = questions

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.data.events import EventTable
from models.decoder.blend import Blend
from models.decoder.checkpoint import read_decoder
from models.decoder.exposures import ExposureConfig, Exposures, find_exposures
from models.decoder.model import LlmModel
from models.decoder.network import Decoder
from models.decoder.rehearsal import RehearsalConfig, rehearse
from models.decoder.scoring import Scorer
from models.decoder.sequences import Lesson
from models.decoder.sft import SftConfig, fine_tune
from models.decoder.shorten import shorten
from models.decoder.telling import interactions_of, tell
from models.decoder.tokenizer import Tokenizer
from models.decoder.verbalizer.task import Interaction, TaskPrompt
from models.decoder.verbalizer.verbalizer import Verbalizer
from models.evaluate import auc
from models.ranking.calibration import Calibration
from models.train.loop import LoopReport, StageProgress, stage_of
from services.training.data import NothingToTrainOn, TrainingData
from services.training.opinions import Opinions


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmConfig:
    num_layers: int | None = 8
    """First layers of the pretrained decoder that are kept; None: all."""
    sft: SftConfig = field(default_factory=SftConfig)
    exposures: ExposureConfig = field(default_factory=ExposureConfig)
    """With no action named, every event that is one of the ranking tasks' actions is an exposure."""
    other_share: float = 0.25
    """Share of the tokens that tasks other than the ranking one have together."""
    single_share: float = 0.1
    """Tokens of conversations of one turn, for each of the longer ones: a style or a task that keeps what was only
    shown out of the history asks about each alone, behind a whole prompt, and that could take most of the tokens. They
    are drawn evenly; what this does to the level of the scores, calibration mends. Without longer ones all are kept."""
    held_out_share: float = 0.12
    """Share of the members that calibrate and do not train, where no ranker says which."""
    calibration_turns: int = 2500
    """Held-out answers that calibrate the ranking task; the other tasks have a quarter of it each."""
    blend_requests: int = 150
    blend_candidates: int = 20
    """Of each request, the ranker's best: what is reranked in service."""
    rehearsal: RehearsalConfig = field(default_factory=RehearsalConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.other_share < 1.0 or not 0.0 < self.held_out_share < 1.0 or self.single_share < 0.0:
            raise ValueError(
                f"other_share is {self.other_share}, held_out_share {self.held_out_share}, single_share "
                f"{self.single_share}; expected 0 to 1"
            )
        if min(self.calibration_turns, self.blend_requests, self.blend_candidates) < 1:
            raise ValueError(f"calibration_turns, blend_requests and blend_candidates must be >= 1: {self}")


@dataclass(frozen=True, slots=True)
class TrainedLlm:
    model: LlmModel
    report: LoopReport
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _World:
    """Exposures in words, of every member."""

    data: TrainingData
    exposures: Exposures
    interactions: Sequence[Interaction]
    held_out: frozenset[int]
    max_negatives: float

    def part(self, *, held_out: bool) -> tuple[Exposures, list[Interaction]]:
        inside = np.isin(self.exposures.user_keys, np.fromiter(self.held_out, np.int64, len(self.held_out)))
        rows = inside if held_out else ~inside
        places = np.flatnonzero(rows)
        exposures = self.exposures.take(places)
        if not held_out:  # what is held out is judged as it came
            exposures, kept = exposures.thinned(self.max_negatives, seed=0)
            places = places[kept]
        return exposures, [self.interactions[place] for place in places.tolist()]


def fit_llm(
    data: TrainingData,
    tasks: Sequence[TaskPrompt],
    pretrained: Path,
    config: LlmConfig,
    opinions: Opinions | None,
    progress: StageProgress | None = None,
    checkpoint: Path | None = None,
) -> TrainedLlm:
    """Fine-tune the decoder of the folder `pretrained`, calibrate its answers, and weigh them against the ranker's.

    Members that the ranker's training held out train neither model; they calibrate and weigh. opinions: None: there is
    no ranker, and the decoder's scores get no weight beside one.

    Raises NothingToTrainOn where nobody was exposed to anything, ValueError where there is no task.
    """
    if not tasks:
        raise ValueError("there is no task in words; expected an [llm] section in the dataset description")
    tokenizer = Tokenizer.from_folder(pretrained)
    decoder = read_decoder(pretrained)
    if config.num_layers is not None:
        decoder = shorten(decoder, config.num_layers)
    verbalizers = [Verbalizer(task, tokenizer, data.schema) for task in tasks]
    world = _tell_world(data, verbalizers[0], config, opinions)
    lessons = _lessons(world, verbalizers, config)
    report = fine_tune(decoder, lessons, config.sft, stage_of(progress, "fine-tune the decoder"), checkpoint)
    # As it is served: what calibrates and weighs must be the scores that will be read.
    decoder = decoder.to(torch.bfloat16)
    calibration, metrics = _calibrate(decoder, world, verbalizers, config, progress)
    blend = Blend.ranker_alone()
    if opinions is not None and opinions.requests:
        blend = _weigh(decoder, world, verbalizers[0], opinions, progress)
    versions = {task.name: verbalizer.version for task, verbalizer in zip(tasks, verbalizers, strict=True)}
    model = LlmModel(decoder, tokenizer, tuple(tasks), versions, calibration, blend)
    return TrainedLlm(model, report, {**metrics, **_blend_metrics(blend)})


def _tell_world(data: TrainingData, verbalizer: Verbalizer, config: LlmConfig, opinions: Opinions | None) -> _World:
    exposed = config.exposures
    if not exposed.exposed:
        exposed = ExposureConfig(
            exposed=data.schema.tasks, horizon_ms=exposed.horizon_ms, max_negatives=exposed.max_negatives
        )
    asked = verbalizer.task.questions[0].action or data.schema.positive
    exposures = find_exposures(data.schema, _with_impressions(data), asked, exposed)
    if not len(exposures):
        raise NothingToTrainOn(f"no member was exposed to anything among {len(data.events)} events")
    items = dict(zip(data.item_keys.tolist(), data.item_attributes, strict=True))
    interactions = interactions_of(data.schema, items, data.events, exposures, verbalizer.task.numbers)
    if opinions is not None:
        held_out = opinions.members
    else:
        users = np.unique(exposures.user_keys)
        drawn = np.random.default_rng(config.seed).random(len(users)) < config.held_out_share
        held_out = frozenset(users[drawn].tolist())
    return _World(data, exposures, interactions, held_out, exposed.max_negatives)


def _with_impressions(data: TrainingData) -> EventTable:
    """Return actions and impressions in one order of time."""
    parts = (data.events, data.impressions)
    order = np.argsort(np.concatenate([part.ts_ms for part in parts]), kind="stable")
    return EventTable(
        *(np.concatenate([getattr(part, column.name) for part in parts])[order] for column in fields(EventTable))
    )


def _lessons(world: _World, verbalizers: Sequence[Verbalizer], config: LlmConfig) -> list[Lesson]:
    """Return the ranking task told of every training member, and of the other tasks as much as they may have."""
    first, others = verbalizers[0], verbalizers[1:]
    lessons = [_affordable(_lesson(first, world, *world.part(held_out=False)), config)]
    if not others or not config.other_share:
        return lessons
    room = config.other_share / (1.0 - config.other_share) * lessons[0].num_tokens() / len(others)
    users = np.unique(world.exposures.user_keys)
    for number, verbalizer in enumerate(others):
        random = np.random.default_rng((config.seed, number))
        lesson = _affordable(_lesson(verbalizer, world, *world.part(held_out=False)), config)
        order = random.permutation(len(lesson.conversations)).tolist()
        sizes = np.cumsum([lesson.conversations[place].num_tokens() for place in order])
        kept = order[: max(1, int(np.searchsorted(sizes, room)))] if len(users) else []
        lessons.append(Lesson([lesson.conversations[place] for place in kept], lesson.yes, lesson.no))
    return lessons


def _affordable(lesson: Lesson, config: LlmConfig) -> Lesson:
    """Return the lesson with as many conversations of one turn as `single_share` pays for."""
    long = [told for told in lesson.conversations if len(told.turns) > 1]
    single = [told for told in lesson.conversations if len(told.turns) == 1]
    if not long:
        return lesson
    room = config.single_share * sum(told.num_tokens() for told in long)
    order = np.random.default_rng(config.seed).permutation(len(single)).tolist()
    ends = np.cumsum([single[place].num_tokens() for place in order])
    kept = order[: int(np.searchsorted(ends, room, side="right"))]
    return Lesson([*long, *(single[place] for place in sorted(kept))], lesson.yes, lesson.no)


def _lesson(verbalizer: Verbalizer, world: _World, exposures: Exposures, interactions: Sequence[Interaction]) -> Lesson:
    told = tell(verbalizer, world.data.users, exposures, interactions)
    return Lesson([conversation for conversation, _ in told], verbalizer.labels.yes, verbalizer.labels.no)


def _calibrate(
    decoder: Decoder,
    world: _World,
    verbalizers: Sequence[Verbalizer],
    config: LlmConfig,
    progress: StageProgress | None,
) -> tuple[Calibration, dict[str, float]]:
    """Return a map for every question, fitted on held-out members' answers, and how good those answers are."""
    report = stage_of(progress, "calibrate the decoder")
    names: list[str] = []
    fitted: list[Calibration] = []
    metrics: dict[str, float] = {}
    for number, verbalizer in enumerate(verbalizers):
        turns = config.calibration_turns if number == 0 else max(1, config.calibration_turns // 4)
        found = _answers(decoder, world, verbalizer, config, turns)
        for place, question in enumerate(verbalizer.questions):
            rows = found.question == place
            name = f"{verbalizer.task.name}.{question}"
            names.append(name)
            scores, labels = found.score[rows], found.label[rows]
            if not len(scores):
                fitted.append(Calibration.identity((name,)))
                continue
            fitted.append(Calibration.fit((name,), scores[:, None], labels[:, None], found.member[rows]))
            metrics |= {f"{name}_auc": auc(scores, labels), f"{name}_held_out": float(len(scores))}
        if report is not None:
            report(number + 1, len(verbalizers), {})
    reports = tuple(report for of in fitted for report in of.reports)
    maps = tuple(fitted_map for of in fitted for fitted_map in of.maps)
    return Calibration(tuple(names), maps, reports if len(reports) == len(names) else ()), metrics


@dataclass(frozen=True, slots=True)
class _Answers:
    """Held-out answers of one task, in columns of one length."""

    score: NDArray[np.float32]
    label: NDArray[np.bool_]
    question: NDArray[np.int64]
    """Place among the task's questions."""
    member: NDArray[np.int64]
    """Number of the conversation, which is of one member."""


def _answers(decoder: Decoder, world: _World, verbalizer: Verbalizer, config: LlmConfig, max_turns: int) -> _Answers:
    """Score held-out members' turns, member by member, until there are `max_turns`."""
    questions = [tuple(question) for question in verbalizer.candidate({}, None, 0).questions]
    columns: list[tuple[float, bool, int, int]] = []
    lesson = _lesson(verbalizer, world, *world.part(held_out=True))
    # Members' keys are hashes, so the first of them are any of them.
    for member, conversation in enumerate(lesson.conversations):
        if len(columns) >= max_turns:
            break
        scores = rehearse(decoder, conversation, lesson.yes, lesson.no, config.rehearsal)
        columns += [
            (float(score), turn.label, _question_of(turn.tokens, questions), member)
            for score, turn in zip(scores, conversation.turns, strict=True)
        ]
    score, label, question, who = zip(*columns, strict=True) if columns else ((), (), (), ())
    return _Answers(
        np.array(score, np.float32), np.array(label, np.bool_), np.array(question, np.int64), np.array(who, np.int64)
    )


def _question_of(tokens: NDArray[np.int64], questions: Sequence[tuple[int, ...]]) -> int:
    ends = [place for place, question in enumerate(questions) if tuple(tokens[-len(question) :]) == question]
    return max(ends, key=lambda place: len(questions[place]))


def _weigh(
    decoder: Decoder,
    world: _World,
    verbalizer: Verbalizer,
    opinions: Opinions,
    progress: StageProgress | None,
) -> Blend:
    """Fit the blend on the ranker's best candidates of requests that trained neither model."""
    report = stage_of(progress, "weigh the decoder")
    scorer = Scorer(decoder, "bf16")
    by_member: dict[int, list[int]] = {}
    for row, user in enumerate(world.exposures.user_keys.tolist()):
        by_member.setdefault(user, []).append(row)
    requests = opinions.requests
    sizes = [len(request.keys) for request in requests]
    asked_ms = np.repeat([request.now_ms for request in requests], sizes)
    candidates = _as_candidates(world, opinions, asked_ms, verbalizer)
    logits, scores, lengths, labels, members = [], [], [], [], []
    first = 0
    for number, (request, size) in enumerate(zip(requests, sizes, strict=True), start=1):
        rows = by_member.get(request.user_key, [])
        history = [world.interactions[row] for row in rows if world.exposures.ts_ms[row] < request.now_ms]
        prompt = verbalizer.prefix(world.data.users.get(request.user_key, {}), history, request.now_ms)
        told = [
            verbalizer.candidate(item.attributes, item.signals, request.now_ms, prompt.newest_ms)
            for item in candidates[first : first + size]
        ]
        first += size
        found = scorer.score(scorer.prefill(prompt.tokens), told, verbalizer.labels)
        logits.append(request.logits)
        scores.append(found.score_NQ[:, 0])
        labels.append(request.labels)
        lengths.append(np.full(size, len(history)))
        members.append(np.full(size, request.user_key))
        if report is not None:
            report(number, len(requests), {})
    logit_N, score_N, length_N, label_N, member_N = (
        np.concatenate(parts) for parts in (logits, scores, lengths, labels, members)
    )
    return Blend.fit(logit_N, score_N, length_N, label_N, member_N)


def _as_candidates(
    world: _World, opinions: Opinions, ts_ms: NDArray[np.int64], verbalizer: Verbalizer
) -> list[Interaction]:
    """Return the requests' candidates, in order, each as it stood at its request's instant."""
    keys = np.concatenate([request.keys for request in opinions.requests])
    nothing = np.zeros(len(keys))
    shown = Exposures(
        nothing.astype(np.int64), keys, ts_ms, nothing.astype(np.uint32), nothing.astype(np.bool_),
        nothing.astype(np.float32),
    )  # fmt: skip
    items = dict(zip(world.data.item_keys.tolist(), world.data.item_attributes, strict=True))
    return interactions_of(world.data.schema, items, world.data.events, shown, verbalizer.task.numbers)


def _blend_metrics(blend: Blend) -> dict[str, float]:
    if blend.report is None:
        return {}
    return {
        "blend_score_weight": blend.pooled.score,
        "blend_log_loss_gain": blend.report.gain,
        "blend_auc": blend.report.auc_blend,
        "blend_auc_ranker": blend.report.auc_ranker,
        "blend_candidates": float(blend.report.num_examples),
    }
