"""mSAM: sharpness-aware minimisation with an ascent step of its own for each micro-batch."""

# m = micro-batches of a step, on this process or over all of a group

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

_EPS = 1e-12


class MSam:
    """Wraps optimizers; they step on mSAM's gradient instead of the plain one.

    With shards S_1..S_m of a batch S, g_j = grad L_{S_j}(w) and e_j = radius * g_j / ||g_j||:
    gradient = sum_j |S_j|/|S| * grad L_{S_j}(w + e_j).  m = 1 is SAM; radius = 0 is accumulation of the plain gradient,
    by the same operations, and then costs no second pass.

    adaptive: ASAM's scaling, e_j = radius * w^2 g_j / || |w| g_j ||, elementwise.

    tables: parameters with sparse gradients. By default they do not take part in the ascent, neither moved nor counted
    in the norm; their own gradient is still taken at the moved dense weights. A step's gradient has the rows of its
    batch only, and a rare row's gradient is of one example: moved by a share of a global radius, rare and frequent
    rows would be treated alike, where sharpness goes with frequency (Helen, arXiv 2403.00798), and every row that a
    later pass reads would have to be put back. With True the rows of each micro-batch take part.

    Both passes of a micro-batch see the same dropout (the generators are put back between them). Buffers, so batch
    norm's running statistics, move once, by the pass at the weights that stay. Weights come back bit for bit: they are
    kept, not recomputed. Clip what `gradient` leaves in `.grad`; g_j must not be clipped or scaled.

    With a process group every process is m micro-batches of its own: its ascents use its own gradients, and only the
    gradients after them are summed over the group. Every process must hold the same weights, whole: under FSDP a gather
    would mix shards moved in different directions.

    Behdin et al., "mSAM: Micro-Batch-Averaged Sharpness-Aware Minimization" (arXiv 2302.09693); Foret et al. (SAM,
    2010.01412); Kwon et al. (ASAM, 2102.11600). Not Momentum-SAM, which libraries also call MSAM.
    """

    def __init__(
        self,
        *bases: Optimizer,
        module: nn.Module,
        radius: float = 0.05,
        adaptive: bool = False,
        tables: Sequence[Tensor] = (),
        move_tables: bool = False,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if not bases:
            raise ValueError("mSAM wraps at least one optimizer")
        if radius < 0.0:
            raise ValueError(f"radius is {radius}; expected 0 or more")
        self.bases = bases
        self.radius = radius
        self.adaptive = adaptive
        self._module = module
        self._group = group
        held_back = set() if move_tables else {id(table) for table in tables}
        self._tables = {id(table) for table in tables}
        self._parameters: list[Tensor] = [p for base in bases for rates in base.param_groups for p in rates["params"]]
        self._moved = [parameter for parameter in self._parameters if id(parameter) not in held_back]

    def step(self, losses: Sequence[Callable[[], Tensor]], weights: Sequence[float] | None = None) -> list[Tensor]:
        """Take `gradient`, then a step of every base; return the losses at the weights before it."""
        found = self.gradient(losses, weights)
        for base in self.bases:
            base.step()
        return found

    def gradient(self, losses: Sequence[Callable[[], Tensor]], weights: Sequence[float] | None = None) -> list[Tensor]:
        """Leave the gradient in `.grad`, weights and buffers as one pass leaves them; return each micro-batch's loss.

        losses: one per micro-batch, each computes its mean loss anew when called.  weights: the micro-batches' sizes;
        None: all alike.  Raises ValueError when the two differ in length, there is none, or a size is not above 0.
        """
        if not losses or (weights is not None and len(weights) != len(losses)):
            raise ValueError(f"{len(losses)} losses and weights {weights}; expected one weight for each of >= 1 losses")
        for base in self.bases:
            base.zero_grad(set_to_none=True)
        found = []
        for loss, share in zip(losses, self._shares(weights or [1.0] * len(losses)), strict=True):
            if self.radius > 0.0:
                with self._repeatable() as repeated:
                    value = loss()
                    gradients = torch.autograd.grad(value, self._moved, allow_unused=True)
                    with self._ascended(gradients), repeated():
                        torch.autograd.backward(share * loss())
            else:
                value = loss()
                torch.autograd.backward(share * value)
            found.append(value.detach())
        if self._group is not None:
            self._sum_over_group(self._group)
        return found

    def _shares(self, weights: Sequence[float]) -> list[float]:
        if min(weights) <= 0.0:
            raise ValueError(f"weights are {list(weights)}; expected sizes above 0")
        total = float(sum(weights))
        if self._group is not None:
            summed = torch.tensor(total, dtype=torch.float64, device=self._parameters[0].device)
            dist.all_reduce(summed, group=self._group)
            total = float(summed)
        return [weight / total for weight in weights]

    @contextmanager
    def _repeatable(self) -> Iterator[Callable[[], AbstractContextManager[None]]]:
        """Yield what runs a second pass: from the generators' state at the first one's start, leaving no trace."""
        devices = sorted({p.device.index for p in self._parameters if p.is_cuda})
        on_cpu, on_cuda = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]

        @contextmanager
        def repeated() -> Iterator[None]:
            buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
            with torch.random.fork_rng(devices=devices):
                torch.set_rng_state(on_cpu)
                for device, state in zip(devices, on_cuda, strict=True):
                    torch.cuda.set_rng_state(state, device)
                yield
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)

        yield repeated

    @contextmanager
    def _ascended(self, gradients: Sequence[Tensor | None]) -> Iterator[None]:
        """Move the weights along the gradients by the radius while the block runs."""
        moves = [
            _Move(parameter, gradient, self.adaptive)
            for parameter, gradient in zip(self._moved, gradients, strict=True)
            if gradient is not None
        ]
        if not moves:
            raise ValueError("the loss depends on no parameter that mSAM moves")
        norm = torch.linalg.vector_norm(torch.stack([move.norm for move in moves]))
        scale = self.radius / (norm + _EPS)
        try:
            for move in moves:
                move.go(scale)
            yield
        finally:
            for move in moves:
                move.undo()

    @torch.no_grad()
    def _sum_over_group(self, group: dist.ProcessGroup) -> None:
        device = self._parameters[0].device
        used = torch.tensor([p.grad is not None for p in self._parameters], dtype=torch.int32, device=device)
        dist.all_reduce(used, op=dist.ReduceOp.MAX, group=group)
        dense = []
        for parameter, is_used in zip(self._parameters, used.tolist(), strict=True):
            if not is_used:
                continue  # nowhere: left without a gradient, as in one process
            if id(parameter) in self._tables:
                parameter.grad = _summed_rows(parameter, group)
            else:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dense.append(parameter.grad)
        if dense:
            flat = torch.cat([gradient.reshape(-1) for gradient in dense])
            dist.all_reduce(flat, group=group)
            for gradient, part in zip(dense, torch.split(flat, [g.numel() for g in dense]), strict=True):
                gradient.copy_(part.view_as(gradient))


