"""From a wire request to a query: everything about it is checked here, before the pipeline starts."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from index.boosts import Boost
from index.filter import Filter, FilterError, parse_filter
from models.data.state import History
from services.datasets.attribute_values import BadValue, check_timestamp
from services.gateway.gateway import Gateway
from services.ingest.offsets import Position, parse_position
from services.keys import keys_of
from services.problems import Problem, brief, error_entry, invalid
from services.query import Query
from services.ranking.scenarios import LiveValue, UnknownScenario
from services.schema import Exclude, FilterSource, RecommendationRequest, RequestBoost, SessionEvent


async def make_query(gateway: Gateway, request: RecommendationRequest, *, place: str = "body") -> Query:
    """The query of a request. Raises Problem that points at what is wrong.

    place: where the request stood, for the pointers of a GET's parameters.
    """
    if (request.user_id is None) == (request.session is None):
        pointer = "/user_id" if request.user_id is None else "/session"
        raise invalid(pointer, "expected either user_id or session")
    now_ms = gateway.clock.now_ms()
    filter = read_filter(gateway, request.filter, place)
    boosts = tuple(_read_boost(gateway, each, number) for number, each in enumerate(request.boosts))
    value = _read_scenario(gateway, request.scenario, place)
    positions = _read_positions(request.min_offset)
    session = None
    if request.session is not None:
        session = _read_session(gateway, request.session.events, now_ms)
    given = None
    if request.candidates is not None:
        given = await gateway.workers.run(_read_candidates, gateway, request.candidates, filter)
    exclude = request.exclude or Exclude(seen=given is None)
    limit = request.limit
    if given is not None and "limit" not in request.model_fields_set:
        limit = max(1, len(given))
    return Query(
        user_id=request.user_id,
        session=session,
        limit=limit,
        filter=filter,
        boosts=boosts,
        exclude_seen=exclude.seen,
        exclude=np.unique(keys_of(exclude.item_ids)),
        given=given,
        positions=positions,
        now_ms=now_ms,
        value=value,
        explain=request.explain,
        continues=request.continues,
        include=frozenset(request.include),
    )


def _read_boost(gateway: Gateway, boost: RequestBoost, number: int) -> Boost:
    filter = read_filter(gateway, boost.filter, "body", f"/boosts/{number}/filter")
    assert filter is not None  # a request's boost has one
    return Boost(filter, boost.weight)


def read_filter(gateway: Gateway, source: FilterSource | None, place: str, pointer: str = "/filter") -> Filter | None:
    """Parse a filter; a misfit is a 422 that points into it."""
    try:
        return parse_filter(source, gateway.attributes)
    except FilterError as error:
        inside = error.pointer if error.pointer.startswith("/") else ""
        more = {} if place == "body" else {"in": place}
        if error.pointer.startswith("char "):
            more["at"] = error.pointer
        entry = error_entry(f"{pointer}{inside}", error.detail, **more)
        raise Problem(422, "invalid-filter", str(error), errors=[entry]) from None


def _read_scenario(gateway: Gateway, name: str, place: str) -> LiveValue:
    try:
        return gateway.scenarios.get(name)
    except UnknownScenario as error:
        more = {} if place == "body" else {"in": place}
        raise invalid("/scenario", str(error), kind="unknown-scenario", value=name, **more) from None


def unknown_type(gateway: Gateway, name: str) -> str | None:
    """Say that no action is made of this event type, and which one may have been meant; None where one is."""
    if name in gateway.event_types:
        return None
    known = sorted(gateway.event_types)
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"type {name!r} is none of this dataset's event types {', '.join(known)}{hint}"


def _read_positions(source: str | list[str] | None) -> tuple[Position, ...]:
    if source is None:
        return ()
    texts = [source] if isinstance(source, str) else source
    positions = []
    for number, text in enumerate(texts):
        try:
            positions.append(parse_position(text))
        except ValueError as error:
            pointer = "/min_offset" if isinstance(source, str) else f"/min_offset/{number}"
            raise invalid(pointer, str(error), value=brief(text)) from None
    return tuple(positions)


def _read_session(gateway: Gateway, events: Sequence[SessionEvent], now_ms: int) -> History:
    """The history that the events make, oldest first, as the state consumer would have made it."""
    times_ms = []
    for number, event in enumerate(events):
        problem = unknown_type(gateway, event.type)
        if problem is not None:
            raise invalid(f"/session/events/{number}/type", problem, value=event.type)
        try:
            times_ms.append(now_ms if event.ts is None else check_timestamp(event.ts))
        except BadValue as error:
            raise invalid(f"/session/events/{number}/ts", str(error), value=brief(event.ts)) from None
    values = np.array([np.nan if event.value is None else event.value for event in events], np.float64)
    masks = gateway.schema.action_masks([event.type for event in events], values)
    ts_ms = np.array(times_ms, np.int64)
    order = np.argsort(ts_ms, kind="stable")
    order = order[masks[order] != 0][-gateway.schema.history_length :]
    keys = keys_of(event.item_id for event in events)
    return History(keys[order], masks[order], values[order].astype(np.float32), ts_ms[order])


def _read_candidates(gateway: Gateway, ids: Sequence[str], filter: Filter | None) -> NDArray[np.int64]:
    """Keys of the given items, each once, without those that the filter refuses."""
    documents = gateway.storage.items.get_many(ids)
    missing = [number for number, document in enumerate(documents) if document is None]
    if missing:
        errors = [error_entry(f"/candidates/{n}", f"no item {ids[n]!r}", value=ids[n]) for n in missing]
        raise Problem(422, "unknown-item", f"{len(missing)} of the candidates are no items", errors=errors)
    allowed = {d.key: None for d in documents if d is not None and _admits(filter, d.attributes)}
    return np.fromiter(allowed, np.int64, len(allowed))


def _admits(filter: Filter | None, attributes: Mapping[str, object]) -> bool:
    return filter is None or filter.matches(attributes)


def known_event_types(events: Iterable[str]) -> frozenset[str]:
    """The event types of a dataset's actions, and impressions."""
    return frozenset({*events, "impression"})
