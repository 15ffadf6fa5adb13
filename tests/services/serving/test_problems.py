"""Every bad input is a problem document that points at what is wrong."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.schema import RecommendationRequest

USER = {"user_id": "user-1"}


def problem_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert set(problem) >= {"type", "title", "status", "detail", "instance", "request_id"}
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({**USER, "filter": "yeer >= 1990"}, "/filter", "year"),
        ({**USER, "filter": {"field": "yeer", "gte": 1990}}, "/filter/field", "year"),
        ({**USER, "filter": "year >="}, "/filter", ""),
        ({**USER, "filter": {"and": [{"field": "year", "gte": 1990}, {"field": "year"}]}}, "/filter/and/1", ""),
        ({**USER, "filter": 'year >= "old"'}, "/filter", "old"),
        ({**USER, "filter": {"field": "year", "any_of": ["old"]}}, "/filter/any_of/0", "old"),
        ({**USER, "filter": 7}, "/filter", ""),
        ({**USER, "boosts": [{"filter": "yeer >= 1990", "weight": 1}]}, "/boosts/0/filter", "year"),
        (
            {
                **USER,
                "boosts": [
                    {"filter": "year > 1", "weight": 1},
                    {"filter": {"field": "year", "any_of": ["old"]}, "weight": 1},
                ],
            },
            "/boosts/1/filter/any_of/0",
            "old",
        ),
        ({**USER, "boosts": [{"filter": "year > 1", "weight": 1e300}]}, "/boosts/0/weight", ""),
        ({**USER, "boosts": [{"filter": "year > 1"}]}, "/boosts/0/weight", ""),
        ({**USER, "boosts": [{"weight": 1.0}]}, "/boosts/0/filter", ""),
        ({**USER, "limit": 201}, "/limit", "200"),
        ({**USER, "limit": 0}, "/limit", "1"),
        ({**USER, "limit": "10"}, "/limit", "integer"),
        ({**USER, "limit": True}, "/limit", "integer"),
        ({**USER, "limt": 3}, "/limt", "not permitted"),
        ({"user_id": 7}, "/user_id", "string"),
        ({"user_id": ""}, "/user_id", ""),
        ({}, "/user_id", "either"),
        ({**USER, "session": {"events": []}}, "/session", "either"),
        ({**USER, "exclude": {"seen": "yes"}}, "/exclude/seen", "boolean"),
        ({**USER, "candidates": ["item-1", "no-such"]}, "/candidates/1", "no-such"),
        ({**USER, "candidates": []}, "/candidates", "at least 1"),
        ({**USER, "include": ["everything"]}, "/include/0", "metadata"),
        ({**USER, "budget_ms": 0}, "/budget_ms", "1"),
        ({**USER, "min_offset": "12-0"}, "/min_offset", "items:"),
        ({**USER, "min_offset": ["items:12-0", "books:1-0"]}, "/min_offset/1", "books:1-0"),
        ({"session": {"events": [{"item_id": "item-1", "type": "rate"}]}}, "/session/events/0/type", "rating"),
        ({"session": {"events": [{"item_id": "item-1", "type": "view", "ts": "soon"}]}}, "/session/events/0/ts", ""),
    ],
)
def test_bad_questions(client: httpx.Client, body: dict[str, Any], pointer: str, words: str) -> None:
    problem = problem_of(client.post("/v1/recommendations", json=body), 422)
    assert [entry["pointer"] for entry in problem["errors"]][0] == pointer
    assert words in problem["errors"][0]["detail"]


def test_every_misfit_is_named_with_its_value(client: httpx.Client) -> None:
    body = {"user_id": "user-1", "limit": 999, "explain": "no"}
    problem = problem_of(client.post("/v1/recommendations", json=body), 422)
    assert {entry["pointer"]: entry["value"] for entry in problem["errors"]} == {"/limit": 999, "/explain": "no"}


@pytest.mark.parametrize(
    ("query", "pointer"),
    [("limit=500", "/limit"), ("limit=many", "/limit"), ("lmit=5", "/lmit"), ("filter=yeer%3E1", "/filter")],
)
def test_bad_query_strings(client: httpx.Client, query: str, pointer: str) -> None:
    for path in ("/v1/users/user-1/recommendations", "/v1/items/item-1/similar"):
        problem = problem_of(client.get(f"{path}?{query}"), 422)
        assert (problem["errors"][0]["pointer"], problem["errors"][0]["in"]) == (pointer, "query")


@pytest.mark.parametrize(
    ("attributes", "pointer", "words"),
    [
        ({"yaer": 1990}, "/attributes/yaer", "year"),
        ({"year": "1990"}, "/attributes/year", "integer"),
        ({"year": 1990.5}, "/attributes/year", "integer"),
        ({"genre": "Drama"}, "/attributes/genre", "list"),
        ({"genre": ["Drama", 7]}, "/attributes/genre/1", "text"),
        ({"sold_out": 1}, "/attributes/sold_out", "true or false"),
        ({"released": "last week"}, "/attributes/released", "ISO-8601"),
    ],
)
def test_bad_attributes(client: httpx.Client, attributes: dict[str, Any], pointer: str, words: str) -> None:
    for method in ("PUT", "PATCH"):
        response = client.request(method, "/v1/items/item-1", json={"attributes": attributes})
        problem = problem_of(response, 422)
        assert problem["type"] == "/problems/schema-violation"
        entry = problem["errors"][0]
        assert entry["pointer"] == pointer and words in entry["detail"] and "value" in entry
    assert client.get("/v1/items/item-1").json()["version"] == 1


def test_unknown_things_are_404(client: httpx.Client) -> None:
    for method, path, kind in (
        ("GET", "/v1/items/none", "unknown-item"),
        ("DELETE", "/v1/items/none", "unknown-item"),
        ("GET", "/v1/items/none/similar", "unknown-item"),
        ("GET", "/v1/users/none", "unknown-user"),
        ("DELETE", "/v1/users/none", "unknown-user"),
        ("GET", "/v1/nowhere", "not-found"),
        ("GET", "/", "not-found"),
    ):
        problem = problem_of(client.request(method, path), 404)
        assert problem["type"] == f"/problems/{kind}"
        assert problem["instance"] == path
    patch = client.patch("/v1/items/none", json={"attributes": {"year": 1}})
    assert problem_of(patch, 404)["type"] == "/problems/unknown-item"


def test_wrong_method_is_405(client: httpx.Client) -> None:
    response = client.get("/v1/recommendations")
    assert "POST" in problem_of(response, 405)["detail"]
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("body", [b"{", b"", b"nonsense", b'{"user_id": "user-1",}', b'{"a": \xff}', b"[" * 100_000])
def test_broken_json_is_400(client: httpx.Client, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = client.post("/v1/recommendations", content=body, headers=headers)
    if body:
        problem_of(response, 400)
    else:
        assert problem_of(response, 422)["errors"][0]["detail"] == "Field required"


def test_numbers_that_json_does_not_have_are_refused(client: httpx.Client) -> None:
    body = b'{"events": [{"event_id": "n", "user_id": "u", "item_id": "item-1", "type": "rating", "value": NaN}]}'
    response = client.post("/v1/events", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"


def test_lone_surrogates_are_refused(client: httpx.Client) -> None:
    body = b'{"user_id": "\\ud800"}'
    response = client.post("/v1/recommendations", content=body, headers={"content-type": "application/json"})
    problem_of(response, 422)


def test_large_bodies_are_413(client: httpx.Client) -> None:
    body = {"user_id": "user-1", "filter": "x" * 300_000}
    problem = problem_of(client.post("/v1/recommendations", json=body), 413)
    assert "200000" in problem["detail"]

    def chunks() -> Any:
        for _ in range(40):
            yield b" " * 10_000

    # Without a length in its head the body is counted while it comes.
    headers = {"content-type": "application/json"}
    problem_of(client.post("/v1/recommendations", content=chunks(), headers=headers), 413)


@pytest.mark.parametrize(
    ("event", "pointer"),
    [
        ({"user_id": "u", "item_id": "item-1", "type": "view"}, "/events/0/event_id"),
        ({"event_id": "", "user_id": "u", "item_id": "item-1", "type": "view"}, "/events/0/event_id"),
        ({"event_id": "e", "user_id": "u", "item_id": "item-1", "type": "view", "value": "5"}, "/events/0/value"),
        ({"event_id": "e", "user_id": "u", "item_id": "item-1", "type": "view", "x": 1}, "/events/0/x"),
        ({"event_id": "e", "user_id": "u" * 600, "item_id": "item-1", "type": "view"}, "/events/0/user_id"),
    ],
)
def test_misshapen_events_refuse_the_batch(client: httpx.Client, event: dict[str, Any], pointer: str) -> None:
    problem = problem_of(client.post("/v1/events", json={"events": [event]}), 422)
    assert problem["errors"][0]["pointer"] == pointer


def test_too_many_events(client: httpx.Client) -> None:
    event = {"event_id": "e", "user_id": "u", "item_id": "i", "type": "view"}
    problem = problem_of(client.post("/v1/events", json={"events": [event] * 1001}), 422)
    assert problem["errors"][0]["pointer"] == "/events" and "1000" in problem["errors"][0]["detail"]


def test_bad_if_match(client: httpx.Client) -> None:
    headers = {"If-Match": "newest"}
    problem = problem_of(client.put("/v1/items/item-1", json={"attributes": {}}, headers=headers), 422)
    assert problem["errors"][0]["in"] == "header"


def test_internal_routes_refuse_what_is_no_frame(client: httpx.Client) -> None:
    for path in ("/internal/retrieve", "/internal/similar", "/internal/rank"):
        problem = problem_of(client.post(path, content=b"no arrow"), 422)
        assert problem["type"] == "/problems/frame-not-valid"


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.sampled_from(["user-1", "item-1", "year >= 1990", "view", "items:1-0"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["field", "gte", "any_of", "and", "not", "events", "item_id", "type", "ts", "seen"])
            | st.text(max_size=5),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from([*RecommendationRequest.model_fields, "events", "attributes", "unknown"])


@given(body=st.dictionaries(FIELDS, VALUES, max_size=5) | VALUES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_is_a_failure_of_ours(client: httpx.Client, body: Any) -> None:
    content = json.dumps(body).encode()
    for method, path in (
        ("POST", "/v1/recommendations"),
        ("POST", "/v1/events"),
        ("PUT", "/v1/items/fuzzed"),
        ("PATCH", "/v1/users/user-1"),
    ):
        response = client.request(method, path, content=content, headers={"content-type": "application/json"})
        if not response.is_success:
            assert response.status_code == 422, (method, path, body, response.text)
            problem = problem_of(response, 422)
            assert all(entry["pointer"].startswith("/") or entry["pointer"] == "" for entry in problem["errors"])
