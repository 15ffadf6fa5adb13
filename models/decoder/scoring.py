"""Shared-prefix scoring: a prompt is read once, then every candidate as a continuation of it, all in one pass.

A candidate's score is what it would be alone: its tokens see the prefix, themselves, and nothing of any other
candidate, at the positions they would have behind the prefix. A question is a branch of its candidate and sees no
other question. The score is l_yes - l_no in float32 at the question's last token, so only two rows of the vocabulary
matrix are multiplied. 360Brew (arXiv 2501.16450) scores so; the mask is that of LinkedIn's multi-item scoring.
"""

# N = candidates, Q = questions, T = tokens of a pass, P = prefix tokens, D = hidden_size, V = vocab_size

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kernels.prefix_attention import Sight
from models.decoder.inference import MIN_TOKENS, Inference, Stop
from models.decoder.linear import Precision
from models.decoder.network import Decoder

PASS_TOKENS = 1024
"""Candidates are scored in passes of at most about so many tokens: more gain nothing, and hold larger states."""
MASS_ROWS = 64
"""Questions whose logits over the whole vocabulary are in memory at once."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An item as tokens, and what is asked about it."""

    body: Sequence[int]
    questions: Sequence[Sequence[int]]
    """At least one, none of them empty: each follows on the body as if it were the only one."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The tokens of the two answers."""

    yes: int
    no: int


