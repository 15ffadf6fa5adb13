"""One retrieval model with the index of its embeddings: they are handed around together, so that no query of one model
meets vectors of another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.batching import BatchingIndex
from index.filter import Filter
from index.hits import Hits
from index.live import LiveIndex
from models.data.schema import Signal
from models.retrieval.model import RetrievalModel
from services.candidates import Plan


@dataclass(frozen=True, slots=True)
class Embedded:
    """A model, an index that holds nothing but vectors of it, and that index's searches."""

    model: RetrievalModel
    index: LiveIndex
    searches: BatchingIndex

    @classmethod
    def of(cls, model: RetrievalModel, index: LiveIndex) -> Embedded:
        """Raises ValueError for an index of vectors of another length."""
        if index.dim != model.dim:
            raise ValueError(f"the index holds vectors of {index.dim} dimensions; the model's have {model.dim}")
        return cls(model, index, BatchingIndex(index))

    def versions(self) -> dict[str, str]:
        """What an answer is made with."""
        offset = self.index.offsets.get("items", "0-0")
        return {"index": f"{self.model.version}@{offset}", "retrieval_model": self.model.version}

    def by_signal(
        self,
        signal: Signal | None,
        share: float,
        k: int,
        filter: Filter | None,
        exclude: NDArray[np.int64] | None,
    ) -> NDArray[np.int64]:
        """Keys of the items with the largest counts; an item without events is not popular."""
        wanted = round(share * k)
        if signal is None or not wanted:
            return np.zeros(0, np.int64)
        hits = self.index.search_signal(signal.name, wanted, filter, exclude)
        keys: NDArray[np.int64] = hits.keys[0][hits.scores[0] > 0]
        return keys

    def plan(self, hits: Hits) -> Plan:
        """How a search was answered."""
        return Plan(
            matched=hits.num_matched,
            scanned=hits.num_scanned,
            rescored=hits.num_rescored,
            strategy=hits.strategy,
            exact=hits.exact,
            joined=hits.num_joined,
            costs=self.index.costs_from,
        )
