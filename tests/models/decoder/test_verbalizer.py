"""Prompts: what they say, that they fit, and that training reads what serving reads."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoder.sequences import Conversation
from models.decoder.tokenizer import TokenizerError
from models.decoder.verbalizer.history import Dropped
from models.decoder.verbalizer.numbers import NumberWords
from models.decoder.verbalizer.task import HistorySelection, Interaction, TaskError, TaskPrompt
from models.decoder.verbalizer.verbalizer import BudgetError, Verbalizer
from tests.models.decoder.prompts import (
    DAY_MS,
    GENRE_TASK,
    LIKE,
    LIKE_TASK,
    LIKED,
    PERCENTILES,
    RATE_TASK,
    SCHEMA,
    WATCH,
    film,
    histories,
    joined,
    verbalizer,
)
from tests.models.decoder.tiny import tiny_tokenizer

TASKS = (LIKE_TASK, RATE_TASK, GENRE_TASK, replace(LIKE_TASK, style="terse"))


def test_inline_says_each_entry_as_the_candidate_with_its_answer() -> None:
    asker = verbalizer()
    history = [film("Heat", 0, WATCH, genre=["Drama", "War"]), film("Big", 3 * DAY_MS, WATCH | LIKE)]
    prompt = asker.prefix({"age": 24, "gender": "F"}, history, 4 * DAY_MS)
    assert prompt.text == (
        "What a member watched.\n"
        "Member: 24 years, F."
        "\n- Heat, Drama, War; liked by 50 of 100; bottom 50%"
        "\nLiked? No"
        "\n- Big; liked by 50 of 100; bottom 50% (3 days later)"
        "\nLiked? Yes"
    )
    body, questions = asker.candidate_pieces({"title": "Jaws"}, None, 4 * DAY_MS, prompt.newest_ms)
    assert body.text == "\n- Jaws (1 day later)"
    assert [question.text for question in questions] == ["\nLiked?"]
    assert [part.name for part in prompt.parts] == ["instruction", "member", "history"]
    assert tiny_tokenizer().decode(prompt.tokens) == prompt.text


def test_terse_says_the_question_once() -> None:
    prompt = verbalizer(replace(LIKE_TASK, style="terse")).prefix({}, [film("Heat"), film("Big", 5, LIKE | WATCH)], 9)
    assert prompt.text == (
        "What a member watched.\nMember:.\nLiked?"
        "\n- Heat; liked by 50 of 100; bottom 50%\n=> No"
        "\n- Big; liked by 50 of 100; bottom 50%\n=> Yes"
    )


def test_grouped_says_entries_under_headings_with_ages() -> None:
    task = replace(
        LIKE_TASK, style="grouped", item="{title}[ ({when})]", headings=(("like", "Liked"), ("watch", "Watched only"))
    )
    asker = verbalizer(task)
    history = [film("Heat", 0, WATCH | LIKE), film("Big", DAY_MS), film("Jaws", 2 * DAY_MS, WATCH | LIKE)]
    prompt = asker.prefix({}, [*history, film("Unseen", 2 * DAY_MS, 0)], 2 * DAY_MS)
    assert prompt.text == (
        "What a member watched.\nMember:."
        "\n\nLiked:\n- Heat (2 days ago)\n- Jaws (just now)"
        "\n\nWatched only:\n- Big (1 day ago)"
    )
    assert prompt.dropped == Dropped(other_actions=1)
    body, questions = asker.candidate_pieces({"title": "Psycho"}, None, 2 * DAY_MS, prompt.newest_ms)
    assert body.text + questions[0].text == "\n\n- Psycho\nLiked?"


def test_a_question_about_what_comes_next_reveals_the_item_after_its_answer() -> None:
    asker = verbalizer(GENRE_TASK)
    history = [film("Heat", 0, genre=["Drama"]), film("M", DAY_MS), film("Big", 2 * DAY_MS, genre=["Comedy"])]
    prompt = asker.prefix({}, history, 2 * DAY_MS + 5)
    assert prompt.text == (
        "What a member watched."
        "\n- The next film\nA drama? Yes: Heat"
        "\n- The next film, 1 day later: M"
        "\n- The next film, 1 day later\nA drama? No: Big"
    )
    [conversation] = asker.conversations({}, history)
    assert [turn.label for turn in conversation.turns] == [True, False]
    assert asker.places(history) == [[0, 2]]


def test_entries_of_one_instant_have_the_same_words_of_time() -> None:
    history = [film("a", 0), film("b", DAY_MS), film("c", DAY_MS)]
    text = verbalizer(replace(LIKE_TASK, item="{title}[ ({when})]")).prefix({}, history, DAY_MS).text
    assert text.count("(1 day later)") == 2


def serve(asker: Verbalizer, member: dict[str, object], history: list[Interaction], place: int) -> list[list[int]]:
    """Return the tokens that serving reads of an interaction, per question."""
    target, before = history[place], history[:place]
    prompt = asker.prefix(member, before, target.ts_ms)
    candidate = asker.candidate(target.attributes, target.signals, target.ts_ms, prompt.newest_ms)
    return [joined([prompt.tokens, candidate.body, question]) for question in candidate.questions]


def read(asker: Verbalizer, conversation: Conversation, turn: int) -> list[int]:
    """Return the tokens that training reads up to a turn's answer."""
    tokens = conversation.opening.tolist()
    for place in range(turn + 1):
        tokens += conversation.turns[place].tokens.tolist()
        if place < turn:
            tokens.append(asker.labels.yes if conversation.turns[place].label else asker.labels.no)
    return tokens


