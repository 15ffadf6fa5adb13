from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.data.schema import Action, Feature, FeatureSchema, Signal
from tests.models.world import DAY_MS, SCHEMA


def test_action_bounds_are_inclusive_and_an_absent_value_meets_none() -> None:
    liked = Action("like", "rating", min_value=4.0, max_value=5.0)
    types = ["rating", "rating", "rating", "view", "rating"]
    values = np.array([4.0, 5.0, 5.5, 4.5, np.nan])
    assert liked.matches(types, values).tolist() == [True, True, False, False, False]
    assert Action("watch", "rating").matches(types, values).tolist() == [True, True, True, False, True]


def test_action_masks_follow_the_order_of_actions() -> None:
    masks = SCHEMA.action_masks(["rating", "rating", "view"], np.array([5.0, 1.0, 5.0]))
    assert masks.tolist() == [0b11, 0b01, 0]


def test_an_action_implies_the_wider_ones_of_its_event() -> None:
    actions = (
        Action("view", "view"),
        Action("watch", "rating"),
        Action("like", "rating", min_value=4.0),
        Action("meh", "rating", max_value=2.0),
        Action("love", "rating", min_value=5.0, max_value=5.0),
        Action("liked", "rating", min_value=4.0),
    )
    schema = replace(
        SCHEMA, actions=actions, tasks=tuple(action.name for action in actions), signals=(), positive="like"
    )
    named = {(schema.tasks[narrow], schema.tasks[wide]) for narrow, wide in schema.implied_tasks()}
    assert named == {
        ("like", "watch"), ("meh", "watch"), ("love", "watch"), ("liked", "watch"),
        ("love", "like"), ("love", "liked"), ("liked", "like"),
    }  # fmt: skip


def test_json_round_trip_keeps_the_hash() -> None:
    again = FeatureSchema.from_json(SCHEMA.to_json())
    assert again == SCHEMA
    assert again.hash() == SCHEMA.hash()
    assert [signal.bit for signal in again.signals] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "changed",
    [
        replace(SCHEMA, history_length=21),
        replace(SCHEMA, tasks=("like", "watch")),
        replace(SCHEMA, user=()),
        replace(SCHEMA, signals=(*SCHEMA.signals[:3], Signal("like.all", "like", DAY_MS))),
    ],
)
def test_any_change_changes_the_hash(changed: FeatureSchema) -> None:
    assert changed.hash() != SCHEMA.hash()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive": "buy"}, "positive 'buy' is not an action"),
        ({"tasks": ()}, "tasks is empty"),
        ({"tasks": ("like", "like")}, "task 'like' is named twice"),
        ({"signals": (Signal("x", "buy", None),)}, "signal 'x': action 'buy'"),
        ({"item": (Feature("a", "text"), Feature("a", "number"))}, "item feature 'a' is named twice"),
        ({"history_length": 0}, "history_length is 0"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SCHEMA, **change)  # type: ignore[arg-type]


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="kind 'colour'"):
        Feature("a", "colour")  # type: ignore[arg-type]
