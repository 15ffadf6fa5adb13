"""The manifest of a snapshot: one line of canonical JSON with its own checksum; see `index/FORMAT.md`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def field(manifest: Mapping[str, object], name: str, kind: type[T]) -> T:
    """The field's value; KeyError where there is none, ValueError where it is of another kind."""
    value = manifest[name]
    if not isinstance(value, kind):
        raise ValueError(f"manifest {name!r}: {value!r}, expected {kind.__name__}")
    return value


def write_manifest(path: Path, manifest: Mapping[str, object]) -> None:
    """{"manifest": ..., "sha256": checksum of the canonical text of "manifest"}, on one canonical line."""
    body = _canonical(manifest)
    with path.open("xb") as file:
        file.write(_sealed(body))
        file.flush()
        os.fsync(file.fileno())


def read_manifest(path: Path) -> dict[str, object]:
    """ValueError unless the file is byte for byte what `_write_manifest` writes for its content."""
    raw = path.read_bytes()
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    manifest = document.get("manifest") if isinstance(document, dict) else None
    if not isinstance(manifest, dict) or raw != _sealed(_canonical(manifest)):
        raise ValueError(f"{path.name} does not have the checksum it names")
    return manifest


def _sealed(body: bytes) -> bytes:
    return b'{"manifest":%s,"sha256":"%s"}\n' % (body, hashlib.sha256(body).hexdigest().encode())


def _canonical(manifest: Mapping[str, object]) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
