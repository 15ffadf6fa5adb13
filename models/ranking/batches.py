"""Batches of training requests, and the loss of one."""

# B = requests of a batch, N = candidate rows of a batch, T = tasks

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.data.items import ItemTable
from models.data.schema import FeatureSchema
from models.ranking.blocks import segment_log_softmax
from models.ranking.examples import Example
from models.ranking.network import Candidates, Members, RankingNetwork, encode_candidates, encode_members

_SMOOTHING = 1e-3
"""Weight of the roughness of the isotonic layer's maps."""


class RequestBatch(NamedTuple):
    members: Members
    candidates: Candidates
    labels: Tensor
    """float32[N, T]."""
    log_rate: Tensor
    """float32[N]."""
    num_requests: int


def collate(schema: FeatureSchema, items: ItemTable, examples: Sequence[Example]) -> RequestBatch:
    """Join requests into one batch; an item that several of them rank is encoded once."""
    counts = [len(example.keys) for example in examples]
    members = encode_members(
        schema,
        [example.user for example in examples],
        [example.now_ms for example in examples],
        np.stack([example.features.member for example in examples]),
    )
    distinct, item = np.unique(np.concatenate([example.keys for example in examples]), return_inverse=True)
    candidates = encode_candidates(
        np.concatenate([example.features.candidates for example in examples]), items.gather(distinct), item, counts
    )
    labels = np.concatenate([example.labels for example in examples]).astype(np.float32)
    log_rate = np.concatenate([example.log_rate for example in examples])
    return RequestBatch(members, candidates, torch.from_numpy(labels), torch.from_numpy(log_rate), len(examples))


class RequestSampler:
    """Batches that pass over the requests again and again, each pass in an order of its own.

    A batch is a function of the seed and its index. A step's `batch_requests` are cut into `micro_batches`, as even as
    they go.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        items: ItemTable,
        examples: Sequence[Example],
        *,
        batch_requests: int,
        micro_batches: int,
        seed: int,
    ) -> None:
        if not 1 <= micro_batches <= batch_requests:
            raise ValueError(f"micro_batches is {micro_batches}; expected 1 to batch_requests, {batch_requests}")
        self._schema, self._items, self._examples = schema, items, examples
        self._batch_requests, self._micro_batches, self._seed = batch_requests, micro_batches, seed

    def __call__(self, index: int) -> RequestBatch:
        """Return micro-batch `index % micro_batches` of step `index // micro_batches`."""
        step, part = divmod(index, self._micro_batches)
        first = step * self._batch_requests
        chosen = np.array_split(np.arange(first, first + self._batch_requests), self._micro_batches)[part]
        orders = {epoch: self._order(epoch) for epoch in set((chosen // len(self._examples)).tolist())}
        rows = [orders[place // len(self._examples)][place % len(self._examples)] for place in chosen.tolist()]
        return collate(self._schema, self._items, [self._examples[row] for row in rows])

    def _order(self, epoch: int) -> list[int]:
        order: list[int] = np.random.default_rng((self._seed, epoch)).permutation(len(self._examples)).tolist()
        return order


class RankingLoss:
    """Cross entropy of each task over the candidates, and a softmax over each request's candidates beside them."""

    def __init__(self, schema: FeatureSchema, listwise_weight: float) -> None:
        self._tasks = schema.tasks
        self._positive = schema.tasks.index(schema.positive) if schema.positive in schema.tasks else 0
        self._listwise_weight = listwise_weight

    def __call__(self, network: RankingNetwork, batch: RequestBatch) -> dict[str, Tensor]:
        """Return the loss's terms by name."""
        logits_NT = network(batch.members, batch.candidates).float()
        # The sample holds every candidate with a label and a share e^log_rate of the others, which raises its
        # odds by e^-log_rate; adding that here leaves the network the logits of all candidates.
        sampled_NT = logits_NT - batch.log_rate[:, None]
        terms = {
            task: functional.binary_cross_entropy_with_logits(sampled_NT[:, column], batch.labels[:, column])
            for column, task in enumerate(self._tasks)
        }
        if self._listwise_weight:
            terms["listwise"] = self._listwise_weight * _listwise(
                logits_NT[:, self._positive] - batch.log_rate * (1.0 - batch.labels.amax(dim=1)),
                batch.labels[:, self._positive],
                batch.candidates.member,
            )
        if network.isotonic is not None:
            terms["roughness"] = _SMOOTHING * network.isotonic.roughness()
        return terms

    def total(self, network: RankingNetwork, batch: RequestBatch) -> Tensor:
        """Return the sum of the terms."""
        return torch.stack(list(self(network, batch).values())).sum()


def _listwise(logits_N: Tensor, labels_N: Tensor, request_N: Tensor) -> Tensor:
    """Return the mean over requests of the mean log loss of their positives in a softmax over the candidates."""
    num_requests = int(request_N[-1]) + 1
    log_shares_N = segment_log_softmax(logits_N, request_N, num_requests)
    positives = logits_N.new_zeros(num_requests).index_add(0, request_N, labels_N)
    per_request = logits_N.new_zeros(num_requests).index_add(0, request_N, labels_N * log_shares_N)
    some = positives > 0
    return -(per_request / positives.clamp(min=1.0)).sum() / some.sum().clamp(min=1)
