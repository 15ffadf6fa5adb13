"""Filtered retrieval beside Faiss and other engines: 1,000,000 x 128, 100 results, inner product.

`python -m tests.bench.retrieval [--quick] [--json FILE] [--peer-rows N] [--peers NAME,...] [--only-peers]`. All engines
run in this process with the same number of threads, their searches interleaved. Ours evaluates its filter in every
search; Faiss is handed a bitmap made before the clock starts. A ratio is our median over the other's. usearch, hnswlib,
lancedb and zvec are approximate: each is given more effort until its recall reaches 0.99 or its last setting, and the
recall is in the row; they are built over 100,000 rows in the quick form, for their graphs take minutes to build over
all; `--peer-rows N` says otherwise. `--peers` names the engines to build, one after another, each with all threads;
`--only-peers` leaves out every other part. Rows of engines are told on stderr as they are measured.

Figures: scan_vs_bandwidth (our search over the time in which this machine reads all of the codes), scan_vs_upper (over
the time for what every search has to read of them: upper nibbles, scales, a byte of error bound), exact_vs_faiss_flat,
exact_vs_faiss_sq8, batch64_vs_faiss_flat, filtered_vs_faiss_flat_*, recall_exact (the worst over all of our answers
that were checked, adversarial catalogues included), update_slowdown (p99 of searches with 5,000 writes/s over the p99
without), visible_p99_ms, bytes_per_item_ratio (resident bytes per item over those of its vector, code, scale, error
bound, key and attribute), open_seconds_1m (a new process: from opening a snapshot to the first answer),
open_seconds_1m_cold (the same with the snapshot's files dropped from the page cache before), alone_10m_gb (resident
memory of a process that serves 10,000,000 x 64 from codes alone), alone_10m_ms, alone_10m_recall (against float32).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numba
import numpy as np
from numpy.typing import NDArray

from index.attributes import Attribute, AttributeSchema
from index.config import IndexConfig
from index.live import LiveIndex
from index.tree import Range
from tests.bench.embeddings import adversarial, clustered, near, recall, score_all
from tests.bench.peers import PEERS, Bounds, Faiss, Peer, UnsupportedError
from tests.bench.record import Record
from tests.bench.updates import Writer, time_searches, time_visibility

DIM, K, BATCH = 128, 100, 64
SCHEMA = AttributeSchema((Attribute("bucket", "int"),))
SELECTIVITIES = {"50pct": 500, "10pct": 100, "1pct": 10, "0.1pct": 1}  # buckets of 1000
WRITES_PER_S = 5_000
MATCHED_RECALL = 0.99
ALONE_ROWS, ALONE_DIM, ALONE_BLOCK = 10_000_000, 64, 500_000

Search = Callable[[int], object]


class Bench:
    """The catalogue, the engines over it, and the record that they report to."""

    def __init__(self, num_rows: int, threads: int, rounds: int) -> None:
        self.record = Record("retrieval")
        self.threads, self.rounds = threads, rounds
        self.recalls: list[float] = []
        self.answers: list[tuple[int, NDArray[np.int64], Bounds]] = []
        self.skipped: list[str] = []
        rng = self.rng = np.random.default_rng(5)
        self.vector_ND = clustered(rng, num_rows, DIM)
        self.bucket_N = rng.integers(1000, size=num_rows)
        self.query_BD = near(rng, self.vector_ND, BATCH * 4)
        self.score_BN = score_all(self.vector_ND, self.query_BD[:rounds])
        before = resident_bytes()
        started = time.perf_counter()
        self.index = fill(self.vector_ND, self.bucket_N, threads)
        self.index.maintain()
        self.record.add("build: ours", time.perf_counter() - started, "s", f"{num_rows} rows")
        self.record_memory(resident_bytes() - before)
        self.index.search(self.query_BD[0], K)
        self.faiss = Faiss(self.vector_ND, threads)

    def query(self, number: int) -> NDArray[np.float32]:
        return self.query_BD[number % len(self.query_BD)]

    def record_memory(self, grown_bytes: int) -> None:
        num_rows = len(self.vector_ND)
        needed = 4 * DIM + (DIM + 4 + 2) + 8 + 8  # vector, code + scale + error bounds, key, attribute
        self.record.add("memory: needed per item", needed, "bytes")
        self.record.add("memory: resident per item", grown_bytes / num_rows, "bytes")
        self.record.figures["bytes_per_item_ratio"] = grown_bytes / num_rows / needed

    def compare(self, what: str, searches: Mapping[str, Search], note: str = "") -> dict[str, float]:
        """Median milliseconds by engine; searches are interleaved so that a busy moment hits all of them."""
        times: dict[str, list[float]] = {name: [] for name in searches}
        for number in range(-2, self.rounds):
            for name, search in searches.items():
                start = time.perf_counter()
                search(number % self.rounds)
                if number >= 0:
                    times[name].append((time.perf_counter() - start) * 1000.0)
        return {
            name: self.record.add_samples(f"{what}: {name}", each, "ms", note).value for name, each in times.items()
        }

    # Parts of the benchmark, in their order

    def exact(self) -> None:
        found: dict[str, list[NDArray[np.int64]]] = {name: [] for name in ("sq8", "flat")}
        medians = self.compare(
            "one query",
            {
                "ours": lambda n: self.check(n, self.index.search(self.query(n), K).keys[0]),
                "faiss flat": lambda n: found["flat"].append(self.faiss.flat.search(self.query(n)[None], K)[1][0]),
                "faiss flat, split over threads": lambda n: self.faiss.split(self.query(n), K),
                "faiss sq8": lambda n: found["sq8"].append(self.faiss.sq8.search(self.query(n)[None], K)[1][0]),
            },
        )
        for name, answers in found.items():
            rows = zip(range(self.rounds), answers[-self.rounds :], strict=True)
            value = np.mean([recall(each, self.score_BN[n], K) for n, each in rows])
            self.record.add(f"one query: recall of faiss {name}", float(value), "share")
        figures = self.record.figures
        figures["exact_vs_faiss_flat"] = medians["ours"] / medians["faiss flat"]
        figures["exact_vs_faiss_sq8"] = medians["ours"] / medians["faiss sq8"]
        self.record.add(
            "one query: ours over faiss flat, split", medians["ours"] / medians["faiss flat, split over threads"], ""
        )
        num_rows = len(self.vector_ND)
        num_bytes, upper_bytes = num_rows * (DIM + 6) + num_rows // 8, num_rows * (DIM // 2 + 5) + num_rows // 8
        per_s = read_bandwidth(self.threads)
        self.record.add("memory read bandwidth", per_s / 1e9, "GB/s", f"{self.threads} threads, best of 20")
        figures["scan_vs_bandwidth"] = medians["ours"] / 1000.0 / (num_bytes / per_s)
        figures["scan_vs_upper"] = medians["ours"] / 1000.0 / (upper_bytes / per_s)

    def check(self, number: int, keys: NDArray[np.int64], bounds: Bounds = None) -> None:
        """Note the answer, to be compared when the clocks have stopped."""
        self.answers.append((number, keys, bounds))

    def batches(self) -> None:
        def batch(number: int) -> NDArray[np.float32]:
            return self.query_BD[number % 4 * BATCH :][:BATCH]

        medians = self.compare(
            f"batch of {BATCH}",
            {
                "ours": lambda n: self.index.search(batch(n), K),
                "faiss flat": lambda n: self.faiss.flat.search(batch(n), K),
            },
        )
        self.record.figures["batch64_vs_faiss_flat"] = medians["ours"] / medians["faiss flat"]

    def filtered(self) -> None:
        for name, width in SELECTIVITIES.items():
            bounds = [(low, low + width) for low in self.rng.integers(1001 - width, size=self.rounds).tolist()]
            bitmaps = [self.faiss.bitmap((self.bucket_N >= low) & (self.bucket_N < high)) for low, high in bounds]

            def ours(n: int, bounds: list[tuple[int, int]] = bounds) -> None:
                low, high = bounds[n]
                hits = self.index.search(self.query(n), K, Range(field="bucket", gte=low, lt=high))
                self.check(n, hits.keys[0], bounds[n])

            def theirs(n: int, bitmaps: list[object] = bitmaps) -> None:
                self.faiss.flat.search(self.query(n)[None], K, params=bitmaps[n])

            medians = self.compare(f"filter {name}", {"ours": ours, "faiss flat": theirs})
            self.record.figures[f"filtered_vs_faiss_flat_{name}"] = medians["ours"] / medians["faiss flat"]

    def recall_exact(self) -> None:
        for number, keys, bounds in self.answers:
            score_N = admit(self.score_BN[number], self.bucket_N, bounds)
            self.recalls.append(recall(keys, score_N, K, slack=DIM * 2.0**-52))
        self.record.add("recall: ours, clustered", min(self.recalls), "share", f"{len(self.recalls)} searches checked")
        for name, vector_ND in adversarial(self.rng, 20_000, DIM).items():
            index = fill(vector_ND, np.zeros(len(vector_ND), np.int64), self.threads)
            query_BD = self.rng.standard_normal((20, DIM)).astype(np.float32)
            score_BN = score_all(vector_ND, query_BD)
            size_BN = np.abs(query_BD).astype(np.float64) @ np.abs(vector_ND).astype(np.float64).T
            values = [
                recall(keys, score_BN[n], K, slack=float(size_BN[n].max()) * DIM * 2.0**-52)
                for n, keys in enumerate(index.search(query_BD, K).keys)
            ]
            self.record.add(f"recall: ours, {name}", min(values), "share", "20 searches, the worst of them")
            self.recalls += values
        self.record.figures["recall_exact"] = min(self.recalls)

    def updates(self, seconds: float) -> None:
        def search(number: int) -> object:
            return self.index.search(self.query(number), K)

        alone = self.record.add_samples("searches without writes", time_searches(search, seconds), "ms")
        writer = Writer(self.index, self.vector_ND, WRITES_PER_S)
        writer.start()
        try:
            beside = time_searches(search, seconds)
            visible = time_visibility(self.index, self.rng, 100)
        finally:
            rate = writer.stop()
        note = f"{rate:.0f} upserts and deletes/s done of {WRITES_PER_S} wanted"
        loaded = self.record.add_samples("searches beside writes", beside, "ms", note)
        assert loaded.p99 is not None and alone.p99 is not None
        self.record.figures["update_slowdown"] = loaded.p99 / alone.p99
        row = self.record.add_samples("a write until a search answers it", visible, "ms", note)
        assert row.p99 is not None
        self.record.figures["visible_p99_ms"] = row.p99

    def reopen(self) -> None:
        with tempfile.TemporaryDirectory(prefix="shortlist-bench-") as folder:
            started = time.perf_counter()
            info = self.index.snapshot(folder, {})
            self.record.add("snapshot: write", time.perf_counter() - started, "s", f"{info.size_bytes} bytes")
            started = time.perf_counter()
            arguments = [sys.executable, "-m", "tests.bench.retrieval", "--open", folder]
            done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
            self.record.add("snapshot: whole second process", time.perf_counter() - started, "s")
            self.record.figures["open_seconds_1m"] = float(done.stdout)
            self.record.add("snapshot: open to first answer", float(done.stdout), "s", "files in the page cache")
            num_left = drop_from_cache(info.path)
            done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
            self.record.figures["open_seconds_1m_cold"] = float(done.stdout)
            note = f"{num_left} of {info.size_bytes} bytes still in the page cache"
            self.record.add("snapshot: open to first answer, cold", float(done.stdout), "s", note)

    def alone(self) -> None:
        """Codes without vectors, in a process of their own."""
        arguments = [sys.executable, "-m", "tests.bench.retrieval", "--alone", str(ALONE_ROWS)]
        done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
        gigabytes, milliseconds, found = (float(each) for each in done.stdout.split())
        figures, note = self.record.figures, f"{ALONE_ROWS} x {ALONE_DIM}, int8 codes alone"
        self.record.add("codes alone: resident", gigabytes, "GB", note)
        self.record.add("codes alone: one query", milliseconds, "ms", note)
        self.record.add("codes alone: recall", found, "share", note)
        figures |= {"alone_10m_gb": gigabytes, "alone_10m_ms": milliseconds, "alone_10m_recall": found}

    def peers(self, num_rows: int, names: Sequence[str]) -> None:
        vector_ND, bucket_N = self.vector_ND[:num_rows], self.bucket_N[:num_rows]
        index = fill(vector_ND, bucket_N, self.threads)
        score_BN = score_all(vector_ND, self.query_BD[: self.rounds])
        cases = {"no filter": None} | {f"filter {name}": (0, width) for name, width in SELECTIVITIES.items()}
        for what, bounds in cases.items():
            tree = None if bounds is None else Range(field="bucket", gte=bounds[0], lt=bounds[1])

            def ours(query_D: NDArray[np.float32], tree: Range | None = tree) -> NDArray[np.int64]:
                return index.search(query_D, K, tree).keys[0]

            self.peer_row(f"{num_rows} rows, {what}: ours", ours, score_BN, bucket_N, bounds, "")
        for name in names:
            peer = PEERS[name]()
            print(f"building {peer.name} over {num_rows:,} rows", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="shortlist-bench-") as folder:
                try:
                    started = time.perf_counter()
                    peer.build(vector_ND, bucket_N, self.threads, Path(folder))
                    seconds = time.perf_counter() - started
                    self.record.add(f"build: {peer.name}", seconds, "s", f"{num_rows} rows")
                    print(f"built {peer.name} in {seconds:.0f} s", file=sys.stderr, flush=True)
                    for what, bounds in cases.items():
                        self.matched(peer, f"{num_rows} rows, {what}: {peer.name}", score_BN, bucket_N, bounds)
                except UnsupportedError as error:
                    self.skip(peer.name, error)
                del peer

    def matched(
        self, peer: Peer, what: str, score_BN: NDArray[np.float64], bucket_N: NDArray[np.int64], bounds: Bounds
    ) -> None:
        """The row of the least effort whose recall is MATCHED_RECALL, or of the greatest effort."""
        for effort in peer.efforts:

            def search(query_D: NDArray[np.float32], effort: int = effort) -> NDArray[np.int64]:
                return peer.search(query_D, K, bounds, effort)

            probes = range(min(10, self.rounds))
            try:
                reached = np.mean(
                    [recall(search(self.query(n)), admit(score_BN[n], bucket_N, bounds), K) for n in probes]
                )
            except UnsupportedError as error:
                if effort == peer.efforts[-1]:
                    self.skip(what, error)
                    return
                continue
            if reached >= MATCHED_RECALL or effort == peer.efforts[-1]:
                self.peer_row(what, search, score_BN, bucket_N, bounds, f", effort {effort}")
                return

    def peer_row(
        self,
        what: str,
        search: Callable[[NDArray[np.float32]], NDArray[np.int64]],
        score_BN: NDArray[np.float64],
        bucket_N: NDArray[np.int64],
        bounds: Bounds,
        note: str,
    ) -> None:
        times, recalls = [], []
        search(self.query(0))
        for number in range(self.rounds):
            start = time.perf_counter()
            rows = search(self.query(number))
            times.append((time.perf_counter() - start) * 1000.0)
            recalls.append(recall(rows, admit(score_BN[number], bucket_N, bounds), K, slack=1e-12))
        note = f"recall {np.mean(recalls):.4f}{note}"
        row = self.record.add_samples(what, times, "ms", note)
        print(f"{what}: {row.value:.3g} ms, {note}", file=sys.stderr, flush=True)

    def skip(self, what: str, reason: Exception) -> None:
        print(f"skipped {what}: {reason}", file=sys.stderr)
        self.skipped.append(f"skipped {what}: {reason}")


def fill(vector_ND: NDArray[np.float32], bucket_N: NDArray[np.int64], threads: int) -> LiveIndex:
    """Row numbers are keys."""
    index = LiveIndex(IndexConfig(dim=vector_ND.shape[1], schema=SCHEMA, capacity=len(vector_ND), num_threads=threads))
    for first in range(0, len(vector_ND), 20_000):
        keys = np.arange(first, min(first + 20_000, len(vector_ND)))
        attributes = [{"bucket": each} for each in bucket_N[keys].tolist()]
        index.upsert(keys, vector_ND[keys], attributes)
    return index


def admit(score_N: NDArray[np.float64], bucket_N: NDArray[np.int64], bounds: Bounds) -> NDArray[np.float64]:
    if bounds is None:
        return score_N
    return np.where((bucket_N >= bounds[0]) & (bucket_N < bounds[1]), score_N, -np.inf)


def resident_bytes() -> int:
    """What the process holds in memory now, after what it can give back was given back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@numba.njit(nogil=True)
