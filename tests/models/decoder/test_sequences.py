"""Conversations cut into windows and packed into rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.decoder.sequences import Conversation, Lesson, Row, RowSampler, Turn, lay_out

YES, NO = 7, 8


def make_conversation(num_turns: int, *, length: int = 3, opening: int = 2, together: int = 1, base: int = 100):
    turns = [
        Turn(np.arange(base + length * place, base + length * (place + 1)), place % 3 == 0, place // together * 1000)
        for place in range(num_turns)
    ]
    return Conversation(np.arange(opening), turns)


def lesson_of(conversations: list[Conversation]) -> Lesson:
    return Lesson(conversations, YES, NO)


def tokens_of(row: Row) -> list[int]:
    return row.tokens_T.tolist()


def test_every_turn_is_asked_at_its_last_token_and_answered_in_the_next() -> None:
    conversation = make_conversation(3)
    row = lay_out([lesson_of([conversation]), lesson_of([make_conversation(1, base=50)])])
    assert tokens_of(row) == [0, 1, 100, 101, 102, YES, 103, 104, 105, NO, 106, 107, 108, 0, 1, 50, 51, 52]
    assert row.lengths == [13, 5] and row.num_answers == 4
    assert [tokens_of(row)[place] for place in row.asked_A.tolist()] == [102, 105, 108, 52]
    assert row.labels_A.tolist() == [1.0, 0.0, 0.0, 1.0]


def test_each_task_is_answered_in_its_own_words() -> None:
    row = lay_out([lesson_of([make_conversation(2)]), Lesson([make_conversation(2)], 17, 18)])
    assert row.words_A2.tolist() == [[YES, NO], [YES, NO], [17, 18], [17, 18]]
    assert tokens_of(row)[5] == YES and tokens_of(row)[9 + 5] == 17


def test_a_row_asks_something() -> None:
    with pytest.raises(ValueError, match="asks nothing"):
        lay_out([lesson_of([Conversation(np.arange(3), [])])])


def test_windows_hold_every_turn_once_and_no_more_tokens_than_they_may() -> None:
    conversation = make_conversation(50)
    windows = list(conversation.windows(31))
    assert [turn for window in windows for turn in window.turns] == list(conversation.turns)
    assert max(window.num_tokens() for window in windows) <= 31
    assert len(windows) == 8  # 2 tokens of opening, 7 turns of 4


def test_turns_of_one_instant_are_not_parted() -> None:
    windows = list(make_conversation(12, together=3).windows(2 + 4 * 4))
    assert [len(window.turns) for window in windows] == [3, 3, 3, 3]


def test_what_does_not_fit_into_a_window_is_left_out() -> None:
    assert [len(window.turns) for window in make_conversation(9, together=9).windows(2 + 4 * 4)] == [4]
    assert list(make_conversation(3, length=40).windows(31)) == []


def test_a_pass_reads_every_window_once_and_passes_differ() -> None:
    windows = [make_conversation(2, base=10 * number) for number in range(1, 30)]
    sampler = RowSampler([lesson_of(windows)], row_tokens=40, seed=3)
    firsts: list[list[int]] = []
    index = 0
    for _ in range(2):
        seen: list[int] = []
        while len(seen) < len(windows):
            row = sampler(index)
            assert len(row.tokens_T) <= 40
            seen += [int(part[2]) for part in torch.split(row.tokens_T, row.lengths)]
            index += 1
        firsts.append(seen)
    assert sorted(firsts[0]) == sorted(firsts[1]) and len(set(firsts[0])) == len(windows)
    assert firsts[0] != firsts[1]


def test_a_row_is_a_function_of_its_index() -> None:
    windows = [make_conversation(6, together=2, base=30 * number) for number in range(1, 12)]
    rows = [RowSampler([lesson_of(windows)], row_tokens=64, seed=1)(index) for index in (9, 4, 9)]
    fresh = RowSampler([lesson_of(windows)], row_tokens=64, seed=1)
    assert tokens_of(rows[0]) == tokens_of(rows[2]) == tokens_of(fresh(9))
    assert tokens_of(rows[0]) != tokens_of(rows[1])


def test_only_turns_of_one_instant_change_places() -> None:
    sampler = RowSampler([lesson_of([make_conversation(12, together=3)])], row_tokens=64, seed=0)
    rows = [sampler(index) for index in range(6)]
    for row in rows:
        firsts = [int(row.tokens_T[place - 2]) for place in row.asked_A.tolist()]
        instants = [(first - 100) // 9 for first in firsts]
        assert instants == sorted(instants)
    assert len({tuple(tokens_of(row)) for row in rows}) > 1


@pytest.mark.parametrize(("windows", "message"), [([], "no window"), ([make_conversation(9)], "at most row_tokens")])
def test_a_sampler_says_what_it_cannot_pack(windows: list[Conversation], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RowSampler([lesson_of(windows)], row_tokens=16, seed=0)
