"""Filtered top-k of a batch of queries over rows that live on one device: the front of the op.

# B = queries, N = rows, D = dimensions, W = mask words = ceil(N / 64), K = results, C = rows that are rescored

    best K of { (score_bi, key_i) : bit i of query b's mask is set }, score descending, then key ascending

`kernels.filtered_topk` takes one query over numpy arrays, promises the exact inner product in float64 and returns as
many hits as there are. This op takes torch tensors and a batch, scores at the precision of what is stored, and
returns arrays of one fixed shape beside a status that stays on the device, so that a CUDA graph can hold it. The
promises differ, hence a second front.

Scores. Without codes: the float32 inner product of the query and the row, both rounded to float16. With codes, the
coarse score scale_i * (code_i . code of query b) picks C = rescore * K rows, which are then scored from
`vector_ND` as a float64 sum rounded to float32; without vectors the coarse score is mapped back to the inner
product with the decoded row. Coarse scores are the same numbers on every backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kernels.gpu.dense_topk import Workspace

Backend = Literal["auto", "gpu", "reference"]
MAX_DIM = 1024  # int8 products of up to 1,024 dimensions sum to less than 2**24: float32 holds them exactly
MAX_ROWS = 2**31 - 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseRows:
    """N rows on one device. Without codes `vector_ND` is scanned; with codes it only rescores, and may be absent.

    vector_ND: float16[N,D]; float32 too where there are codes. key_N: int64[N], different for every admitted row.
    code_ND: int8[N,D], scale_N: float32[N] > 0 or 0, mean_D: float32[D]; row = mean + scale * code.
    Everything is contiguous and, where a mask admits the row, finite.
    """

    key_N: Tensor
    vector_ND: Tensor | None = None
    code_ND: Tensor | None = None
    scale_N: Tensor | None = None
    mean_D: Tensor | None = None

    def __post_init__(self) -> None:
        scanned = self.scanned
        if scanned.ndim != 2 or not 1 <= scanned.shape[1] <= MAX_DIM or not 1 <= scanned.shape[0] <= MAX_ROWS:
            raise ValueError(f"rows: {list(scanned.shape)}, expected [1 to {MAX_ROWS}, 1 to {MAX_DIM}]")
        num_rows, dim = scanned.shape
        _expect("keys", self.key_N, (num_rows,), (torch.int64,), scanned.device)
        if self.code_ND is None:
            _expect("vectors", self.vector_ND, (num_rows, dim), (torch.float16,), scanned.device)
            return
        _expect("codes", self.code_ND, (num_rows, dim), (torch.int8,), scanned.device)
        _expect("scales", self.scale_N, (num_rows,), (torch.float32,), scanned.device)
        _expect("mean", self.mean_D, (dim,), (torch.float32,), scanned.device)
        if self.vector_ND is not None:
            _expect("vectors", self.vector_ND, (num_rows, dim), (torch.float16, torch.float32), scanned.device)

    @property
    def scanned(self) -> Tensor:
        """What a scan reads: the codes where there are codes, otherwise the vectors."""
        found = self.vector_ND if self.code_ND is None else self.code_ND
        if found is None:
            raise ValueError("rows: neither vectors nor codes")
        return found


class DenseTopK(NamedTuple):
    """Best first; where fewer than K rows match, the tail is score -inf, key -1, row -1."""

    score_BK: Tensor  # float32
    key_BK: Tensor  # int64
    row_BK: Tensor  # int32
    status_B: Tensor  # int32: OK, or why this query's hits must not be used


OK, OVERFLOW, TOO_FEW = 0, 1, 2


class QueryCodes(NamedTuple):
    """Queries at 8 bits: query ~ scale * code."""

    code_BD: Tensor  # int8
    scale_B: Tensor  # float32, 1 for a query of zeros
    mean_score_B: Tensor  # float32: q . mean


def encode_queries(query_BD: Tensor, mean_D: Tensor) -> QueryCodes:
    """Round to nearest, one scale a query; elementwise, so the codes are the same on every device."""
    largest_B = query_BD.abs().amax(dim=1)
    scale_B = torch.where(largest_B > 0, largest_B / 127, torch.ones_like(largest_B))
    code_BD = (query_BD / scale_B[:, None]).round().clamp(-127, 127).to(torch.int8)
    return QueryCodes(code_BD, scale_B, (query_BD.double() * mean_D.double()).sum(1).float())


def dense_topk(
    query_BD: Tensor,
    rows: DenseRows,
    mask: Tensor,
    k: int,
    *,
    rescore: int = 4,
    backend: Backend = "auto",
    workspace: Workspace | None = None,
) -> DenseTopK:
    """The k best rows of each query, all with status OK. Waits for the device: it reads the status.

    query_BD: float32, finite. mask: int64[W] for all queries or int64[B,W], one per query; bit r % 64 of word
    r // 64 admits row r, bits past the last row are ignored. rescore: how many rows per result are rescored from
    the vectors, for rows with codes and vectors.
    backend: "gpu" is Triton, "reference" plain torch; "auto" is "gpu" for CUDA tensors where Triton is installed.
    workspace: buffers to reuse; the hits then stay valid until its next run. Callers that must not wait, or record a
    CUDA graph, use `kernels.gpu.dense_topk.Workspace.run` and look at the status when they read the hits.

    A query whose candidates overflowed or fell short runs once more, through the reference.
    Raises ValueError for shapes, dtypes or devices that do not fit, k < 1 or rescore < 1.
    """
    check_request(query_BD, rows, mask, k, rescore)
    if backend not in ("auto", "gpu", "reference"):
        raise ValueError(f"backend {backend!r}: expected auto, gpu or reference")
    from kernels.reference.dense_topk import dense_topk as run_reference

    if backend == "auto":
        backend = "gpu" if query_BD.is_cuda and has_triton() else "reference"
    if backend == "reference":
        return run_reference(query_BD, rows, mask, k, rescore)
    from kernels.gpu.dense_topk import Workspace

    if workspace is None:
        workspace = Workspace(rows, batch=query_BD.shape[0], k=k, rescore=rescore)
    elif workspace.request != (query_BD.shape[0], k, rescore):
        raise ValueError(f"workspace for (B, k, rescore) = {workspace.request}, expected {(len(query_BD), k, rescore)}")
    found = workspace.run(query_BD, rows, mask)
    failed = torch.nonzero(found.status_B)[:, 0]
    if failed.numel():
        again = run_reference(query_BD[failed], rows, mask if mask.ndim == 1 else mask[failed], k, rescore)
        for whole, part in zip(found, again, strict=True):
            whole[failed] = part
    return found


def has_triton() -> bool:
    """Whether the GPU backend can be imported."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def check_request(query_BD: Tensor, rows: DenseRows, mask: Tensor, k: int, rescore: int) -> None:
    """Raise ValueError for what does not fit; looks at shapes only, so it never waits for the device."""
    num_rows, dim = rows.scanned.shape
    if query_BD.ndim != 2 or query_BD.shape[0] < 1:
        raise ValueError(f"queries: {list(query_BD.shape)}, expected [B,{dim}]")
    batch = query_BD.shape[0]
    _expect("queries", query_BD, (batch, dim), (torch.float32,), rows.scanned.device)
    words = (num_rows + 63) // 64
    shape = (words,) if mask.ndim == 1 else (batch, words)
    _expect("mask", mask, shape, (torch.int64,), rows.scanned.device)
    if k < 1:
        raise ValueError(f"k = {k}, expected at least 1")
    if rescore < 1:
        raise ValueError(f"rescore = {rescore}, expected at least 1")


def _expect(
    name: str, tensor: Tensor | None, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    if tensor is None:
        raise ValueError(f"{name}: absent, expected {dtypes[0]}{list(shape)}")
    if tuple(tensor.shape) != shape or tensor.dtype not in dtypes or not tensor.is_contiguous():
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{name}: {tensor.dtype}{list(tensor.shape)}, expected contiguous {wanted}{list(shape)}")
    if tensor.device != device:
        raise ValueError(f"{name}: on {tensor.device}, expected {device}")
