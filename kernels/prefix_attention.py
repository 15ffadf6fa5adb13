"""Attention of many short sequences to one shared prefix: the front of the op.

# M = queries, T = own keys, P = prefix keys, H = heads, G = key-value heads, K = head size

    out_m = softmax(q_m . [prefix keys, own keys that m sees] / sqrt(K)) [their values]

The sequences lie one behind the other, without padding, in T own keys. What a query sees besides the prefix are two
ranges of own keys: its sequence up to itself, and, where sequences branch, the trunk that it branches from. Keys of
the prefix are read once for all queries: the in-batch prefix caching of SGLang's multi-item scoring.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from kernels.dense_topk import has_triton

Backend = Literal["auto", "cpu", "gpu", "reference"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_HEAD = 256


@dataclass(frozen=True, eq=False)
class Sight:
    """Which own keys each query sees: [first, first stop) and [own, own stop), the second at least one key."""

    bounds_M4: Tensor
    """int32[M, 4], on the CPU."""

    def __post_init__(self) -> None:
        bounds = self.bounds_M4
        if bounds.ndim != 2 or bounds.shape[1] != 4 or bounds.dtype != torch.int32 or bounds.device.type != "cpu":
            raise ValueError(f"bounds: {bounds.dtype}{list(bounds.shape)}, expected int32[M,4] on the CPU")
        first, first_stop, own, own_stop = bounds.unbind(1)
        if not bool(((first >= 0) & (first <= first_stop) & (first_stop <= own) & (own < own_stop)).all()):
            raise ValueError("bounds: expected 0 <= first <= first stop <= own < own stop of every query")

    @classmethod
    def causal(cls, num_tokens: int) -> Sight:
        """One sequence: every token sees what came before it and itself."""
        bounds = torch.zeros(num_tokens, 4, dtype=torch.int32)
        bounds[:, 3] = torch.arange(1, num_tokens + 1)
        return cls(bounds)

    def take(self, rows: Tensor) -> Sight:
        """The sight of some of the queries, over the same keys."""
        return Sight(self.bounds_M4[rows])

    def __len__(self) -> int:
        return len(self.bounds_M4)

    def bounds_on(self, device: torch.device) -> Tensor:
        """The bounds on a device, copied there once."""
        if device not in self._copies:
            self._copies[device] = self.bounds_M4.to(device).contiguous()
        return self._copies[device]

    @cached_property
    def _copies(self) -> dict[torch.device, Tensor]:
        return {}

    @cached_property
    def num_keys(self) -> int:
        """One past the last key that is seen."""
        return int(self.bounds_M4[:, 3].max()) if len(self) else 0

    @cached_property
    def most_keys(self) -> int:
        """The most keys that a query sees."""
        bounds = self.bounds_M4
        return int((bounds[:, 1] - bounds[:, 0] + bounds[:, 3] - bounds[:, 2]).max()) if len(self) else 0

    @cached_property
    def groups(self) -> list[tuple[int, int, int, int, int]]:
        """(first query, past the last, first, first stop, own) of every run of queries that differ in own stop only."""
        if not len(self):
            return []
        heads = self.bounds_M4[:, :3]
        cuts = (torch.nonzero((heads[1:] != heads[:-1]).any(1))[:, 0] + 1).tolist()
        return [
            (start, stop, *heads[start].tolist()) for start, stop in zip([0, *cuts], [*cuts, len(self)], strict=True)
        ]


def prefix_attention(
    query_MHK: Tensor,
    key_TGK: Tensor,
    value_TGK: Tensor,
    prefix_key_GPK: Tensor,
    prefix_value_GPK: Tensor,
    sight: Sight,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Return [M, H, K] in the queries' dtype; head h reads key-value head h // (H / G). No gradient.

    All of one dtype (float32, float16, bfloat16) on one device, positions already in queries and keys; scores and
    sums in float32. P may be 0. Any strides, the last dimension contiguous.
    backend: "cpu" is torch's flash attention and numba, "gpu" Triton, "reference" plain torch; "auto" picks by device.

    Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    tensors = (query_MHK, key_TGK, value_TGK, prefix_key_GPK, prefix_value_GPK)
    _check(*tensors, sight)
    if backend not in ("auto", "cpu", "gpu", "reference"):
        raise ValueError(f"backend {backend!r}: expected auto, cpu, gpu or reference")
    if backend == "auto":
        if query_MHK.is_cuda and has_triton():
            backend = "gpu"
        else:
            backend = "cpu" if query_MHK.device.type == "cpu" else "reference"
    if backend == "gpu":
        from kernels.gpu.prefix_attention import prefix_attention as run_gpu

        return run_gpu(*tensors, sight)
    if backend == "cpu":
        from kernels.cpu.prefix_attention import prefix_attention as run_cpu

        return run_cpu(*tensors, sight)
    from kernels.reference.prefix_attention import prefix_attention as run_reference

    return run_reference(*tensors, sight)


def _check(
    query_MHK: Tensor,
    key_TGK: Tensor,
    value_TGK: Tensor,
    prefix_key_GPK: Tensor,
    prefix_value_GPK: Tensor,
    sight: Sight,
) -> None:
    if query_MHK.ndim != 3 or query_MHK.dtype not in DTYPES or not 1 <= query_MHK.shape[2] <= MAX_HEAD:
        raise ValueError(
            f"queries: {query_MHK.dtype}{list(query_MHK.shape)}, "
            f"expected float32, float16 or bfloat16 [M,H,1 to {MAX_HEAD}]"
        )
    if key_TGK.ndim != 3 or prefix_key_GPK.ndim != 3:
        raise ValueError(f"keys: {list(key_TGK.shape)} and {list(prefix_key_GPK.shape)}, expected [T,G,K] and [G,P,K]")
    _, num_heads, head = query_MHK.shape
    num_own, groups = key_TGK.shape[0], key_TGK.shape[1]
    if groups < 1 or num_heads % groups:
        raise ValueError(f"keys: {groups} heads, expected a divisor of {num_heads}")
    prefix_shape = (groups, prefix_key_GPK.shape[1], head)
    for name, tensor, shape in (
        ("keys", key_TGK, (num_own, groups, head)), ("values", value_TGK, (num_own, groups, head)),
        ("prefix keys", prefix_key_GPK, prefix_shape), ("prefix values", prefix_value_GPK, prefix_shape),
    ):  # fmt: skip
        if tuple(tensor.shape) != shape or tensor.dtype != query_MHK.dtype:
            raise ValueError(f"{name}: {tensor.dtype}{list(tensor.shape)}, expected {query_MHK.dtype}{list(shape)}")
        if tensor.device != query_MHK.device:
            raise ValueError(f"{name}: on {tensor.device}, expected {query_MHK.device}")
    if len(sight) != len(query_MHK) or sight.num_keys > num_own:
        raise ValueError(
            f"sight: of {len(sight)} queries over {sight.num_keys} keys, expected {len(query_MHK)} over {num_own}"
        )
