from __future__ import annotations

import numpy as np
import pytest

from models.data.jobs.funnel import TYPES, FunnelEvents, run_funnel
from models.data.jobs.vocabulary import TINY, Occupation, Vocabulary, nearest_occupations
from models.data.jobs.world import JobsConfig, JobsWorld

CONFIG = JobsConfig(num_members=600, num_jobs=200, num_companies=30, num_days=20, mean_budget=15.0)


@pytest.fixture(scope="module")
def world() -> JobsWorld:
    return JobsWorld(TINY, CONFIG)


@pytest.fixture(scope="module")
def events(world: JobsWorld) -> FunnelEvents:
    return run_funnel(world)


def holds(rule_pairs: tuple[tuple[str, str, str, str], ...], member: dict[str, object], job: dict[str, object]) -> bool:
    def has(row: dict[str, object], name: str, value: str) -> bool:
        found = row[name]
        return value in found if isinstance(found, list) else value == found

    return all(has(member, a, v) and has(job, b, w) for a, v, b, w in rule_pairs)


def test_the_truth_is_what_the_rules_say(world: JobsWorld) -> None:
    members, jobs = world.member_attributes(), world.job_attributes()
    random = np.random.default_rng(0)
    m, j = random.integers(len(members), size=400), random.integers(len(jobs), size=400)
    expected = [
        CONFIG.rules.base_log_odds
        + sum(rule.weight for rule in world.rules.rules if holds(rule.pairs, members[a], jobs[b]))
        for a, b in zip(m.tolist(), j.tolist(), strict=True)
    ]
    np.testing.assert_allclose(world.hire_chances(m, j), 1 / (1 + np.exp(-np.array(expected))), rtol=1e-9)
    assert (world.qualified(m, j) == (np.array(expected) > CONFIG.rules.base_log_odds)).all()


def test_the_funnel_narrows_and_keeps_its_limits(world: JobsWorld, events: FunnelEvents) -> None:
    sizes = [len(events.of(name)) for name in TYPES]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] > 20
    applied = events.of("apply")
    assert np.bincount(applied.members).max() <= CONFIG.max_applications
    assert (np.bincount(applied.jobs, minlength=len(world.jobs)) <= world.budgets).all()
    pairs = applied.members * len(world.jobs) + applied.jobs
    assert len(np.unique(pairs)) == len(pairs)
    hired = events.of("hire")
    assert np.bincount(hired.members).max() == 1
    assert (np.bincount(hired.jobs, minlength=len(world.jobs)) <= world.openings).all()
    assert np.isin(hired.members * len(world.jobs) + hired.jobs, pairs).all()
    assert (np.diff(events.ts_ms) >= 0).all()
    shown = events.of("impression")
    # Shown from the first midnight after it was posted.
    assert (shown.ts_ms >= world.posted_ms[shown.jobs]).all()


def test_hires_are_qualified_and_applications_are_not_all(world: JobsWorld, events: FunnelEvents) -> None:
    applied, hired = events.of("apply"), events.of("hire")
    assert world.qualified(hired.members, hired.jobs).mean() > 0.9
    assert 0.2 < world.qualified(applied.members, applied.jobs).mean() < 0.8


def test_positions_and_popularity_bias_the_log(world: JobsWorld, events: FunnelEvents) -> None:
    shown, clicked = events.of("impression"), events.of("click")
    rates = np.bincount(clicked.positions) / np.bincount(shown.positions)
    assert rates[0] > 3 * rates[-1]
    counts = np.bincount(shown.jobs, minlength=len(world.jobs))
    popular = world.popularity >= np.quantile(world.popularity, 0.8)
    assert counts[popular].mean() > 1.5 * counts[~popular].mean()


def test_hidden_attributes_are_hidden_from_everyone_but_the_truth() -> None:
    half = JobsWorld(TINY, JobsConfig(num_members=400, num_jobs=100, missing_share=0.5))
    known = [len(row) for row in half.member_attributes()]
    assert 1.5 < np.mean(known) < 3.5
    members = np.arange(100)
    assert half.hire_chances(members, members).shape == (100,)


def test_nearest_occupations_share_a_family_and_most_skills() -> None:
    near = nearest_occupations(TINY, 2)
    titles = [occupation.title for occupation in TINY.occupations]
    assert titles[near[titles.index("nurse"), 0]] == "intensive care nurse"
    for place, others in enumerate(near):
        assert all(TINY.occupations[other].family == TINY.occupations[place].family for other in others)
    alone = Vocabulary("one", "none", (Occupation("x", "f", ("s",)),))
    assert nearest_occupations(alone, 2).tolist() == [[-1, -1]]


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="num_jobs is 0"):
        JobsConfig(num_jobs=0)
    with pytest.raises(ValueError, match="missing_share is 1.5"):
        JobsConfig(missing_share=1.5)
    with pytest.raises(ValueError, match="2 titles, 1 of them different"):
        Vocabulary("twice", "none", (Occupation("x", "f", ("s",)), Occupation("x", "f", ("t",))))


def test_a_vocabulary_of_one_title_makes_a_world() -> None:
    alone = Vocabulary("one", "none", (Occupation("x 🙂", "f", ("s",)),))
    events = run_funnel(JobsWorld(alone, JobsConfig(num_members=50, num_jobs=5, num_companies=2, num_days=5)))
    assert len(events.of("impression")) > 0