class _Move:
    """One parameter's part in an ascent step: all of it, or the rows of its sparse gradient."""

    def __init__(self, parameter: Tensor, gradient: Tensor, adaptive: bool) -> None:
        with torch.no_grad():
            self._parameter = parameter.detach()
            self._rows: Tensor | None = None
            if gradient.is_sparse:
                gradient = gradient.coalesce()
                self._rows = gradient.indices()[0]
                self._before = self._parameter[self._rows]
                along = gradient.values()
            else:
                self._before = self._parameter.clone()
                along = gradient
            self.norm = torch.linalg.vector_norm(along * self._before.abs() if adaptive else along)
            self._along = along * self._before.square() if adaptive else along

    def go(self, scale: Tensor) -> None:
        self._write(self._before + scale * self._along)

    def undo(self) -> None:
        self._write(self._before)

    def _write(self, values: Tensor) -> None:
        if self._rows is None:
            self._parameter.copy_(values)
        else:
            self._parameter[self._rows] = values


def _summed_rows(table: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the group's sum of a table's sparse gradients, by exchange of the rows that there are."""
    world = dist.get_world_size(group)
    gradient = None if table.grad is None else table.grad.coalesce()
    rows = torch.zeros(0, dtype=torch.int64, device=table.device) if gradient is None else gradient.indices()[0]
    values = table.new_zeros(0, table.shape[1]) if gradient is None else gradient.values()
    counts = [torch.zeros(1, dtype=torch.int64, device=table.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=table.device), group=group)
    sizes = [int(count) for count in counts]
    padded_rows, padded_values = rows.new_zeros(max(sizes)), values.new_zeros(max(sizes), table.shape[1])
    padded_rows[: len(rows)], padded_values[: len(rows)] = rows, values
    all_rows = [torch.zeros_like(padded_rows) for _ in range(world)]
    all_values = [torch.zeros_like(padded_values) for _ in range(world)]
    dist.all_gather(all_rows, padded_rows, group=group)
    dist.all_gather(all_values, padded_values, group=group)
    return torch.sparse_coo_tensor(
        torch.cat([found[:size] for found, size in zip(all_rows, sizes, strict=True)])[None],
        torch.cat([found[:size] for found, size in zip(all_values, sizes, strict=True)]),
        table.shape,
        check_invariants=False,
    ).coalesce()
