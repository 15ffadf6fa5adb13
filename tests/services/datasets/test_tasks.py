"""The `[llm]` section: the tasks of the datasets, and how their mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.decoder.verbalizer.task import HistorySelection, Question, TaskPrompt, check_task
from services.datasets.dataset import Dataset, DatasetError

CONFIGS = Path(__file__).parents[3] / "configs"
TEXT = (CONFIGS / "movielens.toml").read_text(encoding="utf-8")
BARE = TEXT[: TEXT.index("[llm]")]
SMALLEST = """
[llm]
task = "like"
[llm.tasks.like]
instruction = "Films."
item = "{title}"
questions.like = { text = "Liked?", action = "like" }
"""


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("movielens", ["like", "love", "rate", "next_genre"]),
        ("completejourney", ["buy", "stock_up", "next_brand"]),
    ],
)
def test_the_datasets_declare_tasks_that_can_be_asked(name: str, tasks: list[str]) -> None:
    dataset = Dataset.load(CONFIGS / f"{name}.toml")
    assert [task.name for task in dataset.task_prompts()] == tasks
    for task in dataset.task_prompts():
        check_task(task, dataset.feature_schema())


def test_a_description_without_tasks_asks_nothing() -> None:
    assert Dataset.parse(BARE).task_prompts() == ()


def test_tasks_change_no_schema() -> None:
    assert Dataset.parse(BARE).feature_schema().hash() == Dataset.parse(TEXT).feature_schema().hash()


def test_a_task_is_read_into_the_models_words_and_the_ranking_one_is_first() -> None:
    text = SMALLEST.replace('"like"\n', '"love"\n', 1) + (
        "[llm.tasks.love]\n"
        'instruction = """\nFavourites.\n"""\n'
        'member = "{age}"\nitem = "{title}"\nreveal = ": {genre}"\nstyle = "grouped"\n'
        'history = { actions = ["watch"], max_entries = 3, max_tokens = 99, prefer = "positives" }\n'
        'questions.love = { text = "Loved?", action = "love" }\n'
        'labels = { yes = " yes", no = " no" }\nheadings = { love = "Loved" }\n'
        "limits = { field_chars = 9, field_tokens = 8, list_values = 7 }\nnumbers = { classes = [50] }\n"
    )
    love, like = Dataset.parse(BARE + text).task_prompts()
    liked = Question(name="like", text="Liked?", action="like")
    assert like == TaskPrompt(name="like", instruction="Films.", item="{title}", questions=(liked,))
    assert (love.name, love.instruction, love.style) == ("love", "Favourites.", "grouped")
    assert love.history == HistorySelection(actions=("watch",), max_entries=3, max_tokens=99, prefer="positives")
    assert (love.yes, love.no, love.headings) == (" yes", " no", (("love", "Loved"),))
    assert (love.limits.field_chars, love.numbers.classes) == (9, (50,))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('task = "like"', 'task = "lik"', 'llm.task = "lik": expected one of like; did you mean "like"'),
        ('action = "like"', 'attribute = "genre"', "one of ranking.tasks, watch, like, love; it is about an attribute"),
        ('action = "like"', 'action = "liked"', 'it is about "liked"'),
        ("{title}", "{tilte}", 'llm.tasks.like.item = "{tilte}".*did you mean "title"'),
        ("{title}", "{released|year}", "{released} is no field"),
        ("{title}", "{title", "never closed"),
        ('action = "like"', 'action = "likes"', 'llm.tasks.like.questions = "likes".*did you mean "like"'),
        ('action = "like"', 'attribute = "genre"', "expected two values"),
        ("instruction", "instructions", 'unknown key.*did you mean "instruction"'),
        ('item = "{title}"', 'item = "{title}"\nstyle = "terce"', 'llm.tasks.like.style.*did you mean "terse"'),
        ('item = "{title}"', 'item = "{title}"\nhistory = { prefer = "newst" }', 'did you mean "newest"'),
        ('item = "{title}"', 'item = "{title}"\nnumbers = { classes = [5, 1] }', "expected rising percents"),
        ("[llm.tasks.like]", '[llm.tasks."a b"]', "expected a name of letters"),
    ],
)
def test_mistakes_are_told_with_the_key_and_the_nearest_name(old: str, new: str, message: str) -> None:
    assert old in SMALLEST
    with pytest.raises(DatasetError, match=message):
        Dataset.parse(BARE + SMALLEST.replace(old, new, 1))
