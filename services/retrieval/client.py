"""How the pipeline reaches retrieval: in this process or over HTTP, with the same answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from index.attributes import AttributeSchema
from index.boosts import Boost
from index.filter import Filter, FilterError, parse_filter
from models.data.state import UserState
from services.candidates import Candidates
from services.ingest.offsets import Progress
from services.processes.frames import FrameError, pack, unpack
from services.processes.remote import Remote
from services.processes.user_frames import pack_user, unpack_user
from services.retrieval.engine import RetrievalEngine
from services.schema import DependencyState
from services.storage.streams import StreamName
from services.workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveCall:
    """One question to retrieval."""

    user: UserState
    now_ms: int
    k: int
    filter: Filter | None
    exclude: NDArray[np.int64]
    boosts: tuple[Boost, ...] = ()
    given: NDArray[np.int64] | None = None
    """Score exactly these instead of searching."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarCall:
    """Which items are like this one."""

    key: int
    k: int
    filter: Filter | None


class RetrievalClient(Protocol):
    """What the pipeline needs of retrieval."""

    async def retrieve(self, call: RetrieveCall, timeout_ms: float) -> Candidates: ...

    async def similar(self, call: SimilarCall, timeout_ms: float) -> Candidates | None: ...

    async def wait_applied(self, stream: StreamName, offset: str, timeout_ms: float) -> bool: ...

    async def state(self) -> DependencyState: ...

    async def close(self) -> None: ...


class LocalRetrieval:
    """Retrieval in this process."""

    def __init__(self, engine: RetrievalEngine, workers: Workers, progress: dict[StreamName, Progress]) -> None:
        self.engine = engine
        self._workers = workers
        self._progress = progress

    async def retrieve(self, call: RetrieveCall, timeout_ms: float) -> Candidates:
        """Search in a worker thread; the caller's deadline bounds the wait."""
        return await self._workers.run(run_call, self.engine, call)

    async def similar(self, call: SimilarCall, timeout_ms: float) -> Candidates | None:
        """None where the index does not hold the item."""
        return await self._workers.run(self.engine.similar, call.key, call.k, call.filter)

    async def wait_applied(self, stream: StreamName, offset: str, timeout_ms: float) -> bool:
        """Wait until the index holds an entry of the items or events stream."""
        progress = self._progress.get(stream)
        return progress is None or await progress.wait(offset, timeout_ms)

    async def state(self) -> DependencyState:
        """An index in this process is ready once it is loaded; its followers say how far it is."""
        return DependencyState(
            ready=True,
            detail=f"in this process, {self.engine.index.num_items} items, model {self.engine.model.version}",
        )

    async def close(self) -> None:
        """Nothing to let go of."""


class RemoteRetrieval:
    """Retrieval in another process."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    async def retrieve(self, call: RetrieveCall, timeout_ms: float) -> Candidates:
        """One round trip; raises RemoteUnavailable, and TimeoutError past `timeout_ms`."""
        data = await self._remote.post_frame("/internal/retrieve", pack_retrieve_call(call), timeout_ms)
        return Candidates.from_arrow(data)

    async def similar(self, call: SimilarCall, timeout_ms: float) -> Candidates | None:
        """One round trip; None where the index does not hold the item."""
        meta = {"key": call.key, "k": call.k, "filter": _spell(call.filter)}
        data = await self._remote.find_frame("/internal/similar", pack({}, meta), timeout_ms)
        return None if data is None else Candidates.from_arrow(data)

    async def wait_applied(self, stream: StreamName, offset: str, timeout_ms: float) -> bool:
        """Ask the other process to wait."""
        return await self._remote.wait_applied(stream, offset, timeout_ms)

    async def state(self) -> DependencyState:
        """The other process's /readyz."""
        return await self._remote.state()

    async def close(self) -> None:
        """Close the connections."""
        await self._remote.close()


def run_call(engine: RetrievalEngine, call: RetrieveCall) -> Candidates:
    """Answer a call with an engine."""
    if call.given is not None:
        return engine.score(call.user, call.now_ms, call.given, call.boosts)
    return engine.retrieve(call.user, call.now_ms, call.k, call.filter, call.exclude, call.boosts)


def pack_retrieve_call(call: RetrieveCall) -> bytes:
    """The request of /internal/retrieve."""
    arrays, meta = pack_user(call.user)
    arrays["exclude"] = call.exclude
    if call.given is not None:
        arrays["given"] = call.given
    meta |= {"now_ms": call.now_ms, "k": call.k, "filter": _spell(call.filter)}
    meta["boosts"] = [[each.filter.to_json(), each.weight] for each in call.boosts]
    return pack(arrays, meta)


def unpack_retrieve_call(data: bytes, schema: AttributeSchema) -> RetrieveCall:
    """The reverse of `pack_retrieve_call`. Raises FrameError."""
    arrays, meta = unpack(data)
    try:
        return RetrieveCall(
            user=unpack_user(arrays, meta),
            now_ms=int(meta["now_ms"]),
            k=int(meta["k"]),
            filter=parse_filter(meta["filter"], schema),
            boosts=tuple(_read_boost(source, weight, schema) for source, weight in meta["boosts"]),
            exclude=np.asarray(arrays["exclude"], np.int64),
            given=np.asarray(arrays["given"], np.int64) if "given" in arrays else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError(f"no retrieve call in the frame: {error!r}") from error


def unpack_similar_call(data: bytes, schema: AttributeSchema) -> SimilarCall:
    """The request of /internal/similar. Raises FrameError."""
    _, meta = unpack(data)
    try:
        return SimilarCall(key=int(meta["key"]), k=int(meta["k"]), filter=parse_filter(meta["filter"], schema))
    except (KeyError, TypeError, FilterError) as error:
        raise FrameError(f"no similar call in the frame: {error!r}") from error


def _read_boost(source: Any, weight: float, schema: AttributeSchema) -> Boost:
    filter = parse_filter(source, schema)
    if filter is None:
        raise ValueError("a boost without a filter")
    return Boost(filter, weight)


def _spell(filter: Filter | None) -> Any:
    return None if filter is None else filter.to_json()
