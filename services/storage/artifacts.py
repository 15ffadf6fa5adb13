"""What jobs make and services load: models, calibrators, indexes, prompts.

`<folder>/<kind>/<version>/manifest.json` beside the artifact's files, and `<folder>/<kind>/current.json`, the
pointer that promotion moves. A version appears whole or not at all and never changes afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.clock import Clock
from services.storage.errors import ArtifactCorrupt
from services.storage.files import TEMPORARY_PREFIX, sync, write_atomically

MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where an artifact comes from: what `publish` is told, and its manifest keeps."""

    config: Mapping[str, Any] = field(default_factory=dict)
    schema_hash: str = ""
    data_window_ms: tuple[int, int] | None = None
    """First and last time of the data it was made from."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    parent: str | None = None
    """Version it was derived from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    kind: str
    version: str
    folder: Path
    provenance: Provenance
    created_ms: int
    files: Mapping[str, str]
    """Path inside the folder -> sha256 in hex."""

    def verify(self) -> None:
        """Compare every file with the manifest. Raises ArtifactCorrupt for the first that differs."""
        for name, expected in self.files.items():
            path = self.folder / name
            actual = f"sha256 {_sha256(path)}" if path.is_file() else "no file"
            if actual != f"sha256 {expected}":
                raise ArtifactCorrupt(path, f"sha256 {expected}", actual)


class ArtifactRegistry:
    """Any number of readers; publishing and promoting are safe beside them and beside one another."""

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        self.folder = folder
        self._clock = clock or Clock()

    def publish(self, kind: str, write: Callable[[Path], object], provenance: Provenance) -> str:
        """Let `write` fill an empty folder and make it a version of `kind`; return the version.

        Publishing does not promote. Nothing remains of a publication that fails.
        """
        home = self._home(kind)
        home.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(home)
        temporary = home / f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}"
        temporary.mkdir()
        try:
            write(temporary)
            files = _digests(temporary)
            if not files:
                raise ValueError(f"nothing was written for an artifact of kind {kind!r}; expected at least one file")
            if MANIFEST in files:
                raise ValueError(f"an artifact may not bring its own {MANIFEST}")
            created_ms = self._clock.now_ms()
            version = self._version(home, created_ms, files)
            manifest = {
                "kind": kind,
                "version": version,
                "created_ms": created_ms,
                "config": dict(provenance.config),
                "schema_hash": provenance.schema_hash,
                "data_window_ms": provenance.data_window_ms,
                "metrics": dict(provenance.metrics),
                "parent": provenance.parent,
                "files": files,
            }
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
            for path in sorted(temporary.rglob("*"), reverse=True):
                sync(path)
            sync(temporary)
            temporary.rename(home / version)
            sync(home)
            return version
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def open(self, kind: str, version: str | None = None, verify: bool = True) -> Artifact:
        """Return a version, or the current one.

        Raises KeyError where there is none, ArtifactCorrupt where `verify` finds a file that is not as published.
        """
        if version is None:
            version = self.current(kind)
            if version is None:
                raise KeyError(f"no artifact of kind {kind!r} has been promoted")
        artifact = self._read(kind, version)
        if verify:
            artifact.verify()
        return artifact

    def versions(self, kind: str) -> list[Artifact]:
        """Return every version, oldest first."""
        versions = [path.parent.name for path in self._home(kind).glob(f"*/{MANIFEST}")]
        artifacts = [self._read(kind, v) for v in versions if not v.startswith(TEMPORARY_PREFIX)]
        return sorted(artifacts, key=lambda artifact: (artifact.created_ms, artifact.version))

    def kinds(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*") if path.is_dir())

    def current(self, kind: str) -> str | None:
        """Return the promoted version, None before the first promotion."""
        promoted = self._promoted(kind)
        return promoted[-1] if promoted else None

    def promote(self, kind: str, version: str) -> None:
        """Make a version the current one, after verifying its files."""
        self.open(kind, version)
        self._point(kind, [*(v for v in self._promoted(kind) if v != version), version])

    def rollback(self, kind: str) -> str:
        """Make the version promoted before the current one current again, and return it.

        Raises ValueError where there is none.
        """
        promoted = self._promoted(kind)
        if len(promoted) < 2:
            raise ValueError(f"artifact kind {kind!r} has no version to go back to; promoted: {promoted}")
        self.open(kind, promoted[-2])
        self._point(kind, promoted[:-1])
        return promoted[-2]

    def _home(self, kind: str) -> Path:
        if not _NAME.fullmatch(kind):
            raise ValueError(f"artifact kind {kind!r} is not usable; expected letters, digits, '_', '.', '-'")
        return self.folder / kind

    def _version(self, home: Path, created_ms: int, files: Mapping[str, str]) -> str:
        moment = datetime.fromtimestamp(created_ms / 1000, UTC).strftime("%Y%m%dT%H%M%S")
        digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:8]
        version, suffix = f"{moment}-{digest}", 1
        while (home / version).exists():
            suffix += 1
            version = f"{moment}-{digest}.{suffix}"
        return version

    def _promoted(self, kind: str) -> list[str]:
        path = self._home(kind) / "current.json"
        if not path.exists():
            return []
        record = json.loads(path.read_text())
        return [*record["previous"], record["version"]]

    def _point(self, kind: str, promoted: list[str]) -> None:
        text = json.dumps({"version": promoted[-1], "previous": promoted[:-1]}, indent=2) + "\n"
        write_atomically(self._home(kind) / "current.json", lambda path: _write_text(path, text))

    def _read(self, kind: str, version: str) -> Artifact:
        if not _NAME.fullmatch(version):
            raise ValueError(f"artifact version {version!r} is not usable")
        folder = self._home(kind) / version
        path = folder / MANIFEST
        if not path.exists():
            raise KeyError(f"artifact {kind!r} has no version {version!r}")
        try:
            record = json.loads(path.read_text())
            window = record["data_window_ms"]
            return Artifact(
                kind=kind,
                version=version,
                folder=folder,
                provenance=Provenance(
                    config=record["config"],
                    schema_hash=record["schema_hash"],
                    data_window_ms=None if window is None else (window[0], window[1]),
                    metrics=record["metrics"],
                    parent=record["parent"],
                ),
                created_ms=record["created_ms"],
                files=record["files"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactCorrupt(path, "a manifest", f"{type(error).__name__}: {error}") from error


def _remove_leftovers(home: Path) -> None:
    """Remove what publications of processes that no longer run have left."""
    for leftover in home.glob(f"{TEMPORARY_PREFIX}*-*"):
        try:
            os.kill(int(leftover.name.removeprefix(TEMPORARY_PREFIX).split("-")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(leftover, ignore_errors=True)
        except (PermissionError, ValueError):
            continue  # another user's, or not ours to judge


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)


def _digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): _sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
