"""From what is stored to a retrieval engine: the newest snapshot that fits, or an index built anew.

Item features are always encoded from the documents, and signals always read from storage, both as of a place in
their stream from which the followers go on: what a snapshot saves is embedding every item again.
"""

# n = items, S = signals

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from index.attributes import AttributeSchema
from index.config import IndexConfig
from index.live import LiveIndex, SnapshotError
from models.data.items import ItemTable
from models.data.schema import FeatureSchema
from models.retrieval.model import RetrievalModel
from services.ingest.follower import find_gap
from services.keys import pack_key
from services.retrieval.engine import ItemChange, Quotas, RetrievalEngine, StoredSignals
from services.storage.client import Command
from services.storage.documents import Document
from services.storage.state import stored_sums
from services.storage.storage import Storage
from services.storage.streams import START

CHUNK_ITEMS = 2048


def index_folder(data_dir: Path) -> Path:
    """Where a platform keeps its index snapshots."""
    return data_dir / "index"


def load_retrieval(
    storage: Storage,
    model: RetrievalModel,
    schema: FeatureSchema,
    attributes: AttributeSchema,
    *,
    items: ItemTable,
    quotas: Quotas,
    num_threads: int,
    logger: structlog.typing.FilteringBoundLogger,
) -> RetrievalEngine:
    """Return an engine that holds everything up to `engine.index.offsets`; `items` is filled on the way."""
    now_ms = storage.clock.now_ms()
    index = _open_snapshot(storage, model, schema, attributes, num_threads, logger)
    held = index is not None
    if index is None:
        config = IndexConfig(
            dim=model.dim,
            schema=attributes,
            signals=tuple(signal.name for signal in schema.signals),
            capacity=max(1024, len(storage.items) * 9 // 8),
            num_threads=num_threads,
        )
        index = LiveIndex(config)
    engine = RetrievalEngine(index=index, model=model, items=items, schema=schema, landmark_ms=now_ms, quotas=quotas)
    offset = storage.streams.last_offset("items")
    if held:
        load_items(storage, items)
    else:
        for chunk in stored_items(storage):
            engine.apply_items(chunk)
        index.offsets["items"] = offset
    engine.load_signals(lambda keys: read_signals(storage, schema, keys))
    logger.info("index ready", items=index.num_items, from_snapshot=held, offsets=dict(index.offsets))
    return engine


def stored_items(storage: Storage) -> Iterator[list[ItemChange]]:
    """Yield every item that is stored, in parts."""
    for chunk in _chunks(storage.items.scan()):
        yield [ItemChange(document.key, document.attributes) for document in chunk]


def load_items(storage: Storage, items: ItemTable) -> str:
    """Encode every document into the table; return the items offset from which to follow."""
    offset = storage.streams.last_offset("items")
    for chunk in _chunks(storage.items.scan()):
        keys = np.array([document.key for document in chunk], np.int64)
        items.upsert(keys, [document.attributes for document in chunk])
    return offset


def _open_snapshot(
    storage: Storage,
    model: RetrievalModel,
    schema: FeatureSchema,
    attributes: AttributeSchema,
    num_threads: int,
    logger: structlog.typing.FilteringBoundLogger,
) -> LiveIndex | None:
    folder = index_folder(storage.data_dir)
    if not folder.exists():
        return None
    try:
        index, info = LiveIndex.open_newest(folder, num_threads=num_threads)
    except SnapshotError as error:
        logger.warning("no usable index snapshot; building the index anew", reason=str(error))
        return None
    for path, reason in info.skipped:
        logger.warning("index snapshot skipped", path=path, reason=reason)
    offset = index.offsets.get("items", START)
    expected: dict[str, object] = {
        "model_version": model.version,
        "schema_hash": schema.hash(),
        "attributes": attributes.hash(),
        "signals": tuple(signal.name for signal in schema.signals),
    }
    found = {
        **info.metadata,
        "attributes": index.config.schema.hash(),
        "signals": index.config.signals,
    }
    unfit = [
        f"{name} is {found.get(name)}, not {value}" for name, value in expected.items() if found.get(name) != value
    ]
    gap = find_gap(storage.streams, "items", offset)
    if gap is not None or offset == START and storage.streams.last_offset("items") != START:
        unfit.append(gap or "it names no place in the items stream")
    if unfit:
        logger.warning(
            "index snapshot does not fit; building the index anew", path=str(info.path), reason="; ".join(unfit)
        )
        return None
    return index


def read_signals(storage: Storage, schema: FeatureSchema, keys: NDArray[np.int64]) -> StoredSignals:
    """What storage has counted for the keys, with its place in the events stream, as of one moment."""
    packed = [pack_key(key) for key in keys.tolist()]
    # One transaction, so that the counts and the offset belong together while a consumer goes on counting.
    commands: list[Command] = [("HMGET", storage.names.state, "landmark_ms", "offset", "sequence")]
    if packed:
        commands += [("ZMSCORE", storage.names.popularity(signal.name), *packed) for signal in schema.signals]
    (landmark, offset, sequence), *columns = storage.client.atomically(commands)
    return StoredSignals(
        sums=stored_sums(columns).reshape(len(keys), len(schema.signals)),
        landmark_ms=None if landmark is None else int(landmark),
        offset=START if offset is None else str(offset.decode()),
        num_counted=int(sequence or 0),
    )


def _chunks(documents: Iterator[Document]) -> Iterator[list[Document]]:
    while chunk := list(islice(documents, CHUNK_ITEMS)):
        yield chunk