@settings(max_examples=60, deadline=None)
@given(history=histories(), task=st.sampled_from([*TASKS, replace(LIKE_TASK, style="grouped")]))
def test_training_reads_what_serving_reads(history: list[Interaction], task: TaskPrompt) -> None:
    asker = verbalizer(task)
    member: dict[str, object] = {"age": 30, "gender": "x"}
    conversations, places = asker.conversations(member, history), asker.places(history)
    assert [len(conversation.turns) for conversation in conversations] == [len(inside) for inside in places]
    for conversation, inside in zip(conversations, places, strict=True):
        for turn, place in enumerate(inside):
            asked = conversation.turns[turn]
            number = asker.asked(history[place])
            assert read(asker, conversation, turn) == serve(asker, member, history, place)[number]
            assert asked.label is task.questions[number].label(history[place], SCHEMA)
    labelled = [
        place for place, one in enumerate(history) if task.questions[asker.asked(one)].label(one, SCHEMA) is not None
    ]
    if task.style != "grouped":
        assert sorted(place for inside in places for place in inside) == labelled


@settings(max_examples=60, deadline=None)
@given(history=histories(), place=st.integers(0, 7), answer=st.booleans(), task=st.sampled_from(TASKS))
def test_an_entry_is_its_candidate_with_an_answer(
    history: list[Interaction], place: int, answer: bool, task: TaskPrompt
) -> None:
    asker = verbalizer(replace(task, reveal="", history=replace(task.history, actions=())))
    history = [one for one in history if one.ts_ms <= DAY_MS] or [film("only")]
    target = history[min(place, len(history) - 1)]
    before = history[: history.index(target)]
    label = task.questions[asker.asked(target)].label(target, SCHEMA)
    if label is None:
        return
    tokens = [*serve(asker, {}, [*before, target], len(before))[asker.asked(target)]]
    tokens.append(asker.labels.yes if label else asker.labels.no)
    assert list(asker.prefix({}, [*before, target], target.ts_ms).tokens) == tokens


@settings(max_examples=80, deadline=None)
@given(
    history=histories(12),
    task=st.sampled_from([*TASKS, replace(LIKE_TASK, style="grouped")]),
    spare=st.integers(0, 400),
    prefer=st.sampled_from(["newest", "positives"]),
    max_entries=st.integers(0, 12),
)
def test_a_prompt_is_never_over_its_budget(
    history: list[Interaction], task: TaskPrompt, spare: int, prefer: str, max_entries: int
) -> None:
    selection = HistorySelection(actions=("watch",), max_entries=max_entries, prefer=prefer)  # type: ignore[arg-type]
    asker = verbalizer(replace(task, history=selection))
    opening = len(asker.prefix({}, [], 0).tokens)
    prompt = asker.prefix({}, history, 40 * DAY_MS, opening + spare)
    whole = asker.prefix({}, history, 40 * DAY_MS, 10**9)
    assert len(prompt.tokens) <= opening + spare
    dropped = prompt.dropped
    assert prompt.num_entries + dropped.other_actions + dropped.max_entries + dropped.budget == len(history)
    assert whole.dropped.budget == 0
    assert prompt.parts[:2] == whole.parts[:2]
    if task.style == "inline" and prefer == "newest":
        assert whole.text.endswith(prompt.parts[-1].text)


