from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.embeddings import HashEmbedding
from models.ranking.fisher import fisher_of, load_fisher, save_fisher
from models.ranking.incremental import Anchor, IncrementalConfig, train_incremental
from models.ranking.model import RankingModel
from models.ranking.training import RankingConfig, TrainedRanking, train_cold
from models.retrieval.model import RetrievalModel
from models.train.loop import LoopConfig, run
from tests.models.conftest import RANKING
from tests.models.world import SCHEMA, World

CONFIG = replace(RANKING, num_epochs=2.0, fisher_requests=40)


def make_quadratic() -> tuple[Tensor, Tensor]:
    """0.5 (w - best)' A (w - best) with A diagonal."""
    return torch.tensor([4.0, 1.0, 0.5]), torch.tensor([1.0, -2.0, 3.0])


def settle(anchor: Anchor, weight: nn.Parameter, optimizer: str, num_steps: int = 3000) -> Tensor:
    curvature, best = make_quadratic()
    module = nn.ParameterDict({"w": weight})
    anchor.start()
    run(
        module,
        LoopConfig(
            num_steps=num_steps, optimizer=optimizer, learning_rate=0.05, weight_decay=0.0, clip_norm=1e9,  # type: ignore[arg-type]
        ),
        lambda step: step,
        lambda step: {"loss": 0.5 * (curvature * (weight - best).square()).sum()},
        after_step=anchor.pull,
    )  # fmt: skip
    return weight.detach()


COLD, PREVIOUS = {"w": torch.tensor([0.0, 1.0, 0.0])}, {"w": torch.tensor([2.0, 0.0, 1.0])}
COLD_FISHER, PREVIOUS_FISHER = {"w": torch.tensor([0.5, 2.0, 0.5])}, {"w": torch.tensor([1.5, 0.0, 1.5])}


def make_anchor(cold_weight: float, strength: float) -> tuple[Anchor, nn.Parameter]:
    weight = nn.Parameter(torch.zeros(3))
    anchor = Anchor(
        nn.ParameterDict({"w": weight}), (COLD, COLD_FISHER), (PREVIOUS, PREVIOUS_FISHER),
        cold_weight=cold_weight, strength=strength,
    )  # fmt: skip
    return anchor, weight


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("cold_weight", "strength"), [(0.0, 1.0), (0.3, 0.5), (1.0, 2.0), (0.3, 0.0)])
def test_it_settles_where_the_papers_objective_is_least(optimizer: str, cold_weight: float, strength: float) -> None:
    curvature, best = make_quadratic()
    to_cold, to_previous = cold_weight * COLD_FISHER["w"], (1 - cold_weight) * PREVIOUS_FISHER["w"]
    expected = (curvature * best + strength * (to_cold * COLD["w"] + to_previous * PREVIOUS["w"])) / (
        curvature + strength * (to_cold + to_previous)
    )
    found = settle(*make_anchor(cold_weight, strength), optimizer)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_an_infinite_strength_gives_the_anchor() -> None:
    for strength in (math.inf, 1e12):
        found = settle(*make_anchor(0.4, strength), "adamw", num_steps=20)
        firm = 0.4 * COLD_FISHER["w"] + 0.6 * PREVIOUS_FISHER["w"]
        mean = (0.4 * COLD_FISHER["w"] * COLD["w"] + 0.6 * PREVIOUS_FISHER["w"] * PREVIOUS["w"]) / firm
        torch.testing.assert_close(found, mean, atol=1e-5, rtol=0)


def test_a_cold_weight_of_0_knows_nothing_of_the_cold_model() -> None:
    """The plain form: one anchor, to the previous weights; a start there."""
    found = settle(*make_anchor(0.0, 1.0), "sgd", num_steps=50)
    weight = nn.Parameter(torch.zeros(3))
    other = {"w": torch.full((3,), 99.0)}
    plain = Anchor(
        nn.ParameterDict({"w": weight}), (other, other), (PREVIOUS, PREVIOUS_FISHER), cold_weight=0.0, strength=1.0
    )
    plain.start()
    assert torch.equal(weight.detach(), PREVIOUS["w"])
    assert torch.equal(settle(plain, weight, "sgd", num_steps=50), found)


