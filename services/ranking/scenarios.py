"""How slates are ordered, by scenario, live: what storage holds over what the dataset says."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from models.data.schema import FeatureSchema
from services.datasets.ranking import ExploreSection
from services.ingest.retrying import RetryingThread
from services.metrics import Metrics
from services.ranking.explore import Explore
from services.ranking.value import ValueFunction, ValueSource
from services.schema import DependencyState
from services.storage.scenarios import Scenario, ScenarioStore

DEFAULT = "default"
"""The scenario of a request that names none; the dataset's value function until another is stored."""


class UnknownScenario(LookupError):
    """A request names a scenario that there is not."""


@dataclass(frozen=True, slots=True)
class LiveValue:
    """How one scenario orders, at one version. A request keeps the one that it began with."""

    scenario: str
    version: int
    """0: the dataset's own."""
    function: ValueFunction
    explore: Explore | None = None
    """None: orders are not drawn."""

    def __str__(self) -> str:
        return f"{self.scenario}/{self.version}"


class Scenarios:
    """Reads never wait: they see the last complete refresh. One object per gateway."""

    def __init__(
        self,
        store: ScenarioStore,
        schema: FeatureSchema,
        default: ValueSource,
        explore: Explore | None = None,
        *,
        interval_s: float,
        metrics: Metrics,
        logger: structlog.typing.FilteringBoundLogger,
    ) -> None:
        """default, explore: the dataset's own value function, and how orders explore where a scenario does not say."""
        self.schema = schema
        self._explore = explore
        self._store = store
        self._default = LiveValue(DEFAULT, 0, ValueFunction.parse(default, schema), explore)
        self._live: Mapping[str, LiveValue] = {DEFAULT: self._default}
        self._refused: Mapping[str, str] = {}
        self._interval_s = interval_s
        self._logger = logger
        self._lock = threading.Lock()  # one refresh at a time, so that an older reading never replaces a newer one
        self._thread = RetryingThread("scenarios", self._step, metrics=metrics, logger=logger)
        self.start = self._thread.start
        self.stop = self._thread.stop
        self.join = self._thread.join
        metrics.watch("scenarios_refused", "Stored scenarios that cannot be used", lambda: float(len(self._refused)))

    def state(self) -> DependencyState:
        """A value function that is a little old endangers no answer: a failure is told, not fatal."""
        problems = [f"scenario {name!r} is not usable: {reason}" for name, reason in self._refused.items()]
        if self._thread.failure:
            problems.append(f"retrying: {self._thread.failure}")
        return DependencyState(ready=True, detail="; ".join(problems) or f"{len(self._live)} scenarios")

    def get(self, name: str) -> LiveValue:
        """The scenario's value function. Raises UnknownScenario, which names the nearest one."""
        found = self._live.get(name)
        if found is None:
            near = difflib.get_close_matches(name, self._live, 1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self._live)}"
            raise UnknownScenario(f"no scenario {name!r}; {hint}")
        return found

    def all(self) -> list[LiveValue]:
        """Every scenario that a request may name, the default first."""
        return list(self._live.values())

    def put(
        self,
        name: str,
        source: ValueSource,
        if_version: int | None = None,
        *,
        explore: ExploreSection | Literal[False] | None = None,
    ) -> LiveValue:
        """Check and store a scenario, and return it; the next request of this process uses it, unless another process
        has stored or deleted one meanwhile.

        explore: how its orders explore; False: they do not; None: as the dataset says.

        Raises ExpressionError or ValueError for one that cannot be used, VersionConflict, StorageUnavailable.
        """
        function = ValueFunction.parse(source, self.schema)
        stored = explore.model_dump() if isinstance(explore, ExploreSection) else explore
        version = self._store.put(name, source, if_version, explore=stored)
        self.refresh()
        return LiveValue(name, version, function, self._explore_of(stored))

    def delete(self, name: str, if_version: int | None = None) -> bool:
        """Delete a stored scenario; the default one falls back to the dataset's. Returns whether there was one."""
        deleted = self._store.delete(name, if_version)
        self.refresh()
        return deleted

    def refresh(self) -> None:
        """Read what storage holds. A stored value that this dataset cannot use keeps its last usable one."""
        with self._lock:
            live: dict[str, LiveValue] = {DEFAULT: self._default}
            refused: dict[str, str] = {}
            for name, scenario in self._store.all().items():
                held = self._live.get(name)
                if held is not None and held.version == scenario.version:
                    live[name] = held
                    continue
                try:
                    live[name] = self._parse(scenario)
                except ValueError as error:
                    refused[name] = str(error)
                    if held is not None:
                        live[name] = held
            for name in refused.keys() - self._refused.keys():
                self._logger.error("stored scenario refused", scenario=name, reason=refused[name])
            self._live, self._refused = live, refused

    def _parse(self, scenario: Scenario) -> LiveValue:
        function = ValueFunction.parse(scenario.value, self.schema)
        return LiveValue(scenario.name, scenario.version, function, self._explore_of(scenario.explore))

    def _explore_of(self, stored: Mapping[str, Any] | Literal[False] | None) -> Explore | None:
        """Raises ValueError for what is stored and not understood."""
        if stored is None:
            return self._explore
        return None if stored is False else Explore.of(ExploreSection.model_validate(stored))

    def _step(self) -> None:
        self._thread.pause(self._interval_s)
        if not self._thread.stopping:
            self.refresh()


def live_values(store: ScenarioStore, default: ValueSource, schema: FeatureSchema) -> dict[str, ValueFunction]:
    """Return every scenario's value function as storage has it now, the default first.

    One that this dataset cannot use is left out; in its place the default has the dataset's own.
    """
    values = {DEFAULT: ValueFunction.parse(default, schema)}
    for name, scenario in store.all().items():
        try:
            values[name] = ValueFunction.parse(scenario.value, schema)
        except ValueError:  # served no more than it is judged with; `Scenarios.refresh` says so
            continue
    return values
