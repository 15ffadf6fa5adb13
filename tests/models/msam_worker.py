"""One process of `test_two_processes_are_one_process_with_two_micro_batches`, and the one process it must equal."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.embeddings import HashEmbedding
from models.train.loop import LoopConfig, run

STEPS = 4


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.table = HashEmbedding(4, torch.Generator().manual_seed(0))
            self.norm = nn.BatchNorm1d(4)
            self.out = nn.Linear(4, 1)
            self.unused = nn.Linear(2, 2)

    def forward(self, hashes: Tensor) -> Tensor:
        output: Tensor = self.out(self.norm(self.table(hashes))).squeeze(1)
        return output


def shard(index: int) -> tuple[Tensor, Tensor]:
    """The batch of an index: odd ones are smaller, and hold hashes of their own.

    Hashes are far apart: a row that all of a batch shared would have batch norm's zero for a gradient, and AdaGrad
    makes full steps of what rounding leaves of that.
    """
    generator = torch.Generator().manual_seed(index)
    known = torch.randint(-(1 << 62), 1 << 62, (40,), generator=torch.Generator().manual_seed(9))
    hashes = known[torch.randint(0, 20, (8 - 3 * (index % 2),), generator=generator) + 20 * (index % 2)]
    return hashes, torch.randn(len(hashes), generator=generator)


def train_alone() -> dict[str, Tensor]:
    return _train(2, None)


def _train(micro_batches: int, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    model = Tiny()
    run(
        model,
        LoopConfig(num_steps=STEPS, micro_batches=micro_batches, sam_radius=0.2),
        shard,
        lambda batch: {"square": (model(batch[0]) - batch[1]).square().mean()},
        size=lambda batch: float(len(batch[0])),
        group=group,
    )
    return model.state_dict()


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    torch.save(_train(1, dist.group.WORLD), folder / f"{rank}.pt")
    dist.destroy_process_group()
