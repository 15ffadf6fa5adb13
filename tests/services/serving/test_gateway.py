"""The gateway from outside: real index, real storage, trained models, HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from services.platform import Platform
from tests.services.serving.world import DAY_MS, NUM_ITEMS, attributes_of, favourite, genre_of

Answer = dict[str, Any]


def ask(client: httpx.Client, status: int = 200, **body: Any) -> Answer:
    response = client.post("/v1/recommendations", json=body)
    assert response.status_code == status, response.text
    answer: Answer = response.json()
    return answer


def ids_of(answer: Answer) -> list[str]:
    return [item["id"] for item in answer["items"]]


def number(identifier: str) -> int:
    return int(identifier.removeprefix("item-"))


def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def test_answer_is_complete(client: httpx.Client) -> None:
    answer = ask(client, user_id="user-1", limit=5, explain=True, include=["metadata", "scores", "sources"])
    assert len(answer["items"]) == 5
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4, 5]
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    for item in answer["items"]:
        assert item["metadata"]["title"].startswith("Film")
        assert set(item["probabilities"]) == {"view", "like"}
        assert all(0 < value < 1 for value in item["probabilities"].values())
        assert set(item["sources"]) <= {"towers", "popular", "recent"} and item["sources"]
        explanation = item["explanation"]
        assert sum(explanation["value_terms"].values()) == pytest.approx(item["score"])
        assert explanation["value_terms"]["view"] == pytest.approx(0.25 * item["probabilities"]["view"])
        assert set(explanation["signals"]) == {f"{a}.{h}" for a in ("view", "like") for h in ("1d", "7d", "all")}
    assert answer["degraded"] == []
    assert answer["cold_start"] is False
    for name in ("links", "llm", "prompt"):
        assert answer["served"].pop(name) is None, "the world has none"
    assert all(answer["served"].values())
    assert answer["filter_plan"]["exact"] is True
    assert answer["filter_plan"]["joined"] == 1 and answer["filter_plan"]["costs"] == "default"
    assert sum(answer["timings"][stage] for stage in ("hydrate", "retrieve", "rank", "arrange")) > 0
    assert answer["timings"]["total"] >= answer["timings"]["rank"]


def test_include_chooses_what_comes_back(client: httpx.Client) -> None:
    plain = ask(client, user_id="user-1", limit=1, include=[])["items"][0]
    assert (plain["metadata"], plain["probabilities"], plain["sources"], plain["explanation"]) == (None,) * 4
    default = ask(client, user_id="user-1", limit=1)["items"][0]
    assert default["probabilities"] and default["sources"] and default["metadata"] is None


def test_models_learned_the_tastes(client: httpx.Client) -> None:
    hits = total = 0
    for user in range(10):
        for identifier in ids_of(ask(client, user_id=f"user-{user}", limit=5)):
            hits += genre_of(number(identifier)) == favourite(user)
            total += 1
    assert hits / total > 0.5  # one in five by chance


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ('genre any_of ["Comedy"]', lambda a: "Comedy" in a["genre"]),
        ({"field": "genre", "any_of": ["Comedy"]}, lambda a: "Comedy" in a["genre"]),
        ("year >= 1990 and not (price < 5)", lambda a: a["year"] >= 1990 and a["price"] >= 5),
        (
            {"and": [{"field": "year", "lt": 1985}, {"field": "sold_out", "any_of": [False]}]},
            lambda a: a["year"] < 1985 and not a["sold_out"],
        ),
        ('released < "1990-01-01"', lambda a: a["released"] < 631_152_000_000),
    ],
)
def test_filtered_answers_match_and_are_full(client: httpx.Client, condition: object, holds: Any) -> None:
    answer = ask(client, user_id="user-2", limit=200, filter=condition, exclude={"seen": False}, include=["metadata"])
    assert answer["items"] and all(holds(item["metadata"]) for item in answer["items"])
    expected = [item for item in range(NUM_ITEMS) if holds(attributes_of(item))]
    found = [identifier for identifier in ids_of(answer) if identifier.startswith("item-")]
    assert len(found) >= min(200, len(expected)) - 5  # other tests change a few items
    assert answer["filter_plan"]["matched"] >= len(answer["items"])


def test_no_match_is_an_empty_slate(client: httpx.Client) -> None:
    answer = ask(client, user_id="user-1", filter="year > 3000")
    assert answer["items"] == [] and answer["filter_plan"]["matched"] == 0


def test_boosts_bring_items_among_the_candidates(client: httpx.Client) -> None:
    question: Answer = {"user_id": "user-2", "limit": 200, "exclude": {"seen": False}, "explain": True}
    plain = {item["id"]: item["explanation"] for item in ask(client, **question)["items"]}
    assert all(each["boost"] == 0.0 for each in plain.values())
    boosts = [{"filter": 'genre any_of ["Comedy"]', "weight": 1000}, {"filter": "year < 1990", "weight": -2.5}]
    answer = ask(client, **question, boosts=boosts, include=["metadata"])
    assert "boosted" in answer["filter_plan"]["strategy"] and answer["filter_plan"]["exact"] is True
    for item in answer["items"]:
        explanation, attributes = item["explanation"], item["metadata"]
        expected = 1000.0 * ("Comedy" in attributes["genre"]) - 2.5 * (attributes["year"] < 1990)
        assert explanation["boost"] == pytest.approx(expected, abs=1e-3)
        if item["id"] in plain:
            alone = plain[item["id"]]["retrieval_score"]
            assert explanation["retrieval_score"] == pytest.approx(alone + expected, abs=1e-3)
    given = [f"item-{item}" for item in range(30, 50)]
    ranked = ask(client, user_id="user-5", candidates=given, boosts=boosts)
    assert sorted(ids_of(ranked)) == sorted(given)


def test_seen_items_stay_out_unless_asked_for(platform: Platform, client: httpx.Client) -> None:
    seen = set(platform.storage.state.hydrate("user-3").seen.tolist())
    seen_ids = {i for i in platform.storage.items.ids_of(sorted(seen)) if i}
    assert seen_ids
    assert not seen_ids & set(ids_of(ask(client, user_id="user-3", limit=200)))
    everything = ids_of(ask(client, user_id="user-3", limit=200, exclude={"seen": False}))
    assert seen_ids & set(everything)


def test_excluded_items_stay_out(client: httpx.Client) -> None:
    first = ids_of(ask(client, user_id="user-4", limit=3))
    again = ids_of(ask(client, user_id="user-4", limit=10, exclude={"item_ids": [*first, "no-such-item"]}))
    assert len(again) == 10 and not set(first) & set(again)


def test_candidates_are_ranked_exactly(client: httpx.Client) -> None:
    given = [f"item-{item}" for item in range(30, 50)]
    answer = ask(client, user_id="user-5", candidates=given)
    assert sorted(ids_of(answer)) == sorted(given)
    assert {source for item in answer["items"] for source in item["sources"]} == {"given"}
    assert len(ids_of(ask(client, user_id="user-5", candidates=given, limit=4))) == 4
    filtered = ids_of(ask(client, user_id="user-5", candidates=given, filter='genre any_of ["Drama"]'))
    assert filtered and all(genre_of(number(identifier)) == "Drama" for identifier in filtered)


def test_unknown_user_is_cold_not_wrong(client: httpx.Client) -> None:
    answer = ask(client, user_id="never-seen-before", limit=7)
    assert answer["cold_start"] is True and len(answer["items"]) == 7 and answer["degraded"] == []


def test_session_of_a_visitor_moves_the_answer(client: httpx.Client) -> None:
    def genres(liked_genre: str) -> list[str]:
        liked = [item for item in range(100) if genre_of(item) == liked_genre][:8]
        events = [{"item_id": f"item-{item}", "type": "rating", "value": 5} for item in liked]
        answer = ask(client, session={"events": events}, limit=20)
        assert answer["cold_start"] is False
        assert not {f"item-{item}" for item in liked} & set(ids_of(answer))
        return [genre_of(number(identifier)) for identifier in ids_of(answer)]

    assert genres("Horror").count("Horror") > genres("Romance").count("Horror")
    assert ask(client, session={"events": []})["cold_start"] is True


def test_short_form_answers_the_same(client: httpx.Client) -> None:
    long = ask(client, user_id="user-6", limit=8, filter="year >= 2000", explain=True)
    response = client.get(
        "/v1/users/user-6/recommendations", params={"limit": 8, "filter": "year >= 2000", "explain": "true"}
    )
    assert response.status_code == 200
    assert ids_of(response.json()) == ids_of(long)
    assert response.json()["items"][0]["explanation"] is not None


def test_similar_items(client: httpx.Client) -> None:
    answer = client.get("/v1/items/item-7/similar", params={"limit": 10}).json()
    assert len(answer["items"]) == 10 and "item-7" not in ids_of(answer)
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    condition = {"limit": 5, "filter": 'genre any_of ["Horror"]'}
    filtered = client.get("/v1/items/item-7/similar", params=condition).json()
    assert all(genre_of(number(identifier)) == "Horror" for identifier in ids_of(filtered))


def test_a_write_is_in_the_next_answer(client: httpx.Client) -> None:
    body = {"attributes": {"title": "Brand new", "genre": ["Fresh"], "year": 2031}}
    written = client.put("/v1/items/new-1", params={"wait_for": "visible"}, json=body)
    assert written.status_code == 201
    answer = written.json()
    assert answer["visible"] is True and answer["created"] is True and answer["durable"] is True
    assert (answer["id"], answer["version"]) == ("new-1", 1)
    slate = ask(client, user_id="user-1", filter='genre any_of ["Fresh"]', include=["metadata"])
    assert [(item["id"], item["metadata"]["year"]) for item in slate["items"]] == [("new-1", 2031)]

    changed = client.patch("/v1/items/new-1?wait_for=visible", json={"attributes": {"genre": ["Stale"], "year": None}})
    assert changed.status_code == 200 and changed.json()["version"] == 2
    assert ids_of(ask(client, user_id="user-1", filter='genre any_of ["Fresh"]')) == []
    assert ids_of(ask(client, user_id="user-1", filter='genre any_of ["Stale"]')) == ["new-1"]
    stored = client.get("/v1/items/new-1")
    assert stored.json()["attributes"] == {"title": "Brand new", "genre": ["Stale"]}
    assert stored.headers["etag"] == '"2"'

    gone = client.delete("/v1/items/new-1?wait_for=visible")
    assert gone.status_code == 200 and gone.json()["visible"] is True
    assert ids_of(ask(client, user_id="user-1", filter='genre any_of ["Stale"]')) == []
    assert client.get("/v1/items/new-1").status_code == 404


def test_min_offset_reads_your_writes(client: httpx.Client) -> None:
    for turn in range(10):
        body = {"attributes": {"genre": [f"Turn{turn}"]}}
        offset = client.put(f"/v1/items/turn-{turn}", json=body).json()["offset"]
        answer = ask(client, user_id="user-1", filter=f'genre any_of ["Turn{turn}"]', min_offset=offset)
        assert ids_of(answer) == [f"turn-{turn}"] and answer["degraded"] == []
    for turn in range(10):
        assert client.delete(f"/v1/items/turn-{turn}?wait_for=visible").json()["visible"]


def test_an_offset_that_never_comes_is_told(client: httpx.Client) -> None:
    answer = ask(client, user_id="user-1", min_offset="items:99999999999999-0", budget_ms=300)
    assert [entry["stage"] for entry in answer["degraded"]] == ["hydrate"]
    assert "items:99999999999999-0" in answer["degraded"][0]["reason"]
    assert answer["items"]


def test_users_are_stored_and_known(client: httpx.Client) -> None:
    assert ask(client, user_id="fresh-user")["cold_start"] is True
    written = client.put("/v1/users/fresh-user?wait_for=visible", json={"attributes": {"age": 44}})
    assert written.status_code == 201 and written.json()["visible"] is True
    assert ask(client, user_id="fresh-user", min_offset=written.json()["offset"])["cold_start"] is False
    assert client.get("/v1/users/fresh-user").json()["attributes"] == {"age": 44}
    assert client.delete("/v1/users/fresh-user").status_code == 200
    assert ask(client, user_id="fresh-user")["cold_start"] is True


def test_if_match_guards_a_write(client: httpx.Client) -> None:
    body = {"attributes": {"year": 1}}
    assert client.put("/v1/items/guarded", json=body, headers={"If-Match": '"0"'}).status_code == 201
    assert client.put("/v1/items/guarded", json=body, headers={"If-Match": '"1"'}).status_code == 200
    stale = client.put("/v1/items/guarded", json=body, headers={"If-Match": '"1"'})
    assert stale.status_code == 409
    problem = stale.json()
    assert problem["type"].endswith("version-conflict") and (problem["expected"], problem["actual"]) == (1, 2)
    assert client.patch("/v1/items/guarded", json=body, headers={"If-Match": "1"}).status_code == 409
    assert client.delete("/v1/items/guarded", headers={"If-Match": '"1"'}).status_code == 409
    assert client.delete("/v1/items/guarded", headers={"If-Match": '"2"'}).status_code == 200


def test_ids_may_hold_anything(client: httpx.Client) -> None:
    for identifier in ("https://example.org/a/b?c=d#e", "päron 🍐", "a%2Fb", "x/y"):
        path = "/v1/items/" + "".join(f"%{byte:02X}" for byte in identifier.encode())
        assert client.put(path, json={"attributes": {}}).status_code == 201
        assert client.get(path).json()["id"] == identifier
        assert client.delete(path + "?wait_for=visible").status_code == 200


def event(identifier: str, user: str, item: str, **more: Any) -> dict[str, Any]:
    return {"event_id": identifier, "user_id": user, "item_id": item, "type": "rating", "value": 5, **more}


def test_events_change_history_and_what_is_seen(client: httpx.Client) -> None:
    user = "eventful"
    before = ids_of(ask(client, user_id=user, limit=50))
    chosen = before[:3]
    batch = [event(f"e-{item}", user, item) for item in chosen]
    response = client.post("/v1/events", json={"events": batch})
    assert response.status_code == 202
    answer = response.json()
    assert (answer["accepted"], answer["duplicates"], answer["rejected"]) == (3, 0, [])
    assert answer["durable"] is True
    after = ask(client, user_id=user, limit=50, min_offset=answer["offset"])
    assert after["cold_start"] is False and not set(chosen) & set(ids_of(after))

    again = client.post("/v1/events", json={"events": [*batch, event("e-more", user, before[4])]}).json()
    assert (again["accepted"], again["duplicates"]) == (1, 3)
    repeated = client.post("/v1/events", json={"events": batch}).json()
    assert (repeated["accepted"], repeated["duplicates"], repeated["offset"]) == (0, 3, None)


def test_events_move_popularity(client: httpx.Client) -> None:
    def likes() -> float:
        answer = ask(client, user_id="somebody", candidates=["item-200"], explain=True)
        signals: dict[str, float] = answer["items"][0]["explanation"]["signals"]
        return signals["like.all"]

    before = likes()
    batch = [event(f"pop-{number}", f"fan-{number}", "item-200") for number in range(5)]
    offset = client.post("/v1/events", json={"events": batch}).json()["offset"]
    assert ask(client, user_id="somebody", min_offset=offset)["degraded"] == []
    assert likes() == pytest.approx(before + 5)


def test_events_are_judged_one_by_one(client: httpx.Client) -> None:
    now_ms = int(time.time() * 1000)
    batch = [
        event("j-0", "judge", "item-1"),
        event("j-1", "judge", "no-such-item"),
        event("j-2", "judge", "item-2", ts=now_ms + 2 * DAY_MS),
        event("j-3", "judge", "item-3", type="ratings"),
        event("j-4", "judge", "item-4", ts="yesterday"),
        event("j-5", "judge", "item-5", ts=now_ms + DAY_MS // 2),
        event("j-6", "judge", "item-6", ts="2020-02-02T02:02:02Z"),
        event("j-7", "judge", "item-7", type="impression", position=3, recommendation_id="r"),
    ]
    answer = client.post("/v1/events", json={"events": batch}).json()
    assert answer["accepted"] == 4
    problems = {entry["index"]: entry["problem"] for entry in answer["rejected"]}
    assert set(problems) == {1, 2, 3, 4}
    assert "'no-such-item'" in problems[1]
    assert str(now_ms + 2 * DAY_MS) in problems[2] and "which is" in problems[2]
    assert "did you mean 'rating'" in problems[3]
    assert "'yesterday'" in problems[4]


def test_impressions_are_logged_after_the_answer(platform: Platform, client: httpx.Client) -> None:
    answer = ask(client, user_id="watched", limit=4)
    wanted = answer["recommendation_id"]

    def logged() -> list[tuple[int | None, str]]:
        events = [entry.event for entry in platform.storage.events.read(count=100_000)]
        return [(e.position, e.item_id) for e in events if e.recommendation_id == wanted and e.type == "impression"]

    eventually(lambda: len(logged()) == 4)
    assert logged() == list(enumerate(ids_of(answer), start=1))
    # What was shown is not what was acted on.
    assert ask(client, user_id="watched")["cold_start"] is True


def test_answers_hold_while_writers_write(client: httpx.Client) -> None:
    stop = threading.Event()
    failures: list[str] = []

    def write() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            year = 2100 + turn % 2
            url = f"/v1/items/busy-{turn % 5}?wait_for=visible"
            response = client.put(url, json={"attributes": {"genre": ["Busy"], "year": year}})
            if not response.json().get("visible"):
                failures.append(response.text)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(40):
            answer = ask(client, user_id="user-8", filter='genre any_of ["Busy"]', limit=20, include=["metadata"])
            found = ids_of(answer)
            assert len(set(found)) == len(found) <= 5
            assert all(item["metadata"]["year"] in (2100, 2101) for item in answer["items"])
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert failures == []
