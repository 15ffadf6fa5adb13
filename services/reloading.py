"""Promoted artifacts put to use while requests run."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from services.ingest.retrying import RetryingThread
from services.metrics import Metrics
from services.schema import DependencyState
from services.storage.artifacts import Artifact, ArtifactRegistry

RETRY_S = 60.0
"""An artifact that was refused is tried again after this: the disk, not the artifact, may have been at fault."""


class Reloader:
    """Watches the pointer of one kind of artifact. What cannot be used is refused, and what was in use stays."""

    def __init__(
        self,
        kind: str,
        registry: ArtifactRegistry,
        *,
        version: str,
        replace: Callable[[Artifact], None],
        interval_s: float,
        metrics: Metrics,
        logger: structlog.typing.FilteringBoundLogger,
    ) -> None:
        """version: what is in use now.  replace: takes a verified artifact into use, or raises and changes nothing."""
        self.version = version
        self.refused: tuple[str, str] | None = None
        """The promoted version that is not in use, and why."""
        self.kind = kind
        self._registry = registry
        self._replace = replace
        self._interval_s = interval_s
        self._metrics = metrics
        self._logger = logger.bind(kind=kind)
        self._refused_at_s = 0.0
        self._thread = RetryingThread(f"{kind}-model", self._step, metrics=metrics, logger=logger)
        self.start = self._thread.start
        self.stop = self._thread.stop
        self.join = self._thread.join
        metrics.watch(
            f"{kind}_model_refused", "1 while a promoted model is not in use", lambda: float(bool(self.refused))
        )

    def state(self) -> DependencyState:
        """Ready whatever was refused: the model in use goes on answering."""
        detail = f"version {self.version}"
        if self.refused is not None:
            detail += f"; promoted version {self.refused[0]} refused: {self.refused[1]}"
        if self._thread.failure is not None:
            detail += f"; retrying: {self._thread.failure}"
        return DependencyState(ready=True, detail=detail)

    def check(self) -> bool:
        """Put the promoted version to use if it is not; return whether it was put to use now."""
        version = self._registry.current(self.kind)
        if version is None or version == self.version:
            self.refused = None
            return False
        waiting = time.monotonic() - self._refused_at_s < RETRY_S
        if self.refused is not None and self.refused[0] == version and waiting:
            return False
        try:
            self._replace(self._registry.open(self.kind, version))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the model in use stays
            self._refuse(version, error)
            return False
        self._logger.info("model replaced", version=version, previous=self.version)
        self.version, self.refused = version, None
        self._metrics.model_reloads.labels(self.kind, "replaced").inc()
        return True

    def _refuse(self, version: str, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        self.refused, self._refused_at_s = (version, reason), time.monotonic()
        self._metrics.model_reloads.labels(self.kind, "refused").inc()
        self._logger.error("promoted model refused", version=version, kept=self.version, reason=reason, exc_info=error)

    def _step(self) -> None:
        self._thread.pause(self._interval_s)
        if not self._thread.stopping:
            self.check()
