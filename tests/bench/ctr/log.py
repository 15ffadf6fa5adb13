"""An impression log: requests in order of time, what each showed and what was done with it.

`prepare` turns it into the ranker's own training examples, so that every model is given the features that serving
computes, read at each request's instant from strictly earlier events.
"""

# n = candidates of a request, T = tasks, C = columns of the impressions' context, F = candidate features

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.data.events import EventCursor, EventTable
from models.data.items import ItemTable
from models.data.schema import FeatureSchema
from models.ranking.examples import Example
from models.ranking.features import FeatureAssembler, RequestFeatures

Progress = Callable[[str], None]

SPLITS = ("train", "validation", "test", "later")
"""In order of time. Models are fitted on the first, tuned and calibrated on the second and judged on the other two
together; the two apart show what drift does."""


class Request(NamedTuple):
    """What one member was shown at one instant."""

    user_key: int
    now_ms: int
    keys: NDArray[np.int64]
    """int64[n]: the items shown."""
    labels: NDArray[np.bool_]
    """bool[n, T]."""
    context: NDArray[np.float32]
    """float32[n, C]: how each item was shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImpressionLog:
    name: str
    schema: FeatureSchema
    """Its tasks are those of the labels; the first is the one that models are compared on."""
    items: ItemTable
    users: Mapping[int, Mapping[str, object]]
    events: EventTable
    """Everything that features may be read from, impressions' outcomes among it: read only up to each request."""
    requests: Sequence[Request]
    """Oldest first."""
    splits_ms: tuple[int, int, int]
    """Where validation, test and the later test window begin."""
    context_names: tuple[str, ...] = ()

    def split_of(self, now_ms: int) -> str:
        """Return the split of a request at that instant."""
        return SPLITS[sum(now_ms >= start for start in self.splits_ms)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedLog:
    """The log's examples by split, in order of time."""

    log: ImpressionLog
    num_candidate: int
    """F + C: numeric features of a candidate, its context's columns last."""
    num_member: int
    examples: Mapping[str, Sequence[Example]]
    user_keys: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """int64[rows] by split: whose row it is."""

    def labels(self, split: str) -> NDArray[np.bool_]:
        """Return bool[rows, T]."""
        return np.concatenate([example.labels for example in self.examples[split]])

    def keys(self, split: str) -> NDArray[np.int64]:
        """Return int64[rows]: the items."""
        return np.concatenate([example.keys for example in self.examples[split]])


def prepare(log: ImpressionLog, progress: Progress | None = None) -> PreparedLog:
    """Read every request's features at its instant."""
    assembler = FeatureAssembler(log.schema, *item_statistics(log.items))
    cursor = EventCursor(log.schema, log.events, log.users)
    examples: dict[str, list[Example]] = {split: [] for split in SPLITS}
    owners: dict[str, list[NDArray[np.int64]]] = {split: [] for split in SPLITS}
    for number, request in enumerate(log.requests):
        if progress is not None and number % 5000 == 0:
            progress(f"{log.name}: features of {number} / {len(log.requests)} requests")
        cursor.advance(request.now_ms)
        user = cursor.user(request.user_key)
        features = assembler(
            user,
            log.items.gather(user.history.keys),
            log.items.gather(request.keys),
            cursor.signals(request.keys),
            np.full(len(request.keys), np.nan, dtype=np.float32),  # no retrieval stage showed these
            request.now_ms,
        )
        with_context = RequestFeatures(np.hstack([features.candidates, request.context]), features.member)
        split = log.split_of(request.now_ms)
        examples[split].append(
            Example(
                user_key=request.user_key,
                user=user,
                now_ms=request.now_ms,
                keys=request.keys,
                features=with_context,
                labels=request.labels,
                log_rate=np.zeros(len(request.keys), dtype=np.float32),
                held_out=split != "train",
            )
        )
        owners[split].append(np.full(len(request.keys), request.user_key))
    empty = [split for split, found in examples.items() if not found]
    if empty:
        raise ValueError(f"{log.name}: no request in {', '.join(empty)}; splits begin at {log.splits_ms}")
    return PreparedLog(
        log=log,
        num_candidate=len(assembler.candidate_names) + len(log.context_names),
        num_member=len(assembler.member_names),
        examples=examples,
        user_keys={split: np.concatenate(found) for split, found in owners.items()},
    )


def item_statistics(items: ItemTable) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and deviation of every numeric item feature, as training takes them."""
    catalogue = items.gather(items.keys())
    num_numbers = catalogue.numbers.shape[1]
    centers, scales = np.zeros(num_numbers), np.ones(num_numbers)
    for column in range(num_numbers):
        present = catalogue.numbers[~catalogue.missing[:, column], column].astype(np.float64)
        if len(present):
            centers[column], scales[column] = present.mean(), max(float(present.std()), 1e-6)
    return centers, scales
