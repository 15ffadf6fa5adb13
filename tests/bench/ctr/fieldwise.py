"""DeepFM and DCNv2, plain: fields embedded one by one, to FuxiCTR's formulas.

DeepFM (arXiv 1703.04247): logit = bias + sum of first-order weights + sum over pairs of fields <e_i, e_j> + MLP(all e).
A number is its value times a learned vector. DCNv2 (arXiv 2008.13535, parallel form): x_{l+1} = x_l + x_0 * (W x_l + b)
with full W, beside an MLP, both joined under one linear layer; numbers enter x_0 as they are.
"""

# N = rows, F = numeric features, S = single-valued fields, W = places of a multi-valued field, D = embedding length

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.evaluate import auc
from tests.bench.ctr.table import Rows, Table


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldwiseConfig:
    dim: int = 8
    hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.2
    learning_rate: float = 1e-3
    embedding_decay: float = 1e-5
    """L2 of embeddings and first-order weights, as FuxiCTR's embedding regulariser."""
    cross_layers: int = 2
    batch_size: int = 2048
    max_epochs: int = 6


class Fields(nn.Module):
    """One embedding per field: S single-valued ones, then the multi-valued ones, averaged over used places."""

    def __init__(self, table: Table, dim: int) -> None:
        super().__init__()
        self.singles = nn.ModuleList(nn.Embedding(size, dim) for size in table.single_sizes)
        self.lists = nn.ModuleList(nn.EmbeddingBag(size, dim, mode="mean", padding_idx=0) for size in table.list_sizes)
        for module in (*self.singles, *self.lists):
            nn.init.normal_(module.weight, std=1e-2 if dim > 1 else 1e-4)

    def forward(self, singles_NS: Tensor, lists: Sequence[Tensor]) -> Tensor:
        """Return float32[N, S + lists, D]."""
        columns = [field(singles_NS[:, place]) for place, field in enumerate(self.singles)]
        columns += [field(list_NW) for field, list_NW in zip(self.lists, lists, strict=True)]
        return torch.stack(columns, dim=1)


class DeepFM(nn.Module):
    def __init__(self, table: Table, config: FieldwiseConfig) -> None:
        super().__init__()
        num_numbers = table.splits["train"].numbers.shape[1]
        num_fields = num_numbers + len(table.single_sizes) + len(table.list_sizes)
        self.fields, self.weights = Fields(table, config.dim), Fields(table, 1)
        self.number_vectors = nn.Parameter(1e-2 * torch.randn(num_numbers, config.dim))
        self.number_weights = nn.Linear(num_numbers, 1)
        self.mlp = _mlp(num_fields * config.dim, config, num_outputs=1)

    def forward(self, numbers_NF: Tensor, singles_NS: Tensor, lists: Sequence[Tensor]) -> Tensor:
        """Return float32[N]: logits."""
        embedded_NFD = torch.cat([numbers_NF[:, :, None] * self.number_vectors, self.fields(singles_NS, lists)], dim=1)
        first_N = self.number_weights(numbers_NF)[:, 0] + self.weights(singles_NS, lists).sum(dim=(1, 2))
        pairs_N = 0.5 * (embedded_NFD.sum(dim=1).square() - embedded_NFD.square().sum(dim=1)).sum(dim=1)
        logits: Tensor = first_N + pairs_N + self.mlp(embedded_NFD.flatten(1))[:, 0]
        return logits


class DCNv2(nn.Module):
    def __init__(self, table: Table, config: FieldwiseConfig) -> None:
        super().__init__()
        num_numbers = table.splits["train"].numbers.shape[1]
        width = num_numbers + config.dim * (len(table.single_sizes) + len(table.list_sizes))
        self.fields = Fields(table, config.dim)
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(config.cross_layers))
        self.mlp = _mlp(width, config, num_outputs=None)
        self.head = nn.Linear(width + config.hidden[-1], 1)

    def forward(self, numbers_NF: Tensor, singles_NS: Tensor, lists: Sequence[Tensor]) -> Tensor:
        """Return float32[N]: logits."""
        x0_NX = torch.cat([numbers_NF, self.fields(singles_NS, lists).flatten(1)], dim=1)
        crossed_NX = x0_NX
        for cross in self.crosses:
            crossed_NX = crossed_NX + x0_NX * cross(crossed_NX)
        logits: Tensor = self.head(torch.cat([crossed_NX, self.mlp(x0_NX)], dim=1))[:, 0]
        return logits


def fit_fieldwise(
    make: Callable[[Table, FieldwiseConfig], nn.Module], table: Table, config: FieldwiseConfig, seed: int
) -> tuple[dict[str, NDArray[np.float64]], float]:
    """Train with Adam until validation AUC falls, keep the best epoch; return logits by split and that AUC."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make(table, config)
        tables = [p for name, p in network.named_parameters() if name.startswith(("fields", "weights"))]
        ids = {id(p) for p in tables}
        optimizer = torch.optim.Adam(
            [
                {"params": [p for p in network.parameters() if id(p) not in ids]},
                {"params": tables, "weight_decay": config.embedding_decay},
            ],
            lr=config.learning_rate,
        )
        rows, random = table.splits["train"], np.random.default_rng(seed)
        best, best_auc = copy.deepcopy(network.state_dict()), -1.0
        for _ in range(config.max_epochs):
            network.train()
            order = random.permutation(len(rows))
            for start in range(0, len(order), config.batch_size):
                batch = order[start : start + config.batch_size]
                labels_N = torch.from_numpy(rows.labels[batch].astype(np.float32))
                loss = functional.binary_cross_entropy_with_logits(network(*_tensors(rows, batch)), labels_N)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            reached = auc(logits_of(network, table.splits["validation"]), table.splits["validation"].labels)
            if reached <= best_auc:
                break
            best, best_auc = copy.deepcopy(network.state_dict()), reached
    network.load_state_dict(best)
    return {split: logits_of(network, part) for split, part in table.splits.items() if split != "train"}, best_auc


def logits_of(network: nn.Module, rows: Rows) -> NDArray[np.float64]:
    """Return f64[N]."""
    network.eval()
    with torch.inference_mode():
        parts = [
            network(*_tensors(rows, np.arange(start, min(start + 8192, len(rows))))).double().numpy()
            for start in range(0, len(rows), 8192)
        ]
    return np.concatenate(parts)


def _tensors(rows: Rows, places: NDArray[np.int64]) -> tuple[Tensor, Tensor, list[Tensor]]:
    return (
        torch.from_numpy(rows.numbers[places]),
        torch.from_numpy(rows.singles[places]),
        [torch.from_numpy(column[places]) for column in rows.lists],
    )


def _mlp(width: int, config: FieldwiseConfig, num_outputs: int | None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for hidden in config.hidden:
        layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(config.dropout)]
        width = hidden
    if num_outputs is not None:
        layers.append(nn.Linear(width, num_outputs))
    return nn.Sequential(*layers)
