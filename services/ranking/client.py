"""How the pipeline reaches ranking: in this process or over HTTP, with the same answer."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from models.data.state import UserState
from models.ranking.exploration import Draws
from services.candidates import Candidates
from services.ingest.offsets import Progress
from services.processes.frames import FrameError, pack, unpack
from services.processes.remote import Remote
from services.processes.user_frames import pack_user, unpack_user
from services.ranking.engine import Ranking, RankingEngine
from services.schema import DependencyState
from services.storage.streams import StreamName
from services.workers import Workers


class RankingClient(Protocol):
    """What the pipeline needs of ranking."""

    async def rank(
        self, user: UserState, candidates: Candidates, now_ms: int, timeout_ms: float, draws: Draws | None = None
    ) -> Ranking: ...

    async def wait_applied(self, stream: StreamName, offset: str, timeout_ms: float) -> bool: ...

    async def state(self) -> DependencyState: ...

    async def close(self) -> None: ...


class LocalRanking:
    """Ranking in this process."""

    def __init__(self, engine: RankingEngine, workers: Workers, progress: Progress) -> None:
        self.engine = engine
        self._workers = workers
        self._progress = progress

    async def rank(
        self, user: UserState, candidates: Candidates, now_ms: int, timeout_ms: float, draws: Draws | None = None
    ) -> Ranking:
        """Score in a worker thread; the caller's deadline bounds the wait."""
        return await self._workers.run(self.engine.rank, user, candidates, now_ms, draws)

    async def wait_applied(self, stream: StreamName, offset: str, timeout_ms: float) -> bool:
        """Only items matter to ranking."""
        return stream != "items" or await self._progress.wait(offset, timeout_ms)

    async def state(self) -> DependencyState:
        """Models in this process are ready once they are loaded."""
        return DependencyState(ready=True, detail=f"in this process, model {self.engine.model.version}")

    async def close(self) -> None:
        """Nothing to let go of."""


class RemoteRanking:
    """Ranking in another process."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    async def rank(
        self, user: UserState, candidates: Candidates, now_ms: int, timeout_ms: float, draws: Draws | None = None
    ) -> Ranking:
        """One round trip; raises RemoteUnavailable, and TimeoutError past `timeout_ms`."""
        body = pack_rank_call(user, candidates, now_ms, draws)
        return unpack_ranking(await self._remote.post_frame("/internal/rank", body, timeout_ms))

    async def wait_applied(self, stream: StreamName, offset: str, timeout_ms: float) -> bool:
        """Ask the other process to wait."""
        return await self._remote.wait_applied(stream, offset, timeout_ms)

    async def state(self) -> DependencyState:
        """The other process's /readyz."""
        return await self._remote.state()

    async def close(self) -> None:
        """Close the connections."""
        await self._remote.close()


def pack_rank_call(user: UserState, candidates: Candidates, now_ms: int, draws: Draws | None = None) -> bytes:
    """The request of /internal/rank."""
    arrays, meta = pack_user(user)
    wanted = None if draws is None else list(draws)
    more_arrays, more_meta = candidates.to_frame()
    return pack({**arrays, **more_arrays}, {**meta, **more_meta, "now_ms": now_ms, "draws": wanted})


def unpack_rank_call(data: bytes) -> tuple[UserState, Candidates, int, Draws | None]:
    """The reverse of `pack_rank_call`. Raises FrameError."""
    arrays, meta = unpack(data)
    now_ms = meta.get("now_ms")
    if not isinstance(now_ms, int):
        raise FrameError(f"now_ms is {now_ms!r}; expected an integer")
    try:
        draws = None if meta.get("draws") is None else Draws(*meta["draws"])
    except TypeError as error:
        raise FrameError(f"draws are {meta['draws']!r}; expected seed, number and scale") from error
    return unpack_user(arrays, meta), Candidates.from_frame(arrays, meta), now_ms, draws


def pack_ranking(ranking: Ranking) -> bytes:
    """The answer of /internal/rank."""
    meta: dict[str, Any] = {"tasks": list(ranking.tasks), "versions": dict(ranking.versions)}
    arrays: dict[str, NDArray[Any]] = {"probabilities": ranking.probabilities.reshape(-1)}
    if ranking.drawn is not None:
        arrays["drawn"] = ranking.drawn.reshape(-1)
    return pack(arrays, meta)


def unpack_ranking(data: bytes) -> Ranking:
    """The reverse of `pack_ranking`. Raises FrameError."""
    arrays, meta = unpack(data)
    try:
        tasks = tuple(meta["tasks"])
        probabilities = arrays["probabilities"].reshape(-1, len(tasks))
        drawn = arrays["drawn"].reshape(-1, *probabilities.shape) if "drawn" in arrays and len(probabilities) else None
        return Ranking(
            probabilities=probabilities,
            tasks=tasks,
            versions=meta["versions"],
            drawn=drawn,
        )
    except (KeyError, ValueError) as error:
        raise FrameError(f"no ranking in the frame: {error!r}") from error
