"""Scenarios: a named way to order candidates, edited while requests run. Every version of a name is different."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from services.clock import Clock
from services.storage.client import Client, Script
from services.storage.errors import VersionConflict
from services.storage.names import Names

# KEYS: scenarios.  ARGV: name, content as JSON, now_ms, expected version or ''.  A record is "version now_ms json".
# A deletion keeps its record with null for content, so that a name's versions never come twice. Content is the value,
# or where the scenario says how to explore, an object with both: no weight is an object, or false.
_WRITE = Script("""
local old = redis.call('HGET', KEYS[1], ARGV[1])
local version = 0
if old then version = tonumber(string.match(old, '^(%d+) ')) end
local held = version
if not old or string.match(old, '^%d+ %d+ (.*)$') == 'null' then held = 0 end
if ARGV[4] ~= '' and tonumber(ARGV[4]) ~= held then return {'version', held} end
if held == 0 and ARGV[2] == 'null' then return {'absent', 0} end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d %s %s', version + 1, ARGV[3], ARGV[2]))
return {'ok', version + 1}
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One stored scenario."""

    name: str
    version: int
    """One more with each write; a name deleted and stored again goes on counting."""
    value: str | Mapping[str, float]
    """An expression, or weights by task."""
    explore: Mapping[str, Any] | Literal[False] | None = None
    """How its orders explore; False: they do not; None: as the dataset says."""
    updated_ms: int


class ScenarioStore:
    """Scenarios of one dataset. Writes are atomic, durable where the server is, and visible to the next read."""

    def __init__(self, client: Client, names: Names, clock: Clock) -> None:
        self._client = client
        self._name = names.scenarios
        self._clock = clock

    def all(self) -> dict[str, Scenario]:
        """Every scenario that is not deleted, by name."""
        flat = self._client.call("HGETALL", self._name)
        records = sorted((name.decode(), record) for name, record in zip(flat[::2], flat[1::2], strict=True))
        parsed = [_parse(name, record) for name, record in records]
        return {scenario.name: scenario for scenario in parsed if scenario is not None}

    def put(
        self,
        name: str,
        value: str | Mapping[str, float],
        if_version: int | None = None,
        *,
        explore: Mapping[str, Any] | Literal[False] | None = None,
    ) -> int:
        """Store a scenario and return its version. Arguments as the fields of `Scenario`.

        if_version: write only over this version; 0 means only if there is none.
        Raises VersionConflict, StorageUnavailable.
        """
        content = value if explore is None else {"value": value, "explore": explore}
        return self._write(name, orjson.dumps(content).decode(), if_version)[1]

    def delete(self, name: str, if_version: int | None = None) -> bool:
        """Delete a scenario; return whether there was one. Raises as `put`."""
        return self._write(name, "null", if_version)[0] == "ok"

    def _write(self, name: str, content: str, if_version: int | None) -> tuple[str, int]:
        expected = "" if if_version is None else str(if_version)
        outcome, version = self._client.run(_WRITE, [self._name], [name, content, self._clock.now_ms(), expected])
        if outcome == b"version":
            raise VersionConflict(name, if_version or 0, version)
        return outcome.decode(), version


def _parse(name: str, record: bytes) -> Scenario | None:
    version, updated_ms, text = record.split(b" ", 2)
    content = orjson.loads(text)
    if content is None:
        return None
    said = content.get("explore") if isinstance(content, dict) else None
    explore: Mapping[str, Any] | Literal[False] | None = None
    if isinstance(said, dict) or said is False:
        content, explore = content["value"], said
    return Scenario(name=name, version=int(version), value=content, explore=explore, updated_ms=int(updated_ms))
