from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.retrieval.links.rows import (
    Link,
    LinkFileError,
    MetaLink,
    compare_links,
    parse_link,
    read_links,
    write_links,
)

NAMES = st.text(min_size=1, max_size=8)
VALUES = st.one_of(st.text(max_size=12), st.integers(-5, 5), st.booleans())
PAIRS = st.lists(st.builds(MetaLink, NAMES, VALUES, NAMES, VALUES), min_size=1, max_size=3)
WEIGHTS = st.floats(-9, 9).map(lambda weight: round(weight, 6))
LINKS = st.builds(
    lambda pairs, weight, enabled, note: Link(pairs=tuple(pairs), weight=weight, enabled=enabled, note=note),
    PAIRS, WEIGHTS, st.booleans(), st.text(max_size=10),
)  # fmt: skip
NURSE = Link(pairs=(MetaLink("title", "nurse 🙂", "title", "midwife"),), weight=2.5, hires=7, reach=3)


@given(links=st.lists(LINKS, max_size=5, unique_by=lambda link: link.id))
def test_what_is_written_is_read_again(links: list[Link], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("links") / "links.jsonl"
    try:
        write_links(path, links)
    except UnicodeEncodeError:  # lone surrogates are no text
        return
    again = read_links(path)
    assert {link.id: link for link in again} == {link.id: link for link in links}
    assert [link.weight for link in again] == sorted((link.weight for link in links), reverse=True)
    assert compare_links(links, again) == ([], [], [])


def test_the_order_of_pairs_and_a_pair_twice_change_nothing() -> None:
    one, other = MetaLink("a", "x", "b", "y"), MetaLink("a", 1, "b", True)
    assert Link(pairs=(one, other), weight=1.0).id == Link(pairs=(other, one, one), weight=2.0).id
    assert Link(pairs=(one,), weight=1.0).id != Link(pairs=(other,), weight=1.0).id
    assert (
        Link(pairs=(MetaLink("a", 1, "b", 1),), weight=1.0).id
        != Link(pairs=(MetaLink("a", True, "b", 1),), weight=1.0).id
    )


def test_sides_name_each_condition_once() -> None:
    link = Link(pairs=(MetaLink("a", "x", "b", "y"), MetaLink("a", "x", "c", "z")), weight=1.0)
    assert link.member_side == (("a", "x"),)
    assert link.item_side == (("b", "y"), ("c", "z"))
    assert link.text == "a=x -> b=y & a=x -> c=z"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Expecting property name"),
        ("[1]", "line 2: \\[1\\]; expected an object"),
        ('{"weight": 1}', "line 2: 'pairs' is missing"),
        ('{"pairs": [], "weight": 1}', "line 2: a link has 0 pairs; expected 1 to 8"),
        ('{"pairs": [["a", "x", "b"]], "weight": 1}', "line 2: pair \\['a', 'x', 'b'\\]; expected"),
        ('{"pairs": [["a", 1.5, "b", "y"]], "weight": 1}', "line 2: pair .*1.5"),
        ('{"pairs": [["a", "x", "b", "y"]], "weight": "2"}', "line 2: weight is '2'; expected a number"),
        ('{"pairs": [["a", "x", "b", "y"]], "weight": NaN}', "line 2: link .* has weight nan"),
        ('{"pairs": [["a", "x", "b", "y"]], "weight": 1, "hires": true}', "line 2: hires is True; expected a number"),
        ('{"pairs": [["a", "x", "b", "y"]], "weight": 1, "enabeld": false}', "line 2: unknown key 'enabeld'"),
        ('{"pairs": [["a", "x", "b", "y"]], "weight": 1, "enabled": 0}', "line 2: enabled is 0; expected true or"),
        ('{"pairs": [["a", "x", "b", "y"]], "weight": 1, "origin": "me"}', "line 2: origin is 'me'"),
        ('{"pairs": [["title", "nurse 🙂", "title", "midwife"]], "weight": 1}', "line 2: link .* stands in line 1"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "links.jsonl"
    write_links(path, [NURSE])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(LinkFileError, match=message):
        read_links(path)


def test_no_file_and_no_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(LinkFileError, match="is no file"):
        read_links(tmp_path / "none.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(LinkFileError, match="not UTF-8"):
        read_links(tmp_path / "binary.jsonl")


def test_changes_are_told_apart() -> None:
    other = Link(pairs=(MetaLink("a", "x", "b", "y"),), weight=1.0)
    heavier = NURSE.edited(weight=3.0)
    assert (heavier.origin, heavier.weight, heavier.id) == ("edited", 3.0, NURSE.id)
    assert compare_links([NURSE], [heavier, other]) == ([other], [], [heavier])
    assert compare_links([NURSE, other], [NURSE.edited(enabled=False)]) == ([], [other], [NURSE.edited(enabled=False)])
    assert parse_link(json.loads('{"id": "stale", "pairs": [["a", "x", "b", "y"]], "weight": 1}')) == other
