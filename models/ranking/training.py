"""Training of the ranker from nothing; `models/ranking/incremental.py` trains on from an earlier one."""

# N = candidate rows of a batch, T = tasks

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from models.data.events import EventTable
from models.data.items import ItemTable
from models.data.schema import FeatureSchema
from models.ranking.batches import RankingLoss, RequestBatch, RequestSampler, collate
from models.ranking.calibration import Calibration
from models.ranking.evidence import posterior_of
from models.ranking.examples import Example, ExampleConfig, replay_examples
from models.ranking.fisher import Fisher, fisher_of
from models.ranking.model import RankingModel, assembler_of, make_network
from models.ranking.network import NetworkConfig, RankingNetwork
from models.retrieval.training import RetrievalConfig, train_retrieval
from models.train.loop import LoopConfig, LoopReport, Progress, StageProgress, run, stage_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingConfig:
    network: NetworkConfig = field(default_factory=NetworkConfig)
    examples: ExampleConfig = field(default_factory=ExampleConfig)
    retrieval: RetrievalConfig = field(default_factory=lambda: RetrievalConfig(num_epochs=4.0))
    """Of the towers that score the training requests: trained on the events before the ranker's window."""
    batch_requests: int = 64
    num_epochs: float = 2.0
    listwise_weight: float = 3.0
    """Weight of the softmax over a request's candidates beside the tasks' cross entropies."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 2e-3
    table_learning_rate: float = 0.02
    weight_decay: float = 1e-3
    warmup_share: float = 0.3
    clip_norm: float = 1.0
    micro_batches: int = 1
    """Parts that a batch is computed in."""
    sam_radius: float = 0.0
    """Above 0: mSAM over the micro-batches (models/train/msam.py)."""
    sam_tables: bool = False
    bf16: bool = False
    prefetch: int = 0
    """Batches made ahead on a thread."""
    fisher_requests: int = 256
    """Training requests, evenly drawn, that the Fisher information is the mean over; 0 leaves it out, and then no
    later model can be trained on from this one."""
    seed: int = 0


class TrainedRanking(NamedTuple):
    model: RankingModel
    fisher: Fisher | None
    report: LoopReport
    seconds: Mapping[str, float]
    """By stage."""
    num_held_out: int
    """Requests that calibrated."""


def train_ranking(
    schema: FeatureSchema,
    items: ItemTable,
    users: Mapping[int, Mapping[str, object]],
    events: EventTable,
    config: RankingConfig | None = None,
    progress: StageProgress | None = None,
) -> RankingModel:
    """Train and calibrate a ranker on replayed requests; see `train_cold`."""
    return train_cold(schema, items, users, events, config, progress).model


def train_cold(
    schema: FeatureSchema,
    items: ItemTable,
    users: Mapping[int, Mapping[str, object]],
    events: EventTable,
    config: RankingConfig | None = None,
    progress: StageProgress | None = None,
    checkpoint: Path | None = None,
) -> TrainedRanking:
    """Train and calibrate a ranker on replayed requests.

    Retrieval scores are features, and towers that have seen a member's next action score it too well. So the towers
    of `config.retrieval` are trained here on the events before the window of the requests, and score those requests;
    in service the scores come from towers trained on everything, about actions they have not seen either.

    checkpoint: folder in which a run that is cut short is taken up again; the requests are replayed anew, to the same.

    Raises ValueError when no request of the window can be learned from.
    """
    config = config or RankingConfig()
    timer = StageTimer()
    network = make_network(schema, config.network, config.seed)
    _fit_numbers(network, items)
    earlier, _ = events.split(events.quantile_ms(1.0 - config.examples.window_share))
    towers = train_retrieval(
        schema, items, users, earlier, config.retrieval, stage_of(progress, "towers on the past"),
        None if checkpoint is None else checkpoint / "towers",
    )  # fmt: skip
    timer.done("towers")
    examples = list(
        replay_examples(
            schema, items, users, events, towers, assembler_of(schema, network), config.examples, config.seed,
            stage_of(progress, "replay requests"),
        )
    )  # fmt: skip
    timer.done("replay")
    training = [example for example in examples if not example.held_out]
    if not training:
        raise ValueError(f"no request among {len(events)} events has a candidate that was acted on")
    report = fit(schema, items, network, training, config, stage_of(progress, "train ranking"), checkpoint=checkpoint)
    timer.done("optimise")
    model = RankingModel(schema, config.network, network, Calibration.identity(schema.tasks))
    held_out = [example for example in examples if example.held_out]
    model.calibration = calibrate(model, items, held_out)
    timer.done("calibrate")
    model.exploration = posterior_of(model, items, held_out)
    timer.done("posterior")
    fisher = fisher_on(schema, items, network, training, config)
    timer.done("fisher")
    return TrainedRanking(model, fisher, report, timer.seconds, len(held_out))


def fit(
    schema: FeatureSchema,
    items: ItemTable,
    network: RankingNetwork,
    training: Sequence[Example],
    config: RankingConfig,
    progress: Progress | None = None,
    *,
    after_step: Callable[[Sequence[Optimizer]], None] | None = None,
    checkpoint: Path | None = None,
    identity: str = "",
) -> LoopReport:
    """Train the network in place on the requests. The last three arguments are those of `models.train.loop.run`."""
    sampler = RequestSampler(
        schema, items, training,
        batch_requests=config.batch_requests, micro_batches=config.micro_batches, seed=config.seed,
    )  # fmt: skip
    loss = RankingLoss(schema, config.listwise_weight)

    def losses(batch: RequestBatch) -> Mapping[str, Tensor]:
        return loss(network, batch)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # of dropout
        loop = LoopConfig(
            num_steps=max(1, round(config.num_epochs * len(training) / config.batch_requests)),
            optimizer=config.optimizer,
            learning_rate=config.learning_rate,
            table_learning_rate=config.table_learning_rate,
            weight_decay=config.weight_decay,
            warmup_share=config.warmup_share,
            clip_norm=config.clip_norm,
            micro_batches=config.micro_batches,
            sam_radius=config.sam_radius,
            sam_tables=config.sam_tables,
            bf16=config.bf16,
            prefetch=config.prefetch,
        )
        return run(
            network, loop, sampler, losses, progress,
            size=lambda batch: float(batch.num_requests), after_step=after_step, checkpoint=checkpoint,
            identity=f"{identity} {replace(config, prefetch=0)} {_digest(training)}",
        )  # fmt: skip


def fisher_on(
    schema: FeatureSchema,
    items: ItemTable,
    network: RankingNetwork,
    training: Sequence[Example],
    config: RankingConfig,
) -> Fisher | None:
    """Return the Fisher information of the training loss over some of the requests; None where the config asks none."""
    if not config.fisher_requests:
        return None
    loss = RankingLoss(schema, config.listwise_weight)
    random = np.random.default_rng(config.seed)
    chosen = random.permutation(len(training))[: config.fisher_requests].tolist()
    batches = (collate(schema, items, [training[row]]) for row in chosen)
    return fisher_of(network, (partial(loss.total, network, batch) for batch in batches))


def calibrate(model: RankingModel, items: ItemTable, held_out: Sequence[Example]) -> Calibration:
    """Fit one isotonic map per task on requests that did not train the model; the identity without any."""
    if not held_out:
        return Calibration.identity(model.tasks)
    logits_NT = logits_of(model, items, held_out)
    labels_NT = np.concatenate([example.labels for example in held_out])
    groups_N = np.repeat([example.user_key for example in held_out], [len(example.keys) for example in held_out])
    return Calibration.fit(model.tasks, logits_NT, labels_NT, groups_N)


def logits_of(model: RankingModel, items: ItemTable, examples: Sequence[Example]) -> NDArray[np.float32]:
    """Return float32[N, T]: the logits of the examples' candidates, one example after another."""
    parts = []
    for start in range(0, len(examples), 32):
        batch = collate(model.schema, items, examples[start : start + 32])
        with torch.inference_mode():
            parts.append(model.network(batch.members, batch.candidates).numpy())
    logits: NDArray[np.float32] = np.concatenate(parts)
    return logits


class StageTimer:
    """Seconds of one stage after another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def done(self, name: str) -> None:
        """Count the time since the last call as the stage's."""
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now


def _fit_numbers(network: RankingNetwork, items: ItemTable) -> None:
    catalogue = items.gather(items.keys())
    for column in range(catalogue.numbers.shape[1]):
        present = catalogue.numbers[~catalogue.missing[:, column], column].astype(np.float64)
        if len(present):
            network.centers[column] = float(present.mean())
            network.scales[column] = max(float(present.std()), 1e-6)


def _digest(examples: Sequence[Example]) -> str:
    """Return what changes with the requests, their candidates and their labels."""
    digest = hashlib.blake2b(digest_size=8)
    for example in examples:
        digest.update(example.now_ms.to_bytes(8, "little", signed=True))
        digest.update(example.keys.tobytes() + example.labels.tobytes() + example.features.candidates.tobytes())
    return digest.hexdigest()
