"""Optimizers that torch does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


class RowAdaGrad(Optimizer):
    """AdaGrad with one accumulator per row of an embedding table, for sparse gradients.

    acc_r += mean(g_r^2);  w_r -= lr * g_r / (sqrt(acc_r) + eps).  Only rows with a gradient are read or written,
    so a step costs what the batch touched and not what the table holds. The row-wise form is FBGEMM's.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, eps: float = 1e-8) -> None:
        if lr <= 0:
            raise ValueError(f"lr is {lr}; expected more than 0")
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every table that has a gradient. Raises ValueError when given a closure."""
        if closure is not None:
            raise ValueError("RowAdaGrad takes no closure")
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                grad = table.grad.coalesce()
                rows, values = grad.indices()[0], grad.values()
                state = self.state[table]
                if not state:
                    state["sum"] = torch.zeros(table.shape[0])
                sums = state["sum"][rows] + values.square().mean(dim=1)
                state["sum"][rows] = sums
                table[rows] -= group["lr"] * values / (sums.sqrt() + group["eps"])[:, None]
