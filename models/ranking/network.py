"""The ranking network."""

# B = members, N = candidate rows, n = candidates of one request, D = embedding dimensions, H = history heads
# I = distinct items
# F, M = numeric features of candidates and members, T = tasks, X = width of the joined input

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.data.attributes import AttributeBatch, encode_attributes, is_numeric
from models.data.items import ItemBatch
from models.data.schema import FeatureSchema
from models.data.state import UserState
from models.embeddings import HashEmbedding
from models.history import HistoryBatch, HistoryEncoder, pad_histories
from models.ranking.blocks import LowRankCross


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    dim: int = 16
    """Length of id and value embeddings."""
    num_heads: int = 3
    cross_layers: int = 2
    cross_rank: int = 32
    hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.1
    """On embeddings' contribution and hidden layers, in training."""


class Members(NamedTuple):
    """What the network reads of B members."""

    numbers: Tensor
    """float32[B, M]."""
    profiles: AttributeBatch
    histories: HistoryBatch


class Candidates(NamedTuple):
    """What the network reads of N candidates of B members."""

    numbers: Tensor
    """float32[N, F]."""
    items: ItemBatch
    """The distinct items among them: an item that many members share is embedded once."""
    item: Tensor
    """int64[N]: which of `items`."""
    member: Tensor
    """int64[N]: whose candidate it is."""


def encode_members(
    schema: FeatureSchema, users: Sequence[UserState], now_ms: Sequence[int], numbers: NDArray[np.float32]
) -> Members:
    """Encode B members with their numeric features f32[B, M]."""
    return Members(
        torch.from_numpy(numbers),
        encode_attributes(schema.user, [user.profile for user in users]),
        pad_histories([user.history.last(schema.history_length) for user in users], now_ms, len(schema.actions)),
    )


class RankingNetwork(nn.Module):
    """LiRank's skeleton (arXiv 2402.06859, section 3): numerics through batch norm, hashed ids, an encoded history,
    then a low-rank DCNv2 beside an MLP, joined, with one linear head per task.

    Departures: the history meets a candidate as inner products of H pooled vectors with the candidate's id
    embedding, and as one elementwise product; both cost one row per candidate. Residual cross attention, dense
    gating and the transformer over the history are not here.
    """

    centers: Tensor
    scales: Tensor

    def __init__(
        self, schema: FeatureSchema, config: NetworkConfig, num_candidate: int, num_member: int, seed: int
    ) -> None:
        super().__init__()
        dim = config.dim
        num_item_numbers = sum(is_numeric(feature) for feature in schema.item)
        item_bags = len(schema.item) - num_item_numbers
        num_user_numbers = sum(is_numeric(feature) for feature in schema.user)
        user_bags = len(schema.user) - num_user_numbers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.table = HashEmbedding(dim, torch.Generator().manual_seed(seed))
            self.history = HistoryEncoder(self.table, len(schema.actions), config.num_heads)
            self.candidate_norm = nn.BatchNorm1d(num_candidate)
            self.member_norm = nn.BatchNorm1d(num_member + 2 * num_user_numbers)
            self.dropout = nn.Dropout(config.dropout)
            width = (
                num_candidate + num_member + 2 * num_user_numbers
                + dim * (1 + item_bags + user_bags) + config.num_heads + dim
            )  # fmt: skip
            self.crosses = nn.ModuleList(LowRankCross(width, config.cross_rank) for _ in range(config.cross_layers))
            layers: list[nn.Module] = []
            previous = width
            for hidden in config.hidden:
                layers += [nn.Linear(previous, hidden), nn.ReLU(), nn.Dropout(config.dropout)]
                previous = hidden
            self.mlp = nn.Sequential(*layers)
            self.heads = nn.Linear(width + previous, len(schema.tasks))
        # Of the items' numbers; the feature assembler reads them, so they travel with the weights.
        self.register_buffer("centers", torch.zeros(num_item_numbers, dtype=torch.float64))
        self.register_buffer("scales", torch.ones(num_item_numbers, dtype=torch.float64))

    def forward(self, members: Members, candidates: Candidates) -> Tensor:
        """Return float32[N, T]: logits. The member side is computed once per member."""
        pooled_BHD = self.history(members.histories)
        profile = members.profiles
        missing_BF = torch.from_numpy(profile.missing).float()
        user_BX = torch.cat([members.numbers, torch.from_numpy(profile.numbers), missing_BF], dim=1)
        member_BX = torch.cat(
            [
                self.member_norm(user_BX).clamp(-6.0, 6.0),
                *(self.dropout(self.table.bag(bag)) for bag in profile.bags),
            ],
            dim=1,
        )
        member_N = candidates.member
        item_IX = torch.cat(
            [
                self.table(candidates.items.keys),
                *(self.table.bag(bag) for bag in candidates.items.bags),
            ],
            dim=1,
        )
        item_NX = functional.embedding(candidates.item, self.dropout(item_IX))
        ids_ND = item_NX[:, : self.table.dim]
        pooled_NHD = functional.embedding(member_N, pooled_BHD.flatten(1)).reshape(len(member_N), *pooled_BHD.shape[1:])
        similar_NH = torch.einsum("nhd,nd->nh", pooled_NHD, ids_ND)
        x0_NX = torch.cat(
            [
                self.candidate_norm(candidates.numbers).clamp(-6.0, 6.0),
                functional.embedding(member_N, member_BX),
                item_NX,
                similar_NH,
                pooled_NHD[:, -1] * ids_ND,
            ],
            dim=1,
        )
        crossed_NX = x0_NX
        for cross in self.crosses:
            crossed_NX = cross(x0_NX, crossed_NX)
        logits: Tensor = self.heads(torch.cat([crossed_NX, self.mlp(x0_NX)], dim=1))
        return logits
