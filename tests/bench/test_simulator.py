"""The simulator is deterministic, fair to every policy, and learns."""

from __future__ import annotations

import numpy as np

from tests.bench.simulator import POLICIES, Policy, WorldConfig, regret_table, simulate, table_text

SMALL = WorldConfig(num_days=12, requests_per_day=40, warm_requests=200, num_first_items=80)


def test_regret_falls_and_is_repeatable() -> None:
    thompson, random = Policy(name="Thompson 1", scale=1.0), Policy(name="random", epsilon=1.0)
    run = simulate(thompson, SMALL, 0)
    assert (run.by_day == simulate(thompson, SMALL, 0).by_day).all() and (run.by_day >= -1e-9).all()
    runs = [[simulate(policy, SMALL, seed) for seed in range(4)] for policy in (thompson, random)]
    ours, theirs = (np.mean([run.by_day for run in of], axis=0) for of in runs)
    assert [run.best for run in runs[0]] == [run.best for run in runs[1]], "the same worlds"
    assert ours[-4:].mean() < 0.8 * ours[:3].mean() and ours.mean() < 0.5 * theirs.mean()


def test_the_table_has_a_row_per_policy() -> None:
    rows = regret_table(POLICIES[:3], WorldConfig(num_days=2, requests_per_day=10, warm_requests=60), num_seeds=2)
    greedy = next(row for row in rows if row.policy.name == "greedy")
    assert greedy.versus_greedy == (0.0, 0.0, 0.0) and rows[0].total.mean > greedy.total.mean
    assert table_text(rows).count("\n") == 4
