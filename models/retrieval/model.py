"""The trained two-tower model: numpy in, numpy out."""

# B = members, N = items, D = dimensions

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.artifacts import load_config, load_weights, save_module, version_of
from models.data.items import ItemBatch
from models.data.schema import FeatureSchema
from models.data.state import UserState
from models.retrieval.towers import MemberBatch, TowerConfig, TwoTowers

KIND = "retrieval"


class RetrievalModel:
    """Encodes members and items; the inner product of two vectors is their relevance."""

    def __init__(self, schema: FeatureSchema, config: TowerConfig, towers: TwoTowers) -> None:
        self.schema = schema
        self.config = config
        self.towers = towers.eval()
        self.version = version_of(towers)

    @property
    def dim(self) -> int:
        return self.config.dim

    def encode_items(self, batch: ItemBatch) -> NDArray[np.float32]:
        """Return float32[N, D], rows of length 1."""
        if not len(batch):
            return np.zeros((0, self.dim), dtype=np.float32)
        with torch.inference_mode():
            vectors: NDArray[np.float32] = self.towers.items(batch).numpy()
        return vectors

    def encode_users(self, users: Sequence[UserState], now_ms: int | Sequence[int]) -> NDArray[np.float32]:
        """Return float32[B, D], rows of length 1. `now_ms`: one instant for all members, or one for each."""
        if not len(users):
            return np.zeros((0, self.dim), dtype=np.float32)
        instants = [int(now_ms)] * len(users) if isinstance(now_ms, (int, np.integer)) else list(now_ms)
        with torch.inference_mode():
            vectors: NDArray[np.float32] = self.towers.members(MemberBatch(self.schema, users, instants)).numpy()
        return vectors

    def save(self, folder: Path) -> None:
        """Write the model into `folder`."""
        save_module(folder, self.towers, kind=KIND, schema=self.schema, config=asdict(self.config))

    @classmethod
    def load(cls, folder: Path, schema: FeatureSchema) -> RetrievalModel:
        """Read a model. Raises ValueError when it was trained with another schema."""
        config = TowerConfig(**load_config(folder, kind=KIND, schema=schema)["config"])
        towers = TwoTowers(schema, config, seed=0)
        towers.load_state_dict(load_weights(folder))
        return cls(schema, config, towers)
