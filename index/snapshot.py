"""Snapshots of an index: a folder of checksummed arrays, written beside the old ones and renamed into place.

Layout and bytes: `index/FORMAT.md`.
"""

# M = items, D = dimensions, S = signals

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from index.attributes import AttributeSchema
from index.code_rows import Frame
from index.config import CodeKind, IndexConfig
from index.manifest import field, read_manifest, write_manifest
from index.memory import FILE_HEADER_BYTES, Reserved
from index.rows import RowArrays
from kernels.codes import NO_ROTATION, NUM_ARRAYS, Codes
from kernels.filtered_topk import Backend
from kernels.sign_codes import SignKind

FORMAT_VERSION = 1
CODES_VERSION = 2  # of what `kernels.codes` writes; codes of another version are computed again on opening
MANIFEST = "manifest.json"
_PREFIX, _PARTIAL = "snapshot-", ".partial-"
_BLOCK_ROWS = 1 << 14
Buffer = bytes | bytearray | memoryview


class SnapshotError(Exception):
    """A snapshot that could not be written, or a folder without a valid one.

    skipped: each snapshot that was tried, with the reason it is not valid.
    """

    def __init__(self, message: str, skipped: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.skipped = skipped


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """A snapshot on disk."""

    path: Path
    num_items: int
    offsets: dict[str, str]  # stream -> id of the last entry inside
    metadata: dict[str, object]  # what the caller gave
    created_ms: int
    size_bytes: int
    skipped: tuple[tuple[str, str], ...] = ()  # newer snapshots that are not valid: (path, reason)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a snapshot holds, ready to be searched once its rows are marked live."""

    arrays: RowArrays
    num_items: int
    offsets: dict[str, str]
    costs: object = None  # what `index.machine.keep_costs` wrote, where it did


def write_snapshot(
    folder: Path,
    arrays: RowArrays,
    rows: NDArray[np.int64],
    signal_MS: NDArray[np.float64],
    offsets: Mapping[str, str],
    metadata: Mapping[str, object],
    costs: Mapping[str, object] | None = None,
) -> SnapshotInfo:
    """Write the given rows as the folder's newest snapshot and remove those past the newest keep_snapshots.

    Raises SnapshotError; then nothing new is left behind and the older snapshots are as they were.
    """
    try:
        text = json.dumps(dict(metadata), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata: {error}, expected JSON values") from error
    partial: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = max((_number(path) for path in _list_snapshots(folder)), default=0) + 1
        partial = folder / f"{_PARTIAL}{number:012d}"
        for left_over in folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(left_over)
        partial.mkdir()
        files = {name: _write_array(partial / name, array) for name, array in _list_arrays(arrays, rows, signal_MS)}
        manifest = {
            "format_version": FORMAT_VERSION,
            "created_ms": time.time_ns() // 1_000_000,
            "num_items": int(rows.size),
            "dim": arrays.config.dim,
            "schema": arrays.config.schema.to_json(),
            "schema_hash": arrays.config.schema.hash(),
            "signals": list(arrays.config.signals),
            "keep_snapshots": arrays.config.keep_snapshots,
            "has_mean": arrays.has_mean,
            "codes_version": CODES_VERSION,
            "codes": arrays.config.codes,
            "store_vectors": arrays.config.store_vectors,
            "rotate": arrays.config.rotate,
            "signs": arrays.config.signs,
            "sign_bits": arrays.config.num_sign_bits if arrays.config.signs is not None else 0,
            "offsets": dict(offsets),
            "costs": None if costs is None else dict(costs),
            "metadata": json.loads(text),
            "files": files,
        }
        write_manifest(partial / MANIFEST, manifest)
        _sync_folder(partial)
        path = folder / f"{_PREFIX}{number:012d}"
        partial.rename(path)
        _sync_folder(folder)
    except OSError as error:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        kept = [path.name for path in _list_snapshots(folder)] if folder.is_dir() else []
        raise SnapshotError(f"snapshot in {folder} not written: {error}; still there: {kept}") from error
    _prune(folder, arrays.config.keep_snapshots)
    return _describe(path, manifest)


def load_newest(folder: Path, backend: Backend, num_threads: int | None) -> tuple[Stored, SnapshotInfo]:
    """The newest valid snapshot. Raises SnapshotError where there is none."""
    skipped: list[tuple[str, str]] = []
    for path in _list_snapshots(folder) if folder.is_dir() else []:
        try:
            manifest = read_manifest(path / MANIFEST)
            stored = _load(path, manifest, backend, num_threads)
        except (OSError, ValueError, KeyError, TypeError) as error:
            skipped.append((str(path), f"{type(error).__name__}: {error}"))
            continue
        return stored, replace(_describe(path, manifest), skipped=tuple(skipped))
    reasons = "; ".join(f"{path}: {reason}" for path, reason in skipped) or "the folder holds none"
    raise SnapshotError(f"no valid snapshot in {folder}: {reasons}", tuple(skipped))


def _list_snapshots(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((path for path in folder.iterdir() if _number(path) and path.is_dir()), key=_number, reverse=True)


def _number(path: Path) -> int:
    digits = path.name.removeprefix(_PREFIX)
    return int(digits) if path.name.startswith(_PREFIX) and digits.isascii() and digits.isdigit() else 0


def _prune(folder: Path, keep: int) -> None:
    for path in _list_snapshots(folder)[keep:]:
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise SnapshotError(f"the new snapshot is written, but {path} could not be removed: {error}") from error


def _describe(path: Path, manifest: Mapping[str, object]) -> SnapshotInfo:
    return SnapshotInfo(
        path=path,
        num_items=field(manifest, "num_items", int),
        offsets=field(manifest, "offsets", dict),
        metadata=field(manifest, "metadata", dict),
        created_ms=field(manifest, "created_ms", int),
        size_bytes=sum(each.stat().st_size for each in path.iterdir()),
    )


# Arrays


def _list_arrays(
    arrays: RowArrays, rows: NDArray[np.int64], signal_MS: NDArray[np.float64]
) -> Iterable[tuple[str, tuple[np.dtype[np.generic], tuple[int, ...], Iterable[NDArray[np.generic]]]]]:
    """(file name, (dtype, shape, blocks)), a block at a time so that no second copy of the vectors exists."""

    def whole(array: NDArray[np.generic]) -> tuple[np.dtype[np.generic], tuple[int, ...], list[NDArray[np.generic]]]:
        return array.dtype, array.shape, [array]

    vector_ND = arrays.vector_ND
    yield "keys.npy", whole(arrays.key_N[rows])
    if arrays.config.store_vectors:
        blocks = (vector_ND[rows[first : first + _BLOCK_ROWS]] for first in range(0, rows.size, _BLOCK_ROWS))
        yield "vectors.npy", (vector_ND.dtype, (rows.size, vector_ND.shape[1]), blocks)
    for name, array in _frame_arrays(arrays.code_rows.frame).items():
        yield name, whole(array)
    for name, array in _code_arrays(arrays).items():
        parts = (array[rows[first : first + _BLOCK_ROWS]] for first in range(0, rows.size, _BLOCK_ROWS))
        yield name, (array.dtype, (rows.size, *array.shape[1:]), parts)
    yield "signals.npy", whole(signal_MS)
    for position, column in enumerate(arrays.columns.by_name.values()):
        for part, array in column.export(rows).items():
            yield f"attribute-{position:03d}-{part}.npy", whole(array)


def _code_arrays(arrays: RowArrays) -> dict[str, NDArray[np.generic]]:
    """The arrays of the codes that have rows, by file name."""
    names = [f"code-{name.rpartition('_')[0]}.npy" for name in Codes._fields[:NUM_ARRAYS]]
    names += ["sign-bit.npy", "sign-scale.npy"] if arrays.config.signs is not None else []
    by_file = dict(zip(names, arrays.code_rows.arrays, strict=True))
    return {name: array for name, array in by_file.items() if len(array)}


def _frame_arrays(frame: Frame) -> dict[str, NDArray[np.generic]]:
    """What codes are relative to, by file name."""
    more = {"rotation.npy": frame.rotation_DD, "projection.npy": frame.projection_LD}
    return {"mean.npy": frame.mean_D, **{name: array for name, array in more.items() if array.size}}


class _HashingFile:
    """Writes, counts and hashes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        self._file.write(data)
        self.sha256.update(data)
        self.num_bytes += len(data)
        return len(data)


def _write_array(
    path: Path, source: tuple[np.dtype[np.generic], tuple[int, ...], Iterable[NDArray[np.generic]]]
) -> dict[str, object]:
    """Write a .npy file and flush it to the disk; its size and checksum."""
    dtype, shape, blocks = source
    with path.open("xb") as file:
        hashing = _HashingFile(file)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(hashing, header)
        for block in blocks:
            if block.size:
                hashing.write(np.ascontiguousarray(block).data.cast("B"))
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": hashing.num_bytes, "sha256": hashing.sha256.hexdigest()}


def _check_size(path: Path, file: IO[bytes], expected: Mapping[str, object]) -> int:
    size = os.fstat(file.fileno()).st_size
    if size != expected["bytes"]:
        raise ValueError(f"{path.name} has {size} bytes, expected {expected['bytes']}")
    return size


def _check_sum(path: Path, expected: Mapping[str, object], *parts: Buffer) -> None:
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part)
    if sha256.hexdigest() != expected["sha256"]:
        raise ValueError(f"{path.name} has sha256 {sha256.hexdigest()}, expected {expected['sha256']}")


def _read_array(path: Path, expected: Mapping[str, object]) -> NDArray[np.generic]:
    """The array, read once; nothing of it is interpreted before its checksum was found right (ValueError)."""
    with path.open("rb") as file:
        raw = bytearray(_check_size(path, file, expected))
        file.readinto(raw)
    _check_sum(path, expected, raw)
    header = io.BytesIO(memoryview(raw)[: 1 << 16])
    shape, dtype = _read_header(path, header)
    count = int(np.prod(shape))
    return np.frombuffer(raw, dtype, count, header.tell()).reshape(shape) if count else np.zeros(shape, dtype)


def _read_rows(path: Path, expected: Mapping[str, object], target: NDArray[np.generic], laid: Reserved | None) -> None:
    """Fill `target` from a file, read once. With `laid`, the file's own pages become the array where they can."""
    with path.open("rb") as file:
        size = _check_size(path, file, expected)
        start = size - target.nbytes
        header = file.read(max(start, 0))
        pages = laid.lay_file(file, size) if laid is not None and start == FILE_HEADER_BYTES else None
        if pages is not None:
            _check_sum(path, expected, pages)
        else:
            data = target.view(np.uint8).reshape(-1)
            file.readinto(cast(Buffer, data))
            _check_sum(path, expected, header, cast(Buffer, data))
    shape, dtype = _read_header(path, io.BytesIO(header))
    if shape != target.shape or dtype != target.dtype:
        raise ValueError(f"{path.name} holds {dtype}{list(shape)}, expected {target.dtype}{list(target.shape)}")


def _read_header(path: Path, header: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    if np.lib.format.read_magic(header) != (1, 0):
        raise ValueError(f"{path.name} is not a .npy file of version 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
    if fortran or dtype.hasobject:
        raise ValueError(f"{path.name} holds {dtype}, expected plain values in C order")
    return shape, dtype


def _load(path: Path, manifest: dict[str, object], backend: Backend, num_threads: int | None) -> Stored:
    if manifest["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {manifest['format_version']!r}, expected {FORMAT_VERSION}")
    num_items, dim = field(manifest, "num_items", int), field(manifest, "dim", int)
    schema = AttributeSchema.from_json(field(manifest, "schema", list))
    if schema.hash() != manifest["schema_hash"]:
        raise ValueError("the schema does not have the hash in the manifest")
    config = IndexConfig(
        dim=dim,
        schema=schema,
        signals=tuple(field(manifest, "signals", list)),
        capacity=max(1, num_items + num_items // 8),
        codes=cast(CodeKind, manifest.get("codes", "int8")),
        store_vectors=bool(manifest.get("store_vectors", True)),
        rotate=bool(manifest.get("rotate", False)),
        signs=cast("SignKind | None", manifest.get("signs")),
        sign_bits=cast(int, manifest.get("sign_bits", 0)),
        keep_snapshots=field(manifest, "keep_snapshots", int),
        backend=backend,
        num_threads=num_threads,
    )
    files = field(manifest, "files", dict)
    arrays = _read_rows_of(path, files, config, manifest)
    return Stored(arrays, num_items, field(manifest, "offsets", dict), manifest.get("costs"))


def _read_rows_of(
    path: Path, files: Mapping[str, Mapping[str, object]], config: IndexConfig, manifest: Mapping[str, object]
) -> RowArrays:
    """The arrays of a snapshot: vectors laid under their array, codes and keys read into theirs."""
    num_items = field(manifest, "num_items", int)
    frame = _read_frame(path, files, config)
    arrays = RowArrays(config, config.capacity, frame=frame)
    arrays.has_mean = field(manifest, "has_mean", bool)
    codes = _code_arrays(arrays) if manifest.get("codes_version") == CODES_VERSION else {}
    targets: dict[str, tuple[NDArray[np.generic], Reserved | None]] = {
        "keys.npy": (arrays.key_N[:num_items], None),
        **({"vectors.npy": (arrays.vector_ND[:num_items], arrays.room["vector"])} if config.store_vectors else {}),
        **{name: (array[:num_items], None) for name, array in codes.items()},
    }
    rest = {}
    for name, expected in files.items():
        if name in targets:
            target, laid = targets[name]
            _read_rows(path / name, expected, target, laid)
        elif name not in _frame_arrays(frame):
            rest[name] = _read_array(path / name, expected)
    needed = ["keys.npy", "signals.npy", *(["vectors.npy"] if config.store_vectors else codes)]
    for name in needed:
        if name not in files:
            raise ValueError(f"the manifest names no {name}")
    if not config.store_vectors and not codes:
        raise ValueError(f"codes of version {manifest.get('codes_version')!r} and no vectors to make others from")
    signal_MS = rest["signals.npy"]
    if signal_MS.shape != (num_items, len(config.signals)) or signal_MS.dtype != np.float64:
        raise ValueError(f"signals.npy holds {signal_MS.dtype}{list(signal_MS.shape)}")
    arrays.signal_SN[:, :num_items] = signal_MS.T
    for position, column in enumerate(arrays.columns.by_name.values()):
        start = f"attribute-{position:03d}-"
        column.load({name.removeprefix(start)[:-4]: rest[name] for name in rest if name.startswith(start)}, num_items)
    if not codes or any(name not in files for name in codes):
        has_mean = arrays.has_mean
        arrays = arrays.with_mean(frame.mean_D, num_items)
        arrays.has_mean = has_mean
    return arrays


def _read_frame(path: Path, files: Mapping[str, Mapping[str, object]], config: IndexConfig) -> Frame:
    """ValueError for arrays of another type or shape; KeyError where one is not there."""
    dim = config.dim
    shapes: dict[str, tuple[type[np.floating], tuple[int, ...]]] = {"mean.npy": (np.float32, (dim,))}
    if config.rotate:
        shapes["rotation.npy"] = (np.float64, (dim, dim))
    if config.signs is not None:
        shapes["projection.npy"] = (np.float64, (config.num_sign_bits, dim))
    found: dict[str, NDArray[np.generic]] = {}
    for name, (dtype, shape) in shapes.items():
        found[name] = array = _read_array(path / name, files[name])
        if array.shape != shape or array.dtype != dtype:
            wanted = f"{np.dtype(dtype)}{list(shape)}"
            raise ValueError(f"{name} holds {array.dtype}{list(array.shape)}, expected {wanted}")
    return Frame(
        found["mean.npy"].astype(np.float32),
        found.get("rotation.npy", NO_ROTATION).astype(np.float64),
        found.get("projection.npy", np.empty((0, dim))).astype(np.float64),
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
