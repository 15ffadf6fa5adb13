"""From the joined input to one logit per task: what the tasks share and what each group has of its own."""

# N = rows, X = width of the joined input, Z = width of a tower's output, T = tasks, K = experts, G = groups

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models.data.schema import FeatureSchema
from models.ranking.cross import LowRankCross, ResidualCross
from models.ranking.gate import gated_mlp

CrossKind = Literal["none", "lowrank", "residual"]
TowersKind = Literal["shared", "grouped", "mmoe"]

_CROSSES: dict[str, type[LowRankCross] | type[ResidualCross]] = {"lowrank": LowRankCross, "residual": ResidualCross}


class CrossStack(nn.Module):
    """Cross layers one on another; none of them passes the input on."""

    def __init__(self, kind: CrossKind, width: int, num_layers: int, rank: int) -> None:
        super().__init__()
        num_layers = 0 if kind == "none" else num_layers
        self.layers = nn.ModuleList(_CROSSES[kind](width, rank) for _ in range(num_layers))

    def forward(self, x0_NX: Tensor) -> Tensor:
        """Return float32[N, X]."""
        x_NX = x0_NX
        for layer in self.layers:
            x_NX = layer(x0_NX, x_NX)
        return x_NX


class Tower(nn.Module):
    """Cross layers beside a gated MLP, joined: DCNv2's parallel form."""

    def __init__(
        self, width: int, cross: CrossKind, cross_layers: int, cross_rank: int, hidden: tuple[int, ...],
        dropout: float, gate_rank: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.crosses = CrossStack(cross, width, cross_layers, cross_rank)
        self.mlp = gated_mlp(width, hidden, dropout, gate_rank)
        self.width = width + (hidden[-1] if hidden else width)

    def forward(self, x0_NX: Tensor) -> Tensor:
        """Return float32[N, Z]."""
        return torch.cat([self.crosses(x0_NX), self.mlp(x0_NX)], dim=1)


class GroupedTowers(nn.Module):
    """One tower and one linear head per group of tasks; one group is hard sharing of everything.

    LiRank (arXiv 2402.06859), section 3.4: tasks that resemble one another share a tower, and its cost is that of as
    many rankers as there are groups.
    """

    def __init__(self, towers: Sequence[Tower], groups: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)
        self.heads = nn.ModuleList(
            nn.Linear(tower.width, len(group)) for tower, group in zip(towers, groups, strict=True)
        )
        placed = [task for group in groups for task in group]
        self._columns = [placed.index(task) for task in range(len(placed))]
        self._in_order = placed == sorted(placed)

    def hidden(self, x0_NX: Tensor) -> Tensor:
        """Return float32[N, G Z]: what the heads read, one group after another."""
        return torch.cat([tower(x0_NX) for tower in self.towers], dim=1)

    def read(self, hidden_NZ: Tensor) -> Tensor:
        """Return float32[N, T]: logits."""
        parts = hidden_NZ.chunk(len(self.heads), dim=1)
        logits_NT = torch.cat([head(part) for head, part in zip(self.heads, parts, strict=True)], dim=1)
        return logits_NT if self._in_order else logits_NT[:, self._columns]


class MixtureTowers(nn.Module):
    """K towers that all tasks share, mixed by a softmax of its own for each task: MMoE.

    Ma et al., KDD 2018; LiRank's table of multi-task forms. Gates start even, so every task starts with the mean.
    """

    def __init__(self, width: int, experts: Sequence[Tower], num_tasks: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.gates = nn.Linear(width, num_tasks * len(experts))
        nn.init.zeros_(self.gates.weight)
        nn.init.zeros_(self.gates.bias)
        self.heads = nn.ModuleList(nn.Linear(experts[0].width, 1) for _ in range(num_tasks))

    def hidden(self, x0_NX: Tensor) -> Tensor:
        """Return float32[N, T Z]: what the heads read, one task after another."""
        outputs_NKZ = torch.stack([expert(x0_NX) for expert in self.experts], dim=1)
        shares_NTK = torch.softmax(self.gates(x0_NX).reshape(-1, len(self.heads), len(self.experts)), dim=2)
        return (shares_NTK @ outputs_NKZ).flatten(1)

    def read(self, hidden_NZ: Tensor) -> Tensor:
        """Return float32[N, T]: logits."""
        parts = hidden_NZ.chunk(len(self.heads), dim=1)
        return torch.cat([head(part) for head, part in zip(self.heads, parts, strict=True)], dim=1)


def task_groups(schema: FeatureSchema, groups: Sequence[Sequence[str]] = ()) -> tuple[tuple[int, ...], ...]:
    """Return the places in `schema.tasks` of each group's tasks.

    Without `groups` they come from the schema: a task and those that it implies are one group, as a narrow action
    borrows from the wide one, which has more positives.

    Raises ValueError when `groups` leaves out a task, repeats one or names one that the schema does not have.
    """
    if groups:
        named = [task for group in groups for task in group]
        if sorted(named) != sorted(schema.tasks) or not all(groups):
            raise ValueError(f"groups {groups!r}: expected each of the tasks {schema.tasks} in one group")
        return tuple(tuple(schema.tasks.index(task) for task in group) for group in groups)
    group_of = list(range(len(schema.tasks)))
    for narrow, wide in schema.implied_tasks():
        old, new = group_of[narrow], group_of[wide]
        group_of = [new if group == old else group for group in group_of]
    return tuple(
        tuple(task for task, other in enumerate(group_of) if other == group) for group in dict.fromkeys(group_of)
    )
