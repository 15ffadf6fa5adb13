"""The training jobs: each makes one artifact and publishes it; a ranker takes the active one's place by the gate."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.data.events import EventTable
from models.decoder.verbalizer.task import TaskPrompt
from models.ranking.fisher import save_fisher
from models.ranking.incremental import IncrementalConfig, train_incremental
from models.ranking.model import RankingModel
from models.ranking.serving import export_model
from models.ranking.training import RankingConfig, TrainedRanking, train_cold
from models.retrieval.model import RetrievalModel
from models.retrieval.training import RetrievalConfig, train_retrieval
from models.train.loop import StageProgress, stage_of
from services.storage.artifacts import Artifact, ArtifactRegistry, Provenance
from services.training.data import NothingToTrainOn, TrainingData
from services.training.llm import LlmConfig, TrainedLlm, fit_llm
from services.training.opinions import Opinions, ranker_opinions
from services.training.promotion import Decision, Gate

RETRIEVAL, RANKING, LLM = "retrieval", "ranking", "llm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a job made."""

    kind: str
    version: str
    decision: Decision


def train(
    data: TrainingData,
    registry: ArtifactRegistry,
    gate: Gate,
    kinds: tuple[str, ...] = (RETRIEVAL, RANKING),
    progress: StageProgress | None = None,
    checkpoints: Path | None = None,
    config: RankingConfig | None = None,
) -> list[Outcome]:
    """Train each kind from nothing and publish it. A retrieval model is promoted; a ranker if the gate lets it.

    Where there is an active ranker and events after its own, the newest of those are kept from the new ranker, and
    both are judged on them. Where nothing can be compared the new one is promoted, as its training was asked for.

    checkpoints: folder in which a job that is cut short leaves what it has done; the same job takes it up.
    config: of the ranker.
    """
    made = []
    if RANKING in kinds:  # before retrieval: a gate needs towers that have not seen what it judges on
        made.append(_train_ranking(data, registry, gate, config or RankingConfig(), progress, checkpoints))
    if RETRIEVAL in kinds:
        made.insert(0, _train_retrieval(data, registry, progress, checkpoints))
    return made


def train_on(
    data: TrainingData,
    registry: ArtifactRegistry,
    gate: Gate,
    config: IncrementalConfig | None = None,
    progress: StageProgress | None = None,
    checkpoints: Path | None = None,
) -> Outcome:
    """Train the active ranker on, over the events after its own, and publish the result; promote it by the gate.

    The newest of those events judge and do not train; the next increment begins with them. An event that arrives
    with a time before the last run's newest one is history and never a label.

    Raises NothingToTrainOn where there is no ranker to go on from, no towers from before, or no new events.
    """
    config = config or IncrementalConfig()
    active = _active(registry, data)
    if active is None or active.provenance.data_window_ms is None:
        raise NothingToTrainOn("there is no ranking model of this schema to train on from; first: shortlist train")
    first_ms, last_ms = active.provenance.data_window_ms
    since_ms = last_ms + 1
    new = data.events.between(since_ms, None)
    retrieval = _towers_before(registry, data, since_ms)
    if retrieval is None:
        raise NothingToTrainOn(
            "there is no retrieval model that was trained on nothing but what the ranking model "
            f"{active.version} has seen; first: shortlist train"
        )
    split_ms = new.quantile_ms(1.0 - gate.config.holdout_share) if len(new) else since_ms
    learned = new.between(None, split_ms)
    if not len(learned):
        raise NothingToTrainOn(f"{len(new)} events since those of ranking model {active.version}: too few to train on")
    lineage = active.provenance.config.get("lineage", {})
    cold = registry.open(RANKING, lineage.get("cold", active.version))
    with _checkpoint(checkpoints, RANKING, data, [asdict(config), active.version, split_ms]) as folder:
        trained = train_incremental(
            active.folder, cold.folder, data.schema, data.items, data.users, data.events.between(None, split_ms),
            since_ms, retrieval, config, progress, folder,
        )  # fmt: skip
    decision = _judge(data, registry, gate, split_ms, trained.model, active, progress, promote_unjudged=False)
    version = _publish(
        registry, RANKING, _writer(trained), data, (first_ms, int(learned.ts_ms[-1])), decision,
        asdict(config) | {"lineage": {"cold": cold.version, "since_ms": since_ms}}, active.version, _metrics(trained),
    )  # fmt: skip
    return Outcome(kind=RANKING, version=version, decision=decision)


