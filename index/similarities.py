"""Learned similarities of a query and an item that a plain inner product cannot express.

1. Borisyuk et al., LiNR: Model Based Neural Retrieval on GPUs at LinkedIn, arXiv 2407.13218, section on similarity
   modelling: the Hadamard MLP and a mixture of logits whose gate is a softmax over query and item features.
2. Zhai et al., Revisiting Neural Retrieval on Accelerators, KDD 2023 (arXiv 2306.04039): the mixture of logits.
"""

# B = queries, M = items of each query, Q = query features, X = item features, P = query components,
# R = item components, C = dimensions of a component

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HadamardMLP(nn.Module):
    """phi(q, x) = MLP(MLP_q(q) * MLP_x(x)): float32[B,Q], float32[B,M,X] -> float32[B,M].

    As in source 1, with towers of one layer and an output MLP [hidden, 1]. Both towers end in a layer norm, which
    the source does not name; it reports that training depends strongly on the first steps.
    """

    def __init__(self, query_dim: int, item_dim: int, *, width: int = 50, hidden: int = 10) -> None:
        super().__init__()
        self.query_tower = nn.Sequential(nn.Linear(query_dim, width), nn.ReLU(), nn.LayerNorm(width))
        self.item_tower = nn.Sequential(nn.Linear(item_dim, width), nn.ReLU(), nn.LayerNorm(width))
        self.output = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, query_BQ: Tensor, item_BMX: Tensor) -> Tensor:
        product = self.query_tower(query_BQ).unsqueeze(1) * self.item_tower(item_BMX)
        score: Tensor = self.output(product).squeeze(-1)
        return score


class MixtureOfLogits(nn.Module):
    """phi(q, x) = sum_pr gate_pr(q, x) * <q_p, x_r> / temperature: float32[B,Q], float32[B,M,X] -> float32[B,M].

    q_p and x_r are unit vectors made from query and item by one linear layer each. The gate is a softmax over all
    P*R pairs of (MLP of the query + MLP of the item + MLP of the pairs' inner products).
    """

    def __init__(
        self,
        query_dim: int,
        item_dim: int,
        *,
        query_components: int = 4,
        item_components: int = 4,
        component_dim: int = 32,
        gate_hidden: int = 128,
        temperature: float = 0.05,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature = {temperature}, expected more than 0")
        self.component_dim = component_dim
        self.temperature = temperature
        num_logits = query_components * item_components
        self.query_components = nn.Linear(query_dim, query_components * component_dim)
        self.item_components = nn.Linear(item_dim, item_components * component_dim)
        self.query_gate = _gate(query_dim, gate_hidden, num_logits)
        self.item_gate = _gate(item_dim, gate_hidden, num_logits)
        self.pair_gate = _gate(num_logits, gate_hidden, num_logits)

    def forward(self, query_BQ: Tensor, item_BMX: Tensor) -> Tensor:
        logit_BML, gate_BML = self.mix(query_BQ, item_BMX)
        return (logit_BML * gate_BML).sum(-1)

    def mix(self, query_BQ: Tensor, item_BMX: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and gates of all P*R pairs, float32[B,M,P*R] each; gates are at least 0 and sum to 1."""
        query_BPC = self.query_components(query_BQ).unflatten(-1, (-1, self.component_dim))
        item_BMRC = self.item_components(item_BMX).unflatten(-1, (-1, self.component_dim))
        query_BPC, item_BMRC = F.normalize(query_BPC, dim=-1), F.normalize(item_BMRC, dim=-1)
        cosine_BML = torch.einsum("bpc,bmrc->bmpr", query_BPC, item_BMRC).flatten(-2)
        gate_BML = self.query_gate(query_BQ).unsqueeze(1) + self.item_gate(item_BMX) + self.pair_gate(cosine_BML)
        return cosine_BML / self.temperature, torch.softmax(gate_BML, dim=-1)


def _gate(num_inputs: int, hidden: int, num_logits: int) -> nn.Module:
    return nn.Sequential(nn.Linear(num_inputs, hidden), nn.SiLU(), nn.Linear(hidden, num_logits))
