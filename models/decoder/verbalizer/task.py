"""A task: what is told of a member, what is asked, and in which words. Declared, not programmed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from models.data.schema import FeatureSchema
from models.decoder.verbalizer.fields import Fields, Limits
from models.decoder.verbalizer.numbers import NumberWords, Standing
from models.decoder.verbalizer.styles import STYLES
from models.decoder.verbalizer.template import Template, TemplateError, nearest, parse_template

Prefer = Literal["newest", "positives"]


class TaskError(ValueError):
    """A task that cannot be asked; `key` is the part of it, `value` what stands there, `expected` what should."""

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(f"{key} = {value!r}: {expected}")
        self.key, self.value, self.expected = key, value, expected


@dataclass(frozen=True, slots=True)
class Interaction:
    """An item that was before a member, and what the member did."""

    attributes: Mapping[str, object]
    actions: int
    """Mask: bit i is the schema's i-th action; 0: nothing was done with it."""
    ts_ms: int
    signals: Standing | None = None
    """How the item stood then, from `Percentiles.standing`; None: no numbers are said of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Answered by an action, or by which of two values an attribute of the item holds."""

    name: str
    text: str
    action: str | None = None
    attribute: str | None = None
    yes_value: str | None = None
    no_value: str | None = None

    def label(self, interaction: Interaction, schema: FeatureSchema) -> bool | None:
        """Return the answer; None where it is neither: the attribute holds both values, or none of them."""
        if self.action is not None:
            return bool(interaction.actions >> schema.bit(self.action) & 1)
        assert self.attribute is not None
        found = interaction.attributes.get(self.attribute)
        values = [str(value) for value in found] if isinstance(found, (list, tuple)) else [str(found)]
        yes, no = self.yes_value in values, self.no_value in values
        return None if yes == no else yes


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySelection:
    actions: tuple[str, ...] = ()
    """An interaction enters the history if it is one of these; empty: every one does, those without an action too."""
    max_entries: int = 100
    max_tokens: int = 1024
    """Of a prefix, instruction and member included, where the caller names no number."""
    prefer: Prefer = "newest"
    """What stays when not everything fits: the newest, or the newest of those answered with yes before the others
    (positives-only histories were better and cheaper in LinkedIn's retrieval, arXiv 2510.14223)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPrompt:
    """One task. The texts are templates (`template.py`), but for the instruction, the questions and the label words."""

    name: str
    instruction: str
    item: str
    """What is said of an item before the question."""
    questions: tuple[Question, ...]
    member: str = ""
    reveal: str = ""
    """What a history entry says after its answer, and a candidate never."""
    yes: str = " Yes"
    no: str = " No"
    style: str = "inline"
    history: HistorySelection = field(default_factory=HistorySelection)
    headings: tuple[tuple[str, str], ...] = ()
    """Style `grouped`: (action, heading); an entry stands under the first whose action it has. Empty: the schema's
    actions, the last first, by name."""
    limits: Limits = field(default_factory=Limits)
    numbers: NumberWords = field(default_factory=NumberWords)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, texts and numbers: what is stored, and what a version is made of."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> TaskPrompt:
        """Rebuild from `to_dict`, also after JSON made its tuples lists."""
        numbers = dict(document["numbers"])
        history = dict(document["history"])
        return cls(
            **{
                **document,
                "questions": tuple(Question(**question) for question in document["questions"]),
                "history": HistorySelection(**{**history, "actions": tuple(history["actions"])}),
                "headings": tuple((action, heading) for action, heading in document["headings"]),
                "limits": Limits(**document["limits"]),
                "numbers": NumberWords(**{**numbers, "classes": tuple(numbers["classes"])}),
            }
        )


@dataclass(frozen=True, slots=True)
class Texts:
    """A task's templates, parsed and checked, and the fields that they name."""

    member: Template
    item: Template
    reveal: Template
    member_fields: Fields
    item_fields: Fields


def check_task(task: TaskPrompt, schema: FeatureSchema) -> Texts:
    """Return the parsed templates. Raises TaskError for the first thing that cannot be."""
    style = STYLES.get(task.style)
    if style is None:
        raise TaskError("style", task.style, nearest(task.style, STYLES))
    member_fields = Fields(schema.user)
    item_fields = Fields(schema.item, schema.signals, ["when"])
    texts = Texts(
        _template("member", task.member, member_fields),
        _template("item", task.item, item_fields),
        _template("reveal", task.reveal, item_fields),
        member_fields,
        item_fields,
    )
    if not task.instruction.strip():
        raise TaskError("instruction", task.instruction, "expected a text")
    if not task.item.strip():
        raise TaskError("item", task.item, "expected a template")
    actions = [action.name for action in schema.actions]
    for key, names in (
        ("history.actions", task.history.actions),
        ("headings", [action for action, _ in task.headings]),
        ("questions", [question.action for question in task.questions if question.action is not None]),
    ):
        for name in names:
            if name not in actions:
                raise TaskError(key, name, nearest(name, actions))
    if task.history.prefer not in get_args(Prefer):
        raise TaskError("history.prefer", task.history.prefer, nearest(task.history.prefer, get_args(Prefer)))
    for key in ("max_entries", "max_tokens"):
        if getattr(task.history, key) < 0:
            raise TaskError(f"history.{key}", getattr(task.history, key), "expected 0 or more")
    _check_questions(task.questions, schema)
    if task.yes == task.no:
        raise TaskError("no", task.no, "expected another word than for yes")
    reason = style.refusal(task)
    if reason is not None:
        raise TaskError("style", task.style, reason)
    return texts


def _template(key: str, source: str, fields: Fields) -> Template:
    try:
        template = parse_template(source)
        fields.check(template)
    except TemplateError as error:
        raise TaskError(key, source, str(error)) from None
    return template


def _check_questions(questions: Sequence[Question], schema: FeatureSchema) -> None:
    if not questions:
        raise TaskError("questions", [], "expected at least one")
    names = [question.name for question in questions]
    attributes = [feature.name for feature in schema.item if feature.kind in ("keyword", "keyword_list")]
    for question in questions:
        key = f"questions.{question.name}"
        if names.count(question.name) > 1:
            raise TaskError(key, question.name, "named twice")
        if not question.text.strip() or question.text != question.text.rstrip():
            # Behind a blank the label word, which begins with one, would be another token.
            raise TaskError(f"{key}.text", question.text, "expected a text that does not end with a blank")
        if (question.action is None) == (question.attribute is None):
            raise TaskError(key, question.name, "expected either an action or an attribute with two values")
        if question.attribute is not None:
            if question.attribute not in attributes:
                raise TaskError(f"{key}.attribute", question.attribute, nearest(question.attribute, attributes))
            values = (question.yes_value, question.no_value)
            if None in values or values[0] == values[1]:
                raise TaskError(f"{key}.values", list(values), "expected two values: of yes and of no")
