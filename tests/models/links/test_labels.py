from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.data.events import EventTable
from models.data.schema import Action, FeatureSchema
from models.retrieval.links.labels import LabelConfig, label_pairs

SCHEMA = FeatureSchema(
    item=(), user=(), signals=(), positive="apply", tasks=("apply",),
    actions=(Action("click", "click"), Action("apply", "apply"), Action("hire", "hire")),
)  # fmt: skip
MEMBERS, ITEMS = np.array([30, 10, 20]), np.array([7, 5])
EVENTS = st.lists(
    st.tuples(
        st.sampled_from([10, 20, 30, 99]), st.sampled_from([5, 7, 99]),
        st.sampled_from(["click", "apply", "hire", "other"]), st.integers(0, 50),
    ),
    max_size=30,
)  # fmt: skip


def table_of(events: list[tuple[int, int, str, int]]) -> EventTable:
    users, items, types, times = ([event[place] for event in events] for place in range(4))
    return EventTable.from_columns(
        SCHEMA,
        user_keys=np.array(users, dtype=np.int64),
        item_keys=np.array(items, dtype=np.int64),
        types=types,
        values=None,
        ts_ms=np.array(times, dtype=np.int64),
    )


@given(events=EVENTS, pending_ms=st.integers(0, 20))
def test_every_pair_once_with_what_became_of_it(events: list[tuple[int, int, str, int]], pending_ms: int) -> None:
    config = LabelConfig(confirmed="hire", refused="apply", pending_ms=pending_ms)
    pairs = label_pairs(config, SCHEMA, table_of(events), MEMBERS, ITEMS)
    again = label_pairs(config, SCHEMA, table_of(events + events), MEMBERS, ITEMS)
    end = max((time for *_, time in events), default=0)
    expected = {}
    for user, item in {(user, item) for user, item, _, _ in events if user != 99 and item != 99}:
        of = [(kind, time) for u, i, kind, time in events if (u, i) == (user, item) and kind in ("apply", "hire")]
        hired = any(kind == "hire" for kind, _ in of)
        if of and (hired or max(time for _, time in of) <= end - pending_ms):
            expected[user, item] = hired
    for found in (pairs, again):
        keys = zip(MEMBERS[found.members].tolist(), ITEMS[found.items].tolist(), strict=True)
        assert dict(zip(keys, found.hired.tolist(), strict=True)) == expected
        assert len(found) == len(expected)


def test_sampled_pairs_are_drawn_for_hires_and_are_none_of_the_labelled() -> None:
    events = [(10, 5, "apply", 1), (10, 5, "hire", 2), (20, 5, "apply", 3)]
    config = LabelConfig(confirmed="hire", refused="apply", pending_ms=0, sampled_per_hire=40)
    pairs = label_pairs(config, SCHEMA, table_of(events), MEMBERS, ITEMS)
    drawn = set(zip(MEMBERS[pairs.members].tolist(), ITEMS[pairs.items].tolist(), pairs.hired.tolist(), strict=True))
    assert drawn == {(10, 5, True), (20, 5, False), (10, 7, False)}


def test_no_events_have_no_pairs() -> None:
    config = LabelConfig(confirmed="hire", refused="apply")
    assert len(label_pairs(config, SCHEMA, table_of([]), MEMBERS, ITEMS)) == 0
    assert len(label_pairs(config, SCHEMA, table_of([(10, 5, "hire", 1)]), MEMBERS[:0], ITEMS)) == 0
