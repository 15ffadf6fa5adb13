"""Scores of whole conversations are those of one prompt for each turn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.decoder.attention import PackedCausal
from models.decoder.network import Decoder
from models.decoder.rehearsal import RehearsalConfig, rehearse
from models.decoder.sequences import Conversation, Lesson, Turn, lay_out
from tests.models.decoder.tiny import tiny_decoder

YES, NO = 17, 23


def make_conversation(num: int = 24, seed: int = 0) -> Conversation:
    random = np.random.default_rng(seed)
    instants = np.sort(random.integers(0, num // 2, num))
    turns = [
        Turn(random.integers(0, 400, random.integers(3, 9)), bool(random.random() < 0.5), int(ts_ms))
        for ts_ms in instants
    ]
    return Conversation(random.integers(0, 400, 5), turns)


def one_by_one(decoder: Decoder, conversation: Conversation) -> np.ndarray:
    """Ask every turn behind the whole history strictly before it."""
    scores = []
    for turn in conversation.turns:
        before = [earlier for earlier in conversation.turns if earlier.ts_ms < turn.ts_ms]
        row = lay_out([Lesson([Conversation(conversation.opening, [*before, turn])], YES, NO)])
        attention = PackedCausal(row.lengths)
        with torch.no_grad():
            hidden = decoder(row.tokens_T, attention.positions(), attention)[row.asked_A[-1:]]
            logits = decoder.logits(hidden, torch.tensor([YES, NO]))[0]
        scores.append(float(logits[0] - logits[1]))
    return np.array(scores)


def test_scores_are_those_of_a_prompt_for_each_turn() -> None:
    decoder = tiny_decoder()
    for seed in range(3):
        conversation = make_conversation(seed=seed)
        expected = one_by_one(decoder, conversation)
        for pass_tokens in (10_000, 60, 1):
            config = RehearsalConfig(history_tokens=10_000, pass_tokens=pass_tokens)
            assert np.allclose(rehearse(decoder, conversation, YES, NO, config), expected, atol=1e-4)


def test_later_turns_are_scored_alone_and_history_is_cut_to_the_newest() -> None:
    decoder, conversation = tiny_decoder(), make_conversation()
    first = next(n for n in range(12, 24) if conversation.turns[n].ts_ms != conversation.turns[n - 1].ts_ms)
    expected = one_by_one(decoder, conversation)
    config = RehearsalConfig(history_tokens=10_000)
    assert np.allclose(rehearse(decoder, conversation, YES, NO, config, first=first), expected[first:], atol=1e-4)
    assert len(rehearse(decoder, conversation, YES, NO, first=24)) == 0
    nothing = RehearsalConfig(history_tokens=0, pass_tokens=1)
    alone = [one_by_one(decoder, Conversation(conversation.opening, [turn]))[0] for turn in conversation.turns]
    assert np.allclose(rehearse(decoder, conversation, YES, NO, nothing), alone, atol=1e-4)


def test_an_instant_is_not_parted() -> None:
    conversation = make_conversation()
    inside = next(n for n in range(1, 24) if conversation.turns[n].ts_ms == conversation.turns[n - 1].ts_ms)
    with pytest.raises(ValueError, match="same instant"):
        rehearse(tiny_decoder(), conversation, YES, NO, first=inside)
