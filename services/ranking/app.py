"""What a ranking process answers: Arrow in, Arrow out."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from services.processes.frames import MEDIA_TYPE
from services.ranking.client import pack_ranking, unpack_rank_call
from services.ranking.engine import RankingEngine
from services.retrieval.app import ARROW_ANSWER, ARROW_BODY
from services.workers import Workers


def ranking_router(engine: RankingEngine, workers: Workers) -> APIRouter:
    """POST /internal/rank."""
    router = APIRouter(prefix="/internal", tags=["internal"])

    @router.post(
        "/rank",
        summary="Calibrated probabilities of candidates",
        openapi_extra=ARROW_BODY,
        responses=ARROW_ANSWER,
        response_class=Response,
    )
    async def rank(request: Request) -> Response:
        body = await request.body()

        def work() -> bytes:
            return pack_ranking(engine.rank(*unpack_rank_call(body)))

        return Response(await workers.run(work), media_type=MEDIA_TYPE)

    return router
