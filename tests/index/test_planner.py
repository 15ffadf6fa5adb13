import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.planner import Costs, choose_strategy, plan

ROWS = 1_000_000


def test_survivors_decide():
    ways = [choose_strategy(count, ROWS, 100, Costs()) for count in (10, 1_000, 10_000, 100_000, 500_000, ROWS)]
    order = ["gather", "compact", "stream"]
    assert set(ways) == set(order)
    assert ways == sorted(ways, key=order.index)


def test_measured_costs_move_the_boundaries():
    assert choose_strategy(1_000, ROWS, 100, Costs(gather=1.0)) == "gather"
    assert choose_strategy(400_000, ROWS, 100, Costs(compact=1.0)) == "compact"
    assert choose_strategy(100_000, ROWS, 100, Costs(stream=0.5)) == "stream"


def test_queries_that_stream_share_a_pass_whatever_their_filters():
    (step,) = plan([ROWS, ROWS - 1, 900_000], [0, 1, 2] * 8, ROWS, 100, Costs(), batches=True)
    assert step.strategy == "batch" and sorted(step.queries) == list(range(24))
    (step,) = plan([ROWS, ROWS - 1, 900_000], [0, 1, 2] * 8, ROWS, 100, Costs(), batches=False)
    assert step.strategy == "stream"


def test_few_queries_do_not_share():
    assert [step.strategy for step in plan([ROWS], [0, 0], ROWS, 100, Costs(), batches=True)] == ["stream"]


def test_a_filter_that_admits_much_joins_the_pass_that_others_need():
    costs = Costs()
    narrow, wide = plan([ROWS, 20_000], [0] * 8 + [1], ROWS, 100, costs, batches=True)
    assert (narrow.strategy, narrow.queries) == ("compact", (8,)) and wide.strategy == "batch"
    (joined,) = plan([ROWS, 200_000], [0] * 8 + [1], ROWS, 100, costs, batches=True)
    assert joined.strategy == "batch" and joined.queries == tuple(range(9))
    alone = plan([ROWS, 200_000], [0, 1], ROWS, 100, costs, batches=True)  # no pass to join
    assert {step.strategy for step in alone} == {"compact", "stream"}


@pytest.mark.parametrize(("queries", "prefers"), [(1, True), (9, True), (200, False)])
def test_codes_of_one_bit_are_for_few_queries(queries, prefers):
    assert Costs(signs=1.0, batch=9.0, batch_query=0.1).prefers_signs(queries) == prefers


cost = st.floats(0, 1e6)


@given(
    st.lists(st.integers(0, ROWS), min_size=1, max_size=5),
    st.data(),
    st.builds(Costs, stream=cost, compact=cost, gather=cost, batch=cost, batch_query=cost, start=cost),
    st.booleans(),
)
def test_every_query_that_matches_runs_once(matched, data, costs, batches):
    groups = data.draw(st.lists(st.integers(0, len(matched) - 1), min_size=1, max_size=20))
    steps = plan(matched, groups, ROWS, 10, costs, batches=batches)
    assert sorted(query for step in steps for query in step.queries) == [
        query for query, group in enumerate(groups) if matched[group]
    ]
    assert batches or all(step.strategy != "batch" for step in steps)
