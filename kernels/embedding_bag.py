"""Mean embeddings of bags of hashes from quotient-remainder tables, float32 or int8 by row: the front of the op.

# n = bags, W = places of a bag, D = dimensions, V = rows of the tables together

    e(hash) = sum of 4 rows: remainder and quotient of the low 32 bits, then of the high 32 bits
    bag     = mean of e(hash) over the hashes of a row other than 0; zeros where there is none

LiRank (arXiv 2402.06859): quotient-remainder hashing, rows summed; middle-max int8 rows for serving. The rows' numbers
are worked out where they are read, and no [n, W, 4, D] array is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.dense_topk import has_triton
from kernels.filtered_topk import has_numba

Backend = Literal["auto", "cpu", "gpu", "reference"]
NUM_PARTS = 4
MAX_DIM = 256


@dataclass(frozen=True, slots=True)
class QuantisedRows:
    """A table at 8 bits: row = middle + scale * code.

    code_VD: int8.  scale_V, middle_V: float32.  Middle-max: scale = (max - min) / 255 and middle = min + 128 * scale,
    so codes fill [-128, 127]. The grid is that of any row-wise min-max at 8 bits; what the middle buys is that codes
    are signed. The error is at most scale / 2, plus float32 rounding.
    """

    code_VD: Tensor
    scale_V: Tensor
    middle_V: Tensor

    @classmethod
    def of(cls, weight_VD: Tensor) -> QuantisedRows:
        """Quantise float32[V, D], finite. Raises ValueError for a value that is not."""
        if not torch.isfinite(weight_VD).all():
            raise ValueError("the table holds a value that is not finite; expected finite ones")
        lowest_V, highest_V = weight_VD.double().aminmax(dim=1)
        scale_V = (highest_V - lowest_V) / 255.0
        scale_V = torch.where(scale_V > 0.0, scale_V, 1.0)  # a constant row: its middle says all
        middle_V = torch.where(highest_V > lowest_V, lowest_V + 128.0 * scale_V, lowest_V)
        scale_V, middle_V = scale_V.float(), middle_V.float()
        code_VD = ((weight_VD.double() - middle_V.double()[:, None]) / scale_V.double()[:, None]).round()
        return cls(code_VD.clamp(-128, 127).to(torch.int8), scale_V, middle_V)

    def dequantised(self) -> Tensor:
        """Return float32[V, D]."""
        return self.middle_V[:, None] + self.scale_V[:, None] * self.code_VD.float()

    @property
    def num_bytes(self) -> int:
        """Memory of codes, scales and middles."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.code_VD, self.scale_V, self.middle_V))


def embedding_bag(
    hash_NW: Tensor,
    table: Tensor | QuantisedRows,
    quotient_rows: int,
    remainder_rows: int,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Return float32[n, D]. Differentiable in a float32 table, whose gradient is sparse.

    hash_NW: int64.  table: float32[V, D] or int8 rows, V = 2 * (remainder_rows + quotient_rows): remainders of low
    halves, their quotients, then the same of high halves. On one device, contiguous.
    backend: "cpu" is numba, "gpu" Triton, "reference" plain torch; "auto" takes the device's own where it is installed
    and where it can: numba has no gradient.

    Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    _check(hash_NW, table, quotient_rows, remainder_rows)
    if backend not in ("auto", "cpu", "gpu", "reference"):
        raise ValueError(f"backend {backend!r}: expected auto, cpu, gpu or reference")
    learns = isinstance(table, Tensor) and table.requires_grad and torch.is_grad_enabled()
    if backend == "gpu" or (backend == "auto" and hash_NW.is_cuda and has_triton()):
        from kernels.gpu.embedding_bag import embedding_bag as run_gpu

        return run_gpu(hash_NW, table, quotient_rows, remainder_rows)
    if backend == "cpu" or (backend == "auto" and hash_NW.device.type == "cpu" and has_numba() and not learns):
        if learns:
            raise ValueError("backend 'cpu' has no gradient; expected a table without, or another backend")
        from kernels.cpu.embedding_bag import embedding_bag as run_cpu

        return run_cpu(hash_NW, table, quotient_rows, remainder_rows)
    from kernels.reference.embedding_bag import embedding_bag as run_reference

    return run_reference(hash_NW, table, quotient_rows, remainder_rows)


def _check(hash_NW: Tensor, table: Tensor | QuantisedRows, quotient_rows: int, remainder_rows: int) -> None:
    if hash_NW.ndim != 2 or hash_NW.dtype != torch.int64:
        raise ValueError(f"hashes: {hash_NW.dtype}{list(hash_NW.shape)}, expected int64[n,W]")
    if not 1 <= min(quotient_rows, remainder_rows) <= max(quotient_rows, remainder_rows) <= 2**32:
        raise ValueError(f"tables of {quotient_rows} and {remainder_rows} rows: expected 1 to 2^32 each")
    num_rows = 2 * (quotient_rows + remainder_rows)
    rows = table if isinstance(table, Tensor) else table.code_VD
    dim = rows.shape[-1]
    if rows.ndim != 2 or rows.shape[0] != num_rows or not 1 <= dim <= MAX_DIM:
        raise ValueError(f"table: {list(rows.shape)}, expected [{num_rows}, 1 to {MAX_DIM}]")
    kind = torch.float32 if isinstance(table, Tensor) else torch.int8
    columns = [("table", rows, kind, rows.shape)]
    if not isinstance(table, Tensor):
        columns += [(name, getattr(table, name), torch.float32, rows.shape[:1]) for name in ("scale_V", "middle_V")]
    for name, tensor, dtype, shape in columns:
        if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(f"{name}: {tensor.dtype}{list(tensor.shape)}, expected contiguous {dtype}{list(shape)}")
        if tensor.device != hash_NW.device:
            raise ValueError(f"{name}: on {tensor.device}, expected {hash_NW.device}")
