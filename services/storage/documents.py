"""Items and users as documents: an id, a version and attributes; each write is also an entry of the store's stream.

A document is stored as JSON with a fixed order of fields, {"version":3,"updated_ms":..,"id":"..","attributes":{..}},
so that the write script finds version and id at its head without parsing the attributes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from services.clock import Clock
from services.keys import key_of, pack_key, unpack_key
from services.storage.client import Argument, Client, Script
from services.storage.errors import KeyCollision, StorageError, VersionConflict
from services.storage.names import Names
from services.storage.streams import START, Entry, Streams

MAX_PATCH_ATTEMPTS = 20

# What every document script begins with: leaves the stored version (0: none) in `version`, or returns.
_CHECK = """
local old = redis.call('HGET', KEYS[1], ARGV[1])
local version = 0
if old then
  local _, stop, stored = string.find(old, '^{"version":(%d+),"updated_ms":%-?%d+,"id":')
  local expected = ARGV[2] .. ',"attributes":'
  if string.sub(old, stop + 1, stop + #expected) ~= expected then
    local _, _, other = string.find(old, '(.-),"attributes":', stop + 1)
    return {'collision', other}
  end
  version = tonumber(stored)
end
if ARGV[4] ~= '' and tonumber(ARGV[4]) ~= version then return {'version', version} end
local head = string.format('{"version":%d,"updated_ms":%s,"id":%s,"attributes":', version + 1, ARGV[3], ARGV[2])
"""

# KEYS: documents, stream.  ARGV: packed key, id as JSON, now_ms, expected version or '', attributes as JSON.
_PUT = Script(
    _CHECK
    + """
local document = head .. ARGV[5] .. '}'
redis.call('HSET', KEYS[1], ARGV[1], document)
local offset = redis.call('XADD', KEYS[2], '*', 'op', 'put', 'document', document)
return {'ok', offset, version + 1, old and 0 or 1}
"""
)

# As _PUT, without attributes.
_DELETE = Script(
    _CHECK
    + """
if not old then return {'absent'} end
redis.call('HDEL', KEYS[1], ARGV[1])
local offset = redis.call('XADD', KEYS[2], '*', 'op', 'delete', 'document', head .. '{}}')
return {'ok', offset, version + 1, 0}
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    id: str
    key: int
    version: int
    """1 for a new document, one more with each write; a document deleted and created again begins at 1."""
    attributes: Mapping[str, Any]
    updated_ms: int


@dataclass(frozen=True, slots=True)
class Write:
    offset: str
    """Of the write's entry in the store's stream."""
    version: int
    created: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One entry of an items or users stream."""

    offset: str
    deleted: bool
    id: str
    key: int
    version: int
    attributes: Mapping[str, Any]
    """All attributes after the change; empty for a deletion."""
    updated_ms: int


class DocumentStore:
    """Documents of one kind. Writes are atomic, durable where the server is, and visible to the next read."""

    def __init__(
        self, client: Client, names: Names, streams: Streams, clock: Clock, name: Literal["items", "users"]
    ) -> None:
        self.name = name
        self._client = client
        self._streams = streams
        self._clock = clock
        self.documents_name = names.documents(name)
        self._keys = [self.documents_name, names.stream(name)]

    def __len__(self) -> int:
        return int(self._client.call("HLEN", self.documents_name))

    def put(self, identifier: str, attributes: Mapping[str, Any], if_version: int | None = None) -> Write:
        """Store a document, replacing all attributes of an earlier one.

        if_version: write only over this version; 0 means only if there is no such document.
        Raises KeyCollision, VersionConflict, StorageUnavailable.
        """
        reply = self._client.run(_PUT, self._keys, self._put_arguments(identifier, attributes, if_version))
        write = _write(reply, identifier, if_version)
        assert write is not None
        return write

    def put_many(self, documents: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Write]:
        """Store documents, pipelined. Each is atomic, the whole is not: after an error some are stored.

        Raises the first KeyCollision once every other document has been stored.
        """
        pairs = list(documents)
        calls = [(self._keys, self._put_arguments(*pair, None)) for pair in pairs]
        writes: list[Write] = []
        collision: KeyCollision | None = None
        for (identifier, _), reply in zip(pairs, self._client.run_many(_PUT, calls), strict=True):
            try:
                write = _write(reply, identifier, None)
            except KeyCollision as error:
                collision = collision or error
            else:
                assert write is not None
                writes.append(write)
        if collision is not None:
            raise collision
        return writes

    def patch(self, identifier: str, changes: Mapping[str, Any], if_version: int | None = None) -> Write | None:
        """Change some attributes; None as a value removes the attribute. Returns None if there is no such document."""
        for attempt in range(MAX_PATCH_ATTEMPTS):
            document = self.get(identifier)
            if document is None:
                return None
            if if_version is not None and if_version != document.version:
                raise VersionConflict(identifier, if_version, document.version)
            merged = {**document.attributes, **changes}
            attributes = {name: value for name, value in merged.items() if value is not None}
            try:
                return self.put(identifier, attributes, if_version=document.version)
            except VersionConflict:
                # Waiting a random while: of many that patch one document at once, someone must not lose every time.
                time.sleep(random.random() * min(0.001 * 2**attempt, 0.05))
        raise StorageError(f"document {identifier!r} was changed by others {MAX_PATCH_ATTEMPTS} times during one patch")

    def delete(self, identifier: str, if_version: int | None = None) -> Write | None:
        """Remove a document. Returns None if there is none (and if_version, where given, is 0)."""
        arguments = self._arguments(identifier, if_version)
        return _write(self._client.run(_DELETE, self._keys, arguments), identifier, if_version)

    def get(self, identifier: str) -> Document | None:
        return self.get_many([identifier])[0]

    def get_many(self, identifiers: Sequence[str]) -> list[Document | None]:
        """Return the documents in the order asked for, None where there is none, in one round trip."""
        documents = self._fetch([pack_key(key_of(identifier)) for identifier in identifiers])
        return [
            document if document is None or document.id == identifier else None
            for identifier, document in zip(identifiers, documents, strict=True)
        ]

    def of_keys(self, keys: NDArray[np.int64] | Sequence[int]) -> list[Document | None]:
        """Return the documents of int64 keys, in one round trip."""
        return self._fetch([pack_key(int(key)) for key in keys])

    def ids_of(self, keys: NDArray[np.int64] | Sequence[int]) -> list[str | None]:
        """Return the ids behind int64 keys, None for a key no document has."""
        return [None if raw is None else _id_of(raw) for raw in self._fetch_raw([pack_key(int(k)) for k in keys])]

    def scan(self) -> Iterator[Document]:
        """Yield every document that is there throughout, once; one written meanwhile may or may not appear."""
        cursor, yielded = b"0", set[bytes]()
        while True:
            cursor, pairs = self._client.call("HSCAN", self.documents_name, cursor, "COUNT", 1_000)
            for packed, raw in zip(pairs[::2], pairs[1::2], strict=True):
                if packed not in yielded:
                    yielded.add(packed)
                    yield parse_document(packed, raw)
            if cursor == b"0":
                return

    def changes(self, after: str = START, count: int = 1_000, block_ms: int | None = None) -> list[Change]:
        """Return the changes after an offset, oldest first; wait up to `block_ms` while there are none."""
        return [parse_change(entry) for entry in self._streams.read(self.name, after, count, block_ms)]

    def _fetch(self, packed: list[bytes]) -> list[Document | None]:
        raws = self._fetch_raw(packed)
        return [None if raw is None else parse_document(key, raw) for key, raw in zip(packed, raws, strict=True)]

    def _fetch_raw(self, packed: list[bytes]) -> list[bytes | None]:
        return list(self._client.call("HMGET", self.documents_name, *packed)) if packed else []

    def _put_arguments(self, identifier: str, attributes: Mapping[str, Any], if_version: int | None) -> list[Argument]:
        try:
            encoded = orjson.dumps(dict(attributes), option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError as error:
            raise ValueError(f"attributes of {identifier!r} cannot be stored: {error}") from error
        return [*self._arguments(identifier, if_version), encoded]

    def _arguments(self, identifier: str, if_version: int | None) -> list[Argument]:
        return [
            pack_key(key_of(identifier)),
            orjson.dumps(identifier),
            self._clock.now_ms(),
            "" if if_version is None else if_version,
        ]


def parse_document(packed: bytes, raw: bytes) -> Document:
    record = orjson.loads(raw)
    return Document(
        id=record["id"],
        key=unpack_key(packed),
        version=record["version"],
        attributes=record["attributes"],
        updated_ms=record["updated_ms"],
    )


def parse_change(entry: Entry) -> Change:
    record = orjson.loads(entry.fields[b"document"])
    return Change(
        offset=entry.offset,
        deleted=entry.fields[b"op"] == b"delete",
        id=record["id"],
        key=key_of(record["id"]),
        version=record["version"],
        attributes=record["attributes"],
        updated_ms=record["updated_ms"],
    )


def _id_of(raw: bytes) -> str:
    # Quotes inside a JSON string are escaped, so the first `,"attributes":` ends the id.
    start = raw.index(b'"id":') + len(b'"id":')
    return str(orjson.loads(raw[start : raw.index(b',"attributes":', start)]))


def _write(reply: list[Any], identifier: str, if_version: int | None) -> Write | None:
    match reply:
        case [b"ok", offset, version, created]:
            return Write(offset.decode(), version, bool(created))
        case [b"absent"]:
            return None
        case [b"collision", other]:
            raise KeyCollision((str(orjson.loads(other)), identifier))
        case [b"version", version]:
            raise VersionConflict(identifier, -1 if if_version is None else if_version, version)
        case _:
            raise AssertionError(f"unexpected reply {reply!r}")
