"""The two towers."""

# B = members, N = items, D = output dimensions, H = history heads

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.attributes import AttributeEncoder
from models.data.attributes import AttributeBatch, encode_attributes
from models.data.items import ItemBatch
from models.data.schema import FeatureSchema
from models.data.state import UserState
from models.embeddings import HashEmbedding
from models.history import HistoryBatch, HistoryEncoder, pad_histories


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerConfig:
    dim: int = 32
    """Length of the vectors the index holds, and of embeddings."""
    num_heads: int = 4
    hidden: int = 128
    temperature: float = 0.07
    """Where the learned softmax temperature starts."""


class MemberBatch:
    """What the member tower reads of B members."""

    def __init__(self, schema: FeatureSchema, users: Sequence[UserState], now_ms: Sequence[int]) -> None:
        self.profiles: AttributeBatch = encode_attributes(schema.user, [user.profile for user in users])
        histories = [user.history.last(schema.history_length) for user in users]
        self.histories: HistoryBatch = pad_histories(histories, now_ms, len(schema.actions))


class TwoTowers(nn.Module):
    """Members and items on one unit sphere; relevance is their inner product.

    "Learning to Retrieve for Job Matching" section 4 is the model: towers over profile, past engagements and
    attributes, a cosine, a softmax over the batch. Departures: items also have hashed ids, and members are their
    history's ids rather than an id of their own, so a new action changes the vector at once.
    """

    def __init__(self, schema: FeatureSchema, config: TowerConfig, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.table = HashEmbedding(config.dim, torch.Generator().manual_seed(seed))
            self.item_attributes = AttributeEncoder(self.table, schema.item)
            self.user_attributes = AttributeEncoder(self.table, schema.user)
            self.history = HistoryEncoder(self.table, len(schema.actions), config.num_heads)
            self.item_out = nn.Linear(self.item_attributes.width, config.dim)
            member_width = config.num_heads * config.dim + self.user_attributes.width + 1
            self.member_out = nn.Sequential(
                nn.Linear(member_width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.dim)
            )
            self.head_mix = nn.Parameter(torch.full((config.num_heads,), 1.0 / config.num_heads))
            self.log_scale = nn.Parameter(torch.tensor(-float(np.log(config.temperature))))

    def items(self, batch: ItemBatch) -> Tensor:
        """Return float32[N, D], rows of length 1."""
        attributes = self.item_attributes(batch.bags, batch.numbers, batch.missing)
        return functional.normalize(self.table(torch.from_numpy(batch.keys)) + self.item_out(attributes), dim=1)

    def members(self, batch: MemberBatch) -> Tensor:
        """Return float32[B, D], rows of length 1."""
        pooled_BHD = self.history(batch.histories)
        profile = self.user_attributes(batch.profiles.bags, batch.profiles.numbers, batch.profiles.missing)
        length = batch.histories.used.sum(dim=1, keepdim=True).float().log1p()
        joined = self.member_out(torch.cat([pooled_BHD.flatten(1), profile, length], dim=1))
        return functional.normalize(joined + torch.einsum("bhd,h->bd", pooled_BHD, self.head_mix), dim=1)

    def scale(self) -> Tensor:
        """Return the inverse temperature, held in 1..100."""
        return self.log_scale.clamp(0.0, 4.6).exp()


def sampled_softmax(
    logits_BN: Tensor,
    target_B: Tensor,
    log_q_N: Tensor,
    item_keys_N: NDArray[np.int64],
    masked_BN: Tensor | None = None,
) -> Tensor:
    """Return the mean cross entropy of each row's target against sampled items, corrected for the sampling.

    s'_bn = s_bn - log q_n, where q_n is the chance that item n is drawn as a negative (Yi et al., RecSys 2019,
    section 4; Bengio & Senecal 2008). Columns holding the target's item under another index are accidental
    hits and leave the sum, as do those in `masked_BN`.
    """
    corrected_BN = logits_BN - log_q_N
    keys_N = torch.from_numpy(item_keys_N)
    columns_N = torch.arange(len(keys_N))
    hits_BN = (keys_N[target_B][:, None] == keys_N) & (target_B[:, None] != columns_N)
    if masked_BN is not None:
        hits_BN = hits_BN | (masked_BN & (target_B[:, None] != columns_N))
    return functional.cross_entropy(corrected_BN.masked_fill(hits_BN, -1e9), target_B)
