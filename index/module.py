"""An index as a torch module: exported, moved to a device and trained like any other.

The forward pass is plain torch operations of fixed shape. It scores every row in float64, where products of
float32 values are exact, and is meant for models that carry their items with them; `LiveIndex` serves.
"""

# B = queries, N = rows, D = dimensions, K = results, M = sampled rows

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from index.live import LiveIndex


class IndexModule(nn.Module):
    """Items as state of a module: vectors (a parameter where trainable, else a buffer), keys, and a live mask."""

    key_N: Tensor
    live_N: Tensor
    vector_ND: Tensor

    def __init__(self, keys: NDArray[np.int64], vectors: NDArray[np.float32], *, trainable: bool = False) -> None:
        """keys: int64[N], all different.  vectors: float32[N,D], finite. Rows are kept in the order of keys."""
        super().__init__()
        if keys.ndim != 1 or keys.dtype != np.int64 or np.unique(keys).size != keys.size:
            raise ValueError(f"keys: {keys.dtype}{list(keys.shape)}, expected int64[N], all different")
        if vectors.ndim != 2 or vectors.shape[0] != keys.size or not np.isfinite(vectors).all():
            raise ValueError(f"vectors: shape {list(vectors.shape)}, expected [{keys.size}, D], finite")
        order = np.argsort(keys)
        vector_ND = torch.from_numpy(vectors[order].astype(np.float32))
        self.register_buffer("key_N", torch.from_numpy(keys[order].copy()))
        self.register_buffer("live_N", torch.ones(keys.size, dtype=torch.bool))
        if trainable:
            self.vector_ND = nn.Parameter(vector_ND)
        else:
            self.register_buffer("vector_ND", vector_ND)

    @classmethod
    def from_index(cls, index: LiveIndex, *, trainable: bool = False) -> IndexModule:
        """The items of one moment; attributes and signals stay in the index."""
        keys = index.keys()
        vectors, found = index.vectors(keys)
        return cls(keys[found], vectors[found], trainable=trainable)

    def write_to(self, index: LiveIndex) -> None:
        """Give the index this module's live items and no others; items it had keep attributes and signals."""
        live = self.live_N.cpu().numpy()
        keys = self.key_N.cpu().numpy()[live]
        vectors = self.vector_ND.detach().cpu().numpy()[live]
        index.upsert(keys, vectors, [each or {} for each in index.attributes(keys)])
        index.delete(np.setdiff1d(index.keys(), keys))

    def rows_of(self, keys: Tensor) -> Tensor:
        """The rows of keys int64[M] that the module holds; ValueError names one that it does not."""
        row_M = torch.searchsorted(self.key_N, keys).clamp(max=self.key_N.numel() - 1)
        missing = self.key_N[row_M] != keys
        if bool(missing.any()):
            raise ValueError(f"key {int(keys[missing][0])}: the module has no such item")
        return row_M

    def forward(self, query_BD: Tensor, k: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The k best live rows by inner product that the mask (bool[N] or bool[B,N]) admits; k is at most N.

        Returns keys int64[B,K] (-1 past the last match), scores float32[B,K] (-inf there; differentiable) and rows
        int64[B,K] (any row there), best first, ties to the lower key. A plain tuple: `torch.export` saves no others.
        """
        score_BN = query_BD.double() @ self.vector_ND.double().T
        admitted_N = self.live_N if mask is None else self.live_N & mask
        masked_BN = score_BN.masked_fill(~admitted_N, -torch.inf)
        row_BK = _best_rows(masked_BN.detach(), k)
        score_BK = masked_BN.gather(1, row_BK)
        key_BK = torch.where(score_BK > -torch.inf, self.key_N[row_BK], -1)
        return key_BK, score_BK.float(), row_BK

    def sampled_softmax_loss(
        self, query_BD: Tensor, positive_B: Tensor, sampled_M: Tensor, log_probability_N: Tensor | None = None
    ) -> Tensor:
        """Mean cross-entropy of each query's positive row against itself and the sampled rows.

        log_probability_N: log of how likely each row is to be sampled; subtracted from the sampled logits, which
        makes the loss an estimate of the full softmax (Bengio and Senecal, 2008). A sampled row that is the
        query's positive, or not live, does not count.
        """
        positive_B1 = (query_BD * self.vector_ND[positive_B]).sum(-1, keepdim=True)
        sampled_BM = query_BD @ self.vector_ND[sampled_M].T
        if log_probability_N is not None:
            sampled_BM = sampled_BM - log_probability_N[sampled_M] - np.log(sampled_M.numel())
        void_BM = (sampled_M == positive_B.unsqueeze(1)) | ~self.live_N[sampled_M]
        logit_BM = torch.cat([positive_B1, sampled_BM.masked_fill(void_BM, -torch.inf)], dim=1)
        return F.cross_entropy(logit_BM, torch.zeros_like(positive_B))


def soft_topk(score_BN: Tensor, k: int, *, temperature: float = 1.0) -> Tensor:
    """Weights in (0, 1) that sum to k in each row and become the hard top-k as the temperature goes to 0.

    w_i = sigmoid((score_i - t) / temperature) with t such that the weights sum to k; the gradient goes through t too,
    by the implicit function theorem. -inf scores get weight 0. Raises ValueError unless 1 <= k < N.
    """
    if not 1 <= k < score_BN.shape[-1] or not temperature > 0:
        raise ValueError(f"k = {k}, temperature = {temperature}: expected 1 <= k < {score_BN.shape[-1]}, more than 0")
    with torch.no_grad():
        finite_BN = score_BN.masked_fill(score_BN == -torch.inf, torch.inf)
        reach = temperature * (20.0 + float(np.log(score_BN.shape[-1])))
        low_B1 = finite_BN.amin(-1, keepdim=True) - reach
        high_B1 = score_BN.amax(-1, keepdim=True) + reach
        for _ in range(60):
            middle_B1 = (low_B1 + high_B1) / 2
            many_B1 = torch.sigmoid((score_BN - middle_B1) / temperature).sum(-1, keepdim=True) > k
            low_B1, high_B1 = torch.where(many_B1, middle_B1, low_B1), torch.where(many_B1, high_B1, middle_B1)
        fixed_B1 = (low_B1 + high_B1) / 2
        weight_BN = torch.sigmoid((score_BN - fixed_B1) / temperature)
        slope_B1 = (weight_BN * (1 - weight_BN)).sum(-1, keepdim=True).clamp(min=1e-12) / temperature
    # One Newton step from the solution changes no value, and its derivative is that of the solution.
    excess_B1 = torch.sigmoid((score_BN - fixed_B1) / temperature).sum(-1, keepdim=True) - k
    return torch.sigmoid((score_BN - (fixed_B1 + excess_B1 / slope_B1)) / temperature)


def _best_rows(score_BN: Tensor, k: int) -> Tensor:
    """Rows of the k largest scores, ties to the lower row, in two selections: `topk` alone leaves ties open."""
    least_B1 = score_BN.topk(k, dim=1).values[:, -1:]
    above_BN, tied_BN = score_BN > least_B1, score_BN == least_B1
    room_B1 = k - above_BN.sum(1, keepdim=True)
    chosen_BN = above_BN | (tied_BN & (tied_BN.cumsum(1) <= room_B1))
    row_BK = chosen_BN.to(torch.int8).topk(k, dim=1).indices.sort(dim=1).values
    order_BK = score_BN.gather(1, row_BK).sort(dim=1, descending=True, stable=True).indices
    return row_BK.gather(1, order_BK)
