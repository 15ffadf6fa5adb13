"""Encoded attributes as one vector per row."""

# n = rows, F = numeric features, D = embedding dimensions, E = output width

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.data.attributes import is_numeric
from models.data.schema import Feature
from models.embeddings import HashEmbedding


class AttributeEncoder(nn.Module):
    """Concatenates the mean embedding of every bag with scaled numbers and their missing flags."""

    mean: Tensor
    scale: Tensor

    def __init__(self, table: HashEmbedding, features: Sequence[Feature]) -> None:
        super().__init__()
        self._table = [table]  # in a list: the owner registers the table, once
        num_numbers = sum(is_numeric(feature) for feature in features)
        self.width = (len(features) - num_numbers) * table.dim + 2 * num_numbers
        self.register_buffer("mean", torch.zeros(num_numbers))
        self.register_buffer("scale", torch.ones(num_numbers))

    def fit(self, numbers: NDArray[np.float32], missing: NDArray[np.bool_]) -> None:
        """Take mean and deviation of each number from the rows that have it."""
        for column in range(numbers.shape[1]):
            present = numbers[~missing[:, column], column].astype(np.float64)
            if len(present):
                self.mean[column] = float(present.mean())
                self.scale[column] = max(float(present.std()), 1e-6)

    def forward(
        self,
        bags: Sequence[NDArray[np.int64]],
        numbers: NDArray[np.float32],
        missing: NDArray[np.bool_],
    ) -> Tensor:
        """Return float32[n, E]. A missing number reads as the mean, with its flag set."""
        missing_NF = torch.from_numpy(missing)
        scaled_NF = ((torch.from_numpy(numbers) - self.mean) / self.scale).clamp(-5.0, 5.0)
        scaled_NF = scaled_NF.masked_fill(missing_NF, 0.0)
        return torch.cat(
            [*(self._table[0].bag(torch.from_numpy(bag)) for bag in bags), scaled_NF, missing_NF.float()], dim=1
        )
