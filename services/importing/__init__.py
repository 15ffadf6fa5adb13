"""Items, users and events from Parquet, CSV and JSON Lines files."""

from services.importing.importer import ImportSink, import_events, import_items, import_users
from services.importing.report import ImportFileError, ImportReport, Reject

__all__ = [
    "ImportFileError",
    "ImportReport",
    "ImportSink",
    "Reject",
    "import_events",
    "import_items",
    "import_users",
]
