from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.data.events import EventCursor
from models.data.state import History, UserState
from models.evaluate import auc, expected_calibration_error
from models.ranking.examples import replay_examples
from models.ranking.model import RankingModel, assembler_of, make_network
from models.ranking.training import train_ranking
from models.retrieval.model import RetrievalModel
from tests.models.conftest import RANKING
from tests.models.world import SCHEMA, World, make_world


def cursor_at(world: World, now_ms: int) -> EventCursor:
    cursor = EventCursor(SCHEMA, world.events, world.users)
    cursor.advance(now_ms)
    return cursor


def score(model: RankingModel, world: World, cursor: EventCursor, user: UserState, keys: np.ndarray) -> np.ndarray:
    return model.score(
        user,
        world.items.gather(keys),
        cursor.signals(keys),
        np.full(len(keys), 0.1, dtype=np.float32),
        cursor.now_ms,
        history_items=world.items.gather(user.history.keys),
    )


def test_the_ranker_learns_what_members_like(world: World, ranking: RankingModel, split_ms: int) -> None:
    cursor = cursor_at(world, split_ms)
    keys = world.items.keys()
    of_genre = np.array([world.genre[key] for key in keys.tolist()])
    aucs, popularity = [], []
    for user_key, taste in world.taste.items():
        user = cursor.user(user_key)
        if len(user.history) < 6:
            continue
        likes = score(ranking, world, cursor, user, keys)[:, ranking.tasks.index("like")]
        aucs.append(auc(likes, of_genre == taste))
        popularity.append(auc(cursor.signals(keys)[:, 3], of_genre == taste))
    assert np.mean(aucs) > 0.8
    assert np.mean(aucs) > np.mean(popularity) + 0.2


def test_probabilities_hold(world: World, ranking: RankingModel, retrieval: RetrievalModel) -> None:
    config = replace(RANKING.examples, held_out_share=0.999, window_share=0.25, max_requests=200)
    assembler = assembler_of(SCHEMA, ranking.network)
    examples = list(
        replay_examples(SCHEMA, world.items, world.users, world.events, retrieval, assembler, config, seed=5)
    )
    held_out = [example for example in examples if example.held_out]
    assert len(held_out) > 50
    rates, means = [], []
    for example in held_out:
        cursor = cursor_at(world, example.now_ms)
        probabilities = score(ranking, world, cursor, example.user, example.keys)
        assert ((probabilities > 0) & (probabilities < 1)).all()
        means.append(probabilities[:, 0])
        rates.append(example.labels[:, 0])
    assert expected_calibration_error(np.concatenate(means), np.concatenate(rates)) < 0.08


def test_a_score_does_not_depend_on_the_other_candidates(world: World, ranking: RankingModel, split_ms: int) -> None:
    cursor = cursor_at(world, split_ms)
    user = cursor.user(next(iter(world.users)))
    keys = world.items.keys()[:12]
    together = score(ranking, world, cursor, user, keys)
    alone = np.concatenate([score(ranking, world, cursor, user, keys[[place]]) for place in range(12)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)
    assert score(ranking, world, cursor, user, keys[:0]).shape == (0, 2)


def test_anything_may_be_missing(world: World, ranking: RankingModel, split_ms: int) -> None:
    cursor = cursor_at(world, split_ms)
    keys = np.array([1, 2, int(world.items.keys()[0])])
    odd = History(np.array([99, 98]), np.array([0, 3], np.uint32), np.array([np.nan, 5], np.float32), np.array([1, 2]))
    for user in (UserState(), UserState({"planet": "mars"}, odd)):
        probabilities = score(ranking, world, cursor, user, keys)
        assert np.isfinite(probabilities).all()
    unscored = ranking.score(
        UserState(),
        world.items.gather(keys),
        np.zeros((3, len(SCHEMA.signals))),
        np.full(3, np.nan, dtype=np.float32),
        0,
        history_items=world.items.gather(np.zeros(0, np.int64)),
    )
    assert np.isfinite(unscored).all()


def test_a_long_history_counts_by_its_newest_entries(world: World, ranking: RankingModel, split_ms: int) -> None:
    cursor = cursor_at(world, split_ms)
    keys = world.items.keys()
    length = SCHEMA.history_length + 15
    long = History(
        np.resize(keys, length),
        np.resize(np.array([3, 1], np.uint32), length),
        np.full(length, 4.0, np.float32),
        np.arange(length) * 1000,
    )
    cut = long.last(SCHEMA.history_length)
    np.testing.assert_array_equal(
        score(ranking, world, cursor, UserState({}, long), keys[:7]),
        score(ranking, world, cursor, UserState({}, cut), keys[:7]),
    )


def test_a_folder_gives_the_same_scores(world: World, ranking: RankingModel, split_ms: int, tmp_path: Path) -> None:
    ranking.save(tmp_path)
    again = RankingModel.load(tmp_path, SCHEMA)
    cursor = cursor_at(world, split_ms)
    user = cursor.user(next(iter(world.users)))
    keys = world.items.keys()
    np.testing.assert_array_equal(score(ranking, world, cursor, user, keys), score(again, world, cursor, user, keys))
    assert (again.version, again.tasks) == (ranking.version, ("watch", "like"))
    other = replace(SCHEMA, tasks=("like",))
    with pytest.raises(ValueError, match=SCHEMA.hash()) as caught:
        RankingModel.load(tmp_path, other)
    assert other.hash() in str(caught.value)


def test_training_repeats() -> None:
    world = make_world(num_items=30, num_users=30)
    config = replace(RANKING, num_epochs=1.0, retrieval=replace(RANKING.retrieval, num_epochs=1.0))
    models = [train_ranking(SCHEMA, world.items, world.users, world.events, config) for _ in range(2)]
    assert models[0].version == models[1].version


def test_training_candidates_are_sampled_at_a_known_rate(world: World, retrieval: RetrievalModel) -> None:
    assembler = assembler_of(SCHEMA, make_network(SCHEMA, RANKING.network, 0))
    config = replace(RANKING.examples, max_negatives=5, max_outside=5)
    for example in replay_examples(
        SCHEMA, world.items, world.users, world.events, retrieval, assembler, config, seed=0
    ):
        acted_on = example.labels.any(axis=1)
        assert acted_on.any()
        assert not np.isin(example.keys, example.user.history.keys).any()
        if example.held_out:
            assert not example.log_rate.any()
            continue
        # What the sample stands for is the catalogue less what was seen.
        stands_for = np.exp(-example.log_rate[~acted_on]).sum() + acted_on.sum()
        seen = len(np.unique(example.user.history.keys))
        assert stands_for == pytest.approx(len(world.items) - seen, rel=1e-4)


def test_features_are_refused_when_their_shapes_disagree(world: World, ranking: RankingModel) -> None:
    keys = world.items.keys()[:3]
    with pytest.raises(ValueError, match=r"signals \(3, 2\)"):
        ranking.score(
            UserState(),
            world.items.gather(keys),
            np.zeros((3, 2)),
            np.zeros(3, np.float32),
            0,
            history_items=world.items.gather(np.zeros(0, np.int64)),
        )


def test_no_usable_request_is_an_error(world: World) -> None:
    few = world.events.take(slice(0, 40))
    config = replace(RANKING, examples=replace(RANKING.examples, held_out_share=0.999))
    with pytest.raises(ValueError, match="no request among 40 events"):
        train_ranking(SCHEMA, world.items, world.users, few, config)