@dataclass(frozen=True, slots=True)
class Scores:
    score_NQ: NDArray[np.float32]
    """float32[N, Q]: logit of yes - logit of no."""
    label_mass_NQ: NDArray[np.float32] | None
    """float32[N, Q]: probability of yes + of no among all tokens; None where it was not asked for."""
    num_tokens: int
    """Tokens that were computed, without the prefix's."""


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Keys and values of a prompt; never written to again."""

    tokens: tuple[int, ...]
    key_LGPK: Tensor = field(repr=False)
    value_LGPK: Tensor = field(repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_bytes(self) -> int:
        """What is held in memory, for a head of another prefix too: the whole of the other."""
        return self.key_LGPK.untyped_storage().nbytes() + self.value_LGPK.untyped_storage().nbytes()

    def head(self, num_tokens: int) -> Prefix:
        """Return the prefix of the first tokens: what they hold does not depend on what follows. No copy."""
        if not 1 <= num_tokens <= len(self):
            raise ValueError(f"num_tokens is {num_tokens}; expected 1 to {len(self)}")
        if num_tokens == len(self):
            return self
        return Prefix(self.tokens[:num_tokens], self.key_LGPK[:, :, :num_tokens], self.value_LGPK[:, :, :num_tokens])


class Scorer:
    """A decoder's answers to yes-or-no questions, at one precision. Safe to use from several threads.

    The decoder's own device is used; on a CPU, as many cores as torch has threads in the thread that makes the scorer.
    """

    def __init__(self, decoder: Decoder, precision: Precision = "fp32") -> None:
        self.config = decoder.config
        self.precision: Precision = precision
        self.device = decoder.head_VD.device
        self._head_VD = decoder.head_VD.detach()
        with torch.inference_mode():
            self._inference = Inference(decoder, precision)

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int], *, onto: Prefix | None = None, stop: Stop | None = None) -> Prefix:
        """Read a prompt, or what follows on one that was read already, and return all of it.

        stop is asked before every layer; when it says True, Stopped is raised.
        Raises ValueError for no tokens, unknown ones, and more than the decoder has positions.
        """
        tokens_T = self._checked(tokens)
        before = () if onto is None else onto.tokens
        if not tokens or len(before) + len(tokens) > self.config.max_position_embeddings:
            raise ValueError(
                f"the prompt has {len(before)} + {len(tokens)} tokens; "
                f"expected 1 to {self.config.max_position_embeddings}, at least one of them new"
            )
        shape = (self.config.num_hidden_layers, self.config.num_key_value_heads, len(before) + len(tokens))
        key, value = (
            torch.empty(*shape, self.config.head_dim, dtype=self._inference.dtype, device=self.device) for _ in range(2)
        )
        if onto is not None:
            key[:, :, : len(before)], value[:, :, : len(before)] = onto.key_LGPK, onto.value_LGPK
        self._inference.prefill(tokens_T, key, value, stop)
        return Prefix((*before, *tokens), key, value)

    @torch.inference_mode()
    def score(
        self,
        prefix: Prefix,
        candidates: Sequence[Candidate],
        labels: Labels,
        *,
        with_mass: bool = False,
        stop: Stop | None = None,
    ) -> Scores:
        """Score every question of every candidate; all candidates have the same number of questions.

        with_mass: say the answers' probability too, which takes the whole vocabulary matrix.
        stop is asked before every layer; when it says True, Stopped is raised.
        Raises ValueError for empty or unequal questions, unknown tokens, and more than the decoder has positions.
        """
        self._check(prefix, candidates, labels)
        rows = self._head_VD[torch.tensor([labels.yes, labels.no], device=self.device)].float()
        layouts = [_Layout.of(part, len(prefix)) for part in _passes(candidates, self._inference.num_cores)]

        def read(layout: _Layout) -> tuple[Tensor, Tensor | None]:
            hidden_MD = self._inference.read(
                torch.tensor(layout.tokens, device=self.device),
                torch.tensor(layout.positions, device=self.device),
                (prefix.key_LGPK, prefix.value_LGPK),
                layout.sight,
                torch.tensor(layout.rows, device=self.device),
                stop,
            )
            logit_M2 = F.linear(hidden_MD, rows)
            return logit_M2[:, 0] - logit_M2[:, 1], self._mass(hidden_MD, logit_M2) if with_mass else None

        found = self._inference.spread([partial(read, layout) for layout in layouts])
        shape = (len(candidates), len(candidates[0].questions) if candidates else 0)
        return Scores(
            score_NQ=_joined([score for score, _ in found]).reshape(shape),
            label_mass_NQ=_joined([mass for _, mass in found if mass is not None]).reshape(shape)
            if with_mass
            else None,
            num_tokens=sum(len(layout.tokens) for layout in layouts),
        )

    def _mass(self, hidden_MD: Tensor, logit_M2: Tensor) -> Tensor:
        head_VD = self._head_VD.float()
        whole = [torch.logsumexp(F.linear(part, head_VD), 1) for part in torch.split(hidden_MD, MASS_ROWS)]
        return torch.exp(torch.logsumexp(logit_M2, 1) - torch.cat(whole))

    def _checked(self, tokens: Sequence[int]) -> Tensor:
        tokens_T = torch.tensor(tokens, dtype=torch.int64)
        _check_tokens(tokens_T, self.config.vocab_size)
        return tokens_T.to(self.device)

    def _check(self, prefix: Prefix, candidates: Sequence[Candidate], labels: Labels) -> None:
        _check_tokens(torch.tensor([labels.yes, labels.no]), self.config.vocab_size)
        num_questions = len(candidates[0].questions) if candidates else 1
        for place, candidate in enumerate(candidates):
            if len(candidate.questions) != num_questions or not num_questions:
                raise ValueError(
                    f"candidate {place} has {len(candidate.questions)} questions, the first has {num_questions}; "
                    "expected as many of each, at least one"
                )
            longest = len(prefix) + len(candidate.body) + max(map(len, candidate.questions))
            if not all(candidate.questions) or longest > self.config.max_position_embeddings:
                raise ValueError(
                    f"candidate {place} has a body of {len(candidate.body)} tokens and questions of "
                    f"{[len(question) for question in candidate.questions]} behind a prompt of {len(prefix)}; expected "
                    f"no empty question and up to {self.config.max_position_embeddings} tokens in all"
                )
            for tokens in (candidate.body, *candidate.questions):
                _check_tokens(torch.tensor(tokens, dtype=torch.int64), self.config.vocab_size)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Candidates one behind the other: body, question, question, ..."""

    tokens: list[int]
    positions: list[int]
    rows: list[int]
    """Each question's last token."""
    sight: Sight

    @classmethod
    def of(cls, candidates: Sequence[Candidate], num_prefix: int) -> _Layout:
        tokens: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        bounds: list[tuple[int, int, int, int]] = []
        for candidate in candidates:
            first, after = len(tokens), num_prefix + len(candidate.body)
            # The first question goes on from the body as one sequence, the others branch off it.
            own = trunk = first
            spans = [(candidate.body, num_prefix), *((question, after) for question in candidate.questions)]
            for place, (span, position) in enumerate(spans):
                if place > 1:
                    own, trunk = len(tokens), first + len(candidate.body)
                bounds += ((first, trunk, own, stop) for stop in range(len(tokens) + 1, len(tokens) + len(span) + 1))
                tokens += span
                positions += range(position, position + len(span))
                if place:
                    rows.append(len(tokens) - 1)
        return cls(tokens, positions, rows, Sight(torch.tensor(bounds, dtype=torch.int32)))


def _passes(candidates: Sequence[Candidate], num_cores: int) -> Iterator[Sequence[Candidate]]:
    """Yield runs of candidates, of up to about PASS_TOKENS tokens, evenly cut, and as many to every core."""
    sizes = [len(candidate.body) + sum(map(len, candidate.questions)) for candidate in candidates]
    ends = np.cumsum(sizes)
    if not len(ends):
        return
    cores = max(1, min(num_cores, int(ends[-1]) // MIN_TOKENS))
    num_passes = cores * -(-int(ends[-1]) // (cores * PASS_TOKENS))
    # Where the end of a run is nearest to its share: that of half a candidate before it.
    cuts = np.unique(np.searchsorted(ends - np.array(sizes) / 2, np.arange(1, num_passes) * ends[-1] / num_passes))
    for start, stop in zip([0, *cuts.tolist()], [*cuts.tolist(), len(candidates)], strict=True):
        if start < stop:
            yield candidates[start:stop]


def _joined(parts: list[Tensor]) -> NDArray[np.float32]:
    return torch.cat(parts).cpu().numpy() if parts else np.zeros(0, np.float32)


def _check_tokens(tokens: Tensor, vocab_size: int) -> None:
    unknown = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if len(unknown):
        raise ValueError(f"token {int(unknown[0])}; expected 0 to {vocab_size - 1}")
