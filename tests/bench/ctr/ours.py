"""Our ranker on an impression log: the product's network and training, on the log's examples."""

# T = tasks

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.evaluate import auc
from models.ranking.batches import collate
from models.ranking.examples import Example
from models.ranking.network import NetworkConfig, RankingNetwork
from models.ranking.training import RankingConfig, fit
from tests.bench.ctr.log import SPLITS, PreparedLog, item_statistics

_ROWS_TOGETHER = 16_384


def fit_ours(prepared: PreparedLog, config: RankingConfig) -> tuple[dict[str, NDArray[np.float32]], float]:
    """Train on the log's training examples; return logits float32[rows, T] by split (all but training's), and the
    first task's validation AUC."""
    network = make_network(prepared, config.network, config.seed)
    fit(prepared.log.schema, prepared.log.items, network, prepared.examples["train"], config)
    logits = {split: logits_of(prepared, network, prepared.examples[split]) for split in SPLITS if split != "train"}
    return logits, auc(logits["validation"][:, 0], prepared.labels("validation")[:, 0])


def make_network(prepared: PreparedLog, config: NetworkConfig, seed: int) -> RankingNetwork:
    """Return an untrained network as wide as the log's features, the impressions' context among them."""
    network = RankingNetwork(prepared.log.schema, config, prepared.num_candidate, prepared.num_member, seed)
    for buffer, values in zip((network.centers, network.scales), item_statistics(prepared.log.items), strict=True):
        buffer.copy_(torch.from_numpy(values))
    return network


def logits_of(prepared: PreparedLog, network: RankingNetwork, examples: Sequence[Example]) -> NDArray[np.float32]:
    """Return float32[rows, T]: logits before calibration."""
    network.eval()
    parts = []
    ends = np.cumsum([len(example.keys) for example in examples])
    chunks = np.split(np.arange(len(examples)), np.flatnonzero(np.diff(ends // _ROWS_TOGETHER)) + 1)
    with torch.inference_mode():
        for chunk in chunks:
            batch = collate(prepared.log.schema, prepared.log.items, [examples[place] for place in chunk.tolist()])
            parts.append(network(batch.members, batch.candidates).numpy())
    logits: NDArray[np.float32] = np.concatenate(parts)
    return logits
