"""Low-rank adapters: train little beside frozen weights, and publish plain ones."""

# M = rows, I = inputs, O = outputs, R = rank

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    rank: int = 16
    scale: float = 2.0
    """What the adapter's product is multiplied with; the paper's alpha / r."""
    linears: tuple[str, ...] = LINEARS
    """Names of the linear maps that get one, in every layer."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.linears) - set(LINEARS))
        if unknown or not self.linears:
            raise ValueError(f"linears are {list(self.linears)}; expected some of {list(LINEARS)}")
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; expected at least 1")


class LoraLinear(nn.Module):
    """W x + scale * B A x, W frozen; A random and B zero, so it begins as W. Hu et al. 2021, arXiv 2106.09685."""

    def __init__(self, linear: nn.Linear, config: LoraConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.scale = config.scale
        bound = 1.0 / math.sqrt(linear.in_features)
        down_RI = torch.empty(config.rank, linear.in_features).uniform_(-bound, bound, generator=generator)
        self.down_RI = nn.Parameter(down_RI)
        self.up_OR = nn.Parameter(torch.zeros(linear.out_features, config.rank))

    def forward(self, x_MI: Tensor) -> Tensor:
        wide: Tensor = self.linear(x_MI)
        return wide + self.scale * F.linear(F.linear(x_MI, self.down_RI), self.up_OR)

    def merged(self) -> nn.Linear:
        """Return one plain linear map that does the same."""
        with torch.no_grad():
            # In float64: the product is added to weights many times its size.
            added = self.scale * (self.up_OR.double() @ self.down_RI.double())
            self.linear.weight.copy_(self.linear.weight.double() + added)
        return self.linear.requires_grad_(True)


def add_lora(module: nn.Module, config: LoraConfig, seed: int = 0) -> None:
    """Freeze the module and put an adapter beside each of the config's linear maps, in place.

    Raises ValueError for a module that has none of them, or has adapters already.
    """
    module.requires_grad_(False)
    found = [(parent, name) for parent, name, child in _children(module) if name in config.linears]
    if not found:
        raise ValueError(f"the module has no linear map named one of {list(config.linears)}")
    generator = torch.Generator().manual_seed(seed)
    for parent, name in found:
        linear = getattr(parent, name)
        if isinstance(linear, LoraLinear):
            raise ValueError(f"{name} has an adapter already; merge first")
        setattr(parent, name, LoraLinear(cast(nn.Linear, linear), config, generator))


def merge_lora(module: nn.Module) -> int:
    """Put every adapter into its weights, in place, and return how many there were; the module is plain again."""
    found = [(parent, name) for parent, name, child in _children(module) if isinstance(child, LoraLinear)]
    for parent, name in found:
        setattr(parent, name, getattr(parent, name).merged())
    module.requires_grad_(True)
    return len(found)


def _children(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [(parent, name, child) for parent in module.modules() for name, child in parent.named_children()]
