"""Training of the two towers."""

# B = batch rows, N = sampled items, D = dimensions

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.data.events import EventTable, HistoryBuilder
from models.data.items import ItemTable
from models.data.schema import FeatureSchema
from models.data.state import UserState
from models.retrieval.model import RetrievalModel
from models.retrieval.towers import MemberBatch, TowerConfig, TwoTowers, sampled_softmax
from models.train.loop import LoopConfig, Progress, run


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalConfig:
    towers: TowerConfig = field(default_factory=TowerConfig)
    batch_size: int = 512
    num_epochs: float = 6.0
    """Passes over the positive events."""
    easy_negatives: int = 256
    """Items drawn evenly from the catalogue for each batch, beside the batch's own."""
    max_gap: int = 20
    """The history of a positive ends up to so many of the member's events before it, evenly drawn, so that
    the towers learn the rest of a visit and not only its very next step."""
    recency_half_life_share: float = 0.25
    """Positives are drawn with a weight that halves over this share of the window; 0 draws evenly."""
    learning_rate: float = 3e-3
    table_learning_rate: float = 0.1
    weight_decay: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}; expected at least 2")


class _Batch(NamedTuple):
    members: MemberBatch
    item_keys: NDArray[np.int64]
    log_q: torch.Tensor
    masked: torch.Tensor


