from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.retrieval.links.liquidity import LiquidityConfig, choose_by_reach, choose_links
from models.retrieval.links.matching import ItemPostings, LinkSet, score_items
from models.retrieval.links.rows import Link, MetaLink

WORDS = st.sampled_from(["x", "y", 1, True])
ROWS = st.lists(
    st.dictionaries(st.sampled_from(["a", "b"]), st.one_of(WORDS, st.lists(WORDS, max_size=3), st.none())), max_size=8
)
PAIRS = st.lists(
    st.builds(MetaLink, st.sampled_from(["a", "b"]), WORDS, st.sampled_from(["a", "b"]), WORDS), min_size=1, max_size=3
)
LINKS = st.lists(
    st.builds(lambda pairs, weight: Link(pairs=tuple(pairs), weight=weight), PAIRS, st.floats(0.1, 5)),
    max_size=8, unique_by=lambda link: link.id,
)  # fmt: skip


def has(row: dict[str, object], name: str, value: object) -> bool:
    found = row.get(name)
    values = found if isinstance(found, list) else [found]
    return any(type(each) is type(value) and each == value for each in values)


@given(links=LINKS, members=ROWS, items=ROWS)
def test_links_hold_where_all_their_pairs_do(
    links: list[Link], members: list[dict[str, object]], items: list[dict[str, object]]
) -> None:
    postings, known = ItemPostings(items), LinkSet(links)
    for member in members:
        mine = known.links_of(member)
        assert {link.id for link in mine} == {
            link.id for link in links if all(has(member, pair.member, pair.value) for pair in link.pairs)
        }
        rows, scores = score_items(mine, postings)
        expected = {
            place: sum(
                link.weight
                for link in links
                if all(has(member, p.member, p.value) and has(item, p.item, p.item_value) for p in link.pairs)
            )
            for place, item in enumerate(items)
        }
        assert rows.tolist() == [place for place, score in expected.items() if score]
        np.testing.assert_allclose(scores, [score for score in expected.values() if score])


@given(links=LINKS, members=ROWS, items=ROWS, enough=st.integers(1, 6), extra=st.integers(0, 6), single=st.booleans())
def test_chosen_links_reach_enough_or_all_that_the_budget_allows(
    links: list[Link],
    members: list[dict[str, object]],
    items: list[dict[str, object]],
    enough: int,
    extra: int,
    single: bool,
) -> None:
    postings, known = ItemPostings(items), LinkSet(links)
    config = LiquidityConfig(enough=enough, budget=enough + extra, unit="link" if single else "segment")
    for member in members:
        chosen = choose_links(known, member, postings.rows, config)
        assert chosen.num_to_score == sum(len(postings.rows(link.item_side)) for link in chosen.links) <= config.budget
        assert chosen.reached.tolist() == score_items(chosen.links, postings)[0].tolist()
        assert chosen.enough == (len(chosen.reached) >= enough)
        left = [
            link for link in known.links_of(member) if link not in chosen.links and postings.rows(link.item_side).size
        ]
        if single and not chosen.enough:
            assert all(chosen.num_to_score + len(postings.rows(link.item_side)) > config.budget for link in left)


def test_the_best_segments_come_first() -> None:
    items = [{"title": "b"}] * 3 + [{"title": "c"}] * 3 + [{"title": "d"}] * 3
    links = [
        Link(pairs=(MetaLink("title", "a", "title", "b"),), weight=1.0),
        Link(pairs=(MetaLink("title", "a", "title", "c"),), weight=4.0),
        Link(pairs=(MetaLink("level", 2, "title", "d"),), weight=3.0),
    ]
    member = {"title": "a", "level": 2}
    rows = ItemPostings(items).rows
    by_segment = choose_links(LinkSet(links), member, rows, LiquidityConfig(enough=3, budget=9))
    assert [link.weight for link in by_segment.links] == [3.0]  # the other segment weighs 2.5 on average
    by_link = choose_links(LinkSet(links), member, rows, LiquidityConfig(enough=3, budget=9, unit="link"))
    assert [link.weight for link in by_link.links] == [4.0]
    everything = choose_links(LinkSet(links), member, rows, LiquidityConfig(enough=9, budget=9))
    assert everything.enough and everything.num_to_score == 9
    stranger = choose_links(LinkSet(links), {}, rows, LiquidityConfig(enough=3, budget=9))
    assert not stranger.links and not stranger.enough


def test_links_that_are_off_hold_of_nobody() -> None:
    link = Link(pairs=(MetaLink("a", "x", "b", "y"),), weight=1.0)
    assert not LinkSet([link.edited(enabled=False)]).links_of({"a": "x"})
    with pytest.raises(ValueError, match="enough 5, budget 4"):
        LiquidityConfig(enough=5, budget=4)


def test_without_items_at_hand_the_reaches_are_added() -> None:
    pair = MetaLink("a", "x", "b", "y")
    reaches = {5.0: 30, 4.0: 100, 3.0: 0, 2.0: 30, 1.0: 30}
    links = LinkSet(
        [
            Link(pairs=(pair._replace(item_value=str(weight)),), weight=weight, reach=of)
            for weight, of in reaches.items()
        ]
    )

    def chosen(enough: int, budget: int) -> list[float]:
        return [link.weight for link in choose_by_reach(links, {"a": "x"}, enough=enough, budget=budget)]

    assert chosen(1, 1000) == [5.0]
    assert chosen(50, 70) == [5.0, 3.0, 2.0]  # 100 do not fit
    assert chosen(500, 1000) == [5.0, 4.0, 3.0, 2.0, 1.0]
    assert choose_by_reach(links, {}, enough=5, budget=9) == []
