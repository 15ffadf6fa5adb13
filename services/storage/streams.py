"""The log: append-only streams with consumers that own an offset.

An offset is a stream id, "milliseconds-sequence", given by the server and growing. A consumer's offset is the last
entry it has taken in; it asks for what comes after.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from services.storage.client import Client, Command, Script
from services.storage.errors import OffsetLost
from services.storage.names import Names

StreamName = Literal["items", "users", "events"]
STREAM_NAMES: tuple[StreamName, ...] = ("items", "users", "events")

START = "0-0"
"""The offset before every entry."""

# KEYS: stream, offsets, trimmed.  ARGV: wanted offset "ms", "seq".  Returns how many entries went.
_TRIM = Script("""
local ms, seq = tonumber(ARGV[1]), tonumber(ARGV[2])
for _, offset in ipairs(redis.call('HVALS', KEYS[2])) do
  local m, s = string.match(offset, '^(%d+)-(%d+)$')
  m, s = tonumber(m), tonumber(s)
  if m < ms or (m == ms and s < seq) then ms, seq = m, s end
end
if ms == 0 and seq == 0 then return 0 end
local first = string.format('%d-%d', ms, seq)
local last = redis.call('XREVRANGE', KEYS[1], '(' .. first, '-', 'COUNT', 1)[1]
if not last then return 0 end
redis.call('SET', KEYS[3], last[1])
return redis.call('XTRIM', KEYS[1], 'MINID', first)
""")


@dataclass(frozen=True, slots=True)
class Entry:
    offset: str
    fields: dict[bytes, bytes]


def offset_tuple(offset: str) -> tuple[int, int]:
    """Return the offset as a pair that orders. Raises ValueError for anything but "milliseconds-sequence"."""
    milliseconds, separator, sequence = offset.partition("-")
    if not (separator and milliseconds.isdecimal() and sequence.isdecimal()):
        raise ValueError(f"offset {offset!r} is not a stream offset; expected 'milliseconds-sequence'")
    return int(milliseconds), int(sequence)


class Streams:
    """Thread-safe access to the items, users and events streams."""

    def __init__(self, client: Client, names: Names) -> None:
        self._client = client
        self._names = names

    def read(
        self, name: StreamName, after: str = START, count: int = 1_000, block_ms: int | None = None
    ) -> list[Entry]:
        """Return up to `count` entries after an offset, oldest first; wait up to `block_ms` while there are none."""
        offset_tuple(after)
        if count < 1:
            raise ValueError(f"count is {count}; expected at least 1")
        deadline = time.monotonic() + (block_ms or 0) / 1000
        while True:
            # A server that blocks for longer than the socket's timeout could not be told from one that is gone.
            left_ms = min(int((deadline - time.monotonic()) * 1000), self._client.timeout_ms // 2)
            waiting: Command = ("BLOCK", left_ms) if left_ms > 0 else ()
            reply = self._client.call("XREAD", "COUNT", count, *waiting, "STREAMS", self._names.stream(name), after)
            if reply:
                return [_entry(raw) for raw in reply[0][1]]
            if not waiting:
                return []

    def between(self, name: StreamName, first: str, last: str) -> list[Entry]:
        """Return every entry from `first` to `last`, both included."""
        return [_entry(raw) for raw in self._client.call("XRANGE", self._names.stream(name), first, last)]

    def last_offset(self, name: StreamName) -> str:
        """Return the offset of the newest entry ever appended, also when it has been trimmed; "0-0" if none was."""
        if not self._client.call("EXISTS", self._names.stream(name)):
            return START
        reply = self._client.call("XINFO", "STREAM", self._names.stream(name))
        return str(reply[reply.index(b"last-generated-id") + 1].decode())

    def first_offset(self, name: StreamName) -> str | None:
        """Return the offset of the oldest entry still there."""
        reply = self._client.call("XRANGE", self._names.stream(name), "-", "+", "COUNT", 1)
        return str(reply[0][0].decode()) if reply else None

    def length(self, name: StreamName) -> int:
        return int(self._client.call("XLEN", self._names.stream(name)))

    def register(self, name: StreamName, consumer: str, offset: str = START) -> str:
        """Keep the stream from being trimmed past what `consumer` has taken in; return its offset.

        A consumer known already keeps its own offset, and `offset` is ignored.
        Raises OffsetLost if entries after its offset have been trimmed: reading on would skip them in silence.
        """
        offset_tuple(offset)
        key = self._names.offsets(name)
        commands: list[Command] = [("HSETNX", key, consumer, offset), ("HGET", key, consumer)]
        added, reply, trimmed = self._client.pipeline([*commands, ("GET", self._names.trimmed(name))])
        held = str(reply.decode())
        if trimmed is not None and offset_tuple(held) < offset_tuple(trimmed.decode()):
            if added:
                self.unregister(name, consumer)
            raise OffsetLost(name, consumer, held, trimmed.decode())
        return held

    def unregister(self, name: StreamName, consumer: str) -> None:
        self._client.call("HDEL", self._names.offsets(name), consumer)

    def advance(self, name: StreamName, consumer: str, offset: str) -> None:
        """Record that `consumer` has taken in everything up to `offset`, durably and on its own side."""
        offset_tuple(offset)
        self._client.call("HSET", self._names.offsets(name), consumer, offset)

    def offset_of(self, name: StreamName, consumer: str) -> str | None:
        reply = self._client.call("HGET", self._names.offsets(name), consumer)
        return None if reply is None else str(reply.decode())

    def offsets(self, name: StreamName) -> dict[str, str]:
        """Return every registered consumer's offset."""
        reply = self._client.call("HGETALL", self._names.offsets(name))
        return {reply[i].decode(): reply[i + 1].decode() for i in range(0, len(reply), 2)}

    def trim(self, name: StreamName, min_offset: str) -> int:
        """Drop entries before `min_offset`, and never one that a registered consumer may still need.

        Returns how many went. With no consumer registered nothing holds the stream back.
        """
        keys = [self._names.stream(name), self._names.offsets(name), self._names.trimmed(name)]
        return int(self._client.run(_TRIM, keys, offset_tuple(min_offset)))


def _entry(raw: list[object]) -> Entry:
    offset, pairs = raw
    assert isinstance(offset, bytes) and isinstance(pairs, list)
    return Entry(offset.decode(), dict(zip(pairs[::2], pairs[1::2], strict=True)))
