from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from services.platform import Platform
from tests.services.serving.world import World, make_world, running


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def served(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Platform, httpx.Client]]:
    """One platform per module, all parts in one process."""
    with running(world.settings(tmp_path_factory.mktemp("served") / "data")) as both:
        yield both


@pytest.fixture
def platform(served: tuple[Platform, httpx.Client]) -> Platform:
    return served[0]


@pytest.fixture
def client(served: tuple[Platform, httpx.Client]) -> httpx.Client:
    return served[1]
