from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.data.events import EventCursor
from models.data.items import ItemTable
from models.data.state import History, UserState
from models.evaluate import recall_at
from models.retrieval.model import RetrievalModel
from models.retrieval.towers import sampled_softmax
from models.retrieval.training import train_retrieval
from tests.models.conftest import RETRIEVAL
from tests.models.world import GENRES, SCHEMA, World, make_world


def recalls(world: World, model: RetrievalModel, split_ms: int) -> tuple[float, float]:
    """Recall at 10 of the towers and of popularity, seen items removed."""
    cursor = EventCursor(SCHEMA, world.events, world.users)
    cursor.advance(split_ms)
    keys = world.items.keys()
    vectors = model.encode_items(world.items.gather(keys))
    popularity = cursor.signals(keys)[:, 3]
    found: list[tuple[float, float]] = []
    for user_key in world.users:
        liked = cursor.outcome(user_key, 1 << 60)
        liked_keys = liked.item_keys[(liked.action_masks & 2) != 0]
        user = cursor.user(user_key)
        if not len(liked_keys) or not len(user.history):
            continue
        seen = np.isin(keys, cursor.seen(user_key))
        scores = vectors @ model.encode_users([user], split_ms)[0]
        ranked = [np.argsort(np.where(seen, -np.inf, by), kind="stable")[::-1] for by in (scores, popularity)]
        both = [recall_at(np.isin(keys[order], liked_keys), len(liked_keys), 10) for order in ranked]
        found.append((both[0], both[1]))
    assert len(found) >= 10
    towers, popular = np.array(found).mean(axis=0)
    return float(towers), float(popular)


def test_towers_learn_what_members_like(world: World, retrieval: RetrievalModel, split_ms: int) -> None:
    towers, popular = recalls(world, retrieval, split_ms)
    assert towers > 1.5 * popular
    assert towers > 0.25


def test_an_item_nobody_has_seen_is_placed_by_its_attributes(world: World, retrieval: RetrievalModel) -> None:
    items = ItemTable(SCHEMA)
    items.upsert(np.array([1, 2, 3]), [{"genre": [genre], "year": 1993, "released": 0} for genre in GENRES])
    vectors = retrieval.encode_items(items.gather(np.array([1, 2, 3])))
    assert np.isfinite(vectors).all()
    cursor = EventCursor(SCHEMA, world.events, world.users)
    cursor.advance(1 << 60)
    right = 0
    users = [user for user in world.users if len(cursor.user(user).history) >= 8]
    for user in users:
        scores = vectors @ retrieval.encode_users([cursor.user(user)], 40 * 86_400_000)[0]
        right += int(np.argmax(scores) == world.taste[user])
    assert right / len(users) > 0.6


def test_vectors_have_length_one_whatever_is_missing(world: World, retrieval: RetrievalModel) -> None:
    unknown = retrieval.encode_items(world.items.gather(np.array([12345])))
    nobody = retrieval.encode_users([UserState()], 0)
    odd = UserState(
        {"age": None, "planet": "mars"},
        History(np.array([5]), np.array([0], np.uint32), np.array([np.nan], np.float32), np.array([10])),
    )
    strange = retrieval.encode_users([odd], 0)
    for vectors in (unknown, nobody, strange):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    assert retrieval.encode_users([], 0).shape == (0, retrieval.dim)


def test_a_member_does_not_depend_on_the_batch(world: World, retrieval: RetrievalModel) -> None:
    cursor = EventCursor(SCHEMA, world.events, world.users)
    cursor.advance(15 * 86_400_000)
    users = [cursor.user(key) for key in list(world.users)[:9]]
    together = retrieval.encode_users(users, cursor.now_ms)
    alone = np.concatenate([retrieval.encode_users([user], cursor.now_ms) for user in users])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_folder_gives_the_same_vectors(world: World, retrieval: RetrievalModel, tmp_path: Path) -> None:
    retrieval.save(tmp_path)
    again = RetrievalModel.load(tmp_path, SCHEMA)
    batch = world.items.gather(world.items.keys())
    np.testing.assert_array_equal(retrieval.encode_items(batch), again.encode_items(batch))
    assert again.version == retrieval.version


def test_another_schema_is_refused_with_both_hashes(retrieval: RetrievalModel, tmp_path: Path) -> None:
    retrieval.save(tmp_path)
    other = replace(SCHEMA, history_length=3)
    with pytest.raises(ValueError, match=SCHEMA.hash()) as caught:
        RetrievalModel.load(tmp_path, other)
    assert other.hash() in str(caught.value)


def test_training_repeats() -> None:
    world = make_world(num_items=30, num_users=30)
    config = replace(RETRIEVAL, num_epochs=1.0)
    versions = [train_retrieval(SCHEMA, world.items, world.users, world.events, c).version for c in (config, config)]
    assert versions[0] == versions[1]
    other = train_retrieval(SCHEMA, world.items, world.users, world.events, replace(config, seed=1))
    assert other.version != versions[0]


def test_nothing_to_learn_from_is_an_error(world: World) -> None:
    disliked = world.events.take((world.events.action_masks & 2) == 0)
    with pytest.raises(ValueError, match="is a 'like'"):
        train_retrieval(SCHEMA, world.items, world.users, disliked, RETRIEVAL)


def test_log_q_takes_back_what_sampling_added() -> None:
    # Negatives drawn in proportion to q, many of them: the corrected loss is the loss over the whole catalogue.
    random = np.random.default_rng(0)
    logits = random.normal(size=6)
    q = np.array([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    drawn = random.choice(6, size=200_000, p=q)
    full = np.log(np.exp(logits).sum())
    columns = torch.tensor(logits[drawn])
    corrected = torch.logsumexp(columns - torch.log(torch.tensor(q[drawn])), dim=0) - np.log(len(drawn))
    assert float(corrected) == pytest.approx(full, abs=0.02)
    keys = np.append(np.array([5]), drawn + 100)
    loss = sampled_softmax(
        torch.tensor(np.append(logits[0], logits[drawn]))[None],
        torch.tensor([0]),
        torch.log(torch.tensor(np.append(1.0 / len(drawn), q[drawn]))),
        keys,
    )
    target = logits[0] + np.log(len(drawn))
    expected = np.logaddexp(target, full + np.log(len(drawn))) - target
    assert float(loss) == pytest.approx(expected, abs=0.02)


def test_accidental_hits_leave_the_softmax() -> None:
    logits = torch.tensor([[1.0, 9.0, 2.0], [0.5, 1.0, 9.0]])
    targets = torch.tensor([0, 1])
    # Row 0's target appears again in column 1; row 1's mask takes column 2 out.
    masked = torch.tensor([[False, False, False], [False, True, True]])
    loss = sampled_softmax(logits, targets, torch.zeros(3), np.array([7, 7, 8]), masked)
    first = torch.logsumexp(torch.tensor([1.0, 2.0]), 0) - 1.0
    second = torch.logsumexp(torch.tensor([1.0]), 0) - 1.0
    torch.testing.assert_close(loss, (first + second) / 2)
