"""The `[llm]` section: tasks for the decoder in words, read into the models' own types."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.data.schema import FeatureSchema
from models.decoder.verbalizer.fields import Limits
from models.decoder.verbalizer.numbers import NumberWords
from models.decoder.verbalizer.task import HistorySelection, Question, TaskError, TaskPrompt, check_task
from services.datasets.descriptions import Problem, listed, nearest

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)

# TOML has lists only, strict tuples take tuples only.
_Names = Annotated[tuple[str, ...], Field(strict=False)]
_Percents = Annotated[tuple[int, ...], Field(strict=False, min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class QuestionSection(_Section):
    """Answered by an action, or by which of two values an attribute of the item holds."""

    text: str
    action: str | None = None
    attribute: str | None = None
    yes: str | None = None
    """The attribute's value whose answer is the label word of yes."""
    no: str | None = None


class HistorySection(_Section):
    actions: _Names = ()
    """Interactions that are one of these are told; empty: all are."""
    max_entries: int = Field(default=100, ge=0, le=10_000)
    max_tokens: int = Field(default=1024, ge=1, le=1_000_000)
    """Of everything before the candidates."""
    prefer: Literal["newest", "positives"] = "newest"


class LabelsSection(_Section):
    """Each exactly one token of the decoder's vocabulary."""

    yes: str = " Yes"
    no: str = " No"


class LimitsSection(_Section):
    field_chars: int = Field(default=160, ge=1, le=10_000)
    field_tokens: int = Field(default=48, ge=1, le=10_000)
    list_values: int = Field(default=6, ge=1, le=1_000)


class NumbersSection(_Section):
    classes: _Percents = (1, 5, 10, 25, 50, 75)
    prior_count: float = Field(default=5.0, ge=0.0, le=1e6)
    min_count: float = Field(default=1.0, gt=0.0, le=1e6)


class TaskSection(_Section):
    """One task: docs/prompts.md."""

    instruction: str
    member: str = ""
    item: str
    reveal: str = ""
    style: str = "inline"
    history: HistorySection = HistorySection()
    questions: dict[str, QuestionSection] = Field(min_length=1)
    labels: LabelsSection = LabelsSection()
    headings: dict[str, str] = {}
    limits: LimitsSection = LimitsSection()
    numbers: NumbersSection = NumbersSection()

    def prompt(self, name: str) -> TaskPrompt:
        """Return the task in the models' words. Raises ValueError for numbers that cannot be."""
        return TaskPrompt(
            name=name,
            instruction=self.instruction.strip(),
            member=self.member,
            item=self.item,
            reveal=self.reveal,
            questions=tuple(
                Question(
                    name=key, text=asked.text, action=asked.action, attribute=asked.attribute,
                    yes_value=asked.yes, no_value=asked.no,
                )
                for key, asked in self.questions.items()
            ),
            yes=self.labels.yes,
            no=self.labels.no,
            style=self.style,
            history=HistorySelection(**_fields(self.history)),
            headings=tuple(self.headings.items()),
            limits=Limits(**_fields(self.limits)),
            numbers=NumberWords(**_fields(self.numbers)),
        )  # fmt: skip


class LlmSection(_Section):
    task: str
    """The task whose first question's answer ranks."""
    tasks: dict[str, TaskSection] = Field(min_length=1)

    def prompts(self) -> tuple[TaskPrompt, ...]:
        """Return every task, the ranking one first, the others in the file's order."""
        names = [self.task, *(name for name in self.tasks if name != self.task)]
        return tuple(self.tasks[name].prompt(name) for name in names)


def task_problems(section: LlmSection, schema: FeatureSchema) -> Iterator[Problem]:
    """Yield what is wrong with the tasks, given what models may read."""
    if section.task not in section.tasks:
        expected = f"expected one of {listed(section.tasks)}{nearest(section.task, section.tasks)}"
        yield Problem("llm.task", section.task, expected)
    elif (action := next(iter(section.tasks[section.task].questions.values())).action) not in schema.tasks:
        told = "an attribute" if action is None else f'"{action}"'
        expected = f"expected a first question about one of ranking.tasks, {listed(schema.tasks)}; it is about {told}"
        yield Problem("llm.task", section.task, expected)
    for name, task in section.tasks.items():
        key = f"llm.tasks.{name}"
        if _NAME.fullmatch(name) is None:
            yield Problem(key, name, "expected a name of letters, digits and _, at most 64")
        try:
            check_task(task.prompt(name), schema)
        except TaskError as error:
            yield Problem(f"{key}.{error.key}", error.value, error.expected)
        except ValueError as error:
            yield Problem(key, name, str(error))


def _fields(section: BaseModel) -> Mapping[str, Any]:
    return {name: getattr(section, name) for name in type(section).model_fields}
