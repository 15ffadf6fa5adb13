"""Training of the ranker."""

# B = requests of a batch, N = candidate rows of a batch, T = tasks

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.data.events import EventTable
from models.data.items import ItemTable
from models.data.schema import FeatureSchema
from models.ranking.blocks import segment_log_softmax
from models.ranking.calibration import Calibration, Isotonic
from models.ranking.examples import Example, ExampleConfig, replay_examples
from models.ranking.model import RankingModel, assembler_of, make_network
from models.ranking.network import Candidates, Members, NetworkConfig, RankingNetwork, encode_members
from models.retrieval.training import RetrievalConfig, train_retrieval
from models.train.loop import LoopConfig, Progress, StageProgress, run, stage_of


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
    learning_rate: float = 2e-3
    table_learning_rate: float = 0.02
    weight_decay: float = 1e-3
    warmup_share: float = 0.3
    seed: int = 0


class _Batch(NamedTuple):
    members: Members
    candidates: Candidates
    labels: Tensor
    """float32[N, T]."""
    log_rate: Tensor
    """float32[N]."""


def train_ranking(
    schema: FeatureSchema,
    items: ItemTable,
    users: Mapping[int, Mapping[str, object]],
    events: EventTable,
    config: RankingConfig | None = None,
    progress: StageProgress | None = None,
) -> RankingModel:
    """Train and calibrate a ranker on replayed requests.

    Retrieval scores are features, and towers that have seen a member's next action score it too well. So the towers
    of `config.retrieval` are trained here on the events before the window of the requests, and score those requests;
    in service the scores come from towers trained on everything, about actions they have not seen either.

    Raises ValueError when no request of the window can be learned from.
    """
    config = config or RankingConfig()
    network = make_network(schema, config.network, config.seed)
    _fit_numbers(network, items)
    earlier, _ = events.split(events.quantile_ms(1.0 - config.examples.window_share))
    towers = train_retrieval(schema, items, users, earlier, config.retrieval, stage_of(progress, "towers on the past"))
    examples = list(
        replay_examples(
            schema, items, users, events, towers, assembler_of(schema, network), config.examples, config.seed,
            stage_of(progress, "replay requests"),
        )
    )  # fmt: skip
    training = [example for example in examples if not example.held_out]
    if not training:
        raise ValueError(f"no request among {len(events)} events has a candidate that was acted on")
    _fit(schema, items, network, training, config, stage_of(progress, "train ranking"))
    model = RankingModel(schema, config.network, network, Calibration.identity(schema.tasks))
    model.calibration = calibrate(model, items, [example for example in examples if example.held_out])
    return model


def calibrate(model: RankingModel, items: ItemTable, held_out: Sequence[Example]) -> Calibration:
    """Fit one isotonic map per task on requests that did not train the model; the identity without any."""
    if not held_out:
        return Calibration.identity(model.tasks)
    logits_NT = np.concatenate(
        [_logits(model, items, held_out[start : start + 32]) for start in range(0, len(held_out), 32)]
    )
    labels_NT = np.concatenate([example.labels for example in held_out])
    maps = [Isotonic.fit(logits_NT[:, task], labels_NT[:, task]) for task in range(len(model.tasks))]
    return Calibration(model.tasks, tuple(maps))


def _fit(
    schema: FeatureSchema,
    items: ItemTable,
    network: RankingNetwork,
    training: Sequence[Example],
    config: RankingConfig,
    progress: Progress | None,
) -> None:
    random = np.random.default_rng(config.seed)
    positive_task = schema.tasks.index(schema.positive) if schema.positive in schema.tasks else 0
    order: list[int] = []

    def next_batch(step: int) -> _Batch:
        while len(order) < config.batch_requests:
            order.extend(random.permutation(len(training)).tolist())
        chosen = [training[order.pop(0)] for _ in range(config.batch_requests)]
        return _collate(schema, items, chosen)

    def losses(batch: _Batch) -> Mapping[str, Tensor]:
        logits_NT = network(batch.members, batch.candidates)
        # The sample holds every candidate with a label and a share e^log_rate of the others, which raises its
        # odds by e^-log_rate; adding that here leaves the network the logits of all candidates.
        sampled_NT = logits_NT - batch.log_rate[:, None]
        terms = {
            task: functional.binary_cross_entropy_with_logits(sampled_NT[:, column], batch.labels[:, column])
            for column, task in enumerate(schema.tasks)
        }
        if config.listwise_weight:
            terms["listwise"] = config.listwise_weight * _listwise(
                logits_NT[:, positive_task] - batch.log_rate * (1.0 - batch.labels.amax(dim=1)),
                batch.labels[:, positive_task],
                batch.candidates.member,
            )
        return terms

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # of dropout
        loop = LoopConfig(
            num_steps=max(1, round(config.num_epochs * len(training) / config.batch_requests)),
            learning_rate=config.learning_rate,
            table_learning_rate=config.table_learning_rate,
            weight_decay=config.weight_decay,
            warmup_share=config.warmup_share,
        )
        run(network, loop, next_batch, losses, progress)


def _listwise(logits_N: Tensor, labels_N: Tensor, request_N: Tensor) -> Tensor:
    """Return the mean over requests of the mean log loss of their positives in a softmax over the candidates."""
    num_requests = int(request_N[-1]) + 1
    log_shares_N = segment_log_softmax(logits_N, request_N, num_requests)
    positives = logits_N.new_zeros(num_requests).index_add(0, request_N, labels_N)
    per_request = logits_N.new_zeros(num_requests).index_add(0, request_N, labels_N * log_shares_N)
    some = positives > 0
    return -(per_request / positives.clamp(min=1.0)).sum() / some.sum().clamp(min=1)


def _collate(schema: FeatureSchema, items: ItemTable, examples: Sequence[Example]) -> _Batch:
    counts = [len(example.keys) for example in examples]
    member = np.repeat(np.arange(len(examples)), counts)
    members = encode_members(
        schema,
        [example.user for example in examples],
        [example.now_ms for example in examples],
        np.stack([example.features.member for example in examples]),
    )
    distinct, item = np.unique(np.concatenate([example.keys for example in examples]), return_inverse=True)
    candidates = Candidates(
        torch.from_numpy(np.concatenate([example.features.candidates for example in examples])),
        items.gather(distinct),
        torch.from_numpy(item),
        torch.from_numpy(member),
    )
    labels = np.concatenate([example.labels for example in examples]).astype(np.float32)
    log_rate = np.concatenate([example.log_rate for example in examples])
    return _Batch(members, candidates, torch.from_numpy(labels), torch.from_numpy(log_rate))


def _logits(model: RankingModel, items: ItemTable, examples: Sequence[Example]) -> NDArray[np.float32]:
    batch = _collate(model.schema, items, examples)
    with torch.inference_mode():
        logits: NDArray[np.float32] = model.network(batch.members, batch.candidates).numpy()
    return logits


def _fit_numbers(network: RankingNetwork, items: ItemTable) -> None:
    catalogue = items.gather(items.keys())
    for column in range(catalogue.numbers.shape[1]):
        present = catalogue.numbers[~catalogue.missing[:, column], column].astype(np.float64)
        if len(present):
            network.centers[column] = float(present.mean())
            network.scales[column] = max(float(present.std()), 1e-6)
