"""The gateway's routes, in the order in which they match."""

from __future__ import annotations

from fastapi import APIRouter

from services.gateway.documents import documents_router
from services.gateway.events import events_router
from services.gateway.gateway import Gateway
from services.gateway.recommendations import recommendations_router
from services.gateway.scenarios import scenarios_router
from services.llm.calls import NotAsked
from services.llm.scheduler import Refused
from services.problems import Problem, brief, busy, invalid, over_budget, unavailable
from services.processes.frames import FrameError
from services.processes.remote import RemoteUnavailable
from services.storage.errors import KeyCollision, StorageUnavailable, VersionConflict


def gateway_routers(gateway: Gateway) -> list[APIRouter]:
    """Every /v1 route. Slates first: an id may contain slashes, so /v1/users/{id} would match them too."""
    return [
        recommendations_router(gateway),
        events_router(gateway),
        scenarios_router(gateway),
        documents_router(gateway, "item"),
        documents_router(gateway, "user"),
    ]


def problem_of(error: Exception) -> Problem | None:
    """The problem that an exception of a dependency means to the caller; None for one that is our own fault."""
    if isinstance(error, StorageUnavailable):
        return unavailable("storage", "it does not answer")
    if isinstance(error, RemoteUnavailable):
        return unavailable(error.name, error.detail)
    if isinstance(error, KeyCollision):
        return Problem(409, "key-collision", str(error), extra={"ids": list(error.ids)})
    if isinstance(error, VersionConflict):
        extra = {"expected": error.expected, "actual": error.actual}
        return Problem(409, "version-conflict", str(error), extra=extra)
    if isinstance(error, FrameError):
        return Problem(422, "frame-not-valid", str(error))
    if isinstance(error, Refused):
        return busy(str(error), retry_after_s=error.retry_after_s)
    if isinstance(error, NotAsked):
        return invalid(error.pointer, str(error), value=brief(error.value))
    if isinstance(error, TimeoutError):
        return over_budget(str(error))
    return None
