"""`shortlist import`: items, users and events from a file into a sink.

Reads a file twice: once for its sha256, by which an import is known, and once in batches. Every batch is checked,
then given to the sink under the import's id and the batch's number, so that an import that was cut short goes on
where it stopped. Knows nothing of where the sink puts things.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import orjson
import pyarrow as pa

from services.datasets.dataset import Dataset
from services.datasets.downloads import sha256_of
from services.importing.readers import BATCH_ROWS, Reader, open_reader
from services.importing.report import ImportKind, ImportReport, Reject, RejectLog
from services.importing.rows import (
    RowPlan,
    SeenKeys,
    check_columns,
    check_rows,
    check_types,
    fill_event_ids,
    plan_rows,
)
from services.keys import keys_of

Progress = Callable[[int, int | None], None]
"""Called with the rows done and, where the file tells, the rows there are."""


class ImportSink(Protocol):
    """Where the rows of one kind go. Batches come in order, numbered from 0; the same file gives the same batches."""

    def next_batch(self, import_id: str) -> int:
        """The first batch of the import that is not in yet."""
        ...

    def write(self, import_id: str, batch: int, table: pa.RecordBatch) -> None:
        """Take a batch in, wholly and once, even if the same number comes again after a crash."""
        ...


def import_items(
    path: Path,
    dataset: Dataset,
    sink: ImportSink,
    *,
    data_dir: Path,
    force: bool = False,
    progress: Progress | None = None,
    batch_rows: int = BATCH_ROWS,
) -> ImportReport:
    """Import a file of items; of several rows with one id the last stays.

    data_dir: rejects and the record of finished imports go to its `imports` folder.
    force: read the file again even if the same bytes were imported before.
    batch_rows: rows at a time; an import that was begun before keeps the size it began with.
    Raises ImportFileError for a file that cannot be read as a whole.
    """
    return _Import(path, dataset, sink, "items", data_dir, batch_rows, progress).run(force)


def import_users(
    path: Path,
    dataset: Dataset,
    sink: ImportSink,
    *,
    data_dir: Path,
    force: bool = False,
    progress: Progress | None = None,
    batch_rows: int = BATCH_ROWS,
) -> ImportReport:
    """As `import_items`, for users."""
    return _Import(path, dataset, sink, "users", data_dir, batch_rows, progress).run(force)


def import_events(
    path: Path,
    dataset: Dataset,
    sink: ImportSink,
    *,
    data_dir: Path,
    force: bool = False,
    progress: Progress | None = None,
    batch_rows: int = BATCH_ROWS,
) -> ImportReport:
    """As `import_items`, for events: of several rows with one event_id the first stays.

    Batches that the sink holds already are not written again, forced or not.
    """
    return _Import(path, dataset, sink, "events", data_dir, batch_rows, progress).run(force)


class _Import:
    """One run over one file."""

    def __init__(
        self,
        path: Path,
        dataset: Dataset,
        sink: ImportSink,
        kind: ImportKind,
        data_dir: Path,
        batch_rows: int,
        progress: Progress | None,
    ) -> None:
        if batch_rows < 1:
            raise ValueError(f"batch_rows is {batch_rows}; expected at least 1")
        self._path = path
        self._dataset = dataset
        self._sink = sink
        self._kind = kind
        self._folder = data_dir / "imports"
        self._batch_rows = batch_rows
        self._progress = progress
        self._num_rows = 0
        self._num_rejected = 0
        self._num_duplicates = 0
        self._num_imported = 0
        self._num_written = 0
        self._unknown: Counter[str] = Counter()
        self._present: set[str] = set()
        self._types: Counter[str] = Counter()

    def run(self, force: bool) -> ImportReport:
        reader = open_reader(self._path)
        try:
            sha256 = sha256_of(self._path)
            record = _Record(self._folder / f"{sha256}-{self._kind}.json")
            if record.report is not None and not force:
                return replace(record.report, file=str(self._path), already_imported=True, num_written=0)
            plan = plan_rows(self._dataset, self._kind)
            if reader.columns is not None:
                check_columns(str(self._path), plan, reader.columns)
                self._present.update(reader.columns)
            rejects = RejectLog(self._folder / f"{sha256}-{self._kind}-rejects.jsonl", str(self._path))
            self._batch_rows = record.begin(self._batch_rows)
            complete = False
            try:
                self._read(reader, plan, rejects, f"{self._kind}_{sha256[:32]}")
                complete = True
            finally:
                rejects_file = rejects.close(complete=complete)
        finally:
            reader.close()
        report = self._report(sha256, plan, rejects, rejects_file)
        record.finish(report)
        return report

    def _read(self, reader: Reader, plan: RowPlan, rejects: RejectLog, import_id: str) -> None:
        next_batch = self._sink.next_batch(import_id)
        seen = SeenKeys()
        number = 0
        for raw in reader.batches([column.column for column in plan.columns], self._batch_rows):
            check_types(str(self._path), plan, raw)
            checked = check_rows(raw, plan)
            rejects.add(checked.rejects)
            self._num_rows += len(raw.rows) + len(raw.broken)
            self._num_rejected += checked.num_rejected
            self._unknown.update(raw.unknown)
            self._present.update(raw.columns)
            table = self._without_duplicates(checked.table, seen)
            # Only now is it true that what must not be null is not.
            table = pa.RecordBatch.from_arrays(table.columns, schema=plan.schema)
            self._num_imported += table.num_rows
            if table.num_rows:
                if number >= next_batch:
                    self._sink.write(import_id, number, table)
                    self._num_written += table.num_rows
                number += 1
            if self._progress is not None:
                self._progress(self._num_rows, reader.num_rows)

    def _without_duplicates(self, table: pa.RecordBatch, seen: SeenKeys) -> pa.RecordBatch:
        if self._kind == "events":
            table = fill_event_ids(table)
        ids: Any = table.column(0)
        first = seen.first(keys_of(ids.to_pylist()))
        self._num_duplicates += len(first) - int(first.sum())
        if self._kind != "events":
            return table
        if not first.all():
            table = table.filter(pa.array(first))
        types: Any = table.column("type")
        self._types.update({each["values"].as_py(): each["counts"].as_py() for each in types.value_counts()})
        return table

    def _report(self, sha256: str, plan: RowPlan, rejects: RejectLog, rejects_file: Path | None) -> ImportReport:
        used = {action.event for action in self._dataset.actions.values()}
        return ImportReport(
            kind=self._kind,
            file=str(self._path),
            sha256=sha256,
            num_rows=self._num_rows,
            num_imported=self._num_imported,
            num_rejected=self._num_rejected,
            num_duplicates=self._num_duplicates,
            num_written=self._num_written,
            rejects=tuple(rejects.first),
            rejects_file=rejects_file,
            unknown_columns=dict(self._unknown),
            absent_columns=tuple(column.column for column in plan.columns if column.column not in self._present),
            event_types=dict(self._types.most_common()),
            unused_event_types=tuple(name for name in self._types if name not in used),
        )


class _Record:
    """What is known of the import of one file: how large its batches are, and, once it has ended, its report."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._batch_rows: int | None = None
        self.report: ImportReport | None = None
        if path.is_file():
            record = orjson.loads(path.read_bytes())
            self._batch_rows = record["batch_rows"]
            self.report = None if record["report"] is None else _parse_report(record["report"])

    def begin(self, batch_rows: int) -> int:
        """Note the size of batches, unless the import was begun before; return the size that holds."""
        if self._batch_rows is None:
            self._batch_rows = batch_rows
            self._write(None)
        return self._batch_rows

    def finish(self, report: ImportReport) -> None:
        self._write(asdict(report) | {"rejects": [list(reject) for reject in report.rejects]})

    def _write(self, report: dict[str, Any] | None) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._path.with_suffix(".tmp")
        record = {"batch_rows": self._batch_rows, "report": report}
        scratch.write_bytes(orjson.dumps(record, default=str, option=orjson.OPT_INDENT_2))
        os.replace(scratch, self._path)


def _parse_report(record: dict[str, Any]) -> ImportReport:
    record["rejects"] = tuple(Reject(*reject) for reject in record["rejects"])
    record["rejects_file"] = None if record["rejects_file"] is None else Path(record["rejects_file"])
    for name in ("absent_columns", "unused_event_types"):
        record[name] = tuple(record[name])
    return ImportReport(**record)
