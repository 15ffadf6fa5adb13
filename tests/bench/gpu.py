"""Every GPU kernel on this machine's card: `python -m tests.bench.gpu [--quick] [--json FILE]`.

First each kernel's hits are compared with the reference's. Then a search is timed with CUDA events (median of
REPEATS after WARM_UP), queued as it is and as a CUDA graph, beside two things measured in the same process: the time
that a copy of the bytes it must read would take, and the same search in plain PyTorch (matmul, masked_fill, topk).
Without a card it says so, writes no figures and ends with 0.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from kernels.dense_topk import DenseRows, DenseTopK, dense_topk, has_triton
from tests.bench import gpu_decoder, gpu_ranking
from tests.bench.record import Record, hardware

NUM_ROWS, DIM, K = 15_500_000, 128, 2000
QUICK_ROWS = 1_000_000
WARM_UP, REPEATS = 5, 30
PART = 1 << 20  # rows that are made or filled at once


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows instead of {NUM_ROWS:,}")
    parser.add_argument("--json", type=Path, help="write figures and rows to this file")
    arguments = parser.parse_args()
    record = Record("gpu")
    failed: list[str] = []
    if not torch.cuda.is_available() or not has_triton():
        print("no CUDA device or no Triton: nothing was measured")
    else:
        card = torch.cuda.get_device_name()
        print(f"{card}, torch {torch.__version__}, {hardware()['versions']}")
        failed = measure(record, QUICK_ROWS if arguments.quick else NUM_ROWS, card)
    record.write(arguments.json)
    print(record.table())
    if failed:
        print(f"not equal to the reference: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def measure(record: Record, num_rows: int, card: str) -> list[str]:
    """Fill the record; returns the searches whose hits differ from the reference's."""
    random = torch.Generator("cuda").manual_seed(0)
    failed = check_shapes(random)
    gb_per_s = copy_bandwidth()
    record.add("copy_bandwidth", gb_per_s, "GB/s", card)
    record.figures["gpu_copy_gb_per_s"] = gb_per_s
    for kind in ("fp16", "int8"):
        rows = make_rows(random, num_rows, DIM, kind)
        for percent in (100, 11):
            flags = torch.rand(num_rows, device="cuda", generator=random) < percent / 100
            mask = pack(flags)
            for batch in (1, 16):
                query = unit(torch.randn(batch, DIM, device="cuda", generator=random))
                name = f"{kind}_b{batch}_mask{percent}"
                floor_ms = bytes_to_read(rows, flags, batch) / gb_per_s / 1e6
                if not time_search(record, name, card, query, rows, mask, flags, floor_ms):
                    failed.append(name)
        del rows
        torch.cuda.empty_cache()
    failed += gpu_ranking.measure(record, card, time_ms)
    return failed + gpu_decoder.measure(record, card, gb_per_s, time_ms)


def check_shapes(random: torch.Generator) -> list[str]:
    """Small searches at odd shapes, sampled and not, against the reference."""
    failed = []
    for kind in ("fp16", "int8"):
        for num_rows, dim, batch, k in [(100, 64, 3, 200), (5000, 96, 1, 10), (200_003, 128, 17, 500)]:
            rows = make_rows(random, num_rows, dim, kind)
            mask = pack(torch.rand(num_rows, device="cuda", generator=random) < 0.5)
            query = unit(torch.randn(batch, dim, device="cuda", generator=random))
            found = dense_topk(query, rows, mask, k, backend="gpu")
            if not agrees(found, dense_topk(query, rows, mask, k, backend="reference"), kind):
                failed.append(f"{kind}_{num_rows}x{dim}_b{batch}")
    return failed


def agrees(found: DenseTopK, expected: DenseTopK, kind: str) -> bool:
    """int8: the same keys and scores. fp16: the same scores within rounding, so only near-ties may change places."""
    if kind == "int8":
        return all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    return torch.allclose(found.score_BK, expected.score_BK, atol=1e-5, rtol=0)


