"""Routes that answer slates."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from fastapi import Query as Parameters
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask
from starlette.responses import Response

from services.datasets.attribute_values import BadValue, check_id
from services.gateway.answers import json_response
from services.gateway.gateway import Gateway
from services.gateway.questions import make_query, read_filter
from services.keys import key_of
from services.pipeline import plan_on_wire
from services.problems import Problem, invalid, over_budget, unknown
from services.query import Failure
from services.retrieval.client import SimilarCall
from services.schema import (
    DEFAULT_INCLUDE,
    DEFAULT_LIMIT,
    BudgetMs,
    Id,
    Include,
    Limit,
    RecommendationRequest,
    RecommendationResponse,
    ScenarioName,
    SimilarItem,
    SimilarResponse,
)


class RecommendationParameters(BaseModel):
    """Query string of the GET form; a parameter that is not here is refused."""

    model_config = ConfigDict(extra="forbid")

    limit: Limit = DEFAULT_LIMIT
    filter: str | None = None
    scenario: ScenarioName = "default"
    continues: Id | None = None
    explain: bool = False
    budget_ms: BudgetMs | None = None
    include: list[Include] = Field(default_factory=lambda: list(DEFAULT_INCLUDE))
    min_offset: list[str] | None = None


class SimilarParameters(BaseModel):
    """Query string of /similar."""

    model_config = ConfigDict(extra="forbid")

    limit: Limit = DEFAULT_LIMIT
    filter: str | None = None


def recommendations_router(gateway: Gateway) -> APIRouter:
    """POST /v1/recommendations, GET /v1/users/{id}/recommendations, GET /v1/items/{id}/similar."""
    router = APIRouter(prefix="/v1", tags=["recommendations"])

    @router.post(
        "/recommendations", response_model=RecommendationResponse, summary="Recommend items to a user or a visitor"
    )
    async def recommend(request: RecommendationRequest) -> Response:
        return await _recommend(gateway, request, place="body")

    @router.get(
        "/users/{user_id:path}/recommendations",
        response_model=RecommendationResponse,
        summary="Recommend items to a user: the short form",
    )
    async def recommend_to(user_id: str, parameters: Annotated[RecommendationParameters, Parameters()]) -> Response:
        request = RecommendationRequest(user_id=checked_id(user_id), **parameters.model_dump())
        return await _recommend(gateway, request, place="query")

    @router.get(
        "/items/{item_id:path}/similar",
        response_model=SimilarResponse,
        summary="The items nearest to an item, by the retrieval model",
    )
    async def similar(item_id: str, parameters: Annotated[SimilarParameters, Parameters()]) -> Response:
        return await _similar(gateway, checked_id(item_id), parameters)

    return router


def checked_id(identifier: str) -> str:
    """An id of the path, refused with a 422 where it cannot be one."""
    try:
        return check_id(identifier)
    except BadValue as error:
        raise invalid("/id", str(error), **{"in": "path"}) from None


async def _recommend(gateway: Gateway, request: RecommendationRequest, place: str) -> Response:
    trace = gateway.trace(request.budget_ms)
    query = await make_query(gateway, request, place=place)
    slate = await gateway.pipeline.run(query, trace)
    answer = gateway.responder.respond(query, slate, trace)
    for stage, elapsed_ms in trace.watch.laps.items():
        gateway.metrics.stage_seconds.labels(stage).observe(elapsed_ms / 1000.0)
    gateway.metrics.recommendations.labels(str(answer.cold_start).lower()).inc()
    response = json_response(answer)
    log = gateway.log
    if log is not None:

        async def note() -> None:
            if slate.ranked.explored is None:
                log(query, slate)
            else:  # estimating propensities takes milliseconds
                await gateway.workers.run(log, query, slate)

        response.background = BackgroundTask(note)
    return response


async def _similar(gateway: Gateway, item_id: str, parameters: SimilarParameters) -> Response:
    trace = gateway.trace(None)
    call = SimilarCall(
        key=key_of(item_id),
        k=parameters.limit,
        filter=read_filter(gateway, parameters.filter, "query"),
    )

    async def search(left_ms: float) -> Response:
        candidates = await gateway.retrieval.similar(call, left_ms)
        if candidates is None:
            raise await _why_not_held(gateway, item_id)
        ids = await gateway.workers.run(gateway.storage.items.ids_of, candidates.keys)
        found = [(id_, score) for id_, score in zip(ids, candidates.scores.tolist(), strict=True) if id_]
        items = [SimilarItem(id=id_, rank=rank, score=score) for rank, (id_, score) in enumerate(found, 1)]
        return json_response(
            SimilarResponse(
                id=item_id,
                items=items,
                served=gateway.responder.served(candidates.versions),
                filter_plan=plan_on_wire(candidates.plan),
                timings={"total": trace.watch.total_ms()},
            )
        )

    answer = await trace.attempt("arrange", search)
    if not isinstance(answer, Failure):
        return answer
    if answer.cause == "timeout":
        raise over_budget(answer.reason)
    raise Problem(503, "dependency-unavailable", answer.reason, headers={"Retry-After": "1"})


async def _why_not_held(gateway: Gateway, item_id: str) -> Problem:
    if await gateway.workers.run(gateway.storage.items.get, item_id) is None:
        return unknown("item", item_id)
    return Problem(
        503, "not-visible-yet", f"item {item_id!r} is stored but not indexed yet", headers={"Retry-After": "1"}
    )
