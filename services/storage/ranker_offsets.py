"""The ranker's popularity offsets between two starts, with the place in the events stream that they reach."""

from __future__ import annotations

from typing import NamedTuple

from services.storage.client import Client, Script
from services.storage.names import Names
from services.storage.streams import offset_tuple

# KEYS: record.  ARGV: offset "ms", "seq", the offsets.  An older place never replaces a newer one.
_SAVE = Script("""
local held = redis.call('HGET', KEYS[1], 'offset')
if held then
  local m, s = string.match(held, '^(%d+)-(%d+)$')
  m, s = tonumber(m), tonumber(s)
  local ms, seq = tonumber(ARGV[1]), tonumber(ARGV[2])
  if m > ms or (m == ms and s > seq) then return 0 end
end
redis.call('HSET', KEYS[1], 'offset', ARGV[1] .. '-' .. ARGV[2], 'offsets', ARGV[3])
return 1
""")


class StoredOffsets(NamedTuple):
    offset: str
    """Place in the events stream up to which they count."""
    content: bytes


class RankerOffsetStore:
    """One record per dataset, replaced as a whole. Several rankers over one storage do no harm: the furthest wins."""

    def __init__(self, client: Client, names: Names) -> None:
        self._client = client
        self._name = names.ranker_offsets

    def load(self) -> StoredOffsets | None:
        """Return what was stored last."""
        offset, content = self._client.call("HMGET", self._name, "offset", "offsets")
        return None if offset is None or content is None else StoredOffsets(offset.decode(), content)

    def save(self, offset: str, content: bytes) -> bool:
        """Store offsets, unless some are stored that reach further; return whether they were. Durable where the server
        is."""
        return bool(self._client.run(_SAVE, [self._name], [*offset_tuple(offset), content]))

    def delete(self) -> None:
        """Forget them."""
        self._client.call("DEL", self._name)
