from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.data.events import EventTable
from models.data.schema import Action
from models.data.state import History, UserState
from models.evaluate import auc
from models.ranking.calibration import Calibration
from models.ranking.examples import replay_examples
from models.ranking.model import RankingModel, assembler_of, make_network
from models.ranking.network import (
    Candidates,
    HistoryKind,
    Members,
    NetworkConfig,
    RankingNetwork,
    encode_candidates,
    encode_members,
)
from models.ranking.training import train_ranking
from models.retrieval.model import RetrievalModel
from tests.models.conftest import RANKING
from tests.models.world import SCHEMA, World, make_world

SMALL = NetworkConfig(
    dim=4, num_heads=2, history="pooled", history_places=10, cross="lowrank", cross_rank=4, hidden=(16,), gate_rank=0,
    towers="shared", isotonic=False,
)  # fmt: skip
PARTS: dict[str, dict[str, Any]] = {
    "no cross": {"cross": "none"},
    "low-rank cross": {"cross": "lowrank"},
    "residual cross": {"cross": "residual"},
    "gates": {"gate_rank": 4},
    "large MLP": {"hidden": (64, 64, 32)},
    "causal history": {"history": "causal"},
    "transact history": {"history": "transact"},
    "grouped towers": {"towers": "grouped", "groups": (("like",), ("watch",))},
    "mixture of experts": {"towers": "mmoe", "experts": 2},
    "isotonic": {"isotonic": True, "contexts": 3},
    "hashed ids": {"ids": "hash"},
    "small tables": {"quotient_rows": 64, "remainder_rows": 64},
    "popularity": {"popularity": True},
}


