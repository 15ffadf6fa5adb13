"""Optimizers that torch does not have, and which one trains what."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.embeddings import HashEmbedding


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
                # Coalesced once and kept: what comes after the step (anchors) reads the same rows.
                grad = table.grad = table.grad.coalesce()
                rows, values = grad.indices()[0], grad.values()
                state = self.state[table]
                if not state:
                    state["sum"] = table.new_zeros(table.shape[0])
                sums = state["sum"][rows] + values.square().mean(dim=1)
                state["sum"][rows] = sums
                table.index_add_(0, rows, values / (sums.sqrt() + group["eps"])[:, None], alpha=-group["lr"])


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the trainable parameters in two parts: dense ones, and hash tables, whose gradients are sparse."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, HashEmbedding)}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return (
        [parameter for parameter in trainable if id(parameter) not in tables],
        [parameter for parameter in trainable if id(parameter) in tables],
    )


@torch.no_grad()
def step_metric(optimizer: Optimizer, parameter: Tensor) -> Tensor:
    """Return the diagonal metric D of the optimizer: under a constant gradient g it comes to step by -lr * g / D.

    AdamW: sqrt of the bias-corrected second moment, plus eps, shaped as the parameter. RowAdaGrad: [rows, 1].
    SGD: a single 1 - momentum. Before a parameter's first step AdamW's and RowAdaGrad's is their eps.

    Raises ValueError for another optimizer.
    """
    state = optimizer.state.get(parameter, {})
    if isinstance(optimizer, torch.optim.SGD):
        return parameter.new_full((), 1.0 - optimizer.param_groups[0]["momentum"])
    if isinstance(optimizer, RowAdaGrad):
        sums = state["sum"] if state else parameter.new_zeros(parameter.shape[0])
        metric: Tensor = (sums.sqrt() + optimizer.param_groups[0]["eps"])[:, None]
        return metric
    if isinstance(optimizer, torch.optim.AdamW):
        group = optimizer.param_groups[0]
        if not state:
            return torch.full_like(parameter, group["eps"])
        correction = 1.0 - group["betas"][1] ** float(state["step"])
        metric = (state["exp_avg_sq"] / correction).sqrt() + group["eps"]
        return metric
    raise ValueError(f"optimizer is a {type(optimizer).__name__}; expected AdamW, SGD or RowAdaGrad")
