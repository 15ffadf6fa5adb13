"""How the pipeline and the edge reach the LLM ranker: in this process or over HTTP, with the same answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

import numpy as np

from models.data.state import UserState
from services.ingest.offsets import Progress
from services.llm.calls import (
    Answered,
    RerankCall,
    Reranking,
    ScoreCall,
    pack_rerank_call,
    pack_score_call,
    unpack_answered,
    unpack_reranking,
)
from services.llm.engine import LlmEngine
from services.processes.remote import Remote
from services.schema import DependencyState
from services.storage.streams import StreamName
from services.workers import Workers

T = TypeVar("T")

MARGIN_MS = 4.0
"""An answer is to be ready so long before its caller gives up: a partial one must still arrive."""


class LlmClient(Protocol):
    """What the platform needs of the LLM ranker."""

    def check_room(self, num_items: int, timeout_ms: float) -> None: ...

    async def prefill(self, user: UserState, now_ms: int, timeout_ms: float) -> None: ...

    async def rerank(self, call: RerankCall, timeout_ms: float) -> Reranking: ...

    async def score(self, call: ScoreCall, timeout_ms: float) -> Answered: ...

    async def wait_applied(self, stream: StreamName, offset: str, timeout_ms: float) -> bool: ...

    async def state(self) -> DependencyState: ...

    async def close(self) -> None: ...


class LocalLlm:
    """The LLM ranker in this process. A call that is given up takes its work out of the queue."""

    def __init__(self, engine: LlmEngine, workers: Workers, progress: Progress) -> None:
        self.engine = engine
        self._workers = workers
        self._progress = progress

    def check_room(self, num_items: int, timeout_ms: float) -> None:
        """Raise Refused where so many items would certainly not be done in time."""
        self.engine.check_room(num_items, self.engine.scheduler.clock() + timeout_ms / 1000.0)

    async def prefill(self, user: UserState, now_ms: int, timeout_ms: float) -> None:
        """Read the member's prompt. Raises Refused, TimeoutError."""
        await self._run(lambda deadline_s: self.engine.prefill(user, now_ms, deadline_s), timeout_ms)

    async def rerank(self, call: RerankCall, timeout_ms: float) -> Reranking:
        """Score what there is time for. Raises Refused, TimeoutError."""
        return await self._run(lambda deadline_s: self.engine.rerank(call, deadline_s), timeout_ms - MARGIN_MS)

    async def score(self, call: ScoreCall, timeout_ms: float) -> Answered:
        """Answer all of it. Raises NotAsked, Refused, TimeoutError."""
        return await self._run(lambda deadline_s: self.engine.score(call, deadline_s), timeout_ms)

    async def wait_applied(self, stream: StreamName, offset: str, timeout_ms: float) -> bool:
        """Only items matter to texts."""
        return stream != "items" or await self._progress.wait(offset, timeout_ms)

    async def state(self) -> DependencyState:
        """A model in this process is ready once it is loaded and its probes are answered."""
        served = self.engine.served
        return DependencyState(
            ready=True,
            detail=f"in this process, model {served.version}, engine {served.backend.name}, "
            f"{self.engine.scheduler.speed.tokens_per_s:.0f} tokens/s",
        )

    async def close(self) -> None:
        """Nothing to let go of."""

    async def _run(self, submit: Callable[[float], Future[T]], timeout_ms: float) -> T:
        return await run_submitted(self._workers, submit, self.engine.scheduler.clock() + timeout_ms / 1000.0)


class RemoteLlm:
    """The LLM ranker in another process. A call that times out closes its connection, which ends its work there."""

    def __init__(self, remote: Remote, num_signals: int) -> None:
        self._remote = remote
        self._num_signals = num_signals

    def check_room(self, num_items: int, timeout_ms: float) -> None:
        """The other process looks when it is asked."""

    async def prefill(self, user: UserState, now_ms: int, timeout_ms: float) -> None:
        """One round trip. Raises RemoteUnavailable, TimeoutError."""
        nothing = RerankCall(
            user=user, keys=np.zeros(0, np.int64), signals=np.zeros((0, self._num_signals)), now_ms=now_ms
        )
        await self._remote.post_frame("/internal/prefill", pack_rerank_call(nothing, timeout_ms), timeout_ms)

    async def rerank(self, call: RerankCall, timeout_ms: float) -> Reranking:
        """One round trip. Raises RemoteUnavailable, TimeoutError."""
        body = pack_rerank_call(call, timeout_ms - MARGIN_MS)
        return unpack_reranking(await self._remote.post_frame("/internal/rerank", body, timeout_ms))

    async def score(self, call: ScoreCall, timeout_ms: float) -> Answered:
        """One round trip; what the other process refuses is refused with its words."""
        body = pack_score_call(call, timeout_ms)
        return unpack_answered(await self._remote.forward_frame("/internal/score", body, timeout_ms + MARGIN_MS))

    async def wait_applied(self, stream: StreamName, offset: str, timeout_ms: float) -> bool:
        """Ask the other process to wait."""
        return await self._remote.wait_applied(stream, offset, timeout_ms)

    async def state(self) -> DependencyState:
        """The other process's /readyz."""
        return await self._remote.state()

    async def close(self) -> None:
        """Close the connections."""
        await self._remote.close()


async def run_submitted(workers: Workers, submit: Callable[[float], Future[T]], deadline_s: float) -> T:
    """Make the texts in a worker thread, then await the model; a caller that leaves takes the work with it."""
    queued = asyncio.ensure_future(workers.run(submit, deadline_s))
    try:
        future = await asyncio.shield(queued)
    except asyncio.CancelledError:
        queued.add_done_callback(_cancel_result)
        raise
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if future.cancelled() and not _cancelling():  # by the scheduler, at the end of the service
            raise TimeoutError("the service is ending") from None
        raise


def _cancel_result(queued: asyncio.Future[Future[T]]) -> None:
    if not queued.cancelled() and queued.exception() is None:
        queued.result().cancel()


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
