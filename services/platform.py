"""The platform in one process, or any part of it: which objects there are, and who knows whom.

Parts: `gateway` answers clients, `retrieval` and `ranking` hold the models, `llm` the language model where one is on,
`ingest` turns events into state and files.
A gateway reaches parts that are not in its process by the URLs in its settings.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

import structlog
from fastapi import FastAPI

from services.app import make_logger
from services.assembly import PARTS, Assembly, Part, PlatformError
from services.clock import Clock
from services.datasets.dataset import Dataset
from services.settings import Settings, SettingsError, variable_of
from services.storage.storage import Storage

__all__ = ["PARTS", "Part", "Platform", "PlatformError", "build_platform"]


class _Running(Protocol):
    """A thread of the platform."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def join(self) -> None: ...


class Platform:
    """Built, not yet started. `app` answers as soon as it is served; /readyz says when everything has caught up."""

    def __init__(self, assembly: Assembly) -> None:
        self.settings = assembly.settings
        self.parts = assembly.parts
        self.storage = assembly.storage
        self.metrics = assembly.metrics
        self.retrieval = assembly.retrieval_engine
        self.ranking = assembly.ranking_engine
        self.followers = assembly.followers
        self.snapshots = assembly.snapshots
        self.archiver = assembly.archiver
        self.signals = assembly.signals
        self.reloaders = assembly.reloaders
        self.offsets = assembly.offsets
        self.scenarios = assembly.scenarios
        self.llm = assembly.llm_engine
        self._llm = assembly.llm_part
        self.app: FastAPI = assembly.app
        self._log = assembly.log
        self._workers = assembly.workers
        self._logger = assembly.logger
        self._started = False

    def start(self) -> None:
        """Start every thread; returns at once."""
        for thread in self._threads():
            thread.start()
        if self._log is not None:
            self._log.start()
        self._started = True

    def stop(self) -> None:
        """Finish what is under way, write what waits, let storage go."""
        if self._started:
            if self._log is not None:
                self._log.stop()
            for thread in self._threads():
                thread.stop()
            for thread in self._threads():
                thread.join()
            self._write_what_waits()
        for pool in self._workers:
            pool.close()
        self.storage.close()

    def wait_caught_up(self, timeout_s: float) -> bool:
        """Wait until every follower has applied what was there at the start."""
        return all(follower.wait_caught_up(timeout_s) for follower in self.followers)

    def __enter__(self) -> Platform:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _threads(self) -> list[_Running]:
        others = [
            thread
            for thread in (self.snapshots, self.archiver, self.signals, self.offsets, self.scenarios)
            if thread is not None
        ]
        llm: list[_Running] = [] if self._llm is None else [self._llm.scheduler, self._llm.numbers]
        return [*self.followers, *self.reloaders, *others, *llm]

    def _write_what_waits(self) -> None:
        for what, write in (
            ("index snapshot", self.snapshots.write if self.snapshots else None),
            ("archive", self.archiver.flush if self.archiver else None),
            ("popularity offsets", self.offsets.write if self.offsets else None),
        ):
            if write is None:
                continue
            try:
                write()
            except Exception as error:  # the process ends; what was not written is made again at the next start
                self._logger.error("not written at the end", what=what, exc_info=error)


def build_platform(
    settings: Settings,
    only: set[Part] | None = None,
    *,
    clock: Clock | None = None,
    logger: structlog.typing.FilteringBoundLogger | None = None,
) -> Platform:
    """Open storage, load models and index, wire everything.

    only: the parts in this process; None: all whose URL the settings do not name.

    Raises SettingsError, DatasetError, PlatformError (no model yet), StorageError.
    """
    parts = _choose_parts(settings, only)
    logger = logger or make_logger(settings.http.log_level)
    dataset = Dataset.load(settings.dataset)
    storage = Storage.open(
        data_dir=settings.data_dir,
        redis_url=settings.redis_url,
        role="serve" if "ingest" in parts else "+".join(sorted(parts)),
        clock=clock,
        timeout_ms=settings.redis_timeout_ms,
    )
    try:
        return Platform(Assembly(settings, parts, dataset, storage, logger))
    except BaseException:
        storage.close()
        raise


def _choose_parts(settings: Settings, only: set[Part] | None) -> frozenset[Part]:
    urls: dict[Part, str | None] = {
        "retrieval": settings.retrieval.url,
        "ranking": settings.ranking.url,
        "ingest": settings.ingest.url,
    }
    if settings.llm.enabled:
        urls["llm"] = settings.llm.url
    if only is None:
        return frozenset(part for part in PARTS if part in urls and not urls[part] or part == "gateway")
    unknown = sorted(set(only) - set(PARTS))
    if unknown or not only:
        raise SettingsError(f"parts {sorted(only)}: expected some of {', '.join(PARTS)}")
    if "llm" in only and not settings.llm.enabled:
        raise SettingsError(f"part llm needs the setting llm.enabled ({variable_of('llm.enabled')}) to be true")
    for part, url in urls.items():
        if "gateway" in only and part not in only and not url:
            name = f"{part}.url"
            raise SettingsError(f"a gateway without {part} needs the setting {name} ({variable_of(name)})")
    return frozenset(only)
