"""Candidates: what retrieval hands to ranking, as arrays."""

# n = candidates, S = signals

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.machine import CostsFrom
from services.processes.frames import FrameError, pack, unpack

SOURCES = ("towers", "popular", "recent", "given", "links")
"""Bit i of a candidate's source mask is the i-th name. "given": the request's own `candidates`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the index answered: see the wire type FilterPlan for the meaning of each number."""

    matched: int
    scanned: int
    rescored: int
    strategy: str
    exact: bool
    joined: int = 1
    costs: CostsFrom | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """n candidates in retrieval order, best first."""

    keys: NDArray[np.int64]
    scores: NDArray[np.float32]
    """Inner product of the user's and the item's vector, boosts added; the popularity where that stands in for the
    index."""
    sources: NDArray[np.uint32]
    """Bit mask over SOURCES; an item found by several sources keeps them all."""
    signals: NDArray[np.float64]
    """[n, S], decayed to the time of the request."""
    plan: Plan
    versions: Mapping[str, str]
    """What made them: `index`, `retrieval_model`, and `links` where there are any."""
    unboosted: NDArray[np.float32] | None = None
    """The inner products alone, where `scores` has boosts in it."""

    def __len__(self) -> int:
        return len(self.keys)

    def tower_scores(self) -> NDArray[np.float32]:
        """Inner products where a model made them, else nan: the ranker is told of no count and of no boost."""
        if "retrieval_model" not in self.versions:
            return np.full_like(self.scores, np.nan)
        return self.scores if self.unboosted is None else self.unboosted

    def take(self, rows: NDArray[Any]) -> Candidates:
        """The candidates at `rows`, in that order."""
        return Candidates(
            keys=self.keys[rows],
            scores=self.scores[rows],
            sources=self.sources[rows],
            signals=self.signals[rows],
            plan=self.plan,
            versions=self.versions,
            unboosted=None if self.unboosted is None else self.unboosted[rows],
        )

    def to_arrow(self) -> bytes:
        """Arrow IPC stream."""
        return pack(*self.to_frame())

    def to_frame(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and JSON of a frame, which may hold more beside them."""
        arrays: dict[str, NDArray[Any]] = {
            "keys": self.keys,
            "scores": self.scores,
            "sources": self.sources,
            "signals": self.signals.reshape(-1),
        }
        if self.unboosted is not None:
            arrays["unboosted"] = self.unboosted
        plan = {name: getattr(self.plan, name) for name in Plan.__slots__}
        meta = {"plan": plan, "versions": dict(self.versions), "num_signals": self.signals.shape[1]}
        return arrays, meta

    @classmethod
    def from_arrow(cls, data: bytes) -> Candidates:
        """The reverse of `to_arrow`. Raises FrameError for anything else."""
        return cls.from_frame(*unpack(data))

    @classmethod
    def from_frame(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Candidates:
        """Candidates of an unpacked frame, which may hold more beside them."""
        try:
            return cls(
                keys=arrays["keys"],
                scores=arrays["scores"],
                sources=arrays["sources"],
                signals=arrays["signals"].reshape(len(arrays["keys"]), meta["num_signals"]),
                plan=Plan(**meta["plan"]),
                versions=meta["versions"],
                unboosted=arrays.get("unboosted"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FrameError(f"no candidates in the frame: {error!r}") from error


def source_names(mask: int) -> list[str]:
    """Names of the bits that are set."""
    return [name for bit, name in enumerate(SOURCES) if mask >> bit & 1]
