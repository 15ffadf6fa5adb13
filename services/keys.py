"""From a user's string ids to the int64 keys that the index and the models work with.

The hash is one way: `services.storage` keeps the strings, and refuses two ids that share a key.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

_KEY = struct.Struct("<q")


def key_of(identifier: str) -> int:
    """Return the signed 64-bit xxh3 of the id's UTF-8.

    Raises ValueError for an empty id and for one that is not valid Unicode (a lone surrogate).
    """
    if not identifier:
        raise ValueError("an id is empty; expected at least one character")
    digest = xxh3_64_intdigest(identifier.encode())
    return digest - (1 << 64) if digest >= 1 << 63 else digest


def keys_of(identifiers: Iterable[str]) -> NDArray[np.int64]:
    """Return int64[n]: `key_of` of each id."""
    return np.fromiter((key_of(identifier) for identifier in identifiers), dtype=np.int64)


def pack_key(key: int) -> bytes:
    """Return the key's 8 bytes, little-endian: how keys are stored."""
    return _KEY.pack(key)


def unpack_key(packed: bytes) -> int:
    return int(_KEY.unpack(packed)[0])
