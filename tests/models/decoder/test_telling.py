"""Exposures in words: each as it stood at its instant."""

from __future__ import annotations

import numpy as np

from models.data.events import EventTable
from models.data.schema import Action, Feature, FeatureSchema, Signal
from models.decoder.exposures import ExposureConfig, Exposures, find_exposures
from models.decoder.telling import interactions_of, tell
from models.decoder.verbalizer.numbers import NumberWords
from models.decoder.verbalizer.task import Question, TaskPrompt
from models.decoder.verbalizer.verbalizer import Verbalizer
from tests.models.decoder.tiny import tiny_tokenizer

SCHEMA = FeatureSchema(
    item=(Feature("title", "text"),),
    user=(Feature("age", "number"),),
    actions=(Action("watch", "rating"), Action("like", "rating", min_value=4)),
    signals=(Signal("watched", "watch", None), Signal("liked", "like", None)),
    positive="like",
    tasks=("like",),
)
ITEMS = {item: {"title": f"film {item}"} for item in range(20)}
TASK = TaskPrompt(
    name="like", instruction="The member", member="{age}", item="{title}[; {watched|count}]",
    questions=(Question(name="like", text="liked", action="like"),), style="terse",
)  # fmt: skip


def ratings(num: int = 300, seed: int = 0) -> tuple[EventTable, Exposures]:
    random = np.random.default_rng(seed)
    events = EventTable.from_columns(
        SCHEMA,
        user_keys=random.integers(1, 6, num),
        item_keys=random.integers(0, 22, num),  # two are in no catalogue
        types=["rating"] * num,
        values=random.integers(1, 6, num).astype(np.float64),
        ts_ms=np.sort(random.integers(0, num // 2, num)) * 1000,
    )
    return events, find_exposures(SCHEMA, events, "like", ExposureConfig(exposed=("watch",), horizon_ms=0))


def test_signals_are_those_of_strictly_earlier_events() -> None:
    events, exposures = ratings()
    told = interactions_of(SCHEMA, ITEMS, events, exposures, NumberWords())
    assert len(told) == len(exposures)
    for row in range(0, len(exposures), 17):
        earlier = (events.ts_ms < exposures.ts_ms[row]) & (events.item_keys == exposures.item_keys[row])
        one = told[row]
        assert one.signals is not None and one.ts_ms == exposures.ts_ms[row]
        assert one.signals.signals_S.tolist() == [earlier.sum(), (earlier & (events.action_masks == 3)).sum()]
        assert one.actions == exposures.actions[row]
        assert one.attributes == ITEMS.get(int(exposures.item_keys[row]), {})


def test_an_item_is_measured_against_a_catalogue_of_about_its_instant() -> None:
    events, exposures = ratings()
    told = interactions_of(SCHEMA, ITEMS, events, exposures, NumberWords())
    exact = interactions_of(SCHEMA, ITEMS, events, exposures, NumberWords(), max_tables=len(exposures))
    few = interactions_of(SCHEMA, ITEMS, events, exposures, NumberWords(), max_tables=2)
    tables = [len({id(one.signals.percentiles) for one in which if one.signals}) for which in (few, told, exact)]
    assert tables[0] < tables[1] <= tables[2]
    first = told[0].signals
    assert first is not None and first.value(("watched",)) is None


def test_members_are_told_whole_with_their_answers_and_rates() -> None:
    events, exposures = ratings()
    thinned, _ = exposures.thinned(0.5, seed=0)
    told = interactions_of(SCHEMA, ITEMS, events, thinned, NumberWords())
    verbalizer = Verbalizer(TASK, tiny_tokenizer(), SCHEMA)
    conversations = tell(verbalizer, {1: {"age": 30}}, thinned, told)
    assert len(conversations) == 5 and sum(len(rows) for _, rows in conversations) == len(thinned) < len(exposures)
    for conversation, rows in conversations:
        assert [turn.label for turn in conversation.turns] == thinned.labels[rows].tolist()
        assert [turn.ts_ms for turn in conversation.turns] == thinned.ts_ms[rows].tolist()
        assert {turn.log_rate for turn in conversation.turns} == {float(thinned.log_rate[0])}
    openings = [tiny_tokenizer().decode(conversation.opening.tolist()) for conversation, _ in conversations]
    assert sum("30" in opening for opening in openings) == 1
