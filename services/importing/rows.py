"""Rows of a raw batch to rows of a data set: which columns are read as what, which rows are good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray
from xxhash import xxh3_128_hexdigest

from services.datasets.dataset import EVENT_ARROW_SCHEMA, AttributeSpec, Dataset, TimestampUnit
from services.datasets.descriptions import listed, nearest
from services.importing.columns import ARROW_TYPES, BadCell, CellKind, Column, convert, is_convertible
from services.importing.readers import RawBatch
from services.importing.report import ImportFileError, ImportKind, Reject, show_value

MAX_POSITION = 2**31 - 1

# The stubs know the types each of its functions takes; here no column has a type known beforehand.
pc: Any = pyarrow.compute

_EVENT_KINDS: dict[str, CellKind] = {
    "event_id": "id",
    "user_id": "id",
    "item_id": "id",
    "type": "id",
    "value": "float",
    "ts": "timestamp",
    "recommendation_id": "id",
    "position": "int",
    "propensity": "float",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnPlan:
    """One column of ours, and where it comes from."""

    name: str
    column: str  # the file's name
    kind: CellKind
    required: bool  # a row without a value is refused
    key: str  # where the description says the column's name
    named: bool  # it says so itself, so the column must be there


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPlan:
    """How the rows of one kind are read."""

    columns: tuple[ColumnPlan, ...]
    schema: pa.Schema
    ts_unit: TimestampUnit


@dataclass(frozen=True, slots=True)
class CheckedBatch:
    """The good rows of a batch, and what was wrong with the others."""

    table: pa.RecordBatch
    rejects: list[Reject]
    num_rejected: int  # rows


def plan_rows(dataset: Dataset, kind: ImportKind) -> RowPlan:
    """The plan for a data set's items, users or events."""
    if kind == "items":
        columns = _document_columns("items", "item_id", dataset.items.id, dataset.items.attributes)
        return RowPlan(columns=columns, schema=dataset.item_arrow_schema(), ts_unit="ms")
    if kind == "users":
        columns = _document_columns("users", "user_id", dataset.users.id, dataset.users.attributes)
        return RowPlan(columns=columns, schema=dataset.user_arrow_schema(), ts_unit="ms")
    optional = {field.name for field in EVENT_ARROW_SCHEMA if field.nullable} | {"event_id"}
    columns = tuple(
        ColumnPlan(
            name=name,
            column=column,
            kind=_EVENT_KINDS[name],
            required=name not in optional,
            key=f"{name} under [events]",
            named=name in dataset.events.model_fields_set and column != name,
        )
        for name, column in dataset.events.columns().items()
    )
    return RowPlan(columns=columns, schema=EVENT_ARROW_SCHEMA, ts_unit=dataset.events.ts_unit)


def _document_columns(
    section: str, id_name: str, id_column: str, specs: Mapping[str, AttributeSpec]
) -> tuple[ColumnPlan, ...]:
    identity = ColumnPlan(
        name=id_name, column=id_column, kind="id", required=True, key=f"id under [{section}]", named=True
    )
    return (
        identity,
        *(
            ColumnPlan(
                name=name,
                column=spec.column or name,
                kind=spec.type,
                required=False,
                key=f"{name}.column under [{section}.attributes]",
                named=spec.column is not None,
            )
            for name, spec in specs.items()
        ),
    )


def check_columns(file: str, plan: RowPlan, present: Sequence[str]) -> None:
    """Raise ImportFileError if a file with these columns lacks one that it must have."""
    for column in plan.columns:
        if (column.required or column.named) and column.column not in present:
            hint = nearest(column.column, present) or "."
            raise ImportFileError(
                f"{file}: no column {column.column!r} for {column.name}; its columns are {listed(present)}{hint} "
                f"Name the right one as {column.key} in the data set's description"
            )


def check_types(file: str, plan: RowPlan, batch: RawBatch) -> None:
    """Raise ImportFileError if a typed column can hold no value of its kind."""
    for column in plan.columns:
        cells = batch.columns.get(column.column)
        if isinstance(cells, pa.Array) and not is_convertible(cells.type, column.kind):
            raise ImportFileError(
                f"{file}: column {column.column!r} has type {cells.type}, "
                f"which cannot be read as {column.name} ({column.kind})"
            )


