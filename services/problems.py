"""Errors on the wire: RFC 9457 problem details, and the one table from exceptions to status codes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"

_TITLES = {
    400: "Bad request",
    401: "API key missing or wrong",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Body too large",
    415: "Unsupported media type",
    422: "Request not valid",
    500: "Internal error",
    503: "Dependency unavailable",
    504: "Over budget",
}


class Problem(HTTPException):
    """A refusal with everything the caller needs to mend it.

    `kind` becomes the `type` URI reference (`/problems/<kind>`), `errors` the list of
    `{"pointer", "detail", "value"?, "in"?}`, `extra` further members of the problem object.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(status_code=status, detail=detail, headers=dict(headers) if headers else None)
        self.kind = kind
        self.errors = list(errors)
        self.extra = dict(extra or {})


def error_entry(pointer: str, detail: str, **more: Any) -> dict[str, Any]:
    """One entry of `errors`; `pointer` is a JSON pointer (RFC 6901) into the request body."""
    return {"pointer": pointer, "detail": detail, **more}


def brief(value: object) -> object:
    """A value as an error shows it: numbers as they are, anything longer than a line cut off."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else text[:200] + "..."


def invalid(pointer: str, detail: str, *, kind: str = "request-not-valid", **more: Any) -> Problem:
    """422 for one place of the request."""
    return Problem(422, kind, detail, errors=[error_entry(pointer, detail, **more)])


def unknown(noun: str, id_: str) -> Problem:
    """404 for an item or a user that is not stored."""
    return Problem(404, f"unknown-{noun}", f"no {noun} {id_!r}")


def unavailable(dependency: str, detail: str, *, retry_after_s: int = 1) -> Problem:
    """503 that names the dependency and when to come back."""
    return Problem(
        503,
        "dependency-unavailable",
        f"{dependency} is unavailable: {detail}",
        headers={"Retry-After": str(retry_after_s)},
        extra={"dependency": dependency},
    )


def busy(detail: str, *, retry_after_s: int) -> Problem:
    """503: there is work enough for now, and none of this was begun."""
    return Problem(503, "busy", detail, headers={"Retry-After": str(retry_after_s)})


def over_budget(detail: str) -> Problem:
    """504: the time budget ran out and no fallback could answer either."""
    return Problem(504, "over-budget", detail)


def join_pointer(parts: Iterable[str | int]) -> str:
    """JSON pointer of a path: `~` and `/` escaped as RFC 6901 asks."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def problem_response(problem: HTTPException, *, instance: str, request_id: str) -> Response:
    """The response of a problem, or of a plain HTTP exception of the framework."""
    status = problem.status_code
    kind = problem.kind if isinstance(problem, Problem) else _kind_of(status)
    content: dict[str, Any] = {
        "type": f"/problems/{kind}",
        "title": _TITLES.get(status, "Error"),
        "status": status,
        "detail": str(problem.detail),
        "instance": instance,
        "request_id": request_id,
    }
    if isinstance(problem, Problem):
        if problem.errors:
            content["errors"] = problem.errors
        content.update(problem.extra)
    try:
        body = orjson.dumps(content, default=str)
    except TypeError:  # a value of the request that is no Unicode: a lone surrogate, which JSON can only escape
        body = json.dumps(content, default=str).encode()
    return Response(body, status_code=status, headers=problem.headers, media_type=MEDIA_TYPE)


def _kind_of(status: int) -> str:
    return _TITLES.get(status, "error").lower().replace(" ", "-")


def from_validation(error: RequestValidationError) -> Problem:
    """400 for a body that is not JSON, 422 for one that does not fit, every misfit with its pointer."""
    entries = error.errors()
    for entry in entries:
        if entry["type"] == "json_invalid":
            reason = str(entry.get("ctx", {}).get("error", entry["msg"]))
            position = entry["loc"][-1]
            return Problem(400, "json-not-valid", f"the body is not JSON: {reason} at byte {position}")
    errors = [_validation_entry(entry) for entry in entries]
    first = errors[0]
    where = first.get("in", "body")
    detail = f"{where}{first['pointer'] or '/'}: {first['detail']}"
    if len(errors) > 1:
        detail += f" (and {len(errors) - 1} more)"
    return Problem(422, "request-not-valid", detail, errors=errors)


def _validation_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    place, *path = entry["loc"]
    # The branch of a union that pydantic tried stands in the location; it is no part of the document.
    path = [part for part in path if not (isinstance(part, str) and part in _UNION_BRANCHES)]
    result = error_entry(join_pointer(path), _sentence(entry))
    if place != "body":
        result["in"] = place
    if entry["type"] not in ("missing", "extra_forbidden"):
        result["value"] = brief(entry.get("input"))
    return result


_UNION_BRANCHES = frozenset({"str", "list[str]", "dict[str,any]"})


def _sentence(entry: Mapping[str, Any]) -> str:
    message = str(entry["msg"])
    return message.removeprefix("Value error, ")