def train_retrieval(
    schema: FeatureSchema,
    items: ItemTable,
    users: Mapping[int, Mapping[str, object]],
    events: EventTable,
    config: RetrievalConfig | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> RetrievalModel:
    """Train towers to find a member's next positive items from the history before them.

    checkpoint: folder in which a run that is cut short is taken up again.

    Same events, config and thread count: same weights. Raises ValueError when no event is a positive.
    """
    config = config or RetrievalConfig()
    sampler = _PositiveSampler(schema, items, users, events, config)
    towers = TwoTowers(schema, config.towers, config.seed)
    catalogue = items.gather(items.keys())
    towers.item_attributes.fit(catalogue.numbers, catalogue.missing)
    profiles = MemberBatch(schema, [UserState(profile) for profile in users.values()], [0] * len(users)).profiles
    towers.user_attributes.fit(profiles.numbers, profiles.missing)

    def losses(batch: _Batch) -> Mapping[str, torch.Tensor]:
        item_vectors_ND = towers.items(items.gather(batch.item_keys))
        member_vectors_BD = towers.members(batch.members)
        logits_BN = towers.scale() * member_vectors_BD @ item_vectors_ND.T
        targets_B = torch.arange(len(logits_BN))
        return {"softmax": sampled_softmax(logits_BN, targets_B, batch.log_q, batch.item_keys, batch.masked)}

    num_steps = max(1, round(config.num_epochs * sampler.num_positives / config.batch_size))
    loop = LoopConfig(
        num_steps=num_steps,
        learning_rate=config.learning_rate,
        table_learning_rate=config.table_learning_rate,
        weight_decay=config.weight_decay,
    )
    run(
        towers, loop, sampler.batch, losses, progress,
        size=lambda batch: float(config.batch_size), checkpoint=checkpoint,
        identity=f"{config} {sampler.digest()}",
    )  # fmt: skip
    return RetrievalModel(schema, config.towers, towers)


class _PositiveSampler:
    """Draws positives with the history before them, and negatives with the chance they were drawn at."""

    def __init__(
        self,
        schema: FeatureSchema,
        items: ItemTable,
        users: Mapping[int, Mapping[str, object]],
        events: EventTable,
        config: RetrievalConfig,
    ) -> None:
        self._schema, self._users, self._config = schema, users, config
        positive_bit = np.uint32(1 << schema.bit(schema.positive))
        self._positives = events.take((events.action_masks & positive_bit) != 0)
        self.num_positives = len(self._positives)
        if not self.num_positives:
            raise ValueError(f"none of {len(events)} events is a {schema.positive!r}; nothing to train on")
        self._histories = HistoryBuilder(events, schema.history_length)
        self._weights = self._recency_weights()
        self._cumulated = np.cumsum(self._weights)
        self._catalogue = np.sort(items.keys())
        # The chance of an item as an in-batch negative is its weighted share of the positives.
        self._drawn_keys, inverse = np.unique(self._positives.item_keys, return_inverse=True)
        self._drawn_share = np.bincount(inverse, weights=self._weights)
        by_user = np.argsort(self._positives.user_keys, kind="stable")
        liking, starts = np.unique(self._positives.user_keys[by_user], return_index=True)
        liked = np.split(self._positives.item_keys[by_user], starts[1:])
        self._liked = dict(zip(liking.tolist(), liked, strict=True))

    def digest(self) -> str:
        """Return what changes with the positives and the catalogue."""
        digest = hashlib.blake2b(digest_size=8)
        for column in (self._positives.user_keys, self._positives.item_keys, self._positives.ts_ms, self._catalogue):
            digest.update(column.tobytes())
        return digest.hexdigest()

    def _recency_weights(self) -> NDArray[np.float64]:
        times_ms = self._positives.ts_ms
        window_ms = int(times_ms[-1] - times_ms[0])
        half_life_ms = self._config.recency_half_life_share * window_ms
        if half_life_ms <= 0:
            return np.full(len(times_ms), 1.0 / len(times_ms))
        weights = np.exp2((times_ms - times_ms[-1]) / half_life_ms)
        shares: NDArray[np.float64] = weights / weights.sum()
        return shares

    def batch(self, step: int) -> _Batch:
        """Return the batch of a step; it depends on the seed and the step alone."""
        config = self._config
        random = np.random.default_rng((config.seed, step))
        drawn = random.random(config.batch_size) * self._cumulated[-1]
        rows = np.minimum(np.searchsorted(self._cumulated, drawn, side="right"), self.num_positives - 1)
        user_keys = self._positives.user_keys[rows].tolist()
        gaps = random.integers(0, config.max_gap + 1, size=config.batch_size)
        cut_ms = [
            self._cut(user, time, gap)
            for user, time, gap in zip(user_keys, self._positives.ts_ms[rows].tolist(), gaps.tolist(), strict=True)
        ]
        states = [
            UserState(self._users.get(user, {}), self._histories.history(user, now))
            for user, now in zip(user_keys, cut_ms, strict=True)
        ]
        num_easy = config.easy_negatives if len(self._catalogue) else 0
        easy = random.choice(self._catalogue, size=num_easy) if num_easy else np.zeros(0, np.int64)
        item_keys = np.concatenate([self._positives.item_keys[rows], easy])
        return _Batch(
            MemberBatch(self._schema, states, cut_ms),
            item_keys,
            torch.from_numpy(self._log_q(item_keys, num_easy)),
            torch.from_numpy(self._liked_by(user_keys, item_keys)),
        )

    def _liked_by(self, user_keys: list[int], item_keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[B, N]: which sampled items are positives of the row's member, at any time in training."""
        distinct, places_N = np.unique(item_keys, return_inverse=True)
        liked = [self._liked[user] for user in user_keys]
        rows = np.repeat(np.arange(len(liked)), [len(keys) for keys in liked])
        keys = np.concatenate(liked)
        columns = np.minimum(np.searchsorted(distinct, keys), len(distinct) - 1)
        found = distinct[columns] == keys
        table = np.zeros((len(liked), len(distinct)), dtype=np.bool_)
        table[rows[found], columns[found]] = True
        return table[:, places_N]

    def _cut(self, user: int, time_ms: int, gap: int) -> int:
        """Return the instant of the member's event `gap` before the positive; its own with 0, or without so many."""
        before = self._histories.history(user, time_ms).ts_ms
        return int(before[-gap]) if 0 < gap <= len(before) else time_ms

    def _log_q(self, item_keys: NDArray[np.int64], num_easy: int) -> NDArray[np.float32]:
        batch_size = self._config.batch_size
        places = np.minimum(np.searchsorted(self._drawn_keys, item_keys), len(self._drawn_keys) - 1)
        share = np.where(self._drawn_keys[places] == item_keys, self._drawn_share[places], 0.0)
        even = 1.0 / max(1, len(self._catalogue))
        mixed = (batch_size * share + num_easy * even) / (batch_size + num_easy)
        return np.log(np.maximum(mixed, 1e-12)).astype(np.float32)