def time_search(
    record: Record,
    name: str,
    card: str,
    query: Tensor,
    rows: DenseRows,
    mask: Tensor,
    flags: Tensor,
    floor_ms: float,
) -> bool:
    """Check one search against the reference, then time it in its three forms."""
    from kernels.gpu.dense_topk import Workspace

    workspace = Workspace(rows, batch=len(query), k=K)
    found = workspace.run(query, rows, mask)
    record.figures[f"gpu_{name}_second_passes"] = float((found.status_B != 0).sum())
    few = slice(0, 2)  # the reference sorts every row of every query: two queries are enough
    expected = dense_topk(query[few].contiguous(), rows, mask, K, backend="reference")
    whole = dense_topk(query, rows, mask, K, backend="gpu", workspace=workspace)
    same = agrees(DenseTopK(*(part[few] for part in whole)), expected, "fp16" if rows.code_ND is None else "int8")
    queued = time_ms(lambda: workspace.run(query, rows, mask))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        workspace.run(query, rows, mask)
    captured = time_ms(graph.replay)
    unfused = time_ms(unfused_search(query, rows, flags))
    for form, samples in (("queued", queued), ("graph", captured), ("unfused", unfused)):
        row = record.add_samples(f"{name}_{form}", samples, "ms", card)
        record.figures[f"gpu_{name}_{form}_ms"] = row.value
    record.add(f"{name}_floor", floor_ms, "ms", "bytes that must be read / copy bandwidth")
    record.figures[f"gpu_{name}_vs_bandwidth"] = statistics.median(captured) / floor_ms
    record.figures[f"gpu_{name}_vs_unfused"] = statistics.median(captured) / statistics.median(unfused)
    return same


def unfused_search(query: Tensor, rows: DenseRows, flags: Tensor) -> Callable[[], object]:
    """The same search as PyTorch users write it, over float16 vectors: an array of N scores a query."""
    assert rows.vector_ND is not None
    vector_ND, half, masked = rows.vector_ND, query.half(), ~flags
    return lambda: torch.topk((half @ vector_ND.T).masked_fill(masked, -torch.inf), K, dim=1)


def time_ms(run: Callable[[], object]) -> list[float]:
    """Milliseconds on the device of REPEATS runs."""
    for _ in range(WARM_UP):
        run()
    samples = []
    for _ in range(REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end))
    return samples


def copy_bandwidth() -> float:
    """GB/s that a copy between two buffers far larger than the caches reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(time_ms(lambda: target.copy_(source))) / 1e6


def bytes_to_read(rows: DenseRows, flags: Tensor, batch: int) -> int:
    """Mask words, the admitted rows, and with codes their scales and the vectors that are rescored."""
    admitted = int(flags.sum())
    scanned = rows.scanned
    total = flags.numel() // 8 + admitted * scanned.shape[1] * scanned.element_size()
    if rows.code_ND is not None and rows.vector_ND is not None:
        total += admitted * 4 + batch * 4 * K * scanned.shape[1] * rows.vector_ND.element_size()
    return total


def make_rows(random: torch.Generator, num_rows: int, dim: int, kind: str) -> DenseRows:
    """Unit vectors in float16; with "int8" also their codes, scanned in their place."""
    vector = torch.empty(num_rows, dim, dtype=torch.float16, device="cuda")
    for part in vector.split(PART):
        part.copy_(unit(torch.randn(part.shape, device="cuda", generator=random)))
    keys = torch.randperm(num_rows, device="cuda", generator=random)
    if kind == "fp16":
        return DenseRows(key_N=keys, vector_ND=vector)
    code = torch.empty(num_rows, dim, dtype=torch.int8, device="cuda")
    scale = torch.empty(num_rows, device="cuda")
    for part, part_code, part_scale in zip(vector.split(PART), code.split(PART), scale.split(PART), strict=True):
        part_scale.copy_(part.float().abs().amax(1) / 127)
        part_code.copy_((part.float() / part_scale[:, None]).round())
    mean = torch.zeros(dim, device="cuda")
    return DenseRows(key_N=keys, vector_ND=vector, code_ND=code, scale_N=scale, mean_D=mean)


def pack(flags: Tensor) -> Tensor:
    """bool[N] -> int64[ceil(N / 64)]"""
    padded = torch.nn.functional.pad(flags, (0, -flags.numel() % 64)).view(-1, 64)
    bit = torch.arange(64, device=flags.device)
    return torch.cat([(part.long() << bit).sum(1) for part in padded.split(PART // 64)])


def unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=1)


if __name__ == "__main__":
    sys.exit(main())
