"""Scores of everything a member was asked, each from what was known at its instant, in few passes.

What a service would compute request by request: a prompt of the history strictly before the instant, and the turn
behind it. A conversation is read once, and each turn's score stands at its last token; only a turn that shares its
instant with earlier ones has to be read again, behind the history that ends before all of them.
"""

# T = tokens in line, C = tokens of turns read again, H = attention heads, G = key-value heads, K = head_dim

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models.decoder.network import Decoder
from models.decoder.sequences import Conversation, Lesson, Turn, lay_out


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalConfig:
    history_tokens: int = 512
    """Of the history before the first turn of a pass, at most; later turns of the pass have longer ones."""
    pass_tokens: int = 1024
    """Of the turns that a pass scores, at most."""

    def __post_init__(self) -> None:
        if self.history_tokens < 0 or self.pass_tokens < 1:
            raise ValueError(
                f"history_tokens is {self.history_tokens}, pass_tokens {self.pass_tokens}; expected at least 0 and 1"
            )


@torch.inference_mode()
def rehearse(
    decoder: Decoder,
    conversation: Conversation,
    yes: int,
    no: int,
    config: RehearsalConfig | None = None,
    *,
    first: int = 0,
) -> NDArray[np.float32]:
    """Return float32[turns]: l_yes - l_no of the turns from the `first` on.

    The decoder computes in its weights' dtype: pass one in bfloat16 for speed. `first` may not part an instant.

    Raises ValueError where it does.
    """
    config = config or RehearsalConfig()
    turns = conversation.turns
    if 0 < first < len(turns) and turns[first].ts_ms == turns[first - 1].ts_ms:
        raise ValueError(f"turn {first} is of the same instant as the one before; expected the first of an instant")
    labels = torch.tensor([yes, no])
    scores = np.zeros(max(0, len(turns) - first), dtype=np.float32)
    for start, begin, stop in _passes(turns, first, config):
        reading = _Reading.of(Conversation(conversation.opening, turns[start:stop]), begin - start, yes, no)
        hidden_TD = decoder(reading.tokens, reading.positions, reading)
        logits = decoder.logits(hidden_TD[reading.asked], labels)
        scores[begin - first : stop - first] = (logits[:, 0] - logits[:, 1]).numpy()
    return scores


@dataclass(frozen=True, slots=True)
class _Reading:
    """One pass: T tokens in line, then C of turns read again; also the attention between them."""

    tokens: Tensor
    """int64[T + C]."""
    positions: Tensor
    """int64[T + C]: each token's place in the prompt that it would be asked in."""
    asked: Tensor
    """int64[turns]: where each scored turn's last token is."""
    sees: Tensor
    """bool[C, T + C]."""
    num_in_line: int

    @classmethod
    def of(cls, conversation: Conversation, first: int, yes: int, no: int) -> _Reading:
        row = lay_out([Lesson([conversation], yes, no)])
        in_line, ends = len(row.tokens_T), row.asked_A.tolist()
        asked: list[int] = []
        again: list[tuple[NDArray[np.int64], int]] = []
        cut, place = 0, in_line
        for number, (turn, end) in enumerate(zip(conversation.turns, ends, strict=True)):
            begins = number == 0 or turn.ts_ms != conversation.turns[number - 1].ts_ms
            cut = end + 1 - len(turn.tokens) if begins else cut
            if number < first:
                continue
            if not begins:
                again.append((turn.tokens, cut))
                place += len(turn.tokens)
            asked.append(end if begins else place - 1)
        sees = torch.zeros(place - in_line, place, dtype=torch.bool)
        row_of = 0
        for tokens, cut in again:
            rows = slice(row_of, row_of + len(tokens))
            sees[rows, :cut] = True
            sees[rows, in_line + row_of : in_line + rows.stop] = torch.ones(len(tokens), len(tokens)).tril().bool()
            row_of += len(tokens)
        return cls(
            torch.cat([row.tokens_T, *(torch.from_numpy(tokens) for tokens, _ in again)]),
            torch.cat([torch.arange(in_line), *(torch.arange(cut, cut + len(tokens)) for tokens, cut in again)]),
            torch.tensor(asked, dtype=torch.int64),
            sees,
            in_line,
        )

    def __call__(self, layer: int, query_THK: Tensor, key_TGK: Tensor, value_TGK: Tensor) -> Tensor:
        query, key, value = (x.transpose(0, 1)[None] for x in (query_THK, key_TGK, value_TGK))
        count = self.num_in_line
        mixed = F.scaled_dot_product_attention(
            query[:, :, :count], key[:, :, :count], value[:, :, :count], is_causal=True, enable_gqa=True
        )
        if len(self.sees):
            again = F.scaled_dot_product_attention(
                query[:, :, count:], key, value, attn_mask=self.sees, enable_gqa=True
            )
            mixed = torch.cat([mixed, again], dim=2)
        return mixed[0].transpose(0, 1)


def _passes(turns: Sequence[Turn], first: int, config: RehearsalConfig) -> Iterator[tuple[int, int, int]]:
    """Yield (first turn read, first scored, end) of each pass; a pass ends between instants."""
    sizes = [len(turn.tokens) + 1 for turn in turns]
    begin = first
    while begin < len(turns):
        start, used = begin, 0
        while start > 0 and used + sizes[start - 1] <= config.history_tokens:
            start -= 1
            used += sizes[start]
        stop, used = begin, 0
        while stop < len(turns) and (
            stop == begin or turns[stop].ts_ms == turns[stop - 1].ts_ms or used + sizes[stop] <= config.pass_tokens
        ):
            used += sizes[stop]
            stop += 1
        yield start, begin, stop
        begin = stop