def train_llm(
    data: TrainingData,
    registry: ArtifactRegistry,
    tasks: Sequence[TaskPrompt],
    pretrained: Path,
    config: LlmConfig | None = None,
    *,
    force: bool = False,
    progress: StageProgress | None = None,
    checkpoints: Path | None = None,
) -> Outcome:
    """Fine-tune the pretrained decoder on the tasks and publish it, with its weight beside the active ranker's logit.

    It is promoted where its first answer tells held-out members' yes from no at all: what it is worth beside the
    ranker is its blend's business, which may be nothing.

    Without an active ranker there is nothing to weigh it against, and the published blend is the ranker alone.
    """
    config = config or LlmConfig()
    ranker = _active(registry, data)
    opinions = None if ranker is None else _opinions(data, registry, ranker, config, progress)
    parent = registry.current(LLM)
    told = [asdict(config), [task.to_dict() for task in tasks], None if ranker is None else ranker.version]
    with _checkpoint(checkpoints, LLM, data, told) as folder:
        trained = fit_llm(data, tasks, pretrained, config, opinions, progress, folder)
    decision = _decide_llm(trained, tasks, parent, force=force)
    version = _publish(
        registry, LLM, lambda folder: trained.model.save(folder, data.schema), data, data.window_ms, decision,
        asdict(config) | {"ranking": None if ranker is None else ranker.version}, parent,
        {**trained.metrics, "tokens": trained.report.num_examples, "tokens_per_s": trained.report.examples_per_s},
    )  # fmt: skip
    return Outcome(kind=LLM, version=version, decision=decision)


def _opinions(
    data: TrainingData,
    registry: ArtifactRegistry,
    ranker: Artifact,
    config: LlmConfig,
    progress: StageProgress | None,
) -> Opinions | None:
    """Return what the ranker says of requests that it was not trained on.

    Which those are, only a training from nothing tells: of a ranker that was trained on, its first one is asked.
    """
    lineage = ranker.provenance.config.get("lineage", {})
    cold = registry.open(RANKING, lineage.get("cold", ranker.version))
    window = cold.provenance.data_window_ms
    if window is None:
        return None
    return ranker_opinions(
        data, RankingModel.load(cold.folder, data.schema), data.events.between(None, window[1] + 1), RankingConfig(),
        max_requests=config.blend_requests, num_candidates=config.blend_candidates, progress=progress,
    )  # fmt: skip


def _decide_llm(trained: TrainedLlm, tasks: Sequence[TaskPrompt], active: str | None, *, force: bool) -> Decision:
    name = f"{tasks[0].name}.{tasks[0].questions[0].name}"
    reached = trained.metrics.get(f"{name}_auc", float("nan"))
    good = reached > 0.5
    blend = trained.model.blend
    if blend.report is None:
        worth = "there was no ranker to weigh it against"
    elif blend.earned:
        worth = (
            f"beside the ranker it takes {blend.report.gain:.4f} nats off the log loss, weight {blend.pooled.score:.3f}"
        )
    else:
        worth = f"beside the ranker it earned no weight (log loss {-blend.report.gain:+.4f} nats)"
    reason = f"AUC {reached:.4f} of {name} on held-out members; {worth}"
    return Decision(promoted=good or force, reason=f"forced: {reason}" if force and not good else reason, active=active)


def _train_retrieval(
    data: TrainingData, registry: ArtifactRegistry, progress: StageProgress | None, checkpoints: Path | None
) -> Outcome:
    config = RetrievalConfig()
    with _checkpoint(checkpoints, RETRIEVAL, data, [asdict(config)]) as folder:
        model = train_retrieval(
            data.schema, data.items, data.users, data.events, config, stage_of(progress, "train retrieval"), folder
        )
    decision = Decision(promoted=True, reason="retrieval models are promoted as they are made")
    version = _publish(
        registry, RETRIEVAL, model.save, data, data.window_ms, decision, asdict(config), registry.current(RETRIEVAL)
    )
    return Outcome(kind=RETRIEVAL, version=version, decision=decision)


