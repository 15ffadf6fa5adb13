"""The training loop both models use."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from models.embeddings import HashEmbedding
from models.train.optimizers import RowAdaGrad

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called with the step just done, the number of steps, and the step's losses by name."""

StageProgress = Callable[[str, int, int, Mapping[str, float]], None]
"""As Progress, for a job of several stages: the stage's name comes first."""

_Batch = TypeVar("_Batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    num_steps: int
    learning_rate: float = 2e-3
    """Peak rate of AdamW, for everything but hash tables."""
    table_learning_rate: float = 0.05
    """Peak rate of row-wise AdaGrad, for hash tables."""
    weight_decay: float = 1e-4
    warmup_share: float = 0.2
    """Share of the steps over which rates rise from 0; then they fall to 0 along a cosine."""
    clip_norm: float = 1.0
    """Largest global gradient norm of the dense parameters; AdaGrad bounds the tables' steps itself."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}; expected at least 1")
        if not 0.0 <= self.warmup_share < 1.0:
            raise ValueError(f"warmup_share is {self.warmup_share}; expected 0 up to 1")


def run(
    model: nn.Module,
    config: LoopConfig,
    next_batch: Callable[[int], _Batch],
    losses: Callable[[_Batch], Mapping[str, Tensor]],
    progress: Progress | None = None,
) -> None:
    """Train `model` in place and leave it in evaluation mode.

    `losses` names the terms of one batch's loss; their sum is minimised. Deterministic when `next_batch`, `losses`
    and torch's global seed are. Raises FloatingPointError at the first loss that is not finite.
    """
    tables = [module.weight for module in model.modules() if isinstance(module, HashEmbedding)]
    table_ids = {id(table) for table in tables}
    dense = [parameter for parameter in model.parameters() if id(parameter) not in table_ids]
    optimizers: list[torch.optim.Optimizer] = []
    if dense:
        optimizers.append(torch.optim.AdamW(dense, lr=config.learning_rate, weight_decay=config.weight_decay))
    if tables:
        optimizers.append(RowAdaGrad(tables, lr=config.table_learning_rate))
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    model.train()
    for step in range(config.num_steps):
        rate = _schedule(step, config)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = max(peak * rate, 1e-12)
        terms = losses(next_batch(step))
        total = torch.stack(list(terms.values())).sum()
        if not bool(torch.isfinite(total)):
            raise FloatingPointError(f"loss is {float(total.detach())} at step {step} of {config.num_steps}")
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        if dense:
            nn.utils.clip_grad_norm_(dense, config.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
        if progress is not None:
            progress(step + 1, config.num_steps, {name: float(term.detach()) for name, term in terms.items()})
    model.eval()


def stage_of(progress: StageProgress | None, name: str) -> Progress | None:
    """Return what reports one stage of a job."""
    return None if progress is None else lambda step, total, losses: progress(name, step, total, losses)


def _schedule(step: int, config: LoopConfig) -> float:
    warmup = config.warmup_share * config.num_steps
    if step + 1 <= warmup:
        return (step + 1) / warmup
    remaining = (step - warmup) / max(1.0, config.num_steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, remaining))))
