"""Styles: how instruction, member, history and question become one text.

inline   Many-shot: an entry of the history is exactly a candidate's text and question, with its answer. So every entry
         is an example, one sequence trains them all, and the text never changes but for growing: caches hold.
terse    As inline, with the question said once, before the history, and a mark in its place: fewer tokens.
grouped  As 360Brew's prompts (arXiv 2501.16450): entries under headings, by what was done, each with its age.

Every line of an entry begins with a mark, and values have no line breaks: no value can begin an entry or a question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from models.decoder.verbalizer.template import Run
from models.decoder.verbalizer.writing import NOTHING, Piece, Writer

if TYPE_CHECKING:
    from models.decoder.verbalizer.task import Question, TaskPrompt

ENTRY = "\n- "


@dataclass(frozen=True, slots=True)
class Entry:
    """One interaction of a history, in words. Inline: body, question, answer, reveal, in this order."""

    body: Piece
    question: Piece
    answer: Piece
    """Nothing where the interaction does not answer the question; then the question is nothing too."""
    reveal: Piece
    group: str = ""
    """Heading that it stands under, in styles that have headings."""

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return (self.body, self.question, self.answer, self.reveal)

    @property
    def num_tokens(self) -> int:
        return sum(len(piece.tokens) for piece in self.pieces)


class Style(Protocol):
    name: str
    version: int
    """Goes up with any change of a text."""
    chained: bool
    """Whether a history entry is the candidate's own text with an answer. Then {when} is the time since the entry
    before, "3 days later", which never changes; else it is the entry's age, "3 days ago"."""

    def refusal(self, task: TaskPrompt) -> str | None:
        """Return why the style cannot say the task, None where it can."""
        ...

    def preamble(self, task: TaskPrompt, writer: Writer) -> Piece:
        """Return what stands between the member and the history."""
        ...

    def body(self, item: Sequence[Run], in_history: bool) -> list[Run]:
        """Return the text of an item before its question."""
        ...

    def question(self, question: Question) -> str: ...

    def headings(self, headings: Sequence[str], writer: Writer) -> Mapping[str, Piece]:
        """Return the text before each group of entries; empty in a style without groups."""
        ...

    def history(self, entries: Sequence[Entry], headings: Mapping[str, Piece]) -> list[Piece]:
        """Return the text of entries, oldest first."""
        ...


class Inline:
    name, version, chained = "inline", 1, True

    def refusal(self, task: TaskPrompt) -> str | None:
        return None

    def preamble(self, task: TaskPrompt, writer: Writer) -> Piece:
        return NOTHING

    def body(self, item: Sequence[Run], in_history: bool) -> list[Run]:
        return [Run(ENTRY, value=False), *item]

    def question(self, question: Question) -> str:
        return "\n" + question.text

    def headings(self, headings: Sequence[str], writer: Writer) -> Mapping[str, Piece]:
        return {}

    def history(self, entries: Sequence[Entry], headings: Mapping[str, Piece]) -> list[Piece]:
        return [piece for entry in entries for piece in entry.pieces]


class Terse(Inline):
    name, version = "terse", 1

    def refusal(self, task: TaskPrompt) -> str | None:
        if len(task.questions) != 1:
            return f"expected one question, which is said once for all entries; there are {len(task.questions)}"
        return None

    def preamble(self, task: TaskPrompt, writer: Writer) -> Piece:
        return writer.structure("\n" + task.questions[0].text)

    def question(self, question: Question) -> str:
        return "\n=>"


class Grouped:
    name, version, chained = "grouped", 1, False

    def refusal(self, task: TaskPrompt) -> str | None:
        if any(question.action is None for question in task.questions):
            return "expected questions that an action answers: entries are grouped by action"
        return None

    def preamble(self, task: TaskPrompt, writer: Writer) -> Piece:
        return NOTHING

    def body(self, item: Sequence[Run], in_history: bool) -> list[Run]:
        return [Run(ENTRY if in_history else "\n" + ENTRY, value=False), *item]

    def question(self, question: Question) -> str:
        return "\n" + question.text

    def headings(self, headings: Sequence[str], writer: Writer) -> Mapping[str, Piece]:
        return {heading: writer.structure(f"\n\n{heading}:") for heading in headings}

    def history(self, entries: Sequence[Entry], headings: Mapping[str, Piece]) -> list[Piece]:
        pieces: list[Piece] = []
        for heading, title in headings.items():
            inside = [entry for entry in entries if entry.group == heading]
            if inside:
                pieces.append(title)
                pieces += [piece for entry in inside for piece in (entry.body, entry.reveal)]
        return pieces


STYLES: Mapping[str, Style] = {style.name: style for style in (Inline(), Terse(), Grouped())}
