from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.retrieval.links.candidates import CandidateLinks
from models.retrieval.links.rows import MetaLink
from models.retrieval.links.templates import LinkTemplate, MetaLinks

ROWS = st.lists(st.sets(st.integers(0, 9), max_size=6), min_size=1, max_size=25)


def table_of(rows: list[set[int]]) -> np.ndarray:
    table = np.full((len(rows), max((len(row) for row in rows), default=0)), -1, np.int64)
    for place, row in enumerate(rows):
        table[place, : len(row)] = sorted(row)
    return table


@settings(max_examples=60)
@given(hires=ROWS, others=ROWS, max_size=st.integers(1, 4), min_support=st.integers(1, 4))
def test_candidates_are_all_subsets_with_enough_support(
    hires: list[set[int]], others: list[set[int]], max_size: int, min_support: int
) -> None:
    counts = Counter(
        subset for row in hires for size in range(1, max_size + 1) for subset in combinations(sorted(row), size)
    )
    expected = {subset for subset, count in counts.items() if count >= min_support}
    candidates = CandidateLinks(table_of(hires), max_size=max_size, min_support=min_support, max_per_pair=99)
    found = [tuple(sorted(candidates.codes_of(link))) for link in range(len(candidates))]
    assert len(found) == len(set(found)) and set(found) == expected
    assert candidates.sizes().tolist() == [len(link) for link in found]
    entries = candidates.match(table_of(others))
    matched = {(row, found[link]) for row, link in zip(entries.rows.tolist(), entries.links.tolist(), strict=True)}
    assert matched == {(row, link) for row, codes in enumerate(others) for link in found if codes.issuperset(link)}
    assert len(matched) == len(entries.rows)


def test_a_row_of_too_many_codes_keeps_the_most_frequent() -> None:
    candidates = CandidateLinks(table_of([{1, 2, 3}, {1, 2}, {1}]), max_size=2, min_support=1, max_per_pair=2)
    assert candidates.num_cut == 1
    assert {candidates.codes_of(link) for link in range(len(candidates))} == {(1,), (2,), (3,), (1, 2)}


def test_meta_links_are_the_pairs_of_values() -> None:
    members = [{"title": "a", "skills": ["x", "y", "x"], "level": 1}, {"skills": None}, {"title": "🙂", "level": True}]
    items = [{"title": "b", "skills": ("y", "z"), "level": True}, {}]
    templates = [
        LinkTemplate("title", "title"),
        LinkTemplate("skills", "skills", same=True),
        LinkTemplate("level", "level", same=True),
    ]
    links = MetaLinks(templates, members, items)
    pairs = np.array([(m, i) for m in range(3) for i in range(2)])
    codes = links.of_pairs(pairs[:, 0], pairs[:, 1])
    found = [{links.decode(code) for code in row.tolist() if code >= 0} for row in codes]
    assert found[0] == {MetaLink("title", "a", "title", "b"), MetaLink("skills", "y", "skills", "y")}
    assert found[4] == {MetaLink("title", "🙂", "title", "b"), MetaLink("level", True, "level", True)}
    assert found[1] == found[2] == found[3] == found[5] == set()
    with pytest.raises(ValueError, match="is no code"):
        links.decode(10**6)


def test_values_that_cannot_be_linked_are_named() -> None:
    with pytest.raises(ValueError, match="attribute 'pay' is 1.5; a link needs text"):
        MetaLinks([LinkTemplate("pay", "pay")], [{"pay": 1.5}], [])
    with pytest.raises(ValueError, match="no link templates"):
        MetaLinks([], [], [])
