"""What the ranker says of candidates that it was not trained on: what another model's scores are blended with."""

# n = candidates of a request

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.data.events import EventTable
from models.ranking.examples import Example, replay_examples
from models.ranking.model import RankingModel, assembler_of
from models.ranking.training import RankingConfig, logits_of
from models.retrieval.training import train_retrieval
from models.train.loop import StageProgress, stage_of
from services.training.data import TrainingData


class Opinion(NamedTuple):
    """One request of a held-out member: its best candidates by the ranker, best first."""

    user_key: int
    now_ms: int
    keys: NDArray[np.int64]
    """int64[n]."""
    logits: NDArray[np.float32]
    """float32[n]: of the calibrated probability of the schema's positive action."""
    labels: NDArray[np.bool_]
    """bool[n]: whether that action followed."""


@dataclass(frozen=True, slots=True)
class Opinions:
    members: frozenset[int]
    """Members whose requests did not train the ranker."""
    requests: Sequence[Opinion]


def ranker_opinions(
    data: TrainingData,
    ranker: RankingModel,
    events: EventTable,
    config: RankingConfig,
    *,
    max_requests: int,
    num_candidates: int,
    progress: StageProgress | None = None,
) -> Opinions:
    """Replay the requests that the ranker's training held out, and let it rank their candidates.

    events, config: what the ranker was trained on and with; the same requests are then drawn and held out again. As in
    its training, retrieval scores come from towers that have not seen the requests' window, trained here.
    """
    earlier, _ = events.split(events.quantile_ms(1.0 - config.examples.window_share))
    towers = train_retrieval(
        data.schema, data.items, data.users, earlier, config.retrieval, stage_of(progress, "towers on the past")
    )
    assembler = assembler_of(data.schema, ranker.network)
    held_out = [
        example
        for example in replay_examples(
            data.schema, data.items, data.users, events, towers, assembler, config.examples, config.seed,
            stage_of(progress, "replay requests"),
        )
        if example.held_out
    ]  # fmt: skip
    members = frozenset(example.user_key for example in held_out)
    if len(held_out) > max_requests:
        chosen = np.random.default_rng(config.seed).choice(len(held_out), size=max_requests, replace=False)
        held_out = [held_out[place] for place in np.sort(chosen).tolist()]
    return Opinions(members, [_opinion(data, ranker, example, num_candidates) for example in held_out])


def _opinion(data: TrainingData, ranker: RankingModel, example: Example, num_candidates: int) -> Opinion:
    task = ranker.tasks.index(data.schema.positive)
    logits_nT = logits_of(ranker, data.items, [example])
    chances = ranker.calibration.probabilities(logits_nT, data.schema.implied_tasks())[:, task].astype(np.float64)
    best = np.argsort(-chances, kind="stable")[:num_candidates]
    chances = np.clip(chances[best], 1e-6, 1.0 - 1e-6)
    return Opinion(
        example.user_key, example.now_ms, example.keys[best], np.log(chances / (1.0 - chances)).astype(np.float32),
        example.labels[best, task],
    )  # fmt: skip
