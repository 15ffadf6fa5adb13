"""The verbalizer: members, items and what members did, as the tokens that a decoder reads.

What serving reads (a prefix, then candidates) and what training reads (conversations) are built of the same pieces:
    prefix(history[:k]) + candidate k + answer k   ==   the conversation up to the k-th answer,
token for token, for every k.
"""

# S = signals, N = items

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.data.schema import FeatureSchema
from models.decoder.scoring import Candidate, Labels
from models.decoder.sequences import Conversation, Turn
from models.decoder.verbalizer.fields import Subject
from models.decoder.verbalizer.history import Dropped, fit_entries
from models.decoder.verbalizer.numbers import Percentiles, Standing, age_words, gap_words
from models.decoder.verbalizer.styles import STYLES, Entry
from models.decoder.verbalizer.task import Interaction, TaskPrompt, check_task
from models.decoder.verbalizer.template import Run, Template
from models.decoder.verbalizer.writing import NOTHING, Piece, TextEncoder, Writer

TEXT_VERSION = 1
"""Goes up with any change of what templates, values and numbers read like."""


class BudgetError(ValueError):
    """Instruction and member alone take more tokens than there may be."""


@dataclass(frozen=True, slots=True)
class PromptPart:
    name: str
    """instruction, member, question (where a style says it before the history) or history."""
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What stands before a candidate."""

    parts: tuple[PromptPart, ...]
    num_entries: int
    dropped: Dropped
    newest_ms: int | None
    """Time of the newest selected interaction strictly before now, told or not: what `candidate` asks for."""

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for part in self.parts for token in part.tokens)

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


class Verbalizer:
    """One task in one tokenizer's tokens. Immutable but for what it remembers; safe to share between threads."""

    def __init__(self, task: TaskPrompt, tokenizer: TextEncoder, schema: FeatureSchema) -> None:
        """Raises TaskError for a task that the schema or the style cannot say, and the tokenizer's error for a label
        word that is not exactly one token."""
        self.task, self.schema = task, schema
        self._texts = check_task(task, schema)
        self.style = STYLES[task.style]
        self.labels = Labels(tokenizer.single(task.yes), tokenizer.single(task.no))
        self.questions = tuple(question.name for question in task.questions)
        """What the columns of a candidate's scores are."""
        self._writer = Writer(tokenizer, task.limits.field_tokens)
        self._mask = sum(1 << schema.bit(action) for action in task.history.actions)
        self._answers = {True: Piece(task.yes, (self.labels.yes,)), False: Piece(task.no, (self.labels.no,))}
        self._questions = [self._writer.structure(self.style.question(question)) for question in task.questions]
        headings = task.headings or tuple((a.name, _capitalised(a.name)) for a in reversed(schema.actions))
        self._groups = [(schema.bit(action), heading) for action, heading in headings]
        self._headings = self.style.headings([heading for _, heading in headings], self._writer)
        self.version = self._hash(tokenizer)

    def percentiles(self, signals_NS: NDArray[np.float64]) -> Percentiles:
        """Return what items' numbers are measured against: f64[N, S], the catalogue's signals as of one moment."""
        return Percentiles.of(self.schema.signals, signals_NS, self.task.numbers)

    def prefix(
        self,
        member: Mapping[str, object],
        history: Sequence[Interaction],
        now_ms: int,
        max_tokens: int | None = None,
    ) -> Prompt:
        """Return what stands before the candidates: instruction and member whole, and as much history as fits.

        history: in order of time, oldest first.  max_tokens: of all parts together, never passed; None: the task's.

        Raises BudgetError where instruction and member alone take more, and ValueError for a history out of order.
        """
        opening = self._opening(member)
        room = (self.task.history.max_tokens if max_tokens is None else max_tokens) - _count(opening)
        if room < 0:
            sizes = ", ".join(f"{part.name} {len(part.tokens)}" for part in opening)
            raise BudgetError(f"there may be {room + _count(opening)} tokens and the task's own take more: {sizes}")
        if any(later.ts_ms < earlier.ts_ms for earlier, later in pairwise(history)):
            raise ValueError("a history is out of order; expected its interactions in order of time, oldest first")
        selected = [interaction for interaction in history if self._selects(interaction)]
        gaps = _gaps(selected)
        start = max(0, len(selected) - self.task.history.max_entries)
        told, gaps = selected[start:], gaps[start:]

        @cache
        def entry(place: int) -> Entry:
            return self._entry(told[place], gaps[place], now_ms)

        room -= sum(len(heading.tokens) for heading in self._headings.values())
        places = fit_entries(lambda place: entry(place).num_tokens, self._first(told), room)
        text = Piece.join(self.style.history([entry(place) for place in places], self._headings))
        before_now = [interaction.ts_ms for interaction in selected if interaction.ts_ms < now_ms]
        return Prompt(
            (*opening, PromptPart("history", text.text, text.tokens)),
            len(places),
            Dropped(other_actions=len(history) - len(selected), max_entries=start, budget=len(told) - len(places)),
            before_now[-1] if before_now else None,
        )

    def candidate(
        self, attributes: Mapping[str, object], signals: Standing | None, now_ms: int, newest_ms: int | None = None
    ) -> Candidate:
        """Return an item to be asked about, with every question of the task.

        signals: from `Percentiles.standing`.  newest_ms: the prompt's own.
        """
        body, questions = self.candidate_pieces(attributes, signals, now_ms, newest_ms)
        return Candidate(body.tokens, [question.tokens for question in questions])

    def candidate_pieces(
        self, attributes: Mapping[str, object], signals: Standing | None, now_ms: int, newest_ms: int | None = None
    ) -> tuple[Piece, list[Piece]]:
        """As `candidate`, with the texts."""
        gap = None if newest_ms is None or newest_ms >= now_ms else now_ms - newest_ms
        interaction = Interaction(attributes, 0, now_ms, signals)
        return self._body(interaction, gap, now_ms, in_history=False), self._questions

    def conversations(
        self,
        member: Mapping[str, object],
        interactions: Sequence[Interaction],
        max_tokens: int | None = None,
        log_rates: Sequence[float] | None = None,
    ) -> list[Conversation]:
        """Return a member's interactions, oldest first, as conversations: every answer that there is, asked once.

        In a chained style what the history selects is one conversation, to be cut with `windows`, and an interaction
        that it does not select is one of its own, behind the history before it. In any other style each is one of its
        own. Of several questions an interaction is asked one, by a hash of it: no answer can tell which.

        max_tokens: of a conversation of one turn, its answer included; None: the task's.  log_rates: as of `Turn`.
        """
        budget = self.task.history.max_tokens if max_tokens is None else max_tokens
        rates = [0.0] * len(interactions) if log_rates is None else log_rates
        chain, single = self._chain(member, interactions, rates), []
        for place, interaction in enumerate(interactions):
            label = self._label(interaction)
            if label is None or (self.style.chained and self._selects(interaction)):
                continue
            before = interactions[:place]
            body, asked = self._asked_of(interaction, before)
            tokens = _array(body, asked)
            prompt = self.prefix(member, before, interaction.ts_ms, budget - len(tokens) - 1)
            turn = Turn(tokens, label, interaction.ts_ms, float(rates[place]))
            single.append(Conversation(np.array(prompt.tokens, dtype=np.int64), [turn]))
        return [*([chain] if chain.turns else []), *single]

    def places(self, interactions: Sequence[Interaction]) -> list[list[int]]:
        """Return, for every turn of `conversations`, the place of the interaction that it asks about."""
        asked = [place for place, interaction in enumerate(interactions) if self._label(interaction) is not None]
        chained = [place for place in asked if self.style.chained and self._selects(interactions[place])]
        single = [[place] for place in asked if not (self.style.chained and self._selects(interactions[place]))]
        return [*([chained] if chained else []), *single]

    def asked(self, interaction: Interaction) -> int:
        """Return which question an interaction is asked: the same whenever it is told, whatever its answers are."""
        if len(self.task.questions) == 1:
            return 0
        told = f"{interaction.ts_ms} {sorted(interaction.attributes.items(), key=lambda pair: pair[0])}"
        return xxhash.xxh3_64_intdigest(told.encode(errors="replace")) % len(self.task.questions)

    def _asked_of(self, interaction: Interaction, before: Sequence[Interaction]) -> tuple[Piece, Piece]:
        """Return the text of an interaction as a candidate at its own time, and its question."""
        earlier = [other.ts_ms for other in before if self._selects(other) and other.ts_ms < interaction.ts_ms]
        gap = interaction.ts_ms - earlier[-1] if earlier else None
        body = self._body(interaction, gap, interaction.ts_ms, in_history=False)
        return body, self._questions[self.asked(interaction)]

    def _chain(
        self, member: Mapping[str, object], interactions: Sequence[Interaction], rates: Sequence[float]
    ) -> Conversation:
        turns: list[Turn] = []
        if self.style.chained:
            places = [place for place, interaction in enumerate(interactions) if self._selects(interaction)]
            selected = [interactions[place] for place in places]
            carried: list[Piece] = []
            for place, interaction, gap in zip(places, selected, _gaps(selected), strict=True):
                entry = self._entry(interaction, gap, interaction.ts_ms)
                label = self._label(interaction)
                if label is None:
                    carried += entry.pieces
                    continue
                ts_ms = interaction.ts_ms
                if self.task.reveal and turns:
                    # What is revealed stands in the next turn, so that turns of one instant may not change places.
                    ts_ms = max(ts_ms, turns[-1].ts_ms + 1)
                turns.append(Turn(_array(*carried, entry.body, entry.question), label, ts_ms, float(rates[place])))
                carried = [entry.reveal]
        opening = [token for part in self._opening(member) for token in part.tokens]
        return Conversation(np.array(opening, dtype=np.int64), turns)

    def _opening(self, member: Mapping[str, object]) -> list[PromptPart]:
        told = self._fill_member(member)
        pieces = [
            ("instruction", self._writer.structure(self.task.instruction)),
            ("member", self._writer.write([Run("\n", value=False), *told]) if told else NOTHING),
            ("question", self.style.preamble(self.task, self._writer)),
        ]
        return [PromptPart(name, p.text, p.tokens) for name, p in pieces if p.tokens or name == "member"]

    def _fill_member(self, member: Mapping[str, object]) -> list[Run]:
        subject, fields = Subject(member), self._texts.member_fields
        return self._texts.member.fill(lambda named: fields.words(named, subject, self.task.limits))

    def _entry(self, interaction: Interaction, gap: int | None, now_ms: int) -> Entry:
        label = self._label(interaction)
        body = self._body(interaction, gap, now_ms, in_history=True)
        reveal = self._writer.write(self._runs(self._texts.reveal, interaction, gap, now_ms))
        group = self._group(interaction) or ""
        if not self.style.chained or label is None:
            return Entry(body, NOTHING, NOTHING, reveal, group)
        return Entry(body, self._questions[self.asked(interaction)], self._answers[label], reveal, group)

    def _body(self, interaction: Interaction, gap: int | None, now_ms: int, in_history: bool) -> Piece:
        item = self._runs(self._texts.item, interaction, gap, now_ms if in_history else None)
        return self._writer.write(self.style.body(item, in_history))

    def _runs(self, template: Template, interaction: Interaction, gap: int | None, now_ms: int | None) -> list[Run]:
        """Fill a template. gap: since the interaction before it; now_ms: None for a candidate, which has no age."""
        when = None if gap is None else gap_words(gap)
        if not self.style.chained:
            when = None if now_ms is None else age_words(now_ms - interaction.ts_ms)
        subject = Subject(interaction.attributes, interaction.signals, interaction.ts_ms, {"when": when})
        fields = self._texts.item_fields
        return template.fill(lambda named: fields.words(named, subject, self.task.limits))

    def _selects(self, interaction: Interaction) -> bool:
        if self._mask and not interaction.actions & self._mask:
            return False
        return self.style.chained or self._group(interaction) is not None

    def _group(self, interaction: Interaction) -> str | None:
        return next((heading for bit, heading in self._groups if interaction.actions >> bit & 1), None)

    def _label(self, interaction: Interaction) -> bool | None:
        return self.task.questions[self.asked(interaction)].label(interaction, self.schema)

    def _first(self, interactions: Sequence[Interaction]) -> list[bool]:
        """Return which entries are taken first when not all fit."""
        if self.task.history.prefer == "newest":
            return [False] * len(interactions)
        return [
            any(question.label(interaction, self.schema) for question in self.task.questions)
            for interaction in interactions
        ]

    def _hash(self, tokenizer: TextEncoder) -> str:
        """Return 16 hex digits that change with anything that changes a text or its tokens."""
        document = [self.task.to_dict(), self.style.version, TEXT_VERSION, tokenizer.hash(), self.schema.hash()]
        return hashlib.blake2b(json.dumps(document, sort_keys=True).encode(), digest_size=8).hexdigest()


def _gaps(selected: Sequence[Interaction]) -> list[int | None]:
    """Return the time in ms from the newest strictly earlier interaction to each; None for the first instant.

    Strictly: of those of one instant it is not known which came first, so each has the same words.
    """
    gaps: list[int | None] = []
    earlier: int | None = None
    for place, interaction in enumerate(selected):
        if place and selected[place - 1].ts_ms < interaction.ts_ms:
            earlier = selected[place - 1].ts_ms
        gaps.append(None if earlier is None else interaction.ts_ms - earlier)
    return gaps


def _count(parts: Sequence[PromptPart]) -> int:
    return sum(len(part.tokens) for part in parts)


def _array(*pieces: Piece) -> NDArray[np.int64]:
    return np.array([token for piece in pieces for token in piece.tokens], dtype=np.int64)


def _capitalised(name: str) -> str:
    return name[:1].upper() + name[1:].replace("_", " ")
