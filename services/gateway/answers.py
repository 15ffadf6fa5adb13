"""From a wire type to a response."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel
from starlette.responses import Response


def json_response(model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The model as JSON. Routes answer it directly: what we made needs no second validation."""
    return Response(model.model_dump_json(), status_code=status, headers=headers, media_type="application/json")
