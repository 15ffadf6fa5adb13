"""Many-shot sequences, packed into rows of tokens.

A member's exposures become one text: what is known of the member, then entry after entry, each an item, a question and
its answer. Every answer is supervised, and every earlier answer is context for the later ones, so a pass over n entries
trains on n examples with histories of 0 to n - 1 (360Brew, arXiv 2501.16450, reads its history so; how it is trained
is not published).
"""

# T = tokens of a row, A = answers of a row

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Turn:
    """One exposure in words: the item and the question about it, without the answer."""

    tokens: NDArray[np.int64]
    label: bool
    ts_ms: int = 0
    log_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is known of one member, and what was asked about the member, in order of time."""

    opening: NDArray[np.int64]
    turns: Sequence[Turn]

    def windows(self, max_tokens: int) -> Iterator[Conversation]:
        """Cut into stretches of at most `max_tokens` tokens, answers included, each with the opening before it.

        Turns of one instant are never parted. A turn, or an instant, that alone is too long is left out: its tokens
        could not be asked about in one prompt either.
        """
        room = max_tokens - len(self.opening)
        turns: list[Turn] = []
        used = 0
        for together in self._instants():
            size = sum(len(turn.tokens) + 1 for turn in together)
            if size > room:
                together = together[: _fitting(together, room)]
                size = sum(len(turn.tokens) + 1 for turn in together)
            if used + size > room and turns:
                yield Conversation(self.opening, turns)
                turns, used = [], 0
            turns = [*turns, *together]
            used += size
        if turns:
            yield Conversation(self.opening, turns)

    def num_tokens(self) -> int:
        """Count the tokens of the whole, with every answer but the last: nothing comes after that one."""
        return len(self.opening) + sum(len(turn.tokens) + 1 for turn in self.turns) - 1

    def _instants(self) -> Iterator[list[Turn]]:
        together: list[Turn] = []
        for turn in self.turns:
            if together and turn.ts_ms != together[-1].ts_ms:
                yield together
                together = []
            together.append(turn)
        if together:
            yield together


@dataclass(frozen=True, slots=True)
class Lesson:
    """Conversations of one task, and the tokens of its two answers."""

    conversations: Sequence[Conversation]
    yes: int
    no: int

    def windows(self, max_tokens: int) -> Lesson:
        """Return the conversations cut by `Conversation.windows`."""
        return Lesson([w for told in self.conversations for w in told.windows(max_tokens)], self.yes, self.no)

    def num_tokens(self) -> int:
        return sum(conversation.num_tokens() for conversation in self.conversations)


@dataclass(frozen=True, slots=True)
class Row:
    """Conversations one behind the other, without padding."""

    tokens_T: Tensor
    """int64[T]."""
    lengths: list[int]
    """Tokens of each conversation; they sum to T."""
    asked_A: Tensor
    """int64[A]: places of the tokens that an answer comes after."""
    words_A2: Tensor
    """int64[A, 2]: tokens of yes and no."""
    labels_A: Tensor
    """float32[A]: 1 for yes."""
    log_rate_A: Tensor
    """float32[A]."""

    @property
    def num_answers(self) -> int:
        return len(self.labels_A)

    def to(self, device: torch.device) -> Row:
        tensors = (self.asked_A, self.words_A2, self.labels_A, self.log_rate_A)
        return Row(self.tokens_T.to(device), self.lengths, *(tensor.to(device) for tensor in tensors))


def lay_out(lessons: Sequence[Lesson]) -> Row:
    """Put conversations into one row. Raises ValueError for one that asks nothing."""
    tokens: list[NDArray[np.int64]] = []
    lengths, asked, words = [], [], []
    turns: list[Turn] = []
    place = 0
    for lesson in lessons:
        answers = np.array([[lesson.no], [lesson.yes]], dtype=np.int64)
        for conversation in lesson.conversations:
            if not conversation.turns:
                raise ValueError(f"a conversation with an opening of {len(conversation.opening)} tokens asks nothing")
            parts = [conversation.opening]
            place += len(conversation.opening)
            for turn in conversation.turns:
                place += len(turn.tokens)
                asked.append(place - 1)
                parts += [turn.tokens, answers[int(turn.label)]]
                place += 1
            tokens += parts[:-1]
            place -= 1
            lengths.append(conversation.num_tokens())
            words += [(lesson.yes, lesson.no)] * len(conversation.turns)
            turns += conversation.turns
    return Row(
        torch.from_numpy(np.concatenate(tokens)),
        lengths,
        torch.tensor(asked, dtype=torch.int64),
        torch.tensor(words, dtype=torch.int64),
        torch.tensor([turn.label for turn in turns], dtype=torch.float32),
        torch.tensor([turn.log_rate for turn in turns], dtype=torch.float32),
    )


class RowSampler:
    """Rows that pass over the windows again and again, each pass in an order of its own.

    A row is a function of the seed and its index: what `models.train.loop.run` asks of batches.
    """

    def __init__(self, lessons: Sequence[Lesson], *, row_tokens: int, seed: int) -> None:
        """lessons: cut into windows.

        Turns of one instant are put in an order of each pass's own: which of them came first is not known.

        Raises ValueError for no windows, and for one longer than a row.
        """
        windows = [Lesson([window], of.yes, of.no) for of in lessons for window in of.conversations]
        if not windows:
            raise ValueError("no window to train on; expected at least one")
        self._sizes = [window.num_tokens() for window in windows]
        if max(self._sizes) > row_tokens:
            raise ValueError(f"a window has {max(self._sizes)} tokens; expected at most row_tokens, {row_tokens}")
        self._windows, self._row_tokens, self._seed = windows, row_tokens, seed
        self._passes: list[list[list[int]]] = []

    def __call__(self, index: int) -> Row:
        for number in range(index + 1):  # a pass has at least one row
            rows = self._pass(number)
            if index < len(rows):
                break
            index -= len(rows)
        random = np.random.default_rng((self._seed, 1, number, index))
        return lay_out([_shuffled(self._windows[place], random) for place in rows[index]])

    def rows_per_pass(self) -> int:
        """Return how many rows the first pass takes; later ones may take one or two more or less."""
        return len(self._pass(0))

    def _pass(self, number: int) -> list[list[int]]:
        while len(self._passes) <= number:
            order = np.random.default_rng((self._seed, 0, len(self._passes))).permutation(len(self._windows))
            rows: list[list[int]] = [[]]
            used = 0
            for place in order.tolist():
                if used + self._sizes[place] > self._row_tokens:
                    rows.append([])
                    used = 0
                rows[-1].append(place)
                used += self._sizes[place]
            self._passes.append(rows)
        return self._passes[number]


def _fitting(turns: Sequence[Turn], room: int) -> int:
    """Return how many of the first turns fit together."""
    ends = np.cumsum([len(turn.tokens) + 1 for turn in turns])
    return int(np.searchsorted(ends, room, side="right"))


def _shuffled(lesson: Lesson, random: np.random.Generator) -> Lesson:
    shuffled = []
    for conversation in lesson.conversations:
        turns = conversation.turns
        order = np.lexsort((random.random(len(turns)), np.array([turn.ts_ms for turn in turns])))
        shuffled.append(Conversation(conversation.opening, [turns[place] for place in order.tolist()]))
    return Lesson(shuffled, lesson.yes, lesson.no)