def test_the_start_is_between_the_two() -> None:
    anchor, weight = make_anchor(0.25, 1.0)
    anchor.start()
    torch.testing.assert_close(weight.detach(), 0.25 * COLD["w"] + 0.75 * PREVIOUS["w"])


def test_the_fisher_is_the_mean_of_squared_gradients_of_single_samples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    x, y = torch.randn(10, 3), torch.randn(10, 1)
    found = fisher_of(model, [lambda row=row: (model(x[row]) - y[row]).square().sum() for row in range(10)])
    for name, parameter in model.named_parameters():
        squares = []
        for row in range(10):
            model.zero_grad()
            (model(x[row]) - y[row]).square().sum().backward()
            assert parameter.grad is not None
            squares.append(parameter.grad.square())
        expected = torch.stack(squares).mean(dim=0)
        torch.testing.assert_close(found[name], expected / expected.mean())
    with pytest.raises(ValueError, match="no samples"):
        fisher_of(model, [])


def test_rows_no_sample_touched_have_no_penalty(tmp_path: Path) -> None:
    table = HashEmbedding(2, torch.Generator().manual_seed(0))
    known, new = torch.tensor([1 << 40]), torch.tensor([-(1 << 50) - (1 << 20)])
    fisher = fisher_of(table, [lambda: (table(known) * torch.tensor([1.0, 3.0])).sum()])["weight"]
    assert fisher.shape == (len(table.weight), 1)
    known_rows, new_rows = table.rows(known)[0], table.rows(new)[0]
    fresh = new_rows[~torch.isin(new_rows, known_rows)]
    assert len(fresh) and (fisher[fresh] == 0).all()
    torch.testing.assert_close(fisher[known_rows], torch.ones(4, 1))
    save_fisher(tmp_path, {"weight": fisher})
    assert torch.equal(load_fisher(tmp_path)["weight"], fisher)
    before = {"weight": table.weight.detach().clone()}
    anchor = Anchor(table, (before, {"weight": fisher}), (before, {"weight": fisher}), cold_weight=0.5, strength=1e9)
    anchor.start()
    table.train()
    run(
        table,
        LoopConfig(num_steps=5, table_learning_rate=0.1),
        lambda step: step,
        lambda step: {"loss": table(torch.cat([known, new])).square().sum()},
        after_step=anchor.pull,
    )
    torch.testing.assert_close(table.weight.detach()[known_rows], before["weight"][known_rows], atol=1e-6, rtol=0)
    assert (table.weight.detach()[fresh] - before["weight"][fresh]).abs().max() > 0.01


class Trained(NamedTuple):
    folder: Path
    cold: TrainedRanking
    since_ms: int


