"""Arrays between processes: one Arrow IPC stream with one row, a list column per array, JSON beside them.

A list column per array lets arrays of different lengths travel in one message without copies on the reading side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

MEDIA_TYPE = "application/vnd.apache.arrow.stream"

_META = b"shortlist"


class FrameError(ValueError):
    """Bytes that are not a frame, or lack what was expected in it."""


def pack(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> bytes:
    """Arrow IPC bytes of 1-d numeric arrays and a JSON object."""
    columns = []
    fields = []
    for name, array in arrays.items():
        if array.ndim != 1:
            raise ValueError(f"array {name!r} has {array.ndim} dimensions; expected 1")
        flat = pa.array(np.ascontiguousarray(array))
        columns.append(pa.LargeListArray.from_arrays(pa.array([0, len(flat)], pa.int64()), flat))
        fields.append(pa.field(name, columns[-1].type))
    schema = pa.schema(fields, metadata={_META: orjson.dumps(dict(meta))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    return bytes(sink.getvalue())


def unpack(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and JSON object of `pack`. Raises FrameError where the bytes are something else."""
    try:
        with pa.ipc.open_stream(data) as reader:
            batch = reader.read_next_batch()
            schema = reader.schema
        meta = orjson.loads((schema.metadata or {})[_META])
        columns: list[Any] = batch.columns
        arrays = {name: column.flatten().to_numpy() for name, column in zip(schema.names, columns, strict=True)}
    except (pa.ArrowException, OSError, StopIteration, LookupError, AttributeError, ValueError) as error:
        raise FrameError(f"not an Arrow frame: {error}") from error
    return arrays, meta
