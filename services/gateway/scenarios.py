"""Routes that read and edit scenarios: how a slate is ordered."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
from starlette.responses import Response

from services.gateway.answers import json_response
from services.gateway.documents import IfMatch, read_version
from services.gateway.gateway import Gateway
from services.problems import Problem, error_entry, invalid, unknown
from services.ranking.expression import ExpressionError
from services.ranking.scenarios import DEFAULT, LiveValue, UnknownScenario
from services.schema import ExploreBody, ScenarioAnswer, ScenarioBody, ScenarioName, ScenariosAnswer


def scenarios_router(gateway: Gateway) -> APIRouter:
    """GET /v1/scenarios, and GET, PUT and DELETE /v1/scenarios/{name}."""
    router = APIRouter(prefix="/v1/scenarios", tags=["scenarios"])
    scenarios = gateway.scenarios

    @router.get("", response_model=ScenariosAnswer, summary="Every scenario with its value function")
    async def read_all() -> Response:
        return json_response(ScenariosAnswer(scenarios=[_on_wire(live) for live in scenarios.all()]))

    @router.get("/{name}", response_model=ScenarioAnswer, summary="The value function of a scenario")
    async def read(name: ScenarioName) -> Response:
        try:
            return _answer(scenarios.get(name))
        except UnknownScenario as error:
            raise Problem(404, "unknown-scenario", str(error)) from None

    @router.put("/{name}", response_model=ScenarioAnswer, summary="Set how its slates are ordered")
    async def put(name: ScenarioName, body: ScenarioBody, if_match: IfMatch = None) -> Response:
        version = read_version(if_match)
        try:
            live = await gateway.workers.run(scenarios.put, name, body.value, version, explore=body.explore)
        except ExpressionError as error:
            at = {"at": f"char {error.position}"} if isinstance(body.value, str) else {}
            entry = error_entry("/value", error.detail, **at)
            raise Problem(422, "invalid-value", f"value: {error}", errors=[entry]) from None
        except ValueError as error:
            raise invalid("/value", str(error), kind="invalid-value") from None
        gateway.logger.info(
            "scenario set", scenario=name, version=live.version, value=live.function.text, explore=str(live.explore)
        )
        return _answer(live)

    @router.delete("/{name}", status_code=204, summary="Delete a scenario; the default becomes the dataset's again")
    async def delete(name: ScenarioName, if_match: IfMatch = None) -> Response:
        if not await gateway.workers.run(scenarios.delete, name, read_version(if_match)):
            if name == DEFAULT:
                raise Problem(404, "unknown-scenario", "nothing is stored over the dataset's own value function")
            raise unknown("scenario", name)
        gateway.logger.info("scenario deleted", scenario=name)
        return Response(status_code=204)

    return router


def _on_wire(live: LiveValue) -> ScenarioAnswer:
    explore = None if live.explore is None else ExploreBody(**asdict(live.explore))
    return ScenarioAnswer(name=live.scenario, version=live.version, value=live.function.text, explore=explore)


def _answer(live: LiveValue) -> Response:
    return json_response(_on_wire(live), headers={"ETag": f'"{live.version}"'})
