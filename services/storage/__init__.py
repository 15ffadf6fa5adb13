"""Storage: documents, events, streams and state over the Redis protocol; archive, catalogue and artifacts in files."""

from services.storage.archive import EventArchive, archived_events
from services.storage.artifacts import Artifact, ArtifactRegistry, Provenance
from services.storage.catalogue import Catalogue
from services.storage.consumer import ImportMark, StateConsumer, StreamMark
from services.storage.documents import Change, Document, DocumentStore, Write
from services.storage.errors import (
    ArchiveCorrupt,
    ArtifactCorrupt,
    CommandFailed,
    DataFolderInUse,
    KeyCollision,
    OffsetLost,
    ServerStartFailed,
    StorageError,
    StorageUnavailable,
    VersionConflict,
)
from services.storage.events import Append, Event, EventLog, LoggedEvent, event_table
from services.storage.state import Hydrated, Popular, Popularity, UserStateStore
from services.storage.storage import Storage
from services.storage.streams import START, Entry, Streams, offset_tuple

__all__ = [
    "START",
    "Append",
    "ArchiveCorrupt",
    "Artifact",
    "ArtifactCorrupt",
    "ArtifactRegistry",
    "Catalogue",
    "Change",
    "CommandFailed",
    "DataFolderInUse",
    "Document",
    "DocumentStore",
    "Entry",
    "Event",
    "EventArchive",
    "EventLog",
    "Hydrated",
    "ImportMark",
    "KeyCollision",
    "LoggedEvent",
    "OffsetLost",
    "Popular",
    "Popularity",
    "Provenance",
    "ServerStartFailed",
    "StateConsumer",
    "Storage",
    "StorageError",
    "StorageUnavailable",
    "StreamMark",
    "Streams",
    "UserStateStore",
    "VersionConflict",
    "Write",
    "archived_events",
    "event_table",
    "offset_tuple",
]
