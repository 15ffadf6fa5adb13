"""Route that takes in events."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from starlette.responses import Response

from services.datasets.attribute_values import BadValue, check_timestamp
from services.gateway.answers import json_response
from services.gateway.gateway import Gateway
from services.gateway.questions import unknown_type
from services.ingest.offsets import Position
from services.keys import key_of
from services.schema import EventIn, EventsRequest, EventsResponse, RejectedEvent
from services.storage.events import Append, Event


def events_router(gateway: Gateway) -> APIRouter:
    """POST /v1/events."""
    router = APIRouter(prefix="/v1", tags=["events"])

    @router.post(
        "/events",
        status_code=202,
        response_model=EventsResponse,
        summary="Append events; an event_id that was taken before changes nothing",
    )
    async def post(request: EventsRequest) -> Response:
        now_ms = gateway.clock.now_ms()
        appends, rejected = await gateway.workers.run(_append, gateway, request.events, now_ms)
        offsets = [append.offset for append in appends if append.offset is not None]
        answer = EventsResponse(
            accepted=len(offsets),
            duplicates=len(appends) - len(offsets),
            rejected=rejected,
            offset=str(Position("events", offsets[-1])) if offsets else None,
            durable=gateway.storage.durable,
        )
        for outcome, count in (
            ("accepted", answer.accepted),
            ("duplicate", answer.duplicates),
            ("rejected", len(rejected)),
        ):
            gateway.metrics.events.labels(outcome).inc(count)
        return json_response(answer, 202)

    return router


def _append(gateway: Gateway, events: Sequence[EventIn], now_ms: int) -> tuple[list[Append], list[RejectedEvent]]:
    ids = list({event.item_id for event in events})
    found = gateway.storage.items.ids_of([key_of(id_) for id_ in ids])
    known = {id_ for id_, stored in zip(ids, found, strict=True) if id_ == stored}
    accepted: list[Event] = []
    rejected: list[RejectedEvent] = []
    for number, event in enumerate(events):
        checked = _check(gateway, event, known, now_ms)
        if isinstance(checked, Event):
            accepted.append(checked)
        else:
            rejected.append(RejectedEvent(index=number, problem=checked))
    return (gateway.storage.events.append(accepted) if accepted else []), rejected


def _check(gateway: Gateway, event: EventIn, known: set[str], now_ms: int) -> Event | str:
    """The event to append, or why it is refused."""
    if event.item_id not in known:
        return f"no item {event.item_id!r}"
    problem = unknown_type(gateway, event.type)
    if problem is not None:
        return problem
    try:
        ts_ms = now_ms if event.ts is None else check_timestamp(event.ts)
    except BadValue as error:
        return f"ts {event.ts!r}: {error}"
    max_future_ms = gateway.settings.ingest.max_future_ms
    if ts_ms > now_ms + max_future_ms:
        return f"ts {ts_ms} is more than {max_future_ms} ms after now, which is {now_ms}"
    return Event(
        event_id=event.event_id,
        user_id=event.user_id,
        item_id=event.item_id,
        type=event.type,
        value=event.value,
        ts_ms=ts_ms,
        recommendation_id=event.recommendation_id,
        position=event.position,
    )