def check_rows(batch: RawBatch, plan: RowPlan) -> CheckedBatch:
    """Convert a batch; a row with any bad cell is left out, each of its bad cells is a reject."""
    num_rows = len(batch.rows)
    good: NDArray[np.bool_] = np.ones(num_rows, dtype=bool)
    arrays: list[Any] = []
    rejects = list(batch.broken)
    for column in plan.columns:
        typed = _typed(batch, column, plan.ts_unit)
        arrays.append(typed.values)
        for place, value, reason in typed.bad:
            good[place] = False
            rejects.append(Reject(int(batch.rows[place]), column.column, show_value(value), reason))
    fields = [array.cast(field.type) for array, field in zip(arrays, plan.schema, strict=True)]
    table = pa.record_batch(fields, names=plan.schema.names)
    if not good.all():
        table = table.filter(pa.array(good))
    rejects.sort(key=lambda reject: reject.row)
    return CheckedBatch(table, rejects, len(batch.broken) + int(np.count_nonzero(~good)))


def _typed(batch: RawBatch, plan: ColumnPlan, ts_unit: TimestampUnit) -> Column:
    cells = batch.columns.get(plan.column)
    if cells is None:
        typed = Column(pa.nulls(len(batch.rows), ARROW_TYPES[plan.kind]), [])
    else:
        typed = convert(cells, plan.kind, untyped=batch.untyped, ts_unit=ts_unit)
    bad = typed.bad
    if plan.required and typed.values.null_count > len(bad):
        known = {cell.place for cell in bad}
        empty = np.flatnonzero(typed.values.is_null().to_numpy(zero_copy_only=False)).tolist()
        bad = bad + [BadCell(place, None, "missing") for place in empty if place not in known]
    if plan.name == "position":
        inside = _between(typed.values, 1, MAX_POSITION)
        return _refuse(typed.values, bad, inside, f"expected a place from 1 to {MAX_POSITION}")
    if plan.name == "propensity":
        inside = pc.and_(pc.greater(typed.values, 0.0), pc.less_equal(typed.values, 1.0))
        return _refuse(typed.values, bad, inside, "expected a probability above 0 and up to 1")
    return Column(typed.values, bad)


def _between(values: Any, low: int, high: int) -> Any:
    return pc.and_(pc.greater_equal(values, low), pc.less_equal(values, high))


def _refuse(values: Any, bad: list[BadCell], inside: Any, reason: str) -> Column:
    """Values outside become null and bad."""
    outside = np.flatnonzero(pc.equal(inside, False).fill_null(False).to_numpy(zero_copy_only=False)).tolist()
    if not outside:
        return Column(values, bad)
    more = [BadCell(place, values[place].as_py(), reason) for place in outside]
    return Column(pc.if_else(inside, values, None), bad + more)


def fill_event_ids(table: pa.RecordBatch) -> pa.RecordBatch:
    """Events without an event_id get one that depends on who, what, which type, value and when alone.

    So the same event has the same id in every file; two of them that agree in all five are one event.
    """
    ids = table.column("event_id")
    if not ids.null_count:
        return table
    columns = [table.column(name).to_pylist() for name in ("event_id", "user_id", "item_id", "type", "value")]
    columns.append(table.column("ts").cast(pa.int64()).to_pylist())
    filled = [
        # Lengths first: no two different events are written alike.
        event_id or xxh3_128_hexdigest(f"{len(user)},{len(item)},{len(kind)}:{user}{item}{kind}{value},{ts}".encode())
        for event_id, user, item, kind, value, ts in zip(*columns, strict=True)
    ]
    return table.set_column(0, EVENT_ARROW_SCHEMA.field("event_id"), pa.array(filled, pa.string()))


class SeenKeys:
    """Which 64-bit keys came before, at 8 bytes each: sorted runs, merged while they are of like size.

    Among 20 million ids, the odds that two different ones share a key are one in 90,000.
    """

    def __init__(self) -> None:
        self._runs: list[NDArray[np.int64]] = []

    def first(self, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[n]: the key is neither in an earlier call nor earlier in `keys`."""
        unique, places = np.unique(keys, return_index=True)
        new = np.ones(len(unique), dtype=bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, unique), len(run) - 1)
            new &= run[at] != unique
        added = unique[new]
        while self._runs and len(self._runs[-1]) <= 2 * len(added):
            added = np.sort(np.concatenate([self._runs.pop(), added]))
        if len(added):
            self._runs.append(added)
        first = np.zeros(len(keys), dtype=bool)
        first[places[new]] = True
        return first
