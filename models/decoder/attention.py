"""Attention of packed sequences: every token sees itself and what came before it in its own sequence."""

# T = tokens, H = attention heads, G = key-value heads, K = head_dim

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


class PackedCausal:
    """Causal attention within each of several sequences that lie one behind the other."""

    def __init__(self, lengths: Sequence[int]) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError(f"lengths is {list(lengths)}; expected sequences of at least one token")
        self.lengths = list(lengths)

    def positions(self) -> Tensor:
        """Return int64[T]: each token's place in its own sequence."""
        return torch.cat([torch.arange(length) for length in self.lengths])

    def __call__(self, layer: int, query_THK: Tensor, key_TGK: Tensor, value_TGK: Tensor) -> Tensor:
        parts = zip(*(torch.split(x, self.lengths) for x in (query_THK, key_TGK, value_TGK)), strict=True)
        return torch.cat([_causal(*part) for part in parts])


def _causal(query_THK: Tensor, key_TGK: Tensor, value_TGK: Tensor) -> Tensor:
    query, key, value = (x.transpose(0, 1)[None] for x in (query_THK, key_TGK, value_TGK))
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return mixed[0].transpose(0, 1)
