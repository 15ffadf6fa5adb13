"""What became of an import: counts, the first rejects, and every reject in a JSON Lines file beside the data."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, NamedTuple

import orjson

ImportKind = Literal["items", "users", "events"]

MAX_SHOWN_REJECTS = 20
MAX_SHOWN_VALUE = 120


class ImportFileError(ValueError):
    """A file that cannot be imported at all: unreadable, empty, or without a column that every row needs."""


class Reject(NamedTuple):
    """One cell, or one whole row, that was refused."""

    row: int  # 1-based: a CSV header does not count, blank lines do, a record of several lines counts once
    column: str | None  # the file's name of it; None: the row as a whole
    value: str  # repr, cut
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """One import, finished."""

    kind: ImportKind
    file: str
    sha256: str
    num_rows: int
    """Rows of data in the file; imported + rejected + duplicates."""
    num_imported: int
    num_rejected: int
    """Rows refused; a row may have several entries among the rejects."""
    num_duplicates: int
    """Events whose event_id came earlier in the file, and that were therefore left out. For items and users:
    rows that replaced an earlier row of the same id (they count as imported too)."""
    num_written: int
    """Rows handed to the sink by this run: less than num_imported where an earlier run had got part of the way."""
    rejects: tuple[Reject, ...]
    """The first 20."""
    rejects_file: Path | None
    """All of them, one JSON object a line; None where there are none."""
    unknown_columns: dict[str, int] = field(default_factory=dict)
    """Columns that the data set does not describe, left out; with the number of rows that have them."""
    absent_columns: tuple[str, ...] = ()
    """Columns that the data set describes, not every row needs, and the file lacks."""
    event_types: dict[str, int] = field(default_factory=dict)
    """Imported events by type."""
    unused_event_types: tuple[str, ...] = ()
    """Those of them that no action of the data set is made from."""
    already_imported: bool = False
    """The same bytes were imported completely before: nothing was read or written, the counts are that run's."""


def show_value(value: object) -> str:
    """repr of a rejected value, cut to a length that a log line bears."""
    if isinstance(value, (str, bytes)) and len(value) > MAX_SHOWN_VALUE:
        return repr(value[:MAX_SHOWN_VALUE]) + "..."
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_VALUE else text[:MAX_SHOWN_VALUE] + "..."


class RejectLog:
    """Rejects as they come: counted, the first kept, all of them written to a file made with the first."""

    def __init__(self, path: Path, source: str) -> None:
        self._path = path
        self._scratch = path.with_suffix(".tmp")
        self._source = source
        self._file: IO[bytes] | None = None
        self.first: list[Reject] = []

    def add(self, rejects: Iterable[Reject]) -> None:
        for reject in rejects:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._scratch.open("wb")
            if len(self.first) < MAX_SHOWN_REJECTS:
                self.first.append(reject)
            entry = {"file": self._source, **reject._asdict()}
            self._file.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))

    def close(self, *, complete: bool) -> Path | None:
        """The file with all rejects, put in place if the import is complete; None if there were none."""
        if self._file is None:
            if complete:
                self._path.unlink(missing_ok=True)
            return None
        self._file.close()
        if not complete:
            self._scratch.unlink()
            return None
        os.replace(self._scratch, self._path)
        return self._path
