"""make_app: what every process offers beside its own routes.

Request ids, an optional API key, a body limit, problem+json for every error, one access-log line per request,
/metrics, /healthz, /readyz, /docs and /openapi.json. Knows nothing of recommendations.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TextIO

import orjson
import structlog
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import SecretStr
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.metrics import CONTENT_TYPE, Metrics
from services.problems import Problem, from_validation, problem_response
from services.schema import DependencyState, ProblemDocument, Readiness
from services.settings import HttpSettings

Check = Callable[[], Awaitable[DependencyState]]
Mapper = Callable[[Exception], Problem | None]
"""Turns an exception of a dependency into a problem; None for one it does not know."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_GUARDED = ("/v1/", "/internal/", "/generative_scoring", "/tokenize")

PROBLEM_RESPONSES: dict[int | str, dict[str, object]] = {
    status: {"model": ProblemDocument, "description": text}
    for status, text in (
        (400, "The body is not JSON"),
        (401, "API key missing or wrong"),
        (404, "No such item, user or route"),
        (409, "Version or key conflict"),
        (413, "Body too large"),
        (422, "The request does not fit; `errors` points at every misfit"),
        (503, "A dependency is unavailable; Retry-After says when to come back"),
        (504, "The time budget ran out and no fallback could answer"),
    )
}


def make_logger(level: str, stream: TextIO | None = None) -> structlog.typing.FilteringBoundLogger:
    """A logger of JSON lines on `stream` (stdout)."""
    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(stream or sys.stdout),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_dump_line),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    return logger


def _dump_line(event: object, **_: object) -> str:
    return orjson.dumps(event, default=str).decode()


def make_app(
    *,
    title: str,
    settings: HttpSettings,
    api_key: SecretStr | None,
    routers: Sequence[APIRouter],
    checks: Mapping[str, Check],
    metrics: Metrics,
    logger: structlog.typing.FilteringBoundLogger,
    mappers: Sequence[Mapper] = (),
    lifespan: Callable[[], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """The FastAPI application of one process.

    checks: by dependency, what /readyz asks.  mappers: exceptions of dependencies to problems.
    """

    @asynccontextmanager
    async def run(_: FastAPI) -> AsyncIterator[None]:
        if lifespan is None:
            yield
            return
        async with lifespan():
            yield

    app = FastAPI(
        title=title,
        version="1",
        lifespan=run,
        redirect_slashes=False,
        responses=PROBLEM_RESPONSES,
        openapi_url="/openapi.json",
        docs_url="/docs",
        redoc_url=None,
    )
    for router in routers:
        app.include_router(router)
    _add_health(app, checks, metrics)
    _add_errors(app, mappers)
    app.add_middleware(
        Edge, settings=settings, key=Key(api_key), metrics=metrics, logger=logger, mappers=tuple(mappers)
    )
    return app


def _add_health(app: FastAPI, checks: Mapping[str, Check], metrics: Metrics) -> None:
    @app.get("/healthz", tags=["health"], summary="This process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"], summary="Every dependency is ready", response_model=Readiness)
    async def readyz() -> Response:
        states = {name: await check() for name, check in checks.items()}
        readiness = Readiness(ready=all(state.ready for state in states.values()), dependencies=states)
        return Response(
            readiness.model_dump_json(),
            status_code=200 if readiness.ready else 503,
            media_type="application/json",
            headers=None if readiness.ready else {"Retry-After": "1"},
        )

    @app.get("/metrics", tags=["health"], summary="Prometheus metrics", response_class=Response)
    def exposition() -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE)


def _add_errors(app: FastAPI, mappers: Sequence[Mapper]) -> None:
    def answer(request: Request, problem: HTTPException) -> Response:
        return problem_response(problem, instance=request.url.path, request_id=request_id_of(request.scope))

    @app.exception_handler(RequestValidationError)
    async def on_validation(request: Request, error: RequestValidationError) -> Response:
        return answer(request, from_validation(error))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        if not isinstance(error, Problem):
            error = _describe(request, error)
        return answer(request, error)


