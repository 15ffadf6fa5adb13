"""The retrieval engine against a plain scan; frames and candidates against themselves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from index.boosts import Boost
from index.filter import parse_filter
from index.live import LiveIndex
from models.data.items import ItemTable
from models.data.state import History, UserState
from models.retrieval.model import RetrievalModel
from services.candidates import SOURCES, Candidates, Plan, source_names
from services.keys import key_of, keys_of
from services.platform import Platform
from services.processes.frames import FrameError, pack, unpack
from services.ranking.client import Ranking, pack_rank_call, pack_ranking, unpack_rank_call, unpack_ranking
from services.retrieval.client import RetrieveCall, pack_retrieve_call, unpack_retrieve_call
from services.retrieval.engine import ItemChange, Quotas, RetrievalEngine
from tests.services.serving.world import NUM_ITEMS, attributes_of


@pytest.fixture
def engine(platform: Platform) -> RetrievalEngine:
    assert platform.retrieval is not None
    return platform.retrieval


@pytest.fixture
def user(platform: Platform) -> UserState:
    return platform.storage.state.hydrate("user-1").state


NOW_MS = 1_800_000_000_000
FILTERS = [
    None,
    "year >= 2000",
    'genre any_of ["Comedy"] and price < 4',
    "year = 1999 or sold_out = true",
    "year > 3000",
]


@pytest.mark.parametrize("text", FILTERS)
@pytest.mark.parametrize("k", [1, 7, 60, 500])
def test_retrieve_equals_a_scan(engine: RetrievalEngine, user: UserState, text: str | None, k: int) -> None:
    condition = parse_filter(text, engine.index.config.schema)
    excluded = keys_of(f"item-{item}" for item in range(0, NUM_ITEMS, 7))
    found = engine.retrieve(user, NOW_MS, k, condition, excluded)
    allowed = {
        key_of(f"item-{item}")
        for item in range(NUM_ITEMS)
        if item % 7 and (condition is None or condition.matches(attributes_of(item)))
    }
    assert len(found) == min(k, len(allowed)), "k results whenever k match"
    assert len(set(found.keys.tolist())) == len(found) and set(found.keys.tolist()) <= allowed
    assert found.plan.matched == len(allowed) and found.plan.exact
    vectors, held = engine.index.vectors(found.keys)
    query = engine.model.encode_users([user], NOW_MS)[0]
    assert held.all() and np.allclose(found.scores, vectors @ query, atol=1e-6)
    assert (np.diff(found.scores) <= 0).all()
    best = _by_score(engine, allowed, query)[: len(found)]
    towers = found.keys[(found.sources & 1) == 1]
    assert set(towers.tolist()) <= set(best), "what the towers brought is what a scan would"
    others = len(found) - len(towers)
    assert others <= 2 * round(0.1 * k), "the other sources have no more than their quotas"


def _by_score(engine: RetrievalEngine, keys: set[int], query: NDArray[np.float32]) -> list[int]:
    ordered = np.array(sorted(keys), np.int64)
    vectors, _ = engine.index.vectors(ordered)
    return [int(key) for key in ordered[np.lexsort((ordered, -(vectors @ query)))]]


def test_an_empty_index_answers_nothing(engine: RetrievalEngine, user: UserState) -> None:
    empty = RetrievalEngine(
        index=LiveIndex(engine.index.config),
        model=engine.model,
        items=ItemTable(engine.schema),
        schema=engine.schema,
        landmark_ms=NOW_MS,
    )
    empty.warm_up(NOW_MS, 10)
    assert len(empty.retrieve(user, NOW_MS, 10)) == 0
    assert len(empty.score(user, NOW_MS, np.array([1, 2]))) == 0
    assert empty.similar(1, 10) is None
    assert empty.retrieve(user, NOW_MS, 10).signals.shape == (0, len(engine.schema.signals))


def test_sources_are_kept_and_deterministic(engine: RetrievalEngine, user: UserState) -> None:
    first, again = (engine.retrieve(user, NOW_MS, 100) for _ in range(2))
    assert first.keys.tolist() == again.keys.tolist() and first.sources.tolist() == again.sources.tolist()
    popular = engine.index.search_signal("like.all", 10).keys[0]
    assert set(popular.tolist()) <= set(first.keys.tolist())
    bits = first.sources[np.isin(first.keys, popular)]
    assert all("popular" in source_names(int(mask)) for mask in bits)
    assert any(len(source_names(int(mask))) > 1 for mask in first.sources), "duplicates keep all their sources"
    assert source_names(0b101) == [SOURCES[0], SOURCES[2]]


def test_the_nearest_half_life_is_taken(engine: RetrievalEngine) -> None:
    assert engine.popular is not None and engine.popular.name == "like.all"
    for half_life_ms, name in ((1, "like.1d"), (2 * 86_400_000, "like.1d"), (10**12, "like.7d")):
        other = RetrievalEngine(
            index=engine.index,
            model=engine.model,
            items=engine.items,
            schema=engine.schema,
            landmark_ms=engine.landmark_ms,
            quotas=Quotas(recent_half_life_ms=half_life_ms),
        )
        assert other.recent is not None and other.recent.name == name


def test_events_that_overtake_their_item_are_counted(engine: RetrievalEngine) -> None:
    key = np.array([key_of("late-item")])
    masks, ts_ms = np.array([0b10], np.uint32), np.array([engine.landmark_ms])
    engine.apply_events(key, masks, ts_ms)
    engine.apply_items([ItemChange(int(key[0]), {"year": 1})])
    try:
        engine.apply_events(key, masks, ts_ms)
        like_all = [signal.name for signal in engine.schema.signals].index("like.all")
        assert engine.index.signals(key)[0, like_all] == 2.0
    finally:
        engine.apply_items([ItemChange(int(key[0]), None)])
    assert int(key[0]) not in engine.index and int(key[0]) not in engine.items


def test_the_landmark_moves_without_changing_what_is_read(engine: RetrievalEngine, user: UserState) -> None:
    far_ms = engine.landmark_ms + 501 * 86_400_000
    before = engine.retrieve(user, far_ms, NUM_ITEMS)
    old = engine.landmark_ms
    engine.apply_events(keys_of(["no-such-item"]), np.array([1], np.uint32), np.array([far_ms]))
    assert engine.landmark_ms == far_ms != old
    after = engine.retrieve(user, far_ms, NUM_ITEMS)
    order, again = np.argsort(before.keys), np.argsort(after.keys)
    assert np.allclose(before.signals[order], after.signals[again], rtol=1e-9, atol=1e-300)


def test_frames_carry_arrays_of_any_length() -> None:
    arrays = {
        "a": np.arange(5, dtype=np.int64),
        "b": np.zeros(0, np.float32),
        "c": np.array([1, 2], np.uint32),
        "d": np.array([np.nan, 1.5, -np.inf]),
    }
    found, meta = unpack(pack(arrays, {"text": "é", "n": [1, None]}))
    assert meta == {"text": "é", "n": [1, None]} and list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array, equal_nan=array.dtype.kind == "f")
    with pytest.raises(ValueError, match="dimensions"):
        pack({"a": np.zeros((2, 2))}, {})
    good = pack(arrays, {})
    for bad in (b"", b"x", good[:-20], good[: len(good) // 2]):
        with pytest.raises(FrameError):
            unpack(bad)
            Candidates.from_arrow(bad)


def candidates(n: int, num_signals: int = 3) -> Candidates:
    random = np.random.default_rng(n)
    return Candidates(
        keys=random.integers(-(2**63), 2**63 - 1, n),
        scores=random.random(n).astype(np.float32),
        sources=random.integers(0, 8, n).astype(np.uint32),
        signals=random.random((n, num_signals)),
        plan=Plan(matched=n, scanned=2, rescored=3, strategy="stream", exact=True),
        versions={"index": "i", "retrieval_model": "m"},
    )


@pytest.mark.parametrize(("n", "num_signals"), [(0, 3), (1, 1), (50, 8), (3, 0)])
def test_candidates_survive_the_wire(n: int, num_signals: int) -> None:
    sent = candidates(n, num_signals)
    got = Candidates.from_arrow(sent.to_arrow())
    for name in ("keys", "scores", "sources", "signals"):
        assert np.array_equal(getattr(got, name), getattr(sent, name))
        assert getattr(got, name).shape == getattr(sent, name).shape
    assert got.plan == sent.plan and got.versions == sent.versions
    with pytest.raises(FrameError):
        Candidates.from_arrow(pack({"keys": np.zeros(1, np.int64)}, {}))


def test_boosts_order_what_is_retrieved_and_stay_out_of_the_ranker(engine: RetrievalEngine, user: UserState) -> None:
    schema = engine.index.config.schema
    comedy, old = parse_filter('genre any_of ["Comedy"]', schema), parse_filter("year < 1990", schema)
    assert comedy is not None and old is not None
    boosts = [Boost(comedy, 5.0), Boost(old, -1.0)]
    found = engine.retrieve(user, NOW_MS, 40, None, None, boosts)
    weights = engine.index.weights(found.keys, boosts)
    assert weights[0] in (4.0, 5.0) and set(weights.tolist()) <= {0.0, -1.0, 4.0, 5.0}
    assert (np.diff(found.scores) <= 0).all()
    assert np.allclose(found.scores, found.tower_scores() + weights, atol=1e-5)
    vectors, _ = engine.index.vectors(found.keys)
    assert np.allclose(found.tower_scores(), vectors @ engine.model.encode_users([user], NOW_MS)[0], atol=1e-6)
    again = Candidates.from_arrow(found.to_arrow()).take(np.arange(5))
    assert np.array_equal(again.tower_scores(), found.tower_scores()[:5])
    scored = engine.score(user, NOW_MS, found.keys, boosts)
    assert np.allclose(scored.scores, found.scores, atol=1e-6)
    assert engine.index.weights(np.array([-77]), boosts).tolist() == [0.0]


def test_calls_survive_the_wire(engine: RetrievalEngine, user: UserState) -> None:
    condition = parse_filter("year >= 1990 and not (sold_out = true)", engine.index.config.schema)
    for given in (None, np.array([5, -6])):
        call = RetrieveCall(user=user, now_ms=NOW_MS, k=3, filter=condition, exclude=np.array([1, -2]), given=given)
        assert condition is not None
        call = replace(call, boosts=(Boost(condition, 0.25),))
        got = unpack_retrieve_call(pack_retrieve_call(call), engine.index.config.schema)
        assert (got.now_ms, got.k, got.filter) == (NOW_MS, 3, condition)
        assert got.boosts == call.boosts
        assert got.exclude.tolist() == [1, -2] and got.user.profile == user.profile
        assert (got.given is None) if given is None else got.given is not None and got.given.tolist() == [5, -6]
        assert np.array_equal(got.user.history.values, user.history.values, equal_nan=True)
    sent = candidates(9)
    state, same, now_ms, draws = unpack_rank_call(pack_rank_call(UserState({"age": 3}, History.empty()), sent, NOW_MS))
    assert state.profile == {"age": 3} and now_ms == NOW_MS and np.array_equal(same.signals, sent.signals)
    ranking = Ranking(probabilities=np.ones((4, 2), np.float32), tasks=("a", "b"), versions={"ranker": "r"})
    assert unpack_ranking(pack_ranking(ranking)).probabilities.shape == (4, 2)


def other_towers(engine: RetrievalEngine, factor: float = 1.5) -> RetrievalModel:
    """The engine's towers with their tables turned: another version, other vectors."""
    towers = copy.deepcopy(engine.model)
    with torch.no_grad():
        for parameter in towers.towers.parameters():
            parameter.mul_(factor)
    return RetrievalModel(towers.schema, towers.config, towers.towers)


