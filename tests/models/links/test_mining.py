from __future__ import annotations

import numpy as np
import pytest

from models.data.jobs.funnel import run_funnel
from models.data.jobs.vocabulary import TINY
from models.data.jobs.world import JobsConfig, JobsWorld
from models.retrieval.links.mining import (
    LabelledPairs,
    MiningConfig,
    NothingToMine,
    join_pairs,
    mine_links,
    sample_others,
)
from models.retrieval.links.rows import MetaLink
from models.retrieval.links.templates import LinkTemplate

TEMPLATES = (
    LinkTemplate("title", "title"),
    LinkTemplate("seniority", "seniority"),
    LinkTemplate("industry", "industry"),
    LinkTemplate("skills", "skills", same=True),
)
CONFIG = MiningConfig(templates=TEMPLATES)


def labelled(world: JobsWorld) -> LabelledPairs:
    events = run_funnel(world)
    applied, hired = events.of("apply"), events.of("hire")
    size = len(world.jobs)
    pairs, hires = applied.members * size + applied.jobs, hired.members * size + hired.jobs
    return LabelledPairs(applied.members, applied.jobs, np.isin(pairs, hires))


@pytest.fixture(scope="module")
def world() -> JobsWorld:
    return JobsWorld(TINY, JobsConfig(num_members=3000, num_jobs=400, num_companies=40, mean_budget=80.0))


def test_the_rules_of_a_world_are_found(world: JobsWorld) -> None:
    pairs = labelled(world)
    sure = MiningConfig(templates=TEMPLATES, min_weight=1.0)
    mined = mine_links(sure, world.member_attributes(), world.job_attributes(), pairs)
    rules = {rule.pairs for rule in world.rules.rules}
    found = {link.pairs for link in mined.links}
    hires: dict[tuple[MetaLink, ...], int] = {}
    members, jobs = world.member_attributes(), world.job_attributes()
    for rule in rules:
        holds = [
            all(
                (v in members[m][a] if a == "skills" else members[m][a] == v)  # type: ignore[operator]
                and (x in jobs[j][b] if b == "skills" else jobs[j][b] == x)  # type: ignore[operator]
                for a, v, b, x in rule
            )
            for m, j in zip(pairs.members[pairs.hired].tolist(), pairs.items[pairs.hired].tolist(), strict=True)
        ]
        hires[rule] = sum(holds)
    known = {rule for rule in rules if hires[rule] >= 10}
    assert len(known) > 20
    assert len(found & known) / len(known) > 0.8
    assert len(found & rules) / len(found) > 0.8
    for link in mined.links:
        side = link.item_side
        assert link.reach == sum(
            all(value in job[name] if name == "skills" else job[name] == value for name, value in side)  # type: ignore[operator]
            for job in jobs
        )
        if link.pairs in rules:
            assert link.hires == hires[link.pairs]


def test_the_same_pairs_give_the_same_links_and_duplicates_change_no_sets(world: JobsWorld) -> None:
    members, jobs = world.member_attributes(), world.job_attributes()
    pairs = labelled(world)
    one, again = (mine_links(CONFIG, members, jobs, pairs) for _ in range(2))
    assert one.links == again.links
    twice = LabelledPairs(*(np.repeat(column, 2) for column in (pairs.members, pairs.items, pairs.hired)))
    doubled = mine_links(MiningConfig(templates=TEMPLATES, min_support=6), members, jobs, twice)
    assert {link.pairs for link in doubled.links} == {link.pairs for link in one.links}


def test_hidden_attributes_and_odd_values_are_mined_all_the_same() -> None:
    half = JobsWorld(TINY, JobsConfig(num_members=2000, num_jobs=300, num_companies=20, missing_share=0.5))
    renamed = [row | ({"title": f"{row['title']} 🙂"} if "title" in row else {}) for row in half.member_attributes()]
    mined = mine_links(CONFIG, renamed, half.job_attributes(), labelled(half))
    assert mined.links
    assert any(str(pair.value).endswith("🙂") for link in mined.links for pair in link.pairs)


def test_nothing_to_mine_is_said() -> None:
    none = np.zeros(0, np.int64)
    with pytest.raises(NothingToMine, match="0 of 0 pairs are hires"):
        mine_links(CONFIG, [], [], LabelledPairs(none, none, np.zeros(0, np.bool_)))
    with pytest.raises(NothingToMine, match="1 of 1 pairs are hires"):
        mine_links(CONFIG, [{}], [{}], LabelledPairs(none[:0].repeat(0), none, np.ones(1, np.bool_)))


def test_members_and_items_without_attributes_have_no_links() -> None:
    places = np.arange(40) % 4
    pairs = LabelledPairs(places, places, np.arange(40) % 2 == 0)
    mined = mine_links(CONFIG, [{}] * 4, [{}] * 4, pairs)
    assert mined.links == () and mined.figures["candidates"] == 0


def test_one_of_equal_links_is_kept() -> None:
    members = [{"title": "a", "industry": "x"}, {"title": "b", "industry": "y"}]
    items = [{"title": "a", "industry": "x"}, {"title": "b", "industry": "y"}]
    random = np.random.default_rng(0)
    m, i = random.integers(2, size=400), random.integers(2, size=400)
    mined = mine_links(CONFIG, members, items, LabelledPairs(m, i, (m == i) & (random.random(400) < 0.8)))
    # Title and industry say the same: each of the two is one link of one meta link.
    assert {len(link.pairs) for link in mined.links} == {1}
    assert len(mined.links) == 2


def test_sampled_others_are_none_of_the_known() -> None:
    random = np.random.default_rng(1)
    hires = LabelledPairs(np.arange(50), np.arange(50) % 5, np.ones(50, np.bool_))
    known = hires.members * 5 + hires.items
    others = sample_others(hires, 5, 4, random, known)
    assert 120 < len(others) < 200 and not others.hired.any()
    assert not np.isin(others.members * 5 + others.items, known).any()
    joined = join_pairs([(hires, np.arange(50)), (others, np.arange(len(others)))])
    assert joined.hired.sum() == 50 and joined.hired[0] and len(joined) == 50 + len(others)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_size": 0}, "max_size 0"),
        ({"l1_steps": (2.0,)}, r"l1_steps is \(2.0,\)"),
        ({"holdout_share": 1.0}, "holdout_share is 1.0"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MiningConfig(templates=TEMPLATES, **settings)  # type: ignore[arg-type]