def _describe(request: Request, error: HTTPException) -> HTTPException:
    if error.status_code == 404:
        error.detail = f"no route {request.url.path}"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "none")
        error.detail = f"{request.method} is not possible here; allowed: {allowed}"
    return error


def request_id_of(scope: Scope) -> str:
    """The id that the edge gave this request."""
    return str(scope.get("state", {}).get("request_id", ""))


class Key:
    """The API key, kept as a hash and compared in constant time."""

    def __init__(self, api_key: SecretStr | None) -> None:
        secret = api_key.get_secret_value() if api_key is not None else ""
        self._digest = hashlib.sha256(secret.encode()).digest() if secret else None

    def admits(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether `Authorization: Bearer` or `X-API-Key` carries the key, or none is asked for."""
        if self._digest is None:
            return True
        presented = headers.get(b"x-api-key", b"")
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            presented = token.strip()
        return hmac.compare_digest(hashlib.sha256(presented).digest(), self._digest)


class ClientGone(Exception):
    """The client left before its request was complete: there is nobody to answer."""


class Edge:
    """ASGI middleware, first to see a request and last to see its answer."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: HttpSettings,
        key: Key,
        metrics: Metrics,
        logger: structlog.typing.FilteringBoundLogger,
        mappers: Sequence[Mapper],
    ) -> None:
        self._app = app
        self._settings = settings
        self._key = key
        self._metrics = metrics
        self._logger = logger
        self._mappers = mappers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        failure: Exception | None = None
        try:
            try:
                body = await self._admit(scope, headers, receive)
                await self._app(scope, _replay(body, receive), send_with_id)
            except ClientGone:
                return
            except Exception as error:  # every failure is answered here, and logged
                if status:
                    raise  # the answer has begun; the server must cut the connection
                problem, failure = self._problem_of(error, request_id)
                response = problem_response(problem, instance=scope["path"], request_id=request_id)
                await response(scope, receive, send_with_id)
        finally:
            self._record(scope, request_id, status, (time.perf_counter() - started) * 1000.0, failure)

    async def _admit(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """The whole body of a request that may pass."""
        if scope["path"].startswith(_GUARDED) and not self._key.admits(headers):
            raise Problem(
                401,
                "api-key",
                "present the API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        limit = self._settings.max_body_bytes
        announced = headers.get(b"content-length", b"0")
        chunks: list[bytes] = []
        size = int(announced) if announced.isdigit() else 0
        received = 0
        more = True
        while more and size <= limit:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientGone
            chunks.append(message.get("body", b""))
            received += len(chunks[-1])
            size = max(size, received)
            more = message.get("more_body", False)
        if size > limit:
            raise Problem(413, "body-too-large", f"the body has {size} bytes or more; the limit is {limit}")
        return b"".join(chunks)

    def _problem_of(self, error: Exception, request_id: str) -> tuple[HTTPException, Exception | None]:
        if isinstance(error, HTTPException):
            return error, None
        for mapper in self._mappers:
            problem = mapper(error)
            if problem is not None:
                if problem.status_code >= 500:
                    self._logger.warning(problem.kind, request_id=request_id, reason=str(error))
                return problem, None
        return Problem(500, "internal", "the failure is in the server's log under this request id"), error

    def _record(self, scope: Scope, request_id: str, status: int, elapsed_ms: float, failure: Exception | None) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.http_seconds.labels(method, route, str(status)).observe(elapsed_ms / 1000.0)
        fields = {
            "request_id": request_id,
            "method": method,
            "route": route,
            "status": status,
            "elapsed_ms": round(elapsed_ms, 3),
        }
        if failure is not None:
            self._logger.error("request failed", exc_info=failure, **fields)
        elif self._settings.access_log:
            self._logger.info("request", **fields)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive that hands out the body once and then whatever the server says (a disconnect)."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