def network_of(config: NetworkConfig, seed: int = 0) -> RankingNetwork:
    """A network no part of which is still the identity."""
    network = make_network(SCHEMA, config, seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.startswith("table"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def members_of(world: World, lengths: Sequence[int]) -> Members:
    keys = world.items.keys()
    users = [
        UserState(
            {"age": 20 + length, "country": "nl"},
            History(
                keys[:length], np.full(length, 3, np.uint32), np.ones(length, np.float32), np.arange(length) * 60_000
            ),
        )
        for length in lengths
    ]
    return encode_members(SCHEMA, users, [10**7] * len(users), np.ones((len(users), 4), np.float32))


def candidates_of(world: World, network: RankingNetwork, counts: Sequence[int], seed: int = 0) -> Candidates:
    random = np.random.default_rng(seed)
    width = len(assembler_of(SCHEMA, network).candidate_names)
    items = world.items.gather(world.items.keys()[:15])
    numbers = random.normal(size=(sum(counts), width)).astype(np.float32)
    return encode_candidates(numbers, items, random.integers(0, 15, sum(counts)), counts)


@pytest.mark.parametrize("part", PARTS)
def test_members_encoded_once_score_as_one_by_one(part: str, world: World) -> None:
    network = network_of(replace(SMALL, **PARTS[part]))
    lengths, counts = [12, 0, 3], [4, 0, 7]
    candidates = candidates_of(world, network, counts)
    with torch.inference_mode():
        together = network(members_of(world, lengths), candidates)
        assert together.shape == (11, 2)
        side = network.encode_member(members_of(world, lengths))
        torch.testing.assert_close(network.score(side, candidates), together)
        for row in range(11):
            member = int(candidates.member[row])
            alone = encode_candidates(
                candidates.numbers[[row]].numpy(), world.items.gather(world.items.keys()[:15]),
                candidates.item[[row]].numpy(), [1],
            )  # fmt: skip
            torch.testing.assert_close(
                network(members_of(world, [lengths[member]]), alone)[0], together[row], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("part", PARTS)
def test_every_part_learns(part: str) -> None:
    world = make_world(num_items=60, num_users=60)
    config = replace(
        RANKING, network=replace(SMALL, **PARTS[part]), num_epochs=6.0,
        examples=replace(RANKING.examples, max_requests=200), retrieval=replace(RANKING.retrieval, num_epochs=3.0),
    )  # fmt: skip
    model = train_ranking(SCHEMA, world.items, world.users, world.events, config)
    keys = world.items.keys()
    of_genre = np.array([world.genre[key] for key in keys.tolist()])
    found = []
    for user_key, taste in list(world.taste.items())[:20]:
        liked = keys[of_genre == taste][:6]
        history = History(liked, np.full(6, 3, np.uint32), np.full(6, 5, np.float32), np.arange(6) * 1000)
        others = np.setdiff1d(keys, liked)
        probabilities = model.score(
            UserState(world.users[user_key], history), world.items.gather(others), np.ones((len(others), 4)),
            np.full(len(others), np.nan, np.float32), 10**7, history_items=world.items.gather(liked),
        )  # fmt: skip
        found.append(auc(probabilities[:, 1], np.array([world.genre[key] for key in others.tolist()]) == taste))
    assert np.mean(found) > 0.6


@pytest.mark.parametrize("part", PARTS)
def test_a_folder_gives_back_every_part(part: str, world: World, tmp_path: Path) -> None:
    config = replace(SMALL, **PARTS[part])
    model = RankingModel(SCHEMA, config, network_of(config), Calibration.identity(SCHEMA.tasks))
    if model.popularity is not None:
        keys = world.items.keys()[:3]
        model.popularity.update(
            keys, np.ones((3, 2), np.bool_), np.full((3, 2), 0.1, np.float32), np.zeros(3, np.int64)
        )
    model.save(tmp_path)
    again = RankingModel.load(tmp_path, SCHEMA)
    assert again.config == config
    keys = world.items.keys()[:9]
    arguments = (UserState(), world.items.gather(keys), np.ones((9, 4)), np.zeros(9, np.float32), 5)
    none = world.items.gather(keys[:0])
    np.testing.assert_array_equal(
        model.score(*arguments, history_items=none), again.score(*arguments, history_items=none)
    )


@pytest.mark.parametrize("history", ["pooled", "causal", "transact"])
def test_only_the_newest_places_are_read_by_a_sequence_encoder(history: HistoryKind, world: World) -> None:
    network = network_of(replace(SMALL, history=history, history_places=4))
    candidates = candidates_of(world, network, [6])
    members = members_of(world, [12])
    changed = members.histories.keys.clone()
    changed[:, :8] = changed[:, 1:9].clone()
    with torch.inference_mode():
        kept = network.encode_member(members)
        other = network.encode_member(members._replace(histories=members.histories._replace(keys=changed)))
        # The pooled vectors read everything; the encoder beside them does not.
        assert not torch.equal(kept.histories[0][0], other.histories[0][0])
        assert all(torch.equal(a, b) for a, b in zip(kept.histories[-1][1:], other.histories[-1][1:], strict=True))
        assert network.score(kept, candidates).shape == (6, 2)


def test_a_causal_state_does_not_see_what_came_later(world: World) -> None:
    network = network_of(replace(SMALL, history="causal", history_layers=3))
    members = members_of(world, [10])
    changed = members.histories.keys.clone()
    changed[:, 6] = 12345
    with torch.inference_mode():
        kept = network.encode_member(members).histories[1]
        other = network.encode_member(members._replace(histories=members.histories._replace(keys=changed))).histories[1]
    for before, after in zip(kept[:-1], other[:-1], strict=True):
        torch.testing.assert_close(before[:, :, :6], after[:, :, :6])
        assert not torch.equal(before[:, :, 6:], after[:, :, 6:])


def test_the_isotonic_layer_keeps_the_order_and_service_is_the_reference_context(world: World) -> None:
    config = replace(SMALL, isotonic=True, contexts=4)
    network = network_of(config)
    candidates = candidates_of(world, network, [30])
    members = members_of(world, [5])
    with torch.inference_mode():
        side = network.encode_member(members)
        raw = network.towers.read(network.hidden(side, candidates))
        served = network.score(side, candidates)
        shown = network.score(side, candidates._replace(context=torch.full((30,), 3)))
    assert torch.equal(raw.argsort(dim=0), served.argsort(dim=0))
    assert torch.equal(raw.argsort(dim=0), shown.argsort(dim=0))
    assert not torch.equal(served, shown)


@pytest.mark.parametrize("part", ["no cross", "residual cross", "causal history", "transact history", "isotonic"])
def test_both_sides_can_be_exported(part: str, world: World) -> None:
    network = network_of(replace(SMALL, **PARTS[part]))

    class Side(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, members: Members, candidates: Candidates) -> torch.Tensor:
            return self.network.score(self.network.encode_member(members), candidates)

    members, candidates = members_of(world, [12]), candidates_of(world, network, [6])
    exported = torch.export.export(Side(), (members, candidates)).module()
    torch.testing.assert_close(exported(members, candidates), network(members, candidates))


def test_popularity_moves_a_score_by_its_offset(world: World) -> None:
    config = replace(SMALL, popularity=True)
    model = RankingModel(SCHEMA, config, network_of(config), Calibration.identity(SCHEMA.tasks))
    keys = world.items.keys()[:4]
    arguments = (UserState(), world.items.gather(keys), np.ones((4, 4)), np.zeros(4, np.float32), 0)
    none = world.items.gather(keys[:0])
    before = model.score(*arguments, history_items=none).astype(np.float64)
    assert model.popularity is not None
    rows = np.repeat(keys[:1], 40)
    model.popularity.update(rows, np.ones((40, 2), np.bool_), np.full((40, 2), 0.2, np.float32), np.zeros(40, np.int64))
    after = model.score(*arguments, history_items=none).astype(np.float64)
    moved = np.log(after / (1.0 - after)) - np.log(before / (1.0 - before))
    np.testing.assert_allclose(moved[0], model.popularity.offsets(keys[:1], 0)[0], rtol=1e-3)
    np.testing.assert_array_equal(after[1:], before[1:])


def test_dwells_are_labels_only_where_they_are_long(retrieval: RetrievalModel, world: World) -> None:
    schema = replace(SCHEMA, actions=(*SCHEMA.actions, Action("dwell", "dwell")), tasks=("watch", "like", "dwell"))
    rated = world.events
    random = np.random.default_rng(0)
    # Comedies are looked at ten times as long as the others.
    scale = np.where([world.genre[key] == 0 for key in rated.item_keys.tolist()], 10.0, 1.0)
    events = EventTable.from_columns(
        schema, user_keys=np.tile(rated.user_keys, 2), item_keys=np.tile(rated.item_keys, 2),
        types=["rating"] * len(rated) + ["dwell"] * len(rated),
        values=np.concatenate([rated.values, scale * random.lognormal(0.0, 1.0, len(rated))]),
        ts_ms=np.tile(rated.ts_ms, 2),
    )  # fmt: skip
    assembler = assembler_of(schema, make_network(schema, SMALL, 0))

    def rates(kind: str | None) -> list[float]:
        config = replace(
            RANKING.examples, long_dwell="dwell", dwell_type=kind, dwell=replace(RANKING.examples.dwell, min_count=5)
        )
        pairs = [
            (world.genre[key], label)
            for example in replay_examples(
                schema, world.items, world.users, events, retrieval, assembler, config, seed=0
            )
            for key, label in zip(example.keys.tolist(), example.labels, strict=True)
            if label[0]
        ]
        return [
            float(np.mean([label[2] for genre, label in pairs if (genre == 0) == comedy])) for comedy in (True, False)
        ]

    for rate in rates("genre"):
        assert rate == pytest.approx(0.1, abs=0.1)
    comedies, others = rates(None)
    assert comedies > others + 0.15
    with pytest.raises(ValueError, match="dwell_type is 'year'"):
        rates("year")


@pytest.mark.parametrize(
    ("field", "value"), [("cross", "wide"), ("history", "long"), ("towers", "one"), ("ids", "none"), ("gate_rank", -1)]
)
def test_unknown_parts_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value!r}"):
        NetworkConfig(**{field: value})


def test_counts_must_be_those_of_the_candidates(world: World) -> None:
    with pytest.raises(ValueError, match="counts add up to 5"):
        encode_candidates(np.zeros((4, 3), np.float32), world.items.gather(world.items.keys()[:4]), np.arange(4), [5])
