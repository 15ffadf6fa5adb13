"""Rows of tokens as vLLM's wire asks about them: what they share, and the first label's probability from log odds."""

# n = rows

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.decoder.scoring import Candidate, Labels, Scores
from services.llm.backend import Backend, size_of
from services.llm.calls import NotAsked, TokensCall


def check_length(backend: Backend, num_prefix: int, rows: Sequence[Candidate]) -> None:
    for place, row in enumerate(rows):
        longest = num_prefix + len(row.body) + max(map(len, row.questions))
        if longest > backend.max_tokens:
            raise NotAsked(
                f"/items/{place}", f"prompt and item have {longest} tokens; expected at most {backend.max_tokens}"
            )


def check_tokens(call: TokensCall, vocab_size: int) -> None:
    rows = [("/query", call.prefix), ("/label_token_ids", call.labels)]
    rows += [(f"/items/{place}", item) for place, item in enumerate(call.items)]
    for pointer, tokens in rows:
        wrong = next((token for token in tokens if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise NotAsked(pointer, f"token {wrong} is out of the vocabulary; expected 0 to {vocab_size - 1}", wrong)


@dataclass(frozen=True, slots=True)
class Shared:
    """Rows of a call that begin alike."""

    prefix: tuple[int, ...]
    places: list[int]
    """Of the rows, among the call's items."""
    rows: list[Candidate]

    @property
    def num_tokens(self) -> int:
        return sum(map(size_of, self.rows))


def split(call: TokensCall) -> list[Shared]:
    """The call's rows by what they share: the query, or where the item comes first, one token."""
    if not call.item_first and len(call.prefix) and all(call.items):
        rows = [Candidate([], [list(item)]) for item in call.items]
        return [Shared(tuple(call.prefix), list(range(len(rows))), rows)]
    shared: dict[tuple[int, ...], Shared] = {}
    for place, item in enumerate(call.items):
        whole = [*item, *call.prefix] if call.item_first else [*call.prefix, *item]
        if len(whole) < 2:
            raise NotAsked(f"/items/{place}", f"query and item have {len(whole)} tokens; expected two at least")
        # An item without tokens asks what follows on the query: the query's last token is then not shared.
        length = 1 if call.item_first else max(1, len(call.prefix) - 1)
        group = shared.setdefault(tuple(whole[:length]), Shared(tuple(whole[:length]), [], []))
        group.places.append(place)
        group.rows.append(Candidate([], [whole[length:]]))
    return list(shared.values())


def pairs_of(call: TokensCall) -> list[Labels]:
    """What the decoder is asked, two labels at a time, so that the first one's probability follows."""
    first, others = call.labels[0], call.labels[1:]
    if not call.softmax:
        return [Labels(first, first)]
    return [Labels(first, other) for other in others] or [Labels(first, first)]


def probability_of_first(call: TokensCall, odds: Sequence[Scores]) -> NDArray[np.float64]:
    if not call.softmax:
        mass = odds[0].label_mass_NQ
        assert mass is not None
        return 0.5 * mass[:, 0].astype(np.float64)  # the one token was counted as both labels
    if len(call.labels) == 1:
        return np.ones(len(odds[0].score_NQ))
    against = sum(np.exp(-scores.score_NQ[:, 0].astype(np.float64)) for scores in odds)
    return np.asarray(1.0 / (1.0 + against))
