"""A run that a test kills: everything that must come back is in it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from models.embeddings import HashEmbedding
from models.train.loop import LoopConfig, Progress, run

CONFIG = LoopConfig(num_steps=60, micro_batches=2, sam_radius=0.05, prefetch=2, checkpoint_steps=7)

KILLED_AT = 24


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.table = HashEmbedding(8, torch.Generator().manual_seed(1))
            self.layers = nn.Sequential(
                nn.BatchNorm1d(8), nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1)
            )

    def loss(self, batch: Tensor) -> Mapping[str, Tensor]:
        target = (batch % 7).float()
        return {"square": (self.layers(self.table(batch)).squeeze(1) - target).square().mean()}


def next_batch(index: int) -> Tensor:
    return torch.randint(1, 500, (32,), generator=torch.Generator().manual_seed(index))


def train(folder: Path | None, progress: Progress | None = None, config: LoopConfig = CONFIG) -> dict[str, Tensor]:
    model = Model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        run(model, config, next_batch, model.loss, progress, checkpoint=folder)
    return model.state_dict()


if __name__ == "__main__":
    torch.set_num_threads(1)

    def say(step: int, total: int, losses: Mapping[str, float]) -> None:
        sys.stdout.write(f"{step}\n")
        sys.stdout.flush()
        if step == KILLED_AT:
            time.sleep(60.0)  # for the signal

    train(Path(sys.argv[1]), say)
