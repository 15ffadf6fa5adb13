from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from models.ranking.examples import ExampleConfig
from models.ranking.model import RankingModel
from models.ranking.network import NetworkConfig
from models.ranking.training import RankingConfig, train_ranking
from models.retrieval.model import RetrievalModel
from models.retrieval.towers import TowerConfig
from models.retrieval.training import RetrievalConfig, train_retrieval
from tests.models.world import SCHEMA, World, make_world

RETRIEVAL = RetrievalConfig(
    towers=TowerConfig(dim=8, num_heads=2, hidden=16), batch_size=64, num_epochs=6.0, easy_negatives=32, max_gap=4
)
RANKING = RankingConfig(
    network=NetworkConfig(dim=4, num_heads=2, cross_rank=4, hidden=(16,)),
    examples=ExampleConfig(
        window_share=0.6, stride=4, max_requests=300, per_source=15, max_negatives=20, max_outside=10,
        held_out_share=0.2,
    ),
    retrieval=RETRIEVAL,
    batch_requests=16,
    num_epochs=5.0,
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


@pytest.fixture(scope="session")
def split_ms(world: World) -> int:
    return world.events.quantile_ms(0.8)


@pytest.fixture(scope="session")
def retrieval(world: World, split_ms: int) -> RetrievalModel:
    return train_retrieval(SCHEMA, world.items, world.users, world.events.between(None, split_ms), RETRIEVAL)


@pytest.fixture(scope="session")
def ranking(world: World, split_ms: int) -> RankingModel:
    return train_ranking(SCHEMA, world.items, world.users, world.events.between(None, split_ms), RANKING)
