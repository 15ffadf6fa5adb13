"""Routes that write and read items and users."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header
from fastapi import Query as Parameters
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from services.datasets.dataset import SchemaViolation
from services.gateway.answers import json_response
from services.gateway.gateway import Gateway
from services.gateway.recommendations import checked_id
from services.ingest.offsets import Position
from services.problems import Problem, brief, error_entry, invalid, unknown
from services.schema import Document, DocumentBody, WriteResponse
from services.storage.documents import DocumentStore, Write

_ETAG = re.compile(r'"?([0-9]{1,18})"?', re.ASCII)

IfMatch = Annotated[
    str | None,
    Header(description="write only over this version (the ETag of a read); 0: only if there is none"),
]


class WriteParameters(BaseModel):
    """Query string of a write; a parameter that is not here is refused."""

    model_config = ConfigDict(extra="forbid")

    wait_for: Literal["visible"] | None = Field(
        default=None, description="answer once the next recommendation sees the write"
    )
    timeout_ms: Annotated[int, Field(ge=1, le=60_000)] | None = Field(
        default=None, description="how long to wait at most; the server's setting if absent"
    )


def documents_router(gateway: Gateway, noun: Literal["item", "user"]) -> APIRouter:
    """PUT, PATCH, DELETE and GET /v1/items/{id}, or the same of users."""
    store: DocumentStore = gateway.storage.items if noun == "item" else gateway.storage.users
    validate = gateway.dataset.validate_item if noun == "item" else gateway.dataset.validate_user
    router = APIRouter(prefix=f"/v1/{store.name}", tags=[store.name])
    path = "/{identifier:path}"

    async def finish(identifier: str, write: Write, parameters: WriteParameters) -> Response:
        position = Position(store.name, write.offset)
        timeout_ms = 0
        if parameters.wait_for == "visible":
            timeout_ms = parameters.timeout_ms or gateway.settings.ingest.wait_timeout_ms
        answer = WriteResponse(
            id=identifier,
            version=write.version,
            offset=str(position),
            created=write.created,
            visible=await gateway.visibility.wait([position], timeout_ms),
            durable=gateway.storage.durable,
        )
        return json_response(answer, 201 if write.created else 200, {"ETag": f'"{write.version}"'})

    @router.put(path, response_model=WriteResponse, summary=f"Store the {noun}, replacing all its attributes")
    async def put(
        identifier: str,
        body: DocumentBody,
        parameters: Annotated[WriteParameters, Parameters()],
        if_match: IfMatch = None,
    ) -> Response:
        checked_id(identifier)
        attributes = _check(lambda: validate(body.attributes))
        version = read_version(if_match)
        write = await gateway.workers.run(store.put, identifier, attributes, version)
        return await finish(identifier, write, parameters)

    @router.patch(path, response_model=WriteResponse, summary=f"Change some attributes of the {noun}; null deletes one")
    async def patch(
        identifier: str,
        body: DocumentBody,
        parameters: Annotated[WriteParameters, Parameters()],
        if_match: IfMatch = None,
    ) -> Response:
        checked_id(identifier)
        changes = _check(lambda: validate(body.attributes, partial=True))
        version = read_version(if_match)
        write = await gateway.workers.run(store.patch, identifier, changes, version)
        if write is None:
            raise unknown(noun, identifier)
        return await finish(identifier, write, parameters)

    @router.delete(path, response_model=WriteResponse, summary=f"Delete the {noun}")
    async def delete(
        identifier: str,
        parameters: Annotated[WriteParameters, Parameters()],
        if_match: IfMatch = None,
    ) -> Response:
        checked_id(identifier)
        version = read_version(if_match)
        write = await gateway.workers.run(store.delete, identifier, version)
        if write is None:
            raise unknown(noun, identifier)
        return await finish(identifier, write, parameters)

    @router.get(path, response_model=Document, summary=f"Read the {noun}")
    async def get(identifier: str) -> Response:
        document = await gateway.workers.run(store.get, checked_id(identifier))
        if document is None:
            raise unknown(noun, identifier)
        answer = Document(id=document.id, version=document.version, attributes=dict(document.attributes))
        return json_response(answer, headers={"ETag": f'"{document.version}"'})

    return router


def _check(validate: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    try:
        return validate()
    except SchemaViolation as error:
        entries = [
            error_entry(f"/attributes{pointer}", f"expected {expected}", value=brief(value))
            for pointer, value, expected in error.violations
        ]
        raise Problem(422, "schema-violation", str(error), errors=entries) from None


def read_version(if_match: str | None) -> int | None:
    """The version that an If-Match header names, None without one. Raises Problem for what is no version."""
    if if_match is None:
        return None
    match = _ETAG.fullmatch(if_match.strip())
    if match is None:
        detail = f'{if_match!r} is not a version; expected one as an ETag, like "3"'
        raise invalid("/if-match", detail, **{"in": "header"})
    return int(match[1])
