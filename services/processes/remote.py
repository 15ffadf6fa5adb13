"""HTTP to another process of the platform: Arrow bodies, deadlines as timeouts, failures as one exception."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
from pydantic import SecretStr

from services.problems import Problem
from services.processes.frames import MEDIA_TYPE
from services.schema import DependencyState

_CONNECT_S = 1.0


class RemoteUnavailable(Exception):
    """Another process cannot be reached, or answered something that is no answer."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name} is unavailable: {detail}")
        self.name = name
        self.detail = detail


class Remote:
    """One process at a base URL. Belongs to the event loop that uses it first."""

    def __init__(
        self,
        name: str,
        url: str,
        api_key: SecretStr | None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.name = name
        self.url = url.rstrip("/")
        headers = {"Content-Type": MEDIA_TYPE}
        if api_key is not None and api_key.get_secret_value():
            headers["Authorization"] = f"Bearer {api_key.get_secret_value()}"
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            transport=transport,
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=64),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def post_frame(self, path: str, body: bytes, timeout_ms: float) -> bytes:
        """Send a frame, return the frame that answers; raises RemoteUnavailable, TimeoutError."""
        response = await self._send("POST", path, timeout_ms, content=body)
        if response.status_code != 200:
            raise RemoteUnavailable(self.name, f"{path} answered {response.status_code}: {_detail(response)}")
        return response.content

    async def find_frame(self, path: str, body: bytes, timeout_ms: float) -> bytes | None:
        """As `post_frame`; None where the answer is 404."""
        response = await self._send("POST", path, timeout_ms, content=body)
        if response.status_code == 404:
            return None
        if response.status_code != 200:
            raise RemoteUnavailable(self.name, f"{path} answered {response.status_code}: {_detail(response)}")
        return response.content

    async def forward_frame(self, path: str, body: bytes, timeout_ms: float) -> bytes:
        """As `post_frame` for a client's own question: what is refused there is refused here, in the same words."""
        response = await self._send("POST", path, timeout_ms, content=body)
        if response.status_code == 200:
            return response.content
        problem = _problem(response)
        if problem is None:
            raise RemoteUnavailable(self.name, f"{path} answered {response.status_code}: {_detail(response)}")
        raise problem

    async def wait_applied(self, stream: str, offset: str, timeout_ms: float) -> bool:
        """Ask whether the process has applied an offset, letting it wait for that; nobody is asked without waiting."""
        if timeout_ms <= 0:
            return False
        parameters = {"stream": stream, "offset": offset, "timeout_ms": str(max(1, int(timeout_ms)))}
        response = await self._send("GET", "/internal/applied", timeout_ms + 1000.0, params=parameters)
        if response.status_code != 200:
            raise RemoteUnavailable(self.name, f"answered {response.status_code}: {_detail(response)}")
        return bool(orjson.loads(response.content)["applied"])

    async def state(self) -> DependencyState:
        """What its /readyz says."""
        try:
            response = await self._send("GET", "/readyz", 1000.0)
        except (RemoteUnavailable, TimeoutError) as error:
            return DependencyState(ready=False, detail=f"{self.url}: {error}")
        if response.status_code == 200:
            return DependencyState(ready=True, detail=self.url)
        try:
            states = orjson.loads(response.content)["dependencies"]
            waiting = [f"{name}: {state['detail']}" for name, state in states.items() if not state["ready"]]
        except (ValueError, KeyError, TypeError):
            waiting = [f"answered {response.status_code}"]
        return DependencyState(ready=False, detail=f"{self.url}: " + "; ".join(waiting))

    async def _send(self, method: str, path: str, timeout_ms: float, **arguments: Any) -> httpx.Response:
        timeout = httpx.Timeout(max(timeout_ms, 1.0) / 1000.0, connect=min(_CONNECT_S, max(timeout_ms, 1.0) / 1000.0))
        try:
            return await self._client.request(method, path, timeout=timeout, **arguments)
        except httpx.ConnectTimeout as error:
            raise RemoteUnavailable(self.name, f"no connection to {self.url}") from error
        except httpx.TimeoutException as error:
            raise TimeoutError(f"{self.name} did not answer within {timeout_ms:.0f} ms") from error
        except httpx.TransportError as error:
            raise RemoteUnavailable(self.name, f"{self.url}: {type(error).__name__}") from error


def _problem(response: httpx.Response) -> Problem | None:
    """The refusal that an answer is; None for a failure of the process itself."""
    if response.status_code not in (404, 409, 422, 503, 504):
        return None
    try:
        document = orjson.loads(response.content)
        kind = str(document["type"]).removeprefix("/problems/")
        retry = response.headers.get("retry-after")
        return Problem(
            response.status_code,
            kind,
            str(document["detail"]),
            errors=document.get("errors", ()),
            headers=None if retry is None else {"Retry-After": retry},
        )
    except (ValueError, KeyError, TypeError):
        return None


def _detail(response: httpx.Response) -> str:
    try:
        return str(orjson.loads(response.content)["detail"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
