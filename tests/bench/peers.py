"""Other engines behind one small interface; each is asked for the k best of a range of buckets."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Bounds = tuple[int, int] | None  # low <= bucket < high


class UnsupportedError(Exception):
    """What this engine cannot do, in words."""


class Peer(Protocol):
    name: str
    efforts: Sequence[int]  # from the fastest search to the most thorough

    def build(
        self, vector_ND: NDArray[np.float32], bucket_N: NDArray[np.int64], threads: int, folder: Path
    ) -> None: ...

    def search(self, query_D: NDArray[np.float32], k: int, bounds: Bounds, effort: int) -> NDArray[np.int64]: ...


class Hnswlib:
    name = "hnswlib M16 efc200, Python filter"
    efforts = (100, 200, 400, 800, 1600)

    def build(self, vector_ND: NDArray[np.float32], bucket_N: NDArray[np.int64], threads: int, folder: Path) -> None:
        self.index = _import("hnswlib").Index(space="ip", dim=vector_ND.shape[1])
        self.index.init_index(max_elements=len(vector_ND), M=16, ef_construction=200)
        self.index.add_items(vector_ND, np.arange(len(vector_ND)), num_threads=threads)
        self.buckets = bucket_N.tolist()

    def search(self, query_D: NDArray[np.float32], k: int, bounds: Bounds, effort: int) -> NDArray[np.int64]:
        self.index.set_ef(max(effort, k))
        try:
            if bounds is None:
                labels, _ = self.index.knn_query(query_D, k, num_threads=1)
            else:
                low, high = bounds
                labels, _ = self.index.knn_query(
                    query_D, k, num_threads=1, filter=lambda label: low <= self.buckets[label] < high
                )
        except RuntimeError as error:
            raise UnsupportedError(str(error)) from error
        return labels[0].astype(np.int64)


class Usearch:
    """It has no filter in Python: the `effort` nearest are fetched and those outside the range dropped."""

    name = "usearch HNSW f32, filtered afterwards"
    efforts = (100, 200, 400, 800, 1600, 6400, 25_600)

    def build(self, vector_ND: NDArray[np.float32], bucket_N: NDArray[np.int64], threads: int, folder: Path) -> None:
        self.index = _import("usearch.index").Index(ndim=vector_ND.shape[1], metric="ip", dtype="f32")
        self.index.add(np.arange(len(vector_ND)), vector_ND, threads=threads)
        self.bucket_N = bucket_N

    def search(self, query_D: NDArray[np.float32], k: int, bounds: Bounds, effort: int) -> NDArray[np.int64]:
        self.index.expansion_search = effort
        count = k if bounds is None else effort
        row_K = np.asarray(self.index.search(query_D, count, threads=1).keys).astype(np.int64)
        if bounds is not None:
            bucket_K = self.bucket_N[row_K]
            row_K = row_K[(bucket_K >= bounds[0]) & (bucket_K < bounds[1])]
        return row_K[:k]


class Lancedb:
    name = "lancedb IVF_PQ, refine 10, prefilter"
    efforts = (20, 80, 320)

    def build(self, vector_ND: NDArray[np.float32], bucket_N: NDArray[np.int64], threads: int, folder: Path) -> None:
        import pyarrow as pa

        dim = vector_ND.shape[1]
        rows = pa.table(
            {
                "id": np.arange(len(vector_ND)),
                "bucket": bucket_N,
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vector_ND.ravel()), dim),
            }
        )
        self.table = _import("lancedb").connect(folder).create_table("items", rows)
        self.table.create_index(metric="dot", num_partitions=320, num_sub_vectors=dim // 4)
        self.table.create_scalar_index("bucket")

    def search(self, query_D: NDArray[np.float32], k: int, bounds: Bounds, effort: int) -> NDArray[np.int64]:
        search = self.table.search(query_D).distance_type("dot").nprobes(effort).refine_factor(10)
        if bounds is not None:
            search = search.where(f"bucket >= {bounds[0]} AND bucket < {bounds[1]}", prefilter=True)
        found = search.select(["id", "_distance"]).limit(k).to_arrow()
        return np.asarray(found["id"]).astype(np.int64)


class Zvec:
    name = "zvec HNSW M16 efc200 + inverted index"
    efforts = (100, 200, 400, 800, 1600)

    def build(self, vector_ND: NDArray[np.float32], bucket_N: NDArray[np.int64], threads: int, folder: Path) -> None:
        self.zvec: Any = _import("zvec")
        zvec = self.zvec
        zvec.init(query_threads=threads, optimize_threads=threads, log_dir=str(folder / "logs"))
        bucket = zvec.FieldSchema(
            "bucket", zvec.DataType.INT64, index_param=zvec.InvertIndexParam(enable_range_optimization=True)
        )
        hnsw = zvec.HnswIndexParam(metric_type=zvec.MetricType.IP, m=16, ef_construction=200)
        vector = zvec.VectorSchema("v", zvec.DataType.VECTOR_FP32, vector_ND.shape[1], index_param=hnsw)
        schema = zvec.CollectionSchema(name="items", fields=[bucket], vectors=[vector])
        self.items = zvec.create_and_open(str(folder / "items"), schema)
        for first in range(0, len(vector_ND), 1000):
            block = zip(vector_ND[first : first + 1000].tolist(), bucket_N[first : first + 1000].tolist(), strict=True)
            self.items.insert(
                [zvec.Doc(id=str(first + n), vectors={"v": v}, fields={"bucket": b}) for n, (v, b) in enumerate(block)]
            )
        self.items.optimize()

    def search(self, query_D: NDArray[np.float32], k: int, bounds: Bounds, effort: int) -> NDArray[np.int64]:
        query = self.zvec.Query(field_name="v", vector=query_D.tolist(), param=self.zvec.HnswQueryParam(ef=effort))
        condition = None if bounds is None else f"bucket >= {bounds[0]} and bucket < {bounds[1]}"
        found = self.items.query(query, topk=k, filter=condition, output_fields=[])
        return np.fromiter((int(each.id) for each in found), np.int64)


PEERS: dict[str, type[Peer]] = {"usearch": Usearch, "hnswlib": Hnswlib, "lancedb": Lancedb, "zvec": Zvec}


class Faiss:
    """Faiss over the same vectors. One query runs on one thread there, whatever its thread count; `split` cuts the
    catalogue in as many parts as there are threads and merges their answers, which Faiss's users would have to write.
    """

    def __init__(self, vector_ND: NDArray[np.float32], threads: int) -> None:
        self.faiss: Any = _import("faiss")
        self.faiss.omp_set_num_threads(threads)
        dim = vector_ND.shape[1]
        self.flat = self.faiss.IndexFlatIP(dim)
        self.flat.add(vector_ND)
        self.sq8 = self.faiss.IndexScalarQuantizer(
            dim, self.faiss.ScalarQuantizer.QT_8bit, self.faiss.METRIC_INNER_PRODUCT
        )
        self.sq8.train(vector_ND[:: max(1, len(vector_ND) // 100_000)])
        self.sq8.add(vector_ND)
        self.edges = [len(vector_ND) * part // threads for part in range(threads + 1)]
        self.parts = []
        for first, last in zip(self.edges, self.edges[1:], strict=False):
            part = self.faiss.IndexFlatIP(dim)
            part.add(vector_ND[first:last])
            self.parts.append(part)
        self.pool = ThreadPoolExecutor(threads)

    def bitmap(self, mask_N: NDArray[np.bool_]) -> object:
        """Search parameters that admit the rows of the mask; made before the clock starts."""
        selector = self.faiss.IDSelectorBitmap(np.packbits(mask_N, bitorder="little"))
        return self.faiss.SearchParameters(sel=selector)

    def split(self, query_D: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        answers = list(self.pool.map(lambda part: part.search(query_D[None], k), self.parts))
        scores = np.concatenate([found[0][0] for found in answers])
        rows = np.concatenate([found[1][0] + first for found, first in zip(answers, self.edges, strict=False)])
        return rows[np.argsort(-scores, kind="stable")[:k]].astype(np.int64)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnsupportedError(f"not installed ({error})") from error
