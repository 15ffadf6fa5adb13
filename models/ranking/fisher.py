"""Diagonal Fisher information: how much the loss minds each weight's moving."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Fisher = Mapping[str, Tensor]
"""By name of the parameter: float32 of its shape, or float32[rows, 1] for a hash table. At least 0; the mean over the
entries that are not 0 is 1. A row that no sample touched has 0."""

_FILE = "fisher.safetensors"


def fisher_of(network: nn.Module, losses: Iterable[Callable[[], Tensor]]) -> dict[str, Tensor]:
    """Return the empirical Fisher: the mean of squared gradients of single samples' losses, scaled per tensor.

    losses: computes each sample's loss when called; the network is in evaluation mode meanwhile, and stays so.

    LiRank (arXiv 2402.06859), incremental training. Departures: each tensor is scaled to mean 1 over its entries other
    than 0, so that one strength fits all tensors (theirs is not disclosed); a hash table keeps one number per row, the
    mean over its dimensions, as its optimizer does. Raises ValueError without samples.
    """
    network.eval()
    named = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    sums: dict[str, Tensor] = {}
    num_samples = 0
    for loss in losses:
        num_samples += 1
        gradients = torch.autograd.grad(loss(), list(named.values()), allow_unused=True)
        for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
            if gradient is None:
                continue
            if gradient.is_sparse:
                gradient = gradient.coalesce()
                total = sums.setdefault(name, parameter.detach().new_zeros(len(parameter), 1))
                squared = gradient.values().square().mean(dim=1, keepdim=True)
                total.index_add_(0, gradient.indices()[0], squared)
            else:
                total = sums.setdefault(name, torch.zeros_like(parameter))
                total += gradient.square()
    if not num_samples:
        raise ValueError("no samples to take the Fisher information of")
    return {name: _scaled(sums[name]) if name in sums else torch.zeros_like(named[name]) for name in named}


def save_fisher(folder: Path, fisher: Fisher) -> None:
    """Write it beside the weights it belongs to."""
    save_file({name: tensor.contiguous() for name, tensor in fisher.items()}, folder / _FILE)


def load_fisher(folder: Path) -> dict[str, Tensor]:
    """Read what `save_fisher` wrote. Raises ValueError where nothing was."""
    if not (folder / _FILE).exists():
        raise ValueError(f"{folder} has no {_FILE}; expected a ranker that was trained with fisher_requests above 0")
    return load_file(folder / _FILE)


def _scaled(total: Tensor) -> Tensor:
    some = total > 0
    count = int(some.sum())
    return total * (count / total.sum()) if count else total