def documents(keys: NDArray[np.int64]) -> list[ItemChange]:
    numbers = {key_of(f"item-{item}"): item for item in range(NUM_ITEMS)}
    return [ItemChange(int(key), attributes_of(numbers[int(key)])) for key in keys]


@pytest.fixture
def fresh(engine: RetrievalEngine) -> RetrievalEngine:
    """An engine of its own over the first hundred items."""
    index = LiveIndex(engine.index.config)
    own = RetrievalEngine(
        index=index, model=engine.model, items=ItemTable(engine.schema), schema=engine.schema, landmark_ms=NOW_MS
    )
    own.apply_items(documents(keys_of(f"item-{item}" for item in range(100))), "5-1")
    own.apply_events(own.index.keys()[:40], np.full(40, 3, np.uint32), np.full(40, NOW_MS), "7-1")
    return own


def test_another_model_takes_over_with_everything_that_changed_meanwhile(
    fresh: RetrievalEngine, user: UserState
) -> None:
    towers, old = other_towers(fresh), fresh.model
    stored = documents(keys_of(f"item-{item}" for item in range(100)))
    changed, gone, new = key_of("item-90"), key_of("item-91"), key_of("item-150")
    renamed = {**attributes_of(90), "title": "Quite another film", "genre": ["Horror"]}
    seen = []
    gone_was_counted = gone in fresh.index.keys()[:40]

    def parts() -> Iterator[list[ItemChange]]:
        yield stored[:50]
        # Before the rest, as it was read, is embedded, the streams go on.
        fresh.apply_items([ItemChange(changed, renamed), ItemChange(gone, None)], "6-1")
        fresh.apply_items([ItemChange(new, attributes_of(150))], "6-2")
        fresh.apply_events(np.array([changed, new]), np.full(2, 3, np.uint32), np.full(2, NOW_MS), "8-1")
        seen.append(fresh.retrieve(user, NOW_MS, 20).versions)
        yield stored[50:]

    fresh.replace(towers, parts(), NOW_MS, 20)
    assert seen == [{"index": f"{old.version}@6-2", "retrieval_model": old.version}]
    found = fresh.retrieve(user, NOW_MS, 20)
    assert found.versions == {"index": f"{towers.version}@6-2", "retrieval_model": towers.version}
    assert fresh.model is towers and fresh.index.offsets == {"items": "6-2", "events": "8-1"}
    assert fresh.index.num_items == 100 and gone not in fresh.index and new in fresh.index
    keys = fresh.index.keys()
    np.testing.assert_allclose(fresh.index.vectors(keys)[0], towers.encode_items(fresh.items.gather(keys)), atol=1e-6)
    condition = parse_filter('genre = "Horror" and year = 1990', fresh.index.config.schema)
    assert changed in fresh.retrieve(user, NOW_MS, 50, condition).keys
    view_all = [signal.name for signal in fresh.schema.signals].index("view.all")
    assert fresh.index.signals(np.array([changed, new]))[:, view_all].tolist() == [1.0, 1.0]
    assert fresh.index.signals(keys)[:, view_all].sum() == 42.0 - int(gone_was_counted)
    # The streams go on, into the one index that is left.
    fresh.apply_items([ItemChange(new, None)], "6-3")
    assert new not in fresh.index and fresh.index.offsets["items"] == "6-3"
    fresh.replace(other_towers(fresh, 0.9), [documents(fresh.index.keys())], NOW_MS, 20)
    assert fresh.index.num_items == 99


def test_a_change_of_model_that_fails_changes_nothing(fresh: RetrievalEngine, user: UserState) -> None:
    before = fresh.retrieve(user, NOW_MS, 20)

    def parts() -> Iterator[list[ItemChange]]:
        yield documents(fresh.index.keys()[:10])
        raise OSError("the storage is gone")

    with pytest.raises(OSError, match="storage is gone"):
        fresh.replace(other_towers(fresh), parts(), NOW_MS, 20)
    after = fresh.retrieve(user, NOW_MS, 20)
    assert after.versions == before.versions and (after.keys == before.keys).all()
    fresh.apply_items(documents(keys_of(["item-200"])), "6-1")  # into the one index that is left
    with pytest.raises(ValueError, match="serves already"):
        fresh.replace(fresh.model, [], NOW_MS, 20)
    fresh.replace(other_towers(fresh), [documents(fresh.index.keys())], NOW_MS, 20)
    assert fresh.index.num_items == 101
