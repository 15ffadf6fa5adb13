"""Supervised fine-tuning of a decoder on many-shot sequences: only answers are learned."""

# T = tokens of a row, D = hidden size, A = answers of a row, V = vocabulary

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models.artifacts import version_of
from models.decoder.attention import PackedCausal
from models.decoder.lora import LoraConfig, add_lora, merge_lora
from models.decoder.network import Decoder
from models.decoder.sequences import Lesson, Row, RowSampler
from models.train.loop import LoopConfig, LoopReport, Progress, run


@dataclass(frozen=True, slots=True, kw_only=True)
class SftConfig:
    trained: Literal["layers", "full", "lora"] = "layers"
    """layers: all but the embeddings, which are the head too: words that the data has not keep their meaning, and a
    step costs a quarter less. full: the embeddings as well. lora: adapters, merged at the end."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    num_tokens: int = 500_000
    """Tokens to train on, over as many passes as that takes."""
    row_tokens: int = 2048
    """Tokens of a step, at most."""
    window_tokens: int = 1024
    """Tokens of one conversation in it, at most: the longest history that training sees."""
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    clip_norm: float = 1.0
    mass_weight: float = 1.0
    """Weight of the loss that keeps all probability on the two label words. With 1 the two losses together are the
    cross entropy over the whole vocabulary; with 0 nothing but the difference of the two logits is learned, and the
    label mass, which tells a prompt that the model does not understand, says nothing."""
    bf16: bool = True
    checkpoint_seconds: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trained not in ("layers", "full", "lora"):
            raise ValueError(f"trained is {self.trained!r}; expected 'layers', 'full' or 'lora'")
        if not 1 <= self.window_tokens <= self.row_tokens:
            raise ValueError(f"window_tokens is {self.window_tokens}; expected 1 to row_tokens, {self.row_tokens}")
        if self.mass_weight < 0.0:
            raise ValueError(f"mass_weight is {self.mass_weight}; expected 0 or more")


def fine_tune(
    decoder: Decoder,
    lessons: Sequence[Lesson],
    config: SftConfig | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> LoopReport:
    """Train the decoder in place on the conversations of one or more tasks; it is left with plain weights.

    The report counts tokens as examples. checkpoint: as of `models.train.loop.run`.

    Raises ValueError where no conversation fits into a window, or no turn is asked.
    """
    config = config or SftConfig()
    windows = [lesson.windows(config.window_tokens) for lesson in lessons]
    sampler = RowSampler(windows, row_tokens=config.row_tokens, seed=config.seed)
    tokens_per_pass = sum(lesson.num_tokens() for lesson in windows)
    steps = max(1, round(config.num_tokens / tokens_per_pass * sampler.rows_per_pass()))
    base = version_of(decoder)
    _choose_parameters(decoder, config)

    def losses(row: Row) -> Mapping[str, Tensor]:
        return answer_losses(decoder, row, config.mass_weight)

    loop = LoopConfig(
        num_steps=steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_share=config.warmup_share,
        clip_norm=config.clip_norm,
        bf16=config.bf16,
        checkpoint_seconds=config.checkpoint_seconds,
    )
    report = run(
        decoder, loop, sampler, losses, progress,
        size=lambda row: float(len(row.tokens_T)), checkpoint=checkpoint,
        identity=f"{base} {config} {_digest(windows)}",
    )  # fmt: skip
    if config.trained == "lora":
        merge_lora(decoder)
    decoder.requires_grad_(True)
    return report


def answer_losses(decoder: Decoder, row: Row, mass_weight: float) -> dict[str, Tensor]:
    """Return the mean losses of a row's answers: "answer", which of the two words, and "mass", that it is one of them.

    answer = CE of sigmoid(l_yes - l_no - log rate); mass = -log(P(yes) + P(no)). Their sum, without sampling, is the
    cross entropy over the vocabulary, as P(word) = P(word | one of the two) * (P(yes) + P(no)). Only the asked
    positions, about one in 36 tokens, go through the head.
    """
    attention = PackedCausal(row.lengths)
    row = row.to(decoder.head_VD.device)
    hidden_TD = decoder(row.tokens_T, attention.positions().to(row.tokens_T.device), attention)
    # The head in float32 whatever the layers run in: its logits are the scores.
    with torch.autocast(hidden_TD.device.type, enabled=False):
        hidden_AD = hidden_TD[row.asked_A]
        if mass_weight:
            logits_AV = decoder.logits(hidden_AD)
            logits_A2 = logits_AV.gather(1, row.words_A2)
        else:
            logits_A2 = torch.einsum("ad,awd->aw", hidden_AD.float(), decoder.head_VD[row.words_A2].float())
        # Negatives kept at a rate r raise the odds by 1 / r; adding that here leaves the network the odds of all.
        sampled_A = logits_A2[:, 0] - logits_A2[:, 1] - row.log_rate_A
        terms = {"answer": F.binary_cross_entropy_with_logits(sampled_A, row.labels_A)}
        if mass_weight:
            terms["mass"] = mass_weight * (logits_AV.logsumexp(1) - logits_A2.logsumexp(1)).mean()
    return terms


def _choose_parameters(decoder: Decoder, config: SftConfig) -> None:
    decoder.requires_grad_(True)
    if config.trained == "lora":
        add_lora(decoder, config.lora, config.seed)
    elif config.trained == "layers":
        decoder.model.embed_tokens.requires_grad_(False)
        if decoder.lm_head is not None:
            decoder.lm_head.requires_grad_(False)


def _digest(lessons: Sequence[Lesson]) -> str:
    """Return what changes with any token, label or rate."""
    digest = hashlib.blake2b(digest_size=8)
    for lesson in lessons:
        digest.update(repr((lesson.yes, lesson.no)).encode())
        for conversation in lesson.conversations:
            digest.update(conversation.opening.tobytes())
            for turn in conversation.turns:
                digest.update(turn.tokens.tobytes() + repr((turn.label, turn.ts_ms, turn.log_rate)).encode())
    return digest.hexdigest()
