"""The import command: settings in, storage wired, a report out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from rich.console import Console

from services.datasets.dataset import Dataset
from services.folder import job_storage
from services.importing.importer import import_events, import_items, import_users
from services.importing.report import ImportReport
from services.importing.sinks import DocumentSink, EventSink
from services.settings import Settings
from services.storage.storage import Storage

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, the rows done and, where the file tells, the rows there are."""


def run_import(
    settings: Settings,
    kind: Literal["items", "users", "events"],
    file: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Import one file into the data folder of the settings."""
    with job_storage(settings, f"import {kind}") as storage:
        return import_file(storage, Dataset.load(settings.dataset), kind, file, force=force, progress=progress)


def import_file(
    storage: Storage,
    dataset: Dataset,
    kind: Literal["items", "users", "events"],
    file: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Import one file through storage that is open already."""

    def report(done: int, total: int | None) -> None:
        if progress is not None:
            progress(f"import {kind}", done, total)

    if kind == "events":
        schema = dataset.feature_schema()
        sink = EventSink(storage.archive, storage.consumer(schema), schema)
        return import_events(file, dataset, sink, data_dir=storage.data_dir, force=force, progress=report)
    documents = DocumentSink(storage.items if kind == "items" else storage.users)
    run = import_items if kind == "items" else import_users
    return run(file, dataset, documents, data_dir=storage.data_dir, force=force, progress=report)


def show_report(report: ImportReport, console: Console) -> None:
    """Print what became of an import: counts, what was left out and why, the first rejected rows."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if report.already_imported:
        say(f"{report.file}: the same file was imported before ({report.num_imported} {report.kind}); nothing to do")
        return
    say(
        f"{report.file}: {report.num_rows} rows, {report.num_imported} {report.kind} imported, "
        f"{report.num_rejected} rejected, {report.num_duplicates} duplicates"
    )
    for column, count in report.unknown_columns.items():
        say(f"  column {column!r} is not in the dataset's description: left out ({count} rows have it)")
    for column in report.absent_columns:
        say(f"  column {column!r} is not in the file: treated as missing in every row")
    for name in report.unused_event_types:
        say(f"  events of type {name!r} are kept, but no action of the dataset is made from them")
    for reject in report.rejects:
        where = f", column {reject.column!r}" if reject.column else ""
        say(f"  row {reject.row}{where}: {reject.value}: {reject.reason}")
    if report.rejects_file is not None:
        say(f"  every rejected row: {report.rejects_file}")
