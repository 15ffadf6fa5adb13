"""LiRank alone: the platform's ranker, trained on the same ratings before the same instant."""

# n = ratings

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.ranking.network import NetworkConfig
from models.ranking.training import RankingConfig
from tests.bench.ctr.log import PreparedLog, prepare
from tests.bench.ctr.movielens import movielens_log
from tests.bench.ctr.ours import fit_ours
from tests.bench.llmquality.movielens import Films

BATCH_ROWS = 800
"""Candidates of a batch, as in the benchmark of rankers."""


def ranker_logits(films: Films, folder: Path, say: Callable[[str], None]) -> NDArray[np.float64]:
    """Return float64[n]: the logit of "like" of every rating since the validation window began, nan before it.

    The network, features and settings with which `tests.bench.ranking` compares it with LightGBM and DCNv2, trained on
    the ratings as impressions: the question is the decoder's, whether a film that was rated was liked.
    """
    log = movielens_log(folder)
    later_ms = (films.test_ms + int(films.exposures.ts_ms[-1])) // 2
    prepared = prepare(replace(log, splits_ms=(films.validation_ms, films.test_ms, later_ms)), say)
    found, reached = fit_ours(prepared, _config(prepared))
    say(f"ranker trained, validation AUC {reached:.4f}")
    by_rating: dict[tuple[int, int, int], float] = {}
    for split, logits in found.items():
        rows = zip(
            prepared.user_keys[split].tolist(), prepared.keys(split).tolist(), _times(prepared, split), logits[:, 0],
            strict=True,
        )  # fmt: skip
        by_rating |= {(user, item, ts_ms): float(logit) for user, item, ts_ms, logit in rows}
    asked = zip(
        films.exposures.user_keys.tolist(), films.exposures.item_keys.tolist(), films.exposures.ts_ms.tolist(),
        strict=True,
    )  # fmt: skip
    return np.array([by_rating.get(rating, np.nan) for rating in asked])


def _config(prepared: PreparedLog) -> RankingConfig:
    training = prepared.examples["train"]
    rows = sum(len(example.keys) for example in training) / len(training)
    return RankingConfig(
        network=replace(NetworkConfig(), history="causal"),
        listwise_weight=0.0,
        batch_requests=max(8, round(BATCH_ROWS / rows)),
        table_learning_rate=0.001,
        fisher_requests=0,
    )


def _times(prepared: PreparedLog, split: str) -> list[int]:
    return [example.now_ms for example in prepared.examples[split] for _ in example.keys]
