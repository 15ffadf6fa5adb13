"""Training examples: requests replayed in order of time, with the candidates the sources would have returned.

Every feature of a request is read at its instant from strictly earlier events; labels are what the member did from
that instant on.
"""

# n = candidates, T = tasks, S = signals

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from models.data.attributes import is_numeric
from models.data.events import EventCursor, EventTable, HistoryBuilder
from models.data.items import ItemTable
from models.data.schema import FeatureSchema
from models.data.state import UserState
from models.ranking.dwell import DwellConfig, label_by_day
from models.ranking.features import FeatureAssembler, RequestFeatures
from models.retrieval.model import RetrievalModel
from models.train.loop import Progress

_HOUR_MS = 3_600_000
_ENCODE_TOGETHER = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleConfig:
    window_share: float = 0.4
    """Share of the events, the newest, whose members' requests are replayed."""
    session_gap_ms: int = _HOUR_MS
    """A member's visit begins with an event so long after the one before it. Every visit's start is a request."""
    stride: int = 5
    """And, inside a visit, about every so-manieth event."""
    horizon_ms: int = 30 * 24 * _HOUR_MS
    """A label is set when the action happens within this time from the request."""
    max_requests: int = 6000
    """Requests that are kept, evenly drawn."""
    per_source: int = 100
    """Candidates from each source: every signal of the positive action, and the towers."""
    max_negatives: int = 60
    """Retrieved candidates without any label that are kept of a training request, evenly drawn."""
    max_outside: int = 30
    """Items no source retrieved that are added, evenly drawn. Actions on such items are kept, and without their like
    among the negatives the model would learn that whatever is not retrieved is wanted."""
    held_out_share: float = 0.12
    """Share of the members whose requests calibrate and do not train."""
    long_dwell: str | None = None
    """The action, if any, whose events' values are dwells and which is a label only where the dwell is long for the
    item's type."""
    dwell_type: str | None = None
    """The keyword feature of items that is their type there; None: all items are of one type."""
    dwell: DwellConfig = field(default_factory=DwellConfig)

    def __post_init__(self) -> None:
        if not 0.0 < self.window_share <= 1.0:
            raise ValueError(f"window_share is {self.window_share}; expected above 0, up to 1")
        if not 0.0 <= self.held_out_share < 1.0:
            raise ValueError(f"held_out_share is {self.held_out_share}; expected 0 up to 1")
        if min(self.stride, self.max_requests, self.per_source, self.max_negatives, self.max_outside) < 1:
            raise ValueError(f"stride, max_requests, per_source, max_negatives, max_outside must be >= 1: {self}")


@dataclass(frozen=True, slots=True)
class Example:
    """One request: what was known, what was ranked, what happened."""

    user_key: int
    user: UserState
    now_ms: int
    keys: NDArray[np.int64]
    features: RequestFeatures
    labels: NDArray[np.bool_]
    """bool[n, T]."""
    log_rate: NDArray[np.float32]
    """float32[n]: log of the chance at which a candidate like this one, retrieved or not, is kept when it has no
    label; with a label it always is."""
    held_out: bool


def replay_examples(
    schema: FeatureSchema,
    items: ItemTable,
    users: Mapping[int, Mapping[str, object]],
    events: EventTable,
    retrieval: RetrievalModel,
    assembler: FeatureAssembler,
    config: ExampleConfig,
    seed: int,
    progress: Progress | None = None,
    since_ms: int | None = None,
) -> Iterator[Example]:
    """Yield the window's requests in order of time; one without a candidate that was acted on is left out.

    since_ms: where the window begins; None: where the config's `window_share` of the events does.

    `retrieval` must not have been trained on the window, or its scores will look better here than they will be.
    """
    random = np.random.default_rng(seed)
    requests = _requests(events, config, random, since_ms)
    held_out = _held_out_users(events, config, random)
    cursor = EventCursor(schema, events, users)
    catalogue = np.sort(items.keys())
    item_vectors_ND = retrieval.encode_items(items.gather(catalogue))
    histories = HistoryBuilder(events, schema.history_length)
    outcomes = HistoryBuilder(_with_long_dwells(schema, items, events, config), schema.history_length)
    sources = [place for place, signal in enumerate(schema.signals) if signal.action == schema.positive]
    for start in range(0, len(requests), _ENCODE_TOGETHER):
        chunk = requests[start : start + _ENCODE_TOGETHER]
        if progress is not None:
            progress(min(start + _ENCODE_TOGETHER, len(requests)), len(requests), {})
        states = [UserState(users.get(user, {}), histories.history(user, now)) for now, user in chunk]
        vectors_BD = retrieval.encode_users(states, [now for now, _ in chunk])
        for (now_ms, user_key), state, vector_D in zip(chunk, states, vectors_BD, strict=True):
            cursor.advance(now_ms)
            outcome = outcomes.outcome(user_key, now_ms, now_ms + config.horizon_ms)
            signals = cursor.signals(catalogue)
            scores = item_vectors_ND @ vector_D
            allowed = ~np.isin(catalogue, cursor.seen(user_key))
            pool = _pool([*(signals[:, source] for source in sources), scores], allowed, config.per_source)
            labels = _labels(schema, outcome, catalogue)
            out = user_key in held_out
            acted_on = labels.any(axis=1) & allowed
            if out:
                # As in service: what was retrieved, all of it.
                rows = np.flatnonzero(pool)
                log_rate = np.zeros(len(rows), dtype=np.float32)
            else:
                rows, log_rate = _sample(pool, allowed, acted_on, config, random)
            if not labels[rows].any():
                continue
            features = assembler(
                state,
                items.gather(state.history.keys),
                items.gather(catalogue[rows]),
                signals[rows],
                scores[rows],
                now_ms,
            )
            yield Example(user_key, state, now_ms, catalogue[rows], features, labels[rows], log_rate, out)