@pytest.fixture(scope="module")
def trained(world: World, split_ms: int, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("cold")
    past = world.events.between(None, split_ms)
    cold = train_cold(SCHEMA, world.items, world.users, past, CONFIG)
    cold.model.save(folder)
    assert cold.fisher is not None
    save_fisher(folder, cold.fisher)
    return Trained(folder, cold, split_ms)


def increment(
    world: World, trained: Trained, retrieval: RetrievalModel, checkpoint: Path | None = None, **changes: float
) -> TrainedRanking:
    config = IncrementalConfig(ranking=replace(CONFIG, num_epochs=1.0), **changes)  # type: ignore[arg-type]
    return train_incremental(
        trained.folder, trained.folder, SCHEMA, world.items, world.users, world.events, trained.since_ms, retrieval,
        config, None, checkpoint,
    )  # fmt: skip


def calibrated_alike(one: TrainedRanking, other: TrainedRanking) -> bool:
    pairs = zip(one.model.calibration.maps, other.model.calibration.maps, strict=True)
    return all(np.array_equal(a.raw, b.raw) and np.array_equal(a.calibrated, b.calibrated) for a, b in pairs)


def test_an_increment_learns_from_the_new_requests_only(
    world: World, trained: Trained, retrieval: RetrievalModel
) -> None:
    grown = increment(world, trained, retrieval, anchor_strength=0.01, min_calibration_requests=10)
    assert 0 < grown.report.num_examples < trained.cold.report.num_examples
    assert set(grown.seconds) == {"load", "replay", "optimise", "calibrate", "posterior", "fisher"}
    assert grown.fisher is not None and set(grown.fisher) == set(trained.cold.fisher or {})
    assert grown.model.version != trained.cold.model.version
    assert grown.num_held_out >= 10 and not calibrated_alike(grown, trained.cold)


def test_held_infinitely_an_increment_is_the_model_before(
    world: World, trained: Trained, retrieval: RetrievalModel
) -> None:
    """Where the Fisher information is not 0: elsewhere nothing holds."""
    grown = increment(world, trained, retrieval, anchor_strength=math.inf)
    fisher = trained.cold.fisher or {}
    before = dict(trained.cold.model.network.named_parameters())
    for name, parameter in grown.model.network.named_parameters():
        held = (fisher[name] > 0).expand_as(parameter)
        torch.testing.assert_close(parameter.detach()[held], before[name].detach()[held], atol=1e-6, rtol=1e-5)
    assert grown.num_held_out < 100 and calibrated_alike(grown, trained.cold)


def test_an_increment_repeats_and_is_taken_up(
    world: World, trained: Trained, retrieval: RetrievalModel, tmp_path: Path
) -> None:
    first = increment(world, trained, retrieval)
    second = increment(world, trained, retrieval, tmp_path)
    third = increment(world, trained, retrieval, tmp_path)
    assert first.model.version == second.model.version == third.model.version
    assert second.report.num_steps > 0 and third.report.num_steps == 0


def test_what_does_not_fit_is_refused(
    world: World, trained: Trained, retrieval: RetrievalModel, tmp_path: Path
) -> None:
    trained.cold.model.save(tmp_path)
    with pytest.raises(ValueError, match=r"no fisher\.safetensors"):
        increment(world, trained._replace(folder=tmp_path), retrieval)
    with pytest.raises(ValueError, match="no request since"):
        increment(world, trained._replace(since_ms=int(world.events.ts_ms[-1]) + 1), retrieval)
    with pytest.raises(ValueError, match=r"cold_weight is 1\.5"):
        IncrementalConfig(cold_weight=1.5)
    with pytest.raises(ValueError, match="anchor_strength is nan"):
        IncrementalConfig(anchor_strength=math.nan)
    with pytest.raises(ValueError, match=r"w of the cold model has shape \[2\]; expected shape \[3\]"):
        Anchor(
            nn.ParameterDict({"w": nn.Parameter(torch.zeros(3))}), ({"w": torch.zeros(2)}, {}), ({}, {}),
            cold_weight=0.1, strength=1.0,
        )  # fmt: skip


def test_a_cold_training_that_was_cut_is_taken_up(world: World, split_ms: int, tmp_path: Path) -> None:
    past = world.events.between(None, split_ms)
    config: RankingConfig = replace(CONFIG, num_epochs=1.0, retrieval=replace(CONFIG.retrieval, num_epochs=1.0))

    def stop(name: str, step: int, total: int, losses: object) -> None:
        if name == "train ranking" and step == total:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train_cold(SCHEMA, world.items, world.users, past, config, stop, tmp_path)
    again = train_cold(SCHEMA, world.items, world.users, past, config, None, tmp_path)
    whole = train_cold(SCHEMA, world.items, world.users, past, config)
    assert again.report.num_steps == 0 and again.model.version == whole.model.version
    np.testing.assert_array_equal(again.model.calibration.maps[0].raw, whole.model.calibration.maps[0].raw)
    assert isinstance(again.model, RankingModel)
