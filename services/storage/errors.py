"""What can go wrong in storage, as types with fields."""

from __future__ import annotations

from pathlib import Path


class StorageError(Exception):
    """Base of everything storage raises beside ValueError."""


class StorageUnavailable(StorageError):
    """The server cannot be reached, does not answer in time, or refuses the command for now (read-only, out of memory).

    Whether a write that was under way took effect is unknown. Appending the same events again is safe (they are
    recognised by event_id); repeat a document write with `if_version`, or accept that it is applied twice.
    """


class CommandFailed(StorageError):
    """The server understood and refused a command in a way that trying again does not cure."""


class KeyCollision(StorageError):
    """Two different ids have the same 64-bit key. The second is refused: `ids` = (the one stored, the one refused)."""

    def __init__(self, ids: tuple[str, str]) -> None:
        super().__init__(
            f"ids {ids[0]!r} (stored) and {ids[1]!r} (refused) have the same 64-bit key; rename one of them"
        )
        self.ids = ids


class VersionConflict(StorageError):
    """A conditional write named a version that is not the stored one (0: there is no such document)."""

    def __init__(self, identifier: str, expected: int, actual: int) -> None:
        super().__init__(f"document {identifier!r} has version {actual}; the write expected version {expected}")
        self.id = identifier
        self.expected = expected
        self.actual = actual


class OffsetLost(StorageError):
    """A consumer needs entries that the stream no longer has. It must begin again from a complete copy."""

    def __init__(self, stream: str, consumer: str, offset: str, trimmed: str) -> None:
        super().__init__(
            f"consumer {consumer!r} of stream {stream!r} is at offset {offset}, but entries up to {trimmed} are gone"
        )
        self.stream = stream
        self.consumer = consumer
        self.offset = offset
        self.trimmed = trimmed


class DataFolderInUse(StorageError):
    """Another process owns the data folder."""

    def __init__(self, folder: Path, pid: int, role: str) -> None:
        super().__init__(f"data folder {folder} is in use by process {pid} ({role})")
        self.folder = folder
        self.pid = pid
        self.role = role


class ServerStartFailed(StorageError):
    """The embedded server did not come up; the message ends with the last lines of its log."""


class ArchiveCorrupt(StorageError):
    """A file of the event archive or of the catalogue cannot be read."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(f"{path} cannot be read: {detail}")
        self.path = path


class ArtifactCorrupt(StorageError):
    """A file of an artifact is not what its manifest says."""

    def __init__(self, path: Path, expected: str, actual: str) -> None:
        super().__init__(f"artifact file {path} is corrupt: expected {expected}, found {actual}")
        self.path = path
        self.expected = expected
        self.actual = actual
