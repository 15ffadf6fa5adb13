"""Which objects a process has, in the order in which they need one another, and who knows whom."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal, get_args

import structlog
import torch
from fastapi import APIRouter, FastAPI

from models.data.items import ItemTable
from models.data.schema import FeatureSchema
from models.ranking.model import RequestScorer
from models.retrieval.links.rows import read_links
from models.retrieval.model import RetrievalModel
from services.app import Check, make_app
from services.datasets.dataset import Dataset, parse_half_life
from services.gateway.app import gateway_routers, problem_of
from services.gateway.gateway import Gateway
from services.gateway.questions import known_event_types
from services.ingest.app import applied_router
from services.ingest.appliers import (
    apply_events_to_retrieval,
    apply_items_to_llm,
    apply_items_to_ranking,
    apply_items_to_retrieval,
    apply_to_state,
)
from services.ingest.archiver import Archiver
from services.ingest.client import IngestClient, LocalIngest, RemoteIngest
from services.ingest.follower import Apply, Follower
from services.ingest.offsets import Progress
from services.ingest.popularity import PopularityKeeper
from services.ingest.signals import SignalKeeper
from services.ingest.snapshots import Snapshots
from services.ingest.visibility import Visibility, Wait
from services.links.artifact import FILE as LINKS_FILE
from services.links.artifact import check_links
from services.llm.app import llm_router, score_router, vllm_router
from services.llm.building import LlmPart, build_llm
from services.llm.client import LlmClient, LocalLlm, RemoteLlm
from services.llm.engine import LlmEngine
from services.llm.questions import ScoreQuestions
from services.metrics import Metrics
from services.pipeline import Pipeline, Responder
from services.processes.remote import Remote, RemoteUnavailable
from services.ranking.app import ranking_router
from services.ranking.client import LocalRanking, RankingClient, RemoteRanking
from services.ranking.engine import RankingEngine
from services.ranking.explore import Explore
from services.ranking.loading import load_ranking
from services.ranking.scenarios import Scenarios
from services.reloading import Reloader
from services.retrieval.app import retrieval_router
from services.retrieval.client import LocalRetrieval, RemoteRetrieval, RetrievalClient
from services.retrieval.engine import Quotas, RetrievalEngine
from services.retrieval.links import LinkSource
from services.retrieval.loading import index_folder, load_items, load_retrieval, stored_items
from services.schema import DependencyState
from services.settings import Settings
from services.stages.arrange import Arrange
from services.stages.hydrate import Hydrate
from services.stages.log import Log
from services.stages.rank import Rank
from services.stages.rerank import Rerank
from services.stages.retrieve import Retrieve
from services.storage.artifacts import Artifact
from services.storage.consumer import CONSUMER as STATE_CONSUMER
from services.storage.errors import StorageError
from services.storage.storage import Storage
from services.storage.streams import StreamName
from services.workers import Workers

Part = Literal["gateway", "retrieval", "ranking", "llm", "ingest"]
PARTS: tuple[Part, ...] = get_args(Part)


class PlatformError(Exception):
    """The platform cannot be built: what is missing, and what makes it."""


class Assembly:
    """Makes the objects of a platform in the order in which they need one another."""

    def __init__(
        self,
        settings: Settings,
        parts: frozenset[Part],
        dataset: Dataset,
        storage: Storage,
        logger: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self.settings = settings
        self.parts = parts
        self.dataset = dataset
        self.storage = storage
        self.logger = logger
        self.schema: FeatureSchema = dataset.feature_schema()
        self.attributes = dataset.attribute_schema()
        self.metrics = Metrics()
        self.engine_workers = Workers(settings.pipeline.engine_workers, "engine")
        self.storage_workers = Workers(settings.pipeline.storage_workers, "storage")
        self.retrieval_workers = Workers(settings.retrieval.max_concurrent, "retrieval")
        self.workers = [self.engine_workers, self.storage_workers, self.retrieval_workers]
        self.followers: list[Follower] = []
        self.waits: dict[StreamName, list[Wait]] = {}
        self.local_waits: dict[StreamName, list[Wait]] = {}
        self.checks: dict[str, Check] = {"storage": self._check_storage}
        self.routers: list[APIRouter] = []
        self.remotes: list[Callable[[], Awaitable[None]]] = []
        self.items = ItemTable(self.schema)
        self.retrieval_engine: RetrievalEngine | None = None
        self.ranking_engine: RankingEngine | None = None
        self.llm_part: LlmPart | None = None
        self.retrieval: RetrievalClient | None = None
        self.ranking: RankingClient | None = None
        self.llm: LlmClient | None = None
        self.ingest: IngestClient | None = None
        self.snapshots: Snapshots | None = None
        self.signals: SignalKeeper | None = None
        self.reloaders: list[Reloader] = []
        self.offsets: PopularityKeeper | None = None
        self.scenarios: Scenarios | None = None
        self.archiver: Archiver | None = None
        self.log: Log | None = None
        if parts & {"retrieval", "ranking"}:
            torch.set_num_threads(settings.ranking.torch_threads)
        if "retrieval" in parts:
            self._build_retrieval()
        if "ranking" in parts:
            self._build_ranking()
        if "llm" in parts:
            self._build_llm()
        if "ingest" in parts:
            self._build_ingest()
        self._build_local_waits()
        if "gateway" in parts:
            self._build_gateway()
        self.app = self._build_app()

    def _build_retrieval(self) -> None:
        settings = self.settings.retrieval
        artifact = self._artifact("retrieval")
        model = RetrievalModel.load(artifact.folder, self.schema)
        half_life_ms = parse_half_life(settings.recent_half_life)
        assert half_life_ms is not None
        engine = load_retrieval(
            self.storage,
            model,
            self.schema,
            self.attributes,
            items=self.items,
            quotas=Quotas(
                popular=settings.popular_share,
                recent=settings.recent_share,
                recent_half_life_ms=half_life_ms,
                links=settings.links_share,
            ),
            num_threads=settings.search_threads,
            logger=self.logger,
        )
        engine.warm_up(self.storage.clock.now_ms(), settings.num_candidates)
        offsets = engine.index.offsets
        items = self._follow("retrieval-items", "items", offsets["items"], apply_items_to_retrieval(engine))
        events = self._follow(
            "retrieval-events",
            "events",
            offsets["events"],
            apply_events_to_retrieval(engine, self.schema, self.storage.clock),
            behind=items,
        )
        progress: dict[StreamName, Progress] = {"items": items.progress, "events": events.progress}
        self.retrieval_engine = engine
        if self.dataset.links is not None:
            self._follow_links(engine)
        self.retrieval = LocalRetrieval(engine, self.retrieval_workers, progress)
        self.routers.append(retrieval_router(engine, self.retrieval_workers))
        self.metrics.watch("index_items", "Items in the index", lambda: float(engine.index.num_items))
        self.metrics.watch("index_calls", "Searches asked of the index", lambda: float(engine.searches.num_calls))
        self.metrics.watch(
            "index_passes",
            "Searches run for them: fewer, for they were joined",
            lambda: float(engine.searches.num_searches),
        )

        def replace(promoted: Artifact) -> None:
            towers = RetrievalModel.load(promoted.folder, self.schema)
            engine.replace(towers, stored_items(self.storage), self.storage.clock.now_ms(), settings.num_candidates)

        self.reloaders.append(self._reloader("retrieval", artifact.version, replace, settings.reload_interval_s))
        self.snapshots = Snapshots(
            engine,
            index_folder(self.settings.data_dir),
            self.storage.streams,
            interval_s=self.settings.ingest.snapshot_interval_s,
            trim_streams=self.settings.ingest.trim_streams,
            metrics=self.metrics,
            logger=self.logger,
        )
        self._check_thread("follower snapshots", self.snapshots.state)
        self.signals = SignalKeeper(engine, self.storage, metrics=self.metrics, logger=self.logger)
        self._check_thread("follower signals", self.signals.state)

    def _follow_links(self, engine: RetrievalEngine) -> None:
        """Use the current links, and every version that becomes current later."""

        def replace(promoted: Artifact) -> None:
            links = read_links(promoted.folder / LINKS_FILE)
            check_links(links, self.dataset)
            engine.links = LinkSource(links, promoted.version, scale=self.settings.retrieval.links_scale)

        reloader = self._reloader("links", "none", replace, self.settings.retrieval.reload_interval_s)
        reloader.check()
        self.reloaders.append(reloader)

    def _build_ranking(self) -> None:
        artifact = self._artifact("ranking")
        try:
            served = self._load_ranking(artifact)
        except ValueError as error:
            raise PlatformError(f"ranking model {artifact.version} cannot be served: {error}") from error
        engine = RankingEngine(served, self.items)
        if self.retrieval_engine is None:
            after = load_items(self.storage, self.items)
            progress = self._follow("ranking-items", "items", after, apply_items_to_ranking(engine)).progress
        else:  # one table for both engines: the retrieval follower keeps it up to date
            progress = next(f.progress for f in self.followers if f.stream == "items")
        engine.warm_up(self.storage.clock.now_ms())
        self.ranking_engine = engine
        self._check_posterior(engine)

        def replace(promoted: Artifact) -> None:
            engine.replace(self._load_ranking(promoted), self.storage.clock.now_ms())
            self._check_posterior(engine)

        self.offsets = PopularityKeeper(
            engine,
            self.schema,
            self.storage,
            interval_s=self.settings.ranking.offsets_interval_s,
            metrics=self.metrics,
            logger=self.logger,
        )
        self._follow("ranking-events", "events", self.offsets.restore(), self.offsets.apply)
        self._check_thread("follower ranker-offsets", self.offsets.state)
        interval_s = self.settings.ranking.reload_interval_s
        self.reloaders.append(self._reloader("ranking", artifact.version, replace, interval_s))
        self.ranking = LocalRanking(engine, self.engine_workers, progress)
        self.routers.append(ranking_router(engine, self.engine_workers))

    @property
    def llm_engine(self) -> LlmEngine | None:
        """The language model in this process."""
        return None if self.llm_part is None else self.llm_part.engine

    def _build_llm(self) -> None:
        """The language model, its queue, and the texts of items. Without an artifact there is none, and no error but
        in a process that is there for nothing else."""
        artifact = self._llm_artifact()
        if artifact is None:
            return
        try:
            part = build_llm(
                artifact, self.settings.llm, self.schema, self.dataset.task_prompts(), self.storage,
                metrics=self.metrics, logger=self.logger,
            )  # fmt: skip
        except (ValueError, RemoteUnavailable, TimeoutError) as error:
            raise PlatformError(f"language model {artifact.version} cannot be served: {error}") from error
        items = self._follow("llm-items", "items", part.items_offset, apply_items_to_llm(part.engine))
        self.llm_part = part
        self._check_thread("follower llm numbers", part.numbers.state)
        self.reloaders.append(
            self._reloader("llm", artifact.version, part.replace, self.settings.ranking.reload_interval_s)
        )
        # Threads of its own: the texts of a large question must not stand before somebody's ranking.
        workers = Workers(2, "llm-texts")
        self.workers.append(workers)
        self.llm = local = LocalLlm(part.engine, workers, items.progress)
        budget_ms = self.settings.llm.score_budget_ms
        self.routers += [llm_router(local), vllm_router(local, workers, budget_ms)]
        if "gateway" not in self.parts:
            self.routers.append(self._score_router(local))

    def _llm_artifact(self) -> Artifact | None:
        try:
            return self._artifact("llm")
        except PlatformError:
            if self.parts == {"llm"}:
                raise
            self.logger.warning(
                "the language model is turned on and there is none; make one with `shortlist train llm`"
            )
            return None

    def _score_router(self, client: LlmClient) -> APIRouter:
        questions = ScoreQuestions(
            client=client,
            dataset=self.dataset,
            schema=self.schema,
            storage=self.storage,
            clock=self.storage.clock,
            workers=self.storage_workers,
        )
        return score_router(questions, self.settings.llm.score_budget_ms)

    def _load_ranking(self, artifact: Artifact) -> RequestScorer:
        return load_ranking(artifact, self.schema, self.settings.ranking.table_bits, self.logger)

    def _reloader(
        self,
        kind: Literal["retrieval", "ranking", "links", "llm"],
        version: str,
        replace: Callable[[Artifact], None],
        interval_s: float,
    ) -> Reloader:
        reloader = Reloader(
            kind,
            self.storage.artifacts,
            version=version,
            replace=replace,
            interval_s=interval_s,
            metrics=self.metrics,
            logger=self.logger,
        )
        self._check_thread(f"{kind} model", reloader.state)
        return reloader

    def _build_ingest(self) -> None:
        consumer = self.storage.consumer(self.schema)
        self.storage.streams.register("events", STATE_CONSUMER)
        after = consumer.offset
        follower = self._follow("state", "events", after, apply_to_state(consumer, self.schema, after))
        self.ingest = LocalIngest(follower)
        self.archiver = Archiver(
            self.storage,
            interval_s=self.settings.ingest.archive_interval_s,
            metrics=self.metrics,
            logger=self.logger,
        )
        self._check_thread("follower archive", self.archiver.state)

    def _build_local_waits(self) -> None:
        for follower in self.followers:
            self.local_waits.setdefault(follower.stream, []).append(_wait_for(follower))
        self.routers.append(applied_router(Visibility(self.local_waits)))

    def _build_gateway(self) -> None:
        settings = self.settings
        self.retrieval = self.retrieval or RemoteRetrieval(self._remote("retrieval", settings.retrieval.url))
        self.ranking = self.ranking or RemoteRanking(self._remote("ranking", settings.ranking.url))
        self.ingest = self.ingest or RemoteIngest(self._remote("ingest", settings.ingest.url))
        for name, client in (("retrieval", self.retrieval), ("ranking", self.ranking), ("ingest", self.ingest)):
            self.checks[name] = client.state
        items: list[Wait] = [self.retrieval.wait_applied, self.ranking.wait_applied]
        if settings.llm.enabled and settings.llm.url and "llm" not in self.parts:
            self.llm = RemoteLlm(self._remote("llm", settings.llm.url), len(self.schema.signals))
        if self.llm is not None:
            self.checks["llm"] = _optional(self.llm.state)
            items.append(self.llm.wait_applied)
            self.routers.append(self._score_router(self.llm))
        events: list[Wait] = [self.retrieval.wait_applied, self.ingest.wait_applied]
        visibility = Visibility({"items": items, "events": events})
        self.scenarios = Scenarios(
            self.storage.scenarios,
            self.schema,
            self.dataset.ranking.value,
            self._explore(),
            interval_s=settings.pipeline.scenarios_interval_s,
            metrics=self.metrics,
            logger=self.logger,
        )
        self.scenarios.refresh()
        self._check_thread("scenarios", self.scenarios.state)
        if settings.pipeline.log_impressions:
            self.log = Log(self.storage, self.metrics, self.logger)
        gateway = Gateway(
            settings=settings,
            dataset=self.dataset,
            schema=self.schema,
            attributes=self.attributes,
            storage=self.storage,
            clock=self.storage.clock,
            workers=self.storage_workers,
            pipeline=self._pipeline(visibility),
            responder=Responder(
                tasks=self.schema.tasks,
                signals=[signal.name for signal in self.schema.signals],
                schema_hash=self.schema.hash(),
            ),
            retrieval=self.retrieval,
            scenarios=self.scenarios,
            visibility=visibility,
            log=self.log,
            metrics=self.metrics,
            logger=self.logger,
            event_types=known_event_types(action.event for action in self.schema.actions),
        )
        self.routers = [*gateway_routers(gateway), *self.routers]

    def _pipeline(self, visibility: Visibility) -> Pipeline:
        assert self.retrieval is not None and self.ranking is not None
        fallback_ms = self.settings.pipeline.fallback_ms
        return Pipeline(
            hydrate=Hydrate(self.storage, self.storage_workers, visibility),
            retrieve=Retrieve(
                self.retrieval,
                self.storage,
                self.storage_workers,
                self.schema,
                num_candidates=self.settings.retrieval.num_candidates,
                fallback_ms=fallback_ms,
            ),
            rank=Rank(self.ranking),
            rerank=None
            if self.llm is None
            else Rerank(self.llm, self.schema, max_candidates=self.settings.llm.max_candidates),
            arrange=Arrange(self.storage, self.storage_workers, fallback_ms=fallback_ms),
        )

    def _explore(self) -> Explore | None:
        section = self.dataset.ranking.explore
        return None if section is None else Explore.of(section)

    def _check_posterior(self, engine: RankingEngine) -> None:
        """Say so where Thompson sampling is asked for and the model cannot draw."""
        section = self.dataset.ranking.explore
        if section is not None and section.kind == "thompson" and engine.model.exploration is None:
            self.logger.warning(
                "the ranking model has no posterior: nothing is explored until one is trained",
                version=engine.model.version,
            )

    def _build_app(self) -> FastAPI:
        @asynccontextmanager
        async def lifespan() -> AsyncIterator[None]:
            async with AsyncExitStack() as stack:
                for close in self.remotes:
                    stack.push_async_callback(close)
                yield

        return make_app(
            title=f"Shortlist {' + '.join(part for part in PARTS if part in self.parts)}",
            settings=self.settings.http,
            api_key=self.settings.api_key,
            routers=self.routers,
            checks=self.checks,
            metrics=self.metrics,
            logger=self.logger,
            mappers=[problem_of],
            lifespan=lifespan,
        )

    def _follow(
        self, name: str, stream: StreamName, after: str, apply: Apply, behind: Follower | None = None
    ) -> Follower:
        follower = Follower(
            name,
            stream,
            streams=self.storage.streams,
            after=after,
            apply=apply,
            batch_size=self.settings.ingest.batch_size,
            metrics=self.metrics,
            logger=self.logger,
            behind=behind,
        )
        self.followers.append(follower)
        self._check_thread(f"follower {name}", follower.state)
        return follower

    def _check_thread(self, name: str, state: Callable[[], DependencyState]) -> None:
        async def check() -> DependencyState:
            return state()

        self.checks[name] = check

    async def _check_storage(self) -> DependencyState:
        try:
            elapsed_ms = await self.storage_workers.run(self.storage.ping_ms)
        except StorageError as error:
            return DependencyState(ready=False, detail=str(error))
        return DependencyState(ready=True, detail=f"{elapsed_ms:.1f} ms, {self.storage.durability}")

    def _remote(self, name: str, url: str | None) -> Remote:
        assert url is not None
        remote = Remote(name, url, self.settings.api_key)
        self.remotes.append(remote.close)
        return remote

    def _artifact(self, kind: Literal["retrieval", "ranking", "llm"]) -> Artifact:
        try:
            return self.storage.artifacts.open(kind)
        except KeyError:
            job = "train llm" if kind == "llm" else "train"
            raise PlatformError(
                f"there is no {kind} model in {self.storage.artifacts.folder}; make one with `shortlist {job}`"
            ) from None


def _optional(check: Check) -> Check:
    """As the check says, but ready: slates are answered without it, and say so."""

    async def ready() -> DependencyState:
        state = await check()
        return DependencyState(ready=True, detail=state.detail if state.ready else f"away: {state.detail}")

    return ready


def _wait_for(follower: Follower) -> Wait:
    async def wait(stream: StreamName, offset: str, timeout_ms: float) -> bool:
        return await follower.progress.wait(offset, timeout_ms)

    return wait
