"""The ranking network."""

# B = members, N = candidate rows, C = candidates of a member, D = embedding dimensions, L = history places
# I = distinct items
# F, M, P = numeric features of candidates, of members and in profiles, T = tasks, X = width of the joined input
# Y = width of the member side

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.data.attributes import encode_attributes, is_numeric
from models.data.items import ItemBatch
from models.data.schema import FeatureSchema
from models.data.state import UserState
from models.embeddings import HashEmbedding, Modulo, QuotientRemainder, RowMap
from models.history import HistoryBatch, pad_histories
from models.ranking.history_causal import CausalHistory
from models.ranking.history_pooled import PooledHistory
from models.ranking.history_transact import TransactHistory
from models.ranking.isotonic import IsotonicLayer
from models.ranking.towers import CrossKind, GroupedTowers, MixtureTowers, Tower, TowersKind, task_groups

HistoryKind = Literal["pooled", "causal", "transact"]
IdsKind = Literal["hash", "qr"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """The parts of LiRank, each switched by one field. Which defaults were measured to be best, and where one layer of
    "causal" history was better and is not the default, `docs/ranking.md` says."""

    dim: int = 16
    """Length of id and value embeddings."""
    ids: IdsKind = "qr"
    """"qr": a hash is the sum of quotient and remainder rows of its halves. "hash": one row, modulo the table."""
    quotient_rows: int = 1 << 16
    remainder_rows: int = 1 << 16
    """Rows of the quotient and remainder tables of either half; at 2^32 in product no two ids share all rows. A "hash"
    table has as many rows as the four together."""
    num_heads: int = 3
    """Pooled vectors of a history."""
    history: HistoryKind = "pooled"
    """What reads the history beside its pooled vectors, if anything: "causal" encodes it once per request for all
    candidates, "transact" once per candidate."""
    history_layers: int = 1
    history_places: int = 50
    """Newest entries that "causal" and "transact" read."""
    cross: CrossKind = "lowrank"
    cross_layers: int = 2
    cross_rank: int = 32
    hidden: tuple[int, ...] = (128, 64)
    """Widths of the MLP beside the cross layers."""
    gate_rank: int = 0
    """Rank of the gates on hidden layers; 0: none."""
    towers: TowersKind = "shared"
    """"shared": one tower for all tasks. "grouped": one per group. "mmoe": `experts` towers, mixed for each task."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Tasks of each group; empty: a task and those that it implies are one group."""
    experts: int = 3
    isotonic: bool = False
    """Whether logits pass an isotonic layer that is trained with the rest."""
    contexts: int = 1
    """Contexts that the isotonic layer tells apart (positions, devices); context 0 is the reference, and all there is
    in service."""
    popularity: bool = False
    """Whether scores carry each item's offset, learned from what happens after training."""
    dropout: float = 0.1
    """On embeddings' contribution and hidden layers, in training."""

    def __post_init__(self) -> None:
        for name, kinds in (
            ("ids", get_args(IdsKind)), ("history", get_args(HistoryKind)), ("cross", get_args(CrossKind)),
            ("towers", get_args(TowersKind)),
        ):  # fmt: skip
            if getattr(self, name) not in kinds:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {kinds}")
        for name, least in (
            ("dim", 1), ("num_heads", 1), ("history_layers", 1), ("history_places", 1), ("cross_layers", 1),
            ("cross_rank", 1), ("gate_rank", 0), ("experts", 1), ("contexts", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")


class Members(NamedTuple):
    """What the network reads of B members: tensors only."""

    numbers: Tensor
    """float32[B, M]."""
    profile_bags: tuple[Tensor, ...]
    """int64[B, W] per non-numeric member feature: value hashes, 0 in unused places."""
    profile_numbers: Tensor
    """float32[B, P] per numeric member feature; 0 where missing."""
    profile_missing: Tensor
    """bool[B, P]."""
    histories: HistoryBatch


class Candidates(NamedTuple):
    """What the network reads of N candidates of B members: tensors only."""

    numbers: Tensor
    """float32[N, F]."""
    item_keys: Tensor
    """int64[I]: the distinct items among them; an item that many members share is embedded once."""
    item_bags: tuple[Tensor, ...]
    """int64[I, W] per non-numeric item feature: value hashes, 0 in unused places."""
    item: Tensor
    """int64[N]: which of the I items."""
    member: Tensor
    """int64[N]: whose candidate it is."""
    grid: Tensor
    """int64[B, C]: the rows of each member, a row of 0 in unused places."""
    place: Tensor
    """int64[N]: where in the flat grid a row stands."""
    context: Tensor
    """int64[N]: what the isotonic layer is told; 0 is the reference."""


class MemberSide(NamedTuple):
    """What scoring needs of B members: encoded once, used by all their candidates."""

    features: Tensor
    """float32[B, Y]."""
    histories: tuple[tuple[Tensor, ...], ...]
    """What each reader of histories keeps."""


def encode_members(
    schema: FeatureSchema, users: Sequence[UserState], now_ms: Sequence[int], numbers: NDArray[np.float32]
) -> Members:
    """Encode B members with their numeric features f32[B, M]."""
    profiles = encode_attributes(schema.user, [user.profile for user in users])
    return Members(
        torch.from_numpy(numbers),
        tuple(torch.from_numpy(bag) for bag in profiles.bags),
        torch.from_numpy(profiles.numbers),
        torch.from_numpy(profiles.missing),
        pad_histories([user.history.last(schema.history_length) for user in users], now_ms, len(schema.actions)),
    )


def encode_candidates(
    numbers: NDArray[np.float32],
    items: ItemBatch,
    item: NDArray[np.int64],
    counts: Sequence[int],
    context: NDArray[np.int64] | None = None,
) -> Candidates:
    """Encode N candidates with their numeric features f32[N, F], those of a member after those of the one before.

    items: the distinct items.  item: int64[N], which of them each candidate is.  counts: candidates of each member.
    context: int64[N], where candidates were shown, as the network's config counts; None: the reference.

    Raises ValueError when the counts are not those of N candidates.
    """
    if sum(counts) != len(numbers):
        raise ValueError(f"counts add up to {sum(counts)}; expected the number of candidates, {len(numbers)}")
    size = np.asarray(counts, dtype=np.int64)
    first = np.cumsum(size) - size
    widest = int(size.max(initial=0))
    slots = np.arange(widest)
    grid = np.where(slots < size[:, None], first[:, None] + slots, 0)
    member = np.repeat(np.arange(len(size)), size)
    return Candidates(
        torch.from_numpy(numbers),
        torch.from_numpy(items.keys),
        tuple(torch.from_numpy(bag) for bag in items.bags),
        torch.from_numpy(item),
        torch.from_numpy(member),
        torch.from_numpy(grid),
        torch.from_numpy(member * widest + np.arange(len(member)) - first[member]),
        torch.zeros(len(numbers), dtype=torch.int64) if context is None else torch.from_numpy(context),
    )


class HistoryReader(Protocol):
    """Reads histories: once per member what does not depend on a candidate, then what a candidate finds there."""

    width: int

    def encode(self, histories: HistoryBatch) -> tuple[Tensor, ...]:
        """Return what to keep of B members."""
        ...

    def meet(
        self, kept: tuple[Tensor, ...], ids_ND: Tensor, member_N: Tensor, grid_BC: Tensor, place_N: Tensor
    ) -> Tensor:
        """Return float32[N, width].  ids_ND: the candidates' embeddings; the rest is as in `Candidates`."""
        ...


class RankingNetwork(nn.Module):
    """LiRank (arXiv 2402.06859, section 3): numerics through batch norm, hashed ids, an encoded history, cross layers
    beside a gated MLP, one linear head per task, an isotonic layer on the logits. `NetworkConfig` says which of them.

    Departure: whatever else reads the history, it also meets a candidate as inner products of a few pooled vectors
    with the candidate's embedding, at the cost of a row per candidate.
    """

    centers: Tensor
    scales: Tensor

    def __init__(
        self, schema: FeatureSchema, config: NetworkConfig, num_candidate: int, num_member: int, seed: int
    ) -> None:
        super().__init__()
        dim = config.dim
        num_item_numbers = sum(is_numeric(feature) for feature in schema.item)
        item_bags = len(schema.item) - num_item_numbers
        num_user_numbers = sum(is_numeric(feature) for feature in schema.user)
        user_bags = len(schema.user) - num_user_numbers
        self._history_places = config.history_places
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.table = HashEmbedding(dim, torch.Generator().manual_seed(seed), rows=_row_map(config))
            self.pooled = PooledHistory(self.table, len(schema.actions), config.num_heads)
            self.sequence = _sequence_reader(self.table, len(schema.actions), config)
            self.candidate_norm = nn.BatchNorm1d(num_candidate)
            self.member_norm = nn.BatchNorm1d(num_member + 2 * num_user_numbers)
            self.dropout = nn.Dropout(config.dropout)
            width = (
                num_candidate + num_member + 2 * num_user_numbers + dim * (1 + item_bags + user_bags)
                + self.pooled.width + (0 if self.sequence is None else self.sequence.width)
            )  # fmt: skip
            self.towers = _towers(schema, config, width)
            self.isotonic = IsotonicLayer(len(schema.tasks), config.contexts) if config.isotonic else None
        # Of the items' numbers; the feature assembler reads them, so they travel with the weights.
        self.register_buffer("centers", torch.zeros(num_item_numbers, dtype=torch.float64))
        self.register_buffer("scales", torch.ones(num_item_numbers, dtype=torch.float64))

    def forward(self, members: Members, candidates: Candidates) -> Tensor:
        """Return float32[N, T]: logits. The member side is computed once per member."""
        if not self.training:
            return self.score(self.encode_member(members), candidates)
        everything = [members.histories.keys, *members.profile_bags, candidates.item_keys, *candidates.item_bags]
        with self.table.hold(everything):
            return self.score(self.encode_member(members), candidates)

    def encode_member(self, members: Members) -> MemberSide:
        """Return what scoring needs of the members."""
        missing_BP = members.profile_missing.float()
        numbers_BM = torch.cat([members.numbers, members.profile_numbers, missing_BP], dim=1)
        features_BY = torch.cat(
            [
                self.member_norm(numbers_BM).clamp(-6.0, 6.0),
                *(self.dropout(self.table.bag(bag)) for bag in members.profile_bags),
            ],
            dim=1,
        )
        histories = [self.pooled.encode(members.histories)]
        if self.sequence is not None:
            histories.append(self.sequence.encode(members.histories.last(self._history_places)))
        return MemberSide(features_BY, tuple(histories))

    def score(self, side: MemberSide, candidates: Candidates) -> Tensor:
        """Return float32[N, T]: logits of candidates of the members encoded in `side`."""
        return self.read(self.hidden(side, candidates), candidates)

    def hidden(self, side: MemberSide, candidates: Candidates) -> Tensor:
        """Return float32[N, Z]: the last hidden layer, of which logits are linear but for the isotonic layer."""
        member_N = candidates.member
        item_IX = torch.cat(
            [self.table(candidates.item_keys), *(self.table.bag(bag) for bag in candidates.item_bags)], dim=1
        )
        item_NX = functional.embedding(candidates.item, self.dropout(item_IX))
        ids_ND = item_NX[:, : self.table.dim]
        readers: list[HistoryReader] = [self.pooled] if self.sequence is None else [self.pooled, self.sequence]
        x0_NX = torch.cat(
            [
                self.candidate_norm(candidates.numbers).clamp(-6.0, 6.0),
                functional.embedding(member_N, side.features),
                item_NX,
                *(
                    reader.meet(kept, ids_ND, member_N, candidates.grid, candidates.place)
                    for reader, kept in zip(readers, side.histories, strict=True)
                ),
            ],
            dim=1,
        )
        return self.towers.hidden(x0_NX)

    def read(self, hidden_NZ: Tensor, candidates: Candidates) -> Tensor:
        """Return float32[N, T]: the logits of a hidden layer."""
        logits_NT = self.towers.read(hidden_NZ)
        return logits_NT if self.isotonic is None else self.isotonic(logits_NT, candidates.context)


def _row_map(config: NetworkConfig) -> RowMap:
    separate = QuotientRemainder(config.quotient_rows, config.remainder_rows)
    return separate if config.ids == "qr" else Modulo(separate.num_rows)


def _sequence_reader(
    table: HashEmbedding, num_actions: int, config: NetworkConfig
) -> CausalHistory | TransactHistory | None:
    if config.history == "pooled":
        return None
    kind = CausalHistory if config.history == "causal" else TransactHistory
    return kind(table, num_actions, config.history_layers, config.dropout)


def _towers(schema: FeatureSchema, config: NetworkConfig, width: int) -> GroupedTowers | MixtureTowers:
    def tower() -> Tower:
        return Tower(
            width, config.cross, config.cross_layers, config.cross_rank, config.hidden, config.dropout, config.gate_rank
        )

    if config.towers == "mmoe":
        return MixtureTowers(width, [tower() for _ in range(config.experts)], len(schema.tasks))
    together = (tuple(range(len(schema.tasks))),)
    groups = together if config.towers == "shared" else task_groups(schema, config.groups)
    return GroupedTowers([tower() for _ in groups], groups)
