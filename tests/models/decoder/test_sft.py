"""Fine-tuning: what is learned, from what, and to which bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.decoder.attention import PackedCausal
from models.decoder.lora import LoraConfig
from models.decoder.network import Decoder
from models.decoder.sequences import Conversation, Lesson, Turn, lay_out
from models.decoder.sft import SftConfig, answer_losses, fine_tune
from models.decoder.tokenizer import Tokenizer
from tests.models.decoder.tiny import tiny_decoder, tiny_tokenizer

SMALL = SftConfig(
    trained="full", num_tokens=20_000, row_tokens=256, window_tokens=128, learning_rate=5e-3, bf16=False, seed=1
)


class Cut(Exception):
    """A run that was ended from outside."""


def world(tokenizer: Tokenizer, num: int = 120, seed: int = 0) -> tuple[list[Conversation], int, int]:
    """Members who like what is called good; the rest of a title says nothing."""
    random = np.random.default_rng(seed)
    conversations = []
    for _ in range(num):
        turns = []
        for place in range(6):
            label = bool(random.random() < 0.5)
            text = f"\n{'good' if label else 'bad '} {random.integers(100)} Question:"
            turns.append(Turn(np.array(tokenizer.encode(text)), label, place * 1000))
        conversations.append(Conversation(np.array(tokenizer.encode("The member")), turns))
    return conversations, tokenizer.single(" Yes"), tokenizer.single(" No")


def scores(decoder: Decoder, conversations: list[Conversation], yes: int, no: int) -> tuple[np.ndarray, np.ndarray]:
    row = lay_out([Lesson(conversations, yes, no)])
    attention = PackedCausal(row.lengths)
    with torch.no_grad():
        hidden = decoder(row.tokens_T, attention.positions(), attention)[row.asked_A]
        logits = decoder.logits(hidden, torch.tensor([yes, no]))
    return (logits[:, 0] - logits[:, 1]).numpy(), row.labels_A.numpy()


def test_a_label_that_the_text_says_is_learned() -> None:
    tokenizer = tiny_tokenizer()
    conversations, yes, no = world(tokenizer)
    decoder = tiny_decoder()
    seen: list[float] = []
    fine_tune(decoder, [Lesson(conversations, yes, no)], SMALL, lambda step, total, terms: seen.append(terms["answer"]))
    found, labels = scores(decoder, world(tokenizer, 20, seed=9)[0], yes, no)
    assert ((found > 0) == (labels > 0)).mean() > 0.95
    assert np.mean(seen[-5:]) < 0.5 * np.mean(seen[:5])


def test_the_two_losses_are_the_cross_entropy_of_the_answers_over_the_vocabulary() -> None:
    conversations, yes, no = world(tiny_tokenizer(), 3)
    row, decoder = lay_out([Lesson(conversations, yes, no)]), tiny_decoder()
    attention = PackedCausal(row.lengths)
    logits = decoder.logits(decoder(row.tokens_T, attention.positions(), attention)[row.asked_A])
    expected = F.cross_entropy(logits, torch.where(row.labels_A > 0, yes, no))
    terms = answer_losses(decoder, row, 1.0)
    assert torch.allclose(terms["answer"] + terms["mass"], expected, atol=1e-5)
    alone = answer_losses(decoder, row, 0.0)
    assert list(alone) == ["answer"] and torch.allclose(alone["answer"], terms["answer"])


def test_no_gradient_comes_from_tokens_that_are_not_answers() -> None:
    """The loss reads hidden states of the asked places alone: nothing after the last of them has a part in it."""
    conversations, yes, no = world(tiny_tokenizer(), 1)
    row, decoder = lay_out([Lesson(conversations, yes, no)]), tiny_decoder()
    attention = PackedCausal(row.lengths)
    hidden = decoder(row.tokens_T, attention.positions(), attention).detach().requires_grad_(True)
    decoder.forward = lambda *_: hidden  # type: ignore[method-assign]
    sum(answer_losses(decoder, row, 1.0).values()).backward()  # type: ignore[union-attr]
    touched = hidden.grad.abs().sum(1).nonzero()[:, 0].tolist()  # type: ignore[union-attr]
    assert touched == row.asked_A.tolist()


def test_packing_mixes_nothing() -> None:
    conversations, yes, no = world(tiny_tokenizer(), 4)
    decoder = tiny_decoder()
    together, _ = scores(decoder, conversations, yes, no)
    alone = np.concatenate([scores(decoder, [conversation], yes, no)[0] for conversation in conversations])
    assert np.allclose(together, alone, atol=1e-5)
    # And an answer is known to later turns only.
    first = conversations[0]
    turned = [
        Turn(turn.tokens, not turn.label, turn.ts_ms) if place == 3 else turn for place, turn in enumerate(first.turns)
    ]
    other, _ = scores(decoder, [Conversation(first.opening, turned), *conversations[1:]], yes, no)
    assert np.array_equal(np.flatnonzero(np.abs(other - together) > 1e-5), [4, 5])


def test_thinned_negatives_are_corrected_for() -> None:
    tokenizer = tiny_tokenizer()
    yes, no = tokenizer.single(" Yes"), tokenizer.single(" No")
    random = np.random.default_rng(0)
    rate = 0.25
    text = np.array(tokenizer.encode("film Question:"))
    labels = random.random(4000) < 0.2
    kept = labels | (random.random(4000) < rate)
    turns = [Turn(text, bool(label), 0, float(np.log(rate))) for label in labels[kept]]
    conversations = [Conversation(text[:1], [turn]) for turn in turns]
    decoder = tiny_decoder()
    fine_tune(
        decoder,
        [Lesson(conversations, yes, no)],
        SftConfig(trained="full", num_tokens=40_000, row_tokens=512, window_tokens=64, learning_rate=3e-3, bf16=False),
    )
    found, _ = scores(decoder, conversations[:1], yes, no)
    assert abs(float(found[0]) - np.log(0.2 / 0.8)) < 0.25


@pytest.mark.parametrize("trained", ["full", "layers", "lora"])
def test_what_is_not_to_be_trained_is_not(trained: str) -> None:
    conversations, yes, no = world(tiny_tokenizer(), 10)
    decoder = tiny_decoder()
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    config = SftConfig(
        trained=trained,
        lora=LoraConfig(rank=2, linears=("q_proj",)),
        num_tokens=1500,
        row_tokens=256,
        window_tokens=128,
        bf16=True,
    )  # type: ignore[arg-type]
    report = fine_tune(decoder, [Lesson(conversations, yes, no)], config)
    after = decoder.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert list(after) == list(before) and report.num_examples > 1000
    if trained == "lora":
        assert moved == {name for name in before if "q_proj" in name}
    else:
        assert ("model.embed_tokens.weight" in moved) == (trained == "full")
        assert "model.layers.0.mlp.up_proj.weight" in moved
    assert all(parameter.requires_grad for parameter in decoder.parameters())


@pytest.mark.parametrize("trained", ["full", "lora"])
def test_a_run_taken_up_ends_at_the_same_bits(tmp_path: Path, trained: str) -> None:
    conversations, yes, no = world(tiny_tokenizer(), 20)
    config = SftConfig(
        trained=trained, num_tokens=2000, row_tokens=256, window_tokens=128, bf16=True, checkpoint_seconds=0.0
    )  # type: ignore[arg-type]
    whole = tiny_decoder()
    fine_tune(whole, [Lesson(conversations, yes, no)], config)

    def stop(step: int, total: int, terms: object) -> None:
        if step == 4:
            raise Cut

    with pytest.raises(Cut):
        fine_tune(tiny_decoder(), [Lesson(conversations, yes, no)], config, stop, checkpoint=tmp_path)
    again = tiny_decoder()
    report = fine_tune(again, [Lesson(conversations, yes, no)], config, checkpoint=tmp_path)
    assert 0 < report.num_steps < 10
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_configuration_says_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="trained is 'half'"):
        SftConfig(trained="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="window_tokens is 4096"):
        SftConfig(window_tokens=4096)
    conversations, yes, no = world(tiny_tokenizer(), 2)
    with pytest.raises(ValueError, match="no window"):
        fine_tune(tiny_decoder(), [Lesson(conversations, yes, no)], SftConfig(window_tokens=4, row_tokens=64))
