"""Every kind of code over the same rows: 1,000,000 x 128, 100 results, one query, inner product.

`python -m tests.bench.codes [--quick] [--rows N] [--json FILE]`. Milliseconds are of the kernels alone, both cores,
medians of 30 queries, the kinds interleaved. recall is that of the exact 100 best; rows named exact are checked and
must have 1. bytes: codes and what belongs to them, per row, without the float32 vector that every kind but none
rescores with.

Data: `clustered` as in `tests.bench.retrieval`; `isotropic`, normal vectors of length 1, queries near none of them;
`skewed`, clustered with dimensions that fall as 1 / sqrt(d) and a large shared mean.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kernels.codes import NO_ROTATION, Codes, encode_rows, random_rotation
from kernels.filtered_topk import filtered_topk
from kernels.sign_codes import QUERY_PLANES, SignCodes, SignKind, draw_projection, encode_signs
from kernels.sign_topk import sign_topk
from tests.bench.embeddings import clustered, near, recall, score_all
from tests.bench.record import Record

DIM, K, QUERIES = 128, 100, 30
DEPTHS = (200, 1000, 5000, 20_000)
SIGNS: tuple[tuple[SignKind, int], ...] = (("rotated_sign", 128), ("rotated_sign", 256), ("sign_oporp", 128))

Search = Callable[[NDArray[np.float32]], tuple[NDArray[np.int64], int]]  # rows found, rows rescored


def make(rng: np.random.Generator, name: str, num_rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows and queries."""
    if name == "isotropic":
        vector_ND = rng.standard_normal((num_rows, DIM), np.float32)
        vector_ND /= np.linalg.norm(vector_ND, axis=1, keepdims=True)
        return vector_ND, rng.standard_normal((QUERIES, DIM)).astype(np.float32)
    vector_ND = clustered(rng, num_rows, DIM)
    if name == "skewed":
        vector_ND *= (8.0 / np.sqrt(1.0 + np.arange(DIM))).astype(np.float32)
        vector_ND += 2.0 * vector_ND.mean(axis=0)
    return vector_ND, near(rng, vector_ND, QUERIES)


class Catalogue:
    """One set of rows under all kinds of codes."""

    def __init__(self, vector_ND: NDArray[np.float32]) -> None:
        self.vector_ND, num_rows = vector_ND, len(vector_ND)
        self.mean_D = vector_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.key_N = np.arange(num_rows)
        self.mask_W = np.packbits(np.arange((num_rows + 63) // 64 * 64) < num_rows, bitorder="little").view(np.uint64)
        self.searches: dict[str, Search] = {}
        self.bytes: dict[str, float] = {}
        rotation_DD = random_rotation(DIM, np.random.default_rng(0))
        plain: Codes | None = None
        for fine, rotated in ((True, False), (False, False), (True, True), (False, True)):
            name = f"{'int8' if fine else 'int4'}{' rotated' if rotated else ''}, exact"
            rotation = rotation_DD if rotated else NO_ROTATION
            codes = encode_rows(vector_ND, self.mean_D, fine=fine, rotation_DD=rotation)
            plain = codes if plain is None else plain
            self.searches[name] = self._exact(codes)
            self.bytes[name] = sum(each.nbytes for each in codes[:5]) / num_rows
        assert plain is not None
        for kind, num_bits in SIGNS:
            projection_LD = draw_projection(kind, DIM, num_bits, 1)
            signs = SignCodes(
                *encode_signs(vector_ND, kind, projection_LD, self.mean_D), projection_LD, QUERY_PLANES[kind]
            )
            for depth in DEPTHS:
                name = f"{kind} {num_bits}, depth {depth}"
                self.searches[name] = self._narrowed(signs, plain, depth)
                self.bytes[name] = (signs.bit_NW.nbytes + signs.scale_N.nbytes) / num_rows

    def _exact(self, codes: Codes) -> Search:
        def search(query_D: NDArray[np.float32]) -> tuple[NDArray[np.int64], int]:
            best = filtered_topk(query_D, self.vector_ND, codes, self.key_N, self.mask_W, K)
            return best.row_K, best.num_rescored

        return search

    def _narrowed(self, signs: SignCodes, codes: Codes, depth: int) -> Search:
        def search(query_D: NDArray[np.float32]) -> tuple[NDArray[np.int64], int]:
            rows = sign_topk(query_D, signs, self.mask_W, depth)
            kept_W = np.zeros_like(self.mask_W)
            np.bitwise_or.at(kept_W, rows >> 6, np.uint64(1) << (rows & 63).astype(np.uint64))
            best = filtered_topk(query_D, self.vector_ND, codes, self.key_N, kept_W, K, strategy="compact")
            return best.row_K, best.num_rescored

        return search


def run(record: Record, name: str, num_rows: int) -> None:
    vector_ND, query_BD = make(np.random.default_rng(5), name, num_rows)
    score_BN = score_all(vector_ND, query_BD)
    catalogue = Catalogue(vector_ND)
    times: dict[str, list[float]] = {each: [] for each in catalogue.searches}
    recalls: dict[str, list[float]] = {each: [] for each in catalogue.searches}
    rescored: dict[str, list[int]] = {each: [] for each in catalogue.searches}
    for number in range(-1, QUERIES):
        for each, search in catalogue.searches.items():
            start = time.perf_counter()
            rows, num_rescored = search(query_BD[number])
            if number >= 0:
                times[each].append((time.perf_counter() - start) * 1000.0)
                recalls[each].append(recall(rows, score_BN[number], K, slack=1e-12))
                rescored[each].append(num_rescored)
    for each, samples in times.items():
        found = float(np.mean(recalls[each]))
        if each.endswith("exact") and min(recalls[each]) < 1.0:
            raise AssertionError(f"{name}, {each}: recall {min(recalls[each])}, expected 1")
        note = f"recall {found:.4f}, {catalogue.bytes[each]:.0f} bytes, {np.mean(rescored[each]):.0f} rescored"
        record.add_samples(f"{name}: {each}", samples, "ms", note)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200,000 rows unless --rows says otherwise")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    record = Record("codes")
    for name in ("clustered", "isotropic", "skewed"):
        run(record, name, options.rows or (200_000 if options.quick else 1_000_000))
    record.write(options.json)
    print(record.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