def test_positives_stay_when_the_budget_binds() -> None:
    task = replace(LIKE_TASK, item="{title}", history=HistorySelection(prefer="positives"))
    asker = verbalizer(task)
    history = [film(f"film{i}", i * DAY_MS, WATCH | LIKE if i % 2 == 0 else WATCH) for i in range(6)]
    sizes = len(asker.prefix({}, history, 9 * DAY_MS, 10**6).tokens)
    text = asker.prefix({}, history, 9 * DAY_MS, sizes - 1).text
    assert [f"film{i}" in text for i in range(6)] == [True, False, True, True, True, True]
    less = asker.prefix({}, history, 9 * DAY_MS, sizes // 2 + 10).text
    assert all(f"film{i}" in less for i in (0, 2, 4)) and less.index("film0") < less.index("film4")


def test_an_opening_over_the_budget_is_refused_by_name() -> None:
    with pytest.raises(BudgetError, match="3 tokens.*instruction [0-9]+"):
        verbalizer().prefix({}, [], 0, max_tokens=3)


def test_a_history_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match="oldest first"):
        verbalizer().prefix({}, [film("a", 5), film("b", 1)], 9)


def test_which_question_is_asked_does_not_tell_the_answer() -> None:
    asker = verbalizer(RATE_TASK)
    asked = [
        {asker.asked(replace(film(f"film {i}", i), actions=mask)) for mask in (0, WATCH, WATCH | LIKE)}
        for i in range(40)
    ]
    assert all(len(one) == 1 for one in asked)
    assert {question for one in asked for question in one} == {0, 1}


def test_label_words_of_several_tokens_fail_with_the_reason() -> None:
    with pytest.raises(TokenizerError, match="' Certainly' is [0-9]+ tokens"):
        verbalizer(replace(LIKE_TASK, yes=" Certainly"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"style": "inlin"}, 'style = .*did you mean "inline"'),
        ({"item": "{titel}"}, 'item = .*did you mean "title"'),
        ({"item": "{like.all/wach.all|top}"}, "'wach.all' is no signal.*did you mean \"watch.all\""),
        ({"item": "{released}"}, "its format is none; expected one of age, year, date"),
        ({"item": "{watch.all|tops}"}, 'did you mean "top"'),
        ({"item": "{title"}, "never closed"),
        ({"item": " "}, "expected a template"),
        ({"instruction": ""}, "instruction = ''"),
        ({"member": "{title}"}, "member = .*expected one of age, gender"),
        ({"history": HistorySelection(actions=("lik",))}, 'history.actions = .*did you mean "like"'),
        ({"history": HistorySelection(max_entries=-1)}, "max_entries = -1"),
        ({"headings": (("bought", "Bought"),)}, "headings = 'bought'"),
        ({"questions": ()}, "expected at least one"),
        ({"questions": (replace(LIKED, text="Liked? "),)}, "does not end with a blank"),
        ({"questions": (replace(LIKED, action=None),)}, "either an action or an attribute"),
        ({"questions": (LIKED, LIKED)}, "named twice"),
        ({"questions": (replace(LIKED, action=None, attribute="genre", yes_value="a"),)}, "expected two values"),
        ({"no": " Yes"}, "another word"),
        ({"style": "terse", "questions": RATE_TASK.questions}, "expected one question"),
        ({"style": "grouped", "questions": GENRE_TASK.questions}, "grouped by action"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        verbalizer(replace(LIKE_TASK, **change))  # type: ignore[arg-type]


def test_the_version_changes_with_anything_that_changes_a_text() -> None:
    tasks = [
        LIKE_TASK,
        replace(LIKE_TASK, style="terse"),
        replace(LIKE_TASK, member="{age}"),
        replace(LIKE_TASK, numbers=NumberWords(prior_count=6.0)),
        replace(LIKE_TASK, no=" No", yes="Yes"),
        replace(LIKE_TASK, limits=replace(LIKE_TASK.limits, field_tokens=5)),
    ]
    assert len({verbalizer(task).version for task in tasks}) == len(tasks)
    again = TaskPrompt.from_dict(json.loads(json.dumps(LIKE_TASK.to_dict())))
    assert again == LIKE_TASK
    assert verbalizer(again).version == verbalizer().version


def test_a_grown_history_begins_with_the_tokens_of_the_shorter_one() -> None:
    history = [film(f"film {i}", i * DAY_MS) for i in range(6)]
    asker = verbalizer()
    prompts = [asker.prefix({}, history[:k], k * DAY_MS).tokens for k in range(7)]
    assert all(longer[: len(shorter)] == shorter for shorter, longer in pairwise(prompts))


def test_numbers_are_of_the_catalogue_that_the_verbalizer_is_given() -> None:
    asker = verbalizer(replace(LIKE_TASK, item="{title}; {watch.all|top}"))
    table = asker.percentiles(np.array([[1.0, 0.0], [9.0, 0.0]]))
    candidate = asker.candidate_pieces({"title": "x"}, table.standing(np.array([9.0, 0.0])), 0)[0]
    assert candidate.text == "\n- x; top 50%"
    assert asker.candidate_pieces({}, PERCENTILES.standing(np.zeros(2)), 0)[0].text == "\n- unknown; unknown"
