"""What an ingest process answers: how far its followers are. Every other part of the platform answers it as well."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from fastapi import Query as Parameters
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from services.gateway.answers import json_response
from services.ingest.offsets import Position
from services.ingest.visibility import Visibility
from services.schema import Wire
from services.storage.streams import StreamName


class AppliedParameters(BaseModel):
    """Query string of /internal/applied."""

    model_config = ConfigDict(extra="forbid")

    stream: StreamName
    offset: Annotated[str, Field(pattern=r"^[0-9]{1,20}-[0-9]{1,20}$")]
    timeout_ms: Annotated[int, Field(ge=0, le=60_000)] = 0


class Applied(Wire):
    """Whether this process has applied an entry."""

    applied: bool


def applied_router(local: Visibility) -> APIRouter:
    """GET /internal/applied.  local: what this process itself applies."""
    router = APIRouter(prefix="/internal", tags=["internal"])

    @router.get("/applied", response_model=Applied, summary="Wait until this process has applied a stream entry")
    async def applied(parameters: Annotated[AppliedParameters, Parameters()]) -> Response:
        position = Position(parameters.stream, parameters.offset)
        return json_response(Applied(applied=await local.wait([position], parameters.timeout_ms)))

    return router
