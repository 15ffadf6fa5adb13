"""The `[ranking]` part of a description: what the ranker predicts, how slates are ordered, and how it is trained.

Every part of the ranker and of its training is one key; what is left out is as the models' own configurations have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from models.ranking.examples import ExampleConfig
from models.ranking.network import HistoryKind, IdsKind, NetworkConfig
from models.ranking.towers import CrossKind, TowersKind
from models.ranking.training import RankingConfig
from services.datasets.descriptions import Names, Problem, Section, listed, nearest

_NETWORK, _TRAINING, _EXAMPLES = NetworkConfig(), RankingConfig(), ExampleConfig()

Rate = Annotated[float, Field(gt=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Whole = Annotated[int, Field(ge=1)]
Widths = Annotated[tuple[Whole, ...], Field(strict=False)]
Groups = Annotated[tuple[Names, ...], Field(strict=False)]


class ExploreSection(Section):
    """Orders that are drawn, so that the log tells what another order would have earned (docs/exploration.md)."""

    kind: Literal["thompson", "epsilon_greedy"]
    scale: float = Field(default=0.3, ge=0.0, le=10.0)
    """Thompson sampling: how many standard deviations of the ranker's uncertainty a draw is made of."""
    epsilon: float = Field(default=0.02, ge=0.0, le=1.0)
    """Epsilon-greedy: the chance of a place to be drawn evenly from all candidates."""
    draws: int = Field(default=64, ge=1, le=1024)
    """Pages drawn to estimate the propensities in the log."""


class NetworkSection(Section):
    """The ranker's parts: `models.ranking.network.NetworkConfig` says what each is."""

    dim: Whole = _NETWORK.dim
    ids: IdsKind = _NETWORK.ids
    quotient_rows: Whole = _NETWORK.quotient_rows
    remainder_rows: Whole = _NETWORK.remainder_rows
    num_heads: Whole = _NETWORK.num_heads
    history: HistoryKind = _NETWORK.history
    history_layers: Whole = _NETWORK.history_layers
    history_places: Whole = _NETWORK.history_places
    cross: CrossKind = _NETWORK.cross
    cross_layers: Whole = _NETWORK.cross_layers
    cross_rank: Whole = _NETWORK.cross_rank
    hidden: Widths = _NETWORK.hidden
    gate_rank: int = Field(default=_NETWORK.gate_rank, ge=0)
    towers: TowersKind = _NETWORK.towers
    groups: Groups = _NETWORK.groups
    experts: Whole = _NETWORK.experts
    isotonic: bool = _NETWORK.isotonic
    popularity: bool = _NETWORK.popularity
    dropout: Share = _NETWORK.dropout


class ExamplesSection(Section):
    """The requests it is trained on: `models.ranking.examples.ExampleConfig` says what each is."""

    window_share: float = Field(default=_EXAMPLES.window_share, gt=0.0, le=1.0)
    stride: Whole = _EXAMPLES.stride
    max_requests: Whole = _EXAMPLES.max_requests
    per_source: Whole = _EXAMPLES.per_source
    max_negatives: Whole = _EXAMPLES.max_negatives
    max_outside: Whole = _EXAMPLES.max_outside
    long_dwell: str | None = _EXAMPLES.long_dwell
    dwell_type: str | None = _EXAMPLES.dwell_type


class TrainingSection(Section):
    """How it is trained: `models.ranking.training.RankingConfig` says what each is."""

    batch_requests: Whole = _TRAINING.batch_requests
    num_epochs: float = Field(default=_TRAINING.num_epochs, gt=0.0, le=1000.0)
    listwise_weight: float = Field(default=_TRAINING.listwise_weight, ge=0.0, le=1000.0)
    optimizer: Literal["adamw", "sgd"] = _TRAINING.optimizer
    learning_rate: Rate = _TRAINING.learning_rate
    table_learning_rate: Rate = _TRAINING.table_learning_rate
    weight_decay: Share = _TRAINING.weight_decay
    warmup_share: float = Field(default=_TRAINING.warmup_share, ge=0.0, le=1.0)
    clip_norm: float = Field(default=_TRAINING.clip_norm, gt=0.0)
    micro_batches: Whole = _TRAINING.micro_batches
    sam_radius: float = Field(default=_TRAINING.sam_radius, ge=0.0, le=10.0)
    sam_tables: bool = _TRAINING.sam_tables
    bf16: bool = _TRAINING.bf16
    prefetch: int = Field(default=_TRAINING.prefetch, ge=0)
    fisher_requests: int = Field(default=_TRAINING.fisher_requests, ge=0)
    examples: ExamplesSection = ExamplesSection()


class RankingSection(Section):
    tasks: Names
    """The actions whose probabilities the ranker predicts."""
    value: dict[str, float] | Annotated[str, Field(min_length=1)]
    """What a slate is ordered by: the weight of each task in a sum, or an expression like `like + 0.2 * watch`."""
    history_length: int = Field(default=100, ge=1, le=10_000)
    explore: ExploreSection | None = None
    """How orders explore; absent: they do not."""
    network: NetworkSection = NetworkSection()
    training: TrainingSection = TrainingSection()

    def config(self, seed: int = 0) -> RankingConfig:
        """Return how a ranker of this dataset is built and trained from nothing."""
        training = self.training.model_dump(exclude={"examples"})
        return replace(
            RankingConfig(seed=seed),
            network=NetworkConfig(**self.network.model_dump()),
            examples=ExampleConfig(**self.training.examples.model_dump()),
            **training,
        )


def ranking_problems(ranking: RankingSection, keywords: Sequence[str]) -> Iterator[Problem]:
    """Yield what names nothing in the network's and the training's keys.

    keywords: item attributes of keywords that models learn from.
    """
    groups, seen = ranking.network.groups, set[str]()
    if not all(groups):
        yield Problem("ranking.network.groups", groups, "expected at least one task in every group")
    for name in (name for group in groups for name in group):
        if name not in ranking.tasks or name in seen:
            expected = f"expected each of {listed(ranking.tasks)} in one group{nearest(name, ranking.tasks)}"
            yield Problem("ranking.network.groups", name, expected)
        seen.add(name)
    if groups and (left := [task for task in ranking.tasks if task not in seen]):
        yield Problem("ranking.network.groups", groups, f"expected every task in a group; {listed(left)} in none")
    if groups and ranking.network.towers != "grouped":
        yield Problem("ranking.network.groups", groups, 'expected none unless towers is "grouped"')
    examples = ranking.training.examples
    yield from _one_of("long_dwell", examples.long_dwell, ranking.tasks)
    yield from _one_of("dwell_type", examples.dwell_type, keywords)
    if examples.dwell_type is not None and examples.long_dwell is None:
        yield Problem("ranking.training.examples.dwell_type", examples.dwell_type, "expected none without long_dwell")


def _one_of(name: str, value: str | None, known: Iterable[str]) -> Iterator[Problem]:
    known = list(known)
    if value is not None and value not in known:
        key = f"ranking.training.examples.{name}"
        yield Problem(key, value, f"expected one of {listed(known)}{nearest(value, known)}")
