"""The training loop of every model."""

# m = micro-batches of a step

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from models.train.checkpoint import Checkpoint
from models.train.msam import MSam
from models.train.optimizers import RowAdaGrad, split_parameters
from models.train.prefetch import batches

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called with the step just done, the number of steps, and the step's losses by name, with "examples/s" last."""

StageProgress = Callable[[str, int, int, Mapping[str, float]], None]
"""As Progress, for a job of several stages: the stage's name comes first."""

_Batch = TypeVar("_Batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    num_steps: int
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Of everything but hash tables; sgd has momentum 0.9."""
    learning_rate: float = 2e-3
    """Peak rate of `optimizer`."""
    table_learning_rate: float = 0.05
    """Peak rate of row-wise AdaGrad, for hash tables."""
    weight_decay: float = 1e-4
    warmup_share: float = 0.2
    """Share of the steps over which rates rise from 0; then they fall to 0 along a cosine."""
    clip_norm: float = 1.0
    """Largest global gradient norm of the dense parameters; AdaGrad bounds the tables' steps itself."""
    micro_batches: int = 1
    """Batches that a step reads; its gradient is their mean, weighted by their sizes."""
    sam_radius: float = 0.0
    """Above 0: mSAM, with an ascent step of this length for every micro-batch, at twice the cost; with one
    micro-batch that is SAM."""
    sam_tables: bool = False
    """Whether the rows of hash tables take part in the ascent."""
    bf16: bool = False
    """Whether forward passes run under autocast to bfloat16. Weights and optimizers stay float32."""
    prefetch: int = 0
    """Batches made ahead on a thread."""
    checkpoint_steps: int = 500
    """With a checkpoint folder: save after every so many steps,"""
    checkpoint_seconds: float = 60.0
    """or once so much time has passed since the last save."""

    def __post_init__(self) -> None:
        if min(self.num_steps, self.micro_batches, self.checkpoint_steps) < 1:
            raise ValueError(
                f"num_steps is {self.num_steps}, micro_batches {self.micro_batches}, "
                f"checkpoint_steps {self.checkpoint_steps}; expected at least 1"
            )
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer is {self.optimizer!r}; expected 'adamw' or 'sgd'")
        if not 0.0 <= self.warmup_share < 1.0:
            raise ValueError(f"warmup_share is {self.warmup_share}; expected 0 up to 1")
        if min(self.sam_radius, self.checkpoint_seconds, self.prefetch) < 0:
            raise ValueError(
                f"sam_radius is {self.sam_radius}, checkpoint_seconds {self.checkpoint_seconds}, "
                f"prefetch {self.prefetch}; expected 0 or more"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopReport:
    """What one call of `run` did; steps of an earlier call that it took up are not counted."""

    num_steps: int
    num_examples: float
    """Sum of the batches' sizes."""
    seconds: float
    batch_seconds: float
    """Of `seconds`, spent waiting for batches."""

    @property
    def examples_per_s(self) -> float:
        return self.num_examples / self.seconds if self.seconds else 0.0


def run(
    model: nn.Module,
    config: LoopConfig,
    next_batch: Callable[[int], _Batch],
    losses: Callable[[_Batch], Mapping[str, Tensor]],
    progress: Progress | None = None,
    *,
    size: Callable[[_Batch], float] | None = None,
    after_step: Callable[[Sequence[Optimizer]], None] | None = None,
    checkpoint: Path | None = None,
    identity: str = "",
    group: dist.ProcessGroup | None = None,
) -> LoopReport:
    """Train `model` in place and leave it in evaluation mode.

    next_batch: makes the batch of an index, from the index alone: no generator that earlier calls have moved. It may
    run on a thread, ahead of its use. `num_steps * micro_batches` batches are read, of each process in a group.
    losses: names the terms of one batch's mean loss; their sum is minimised.  size: a batch's weight among a step's
    micro-batches; None: all alike.  after_step: called with the optimizers once they have stepped.
    checkpoint: folder where the run is saved as it goes and taken up if it was cut short, or was finished, before.
    identity: what the batches are made of, for the checkpoint: a run is not taken up with another one.
    group: every process of it runs the same loop on batches of its own; gradients are summed. Batch norm's running
    statistics are the mean over the group at the end.

    Deterministic when `losses`, torch's global seed and the thread count are, and a run taken up ends at the same
    bits as one that was never cut.

    Raises FloatingPointError at the first loss that is not finite, CheckpointMismatch for a checkpoint of another
    run, ValueError for a checkpoint in a group.
    """
    if checkpoint is not None and group is not None:
        raise ValueError(f"checkpoint {checkpoint} in a process group; expected one or the other")
    dense, tables = split_parameters(model)
    optimizers = _optimizers(dense, tables, config)
    sam = MSam(
        *optimizers, module=model, radius=config.sam_radius, tables=tables, move_tables=config.sam_tables, group=group
    )
    peaks = [rates["lr"] for optimizer in optimizers for rates in optimizer.param_groups]
    model.train()
    saved = None if checkpoint is None else Checkpoint(checkpoint, _identity(model, config, identity))
    first = 0 if saved is None else saved.load(model, optimizers)
    device = next(model.parameters()).device.type
    rank, world = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    per_step = range(config.micro_batches)
    indices = [
        (step * world + rank) * config.micro_batches + part
        for step in range(first, config.num_steps)
        for part in per_step
    ]
    terms: list[Mapping[str, Tensor]] = []

    def loss(batch: _Batch, step: int) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=config.bf16):
            terms.append(losses(batch))
            total = torch.stack(list(terms[-1].values())).sum()
        if not bool(torch.isfinite(total)):
            raise FloatingPointError(f"loss is {float(total.detach())} at step {step} of {config.num_steps}")
        return total

    started = time.perf_counter()
    num_examples = waited_s = 0.0
    with closing(batches(next_batch, indices, config.prefetch)) as stream:  # type: ignore[type-var]
        for step in range(first, config.num_steps):
            asked = time.perf_counter()
            parts = [next(stream) for _ in per_step]
            waited_s += time.perf_counter() - asked
            sizes = [1.0 if size is None else size(part) for part in parts]
            _set_rates(optimizers, peaks, _schedule(step, config))
            terms.clear()
            sam.gradient([partial(loss, part, step) for part in parts], sizes)
            if dense:
                nn.utils.clip_grad_norm_(dense, config.clip_norm)
            for optimizer in optimizers:
                optimizer.step()
            if after_step is not None:
                after_step(optimizers)
            done = step + 1
            if saved is not None and (
                done == config.num_steps or saved.due(done, config.checkpoint_steps, config.checkpoint_seconds)
            ):
                saved.save(done, model, optimizers)
            num_examples += sum(sizes)
            if progress is not None:
                speed = num_examples / (time.perf_counter() - started)
                # With mSAM a micro-batch has a pass at the weights and one beside them; the first is reported.
                at_weights = terms[:: len(terms) // len(parts)]
                progress(done, config.num_steps, _mean(at_weights, sizes) | {"examples/s": speed})
    if group is not None:
        _average_buffers(model, group)
    model.eval()
    return LoopReport(
        num_steps=config.num_steps - first,
        num_examples=num_examples,
        seconds=time.perf_counter() - started,
        batch_seconds=waited_s,
    )


def stage_of(progress: StageProgress | None, name: str) -> Progress | None:
    """Return what reports one stage of a job."""
    return None if progress is None else lambda step, total, losses: progress(name, step, total, losses)


def _optimizers(dense: Sequence[Tensor], tables: Sequence[Tensor], config: LoopConfig) -> list[Optimizer]:
    optimizers: list[Optimizer] = []
    if dense and config.optimizer == "adamw":
        optimizers.append(torch.optim.AdamW(dense, lr=config.learning_rate, weight_decay=config.weight_decay))
    elif dense:
        optimizers.append(
            torch.optim.SGD(dense, lr=config.learning_rate, momentum=0.9, weight_decay=config.weight_decay)
        )
    if tables:
        optimizers.append(RowAdaGrad(tables, lr=config.table_learning_rate))
    return optimizers


def _set_rates(optimizers: Sequence[Optimizer], peaks: Sequence[float], rate: float) -> None:
    groups = [rates for optimizer in optimizers for rates in optimizer.param_groups]
    for rates, peak in zip(groups, peaks, strict=True):
        rates["lr"] = max(peak * rate, 1e-12)


def _schedule(step: int, config: LoopConfig) -> float:
    warmup = config.warmup_share * config.num_steps
    if step + 1 <= warmup:
        return (step + 1) / warmup
    remaining = (step - warmup) / max(1.0, config.num_steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, remaining))))


def _mean(terms: Sequence[Mapping[str, Tensor]], sizes: Sequence[float]) -> dict[str, float]:
    total = sum(sizes)
    return {
        name: sum(float(part[name].detach()) * size for part, size in zip(terms, sizes, strict=True)) / total
        for name in terms[0]
    }


def _identity(model: nn.Module, config: LoopConfig, identity: str) -> dict[str, object]:
    same = {name: value for name, value in asdict(config).items() if not name.startswith("checkpoint_")}
    del same["prefetch"]
    shapes = [f"{name} {list(tensor.shape)}" for name, tensor in model.state_dict().items()]
    return {**same, "tensors": shapes, "identity": identity, "threads": torch.get_num_threads()}


@torch.no_grad()
def _average_buffers(model: nn.Module, group: dist.ProcessGroup) -> None:
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer, group=group)
            buffer /= dist.get_world_size(group)
