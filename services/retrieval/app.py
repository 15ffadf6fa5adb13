"""What a retrieval process answers: Arrow in, Arrow out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from services.problems import unknown
from services.processes.frames import MEDIA_TYPE
from services.retrieval.client import run_call, unpack_retrieve_call, unpack_similar_call
from services.retrieval.engine import RetrievalEngine
from services.workers import Workers

ARROW_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
}
ARROW_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"description": "an Arrow IPC stream", "content": {MEDIA_TYPE: {}}}
}


def retrieval_router(engine: RetrievalEngine, workers: Workers) -> APIRouter:
    """POST /internal/retrieve and /internal/similar."""
    router = APIRouter(prefix="/internal", tags=["internal"])
    schema = engine.index.config.schema

    @router.post(
        "/retrieve",
        summary="Candidates for a user",
        openapi_extra=ARROW_BODY,
        responses=ARROW_ANSWER,
        response_class=Response,
    )
    async def retrieve(request: Request) -> Response:
        body = await request.body()

        def work() -> bytes:
            return run_call(engine, unpack_retrieve_call(body, schema)).to_arrow()

        return Response(await workers.run(work), media_type=MEDIA_TYPE)

    @router.post(
        "/similar",
        summary="The items nearest to an item",
        openapi_extra=ARROW_BODY,
        responses=ARROW_ANSWER,
        response_class=Response,
    )
    async def similar(request: Request) -> Response:
        call = unpack_similar_call(await request.body(), schema)
        candidates = await workers.run(engine.similar, call.key, call.k, call.filter)
        if candidates is None:
            raise unknown("item", str(call.key))
        return Response(candidates.to_arrow(), media_type=MEDIA_TYPE)

    return router
