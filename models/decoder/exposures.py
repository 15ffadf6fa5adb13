"""What members were shown and did not act on, beside what they did: the questions that a decoder learns to answer."""

# n = exposures

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.data.events import EventTable
from models.data.schema import FeatureSchema

_DAY_MS = 24 * 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposureConfig:
    exposed: tuple[str, ...] = ()
    """Actions whose events say that an item was before the member, such as watching it. Impressions, the events that
    are no action, always do."""
    horizon_ms: int = _DAY_MS
    """What follows on the same item within this time answers an exposure, and is no exposure of its own. An answer is
    told where the exposure is, so later exposures know it before it was given: keep it short."""
    max_negatives: float = 4.0
    """Exposures without the action that training keeps for each one with it, evenly drawn. The loss is corrected."""

    def __post_init__(self) -> None:
        if self.max_negatives <= 0.0:
            raise ValueError(f"max_negatives is {self.max_negatives}; expected more than 0")
        if self.horizon_ms < 0:
            raise ValueError(f"horizon_ms is {self.horizon_ms}; expected 0 or more")


@dataclass(frozen=True, slots=True)
class Exposures:
    """n exposures in order of time, members' ties in the order of the events."""

    user_keys: NDArray[np.int64]
    item_keys: NDArray[np.int64]
    ts_ms: NDArray[np.int64]
    actions: NDArray[np.uint32]
    """uint32[n]: masks of what followed, the schema's i-th action as bit i."""
    labels: NDArray[np.bool_]
    """bool[n]: whether the action asked for is among them."""
    log_rate: NDArray[np.float32]
    """float32[n]: log of the chance at which an exposure like this one is kept when its label is no."""

    def __len__(self) -> int:
        return len(self.ts_ms)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Exposures:
        """Return the exposures at `rows`, which must keep the order of time."""
        columns = (self.user_keys, self.item_keys, self.ts_ms, self.actions, self.labels, self.log_rate)
        return Exposures(*(column[rows] for column in columns))  # type: ignore[arg-type]

    def thinned(self, max_negatives: float, seed: int) -> tuple[Exposures, NDArray[np.int64]]:
        """Return at most `max_negatives` exposures without the action for each one with it, and the rows they are.

        Those without are drawn at one rate, which `log_rate` says; with none that has the action, all are kept.
        """
        positives = int(self.labels.sum())
        negatives = len(self) - positives
        if not positives or negatives <= max_negatives * positives:
            return self, np.arange(len(self))
        rate = max_negatives * positives / negatives
        rows = np.flatnonzero(self.labels | (np.random.default_rng(seed).random(len(self)) < rate))
        kept = self.take(rows)
        return replace(kept, log_rate=kept.log_rate + np.float32(np.log(rate))), rows

    def by_member(self) -> Iterator[NDArray[np.int64]]:
        """Yield each member's rows, in order of time; members in order of key."""
        order = np.argsort(self.user_keys, kind="stable")
        cuts = np.flatnonzero(np.diff(self.user_keys[order])) + 1
        yield from (rows for rows in np.split(order, cuts) if len(rows))


def find_exposures(
    schema: FeatureSchema, events: EventTable, action: str, config: ExposureConfig | None = None
) -> Exposures:
    """Return what members were exposed to, and whether `action` followed.

    Negatives are what was before the member and not acted on, never items drawn at random: a model that tells liked
    films from films nobody showed learns what is shown. An item that comes before a member again is another exposure.

    Raises ValueError for an action that the schema has not.
    """
    config = config or ExposureConfig()
    bits = sum(1 << schema.bit(exposed) for exposed in config.exposed)
    shown = (events.action_masks == 0) | ((events.action_masks & np.uint32(bits)) != 0)
    shown, actions = _followed(events, shown, config.horizon_ms)
    labels = ((actions >> np.uint32(schema.bit(action))) & np.uint32(1)).astype(np.bool_)
    rows = np.flatnonzero(shown)
    log_rate = np.zeros(len(rows), dtype=np.float32)
    return Exposures(events.user_keys[rows], events.item_keys[rows], events.ts_ms[rows], actions, labels, log_rate)


def _followed(
    events: EventTable, shown: NDArray[np.bool_], horizon_ms: int
) -> tuple[NDArray[np.bool_], NDArray[np.uint32]]:
    """Return bool[events]: which of the shown ones are exposures, and for each of those a mask of what followed.

    An exposure takes every event of its member and item from its instant to the horizon. A shown event that is taken
    so is none, but for impressions: showing an item again is another one.
    """
    pairs = np.stack([events.user_keys, events.item_keys], axis=1)
    _, pair = np.unique(pairs, axis=0, return_inverse=True)
    order = np.argsort(pair.reshape(-1), kind="stable")  # events of a pair together, in order of time
    ends = np.append(np.flatnonzero(np.diff(pair.reshape(-1)[order])) + 1, len(order))
    exposed = np.zeros(len(events), dtype=np.bool_)
    masks = np.zeros(len(events), dtype=np.uint32)
    begin = 0
    for end in ends.tolist() if len(order) else []:
        rows = order[begin:end].tolist()
        begin = end
        until_ms = -1
        for place, row in enumerate(rows):
            ts_ms, is_impression = int(events.ts_ms[row]), events.action_masks[row] == 0
            if not shown[row] or (ts_ms <= until_ms and not is_impression):
                continue
            until_ms = ts_ms + horizon_ms
            exposed[row] = True
            for later in rows[place:]:
                if events.ts_ms[later] > until_ms:
                    break
                masks[row] |= events.action_masks[later]
    return exposed, masks[exposed]
