"""Histories as padded arrays, and their encoder."""

# B = members, L = history places, A = actions, D = embedding dimensions, H = heads, R = recency features

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.data.state import History
from models.embeddings import HashEmbedding

NUM_RECENCY = 3
_HOUR_MS = 3_600_000.0


class HistoryBatch(NamedTuple):
    """Histories of B members, newest entry in the last place, unused places first."""

    keys: Tensor
    """int64[B, L]; 0 in unused places."""
    used: Tensor
    """bool[B, L]."""
    actions: Tensor
    """float32[B, L, A]: 1 where the entry's mask has the action's bit."""
    recency: Tensor
    """float32[B, L, R]: log hours to now, log places to the newest, within the last hour."""

    def last(self, num_places: int) -> HistoryBatch:
        """Return the newest `num_places` places."""
        return HistoryBatch(*(column[:, -num_places:] for column in self))


def pad_histories(histories: Sequence[History], now_ms: Sequence[int], num_actions: int) -> HistoryBatch:
    """Pad histories to the longest of them (at least one place)."""
    num_places = max(1, max((len(history) for history in histories), default=0))
    shape = (len(histories), num_places)
    keys = np.zeros(shape, dtype=np.int64)
    masks = np.zeros(shape, dtype=np.uint32)
    hours = np.zeros(shape, dtype=np.float32)
    used = np.zeros(shape, dtype=np.bool_)
    for row, (history, now) in enumerate(zip(histories, now_ms, strict=True)):
        if not len(history):
            continue
        places = slice(num_places - len(history), num_places)
        keys[row, places] = history.keys
        masks[row, places] = history.actions
        hours[row, places] = np.maximum(now - history.ts_ms, 0) / _HOUR_MS
        used[row, places] = True
    actions = (masks[:, :, None] >> np.arange(num_actions, dtype=np.uint32)) & np.uint32(1)
    from_newest = np.arange(num_places - 1, -1, -1, dtype=np.float32)
    recency = np.stack(
        [np.log1p(hours), np.broadcast_to(np.log1p(from_newest), shape), (hours < 1.0).astype(np.float32)],
        axis=2,
    )
    return HistoryBatch(
        torch.from_numpy(keys),
        torch.from_numpy(used),
        torch.from_numpy(actions.astype(np.float32)),
        torch.from_numpy(recency.astype(np.float32)),
    )


class HistoryEncoder(nn.Module):
    """Pools a history into H vectors by attention over actions and recency.

    The weight of an entry depends on what was done and how long ago, not on the item, so a pooled vector is a
    weighted mean of item embeddings and its inner product with an item's embedding stays a similarity. Heads
    start at different recencies: from the whole history evenly to little but the newest entries.
    """

    def __init__(self, table: HashEmbedding, num_actions: int, num_heads: int) -> None:
        super().__init__()
        self._table = [table]  # in a list: the owner registers the table, once
        self.score = nn.Linear(num_actions + NUM_RECENCY, num_heads)
        self.value_gain = nn.Linear(num_actions, num_heads)
        self.num_heads = num_heads
        with torch.no_grad():
            self.score.weight.zero_()
            self.score.bias.zero_()
            # Column of log places to the newest: weight (1 + places)^-slope.
            self.score.weight[:, num_actions + 1] = -torch.linspace(0.0, 1.5, num_heads)
            self.value_gain.weight.zero_()
            self.value_gain.bias.fill_(1.0)

    def forward(self, histories: HistoryBatch) -> Tensor:
        """Return float32[B, H, D]; zeros for an empty history."""
        embedded_BLD = self._table[0](histories.keys)
        weights_BLH = self.score(torch.cat([histories.actions, histories.recency], dim=2))
        weights_BLH = weights_BLH.masked_fill(~histories.used[:, :, None], -1e9)
        # Gains may be negative: a disliked item can push its neighbours away.
        weights_BLH = torch.softmax(weights_BLH, dim=1) * self.value_gain(histories.actions)
        weights_BLH = weights_BLH * histories.used[:, :, None]
        return torch.einsum("blh,bld->bhd", weights_BLH, embedded_BLD)