def _with_long_dwells(schema: FeatureSchema, items: ItemTable, events: EventTable, config: ExampleConfig) -> EventTable:
    """Return the events, of whose dwells only long ones are still the action that the config names.

    Labels only: in histories and signals the action stays what the schema's bounds say, in training as in service.
    """
    if config.long_dwell is None:
        return events
    bit = np.uint32(1) << np.uint32(schema.bit(config.long_dwell))
    dwells = np.flatnonzero(events.action_masks & bit)
    kinds = np.zeros(len(dwells), dtype=np.int64)
    if config.dwell_type is not None:
        bags = [feature.name for feature in schema.item if not is_numeric(feature)]
        if config.dwell_type not in bags:
            raise ValueError(f"dwell_type is {config.dwell_type!r}; expected one of {bags}")
        bag = items.gather(events.item_keys[dwells]).bags[bags.index(config.dwell_type)]
        kinds = bag[:, 0] if bag.shape[1] else kinds
    long, _ = label_by_day(events.values[dwells], kinds[:, None], events.ts_ms[dwells], config.dwell)
    masks = events.action_masks.copy()
    masks[dwells[~long]] &= ~bit
    return replace(events, action_masks=masks)


def _requests(
    events: EventTable, config: ExampleConfig, random: np.random.Generator, since_ms: int | None
) -> list[tuple[int, int]]:
    """Return (instant, user key) of the window's requests, oldest first."""
    acted = events.take(events.action_masks != 0)
    if not len(acted):
        return []
    start_ms = acted.quantile_ms(1.0 - config.window_share) if since_ms is None else since_ms
    order = np.argsort(acted.user_keys, kind="stable")
    user_keys, ts_ms = acted.user_keys[order], acted.ts_ms[order]
    first_of_user = np.append(True, user_keys[1:] != user_keys[:-1])
    starts = first_of_user | np.append(True, np.diff(ts_ms) > config.session_gap_ms)
    inside = random.random(len(ts_ms)) < 1.0 / config.stride
    chosen = np.flatnonzero((starts | inside) & (ts_ms >= start_ms))
    if len(chosen) > config.max_requests:
        chosen = random.choice(chosen, size=config.max_requests, replace=False)
    return sorted(set(zip(ts_ms[chosen].tolist(), user_keys[chosen].tolist(), strict=True)))


def _held_out_users(events: EventTable, config: ExampleConfig, random: np.random.Generator) -> frozenset[int]:
    user_keys = np.unique(events.user_keys)
    return frozenset(user_keys[random.random(len(user_keys)) < config.held_out_share].tolist())


def _pool(
    columns: Sequence[NDArray[np.float64] | NDArray[np.float32]], allowed: NDArray[np.bool_], per_source: int
) -> NDArray[np.bool_]:
    """Return bool[n]: the union of every source's best allowed items. A signal of 0 recommends nothing."""
    pool = np.zeros(len(allowed), dtype=np.bool_)
    for place, column in enumerate(columns):
        is_tower = place == len(columns) - 1
        usable = np.flatnonzero(allowed if is_tower else allowed & (column > 0))
        if len(usable) > per_source:
            best = np.argpartition(-column[usable], per_source - 1)[:per_source]
            usable = usable[best]
        pool[usable] = True
    return pool


def _labels(schema: FeatureSchema, outcome: EventTable, catalogue: NDArray[np.int64]) -> NDArray[np.bool_]:
    labels = np.zeros((len(catalogue), len(schema.tasks)), dtype=np.bool_)
    rows = np.minimum(np.searchsorted(catalogue, outcome.item_keys), len(catalogue) - 1)
    known = catalogue[rows] == outcome.item_keys
    for column, task in enumerate(schema.tasks):
        acted = (outcome.action_masks >> np.uint32(schema.bit(task))) & np.uint32(1)
        labels[rows[known & (acted != 0)], column] = True
    return labels


def _sample(
    pool: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
    acted_on: NDArray[np.bool_],
    config: ExampleConfig,
    random: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the rows to keep of a training request and the log rate of each.

    Everything acted on is kept. The others are drawn from two strata, retrieved and not, each at its own rate; a
    held-out request keeps exactly what was retrieved instead, as serving does.
    """
    log_rates = np.zeros(len(pool), dtype=np.float32)
    kept = [np.flatnonzero(acted_on)]
    for stratum, most in ((pool, config.max_negatives), (allowed & ~pool, config.max_outside)):
        negatives = np.flatnonzero(stratum & ~acted_on)
        rate = min(1.0, most / max(1, len(negatives)))
        log_rates[stratum] = np.log(rate)
        kept.append(negatives if rate == 1.0 else random.choice(negatives, size=most, replace=False))
    rows = np.sort(np.concatenate(kept))
    return rows, log_rates[rows]