def _train_ranking(
    data: TrainingData,
    registry: ArtifactRegistry,
    gate: Gate,
    config: RankingConfig,
    progress: StageProgress | None,
    checkpoints: Path | None,
) -> Outcome:
    active = _active(registry, data)
    window = None if active is None else active.provenance.data_window_ms
    new = data.events.between(window[1] + 1, None) if window is not None else data.events.take(slice(0, 0))
    split_ms = new.quantile_ms(1.0 - gate.config.holdout_share) if len(new) else None
    events = data.events.between(None, split_ms)
    with _checkpoint(checkpoints, RANKING, data, [asdict(config), split_ms]) as folder:
        trained = train_cold(data.schema, data.items, data.users, events, config, progress, folder)
    if active is None:
        decision = Decision(promoted=True, reason="there was no active ranking model of this schema")
    elif split_ms is None:
        decision = gate.undecided("there are no events after the active model's", active.version, promote=True)
    else:
        decision = _judge(data, registry, gate, split_ms, trained.model, active, progress, promote_unjudged=True)
    version = _publish(
        registry, RANKING, _writer(trained), data, _window(events), decision, asdict(config),
        registry.current(RANKING), _metrics(trained),
    )  # fmt: skip
    return Outcome(kind=RANKING, version=version, decision=decision)


def _judge(
    data: TrainingData,
    registry: ArtifactRegistry,
    gate: Gate,
    split_ms: int,
    new: RankingModel,
    active: Artifact,
    progress: StageProgress | None,
    *,
    promote_unjudged: bool,
) -> Decision:
    retrieval = _towers_before(registry, data, split_ms)
    if retrieval is None:
        return gate.undecided("no retrieval model is older than the events to judge on", active.version, promote=True)
    return gate.decide(
        data, split_ms, retrieval, new, RankingModel.load(active.folder, data.schema), active.version,
        promote_unjudged=promote_unjudged, progress=progress,
    )  # fmt: skip


def _active(registry: ArtifactRegistry, data: TrainingData) -> Artifact | None:
    """Return the promoted ranker, if there is one and it fits the schema."""
    if registry.current(RANKING) is None:
        return None
    artifact = registry.open(RANKING)
    return artifact if artifact.provenance.schema_hash == data.schema.hash() else None


def _towers_before(registry: ArtifactRegistry, data: TrainingData, ts_ms: int) -> RetrievalModel | None:
    """Return the newest retrieval model that was trained on nothing from `ts_ms` on."""
    for artifact in reversed(registry.versions(RETRIEVAL)):
        made_of = artifact.provenance
        window = made_of.data_window_ms
        if made_of.schema_hash == data.schema.hash() and window is not None and window[1] < ts_ms:
            artifact.verify()
            return RetrievalModel.load(artifact.folder, data.schema)
    return None


def _writer(trained: TrainedRanking) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        trained.model.save(folder)
        export_model(trained.model, folder)
        if trained.fisher is not None:
            save_fisher(folder, trained.fisher)

    return write


def _metrics(trained: TrainedRanking) -> dict[str, float]:
    return {
        **{f"seconds_{stage}": round(seconds, 3) for stage, seconds in trained.seconds.items()},
        "examples": trained.report.num_examples,
        "examples_per_s": round(trained.report.examples_per_s, 1),
    }


def _publish(
    registry: ArtifactRegistry,
    kind: str,
    save: Callable[[Path], object],
    data: TrainingData,
    window_ms: tuple[int, int] | None,
    decision: Decision,
    config: Mapping[str, Any],
    parent: str | None,
    metrics: Mapping[str, float] | None = None,
) -> str:
    provenance = Provenance(
        config={**config, "promotion": decision.record()},
        schema_hash=data.schema.hash(),
        data_window_ms=window_ms,
        metrics={**(metrics or {}), **decision.figures},
        parent=parent,
    )
    version = registry.publish(kind, save, provenance)
    if decision.promoted:
        registry.promote(kind, version)
    return version


def _window(events: EventTable) -> tuple[int, int] | None:
    return (int(events.ts_ms[0]), int(events.ts_ms[-1])) if len(events) else None


@contextmanager
def _checkpoint(folder: Path | None, kind: str, data: TrainingData, job: object) -> Iterator[Path | None]:
    """Give the job a folder of its own for its checkpoints; once it is done, all of its kind are removed.

    Jobs on other data, or of another configuration, have other folders, so none takes up what is not its own.
    """
    if folder is None:
        yield None
        return
    what = repr((data.schema.hash(), data.events_offset, data.items_offset, len(data.events), job))
    yield folder / kind / hashlib.blake2b(what.encode(), digest_size=8).hexdigest()
    shutil.rmtree(folder / kind, ignore_errors=True)