def _read(words: NDArray[np.int64]) -> int:
    total = 0
    for place in range(words.size):
        total += words[place]
    return total


def read_bandwidth(threads: int) -> float:
    """Bytes per second that `threads` threads read from memory together."""
    words = np.ones(1 << 27 >> 3 << 2, np.int64)  # 512 MiB
    edges = [words.size * part // threads for part in range(threads + 1)]
    parts = [words[first:last] for first, last in zip(edges, edges[1:], strict=False)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_read, parts))
        for _ in range(20):
            start = time.perf_counter()
            list(pool.map(_read, parts))
            best = max(best, words.nbytes / (time.perf_counter() - start))
    return best


def drop_from_cache(folder: Path) -> int:
    """Ask the system to forget what it holds of the folder's files; the bytes that it holds all the same."""
    num_left = 0
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            num_left += count_cached(file)
    return num_left


def count_cached(file: BinaryIO) -> int:
    """Bytes of a file in the page cache."""
    size, page = os.fstat(file.fileno()).st_size, mmap.PAGESIZE
    with mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE) as mapped:  # writable, for ctypes; never written
        held = (ctypes.c_ubyte * (-(-size // page)))()
        start = ctypes.c_char.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(start))
        if ctypes.CDLL(None, use_errno=True).mincore(address, ctypes.c_size_t(size), held):
            raise OSError(ctypes.get_errno(), "mincore")
        del start
    return sum(each & 1 for each in held) * page


def open_and_answer(folder: Path) -> float:
    started = time.perf_counter()
    index, _ = LiveIndex.open_newest(folder)
    index.search(np.ones(index.dim), K)
    return time.perf_counter() - started


def serve_alone(num_rows: int) -> tuple[float, float, float]:
    """Resident gigabytes, median milliseconds of a search, and its recall, of an index that holds no vectors."""
    rng, num_queries = np.random.default_rng(7), 20
    index = LiveIndex(IndexConfig(dim=ALONE_DIM, schema=SCHEMA, capacity=num_rows, store_vectors=False))
    score_BK, key_BK = np.full((num_queries, K), -np.inf), np.full((num_queries, K), -1)
    for first in range(0, num_rows, ALONE_BLOCK):
        block_ND = clustered(rng, min(ALONE_BLOCK, num_rows - first), ALONE_DIM)
        if first == 0:
            query_BD = near(rng, block_ND, num_queries)
        keys = np.arange(first, first + len(block_ND))
        for part in np.array_split(keys, 25):
            buckets = rng.integers(1000, size=part.size).tolist()
            index.upsert(part, block_ND[part - first], [{"bucket": each} for each in buckets])
        index.maintain()
        score_BN = np.concatenate([score_BK, score_all(block_ND, query_BD)], axis=1)
        best_BK = np.argpartition(score_BN, -K, axis=1)[:, -K:]
        key_BN = np.concatenate([key_BK, np.broadcast_to(keys, (num_queries, keys.size))], axis=1)
        score_BK, key_BK = np.take_along_axis(score_BN, best_BK, 1), np.take_along_axis(key_BN, best_BK, 1)
        print(f"codes alone: {keys[-1] + 1:,} of {num_rows:,} items", file=sys.stderr)
    del block_ND, score_BN, key_BN
    index.search(query_BD[0], K)
    times, found = [], []
    for query_D, wanted_K in zip(query_BD, key_BK, strict=True):
        started = time.perf_counter()
        hits = index.search(query_D, K)
        times.append((time.perf_counter() - started) * 1000.0)
        found.append(np.isin(wanted_K, hits.keys[0]).mean())
    return resident_bytes() / 1e9, float(np.median(times)), float(np.mean(found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples, peers over 100,000 rows; under 5 minutes")
    parser.add_argument("--json", type=Path, help="write figures and rows to this file")
    parser.add_argument("--rows", type=int, default=1_000_000, help="items in the catalogue")
    parser.add_argument("--peer-rows", type=int, help="items that the other engines are built over")
    parser.add_argument("--peers", default=",".join(PEERS), help="of the other engines, separated by commas")
    parser.add_argument("--only-peers", action="store_true", help="leave out every other part")
    parser.add_argument("--open", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--alone", type=int, metavar="ROWS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open is not None:
        print(open_and_answer(options.open))
        return 0
    if options.alone is not None:
        print(*serve_alone(options.alone))
        return 0
    names = [name for name in options.peers.split(",") if name]
    if unknown := set(names) - set(PEERS):
        parser.error(f"--peers {', '.join(sorted(unknown))}: expected some of {', '.join(PEERS)}")
    # Waiting OpenMP threads of one engine must not spin while another is timed; read when Faiss is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    try:
        importlib.import_module("faiss")
    except ImportError as error:
        print(f"the figures need Faiss: pip install 'shortlist[cpu,bench]' ({error})", file=sys.stderr)
        return 1
    bench = Bench(options.rows, len(os.sched_getaffinity(0)), 30 if options.quick else 200)
    if not options.only_peers:
        bench.exact()
        bench.batches()
        bench.filtered()
        bench.recall_exact()
        bench.reopen()
        bench.updates(6.0 if options.quick else 60.0)
        bench.alone()
    bench.peers(min(options.rows, options.peer_rows or (100_000 if options.quick else options.rows)), names)
    bench.record.write(options.json)
    print("\n".join([bench.record.table(), *bench.skipped]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
